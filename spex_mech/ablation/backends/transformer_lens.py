"""`BridgeSubject`: TransformerLens models through their own hook points.

Known by their form (``cfg``, ``hook_dict``, ``hooks``), so TransformerBridge 4.x, native or wrapped, and objects with
the hooks of HookedTransformer 2.x/3.x are all bound here.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from spex_mech.ablation.backends.base import ModelSubject, as_it_is
from spex_mech.ablation.leave_out import LeaveOut
from spex_mech.ablation.linear_maps import reading_weights
from spex_mech.ablation.place_hooks import hooked, in_every_call
from spex_mech.ablation.sites import Architecture, Place
from spex_mech.ablation.subject import Edit, Shortcuts, Site, SiteKind
from spex_mech.ablation.turns import ablated_here, only_here
from spex_mech.components import ModelShape
from spex_mech.errors import ModelError

_HUNG = ("own", "experts", "shared")
_HOOKS: dict[SiteKind, str] = {"heads": "attn.hook_z", "neurons": "mlp.hook_post", "mlp": "hook_mlp_out"}


def is_transformer_lens(model: Any) -> bool:
    """Whether a model has the form of a TransformerLens model."""
    return all(hasattr(model, name) for name in ("cfg", "hook_dict", "hooks", "run_with_hooks"))


class BridgeSubject(ModelSubject):
    """A TransformerLens model; ablation edits hook_z, hook_post and hook_mlp_out, never hook_result."""

    backend = "transformer_lens"

    def __init__(self, model: Any) -> None:
        """Read the shape from ``cfg`` and the sites from the hooks that exist; raises `ModelError` if there are
        none."""
        super().__init__(model, model, _architecture(model), _processing(model))
        self._options = {"use_cache": False} if hasattr(model, "enable_compatibility_mode") else {}

    @property
    def n_ctx(self) -> int | None:
        return getattr(self.model.cfg, "n_ctx", None)

    def reading_weights(self, site: Site) -> list[Float[Tensor, "feature out"]]:
        """See `ModelSubject.reading_weights`; of a bridge's wrapped projection, or HookedTransformer's own weights."""
        block = self.model.blocks[site.layer]
        part, legacy = (block.attn, "W_O") if site.kind == "heads" else (block.mlp, "W_out")
        bridge: Any = getattr(part, "o" if site.kind == "heads" else "out", None)
        if hasattr(bridge, "original_component"):
            return reading_weights(bridge.original_component)
        weight = getattr(part, legacy)
        return [weight.data.view(-1, weight.shape[-1])]

    def possible_shortcuts(self) -> Shortcuts:
        """What might be left out in a model of this form; binding tries it.

        A bridge's ``hook_z`` lies inside the output projection, so narrowing that narrows the heads as well.
        """
        leave_out = self._architecture.leave_out
        last = len(leave_out.blocks) - 1
        kinds = {"heads", "neurons", "mlp"} if _out_module(leave_out.blocks[-1]) else {"neurons", "mlp"}
        narrow = {site for site in self.sites if site.layer == last and site.kind in kinds}
        return Shortcuts(True, last > 0, bool(leave_out.mlps), frozenset(narrow), leave_out.final is not None)

    def _logits(
        self,
        tokens: Int[Tensor, "row pos"],
        edits: Mapping[Site, Edit],
        wanted: Int[Tensor, " position"] | None,
        cuts: AbstractContextManager[None],
    ) -> Float[Tensor, "row pos vocab"]:
        hung = self._hung(edits)
        hooks = [(name, only_here(fn, _as_it_is)) for name, fn in self.fwd_hooks(_others(edits))]
        with self.model.hooks(fwd_hooks=hooks), hooked(hung, lambda: len(tokens)), cuts:
            return self.model(tokens, **self._options)

    @contextmanager
    def in_force(self, edits: Mapping[Site, Edit]) -> Iterator[Any]:
        """See `ModelSubject.in_force`; through the hook points, beside the user's own hooks on them."""
        edits = {**edits, **{site: as_it_is for site in self.spliced if site not in edits}}
        hung, hooks = self._hung(edits), self.fwd_hooks(_others(edits))
        with ablated_here(self.module), self.model.hooks(fwd_hooks=hooks), in_every_call(self.blocks[0], hung):
            yield self.model

    def _hung(self, edits: Mapping[Site, Edit]) -> list[tuple[Place, Edit]]:
        """Edits at sites that are no hook points: of the user's own, and of experts, which are plain torch modules."""
        return [(self._places[site], edit) for site, edit in edits.items() if site.kind in _HUNG]

    def fwd_hooks(self, edits: Mapping[Site, Edit]) -> list[tuple[str, Callable[..., Tensor]]]:
        """The edits as TransformerLens takes them: pairs of a hook point's name and ``fn(tensor, hook)``.

        Raises `ModelError`: a site of the user's own, which is no hook point.
        """
        own = sorted({site.label for site in edits if site.kind in _HUNG})
        if own:
            raise ModelError(f"{', '.join(own)} are no hook points of TransformerLens; use sm.ablated for them.")
        return [(hook_name(site), _as_hook(edit)) for site, edit in edits.items()]


