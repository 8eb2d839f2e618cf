"""`peak_bytes`: what a computation holds at once, measured on any device by watching tensors come and go."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(run: Callable[[], Any]) -> int:
    """The largest number of bytes that tensors made inside `run` held at the same time.

    Counts what operations return, in Python, so it is the same on every device and from run to run; scratch space
    inside one operation is not seen. What existed before does not count.

    >>> peak_bytes(lambda: (torch.ones(100) + 1).sum())
    800
    """
    with _Watch() as watch:
        run()
    return watch.peak


class _Watch(TorchDispatchMode):
    """Adds up the storages of all tensors that operations return, until their last tensor is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.holders: dict[int, int] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Else torch imports its compiler, with all of sympy, before the first pass: seconds for every run."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {_address(x) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)} - self.holders.keys()
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and _address(x) not in known and _address(x):
                self._hold(x)
        return out

    def _hold(self, x: torch.Tensor) -> None:
        address, size = _address(x), x.untyped_storage().nbytes()
        if address not in self.holders:
            self.holders[address] = 0
            self.live += size
            self.peak = max(self.peak, self.live)
        self.holders[address] += 1
        weakref.finalize(x, self._release, address, size)

    def _release(self, address: int, size: int) -> None:
        self.holders[address] -= 1
        if not self.holders[address]:
            del self.holders[address]
            self.live -= size


def _address(x: torch.Tensor) -> int:
    return x.untyped_storage().data_ptr()
