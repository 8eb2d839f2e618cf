"""The parts of the joint decoder: ways to fit a measured function, each fitted without every fold in turn.

A fitted part predicts any mask, and has for the masks it was fitted to the predictions of versions of it that did not
see them. Sparse parts also have a polynomial. A look at a part is its predictions of one fold, by a version without it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spex_mech.walsh.decoders.lines_and_trees import Base, Grown
from spex_mech.walsh.decoders.proxyspex import ProxySpex, TreeChoice, Trials
from spex_mech.walsh.decoders.pursuit import Pursuit
from spex_mech.walsh.decoders.refit import prune
from spex_mech.walsh.decoders.trees import Boosting
from spex_mech.walsh.decoding import Samples, r_squared
from spex_mech.walsh.joint.concurrency import both, side_by_side
from spex_mech.walsh.joint.gaussian import GaussianProcess, Posterior, Trained
from spex_mech.walsh.joint.neural import Network
from spex_mech.walsh.spectrum import Basis, Spectrum

_T = TypeVar("_T")
_Predict = Callable[[Bool[Tensor, "mask component"]], Float[Tensor, " mask"]]
_QUICK = 1 << 33  # masks × components²: a round of pursuit takes a fraction of a second up to this
FINE = 12  # folds of parts that take no time; the others' folds are made of them, fewer the longer a fit takes
MANY = 1 << 10  # masks: of more, a fold says enough of a part, and half of them enough to learn a covariance from
LOOKED = 0  # the coarse fold that is looked at
_LOOKED_SETS = 800  # of a polynomial that is looked at: time grows as their square
_TOGETHER = 1 << 12  # masks: of more, the covariances of one process fill gigabytes


@dataclass(frozen=True, eq=False)
class Fitted:
    """A part after fitting.

    Attributes:
        unseen: of every mask fitted to, what a version says that has not seen it; `r2` and `seconds` are its.
        polynomial: where it is a sparse one.
        again: the same with more samples: what was chosen stays, what is solved for is solved for again.
        closed: makes what its Walsh spectrum is known of in closed form (`closed.ClosedForm`), where there is one.
    """

    name: str
    predict: _Predict
    unseen: Float[Tensor, " mask"]
    again: Callable[["Given"], "Fitted"]
    r2: float = float("nan")
    seconds: float = 0.0
    polynomial: Spectrum | None = None
    closed: Callable[[], Spectrum | Posterior] | None = None


@dataclass(frozen=True, eq=False)
class Given:
    """What parts are fitted to: samples, the fine fold of every mask, and lines and trees, which several parts use."""

    samples: Samples
    fold: Int[Tensor, " mask"]
    basis: Basis
    seed: int
    grown: Grown
    _made: dict[tuple[str, int], Any] = field(default_factory=dict)

    @property
    def many(self) -> bool:
        return len(self.fold) > MANY

    @property
    def at_once(self) -> int | None:
        """How many parts may be fitted at a time; None: any number."""
        return None if len(self.fold) <= _TOGETHER else 1

    def once(self, name: str, number: int, make: Callable[[], Any]) -> Any:
        """What a part makes for a fold: a look at it may have made it before."""
        if (name, number) not in self._made:
            self._made[name, number] = make()
        return self._made[name, number]

    @property
    def nothing(self) -> Float[Tensor, " mask"]:
        """The unseen predictions of what was fitted to all masks: none."""
        return torch.zeros(0, dtype=torch.float64)

    def coarse(self) -> Int[Tensor, " mask"]:
        """The folds of parts that take long: as many as few masks need, four where there are many."""
        return coarse(self.fold)

    @property
    def looked(self) -> Bool[Tensor, " mask"]:
        """The masks of the fold that is looked at."""
        return self.coarse() == LOOKED


def coarse(fold: Int[Tensor, " mask"]) -> Int[Tensor, " mask"]:
    """Fewer folds, by the number of masks: what is fitted without a quarter of few masks is not what all would give."""
    return fold % (12 if len(fold) <= 160 else 6 if len(fold) <= 320 else 4)


class Part(Protocol):
    """A way to fit."""

    @property
    def name(self) -> str: ...

    def look(self, given: Given) -> Float[Tensor, " looked"]:
        """What a version of it that has not seen them says of the masks of one fold; on the CPU."""
        ...

    def cross_fit(self, given: Given) -> Fitted: ...


def fit_parts(parts: list[Part], given: Given) -> list[Fitted]:
    """Every part fitted, with its cross-fitted R² and its seconds."""

    def fitted(part: Part) -> Fitted:
        started = time.perf_counter()
        found = part.cross_fit(given)
        r2 = r_squared(given.samples.mean_values.cpu(), found.unseen.cpu())
        return replace(found, r2=r2, seconds=time.perf_counter() - started)

    return for_each(fitted, parts, given)


def for_each(do: Callable[[Part], _T], parts: list[Part], given: Given) -> list[_T]:
    """Something for every part, in their order. Those that share lines and trees go one after another; the others side
    by side, but for more masks than two processes may hold in memory."""
    grown = [part for part in parts if isinstance(part, ProxyPart | GrownPart)]
    groups = [group for group in (grown, *([part] for part in parts if part not in grown)) if group]
    tasks = [lambda group=group: [(part.name, do(part)) for part in group] for group in groups]
    found = side_by_side(tasks, given.at_once)
    by_name = dict(pair for pairs in found for pair in pairs)
    return [by_name[part.name] for part in parts]


@dataclass(frozen=True)
class PursuitPart:
    """Matching pursuit, less the sets that are not significant, by least squares.

    Where it is quick it is fitted without each of the fine folds: a quarter fewer masks may be too few to find what
    all of them find. Only where a look at all triples and quadruples has found something do the folds look there too.
    """

    name: str
    pursuit: Pursuit

    def cross_fit(self, given: Given) -> Fitted:
        keep = given.samples.keep
        whole = self._spectrum(keep, given.samples.mean_values, given.basis)
        wide = self.pursuit.wide > 2 and _has_rootless(whole)
        quick = not wide and not given.many and len(keep) * keep.shape[1] ** 2 <= _QUICK
        part = self if wide else replace(self, pursuit=replace(self.pursuit, wide=0))
        return part._whole(whole, part._unseen(given, given.fold if quick else given.coarse()))

    def look(self, given: Given) -> Float[Tensor, " looked"]:
        return self._of_fold(given, given.looked)

    def _unseen(self, given: Given, fold: Int[Tensor, " mask"]) -> Float[Tensor, " mask"]:
        unseen = torch.zeros(len(fold), dtype=torch.float64)
        for number in fold.unique().tolist():
            unseen[fold == number] = self._of_fold(given, fold == number)
        return unseen

    def _of_fold(self, given: Given, out: Bool[Tensor, " mask"]) -> Float[Tensor, " row"]:
        keep, values = given.samples.keep, given.samples.mean_values
        inside = (~out).to(keep.device)
        return self._spectrum(keep[inside], values[inside], given.basis).evaluate(keep[~inside]).cpu().double()

    def _whole(self, whole: Spectrum, unseen: Float[Tensor, " mask"]) -> Fitted:
        def again(more: Given) -> Fitted:
            found = self._spectrum(more.samples.keep, more.samples.mean_values, more.basis)
            return self._whole(found, more.nothing)

        return Fitted(self.name, whole.evaluate, unseen, again, polynomial=whole, closed=lambda: whole)

    def _spectrum(self, keep: Tensor, values: Tensor, basis: Basis) -> Spectrum:
        n = keep.shape[1]
        members = self.pursuit.find(keep, values, basis)
        return prune(keep, values, members, basis, tested=max(1, n * (n + 1) // 2), ridge=1e-9)


def _has_rootless(spectrum: Spectrum) -> bool:
    """Whether a set of three or more has no subset, one smaller, in the polynomial."""
    sets = set(spectrum.sets)
    return any(len(s) > 2 and not any((*s[:i], *s[i + 1 :]) in sets for i in range(len(s))) for s in sets)


@dataclass(frozen=True)
class ProxyPart:
    """ProxySPEX: the refit of a proxy's strongest sets."""

    name: str
    proxy: ProxySpex

    def cross_fit(self, given: Given) -> Fitted:
        trials = self.proxy.try_all(given.grown)
        return self._whole(given, trials.best(), trials.unseen())

    def look(self, given: Given) -> Float[Tensor, " looked"]:
        """By at most `_LOOKED_SETS` sets: time grows as their square."""
        short = replace(self.proxy, most_sets=min(self.proxy.most_sets, _LOOKED_SETS))
        return Trials({LOOKED: short.try_fold(given.grown, LOOKED)}, given.grown).unseen()[given.looked.cpu()]

    def _whole(self, given: Given, choice: TreeChoice, unseen: Float[Tensor, " mask"]) -> Fitted:
        whole = self.proxy.polynomial(choice, given.grown, None)
        return Fitted(
            self.name,
            whole.evaluate,
            unseen,
            lambda more: self._whole(more, choice, given.nothing),
            polynomial=whole,
            closed=lambda: whole,
        )


