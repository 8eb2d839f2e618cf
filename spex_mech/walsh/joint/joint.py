"""The joint decoder: several proxies, each judged where it was not fitted, stacked, and read out as one polynomial.

1. **Base learners.** A Lasso line, boosted trees (on the values, on what the line leaves, and with large leaves), the
   refit of their strongest sets, matching pursuit, and Gaussian processes over all outputs are fitted without each fold
   of the masks in turn, so every mask has a prediction of every learner that has not seen it.
2. **Stack.** Non-negative weights by least squares on those predictions (Wolpert 1992; Breiman 1996). A sparse
   polynomial wins alone where it is as good as the stack within a standard error and polynomials have most weight.
3. **Reading out** (`stack_polynomial`). The stack is a function that costs nothing to ask, and under fair coins its
   spectrum has a closed form. It is written as a polynomial with as many sets as it takes to lose less than a hundredth
   of what the stack does not know.
4. **Correction.** ``ĉ_S = c_S + mean_m (f(m) - g₋(m)) φ_S(m)``, where g₋ is the stack that has not seen mask m, is
   unbiased whatever the stack is, since the basis is orthonormal under the masks; its spread over the masks is the
   standard error. The polynomial is moved by the part of a correction that is beyond what chance alone would give.

The held-out masks take part in none of this: R² is reported on them. Then, with sets, weights and covariances left as
they are, the learners are solved for once more with all masks: few masks are too dear to leave any out.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spex_mech.errors import DecodeError
from spex_mech.walsh.decoders.proxyspex import ProxySpex
from spex_mech.walsh.decoders.pursuit import Pursuit
from spex_mech.walsh.decoders.trees import Boosting
from spex_mech.walsh.decoding import (
    CrossFit,
    Decoded,
    Samples,
    folds_of,
    judge,
    r_squared,
    r_squared_error,
    split_masks,
)
from spex_mech.walsh.incomplete import by_row, mean_r_squared, output_spread
from spex_mech.walsh.joint.all_output_learners import GaussianLearner, GivenLearner, NeuralLearner, RowsLearner
from spex_mech.walsh.joint.base_learners import (
    FINE_FOLDS,
    MANY,
    BaseLearner,
    FittedLearner,
    LinesAndTreesLearner,
    ProxySpexLearner,
    PursuitLearner,
    TrainingData,
    TreesLearner,
    coarse_folds,
    cross_fit_all,
)
from spex_mech.walsh.joint.coregionalised import Coregionalised
from spex_mech.walsh.joint.gaussian import GaussianProcess
from spex_mech.walsh.joint.headline import RowSplit, headline_samples
from spex_mech.walsh.joint.neural import Network
from spex_mech.walsh.joint.parallel import two_in_parallel
from spex_mech.walsh.joint.racing import Probes, race
from spex_mech.walsh.joint.stack import Stack
from spex_mech.walsh.joint.stack_polynomial import LOST, corrected, on_sets, read_out
from spex_mech.walsh.spectrum import Basis, Spectrum
from spex_mech.walsh.spex.spex import Spex

BLUNT = Boosting(trees=100, depth=-1, least_leaf=20, most_share=0.5)
PROCESSES = {
    "process, dense": GaussianProcess(scales=(1.0,), penalty=0.3),
    "process, sparse": GaussianProcess(scales=(1.0, 0.3, 3.0), penalty=3.0),
}
ROWS_PROCESSES = {
    "rows, dense": Coregionalised(GaussianProcess(scales=(1.0,), penalty=3.0)),
    "rows, sparse": Coregionalised(GaussianProcess(scales=(1.0, 0.3, 3.0), penalty=3.0)),
}
_LOST_FROM_ROWS = (
    0.002  # see `LOST`; processes shrink small sets most, whose loss costs thrice the energy they have left
)
_NOTHING = 1e-4  # of the variance: less is not worth another learner
_TIE = 0.005  # in R²: SPEX, whose sets are the sparser, wins up to it


@dataclass(frozen=True)
class Joint:
    """The joint decoder; any masks, of any keep-probability, will do.

    Attributes:
        heldout: share of the masks that nothing is fitted to or chosen by until R² has been told on them.
        again: whether the answer is then solved for again with these masks as well, everything chosen left as it is.
            R² is that of the polynomial before, `Decoded.before`.
        boosting: settings of the trees; of few masks they learn much noise.
        blunt: settings of trees with large leaves, which tell of few masks only what many of them say.
        processes: settings of the Gaussian processes, by name.
        rows_processes: those over rows, where masks met some outputs only.
        network: settings of the neural ensemble; None: no neural proxy.
        most_sets: no polynomial has more.
    """

    heldout: float = 0.2
    again: bool = True
    boosting: Boosting = Boosting()
    blunt: Boosting = BLUNT
    processes: Mapping[str, GaussianProcess] = field(default_factory=lambda: dict(PROCESSES))
    rows_processes: Mapping[str, Coregionalised] = field(default_factory=lambda: dict(ROWS_PROCESSES))
    network: Network | None = None
    most_sets: int = 1600

    @property
    def name(self) -> str:
        return "joint"

    @property
    def least_masks(self) -> int:
        """Fewer masks than this cannot be split into held-out masks and folds."""
        return 16

    def decode(self, samples: Samples, *, seed: int) -> Decoded:
        """See `Decoder`. `stats["parts"]` has each learner's cross-fitted R², its weight in the stack, and its seconds.

        Raises `DecodeError` below `least_masks` masks, or where fewer than five differ.
        """
        started = time.perf_counter()
        if len(samples.keep) < self.least_masks:
            raise DecodeError(
                f"joint was given {len(samples.keep)} masks; it needs at least {self.least_masks} to hold some out and "
                "cross-fit on the rest. Raise the budget, or use 'exact' on few components."
            )
        if not 0 < samples.keep_prob < 1:
            raise DecodeError("every mask keeps the same components, so no effect can be told from the mean.")
        if samples.design is not None and samples.design.code is not None:
            return self._coded(samples, seed)
        basis = Basis.orthonormal(samples.keep_prob)
        fitting, held = split_masks(samples.groups, self.heldout, seed)
        split = RowSplit(fitting, held, folds_of(samples, fitting, FINE_FOLDS, seed, self.name))
        masks, masks_held = len(samples.keep), len(held)
        rows, processes = None, list[FittedLearner]()
        if samples.met is not None:
            rows, mask = by_row(samples)
            split = split.of_rows(mask)
            processes = self._processes(rows, split, basis, seed)
            samples = headline_samples(rows, split, processes)
        fitting, held, known = split.fitting, split.held, samples.take(split.fitting)
        spread = _spread(samples, rows)
        data = self._training_data(known, split.fold, basis, seed)
        learners, looks = self._fitted(data, processes)
        stack = Stack.of(learners, known.mean_values, spread)
        polynomial, solved = two_in_parallel(
            lambda: self._polynomial(stack, known, basis, seed, LOST if rows is None else _LOST_FROM_ROWS),
            lambda: self._solved(stack, samples, rows, basis, seed),
            data.max_parallel,
        )
        r2, _ = _judged(samples, polynomial.evaluate(samples.keep[held]), held, rows)
        says = stack.predict(samples.keep[held])
        stats: dict[str, Any] = {
            "heldout_r2": r2,
            "set_aside_r2": r2,
            "masks_judged": masks_held,
            "masks_fitted": masks - masks_held,
            "masks_heldout": masks_held,
            "winner": stack.winner,
            "stack_r2": stack.r2,
            "stack_heldout_r2": _judged(samples, says, held, rows)[0],
            "parts": looks | stack.table(looks),
            "fitted_again": self.again,
        }
        before, cross_fit = polynomial, None
        if self.again:
            unseen = torch.zeros(len(samples.keep), dtype=torch.float64)
            unseen[fitting], unseen[held] = stack.out_of_fold, says
            read, fitted = self._again(polynomial, solved, samples, basis, seed)
            cross_fit = CrossFit(read, fitted, unseen)
            polynomial = read if solved.polynomial is not None else self._corrected(read, samples, unseen)
            r2, error = _judged(samples, unseen, torch.arange(len(unseen)), rows)
            stats |= {"heldout_r2": r2, "heldout_r2_stderr": error, "masks_judged": masks}
        if rows is not None:
            stats |= {"output_spread": spread}
        stats |= {"terms": len(polynomial), "seconds": time.perf_counter() - started}
        headline = None if rows is None else samples
        return Decoded(polynomial, judge(before, r2), stats, before=before, cross_fit=cross_fit, headline=headline)

    def _processes(self, rows: Samples, split: RowSplit, basis: Basis, seed: int) -> list[FittedLearner]:
        """Processes over the rows that are fitted to."""
        learners: list[BaseLearner] = [RowsLearner(name, process) for name, process in self.rows_processes.items()]
        known = rows.take(split.fitting)
        return cross_fit_all(learners, self._training_data(known, split.fold, basis, seed, known))

    def _solved(self, stack: Stack, samples: Samples, rows: Samples | None, basis: Basis, seed: int) -> Stack:
        """The stack, its learners solved for with all masks."""
        if not self.again or stack.r2 <= 0:
            return stack
        fold = torch.zeros(len(samples.keep), dtype=torch.long)
        return stack.refit(self._training_data(samples, fold, basis, seed, rows))

    def _again(
        self, before: Spectrum, stack: Stack, samples: Samples, basis: Basis, seed: int
    ) -> tuple[Spectrum, Float[Tensor, " mask"]]:
        """The same sets, from learners that have all masks; and what these learners say of the masks."""
        if not before.orders.any():
            mean = Spectrum.from_terms(samples.n, {(): float(samples.mean_values.mean())}, basis)
            return mean, mean.evaluate(samples.keep).cpu()
        if stack.polynomial is not None:
            found = _on_sets_of(before, stack.polynomial)
            return found, found.evaluate(samples.keep).cpu()
        return on_sets(stack, samples, before.members, basis, seed), stack.predict(samples.keep)

    def _corrected(self, read: Spectrum, samples: Samples, unseen: Float[Tensor, " mask"]) -> Spectrum:
        """Moved by what all masks say beside fits without them, where it is more than their mean."""
        return corrected(read, samples.keep, samples.mean_values.cpu() - unseen) if read.orders.any() else read

    def _coded(self, samples: Samples, seed: int) -> Decoded:
        """SPEX and this decoder side by side: SPEX unless it predicts worse. It needs the whole code, so there are no
        folds to stack it by; R² is each one's own, by fair coins behind the code or by a second look without a share.
        """
        spex = Spex().decode(samples, seed=seed)
        joint = self.decode(Samples(samples.keep, samples.values), seed=seed)
        scores = {"spex": spex.stats["heldout_r2"], "joint": joint.stats["heldout_r2"]}
        better = not scores["spex"] >= scores["joint"] - _TIE  # also where SPEX has none
        won = joint if better else spex
        seconds = spex.stats["seconds"] + joint.stats["seconds"]
        stats = {**won.stats, "winner": joint.stats["winner"] if better else "spex", "r2": scores, "seconds": seconds}
        return replace(won, stats=stats)

    def _training_data(
        self, samples: Samples, fold: Int[Tensor, " mask"], basis: Basis, seed: int, rows: Samples | None = None
    ) -> TrainingData:
        grown = ProxySpex(boosting=self.boosting).grow(samples, coarse_folds(fold), basis, seed)
        return TrainingData(samples, fold, basis, seed, grown, rows)

    def _fitted(self, data: TrainingData, processes: list[FittedLearner]) -> tuple[list[FittedLearner], Probes]:
        """The learners; of many masks those that a stack needs, and what was seen of the others; of any masks only the
        first, the sparsest, where it leaves next to nothing of what it has not seen.

        Args:
            processes: those over rows, where masks met some outputs only.
        """
        learners = self._kinds(len(data.samples.keep), processes)
        if data.many:
            found = race(learners, data, 1 - _NOTHING)
            return cross_fit_all(found.needed, data), found.probes
        sparse = cross_fit_all(learners[:1], data)
        return (sparse if sparse[0].r2 >= 1 - _NOTHING else sparse + cross_fit_all(learners[1:], data)), {}

    def _kinds(self, masks: int, given: Sequence[FittedLearner] = ()) -> list[BaseLearner]:
        """Polynomials first, the sparsest at the head."""
        proxy = ProxySpexLearner("proxyspex", ProxySpex(boosting=self.boosting))
        polynomials: list[BaseLearner] = [PursuitLearner("pursuit", Pursuit()), proxy, LinesAndTreesLearner("line")]
        processes: list[BaseLearner] = [GivenLearner(learner) for learner in given]
        processes = processes or [GaussianLearner(name, process) for name, process in self.processes.items()]
        nets = [] if self.network is None else [NeuralLearner("neural", self.network)]
        blunt = [TreesLearner("trees, large leaves", self.blunt)] if masks <= MANY else []
        return [
            *polynomials,
            LinesAndTreesLearner("trees"),
            LinesAndTreesLearner("line+trees"),
            *blunt,
            *processes,
            *nets,
        ]

    def _polynomial(self, stack: Stack, known: Samples, basis: Basis, seed: int, lost: float) -> Spectrum:
        if stack.r2 <= 0:  # no better than the mean
            return Spectrum.from_terms(known.n, {(): float(known.mean_values.mean())}, basis)
        if stack.polynomial is not None:
            return stack.polynomial
        read = read_out(stack, known, basis, self.most_sets, seed, lost)
        return corrected(read, known.keep, known.mean_values.cpu() - stack.out_of_fold)


def _spread(samples: Samples, rows: Samples | None) -> float:
    """What is left in the values of rows of what their outputs have of their own."""
    return 0.0 if rows is None else output_spread(samples.keep, samples.mean_values, rows.outputs) or 0.0


def _judged(samples: Samples, says: Tensor, some: Tensor, rows: Samples | None) -> tuple[float, float]:
    """R² of what was said of some masks, and its standard error."""
    truth = samples.mean_values[some.to(samples.keep.device)].cpu()
    if rows is None:
        return r_squared(truth, says), r_squared_error(truth, says)
    return mean_r_squared(samples.keep[some.to(samples.keep.device)], truth, says, rows.outputs)


def _on_sets_of(before: Spectrum, after: Spectrum) -> Spectrum:
    """The coefficients and errors of `after` for the sets of `before`; what it lacks stays as it was."""
    row = {s: i for i, s in enumerate(after.sets)}
    found = [row.get(s) for s in before.sets]
    known = torch.tensor([i is not None for i in found])
    rows = torch.tensor([i or 0 for i in found])
    coefficients = torch.where(known, after.coefficients[rows], before.coefficients)
    stderr = None
    if before.stderr is not None and after.stderr is not None:
        stderr = torch.where(known, after.stderr[rows], before.stderr)
    return replace(before, coefficients=coefficients, stderr=stderr)
