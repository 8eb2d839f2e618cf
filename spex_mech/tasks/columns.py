"""The columns of a task, checked: whole numbers, one or several a prompt."""

import operator
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from spex_mech.errors import TaskError, all_problems
from spex_mech.names import METRIC_NAMES


def row_numbers(which: Iterable[int], n: int) -> Int[Tensor, " prompt"]:
    """Numbers of prompts, checked."""
    try:
        rows = [operator.index(i) for i in which]
    except TypeError as error:
        raise TaskError(f"prompts are taken by their numbers, from 0 to {n - 1}, not {which!r:.60}.") from error
    if not rows or any(not -n <= i < n for i in rows):
        raise TaskError(f"prompts {rows[:10]} were asked for of {n:,}; they are numbered from 0, and one at least.")
    return torch.tensor(rows)


def without_padding(ids: Int[Tensor, "prompt token"]) -> Int[Tensor, "prompt token"]:
    """Without columns that pad every row, so that equal tasks are equal however they were made."""
    return ids[:, : int((ids >= 0).sum(1).max()) if len(ids) else 0]


def real_ids(ids: Tensor) -> list[int]:
    """A row of ids without its padding."""
    return [i for i in ids.tolist() if i >= 0]


def check_metric(metric: Any) -> None:
    """Refuse a metric that is neither a known name nor a function before anything is spent."""
    if not callable(metric) and (not isinstance(metric, str) or metric not in METRIC_NAMES):
        raise TaskError(
            f"there is no metric {metric!r:.80}; the metrics are {', '.join(METRIC_NAMES)}, or a function of your own."
        )


def lines(values: Any, name: str, n: int | None = None) -> tuple[str, ...]:
    """Texts, `n` of them where it says so; none at all where all are empty."""
    if not isinstance(values, list | tuple) or not all(isinstance(text, str) for text in values):
        raise TaskError(f"{name} are {values!r:.60}; they are a list of texts.")
    if n is not None and len(values) not in (0, n):
        raise TaskError(f"{len(values)} {name} were given for {n} prompts; give one a prompt, or none.")
    return tuple(values) if any(values) else ()


def vector(values: Any, n: int, name: str) -> Int[Tensor, " prompt"]:
    try:
        given = torch.as_tensor(values)
        vector = given.long()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TaskError(f"{name} are {values!r:.60}; they are whole numbers, one a prompt.") from error
    if given.dtype.is_floating_point or given.dtype.is_complex or given.dtype == torch.bool:
        raise TaskError(f"{name} are {values!r:.60}; they are whole numbers, one a prompt.")
    vector = vector.expand(n).clone() if vector.ndim == 0 else vector
    if vector.shape != (n,):
        raise TaskError(f"{name} has shape {tuple(vector.shape)}; it needs one entry for each of the {n} prompts.")
    return vector


def ragged(values: Any, n: int) -> Int[Tensor, "prompt distractor"]:
    if values is None:
        return torch.full((n, 0), -1)
    try:
        listed = values.tolist() if hasattr(values, "tolist") else list(values)
        rows = [[r] if isinstance(r, int) else [operator.index(v) for v in r] for r in listed]
    except (TypeError, ValueError, RuntimeError) as error:
        raise TaskError(
            f"distractors and further answers are token ids, a row of them a prompt, not {values!r:.60}."
        ) from error
    if len(rows) != n:
        raise TaskError(f"distractors have {len(rows)} rows; they need one for each of the {n} prompts.")
    width = max((len(row) for row in rows), default=0)
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows], dtype=torch.long).reshape(n, width)


def resolved_positions(positions: Tensor, lengths: Tensor) -> Int[Tensor, " prompt"]:
    resolved = torch.where(positions < 0, positions + lengths, positions)
    wrong = ((resolved < 0) | (resolved >= lengths)).nonzero()[:, 0].tolist()
    if wrong:
        problems = [f"prompt {i + 1}: position {int(positions[i])} of {int(lengths[i])} tokens" for i in wrong]
        raise TaskError(all_problems(f"{len(wrong)} positions lie outside their prompts:", problems))
    return resolved
