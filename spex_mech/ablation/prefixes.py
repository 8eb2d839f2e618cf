"""`Prefixes`: which masks of a batch agree on all layers so far, so that those layers run once for all of them.

A mask's bits, layer by layer, spell a word; the layers up to l do the same work for all masks whose words agree up to
l. Block l therefore runs on one row a distinct prefix, and rows are added at the entry of the next block.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from spex_mech.ablation.recipe import Recipe


@dataclass(frozen=True)
class Prefixes:
    """Rows of the touched layers: `masks[layer]` a mask that has each prefix, `growth[layer]` its parent row.

    `growth` is silent on the first touched layer, whose rows come from the one row of tokens, and wherever no row is
    added. ``last[mask]`` is the row of the last touched layer that belongs to a mask.
    """

    masks: Mapping[int, Int[Tensor, " row"]]
    growth: Mapping[int, Int[Tensor, " row"]]
    last: Int[Tensor, " mask"]

    @property
    def order(self) -> Int[Tensor, " mask"]:
        """The masks sorted so that those which share the most layers are neighbours."""
        return self.last.argsort(stable=True)

    def sorted(self) -> "Prefixes":
        """The same of the masks in `order`."""
        place = torch.empty_like(self.last)
        place[self.order] = torch.arange(len(self.last))
        masks = {layer: place[rows] for layer, rows in self.masks.items()}
        return Prefixes(masks, self.growth, self.last[self.order])

    @property
    def share(self) -> float:
        """Rows over masks, averaged over the touched layers: 1 where nothing is shared."""
        return sum(len(rows) for rows in self.masks.values()) / (len(self.masks) * len(self.last))


def find_prefixes(recipe: Recipe, keep: Bool[Tensor, "mask component"]) -> Prefixes:
    """The distinct prefixes of some masks, layer by layer, in lexicographic order. Bits are compared, not hashes.

    >>> from spex_mech.components import ComponentSet, ModelShape
    >>> from spex_mech.ablation.recipe import compile_recipe
    >>> from spex_mech.ablation.subject import Site
    >>> shape, names = ModelShape("m", (1, 1), (1, 1), (False,) * 2, (0, 0), 9), ComponentSet.of(["a0.h0", "a1.h0"])
    >>> recipe = compile_recipe(names, (Site(0, "heads", 1, 4), Site(1, "heads", 1, 4)), shape)
    >>> found = find_prefixes(recipe, torch.tensor([[True, True], [False, True], [True, False]]))
    >>> [len(rows) for rows in found.masks.values()], found.growth[1].tolist(), found.last.tolist()
    ([2, 3], [0, 1, 1], [2, 0, 1])
    """
    keep = keep.cpu()
    first, row = np.zeros(1, dtype=np.int64), np.zeros(len(keep), dtype=np.int64)
    masks, growth = dict[int, Tensor](), dict[int, Tensor]()
    for layer, bits in _bits_by_layer(recipe).items():
        before, parent = len(first), row
        if before < len(keep):
            first, row = _distinct(parent, keep[:, bits].numpy())
        if masks and len(first) > before:
            growth[layer] = torch.from_numpy(parent[first])
        masks[layer] = torch.from_numpy(first)
    return Prefixes(masks, growth, torch.from_numpy(row))


def _bits_by_layer(recipe: Recipe) -> dict[int, list[int]]:
    """The components that act in each touched layer, layers in order."""
    found: dict[int, set[int]] = {}
    for site, tables in recipe.rulers.items():
        for table in tables.values():
            found.setdefault(site.layer, set()).update(table.unique().tolist())
    return {layer: sorted(found[layer] - {recipe.n}) for layer in sorted(found)}


def _distinct(parent: np.ndarray, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first mask of each distinct (parent, bits), in order, and which of them each mask has."""
    head = parent.astype(">u4").view(np.uint8).reshape(len(parent), 4)
    words = np.ascontiguousarray(np.hstack([head, np.packbits(bits, axis=1)]))
    _, first, row = np.unique(words.view(f"V{words.shape[1]}")[:, 0], return_index=True, return_inverse=True)
    return first, row
