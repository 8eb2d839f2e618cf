"""Coded designs: the masks are what the integers say, on any device and in any chunks; aliasing; budgets; files."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spex_mech.errors import DesignError
from spex_mech.walsh.masks import gf2
from spex_mech.walsh.masks.coded import Code, parity_rows, plan_code, smallest_budget
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.spectrum import Spectrum
from spex_mech.walsh.spex.bins import Bins

DESIGNS = st.tuples(st.integers(3, 90), st.integers(1, 5), st.integers(0, 900), st.integers(0, 2**40))


def design_of(drawn):
    n, degree, spare, seed = drawn
    degree = min(n, degree)
    return MaskDesign.coded(n, degree, smallest_budget(n, degree) + spare, seed)


@given(DESIGNS, st.integers(1, 700))
@settings(max_examples=25, deadline=None)
def test_chunks_are_the_whole(drawn, size):
    design = design_of(drawn)
    whole = design.keep()
    assert whole.shape == (design.n_masks, design.n)
    assert torch.equal(torch.cat([keep for _, keep in design.chunks(size)]), whole)


@given(DESIGNS)
@settings(max_examples=25, deadline=None)
def test_a_mask_is_its_hash_and_its_delay(drawn):
    """Row (c R + p) 2^b + ℓ ablates i where <h_c(i), ℓ> + d_{c,p}(i) is odd: by the definition, not by spans."""
    code = design_of(drawn).code
    keep = code.keep(torch.arange(code.size))
    row = int(torch.randint(code.size, (1,), generator=torch.Generator().manual_seed(code.seed)))
    which, number = divmod(row, code.bins)
    group, delay = divmod(which, code.delays)
    odd = gf2.parity(code.hashes[group] & number) == 1
    assert torch.equal(~keep[row], odd ^ code.delay_bits(group)[delay])


@given(DESIGNS)
@settings(max_examples=25, deadline=None)
def test_hashes_have_full_rank_and_are_balanced(drawn):
    code = design_of(drawn).code
    for hashed in code.hashes:
        assert gf2.rank((hashed[:, None] >> torch.arange(code.bits)) & 1 == 1) == code.bits
        counts = hashed.bincount(minlength=code.bins)
        assert counts[0] == 0
        assert counts[1:].max() - counts[1:].min() <= 1


@given(DESIGNS, st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_aliasing_identity(drawn, seed):
    """The transform of any polynomial's responses is, bin by bin, the signed sum of the sets that hash there."""
    design = design_of(drawn)
    generator = torch.Generator().manual_seed(seed)
    terms = {
        tuple(torch.randperm(design.n, generator=generator)[: i % (design.code.degree + 1)].sort().values.tolist()): c
        for i, c in enumerate(torch.randn(12, generator=generator).tolist())
    }
    spectrum = Spectrum.from_terms(design.n, terms)
    bins = Bins.of(design.code, spectrum.evaluate(design.keep())[:, None])
    left = bins.residual(*bins.spell(spectrum.members), spectrum.coefficients[:, None])
    assert left.abs().max() < 1e-12 * design.code.bins
    energy = bins.values.square().sum() * design.code.bins
    coded = spectrum.evaluate(design.keep(0, design.code.size))
    assert torch.isclose(energy, coded.square().sum())  # Parseval


@given(DESIGNS)
@settings(max_examples=25, deadline=None)
def test_small_sets_have_different_signs(drawn):
    """What the BCH rows promise: any two sets of at most `degree` players differ under some delay."""
    code = design_of(drawn).code
    generator = torch.Generator().manual_seed(1)
    sizes = torch.randint(0, code.degree + 1, (300,), generator=generator)
    drawn_sets = torch.rand(300, code.n, generator=generator).topk(code.degree, dim=1).indices
    members = torch.where(torch.arange(code.degree) < sizes[:, None], drawn_sets, code.n).sort(1).values
    members = torch.where(members == code.n, -1, members).unique(dim=0)
    for group in range(code.groups):
        rows = code.delay_bits(group)[: 1 + code.parity_rows]
        table = torch.nn.functional.pad(gf2.pack(rows.T ^ rows[0][:, None]), (0, 0, 0, 1))
        words = gf2.sum_rows(table, members)
        assert len(words.unique(dim=0)) == len(members)


