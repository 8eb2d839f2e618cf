"""Exports are read back by the libraries they are meant for; figures hold what the circuit holds."""

import builtins
import json
from dataclasses import replace

import jsonschema
import networkx as nx
import pytest

from spex_mech.circuit.graph import Circuit
from spex_mech.circuit.nodes import Interaction, Node
from spex_mech.components import ComponentSet
from spex_mech.errors import FormatError, SpexMechError
from spex_mech.formats.interchange import EXPORTERS, export, to_dot, to_networkx
from spex_mech.formats.projections import to_clique
from spex_mech.show import plot

# the constraints of the published HIF schema (HIF-standard/schemas/hif_schema.json)
HIF = {
    "type": "object",
    "additionalProperties": False,
    "required": ["incidences"],
    "properties": {
        "network-type": {"enum": ["undirected", "directed", "asc"]},
        "metadata": {"type": "object"},
        "incidences": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["edge", "node"],
                "properties": {
                    "edge": {"type": ["string", "integer"]},
                    "node": {"type": ["string", "integer"]},
                    "weight": {"type": "number"},
                    "direction": {"enum": ["head", "tail"]},
                    "attrs": {"type": "object"},
                },
            },
        },
        **{
            f"{kind}s": {
                "type": "array",
                "items": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": [kind],
                    "properties": {
                        kind: {"type": ["string", "integer"]},
                        "weight": {"type": "number"},
                        "attrs": {"type": "object"},
                    },
                },
            }
            for kind in ("node", "edge")
        },
    },
}


# what the published schema of Neuronpedia's graphs asks for (draft-07; nothing forbids further keys)
_TEXTS = {"type": "array", "items": {"type": "string"}}
NEURONPEDIA = {
    "type": "object",
    "required": ["metadata", "qParams", "nodes", "links"],
    "properties": {
        "metadata": {
            "type": "object",
            "required": ["slug", "scan", "prompt_tokens", "prompt"],
            "properties": {
                "slug": {"type": "string"},
                "scan": {"type": "string"},
                "prompt": {"type": "string"},
                "prompt_tokens": _TEXTS,
                "node_threshold": {"type": "number"},
                "info": {
                    "type": "object",
                    "properties": {
                        "description": {"type": "string"},
                        "generator": {
                            "type": "object",
                            "properties": {"name": {"type": "string"}, "version": {"type": "string"}},
                        },
                    },
                },
                "generation_settings": {"type": "object"},
            },
        },
        "qParams": {
            "type": "object",
            "properties": {
                "pinnedIds": _TEXTS,
                "supernodes": {"type": "array"},
                "linkType": {"type": "string"},
                "clickedId": {"type": "string"},
                "sg_pos": {"type": "string"},
            },
        },
        "nodes": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"],
                "properties": {
                    "node_id": {"type": "string"},
                    "feature": {"type": ["integer", "null"]},
                    "layer": {"type": ["string", "integer"]},
                    "ctx_idx": {"type": "integer"},
                    "feature_type": {"type": "string"},
                    "jsNodeId": {"type": "string"},
                    "clerp": {"type": "string"},
                    "influence": {"type": ["number", "null"]},
                    "activation": {"type": ["number", "null"]},
                },
            },
        },
        "links": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["source", "target", "weight"],
                "properties": {
                    "source": {"type": "string"},
                    "target": {"type": "string"},
                    "weight": {"type": "number"},
                },
            },
        },
    },
}
CONFIG = {"n_layers": 2, "n_heads": 4, "d_model": 16, "parallel_attn_mlp": False}


def circuit(n: int = 5) -> Circuit:
    names = [f"a{i // 4}.h{i % 4}" for i in range(n - 1)] + ["m1.n7"]
    components = ComponentSet.of(names)
    interactions = [Interaction((name,), 1.0 / (i + 1), "main", 0.01, 0.0) for i, name in enumerate(names)]
    interactions += [
        Interaction((names[0], names[1]), -0.42, "redundancy", 0.02, 1e-9, knockout=-1.1),
        Interaction((names[0], names[-1]), 0.3, "synergy"),
        Interaction((names[0], names[1], names[-1]), 0.21, "synergy", knockout=0.7),
    ]
    nodes = tuple(Node(component, 1.0 / (i + 1)) for i, component in enumerate(components))
    return Circuit(
        components, nodes, tuple(interactions), "logit", energy={1: 1.4, 2: 0.3}, evidence={"heldout_r2": 0.97}
    )


