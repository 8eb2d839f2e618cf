"""Sets that might be in a bin: by algebraic decoding of its signs, and by matching its values against all small sets.

Both look at a soft vector ``v [bin, delay]``, whose signs spell a set where one set rules the bin. Decoding reads the
signs as a syndrome, with patterns of the least reliable signs flipped (Chase 1972), and costs the same for any number
of players. Matching correlates the values with the signs of every set that joins one of a left to one of a right list,
as one batched matrix product: a set falls into bin j only if its halves' hashes sum to j, so each half's bucket meets
one other. That is maximum likelihood for sets up to the sum of the lists' orders, where the product is affordable.
"""

from dataclasses import dataclass, field
from itertools import combinations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spex_mech.walsh.masks.gf2 import rows_of
from spex_mech.walsh.spex.bins import Bins, buckets, tidy

_ELEMENTS = 1 << 24  # of one block of scores: 64 MB


def decode_signs(
    bins: Bins, soft: Float[Tensor, "row delay"], where: Int[Tensor, " row"], flips: int
) -> Int[Tensor, "set slot"]:
    """Sets spelled by the signs of soft vectors and hashing into their bins `where`; some may be there twice.

    `flips` least reliable signs are flipped, none, one or two at a time. Every length of the code up to its own is
    tried: a set of one component needs only the first block of parity signs to be right.
    """
    width = bins.code.degree
    spelled = bins.code.parity_rows if bins.bch is None else bins.bch.parity_bits
    if spelled >= bins.delays:
        return torch.zeros(0, width, dtype=torch.long, device=soft.device)
    read = soft[:, : 1 + spelled]
    weakest = read.abs().topk(min(flips, 1 + spelled), dim=1, largest=False).indices
    patterns = _patterns(weakest.shape[1], soft.device)
    doubt = torch.zeros(len(read), len(patterns), 1 + spelled, dtype=torch.bool, device=soft.device)
    doubt.scatter_(2, weakest[:, None].expand(-1, len(patterns), -1), patterns.expand(len(read), -1, -1))
    signs = ((read < 0)[:, None] ^ doubt).flatten(0, 1)
    parity, owner = signs[:, 1:] ^ signs[:, :1], where.repeat_interleave(len(patterns))
    if bins.bch is None:
        members, known = _plain(parity, bins.code.degree)
    else:
        every, known = bins.bch.decode_every_length(parity, owner // bins.code.bins)
        members, known, owner = every.flatten(0, 1), known.flatten(), owner.repeat(bins.bch.t)
    members, owner = members[known], owner[known]
    members = members[bins.home(owner, members)]
    return torch.nn.functional.pad(members, (0, width - members.shape[1]), value=-1)


def _patterns(flips: int, device: torch.device) -> Tensor:
    """No flip, every single flip, every pair of flips."""
    rows = [s for size in range(min(2, flips) + 1) for s in combinations(range(flips), size)]
    patterns = torch.zeros(len(rows), flips, dtype=torch.bool)
    for row, chosen in enumerate(rows):
        patterns[row, list(chosen)] = True
    return patterns.to(device)


def _plain(parity: Tensor, degree: int) -> tuple[Tensor, Tensor]:
    """Where the signs are the set itself."""
    number = torch.where(parity, torch.arange(parity.shape[1], device=parity.device), parity.shape[1])
    members = number.sort(1).values[:, :degree]
    return torch.where(members == parity.shape[1], -1, members), parity.sum(1) <= degree


@dataclass(frozen=True, eq=False)
class Sorted:
    """Sets sorted by the bin they fall into: what `match` joins.

    Attributes:
        table: row numbers, one table a group.
        signs: the sets' signs in float32, 0 where a bin holds fewer than the fullest.
    """

    members: Int[Tensor, "set slot"]
    table: Int[Tensor, "group bin place"]
    signs: Float[Tensor, "group bin place delay"]

    @classmethod
    def of(cls, bins: Bins, members: Int[Tensor, "set slot"]) -> "Sorted":
        """These sets, spelled once."""
        spelled, where = bins.spell(members, torch.float32)
        groups, shape = bins.code.groups, (bins.code.groups, bins.code.bins)
        table, filled = buckets(where.flatten(), len(bins.values))
        signs = rows_of(spelled.flatten(0, 1), table).mul_(filled[..., None])
        return cls(members, (table // groups).unflatten(0, shape), signs.unflatten(0, shape))


@dataclass(frozen=True, eq=False)
class SmallSets:
    """All sets of one or two players of some bins, each list sorted when it is first asked for."""

    bins: Bins
    _made: dict[tuple[int, bool], Sorted] = field(default_factory=dict)

    def up_to(self, order: int, empty: bool = False) -> Sorted:
        """All sets of 1 to `order` (1 or 2) players, with the empty set before them or not."""
        if (order, empty) not in self._made:
            members = up_to_pairs(self.bins.code.n, order, self.bins.values.device)
            members = torch.cat([torch.full_like(members[:1], -1), members]) if empty else members
            self._made[order, empty] = Sorted.of(self.bins, members)
        return self._made[order, empty]


def match(
    bins: Bins,
    soft: Float[Tensor, "row delay"],
    where: Int[Tensor, " row"],
    left: Sorted,
    right: Sorted,
    top: int,
) -> Int[Tensor, "set slot"]:
    """For every soft vector the joins of a left and a right set with signs most like its own that fall into its bin.

    The join is the symmetric difference. Each left set proposes its best join, and the `top` best of these are taken;
    a set that several left sets lead to is there several times.
    Cost: at most ``groups × left × right × delays`` multiply-adds in float32, less where `where` leaves bins out.
    """
    found, soft = [], soft.float()
    for group in range(bins.code.groups):
        inside = where // bins.code.bins == group
        pairs = _match_group(soft[inside], where[inside] % bins.code.bins, left, right, group, top)
        found.append(torch.cat([left.members[pairs[:, 0]], right.members[pairs[:, 1]]], 1))
    members, fits = tidy(torch.cat(found), bins.code.degree)
    return members[fits]


def _match_group(soft: Tensor, where: Tensor, left: Sorted, right: Sorted, group: int, top: int) -> Tensor:
    """(left, right) row numbers of the best joins of every bin of one group."""
    a, b, found = left.signs[group], right.signs[group], []
    (count, height, delays), width, still = a.shape, b.shape[1], len(left.members) > len(right.members)
    step = max(1, _ELEMENTS // (count * max(height * width, min(height, width) * delays)))
    for start in range(0, len(soft), step):
        home = where[start : start + step]
        scores = _scores(a, b, soft[start : start + step], home, still)
        best = scores.amax(3).flatten(1).topk(min(top, count * height), dim=1)
        bucket, place = best.indices // height, best.indices % height
        inner = scores[torch.arange(len(home), device=soft.device)[:, None], bucket, place].argmax(2)
        meets = bucket ^ home[:, None]
        one, other = (bucket, meets) if still else (meets, bucket)
        pair = left.table[group][one, place], right.table[group][other, inner]
        found.append(torch.stack(pair, -1)[best.values > 0])
    return torch.cat(found) if found else where.new_zeros(0, 2)


def _scores(a: Tensor, b: Tensor, soft: Tensor, where: Tensor, still: bool) -> Float[Tensor, "row bin height width"]:
    """|correlation| of each soft vector with the join of every set of `a` and each of `b` in the bucket it meets there.

    The longer list stays where it is (`still`: that is `a`), and its buckets number the bins; the other's signs are
    moved to the buckets they meet and multiplied by the soft vector: one product a bucket serves all rows.
    """
    fixed, moving = (a, b) if still else (b, a)
    meets = torch.arange(len(fixed), device=soft.device)[:, None] ^ where
    moved = rows_of(moving, meets).mul_(soft[:, None]).flatten(1, 2)
    scores = (fixed @ moved.mT).abs_().unflatten(2, (len(soft), moving.shape[1]))
    return scores.permute(2, 0, 1, 3) if still else scores.permute(2, 0, 3, 1)


def up_to_pairs(n: int, order: int, device: torch.device) -> Int[Tensor, "set slot"]:
    """All sets of 1 to `order` (1 or 2) players.

    >>> up_to_pairs(3, 2, torch.device("cpu")).tolist()
    [[0, -1], [1, -1], [2, -1], [0, 1], [0, 2], [1, 2]]
    """
    players = torch.arange(n, device=device)
    singles = torch.stack([players, torch.full_like(players, -1)], 1)
    if order == 1:
        return singles
    return torch.cat([singles, torch.combinations(players, 2)])
