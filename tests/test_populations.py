"""With all masks measured a table says of which prompts it speaks, and more masks never lose what fewer showed."""

import numpy as np
import pytest
from scipy import stats

import spex_mech as sm

COMPONENTS = "a0.h4, a0.h5, a1.h0, a1.h2, a1.h4, a1.h1, a0.h0, a0.h1"


@pytest.fixture(scope="module")
def study():
    return sm.open_study("induction-2l")


def run(study, prompts, budget):
    return sm.discover(study.subject, study.task.take(prompts), COMPONENTS, budget=budget, decoder="auto")


def test_all_masks_keep_the_strongest_effect_of_two_prompts(study):
    found = run(study, [0, 1], 256)
    rows = found.interactions().set_index("label" if "label" in found.interactions() else "components")
    mains = {i.components[0]: i for i in found.circuit.interactions if i.order == 1}
    assert found.circuit.interactions[0].components == ("a0.h4",)
    assert len(mains) >= 7
    assert len(rows) == len(found.circuit.interactions)
    per_prompt = found.responses.values.double()
    keep = found.responses.keep
    effect = per_prompt[keep[:, 0]].mean(0) - per_prompt[~keep[:, 0]].mean(0)
    assert found.circuit.interactions[0].coefficient == pytest.approx(float(effect.mean()) / 2, rel=1e-5)
    t = float(effect.mean()) / (float(effect.std()) / 2**0.5)
    p = 2 * stats.t.sf(abs(t), 1)
    assert mains["a0.h4"].q_value >= p * 0.999  # adjusted, never below
    q = np.array([i.q_value for i in found.circuit.interactions])
    assert (q > 1e-6).all()
    assert "Student's t over 2" in found.record["certainty"]["inference"]["method"]


def test_one_prompt_has_no_q_and_no_crumbs(study):
    found = sm.discover(study.subject, study.task.take([0]), COMPONENTS, budget=256, replacement="mean", per="position")
    largest = max(abs(i.coefficient) for i in found.circuit.interactions)
    assert all(i.q_value is None and i.stderr is None for i in found.circuit.interactions)
    assert min(abs(i.coefficient) for i in found.circuit.interactions) >= 0.001 * largest
    assert "one prompt says nothing of others" in found.record["certainty"]["inference"]["method"]


def test_more_masks_never_lose_what_fewer_showed(study):
    few, many = (run(study, [0, 1], budget) for budget in (200, 256))
    shown = {i.components for i in few.circuit.interactions if i.order == 1}
    assert shown <= {i.components for i in many.circuit.interactions}