@dataclass(frozen=True)
class GrownPart:
    """A Lasso line (which is a polynomial), boosted trees, or trees on what the line leaves of the values."""

    name: Base

    def cross_fit(self, given: Given) -> Fitted:
        return self._whole(given, given.grown.unseen(self.name))

    def look(self, given: Given) -> Float[Tensor, " looked"]:
        return given.grown.predict(LOOKED, self.name, given.grown.keep[given.looked.cpu()])

    def _whole(self, given: Given, unseen: Float[Tensor, " mask"]) -> Fitted:
        grown, name = given.grown, self.name
        line = grown.line(None) if name == "line" else None
        return Fitted(
            name,
            lambda keep: grown.predict(None, name, keep),
            unseen,
            lambda more: self._whole(more, given.nothing),
            polynomial=line,
            closed=lambda: grown.polynomial(None, name),
        )


@dataclass(frozen=True)
class TreesPart:
    """Boosted trees with settings of their own."""

    name: str
    boosting: Boosting

    def cross_fit(self, given: Given) -> Fitted:
        fold = given.coarse().cpu()
        unseen = torch.zeros(len(fold), dtype=torch.float64)
        for number in fold.unique().tolist():
            unseen[fold == number] = self._of_fold(given, number)
        return self._whole(given, unseen)

    def look(self, given: Given) -> Float[Tensor, " looked"]:
        return self._of_fold(given, LOOKED)

    def _of_fold(self, given: Given, number: int) -> Float[Tensor, " row"]:
        keep, values, out = given.grown.keep, given.grown.values, given.coarse().cpu() == number

        def made() -> Tensor:
            return self.boosting.train(keep[~out], values[~out], given.seed).predict(keep[out])

        return given.once(self.name, number, made)

    def _whole(self, given: Given, unseen: Float[Tensor, " mask"]) -> Fitted:
        ensemble = self.boosting.train(given.grown.keep, given.grown.values, given.seed)
        return Fitted(self.name, ensemble.predict, unseen, lambda more: self._whole(more, given.nothing))


