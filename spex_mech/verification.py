"""The trials of an audit: each takes the case, spends part of its budget, and hands back frozen results."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spex_mech.audits import Fresh, RankingRow, SizeRow, Verified
from spex_mech.baselines import Ranking, marginal_effects, strengths
from spex_mech.circuit.graph import Circuit
from spex_mech.circuit.select import Aim, Selection, choose_path
from spex_mech.faithfulness import (
    SIZES,
    auroc,
    auroc_over_sizes,
    counts,
    faithfulness,
    model_distance,
    performance_ratio,
    ranked,
)
from spex_mech.knockouts import (
    Knockout,
    best_minimality,
    completeness_masks,
    gaps,
    kept,
    minimality_masks,
    relevant,
    worst_completeness,
)
from spex_mech.passes import Ledger, Passes, seed_of
from spex_mech.runs import Discovery
from spex_mech.walsh.decoding import r_squared
from spex_mech.walsh.design import MaskDesign
from spex_mech.walsh.spectrum import Spectrum

ENOUGH = 0.1  # of faithfulness: how near to 1 the audited circuit's prediction must be
RANDOM_SETS = 8  # a size, as the null
SHOWN = 512  # fresh masks whose values are kept


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
    shown = (tuple(values[:SHOWN].tolist()) for values in (truth, predicted))
    return Fresh(number, fresh_probs(case.found), r2 if r2 == r2 else None, rmse, *shown)


def smallest_faithful(case: Case, size: int | None, seconds: float) -> Selection:
    """The smallest set whose predicted faithfulness is within a tenth of 1, else the nearest; or the best of `size`."""
    if size is not None:
        return choose_path(case.spectrum, case.found.components, [size], seconds=seconds)[0]
    many = len({i for s, _ in case.spectrum.terms() for i in s}) > 20
    path = choose_path(case.spectrum, case.found.components, nested=many)
    ends = case.predict(torch.tensor([[False], [True]]).expand(2, len(case.names)))
    spread = float(ends[1] - ends[0])
    if abs(spread) <= case.floor:
        return path[-1]
    distance = (case.predict(case.masks(s.names for s in path)) - ends[1]).abs() / abs(spread)
    good = (distance <= ENOUGH).nonzero()[:, 0]
    return path[int(good[0] if len(good) else distance.argmin())]


def verify(case: Case, chosen: Sequence[Selection]) -> list[Verified]:
    """Selections by forward passes."""
    if not chosen:
        return []
    keep = case.masks(s.names for s in chosen)
    values, predicted = case.passes.means(keep).tolist(), case.predict(keep).tolist()
    return [
        Verified(s.names, guess, value, case.share(value), s.method, s.gap)
        for s, value, guess in zip(chosen, values, predicted, strict=True)
    ]


def verify_found(case: Case) -> Verified:
    """All nodes of the run's circuit."""
    keep = case.masks([case.found.circuit.names])
    value, guess = float(case.passes.means(keep)[0]), float(case.predict(keep)[0])
    return Verified(case.found.circuit.names, guess, value, case.share(value), "all nodes")


def try_sizes(case: Case, seconds: float) -> list[SizeRow]:
    """The best predicted sets at MIB's sizes, to preserve and to help, by forward passes.

    Where a size has room, components without any term in the polynomial are added (absent is not zero): by the size of
    their marginal effect on the run's masks, and to help only those that do.
    """
    sizes = counts(len(case.names))
    wanted = sorted(set(sizes))
    helping: Aim = "raise" if case.intact >= case.empty else "lower"
    found = []
    for aim in ("preserve", helping):
        path = choose_path(case.spectrum, case.found.components, wanted, aim=aim, seconds=seconds)
        found.append(dict(zip(wanted, verify(case, _filled(case, path)), strict=True)))
    first, second = found
    return [SizeRow(size, count, first[count], second[count]) for size, count in zip(SIZES, sizes, strict=True)]


def _filled(case: Case, path: Sequence[Selection]) -> list[Selection]:
    used = {case.names[i] for s, _ in case.spectrum.terms() for i in s}
    effects = {name: e for name, e in marginal_effects(case.found.responses).items() if name not in used}
    if path[0].aim != "preserve":
        sign = 1 if path[0].aim == "raise" else -1
        effects = {name: e for name, e in effects.items() if sign * e > 0}
    order = ranked(effects, absolute=True)
    filled = []
    for one in path:
        added = set(order[: one.size - len(one.names)])
        names = tuple(name for name in case.names if name in added or name in one.names)
        filled.append(replace(one, names=names, method=f"{one.method}, filled up") if added else one)
    return filled


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


def our_ranking(case: Case, rows: Sequence[SizeRow], known: Collection[str]) -> RankingRow:
    """The chosen sets' areas, and the components' total strength against a known circuit."""
    cpr = performance_ratio([row.help.faithfulness for row in rows])
    cmd = model_distance([row.preserve.faithfulness for row in rows])
    ranking = Ranking("spex_mech", strengths(case.spectrum, case.names), len(case.found.responses))
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


def try_completeness(case: Case, circuit: Collection[str], allowance: int) -> list[Knockout]:
    """The knockouts with the largest predicted gaps, measured as far as the allowance goes."""
    members, n = case.found.components.indices(circuit), len(case.names)
    sets = relevant(members, _supports(case.spectrum), n, case.predict)
    worst = worst_completeness(members, sets, n, case.predict, max(1, min(16, allowance // 2)))
    keep = completeness_masks(members, [k for k, _ in worst], n)
    fits = case.passes.cost(keep) <= min(allowance, case.passes.left)
    measured = gaps(case.passes.means(keep)).tolist() if fits else [None] * len(worst)
    return [
        Knockout(tuple(case.names[i] for i in k), None, predicted, value)
        for (k, predicted), value in zip(worst, measured, strict=True)
    ]


def try_minimality(case: Case, circuit: Collection[str], allowance: int) -> list[Knockout]:
    """For every component the knockout under which it matters most by prediction, measured as far as it goes."""
    members, n = case.found.components.indices(circuit), len(case.names)
    sets = relevant(members, _supports(case.spectrum), n, case.predict)
    best = best_minimality(members, sets, n, case.predict)
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
