"""A Gaussian process over masks: few masks, many outputs, a relevance learned for every component.

The prior of the function is Gaussian with the covariance

    k(z, z') = Σ_i l_i z_i z'_i + Σ_j s_j exp(-½ c_j Σ_i a_i (z_i - z'_i)²),

a line and, beside it, products over components of 1 or ``exp(-½ c_j a_i |Δ|²)``: a sum over all sets S with variances
that fall with the order and with the relevance a_i of their members. The relevances, the line's variances l_i, the
weights s_j and the noise are those of largest marginal likelihood, summed over outputs (which so share them), less a
penalty on Σ √a_i + Σ √l_i that leaves out components nobody needs. Given them everything is linear algebra.

Source: automatic relevance determination, MacKay 1994, Neal 1996; Rasmussen & Williams 2006, chapter 5. Subsets of the
masks, drawn anew every step, stand for all of them while the relevances are learned.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spex_mech.walsh.outputs import rotated_outputs
from spex_mech.walsh.spectrum import Basis

_STEPS_BEFORE_PEAK = 0.2  # of the one-cycle rate
_OUTPUTS = 32  # beyond, outputs are rotated and the directions of least variance left out
_HEADLINE = 0.5  # share of the likelihood that is the mean output's; the others share the rest
_JITTER = {torch.float32: 1e-4, torch.float64: 1e-7}  # of the prior variance, added so that a factorisation exists
_ATTEMPTS = 4  # at a factorisation, each with a hundred times the jitter
_START = {"relevance": 1.0, "line": 0.3, "noise": 0.1, "weight": 1.0, "more weights": 0.3}


@dataclass(frozen=True)
class GaussianProcess:
    """Settings.

    Attributes:
        scales: the c_j, one product kernel each.
        penalty: on the square roots of the relevances, in nats.
        steps, rate: of Adam with a one-cycle rate.
        subset: masks that a step looks at.
        most_masks: that predictions are made from; more are left out (time grows as their cube, memory as the square).
    """

    scales: tuple[float, ...] = (1.0,)
    penalty: float = 0.3
    steps: int = 100
    rate: float = 0.1
    subset: int = 256
    most_masks: int = 8192

    def train(
        self,
        keep: Bool[Tensor, "mask component"],
        values: Float[Tensor, "mask output"],
        fold: Int[Tensor, " mask"],
        basis: Basis,
        seed: int,
    ) -> "Trained":
        """One process a fold, which learns its covariance from the masks outside it. Same seed, same bits."""
        z, (y, _) = inputs(keep, basis).float(), rotated_outputs(values.to(keep.device), _OUTPUTS)
        y = y.float()
        inside = [(fold != number).nonzero()[:, 0] for number in fold.unique().tolist()]
        weights = self._initial(len(inside), z.shape[1], keep.device)
        share = torch.full((y.shape[1],), (1 - _HEADLINE) / max(1, y.shape[1] - 1), dtype=y.dtype, device=y.device)
        share[0] = _HEADLINE if y.shape[1] > 1 else 1.0
        optimiser = torch.optim.Adam(weights.values(), lr=self.rate, betas=(0.9, 0.95))
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, self.rate, total_steps=self.steps, pct_start=_STEPS_BEFORE_PEAK
        )
        generator = torch.Generator().manual_seed(seed)
        size = min(self.subset, min(map(len, inside)))
        for _ in range(self.steps):
            drawn = torch.stack([rows[torch.randperm(len(rows), generator=generator)[:size]] for rows in inside])
            drawn = drawn.to(keep.device)
            loss = self._loss(weights, z[drawn], y[drawn], share)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            cycle.step()
        learned = {name: raw.detach().double() for name, raw in weights.items()}
        return Trained(self, learned, keep, values.double().mean(1), fold, basis, seed)

    def covariance(
        self, weights: dict[str, Tensor], za: Float[Tensor, "*member row component"], zb: Tensor
    ) -> Float[Tensor, "*member row column"]:
        """``k(z, z')`` of the rows of `za` and `zb`, without noise."""
        relevance, line, weight = (torch.nn.functional.softplus(weights[k]) for k in ("relevance", "line", "weight"))
        scaled = za * relevance[..., None, :]
        far = scaled @ zb.mT - 0.5 * ((scaled * za).sum(-1)[..., :, None] + _norms(zb, relevance)[..., None, :])
        total = (za * line[..., None, :]) @ zb.mT
        for number, scale in enumerate(self.scales):
            total = total + weight[..., number, None, None] * torch.exp(scale * far)
        return total

    def noise(self, weights: dict[str, Tensor]) -> Float[Tensor, "*member"]:
        """The variance of the noise, with what a factorisation mostly needs."""
        noise, weight = (torch.nn.functional.softplus(weights[k]) for k in ("noise", "weight"))
        return noise[..., 0] + _JITTER[noise.dtype] * (1 + weight.sum(-1))

    @torch.inference_mode()
    def posterior(
        self,
        weights: dict[str, Tensor],
        keep: Bool[Tensor, "mask component"],
        values: Float[Tensor, " mask"],
        basis: Basis,
    ) -> "Posterior":
        """The mean function, given masks and what was learned (one member's weights)."""  # fmt: skip
        z, centre = inputs(keep, basis), float(values.mean())
        system = self.covariance(weights, z, z)
        system.diagonal().add_(self.noise(weights))
        solved = torch.cholesky_solve((values - centre)[:, None].to(z.device), _factor(system))[:, 0]
        return Posterior(self, weights, z, solved, centre, basis)

    def _loss(self, weights: dict[str, Tensor], z: Tensor, y: Tensor, share: Tensor) -> Tensor:
        """Minus the log marginal likelihood a mask, each output's variance profiled out, and the penalty."""
        size = z.shape[-2]
        noise = torch.diag_embed(self.noise(weights)[:, None].expand(-1, size))
        factor = _factor(self.covariance(weights, z, z) + noise)
        solved = torch.linalg.solve_triangular(factor, y - y.mean(-2, keepdim=True), upper=False)
        misfit = 0.5 * (solved.square().mean(-2).clamp(min=1e-12).log() * share).sum(-1)
        spread = factor.diagonal(dim1=-2, dim2=-1).log().mean(-1)
        roots = (torch.nn.functional.softplus(weights[k]).sqrt().sum(-1) for k in ("relevance", "line"))
        return (misfit + spread + self.penalty * sum(roots) / size).sum()

    def _initial(self, members: int, n: int, device: torch.device) -> dict[str, Tensor]:
        def filled(value: float, width: int) -> Tensor:
            return torch.full((members, width), _before_softplus(value), device=device)

        weight = filled(_START["more weights"], len(self.scales))
        weight[:, 0] = _before_softplus(_START["weight"])
        raw = {
            "relevance": filled(_START["relevance"] / n, n), "line": filled(_START["line"] / n, n),
            "weight": weight, "noise": filled(_START["noise"], 1),
        }  # fmt: skip
        return {name: value.requires_grad_() for name, value in raw.items()}


@dataclass(frozen=True, eq=False)
class Trained:
    """The processes of all folds. The one for new masks has all masks, and the middle of their covariances."""

    settings: GaussianProcess
    weights: dict[str, Float[Tensor, "member _"]]
    keep: Bool[Tensor, "mask component"]
    values: Float[Tensor, " mask"]
    fold: Int[Tensor, " mask"]
    basis: Basis
    seed: int

    def given(
        self, keep: Bool[Tensor, "mask component"], values: Float[Tensor, "mask output"]
    ) -> Callable[[Bool[Tensor, "row component"]], Float[Tensor, " row"]]:
        """What some masks say of others: those that the covariance was learned from, or more."""
        middle = {name: value.mean(0) for name, value in self.weights.items()}
        return self._posterior(middle, keep, values.double().mean(1)).predict

    @torch.inference_mode()
    def out_of_sample(self) -> Float[Tensor, " mask"]:
        """For the masks it was fitted to: each by the process that has not seen it; the mean over outputs."""
        out = torch.zeros(len(self.keep), dtype=torch.float64)
        for member, number in enumerate(self.fold.unique().tolist()):
            seen, own = self.fold != number, {name: value[member] for name, value in self.weights.items()}
            seen = seen.to(self.keep.device)
            found = self._posterior(own, self.keep[seen], self.values[seen])
            out[(~seen).cpu()] = found.predict(self.keep[~seen]).cpu()
        return out

    def _posterior(self, weights: dict[str, Tensor], keep: Tensor, values: Float[Tensor, " mask"]) -> "Posterior":
        if len(keep) > self.settings.most_masks:
            drawn = torch.randperm(len(keep), generator=torch.Generator().manual_seed(self.seed))
            rows = drawn[: self.settings.most_masks].sort().values.to(keep.device)
            keep, values = keep[rows], values[rows]
        return self.settings.posterior(weights, keep, values, self.basis)


@dataclass(frozen=True, eq=False)
class Posterior:
    """The mean function of a process, given masks: ``centre + Σ_m solved_m k(z, z_m)``, in the unit of the values."""

    settings: GaussianProcess
    weights: dict[str, Tensor]
    z: Float[Tensor, "mask component"]
    solved: Float[Tensor, " mask"]
    centre: float
    basis: Basis

    @torch.inference_mode()
    def predict(self, keep: Bool[Tensor, "row component"]) -> Float[Tensor, " row"]:
        """The mean over outputs, float64."""
        size = max(1, (1 << 22) // len(self.z))
        found = [
            self.settings.covariance(self.weights, inputs(rows, self.basis), self.z) @ self.solved
            for rows in keep.to(self.z.device).split(size)
        ]
        return self.centre + torch.cat(found)


def inputs(keep: Bool[Tensor, "mask component"], basis: Basis) -> Float[Tensor, "mask component"]:
    """Keep bits in the basis, float64."""
    offset, slope = basis.affine
    return offset + slope * keep.double()


def _factor(system: Float[Tensor, "*member row row"]) -> Tensor:
    """The Cholesky factor, with more on the diagonal where rounding has left too little there."""
    more = 0.0
    for attempt in range(_ATTEMPTS):
        factor, failed = torch.linalg.cholesky_ex(system + more * torch.eye(system.shape[-1]).to(system))
        if not failed.any():
            break
        more = _JITTER[system.dtype] * 100**attempt * float(system.diagonal(dim1=-2, dim2=-1).mean())
    return factor


def _norms(z: Tensor, relevance: Tensor) -> Tensor:
    return (z * z * relevance[..., None, :]).sum(-1)


def _before_softplus(value: float) -> float:
    return math.log(math.expm1(value))
