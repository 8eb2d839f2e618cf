"""The circuit type, the kinds of interaction, and how a polynomial becomes a circuit."""

import itertools
import math
import time
from enum import Enum

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from spex_mech.circuit.build import build_circuit, knockouts
from spex_mech.circuit.graph import COLUMNS, Circuit
from spex_mech.circuit.kinds import kind_of
from spex_mech.circuit.nodes import Interaction, Node
from spex_mech.components import ComponentSet
from spex_mech.errors import ComponentError, DecodeError, SpexMechError
from spex_mech.files.records import plain
from spex_mech.walsh.certainty.significance import p_values_of_z, q_values
from spex_mech.walsh.spectrum import Basis, Spectrum

EVIDENCE = {"heldout_r2": 0.9, "decoder": "exact"}


def names(n: int) -> ComponentSet:
    return ComponentSet.of(f"a{i}.h0" for i in range(n))


def exhaustive(function, n: int) -> Spectrum:
    """The Walsh spectrum of a function of n bits by the definition: F(S) = 2^-n Σ f Π x, dense and slow."""
    keeps = list(itertools.product([0, 1], repeat=n))
    terms = {}
    for size in range(n + 1):
        for s in itertools.combinations(range(n), size):
            total = sum(function(keep) * math.prod(2 * keep[i] - 1 for i in s) for keep in keeps)
            if total:
                terms[s] = total / len(keeps)
    return Spectrum.from_terms(n, terms)


def circuit_of(function, n: int, basis: Basis = Basis()) -> Circuit:
    return build_circuit(exhaustive(function, n).rewrite(basis), names(n), unit="logit", evidence=EVIDENCE)


BASES = [Basis(), Basis("biased", 0.8), Basis("biased", 0.3)]


@pytest.mark.parametrize("basis", BASES, ids=str)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("k", [2, 3, 4, 5])
@pytest.mark.parametrize(("gate", "kind"), [(all, "synergy"), (any, "redundancy")])
def test_and_is_synergy_and_or_is_redundancy_at_every_order_and_for_a_metric_and_its_negative(
    k, gate, kind, sign, basis
):
    found = circuit_of(lambda keep: sign * float(gate(keep)), k, basis)
    assert {i.kind for i in found.interactions if i.order == 1} == {"main"}
    assert {i.kind for i in found.interactions if i.order > 1} == {kind}
    assert {i.order for i in found.interactions} == set(range(1, k + 1))


def test_odd_orders_alone_cannot_tell_and_from_or_so_the_pairs_decide():
    whole = ("a0.h0", "a1.h0", "a2.h0")
    both_and = exhaustive(lambda keep: float(all(keep)), 3)
    both_or = exhaustive(lambda keep: float(any(keep)), 3)
    for basis in (Basis(), Basis("mobius"), Basis("knockout")):
        assert both_and.rewrite(basis)[0, 1, 2] * both_or.rewrite(basis)[0, 1, 2] > 0
    alone = {frozenset(whole): 0.125} | {frozenset({name}): 0.125 for name in whole}
    assert kind_of(whole, alone) == "synergy"
    assert kind_of(whole, alone | {frozenset(whole[:2]): -0.125}) == "redundancy"


def test_the_table_in_the_docstring_of_kind_of():
    table = {
        "AND": (lambda k: k[0] * k[1], "synergy"),
        "OR": (lambda k: max(k), "redundancy"),
        "-AND": (lambda k: -k[0] * k[1], "synergy"),
        "-OR": (lambda k: -max(k), "redundancy"),
        "k1(1-k2)": (lambda k: k[0] * (1 - k[1]), "synergy"),
        "XOR": (lambda k: k[0] ^ k[1], "redundancy"),
    }
    for text, (function, kind) in table.items():
        found = circuit_of(function, 2)
        assert found.filter(order=2).interactions[0].kind == kind, text
    assert [node.main for node in circuit_of(table["XOR"][0], 2).nodes] == [None, None]


