"""The likelihood of a Gaussian process, with the gradient in closed form: a fraction of what autograd takes."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

JITTER = {torch.float32: 1e-4, torch.float64: 1e-7}  # of the prior variance, added so that a factorisation exists
_ATTEMPTS = 4  # at a factorisation, each with a hundred times the jitter
_LEAST = 1e-12  # mean square of a whitened output: one that does not vary at all has no likelihood


class Likelihood(torch.autograd.Function):
    """``-½ Σ_o w_o log(y_oᵀ K⁻¹ y_o / N) - ½ log|K| / N``: the log marginal likelihood a mask of centred outputs with
    covariance ``v_o K``, each variance v_o profiled out, up to a constant. Differentiable in K [member, mask, mask]:

        ∂/∂K = ½ (Σ_o w_o α_o α_oᵀ / (y_oᵀ α_o) - K⁻¹ / N),  α_o = K⁻¹ y_o  (Rasmussen & Williams 2006, 5.9).
    """

    @staticmethod
    def forward(
        ctx: Any,
        system: Float[Tensor, "member mask mask"],
        outputs: Float[Tensor, "member mask output"],
        share: Float[Tensor, " output"],
    ) -> Float[Tensor, " member"]:
        factor, size = factorised(system), system.shape[-1]
        precision = torch.cholesky_inverse(factor)
        solved = precision @ outputs
        misfit = (solved * outputs).sum(-2) / size
        pull = torch.where(misfit > _LEAST, share / misfit, 0.0) / size
        ctx.save_for_backward(0.5 * ((solved * pull[:, None]) @ solved.mT - precision / size))
        spread = factor.diagonal(dim1=-2, dim2=-1).log().mean(-1)
        return -0.5 * (misfit.clamp(min=_LEAST).log() * share).sum(-1) - spread

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, " member"]) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return grad[:, None, None] * slope, None, None


def factorised(system: Float[Tensor, "*member row row"]) -> Tensor:
    """The Cholesky factor, with more on the diagonal where rounding has left too little there."""
    factor, failed = torch.linalg.cholesky_ex(system)
    for attempt in range(_ATTEMPTS - 1):
        if not failed.any():
            break
        more = JITTER[system.dtype] * 100**attempt * float(system.diagonal(dim1=-2, dim2=-1).mean())
        factor, failed = torch.linalg.cholesky_ex(system + more * torch.eye(system.shape[-1]).to(system))
    return factor
