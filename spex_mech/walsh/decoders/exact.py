"""`Exact`: all 2**n masks → every coefficient. The oracle, and the right decoder where n is small."""

import time
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spex_mech.errors import DecodeError
from spex_mech.walsh.decoding import Decoded, Outcome, Samples
from spex_mech.walsh.incomplete import refuse_incomplete
from spex_mech.walsh.masks.design import MAX_COMPLETE
from spex_mech.walsh.spectrum import Spectrum
from spex_mech.walsh.transform import walsh_hadamard

_BLOCK = 1 << 24  # values transformed at once: 128 MB of float64


@dataclass(frozen=True)
class Exact:
    """``F(S) = 2^-n Σ_m (-1)^{<m, S>} f(m)`` over the complete set of masks, in the Walsh basis.

    A coefficient is numerically zero, and left out, where ``|F(S)| ≤ rounding · max_m |f(m)|``, with |f(m)| averaged
    over outputs. The default is the spacing of float32, in which responses are stored: rounding every value by half of
    it moves no coefficient by more than half of that bound. The empty set always stays.

    Attributes:
        rounding: relative size below which a coefficient is numerically zero; 0 keeps every coefficient that is not 0.
    """

    rounding: float = 2.0**-23

    def __post_init__(self) -> None:
        if not 0 <= self.rounding < 1:
            raise DecodeError(f"rounding is relative to the largest value and lies from 0 to 1, not {self.rounding}.")

    @property
    def name(self) -> str:
        return "exact"

    def decode(self, samples: Samples, *, seed: int = 0) -> Decoded:
        """All coefficients of the mean over outputs, with the standard error of that mean where there are two or more.

        The masks may come in any order; values of a mask that was measured more than once are averaged. The standard
        error of F(S) is the standard deviation of the outputs' own coefficients over √outputs, so it says how far S
        differs from prompt to prompt, and is 0 for one output: nothing is estimated then. `seed` changes nothing.
        Raises `DecodeError` unless every one of the 2^n masks is there.
        """
        started = time.perf_counter()
        refuse_incomplete(samples, self.name)
        values = tabulate(samples)
        mean, stderr = _mean_and_stderr(values)
        zero_below = self.rounding * float(values.abs().mean(0).max())
        kept = mean.abs() > zero_below
        kept[0] = True
        numbers = kept.nonzero()[:, 0]
        spectrum = Spectrum(samples.n, sets_of(numbers), mean[numbers], stderr=stderr[numbers])
        stats = {
            "heldout_r2": None,
            "masks_fitted": len(samples.keep),
            "masks_heldout": 0,
            "zero_below": zero_below,
            "seconds": time.perf_counter() - started,
        }
        return Decoded(spectrum, Outcome.COMPLETE, stats)


def tabulate(samples: Samples) -> Float[Tensor, "output point"]:
    """The values in order of the mask's number (bit i: component i ablated), float64; repeated masks averaged."""
    rows, n = samples.keep.shape
    measured = _numbers(samples.keep) if n <= MAX_COMPLETE else None
    distinct = len(samples.keep.unique(dim=0)) if measured is None else len(measured.unique())
    if measured is None or distinct < 1 << n:
        fewer = f"take at most {MAX_COMPLETE} components"
        way_out = "complete the masks (MaskDesign.complete)" if n <= MAX_COMPLETE else fewer
        raise DecodeError(
            f"the exact decoder needs all 2^{n} masks of {n:,} components; {distinct:,} of them are there, in {rows:,} "
            f"rows. To go on, {way_out}, or use a decoder that works from a sample: 'joint', 'proxyspex' or 'linear'."
        )
    values = samples.values.double()
    total = torch.zeros(1 << n, values.shape[1], dtype=torch.float64, device=values.device)
    total.index_add_(0, measured.to(values.device), values)
    times = torch.bincount(measured, minlength=1 << n).to(values.device)
    return (total / times[:, None]).T.contiguous()


def sets_of(numbers: Int[Tensor, " set"]) -> Int[Tensor, "set slot"]:
    """The sets with these numbers (bit i: i is in the set), as ascending rows padded with -1.

    >>> sets_of(torch.tensor([0, 4, 5])).tolist()
    [[-1, -1], [2, -1], [0, 2]]
    """
    width = max(int(numbers.max()).bit_length(), 1) if len(numbers) else 1
    positions = torch.arange(width)
    present = (numbers.cpu()[:, None] >> positions) & 1 == 1
    slots = torch.where(present, positions, width).sort(1).values[:, : int(present.sum(1).max()) if len(numbers) else 0]
    return torch.where(slots == width, -1, slots)


def _numbers(keep: Tensor) -> Tensor:
    """The number of each mask, by its ablated bits."""
    return ((~keep).long() << torch.arange(keep.shape[1], device=keep.device)).sum(1)


def _mean_and_stderr(values: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients of the mean over outputs, and their standard errors over outputs."""
    outputs, points = values.shape
    mean = walsh_hadamard(values.mean(0)) / points
    squares = torch.zeros_like(mean)
    if outputs > 1:
        for block in values.split(max(1, _BLOCK // points)):
            squares += ((walsh_hadamard(block) / points - mean) ** 2).sum(0)
    return mean.cpu(), (squares / max(1, outputs - 1) / outputs).sqrt().cpu()
