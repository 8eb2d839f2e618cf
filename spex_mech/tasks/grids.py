"""`Grid`: all combinations of a few choices, numbered, so that unique ones can be drawn without listing them."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Arrangement:
    """Ordered picks of `size` different items, in the place of a list of choices.

    >>> len(Arrangement("abc", 2)), Arrangement("abc", 2)[3]
    (6, ('b', 'c'))
    """

    items: Sequence[Any]
    size: int

    def __len__(self) -> int:
        return math.perm(len(self.items), self.size)

    def __getitem__(self, number: int) -> tuple[Any, ...]:
        left, picked = list(self.items), []
        for taken in range(self.size):
            block = math.perm(len(left) - 1, self.size - taken - 1)
            picked.append(left.pop(number // block))
            number %= block
        return tuple(picked)


@dataclass(frozen=True)
class Grid:
    """One choice from each of several lists; item number i of the product.

    >>> grid = Grid("ab", [1, 2, 3])
    >>> len(grid), grid[4]
    (6, ('b', 2))
    """

    factors: tuple[Sequence[Any] | Arrangement, ...]

    def __init__(self, *factors: Sequence[Any] | Arrangement) -> None:
        object.__setattr__(self, "factors", factors)

    def __len__(self) -> int:
        return math.prod(map(len, self.factors))

    def __getitem__(self, number: int) -> tuple[Any, ...]:
        chosen = []
        for factor in reversed(self.factors):
            number, place = divmod(number, len(factor))
            chosen.append(factor[place])
        return tuple(reversed(chosen))

    def draw(self, seed: int, most: int) -> Iterator[tuple[random.Random, tuple[Any, ...]]]:
        """Up to `most` different combinations in random order, each with its own stream for whatever else it needs."""
        for number in random.Random(seed).sample(range(len(self)), min(most, len(self))):
            yield random.Random(f"{seed} {number}"), self[number]
