"""The audit: every figure against enumeration, within its budget, resumable, and refusing what is not the run's."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch

import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.ablation.replacement import fit_replacement
from spex_mech.ablation.respond import Engine
from spex_mech.api.audit import LEAST_AUDIT_BUDGET
from spex_mech.api.discover import decode
from spex_mech.auditing.faithfulness import counts, faithfulness, model_distance, performance_ratio
from spex_mech.auditing.passes import seed_of
from spex_mech.errors import DesignError, FormatError, ResponseError
from spex_mech.gallery.studies import true_spectrum
from spex_mech.measuring.measure import describe_experiment
from spex_mech.walsh.decoders.exact import Exact
from spex_mech.walsh.decoding import Samples, r_squared

CARDS = Path(__file__).resolve().parents[2] / "shared" / "cards"
LAYOUT = planted.PlantedLayout(n_layers=2, n_heads=4, d_mlp=2)
SMALL = planted.PlantedLayout(n_layers=2, n_heads=3, d_mlp=1)  # 8 components: all masks fit every budget
OR = ("a0.h1", "a1.h0", "m0.n1")
AND = ("a0.h1", "a1.h0", "m0.n0")


def found_of(subject, n_prompts=4, **options):
    task = planted.task(n_prompts)
    components = sm.heads(subject) + sm.neurons(subject)
    return sm.discover(subject, task, components, **{"budget": 700, **options}), task


@pytest.fixture(scope="module")
def backup():
    subject = planted.backup(OR, strength=2.0, layout=LAYOUT, spread=0.2)
    found, task = found_of(subject)
    return subject, task, found, sm.audit(found, subject, task, budget=1500, known=[*OR, "m9"])


class Enumerated:
    """All masks of a subject, measured: what every figure of an audit is held against."""

    def __init__(self, names, table):
        self.names, self.table = names, table  # [mask, prompt]; bit i of the row number: component i is ablated

    def value(self, kept):
        return float(self.table[sum(1 << i for i, n in enumerate(self.names) if n not in kept)].double().mean())

    def effect(self, members, keep_prob):
        """``Σ_A (-1)^|A| v(A)`` over the ablated subsets of some components, the others kept with a probability."""
        kept = sm.MaskDesign.complete(len(self.names)).keep().double()
        inside = torch.tensor([name in members for name in self.names])
        weight = torch.where(inside, 1.0, kept * keep_prob + (1 - kept) * (1 - keep_prob)).prod(1)
        sign = torch.where(inside, 2 * kept - 1, 1.0).prod(1)
        return float((weight * sign * self.table.double().mean(1)).sum())

    def __call__(self, keep):
        rows = ((~keep).long() << torch.arange(len(self.names))).sum(1)
        return self.table[rows].double().mean(1)


def enumerate_planted(subject, task, names):
    components = sm.ComponentSet.of(names)
    keep = sm.MaskDesign.complete(len(names)).keep()
    f = planted.truth(subject, components).evaluate(keep)
    scale = subject.scales(task.prompts.tokens)
    return Enumerated(names, f[:, None] * scale)


def check_against(audit, truth, coefficient, unit=1.0):
    """Every measured figure of an audit, from the table of all masks."""
    close = {"abs": 2e-4 * unit}
    names, f = audit.components, lambda kept: faithfulness(truth.value(kept), audit.empty, audit.intact)
    assert audit.intact == pytest.approx(truth.value(names), **close)
    assert audit.empty == pytest.approx(truth.value(()), **close)
    for verified in [audit.circuit, audit.found, *(v for r in audit.sizes for v in (r.preserve, r.help))]:
        assert verified.value == pytest.approx(truth.value(verified.names), **close)
        assert verified.faithfulness == pytest.approx(f(verified.names), abs=2e-4)
    assert [row.count for row in audit.sizes] == list(counts(len(names)))
    assert all(len(v.names) <= row.count for row in audit.sizes for v in (row.preserve, row.help))
    assert audit.cpr == pytest.approx(performance_ratio([f(r.help.names) for r in audit.sizes]), abs=1e-3)
    assert audit.cmd == pytest.approx(model_distance([f(r.preserve.names) for r in audit.sizes]), abs=1e-3)
    circuit, whole = set(audit.circuit.names), set(names)
    for k in audit.completeness:
        gap = abs(truth.value(circuit - set(k.removed)) - truth.value(whole - set(k.removed)))
        assert k.measured is None or k.measured == pytest.approx(gap, **close)
    for k in audit.minimality:
        inside = circuit - set(k.removed)
        gap = abs(truth.value(inside - {k.component}) - truth.value(inside))
        assert k.measured is None or k.measured == pytest.approx(gap, **close)
    for check in audit.interactions:
        error = max(6 * check.stderr, 2e-4 * unit)
        assert abs(check.estimate - coefficient(check.components)) < error, check
        alone = sum(
            (-1) ** (check.order - len(gone)) * truth.value(whole - set(gone))
            for size in range(check.order + 1)
            for gone in itertools.combinations(check.components, size)
        )
        assert check.knockout == pytest.approx(alone, abs=2e-4 * unit * 2**check.order)
    for row in audit.contexts:
        error = max(8 * row.stderr, 0.02 * unit)
        assert abs(row.effect - truth.effect(row.components, row.keep_prob)) < error, row
    assert 0 <= audit.search.jaccard <= 1
    assert audit.rankings[0].masks <= audit.search.masks + 2 ** len(names)
    for row in audit.stability:
        assert row.resamples >= 100
        assert 0 <= row.nodes <= 1


def test_every_figure_on_a_planted_subject(backup):
    subject, task, found, audit = backup
    truth = enumerate_planted(subject, task, found.components.names)
    walsh = planted.truth(subject, found.components)
    check_against(audit, truth, lambda names: walsh.get(found.components.indices(names)) or 0.0)
    assert audit.fresh.r2 > 0.999


def test_a_backup_is_named_with_its_kind_and_rate_where_single_ablation_is_blind(backup):
    _, _, _, audit = backup
    (group,) = [g for g in audit.backups if g.confirmed()]
    assert set(group.components) == set(OR)
    assert group.q_value < 1e-3
    assert group.intact_excess == pytest.approx(2.0, abs=1e-4)
    rows = {row.name: row for row in audit.rankings}
    assert rows["spex_mech"].auroc == 1.0
    assert rows["single ablation"].auroc == 0.5  # it finds nothing at all
    assert rows["pair ablation"].auroc == 0.5
    assert rows["activation patching"].auroc == 0.5
    assert rows["order-1 regression"].auroc == 1.0
    assert all(check.confirmed() for check in audit.interactions)


def test_known_circuits_are_compared_with(backup):
    _, _, _, audit = backup
    assert audit.known.outside == ("m9",)
    assert audit.known.precision == 1.0
    assert audit.known.recall == pytest.approx(len(set(audit.circuit.names) & set(OR)) / 3)


def test_one_of_the_backups_is_a_faithful_circuit_and_incomplete(backup):
    _, _, _, audit = backup
    (name,) = audit.circuit.names
    assert name in OR
    assert audit.circuit.faithfulness == pytest.approx(1.0, abs=1e-3)
    worst = audit.completeness[0]
    assert (worst.removed, worst.measured) == ((name,), pytest.approx(2.0, abs=1e-3))


def test_conjunctions_and_additive_subjects_have_no_backups():
    for subject in (
        planted.conjunction(AND, layout=SMALL, spread=0.2),
        planted.additive({"a0.h0": 1.0, "a1.h2": -0.5, "m1.n0": 2.0}, layout=SMALL, spread=0.2),
    ):
        found, task = found_of(subject)
        audit = sm.audit(found, subject, task, budget=600)
        assert not [g for g in audit.backups if g.confirmed()]
        assert bool(audit.confirmed) == ("AND" in subject.name)
        assert all(check.estimate > 0 for check in audit.confirmed)


def test_helping_and_preserving_circuits_part_on_harmful_components():
    subject = planted.additive({"a0.h0": 1.0, "a0.h1": -1.1, "a1.h2": 2.0, "m1.n0": 1.0}, layout=SMALL)
    found, task = found_of(subject)
    last = sm.audit(found, subject, task, budget=400).sizes[-1]
    assert last.help.faithfulness == pytest.approx(4 / 2.9, abs=1e-3)
    assert last.preserve.faithfulness == pytest.approx(1.0, abs=1e-3)
    assert "a0.h1" in last.preserve.names
    assert "a0.h1" not in last.help.names


def test_a_metric_that_falls_is_helped_by_falling():
    subject = planted.conjunction(("a0.h1", "a1.h0"), strength=3.0, layout=LAYOUT)
    task = planted.task(2).with_metric("kl")
    found = sm.discover(subject, task, sm.heads(subject), budget=300)
    audit = sm.audit(found, subject, task, budget=300)
    assert audit.empty > audit.intact == pytest.approx(0, abs=1e-6)
    assert audit.sizes[-1].help.faithfulness == pytest.approx(1.0, abs=1e-4)
    assert audit.circuit.kl == pytest.approx(audit.circuit.value, abs=1e-6)


def test_random_sets_are_the_null(backup):
    _, _, _, audit = backup
    row = next(r for r in audit.sizes if r.count == 1)
    assert row.preserve.faithfulness == pytest.approx(1.0, abs=1e-3)
    assert row.random_mean == pytest.approx(row.random_std**2 * 7 / 8 + row.random_mean**2)  # each is 0 or 1
    assert row.random_as_good == pytest.approx(row.random_mean)  # ours is 1: as good are those that are
    assert 0 < row.random_as_good < 1
    null = next(r for r in audit.rankings if r.name == "random sets")
    assert audit.cpr > null.cpr
    assert audit.cmd < null.cmd


@pytest.mark.parametrize("budget", [LEAST_AUDIT_BUDGET, 150, 1500])
def test_the_budget_is_never_exceeded_and_what_is_missing_is_said(backup, budget, monkeypatch):
    subject, task, found, _ = backup
    from spex_mech.ablation.respond import Engine

    asked, values = [], Engine.values
    monkeypatch.setattr(Engine, "values", lambda self, keep: asked.append(len(keep)) or values(self, keep))
    audit = sm.audit(found, subject, task, budget=budget)
    assert sum(asked) == audit.record["masks"] <= budget
    assert audit.record["rows"] == audit.record["masks"] * len(task)
    assert bool(audit.skipped) == (budget < 1500)


def test_same_seed_same_figures_other_seed_other_masks(backup):
    subject, task, found, _ = backup
    one, two, other = (sm.audit(found, subject, task, budget=160, seed=s) for s in (1, 1, 2))
    assert dataclasses.replace(one, record={}) == dataclasses.replace(two, record={})
    assert one.fresh != other.fresh


def test_fresh_masks_are_the_runs_kind_of_masks():
    subject = planted.conjunction(AND, layout=SMALL, spread=0.2)
    found, task = found_of(subject, keep_prob=[0.5, 0.9], decoder="linear")
    audit = sm.audit(found, subject, task, budget=300)
    assert audit.fresh.keep_probs == (0.5, 0.9)
    assert any("explains 0." in caution for caution in audit.cautions)  # a line cannot tell an AND
    found, task = found_of(subject, keep_prob=0.9, decoder="linear")
    audit = sm.audit(found, subject, task, budget=300)
    assert audit.fresh.keep_probs == (0.9,)
    assert any("extrapolates" in caution for caution in audit.cautions)


def test_components_without_a_term_fill_the_room_of_a_size():
    """Absent is not zero: the whole size is kept where nothing speaks against it, so that at size 1 all is intact."""
    weak = dict.fromkeys(("a0.h0", "a0.h1", "a1.h0", "a1.h1", "m0.n0"), 0.01)
    subject = planted.additive({"a0.h2": 10.0, **weak}, layout=SMALL)
    found, task = found_of(subject, budget=60, decoder="linear")
    audit = sm.audit(found, subject, task, budget=200)
    unknown = set(found.components.names) - {n for i in found.circuit.interactions for n in i.components}
    assert unknown & set(weak)
    last = audit.sizes[-1]
    assert last.preserve.faithfulness == pytest.approx(1.0, abs=1e-6)
    assert unknown <= set(last.preserve.names)
    assert last.preserve.method.endswith("filled up")


def test_behind_a_link_the_metrics_own_interactions_are_put_to_the_test():
    """Additive behind a sigmoid: the metric has interactions of its own, which the audit measures, and says so."""
    weights = {("a0.h0",): 2.0, ("a0.h1",): 1.5, ("a1.h2",): 1.0, (): -2.0}
    subject = planted.polynomial(weights, link="sigmoid", layout=SMALL)
    found, task = found_of(subject, n_prompts=2, budget=200, link="logistic", decoder="proxyspex")
    audit = sm.audit(found, subject, task, budget=600)
    assert any("link" in caution for caution in audit.cautions)
    components = found.components
    keep = sm.MaskDesign.complete(len(components)).keep()
    values = planted.truth(subject, components).evaluate(keep).sigmoid()
    truth = Exact().decode(Samples(keep, values[:, None])).spectrum
    assert audit.confirmed
    for check in audit.interactions:
        exact = truth.get(components.indices(check.components)) or 0.0
        assert abs(check.estimate - exact) < max(6 * check.stderr, 1e-5)


def test_a_small_difference_of_the_ends_is_told():
    terms = {("a0.h1", "a1.h0"): 1.0, ("a1.h1",): 0.05}
    subject = planted.polynomial(terms, basis="walsh", layout=SMALL)
    found, task = found_of(subject)
    assert any("unstable" in caution for caution in sm.audit(found, subject, task, budget=200).cautions)


def test_an_asked_size_is_audited(backup):
    subject, task, found, _ = backup
    audit = sm.audit(found, subject, task, budget=200, size=2)
    assert len(audit.circuit.names) <= 2


def test_files_read_back_equal_and_hostile_ones_are_refused(backup, tmp_path):
    _, _, _, audit = backup
    path = audit.save(tmp_path / "audit.json")
    assert sm.load_audit(path) == audit
    record = json.loads(path.read_text())
    for spoil in (
        {"intact": "high"},
        {"sizes": [{}]},
        {"fresh": None},
        {"names": []},
        {"backups": {"a": 1}},
        {"schema": "spex_mech.audit/99"},
        {"unit": 3},
    ):
        path.write_text(json.dumps(record | spoil))
        with pytest.raises(FormatError):
            sm.load_audit(path)
    del record["circuit"], record["cpr"]
    path.write_text(json.dumps(record))
    with pytest.raises(FormatError, match=r"circuit is missing[\s\S]*cpr is missing"):
        sm.load_audit(path)


def test_tables(backup):
    _, _, _, audit = backup
    frame = audit.interactions_frame()
    assert len(frame) == len(audit.interactions)
    assert frame["confirmed"].all()
    assert list(audit.sizes_frame()["count"]) == [row.count for row in audit.sizes]
    assert audit.rankings_frame().iloc[0]["name"] == "spex_mech"
    assert "CPR" in str(audit)


def test_a_killed_audit_goes_on_and_a_finished_one_costs_nothing(backup, tmp_path, monkeypatch):
    subject, task, found, _ = backup
    from spex_mech.ablation.respond import Engine

    values, calls, alive = Engine.values, [], [True]

    def dies(self, keep):
        if len(calls) == 5 and alive:
            alive.clear()
            raise KeyboardInterrupt
        calls.append(len(keep))
        return values(self, keep)

    monkeypatch.setattr(Engine, "values", dies)
    with pytest.raises(KeyboardInterrupt):
        sm.audit(found, subject, task, budget=160, out=tmp_path)
    assert not (tmp_path / "audit.json").exists()
    assert len(calls) == 5
    resumed = sm.audit(found, subject, task, budget=160, out=tmp_path)
    assert sum(calls) == resumed.record["masks"]  # nothing was measured twice
    fresh = sm.audit(found, subject, task, budget=160)
    assert dataclasses.replace(resumed, record={}) == dataclasses.replace(fresh, record={})
    calls.clear()
    again = sm.audit(found, subject, task, budget=160, out=tmp_path)
    assert not calls
    assert dataclasses.replace(again, record={}) == dataclasses.replace(fresh, record={})
    assert sm.load_audit(tmp_path / "audit.json") == again
    other = sm.audit(found, subject, task, budget=120, out=tmp_path)  # another plan, another journal
    assert other.record["budget"] == 120


def test_another_experiment_is_refused_by_name(backup):
    subject, task, found, _ = backup
    other = planted.conjunction(OR, layout=LAYOUT)
    with pytest.raises(ResponseError, match=r"model\.weights_sha256"):
        sm.audit(found, other, task)
    with pytest.raises(ResponseError, match=r"task\.prompts \(4 in the run, 2 here\)"):
        sm.audit(found, subject, task.take([0, 1]))
    with pytest.raises(ResponseError, match=r"task\.metric"):
        sm.audit(found, subject, task.with_metric("logit"))
    with pytest.raises(DesignError, match="at least 96"):
        sm.audit(found, subject, task, budget=95)


def test_a_metric_that_nothing_changes_is_refused():
    subject = planted.polynomial({(): 1.0}, layout=LAYOUT)
    task = planted.task(2)
    found = sm.discover(subject, task, sm.heads(subject), budget=256)
    with pytest.raises(ResponseError, match="faithfulness is not defined"):
        sm.audit(found, subject, task)


def from_truth(study):
    """The run that measures all masks, without measuring: the card's own table."""
    reference = fit_replacement(study.subject, study.task, study.components, study.replacement, study.per)
    design = sm.MaskDesign.complete(len(study.components))
    record = describe_experiment(Engine(study.subject, study.task, study.components, reference), design)
    return decode(sm.Responses(study.components, design.keep(), study.card.truth.values, "logit", record))


