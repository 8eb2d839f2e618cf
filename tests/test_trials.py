"""Each trial by itself, on planted models whose every figure can be worked out by hand."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from audit_cases import EIGHT, case_of, run_case_of
from scipy.stats import ttest_1samp

import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.auditing import baselines, verdicts
from spex_mech.auditing.baselines import _with_fresh, try_baselines
from spex_mech.auditing.case import check_audit_budget
from spex_mech.auditing.cautions import cautions
from spex_mech.auditing.chosen_circuits import _nearby
from spex_mech.auditing.circuit_search import Goal, search_circuits
from spex_mech.auditing.confirmation import try_interactions
from spex_mech.auditing.faithfulness import SIZES, counts
from spex_mech.auditing.fresh_masks import fresh_masks, try_fresh
from spex_mech.auditing.knockout_trials import try_completeness, try_idle, try_minimality
from spex_mech.auditing.knockouts import relevant
from spex_mech.auditing.mib_sizes import try_ranking, try_scores
from spex_mech.auditing.other_contexts import _effect_at, _p_value, other_probs, try_contexts
from spex_mech.auditing.other_replacements import compare_replacement
from spex_mech.auditing.passes import Ledger
from spex_mech.auditing.random_sets import RANDOM_SETS, RandomSets, try_random
from spex_mech.auditing.rankings import Ranking, marginal_effects, pair_ablation, single_ablation, spectrum_strengths
from spex_mech.auditing.verdicts import is_faithful, is_stable, is_there, share_as_good
from spex_mech.errors import DesignError
from spex_mech.walsh.decoding import RECOVERED_FROM
from spex_mech.walsh.link_function import Link
from spex_mech.walsh.spectrum import Spectrum

PAIR = ("a0.h1", "a1.h2")
WEIGHTS = {"a0.h0": 4.0, "a0.h2": 2.0, "a1.h0": -1.0, "a1.h1": 3.0}  # intact 8, empty 0

TERMS = {PAIR: 2.0, ("a0.h0",): 1.0, ("a1.h0",): 0.5}


@pytest.fixture(scope="module")
def pair():
    return case_of(planted.conjunction(PAIR, strength=2.0, layout=EIGHT))


@pytest.fixture(scope="module")
def line():
    return case_of(planted.additive(WEIGHTS, layout=EIGHT))


def area(f):
    return sum((b - a) * (x + y) / 2 for a, b, x, y in zip(SIZES, SIZES[1:], f, f[1:], strict=False))


def test_verdicts_at_their_edges():
    assert [is_faithful(f) for f in (0.9 + 1e-9, 1.1 - 1e-9, 0.89, 1.11)] == [True, True, False, False]
    assert [is_there(q, 1.0, 1.0) for q in (0.05, 0.0501)] == [True, False]
    assert not is_there(0.0, 0.0, 1.0)
    assert is_there(0.15, -1.0, -1.0, rate=0.2)
    assert [is_stable(x) for x in (0.8, 0.799, None)] == [True, False, False]
    assert share_as_good([0.0, 0.5, 1.0, 1.6], 0.5) == 0.5  # as near as ours counts, on either side of 1
    assert share_as_good([0.0, 0.0], 1.0) == 0.0
    assert share_as_good([1.0, 0.9], 0.0) == 1.0


def test_random_sets_are_nested_and_each_is_the_enumerated_one(pair):
    null = try_random(pair, [2, 4, 6], 1000)
    assert null.orders == RANDOM_SETS == 8
    assert set(null.faithfulness) == {0, 2, 4, 6, 8}
    assert null.faithfulness[0] == (0.0,) * 8
    assert null.faithfulness[8] == pytest.approx((1.0,) * 8)
    for smaller, larger in ((2, 4), (4, 6), (6, 8)):  # a conjunction that is there stays there
        assert all(a <= b + 1e-6 for a, b in zip(null.faithfulness[smaller], null.faithfulness[larger], strict=True))
    assert all(f == pytest.approx(round(f), abs=1e-6) for row in null.faithfulness.values() for f in row)


def test_random_sets_hold_the_pair_as_often_as_chance_has_it():
    """Of the sets of k of 8, C(6, k-2)/C(8, k) hold a pair: over 40 seeds within four standard errors."""
    subject = planted.conjunction(PAIR, layout=EIGHT)
    for k, chance in ((4, 15 / 70), (6, 15 / 28)):
        draws = [f for seed in range(40) for f in try_random(case_of(subject, seed=seed), [k], 100).faithfulness[k]]
        assert abs(sum(draws) / len(draws) - chance) < 4 * (chance * (1 - chance) / len(draws)) ** 0.5


def test_figures_of_random_sets_by_hand():
    null = RandomSets({0: (0.0, 0.0), 1: (0.25, 0.75), 2: (1.0, 1.0)})
    sizes = [0, 0, 0, 0, 0, 0, 0, 1, 1, 2]
    paths = [[null.faithfulness[c][k] for c in sizes] for k in (0, 1)]
    assert (null.orders, null.mean(1), null.std(1)) == (2, 0.5, pytest.approx(0.125**0.5))
    assert RandomSets({1: (0.1, 0.2, 0.3)}).mean(1) == pytest.approx(0.2, abs=1e-15)  # float64, not float32
    cpr, cmd = null.areas(sizes)
    assert cpr == pytest.approx((area(paths[0]) + area(paths[1])) / 2)
    assert cmd == pytest.approx(sum(area([abs(1 - f) for f in path]) for path in paths) / 2)


def test_as_many_random_sets_as_the_allowance_has_room_for(pair):
    assert try_random(pair, [2, 4], 15).orders == 7
    assert try_random(pair, [0, 2, 8], 5).orders == 5  # both ends cost nothing
    case = dataclasses.replace(pair, skipped=[])
    assert try_random(case, [2, 4], 3) is None
    assert case.skipped == ["random sets of the same size"]
    before = pair.ledger.spent
    null = try_random(dataclasses.replace(pair, seed=9), [3], 8)
    assert pair.ledger.spent - before <= 8 == null.orders


def test_sets_at_mibs_sizes_by_size_and_by_help(line):
    """Eight heads: sizes 0 to 8 keep (0 × 7), 1, 4, 8. By size 4, 3, 2, -1; helping 4, 3, 2, then those without."""
    sets = try_scores(line, {name: WEIGHTS.get(name, 0.0) for name in line.names})
    assert sets.counts == counts(8) == (0, 0, 0, 0, 0, 0, 0, 1, 4, 8)
    assert sets.preserve[-3:] == pytest.approx((0.5, 1.0, 1.0))
    assert sets.help[-3:] == pytest.approx((0.5, 9 / 8, 1.0))
    assert sets.cpr == pytest.approx(area(sets.help))
    assert sets.cmd == pytest.approx(area([abs(1 - f) for f in sets.preserve]))


def test_where_the_metric_falls_what_lowers_it_helps():
    case = case_of(planted.additive({name: -w for name, w in WEIGHTS.items()}, layout=EIGHT))
    assert case.helping == -1
    sets = try_scores(case, {name: -WEIGHTS.get(name, 0.0) for name in case.names})
    assert sets.help[-3:] == pytest.approx((0.5, 9 / 8, 1.0))


def test_a_ranking_without_budget_keeps_its_place_and_says_so(line):
    poor = dataclasses.replace(line, passes=SimpleNamespace(cost=lambda keep: len(keep), left=3))
    ranking = Ranking("ours", {name: WEIGHTS.get(name, 0.0) for name in line.names}, 17, "a note")
    row = try_ranking(poor, ranking, ["a0.h0", "a1.h1"])
    assert (row.name, row.masks, row.cpr, row.cmd, row.auroc) == ("ours", 17, None, None, 1.0)
    assert row.note == "a note; no budget left for its circuits"
    assert try_ranking(line, dataclasses.replace(ranking, note=""), []).note == ""
    assert try_ranking(line, ranking, []).cmd == pytest.approx(try_scores(line, ranking.scores).cmd)


def test_idle_nodes_add_nothing_and_others_what_they_weigh(line):
    added = try_idle(line, ["a1.h0", "a0.h0", "a0.h1"])
    assert added == {"a1.h0": pytest.approx(-1.0), "a0.h0": pytest.approx(4.0), "a0.h1": pytest.approx(0.0)}
    assert list(added) == ["a1.h0", "a0.h0", "a0.h1"]
    assert not line.skipped
    poor = dataclasses.replace(line, skipped=[], passes=line.passes)
    poor.passes._ledger, before = Ledger(2), poor.passes._ledger
    try:
        assert list(try_idle(poor, ["a0.h0", "a0.h1", "a1.h0"])) == ["a0.h0", "a0.h1"]
        assert poor.skipped == ["whether 1 nodes are idle"]
    finally:
        poor.passes._ledger = before


def test_rankings_by_ablation_of_a_line_and_of_a_pair(line, pair):
    single = single_ablation(line.passes, line.names)
    assert single.scores == {name: pytest.approx(WEIGHTS.get(name, 0.0), abs=1e-5) for name in line.names}
    assert single.masks == 9
    backup = case_of(planted.backup(PAIR, strength=2.0, layout=EIGHT))
    alone = single_ablation(backup.passes, backup.names)
    assert all(score == pytest.approx(0.0, abs=1e-5) for score in alone.scores.values())
    pairs = pair_ablation(backup.passes, alone, 28)
    assert {name for name, score in pairs.scores.items() if abs(score) > 1} == set(PAIR)
    assert pairs.scores[PAIR[0]] == pytest.approx(2.0)
    assert (pairs.masks, pairs.note) == (9 + 28, "")
    some = pair_ablation(line.passes, single, 27)  # 7 · 6 / 2 = 21 pairs fit, 28 do not
    assert some.masks == 9 + 21
    assert "7 components" in some.note
    assert pair_ablation(line.passes, single, 0) is None
    assert pair_ablation(line.passes, single, 1).masks == 10


def test_strengths_are_roots_of_summed_squares():
    spectrum = Spectrum.from_terms(3, {(): 9.0, (0,): 3.0, (0, 1): -4.0})
    assert spectrum_strengths(spectrum, ("a", "b", "c")) == {"a": 5.0, "b": 4.0, "c": 0.0}


@pytest.fixture(scope="module")
def claimed():
    """A conjunction and two helpers, of which a run knows a line."""
    return run_case_of(planted.polynomial(TERMS, layout=EIGHT))


def test_the_baseline_gets_as_many_masks_as_our_search(claimed):
    """What it learns from: the run's masks and as many drawn anew, each with its own value."""
    run, more = claimed.found.responses, _with_fresh(claimed, 25)
    assert len(more) == len(run) + 25
    torch.testing.assert_close(more.keep[len(run) :], fresh_masks(claimed, 25))
    torch.testing.assert_close(more.values[len(run) :], claimed.passes.values(fresh_masks(claimed, 25)))
    assert torch.equal(more.values[: len(run)], run.values)
    engines = SimpleNamespace(task=SimpleNamespace(corrupt=None), reference=SimpleNamespace(kind="mean"))
    rows = {row.name: row for row in try_baselines(claimed, engines, [], 25)}
    assert rows["order-1 regression"].masks == len(run) + 25
    assert set(rows) == {"order-1 regression", "single ablation", "pair ablation"}


