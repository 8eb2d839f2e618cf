"""Hierarchical matching pursuit: the sets that a function needs, found a batch at a time by matrix products.

A round correlates what is left over with every component and every pair, and with every set in hand extended by a
component (`screening.SetSearch`); takes the best of those that pay; solves for all coefficients at once. Only when none
of these pays is every triple looked at, and every quadruple, where that can be afforded.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spex_mech.walsh.decoders.screening import NORMAL, Members, SetSearch
from spex_mech.walsh.set_rows import pad_sets
from spex_mech.walsh.spectrum import Basis, monomials

_FLOOR = 0.25  # of the largest gain: sets down to it are taken in one round
_AT_LEAST = 8  # sets that may be taken in a round, however few are in hand
_FALSE_WIDE = 0.5  # sets that may be taken by chance where all of an order are looked at: nothing else speaks for them
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
        wide: the largest sets (at most 4) that are looked at without a subset in hand.
    """

    most_sets: int = 400
    degree: int = 6
    false_sets: float = 5.0
    share: float = 0.25
    wide: int = 4

    def find(
        self, keep: Bool[Tensor, "mask component"], values: Float[Tensor, " mask"], basis: Basis
    ) -> Int[Tensor, "set slot"]:
        """The sets, the empty one first, then in the order in which they were taken."""
        found = list[Members]([()])
        for found, _ in self.grow(keep, values, basis):  # noqa: B007
            pass
        return pad_sets(found)

    def grow(
        self,
        keep: Bool[Tensor, "mask component"],
        values: Float[Tensor, " mask"],
        basis: Basis,
        known: Sequence[Members] = (),
    ) -> Iterator[tuple[list[Members], Float[Tensor, " set"]]]:
        """The sets in hand and their coefficients after every round, for whoever wants to stop earlier; `known` ones
        are in hand from the first."""
        offset, slope = basis.affine
        search = SetSearch(offset + slope * keep.float(), self.degree)
        y, scale = values.double(), float(values.double().var(correction=0))
        most = 1 + min(self.most_sets, len(keep) // 2)
        sets = [(), *known][:most]
        columns = monomials(keep, pad_sets(sets).to(keep.device), basis)
        gram, moments = columns.T @ columns, columns.T @ y
        coefficients = _solve(gram, moments, len(y))
        left = y - columns @ coefficients
        if known:
            yield sets, coefficients
        while len(sets) < most and float(left.square().mean()) > 1e-12 * scale:
            fresh = self._chosen(search, left.float(), sets, columns, most - len(sets))
            fresh = fresh or self._chosen_wide(search, left.float(), sets, basis, most - len(sets))
            if not fresh:
                break
            sets += fresh
            added = monomials(keep, pad_sets(fresh).to(keep.device), basis)
            gram = _bordered(gram, columns.T @ added, added.T @ added)
            columns, moments = torch.cat([columns, added], 1), torch.cat([moments, added.T @ y])
            coefficients = _solve(gram, moments, len(y))
            left = y - columns @ coefficients
            yield sets, coefficients

    def _chosen(
        self, search: SetSearch, left: Tensor, sets: list[Members], columns: Tensor, room: int
    ) -> list[Members]:
        """The sets of largest gain among those that are worth their price, best first."""
        count = self._count(len(sets), room)
        gains = search.gains(left, sets, columns, 4 * count + 16)
        n, in_hand, allowed = search.n, len(sets), self.false_sets
        return self._paying(
            gains, left, in_hand, count, lambda order: (math.comb(n, order) if order <= 2 else n * in_hand) / allowed
        )

    def _chosen_wide(
        self, search: SetSearch, left: Tensor, sets: list[Members], basis: Basis, room: int
    ) -> list[Members]:
        """The same for triples, and if none pays for quadruples, whatever their subsets do."""
        count, allowed = self._count(len(sets), room), min(self.false_sets, _FALSE_WIDE)
        for order in range(3, 1 + min(self.wide, self.degree)):
            seen = search.seen(order)
            if seen and seen >= NORMAL * basis.kurtosis**order:
                gains = search.wide_gains(left[:seen], sets, order, 4 * count + 16)
                tried = math.comb(search.n, order) / allowed
                found = self._paying(gains, left[:seen], len(sets), count, lambda _, tried=tried: tried)
                if found:
                    return found
        return []

    def _count(self, in_hand: int, room: int) -> int:
        return min(room, max(_AT_LEAST, int(self.share * in_hand)))

    def _paying(
        self, gains: dict[Members, float], left: Tensor, in_hand: int, count: int, tried: Callable[[int], float]
    ) -> list[Members]:
        """Sets whose log-likelihood is more than the best of those tried reaches by chance: the log of their number
        over those allowed; the best ones."""
        freedom = max(1, len(left) - in_hand) / 2
        worth = {s: -freedom * math.log1p(-min(gain, 1 - 1e-12)) for s, gain in gains.items()}
        paying = [s for s in worth if worth[s] > math.log(max(tried(len(s)), 1.0))]
        best = sorted(paying, key=lambda s: (-gains[s], s))[:count]
        return [s for s in best if gains[s] >= _FLOOR * gains[best[0]]]


def _bordered(corner: Tensor, side: Tensor, added: Tensor) -> Float[Tensor, "set set"]:
    """A Gram matrix with the columns that came to it."""
    return torch.cat([torch.cat([corner, side], 1), torch.cat([side.T, added], 1)])


def _solve(gram: Float[Tensor, "set set"], moments: Float[Tensor, " set"], masks: int) -> Float[Tensor, " set"]:
    """Least squares with a ridge that only rounding notices."""
    ridge = _RIDGE * masks * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.cholesky_solve(moments[:, None], torch.linalg.cholesky(gram + ridge))[:, 0]
