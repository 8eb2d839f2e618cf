"""What outputs have beside each other, of masks that met some of them: means over masks, taken out without bias.

Column s of row m of `values` is of output ``met[m, s]``. Outputs differ in level, and which of them a mask met would
else count as the mask's doing.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def mean_levels(
    values: Float[Tensor, "mask slot"], met: Int[Tensor, "mask slot"], outputs: int
) -> Float[Tensor, " output"]:
    """The mean of every output over the masks that met it, float64; of one that none met, the mean of the means.

    >>> mean_levels(torch.tensor([[1.0], [5.0], [3.0]]), torch.tensor([[0], [1], [0]]), 3).tolist()
    [2.0, 5.0, 3.5]
    """
    total, count = _sums(values, met, outputs)
    known = count > 0
    return torch.where(known, total / count.clamp(min=1), (total[known] / count[known]).mean())


def without_levels(
    values: Float[Tensor, "mask slot"], met: Int[Tensor, "mask slot"], outputs: int
) -> Float[Tensor, "mask slot"]:
    """Every value less the mean of its output over the **other** masks that met it, plus the mean of all outputs.

    With its own value in that mean a mask of c would lose 1/c of what it differs by, and every effect with it. Of an
    output that one mask met, nothing is taken out.

    >>> without_levels(torch.tensor([[1.0], [5.0], [3.0]]), torch.tensor([[0], [1], [0]]), 2).tolist()
    [[1.5], [5.0], [5.5]]
    """
    total, count = _sums(values, met, outputs)
    others, centre = count[met] - 1, mean_levels(values, met, outputs).mean()
    level = torch.where(others > 0, (total[met] - values.double()) / others.clamp(min=1), centre)
    return values.double() - level + centre


def _sums(values: Tensor, met: Tensor, outputs: int) -> tuple[Float[Tensor, " output"], Int[Tensor, " output"]]:
    """The sum over masks of every output's values, and how many there are."""
    total = torch.zeros(outputs, dtype=torch.float64, device=values.device)
    return total.index_add_(0, met.flatten(), values.double().flatten()), met.flatten().bincount(minlength=outputs)
