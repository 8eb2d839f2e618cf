"""`find_backups`: groups of components that stand in for each other, from the polynomial; no primary set is given.

Let D(T) be what ablating T costs with the rest of a group S kept. S is a group of backups where losing all of it costs
more than any way of losing part of it explains:

```text
D(S) > 0,   D(S) > D(T) for every T ⊂ S,   D(S) > D(T) + D(S∖T) for every split of S
```

An OR has D(S) = 1 and D(T) = 0 for every smaller T: ablating one at a time finds nothing. An AND has D(T) = 1 already,
an additive set D(S) = ΣD(i), and an idle component added to a group violates the second line.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from spex_mech.circuit.build import FLOOR
from spex_mech.components import ComponentSet
from spex_mech.errors import ComponentError, DecodeError
from spex_mech.walsh.certainty.significance import q_values
from spex_mech.walsh.spectrum import Spectrum

MAX_BACKUP_ORDER = 8  # 2^8 subsets of a group
MAX_CLIQUES = 2000  # larger groups put together from pairs

_Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Backup:
    """A group any part of which does what the whole does. All costs in the metric's unit.

    They are averages over the masks of the polynomial's basis: the others are kept with its keep-probability.

    Attributes:
        components: names, in the order of the run.
        joint: what ablating the whole group costs; negative where the group holds the metric down.
        single: what ablating each member alone costs, the rest of the group kept.
        excess: by how much |joint| exceeds the best explanation by smaller parts; > 0.
        stderr: of the excess; q_value: false discovery rate; None where the polynomial has no errors.
        kind: "redundancy", in the words of `kinds.kind_of`.
    """

    components: tuple[str, ...]
    joint: float
    single: tuple[float, ...]
    excess: float
    stderr: float | None
    q_value: float | None
    kind: Literal["redundancy"] = "redundancy"

    @property
    def hidden(self) -> float:
        """The share of the joint cost that ablating one at a time does not show: 1 for an OR, 0 where additive."""
        return 1 - sum(self.single) / self.joint


def find_backups(
    spectrum: Spectrum,
    components: ComponentSet,
    *,
    q_threshold: float = 0.05,
    max_order: int = 4,
    min_excess: float = 0.0,
) -> tuple[Backup, ...]:
    """All groups of two to `max_order` components that back each other up, largest excess first.

    Candidates are the recovered sets, and larger groups all of whose pairs qualify. Averaged over the masks of an
    orthonormal basis, the costs in a group S are ``v(A) = Σ_{U⊆S} F(U) φ_U(A)``, so every inequality above is a
    contrast of the coefficients inside S with error ``√Σ (weight · stderr)²``. A group is found where all its
    inequalities are: its p-value is the largest of theirs (intersection–union; Berger 1982), doubled since the sign of
    the joint cost is read from the same numbers, then adjusted over all candidates (Benjamini and Hochberg 1995). Of
    nested groups the largest is given. A coefficient that was not recovered counts as 0 with the largest error of any
    that was.

    Args:
        spectrum: in the Walsh or a biased basis; of several outputs the mean is taken. The rate holds as far as its
            standard errors do: where sets were chosen on the masks they were fitted to, confirm by fresh masks
            (`sm.audit` does).
        q_threshold: false discovery rate, in (0, 1].
        max_order: largest group, 2 to 8.
        min_excess: groups below, in the metric's unit, are left out.

    Raises:
        DecodeError: another basis, settings out of range. ComponentError: bits and components do not fit.
    """
    _check(spectrum, components, q_threshold, max_order, min_excess)
    mean = _Errors.of(spectrum)
    pairs = [s for s in mean.coefficient if len(s) == 2 and _excess(mean, s)[0] > mean.floor]
    recovered = [s for s in mean.coefficient if 2 <= len(s) <= max_order]
    candidates = sorted({*recovered, *_cliques(pairs, max_order)})
    if not candidates:
        return ()
    found = [_excess(mean, s) for s in candidates]
    q = q_values(np.array([p for _, _, p in found]))
    chosen = {
        s: _backup(mean, s, components, excess, error, rate)
        for s, (excess, error, _), rate in zip(candidates, found, q, strict=True)
        if excess > max(mean.floor, min_excess) and not rate > q_threshold
    }
    tops = [s for s in chosen if not any(set(s) < set(other) for other in chosen)]
    return tuple(sorted((chosen[s] for s in tops), key=lambda b: (-b.excess, b.components)))


def _check(spectrum: Spectrum, components: ComponentSet, q_threshold: float, max_order: int, min_excess: float) -> None:
    if spectrum.n != len(components):
        raise ComponentError(
            f"a polynomial of {spectrum.n:,} bits was given with {len(components):,} components; give the components "
            "of the same run."
        )
    if not spectrum.basis.is_orthonormal:
        raise DecodeError(
            f"backups are read from a walsh or biased polynomial; this one is in the basis {spectrum.basis.kind!r}. "
            'Rewrite it first: spectrum.rewrite(Basis("walsh")).'
        )
    if not 0 < q_threshold <= 1 or not 2 <= max_order <= MAX_BACKUP_ORDER or not 0 <= min_excess < math.inf:
        raise DecodeError(
            f"q_threshold {q_threshold}, max_order {max_order} and min_excess {min_excess} were asked for; the first "
            f"lies in (0, 1], the second from 2 to {MAX_BACKUP_ORDER}, the third is a size of 0 or more."
        )


@dataclass(frozen=True, eq=False)
class _Errors:
    """The coefficients and errors of a polynomial by set; `absent` is the error of one that was not recovered."""

    coefficient: dict[tuple[int, ...], float]
    stderr: dict[tuple[int, ...], float]
    absent: float
    phi: tuple[float, float]
    floor: float

    @classmethod
    def of(cls, spectrum: Spectrum) -> "_Errors":
        mean = spectrum.mean_output()
        coefficient = dict(mean.terms())
        errors = [math.nan] * len(mean) if mean.stderr is None else mean.stderr.double().tolist()
        offset, slope = mean.basis.affine
        floor = FLOOR * max((abs(c) for s, c in coefficient.items() if s), default=0.0)
        return cls(
            coefficient, dict(zip(mean.sets, errors, strict=True)), max(errors, default=math.nan),
            (offset, offset + slope), floor,
        )  # fmt: skip

    def inside(self, group: tuple[int, ...]) -> tuple[_Numbers, _Numbers]:
        """Coefficients and errors of the subsets of a group, by number (bit j: member j is in it)."""
        sets = [tuple(i for j, i in enumerate(group) if number >> j & 1) for number in range(1 << len(group))]
        values = np.array([self.coefficient.get(s, 0.0) for s in sets])
        return values, np.array([self.stderr.get(s, self.absent) for s in sets])

    def costs(self, group: tuple[int, ...]) -> _Numbers:
        """v(A) by the number of the ablated subset A of a group, the others averaged over the basis' masks."""
        return products(len(group), self.phi) @ self.inside(group)[0]


