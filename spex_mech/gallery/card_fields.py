"""The tables of a card.toml: which fields there are, which are needed, and what may stand in each."""

import tomllib
from collections.abc import Callable, Mapping
from typing import Any

from spex_mech.gallery.card import PromptParts
from spex_mech.names import MEAN_KINDS, METRIC_NAMES, MODEL_KINDS, REPLACEMENT_KINDS
from spex_mech.tasks import GENERATORS

FieldRule = tuple[str, Callable[[Any], bool]]
Tables = dict[str, dict[str, Any]]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _one_of(*choices: str) -> FieldRule:
    return f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices


def _whole(least: int) -> FieldRule:
    return f"a whole number from {least}", lambda value: type(value) is int and value >= least


def _spans(value: Any) -> bool:
    return value == "tokens" or (isinstance(value, list) and bool(value) and all(map(_span, value)))


def _span(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and all(type(i) is int for i in value) and 0 <= value[0] < value[1]
    )


_TEXT: FieldRule = ("a text", _text)
_FIELDS: dict[str, dict[str, FieldRule]] = {
    "card": {
        "schema": ("1", lambda value: value == 1 and not isinstance(value, bool)),
        "title": _TEXT,
        "summary": _TEXT,
        "licence": _TEXT,
        "source": _TEXT,
    },
    "model": {"kind": _one_of(*MODEL_KINDS), "path": _TEXT, "hub": _TEXT},
    "task": {
        "metric": _one_of(*METRIC_NAMES),
        "unit": _TEXT,
        "generator": _one_of(*(name for name in GENERATORS if name != "modular_arithmetic")),
        "prompts": _whole(1),
        "seed": _whole(0),
    },
    "components": {"default": _TEXT},
    "replacement": {"default": _one_of(*REPLACEMENT_KINDS), "per": _one_of(*MEAN_KINDS)},
    "lens": {
        "parts": ("'tokens', or a list of [first position, after the last]", _spans),
        "filler": ("'corrupt', or a token", lambda value: value == "corrupt" or (type(value) is int and value >= 0)),
    },
}
_NEEDED = (("card", "title"), ("model", "kind"), ("task", "metric"), ("components", "default"))


def read_tables(text: str, problems: list[str]) -> Tables | None:
    """The tables of a card.toml with only sound fields in them; None where it is no TOML at all."""
    try:
        found = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        problems.append(f"card.toml is not TOML: {error}")
        return None
    problems += [f"card.toml: [{name}] is not a table of a card" for name in found if name not in _FIELDS]
    tables = {name: _sound(name, found.get(name, {}), problems) for name in _FIELDS}
    for name, key in _NEEDED:
        if isinstance(found.get(name, {}), dict) and key not in found.get(name, {}):
            problems.append(f"card.toml: [{name}] has no {key}; it must be {_FIELDS[name][key][0]}")
    return tables


def _sound(name: str, found: Any, problems: list[str]) -> dict[str, Any]:
    """The fields of one table that are known and right."""
    if not isinstance(found, dict):
        problems.append(f"card.toml: {name} must be a table [{name}], not {found!r:.40}")
        return {}
    sound = {}
    for key, value in found.items():
        if key not in _FIELDS[name]:
            known = ", ".join(_FIELDS[name])
            problems.append(f"card.toml: [{name}] {key} is unknown; known are {known}")
        elif not _FIELDS[name][key][1](value):
            problems.append(f"card.toml: [{name}] {key} is {value!r:.60}; it must be {_FIELDS[name][key][0]}")
        else:
            sound[key] = value
    return sound


def prompt_parts(table: Mapping[str, Any]) -> PromptParts | None:
    """The parts of the prompts that a card studies, if its table [lens] says any."""
    if "parts" not in table:
        return None
    parts = table["parts"]
    spans = parts if isinstance(parts, str) else tuple((start, stop) for start, stop in parts)
    return PromptParts(spans, table.get("filler", "corrupt"))  # type: ignore[arg-type]
