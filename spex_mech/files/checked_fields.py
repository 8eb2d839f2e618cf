"""Reading records nobody has checked, field by field: what is wrong is collected, nothing comes out until all fits."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from spex_mech.components import Component
from spex_mech.errors import SpexMechError
from spex_mech.files.json import is_number

MAX_FILE_COMPONENTS = 4_000_000  # components named in one file, members of groups included

_T = TypeVar("_T")


class Rule:
    """What a field must be: a test, and the words for it. An optional field may be missing, and is then None."""

    def __init__(self, wanted: str, test: Callable[[Any], bool], optional: bool = False) -> None:
        self.wanted, self.test, self.optional = wanted, test, optional


def or_null(rule: Rule) -> Rule:
    return Rule(f"{rule.wanted} or null", lambda value: value is None or rule.test(value), rule.optional)


def optional(rule: Rule) -> Rule:
    return Rule(rule.wanted, rule.test, True)


def whole_number(low: int, high: int) -> Rule:
    return Rule(f"a whole number from {low:,} to {high:,}", lambda value: type(value) is int and low <= value <= high)


TEXT = Rule("a text", lambda value: isinstance(value, str))
NUMBER = Rule("a finite number", is_number)
BOOL = Rule("true or false", lambda value: isinstance(value, bool))
NAMES = Rule("a list of names", lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value))
ROWS = Rule("a list of objects", lambda value: isinstance(value, list) and all(isinstance(v, dict) for v in value))
OBJECT = Rule("an object", lambda value: isinstance(value, dict))


class FieldReader:
    """Notes every problem with its place; `parts` counts the components that the names so far stand for."""

    def __init__(self) -> None:
        self.problems = list[str]()
        self.parts = 0

    def fields(
        self, row: Mapping[str, Any], where: str, rules: Mapping[str, Rule], *, strict: bool = True
    ) -> dict[str, Any]:
        """Every field of the rules, None where it is missing or wrong (then the problem is noted).

        Where not `strict`, fields without a rule are passed over.
        """
        self.problems += [f"{where}{key} is missing" for key in rules if key not in row and not rules[key].optional]
        if strict:
            self.problems += [f"{where}{key[:40]} is not a field of this schema" for key in row if key not in rules]
        wrong = [key for key, rule in rules.items() if key in row and not rule.test(row[key])]
        self.problems += [f"{where}{key} must be {rules[key].wanted}, not {shown(row[key])}" for key in wrong]
        return {key: None if key in wrong else row.get(key) for key in rules}

    def component(self, name: str | None, where: str) -> Component | None:
        """A component by its canonical name, or None and a problem."""
        if name is None or not self.small(name, where):
            return None
        component = self.attempt(lambda: Component.parse(name), f"{where}: ")
        if component is not None and component.name != name:
            self.problems.append(f"{where} is {name!r}, which files write {component.name!r}")
        return component

    def small(self, name: str, where: str) -> bool:
        """Whether a name may be parsed: a short one such as [m0.n0:999999999] would fill the memory."""
        self.parts += MAX_FILE_COMPONENTS + 1 if re.search(r"\d{10}", name) else _parts(name)
        if self.parts > MAX_FILE_COMPONENTS:
            self.problems.append(
                f"{where}: the names hold more than {MAX_FILE_COMPONENTS:,} parts, or numbers beyond 9 digits"
            )
        return self.parts <= MAX_FILE_COMPONENTS

    def attempt(self, make: Callable[[], _T], where: str = "") -> _T | None:
        """What `make` gives, or None where it raises one of our errors, which is noted."""
        try:
            return make()
        except SpexMechError as error:
            self.problems.append(f"{where}{error}")
            return None


def shown(value: Any) -> str:
    """A value for a message, short."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _parts(name: str) -> int:
    """How many components a name with ranges would expand to.

    >>> _parts("[m3.n0:64,a0.h1]")
    65
    """
    parts = (re.findall(r"(\d+):(\d+)", part) for part in name.split(","))
    return sum(math.prod(max(0, int(stop) - int(start)) for start, stop in spans) for spans in parts)
