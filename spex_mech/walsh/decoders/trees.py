"""Boosted trees on keep bits, and the exact polynomial of a tree ensemble. The only importer of lightgbm.

A leaf with value v, reached where every feature of its path P is on the path's side, is ``v Π_{i∈P} 1[side_i]``. In a
product basis ``φ = a + b k`` each factor is affine, ``1[kept] = -a/b + φ/b`` and ``1[ablated] = 1 + a/b - φ/b``, so the
leaf adds ``v Π_{i∈T} r_i Π_{i∈P∖T} c_i`` to every T ⊆ P. (Walsh: ``v 2^{-|P|} Π_{i∈T} ±1``; ProxySPEX, Butler et al.
2025; Gorji et al. 2024.) A feature met twice on a path counts once; a path that contradicts itself has no masks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spex_mech.progress import undisturbed
from spex_mech.walsh.decoders.screening import strongest_components
from spex_mech.walsh.set_rows import left_align, stack_rows, subset_bits, trimmed
from spex_mech.walsh.spectrum import Basis, Spectrum


@dataclass(frozen=True)
class Boosting:
    """Settings of one ensemble.

    Attributes:
        least_leaf: masks in every leaf at least, unless `most_share` of all masks are fewer.
        most_components: of more, only those that explain most, alone or in a pair, are shown to the trees, whose time
            grows with them.
    """

    trees: int = 300
    rate: float = 0.1
    depth: int = 5
    leaves: int = 31
    least_leaf: int = 5
    most_share: float = 0.05
    most_components: int = 512

    def train(self, keep: Bool[Tensor, "mask component"], values: Float[Tensor, " mask"], seed: int) -> "Ensemble":
        """Fit the trees to float64 values, one thread, deterministic in the seed."""
        with undisturbed():
            import lightgbm

        settings = {
            "objective": "regression",
            "learning_rate": self.rate,
            "max_depth": self.depth,
            "num_leaves": self.leaves,
            "min_data_in_leaf": min(self.least_leaf, max(1, int(self.most_share * len(keep)))),
            "min_sum_hessian_in_leaf": 1e-3,
            "min_data_in_bin": 1,
            "feature_pre_filter": False,
            "num_threads": 1,
            "deterministic": True,
            "force_row_wise": True,
            "seed": seed % 2**31,
            "verbosity": -1,
        }
        shown = strongest_components(keep, values, self.most_components)
        given = keep[:, shown].cpu().double().numpy()
        data = lightgbm.Dataset(given, values.cpu().double().numpy(), params=settings, free_raw_data=True)
        return Ensemble(lightgbm.train(settings, data, num_boost_round=self.trees), keep.shape[1], shown.cpu())


@dataclass(frozen=True)
class Ensemble:
    """A trained LightGBM booster over some of n keep bits."""

    booster: Any
    n: int
    shown: Int[Tensor, " feature"]

    def predict(self, keep: Bool[Tensor, "mask component"]) -> Float[Tensor, " mask"]:
        """What the trees say of some masks, float64."""
        return torch.from_numpy(self.booster.predict(keep.cpu()[:, self.shown].double().numpy(), num_threads=1))

    def spectrum(self, basis: Basis = Basis()) -> Spectrum:
        """The ensemble as a polynomial, exactly. Cost: Σ over leaves of 2^|path|."""
        nodes = _Nodes.parse(self.booster.model_to_string(num_iteration=-1))
        leaves = _leaves(replace(nodes, feature=self.shown[nodes.feature]))
        return _merge(self.n, [_expand(*part, basis) for part in leaves], basis)


@dataclass(frozen=True, eq=False)
class _Nodes:
    """The inner nodes of all trees, and their leaves: a child c ≥ 0 is a node, c < 0 is leaf -1 - c."""

    feature: Int[Tensor, " node"]
    children: Int[Tensor, "node 2"]
    value: Float[Tensor, " leaf"]
    roots: Int[Tensor, " tree"]

    @classmethod
    def parse(cls, text: str) -> "_Nodes":
        """From LightGBM's text format, a third of the price of its JSON."""
        feature, left, right, value, roots = list[int](), list[int](), list[int](), list[float](), list[int]()
        inner, leaves = 0, 0  # before this tree
        for line in text[: text.index("end of trees")].splitlines():
            name, _, numbers = line.partition("=")
            if name == "num_leaves":
                inner, leaves = len(feature), len(value)
                roots.append(inner if int(numbers) > 1 else -1 - leaves)
            elif name == "split_feature":
                feature += map(int, numbers.split())
            elif name in ("left_child", "right_child"):
                side = left if name == "left_child" else right
                side += [c + inner if c >= 0 else c - leaves for c in map(int, numbers.split())]
            elif name == "leaf_value":
                value += map(float, numbers.split())
        children = torch.tensor([left, right], dtype=torch.long).T.reshape(-1, 2)
        return cls(
            torch.tensor(feature, dtype=torch.long),
            children,
            torch.tensor(value, dtype=torch.float64),
            torch.tensor(roots),
        )


