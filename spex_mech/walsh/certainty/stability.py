"""`stability`: which sets are found again on half of the masks, or of the outputs.

Subsamples are complementary pairs of random halves (Shah & Samworth 2013, after Meinshausen & Bühlmann 2010): two
decodings that share nothing, again and again. The share of halves in which a set is found says how much of the finding
is the sample's doing. There are two ways to find:

- by a decoder, run whole on every half: the honest one, at the price of as many decodings;
- by **refitting a pool** of given sets: ridge regression on the other half of the pair, confirmed on this one at q ≤
  `LEVEL` over the pool (of outputs: ridge regression on the half itself, by its own errors). A hundred halves cost less
  than one decoding. It leaves out that another half might have proposed other sets; and where the pool was chosen on
  the same masks, sets that are there by chance look more stable than they are.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spex_mech.errors import DecodeError
from spex_mech.walsh.certainty.independence import as_drawn, runs, with_design
from spex_mech.walsh.certainty.inference import confirm_sets
from spex_mech.walsh.certainty.significance import q_values
from spex_mech.walsh.decoders.refit import refit, significance
from spex_mech.walsh.decoding import Decoder, Samples
from spex_mech.walsh.incomplete import headline
from spex_mech.walsh.set_rows import pad_sets, set_tuples
from spex_mech.walsh.spectrum import Basis

LEVEL = 0.05  # q-value at which a set of a pool counts as found in a half


@dataclass(frozen=True, eq=False)
class Stability:
    """How often sets are found.

    Attributes:
        n, members: the sets, as in `Spectrum`, the empty one left out.
        found: by resample (rows 2b and 2b + 1 are the halves of one pair) and set.
        over: "masks" or "outputs", what was halved; method: by what sets were found, in words.
    """

    n: int
    members: Int[Tensor, "set slot"]
    found: Bool[Tensor, "resample set"]
    over: str
    method: str
    seconds: float

    @property
    def share(self) -> Float[Tensor, " set"]:
        """Share of halves in which a set was found."""
        return self.found.double().mean(0)

    @cached_property
    def shares(self) -> Mapping[tuple[int, ...], float]:
        """The same by set; a set that was never looked at is not there."""
        return dict(zip(set_tuples(self.members), self.share.tolist(), strict=True))

    @property
    def jaccard(self) -> float:
        """Mean over pairs of resamples of |found in both| / |found in either|; NaN where nothing was found."""
        return _mean_jaccard(self.found)

    @property
    def node_jaccard(self) -> float:
        """The same for components: those in any set that was found. The field asks for 0.8 over 100 resamples."""
        bits = torch.zeros(len(self.members), self.n + 1).scatter_(1, self.members + 1, 1.0)[:, 1:]
        return _mean_jaccard(self.found.float() @ bits > 0)

    def false_sets(self, threshold: float, candidates: int) -> float:
        """A bound on the expected number of sets with a share of at least `threshold` that are found no more often than
        at random: ``m² / ((2 threshold - 1) candidates)``, with m sets found in a half on average.

        Args:
            threshold: above ½, at most 1.
            candidates: sets that might have been found, such as n (n + 1) / 2 for orders one and two.

        Source: Shah & Samworth 2013, theorem 1. Raises `DecodeError` on another threshold, or no candidates.
        """
        if not 0.5 < threshold <= 1 or candidates < 1:
            raise DecodeError(
                f"a bound at share {threshold} of {candidates:,} candidates was asked for; the share lies above 0.5 "
                "and at most at 1, and there is at least one candidate."
            )
        return float(self.found.double().sum(1).mean()) ** 2 / ((2 * threshold - 1) * candidates)

    def describe(self) -> dict[str, Any]:
        """For a run record."""
        return {
            "method": self.method, "over": self.over, "resamples": len(self.found), "jaccard": self.jaccard,
            "node_jaccard": self.node_jaccard, "seconds": self.seconds,
        }  # fmt: skip


def stability(
    samples: Samples,
    by: Decoder | Int[Tensor, "set slot"] | Sequence[Sequence[int]],
    *,
    resamples: int = 100,
    seed: int = 0,
    over: str = "masks",
) -> Stability:
    """The share of random halves in which each set is found.

    Args:
        by: a decoder, run on every half; or a pool of sets, refitted on every half.
        resamples: number of halves, even.
        seed: of the halves and the decoder; same seed, same bits.
        over: "masks", or "outputs" (prompts; all masks are used each time).

    Raises:
        DecodeError: no pairs of halves, an unknown `over`, one output alone, an empty pool, halves too small to
            confirm anything; whatever the decoder says of half of the masks (SPEX takes no half of a code: halve the
            outputs).
    """
    started = time.perf_counter()
    _check(samples, resamples, over)
    pairs = resamples // 2
    if isinstance(by, Decoder):
        members, found = _decoded(_halves(samples, pairs, seed, over), by, seed)
        method = f"{by.name} on every half"
    else:
        members = by.cpu() if isinstance(by, Tensor) else pad_sets(by)
        members = members[(members >= 0).any(1)]
        if not len(members):
            raise DecodeError("a pool of no non-empty sets was to be refitted; name the sets whose stability is asked.")
        narrow, places = _narrowed(samples, members)
        found = _refitted(list(_halves(narrow, pairs, seed, over)), places, over)
        method = f"{len(members):,} sets refitted to halves, q <= {LEVEL:g}"
    return Stability(samples.n, members, found, over, method, time.perf_counter() - started)


def _check(samples: Samples, resamples: int, over: str) -> None:
    if over not in ("masks", "outputs") or resamples < 2 or resamples % 2:
        raise DecodeError(
            f"{resamples} resamples over {over!r} were asked for; resamples come in pairs of halves, over 'masks' or "
            "'outputs'."
        )
    if over == "outputs" and samples.met is not None:
        raise DecodeError(
            f"every mask met {samples.met.shape[1]:,} of {samples.outputs:,} outputs, so half of the outputs are other "
            "masks too; halve the masks."
        )
    if samples.values.shape[1 if over == "outputs" else 0] < 2:
        raise DecodeError(f"one of the {over} cannot be halved; measure more.")


def _halves(samples: Samples, pairs: int, seed: int, over: str) -> Iterator[Samples]:
    """Complementary halves; runs of masks that share bits stay together."""
    generator = torch.Generator().manual_seed(seed)
    unit = torch.arange(samples.values.shape[1]) if over == "outputs" else runs(samples)
    count = int(unit.max()) + 1
    for _ in range(pairs):
        rank = torch.randperm(count, generator=generator)[unit]
        for rows in (rank < count // 2, (rank >= count // 2) & (rank < 2 * (count // 2))):
            chosen = rows.nonzero()[:, 0]
            if over == "outputs":
                yield Samples(samples.keep, samples.values[:, chosen], samples.design)
            else:
                yield samples.take(chosen)


def _narrowed(samples: Samples, members: Tensor) -> tuple[Samples, Tensor]:
    """The samples with the columns of the components in some sets only, and the sets over these: halves are copies."""
    columns = members[members >= 0].unique()
    places = torch.where(members >= 0, torch.searchsorted(columns, members.clamp(min=0)), -1)
    keep = samples.keep[:, columns.to(samples.keep.device)].cpu()
    return Samples(keep, headline(samples).values.cpu(), with_design(samples).design), places


def _decoded(halves: Iterator[Samples], by: Decoder, seed: int) -> tuple[Tensor, Tensor]:
    """Sets in the polynomial of any half, and of which."""
    supports = [[s for s, c in by.decode(half, seed=seed).spectrum.terms() if s and c] for half in halves]
    sets = sorted({s for support in supports for s in support}, key=lambda s: (len(s), s))
    row = {s: i for i, s in enumerate(sets)}
    found = torch.zeros(len(supports), len(sets), dtype=torch.bool)
    for number, support in enumerate(supports):
        found[number, [row[s] for s in support]] = True
    return pad_sets(sets), found


def _refitted(halves: list[Samples], members: Tensor, over: str) -> Bool[Tensor, "resample set"]:
    """Which sets of a pool are found in each half."""
    halves = [as_drawn(half, torch.arange(len(half.keep))) for half in halves]
    fits = [refit(half.keep, half.mean_values, members, Basis.orthonormal(half.keep_prob)) for half in halves]
    if over == "outputs":
        p = [significance(one)[one.orders > 0] for one in fits]
        return torch.stack([torch.from_numpy(q_values(x.numpy()) <= LEVEL) for x in p])
    others = [number ^ 1 for number in range(len(halves))]
    found = [confirm_sets(half, fits[other]).q_values() for half, other in zip(halves, others, strict=True)]
    sets = [s for s in fits[0].sets if s]
    return torch.tensor([[q[s] <= LEVEL for s in sets] for q in found])


def jaccard(one: Bool[Tensor, "row item"], other: Bool[Tensor, "column item"]) -> Float[Tensor, "row column"]:
    """|in both| / |in either| of every two sets of items; NaN where both are empty.

    >>> jaccard(torch.tensor([[True, True, False]]), torch.tensor([[False, True, True]])).round(decimals=2).tolist()
    [[0.33]]
    """
    x, y = one.double(), other.double()
    both = x @ y.T
    return both / (x.sum(1)[:, None] + y.sum(1) - both)


def _mean_jaccard(found: Bool[Tensor, "resample item"]) -> float:
    """Over pairs of different resamples of which at least one found something."""
    first, second = torch.triu_indices(len(found), len(found), offset=1)
    shares = jaccard(found, found)[first, second]
    return float(shares[~shares.isnan()].mean())
