"""Circuits by search: against the best of all sets, inside the allowance, and honest about what prompts choose."""

import itertools

import pytest
import torch

import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.ablation.respond import Engine
from spex_mech.api.audit import _replacement_of
from spex_mech.auditing.choosing import choose_circuits
from spex_mech.auditing.circuit_search import Goal, best_row, search_circuits
from spex_mech.auditing.faithfulness import counts
from spex_mech.auditing.passes import Ledger, Passes
from spex_mech.auditing.verification import Case

LAYOUT = planted.PlantedLayout(n_layers=2, n_heads=5, d_mlp=5)  # 20 components
NEEDED = ("a0.h0", "a1.h2", "m0.n1")


def opened(subject, n_prompts=4, **options):
    """A case of a planted subject whose run has a line for a polynomial, learnt where most is kept."""
    task = planted.task(n_prompts)
    found = sm.discover(
        subject,
        task,
        sm.heads(subject) + sm.neurons(subject),
        **{"budget": 150, "keep_prob": 0.9, "decoder": "linear", "link": "identity"} | options,
    )
    bound = sm.bind(subject)
    task = task.check(bound.shape)
    ledger = Ledger(10_000)
    passes = Passes(Engine(bound, task, found.components, _replacement_of(found, bound, task)), ledger)
    ends = passes.means(torch.tensor([[True], [False]]).expand(2, len(found.components))).tolist()
    return Case(found, passes, ledger, 1, *ends)


@pytest.fixture(scope="module")
def wide():
    """A conjunction, a backup of two, a harmful part and small helpers, of which a line knows half the story."""
    terms = {NEEDED: 4.0, ("a0.h1",): 1.0, ("a1.h1",): 1.0, ("a0.h1", "a1.h1"): -1.0, ("m1.n4",): -0.7, ("m1.n0",): 0.3}
    return planted.polynomial(terms, layout=LAYOUT, spread=0.2)


def best_of_all(case, size, sign):
    """The best value of any set, by the planted polynomial, up to a factor over prompts."""
    used = [*NEEDED, "a0.h1", "a1.h1", "m1.n4", "m1.n0"]
    sets = [s for k in range(min(size, len(used)) + 1) for s in itertools.combinations(used, k)]
    values = case.passes.means(case.masks(sets))
    return float((sign * values if sign else -(values - case.intact).abs()).max())


def test_the_search_finds_the_best_sets_that_the_polynomial_misses(wide):
    case = opened(wide)
    chosen = choose_circuits(case, None, 220, 1.0)
    plain = choose_circuits(case, None, 0, 1.0)
    for row, before in zip(chosen.sizes, plain.sizes, strict=True):
        assert row.help.value >= before.help.value - 1e-6
        assert abs(row.preserve.value - case.intact) <= abs(before.preserve.value - case.intact) + 1e-6
        assert len(row.help.names) <= row.count
    last = {row.count: row for row in chosen.sizes}
    for size in (4, 10, 20):
        assert last[size].help.value == pytest.approx(best_of_all(case, size, 1), abs=1e-4)
    assert last[10].preserve.faithfulness == pytest.approx(1.0, abs=0.01)
    assert set(NEEDED) <= set(chosen.circuit.names)
    assert len(chosen.circuit.names) == 4  # the conjunction and one of the backups are within a tenth of all
    assert abs(1 - chosen.circuit.faithfulness) <= 0.1
    assert chosen.search.masks <= 220


def test_what_a_search_measures_is_counted_and_stays_inside_the_allowance(wide):
    for allowance in (0, 45):
        case = opened(wide)
        before = case.ledger.spent
        chosen = choose_circuits(case, None, allowance, 1.0)
        assert chosen.search.masks == case.ledger.spent - before
        assert chosen.search.masks <= max(allowance, 12)


def test_same_seed_same_circuits(wide):
    one, two = (choose_circuits(opened(wide), None, 50, 1.0) for _ in range(2))
    assert one.sizes == two.sizes
    assert one.search == two.search


def test_a_search_ends_where_nothing_more_is_gained(wide):
    case = opened(wide)
    goals = [Goal(k, 1) for k in (2, 4)]
    pool = search_circuits(case, goals, [[NEEDED]], 3000, shrink=False)
    assert pool.spent < 200
    assert pool.keep[pool.best(goals[1])].nonzero()[:, 0].tolist() == sorted(
        case.found.components.indices([*NEEDED, "a0.h1"])
    )


def test_where_the_run_measured_everything_nothing_is_searched():
    subject = planted.conjunction(NEEDED[:2], layout=planted.PlantedLayout(n_layers=2, n_heads=3, d_mlp=1), spread=0.2)
    case = opened(subject, budget=300, keep_prob=0.5, decoder="auto")
    chosen = choose_circuits(case, None, 400, 1.0)
    assert chosen.search.masks <= 12
    assert set(chosen.circuit.names) == set(NEEDED[:2])
    assert all("search" not in v.method for row in chosen.sizes for v in (row.preserve, row.help))


def test_the_halves_see_what_choosing_by_prompts_adds():
    """Prompts that all say the same choose alike; one prompt cannot be halved."""
    subject = planted.conjunction(NEEDED, layout=LAYOUT)
    chosen = choose_circuits(opened(subject, n_prompts=6), None, 60, 1.0)
    assert chosen.search.jaccard == pytest.approx(1.0)
    f = {row.count: row.help.faithfulness for row in chosen.sizes}
    assert max(f.values()) == pytest.approx(1.0, abs=1e-3)
    alone = choose_circuits(opened(subject, n_prompts=1), None, 40, 1.0)
    assert (alone.search.splits, alone.search.cpr) == (0, None)


def test_ties_go_to_fewer_components_then_to_the_first():
    sizes, means = torch.tensor([3, 2, 2, 1]), torch.tensor([1.0, 1.0, 1.0, 0.5], dtype=torch.float64)
    assert best_row(sizes, means, Goal(3, 1), (1.0, 0.0)) == 1
    assert best_row(sizes, means, Goal(1, 1), (1.0, 0.0)) == 3
    assert best_row(sizes, means, Goal(3, -1), (1.0, 0.0)) == 3
    assert counts(20)[-2:] == (10, 20)
