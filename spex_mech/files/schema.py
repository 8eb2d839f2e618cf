"""A schema per dataclass: JSON that nobody has checked becomes values of declared types, or a list of all problems.

msgspec checks the leaves, strictly: no "1" and no true for 1, no number that is not finite. What is walked here are
objects and lists, so that every problem is told with its place, and not only the first; and names of components, which
may stand for millions.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from math import prod
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from msgspec import Meta, ValidationError, convert

from spex_mech.components import Component, ComponentSet
from spex_mech.errors import FormatError, SpexMechError, all_problems
from spex_mech.files.json import read_json

MAX_FILE_COMPONENTS = 4_000_000  # components named in one file, members of groups included
_LARGEST = 1.7976931348623157e308  # the largest float64

_T = TypeVar("_T")


class Open:
    """A base of dataclasses whose files may hold more fields than these; more are passed over."""


def between(low: int, high: int) -> Meta:
    """Whole numbers from `low` to `high`: ``Annotated[int, between(1, 9)]``."""
    return Meta(ge=low, le=high, description=f"a whole number from {low:,} to {high:,}")


def one_of(names: Iterable[str]) -> Meta:
    """One of some names that are known at run time only: ``Annotated[str, one_of(names)]``."""
    known = list(names)
    return Meta(pattern=f"^({'|'.join(map(re.escape, known))})$", description=f"one of {', '.join(known)}")


def read_as(kind: type[_T], path: str | Path, schema: str, what: str, *, complete: bool = False) -> _T:
    """The file at `path` as a dataclass; with `complete`, fields with a default may not be missing either.

    Raises one `FormatError` with everything that is wrong with the file: "… is not {what}: …"; or as `read_json` does.
    """
    record = read_json(path, schema)
    return checked(kind, {k: v for k, v in record.items() if k != "schema"}, f"{path} is not {what}:", complete)


def checked(kind: type[_T], value: Any, headline: str, complete: bool = False) -> _T:
    """`value` as a dataclass, or a `FormatError`: the headline, then all problems."""
    reading = Reading(complete=complete)
    found = reading.value(kind, value, "")
    if reading.problems:
        raise FormatError(all_problems(headline, reading.problems))
    return found


class Reading:
    """Notes every problem with its place; nothing that was built may be used before there is none."""

    def __init__(self, *, complete: bool = False) -> None:
        self.problems = list[str]()
        self.complete = complete
        self._parts = 0  # how many components the names so far stand for

    def value(self, kind: Any, value: Any, where: str) -> Any:
        """A value of a declared type; None where it is wrong (then the problem is noted)."""
        shape = _shape(kind)
        if value is None and shape.null:
            return None
        if shape.inner is Component:
            return self.component(value, where)
        if shape.inner is ComponentSet and isinstance(value, list):
            found = [self.component(name, f"{where}[{i}]") for i, name in enumerate(value)]
            known = tuple(component for component in found if component is not None)
            return self.attempt(lambda: ComponentSet(known), where) if len(known) == len(found) else None
        if shape.is_object and isinstance(value, dict):
            return self.fields(shape.inner, value, where)
        if shape.items and shape.is_map and isinstance(value, dict):
            return {key: self.value(shape.items, item, f"{where}[{key[:40]!r}]") for key, item in value.items()}
        if shape.items and not shape.is_map and isinstance(value, list):
            return tuple(self.value(shape.items, item, f"{where}[{i}]") for i, item in enumerate(value))
        if not shape.is_object and not shape.items and shape.inner is not ComponentSet:
            try:
                return convert(value, shape.leaf, strict=True, str_keys=True)
            except ValidationError:
                pass
        self.problems.append(f"{where or 'the whole'} must be {_wanted(kind)}, not {shown(value)}")
        return None

    def fields(self, kind: type, row: Mapping[str, Any], where: str) -> Any:
        """A dataclass from an object."""
        schema, before, dot = (
            _schema(kind),
            len(self.problems),
            where if where.endswith(": ") or not where else f"{where}.",
        )
        needed = [key for key, (_, _, default) in schema.items() if key not in row and (self.complete or not default)]
        self.problems += [f"{dot}{key} is missing" for key in needed]
        if not issubclass(kind, Open):
            self.problems += [f"{dot}{key[:40]} is not a field of this schema" for key in row if key not in schema]
        found = {
            name: self.value(inner, row[key], f"{dot}{key}") for key, (name, inner, _) in schema.items() if key in row
        }
        return self.attempt(lambda: kind(**found), where) if len(self.problems) == before else None

    def component(self, name: Any, where: str) -> Component | None:
        """A component by its canonical name, or None and a problem.

        A short name such as [m0.n0:999999999] would fill the memory, and is not even parsed.
        """
        if not isinstance(name, str):
            self.problems.append(f"{where} must be the name of a component, not {shown(name)}")
            return None
        self._parts += MAX_FILE_COMPONENTS + 1 if re.search(r"\d{10}", name) else _count_parts(name)
        if self._parts > MAX_FILE_COMPONENTS:
            self.problems.append(
                f"{where}: the names hold more than {MAX_FILE_COMPONENTS:,} parts, or numbers beyond 9 digits"
            )
            return None
        component = self.attempt(lambda: Component.parse(name), where)
        if component is not None and component.name != name:
            self.problems.append(f"{where} is {name!r}, which files write {component.name!r}")
        return component

    def attempt(self, make: Callable[[], _T], where: str = "") -> _T | None:
        """What `make` gives, or None where it raises one of our errors, which is noted."""
        try:
            return make()
        except SpexMechError as error:
            self.problems.append(f"{where}: {error}" if where else str(error))
            return None


def shown(value: Any) -> str:
    """A value for a message, short.

    >>> shown("x"), shown([1, 2]), shown({"a": 1}), shown(True)
    ("'x'", 'a list', 'an object', 'True')
    """
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


@dataclass(frozen=True)
class _Shape:
    """A type taken apart: without null, whether it is an object or a map, and the dataclass of its items, if any."""

    inner: Any
    null: bool
    is_object: bool
    is_map: bool
    items: Any
    leaf: Any


@cache
def _shape(kind: Any) -> _Shape:
    args = get_args(kind)
    rest = [arg for arg in args if arg is not NoneType] if get_origin(kind) in (UnionType, Union) else []
    inner = rest[0] if len(rest) == 1 else kind
    origin, inside = get_origin(inner), get_args(inner)
    items = inside[-1 if origin is Mapping else 0] if origin in (Mapping, tuple) else None
    items = items if isinstance(items, type) and is_dataclass(items) else None
    is_object = isinstance(inner, type) and is_dataclass(inner) and inner not in (Component, ComponentSet)
    special = is_object or items is not None or inner in (Component, ComponentSet)
    return _Shape(inner, NoneType in args, is_object, origin is Mapping, items, None if special else _finite(kind))


@cache
def _schema(kind: type) -> dict[str, tuple[str, Any, bool]]:
    """Key in the file → name of the field, its type, whether it has a default."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        f.metadata.get("key", f.name): (
            f.name, hints[f.name], f.default is not MISSING or f.default_factory is not MISSING,
        )
        for f in fields(kind)
    }  # fmt: skip