def whole_circuit() -> Circuit:
    """As `circuit`, but of heads and MLPs only, which is all that EAP-IG's files can hold."""
    one = circuit()
    names = {"m1.n7": "m1"}
    rename = lambda parts: tuple(names.get(name, name) for name in parts)  # noqa: E731
    components = ComponentSet.of(rename(one.components.names))
    nodes = tuple(replace(node, component=component) for node, component in zip(one.nodes, components, strict=True))
    interactions = tuple(replace(i, components=rename(i.components)) for i in one.interactions)
    return replace(one, components=components, nodes=nodes, interactions=interactions)


@pytest.mark.parametrize("to", EXPORTERS)
def test_every_format_is_written_and_says_what_it_loses(tmp_path, to):
    note = export(whole_circuit(), tmp_path / "c", to, **({"config": CONFIG} if to == "mib" else {}))
    assert (tmp_path / "c").stat().st_size > 100
    assert "lost" in note.lower()


def test_unknown_formats_and_folders(tmp_path):
    with pytest.raises(FormatError, match="no format 'svg'; the formats are json, hif"):
        export(circuit(), tmp_path / "c", "svg")
    with pytest.raises(FormatError, match="'dot' takes no option scan; it takes none"):
        export(circuit(), tmp_path / "c", "dot", scan="gpt2")
    with pytest.raises(FormatError, match="cannot be written"):
        export(circuit(), tmp_path / "nowhere" / "c", "dot")


def test_hif_is_valid_and_whole(tmp_path):
    export(circuit(), tmp_path / "c.json", "hif")
    record = json.loads((tmp_path / "c.json").read_text())
    jsonschema.validate(record, HIF)
    members = {}
    for row in record["incidences"]:
        members.setdefault(row["edge"], set()).add(row["node"])
    got = {frozenset(members[e["edge"]]): e["weight"] for e in record["edges"]}
    assert got == {frozenset(i.components): i.coefficient for i in circuit().interactions}


@pytest.mark.parametrize(("to", "read"), [("graphml", nx.read_graphml), ("gexf", nx.read_gexf)])
def test_networkx_reads_back_every_joint_effect(tmp_path, to, read):
    export(circuit(), tmp_path / "c", to)
    graph = read(tmp_path / "c")
    hubs = {v: d for v, d in graph.nodes(data=True) if int(d["bipartite"]) == 1}
    got = {frozenset(graph.neighbors(v)): (d["coefficient"], d["kind"]) for v, d in hubs.items()}
    assert got == {frozenset(i.components): (i.coefficient, i.kind) for i in circuit().interactions if i.order > 1}
    assert "q_value" not in hubs["i1"]  # unknown is left out, not zero
    assert nx.is_bipartite(to_networkx(circuit()))


def test_networkx_reads_back_node_links_and_the_clique_is_marked_as_lossy(tmp_path):
    export(circuit(), tmp_path / "c", "node-link")
    graph = nx.node_link_graph(json.loads((tmp_path / "c").read_text()), edges="edges")
    assert nx.utils.graphs_equal(graph, to_networkx(circuit()))
    export(circuit(), tmp_path / "c", "clique")
    graph = nx.node_link_graph(json.loads((tmp_path / "c").read_text()), edges="edges")
    assert graph.graph["lossy"]
    assert nx.utils.graphs_equal(graph, to_clique(circuit()))
    names, weights = circuit().components.names, nx.get_edge_attributes(graph, "weight")
    expected = {(names[0], names[1]): -0.42 + 0.21, (names[0], names[-1]): 0.3 + 0.21, (names[1], names[-1]): 0.21}
    assert {frozenset(pair): w for pair, w in weights.items()} == {
        frozenset(pair): pytest.approx(w) for pair, w in expected.items()
    }


