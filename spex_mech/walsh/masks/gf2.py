"""Vectors over GF(2) in 64-bit words: packing, sums over sets, parities, ranks and products, batched, on any device."""

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

WORD = 64


def pack(bits: Bool[Tensor, "... bit"]) -> Int[Tensor, "... word"]:
    """Bits along the last axis as int64 words, bit i in word i // 64 at place i % 64; unused places are 0.

    >>> pack(torch.tensor([True, False, True])).tolist()
    [5]
    """
    words = -(-bits.shape[-1] // WORD)
    padded = torch.nn.functional.pad(bits.long(), (0, words * WORD - bits.shape[-1]))
    places = torch.arange(WORD, device=bits.device)
    return (padded.unflatten(-1, (words, WORD)) << places).sum(-1)


def unpack(words: Int[Tensor, "... word"], bits: int) -> Bool[Tensor, "... bit"]:
    """The first `bits` bits of packed words.

    >>> unpack(torch.tensor([5]), 3).tolist()
    [True, False, True]
    """
    places = torch.arange(WORD, device=words.device)
    return ((words[..., None] >> places) & 1).flatten(-2)[..., :bits].bool()


def signs(words: Int[Tensor, "... word"], bits: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """``(-1)^bit`` of the first `bits` bits.

    >>> signs(torch.tensor([5]), 3).tolist()
    [-1.0, 1.0, -1.0]
    """
    octets = torch.arange(256, device=words.device)[:, None]
    table = 1 - 2 * ((octets >> torch.arange(8, device=words.device)) & 1).to(dtype)
    split = (words[..., None] >> torch.arange(0, WORD, 8, device=words.device)) & 255
    return rows_of(table, split).flatten(-3)[..., :bits]


def rows_of(table: Shaped[Tensor, "row ..."], numbers: Int[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """``table[numbers]`` for numbers from 0 on: whole rows are copied at once, where indexing goes number by number."""
    return table.index_select(0, numbers.flatten()).reshape(*numbers.shape, *table.shape[1:])


def sum_rows(table: Int[Tensor, "row word"], members: Int[Tensor, "set slot"]) -> Int[Tensor, "set word"]:
    """For each set the sum over GF(2) of the rows it names, in a table whose last row is 0: the one that -1 names.

    >>> sum_rows(torch.tensor([[1], [2], [3], [0]]), torch.tensor([[0, 1], [2, -1]])).tolist()
    [[3], [3]]
    """
    out = torch.zeros(len(members), table.shape[1], dtype=table.dtype, device=table.device)
    for column in members.remainder(len(table)).unbind(1):
        out ^= table.index_select(0, column)
    return out


def parity(numbers: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """The number of ones of each integer, modulo 2.

    >>> parity(torch.tensor([0, 1, 3, 7])).tolist()
    [0, 1, 0, 1]
    """
    folded = numbers
    for shift in (32, 16, 8, 4, 2, 1):
        folded = folded ^ (folded >> shift)
    return folded & 1


def rank(bits: Bool[Tensor, "row column"]) -> int:
    """The rank over GF(2), by elimination on packed rows.

    >>> rank(torch.tensor([[True, True], [True, True]]))
    1
    """
    rows, found = pack(bits).clone(), 0
    for column in range(bits.shape[1]):
        has = (rows[found:, column // WORD] >> (column % WORD)) & 1
        if not has.any():
            continue
        pivot = found + int(has.argmax())
        rows[[found, pivot]] = rows[[pivot, found]]
        others = ((rows[:, column // WORD] >> (column % WORD)) & 1).bool()
        others[found] = False
        rows[others] ^= rows[found]
        found += 1
        if found == len(rows):
            break
    return found


def product(left: Bool[Tensor, "row inner"], right: Bool[Tensor, "inner column"]) -> Bool[Tensor, "row column"]:
    """The matrix product over GF(2).

    >>> product(torch.tensor([[True, True]]), torch.tensor([[True], [True]])).tolist()
    [[False]]
    """
    return (left.double() @ right.double()).long() % 2 == 1  # float64 sums of ones are exact below 2^53