def card_check(study, found, budget):
    """An audit of a card, every figure of it against the card's table of all masks."""
    card = study.card
    known = list(card.published.nodes)
    audit = sm.audit(found, study.subject, study.task, budget=budget, known=known)
    truth = Enumerated(card.truth.components, card.truth.values)
    assert truth.names == found.components.names
    walsh, unit = true_spectrum(card), abs(audit.intact - audit.empty)
    check_against(audit, truth, lambda names: walsh.get(found.components.indices(names)) or 0.0, unit)
    fresh = audit.fresh
    keep = sm.MaskDesign.stratified(len(truth.names), fresh.masks, fresh.keep_probs, seed_of(1, "fresh")).keep()
    assert fresh.r2 == pytest.approx(r_squared(truth(keep), found.predict(keep).double()), abs=1e-3)
    return audit


def check_induction(audit):
    assert set(audit.circuit.names) == {"a0.h4", "a1.h0", "a1.h2", "a1.h4"}
    assert (audit.known.precision, audit.known.recall) == (1.0, 1.0)
    assert audit.rankings[0].auroc == 1.0
    assert {"a1.h0", "a1.h2", "a1.h4"} in [set(g.components) for g in audit.backups if g.confirmed()]


def open_trained(name):
    if not (CARDS / name / "truth.safetensors").exists():
        pytest.skip("the cards of trained models are not beside this checkout")
    return sm.open_study(CARDS / name)


