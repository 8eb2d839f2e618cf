"""Bins: coded responses after the transform, and what a code says any set contributes to them.

``U[g, p, o]`` for bin g = c 2^b + j of group c, delay p, output o. A set S with coefficients F(S) adds
``F(S)[o] (-1)^{<d_{c,p}, S>}`` to one bin of every group, and least squares over all coded masks is least squares over
all bins (the transform is orthogonal), where each set meets only those that share a bin with it.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spex_mech.walsh.masks import gf2
from spex_mech.walsh.masks.bch import Bch
from spex_mech.walsh.masks.coded import Code, spells_plainly
from spex_mech.walsh.masks.hashing import uniform_bits
from spex_mech.walsh.transform import walsh_hadamard

_RIDGE = 1e-9  # of the diagonal: two sets that no mask tells apart share a coefficient instead of failing the solve


@dataclass(frozen=True, eq=False)
class Bins:
    """Transformed responses beside the tables of their code, on one device.

    Attributes:
        values: U, float64, in the unit of the responses.
        words: for every player and group its packed delay bits, and in a last word its hash; zeros in a row behind the
            last player, which is the one that empty slots (-1) name.
        keys: a random number a player; the sum (exclusive or) over a set names it; zero behind the last.
        bch: what reads the signs; None where they are the set itself, or too few to be read.
    """

    code: Code
    values: Float[Tensor, "bin delay output"]
    words: Int[Tensor, "player group word"]
    keys: Int[Tensor, "player one"]
    bch: Bch | None

    @classmethod
    def of(cls, code: Code, values: Float[Tensor, "mask output"]) -> "Bins":
        """The bins of the code's first ``code.size`` responses, on their device."""
        device, coded = values.device, values[: code.size].double()
        sliced = coded.reshape(code.groups, code.delays, code.bins, -1).permute(0, 1, 3, 2)
        bins = walsh_hadamard(sliced.contiguous()) / code.bins
        delays = torch.stack([gf2.pack(code.delay_bits(group).T) for group in range(code.groups)], 1)
        words = torch.cat([delays, code.hashes.T[:, :, None]], 2)
        words = torch.nn.functional.pad(words, (0, 0, 0, 0, 0, 1))
        keys = torch.nn.functional.pad(
            uniform_bits(code.seed, torch.zeros(1, dtype=torch.long), code.n).T, (0, 0, 0, 1)
        )
        bch = None if spells_plainly(code.n, code.degree) else code.bch(device)
        arranged = bins.permute(0, 3, 1, 2).reshape(code.groups * code.bins, code.delays, -1)
        return cls(code, arranged.contiguous(), words.to(device), keys.to(device), bch)

    @property
    def outputs(self) -> int:
        return self.values.shape[2]

    @property
    def delays(self) -> int:
        """Delays that are looked at: all of the code's, or its `first` ones."""
        return self.values.shape[1]

    @property
    def rows(self) -> int:
        """Bin values that speak of one set: one bin of every group, all delays."""
        return self.code.groups * self.delays

    @property
    def masks(self) -> int:
        """Coded masks that are looked at."""
        return self.rows * self.code.bins

    @cached_property
    def largest(self) -> float:
        """The largest value in size."""
        return float(self.values.abs().amax())

    def first(self, delays: int) -> "Bins":
        """As if the code had only its first delays; where parity signs are cut off, shorter lengths are still read."""
        blocks = 0 if self.bch is None else min(self.bch.t, (delays - 1) // self.bch.field.m)
        bch = None if self.bch is None or not blocks else replace(self.bch, t=blocks)
        return replace(self, values=self.values[:, :delays].contiguous(), bch=bch)

    def spell(
        self, members: Int[Tensor, "set slot"], dtype: torch.dtype = torch.float64
    ) -> tuple[Float[Tensor, "set group delay"], Int[Tensor, "set group"]]:
        """What each set puts into the bins: ``(-1)^{<d_{c,p}, S>}``, and the bin it falls into, in every group."""
        summed = gf2.sum_rows(self.words.flatten(1), members).unflatten(1, self.words.shape[1:])
        groups = torch.arange(self.code.groups, device=members.device)
        signs = gf2.signs(summed[..., :-1], self.delays, dtype)
        return signs, groups * self.code.bins + summed[..., -1]

    def home(self, where: Int[Tensor, " set"], members: Int[Tensor, "set slot"]) -> Bool[Tensor, " set"]:
        """Whether each set falls into the bin beside it."""
        group, hashed = where // self.code.bins, torch.zeros_like(where)
        for column in members.unbind(1):
            hashed ^= self.words[column, group, -1]
        return hashed == where % self.code.bins

    def correlate(
        self,
        signs: Float[Tensor, "set group delay"],
        where: Int[Tensor, "set group"],
        values: Float[Tensor, "bin delay output"],
    ) -> Float[Tensor, "set group output"]:
        """``Σ_p signs_p values_p`` of every set in its own bin of every group."""
        if values.shape[2] == 1:
            return (signs * gf2.rows_of(values[..., 0], where)).sum(2, keepdim=True)
        table, filled = buckets(where.flatten(), len(values))
        products = (
            signs.flatten(0, 1)[table] * filled[..., None]
        ) @ values  # one product a bin, nothing gathered twice
        out = products.new_zeros(where.numel(), values.shape[2])
        out[table[filled]] = products[filled]
        return out.unflatten(0, where.shape)

    def names(self, members: Int[Tensor, "set slot"]) -> Int[Tensor, " set"]:
        """A number that is equal for equal sets and, but for one pair in 2^53, different for different ones."""
        return gf2.sum_rows(self.keys, members)[:, 0]

    def solve(
        self, signs: Float[Tensor, "set group delay"], where: Int[Tensor, "set group"]
    ) -> tuple[Float[Tensor, "set output"], Float[Tensor, "set set"]]:
        """Least squares on sets so spelled over all coded masks: coefficients and ``(ΦᵀΦ)⁻¹``."""
        gram = torch.zeros(len(signs), len(signs), dtype=torch.float64, device=signs.device)
        for group in range(self.code.groups):
            meet = where[:, group, None] == where[:, group]
            gram += (signs[:, group] @ signs[:, group].T).masked_fill_(~meet, 0)
        moment = (signs.flatten(1)[:, None] @ gf2.rows_of(self.values, where).flatten(1, 2))[:, 0]
        factor = torch.linalg.cholesky(gram + _RIDGE * self.rows * torch.eye(len(gram), device=gram.device))
        inverse = torch.cholesky_inverse(factor) / self.code.bins
        return torch.cholesky_solve(moment, factor), inverse

    def residual(
        self,
        signs: Float[Tensor, "set group delay"],
        where: Int[Tensor, "set group"],
        coefficients: Float[Tensor, "set output"],
    ) -> Float[Tensor, "bin delay output"]:
        """What the bins hold beside sets so spelled."""
        part = -signs.flatten(0, 1)[:, :, None] * coefficients.repeat_interleave(self.code.groups, 0)[:, None]
        left = self.values.clone()
        return left.index_put_((where.flatten(),), part, accumulate=True)  # sorted, so the same every time


def buckets(where: Int[Tensor, " row"], count: int) -> tuple[Int[Tensor, "bucket place"], Bool[Tensor, "bucket place"]]:
    """Row numbers sorted into `count` buckets of equal width, and which places are filled.

    >>> buckets(torch.tensor([1, 0, 1]), 2)[0].tolist()
    [[1, 0], [0, 2]]
    """
    order = where.argsort(stable=True)
    sizes = where.bincount(minlength=count)
    place = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[where[order]]
    width = int(sizes.max()) if count else 0
    table = torch.zeros(count, width, dtype=torch.long, device=order.device)
    table[where[order], place] = order
    return table, torch.arange(width, device=order.device) < sizes[:, None]


def distinct(bins: Bins, members: Int[Tensor, "set slot"], known: Int[Tensor, " name"]) -> Int[Tensor, "set slot"]:
    """One row a different set, without those whose names are `known`; in the order of the names."""
    names = bins.names(members)
    order = names.argsort(stable=True)
    names = names[order]
    fresh = torch.ones_like(names, dtype=torch.bool)
    fresh[1:] = names[1:] != names[:-1]
    fresh &= ~torch.isin(names, known)
    return members[order[fresh]]


def tidy(members: Int[Tensor, "set slot"], width: int) -> tuple[Int[Tensor, "set slot"], Tensor]:
    """Sets as the symmetric difference of what the slots name: ascending, padded with -1, and which fit `width`.

    >>> tidy(torch.tensor([[4, 1, 4], [2, -1, 1]]), 2)[0].tolist()
    [[1, -1], [1, 2]]
    """
    far = torch.iinfo(members.dtype).max
    ordered = torch.where(members < 0, far, members).sort(1).values
    twin = torch.nn.functional.pad(ordered[:, 1:] == ordered[:, :-1], (0, 1), value=False)
    ordered = torch.where(twin | torch.nn.functional.pad(twin[:, :-1], (1, 0)), far, ordered).sort(1).values
    ordered = torch.where(ordered == far, -1, ordered)
    fits = (ordered[:, width:] < 0).all(1)
    short = max(0, width - ordered.shape[1])
    return torch.nn.functional.pad(ordered[:, :width], (0, short), value=-1), fits
