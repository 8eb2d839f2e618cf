"""`MaskDesign`: which masks will be asked, as a value made of integers and a seed.

The same integers give the same masks on every device, in every process and for every way of cutting them into chunks:
each keep bit is a function of (seed, mask, component) alone, a counter-based hash (splitmix64's finaliser, Steele
et al. 2014), so no table of all masks ever exists.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from spex_mech.errors import DesignError

DesignKind = Literal["bernoulli", "stratified", "complete"]
MAX_COMPLETE = 24  # 2^24 masks are 16.8 million forward passes; beyond that "all masks" is a slip


@dataclass(frozen=True)
class MaskDesign:
    """A sequence of `n_masks` masks over `n` components, drawn lazily by `keep`.

    Make one with `bernoulli`, `stratified` or `complete`.
    """

    kind: DesignKind
    n: int
    n_masks: int
    seed: int = 0
    keep_probs: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.n < 1 or self.n_masks < 1:
            raise DesignError(
                f"a design needs at least one component and one mask, not {self.n:,} components and "
                f"{self.n_masks:,} masks."
            )
        self._check_kind()
        bad = [q for q in self.keep_probs if not 0 < q < 1]
        if bad:
            raise DesignError(
                f"keep-probabilities must lie strictly between 0 and 1, not {bad}; 0.9 ablates a tenth of the "
                f"components per mask."
            )

    def _check_kind(self) -> None:
        """Whether the numbers are those of the kind; they may come from a file."""
        if self.kind == "complete" and (self.n > MAX_COMPLETE or self.n_masks != 1 << self.n or self.keep_probs):
            raise DesignError(
                f"a complete design of {self.n:,} components has 2^{self.n} masks, no keep-probability and at most "
                f"{MAX_COMPLETE} components, not {self.n_masks:,} masks and {self.keep_probs}."
            )
        if (self.kind == "bernoulli" and len(self.keep_probs) != 1) or (
            self.kind == "stratified" and not self.keep_probs
        ):
            raise DesignError(
                f"a bernoulli design needs one keep-probability, a stratified one at least one, not {self.keep_probs}."
            )

    @classmethod
    def bernoulli(cls, n: int, n_masks: int, keep_prob: float = 0.5, seed: int = 0) -> "MaskDesign":
        """Every component kept with probability `keep_prob`, independently."""
        return cls("bernoulli", n, n_masks, seed, (float(keep_prob),))

    @classmethod
    def stratified(cls, n: int, n_masks: int, keep_probs: Sequence[float], seed: int = 0) -> "MaskDesign":
        """Mask m is drawn with keep-probability ``keep_probs[m % len(keep_probs)]``: equal shares, interleaved."""
        return cls("stratified", n, n_masks, seed, tuple(float(q) for q in keep_probs))

    @classmethod
    def complete(cls, n: int) -> "MaskDesign":
        """All 2^n masks; bit i of the mask's number says that component i is ablated."""
        if n > MAX_COMPLETE:
            raise DesignError(
                f"all masks of {n:,} components are 2^{n}; complete designs stop at {MAX_COMPLETE}. Take fewer "
                f"components, groups, or a sampled design."
            )
        return cls("complete", n, 1 << n)

    @property
    def mean_keep_prob(self) -> float:
        """The probability that a component is kept, over the whole design."""
        return sum(self.keep_probs) / len(self.keep_probs) if self.keep_probs else 0.5

    def keep(
        self, start: int = 0, stop: int | None = None, device: torch.device | str = "cpu"
    ) -> Bool[Tensor, "mask component"]:
        """Masks `start` to `stop` (all by default; `stop` may lie behind the last), drawn on `device`."""
        stop = self.n_masks if stop is None else min(stop, self.n_masks)
        if not 0 <= start <= stop:
            raise DesignError(
                f"masks {start:,} to {stop:,} were asked of a design that has masks 0 to {self.n_masks:,}."
            )
        rows = torch.arange(start, stop, device=device)
        if self.kind == "complete":
            return (rows[:, None] >> torch.arange(self.n, device=device)) & 1 == 0
        probabilities = torch.tensor(self.keep_probs, dtype=torch.float64, device=device)
        threshold = (probabilities * 2.0**53).round().long()[rows % len(self.keep_probs)]
        return uniform_bits(self.seed, rows, self.n) < threshold[:, None]

    def chunks(
        self, size: int, device: torch.device | str = "cpu"
    ) -> Iterator[tuple[int, Bool[Tensor, "mask component"]]]:
        """(number of the first mask, masks), in order, `size` at a time."""
        if size < 1:
            raise DesignError(f"masks are cut into chunks of at least one, not of {size}.")
        for start in range(0, self.n_masks, size):
            yield start, self.keep(start, start + size, device)

    def to_dict(self) -> dict[str, Any]:
        """The integers and the seed, for a file; `from_dict` reads them back."""
        return {
            "kind": self.kind,
            "n": self.n,
            "n_masks": self.n_masks,
            "seed": self.seed,
            "keep_probs": list(self.keep_probs),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "MaskDesign":
        """The design that `to_dict` wrote; raises `DesignError` on anything else."""
        try:
            kind, n, n_masks, seed = record["kind"], int(record["n"]), int(record["n_masks"]), int(record["seed"])
            if kind not in ("bernoulli", "stratified", "complete"):
                raise DesignError(
                    f"unknown kind of design {kind!r}; this version reads bernoulli, stratified and complete."
                )
            return cls(kind, n, n_masks, seed, tuple(float(q) for q in record["keep_probs"]))
        except (KeyError, TypeError, ValueError) as error:
            raise (
                error if isinstance(error, DesignError) else DesignError(f"this is not a mask design: {error!r}.")
            ) from error


def uniform_bits(seed: int, rows: Int[Tensor, " mask"], n: int) -> Int[Tensor, "mask component"]:
    """Uniform integers in [0, 2^53), one a (mask, component), the same on every device.

    splitmix64's finaliser over ``(mask · n + component) · γ + hash(seed)``; int64 arithmetic wraps as uint64 does.
    """
    counter = rows[:, None] * n + torch.arange(n, device=rows.device)
    odd = (seed * 2 + 1) % (1 << 64)  # any integer is a seed; torch wants it signed
    key = int(_mix(torch.tensor([odd - (odd >> 63 << 64)], dtype=torch.long))[0])
    return _shift(_mix(counter * _GAMMA + key), 11)


_GAMMA, _M1, _M2 = (c - (1 << 64) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _M1
    x = (x ^ _shift(x, 27)) * _M2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
