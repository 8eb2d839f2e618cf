"""Architecture → sites: where heads, neurons and MLP outputs live in a torch module, found by walking it.

Names are hints only; what counts is the shape (a projection onto d_model), and the self-test at binding.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import nn

from spex_mech.ablation.leave_out import LeaveOut
from spex_mech.ablation.linear_maps import linears, widths
from spex_mech.ablation.mixtures import SumForm
from spex_mech.ablation.subject import Edit, Shortcuts, Site
from spex_mech.ablation.wrappers import uncompiled
from spex_mech.components import ModelShape
from spex_mech.errors import ModelError

_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe")
_OUT = ("o_proj", "c_proj", "out_proj", "dense", "wo")
_DOWN = ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out", "w2", "wo")
_HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head")  # a layer's own, where layers differ
_KV_COUNTS = ("num_key_value_heads", "num_kv_heads", "kv_heads")
_OTHER_TOWERS = ("vision", "visual", "image", "audio", "speech")
_POST_NORM = "post_feedforward_layernorm"
MIXERS = ("mamba", "linear_attn", "mixer", "conv", "ssm", "temporal_block", "recurrent")  # of hybrids
_MIXER_HEADS = ("num_v_heads", "num_heads", "n_heads")  # of linear attention the values', which are what is written


class Form(Protocol):
    """How the tensor of a site is made from what modules take and give, and put back there."""

    def hang(self, edit: Edit, rows: Callable[[], int], guard: Callable[..., Any]) -> list[Any]:
        """Hang the hooks of an edit, each made by `guard`; returns their handles. See `place_hooks.hooked`."""
        ...


@dataclass(frozen=True)
class Place:
    """A site and the module at whose input or output it is; `module` is the projection for heads and neurons.

    A site that is no module's input or output as it stands is put there by its `form`.
    """

    site: Site
    module: nn.Module
    at: Literal["input", "output"]
    form: Form | None = None


@dataclass(frozen=True)
class Architecture:
    """What walking a model found: its shape, its places in forward order, and where work can be left out."""

    shape: ModelShape
    places: tuple[Place, ...]
    leave_out: LeaveOut
    further: Mapping[int, tuple[Place, ...]] = field(default_factory=dict)  # by layer, where else its MLP site may be


def possible_shortcuts(architecture: Architecture, sites: Iterable[Site]) -> Shortcuts:
    """What might be left out of a forward pass; whether it may be is tried at binding.

    The last block's MLP can be narrowed to the scored position where it is one module; its attention's output
    projection with it, after the edit of its heads, which therefore see all positions.
    """
    last, leave_out = architecture.shape.n_layers - 1, architecture.leave_out
    narrow = {site for site in sites if site.layer == last and site.kind in ("neurons", "shared", "experts", "mlp")}
    whole = last in leave_out.mlps or not narrow
    return Shortcuts(
        one_row=True,
        grow=len(leave_out.blocks) > 1,
        skip=bool(leave_out.mlps),
        narrow=frozenset(narrow if whole else ()),
    )


def find_architecture(model: nn.Module) -> Architecture:
    """The places of a decoder-only language model with a Hugging Face style ``config``.

    Raises:
        ModelError: no config, an encoder-decoder or vision model, or no decoder blocks of a known form.
    """
    config = _config(model)
    blocks = _blocks(model, int(config.num_hidden_layers))
    d_model, n_heads = int(config.hidden_size), int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or 0)
    places = [place for layer, block in enumerate(blocks) for place in _places(block, layer, d_model, n_heads)]
    if not places:
        raise ModelError(
            f"no known site was found in {type(model).__name__}: none of its {len(blocks)} blocks has an attention "
            f"({'/'.join(_ATTENTION)}) or MLP ({'/'.join(_MLP)}) with a projection onto d_model = {d_model}. "
            "Wrap it in a TransformerLens bridge, or implement spex_mech.ablation.subject.Subject."
        )
    counts = {(p.site.kind, p.site.layer): p.site.parts for p in places}
    layers = range(len(blocks))
    heads = tuple(counts.get(("heads", layer), 0) for layer in layers)
    shape = ModelShape(
        name=str(getattr(config, "_name_or_path", "") or type(model).__name__),
        heads=heads,
        kv_heads=tuple(_kv_count(blocks[layer], count, kv_heads) for layer, count in enumerate(heads)),
        mlps=tuple(("mlp", layer) in counts for layer in layers),
        neurons=tuple(counts.get(("neurons", layer), 0) for layer in layers),
        d_vocab=int(config.vocab_size),
        d_vocab_out=int(config.num_labels) if "ForSequenceClassification" in type(model).__name__ else 0,
    )
    further = {p.site.layer: _further(blocks[p.site.layer], p, places) for p in places if p.site.kind == "mlp"}
    return Architecture(shape, tuple(places), _leave_out(blocks, places), further)


def _further(block: nn.Module, place: Place, places: list[Place]) -> tuple[Place, ...]:
    """Where else the MLP's site may be: the down projection (what holds it returns the stream too), the norms, the sum
    with a shared expert beside it."""
    down = [p.module for p in places if (p.site.kind, p.site.layer) == ("neurons", place.site.layer)]
    norms = [child for child in block.children() if "norm" in type(child).__name__.lower()]
    alone = [Place(place.site, module, "output") for module in [*down, *norms] if module is not place.module]
    beside = [uncompiled(child) for name, child in block.named_children() if "shared" in name or name in _MLP]
    pairs = [(place.module, other) for other in beside if other is not place.module]
    sums = [Place(place.site, two, "output", SumForm(one, two)) for pair in pairs for one, two in (pair, pair[::-1])]
    return (*alone, *sums)


def _leave_out(blocks: list[nn.Module], places: list[Place]) -> LeaveOut:
    found = {layer: _child(block, _MLP) for layer, block in enumerate(blocks)}
    mlps = {layer: mlp for layer, mlp in found.items() if mlp is not None}
    heads = [p.module for p in places if p.site.layer == len(blocks) - 1 and p.site.kind == "heads"]
    ends = [*heads, *([mlps[len(blocks) - 1]] if len(blocks) - 1 in mlps else [])]
    return LeaveOut(tuple(blocks), mlps, tuple(ends))


def _config(model: nn.Module) -> Any:
    config: Any = getattr(model, "config", None)
    if config is not None and getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{type(model).__name__} is an encoder-decoder; spex_mech binds decoder-only language models.")
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    needed = ("num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size")
    missing = [name for name in needed if getattr(config, name, None) is None]
    if missing:
        raise ModelError(
            f"{type(model).__name__} is on no known site: its config lacks {', '.join(missing)}. spex_mech binds "
            "TransformerLens bridges, Hugging Face causal language models, and objects that implement Subject."
        )
    return config


def _blocks(model: nn.Module, n_layers: int) -> list[nn.Module]:
    """The decoder blocks: the module list of the right length whose items have an attention or an MLP.

    Of several, as vision-language models have, the one in the module that the model calls its decoder; else the first
    that bears no name of another tower.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            blocks = [uncompiled(block) for block in module.children()]
            if all(_child(block, _ATTENTION) or _child(block, _MLP) for block in blocks):
                found[name] = (module, blocks)
    ask: Any = getattr(model, "get_decoder", None)
    decoder = ask() if ask is not None and len(found) > 1 else None
    inside = set(map(id, decoder.modules())) if isinstance(decoder, nn.Module) else set()
    towers = {name: any(tower in name.lower() for tower in _OTHER_TOWERS) for name in found}
    order = sorted(found, key=lambda name: (towers[name], id(found[name][0]) not in inside))
    if order:
        return found[order[0]][1]
    raise ModelError(
        f"{type(model).__name__} has no list of {n_layers} decoder blocks with an attention "
        f"({'/'.join(_ATTENTION)}) or an MLP ({'/'.join(_MLP)}) in each, so no known site was found."
    )


