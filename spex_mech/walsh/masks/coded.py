"""`Code`: SPEX's masks as a value of a few integers, how many masks it takes, and what it says of any set.

Group c has a hash ``h_c(i) ∈ F2^b`` of every player i (the rows of M_c) and R delays ``d_{c,p} ∈ F2^n``; mask
``(c, p, ℓ)`` ablates player i where ``<h_c(i), ℓ> + d_{c,p}(i) = 1``. The Walsh–Hadamard transform over ℓ then sums
into bin j of group c under delay p every set that hashes there:

    ``U_{c,p}[j] = Σ_{S : h_c(S) = j} F(S) (-1)^{<d_{c,p}, S>} + noise / 2^{b/2}``,   ``h_c(S) = Σ_{i∈S} h_c(i)``.

Delay 0 of a group is random (so no mask is asked twice), delays 1 … P add the parity rows of a BCH code that corrects
`degree` errors with positions shuffled per group (so that sets that resemble each other in one group do not in the
next), and further delays are random. Hashes are balanced: every bin gets as many single players as any other.

Source: SPEX, Kang et al. 2025 (arXiv 2502.13870), §4; the offsets, shuffles and balanced hashes are ours.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from spex_mech.errors import DesignError
from spex_mech.walsh.masks import gf2
from spex_mech.walsh.masks.bch import Bch, field_degree
from spex_mech.walsh.masks.galois_field import MAX_DEGREE
from spex_mech.walsh.masks.hashing import uniform_bits

GROUPS = 3
MIN_BITS = 3  # fewer bins than 8 a group hold one set each, and hardly that
HELD_OUT = 0.1  # share of a budget that stays out of the code, where the code leaves it
_CHUNK = 1 << 22  # coins tossed at a time: 32 MB
_OFFSET, _SHUFFLE, _HASH, _BINS, _DELAYS, _COINS, _STREAMS = range(7)


@dataclass(frozen=True)
class Code:
    """Coded masks over `n` players: `groups` × `delays` × 2^`bits` of them.

    Attributes:
        degree: every set of at most so many players is told apart by the delays alone.
        bits: b; each group sorts all sets into 2^b bins.
        delays: R, the masks of one group and bin number: 1 + parity rows + further random ones.
    """

    n: int
    degree: int
    bits: int
    delays: int
    seed: int = 0
    groups: int = GROUPS

    def __post_init__(self) -> None:
        problems = _problems(self.n, self.degree)
        if not problems and not 1 <= self.bits <= min(self.n, 30):
            problems.append(f"{self.bits} bits; a hash of {self.n:,} players has 1 to {min(self.n, 30)}")
        if not problems and self.delays < 1 + parity_rows(self.n, self.degree):
            problems.append(f"{self.delays} delays; this code needs {1 + parity_rows(self.n, self.degree)}")
        if self.groups < 1:
            problems.append(f"{self.groups} groups; a code has at least one")
        if problems:
            raise DesignError(f"this is no code: {'; '.join(problems)}.")

    @property
    def bins(self) -> int:
        """2^b, the bins of one group."""
        return 1 << self.bits

    @property
    def size(self) -> int:
        """The number of masks, ``groups × delays × 2^b``; mask ``(c, p, ℓ)`` is row ``(c R + p) 2^b + ℓ``."""
        return self.groups * self.delays * self.bins

    @property
    def capacity(self) -> int:
        """About how many sets are recovered by peeling without noise: 0.81 a bin of three groups.

        The threshold of 3-regular peeling, 3·2^b ≥ 1.23 s; matching several sets of one bin goes somewhat beyond.
        """
        return int(0.81 * self.groups * self.bins)

    @property
    def parity_rows(self) -> int:
        """P, the delays that spell the syndrome: delays 1 to P."""
        return parity_rows(self.n, self.degree)

    def describe(self) -> str:
        """One line for people.

        >>> Code(64, 4, 4, 29).describe()
        '64 players, sets of at most 4: 1,392 masks (3 groups × 29 delays × 16 bins), about 38 sets'
        """
        return (
            f"{self.n:,} players, sets of at most {self.degree}: {self.size:,} masks ({self.groups} groups × "
            f"{self.delays} delays × {self.bins:,} bins), about {self.capacity:,} sets"
        )

    @cached_property
    def hashes(self) -> Int[Tensor, "group player"]:
        """h_c(i) as an integer below 2^b; of full rank in every group."""
        return torch.stack([self._hash(group) for group in range(self.groups)])

    def _hash(self, group: int) -> Tensor:
        for attempt in range(64):
            shuffle = self._uniform(_HASH, group, attempt, self.n).argsort(stable=True).argsort()
            names = 1 + self._uniform(_BINS, group, attempt, self.bins - 1).argsort(stable=True)
            hashed = names[shuffle % (self.bins - 1)]
            if gf2.rank((hashed[:, None] >> torch.arange(self.bits)) & 1 == 1) == self.bits:
                return hashed
        raise DesignError(f"no hash of {self.n:,} players onto {self.bits} bits has full rank; another seed may.")

    @cached_property
    def exponents(self) -> Int[Tensor, "group player"]:
        """The position of each player in the BCH code, as a power of α."""
        order = (1 << field_degree(self.n)) - 1
        shuffled = [self._uniform(_SHUFFLE, group, 0, order).argsort(stable=True) for group in range(self.groups)]
        return torch.stack([exponents[: self.n] for exponents in shuffled])

    def bch(self, device: torch.device | str = "cpu") -> Bch:
        """The codes that spell sets in the delays, one a group."""
        return Bch.at(field_degree(self.n), self.degree, self.exponents.to(device))

    @cached_property
    def offsets(self) -> Bool[Tensor, "group player"]:
        """Delay 0 of every group."""
        return torch.stack([self._uniform(_OFFSET, group, 0, self.n) % 2 == 1 for group in range(self.groups)])

    def delay_bits(self, group: int) -> Bool[Tensor, "delay player"]:
        """d_{c,p}(i) for all delays of one group."""
        spelled = 1 + self.parity_rows
        rows = torch.zeros(self.delays, self.n, dtype=torch.bool)
        rows[1:spelled] = self._syndrome_rows(group)
        extra = self._uniform(_DELAYS, group, 0, self.n * (self.delays - spelled)) % 2 == 1
        rows[spelled:] = extra.reshape(-1, self.n)
        return rows ^ self.offsets[group]

    def _syndrome_rows(self, group: int) -> Tensor:
        """The parity check of the BCH code; where the players are so few that it is longer, the players themselves."""
        if spells_plainly(self.n, self.degree):
            return torch.eye(self.n, dtype=torch.bool)
        return self.bch().parity_check(group)

    @cached_property
    def _delays(self) -> Bool[Tensor, "group delay player"]:
        return torch.stack([self.delay_bits(group) for group in range(self.groups)])

    @cached_property
    def _spans(self) -> tuple[Bool[Tensor, "group low player"], Bool[Tensor, "group high player"]]:
        """<h_c(i), ℓ> for the lower and for the upper half of ℓ's bits; their sum is that of ℓ."""
        low = self.bits // 2
        return _span(self.hashes, 0, low), _span(self.hashes, low, self.bits)

    def keep(self, rows: Int[Tensor, " mask"]) -> Bool[Tensor, "mask player"]:
        """The masks of these row numbers, on the device of `rows`; beyond the last coded one they are fair coins."""
        coded = rows.clamp(max=self.size - 1)
        delay, number, low = coded // self.bins, coded % self.bins, self.bits // 2
        group = delay // self.delays
        lower, upper = (span.to(rows.device).flatten(0, 1) for span in self._spans)
        ablated = lower.index_select(0, (group << low) + (number & ((1 << low) - 1)))
        ablated ^= upper.index_select(0, (group << (self.bits - low)) + (number >> low))
        ablated ^= self._delays.to(rows.device).flatten(0, 1).index_select(0, delay)
        for beyond in (rows >= self.size).nonzero()[:, 0].split(max(1, _CHUNK // self.n)):
            ablated[beyond] = self._coins(rows[beyond])
        return ablated.logical_not_()

    def _coins(self, rows: Tensor) -> Tensor:
        """Fair coins, 32 of them from each number drawn."""
        drawn = uniform_bits(self._stream(_COINS, 0, 0), rows, -(-self.n // 32))
        places = torch.arange(32, device=rows.device)
        return ((drawn[:, :, None] >> places) & 1).flatten(1)[:, : self.n] == 1

    def to_dict(self) -> dict[str, Any]:
        """The integers."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Code":
        """The code that `to_dict` wrote; raises `DesignError` on integers that are none."""
        return cls(**{name: int(record[name]) for name in ("n", "degree", "bits", "delays", "seed", "groups")})

    def _stream(self, purpose: int, group: int, attempt: int) -> int:
        return ((self.seed * 64 + attempt) * self.groups + group) * _STREAMS + purpose

    def _uniform(self, purpose: int, group: int, attempt: int, count: int) -> Int[Tensor, " count"]:
        """53 random bits each, drawn on the CPU so that every device sees the same."""
        return uniform_bits(self._stream(purpose, group, attempt), torch.zeros(1, dtype=torch.long), count)[0]


def spells_plainly(n: int, degree: int) -> bool:
    """Whether one delay a player is no more than a BCH code's parity rows: then the signs are the set itself."""
    return degree * field_degree(n) >= n


def parity_rows(n: int, degree: int) -> int:
    """Delays that spell a set of at most `degree` of n players: ``degree · ⌈log2(n + 1)⌉``, and never more than n.

    >>> parity_rows(64, 5), parity_rows(36864, 4), parity_rows(16, 5)
    (35, 64, 16)
    """
    return min(n, degree * field_degree(n))


def smallest_budget(n: int, degree: int = 4) -> int:
    """The fewest masks a coded design of n components and sets of at most `degree` has: 8 bins in 3 groups.

    Nothing is built. Raises `DesignError` where n or the degree is out of range.

    >>> smallest_budget(64, 5), smallest_budget(36864, 4)
    (864, 1560)
    """
    problems = _problems(n, degree)
    if problems:
        raise DesignError(f"there is no coded design: {'; '.join(problems)}.")
    return GROUPS * (1 + parity_rows(n, degree)) << min(MIN_BITS, n)


def plan_code(n: int, degree: int, budget: int | None, seed: int) -> Code:
    """The code for a budget: as many bins as fit, then delays for all but a tenth of the budget.

    >>> plan_code(64, 5, 1728, 0).describe()
    '64 players, sets of at most 5: 1,728 masks (3 groups × 36 delays × 16 bins), about 38 sets'
    """
    least = smallest_budget(n, degree)
    budget = least if budget is None else budget
    if budget < least:
        raise DesignError(
            f"{budget:,} masks cannot code sets of at most {degree} among {n:,} components; the smallest coded design "
            f"has {least:,}. Raise the budget, lower the degree, or use the joint or proxyspex decoder, which accept "
            "any budget."
        )
    spelled, bits = 1 + parity_rows(n, degree), min(MIN_BITS, n)
    while bits < min(n, 30) and GROUPS * spelled << (bits + 1) <= budget:
        bits += 1
    spare = int(budget * (1 - HELD_OUT)) // (GROUPS << bits)
    return Code(n, degree, bits, max(spelled, spare), seed)


def _problems(n: int, degree: int) -> list[str]:
    problems = []
    if not 3 <= n < 1 << MAX_DEGREE:
        problems.append(
            f"{n:,} components; codes are over 3 to {(1 << MAX_DEGREE) - 1:,}, or over groups of components"
        )
    if not 1 <= degree <= max(n, 1):
        problems.append(f"degree {degree}; sets have 1 to {max(n, 1):,} components here")
    return problems


def _span(hashes: Tensor, low: int, high: int) -> Tensor:
    """<h(i), ℓ> for every ℓ made of bits `low` to `high`, by doubling."""
    span = torch.zeros(len(hashes), 1, hashes.shape[1], dtype=torch.bool)
    for bit in range(low, high):
        span = torch.cat([span, span ^ ((hashes >> bit) & 1 == 1)[:, None]], 1)
    return span
