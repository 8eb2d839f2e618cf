"""`Prompts`: token rows of different lengths, stored as one matrix."""

from collections.abc import Iterable, Mapping, Sequence
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
        lists = [_ids(row, number) for number, row in enumerate(_rows(rows), 1)]
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
        """Prompts from rows, from a padded matrix with its attention mask (padding on either side is taken off), or
        from what a tokenizer of Hugging Face's form returns, whole.

        Raises `TaskError` for a padded matrix without its mask, as far as it can be told from one.
        """
        if isinstance(tokens, Prompts):
            return tokens
        if isinstance(tokens, Mapping):
            tokens, attention_mask = _of_encoding(tokens, attention_mask)
        if attention_mask is None:
            found = cls.from_rows(tokens.tolist() if hasattr(tokens, "tolist") else tokens)
            refuse_padding(found)
            return found
        matrix, real = _tensor(tokens, "tokens"), _tensor(attention_mask, "attention_mask").bool()
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


def refuse_padding(prompts: Prompts, pad: int | None = None) -> None:
    """Raise `TaskError` where rows of one length look padded: a token that some rows have only at one end, and others
    nowhere.

    Without `pad`, the token that pads, one row must have it three times, or two rows twice; 0 at the end twice, as many
    tokenizers pad by it. A single 0 says nothing: it may be a word.
    """
    rows = prompts.tokens
    if len(rows) < 2 or len(set(prompts.lengths.tolist())) > 1:
        return
    for side, ends in (("end", rows.flip(1)), ("beginning", rows)):
        for token in sorted(set(ends[:, 0].tolist()) if pad is None else {pad}):
            there = ends == token
            runs = there.long().cumprod(1).sum(1)
            apart = (
                bool((runs == 0).any()) and bool((runs == there.sum(1)).all()) and bool((runs < rows.shape[1]).all())
            )
            least = 1 if token == pad else 2 if token == 0 and side == "end" else 3
            many = int(runs.max()) >= least or int((runs >= 2).sum()) >= 2
            if apart and many:
                padded = (runs > 0).nonzero()[:, 0].tolist()
                raise TaskError(
                    f"prompts {', '.join(str(i + 1) for i in padded[:8])} have token {token} at their {side} and "
                    "nowhere else, and others have it nowhere: they look padded, and padding would count as tokens. "
                    "Give what the tokenizer returned whole (Task(tokenizer(texts, padding=True), …)), or "
                    "attention_mask=…, or rows of their own lengths; where it is no padding, a mask of ones says so."
                )


def _of_encoding(encoding: Mapping[str, Any], attention_mask: Any) -> tuple[Any, Any]:
    """The ids and the mask of a tokenizer's output; rows of different lengths have no padding to be masked."""
    if "input_ids" not in encoding:
        raise TaskError(f"a mapping with {sorted(map(str, encoding))[:8]} was given for tokens; it needs input_ids.")
    ids = encoding["input_ids"]
    ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    mask: Any = encoding.get("attention_mask") if attention_mask is None else attention_mask
    mask = mask.tolist() if isinstance(mask, Tensor) or hasattr(mask, "tolist") else mask
    if ids and isinstance(ids[0], int):  # one text
        ids, mask = [ids], None if mask is None else [list(mask)]
    return ids, None if len(set(map(len, ids))) > 1 else mask


def _rows(rows: Any) -> Iterable[Any]:
    if isinstance(rows, str | bytes) or not isinstance(rows, Iterable):
        raise TaskError(
            f"tokens are rows of token ids, one a prompt, or what a tokenizer returned; not {rows!r:.60}. Text needs a "
            "tokenizer: Task(tokenizer(texts), …)."
        )
    return rows


def _ids(row: Any, number: int) -> list[int]:
    """A row of token ids; raises `TaskError` for anything else."""
    values = row.tolist() if hasattr(row, "tolist") else row
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise TaskError(f"prompt {number} is {values!r:.60}; each prompt is a row of token ids.")
    values = [value.item() if hasattr(value, "item") else value for value in values]
    wrong = [value for value in values if isinstance(value, bool) or not isinstance(value, int)]
    if wrong:
        raise TaskError(f"prompt {number} has {wrong[0]!r:.60} among its tokens; token ids are whole numbers.")
    if any(not -(2**62) < value < 2**62 for value in values):
        raise TaskError(f"prompt {number} has a token id that no vocabulary has.")
    return values


def _tensor(values: Any, name: str) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TaskError(f"{name} must be a matrix [prompt, pos] of numbers: {error}.") from error
