"""What every decoder takes and gives: `Samples` in, `Decoded` out, by the protocol `Decoder`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from spex_mech.errors import DecodeError, ResponseError
from spex_mech.walsh.link_function import Link
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.spectrum import Spectrum

_LEAST_FOLDS = 4  # that are not empty: of fewer different masks nothing can be told
RECOVERED_FROM = 0.9  # held-out R² from which a polynomial is called recovered


class Outcome(Enum):
    """How a decoding ended. Each member carries what it means and what to do about it."""

    COMPLETE = ("every mask was measured; the polynomial is exact", "nothing to do")
    RECOVERED = ("the polynomial predicts masks it was not fitted on", "read held-out R² to see how well")
    PARTIAL = (
        "part of the variance on unseen masks is not explained",
        "raise the budget, or move the keep-probability nearer 1",
    )
    NOTHING_FOUND = (
        "no set of components explains the responses better than their mean",
        "check that the components matter to this metric at all, or raise the budget",
    )
    BUDGET_TOO_SMALL = (
        "the masks are too few for what the decoder was asked to find",
        "raise the budget, lower the degree, or take fewer components",
    )

    def __init__(self, meaning: str, remedy: str) -> None:
        self.meaning = meaning
        self.remedy = remedy


@dataclass(frozen=True, eq=False)
class Samples:
    """A measured Boolean function: row m of `values` is what came out under row m of `keep`.

    `design` is what drew the masks, where that is known: coded decoders need it, the others read the
    keep-probability from it.

    Where a mask met only some of the outputs (prompts), `met` says which: column s of row m is of output ``met[m, s]``.
    Then `outputs` of them make up the headline, the mean over all.
    """

    keep: Bool[Tensor, "mask component"]
    values: Float[Tensor, "mask slot"]
    design: MaskDesign | None = None
    met: Int[Tensor, "mask slot"] | None = None
    outputs: int = 0

    def __post_init__(self) -> None:
        if self.keep.ndim != 2 or self.values.ndim != 2 or self.keep.shape[0] != self.values.shape[0]:
            raise DecodeError(
                f"keep {tuple(self.keep.shape)} and values {tuple(self.values.shape)} must be [mask, component] "
                f"and [mask, output] with as many masks."
            )
        if not all((*self.keep.shape, self.values.shape[1])):
            raise DecodeError(
                f"{self.keep.shape[0]:,} masks of {self.keep.shape[1]:,} components with {self.values.shape[1]:,} "
                f"outputs hold nothing to decode; at least one of each is needed."
            )
        if self.keep.dtype != torch.bool or not self.values.is_floating_point():
            raise DecodeError(
                f"keep must be Boolean (True: untouched) and values floating-point, not {self.keep.dtype} and "
                f"{self.values.dtype}."
            )
        self._check_met()
        bad = (~self.values.isfinite()).any(1).nonzero()[:, 0]
        if len(bad):
            first = int(bad[0])
            raise ResponseError(
                f"the values are not finite for {len(bad):,} of {len(self.values):,} masks, first mask {first:,} "
                f"({int((~self.keep[first]).sum()):,} components ablated). Mend the metric, or leave those masks out."
            )

    def _check_met(self) -> None:
        """Whether the outputs met are those that there are."""
        if self.met is None:
            object.__setattr__(self, "outputs", self.values.shape[1])
            return
        shape, low, high = self.met.shape, int(self.met.min()), int(self.met.max())
        if shape != self.values.shape or self.met.dtype != torch.long or low < 0 or high >= self.outputs:
            raise DecodeError(
                f"met {tuple(shape)} must say for each of the values {tuple(self.values.shape)} which of "
                f"{self.outputs:,} outputs it is of, by numbers from 0; it has {low:,} to {high:,}."
            )

    def __repr__(self) -> str:
        drawn = "" if self.design is None else f", {self.design.kind} design"
        return f"Samples: {len(self.keep):,} masks of {self.n:,} components × {self.values.shape[1]:,} outputs{drawn}"

    @property
    def n(self) -> int:
        return self.keep.shape[1]

    @property
    def mean_values(self) -> Float[Tensor, " mask"]:
        """The headline function: the mean over outputs, in float64. Of masks that met some outputs only, the mean over
        those, less what each has in the mean over its masks: unbiased, with the outputs' spread as noise."""
        values = self.values.double()
        if self.met is None:
            return values.mean(1)
        means = self.output_means
        return (values - (means - means.mean())[self.met]).mean(1)

    @property
    def output_means(self) -> Float[Tensor, " output"]:
        """The mean of every output over the masks that met it, float64; of one that none met, the mean of the means."""
        if self.met is None:
            return self.values.double().mean(0)
        met = self.met.flatten()
        count = torch.bincount(met, minlength=self.outputs)
        means = torch.bincount(met, self.values.double().flatten(), self.outputs) / count.clamp(min=1)
        return torch.where(count > 0, means, means[count > 0].mean())

    @property
    def keep_prob(self) -> float:
        """The keep-probability of the design, or the share of kept bits where no design is known."""
        known = None if self.design is None else self.design.mean_keep_prob
        return float(self.keep.double().mean()) if known is None else known

    @property
    def groups(self) -> Bool[Tensor, "mask component"] | Int[Tensor, " mask"]:
        """What must stay on one side of every split: equal masks, and runs of masks that share bits by design.

        The masks themselves, or, where there are such runs, the number of each mask's group.
        """
        design = self.design
        if design is None or design.repeats == 1 or len(self.keep) != design.n_masks:
            return self.keep
        _, word = torch.unique(self.keep.cpu(), dim=0, return_inverse=True)
        run = torch.arange(len(word)) // design.repeats
        links = coo_array((torch.ones(len(word)), (run, word + int(run.max()) + 1)), (2 * len(word),) * 2)
        _, group = connected_components(links, directed=False)
        return torch.from_numpy(group).long()[run]

    def take(self, rows: Int[Tensor, " row"]) -> "Samples":
        """Some of the masks; the design is kept for its keep-probability."""
        met = None if self.met is None else self.met[rows]
        return Samples(self.keep[rows], self.values[rows], self.design, met, self.outputs)


