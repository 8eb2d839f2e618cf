"""How sure: intervals cover, false discoveries stay below their rate, stable sets are told from chance ones.

Rates are counted over repetitions with fixed seeds, so a test gives the same figure every time; bounds are the stated
rate with room for the number of repetitions.
"""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from typer.testing import CliRunner

import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.bench.functions import planted_function
from spex_mech.cli.main import app
from spex_mech.errors import DecodeError
from spex_mech.store.spectrum_file import load_spectrum, save_spectrum
from spex_mech.walsh.certainty.estimates import Seen, mixture_gram, moderate, one_step_estimates
from spex_mech.walsh.certainty.inference import confirm_sets, infer
from spex_mech.walsh.certainty.significance import q_values
from spex_mech.walsh.certainty.stability import Stability, stability
from spex_mech.walsh.certainty.weigh import agreement, check_certainty, heldout_samples, weigh
from spex_mech.walsh.decoders.exact import Exact
from spex_mech.walsh.decoders.linear import Linear
from spex_mech.walsh.decoders.proxyspex import ProxySpex
from spex_mech.walsh.decoders.pursuit import Pursuit
from spex_mech.walsh.decoders.refit import prune, significance
from spex_mech.walsh.decoders.trees import Boosting
from spex_mech.walsh.decoding import Decoded, Outcome, Samples
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.set_rows import pad_sets
from spex_mech.walsh.spectrum import Basis, Spectrum, monomials
from spex_mech.walsh.spex.spex import Spex


