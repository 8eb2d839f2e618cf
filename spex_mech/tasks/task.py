"""`Task`: the prompts, what the model should answer, where, and by which metric it is judged."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from spex_mech.errors import TaskError, all_problems, printable
from spex_mech.tasks.columns import (
    check_metric,
    lines,
    ragged,
    real_ids,
    resolved_positions,
    row_numbers,
    vector,
    without_padding,
)
from spex_mech.tasks.prompts import Prompts
from spex_mech.tasks.prompts_file import read_prompts, read_task, write_rows

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
        options: how a generator made it: its name and arguments; or empty.
        tokenizer: whose ids these are, by content (`identify`); None where nobody said.
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
    options: Mapping[str, Any] = field(default_factory=dict, compare=False)
    tokenizer: str | None = field(default=None, compare=False)

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
        options: Mapping[str, Any] | None = None,
        tokenizer: str | None = None,
    ) -> None:
        """Build a task from rows, padded arrays, or what a tokenizer returned; positions may be negative (counted from
        the end of each row).

        Raises `TaskError` listing every prompt whose parts do not fit together, an unknown metric, or rows that look
        padded and came without a mask.
        """
        check_metric(metric)
        rows = Prompts.of(tokens, attention_mask) if prompts is None else prompts
        n = len(rows)
        values = {
            "prompts": rows,
            "answers": vector(-1 if answers is None else answers, n, "answers"),
            "distractors": ragged(distractors, n),
            "positions": resolved_positions(vector(positions, n, "positions"), rows.lengths),
            "metric": metric,
            "corrupt": None if corrupt is None else Prompts.of(corrupt),
            "reference": None if reference is None else Prompts.of(reference),
            "texts": lines(texts, "texts", n),
            "also": ragged(also, n),
            "notes": lines(notes, "notes"),
            "options": dict(options or {}),
            "tokenizer": tokenizer,
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
        metric: str | Callable[..., Tensor] | None = None,
        reference: str | Path | None = None,
        limit: int | None = None,
    ) -> "Task":
        """Read a task: one JSON object a line, each a prompt; the first may be what holds for all of them.

        ``{"tokens": [ids] | "text": "…", "answer": id | "…", "distractors": [ids | "…"], "position": -1, "corrupt":
        …}``, and ``"also": [ids | "…"]`` where further answers are right; tokens win over text; strings need a
        `tokenizer`, and answers must be one token. Text gets the special tokens that the tokenizer puts in front, and
        none behind, so that the last token is the text's. The first line may be ``{"task": {"metric": "…",
        "reference": [rows of ids] | "corrupt", "notes": […], "options": {…}, "tokenizer": "…"}}``.

        Args:
            metric: in the place of the file's; "logit_diff" where neither says.
            reference: a file of prompts in the place of the file's own.

        Raises:
            TaskError: the file cannot be read, rows are wrong (all of them are listed), its ids are another tokenizer's
                than the one given, or it was judged by a function, which no file holds.
        """
        common, columns = read_task(path, tokenizer, limit)
        written = common.pop("metric", "logit_diff")
        if metric is None and not isinstance(written, str):
            raise TaskError(
                f"{path} was judged by a function of its author's, {written['function']!r}, which no file holds. Give "
                "metric=…, that function or the name of a metric."
            )
        if reference is not None:
            common["reference"] = read_prompts(reference, tokenizer)
        elif common.get("reference") == "corrupt":
            common["reference"] = None if columns["corrupt"] is None else Prompts.of(columns["corrupt"])
        return cls(**columns, **common, metric=written if metric is None else metric)

    def to_jsonl(self, path: str | Path) -> None:
        """Write the task as `from_jsonl` reads it, all of it; of a metric that is a function, the name only.

        Raises `FormatError` where the folder does not exist or cannot be written.
        """
        write_rows(path, [{"task": self._common()}, *map(self._row, range(len(self)))])

    def _common(self) -> dict[str, Any]:
        """What holds for all prompts, without what there is not."""
        named = isinstance(self.metric, str)
        told = {
            "metric": self.metric if named else {"function": getattr(self.metric, "__qualname__", "metric")},
            "reference": self._reference(),
            "notes": list(self.notes),
            "options": dict(self.options),
            "tokenizer": self.tokenizer,
        }
        return {name: value for name, value in told.items() if value}

    def _reference(self) -> str | list[list[int]] | None:
        """The reference prompts for a file; one word where they are the corrupt ones."""
        if self.reference is None:
            return None
        rows = [self.reference.row(i).tolist() for i in range(len(self.reference))]
        same = self.corrupt is not None and rows == [self.corrupt.row(i).tolist() for i in range(len(self.corrupt))]
        return "corrupt" if same else rows

    def _row(self, i: int) -> dict[str, Any]:
        """One prompt as a row of the file, without what it does not have."""
        further, corrupt = real_ids(self.also[i]), self.corrupt
        return {
            "tokens": self.prompts.row(i).tolist(),
            **({"answer": int(self.answers[i])} if int(self.answers[i]) >= 0 else {}),
            "distractors": real_ids(self.distractors[i]),
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
        """The same task on some of its prompts; the reference stays whole. Raises `TaskError` where there is no such
        prompt."""
        rows = row_numbers(which, len(self))
        return Task(
            prompts=self.prompts.take(rows),
            answers=self.answers[rows],
            distractors=without_padding(self.distractors[rows]),
            positions=self.positions[rows],
            metric=self.metric,
            corrupt=None if self.corrupt is None else self.corrupt.take(rows),
            reference=self.reference,
            texts=[self.texts[int(i)] for i in rows] if self.texts else (),
            also=without_padding(self.also[rows]),
            notes=self.notes,
            options=self.options,
            tokenizer=self.tokenizer,
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
        check_metric(metric)
        judged = self.take(range(len(self)))
        object.__setattr__(judged, "metric", metric)
        return judged

    def with_reference(self, path: str | Path, tokenizer: Any = None) -> "Task":
        """The same task with the prompts of a file as those over which replacement values are taken."""
        copy = self.take(range(len(self)))
        object.__setattr__(copy, "reference", read_prompts(path, tokenizer))
        return copy
