"""`measure`: the values of many masks, chunk by chunk, each distinct mask once, journaled chunks read back."""

from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from spex_mech.components import ComponentSet
from spex_mech.files.records import plain
from spex_mech.measuring.journal import Journal, open_journal
from spex_mech.measuring.lens import Chunk, Chunks, Lens, Meets, Run, chunk_of, in_turn
from spex_mech.measuring.threads import threads
from spex_mech.progress import Tick
from spex_mech.store.discovery import store, whole_key
from spex_mech.store.responses import Responses, pack_bits, refuse_non_finite
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.masks.prompt_design import PromptDesign

PROMPT_DESIGN = "prompt_design"  # in the record of an experiment whose masks meet some prompts each
_MOST_THREADS = 1024  # that a journal may ask for; it may come from a stranger


def describe_experiment(lens: Lens, design: MaskDesign, prompts: PromptDesign | None = None) -> dict[str, Any]:
    """Whatever decides the values; together with the components it says whether two runs are the same."""
    dealt = {} if prompts is None else {PROMPT_DESIGN: prompts.to_dict()}
    return plain({**lens.describe(), "design": design.to_dict(), **dealt})


def measure_in(
    folder: Path | None,
    lens: Lens,
    record: dict[str, Any],
    keep: Bool[Tensor, "mask component"],
    *,
    cut: Callable[[int], Chunks],
    tick: Tick | None = None,
    known: Float[Tensor, "known slot"] | None = None,
    run: Run = in_turn,
    meets: Meets | None = None,
) -> tuple[Responses, dict[str, int]]:
    """The responses of `keep`, and how many masks and chunks a run before this one had measured.

    In a run folder they are journaled chunk by chunk, and at the end kept as one file too.

    Args:
        cut: makes chunks of that many of the masks that are not `known`.
        known: values of the first masks, where a pilot has measured them.
        meets: which prompts each mask meets, where not all.
    """
    with nullcontext() if folder is None else open_journal(folder, whole_key(record, lens.components)) as journal:
        lens = lens if journal is None else settle_lens(lens, journal)
        ledger = _work(lens, cut(chunk_of(lens, meets)), journal, tick=tick, run=run, meets=meets)
        values = ledger.values() if known is None else torch.cat([known, ledger.values()])
        met = None if meets is None else meets.met(0, len(keep))
        responses = Responses(lens.components, keep, values, lens.unit, record, met, lens.outputs)
        if folder is None or journal is None:
            return responses, {"resumed_masks": 0}
        store(responses, folder)
        resumed = {"resumed_masks": journal.resumed, "resumed_chunks": journal.resumed_chunks}
        return responses, {**resumed, "chunks": len(ledger.done)}


def settle_lens(lens: Lens, journal: Journal) -> Lens:
    """The lens as the run began with it; the unit is written down for whoever reads the journal without one."""
    journal.settle("unit", lambda: lens.unit)
    return lens.settled(journal.settle)


def measure(
    lens: Lens, chunks: Chunks, journal: Journal | None = None, on_progress: Tick | None = None, run: Run = in_turn
) -> Float[Tensor, "mask slot"]:
    """The values of every mask, chunks in order, float32 on the CPU.

    A chunk is ``(number of its first mask, keep)``; of masks that occur again, the first is passed and the others are
    copies. Which masks are passed together depends on the chunks alone, so a run that was interrupted, or that went
    through many workers, gives the same bits as one that was not. With a journal, a chunk is on disk as soon as it is
    measured.

    Raises `ResponseError`: values that are not finite, or a journal that cannot be written.
    """
    return _work(lens, chunks, journal, tick=on_progress, run=run).values()


def measure_share(
    lens: Lens,
    chunks: Chunks,
    journal: Journal,
    shard: tuple[int, int],
    *,
    tick: Tick,
    run: Run = in_turn,
    meets: Meets | None = None,
) -> None:
    """Journal one share of the chunks: of every `shard[1]` the one that is number `shard[0]`, counted from 1.

    The journal is one of the whole run, with chunks missing: copied into one file, the shares make what `measure`
    would have written.
    """
    part, parts = shard
    _work(lens, chunks, journal, tick=tick, run=run, mine=lambda number: number % parts == part - 1, meets=meets)


def recollect(
    journal: Journal, chunks: Chunks, components: ComponentSet, outputs: int, meets: Meets | None = None
) -> tuple[Float[Tensor, "mask slot"], list[int]]:
    """The values that a journal has, nothing measured; and the numbers of the first masks of chunks that it lacks."""
    ledger = _Ledger(components, outputs if meets is None else meets.per_mask, journal, meets=meets)
    missing = [first for first, *_ in ledger.open(chunks)]
    return (torch.zeros(0, ledger.slots) if missing else ledger.values()), missing