def _leaves(nodes: _Nodes) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(features [leaf, length], kept? [leaf, length], value [leaf]) of the leaves some mask reaches, by path length.

    All trees are walked down together, a level at a time; a mask x ≤ ½, ablated, goes left.
    """
    at = nodes.roots
    path = torch.full((len(at), 0), -1, dtype=torch.long)
    side = torch.zeros((len(at), 0), dtype=torch.bool)
    while len(at):
        yield from _by_length(path[at < 0], side[at < 0], nodes.value[-1 - at[at < 0]])
        at, path, side = at[at >= 0], path[at >= 0], side[at >= 0]
        feature = nodes.feature[at]
        before = path == feature[:, None]
        was = (before & side).any(1)
        down = []
        for kept in (False, True):
            go = ~before.any(1) | (was == kept)
            fresh = torch.where(before.any(1), -1, feature)[go]
            sides = torch.cat([side[go], torch.full((len(fresh), 1), kept)], 1)
            down.append((nodes.children[at[go], int(kept)], torch.cat([path[go], fresh[:, None]], 1), sides))
        at, path, side = (torch.cat(parts) for parts in zip(*down, strict=True))


def _by_length(path: Tensor, side: Tensor, value: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Leaves of equal numbers of features, the features ascending and without gaps."""
    length = (path >= 0).sum(1)
    order = torch.where(path < 0, torch.iinfo(torch.long).max, path).argsort(1)
    path, side = path.gather(1, order), side.gather(1, order)
    for number in length.unique().tolist():
        rows = length == number
        yield path[rows, :number], side[rows, :number], value[rows]


def _expand(features: Tensor, kept: Tensor, value: Tensor, basis: Basis) -> tuple[Tensor, Tensor]:
    """Sets and coefficients of leaves whose paths have equal length; a set may come more than once."""
    offset, slope = basis.affine
    side = kept.double()
    constant = (1 - side) + (1 - 2 * side) * offset / slope
    linear = (2 * side - 1) / slope
    subset = subset_bits(features.shape[1])
    weight = torch.where(subset, linear[:, None], constant[:, None]).prod(2) * value[:, None]
    members = torch.where(subset, features[:, None], -1)
    return members.flatten(0, 1), weight.flatten()


def _merge(n: int, parts: list[tuple[Tensor, Tensor]], basis: Basis) -> Spectrum:
    """Equal sets added up. Sets are told apart by a 64-bit sum of one random number a member, which is what makes a
    million of them cheap; that any two of a million different sets collide has probability below 10^-6.
    """
    members = stack_rows([m for m, _ in parts])
    weight = torch.cat([w for _, w in parts])
    numbers = torch.randint(-(2**62), 2**62, (n + 1,), generator=torch.Generator().manual_seed(0))
    numbers[n] = 0
    key = numbers[members.remainder(n + 1)].sum(1)  # -1 → n, which counts 0
    unique, inverse = key.unique(return_inverse=True)
    total = torch.zeros(len(unique), dtype=torch.float64).index_add_(0, inverse, weight)
    first = torch.full((len(unique),), len(key)).scatter_reduce(0, inverse, torch.arange(len(key)), "amin")
    return Spectrum(n, trimmed(left_align(members[first])), total, basis)
