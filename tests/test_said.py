"""What is printed of a run is so: how many, by what, and what is left to do."""

import pytest

import spex_mech as sm
from spex_mech.show.wording import limits, warnings


def value(texts):
    return [float(all(w in text for w in "ab")) for text in texts]


@pytest.fixture(scope="module")
def exact():
    return sm.discover_features(value, "a b c d", budget=16)


def test_one_is_not_several(exact):
    study = sm.open_study("planted-and")
    one = sm.discover(study.subject, study.task.take([0]), "a*.h*", budget=16, replacement="zero", decoder="linear")
    for said in (str(one), repr(one.responses), *limits(one, None), str(exact), str(study.task.take([0]))):
        assert "1 prompts" not in said


def test_a_run_of_all_masks_is_not_told_to_try_another_seed(exact):
    assert exact.heldout_r2 is None
    assert not any("another seed" in said for said in warnings(exact, None))


def test_plan_and_run_count_the_same_rows():
    study = sm.open_study("planted-and")
    asked = {"components": "a*.h*", "budget": 24, "keep_prob": 0.9, "decoder": "linear"}
    found = sm.discover(study.subject, study.task, **asked)
    assert sm.plan_run(study.subject, study.task, **asked).rows == found.record["rows"]


def test_auto_has_a_pilot_for_features_too():
    found = sm.discover_features(value, "a b c d e f g h i j", budget=300, keep_prob="auto", decoder="linear")
    pilot = found.record["pilot"]
    assert pilot["masks"] > 0
    assert len(pilot["candidates"]) == 5
    few = sm.discover_features(value, "a b c d e f g h i j", budget=100, keep_prob="auto", decoder="linear")
    assert "too few" in few.record["pilot"]["reason"]


def test_binding_says_that_it_sets_eval_mode():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_embd=16, n_layer=1, n_head=2, n_positions=8)).train()
    sm.bind(model)
    assert not model.training
