"""Is the circuit complete, is every part needed, is one idle? Knockouts by prediction first, then by forward passes."""

from collections.abc import Collection, Mapping

from spex_mech.auditing.case import Case, RunCase
from spex_mech.auditing.findings import Knockout
from spex_mech.auditing.knockouts import (
    Predictor,
    Set,
    best_minimality,
    completeness_masks,
    drops,
    gaps,
    minimality_masks,
    relevant,
    worst_completeness,
)

MOST_COMPLETENESS = 16  # knockouts that are measured: a table of a report; the worst come first, so none is hidden


def try_completeness(case: RunCase, circuit: Collection[str], allowance: int, predict: Predictor) -> list[Knockout]:
    """The knockouts with the largest predicted gaps, measured as far as the allowance goes: two masks each."""
    members, n = case.components.indices(circuit), len(case.names)
    sets = relevant(members, _supports(case), n, predict)
    worst = worst_completeness(members, sets, n, predict, max(1, min(MOST_COMPLETENESS, allowance // 2)))
    keep = completeness_masks(members, [k for k, _ in worst], n)
    fits = case.passes.cost(keep) <= min(allowance, case.passes.left)
    measured = gaps(case.passes.means(keep)).tolist() if fits else [None] * len(worst)
    return [
        Knockout(tuple(case.names[i] for i in k), None, predicted, value)
        for (k, predicted), value in zip(worst, measured, strict=True)
    ]


def try_minimality(case: RunCase, circuit: Collection[str], allowance: int, predict: Predictor) -> list[Knockout]:
    """For every component the knockout under which it matters most by prediction, measured as far as it goes."""
    members, n = case.components.indices(circuit), len(case.names)
    best = best_minimality(members, relevant(members, _supports(case), n, predict), n, predict)
    affordable = best[: max(0, min(allowance, case.passes.left) // 2)]
    measured = list[float | None]([None] * len(best))
    if affordable:
        keep = minimality_masks(members, [(k, v) for v, k, _ in affordable], n)
        measured[: len(affordable)] = gaps(case.passes.means(keep)).tolist()
    return [
        Knockout(tuple(case.names[i] for i in k), case.names[v], predicted, value)
        for (v, k, predicted), value in zip(best, measured, strict=True)
    ]


def try_idle(case: Case, circuit: Collection[str]) -> Mapping[str, float]:
    """``m(C) - m(C∖v)`` of every node v as far as the budget goes: minimality without a knockout, signed."""
    members = case.components.indices(circuit)
    affordable = members[: case.passes.left]
    if len(affordable) < len(members):
        case.skipped.append(f"whether {len(members) - len(affordable):,} nodes are idle")
    if not affordable:
        return {}
    keep = minimality_masks(members, [((), v) for v in affordable], len(case.names))
    added = drops(case.passes.means(keep)).tolist()
    return {case.names[v]: value for v, value in zip(affordable, added, strict=True)}


def _supports(case: RunCase) -> list[Set]:
    """The recovered sets, strongest first."""
    return [s for s, _ in case.spectrum.mean_output().sorted().terms() if s]
