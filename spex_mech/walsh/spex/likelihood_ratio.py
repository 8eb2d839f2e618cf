"""What speaks for a set: a likelihood ratio over its bins in all groups and outputs, against the price of naming it.

A set of k among n players has to outweigh ``log C(n, k) + log t + log 1/ε`` nats, so that among all sets that
could have been proposed ``ε`` false ones are accepted on average.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spex_mech.walsh.spex.bins import Bins, distinct

_ELEMENTS = 1 << 23  # bin values gathered, or signs remembered, at a time: 64 MB


@dataclass(frozen=True, eq=False)
class BinPool:
    """Candidates, and what is known of them whatever has been found so far.

    Attributes:
        prices: nats each has to outweigh.
        spelled: their signs and bins, where remembering them is affordable.
    """

    members: Int[Tensor, "set slot"]
    prices: Float[Tensor, " set"]
    spelled: tuple[Float[Tensor, "set group delay"], Int[Tensor, "set group"]] | None

    @classmethod
    def of(
        cls, bins: Bins, proposed: Int[Tensor, "set slot"], known: Int[Tensor, "set slot"], false_sets: float
    ) -> "BinPool":
        """The different sets among those proposed, without the known ones."""
        members = distinct(bins, proposed, bins.names(known))
        small = len(members) * bins.rows <= _ELEMENTS
        return cls(members, price_of(bins, members, false_sets), bins.spell(members) if small else None)

    def __len__(self) -> int:
        return len(self.members)

    def take(self, rows: Bool[Tensor, " set"]) -> "BinPool":
        """Some of them."""
        spelled = None if self.spelled is None else (self.spelled[0][rows], self.spelled[1][rows])
        return BinPool(self.members[rows], self.prices[rows], spelled)

    def spell(self, bins: Bins, rows: slice) -> tuple[Float[Tensor, "set group delay"], Int[Tensor, "set group"]]:
        """`Bins.spell` of some of them."""
        if self.spelled is None:
            return bins.spell(self.members[rows])
        return self.spelled[0][rows], self.spelled[1][rows]


def price_of(bins: Bins, members: Int[Tensor, "set slot"], false_sets: float) -> Float[Tensor, " set"]:
    """``log C(n, k) + log t + log 1/ε``."""
    n, degree = bins.code.n, bins.code.degree
    log_count = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(degree + 1)]
    prices = torch.tensor(log_count, dtype=torch.float64, device=members.device)
    return prices[(members >= 0).sum(1)] + math.log(degree / false_sets)


def evidence(
    bins: Bins,
    residual: Float[Tensor, "bin delay output"],
    fitted: int,
    noise: Float[Tensor, " output"],
    pool: BinPool,
) -> tuple[Float[Tensor, " set"], Int[Tensor, "set group"]]:
    """Log-likelihood ratio of each candidate being in its bins against not, in nats, and its bins.

    In each group the set's bin holds energy E over R delays; with a common amplitude a (the groups' own, weighted by
    the inverse variance of the rest of their bins) it holds E'. The ratio is ``Σ_c R/2 log E / E'``, the variances
    being unknown and a bin's own, since what else is in a bin is its noise; R is what `fitted` sets leave of it.
    Over several outputs the ratios add up, and the price with them (Laurent and Massart's bound for χ²); one output
    alone may pay, too.
    """
    delays, outputs = bins.delays, bins.outputs
    energy = residual.square().sum(1)
    gains = torch.zeros(len(pool), outputs, dtype=torch.float64, device=residual.device)
    wheres = torch.zeros(len(pool), bins.code.groups, dtype=torch.long, device=residual.device)
    least = delays * noise * 0.1
    free = (delays - 1) * max(0.0, 1 - fitted / (bins.masks))
    step = max(1, _ELEMENTS // (bins.rows * outputs))
    for start in range(0, len(pool), step):
        rows = slice(start, start + step)
        signs, where = pool.spell(bins, rows)
        own = bins.correlate(signs, where, residual)
        total = energy[where]
        weight = 1 / (total - own.square() / delays).clamp(min=least)
        amplitude = (own * weight).sum(1, keepdim=True) / (delays * weight.sum(1, keepdim=True))
        after = total - 2 * amplitude * own + delays * amplitude.square()
        gains[rows] = (free / 2 * (total.clamp(min=least) / after.clamp(min=least)).log()).sum(1)
        wheres[rows] = where
    if outputs == 1:
        return gains[:, 0], wheres
    pooled = gains.sum(1) - outputs / 2 - (outputs * pool.prices).sqrt()
    return torch.maximum(pooled, gains.amax(1) - math.log(outputs)), wheres
