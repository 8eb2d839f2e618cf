"""How far findings depend on masks, prompts, replacement and context: against planted truth and enumeration."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.auditing.other_contexts import _steadier
from spex_mech.walsh.spectrum import Basis

LAYOUT = planted.PlantedLayout(n_layers=2, n_heads=4, d_mlp=2)
TURNING = {("a0.h1", "a1.h0"): 1.0, ("a0.h1", "a1.h0", "m0.n0"): -1.5, ("a1.h2",): 0.5, ("a0.h3", "a1.h3"): 1.0}


@pytest.fixture(scope="module")
def turned():
    """A pair that is a synergy while a third is mostly ablated, and the opposite while it is kept."""
    subject = planted.polynomial(TURNING, layout=LAYOUT, spread=0.2)
    task = planted.task(6)
    found = sm.discover(
        subject, task, sm.heads(subject) + sm.neurons(subject), budget=400, keep_prob=0.5, decoder="proxyspex"
    )
    return subject, task, found, sm.audit(found, subject, task, budget=2400)


def exact_effect(subject, components, names, keep_prob):
    """``Σ_A (-1)^|A| v(A)`` averaged over the others, from the planted polynomial."""
    basis = Basis.orthonormal(keep_prob)
    coefficient = planted.truth(subject, components, basis).get(components.indices(names)) or 0.0
    return coefficient * basis.affine[1] ** len(names)


def test_effects_in_other_contexts_are_those_of_the_planted_polynomial(turned):
    subject, task, found, audit = turned
    scale = float(subject.scales(task.prompts.tokens).double().mean())
    assert audit.contexts
    for row in audit.contexts:
        assert row.keep_prob == 0.9
        exact = scale * exact_effect(subject, found.components, row.components, 0.9)
        assert abs(row.effect - exact) <= max(6 * row.stderr, 1e-4)
        here = scale * exact_effect(subject, found.components, row.components, 0.5)
        assert row.here == pytest.approx(here, abs=0.1)


def test_an_interaction_that_turns_with_its_context_is_said_not_to_hold(turned):
    *_, audit = turned
    rows = {frozenset(row.components): row for row in audit.contexts}
    assert rows[frozenset({"a0.h3", "a1.h3"})].holds
    pair = rows[frozenset({"a0.h1", "a1.h0"})]
    assert pair.here * pair.effect < 0
    assert not pair.holds


def test_contexts_that_all_miss_what_is_rare_do_not_make_the_error_vanish():
    """Fifteen equal effects, of a polynomial that believes they vary: either it corrects them, or it sets the error."""
    same = np.full(15, 2.0)
    assert _steadier(same, same + 0.3, believed=0.5) == (pytest.approx(2.3), pytest.approx(0.0))
    wild = same + np.linspace(-3, 3, 15)
    assert _steadier(same, wild, believed=0.5) == (2.0, 0.5)
    assert _steadier(same, wild, believed=9.0)[1] == pytest.approx(wild.std(ddof=1))


def test_where_the_run_is_sure_of_no_interaction_its_strongest_are_tested():
    subject = planted.conjunction(("a0.h1", "a1.h0"), layout=LAYOUT, spread=0.2)
    task = planted.task(4)
    found = sm.discover(subject, task, sm.heads(subject), budget=120, keep_prob=0.6, decoder="proxyspex")
    mains = tuple(i for i in found.circuit.interactions if i.order == 1)
    unsure = dataclasses.replace(found, circuit=dataclasses.replace(found.circuit, interactions=mains))
    audit = sm.audit(unsure, subject, task, budget=400)
    assert set(audit.confirmed[0].components) == {"a0.h1", "a1.h0"}
    assert 1 <= len(audit.interactions) <= 8


def test_stability_of_a_clear_circuit_reaches_the_bar_and_of_noise_does_not(turned):
    *_, audit = turned
    assert {row.over for row in audit.stability} == {"masks", "prompts"}
    for row in audit.stability:
        assert row.resamples == 100
        assert row.nodes > 0.95
        assert row.stable
        assert not dataclasses.replace(row, nodes=0.79).stable
        assert not dataclasses.replace(row, nodes=None).stable


def test_one_prompt_has_no_halves():
    subject = planted.conjunction(("a0.h1", "a1.h0"), layout=LAYOUT)
    task = planted.task(1)
    found = sm.discover(subject, task, sm.heads(subject), budget=100, keep_prob=0.6, decoder="proxyspex")
    audit = sm.audit(found, subject, task, budget=200)
    assert [row.over for row in audit.stability] == ["masks"]


def test_replacements_that_give_the_same_agree_wholly(turned):
    """A planted part is there or not: what replaces it hardly matters, and the same masks give the same responses."""
    *_, audit = turned
    kinds = {row.kind: row for row in audit.replacements}
    for row in kinds.values():
        assert 16 <= row.masks <= 120
        assert row.effect == pytest.approx(audit.intact - audit.empty, rel=1e-4)
        assert row.r2 == pytest.approx(1.0, abs=1e-4)
        assert row.nodes == pytest.approx(1.0)
        assert (row.signs, row.top) == (1.0, 1.0)
    assert kinds


def test_another_replacement_is_measured_on_the_runs_own_masks():
    """Against passes by hand: squared correlation of the same masks' responses under both replacements."""
    from spex_mech.ablation.replacement import fit_replacement
    from spex_mech.ablation.respond import respond

    study = sm.open_study("induction-2l")
    found = sm.discover(
        study.subject, study.task, study.components, budget=100, decoder="linear", keep_prob=0.6, per=study.per
    )
    audit = sm.audit(found, study.subject, study.task, budget=400)
    row = next(row for row in audit.replacements if row.kind == "zero")
    generator = torch.Generator().manual_seed(_seed(1))
    rows = torch.randperm(100, generator=generator)[: row.masks].sort().values
    zero = fit_replacement(study.subject, study.task, study.components, "zero")
    values = respond(study.subject, study.task, study.components, [found.responses.keep[rows]], zero).mean(1)
    r2 = torch.corrcoef(torch.stack([values.double(), found.responses.mean[rows].double()]))[0, 1] ** 2
    assert row.r2 == pytest.approx(float(r2), abs=1e-4)
    assert row.r2 < 0.9999
    assert -1 <= row.nodes <= 1


