"""Throughput of Ray workers against a run without them, on the shipped card: the same masks, the same bits."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from spex_mech.ablation.replacement import fit_replacement
from spex_mech.ablation.respond import Engine
from spex_mech.bench.timing import machine
from spex_mech.gallery.studies import open_study
from spex_mech.measuring.lens import in_turn
from spex_mech.measuring.measure import measure
from spex_mech.measuring.ray_pool import choose_run
from spex_mech.measuring.threads import threads
from spex_mech.measuring.workers import Workers
from spex_mech.walsh.masks.design import MaskDesign

Row = dict[str, Any]
CARD = "induction-2l"
BENCH_CHUNK = 256  # masks, as in a run
MASKS, QUICK = 4096, 1024
SERIAL = 0


@dataclass(frozen=True, eq=False)
class _Timed:
    """One run: its values, seconds from call to return, and when every chunk came (masks so far, seconds)."""

    values: Float[Tensor, "mask prompt"]
    seconds: float
    came: Sequence[tuple[int, float]]

    @property
    def rate(self) -> float:
        """Masks a second in the second half of the masks, when all workers have their models."""
        half = next(i for i, (masks, _) in enumerate(self.came) if masks >= self.came[-1][0] / 2)
        (before, begun), (after, ended) = self.came[half], self.came[-1]
        return (after - before) / (ended - begun)


def run(quick: bool = False, counts: Sequence[int] = (1, 2, 4), repeats: int = 2) -> Row:
    """Measure 4,096 masks of the shipped card's heads serially and with workers, interleaved.

    Workers and the serial run they are compared with take one thread each, so that workers up to the number of cores
    do not share them; another serial run takes all of torch's.

    Rows, one a repeat, number of workers (0: none) and threads: ``rate``, masks a second over the second half of the
    masks; ``seconds`` of the whole run, starting Ray and loading models included; ``identical``, whether the values are
    the first run's bit for bit. The summary has, for every number of workers, medians of the ratios of rates to the
    serial run of one thread (``throughput``) and to that of all threads (``against_all_threads``), of the whole runs
    (``whole_run``; above 1 is faster than serial), and whether all values were identical.
    """
    counts, repeats = ((2,), 1) if quick else (tuple(counts), repeats)
    every = torch.get_num_threads()
    cases = [(SERIAL, 1), *([(SERIAL, every)] if every > 1 else []), *((count, 1) for count in counts)]
    rows, truth = list[Row](), None
    for repeat in range(repeats):
        for count, each in cases:
            with threads(each):
                timed = _time(count, quick)
            truth = timed if truth is None else truth
            rows.append(_row(repeat, count, each, timed, truth))
    return {"machine": machine("cpu"), "rows": rows, "summary": _summary(rows, counts)}


def _time(count: int, quick: bool) -> _Timed:
    study = open_study(CARD)
    reference = fit_replacement(study.subject, study.task, study.components, study.replacement, per=study.per)
    engine = Engine(study.subject, study.task, study.components, reference)
    _ = engine.rows  # settles the sizes of batches
    design = MaskDesign.complete(len(study.components))
    chunks = [chunk for chunk in design.chunks(BENCH_CHUNK) if chunk[0] < (QUICK if quick else MASKS)]
    passed = in_turn if count == SERIAL else choose_run(Workers(CARD, count), study.subject.device)
    came = list[tuple[int, float]]()

    def tick(masks: int) -> None:
        came.append((masks + (came[-1][0] if came else 0), time.perf_counter()))

    started = time.perf_counter()
    values = measure(engine, chunks, on_progress=tick, run=passed)
    return _Timed(values, time.perf_counter() - started, came)


def _row(repeat: int, count: int, each: int, timed: _Timed, truth: _Timed) -> Row:
    return {
        "repeat": repeat,
        "workers": count,
        "threads": each,
        "rate": timed.rate,
        "seconds": timed.seconds,
        "identical": torch.equal(timed.values, truth.values),
    }


def _summary(rows: Sequence[Row], counts: Sequence[int]) -> Row:
    serial = {(row["repeat"], row["threads"]): row for row in rows if row["workers"] == SERIAL}
    every = max(each for _, each in serial)
    found: Row = {}
    for count in counts:
        mine = [row for row in rows if row["workers"] == count]
        for name, each in (("throughput", 1), ("against_all_threads", every)):
            found[f"{name}_{count}"] = median(row["rate"] / serial[row["repeat"], each]["rate"] for row in mine)
        found[f"whole_run_{count}"] = median(serial[row["repeat"], every]["seconds"] / row["seconds"] for row in mine)
    return found | {"identical": float(all(row["identical"] for row in rows))}
