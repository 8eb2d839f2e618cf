"""Binary BCH codes as parity rows: a set of at most t positions is found from m·t parity bits of its indicator.

Column i of the parity check holds α^{e_i}, α^{3 e_i}, …, α^{(2t-1) e_i} as m bits each, so that the syndrome of a set S
is its odd power sums ``S_j = Σ_{i∈S} X_i^j`` of the locators ``X_i = α^{e_i}``. Berlekamp and Massey's recursion turns
them into the polynomial ``Π (z - X_i)``, whose roots are closed forms up to degree 4 and found by trying all positions
(Chien) beyond. Everything is batched over syndromes.

Source: Bose and Ray-Chaudhuri 1960, Hocquenghem 1959; Berlekamp 1968, Massey 1969 (binary case); Chien 1964.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from spex_mech.walsh.fields import Field, field
from spex_mech.walsh.roots import roots, search


def field_degree(length: int) -> int:
    """The smallest m with ``2^m - 1 >= length``: the field whose BCH code has that many positions.

    >>> field_degree(63), field_degree(64)
    (6, 7)
    """
    return max(1, length.bit_length())


@dataclass(frozen=True, eq=False)
class Bch:
    """A BCH code correcting `t` errors, shortened to the positions ``exponents`` (all different, below 2^m - 1).

    Attributes:
        exponents: e_i for each position i.
        where: the position of each exponent, -1 where the code is shortened.
    """

    field: Field
    t: int
    exponents: Int[Tensor, " position"]
    where: Int[Tensor, " exponent"]

    @classmethod
    def at(cls, m: int, t: int, exponents: Int[Tensor, " position"]) -> "Bch":
        """The code over GF(2^m) at these exponents, on their device."""
        where = torch.full(((1 << m) - 1,), -1, dtype=torch.long, device=exponents.device)
        where[exponents] = torch.arange(len(exponents), device=exponents.device)
        return cls(field(m, exponents.device), t, exponents, where)

    @property
    def parity_bits(self) -> int:
        """m · t."""
        return self.field.m * self.t

    def parity_check(self) -> Bool[Tensor, "parity position"]:
        """The rows H: bit ``k m + l`` of column i is bit l of α^{(2k+1) e_i}."""
        odd = 2 * torch.arange(self.t, device=self.exponents.device) + 1
        power = self.field.exp[(odd[:, None] * self.exponents) % self.field.order]
        places = torch.arange(self.field.m, device=self.exponents.device)
        return ((power[:, None, :] >> places[:, None]) & 1).flatten(0, 1).bool()

    def decode(
        self, parity: Bool[Tensor, "row parity"], t: int | None = None
    ) -> tuple[Int[Tensor, "row slot"], Bool[Tensor, " row"]]:
        """The sets of at most `t` positions with these parity bits, and whether there is one.

        Rows are ascending positions padded with -1; a row without a set holds -1 only. With ``t`` below the code's
        own, only the first m·t bits are read and sets of at most t positions are found: fewer bits to trust.

        >>> code = Bch.at(4, 2, torch.arange(15))
        >>> code.decode(code.parity_check().T[[3]] ^ code.parity_check().T[[9]])[0].tolist()
        [[3, 9]]
        """
        t = self.t if t is None else t
        places = torch.arange(self.field.m, device=parity.device)
        odd = (parity[:, : self.field.m * t].unflatten(1, (t, self.field.m)).long() << places).sum(-1)
        polynomial, degree = locator(self.field, odd)
        members = torch.full((len(parity), t), -1, dtype=torch.long, device=parity.device)
        found = degree == 0
        for size in range(1, t + 1):
            rows = (degree == size).nonzero()[:, 0]
            roots, whole = self._roots(polynomial[rows, :size])
            members[rows[whole], :size] = roots[whole]
            found[rows[whole]] = True
        return members, found

    def _roots(self, polynomial: Tensor) -> tuple[Tensor, Tensor]:
        """Positions whose locators are the roots of ``z^L + c_1 z^(L-1) + … + c_L``, and whether there are L."""
        if polynomial.shape[1] > 4:
            return search(self.field, polynomial, self.exponents)
        elements, whole = roots(self.field, polynomial)
        logs = self.field.log[elements.clamp(min=1)]
        positions = torch.where(elements > 0, self.where[logs], -1).sort(1).values
        return positions, whole & (positions >= 0).all(1)


def locator(field: Field, odd: Int[Tensor, "row k"]) -> tuple[Int[Tensor, "row term"], Int[Tensor, " row"]]:
    """Odd power sums ``S_1, S_3, …`` → the coefficients ``c_1 … c_t`` of the locator polynomial and its degree.

    ``Λ(x) = Π (1 - X_i x) = 1 + c_1 x + … + c_L x^L``; degree -1 where no polynomial of degree at most t fits.
    In characteristic 2 every second discrepancy is zero, so t steps do.
    """
    rows, t = odd.shape
    sums = _all_sums(field, odd)
    current = torch.zeros(rows, t + 2, dtype=torch.long, device=odd.device)
    before = torch.zeros_like(current)
    current[:, 0] = 1
    before[:, 1] = 1
    length = torch.zeros(rows, dtype=torch.long, device=odd.device)
    for k in range(t):
        r = 2 * k
        terms = range(min(r, t) + 1)
        gap = sums[:, r].clone()
        for i in terms[1:]:
            gap ^= field.times(current[:, i], sums[:, r - i])
        longer = (gap != 0) & (2 * length <= r)
        updated = current ^ field.times(gap[:, None], before)
        scaled = field.times(field.inverse(gap)[:, None], current)
        before = torch.nn.functional.pad(torch.where(longer[:, None], scaled, before)[:, :-2], (2, 0))
        length = torch.where(longer, r + 1 - length, length)
        current = updated
    top = current.gather(1, length.clamp(max=t + 1)[:, None])[:, 0]
    exact = (length <= t) & (top != 0)
    highest = ((current != 0).long() * torch.arange(t + 2, device=odd.device)).amax(1)
    return current[:, 1 : t + 1], torch.where(exact & (highest == length), length, -1)


def _all_sums(field: Field, odd: Tensor) -> Tensor:
    """``S_1 … S_2t`` by ``S_{2k} = S_k²``."""
    rows, t = odd.shape
    sums = torch.zeros(rows, 2 * t, dtype=torch.long, device=odd.device)
    sums[:, ::2] = odd
    for j in range(2, 2 * t + 1, 2):
        sums[:, j - 1] = field.power(sums[:, j // 2 - 1], 2)
    return sums
