"""Exports are read back by the libraries they are meant for; figures hold what the circuit holds."""

import builtins
import json

import jsonschema
import networkx as nx
import pytest

from spex_mech.circuit.graph import Circuit, Interaction, Node
from spex_mech.circuit.interchange import EXPORTERS, export, to_dot, to_networkx
from spex_mech.circuit.plot import plot_circuit, plot_spectrum
from spex_mech.components import ComponentSet
from spex_mech.errors import FormatError, SpexMechError

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


@pytest.mark.parametrize("to", EXPORTERS)
def test_every_format_is_written_and_says_what_it_loses(tmp_path, to):
    note = export(circuit(), tmp_path / "c", to)
    assert (tmp_path / "c").stat().st_size > 100
    assert "lost" in note.lower()


def test_unknown_formats_and_folders(tmp_path):
    with pytest.raises(FormatError, match="no format 'svg'; the formats are json, hif"):
        export(circuit(), tmp_path / "c", "svg")
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


def test_dot_escapes_and_draws_every_joint_effect():
    text = to_dot(circuit())
    assert text.count(" -- ") == 2 + 3
    assert text.count("{") == text.count("}")
    assert "rank=same" in text


@pytest.mark.parametrize("n", [5, 60])
def test_figures_hold_every_node_and_change_no_global_state(n, tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    figure = plot_circuit(circuit(n))
    words = {text.get_text() for text in figure.axes[0].texts}
    assert set(circuit(n).names) <= words
    assert "0.970" in figure.axes[0].get_title()
    spectrum = plot_spectrum(circuit(n), top=6)
    assert len(spectrum.axes[1].patches) == 6
    assert dict(matplotlib.rcParams) == before
    for made in (figure, spectrum):
        made.savefig(tmp_path / "f.png")


def test_empty_circuits_and_missing_matplotlib(monkeypatch):
    empty = Circuit(ComponentSet.of(["a0.h0"]), (), (), "logit")
    for plot in (plot_circuit, plot_spectrum):
        with pytest.raises(SpexMechError, match="nothing was found"):
            plot(empty)
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SpexMechError, match=r"spex-mech\[plot\]"):
        plot_circuit(circuit())
