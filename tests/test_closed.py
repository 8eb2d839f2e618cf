"""The closed form of a stack's spectrum: against every mask there is."""

import pytest
import torch

from spex_mech.walsh.joint.closed_form import ClosedForm, ProcessSpectrum
from spex_mech.walsh.joint.gaussian import GaussianProcess
from spex_mech.walsh.set_rows import pad_sets, subset_bits
from spex_mech.walsh.spectrum import Basis, Spectrum, monomials

PROCESS = GaussianProcess(scales=(1.0, 0.3, 3.0))


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def posterior(n, *, seed=0, masks=40, relevant=None):
    """A process with weights drawn at random; only the first few components matter where it says so."""
    sizes = {"relevance": n, "line": n, "weight": 3, "noise": 1}
    weights = {name: normal(size, seed=seed + i) - 1 for i, (name, size) in enumerate(sizes.items())}
    if relevant is not None:
        weights["relevance"][relevant:] = weights["line"][relevant:] = -12.0
    keep = torch.rand(masks, n, generator=torch.Generator().manual_seed(seed)) < 0.5
    return PROCESS.posterior(weights, keep, normal(masks, seed=seed + 9), Basis())


def everything(n):
    """All masks, all sets."""
    keep = subset_bits(n)
    sets = sorted((tuple(row.nonzero()[:, 0].tolist()) for row in keep), key=lambda s: (len(s), s))
    return keep, pad_sets(sets)


@pytest.mark.parametrize("seed", range(3))
def test_the_coefficients_of_a_process_are_those_of_all_masks(seed):
    found, (keep, members) = posterior(6, seed=seed), everything(6)
    exact = monomials(keep, members).T @ found.predict(keep) / len(keep)
    assert torch.allclose(ProcessSpectrum(found).coefficients(members), exact)


@pytest.mark.parametrize("order", range(4))
def test_extensions_are_the_coefficients_of_the_larger_sets(order):
    process_spectrum = ProcessSpectrum(posterior(7))
    parents = torch.combinations(torch.arange(7), order) if order else torch.zeros(1, 0, dtype=torch.long)
    found = process_spectrum.extended(parents)
    for parent, row in zip(parents.tolist(), found, strict=True):
        for i, value in enumerate(row):
            larger = pad_sets([(*parent, i)])
            expected = 0.0 if i in parent else process_spectrum.coefficients(larger)[0]
            assert torch.allclose(value, torch.as_tensor(expected, dtype=value.dtype))


def mixed(n, seed=0, relevant=None):
    one = Spectrum.from_terms(n, {(): 0.3, (0,): 0.5, (1, 2, 3): -0.7})
    other = Spectrum.from_terms(n, {(1, 2, 3): 0.2, (0, n - 1): 0.4})
    processes = [(0.5, posterior(n, seed=seed, relevant=relevant)), (0.3, posterior(n, seed=seed + 50, masks=30))]
    return ClosedForm(n, [(0.6, one), (0.4, other)], processes, 0.1)


def predicted(form, keep):
    parts = [(w, s.evaluate) for w, s in form.polynomials] + [(w, p.predict) for w, p in form.processes]
    return form.offset + sum(weight * predict(keep) for weight, predict in parts)


def test_a_stack_of_polynomials_and_processes():
    form, (keep, members) = mixed(8), everything(8)
    exact = monomials(keep, members).T @ predicted(form, keep) / len(keep)
    assert torch.allclose(form.coefficients(members), exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("most", [5, 20, 60])
def test_the_strongest_sets_are_found(most):
    """Of 219 sets of order one to six: all of those that matter most, in order, the empty one before them."""
    form, (_, members) = mixed(8), everything(8)
    exact = form.coefficients(members)[1:]
    found = form.strongest(most)
    assert found.sets[0] == ()
    best = exact.abs().sort(descending=True).values[:most]
    strength = found.coefficients[1:].abs()
    assert torch.allclose(strength[: most // 2], best[: most // 2])
    assert float(strength.square().sum()) > 0.98 * float(best.square().sum())
    assert torch.allclose(found.coefficients, form.coefficients(found.members))


def test_what_is_left_out_is_what_the_reading_loses():
    """Parseval: the loss on all masks is the energy of the sets that are not there."""
    form, (keep, members) = mixed(8), everything(8)
    found = form.strongest(30)
    lost = (predicted(form, keep) - found.evaluate(keep)).square().mean()
    assert torch.allclose(lost, form.coefficients(members).square().sum() - found.coefficients.square().sum())


def test_of_too_many_components_the_pairs_of_those_that_matter_are_looked_at(monkeypatch):
    form = ClosedForm(40, [], [(1.0, posterior(40, relevant=5))], 0.0)
    whole = form.strongest(25)
    monkeypatch.setattr("spex_mech.walsh.joint.closed_form._PAIRS", 40 * 8)
    some = ClosedForm(40, [], form.processes, 0.0).strongest(25)
    assert some.sets == whole.sets
    assert set().union(*whole.sets) <= set(range(5))


def test_without_processes_it_is_the_sum_of_the_polynomials():
    form = ClosedForm(
        5, [(2.0, Spectrum.from_terms(5, {(0, 4): 1.0, (3,): 0.1})), (1.0, Spectrum.from_terms(5, {(): 1.0}))], [], 0.5
    )
    assert dict(form.strongest(9).terms()) == pytest.approx({(): 1.5, (0, 4): 2.0, (3,): 0.2})
    assert form.strongest(1).sets == ((), (0, 4))


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_of_few_components_every_set_is_found(n):
    form, (keep, members) = ClosedForm(n, [], [(1.0, posterior(n))], 0.2), everything(n)
    found = form.strongest(2**n)
    inside = [s for s in everything(n)[1].tolist() if sum(i >= 0 for i in s) <= 6]
    assert len(found) == len(inside)
    assert found.coefficients[0] == form.coefficients(members)[0]
    lost = (predicted(form, keep) - found.evaluate(keep)).abs().max()
    assert float(lost) < (1e-12 if n < 7 else 0.1)
