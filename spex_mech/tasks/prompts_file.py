"""The prompts file, one JSON object a line: read into what a task takes, written from it."""

import json
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from spex_mech.errors import TaskError, all_problems, warn_user
from spex_mech.files.json import write_whole
from spex_mech.files.plain_files import read_plain
from spex_mech.names import METRIC_NAMES
from spex_mech.tasks.prompts import Prompts, refuse_padding
from spex_mech.tasks.speller import Speller, identify

MAX_PROMPT_LINES = 1_000_000  # lines of a prompt file; beyond that it is not a prompt file
EXAMPLES = 5  # prompts that are shown
_LINE = 1 << 16  # bytes of a line that are read for that
_SHOWN = 400  # characters of a prompt
_ROW_KEYS = {"tokens", "text", "answer", "also", "distractors", "position", "corrupt"}


def read_task(
    path: str | Path, tokenizer: Any = None, limit: int | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What holds for all prompts, and one list a column, by the names that `Task` takes; see `Task.from_jsonl`.

    Raises `TaskError`: the file cannot be read, or rows are wrong; all of them are listed.
    """
    numbered = _parse_rows(Path(path), limit)
    reader = _Reader(tokenizer)
    common = reader.common(numbered.pop(0)[1]["task"]) if "task" in numbered[0][1] else None
    if not numbered:
        raise TaskError(f"{path} holds what is common to its prompts, and no prompts.")
    rows = [reader.row(number, row) for number, row in numbered]
    reader.finish(Path(path).name)
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
    without = [corrupt is None for corrupt in columns["corrupt"]]
    if any(without) and not all(without):
        raise TaskError(f"{path}: some rows have a corrupt prompt and some have none; give all or none.")
    columns["corrupt"] = None if all(without) else Prompts.from_rows(columns["corrupt"])
    columns["prompts"] = Prompts.from_rows(columns.pop("tokens"))
    if common is None:
        refuse_padding(columns["prompts"], getattr(tokenizer, "pad_token_id", None))
    return {"tokenizer": identify(tokenizer), **(common or {})}, columns


def read_common(path: str | Path) -> Mapping[str, Any]:
    """What the first line says of all prompts, as it stands there; empty where it is a prompt already."""
    found: Mapping[str, Any] = _parse_rows(Path(path), 1)[0][1].get("task", {})
    return found


def read_prompts(path: str | Path, tokenizer: Any = None) -> Prompts:
    """Bare prompts from a jsonl file: rows with ``tokens`` or ``text``; other keys are not read."""
    reader = _Reader(tokenizer)
    rows = [reader.prompt(number, row) for number, row in _parse_rows(Path(path)) if "task" not in row]
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
    """Write rows of the form that `read_task` reads; returns the path."""
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
        if isinstance(row, dict) and set(row) == {"task"} and isinstance(row["task"], dict) and not rows:
            rows.append((number, row))
            limit = None if limit is None else limit + 1
        elif not isinstance(row, dict) or not row.keys() & {"tokens", "text"}:
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
        self.speller, self.problems = None if tokenizer is None else Speller(tokenizer), list[str]()
        self.doubled, self.unknown = list[int](), list[int]()

    def common(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """What the first line says of all prompts."""
        metric, reference = told.get("metric", "logit_diff"), told.get("reference")
        rows = isinstance(reference, list) and reference and all(map(_is_row, reference))
        sound = {
            "metric": metric in METRIC_NAMES
            if isinstance(metric, str)
            else isinstance(metric, dict) and isinstance(metric.get("function"), str),
            "reference": reference in (None, "corrupt") or rows,
            "notes": _are_texts(told.get("notes", [])),
            "options": isinstance(told.get("options", {}), dict),
            "tokenizer": isinstance(told.get("tokenizer"), str | None),
        }
        self.problems += [
            f"line 1: {name} of the task is wrong: {told[name]!r:.60}" for name in sound if not sound[name]
        ]
        self.problems += [f"line 1: the task has no {name!r:.60}" for name in told if name not in sound]
        mine, theirs = told.get("tokenizer"), None if self.speller is None else identify(self.speller.tokenizer)
        if mine and theirs and mine != theirs:
            self.problems.append(
                f"line 1: the ids are those of a tokenizer of {mine!r:.60}, and this one has {theirs}: the same ids "
                "are other words. Read it without a tokenizer to take the ids as they are, or make the task again"
            )
        if any(not ok for ok in sound.values()):
            return {}
        return {**told, **({"reference": Prompts.from_rows(reference)} if isinstance(reference, list) else {})}

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
        """Raise `TaskError` with all that was wrong in a file of this name; say what is doubtful."""
        if self.problems:
            raise TaskError(all_problems(f"{name}: {len(self.problems)} problems:", self.problems))
        for lines, what in (
            (self.doubled, "begin with the special token that the tokenizer puts before every prompt; it was put once"),
            (self.unknown, "have words that the tokenizer does not know"),
        ):
            if lines:
                listed = ", ".join(map(str, lines[:8])) + (" …" if len(lines) > 8 else "")
                warn_user(f"{name}: {len(lines):,} prompts {what} (lines {listed}).")

    def _tokens(self, number: int, value: Any) -> list[int]:
        if isinstance(value, str):
            return self._prompt(number, value)
        if _is_row(value):
            return list(value)
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
            ids = self._plain(number, value)
            if len(ids) == 1 and self.speller is not None and not self.speller.knows(ids):
                self.problems.append(f"line {number}: {what} {value!r} is unknown to the tokenizer (token {ids[0]})")
            elif len(ids) == 1:
                return ids[0]
            elif self.speller is not None:
                self.problems.append(f"line {number}: {what} {value!r} is {len(ids)} tokens; it must be one")
        else:
            self.problems.append(f"line {number}: {what} must be a token id or a string, not {value!r}")
        return 0

    def _prompt(self, number: int, text: str) -> list[int]:
        """A text with the special tokens that belong in front, once, and none behind."""
        ids = self._plain(number, text)
        if self.speller is None or not ids:
            return [0]
        if not self.speller.knows(ids):
            self.unknown.append(number)
        if self.speller.doubles(text):
            self.doubled.append(number)
            return ids
        return [*self.speller.front(text), *ids]

    def _plain(self, number: int, text: str) -> list[int]:
        if self.speller is None:
            self.problems.append(f"line {number}: {text[:40]!r} is text, and there is no tokenizer; give token ids")
            return []
        ids = self.speller.plain(text)
        if not ids:
            self.problems.append(f"line {number}: {text[:40]!r} has no tokens")
        return ids


def _is_row(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_id(v) for v in value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_id(value: Any, *, negative: bool = False) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and (-(2**31) if negative else 0) <= value < 2**31
