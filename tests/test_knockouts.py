"""Completeness and minimality, against all subsets."""

import itertools

import pytest
import torch

from spex_mech.auditing.knockouts import best_minimality, kept, relevant, worst_completeness
from spex_mech.walsh.spectrum import Basis, Spectrum


def value(spectrum, members):
    return float(spectrum.evaluate(kept(spectrum.n, [members]))[0])


def random_spectrum(n, seed):
    generator = torch.Generator().manual_seed(seed)
    terms = {}
    for _ in range(20):
        order = int(torch.randint(1, 4, (1,), generator=generator))
        terms[tuple(sorted(torch.randperm(n, generator=generator)[:order].tolist()))] = float(
            torch.randn(1, generator=generator)
        )
    return Spectrum.from_terms(n, terms)


@pytest.mark.parametrize("seed", range(5))
def test_small_circuits_are_looked_at_in_full(seed):
    spectrum, circuit = random_spectrum(9, seed), (0, 2, 3, 7)
    sets = relevant(circuit, [], 9, spectrum.evaluate)
    assert len(sets) == 16
    truth = {}
    for size in range(5):
        for k in itertools.combinations(circuit, size):
            inside, whole = set(circuit) - set(k), set(range(9)) - set(k)
            truth[k] = abs(value(spectrum, inside) - value(spectrum, whole))
    worst = worst_completeness(circuit, sets, 9, spectrum.evaluate, 5)
    assert [score for _, score in worst] == pytest.approx(sorted(truth.values(), reverse=True)[:5])
    assert all(score == pytest.approx(truth[k]) for k, score in worst)


@pytest.mark.parametrize("seed", range(5))
def test_minimality_takes_the_best_knockout_for_every_component(seed):
    spectrum, circuit = random_spectrum(9, seed), (0, 2, 3, 7)
    sets = relevant(circuit, [], 9, spectrum.evaluate)
    for v, k, score in best_minimality(circuit, sets, 9, spectrum.evaluate):
        others = [i for i in circuit if i != v]
        best = max(
            abs(value(spectrum, set(circuit) - {*c, v}) - value(spectrum, set(circuit) - set(c)))
            for size in range(4)
            for c in itertools.combinations(others, size)
        )
        assert score == pytest.approx(best)
        assert v not in k


def test_a_backup_is_minimal_only_under_the_others_knockout():
    """In an OR no member matters alone; each does once the others are gone."""
    spectrum = Spectrum.from_terms(6, {(): 1.0, (0, 1, 2): -1.0}, Basis("knockout"))
    found = best_minimality((0, 1, 2), relevant((0, 1, 2), [], 6, spectrum.evaluate), 6, spectrum.evaluate)
    assert {v: set(k) for v, k, _ in found} == {0: {1, 2}, 1: {0, 2}, 2: {0, 1}}
    assert [score for *_, score in found] == pytest.approx([1.0] * 3)


def test_large_circuits_find_the_worst_joint_knockout_greedily():
    """The circuit of 15 leaves out a backup of 5 of its parts: only their joint loss tells."""
    n, hidden = 20, (1, 4, 6, 8, 11)
    terms = {(i,): 1.0 for i in range(15)} | {(i, 17): -0.2 for i in hidden} | {(17,): 0.8}
    spectrum = Spectrum.from_terms(n, terms, Basis("mobius"))
    circuit = tuple(range(15))
    sets = relevant(circuit, spectrum.sets, n, spectrum.evaluate)
    assert len(sets) <= 512
    assert all(set(k) <= set(circuit) for k in sets)
    (worst,) = worst_completeness(circuit, sets, n, spectrum.evaluate, 1)
    assert set(hidden) <= set(worst[0])
    assert worst[1] == pytest.approx(0.8)
