"""`Losses`: what losing each part of a set costs, and the words that these numbers bear.

With D(T) what losing T costs, the rest of the set S kept, a set is called, where D(S) > 0:

```text
enough   any one member is enough:  D(T) ≤ SLACK · D(S) for every T ⊂ S
backups  they back each other up:   D(S) exceeds D(T) for every T ⊂ S, and D(T) + D(S∖T) for every split, by
                                    HIDDEN · D(S) at least
needed   all of them are needed:    D(T) ≥ (1 - SLACK) · D(S) for every T ⊂ S that is not empty
```

and nothing otherwise; then the numbers stand alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from spex_mech.files.text import number

SLACK = 0.1  # of the whole loss: what counts as nothing
HIDDEN = 0.5  # of the whole loss: what no smaller loss shows, from which on it is the members' doing together
Word = Literal["enough", "backups", "needed"]
_SAID: dict[Word, str] = {
    "enough": "any one of them is enough",
    "backups": "they back each other up",
    "needed": "all of them are needed",
}


@dataclass(frozen=True)
class Losses:
    """What losing parts of a set costs, in the metric's unit; negative where losing them helps.

    Attributes:
        names: the set S. cost: D(T) by T, for every T ⊆ S.
        measured: the others were kept, and the masks were measured; else averages over masks, by the polynomial.
    """

    names: tuple[str, ...]
    cost: Mapping[frozenset[str], float]
    unit: str
    measured: bool

    @property
    def whole(self) -> float:
        return self.cost[frozenset(self.names)]

    @property
    def excess(self) -> float:
        """D(S) less the sum of the losses of the members by themselves."""
        return self.whole - sum(self.cost[frozenset({name})] for name in self.names)

    @property
    def word(self) -> Word | None:
        """What the set may be called; see the rules above."""
        all_of, bar = frozenset(self.names), SLACK * self.whole
        parts = [frozenset(t) for k in range(1, len(self.names)) for t in combinations(self.names, k)]
        if not self.whole > 0 or not parts:
            return None
        if all(self.cost[t] <= bar for t in parts):
            return "enough"
        if all(
            self.whole - max(self.cost[t], self.cost[t] + self.cost[all_of - t]) >= HIDDEN * self.whole for t in parts
        ):
            return "backups"
        return "needed" if all(self.cost[t] >= self.whole - bar for t in parts) else None

    def sentence(self) -> str:
        """The losses of the members and of the set, how far they add up, and the word that is borne."""
        alone = [f"losing {name} {_costs(self.cost[frozenset({name})], self.unit)}" for name in self.names]
        total, gap = sum(self.cost[frozenset({name})] for name in self.names), self.excess
        beside = (
            f"{number(abs(gap))} {'more' if gap > 0 else 'less'} than the {len(self.names)} by themselves add up to"
        )
        if abs(gap) <= 1e-6 * max(abs(self.whole), abs(total)):
            beside = f"what the {len(self.names)} by themselves add up to"
        where = "all else kept" if self.measured else "averaged over masks of the others"
        said = f"{', '.join(alone)}; losing all of them {_costs(self.whole, self.unit)}, {beside} ({where})"
        word = self.word
        return f"{said}{f': {_SAID[word]}' if word else ''}."


def _costs(value: float, unit: str) -> str:
    return f"{'costs' if value >= 0 else 'gains'} {number(abs(value))} {unit}"
