"""Circuits in the formats of other tools. Each exporter says what its format loses.

Graph formats get the bipartite graph: one vertex a component, one an interaction of order 2 or more, an edge for each
membership. Nothing about an interaction is lost that way, whatever its order.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spex_mech.circuit.codec import dumps
from spex_mech.circuit.files import write_whole
from spex_mech.circuit.graph import Circuit, Interaction, Node
from spex_mech.errors import FormatError

if TYPE_CHECKING:
    import networkx as nx

_COLOURS = {"synergy": "#009E73", "redundancy": "#CC79A7", "main": "#888888"}


def export(circuit: Circuit, path: str | Path, to: str) -> str:
    """Write a circuit in another format; returns one sentence on what the format does not hold.

    Args:
        to: "json" (ours, lossless), "hif" (hypergraph interchange format), "graphml", "gexf", "dot".

    Raises:
        FormatError: an unknown format (the known ones are listed), or a file that cannot be written.
    """
    if to not in EXPORTERS:
        raise FormatError(f"there is no format {to!r}; the formats are {', '.join(EXPORTERS)}.")
    render, note = EXPORTERS[to]
    write_whole(path, render(circuit))
    return note


def to_networkx(circuit: Circuit) -> "nx.Graph":
    """The bipartite graph: component vertices (``bipartite=0``) and interaction vertices (``bipartite=1``).

    Attributes hold plain numbers and strings; what is unknown is left out.
    """
    import networkx as nx

    graph = nx.Graph(unit=circuit.unit, basis=circuit.basis, generator="spex_mech")
    for key, value in (
        ("keep_prob", circuit.keep_prob),
        ("baseline", circuit.baseline),
        ("heldout_r2", circuit.heldout_r2),
    ):
        if _known(value):
            graph.graph[key] = value
    for node in circuit.nodes:
        graph.add_node(node.name, bipartite=0, label=node.name, kind=node.component.kind, **_node_numbers(node))
    for number, interaction in enumerate(_joint(circuit)):
        vertex = f"i{number}"
        graph.add_node(vertex, bipartite=1, label=interaction.label, kind=interaction.kind, **_numbers(interaction))
        graph.add_edges_from((vertex, name, {"weight": interaction.coefficient}) for name in interaction.components)
    return graph


def to_graphml(circuit: Circuit) -> str:
    """GraphML of the bipartite graph, for Gephi, Cytoscape and yEd."""
    import networkx as nx

    return "\n".join(nx.generate_graphml(to_networkx(circuit))) + "\n"


def to_gexf(circuit: Circuit) -> str:
    """GEXF 1.2 of the bipartite graph, for Gephi."""
    import networkx as nx

    return "\n".join(nx.generate_gexf(to_networkx(circuit))) + "\n"


def to_hif(circuit: Circuit) -> str:
    """Hypergraph interchange format: a node a component, an edge an interaction (order 1 included), signed weights."""
    edges, incidences = [], []
    for number, interaction in enumerate(circuit.interactions):
        attributes = {"order": interaction.order, "kind": interaction.kind, **_numbers(interaction)}
        edges.append({"edge": f"i{number}", "weight": interaction.coefficient, "attrs": attributes})
        incidences += [{"edge": f"i{number}", "node": name} for name in interaction.components]
    record = {
        "network-type": "undirected",
        "metadata": {
            "generator": "spex_mech",
            "unit": circuit.unit,
            "basis": circuit.basis,
            "keep_prob": circuit.keep_prob,
            "edge_semantics": "joint effect of the set on the metric; not a path through the model",
        },
        "nodes": [{"node": n.name, "attrs": {"kind": n.component.kind, **_node_numbers(n)}} for n in circuit.nodes],
        "edges": edges,
        "incidences": incidences,
    }
    return json.dumps(record, indent=1, allow_nan=False) + "\n"


def to_dot(circuit: Circuit) -> str:
    """Graphviz text, a rank a layer; interactions of three and more become small vertices with spokes."""
    lines = ["graph circuit {", "  rankdir=BT; splines=true; node [fontname=Helvetica];"]
    layers: dict[int, list[Node]] = {}
    for node in circuit.nodes:
        layers.setdefault(node.component.layer, []).append(node)
    for layer, nodes in sorted(layers.items()):
        members = " ".join(f"{_quoted(n.name)} [shape={_shape(n)}];" for n in nodes)
        lines.append(f"  {{ rank=same; /* layer {layer} */ {members} }}")
    largest = max((abs(i.coefficient) for i in _joint(circuit)), default=1.0) or 1.0
    for number, interaction in enumerate(_joint(circuit)):
        look = f'color="{_COLOURS[interaction.kind]}", penwidth={0.5 + 4 * abs(interaction.coefficient) / largest:.2f}'
        label = f"{interaction.coefficient:+.3g}"
        if interaction.order == 2:
            one, other = map(_quoted, interaction.components)
            lines.append(f'  {one} -- {other} [label="{label}", {look}];')
            continue
        lines.append(f'  i{number} [shape=point, xlabel="{label}", {look}];')
        lines += [f"  i{number} -- {_quoted(name)} [{look}];" for name in interaction.components]
    return "\n".join([*lines, "}"]) + "\n"


def _joint(circuit: Circuit) -> list[Interaction]:
    return [interaction for interaction in circuit.interactions if interaction.order > 1]


def _numbers(interaction: Interaction) -> dict[str, Any]:
    names = ("coefficient", "stderr", "q_value", "stability", "knockout")
    found = {name: getattr(interaction, name) for name in names}
    return {"order": interaction.order, **{name: value for name, value in found.items() if _known(value)}}


def _node_numbers(node: Node) -> dict[str, Any]:
    found = {"layer": node.component.layer, "main": node.main, "role": node.role}
    return {name: value for name, value in found.items() if _known(value)}


def _known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def _shape(node: Node) -> str:
    return "ellipse" if node.component.kind in ("head", "kv", "attn") else "box"


def _quoted(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


EXPORTERS: dict[str, tuple[Callable[[Circuit], str], str]] = {
    "json": (dumps, "Nothing is lost."),
    "hif": (to_hif, "Lost: the provenance, and components that are in no interaction."),
    "graphml": (to_graphml, "Lost: the provenance; an interaction is a vertex joined to its components."),
    "gexf": (
        to_gexf,
        "Lost: the provenance and the graph's unit; an interaction is a vertex joined to its components.",
    ),
    "dot": (to_dot, "Lost: everything but coefficients and kinds; it is a drawing."),
}
