"""The field's definitions, by hand and against independent implementations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from spex_mech.auditing.faithfulness import (
    SIZES,
    auroc,
    auroc_over_sizes,
    counts,
    faithfulness,
    model_distance,
    performance_ratio,
    precision_recall,
    ranked,
)
from spex_mech.errors import ResponseError

CURVES = st.lists(st.floats(-3, 3), min_size=10, max_size=10)


def test_sizes_are_mibs():
    assert SIZES == (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
    assert counts(1000) == (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    assert counts(45) == (0, 0, 0, 0, 0, 2, 4, 9, 22, 45)


def test_faithfulness_is_one_intact_and_zero_with_nothing():
    assert faithfulness(5.0, 1.0, 5.0) == 1
    assert faithfulness(1.0, 1.0, 5.0) == 0
    assert faithfulness(7.0, 1.0, 5.0) == 1.5
    assert faithfulness(0.5, 2.0, 0.0) == 0.75  # a metric that falls, such as KL
    with pytest.raises(ResponseError, match="not defined"):
        faithfulness(1.0, 2.0, 2.0)


@given(CURVES)
def test_areas_by_the_benchmarks_own_sum(f):
    steps = [(SIZES[i + 1] - SIZES[i], f[i], f[i + 1]) for i in range(9)]
    assert performance_ratio(f) == pytest.approx(sum(d * (a + b) / 2 for d, a, b in steps))
    assert model_distance(f) == pytest.approx(sum(d * (abs(1 - a) + abs(1 - b)) / 2 for d, a, b in steps))


def test_a_perfect_circuit_at_every_size():
    assert performance_ratio([1.0] * 10) == pytest.approx(0.999)
    assert model_distance([1.0] * 10) == 0


@given(st.lists(st.integers(0, 5), min_size=2, max_size=12), st.data())
def test_auroc_is_the_mann_whitney_statistic(values, data):
    names = [f"a0.h{i}" for i in range(len(values))]
    known = data.draw(st.sets(st.sampled_from(names), min_size=1, max_size=len(names) - 1))
    scores = dict(zip(names, map(float, values), strict=True))
    inside = [scores[n] for n in names if n in known]
    outside = [scores[n] for n in names if n not in known]
    u = mannwhitneyu(inside, outside).statistic
    assert auroc(scores, known) == pytest.approx(u / (len(inside) * len(outside)))


def test_auroc_without_both_kinds_is_unknown():
    assert auroc({"a0.h0": 1.0}, ["a0.h0"]) is None
    assert auroc({"a0.h0": 1.0}, []) is None
    assert auroc({}, ["a0.h0"]) is None  # a circuit without scores beside a known one
    assert auroc_over_sizes(["a0.h0"], []) is None


def test_auroc_over_sizes():
    names = [f"m0.n{i}" for i in range(1000)]
    assert auroc_over_sizes(names, names[:100]) == pytest.approx(1.0)
    assert auroc_over_sizes(names, names[-100:]) < 0.3
    order = np.random.default_rng(0).permutation(names).tolist()
    assert auroc_over_sizes(order, names[:300]) == pytest.approx(0.5, abs=0.05)


def test_precision_recall_and_ranking():
    assert precision_recall(["a0.h0", "a0.h1", "m0"], ["a0.h1", "m0", "m1", "m2"]) == (2 / 3, 0.5)
    assert precision_recall([], ["m0"]) == (None, 0.0)
    assert precision_recall(["m0"], []) == (0.0, None)
    scores = {"m0": 1.0, "m1": -3.0, "m2": 1.0}
    assert ranked(scores, absolute=False) == ["m0", "m2", "m1"]
    assert ranked(scores, absolute=True) == ["m1", "m0", "m2"]
