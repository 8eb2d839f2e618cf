"""The circuits of an audit: what the polynomial chooses, what a search by forward passes makes of it, both measured."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from spex_mech.auditing.audit_engines import Engines
from spex_mech.auditing.case import RunCase
from spex_mech.auditing.circuit_search import Goal, MeasuredSets, best_row, first_of, search_circuits
from spex_mech.auditing.faithfulness import SIZES, counts, model_distance, performance_ratio, ranked
from spex_mech.auditing.findings import Search, SizeRow, Verified
from spex_mech.auditing.knockouts import Predictor
from spex_mech.auditing.passes import seed_of
from spex_mech.auditing.rankings import marginal_effects, order_one, single_ablation
from spex_mech.auditing.verdicts import FAITHFUL_WITHIN, is_faithful
from spex_mech.circuit.select import Aim, Selection, choose_path
from spex_mech.walsh.certainty.stability import jaccard

SPLITS = 100  # of the prompts into halves, one of which chooses


@dataclass(frozen=True, eq=False)
class Circuits:
    """What was chosen, the masks it took, and what predicts masks near it best (the polynomial, or the search)."""

    circuit: Verified
    sizes: list[SizeRow]
    search: Search
    predict: Predictor


def choose_circuits(case: RunCase, size: int | None, allowance: int, seconds: float) -> Circuits:
    """The audited circuit and the sets at MIB's sizes, to preserve and to help the metric.

    The polynomial's choices are measured; then, as far as the allowance goes and unless the run measured every mask,
    single ablations, the first of rankings, and a search near the best. Where that found a better set, it is taken.
    """
    n, helping = len(case.names), case.helping
    wanted = sorted({*counts(n), *(() if size is None else (size,))})
    aims: dict[int, Aim] = {0: "preserve", helping: "raise" if helping > 0 else "lower"}
    paths = {
        sign: _filled(case, choose_path(case.spectrum, case.components, wanted, aim=aim, seconds=seconds))
        for sign, aim in aims.items()
    }
    smallest = _smallest_faithful(case) if size is None else paths[0][wanted.index(min(size, n))]
    first = [smallest, *paths[0], *paths[helping]]
    least = case.passes.cost(case.masks(s.names for s in first))
    allowance = least if case.has_every_mask else max(least, allowance)
    goals = [Goal(k, sign) for sign in aims for k in wanted if 0 < k < n]
    pool = search_circuits(case, goals, _starts(case, first, goals, allowance, helping), allowance, shrink=size is None)
    pick = partial(_pick, case, pool)
    found = {
        sign: dict(zip(wanted, map(pick, _goals(wanted, sign), path), strict=True)) for sign, path in paths.items()
    }
    rows = [SizeRow(s, k, found[0][k], found[helping][k]) for s, k in zip(SIZES, counts(n), strict=True)]
    circuit = found[0][min(size, n)] if size is not None else _pick_smallest(case, pool, smallest)
    return Circuits(circuit, rows, _on_halves(case, pool, helping), _nearby(case, pool))


def verify(case: RunCase, chosen: Sequence[Selection]) -> list[Verified]:
    """Selections by forward passes."""
    keep = case.masks(s.names for s in chosen)
    values, predicted = case.passes.means(keep).tolist(), case.predict(keep).tolist()
    return [
        Verified(s.names, guess, value, case.faithfulness(value), s.method, s.gap)
        for s, value, guess in zip(chosen, values, predicted, strict=True)
    ]


def verify_found(case: RunCase) -> Verified:
    """All nodes of the run's circuit."""
    keep = case.masks([case.found.circuit.names])
    value, guess = float(case.passes.means(keep)[0]), float(case.predict(keep)[0])
    return Verified(case.found.circuit.names, guess, value, case.faithfulness(value), "all nodes")


def add_kl(case: RunCase, engines: Engines, circuit: Verified, sizes: list[SizeRow]) -> tuple[Verified, list[SizeRow]]:
    """KL(intact ‖ circuit) of the audited circuit and of the preserving sets."""
    keep = case.masks([circuit.names, *(row.preserve.names for row in sizes)])
    if len(keep.unique(dim=0)) > case.ledger.left:
        case.skipped.append("KL of the chosen circuits")
        return circuit, sizes
    kl = engines.passes("kl", metric="kl").means(keep).tolist()
    rows = [replace(row, preserve=replace(row.preserve, kl=value)) for row, value in zip(sizes, kl[1:], strict=True)]
    return replace(circuit, kl=kl[0]), rows


def _smallest_faithful(case: RunCase) -> Selection:
    """The smallest set whose predicted faithfulness is within a tenth of 1, else the nearest."""
    many = len({i for s, _ in case.spectrum.terms() for i in s}) > 20
    path = choose_path(case.spectrum, case.components, nested=many)
    ends = case.predict(torch.tensor([[False], [True]]).expand(2, len(case.names)))
    spread = float(ends[1] - ends[0])
    if abs(spread) <= case.floor:
        return path[-1]
    distance = (case.predict(case.masks(s.names for s in path)) - ends[1]).abs() / abs(spread)
    good = (distance <= FAITHFUL_WITHIN).nonzero()[:, 0]
    return path[int(good[0] if len(good) else distance.argmin())]


