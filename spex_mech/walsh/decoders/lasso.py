"""The Lasso path with cross-validation, all folds side by side, for more columns than rows as well.

The fits without each fold, and the one with all rows, are the columns of one coefficient matrix. Newton steps on the
active columns solve each to rounding, from the solution at the penalty before; where they do not settle, accelerated
proximal gradient (Beck & Teboulle 2009) leads them on. With no more columns than rows the products go through Gram
matrices, otherwise through the columns; of many columns only through those that can be active at this penalty (strong
rules, Tibshirani et al. 2012, whose misses are found by the optimality conditions and put back).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

_NEWTON_STEPS = 8  # before gradient steps are tried instead; from a neighbouring penalty 2 to 4 settle it
_GRADIENT_STEPS = 20
_ROUNDS = 4  # of both; reached only where the columns are nearly dependent
_TOLERANCE = 1e-5  # largest change of a coefficient in a round, relative to the largest coefficient
_PATIENCE = 12  # penalties before the path ends, within which the cross-validated error fell by less than …
_GAIN = 0.998  # … a five-hundredth
_RISEN = 1.02  # times the least cross-validated error so far: it does not come back from there
_MANY = 1024  # columns: their Gram matrices are dear to go through at every step
_CROWDED = 0.7  # of the rows: a fit with more active columns is about to pass through every value
_LOWEST = 1e-3  # the last penalty, relative to the first


@dataclass(frozen=True, eq=False)
class LassoFit:
    """``intercept + x @ coefficients``, the penalty `alpha` that cross-validation chose, and its squared error there.

    `cv_error` and `alpha` are in the squared unit and the unit of the values.
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
        return LassoFit(torch.zeros(x.shape[1], dtype=x.dtype, device=x.device), centre, 0.0, 0.0)
    y = ((values - centre) / scale).to(x.dtype)
    fits = _Fits(x, y, folds.to(x.device))
    best: tuple[float, float, Tensor] | None = None
    bar, waited = float("inf"), 0
    for alpha, beta in _path(fits, n_alphas):
        error = fits.cross_validated_error(beta)
        if best is None or error < best[0]:
            best = (error, alpha, beta[:, -1].clone())
        bar, waited = (error, 0) if error < _GAIN * bar else (bar, waited + 1)
        crowded = bool(((beta != 0).sum(0) > _CROWDED * fits.counts).any())
        if waited >= _PATIENCE or error > _RISEN * best[0] or crowded:
            break
    assert best is not None
    error, alpha, chosen = best
    intercept = centre + scale * float(y.mean() - fits.means[-1] @ chosen)
    return LassoFit(chosen * scale, intercept, alpha * scale, error * scale**2)


@dataclass(frozen=True, eq=False)
class _Fits:
    """One regression a fold left out, and last the one on all rows."""

    x: Float[Tensor, "row column"]
    y: Float[Tensor, " row"]
    folds: Int[Tensor, " row"]

    @cached_property
    def used(self) -> Float[Tensor, "row fit"]:
        """1 where a fit sees the row."""
        left_out = torch.arange(int(self.folds.max()) + 2, device=self.x.device)
        return (self.folds[:, None] != left_out).to(self.x.dtype)

    @cached_property
    def counts(self) -> Float[Tensor, " fit"]:
        return self.used.sum(0)

    @cached_property
    def means(self) -> Float[Tensor, "fit column"]:
        return (self.used.T @ self.x) / self.counts[:, None]

    @cached_property
    def correlations(self) -> Float[Tensor, "column fit"]:
        """``x_cᵀ y / N`` of every fit, centred on its own rows."""
        means = (self.used.T @ self.y) / self.counts
        return self.x.T @ (self.used * (self.y[:, None] - means)) / self.counts

    def residuals(self, beta: Float[Tensor, "column fit"]) -> Float[Tensor, "row fit"]:
        """Every fit's residuals on all rows; those it does not see are predictions' errors."""
        active = (beta != 0).any(1).nonzero()[:, 0]
        left = self.y[:, None] - self.columns[active].T @ beta[active]
        return left - (self.used * left).sum(0) / self.counts

    def cross_validated_error(self, beta: Float[Tensor, "column fit"]) -> float:
        """Mean square over rows of the residual of the fit that did not see the row."""
        unseen = (1 - self.used) * self.residuals(beta)
        return float((unseen**2).sum() / len(self.y))

    def full_correlations(self, beta: Float[Tensor, "column fit"]) -> Float[Tensor, "column fit"]:
        """``x_cᵀ (residual) / N`` for all columns."""
        return self.columns @ (self.used * self.residuals(beta)) / self.counts

    @cached_property
    def step(self) -> float:
        """A step of gradient descent that never overshoots: one over the largest eigenvalue of any fit's Gram matrix,
        by power iteration (from below), and a tenth less."""
        vector = torch.linspace(1, 2, self.x.shape[1], dtype=self.x.dtype, device=self.x.device).cos()[:, None]
        size = self.counts
        for _ in range(40):
            vector = vector / vector.norm(dim=0).clamp(min=1e-30)
            left = self.used * (self.x @ vector)
            left = left - self.used * left.sum(0) / self.counts
            vector = self.x.T @ left / self.counts
            size = vector.norm(dim=0)
        return 1 / (1.1 * float(size.max()) + 1e-12)

    @cached_property
    def columns(self) -> Float[Tensor, "column row"]:
        """The columns one after the other in memory, so that some of them are taken cheaply."""
        return self.x.T.contiguous()


