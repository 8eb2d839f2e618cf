"""JSON and text files: written whole or not at all, read with suspicion."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spex_mech.errors import FormatError
from spex_mech.files.plain_files import read_plain, replace_file

MAX_BYTES = 64 << 20
MAX_DEPTH = 32
MAX_VALUES = 8_000_000  # in one file: what is short on disk may be large in memory


def write_whole(path: str | Path, text: str) -> Path:
    """Write a text file so that a reader sees the old one or the new one, never half; returns its path.

    Raises `FormatError` where the folder does not exist or cannot be written.
    """
    path = Path(path)
    try:
        replace_file(path, text.encode())
    except OSError as error:
        raise FormatError(f"{path} cannot be written: {error}. Choose a file in a folder that exists.") from error
    return path


def json_text(value: Any, indent: int | None = 1) -> str:
    """JSON as every file of this package holds it: the same text for the same value, no NaN, a newline at the end."""
    return json.dumps(value, indent=indent, allow_nan=False) + "\n"


def is_path(text: str) -> bool:
    """Whether a text from a file nobody has checked could be a path at all, before any system is asked.

    >>> is_path("model/weights"), is_path("x" * 300), is_path(chr(0))
    (True, False, False)
    """
    try:
        parts = [os.fsencode(part) for part in text.replace("\\", "/").split("/")]
    except UnicodeEncodeError:
        return False
    return "\0" not in text and all(len(part) < 256 for part in parts) and sum(map(len, parts)) + len(parts) < 2048


def read_json(path: str | Path, schema: str) -> dict[str, Any]:
    """A JSON object of one schema, from a file nobody has checked.

    Raises `FormatError`: missing, larger than 64 MiB or 8 million values, nested deeper than 32, not UTF-8 JSON, a key
    twice in an object, a number that float64 does not hold, or another schema.
    """
    record = _parse(path)
    found = record.get("schema")
    if found != schema:
        newer = isinstance(found, str) and found.rpartition("/")[0] == schema.rpartition("/")[0]
        way_out = (
            "It was written by another version of spex-mech; use that one." if newer else "It is another kind of file."
        )
        raise FormatError(f"{path} has schema {str(found)[:80]!r}; this version reads {schema!r}. {way_out}")
    return record


def read_object(path: str | Path, *, nan_is_null: bool = False, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """A JSON object of any schema, from a file nobody has checked; with `nan_is_null`, NaN in it is read as null.

    Raises `FormatError` as `read_json` does.
    """
    return _parse(path, nan_is_null, max_bytes)


def plain_problems(value: Any, name: str) -> list[str]:
    """What in `value` a JSON file would not give back unchanged: one line each, with its path.

    >>> plain_problems({"sizes": (1, 2), "r2": 0.5}, "evidence")
    ['evidence.sizes is of type tuple']
    """
    problems = []
    for depth, where, item in walk(value, name):
        if depth > MAX_DEPTH - 1:
            problems.append(f"{where} is nested deeper than {MAX_DEPTH} levels")
        elif isinstance(item, Mapping) and not all(isinstance(key, str) and _is_utf8(key) for key in item):
            problems.append(f"{where} has keys that are not text")
        elif isinstance(item, str) and not _is_utf8(item):
            problems.append(f"{where} is text that UTF-8 cannot hold")
        elif isinstance(item, int | float) and not is_number(item) and not isinstance(item, bool):
            problems.append(f"{where} is {str(item)[:40]}, no finite number")
        elif item is not None and type(item) not in (dict, list, str, int, float, bool):
            problems.append(f"{where} is of type {type(item).__name__}")
    return problems


def is_number(value: Any) -> bool:
    """Whether a value is a number that float64 holds: no Boolean, not NaN, not infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) < 10**300


def sorted_keys(value: Any) -> Any:
    """The same data with the keys of every object in order, so that equal data give equal bytes."""
    if isinstance(value, Mapping):
        return {key: sorted_keys(value[key]) for key in sorted(value)}
    return [sorted_keys(item) for item in value] if isinstance(value, list) else value


def walk(value: Any, name: str = "") -> Iterator[tuple[int, str, Any]]:
    """(depth, path, item) for a value and everything in it; stops one level below `MAX_DEPTH`. No recursion."""
    left = [(0, name, value)]
    while left:
        depth, where, item = left.pop()
        yield depth, where, item
        if depth > MAX_DEPTH:
            continue
        if isinstance(item, Mapping):
            left += [(depth + 1, f"{where}.{key}", item[key]) for key in item]
        elif isinstance(item, list):
            left += [(depth + 1, f"{where}[{i}]", part) for i, part in enumerate(item)]


def _parse(path: str | Path, nan_is_null: bool = False, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    try:
        raw = read_plain(path, max_bytes)
        if len(raw) > max_bytes:
            raise FormatError(f"{path} is larger than {max_bytes >> 20} MiB, which no file of its kind is.")
        if sum(map(raw.count, (b",", b"[", b"{"))) > MAX_VALUES:
            raise FormatError(f"{path} holds more than {MAX_VALUES:,} values, which no file of this package does.")
        constant = _null_for_nan if nan_is_null else _refuse_constant
        record = json.loads(raw.decode("utf-8"), parse_constant=constant, object_pairs_hook=_object)
    except FormatError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(record, dict):
        raise FormatError(f"{path} holds a {type(record).__name__}; every file of this package holds an object.")
    for depth, where, item in walk(record):
        if depth > MAX_DEPTH:
            raise FormatError(f"{path} is nested deeper than {MAX_DEPTH} levels; no file of this package is.")
        if isinstance(item, str) and not _is_utf8(item):
            raise FormatError(f"{path}: {where[1:]} is text that UTF-8 cannot hold.")
        if isinstance(item, float) and not math.isfinite(item):
            raise FormatError(f"{path}: {where[1:]} is larger than any number that float64 holds.")
    return record


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number; an unknown number is null")


def _null_for_nan(name: str) -> Any:
    return None if name == "NaN" else _refuse_constant(name)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key stands twice in an object with the keys {', '.join(list(found)[:5])}")
    return found


def _is_utf8(text: str) -> bool:
    return text.isascii() or not re.search("[\ud800-\udfff]", text)
