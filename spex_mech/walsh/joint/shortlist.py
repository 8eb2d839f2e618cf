"""`race`: which parts a stack of them needs, told by one fold of many masks.

A quarter of many masks says of a part nearly what all of them say. So every part is fitted once, without that fold, and
stacked there; those that the stack can spare are not fitted without the other folds.

Source: racing of models, Maron & Moore 1994.
"""

import time
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spex_mech.walsh.decoders.refit import noise_floor
from spex_mech.walsh.decoding import r_squared
from spex_mech.walsh.joint.members import Given, Part, for_each
from spex_mech.walsh.joint.stack import non_negative

_SPARED = 0.01  # of the loss of the stack of all parts: what those may cost that are left out together


Looks = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Race:
    """The parts that are needed, and of every part R² on the fold and the seconds of its look."""

    needed: list[Part]
    looks: Looks


def race(parts: list[Part], given: Given, sure: float) -> Race:
    """A look at every part, unless the first reaches an R² of `sure`; the parts named last are spared first."""
    values = given.samples.mean_values.cpu()[given.looked.cpu()]

    def looked(part: Part) -> tuple[Tensor, dict[str, float]]:
        started = time.perf_counter()
        says = part.look(given).cpu()
        return says, {"r2": r_squared(values, says), "weight": 0.0, "seconds": time.perf_counter() - started}

    looks = for_each(looked, parts[:1], given)
    if not looks[0][1]["r2"] >= sure:
        looks += for_each(looked, parts[1:], given)
    needed = _needed(torch.stack([says for says, _ in looks], 1), values)
    return Race([parts[i] for i in needed], {part.name: told for part, (_, told) in zip(parts, looks, strict=False)})


def _needed(columns: Float[Tensor, "mask part"], values: Float[Tensor, " mask"]) -> list[int]:
    """Backward elimination, from the last column to the first."""
    stay = list(range(columns.shape[1]))
    allowed = (1 + _SPARED) * _loss(columns, values, stay) + 4 * noise_floor(values) ** 2
    for column in reversed(stay.copy()):
        fewer = [i for i in stay if i != column]
        if fewer and _loss(columns, values, fewer) <= allowed:
            stay = fewer
    return stay


def _loss(columns: Float[Tensor, "mask part"], values: Float[Tensor, " mask"], stay: list[int]) -> float:
    weights, offset = non_negative(columns[:, stay], values)
    return float((values - columns[:, stay] @ weights - offset).square().mean())
