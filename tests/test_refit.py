"""Refits against closed forms, brute force and planted truth."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spex_mech.errors import DecodeError, ResponseError
from spex_mech.walsh.decoders.refit import nested_pair, noise_floor, prune, refit, significance
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.set_rows import pad_sets
from spex_mech.walsh.spectrum import Basis, Spectrum, monomials

SETS = pad_sets([(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2, 3)])
BASES = [Basis(), Basis("biased", 0.8), Basis("mobius"), Basis("knockout")]


def masks(n, count, keep_prob=0.5, seed=0):
    return MaskDesign.bernoulli(n, count, keep_prob, seed).keep()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("basis", BASES, ids=lambda b: b.kind)
def test_planted_coefficients_come_back(basis):
    truth = Spectrum(5, SETS, normal(len(SETS)), basis)
    keep = masks(5, 200, 0.7)
    found = refit(keep, truth.evaluate(keep), SETS, basis, ridge=0.0)
    assert found.sets == truth.sets
    assert torch.allclose(found.coefficients, truth.coefficients, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(BASES), st.sampled_from([0.0, 1e-4, 0.3]), st.integers(20, 60))
def test_fit_is_the_normal_equations(seed, basis, ridge, count):
    """An independent route: the uncentred normal equations with an unshrunk constant."""
    keep, y = masks(5, count, 0.6, seed), normal(count, seed=seed)
    scale = normal(len(SETS), seed=seed + 1).abs() + 0.5
    phi = monomials(keep, SETS, basis)
    penalty = ridge / scale**2
    penalty[0] = 0
    system = phi.T @ phi / count + penalty.diag()
    if ridge == 0 and torch.linalg.cond(system) > 1e8:
        return
    expected = torch.linalg.solve(system, phi.T @ y / count)
    found = refit(keep, y, SETS, basis, ridge=ridge, scale=scale)
    assert torch.allclose(found.coefficients, expected, atol=1e-7)
    inverse = torch.linalg.inv(system)
    freedom = torch.trace(inverse @ phi.T @ phi / count)
    sigma2 = ((y - phi @ expected) ** 2).sum() / (count - freedom)
    assert torch.allclose(found.stderr, (sigma2 * inverse.diag() / count).sqrt(), rtol=1e-6)


@pytest.mark.parametrize("basis", BASES, ids=lambda b: b.kind)
def test_dual_form_is_the_normal_equations_too(basis):
    sets = pad_sets([s for order in range(4) for s in itertools.combinations(range(6), order)])
    keep, y = masks(6, 20), normal(20)
    phi = monomials(keep, sets, basis)
    penalty = torch.full((len(sets),), 0.2, dtype=torch.float64)
    penalty[0] = 0
    system = phi.T @ phi / 20 + penalty.diag()
    found = refit(keep, y, sets, basis, ridge=0.2)
    assert len(sets) > len(keep)
    assert torch.allclose(found.coefficients, torch.linalg.solve(system, phi.T @ y / 20), atol=1e-8)
    inverse = torch.linalg.inv(system)
    residual = y - phi @ found.coefficients
    sigma2 = (residual**2).sum() / (20 - torch.trace(inverse @ phi.T @ phi / 20))
    assert torch.allclose(found.stderr, (sigma2 * inverse.diag() / 20).sqrt(), rtol=1e-6)


def test_gcv_is_near_the_best_ridge_on_fresh_masks():
    sets = pad_sets([s for order in range(3) for s in itertools.combinations(range(12), order)])
    truth = Spectrum(12, sets, 0.3 * normal(len(sets)))
    keep, fresh = masks(12, 120), masks(12, 2000, seed=1)
    y = truth.evaluate(keep) + normal(120, seed=2)
    risk = {
        ridge: float(((refit(keep, y, sets, ridge=ridge).evaluate(fresh) - truth.evaluate(fresh)) ** 2).mean())
        for ridge in ("gcv", 1e-8, 1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0, 30.0)
    }
    assert risk["gcv"] < 1.1 * min(risk.values())
    assert risk["gcv"] < 0.8 * min(risk[1e-8], risk[30.0])


def test_many_outputs_are_fitted_as_one_by_one():
    keep, y = masks(5, 40), normal(40, 3)
    joint = refit(keep, y, SETS, ridge=0.1)
    for output in range(3):
        alone = refit(keep, y[:, output], SETS, ridge=0.1)
        assert torch.allclose(joint.coefficients[:, output], alone.coefficients)
        assert torch.allclose(joint.stderr[:, output], alone.stderr)


def test_standard_errors_are_the_spread_over_repeated_noise():
    truth = Spectrum(5, SETS, normal(len(SETS)))
    keep = masks(5, 100, 0.6)
    repeats = [refit(keep, truth.evaluate(keep) + 0.5 * normal(100, seed=s), SETS, ridge=0.0) for s in range(400)]
    spread = torch.stack([r.coefficients for r in repeats]).std(0)
    stated = torch.stack([r.stderr for r in repeats]).mean(0)
    assert torch.allclose(stated, spread, rtol=0.15)


def test_empty_set_is_added_first_and_never_shrunk():
    keep = masks(4, 50)
    found = refit(keep, torch.full((50,), 7.0), pad_sets([(1,), (0, 2)]), ridge=100.0)
    assert found.sets == ((), (1,), (0, 2))
    assert found[()] == pytest.approx(7.0, abs=1e-12)


def test_least_squares_without_one_answer_is_refused_and_says_how_to_go_on():
    keep = masks(5, 7)
    with pytest.raises(DecodeError, match=r"7 sets, but the 7 masks .* Give a ridge above 0"):
        refit(keep, normal(7), SETS, ridge=0.0)
    twin = torch.cat([keep[:, :1], keep[:, :1]], 1).repeat(9, 1)  # two components that are always ablated together
    with pytest.raises(DecodeError, match="tell only 2 apart"):
        refit(twin, normal(63), pad_sets([(0,), (1,)]), ridge=0.0)
    shared = refit(twin, twin[:, 0].double(), pad_sets([(0,), (1,)]), ridge=1e-9)
    assert shared[0] == pytest.approx(0.25, abs=1e-6)
    assert shared[1] == pytest.approx(0.25, abs=1e-6)


def test_bad_input_is_refused():
    keep = masks(5, 40)
    with pytest.raises(ResponseError, match="1 of 40 values"):
        refit(keep, normal(40).index_fill(0, torch.tensor([3]), math.nan), SETS)
    with pytest.raises(DecodeError, match=r"keep \(40, 5\) and values \(39,\)"):
        refit(keep, normal(39), SETS)
    with pytest.raises(DecodeError, match="the scales above 0"):
        refit(keep, normal(40), SETS, scale=torch.zeros(len(SETS)))


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("basis", BASES[:2], ids=lambda b: b.kind)
def test_nested_errors_are_those_of_separate_fits(basis, scaled):
    keep, y, fresh, fresh_y = masks(5, 40), normal(40), masks(5, 13, seed=1), normal(13, seed=1)
    scale = normal(len(SETS), seed=2).abs() + 0.1 if scaled else None
    errors, _ = nested_pair((keep, y), (fresh, fresh_y), SETS, basis, [1e-3, 0.5], scale)
    assert errors.shape == (2, len(SETS), 13)
    for a, ridge in enumerate([1e-3, 0.5]):
        for size in range(len(SETS)):
            part = None if scale is None else scale[: size + 1]
            alone = refit(keep, y, SETS[: size + 1], basis, ridge=ridge, scale=part)
            assert torch.allclose(errors[a, size], alone.evaluate(fresh) - fresh_y, atol=1e-9)


def test_a_prior_is_what_the_fit_is_shrunk_towards():
    """Errors towards a prior are those of the fit to what the prior leaves; and only the sizes asked for come back."""
    basis, scale = Basis("biased", 0.8), normal(len(SETS), seed=2).abs() + 0.1
    keep, y, fresh, fresh_y = masks(5, 40), normal(40), masks(5, 13, seed=1), normal(13, seed=1)
    prior = Spectrum(5, SETS, normal(len(SETS), seed=3), basis)
    sizes = [1, 4, 6]
    given, unseen = (keep, y), (fresh, fresh_y)
    plain, near = nested_pair(given, unseen, SETS, basis, [0.3], scale, sizes=sizes, prior=prior.coefficients)
    assert torch.equal(plain, nested_pair(given, unseen, SETS, basis, [0.3], scale)[0][:, sizes])
    for k, size in enumerate(sizes):
        part = prior.select(torch.arange(size + 1))
        left = refit(keep, y - part.evaluate(keep), part.members, basis, ridge=0.3, scale=scale[: size + 1])
        assert torch.allclose(near[0, k], part.evaluate(fresh) + left.evaluate(fresh) - fresh_y, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-6, 1e6), st.sampled_from([0.5, 0.8]))
def test_pruning_leaves_exactly_what_was_planted_in_float32(seed, unit, keep_prob):
    """Noise-free up to float32 rounding: every planted set stays, no other does, whatever the unit."""
    picked = torch.randperm(len(SETS) - 1, generator=torch.Generator().manual_seed(seed))[:3] + 1
    planted = SETS[torch.cat([torch.zeros(1, dtype=torch.long), picked])]
    basis = Basis.orthonormal(keep_prob)
    truth = Spectrum(5, planted, unit * (1 + normal(4, seed=seed).abs()), basis)
    keep = masks(5, 200, keep_prob, seed)
    found = prune(keep, truth.evaluate(keep).float(), SETS, basis)
    assert set(found.sets) == set(truth.sets)


def test_pruning_keeps_false_sets_at_the_stated_level():
    """Pure noise, 30 sets, 200 repetitions: any false set in at most level + 3 binomial standard errors of them."""
    sets = pad_sets([*itertools.combinations(range(8), 2), (0,), (1,)])
    keep, level = masks(8, 150), 0.1
    false = sum(len(prune(keep, normal(150, seed=s), sets, level=level)) > 1 for s in range(200)) / 200
    assert false < level + 3 * math.sqrt(level * (1 - level) / 200)
    assert false > 0  # else the test could not fail


def test_significance_needs_standard_errors_and_knows_exact_zeros():
    with pytest.raises(DecodeError, match="no standard errors"):
        significance(Spectrum.from_terms(2, {(0,): 1.0}))
    exact = Spectrum.from_terms(2, {(0,): 1.0, (1,): 0.0}, stderr={(0,): 0.0, (1,): 0.0})
    assert significance(exact).tolist() == [0.0, 1.0]


def test_noise_floor_follows_the_unit():
    assert noise_floor(torch.tensor([3.0, -4.0])) == 4 * noise_floor(torch.tensor([1.0]))
