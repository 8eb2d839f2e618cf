"""Indices from the sparse polynomial, against enumeration by another library, and against their axioms."""

from itertools import chain, combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spex_mech.errors import DecodeError
from spex_mech.walsh.indices import (
    INDICES,
    banzhaf_interactions,
    banzhaf_values,
    faithful_banzhaf,
    faithful_shapley,
    shapley_interactions,
    shapley_taylor,
    shapley_values,
)
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.spectrum import Basis, Spectrum

fast = settings(max_examples=30, deadline=None)
BASES = [Basis(), Basis("biased", 0.8), Basis("mobius"), Basis("knockout")]


def subsets(n, highest):
    return list(chain.from_iterable(combinations(range(n), size) for size in range(highest + 1)))


def random_game(n, seed, basis=Basis(), terms=None):
    generator = torch.Generator().manual_seed(seed)
    sets = subsets(n, n)
    chosen = torch.randperm(len(sets), generator=generator)[: terms or len(sets)].tolist()
    return Spectrum.from_terms(n, {sets[i]: float(torch.randn((), generator=generator)) for i in chosen}, basis)


@st.composite
def games(draw, highest=6):
    n = draw(st.integers(1, highest))
    return random_game(n, draw(st.integers(0, 2**31)), draw(st.sampled_from(BASES)), draw(st.integers(1, 2**n)))


def value(game, kept):
    keep = torch.zeros(1, game.n, dtype=torch.bool)
    keep[0, list(kept)] = True
    return float(game.evaluate(keep)[0])


def gain(game):
    return value(game, range(game.n)) - value(game, ())


@pytest.mark.parametrize("index", ["SV", "BV", *(name.upper() for name in INDICES)])
@pytest.mark.parametrize(("n", "basis"), list(zip((3, 5, 8, 8), BASES, strict=True)))
def test_agrees_with_enumeration_by_shapiq(index, n, basis):
    exact = pytest.importorskip("shapiq.game_theory.exact").ExactComputer
    game = random_game(n, n, basis)
    computer = exact(lambda kept: game.evaluate(torch.from_numpy(np.asarray(kept, dtype=bool))).numpy(), n_players=n)
    order = 1 if index in ("SV", "BV") else 3
    ours = {"SV": shapley_values, "BV": banzhaf_values}[index](game) if order == 1 else INDICES[index.lower()](game, 3)
    theirs = computer(index, order=order).dict_values
    # shapiq solves a weighted least-squares problem for the two faithful ones
    tolerance = 1e-4 if index.startswith("F") else 1e-9
    for members in subsets(n, order)[1:]:
        assert ours[members] == pytest.approx(theirs[members], abs=tolerance), members


@fast
@given(games())
def test_efficiency(game):
    assert sum(shapley_values(game).values()) == pytest.approx(gain(game), abs=1e-9)
    for index in (shapley_taylor, faithful_shapley):
        for order in (1, 2, 3):
            assert sum(index(game, order).values()) == pytest.approx(value(game, range(game.n)), abs=1e-9)


@fast
@given(games(), st.integers(1, 3), st.sampled_from(sorted(INDICES)))
def test_dummy(game, order, index):
    kept_apart = Spectrum(game.n + 1, game.members, game.coefficients, game.basis)
    with_dummy = INDICES[index](kept_apart, order)
    assert not any(game.n in members for members in with_dummy)
    alone = Spectrum.from_terms(game.n + 1, {(game.n,): 2.0}, Basis("mobius"))
    summed = add(kept_apart.rewrite(Basis("mobius")), alone)
    found = INDICES[index](summed, order)
    assert found[(game.n,)] == pytest.approx(2.0)
    assert not any(game.n in members and len(members) > 1 for members in found)


def add(first, second, a=1.0, b=1.0):
    total = {s: a * c for s, c in first.terms()}
    for s, c in second.terms():
        total[s] = total.get(s, 0.0) + b * c
    return Spectrum.from_terms(first.n, total, first.basis)