@pytest.mark.parametrize("flip", [1, 2])
def test_a_member_that_hurts_among_helpers_counts_by_its_absence(flip):
    def gate(keep):
        return float(all(bit != (i < flip) for i, bit in enumerate(keep)))

    found = circuit_of(gate, 4)
    assert {i.kind for i in found.interactions if set(i.components) == set(found.names)} == {"synergy"}


spectra = st.integers(1, 6).flatmap(
    lambda n: st.dictionaries(
        st.sets(st.integers(0, n - 1)).map(lambda s: tuple(sorted(s))),
        st.floats(-8, 8).filter(lambda c: abs(c) > 1e-3),
        min_size=1,
        max_size=20,
    ).map(lambda terms: Spectrum.from_terms(n, terms))
)


@given(spectra, st.sampled_from(BASES))
@settings(max_examples=60, deadline=None)
def test_knockout_is_the_rewritten_coefficient(spectrum, basis):
    spectrum = Spectrum(spectrum.n, spectrum.members, spectrum.coefficients, basis)
    rewritten = spectrum.rewrite(Basis("knockout"))
    sets = [s for s in spectrum.sets if s]
    wanted = [rewritten.get(s) or 0.0 for s in sets]
    assert np.allclose(knockouts(spectrum, sets), wanted, rtol=1e-9, atol=1e-6)


def test_knockout_sums_over_supersets_that_did_not_pass():
    terms = {(): 1.0, (0,): 2.0, (0, 1): 0.5, (0, 1, 2): 0.01}
    errors = {s: 0.01 if len(s) < 3 else 1.0 for s in terms}
    found = build_circuit(
        Spectrum.from_terms(3, terms, stderr=errors), names(3), unit="logit", evidence={}, q_threshold=0.01
    )
    assert [i.components for i in found.interactions] == [("a0.h0",), ("a0.h0", "a1.h0")]
    assert found.interactions[0].knockout == pytest.approx(-2 * (2.0 + 0.5 + 0.01))
    assert found.interactions[1].knockout == pytest.approx(4 * (0.5 + 0.01))
    assert found.names == ("a0.h0", "a1.h0")
    assert found.nodes[1].main is None
    assert found.baseline == 1.0


def test_q_values_against_the_definition_of_benjamini_and_hochberg():
    rng = np.random.default_rng(0)
    coefficient, stderr = rng.normal(size=200), rng.uniform(0.1, 2, size=200)
    p = 2 * norm.sf(np.abs(coefficient / stderr))
    order = np.argsort(p)
    wanted = np.empty(200)
    for rank, row in enumerate(order):
        wanted[row] = min(p[later] * 200 / (place + 1) for place, later in enumerate(order) if place >= rank)
    assert np.allclose(q_values(p_values_of_z(np.abs(coefficient), stderr, 0.0)), np.minimum(wanted, 1), rtol=1e-9)


def test_false_discoveries_stay_near_the_threshold():
    rng = np.random.default_rng(1)
    n, true, false = 200, 40, 0
    found_true = found_false = 0
    for _ in range(20):
        coefficients = rng.normal(size=n)
        coefficients[:true] += 6
        spectrum = Spectrum.from_terms(
            n, {(i,): float(c) for i, c in enumerate(coefficients)}, stderr={(i,): 1.0 for i in range(n)}
        )
        circuit = build_circuit(spectrum, names(n), unit="logit", evidence={}, q_threshold=0.1)
        false = sum(circuit.components.index(i.components[0]) >= true for i in circuit.interactions)
        found_false, found_true = found_false + false, found_true + len(circuit.interactions) - false
    assert found_true > 0.97 * 20 * true
    assert 0 < found_false / (found_false + found_true) < 0.15


