"""A stack written as one polynomial: in closed form, or by asking it, which costs nothing; then corrected by the masks.

Under fair coins the coefficients of polynomials, trees and processes are known exactly (`closed`). Otherwise matching
pursuit on the stack's values under fresh masks, half of them bolder than the samples', finds sets and coefficients.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spex_mech.walsh.decoders.pursuit import Pursuit
from spex_mech.walsh.decoders.screening import NORMAL
from spex_mech.walsh.decoding import Samples, r_squared
from spex_mech.walsh.joint.closed_form import ClosedForm
from spex_mech.walsh.joint.stack import Stack
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.set_rows import pad_sets
from spex_mech.walsh.spectrum import Basis, Spectrum, monomials

LOST = 0.01  # of what the stack does not know: what reading it out may lose
_BARELY = 0.1  # of what may be lost: sets of learners that carry less of the stack may be found, or not
_TRIFLE = 1e-5  # of the variance: a loss that is none
_FREE_BITS = 1 << 23  # keep bits of the masks that the stack is asked under to read it out
_MOST_FREE, _LEAST_FREE = 1 << 13, 1 << 12
_CHECKED = 1 << 11  # masks that tell what a polynomial of known coefficients loses


def read_out(stack: Stack, samples: Samples, basis: Basis, most: int, seed: int, lost: float = LOST) -> Spectrum:
    """The stack as a polynomial of at most so many sets, as few as lose at most a share of what it does not know."""
    allowed = max(lost * (1 - max(0.0, stack.r2)), _TRIFLE)
    form = _closed_form(stack, samples)
    return (
        _by_pursuit(stack, samples, basis, most, allowed, seed)
        if form is None
        else _truncated(form.strongest(most), stack, samples, allowed, seed)
    )


def on_sets(stack: Stack, samples: Samples, members: Int[Tensor, "set slot"], basis: Basis, seed: int) -> Spectrum:
    """The stack on some sets: its coefficients in closed form, or least squares on what it says if asked."""
    form = _closed_form(stack, samples)
    if form is not None:
        return Spectrum(samples.n, members, form.coefficients(members), basis)
    keep, values = _stack_values(stack, samples, seed)
    phi = monomials(keep, members.to(keep.device), basis)
    gram = phi.T @ phi + 1e-6 * len(keep) * torch.eye(len(members), dtype=phi.dtype, device=phi.device)
    solved = torch.cholesky_solve((phi.T @ values)[:, None], torch.linalg.cholesky(gram))[:, 0]
    return Spectrum(samples.n, members, solved.cpu(), basis)


def _closed_form(stack: Stack, samples: Samples) -> ClosedForm | None:
    """The closed form, where the masks are fair coins and every learner of the stack has one."""
    return stack.closed_form(samples.n) if set(_keep_probs(samples)) == {0.5} else None


def _truncated(found: Spectrum, stack: Stack, samples: Samples, allowed: float, seed: int) -> Spectrum:
    """The first of its sets, the strongest, as many as it takes."""
    keep = _free_masks(samples, _CHECKED, seed).to(samples.keep.device)
    values = stack.predict(keep).to(keep.device)
    terms = monomials(keep, found.members.to(keep.device)) * found.coefficients.to(keep.device)
    lost = (values[:, None] - terms.cumsum(1)).square().mean(0) / values.var(correction=0)
    enough = (lost <= allowed).nonzero()[:, 0]
    return found.select(torch.arange(1 + int(enough[0] if len(enough) else lost.argmin())))


def _stack_values(stack: Stack, samples: Samples, seed: int) -> tuple[Tensor, Float[Tensor, " mask"]]:
    """Masks that cost nothing, and what the stack says of them."""
    count = max(_LEAST_FREE, min(_MOST_FREE, _FREE_BITS // samples.n))
    keep = _free_masks(samples, count + count // 4, seed).to(samples.keep.device)
    return keep, stack.predict(keep).to(keep.device)


def _by_pursuit(stack: Stack, samples: Samples, basis: Basis, most: int, allowed: float, seed: int) -> Spectrum:
    """By matching pursuit, as long as it takes; what the learners have as sets need not be found again."""
    n = samples.n
    keep, values = _stack_values(stack, samples, seed)
    count = len(keep) * 4 // 5
    asked, check = slice(0, count), slice(count, None)
    read, least = Spectrum.from_terms(n, {(): float(values.mean())}, basis), 1.0
    search = Pursuit(most, false_sets=math.inf, share=0.5)
    known = stack.strongest_sets(_BARELY * allowed * float(values.var()))
    for sets, coefficients in search.grow(keep[asked], values[asked], basis, known):
        found = Spectrum(n, pad_sets(sets), coefficients.cpu(), basis)
        lost = 1 - r_squared(values[check], found.evaluate(keep[check]))
        if lost < least:  # rare products may fit the masks asked and nothing else
            read, least = found, lost
        if lost <= allowed:
            break
    return read


def _keep_probs(samples: Samples) -> tuple[float, ...]:
    """The keep-probabilities of the samples' masks."""
    design = samples.design
    return design.keep_probs if design is not None and design.keep_probs else (samples.keep_prob,)


def _free_masks(samples: Samples, count: int, seed: int) -> Bool[Tensor, "mask component"]:
    """Masks that nobody has to run a model on: half of the samples' own keep-probabilities, half with the rarer state
    of a component twice as frequent.

    Products of a biased basis are large where many components are in their rarer state. Samples of the own kind alone
    hardly hold such masks, and a polynomial fitted to them may be far out on the next one.
    """
    own = _keep_probs(samples)
    bolder = tuple(1 - min(0.5, 2 * (1 - q)) if q > 0.5 else min(0.5, 2 * q) for q in own)
    return MaskDesign.stratified(samples.n, count, own + bolder, seed + 1_000_003).keep()


def corrected(read: Spectrum, keep: Tensor, missed: Float[Tensor, " mask"]) -> Spectrum:
    """Coefficients moved towards what the masks say beside the stack, with standard errors.

    A mean of N products is normal only where N is far above their kurtosis, ``E φ⁴ = ((q³ + (1-q)³) / (q(1-q)))^|S|``:
    1 for fair coins, 66 for a pair at q = 0.9. Where it is not, the coefficient stays as it was read.
    """
    phi = monomials(keep, read.members.to(keep.device), read.basis)
    missed = missed.to(keep.device) - missed.mean()
    products = phi * missed[:, None]
    gap = products.mean(0)
    spread = torch.maximum(products.std(0), missed.std())  # that of independent factors, where rare ones were not seen
    error = spread / len(keep) ** 0.5
    chance = 2 * math.log(max(2, len(read)))  # squared z-score that the largest of so many reaches by chance
    beyond = (1 - chance * (error / gap).square()).clamp(min=0).nan_to_num(0.0)
    kurtosis = read.basis.kurtosis ** read.orders.to(keep.device).double()
    moved = (gap * beyond * (len(keep) >= NORMAL * kurtosis)).cpu()
    moved[read.orders == 0] = 0.0
    return Spectrum(read.n, read.members, read.coefficients + moved, read.basis, error.cpu())
