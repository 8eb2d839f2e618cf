"""Bins: coded responses after the transform, and what a code says any set contributes to them.

``U[g, p, o]`` for bin g = c 2^b + j of group c, delay p, output o. A set S with coefficients F(S) adds
``F(S)[o] (-1)^{<d_{c,p}, S>}`` to one bin of every group, and least squares over all coded masks is least squares over
all bins (the transform is orthogonal), where each set meets only those that share a bin with it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spex_mech.walsh import gf2
from spex_mech.walsh.bch import Bch
from spex_mech.walsh.coded import Code, spells_plainly
from spex_mech.walsh.hashing import uniform_bits
from spex_mech.walsh.transform import walsh_hadamard

_RIDGE = 1e-9  # of the diagonal: two sets that no mask tells apart share a coefficient instead of failing the solve


@dataclass(frozen=True, eq=False)
class Bins:
    """Transformed responses beside the tables of their code, on one device.

    Attributes:
        values: U, float64, in the unit of the responses.
        words: the delay bits of every player, packed, one table a group.
        keys: a random number a player; the sum (exclusive or) over a set names it.
    """

    code: Code
    values: Float[Tensor, "bin delay output"]
    words: Int[Tensor, "group player word"]
    hashes: Int[Tensor, "group player"]
    keys: Int[Tensor, "player one"]
    bch: tuple[Bch, ...]

    @classmethod
    def of(cls, code: Code, values: Float[Tensor, "mask output"]) -> "Bins":
        """The bins of the code's first ``code.size`` responses, on their device."""
        device, coded = values.device, values[: code.size].double()
        sliced = coded.reshape(code.groups, code.delays, code.bins, -1).permute(0, 1, 3, 2)
        bins = walsh_hadamard(sliced.contiguous()) / code.bins
        words = torch.stack([gf2.pack(code.delay_bits(group).T) for group in range(code.groups)])
        keys = uniform_bits(code.seed, torch.zeros(1, dtype=torch.long), code.n).T
        plain = spells_plainly(code.n, code.degree)
        bch = () if plain else tuple(code.bch(group, device) for group in range(code.groups))
        arranged = bins.permute(0, 3, 1, 2).reshape(code.groups * code.bins, code.delays, -1)
        return cls(code, arranged.contiguous(), words.to(device), code.hashes.to(device), keys.to(device), bch)

    @property
    def outputs(self) -> int:
        return self.values.shape[2]

    @property
    def rows(self) -> int:
        """Masks that speak of one set: all of them, through one bin of every group."""
        return self.code.groups * self.code.delays

    def signs(self, group: int, members: Int[Tensor, "set slot"], dtype: torch.dtype = torch.float64) -> Tensor:
        """``(-1)^{<d_{c,p}, S>}`` as ``[set, delay]``."""
        return gf2.signs(gf2.sum_rows(self.words[group], members), self.code.delays, dtype)

    def where(self, group: int, members: Int[Tensor, "set slot"]) -> Int[Tensor, " set"]:
        """The bin each set falls into in one group, counted over all groups."""
        return group * self.code.bins + gf2.sum_rows(self.hashes[group][:, None], members)[:, 0]

    def names(self, members: Int[Tensor, "set slot"]) -> Int[Tensor, " set"]:
        """A number that is equal for equal sets and, but for one pair in 2^53, different for different ones."""
        return gf2.sum_rows(self.keys, members)[:, 0]

    def solve(
        self, members: Int[Tensor, "set slot"], delays: Tensor | None = None
    ) -> tuple[Float[Tensor, "set output"], Float[Tensor, "set set"]]:
        """Least squares on these sets over all coded masks: coefficients and ``(ΦᵀΦ)⁻¹``.

        `delays`, one weight a group and delay, leaves masks out (0) of the fit.
        """
        gram = torch.zeros(len(members), len(members), dtype=torch.float64, device=members.device)
        moment = torch.zeros(len(members), self.outputs, dtype=torch.float64, device=members.device)
        for group in range(self.code.groups):
            signs, where = self.signs(group, members), self.where(group, members)
            weighted = signs if delays is None else signs * delays[group]
            gram += (weighted @ signs.T) * (where[:, None] == where)
            moment += torch.einsum("kr,kro->ko", weighted, self.values[where])
        factor = torch.linalg.cholesky(gram + _RIDGE * self.rows * torch.eye(len(gram), device=gram.device))
        inverse = torch.cholesky_inverse(factor) / self.code.bins
        return torch.cholesky_solve(moment, factor), inverse

    def residual(
        self, members: Int[Tensor, "set slot"], coefficients: Float[Tensor, "set output"]
    ) -> Float[Tensor, "bin delay output"]:
        """What the bins hold beside these sets."""
        left = self.values.clone()
        for group in range(self.code.groups):
            part = -self.signs(group, members)[:, :, None] * coefficients[:, None]
            left.index_put_((self.where(group, members),), part, accumulate=True)  # sorted, so the same every time
        return left


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