def test_terms_without_error_are_judged_by_size_and_say_so_honestly():
    terms = {(): 3.0, (0,): 1.0, (1,): 1e-8, (0, 1): -0.2}
    bare = build_circuit(Spectrum.from_terms(2, terms), names(2), unit="logit", evidence={})
    exact = build_circuit(
        Spectrum.from_terms(2, terms, stderr=dict.fromkeys(terms, 0.0)), names(2), unit="logit", evidence={}
    )
    assert [i.components for i in bare.interactions] == [i.components for i in exact.interactions]
    assert [i.order for i in bare.interactions] == [1, 2]
    assert {i.q_value for i in bare.interactions} == {None}
    assert {i.q_value for i in exact.interactions} == {0.0}
    assert bare.frame()["q_value"].isna().all()
    assert bare.frame()["stderr"].isna().all()


def test_every_keyword_of_build_circuit_acts():
    terms = {(): 3.0, (0,): 1.0, (1,): 0.3, (0, 1): -0.2}
    errors = {(): 0.1, (0,): 0.1, (1,): 0.1, (0, 1): 0.12}
    spectrum = Spectrum.from_terms(2, terms, stderr=errors)

    def build(**options):
        return build_circuit(spectrum, names(2), **{"unit": "logit", "evidence": {}} | options)

    assert len(build().interactions) == 2
    assert len(build(q_threshold=0.2).interactions) == 3
    assert len(build(q_threshold=1e-6).interactions) == 1
    assert len(build(min_abs=0.5).interactions) == 1
    assert build(unit="nat").unit == "nat"
    assert build(evidence={"masks": 4}).evidence == {"masks": 4}
    assert [i.stability for i in build(stability={(1,): 0.75}).interactions] == [None, 0.75]
    assert [n.role for n in build(roles={"a0.h0": "mover"}).nodes] == ["mover", None]


def test_several_outputs_give_the_circuit_of_their_mean():
    coefficients = torch.tensor([[1.0, 3.0], [0.5, -0.5], [0.0, 2.0]])
    spectrum = Spectrum(2, torch.tensor([[0, -1], [1, -1], [0, 1]]), coefficients, stderr=torch.ones(3, 2))
    found = build_circuit(spectrum, names(2), unit="logit", evidence={})
    assert [(i.coefficient, i.stderr) for i in found.interactions] == [(2.0, None), (1.0, None)]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"components": names(3)}, ComponentError, "2 bits was given with 3 components"),
        ({"spectrum": Spectrum.from_terms(2, {(0,): 1.0}, Basis("mobius"))}, DecodeError, "spectrum.rewrite"),
        ({"q_threshold": 0.0}, DecodeError, "q_threshold 0.0"),
        ({"min_abs": -1.0}, DecodeError, "min_abs -1.0"),
    ],
)
def test_what_cannot_be_built_is_refused_with_a_way_out(options, error, words):
    asked = {"spectrum": Spectrum.from_terms(2, {(0,): 1.0}), "components": names(2)} | options
    with pytest.raises(error, match=words):
        build_circuit(**asked, unit="logit", evidence={})


def test_a_constant_polynomial_is_an_empty_circuit():
    found = build_circuit(Spectrum.from_terms(3, {(): 1.5}), names(3), unit="logit", evidence={})
    assert (found.nodes, found.interactions, found.baseline, found.max_order) == ((), (), 1.5, 0)
    assert list(found.frame().columns) == list(COLUMNS)
    assert len(found.nodes_frame()) == 0
    assert len(build_circuit(Spectrum.from_terms(3, {}), names(3), unit="logit", evidence={}).interactions) == 0


def test_thousands_of_terms_and_very_high_orders_are_quick():
    rng = np.random.default_rng(2)
    sets = {tuple(sorted(rng.choice(170, size=rng.integers(1, 7), replace=False).tolist())) for _ in range(5000)}
    sets |= {tuple(range(30)), tuple(range(5, 65))}
    terms = {s: float(rng.normal()) for s in sets}
    started = time.perf_counter()
    found = build_circuit(Spectrum.from_terms(170, terms), names(170), unit="logit", evidence={})
    assert time.perf_counter() - started < 8
    assert len(found.interactions) == len(terms)
    assert found.max_order == 60
    assert all(math.isfinite(i.knockout) for i in found.interactions)


