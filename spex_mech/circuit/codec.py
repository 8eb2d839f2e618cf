"""The circuit's own file: versioned JSON, lossless, the same bytes for the same circuit, every field checked."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spex_mech.circuit.graph import Circuit, Interaction, Node
from spex_mech.components import ComponentSet
from spex_mech.errors import FormatError, all_problems
from spex_mech.files.checked_fields import NAMES, NUMBER, OBJECT, ROWS, TEXT, FieldReader, Rule, or_null
from spex_mech.files.json import is_number, plain_problems, read_json, sorted_keys, write_whole
from spex_mech.names import KINDS

CIRCUIT_SCHEMA = "spex_mech.circuit/1"


def circuit_json(circuit: Circuit) -> str:
    """The file's text: keys and terms in a fixed order, every float by its shortest exact digits, unknown as null.

    Raises `FormatError` where the evidence is not plain JSON data (`circuit.build.plain` makes it so).
    """
    problems = plain_problems(circuit.evidence, "evidence")
    if problems:
        raise FormatError(all_problems("the evidence of this circuit cannot be kept in a file:", problems))
    record = {
        "schema": CIRCUIT_SCHEMA,
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
    return write_whole(path, circuit_json(circuit))


def load_circuit(path: str | Path) -> Circuit:
    """Read a circuit's file; the circuit is equal to the saved one, to the last bit.

    Raises:
        FormatError: the file is missing, larger than 64 MiB, nested deeper than 32, not JSON, of another schema, or
            has fields that are missing, unknown, of a wrong type, or do not fit together; all problems at once.
    """
    record = read_json(path, CIRCUIT_SCHEMA)
    reader = _Reader()
    circuit = reader.circuit(record)
    if circuit is None:
        raise FormatError(all_problems(f"{path} is not a sound circuit file:", reader.problems))
    return circuit


_KIND = Rule(f"one of {', '.join(KINDS)}", lambda value: value in KINDS)
_ENERGY = Rule(
    "an object of numbers by order",
    lambda value: isinstance(value, dict) and all(map(_is_order, value)) and all(map(is_number, value.values())),
)
_SCALARS = {
    "unit": TEXT,
    "basis": TEXT,
    "keep_prob": or_null(NUMBER),
    "link": TEXT,
    "baseline": or_null(NUMBER),
}
_CIRCUIT = {
    "schema": TEXT,
    **_SCALARS,
    "components": NAMES,
    "nodes": ROWS,
    "interactions": ROWS,
    "energy": _ENERGY,
    "evidence": OBJECT,
}
_NODE = {"component": TEXT, "main": or_null(NUMBER), "stderr": or_null(NUMBER), "role": or_null(TEXT)}
_INTERACTION = {
    "components": NAMES,
    "coefficient": NUMBER,
    "kind": _KIND,
    "stderr": or_null(NUMBER),
    "q_value": or_null(NUMBER),
    "stability": or_null(NUMBER),
    "knockout": or_null(NUMBER),
}


class _Reader(FieldReader):
    """The fields of our own schema."""

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


def _is_order(key: str) -> bool:
    return key.isascii() and key.isdecimal() and len(key) < 7 and str(int(key)) == key
