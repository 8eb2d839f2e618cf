"""BCH codes: agreement with galois for every length, and decode(parity of S) = S, exactly and batched."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spex_mech.walsh.masks import gf2
from spex_mech.walsh.masks.bch import Bch, field_degree
from spex_mech.walsh.set_rows import pad_sets


def random_code(m, t, n, seed):
    order = torch.randperm((1 << m) - 1, generator=torch.Generator().manual_seed(seed))
    return Bch.at(m, t, order[:n])


def random_sets(n, t, rows, seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(0, t + 1, (rows,), generator=generator)
    chosen = torch.rand(rows, n, generator=generator).topk(t, dim=1).indices
    kept = torch.where(torch.arange(t) < sizes[:, None], chosen, n).sort(1).values
    return torch.where(kept == n, -1, kept)


def parities(code, sets):
    rows = torch.nn.functional.pad(gf2.pack(code.parity_check().T), (0, 0, 0, 1))
    return gf2.unpack(gf2.sum_rows(rows, sets), code.parity_bits)


@given(st.integers(3, 12), st.integers(1, 6), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_every_set_of_at_most_t_is_found(m, t, seed):
    order = (1 << m) - 1
    t = min(t, (order - 1) // 2)
    n = order if seed % 3 == 0 else max(t, order - seed % (order // 2 + 1))
    code = random_code(m, t, n, seed)
    sets = random_sets(n, t, 100, seed)
    found, known = code.decode(parities(code, sets))
    assert known.all()
    assert torch.equal(found, sets)


@given(st.integers(4, 9), st.integers(2, 4), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_what_is_found_has_the_parity_asked_for(m, t, seed):
    """Detection beyond t: for any bits, either a set with exactly these bits comes back, or none."""
    order = (1 << m) - 1
    code = random_code(m, t, order // 2 + 1, seed)
    bits = torch.rand(300, code.parity_bits, generator=torch.Generator().manual_seed(seed)) < 0.5
    found, known = code.decode(bits)
    assert torch.equal(parities(code, found)[known], bits[known])
    assert (found[~known] == -1).all()


@pytest.mark.parametrize(("m", "t"), [(3, 1), (4, 2), (4, 3), (5, 2), (5, 3)])
def test_exactly_the_parities_of_small_sets_are_accepted(m, t):
    """By enumeration: a decoder that guessed, or that gave up, would fail."""
    code = random_code(m, t, (1 << m) - 1, 0)
    sets = [s for size in range(t + 1) for s in combinations(range((1 << m) - 1), size)]
    every = pad_sets(sets)
    reachable = {tuple(row) for row in parities(code, every).tolist()}
    bits = (torch.arange(1 << min(code.parity_bits, 15))[:, None] >> torch.arange(code.parity_bits)) & 1 == 1
    _, known = code.decode(bits)
    assert known.tolist() == [tuple(row) in reachable for row in bits.tolist()]


@pytest.mark.parametrize(
    "m", [pytest.param(m, marks=() if m in (3, 6, 10) else pytest.mark.slow) for m in range(2, 13)]
)
def test_the_code_is_the_one_galois_builds(m):
    """The rows check every codeword of galois' BCH code of each length 2^m - 1, and have its redundancy."""
    galois = pytest.importorskip("galois")
    length = (1 << m) - 1
    for t in {1, min(2, length // 4), min(5, length // 4)} - {0}:
        theirs = galois.BCH(length, d=2 * t + 1, extension_field=galois.GF(2**m))
        code = Bch.at(m, t, torch.arange(length).flip(0))  # galois writes the highest power first
        check = code.parity_check()
        shifts = torch.zeros(min(theirs.k, 40), length, dtype=torch.bool)
        generator = torch.tensor(theirs.generator_poly.coeffs.tolist(), dtype=torch.bool)
        for row in range(len(shifts)):
            shifts[row, row : row + len(generator)] = generator
        assert not gf2.product(shifts, check.T).any()
        assert gf2.rank(check) == theirs.n - theirs.k


@pytest.mark.parametrize(
    ("m", "t"), [(4, 2), pytest.param(6, 3, marks=pytest.mark.slow), pytest.param(7, 5, marks=pytest.mark.slow)]
)
def test_decoding_agrees_with_galois(m, t):
    galois = pytest.importorskip("galois")
    length = (1 << m) - 1
    theirs = galois.BCH(length, d=2 * t + 1, extension_field=galois.GF(2**m))
    code = Bch.at(m, t, torch.arange(length).flip(0))
    sets = random_sets(length, t, 30, m)
    words = torch.zeros(30, length, dtype=torch.long)
    for row, column in (sets >= 0).nonzero().tolist():
        words[row, sets[row, column]] = 1
    zeros, errors = theirs.decode(galois.GF2(words.numpy()), output="codeword", errors=True)
    assert not zeros.any()
    assert errors.tolist() == (sets >= 0).sum(1).tolist()
    assert torch.equal(code.decode(gf2.product(words.bool(), code.parity_check().T))[0], sets)


def test_fewer_bits_find_smaller_sets_and_ignore_the_rest():
    code = random_code(8, 4, 200, 1)
    sets = random_sets(200, 2, 50, 2)
    bits = parities(code, torch.nn.functional.pad(sets, (0, 2), value=-1))
    bits[:, 16:] = ~bits[:, 16:]  # everything beyond the first two blocks is wrong
    assert torch.equal(code.decode_every_length(bits)[0][1, :, :2], sets)
    assert not code.decode(bits)[1].all()


def test_a_position_that_was_shortened_away_is_never_named():
    full, short = Bch.at(6, 2, torch.arange(63)), Bch.at(6, 2, torch.arange(20))
    beyond = torch.tensor([[3, 40], [50, -1], [21, 22]])
    found, known = short.decode(parities(full, beyond))
    assert not known.any()
    assert (found == -1).all()


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 2), (3, 2), (63, 6), (64, 7), (36864, 16)])
def test_the_field_holds_every_position(n, m):
    assert field_degree(n) == m
    assert (1 << m) - 1 >= n


def test_groups_share_a_decoder_and_keep_their_own_positions():
    orders = torch.stack([torch.randperm(63, generator=torch.Generator().manual_seed(g))[:40] for g in range(3)])
    codes = Bch.at(6, 3, orders)
    sets = random_sets(40, 3, 60, 5)
    group = torch.arange(60) % 3
    bits = torch.stack([parities(Bch.at(6, 3, orders[g]), sets[i : i + 1])[0] for i, g in enumerate(group.tolist())])
    assert torch.equal(codes.decode(bits, group)[0], sets)
    assert not torch.equal(codes.decode(bits)[0], sets)
