"""One polynomial in four bases: rewriting, restriction and evaluation against exhaustive evaluation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import spex_mech.walsh.spectrum as module
from spex_mech.errors import DecodeError
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.set_rows import merge_sets, pad_sets, subset_bits
from spex_mech.walsh.spectrum import Basis, Spectrum, monomials

fast = settings(max_examples=40, deadline=None)
probabilities = st.floats(0.05, 0.95).filter(lambda q: q != 0.5)
bases = st.one_of(st.sampled_from([Basis(), Basis("mobius"), Basis("knockout")]), probabilities.map(Basis.orthonormal))


@st.composite
def spectra(draw, highest=7):
    n = draw(st.integers(1, highest))
    sets = draw(st.sets(st.frozensets(st.integers(0, n - 1)), max_size=12))
    terms = {tuple(sorted(s)): draw(st.floats(-4, 4)) for s in sets}
    return Spectrum.from_terms(n, terms, draw(bases))


def everywhere(n):
    return MaskDesign.complete(n).keep()


def chances(keep, keep_prob):
    """The probability of every mask."""
    return (keep.double() * keep_prob + (~keep).double() * (1 - keep_prob)).prod(1)


def by_definition(spectrum, keep):
    """f(keep) term by term, mask by mask, in plain Python."""
    phi = {
        "walsh": lambda k: 2 * k - 1,
        "biased": lambda k: (
            (k - spectrum.basis.keep_prob) / math.sqrt(spectrum.basis.keep_prob * (1 - spectrum.basis.keep_prob))
        ),
        "mobius": lambda k: k,
        "knockout": lambda k: 1 - k,
    }[spectrum.basis.kind]
    terms = list(spectrum.terms())
    return torch.tensor(
        [sum(c * math.prod(phi(row[i]) for i in s) for s, c in terms) for row in keep.int().tolist()],
        dtype=torch.float64,
    )


@fast
@given(spectra())
def test_evaluates_by_definition(spectrum):
    keep = everywhere(spectrum.n)
    torch.testing.assert_close(spectrum.evaluate(keep), by_definition(spectrum, keep), rtol=1e-10, atol=1e-10)


@fast
@given(spectra(), bases)
def test_rewriting_changes_no_value(spectrum, basis):
    keep = everywhere(spectrum.n)
    written = spectrum.rewrite(basis)
    assert written.basis == basis
    scale = 1e-9 * (1 + float(written.coefficients.abs().sum()) + float(spectrum.coefficients.abs().sum()))
    torch.testing.assert_close(written.evaluate(keep), spectrum.evaluate(keep), rtol=1e-9, atol=scale)
    back = written.rewrite(spectrum.basis)
    assert all(back[s] == pytest.approx(c, abs=10 * scale) for s, c in spectrum.terms())
    assert {s for s in back.sets if s not in spectrum} <= {s for s, c in back.terms() if abs(c) <= 10 * scale}


def test_rewriting_keeps_every_output_and_drops_standard_errors():
    several = Spectrum(3, pad_sets([(0,), (0, 2)]), torch.tensor([[1.0, 2.0], [3.0, -1.0]]), stderr=torch.ones(2, 2))
    assert several.rewrite(Basis()) is several
    written = several.rewrite(Basis("knockout"))
    assert written.stderr is None
    torch.testing.assert_close(written.evaluate(everywhere(3)), several.evaluate(everywhere(3)), check_dtype=False)
    assert written.coefficients.shape == (len(written), 2)


def test_the_coefficients_of_and_and_of_or():
    both = Spectrum.from_terms(2, {(0, 1): 1.0}, Basis("mobius"))
    walsh = both.rewrite(Basis())
    assert [walsh[s] for s in ((0, 1), (0,), (1,), ())] == [0.25] * 4
    assert both.rewrite(Basis("knockout"))[0, 1] == 1
    either = Spectrum.from_terms(2, {(): 1.0, (0, 1): -1.0}, Basis("knockout"))
    walsh = either.rewrite(Basis())
    assert [walsh[s] for s in ((0, 1), (0,), (1,), ())] == [-0.25, 0.25, 0.25, 0.75]


def test_sets_that_would_explode_are_refused():
    with pytest.raises(DecodeError, match=r"25 components would expand into 2\^25"):
        Spectrum.from_terms(30, {tuple(range(25)): 1.0}).rewrite(Basis("mobius"))


@fast
@given(spectra(), st.floats(0.05, 0.95))
def test_parseval_in_the_orthonormal_basis(spectrum, keep_prob):
    keep = everywhere(spectrum.n)
    weight = chances(keep, keep_prob)
    values = spectrum.evaluate(keep)
    energy = spectrum.rewrite(Basis.orthonormal(keep_prob)).energy_by_order()
    mean = float(weight @ values)
    assert sum(energy.values()) == pytest.approx(float(weight @ values**2), rel=1e-7, abs=1e-9)
    assert energy.get(0, 0.0) == pytest.approx(mean**2, rel=1e-6, abs=1e-9)


def test_energy_refuses_a_basis_that_is_not_orthonormal():
    with pytest.raises(DecodeError, match="orthonormal"):
        Spectrum.from_terms(2, {(0,): 1.0}, Basis("mobius")).energy_by_order()


def test_absent_is_not_zero():
    spectrum = Spectrum.from_terms(4, {(): 1.0, (2,): 0.0, (3, 1): 2.0})
    assert spectrum[2] == spectrum[2,] == 0.0
    assert spectrum[1, 3] == spectrum[3, 1] == spectrum[{1, 3}] == 2.0
    assert spectrum.get(0) is None
    assert (2 in spectrum, (1, 3) in spectrum, () in spectrum) == (True, True, True)
    assert (0 in spectrum, (1,) in spectrum, None in spectrum) == (False, False, False)
    with pytest.raises(DecodeError, match="absent is not zero"):
        spectrum[0]


def test_pruning_keeps_the_empty_set_and_any_strong_output():
    spectrum = Spectrum.from_terms(3, {(): 0.0, (0,): 0.5, (1,): -2.0, (0, 2): 1.0})
    assert spectrum.prune(1.0).sets == ((), (1,), (0, 2))
    assert spectrum.prune(5.0).sets == ((),)
    several = Spectrum(2, pad_sets([(0,), (1,)]), torch.tensor([[1.0, -1.0], [0.1, 0.1]]))
    assert several.prune(0.5).sets == ((0,),)


@fast
@given(spectra(), st.randoms(use_true_random=False))
def test_sorting_is_determined(spectrum, random):
    rows = list(range(len(spectrum)))
    random.shuffle(rows)
    shuffled = spectrum.select(torch.tensor(rows, dtype=torch.long)).sorted()
    assert shuffled.sets == spectrum.sorted().sets
    sizes = shuffled.coefficients.abs().tolist()
    assert sizes == sorted(sizes, reverse=True)
    assert dict(shuffled.terms()) == dict(spectrum.terms())


def test_sorting_and_selecting_carry_standard_errors():
    spectrum = Spectrum.from_terms(3, {(0,): 1.0, (1, 2): -3.0}, stderr={(0,): 0.1, (1, 2): 0.3})
    assert spectrum.sorted().stderr.tolist() == [0.3, 0.1]
    assert spectrum.select(torch.tensor([True, False])).members.shape == (1, 1)


@pytest.mark.parametrize("elements", [1, 7, 64, 1 << 25])
def test_evaluation_does_not_depend_on_the_chunk(monkeypatch, elements):
    terms = {tuple(range(i, i + i % 4)): float(i) for i in range(20)}
    spectrum = Spectrum.from_terms(30, {s: c for s, c in terms.items() if s or c == 0})
    keep = MaskDesign.bernoulli(30, 50, 0.7).keep()
    expected = by_definition(spectrum, keep)
    monkeypatch.setattr(module, "_CHUNK", elements)
    torch.testing.assert_close(spectrum.evaluate(keep), expected)


def test_evaluation_checks_the_width():
    with pytest.raises(DecodeError, match=r"needs \[mask, 3 components\]"):
        Spectrum.from_terms(3, {(0,): 1.0}).evaluate(torch.ones(2, 4, dtype=torch.bool))
    assert Spectrum.from_terms(3, {}).evaluate(torch.ones(2, 3, dtype=torch.bool)).tolist() == [0, 0]
    assert Spectrum.from_terms(3, {(0,): 1.0}).evaluate(torch.ones(0, 3, dtype=torch.bool)).shape == (0,)


def test_mean_output_drops_errors_that_it_cannot_know():
    several = Spectrum(2, pad_sets([(0,)]), torch.tensor([[1.0, 3.0]]), stderr=torch.ones(1, 2))
    assert several.mean_output().coefficients.tolist() == [2.0]
    assert several.mean_output().stderr is None
    assert several[0] == 2.0
    assert list(several.terms()) == [((0,), 2.0)]


@pytest.mark.parametrize("terms", [{(0, 0): 1.0}, {(3,): 1.0}, {(-1,): 1.0}, {(0, 1): 1.0, (1, 0): 2.0}], ids=str)
def test_terms_that_are_no_sets_are_refused(terms):
    with pytest.raises(DecodeError):
        Spectrum.from_terms(3, terms)


@pytest.mark.parametrize(
    ("members", "coefficients", "stderr"),
    [
        ([[0, 1]], [1.0, 2.0], None),
        ([[0, 1]], [1.0], [1.0, 2.0]),
        ([[1, 0]], [1.0], None),
        ([[1, 1]], [1.0], None),
        ([[-1, 1]], [1.0], None),
        ([[0, 3]], [1.0], None),
        ([[-2, 0]], [1.0], None),
    ],
)
def test_malformed_tensors_are_refused(members, coefficients, stderr):
    with pytest.raises(DecodeError):
        Spectrum(
            3,
            torch.tensor(members),
            torch.tensor(coefficients),
            stderr=None if stderr is None else torch.tensor(stderr),
        )


@pytest.mark.parametrize("wrong", [("biased", None), ("walsh", 0.5), ("biased", 0.0), ("biased", 1.0), ("biased", 1.5)])
def test_bases_that_mean_nothing_are_refused(wrong):
    with pytest.raises(DecodeError):
        Basis(*wrong)


def test_bases_are_orthonormal_where_they_say_so():
    keep = everywhere(4)
    members = pad_sets([(), (0,), (1, 2), (0, 3), (0, 1, 2, 3)])
    for keep_prob in (0.5, 0.2, 0.9):
        basis = Basis.orthonormal(keep_prob)
        assert basis.is_orthonormal
        weight = chances(keep, keep_prob)
        phi = monomials(keep, members, basis)
        torch.testing.assert_close(phi.T @ (weight[:, None] * phi), torch.eye(5, dtype=torch.float64))
    assert not Basis("mobius").is_orthonormal


def test_merging_adds_equal_sets_in_a_fixed_order():
    members = [pad_sets([(1,), (0, 2)]), pad_sets([(0, 2), ()])]
    merged, summed = merge_sets(members, [torch.tensor([1.0, 2.0]), torch.tensor([10.0, 5.0])])
    assert merged.tolist() == [[-1, -1], [0, 2], [1, -1]]
    assert summed.tolist() == [5.0, 12.0, 1.0]
    assert merge_sets([], [])[0].shape[0] == 0
    constant, total = merge_sets([torch.zeros(2, 0, dtype=torch.long)], [torch.tensor([1.0, 2.0])])
    assert (constant.shape, total.tolist()) == ((1, 0), [3.0])


def test_subsets_are_all_there():
    assert {tuple(row) for row in subset_bits(4).int().tolist()} == {
        tuple(m >> i & 1 for i in range(4)) for m in range(16)
    }


@fast
@given(spectra())
def test_strengths_are_the_energies_of_the_sets_that_hold_a_component(spectrum):
    wanted = [sum(c * c for s, c in spectrum.mean_output().terms() if i in s) ** 0.5 for i in range(spectrum.n)]
    assert spectrum.strengths().tolist() == pytest.approx(wanted, rel=1e-12)
