"""Responses of a sequence of masks, journaled in a run folder as they come."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spex_mech.ablation.respond import Engine
from spex_mech.measuring.journal import Journal, open_journal
from spex_mech.measuring.measure import Run, in_turn, measure
from spex_mech.store.discovery import store, whole_key
from spex_mech.store.responses import Responses
from spex_mech.tasks.metrics import resolve
from spex_mech.tasks.task import Task
from spex_mech.walsh.masks.design import MaskDesign

MASK_CHUNK = 256  # masks handed to the engine at a time; it batches within


def measure_once(
    engine: Engine,
    design: MaskDesign,
    record: Mapping[str, Any],
    out: str | Path | None,
    tick: Callable[[int], None],
    known: Float[Tensor, "known prompt"] | None = None,
    run: Run = in_turn,
) -> tuple[Responses, dict[str, int]]:
    """The responses of a design, and how many masks and chunks a run before this one had measured.

    In a run folder they are journaled chunk by chunk, and at the end kept as one file too. `known` are the values of
    the design's first masks, where a pilot has measured them.
    """
    begin = 0 if known is None else len(known)
    tick(begin)
    responses, resumed = measure_masks(
        engine, design.keep(), design.chunks(MASK_CHUNK, start=begin), record, out, tick, known, run
    )
    if out is not None:
        resumed |= {"chunks": -(-(design.n_masks - begin) // MASK_CHUNK)}
    return responses, resumed


def measure_masks(
    engine: Engine,
    keep: Bool[Tensor, "mask component"],
    chunks: Iterable[tuple[int, Bool[Tensor, "row component"]]],
    record: Mapping[str, Any],
    out: str | Path | None,
    tick: Callable[[int], None],
    known: Float[Tensor, "known prompt"] | None = None,
    run: Run = in_turn,
) -> tuple[Responses, dict[str, int]]:
    """The responses of `keep`, of which `chunks` are those that are not `known`; `run` passes them."""

    def respond(journal: Journal | None) -> Responses:
        values = measure(engine, chunks, journal, tick, run)
        values = values if known is None else torch.cat([known, values])
        return Responses(engine.components, keep, values, resolve(engine.task).unit, record)

    if out is None:
        return respond(None), {"resumed_masks": 0}
    with open_journal(Path(out), whole_key(record, engine.components)) as journal:
        settle_unit(journal, engine.task)
        responses = respond(journal)
        store(responses, Path(out))
        return responses, {"resumed_masks": journal.resumed, "resumed_chunks": journal.resumed_chunks}


def settle_unit(journal: Journal, task: Task) -> None:
    """Write down in a journal what its values are in, so that it can be read without the task."""
    journal.settle("unit", lambda: resolve(task).unit)
