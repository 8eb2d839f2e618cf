"""Mask designs: the same masks however they are cut, the right probabilities, and no dependence between bits."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spex_mech.errors import DesignError
from spex_mech.walsh.masks.design import MAX_COMPLETE, MaskDesign, uniform_bits

fast = settings(max_examples=30, deadline=None)
seeds = st.integers(-(2**70), 2**70)
probabilities = st.floats(0.01, 0.99)


@st.composite
def designs(draw):
    n, masks, seed = draw(st.integers(1, 12)), draw(st.integers(1, 60)), draw(seeds)
    kind = draw(st.sampled_from(["bernoulli", "stratified", "complete"]))
    if kind == "complete":
        return MaskDesign.complete(min(n, 6))
    if kind == "bernoulli":
        return MaskDesign.bernoulli(n, masks, draw(probabilities), seed)
    return MaskDesign.stratified(n, masks, draw(st.lists(probabilities, min_size=1, max_size=4)), seed)


@fast
@given(designs(), st.integers(1, 70))
def test_the_same_masks_for_every_chunk_size(design, size):
    whole = design.keep()
    assert whole.dtype == torch.bool
    assert whole.shape == (design.n_masks, design.n)
    starts, parts = zip(*design.chunks(size), strict=True)
    assert list(starts) == list(range(0, design.n_masks, size))
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(design.keep(design.n_masks // 2), whole[design.n_masks // 2 :])


@fast
@given(designs())
def test_written_and_read_back(design):
    assert MaskDesign.from_dict(json.loads(json.dumps(design.to_dict()))) == design


@fast
@given(seeds)
def test_every_integer_is_a_seed(seed):
    keep = MaskDesign.bernoulli(40, 50, seed=seed).keep()
    assert 0.4 < keep.double().mean() < 0.6
    assert not torch.equal(keep, MaskDesign.bernoulli(40, 50, seed=seed + 1).keep())


def test_a_longer_design_begins_with_the_shorter():
    assert torch.equal(MaskDesign.bernoulli(7, 20, 0.3, 5).keep(), MaskDesign.bernoulli(7, 90, 0.3, 5).keep()[:20])


def test_masks_are_what_they_were():
    """The masks of a run must not change between versions: responses on disk would belong to other masks."""
    keep = MaskDesign.bernoulli(16, 4, 0.5, 3).keep()
    assert keep.tolist() == [[splitmix(3, row * 16 + column) < 2**63 for column in range(16)] for row in range(4)]
    assert [sum(bit << i for i, bit in enumerate(row)) for row in keep.int().tolist()] == [38084, 63512, 56787, 37564]


def splitmix(seed, counter):
    """The hash in Python's integers."""

    def mix(x):
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    return mix((counter * 0x9E3779B97F4A7C15 + mix((seed * 2 + 1) % 2**64)) % 2**64)


@pytest.mark.parametrize("keep_prob", [0.5, 0.9, 0.03])
def test_marginal_probabilities(keep_prob):
    masks, n = 20_000, 20
    share = MaskDesign.bernoulli(n, masks, keep_prob, seed=11).keep().double().mean(0)
    spread = (keep_prob * (1 - keep_prob) / masks) ** 0.5
    assert (share - keep_prob).abs().max() < 4.5 * spread


@pytest.mark.parametrize("keep_prob", [0.5, 0.9])
def test_bits_are_pairwise_independent(keep_prob):
    masks, n = 20_000, 40
    x = MaskDesign.bernoulli(n, masks, keep_prob, seed=12).keep().double()
    x = (x - keep_prob) / (keep_prob * (1 - keep_prob)) ** 0.5
    between_components = (x.T @ x / masks)[~torch.eye(n, dtype=torch.bool)]
    assert between_components.abs().max() < 5 / masks**0.5
    assert 0.8 < between_components.std() * masks**0.5 < 1.2
    for lag in (1, 2, 3, 7, 64):  # masks one after the other
        assert ((x[lag:] * x[:-lag]).mean(0).abs() < 5 / masks**0.5).all()