@dataclass(frozen=True)
class Greedy:
    """A decoder of milliseconds: pursuit, and what least squares finds significant. Its level is how choosy it is."""

    level: float = 0.05

    @property
    def name(self) -> str:
        return "greedy"

    def decode(self, samples: Samples, *, seed: int) -> Decoded:
        keep, values, basis = samples.keep, samples.mean_values, Basis.orthonormal(samples.keep_prob)
        found = Pursuit(degree=4).find(keep, values, basis)
        pruned = prune(keep, values, found, basis, tested=samples.n**2 // 2, ridge=1e-9, level=self.level)
        return Decoded(pruned, Outcome.PARTIAL, {"heldout_r2": None})


def drawn(seed, n=16, masks=300, keep_probs=(0.5,), noise=0.5, outputs=1, ands=4, kind="hierarchical"):
    """Samples of a planted function of unit variance under these masks, and its true coefficients there."""
    design = MaskDesign.stratified(n, masks, keep_probs, seed)
    function, keep = planted_function(kind, n, sets=ands, degree=3, seed=seed), design.keep()
    clean = function(keep)
    size = float(clean.std())
    generator = torch.Generator().manual_seed(seed + 1)
    values = (clean / size)[:, None] + noise * torch.randn(masks, outputs, dtype=torch.float64, generator=generator)
    truth = function.spectrum.rewrite(Basis.orthonormal(design.mean_keep_prob))
    return Samples(keep, values, design), {s: c / size for s, c in truth.terms() if s and abs(c) > 1e-9 * size}


def noise_only(seed, n=16, masks=200, outputs=1):
    keep = MaskDesign.bernoulli(n, masks, 0.5, seed).keep()
    return Samples(keep, torch.randn(masks, outputs, generator=torch.Generator().manual_seed(seed)).double())


def covered(found, truth, low, high):
    """Whether the interval of every true set that was found holds the truth."""
    rows = [(row, truth[s]) for row, s in enumerate(found.sets) if s in truth and found.inclusion[row] > 0]
    return [bool(low[row] <= value <= high[row]) for row, value in rows]


def share(flags):
    return sum(flags) / len(flags)


def best_approximation(design, truth, named):
    """The coefficients of some sets in the best approximation of a function by them, under the design's own masks."""
    sets = [(), *named, *(s for s in truth if s not in named)]
    basis, known = Basis.orthonormal(design.mean_keep_prob), 1 + len(named)
    gram = mixture_gram(pad_sets(sets), design.n, basis, design.keep_probs)
    moments = gram[:known, 1:] @ torch.tensor([truth[s] for s in sets[1:]], dtype=torch.float64)
    return dict(zip(sets, torch.linalg.solve(gram[:known, :known], moments).tolist(), strict=False))


# The estimator


@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
@settings(max_examples=25, deadline=None)
def test_over_all_masks_the_estimate_is_the_coefficient_whatever_the_polynomial(seed, n):
    generator = torch.Generator().manual_seed(seed)
    keep = MaskDesign.complete(n).keep()
    values = torch.randn(1 << n, 2, dtype=torch.float64, generator=generator)
    guess = torch.randn(1 << n, dtype=torch.float64, generator=generator)
    exact = Exact(rounding=0).decode(Samples(keep, values, MaskDesign.complete(n)), seed=0).spectrum
    wrong = Exact(rounding=0).decode(Samples(keep, guess[:, None], MaskDesign.complete(n)), seed=0).spectrum
    missed = values - wrong.evaluate(keep)[:, None]
    coefficients = torch.tensor([[wrong.get(s) or 0.0 for s in exact.sets]], dtype=torch.float64)
    zero = torch.zeros(1 << n, dtype=torch.long)
    seen = Seen(Samples(keep, values), missed, coefficients, coefficients == coefficients, zero, torch.arange(1 << n))
    found = one_step_estimates(seen, exact.members, Basis())
    assert torch.allclose(found.value, exact.coefficients, atol=1e-9)
    assert torch.allclose(found.by_output.mean(1), found.value, atol=1e-9)


@given(st.lists(st.floats(0.1, 0.9), min_size=1, max_size=3))
@settings(max_examples=20, deadline=None)
def test_gram_of_a_mixture_is_that_of_all_its_masks(keep_probs):
    keep = MaskDesign.complete(3).keep()
    members = pad_sets([(), (0,), (1,), (0, 2), (0, 1, 2)])
    basis = Basis.orthonormal(sum(keep_probs) / len(keep_probs))
    phi, kept = monomials(keep, members, basis), keep.sum(1).double()
    wanted = sum((phi * (q**kept * (1 - q) ** (3 - kept))[:, None]).T @ phi for q in keep_probs) / len(keep_probs)
    assert torch.allclose(mixture_gram(members, 3, basis, tuple(keep_probs)), wanted, atol=1e-9)


def test_moderation_recovers_the_common_variance_and_its_freedom():
    """Variances drawn from Smyth's own prior, d₀ = 8 and s₀² = 3, each seen with five degrees of freedom."""
    generator = np.random.default_rng(0)
    true = 8 * 3 / generator.chisquare(8, 4000)
    ratio = torch.from_numpy(true * generator.chisquare(5, 4000) / 5)
    five = torch.full_like(ratio, 5.0)
    drawn_in, freedom = moderate(ratio, five, torch.full_like(ratio, 1e6))
    assert float(freedom[0]) == pytest.approx(13, abs=1.5)
    assert torch.allclose(drawn_in, (8 * 3 + 5 * ratio) / 13, rtol=0.1)
    error = (drawn_in.numpy() / true - 1) ** 2
    assert np.median(error) < np.median((ratio.numpy() / true - 1) ** 2) / 2
    few = moderate(ratio[:5], five[:5], five[:5])
    assert torch.equal(few[0], ratio[:5])


def test_a_polynomial_without_noise_is_confirmed_to_the_last_set():
    samples, truth = drawn(0, noise=0.0)
    spectrum = Spectrum.from_terms(16, {(): 0.0, **truth, (0, 1, 2): 1e-12})
    found = confirm_sets(samples, spectrum)
    assert all(found.q_values()[s] < 1e-12 for s in truth)
    assert found.q_values()[0, 1, 2] > 0.05
    assert agreement(found, spectrum) == 1.0


def test_nothing_given_is_changed():
    samples, _ = drawn(1)
    before = samples.values.clone()
    infer(samples, Greedy(), folds=2)
    confirm_sets(samples, Spectrum.from_terms(16, {(0,): 1.0}))
    stability(samples, [(0,)], resamples=2)
    assert torch.equal(samples.values, before)


# Coverage


@pytest.mark.parametrize(
    ("keep_probs", "masks", "outputs"), [((0.5,), 200, 1), ((0.9,), 2000, 1), ((0.5, 0.9), 400, 1), ((0.5,), 150, 4)]
)
def test_intervals_of_sets_named_in_advance_cover(keep_probs, masks, outputs):
    flags = []
    for seed in range(40):
        samples, truth = drawn(seed, masks=masks, keep_probs=keep_probs, outputs=outputs)
        named = sorted(truth, key=lambda s: -abs(truth[s]))[:12]
        found = infer(samples, named, folds=3, seed=seed)
        target = best_approximation(samples.design, truth, named)
        flags += covered(found, {s: target[s] for s in named if len(s) < 3 or keep_probs == (0.5,)}, *found.interval())
    assert len(flags) > 300
    assert 0.93 <= share(flags) <= 0.97


@pytest.mark.parametrize(
    ("keep_probs", "masks", "folds"), [((0.5,), 400, 2), ((0.5,), 400, 3), ((0.9,), 3000, 3), ((0.5, 0.9), 600, 3)]
)
def test_intervals_of_sets_that_were_found_cover(keep_probs, masks, folds):
    flags = []
    for seed in range(20):
        samples, truth = drawn(seed, masks=masks, keep_probs=keep_probs, ands=5)
        found = infer(samples, Greedy(), folds=folds, seed=seed)
        pairs = {s: c for s, c in truth.items() if len(s) < 3 or keep_probs == (0.5,)}
        flags += covered(found, pairs, *found.interval())
    assert len(flags) > 150
    assert 0.93 <= share(flags) <= 0.98


def test_intervals_on_held_out_masks_cover_whatever_was_chosen():
    """Half of the masks choose, greedily and too many sets; the other half judges. Sets that are nothing cover 0."""
    flags, wrong = [], []
    for seed in range(40):
        samples, truth = drawn(seed, masks=400, noise=1.0)
        chosen = Greedy(5.0).decode(samples.take(torch.arange(200)), seed=0).spectrum
        rest = Samples(samples.keep[200:], samples.values[200:])
        found = confirm_sets(rest, chosen)
        low, high = found.interval()
        flags += covered(found, {s: truth.get(s, 0.0) for s in found.sets if s}, low, high)
        wrong += [s not in truth for s in found.sets if s]
    assert sum(wrong) > 50
    assert 0.93 <= share(flags) <= 0.97


def test_triples_are_not_judged_where_too_few_masks_ablate_them():
    """At keep 0.9, 1,000 masks are expected to ablate three components together once: that is no evidence."""
    samples, _ = drawn(0, masks=1000, keep_probs=(0.9,))
    found = infer(samples, [(0,), (0, 1), (0, 1, 2)], folds=2)
    stderr = dict(zip(found.sets, found.estimates.stderr.tolist(), strict=True))
    assert math.isinf(stderr[0, 1, 2])
    assert found.q_values()[0, 1, 2] == 1.0
    assert stderr[0, 1] < 0.1
    freedom = dict(zip(found.sets, found.estimates.freedom.tolist(), strict=True))
    assert freedom[0, 1] <= 1000 / 65.8
    assert 60 < freedom[(0,)] <= 1000 / 8.11


def test_errors_over_prompts_cover_other_prompts_and_those_over_masks_do_not():
    """Prompts differ in their coefficient with standard deviation 0.5; forty populations of twelve."""
    covers = {"masks": [], "outputs": [], "both": []}
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        keep = MaskDesign.bernoulli(4, 60, seed=seed).keep()
        own = 1.0 + 0.5 * torch.randn(12, dtype=torch.float64, generator=generator)
        common = torch.randn(60, 1, dtype=torch.float64, generator=generator)
        noise = torch.randn(60, 12, dtype=torch.float64, generator=generator)
        values = monomials(keep, pad_sets([(0, 1)])) * own + 0.8 * common + noise
        found = infer(Samples(keep, values), [(0, 1)], folds=2, seed=seed)
        row = found.sets.index((0, 1))
        for over, flags in covers.items():
            low, high = found.interval(over=over)
            flags.append(bool(low[row] <= 1.0 <= high[row]))
    assert share(covers["masks"]) < 0.9
    assert share(covers["outputs"]) < share(covers["both"])
    assert 0.92 <= share(covers["both"]) <= 0.99


def test_runs_of_masks_that_share_bits_count_as_one():
    """With four masks a run, what the shared components do is seen in a quarter of the settings."""
    flags, ratio = [], []
    for seed in range(40):
        design = MaskDesign.bernoulli(10, 240, seed=seed).sharing(range(5), 4)
        keep = design.keep()
        function = Spectrum.from_terms(10, {(0,): 1.0, (1, 2): 0.7, (0, 3): 0.7, (7,): 1.0})
        noise = torch.randn(240, 1, generator=torch.Generator().manual_seed(seed))
        samples = Samples(keep, function.evaluate(keep)[:, None] + 0.1 * noise, design)
        found = infer(samples, [(4,), (7,)], folds=2, seed=seed)
        alone = infer(Samples(keep, samples.values), [(4,), (7,)], folds=2, seed=seed)
        low, high = found.interval()
        flags.append(bool(low[1] <= 0 <= high[1]))
        ratio.append(float(found.estimates.stderr[1] / alone.estimates.stderr[1]))
    assert share(flags) >= 0.9
    assert sum(ratio) / len(ratio) > 1.6


# Tests


def test_p_values_of_nothing_are_uniform():
    p = []
    for seed in range(40):
        samples = noise_only(seed, masks=120)
        p += infer(samples, [(i, i + 1) for i in range(12)], folds=3, seed=seed).p[1:].tolist()
    assert stats.kstest(p, "uniform").pvalue > 0.01


@pytest.mark.parametrize("level", [0.05, 5.0])
def test_noise_gives_no_set(level):
    """Also where the decoder reports junk; the decoder's own errors find sets there all the time."""
    honest, own = [], []
    for seed in range(40):
        samples = noise_only(seed)
        honest.append(any(q <= 0.05 for q in infer(samples, Greedy(level), folds=3, seed=seed).q_values().values()))
        found = Greedy(level).decode(samples, seed=0).spectrum
        rows = found.orders > 0
        naive = q_values(significance(found)[rows].numpy()) if rows.any() else []
        own.append(bool((np.asarray(naive) <= 0.05).any()))
    assert share(honest) <= 0.05
    assert share(own) > (0.5 if level > 1 else 0.0)


def test_false_discoveries_stay_below_their_rate_where_there_is_something_to_find():
    false, found_true = [], []
    for seed in range(25):
        samples, truth = drawn(seed, masks=400, noise=0.7)
        reported = {s for s, q in infer(samples, Greedy(5.0), folds=3, seed=seed).q_values().items() if q <= 0.05}
        false.append(len(reported - truth.keys()) / max(1, len(reported)))
        found_true.append(len(reported & truth.keys()) / len(truth))
    assert sum(false) / len(false) <= 0.05
    assert sum(found_true) / len(found_true) > 0.4


@pytest.mark.slow
def test_with_boosted_trees_intervals_cover_and_discoveries_are_true():
    """ProxySPEX, whose supports are long and mostly junk, cross-fitted and on its own held-out masks."""
    flags, false, decoder = [], [], ProxySpex(boosting=Boosting(trees=60))
    for seed in range(12):
        samples, truth = drawn(seed, masks=400, noise=0.5)
        decoded = decoder.decode(samples, seed=seed)
        held = heldout_samples(samples, decoder, decoded, seed)
        for found in (infer(samples, decoder, folds=3, seed=seed), confirm_sets(held, decoded.spectrum)):
            flags += covered(found, {s: truth.get(s, 0.0) for s in found.sets if s}, *found.interval())
            reported = {s for s, q in found.q_values().items() if q <= 0.05}
            false.append(len(reported - truth.keys()) / max(1, len(reported)))
    assert len(flags) > 500
    assert 0.93 <= share(flags) <= 0.99
    assert sum(false) / len(false) <= 0.05


@pytest.mark.parametrize("keep_prob", [0.5, 0.9])
def test_an_additive_function_has_no_interaction(keep_prob):
    """At the stated rate: of what is reported, interactions are at most a twentieth."""
    false, mains = [], []
    for seed in range(25):
        generator = torch.Generator().manual_seed(seed)
        keep = MaskDesign.bernoulli(16, 400, keep_prob, seed).keep()
        values = keep.double() @ torch.randn(16, 1, dtype=torch.float64, generator=generator)
        values = values + 0.3 * torch.randn(400, 1, dtype=torch.float64, generator=generator)
        samples = Samples(keep, values, MaskDesign.bernoulli(16, 400, keep_prob, seed))
        q = infer(samples, Greedy(5.0), folds=3, seed=seed).q_values()
        reported = [len(s) for s, value in q.items() if value <= 0.05]
        false.append(sum(size > 1 for size in reported) / max(1, len(reported)))
        mains.append(reported.count(1))
    assert sum(false) / len(false) <= 0.05
    assert sum(mains) / len(mains) > 6


def test_sets_of_all_masks_that_no_fold_found_are_not_confirmed():
    samples, truth = drawn(3)
    strong = max(truth, key=lambda s: abs(truth[s]))
    absent = next((i, 15) for i in range(15) if (i, 15) not in truth)
    found = infer(samples, Greedy(), folds=2, also=pad_sets([absent]))
    row = found.sets.index(absent)
    assert found.p[row] == 1.0
    assert found.inclusion[row] == 0
    assert found.inclusion[found.sets.index(strong)] == 1
    assert found.same_sign_folds[found.sets.index(strong)] == 1
    assert found.q_values()[strong] < 1e-6
    assert math.isnan(found.q[0])


def test_sign_consistency_over_outputs():
    keep = MaskDesign.bernoulli(4, 400, seed=1).keep()
    own = torch.tensor([1.0, 1.0, 1.0, -1.0])
    values = monomials(keep, pad_sets([(0,)])) * own
    found = infer(Samples(keep, values), [(0,)], folds=2)
    assert found.same_sign_outputs[1] == pytest.approx(0.75)
    assert torch.allclose(found.estimates.by_output[1], own.double(), atol=1e-3)


def test_same_seed_same_bits():
    samples, _ = drawn(2)
    one, same, other = (infer(samples, Greedy(), folds=3, seed=seed) for seed in (1, 1, 2))
    assert one.sets == same.sets
    assert torch.equal(one.estimates.value, same.estimates.value)
    assert torch.equal(one.q.nan_to_num(), same.q.nan_to_num())
    assert one.sets != other.sets or not torch.equal(one.estimates.value, other.estimates.value)


# Stability


def test_strong_sets_are_stable_and_absent_ones_are_not():
    samples, truth = drawn(4, masks=400, noise=0.3)
    strong = [s for s in truth if abs(truth[s]) > 0.25]
    absent = [(i, 15) for i in range(12) if (i, 15) not in truth]
    for by in (Greedy(), [*truth, *absent]):
        found = stability(samples, by, resamples=20, seed=0)
        assert min(found.shares[s] for s in strong) >= 0.9
        assert sum(found.shares.get(s, 0.0) for s in absent) / len(absent) <= 0.05
        assert found.node_jaccard > 0.8
        assert len(found.found) == 20


def test_noise_has_no_stable_set():
    found = stability(noise_only(0), Greedy(5.0), resamples=20)
    assert float(found.share.max()) < 0.5
    assert found.jaccard < 0.1


def test_halving_outputs_asks_whether_other_prompts_say_the_same():
    generator = torch.Generator().manual_seed(0)
    keep = MaskDesign.bernoulli(6, 200).keep()
    phi = monomials(keep, pad_sets([(0,), (1, 2)]))
    values = phi[:, :1] + phi[:, 1:] * torch.tensor([6.0, 0, 0, 0, 0, 0]) / 6  # the pair is one prompt's doing
    samples = Samples(keep, values + 0.3 * torch.randn(200, 6, dtype=torch.float64, generator=generator))
    found = stability(samples, [(0,), (1, 2)], resamples=20, over="outputs")
    assert found.shares[(0,)] == 1
    assert found.shares[1, 2] == 0.5


def test_jaccard_and_bound_by_hand():
    members = pad_sets([(0,), (1,), (0, 1)])
    found = Stability(3, members, torch.tensor([[1, 1, 0], [1, 0, 0], [1, 0, 1]]).bool(), "masks", "", 0.0)
    assert found.share.tolist() == pytest.approx([1, 1 / 3, 1 / 3])
    assert found.jaccard == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3)
    assert found.node_jaccard == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)
    assert found.false_sets(0.75, 100) == pytest.approx((5 / 3) ** 2 / (0.5 * 100))
    nothing = Stability(3, members, torch.zeros(2, 3, dtype=torch.bool), "masks", "", 0.0)
    assert math.isnan(nothing.jaccard)


