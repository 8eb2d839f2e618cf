"""`Lens`: what is kept or ablated, and what a mask of it is worth; a model's `Engine` is one."""

from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spex_mech.components import ComponentSet

Settle = Callable[[str, Callable[[], Any]], Any]
"""A decision by name, as a run before this one took it, else as the function takes it now (`Journal.settle`)."""


class Lens(Protocol):
    """What a mask of named parts is worth. The value of a mask depends on that mask alone.

    Attributes:
        unit: of the values.
        outputs: values a mask: prompts, or test points.
        device: where they are made.
        verb: what is done to the parts, for the bar.
        chunk: masks that are on disk together; a run that is killed loses no more.
        roles: what each part says, by its name, where the record does not tell.
        values: ``keep [mask, component]`` → ``[mask, output]``; of a model's engine, where outputs are prompts and each
            is a row of its own, also ``keep, met [mask, slot]`` → ``[mask, slot]``: column s of row m is of prompt
            ``met[m, s]``.
    """

    @property
    def components(self) -> ComponentSet: ...
    @property
    def unit(self) -> str: ...
    @property
    def outputs(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def verb(self) -> str: ...
    @property
    def chunk(self) -> int: ...
    @property
    def roles(self) -> Mapping[str, str]: ...
    @property
    def notes(self) -> Mapping[str, Any]:
        """What the record of a run says besides, and by which no value is known."""
        ...

    @property
    def values(self) -> Callable[..., Float[Tensor, "mask slot"]]: ...
    def describe(self) -> Mapping[str, Any]:
        """What decides the values, by content: "subject", "task" and "replacement"."""
        ...

    def settled(self, settle: Settle) -> "Lens":
        """The same, passing masks together as a run began to, on which the last bits depend."""
        ...

    def refuse_change(self) -> None:
        """Raise `ResponseError` where what is measured is no longer what `describe` described."""
        ...


Chunks = Iterable[tuple[int, Bool[Tensor, "mask component"]]]
Chunk = (
    tuple[int, Bool[Tensor, "mask component"]]
    | tuple[int, Bool[Tensor, "mask component"], Int[Tensor, "mask slot"]]
)  # fmt: skip
"""The number of the first mask, and what `Lens.values` takes."""
Work = Iterable[Chunk]
Results = Generator[tuple[int, Float[Tensor, "mask slot"]], None, None]
Run = Callable[[Lens, Work], Results]
"""Something that passes chunks through a lens: (number of the first mask, values), in any order."""


class Meets(Protocol):
    """Which outputs each mask of a run meets, where it does not meet all; `walsh.masks.PromptDesign` is one."""

    @property
    def prompts(self) -> int: ...
    @property
    def per_mask(self) -> int: ...
    def met(self, start: int = 0, stop: int | None = None) -> Int[Tensor, "mask slot"]: ...


def chunk_of(lens: Lens, meets: Meets | None) -> int:
    """Masks that are on disk together: where each meets fewer outputs, as many more."""
    return lens.chunk if meets is None else lens.chunk * meets.prompts // meets.per_mask


def in_turn(lens: Lens, work: Work) -> Results:
    """Pass chunks one after the other, in this process; the next is not asked for before the last was taken.

    Other runs (see `ray_pool`) give the same values in another order.
    """
    for first, *rows in work:
        values = lens.values(*rows)
        lens.refuse_change()
        yield first, values
