"""Accuracy of the decoders on the same masks: R² on fresh ones, sets found, seconds; planted functions and cards."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from spex_mech.bench.cases import FAMILIES, Case, Family, card_pools, planted_case
from spex_mech.bench.functions import support_f1
from spex_mech.bench.peers import has_shapiq, shapiq_proxy
from spex_mech.bench.queries import summarise
from spex_mech.bench.timing import machine
from spex_mech.walsh.decoders.linear import Linear
from spex_mech.walsh.decoders.proxyspex import ProxySpex
from spex_mech.walsh.decoding import Decoder, Samples, r_squared
from spex_mech.walsh.joint.joint import Joint
from spex_mech.walsh.masks.design import MaskDesign

Row = dict[str, Any]
Measure = Callable[[Case], Row | None]
BUDGETS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
REPEATS, FEW = 3, 1024  # repeats of every cell of at most so many masks; of larger ones, one
SEARCHED = "proxyspex"  # the peer's default search of settings, which takes minutes a cell


def run(
    quick: bool = False,
    cards: Path | None = None,
    peer_python: str | None = None,
    search: bool = False,
    budgets: Sequence[int] = (),
    out: Path | None = None,
) -> Row:
    """Decode planted functions, and responses of every card in a folder of cards, with every decoder for any masks, and
    with shapiq's proxies on the same masks and values where `peer_python` (default: this interpreter) has them.

    Args:
        budgets: numbers of masks; default: 32 to 4,096, doubling.
        search: run shapiq's ProxySPEX with its default search of settings too (40 fits a cell), not one fit alone.
        out: a folder of responses and of finished rows, a file a decoder. A run that finds them there goes on from
            them, and its summary is of all of them; delete a decoder's file to measure it again.

    Rows: case, keep_prob, masks, repeat, decoder, r2 (fresh masks, the mean over prompts), f1 (where the truth is
    known), sets, seconds (CPU), wall (seconds). The summary is `queries.summarise`'s.
    """
    budgets = (64,) if quick else tuple(budgets) or BUDGETS
    measures = {decoder.name: _ours(decoder) for decoder in (Joint(), ProxySpex(), Linear())}
    methods = [m for m in ("proxyspex, one fit", "proxyshap", SEARCHED) if search or m != SEARCHED]
    if has_shapiq(peer_python):
        measures |= {f"shapiq {method}": _peer(method, peer_python) for method in methods}
    books = {name: Book(None if out is None else out / "rows" / f"{name}.jsonl") for name in measures}
    for case in _cases(budgets, cards, out, FAMILIES[:1] if quick else FAMILIES, 1 if quick else REPEATS):
        for name, measure in measures.items():
            books[name].fill(case, name, measure)
    rows = [row for book in books.values() for row in book.rows if "r2" in row]
    return {"machine": machine("cpu"), "rows": rows, "summary": summarise(rows)}


@dataclass(eq=False)
class Book:
    """The rows of one decoder, on disk where there is a file."""

    file: Path | None
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.file is not None and self.file.exists():
            self.rows = [json.loads(line) for line in self.file.read_text().splitlines()]

    def fill(self, case: Case, name: str, measure: Measure) -> None:
        """Measure a cell, unless it is there; one without an answer is remembered too."""
        if any(all(row[key] == value for key, value in case.cell.items()) for row in self.rows):
            return
        self.rows.append({**case.cell, "decoder": name, **(measure(case) or {})})
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a") as open_file:
                open_file.write(json.dumps(self.rows[-1]) + "\n")


def _cases(
    budgets: Sequence[int], cards: Path | None, out: Path | None, families: Iterable[Family], repeats: int
) -> Iterator[Case]:
    cells = [(masks, repeat) for masks in budgets for repeat in range(repeats if masks <= FEW else 1)]
    for family in families:
        yield from (planted_case(family, masks, repeat) for masks, repeat in cells)
    for folder in sorted(cards.iterdir()) if cards is not None else ():
        if (folder / "card.toml").is_file():
            for pool in card_pools(folder, None if out is None else out / "responses"):
                found = (pool.case(masks, repeat) for masks, repeat in cells)
                yield from (case for case in found if case is not None)


def _ours(decoder: Decoder) -> Measure:
    def measure(case: Case) -> Row:
        design = MaskDesign.bernoulli(case.keep.shape[1], len(case.keep), case.keep_prob, seed=3)
        samples, started, wall = Samples(case.keep, case.values, design), time.process_time(), time.perf_counter()
        decoded = decoder.decode(samples, seed=0)
        times = {"seconds": time.process_time() - started, "wall": time.perf_counter() - wall}
        spectrum = decoded.spectrum.mean_output()
        known = {} if case.planted is None else {"f1": support_f1(case.planted.sets, set(spectrum.sets))}
        r2 = r_squared(case.truth, spectrum.evaluate(case.fresh))
        winner = decoded.stats.get("winner")
        return {"r2": r2, "sets": len(spectrum), **times, "winner": winner, **known}

    return measure


def _peer(method: str, python: str | None) -> Measure:
    def measure(case: Case) -> Row | None:
        values = case.values.double().mean(1).numpy()
        threads = torch.get_num_threads()
        answer = shapiq_proxy(case.keep.numpy(), values, case.fresh.numpy(), method, python, threads)
        if answer is None:
            return None
        r2 = r_squared(case.truth, torch.from_numpy(answer.predicted))
        return {"r2": r2, "seconds": answer.seconds, "wall": answer.wall}

    return measure
