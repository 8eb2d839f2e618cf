"""SPEX: a sparse polynomial from coded masks. Bins → candidates → peeling → refit, and what it is worth.

Sets are located by the evidence of all outputs together, as they share their support; the coefficients are then those
of a least-squares fit on all coded masks, with standard errors. The fair-coin masks that the design adds to the code
are held out: nothing is fitted to or chosen by them. Where there are none, a first decoding without the last delays is
checked on those, and the decoding of all goes on from there.

Source: SPEX, Kang et al. 2025 (arXiv 2502.13870). Beyond it: likelihood ratios over all groups in place of a share of
the energy, a noise level from the data, exact matching of all small sets, a joint fit in every round in place of
subtraction one by one, pooled outputs, and the refit.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spex_mech.errors import DecodeError, ResponseError
from spex_mech.walsh.decoders.refit import ROUNDING
from spex_mech.walsh.decoding import Decoded, Outcome, Samples, judge, r_squared
from spex_mech.walsh.incomplete import refuse_incomplete
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.spectrum import Basis, Spectrum
from spex_mech.walsh.spex.bins import Bins
from spex_mech.walsh.spex.peeling import Peeled, Peeling, fit_bins, peel, residual_variance, stand_out

DIRECTIONS = 32  # of the outputs' space that sets are located in
_CROWDED = 0.1  # share of bins that hold more than noise, from which the budget is called too small
_FEWEST_HELD_OUT = 16  # below that R² of held-out masks is chance
_LEFT_OUT = 0.2  # share of delays that a second decoding does without
_BITS = 1 << 24  # keep bits drawn, or compared with the design's own, at a time

MaskFunction = Callable[[Bool[Tensor, "mask component"]], Tensor]


@dataclass(frozen=True)
class Spex:
    """SPEX over coded masks (`MaskDesign.coded`).

    Attributes:
        flips: how many of the least reliable signs of a bin are doubted when it is decoded; 0 is hard decoding.
        matching: multiply-adds that matching one bin vector against all small sets may cost; 0 turns matching off.
        false_sets: expected number of sets reported that are none, by chance.
        rounds: peeling stops after so many.
        per_output: coefficients ``[set, output]`` rather than those of the mean over outputs.
    """

    flips: int = 8
    matching: float = 1e9
    false_sets: float = 0.02
    rounds: int = 200
    per_output: bool = False

    @property
    def name(self) -> str:
        return "spex"

    def decode(self, samples: Samples, *, seed: int) -> Decoded:
        """The polynomial behind coded samples, in the Walsh basis. Nothing in it is random: `seed` is not needed.

        ``stats`` has, beside what every decoder reports, ``heldout`` (which masks ``heldout_r2`` is of), ``left`` (what
        was not explained, in words), ``share_left``, ``bins_left``, ``noise``, ``rounds``, ``sets`` and ``capacity``.
        Where the design's players are groups of components, the polynomial is over the groups, in their order.

        Raises `DecodeError` where the samples' design is not coded, or its masks are not the ones given.
        """
        refuse_incomplete(samples, self.name)
        design = _coded_design(samples)
        return _decode(self, design, samples.values, samples.keep[design.code.size :])  # type: ignore[union-attr]


def decode_function(
    function: MaskFunction,
    n: int,
    degree: int = 4,
    budget: int | None = None,
    *,
    seed: int = 0,
    decoder: Spex = Spex(),
    device: torch.device | str = "cpu",
    chunk: int | None = None,
) -> Decoded:
    """SPEX on a function that is cheap to ask: the polynomial of a proxy, with as many masks as it takes.

    Masks are drawn on `device`, `chunk` at a time (16 million bits by default), and forgotten when they have been
    asked.

    Args:
        function: ``keep [mask, component]`` → values ``[mask]`` or ``[mask, output]``, on the same device.
        degree, budget, seed: of `MaskDesign.coded`.

    Raises `ResponseError` where the function returns anything but one finite row of numbers a mask.

    >>> found = decode_function(lambda keep: (keep[:, 3] & keep[:, 5]).double(), 20)
    >>> [(s, round(c, 9)) for s, c in found.spectrum.terms()]
    [((), 0.25), ((3,), 0.25), ((3, 5), 0.25), ((5,), 0.25)]
    """
    design = MaskDesign.coded(n, degree, budget, seed)
    assert design.code is not None
    chunk = max(1, _BITS // n) if chunk is None else chunk
    values = torch.cat([_asked(function, keep, start) for start, keep in design.chunks(chunk, device)])
    return _decode(decoder, design, values, design.keep(design.code.size, device=device))


def _asked(function: MaskFunction, keep: Tensor, start: int) -> Tensor:
    values = function(keep)
    if values.ndim not in (1, 2) or len(values) != len(keep) or not values.is_floating_point():
        raise ResponseError(
            f"the function gave {tuple(values.shape)} of {values.dtype} for masks {tuple(keep.shape)}; it must give "
            "floating-point values [mask] or [mask, output]."
        )
    if not values.isfinite().all():
        raise ResponseError(
            f"the function's values are not finite for some of masks {start:,} to {start + len(keep):,}."
        )
    return values.reshape(len(values), -1)


def _coded_design(samples: Samples) -> MaskDesign:
    design = samples.design
    if design is None or design.code is None:
        kind = "no known design" if design is None else f"a {design.kind} design"
        raise DecodeError(
            f"SPEX decodes coded masks, and these {len(samples.keep):,} come from {kind}. Draw them with "
            "MaskDesign.coded (keep='coded'), or use the joint or proxyspex decoder, which take any masks."
        )
    if len(samples.keep) != design.n_masks or samples.n != design.n:
        raise DecodeError(
            f"the coded design has {design.n_masks:,} masks of {design.n:,} components, all of which SPEX needs in "
            f"their order; there are {len(samples.keep):,} of {samples.n:,}. Measure the rest, or use the joint or "
            "proxyspex decoder."
        )
    step = max(1, samples.keep.numel() // _BITS)
    for start in range(0, design.n_masks, 1024 * step):
        stop = min(start + 1024, design.n_masks)
        if not torch.equal(design.keep(start, stop), samples.keep[start:stop].cpu()):
            raise DecodeError(
                f"masks {start:,} to {stop:,} are not those of the coded design they are said to come from: in another "
                "order, or of another seed. Give the samples as they were drawn."
            )
    return design


def _decode(options: Spex, design: MaskDesign, values: Tensor, heldout: Tensor) -> Decoded:
    """Everything after the masks are known to be right; `heldout` are the keep bits behind the coded ones."""
    started, code = time.perf_counter(), design.code
    assert code is not None
    bins, heldout = Bins.of(code, values), design.of_players(heldout)
    answer, coins = _answer(bins, options), len(heldout) >= _FEWEST_HELD_OUT
    before, check = (None, {}) if coins else _fewer_delays(bins, options)
    found = _reported(_located(bins, options, before), answer, options)
    spectrum = _spectrum(design, answer, found)
    if coins:
        check = _on_fair_coins(answer, spectrum, values, heldout)
    stats = {**check, **_left(bins, found), "rounds": found.rounds, "capacity": code.capacity}
    outcome = judge(spectrum, stats["heldout_r2"])
    crowded = stats["sets"] > code.capacity or stats["bins_left"] > _CROWDED * len(bins.values)
    if outcome is not Outcome.RECOVERED and crowded:
        outcome = Outcome.BUDGET_TOO_SMALL
    return Decoded(spectrum, outcome, {**stats, "seconds": time.perf_counter() - started})


def _located(bins: Bins, options: Spex, start: Peeled | None = None) -> Peeled:
    """The sets that all outputs together give away."""
    pooled = replace(bins, values=bins.values @ _directions(bins.values))
    return peel(pooled, Peeling(options.flips, options.matching, options.false_sets, options.rounds), start)


def _reported(found: Peeled, answer: Bins, options: Spex) -> Peeled:
    """Without the sets that were found where outputs differ and are zero on average, where the mean is asked for."""
    if options.per_output or found.residual.shape[2] == 1:
        return found
    fitted = fit_bins(answer, found.members)
    z2 = fitted.coefficients[:, 0].square() / (residual_variance(answer, fitted) * fitted.inverse.diagonal())
    seen = (z2 / 2 > math.log(len(z2) / options.false_sets)) | (found.members < 0).all(1)
    return replace(found, members=found.members[seen])


def _answer(bins: Bins, options: Spex) -> Bins:
    """What the coefficients are fitted to: every output, or their mean."""
    return bins if options.per_output else _mean(bins)


def _mean(bins: Bins) -> Bins:
    return replace(bins, values=bins.values.mean(2, keepdim=True))


def _directions(values: Float[Tensor, "bin delay output"]) -> Float[Tensor, "output direction"]:
    """Orthonormal directions in which outputs are pooled: their mean, then where they vary most.

    A rotation leaves independent noise as it is; beyond `DIRECTIONS` outputs the directions of least variance go.
    """
    outputs = values.shape[2]
    mean = torch.full((outputs, 1), outputs**-0.5, dtype=values.dtype, device=values.device)
    if outputs == 1:
        return mean
    rest = values.flatten(0, 1)
    rest = rest - (rest @ mean) @ mean.T
    axes = torch.linalg.eigh(rest.T @ rest).eigenvectors.flip(1)[:, : outputs - 1]
    return torch.cat([mean, axes[:, : DIRECTIONS - 1]], 1)


def _spectrum(design: MaskDesign, bins: Bins, found: Peeled) -> Spectrum:
    fitted = fit_bins(bins, found.members)
    stderr = (residual_variance(bins, fitted) * fitted.inverse.diagonal()[:, None]).sqrt()
    members = _components(design, found.members.cpu())
    shape = (slice(None), 0) if bins.outputs == 1 else (slice(None),)
    n = design.n if design.players is None else len(design.players)
    return Spectrum(n, members, fitted.coefficients[shape].cpu(), Basis(), stderr[shape].cpu()).sorted()


def _components(design: MaskDesign, members: Int[Tensor, "set slot"]) -> Int[Tensor, "set slot"]:
    """Players' numbers as components' numbers, where a player is one component."""
    members = members[:, : int((members >= 0).sum(1).max())]
    if design.candidates is None:
        return members
    return torch.where(members >= 0, torch.tensor(design.candidates)[members.clamp(min=0)], -1)


def _on_fair_coins(answer: Bins, spectrum: Spectrum, values: Tensor, heldout: Tensor) -> dict[str, Any]:
    """R² on the masks behind the code, of the mean or of all outputs."""
    coded, values = answer.code.size, values.double()
    truth = values[coded:] if answer.outputs == values.shape[1] else values[coded:].mean(1, keepdim=True)
    predicted = spectrum.evaluate(heldout).reshape(len(heldout), -1)
    centre = truth.mean(0)
    r2 = r_squared((truth - centre).flatten(), (predicted - centre).flatten())
    source = "fair-coin masks outside the code"
    return {"heldout_r2": r2, "heldout": source, "masks_fitted": coded, "masks_heldout": len(truth)}


def _fewer_delays(bins: Bins, options: Spex) -> tuple[Peeled, dict[str, Any]]:
    """A decoding of the first delays alone, and its R² on the masks of the last ones, which it never saw.

    Where the budget leaves nothing outside the code. The polynomial reported is that of all masks; this one knows less.
    """
    kept = bins.delays - max(1, round(_LEFT_OUT * bins.delays))
    first = bins.first(kept)
    before, answer, early = _located(first, options), _answer(bins, options), _answer(first, options)
    members = _reported(before, early, options).members
    missed = answer.residual(*answer.spell(members), fit_bins(early, members).coefficients)[:, kept:]
    truth = answer.values[:, kept:].reshape(answer.code.groups, answer.code.bins, -1, answer.outputs)
    masks = missed.shape[1] * answer.code.groups * answer.code.bins
    mean = truth[:, 0].mean((0, 1))  # a mask's responses average to what its bin 0 holds
    spread = float(truth.square().sum() * answer.code.bins - masks * mean.square().sum())
    largest = masks * float((ROUNDING * answer.values.abs().amax()).square())
    r2 = 1 - float(missed.square().sum()) * answer.code.bins / spread if spread > largest else float("nan")
    source = f"masks of the last {bins.delays - kept} of {bins.delays} delays, by a decoding without them"
    return before, {"heldout_r2": r2, "heldout": source, "masks_fitted": answer.masks, "masks_heldout": masks}


def _left(bins: Bins, found: Peeled) -> dict[str, Any]:
    """What the sets do not explain: the share of the mean's variance, and the bins that hold more than noise."""
    pooled, mean = replace(bins, values=bins.values @ _directions(bins.values)), _mean(bins)
    fitted, own = fit_bins(pooled, found.members), fit_bins(mean, found.members)
    crowded = int(stand_out(pooled, fitted).sum())
    constant = fit_bins(mean, found.members[(found.members < 0).all(1)])
    spread = float(constant.residual.square().sum())
    share = float(own.residual.square().sum()) / spread if spread > 0 else 0.0
    text = f"{share:.1%} of the variance is left, {crowded} of {len(bins.values):,} bins still hold more than noise"
    level = float((own.noise[0] * bins.code.bins).sqrt())
    sets = len(found.members) - 1
    return {"sets": sets, "share_left": share, "bins_left": crowded, "left": text, "noise": level}