def _places(block: nn.Module, layer: int, d_model: int, n_heads: int) -> Iterator[Place]:
    attention = _child(block, _ATTENTION)
    out = attention and _projection(attention, _OUT, d_model)
    if out:
        features, _ = _widths(out)
        count = _number(attention, _HEAD_COUNTS) or n_heads
        if features % count:
            raise ModelError(
                f"layer {layer}: the attention output has {features} inputs, not a multiple of {count} heads."
            )
        yield Place(Site(layer, "heads", count, features // count), out, "input")
    elif attention is not None:
        raise ModelError(
            f"layer {layer}: nothing in its {type(attention).__name__} is known as a linear map onto d_model = "
            f"{d_model}: {_children(attention)}. A quantised one must declare in_features and out_features. Give the "
            "model in a precision of torch's own, or wrap it in a TransformerLens bridge."
        )
    else:
        yield from _mixer_places(block, layer, d_model)
    mlp = _child(block, _MLP)
    holder = mlp if mlp is not None else block  # OPT keeps fc1 and fc2 in the block itself
    down = None if _has_experts(holder) else _projection(holder, _DOWN, d_model, own=mlp is None)
    if down:
        yield Place(Site(layer, "neurons", _widths(down)[0], 1), down, "input")
    last = _child(block, (_POST_NORM,)) or mlp or down
    if last is not None:
        yield Place(Site(layer, "mlp", 1, d_model), last, "output")


def _mixer_places(block: nn.Module, layer: int, d_model: int) -> Iterator[Place]:
    """The heads of a mixer without softmax attention (linear attention, Mamba-2), at its output projection's input.

    Where it says how many heads it has, and its projection reads them side by side.
    """
    mixer = heads_mixer(block)
    if mixer is not None:
        out, count = _projection(mixer, _OUT, d_model, own=True), _number(mixer, _MIXER_HEADS)
        features = _widths(out)[0] if out is not None else 0
        if out is not None and features and features % count == 0:
            yield Place(Site(layer, "heads", count, features // count), out, "input")


def heads_mixer(block: nn.Module) -> nn.Module | None:
    """The mixer of a block without softmax attention, where it has heads."""
    if _child(block, _ATTENTION) is not None:
        return None
    mixers = [child for name, child in block.named_children() if any(kind in name for kind in MIXERS)]
    return next((uncompiled(child) for child in mixers if _number(uncompiled(child), _MIXER_HEADS)), None)


def _child(module: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    children = dict(module.named_children())
    return next((uncompiled(children[name]) for name in names if name in children), None)


def _children(module: nn.Module) -> str:
    return ", ".join(f"{name} is a {type(child).__name__}" for name, child in module.named_children()) or "no children"


def _number(module: nn.Module | None, names: tuple[str, ...]) -> int:
    """The first of a module's attributes that is a count; 0 where it has none."""
    found = (getattr(module, name, None) for name in names)
    return next((n for n in found if isinstance(n, int) and not isinstance(n, bool) and n > 0), 0)


def _kv_count(block: nn.Module, heads: int, configured: int) -> int:
    """Key/value heads of a layer: its module's own number, its heads over their groups, or the config's."""
    attention = _child(block, _ATTENTION)
    if attention is None:  # heads of a mixer share no keys that one could name
        return heads
    groups = _number(attention, ("num_key_value_groups",))
    options = (_number(attention, _KV_COUNTS), heads // groups if groups else 0, configured, heads)
    return next((n for n in options if n and heads % n == 0), 0) if heads else 0


def _projection(module: nn.Module, hints: tuple[str, ...], d_model: int, *, own: bool = False) -> nn.Module | None:
    """The linear map onto d_model: one with a known name, else the last one; `own`: direct children only."""
    linear = {name: m for name, m in linears(module, own) if _widths(m)[1] == d_model}
    by_name = next((linear[hint] for hint in hints if hint in linear), None)
    return by_name if by_name is not None or own else next(reversed(linear.values()), None)


def _widths(projection: nn.Module) -> tuple[int, int]:
    return widths(projection) or (0, 0)


def _has_experts(module: nn.Module) -> bool:
    return any("expert" in name or name in ("router", "gate_up") for name, _ in module.named_modules())
