"""`Network`: a sparse neural proxy of a measured function, all outputs at once, as an ensemble that is its own check.

Each member has two hidden GELU layers beside a linear skip, from components to outputs, with an L1 penalty on what
reads the components, and is trained on all masks but one fold's. Its predictions on that fold are out of sample, so the
ensemble's error is known without a mask set aside; the mean of the members is the proxy. Outputs share the hidden
layers: many prompts tell one network where to look, which is worth most when masks are few.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spex_mech.walsh.joint.gradients import gradients
from spex_mech.walsh.joint.outputs import Readout, rotated_outputs
from spex_mech.walsh.spectrum import Basis

_STEPS_BEFORE_PEAK = 0.3  # of the one-cycle rate


@dataclass(frozen=True)
class Network:
    """Settings of the ensemble.

    Attributes:
        width: of both hidden layers.
        steps: of AdamW with a one-cycle rate, `rate` at its peak.
        batch: masks a step, drawn with replacement.
        decay: weight decay of the hidden layers.
        lasso: L1 penalty on the weights that read the components, of outputs with unit variance.
        most_outputs: beyond, outputs are rotated and the directions of least variance left out.
    """

    width: int = 128
    steps: int = 800
    rate: float = 0.01
    batch: int = 512
    decay: float = 0.3
    lasso: float = 3e-3
    most_outputs: int = 32

    @gradients()
    def train(
        self,
        keep: Bool[Tensor, "mask component"],
        values: Float[Tensor, "mask output"],
        fold: Int[Tensor, " mask"],
        basis: Basis,
        seed: int,
    ) -> "NetworkEnsemble":
        """One member a fold, trained on the masks outside it. Same seed, same bits on one device."""
        x, (y, readout) = _inputs(keep, basis), rotated_outputs(values, self.most_outputs)
        y = y.float()
        members = int(fold.max()) + 1
        weights = self._initial(members, keep.shape[1], y.shape[1], seed, keep.device)
        generator = torch.Generator().manual_seed(seed)
        inside = [(fold != member).nonzero()[:, 0].cpu() for member in range(members)]
        optimiser = torch.optim.AdamW(
            [
                {"params": [weights[name] for name in ("w1", "skip", "b1", "b2", "b3")], "weight_decay": 0.0},
                {"params": [weights[name] for name in ("w2", "w3")], "weight_decay": self.decay},
            ],
            lr=self.rate, betas=(0.9, 0.95),
        )  # fmt: skip
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, self.rate, total_steps=self.steps, pct_start=_STEPS_BEFORE_PEAK
        )
        size = min(self.batch, min(map(len, inside)))
        for _ in range(self.steps):
            rows = torch.stack([rows[torch.randint(len(rows), (size,), generator=generator)] for rows in inside])
            rows = rows.to(keep.device)
            missed = _forward(weights, x[rows]) - y[rows]
            penalty = weights["w1"].abs().sum((1, 2)) / self.width**0.5 + weights["skip"].abs().sum((1, 2)) / y.shape[1]
            loss = missed.square().mean((1, 2)).sum() + self.lasso * penalty.sum()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            cycle.step()
        return NetworkEnsemble({name: w.detach() for name, w in weights.items()}, basis, readout)

    def _initial(self, members: int, n: int, outputs: int, seed: int, device: torch.device) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)

        def normal(rows: int, columns: int, gain: float) -> Tensor:
            drawn = torch.randn(members, rows, columns, generator=generator) * gain / math.sqrt(rows)
            return drawn.to(device).requires_grad_()

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(members, *shape, device=device).requires_grad_()

        return {
            "w1": normal(n, self.width, 1.0), "b1": zeros(1, self.width),
            "w2": normal(self.width, self.width, 1.4), "b2": zeros(1, self.width),
            "w3": normal(self.width, outputs, 0.5), "b3": zeros(1, outputs), "skip": zeros(n, outputs),
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class NetworkEnsemble:
    """Trained members; `readout` takes their first output to the mean over the function's outputs, in its unit."""

    weights: dict[str, Tensor]
    basis: Basis
    readout: Readout

    @torch.inference_mode()
    def members(self, keep: Bool[Tensor, "mask component"]) -> Float[Tensor, "member mask"]:
        """What each member says the mean over outputs is."""
        parts = []
        for rows in keep.split(1 << 14):
            x = _inputs(rows, self.basis).expand(len(self.weights["w1"]), -1, -1)
            parts.append(self.readout.mean(_forward(self.weights, x)[..., 0]))
        return torch.cat(parts, 1)

    def predict(self, keep: Bool[Tensor, "mask component"]) -> Float[Tensor, " mask"]:
        """The mean over outputs, by the whole ensemble, float64."""
        return self.members(keep).double().mean(0)

    def out_of_sample(self, keep: Bool[Tensor, "mask component"], fold: Int[Tensor, " mask"]) -> Float[Tensor, " mask"]:
        """For the masks it was trained on: each by the member that did not see it."""
        return self.members(keep).double().gather(0, fold.to(keep.device)[None])[0]


def _inputs(keep: Bool[Tensor, "mask component"], basis: Basis) -> Float[Tensor, "mask component"]:
    offset, slope = basis.affine
    return offset + slope * keep.float()


def _forward(weights: dict[str, Tensor], x: Float[Tensor, "member mask component"]) -> Tensor:
    hidden = torch.nn.functional.gelu(torch.baddbmm(weights["b1"], x, weights["w1"]))
    hidden = torch.nn.functional.gelu(torch.baddbmm(weights["b2"], hidden, weights["w2"]))
    return torch.baddbmm(torch.baddbmm(weights["b3"], x, weights["skip"]), hidden, weights["w3"])
