"""`Linear`: order-1 regression, the baseline every claim about interactions is held against.

One coefficient a component by the Lasso, in the basis that is orthonormal under the masks' own keep-probability, with
the penalty chosen by cross-validation. COAR (Shah et al. 2024) fits the same additive model.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spex_mech.errors import DecodeError
from spex_mech.walsh.decoders.lasso import LassoFit, lasso_cv
from spex_mech.walsh.decoding import Decoded, Outcome, Samples, fold_masks, judge, r_squared, split_masks
from spex_mech.walsh.set_rows import pad_sets
from spex_mech.walsh.spectrum import Basis, Spectrum

_EXACT_ELEMENTS = 1 << 26  # masks × components up to which bits are kept in float64 (512 MB), beyond in float32


@dataclass(frozen=True)
class Linear:
    """``min_β 1/(2N) Σ_m (f(m) - β_0 - Σ_i β_i φ(keep_mi))² + α Σ_i |β_i|`` (the Lasso, Tibshirani 1996).

    Works for fewer masks than components as well.

    Attributes:
        heldout: share of the masks on which held-out R² is read; nothing is fitted to them or chosen by them.
        folds: parts of the other masks for the choice of α.
        alphas: penalties on the path, from the one that leaves only the mean down to a thousandth of it.
    """

    heldout: float = 0.2
    folds: int = 5
    alphas: int = 60

    def __post_init__(self) -> None:
        if not 0 < self.heldout < 1 or self.folds < 2 or self.alphas < 1:
            raise DecodeError(
                f"the linear decoder needs a held-out share between 0 and 1, at least 2 folds and at least 1 alpha, "
                f"not {self.heldout}, {self.folds} and {self.alphas}."
            )

    @property
    def name(self) -> str:
        return "linear"

    def decode(self, samples: Samples, *, seed: int) -> Decoded:
        """The empty set and the components the Lasso selects, for the mean over outputs, in the values' unit.

        Standard errors are those of least squares on the selected components, ``σ² (ΦᵀΦ)⁻¹`` with σ² the
        cross-validated squared error, which counts interactions as noise; they are conditional on the selection.
        With fewer than two masks a fold the mean alone comes back, as `Outcome.BUDGET_TOO_SMALL`. Raises `DecodeError`
        where every mask keeps everything, or nothing.
        """
        started = time.perf_counter()
        fit, held = split_masks(samples.groups, self.heldout, seed)
        keep, values, basis = samples.keep[fit], samples.mean_values[fit], _basis(samples)
        enough = len(fit) >= 2 * self.folds
        folds = fold_masks(samples.groups[fit.to(samples.groups.device)], self.folds if enough else 1, seed)
        spectrum, chosen = (
            self._regress(keep, values, folds, basis) if enough else (_mean(values, samples.n, basis), {})
        )
        score = r_squared(samples.mean_values[held], spectrum.evaluate(samples.keep[held]))
        stats = {"heldout_r2": score, "masks_fitted": len(fit), "masks_heldout": len(held), **chosen}
        outcome = judge(spectrum, score) if enough else Outcome.BUDGET_TOO_SMALL
        return Decoded(spectrum, outcome, {**stats, "seconds": time.perf_counter() - started})

    def _regress(
        self,
        keep: Bool[Tensor, "mask component"],
        values: Float[Tensor, " mask"],
        folds: Int[Tensor, " mask"],
        basis: Basis,
    ) -> tuple[Spectrum, Mapping[str, Any]]:
        dtype = torch.float64 if keep.numel() <= _EXACT_ELEMENTS else torch.float32
        offset, slope = basis.affine
        x = offset + slope * keep.to(dtype)
        found = lasso_cv(x, values, folds, self.alphas)
        selected = found.coefficients.nonzero()[:, 0]
        coefficients = torch.cat([torch.tensor([found.intercept]).double(), found.coefficients[selected]])
        members = pad_sets([(), *((i,) for i in selected.tolist())])
        spectrum = Spectrum(keep.shape[1], members, coefficients, basis, _stderr(x[:, selected.to(x.device)], found))
        explained = 1 - found.cv_error / float(values.var(correction=0)) if found.alpha else 0.0
        return spectrum, {"alpha": found.alpha, "selected": len(selected), "cv_r2": explained}


def _basis(samples: Samples) -> Basis:
    keep_prob = samples.keep_prob
    if not 0 < keep_prob < 1:
        raise DecodeError(
            f"every one of the {len(samples.keep):,} masks {'keeps' if keep_prob else 'ablates'} all {samples.n:,} "
            f"components, so no effect can be told from the mean. Draw masks with a keep-probability between 0 and 1."
        )
    return Basis.orthonormal(keep_prob)


def _mean(values: Float[Tensor, " mask"], n: int, basis: Basis) -> Spectrum:
    return Spectrum(n, pad_sets([()]), values.mean()[None].cpu(), basis)


def _stderr(selected: Float[Tensor, "mask column"], found: LassoFit) -> Float[Tensor, " set"]:
    """√ of the diagonal of σ² (ΦᵀΦ)⁻¹, the constant first."""
    design = torch.cat([selected.new_ones(len(selected), 1), selected], 1)
    covariance = found.cv_error * torch.linalg.pinv(design.T @ design, hermitian=True)
    return covariance.diagonal().clamp(min=0).sqrt().double().cpu()
