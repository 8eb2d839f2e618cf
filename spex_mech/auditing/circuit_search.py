"""`search`: circuits of given sizes, by forward passes near the best ones so far: a trust region for sets.

Small circuits are unlike the masks a run draws: almost all is ablated, and what is kept is not kept at random. So a
polynomial extrapolates to them, and random small sets say nothing (hardly one of them works). Here the measurements
follow the search. Every round a Gaussian process, given everything measured so far, proposes for each size and aim the
best set near the best one known; these are measured, and the next round knows them.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spex_mech.auditing.case import RunCase
from spex_mech.auditing.passes import seed_of
from spex_mech.auditing.rankings import Ranking
from spex_mech.auditing.search_landscape import Landscape, Surface, climb, score
from spex_mech.auditing.verdicts import FAITHFUL_WITHIN

TIED = 1e-6  # of the whole effect: scores nearer than this are the same
_TRIES = 64  # neighbours that are looked at where the best one is known already
_PATIENCE = 8  # rounds without a better set, after which a search ends
_GAIN = 1e-3  # of the whole effect: what counts as better
_RADIUS = 0.6  # flips from the best set known, as a share of its size

KeepRow = Bool[Tensor, " component"]


@dataclass(frozen=True)
class Goal:
    """The best set of at most `size` components: nearest to the intact metric (sign 0), or farthest up or down."""

    size: int
    sign: int


@dataclass(eq=False)
class MeasuredSets:
    """Masks with their values; it grows as the search measures. `predicted` is of proposals, before they were.

    `begun` is how many of them the run had measured. Where its masks met some prompts each, none: the best of many
    noisy values would be the luckiest. They are only learnt from then, which `learnt` has with all others.
    """

    case: RunCase
    keep: Bool[Tensor, "mask component"]
    values: Float[Tensor, "mask prompt"]
    begun: int = 0
    spent: int = 0
    predicted: dict[bytes, float] = field(default_factory=dict)
    words: set[bytes] = field(default_factory=set)
    surface: Surface | None = None

    @classmethod
    def of(cls, case: RunCase) -> "MeasuredSets":
        """The run's own masks, if they met all prompts, and both ends."""
        run = case.found.responses
        begun = len(run) if run.met is None else 0
        values = run.values.double().cpu() if begun else torch.zeros(0, run.prompts, dtype=torch.float64)
        pool = cls(case, run.keep[:begun].cpu(), values, begun)
        pool.words = {row.numpy().tobytes() for row in pool.keep}
        pool.add(torch.tensor([[True], [False]]).expand(2, len(case.names)))
        return pool

    @property
    def means(self) -> Float[Tensor, " mask"]:
        """The headline metric of every mask."""
        return self.values.mean(1)

    @property
    def learnt(self) -> tuple[Bool[Tensor, "mask component"], Float[Tensor, " mask"]]:
        """What a landscape is learnt from: the run's masks, then what was measured since, and their means."""
        if self.begun:
            return self.keep, self.means
        run = self.case.found.responses
        return torch.cat([run.keep.cpu(), self.keep]), torch.cat([run.mean.cpu(), self.means])

    @property
    def sizes(self) -> Int[Tensor, " mask"]:
        """How many components every mask keeps."""
        return self.keep.sum(1)

    def score(self, values: Float[Tensor, " mask"], sign: int) -> Float[Tensor, " mask"]:
        """What is to be made as large as possible."""
        return score(values, self.case.intact, sign)

    def add(self, keep: Bool[Tensor, "mask component"]) -> None:
        """Measure masks; those that were measured before cost nothing."""
        if not len(keep):
            return
        self.spent += self.case.passes.cost(keep)
        self.words |= {row.numpy().tobytes() for row in keep}
        self.keep = torch.cat([self.keep, keep])
        self.values = torch.cat([self.values, self.case.passes.values(keep).double()])

    def knows(self, keep: KeepRow) -> bool:
        """Whether a mask was measured."""
        return keep.numpy().tobytes() in self.words

    def best(self, goal: Goal) -> int:
        """The row of the best known set for a goal; ties to fewer components, then to the one measured first."""
        return best_row(self.sizes, self.means, goal, (self.case.intact, self.case.empty))

    def smallest(self) -> int:
        """The row of the smallest known set whose faithfulness is within a tenth of 1; of several the nearest."""
        distance = (self.means - self.case.intact).abs()
        distance = distance.masked_fill(distance > FAITHFUL_WITHIN * abs(self.case.intact - self.case.empty), torch.inf)
        sizes = self.keep.sum(1).masked_fill(distance.isinf(), self.keep.shape[1] + 1)
        ties = (sizes == sizes.min()).nonzero()[:, 0]
        return int(ties[distance[ties].argmin()])


def best_row(sizes: Int[Tensor, " mask"], means: Float[Tensor, " mask"], goal: Goal, ends: tuple[float, float]) -> int:
    """The row that serves a goal best; `ends` are the metric intact and with everything ablated."""
    scores = score(means, ends[0], goal.sign).masked_fill(sizes > goal.size, -torch.inf)
    ties = (scores >= scores.max() - TIED * abs(ends[0] - ends[1])).nonzero()[:, 0]
    return int(ties[sizes[ties].argmin()])


