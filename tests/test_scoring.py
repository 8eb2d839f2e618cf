"""Circuits of others, audited here: every figure against all 2^n measured masks."""

import itertools
import json
import math

import pytest
import torch

import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.auditing.faithfulness import SIZES
from spex_mech.circuit.node_scores import node_scores
from spex_mech.circuit.nodes import Node
from spex_mech.errors import ComponentError, DesignError, ResponseError
from spex_mech.walsh.masks.design import MaskDesign


@pytest.fixture(scope="module")
def study():
    return sm.open_study("induction-2l")


@pytest.fixture(scope="module")
def table(study):
    """The metric with exactly these names kept, from the card's exhaustive truth."""
    names = study.card.truth.components
    values = study.card.truth.values.double().mean(1)
    keep = MaskDesign.complete(len(names)).keep()
    rows = {frozenset(n for n, k in zip(names, row, strict=True) if k): float(v) for row, v in
            zip(keep.tolist(), values, strict=True)}  # fmt: skip
    return lambda kept: rows[frozenset(kept)]


@pytest.fixture(scope="module")
def foreign(study, table, tmp_path_factory):
    """A file as EAP-IG writes it: scores by leaving one head out, the best three in the graph, MLPs unscored."""
    names = study.components.names
    scores = {name: table(names) - table(set(names) - {name}) for name in names}
    best = sorted(names, key=lambda name: -scores[name])[:3]
    layers = study.subject.shape.n_layers
    nodes = {"input": {"in_graph": True, "score": 1.0}}
    for layer in range(layers):
        heads = [name for name in names if name.startswith(f"a{layer}.")]
        nodes |= {name: {"in_graph": name in best, "score": scores[name]} for name in heads}
        nodes[f"m{layer}"] = {"in_graph": True, "score": math.nan}  # the model has none
    nodes["logits"] = {"in_graph": True}
    cfg = {"n_layers": layers, "n_heads": study.subject.shape.heads[0], "d_model": 32, "parallel_attn_mlp": False}
    path = tmp_path_factory.mktemp("eap") / "graph.json"
    path.write_text(json.dumps({"cfg": cfg, "nodes": nodes, "edges": {}}))
    return path, scores, best


def area(f):
    return sum((b - a) * (x + y) / 2 for a, b, x, y in zip(SIZES, SIZES[1:], f, f[1:], strict=False))


def test_a_circuit_of_eap_ig_is_audited_and_every_figure_is_the_enumerated_one(study, table, foreign, tmp_path):
    path, scores, best = foreign
    names = study.components.names
    circuit = sm.read_circuit(path)
    assert circuit.components.names == tuple(sorted(names, key=names.index))
    known = ["a0.h0", *best[:2]]
    audit = sm.audit_circuit(
        circuit, study.subject, study.task, replacement=study.replacement, per=study.per, known=known,
        budget=400, path=tmp_path / "audit.json",
    )  # fmt: skip
    close = lambda value: pytest.approx(value, abs=2e-4)  # noqa: E731
    share = lambda kept: (table(kept) - table(())) / (table(names) - table(()))  # noqa: E731
    assert (audit.intact, audit.empty) == (close(table(names)), close(table(())))
    assert (audit.value, audit.faithfulness) == (close(table(best)), close(share(best)))
    assert audit.without == close(table(set(names) - set(best)))
    assert audit.idle == {n: close(table(best) - table(set(best) - {n})) for n in circuit.names}
    by_size, helping = (sorted(names, key=key) for key in (lambda n: -abs(scores[n]), lambda n: -scores[n]))
    f_preserve = [share(by_size[: int(s * len(names))]) for s in SIZES]
    f_help = [share(helping[: int(s * len(names))]) for s in SIZES]
    assert [row.preserve for row in audit.sizes] == [close(f) for f in f_preserve]
    assert [row.help for row in audit.sizes] == [close(f) for f in f_help]
    assert audit.cpr == close(area(f_help))
    assert audit.cmd == close(area([abs(1 - f) for f in f_preserve]))
    assert audit.precision == pytest.approx(len(set(best) & set(known)) / 3)
    assert audit.skipped == ()
    assert len(audit.random_faithfulness) == 8
    assert audit.random_as_good == sum(abs(1 - f) <= abs(1 - share(best)) for f in audit.random_faithfulness) / 8
    subsets = [share(s) for s in itertools.combinations(names, len(best))]
    assert all(any(abs(f - s) < 2e-4 for s in subsets) for f in audit.random_faithfulness)
    assert audit.record["masks"] <= 400
    saved = json.loads((tmp_path / "audit.json").read_text())
    assert (saved["faithfulness"], saved["schema"]) == (audit.faithfulness, "spex_mech.circuit_audit/1")
    assert "CPR" in str(audit)
    assert len(audit.sizes_frame()) == 10


def test_our_own_circuit_goes_out_as_mib_and_comes_back_to_the_same_audit(study, tmp_path):
    found = sm.discover(study.subject, study.task, study.components, budget=64, decoder="linear", link="identity")
    sm.export(found.circuit, tmp_path / "c.json", "mib", config=sm.tl.mib_config(study.subject))
    back = sm.read_circuit(tmp_path / "c.json")
    assert node_scores(back) == pytest.approx(node_scores(found.circuit))
    one, other = (
        sm.audit_circuit(c, study.subject, study.task, budget=200, per=study.per) for c in (found.circuit, back)
    )
    assert (one.faithfulness, one.cpr, one.cmd, one.idle) == (other.faithfulness, other.cpr, other.cmd, other.idle)
    assert one.random_faithfulness == other.random_faithfulness
    with sm.ablated(study.subject, keep=back, task=study.task) as model:
        assert model is not None


