"""Boosted trees on keep bits, and the exact polynomial of a tree ensemble. The only importer of lightgbm.

A leaf with value v, reached where every feature of its path P is on the path's side, is ``v Π_{i∈P} 1[side_i]``. In a
product basis ``φ = a + b k`` each factor is affine, ``1[kept] = -a/b + φ/b`` and ``1[ablated] = 1 + a/b - φ/b``, so the
leaf adds ``v Π_{i∈T} r_i Π_{i∈P∖T} c_i`` to every T ⊆ P. (Walsh: ``v 2^{-|P|} Π_{i∈T} ±1``; ProxySPEX, Butler et al.
2025; Gorji et al. 2024.) A feature met twice on a path counts once; a path that contradicts itself has no masks.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spex_mech.walsh.spectrum import Basis, Spectrum, subset_bits


@dataclass(frozen=True)
class Boosting:
    """Settings of one ensemble; `least_leaf` masks at least in every leaf."""

    trees: int = 300
    rate: float = 0.1
    depth: int = 5
    leaves: int = 31
    least_leaf: int = 5

    def train(self, keep: Bool[Tensor, "mask component"], values: Float[Tensor, " mask"], seed: int) -> "Ensemble":
        """Fit the trees to float64 values, one thread, deterministic in the seed."""
        import lightgbm

        settings = {
            "objective": "regression",
            "learning_rate": self.rate,
            "max_depth": self.depth,
            "num_leaves": self.leaves,
            "min_data_in_leaf": min(self.least_leaf, max(1, len(keep) // 20)),
            "min_sum_hessian_in_leaf": 1e-3,
            "min_data_in_bin": 1,
            "feature_pre_filter": False,
            "num_threads": 1,
            "deterministic": True,
            "force_row_wise": True,
            "seed": seed % 2**31,
            "verbosity": -1,
        }
        data = lightgbm.Dataset(
            keep.cpu().double().numpy(), values.cpu().double().numpy(), params=settings, free_raw_data=True
        )
        return Ensemble(lightgbm.train(settings, data, num_boost_round=self.trees), keep.shape[1])


@dataclass(frozen=True)
class Ensemble:
    """A trained LightGBM booster over n keep bits."""

    booster: Any
    n: int

    def predict(self, keep: Bool[Tensor, "mask component"]) -> Float[Tensor, " mask"]:
        """What the trees say of some masks, float64."""
        return torch.from_numpy(self.booster.predict(keep.cpu().double().numpy(), num_threads=1))

    def spectrum(self, basis: Basis = Basis()) -> Spectrum:
        """The ensemble as a polynomial, exactly. Cost: Σ over leaves of 2^|path|."""
        by_length: dict[int, list[tuple[list[int], list[bool], float]]] = {}
        for tree in self.booster.dump_model()["tree_info"]:
            for path, value in _leaves(tree["tree_structure"], {}):
                features = sorted(path)
                by_length.setdefault(len(path), []).append((features, [path[f] for f in features], value))
        parts = [_expand(leaves, basis) for _, leaves in sorted(by_length.items())]
        return _merge(self.n, parts, basis)


def _leaves(node: Mapping[str, Any], path: dict[int, bool]) -> Iterator[tuple[dict[int, bool], float]]:
    """(feature → kept?, value) of every leaf that some mask reaches."""
    if "split_feature" not in node:
        yield path, float(node["leaf_value"])
        return
    feature = int(node["split_feature"])
    for side, kept in (("left_child", False), ("right_child", True)):  # x ≤ ½ goes left: ablated
        if path.get(feature, kept) == kept:
            yield from _leaves(node[side], {**path, feature: kept})


def _expand(leaves: list[tuple[list[int], list[bool], float]], basis: Basis) -> tuple[Tensor, Tensor]:
    """Sets and coefficients of leaves whose paths have equal length; a set may come more than once."""
    offset, slope = basis.affine
    features = torch.tensor([leaf[0] for leaf in leaves], dtype=torch.long)
    kept = torch.tensor([leaf[1] for leaf in leaves], dtype=torch.bool).reshape(features.shape)
    value = torch.tensor([leaf[2] for leaf in leaves], dtype=torch.float64)
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
    width = max(members.shape[1] for members, _ in parts)
    members = torch.cat([torch.nn.functional.pad(m, (0, width - m.shape[1]), value=-1) for m, _ in parts])
    weight = torch.cat([w for _, w in parts])
    numbers = torch.randint(-(2**62), 2**62, (n + 1,), generator=torch.Generator().manual_seed(0))
    numbers[n] = 0
    key = numbers[members.remainder(n + 1)].sum(1)  # -1 → n, which counts 0
    unique, inverse = key.unique(return_inverse=True)
    total = torch.zeros(len(unique), dtype=torch.float64).index_add_(0, inverse, weight)
    first = torch.full((len(unique),), len(key)).scatter_reduce(0, inverse, torch.arange(len(key)), "amin")
    far = torch.iinfo(torch.long).max
    chosen = torch.where(members[first] < 0, far, members[first]).sort(1).values
    chosen = torch.where(chosen == far, -1, chosen)
    used = max(1, int((chosen >= 0).sum(1).max())) if width else 0
    return Spectrum(n, chosen[:, :used], total, basis)