def products(order: int, phi: tuple[float, float]) -> _Numbers:
    """``φ_U(A)``, ``[ablated subset A, set U]``, both by number."""
    numbers = np.arange(1 << order)
    table = np.ones((1 << order, 1 << order))
    for bit in range(order):
        value = np.where(numbers >> bit & 1, phi[0], phi[1])[:, None]
        table *= np.where(numbers[None] >> bit & 1, value, 1.0)
    return table


@cache
def contrasts(order: int) -> _Numbers:
    """The inequalities of a group as weights on the values ``v(A)``, by the number of the ablated subset A.

    The first row is D(S); then D(S) - D(T) for every smaller T, and D(S) - D(T) - D(S∖T) for every split.

    >>> contrasts(2).astype(int).tolist()
    [[1, 0, 0, -1], [0, 1, 0, -1], [0, 0, 1, -1], [-1, 1, 1, -1]]
    """
    full = (1 << order) - 1
    rows = [{0: 1.0, full: -1.0}]
    rows += [{part: 1.0, full: -1.0} for part in range(1, full)]
    rows += [{0: -1.0, part: 1.0, full - part: 1.0, full: -1.0} for part in range(1, full) if part & 1]
    table = np.zeros((len(rows), full + 1))
    for row, weights in enumerate(rows):
        for number, weight in weights.items():
            table[row, number] = weight
    return table


def _excess(mean: _Errors, group: tuple[int, ...]) -> tuple[float, float, float]:
    """The smallest of a group's inequalities, its error, and the p-value of all of them together."""
    values, errors = mean.inside(group)
    weights = contrasts(len(group)) @ products(len(group), mean.phi)
    weights = weights if weights[0] @ values >= 0 else -weights
    margin, error = weights @ values, np.sqrt(weights**2 @ errors**2)
    smallest = int(margin.argmin())
    return float(margin[smallest]), float(error[smallest]), _joint_p(margin, error, mean.floor)


def _joint_p(margin: _Numbers, error: _Numbers, floor: float) -> float:
    """Two-sided p-value that not all margins are above 0; NaN where errors are unknown."""
    if np.isnan(error).any():
        return math.nan
    exact = error <= 0
    z = margin / np.where(exact, 1.0, error)
    p = np.where(exact, np.where(margin > floor, 0.0, 1.0), ndtr(-z))
    return min(1.0, 2 * float(p.max()))


def _cliques(pairs: Sequence[tuple[int, ...]], max_order: int) -> list[tuple[int, ...]]:
    """Groups of three and more all of whose pairs are among `pairs`, up to a number, smallest first."""
    neighbours: dict[int, set[int]] = {}
    for i, j in pairs:
        neighbours.setdefault(i, set()).add(j)
        neighbours.setdefault(j, set())
    found, layer = list[tuple[int, ...]](), [tuple(p) for p in pairs]
    for _ in range(3, max_order + 1):
        layer = [
            (*group, j)
            for group in layer
            for j in sorted(set.intersection(*(neighbours[i] for i in group)))
            if j > group[-1]
        ][: MAX_CLIQUES - len(found)]
        found += layer
    return found


def _backup(
    mean: _Errors, group: tuple[int, ...], components: ComponentSet, excess: float, error: float, rate: float
) -> Backup:
    v = mean.costs(group)
    return Backup(
        components=tuple(components.names[i] for i in group),
        joint=float(v[0] - v[-1]),
        single=tuple(float(v[0] - v[1 << j]) for j in range(len(group))),
        excess=excess,
        stderr=None if math.isnan(error) else error,
        q_value=None if math.isnan(rate) else float(rate),
    )
