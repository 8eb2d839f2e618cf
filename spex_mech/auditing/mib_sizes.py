"""What do the first of a ranking do by themselves? Circuits at MIB's ten sizes; spends two masks a size at most."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from spex_mech.auditing.case import Case
from spex_mech.auditing.faithfulness import (
    auroc,
    auroc_over_sizes,
    counts,
    model_distance,
    performance_ratio,
    ranked,
)
from spex_mech.auditing.findings import RankingRow
from spex_mech.auditing.rankings import Ranking


@dataclass(frozen=True)
class ScoredSets:
    """Faithfulness of the best-scored sets at MIB's sizes: by the size of the score, and by how much it helps."""

    counts: tuple[int, ...]
    preserve: tuple[float, ...]
    help: tuple[float, ...]

    @property
    def cpr(self) -> float:
        return performance_ratio(self.help)

    @property
    def cmd(self) -> float:
        return model_distance(self.preserve)


def try_scores(case: Case, scores: Mapping[str, float]) -> ScoredSets | None:
    """By size for CMD, by signed score for CPR, as the benchmark does; None where the budget has no room."""
    sizes = counts(len(scores))
    helping = ranked({name: case.helping * score for name, score in scores.items()}, absolute=False)
    sets = [order[:count] for order in (ranked(scores, absolute=True), helping) for count in sizes]
    if case.passes.cost(case.masks(sets)) > case.passes.left:
        return None
    f = tuple(case.faithfulness(value) for value in case.measured(sets))
    return ScoredSets(sizes, f[: len(sizes)], f[len(sizes) :])


def try_ranking(case: Case, ranking: Ranking, known: Collection[str]) -> RankingRow:
    """A ranking by its circuits, and against a known one."""
    row, sets = against_known(ranking, known), try_scores(case, ranking.scores)
    if sets is None:
        return replace(row, note=f"{row.note}; no budget left for its circuits".lstrip("; "))
    return replace(row, cpr=sets.cpr, cmd=sets.cmd)


def against_known(ranking: Ranking, known: Collection[str]) -> RankingRow:
    """A ranking by the size of its scores against a known circuit; its circuits were not measured."""
    size = {name: abs(score) for name, score in ranking.scores.items()}
    order = ranked(size, absolute=True)
    return RankingRow(
        ranking.name, ranking.masks, None, None, auroc(size, known), auroc_over_sizes(order, known), ranking.note
    )
