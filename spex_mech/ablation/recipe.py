"""`Recipe`: components → which part of which site each keep bit rules. Compiled once, applied to every batch."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from spex_mech.ablation.subject import Site, SiteKind
from spex_mech.components import Component, ComponentSet, ModelShape
from spex_mech.errors import ComponentError

_SITE_OF: dict[str, SiteKind] = {
    "head": "heads", "kv": "heads", "attn": "heads", "mlp": "mlp", "neuron": "neurons",
    "expert": "experts", "shared": "shared", "segment": "inputs", "token": "inputs",
}  # fmt: skip
Rulers = Int[Tensor, "depth part"]  # which components rule a part; n stands for "none" and is always kept


@dataclass(frozen=True)
class Recipe:
    """For each touched site and position (None: all positions), the components that rule each part.

    A part is kept exactly where **all** components that rule it are kept.
    """

    n: int
    rulers: Mapping[Site, Mapping[int | None, Rulers]]

    @property
    def sites(self) -> tuple[Site, ...]:
        """The touched sites, in forward order."""
        return tuple(self.rulers)

    def keep_parts(self, site: Site, keep: Bool[Tensor, "row component"], length: int) -> Bool[Tensor, "row pos part"]:
        """Which parts of a site each row keeps; the position axis has length 1 where no position is told apart."""
        padded = torch.nn.functional.pad(keep, (0, 1), value=True)
        tables = {p: padded[:, table.to(keep.device)].all(1) for p, table in self.rulers[site].items()}
        everywhere = tables.pop(None, None)
        if not tables:
            assert everywhere is not None
            return everywhere[:, None]
        kept = torch.ones(len(keep), length, site.parts, dtype=torch.bool, device=keep.device)
        if everywhere is not None:
            kept &= everywhere[:, None]
        for position, table in tables.items():
            assert position is not None
            kept[:, position] &= table
        return kept


def compile_recipe(components: ComponentSet, sites: tuple[Site, ...], shape: ModelShape) -> Recipe:
    """The recipe of a component set; raises `ComponentError` if the model lacks one of them."""
    components.check(shape)
    by_place = {(site.kind, site.layer): site for site in sites}
    ruled: dict[Site, dict[int | None, dict[int, list[int]]]] = {}
    for bit, component in enumerate(components):
        for atom in component.atoms:
            there = _sites_of(atom, by_place, sites)
            if not there:
                raise ComponentError(f"{component.name!r} has no site in {shape.describe()}.")
            for site in there:
                parts = ruled.setdefault(site, {}).setdefault(atom.position, {})
                for part in _parts(atom, shape):
                    parts.setdefault(part, []).append(bit)
    n = len(components)
    tables = {
        site: {position: _table(parts, site.parts, n) for position, parts in ruled[site].items()}
        for site in sites
        if site in ruled
    }
    return Recipe(n, tables)


def _sites_of(atom: Component, by_place: Mapping[tuple[SiteKind, int], Site], sites: tuple[Site, ...]) -> list[Site]:
    """Where a component, or a part of it, is; an adapter is at several sites."""
    if atom.kind == "part":
        return [site for site in sites if site.kind == "own" and site.label == atom.label]
    if atom.kind == "adapter":
        found = [site for site in sites if site.kind == "adapters"]
        if atom.position is not None and any(site.label for site in found):
            raise ComponentError(
                f"{atom.name!r}: this adapter acts outside of the layers too, where positions are not told apart. "
                "Name it without a position, or layer by layer: adapter.0@p-1."
            )
        return found
    if atom.kind == "adapted":  # what is adapted outside of the layers is of the whole adapter only
        return [s for s in sites if s.kind == "adapters" and (s.layer, s.label) == (atom.layer, "")]
    site = by_place.get((_SITE_OF[atom.kind], atom.layer))
    return [] if site is None else [site]


def _parts(atom: Component, shape: ModelShape) -> range:
    if atom.kind in ("adapter", "adapted"):
        first = shape.adapters.index(atom.label) if atom.label else 0
        return range(first, first + 1 if atom.label else len(shape.adapters))
    heads = shape.heads[atom.layer]
    if atom.kind == "attn":
        return range(heads)
    if atom.kind == "kv":
        share = heads // shape.kv_heads[atom.layer]
        return range(atom.index * share, (atom.index + 1) * share)
    return range(atom.index, atom.index + 1)


def _table(parts: Mapping[int, list[int]], count: int, n: int) -> Rulers:
    depth = max(map(len, parts.values()))
    table = torch.full((depth, count), n)
    for part, bits in parts.items():
        table[: len(bits), part] = torch.tensor(bits)
    return table
