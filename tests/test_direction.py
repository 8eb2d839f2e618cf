"""A positive score helps, whatever the metric's direction: exported, read back and audited."""

import pytest

import spex_mech as sm
from spex_mech.circuit.graph import Circuit
from spex_mech.circuit.node_scores import node_scores
from spex_mech.tasks.metrics import METRICS


@pytest.fixture(scope="module")
def study():
    return sm.open_study("induction-2l")


def exported(study, metric, path):
    found = sm.discover(
        study.subject, study.task.with_metric(metric), "a0.h4, a0.h5, a1.h0, a1.h2", budget=16, replacement="mean"
    )
    sm.export(found.circuit, path, "mib", config=sm.tl.mib_config(study.subject))
    return found.circuit, path


@pytest.mark.parametrize("metric", ["logit_diff", "kl", "loss"])
def test_what_helps_is_positive_and_comes_back_so(study, metric, tmp_path):
    circuit, path = exported(study, metric, tmp_path / "c.json")
    scores = node_scores(circuit)
    mains = {i.components[0]: i.coefficient for i in circuit.interactions if i.order == 1}
    sign = 1 if METRICS[metric].larger_is_better else -1
    assert {name: scores[name] > 0 for name in mains} == {name: sign * main > 0 for name, main in mains.items()}
    assert max(scores.values()) > -min(scores.values())  # what the model does it does well
    back = sm.read_circuit(path)
    assert node_scores(back) == pytest.approx(scores)
    one = sm.audit_circuit(back, study.subject, study.task.with_metric(metric), budget=64)
    turned = sm.audit_circuit(
        back, study.subject, study.task.with_metric(metric), scores={n: -s for n, s in scores.items()}, budget=64
    )
    assert one.cpr > turned.cpr


def test_circuits_written_before_are_turned_by_the_name_of_their_metric(study, tmp_path):
    circuit, _ = exported(study, "kl", tmp_path / "c.json")
    evidence = {key: value for key, value in circuit.evidence.items() if key != "larger_is_better"}
    old = Circuit(circuit.components, circuit.nodes, circuit.interactions, circuit.unit, evidence=evidence)
    assert node_scores(old) == node_scores(circuit)
