"""Planted functions: Boolean functions whose spectrum is known, for benches and tests of decoders.

All have unit variance under fair-coin masks and no constant term, so that noise is told in units of the signal.

- ``random``: sets drawn uniformly, orders 1 to `degree` in equal shares, coefficients ±[½, 1½] before scaling. No set
  has to have a subset that matters: what trees and greedy searches cannot see.
- ``hierarchical``: a sum of ANDs of 1 to `degree` components with weights ±[½, 1½]; every subset of an AND matters.
- ``tanh``: a saturating read-out of a standardised sum of 25 ANDs, ``tanh(1.5 z)``; its spectrum has a long tail.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations, cycle
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spex_mech.errors import DesignError
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.spectrum import Spectrum

Kind = Literal["random", "hierarchical", "tanh"]
_LOOKED_AT = 1 << 13  # masks that the scale of a tanh function is taken from


@dataclass(frozen=True, eq=False)
class Planted:
    """A function of keep bits and, where it is sparse, its true spectrum. Call it, or `noisy` for responses."""

    spectrum: Spectrum
    link: Callable[[Tensor], Tensor] | None = None

    def __call__(self, keep: Bool[Tensor, "mask component"]) -> Float[Tensor, " mask"]:
        values = self.spectrum.evaluate(keep)
        return values if self.link is None else self.link(values)

    def noisy(self, keep: Bool[Tensor, "mask component"], noise: float, seed: int) -> Float[Tensor, " mask"]:
        """The values plus Gaussian noise of this standard deviation, drawn on the CPU."""
        drawn = torch.randn(len(keep), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        return self(keep) + noise * drawn.to(keep.device)

    @property
    def sets(self) -> set[tuple[int, ...]]:
        """The true sets, without the empty one."""
        return {s for s in self.spectrum.sets if s}


def planted_function(kind: Kind, n: int, *, sets: int = 40, degree: int = 4, seed: int = 0) -> Planted:
    """A planted function of n components; `sets` is the number of sets (random) or of ANDs (the others).

    >>> function = planted_function("random", 20, sets=5, seed=1)
    >>> len(function.sets), round(sum(function.spectrum.energy_by_order().values()), 6)
    (5, 1.0)
    """
    generator = torch.Generator().manual_seed(seed)
    room = sum(math.comb(n, order) for order in range(1, degree + 1))
    if kind == "random" and sets > room:
        raise DesignError(
            f"{n} components have {room:,} sets of 1 to {degree}, and {sets:,} different ones were asked for."
        )
    if kind == "random":
        return Planted(_scaled(n, _random_terms(n, sets, degree, generator)))
    if kind == "hierarchical":
        return Planted(_scaled(n, _and_terms(n, sets, degree, generator)))
    if kind == "tanh":
        return _tanh(_scaled(n, _and_terms(n, sets, degree, generator)), seed)
    raise DesignError(f"there is no planted function {kind!r}; there are random, hierarchical and tanh.")


def narrowed(*spectra: Spectrum) -> list[Spectrum]:
    """The same polynomials over the components that any of them has, renumbered in their order.

    Fair coins for tens of thousands of components need not be tossed for the few hundred that matter.

    >>> [s.sets for s in narrowed(Spectrum.from_terms(90, {(7,): 1.0}), Spectrum.from_terms(90, {(5, 7): 1.0}))]
    [((1,),), ((0, 1),)]
    """
    used = torch.cat([spectrum.members.flatten() for spectrum in spectra]).unique()
    used = used[used >= 0]
    place = torch.full((spectra[0].n + 1,), -1, dtype=torch.long)
    place[used] = torch.arange(len(used))
    return [replace(spectrum, n=max(1, len(used)), members=place[spectrum.members]) for spectrum in spectra]


def support_f1(truth: set[tuple[int, ...]], found: set[tuple[int, ...]]) -> float:
    """Harmonic mean of precision and recall of found sets, the empty set aside.

    >>> support_f1({(0,), (1, 2)}, {(0,), ()})
    0.6666666666666666
    """
    truth, found = truth - {()}, found - {()}
    return 2 * len(truth & found) / max(1, len(truth) + len(found))


def _random_terms(n: int, sets: int, degree: int, generator: torch.Generator) -> dict[tuple[int, ...], float]:
    terms: dict[tuple[int, ...], float] = {}
    orders = cycle(range(1, degree + 1))
    while len(terms) < sets:
        terms.setdefault(_draw(n, next(orders), generator), _weight(generator))
    return terms


def _and_terms(n: int, ands: int, degree: int, generator: torch.Generator) -> dict[tuple[int, ...], float]:
    """A product of k keep bits is 2^-k times the sum of all subsets of its components."""
    terms: dict[tuple[int, ...], float] = {}
    for _ in range(ands):
        order = int(torch.randint(1, degree + 1, (1,), generator=generator))
        members, weight = _draw(n, order, generator), _weight(generator)
        for size in range(1, order + 1):
            for subset in combinations(members, size):
                terms[subset] = terms.get(subset, 0.0) + weight
    return terms


def _draw(n: int, order: int, generator: torch.Generator) -> tuple[int, ...]:
    chosen: set[int] = set()
    while len(chosen) < order:
        chosen.add(int(torch.randint(n, (1,), generator=generator)))
    return tuple(sorted(chosen))


def _weight(generator: torch.Generator) -> float:
    size, sign = torch.rand(2, generator=generator).tolist()
    return (0.5 + size) * (1 if sign < 0.5 else -1)


def _scaled(n: int, terms: dict[tuple[int, ...], float]) -> Spectrum:
    size = math.sqrt(sum(weight**2 for weight in terms.values()))
    return Spectrum.from_terms(n, {members: weight / size for members, weight in terms.items()})


def _tanh(inner: Spectrum, seed: int) -> Planted:
    (small,) = narrowed(inner)
    values = torch.tanh(1.5 * small.evaluate(MaskDesign.bernoulli(small.n, _LOOKED_AT, seed=seed).keep()))
    centre, size = values.mean(), values.std()
    return Planted(inner, lambda z: (torch.tanh(1.5 * z) - centre) / size)
