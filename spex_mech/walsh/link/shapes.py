"""Shapes: families of links while they are fitted, each ``g(η) = u_0 + Σ_k u_k f_k(η)`` with u_k > 0 for k ≥ 1.

The features f_k are increasing, so every such g is; scale and offset of η are free, which is why the features have no
parameters of their own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spex_mech.names import LinkName
from spex_mech.walsh.link_function import Link

KNOTS = (-2.0, -1.2, -0.4, 0.4, 1.2, 2.0)  # of the spline, in standard deviations of η
_PAD = 0.1  # of the range of the values: how far beyond it ends begin

LinkFeatures = tuple[Float[Tensor, "mask feature"], Float[Tensor, "mask feature"]]
Positive = tuple[float, ...]  # u_1, u_2, …


@dataclass(frozen=True)
class LinkShape:
    """One family.

    Attributes:
        name: of the shape; two shapes may make one kind of link.
        link: the kind of link it makes.
        features: η → (f, f'), each [mask, feature], the constant first.
        start: lowest and highest value (of values with mean 0) → η where g is 0, u_0, and the other u.
        make: u_0 and the other u → the link of η.
        free_scale: the features are tied to η of mean 0 and variance 1.
    """

    name: str
    link: LinkName
    features: Callable[[Float[Tensor, " mask"]], LinkFeatures]
    start: Callable[[float, float], tuple[float, float, Positive]]
    make: Callable[[float, Positive], Link]
    free_scale: bool = True


def _padded(low: float, high: float) -> tuple[float, float]:
    pad = _PAD * (high - low)
    return low - pad, high + pad


def _logistic(eta: Tensor) -> LinkFeatures:
    one, up = torch.ones_like(eta), torch.sigmoid(eta)
    return torch.stack([one, up], 1), torch.stack([torch.zeros_like(eta), up * torch.sigmoid(-eta)], 1)


def _logistic_start(low: float, high: float) -> tuple[float, float, Positive]:
    low, high = _padded(low, high)
    return math.log(-low / high), low, (high - low,)


def _softplus_above(eta: Tensor) -> LinkFeatures:
    one, up = torch.ones_like(eta), torch.nn.functional.softplus(eta)
    return torch.stack([one, up], 1), torch.stack([torch.zeros_like(eta), torch.sigmoid(eta)], 1)


def _softplus_above_start(low: float, high: float) -> tuple[float, float, Positive]:
    low, _ = _padded(low, high)
    return math.log(math.expm1(-low)), low, (1.0,)


def _softplus_below(eta: Tensor) -> LinkFeatures:
    mirrored, slope = _softplus_above(-eta)
    return mirrored * mirrored.new_tensor([1.0, -1.0]), slope


def _softplus_below_start(low: float, high: float) -> tuple[float, float, Positive]:
    at, limit, rise = _softplus_above_start(-high, -low)
    return -at, -limit, rise


def _spline(eta: Tensor) -> LinkFeatures:
    """Hat functions on the knots, constant beyond the last ones, and their integrals from the first knot."""
    x = eta.new_tensor(KNOTS)
    width, inside = x.diff(), eta.clamp(x[0], x[-1]).contiguous()
    piece = (torch.searchsorted(x, inside, right=True) - 1).clamp(0, len(x) - 2)
    step, h = inside - x[piece], width[piece]
    row = torch.arange(len(eta), device=eta.device)
    hat = eta.new_zeros(len(eta), len(x))
    hat[row, piece], hat[row, piece + 1] = 1 - step / h, step / h
    halves = torch.zeros(len(x), len(x), dtype=eta.dtype, device=eta.device)
    at = torch.arange(len(width), device=eta.device)
    halves[at + 1, at] = width / 2
    halves[at + 1, at + 1] = width / 2
    integral = halves.cumsum(0)[piece]
    integral[row, piece] += step - step.square() / (2 * h)
    integral[row, piece + 1] += step.square() / (2 * h)
    integral[:, 0] += (eta - inside).clamp(max=0)
    integral[:, -1] += (eta - inside).clamp(min=0)
    one = torch.ones_like(eta)[:, None]
    return torch.cat([one, integral], 1), torch.cat([torch.zeros_like(one), hat], 1)


SHAPES: dict[str, LinkShape] = {
    shape.name: shape
    for shape in (
        LinkShape("logistic", "logistic", _logistic, _logistic_start,
              lambda u, v: Link("logistic", (u, u + v[0], 0.0, 1.0))),
        LinkShape("softplus above", "softplus", _softplus_above, _softplus_above_start,
              lambda u, v: Link("softplus", (u, v[0], 0.0, 1.0))),
        LinkShape("softplus below", "softplus", _softplus_below, _softplus_below_start,
              lambda u, v: Link("softplus", (u, -v[0], 0.0, 1.0))),
        LinkShape("spline", "spline", _spline, lambda low, high: (0.0, KNOTS[0], (1.0,) * len(KNOTS)),
              lambda u, v: Link("spline", (u, *KNOTS, *v)), free_scale=False),
    )
}  # fmt: skip
