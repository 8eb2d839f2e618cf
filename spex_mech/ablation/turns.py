"""Whose turn it is at a model: one thread's pass at a time, with hooks that act in that thread alone.

Hooks and replaced functions hang on the model, which all threads share. So a pass takes the model for its own length
(`turn`), runs of several threads pass in turn, and whatever hangs on the model meanwhile looks first whose call it is
(`only_here`): the user's own calls from other threads go by untouched. `ablated` is the other way about, meant for
every call of the model: while it is in force, other threads' runs are refused, since they would measure it too.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from spex_mech.errors import ModelError


@dataclass
class _Gate:
    """The lock of one model, and the threads in which `ablated` is in force on it."""

    lock: Any = field(default_factory=threading.RLock)
    ablated: list[int] = field(default_factory=list)


_GATES: WeakKeyDictionary[nn.Module, _Gate] = WeakKeyDictionary()
_MAKING = threading.Lock()


def _gate(module: nn.Module) -> _Gate:
    with _MAKING:
        return _GATES.setdefault(module, _Gate())


@contextmanager
def turn(module: nn.Module) -> Iterator[None]:
    """This thread's turn at a model, which it waits for; again inside is fine.

    Raises `ModelError` where another thread has `ablated` in force on it.
    """
    gate = _gate(module)
    with gate.lock:
        if any(thread != threading.get_ident() for thread in gate.ablated):
            raise ModelError(
                "this model is ablated in another thread, which holds in every call of it, so in these passes too. "
                "Leave the with-block of ablated first, or use a copy of the model here."
            )
        yield


@contextmanager
def ablated_here(module: nn.Module) -> Iterator[None]:
    """Note that every call of the model is ablated, by this thread, for the length of a with-block."""
    gate, thread = _gate(module), threading.get_ident()
    with turn(module):
        gate.ablated.append(thread)
    try:
        yield
    finally:
        with gate.lock:
            gate.ablated.remove(thread)


def only_here(hook: Callable[..., Any], otherwise: Callable[..., Any] = lambda *_args, **_kwargs: None) -> Any:
    """A hook that acts in the thread that made it alone; in others `otherwise` is called, by default nothing."""
    mine = threading.get_ident()

    def guarded(*args: Any, **kwargs: Any) -> Any:
        return (hook if threading.get_ident() == mine else otherwise)(*args, **kwargs)

    return guarded
