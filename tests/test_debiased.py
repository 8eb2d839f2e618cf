"""Judging by all masks: estimates and errors of a shrunken fit, against planted truth and least squares."""

import numpy as np
import pytest
import torch
from scipy.stats import false_discovery_control
from scipy.stats import t as student

from spex_mech.walsh.certainty.debiased import METHOD, debias, unfitted_share
from spex_mech.walsh.certainty.significance import q_values_by_order
from spex_mech.walsh.certainty.weigh import weigh
from spex_mech.walsh.decoding import CrossFit, Samples, r_squared, r_squared_error
from spex_mech.walsh.joint.joint import Joint
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.set_rows import pad_sets
from spex_mech.walsh.spectrum import Basis, Spectrum, monomials


def additive(n, seed, keep_prob=0.5):
    weights = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Spectrum(n, pad_sets([(i,) for i in range(n)]), weights, Basis.orthonormal(keep_prob))


def measured(truth, masks, noise, seed, keep_prob=0.5):
    design = MaskDesign.bernoulli(truth.n, masks, keep_prob, seed)
    keep = design.keep()
    drawn = torch.randn(masks, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    values = truth.evaluate(keep) + noise * truth.coefficients.norm() * drawn
    return Samples(keep, values[:, None].float(), design)


def ridge_cross_fit(samples, members, basis, ridge):
    """A fit that shrinks, and what it says of every mask without it (closed form of leaving one out)."""
    phi = monomials(samples.keep, members, basis)
    penalty = ridge * torch.eye(len(members), dtype=torch.float64)
    penalty[0, 0] = 0.0
    hat = phi @ torch.linalg.solve(phi.T @ phi + penalty, phi.T)
    fitted = hat @ samples.mean_values
    unseen = samples.mean_values - (samples.mean_values - fitted) / (1 - hat.diagonal())
    coefficients = torch.linalg.solve(phi.T @ phi + penalty, phi.T @ samples.mean_values)
    return CrossFit(Spectrum(samples.n, members, coefficients, basis), fitted, unseen)


def test_least_squares_comes_out_as_it_went_in():
    truth = additive(8, 0)
    samples = measured(truth, 200, 0.3, 5)
    members = pad_sets([(), *((i,) for i in range(8))])
    fit = ridge_cross_fit(samples, members, truth.basis, 0.0)
    found = debias(samples, fit)
    torch.testing.assert_close(found.estimates.value[1:], fit.spectrum.coefficients[1:], atol=1e-9, rtol=0)
    assert unfitted_share(samples, fit) == pytest.approx(1 - 9 / 200, abs=0.01)


@pytest.mark.parametrize("ridge", [20.0, 100.0])
def test_what_a_penalty_shrank_is_given_back_with_honest_errors(ridge):
    """Ridge pulls coefficients to 1/(1 + ridge/masks); de-biased ones are off by their error, by no more or less."""
    n, masks, apart, shrunk = 10, 150, [], []
    members = pad_sets([(), *((i,) for i in range(n))])
    for seed in range(60):
        truth = additive(n, seed)
        samples = measured(truth, masks, 0.4, 1000 + seed)
        fit = ridge_cross_fit(samples, members, truth.basis, ridge)
        found = debias(samples, fit)
        apart.append(((found.estimates.value[1:] - truth.coefficients) / found.estimates.stderr[1:]).numpy())
        shrunk.append(((fit.spectrum.coefficients[1:] - truth.coefficients) / found.estimates.stderr[1:]).numpy())
    assert np.sqrt(np.mean(np.square(apart))) == pytest.approx(1.0, abs=0.15)
    assert (np.abs(apart) < 1.97).mean() == pytest.approx(0.95, abs=0.025)
    assert np.sqrt(np.mean(np.square(shrunk))) > 1.3  # which is what the correction is for


def test_joint_confirms_what_least_squares_confirms_and_no_interaction_of_an_additive_function():
    ours, theirs, false = 0, 0, 0
    for seed in range(4):
        truth = additive(12, seed, 0.9)
        samples = measured(truth, 128, 0.3, 50 + seed, 0.9)
        decoded = Joint().decode(samples, seed=0)
        sure = weigh(samples, Joint(), decoded, seed=0)
        assert sure.record["inference"]["method"] == METHOD
        claimed = {s for s, q in sure.q_value.items() if q <= 0.05}
        false += sum(len(s) > 1 for s in claimed)
        ours += sum(len(s) == 1 for s in claimed)
        phi = np.c_[np.ones(128), monomials(samples.keep, truth.members, truth.basis).numpy()]
        solved, residual, _, _ = np.linalg.lstsq(phi, samples.mean_values.numpy(), rcond=None)
        error = np.sqrt(np.diag(np.linalg.inv(phi.T @ phi)) * residual[0] / (128 - 13))
        theirs += int((false_discovery_control(2 * student.sf(np.abs(solved / error)[1:], 115)) <= 0.05).sum())
    assert false == 0
    assert ours >= 0.9 * theirs > 30


def test_sets_that_pass_have_the_estimate_that_their_error_is_of():
    truth = additive(12, 3, 0.9)
    samples = measured(truth, 128, 0.3, 53, 0.9)
    decoded = Joint().decode(samples, seed=0)
    sure, found = weigh(samples, Joint(), decoded, seed=0), debias(samples, decoded.cross_fit)
    values = dict(found.spectrum.terms())
    errors = dict(zip(sure.spectrum.sets, sure.spectrum.stderr.tolist(), strict=True))
    passing = [s for s, q in sure.q_value.items() if q <= 0.05]
    assert passing
    for s in passing:
        assert sure.spectrum.get(s) == pytest.approx(values[s])
        assert abs(values[s]) > 1.9 * errors[s]  # else q and coefficient contradict each other


def test_every_set_counts_as_one_of_all_of_its_order():
    p = np.array([np.nan, 0.001, 0.02, 1e-5, 1e-6])
    orders = np.array([0, 1, 1, 2, 3])
    q = q_values_by_order(p, orders, 20)
    assert np.isnan(q[0])
    assert q[1:3] == pytest.approx([0.02, 0.2])
    pairs, triples = 1e-5 * 190 * 2, 1e-6 * 1140 * 4
    assert q[3:] == pytest.approx([min(pairs, triples / 2), triples / 2])


def test_a_fit_that_passes_through_its_masks_is_not_asked():
    samples = measured(additive(6, 0), 64, 0.5, 9)
    says = Spectrum(6, pad_sets([()]), torch.zeros(1, dtype=torch.float64))
    assert debias(samples, CrossFit(says, samples.mean_values, torch.zeros(64, dtype=torch.float64))) is None


def test_the_error_of_r2_is_its_spread_over_samples():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(400, 200, generator=generator, dtype=torch.float64)
    predicted = truth + 0.6 * torch.randn(400, 200, generator=generator, dtype=torch.float64)
    scores = [r_squared(a, b) for a, b in zip(truth, predicted, strict=True)]
    errors = [r_squared_error(a, b) for a, b in zip(truth, predicted, strict=True)]
    assert np.mean(errors) == pytest.approx(np.std(scores), rel=0.12)


def test_r2_speaks_of_all_masks():
    samples = measured(additive(8, 1), 100, 0.5, 4)
    decoded = Joint().decode(samples, seed=0)
    assert decoded.stats["masks_judged"] == 100
    assert decoded.stats["heldout_r2"] == pytest.approx(r_squared(samples.mean_values, decoded.cross_fit.unseen))
    assert 0 < decoded.stats["heldout_r2_stderr"] < 0.2