def test_a_run_of_all_masks_has_no_others_to_add():
    case = run_case_of(planted.conjunction(PAIR, layout=EIGHT), budget=256, keep_prob=0.5, decoder="auto")
    assert case.has_every_mask
    assert _with_fresh(case, 25) is case.found.responses


def test_a_baseline_that_has_no_budget_is_said_to_be_left_out(claimed):
    poor = dataclasses.replace(claimed, ledger=Ledger(40), skipped=[])
    rows = try_baselines(poor, None, [], 4)
    assert [row.name for row in rows] == ["order-1 regression"]
    assert poor.skipped == ["single ablation and what builds on it (8 masks)"]


@pytest.mark.parametrize(("ours", "theirs", "taken"), [(0.1, 0.2, "search"), (0.2, 0.1, "run"), (0.1, 0.1, "run")])
def test_what_predicted_proposals_better_predicts_knockouts(ours, theirs, taken):
    keep = torch.eye(3, dtype=torch.bool)
    truth = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    surface = SimpleNamespace(predict=lambda keep: None)
    pool = SimpleNamespace(
        keep=keep, means=truth, surface=surface,
        predicted={row.numpy().tobytes(): float(v) + ours for row, v in zip(keep, truth, strict=True)},
    )  # fmt: skip
    case = SimpleNamespace(predict=lambda keep: truth + theirs)
    assert _nearby(case, pool) is {"search": surface.predict, "run": case.predict}[taken]
    pool.surface = None
    assert _nearby(case, pool) is case.predict
    pool.surface, pool.predicted = surface, {}
    assert _nearby(case, pool) is case.predict


