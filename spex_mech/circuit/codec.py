"""The circuit's own file: versioned JSON, lossless, the same bytes for the same circuit, every field checked."""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from spex_mech.circuit.files import is_number, plain_problems, read_json, sorted_keys, write_whole
from spex_mech.circuit.graph import Circuit, Interaction, Node
from spex_mech.circuit.kinds import KINDS
from spex_mech.components import Component, ComponentSet
from spex_mech.errors import FormatError, SpexMechError, all_problems

SCHEMA = "spex_mech.circuit/1"
MAX_PARTS = 4_000_000  # components named in one file, members of groups included

T = TypeVar("T")


def dumps(circuit: Circuit) -> str:
    """The file's text: keys and terms in a fixed order, every float by its shortest exact digits, unknown as null.

    Raises `FormatError` where the evidence is not plain JSON data (`circuit.build.plain` makes it so).
    """
    problems = plain_problems(circuit.evidence, "evidence")
    if problems:
        raise FormatError(all_problems("the evidence of this circuit cannot be kept in a file:", problems))
    record = {
        "schema": SCHEMA,
        **{key: getattr(circuit, key) for key in _SCALARS},
        "components": list(circuit.components.names),
        "nodes": [{"component": n.name, "main": n.main, "stderr": n.stderr, "role": n.role} for n in circuit.nodes],
        "interactions": [{key: getattr(i, key) for key in _INTERACTION} for i in circuit.interactions],
        "energy": {str(order): circuit.energy[order] for order in sorted(circuit.energy)},
        "evidence": sorted_keys(circuit.evidence),
    }
    return json.dumps(record, indent=1, allow_nan=False) + "\n"


def save_circuit(circuit: Circuit, path: str | Path) -> Path:
    """Write the circuit's file, whole or not at all; returns its path. Raises `FormatError` where that cannot be."""
    return write_whole(path, dumps(circuit))


def load_circuit(path: str | Path) -> Circuit:
    """Read a circuit's file; the circuit is equal to the saved one, to the last bit.

    Raises:
        FormatError: the file is missing, larger than 64 MiB, nested deeper than 32, not JSON, of another schema, or
            has fields that are missing, unknown, of a wrong type, or do not fit together; all problems at once.
    """
    record = read_json(path, SCHEMA)
    reader = _Reader()
    circuit = reader.circuit(record)
    if circuit is None:
        raise FormatError(all_problems(f"{path} is not a sound circuit file:", reader.problems))
    return circuit


class _Rule:
    """What a field must be: a test, and the words for it."""

    def __init__(self, wanted: str, test: Callable[[Any], bool]) -> None:
        self.wanted, self.test = wanted, test


def _or_null(rule: _Rule) -> _Rule:
    return _Rule(f"{rule.wanted} or null", lambda value: value is None or rule.test(value))


_TEXT = _Rule("a text", lambda value: isinstance(value, str))
_NUMBER = _Rule("a finite number", is_number)
_NAMES = _Rule("a list of names", lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value))
_ROWS = _Rule("a list of objects", lambda value: isinstance(value, list) and all(isinstance(v, dict) for v in value))
_OBJECT = _Rule("an object", lambda value: isinstance(value, dict))
_KIND = _Rule(f"one of {', '.join(KINDS)}", lambda value: value in KINDS)
_ENERGY = _Rule(
    "an object of numbers by order",
    lambda value: isinstance(value, dict) and all(map(_is_order, value)) and all(map(is_number, value.values())),
)
_SCALARS = {
    "unit": _TEXT,
    "basis": _TEXT,
    "keep_prob": _or_null(_NUMBER),
    "link": _TEXT,
    "baseline": _or_null(_NUMBER),
}
_CIRCUIT = {
    "schema": _TEXT,
    **_SCALARS,
    "components": _NAMES,
    "nodes": _ROWS,
    "interactions": _ROWS,
    "energy": _ENERGY,
    "evidence": _OBJECT,
}
_NODE = {"component": _TEXT, "main": _or_null(_NUMBER), "stderr": _or_null(_NUMBER), "role": _or_null(_TEXT)}
_INTERACTION = {
    "components": _NAMES,
    "coefficient": _NUMBER,
    "kind": _KIND,
    "stderr": _or_null(_NUMBER),
    "q_value": _or_null(_NUMBER),
    "stability": _or_null(_NUMBER),
    "knockout": _or_null(_NUMBER),
}


