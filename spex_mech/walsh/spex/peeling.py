"""Peeling: find sets in the bins, fit all of them together, look at what is left, until nothing more is found.

A round proposes sets for every bin from what is left there, weighs each by a likelihood ratio over its bins in all
groups and all outputs, accepts those that no rival in any of their bins outweighs, and solves for the coefficients of
all sets at once. So a bin that holds several sets is a small joint problem, and an error of an early round does not
spread: at the end, sets that the fit on all masks does not support are taken out again, and the search goes on.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spex_mech.walsh.decoders.refit import ROUNDING
from spex_mech.walsh.spex.bins import Bins
from spex_mech.walsh.spex.candidates import SmallSets, Sorted, decode_signs, match
from spex_mech.walsh.spex.likelihood_ratio import BinPool, evidence, price_of

# _TOP, _SHORTER and _STANDS_OUT, each halved or doubled: no set and no R² changes (bench constants).
_QUARTILE = -0.6745  # of the standard normal
_TOP = 8  # matches looked at per bin and soft vector
_MATCHES = 1 << 13  # matches looked at in all bins together, where that is more
_TRIALS = 6  # rounds of sets added on trial
_SHORTER = 1.0  # nats by which a trial has to shorten the description
_VECTORS = 2  # soft vectors per bin where there are several outputs
_QUICK = 6e7  # multiply-adds of a matching that is tried in every round
_STANDS_OUT = 4.0  # standard deviations by which a bin that holds a set is above the noise


@dataclass(frozen=True)
class Peeling:
    """How hard to look. `flips`: of the least reliable signs, how many to doubt; `matching`: multiply-adds that one
    matching of a soft vector against all small sets may cost; `false_sets`: expected number of accepted sets that are
    none; `rounds`: at most so many."""

    flips: int = 8
    matching: float = 1e9
    false_sets: float = 0.02
    rounds: int = 200


@dataclass(frozen=True, eq=False)
class Peeled:
    """The sets found (the empty one among them), their joint fit, and what is left in the bins."""

    members: Int[Tensor, "set slot"]
    coefficients: Float[Tensor, "set output"]
    inverse: Float[Tensor, "set set"]
    residual: Float[Tensor, "bin delay output"]
    noise: Float[Tensor, " output"]
    rounds: int
    doubtful: Int[Tensor, "set slot"] | None = None


def peel(bins: Bins, options: Peeling, start: Peeled | None = None) -> Peeled:
    """All sets that the bins give away. The empty set is always there.

    `start` is what fewer delays of the same bins gave away: its sets are kept where they are supported, its doubtful
    candidates are weighed again, and where none of them pays now and no bin stands out, nothing else is looked for.

    Where nothing more is likely enough by itself, but some bins stand out, the likeliest few are taken on trial: in
    bins that hold several sets of equal size each pays only once the others are there. If peeling then goes on and the
    description gets shorter (`_length`), the trial stands; else the state before it is the result.
    """
    found, small = _begin(bins, options, start), SmallSets(bins)
    best, shortest, hopeful = found, math.inf, start is None or found.rounds or bool(stand_out(bins, found).any())
    while hopeful:
        found, pool = _until_nothing_more(bins, found, options, small)
        length = _length(bins, found, options)
        if length >= shortest - _SHORTER:
            return replace(best, rounds=found.rounds)
        best, shortest = replace(found, doubtful=pool.members), length
        hopeful = found.rounds < options.rounds and bool(stand_out(bins, found).any())
        tried = _on_trial(bins, found, pool) if hopeful else None
        if tried is None:
            break
        found = tried
    return best


def _begin(bins: Bins, options: Peeling, start: Peeled | None) -> Peeled:
    """The empty set, or what these bins support of a start and accept of its doubtful candidates."""
    nothing = torch.full((1, bins.code.degree), -1, dtype=torch.long, device=bins.values.device)
    if start is None:
        return fit_bins(bins, nothing)
    found = fit_bins(bins, start.members)
    found = fit_bins(bins, found.members[_supported(bins, found, options)])
    doubtful = nothing[:0] if start.doubtful is None else start.doubtful
    pool = BinPool.of(bins, doubtful, found.members, options.false_sets)
    fresh, pool = _accepted(bins, found, pool)
    while len(fresh):
        found = fit_bins(bins, torch.cat([found.members, fresh]), found.rounds + 1)
        fresh, pool = _accepted(bins, found, pool)
    return found


def _until_nothing_more(bins: Bins, found: Peeled, options: Peeling, small: SmallSets) -> tuple[Peeled, BinPool]:
    """Rounds of adding what pays, then of taking out what the joint fit does not support, until neither changes.

    Beside the result, the candidates that were looked at last.
    """
    banned = found.members[:0]
    pool = BinPool.of(bins, banned, banned, options.false_sets)
    while found.rounds < options.rounds:
        fresh, pool = _accepted(bins, found, pool)
        for level in range(3):
            if not len(fresh):
                proposed = _proposed(bins, found, options, level, small)
                pool = BinPool.of(bins, proposed, torch.cat([found.members, banned]), options.false_sets)
                fresh, pool = _accepted(bins, found, pool)
        if len(fresh):
            found = fit_bins(bins, torch.cat([found.members, fresh]), found.rounds + 1)
            continue
        supported = _supported(bins, found, options)
        if supported.all():
            break
        banned = torch.cat([banned, found.members[~supported]])
        found = fit_bins(bins, found.members[supported], found.rounds + 1)
    return found, pool


def _on_trial(bins: Bins, found: Peeled, pool: BinPool) -> Peeled | None:
    """A few of the likeliest sets added at any price, as soon as one that pays comes in sight; None if none does."""
    for number in range(_TRIALS + 1):
        fresh, rest = _accepted(bins, found, pool)
        if len(fresh) and number:
            return found
        fresh, pool = _accepted(bins, found, rest, on_trial=True)
        if not len(fresh):
            return None
        found = fit_bins(bins, torch.cat([found.members, fresh]), found.rounds + 1)
    return None


def _length(bins: Bins, found: Peeled, options: Peeling) -> float:
    """Nats that describe the responses by these sets: ``Σ_o M/2 log σ_o² +`` the price of every set."""
    variance = residual_variance(bins, found).clamp(min=bins.code.bins * _floor(bins))
    price = price_of(bins, found.members, options.false_sets)
    if bins.outputs > 1:
        price = price + bins.outputs / 2 + (bins.outputs * price).sqrt()
    return bins.masks / 2 * float(variance.log().sum()) + float(price.sum())


def fit_bins(bins: Bins, members: Int[Tensor, "set slot"], rounds: int = 0) -> Peeled:
    """Least squares of the bins on these sets."""
    spelled = bins.spell(members)
    coefficients, inverse = bins.solve(*spelled)
    residual = bins.residual(*spelled, coefficients)
    return Peeled(members, coefficients, inverse, residual, _noise_variance(bins, residual, len(members)), rounds)


def _noise_variance(bins: Bins, residual: Float[Tensor, "bin delay output"], sets: int) -> Float[Tensor, " output"]:
    """The variance of one value of one bin where no set is left, an output.

    The lower quartile of the bins' energies over that of χ²: robust against up to three quarters of bins that still
    hold sets. Never below the rounding of float32 responses.
    """
    delays = bins.delays
    quartile = (1 - 2 / (9 * delays) + _QUARTILE * math.sqrt(2 / (9 * delays))) ** 3  # Wilson and Hilferty's χ²
    fitted = max(0.5, 1 - sets / bins.masks)
    energy = residual.square().mean(1).quantile(0.25, dim=0) / (quartile * fitted)
    return energy.clamp(min=_floor(bins))


def _floor(bins: Bins) -> float:
    return max((ROUNDING * bins.largest) ** 2, 1e-300)


def stand_out(bins: Bins, found: Peeled, deviations: float = _STANDS_OUT) -> Bool[Tensor, " bin"]:
    """Bins with more energy left than noise has, by so many standard deviations of χ²."""
    energy = (found.residual.square() / found.noise).sum((1, 2))
    expected = bins.delays * bins.outputs
    return energy > expected + deviations * math.sqrt(2 * expected)


def _accepted(bins: Bins, found: Peeled, pool: BinPool, *, on_trial: bool = False) -> tuple[Tensor, BinPool]:
    """Sets to add, and those to keep in mind: accepted is what is likelier than any rival in each of its bins."""
    if not len(pool):
        return pool.members, pool
    gain, where = evidence(bins, found.residual, len(found.members), found.noise, pool)
    margin = gain - pool.prices
    likely = gain > 0 if on_trial else margin > 0
    margin = torch.where(likely, margin, -math.inf)
    best = torch.full((len(bins.values),), -math.inf, dtype=gain.dtype, device=gain.device)
    best.scatter_reduce_(0, where.flatten(), margin.repeat_interleave(bins.code.groups), "amax")
    accepted = likely & (margin[:, None] >= best[where]).all(1)
    return pool.members[accepted], pool.take(~accepted)


def _proposed(bins: Bins, found: Peeled, options: Peeling, level: int, small: SmallSets) -> Tensor:
    """Sets that the bins' residuals suggest, with more effort at each level.

    0: the signs as they are, what differs by one player from a set found, and all small sets if that is quick; 1: the
    signs with doubts; 2: all small sets, up to the order that is affordable. Bins at noise level are left out.
    """
    where = stand_out(bins, found, 0.5).nonzero()[:, 0]
    effort = options.matching if level == 2 else min(options.matching, _QUICK)
    halves = _halves(bins, effort)
    top = max(_TOP, min(_TOP << (2 * level), _MATCHES // max(1, len(where))))
    quick = level != 1 and len(found.members) * bins.code.n * bins.rows <= effort
    near = Sorted.of(bins, found.members[1:]) if quick and len(found.members) > 1 else None
    proposals = [found.members[:0]]
    for soft in soft_vectors(found.residual, found.noise):
        if level == 1 or (level == 0 and sum(halves) < 3):
            proposals.append(decode_signs(bins, soft[where], where, level * options.flips))
        if halves[0] and level != 1:
            left, right = small.up_to(halves[0]), small.up_to(halves[1], empty=True)
            proposals.append(match(bins, soft[where], where, left, right, top * math.comb(sum(halves), halves[0])))
        if near is not None:
            proposals.append(match(bins, soft[where], where, near, small.up_to(1), _TOP))
    return torch.cat(proposals)


def _halves(bins: Bins, effort: float) -> tuple[int, int]:
    """Orders of the largest two lists of all sets whose joins may all be tried for this many multiply-adds."""
    n, degree = bins.code.n, max(2, bins.code.degree)
    count = {1: n, 2: n * (n + 1) // 2}
    wide = {half: many + 3 * math.sqrt(many * bins.code.bins) for half, many in count.items()}  # buckets as full as any
    for left, right in ((2, 2), (2, 1), (1, 1)):
        if left + right <= degree and wide[left] * wide[right] * bins.rows <= effort:
            return left, right
    return 0, 0


def soft_vectors(
    residual: Float[Tensor, "bin delay output"], noise: Float[Tensor, " output"]
) -> list[Float[Tensor, "bin delay"]]:
    """What to read signs from: the bins themselves, or what their outputs agree on.

    A set puts the same signs under the delays of every output, with a coefficient of its own each; so a bin with one
    set is ``signs × coefficients + noise``, and the leading left singular vector is the likeliest spelling. With
    several sets in a bin the second helps, and so does the strongest output alone.
    """
    if residual.shape[2] == 1:
        return [residual[..., 0]]
    scaled = residual / noise.sqrt()
    strongest = scaled.square().sum(1).argmax(1)
    loudest = scaled.gather(2, strongest[:, None, None].expand(-1, scaled.shape[1], 1))
    covariance = scaled @ scaled.mT
    vectors = torch.linalg.eigh(covariance).eigenvectors[..., -_VECTORS:]
    return [*vectors.flip(2).unbind(2), loudest[..., 0]]


def _supported(bins: Bins, found: Peeled, options: Peeling) -> Bool[Tensor, " set"]:
    """Sets whose coefficients the joint fit tells from zero at the same price; the empty set always."""
    variance = residual_variance(bins, found).clamp(min=bins.code.bins * _floor(bins))
    z2 = found.coefficients.square() / (variance * found.inverse.diagonal()[:, None])
    price, outputs = price_of(bins, found.members, options.false_sets), bins.outputs
    pooled = z2.sum(1) / 2 - outputs / 2 - (outputs * price).sqrt() if outputs > 1 else z2[:, 0] / 2
    strength = torch.maximum(pooled, z2.amax(1) / 2 - math.log(outputs))
    return (strength > price) | (found.members < 0).all(1)


def residual_variance(bins: Bins, found: Peeled) -> Float[Tensor, " output"]:
    """Variance of one mask's response around the fit, an output: noise, and the sets that were not found."""
    free = max(1, bins.masks - len(found.members))
    return found.residual.square().sum((0, 1)) * bins.code.bins / free