def test_the_command_line_converts_and_audits_files(foreign, tmp_path, capsys, monkeypatch):
    import sys

    from spex_mech.cli.main import main

    path = tmp_path / "eap.json"
    path.write_text(foreign[0].read_text())

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["spex-mech", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code, capsys.readouterr()

    for to in ("graphml", "mib", "json", "node-link"):
        assert call("export", path, "--to", to, "--out", tmp_path / f"c.{to}")[0] == 0
    one, other = sm.read_circuit(tmp_path / "c.mib"), sm.read_circuit(tmp_path / "c.json")
    assert (one.components, one.nodes) == (other.components, other.nodes)
    assert node_scores(one) == node_scores(other)
    code, said = call("audit", path, "--model", "induction-2l", "--budget", 128)
    assert code == 0
    assert "CPR" in said.out
    assert "preserve" in said.out
    assert json.loads((tmp_path / "eap.audit.json").read_text())["record"]["masks"] <= 128
    code, said = call("audit", path)
    assert code == 2
    assert "--model" in said.err


def test_as_many_random_sets_do_as_well_as_chance_has_it():
    """A pair that is all there is: it does better than any other set of two; a set without effect does not."""
    pair = ("a0.h1", "a1.h2")
    subject = planted.conjunction(pair, layout=planted.PlantedLayout(2, 8, 0))
    task, components = planted.task(), sm.heads(subject)
    for names, as_good in ((pair, 0.0), (("a0.h2", "a1.h3"), 1.0)):
        circuit = sm.Circuit(components, tuple(Node(c) for c in components if c.name in names), (), "logit")
        audit = sm.audit_circuit(circuit, subject, task)
        assert len(audit.random_faithfulness) == 8
        assert audit.random_as_good == as_good
        assert f"{as_good:.0%} of random sets do as well" in str(audit)


def or_of_two():
    subject = planted.backup(["a0.h0", "a1.h0"], strength=-2.0)  # ablation raises this metric: less is better
    return subject, planted.task(), sm.heads(subject)


def test_where_intact_is_lower_helping_means_lowering():
    subject, task, components = or_of_two()
    circuit = sm.Circuit(components, (Node(components[0]),), (), "logit")
    scores = {name: {"a0.h0": -1.0, "a1.h0": -0.5}.get(name, 0.1 * i) for i, name in enumerate(components.names)}
    audit = sm.audit_circuit(circuit, subject, task, scores=scores, budget=300)
    assert audit.faithfulness == pytest.approx(1.0)  # one of the two is enough
    assert audit.without == pytest.approx(audit.intact)  # and the other too: it is no necessary one
    assert [row.help for row in audit.sizes if row.count] == [pytest.approx(1.0)] * sum(
        r.count > 0 for r in audit.sizes
    )


def test_a_circuit_without_scores_has_no_areas_and_a_small_budget_says_what_it_left_out():
    subject, task, components = or_of_two()
    nodes = tuple(map(Node, components))
    audit = sm.audit_circuit(sm.Circuit(components, nodes, (), "logit"), subject, task)
    assert (audit.cpr, audit.cmd, audit.sizes) == (None, None, ())
    assert audit.idle["a0.h0"] == pytest.approx(0.0)  # backed up
    scores = dict.fromkeys(components.names, 1.0)
    empty = sm.audit_circuit(sm.Circuit(components, (), (), "logit"), subject, task, scores=scores)
    assert (empty.faithfulness, empty.idle) == (None, {})
    names = [f"a{i}.h{j}" for i in range(8) for j in range(8)]
    many = planted.additive(dict.fromkeys(names, 1.0), layout=planted.PlantedLayout(8, 8, 0))
    wide = sm.Circuit(sm.heads(many), tuple(map(Node, sm.heads(many)))[:40], (), "logit")
    mixed = {name: (-1.0) ** i for i, name in enumerate(names)}
    small = sm.audit_circuit(wide, many, planted.task(), scores=mixed, budget=32)
    assert small.record["masks"] <= 32
    assert any("random" in text for text in small.skipped)
    assert any("nodes are idle" in text for text in small.skipped)


def test_what_cannot_be_audited_is_refused():
    subject, task, components = or_of_two()
    circuit = sm.Circuit(components, (), (), "logit")
    with pytest.raises(DesignError, match="at least 32"):
        sm.audit_circuit(circuit, subject, task, budget=31)
    with pytest.raises(ComponentError, match=r"(?s)a0\.h0 has no score.*a9\.h9 has a score"):
        sm.audit_circuit(circuit, subject, task, scores={"a9.h9": 1.0})
    with pytest.raises(ComponentError, match="has the score nan"):
        sm.audit_circuit(circuit, subject, task, scores=dict.fromkeys(components.names, math.nan))
    with pytest.raises(ComponentError, match=r"'a9\.h9' does not exist"):
        sm.audit_circuit(sm.Circuit(sm.ComponentSet.of("a9.h9"), (), (), "logit"), subject, task)
    idle = sm.Circuit(sm.ComponentSet.of("a0.h1"), (), (), "logit")
    with pytest.raises(ResponseError, match="faithfulness is not defined"):
        sm.audit_circuit(idle, subject, task)


def test_the_same_seed_gives_the_same_bits_and_another_other_random_sets():
    subject, task, components = or_of_two()
    circuit = sm.Circuit(components, tuple(map(Node, components[:2])), (), "logit")
    one, two, other = (sm.audit_circuit(circuit, subject, task, seed=seed) for seed in (1, 1, 2))
    assert one == two
    assert one.random_faithfulness != other.random_faithfulness
    assert torch.tensor(one.random_faithfulness).isfinite().all()
