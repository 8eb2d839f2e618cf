"""`Passes`: the forward passes of an audit. Each mask once, journaled, counted against one budget."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spex_mech.ablation.respond import Engine
from spex_mech.errors import DesignError
from spex_mech.measuring.journal import Journal
from spex_mech.measuring.measure import measure
from spex_mech.store.responses import pack_bits

PASS_CHUNK = 256  # masks that are on disk before the next are begun


@dataclass
class Ledger:
    """A budget of masks and what is spent of it; several `Passes` may share one. `tick` is told of masks done."""

    budget: int
    tick: Callable[[int], None] = field(default=lambda _: None)
    spent: int = 0

    @property
    def left(self) -> int:
        return self.budget - self.spent

    def part(self, part: float) -> int:
        """That part of the whole budget, or what is left if that is less."""
        return max(0, min(self.left, int(part * self.budget)))


class Passes:
    """Asks an engine for masks; what was asked before comes from memory, what a killed run had from the journal.

    What is measured in a call depends on the calls before it alone, so a run that was interrupted gives the same bits.
    """

    def __init__(self, engine: Engine, ledger: Ledger, journal: Journal | None = None) -> None:
        """`journal` must belong to this engine's experiment and to nobody else."""
        self._engine, self._ledger, self._journal = engine, ledger, journal
        self._known: dict[bytes, Tensor] = {}
        self._asked = 0

    @property
    def left(self) -> int:
        """Masks that the budget still has."""
        return self._ledger.left

    def cost(self, keep: Bool[Tensor, "mask component"]) -> int:
        """How many of these masks were not measured yet."""
        return len(set(_words(keep)) - self._known.keys())

    def values(self, keep: Bool[Tensor, "mask component"]) -> Float[Tensor, "mask prompt"]:
        """The metric of every prompt under every mask; raises `DesignError` where the budget has not enough left."""
        words = _words(keep)
        new = {word: row for row, word in reversed(list(enumerate(words))) if word not in self._known}
        rows = sorted(new.values())
        if len(rows) > self.left:
            raise DesignError(f"{len(rows):,} masks were asked for, and {self.left:,} of the budget are left.")
        for start in range(0, len(rows), PASS_CHUNK):
            part = rows[start : start + PASS_CHUNK]
            found = measure(self._engine, [(self._asked, keep[part])], self._journal, self._ledger.tick)
            self._known |= {words[row]: value for row, value in zip(part, found, strict=True)}
            self._asked += len(part)
            self._ledger.spent += len(part)
        return torch.stack([self._known[word] for word in words])

    def means(self, keep: Bool[Tensor, "mask component"]) -> Float[Tensor, " mask"]:
        """The headline metric, the mean over prompts, under every mask; float64."""
        return self.values(keep).double().mean(1)


def seed_of(seed: int, *parts: object) -> int:
    """A seed for one use of many, the same in every process.

    >>> seed_of(1, "fresh") == seed_of(1, "fresh") != seed_of(1, "random")
    True
    """
    text = " ".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "little")


def _words(keep: Bool[Tensor, "mask component"]) -> list[bytes]:
    return [row.tobytes() for row in pack_bits(keep.cpu()).numpy()]
