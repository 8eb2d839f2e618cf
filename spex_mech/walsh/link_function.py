"""`Link`: an increasing function g between a polynomial and what was measured, ``f(keep) = g(polynomial(keep))``.

Metrics saturate: a probability cannot pass 1, a log-probability cannot pass 0. Through such a read-out components that
simply add up look as if they interacted, in every order. The latent polynomial under a link is free of that.

======== ============================================================ =================================================
name     g(t)                                                         for
======== ============================================================ =================================================
identity t                                                            what does not saturate
logistic floor + (ceiling - floor) σ((t - centre) / width)            two ends: probabilities, tanh
softplus limit + rise · log(1 + exp(± (t - centre) / width)),         one end: log-probabilities, losses
         ± the sign of `rise`
spline   piecewise quadratic: g' is linear between knots, positive,   any other shape
         and constant beyond the last ones
======== ============================================================ =================================================

Scale and offset of the latent are a convention, without which its coefficients would mean nothing: over the masks, the
least-squares line of the metric on the latent is the identity (`Link.normal`). So a latent unit is worth one unit of
the metric on average, and the latent has the metric's mean.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from jaxtyping import Float
from torch import Tensor

from spex_mech.errors import DecodeError, FormatError, all_problems
from spex_mech.names import LINK_NAMES, LinkName
from spex_mech.walsh.link_families import DERIVATIVE, FORWARD, INVERSE, spline_parts

MAX_KNOTS = 64
_FIELDS: dict[str, tuple[str, ...]] = {
    "identity": (),
    "logistic": ("floor", "ceiling", "centre", "width"),
    "softplus": ("limit", "rise", "centre", "width"),
    "spline": ("start", "knots", "slopes"),
}


@dataclass(frozen=True)
class Link:
    """An increasing function of one number, and its parameters in the order of the table above.

    Attributes:
        name: the family.
        values: logistic: floor, ceiling, centre, width. softplus: limit, rise, centre, width. spline: g at the first
            knot, then all knots, then g' at every knot. `centre`, `width` and knots are in latent units, the others in
            those of the metric (slopes in metric over latent).

    Raises:
        DecodeError: parameters that are not finite or make no increasing function, all problems at once.

    >>> Link("logistic", (0.0, 1.0, 0.0, 0.25))(Tensor([0.0])).tolist()
    [0.5]
    """

    name: LinkName = "identity"
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        problems = _problems(self.name, self.values)
        if problems:
            raise DecodeError(all_problems(f"this is no {self.name} link:", problems))

    @property
    def is_identity(self) -> bool:
        return self.name == "identity"

    def __call__(self, latent: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """g, elementwise, in float64: latent units in, units of the metric out."""
        return FORWARD[self.name](latent.double(), self.values)

    def derivative(self, latent: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """g', elementwise, never negative: units of the metric a latent unit."""
        return DERIVATIVE[self.name](latent.double(), self.values)

    def inverse(self, metric: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The latent that gives each value; ±∞ for values at or beyond an end that g never reaches.

        Do not use it on measured values: their noise comes after g, and near an end the inverse makes much of it.
        """
        return INVERSE[self.name](metric.double(), self.values)

    def rescaled(self, offset: float, slope: float) -> "Link":
        """The link h of the latent ``offset + slope · t``, slope > 0: ``h(offset + slope · t) = g(t)``.

        The identity cannot be rescaled: its latent is the metric.
        """
        if not (slope > 0 and math.isfinite(slope) and math.isfinite(offset)):
            raise DecodeError(f"a latent is rescaled by a finite slope above 0, not by {offset} + {slope} t.")
        if self.is_identity and (offset, slope) != (0.0, 1.0):
            raise DecodeError("the latent of the identity is the metric itself and has no other scale.")
        if self.name == "spline":
            start, knots, slopes = spline_parts(self.values)
            moved = (offset + slope * knot for knot in knots)
            return Link("spline", (start, *moved, *(s / slope for s in slopes)))
        if self.is_identity:
            return self
        low, high, centre, width = self.values
        return Link(self.name, (low, high, offset + slope * centre, slope * width))

    def valued(self, offset: float, factor: float) -> "Link":
        """The link ``offset + factor · g(t)``, factor > 0: the same in other units of the metric."""
        if not (factor > 0 and math.isfinite(factor) and math.isfinite(offset)):
            raise DecodeError(f"a metric is rescaled by a finite factor above 0, not by {offset} + {factor} g.")
        if self.name == "spline":
            start, knots, slopes = spline_parts(self.values)
            return Link("spline", (offset + factor * start, *knots, *(factor * s for s in slopes)))
        if self.is_identity:
            raise DecodeError("the identity's latent is the metric itself; it has no other unit.")
        one, other, centre, width = self.values
        other = factor * other + (offset if self.name == "logistic" else 0.0)
        return Link(self.name, (offset + factor * one, other, centre, width))

    def normal(self, latent: Float[Tensor, " mask"]) -> tuple["Link", float, float]:
        """The link in its conventional scale, and (offset, slope) of the new latent ``offset + slope · t``.

        In it the least-squares line of ``g(t)`` on ``t`` over the given latents is the identity:
        ``slope = Cov(g, t) / Var(t)``, ``offset = mean g - slope · mean t``.
        """
        latent = latent.double()
        if self.is_identity:
            return self, 0.0, 1.0
        metric, centred = self(latent), latent - latent.mean()
        slope = float((metric * centred).sum() / centred.square().sum())
        if not slope > 0 or not math.isfinite(slope):
            raise DecodeError("the scale of a latent is read from masks on which it varies; here it does not.")
        offset = float(metric.mean() - slope * latent.mean())
        return self.rescaled(offset, slope), offset, slope

    @property
    def ends(self) -> tuple[float, float]:
        """What g stays between, in the unit of the metric; ±∞ where there is no end."""
        if self.name == "logistic":
            return self.values[0], self.values[1]
        if self.name == "softplus":
            limit, rise = self.values[:2]
            return (limit, math.inf) if rise > 0 else (-math.inf, limit)
        return -math.inf, math.inf

    def describe(self) -> str:
        """For people.

        >>> Link("logistic", (0.0, 1.0, 0.5, 0.25)).describe()
        'logistic, from 0 to 1'
        """
        low, high = self.ends
        if math.isinf(low) and math.isinf(high):
            return self.name
        ends = (f"from {low:.3g}" if math.isfinite(low) else "", f"to {high:.3g}" if math.isfinite(high) else "")
        return (
            f"{self.name}, {' '.join(end for end in ends if end)}"
            if self.name == "logistic"
            else (
                f"{self.name}, {'above' if math.isfinite(low) else 'below'} {low if math.isfinite(low) else high:.3g}"
            )
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data.

        >>> Link("softplus", (0.0, -1.0, 0.5, 2.0)).to_dict()
        {'name': 'softplus', 'limit': 0.0, 'rise': -1.0, 'centre': 0.5, 'width': 2.0}
        """
        if self.name == "spline":
            start, knots, slopes = spline_parts(self.values)
            return {"name": self.name, "start": start, "knots": list(knots), "slopes": list(slopes)}
        return {"name": self.name, **dict(zip(_FIELDS[self.name], self.values, strict=True))}

    @classmethod
    def from_dict(cls, record: Any) -> "Link":
        """What `to_dict` wrote. Raises `FormatError` on anything else, all problems at once."""
        name = record.get("name") if isinstance(record, Mapping) else None
        if not isinstance(name, str) or name not in _FIELDS:
            raise FormatError(
                f"a link is an object with a name, one of {', '.join(_FIELDS)}; found {str(record)[:80]!r}."
            )
        fields = _FIELDS[name]
        problems = [f"no {key!r}" for key in fields if key not in record]
        problems += [f"unknown {str(key)[:40]!r}" for key in record if key not in ("name", *fields)]
        problems += [problem for key in fields if key in record for problem in _field_problems(key, record[key])]
        if problems:
            raise FormatError(all_problems(f"this is no {name} link:", problems))
        flat = [part for key in fields for part in (record[key] if isinstance(record[key], list) else [record[key]])]
        try:
            return cls(name, tuple(float(part) for part in flat))  # type: ignore[arg-type]
        except DecodeError as error:
            raise FormatError(str(error)) from error


def _field_problems(key: str, value: Any) -> list[str]:
    many = key in ("knots", "slopes")
    if many and not (isinstance(value, list) and len(value) <= MAX_KNOTS):
        return [f"{key!r} must be a list of at most {MAX_KNOTS} numbers"]
    wrong = [v for v in (value if many else [value]) if isinstance(v, bool) or not isinstance(v, int | float)]
    wrong += [v for v in (value if many else [value]) if isinstance(v, int) and abs(v) > 1 << 53]
    return [f"{key!r} is not a number: {str(wrong[0])[:40]!r}"] if wrong else []


def _problems(name: str, values: tuple[float, ...]) -> list[str]:
    if name not in _FIELDS:
        return [f"the links are {', '.join(LINK_NAMES)}"]
    if not all(math.isfinite(v) for v in values):
        return [f"parameters must be finite, not {values}"]
    if name == "spline":
        return _spline_problems(values)
    if len(values) != len(_FIELDS[name]):
        return [f"it has the parameters {', '.join(_FIELDS[name]) or 'none'}; {len(values)} were given"]
    checks = {
        "logistic": lambda: [(values[0] < values[1], "floor must be below ceiling"), (values[3] > 0, "width ≤ 0")],
        "softplus": lambda: [(values[1] != 0, "rise is 0"), (values[3] > 0, "width ≤ 0")],
        "identity": list,
    }
    return [words for sound, words in checks[name]() if not sound]


def _spline_problems(values: tuple[float, ...]) -> list[str]:
    count = (len(values) - 1) // 2
    if len(values) % 2 == 0 or not 2 <= count <= MAX_KNOTS:
        return [f"it has a start, 2 to {MAX_KNOTS} knots and as many slopes; {len(values)} numbers were given"]
    _, knots, slopes = spline_parts(values)
    ascending = all(a < b for a, b in pairwise(knots))
    return ([] if ascending else ["knots must ascend"]) + ([] if min(slopes) > 0 else ["slopes must be above 0"])
