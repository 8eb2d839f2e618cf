"""The functions of the families of links: g, its derivative and its inverse, of numbers and a link's parameters.

What the parameters are is said in `link_function`; here they are known to make an increasing function.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def spline_parts(values: Sequence[float]) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
    """g at the first knot; the knots; g' at each."""
    count = (len(values) - 1) // 2
    return values[0], tuple(values[1 : 1 + count]), tuple(values[1 + count :])


def _logistic(t: Tensor, v: Sequence[float]) -> Tensor:
    return v[0] + (v[1] - v[0]) * torch.sigmoid((t - v[2]) / v[3])


def _logistic_derivative(t: Tensor, v: Sequence[float]) -> Tensor:
    z = (t - v[2]) / v[3]
    return (v[1] - v[0]) / v[3] * torch.sigmoid(z) * torch.sigmoid(-z)


def _logistic_inverse(y: Tensor, v: Sequence[float]) -> Tensor:
    return v[2] + v[3] * torch.logit(((y - v[0]) / (v[1] - v[0])).clamp(0, 1))


def _softplus(t: Tensor, v: Sequence[float]) -> Tensor:
    return v[0] + v[1] * torch.nn.functional.softplus(math.copysign(1, v[1]) * (t - v[2]) / v[3])


def _softplus_derivative(t: Tensor, v: Sequence[float]) -> Tensor:
    return abs(v[1]) / v[3] * torch.sigmoid(math.copysign(1, v[1]) * (t - v[2]) / v[3])


def _softplus_inverse(y: Tensor, v: Sequence[float]) -> Tensor:
    u = ((y - v[0]) / v[1]).clamp(min=0)
    return v[2] + math.copysign(v[3], v[1]) * (u + torch.log(-torch.expm1(-u)))


def _spline(t: Tensor, v: Sequence[float]) -> Tensor:
    start, x, d = _spline_tensors(t, v)
    at_knot = start + torch.cat([x.new_zeros(1), ((d[1:] + d[:-1]) / 2 * x.diff()).cumsum(0)])
    piece, inside = _piece(t, x)
    bend = (d[1:] - d[:-1]) / x.diff()
    step = inside - x[piece]
    within = at_knot[piece] + d[piece] * step + bend[piece] * step.square() / 2
    return within + torch.where(t < x[0], d[0], d[-1]) * (t - inside)


def _spline_derivative(t: Tensor, v: Sequence[float]) -> Tensor:
    _, x, d = _spline_tensors(t, v)
    piece, inside = _piece(t, x)
    return torch.lerp(d[piece], d[piece + 1], (inside - x[piece]) / x.diff()[piece])


def _spline_inverse(y: Tensor, v: Sequence[float]) -> Tensor:
    start, x, d = _spline_tensors(y, v)
    at_knot = start + torch.cat([x.new_zeros(1), ((d[1:] + d[:-1]) / 2 * x.diff()).cumsum(0)])
    piece, inside = _piece(y, at_knot)
    bend, rise = ((d[1:] - d[:-1]) / x.diff())[piece], inside - at_knot[piece]
    step = 2 * rise / (d[piece] + (d[piece].square() + 2 * bend * rise).clamp(min=0).sqrt())
    return x[piece] + step + (y - inside) / torch.where(y < at_knot[0], d[0], d[-1])


def _spline_tensors(like: Tensor, v: Sequence[float]) -> tuple[float, Tensor, Tensor]:
    start, knots, slopes = spline_parts(v)
    return start, like.new_tensor(knots), like.new_tensor(slopes)


def _piece(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The piece each number lies in, and the number moved to the nearest end where it lies beyond."""
    inside = t.clamp(x[0], x[-1])
    return (torch.searchsorted(x, inside.contiguous(), right=True) - 1).clamp(0, len(x) - 2), inside


_Rule = Callable[[Tensor, Sequence[float]], Tensor]
FORWARD: dict[str, _Rule] = {
    "identity": lambda t, _: t.clone(), "logistic": _logistic, "softplus": _softplus, "spline": _spline
}  # fmt: skip
DERIVATIVE: dict[str, _Rule] = {
    "identity": lambda t, _: torch.ones_like(t), "logistic": _logistic_derivative,
    "softplus": _softplus_derivative, "spline": _spline_derivative,
}  # fmt: skip
INVERSE: dict[str, _Rule] = {
    "identity": lambda y, _: y.clone(), "logistic": _logistic_inverse, "softplus": _softplus_inverse,
    "spline": _spline_inverse,
}  # fmt: skip