def test_a_search_gives_up_after_eight_rounds_that_gain_nothing(claimed):
    """From the best set of two there is nothing to gain: one proposal a round for the one goal, eight rounds."""
    pool = search_circuits(claimed, [Goal(2, 1)], [[PAIR]], 500, shrink=False)
    assert pool.spent == 1 + 8
    assert pool.best(Goal(2, 1)) == len(claimed.found.responses) + 2  # after both ends: the set it began with
    assert len(pool.predicted) == 8


def test_fresh_figures_by_their_own_definition(claimed):
    fresh = try_fresh(claimed, 60)
    truth, guess = (torch.tensor(x, dtype=torch.float64) for x in (fresh.measured, fresh.predicted))
    assert len(truth) == fresh.masks == 60
    r2 = 1 - ((truth - guess) ** 2).sum() / ((truth - truth.mean()) ** 2).sum()
    assert fresh.r2 == pytest.approx(float(r2))
    assert fresh.rmse == pytest.approx(float(((truth - guess) ** 2).mean() ** 0.5))
    assert fresh.keep_probs == claimed.keep_probs == (0.7,)
    assert fresh_masks(claimed, 4000).double().mean() == pytest.approx(0.7, abs=0.01)
    flat = dataclasses.replace(fresh, r2=None)
    assert cautions(claimed, flat) == ()


