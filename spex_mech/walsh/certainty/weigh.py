"""`weigh`: errors, q-values and stability of a decoding, by the best evidence at hand and for the price that was asked.

- All masks (`debias`), where the decoder has a fit to all of them beside predictions of each by fits without it, as
  joint has: the default, which costs nothing.
- Cross-fitting (`infer`), where `folds` is 2 or more: costs as many decodings.
- The decoder's held-out masks (`confirm_sets`), used for nothing else before, of the other decoders.
- The decoder's own errors, where it held nothing out; optimistic, since it chose the sets on the masks it fitted.
- Where every one of the 2^n masks was measured the coefficients are exact for these outputs; errors and q-values are
  then for outputs like these, by Student's t over outputs, and there are none of one output.

With a link, masks speak for the latent polynomial through `Decoded.on_latent_scale`, the link taken as given.
Cross-fitting is for the metric's own scale only, since every fold would have a link of its own.

An estimate, its error and its q-value belong together: by `debias`, sets that pass have its coefficients, and single
components that pass are there though the decoder left them out. Other coefficients stay the decoder's, with the errors
of the evidence: how well masks know the coefficient.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from scipy.stats import t as student
from torch import Tensor

from spex_mech.errors import DecodeError
from spex_mech.walsh.certainty.debiased import METHOD, debias
from spex_mech.walsh.certainty.independence import FEWEST, as_drawn
from spex_mech.walsh.certainty.inference import Inference, confirm_sets, infer
from spex_mech.walsh.certainty.significance import q_values
from spex_mech.walsh.certainty.stability import LEVEL, Stability, stability
from spex_mech.walsh.decoding import Decoded, Decoder, Samples, r_squared, split_masks
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.spectrum import Spectrum

_POOL = 128  # sets that are refitted to halves of the masks
_HALVES = 100
KEPT_HELD_VALUES = 512  # held-out masks whose values are kept

Subset = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Certainty:
    """How sure a decoding is.

    Attributes:
        spectrum: the decoder's, with the standard errors of the evidence; NaN where too few masks speak for a set.
        q_value: by set; None where the errors of `spectrum` are all there is.
        stability: share of halves of the masks in which a set is found again, by set; None where none was halved.
        record: how both were made, for the run record.
    """

    spectrum: Spectrum
    q_value: Mapping[Subset, float] | None
    stability: Mapping[Subset, float] | None
    record: Mapping[str, Any]


def weigh(
    samples: Samples, decoder: Decoder, decoded: Decoded, *, seed: int, folds: int = 0, resamples: int = 0
) -> Certainty:
    """The certainty of what `decoder` made of `samples` with this seed; the module's text says by what.

    Args:
        folds: 0, or the number of folds to cross-fit over.
        resamples: 0 (refit the sets that pass to 100 halves of the masks), or on how many halves to run the decoder.

    Raises `DecodeError` where `folds` or `resamples` cannot be had from these masks.
    """
    if _complete(samples) and decoded.link.is_identity:
        return _exact(samples, decoded.spectrum)
    found = _inference(samples, decoder, decoded, seed, folds)
    q_value = None if found is None else found.q_values()
    spectrum = decoded.spectrum if found is None else _with_errors(decoded.spectrum, found)
    again = (
        stability(samples, decoder, resamples=resamples, seed=seed)
        if resamples
        else _refits(decoded.on_latent_scale(_evidence(samples, decoded)), spectrum, q_value, seed)
    )
    how = {"method": "the decoder's own errors, on the masks that chose the sets: optimistic"}
    record = {
        "inference": how if found is None else {**found.describe(), "agree": agreement(found, decoded.spectrum)},
        "stability": None if again is None else again.describe(),
    }
    shares = None if again is None else again.shares
    if found is None:
        return Certainty(decoded.spectrum, None, shares, record)
    return Certainty(spectrum, q_value, shares, record)


def _exact(samples: Samples, spectrum: Spectrum) -> Certainty:
    """Of all masks: nothing is uncertain of these outputs, and Student's t with n - 1 speaks for more like them."""
    n = samples.values.shape[1]
    of_these = "every mask was measured, so for these prompts coefficients are exact"
    how: dict[str, Any] = {"exact": True, "outputs": n, "method": f"{of_these}; one prompt says nothing of others"}
    if n < 2 or spectrum.stderr is None:
        unknown = torch.full((len(spectrum),), torch.nan, dtype=torch.float64)
        return Certainty(replace(spectrum, stderr=unknown), {}, None, {"inference": how, "stability": None})
    size, error = spectrum.coefficients.double().abs().numpy(), spectrum.stderr.double().numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.where(error > 0, 2 * student.sf(size / error, n - 1), np.where(size > 0, 0.0, 1.0))
    p[[not s for s in spectrum.sets]] = np.nan  # the constant is not tested
    q = dict(zip(spectrum.sets, q_values(p).tolist(), strict=True))
    how["method"] = f"{of_these}; errors and q are for prompts like these (Student's t over {n:,})"
    return Certainty(spectrum, q, None, {"inference": how, "stability": None})


