"""`measure`: the values of a whole design, chunk by chunk, each distinct mask once, journaled chunks read back."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spex_mech.ablation.journal import Journal
from spex_mech.ablation.respond import Engine
from spex_mech.responses import pack_bits, refuse_non_finite

Chunks = Iterable[tuple[int, Bool[Tensor, "mask component"]]]


def measure(
    engine: Engine,
    chunks: Chunks,
    journal: Journal | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Float[Tensor, "mask prompt"]:
    """The metric of every prompt under every mask, chunks in order, float32 on the CPU.

    A chunk is ``(number of its first mask, keep)``. What a chunk computes depends on the chunks before it alone, so a
    run that was interrupted gives the same bits as one that was not. With a journal, a chunk is on disk before the
    next is begun.

    Raises `ResponseError`: values that are not finite, or a journal that cannot be written.
    """
    if journal is not None:  # bits depend on the shape of a batch, so a run that goes on keeps the sizes it began with
        rows = journal.settle("batch_rows", lambda: dict(engine.rows))
        engine = replace(engine, batch_rows={int(length): int(count) for length, count in rows.items()})
    places: dict[bytes, tuple[int, int]] = {}  # of every mask so far, the chunk and row that have its values
    done: list[Tensor] = []
    for first, keep in chunks:
        packed = pack_bits(keep.cpu())
        sources = [places.setdefault(word.tobytes(), (len(done), row)) for row, word in enumerate(packed.numpy())]
        values = None if journal is None else journal.read(first, packed)
        if values is None:
            values = _fill(engine, keep, sources, done)
            refuse_non_finite(engine.components, keep, values, first)
            if journal is not None:
                journal.write(first, packed, values)
        done.append(values)
        if on_progress is not None:
            on_progress(len(keep))
    return torch.cat(done) if done else torch.zeros(0, len(engine.task))


def _fill(engine: Engine, keep: Tensor, sources: list[tuple[int, int]], done: list[Tensor]) -> Tensor:
    """The values of a chunk; forward passes for the masks that occur in it first, the others are copied."""
    values = torch.empty(len(keep), len(engine.task))
    new = [row for row, source in enumerate(sources) if source == (len(done), row)]
    if new:
        values[new] = engine.values(keep[new])
    for row in set(range(len(keep))).difference(new):
        chunk, place = sources[row]
        values[row] = (values if chunk == len(done) else done[chunk])[place]
    return values
