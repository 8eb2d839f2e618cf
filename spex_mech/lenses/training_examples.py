"""`Examples`: which training examples are kept → the value of each mask, by training anew."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spex_mech.components import Component, ComponentSet
from spex_mech.errors import TaskError
from spex_mech.lenses.learners import Learner
from spex_mech.measuring.lens import Settle

Groups = tuple[tuple[int, ...], ...]
TRAININGS, MOST_TOGETHER = 8, 1 << 20  # that are on disk together, at least and at most


@dataclass(frozen=True, eq=False)
class Examples:
    """Training examples in groups, group i being the component ``d{i}``; examples in no group always stay.

    Attributes:
        count: how many examples there are.
        groups: their numbers, each in one group at most.
        processes: trainings at a time; the values do not depend on it.
        kind: of learner, for the record.
        content: by what a run folder knows the learner and its data.
        metric: what is read off a trained model, in words.
        roles: what is known of each component.
        together: trainings that are on disk together; 0: as many as fit the processes.
    """

    count: int
    groups: Groups
    learner: Learner
    processes: int = 1
    kind: str = "function"
    content: str = ""
    metric: str = "metric"
    roles: Mapping[str, str] = field(default_factory=dict)
    together: int = 0

    verb: ClassVar[str] = "training"
    device: ClassVar[torch.device] = torch.device("cpu")

    @property
    def chunk(self) -> int:
        return self.together or max(TRAININGS, 2 * self.processes)

    @cached_property
    def components(self) -> ComponentSet:
        return ComponentSet(tuple(Component("example", 0, i) for i in range(len(self.groups))))

    @property
    def unit(self) -> str:
        return self.learner.unit

    @property
    def outputs(self) -> int:
        return self.learner.outputs

    def values(self, keep: Bool[Tensor, "mask component"]) -> Float[Tensor, "mask output"]:
        """One training on what each mask keeps."""
        return self.learner.values(self._examples(keep), self.processes)

    def settled(self, settle: Settle) -> "Examples":
        """The same with as many trainings on disk together as a run began with."""
        return replace(self, together=min(MOST_TOGETHER, max(1, int(settle("chunk", lambda: self.chunk)))))

    @property
    def notes(self) -> dict[str, Any]:
        return {}

    def refuse_change(self) -> None:
        """A learner is made anew each time."""

    def describe(self) -> dict[str, Any]:
        """What decides the values, by content."""
        data = {"lens": "data", "examples": self.count, "groups": [list(group) for group in self.groups]}
        return {
            "subject": {"model": self.kind, "identity": self.content},
            "task": {"prompts": self.outputs, "metric": self.metric, "data": data},
            "replacement": {
                "kind": "absence", "assumes": "training on the rest is what would have happened without them"
            },
        }  # fmt: skip

    def _examples(self, keep: Bool[Tensor, "mask component"]) -> Bool[Tensor, "mask example"]:
        owner = torch.full((self.count,), len(self.groups))
        for i, group in enumerate(self.groups):
            owner[list(group)] = i
        return torch.nn.functional.pad(keep, (0, 1), value=True)[:, owner]


def groups_of(count: int, groups: Sequence[Sequence[int]] | None) -> Groups:
    """The groups of `count` examples: as given, or each example by itself.

    Raises `TaskError`: numbers that no example has, an example in two groups, an empty group.

    >>> groups_of(3, [[0, 2]])
    ((0, 2),)
    """
    if groups is None:
        return tuple((i,) for i in range(count))
    found = tuple(tuple(int(i) for i in group) for group in groups)
    every = [i for group in found for i in group]
    outside = sorted({i for i in every if not 0 <= i < count})
    twice = sorted({i for i in every if every.count(i) > 1}) if len(set(every)) < len(every) else []
    if outside or twice or not found or not all(found):
        raise TaskError(
            f"groups of {count:,} examples: {f'{outside[:8]} do not exist ' * bool(outside)}"
            f"{f'{twice[:8]} are in two ' * bool(twice)}{'one is empty, or none given ' * (not outside and not twice)}"
            "(each example, counted from 0, is in one group at most)."
        )
    return found
