"""What a run will cost, from a few of its passes: rows a second, and the time that is in a budget."""

import os
import time
from dataclasses import dataclass

import torch

from spex_mech.ablation.replacement import fit_replacement
from spex_mech.ablation.respond import Engine
from spex_mech.ablation.subject import Subject
from spex_mech.components import ComponentSet
from spex_mech.files.text import counted, some_of
from spex_mech.measuring.workers import Workers
from spex_mech.tasks.task import Task

SHARE, LEAST, MOST = 32, 8, 64  # one mask of 32 is spent on the estimate, within bounds


@dataclass(frozen=True)
class Cost:
    """Forward rows of a budget, and how fast they pass; seconds are an estimate, nearer too much than too little.

    `note`: what would make it slower than that; `per_mask`: how many prompts a mask meets, None: all.
    """

    masks: int
    prompts: int
    rows_per_second: float | None = None
    note: str = ""
    per_mask: int | None = None

    @property
    def rows(self) -> int:
        return self.masks * (self.per_mask or self.prompts)

    @property
    def seconds(self) -> float | None:
        return None if self.rows_per_second is None else self.rows / self.rows_per_second

    def __str__(self) -> str:
        """One line.

        >>> print(Cost(2048, 16, 820.0))
        2,048 masks × 16 prompts = 32,768 forward rows ≈ 40 s at 820 rows/s
        >>> print(Cost(64, 4))
        64 masks × 4 prompts = 256 forward rows
        >>> print(Cost(64, 4, per_mask=1))
        64 masks × 1 of 4 prompts = 64 forward rows
        """
        prompts = some_of(self.per_mask or self.prompts, self.prompts, "prompt")
        told = f"{counted(self.masks, 'mask')} × {prompts} = {counted(self.rows, 'forward row')}"
        if self.seconds is None or self.rows_per_second is None:
            return told
        return f"{told} ≈ {in_words(self.seconds)} at {self.rows_per_second:,.0f} rows/s"


def estimate_cost(
    subject: Subject,
    task: Task,
    components: ComponentSet,
    masks: int,
    *,
    keep_prob: float = 0.5,
    replacement: str = "mean",
    per: str | None = None,
) -> Cost:
    """Time a few random masks as a run would pass them, after the passes that settle batch sizes.

    Raises what `discover` would raise of the task and the replacement.
    """
    used = min(max(masks // SHARE, LEAST), MOST)
    reference = fit_replacement(subject, task, components, kind=replacement, per=per, seed=0)
    engine = Engine(subject, task, components, reference)
    keep = torch.rand(used + 2, len(components), generator=torch.Generator().manual_seed(0)) < keep_prob
    engine.values(keep[:2])
    started = time.perf_counter()
    engine.values(keep[2:])
    return Cost(masks, len(task), used * len(task) / (time.perf_counter() - started))


def crowding(workers: Workers | None, device: torch.device) -> str:
    """What to do where workers on this machine have more threads than there are cores; empty where all is well."""
    each, cores = torch.get_num_threads(), os.cpu_count() or 1
    if workers is None or workers.address is not None or device.type != "cpu" or workers.count * each <= cores:
        return ""
    return (
        f"{workers.count} workers of {each} threads wait for each other on {cores} cores; a run begun with "
        f"OMP_NUM_THREADS={max(1, cores // workers.count)} in front of the command is faster"
    )


def in_words(seconds: float) -> str:
    """A duration for people.

    >>> in_words(0.2), in_words(40.2), in_words(400), in_words(9000)
    ('1 s', '40 s', '7 min', '2.5 h')
    """
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
