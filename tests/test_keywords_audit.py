"""Every keyword of the audits acts: a table of what each changes, read against the signatures."""

import dataclasses
import inspect
import io
import time
from contextlib import redirect_stderr

import pytest

import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.circuit.nodes import Node

PAIR = ("a0.h1", "a1.h2")
LAYOUT = planted.PlantedLayout(n_layers=2, n_heads=3, d_mlp=1)


@pytest.fixture(scope="module")
def run():
    """A model whose polynomial has an interaction, a run of it, and its task."""
    subject = planted.polynomial({PAIR: 2.0, ("a0.h0",): 1.0, ("m0.n0",): 0.3}, layout=LAYOUT, spread=0.3)
    task = planted.task(4)
    found = sm.discover(subject, task, sm.heads(subject) + sm.neurons(subject), budget=90, keep_prob=0.6)
    return found, subject, task


def plain(result):
    """All that was found, without how it came to be."""
    return dataclasses.replace(result, record={})


def audited(run, **keywords):
    return sm.audit(*run, **{"budget": 200} | keywords)


def seed(run, folder):
    assert audited(run, seed=2).fresh != audited(run, seed=1).fresh


def budget(run, folder):
    assert audited(run, budget=96).skipped != audited(run, budget=400).skipped


def size(run, folder):
    assert len(audited(run, size=1).circuit.names) == 1 != len(audited(run).circuit.names)


def known(run, folder):
    assert audited(run).known is None
    assert audited(run, known=PAIR).known.recall is not None


def out(run, folder):
    result = audited(run, out=folder)
    assert sm.load_audit(folder / "audit.json") == result


def progress(run, folder):
    said = {}
    for shown in (True, False):
        with redirect_stderr(io.StringIO()) as told:
            audited(run, progress=shown)
        said[shown] = told.getvalue()
    assert "auditing" in said[True]
    assert not said[False]


def seconds(run, folder):
    """Given to every exact selection, and to nothing else."""
    from spex_mech.auditing import chosen_circuits

    real, given = chosen_circuits.choose_path, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            chosen_circuits, "choose_path",
            lambda *args, **options: given.append(options.get("seconds")) or real(*args, **options),
        )  # fmt: skip
        began = time.perf_counter()
        audited(run, seconds=0.25)
    assert {x for x in given if x is not None} == {0.25}
    assert time.perf_counter() - began < 60


AUDIT = {f.__name__: f for f in (seed, budget, size, known, out, progress, seconds)}


@pytest.fixture(scope="module")
def circuit(run):
    found, subject, task = run
    components = found.components
    nodes = tuple(Node(c) for c in components if c.name in (*PAIR, "a0.h0"))
    return sm.Circuit(components, nodes, (), "logit"), subject, task


def scores_of(circuit):
    return {name: float(i) for i, name in enumerate(circuit[0].components.names)}


def circuit_scores(circuit, folder):
    assert sm.audit_circuit(*circuit).cpr is None
    scores = scores_of(circuit)
    one, other = (sm.audit_circuit(*circuit, scores={n: s * v for n, v in scores.items()}) for s in (1, -1))
    assert one.cpr != other.cpr


def circuit_budget(circuit, folder):
    assert len(sm.audit_circuit(*circuit, budget=32, scores=scores_of(circuit)).random_faithfulness) < 8
    assert len(sm.audit_circuit(*circuit, budget=200).random_faithfulness) == 8


def circuit_seed(circuit, folder):
    one, other = (sm.audit_circuit(*circuit, seed=seed) for seed in (1, 2))
    assert one.random_faithfulness != other.random_faithfulness


def circuit_replacement(circuit, folder):
    study = sm.open_study("induction-2l")
    nodes = tuple(map(Node, list(study.components)[:3]))
    heads = sm.Circuit(study.components, nodes, (), "logit")
    one, other = (sm.audit_circuit(heads, study.subject, study.task, replacement=r) for r in ("mean", "zero"))
    assert one.empty != other.empty


def circuit_per(circuit, folder):
    study = sm.open_study("induction-2l")
    heads = sm.Circuit(study.components, tuple(map(Node, list(study.components)[:3])), (), "logit")
    one, other = (sm.audit_circuit(heads, study.subject, study.task, per=per) for per in ("position", "pooled"))
    assert one.record["replacement"] != other.record["replacement"]
    assert one.empty != other.empty


def circuit_known(circuit, folder):
    assert sm.audit_circuit(*circuit).precision is None
    assert sm.audit_circuit(*circuit, known=PAIR).precision == pytest.approx(2 / 3)


def circuit_path(circuit, folder):
    sm.audit_circuit(*circuit, path=folder / "c.json")
    assert (folder / "c.json").exists()


CIRCUIT = {
    f.__name__.removeprefix("circuit_"): f
    for f in (
        circuit_scores, circuit_budget, circuit_seed, circuit_replacement, circuit_per, circuit_known, circuit_path,
    )
}  # fmt: skip


def keywords(function):
    return {p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}


def test_the_tables_are_whole():
    assert set(AUDIT) == keywords(sm.audit)
    assert set(CIRCUIT) == keywords(sm.audit_circuit)


@pytest.mark.parametrize("keyword", AUDIT)
def test_every_keyword_of_an_audit_acts(run, tmp_path, keyword):
    AUDIT[keyword](run, tmp_path)


@pytest.mark.parametrize("keyword", CIRCUIT)
def test_every_keyword_of_a_circuits_audit_acts(circuit, tmp_path, keyword):
    CIRCUIT[keyword](circuit, tmp_path)
