"""Roots of polynomials over GF(2^m), batched: in closed form up to degree 4, by trying all points beyond.

A polynomial is a row ``[c_1 … c_L]`` that stands for ``z^L + c_1 z^(L-1) + … + c_L``. In characteristic 2 the quadratic
becomes ``y² + y = c``, the cubic ``y³ + y = c``, both read from a table, and the quartic two quadratics in a row.

Source: Berlekamp, Rumsey and Solomon 1967 (affine polynomials); the substitutions are elementary.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from spex_mech.walsh.masks.galois_field import Field

Roots = tuple[Int[Tensor, "row root"], Bool[Tensor, " row"]]


def roots(field: Field, polynomials: Int[Tensor, "row term"]) -> Roots:
    """All L roots of each polynomial of degree L <= 4, and whether it has L different ones that are not 0.

    >>> from spex_mech.walsh.masks.galois_field import field
    >>> roots(field(3), torch.tensor([[3 ^ 5, field(3).times(torch.tensor(3), torch.tensor(5))]]))[0].sort().values
    tensor([[3, 5]])
    """
    found = (_linear, _quadratic, _cubic, _quartic)[polynomials.shape[1] - 1](field, polynomials)
    ordered = found.sort(1).values
    return found, (ordered[:, 0] > 0) & (ordered[:, 1:] != ordered[:, :-1]).all(1)


def _linear(field: Field, polynomials: Tensor) -> Tensor:
    return polynomials.clone()


def _quadratic(field: Field, polynomials: Tensor) -> Tensor:
    """z² + a z + b: z = a y with y² + y = b / a². Rows without two roots hold -1."""
    a, b = polynomials.unbind(1)
    y = field.halves[field.times(b, field.power(field.inverse(a), 2))]
    both = field.times(a[:, None], torch.stack([y, y ^ 1], 1).clamp(min=0))
    return torch.where(((y >= 0) & (a != 0))[:, None], both, -1)


def _cubic(field: Field, polynomials: Tensor) -> Tensor:
    """z³ + a z² + b z + c: one root from the table, the others by the quadratic that is left."""
    a, b, c = polynomials.unbind(1)
    z = _one_root(field, a, b, c)
    linear = a ^ z.clamp(min=0)
    constant = b ^ field.times(z.clamp(min=0), linear)
    others = _quadratic(field, torch.stack([linear, constant], 1))
    return torch.where((z >= 0)[:, None], torch.cat([z[:, None], others], 1), -1)


def _one_root(field: Field, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """A root of z³ + a z² + b z + c, or -1: z = y + a gives y³ + p y + q, and y = √p w gives w³ + w = q / √p³."""
    p, q = field.power(a, 2) ^ b, field.times(a, b) ^ c
    scale = field.square_root(p)
    w = field.thirds[field.times(q, field.inverse(field.power(scale, 3)))]
    y = torch.where(p == 0, field.cube_roots[q], torch.where(w >= 0, field.times(scale, w.clamp(min=0)), -1))
    return torch.where(y >= 0, y.clamp(min=0) ^ a, -1)


def _quartic(field: Field, polynomials: Tensor) -> Tensor:
    """z⁴ + a z³ + b z² + c z + d; with a ≠ 0, z = 1/w + √(c/a) takes it to w⁴ + B w² + C w + D."""
    a, b, c, d = polynomials.unbind(1)
    shift = field.square_root(field.times(c, field.inverse(a)))
    square = field.power(shift, 2)
    middle = b ^ field.times(a, shift)
    constant = field.power(square, 2) ^ field.times(a, field.times(square, shift)) ^ field.times(b, square)
    constant = constant ^ field.times(c, shift) ^ d
    over = field.inverse(constant)
    bent = _affine(field, field.times(middle, over), field.times(a, over), over)
    usable = (bent > 0) & (constant != 0)[:, None]
    general = torch.where(usable, field.inverse(bent.clamp(min=0)) ^ shift[:, None], -1)
    return torch.where((a != 0)[:, None], general, _affine(field, b, c, d))


def _affine(field: Field, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """w⁴ + b w² + c w + d with c ≠ 0: with k a root of k³ + b k + c it is u² + (b + k²) u + d, u = w² + k w."""
    k = _one_root(field, torch.zeros_like(b), b, c)
    step = k.clamp(min=0)
    outer = _quadratic(field, torch.stack([b ^ field.power(step, 2), d], 1))
    inner = [_quadratic(field, torch.stack([step, u.clamp(min=0)], 1)) for u in outer.unbind(1)]
    solved = ((k >= 0) & (outer >= 0).all(1))[:, None]
    return torch.where(solved, torch.cat(inner, 1), -1)


def search_roots(
    field: Field, polynomials: Int[Tensor, "row term"], exponents: Int[Tensor, " point"]
) -> tuple[Int[Tensor, "row root"], Bool[Tensor, " row"]]:
    """Numbers of the points ``α^e`` that are roots, and whether there are L of them: Chien's search, any degree.

    Polynomials that do not split are put aside first, for a cost that does not grow with the points.
    """
    rows, size = polynomials.shape
    numbers = torch.full((rows, size), -1, dtype=torch.long, device=polynomials.device)
    whole = torch.zeros(rows, dtype=torch.bool, device=polynomials.device)
    candidates = field.splits(polynomials).nonzero()[:, 0]
    for chunk in candidates.split(max(1, _CHUNK // len(exponents))):
        is_root = field.monic_at(polynomials[chunk], exponents) == 0
        complete = is_root.sum(1) == size
        numbers[chunk[complete]] = is_root[complete].nonzero()[:, 1].reshape(-1, size)
        whole[chunk[complete]] = True
    return numbers, whole


_CHUNK = 1 << 23  # elements of one table of tried points: 64 MB