def test_the_masks_of_a_design_never_change():
    """Files name a design by its integers, so these bits are for ever."""
    keep = MaskDesign.coded(70, 3, 1000, seed=5).keep()
    rows = [int("".join("01"[b] for b in row), 2) for row in keep[[0, 1, 500, 999], :48].int().tolist()]
    assert rows == FROZEN


@pytest.mark.parametrize("n", [3, 64, 300])
def test_marginals_and_pairs_are_fair(n):
    keep = MaskDesign.coded(n, 2, 8000, seed=3).keep().double()
    assert (keep.mean(0) - 0.5).abs().max() < 0.04
    x = 2 * keep - 1
    assert ((x.T @ x / len(x)) - torch.eye(n)).abs().max() < 1 / 3
    assert len(MaskDesign.coded(64, 4, 1728).keep().unique(dim=0)) >= 1727  # no mask is paid for twice


@pytest.mark.parametrize(
    ("n", "degree", "least"), [(64, 5, 864), (16, 5, 408), (1000, 5, 1224), (64, 2, 360), (36864, 4, 1560)]
)
def test_smallest_budget(n, degree, least):
    assert smallest_budget(n, degree) == least == MaskDesign.coded(n, degree, least).code.size
    with pytest.raises(DesignError, match=f"{least:,}.*Raise the budget, lower the degree"):
        MaskDesign.coded(n, degree, least - 1)


@given(st.integers(3, 5000), st.integers(1, 6), st.integers(0, 100_000))
@settings(max_examples=200, deadline=None)
def test_a_plan_uses_its_budget(n, degree, spare):
    degree = min(degree, n)
    budget = smallest_budget(n, degree) + spare
    code = plan_code(n, degree, budget, 0)
    assert code.size <= budget
    assert 3 * (1 + parity_rows(n, degree)) << (code.bits + 1) > budget or code.bits == n
    if code.delays > 1 + code.parity_rows:
        assert 0.9 * budget - 3 * code.bins < code.size <= 0.9 * budget


@given(DESIGNS, st.booleans(), st.booleans())
@settings(max_examples=25, deadline=None)
def test_designs_survive_a_file(drawn, chosen, kept):
    design = design_of(drawn)
    if chosen:
        n, candidates = 3 * design.n, range(1, 3 * design.n, 3)
        design = MaskDesign.coded(n, design.code.degree, design.n_masks, design.seed, candidates, kept)
    back = MaskDesign.from_dict(json.loads(json.dumps(design.to_dict())))
    assert back == design
    assert torch.equal(back.keep(10, 40), design.keep(10, 40))


@pytest.mark.parametrize("kept", [True, False])
def test_candidates_are_coded_and_the_rest_is_fixed(kept):
    candidates = [3, 7, 8, 20, 31]
    design = MaskDesign.coded(40, 2, 300, seed=1, candidates=candidates, rest_kept=kept)
    keep, players = design.keep(), MaskDesign.coded(5, 2, 300, seed=1).keep()
    rest = [i for i in range(40) if i not in candidates]
    assert torch.equal(keep[:, candidates], players)
    assert (keep[:, rest] == kept).all()


def test_what_cannot_be_coded():
    with pytest.raises(DesignError, match="2 components; codes are over 3"):
        smallest_budget(2, 1)
    with pytest.raises(DesignError, match="degree 0"):
        MaskDesign.coded(20, 0)
    with pytest.raises(DesignError, match="ascending"):
        MaskDesign.coded(20, 2, 500, candidates=[3, 3, 5])
    with pytest.raises(DesignError, match="degree 9"):
        MaskDesign.coded(4, 9)
    with pytest.raises(DesignError, match="31 bits"):
        Code(64, 2, 31, 40)
    with pytest.raises(DesignError, match="2 delays; this code needs 15"):
        Code(64, 2, 4, 2)
    record = MaskDesign.coded(20, 2).to_dict()
    with pytest.raises(DesignError):
        MaskDesign.from_dict({**record, "n": 21})
    with pytest.raises(DesignError):
        MaskDesign.from_dict({**record, "code": {**record["code"], "bits": 40}})
    with pytest.raises(DesignError):
        MaskDesign.from_dict({**record, "code": None})


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_masks_are_the_same_on_a_gpu():
    design = MaskDesign.coded(500, 4, 5000, seed=2)
    assert torch.equal(design.keep(device="cuda").cpu(), design.keep())


FROZEN = [68255350471501, 233029519053443, 29533760112233, 51788445866879]