@dataclass(frozen=True, eq=False)
class _System:
    """The optimality conditions of every fit on some columns, through their Gram matrices or the columns themselves."""

    fits: _Fits
    columns: Float[Tensor, "working row"]
    correlations: Float[Tensor, "working fit"]
    grams: Float[Tensor, "fit working working"] | None = None

    @classmethod
    def multiplied(cls, fits: _Fits, rows: Int[Tensor, " working"]) -> "_System":
        """Some columns with their Gram matrices: for no more columns than rows. Every row is multiplied once."""
        counts, columns = fits.counts, fits.columns[rows]
        grams = fits.x.new_zeros(len(counts), len(rows), len(rows))
        for fold in range(len(counts) - 1):
            part = columns[:, fits.folds == fold]
            torch.mm(part, part.T, out=grams[fold])
        grams[-1] = grams.sum(0)
        grams[:-1] = grams[-1] - grams[:-1]
        for gram, count, mean in zip(grams, counts, fits.means[:, rows], strict=True):
            gram.div_(count).addr_(mean, mean, alpha=-1)
        return cls(fits, columns, fits.correlations[rows], grams)

    def slope(self, beta: Float[Tensor, "working fit"]) -> Float[Tensor, "working fit"]:
        """``x_cᵀ (residual) / N``: minus the gradient of the squared error."""
        if self.grams is not None:
            return self.correlations - torch.bmm(self.grams, beta.T[:, :, None])[:, :, 0].T
        active = (beta != 0).any(1).nonzero()[:, 0]
        fitted = self.fits.used * (self.columns[active].T @ beta[active])
        fitted = fitted - self.fits.used * fitted.sum(0) / self.fits.counts
        return self.correlations - self.columns @ fitted / self.fits.counts

    def gram(self, fit: int, active: Int[Tensor, " active"]) -> Float[Tensor, "active active"]:
        """``x_cᵀ x_c / N`` of one fit between the active columns."""
        if self.grams is not None:
            return self.grams[fit][active[:, None], active]
        part = self.columns[active][:, self.fits.folds != fit]
        part = part - part.mean(1, keepdim=True)
        return part @ part.T / part.shape[1]


def _path(fits: _Fits, n_alphas: int) -> Iterator[tuple[float, Float[Tensor, "column fit"]]]:
    """(α, coefficients of every fit), from the α at which every coefficient of the last fit is zero downwards."""
    first = float(fits.correlations[:, -1].abs().max())
    beta = torch.zeros_like(fits.correlations)
    rows, columns = fits.x.shape
    few = columns <= min(rows, _MANY)
    everything = _System.multiplied(fits, torch.arange(columns, device=fits.x.device)) if few else None
    previous = first
    for alpha in (first * _LOWEST ** (i / max(1, n_alphas - 1)) for i in range(n_alphas)):
        if everything is not None:
            beta = _solve(everything, beta, alpha)
        else:
            beta = _solve_working_set(fits, beta, alpha, previous)
        yield alpha, beta
        previous = alpha


