"""Sets that might be in a bin: by algebraic decoding of its signs, and by matching its values against all small sets.

Both look at a soft vector ``v [bin, delay]``, whose signs spell a set where one set rules the bin. Decoding reads the
signs as a syndrome, with patterns of the least reliable signs flipped (Chase 1972), and costs the same for any number
of players. Matching correlates the values with the signs of every set that joins one of a left to one of a right list,
as one batched matrix product: a set falls into bin j only if its halves' hashes sum to j, so each half's bucket meets
one other. That is maximum likelihood for sets up to the sum of the lists' orders, where the product is affordable.
"""

from itertools import combinations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spex_mech.walsh.bins import Bins, buckets, tidy

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


def match(
    bins: Bins,
    soft: Float[Tensor, "row delay"],
    where: Int[Tensor, " row"],
    left: Int[Tensor, "set slot"],
    right: Int[Tensor, "set slot"],
    top: int,
    *,
    ascending: bool = False,
) -> Int[Tensor, "set slot"]:
    """For every soft vector the `top` joins of a left and a right set with signs like its own that fall into its bin.

    The join is the symmetric difference; `ascending` takes only those whose left members come before the right ones.
    Cost: at most ``groups × left × right × delays`` multiply-adds in float32, less where `where` leaves bins out.
    """
    found = []
    spelled_left, spelled_right = bins.spell(left, torch.float32), bins.spell(right, torch.float32)
    for group in range(bins.code.groups):
        inside = where // bins.code.bins == group
        a, b = _Buckets(*spelled_left, group, bins.code.bins), _Buckets(*spelled_right, group, bins.code.bins)
        last = left.amax(1).float() if ascending else torch.full((len(left),), -1.0, device=left.device)
        first = torch.where(right < 0, bins.code.n, right).amin(1).float() if ascending else last.new_zeros(len(right))
        pairs = _match_buckets(
            soft[inside].float(), where[inside] % bins.code.bins, a, b, last[a.table], first[b.table], top
        )
        found.append(torch.cat([left[pairs[:, 0]], right[pairs[:, 1]]], 1))
    members, fits = tidy(torch.cat(found), bins.code.degree)
    return members[fits]


def _match_buckets(
    soft: Tensor, where: Tensor, a: "_Buckets", b: "_Buckets", last: Tensor, first: Tensor, top: int
) -> Tensor:
    """(left, right) row numbers of the best joins of every bin, where ``last < first``."""
    (count, height), width, found = a.table.shape, b.table.shape[1], []
    size = count * max(height * width, (height + width) * soft.shape[1])
    for chunk in torch.arange(len(soft), device=soft.device).split(max(1, _ELEMENTS // size)):
        partner = torch.arange(count, device=soft.device) ^ where[chunk][:, None]
        scores = (a.signs * soft[chunk][:, None, None]) @ b.signs[partner].mT
        scores.abs_().mul_(last[..., None] < first[partner][:, :, None])
        best = scores.flatten(1).topk(min(top, count * height * width), dim=1)
        bucket, inner = best.indices // (height * width), best.indices % (height * width)
        row, column = a.table[bucket, inner // width], b.table[partner.gather(1, bucket), inner % width]
        found.append(torch.stack([row, column], -1)[best.values > 0])
    return torch.cat(found) if found else where.new_zeros(0, 2)


class _Buckets:
    """Sets sorted by hash: ``table [bucket, place]`` of row numbers, and their signs, 0 where a bucket is short."""

    def __init__(self, signs: Tensor, where: Tensor, group: int, bins: int) -> None:
        self.table, filled = buckets(where[:, group] - group * bins, bins)
        self.signs = signs[:, group][self.table] * filled[..., None]


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
