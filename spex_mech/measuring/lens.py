"""`Lens`: what is kept or ablated, and what a mask of it is worth; a model's `Engine` is one."""

from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
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

    def values(self, keep: Bool[Tensor, "mask component"]) -> Float[Tensor, "mask output"]: ...
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
Results = Generator[tuple[int, Float[Tensor, "mask output"]], None, None]
Run = Callable[[Lens, Chunks], Results]
"""Something that passes chunks through a lens: (number of the first mask, values), in any order."""


def in_turn(lens: Lens, chunks: Chunks) -> Results:
    """Pass chunks one after the other, in this process; the next is not asked for before the last was taken.

    Other runs (see `ray_pool`) give the same values in another order.
    """
    for first, keep in chunks:
        values = lens.values(keep)
        lens.refuse_change()
        yield first, values
