"""Backups: found without a primary set where single ablation sees nothing, and nowhere else."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.api.discover import decode
from spex_mech.circuit.backups import contrasts, find_backups
from spex_mech.errors import ComponentError, DecodeError
from spex_mech.store.responses import Responses
from spex_mech.walsh.spectrum import Basis, Spectrum

LAYOUT = planted.PlantedLayout(n_layers=2, n_heads=4, d_mlp=3)
NAMES = LAYOUT.atoms.names


def truth(terms, basis="mobius", keep=0.5):
    subject = planted.polynomial(terms, basis=basis, layout=LAYOUT)
    return planted.truth(subject, LAYOUT.atoms, Basis.orthonormal(keep))


def groups(spectrum, **options):
    return {frozenset(b.components): b for b in find_backups(spectrum, LAYOUT.atoms, **options)}


@pytest.mark.parametrize("keep", [0.5, 0.9])
@pytest.mark.parametrize(
    "names", [("a0.h1", "a1.h2"), ("a0.h0", "a0.h3", "m1.n0"), ("a0.h0", "a0.h1", "a1.h1", "m0.n2")]
)
def test_an_or_is_one_group_and_all_of_it_is_hidden(names, keep):
    subject = planted.backup(names, strength=2.0, layout=LAYOUT)
    found = groups(planted.truth(subject, LAYOUT.atoms, Basis.orthonormal(keep)))
    (group,) = found.values()
    assert group.components == tuple(sorted(names, key=NAMES.index))
    assert group.kind == "redundancy"
    assert (group.joint, group.excess, group.hidden) == pytest.approx((2.0, 2.0, 1.0))
    assert group.single == pytest.approx((0.0,) * len(names))


@pytest.mark.parametrize(
    ("terms", "basis"),
    [
        ({("a0.h0",): 1.0, ("a1.h1",): 2.0, ("m0.n1",): -1.0}, "mobius"),  # additive
        ({("a0.h0", "a1.h1"): 2.0}, "mobius"),  # AND of two
        ({("a0.h0", "a1.h1", "m0.n1"): 2.0}, "mobius"),  # AND of three
        ({("a0.h0", "a1.h1"): 2.0}, "walsh"),  # XOR: losing both costs nothing
        ({("a0.h0",): 1.0, ("a0.h0", "a1.h1"): -1.0}, "mobius"),  # one inhibits the other
    ],
)
def test_what_is_no_backup_is_not_called_one(terms, basis):
    assert not groups(truth(terms, basis))


def test_two_of_three_are_backups_in_pairs():
    """f = 1 where at least two of three act: any two cover the third's loss, so every pair is a group of its own."""
    a, b, c = names = ("a0.h0", "a1.h1", "m0.n1")
    spectrum = truth({(a, b): 1.0, (a, c): 1.0, (b, c): 1.0, names: -2.0}, keep=0.99)
    found = groups(spectrum)
    assert set(found) == {frozenset({a, b}), frozenset({a, c}), frozenset({b, c})}


def test_a_group_that_holds_the_metric_down_is_found_by_its_harm():
    (group,) = groups(truth({(): -1.0, ("a0.h1", "a1.h0"): 1.0}, "knockout")).values()
    assert group.joint == pytest.approx(-1.0)
    assert group.excess == pytest.approx(1.0)


def test_groups_among_other_effects():
    """An OR of two and an OR of three, a synergy and main effects: exactly the two groups."""
    or2, or3 = ("a0.h0", "a1.h0"), ("a0.h1", "a1.h1", "m1.n2")
    one = planted.backup(or2, strength=1.0, layout=LAYOUT).polynomial.rewrite(Basis())
    two = planted.backup(or3, strength=2.0, layout=LAYOUT).polynomial.rewrite(Basis())
    rest = planted.polynomial({("a0.h2", "a1.h2"): 1.5, ("m0.n0",): 0.7}, layout=LAYOUT).polynomial.rewrite(Basis())
    total = {s: 0.0 for p in (one, two, rest) for s in p.sets}
    for p in (one, two, rest):
        for s, c in p.terms():
            total[s] += c
    spectrum = Spectrum.from_terms(len(NAMES), total)
    assert set(groups(spectrum)) == {frozenset(or2), frozenset(or3)}
    assert [set(b.components) for b in find_backups(spectrum, LAYOUT.atoms)] == [set(or3), set(or2)]
    assert not groups(spectrum, min_excess=3.0)
    assert set(groups(spectrum, max_order=2)) >= {frozenset(or2)}


