"""Many outputs as targets of one fit: their mean first, then what they have beside it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Readout:
    """The way back from the first target to the mean over outputs."""

    spread: float
    centre: float

    def mean(self, first: Float[Tensor, " mask"]) -> Float[Tensor, " mask"]:
        return first * self.spread + self.centre


def rotated_outputs(values: Float[Tensor, "mask output"], most: int) -> tuple[Float[Tensor, "mask target"], Readout]:
    """At most `most` targets: the mean over outputs with unit variance, then what the outputs have beside it, in the
    directions where they vary most, in units of the largest; float64.
    """
    y = values.double()
    mean = y.mean(1, keepdim=True)
    centre, spread = float(mean.mean()), float(mean.std(correction=0)) or 1.0
    targets, rest = (mean - centre) / spread, y - mean
    directions = min(most, y.shape[1]) - 1
    if directions > 0:
        rest = rest - rest.mean(0)
        rest = rest @ torch.linalg.eigh(rest.T @ rest).eigenvectors.flip(1)[:, :directions]
        targets = torch.cat([targets, rest / rest.std(0, correction=0).max().clamp(min=1e-12)], 1)
    return targets, Readout(spread, centre)
