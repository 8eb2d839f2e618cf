"""The Gaussian process over masks: covariance and posterior by definition, what it learns, and that it is honest."""

import math
from dataclasses import replace

import pytest
import torch

from spex_mech.bench.functions import planted_function
from spex_mech.walsh.decoding import fold_masks, r_squared
from spex_mech.walsh.joint.gaussian import GaussianProcess, inputs
from spex_mech.walsh.joint.marginal_likelihood import Likelihood, factorised
from spex_mech.walsh.joint.outputs import rotated_outputs
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.spectrum import Basis, Spectrum

QUICK = GaussianProcess(scales=(1.0, 0.3, 3.0), penalty=1.0, steps=60, subset=128)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def masks(n, count, keep_prob=0.5, seed=0):
    return MaskDesign.bernoulli(n, count, keep_prob, seed).keep()


def raw(n, scales, seed=0):
    sizes = {"relevance": n, "line": n, "weight": scales, "noise": 1}
    return {name: normal(size, seed=seed + i) for i, (name, size) in enumerate(sizes.items())}


@pytest.mark.parametrize("basis", [Basis(), Basis("biased", 0.8)], ids=["walsh", "biased"])
def test_the_covariance_is_the_sum_it_says(basis):
    weights, a, b = raw(5, 3), inputs(masks(5, 7), basis), inputs(masks(5, 4, seed=1), basis)
    relevance, line, weight = (torch.nn.functional.softplus(weights[k]) for k in ("relevance", "line", "weight"))
    far = ((a[:, None] - b[None]).square() * relevance).sum(2)
    products = sum(w * torch.exp(-0.5 * c * far) for w, c in zip(weight, QUICK.scales, strict=True))
    expected = torch.einsum("i,ai,bi->ab", line, a, b) + products
    assert torch.allclose(QUICK.covariance(weights, a, b), expected)


def test_members_side_by_side_are_as_each_alone():
    one, two, z = raw(4, 3), raw(4, 3, seed=9), inputs(masks(4, 6), Basis())
    both = {name: torch.stack([one[name], two[name]]) for name in one}
    together = QUICK.covariance(both, z.expand(2, -1, -1), z.expand(2, -1, -1))
    assert torch.allclose(together[1], QUICK.covariance(two, z, z))
    assert torch.allclose(QUICK.noise(both)[1], QUICK.noise(two))


def test_the_loss_is_minus_the_log_marginal_likelihood_with_its_scale_profiled_out():
    """Against torch's multivariate normal, at the output variance of largest likelihood."""
    process = replace(QUICK, penalty=0.0)
    weights = {name: value[None] for name, value in raw(4, 3).items()}
    z, y = inputs(masks(4, 30), Basis())[None], normal(1, 30, 1)
    centred = (y - y.mean(1, keepdim=True))[0, :, 0]
    system = process.covariance(weights, z, z)[0] + process.noise(weights)[0] * torch.eye(30)
    scale = centred @ torch.linalg.solve(system, centred) / 30
    likelihood = torch.distributions.MultivariateNormal(torch.zeros(30).double(), scale * system).log_prob(centred)
    loss = process._loss(weights, z, y, torch.ones(1, dtype=torch.float64))
    assert float(-likelihood / 30) == pytest.approx(float(loss) + 0.5 * (1 + math.log(2 * math.pi)))


def test_the_slope_of_the_likelihood_is_its_derivative():
    a = normal(2, 7, 9)
    system = (a @ a.mT + 3 * torch.eye(7)).requires_grad_()
    outputs, share = normal(2, 7, 3, seed=4), torch.tensor([0.5, 0.3, 0.2]).double()

    def likelihood(half):
        return Likelihood.apply(0.5 * (half + half.mT), outputs, share)

    assert torch.autograd.gradcheck(likelihood, (system,))


@pytest.mark.parametrize("most_masks", [8192, 25])
def test_each_mask_is_predicted_from_all_others(most_masks):
    """By refitting without each; with few masks to predict from, those beyond are predicted from all of these."""
    keep, values = masks(6, 40), normal(40, 2, seed=5)
    process = replace(QUICK, most_masks=most_masks)
    found = process.train(keep, values, torch.arange(40) % 2, Basis(), 0)
    used = found._drawn(40).tolist()
    told = torch.empty(40, dtype=torch.float64)
    for half in (0, 1):
        whole, told[half::2] = found.without_each(half)
        assert torch.equal(whole.predict(keep), found._posterior(found._own(half), keep, values.mean(1)).predict(keep))
    for mask in range(40):
        rest = [row for row in used if row != mask]
        own = {name: value[mask % 2] for name, value in found.weights.items()}
        y = values.mean(1)
        alone = _around(process, own, keep[rest], y[rest], y[used].mean())
        assert torch.allclose(told[mask], alone(keep[mask : mask + 1])[0], atol=1e-5), mask


def _around(process, weights, keep, values, centre):
    """The posterior mean around a given mean."""
    z = inputs(keep, Basis())
    system = process.covariance(weights, z, z) + process.noise(weights) * torch.eye(len(z))
    solved = torch.linalg.solve(system, values - centre)
    return lambda fresh: centre + process.covariance(weights, inputs(fresh, Basis()), z) @ solved