@dataclass(frozen=True)
class GaussianPart:
    """A Gaussian process over all outputs."""

    name: str
    process: GaussianProcess

    def cross_fit(self, given: Given) -> Fitted:
        return self._of_halves(given) if given.many else self._of_folds(given)

    def look(self, given: Given) -> Float[Tensor, " looked"]:
        return self._of_half(given, 0).unseen(0, given.looked)

    def _of_folds(self, given: Given) -> Fitted:
        samples = given.samples
        found = self.process.train(samples.keep, samples.values, given.coarse(), given.basis, given.seed)
        return self._whole(found, found.given(samples.keep, samples.values), found.out_of_sample())

    def _of_halves(self, given: Given) -> Fitted:
        """Of many masks, a covariance is learned from each half, and each mask is predicted from all others; the first
        covariance is the one that stays."""
        unseen, half = torch.zeros(len(given.fold), dtype=torch.float64), given.coarse() % 2
        (stays, says), other = both(
            lambda: self._of_half(given, 0).without_each(0), lambda: self._of_half(given, 1), given.at_once
        )
        unseen[half == 0], unseen[half == 1] = says, other.without_each(1)[1]
        return self._whole(self._of_half(given, 0), stays, unseen)

    def _whole(self, learned: Trained, posterior: Posterior, unseen: Float[Tensor, " mask"]) -> Fitted:
        def again(more: Given) -> Fitted:
            return self._whole(learned, learned.given(more.samples.keep, more.samples.values), more.nothing)

        return Fitted(self.name, posterior.predict, unseen, again, closed=lambda: posterior)

    def _of_half(self, given: Given, number: int) -> Trained:
        samples, half = given.samples, given.coarse() % 2
        return given.once(
            self.name,
            number,
            lambda: self.process.train(samples.keep, samples.values, half, given.basis, given.seed, [number]),
        )


@dataclass(frozen=True)
class NeuralPart:
    """A neural ensemble over all outputs; its members are its cross-fits. With more samples it stays as it is."""

    name: str
    network: Network

    def cross_fit(self, given: Given) -> Fitted:
        samples, fold = given.samples, given.coarse()
        ensemble = given.once(
            self.name,
            LOOKED,
            lambda: self.network.train(samples.keep, samples.values, fold, given.basis, given.seed),
        )
        unseen = ensemble.out_of_sample(samples.keep, fold).cpu()

        def again(more: Given) -> Fitted:
            return Fitted(self.name, ensemble.predict, given.nothing, again)

        return Fitted(self.name, ensemble.predict, unseen, again)

    def look(self, given: Given) -> Float[Tensor, " looked"]:
        return self.cross_fit(given).unseen[given.looked.cpu()]
