"""`Prompts`: token rows of different lengths, stored as one matrix."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from spex_mech.errors import TaskError


@dataclass(frozen=True)
class Prompts:
    """Token rows of different lengths, stored right-padded with 0; `lengths` says where the padding begins."""

    tokens: Int[Tensor, "prompt pos"]
    lengths: Int[Tensor, " prompt"]

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[int] | Tensor]) -> "Prompts":
        """Prompts from rows of token ids.

        >>> Prompts.from_rows([[5, 6], [7]]).tokens.tolist()
        [[5, 6], [7, 0]]
        """
        lists = [[int(token) for token in row] for row in rows]
        empty = [i + 1 for i, row in enumerate(lists) if not row]
        if empty or not lists:
            raise TaskError(
                f"prompts {empty[:10]} have no tokens." if empty else "there are no prompts; at least one is needed."
            )
        width = max(map(len, lists))
        padded = torch.tensor([row + [0] * (width - len(row)) for row in lists], dtype=torch.long)
        return cls(padded, torch.tensor([len(row) for row in lists]))

    @classmethod
    def of(cls, tokens: Any, attention_mask: Any = None) -> "Prompts":
        """Prompts from rows, or from a padded matrix with its attention mask (padding on either side is taken off)."""
        if isinstance(tokens, Prompts):
            return tokens
        if attention_mask is None:
            return cls.from_rows(tokens.tolist() if hasattr(tokens, "tolist") else tokens)
        matrix, real = torch.as_tensor(tokens), torch.as_tensor(attention_mask).bool()
        if matrix.shape != real.shape or matrix.ndim != 2:
            raise TaskError(
                f"tokens {tuple(matrix.shape)} and attention_mask {tuple(real.shape)} must both be [prompt, pos]."
            )
        return cls.from_rows([row[kept].tolist() for row, kept in zip(matrix, real, strict=True)])

    def __len__(self) -> int:
        return len(self.lengths)

    def __repr__(self) -> str:
        return f"Prompts({len(self):,} of {int(self.lengths.min()):,} to {int(self.lengths.max()):,} tokens)"

    def row(self, i: int) -> Int[Tensor, " pos"]:
        """The tokens of one prompt, without padding."""
        return self.tokens[i, : int(self.lengths[i])]

    def by_length(self) -> dict[int, Int[Tensor, " prompt"]]:
        """Prompt numbers grouped by length, ascending: prompts of one length share a batch without padding."""
        return {int(n): (self.lengths == n).nonzero()[:, 0] for n in self.lengths.unique()}

    def take(self, which: Int[Tensor, " prompt"]) -> "Prompts":
        """Some of the prompts."""
        return Prompts.from_rows([self.row(int(i)).tolist() for i in which])