def _solve_working_set(
    fits: _Fits, beta: Float[Tensor, "column fit"], alpha: float, previous: float
) -> Float[Tensor, "column fit"]:
    """The fits at α, over the columns that the strong rule leaves and those it wrongly discarded."""
    # the strong rule: a slope is expected to change no faster than the penalty
    working = (beta != 0).any(1) | (fits.full_correlations(beta).abs() >= 2 * alpha - previous).any(1)
    while True:
        rows = working.nonzero()[:, 0]
        if len(fits.columns) <= len(fits.y):
            system = _System.multiplied(fits, rows)
        else:
            system = _System(fits, fits.columns[rows], fits.correlations[rows])
        beta = torch.zeros_like(beta).index_copy_(0, rows, _solve(system, beta[rows], alpha))
        missed = (fits.full_correlations(beta).abs() > alpha * (1 + 1e-3)).any(1) & ~working
        if not missed.any():
            return beta
        working |= missed


def _solve(system: _System, beta: Float[Tensor, "working fit"], alpha: float) -> Tensor:
    """Newton steps where they settle, ever more gradient steps towards the right support where they do not."""
    for attempt in range(_ROUNDS):
        solved, settled = _newton(system, beta, alpha)
        if settled.all():
            return solved
        after = _descend(system, beta, alpha, system.fits.step, _GRADIENT_STEPS << attempt)
        change = float((after - beta).abs().max())
        beta = torch.where(settled, solved, after)
        if change <= _TOLERANCE * float(beta.abs().max()):
            break
    return beta


def _newton(system: _System, beta: Float[Tensor, "working fit"], alpha: float) -> tuple[Tensor, Tensor]:
    """Coefficients and which fits are solved: ``β_A = G_AA⁻¹ (c_A - α sign)`` with A, sign read off the last point.

    The semismooth Newton method on the optimality conditions (Hintermüller et al. 2002); a fixed point of it is the
    solution to rounding. It may circle instead, or meet a singular G_AA; then the fit is unsettled.
    """
    settled = torch.zeros(beta.shape[1], dtype=torch.bool, device=beta.device)
    signs = _signs(beta, system.slope(beta), alpha)
    for _ in range(_NEWTON_STEPS):
        solved = torch.where(settled, beta, 0.0)
        for fit in (~settled).nonzero()[:, 0].tolist():
            active = signs[:, fit].nonzero()[:, 0]
            factor, failed = torch.linalg.cholesky_ex(system.gram(fit, active))
            target = system.correlations[active, fit] - alpha * signs[active, fit]
            solved[active, fit] = torch.nan if failed else torch.cholesky_solve(target[:, None], factor)[:, 0]
        beta, before = solved, signs
        signs = _signs(beta, system.slope(beta), alpha)
        settled = (signs == before).all(0) & beta.isfinite().all(0)
        if settled.all() or not beta.isfinite().all():
            break
    return beta.nan_to_num(), settled


def _signs(beta: Tensor, slope: Tensor, alpha: float) -> Tensor:
    """The sign of every coefficient that is not zero after a proximal step of length 1."""
    moved = beta + slope
    return moved.sign() * (moved.abs() > alpha)


def _descend(system: _System, beta: Tensor, alpha: float, step: float, steps: int) -> Tensor:
    """Accelerated proximal gradient steps, with the momentum restarted where it points uphill."""
    ahead, momentum = beta, 1.0
    for _ in range(steps):
        moved = ahead + step * system.slope(ahead)
        after = moved.sign() * (moved.abs() - step * alpha).clamp(min=0)
        uphill = bool(((ahead - after) * (after - beta)).sum() > 0)
        following = 1.0 if uphill else (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = after if uphill else after + (momentum - 1) / following * (after - beta)
        beta, momentum = after, following
    return beta
