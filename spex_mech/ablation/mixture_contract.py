"""What experts add, certified at binding by behaviour; a layer in which that fails has no experts to ablate, and why.

All blocks are given one random stream. What the experts of a layer add, one by one, must sum to what they give
together; with their module giving v instead, the MLP must give c·v more, with one scalar c. What it gives besides is
shared. At last an expert is ablated, and its down projection set to zero instead, without a hook.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from spex_mech.ablation.backends.base import ModelSubject
from spex_mech.ablation.contract import COARSE_CONTRACT, CONTRACT_TOLERANCE
from spex_mech.ablation.identity import made_up_tokens
from spex_mech.ablation.leave_out import changed_input
from spex_mech.ablation.mixtures import (
    Contributions,
    ExpertsForm,
    SharedForm,
    SumForm,
    contributions,
    experts_of,
    router_of,
    summed_experts,
)  # fmt: skip
from spex_mech.ablation.sites import Place
from spex_mech.ablation.subject import Edit, Site
from spex_mech.ablation.turns import only_here

_DOWN = ("down_proj", "w2", "output_linear", "down")
_ORACLE = 1e-4  # relative, float32


@dataclass
class _Mixture:
    """The experts of a layer, and what was seen of them in two passes: as they are, and with `value` for their sum."""

    layer: int
    mlp: nn.Module
    experts: nn.Module
    count: int
    value: Tensor = field(default_factory=lambda: torch.zeros(0))
    parts: Contributions = field(default_factory=lambda: torch.zeros(0))
    sums: Tensor = field(default_factory=lambda: torch.zeros(0))
    out: list[Tensor] = field(default_factory=list)
    failed: str = ""


def certify_mixtures(subject: ModelSubject) -> None:
    """Add the sites of experts and of what is shared, of every layer in which they are certified.

    Costs two tiny forward passes, and three for the weights of the first and the last mixture. Layers that fail are
    named with the reason in ``shape.absent``.
    """
    there = [_Mixture(layer, mlp, *found) for layer, mlp in subject.mlps.items() if (found := experts_of(mlp))]
    there = [mixture for mixture in there if subject.mlp_place(mixture.layer) is not None]
    if not there:
        return
    tokens, generator = made_up_tokens(subject), torch.Generator().manual_seed(0)
    width = next(site.width for site in subject.sites if site.kind == "mlp")
    dtype = next((p.dtype for p in subject.module.parameters() if p.is_floating_point()), torch.float32)
    given = torch.randn(*tokens.shape, width, generator=generator).to(subject.device, dtype)
    for replaced in (False, True):
        with _watched(subject, there, given, replaced):
            subject.forward(tokens, {}, None)
    exact = dtype in (torch.float32, torch.float64)
    tolerance = CONTRACT_TOLERANCE if exact else COARSE_CONTRACT
    _extend(subject, there, [place for mixture in there for place in _places(subject, mixture, tolerance)])
    _refuse_unlike_weights(subject, there, tokens, _ORACLE if exact else COARSE_CONTRACT)
    _certify(subject, there)


def _extend(subject: ModelSubject, there: list[_Mixture], places: list[Place]) -> None:
    layers = range(subject.shape.n_layers)
    parts = {(place.site.kind, place.site.layer): place.site.parts for place in places}
    experts = tuple(parts.get(("experts", layer), 0) for layer in layers)
    shared = tuple(("shared", layer) in parts for layer in layers)
    failed = [f"layer {m.layer}: {m.failed}" for m in there if m.failed]
    told = f"Its experts cannot be told apart in {'; '.join(failed[:3])}{' …' if failed[3:] else ''}." if failed else ""
    subject.extend(places, experts=experts, shared=shared, absent=told)


def _certify(subject: ModelSubject, there: list[_Mixture]) -> None:
    routers = {m.layer: router_of(m.mlp) for m in there}
    subject.certificates = tuple(
        replace(
            c, experts=subject.shape.experts[c.layer], shared=subject.shape.shared[c.layer],
            router=routers.get(c.layer, ""),
        )
        for c in subject.certificates
    )  # fmt: skip


@contextmanager
def _watched(subject: ModelSubject, there: list[_Mixture], given: Tensor, replaced: bool) -> Iterator[None]:
    handles: list[Any] = []
    give = only_here(lambda _module, args, kwargs: changed_input(args, kwargs, lambda _: given.clone()))
    try:
        handles += [block.register_forward_pre_hook(give, with_kwargs=True) for block in subject.blocks]
        for mixture in there:
            hook = only_here(_replacer(mixture) if replaced else _noter(mixture))
            handles.append(mixture.experts.register_forward_hook(hook, with_kwargs=True))
            handles.append(mixture.mlp.register_forward_hook(only_here(_out_noter(mixture))))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _noter(mixture: _Mixture) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            mixture.failed = f"its experts ({type(module).__name__}) give a {type(output).__name__}, not a tensor"
            return
        mixture.sums = output.clone()
        try:
            mixture.parts = contributions(module, args, kwargs, output, mixture.count).clone()
        except (RuntimeError, ValueError, IndexError, TypeError, StopIteration) as error:
            mixture.failed = f"{error}, in a way that is not known".splitlines()[0]

    return hook


def _replacer(mixture: _Mixture) -> Any:
    def hook(_module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> Any:
        if mixture.failed:
            return None
        mixture.value = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
        return mixture.value

    return hook


def _out_noter(mixture: _Mixture) -> Any:
    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        mixture.out.append((output[0] if isinstance(output, tuple) else output).clone())

    return hook


def _places(subject: ModelSubject, mixture: _Mixture, tolerance: float) -> list[Place]:
    """The sites of one layer; none, and why, where what was seen is not what must be."""
    if mixture.failed or not mixture.parts.numel() or len(mixture.out) < 2:
        mixture.failed = mixture.failed or "its experts did not run"
        return []
    before, after = (out.reshape(-1, out.shape[-1]).float() for out in mixture.out)
    routed, value = (summed_experts(x.float(), before) for x in (mixture.sums, mixture.value))
    size = max(1.0, float(routed.abs().max()))
    gap = float((mixture.parts.float().sum(1) - routed).abs().max())
    step, by = (value - routed).flatten(), (after - before).flatten()
    scale = float(by @ step / (step @ step))
    off = float((by - scale * step).abs().max())
    if not gap <= tolerance * size:
        mixture.failed = f"what its experts add one by one and together differ by {gap:.2g}"
    elif not off <= tolerance * max(size, abs(scale) * float(value.abs().max())) or abs(scale) < tolerance:
        mixture.failed = f"another sum v of its experts moves the MLP by {scale:.2g} v and {off:.2g} besides"
    if mixture.failed:
        return []
    scale = round(scale) if abs(scale - round(scale)) < tolerance else scale
    width = before.shape[1]
    form = ExpertsForm(mixture.mlp, mixture.experts, mixture.count, scale)
    found = [Place(Site(mixture.layer, "experts", mixture.count, width), mixture.mlp, "output", form)]
    site, place = Site(mixture.layer, "shared", 1, width), subject.mlp_place(mixture.layer)
    rest = float((before - scale * routed).abs().max())
    if place is not None and isinstance(place.form, SumForm):
        other = place.form.second if place.form.first is mixture.mlp else place.form.first
        found = [Place(site, other, "output"), *found]
    elif rest > tolerance * size:
        found = [Place(site, mixture.mlp, "output", SharedForm(mixture.mlp, mixture.experts, scale)), *found]
    return found


def _refuse_unlike_weights(subject: ModelSubject, there: list[_Mixture], tokens: Tensor, tolerance: float) -> None:
    """Take experts out again where one ablated is not what its weights at zero give, or the identity not nothing."""
    certified = [mixture for mixture in there if not mixture.failed]
    clean = subject.forward(tokens, {}, None)
    scale = float(clean.float().abs().max()) or 1.0
    for mixture in {m.layer: m for m in certified[:1] + certified[-1:]}.values():
        sites = [s for s in subject.sites if s.layer == mixture.layer and s.kind in ("experts", "shared")]
        same: Edit = lambda x: x  # noqa: E731
        if not torch.equal(subject.forward(tokens, dict.fromkeys(sites, same), None), clean):
            mixture.failed = "the identity edit of its experts moved the logits"
        weights = down_weights(mixture.experts, mixture.count)
        if weights:
            expert = int(mixture.parts.abs().sum((0, 2)).argmax())
            site = next(s for s in sites if s.kind == "experts")
            by_edit = subject.forward(tokens, {site: _without(expert, site)}, None)
            gap = float((by_edit - _at_zero(subject, weights, expert, tokens)).float().abs().max()) / scale
            if not gap <= tolerance:
                mixture.failed = f"expert {expert} ablated and its weights at zero differ by {gap:.2g} of the logits"
    if any(mixture.failed for mixture in certified):
        for mixture in certified:
            mixture.failed = mixture.failed or "other layers fail"
        subject.drop("experts", "shared")
        _extend(subject, there, [])


def _without(expert: int, site: Site) -> Edit:
    def edit(x: Tensor) -> Tensor:
        x = x.clone()
        x[..., expert * site.width : (expert + 1) * site.width] = 0
        return x

    return edit


def down_weights(experts: nn.Module, count: int) -> list[nn.Parameter]:
    """The down projections of all experts, in one tensor, and their biases, by names in use; or empty."""
    named = [(name, p) for name, p in experts.named_parameters() if p.is_floating_point() and len(p) == count]
    return [p for name, p in named if any(name.split(".")[0].startswith(down) for down in _DOWN)]


def _at_zero(subject: ModelSubject, weights: list[nn.Parameter], expert: int, tokens: Tensor) -> Tensor:
    made_there = weights[0].is_inference()
    with torch.inference_mode() if made_there else torch.no_grad():
        saved = [p[expert].clone() for p in weights]
        try:
            for p in weights:
                p[expert].zero_()
            return subject.forward(tokens, {}, None)
        finally:
            for p, before in zip(weights, saved, strict=True):
                p[expert].copy_(before)
