"""A circuit as an ordinary graph: bipartite (whole), or every joint effect as a clique of pairs (lossy)."""

import math
from itertools import combinations
from typing import TYPE_CHECKING, Any

from spex_mech.circuit.graph import Circuit
from spex_mech.circuit.nodes import Interaction, Node
from spex_mech.files.json import json_text

if TYPE_CHECKING:
    import networkx as nx

MAX_CLIQUE = 64  # components of one interaction that are drawn as pairs: 2,016 edges


def to_networkx(circuit: Circuit) -> "nx.Graph":
    """The bipartite graph: component vertices (``bipartite=0``) and interaction vertices (``bipartite=1``).

    An interaction of order 2 or more is a vertex joined to its components; a main effect is its component's ``main``.
    Attributes hold plain numbers and strings; what is unknown is left out.
    """
    graph = _graph_of(circuit)
    for node in circuit.nodes:
        graph.add_node(node.name, bipartite=0, label=node.name, kind=node.component.kind, **node_numbers(node))
    for number, interaction in enumerate(joint_effects(circuit)):
        vertex = f"i{number}"
        graph.add_node(vertex, bipartite=1, label=interaction.label, kind=interaction.kind, **edge_numbers(interaction))
        graph.add_edges_from((vertex, name, {"weight": interaction.coefficient}) for name in interaction.components)
    return graph


def to_clique(circuit: Circuit) -> "nx.Graph":
    """The clique projection, marked ``lossy=True``: two components are joined where some interaction has both.

    An edge's ``weight`` is Σ F(S) over the interactions S that hold both ends, ``strength`` Σ |F(S)|, ``largest`` the
    order of the largest. A triple and its three pairs look alike here; interactions of more than 64 are left out.
    """
    graph = _graph_of(circuit)
    graph.graph["lossy"] = True
    for node in circuit.nodes:
        graph.add_node(node.name, label=node.name, kind=node.component.kind, **node_numbers(node))
    for interaction in joint_effects(circuit):
        for one, other in combinations(interaction.components if interaction.order <= MAX_CLIQUE else (), 2):
            before = graph.get_edge_data(one, other) or {"weight": 0.0, "strength": 0.0, "largest": 0}
            graph.add_edge(
                one,
                other,
                weight=before["weight"] + interaction.coefficient,
                strength=before["strength"] + abs(interaction.coefficient),
                largest=max(before["largest"], interaction.order),
            )
    return graph


def to_node_link(circuit: Circuit) -> str:
    """The bipartite graph as networkx's node-link JSON (``networkx.node_link_graph(…, edges="edges")`` reads it)."""
    return _node_link(to_networkx(circuit))


def to_clique_json(circuit: Circuit) -> str:
    """The clique projection as networkx's node-link JSON."""
    return _node_link(to_clique(circuit))


def joint_effects(circuit: Circuit) -> list[Interaction]:
    """The interactions of order 2 and more, strongest first."""
    return [interaction for interaction in circuit.interactions if interaction.order > 1]


def edge_numbers(interaction: Interaction) -> dict[str, Any]:
    """An interaction's order and the numbers of it that are known."""
    names = ("coefficient", "stderr", "q_value", "stability", "knockout")
    found = {name: getattr(interaction, name) for name in names}
    return {"order": interaction.order, **{name: value for name, value in found.items() if known(value)}}


def node_numbers(node: Node) -> dict[str, Any]:
    """A node's layer, and what else of it is known."""
    found = {"layer": node.component.layer, "main": node.main, "stderr": node.stderr, "role": node.role}
    return {name: value for name, value in found.items() if known(value)}


def known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def _graph_of(circuit: Circuit) -> "nx.Graph":
    import networkx as nx

    graph = nx.Graph(unit=circuit.unit, basis=circuit.basis, generator="spex_mech")
    for key in ("keep_prob", "baseline", "heldout_r2"):
        if known(getattr(circuit, key)):
            graph.graph[key] = getattr(circuit, key)
    return graph


def _node_link(graph: "nx.Graph") -> str:
    import networkx as nx

    return json_text(nx.node_link_data(graph, edges="edges"))
