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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spex_mech.walsh.joint.gradients import gradients
from spex_mech.walsh.joint.marginal_likelihood import JITTER, Likelihood, factorised
from spex_mech.walsh.joint.outputs import rotated_outputs
from spex_mech.walsh.spectrum import Basis

STEPS_BEFORE_PEAK = 0.2  # of the one-cycle rate
_OUTPUTS = 32  # beyond, outputs are rotated and the directions of least variance left out
_HEADLINE = 0.5  # share of the likelihood that is the mean output's; the others share the rest
_BLOCK = {"cpu": 1 << 20}  # covariances computed at a time: what a cache nearly holds
_BLOCK_ELSEWHERE = 1 << 26
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

    @gradients()
    def train(
        self,
        keep: Bool[Tensor, "mask component"],
        values: Float[Tensor, "mask output"],
        fold: Int[Tensor, " mask"],
        basis: Basis,
        seed: int,
        numbers: Sequence[int] | None = None,
    ) -> "Trained":
        """One process a fold (of these numbers; by default of all), which learns its covariance from the masks outside
        it. Same seed, same bits."""
        z, (y, _) = inputs(keep, basis).float(), rotated_outputs(values.to(keep.device), _OUTPUTS)
        y = y.float()
        numbers = fold.unique().tolist() if numbers is None else list(numbers)
        inside = [(fold != number).nonzero()[:, 0] for number in numbers]
        weights = self.initial(len(inside), z.shape[1], keep.device)
        share = torch.full((y.shape[1],), (1 - _HEADLINE) / max(1, y.shape[1] - 1), dtype=y.dtype, device=y.device)
        share[0] = _HEADLINE if y.shape[1] > 1 else 1.0
        optimiser = torch.optim.Adam(weights.values(), lr=self.rate, betas=(0.9, 0.95))
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, self.rate, total_steps=self.steps, pct_start=STEPS_BEFORE_PEAK
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
        return Trained(self, learned, keep, values.double().mean(1), fold, tuple(numbers), basis, seed)

    def covariance(
        self, weights: dict[str, Tensor], za: Float[Tensor, "*member row component"], zb: Tensor
    ) -> Float[Tensor, "*member row column"]:
        """``k(z, z')`` of the rows of `za` and `zb`, without noise."""
        line = torch.nn.functional.softplus(weights["line"])
        total = (za * line[..., None, :]) @ zb.mT
        for weight, product in self.products(weights, za, zb):
            total.addcmul_(product, weight)
        return total

    def products(
        self, weights: dict[str, Tensor], za: Float[Tensor, "*member row component"], zb: Tensor
    ) -> Iterator[tuple[Float[Tensor, "*member 1 1"], Float[Tensor, "*member row column"]]]:
        """The product kernels and their weights. In place where it can be: memory is what takes the time."""
        relevance, weight = (torch.nn.functional.softplus(weights[k]) for k in ("relevance", "weight"))
        scaled = za * relevance[..., None, :]
        far = scaled @ zb.mT
        far -= 0.5 * (scaled * za).sum(-1)[..., :, None]
        far -= 0.5 * _norms(zb, relevance)[..., None, :]
        for number, scale in enumerate(self.scales):
            yield weight[..., number, None, None], (scale * far).exp_()

    def noise(self, weights: dict[str, Tensor]) -> Float[Tensor, "*member"]:
        """The variance of the noise, with what a factorisation mostly needs."""
        noise, weight = (torch.nn.functional.softplus(weights[k]) for k in ("noise", "weight"))
        return noise[..., 0] + JITTER[noise.dtype] * (1 + weight.sum(-1))

    @torch.inference_mode()
    def posterior(
        self,
        weights: dict[str, Tensor],
        keep: Bool[Tensor, "mask component"],
        values: Float[Tensor, " mask"],
        basis: Basis,
    ) -> "Posterior":
        """The mean function, given masks and what was learned (one member's weights)."""  # fmt: skip
        return self._solved(weights, keep, values, basis)[0]

    @torch.inference_mode()
    def without_each(
        self,
        weights: dict[str, Tensor],
        keep: Bool[Tensor, "mask component"],
        values: Float[Tensor, " mask"],
        basis: Basis,
        rows: Int[Tensor, " row"],
    ) -> tuple["Posterior", Float[Tensor, " row"]]:
        """The mean function, and what all other masks say of each of some: ``f(m) - solved_m / (K⁻¹)_mm`` (Rasmussen &
        Williams 2006, 5.12)."""
        found, factor = self._solved(weights, keep, values, basis)
        columns = torch.zeros(len(keep), len(rows), device=factor.device)
        columns[rows, torch.arange(len(rows), device=factor.device)] = 1.0
        precision = torch.linalg.solve_triangular(factor.float(), columns, upper=False).square().sum(0)
        return found, values.to(factor.device)[rows] - found.solved[rows] / precision

    def _solved(
        self, weights: dict[str, Tensor], keep: Tensor, values: Tensor, basis: Basis
    ) -> tuple["Posterior", Float[Tensor, "mask mask"]]:
        """The mean function, and the Cholesky factor of the masks' covariance."""
        z, centre = inputs(keep, basis), float(values.mean())
        system = torch.zeros(len(z), len(z), dtype=z.dtype, device=z.device)
        for start in range(0, len(z), row_block(z)):  # the factorisation reads the lower half only
            stop = start + row_block(z)
            system[start:stop, :stop] = self.covariance(weights, z[start:stop], z[:stop])
        system.diagonal().add_(self.noise(weights))
        factor = factorised(system)
        solved = torch.cholesky_solve((values - centre)[:, None].to(z.device), factor)[:, 0]
        return Posterior(self, weights, z, solved, centre, basis), factor

    def _loss(self, weights: dict[str, Tensor], z: Tensor, y: Tensor, share: Tensor) -> Tensor:
        """Minus the log marginal likelihood a mask, each output's variance profiled out, and the penalty."""
        size = z.shape[-2]
        system = self.covariance(weights, z, z)
        system.diagonal(dim1=-2, dim2=-1).add_(self.noise(weights)[:, None])
        likelihood = Likelihood.apply(system, y - y.mean(-2, keepdim=True), share)
        roots = (torch.nn.functional.softplus(weights[k]).sqrt().sum(-1) for k in ("relevance", "line"))
        return (self.penalty * sum(roots) / size - likelihood).sum()

    def initial(self, members: int, n: int, device: torch.device) -> dict[str, Tensor]:
        def filled(value: float, width: int) -> Tensor:
            return torch.full((members, width), before_softplus(value), device=device)

        weight = filled(_START["more weights"], len(self.scales))
        weight[:, 0] = before_softplus(_START["weight"])
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
    numbers: tuple[int, ...]
    basis: Basis
    seed: int

    def given(self, keep: Bool[Tensor, "mask component"], values: Float[Tensor, "mask output"]) -> "Posterior":
        """What some masks say of others: those that the covariance was learned from, or more."""
        middle = {name: value.mean(0) for name, value in self.weights.items()}
        return self._posterior(middle, keep, values.double().mean(1))

    def out_of_sample(self) -> Float[Tensor, " mask"]:
        """For the masks it was fitted to: each by the process that has not seen it; the mean over outputs."""
        out = torch.zeros(len(self.keep), dtype=torch.float64)
        for number in self.numbers:
            own = (self.fold == number).cpu()
            out[own] = self.unseen(number, own)
        return out

    def unseen(self, number: int, rows: Bool[Tensor, " mask"]) -> Float[Tensor, " row"]:
        """Of some masks of a fold, what all masks but these say, through the covariance learned without the fold."""
        rest = (~rows).to(self.keep.device)
        return self._posterior(self._own(number), self.keep[rest], self.values[rest]).predict(self.keep[~rest]).cpu()

    def without_each(self, number: int) -> tuple["Posterior", Float[Tensor, " row"]]:
        """The mean function of a fold's process given all masks, and of each mask of the fold, what all others say.

        The covariance was learned without the fold, which may be as large as half of the masks: few are enough.
        """
        rows, own = self._drawn(len(self.keep)), (self.fold == number).to(self.keep.device)
        found, without = self.settings.without_each(
            self._own(number), self.keep[rows], self.values[rows], self.basis, own[rows].nonzero()[:, 0]
        )
        out = torch.zeros(len(own), dtype=torch.float64, device=own.device)
        if len(rows) < len(own):
            out[own] = found.predict(self.keep[own])
        out[rows[own[rows]]] = without
        return found, out[own].cpu()

    def _own(self, number: int) -> dict[str, Tensor]:
        member = self.numbers.index(number)
        return {name: value[member] for name, value in self.weights.items()}

    def _posterior(self, weights: dict[str, Tensor], keep: Tensor, values: Float[Tensor, " mask"]) -> "Posterior":
        rows = self._drawn(len(keep)).to(keep.device)
        return self.settings.posterior(weights, keep[rows], values[rows], self.basis)

    def _drawn(self, count: int) -> Int[Tensor, " mask"]:
        """Which of so many masks predictions are made from."""
        if count <= self.settings.most_masks:
            return torch.arange(count, device=self.keep.device)
        drawn = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))
        return drawn[: self.settings.most_masks].sort().values.to(self.keep.device)


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
        size = row_block(self.z)
        return torch.cat([self._block(inputs(rows, self.basis)) for rows in keep.to(self.z.device).split(size)])

    @cached_property
    def slope(self) -> Float[Tensor, " component"]:
        """The line's coefficient of every bit."""
        return torch.nn.functional.softplus(self.weights["line"]) * (self.z.T @ self.solved)

    def _block(self, z: Float[Tensor, "row component"]) -> Float[Tensor, " row"]:
        products = self.settings.products(self.weights, z, self.z)
        return self.centre + z @ self.slope + sum(weight[0] * (part @ self.solved) for weight, part in products)


def row_block(z: Float[Tensor, "mask component"]) -> int:
    """How many rows of covariances with these masks are computed at a time."""
    return max(1, _BLOCK.get(z.device.type, _BLOCK_ELSEWHERE) // len(z))


def inputs(keep: Bool[Tensor, "mask component"], basis: Basis) -> Float[Tensor, "mask component"]:
    """Keep bits in the basis, float64."""
    offset, slope = basis.affine
    return offset + slope * keep.double()


def _norms(z: Tensor, relevance: Tensor) -> Tensor:
    return (z * z * relevance[..., None, :]).sum(-1)


def before_softplus(value: float) -> float:
    return math.log(math.expm1(value))
