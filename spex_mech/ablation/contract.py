"""What a component adds to the residual stream, certified at binding from the model's own behaviour, not from names.

Every block is given the same random stream x, and all head sites give zero. With the MLP's site at zero as well, the
block must return x and a constant (biases are not ablated); with the MLP's site at a random v it must return c·v more,
with one scalar c for the layer. A module that returns the stream too, one before a norm, or one of two that add up,
cannot do both. Where a block ends in a norm, what enters the norm counts as its output.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spex_mech.ablation.backends.base import ModelSubject
from spex_mech.ablation.identity import made_up_tokens
from spex_mech.ablation.leave_out import changed_input
from spex_mech.ablation.sites import MIXERS, heads_mixer
from spex_mech.ablation.subject import Certificate, Edit, Site
from spex_mech.ablation.turns import only_here
from spex_mech.ablation.wrappers import uncompiled
from spex_mech.errors import ModelError, all_problems

CONTRACT_TOLERANCE = 1e-3  # of a stream of unit size, float32; a tiny shared expert left in was off by 0.04
COARSE_CONTRACT = 0.05  # in half precision, which rounds a stream of unit size by up to 0.02

Stream = Float[Tensor, "row pos d_model"]


def certify(subject: ModelSubject) -> tuple[Certificate, ...]:
    """The certificate of every layer; MLP sites move to the next possible place until they are certified.

    Costs two tiny forward passes, and two more for each time that sites move.

    Raises:
        ModelError: naming each layer that cannot be certified, its module, what it should do and what was seen.
    """
    first = dict[int, str]()  # what was seen where each site was looked for first
    while True:
        found = _look(subject)
        failed = {layer: seen for layer, seen in found.items() if isinstance(seen, str)}
        if not failed:
            return tuple(seen for seen in found.values() if isinstance(seen, Certificate))
        first = {**failed, **first}
        moved = [subject.move_mlp(layer) for layer in failed]
        if not all(moved):
            problems = [f"layer {layer}: {first[layer]}" for layer in failed]
            raise ModelError(
                all_problems(
                    f"{subject.shape.describe()}: what its components add to the residual stream cannot be certified, "
                    "so ablating them could mean something else. With heads and MLPs at zero, a block must return its "
                    "input and a constant, and its MLP must add in proportion to its value:",
                    problems,
                )
            )


def describe_certificates(subject: Any) -> list[dict[str, Any]]:
    """Certificates for records and people, layers of one kind together; empty for a subject that has none.

    Keys: ``layers``, the counts ``heads``, ``kv_heads``, ``head_width`` and ``neurons``, ``mlp`` (where its site is),
    ``mixer`` (what has the heads, where that is no softmax attention), and of the certificate ``scale``, ``experts``,
    ``shared``, ``router`` and ``uncovered``.
    """
    subject = getattr(subject, "inner", subject)  # of a subject that has parts of prompts too
    kinds = dict[str, dict[str, Any]]()
    for certificate in getattr(subject, "certificates", ()):
        told = _describe_layer(subject, certificate)
        kinds.setdefault(repr(told), {"layers": [], **told})["layers"].append(certificate.layer)
    return list(kinds.values())


def _describe_layer(subject: ModelSubject, certificate: Certificate) -> dict[str, Any]:
    layer, shape = certificate.layer, subject.shape
    widths = (site.width for site in subject.sites if (site.kind, site.layer) == ("heads", layer))
    return {
        "heads": shape.heads[layer],
        "kv_heads": shape.kv_heads[layer],
        "mixer": certificate.mixer,
        "head_width": next(widths, 0),
        "neurons": shape.neurons[layer],
        "mlp": subject.mlp_module(layer) if shape.mlps[layer] else None,
        "scale": None if certificate.scale is None else float(f"{certificate.scale:.3g}"),
        "experts": certificate.experts,
        "shared": certificate.shared,
        "router": certificate.router,
        "uncovered": list(certificate.uncovered),
    }


def certificate_line(told: Mapping[str, Any]) -> str:
    """One kind of layer for people.

    >>> certificate_line({"layers": [0, 1, 3], "heads": 9, "kv_heads": 3, "mixer": "", "head_width": 64,
    ...                   "neurons": 1536,
    ...                   "mlp": "output of LlamaMLP", "scale": 1.0, "experts": 0, "shared": False, "router": "",
    ...                   "uncovered": []})
    'layers 0-1, 3: heads 9 (kv 3) width 64 certified; mlp certified at output of LlamaMLP, 1,536 neurons'
    """
    layers = told["layers"]
    ends = [i for i in layers if i + 1 not in layers]
    starts = [i for i in layers if i - 1 not in layers]
    spans = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
    heads, grouped = told["heads"], told["kv_heads"] != told["heads"]
    kv = f" (kv {told['kv_heads']})" if grouped else ""
    kv += f" of {told['mixer']}" if told["mixer"] else ""
    said = [f"heads {heads}{kv} width {told['head_width']} certified" if heads else "no heads"]
    scaled = f" times {told['scale']:g}" if told["scale"] not in (None, 1.0) else ""
    neurons = f", {told['neurons']:,} neurons" if told["neurons"] else ", no neurons"
    said.append(f"mlp certified at {told['mlp']}{scaled}{neurons}" if told["mlp"] else f"no mlp{neurons}")
    said += _mixture_line(told)
    said += [f"not covered: {', '.join(told['uncovered'])}"] if told["uncovered"] else []
    return f"layer{'s' * (len(layers) > 1)} {spans}: {'; '.join(said)}"


def _mixture_line(told: Mapping[str, Any]) -> list[str]:
    """What is told of a mixture; its router is said too, since no component is it."""
    if not told["experts"]:
        return [f"experts not certified, router {told['router']}"] if told["router"] else []
    shared = " and what is shared" if told["shared"] else ""
    return [f"{told['experts']} experts{shared} certified, router {told['router'] or 'not known'} never ablated"]


def _look(subject: ModelSubject) -> dict[int, Certificate | str]:
    """By layer, the certificate, or what was seen instead."""
    tokens = made_up_tokens(subject)
    widths = (site.width for site in subject.sites if site.kind == "mlp")
    width = next(widths, 0) or _stream_width(subject)
    generator = torch.Generator().manual_seed(0)
    dtype = next((p.dtype for p in subject.module.parameters() if p.is_floating_point()), torch.float32)
    given, value = (torch.randn(*tokens.shape, width, generator=generator).to(subject.device, dtype) for _ in range(2))
    silent = {site: torch.zeros_like for site in subject.sites if site.kind in ("heads", "mlp")}
    speaking: dict[Site, Edit] = {s: (lambda x: value.to(x.dtype)) if s.kind == "mlp" else e for s, e in silent.items()}
    heads = subject.shape.heads
    blocks = [_Block(block, _mlp_named(subject, i), bool(heads[i])) for i, block in enumerate(subject.blocks)]
    try:
        rest, moved = (_run(subject, tokens, edits, blocks, given) for edits in (silent, speaking))
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        return dict.fromkeys(range(len(blocks)), f"its blocks do not run on a stream of random numbers ({error})")
    tolerance = CONTRACT_TOLERANCE if dtype in (torch.float32, torch.float64) else COARSE_CONTRACT
    has_mlp = {site.layer for site in subject.sites if site.kind == "mlp"}
    return {
        layer: _verdict(layer, block, rest[layer], moved[layer] if layer in has_mlp else None, value, tolerance)
        for layer, block in enumerate(blocks)
    }


def _mlp_named(subject: ModelSubject, layer: int) -> str:
    has = any((site.kind, site.layer) == ("mlp", layer) for site in subject.sites)
    return f"its MLP site (the {subject.mlp_module(layer)})" if has else "what MLP sites it has (none)"


def _stream_width(subject: ModelSubject) -> int:
    """d_model of a model without MLP sites, by what its heads' projection gives."""
    weights = subject.reading_weights(subject.sites[0])
    config: Any = getattr(subject.module, "config", None)
    return weights[0].shape[1] if weights else int(config.get_text_config().hidden_size)


