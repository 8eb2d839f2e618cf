"""The trial of interactions and backups in an audit: a factorial each, as far as the budget goes."""

from collections.abc import Sequence

from spex_mech.auditing.case import RunCase
from spex_mech.auditing.factorials import (
    MAX_FACTORIAL_ORDER,
    Table,
    adjust,
    check_backup,
    confirm_table,
    contexts_for,
    expected_values,
    factorial_masks,
    fits,
)
from spex_mech.auditing.findings import BackupCheck, Confirmation
from spex_mech.circuit.backups import find_backups

MAX_PROPOSED = 16  # groups of backups that are put to the test
UNSURE = 8  # interactions that are put to the test where the run is sure of none
WORTH = 0.01  # of the whole effect: groups whose excess is smaller are not put to the test
PROPOSE = 0.2  # false discovery rate at which the polynomial proposes them; fresh masks decide


def try_interactions(case: RunCase, spare: int = 0) -> tuple[tuple[Confirmation, ...], tuple[BackupCheck, ...], int]:
    """A factorial each for proposed groups of backups and for interactions, strongest first; how many found no room.

    Interactions of order 2 to 8; a set that is both is measured once. Groups may take a third of what is left, and more
    once the interactions are done; `spare` masks of the budget are not touched.
    """
    proposed, claimed = _proposed(case), _claimed(case)
    tables = _factorials(case, proposed, max(0, case.passes.left - spare) // 3)
    for wanted in (list(claimed), proposed):
        while rest := [names for names in wanted if names not in tables]:
            more = _factorials(case, rest, max(0, case.passes.left - spare))
            if not more:
                break
            tables |= more
    basis, floor = case.polynomial.basis, case.floor
    confirmed = [confirm_table(tables[s], s, c, basis, floor) for s, c in claimed.items() if s in tables]
    backups = [check_backup(tables[s], s, floor) for s in proposed if s in tables]
    return adjust(confirmed), adjust(backups), len({*proposed, *claimed} - tables.keys())


def _claimed(case: RunCase) -> dict[tuple[str, ...], float]:
    """The interactions of the run's circuit. Where its masks were too few to be sure of any, the strongest ones of its
    polynomial: fresh masks may be."""
    claimed = {i.components: i.coefficient for i in case.claims.interactions if 2 <= i.order <= MAX_FACTORIAL_ORDER}
    if claimed:
        return claimed
    terms = [(s, c) for s, c in case.polynomial.sorted().terms() if 2 <= len(s) <= MAX_FACTORIAL_ORDER]
    return {tuple(case.names[i] for i in s): c for s, c in terms[:UNSURE]}


def _factorials(case: RunCase, groups: Sequence[tuple[str, ...]], allowance: int) -> dict[tuple[str, ...], Table]:
    """The factorials of as many groups as the allowance has room for, first ones first; too large ones are left out."""
    polynomial, found = case.polynomial, dict[tuple[str, ...], Table]()
    keep_prob = 0.5 if polynomial.basis.keep_prob is None else polynomial.basis.keep_prob
    groups = [names for names in groups if fits(len(names), allowance)]
    number, contexts = contexts_for([len(names) for names in groups], allowance)
    for names in groups[:number]:
        group = case.components.indices(names)
        keep = factorial_masks(group, len(case.names), keep_prob, contexts, case.seed)
        expected = expected_values(polynomial, group)
        found[names] = Table.of(case.passes.values(keep), polynomial.evaluate(keep), len(group), expected)
    return found


def _proposed(case: RunCase) -> list[tuple[str, ...]]:
    """Groups of backups that the polynomial proposes, of at least a hundredth of the whole effect."""
    least = WORTH * abs(case.intact - case.empty)
    groups = find_backups(case.polynomial, case.components, q_threshold=PROPOSE, min_excess=least)
    return [group.components for group in groups[:MAX_PROPOSED]]
