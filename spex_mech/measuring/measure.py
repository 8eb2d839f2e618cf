"""`measure`: the values of a whole design, chunk by chunk, each distinct mask once, journaled chunks read back."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from spex_mech.ablation.respond import Engine
from spex_mech.components import ComponentSet
from spex_mech.measuring.journal import Journal
from spex_mech.measuring.threads import threads
from spex_mech.store.responses import pack_bits, refuse_non_finite

_MOST_THREADS = 1024  # that a journal may ask for; it may come from a stranger
Chunks = Iterable[tuple[int, Bool[Tensor, "mask component"]]]
Results = Generator[tuple[int, Float[Tensor, "mask prompt"]], None, None]
Run = Callable[[Engine, Chunks], Results]
"""Something that passes chunks through an engine: (number of the first mask, values), in any order."""


def in_turn(engine: Engine, chunks: Chunks) -> Results:
    """Pass chunks one after the other, in this process; the next is not asked for before the last was taken.

    Other runs (see `ray_pool`) give the same values in another order.
    """
    for first, keep in chunks:
        yield first, engine.values(keep)


def measure(
    engine: Engine,
    chunks: Chunks,
    journal: Journal | None = None,
    on_progress: Callable[[int], None] | None = None,
    run: Run = in_turn,
) -> Float[Tensor, "mask prompt"]:
    """The metric of every prompt under every mask, chunks in order, float32 on the CPU.

    A chunk is ``(number of its first mask, keep)``; of masks that occur again, the first is passed and the others are
    copies. Which masks are passed together depends on the chunks alone, so a run that was interrupted, or that went
    through many workers, gives the same bits as one that was not. With a journal, a chunk is on disk as soon as it is
    measured.

    Raises `ResponseError`: values that are not finite, or a journal that cannot be written.
    """
    ledger = _work(engine, chunks, journal, on_progress, run, lambda _: True)
    return ledger.values()


def measure_share(
    engine: Engine,
    chunks: Chunks,
    journal: Journal,
    shard: tuple[int, int],
    on_progress: Callable[[int], None] | None = None,
    run: Run = in_turn,
) -> None:
    """Journal one share of the chunks: of every `shard[1]` the one that is number `shard[0]`, counted from 1.

    The journal is one of the whole run, with chunks missing: copied into one file, the shares make what `measure`
    would have written.
    """
    part, parts = shard
    _work(engine, chunks, journal, on_progress, run, lambda number: number % parts == part - 1)


def recollect(
    journal: Journal, chunks: Chunks, components: ComponentSet, prompts: int
) -> tuple[Float[Tensor, "mask prompt"], list[int]]:
    """The values that a journal has, nothing measured; and the numbers of the first masks of chunks that it lacks."""
    ledger = _Ledger(components, prompts, journal, lambda _: None, lambda _: True)
    missing = [first for first, _ in ledger.open(chunks)]
    return (torch.zeros(0, prompts) if missing else ledger.values()), missing


def _work(
    engine: Engine,
    chunks: Chunks,
    journal: Journal | None,
    on_progress: Callable[[int], None] | None,
    run: Run,
    mine: Callable[[int], bool],
) -> "_Ledger":
    count = torch.get_num_threads()
    if journal is not None:  # bits depend on the shape of a batch and on threads: a run that goes on keeps its own
        rows = journal.settle("batch_rows", lambda: dict(engine.rows))
        engine = replace(engine, batch_rows={int(length): int(count) for length, count in rows.items()})
        settled = journal.settle("threads", lambda: count)
        count = settled if type(settled) is int and 0 < settled <= _MOST_THREADS else count
    ledger = _Ledger(engine.components, len(engine.task), journal, on_progress or (lambda _: None), mine)
    with threads(count), closing(run(engine, ledger.open(chunks))) as results:
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

    A mask that was seen before has no value of its own, in the journal neither: NaN stands there.
    """

    components: ComponentSet
    prompts: int
    journal: Journal | None
    tick: Callable[[int], None]
    mine: Callable[[int], bool]
    seen: dict[bytes, int] = field(default_factory=dict)  # mask → its place among all masks
    count: int = 0
    copies: list[tuple[int, int]] = field(default_factory=list)  # (place of a repeated mask, place of the first such)
    begun: dict[int, _Open] = field(default_factory=dict)
    done: dict[int, Float[Tensor, "mask prompt"]] = field(default_factory=dict)

    def open(self, chunks: Chunks) -> Iterator[tuple[int, Bool[Tensor, "mask component"]]]:
        """The masks that must be passed, chunk by chunk; what the journal has is taken from there."""
        for number, (first, keep) in enumerate(chunks):
            packed = pack_bits(keep.cpu())
            chunk = _Open(keep, packed, self._enter(packed))
            if not self.mine(number):
                continue
            known = None if self.journal is None else self.journal.read(first, packed)
            if known is not None and known.shape[1] == self.prompts:
                self._finish(first, known)
                continue
            self.begun[first] = chunk
            if chunk.new.any():
                yield first, keep[chunk.new.to(keep.device)]
            else:
                self.take(first, torch.empty(0, self.prompts))

    def _enter(self, packed: UInt8[Tensor, "mask byte"]) -> Bool[Tensor, " mask"]:
        """Note the masks of a chunk; True where a mask has not been seen before."""
        new = torch.zeros(len(packed), dtype=torch.bool)
        for row, word in enumerate(packed.numpy()):
            here = self.count + row
            place = self.seen.setdefault(word.tobytes(), here)
            if place == here:
                new[row] = True
            else:
                self.copies.append((here, place))
        self.count += len(packed)
        return new

    def take(self, first: int, values: Float[Tensor, "mask prompt"]) -> None:
        """What the new masks of a chunk gave."""
        chunk = self.begun.pop(first)
        whole = torch.zeros(len(chunk.keep), self.prompts)
        whole[chunk.new] = values
        refuse_non_finite(self.components, chunk.keep, whole, first)
        whole[~chunk.new] = float("nan")
        if self.journal is not None:
            self.journal.write(first, chunk.packed, whole)
        self._finish(first, whole)

    def _finish(self, first: int, values: Float[Tensor, "mask prompt"]) -> None:
        self.done[first] = values
        self.tick(len(values))

    def values(self) -> Float[Tensor, "mask prompt"]:
        """All values in order, copies filled in."""
        if not self.done:
            return torch.zeros(0, self.prompts)
        values = torch.cat([self.done[first] for first in sorted(self.done)])
        if self.copies:
            to, source = torch.tensor(self.copies).T
            values[to] = values[source]
        return values
