"""Screening by matrix products: which sets explain most of what is left over, all of a kind at once.

Components and pairs come from one product ``Zᵀ diag(r) Z``; sets in hand are extended by a component likewise. Strong
sets of real models mostly have strong subsets (Butler et al. 2025), and so nothing larger has to be listed. Where it
can be afforded, *every* triple and quadruple is looked at too, as a product of a pair with a component or a pair.
Correlations are with columns of unit length, so that the rare products of a biased basis are not taken for strong ones.
"""

from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Members = tuple[int, ...]
View = tuple[Callable[[int], Members | None], Tensor, Tensor]  # what a place is called, correlations, squared norms
NORMAL = 30  # times the kurtosis of its products: so many masks make a mean normal enough to act on
_BLOCK = 1 << 26  # correlations looked at at a time: 256 MB
_NORMS = 1 << 26  # norms of pairs that are kept from round to round
_WIDE = {"cpu": 1 << 34}  # multiplications that a look at all triples, or quadruples, may cost: a fraction of a second
_WIDE_ELSEWHERE = 1 << 40
_ALL_PAIRS = 1 << 38  # components² × masks: what a look at all pairs for the trees may cost
_PAIR_BITS = 1 << 27  # numbers in the columns of all pairs: 512 MB


def strongest_components(
    keep: Bool[Tensor, "mask component"], values: Float[Tensor, " mask"], most: int
) -> Int[Tensor, " chosen"]:
    """At most so many components, in their order: those of the largest gains, alone and (where all pairs can be looked
    at) in pairs."""
    n = keep.shape[1]
    if n <= most:
        return torch.arange(n, device=keep.device)
    z = keep.float()
    z = (z - z.mean(0)) / z.std(0).clamp(min=1e-6)
    left = (values - values.mean()).to(z)
    gains = SetSearch(z, 2 if n * n * len(z) <= _ALL_PAIRS else 1).gains(left, [], torch.empty(len(z), 0), most)
    chosen = dict.fromkeys(i for members in sorted(gains, key=lambda s: (-gains[s], s)) for i in members)
    return torch.tensor(sorted(list(chosen)[:most]), device=keep.device)


class SetSearch:
    """The share of what is left that each set in view explains by itself."""

    def __init__(self, z: Float[Tensor, "mask component"], degree: int) -> None:
        self.z, self.squared, self.degree, self.n = z, z.square(), degree, z.shape[1]
        self.rows = max(1, _BLOCK // self.n)
        self.norms: dict[int, Tensor] = {}

    def gains(
        self, left: Float[Tensor, " mask"], sets: list[Members], columns: Float[Tensor, "mask set"], wanted: int
    ) -> dict[Members, float]:
        """Of the best `wanted` components, pairs, and extensions of sets in hand that are not in hand."""
        return self._best(self._views(left, sets, columns), left, set(sets), wanted)

    def wide_gains(
        self, left: Float[Tensor, " seen"], sets: list[Members], order: int, wanted: int
    ) -> dict[Members, float]:
        """Of the best `wanted` sets of an order (3 or 4) that are not in hand, whatever their subsets do; `left` is
        that of the first `seen` masks."""
        return self._best((self._triples if order == 3 else self._quadruples)(left), left, set(sets), wanted)

    def seen(self, order: int) -> int:
        """How many masks all sets of an order (3 or 4) can be looked at under; 0: fewer than half, so not at all."""
        pairs = max(1, self.n * (self.n - 1) // 2)
        others = {3: self.n, 4: pairs}[order]
        allowed = _WIDE.get(self.z.device.type, _WIDE_ELSEWHERE)
        masks = min(len(self.z), _PAIR_BITS // pairs, allowed // (pairs * others))
        return masks if self.n >= order and 2 * masks >= len(self.z) else 0

    def _best(self, views: Iterator[View], left: Tensor, known: set[Members], wanted: int) -> dict[Members, float]:
        found = dict[Members, float]()
        energy = float(left.square().sum())
        for name, correlation, norm in views:
            gain = (correlation.square() / norm.clamp(min=1e-9)).flatten()
            top = gain.topk(min(wanted + len(known), len(gain)))
            for value, place in zip(top.values.tolist(), top.indices.tolist(), strict=True):
                members = name(place)
                if members is not None and members not in known:
                    found[members] = max(value / energy, found.get(members, 0.0))
        return found

    def _views(self, left: Tensor, sets: list[Members], columns: Tensor) -> Iterator[View]:
        yield lambda place: (place,), self.z.T @ left, self.squared.sum(0)
        if self.degree > 1:
            for start in range(0, self.n, self.rows):
                yield self._pairs(start, left)
        larger = [row for row, s in enumerate(sets) if 2 <= len(s) < self.degree]
        if larger:
            base = columns[:, larger].float()
            name = _extension([sets[row] for row in larger], self.n)
            yield name, (base * left[:, None]).T @ self.z, base.square().T @ self.squared

    @cached_property
    def _fair(self) -> bool:
        """Whether every product has the same length."""
        return bool((self.squared == 1).all())

    def _triples(self, left: Tensor) -> Iterator[View]:
        """Every triple once: its smallest component times all pairs of larger ones."""
        z, squared = self.z[: len(left)], self.squared[: len(left)]
        for i in range(self.n - 2):
            rest = z[:, i + 1 :]
            correlation = ((rest * (z[:, i] * left)[:, None]).T @ rest).triu_(1)
            if self._fair:
                norm = torch.full_like(correlation, len(left))
            else:
                norm = (squared[:, i + 1 :] * squared[:, i, None]).T @ squared[:, i + 1 :]
            yield _larger(i, self.n), correlation, norm

    def _quadruples(self, left: Tensor) -> Iterator[View]:
        """Every quadruple once: its two smallest components times the others."""
        z, (i, j) = self.z[: len(left)], torch.triu_indices(self.n, self.n, 1, device=left.device)
        pairs = z[:, i] * z[:, j]
        size = max(1, _BLOCK // len(i))
        for start in range(0, len(i), size):
            rows = slice(start, start + size)
            correlation = (pairs[:, rows] * left[:, None]).T @ pairs
            correlation.masked_fill_(i <= j[rows, None], 0)
            if self._fair:
                norm = torch.full_like(correlation, len(left))
            else:
                norm = pairs[:, rows].square().T @ pairs.square()
            yield _product(i[rows].tolist(), j[rows].tolist(), i, j), correlation, norm

    def _pairs(self, start: int, left: Tensor) -> View:
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


def _larger(i: int, n: int) -> Callable[[int], Members | None]:
    """The names of sets of a component and a pair of larger ones."""

    def name(place: int) -> Members | None:
        j, k = divmod(place, n - i - 1)
        return (i, i + 1 + j, i + 1 + k) if j < k else None

    return name


def _product(i: list[int], j: list[int], third: Tensor, fourth: Tensor) -> Callable[[int], Members | None]:
    """The names of sets of two pairs."""

    def name(place: int) -> Members | None:
        row, column = divmod(place, len(third))
        last = int(third[column])
        return (i[row], j[row], last, int(fourth[column])) if j[row] < last else None

    return name
