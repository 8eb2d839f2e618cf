"""Selection: against all sets, by every method; gaps that hold; paths that grow; ties that do not depend on chance."""

import itertools
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spex_mech.circuit.select import choose, choose_path
from spex_mech.components import ComponentSet
from spex_mech.errors import ComponentError, DecodeError
from spex_mech.walsh.spectrum import Basis, Spectrum

AIMS = ["raise", "lower", "preserve"]
BASES = [Basis(), Basis("biased", 0.9), Basis("mobius"), Basis("knockout")]


def named(n):
    return ComponentSet.of([f"a0.h{i}" for i in range(n)])


@st.composite
def polynomials(draw, most=9):
    n = draw(st.integers(1, most))
    sets = draw(st.lists(st.frozensets(st.integers(0, n - 1), max_size=4), unique=True, max_size=12))
    weights = draw(st.lists(st.integers(-8, 8), min_size=len(sets), max_size=len(sets)))
    return Spectrum.from_terms(n, dict(zip(sets, map(float, weights), strict=True)), draw(st.sampled_from(BASES)))


def all_scores(spectrum, aim):
    """Number of kept components and score of every mask, straight from `evaluate`."""
    keep = torch.tensor(list(itertools.product([False, True], repeat=spectrum.n)))
    values = spectrum.evaluate(keep)
    intact = values[-1]
    scores = {"raise": values, "lower": -values, "preserve": -(values - intact).abs()}[aim]
    return keep.sum(1), scores


def score(spectrum, selection):
    keep = torch.tensor([[name in selection.names for name in named(spectrum.n).names]])
    value = float(spectrum.evaluate(keep)[0])
    assert selection.predicted == pytest.approx(value, abs=1e-8)
    return {"raise": value, "lower": -value, "preserve": -abs(value - selection.intact)}[selection.aim]


@settings(deadline=None, max_examples=100)
@given(polynomials(), st.sampled_from(AIMS), st.sampled_from(["enumeration", "milp", "greedy", "auto"]))
def test_against_all_sets(spectrum, aim, method):
    count, scores = all_scores(spectrum, aim)
    size = 1e-9 + float(spectrum.coefficients.abs().sum())
    path = choose_path(spectrum, named(spectrum.n), aim=aim, method=method)
    for selection in path:
        best = float(scores[count <= selection.size].max())
        found = score(spectrum, selection)
        assert len(selection.names) <= selection.size
        assert found <= best + 1e-7 * size
        if method != "greedy":
            assert found == pytest.approx(best, abs=1e-5 * size)
            assert selection.gap == pytest.approx(0, abs=1e-5 * size)
        if selection.gap is not None:
            assert best <= found + selection.gap + 1e-5 * size
    found = [score(spectrum, selection) for selection in path]
    assert all(b >= a - 1e-7 * size for a, b in itertools.pairwise(found))


@settings(deadline=None, max_examples=60)
@given(polynomials(), st.sampled_from(AIMS))
def test_nested_paths_are_nested_and_their_gaps_exact(spectrum, aim):
    count, scores = all_scores(spectrum, aim)
    path = choose_path(spectrum, named(spectrum.n), aim=aim, nested=True)
    size = 1e-9 + float(spectrum.coefficients.abs().sum())
    for before, after in itertools.pairwise(path):
        assert set(before.names) <= set(after.names)
        assert score(spectrum, after) >= score(spectrum, before) - 1e-8 * size
    for selection in path:
        best = float(scores[count <= selection.size].max())
        assert selection.gap == pytest.approx(best - score(spectrum, selection), abs=1e-7 * size)


def test_jointly_needed_parts_are_kept_together():
    """From below no single part of an AND helps; the search from above finds it."""
    spectrum = Spectrum.from_terms(60, {(3, 17, 29, 41): 2.0, (5,): 0.1}, Basis("mobius"))
    for method in ("greedy", "milp"):
        found = choose(spectrum, named(60), 4, aim="raise", method=method)
        assert found.names == ("a0.h3", "a0.h17", "a0.h29", "a0.h41")
        assert found.predicted == pytest.approx(2.0)
        assert choose(spectrum, named(60), 3, aim="raise", method=method).names == ("a0.h5",)


def test_signed_aims_differ_on_harmful_parts():
    """What raises the metric leaves the harmful part out; what preserves it keeps it."""
    spectrum = Spectrum.from_terms(3, {(0,): 2.0, (1,): -1.0, (2,): 0.25}, Basis("mobius"))
    assert choose(spectrum, named(3), 3, aim="raise").names == ("a0.h0", "a0.h2")
    assert choose(spectrum, named(3), 3, aim="lower").names == ("a0.h1",)
    assert choose(spectrum, named(3), 2, aim="preserve").names == ("a0.h0", "a0.h1")
    assert choose(spectrum, named(3), 3, aim="preserve").distance == pytest.approx(0)


