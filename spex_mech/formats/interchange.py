"""Circuits in the formats of other tools, out and in. Each exporter says what its format loses.

Graph formats get the bipartite graph: one vertex a component, one an interaction of order 2 or more, an edge for each
membership. Nothing about an interaction is lost that way, whatever its order.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spex_mech.circuit.codec import circuit_json
from spex_mech.circuit.graph import Circuit, load_circuit
from spex_mech.circuit.nodes import Node
from spex_mech.errors import FormatError
from spex_mech.files.json import read_object, write_whole
from spex_mech.formats.hif import read_hif, to_hif
from spex_mech.formats.mib import MAX_FILE, read_mib, to_mib
from spex_mech.formats.neuronpedia import to_neuronpedia
from spex_mech.formats.projections import joint_effects, to_clique_json, to_networkx, to_node_link
from spex_mech.names import FormatName

_COLOURS = {"synergy": "#009E73", "redundancy": "#CC79A7", "main": "#888888"}


@dataclass(frozen=True)
class Format:
    """How a circuit is written, what is lost by it, and what the caller may say besides."""

    render: Callable[..., str]
    note: str
    options: tuple[str, ...] = ()


def export(circuit: Circuit, path: str | Path, to: str, **options: Any) -> str:
    """Write a circuit in another format; returns one sentence on what the format does not hold.

    Args:
        to: "json" (ours, lossless), "hif" (hypergraph interchange format), "neuronpedia" (its graph viewer), "mib"
            (EAP-IG and the MIB benchmark), "graphml", "gexf", "dot", "node-link" (networkx), "clique" (networkx; pairs
            only).
        options: "mib" takes ``config`` (see `to_mib`); "neuronpedia" takes ``prompt``, ``prompt_tokens``, ``scan`` and
            ``slug`` (see `to_neuronpedia`).

    Raises:
        FormatError: an unknown format or option (the known ones are listed), a circuit that the format cannot hold, or
            a file that cannot be written.
    """
    if to not in EXPORTERS:
        raise FormatError(f"there is no format {to!r}; the formats are {', '.join(EXPORTERS)}.")
    chosen = EXPORTERS[to]
    strange = [name for name in options if name not in chosen.options]
    if strange:
        raise FormatError(
            f"format {to!r} takes no option {', '.join(strange)}; it takes {', '.join(chosen.options) or 'none'}."
        )
    write_whole(path, chosen.render(circuit, **options))
    return chosen.note


def read_circuit(path: str | Path) -> Circuit:
    """A circuit from our own JSON, from HIF, or from EAP-IG's and MIB's JSON, whichever the file is.

    Raises `FormatError` as `load_circuit`, `read_hif` and `read_mib` do, or where the file is none of these.
    """
    record = read_object(path, nan_is_null=True, max_bytes=MAX_FILE)
    for key, read in (("schema", load_circuit), ("incidences", read_hif), ("cfg", read_mib)):
        if key in record:
            return read(path)
    raise FormatError(
        f"{path} is no circuit: it has neither 'schema' (ours), nor 'incidences' (HIF), nor 'cfg' (EAP-IG, MIB). It "
        f"has {', '.join(str(key)[:20] for key in list(record)[:5]) or 'nothing'}."
    )


def _well_formed(xml: str) -> str:
    """XML without the characters that it has no place for, not even as references; a role may hold them."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", xml)


def to_graphml(circuit: Circuit) -> str:
    """GraphML of the bipartite graph, for Gephi, Cytoscape and yEd."""
    import networkx as nx

    return _well_formed("\n".join(nx.generate_graphml(to_networkx(circuit)))) + "\n"


def to_gexf(circuit: Circuit) -> str:
    """GEXF 1.2 of the bipartite graph, for Gephi."""
    import networkx as nx

    return _well_formed("\n".join(nx.generate_gexf(to_networkx(circuit)))) + "\n"


def to_dot(circuit: Circuit) -> str:
    """Graphviz text, a rank a layer; interactions of three and more become small vertices with spokes."""
    lines = ["graph circuit {", "  rankdir=BT; splines=true; node [fontname=Helvetica];"]
    layers: dict[int, list[Node]] = {}
    for node in circuit.nodes:
        here = -1 if node.component.is_input else 10**9 if node.component.is_labelled else node.component.layer
        layers.setdefault(here, []).append(node)
    for layer, nodes in sorted(layers.items()):
        members = " ".join(f"{_quoted(n.name)} [shape={_shape(n)}];" for n in nodes)
        lines.append(f"  {{ rank=same; /* {_rank(layer)} */ {members} }}")
    largest = max((abs(i.coefficient) for i in joint_effects(circuit)), default=1.0) or 1.0
    for number, interaction in enumerate(joint_effects(circuit)):
        look = f'color="{_COLOURS[interaction.kind]}", penwidth={0.5 + 4 * abs(interaction.coefficient) / largest:.2f}'
        label = f"{interaction.coefficient:+.3g}"
        if interaction.order == 2:
            one, other = map(_quoted, interaction.components)
            lines.append(f'  {one} -- {other} [label="{label}", {look}];')
            continue
        lines.append(f'  i{number} [shape=point, xlabel="{label}", {look}];')
        lines += [f"  i{number} -- {_quoted(name)} [{look}];" for name in interaction.components]
    return "\n".join([*lines, "}"]) + "\n"


def _rank(layer: int) -> str:
    return "input" if layer < 0 else "beside the layers" if layer == 10**9 else f"layer {layer}"


def _shape(node: Node) -> str:
    return "ellipse" if node.component.kind in ("head", "kv", "attn") else "box"


def _quoted(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


_AS_VERTICES = "an interaction is a vertex joined to its components"
EXPORTERS: dict[FormatName, Format] = {
    "json": Format(circuit_json, "Nothing is lost."),
    "hif": Format(to_hif, "Lost: the provenance and the energy by order."),
    "neuronpedia": Format(
        to_neuronpedia,
        "Lost: the provenance. Links are joint effects, not paths; sets of three and more are vertices of their own.",
        ("prompt", "prompt_tokens", "scan", "slug"),
    ),
    "mib": Format(
        to_mib,
        "Lost: the interactions (a node's score sums up its own), and the provenance; edges have no scores of their "
        "own, so evaluate it at node level.",
        ("config",),
    ),
    "graphml": Format(to_graphml, f"Lost: the provenance; {_AS_VERTICES}."),
    "gexf": Format(to_gexf, f"Lost: the provenance and the graph's unit; {_AS_VERTICES}."),
    "dot": Format(to_dot, "Lost: everything but coefficients and kinds; it is a drawing."),
    "node-link": Format(to_node_link, f"Lost: the provenance; {_AS_VERTICES}."),
    "clique": Format(to_clique_json, "Lost: which sets there are; only pairs are left, with sums of coefficients."),
}
