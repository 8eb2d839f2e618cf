"""Planted subjects: the truth that is claimed is what the ablation engine measures, mask by mask."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spex_mech.ablation.backends import planted
from spex_mech.ablation.backends.planted import PlantedLayout
from spex_mech.ablation.binding import bind
from spex_mech.ablation.replacement import fit_replacement
from spex_mech.ablation.respond import respond
from spex_mech.ablation.subject import Subject
from spex_mech.components import ComponentSet, select
from spex_mech.errors import ComponentError, FormatError
from spex_mech.walsh.spectrum import Basis

MIXED = PlantedLayout(n_layers=2, n_heads=2, d_mlp=2)


def all_keep(n):
    return (torch.arange(1 << n)[:, None] >> torch.arange(n)) & 1 == 0


def measured(subject, components, keep, kind="mean", prompts=4):
    task = planted.task(prompts, seed=3)
    replacement = fit_replacement(subject, task, components, kind)
    return respond(subject, task, components, [keep], replacement)


def agree(subject, expression, kind="mean", prompts=4):
    components = select(subject, expression)
    keep = all_keep(len(components))
    values = measured(subject, components, keep, kind, prompts).double().mean(1)
    torch.testing.assert_close(values, planted.truth(subject, components).evaluate(keep), rtol=0, atol=1e-6)


SUBJECTS = {
    "additive": planted.additive({"a0.h0": 1.0, "m1.n1": -0.5}, layout=MIXED, spread=0.5),
    "and": planted.conjunction(["a0.h1", "a1.h0", "m1.n0"], strength=2.0, layout=MIXED, spread=0.5),
    "or": planted.backup(["a0.h0", "m0.n1", "a1.h1"], layout=MIXED),
    "xor": planted.parity_subject(["a0.h0", "a1.h1", "m0.n0"], layout=MIXED, spread=1.0),
    "random": planted.random(6, 3, seed=5, layout=MIXED),
    "constant": planted.polynomial({(): 3.0}, layout=MIXED),
}


@pytest.mark.parametrize("name", SUBJECTS)
@pytest.mark.parametrize(
    "expression", ["a*.h*, m*.n*", "a*.h*, m*", "a0, m1, a1.kv0", "[a0.h0,m1.n0], m1, m0.n1, a0.h1"]
)
def test_the_engine_measures_the_truth(name, expression):
    agree(SUBJECTS[name], expression)


@pytest.mark.parametrize("kind", ["mean", "zero", "resample"])
def test_every_replacement_means_the_same(kind):
    agree(SUBJECTS["random"], "a*.h*, m*", kind)


@given(seed=st.integers(0, 10**6), order=st.integers(1, 4), hierarchical=st.booleans(), prompts=st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_any_random_subject_is_its_truth(seed, order, hierarchical, prompts):
    subject = planted.random(4, order, seed, hierarchical=hierarchical, layout=PlantedLayout(2, 2, 1), spread=0.7)
    agree(subject, "a*.h*, m*.n*", prompts=prompts)


@pytest.mark.parametrize("basis", [Basis(), Basis("biased", 0.8), Basis("mobius"), Basis("knockout")])
def test_truth_is_one_polynomial_in_any_basis(basis):
    subject, keep = SUBJECTS["or"], all_keep(8)
    components = select(subject, "a*.h*, m*.n*")
    written = planted.truth(subject, components, basis)
    assert written.basis == basis
    torch.testing.assert_close(written.evaluate(keep), planted.truth(subject, components).evaluate(keep))


def test_the_two_component_table_of_the_conventions():
    """AND and OR of two, by hand (the docstring of spex_mech.walsh)."""
    names = ["a0.h0", "a1.h0"]
    both = ComponentSet.of(names)
    conjunction = planted.truth(planted.conjunction(names), both)
    backup = planted.truth(planted.backup(names), both)
    assert [conjunction[s] for s in ((), 0, 1, (0, 1))] == [0.25] * 4
    assert [backup[s] for s in ((), 0, 1, (0, 1))] == [0.75, 0.25, 0.25, -0.25]
    assert planted.truth(planted.conjunction(names), both, Basis("knockout"))[0, 1] == 1.0
    assert planted.truth(planted.backup(names), both, Basis("knockout"))[0, 1] == -1.0
    assert list(planted.truth(planted.parity_subject(names), both).terms()) == [((0, 1), 1.0)]


def test_a_neuron_needs_its_mlp_and_uncovered_components_act():
    subject = planted.conjunction(["m0.n0", "a1.h1"], layout=MIXED)
    assert dict(planted.truth(subject, ComponentSet.of(["m0.n0", "m0"]), Basis("mobius")).terms()) == {(0, 1): 1.0}
    assert dict(planted.truth(subject, ComponentSet.of(["a0.h0"]), Basis("mobius")).terms()) == {(): 1.0}


@pytest.mark.parametrize("link", ["identity", "tanh", "sigmoid"])
def test_the_link_is_applied_after_the_scale(link):
    subject = replace(planted.additive({"a0.h0": 1.5, "a0.h1": -4.0}, spread=0.5), link=link)
    components = ComponentSet.of(["a0.h0", "a0.h1"])
    keep, task = all_keep(2), planted.task(4, seed=3)
    values = measured(subject, components, keep)
    functions = {"identity": lambda v: v, "tanh": torch.tanh, "sigmoid": torch.sigmoid}
    inside = planted.truth(subject, components).evaluate(keep)[:, None] * subject.scales(task.prompts.tokens)[None]
    torch.testing.assert_close(values.double(), functions[link](inside), rtol=0, atol=1e-6)


def test_prompts_differ_by_known_factors_of_mean_one():
    subject = planted.additive({"a0.h0": 1.0}, spread=0.5)
    for prompts in (1, 2, 9, 16):
        scales = subject.scales(planted.task(prompts, seed=1).prompts.tokens)
        assert scales.mean() == pytest.approx(1.0)
    assert scales.max() > scales.min()
    assert bool((planted.task(16, seed=1).prompts.tokens == planted.task(16, seed=1).prompts.tokens).all())
    assert not torch.equal(planted.task(16, 1).prompts.tokens, planted.task(16, 2).prompts.tokens)


def test_it_is_a_subject_with_logits_at_every_position():
    subject = SUBJECTS["and"]
    assert isinstance(subject, Subject)
    assert bind(subject) is subject
    tokens = torch.tensor([[1, 6, 0], [0, 6, 0]])
    everywhere = subject.forward(tokens, {}, None)
    assert everywhere.shape == (2, 3, planted.D_VOCAB)
    assert everywhere[:, :, 1].tolist() == [[2.0] * 3, [0.0] * 3]
    assert torch.equal(subject.forward(tokens, {}, torch.tensor([2, 0])), everywhere[[0, 1], [2, 0]])


def test_random_subjects_come_from_their_seed_and_may_lack_parents():
    one, same, other = (planted.random(5, 3, seed, layout=MIXED) for seed in (1, 1, 2))
    assert planted.planted_json(one) == planted.planted_json(same) != planted.planted_json(other)
    sets = set(one.polynomial.sets)
    assert all(s[:i] + s[i + 1 :] in sets for s in sets for i in range(len(s)) if len(s) > 1)
    loose = set(planted.random(5, 4, 3, hierarchical=False, layout=MIXED).polynomial.sets)
    assert len(loose) <= 5
    assert max(map(len, loose)) > 1


def test_a_file_gives_the_same_subject(tmp_path):
    subject = replace(SUBJECTS["random"], link="tanh", spread=0.25)
    assert planted.save_planted(subject, tmp_path) == tmp_path / "planted.json"
    again = planted.load_planted(tmp_path, device="cpu")
    assert planted.planted_json(again) == planted.planted_json(subject)
    assert again.provenance["weights_sha256"] == subject.provenance["weights_sha256"]


def record(**changes):
    return {**json.loads(planted.planted_json(SUBJECTS["and"])), **changes}


TERM = {"set": ["a0.h0"], "coefficient": 1.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "holds a list"),
        ("[" * 100_000, "cannot be read as JSON"),
        (record(schema="spex_mech.planted/9"), "has schema"),
        (record(code="import os"), "unknown field 'code'"),
        (record(n_layers=True), "n_layers is True"),
        (record(n_heads=10**9), "n_heads is 1000000000"),
        (record(link="exec"), "link is 'exec'"),
        (record(link=[]), "link is"),
        (record(basis="biased"), "basis is 'biased'"),
        (record(basis={}), "basis is"),
        (record(spread=2), "spread is 2"),
        (record(terms=[{"set": ["a0.h9"], "coefficient": 1}]), "'a0.h9'"),
        (record(terms=[{"set": ["m0"], "coefficient": 1}]), "'m0'"),
        (record(terms=[{"set": [["a0.h0"]], "coefficient": 1}]), "term 0"),
        (record(terms=[TERM, TERM]), "repeats the set"),
        (record(terms=[{"set": ["a0.h0", "a0.h0"], "coefficient": 1}]), "twice"),
        (record(terms=[{"set": ["a0.h0"], "coefficient": "1"}]), "not a finite number"),
        (record(terms=["a0.h0"]), "term 0"),
    ],
)
def test_damaged_files_are_refused(tmp_path, content, message):
    (tmp_path / "planted.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(FormatError, match="planted") as caught:
        planted.load_planted(tmp_path)
    assert message in str(caught.value)


def test_nan_is_no_coefficient(tmp_path):
    text = json.dumps(record(terms=[TERM])).replace("1.0", "NaN")
    (tmp_path / "planted.json").write_text(text)
    with pytest.raises(FormatError, match="NaN is no JSON number"):
        planted.load_planted(tmp_path)
    with pytest.raises(FormatError, match="the coefficient nan is not a finite number"):
        planted.additive({"a0.h0": float("nan")})


def test_all_problems_are_told_at_once(tmp_path):
    (tmp_path / "planted.json").write_text(json.dumps(record(n_heads=0, spread="much", link="relu")))
    with pytest.raises(FormatError) as caught:
        planted.load_planted(tmp_path)
    assert all(word in str(caught.value) for word in ("n_heads", "spread", "link"))


def test_errors_of_the_constructors():
    with pytest.raises(FormatError, match=r"a7\.h0"):
        planted.conjunction(["a7.h0", "a0.h0"])
    with pytest.raises(FormatError, match="order"):
        planted.random(3, 9, 0, layout=PlantedLayout(1, 2))
    with pytest.raises(FormatError, match="at least one prompt"):
        planted.task(0)
    with pytest.raises(FormatError, match="cannot be read"):
        planted.load_planted("nowhere")
    with pytest.raises(ComponentError, match="single positions"):
        planted.truth(SUBJECTS["and"], ComponentSet.of(["a0.h0@p-1"]))
    with pytest.raises(ComponentError, match=r"a9\.h0"):
        planted.truth(SUBJECTS["and"], ComponentSet.of(["a9.h0"]))
