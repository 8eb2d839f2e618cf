"""The spine on planted subjects: what is planted is found, what is not is not, and nothing paid for is lost."""

import dataclasses
import json

import pytest
import torch

import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.api.discover import decode
from spex_mech.errors import ComponentError, DecodeError, DesignError, FormatError, ResponseError, SpexMechWarning
from spex_mech.walsh.decoding import r_squared

SHAPE = {"layout": planted.PlantedLayout(n_layers=2, n_heads=4, d_mlp=2)}
AND = ("a0.h1", "a1.h0", "m0.n1")


def components(subject):
    return sm.heads(subject) + sm.neurons(subject)


def run(subject, **options):
    defaults = {"components": components(subject), "budget": 4096, "seed": 0}
    return sm.discover(subject, planted.task(n_prompts=4, seed=0), **{**defaults, **options})


def joint(found):
    frame = found.interactions()
    return {tuple(sorted(row.components)): row for row in frame[frame["order"] > 1].itertuples()}


@pytest.fixture(scope="module")
def conjunction():
    return planted.conjunction(AND, **SHAPE)


@pytest.mark.parametrize("budget", [4096, 1000])  # all masks; a sample of them
def test_additive_has_no_interaction(budget):
    subject = planted.additive({"a0.h0": 1.0, "a1.h2": -0.5, "m1.n0": 2.0}, **SHAPE)
    found = run(subject, budget=budget)
    assert not joint(found)
    assert {c for row in found.interactions().itertuples() for c in row.components} == {"a0.h0", "a1.h2", "m1.n0"}


def test_the_values_behind_heldout_r2_are_kept(conjunction):
    kept = run(conjunction, budget=1000).record["heldout"]
    truth, predicted = (torch.tensor(kept[key]).double() for key in ("measured", "predicted"))
    assert r_squared(truth, predicted) == pytest.approx(run(conjunction, budget=1000).heldout_r2, abs=1e-6)
    assert run(conjunction, budget=4096).record["heldout"] is None  # nothing was held out


@pytest.mark.parametrize("budget", [4096, 1000])
@pytest.mark.parametrize("kind", ["conjunction", "backup", "parity_subject"])
def test_exactly_the_planted_sets_with_their_signs(kind, budget):
    names = ("a0.h1", "m1.n0")
    subject = getattr(planted, kind)(names, **SHAPE)
    found = run(subject, budget=budget)
    truth = planted.truth(subject, found.components)
    got = {s: c for s, c in found.spectrum.terms() if s}
    want = {s: c for s, c in truth.terms() if s and abs(c) > 1e-9}
    assert got.keys() == want.keys()
    assert all(abs(got[s] - want[s]) < 1e-3 for s in want)
    (row,) = joint(found).values()
    assert set(row.components) == set(names)
    assert row.kind == ("redundancy" if kind == "backup" else "synergy")
    assert (row.knockout > 0) == (kind != "backup")


def test_a_sample_predicts_masks_it_has_not_seen(conjunction):
    found = run(conjunction, budget=800)
    keep = sm.MaskDesign.bernoulli(len(found.components), 200, 0.5, seed=99).keep()
    expected = planted.truth(conjunction, found.components).evaluate(keep)
    assert found.heldout_r2 > 0.999
    assert torch.allclose(found.predict(keep).double(), expected, atol=1e-3)


def test_coded_masks_are_decoded_by_spex(conjunction):
    found = run(conjunction, keep_prob="coded", budget=2000)
    assert found.record["decoder"]["name"] == "spex"
    truth = planted.truth(conjunction, found.components)
    assert {s for s, _ in found.spectrum.terms() if s} == {s for s, c in truth.terms() if s and abs(c) > 1e-9}


def test_same_seed_same_bits_other_seed_other_masks(conjunction):
    one, two, other = run(conjunction, budget=300), run(conjunction, budget=300), run(conjunction, budget=300, seed=1)
    assert torch.equal(one.responses.values, two.responses.values)
    assert torch.equal(one.spectrum.coefficients, two.spectrum.coefficients)
    assert not torch.equal(one.responses.keep, other.responses.keep)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("budget", 200),
        ("keep_prob", 0.8),
        ("keep_prob", [0.5, 0.9]),
        ("decoder", "linear"),
        ("keep_prob", "coded"),
        ("seed", 3),
        ("replacement", "zero"),
    ],
)
def test_every_option_acts(conjunction, option, value):
    plain, changed = run(conjunction, budget=900), run(conjunction, **{"budget": 900, option: value})
    assert plain.record != changed.record
    if option == "replacement":
        assert changed.record["replacement"]["kind"] == "zero"
    elif value == "coded":
        assert changed.record["decoder"]["name"] == "spex"
    elif option == "decoder":
        assert changed.spectrum.orders.max() == 1
    else:
        assert not torch.equal(plain.responses.keep, changed.responses.keep)


