"""Factorials: unbiased for the coefficient whatever the polynomial believed, honest errors, honest rates."""

import numpy as np
import pytest
import torch
from scipy.stats import binom

from spex_mech.auditing.factorials import (
    Table,
    adjust,
    check_backup,
    confirm_table,
    contexts_for,
    expected_values,
    factorial_masks,
)
from spex_mech.circuit.backups import find_backups
from spex_mech.components import ComponentSet
from spex_mech.walsh.spectrum import Basis, Spectrum

N = 8
NAMES = ComponentSet.of([f"a0.h{i}" for i in range(N)])


def random_spectrum(seed, keep=0.5, sets=25, order=5):
    generator = torch.Generator().manual_seed(seed)
    orders = torch.randint(0, order, (sets,), generator=generator).tolist()
    chosen = {tuple(sorted(torch.randperm(N, generator=generator)[:k].tolist())) for k in orders}
    terms = {s: float(torch.randn(1, generator=generator)) for s in sorted(chosen)}
    return Spectrum.from_terms(N, terms, Basis.orthonormal(keep))


def run(truth, belief, group, contexts, seed, control=True, noise=0.0):
    """The factorial of a group on a known function, with the polynomial's belief."""
    q = 0.5 if truth.basis.keep_prob is None else truth.basis.keep_prob
    keep = factorial_masks(group, N, q, contexts, seed)
    values = truth.evaluate(keep)[:, None]
    if noise:
        values = values + noise * torch.randn(values.shape, generator=torch.Generator().manual_seed(seed)).double()
    expected = expected_values(belief, group) if control else None
    return Table.of(values, belief.evaluate(keep), len(group), expected)


@pytest.mark.parametrize("keep", [0.5, 0.85])
@pytest.mark.parametrize("control", [True, False])
def test_unbiased_for_the_true_coefficient_and_the_error_is_what_it_says(keep, control):
    truth, belief = random_spectrum(0, keep), random_spectrum(1, keep)  # the belief is wrong
    group = next(s for s, _ in truth.terms() if len(s) == 3)
    checks = [
        confirm_table(run(truth, belief, group, 30, seed, control), ("x",) * 3, 1.0, truth.basis, 0.0)
        for seed in range(300)
    ]
    estimates, errors = np.array([c.estimate for c in checks]), np.array([c.stderr for c in checks])
    spread = estimates.std()
    assert abs(estimates.mean() - truth[group]) < 4 * spread / 300**0.5
    assert np.sqrt((errors**2).mean()) == pytest.approx(spread, rel=0.15)


def test_a_good_polynomial_makes_the_error_small():
    truth = random_spectrum(0)
    group = next(s for s, _ in truth.terms() if len(s) == 2)
    blind = confirm_table(run(truth, truth, group, 12, 0, control=False), ("x",) * 2, 1.0, truth.basis, 0.0)
    seeing = confirm_table(run(truth, truth, group, 12, 0), ("x",) * 2, 1.0, truth.basis, 1e-9)
    assert seeing.stderr < 1e-9 < 1e-2 < blind.stderr
    assert seeing.estimate == pytest.approx(truth[group])
    assert seeing.predicted == pytest.approx(blind.estimate)  # the same contexts, the same function


def test_the_knockout_is_that_of_the_intact_model():
    truth = random_spectrum(2)
    mobius = truth.rewrite(Basis("knockout"))
    for group in [(0,), (1, 4), (0, 2, 5)]:
        check = confirm_table(run(truth, truth, group, 12, 0), ("x",) * len(group), 1.0, truth.basis, 0.0)
        assert check.knockout == pytest.approx(mobius.get(group) or 0.0, abs=1e-9)
        assert check.knockout_stderr is None  # one prompt


