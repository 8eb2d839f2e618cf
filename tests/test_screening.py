"""Screening by matrix products, against every set one by one."""

from itertools import combinations

import pytest
import torch

from spex_mech.bench.cases import planted_case
from spex_mech.bench.functions import support_f1
from spex_mech.walsh.decoders import screening
from spex_mech.walsh.decoders.pursuit import Pursuit
from spex_mech.walsh.decoders.refit import prune
from spex_mech.walsh.decoders.screening import SetSearch, strongest_components
from spex_mech.walsh.decoders.trees import Boosting
from spex_mech.walsh.decoding import r_squared
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.spectrum import Basis


@pytest.mark.parametrize("keep_prob", [0.5, 0.7])
@pytest.mark.parametrize("order", [3, 4])
def test_wide_gains_are_those_of_every_set(keep_prob, order, monkeypatch):
    monkeypatch.setattr("spex_mech.walsh.decoders.screening._BLOCK", 100)  # many blocks, the last one incomplete
    n, masks = 9, 300
    basis = Basis.orthonormal(keep_prob)
    keep = MaskDesign.bernoulli(n, masks, keep_prob, seed=1).keep()
    offset, slope = basis.affine
    z, left = offset + slope * keep.float(), torch.randn(masks, generator=torch.Generator().manual_seed(2))
    in_hand = [(0, 1, 2), (1, 2, 3, 4)]
    found = SetSearch(z, 6).wide_gains(left, in_hand, order, 10_000)
    truth = {}
    for members in combinations(range(n), order):
        column = z[:, members].prod(1)
        truth[members] = float((column @ left) ** 2 / (column @ column) / (left @ left))
    assert set(found) == set(truth) - set(in_hand)
    assert all(found[members] == pytest.approx(truth[members], rel=1e-3, abs=1e-7) for members in found)


def test_a_look_that_costs_too_much_sees_fewer_masks_or_none(monkeypatch):
    keep = MaskDesign.bernoulli(20, 1000, seed=1).keep()
    search, pairs = SetSearch(2.0 * keep.float() - 1, 6), 190
    assert search.seen(3) == search.seen(4) == 1000
    monkeypatch.setitem(screening._WIDE, "cpu", 600 * pairs * pairs)
    assert (search.seen(3), search.seen(4)) == (1000, 600)
    monkeypatch.setitem(screening._WIDE, "cpu", 400 * pairs * pairs)
    assert search.seen(4) == 0
    assert SetSearch(torch.ones(1000, 3), 6).seen(4) == 0


def test_sets_without_strong_subsets_are_found_from_independent_masks():
    """40 random sets of one to four of 64 components: a third of the masks that codes of three groups need."""
    case = planted_case(("random", 64, 40, 0.2), 576)
    found = _sets(Pursuit(), case)
    assert support_f1(case.planted.sets, found) > 0.95
    assert support_f1(case.planted.sets, _sets(Pursuit(wide=0), case)) < 0.7


def test_noise_alone_gives_next_to_no_wide_sets():
    found = 0
    for seed in range(10):
        keep = MaskDesign.bernoulli(24, 400, seed=seed).keep()
        noise = torch.randn(400, generator=torch.Generator().manual_seed(seed))
        members = Pursuit(degree=4).find(keep, noise, Basis())
        found += int(((members >= 0).sum(1) >= 3).sum())
    assert found <= 15  # half a set is allowed an order and function, beside the few that extend chance pairs


def _sets(pursuit, case):
    values, n = case.values[:, 0].double(), case.keep.shape[1]
    members = pursuit.find(case.keep, values, Basis())
    return set(prune(case.keep, values, members, Basis(), tested=n * (n + 1) // 2, ridge=1e-9).sets)


def test_the_strongest_components_are_those_of_main_effects_and_of_pairs():
    keep = MaskDesign.bernoulli(60, 800, 0.6, seed=1).keep()
    x = 2.0 * keep - 1.2
    values = x[:, 7] + x[:, 20] * x[:, 41] + 0.1 * torch.randn(800, generator=torch.Generator().manual_seed(0))
    assert set(strongest_components(keep, values, 3).tolist()) == {7, 20, 41}
    assert strongest_components(keep, values, 60).tolist() == list(range(60))


def test_trees_of_many_components_are_shown_the_strongest_and_read_out_exactly():
    case = planted_case(("hierarchical", 200, 4, 0.1), 600)
    few, values = Boosting(trees=40, most_components=30), case.values[:, 0].double()
    trees = few.train(case.keep, values, 0)
    assert len(trees.shown) == 30
    assert torch.allclose(trees.spectrum().evaluate(case.fresh), trees.predict(case.fresh), atol=1e-9)
    everything = Boosting(trees=40).train(case.keep, values, 0)
    assert (
        r_squared(case.truth, trees.predict(case.fresh)) > r_squared(case.truth, everything.predict(case.fresh)) - 0.02
    )