def _work(
    lens: Lens,
    chunks: Chunks,
    journal: Journal | None,
    *,
    tick: Tick | None = None,
    run: Run = in_turn,
    mine: Callable[[int], bool] = lambda _: True,
    meets: Meets | None = None,
) -> "_Ledger":
    count = torch.get_num_threads()
    if journal is not None:  # bits depend on the shape of a batch and on threads: a run that goes on keeps its own
        lens = lens.settled(journal.settle)
        settled = journal.settle("threads", lambda: count)
        count = settled if type(settled) is int and 0 < settled <= _MOST_THREADS else count
    slots = lens.outputs if meets is None else meets.per_mask
    ledger = _Ledger(lens.components, slots, journal, tick or (lambda _: None), mine, meets)
    with threads(count), closing(run(lens, ledger.open(chunks))) as results:
        for first, values in results:
            ledger.take(first, values)
    return ledger


@dataclass(frozen=True)
class _Open:
    """A chunk that is being measured."""

    keep: Bool[Tensor, "mask component"]
    packed: UInt8[Tensor, "mask byte"]
    new: Bool[Tensor, " mask"]


@dataclass
class _Ledger:
    """Which masks have been seen, which chunks are being measured, and what the others gave.

    A mask that was seen before has no value of its own, in the journal neither: NaN stands there. Where masks meet some
    prompts each, one was seen before if it met the same prompts.
    """

    components: ComponentSet
    slots: int  # values a mask
    journal: Journal | None
    tick: Tick = lambda _: None
    mine: Callable[[int], bool] = lambda _: True
    meets: Meets | None = None
    seen: dict[bytes, int] = field(default_factory=dict)  # mask and what it met → its place among all masks
    count: int = 0
    copies: list[tuple[int, int]] = field(default_factory=list)  # (place of a repeated mask, place of the first such)
    begun: dict[int, _Open] = field(default_factory=dict)
    done: dict[int, Float[Tensor, "mask slot"]] = field(default_factory=dict)

    def open(self, chunks: Chunks) -> Iterator[Chunk]:
        """The masks that must be passed, chunk by chunk; what the journal has is taken from there."""
        for number, (first, keep) in enumerate(chunks):
            packed = pack_bits(keep.cpu())
            met = None if self.meets is None else self.meets.met(first, first + len(keep))
            chunk = _Open(keep, packed, self._enter(packed, met))
            if not self.mine(number):
                continue
            known = None if self.journal is None else self.journal.read(first, packed)
            if known is not None and known.shape[1] == self.slots:
                self._finish(first, known)
                continue
            self.begun[first] = chunk
            if chunk.new.any():
                new = keep[chunk.new.to(keep.device)]
                yield (first, new) if met is None else (first, new, met[chunk.new])
            else:
                self.take(first, torch.empty(0, self.slots))

    def _enter(self, packed: UInt8[Tensor, "mask byte"], met: Int[Tensor, "mask slot"] | None) -> Bool[Tensor, " mask"]:
        """Note the masks of a chunk; True where a mask has not been seen before."""
        new = torch.zeros(len(packed), dtype=torch.bool)
        prompts = None if met is None else met.numpy()
        for row, word in enumerate(packed.numpy()):
            here = self.count + row
            place = self.seen.setdefault(word.tobytes() + (b"" if prompts is None else prompts[row].tobytes()), here)
            if place == here:
                new[row] = True
            else:
                self.copies.append((here, place))
        self.count += len(packed)
        return new

    def take(self, first: int, values: Float[Tensor, "mask slot"]) -> None:
        """What the new masks of a chunk gave."""
        chunk = self.begun.pop(first)
        whole = torch.zeros(len(chunk.keep), self.slots)
        whole[chunk.new] = values
        refuse_non_finite(self.components, chunk.keep, whole, first)
        whole[~chunk.new] = float("nan")
        if self.journal is not None:
            self.journal.write(first, chunk.packed, whole)
        self._finish(first, whole)

    def _finish(self, first: int, values: Float[Tensor, "mask slot"]) -> None:
        self.done[first] = values
        self.tick(len(values))

    def values(self) -> Float[Tensor, "mask slot"]:
        """All values in order, copies filled in."""
        if not self.done:
            return torch.zeros(0, self.slots)
        values = torch.cat([self.done[first] for first in sorted(self.done)])
        if self.copies:
            to, source = torch.tensor(self.copies).T
            values[to] = values[source]
        return values
