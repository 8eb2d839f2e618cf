"""The fast Walsh–Hadamard transform over the last axis, on any device, and the dense matrix it must agree with.

The transform of ``values [..., point]`` with ``2**b`` points is ``out[S] = Σ_m (-1)^{<m, S>} values[m]``, where bit i
of the point's number m says that component i is ablated and bit i of S that i is in the set. Hence
``walsh_hadamard(f) / 2**n`` holds the Walsh coefficient F(S) at the number of S.

`H_{2^b}` is the Kronecker product of b matrices ``[[1, 1], [1, -1]]``, so it is applied as a few dense products with
`H_{2^k}`, one pass over memory each, in place of b passes of butterflies: 2^k multiply-adds a point and pass are cheap,
memory is not.
"""

from functools import cache
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from spex_mech.errors import DecodeError

_PASS_BITS = 6  # one pass multiplies by a dense 64 × 64 matrix: the fastest width, measured on CPU (5 to 8 are close)


def walsh_hadamard(values: Float[Tensor, "... point"]) -> Float[Tensor, "... point"]:
    """The unnormalised transform ``out[S] = Σ_m (-1)^{<m, S>} values[m]`` over the last axis, in the values' unit.

    Twice is ``2**b`` times the identity. Cost: ⌈b/6⌉ passes over memory. float32 and float64, batched over the leading
    axes, on the device of `values`, which is not changed. Raises `DecodeError` for another dtype, or where the number
    of points is no power of two.

    >>> walsh_hadamard(torch.tensor([1.0, 0.0, 2.0, 0.0])).tolist()
    [3.0, 3.0, -1.0, -1.0]
    """
    bits = _bits(values)
    out = _exactly_multiplied(values).reshape(-1, 1 << bits)
    for low, width in _passes(bits):
        matrix = walsh_matrix(width, out.dtype, out.device)
        blocks = out.reshape(-1, 1 << width, 1 << low)
        out = (blocks[..., 0] @ matrix) if low == 0 else torch.bmm(matrix.expand(len(blocks), -1, -1), blocks)
    return out.reshape(values.shape).to(values.dtype)


def walsh_matrix(
    bits: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> Float[Tensor, "set point"]:
    """The dense matrix ``H[S, m] = (-1)^{<m, S>}`` of the transform of ``2**bits`` points, by its definition.

    >>> walsh_matrix(1).tolist()
    [[1.0, 1.0], [1.0, -1.0]]
    """
    return (_small_signs if bits <= _PASS_BITS else _signs)(bits).to(device, dtype)


def _signs(bits: int) -> Tensor:
    number = torch.arange(1 << bits)
    parity = torch.zeros(1 << bits, 1 << bits, dtype=torch.long)
    for bit in range(bits):
        parity ^= ((number[:, None] & number) >> bit) & 1
    return (1 - 2 * parity).to(torch.int8)


_small_signs = cache(_signs)  # every pass asks for one of these


def _bits(values: Tensor) -> int:
    """log2 of the number of points."""
    if values.dtype not in (torch.float32, torch.float64):
        raise DecodeError(f"a Walsh–Hadamard transform takes float32 or float64 values, not {values.dtype}.")
    points = values.shape[-1] if values.ndim else 0
    if points < 1 or points & (points - 1):
        raise DecodeError(
            f"a Walsh–Hadamard transform takes 2^b points on the last axis, not {points:,} (shape "
            f"{tuple(values.shape)}). Measure every combination of b bits, or pad with zeros."
        )
    return points.bit_length() - 1


def _exactly_multiplied(values: Tensor) -> Tensor:
    """The values in a dtype that matrix products do not round: the process may allow TF32 or bf16 for float32."""
    try:
        rounded = torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # torch cannot say, where its older and newer settings were both used
        rounded = True
    return values.double() if rounded else values


def _passes(bits: int) -> list[tuple[int, int]]:
    """(lowest bit, number of bits) of each pass, of nearly equal width.

    >>> _passes(8)
    [(0, 4), (4, 4)]
    """
    count = -(-bits // _PASS_BITS)
    cuts = [bits * i // count for i in range(count + 1)] if count else []
    return [(low, high - low) for low, high in pairwise(cuts)]
