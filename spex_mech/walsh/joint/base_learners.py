"""The learners of the joint decoder: ways to fit a measured function, each fitted without every fold in turn.

A fitted learner predicts any mask, and has out-of-fold predictions of the masks it was fitted to: by versions that did
not see them. Sparse learners also have a polynomial. A probe is a learner's predictions of one fold, fitted without it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spex_mech.walsh.decoders.lines_and_trees import LinesAndTrees, ProxyKind
from spex_mech.walsh.decoders.proxyspex import ProxySpex, TreeChoice, Trials
from spex_mech.walsh.decoders.pursuit import Pursuit
from spex_mech.walsh.decoders.refit import prune
from spex_mech.walsh.decoders.trees import Boosting
from spex_mech.walsh.decoding import Samples, r_squared
from spex_mech.walsh.joint.gaussian import Posterior
from spex_mech.walsh.joint.parallel import in_parallel
from spex_mech.walsh.spectrum import Basis, Spectrum

_T = TypeVar("_T")
_Predict = Callable[[Bool[Tensor, "mask component"]], Float[Tensor, " mask"]]
_QUICK = 1 << 33  # masks × components²: a round of pursuit takes a fraction of a second up to this
FINE_FOLDS = 12  # folds of learners that take no time; the others' folds are made of them, fewer the longer a fit takes
MANY = 1 << 10  # masks: of more, a fold says enough of a learner, and half of them enough to learn a covariance from
PROBE_FOLD = 0  # the coarse fold of a probe
_PROBE_SETS = 800  # of the polynomial of a probe: time grows as their square
_ONE_AT_A_TIME = 1 << 12  # masks: of more, the covariances of one process fill gigabytes


@dataclass(frozen=True, eq=False)
class FittedLearner:
    """A learner after fitting.

    Attributes:
        out_of_fold: of every mask fitted to, what a version says that has not seen it; `r2` and `seconds` are its.
        polynomial: where it is a sparse one.
        refit: the same with more samples: what was chosen stays, what is solved for is solved for again.
        closed_form: makes what its Walsh spectrum is known of (`closed_form.ClosedForm`), where there is such a thing.
        own: what outputs have beside the headline, of rows (masks and outputs); `own_out_of_fold` is of those it was
            fitted to, by versions that had not seen their masks. Of learners from rows.
    """

    name: str
    predict: _Predict
    out_of_fold: Float[Tensor, " mask"]
    refit: Callable[["TrainingData"], "FittedLearner"]
    r2: float = float("nan")
    seconds: float = 0.0
    polynomial: Spectrum | None = None
    closed_form: Callable[[], Spectrum | Posterior] | None = None
    own: Callable[[Bool[Tensor, "row component"], Int[Tensor, " row"]], Float[Tensor, " row"]] | None = None
    own_out_of_fold: Float[Tensor, " row"] | None = None


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What learners are fitted to: samples, every mask's fine fold, and lines and trees, which several of them use."""

    samples: Samples
    fold: Int[Tensor, " mask"]
    basis: Basis
    seed: int
    lines_and_trees: LinesAndTrees
    rows: Samples | None = None
    _cache: dict[tuple[str, int], Any] = field(default_factory=dict)

    @property
    def many(self) -> bool:
        return len(self.fold) > MANY

    @property
    def max_parallel(self) -> int | None:
        """How many learners may be fitted at a time; None: any number."""
        return None if len(self.fold) <= _ONE_AT_A_TIME else 1

    def cached(self, name: str, number: int, make: Callable[[], Any]) -> Any:
        """What a learner makes for a fold: a probe of it may have made it before."""
        if (name, number) not in self._cache:
            self._cache[name, number] = make()
        return self._cache[name, number]

    @property
    def no_predictions(self) -> Float[Tensor, " mask"]:
        """The unseen predictions of what was fitted to all masks: none."""
        return torch.zeros(0, dtype=torch.float64)

    def coarse_folds(self) -> Int[Tensor, " mask"]:
        """The folds of learners that take long: as many as few masks need, four where there are many."""
        return coarse_folds(self.fold)

    @property
    def probed(self) -> Bool[Tensor, " mask"]:
        """The masks of the fold of a probe."""
        return self.coarse_folds() == PROBE_FOLD


