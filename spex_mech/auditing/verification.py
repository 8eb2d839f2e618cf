"""The trials of an audit: each takes the case, spends part of its budget, and hands back frozen results."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spex_mech.auditing.baselines import Ranking, spectrum_strengths
from spex_mech.auditing.faithfulness import (
    auroc,
    auroc_over_sizes,
    counts,
    faithfulness,
    model_distance,
    performance_ratio,
    ranked,
)
from spex_mech.auditing.findings import Fresh, RankingRow, SizeRow
from spex_mech.auditing.knockouts import (
    Knockout,
    Predictor,
    best_minimality,
    completeness_masks,
    gaps,
    kept,
    minimality_masks,
    relevant,
    worst_completeness,
)
from spex_mech.auditing.passes import Ledger, Passes, seed_of
from spex_mech.circuit.graph import Circuit
from spex_mech.store.discovery import Discovery
from spex_mech.walsh.decoding import RECOVERED_FROM, r_squared
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.spectrum import Spectrum

ENOUGH = 0.1  # of faithfulness: how near to 1 the audited circuit's prediction must be
RANDOM_SETS = 8  # a size, as the null
KEPT_FRESH_VALUES = 512  # fresh masks whose values are kept


@dataclass(frozen=True, eq=False)
class Case:
    """What every trial needs: the run, the passes it may spend, the two ends of the metric, a seed."""

    found: Discovery
    passes: Passes
    ledger: Ledger
    seed: int
    intact: float
    empty: float

    @property
    def names(self) -> tuple[str, ...]:
        return self.found.components.names

    @property
    def spectrum(self) -> Spectrum:
        return self.found.spectrum

    @property
    def claims(self) -> Circuit:
        """What the run says of the metric itself; where it has a link, its circuit is of what lies before."""
        return self.found.raw_circuit or self.found.circuit

    @property
    def polynomial(self) -> Spectrum:
        """The polynomial of the metric itself; where the run has a link, not the latent one."""
        raw = self.found.decoded.raw
        return (self.found.decoded if raw is None else raw).spectrum.mean_output()

    @property
    def floor(self) -> float:
        """What counts as rounding, in the metric's unit."""
        return 1e-6 * abs(self.intact - self.empty)

    def masks(self, sets: Iterable[Collection[str]]) -> Bool[Tensor, "mask component"]:
        """Masks that keep exactly these names."""
        return kept(len(self.names), [self.found.components.indices(names) for names in sets])

    def share(self, value: float) -> float:
        """Faithfulness of a value."""
        return faithfulness(value, self.empty, self.intact)

    def predict(self, keep: Bool[Tensor, "mask component"]) -> Float[Tensor, " mask"]:
        return self.found.predict(keep).double()


def fresh_masks(case: Case, number: int) -> Bool[Tensor, "mask component"]:
    """Masks of the kind the run drew, from another seed; fair coins where it measured all, or coded ones."""
    return MaskDesign.stratified(len(case.names), number, fresh_probs(case.found), seed_of(case.seed, "fresh")).keep()


def fresh_probs(found: Discovery) -> tuple[float, ...]:
    """The keep-probabilities of the run's masks."""
    return tuple(found.responses.provenance.get("design", {}).get("keep_probs", ())) or (0.5,)


def try_fresh(case: Case, number: int) -> Fresh:
    """R² and root-mean-square error of the polynomial on masks drawn anew."""
    keep = fresh_masks(case, number)
    truth, predicted = case.passes.means(keep), case.predict(keep)
    r2 = r_squared(truth, predicted)
    rmse = float(((truth - predicted) ** 2).mean().sqrt())
    shown = (tuple(values[:KEPT_FRESH_VALUES].tolist()) for values in (truth, predicted))
    return Fresh(number, fresh_probs(case.found), r2 if r2 == r2 else None, rmse, *shown)


def add_random(case: Case, rows: Sequence[SizeRow], number: int) -> tuple[list[SizeRow], RankingRow]:
    """`number` random sets of every size, as the null: their faithfulness beside that of the chosen sets."""
    n, sizes = len(case.names), [row.count for row in rows]
    wanted = [count for count in sorted(set(sizes)) if 0 < count < n]
    generator = torch.Generator().manual_seed(seed_of(case.seed, "random"))
    orders = [torch.randperm(n, generator=generator).tolist() for _ in range(number)]
    keep = kept(n, [order[:count] for count in (0, n, *wanted) for order in orders])
    values = case.passes.means(keep).reshape(-1, number).tolist()
    f = {c: [case.share(v) for v in row] for c, row in zip((0, n, *wanted), values, strict=True)}
    found = [_beside(row, f[row.count]) if row.count in wanted else row for row in rows]
    paths = [[f[count][k] for count in sizes] for k in range(number)]
    cpr, cmd = (sum(map(area, paths)) / number for area in (performance_ratio, model_distance))
    return found, RankingRow("random sets", 0, cpr, cmd, 0.5, 0.5, f"mean of {number}")