def by_definition(spectrum, group, keep_prob):
    """The smallest inequality of a group from costs by enumeration of the others' masks."""
    n, k = spectrum.n, len(group)
    others = [i for i in range(n) if i not in group]
    v = np.zeros(1 << k)
    for number in range(1 << k):
        keep = torch.ones(1 << len(others), n, dtype=torch.bool)
        weight = torch.ones(1 << len(others), dtype=torch.float64)
        for j, i in enumerate(others):
            keep[:, i] = (torch.arange(1 << len(others)) >> j & 1) == 0
            weight *= torch.where(keep[:, i], torch.tensor(keep_prob, dtype=torch.float64), 1 - keep_prob)
        for j, i in enumerate(group):
            keep[:, i] = not number >> j & 1
        v[number] = float((spectrum.evaluate(keep) * weight).sum())
    cost = v[0] - v
    cost = cost if cost[-1] >= 0 else -cost
    full = (1 << k) - 1
    bounds = [cost[full], *(cost[full] - cost[t] for t in range(1, full))]
    return min(bounds + [cost[full] - cost[t] - cost[full - t] for t in range(1, full)])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 0.8]))
def test_the_excess_is_the_smallest_inequality_by_enumeration(seed, keep_prob):
    generator = torch.Generator().manual_seed(seed)
    orders = torch.randint(0, 4, (14,), generator=generator).tolist()
    sets = {tuple(sorted(torch.randperm(6, generator=generator)[:order].tolist())) for order in orders}
    terms = {s: float(torch.randn(1, generator=generator)) for s in sorted(sets)}
    spectrum = Spectrum.from_terms(6, terms, Basis.orthonormal(keep_prob))
    components = sm.ComponentSet(LAYOUT.atoms.components[:6])
    found = find_backups(spectrum, components)
    for group in found:
        members = tuple(components.indices(group.components))
        assert group.excess == pytest.approx(by_definition(spectrum, members, keep_prob), abs=1e-9)
        assert group.excess > 0
    reported = [set(b.components) for b in found]
    for s in (s for s, _ in spectrum.terms() if len(s) == 2):
        names = {components.names[i] for i in s}
        if by_definition(spectrum, s, keep_prob) > 1e-5:
            assert any(names <= group for group in reported)


def test_contrasts_count_every_inequality_once():
    for order in (2, 3, 4):
        rows = contrasts(order)
        assert len({tuple(r) for r in rows.tolist()}) == len(rows) == 1 + (2**order - 2) + (2 ** (order - 1) - 1)
        assert (rows.sum(1) == 0).all()


@pytest.mark.parametrize("names", [("a0.h1", "a1.h2"), ("a0.h0", "a0.h3", "m1.n0")])
def test_from_a_run_where_single_ablation_finds_nothing(names):
    subject = planted.backup(names, strength=1.0, layout=LAYOUT, spread=0.3)
    task, components = planted.task(4), sm.heads(subject) + sm.neurons(subject)
    keep = ~torch.eye(len(components), dtype=torch.bool)
    with sm.ablated(
        subject, keep=torch.ones(len(components), dtype=torch.bool), components=components, replacement="zero"
    ) as model:
        intact = model(task.prompts.tokens)
    for row in keep:
        with sm.ablated(subject, keep=row, components=components, replacement="zero") as model:
            assert torch.equal(model(task.prompts.tokens), intact)
    found = sm.discover(subject, task, components=components, budget=800)
    (group,) = find_backups(found.spectrum, components)
    assert set(group.components) == set(names)
    assert group.q_value < 0.01
    assert group.hidden == pytest.approx(1.0, abs=0.05)


def false_groups(runs, masks, link="auto"):
    """Runs on subjects whose responses are noise alone: how many report any group."""
    reported = 0
    components = LAYOUT.atoms
    for seed in range(runs):
        generator = torch.Generator().manual_seed(seed)
        keep = sm.MaskDesign.bernoulli(len(components), masks, 0.5, seed=seed).keep()
        values = torch.randn(masks, 4, generator=generator)
        found = decode(Responses(components, keep, values, "logit"), seed=seed, link=link)
        reported += bool(find_backups(found.spectrum, components))
    return reported


def test_noise_alone_gives_no_groups_beyond_the_rate():
    assert false_groups(4, masks=160, link="identity") <= 1


@pytest.mark.slow
def test_noise_alone_gives_groups_in_at_most_the_stated_share_of_a_hundred_runs():
    assert false_groups(100, masks=400) <= 9  # 5 expected at most; above 9 has probability .03 at exactly .05


def test_mistakes():
    spectrum = Spectrum.from_terms(3, {(0, 1): 1.0})
    with pytest.raises(ComponentError, match="3 bits"):
        find_backups(spectrum, LAYOUT.atoms)
    with pytest.raises(DecodeError, match="max_order 9"):
        find_backups(spectrum, sm.ComponentSet.of(NAMES[:3]), max_order=9)
    with pytest.raises(DecodeError, match="basis 'mobius'"):
        find_backups(spectrum.rewrite(Basis("mobius")), sm.ComponentSet.of(NAMES[:3]))