def coarse_folds(fold: Int[Tensor, " mask"]) -> Int[Tensor, " mask"]:
    """Fewer folds, by the number of masks: what is fitted without a quarter of few masks is not what all would give."""
    return fold % (12 if len(fold) <= 160 else 6 if len(fold) <= 320 else 4)


class BaseLearner(Protocol):
    """A way to fit."""

    @property
    def name(self) -> str: ...

    def probe(self, data: TrainingData) -> Float[Tensor, " probed"]:
        """What a version of it that has not seen them says of the masks of one fold; on the CPU."""
        ...

    def cross_fit(self, data: TrainingData) -> FittedLearner: ...


def cross_fit_all(learners: list[BaseLearner], data: TrainingData) -> list[FittedLearner]:
    """Every learner fitted, with its cross-fitted R² and its seconds."""

    def fitted(learner: BaseLearner) -> FittedLearner:
        started = time.perf_counter()
        found = learner.cross_fit(data)
        r2 = r_squared(data.samples.mean_values.cpu(), found.out_of_fold.cpu())
        return replace(found, r2=r2, seconds=time.perf_counter() - started)

    return map_learners(fitted, learners, data)


def map_learners(do: Callable[[BaseLearner], _T], learners: list[BaseLearner], data: TrainingData) -> list[_T]:
    """Something for every learner, in their order. Those that share lines and trees go one after another; the others
    side by side, but for more masks than two processes may hold in memory."""
    grown = [learner for learner in learners if isinstance(learner, ProxySpexLearner | LinesAndTreesLearner)]
    groups = [group for group in (grown, *([learner] for learner in learners if learner not in grown)) if group]
    tasks = [lambda group=group: [(learner.name, do(learner)) for learner in group] for group in groups]
    found = in_parallel(tasks, data.max_parallel)
    by_name = dict(pair for pairs in found for pair in pairs)
    return [by_name[learner.name] for learner in learners]


