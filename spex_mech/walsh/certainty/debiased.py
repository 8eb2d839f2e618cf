"""`debias`: how sure the sets of a fit to all masks are, by all masks, at no further decoding.

A fit that shrinks (a Lasso, a process, a stack) is pulled towards zero, and its residuals on masks it has seen are too
small. Both follow from one number, the share of the noise that it has not fitted,

    ``ρ = rms(f - g) / rms(f - g₋)``,

with g the fit and g₋ what versions without a mask say of it (1 - degrees of freedom / masks for least squares). Then

    ``ĉ_S = c_S + (1/ρ) Σ_m h_S(m) (f - g)(m) / Σ_m h_S(m) φ_S(m)``

is unbiased to first order for every set named in advance, and its error is that of a mean of ``h_S (f - g)/ρ``, made as
in `estimates`. It is the least-squares estimate where g is least squares, and needs no fit a fold.

**Selection.** The sets were chosen on these masks. So a set is not tested as one of those found but as one of all that
could have been: n main effects, and sets of order k as ``C(n, k) 2^(k-1)`` tests, which is Benjamini and Hochberg's
procedure with weights (`significance.q_values_by_order`). That costs less than judging by a fifth of the masks.

Source: de-biased regularised estimates with degrees of freedom, Bellec & Zhang 2022 ("De-biasing the lasso with
degrees-of-freedom adjustment", Bernoulli 28); weights, Genovese, Roeder & Wasserman 2006.
"""

import time
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spex_mech.walsh.certainty.estimates import Estimates, Seen, one_step_estimates
from spex_mech.walsh.certainty.independence import dependence, runs, with_design
from spex_mech.walsh.certainty.inference import Inference, every_set, looked_up
from spex_mech.walsh.certainty.significance import q_values_by_order
from spex_mech.walsh.decoders.refit import noise_floor
from spex_mech.walsh.decoding import CrossFit, Samples
from spex_mech.walsh.incomplete import headline
from spex_mech.walsh.set_rows import pad_sets
from spex_mech.walsh.spectrum import Basis

LEAST_SHARE = 0.1  # of the noise: a fit that leaves less of it passes through its masks, and residuals say nothing
METHOD = "all masks, by a de-biased fit; each set counts as one of all of its order"


def debias(samples: Samples, fit: CrossFit) -> Inference | None:
    """The sets of a fit, and every single component, judged by all masks; None where masks are not drawn independently,
    or where the fit passes through them."""
    started = time.perf_counter()
    if dependence(samples):
        return None
    samples = headline(with_design(samples))
    basis = Basis.orthonormal(samples.keep_prob)
    polynomial = fit.spectrum.mean_output().rewrite(basis)
    members = every_set([polynomial.members, pad_sets([(i,) for i in range(samples.n)])])
    share = unfitted_share(samples, fit)
    if share < LEAST_SHARE:
        return None
    found = _estimates(samples, fit, looked_up(polynomial, members), members, basis, share)
    orders = (members >= 0).sum(1)
    p = found.p_values().masked_fill(orders == 0, torch.nan)
    q = torch.from_numpy(q_values_by_order(p.numpy(), orders.numpy(), samples.n))
    again = samples.design is not None and samples.design.again
    masks = len(runs(samples).unique()) if again else len(samples.keep)  # not rows, where a mask has several
    seconds = time.perf_counter() - started
    return Inference(samples.n, members, basis, found, (found,), None, p, q, METHOD, masks, seconds)


def unfitted_share(samples: Samples, fit: CrossFit) -> float:
    """ρ of the module's text, in [0, 1]; 1 where a fit misses nothing that float32 values could show."""
    inside, outside = (_rms(samples.mean_values.cpu() - says.cpu()) for says in (fit.fitted, fit.unseen))
    floor = noise_floor(samples.values)
    return min(1.0, max(inside, floor) / max(outside, floor, 1e-300)) if outside > 0 else 1.0


def _estimates(
    samples: Samples,
    fit: CrossFit,
    coefficients: Float[Tensor, " set"],
    members: Int[Tensor, "set slot"],
    basis: Basis,
    share: float,
) -> Estimates:
    mean, values = samples.mean_values.cpu(), samples.values.double().cpu()
    left = (mean - fit.fitted.cpu()) / share
    missed = values - mean[:, None] + left[:, None]
    one, every = torch.zeros(len(mean), dtype=torch.long), torch.ones(1, len(members), dtype=torch.bool)
    found = one_step_estimates(Seen(samples, missed, coefficients[None], every, one, runs(samples)), members, basis)
    return replace(found, freedom=found.freedom.clamp(max=max(1.0, share * len(mean) - 1)))


def _rms(values: Float[Tensor, " mask"]) -> float:
    return float((values - values.mean()).square().mean().sqrt())
