"""Fitting ``f(keep) = g(Σ_S c_S φ_S(keep)) + noise``: sets, their coefficients and an increasing g, together.

Noise is added after g, so the squared error is taken on the metric's own scale and g is never inverted. A round of
growth takes the sets whose products correlate best with the gradient of that error, ``(f - g(η)) g'(η)`` (matching
pursuit, `screening.SetSearch`; main effects first, since a bent g makes false pairs of them), then moves coefficients
and shape together by damped Gauss–Newton steps (Marquardt 1963): the columns of the linearised problem are
``g'(η) φ_S`` and the derivatives of g by its parameters. In the end, sets that are not significant are taken out again.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spex_mech.walsh.decoders.refit import noise_floor
from spex_mech.walsh.decoders.screening import Members, SetSearch
from spex_mech.walsh.link.shapes import SHAPES, LinkShape
from spex_mech.walsh.link_function import Link
from spex_mech.walsh.set_rows import pad_sets
from spex_mech.walsh.spectrum import Basis, Spectrum, monomials

# Priors, in shares of what is left over: they hold the shape while few sets are in hand, and fade as the fit grows.
_SMOOTH = 0.03  # of (log g'(knot) - log g'(next))²: draws a spline to a line
_RIDGE = 0.01  # of a squared coefficient under a link: keeps steps from becoming infinitely steep
_LEAST_RIDGE = 1e-9
_AGAIN = 0.9  # growth goes on while it takes a tenth of the residual variance away
_STEPS, _LAST_STEPS = 4, 30  # Gauss–Newton steps after a round, and in the end


@dataclass(frozen=True, eq=False)
class LinkedFit:
    """A link and a latent polynomial in the conventional scale of `Link.normal`; standard errors take g as given."""

    link: Link
    spectrum: Spectrum
    noise: float  # residual variance, in squared units of the metric, corrected for the parameters fitted

    def predict(self, keep: Bool[Tensor, "mask component"]) -> Float[Tensor, " mask"]:
        """The metric under each mask, float64."""
        return self.link(self.spectrum.evaluate(keep))


@dataclass(frozen=True)
class Grower:
    """When growth stops.

    Attributes:
        most_sets: no more than this, nor than a third of the masks.
        degree: largest set that grows from a smaller one.
        false_sets: about how many sets may be taken by chance from noise.
        share: sets taken in one round, at most this share of those in hand, or `at_least`.
        floor: sets down to this share of the largest gain are taken in one round.
        again: how often, at most, sets are sought again after those that were not significant have gone.
        level: of the test in the end, over all sets of the same order that a round looks at (Bonferroni).
    """

    most_sets: int = 400
    degree: int = 6
    false_sets: float = 5.0
    share: float = 0.25
    at_least: int = 8
    floor: float = 0.25
    again: int = 2
    level: float = 0.05

    def fit(
        self,
        keep: Bool[Tensor, "mask component"],
        values: Float[Tensor, " mask"],
        basis: Basis,
        shape: str = "identity",
        seeds: Iterable[Members] = (),
    ) -> LinkedFit:
        """The fit with a shape of `SHAPES`, or "identity"; `seeds` are sets to begin with, beside the empty one."""
        state = _State.start(keep, values, basis, SHAPES.get(shape), seeds)
        offset, slope = basis.affine
        z = offset + slope * keep.float()
        state, search = self._grown(SetSearch(z, 1), state), SetSearch(z, self.degree)
        for _ in range(1 + self.again):
            before, state = state.noise, self._pruned(self._grown(search, state).refined(_LAST_STEPS))
            if not state.noise < _AGAIN * before:
                break
        return state.result()

    def _grown(self, search: SetSearch, state: "_State") -> "_State":
        most = 1 + min(self.most_sets, len(state.y) // 3)
        while len(state.sets) < most:
            fresh = self._chosen(search, state, most - len(state.sets))
            if not fresh:
                break
            state = state.extended(fresh).refined(_STEPS)
        return state

    def cross_fit(
        self,
        keep: Bool[Tensor, "mask component"],
        values: Float[Tensor, " mask"],
        basis: Basis,
        fold: Int[Tensor, " mask"],
        shape: str = "identity",
        seeds: Iterable[Members] = (),
    ) -> Float[Tensor, " mask"]:
        """Each mask's value by a fit without its fold, on the CPU; seeds come from outside."""
        unseen, seeds = torch.zeros(len(values), dtype=torch.float64), list(seeds)
        for number in range(int(fold.max()) + 1):
            out = fold == number
            unseen[out] = self.fit(keep[~out], values[~out], basis, shape, seeds).predict(keep[out]).cpu()
        return unseen

    def _chosen(self, search: SetSearch, state: "_State", room: int) -> list[Members]:
        """The sets that take most of the squared error away to first order and are worth their price, best first."""
        count = min(room, max(self.at_least, int(self.share * len(state.sets))))
        value, slope, _ = state.at
        left = state.y - value
        energy, weight = float(left.square().sum()), float(slope.square().mean())
        if energy <= len(left) * max(1e-12, state.floor**2) or not weight > 0:
            return []
        gradient = left * slope
        per_gain = float(gradient.square().sum()) / (weight * energy)
        found = search.gains(gradient.float(), state.sets, state.phi, 4 * count + 16)
        gains = {s: per_gain * gain for s, gain in found.items()}
        freedom = max(1, len(left) - len(state.sets)) / 2
        worth = {s: -freedom * math.log1p(-min(gain, 1 - 1e-12)) for s, gain in gains.items()}
        paying = [s for s in worth if worth[s] > self._price(len(s), search.n, len(state.sets))]
        best = sorted(paying, key=lambda s: (-gains[s], s))[:count]
        return [s for s in best if gains[s] >= self.floor * gains[best[0]]]

    def _candidates(self, order: int, n: int, in_hand: int) -> int:
        """How many sets of this order a round looks at."""
        return math.comb(n, order) if order <= 2 else n * in_hand

    def _price(self, order: int, n: int, in_hand: int) -> float:
        """Log-likelihood that the best of so many sets reaches by chance."""
        return math.log(self._candidates(order, n, in_hand) / self.false_sets)

    def _pruned(self, state: "_State") -> "_State":
        """Less the sets that are not significant, a quarter of all at a time."""
        while True:
            looked_at = [self._candidates(len(s), state.keep.shape[1], len(state.sets)) for s in state.sets]
            p = torch.special.erfc((state.c / state.stderr).abs() / math.sqrt(2)) * state.c.new_tensor(looked_at)
            p[0] = 0.0
            weak = int((p > self.level).sum())
            if not weak:
                return state
            drop = p.argsort(descending=True, stable=True)[: min(weak, max(1, len(p) // 4))]
            stay = torch.ones(len(p), dtype=torch.bool, device=p.device)
            stay[drop] = False
            state = state.without(~stay).refined(2 * _STEPS)


@dataclass(frozen=True, eq=False)
class _State:
    """A fit in hand: values standardised, g(η) = f(η) @ (u_0, exp u_1, exp u_2, …); no u for the identity."""

    keep: Tensor
    y: Tensor
    centre: float
    size: float
    floor: float  # residual standard deviation below which nothing is believed
    basis: Basis
    shape: LinkShape | None
    sets: list[Members]
    phi: Tensor
    c: Tensor
    u: Tensor

    @classmethod
    def start(
        cls, keep: Tensor, values: Tensor, basis: Basis, shape: LinkShape | None, seeds: Iterable[Members]
    ) -> "_State":
        y = values.to(keep.device, torch.float64)
        centre, size = float(y.mean()), float(y.std(correction=0)) or 1.0
        y, sets = (y - centre) / size, [(), *(s for s in seeds if s)]
        phi = monomials(keep, pad_sets(sets).to(keep.device), basis)
        c, u = y.new_zeros(len(sets)), y.new_zeros(0)
        if shape is not None:
            c[0], first, rest = shape.start(min(float(y.min()), -1e-3), max(float(y.max()), 1e-3))
            u = y.new_tensor([first, *map(math.log, rest)])
        state = cls(keep, y, centre, size, noise_floor(values) / size, basis, shape, sets, phi, c, u)
        return state.refined(_STEPS) if len(sets) > 1 else state

    def response(self, c: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """g(η), g'(η), and the derivatives of g by u [mask, parameter]."""
        eta = self.phi @ c
        if self.shape is None:
            return eta, torch.ones_like(eta), eta.new_zeros(len(eta), 0)
        features, slopes = self.shape.features(eta)
        weights = torch.cat([u[:1], u[1:].exp()])
        by_u = torch.cat([features[:, :1], features[:, 1:] * weights[1:]], 1)
        return features @ weights, slopes @ weights, by_u

    @cached_property
    def at(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.response(self.c, self.u)

    @cached_property
    def left(self) -> float:
        """The share of the variance that is left over."""
        return float((self.y - self.at[0]).square().mean())

    @cached_property
    def prior(self) -> Tensor:
        """The quadratic form of the priors over (c, u)."""
        sets, parameters = len(self.c), len(self.u)
        ridge = self.y.new_full((sets + parameters,), _LEAST_RIDGE)
        if self.shape is not None:
            ridge[1:sets] = _RIDGE * self.left
        prior = torch.diag(ridge)
        if parameters > 2:
            change = torch.eye(parameters, dtype=prior.dtype, device=prior.device)[1:].diff(dim=0)
            prior[sets:, sets:] += _SMOOTH * self.left * change.T @ change
        return prior

    def refined(self, steps: int) -> "_State":
        """After some damped Gauss–Newton steps, none of which makes the error larger."""
        sets, x, prior = len(self.c), torch.cat([self.c, self.u]), self.prior

        def error(x: Tensor) -> float:
            value = (self.y - self.response(x[:sets], x[sets:])[0]).square().mean() + x @ prior @ x
            return float(value) if value.isfinite() else math.inf

        least, damping = error(x), 1e-3
        for _ in range(steps):
            value, slope, by_u = self.response(x[:sets], x[sets:])
            columns = torch.cat([self.phi * slope[:, None], by_u], 1)
            curvature = columns.T @ columns / len(self.y) + prior
            downhill = columns.T @ (self.y - value) / len(self.y) - prior @ x
            found = _step(x, least, curvature, downhill, damping, error)
            if found is None:
                break
            x, now, damping = found
            least, done = now, least - now < 1e-7 * least
            if done:
                break
        return replace(self, c=x[:sets], u=x[sets:])._standardised()

    def _standardised(self) -> "_State":
        """The same function with η of mean 0 and variance 1, where the shape's knots count on it."""
        if self.shape is None or self.shape.free_scale:
            return self
        eta = self.phi @ self.c
        mean, spread = float(eta.mean()), float(eta.std(correction=0))
        if not spread > 1e-9:
            return self
        link = self._link()
        knots = mean + spread * eta.new_tensor(link.values[1 : 1 + len(self.u) - 1])
        slopes = (spread * link.derivative(knots)).clamp(min=1e-9)
        c = self.c / spread
        c[0] -= mean / spread
        return replace(self, c=c, u=torch.cat([link(knots[:1]), slopes.log()]))

    def extended(self, fresh: list[Members]) -> "_State":
        phi = torch.cat([self.phi, monomials(self.keep, pad_sets(fresh).to(self.keep.device), self.basis)], 1)
        return replace(self, sets=self.sets + fresh, phi=phi, c=torch.cat([self.c, self.c.new_zeros(len(fresh))]))

    def without(self, gone: Bool[Tensor, " set"]) -> "_State":
        sets = [s for s, out in zip(self.sets, gone.tolist(), strict=True) if not out]
        return replace(self, sets=sets, phi=self.phi[:, ~gone], c=self.c[~gone])

    @cached_property
    def noise(self) -> float:
        """Residual variance, standardised."""
        freedom = max(1, len(self.y) - len(self.c) - len(self.u))
        return max(float((self.y - self.at[0]).square().sum()) / freedom, self.floor**2)

    @cached_property
    def stderr(self) -> Float[Tensor, " set"]:
        """√ of the diagonal of σ² (ΦᵀG²Φ)⁻¹, G the derivatives of g: those of Gauss–Newton's last step, g given."""
        columns, sets = self.phi * self.at[1][:, None], len(self.c)
        information = columns.T @ columns + len(self.y) * self.prior[:sets, :sets]
        return (self.noise * torch.linalg.pinv(information, hermitian=True).diagonal()).clamp(min=1e-300).sqrt()

    def _link(self) -> Link:
        """Of standardised values."""
        assert self.shape is not None
        return self.shape.make(float(self.u[0]), tuple(self.u[1:].exp().tolist()))

    def result(self) -> LinkedFit:
        """In the metric's units and the latent's conventional scale."""
        link, offset, slope = Link(), self.centre, self.size
        if self.shape is not None and len(self.sets) > 1:
            link, offset, slope = self._link().valued(self.centre, self.size).normal((self.phi @ self.c).cpu())
        c = slope * (self.c if len(self.sets) > 1 else torch.zeros_like(self.c)).cpu()
        c[0] += offset
        spectrum = Spectrum(self.keep.shape[1], pad_sets(self.sets), c, self.basis, slope * self.stderr.cpu())
        return LinkedFit(link, spectrum, self.noise * self.size**2)


def _step(
    x: Tensor, least: float, curvature: Tensor, downhill: Tensor, damping: float, error: Callable[[Tensor], float]
) -> tuple[Tensor, float, float] | None:
    """The first damped step that makes the error smaller: where to, the error there, the next damping; or None."""
    scale = curvature.diagonal().clamp(min=1e-12)
    while damping < 1e8:
        step, failed = torch.linalg.solve_ex(curvature + torch.diag(damping * scale), downhill)
        now = math.inf if failed else error(x + step)
        if now < least:
            return x + step, now, max(damping / 10, 1e-9)
        damping *= 4
    return None