@fast
@given(st.integers(1, 6), st.integers(0, 2**31), st.integers(1, 3), st.sampled_from(sorted(INDICES)), st.floats(-3, 3))
def test_linearity(n, seed, order, index, weight):
    first, second = random_game(n, seed), random_game(n, seed + 1)
    one, two = INDICES[index](first, order), INDICES[index](second, order)
    both = INDICES[index](add(first, second, 1.0, weight), order)
    assert all(both[s] == pytest.approx(one[s] + weight * two[s], abs=1e-9) for s in both)


@fast
@given(games(), st.integers(1, 3), st.sampled_from(sorted(INDICES)), st.randoms(use_true_random=False))
def test_symmetry_under_renaming(game, order, index, random):
    names = list(range(game.n))
    random.shuffle(names)
    renamed = Spectrum.from_terms(game.n, {tuple(names[i] for i in s): c for s, c in game.terms()}, game.basis)
    before, after = INDICES[index](game, order), INDICES[index](renamed, order)
    assert {tuple(sorted(names[i] for i in s)): pytest.approx(v, abs=1e-9) for s, v in before.items()} == after


@fast
@given(games(), st.integers(1, 3))
def test_banzhaf_is_walsh(game, order):
    walsh = game.rewrite(Basis())
    found = banzhaf_interactions(game, order)
    assert found == {s: pytest.approx(2 ** len(s) * (walsh.get(s) or 0.0), abs=1e-9) for s in found}
    assert all(banzhaf_values(game)[s] == pytest.approx(2 * walsh[s], abs=1e-9) for s in walsh.sets if len(s) == 1)


@fast
@given(games(), st.integers(1, 3))
def test_faithful_banzhaf_is_the_nearest_polynomial(game, order):
    keep = MaskDesign.complete(game.n).keep()
    fit = Spectrum.from_terms(game.n, faithful_banzhaf(game, order), Basis("mobius"))
    walsh = game.rewrite(Basis())
    cut = walsh.select(walsh.orders <= order)
    torch.testing.assert_close(fit.evaluate(keep), cut.evaluate(keep), rtol=1e-9, atol=1e-9)


@fast
@given(games())
def test_the_whole_order_gives_the_mobius_transform(game):
    mobius = dict(game.rewrite(Basis("mobius")).terms())
    for index in (shapley_taylor, faithful_banzhaf, faithful_shapley):
        assert index(game, game.n) == pytest.approx(mobius, abs=1e-9)


def test_values_by_hand():
    both_needed = Spectrum.from_terms(3, {(0, 1): 1.0}, Basis("mobius"))
    either = Spectrum.from_terms(3, {(): 1.0, (0, 1): -1.0}, Basis("knockout"))
    for game, sign in ((both_needed, 1.0), (either, -1.0)):
        assert shapley_values(game) == {(0,): 0.5, (1,): 0.5}
        assert banzhaf_values(game) == {(0,): 0.5, (1,): 0.5}
        assert shapley_interactions(game, 2)[0, 1] == sign
        assert banzhaf_interactions(game, 2)[0, 1] == sign


def test_outputs_are_averaged():
    members = torch.tensor([[0, 1]])
    game = Spectrum(2, members, torch.tensor([[1.0, 3.0]]), Basis("mobius"))
    assert shapley_values(game) == {(0,): 1.0, (1,): 1.0}


def test_a_large_sparse_game_is_no_enumeration():
    game = Spectrum.from_terms(10_000, {tuple(range(i, i + 4)): 1.0 for i in range(0, 10_000, 4)})
    values = shapley_values(game)
    assert len(values) == 10_000
    assert sum(values.values()) == pytest.approx(gain(game), abs=1e-8)


@pytest.mark.parametrize("index", sorted(INDICES))
def test_orders_below_one_are_refused(index):
    with pytest.raises(DecodeError, match="at least one component"):
        INDICES[index](Spectrum.from_terms(2, {(0,): 1.0}), 0)
