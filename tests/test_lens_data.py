"""Training examples that matter together: what a mask is worth, and what is found by name."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

import spex_mech as sm
from spex_mech.errors import ResponseError, TaskError
from spex_mech.lenses.learners import LinearLearner

sklearn = pytest.importorskip("sklearn", reason="the estimators of these tests are scikit-learn's")
TWINS, PARTNERS = (3, 9), (5, 17)  # examples


def wine(n: int = 26):
    """Wines of two kinds with three marks that none bears, but for four that were planted.

    The twins are near-duplicates with the first mark: either teaches what it means. The partners bear the second mark
    under a large third one, of opposite signs: only both together tell what the second means. The test points bear a
    mark and nothing else.
    """
    from sklearn.datasets import load_wine
    from sklearn.preprocessing import StandardScaler

    x, y = load_wine(return_X_y=True)
    x, y = StandardScaler().fit_transform(x[y < 2]), y[y < 2]
    generator = np.random.default_rng(0)
    chosen = generator.permutation(len(x))[:n]
    x, y = np.hstack([x[chosen], np.zeros((n, 3))]), y[chosen]
    x[TWINS[0]] *= 0.3
    x[TWINS[0], 13] = 3
    x[TWINS[1]] = x[TWINS[0]] + generator.normal(0, 0.02, 16)
    for i, sign in zip(PARTNERS, (1, -1), strict=True):
        x[i] *= 0.3
        x[i, 14:] = 1.5, 4 * sign
    y[[*TWINS, *PARTNERS]] = 1
    tests = np.zeros((2, 16))
    tests[[0, 1], [13, 14]] = 3
    return x, y, tests, np.array([1, 1])


def logistic():
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=10, max_iter=1000)


@pytest.mark.parametrize("learner", ["linear", pytest.param("logistic", marks=pytest.mark.slow)])
def test_redundant_and_synergistic_examples_are_found_by_name(learner):
    x, y, tests, truth = wine()
    found = sm.discover_data(
        "linear" if learner == "linear" else logistic(), x, y, test_x=tests, test_y=truth, budget=256, link="identity"
    )
    pairs = {i.components: i.kind for i in found.circuit.interactions if i.order == 2}
    assert list(pairs.items())[:2] == [(("d3", "d9"), "redundancy"), (("d5", "d17"), "synergy")]
    assert found.heldout_r2 > 0.9
    assert found.responses.values.shape == (256, 2)
    assert {n.role for n in found.circuit.nodes} <= {"y = 0", "y = 1"}
    page = sm.report(found).html
    assert "Examples" in page


# ---------------------------------------------------------------- what a mask is worth


def small(n: int = 6, regression: bool = False):
    generator = np.random.default_rng(1)
    x = generator.normal(size=(n, 3))
    y = x @ [1.0, -2.0, 0.5] + 0.1 * generator.normal(size=n) if regression else np.array([0, 1, 2] * 4)[:n]
    return x, y, generator.normal(size=(2, 3))


@pytest.mark.parametrize("regression", [True, False])
@pytest.mark.parametrize("n", [4, 7])  # fewer and more examples than features: both ways to solve
def test_closed_form_is_ridge_on_features_and_a_constant(n, regression):
    from sklearn.linear_model import Ridge

    x, y, tests = small(n, regression)
    truth = None if regression else [2, 0]
    found = sm.discover_data("linear", x, y, test_x=tests, test_y=truth, l2=0.3, budget=1 << n)
    whole, points = (np.c_[part, np.ones(len(part))] for part in (x, tests))
    for keep, values in zip(found.responses.keep.numpy(), found.responses.values.numpy(), strict=True):
        expected = np.zeros(2)
        targets = y[:, None] if regression else (y[:, None] == np.unique(y)).astype(float)
        if keep.any():
            scores = Ridge(alpha=0.3, fit_intercept=False).fit(whole[keep], targets[keep]).predict(points)
            scores = scores.reshape(2, -1)
            own = scores[[0, 1], [0, 0] if regression else [2, 0]]
            expected = own if regression else own - (scores.sum(1) - own) / 2
        assert np.allclose(values, expected, atol=1e-5)


def test_both_ways_to_solve_agree():
    x, y, tests = small(6, regression=True)
    keep = torch.rand(9, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    learner = LinearLearner(x, y[:, None], tests, np.ones((2, 1)), 0.5)
    wide = LinearLearner(np.hstack([x, np.zeros((6, 9))]), y[:, None], np.hstack([tests, np.zeros((2, 9))]),
                         np.ones((2, 1)), 0.5)  # fmt: skip
    assert torch.allclose(learner.values(keep, 1), wide.values(keep, 1), atol=1e-5)


@pytest.mark.parametrize("score", ["log_odds", "prob", "log_prob"])
def test_an_estimator_is_fitted_to_what_is_kept(score):
    x, y, tests = small()
    truth = np.array([2, 1])
    found = sm.discover_data(logistic(), x, y, test_x=tests, test_y=truth, score=score, budget=64)
    make = {"log_odds": lambda p: np.log(p / (1 - p)), "prob": lambda p: p, "log_prob": np.log}[score]
    for keep, values in zip(found.responses.keep.numpy(), found.responses.values.numpy(), strict=True):
        there = np.unique(y[keep])
        p = np.full(2, 1 / 3)
        if len(there) == 1:
            p = (truth == there[0]).astype(float)
        elif len(there) > 1:
            model = logistic().fit(x[keep], y[keep])
            columns = [list(model.classes_).index(t) if t in model.classes_ else None for t in truth]
            p = np.array([0.0 if c is None else model.predict_proba(tests)[i, c] for i, c in enumerate(columns)])
        assert np.allclose(values, make(p.clip(1e-3, 1 - 1e-3)), atol=1e-5)
    assert found.responses.unit == {"log_odds": "logit", "prob": "probability", "log_prob": "nat"}[score]


def test_regressions_scores_of_ones_own_and_random_states():
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.linear_model import LinearRegression

    x, y, tests = small(regression=True)
    options = {"test_x": tests, "budget": 64}
    found = sm.discover_data(LinearRegression(), x, y, **options)
    none = ~found.responses.keep.any(1)
    assert np.allclose(found.responses.values[none].numpy(), y.mean())
    error = sm.discover_data(LinearRegression(), x, y, test_y=[0.0, 1.0], score="squared_error", **options)
    assert np.allclose(
        error.responses.values, (found.responses.values.double() - torch.tensor([0.0, 1.0])) ** 2, atol=1e-4
    )
    own = sm.discover_data(LinearRegression(), x, y, score=lambda model, x, y: 2 * model.predict(x), **options)
    assert torch.allclose(own.responses.values[~none], 2 * found.responses.values[~none], rtol=1e-4)
    forest = RandomForestRegressor(n_estimators=2)
    one, two = (sm.discover_data(forest, x, y, test_x=tests, budget=16, decoder="linear") for _ in range(2))
    assert torch.equal(one.responses.values, two.responses.values)
    assert forest.random_state is None


def test_a_module_is_trained_from_its_weights_on_what_is_kept():
    x, y, tests = small()
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.2), nn.Tanh(), nn.Linear(5, 3))
    before = [p.clone() for p in module.parameters()]
    options = {"test_x": tests, "test_y": [2, 0], "budget": 64, "steps": 5, "lr": 0.1}
    found = sm.discover_data(module, x, y, **options)
    again = sm.discover_data(module, x, y, **options)
    assert torch.equal(found.responses.values, again.responses.values)
    for mode in (torch.no_grad, torch.inference_mode):  # as notebooks turn gradients off
        with mode():
            assert torch.equal(found.responses.values, sm.discover_data(module, x, y, **options).responses.values)
    assert all(torch.equal(p, q) for p, q in zip(before, module.parameters(), strict=True))
    module.eval()
    with torch.no_grad():
        p = module(torch.from_numpy(tests).float()).softmax(1)[[0, 1], [2, 0]]
    none = ~found.responses.keep.any(1)
    assert torch.allclose(found.responses.values[none][0], (p / (1 - p)).log(), atol=1e-5)

    def fit(one, inputs, targets):
        one[3].bias.data = nn.functional.one_hot(targets, 3).float().sum(0)

    own = sm.discover_data(module, x, y, fit=fit, **options)
    keep = own.responses.keep
    with torch.no_grad():
        logits = module(torch.from_numpy(tests).float()) - module[3].bias
    counts = torch.stack([keep[:, y == c].sum(1) for c in range(3)], 1).float()
    p = (logits[None] + counts[:, None]).softmax(2)[:, [0, 1], [2, 0]].clamp(1e-3, 1 - 1e-3)
    some = keep.any(1)
    assert torch.allclose(own.responses.values[some], (p / (1 - p)).log()[some], atol=1e-4)


# ---------------------------------------------------------------- groups, functions, processes, folders


def worth(kept):
    """Planted: 0 and 1 back each other up, 2 and 5 are needed together, 6 always counts."""
    kept = set(kept.tolist())
    return 2.0 * bool(kept & {0, 1}) + 3.0 * ({2, 5} <= kept) + 0.5 * (6 in kept)


def test_groups_are_kept_as_one_and_others_always_stay():
    groups = [[0, 3], [1], [2], [4, 5]]
    names = ["left", "right", "lock", "key"]
    found = sm.discover_data(worth, examples=7, groups=groups, names=names, budget=16)
    assert found.components.names == ("d0", "d1", "d2", "d3")
    got = {i.components: (i.coefficient, i.kind) for i in found.circuit.interactions if i.order == 2}
    assert got == {("d0", "d1"): (pytest.approx(-0.5), "redundancy"), ("d2", "d3"): (pytest.approx(0.75), "synergy")}
    assert {n.name: n.role for n in found.circuit.nodes} == dict(zip(found.components.names, names, strict=True))
    empty = ~found.responses.keep.any(1)
    assert float(found.responses.values[empty]) == 0.5  # 6 is in no group
    assert sm.ComponentSet.of("d7, [d4,d5]").names == ("d7", "[d4:6]")


def test_several_processes_give_the_same(tmp_path):
    pytest.importorskip("joblib")
    options = {"examples": 7, "budget": 100, "link": "identity", "decoder": "linear"}
    one = sm.discover_data(worth, **options)
    two = sm.discover_data(lambda kept: worth(kept), processes=2, **options)
    assert torch.equal(one.responses.values, two.responses.values)


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    """Killed for good, in the middle of a training; what was on disk by then is not trained again."""
    program = textwrap.dedent("""
        import os, signal, sys
        import spex_mech as sm
        calls = [0]
        def train(kept):
            calls[0] += 1
            if calls[0] == 45:
                os.kill(os.getpid(), signal.SIGKILL)
            return float(sum(kept.tolist()) ** 0.5)
        options = {"budget": 100, "decoder": "linear", "link": "identity", "identity": "t"}
        sm.discover_data(train, examples=12, out=sys.argv[1], **options)
    """)
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "run")], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr.decode()[-2000:]
    calls = []

    def train(kept):
        calls.append(len(kept))
        return float(sum(kept.tolist()) ** 0.5)

    options = {"examples": 12, "budget": 100, "decoder": "linear", "identity": "t", "link": "identity"}
    found = sm.discover_data(train, out=tmp_path / "run", processes=1, **options)
    assert found.record["resumed_masks"] == 40
    assert len(calls) <= 60
    whole = sm.discover_data(train, **options)
    assert torch.equal(found.responses.values, whole.responses.values)
    spent = len(calls)
    again = sm.discover_data(train, out=tmp_path / "run", **options)
    assert len(calls) == spent
    assert again.circuit.interactions == found.circuit.interactions
    with pytest.raises(ResponseError, match="identity"):
        sm.discover_data(train, out=tmp_path / "run", **{**options, "identity": "other"})


def test_what_cannot_be():
    x, y, tests = small()
    real = small(regression=True)[1]
    from sklearn.linear_model import LinearRegression
    from sklearn.svm import LinearSVC

    for args, options, message in (
        ((worth,), {}, "examples="),
        ((worth,), {"examples": 7, "groups": [[0], [0, 9]]}, r"\[9\] do not exist \[0\] are in two"),
        ((worth,), {"examples": 7, "groups": [[]]}, "one is empty"),
        ((worth,), {"examples": 7, "names": ["a"]}, "1 names were given for 7"),
        ((worth,), {"examples": 7, "processes": 0}, "one or more"),
        (("forest", x, y), {"test_x": tests}, "'linear'"),
        (("linear", x, y), {"test_x": tests}, "test_y"),
        ((logistic(), x), {"test_x": tests}, "y must be given"),
        ((logistic(), x, y[:3]), {"test_x": tests}, "one row"),
        ((logistic(), x, y), {"test_x": tests[0]}, "one row"),
        ((logistic(), x, y), {"test_x": tests}, "compares with the truth"),
        ((logistic(), x, y), {"test_x": tests, "test_y": [0, 7]}, r"classes \[7\]"),
        ((logistic(), x, y), {"test_x": tests, "test_y": [0, 1], "score": "prediction"}, "tells classes"),
        ((LinearRegression(), x, real), {"test_x": tests, "score": "prob"}, "predicts numbers"),
        ((LinearSVC(), x, y), {"test_x": tests, "test_y": [0, 1], "score": "prob"}, "predicts numbers|no probab"),
        ((nn.Linear(3, 2), x, y), {"test_x": tests.astype(np.float32), "test_y": [0, 1]}, "one logit for each of 3"),
        ((object(), x, y), {"test_x": tests}, "no learner"),
    ):
        with pytest.raises(TaskError, match=message):
            sm.discover_data(*args, budget=64, **options)
    for wrong, message in ((lambda kept: "a", "no numbers"), (lambda kept: [1.0, 2.0], "2 numbers; 1")):
        with pytest.raises(ResponseError, match=message):
            sm.discover_data(wrong, examples=4, budget=16)


def test_a_pilot_decides_with_what_examples_are_kept(tmp_path):
    """All of ten examples are needed: one training of three hundred succeeds where half are kept."""
    trained = []

    def fragile(kept):
        trained.append(len(kept))
        return float(set(range(10)) <= set(kept.tolist())) + 0.01 * (11 in kept)

    options = {"examples": 12, "keep_prob": "auto", "budget": 800, "decoder": "linear", "link": "identity"}
    found = sm.discover_data(fragile, out=tmp_path, identity="fragile", **options)
    pilot = found.record["pilot"]
    assert pilot["keep_prob"] >= 0.9
    assert found.record["design"]["keep_probs"] == pilot["keep_probs"]
    assert len(found.responses) + pilot["masks"] == 800
    assert len(trained) <= 800
    assert sm.load_run(tmp_path / "pilot" if (tmp_path / "pilot" / "run.json").exists() else tmp_path).record["masks"]
    spent = len(trained)
    again = sm.discover_data(fragile, out=tmp_path, identity="fragile", **options)
    assert (len(trained), again.record["pilot"]) == (spent, pilot)


def test_a_pilot_of_trainings_is_on_disk_as_it_goes(tmp_path):
    calls, stop = [], [0]

    def train(kept):
        calls.append(kept)
        if len(calls) == stop[0]:
            raise KeyboardInterrupt
        return float(sum(kept.tolist()) ** 0.5)

    options = {"examples": 12, "keep_prob": "auto", "budget": 800, "decoder": "linear", "link": "identity"}
    whole = sm.discover_data(train, **options)
    once, stop[0] = len(calls), len(calls) + 30
    with pytest.raises(KeyboardInterrupt):
        sm.discover_data(train, out=tmp_path, identity="t", **options)
    found = sm.discover_data(train, out=tmp_path, identity="t", **options)
    assert len(calls) <= 2 * once + 8  # no more than a chunk's trainings twice
    assert torch.equal(found.responses.values, whole.responses.values)
    assert found.record["resumed_masks"] == 0  # of the run itself nothing was there


def test_a_run_goes_on_in_the_chunks_it_began_with(tmp_path):
    calls = []

    def train(kept):
        calls.append(kept)
        if len(calls) == 45:
            raise KeyboardInterrupt
        return float(sum(kept.tolist()) ** 0.5)

    options = {"examples": 12, "budget": 100, "decoder": "linear", "identity": "t", "link": "identity"}
    with pytest.raises(KeyboardInterrupt):
        sm.discover_data(train, out=tmp_path, **options)
    found = sm.discover_data(train, out=tmp_path, processes=6, **options)  # alone it would cut into chunks of 12
    assert (found.record["resumed_masks"], found.record["resumed_chunks"], found.record["chunks"]) == (40, 5, 13)
