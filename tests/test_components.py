"""The grammar of component names, ordered sets of components, and selection expressions."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spex_mech.components import (
    MAX_ATOMS,
    Component,
    ComponentSet,
    ModelShape,
    group,
    heads,
    kv_groups,
    mlps,
    neurons,
    select,
)
from spex_mech.errors import ComponentError

fast = settings(max_examples=60, deadline=None)
# three layers; the second has no MLP, the third fewer neurons; two query heads share a key/value head
SHAPE = ModelShape("toy", (4, 4, 4), (2, 2, 2), (True, False, True), (8, 0, 5), 10)


class Toy:
    shape = SHAPE


positions = st.none() | st.integers(-9, 9)
numbered = st.builds(
    Component, st.sampled_from(["head", "kv", "neuron"]), st.integers(0, 40), st.integers(0, 50_000), positions
)
whole = st.builds(Component, st.sampled_from(["attn", "mlp"]), st.integers(0, 40), st.just(0), positions)
runs = st.builds(
    lambda kind, layer, start, length, at: [Component(kind, layer, start + i, at) for i in range(length)],
    st.sampled_from(["head", "kv", "neuron"]), st.integers(0, 3), st.integers(0, 9), st.integers(1, 6), positions,
)  # fmt: skip
groups = st.lists(runs | whole.map(lambda c: [c]), min_size=1, max_size=5).map(
    lambda parts: group(c for part in parts for c in part)
)
inputs = st.builds(Component, st.sampled_from(["segment", "token"]), st.just(0), st.integers(0, 50_000))
components = numbered | whole | groups | inputs | st.lists(inputs, min_size=1, max_size=6).map(group)


@fast
@given(components)
def test_names_are_read_back(component):
    assert Component.parse(component.name) == component
    assert Component.parse(f"  {component.name} ") == component
    assert str(component) == component.name


@fast
@given(st.text(alphabet="amsthknvp0123459.:@-[]!*, ", max_size=24) | st.text(max_size=12))
def test_any_text_is_a_component_or_a_component_error(text):
    try:
        name = Component.parse(text).name
    except ComponentError:
        return
    assert Component.parse(name).name == name


@fast
@given(st.text(alphabet="amsthknvp01249.:@-[]!*, ", max_size=24) | st.text(max_size=12))
def test_any_expression_is_a_selection_or_a_component_error(text):
    try:
        chosen = select(Toy(), text)
    except ComponentError:
        return
    chosen.check(SHAPE)
    assert len(set(chosen.names)) == len(chosen) > 0


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("a9.h6", Component("head", 9, 6)),
        ("a9.kv1", Component("kv", 9, 1)),
        ("a9", Component("attn", 9)),
        ("m3", Component("mlp", 3)),
        ("m3.n417", Component("neuron", 3, 417)),
        ("a9.h6@p-1", Component("head", 9, 6, -1)),
        ("m3@p0", Component("mlp", 3, 0, 0)),
        ("[m3.n0:3]", group(Component("neuron", 3, i) for i in range(3))),
        ("[a0:2]", group([Component("attn", 0), Component("attn", 1)])),
        ("a0009.h06", Component("head", 9, 6)),
        ("s2", Component("segment", 0, 2)),
        ("t5", Component("token", 0, 5)),
        ("[s0:2,t4]", group([Component("segment", 0, 0), Component("segment", 0, 1), Component("token", 0, 4)])),
    ],
)
def test_every_form_of_the_grammar(name, component):
    assert Component.parse(name) == component


@pytest.mark.parametrize(
    "name",
    [
        "", " ", "a", "h3", "a1.n3", "m1.h3", "a1.h", "a1.h-1", "a-1.h0", "a1.h2.h3", "a1.h2@p", "a1.h2@q1", "b1",
        "A1.h2", "a1,h2", "a1.h2\n3", "[]", "[", "]", "[[a1.h2]]", "[a1.h2", "a1.h2]", "[a1.h2][a1.h3]",
        "[a1.h2]@p1", "a٣.h1", "a1.h²", "a*.h1", "[m*.n0]", "m0.n5:3", "m0.n3:3", "s1.h2",
        "t1@p0", "s", "st1", "s*", "a" + "9" * 5000, "a1.h" + "1" * 10,
    ],
)  # fmt: skip
def test_hostile_names_are_component_errors(name):
    with pytest.raises(ComponentError):
        Component.parse(name)


@pytest.mark.parametrize("name", [None, 3, b"a1.h2"])
def test_what_is_no_text_is_a_component_error(name):
    with pytest.raises(ComponentError, match="not a component name but"):
        Component.parse(name)


@pytest.mark.parametrize(
    "name", ["m3.n0:999999999", "[m3.n0:999999999]", "[m0:999.n0:9999]", "[" + ",".join(["m0.n0:600000"] * 2) + "]"]
)
def test_names_that_spell_out_too_much_cost_nothing(name):
    started = time.perf_counter()
    with pytest.raises(ComponentError, match=f"{MAX_ATOMS:,}"):
        Component.parse(name)
    with pytest.raises(ComponentError):
        select(Toy(), name)
    assert time.perf_counter() - started < 0.5


def test_messages_say_what_to_write_instead():
    with pytest.raises(ComponentError, match=r"'m3.n0:4' names 4 components.*Write \[m3.n0:4\]"):
        Component.parse("m3.n0:4")
    with pytest.raises(ComponentError, match=r"only select\(subject"):
        Component.parse("a*.h0")
    with pytest.raises(ComponentError, match="the range 5:3 in"):
        Component.parse("m0.n5:3")
    with pytest.raises(ComponentError, match=r"Names are a\{layer\}"):
        Component.parse("layer 3 head 4")


@pytest.mark.parametrize(
    "wrong",
    [
        ("head", -1, 0),
        ("head", 0, -1),
        ("group", 0),
        ("head", 0, 0, None, (Component("mlp", 0),)),
        ("segment", 1, 0),
        ("token", 0, 0, 2),
    ],
)
def test_components_that_no_name_stands_for_are_refused(wrong):
    with pytest.raises(ComponentError, match="does not exist"):
        Component(*wrong)


@fast
@given(st.lists(components, max_size=8))
def test_components_sort_in_network_order(found):
    layers = [c.layer for c in sorted(found)]
    assert layers == sorted(layers)
    backwards = found[::-1]
    assert sorted(found) == sorted(backwards)


def test_network_order_by_hand():
    names = ["s0", "s1", "t0", "a0.h1", "a0.h1@p-1", "a0.h1@p0", "a0.h10", "m0", "m0.n3", "a1", "m1"]
    assert [c.name for c in sorted(map(Component.parse, reversed(names)))] == names


def test_groups_are_flat_sorted_and_folded():
    inner = group([Component("neuron", 0, 2), Component("neuron", 0, 1)])
    outer = group([Component("mlp", 1), inner, Component("neuron", 0, 1), Component("head", 0, 3)])
    assert outer.name == "[a0.h3,m0.n1:3,m1]"
    assert outer.atoms == tuple(sorted(outer.atoms))
    assert outer.layer == 0
    assert Component("mlp", 1).atoms == (Component("mlp", 1),)
    with pytest.raises(ComponentError, match="at least one component"):
        group([])


# ---------------------------------------------------------------- ordered sets


@fast
@given(st.lists(components, unique_by=lambda c: c.name, max_size=8))
def test_component_i_is_bit_i(found):
    chosen = ComponentSet.of(found)
    assert chosen.names == tuple(c.name for c in found)
    assert list(chosen) == found
    assert chosen.indices(chosen.names) == list(range(len(found)))
    assert all(c in chosen and c.name in chosen and chosen[i] == c for i, c in enumerate(found))
    assert ComponentSet.of(chosen.names) == chosen
    assert (chosen[1:] + chosen[:1]).names == chosen.names[1:] + chosen.names[:1]


def test_union_keeps_the_order_and_counts_once():
    first, second = ComponentSet.of("m1, a0.h1"), ComponentSet.of(["a0.h1", "a0.h0"])
    assert (first + second).names == ("m1", "a0.h1", "a0.h0")
    assert len(first + first) == 2


def test_index_reads_names_that_are_not_canonical():
    chosen = ComponentSet.of(["a1.h2", "[m0.n0,m0.n1]"])
    assert chosen.index("a01.h02") == 0
    assert chosen.index("[m0.n0:2]") == 1
    with pytest.raises(
        ComponentError, match=r"'a0.h0' is not among the 2 components of this run \(a1.h2, \[m0.n0:2\]\)"
    ):
        chosen.index("a0.h0")
    assert "a0.h0" not in chosen
    assert repr(chosen) == "ComponentSet(2: a1.h2, [m0.n0:2])"


def test_repeated_components_are_refused_by_name():
    with pytest.raises(ComponentError, match=r"'a0.h1', 'm2' named more than once"):
        ComponentSet.of(["m2", "a0.h1", "a00.h1", "m2", "m2", "a0.h0"])


def test_many_repeated_components_are_refused_quickly():
    started = time.process_time()
    with pytest.raises(ComponentError, match="and 19,992 more"):
        ComponentSet(tuple(Component("neuron", 0, i) for i in range(20_000)) * 2)
    assert time.process_time() - started < 3


def test_all_unreadable_names_are_reported():
    with pytest.raises(ComponentError, match="2 names cannot be read") as error:
        ComponentSet.of(["a0.h1", "x", "a0.h2", "m*"])
    assert "'x'" in str(error.value)
    assert "'m*'" in str(error.value)


def test_check_lists_what_the_model_has_not():
    assert ComponentSet.of("a2.h3, m2.n4, a1.kv1, m0, a1").check(SHAPE)
    with pytest.raises(ComponentError) as error:
        ComponentSet.of(["a0.h3", "a0.h4", "a3.h0", "m1", "m2.n5", "a0.kv2", "[m0.n0:9]"]).check(SHAPE)
    for missing in ("a0.h4", "a3.h0", "m1", "m2.n5", "a0.kv2", "[m0.n0:9]"):
        assert repr(missing) in str(error.value)
    assert "'a0.h3'" not in str(error.value)
    assert "toy (3 layers, 4 heads, 2 MLPs of 5/8 neurons)" in str(error.value)


# ---------------------------------------------------------------- the whole of a model, and expressions


def test_all_of_a_kind():
    assert heads(Toy()).names == tuple(f"a{layer}.h{i}" for layer in range(3) for i in range(4))
    assert kv_groups(Toy(), layers=[1]).names == ("a1.kv0", "a1.kv1")
    assert mlps(Toy()).names == ("m0", "m2")
    assert len(neurons(Toy())) == 13
    assert len(heads(Toy()) + neurons(Toy(), layers=[2])) == 17
    with pytest.raises(ComponentError, match=r"layers \[3\] do not exist in toy"):
        heads(Toy(), layers=[0, 3])


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("a0.h1", "a0.h1"),
        ("m*", "m0 m2"),
        ("m*, a2.kv*", "m0 m2 a2.kv0 a2.kv1"),
        ("a0.h1:3, a0.h0:2", "a0.h1 a0.h2 a0.h0"),
        ("a*.h2", "a0.h2 a1.h2 a2.h2"),
        ("m*.n6:8", "m0.n6 m0.n7"),
        ("a0:2.h3", "a0.h3 a1.h3"),
        ("a*, !a1", "a0 a2"),
        ("a*, !a1, a1", "a0 a2 a1"),
        ("m0.n0, !m2", "m0.n0"),
        ("[m0.n*]", "[m0.n0:8]"),
        ("[a0.h0, m*], a0.h0", "[a0.h0,m0,m2] a0.h0"),
        ("a1.h*@p-1, !a1.h1:4@p-1", "a1.h0@p-1"),
        (" a0.h1 ,, a0.h2 ", "a0.h1 a0.h2"),
    ],
)
def test_expressions(expression, names):
    assert select(Toy(), expression).names == tuple(names.split())


@pytest.mark.parametrize(
    "expression",
    [
        "", ",", "!", "a0.h4", "a3.h0", "m1", "m1.n*", "m*.n8", "a0.h2:6", "a2:4.h0", "a0:99.h*", "a0, !a0", "[a0.h9]",
        "[a0.h*", "a*.h*]", "a0 a1", "a5.h*", "m0:3", "a0.h3:1", "m0.n0:999999999", "a0:999999999.h*",
    ],
)  # fmt: skip
def test_expressions_that_name_nothing_are_component_errors(expression):
    started = time.perf_counter()
    with pytest.raises(ComponentError):
        select(Toy(), expression)
    assert time.perf_counter() - started < 0.5


def test_all_wrong_parts_of_an_expression_are_reported():
    with pytest.raises(ComponentError, match="2 parts of") as error:
        select(Toy(), "a0.h4, a0.h1, x")
    assert "'a0.h4' does not exist in toy" in str(error.value)
    assert "'x' is not a component name" in str(error.value)


def test_shape_counts_and_describes():
    assert [SHAPE.count("mlp", layer) for layer in (-1, 0, 1, 2, 3)] == [0, 1, 0, 1, 0]
    assert [SHAPE.count("neuron", layer) for layer in range(3)] == [8, 0, 5]
    assert SHAPE.count("attn", 2) == 1
    assert ModelShape("one", (1,), (1,), (False,), (0,), 5).describe() == "one (1 layer, 1 heads)"
