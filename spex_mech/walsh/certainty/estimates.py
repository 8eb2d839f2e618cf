"""One-step estimates: what masks that a polynomial has not seen say of its coefficients, with their errors.

For a polynomial g and masks it was not fitted to, the **partial residual** of a set S, ``r_S = f - g + c_S φ_S``, is
the response less all other terms. Its slope on S,

    ``ĉ_S = Σ_m h_S(m) r_S(m) / Σ_m h_S(m) φ_S(m)``,

estimates the coefficient ``F(S) = E[f φ_S]`` whatever g is, since the basis is orthonormal under the masks; the better
g, the smaller the error. ``h_S`` is φ_S less its mean. Where masks come from several keep-probabilities no product
basis is orthonormal: then h_S are the dual functions ``E[ΦΦᵀ]⁻¹ Φ`` of the sets given, with the expectation in closed
form, and ĉ_S estimates the coefficient of S in the best approximation of f by those sets under the design.

Errors are sandwiches: over masks (or the runs of masks that share bits), each residual divided by one less its leverage
(HC3, MacKinnon & White 1985) and never below what equal errors would give; over outputs; and over both at once, where
what the two have in common counts once (Cameron, Gelbach & Miller 2011). Rare products of a biased basis are decided by
few masks: degrees of freedom are ``(Σ h²)² / Σ h⁴ - 1``, the number of masks that speak, or the same expected under the
design, whichever is less, and sets of one order lend each other some (`moderate`); tests are Student's. A set with less
than one is not judged: at keep-probability 0.9 it takes 132 masks for a pair and 1,066 for a triple.

Source: augmented inverse-propensity weighting, Robins, Rotnitzky & Zhao 1994; cross-fitting, Chernozhukov et al. 2018.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import brentq
from scipy.special import polygamma
from scipy.stats import t as student
from torch import Tensor

from spex_mech.errors import DecodeError
from spex_mech.walsh.decoders.refit import noise_floor
from spex_mech.walsh.decoding import Samples
from spex_mech.walsh.spectrum import Basis, monomials

_BLOCK = 1 << 21  # products looked at at a time: 16 MB, in a dozen tables
_ALIKE = 10  # sets of one order from which their variances say something of each other
_NEAR_ONE = 0.9999  # leverage of a mask that decides a coefficient alone


@dataclass(frozen=True, eq=False)
class Estimates:
    """One number a set, in the unit of the responses.

    Attributes:
        value: ĉ_S, of the mean over outputs.
        stderr: its standard error over masks, for these outputs.
        freedom: degrees of freedom of `stderr`.
        stderr_outputs: over outputs taken as a sample, for these masks; NaN with one output.
        stderr_both: over masks and outputs, both taken as samples; NaN with one output.
        by_output: the estimate of every output.
    """

    value: Float[Tensor, " set"]
    stderr: Float[Tensor, " set"]
    freedom: Float[Tensor, " set"]
    stderr_outputs: Float[Tensor, " set"]
    stderr_both: Float[Tensor, " set"]
    by_output: Float[Tensor, "set output"]

    def p_values(self) -> Float[Tensor, " set"]:
        """Two-sided, of ``F(S) = 0`` for these outputs; 1 where no two masks speak."""
        statistic = (self.value / self.stderr).abs().nan_to_num(0.0)
        p = 2 * student.sf(statistic.numpy(), self.freedom.clamp(min=1e-3).numpy())
        return torch.from_numpy(p).masked_fill(~self.stderr.isfinite(), 1.0).clamp(max=1.0)


@dataclass(frozen=True, eq=False)
class Seen:
    """Masks beside polynomials that have not seen them.

    Attributes:
        missed: response less prediction, by mask and output.
        coefficients: c_S of every polynomial (fold).
        counts: whether the masks of a fold speak for a set.
        fold: which of the polynomials has not seen a mask.
        run: masks with one number share bits by design and count as one.
    """

    samples: Samples
    missed: Float[Tensor, "mask output"]
    coefficients: Float[Tensor, "fold set"]
    counts: Bool[Tensor, "fold set"]
    fold: Int[Tensor, " mask"]
    run: Int[Tensor, " mask"]

    def of_fold(self, k: int) -> "Seen":
        """The masks of one fold, which there speak for every set."""
        rows = (self.fold == k).nonzero()[:, 0]
        every = torch.ones_like(self.counts)
        _, run = self.run[rows].unique(return_inverse=True)
        return Seen(self.samples.take(rows), self.missed[rows], self.coefficients, every, self.fold[rows], run)


class _Raw(NamedTuple):
    """Variances of the estimates, and what they are judged by; columns as in `Estimates`."""

    value: Tensor
    robust: Tensor  # [set] HC3
    equal: Tensor  # [set] as if all errors were alike
    freedom: Tensor
    most: Tensor  # [set] masks that count, less two
    own: Tensor  # [set, output]
    over: Tensor  # [set] over outputs
    shared: Tensor  # [set] what both directions have in common


def one_step_estimates(seen: Seen, members: Int[Tensor, "set slot"], basis: Basis) -> Estimates:
    """Estimates and errors for every set, a block of sets at a time. See the module's text."""
    dual, speaking = _dual(members, basis, seen.samples), _speaking(members, basis, seen.samples)
    floor = noise_floor(seen.samples.values)
    size = max(1, _BLOCK // max(1, len(seen.missed)))
    phi = monomials(seen.samples.keep, members, basis) if dual is not None else None
    parts = []
    for start in range(0, len(members), size):
        rows = torch.arange(start, min(start + size, len(members)))
        own = monomials(seen.samples.keep, members[rows], basis)
        weights = own if dual is None or phi is None else phi @ dual[:, rows]
        constant = (members[rows] < 0).all(1)
        parts.append(_block(seen, own, weights, constant, rows, speaking[rows], floor))
    return _judged(_Raw(*(torch.cat(columns) for columns in zip(*parts, strict=True))), (members >= 0).sum(1))


def mixture_gram(
    members: Int[Tensor, "set slot"], n: int, basis: Basis, keep_probs: tuple[float, ...]
) -> Float[Tensor, "set set"]:
    """``E[φ_S φ_T]`` over masks of several keep-probabilities in equal shares: ``mean_j v_j^|S∩T| μ_j^|S∆T|``, where
    μ_j and v_j are the mean and the mean square of φ under the j-th.

    >>> mixture_gram(torch.tensor([[-1], [0]]), 1, Basis(), (0.5, 1.0)).tolist()
    [[1.0, 0.5], [0.5, 1.0]]
    """
    offset, slope = basis.affine
    bits = torch.zeros(len(members), n + 1, dtype=torch.float64).scatter_(1, members + 1, 1.0)[:, 1:]
    common, orders = bits @ bits.T, bits.sum(1)
    apart = orders[:, None] + orders - 2 * common
    total = torch.zeros_like(common)
    for q in keep_probs:
        mean, square = offset + slope * q, (1 - q) * offset**2 + q * (offset + slope) ** 2
        total += square**common * torch.tensor(mean, dtype=torch.float64) ** apart
    return total / len(keep_probs)


def _speaking(members: Int[Tensor, "set slot"], basis: Basis, samples: Samples) -> Float[Tensor, " set"]:
    """The share of the masks that a set is decided by, expected under the design: ``E[φ_S²]² / E[φ_S⁴]``."""
    design = samples.design
    keep_probs = design.keep_probs if design is not None and design.keep_probs else (samples.keep_prob,)
    q, (offset, slope) = torch.tensor(keep_probs, dtype=torch.float64), basis.affine
    order = (members >= 0).sum(1, keepdim=True)

    def moment(power: int) -> Tensor:
        return (((1 - q) * offset**power + q * (offset + slope) ** power) ** order).mean(1)

    return moment(2) ** 2 / moment(4)


def _dual(members: Tensor, basis: Basis, samples: Samples) -> Float[Tensor, "set set"] | None:
    """``E[ΦΦᵀ]⁻¹`` under a design of several keep-probabilities, None where the basis is orthonormal."""
    design = samples.design
    if design is None or len(set(design.keep_probs)) < 2:
        return None
    gram = mixture_gram(members, samples.n, basis, design.keep_probs)
    eigenvalues, vectors = torch.linalg.eigh(gram)
    if float(eigenvalues[0]) < 1e-10 * float(eigenvalues[-1]):
        raise DecodeError(
            f"{len(members):,} sets were to be told apart under keep-probabilities {list(design.keep_probs)}, but some "
            "are sums of others there. Infer fewer sets, or from masks of one keep-probability."
        )
    return (vectors / eigenvalues) @ vectors.T


def _block(
    seen: Seen, phi: Tensor, weights: Tensor, constant: Tensor, rows: Tensor, speaking: Tensor, floor: float
) -> _Raw:
    """The sets of some rows, by instruments `weights`, which are φ itself in an orthonormal basis."""
    counts = seen.counts[:, rows][seen.fold].double()
    size = counts.sum(0)

    def less_mean(x: Tensor) -> Tensor:
        return (x - (x * counts).sum(0) / size) * counts

    h = torch.where(constant, weights * counts, less_mean(weights))  # the constant itself has no mean to take out
    explained, centred = phi * seen.coefficients[:, rows][seen.fold], less_mean(phi)
    reach = (h * phi).sum(0)  # what a unit of the coefficient moves
    reach = torch.where(reach.abs() > 1e-12 * size, reach, torch.nan)
    partial = seen.missed.mean(1)[:, None] + explained
    value = (h * partial).sum(0) / reach
    left = less_mean(partial) - value * centred
    leverage = (counts / size + h * centred / reach).clamp(0, _NEAR_ONE)
    robust = _summed(h * left / (1 - leverage), seen.run).square().sum(0)
    power = _summed(h.square(), seen.run)
    least = floor**2 * h.square().sum(0)
    equal = power.sum(0) * left.square().sum(0) / (size - 2).clamp(min=1)
    independent = len(power) / len(counts) * size
    freedom = torch.minimum(power.sum(0).square() / power.square().sum(0), independent * speaking) - 1
    own = (h.T @ seen.missed + (h * explained).sum(0)[:, None]) / reach[:, None]
    over, shared = _over_outputs(seen, h, centred, own, reach)
    robust, equal = (variance.clamp(min=least) / reach**2 for variance in (robust, equal))
    return _Raw(value, robust, equal, freedom, independent - 2, own, over, shared)


def _judged(raw: _Raw, orders: Int[Tensor, " set"]) -> Estimates:
    """Errors and degrees of freedom, sets of one order together."""
    blind = ~raw.robust.isfinite() | ~(raw.freedom >= 1)
    ratio, freedom = raw.robust / raw.equal, raw.freedom.clone()
    for order in orders.unique():
        rows = ((orders == order) & ~blind).nonzero()[:, 0]
        ratio[rows], freedom[rows] = moderate(ratio[rows], freedom[rows], raw.most[rows])
    variance = raw.equal * ratio.clamp(min=1)
    both = torch.maximum(variance + raw.over - raw.shared, torch.maximum(variance, raw.over))
    return Estimates(
        raw.value.nan_to_num(0.0), variance.sqrt().masked_fill(blind, torch.inf),
        freedom.masked_fill(blind, 0.0), raw.over.sqrt(), both.sqrt(), raw.own.nan_to_num(0.0),
    )  # fmt: skip


def moderate(
    ratio: Float[Tensor, " set"], freedom: Float[Tensor, " set"], most: Float[Tensor, " set"]
) -> tuple[Float[Tensor, " set"], Float[Tensor, " set"]]:
    """Variance ratios of many sets drawn towards what they have in common, and the degrees of freedom that this gives.

    With d degrees of freedom the observed ratio is ``s² ~ σ² χ²_d / d``; over sets the true ones are
    ``σ² ~ d₀ s₀² / χ²_{d₀}``. Both d₀ and s₀ follow from the mean and the variance of log s². Then
    ``σ̂² = (d₀ s₀² + d s²) / (d₀ + d)`` has ``d₀ + d`` degrees of freedom. Fewer than `_ALIKE` sets stay as they are.

    Source: Smyth 2004, "Linear models and empirical Bayes methods for assessing differential expression", §6.
    """
    if len(ratio) < _ALIKE:
        return ratio, freedom
    half = freedom / 2
    logs = ratio.clamp(min=1e-12).log() - torch.digamma(half) + half.log()
    excess = float(logs.var() - torch.polygamma(1, half).mean())
    prior = 2 * _inverse_trigamma(excess) if excess > 0 else math.inf
    prior = min(prior, float(most.max()))
    at = torch.tensor(prior / 2, dtype=torch.float64)
    centre = (logs.mean() + torch.digamma(at) - at.log()).exp()
    return (prior * centre + freedom * ratio) / (prior + freedom), torch.minimum(prior + freedom, most)


def _inverse_trigamma(value: float) -> float:
    """x > 0 with ψ'(x) = value, by bisection of the logarithm."""
    return math.exp(brentq(lambda x: float(polygamma(1, math.exp(x))) - value, -30.0, 30.0))


def _over_outputs(seen: Seen, h: Tensor, centred: Tensor, own: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Variance over outputs, and the part of it that is also in the variance over masks."""
    outputs = own.shape[1]
    if outputs == 1:
        return torch.full_like(reach, torch.nan), torch.full_like(reach, torch.nan)
    apart = own - own.mean(1, keepdim=True)
    over = apart.square().sum(1) / (outputs * (outputs - 1))
    rest = seen.missed - seen.missed.mean(1, keepdim=True)
    rest = rest - rest.mean(0)
    weight = h.square()
    cells = weight.T @ rest.square().sum(1) - 2 * (weight * centred * (rest @ apart.T)).sum(0)
    cells = cells + (weight * centred.square()).sum(0) * apart.square().sum(1)
    return over, cells.clamp(min=0) / reach**2 / (outputs * (outputs - 1))


def _summed(products: Float[Tensor, "mask set"], run: Int[Tensor, " mask"]) -> Float[Tensor, "run set"]:
    """Summed over the masks of each run."""
    count = int(run.max()) + 1
    if count == len(run):
        return products
    return products.new_zeros(count, products.shape[1]).index_add_(0, run, products)
