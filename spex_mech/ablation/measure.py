"""`measure`: the values of a whole design, chunk by chunk, each distinct mask once, journaled chunks read back."""

from collections.abc import Callable, Iterable

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
    known: dict[bytes, Tensor] = {}
    done: list[Tensor] = []
    for first, keep in chunks:
        packed = pack_bits(keep.cpu())
        words = [row.tobytes() for row in packed.numpy()]
        values = None if journal is None else journal.read(first, packed)
        if values is None:
            values = _new_ones(engine, keep, words, known)
            refuse_non_finite(engine.components, keep, values, first)
            if journal is not None:
                journal.write(first, packed, values)
        known.update(zip(words, values, strict=True))
        done.append(values)
        if on_progress is not None:
            on_progress(len(keep))
    return torch.cat(done) if done else torch.zeros(0, len(engine.task))


def _new_ones(engine: Engine, keep: Tensor, words: list[bytes], known: dict[bytes, Tensor]) -> Tensor:
    """The values of a chunk; forward passes for the masks that no chunk before had, the first time they occur."""
    places = {word: row for row, word in reversed(list(enumerate(words))) if word not in known}
    rows = sorted(places.values())
    if rows:
        fresh = engine.values(keep[rows])
        known = {**known, **{words[row]: fresh[i] for i, row in enumerate(rows)}}
    return torch.stack([known[word] for word in words])
