"""Sets of component indices as the rows of a tensor: ascending, padded with -1 on the right."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def pad_sets(sets: Iterable[Iterable[int]]) -> Int[Tensor, "set slot"]:
    """Sets as rows of ascending indices, padded with -1.

    >>> pad_sets([(2, 0), (), (1,)]).tolist()
    [[0, 2], [-1, -1], [1, -1]]
    """
    rows = [sorted(s) for s in sets]
    width = max((len(row) for row in rows), default=0)
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows], dtype=torch.long).reshape(len(rows), width)


def set_tuples(members: Int[Tensor, "set slot"]) -> tuple[tuple[int, ...], ...]:
    """The rows as tuples of indices: `pad_sets` backwards.

    >>> set_tuples(pad_sets([(2, 0), ()]))
    ((0, 2), ())
    """
    return tuple(tuple(i for i in row if i >= 0) for row in members.tolist())


def stack_rows(members: Sequence[Int[Tensor, "_ _"]]) -> Int[Tensor, "row slot"]:
    """Rows of different widths one below the other."""
    width = max((m.shape[1] for m in members), default=0)
    padded = [torch.nn.functional.pad(m, (0, width - m.shape[1]), value=-1) for m in members]
    return torch.cat(padded or [torch.zeros(0, 0, dtype=torch.long)])


def subset_bits(order: int) -> Bool[Tensor, "subset slot"]:
    """All 2^order subsets as rows of bits.

    >>> subset_bits(2).int().tolist()
    [[0, 0], [1, 0], [0, 1], [1, 1]]
    """
    return (torch.arange(1 << order)[:, None] >> torch.arange(order)) & 1 == 1


def merge_sets(members: Sequence[Tensor], coefficients: Sequence[Tensor]) -> tuple[Int[Tensor, "set slot"], Tensor]:
    """One row a different set, coefficients of equal sets added; rows in a fixed order (by content)."""
    stacked = stack_rows(members)
    values = torch.cat(list(coefficients)) if coefficients else torch.zeros(0, dtype=torch.float64)
    if not len(stacked):
        return stacked, values
    if not stacked.shape[1]:
        return stacked[:1], values.sum(0, keepdim=True)
    unique, inverse = _unique_rows(stacked)
    return trimmed(unique), torch.zeros((len(unique), *values.shape[1:]), dtype=values.dtype).index_add_(
        0, inverse, values
    )


def _unique_rows(members: Int[Tensor, "row slot"]) -> tuple[Int[Tensor, "set slot"], Int[Tensor, " row"]]:
    """The different rows in ascending order, and which of them each row is; as one number a row where that fits."""
    base = int(members.max()) + 2
    if base ** members.shape[1] >= 1 << 62:
        return members.unique(dim=0, return_inverse=True)
    place = base ** torch.arange(members.shape[1] - 1, -1, -1)
    key, inverse = ((members + 1) * place).sum(1).unique(return_inverse=True)
    return key[:, None] // place % base - 1, inverse


def left_align(members: Int[Tensor, "row slot"]) -> Int[Tensor, "row slot"]:
    """Rows in any order made ascending, the slots of -1 moved to the right."""
    far = torch.iinfo(members.dtype).max
    ordered = torch.where(members < 0, far, members).sort(1).values
    return torch.where(ordered == far, -1, ordered)


def trimmed(members: Int[Tensor, "row slot"]) -> Int[Tensor, "row slot"]:
    """Without the columns on the right that no row fills."""
    width = int((members >= 0).sum(1).max()) if len(members) else 0
    return members[:, :width]
