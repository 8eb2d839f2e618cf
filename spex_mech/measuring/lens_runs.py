"""`run_lens`: masks → values → polynomial → circuit, for lenses other than a model's components; the spine again."""

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spex_mech.circuit.graph import Circuit
from spex_mech.files.locks import hold
from spex_mech.files.records import plain
from spex_mech.measuring.decode import choose_decoder, decode_held
from spex_mech.measuring.journal import open_journal
from spex_mech.measuring.lens import Lens, measure_lens
from spex_mech.measuring.masks import KeepProb, choose_design
from spex_mech.progress import mask_progress
from spex_mech.store.discovery import Discovery, recall_responses, store, whole_key
from spex_mech.store.responses import Responses
from spex_mech.walsh.certainty.weigh import check_certainty
from spex_mech.walsh.masks.design import MaskDesign


@dataclass(frozen=True)
class Asked:
    """What is asked of a run; see `discover` for each."""

    budget: int
    keep: KeepProb
    decoder: str
    link: str
    seed: int
    out: str | Path | None
    progress: bool
    folds: int
    resamples: int


def run_lens(
    lens: Lens,
    experiment: Mapping[str, Any],
    roles: Mapping[str, str],
    asked: Asked,
    *,
    verb: str,
    chunk: int,
    batch_rows: int = 1,
) -> Discovery:
    """Measure a lens in chunks of masks and decode it.

    Args:
        experiment: what decides the values, by content ("subject", "task", "replacement"); the design is added.
        roles: what each part says, by its name.
        verb: for the bar.
        chunk: masks that are on disk together; a run that is killed loses no more.
        batch_rows: handed to the lens.

    Raises `ResponseError`: values that are not finite, or a run folder of another experiment.
    """
    design = choose_design(len(lens.components), asked.budget, asked.keep, asked.decoder, asked.seed)
    choose_decoder(asked.decoder, design, design.n_masks, asked.link)
    check_certainty(design, asked.folds, asked.resamples)
    with hold(asked.out):
        record = plain({**experiment, "design": design.to_dict()})
        started = time.perf_counter()
        responses, resumed = recall_responses(asked.out, record, lens.components), design.n_masks
        if responses is None:
            with mask_progress(design.n_masks, verb, shown=asked.progress) as tick:
                responses, resumed = _measure(lens, design, record, asked.out, tick, chunk, batch_rows)
        spent = {"seconds": {"respond": time.perf_counter() - started}, "resumed_masks": resumed}
        found = decode_held(
            responses, asked.decoder, asked.seed, asked.out, spent, asked.folds, asked.resamples, asked.link
        )
        return _named(found, roles, asked.out)


def _measure(
    lens: Lens,
    design: MaskDesign,
    record: Mapping[str, Any],
    out: str | Path | None,
    tick: Callable[[int], None],
    chunk: int,
    batch_rows: int,
) -> tuple[Responses, int]:
    """The responses of the design, journaled in a run folder; and how many masks were there already."""
    key = whole_key(record, lens.components)
    with nullcontext() if out is None else open_journal(Path(out), key) as journal:
        if journal is not None:  # chunks of a run that goes on are those it began with
            chunk = int(journal.settle("chunk", lambda: chunk))
        values = measure_lens(lens, design.chunks(chunk), journal, tick, batch_rows)
        responses = Responses(lens.components, design.keep(), values, lens.unit, record)
        if out is not None:
            store(responses, Path(out))
        return responses, 0 if journal is None else journal.resumed


def _named(found: Discovery, roles: Mapping[str, str], out: str | Path | None) -> Discovery:
    """The same, every node with what it says as its role."""

    def name(circuit: Circuit) -> Circuit:
        return replace(circuit, nodes=tuple(replace(node, role=roles.get(node.name)) for node in circuit.nodes))

    raw = None if found.raw_circuit is None else name(found.raw_circuit)
    named = replace(found, circuit=name(found.circuit), raw_circuit=raw)
    if out is not None:
        named.save(out)
    return named
