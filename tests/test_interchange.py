"""Reading circuits that others wrote: round trips, and files nobody has checked."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spex_mech.circuit.graph import Circuit, load_circuit
from spex_mech.circuit.node_scores import node_scores
from spex_mech.circuit.nodes import Interaction, Node
from spex_mech.components import ComponentSet
from spex_mech.errors import FormatError, SpexMechError
from spex_mech.files.json import MAX_BYTES
from spex_mech.formats.hif import read_hif
from spex_mech.formats.interchange import export, read_circuit
from spex_mech.formats.mib import MAX_FILE, mib_circuit, read_mib

CONFIG = {"n_layers": 2, "n_heads": 2, "d_model": 8, "parallel_attn_mlp": False}
SLOW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def circuit() -> Circuit:
    components = ComponentSet.of(["a0.h0", "a0.h1", "m0", "a1.h0"])
    interactions = (
        Interaction(("a0.h0",), 0.5, "main", 0.01, 0.0, 1.0, 0.25),
        Interaction(("a1.h0",), -0.25, "main"),
        Interaction(("a0.h0", "a1.h0"), -0.125, "redundancy", knockout=-1.1),
        Interaction(("a0.h0", "m0", "a1.h0"), 0.0625, "synergy"),
    )
    nodes = (Node(components[0], 0.5, 0.01, "induction"), Node(components[2]), Node(components[3], -0.25))
    evidence = {"heldout_r2": 0.97, "sizes": [1, 2, {"deep": None}]}
    return Circuit(components, nodes, interactions, "logit", "biased", 0.8, "identity", 1.5, {1: 0.3}, evidence)


def eap(nodes=None, edges=None) -> dict:
    """A file as EAP-IG writes it: every node of two layers of two heads, a few of them in the graph."""
    scores = {"input": 3.0, "a0.h0": 0.5, "a0.h1": -0.1, "m0": math.nan, "a1.h0": 0.9, "a1.h1": 0.0, "m1": -2.0}
    inside = {"input", "a0.h0", "m0", "a1.h0", "logits"}
    rows = {name: {"in_graph": name in inside, "score": score} for name, score in scores.items()}
    rows["logits"] = {"in_graph": True}
    links = {"a0.h0->a1.h0<q>": {"score": 0.4, "in_graph": True}, "a1.h0->logits": {"score": -0.3, "in_graph": False}}
    return {"cfg": dict(CONFIG), "nodes": nodes or rows, "edges": links if edges is None else edges}


def written(path: Path, record) -> Path:
    path.write_text(json.dumps(record))
    return path


def test_hif_comes_back_whole_but_for_what_the_note_says(tmp_path):
    note = export(circuit(), tmp_path / "c", "hif")
    assert read_hif(tmp_path / "c") == replace(circuit(), energy={}, evidence={})
    assert "provenance" in note
    assert "energy" in note


def test_hif_of_other_tools_needs_names_and_weights_only(tmp_path):
    record = {
        "incidences": [{"edge": 0, "node": "a0.h1"}, {"edge": 0, "node": "m1"}, {"edge": "x", "node": "m1"}],
        "edges": [{"edge": 0, "weight": -2}, {"edge": "x", "weight": 1.5}],
    }
    found = read_hif(written(tmp_path / "c", {**record, "nodes": [{"node": "m1"}, {"node": "a0.h1"}]}))
    assert {i.components: (i.coefficient, i.kind) for i in found.interactions} == {
        ("a0.h1", "m1"): (-2, "redundancy"),
        ("m1",): (1.5, "main"),
    }
    assert found.components.names == ("m1", "a0.h1")
    wrong = [
        ({"network-type": "asc", "edges": [{"edge": 7, "weight": None}]},
         ("network-type must be undirected", "edges[0].weight must be")),
        ({"edges": [{"edge": 7, "weight": 1.0}]}, ("edges[0] has no nodes", "the edge 'x'", "the edge 0")),
    ]  # fmt: skip
    for change, parts in wrong:
        with pytest.raises(FormatError) as error:
            read_hif(written(tmp_path / "c", {**record, **change}))
        assert all(part in str(error.value) for part in parts)


def test_mib_comes_back_with_nodes_components_and_scores(tmp_path):
    export(circuit(), tmp_path / "c", "mib", config=CONFIG)
    found = read_mib(tmp_path / "c")
    assert found.components.names == circuit().components.names
    assert found.names == circuit().names
    assert node_scores(found) == node_scores(circuit())
    export(found, tmp_path / "again", "mib")  # it knows the sizes of its model
    assert (tmp_path / "again").read_text() == (tmp_path / "c").read_text()


def test_scores_are_signed_strengths_over_all_of_a_components_interactions():
    assert node_scores(circuit()) == {
        "a0.h0": math.sqrt(0.5**2 + 0.125**2 + 0.0625**2),
        "a0.h1": 0.0,
        "m0": 0.0625,
        "a1.h0": -math.sqrt(0.25**2 + 0.125**2 + 0.0625**2),
    }


def test_a_mib_file_is_what_eap_ig_expects(tmp_path):
    export(circuit(), tmp_path / "c", "mib", config=CONFIG)
    record = json.loads((tmp_path / "c").read_text())
    assert list(record["nodes"]) == ["input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1", "logits"]
    # what was not studied has no score, which means that it is always kept
    assert [name for name, row in record["nodes"].items() if "score" not in row] == ["input", "a1.h1", "m1", "logits"]
    assert [name for name, row in record["nodes"].items() if not row["in_graph"]] == ["a0.h1"]
    edges = record["edges"]
    assert len(edges) == 2 * 3 + 3 + 4 * 2 * 3 + 6 + 7  # every pair of a two-layer model, thrice into heads
    assert {"input->a0.h0<q>", "a0.h1->m0", "m0->a1.h1<v>", "m1->logits"} <= set(edges)
    assert not any(name.startswith(("m0->a0", "a0.h0->a0")) for name in edges)
    assert not edges["a0.h1->m0"]["in_graph"]
    assert edges["a0.h0->m0"]["in_graph"]


def test_reading_eap_ig_keeps_scored_nodes_and_leaves_unscored_ones_alone(tmp_path):
    found = read_mib(written(tmp_path / "c", eap()))
    assert found.components.names == ("a0.h0", "a0.h1", "a1.h0", "a1.h1", "m1")  # m0 has NaN: never ablated
    assert found.names == ("a0.h0", "a1.h0")
    assert node_scores(found) == {"a0.h0": 0.5, "a0.h1": -0.1, "a1.h0": 0.9, "a1.h1": 0.0, "m1": -2.0}
    assert (found.evidence["scores_from"], found.evidence["edges_in_graph"]) == ("nodes", 1)
    assert found.interactions == ()
    assert load_circuit(found.save(tmp_path / "own.json")) == found


def test_scores_of_edges_alone_add_up_over_outgoing_ones(tmp_path):
    names = ("input", "a0.h0", "a0.h1", "a1.h0", "logits")
    edges = {
        "input->a0.h0<q>": {"score": 9.0, "in_graph": True},
        "a0.h0->a1.h0<k>": {"score": 0.5, "in_graph": True},
        "a0.h0->logits": {"score": -2.0, "in_graph": False},
        "a1.h0->logits": {"score": 1.0, "in_graph": True},
    }
    record = eap({name: name != "a0.h1" for name in names}, edges)  # older versions write a Boolean a node
    found = read_mib(written(tmp_path / "c", record))
    assert node_scores(found) == {"a0.h0": -1.5, "a0.h1": 0.0, "a1.h0": 1.0}
    assert found.names == ("a0.h0", "a1.h0")
    assert found.evidence["scores_from"] == "edges"


def state() -> dict:
    """What EAP-IG keeps of the same graph in its .pt files."""
    record = eap()
    sources = [name for name in record["nodes"] if name != "logits"]
    heads = [[f"a{layer}.h{head}<{part}>" for part in "qkv" for head in range(2)] for layer in range(2)]
    targets = [*heads[0], "m0", *heads[1], "m1", "logits"]
    edges = torch.zeros(len(sources), len(targets))
    inside = edges.bool()
    for name, row in record["edges"].items():
        source, target = name.split("->")
        edges[sources.index(source), targets.index(target)] = row["score"]
        inside[sources.index(source), targets.index(target)] = row["in_graph"]
    return {
        "cfg": record["cfg"], "src_nodes": sources, "dst_nodes": targets, "edges_scores": edges,
        "edges_in_graph": inside,
        "nodes_in_graph": torch.tensor([record["nodes"][name]["in_graph"] for name in sources]),
        "nodes_scores": torch.tensor([record["nodes"][name]["score"] for name in sources]),
    }  # fmt: skip


def test_the_state_of_a_pt_file_is_the_same_circuit_as_the_json(tmp_path):
    found, other = mib_circuit(state()), read_mib(written(tmp_path / "c", eap()))
    assert (found.components, found.nodes) == (other.components, other.nodes)
    assert node_scores(found) == pytest.approx(node_scores(other))
    assert found.evidence["edges_in_graph"] == other.evidence["edges_in_graph"]
    without = {key: value for key, value in state().items() if key != "nodes_scores"}
    assert mib_circuit(without).evidence["scores_from"] == "edges"
    assert node_scores(mib_circuit(without))["a1.h0"] == pytest.approx(-0.3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"src_nodes": None}, "names in src_nodes"),
        ({"nodes_in_graph": torch.ones(3, dtype=torch.bool)}, "as many sources"),
        ({"edges_scores": torch.zeros(7, 3)}, "one column a target"),
        ({"nodes_in_graph": torch.ones(7)}, "in_graph must be true or false"),
        ({"cfg": {**CONFIG, "n_layers": 1}}, "no node of 1 layers"),
        ({"cfg": None}, "cfg must be an object"),
        ({"nodes_scores": torch.full((7,), torch.inf)}, "score must be a finite number"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change, message):
    with pytest.raises(FormatError, match=message):
        mib_circuit({**state(), **change})


def test_mib_has_no_place_for_neurons_nor_for_circuits_of_unknown_models(tmp_path):
    strange = ComponentSet.of(["a0.h0", "m0.n3", "[a1.h0:2]", "a9.h0"])
    one = Circuit(strange, (), (), "logit")
    with pytest.raises(FormatError, match=r"m0\.n3, \[a1\.h0:2\], a9\.h0 have no place"):
        export(one, tmp_path / "c", "mib", config=CONFIG)
    with pytest.raises(FormatError, match="mib_config"):
        export(circuit(), tmp_path / "c", "mib")
    with pytest.raises(FormatError, match=r"n_layers must be .* not True"):
        export(circuit(), tmp_path / "c", "mib", config={**CONFIG, "n_layers": True})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["cfg"].update(n_layers=10**9), "cfg.n_layers must be a whole number from 1 to 1,000"),
        (lambda r: r["cfg"].pop("n_heads"), "cfg.n_heads is missing"),
        (lambda r: r.pop("nodes"), "nodes is missing"),
        (lambda r: r["nodes"].update({"a2.h0": {"in_graph": True}}), "'a2.h0' is no node of 2 layers of 2 heads"),
        (lambda r: r["nodes"].update({"a00.h0": {"in_graph": True}}), "'a00.h0' is no node"),
        (lambda r: r["nodes"].update({"a0.h0": []}), "must be an object, not a list"),
        (lambda r: r["nodes"]["m1"].update(score="1"), "score must be a finite number or null, not '1'"),
        (lambda r: r["nodes"]["m1"].update(in_graph=1), "in_graph must be true or false"),
        (lambda r: r["nodes"]["a0.h0"].update(neurons=[True, False]), "some of its coordinates"),
        (lambda r: r["edges"].update({"a0.h0->a1.h0": {"score": 1.0}}), "is no edge such as"),
        (lambda r: r["edges"].update({"m7->logits": {"score": 1.0}}), "'m7' is no node"),
        (lambda r: r["nodes"].pop("a1.h0"), "edges name 'a1.h0', which nodes has not"),
    ],
)
def test_what_is_wrong_with_a_mib_file_is_named(tmp_path, change, message):
    record = eap()
    change(record)
    with pytest.raises(FormatError) as error:
        read_mib(written(tmp_path / "c", record))
    assert message in str(error.value)


def test_every_problem_is_told_at_once(tmp_path):
    record = eap()
    record["nodes"]["m1"]["score"], record["nodes"]["a0.h0"]["in_graph"] = "x", None
    with pytest.raises(FormatError, match=r"(?s)a0\.h0.*m1"):
        read_mib(written(tmp_path / "c", record))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as JSON"),
        ("[1, 2]", "holds a list"),
        ('{"a": 1}', "is no circuit"),
        ('{"cfg": {}, "cfg": {}}', "a key stands twice"),
        ('{"cfg": Infinity}', "Infinity is no JSON number"),
        ('{"schema": ' + "[" * 100 + "]" * 100 + "}", "nested deeper than 32"),
        ('{"schema": ' + "[" * 200_000, "cannot be read as JSON"),
        ('{"cfg": ' + "9" * 5000 + "}", "cannot be read as JSON"),
        ('{"cfg": [' + "[],[]," * 4_100_000 + "[]]}", "more than 8,000,000 values"),
        ('{"schema": "\ud800"}', "cannot be read as JSON"),
    ],
)
def test_files_nobody_has_checked(tmp_path, text, message):
    path = tmp_path / "c"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(FormatError, match=message):
        read_circuit(path)


def test_files_that_are_too_large_or_not_there(tmp_path):
    with open(tmp_path / "c", "wb") as file:
        file.truncate(MAX_BYTES + 1)
    for read in (load_circuit, read_hif):
        with pytest.raises(FormatError, match="larger than 64 MiB"):
            read(tmp_path / "c")
    with open(tmp_path / "c", "wb") as file:
        file.truncate(MAX_FILE + 1)
    for path, message in ((tmp_path / "c", "larger than 256 MiB"), (tmp_path / "nowhere", "cannot be read")):
        with pytest.raises(FormatError, match=message):
            read_circuit(path)


def test_large_models_are_written_without_edges(tmp_path):
    cfg = {"n_layers": 32, "n_heads": 32, "d_model": 4096, "parallel_attn_mlp": True}
    export(circuit(), tmp_path / "c", "mib", config=cfg)
    assert json.loads((tmp_path / "c").read_text())["edges"] == {}
    assert node_scores(read_mib(tmp_path / "c")) == node_scores(circuit())


def test_the_kind_of_file_is_seen(tmp_path):
    export(circuit(), tmp_path / "hif", "hif")
    export(circuit(), tmp_path / "json", "json")
    export(circuit(), tmp_path / "mib", "mib", config=CONFIG)
    assert read_circuit(tmp_path / "json") == circuit()
    assert read_circuit(tmp_path / "hif").interactions == circuit().interactions
    assert read_circuit(tmp_path / "mib") == read_mib(tmp_path / "mib")


READERS = {"json": load_circuit, "hif": read_hif, "mib": read_mib}
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.sampled_from([1e308, -1e308, 1e-320, "", "a0.h0", "[m0.n0:999999]", "m0@p-1", "é", [], {}, [[]], {"a": None}]),
)


def text_of(kind: str, folder: Path) -> str:
    path = folder / f"sound.{kind}"
    if not path.exists():
        if kind == "mib":
            return written(path, eap()).read_text()
        export(circuit(), path, kind)
    return path.read_text()


def places(value, path=()):
    """Every place in a JSON value."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in children:
        yield from places(item, (*path, key))


