"""The hypergraph interchange format (HIF): a node a component, an edge an interaction, signed weights; both ways.

Tools for hypergraphs (XGI, HyperNetX, HypergraphX, SimpleHypergraphs.jl) read it as it is. Our own reading takes any
HIF file whose nodes are component names.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spex_mech.circuit.graph import Circuit, Interaction, Node
from spex_mech.components import Component, ComponentSet
from spex_mech.errors import FormatError, all_problems
from spex_mech.files.checked_fields import NAMES, NUMBER, OBJECT, ROWS, TEXT, FieldReader, Rule, optional, or_null
from spex_mech.files.json import read_object
from spex_mech.formats.projections import edge_numbers, node_numbers
from spex_mech.names import KINDS, InteractionKind

SEMANTICS = "joint effect of the set on the metric; not a path through the model"
_ID = Rule("a text or a whole number", lambda value: isinstance(value, str) or type(value) is int)
_ATTRS = optional(OBJECT)
_TOP = {
    "network-type": optional(Rule("undirected", lambda value: value == "undirected")),
    "metadata": _ATTRS,
    "nodes": optional(ROWS),
    "edges": optional(ROWS),
    "incidences": ROWS,
}
_META = {
    "unit": optional(TEXT),
    "basis": optional(TEXT),
    "keep_prob": optional(or_null(NUMBER)),
    "link": optional(TEXT),
    "baseline": optional(or_null(NUMBER)),
    "components": optional(NAMES),
}
_NODE = {"node": TEXT, "weight": optional(NUMBER), "attrs": _ATTRS}
_NODE_ATTRS = {"main": optional(NUMBER), "stderr": optional(NUMBER), "role": optional(TEXT)}
_EDGE = {"edge": _ID, "weight": optional(NUMBER), "attrs": _ATTRS}
_KNOWN = {name: optional(NUMBER) for name in ("stderr", "q_value", "stability", "knockout")}
_EDGE_ATTRS = {"kind": optional(Rule(f"one of {', '.join(KINDS)}", lambda value: value in KINDS)), **_KNOWN}
_INCIDENCE = {"edge": _ID, "node": TEXT, "weight": optional(NUMBER), "attrs": _ATTRS}


def to_hif(circuit: Circuit) -> str:
    """The circuit as HIF: order-1 interactions are edges too; what was studied but not found is in the metadata."""
    edges, incidences = [], []
    for number, interaction in enumerate(circuit.interactions):
        attributes = {"kind": interaction.kind, **edge_numbers(interaction)}
        edges.append({"edge": f"i{number}", "weight": interaction.coefficient, "attrs": attributes})
        incidences += [{"edge": f"i{number}", "node": name} for name in interaction.components]
    header = {key: getattr(circuit, key) for key in ("unit", "basis", "keep_prob", "link", "baseline")}
    record = {
        "network-type": "undirected",
        "metadata": {
            "generator": "spex_mech",
            **header,
            "components": list(circuit.components.names),
            "edge_semantics": SEMANTICS,
        },
        "nodes": [{"node": n.name, "attrs": {"kind": n.component.kind, **node_numbers(n)}} for n in circuit.nodes],
        "edges": edges,
        "incidences": incidences,
    }
    return json.dumps(record, indent=1, allow_nan=False) + "\n"


def read_hif(path: str | Path) -> Circuit:
    """A circuit from an undirected HIF file whose nodes are component names and whose edges have weights.

    The metadata of `to_hif` is used where it is there; else the unit is "weight", and positive edges are synergies.

    Raises:
        FormatError: the file cannot be trusted (see `files.json.read_json`), or fields are missing, of a wrong type
            or do not fit together; all problems at once.
    """
    reader = _HifReader()
    circuit = reader.circuit(read_object(path))
    if circuit is None:
        raise FormatError(all_problems(f"{path} is not a circuit in HIF:", reader.problems))
    return circuit


class _HifReader(FieldReader):
    """The fields of HIF, and of the attributes that we write."""

    def circuit(self, record: Mapping[str, Any]) -> Circuit | None:
        top = self.fields(record, "", _TOP)
        meta = self.fields(top["metadata"] or {}, "metadata.", _META, strict=False)
        nodes = [self.node(row, f"nodes[{i}].") for i, row in enumerate(top["nodes"] or [])]
        members = self.members(top["incidences"] or [])
        rows = enumerate(top["edges"] or [])
        interactions = [self.interaction(row, f"edges[{i}].", members) for i, row in rows]
        self.problems += [f"incidences name the edge {key!r}, which edges has not" for key in members]
        names = meta["components"] or [node.name for node in nodes if node]
        components = [self.component(name, f"metadata.components[{i}]") for i, name in enumerate(names)]
        if self.problems:
            return None
        there = {node.name for node in nodes if node}
        extra = {name for edge in interactions if edge for name in edge.components} - there
        header = {key: value for key, value in meta.items() if key != "components" and value is not None}
        return self.attempt(
            lambda: Circuit(
                components=ComponentSet(tuple(c for c in components if c)),
                nodes=tuple(node for node in nodes if node) + tuple(Node(Component.parse(name)) for name in extra),
                interactions=tuple(edge for edge in interactions if edge),
                **{"unit": "weight", **header},
            )
        )

    def node(self, row: Mapping[str, Any], where: str) -> Node | None:
        values = self.fields(row, where, _NODE)
        component = self.component(values["node"], f"{where}node")
        attributes = self.fields(values["attrs"] or {}, f"{where}attrs.", _NODE_ATTRS, strict=False)
        return None if component is None else Node(component, **attributes)

    def members(self, rows: list[dict[str, Any]]) -> dict[str | int, list[str]]:
        """The nodes of every edge; more than one of the same stays, and is told later."""
        found: dict[str | int, list[str]] = {}
        for number, row in enumerate(rows):
            values = self.fields(row, f"incidences[{number}].", _INCIDENCE)
            name = values["node"]
            if values["edge"] is not None and name is not None and self.component(name, f"incidences[{number}].node"):
                found.setdefault(values["edge"], []).append(name)
        return found

    def interaction(
        self, row: Mapping[str, Any], where: str, members: dict[str | int, list[str]]
    ) -> Interaction | None:
        values = self.fields(row, where, _EDGE)
        attributes = self.fields(values["attrs"] or {}, f"{where}attrs.", _EDGE_ATTRS, strict=False)
        names = members.pop(values["edge"], None) if values["edge"] is not None else None
        if not names or values["weight"] is None:
            self.problems.append(f"{where[:-1]} has {'no weight' if names else 'no nodes, or stands there twice'}")
            return None
        sign: InteractionKind = "synergy" if values["weight"] > 0 else "redundancy"
        kind = attributes.pop("kind") or ("main" if len(names) == 1 else sign)
        return Interaction(tuple(names), values["weight"], kind, **attributes)
