"""Would random sets of the same size do as well? The null of every circuit; spends a mask a set and size."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from spex_mech.auditing.case import Case
from spex_mech.auditing.faithfulness import model_distance, performance_ratio
from spex_mech.auditing.passes import seed_of

RANDOM_SETS = 8  # a size: the null is told to an eighth


@dataclass(frozen=True)
class RandomSets:
    """Faithfulness of nested random sets, by their size: one chain of sets a random order of the components."""

    faithfulness: Mapping[int, tuple[float, ...]]

    @property
    def orders(self) -> int:
        return len(next(iter(self.faithfulness.values())))

    def mean(self, count: int) -> float:
        return float(self._of(count).mean())

    def std(self, count: int) -> float:
        return float(self._of(count).std())

    def areas(self, counts: Sequence[int]) -> tuple[float, float]:
        """CPR and CMD of the random orders, their mean."""
        paths = [[self.faithfulness[count][k] for count in counts] for k in range(self.orders)]
        cpr, cmd = (sum(map(area, paths)) / self.orders for area in (performance_ratio, model_distance))
        return cpr, cmd

    def _of(self, count: int) -> torch.Tensor:
        return torch.tensor(self.faithfulness[count], dtype=torch.float64)


def try_random(case: Case, counts: Collection[int], allowance: int) -> RandomSets | None:
    """Random sets of these sizes, as many as the allowance has room for, 2 to 8; None where there is no room."""
    n, sizes = len(case.names), sorted({0, len(case.names), *counts})
    number = min(RANDOM_SETS, allowance // max(1, len(sizes) - len({0, n})))
    if number < 2:
        case.skipped.append("random sets of the same size")
        return None
    generator = torch.Generator().manual_seed(seed_of(case.seed, "random"))
    orders = [torch.randperm(n, generator=generator).tolist() for _ in range(number)]
    values = case.measured([[case.names[i] for i in order[:count]] for count in sizes for order in orders])
    f = [case.faithfulness(value) for value in values]
    return RandomSets({count: tuple(f[k * number : (k + 1) * number]) for k, count in enumerate(sizes)})