@dataclass(frozen=True)
class PursuitLearner:
    """Matching pursuit, less the sets that are not significant, by least squares.

    Where it is quick it is fitted without each of the fine folds: a quarter fewer masks may be too few to find what
    all of them find. Only where a look at all triples and quadruples has found something do the folds look there too.
    """

    name: str
    pursuit: Pursuit

    def cross_fit(self, data: TrainingData) -> FittedLearner:
        keep = data.samples.keep
        whole = self._spectrum(keep, data.samples.mean_values, data.basis)
        wide = self.pursuit.wide > 2 and _has_rootless(whole)
        quick = not wide and not data.many and len(keep) * keep.shape[1] ** 2 <= _QUICK
        learner = self if wide else replace(self, pursuit=replace(self.pursuit, wide=0))
        return learner._whole(whole, learner._unseen(data, data.fold if quick else data.coarse_folds()))

    def probe(self, data: TrainingData) -> Float[Tensor, " probed"]:
        return self._of_fold(data, data.probed)

    def _unseen(self, data: TrainingData, fold: Int[Tensor, " mask"]) -> Float[Tensor, " mask"]:
        out_of_fold = torch.zeros(len(fold), dtype=torch.float64)
        for number in fold.unique().tolist():
            out_of_fold[fold == number] = self._of_fold(data, fold == number)
        return out_of_fold

    def _of_fold(self, data: TrainingData, out: Bool[Tensor, " mask"]) -> Float[Tensor, " row"]:
        keep, values = data.samples.keep, data.samples.mean_values
        inside = (~out).to(keep.device)
        return self._spectrum(keep[inside], values[inside], data.basis).evaluate(keep[~inside]).cpu().double()

    def _whole(self, whole: Spectrum, out_of_fold: Float[Tensor, " mask"]) -> FittedLearner:
        def refitted(more: TrainingData) -> FittedLearner:
            found = self._spectrum(more.samples.keep, more.samples.mean_values, more.basis)
            return self._whole(found, more.no_predictions)

        return FittedLearner(
            self.name, whole.evaluate, out_of_fold, refitted, polynomial=whole, closed_form=lambda: whole
        )

    def _spectrum(self, keep: Tensor, values: Tensor, basis: Basis) -> Spectrum:
        n = keep.shape[1]
        members = self.pursuit.find(keep, values, basis)
        return prune(keep, values, members, basis, tested=max(1, n * (n + 1) // 2), ridge=1e-9)


def _has_rootless(spectrum: Spectrum) -> bool:
    """Whether a set of three or more has no subset, one smaller, in the polynomial."""
    sets = set(spectrum.sets)
    return any(len(s) > 2 and not any((*s[:i], *s[i + 1 :]) in sets for i in range(len(s))) for s in sets)


@dataclass(frozen=True)
class ProxySpexLearner:
    """ProxySPEX: the refit of a proxy's strongest sets."""

    name: str
    proxy: ProxySpex

    def cross_fit(self, data: TrainingData) -> FittedLearner:
        trials = self.proxy.try_all(data.lines_and_trees)
        return self._whole(data, trials.best(), trials.unseen())

    def probe(self, data: TrainingData) -> Float[Tensor, " probed"]:
        """By at most `_PROBE_SETS` sets: time grows as their square."""
        short = replace(self.proxy, most_sets=min(self.proxy.most_sets, _PROBE_SETS))
        tried = short.try_fold(data.lines_and_trees, PROBE_FOLD)
        return Trials({PROBE_FOLD: tried}, data.lines_and_trees).unseen()[data.probed.cpu()]

    def _whole(self, data: TrainingData, choice: TreeChoice, out_of_fold: Float[Tensor, " mask"]) -> FittedLearner:
        whole = self.proxy.polynomial(choice, data.lines_and_trees, None)
        return FittedLearner(
            self.name,
            whole.evaluate,
            out_of_fold,
            lambda more: self._whole(more, choice, data.no_predictions),
            polynomial=whole,
            closed_form=lambda: whole,
        )


@dataclass(frozen=True)
class LinesAndTreesLearner:
    """A Lasso line (which is a polynomial), boosted trees, or trees on what the line leaves of the values."""

    name: ProxyKind

    def cross_fit(self, data: TrainingData) -> FittedLearner:
        return self._whole(data, data.lines_and_trees.out_of_fold(self.name))

    def probe(self, data: TrainingData) -> Float[Tensor, " probed"]:
        return data.lines_and_trees.predict(PROBE_FOLD, self.name, data.lines_and_trees.keep[data.probed.cpu()])

    def _whole(self, data: TrainingData, out_of_fold: Float[Tensor, " mask"]) -> FittedLearner:
        grown, name = data.lines_and_trees, self.name
        line = grown.line(None) if name == "line" else None
        return FittedLearner(
            name,
            lambda keep: grown.predict(None, name, keep),
            out_of_fold,
            lambda more: self._whole(more, data.no_predictions),
            polynomial=line,
            closed_form=lambda: grown.polynomial(None, name),
        )


@dataclass(frozen=True)
class TreesLearner:
    """Boosted trees with settings of their own."""

    name: str
    boosting: Boosting

    def cross_fit(self, data: TrainingData) -> FittedLearner:
        fold = data.coarse_folds().cpu()
        out_of_fold = torch.zeros(len(fold), dtype=torch.float64)
        for number in fold.unique().tolist():
            out_of_fold[fold == number] = self._of_fold(data, number)
        return self._whole(data, out_of_fold)

    def probe(self, data: TrainingData) -> Float[Tensor, " probed"]:
        return self._of_fold(data, PROBE_FOLD)

    def _of_fold(self, data: TrainingData, number: int) -> Float[Tensor, " row"]:
        keep, values, out = data.lines_and_trees.keep, data.lines_and_trees.values, data.coarse_folds().cpu() == number

        def made() -> Tensor:
            return self.boosting.train(keep[~out], values[~out], data.seed).predict(keep[out])

        return data.cached(self.name, number, made)

    def _whole(self, data: TrainingData, out_of_fold: Float[Tensor, " mask"]) -> FittedLearner:
        ensemble = self.boosting.train(data.lines_and_trees.keep, data.lines_and_trees.values, data.seed)
        return FittedLearner(
            self.name, ensemble.predict, out_of_fold, lambda more: self._whole(more, data.no_predictions)
        )
