"""Groups and random blocks as players of a code: what the masks look like, and what SPEX says of them."""

import json
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spex_mech.bench.functions import planted_function
from spex_mech.bench.players import random_blocks
from spex_mech.errors import DesignError
from spex_mech.walsh.decoding import Outcome, Samples
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.spectrum import Basis, Spectrum
from spex_mech.walsh.spex.spex import Spex


def of_blocks(spectrum: Spectrum, blocks: Sequence[Sequence[int]]) -> Spectrum:
    """What a polynomial over components is over blocks of them, all other components being kept; exact.

    ``F(𝓑) = Σ_T F(T)`` over the sets T with an odd number of components in the blocks of 𝓑 and an even number in every
    other block: what a code over these blocks estimates. Rewritten in the Walsh basis, in the unit of `spectrum`.
    """
    owner = {i: number for number, block in enumerate(blocks) for i in block}
    summed: dict[tuple[int, ...], float] = {}
    for members, coefficient in spectrum.rewrite(Basis()).terms():
        odd: set[int] = set()
        for i in members:
            odd ^= {owner[i]} if i in owner else set()
        key = tuple(sorted(odd))
        summed[key] = summed.get(key, 0.0) + coefficient
    return Spectrum.from_terms(len(blocks), dict(sorted(summed.items())))