@dataclass(frozen=True, eq=False)
class CrossFit:
    """A fit to all masks, and what versions of it that had not seen a mask say of that mask.

    Attributes:
        spectrum: the fit as a polynomial, uncorrected: `fitted` projected on its sets.
        fitted: what the fit says of every mask; they had a part in it.
        unseen: what a version without the mask says of it.
    """

    spectrum: Spectrum
    fitted: Float[Tensor, " mask"]
    unseen: Float[Tensor, " mask"]


@dataclass(frozen=True, eq=False)
class Decoded:
    """What a decoder found: the polynomial, how it ended, and the evidence.

    `stats` always has ``heldout_r2`` (R² of predictions of masks by fits that had not seen them: of the masks that were
    set aside, or where there is a `cross_fit` of all masks; None where every mask was measured, NaN where the values do
    not vary), ``masks_judged`` (how many that are), ``masks_fitted``, ``masks_heldout`` and ``seconds``.

    `before` is the polynomial that had not seen the masks set aside, where `spectrum` is the same sets solved for again
    with them; ``set_aside_r2`` is its.

    With a `link` other than the identity the spectrum is on the latent scale, ``f = link(spectrum)``, and `raw` is the
    decoding of the metric itself.

    `headline` is what the samples say of the headline row by row, where masks met some outputs only.
    """

    spectrum: Spectrum
    outcome: Outcome
    stats: Mapping[str, Any] = field(default_factory=dict)
    link: Link = Link()
    raw: "Decoded | None" = None
    before: Spectrum | None = None
    cross_fit: CrossFit | None = None
    headline: Samples | None = None

    def __str__(self) -> str:
        """How it ended, how well it predicts, and the polynomial; a line each.

        >>> print(Decoded(Spectrum.from_terms(2, {(0,): 0.5}), Outcome.PARTIAL, {"heldout_r2": 0.4}))
        Decoded: partial, held-out R² 0.400
          Spectrum of 1 set of 2 components up to order 1, walsh basis; strongest: (0,) +0.5
        """
        r2 = self.stats.get("heldout_r2")
        told = "" if r2 is None else f", held-out R² {r2:.3f}"
        link = "" if self.link.is_identity else f", behind a link: {self.link.describe()}"
        return f"Decoded: {self.outcome.name.lower().replace('_', ' ')}{told}{link}\n  {self.spectrum}"

    __repr__ = __str__

    @property
    def cross_fitted(self) -> bool:
        """Whether ``heldout_r2`` is of all masks, each predicted by fits without it."""
        return "heldout_r2_stderr" in self.stats

    @property
    def judged(self) -> "Decoded":
        """The decoding as it was before it saw the held-out masks."""
        return self if self.before is None else replace(self, spectrum=self.before, before=None)

    def predict(self, keep: Bool[Tensor, "mask component"]) -> Float[Tensor, " mask"]:
        """The metric (mean over outputs) under each mask, link applied, float64."""
        return self.link(self.spectrum.mean_output().evaluate(keep))

    def on_latent_scale(self, samples: Samples) -> Samples:
        """The mean over outputs as it is on the latent scale to first order; without a link, the samples themselves.

        ``z = η + (f - g(η)) g'(η) / mean g'(η)²`` with η this polynomial: one step of Fisher scoring. Its noise is that
        of f, not what the inverse of g would make of it.
        """
        if self.link.is_identity:
            return samples
        eta = self.spectrum.mean_output().evaluate(samples.keep)
        slope = self.link.derivative(eta)
        missed = samples.mean_values.to(eta.device) - self.link(eta)
        return Samples(samples.keep, (eta + missed * slope / slope.square().mean())[:, None], samples.design)


@runtime_checkable
class Decoder(Protocol):
    """Samples → polynomial. Implementations are frozen dataclasses whose fields are their options."""

    @property
    def name(self) -> str: ...

    def decode(self, samples: Samples, *, seed: int) -> Decoded:
        """The polynomial behind the samples; same samples, options and seed give the same bits."""
        ...


