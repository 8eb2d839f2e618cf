"""The two decoders at the ends: all masks → everything, and a line → the baseline."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spex_mech.errors import DecodeError
from spex_mech.walsh.decoders.exact import Exact
from spex_mech.walsh.decoders.lasso import lasso_cv
from spex_mech.walsh.decoders.linear import Linear
from spex_mech.walsh.decoding import Decoder, Outcome, Samples, fold_masks, judge, r_squared, split_masks
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.spectrum import Basis, Spectrum, monomials

fast = settings(max_examples=25, deadline=None)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def additive(n, seed=0, basis=Basis()):
    return Spectrum.from_terms(n, {(): 2.0, **{(i,): c for i, c in enumerate(normal(n, seed=seed).tolist())}}, basis)


def sampled(truth, n_masks, keep_prob=0.5, noise=0.0, seed=0):
    design = MaskDesign.bernoulli(truth.n, n_masks, keep_prob, seed)
    values = truth.evaluate(design.keep()) + noise * normal(n_masks, seed=seed + 1)
    return Samples(design.keep(), values[:, None].float(), design)


# ---------------------------------------------------------------- exact


@fast
@given(st.integers(1, 9), st.integers(0, 2**31))
def test_exact_finds_planted_coefficients_in_any_row_order(n, seed):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randperm(2**n, generator=generator)[: min(12, 2**n)].tolist()
    planted = {tuple(i for i in range(n) if s >> i & 1): float(k + 1) for k, s in enumerate(numbers)}
    keep = MaskDesign.complete(n).keep()[torch.randperm(2**n, generator=generator)]
    values = Spectrum.from_terms(n, planted).evaluate(keep).float()
    found = Exact().decode(Samples(keep, values[:, None]), seed=0)
    assert {s: pytest.approx(c, abs=1e-5) for s, c in found.spectrum.terms()} == {(): 0.0, **planted}
    assert found.outcome is Outcome.COMPLETE
    assert found.stats["heldout_r2"] is None
    assert (found.spectrum.stderr == 0).all()


def test_exact_keeps_only_what_float32_can_tell_from_zero():
    keep = MaskDesign.complete(10).keep()
    drawn = dict(zip([(i, i + 1) for i in range(8)], normal(8).tolist(), strict=True))
    truth = Spectrum.from_terms(10, {(): 100.0, (7,): 1e-3, **drawn})
    noisy_zero = truth.evaluate(keep).float()  # rounding to float32 leaves about 1e-7 in most of 1,024 coefficients
    found = Exact().decode(Samples(keep, noisy_zero[:, None]), seed=0)
    assert set(found.spectrum.sets) == set(truth.sets)
    assert len(Exact(rounding=0).decode(Samples(keep, noisy_zero[:, None]), seed=0).spectrum) > 100


def test_exact_averages_outputs_and_says_how_far_they_differ():
    keep = MaskDesign.complete(4).keep()
    shares = torch.tensor([1.0, 2.0, 6.0])
    values = torch.stack([Spectrum.from_terms(4, {(1, 2): float(c)}).evaluate(keep) for c in shares], 1)
    spectrum = Exact().decode(Samples(keep, values), seed=0).spectrum
    assert spectrum[1, 2] == pytest.approx(3.0)
    row = spectrum.sets.index((1, 2))
    assert float(spectrum.stderr[row]) == pytest.approx(float(shares.std()) / math.sqrt(3))


def test_exact_averages_masks_that_were_measured_twice():
    keep = MaskDesign.complete(2).keep()
    values = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    twice = Samples(torch.cat([keep, keep[:1]]), torch.cat([values, torch.tensor([[5.0]])]))
    once = Samples(keep, torch.tensor([[3.0], [2.0], [3.0], [4.0]]))
    assert list(Exact().decode(twice, seed=0).spectrum.terms()) == list(Exact().decode(once, seed=0).spectrum.terms())


def test_exact_names_the_share_of_masks_and_the_way_out():
    keep = MaskDesign.complete(6).keep()
    with pytest.raises(DecodeError, match=r"all 2\^6 masks of 6 components; 63 of them.*'joint'"):
        Exact().decode(Samples(keep[1:], torch.zeros(63, 1)), seed=0)
    sample = MaskDesign.bernoulli(100, 50).keep()
    with pytest.raises(DecodeError, match=r"all 2\^100 masks of 100 components; 50 of them.*at most 24"):
        Exact().decode(Samples(sample, torch.zeros(50, 1)), seed=0)
    with pytest.raises(DecodeError, match="rounding"):
        Exact(rounding=-1)


def test_exact_of_a_constant_is_the_constant():
    found = Exact().decode(Samples(MaskDesign.complete(3).keep(), torch.full((8, 2), 0.1)), seed=0)
    assert found.spectrum.sets == ((),)
    assert found.spectrum[()] == pytest.approx(0.1)


# ---------------------------------------------------------------- linear


@pytest.mark.parametrize("keep_prob", [0.5, 0.9])
@pytest.mark.parametrize("n", [12, 60])
def test_linear_recovers_an_additive_function(n, keep_prob):
    truth = additive(n, seed=n, basis=Basis.orthonormal(keep_prob))
    found = Linear().decode(sampled(truth, 400, keep_prob), seed=3)
    assert found.outcome is Outcome.RECOVERED
    assert found.stats["heldout_r2"] > 0.9999
    assert found.spectrum.basis == Basis.orthonormal(keep_prob)
    assert set(found.spectrum.orders.tolist()) == {0, 1}
    assert all(found.spectrum[s] == pytest.approx(truth[s], abs=0.02) for s in truth.sets if abs(truth[s]) > 0.1)
    assert found.stats["masks_fitted"] + found.stats["masks_heldout"] == 400


def test_linear_with_more_components_than_masks():
    truth = Spectrum.from_terms(600, {(): 1.0, **{(i,): 2.0 for i in range(0, 600, 60)}})
    found = Linear().decode(sampled(truth, 200, noise=0.3), seed=0)
    assert found.stats["heldout_r2"] > 0.9
    assert {(i,) for i in range(0, 600, 60)} <= set(found.spectrum.sets)


def test_linear_finds_nothing_in_noise_and_in_constants():
    noise = Spectrum.from_terms(30, {(): 0.0})
    found = Linear().decode(sampled(noise, 300, noise=1.0), seed=0)
    assert found.stats["heldout_r2"] < 0.1
    assert found.outcome in (Outcome.NOTHING_FOUND, Outcome.PARTIAL)
    constant = Linear().decode(sampled(Spectrum.from_terms(30, {(): 0.1}), 300), seed=0)
    assert constant.outcome is Outcome.NOTHING_FOUND
    assert constant.spectrum.sets == ((),)
    assert constant.spectrum[()] == pytest.approx(0.1)


def test_linear_sees_nothing_of_a_parity():
    found = Linear().decode(sampled(Spectrum.from_terms(10, {(0, 1): 1.0}), 500), seed=0)
    assert found.outcome is not Outcome.RECOVERED
    assert found.stats["heldout_r2"] < 0.1


def test_linear_standard_errors_cover_the_truth():
    scores = []
    for seed in range(20):
        truth = additive(10, seed=seed)
        spectrum = Linear().decode(sampled(truth, 250, noise=1.0, seed=seed), seed=seed).spectrum
        scores += [
            (spectrum[s] - truth[s]) / float(e) for s, e in zip(spectrum.sets, spectrum.stderr, strict=True) if s
        ]
    # one unit of spread, to which shrinkage adds a little
    assert 0.7 < torch.tensor(scores).std() < 1.4


def test_linear_never_looks_at_held_out_masks():
    samples = sampled(additive(20), 200, noise=0.5)
    _, held = split_masks(samples.keep, 0.2, 7)
    poisoned = samples.values.clone()
    poisoned[held] += 1e6
    first = Linear().decode(samples, seed=7)
    second = Linear().decode(Samples(samples.keep, poisoned, samples.design), seed=7)
    assert torch.equal(first.spectrum.members, second.spectrum.members)
    assert torch.equal(first.spectrum.coefficients, second.spectrum.coefficients)
    assert second.stats["heldout_r2"] < 0 < first.stats["heldout_r2"]


def test_linear_is_a_function_of_samples_and_seed():
    samples = sampled(additive(20), 200, noise=0.5)
    first, again, other = (Linear().decode(samples, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.spectrum.coefficients, again.spectrum.coefficients)
    assert first.stats["heldout_r2"] != other.stats["heldout_r2"]


def test_linear_takes_the_mean_of_its_outputs():
    samples = sampled(additive(15), 200)
    spread = normal(200, 1, seed=5).float()
    pair = Samples(samples.keep, torch.cat([samples.values + spread, samples.values - spread], 1), samples.design)
    one, two = (Linear().decode(s, seed=0).spectrum for s in (samples, pair))
    torch.testing.assert_close(one.evaluate(samples.keep), two.evaluate(samples.keep), rtol=1e-4, atol=1e-4)


def test_linear_with_too_few_masks_says_so():
    found = Linear().decode(sampled(additive(4), 6), seed=0)
    assert found.outcome is Outcome.BUDGET_TOO_SMALL
    assert found.spectrum.sets == ((),)


def test_linear_refuses_masks_that_all_keep_everything():
    with pytest.raises(DecodeError, match="keeps all 5 components"):
        Linear().decode(Samples(torch.ones(40, 5, dtype=torch.bool), normal(40, 1)), seed=0)
    with pytest.raises(DecodeError, match="ablates all 5 components"):
        Linear().decode(Samples(torch.zeros(40, 5, dtype=torch.bool), normal(40, 1)), seed=0)


@pytest.mark.parametrize("options", [{"heldout": 0.0}, {"heldout": 1.0}, {"folds": 1}, {"alphas": 0}])
def test_linear_refuses_options_that_mean_nothing(options):
    with pytest.raises(DecodeError, match="linear decoder needs"):
        Linear(**options)


def test_every_option_of_linear_acts():
    samples = sampled(Spectrum.from_terms(40, {(): 0.0, (1,): 1.0, (30,): 1.0}), 200, noise=2.0)
    usual = Linear().decode(samples, seed=0)
    for changed in (Linear(heldout=0.5), Linear(folds=10), Linear(alphas=7)):
        assert changed.decode(samples, seed=0).stats["cv_r2"] != usual.stats["cv_r2"]


def test_decoders_follow_the_protocol():
    assert isinstance(Exact(), Decoder)
    assert isinstance(Linear(), Decoder)
    assert (Exact().name, Linear().name) == ("exact", "linear")


# ---------------------------------------------------------------- the lasso against its optimality conditions


def ours_grid(x, y, count):
    highest = float(((x - x.mean(0)).T @ (y - y.mean()) / len(y)).abs().max())
    return [highest * 1e-3 ** (i / (count - 1)) for i in range(count)]


@pytest.mark.parametrize(("n", "rows", "keep_prob"), [(30, 200, 0.5), (60, 300, 0.9), (300, 120, 0.5)])
def test_lasso_is_optimal_at_the_penalty_of_the_whole_path(n, rows, keep_prob):
    linear_model = pytest.importorskip("sklearn.linear_model")
    truth = additive(n, seed=2, basis=Basis.orthonormal(keep_prob))
    samples = sampled(truth, rows, keep_prob, noise=float(n) ** 0.5 / 2)
    members = torch.arange(n)[:, None]
    x, y = monomials(samples.keep, members, truth.basis), samples.mean_values
    folds = fold_masks(samples.keep, 5, 0)
    ours = lasso_cv(x, y, folds, 50)
    left = y - ours.intercept - x @ ours.coefficients
    assert float(left.mean()) == pytest.approx(0, abs=1e-9 * n)
    slope, active = (x - x.mean(0)).T @ left / rows, ours.coefficients != 0
    assert active.any()
    assert float(slope.abs().max()) <= ours.alpha * (1 + 1e-6)
    torch.testing.assert_close(slope[active], ours.alpha * ours.coefficients[active].sign(), rtol=1e-6, atol=0)
    cuts = [((folds != k).nonzero()[:, 0].numpy(), (folds == k).nonzero()[:, 0].numpy()) for k in range(5)]
    grid = ours_grid(x, y, 50)
    chosen = linear_model.LassoCV(cv=cuts, tol=1e-6, max_iter=10_000, alphas=grid).fit(x.numpy(), y.numpy())
    assert ours.alpha == pytest.approx(chosen.alpha_, rel=1e-6)


def test_lasso_of_folds_that_do_not_vary_on_their_own():
    """Without the row of the one value that differs nothing is left to explain, nor to iterate over."""
    x, y = torch.eye(8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
    y[0] = 1.0
    found = lasso_cv(x, y, torch.arange(8) % 4, 10)
    assert found.coefficients.nonzero()[:, 0].tolist() == [0]
    assert float(found.intercept + found.coefficients[0]) == pytest.approx(1.0, abs=0.01)


# ---------------------------------------------------------------- samples, splits and scores


def test_samples_refuse_what_cannot_be_decoded():
    keep = torch.ones(3, 2, dtype=torch.bool)
    with pytest.raises(DecodeError, match="as many masks"):
        Samples(keep, torch.zeros(4, 1))
    with pytest.raises(DecodeError, match="Boolean"):
        Samples(keep.float(), torch.zeros(3, 1))
    with pytest.raises(DecodeError, match="floating"):
        Samples(keep, torch.zeros(3, 1, dtype=torch.long))
    with pytest.raises(DecodeError, match="nothing to decode"):
        Samples(keep[:0], torch.zeros(0, 1))
    with pytest.raises(ValueError, match=r"not finite for 1 of 3 masks, first mask 1 \(0 components ablated\)"):
        Samples(keep, torch.tensor([[0.0], [torch.nan], [1.0]]))


@fast
@given(st.integers(0, 60), st.integers(1, 6), st.floats(0.05, 0.95), st.integers(0, 2**31))
def test_split_never_leaks_equal_masks(rows, n, share, seed):
    keep = torch.rand(rows, n, generator=torch.Generator().manual_seed(seed)) < 0.5
    fit, held = split_masks(keep, share, seed)
    assert sorted([*fit.tolist(), *held.tolist()]) == list(range(rows))
    seen = {tuple(row) for row in keep[fit].tolist()}
    unseen = {tuple(row) for row in keep[held].tolist()}
    assert not seen & unseen
    if len(seen | unseen) >= 2:
        assert seen
        assert unseen
        assert abs(len(unseen) - share * len(seen | unseen)) <= 1
    folds = fold_masks(keep, 3, seed)
    assert len({(tuple(row), fold) for row, fold in zip(keep.tolist(), folds.tolist(), strict=True)}) == len(
        seen | unseen
    )


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_split_refuses_a_share_of_nothing(share):
    with pytest.raises(DecodeError, match="strictly between 0 and 1"):
        split_masks(torch.ones(4, 2, dtype=torch.bool), share, 0)


def test_splits_differ_by_seed_and_repeat_by_seed():
    keep = MaskDesign.bernoulli(20, 100).keep()
    assert torch.equal(split_masks(keep, 0.2, 1)[1], split_masks(keep, 0.2, 1)[1])
    assert not torch.equal(split_masks(keep, 0.2, 1)[1], split_masks(keep, 0.2, 2)[1])


def test_r_squared_of_means_and_constants():
    truth = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert r_squared(truth, truth.mean().expand(4)) == 0
    assert r_squared(truth, -truth) < 0
    assert math.isnan(r_squared(torch.full((7,), 0.1), torch.zeros(7)))
    assert math.isnan(r_squared(torch.zeros(0), torch.zeros(0)))


def test_judge_has_three_verdicts():
    line = Spectrum.from_terms(2, {(): 1.0, (0,): 1.0})
    verdicts = [judge(line, r2) for r2 in (1.0, 0.9, 0.89, 0.0, -3.0, float("nan"))]
    assert [v.name for v in verdicts] == ["RECOVERED"] * 2 + ["PARTIAL"] + ["NOTHING_FOUND"] * 3
    assert judge(Spectrum.from_terms(2, {(): 1.0}), 0.99) is Outcome.NOTHING_FOUND


def test_samples_know_their_keep_probability():
    design = MaskDesign.stratified(5, 40, (0.5, 0.9))
    assert Samples(design.keep(), torch.zeros(40, 1), design).keep_prob == pytest.approx(0.7)
    assert Samples(design.keep(), torch.zeros(40, 1)).keep_prob == pytest.approx(float(design.keep().float().mean()))
    assert Samples(design.keep(), torch.zeros(40, 1), design).take(torch.tensor([3, 1])).keep.shape == (2, 5)
