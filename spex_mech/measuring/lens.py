"""`Lens`, `measure_lens`: anything that gives masks of named parts their values, chunk by chunk into a journal."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spex_mech.components import ComponentSet
from spex_mech.measuring.journal import Journal
from spex_mech.store.responses import pack_bits, refuse_non_finite


class Lens(Protocol):
    """What is kept or ablated, and what a mask of it is worth. The value of a mask depends on that mask alone."""

    @property
    def components(self) -> ComponentSet: ...
    @property
    def unit(self) -> str: ...
    @property
    def outputs(self) -> int: ...
    def values(self, keep: Bool[Tensor, "mask component"], batch_rows: int) -> Float[Tensor, "mask output"]: ...
    def describe(self) -> dict[str, Any]:
        """What decides the values, for a record."""
        ...


def measure_lens(
    lens: Lens,
    chunks: Iterable[tuple[int, Bool[Tensor, "mask component"]]],
    journal: Journal | None = None,
    on_progress: Callable[[int], None] | None = None,
    batch_rows: int = 1,
) -> Float[Tensor, "mask output"]:
    """The values of every mask, chunk by chunk; with a journal a chunk is on disk before the next is begun.

    What a chunk gives depends on its own masks alone, so that a run that was interrupted gives the same bits. Raises
    `ResponseError` on values that are not finite.
    """
    if journal is not None:
        batch_rows = int(journal.settle("batch_rows", lambda: batch_rows))
    done: list[Tensor] = []
    for first, keep in chunks:
        packed = pack_bits(keep.cpu())
        values = None if journal is None else journal.read(first, packed)
        if values is None:
            values = lens.values(keep.cpu(), batch_rows)
            refuse_non_finite(lens.components, keep, values, first)
            if journal is not None:
                journal.write(first, packed, values)
        done.append(values)
        if on_progress is not None:
            on_progress(len(keep))
    return torch.cat(done) if done else torch.zeros(0, lens.outputs)


def each_once(
    keep: Bool[Tensor, "mask component"], value: Callable[[list[int]], Float[Tensor, "different output"]]
) -> Float[Tensor, "mask output"]:
    """The values of some masks, of which equal ones are asked for once: `value` takes the numbers of different ones.

    >>> keep = torch.tensor([[True, False], [True, True], [True, False]])
    >>> each_once(keep, lambda rows: torch.tensor(rows, dtype=torch.float32)[:, None])[:, 0].tolist()
    [0.0, 1.0, 0.0]
    """
    words = [tuple(row) for row in keep.tolist()]
    first: dict[tuple[bool, ...], int] = {}
    for i, word in enumerate(words):
        first.setdefault(word, i)
    values = value(list(first.values()))
    place = {i: j for j, i in enumerate(first.values())}
    return values[[place[first[word]] for word in words]]