def search_circuits(
    case: RunCase, goals: Sequence[Goal], starts: Iterable[Sequence[Collection[str]]], allowance: int, *, shrink: bool
) -> MeasuredSets:
    """Measure at most `allowance` masks to reach the goals as well as possible; ends where eight rounds gain nothing.

    Args:
        starts: groups of sets to begin with, dearest first: a group is measured as far as it fits.
        shrink: whether the smallest faithful set is a goal too.
    """
    pool = MeasuredSets.of(case)
    for group in starts:
        pool.add(_affordable(pool, case.masks(group), allowance - pool.spent))
    if pool.spent >= allowance:
        return pool
    landscape = Landscape.learn(*pool.learnt, seed_of(case.seed, "search"))
    generator = torch.Generator().manual_seed(seed_of(case.seed, "neighbours"))
    number, last, reached = 0, 0, _reached(pool, goals)
    while pool.spent < allowance and number - last < _PATIENCE:
        pool.surface = landscape.surface(*pool.learnt)
        rows = _proposals(pool, pool.surface, goals, number, generator, shrink=shrink)[: allowance - pool.spent]
        if not rows:
            break
        keep = torch.stack(rows)
        for row, value in zip(rows, pool.surface.predict(keep).tolist(), strict=True):
            pool.predicted[row.numpy().tobytes()] = value
        pool.add(keep)
        number, now = number + 1, _reached(pool, goals)
        if (now - reached).max() > _GAIN * abs(case.intact - case.empty):
            last, reached = number, now
    pool.surface = landscape.surface(*pool.learnt)
    return pool


def _affordable(pool: MeasuredSets, keep: Bool[Tensor, "mask component"], room: int) -> Bool[Tensor, "mask component"]:
    """The first masks that fit, among them all that cost nothing."""
    chosen, new = list[int](), set[bytes]()
    for row, mask in enumerate(keep):
        word = mask.numpy().tobytes()
        if len(new) < room or word in new or not pool.case.passes.cost(mask[None]):
            chosen.append(row)
            new |= {word} if pool.case.passes.cost(mask[None]) else set()
    return keep[chosen]


def _reached(pool: MeasuredSets, goals: Sequence[Goal]) -> Float[Tensor, " goal"]:
    """How well every goal is served; last, by how few components the metric is held."""
    scores = [float(pool.score(pool.means[pool.best(goal)][None], goal.sign)) for goal in goals]
    fewer = -float(pool.sizes[pool.smallest()]) * abs(pool.case.intact - pool.case.empty)
    return torch.tensor([*scores, fewer], dtype=torch.float64)


def _proposals(
    pool: MeasuredSets,
    surface: Surface,
    goals: Sequence[Goal],
    number: int,
    generator: torch.Generator,
    *,
    shrink: bool,
) -> list[KeepRow]:
    """One new set for every goal, from the best known one; every other round from the best one of a larger size."""
    found = list[KeepRow]()
    larger = {goal: other for goal, other in pairwise(goals) if other.sign == goal.sign}
    if shrink:
        start = pool.keep[pool.smallest()]
        size = int(start.sum())
        goals = [*goals, Goal(max(1, size - 1 - size // 10 * (number % 2)), 0)]
    for goal in goals:
        whole = number % 2 and goal in larger
        start = pool.keep[pool.best(larger[goal] if whole else goal)]
        radius = pool.keep.shape[1] if whole else max(2, int(_RADIUS * goal.size))
        proposed: KeepRow | None = climb(surface, start, goal.size, radius, pool.case.intact, goal.sign)
        if proposed is not None and _is_known(pool, found, proposed):
            proposed = _neighbour(pool, surface, found, proposed, goal, generator)
        if proposed is not None:
            found.append(proposed)
    return found


def _is_known(pool: MeasuredSets, found: Sequence[KeepRow], keep: KeepRow) -> bool:
    return pool.knows(keep) or any(torch.equal(keep, other) for other in found)


def _neighbour(
    pool: MeasuredSets,
    surface: Surface,
    found: Sequence[KeepRow],
    keep: KeepRow,
    goal: Goal,
    generator: torch.Generator,
) -> KeepRow | None:
    """The best predicted of some random neighbours that were not measured; None where there is none."""
    tried = _moved(keep, goal.size, generator)
    values = surface.predict(tried)
    scores = pool.score(values, goal.sign)
    for row in scores.argsort(descending=True, stable=True).tolist():
        if not _is_known(pool, found, tried[row]):
            return tried[row]
    return None


def _moved(keep: KeepRow, size: int, generator: torch.Generator) -> Bool[Tensor, "row component"]:
    """Random neighbours a few swaps away, with the room of the size filled in part."""
    many = torch.randint(1, max(2, size // 8) + 1, (_TRIES, 1), generator=generator)
    lot = torch.rand(_TRIES, len(keep), generator=generator)
    lost, won = (torch.where(here, lot, 2.0).argsort(1).argsort(1) for here in (keep, ~keep))
    kept = keep & (lost >= many)
    room = (size - kept.sum(1, keepdim=True)).clamp(min=0)
    return kept | (~keep & (won < torch.minimum(many, room)))


def first_of(rankings: Iterable[Ranking], goals: Sequence[Goal], sign: int) -> list[tuple[str, ...]]:
    """What rankings choose for goals: their highest by signed score, or for sign 0 by its size."""
    found = []
    for ranking in rankings:
        scores = {name: sign * score for name, score in ranking.scores.items()}
        helping = Ranking(ranking.name, scores, ranking.masks)
        found += [helping.first(goal.size, absolute=not goal.sign) for goal in goals]
    return found