def example() -> Circuit:
    interactions = (
        Interaction(("a0.h0",), 0.5, "main", stderr=0.1, q_value=0.01),
        Interaction(("a1.h0", "a0.h0"), -1.0, "redundancy", knockout=-4.0),
        Interaction(("a0.h0", "a1.h0", "a2.h0"), 0.25, "synergy"),
    )
    parts = names(4)
    nodes = (Node(parts[2]), Node(parts[1]), Node(parts[0], 0.5, 0.1, "mover <b>"))
    return Circuit(parts, nodes, interactions, "logit", evidence=EVIDENCE)


def test_the_circuit_is_kept_in_a_determined_order():
    found = example()
    assert found.names == ("a0.h0", "a1.h0", "a2.h0")
    assert [i.coefficient for i in found.interactions] == [-1.0, 0.5, 0.25]


def test_frames_have_the_promised_columns_and_do_not_make_zeros_of_unknowns():
    frame = example().frame()
    assert list(frame.columns) == [
        "components", "order", "coefficient", "stderr", "q_value", "stability", "kind", "knockout"
    ]  # fmt: skip
    assert frame["components"][0] == ("a1.h0", "a0.h0")
    assert frame["stderr"].isna().tolist() == [True, False, True]
    assert frame["knockout"].isna().tolist() == [False, True, True]
    nodes = example().nodes_frame()
    assert nodes["interactions"].tolist() == [2, 2, 1]
    assert nodes["main"].isna().tolist() == [False, True, True]


def test_top_and_filter_keep_the_nodes_they_need():
    found = example()
    assert found.top(1).names == ("a0.h0", "a1.h0")
    assert found.top(0).interactions == ()
    assert found.filter(order=1).names == ("a0.h0",)
    assert len(found.filter(order=(2, 3)).interactions) == 2
    assert [i.coefficient for i in found.filter(kind="synergy").interactions] == [0.25]
    assert len(found.filter(min_abs=0.5).interactions) == 2
    assert found.filter() == found
    with pytest.raises(SpexMechError, match="no kind 'AND'"):
        found.filter(kind="AND")
    with pytest.raises(SpexMechError, match=r"top\(-1\)"):
        found.top(-1)


def test_texts_are_short_and_html_is_escaped():
    found = example()
    assert str(found) == (
        "Circuit of 3 of 4 components: 1 main effects, 2 joint ones up to order 3, in logit; held-out R² 0.900"
    )
    assert repr(found) == str(found)
    hostile = Circuit(found.components, found.nodes, found.interactions, unit="<script>alert(1)</script>")
    assert "<script>" not in hostile._repr_html_()
    assert "&lt;script&gt;" in hostile._repr_html_()
    assert hostile._repr_html_().count("<tr>") == 4


class Colour(Enum):
    RED = 1


def test_evidence_becomes_plain_data():
    value = {"a": np.float32(0.5), 1: torch.tensor([1, 2]), "b": Colour.RED, "c": (float("inf"), {3}), "d": Basis()}
    assert plain(value) == {
        "a": 0.5,
        "1": [1, 2],
        "b": "RED",
        "c": [None, [3]],
        "d": {"kind": "walsh", "keep_prob": None},
    }


def test_a_circuit_that_does_not_fit_together_says_everything_at_once():
    parts = names(2)
    with pytest.raises(SpexMechError) as caught:
        Circuit(
            parts,
            (Node(parts[0], main=math.nan), Node(parts[0]), Node(names(9)[8])),
            (
                Interaction(("a0.h0",), math.inf, "synergy", stderr=-1.0, q_value=2.0),
                Interaction(("a0.h0", "a7.h7"), 1.0, "redundancy"),
                Interaction((), 1.0, "main"),
                Interaction(("a0.h0",), 1.0, "main"),
            ),
            unit="logit",
            basis="biased",
            link="tanh",
            baseline=math.nan,
        )
    told = str(caught.value)
    for words in ("link is 'tanh'", "keep_prob None", "baseline is nan", "a8.h0 is not among", "a0.h0 is there twice"):
        assert words in told, words
    assert "more" in told