def check_certainty(design: MaskDesign | None, folds: int, resamples: int) -> None:
    """Refuse, before anything is measured, what these masks cannot give. Raises `DecodeError`."""
    if folds < 0 or folds == 1 or resamples < 0 or resamples % 2:
        raise DecodeError(
            f"{folds} folds and {resamples} resamples were asked for; folds are 0 (the held-out masks) or at least 2, "
            "resamples 0 (refits) or pairs of halves, an even number."
        )
    if (folds or resamples) and design is not None and design.kind == "coded":
        raise DecodeError(
            "coded masks can neither be cross-fitted nor halved: SPEX needs all of a code. The fair coins behind the "
            "code confirm what it finds; leave folds and resamples at 0, or draw masks of one keep-probability."
        )


def heldout_samples(samples: Samples, decoder: Decoder, decoded: Decoded, seed: int) -> Samples | None:
    """The masks that a decoder set aside, where they can be told and are independent; else None.

    A decoder with a share `heldout` sets aside ``split_masks(samples.groups, heldout, seed)``; one of coded masks, the
    fair coins behind the code. Whether it did is checked: the polynomial's R² on them must be the one it reported.
    """
    rows = set_aside(samples, decoder, seed)
    if rows is None or len(rows) < FEWEST or decoded.spectrum.n != samples.n:
        return None
    held = as_drawn(samples, rows)
    r2 = r_squared(held.mean_values, decoded.judged.predict(held.keep))
    reported = decoded.stats.get("set_aside_r2", decoded.stats["heldout_r2"])
    same = reported is not None and (abs(r2 - reported) <= 1e-6 or (r2 != r2 and reported != reported))
    return held if same else None


def heldout_points(samples: Samples, decoder: Decoder, decoded: Decoded, seed: int) -> dict[str, list[float]] | None:
    """What masks gave and what a fit that had not seen them predicted, mask by mask, for a picture.

    The first `KEPT_HELD_VALUES` of them; None where they cannot be told.
    """
    if decoded.cross_fit is not None and decoded.link.is_identity:
        values = _evidence(samples, decoded).mean_values
        measured, unseen = values[:KEPT_HELD_VALUES], decoded.cross_fit.unseen[:KEPT_HELD_VALUES]
        return {"measured": measured.tolist(), "predicted": unseen.tolist()}
    held = heldout_samples(samples, decoder, decoded, seed)
    if held is None:
        return None
    some = held.take(torch.arange(min(KEPT_HELD_VALUES, len(held.keep)), device=held.keep.device))
    predicted = decoded.judged.predict(some.keep)
    return {"measured": some.mean_values.tolist(), "predicted": predicted.tolist()}


