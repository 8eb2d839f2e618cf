"""The prompts file, one JSON object a line: read into the columns of a task, written from them."""

import json
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from spex_mech.errors import TaskError, all_problems
from spex_mech.files.json import write_whole
from spex_mech.files.plain_files import read_plain
from spex_mech.tasks.prompts import Prompts

MAX_PROMPT_LINES = 1_000_000  # lines of a prompt file; beyond that it is not a prompt file
EXAMPLES = 5  # prompts that are shown
_LINE = 1 << 16  # bytes of a line that are read for that
_SHOWN = 400  # characters of a prompt
_ROW_KEYS = {"tokens", "text", "answer", "also", "distractors", "position", "corrupt"}


def read_columns(path: str | Path, tokenizer: Any = None, limit: int | None = None) -> dict[str, Any]:
    """What `Task` takes, by its names there: one list a column. The rows are those of `Task.from_jsonl`.

    Raises `TaskError`: the file cannot be read, or rows are wrong; all of them are listed.
    """
    numbered = _parse_rows(Path(path), limit)
    reader = _Reader(tokenizer)
    rows = [reader.row(number, row) for number, row in numbered]
    reader.finish(Path(path).name)
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
    without = [corrupt is None for corrupt in columns["corrupt"]]
    if any(without) and not all(without):
        raise TaskError(f"{path}: some rows have a corrupt prompt and some have none; give all or none.")
    return {**columns, "corrupt": None if all(without) else columns["corrupt"]}


def read_prompts(path: str | Path, tokenizer: Any = None) -> Prompts:
    """Bare prompts from a jsonl file: rows with ``tokens`` or ``text``; other keys are not read."""
    reader = _Reader(tokenizer)
    rows = [reader.prompt(number, row) for number, row in _parse_rows(Path(path))]
    reader.finish(Path(path).name)
    return Prompts.from_rows(rows)


def prompt_lines(path: str | Path | None) -> tuple[str, ...]:
    """The first prompts of a jsonl file, for people; none where the file is not there or cannot be read."""
    try:
        raw = b"" if path is None else read_plain(path, EXAMPLES * _LINE)
        lines = raw.decode(errors="replace").splitlines()[:EXAMPLES]
        rows = [json.loads(line[:_LINE]) for line in lines if line.strip()]
    except (OSError, ValueError, RecursionError):
        return ()
    return tuple(prompt_line(row) for row in rows if isinstance(row, dict))


def prompt_line(row: Mapping[str, Any]) -> str:
    """One row for people: what is asked, and what the answer is, cut where it is long."""
    text, tokens, answer, wrong = (row.get(key) for key in ("text", "tokens", "answer", "distractors"))
    shown = text if isinstance(text, str) else " ".join(map(str, tokens if isinstance(tokens, list) else ()))
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
    asked = "" if answer is None or answer == -1 else f" → {str(answer)[:_SHOWN]}"
    others = ", ".join(str(d)[:40] for d in islice(wrong, 8)) if isinstance(wrong, list) else ""
    return shown + asked + (f" (not {others})" if others else "")


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows of the form that `read_columns` reads; returns the path."""
    return write_whole(path, "".join(f"{json.dumps(row)}\n" for row in rows))


def _parse_rows(path: Path, limit: int | None = None) -> list[tuple[int, Mapping[str, Any]]]:
    """The objects of a file with their line numbers."""
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
        if not isinstance(row, dict) or not row.keys() & {"tokens", "text"}:
            problems.append(f"line {number}: needs an object with tokens or text")
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

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.problems = tokenizer, list[str]()

    def row(self, number: int, row: Mapping[str, Any]) -> dict[str, Any]:
        """One row's entry in each column."""
        position = row.get("position", -1)
        if not _is_id(position, negative=True):
            self.problems.append(f"line {number}: position must be a whole number, not {position!r}")
            position = -1
        corrupt = row.get("corrupt")
        return {
            "tokens": self.prompt(number, row),
            "answers": self._one(number, "answer", row["answer"]) if row.get("answer") is not None else -1,
            "also": self._several(number, row, "also", "answer"),
            "distractors": self._several(number, row, "distractors", "distractor"),
            "positions": position,
            "corrupt": None if corrupt is None else self._tokens(number, corrupt),
            "texts": str(row.get("text", "")),
        }

    def prompt(self, number: int, row: Mapping[str, Any]) -> list[int]:
        """The tokens of a row's prompt."""
        return self._tokens(number, row.get("tokens", row.get("text")))

    def finish(self, name: str) -> None:
        """Raise `TaskError` with all that was wrong in a file of this name."""
        if self.problems:
            raise TaskError(all_problems(f"{name}: {len(self.problems)} problems:", self.problems))

    def _tokens(self, number: int, value: Any) -> list[int]:
        if isinstance(value, str):
            return self._encode(number, value, special=True)
        if isinstance(value, list) and value and all(_is_id(v) for v in value):
            return value
        self.problems.append(
            f"line {number}: tokens must be a list of token ids with at least one, not {str(value)[:60]!r}"
        )
        return [0]

    def _several(self, number: int, row: Mapping[str, Any], key: str, what: str) -> list[int]:
        values = row.get(key, [])
        if isinstance(values, list):
            return [self._one(number, what, value) for value in values]
        self.problems.append(f"line {number}: {key} must be a list, not {values!r}")
        return []

    def _one(self, number: int, what: str, value: Any) -> int:
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


def _is_id(value: Any, *, negative: bool = False) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and (-(2**31) if negative else 0) <= value < 2**31
