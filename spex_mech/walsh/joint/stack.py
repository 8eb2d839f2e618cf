"""`Stack`: fitted learners put together by how well each predicts what it has not seen.

Source: stacked generalisation, Wolpert 1992; non-negative weights, Breiman 1996.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import compress

import torch
from jaxtyping import Bool, Float
from scipy.optimize import nnls
from torch import Tensor

from spex_mech.walsh.decoders.refit import noise_floor
from spex_mech.walsh.decoding import r_squared
from spex_mech.walsh.joint.base_learners import FittedLearner, TrainingData
from spex_mech.walsh.joint.closed_form import ClosedForm
from spex_mech.walsh.joint.gaussian import Posterior
from spex_mech.walsh.spectrum import Spectrum

_SMALL = 0.02  # of the stack's loss: what a polynomial alone may lose
_MOST = 0.5  # of the weights: what polynomials must have for one of them to stand alone
_POWER, _SURE = 8, 1000  # of the weights' prior; power 4 or 16: R² .0005 and .0002 less (tanh, bench constants)
_MOST_SPREAD = 0.9  # of the least loss: its estimate may be off
_RIDGE = 1e-6  # relative: keeps learners that are alike from trading places


@dataclass(frozen=True, eq=False)
class Stack:
    """Weights ≥ 0 of the learners; or one learner alone, if it is a polynomial, as good within a standard error, and
    polynomials have most of the weight: what few masks cannot tell apart, more masks may.

    Attributes:
        out_of_fold: predictions of the masks it was fitted to, by learners that had not seen them.
        r2: that of `unseen`; 0 where it is no better than the mean, within half a standard error.
        winner: "stack", or the learner that stands alone, whose `polynomial` then is the answer.
    """

    learners: list[FittedLearner]
    weights: Float[Tensor, " learner"]
    offset: float
    out_of_fold: Float[Tensor, " mask"]
    r2: float
    winner: str
    polynomial: Spectrum | None

    @classmethod
    def of(cls, learners: list[FittedLearner], values: Float[Tensor, " mask"], spread: float = 0.0) -> "Stack":
        """The stack of some learners; polynomials are tried in their order, so the sparsest should come first.

        Args:
            spread: what is not the function's in the mean square of the values (`incomplete.output_spread`).
        """
        values = values.cpu()
        columns = torch.stack([learner.out_of_fold.cpu() for learner in learners], 1)
        weights, offset = non_negative(columns, values, spread)
        together = columns @ weights + offset
        sparse = [learner.polynomial is not None for learner in learners]
        candidates = compress(learners, sparse) if weights[torch.tensor(sparse)].sum() >= _MOST * weights.sum() else ()
        alone = next((c for c in candidates if _as_good(c.out_of_fold, together, values, spread=spread)), None)
        out_of_fold = together if alone is None else alone.out_of_fold.cpu()
        nothing = _as_good(values.mean().expand_as(values), out_of_fold, values, errors=0.5, share=math.inf)
        r2 = 0.0 if nothing else _r_squared_beside(values, out_of_fold, spread)
        if alone is None:
            return cls(learners, weights, offset, out_of_fold, r2, "stack", None)
        return cls(learners, weights, offset, out_of_fold, r2, alone.name, alone.polynomial)

    def refit(self, data: TrainingData) -> "Stack":
        """The same weights on learners that were fitted to more samples; out-of-fold predictions stay as they are."""
        learners = [
            learner.refit(data) if weight or learner.name == self.winner else learner
            for learner, weight in zip(self.learners, self.weights.tolist(), strict=True)
        ]
        alone = next((p.polynomial for p in learners if p.name == self.winner), None)
        return replace(self, learners=learners, polynomial=alone)

    def predict(self, keep: Bool[Tensor, "mask component"]) -> Float[Tensor, " mask"]:
        """What the winner says, float64 on the CPU."""
        if self.polynomial is not None:
            return self.polynomial.evaluate(keep).cpu()
        total = torch.full((len(keep),), self.offset, dtype=torch.float64)
        for learner, weight in zip(self.learners, self.weights.tolist(), strict=True):
            if weight:
                total += weight * learner.predict(keep).cpu()
        return total

    def strongest_sets(self, least: float) -> list[tuple[int, ...]]:
        """Sets of the learners that are polynomials, whose terms have at least this much energy in the stack."""
        energy = dict[tuple[int, ...], float]()
        for learner, weight in zip(self.learners, self.weights.tolist(), strict=True):
            for members, coefficient in () if learner.polynomial is None else learner.polynomial.terms():
                energy[members] = max((weight * coefficient) ** 2, energy.get(members, 0.0))
        return sorted((s for s in energy if s and energy[s] >= least), key=lambda s: (-energy[s], s))

    def closed_form(self, n: int) -> ClosedForm | None:
        """The stack's Walsh spectrum in closed form, where every learner with a weight has one."""
        weighted = [
            (w, learner.closed_form) for learner, w in zip(self.learners, self.weights.tolist(), strict=True) if w
        ]
        forms = [(w, closed()) for w, closed in weighted if closed is not None]
        if len(forms) < len(weighted):
            return None
        polynomials = [(w, form) for w, form in forms if isinstance(form, Spectrum)]
        return ClosedForm(n, polynomials, [(w, form) for w, form in forms if isinstance(form, Posterior)], self.offset)

    def table(self, looks: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
        """By learner: cross-fitted R², weight in the stack, seconds, those of a look at it before among them."""
        return {
            learner.name: {
                "r2": learner.r2,
                "weight": weight,
                "seconds": learner.seconds + (looks[learner.name]["seconds"] if learner.name in looks else 0.0),
            }
            for learner, weight in zip(self.learners, self.weights.tolist(), strict=True)
        }


def _r_squared_beside(values: Tensor, says: Tensor, spread: float) -> float:
    """R² of the function, whose values have a known mean square beside it; at most 1."""
    apart, found = float((values - values.mean()).square().mean()), r_squared(values, says)
    return min(1.0, found * apart / (apart - spread)) if 0 < spread < apart else found


def _as_good(
    one: Tensor, other: Tensor, values: Tensor, errors: float = 1.0, share: float = _SMALL, spread: float = 0.0
) -> bool:
    """Whether `one` predicts as well as `other`: within so many standard errors of the difference and a share of the
    loss, or as far as float32 values can tell."""
    loss = (values - other).square()
    gap = (values - one.cpu()).square() - loss
    allowed = min(errors * float(gap.std()) / len(gap) ** 0.5, share * max(0.0, float(loss.mean()) - spread))
    return float(gap.mean()) <= max(allowed, 4 * noise_floor(values) ** 2)


def non_negative(
    columns: Float[Tensor, "mask learner"], values: Float[Tensor, " mask"], spread: float = 0.0
) -> tuple[Tensor, float]:
    """Weights ≥ 0 and an offset, by least squares, as if weights came from a normal distribution of variance 1/_SURE
    around the share ``w ∝ (least loss / loss)^_POWER``: what few masks say of weights is mostly chance. The mean has
    such a share too, so that learners which are hardly better move the answer only as far as they can be believed.
    Losses are those of the function, less the spread of the values beside it."""
    centre, target = columns.mean(0), float(values.mean())
    x, y = columns - centre, values - target
    loss = (columns - values[:, None]).square().mean(0).clamp(min=1e-300)
    mean_loss = y.square().mean().clamp(min=1e-300)  # values may all be the same
    least = torch.minimum(loss.min(), mean_loss)
    beside = min(spread, _MOST_SPREAD * float(least))
    prior = ((least - beside) / (loss - beside)) ** _POWER
    prior = prior / (prior.sum() + ((least - beside) / (mean_loss - beside)) ** _POWER)
    stiff = (_SURE * loss.min() + _RIDGE * x.square().sum(0).max()).sqrt()
    system = torch.cat([x, stiff * torch.eye(x.shape[1], dtype=x.dtype)])
    found, _ = nnls(system.numpy(), torch.cat([y, stiff * prior]).numpy())
    weights = torch.from_numpy(found)
    return weights, target - float(centre @ weights)
