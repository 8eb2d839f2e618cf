"""How the field scores circuits: faithfulness over sizes (MIB), and rankings held against a known circuit.

Plain numbers in and out; definitions follow the benchmark's own evaluation code (Mueller et al. 2025, MIB) and, for
`auroc_over_sizes`, InterpBench's (Gupta et al. 2024).
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from scipy.stats import rankdata

from spex_mech.errors import ResponseError

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # MIB's ten shares of what was scored


def counts(n: int, sizes: Sequence[float] = SIZES) -> tuple[int, ...]:
    """How many of n components each size keeps: ``int(size · n)``.

    >>> counts(12)
    (0, 0, 0, 0, 0, 0, 1, 2, 6, 12)
    """
    return tuple(int(size * n) for size in sizes)


def faithfulness(value: float, empty: float, intact: float) -> float:
    """``f(C) = (m(C) - m(∅)) / (m(N) - m(∅))``, the metric m with all outside C, all, and nothing ablated.

    1 is the intact model; not bounded to [0, 1]. Raises `ResponseError` where ablating everything changes nothing.

    >>> faithfulness(3.0, 1.0, 5.0)
    0.5
    """
    if intact == empty:
        raise ResponseError(
            f"the metric is {intact:g} both intact and with every studied component ablated, so faithfulness is not "
            "defined. Study more components, or another metric."
        )
    return (value - empty) / (intact - empty)


def performance_ratio(f: Sequence[float], sizes: Sequence[float] = SIZES) -> float:
    """CPR: the area under f over the sizes, ``Σ (k_{i+1} - k_i)(f_i + f_{i+1})/2``; higher is better.

    It begins at the smallest size, so a perfect f gives .999, and may exceed 1.

    >>> round(performance_ratio([1.0] * 10), 3)
    0.999
    """
    return float(np.trapezoid(f, sizes))


def model_distance(f: Sequence[float], sizes: Sequence[float] = SIZES) -> float:
    """CMD: the same area under |1 - f|; 0 is perfect, lower is better.

    >>> round(model_distance([0.0] * 10), 3)
    0.999
    """
    return float(np.trapezoid(np.abs(1 - np.asarray(f)), sizes))


def auroc(scores: Mapping[str, float], known: Collection[str]) -> float | None:
    """The share of pairs (known, other) in which the known component scores higher, ties counting half.

    None where all are known, or none.

    >>> auroc({"a0.h0": 3.0, "a0.h1": 1.0, "a0.h2": 2.0}, ["a0.h0", "a0.h1"])
    0.5
    """
    names = list(scores)
    is_known = np.array([name in set(known) for name in names], dtype=bool)
    hits, others = int(is_known.sum()), int((~is_known).sum())
    if not hits or not others:
        return None
    ranks = rankdata([scores[name] for name in names])
    return float((ranks[is_known].sum() - hits * (hits + 1) / 2) / (hits * others))


def auroc_over_sizes(ranked: Sequence[str], known: Collection[str], sizes: Sequence[float] = SIZES) -> float | None:
    """InterpBench's: the area under the rates of true over false positives of the first ``int(size · n)`` of a ranking.

    From (0, 0) on. None where all are known, or none.
    """
    positive = set(known) & set(ranked)
    negative = set(ranked) - positive
    if not positive or not negative:
        return None
    taken = [set(ranked[:count]) for count in (0, *counts(len(ranked), sizes))]
    true = [len(first & positive) / len(positive) for first in taken]
    return float(np.trapezoid(true, [len(first & negative) / len(negative) for first in taken]))


def precision_recall(found: Collection[str], known: Collection[str]) -> tuple[float | None, float | None]:
    """Share of what was found that is known, and of what is known that was found; None where there is nothing to share.

    >>> precision_recall(["a0.h0", "a0.h1"], ["a0.h1"])
    (0.5, 1.0)
    """
    hits = len(set(found) & set(known))
    return (hits / len(set(found)) if found else None), (hits / len(set(known)) if known else None)


def ranked(scores: Mapping[str, float], *, absolute: bool) -> list[str]:
    """Names by score, or by its size, largest first; ties in the order given.

    >>> ranked({"a0.h0": 1.0, "a0.h1": -2.0}, absolute=True)
    ['a0.h1', 'a0.h0']
    """
    names = list(scores)
    return sorted(names, key=lambda name: -(abs(scores[name]) if absolute else scores[name]))