def test_triples_of_bits_are_independent():
    masks, n = 20_000, 12
    x = 2 * MaskDesign.bernoulli(n, masks, seed=13).keep().double() - 1
    triples = torch.einsum("mi,mj,mk->ijk", x, x, x) / masks
    different = torch.tensor([[[len({i, j, k}) == 3 for k in range(n)] for j in range(n)] for i in range(n)])
    assert triples[different].abs().max() < 5 / masks**0.5


def test_seeds_give_unrelated_masks():
    first, second = (2 * MaskDesign.bernoulli(30, 5_000, seed=s).keep().double() - 1 for s in (0, 1))
    assert (first.T @ second / 5_000).abs().max() < 5 / 5_000**0.5


def test_uniform_bits_are_uniform():
    drawn = uniform_bits(4, torch.arange(2_000), 50).double() / 2**53
    assert 0 <= drawn.min() < 0.001
    assert 0.999 < drawn.max() < 1
    counts = torch.histc(drawn, bins=100, min=0, max=1)
    assert ((counts - 1_000) ** 2 / 1_000).sum() < 160  # chi-squared with 99 degrees of freedom: p < 1e-4 beyond


def test_stratified_masks_take_turns():
    design = MaskDesign.stratified(50, 3_000, (0.2, 0.5, 0.95), seed=2)
    keep = design.keep().double()
    for turn, keep_prob in enumerate(design.keep_probs):
        assert keep[turn::3].mean() == pytest.approx(keep_prob, abs=0.01)
    assert design.mean_keep_prob == pytest.approx(0.55)
    assert torch.equal(design.keep(1, 2), design.keep()[1:2])


def test_complete_has_every_mask_once_in_order_of_its_number():
    keep = MaskDesign.complete(5).keep()
    numbers = ((~keep).long() << torch.arange(5)).sum(1)
    assert numbers.tolist() == list(range(32))
    assert keep[0].all()
    assert MaskDesign.complete(5).mean_keep_prob == 0.5


@pytest.mark.parametrize(
    "make",
    [
        lambda: MaskDesign.bernoulli(0, 5),
        lambda: MaskDesign.bernoulli(5, 0),
        lambda: MaskDesign.bernoulli(5, 5, 0.0),
        lambda: MaskDesign.bernoulli(5, 5, 1.0),
        lambda: MaskDesign.bernoulli(5, 5, float("nan")),
        lambda: MaskDesign.stratified(5, 5, ()),
        lambda: MaskDesign.stratified(5, 5, (0.5, 2.0)),
        lambda: MaskDesign.complete(MAX_COMPLETE + 1),
        lambda: MaskDesign("bernoulli", 5, 5),
        lambda: MaskDesign("bernoulli", 5, 5, 0, (0.5, 0.6)),
        lambda: MaskDesign("complete", 5, 31),
        lambda: MaskDesign("complete", 10**12, 5),
        lambda: MaskDesign("coded", 5, 5),
        lambda: MaskDesign.bernoulli(5, 5).keep(-1),
        lambda: MaskDesign.bernoulli(5, 5).keep(6),
        lambda: MaskDesign.bernoulli(5, 5).keep(3, 2),
        lambda: next(MaskDesign.bernoulli(5, 5).chunks(0)),
    ],
)
def test_designs_that_cannot_be_drawn_are_refused(make):
    with pytest.raises(DesignError):
        make()


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"kind": "dice"},
        {"kind": "dice", "n": 1, "n_masks": 1, "seed": 0, "keep_probs": []},
        {"kind": "bernoulli", "n": "many", "n_masks": 1, "seed": 0, "keep_probs": [0.5]},
        {"kind": "bernoulli", "n": float("inf"), "n_masks": 1, "seed": 0, "keep_probs": [0.5]},
        {"kind": "bernoulli", "n": 1, "n_masks": 1, "seed": 0, "keep_probs": None},
        {"kind": "complete", "n": 3, "n_masks": 7, "seed": 0, "keep_probs": []},
        {"kind": "coded", "n": 3, "n_masks": 7, "seed": 0, "keep_probs": []},
    ],
    ids=str,
)
def test_records_that_are_no_design_are_refused(record):
    with pytest.raises(DesignError):
        MaskDesign.from_dict(record)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_same_masks_on_cuda():
    for design in (MaskDesign.bernoulli(1_000, 500, 0.9, 7), MaskDesign.complete(10)):
        assert torch.equal(design.keep(device="cuda").cpu(), design.keep())
