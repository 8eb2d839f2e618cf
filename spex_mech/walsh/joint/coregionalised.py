"""A Gaussian process over rows, each one mask with one output: what masks say of outputs that they never met.

Outputs (prompts) of one function are alike, not equal. Row r is mask z_r with output p_r, and

    k(r, r') = B[p_r, p_r'] k(z_r, z_r') + c [p_r = p_r'],   B = G Gᵀ + τ I,

with `gaussian`'s covariance k of masks, a few numbers a row of G for each output, what an output has to itself (τ), and
the error of its mean (c). All are those of largest marginal likelihood. The headline, the mean over outputs, then has
the covariance ``b_r k(z, z_r)`` with every row, ``b_r = mean_p B[p, p_r]``, so that its posterior mean is one of masks
alone and keeps its closed form; what output p has beside it is told by ``(B[p, p_r] - b_r) k(z, z_r)``, and over all
outputs that is nothing.

Source: intrinsic coregionalisation, Goovaerts 1997; multi-task processes, Bonilla et al. 2008.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spex_mech.walsh.decoding import Samples
from spex_mech.walsh.joint.gaussian import (
    STEPS_BEFORE_PEAK,
    GaussianProcess,
    Posterior,
    before_softplus,
    inputs,
    row_block,
)
from spex_mech.walsh.joint.gradients import gradients
from spex_mech.walsh.joint.marginal_likelihood import Likelihood, factorised
from spex_mech.walsh.spectrum import Basis

_START = {"own": 0.3, "mean": 0.03, "factors": 0.1}
_Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Coregionalised:
    """Settings.

    Attributes:
        process: the covariance of masks, and how it is learned.
        rank: columns of G.
        subset, steps: of learning; a step looks at so many rows.
    """

    process: GaussianProcess
    rank: int = 3
    subset: int = 384
    steps: int = 150

    @gradients()
    def train(
        self, samples: Samples, fold: Int[Tensor, " row"], basis: Basis, seed: int, numbers: Sequence[int]
    ) -> "TrainedRows":
        """One process a number of a fold, which learns its covariance from the rows outside that fold.

        Args:
            samples: one value a mask; masks may come again.
        """
        rows = _Rows.of(samples, basis)
        generator = torch.Generator().manual_seed(seed)
        inside = [(fold != number).nonzero()[:, 0] for number in numbers]
        weights = self._initial(len(inside), rows.z.shape[1], rows.outputs, generator, rows.z.device)
        optimiser = torch.optim.Adam(weights.values(), lr=self.process.rate, betas=(0.9, 0.95))
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, self.process.rate, total_steps=self.steps, pct_start=STEPS_BEFORE_PEAK
        )
        size, share = min(self.subset, min(map(len, inside))), torch.ones(1, device=rows.z.device)
        z, y = rows.z.float(), (rows.left / rows.scale).float()[:, None]
        for _ in range(self.steps):
            drawn = torch.stack([some[torch.randperm(len(some), generator=generator)[:size]] for some in inside])
            drawn = drawn.to(z.device)
            system = self._system(weights, z[drawn], rows.met[drawn])
            roots = (torch.nn.functional.softplus(weights[k]).sqrt().sum(-1) for k in ("relevance", "line"))
            likelihood = Likelihood.apply(system, y[drawn], share)
            loss = (self.process.penalty * sum(roots) / size - likelihood).sum()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            cycle.step()
        learned = {name: raw.detach().double() for name, raw in weights.items()}
        return TrainedRows(self, learned, tuple(numbers), basis, seed)

    def _system(
        self, weights: _Weights, z: Float[Tensor, "*member row component"], met: Int[Tensor, "*member row"]
    ) -> Float[Tensor, "*member row row"]:
        """The covariance of rows with each other, noise included."""
        same = (met[..., :, None] == met[..., None, :]).to(z.dtype)
        system = self.process.covariance(weights, z, z) * self._alike(weights, met, same)
        system = system + torch.nn.functional.softplus(weights["mean"])[..., None] * same
        system.diagonal(dim1=-2, dim2=-1).add_(self.process.noise(weights)[..., None])
        return system

    def _alike(self, weights: _Weights, met: Tensor, same: Tensor) -> Float[Tensor, "*member row row"]:
        """B of the outputs of rows."""
        factors = weights["factors"]
        own = factors[met] if factors.ndim == 2 else factors.gather(1, met[..., None].expand(*met.shape, self.rank))
        return own @ own.mT + torch.nn.functional.softplus(weights["own"])[..., None] * same

    def _initial(
        self, members: int, n: int, outputs: int, generator: torch.Generator, device: torch.device
    ) -> dict[str, Tensor]:
        raw = {name: value.detach() for name, value in self.process.initial(members, n, device).items()}
        factors = _START["factors"] * torch.randn(1, outputs, self.rank, generator=generator)
        factors[..., 0] = 1.0
        raw["factors"] = factors.expand(members, -1, -1).clone().to(device)
        for name in ("own", "mean"):
            raw[name] = torch.full((members, 1), before_softplus(_START[name]), device=device)
        return {name: value.requires_grad_() for name, value in raw.items()}


@dataclass(frozen=True, eq=False)
class _Rows:
    """Masks in the basis, the output of each, and what is left of the values beside the outputs' means."""

    z: Float[Tensor, "row component"]
    met: Int[Tensor, " row"]
    means: Float[Tensor, " output"]
    left: Float[Tensor, " row"]

    @classmethod
    def of(cls, samples: Samples, basis: Basis) -> "_Rows":
        assert samples.met is not None  # one value a row
        met, means = samples.met[:, 0], samples.output_means
        return cls(inputs(samples.keep, basis), met, means, samples.values[:, 0].double() - means[met])

    @property
    def outputs(self) -> int:
        return len(self.means)

    @property
    def scale(self) -> float:
        """The spread of what is left; 1 where nothing is."""
        return float(self.left.std(correction=0)) or 1.0


