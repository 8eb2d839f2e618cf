"""Neuronpedia's graph JSON: components as nodes, interactions as supernodes and links, for its graph viewer.

The viewer was made for graphs of direct linear effects. Ours are joint effects, which the file says in three places:
the description, ``spex_mech.edge_semantics``, and a vertex of its own for every interaction of three and more.
"""

import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from spex_mech.circuit.graph import Circuit
from spex_mech.circuit.node_scores import node_scores
from spex_mech.circuit.nodes import Interaction, Node
from spex_mech.errors import FormatError
from spex_mech.files.json import json_text
from spex_mech.formats.hif import SEMANTICS
from spex_mech.formats.projections import edge_numbers, joint_effects

_TYPES = {
    "head": "attention head",
    "kv": "key/value group",
    "attn": "attention",
    "mlp": "mlp",
    "neuron": "mlp neuron",
    "expert": "mlp expert",
    "shared": "mlp shared expert",
    "adapter": "adapter",
    "adapted": "adapter of a layer",
    "part": "part of a site",
    "group": "group",
    "segment": "part of the prompt",
    "token": "token",
}
EVERYWHERE = "(all positions)"
_ID = re.compile(r"[A-Za-z0-9_.-]{1,200}")


def to_neuronpedia(
    circuit: Circuit,
    *,
    prompt: str = "",
    prompt_tokens: Sequence[str] = (),
    scan: str = "unknown-model",
    slug: str = "spex-mech-circuit",
) -> str:
    """The circuit for Neuronpedia's graph viewer, valid under its schema.

    Every node stands in the column of its position, where it is bound to one of `prompt_tokens`; others stand in the
    last column, which is ``(all positions)``. One more node above all layers is the metric: links into it are main
    effects. A pair is a link between its two; a larger set is a vertex of its own, joined to its components. All sets
    of two and more are supernodes too.

    Args:
        prompt, prompt_tokens: what is shown above the graph. The circuit is about all prompts of its task.
        scan: the model's id at Neuronpedia; slug: the graph's name there. Letters, digits, ``_ . -``.

    Raises `FormatError`: a scan or slug with other characters, or a circuit without nodes.
    """
    wrong = [f"{name}={text!r}" for name, text in (("scan", scan), ("slug", slug)) if not _ID.fullmatch(text)]
    if wrong or not circuit.nodes:
        raise FormatError(
            f"Neuronpedia takes letters, digits, '_', '.' and '-' in {', '.join(wrong)}."
            if wrong
            else "this circuit has no nodes, and Neuronpedia shows no empty graph."
        )
    columns = [*prompt_tokens, EVERYWHERE]
    ids, top = _ids(circuit, columns), max(node.component.layer for node in circuit.nodes) + 1
    metric = f"{top + 1}_0_{len(columns) - 1}"
    larger = [i for i in joint_effects(circuit) if i.order > 2]
    vertices = {i.components: f"{top}_{number}_{len(columns) - 1}" for number, i in enumerate(larger)}
    record = {
        "metadata": _metadata(circuit, prompt, columns, scan, slug),
        "qParams": {
            "pinnedIds": list(ids.values()),
            "supernodes": [[_label(i), *(ids[name] for name in i.components)] for i in joint_effects(circuit)],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": [
            *_component_nodes(circuit, ids, columns),
            *(_node(vertices[i.components], "interaction", _label(i)) for i in larger),
            _node(metric, "metric", f"the metric ({circuit.unit})"),
        ],
        "links": _links(circuit, ids, vertices, metric),
        "spex_mech": _our_own(circuit),
    }
    return json_text(record)


def _ids(circuit: Circuit, columns: Sequence[str]) -> dict[str, str]:
    """Node ids ``layer_number_column``; numbers differ within a layer, whatever the kind of component."""
    bits = {name: i for i, name in enumerate(circuit.components.names)}
    return {n.name: f"{n.component.layer}_{bits[n.name]}_{_column(n, columns)}" for n in circuit.nodes}


def _column(node: Node, columns: Sequence[str]) -> int:
    positions = {atom.position for atom in node.component.atoms}
    bound = positions.pop() if len(positions) == 1 else None
    tokens = len(columns) - 1
    if bound is None or not -tokens <= bound < tokens:
        return tokens
    return bound % tokens


def _metadata(circuit: Circuit, prompt: str, columns: Sequence[str], scan: str, slug: str) -> dict[str, Any]:
    return {
        "slug": slug,
        "scan": scan,
        "prompt_tokens": list(columns),
        "prompt": prompt,
        "node_threshold": 1.0,
        "info": {
            "description": f"{circuit}. Links are no paths through the model: {SEMANTICS}.",
            "generator": {"name": "spex_mech", "version": version("spex-mech")},
        },
        "generation_settings": {"unit": circuit.unit, "basis": circuit.basis, "keep_prob": circuit.keep_prob},
    }


def _component_nodes(circuit: Circuit, ids: dict[str, str], columns: Sequence[str]) -> list[dict[str, Any]]:
    """`influence` is cumulative over nodes, strongest first, as the viewer's pruning slider wants it."""
    strength = {name: abs(score) for name, score in node_scores(circuit).items() if name in ids}
    total, running, influence = sum(strength.values()) or 1.0, 0.0, {}
    for name in sorted(strength, key=lambda name: -strength[name]):
        running += strength[name]
        influence[name] = min(1.0, running / total)
    return [
        _node(ids[n.name], _TYPES[n.component.kind], n.name if n.role is None else f"{n.name} ({n.role})")
        | {"influence": influence.get(n.name), "activation": n.main}
        for n in circuit.nodes
    ]


def _node(node_id: str, kind: str, text: str) -> dict[str, Any]:
    layer, number, column = node_id.split("_")
    shown = {"feature": int(number), "layer": layer, "ctx_idx": int(column), "feature_type": kind}
    return {"node_id": node_id, **shown, "jsNodeId": f"{layer}_{number}-{column}", "clerp": text}


def _links(
    circuit: Circuit, ids: dict[str, str], vertices: dict[tuple[str, ...], str], metric: str
) -> list[dict[str, Any]]:
    links = []
    for interaction in circuit.interactions:
        ends = [ids[name] for name in interaction.components]
        if interaction.order == 2:
            pairs = [(ends[0], ends[1])]
        else:
            pairs = [(end, vertices.get(interaction.components, metric)) for end in ends]
        links += [{"source": one, "target": other, "weight": interaction.coefficient} for one, other in pairs]
    return links


def _label(interaction: Interaction) -> str:
    return f"{interaction.kind} {interaction.coefficient:+.3g}: {interaction.label}"


def _our_own(circuit: Circuit) -> dict[str, Any]:
    """What the viewer has no place for, whole."""
    return {
        "schema": 1,
        "edge_semantics": SEMANTICS,
        "unit": circuit.unit,
        "basis": circuit.basis,
        "keep_prob": circuit.keep_prob,
        "interactions": [
            {"components": list(i.components), "kind": i.kind, **edge_numbers(i)} for i in circuit.interactions
        ],
    }
