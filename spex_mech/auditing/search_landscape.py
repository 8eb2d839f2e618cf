"""`Surface`: what measured masks say of masks nearby, with every move to a neighbour priced at once.

A Gaussian process predicts a mask from the measured ones like it, so it is good where they are: unlike a polynomial
learnt under one keep-probability, it can follow a search to masks of another kind, if the search measures as it goes.

With x, z_m in ±1, ``k(x, z_m) = Σ_i l_i x_i z_mi + Σ_j s_j exp(c_j Σ_i a_i (x_i z_mi - 1))``, flipping bit i
multiplies product j by ``exp(-2 c_j a_i x_i z_mi) = cosh(2 c_j a_i) - x_i z_mi sinh(2 c_j a_i)``. So with
``E_jm = solved_m s_j exp(…)`` one product ``z'E`` prices all flips, and ``z' diag(E) z`` all swaps.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spex_mech.walsh.joint.gaussian import GaussianProcess, Posterior, inputs
from spex_mech.walsh.spectrum import Basis

LEARNT_FROM = 1024  # masks that the covariance is learned from, at most
_MOST_BITS = 1 << 25  # keep bits of the masks that predictions are made from
_MOST_MASKS = 3072  # of them: time grows as their cube
_MOST_WORK = 1 << 30  # products of a climb: it takes fewer moves where a mask has many bits
_MOST_PAIRS = 1 << 20  # swaps that are priced at once; beyond, those of the most promising bits
_LEAST_GAIN = 1e-9  # of the spread of the values: a smaller gain is none

MaskValues = Float[Tensor, " mask"]


@dataclass(frozen=True, eq=False)
class Landscape:
    """A covariance over masks, learned once; `surface` conditions it on whatever was measured since."""

    process: GaussianProcess
    weights: dict[str, Tensor]

    @classmethod
    def learn(cls, keep: Bool[Tensor, "mask component"], values: MaskValues, seed: int) -> "Landscape":
        """From masks of any kind and their values; same seed, same bits."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(keep), generator=generator)[:LEARNT_FROM].sort().values
        process, halves = GaussianProcess(), torch.arange(len(rows)) % 2
        trained = process.train(keep[rows], values[rows, None], halves, Basis(), seed)
        return cls(process, {name: weight.mean(0) for name, weight in trained.weights.items()})

    def surface(self, keep: Bool[Tensor, "mask component"], values: MaskValues) -> "Surface":
        """The process given these masks; of very many the last ones, which a search has measured last."""
        most = min(_MOST_MASKS, max(64, _MOST_BITS // keep.shape[1]))
        keep, values = keep[-most:], values[-most:].double()
        return Surface(self.process.posterior(self.weights, keep, values, Basis()), float(values.std(correction=0)))


@dataclass(frozen=True, eq=False)
class Surface:
    """The mean of a process given masks, as a function of one mask and its neighbours."""

    posterior: Posterior
    spread: float

    def predict(self, keep: Bool[Tensor, "mask component"]) -> MaskValues:
        """The value under every mask, float64."""
        return self.posterior.predict(keep)

    @cached_property
    def _relevance(self) -> Float[Tensor, " component"]:
        return torch.nn.functional.softplus(self.posterior.weights["relevance"])

    def flips(self, keep: Bool[Tensor, " component"]) -> Float[Tensor, " component"]:
        """The value after flipping each bit of one mask."""
        x, z = inputs(keep, Basis()), self.posterior.z
        values = float(self.predict(keep[None])[0]) - 2 * self.posterior.slope * x
        for scale, product in self._products(keep):
            turn = 2 * scale * self._relevance
            values += (turn.cosh() - 1) * product.sum() - turn.sinh() * x * (z.T @ product)
        return values

    def swaps(
        self, keep: Bool[Tensor, " component"], inside: Int[Tensor, " one"], outside: Int[Tensor, " other"]
    ) -> Float[Tensor, "one other"]:
        """The value after flipping one bit of each list."""
        x, z = inputs(keep, Basis()), self.posterior.z
        line = self.posterior.slope * x
        values = float(self.predict(keep[None])[0]) - 2 * (line[inside][:, None] + line[outside])
        for scale, product in self._products(keep):
            turn = 2 * scale * self._relevance
            even, odd = turn.cosh(), -turn.sinh() * x
            once = odd * (z.T @ product)
            both = (z[:, inside] * product[:, None]).T @ z[:, outside]
            a, b = even[inside][:, None], even[outside]
            values += (a * b - 1) * product.sum() + once[inside][:, None] * b + a * once[outside]
            values += odd[inside][:, None] * odd[outside] * both
        return values

    def _products(self, keep: Bool[Tensor, " component"]) -> list[tuple[float, MaskValues]]:
        """Scale and ``E_m`` of each product kernel at one mask."""
        z, settings = self.posterior.z, self.posterior.settings
        weight = torch.nn.functional.softplus(self.posterior.weights["weight"])
        far = z @ (self._relevance * inputs(keep, Basis())) - self._relevance.sum()
        return [
            (scale, self.posterior.solved * weight[number] * torch.exp(scale * far))
            for number, scale in enumerate(settings.scales)
        ]


def climb(
    surface: Surface, start: Bool[Tensor, " component"], size: int, radius: int, target: float, sign: int
) -> Bool[Tensor, " component"]:
    """The best mask of at most `size` kept bits and at most `radius` flips from `start` that single moves lead to.

    Best is the largest ``sign · value``, or with sign 0 the smallest ``|value - target|``. From a start that keeps more
    than `size`, first what is missed least is let go, whatever the radius. At most 64 moves.
    """
    most = max(4, min(64, _MOST_WORK // (4 * surface.posterior.z.numel())))
    keep = centre = _shrunk(surface, start, size, target, sign, most)
    value = float(score(surface.predict(keep[None]), target, sign)[0])
    for _ in range(most):
        best, move = _best_move(surface, keep, centre, size, radius, target, sign)
        if not best > value + _LEAST_GAIN * surface.spread:
            break
        keep, value = keep.clone(), best
        keep[move] = ~keep[move]
    return keep


def _shrunk(
    surface: Surface, start: Bool[Tensor, " component"], size: int, target: float, sign: int, steps: int
) -> Bool[Tensor, " component"]:
    """Without what is missed least, in at most `steps` steps."""
    keep, over = start.clone(), max(0, int(start.sum()) - size)
    for step in range(min(steps, over)):
        scores = score(surface.flips(keep), target, sign).masked_fill(~keep, -torch.inf)
        share = (int(keep.sum()) - size) // (min(steps, over) - step)
        keep[scores.argsort(descending=True, stable=True)[:share]] = False
    return keep


def _best_move(
    surface: Surface, keep: Tensor, centre: Tensor, size: int, radius: int, target: float, sign: int
) -> tuple[float, Int[Tensor, " bit"]]:
    """The best flip or swap inside the sphere, and its score."""
    room, moved = radius - int((keep != centre).sum()), keep != centre
    singles = score(surface.flips(keep), target, sign)
    near = torch.where(moved, 1, -1)  # what a flip adds to the room that is left
    allowed = (room + near >= 0) & (keep | (int(keep.sum()) < size))
    single = singles.masked_fill(~allowed, -torch.inf).argmax()
    best, move = (float(singles[single]) if allowed.any() else -torch.inf), single[None]
    inside, outside = _promising(singles, keep)
    if not len(inside) or not len(outside):
        return best, move
    pairs = score(surface.swaps(keep, inside, outside), target, sign)
    pairs = pairs.masked_fill(room + near[inside][:, None] + near[outside] < 0, -torch.inf)
    row, column = divmod(int(pairs.argmax()), len(outside))
    if float(pairs[row, column]) > best:
        best, move = float(pairs[row, column]), torch.stack([inside[row], outside[column]])
    return best, move


def _promising(scores: Tensor, keep: Tensor) -> tuple[Int[Tensor, " one"], Int[Tensor, " other"]]:
    """Kept and ablated bits, or where the pairs would be too many those whose flip scores best."""
    inside, outside = keep.nonzero()[:, 0], (~keep).nonzero()[:, 0]
    if len(inside) * len(outside) <= _MOST_PAIRS:
        return inside, outside
    most = int(_MOST_PAIRS**0.5)
    first, second = (part[scores[part].argsort(descending=True, stable=True)[:most]] for part in (inside, outside))
    return first.sort().values, second.sort().values


def score(values: Tensor, target: float, sign: int) -> Tensor:
    """What is to be made as large as possible: ``sign · value``, or with sign 0 ``-|value - target|``."""
    return sign * values if sign else -(values - target).abs()
