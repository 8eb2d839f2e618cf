"""Coefficients of given sets from measured masks: ridge regression with standard errors, paths over nested supports,
and pruning of what the masks do not support.

All fits minimise ``1/N Σ_m (f(m) - Φ_m c)² + α Σ_{S≠∅} (c_S / scale_S)²`` in float64 (ridge, Hoerl & Kennard 1970). The
empty set is always there and never shrunk. In a basis that is orthonormal under the masks, a lone coefficient of scale
1 shrinks by the factor 1/(1 + α), whatever the unit and the number of masks.

Responses are float32 numbers, so no fit is believed to be better than `ROUNDING` of the largest response: without that
floor every rounding error of a noise-free function would be a significant interaction.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spex_mech.errors import DecodeError, ResponseError
from spex_mech.walsh.spectrum import Basis, Spectrum, monomials

ROUNDING = 2.0**-20  # of the largest |value|: what a forward pass in float32 leaves of its 24 bits
_RIDGES = torch.cat([torch.zeros(1), torch.logspace(-8, 2, 41)]).double()
_RANK = 1e-10  # eigenvalues below this share of the largest are directions in which the masks do not differ


def refit(
    keep: Bool[Tensor, "mask component"],
    values: Float[Tensor, " mask"] | Float[Tensor, "mask output"],
    members: Int[Tensor, "set slot"],
    basis: Basis = Basis(),
    *,
    ridge: Literal["gcv"] | float = "gcv",
    scale: Float[Tensor, " set"] | None = None,
) -> Spectrum:
    """Ridge regression of the values on the given sets, one decomposition for all outputs.

    Args:
        keep: the masks; the fit runs on their device.
        values: responses, one a mask, or one a mask and output; finite.
        members: the sets, as in `Spectrum`; the empty set is added where it is missing.
        basis: what the coefficients multiply.
        ridge: α, or "gcv": the α of least generalised cross-validation error (Golub, Heath & Wahba 1979), summed over
            outputs.
        scale: the size at which each coefficient is expected (ones by default): larger ones are shrunk less.

    Returns:
        a `Spectrum`, the empty set first, with standard errors ``σ √diag((ΦᵀΦ/N + α scale⁻²)⁻¹ / N)``, where
        ``σ² = RSS / (N - effective degrees of freedom)``: those of least squares at α = 0, a Bayesian's at α > 0. The
        errors are taken as equal and independent, and the sets as given, not chosen on the same masks.

    Raises:
        DecodeError: shapes that do not fit, or least squares (α = 0) with more sets than the masks can tell apart.
        ResponseError: values that are not finite.
    """
    members, scale = _with_empty(members, scale)
    system = _System.build(keep, values, members, basis, scale)
    alphas = _RIDGES if ridge == "gcv" else torch.tensor([float(ridge)], dtype=torch.float64)
    alpha = system.choose(alphas.to(system.eigenvalues.device))
    coefficients, stderr = system.solve(alpha)
    flat = values.ndim == 1
    return Spectrum(
        keep.shape[1],
        members.cpu(),
        (coefficients[:, 0] if flat else coefficients).cpu(),
        basis,
        (stderr[:, 0] if flat else stderr).cpu(),
    )


def nested_pair(
    fitted: tuple[Bool[Tensor, "mask component"], Float[Tensor, " mask"]],
    unseen: tuple[Bool[Tensor, "row component"], Float[Tensor, " row"]],
    members: Int[Tensor, "set slot"],
    basis: Basis,
    ridges: Sequence[float],
    scale: Float[Tensor, " set"] | None = None,
    *,
    sizes: Sequence[int] | None = None,
    prior: Float[Tensor, " set"] | None = None,
) -> tuple[Float[Tensor, "ridge size row"], Float[Tensor, "ridge size row"]]:
    """The errors on unseen masks of the fits to the first few of the sets (the empty set aside), for each α: shrunk
    towards 0, and shrunk towards a prior.

    ``error[a, k] = prediction - value`` of the ridge fit to sets 0 … sizes[k]-1; by default all sizes from 0 on. With
    a `prior` (0 where none is given) the coefficients are ``c = (G + αI)⁻¹ (Φᵀy/N + α prior)``.
    All sizes and both priors together cost one Cholesky factor and one triangular solve an α: the factor of a leading
    block is the leading block of the factor, so with ``G + αI = L Lᵀ`` the prediction grows by one product,
    ``(L⁻¹ Φᵀ_unseen)_k (L⁻¹ (Φᵀy/N + α prior))_k``, a set.
    Least squares on linearly dependent sets is not defined; give α > 0 where that may happen.
    """
    (keep, values), (new_keep, new_values) = fitted, unseen
    prior = torch.zeros(len(members), dtype=torch.float64) if prior is None else prior
    rows = (members >= 0).any(1).cpu()
    members, scale = _with_empty(members, scale)
    ordered, weights = members[1:], scale[1:].to(keep.device)
    phi = monomials(keep, ordered.to(keep.device), basis) * weights
    new_phi = monomials(new_keep, ordered.to(keep.device), basis) * weights
    mean, constant = phi.mean(0), values.double().mean()
    phi, new_phi = phi - mean, new_phi - mean
    gram, moments = phi.T @ phi / len(keep), phi.T @ (values.double() - constant) / len(keep)
    drawn = prior.cpu().double()[rows].to(keep.device) / weights
    both = torch.cat([moments[:, None], drawn[:, None], new_phi.T], 1)
    start = (constant - new_values.double()).expand(1, -1)
    wanted = torch.tensor(range(len(members)) if sizes is None else list(sizes), device=keep.device)
    found = [_growth(gram, both, alpha) for alpha in ridges]
    plain, near = ([torch.cat([start, start + grown[i]])[wanted] for grown in found] for i in (0, 1))
    return torch.stack(plain), torch.stack(near)


def prune(
    keep: Bool[Tensor, "mask component"],
    values: Float[Tensor, " mask"],
    members: Int[Tensor, "set slot"],
    basis: Basis = Basis(),
    *,
    level: float = 0.01,
    tested: int | None = None,
    ridge: Literal["gcv"] | float = 0.0,
) -> Spectrum:
    """Backward elimination: fit, drop what is not significant, refit, until every set is (the empty set always stays).

    A set is significant where its two-sided p-value is below ``level / tested`` (Bonferroni): with `tested` the number
    of sets among which `members` was chosen (by default, the number of members), the chance that noise puts any false
    set into the result is about `level`. At most half of the sets, the least significant, go at a time, since the
    first fits are the least exact. Raises what `fit` raises.
    """
    bound = level / max(1, len(members) if tested is None else tested)
    while True:
        spectrum = refit(keep, values, members, basis, ridge=ridge)
        p = significance(spectrum).masked_fill(spectrum.orders == 0, 0.0)
        weak = int((p > bound).sum())
        if not weak:
            return spectrum
        drop = p.argsort(descending=True, stable=True)[: min(weak, max(1, len(spectrum) // 2))]
        stay = torch.ones(len(spectrum), dtype=torch.bool).index_fill_(0, drop, False)
        members = spectrum.members[stay]


def significance(spectrum: Spectrum) -> Tensor:
    """Two-sided p-values of ``coefficient = 0``, in the shape of the coefficients: ``erfc(|c / stderr| / √2)``.

    They take the sets as given: for sets that were chosen among many, compare with a level divided by how many.
    Raises `DecodeError` where the spectrum has no standard errors.

    >>> s = Spectrum.from_terms(2, {(0,): 1.96, (1,): 0.0}, stderr={(0,): 1.0, (1,): 1.0})
    >>> [round(p, 3) for p in significance(s).tolist()]
    [0.05, 1.0]
    """
    if spectrum.stderr is None:
        raise DecodeError(
            "this spectrum has no standard errors, so nothing can be said of significance; refit it on its masks."
        )
    z = spectrum.coefficients.double().abs() / spectrum.stderr.double()
    return torch.special.erfc(z.nan_to_num(0.0) / math.sqrt(2))


def noise_floor(values: Tensor) -> float:
    """The residual standard deviation below which no fit is believed, in the unit of the values.

    >>> noise_floor(torch.tensor([0.0, -1.0])) == 2**-20
    True
    """
    return ROUNDING * float(values.abs().max()) if values.numel() else 0.0


@dataclass(frozen=True, eq=False)
class _System:
    """The centred regression in its eigenvectors: ``G = ΦᵀΦ/N = V diag(λ) Vᵀ``, Φ already scaled.

    With more sets than masks the vectors come from the N × N matrix ``ΦΦᵀ/N`` (the dual form); what V does not span
    is known from the prior alone.
    """

    scale: Tensor  # [set]
    mean: Tensor  # [set], of the scaled columns
    vectors: Tensor  # [set, rank]
    eigenvalues: Tensor  # [rank]
    moments: Tensor  # [rank, output]: Vᵀ Φᵀ y / N
    values_mean: Tensor  # [output]
    values_power: Tensor  # [output]: mean square of the centred values
    masks: int
    floor: float

    @classmethod
    def build(cls, keep: Tensor, values: Tensor, members: Tensor, basis: Basis, scale: Tensor) -> "_System":
        y = _checked(keep, values)
        scale = scale[1:].to(keep.device, torch.float64)
        phi = monomials(keep, members[1:].to(keep.device), basis) * scale
        mean, constant, n = phi.mean(0), y.mean(0), len(keep)
        phi, y = phi - mean, y - constant
        vectors, eigenvalues = _eigen(phi)
        moments = vectors.T @ (phi.T @ y) / n
        return cls(scale, mean, vectors, eigenvalues, moments, constant, (y**2).mean(0), n, noise_floor(values))

    def errors(self, alphas: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared residual [alpha, output], never below the floor, and effective degrees of freedom [alpha]."""
        shrunk = self.eigenvalues + alphas[:, None]
        explained = ((2 / shrunk - self.eigenvalues / shrunk**2)[:, :, None] * self.moments**2).sum(1)
        freedom = 1 + (self.eigenvalues / shrunk).sum(1)
        return (self.values_power - explained).clamp(min=self.floor**2), freedom

    def choose(self, alphas: Tensor) -> float:
        """The α of least ``RSS / (N - df)²``; α = 0 only where least squares has one answer."""
        determined = len(self.eigenvalues) == len(self.scale) < self.masks - 1
        if not determined:
            alphas = alphas[alphas > 0]
        if not len(alphas):
            raise DecodeError(
                f"least squares was asked for {len(self.scale) + 1:,} sets, but the {self.masks:,} masks tell only "
                f"{min(len(self.eigenvalues) + 1, self.masks):,} apart, and one mask more than sets is needed. "
                f"Give a ridge above 0 or 'gcv', fewer sets, or more masks."
            )
        rss, freedom = self.errors(alphas)
        score = rss.sum(1) / (self.masks - freedom).clamp(min=1e-9) ** 2
        return float(alphas[int(score.argmin())])

    def solve(self, alpha: float) -> tuple[Tensor, Tensor]:
        """Coefficients and standard errors [set, output], the constant first."""
        shrunk = self.eigenvalues + alpha
        scaled = self.vectors @ (self.moments / shrunk[:, None])
        rss, freedom = self.errors(torch.tensor([alpha], dtype=torch.float64, device=shrunk.device))
        sigma2 = rss[0] * self.masks / (self.masks - freedom[0]).clamp(min=1e-9)
        along = self.vectors.T @ self.mean
        spread = (self.vectors**2 / shrunk).sum(1)
        constant = 1 + (along**2 / shrunk).sum()
        if len(self.eigenvalues) < len(self.scale):
            spread = spread + (1 - (self.vectors**2).sum(1)).clamp(min=0) / alpha
            constant = constant + (self.mean @ self.mean - along @ along).clamp(min=0) / alpha
        variance = torch.cat([constant[None], spread * self.scale**2])[:, None] * sigma2 / self.masks
        coefficients = torch.cat([(self.values_mean - self.mean @ scaled)[None], scaled * self.scale[:, None]])
        return coefficients, variance.sqrt()


