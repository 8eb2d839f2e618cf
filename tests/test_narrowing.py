"""Coarse to fine: what is dealt and split, what a run on blocks leaves, and what it saves."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.ablation.backends.planted import PlantedLayout
from spex_mech.components import Component, ComponentSet
from spex_mech.errors import DesignError
from spex_mech.measuring.ask import Ask
from spex_mech.measuring.narrowing import (
    Weights,
    as_one,
    chunks,
    deal,
    is_more,
    lost_parents,
    narrow,
    singles,
    split_blocks,
)

NEURONS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 400)), min_size=1, max_size=200, unique=True)


@given(NEURONS, st.integers(1, 80))
def test_blocks_hold_every_component_once_and_never_mix_layers(places, width):
    components = ComponentSet(tuple(Component("neuron", *place) for place in places))
    blocks = deal(components, width)
    assert sorted(c for block in blocks for c in block) == sorted(components)
    assert all(len({c.layer for c in block}) == 1 and list(block) == sorted(block) for block in blocks)
    assert len(blocks) <= max(width, len({layer for layer, _ in places}))
    if len(components) <= width:
        assert all(len(block) == 1 for block in blocks)


def test_kinds_are_dealt_apart_and_groups_stay_whole():
    chosen = ComponentSet.of("a0.h0, a0.h1, m0.n0, m0.n1, m0.n2, [m1.n0:64]")
    blocks = deal(chosen, 3)
    assert [as_one(block).name for block in blocks] == ["[a0.h0:2]", "[m0.n0:3]", "[m1.n0:64]"]
    assert len(blocks[-1]) == 1


@given(st.integers(1, 60), st.data())
def test_chunks_are_even_runs(n, data):
    block = tuple(Component("neuron", 0, i) for i in range(n))
    parts = chunks(block, data.draw(st.integers(1, n)))
    assert sum(parts, ()) == block
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(2, 64))
def test_splitting_makes_progress_and_remembers_where_parts_come_from(sizes, width):
    heavy = [tuple(Component("neuron", layer, i) for i in range(size)) for layer, size in enumerate(sizes)]
    parts, parents = split_blocks(heavy, width)
    assert sum(parts, ()) == sum(heavy, ())
    assert len(parts) <= max(width, 2 * len(heavy))
    assert all(set(part) < set(parents[part]) for part in parents)
    assert {part for part in parts if part not in parents} == {block for block in heavy if len(block) == 1}
    assert lost_parents(parents, parts) == []
    assert lost_parents(parents, []) == [block for block in heavy if len(block) > 1]
    assert singles(heavy, 4 * sum(sizes)) == [(c,) for block in heavy for c in block]
    assert singles(heavy, 4 * sum(sizes) - 1) == heavy
    assert is_more(heavy, 4 * sum(sizes) - 1) == (max(sizes) > 1)


def test_what_weighs_a_twentieth_of_the_heaviest_is_split_and_no_more_than_asked_for():
    blocks = [(Component("neuron", 0, i),) for i in range(4)]
    weights = Weights(dict(zip(blocks, (0.051, 1.0, 0.049, 0.0), strict=True)), frozenset())
    assert weights.heavy(4) == blocks[:2]
    assert weights.heavy(1) == [blocks[1]]
    assert Weights(dict.fromkeys(blocks, 0.0), frozenset()).heavy(4) == []


def strongest(found, count=8):
    """The components with the most of the polynomial's variance."""
    share = dict.fromkeys(found.components.names, 0.0)
    for members, coefficient in found.spectrum.mean_output().terms():
        for i in members:
            share[found.components.names[i]] += coefficient**2
    return set(sorted(share, key=share.__getitem__, reverse=True)[:count])


def test_neurons_are_found_among_a_thousand(tmp_path):
    """Two that act only together and two that act by themselves; the same call again takes no forward pass."""
    layout = PlantedLayout(2, 4, 512)
    names = ["m0.n77", "m1.n300", "m0.n400", "m1.n5"]
    terms = {tuple(names[:2]): 1.0, (names[2],): 0.7, (names[3],): 0.7}
    model, neurons = planted.polynomial(terms, basis="walsh", layout=layout), set(names)
    task = planted.task(2)
    found = sm.discover(model, task, "m*.n*", budget=240, refine=True, out=tmp_path / "run")
    assert strongest(found, 4) == neurons
    assert tuple(names[:2]) in list(found.interactions()["components"])
    told = found.record["refined"]
    assert told["components"] == 1024
    assert told["left"] == len(found.components) < 60
    assert told["masks"] == 240
    assert sum(r["masks"] for r in told["rounds"]) + len(found.responses.keep) == told["masks"]
    again = sm.discover(model, task, "m*.n*", budget=240, refine=True, out=tmp_path / "run")
    assert again.record["resumed_masks"] == len(found.responses.keep)
    assert torch.equal(again.responses.values, found.responses.values)
    assert sm.load_run(tmp_path / "run").record["refined"] == told
    first = sm.load_run(tmp_path / "run" / "round-1")
    assert len(first.components) == told["rounds"][0]["blocks"] <= 40
    assert set(told["rounds"][0]["heavy"]) <= set(first.components.names)
    held = {atom.name for block in ComponentSet.of(told["rounds"][0]["heavy"]) for atom in block.atoms}
    assert neurons <= held


def test_few_components_are_run_at_once():
    model = planted.conjunction(["a0.h1", "m0.n3"], layout=PlantedLayout(1, 4, 8))
    found = sm.discover(model, planted.task(2), "a*.h*, m*.n*", budget=128, refine=True)
    assert found.record["refined"] == {"components": 12, "left": 12, "masks": 128, "rounds": []}
    assert found.components.names[:2] == ("a0.h0", "a0.h1")


def test_where_nothing_matters_the_first_round_says_so():
    model = planted.polynomial({(): 1.0}, layout=PlantedLayout(2, 2, 256))
    found = sm.discover(model, planted.task(2), "m*.n*", budget=120, refine=True)
    assert len(found.record["refined"]["rounds"]) == 1
    assert found.record["refined"]["masks"] == 30
    assert not found.circuit.interactions


def test_too_small_a_budget_is_refused():
    with pytest.raises(DesignError, match="at least 96"):
        narrow(ComponentSet.of(["m0"]), Ask(budget=95), lambda *_: pytest.fail("nothing may be run"))


@pytest.mark.slow
def test_a_fifth_of_the_masks_finds_what_a_flat_run_does_not():
    """Two triples of 4,096 neurons in which no neuron, and no pair, shows anything: blocks are few enough for every
    triple to be looked at, the neurons are not."""
    layout = PlantedLayout(4, 4, 1024)
    names = [c.name for c in layout.atoms if c.kind == "neuron"]
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).tolist()
    a, b, c, d, e, f, g, h = (names[i] for i in order[:8])
    terms = {(a, b, c): 1.0, (d, e, f): 1.0, (g,): 0.7, (h,): 0.7}
    model = planted.polynomial(terms, basis="walsh", layout=layout)
    task = planted.task(2)
    found = sm.discover(model, task, "m*.n*", budget=600, refine=True)
    assert found.record["refined"]["masks"] == 600
    assert strongest(found) == {a, b, c, d, e, f, g, h}
    assert {frozenset(s) for s in found.interactions()["components"] if len(s) == 3} == {
        frozenset((a, b, c)), frozenset((d, e, f))
    }  # fmt: skip
    flat = sm.discover(model, task, "m*.n*", budget=3000)
    assert strongest(flat, 2) == {g, h}
    assert len(strongest(flat) & {a, b, c, d, e, f}) < 3