class _Reader:
    """Reads field by field and collects what is wrong; nothing is handed out unless all is right."""

    def __init__(self) -> None:
        self.problems = list[str]()
        self.parts = 0

    def circuit(self, record: Mapping[str, Any]) -> Circuit | None:
        top = self.fields(record, "", _CIRCUIT)
        components = [self.component(name, f"components[{i}]") for i, name in enumerate(top["components"] or [])]
        nodes = [self.node(row, f"nodes[{i}].") for i, row in enumerate(top["nodes"] or [])]
        rows = enumerate(top["interactions"] or [])
        interactions = [self.fields(row, f"interactions[{i}].", _INTERACTION) for i, row in rows]
        if self.problems:
            return None
        return self.attempt(
            lambda: Circuit(
                components=ComponentSet(tuple(c for c in components if c)),
                nodes=tuple(node for node in nodes if node),
                interactions=tuple(Interaction(**{**i, "components": tuple(i["components"])}) for i in interactions),
                energy={int(order): energy for order, energy in top["energy"].items()},
                evidence=top["evidence"],
                **{key: top[key] for key in _SCALARS},
            )
        )

    def node(self, row: Mapping[str, Any], where: str) -> Node | None:
        values = self.fields(row, where, _NODE)
        component = self.component(values.pop("component"), f"{where}component")
        return None if component is None else Node(component, **values)

    def component(self, name: str | None, where: str) -> Component | None:
        if name is None or not self.small(name, where):
            return None
        component = self.attempt(lambda: Component.parse(name), f"{where}: ")
        if component is not None and component.name != name:
            self.problems.append(f"{where} is {name!r}, which files write {component.name!r}")
        return component

    def small(self, name: str, where: str) -> bool:
        """Whether a name may be parsed: a short one such as [m0.n0:999999999] would fill the memory."""
        self.parts += MAX_PARTS + 1 if re.search(r"\d{10}", name) else _parts(name)
        if self.parts > MAX_PARTS:
            self.problems.append(f"{where}: the names hold more than {MAX_PARTS:,} parts, or numbers beyond 9 digits")
        return self.parts <= MAX_PARTS

    def fields(self, row: Mapping[str, Any], where: str, rules: Mapping[str, _Rule]) -> dict[str, Any]:
        """Every field of the rules, None where it is missing or wrong (then the problem is noted)."""
        self.problems += [f"{where}{key} is missing" for key in rules if key not in row]
        self.problems += [f"{where}{key[:40]} is not a field of this schema" for key in row if key not in rules]
        wrong = [key for key, rule in rules.items() if key in row and not rule.test(row[key])]
        self.problems += [f"{where}{key} must be {rules[key].wanted}, not {_shown(row[key])}" for key in wrong]
        return {key: None if key in wrong else row.get(key) for key in rules}

    def attempt(self, make: Callable[[], T], where: str = "") -> T | None:
        try:
            return make()
        except SpexMechError as error:
            self.problems.append(f"{where}{error}")
            return None


def _parts(name: str) -> int:
    """How many components a name with ranges would expand to.

    >>> _parts("[m3.n0:64,a0.h1]")
    65
    """
    parts = (re.findall(r"(\d+):(\d+)", part) for part in name.split(","))
    return sum(math.prod(max(0, int(stop) - int(start)) for start, stop in spans) for spans in parts)


def _is_order(key: str) -> bool:
    return key.isascii() and key.isdecimal() and len(key) < 7 and str(int(key)) == key


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