def test_neuronpedia_is_valid_and_holds_every_effect_once(tmp_path):
    options = {"prompt": "A B", "prompt_tokens": ["A", " B"], "scan": "gpt2-small", "slug": "demo"}
    export(circuit(), tmp_path / "c", "neuronpedia", **options)
    record = json.loads((tmp_path / "c").read_text())
    jsonschema.validate(record, NEURONPEDIA)
    kinds = {n["node_id"]: n["feature_type"] for n in record["nodes"]}
    names = {n["node_id"]: n["clerp"] for n in record["nodes"]}
    assert len(kinds) == len(record["nodes"]) == 5 + 1 + 1  # components, one triple, the metric
    got, triples = {}, {}
    for link in record["links"]:
        one, other = link["source"], link["target"]
        if kinds[other] == "interaction":
            triples.setdefault(other, (set(), link["weight"]))[0].add(names[one])
        else:
            ends = {one} if kinds[other] == "metric" else {one, other}
            got[frozenset(names[end] for end in ends)] = link["weight"]
    got |= {frozenset(members): weight for members, weight in triples.values()}
    assert got == {frozenset(i.components): i.coefficient for i in circuit().interactions}
    supernodes = {frozenset(names[node] for node in row[1:]) for row in record["qParams"]["supernodes"]}
    assert supernodes == {frozenset(i.components) for i in circuit().interactions if i.order > 1}
    assert "not a path" in record["spex_mech"]["edge_semantics"]
    assert record["spex_mech"]["edge_semantics"] in record["metadata"]["info"]["description"]
    shares = [n["influence"] for n in record["nodes"] if kinds[n["node_id"]] not in ("metric", "interaction")]
    assert max(shares) == pytest.approx(1.0)
    assert shares[0] == min(shares)  # the first component is the strongest here
    assert max(int(n["layer"]) for n in record["nodes"]) > 0  # the viewer refuses a graph in layer 0 alone


def test_neuronpedia_puts_bound_components_into_their_columns(tmp_path):
    names = ["a0.h0@p-1", "a0.h1@p0", "a0.h2", "a0.h3@p7"]
    components = ComponentSet.of(names)
    main = tuple(Interaction((name,), 1.0, "main") for name in names)
    one = Circuit(components, tuple(map(Node, components)), main, "logit")
    export(one, tmp_path / "c", "neuronpedia", prompt_tokens=["A", " B"])
    nodes = json.loads((tmp_path / "c").read_text())["nodes"]
    assert [n["ctx_idx"] for n in nodes[:4]] == [1, 0, 2, 2]
    with pytest.raises(FormatError, match="scan='gpt 2'"):
        export(one, tmp_path / "c", "neuronpedia", scan="gpt 2")


def test_dot_escapes_and_draws_every_joint_effect():
    text = to_dot(circuit())
    assert text.count(" -- ") == 2 + 3
    assert text.count("{") == text.count("}")
    assert "rank=same" in text


@pytest.mark.parametrize("n", [5, 60])
def test_figures_hold_every_node_and_change_no_global_state(n, tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    figure = plot.circuit(circuit(n))
    words = {text.get_text() for text in figure.axes[0].texts}
    assert set(circuit(n).names) <= words
    assert "0.970" in figure.axes[0].get_title()
    spectrum = plot.spectrum(circuit(n), top=6)
    assert len(spectrum.axes[1].patches) == 6
    assert dict(matplotlib.rcParams) == before
    for made in (figure, spectrum):
        made.savefig(tmp_path / "f.png")


def test_empty_circuits_and_missing_matplotlib(monkeypatch):
    empty = Circuit(ComponentSet.of(["a0.h0"]), (), (), "logit")
    for draw in (plot.circuit, plot.spectrum):
        with pytest.raises(SpexMechError, match="nothing was found"):
            draw(empty)
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SpexMechError, match=r"spex-mech\[plot\]"):
        plot.circuit(circuit())