def test_cautions_are_given_for_their_reasons_alone(claimed):
    fresh = try_fresh(claimed, 60)
    (said,) = cautions(claimed, dataclasses.replace(fresh, r2=0.42))
    assert said == "the polynomial explains 0.42 of fresh masks' variance"
    small = dataclasses.replace(claimed, intact=1.0, empty=1.0 - 1e-3)
    spread = float(claimed.found.responses.mean.std(correction=0))
    assert cautions(small, dataclasses.replace(fresh, r2=0.999)) == (
        f"intact and empty differ by 0.001, less than the run's masks do ({spread:.3g}): what faithfulness, CPR and "
        "CMD divide by is small, so they are large and unstable",
    )
    behind = dataclasses.replace(claimed.found, decoded=dataclasses.replace(
        claimed.found.decoded, link=Link("logistic", (0.0, 1.0, 0.0, 0.25))))  # fmt: skip
    (said,) = cautions(dataclasses.replace(claimed, found=behind), dataclasses.replace(fresh, r2=0.999))
    assert said.startswith("between the polynomial and the metric lies a link (")
    assert said.endswith("; the interactions and backups put to the test are those of the metric itself, some of which "
                         "are the link's doing")  # fmt: skip
    assert cautions(claimed, dataclasses.replace(fresh, r2=0.999)) == ()
    assert cautions(claimed, dataclasses.replace(fresh, r2=RECOVERED_FROM)) == ()
    between = dataclasses.replace(claimed, intact=claimed.empty + spread * 1.001)  # of all masks, not of a sample
    assert cautions(between, dataclasses.replace(fresh, r2=0.999)) == ()


def test_fresh_values_that_do_not_vary_have_no_r2(claimed):
    flat = dataclasses.replace(claimed, passes=SimpleNamespace(means=lambda keep: torch.ones(len(keep)).double()))
    assert try_fresh(flat, 20).r2 is None


def test_knockouts_are_measured_as_far_as_the_allowance_goes(claimed):
    subject = planted.polynomial(TERMS, layout=EIGHT)
    truth, keep = planted.truth(subject, claimed.components).evaluate, sm.MaskDesign.complete(8).keep()
    new = dataclasses.replace(claimed, passes=case_of(subject).passes)
    assert [k.measured for k in try_completeness(new, PAIR, 0, truth)] == [None]
    worst = try_completeness(new, PAIR, 100, truth)
    assert worst[0].measured == pytest.approx(1.5) == pytest.approx(worst[0].predicted)  # both helpers are outside
    assert len(worst) == 4
    assert all(k.component is None for k in worst)
    best = try_minimality(new, PAIR, 2, truth)
    assert [k.component for k in best] == list(PAIR)
    assert best[0].measured == pytest.approx(2.0)
    assert best[1].measured is None  # one allowance of two masks is one knockout
    assert best[1].predicted == pytest.approx(2.0)
    torch.testing.assert_close(new.passes.means(keep), truth(keep).double(), rtol=0, atol=1e-4)