def read_or_refuse(kind: str, path: Path):
    """The circuit, which must survive our own file unchanged, or None where one of our errors was raised."""
    try:
        found = READERS[kind](path)
    except SpexMechError:
        return None
    assert load_circuit(found.save(path.with_suffix(".own"))) == found
    return found


@pytest.mark.parametrize("kind", READERS)
@SLOW
@given(data=st.data())
def test_a_value_changed_is_read_or_refused_whole(tmp_path, kind, data):
    record = json.loads(text_of(kind, tmp_path))
    place = data.draw(st.sampled_from([p for p in places(record) if p]))
    parent = record
    for key in place[:-1]:
        parent = parent[key]
    how = data.draw(st.sampled_from(["replace", "remove", "add"]))
    if how == "replace":
        parent[place[-1]] = data.draw(JUNK)
    elif how == "remove":
        del parent[place[-1]]
    elif isinstance(parent, dict):
        parent[data.draw(st.text(max_size=8))] = data.draw(JUNK)
    else:
        parent.append(data.draw(JUNK))
    read_or_refuse(kind, written(tmp_path / "c", record))


@pytest.mark.parametrize("kind", READERS)
@SLOW
@given(data=st.data())
def test_bytes_changed_are_read_or_refused_whole(tmp_path, kind, data):
    raw = bytearray(text_of(kind, tmp_path).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        cut = data.draw(st.integers(0, 3))
        raw[at : at + cut] = data.draw(st.binary(max_size=3))
    (tmp_path / "c").write_bytes(bytes(raw))
    read_or_refuse(kind, tmp_path / "c")


@pytest.mark.parametrize("kind", READERS)
@SLOW
@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_is_refused(tmp_path, kind, cut):
    text = text_of(kind, tmp_path).rstrip()
    (tmp_path / "c").write_text(text[: int(cut * len(text))])
    assert read_or_refuse(kind, tmp_path / "c") is None