def agreement(found: Inference, spectrum: Spectrum) -> float | None:
    """Share of a polynomial's non-empty sets whose coefficient lies in its 95 % interval; None without any."""
    low, high = found.interval()
    ends = dict(zip(found.sets, zip(low.tolist(), high.tolist(), strict=True), strict=True))
    inside = [ends[s][0] <= c <= ends[s][1] for s, c in spectrum.terms() if s and s in ends]
    return sum(inside) / len(inside) if inside else None


def _inference(samples: Samples, decoder: Decoder, decoded: Decoded, seed: int, folds: int) -> Inference | None:
    if folds and decoded.link.is_identity:
        return infer(samples, decoder, folds=folds, seed=seed, also=decoded.spectrum.members)
    if decoded.cross_fit is not None and decoded.link.is_identity:
        found = debias(_evidence(samples, decoded), decoded.cross_fit)
        if found is not None:
            return found
    held = heldout_samples(samples, decoder, decoded, seed)
    return None if held is None else confirm_sets(decoded.on_latent_scale(held), decoded.judged.spectrum)


def _evidence(samples: Samples, decoded: Decoded) -> Samples:
    """What speaks for the mean over outputs: the samples, or the rows of a decoding that has taken out of them what
    outputs have of their own. Rows of one mask are one unit of evidence."""
    rows = decoded.headline
    return samples if rows is None else as_drawn(rows, torch.arange(len(rows.keep), device=rows.keep.device))


def _refits(
    samples: Samples, spectrum: Spectrum, q_value: Mapping[Subset, float] | None, seed: int
) -> Stability | None:
    """The strongest of the sets that pass, refitted to halves; all other terms are taken out of the values."""
    mean = spectrum.mean_output().sorted()
    if mean.n != samples.n or not mean.basis.is_orthonormal or len(samples.keep) < 2 * FEWEST:
        return None
    passing = [bool(s) and (q_value is None or q_value.get(s, 1.0) <= LEVEL) for s in mean.sets]
    pool = torch.tensor(passing).cumsum(0).le(_POOL) & torch.tensor(passing)
    if not pool.any():
        return None
    others = mean.select(~pool & (mean.orders > 0)).evaluate(samples.keep).to(samples.values.device)
    rest = Samples(samples.keep, (samples.mean_values - others)[:, None], samples.design)
    return stability(rest, mean.select(pool).members, resamples=_HALVES, seed=seed)


def _with_errors(spectrum: Spectrum, found: Inference) -> Spectrum:
    """The mean over outputs with the errors of the evidence; of what `debias` is sure, with its estimates too."""
    mean = spectrum.mean_output()
    if found.method == METHOD:
        sure = {s: value for s, value in found.spectrum.terms() if s and found.q_values()[s] <= LEVEL}
        terms = dict[Iterable[int], float](mean.terms())
        terms.update(sure.items())
        mean = Spectrum.from_terms(mean.n, terms, mean.basis)
    errors = dict(zip(found.sets, found.estimates.stderr.tolist(), strict=True))
    stderr = torch.tensor([errors.get(s, torch.nan) for s in mean.sets], dtype=torch.float64)
    return replace(mean, stderr=stderr.masked_fill(stderr.isinf(), torch.nan))


def set_aside(samples: Samples, decoder: Decoder, seed: int) -> Int[Tensor, " row"] | None:
    """The rows that a decoder of this kind holds out; None where that is not known."""
    design, share = samples.design, getattr(decoder, "heldout", None)
    if design is not None and design.code is not None:
        coins = len(samples.keep) == design.n_masks and design.players is None
        return torch.arange(design.code.size, len(samples.keep)) if coins and decoder.name == "spex" else None
    return split_masks(samples.groups, share, seed)[1] if isinstance(share, float) else None


def _complete(samples: Samples) -> bool:
    design = samples.design
    return design is not None and design.kind == "complete" and len(samples.keep) == design.n_masks
