"""Interleaved timing: A B C A B C …, so that a machine whose speed drifts drifts for all of them."""

import platform
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch


def interleaved(jobs: Mapping[str, Callable[[], Any]], repeats: int = 5, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of every repeat of every job, after one warm-up each; CUDA work is waited for."""
    for job in jobs.values():
        job()
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            wait(device)
            started = time.perf_counter()
            job()
            wait(device)
            times[name].append(time.perf_counter() - started)
    return times


def median_ratio(one: list[float], other: list[float]) -> float:
    """The median of the ratios of repeats that were run side by side."""
    return median(a / b for a, b in zip(one, other, strict=True))


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