def test_without_an_interaction_the_rate_is_kept():
    """Additive truth, noisy measurements, and a belief that claims a pair: 5 % of tests reject, no more."""
    truth = Spectrum.from_terms(N, {(i,): 1.0 for i in range(N)})
    belief = Spectrum.from_terms(N, {(0, 1): 0.5, (2,): 1.0})
    checks = [
        confirm_table(run(truth, belief, (0, 1), 16, seed, noise=0.5), ("x", "y"), 0.5, truth.basis, 0.0)
        for seed in range(400)
    ]
    rejected = sum(c.p_value < 0.05 for c in checks)
    assert binom.sf(rejected - 1, 400, 0.05) > 1e-3
    assert binom.cdf(rejected, 400, 0.05) > 1e-3
    assert not any(c.confirmed() for c in adjust(checks[:100]))


def test_an_exactly_additive_function_confirms_no_pair():
    truth = Spectrum.from_terms(N, {(i,): 1.0 for i in range(N)})
    check = confirm_table(run(truth, truth, (0, 1), 12, 0), ("x", "y"), 0.1, truth.basis, 1e-6)
    assert (check.p_value, check.confirmed()) == (1.0, False)


def test_claims_of_the_wrong_sign_are_not_confirmed():
    truth = Spectrum.from_terms(N, {(0, 1): 1.0})
    check = confirm_table(run(truth, truth, (0, 1), 12, 0), ("x", "y"), -1.0, truth.basis, 1e-6)
    assert check.q_value < 0.05
    assert not check.confirmed()


@pytest.mark.parametrize("keep", [0.5, 0.85])
def test_a_group_is_checked_by_the_same_inequalities_as_it_was_found_by(keep):
    truth = Spectrum.from_terms(N, {(): 1.0, (1, 3, 6): -1.0, (0, 2): 0.4}, Basis("knockout"))
    truth = truth.rewrite(Basis.orthonormal(keep))
    found = {b.components: b for b in find_backups(truth, NAMES)}
    for group in [(1, 3, 6)]:
        check = check_backup(run(truth, truth, group, 12, 0), tuple(NAMES.names[i] for i in group), 1e-6)
        assert check.excess == pytest.approx(found[check.components].excess)
        assert check.joint == pytest.approx(found[check.components].joint)
        assert (check.intact_joint, check.intact_excess) == pytest.approx((1.0, 1.0))
        assert check.confirmed()
    idle = check_backup(run(truth, truth, (1, 3, 7), 12, 0), ("x",) * 3, 1e-6)
    assert not idle.confirmed()


def test_no_group_beyond_the_rate_in_noise():
    flat = Spectrum.from_terms(N, {(): 1.0})
    checks = [check_backup(run(flat, flat, (0, 1), 12, seed, noise=1.0), ("x", "y"), 0.0) for seed in range(300)]
    assert sum(c.p_value < 0.05 for c in checks) <= binom.ppf(0.999, 300, 0.05)


def test_masks_are_all_patterns_in_every_context_and_depend_on_the_seed_alone():
    keep = factorial_masks((1, 4), N, 0.5, 5, seed=3)
    assert keep.shape == (24, N)
    for context in keep.reshape(6, 4, N):
        assert sorted(context[:, [1, 4]].tolist()) == sorted([[a, b] for a in (True, False) for b in (True, False)])
        others = [i for i in range(N) if i not in (1, 4)]
        assert (context[:, others] == context[:1, others]).all()
    assert keep[-4:, [0, 2, 3, 5, 6, 7]].all()
    assert torch.equal(keep, factorial_masks((1, 4), N, 0.5, 5, seed=3))
    assert not torch.equal(keep, factorial_masks((1, 4), N, 0.5, 5, seed=4))
    assert not torch.equal(keep[::4, [0, 2]], factorial_masks((1, 5), N, 0.5, 5, seed=3)[::4, [0, 2]])


@pytest.mark.parametrize("allowance", [0, 40, 52, 500, 10_000])
def test_contexts_fit_the_allowance(allowance):
    orders = [2, 3, 2, 4]
    number, contexts = contexts_for(orders, allowance)
    assert sum((1 << order) * (contexts + 1) for order in orders[:number]) <= allowance
    assert (number == 0) == (allowance < 52)
    assert contexts_for([], 100) == (0, 0)