def test_every_figure_on_the_induction_card():
    study = sm.open_study("induction-2l")
    check_induction(card_check(study, from_truth(study), 700))


@pytest.mark.parametrize("name", ["addition4", "modadd_pizza"])
def test_every_figure_on_trained_cards(name):
    study = open_trained(name)
    card_check(study, from_truth(study), 500)


def discovered(study, budget):
    return sm.discover(
        study.subject, study.task, study.components, budget=budget, replacement=study.replacement, per=study.per
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["brackets", "tracr_any3"])
def test_every_figure_on_larger_trained_cards(name):
    study = open_trained(name)
    card_check(study, discovered(study, 500), 800)


@pytest.mark.slow
def test_every_figure_on_the_induction_card_from_a_sample_of_masks():
    study = sm.open_study("induction-2l")
    check_induction(card_check(study, discovered(study, 700), 1024))


def test_fresh_values_are_kept_and_files_from_before_are_read(backup, tmp_path):
    fresh, path = backup[3].fresh, tmp_path / "audit.json"
    missed = torch.tensor(fresh.measured).double() - torch.tensor(fresh.predicted).double()
    assert len(missed) == fresh.masks
    assert float((missed**2).mean().sqrt()) == pytest.approx(fresh.rmse, rel=1e-4, abs=1e-9)
    record = json.loads(backup[3].save(path).read_text())
    del record["fresh"]["measured"], record["fresh"]["predicted"]
    path.write_text(json.dumps(record))
    assert sm.load_audit(path).fresh.measured == ()