def split_masks(
    groups: Bool[Tensor, "mask component"] | Int[Tensor, " mask"], share: float, seed: int
) -> tuple[Int[Tensor, " fit"], Int[Tensor, " heldout"]]:
    """Row numbers to fit and to hold out, on the CPU, ascending.

    `share` of the different masks (or groups, see `Samples.groups`) is held out, at least one where there are two, and
    never all. Equal ones stay on one side, so that nothing held out was seen. Raises `DecodeError` unless
    0 < share < 1.
    """
    if not 0 < share < 1:
        raise DecodeError(f"the share of masks to hold out must lie strictly between 0 and 1, not {share}.")
    rank = _shuffled(groups, seed)
    distinct = int(rank.max()) + 1 if len(rank) else 0
    held = rank < min(max(1, round(share * distinct)), distinct - 1)
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]


def fold_masks(
    groups: Bool[Tensor, "mask component"] | Int[Tensor, " mask"], folds: int, seed: int
) -> Int[Tensor, " mask"]:
    """The fold, 0 to ``folds - 1``, of every mask, for cross-validation; equal masks or groups share one, on the CPU.

    >>> sorted(fold_masks(torch.eye(4).bool(), 2, seed=0).tolist())
    [0, 0, 1, 1]
    """
    return _shuffled(groups, seed) % folds


def folds_of(samples: Samples, rows: Int[Tensor, " fit"], folds: int, seed: int, decoder: str) -> Int[Tensor, " fit"]:
    """`fold_masks` of some rows. Raises `DecodeError` where too few different masks are left to cross-fit on."""
    fold = fold_masks(samples.groups[rows.to(samples.groups.device)], folds, seed)
    if len(fold.unique()) < min(_LEAST_FOLDS, folds):
        different = len(torch.unique(samples.groups.cpu(), dim=0))
        raise DecodeError(
            f"{decoder} was given {len(samples.keep):,} masks, but only {different} different ones (masks that share "
            f"their bits count once); it needs at least {_LEAST_FOLDS + 1} to hold some out and cross-fit on the rest. "
            "Draw new masks, over more components, or use 'exact' where all masks are measured."
        )
    return fold


def _shuffled(groups: Bool[Tensor, "mask component"] | Int[Tensor, " mask"], seed: int) -> Int[Tensor, " mask"]:
    """The rank of every mask in a random order of the different masks or groups."""
    if not len(groups):
        return torch.zeros(0, dtype=torch.long)
    _, which = torch.unique(groups.cpu(), dim=0, return_inverse=True)
    order = torch.randperm(int(which.max()) + 1, generator=torch.Generator().manual_seed(seed))
    return order[which]


def r_squared(truth: Float[Tensor, " mask"], predicted: Float[Tensor, " mask"]) -> float:
    """R² = 1 - Σ(f - f̂)² / Σ(f - mean f)², in float64; NaN where the truth does not vary beyond rounding.

    >>> r_squared(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 2.0]))
    1.0
    """
    if not len(truth):
        return float("nan")
    truth, predicted = truth.double(), predicted.double()
    spread = float(((truth - truth.mean()) ** 2).sum())
    rounding = len(truth) * (4 * torch.finfo(torch.float64).eps * float(truth.abs().max())) ** 2
    return 1 - float(((truth - predicted) ** 2).sum()) / spread if spread > rounding else float("nan")


def r_squared_error(truth: Float[Tensor, " mask"], predicted: Float[Tensor, " mask"]) -> float:
    """Standard error of `r_squared` over masks drawn independently, by the delta method: with ``A = mean (f - f̂)²`` and
    ``B = mean (f - mean f)²`` it is that of the mean of ``((f - f̂)² - A)/B - (A/B²)((f - mean f)² - B)``. NaN below
    two masks, or where the truth does not vary.

    >>> round(r_squared_error(torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, 2.0, 2.0])), 3)
    0.165
    """
    truth, predicted = truth.double(), predicted.double()
    missed, apart = (truth - predicted).square(), (truth - truth.mean()).square()
    if len(truth) < 2 or not float(apart.mean()) > 0:
        return float("nan")
    ratio = missed.mean() / apart.mean()
    return float(((missed - ratio * apart) / apart.mean()).std() / len(truth) ** 0.5)


def judge(spectrum: Spectrum, heldout_r2: float) -> Outcome:
    """The outcome of a decoding whose masks were enough: by R² on masks that nothing was fitted to or chosen by.

    Recovered from 0.9 on; nothing found where only the mean was, or where the polynomial predicts no better than it.

    >>> judge(Spectrum.from_terms(2, {(): 1.0, (0,): 0.5}), 0.4).name
    'PARTIAL'
    """
    if not (spectrum.orders > 0).any() or not heldout_r2 > 0:
        return Outcome.NOTHING_FOUND
    return Outcome.RECOVERED if heldout_r2 >= RECOVERED_FROM else Outcome.PARTIAL