class _Block:
    """A decoder block and its direct children that matter here."""

    def __init__(self, module: nn.Module, mlp: str, with_heads: bool) -> None:
        self.module, self.mlp = module, mlp
        self.norms = [child for child in module.children() if _is_norm(child)]
        found = {name: child for name, child in module.named_children() if any(m in name for m in MIXERS)}
        own = heads_mixer(module) if with_heads else None
        self.mixers = {name: child for name, child in found.items() if own is None or uncompiled(child) is not own}
        self.mixed = next((name for name, child in found.items() if name not in self.mixers), "")


@dataclass
class _Trace:
    """What went into a block and came out, and the same of its norms, all of float32."""

    given: Stream
    out: Stream = field(default_factory=lambda: torch.zeros(0))
    norms: list[tuple[Stream, Stream]] = field(default_factory=list)

    def ends(self) -> list[tuple[Stream, Stream]]:
        """Pairs of a stream and what it must have become by the block's own additions."""
        last = next((i for i, (_, after) in enumerate(self.norms) if _same(after, self.out)), None)
        if last is None:
            return [(self.given, self.out)]
        others = [pair for i, pair in enumerate(self.norms) if i != last]
        inside = [(self.given, before) for before, _ in others[-1:]]
        return [*inside, (others[-1][1] if others else self.given, self.norms[last][0])]


