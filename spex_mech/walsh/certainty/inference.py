"""`infer` and `confirm`: how sure the coefficients are, by masks that had no part in finding the sets.

A set that was chosen because it looked strong on some masks looks strong on these masks whatever the truth is. So
selection and inference never share masks:

- `confirm` takes a polynomial and masks that it has not seen (a decoder's held-out masks, or fresh ones).
- `infer` **cross-fits**: the masks are cut into folds, a decoder runs without each fold in turn, and every fold judges
  the sets that were found without it. All masks are used, at the price of one decoding a fold.

**Estimates** (see `debias`) pool the folds without which a set was found. Their errors are over masks, for these
outputs; `stderr_outputs` and `stderr_both` say how sure the same numbers are for outputs (prompts) not measured.

**Tests and intervals.** A fold's p-value counts for a set only where the set was found without that fold; it is then
valid whatever the decoder did. The folds share masks through the selection, so they are joined by Bonferroni, ``p = K
min_k p_k``, and an interval is what the folds' own intervals of level 1 - α/K have in common; a set found in no fold
has p = 1. Of the sets found, the expected share whose interval misses is at most α, however the decoder chose. By
chance the joined p-values of sets that are not there fall below u as often as those of one fold's sets would, so that
the family of a q-value (Benjamini & Hochberg 1995) has as many tests as a fold makes on average; tests are taken as
independent or positively dependent, as they are to first order in an orthonormal basis. Sets named in advance need no
selection: all folds count together.

**Designs.** Masks must be drawn independently: one keep-probability, or several in strata. Coded masks are not (they
share hashes and delays, so sets that collide look alike on all of them): only the fair coins behind the code confirm.
Where all 2^n masks were measured nothing is estimated from a sample.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import t as student
from torch import Tensor

from spex_mech.errors import DecodeError, all_problems
from spex_mech.walsh.certainty.estimates import Estimates, Seen, one_step_estimates
from spex_mech.walsh.certainty.independence import FEWEST, cut_folds, dependence, runs, with_design
from spex_mech.walsh.certainty.significance import q_values
from spex_mech.walsh.decoders.refit import refit
from spex_mech.walsh.decoding import Decoder, Samples
from spex_mech.walsh.incomplete import headline
from spex_mech.walsh.set_rows import pad_sets, set_tuples
from spex_mech.walsh.spectrum import Basis, Spectrum


@dataclass(frozen=True, eq=False)
class Inference:
    """What masks without a part in the selection say of some sets.

    Attributes:
        n, members, basis: the sets, as in `Spectrum`; the empty set comes first and is never tested.
        estimates: pooled over the folds without which a set was found; see `debias.Estimates`.
        folds: those of every fold alone.
        chosen: whether a set was found without the fold; None for sets named in advance.
        p, q: of ``F(S) = 0``; NaN for the empty set.
        method: how it was made, in words; masks: how many judged.
        seconds: of the decodings and the estimates.
    """

    n: int
    members: Int[Tensor, "set slot"]
    basis: Basis
    estimates: Estimates
    folds: tuple[Estimates, ...]
    chosen: Bool[Tensor, "fold set"] | None
    p: Float[Tensor, " set"]
    q: Float[Tensor, " set"]
    method: str
    masks: int
    seconds: float

    @cached_property
    def sets(self) -> tuple[tuple[int, ...], ...]:
        """The sets as tuples of ascending indices."""
        return self.spectrum.sets

    @cached_property
    def spectrum(self) -> Spectrum:
        """The estimates with their errors over masks, as a polynomial."""
        return Spectrum(self.n, self.members, self.estimates.value, self.basis, self.estimates.stderr)

    @property
    def z(self) -> Float[Tensor, " set"]:
        """Estimate over standard error."""
        return self.estimates.value / self.estimates.stderr

    @property
    def tests(self) -> float:
        """The size of the family that q is adjusted for: the sets, or how many of them a fold judges on average."""
        return float(len(self.members) - 1 if self.chosen is None else self.chosen[:, 1:].sum(1).double().mean())

    @property
    def inclusion(self) -> Float[Tensor, " set"]:
        """Share of folds without which a set was found; 1 for sets named in advance."""
        return torch.ones(len(self.members)).double() if self.chosen is None else self.chosen.double().mean(0)

    @property
    def same_sign_folds(self) -> Float[Tensor, " set"]:
        """Share of folds whose own estimate has the sign of the pooled one."""
        signs = torch.stack([fold.value for fold in self.folds]).sign()
        return (signs == self.estimates.value.sign()).double().mean(0)

    @property
    def same_sign_outputs(self) -> Float[Tensor, " set"]:
        """Share of outputs whose own estimate has the sign of the mean's."""
        return (self.estimates.by_output.sign() == self.estimates.value.sign()[:, None]).double().mean(1)

    def interval(self, level: float = 0.95, over: str = "masks") -> tuple[Tensor, Tensor]:
        """Lower and upper ends of intervals for F(S), in the unit of the responses.

        `over` says which errors they cover: "masks" (for these outputs), "outputs" (for these masks) or "both"; the
        latter two are ``ĉ ∓ t σ`` and take no account of the selection. Raises `DecodeError` unless 0 < level < 1 and
        `over` is one of these.
        """
        one, several = self.estimates, self.estimates.by_output.shape[1] - 1.0
        kinds = {"masks": one.stderr, "outputs": one.stderr_outputs, "both": one.stderr_both}
        if over not in kinds or not 0 < level < 1:
            raise DecodeError(
                f"an interval of level {level} over {over!r} was asked for; the level lies strictly between 0 and 1, "
                f"and there are intervals over {', '.join(kinds)}."
            )
        if over == "masks" and self.chosen is not None and len(self.folds) > 1:
            return self._in_common(1 - (1 - level) / len(self.folds), self.chosen)
        return _ends(one.value, kinds[over], one.freedom if over == "masks" else one.freedom.clamp(max=several), level)

    def _in_common(self, level: float, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """What the intervals of the folds that count share; where they contradict each other, what lies between."""
        ends = [_ends(fold.value, fold.stderr, fold.freedom, level) for fold in self.folds]
        low = torch.stack([e[0] for e in ends]).masked_fill(~chosen, -torch.inf).amax(0)
        high = torch.stack([e[1] for e in ends]).masked_fill(~chosen, torch.inf).amin(0)
        return torch.minimum(low, high), torch.maximum(low, high)

    def describe(self) -> dict[str, Any]:
        """For a run record."""
        return {
            "method": self.method, "masks": self.masks, "tests": self.tests, "folds": len(self.folds),
            "adjustment": "Benjamini-Hochberg", "seconds": self.seconds,
        }  # fmt: skip

    def q_values(self) -> Mapping[tuple[int, ...], float]:
        """q by set, the empty one left out."""
        return {s: value for s, value in zip(self.sets, self.q.tolist(), strict=True) if s}


def infer(
    samples: Samples,
    by: Decoder | Int[Tensor, "set slot"] | Sequence[Sequence[int]],
    *,
    folds: int = 3,
    seed: int = 0,
    also: Int[Tensor, "set slot"] | None = None,
) -> Inference:
    """Cross-fitted estimates, errors and tests of the sets that a decoder finds, or of sets named in advance.

    Args:
        samples: independently drawn masks, all of the design, in its order where masks share bits.
        by: a decoder, run once without each fold; or sets that were not chosen on these masks.
        folds: K ≥ 2. More folds: more masks to find sets with, fewer to test each with.
        seed: of the folds and the decoder; same seed, same bits.
        also: sets to estimate as well, say of a decoding of all masks. Found in no fold, they have p = 1.

    Returns:
        an `Inference` over the empty set and all sets found in any fold. It costs K decodings of (K - 1)/K masks.

    Raises:
        DecodeError: coded masks, all 2^n masks, masks that are all alike, or too few; all that is wrong at once.
    """
    started = time.perf_counter()
    _check(samples, folds, by)
    samples = with_design(samples)
    basis, run = Basis.orthonormal(samples.keep_prob), runs(samples)
    fold = cut_folds(run, folds, seed)
    polynomials = [_without(samples, fold != k, by, basis, seed) for k in range(folds)]
    named = None if isinstance(by, Decoder) else _as_members(by)
    extra = [m for m in (named, also) if m is not None]
    members = every_set([*(p.members for p in polynomials), *extra])
    coefficients, samples = torch.stack([looked_up(p, members) for p in polynomials]), headline(samples)
    chosen = None if named is not None else coefficients != 0
    counts = torch.ones_like(coefficients, dtype=torch.bool)
    if chosen is not None:
        chosen[:, 0] = True
        counts = chosen | ~chosen.any(0)
    seen = Seen(samples, _missed(samples, polynomials, fold), coefficients, counts, fold, run)
    pooled = one_step_estimates(seen, members, basis)
    alone = tuple(one_step_estimates(seen.of_fold(k), members, basis) for k in range(folds))
    p = pooled.p_values() if chosen is None else _joined([a.p_values() for a in alone], chosen)
    p, q = _adjusted(p, None if chosen is None else float(chosen[:, 1:].double().sum(1).mean()))
    what = f"found by {by.name}" if isinstance(by, Decoder) else "named in advance"
    method = f"cross-fitted over {folds} folds, sets {what}"
    seconds = time.perf_counter() - started
    return Inference(samples.n, members, basis, pooled, alone, chosen, p, q, method, len(samples.keep), seconds)


def confirm_sets(unseen: Samples, spectrum: Spectrum) -> Inference:
    """The sets of a polynomial, judged on masks it has not seen; selection is behind it, so every test is valid.

    Args:
        unseen: independently drawn masks that had no part in `spectrum`: held-out (`heldout_samples`) or fresh ones.
        spectrum: any; of several outputs, the mean. Rewritten to the basis that is orthonormal under the masks.

    Raises `DecodeError` where it has other components, the masks are coded, complete, all alike, or fewer than
    `FEWEST`.
    """
    started = time.perf_counter()
    problems = dependence(unseen)
    if spectrum.n != unseen.n:
        problems.append(f"the polynomial is over {spectrum.n:,} components, the masks over {unseen.n:,}")
    if problems:
        raise DecodeError(all_problems("these masks cannot confirm this polynomial:", problems))
    unseen = headline(with_design(unseen))
    polynomial = spectrum.mean_output().rewrite(Basis.orthonormal(unseen.keep_prob))
    members = every_set([polynomial.members])
    coefficients = looked_up(polynomial, members)[None]
    fold = torch.zeros(len(unseen.keep), dtype=torch.long)
    missed, every = _missed(unseen, [polynomial], fold), torch.ones_like(coefficients, dtype=torch.bool)
    found = one_step_estimates(Seen(unseen, missed, coefficients, every, fold, runs(unseen)), members, polynomial.basis)
    p, q = _adjusted(found.p_values())
    method, seconds = "masks that nothing was fitted to or chosen by", time.perf_counter() - started
    return Inference(
        unseen.n, members, polynomial.basis, found, (found,), every, p, q, method, len(missed), seconds
    )  # fmt: skip


def _missed(samples: Samples, polynomials: Sequence[Spectrum], fold: Tensor) -> Float[Tensor, "mask output"]:
    """Response less prediction by the polynomial that has not seen the mask."""
    missed = samples.values.double().clone()
    for k, polynomial in enumerate(polynomials):
        missed[fold == k] -= polynomial.evaluate(samples.keep[fold == k])[:, None]
    return missed


def _ends(value: Tensor, stderr: Tensor, freedom: Tensor, level: float) -> tuple[Tensor, Tensor]:
    half = stderr * torch.from_numpy(student.ppf((1 + level) / 2, freedom.clamp(min=1e-3).numpy()))
    return value - half, value + half


def _without(samples: Samples, rows: Tensor, by: Any, basis: Basis, seed: int) -> Spectrum:
    """The polynomial of the masks of all folds but one."""
    rest = samples.take(rows.nonzero()[:, 0])
    if isinstance(by, Decoder):
        decoded = by.decode(rest, seed=seed)
        decoded = decoded if decoded.raw is None else decoded.raw  # a link of one fold is not another's
        return decoded.spectrum.mean_output().rewrite(basis)
    return refit(rest.keep, rest.mean_values, _as_members(by), basis)


def _as_members(by: Any) -> Int[Tensor, "set slot"]:
    return by.cpu() if isinstance(by, Tensor) else pad_sets(by)


def every_set(members: Sequence[Tensor]) -> Int[Tensor, "set slot"]:
    """All sets, the empty one first, then by order and content."""
    sets = {s for some in members for s in set_tuples(some)} | {()}
    return pad_sets(tuple(s) for _, s in sorted((len(s), s) for s in sets))


def looked_up(polynomial: Spectrum, members: Tensor) -> Float[Tensor, " set"]:
    """The coefficients of some sets, 0 where the polynomial has none."""
    return torch.tensor([polynomial.get(s) or 0.0 for s in set_tuples(members)], dtype=torch.float64)


def _joined(p: Sequence[Tensor], chosen: Bool[Tensor, "fold set"]) -> Float[Tensor, " set"]:
    """K times the least p-value of the folds without which a set was found; 1 where there is none."""
    counting = torch.where(chosen, torch.stack(list(p)), 1.0)
    return (len(p) * counting.amin(0)).clamp(max=1.0)


def _adjusted(p: Float[Tensor, " set"], tests: float | None = None) -> tuple[Tensor, Tensor]:
    """p and q with the empty set, the first, left out; `tests`: how many there are on average, by default all."""
    p, q = p.clone(), torch.full_like(p, torch.nan)
    p[0], several = torch.nan, p[1:]
    if len(several):
        share = 1.0 if tests is None else max(1.0, tests) / len(several)
        adjusted = torch.from_numpy(q_values(several.numpy())) * share
        q[1:] = torch.where(several < 1, adjusted.clamp(max=1.0), 1.0)
    return p, q


def _check(samples: Samples, folds: int, by: Any) -> None:
    problems = dependence(samples)
    least = getattr(by, "least_masks", 1)
    if folds < 2:
        problems.append(f"{folds} folds; there are at least 2")
    elif len(samples.keep) < FEWEST * folds or len(samples.keep) * (folds - 1) // folds < least:
        problems.append(
            f"{len(samples.keep):,} masks in {folds} folds; every fold needs {FEWEST} masks to test on, and a decoder "
            f"{least:,} outside of it"
        )
    if problems:
        raise DecodeError(all_problems("these masks allow no cross-fitted inference:", problems))
