"""How many rows a forward pass takes, and what to do when they do not fit into memory."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from spex_mech.ablation.subject import Subject
from spex_mech.errors import ResponseError

_T = TypeVar("_T")
ELEMENTS = 1 << 27  # largest single activation of a batch that is not measured: 512 MB of float32
MAX_BATCH_ROWS = 4096
CPU_BYTES = 1 << 27  # more rows than this holds are no faster on a CPU
GPU_SHARE = 4  # a quarter of the memory there is; the weights and what others hold have the rest


def rows_that_fit(row_bytes: int, device: torch.device) -> int:
    """Rows a batch, from the measured peak of one row: a power of two, so that the last byte of it does not matter.

    >>> rows_that_fit(600_000, torch.device("cpu"))
    128
    """
    gpu = device.type == "cuda"
    total = torch.cuda.get_device_properties(device).total_memory // GPU_SHARE if gpu else CPU_BYTES
    fit = max(1, min(MAX_BATCH_ROWS, total // max(1, row_bytes)))
    return 1 << (int(fit).bit_length() - 1)


def default_rows(subject: Subject, length: int) -> int:
    """Rows a batch so that its largest activation stays under half a gigabyte, whatever is read from it."""
    width = max([site.parts * site.width for site in subject.sites] + [1])
    per_row = length * max(subject.shape.d_vocab_out, 8 * width)
    return max(1, min(MAX_BATCH_ROWS, ELEMENTS // per_row))


def in_halves(run: Callable[[int, int], Tensor], total: int, rows: int) -> Tensor:
    """``run(start, stop)`` over ``range(total)``, `rows` at a time, in order; batches that do not fit are halved.

    Raises `ResponseError` where a single row does not fit.
    """
    done, start = list[Tensor](), 0
    while start < total:
        stop = min(total, start + rows)
        found = unless_full(partial(run, start, stop), rows)
        if found is None:
            rows = max(1, min(rows, stop - start) // 2)
        else:
            done.append(found)
            start = stop
    return torch.cat(done)


def unless_full(run: Callable[[], _T], rows: int) -> _T | None:
    """What `run` gives for so many rows, or None where they do not fit into memory: then try half of them.

    Raises `ResponseError` where it was one row.
    """
    try:
        return run()
    except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if rows == 1:
            raise ResponseError(
                "one prompt under one mask does not fit into memory; use a smaller model or device."
            ) from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whichever device."""
    words = ("out of memory", "not enough memory", "can't allocate memory", "DefaultCPUAllocator")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(w in str(error) for w in words)