def test_a_ledger_is_never_overdrawn():
    ledger = Ledger(50)
    assert (ledger.part(0.1), ledger.left) == (5, 50)
    ledger.spent = 48
    assert ledger.part(0.1) == 2
    ledger.spent = 51
    assert ledger.part(0.1) == 0
    case = case_of(planted.conjunction(PAIR, layout=EIGHT), budget=3)
    with pytest.raises(DesignError, match="2 masks were asked for, and 1 of the budget are left"):
        case.measured([["a0.h0"], ["a0.h1"]])
    assert case.measured([["a0.h0"], ["a0.h0"]]) == [pytest.approx(0.0), pytest.approx(0.0)]


TURNING = {PAIR: 1.0, (*PAIR, "a0.h3"): -1.5, ("a0.h0",): 1.0}  # the pair is a synergy until a third is kept


@pytest.fixture(scope="module")
def turning():
    """A run whose polynomial knows all of it."""
    return run_case_of(planted.polynomial(TURNING, layout=EIGHT), budget=180, keep_prob=0.5, decoder="proxyspex")


def test_other_probabilities_are_far_from_the_runs(turning, claimed):
    assert other_probs(turning) == (0.9,)
    assert other_probs(claimed) == (0.5, 0.9)  # 0.7 is far from both
    near = SimpleNamespace(keep_probs=(0.64, 0.76))
    assert other_probs(near) == ()


def test_interactions_and_backups_are_measured_as_planted(turning):
    checks, backups, left = try_interactions(turning, spare=10)
    (pair,) = [check for check in checks if set(check.components) == set(PAIR)]
    assert pair.estimate == pytest.approx((1 - 0.75) / 4, abs=1e-4)  # Walsh: a quarter of 1 - 1.5/2
    assert pair.knockout == pytest.approx(-0.5, abs=1e-4)  # with all kept: 1 - 1.5
    assert left == 0
    assert all(not group.confirmed() for group in backups)
    assert turning.passes.left >= 10
    rows = try_contexts(turning, checks, 400)
    (row,) = [row for row in rows if set(row.components) == set(PAIR)]
    assert (row.keep_prob, row.here) == (0.9, pytest.approx(0.25, abs=1e-3))
    assert row.effect == pytest.approx(1 - 1.5 * 0.9, abs=1e-3)
    assert not row.holds
    assert _effect_at(turning.polynomial, turning.components.indices(PAIR), 0.9) == pytest.approx(-0.35, abs=1e-3)


def test_where_there_is_no_room_nothing_is_tested(turning):
    poor = dataclasses.replace(turning, passes=SimpleNamespace(left=40))
    checks, backups, left = try_interactions(poor)
    assert (checks, backups) == ((), ())
    assert left >= 2
    assert try_contexts(turning, [], 400) == ()


def test_backups_are_proposed_where_their_excess_is_worth_it():
    subject = planted.backup(PAIR, strength=2.0, layout=EIGHT)
    case = run_case_of(subject, budget=180, keep_prob=0.5, decoder="proxyspex")
    _, backups, _ = try_interactions(case)
    (group,) = [group for group in backups if group.confirmed()]
    assert set(group.components) == set(PAIR)
    assert (group.joint, group.excess) == (pytest.approx(2.0, abs=1e-4), pytest.approx(2.0, abs=1e-4))
    assert (group.intact_joint, group.intact_excess) == (pytest.approx(2.0), pytest.approx(2.0))
    dear = dataclasses.replace(case, intact=case.empty + 250.0)  # two are less than a hundredth of 250
    assert try_interactions(dear)[1] == ()