def _seed(seed):
    from spex_mech.auditing.passes import seed_of

    return seed_of(seed, "replacement")


def noise(seed):
    """A metric without any effect of order below 7: to everything that is looked for it is noise."""
    layout = planted.PlantedLayout(n_layers=2, n_heads=4, d_mlp=3)
    generator = torch.Generator().manual_seed(seed)
    names = layout.atoms.names
    terms = {}
    for _ in range(60):
        order = int(torch.randint(7, 11, (1,), generator=generator))
        members = torch.randperm(len(names), generator=generator)[:order].sort().values
        terms[tuple(names[i] for i in members)] = float(torch.randn(1, generator=generator))
    return planted.polynomial(terms, basis="walsh", layout=layout)


def false_reports(seeds):
    """Of whole audits of noise, how many report an interaction or a group that is not there."""
    reported = 0
    for seed in seeds:
        subject = noise(seed)
        task = planted.task(2)
        found = sm.discover(
            subject,
            task,
            sm.heads(subject) + sm.neurons(subject),
            budget=160,
            seed=seed,
            decoder="proxyspex",
            link="identity",
        )
        audit = sm.audit(found, subject, task, budget=400, seed=seed)
        false = [c for c in audit.confirmed if c.order < 7] + [g for g in audit.backups if g.confirmed()]
        reported += bool(false)
    return reported


def test_audits_of_noise_report_nothing_beyond_the_rate():
    assert false_reports(range(2)) <= 1


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_audits_of_a_hundred_noises_keep_the_stated_rate():
    assert false_reports(range(100)) <= 9  # 5 expected at most; above 9 has probability .03 at exactly .05


@pytest.mark.parametrize("names", [("a0.h1", "a1.h2"), ("a0.h0", "a0.h3", "m1.n0")])
def test_the_whole_audit_names_backups_that_single_ablation_is_blind_to(names):
    subject = planted.backup(names, strength=2.0, layout=LAYOUT, spread=0.2)
    task = planted.task(4)
    found = sm.discover(subject, task, sm.heads(subject) + sm.neurons(subject), budget=300, keep_prob=0.6)
    audit = sm.audit(found, subject, task, budget=700, known=names)
    (group,) = [g for g in audit.backups if g.confirmed()]
    assert set(group.components) == set(names)
    assert group.q_value < 0.01
    aurocs = {row.name: row.auroc for row in audit.rankings}
    assert aurocs["single ablation"] == 0.5
    assert aurocs["spex_mech"] == 1.0
    (proposed,) = sm.find_backups(found.spectrum, found.components)
    assert proposed.kind == "redundancy"
    pairs = itertools.combinations(names, 2)
    assert all(set(pair) <= set(proposed.components) for pair in pairs)