@given(st.integers(40, 3000), st.integers(3, 24), st.floats(0.05, 0.5), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_blocks_are_disjoint_even_and_as_many_as_asked(n, blocks, ablated, seed):
    blocks = min(blocks, max(3, round(2 * ablated * n)))
    drawn = random_blocks(n, blocks, ablated, seed)
    inside = [i for block in drawn for i in block]
    sizes = [len(block) for block in drawn]
    assert len(drawn) == blocks
    assert len(inside) == len(set(inside)) == round(2 * ablated * n)
    assert max(sizes) - min(sizes) <= 1
    assert drawn == random_blocks(n, blocks, ablated, seed)


@pytest.mark.parametrize("ablated", [0.05, 0.1, 0.3, 0.5])
def test_a_mask_ablates_the_stated_share(ablated):
    """Mean ρ exactly, standard deviation ρ / √blocks, each block ablated in half of the coded masks."""
    n, blocks = 400, 20
    players = random_blocks(n, blocks, ablated, seed=3)
    design = MaskDesign.coded(n, 3, 2000, seed=1, players=players)
    ablation = ~design.keep(0, design.code.size)
    share = ablation.double().mean(1)
    assert share.mean() == pytest.approx(ablated, abs=1e-12)
    assert share.std() == pytest.approx(ablated / math.sqrt(blocks), rel=0.1)
    assert (ablation[:, [block[0] for block in players]].double().mean(0) == 0.5).all()


def test_over_draws_pairs_are_as_under_independent_masks():
    """A component is ablated with probability ρ, two of them with about ρ², whatever their numbers."""
    n, ablated, together, single = 60, 0.2, 0.0, 0.0
    for seed in range(150):
        design = MaskDesign.coded(n, 1, seed=seed, players=random_blocks(n, 12, ablated, seed))
        ablation = (~design.keep()).double()
        single += float(ablation.mean()) / 150
        pairs = ablation.T @ ablation / len(ablation)
        together += float((pairs.sum() - pairs.diagonal().sum()) / (n * (n - 1))) / 150
    assert single == pytest.approx(ablated, abs=0.01)
    assert together == pytest.approx(ablated**2 + ablated / 2 / 30, abs=0.008)  # and those of one block


def test_components_of_a_player_go_together_and_the_rest_stays():
    players = [(3, 17), (5,), (8, 9, 30), (11, 2)]
    for kept in (True, False):
        design = MaskDesign.coded(40, 2, 300, seed=1, players=players, rest_kept=kept)
        keep, bits = design.keep(), MaskDesign.coded(4, 2, 300, seed=1).keep()
        for player, group in enumerate(players):
            assert (keep[:, group] == bits[:, [player]]).all()
        rest = [i for i in range(40) if i not in {j for group in players for j in group}]
        assert (keep[:, rest] == kept).all()
        assert torch.equal(design.of_players(keep), bits)
        assert MaskDesign.from_dict(json.loads(json.dumps(design.to_dict()))) == design


@pytest.mark.parametrize("budget", [None, 1500])
def test_spex_reads_the_polynomial_over_the_players(budget):
    """A function of 200 components that sees only whether all of a block are kept; the rest does not matter to it."""
    inner = planted_function("random", 20, sets=8, degree=3, seed=2)
    players = random_blocks(200, 20, 0.2, seed=5)
    design = MaskDesign.coded(200, 3, budget, seed=2, players=players)
    keep = design.keep()
    whole = torch.stack([keep[:, list(block)].all(1) for block in players], 1)
    decoded = Spex().decode(Samples(keep, inner.noisy(whole, 0.05, 0)[:, None], design), seed=0)
    assert decoded.spectrum.n == 20
    assert set(decoded.spectrum.sets) - {()} == inner.sets
    assert decoded.outcome is Outcome.RECOVERED
    assert decoded.stats["heldout_r2"] > 0.98


@given(st.integers(0, 2**31), st.sampled_from(["walsh", "mobius", "knockout"]))
@settings(max_examples=25, deadline=None)
def test_a_polynomial_over_blocks_is_the_one_over_components_where_blocks_go_together(seed, basis):
    """At every setting of the blocks, whatever basis the components' polynomial is written in."""
    players = random_blocks(16, 4, 0.4, seed)
    spectrum = planted_function("random", 16, sets=12, seed=seed).spectrum.rewrite(Basis(basis))
    design = MaskDesign.coded(16, 2, players=players)
    bits = MaskDesign.complete(4).keep()
    keep = torch.ones(16, 16, dtype=torch.bool)
    for player, group in enumerate(players):
        keep[:, list(group)] = bits[:, [player]]
    assert torch.equal(design.of_players(keep), bits)
    assert torch.allclose(of_blocks(spectrum, players).evaluate(bits), spectrum.evaluate(keep))


def test_what_a_code_over_blocks_estimates_and_how_well():
    """The coefficients of the components, summed by parity, with an error of σ / √N."""
    inner = planted_function("random", 60, sets=30, degree=3, seed=4)
    players = random_blocks(60, 12, 0.4, seed=2)
    truth = of_blocks(inner.spectrum, players)
    scores = []
    for seed in range(12):
        design = MaskDesign.coded(60, 4, 4000, seed=seed, players=players)
        keep = design.keep()
        found = Spex().decode(Samples(keep, inner.noisy(keep, 0.4, seed)[:, None], design), seed=0).spectrum
        errors = torch.tensor([found[s] - truth[s] for s in truth.sets if s in found.sets and s])
        assert found.stderr.mean() == pytest.approx(0.4 / math.sqrt(design.code.size), rel=0.1)
        scores.append(errors * math.sqrt(design.code.size) / 0.4)
    assert len(torch.cat(scores)) > 60
    assert torch.cat(scores).std() == pytest.approx(1.0, abs=0.2)


def test_over_draws_a_block_is_a_poor_estimate_of_one_component():
    """Mean w_i + (s - 1) w̄, variance (s - 1)(1 - (s - 1)/(n - 1)) S², of an additive function; no mask is measured."""
    n, size, weights = 80, 4, torch.randn(80, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    line = Spectrum.from_terms(n, {(i,): float(w) for i, w in enumerate(weights)})
    component, seen = 7, []
    for seed in range(1500):
        players = random_blocks(n, 10, 0.25, seed)
        block = [number for number, group in enumerate(players) if component in group]
        if block:
            seen.append(of_blocks(line, players)[tuple(block)])
    others = torch.cat([weights[:component], weights[component + 1 :]])
    drawn = torch.tensor(seen, dtype=torch.float64)
    variance = (size - 1) * (1 - (size - 1) / (n - 1)) * float(others.var())
    assert float(drawn.mean()) == pytest.approx(float(weights[7] + 3 * others.mean()), abs=4 * (variance / 700) ** 0.5)
    assert float(drawn.var()) == pytest.approx(variance, rel=0.2)


def test_what_cannot_be_a_player():
    with pytest.raises(DesignError, match="40 blocks cannot be made of 20 components, the 20% of 100"):
        random_blocks(100, 40, 0.1)
    with pytest.raises(DesignError, match=r"above 0 and is at most 0\.5 here, not 0\.9"):
        random_blocks(100, 10, 0.9)
    with pytest.raises(DesignError, match="disjoint groups"):
        MaskDesign.coded(10, 1, players=[(0, 1), (1, 2), (3,)])
    with pytest.raises(DesignError, match="disjoint groups"):
        MaskDesign.coded(10, 1, players=[(0, 1), (), (3,)])
    with pytest.raises(DesignError, match="disjoint groups"):
        MaskDesign.coded(10, 1, players=[(0, 1), (2,), (10,)])
    with pytest.raises(DesignError, match="2 components; codes are over 3"):
        MaskDesign.coded(10, 1, players=[(0, 1), (2,)])
    with pytest.raises(DesignError, match="candidates or players, not both"):
        MaskDesign.coded(10, 1, candidates=[0, 1, 2], players=[(0,), (1,), (2,)])
