"""The hypergraph interchange format (HIF): a node a component, an edge an interaction, signed weights; both ways.

Tools for hypergraphs (XGI, HyperNetX, HypergraphX, SimpleHypergraphs.jl) read it as it is. Our own reading takes any
HIF file whose nodes are component names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from spex_mech.circuit.graph import Circuit
from spex_mech.circuit.nodes import Interaction, Node
from spex_mech.components import Component, ComponentSet
from spex_mech.errors import FormatError, all_problems
from spex_mech.files.json import json_text, read_object
from spex_mech.files.schema import Open, Reading, checked
from spex_mech.formats.projections import edge_numbers, node_numbers
from spex_mech.names import InteractionKind

SEMANTICS = "joint effect of the set on the metric; not a path through the model"
_Id = str | int


@dataclass(frozen=True)
class _NodeAttrs(Open):
    main: float | None = None
    stderr: float | None = None
    role: str | None = None


@dataclass(frozen=True)
class _NodeRow:
    node: Component
    weight: float = 0.0
    attrs: _NodeAttrs = _NodeAttrs()


@dataclass(frozen=True)
class _EdgeAttrs(Open):
    kind: InteractionKind | None = None
    stderr: float | None = None
    q_value: float | None = None
    stability: float | None = None
    knockout: float | None = None


@dataclass(frozen=True)
class _EdgeRow:
    edge: _Id
    weight: float
    attrs: _EdgeAttrs = _EdgeAttrs()


@dataclass(frozen=True)
class _Incidence:
    edge: _Id
    node: Component
    weight: float = 0.0
    attrs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Header(Open):
    unit: str = "weight"
    basis: str = "walsh"
    keep_prob: float | None = None
    link: str = "identity"
    baseline: float | None = None
    components: ComponentSet | None = None


@dataclass(frozen=True)
class _HifFile:
    incidences: tuple[_Incidence, ...]
    network: Literal["undirected"] = field(default="undirected", metadata={"key": "network-type"})
    metadata: _Header = _Header()
    nodes: tuple[_NodeRow, ...] = ()
    edges: tuple[_EdgeRow, ...] = ()


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
    return json_text(record)


def read_hif(path: str | Path) -> Circuit:
    """A circuit from an undirected HIF file whose nodes are component names and whose edges have weights.

    The metadata of `to_hif` is used where it is there; else the unit is "weight", and positive edges are synergies.

    Raises:
        FormatError: the file cannot be trusted (see `files.json.read_json`), or fields are missing, of a wrong type
            or do not fit together; all problems at once.
    """
    headline, reading = f"{path} is not a circuit in HIF:", Reading()
    file = checked(_HifFile, read_object(path), headline)
    circuit = reading.attempt(lambda: _circuit(file, reading.problems))
    if circuit is None:
        raise FormatError(all_problems(headline, reading.problems))
    return circuit


def _circuit(file: _HifFile, problems: list[str]) -> Circuit | None:
    """What the rows say together; None where they do not fit (then what does not is noted)."""
    members: dict[_Id, list[str]] = {}
    for row in file.incidences:
        members.setdefault(row.edge, []).append(row.node.name)
    edges = [_interaction(row, members.pop(row.edge, []), i, problems) for i, row in enumerate(file.edges)]
    problems += [f"incidences name the edge {key!r}, which edges has not" for key in members]
    if problems:
        return None
    interactions = tuple(edge for edge in edges if edge is not None)
    nodes = {row.node.name: Node(row.node, row.attrs.main, row.attrs.stderr, row.attrs.role) for row in file.nodes}
    if len(nodes) < len(file.nodes):
        problems.append("a node is there twice")
        return None
    extra = {name for edge in interactions for name in edge.components} - set(nodes)
    head = file.metadata
    return Circuit(
        head.components or ComponentSet(tuple(node.component for node in nodes.values())),
        (*nodes.values(), *(Node(Component.parse(name)) for name in extra)),
        interactions,
        head.unit,
        head.basis,
        head.keep_prob,
        head.link,
        head.baseline,
    )


def _interaction(row: _EdgeRow, names: list[str], number: int, problems: list[str]) -> Interaction | None:
    if not names:
        problems.append(f"edges[{number}] has no nodes, or stands there twice")
        return None
    sign: InteractionKind = "synergy" if row.weight > 0 else "redundancy"
    a = row.attrs
    kind = a.kind or ("main" if len(names) == 1 else sign)
    return Interaction(tuple(names), row.weight, kind, a.stderr, a.q_value, a.stability, a.knockout)