def _finite(kind: Any) -> Any:
    """The same type with numbers that float64 and int64 hold."""
    if kind is float:
        return Annotated[float, Meta(ge=-_LARGEST, le=_LARGEST)]
    if kind is int:
        return Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
    origin, args = get_origin(kind), get_args(kind)
    if origin in (UnionType, Union):
        return Union[tuple(_finite(arg) for arg in args)]  # noqa: UP007
    if origin in (tuple, list, dict, Mapping):
        return origin[tuple(arg if arg is ... else _finite(arg) for arg in args)]
    return kind


def _wanted(kind: Any) -> str:
    """A type in words.

    >>> _wanted(float | None), _wanted(tuple[str, ...]), _wanted(Mapping[int, float]), _wanted(Literal["a", "b"])
    ('a finite number or null', 'a list of texts', 'an object of finite numbers', 'one of a, b')
    """
    words = {str: "a text", float: "a finite number", int: "a whole number", bool: "true or false", NoneType: "null"}
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return next((m.description for m in args[1:] if isinstance(m, Meta) and m.description), _wanted(args[0]))
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}" if len(args) > 1 else str(args[0])
    if origin in (UnionType, Union):
        return " or ".join(_wanted(arg) for arg in args)
    if origin in (tuple, list) or kind is ComponentSet:
        return f"a list of {_many(args[0])}" if args and args[0] is not Any else "a list"
    if origin in (Mapping, dict):
        return "an object" if args[1] is Any else f"an object of {_many(args[1])}"
    return words.get(kind, "an object")


def _many(kind: Any) -> str:
    words = _wanted(kind)
    if words.startswith("a list"):
        return words.replace("a list", "lists", 1)
    return {bool: "true and false"}.get(kind) or re.sub(r"^an? (\w+ )?(\w+)", r"\1\2s", words)


def _count_parts(name: str) -> int:
    """How many components a name with ranges would expand to.

    >>> _count_parts("[m3.n0:64,a0.h1]")
    65
    """
    parts = (re.findall(r"(\d+):(\d+)", part) for part in name.split(","))
    return sum(prod(max(0, int(stop) - int(start)) for start, stop in spans) for spans in parts)