def _others(edits: Mapping[Site, Edit]) -> dict[Site, Edit]:
    return {site: edit for site, edit in edits.items() if site.kind not in _HUNG}


def hook_name(site: Site) -> str:
    """The hook point of a site, as TransformerLens names it.

    >>> hook_name(Site(3, "heads", 12, 64))
    'blocks.3.attn.hook_z'
    """
    return f"blocks.{site.layer}.{_HOOKS[site.kind]}"


def _as_it_is(tensor: Tensor, hook: Any) -> Tensor:
    return tensor


def _as_hook(edit: Edit) -> Callable[..., Tensor]:
    def fn(tensor: Tensor, hook: Any) -> Tensor:
        if tensor.ndim == 3:
            return edit(tensor)
        edited = edit(rearrange(tensor, "row pos head feature -> row pos (head feature)"))
        return rearrange(edited, "row pos (head feature) -> row pos head feature", head=tensor.shape[2])

    return fn


def _architecture(model: Any) -> Architecture:
    there = model.hook_dict
    sites = [site for layer in range(model.cfg.n_layers) for site in _layer_sites(model, layer)]
    if not sites:
        raise ModelError(
            f"{type(model).__name__} has none of the hooks blocks.*.{', blocks.*.'.join(_HOOKS.values())}, "
            "so no known site was found. Bind a TransformerBridge of a decoder-only language model."
        )
    places = tuple(Place(site, there[hook_name(site)], "output") for site in sites)
    return Architecture(_shape(model.cfg, tuple(sites)), places, _leave_out(model))


def _leave_out(model: Any) -> LeaveOut:
    blocks = tuple(model.blocks)
    mlps = {layer: block.mlp for layer, block in enumerate(blocks) if hasattr(block, "mlp")}
    ends = [_out_module(blocks[-1]), mlps.get(len(blocks) - 1)]
    return LeaveOut(blocks, mlps, tuple(m for m in ends if m is not None), getattr(model, "unembed", None))


def _out_module(block: Any) -> nn.Module | None:
    """The attention's output projection, where it is a module of its own (HookedTransformer has none)."""
    return getattr(getattr(block, "attn", None), "o", None)


def _layer_sites(model: Any, layer: int) -> list[Site]:
    cfg, there = model.cfg, model.hook_dict
    found = []
    if f"blocks.{layer}.attn.hook_z" in there:
        found.append(Site(layer, "heads", int(cfg.n_heads), int(cfg.d_head)))
    if f"blocks.{layer}.mlp.hook_post" in there and not getattr(cfg, "num_experts", None):
        found.append(Site(layer, "neurons", int(cfg.d_mlp), 1))
    if f"blocks.{layer}.hook_mlp_out" in there and not getattr(cfg, "attn_only", False):
        found.append(Site(layer, "mlp", 1, int(cfg.d_model)))
    return found


def _shape(cfg: Any, sites: tuple[Site, ...]) -> ModelShape:
    counts = {(site.kind, site.layer): site.parts for site in sites}
    layers = range(cfg.n_layers)
    heads = tuple(counts.get(("heads", layer), 0) for layer in layers)
    kv_heads = int(getattr(cfg, "n_key_value_heads", None) or cfg.n_heads)
    return ModelShape(
        name=str(getattr(cfg, "model_name", None) or "transformer_lens model"),
        heads=heads,
        kv_heads=tuple(kv_heads if h else 0 for h in heads),
        mlps=tuple(("mlp", layer) in counts for layer in layers),
        neurons=tuple(counts.get(("neurons", layer), 0) for layer in layers),
        d_vocab=int(cfg.d_vocab),
        d_vocab_out=int(getattr(cfg, "d_vocab_out", 0) or 0),
    )


def _processing(model: Any) -> str:
    """Whether TransformerLens folded and centred the weights: zero ablation then means something else."""
    if not hasattr(model, "enable_compatibility_mode"):
        return "as loaded by HookedTransformer"
    return "compatibility mode" if getattr(model, "compatibility_mode", False) else "none"
