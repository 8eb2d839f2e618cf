"""The Lasso with a cross-validated penalty, by scikit-learn's coordinate descent. The only importer of scikit-learn.

`sklearn.linear_model.lasso_path` solves ``min_β 1/(2N) |y - xβ|² + α|β|₁`` (Tibshirani 1996; Friedman, Hastie &
Tibshirani 2010). What `LassoCV` has not is here: all fits go down the path together and stop where the cross-validated
error no longer falls, since with more columns than rows the penalties beyond cost many times those before.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spex_mech.progress import undisturbed

_TOLERANCE = 1e-12  # duality gap over |y|²: coefficients to 1e-13 of the largest (trees on a line split anew from 1e-9)
_SWEEPS = 100_000  # a fit takes tens to thousands; its end is the gap
_BLOCK = 5  # penalties solved in one call: at most four are solved for nothing
_PATIENCE = 12  # penalties before the path ends, within which the cross-validated error fell by less than …
_GAIN = 0.998  # … a five-hundredth
_RISEN = 1.02  # times the least cross-validated error so far: it does not come back from there
_CROWDED = 0.7  # of the rows: a fit with more active columns is about to pass through every value
_LOWEST = 1e-3  # the last penalty, relative to the first


@dataclass(frozen=True, eq=False)
class LassoFit:
    """``intercept + x @ coefficients``, the penalty `alpha` that cross-validation chose, and its squared error there.

    `cv_error` and `alpha` are in the squared unit and the unit of the values; coefficients are float64 on the CPU.
    """

    coefficients: Float[Tensor, " column"]
    intercept: float
    alpha: float
    cv_error: float


def lasso_cv(
    x: Float[Tensor, "row column"], values: Float[Tensor, " row"], folds: Int[Tensor, " row"], n_alphas: int = 60
) -> LassoFit:
    """``min_β 1/(2N) |y - β_0 - xβ|² + α|β|₁`` with the α of least cross-validated error on one path of penalties.

    The path falls from the α that leaves only the intercept to a thousandth of it, and ends early where the error no
    longer falls, or where nearly as many columns are active as there are rows. `folds` numbers the fold of every row
    from 0; the intercept is not penalised. Values that do not vary give the intercept alone.
    """
    centre, scale = float(values.mean()), float(values.std(correction=0))
    if scale <= 1e-12 * max(1e-300, float(values.abs().max())):
        return LassoFit(torch.zeros(x.shape[1], dtype=torch.float64), centre, 0.0, 0.0)
    y = ((values.double() - centre) / scale).cpu().numpy()
    columns, fold = x.cpu().numpy(), folds.cpu().numpy()
    without = [_Regression(columns, y, fold != number) for number in range(int(fold.max()) + 1)]
    whole = _Regression(columns, y, np.ones(len(y), dtype=bool))
    error, alpha, chosen = _best([*without, whole], n_alphas)
    intercept = centre + scale * (whole.value - float(whole.mean @ chosen))
    return LassoFit(torch.from_numpy(chosen) * scale, intercept, alpha * scale, error * scale**2)


def _best(fits: list["_Regression"], n_alphas: int) -> tuple[float, float, Float[np.ndarray, " column"]]:
    """(cross-validated error, α, coefficients of the last fit, which has all rows) at the α of least error."""
    best, bar, waited = (np.inf, 0.0, np.zeros(len(fits[-1].mean))), np.inf, 0
    for alpha, betas in _path(fits, n_alphas):
        pairs = list(zip(fits, betas, strict=True))
        error = sum(fit.unseen_error(beta) for fit, beta in pairs[:-1]) / len(fits[-1].seen)
        if error < best[0]:
            best = (error, alpha, betas[-1].copy())
        bar, waited = (error, 0) if error < _GAIN * bar else (bar, waited + 1)
        crowded = any(np.count_nonzero(beta) > _CROWDED * fit.count for fit, beta in pairs)
        if waited >= _PATIENCE or error > _RISEN * best[0] or crowded:
            break
    return best


def _path(fits: list["_Regression"], n_alphas: int) -> Iterator[tuple[float, list[Float[np.ndarray, " column"]]]]:
    """(α, coefficients of every fit), from the α at which every coefficient of the last fit is zero downwards."""
    first = float(np.abs(fits[-1].moments).max()) / fits[-1].count
    alphas = first * _LOWEST ** (np.arange(n_alphas) / max(1, n_alphas - 1))
    for block in np.split(alphas, range(_BLOCK, n_alphas, _BLOCK)):
        solved = [fit.solve(block) for fit in fits]
        for place, alpha in enumerate(block.tolist()):
            yield alpha, [beta[:, place] for beta in solved]


@dataclass(eq=False)
class _Regression:
    """One regression on the rows it has `seen`, centred on them, in float64, and how far down the path it is."""

    x: Float[np.ndarray, "row column"]
    y: Float[np.ndarray, " row"]
    seen: Bool[np.ndarray, " row"]

    def __post_init__(self) -> None:
        self.count, self.value = int(self.seen.sum()), float(self.y[self.seen].mean())
        self.mean = self.x[self.seen].mean(0, dtype=np.float64)
        self.at = np.zeros(self.x.shape[1])
        self.moments = self._centred().T @ (self.y[self.seen] - self.value)

    def _centred(self) -> Float[np.ndarray, "seen column"]:
        return np.asfortranarray(self.x[self.seen] - self.mean)

    @cached_property
    def gram(self) -> Float[np.ndarray, "column column"] | None:
        """For no more columns than rows: a sweep then costs columns², not rows × columns."""
        return self._centred().T @ self._centred() if self.x.shape[1] <= self.count else None

    def solve(self, alphas: Float[np.ndarray, " alpha"]) -> Float[np.ndarray, "column alpha"]:
        """Coefficients at the next penalties of the path, each from those before."""
        with undisturbed():
            from sklearn.linear_model import lasso_path

        if not self.moments.any():  # a gap of 0 is never below a share of |y|² = 0
            return np.zeros((len(self.at), len(alphas)))
        _, found, _ = lasso_path(
            self._centred(), self.y[self.seen] - self.value, alphas=alphas, coef_init=self.at, tol=_TOLERANCE,
            max_iter=_SWEEPS, check_input=False, precompute=False if self.gram is None else self.gram,
            Xy=None if self.gram is None else self.moments,
        )  # fmt: skip
        self.at = np.ascontiguousarray(found[:, -1])
        return found

    def unseen_error(self, beta: Float[np.ndarray, " column"]) -> float:
        """The squared error on the rows it has not seen, summed."""
        active = np.flatnonzero(beta)
        rest = ~self.seen
        fitted = (self.x[rest][:, active] - self.mean[active]) @ beta[active]
        return float(np.square(self.y[rest] - self.value - fitted).sum())
