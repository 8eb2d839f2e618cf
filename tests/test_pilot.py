"""keep_prob="auto": a pilot that costs what it says, decides by spread, is part of its run, and is paid once."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.ablation.respond import Engine
from spex_mech.bench import keeps
from spex_mech.cli import main as cli
from spex_mech.errors import DesignError, ResponseError
from spex_mech.measuring.masks import AROUND, DEFAULT_KEEP
from spex_mech.measuring.pilot import CANDIDATES, FEWEST, SHARE, Pilot, choose_keep, deviation, plan_pilot
from spex_mech.walsh.masks.design import MaskDesign

LAYOUT = planted.PlantedLayout(n_layers=2, n_heads=8, d_mlp=6)  # 28 components: too many for all masks
ALL = [f"a{layer}.h{head}" for layer in range(2) for head in range(8)] + [
    f"m{layer}.n{neuron}" for layer in range(2) for neuron in range(6)
]


def run(subject, **options):
    options = {"budget": 600, "keep_prob": "auto", "decoder": "linear", "link": "identity", "seed": 0} | options
    components = sm.heads(subject) + sm.neurons(subject)
    return sm.discover(subject, planted.task(n_prompts=3, seed=0), components, **options)


@pytest.fixture(scope="module")
def fragile():
    """The behaviour needs 24 components at once: half of the masks keep it at 0.97, none at 0.5."""
    return planted.conjunction(ALL[:24], layout=LAYOUT)


@pytest.fixture
def measured(monkeypatch):
    """The masks that the engine is asked for."""
    asked = []
    honest = Engine.values
    monkeypatch.setattr(Engine, "values", lambda self, keep: asked.append(keep) or honest(self, keep))
    return asked


def auto(n, masks, seed=0):
    return MaskDesign.stratified(n, masks, AROUND[DEFAULT_KEEP], seed)


designs = st.builds(
    lambda n, masks, seed, share: auto(n, masks, seed).sharing([0], share) if share > 1 else auto(n, masks, seed),
    st.integers(2, 40),
    st.integers(16, 5000),
    st.integers(0, 1 << 40),
    st.integers(1, 4),
)


@given(designs, st.sampled_from(CANDIDATES))
@settings(max_examples=60, deadline=None)
def test_a_pilot_is_the_beginning_of_every_run_it_may_choose_and_costs_a_tenth_at_most(design, keep_prob):
    pilot = plan_pilot(design)
    if pilot is None:
        assert int(SHARE * design.n_masks) < 2 + FEWEST * (len(CANDIDATES) - 1)
        return
    strata = AROUND[keep_prob]
    chosen, rows = pilot.at(strata), pilot.beginning(strata)
    assert torch.equal(pilot.keep()[rows], chosen.keep(0, pilot.masks_each))
    assert set(rows.tolist()) <= {row for q in strata for row in pilot.rows(q).tolist()}
    assert pilot.keep()[:2].tolist() == [[True] * design.n, [False] * design.n]
    thrown = pilot.n_masks - pilot.masks_each
    assert chosen.n_masks + thrown == design.n_masks
    assert thrown <= SHARE * design.n_masks
    assert (chosen.shared, chosen.repeats, chosen.seed) == (design.shared, design.repeats, design.seed)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30))
def test_deviation_is_numpys(values):
    values = np.array(values)
    expected = np.abs(values - np.median(values)).mean()
    assert float(deviation(torch.tensor(values))) == pytest.approx(expected, abs=1e-9)


def pilot_values(pilot, scales, seed):
    """Normal values of standard deviation `scales`, one a candidate, behind the two ends."""
    noise = torch.randn(len(pilot.keep_probs), pilot.masks_each, generator=torch.Generator().manual_seed(seed))
    return torch.cat([torch.tensor([1.0, 0.0]), (noise * torch.tensor(scales)[:, None]).flatten()])[:, None]


@pytest.mark.parametrize(("scales", "likely"), [((5, 3, 2, 1, 1), 0.5), ((0.1, 0.2, 0.5, 1, 3), 0.95)])
def test_the_widest_spread_is_chosen_where_it_is_clear(scales, likely):
    pilot = Pilot(auto(30, 4096), 60)
    chosen = [choose_keep(pilot, pilot_values(pilot, scales, seed)).keep_prob for seed in range(50)]
    assert chosen.count(likely) >= 48


@pytest.mark.parametrize(("each", "most"), [(FEWEST, 0.25), (25, 0.15)])
def test_the_default_stays_where_nothing_is_clear(each, most):
    pilot = Pilot(auto(30, 4096), each)
    moved = [choose_keep(pilot, pilot_values(pilot, (1, 1, 1, 1, 1), seed)).keep_prob for seed in range(200)]
    assert sum(q != DEFAULT_KEEP for q in moved) <= most * 200


def test_a_metric_that_never_moves_leaves_the_default():
    pilot = Pilot(auto(30, 1024), 25)
    choice = choose_keep(pilot, torch.ones(pilot.n_masks, 4))
    assert choice.keep_prob == DEFAULT_KEEP
    assert [row["effect_kept"] for row in choice.describe()["candidates"]] == [None] * len(CANDIDATES)


def test_what_breaks_easily_is_studied_near_the_intact_model(fragile):
    found = run(fragile, budget=2048)
    told = found.record["pilot"]
    assert told["keep_prob"] == 0.95
    assert told["keep_probs"] == found.record["design"]["keep_probs"] == [0.9, 0.95]
    assert (told["intact"], told["empty"]) == pytest.approx((1.0, 0.0), abs=1e-5)
    rows = {row["keep_prob"]: row for row in told["candidates"]}
    assert rows[0.5]["effect_kept"] == pytest.approx(0, abs=1e-5)
    assert found.responses.keep[::2].double().mean() == pytest.approx(0.9, abs=0.01)
    assert found.responses.keep[1::2].double().mean() == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("share", [1, 2])
def test_the_run_is_that_of_the_chosen_keep_probabilities(fragile, share):
    found = run(fragile, shared_layers=share)
    plain = run(
        fragile, keep_prob=found.record["pilot"]["keep_probs"], budget=len(found.responses), shared_layers=share
    )
    assert torch.equal(found.responses.keep, plain.responses.keep)
    torch.testing.assert_close(found.responses.values, plain.responses.values, atol=1e-5, rtol=0)
    assert found.record["design"] == plain.record["design"]
    assert len(found.responses) + found.record["pilot"]["masks"] == 600


def test_every_mask_is_measured_once_and_a_second_call_costs_nothing(fragile, tmp_path, measured):
    first = run(fragile, out=tmp_path)
    assert sum(map(len, measured)) <= 600
    measured.clear()
    again = run(fragile, out=tmp_path)
    assert measured == []
    assert torch.equal(again.responses.values, first.responses.values)
    assert again.record["pilot"] == first.record["pilot"] == json.loads((tmp_path / "run.json").read_text())["pilot"]
    assert sm.load_run(tmp_path).record["pilot"] == first.record["pilot"]


def test_a_run_killed_behind_its_pilot_does_not_pay_for_it_again(fragile, tmp_path, measured, monkeypatch):
    whole = run(fragile, out=tmp_path / "whole")
    once = sum(map(len, measured))
    with monkeypatch.context() as patch:
        patch.setattr("spex_mech.measuring.spine.measure_in", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(fragile, out=tmp_path / "killed")
    found = run(fragile, out=tmp_path / "killed")
    assert sum(map(len, measured)) == 2 * once
    assert torch.equal(found.responses.values, whole.responses.values)
    assert found.record["pilot"] == whole.record["pilot"]


def test_few_masks_take_the_default_without_a_pilot(fragile, measured):
    found = run(fragile, budget=100)
    assert found.record["design"] == auto(28, 100).to_dict()
    assert found.record["pilot"]["masks"] == 0
    assert "too few" in found.record["pilot"]["reason"]


def test_all_masks_need_no_pilot():
    subject = planted.additive({"a0.h0": 1.0}, layout=planted.PlantedLayout(n_layers=1, n_heads=3, d_mlp=2))
    found = run(subject, budget=64, decoder="auto")
    assert found.record["design"]["kind"] == "complete"
    assert "pilot" not in found.record


def test_a_folder_without_a_pilot_and_a_decoder_of_coded_masks_are_refused(fragile, tmp_path, measured):
    run(fragile, keep_prob=0.8, budget=64, out=tmp_path)
    measured.clear()
    with pytest.raises(ResponseError, match="without a pilot"):
        run(fragile, out=tmp_path)
    with pytest.raises(DesignError, match="coded"):
        run(fragile, decoder="spex")
    assert measured == []


def test_another_pilot_in_the_folder_is_refused_by_name(fragile, tmp_path):
    run(fragile, out=tmp_path)
    with pytest.raises(ResponseError, match=r"design\.seed"):
        run(fragile, out=tmp_path, seed=1)


def test_the_command_line_takes_auto(tmp_path, monkeypatch):
    line = "spex-mech discover planted-and --keep auto --budget 300 --decoder linear --link identity -q --out"
    monkeypatch.setattr("sys.argv", [*line.split(), str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert json.loads((tmp_path / "run.json").read_text())["pilot"]["masks"] == 2 + 4 * 7


@pytest.mark.slow
def test_the_bench_of_keep_probabilities_tells_what_they_do_to_the_model_and_to_the_polynomial():
    result = keeps.run(quick=True)
    metric = [row for row in result["rows"] if row["kind"] == "metric"]
    effects, distances = ([row[name] for row in metric] for name in ("effect_kept", "distance"))
    assert effects == sorted(effects)
    assert distances == sorted(distances, reverse=True)
    (found,) = (row for row in result["rows"] if row["kind"] == "decoding")
    assert found["keep_probs"] == [0.8]
    assert found["own_r2"] == found["r2"][0.8] > 0.9
    assert 0 <= found["agreement"] <= 1
    assert result["summary"]["least_r2_from_0.5, keep 0.8"] == min(found["r2"][q] for q in keeps.KEEPS[1:])
