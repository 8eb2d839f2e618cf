"""`race`: which learners a stack of them needs, told by one fold of many masks.

A quarter of many masks says of a learner nearly what all of them say. So every learner is fitted once, without that
fold, and stacked there; those that the stack can spare are not fitted without the other folds.

Source: racing of models, Maron & Moore 1994.
"""

import time
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spex_mech.walsh.decoders.refit import noise_floor
from spex_mech.walsh.decoding import r_squared
from spex_mech.walsh.joint.base_learners import BaseLearner, TrainingData, map_learners
from spex_mech.walsh.joint.stack import non_negative

_SPARED = 0.01  # of the loss of the stack of all learners: what those may cost that are left out together


Probes = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Race:
    """The learners that are needed, and of every learner R² on the fold and the seconds of its probe."""

    needed: list[BaseLearner]
    probes: Probes


def race(learners: list[BaseLearner], data: TrainingData, sure: float) -> Race:
    """A probe of every learner, unless the first reaches an R² of `sure`; those named last are spared first."""
    values = data.samples.mean_values.cpu()[data.probed.cpu()]

    def probe(learner: BaseLearner) -> tuple[Tensor, dict[str, float]]:
        started = time.perf_counter()
        predicted = learner.probe(data).cpu()
        r2 = r_squared(values, predicted)
        return predicted, {"r2": r2, "weight": 0.0, "seconds": time.perf_counter() - started}

    probed = map_learners(probe, learners[:1], data)
    if not probed[0][1]["r2"] >= sure:
        probed += map_learners(probe, learners[1:], data)
    needed = _backward_elimination(torch.stack([predicted for predicted, _ in probed], 1), values)
    records = {learner.name: record for learner, (_, record) in zip(learners, probed, strict=False)}
    return Race([learners[i] for i in needed], records)


def _backward_elimination(columns: Float[Tensor, "mask learner"], values: Float[Tensor, " mask"]) -> list[int]:
    """The columns that the others cannot replace, tried from the last to the first."""
    stay = list(range(columns.shape[1]))
    allowed = (1 + _SPARED) * _loss(columns, values, stay) + 4 * noise_floor(values) ** 2
    for column in reversed(stay.copy()):
        fewer = [i for i in stay if i != column]
        if fewer and _loss(columns, values, fewer) <= allowed:
            stay = fewer
    return stay


def _loss(columns: Float[Tensor, "mask learner"], values: Float[Tensor, " mask"], stay: list[int]) -> float:
    weights, offset = non_negative(columns[:, stay], values)
    return float((values - columns[:, stay] @ weights - offset).square().mean())
