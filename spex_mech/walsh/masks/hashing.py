"""Uniform integers as a function of (seed, row, column) alone: the same on every device and for every way of chunking.

A counter-based hash (splitmix64's finaliser, Steele et al. 2014), so no random state and no table exists.
"""

import torch
from jaxtyping import Int
from torch import Tensor


def uniform_bits(seed: int, rows: Int[Tensor, " mask"], n: int) -> Int[Tensor, "mask component"]:
    """Uniform integers in [0, 2^53), one a (mask, component), the same on every device.

    splitmix64's finaliser over ``(mask · n + component) · γ + hash(seed)``; int64 arithmetic wraps as uint64 does.
    """
    counter = rows[:, None] * n + torch.arange(n, device=rows.device)
    odd = (seed * 2 + 1) % (1 << 64)  # any integer is a seed; torch wants it signed
    key = int(_mix(torch.tensor([odd - (odd >> 63 << 64)], dtype=torch.long))[0])
    return _shift(_mix(counter * _GAMMA + key), 11)


_GAMMA, _M1, _M2 = (c - (1 << 64) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _M1
    x = (x ^ _shift(x, 27)) * _M2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
