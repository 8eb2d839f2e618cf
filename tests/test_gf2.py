"""Packed vectors over GF(2), and the field GF(2^m): the laws, and agreement with dense arithmetic and with galois."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spex_mech.errors import DesignError
from spex_mech.walsh.masks import gf2
from spex_mech.walsh.masks.galois_field import MAX_DEGREE, field
from spex_mech.walsh.masks.roots import roots, search_roots

SEEDS = st.integers(0, 2**32 - 1)


def random_bits(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.5


@given(SEEDS, st.integers(1, 4), st.integers(1, 200))
@settings(max_examples=40, deadline=None)
def test_packing_is_lossless(seed, rows, bits):
    vectors = random_bits(seed, rows, bits)
    assert gf2.pack(vectors).shape == (rows, -(-bits // 64))
    assert torch.equal(gf2.unpack(gf2.pack(vectors), bits), vectors)
    assert torch.equal(gf2.signs(gf2.pack(vectors), bits), 1 - 2 * vectors.float())


@given(SEEDS, st.integers(1, 150), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_sums_of_rows_are_products_with_indicators(seed, bits, slots):
    generator = torch.Generator().manual_seed(seed)
    table, members = random_bits(seed, 12, bits), torch.randint(-1, 12, (7, slots), generator=generator)
    indicator = torch.zeros(7, 12, dtype=torch.long)
    for row, column in (members >= 0).nonzero().tolist():
        indicator[row, members[row, column]] += 1
    summed = gf2.unpack(gf2.sum_rows(torch.nn.functional.pad(gf2.pack(table), (0, 0, 0, 1)), members), bits)
    assert torch.equal(summed, gf2.product(indicator % 2 == 1, table))


@given(SEEDS, st.integers(1, 12), st.integers(1, 90), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_rank_of_a_product_and_of_its_transpose(seed, rows, columns, inner):
    left, right = random_bits(seed, rows, inner), random_bits(seed + 1, inner, columns)
    both = gf2.product(left, right)
    assert gf2.rank(both) == gf2.rank(both.T) <= min(gf2.rank(left), gf2.rank(right))
    span = {tuple(row) for row in gf2.product(random_bits(seed, 400, rows), both).tolist()}
    assert len(span) <= 2 ** gf2.rank(both)


def test_rank_by_enumeration():
    for seed in range(20):
        bits = random_bits(seed, 5, 6)
        every = (torch.arange(32)[:, None] >> torch.arange(5)) & 1 == 1
        assert len({tuple(row) for row in gf2.product(every, bits).tolist()}) == 2 ** gf2.rank(bits)


def test_parity_counts_ones():
    numbers = [0, 1, 5, 2**40 + 1, 2**62 + 2**3 + 1, -1, -2]
    expected = [bin(number % 2**64).count("1") % 2 for number in numbers]
    assert gf2.parity(torch.tensor(numbers)).tolist() == expected


@pytest.mark.parametrize("m", [1, 2, 3, 5, 8, 11])
def test_the_field_is_the_one_galois_builds(m):
    galois = pytest.importorskip("galois")
    theirs = galois.GF(2**m, compile="python-calculate")  # one class a field in a process: put back at the end
    generator = torch.Generator().manual_seed(m)
    a, b = torch.randint(0, 1 << m, (2, 60), generator=generator)
    ours = field(m)
    assert ours.times(a, b).tolist() == (theirs(a.numpy()) * theirs(b.numpy())).tolist()
    inverse = [int(theirs(1) / theirs(x)) if x else 0 for x in a.tolist()]
    assert ours.inverse(a).tolist() == inverse
    theirs.compile("auto")


@given(st.integers(1, 10), SEEDS)
@settings(max_examples=60, deadline=None)
def test_field_laws(m, seed):
    generator = torch.Generator().manual_seed(seed)
    a, b, c = torch.randint(0, 1 << m, (3, 30), generator=generator)
    f = field(m)
    assert torch.equal(f.times(a, b ^ c), f.times(a, b) ^ f.times(a, c))
    assert torch.equal(f.times(f.times(a, b), c), f.times(a, f.times(b, c)))
    assert (f.times(a, f.inverse(a))[a != 0] == 1).all()
    assert torch.equal(f.power(f.square_root(a), 2), a)
    assert torch.equal(f.power(a, 3), f.times(a, f.times(a, a)))


@pytest.mark.parametrize("m", range(1, MAX_DEGREE + 1))
def test_every_table_is_a_permutation_of_the_field(m):
    f = field(m)
    assert f.exp[: f.order].unique().numel() == f.order
    assert torch.equal(f.exp[f.log[1:]], torch.arange(1, 1 << m))


def test_a_field_that_is_not_built():
    with pytest.raises(DesignError, match="2\\^21"):
        field(21)


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
@pytest.mark.parametrize("m", [3, 4, 5, 6])
def test_closed_forms_find_exactly_what_trying_all_finds(m, degree):
    """Every polynomial of the degree (4,096 drawn ones where there are more)."""
    f = field(m)
    count = f.order + 1
    if count**degree <= 4096:
        rows = torch.cartesian_prod(*[torch.arange(count)] * degree).reshape(-1, degree)
    else:
        rows = torch.randint(0, count, (4096, degree), generator=torch.Generator().manual_seed(m))
    values = f.monic_at(rows, torch.arange(f.order))
    expected = (values == 0).sum(1) == degree
    found, whole = roots(f, rows)
    assert torch.equal(whole, expected)
    assert (values[whole].gather(1, f.log[found[whole]]) == 0).all()
    if degree > 1:
        numbers, searched = search_roots(f, rows, torch.arange(f.order))
        assert torch.equal(searched, expected)
        assert torch.equal(f.exp[numbers[whole]].sort(1).values, found[whole].sort(1).values)


def test_splitting_is_having_all_roots():
    f = field(5)
    rows = torch.randint(0, 32, (500, 6), generator=torch.Generator().manual_seed(0))
    points = torch.arange(f.order)
    distinct = (f.monic_at(rows, points) == 0).sum(1) + (rows[:, -1] == 0)
    assert torch.equal(f.splits(rows), distinct == 6)