def test_a_pool_is_refitted_on_its_own_components_alone():
    """Twenty thousand further components change nothing, and are not copied a hundred times."""
    samples, truth = drawn(5, masks=100)
    more = MaskDesign.bernoulli(20_000, 100, 0.5, seed=9).keep()
    wide = Samples(torch.cat([samples.keep, more], 1), samples.values, MaskDesign.bernoulli(20_016, 100, 0.5))
    assert torch.equal(
        stability(wide, list(truth), resamples=10).found, stability(samples, list(truth), resamples=10).found
    )


def test_same_seed_same_halves():
    samples, truth = drawn(5, noise=2.0)
    one, same, other = (stability(samples, list(truth), resamples=10, seed=seed).found for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


# What a decoding is weighed by


@pytest.mark.parametrize("seed", [0, 5])
def test_the_masks_that_a_decoder_set_aside_are_told(seed):
    samples, _ = drawn(0, masks=300)
    decoded = Linear().decode(samples, seed=seed)
    held = heldout_samples(samples, Linear(), decoded, seed)
    assert held is not None
    assert len(held.keep) == decoded.stats["masks_heldout"] == 60
    assert heldout_samples(samples, Linear(), decoded, seed + 1) is None
    assert heldout_samples(samples, Greedy(), Greedy().decode(samples, seed=0), 0) is None


def test_coded_masks_are_confirmed_by_the_coins_behind_the_code():
    design = MaskDesign.coded(16, 3, 800)
    function = Spectrum.from_terms(16, {(0,): 1.0, (1, 2): 1.0, (3, 4, 5): 0.5})
    noise = torch.randn(800, 1, generator=torch.Generator().manual_seed(0))
    samples = Samples(design.keep(), function.evaluate(design.keep())[:, None] + 0.1 * noise, design)
    decoded = Spex().decode(samples, seed=0)
    sure = weigh(samples, Spex(), decoded, seed=0)
    assert sure.record["inference"]["masks"] == decoded.stats["masks_heldout"] >= 16
    assert max(sure.q_value[s] for s in function.sets) < 1e-6
    assert sure.stability[1, 2] == 1.0
    with pytest.raises(DecodeError, match="not independent"):
        infer(samples, Linear())
    with pytest.raises(DecodeError, match="coded masks can neither"):
        check_certainty(design, 3, 0)


def test_weighing_by_folds_by_held_out_masks_and_by_nothing():
    samples, truth = drawn(6, masks=400, noise=0.2, kind="random", ands=6)
    additive = {s for s in truth if len(s) == 1}
    decoded = Linear().decode(samples, seed=0)
    held = weigh(samples, Linear(), decoded, seed=0)
    crossed = weigh(samples, Linear(), decoded, seed=0, folds=3, resamples=4)
    assert "nothing was fitted" in held.record["inference"]["method"]
    assert crossed.record["inference"]["folds"] == 3
    assert crossed.record["stability"]["resamples"] == 4
    assert additive <= {s for s, q in crossed.q_value.items() if q < 0.01}
    row = held.spectrum.sets.index(next(iter(additive)))
    assert held.spectrum.stderr[row] > crossed.spectrum.stderr[row] > 0
    own = Greedy().decode(samples, seed=0)
    bare = weigh(samples, Greedy(), own, seed=0)
    assert bare.q_value is None
    assert "optimistic" in bare.record["inference"]["method"]
    assert torch.equal(bare.spectrum.stderr, own.spectrum.stderr)


def test_what_cannot_be_inferred_is_refused_with_all_its_reasons():
    samples, _ = drawn(0, masks=40)
    with pytest.raises(DecodeError, match="1 folds; there are at least 2"):
        infer(samples, Greedy(), folds=1)
    with pytest.raises(DecodeError, match="every fold needs 8 masks"):
        infer(samples, Greedy(), folds=10)
    with pytest.raises(DecodeError, match="a decoder 16 outside of it"):
        infer(drawn(0, masks=20)[0], ProxySpex(), folds=2)
    whole = MaskDesign.complete(4)
    with pytest.raises(DecodeError, match="decode with 'exact'"):
        infer(Samples(whole.keep(), torch.randn(16, 1), whole), Greedy(), folds=2)
    with pytest.raises(DecodeError) as caught:
        confirm_sets(Samples(torch.ones(5, 3, dtype=torch.bool), torch.ones(5, 1)), Spectrum.from_terms(4, {(0,): 1.0}))
    assert all(text in str(caught.value) for text in ("keeps the same", "5 masks", "over 4 components"))
    shared = MaskDesign.bernoulli(6, 80).sharing([0, 1], 2)
    part = Samples(shared.keep(), torch.randn(80, 1), shared).take(torch.arange(60))
    with pytest.raises(DecodeError, match="some are missing"):
        infer(part, [(0,)])
    with pytest.raises(DecodeError, match="'masks' or 'outputs'"):
        stability(samples, Greedy(), resamples=3)
    with pytest.raises(DecodeError, match="no non-empty sets"):
        stability(samples, [()])
    with pytest.raises(DecodeError, match="cannot be halved"):
        stability(samples, Greedy(), over="outputs")
    with pytest.raises(DecodeError, match="pairs of halves"):
        check_certainty(None, 1, 3)
    found = infer(samples, [(0,)], folds=2)
    with pytest.raises(DecodeError, match="strictly between 0 and 1"):
        found.interval(1.0)
    with pytest.raises(DecodeError, match="masks, outputs, both"):
        found.interval(over="prompts")
    with pytest.raises(DecodeError, match=r"above 0\.5"):
        stability(samples, [(0,)], resamples=2).false_sets(0.5, 10)
    with pytest.raises(DecodeError, match="sums of others"):
        infer(
            Samples(*_two_point(40)), [(0,), (1,), (0, 1), (2,)], folds=2,
        )  # fmt: skip


def _two_point(masks):
    """Masks of two keep-probabilities so near 0 and 1 that all components agree: pairs say what single ones say."""
    design = MaskDesign.stratified(3, masks, (1e-13, 1 - 1e-13))
    return design.keep(), torch.randn(masks, 1), design


# Through the spine


@pytest.fixture(scope="module")
def subject():
    return planted.conjunction(
        ("a0.h1", "a1.h0", "m0.n1"), layout=planted.PlantedLayout(n_layers=2, n_heads=4, d_mlp=2)
    )


def run(subject, **options):
    task = planted.task(n_prompts=2, seed=0)
    return sm.discover(subject, task, "a*.h*, m*.n*", **{"budget": 300, "link": "identity", **options})


def test_discover_says_what_errors_and_q_rest_on(subject):
    found = run(subject)
    frame, sure = found.interactions(), found.record["certainty"]
    assert sure["inference"]["masks"] == len(found.responses)
    assert sure["stability"]["node_jaccard"] == 1.0
    assert found.circuit.evidence["certainty"]["inference"]["agree"] == 1.0
    assert (frame["q_value"] < 1e-6).all()
    assert (frame["stability"] == 1).all()
    assert set(found.record["seconds"]) == {"respond", "decode", "certainty"}


@pytest.mark.parametrize(("option", "value"), [("folds", 2), ("resamples", 2)])
def test_both_options_act(subject, option, value):
    found = run(subject, decoder="linear", **{option: value})
    section = found.record["certainty"]["inference" if option == "folds" else "stability"]
    assert section[option] == value
    assert "linear" in section["method"]


def test_what_cannot_be_had_is_refused_before_the_first_forward_pass(subject, monkeypatch):
    monkeypatch.setattr("spex_mech.measuring.spine.measure_in", lambda *_, **__: pytest.fail("masks were measured"))
    with pytest.raises(DecodeError, match="coded masks can neither"):
        run(subject, keep_prob="coded", budget=2000, folds=3)
    with pytest.raises(DecodeError, match="folds are 0"):
        run(subject, folds=1)


def test_all_masks_measured_leave_nothing_to_infer(subject):
    found = run(subject, budget=4096, folds=3)
    assert "every mask was measured" in found.record["certainty"]["inference"]["method"]
    assert found.interactions()["stability"].isna().all()


def test_unknown_errors_survive_the_run_folder(tmp_path):
    components = sm.ComponentSet.of(["a0.h0", "a0.h1"])
    errors = {(0,): 0.1, (0, 1): math.nan}
    save_spectrum(
        Spectrum.from_terms(2, dict.fromkeys(errors, 1.0), stderr=errors), components, "logit", tmp_path / "s"
    )
    assert load_spectrum(tmp_path / "s", components)[0].stderr.nan_to_num(-1).tolist() == [0.1, -1]
    save_spectrum(Spectrum.from_terms(2, dict.fromkeys(errors, 1.0)), components, "logit", tmp_path / "t")
    assert load_spectrum(tmp_path / "t", components)[0].stderr is None


def test_the_command_line_takes_both(subject, tmp_path):
    run(subject, out=tmp_path / "run", decoder="linear")
    again, out = CliRunner(), tmp_path / "again"
    arguments = ["decode", str(tmp_path / "run" / "responses.safetensors"), "--decoder", "linear", "--out", str(out)]
    result = again.invoke(app, [*arguments, "--folds", "2", "--resamples", "4"])
    assert result.exit_code == 0, result.output
    record = sm.load_run(out).record["certainty"]
    assert (record["inference"]["folds"], record["stability"]["resamples"]) == (2, 4)
    assert "cross-fitted over 2 folds" in " ".join(result.output.split())
    assert "(Jaccard)" in result.output