@pytest.mark.parametrize("method", ["enumeration", "milp", "greedy"])
def test_ties_go_to_fewer_then_to_earlier_components(method):
    spectrum = Spectrum.from_terms(12, {(): 1.0, (4, 7, 9): -1.0}, Basis("knockout"))  # any one of three is enough
    for size in (1, 2, 12):
        assert choose(spectrum, named(12), size, aim="raise", method=method).names == ("a0.h4",)
    assert choose(spectrum, named(12), 0, aim="raise", method=method).names == ()


def dense(n, seed, sets):
    generator = torch.Generator().manual_seed(seed)
    terms = {}
    while len(terms) < sets:
        order = int(torch.randint(1, 4, (1,), generator=generator))
        terms[tuple(sorted(torch.randperm(n, generator=generator)[:order].tolist()))] = float(
            torch.randn(1, generator=generator)
        )
    return Spectrum.from_terms(n, terms)


def test_auto_uses_the_programme_where_sets_are_too_many_and_proves_its_answer():
    spectrum = dense(40, 0, 45)
    exact = choose(spectrum, named(40), 12, aim="raise", seconds=30)
    greedy = choose(spectrum, named(40), 12, aim="raise", method="greedy")
    assert exact.method == "milp"
    assert exact.gap == 0
    assert greedy.gap is None
    assert greedy.predicted <= exact.predicted + 1e-9
    assert greedy.predicted >= exact.predicted - 0.1 * abs(exact.predicted)
    assert exact == choose(spectrum, named(40), 12, aim="raise", seconds=30)


def test_a_time_limit_is_honoured_and_leaves_an_honest_gap():
    spectrum = dense(120, 1, 900)
    started = time.perf_counter()
    found = choose(spectrum, named(120), 40, aim="raise", method="milp", seconds=1)
    assert time.perf_counter() - started < 20
    greedy = choose(spectrum, named(120), 40, aim="raise", method="greedy")
    assert found.predicted >= greedy.predicted - 1e-9
    assert found.gap is None or found.gap > 0


def test_large_polynomials_are_searched_greedily():
    spectrum = dense(600, 2, 4000)
    started = time.perf_counter()
    path = choose_path(spectrum, named(600), [10, 60, 300])
    assert time.perf_counter() - started < 60
    assert {s.method for s in path} == {"greedy"}
    assert [s.distance for s in path] == sorted((s.distance for s in path), reverse=True)
    assert path[-1].distance < 0.05 * abs(path[-1].intact - path[-1].empty)


def test_a_wide_and_of_many_parts_needs_no_expansion():
    """Order 40 cannot be written out as products (2^40 terms); the greedy search needs none."""
    spectrum = Spectrum.from_terms(50, {tuple(range(40)): 1.0, (45,): 0.25})
    found = choose(spectrum, named(50), 50, aim="raise")
    assert found.method == "greedy"
    assert found.predicted == pytest.approx(1.25)
    with pytest.raises(DecodeError, match="up to order 40"):
        choose(spectrum, named(50), 50, method="milp")


def test_constant_polynomials_keep_nothing():
    for method in ("auto", "milp", "greedy"):
        found = choose(Spectrum.from_terms(4, {(): 3.0}), named(4), 2, method=method)
        assert (found.names, found.predicted, found.gap in (0, None)) == ((), 3.0, True)


def test_outputs_are_averaged():
    members, values = torch.tensor([[0], [1]]), torch.tensor([[1.0, 3.0], [2.0, -8.0]])
    found = choose(Spectrum(2, members, values), named(2), 2, aim="raise")
    assert found.names == ("a0.h0",)


def test_mistakes_are_told_all_at_once():
    spectrum = Spectrum.from_terms(3, {(0,): 1.0})
    with pytest.raises(DecodeError, match=r"no aim 'best'.*no method 'magic'.*0 seconds"):
        choose(spectrum, named(3), 1, aim="best", method="magic", seconds=0)
    with pytest.raises(DecodeError, match="sizes"):
        choose(spectrum, named(3), -1)
    with pytest.raises(ComponentError, match="3 bits was given with 4 components"):
        choose(spectrum, named(4), 1)
    with pytest.raises(DecodeError, match="enumerated up to 20"):
        choose(
            Spectrum.from_terms(30, {tuple(range(i, i + 2)): 1.0 for i in range(29)}),
            named(30),
            3,
            method="enumeration",
        )
