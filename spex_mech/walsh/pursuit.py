"""Hierarchical matching pursuit: the sets that a function needs, found a batch at a time by matrix products.

A round correlates what is left over with every component and every pair (one product ``Zᵀ diag(r) Z``), and with every
set in hand extended by a component; takes the best of those that pay; solves for all coefficients at once. Beyond pairs
only extensions of sets in hand are looked at: strong sets of real models mostly have strong subsets (Butler et al.
2025), and nothing has to be listed that way. Correlations are with columns of unit length, so that the rare products of
a biased basis are not taken for strong ones.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spex_mech.walsh.spectrum import Basis, monomials, pad_sets

Members = tuple[int, ...]
_BLOCK = 1 << 26  # correlations looked at at a time: 256 MB
_NORMS = 1 << 26  # norms of pairs that are kept from round to round
_FLOOR = 0.25  # of the largest gain: sets down to it are taken in one round
_AT_LEAST = 8  # sets that may be taken in a round, however few are in hand
_RIDGE = 1e-6


@dataclass(frozen=True)
class Pursuit:
    """When to stop.

    Attributes:
        most_sets: no more than this, nor than half the masks.
        degree: largest set.
        false_sets: about how many sets may be taken by chance from noise, for whoever called to take out again;
            infinite: as many sets as `most_sets` says.
        share: sets taken in one round, at most this share of those in hand.
    """

    most_sets: int = 400
    degree: int = 6
    false_sets: float = 5.0
    share: float = 0.25

    def find(
        self, keep: Bool[Tensor, "mask component"], values: Float[Tensor, " mask"], basis: Basis
    ) -> Int[Tensor, "set slot"]:
        """The sets, the empty one first, then in the order in which they were taken."""
        found = list[Members]([()])
        for found, _ in self.grow(keep, values, basis):  # noqa: B007
            pass
        return pad_sets(found)

    def grow(
        self, keep: Bool[Tensor, "mask component"], values: Float[Tensor, " mask"], basis: Basis
    ) -> Iterator[tuple[list[Members], Float[Tensor, " set"]]]:
        """The sets in hand and their coefficients after every round, for whoever wants to stop earlier."""
        offset, slope = basis.affine
        search = Search(offset + slope * keep.float(), self.degree)
        y, sets = values.double(), list[Members]([()])
        columns = torch.ones(len(keep), 1, dtype=torch.float64, device=keep.device)
        gram, moments = columns.T @ columns, columns.T @ y
        left, scale = y - y.mean(), float(y.var(correction=0))
        most = 1 + min(self.most_sets, len(keep) // 2)
        while len(sets) < most and float(left.square().mean()) > 1e-12 * scale:
            fresh = self._chosen(search, left.float(), sets, columns, most - len(sets))
            if not fresh:
                break
            sets += fresh
            added = monomials(keep, pad_sets(fresh).to(keep.device), basis)
            gram = _bordered(gram, columns.T @ added, added.T @ added)
            columns, moments = torch.cat([columns, added], 1), torch.cat([moments, added.T @ y])
            coefficients = _solve(gram, moments, len(y))
            left = y - columns @ coefficients
            yield sets, coefficients

    def _chosen(self, search: "Search", left: Tensor, sets: list[Members], columns: Tensor, room: int) -> list[Members]:
        """The sets of largest gain among those that are worth their price, best first."""
        count = min(room, max(_AT_LEAST, int(self.share * len(sets))))
        gains = search.gains(left, sets, columns, 4 * count + 16)
        freedom = max(1, len(left) - len(sets)) / 2
        worth = {s: -freedom * math.log1p(-min(gain, 1 - 1e-12)) for s, gain in gains.items()}
        paying = [s for s in worth if worth[s] > self._price(len(s), search.n, len(sets))]
        best = sorted(paying, key=lambda s: (-gains[s], s))[:count]
        return [s for s in best if gains[s] >= _FLOOR * gains[best[0]]]

    def _price(self, order: int, n: int, in_hand: int) -> float:
        """Log-likelihood that the best of so many sets reaches by chance: log of their number over those allowed."""
        if math.isinf(self.false_sets):
            return 0.0
        return math.log(math.comb(n, order) if order <= 2 else n * in_hand) - math.log(self.false_sets)


class Search:
    """The share of what is left that each set in view explains by itself."""

    def __init__(self, z: Float[Tensor, "mask component"], degree: int) -> None:
        self.z, self.squared, self.degree, self.n = z, z.square(), degree, z.shape[1]
        self.rows = max(1, _BLOCK // self.n)
        self.norms: dict[int, Tensor] = {}

    def gains(
        self, left: Float[Tensor, " mask"], sets: list[Members], columns: Float[Tensor, "mask set"], wanted: int
    ) -> dict[Members, float]:
        """Of the best `wanted` sets of every kind that are not in hand."""
        known, found = set(sets), dict[Members, float]()
        energy = float(left.square().sum())
        for name, correlation, norm in self._views(left, sets, columns):
            gain = (correlation.square() / norm.clamp(min=1e-9)).flatten()
            top = gain.topk(min(wanted + len(known), len(gain)))
            for value, place in zip(top.values.tolist(), top.indices.tolist(), strict=True):
                members = name(place)
                if members is not None and members not in known:
                    found[members] = max(value / energy, found.get(members, 0.0))
        return found

    def _views(
        self, left: Tensor, sets: list[Members], columns: Tensor
    ) -> Iterator[tuple[Callable[[int], Members | None], Tensor, Tensor]]:
        """Kinds of sets: what a place in the correlations is called, the correlations, the columns' squared norms."""
        yield lambda place: (place,), self.z.T @ left, self.squared.sum(0)
        if self.degree > 1:
            for start in range(0, self.n, self.rows):
                yield self._pairs(start, left)
        larger = [row for row, s in enumerate(sets) if 2 <= len(s) < self.degree]
        if larger:
            base = columns[:, larger].float()
            name = _extension([sets[row] for row in larger], self.n)
            yield name, (base * left[:, None]).T @ self.z, base.square().T @ self.squared

    def _pairs(self, start: int, left: Tensor) -> tuple[Callable[[int], Members | None], Tensor, Tensor]:
        """The pairs whose first component is in one block."""
        block = slice(start, start + self.rows)
        norm = self.norms.get(start)
        if norm is None:
            norm = self.squared[:, block].T @ self.squared
            if self.n**2 <= _NORMS:
                self.norms[start] = norm
        correlation = (self.z[:, block] * left[:, None]).T @ self.z
        first = torch.arange(start, start + len(correlation), device=left.device)[:, None]
        correlation.masked_fill_(torch.arange(self.n, device=left.device) <= first, 0)
        return _pair(start, self.n), correlation, norm


def _pair(start: int, n: int) -> Callable[[int], Members | None]:
    def name(place: int) -> Members | None:
        i, j = start + place // n, place % n
        return (i, j) if i < j else None

    return name


def _extension(bases: list[Members], n: int) -> Callable[[int], Members | None]:
    def name(place: int) -> Members | None:
        base, i = bases[place // n], place % n
        return None if i in base else tuple(sorted((*base, i)))

    return name


def _bordered(corner: Tensor, side: Tensor, added: Tensor) -> Float[Tensor, "set set"]:
    """A Gram matrix with the columns that came to it."""
    return torch.cat([torch.cat([corner, side], 1), torch.cat([side.T, added], 1)])


def _solve(gram: Float[Tensor, "set set"], moments: Float[Tensor, " set"], masks: int) -> Float[Tensor, " set"]:
    """Least squares with a ridge that only rounding notices."""
    ridge = _RIDGE * masks * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.cholesky_solve(moments[:, None], torch.linalg.cholesky(gram + ridge))[:, 0]