@dataclass(frozen=True, eq=False)
class TrainedRows:
    """Covariances that were learned, one a number of a fold; the one for new rows is the middle of them."""

    settings: Coregionalised
    weights: _Weights
    numbers: tuple[int, ...]
    basis: Basis
    seed: int

    def given(self, samples: Samples, number: int | None = None) -> "RowsPosterior":
        """What some rows say, through the covariance learned without a fold, or the middle of all."""
        count, most = len(samples.keep), self.settings.process.most_masks
        if count > most:
            drawn = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))[:most]
            samples = samples.take(drawn.sort().values.to(samples.keep.device))
        if number is None:
            weights = {name: value.mean(0) for name, value in self.weights.items()} | {"factors": self._middle}
        else:
            weights = {name: value[self.numbers.index(number)] for name, value in self.weights.items()}
        return RowsPosterior.of(self.settings, weights, _Rows.of(samples, self.basis), self.basis)

    @property
    def _middle(self) -> Float[Tensor, "output factor"]:
        """A factor of the mean of all G Gᵀ: each G is known up to a rotation only, so their mean may be of nothing."""
        factors = self.weights["factors"]
        values, vectors = torch.linalg.eigh((factors @ factors.mT).mean(0))
        return vectors * values.clamp(min=0).sqrt()


@dataclass(frozen=True, eq=False)
class RowsPosterior:
    """The mean function of the headline, and of what every output has beside it, given rows."""

    headline: Posterior
    solved: Float[Tensor, " row"]
    beside: Float[Tensor, "output row"]
    level: Float[Tensor, " output"]

    @classmethod
    @torch.inference_mode()
    def of(cls, settings: Coregionalised, weights: _Weights, rows: _Rows, basis: Basis) -> "RowsPosterior":
        process, scale = settings.process, rows.scale
        factor = factorised(settings._system(weights, rows.z, rows.met))
        solved = torch.cholesky_solve((rows.left / scale)[:, None], factor)[:, 0] * scale
        factors, (own, level) = weights["factors"], (torch.nn.functional.softplus(weights[k]) for k in ("own", "mean"))
        eye = torch.eye(rows.outputs, dtype=solved.dtype, device=solved.device)
        alike = factors @ factors.T + own * eye
        shift = level * torch.zeros_like(rows.means).index_add_(0, rows.met, solved)
        means, b = rows.means + shift, alike.mean(0)
        headline = Posterior(process, weights, rows.z, solved * b[rows.met], float(means.mean()), basis)
        return cls(headline, solved, (alike - b)[:, rows.met], means - means.mean())

    @torch.inference_mode()
    def own(self, keep: Bool[Tensor, "row component"], met: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        """What the output of each row has beside the headline under its mask, float64 on the CPU."""
        head, parts = self.headline, []
        size = row_block(head.z)
        for z, outputs in zip(inputs(keep, head.basis).split(size), met.split(size), strict=True):
            covariance = head.settings.covariance(head.weights, z, head.z)
            parts.append(self.level[outputs] + ((covariance * self.beside[outputs]) @ self.solved))
        return torch.cat(parts).cpu()
