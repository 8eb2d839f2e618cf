"""Edits as plain torch hooks on the modules of a model, in force for the length of a with-block."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from spex_mech.ablation.sites import Place
from spex_mech.ablation.subject import Edit
from spex_mech.ablation.turns import only_here


@contextmanager
def hooked(
    edits: list[tuple[Place, Edit]], rows: Callable[[], int], guard: Callable[..., Any] = only_here
) -> Iterator[None]:
    """Edits in force inside, in this thread; `rows` says, while the model runs, how many rows it has."""
    handles: list[Any] = []
    try:
        for place, edit in edits:
            if place.form is not None:
                handles += place.form.hang(edit, rows, guard)
            elif place.at == "input":
                handles.append(place.module.register_forward_pre_hook(guard(_on_input(edit, rows))))
            else:
                handles.append(place.module.register_forward_hook(guard(_on_output(edit, rows))))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def in_every_call(first: nn.Module, edits: list[tuple[Place, Edit]]) -> Iterator[None]:
    """Edits in force inside, for batches of any size, whichever thread calls; `first` is the first decoder block, which
    sees how many rows."""
    seen = threading.local()

    def watch(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.rows = len(args[0] if args else next(v for v in kwargs.values() if isinstance(v, Tensor)))

    handle = first.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        with hooked(edits, lambda: seen.rows, lambda hook: hook):
            yield
    finally:
        handle.remove()


def edited(edit: Edit, x: Any, rows: int) -> Any:
    """What a module takes or gives, edited, in whichever form it has.

    Mixtures of experts give a tuple with their router's logits; OPT's MLP sees rows and positions as one axis.
    """
    if isinstance(x, tuple):
        return (edited(edit, x[0], rows), *x[1:])
    return edit(x) if x.ndim == 3 else edit(x.unflatten(0, (rows, -1))).flatten(0, 1)


def _on_input(edit: Edit, rows: Callable[[], int]) -> Callable[..., Any]:
    return lambda _module, args: (edited(edit, args[0], rows()), *args[1:])


def _on_output(edit: Edit, rows: Callable[[], int]) -> Callable[..., Any]:
    return lambda _module, _args, output: edited(edit, output, rows())