def _eigen(phi: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors [set, rank] and eigenvalues [rank] of ΦᵀΦ/N that are not numerically zero, from its smaller form."""
    n, sets = phi.shape
    if not sets:
        return phi.new_zeros(0, 0), phi.new_zeros(0)
    eigenvalues, vectors = torch.linalg.eigh((phi.T @ phi if sets <= n else phi @ phi.T) / n)
    real = eigenvalues > _RANK * eigenvalues[-1].clamp(min=torch.finfo(torch.float64).tiny)
    eigenvalues, vectors = eigenvalues[real], vectors[:, real]
    return (vectors if sets <= n else phi.T @ vectors / (n * eigenvalues).sqrt()), eigenvalues


def _growth(gram: Tensor, both: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """What the first 1, 2, … sets add to each unseen prediction, without and with the prior; `both` holds the moments,
    the prior and the unseen columns."""
    factor = torch.linalg.cholesky(gram + alpha * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    solved = torch.linalg.solve_triangular(factor, both, upper=False)
    moments, prior, columns = solved[:, :1], solved[:, 1:2], solved[:, 2:]
    return (columns * moments).cumsum(0), (columns * (moments + alpha * prior)).cumsum(0)


def _with_empty(members: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """The sets with the empty one first, wherever it stood, and their scales."""
    scale = torch.ones(len(members), dtype=torch.float64) if scale is None else scale.double()
    if members.ndim != 2 or scale.shape != members.shape[:1] or not (scale > 0).all():
        raise DecodeError(
            f"sets {tuple(members.shape)} and scales {tuple(scale.shape)} must be [set, slot] and [set], "
            f"the scales above 0."
        )
    filled = (members >= 0).any(1)
    empty = torch.full((1, members.shape[1]), -1, dtype=members.dtype, device=members.device)
    return torch.cat([empty, members[filled]]), torch.cat([scale.new_ones(1), scale[filled.to(scale.device)]])


def _checked(keep: Tensor, values: Tensor) -> Tensor:
    """The values as float64 [mask, output] on the masks' device."""
    if keep.ndim != 2 or values.ndim not in (1, 2) or len(keep) != len(values) or not len(keep):
        raise DecodeError(
            f"keep {tuple(keep.shape)} and values {tuple(values.shape)} must be [mask, component] and [mask] or "
            f"[mask, output], with as many masks and at least one."
        )
    bad = int((~values.isfinite()).sum())
    if bad:
        raise ResponseError(f"{bad:,} of {values.numel():,} values are not finite; mend the metric or leave them out.")
    return values.to(keep.device, torch.float64).reshape(len(keep), -1)
