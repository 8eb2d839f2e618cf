"""Learners of all outputs at once: Gaussian processes and networks, whose relevances or features outputs share."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spex_mech.walsh.decoding import Samples
from spex_mech.walsh.joint.base_learners import PROBE_FOLD, FittedLearner, TrainingData
from spex_mech.walsh.joint.coregionalised import Coregionalised, RowsPosterior, TrainedRows
from spex_mech.walsh.joint.gaussian import GaussianProcess, Posterior, Trained
from spex_mech.walsh.joint.neural import Network
from spex_mech.walsh.joint.parallel import two_in_parallel

_SIXTHS = 6  # of many rows: what is predicted at a time


@dataclass(frozen=True)
class GaussianLearner:
    """A Gaussian process over all outputs."""

    name: str
    process: GaussianProcess

    def cross_fit(self, data: TrainingData) -> FittedLearner:
        return self._of_halves(data) if data.many else self._of_folds(data)

    def probe(self, data: TrainingData) -> Float[Tensor, " probed"]:
        return self._of_half(data, 0).unseen(0, data.probed)

    def _of_folds(self, data: TrainingData) -> FittedLearner:
        samples = data.samples
        found = self.process.train(samples.keep, samples.values, data.coarse_folds(), data.basis, data.seed)
        return self._whole(found, found.given(samples.keep, samples.values), found.out_of_sample())

    def _of_halves(self, data: TrainingData) -> FittedLearner:
        """Of many masks, a covariance is learned from each half, and each mask is predicted from all others; the first
        covariance is the one that stays."""
        out_of_fold, half = torch.zeros(len(data.fold), dtype=torch.float64), data.coarse_folds() % 2
        (stays, says), other = two_in_parallel(
            lambda: self._of_half(data, 0).without_each(0), lambda: self._of_half(data, 1), data.max_parallel
        )
        out_of_fold[half == 0], out_of_fold[half == 1] = says, other.without_each(1)[1]
        return self._whole(self._of_half(data, 0), stays, out_of_fold)

    def _whole(self, learned: Trained, posterior: Posterior, out_of_fold: Float[Tensor, " mask"]) -> FittedLearner:
        def refitted(more: TrainingData) -> FittedLearner:
            return self._whole(learned, learned.given(more.samples.keep, more.samples.values), more.no_predictions)

        return FittedLearner(self.name, posterior.predict, out_of_fold, refitted, closed_form=lambda: posterior)

    def _of_half(self, data: TrainingData, number: int) -> Trained:
        samples, half = data.samples, data.coarse_folds() % 2
        return data.cached(
            self.name,
            number,
            lambda: self.process.train(samples.keep, samples.values, half, data.basis, data.seed, [number]),
        )


@dataclass(frozen=True)
class RowsLearner:
    """A Gaussian process over rows, each one mask with one output (`TrainingData.rows`)."""

    name: str
    process: Coregionalised

    def cross_fit(self, data: TrainingData) -> FittedLearner:
        """Of many rows, a covariance is learned from each half, and each sixth is predicted from all others through the
        covariance of the half without it."""
        rows, fold = _rows(data), data.fold % _SIXTHS if data.many else data.coarse_folds()
        halves, numbers = (fold % 2, [0, 1]) if data.many else (fold, fold.unique().tolist())
        learned = self.process.train(rows, halves, data.basis, data.seed, numbers)
        headline, own = torch.zeros(2, len(fold), dtype=torch.float64)
        for number in fold.unique().tolist():
            out = fold == number
            found = learned.given(rows.take((~out).nonzero()[:, 0]), number % 2 if data.many else number)
            unseen = rows.take(out.nonzero()[:, 0])
            headline[out] = found.headline.predict(unseen.keep).cpu()
            own[out] = found.own(unseen.keep, unseen.met[:, 0])  # type: ignore[index]
        return self._whole(learned, learned.given(rows), headline, own)

    def probe(self, data: TrainingData) -> Float[Tensor, " probed"]:
        return self.cross_fit(data).out_of_fold[data.probed.cpu()]

    def _whole(
        self, learned: TrainedRows, found: RowsPosterior, headline: Float[Tensor, " row"], own: Float[Tensor, " row"]
    ) -> FittedLearner:
        def refitted(more: TrainingData) -> FittedLearner:
            return self._whole(learned, learned.given(_rows(more)), more.no_predictions, more.no_predictions)

        return FittedLearner(
            self.name, found.headline.predict, headline, refitted, closed_form=lambda: found.headline, own=found.own,
            own_out_of_fold=own,
        )  # fmt: skip


def _rows(data: TrainingData) -> Samples:
    assert data.rows is not None
    return data.rows


@dataclass(frozen=True)
class GivenLearner:
    """One that has been fitted already, for a race with others."""

    fitted: FittedLearner

    @property
    def name(self) -> str:
        return self.fitted.name

    def cross_fit(self, data: TrainingData) -> FittedLearner:
        return self.fitted

    def probe(self, data: TrainingData) -> Float[Tensor, " probed"]:
        return self.fitted.out_of_fold[data.probed.cpu()]


@dataclass(frozen=True)
class NeuralLearner:
    """A neural ensemble over all outputs; its members are its cross-fits. With more samples it stays as it is."""

    name: str
    network: Network

    def cross_fit(self, data: TrainingData) -> FittedLearner:
        samples, fold = data.samples, data.coarse_folds()
        ensemble = data.cached(
            self.name,
            PROBE_FOLD,
            lambda: self.network.train(samples.keep, samples.values, fold, data.basis, data.seed),
        )
        out_of_fold = ensemble.out_of_sample(samples.keep, fold).cpu()

        def refitted(more: TrainingData) -> FittedLearner:
            return FittedLearner(self.name, ensemble.predict, data.no_predictions, refitted)

        return FittedLearner(self.name, ensemble.predict, out_of_fold, refitted)

    def probe(self, data: TrainingData) -> Float[Tensor, " probed"]:
        return self.cross_fit(data).out_of_fold[data.probed.cpu()]
