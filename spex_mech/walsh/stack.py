"""`Stack`: fitted parts put together by how well each predicts what it has not seen.

Source: stacked generalisation, Wolpert 1992; non-negative weights, Breiman 1996.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from scipy.optimize import nnls
from torch import Tensor

from spex_mech.walsh.decoding import r_squared
from spex_mech.walsh.parts import Fitted
from spex_mech.walsh.spectrum import Spectrum

_RIDGE = 1e-3  # relative: keeps parts that are alike from trading places


@dataclass(frozen=True, eq=False)
class Stack:
    """Weights ≥ 0 of the parts; or one part alone, if it is a polynomial and as good within a standard error.

    Attributes:
        unseen: predictions of the masks it was fitted to, by parts that had not seen them.
        r2: that of `unseen`; 0 where it is no better than the mean, within a standard error.
        winner: "stack", or the part that stands alone, whose `polynomial` then is the answer.
    """

    parts: list[Fitted]
    weights: Float[Tensor, " part"]
    offset: float
    unseen: Float[Tensor, " mask"]
    r2: float
    winner: str
    polynomial: Spectrum | None

    @classmethod
    def of(cls, parts: list[Fitted], values: Float[Tensor, " mask"]) -> "Stack":
        """The stack of some parts; polynomials are tried in their order, so the sparsest should come first."""
        values = values.cpu()
        columns = torch.stack([part.unseen.cpu() for part in parts], 1)
        weights, offset = _non_negative(columns, values)
        together = columns @ weights + offset
        alone = next((p for p in parts if p.polynomial is not None and _as_good(p.unseen, together, values)), None)
        unseen = together if alone is None else alone.unseen.cpu()
        r2 = 0.0 if _as_good(values.mean().expand_as(values), unseen, values) else r_squared(values, unseen)
        if alone is None:
            return cls(parts, weights, offset, unseen, r2, "stack", None)
        return cls(parts, weights, offset, unseen, r2, alone.name, alone.polynomial)

    def predict(self, keep: Bool[Tensor, "mask component"]) -> Float[Tensor, " mask"]:
        """What the winner says, float64 on the CPU."""
        if self.polynomial is not None:
            return self.polynomial.evaluate(keep).cpu()
        total = torch.full((len(keep),), self.offset, dtype=torch.float64)
        for part, weight in zip(self.parts, self.weights.tolist(), strict=True):
            if weight:
                total += weight * part.predict(keep).cpu()
        return total

    def table(self) -> dict[str, dict[str, float]]:
        """By part: cross-fitted R², weight in the stack, seconds."""
        return {
            part.name: {"r2": part.r2, "weight": weight, "seconds": part.seconds}
            for part, weight in zip(self.parts, self.weights.tolist(), strict=True)
        }


def _as_good(one: Tensor, other: Tensor, values: Tensor) -> bool:
    """Whether `one` predicts as well as `other`, within a standard error of the difference."""
    gap = (values - one.cpu()).square() - (values - other).square()
    return float(gap.mean()) <= float(gap.std()) / len(gap) ** 0.5


def _non_negative(columns: Float[Tensor, "mask part"], values: Float[Tensor, " mask"]) -> tuple[Tensor, float]:
    """Weights ≥ 0 and an offset, by least squares."""
    centre, target = columns.mean(0), float(values.mean())
    x, y = columns - centre, values - target
    size = float(x.square().sum(0).max().clamp(min=1e-300).sqrt())
    ridge = _RIDGE * size * torch.eye(x.shape[1], dtype=x.dtype)
    found, _ = nnls(torch.cat([x, ridge]).numpy(), torch.cat([y, y.new_zeros(x.shape[1])]).numpy())
    weights = torch.from_numpy(found)
    return weights, target - float(centre @ weights)