def test_run_folder_reads_back_whole_and_costs_nothing_again(conjunction, tmp_path, monkeypatch):
    first = run(conjunction, budget=300, out=tmp_path)
    again = sm.load_run(tmp_path)
    assert torch.equal(again.responses.values, first.responses.values)
    assert dict(again.spectrum.terms()) == pytest.approx(dict(first.spectrum.terms()))
    assert again.circuit == first.circuit
    assert again.heldout_r2 == first.heldout_r2
    assert json.loads((tmp_path / "run.json").read_text()).keys() >= {
        "heldout_r2",
        "masks",
        "rows",
        "seconds",
        "subject",
        "task",
        "design",
    }

    def forbidden(*_args, **_kwargs):
        raise AssertionError("a forward pass was run again")

    monkeypatch.setattr("spex_mech.ablation.respond.Engine.values", forbidden)
    resumed = run(conjunction, budget=300, out=tmp_path)
    assert torch.equal(resumed.spectrum.coefficients, first.spectrum.coefficients)


def test_a_folder_of_another_experiment_is_refused_by_name_of_what_differs(conjunction, tmp_path):
    run(conjunction, budget=300, out=tmp_path)
    with pytest.raises(ResponseError, match=r"design\.n_masks \(300 there, 301 here\)"):
        run(conjunction, budget=301, out=tmp_path)


def test_responses_are_on_disk_before_they_are_decoded(conjunction, tmp_path, monkeypatch):
    def broken(*_args, **_kwargs):
        raise RuntimeError("decoder broke")

    monkeypatch.setattr("spex_mech.walsh.joint.joint.Joint.decode", broken)
    with pytest.raises(RuntimeError, match="decoder broke"):
        run(conjunction, budget=300, out=tmp_path)
    assert len(sm.Responses.load(tmp_path / "responses.safetensors").keep) == 300


def test_decoding_saved_responses_needs_no_model(conjunction, tmp_path):
    found = run(conjunction, budget=300, out=tmp_path)
    again = decode(sm.Responses.load(tmp_path / "responses.safetensors"), seed=0)
    assert torch.equal(again.spectrum.coefficients, found.spectrum.coefficients)


def test_mistakes_are_told_before_anything_is_spent(conjunction, monkeypatch):
    def forbidden(*_args, **_kwargs):
        raise AssertionError("a forward pass was run")

    monkeypatch.setattr("spex_mech.ablation.respond.Engine.values", forbidden)
    with pytest.raises(ComponentError, match=r"a7\.h0"):
        run(conjunction, components="a7.h0")
    with pytest.raises(DesignError, match="4,096 masks"):
        run(conjunction, decoder="exact", budget=100)
    with pytest.raises(DecodeError, match="no decoder 'magic'"):
        run(conjunction, decoder="magic")
    with pytest.raises(DesignError, match="between 0 and 1"):
        run(conjunction, keep_prob=1.5, budget=100)
    with pytest.raises(DesignError, match="not a keep-probability"):
        run(conjunction, keep_prob="often", budget=100)
    with pytest.raises(DecodeError, match="4 masks"):
        run(conjunction, budget=4)
    with pytest.raises(DesignError, match="fair coins"):
        run(conjunction, decoder="spex", keep_prob=0.9)
    with pytest.raises(DesignError):
        run(conjunction, decoder="spex", budget=50)


def test_nan_responses_name_the_mask(conjunction):
    task = planted.task(n_prompts=4, seed=0)

    def nan_where_much_is_gone(logits, scored):
        values = logits[:, 1].clone()
        values[logits[:, 1] == 0] = float("nan")
        return values

    broken = dataclasses.replace(task, metric=nan_where_much_is_gone)
    with pytest.raises(ResponseError, match=r"mask .*ablated"):
        sm.discover(conjunction, broken, components=components(conjunction), budget=300)


@pytest.mark.parametrize("name", ["run.json", "responses.safetensors", "spectrum.json", "circuit.json"])
def test_damaged_run_folders_give_one_clear_error(conjunction, tmp_path, name):
    run(conjunction, budget=300, out=tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError):
        sm.load_run(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FormatError, match=name):
        sm.load_run(tmp_path)


def test_what_a_metric_warns_of_is_said_at_the_callers_line_and_its_direction_is_recorded(conjunction, tmp_path):
    task = planted.task(n_prompts=2, seed=0)
    options = {"components": components(conjunction), "budget": 60, "decoder": "linear", "link": "identity"}
    with pytest.warns(SpexMechWarning, match="'prob': probability saturates") as told:
        found = sm.discover(conjunction, task.with_metric("prob"), out=tmp_path, **options)
    assert {warning.filename for warning in told if warning.category is SpexMechWarning} == {__file__}
    assert found.record["larger_is_better"] is True
    assert decode(found.responses, decoder="linear").record["larger_is_better"] is True
    assert sm.discover(conjunction, task.with_metric("kl"), **options).record["larger_is_better"] is False
    own = task.with_metric(lambda logits, scored: logits[:, 0])
    assert sm.discover(conjunction, own, **options).record["larger_is_better"] is None


def test_what_a_decoder_set_aside_is_what_its_certainty_rests_on(conjunction):
    found = run(conjunction, budget=1000, decoder="linear", link="identity", seed=5)  # a line fits no conjunction
    kept = {name: torch.tensor(values).double() for name, values in found.record["heldout"].items()}
    assert r_squared(kept["measured"], kept["predicted"]) == pytest.approx(found.heldout_r2, abs=1e-6)
    assert found.heldout_r2 < 0.9
    assert found.record["certainty"]["inference"]["masks"] == len(kept["measured"])