def _filled(case: RunCase, path: Sequence[Selection]) -> list[Selection]:
    """Where a size has room, components without any term in the polynomial are added (absent is not zero): by the size
    of their marginal effect on the run's masks, and to help only those that do."""
    used = {case.names[i] for s, _ in case.spectrum.terms() for i in s}
    effects = {name: e for name, e in marginal_effects(case.found.responses).items() if name not in used}
    if path[0].aim != "preserve":
        sign = 1 if path[0].aim == "raise" else -1
        effects = {name: e for name, e in effects.items() if sign * e > 0}
    order = ranked(effects, absolute=True)
    filled = []
    for one in path:
        added = set(order[: max(0, one.size - len(one.names))])
        names = tuple(name for name in case.names if name in added or name in one.names)
        filled.append(replace(one, names=names, method=f"{one.method}, filled up") if added else one)
    return filled


def _starts(
    case: RunCase, first: Sequence[Selection], goals: Sequence[Goal], allowance: int, sign: int
) -> Iterator[Sequence[Collection[str]]]:
    """Sets that a search begins with; each group is measured before the next is made."""
    yield [s.names for s in first]
    rankings = [order_one(case.found.responses, case.seed)]
    if len(case.names) + len(first) + len(goals) < allowance:
        yield [[name for name in case.names if name != gone] for gone in case.names]
        rankings.append(single_ablation(case.passes, case.names))
    yield first_of(rankings, goals, sign)


def _goals(sizes: Sequence[int], sign: int) -> list[Goal]:
    return [Goal(size, sign) for size in sizes]


def _pick(case: RunCase, pool: MeasuredSets, goal: Goal, selection: Selection) -> Verified:
    """The polynomial's selection, or what the search found, where that is better."""
    chosen, row = verify(case, [selection])[0], pool.best(goal)
    values = torch.tensor([chosen.value, float(pool.means[row])], dtype=torch.float64)
    ahead = pool.score(values, goal.sign).diff()
    return _of_pool(case, pool, row) if float(ahead) > case.floor else chosen


def _pick_smallest(case: RunCase, pool: MeasuredSets, selection: Selection) -> Verified:
    chosen, row = verify(case, [selection])[0], pool.smallest()
    size, distance = int(pool.keep[row].sum()), abs(float(pool.means[row]) - case.intact)
    good = is_faithful(chosen.faithfulness) and len(chosen.names) <= size
    return chosen if good and distance >= abs(chosen.value - case.intact) - case.floor else _of_pool(case, pool, row)


def _of_pool(case: RunCase, pool: MeasuredSets, row: int) -> Verified:
    keep, value = pool.keep[row], float(pool.means[row])
    names = tuple(case.names[i] for i in keep.nonzero()[:, 0].tolist())
    guess = pool.predicted.get(keep.numpy().tobytes())
    predicted = float(case.predict(keep[None])[0]) if guess is None else guess
    return Verified(names, predicted, value, case.faithfulness(value), "search" if row >= pool.begun else "run")


def _nearby(case: RunCase, pool: MeasuredSets) -> Predictor:
    """What predicted the search's proposals better, before they were measured."""
    known = [row for row in range(len(pool.keep)) if pool.keep[row].numpy().tobytes() in pool.predicted]
    if not known or pool.surface is None:
        return case.predict
    keep, truth = pool.keep[known], pool.means[known]
    guessed = torch.tensor([pool.predicted[row.numpy().tobytes()] for row in keep], dtype=torch.float64)
    ours, theirs = ((x - truth).square().mean() for x in (guessed, case.predict(keep)))
    return pool.surface.predict if ours < theirs else case.predict


def _on_halves(case: RunCase, pool: MeasuredSets, helping: int) -> Search:
    """CPR and CMD where one half of the prompts chooses among all sets measured and the other half reports."""
    prompts, sizes = pool.values.shape[1], counts(len(case.names))
    if prompts < 2:
        return Search(pool.spent, 0, None, None, None)
    generator = torch.Generator().manual_seed(seed_of(case.seed, "halves"))
    ends = case.passes.values(torch.tensor([[True], [False]]).expand(2, len(case.names))).double()
    found = []
    for _ in range(SPLITS):
        order = torch.randperm(prompts, generator=generator)
        found.append(_on_half(pool, ends, (order[: prompts // 2], order[prompts // 2 :]), sizes, helping))
    areas = [torch.tensor(column, dtype=torch.float64).nanmedian() for column in zip(*found, strict=True)]
    cpr, cmd, overlap = (None if bool(a.isnan()) else float(a) for a in areas)
    return Search(pool.spent, SPLITS, cpr, cmd, overlap)


def _on_half(
    pool: MeasuredSets, ends: Tensor, halves: tuple[Tensor, Tensor], sizes: Sequence[int], helping: int
) -> tuple[float, float, float]:
    """CPR, CMD, and the mean Jaccard index of the preserving sets that the halves choose; NaN without an effect."""
    means = [pool.values[:, half].mean(1) for half in halves]
    intact, empty = (ends[row, halves[1]].mean() for row in (0, 1))
    limits = [(float(ends[0, half].mean()), float(ends[1, half].mean())) for half in halves]
    if intact == empty:
        return (float("nan"),) * 3
    rows = {
        (k, sign, half): best_row(pool.sizes, means[half], Goal(k, sign), limits[half])
        for k, sign, half in {(k, s, h) for k in sizes for s, h in ((0, 0), (helping, 0), (0, 1))}
    }
    f = {key: float((means[1][row] - empty) / (intact - empty)) for key, row in rows.items()}
    inside = [k for k in dict.fromkeys(sizes) if k]
    overlaps = [float(jaccard(*(pool.keep[[rows[k, 0, half]]] for half in (0, 1))).nan_to_num(1.0)) for k in inside]
    cpr = performance_ratio([f[k, helping, 0] for k in sizes])
    cmd = model_distance([f[k, 0, 0] for k in sizes])
    return cpr, cmd, sum(overlaps) / len(overlaps) if overlaps else float("nan")