@pytest.mark.parametrize("mean", [2.0, -2.0])
def test_p_values_of_effects_that_do_not_vary_and_of_those_that_do(mean):
    assert _p_value(mean, 0.0, 12, 1e-6) == 0.0
    assert _p_value(1e-7 * mean, 0.0, 12, 1e-6) == 1.0
    assert _p_value(mean, 1.0, 12, 1e-6) == pytest.approx(ttest_1samp(np.array([1, -1] * 6) * 11**0.5 + mean, 0).pvalue)


def test_another_replacement_that_gives_the_same_agrees_and_one_that_turns_all_does_not(turning):
    run, rows = turning.found.responses, torch.arange(0, 180, 2)

    def other(f):
        return SimpleNamespace(means=lambda keep: f(turning.passes.means(keep)))

    same = compare_replacement(turning, "zero", other(lambda x: x), rows)
    assert (same.kind, same.masks) == ("zero", 90)
    assert same.effect == pytest.approx(turning.intact - turning.empty)
    assert (same.r2, same.nodes, same.interactions) == (pytest.approx(1.0), pytest.approx(1.0), pytest.approx(1.0))
    assert (same.signs, same.top) == (1.0, 1.0)
    turned = compare_replacement(turning, "zero", other(lambda x: -2 * x), rows)
    assert turned.effect == pytest.approx(-2 * (turning.intact - turning.empty))
    assert (turned.r2, turned.nodes) == (pytest.approx(1.0), pytest.approx(1.0))
    assert (turned.signs, turned.top) == (0.0, 1.0)
    assert turned.interactions == pytest.approx(-1.0)
    flat = compare_replacement(turning, "zero", other(torch.zeros_like), rows)
    assert (flat.r2, flat.effect) == (None, 0.0)
    assert len(run) == 180


def test_knockouts_of_large_circuits_are_bounded():
    n, flat = 60, lambda keep: keep.double().sum(1)
    sets = relevant(range(40), [(k, k + 1) for k in range(700)], n, flat)
    assert len(sets) == len(set(sets)) <= 512
    assert sets[:2] == [(), tuple(range(40))]
    assert max(len(s) for s in sets[2:]) == 32  # the greedy chain
    assert len(relevant(range(10), [], n, flat)) == 1024


def test_verdict_numbers_are_what_the_page_says():
    assert (verdicts.RATE, verdicts.FAITHFUL_WITHIN, verdicts.STABLE_FROM) == (0.05, 0.1, 0.8)


def test_marginal_effects_by_hand():
    """Kept less ablated: (1 + 2)/2 - (4 + 8)/2 and (1 + 4)/2 - (2 + 8)/2; 0 where one is always, or never, kept."""
    keep = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0]], dtype=torch.bool)
    components = sm.ComponentSet.of(["a0.h0", "a0.h1", "a0.h2", "a0.h3"])
    values = torch.tensor([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0], [8.0, 8.0]])
    effects = marginal_effects(sm.Responses(components, keep, values, "logit"))
    assert effects == {"a0.h0": -4.5, "a0.h1": -2.5, "a0.h2": 0.0, "a0.h3": 0.0}


def test_activation_patching_is_single_ablation_by_corrupt_prompts(line, monkeypatch):
    asked = {}

    def fit(subject, task, components, kind, seed):
        asked["fit"] = (kind, seed)
        return "corrupt"

    def passes(name, reference):
        asked["passes"] = (name, reference)
        return line.passes

    monkeypatch.setattr(baselines, "fit_replacement", fit)
    engines = SimpleNamespace(subject=None, task=None, passes=passes)
    case = dataclasses.replace(line, ledger=Ledger(45), skipped=[])
    (row,) = baselines._patching(case, engines, ["a0.h0"])
    assert asked == {"fit": ("resample", line.seed), "passes": ("patching", "corrupt")}
    assert (row.name, row.masks, row.auroc) == ("activation patching", 9, 1.0)
    poor = dataclasses.replace(case, ledger=Ledger(44))  # a fifth of it is one mask too few
    assert baselines._patching(poor, engines, []) == []
    assert poor.skipped == ["activation patching"]


def test_the_least_budget_is_enough():
    check_audit_budget(32, 32)
    with pytest.raises(DesignError, match="an audit of 31 masks was asked for; it needs at least 32"):
        check_audit_budget(31, 32)
