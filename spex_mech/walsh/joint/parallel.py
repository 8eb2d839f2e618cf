"""`in_parallel`: independent pieces of work at the same time, on the threads that torch has.

A piece of decoding is many small products. Two threads on one of them wait for each other more than they work; a thread
for each of two pieces does not.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

_T = TypeVar("_T")
U = TypeVar("U")
_inside = threading.local()


def in_parallel(tasks: Sequence[Callable[[], _T]], max_parallel: int | None = None) -> list[_T]:
    """What every task returns, in their order; or the first error of theirs, once those that run have ended.

    Tasks must not share what they change. As many run at a time as torch has threads (at most `max_parallel`), and the
    threads are divided among them: with one, or within another task, they run one after another.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(tasks), len(tasks) if max_parallel is None else max_parallel)
    if workers < 2 or getattr(_inside, "task", False):
        return [task() for task in tasks]
    torch.set_num_threads(threads // workers)
    pool = ThreadPoolExecutor(workers, initializer=_enter)
    try:
        return [future.result() for future in [pool.submit(task) for task in tasks]]
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def two_in_parallel(one: Callable[[], _T], other: Callable[[], U], max_parallel: int | None = None) -> tuple[_T, U]:
    """`in_parallel` for two tasks of different kinds."""
    tasks: list[Callable[[], Any]] = [one, other]
    first, second = in_parallel(tasks, max_parallel)
    return first, second


def _enter() -> None:
    _inside.task = True