def _run(
    subject: ModelSubject, tokens: Tensor, edits: Mapping[Site, Edit], blocks: list[_Block], given: Stream
) -> list[_Trace]:
    traces = [_Trace(given.float()) for _ in blocks]
    with _watched(blocks, traces, given):
        subject.forward(tokens, edits, None)
    return traces


@contextmanager
def _watched(blocks: list[_Block], traces: list[_Trace], given: Stream) -> Iterator[None]:
    """Give every block the same stream, silence mixers, and note what comes of it."""
    handles: list[Any] = []
    try:
        for block, trace in zip(blocks, traces, strict=True):
            give = _giver(given)
            handles.append(block.module.register_forward_pre_hook(only_here(give), with_kwargs=True))
            handles.append(block.module.register_forward_hook(only_here(_noter(trace))))
            noter, silencer = only_here(_norm_noter(trace, given.shape)), only_here(_silencer)
            handles += [norm.register_forward_hook(noter) for norm in block.norms]
            handles += [mixer.register_forward_hook(silencer) for mixer in block.mixers.values()]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _giver(given: Stream) -> Any:
    return lambda _module, args, kwargs: changed_input(args, kwargs, lambda _: given.clone())


def _noter(trace: _Trace) -> Any:
    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        trace.out = _first(output).float().clone()

    return hook


def _norm_noter(trace: _Trace, shape: torch.Size) -> Any:
    def hook(_module: nn.Module, args: Any, output: Any) -> None:
        before, after = args[0], _first(output)
        if before.numel() == after.numel() == shape.numel():
            trace.norms.append((before.reshape(shape).float().clone(), after.reshape(shape).float().clone()))

    return hook


def _silencer(_module: nn.Module, _args: Any, output: Any) -> Any:
    return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)


def _verdict(
    layer: int, block: _Block, rest: _Trace, moved: _Trace | None, value: Stream, tolerance: float
) -> Certificate | str:
    for before, after in rest.ends():
        added = after - before
        spread = float((added - added.mean((0, 1))).abs().max())
        if not spread <= tolerance * max(1.0, float(added.abs().max())):
            return (
                f"with its heads and {block.mlp} at zero, the block "
                f"{type(block.module).__name__} adds {spread:.2g} that differs by position to a stream of unit size"
            )
    scale = None
    if moved is not None:
        by = (moved.ends()[-1][1] - rest.ends()[-1][1]).flatten()
        unit = value.float().flatten()
        scale = float(by @ unit / (unit @ unit))
        off = float((by - scale * unit).abs().max())
        if not off <= tolerance * max(1.0, abs(scale)) or abs(scale) < tolerance:
            return f"a value v of {block.mlp} moves the block by {scale:.2g} v, and {off:.2g} that is not in proportion"
    return Certificate(layer, scale, tuple(block.mixers), mixer=block.mixed)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.allclose(one, other, rtol=0, atol=1e-6))


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple | list) else output


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()
