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

from spex_mech.walsh.masks.galois_field import Field, field
from spex_mech.walsh.masks.roots import roots, search_roots


def field_degree(length: int) -> int:
    """The smallest m with ``2^m - 1 >= length``: the field whose BCH code has that many positions.

    >>> field_degree(63), field_degree(64)
    (6, 7)
    """
    return max(1, length.bit_length())


@dataclass(frozen=True, eq=False)
class Bch:
    """BCH codes correcting `t` errors, shortened to n positions; one code a group, which differ in their exponents.

    Attributes:
        exponents: e_i for each position i of each group, all different within a group and below 2^m - 1.
        where: the position of each exponent, -1 where the code is shortened.
    """

    field: Field
    t: int
    exponents: Int[Tensor, "group position"]
    where: Int[Tensor, "group exponent"]

    @classmethod
    def at(cls, m: int, t: int, exponents: Int[Tensor, "group position"]) -> "Bch":
        """The codes over GF(2^m) at these exponents (or one code, at ``[position]`` exponents), on their device."""
        exponents = exponents.reshape(-1, exponents.shape[-1])
        groups, n = exponents.shape
        where = torch.full((groups, (1 << m) - 1), -1, dtype=torch.long, device=exponents.device)
        positions = torch.arange(n, device=exponents.device).expand(groups, -1)
        return cls(field(m, exponents.device), t, exponents, where.scatter(1, exponents, positions))

    @property
    def parity_bits(self) -> int:
        """m · t."""
        return self.field.m * self.t

    def parity_check(self, group: int = 0) -> Bool[Tensor, "parity position"]:
        """The rows H: bit ``k m + l`` of column i is bit l of α^{(2k+1) e_i}."""
        odd = 2 * torch.arange(self.t, device=self.exponents.device) + 1
        power = self.field.exp[(odd[:, None] * self.exponents[group]) % self.field.order]
        places = torch.arange(self.field.m, device=self.exponents.device)
        return ((power[:, None, :] >> places[:, None]) & 1).flatten(0, 1).bool()

    def decode(
        self, parity: Bool[Tensor, "row parity"], group: Int[Tensor, " row"] | None = None
    ) -> tuple[Int[Tensor, "row slot"], Bool[Tensor, " row"]]:
        """The sets of at most t positions with these parity bits (of group 0, or of each row's), and if there is one.

        Rows are ascending positions padded with -1; a row without a set holds -1 only.

        >>> code = Bch.at(4, 2, torch.arange(15))
        >>> code.decode(code.parity_check().T[[3]] ^ code.parity_check().T[[9]])[0].tolist()
        [[3, 9]]
        """
        members, known = self.decode_every_length(parity, group)
        return members[-1], known[-1]

    def decode_every_length(
        self, parity: Bool[Tensor, "row parity"], group: Int[Tensor, " row"] | None = None
    ) -> tuple[Int[Tensor, "length row slot"], Bool[Tensor, "length row"]]:
        """The same for the first m, 2m, … tm parity bits: entry k is what k + 1 blocks of bits alone say.

        Sets of at most k + 1 positions need no more, and errors in the blocks behind do not matter to them.
        """
        rows = len(parity)
        group = torch.zeros(rows, dtype=torch.long, device=parity.device) if group is None else group
        places = torch.arange(self.field.m, device=parity.device)
        odd = (parity.unflatten(1, (self.t, self.field.m)).long() << places).sum(-1)
        polynomials, degree = locators(self.field, odd)
        members = torch.full((self.t * rows, self.t), -1, dtype=torch.long, device=parity.device)
        known = (degree == 0).flatten()
        for size in range(1, self.t + 1):
            chosen = (degree.flatten() == size).nonzero()[:, 0]
            roots, whole = self._positions(polynomials.flatten(0, 1)[chosen, :size], group[chosen % rows])
            members[chosen, :size] = torch.where(whole[:, None], roots, -1)
            known[chosen] = whole
        return members.unflatten(0, (self.t, rows)), known.reshape(self.t, rows)

    def _positions(self, polynomials: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
        """Positions whose locators are the roots of ``z^L + c_1 z^(L-1) + … + c_L``, and whether there are L."""
        if polynomials.shape[1] > 4:
            return self._searched(polynomials, group)
        elements, whole = roots(self.field, polynomials)
        logs = self.field.log[elements.clamp(min=1)]
        positions = torch.where(elements > 0, self.where[group[:, None], logs], -1).sort(1).values
        return positions, whole & (positions >= 0).all(1)

    def _searched(self, polynomials: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
        positions = torch.full_like(polynomials, -1)
        whole = torch.zeros(len(polynomials), dtype=torch.bool, device=polynomials.device)
        for number, exponents in enumerate(self.exponents):
            rows = (group == number).nonzero()[:, 0]
            positions[rows], whole[rows] = search_roots(self.field, polynomials[rows], exponents)
        return positions, whole


def locators(
    field: Field, odd: Int[Tensor, "row k"]
) -> tuple[Int[Tensor, "length row term"], Int[Tensor, "length row"]]:
    """Odd power sums ``S_1, S_3, …`` → the coefficients ``c_1 … c_t`` of the locator polynomial and its degree.

    ``Λ(x) = Π (1 - X_i x) = 1 + c_1 x + … + c_L x^L``, for the first sum alone, the first two, … all t of them; degree
    -1 where no polynomial of degree at most the number of sums fits. In characteristic 2 every second discrepancy is
    zero, so t steps of the recursion do, and the state after each is the answer to so many sums.
    """
    rows, t = odd.shape
    sums = _all_sums(field, odd)
    current = torch.zeros(rows, t + 2, dtype=torch.long, device=odd.device)
    before = torch.zeros_like(current)
    current[:, 0] = 1
    before[:, 1] = 1
    length = torch.zeros(rows, dtype=torch.long, device=odd.device)
    polynomials, degrees = [], []
    for k in range(t):
        r = 2 * k
        span = min(r, t)
        products = field.times(current[:, 1 : span + 1], sums[:, r - span : r].flip(1))
        gap = sums[:, r].clone()
        for term in products.unbind(1):
            gap ^= term
        longer = (gap != 0) & (2 * length <= r)
        updated = current ^ field.times(gap[:, None], before)
        scaled = field.times(field.inverse(gap)[:, None], current)
        before = torch.nn.functional.pad(torch.where(longer[:, None], scaled, before)[:, :-2], (2, 0))
        length = torch.where(longer, r + 1 - length, length)
        current = updated
        polynomials.append(current[:, 1 : t + 1])
        degrees.append(torch.where((length <= k + 1) & (_degree(current) == length), length, -1))
    return torch.stack(polynomials), torch.stack(degrees)


def _degree(polynomials: Tensor) -> Tensor:
    """The place of the last coefficient that is not zero."""
    places = torch.arange(polynomials.shape[1], device=polynomials.device)
    return ((polynomials != 0).long() * places).amax(1)


def _all_sums(field: Field, odd: Tensor) -> Tensor:
    """``S_1 … S_2t`` by ``S_{2k} = S_k²``."""
    rows, t = odd.shape
    sums = torch.zeros(rows, 2 * t, dtype=torch.long, device=odd.device)
    sums[:, ::2] = odd
    for j in range(2, 2 * t + 1, 2):
        sums[:, j - 1] = field.power(sums[:, j // 2 - 1], 2)
    return sums
