"""ProxySPEX: the polynomial of trees is exact, the refit finds what was planted, and held-out masks are held out."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spex_mech.errors import DecodeError
from spex_mech.walsh.decoders.lines_and_trees import add_spectra
from spex_mech.walsh.decoders.proxyspex import ProxySpex
from spex_mech.walsh.decoders.trees import Boosting
from spex_mech.walsh.decoding import Decoder, Outcome, Samples, r_squared, split_masks
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.spectrum import Basis, Spectrum

QUICK = ProxySpex(folds=3, boosting=Boosting(trees=60))


def sampled(truth: Spectrum, masks: int, keep_prob: float = 0.5, noise: float = 0.0, seed: int = 0) -> Samples:
    design = MaskDesign.bernoulli(truth.n, masks, keep_prob, seed=seed)
    values = truth.evaluate(design.keep())
    values = values + noise * torch.randn(masks, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Samples(design.keep(), values[:, None].float(), design)


def found(decoded):
    return {s for s in decoded.spectrum.sets if s}


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 8), st.integers(0, 1000), st.sampled_from([0.5, 0.3, 0.9]), st.integers(1, 6))
@example(6, 151, 0.5, 4)  # leaves that float32 does not hold
def test_the_spectrum_of_trees_is_what_they_predict(n, seed, keep_prob, depth):
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(120, n, generator=generator) < keep_prob
    values = torch.randn(120, generator=generator, dtype=torch.float64)
    trees = Boosting(trees=8, depth=depth, least_leaf=2).train(keep, values, seed)
    everything = MaskDesign.complete(n).keep()
    for basis in (Basis.orthonormal(keep_prob), Basis("mobius"), Basis("knockout")):
        assert torch.allclose(
            trees.spectrum(basis).evaluate(everything), trees.predict(everything), rtol=1e-9, atol=1e-12
        )
    assert trees.spectrum().orders.max() <= min(depth, n)


@pytest.mark.parametrize("keep_prob", [0.5, 0.8])
def test_additive_functions_get_no_interaction(keep_prob):
    basis = Basis.orthonormal(keep_prob)
    truth = Spectrum.from_terms(40, {(): 1.0, **{(i,): (-1.0) ** i * (1 + i / 20) for i in range(0, 40, 2)}}, basis)
    decoded = QUICK.decode(sampled(truth, 500, keep_prob), seed=0)
    assert found(decoded) == set(truth.sets) - {()}
    assert decoded.stats["heldout_r2"] > 0.9999


@pytest.mark.parametrize("basis", ["mobius", "knockout", "walsh"])
@pytest.mark.parametrize("size", [2, 3])
def test_and_or_xor_are_found_exactly(basis, size):
    members = (1, 4, 7)[:size]
    truth = Spectrum.from_terms(10, {(): 0.5, members: 2.0}, Basis(basis)).rewrite(Basis()).prune(1e-9)
    decoded = ProxySpex().decode(sampled(truth, 800), seed=0)
    assert found(decoded) == {s for s in truth.sets if s}
    assert all(abs(c - truth[s]) < 1e-4 for s, c in decoded.spectrum.terms() if s)
    assert decoded.outcome is Outcome.RECOVERED


def test_noise_gives_no_interaction_or_says_that_nothing_was_found():
    false = 0
    for seed in range(10):
        keep = MaskDesign.bernoulli(20, 300, 0.5, seed=seed).keep()
        noise = torch.randn(300, 1, generator=torch.Generator().manual_seed(seed))
        false += len(found(QUICK.decode(Samples(keep, noise), seed=seed))) > 0
    assert false <= 1


def test_a_hierarchical_function_with_noise_is_predicted_and_errors_are_of_the_right_size():
    pairs = {(): 0.0, (0,): 1.0, (1,): 0.7, (0, 1): 0.5, (5,): -0.8, (5, 9): 0.4, (9,): 0.3, (0, 1, 5): 0.3}
    truth = Spectrum.from_terms(30, pairs)
    decoded = QUICK.decode(sampled(truth, 800, noise=0.3), seed=0)
    fresh = MaskDesign.bernoulli(30, 500, seed=77).keep()
    assert r_squared(truth.evaluate(fresh), decoded.spectrum.evaluate(fresh)) > 0.97
    z = [(decoded.spectrum[s] - c) / decoded.spectrum.stderr[decoded.spectrum.sets.index(s)] for s, c in pairs.items()
         if s and s in decoded.spectrum]  # fmt: skip
    assert len(z) >= 6
    assert max(abs(float(v)) for v in z) < 5


def test_held_out_masks_are_never_used():
    truth = Spectrum.from_terms(12, {(): 1.0, (0,): 1.0, (0, 1): 0.5})
    samples = sampled(truth, 300, noise=0.1)
    _, held = split_masks(samples.keep, 0.2, 3)
    poisoned = samples.values.clone()
    poisoned[held] += 1000 * torch.randn(len(held), 1, generator=torch.Generator().manual_seed(1))
    clean, other = QUICK.decode(samples, seed=3), QUICK.decode(Samples(samples.keep, poisoned, samples.design), seed=3)
    assert torch.equal(clean.spectrum.coefficients, other.spectrum.coefficients)
    assert clean.stats["heldout_r2"] != other.stats["heldout_r2"]


def test_same_seed_same_bits_and_every_option_acts():
    samples = sampled(Spectrum.from_terms(12, {(0,): 1.0, (0, 1): 0.5, (3, 4): 0.2}), 200, noise=0.4)
    one, two = QUICK.decode(samples, seed=0), QUICK.decode(samples, seed=0)
    assert torch.equal(one.spectrum.coefficients, two.spectrum.coefficients)
    assert QUICK.decode(samples, seed=1).stats["heldout_r2"] != one.stats["heldout_r2"]
    assert ProxySpex(heldout=0.4, folds=3, boosting=QUICK.boosting).decode(samples, seed=0).stats["masks_heldout"] == 80
    assert (
        ProxySpex(folds=5, boosting=QUICK.boosting).decode(samples, seed=0).stats["cross_validated"]
        != one.stats["cross_validated"]
    )
    assert (
        ProxySpex(folds=3, boosting=Boosting(trees=5)).decode(samples, seed=0).stats["proxy_heldout_r2"]
        != one.stats["proxy_heldout_r2"]
    )
    assert len(ProxySpex(folds=3, boosting=QUICK.boosting, most_sets=25).decode(samples, seed=0).spectrum) <= 70


def test_too_few_masks_and_the_protocol():
    assert isinstance(QUICK, Decoder)
    with pytest.raises(DecodeError, match="12 masks; it needs at least 16"):
        QUICK.decode(sampled(Spectrum.from_terms(5, {(0,): 1.0}), 12), seed=0)


def test_adding_polynomials():
    one, other = Spectrum.from_terms(3, {(0,): 1.0, (1,): 2.0}), Spectrum.from_terms(3, {(1,): -2.0, (0, 2): 1.0})
    assert dict(add_spectra(one, other).terms()) == {(0,): 1.0, (1,): 0.0, (0, 2): 1.0}
