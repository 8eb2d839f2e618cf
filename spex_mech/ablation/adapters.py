"""Adapters (PEFT's) as components that are switched off, each for all layers or for one, row by row of a batch.

An ablated adapter does nothing, whatever else is replaced by: where a row lacks it, every layer gives what PEFT's own
code gives with that adapter not active. So effects of an adapter are fine-tuned against base, and sets of it with heads
say which heads it works through.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from spex_mech.ablation.backends.base import ModelSubject
from spex_mech.ablation.identity import made_up_tokens
from spex_mech.ablation.mixtures import on_first
from spex_mech.ablation.sites import Place
from spex_mech.ablation.subject import Edit, Site

_TOLERANCE = 1e-4  # of the largest logit, float32
_COARSE = 0.05


@dataclass(eq=False)
class AdaptersForm:
    """The site ``[row, pos, adapter]`` of ones, 0 where an adapter is switched off in `layers`."""

    layers: tuple[Any, ...]
    names: tuple[str, ...]

    def hang(self, edit: Edit, rows: Callable[[], int], guard: Callable[..., Any]) -> list[Any]:
        """See `sites.Form`."""

        def act(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            return on_first(output, lambda out: self._switched(layer, args, kwargs, out, edit, rows))

        return [layer.register_forward_hook(guard(act), with_kwargs=True) for layer in self.layers]

    def _switched(self, layer: Any, args: Any, kwargs: Any, out: Tensor, edit: Edit, rows: Callable[[], int]) -> Tensor:
        flat = out.ndim == 2
        whole = out.unflatten(0, (rows(), -1)) if flat else out
        kept = edit(torch.ones(*whole.shape[:2], len(self.names), device=out.device)) > 0.5
        acting = [name for name in self.names if name in layer.active_adapters]
        here = kept[..., [self.names.index(name) for name in acting]]
        for pattern in here.reshape(-1, len(acting)).unique(dim=0):
            if bool(pattern.all()):
                continue
            names = [name for name, on in zip(acting, pattern.tolist(), strict=True) if on]
            other = with_adapters(layer, names)(*args, **kwargs)
            other = other[0] if isinstance(other, tuple) else other
            there = self._same(here, pattern)
            whole = torch.where(there, other.unflatten(0, (rows(), -1)) if flat else other, whole)
        return whole.flatten(0, 1) if flat else whole

    @staticmethod
    def _same(kept: Bool[Tensor, "row pos adapter"], pattern: Bool[Tensor, " adapter"]) -> Bool[Tensor, "row pos one"]:
        return (kept == pattern).all(-1, keepdim=True)


def with_adapters(layer: Any, names: list[str]) -> Callable[..., Any]:
    """What a layer computes with some of its adapters alone; the layer itself stays as it is, for other threads too."""
    other = copy.copy(layer)  # shares all weights
    other._active_adapter, other._disable_adapters = list(names), not names
    return partial(type(other).forward, other)  # the class's: libraries hide it behind one that is bound to the layer


def adapted_layers(module: nn.Module) -> dict[str, Any]:
    """The layers that PEFT has put adapters around, by path; not those inside of others."""
    return {name: part for name, part in module.named_modules() if _is_adapted(part)}


def _is_adapted(part: Any) -> bool:
    return type(getattr(part, "_disable_adapters", None)) is bool and hasattr(part, "_active_adapter")


def certify_adapters(subject: ModelSubject) -> None:
    """Add the sites of the adapters that act, where switching them off row by row is what PEFT does for all rows.

    Costs four tiny forward passes, of models with adapters alone. Where it fails, ``shape.absent`` says why.
    """
    layers = adapted_layers(subject.module)
    acting = {path: part for path, part in layers.items() if not part._disable_adapters}
    names = tuple(sorted({name for part in acting.values() for name in part.active_adapters if _holds(part, name)}))
    if not names:
        return
    merged = [path for path, part in acting.items() if getattr(part, "merged_adapters", None)]
    if merged:
        _tell(subject, f"Its adapters are merged into the weights of {merged[0]}: unmerge them to ablate them.")
        return
    strange = [name for name in names if not name.replace("_", "").replace("-", "").isalnum() or not name.isascii()]
    if strange:
        _tell(subject, f"Adapters are named by letters, digits, '_' and '-', not {strange}.")
        return
    blocks = {id(part): layer for layer, block in enumerate(subject.blocks) for part in block.modules()}
    by_layer = dict[int, list[Any]]()
    for part in acting.values():
        by_layer.setdefault(blocks.get(id(part), -1), []).append(part)
    places = [_place(layer, parts, names) for layer, parts in sorted(by_layer.items())]
    adapted = tuple(layer in by_layer for layer in range(subject.shape.n_layers))
    subject.extend(places, adapters=names, adapted=adapted)
    failed = _unlike(subject, list(acting.values()), [place.site for place in places])
    if failed:
        subject.drop("adapters")
        subject.extend([], adapters=(), adapted=())
        _tell(subject, failed)


def _holds(part: Any, name: str) -> bool:
    """Whether a layer has weights of that adapter."""
    kept = (getattr(part, kind, {}) for kind in getattr(part, "adapter_layer_names", ()))
    return any(name in weights for weights in kept) or name in getattr(part, "_adapters", ())


def _place(layer: int, parts: Iterable[Any], names: tuple[str, ...]) -> Place:
    """One layer's; what lies outside of the blocks has a label of its own, and the first layer's number."""
    parts = tuple(parts)
    site = Site(max(layer, 0), "adapters", len(names), 1, "" if layer >= 0 else "outside")
    return Place(site, parts[0], "output", AdaptersForm(parts, names))


def _tell(subject: ModelSubject, why: str) -> None:
    subject.extend([], absent=" ".join(filter(None, [subject.shape.absent, why])))


def _unlike(subject: ModelSubject, layers: list[Any], sites: list[Site]) -> str:
    """Why switching off by edits is not what PEFT's own switch does; empty where it is."""
    tokens = made_up_tokens(subject)
    clean = subject.forward(tokens, {}, None)
    if not torch.equal(subject.forward(tokens, dict.fromkeys(sites, lambda x: x), None), clean):
        return "The identity edit of its adapters moved the logits."
    off = subject.forward(tokens, dict.fromkeys(sites, torch.zeros_like), None)
    second: Edit = lambda x: torch.cat([torch.ones_like(x[:1]), torch.zeros_like(x[1:])])  # noqa: E731
    mixed = subject.forward(tokens, dict.fromkeys(sites, second), None)
    with _switched_off(layers):
        base = subject.forward(tokens, {}, None)
    scale = float(clean.float().abs().max()) or 1.0
    tolerance = _TOLERANCE if clean.dtype in (torch.float32, torch.float64) else _COARSE
    gap = float((off - base).float().abs().max()) / scale
    rows = float((mixed - torch.cat([clean[:1], base[1:]])).float().abs().max()) / scale
    if not max(gap, rows) <= tolerance:
        return f"Its adapters switched off by rows and by PEFT differ by {max(gap, rows):.2g} of the logits."
    return ""


@contextmanager
def _switched_off(layers: list[Any]) -> Iterator[None]:
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer._disable_adapters = was
