"""The field GF(2^m) by logarithm tables: products, quotients, quadratic equations and polynomials, batched.

An element is an integer whose bit i is the coefficient of α^i, α a root of the field's primitive polynomial (Conway's
polynomial of degree m, so that other systems which use it number the elements alike).
"""

from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Int
from torch import Tensor

from spex_mech.errors import DesignError

_CONWAY = {  # degree → Conway polynomial over GF(2), bit i the coefficient of x^i
    1: 0x3, 2: 0x7, 3: 0xB, 4: 0x13, 5: 0x25, 6: 0x5B, 7: 0x83, 8: 0x11D, 9: 0x211, 10: 0x46F, 11: 0x805,
    12: 0x10EB, 13: 0x201B, 14: 0x40A9, 15: 0x8035, 16: 0x1002D, 17: 0x20009, 18: 0x41403, 19: 0x80027, 20: 0x1006F3,
}  # fmt: skip
MAX_DEGREE = max(_CONWAY)


@dataclass(frozen=True, eq=False)
class Field:
    """GF(2^m). ``exp[k] = α^k`` for ``0 <= k <= 2 (2^m - 2)`` and 0 beyond; ``log[0]`` points into that zero part.

    So a product is ``exp[log a + log b]`` with no case for zero.
    """

    m: int
    exp: Int[Tensor, " exponent"]
    log: Int[Tensor, " element"]
    halves: Int[Tensor, " element"]  # y with y² + y = element, or -1
    thirds: Int[Tensor, " element"]  # y with y³ + y = element, or -1
    cube_roots: Int[Tensor, " element"]  # y with y³ = element, or -1

    @property
    def order(self) -> int:
        """The number of non-zero elements, 2^m - 1."""
        return (1 << self.m) - 1

    def times(self, a: Tensor, b: Tensor) -> Tensor:
        """a · b, elementwise.

        >>> field(3).times(torch.tensor([2, 0]), torch.tensor([4, 5])).tolist()
        [3, 0]
        """
        return self.exp[self.log[a] + self.log[b]]

    def inverse(self, a: Tensor) -> Tensor:
        """1 / a, elementwise; 0 for 0."""
        return torch.where(a == 0, 0, self.exp[self.order - self.log[a].clamp(max=self.order)])

    def power(self, a: Tensor, k: int) -> Tensor:
        """a^k for k >= 1, elementwise."""
        return torch.where(a == 0, 0, self.exp[(self.log[a] * k) % self.order])

    def square_root(self, a: Tensor) -> Tensor:
        """The one root of a, elementwise: a^(2^(m-1))."""
        return self.power(a, 1 << (self.m - 1))

    def monic_at(self, polynomial: Int[Tensor, "row term"], log_points: Int[Tensor, " point"]) -> Tensor:
        """``z^L + c_1 z^(L-1) + … + c_L`` at ``z = α^k`` for every row ``[c_1 … c_L]`` and every k in `log_points`."""
        degree = polynomial.shape[1]
        logs = self.log[polynomial]
        out = self.exp[(log_points * degree) % self.order].expand(len(polynomial), -1).clone()
        for j in range(1, degree + 1):
            out ^= self.exp[logs[:, j - 1 : j] + (log_points * (degree - j)) % self.order]
        return out

    def splits(self, polynomial: Int[Tensor, "row term"]) -> Tensor:
        """Which monic polynomials ``z^L + c_1 z^(L-1) + … + c_L`` divide ``z^(2^m) - z``.

        That is, which have L different roots in the field. Cost m L² products a row: a test before a search.
        """
        residue = self._frobenius(polynomial)
        z = torch.zeros_like(residue)
        z[:, 1] = 1
        return (residue == z).all(1)

    def _frobenius(self, polynomial: Tensor) -> Tensor:
        """``z^(2^m)`` modulo each row, coefficients from low to high; L >= 2."""
        rows, degree = polynomial.shape
        low = polynomial.flip(1)  # z^L = Σ_j low[j] z^j
        powers = torch.zeros(rows, 2 * degree - 1, degree, dtype=torch.long, device=polynomial.device)
        powers[:, range(degree), range(degree)] = 1
        for k in range(degree, 2 * degree - 1):
            shifted = torch.nn.functional.pad(powers[:, k - 1, :-1], (1, 0))
            powers[:, k] = shifted ^ self.times(powers[:, k - 1, -1:], low)
        squares = powers[:, ::2]  # z^(2i)
        current = powers[:, 1].clone()
        for _ in range(self.m):
            terms = self.times(self.power(current, 2)[:, :, None], squares)
            current = terms[:, 0]
            for i in range(1, degree):
                current = current ^ terms[:, i]
        return current


def field(m: int, device: torch.device | str = "cpu") -> Field:
    """The field of 2^m elements, tables built once a device; m from 1 to 20, else `DesignError`.

    >>> field(3).exp[:7].tolist()
    [1, 2, 4, 3, 6, 7, 5]
    """
    return _field(m, str(torch.device(device)))


@cache
def _field(m: int, device: str) -> Field:
    if m not in _CONWAY:
        raise DesignError(f"the field of 2^{m} elements is not built; 2^1 to 2^{MAX_DEGREE} are.")
    order, powers, element = (1 << m) - 1, [], 1
    for _ in range(order):
        powers.append(element)
        element = element << 1 if element << 1 <= order else (element << 1) ^ _CONWAY[m]
    cycle = torch.tensor(powers, dtype=torch.long)
    zero = 2 * order
    exp = torch.zeros(2 * zero + 1, dtype=torch.long)
    exp[:zero] = cycle.repeat(2)
    log = torch.full((order + 1,), zero, dtype=torch.long)
    log[cycle] = torch.arange(order)
    y = torch.arange(order + 1)
    square, cube = (torch.where(y == 0, 0, exp[k * log[y] % order]) for k in (2, 3))
    tables = (exp, log, _solutions(square ^ y), _solutions(cube ^ y), _solutions(cube))
    return Field(m, *(table.to(device) for table in tables))


def _solutions(images: Tensor) -> Tensor:
    """For every element the largest y whose image it is, or -1."""
    table = torch.full_like(images, -1)
    return table.scatter_reduce(0, images, torch.arange(len(images)), "amax")