def test_predictions_are_the_posterior_mean():
    keep, fresh = masks(6, 40), masks(6, 9, seed=3)
    values = normal(40, 2, seed=5)
    trained = QUICK.train(keep, values, torch.arange(40) % 2, Basis(), 0)
    weights = {name: value.mean(0) for name, value in trained.weights.items()}
    z, new = inputs(keep, Basis()), inputs(fresh, Basis())
    system = QUICK.covariance(weights, z, z) + QUICK.noise(weights) * torch.eye(40)
    y = values.mean(1)
    expected = y.mean() + QUICK.covariance(weights, new, z) @ torch.linalg.solve(system, y - y.mean())
    assert torch.allclose(trained.given(keep, values).predict(fresh), expected)


def test_relevance_is_learned_and_shared_by_outputs():
    """Six of forty components matter, the same to sixteen outputs: together they tell which, from few masks."""
    terms = {(0,): 1.0, (1,): 0.7, (0, 1): 0.8, (2, 3): 0.8, (4, 5): -0.6, (2,): 0.5}
    keep, fresh = masks(40, 120), masks(40, 1000, seed=9)
    own = {s: normal(16, seed=i) for i, s in enumerate(terms)}
    phi = {s: Spectrum.from_terms(40, {s: 1.0}) for s in terms}

    def respond(rows):
        return torch.stack(
            [sum((c + own[s][o]) * phi[s].evaluate(rows) for s, c in terms.items()) for o in range(16)], 1
        )

    values = respond(keep) + 0.5 * normal(120, 16, seed=7)
    fold = fold_masks(keep, 4, 0)
    many = QUICK.train(keep, values, fold, Basis(), 0)
    alone = QUICK.train(keep, values.mean(1, keepdim=True), fold, Basis(), 0)
    relevance = torch.nn.functional.softplus(many.weights["relevance"]).mean(0)
    assert set(relevance.topk(6).indices.tolist()) == set(range(6))
    truth = respond(fresh).mean(1)
    scores = [r_squared(truth, found.given(keep, values).predict(fresh)) for found in (many, alone)]
    assert scores[0] > max(0.75, scores[1])


@pytest.mark.parametrize("keep_prob", [0.5, 0.9])
def test_unseen_predictions_are_honest(keep_prob):
    """Cross-fitted R² is near that on fresh masks, and below that on the masks that it was fitted to."""
    function = planted_function("tanh", 20, sets=6, seed=1)
    basis, keep, fresh = Basis.orthonormal(keep_prob), masks(20, 300, keep_prob), masks(20, 2000, keep_prob, seed=4)
    values = function.noisy(keep, 0.2, 3)[:, None]
    found = QUICK.train(keep, values, fold_masks(keep, 4, 0), basis, 0)
    whole = found.given(keep, values)
    unseen, seen = (r_squared(values[:, 0], p) for p in (found.out_of_sample(), whole.predict(keep)))
    assert unseen == pytest.approx(r_squared(function.noisy(fresh, 0.2, 8), whole.predict(fresh)), abs=0.1)
    assert unseen < seen


def test_a_system_that_rounding_has_made_singular_is_still_solved():
    same = torch.ones(2, 40, 40)
    factor = factorised(same)
    assert factor.isfinite().all()
    assert torch.allclose(factor @ factor.mT, same, atol=0.05)


def test_a_function_without_noise_or_variance():
    keep = masks(10, 100)
    exact = Spectrum.from_terms(10, {(): 2.0, (0,): 1.0, (1, 2): 0.5})
    found = QUICK.train(keep, exact.evaluate(keep)[:, None], torch.arange(100) % 2, Basis(), 0)
    assert (
        r_squared(
            exact.evaluate(masks(10, 300, seed=5)),
            found.given(keep, exact.evaluate(keep)[:, None]).predict(masks(10, 300, seed=5)),
        )
        > 0.99
    )
    flat = torch.full((100, 2), 3.0)
    still = QUICK.train(keep, flat, torch.arange(100) % 2, Basis(), 0).given(keep, flat)
    assert torch.allclose(still.predict(keep), torch.tensor(3.0).double())


def test_same_seed_same_bits_and_steps_that_see_a_subset():
    keep, values = masks(12, 200), normal(200, 3)
    fold = torch.arange(200) % 4
    one, same, other = (replace(QUICK, subset=50).train(keep, values, fold, Basis(), seed) for seed in (1, 1, 2))
    assert all(torch.equal(one.weights[name], same.weights[name]) for name in one.weights)
    assert not torch.equal(one.weights["relevance"], other.weights["relevance"])


def test_more_masks_than_it_can_hold():
    function = planted_function("hierarchical", 16, sets=3, seed=0)
    keep = masks(16, 300)
    values = function(keep)[:, None]
    small = replace(QUICK, most_masks=150).train(keep, values, torch.arange(300) % 3, Basis(), 0)
    fresh = masks(16, 500, seed=2)
    assert 0.5 < r_squared(function(fresh), small.given(keep, values).predict(fresh)) < 1


def test_outputs_are_rotated_with_their_mean_first():
    values = normal(50, 6) * torch.tensor([1.0, 2, 3, 4, 5, 6]) + 3
    targets, readout = rotated_outputs(values, 4)
    assert targets.shape == (50, 4)
    assert torch.allclose(readout.mean(targets[:, 0]), values.mean(1))
    spread = targets[:, 1:].var(0, correction=0)
    assert (spread.diff() <= 1e-12).all()
    assert float(spread[0]) == pytest.approx(1)
    alone, _ = rotated_outputs(values[:, :1], 4)
    assert alone.shape == (50, 1)
