"""`Task`: the prompts, what the model should answer, where, and by which metric it is judged."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from spex_mech.errors import TaskError, all_problems

MAX_PROMPT_LINES = 1_000_000  # lines of a prompt file; beyond that it is not a prompt file
_SHOWN = 16  # tokens of a prompt without text, for people
_ROW_KEYS = {"tokens", "text", "answer", "also", "distractors", "position", "corrupt"}


class Vocabulary(Protocol):
    """What a task must know of a model: how many tokens it reads, and how many it scores."""

    @property
    def d_vocab(self) -> int: ...
    @property
    def d_vocab_out(self) -> int: ...


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
        rows = _parse_rows(Path(path), limit, need=("tokens", "text"))
        reader = _Reader(Path(path).name, tokenizer)
        parsed = [reader.row(number, row) for number, row in rows]
        reader.finish()
        corrupt = [p["corrupt"] for p in parsed]
        if any(c is not None for c in corrupt) and any(c is None for c in corrupt):
            raise TaskError(f"{path}: some rows have a corrupt prompt and some have none; give all or none.")
        return cls(
            [p["tokens"] for p in parsed],
            [p["answer"] for p in parsed],
            [p["distractors"] for p in parsed],
            [p["position"] for p in parsed],
            metric,
            corrupt=None if corrupt[0] is None else corrupt,
            reference=None if reference is None else read_prompts(reference, tokenizer),
            texts=[str(row.get("text", "")) for _, row in rows],
            also=[p["also"] for p in parsed],
        )

    def to_jsonl(self, path: str | Path) -> None:
        """Write the prompts as `from_jsonl` reads them (the metric and the reference are not part of that file)."""
        lines = []
        for i in range(len(self)):
            row: dict[str, Any] = {"tokens": self.prompts.row(i).tolist()}
            if int(self.answers[i]) >= 0:
                row["answer"] = int(self.answers[i])
            row["distractors"] = [d for d in self.distractors[i].tolist() if d >= 0]
            if further := [a for a in self.also[i].tolist() if a >= 0]:
                row["also"] = further
            row["position"] = int(self.positions[i])
            if self.corrupt is not None:
                row["corrupt"] = self.corrupt.row(i).tolist()
            if self.texts and self.texts[i]:
                row["text"] = self.texts[i]
            lines.append(json.dumps(row))
        Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")

    def __len__(self) -> int:
        return len(self.prompts)

    def __str__(self) -> str:
        """How many prompts of what length, three of them, and the notes."""
        lengths = sorted(set(self.prompts.lengths.tolist()))
        long = f"{lengths[0]} tokens" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]} tokens"
        metric = self.metric if isinstance(self.metric, str) else getattr(self.metric, "__name__", "metric")
        counted = f"{len(self):,} prompt{'s' * (len(self) != 1)} of {long}, judged by {metric}"
        return "\n".join(
            [
                counted,
                *(f"  {self._shown(i)}" for i in range(min(3, len(self)))),
                *(f"  - {note}" for note in self.notes),
            ]
        )

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


def read_prompts(path: str | Path, tokenizer: Any = None) -> Prompts:
    """Bare prompts from a jsonl file: rows with ``tokens`` or ``text``; other keys are not read."""
    reader = _Reader(Path(path).name, tokenizer)
    rows = [
        reader.tokens(number, row.get("tokens", row.get("text")))
        for number, row in _parse_rows(Path(path), None, need=("tokens", "text"))
    ]
    reader.finish()
    return Prompts.from_rows(rows)


def _parse_rows(path: Path, limit: int | None, need: tuple[str, ...]) -> list[tuple[int, Mapping[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path} cannot be read: {error}.") from error
    rows, problems = list[tuple[int, Mapping[str, Any]]](), list[str]()
    for number, line in enumerate(lines[:MAX_PROMPT_LINES], 1):
        if not line.strip() or (limit is not None and len(rows) >= limit):
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"line {number}: not JSON ({error})")
            continue
        if not isinstance(row, dict) or not any(key in row for key in need):
            problems.append(f"line {number}: needs an object with {' or '.join(need)}")
        elif unknown := set(row) - _ROW_KEYS:
            problems.append(f"line {number}: unknown keys {sorted(unknown)}; known are {sorted(_ROW_KEYS)}")
        else:
            rows.append((number, row))
    if problems:
        raise TaskError(all_problems(f"{path}: {len(problems)} lines are not prompts:", problems))
    if not rows:
        raise TaskError(f'{path} holds no prompts; it needs one JSON object a line, such as {{"tokens": [1, 2], …}}.')
    return rows


class _Reader:
    """Turns the fields of rows into token ids; collects what is wrong and tells it once."""

    def __init__(self, name: str, tokenizer: Any) -> None:
        self.name, self.tokenizer, self.problems = name, tokenizer, list[str]()

    def row(self, number: int, row: Mapping[str, Any]) -> dict[str, Any]:
        corrupt = row.get("corrupt")
        distractors = row.get("distractors", [])
        if not isinstance(distractors, list):
            self.problems.append(f"line {number}: distractors must be a list, not {distractors!r}")
            distractors = []
        also = row.get("also", [])
        if not isinstance(also, list):
            self.problems.append(f"line {number}: also must be a list of further answers, not {also!r}")
            also = []
        position = row.get("position", -1)
        if not _is_id(position, negative=True):
            self.problems.append(f"line {number}: position must be a whole number, not {position!r}")
            position = -1
        return {
            "tokens": self.tokens(number, row.get("tokens", row.get("text"))),
            "answer": self.one(number, "answer", row["answer"]) if row.get("answer") is not None else -1,
            "also": [self.one(number, "answer", a) for a in also],
            "distractors": [self.one(number, "distractor", d) for d in distractors],
            "position": position,
            "corrupt": None if corrupt is None else self.tokens(number, corrupt),
        }

    def tokens(self, number: int, value: Any) -> list[int]:
        if isinstance(value, str):
            return self._encode(number, value, special=True)
        if isinstance(value, list) and value and all(_is_id(v) for v in value):
            return value
        self.problems.append(
            f"line {number}: tokens must be a list of token ids with at least one, not {str(value)[:60]!r}"
        )
        return [0]

    def one(self, number: int, what: str, value: Any) -> int:
        if _is_id(value):
            return int(value)
        if isinstance(value, str):
            ids = self._encode(number, value, special=False)
            if len(ids) == 1:
                return ids[0]
            self.problems.append(f"line {number}: {what} {value!r} is {len(ids)} tokens; it must be one")
        else:
            self.problems.append(f"line {number}: {what} must be a token id or a string, not {value!r}")
        return 0

    def _encode(self, number: int, text: str, *, special: bool) -> list[int]:
        if self.tokenizer is None:
            self.problems.append(f"line {number}: {text[:40]!r} is text, and there is no tokenizer; give token ids")
            return [0]
        return list(self.tokenizer.encode(text, add_special_tokens=special)) or [0]

    def finish(self) -> None:
        if self.problems:
            raise TaskError(all_problems(f"{self.name}: {len(self.problems)} problems:", self.problems))


def _is_id(value: Any, *, negative: bool = False) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and (-(2**31) if negative else 0) <= value < 2**31


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
