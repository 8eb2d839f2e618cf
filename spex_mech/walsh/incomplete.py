"""Masks that met some of the outputs only: one value a row, and how well the mean over all outputs is known from that.

A row's value is ``y = f(z) + e``: the headline f, the mean over all P outputs, and what the row's output has beside it,
which over outputs is nothing. So the spread of e must not be taken for misfit. Rows of one mask with different outputs
tell it: their variance within a mask, times (P - 1) / P since outputs are drawn without replacement, is that of e.
"""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spex_mech.errors import DecodeError
from spex_mech.walsh.decoding import Samples

_GROUPS = 24  # of masks, for the jackknife


def headline(samples: Samples) -> Samples:
    """The samples as they are where every mask met all outputs; else those of one output, the headline.

    What is estimated from it is of the mean over all outputs. Its errors over masks are also over which outputs each
    mask met, since both were drawn together; of outputs that nobody measured it says nothing.

    >>> import torch
    >>> keep, met = torch.tensor([[True], [True], [False], [False]]), torch.tensor([[0], [1], [0], [1]])
    >>> headline(Samples(keep, torch.tensor([[1.0], [3.0], [3.0], [5.0]]), met=met, outputs=2)).values.tolist()
    [[1.0], [1.0], [5.0], [5.0]]
    """
    if samples.met is None:
        return samples
    return Samples(samples.keep, samples.mean_values[:, None], samples.design)


def refuse_incomplete(samples: Samples, decoder: str) -> None:
    """Raise `DecodeError` where masks met some outputs only and `decoder` needs the value of each for every one."""
    if samples.met is not None:
        raise DecodeError(
            f"decoder {decoder!r} needs every prompt under every mask; here a mask met {samples.met.shape[1]:,} of "
            f"{samples.outputs:,}. Use 'joint', 'proxyspex' or 'linear', or measure with prompts_per_mask='all'."
        )


def by_row(samples: Samples) -> tuple[Samples, Int[Tensor, " row"]]:
    """The samples with one value a mask, a mask as often as it met outputs; and which mask each row is."""
    assert samples.met is not None
    mask = torch.arange(len(samples.keep), device=samples.keep.device).repeat_interleave(samples.met.shape[1])
    values, met = samples.values.reshape(-1, 1), samples.met.reshape(-1, 1)
    return replace(samples, keep=samples.keep[mask], values=values, met=met), mask.cpu()


def of_rows(of_masks: Int[Tensor, " mask"], mask: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
    """The rows of some masks, ascending."""
    wanted = torch.zeros(int(mask.max()) + 1, dtype=torch.bool)
    wanted[of_masks] = True
    return wanted[mask].nonzero()[:, 0]


def output_spread(keep: Tensor, values: Float[Tensor, " row"], outputs: int) -> float | None:
    """The mean square of e, from rows of one mask; None where no mask has two.

    >>> keep = torch.tensor([[True], [True], [False], [False]])
    >>> output_spread(keep, torch.tensor([1.0, 3.0, 0.0, 0.0]), outputs=2)
    0.5
    """
    _, mask, count = torch.unique(keep.cpu(), dim=0, return_inverse=True, return_counts=True)
    free = len(mask) - len(count)
    if not free:
        return None
    values = values.cpu().double()
    means = torch.zeros(len(count), dtype=torch.float64).index_add_(0, mask, values) / count
    return float((values - means[mask]).square().sum()) / free * (outputs - 1) / outputs


def mean_r_squared(
    keep: Tensor, values: Float[Tensor, " row"], predicted: Float[Tensor, " row"], outputs: int
) -> tuple[float, float]:
    """R² of predictions of the headline from rows, ``1 - A / B`` with the mean squares, over masks, of what is missed
    of it and of what it has about its mean, both by `_shared`; and its standard error, the jackknife's over masks. An
    estimate of A below nothing, which noise can make of a small one, counts as nothing.

    Where no mask has two rows, what outputs have of their own counts as missed, and R² is a lower bound.
    """
    missed, apart = (values - predicted).cpu().double(), values.cpu().double()
    _, mask = torch.unique(keep.cpu(), dim=0, return_inverse=True)
    group = torch.randperm(int(mask.max()) + 1, generator=torch.Generator().manual_seed(0))[mask] % _GROUPS

    def of(rows: Tensor) -> float:
        spread = _shared(apart[rows] - apart[rows].mean(), mask[rows], outputs)
        return 1 - max(0.0, _shared(missed[rows], mask[rows], outputs)) / spread if spread > 0 else float("nan")

    without = torch.tensor([of(group != number) for number in range(_GROUPS)], dtype=torch.float64)
    error = float(((_GROUPS - 1) / _GROUPS * (without - without.mean()).square().sum()).sqrt())
    return of(torch.ones(len(apart), dtype=torch.bool)), error


def _shared(rest: Float[Tensor, " row"], mask: Int[Tensor, " row"], outputs: int) -> float:
    """The mean square of u, of rows ``u(z) + e`` with e nothing over outputs.

    Products of two rows of a mask have the mean ``u² - e² / (P - 1)``, halves of their squared differences
    ``e² P / (P - 1)``, so X, the products and a P-th of the halves, has the mean u². It is noisy, but goes with S,
    the mean square of those rows, whose mean is known from all rows: ``X - c (S - S̄)``, c by least squares.
    """
    count = torch.zeros(int(mask.max()) + 1, dtype=torch.float64).index_add_(0, mask, torch.ones_like(rest))
    total, square = (torch.zeros_like(count).index_add_(0, mask, x) for x in (rest, rest.square()))
    all_rows = float(rest.square().mean())
    again = count > 1
    if not again.any():
        return all_rows
    count, total, square = count[again], total[again], square[again] / count[again]
    product = (total.square() / count - square) / (count - 1)
    shared, along = product + (square - product) / outputs, square
    weight = count - 1
    centred, weight = along - (along * weight).sum() / weight.sum(), weight / weight.sum()
    slope = float((weight * centred * shared).sum() / (weight * centred.square()).sum().clamp(min=1e-300))
    return float((weight * shared).sum()) - slope * (float((weight * along).sum()) - all_rows)
