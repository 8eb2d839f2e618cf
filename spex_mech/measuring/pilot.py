"""A pilot for `keep_prob="auto"`: a few masks at each of several keep-probabilities decide what the run is drawn with.

Where almost everything is ablated the metric lies at its floor under every mask, where almost nothing is it lies at its
intact value; what masks say of components is how the metric differs between them. The rule therefore looks for the
keep-probability at which the metric is **spread most between masks**, which for a behaviour that is there or not is
where half of the masks break it. The spread is the mean absolute deviation from the median of the mean over prompts.
Few masks know it roughly, so `DEFAULT_KEEP` stays unless the spread there is below the largest by more than two
standard errors of their difference. Masks are drawn in two strata around it (`AROUND`): a polynomial from one
keep-probability alone predicts that one a little better and the others badly.

Where a mask meets some prompts only, so do the pilot's, the same ones at every candidate; both ends meet them all. What
a prompt has beside the others at the ends, mixed by how much of the effect a candidate keeps, is taken out before the
spread is.

A pilot's mask m at q is mask m of any design if its stratum is q. So the first masks of the run are the pilot's; its
other masks, and the intact and the all-ablated model, are what it costs: at most `SHARE` of the budget.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spex_mech.errors import ResponseError
from spex_mech.measuring.ask import AUTO, Ask
from spex_mech.measuring.crossing import Crossing
from spex_mech.measuring.lens import Chunks, Lens
from spex_mech.measuring.masks import AROUND, DEFAULT_KEEP
from spex_mech.measuring.measure import describe_experiment, measure_in
from spex_mech.store.discovery import RESPONSES, recall_responses
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.masks.prompt_design import PromptDesign

CANDIDATES = tuple(AROUND)
SHARE = 0.1  # of the budget, at most, goes into masks that only the pilot uses
FEWEST, MOST = 5, 64  # masks a keep-probability: fewer say nothing, more are not needed
FOLDER = "pilot"  # in the run folder
_RESAMPLES = 200
_ERRORS = 2.0
_CHEAP = 256  # masks a chunk from which on a pilot is one chunk


@dataclass(frozen=True)
class Pilot:
    """Which masks a pilot asks: all kept, all ablated, then `masks_each` at every candidate.

    Attributes:
        design: what the run is drawn with if the default stays, with the whole budget.
        keep_probs: the candidates, ascending, the default among them.
    """

    design: MaskDesign
    masks_each: int
    keep_probs: tuple[float, ...] = CANDIDATES
    prompts: PromptDesign | None = None

    @property
    def n_masks(self) -> int:
        return 2 * self.each_end + self.masks_each * len(self.keep_probs)

    @property
    def each_end(self) -> int:
        """Masks with all kept, and as many with all ablated: as many as meet every prompt."""
        return _masks_an_end(self.prompts)

    def at(self, keep_probs: tuple[float, ...]) -> MaskDesign:
        """What the run is drawn with if these strata are chosen; the budget less what only the pilot uses."""
        spent = self.n_masks - self.masks_each
        return replace(self.design, keep_probs=keep_probs, n_masks=self.design.n_masks - spent)

    def rows(self, keep_prob: float) -> Int[Tensor, " row"]:
        """The numbers of the pilot's masks at a candidate."""
        first = 2 * self.each_end + self.keep_probs.index(keep_prob) * self.masks_each
        return torch.arange(first, first + self.masks_each)

    def beginning(self, keep_probs: tuple[float, ...]) -> Int[Tensor, " row"]:
        """The numbers of those of the pilot's masks that are the first of `at(keep_probs)`, in order."""
        mask = torch.arange(self.masks_each)
        table = torch.stack([self.rows(q) for q in keep_probs])
        return table[mask // self.design.repeats % len(keep_probs), mask]

    def keep(self) -> Bool[Tensor, "mask component"]:
        """The pilot's masks."""
        ends = torch.tensor([[True], [False]]).repeat_interleave(self.each_end, 0).expand(-1, self.design.n)
        return torch.cat([ends, *(self.at((q,)).keep(0, self.masks_each) for q in self.keep_probs)])

    @property
    def met(self) -> Int[Tensor, "mask slot"] | None:
        """Which prompts the pilot's masks meet; None: all."""
        if self.prompts is None:
            return None
        slots = torch.arange(self.each_end * self.prompts.per_mask) % self.prompts.prompts
        end = slots.reshape(self.each_end, -1).sort(1).values
        return torch.cat([end, end, *[self.prompts.met(0, self.masks_each)] * len(self.keep_probs)])

    def headline(self, values: Float[Tensor, "mask slot"]) -> Float[Tensor, " mask"]:
        """The mean over prompts under the pilot's masks, as far as those that each mask met tell; float64."""
        met, values = self.met, values.double()
        if met is None or self.prompts is None:
            return values.mean(1)
        ends = [slice(0, self.each_end), slice(self.each_end, 2 * self.each_end)]
        intact, empty = (torch.empty(self.prompts.prompts).double().put_(met[end], values[end]) for end in ends)
        effect, means = float(intact.mean() - empty.mean()), values.mean(1)
        means[ends[0]], means[ends[1]] = intact.mean(), empty.mean()
        for q in self.keep_probs:
            rows = self.rows(q)
            kept = (float(means[rows].mean()) - float(empty.mean())) / effect if effect else 0.5
            kept = min(1.0, max(0.0, kept))
            apart = kept * (intact - intact.mean()) + (1 - kept) * (empty - empty.mean())
            means[rows] = (values[rows] - apart[met[rows]]).mean(1)
        return means

    def describe(self) -> dict[str, Any]:
        """What the masks are made from, in the place of a design's record."""
        design = self.design.to_dict() | {"keep_probs": list(self.keep_probs)}
        return {**design, "kind": FOLDER, "masks_each": self.masks_each}


@dataclass(frozen=True)
class PilotChoice:
    """What a pilot found.

    Attributes:
        keep_prob: where the metric is spread most, as far as the pilot can tell.
        reason: in words.
        spread, mean: of the metric between masks, by candidate, in its unit; empty where there was no pilot.
        intact, empty: the metric with all kept and with all ablated.
        masks: how many masks only the pilot used.
    """

    keep_prob: float
    reason: str
    spread: Mapping[float, float]
    mean: Mapping[float, float]
    intact: float | None = None
    empty: float | None = None
    masks_each: int = 0
    masks: int = 0

    @property
    def keep_probs(self) -> tuple[float, ...]:
        """What the run is drawn with."""
        return AROUND[self.keep_prob]

    def describe(self) -> dict[str, Any]:
        """For the run record; candidates as a list, and the share of the intact effect that each keeps."""
        rows = [{"keep_prob": q, "mean": self.mean[q], "spread": self.spread[q], **self._kept(q)} for q in self.spread]
        figures = {"intact": self.intact, "empty": self.empty, "masks_each": self.masks_each, "masks": self.masks}
        chosen = {"keep_prob": self.keep_prob, "keep_probs": list(self.keep_probs), "reason": self.reason}
        return {**chosen, "candidates": rows, **figures}

    def _kept(self, keep_prob: float) -> dict[str, float | None]:
        if self.intact is None or self.empty is None or self.intact == self.empty:
            return {"effect_kept": None}
        return {"effect_kept": (self.mean[keep_prob] - self.empty) / (self.intact - self.empty)}


@dataclass(frozen=True, eq=False)
class Settled:
    """The design of a run once its keep-probability is known.

    Attributes:
        known: values under its first masks, where a pilot has measured them.
        choice: how "auto" was decided; None where it was not asked, or every mask is measured.
        prompts: which prompts its masks meet; None: all.
    """

    design: MaskDesign
    known: Float[Tensor, "known slot"] | None = None
    choice: PilotChoice | None = None
    prompts: PromptDesign | None = None

    @property
    def record(self) -> dict[str, Any]:
        """For the run record."""
        return {} if self.choice is None else {FOLDER: self.choice.describe()}

    @property
    def begin(self) -> int:
        """The first mask that has not been measured."""
        return 0 if self.known is None else len(self.known)


def settle_keep(lens: Lens, design: MaskDesign, ask: Ask, crossing: Crossing) -> Settled:
    """The design with the keep-probability that a pilot chooses, where "auto" was asked; else the design.

    In a run folder the pilot's masks are journaled and kept in a folder inside, and never measured twice. Raises
    `ResponseError` where the folder holds a run that had no pilot, or a pilot of another experiment.
    """
    prompts = crossing.deal(design)
    if ask.keep_prob != AUTO or design.kind != "stratified":
        return Settled(design, prompts=prompts)
    pilot = plan_pilot(design, prompts)
    if pilot is None:
        reason = f"{design.n_masks:,} masks are too few to spend a tenth of them on a pilot; this is the default"
        return Settled(design, None, PilotChoice(DEFAULT_KEEP, reason, {}, {}), prompts)
    values = _fly(pilot, lens, ask)
    choice = choose_keep(pilot, values)
    chosen = pilot.at(choice.keep_probs)
    return Settled(chosen, values[pilot.beginning(choice.keep_probs)], choice, crossing.deal(chosen))


def plan_pilot(design: MaskDesign, prompts: PromptDesign | None = None) -> Pilot | None:
    """The pilot of a design; None where a tenth of its masks would not pay for `FEWEST` at each candidate but one."""
    each = (int(SHARE * design.n_masks) - 2 * _masks_an_end(prompts)) // (len(CANDIDATES) - 1)
    return None if each < FEWEST else Pilot(design, min(each, MOST), prompts=prompts)


def _masks_an_end(prompts: PromptDesign | None) -> int:
    return 1 if prompts is None else -(-prompts.prompts // prompts.per_mask)


@dataclass(frozen=True)
class _Table:
    """Which prompts the masks of a pilot meet, as a table."""

    prompts: int
    per_mask: int
    table: Int[Tensor, "mask slot"]

    def met(self, start: int = 0, stop: int | None = None) -> Int[Tensor, "mask slot"]:
        return self.table[start:stop]


def _fly(pilot: Pilot, lens: Lens, ask: Ask) -> Float[Tensor, "mask slot"]:
    """The values of the pilot's masks."""
    record = describe_experiment(lens, pilot.design, pilot.prompts) | {"design": pilot.describe()}
    folder = None if ask.folder is None else ask.folder / FOLDER
    if folder is not None and (folder.parent / RESPONSES).exists() and not (folder / RESPONSES).exists():
        raise ResponseError(f"{folder.parent} holds a run without a pilot; keep_prob='auto' needs a folder of its own.")
    responses = recall_responses(folder, record, lens.components)
    if responses is None:
        keep = pilot.keep()

        def cut(size: int) -> Chunks:
            size = size if size < _CHEAP else len(keep)
            return ((first, keep[first : first + size]) for first in range(0, len(keep), size))

        met = pilot.met
        meets = None if met is None else _Table(lens.outputs, met.shape[1], met)
        responses, _ = measure_in(folder, lens, record, keep, cut=cut, meets=meets)
    return responses.values


def choose_keep(pilot: Pilot, values: Float[Tensor, "mask slot"]) -> PilotChoice:
    """The keep-probability of largest spread, or the default where that is not clearly less; see the module's text."""
    means = pilot.headline(values)
    by = torch.stack([means[pilot.rows(q)] for q in pilot.keep_probs])
    spread = deviation(by)
    default, widest = pilot.keep_probs.index(DEFAULT_KEEP), int(spread.argmax())
    gap, error = float(spread[widest] - spread[default]), _gap_error(by, widest, default, pilot.design.seed)
    clear = gap > _ERRORS * error
    chosen = pilot.keep_probs[widest if clear else default]
    return PilotChoice(
        chosen,
        _reason(chosen, pilot.keep_probs[widest], gap, error),
        dict(zip(pilot.keep_probs, spread.tolist(), strict=True)),
        dict(zip(pilot.keep_probs, by.mean(1).tolist(), strict=True)),
        float(means[0]),
        float(means[pilot.each_end]),
        pilot.masks_each,
        pilot.n_masks - pilot.masks_each,
    )


def deviation(values: Float[Tensor, "*stratum mask"]) -> Float[Tensor, "*stratum"]:
    """Mean absolute deviation from the median.

    >>> deviation(torch.tensor([0.0, 1.0, 5.0])).item()
    1.6666666269302368
    """
    middle = values.quantile(0.5, dim=-1, keepdim=True)
    return (values - middle).abs().mean(-1)


def _gap_error(by: Float[Tensor, "stratum mask"], one: int, other: int, seed: int) -> float:
    """Standard error of the difference of two spreads, by the bootstrap; mask m of all strata is drawn together."""
    generator, each = torch.Generator().manual_seed(seed), by.shape[1]
    drawn = torch.randint(each, (_RESAMPLES, each), generator=generator)
    gaps = deviation(by[one][drawn]) - deviation(by[other][drawn])
    return float(gaps.std()) * (each / (each - 1)) ** 0.5


def _reason(chosen: float, widest: float, gap: float, error: float) -> str:
    if widest == DEFAULT_KEEP:
        return f"the metric is spread most between masks at {chosen:g}"
    size = f"by {gap:.3g} ± {error:.2g}"
    if chosen == widest:
        return f"the metric is spread most between masks at {chosen:g}, more than at {DEFAULT_KEEP:g} {size}"
    return f"the metric is spread most between masks at {widest:g}, but not clearly more than at {chosen:g} ({size})"