def _beside(row: SizeRow, null: Sequence[float]) -> SizeRow:
    f, ours = torch.tensor(null, dtype=torch.float64), abs(1 - row.preserve.faithfulness)
    as_good = float(((1 - f).abs() <= ours).double().mean())
    return replace(row, random_mean=float(f.mean()), random_std=float(f.std()), random_as_good=as_good)


def our_ranking(case: Case, rows: Sequence[SizeRow], known: Collection[str], searched: int) -> RankingRow:
    """The chosen sets' areas, and the components' total strength against a known circuit.

    It cost the run's masks and those of the search.
    """
    cpr = performance_ratio([row.help.faithfulness for row in rows])
    cmd = model_distance([row.preserve.faithfulness for row in rows])
    ranking = Ranking("spex_mech", spectrum_strengths(case.spectrum, case.names), len(case.found.responses) + searched)
    return replace(_against(ranking, known), cpr=cpr, cmd=cmd)


def try_ranking(case: Case, ranking: Ranking, known: Collection[str]) -> RankingRow:
    """A baseline's circuits at MIB's sizes: by signed score for CPR, by size for CMD, as the benchmark does."""
    row, sign = _against(ranking, known), 1 if case.intact >= case.empty else -1
    helping = replace(ranking, scores={name: sign * score for name, score in ranking.scores.items()})
    sizes = counts(len(case.names))
    keep = case.masks([helping.first(count, absolute=way) for way in (False, True) for count in sizes])
    if case.passes.cost(keep) > case.passes.left:
        return replace(row, note=f"{row.note}; no budget left for its circuits".lstrip("; "))
    f = [case.share(value) for value in case.passes.means(keep).tolist()]
    return replace(row, cpr=performance_ratio(f[: len(sizes)]), cmd=model_distance(f[len(sizes) :]))


def _against(ranking: Ranking, known: Collection[str]) -> RankingRow:
    size = {name: abs(score) for name, score in ranking.scores.items()}
    order = ranked(size, absolute=True)
    return RankingRow(
        ranking.name, ranking.masks, None, None, auroc(size, known), auroc_over_sizes(order, known), ranking.note
    )


def try_completeness(case: Case, circuit: Collection[str], allowance: int, predict: Predictor) -> list[Knockout]:
    """The knockouts with the largest predicted gaps, measured as far as the allowance goes."""
    members, n = case.found.components.indices(circuit), len(case.names)
    sets = relevant(members, _supports(case.spectrum), n, predict)
    worst = worst_completeness(members, sets, n, predict, max(1, min(16, allowance // 2)))
    keep = completeness_masks(members, [k for k, _ in worst], n)
    fits = case.passes.cost(keep) <= min(allowance, case.passes.left)
    measured = gaps(case.passes.means(keep)).tolist() if fits else [None] * len(worst)
    return [
        Knockout(tuple(case.names[i] for i in k), None, predicted, value)
        for (k, predicted), value in zip(worst, measured, strict=True)
    ]


def try_minimality(case: Case, circuit: Collection[str], allowance: int, predict: Predictor) -> list[Knockout]:
    """For every component the knockout under which it matters most by prediction, measured as far as it goes."""
    members, n = case.found.components.indices(circuit), len(case.names)
    sets = relevant(members, _supports(case.spectrum), n, predict)
    best = best_minimality(members, sets, n, predict)
    affordable = best[: max(0, min(allowance, case.passes.left) // 2)]
    measured = list[float | None]([None] * len(best))
    if affordable:
        keep = minimality_masks(members, [(k, v) for v, k, _ in affordable], n)
        measured[: len(affordable)] = gaps(case.passes.means(keep)).tolist()
    return [
        Knockout(tuple(case.names[i] for i in k), case.names[v], predicted, value)
        for (v, k, predicted), value in zip(best, measured, strict=True)
    ]


def _supports(spectrum: Spectrum) -> list[tuple[int, ...]]:
    """The recovered sets, strongest first."""
    return [s for s, _ in spectrum.mean_output().sorted().terms() if s]


def cautions(case: Case, fresh: Fresh) -> tuple[str, ...]:
    """What keeps the figures from being read as usual."""
    found = []
    spread = float(case.found.responses.mean.std(correction=0))
    if abs(case.intact - case.empty) < spread:
        found.append(
            f"intact and empty differ by {abs(case.intact - case.empty):.3g}, less than the run's masks do "
            f"({spread:.3g}): what faithfulness, CPR and CMD divide by is small, so they are large and unstable"
        )
    if fresh.r2 is not None and fresh.r2 < RECOVERED_FROM:
        found.append(f"the polynomial explains {fresh.r2:.2f} of fresh masks' variance")
    if not case.found.link.is_identity:
        found.append(
            f"between the polynomial and the metric lies a link ({case.found.link.describe()}); the interactions and "
            "backups put to the test are those of the metric itself, some of which are the link's doing"
        )
    mean_keep = float(case.found.responses.keep.double().mean())
    if mean_keep > 0.75:
        found.append(
            f"the run kept {mean_keep:.2f} of the components, and small circuits keep few: the polynomial extrapolates "
            "there; what it predicts of them is worth little, what was measured counts"
        )
    return tuple(found)
