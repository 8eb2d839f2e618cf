"""The surface a search follows: every move priced as if it were predicted anew, climbs inside their bounds."""

import pytest
import torch

from spex_mech.auditing.search_landscape import Landscape, climb, score
from spex_mech.walsh.joint.gaussian import GaussianProcess

N = 12


def drawn(masks, seed, keep_prob=0.6):
    return torch.rand(masks, N, generator=torch.Generator().manual_seed(seed)) < keep_prob


def truth(keep):
    x = keep.double()
    return x[:, 0] * x[:, 1] + 0.5 * x[:, 2] - 0.4 * x[:, 3] * x[:, 4] + 0.3 * x[:, 5]


@pytest.fixture(scope="module", params=[(1.0,), (1.0, 0.3)])
def surface(request):
    keep = drawn(150, 0)
    halves = torch.arange(150) % 2
    process = GaussianProcess(scales=request.param, steps=30)
    trained = process.train(keep, truth(keep)[:, None], halves, _walsh(), 0)
    return Landscape(process, {k: w.mean(0) for k, w in trained.weights.items()}).surface(keep, truth(keep))


def _walsh():
    from spex_mech.walsh.spectrum import Basis

    return Basis()


@pytest.mark.parametrize("row", range(4))
def test_every_flip_and_swap_is_priced_as_if_it_were_predicted(surface, row):
    keep = drawn(4, 1)[row]
    moved = keep ^ torch.eye(N, dtype=torch.bool)
    torch.testing.assert_close(surface.flips(keep), surface.predict(moved), rtol=0, atol=1e-10)
    inside, outside = keep.nonzero()[:, 0], (~keep).nonzero()[:, 0]
    swaps = surface.swaps(keep, inside, outside)
    for a, i in enumerate(inside.tolist()):
        for b, j in enumerate(outside.tolist()):
            other = keep.clone()
            other[[i, j]] = ~other[[i, j]]
            assert float(swaps[a, b]) == pytest.approx(float(surface.predict(other[None])[0]), abs=1e-10)


@pytest.mark.parametrize("sign", [1, -1, 0])
@pytest.mark.parametrize(("size", "radius"), [(3, 2), (5, 4), (12, 12)])
def test_a_climb_stays_inside_its_bounds_and_ends_where_no_move_helps(surface, sign, size, radius):
    start = drawn(6, 2, 0.2)
    for row in start[start.sum(1) <= size]:
        best = climb(surface, row, size, radius, 0.8, sign)
        flips, value = (best != row).sum(), score(surface.predict(best[None]), 0.8, sign)
        assert best.sum() <= size
        assert flips <= radius
        assert value >= score(surface.predict(row[None]), 0.8, sign) - 1e-9
        singles = best ^ torch.eye(N, dtype=torch.bool)
        allowed = (singles.sum(1) <= size) & ((singles != row).sum(1) <= radius)
        others = score(surface.predict(singles[allowed]), 0.8, sign)
        assert (others <= value + 1e-6).all()


def test_too_large_a_start_lets_go_what_is_missed_least(surface):
    best = climb(surface, torch.ones(N, dtype=torch.bool), 3, 0, 0.0, 1)
    assert best.nonzero()[:, 0].tolist() == [0, 1, 2]


def test_what_was_measured_near_counts_more_than_a_line_from_afar():
    """The same landscape, with and without masks near the one in question."""
    far, near = drawn(150, 0, 0.9), drawn(60, 3, 0.25)
    landscape = Landscape.learn(far, truth(far), 0)
    asked = drawn(40, 4, 0.25)
    without = landscape.surface(far, truth(far)).predict(asked)
    with_near = landscape.surface(torch.cat([far, near]), truth(torch.cat([far, near]))).predict(asked)
    error = [float((guess - truth(asked)).square().mean()) for guess in (without, with_near)]
    assert error[1] < 0.5 * error[0]


def test_same_seed_same_bits():
    keep = drawn(100, 5)
    one, two = (Landscape.learn(keep, truth(keep), 7).surface(keep, truth(keep)).predict(keep) for _ in range(2))
    assert torch.equal(one, two)
