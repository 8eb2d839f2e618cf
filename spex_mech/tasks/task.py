"""`Task`: the prompts, what the model should answer, where, and by which metric it is judged."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from spex_mech.errors import TaskError, all_problems, printable
from spex_mech.tasks.prompts import Prompts
from spex_mech.tasks.prompts_file import read_columns, read_prompts, write_rows

_SHOWN = 16  # tokens of a prompt without text, for people


class Vocabulary(Protocol):
    """What a task must know of a model: how many tokens it reads, and how many it scores."""

    @property
    def d_vocab(self) -> int: ...
    @property
    def d_vocab_out(self) -> int: ...


@dataclass(frozen=True, init=False)
class Task:
    """Prompts with answers, distractors and scored positions, and the metric that turns logits into a number.

    Attributes:
        prompts: token rows.
        answers: the right token of each prompt, -1 where a prompt has none.
        distractors: wrong tokens, ``[prompt, distractor]``, padded with -1.
        positions: where the logits are read, counted from the start of the unpadded row.
        metric: a name of `spex_mech.tasks.metrics`, or a function ``(logits [row, vocab], scored) -> [row]``.
        corrupt: contrast prompts, one a prompt, for resampling; or None.
        reference: prompts over which replacement values are taken; None: the task's own prompts.
        texts: the prompts as text, for people; may be empty.
        also: further right answers, ``[prompt, answer]``, padded with -1; what "prob_diff" adds up.
        notes: what whoever made the task wants known, such as what was dropped; ``print(task)`` shows it.
    """

    prompts: Prompts
    answers: Int[Tensor, " prompt"]
    distractors: Int[Tensor, "prompt distractor"]
    positions: Int[Tensor, " prompt"]
    metric: str | Callable[..., Tensor] = "logit_diff"
    corrupt: Prompts | None = None
    reference: Prompts | None = None
    texts: tuple[str, ...] = field(default=(), compare=False)
    also: Int[Tensor, "prompt answer"] = field(default_factory=lambda: torch.full((0, 0), -1))
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __init__(
        self,
        tokens: Any = None,
        answers: Any = None,
        distractors: Any = None,
        positions: Any = -1,
        metric: str | Callable[..., Tensor] = "logit_diff",
        *,
        attention_mask: Any = None,
        corrupt: Any = None,
        reference: Any = None,
        texts: Sequence[str] = (),
        prompts: Prompts | None = None,
        also: Any = None,
        notes: Sequence[str] = (),
    ) -> None:
        """Build a task from rows or padded arrays; positions may be negative (counted from the end of each row).

        Raises `TaskError` listing every prompt whose parts do not fit together.
        """
        rows = Prompts.of(tokens, attention_mask) if prompts is None else prompts
        n = len(rows)
        values = {
            "prompts": rows,
            "answers": _vector(-1 if answers is None else answers, n, "answers"),
            "distractors": _ragged(distractors, n),
            "positions": _resolve(_vector(positions, n, "positions"), rows.lengths),
            "metric": metric,
            "corrupt": None if corrupt is None else Prompts.of(corrupt),
            "reference": None if reference is None else Prompts.of(reference),
            "texts": tuple(texts),
            "also": _ragged(also, n),
            "notes": tuple(notes),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if self.corrupt is not None and len(self.corrupt) != n:
            raise TaskError(f"{len(self.corrupt)} corrupt prompts for {n} prompts; each prompt needs its own.")

    @classmethod
    def from_jsonl(
        cls,
        path: str | Path,
        tokenizer: Any = None,
        metric: str | Callable[..., Tensor] = "logit_diff",
        reference: str | Path | None = None,
        limit: int | None = None,
    ) -> "Task":
        """Read prompts, one JSON object a line.

        ``{"tokens": [ids] | "text": "…", "answer": id | "…", "distractors": [ids | "…"], "position": -1, "corrupt":
        …}``, and ``"also": [ids | "…"]`` where further answers are right; tokens win over text; strings need a
        `tokenizer`, and answers must be one token.

        Raises:
            TaskError: the file cannot be read, or rows are wrong; all of them are listed.
        """
        columns = read_columns(path, tokenizer, limit)
        return cls(
            **columns, metric=metric, reference=None if reference is None else read_prompts(reference, tokenizer)
        )

    def to_jsonl(self, path: str | Path) -> None:
        """Write the prompts as `from_jsonl` reads them (the metric and the reference are not part of that file).

        Raises `FormatError` where the folder does not exist or cannot be written.
        """
        write_rows(path, map(self._row, range(len(self))))

    def _row(self, i: int) -> dict[str, Any]:
        """One prompt as a row of the file, without what it does not have."""
        further, corrupt = _real(self.also[i]), self.corrupt
        return {
            "tokens": self.prompts.row(i).tolist(),
            **({"answer": int(self.answers[i])} if int(self.answers[i]) >= 0 else {}),
            "distractors": _real(self.distractors[i]),
            **({"also": further} if further else {}),
            "position": int(self.positions[i]),
            **({} if corrupt is None else {"corrupt": corrupt.row(i).tolist()}),
            **({"text": self.texts[i]} if self.texts and self.texts[i] else {}),
        }

    def __len__(self) -> int:
        return len(self.prompts)

    def __str__(self) -> str:
        """How many prompts of what length, three of them, and the notes."""
        lengths = sorted(set(self.prompts.lengths.tolist()))
        long = f"{lengths[0]} tokens" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]} tokens"
        metric = self.metric if isinstance(self.metric, str) else getattr(self.metric, "__name__", "metric")
        counted = f"{len(self):,} prompt{'s' * (len(self) != 1)} of {long}, judged by {metric}"
        shown = (f"  {self._shown(i)}" for i in range(min(3, len(self))))
        return printable("\n".join([counted, *shown, *(f"  - {note}" for note in self.notes)]))

    def _shown(self, i: int) -> str:
        """A prompt for people: its text, or the first of its tokens."""
        if self.texts and self.texts[i]:
            return repr(self.texts[i])
        tokens = self.prompts.row(i).tolist()
        return " ".join(map(str, tokens[:_SHOWN])) + (" …" if len(tokens) > _SHOWN else "")

    __repr__ = __str__

    def take(self, which: Iterable[int]) -> "Task":
        """The same task on some of its prompts; the reference stays whole."""
        rows = torch.as_tensor(list(which), dtype=torch.long)
        return Task(
            prompts=self.prompts.take(rows),
            answers=self.answers[rows],
            distractors=self.distractors[rows],
            positions=self.positions[rows],
            metric=self.metric,
            corrupt=None if self.corrupt is None else self.corrupt.take(rows),
            reference=self.reference,
            texts=[self.texts[int(i)] for i in rows] if self.texts else (),
            also=self.also[rows],
            notes=self.notes,
        )

    def check(self, shape: "Vocabulary") -> "Task":
        """Itself, if tokens and answers lie inside the model's vocabularies.

        Raises `TaskError` listing every prompt with an id outside.
        """
        problems, d_vocab = list[str](), shape.d_vocab
        ids = {"token": (self.prompts.tokens, 0, d_vocab)}
        for name, tensor in (
            ("answer", self.answers[:, None]),
            ("distractor", self.distractors),
            ("further answer", self.also),
        ):
            ids[name] = (tensor, -1, shape.d_vocab_out)
        for name, extra in (("corrupt token", self.corrupt), ("reference token", self.reference)):
            if extra is not None:
                ids[name] = (extra.tokens, 0, d_vocab)
        for name, (tensor, low, high) in ids.items():
            outside = (tensor >= high) | (tensor < low)
            for row in outside.any(1).nonzero()[:, 0].tolist():
                wrong = ", ".join(map(str, tensor[row][outside[row]].tolist()[:5]))
                problems.append(f"prompt {row + 1}: {name} {wrong} (vocabulary of {high:,})")
        if problems:
            raise TaskError(all_problems(f"{len(problems)} prompts have ids outside the vocabulary:", problems))
        return self

    def describe(self) -> dict[str, Any]:
        """What a record keeps: counts, metric, and a hash over all content."""
        digest = hashlib.sha256()
        parts = [self.prompts, self.corrupt, self.reference]
        tensors = [t for p in parts if p is not None for t in (p.tokens, p.lengths)]
        further = [self.also] if self.also.shape[1] else []  # tasks without keep the hash they always had
        for tensor in [*tensors, self.answers, self.distractors, self.positions, *further]:
            digest.update(str(tuple(tensor.shape)).encode() + tensor.contiguous().numpy().tobytes())
        name = self.metric if isinstance(self.metric, str) else getattr(self.metric, "__qualname__", repr(self.metric))
        return {
            "prompts": len(self),
            "metric": name,
            "reference_prompts": None if self.reference is None else len(self.reference),
            "corrupt": self.corrupt is not None,
            "sha256": digest.hexdigest(),
        }

    def with_metric(self, metric: str | Callable[..., Tensor]) -> "Task":
        """The same prompts judged by another metric."""
        judged = self.take(range(len(self)))
        object.__setattr__(judged, "metric", metric)
        return judged


def _real(ids: Tensor) -> list[int]:
    """A row of ids without its padding."""
    return [i for i in ids.tolist() if i >= 0]


def _vector(values: Any, n: int, name: str) -> Int[Tensor, " prompt"]:
    vector = torch.as_tensor(values, dtype=torch.long)
    vector = vector.expand(n).clone() if vector.ndim == 0 else vector
    if vector.shape != (n,):
        raise TaskError(f"{name} has shape {tuple(vector.shape)}; it needs one entry for each of the {n} prompts.")
    return vector


def _ragged(values: Any, n: int) -> Int[Tensor, "prompt distractor"]:
    if values is None:
        return torch.full((n, 0), -1)
    rows = [
        [r] if isinstance(r, int) else [int(v) for v in r]
        for r in (values.tolist() if hasattr(values, "tolist") else values)
    ]
    if len(rows) != n:
        raise TaskError(f"distractors have {len(rows)} rows; they need one for each of the {n} prompts.")
    width = max((len(row) for row in rows), default=0)
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows], dtype=torch.long).reshape(n, width)


def _resolve(positions: Tensor, lengths: Tensor) -> Int[Tensor, " prompt"]:
    resolved = torch.where(positions < 0, positions + lengths, positions)
    wrong = ((resolved < 0) | (resolved >= lengths)).nonzero()[:, 0].tolist()
    if wrong:
        problems = [f"prompt {i + 1}: position {int(positions[i])} of {int(lengths[i])} tokens" for i in wrong]
        raise TaskError(all_problems(f"{len(wrong)} positions lie outside their prompts:", problems))
    return resolved
