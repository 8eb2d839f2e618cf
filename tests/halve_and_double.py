"""Do figures of an audit hang on a constant? Each halved and doubled, others as they are; a line for what moved.

    python tests/halve_and_double.py            # all
    python tests/halve_and_double.py _PATIENCE  # some

Two audits: of the induction card, and of a planted model of 20 components of which the run has a line only.
"""

import importlib
import sys

import pytest

import spex_mech as sm
from spex_mech.ablation.backends import planted

CONSTANTS = {
    "api.audit": ("SEARCH", "FRESH", "COMPLETENESS", "MINIMALITY", "RANDOM", "CONTEXTS"),
    "auditing.baselines": ("SINGLES", "PAIRS"),
    "auditing.chosen_circuits": ("SPLITS",),
    "auditing.circuit_search": ("TIED", "_TRIES", "_PATIENCE", "_GAIN", "_RADIUS"),
    "auditing.confirmation": ("MAX_PROPOSED", "UNSURE", "WORTH", "PROPOSE"),
    "auditing.factorials": ("FEWEST", "MOST"),
    "auditing.knockout_trials": ("MOST_COMPLETENESS",),
    "auditing.knockouts": ("ALL_SUBSETS", "MAX_KNOCKOUTS", "MOST_GREEDY"),
    "auditing.other_contexts": ("FREE", "MAX_CONTEXT_SETS"),
    "auditing.other_replacements": ("REPLACEMENT_PART", "MASKS_A_SET"),
    "auditing.random_sets": ("RANDOM_SETS",),
    "auditing.resampled_halves": ("POOL", "RESAMPLES"),
    "auditing.search_landscape": ("LEARNT_FROM", "_LEAST_GAIN"),
}


def cases():
    """Runs to audit: (found, subject, task, budget)."""
    study = sm.open_study("induction-2l")
    found = sm.discover(study.subject, study.task, study.components, budget=300, keep_prob=0.6, per=study.per)
    yield found, study.subject, study.task, 512
    terms = {("a0.h0", "a1.h2", "m0.n1"): 4.0, ("a0.h1",): 1.0, ("a1.h1",): 1.0, ("a0.h1", "a1.h1"): -1.0,
             ("m1.n4",): -0.7, ("m1.n0",): 0.3}  # fmt: skip
    subject = planted.polynomial(terms, layout=planted.PlantedLayout(2, 5, 5), spread=0.2)
    task, components = planted.task(4), sm.heads(subject) + sm.neurons(subject)
    found = sm.discover(subject, task, components, budget=200, keep_prob=0.8, decoder="proxyspex")
    yield found, subject, task, 600


def figures(audit):
    """What a reader takes from an audit."""
    null = next((row for row in audit.rankings if row.name == "random sets"), None)
    rows = {row.name: row.cpr for row in audit.rankings[1:] if row.cpr is not None and row.name != "random sets"}
    return {
        "CPR": audit.cpr, "CMD": audit.cmd, "half": audit.search.cpr, "null": null and null.cpr,
        "best baseline": max(rows.values(), default=None), "circuit": " ".join(audit.circuit.names),
        "confirmed": len(audit.confirmed), "of": len(audit.interactions),
        "backups": sum(group.confirmed() for group in audit.backups),
        "hold": sum(row.holds for row in audit.contexts), "gap": max(k.measured or 0 for k in audit.completeness),
        "stable": audit.stability[0].nodes if audit.stability else None, "R2": audit.fresh.r2,
        "rank": audit.replacements[0].nodes if audit.replacements else None,
    }  # fmt: skip


def moved(before, after):
    """Figures that differ by more than a hundredth, or at all where they are no figures."""
    for name, old in before.items():
        new = after[name]
        if isinstance(old, float) and isinstance(new, float):
            if abs(old - new) > 0.01:
                yield f"{name} {old:.3f} → {new:.3f}"
        elif old != new:
            yield f"{name} {old} → {new}"


def main(*only):
    opened = list(cases())
    audits = lambda: [figures(sm.audit(*case[:3], budget=case[3], seconds=0.1)) for case in opened]  # noqa: E731
    before = audits()
    for place, names in CONSTANTS.items():
        module = importlib.import_module(f"spex_mech.{place}")
        for name in names:
            if only and name not in only:
                continue
            for factor in (0.5, 2):
                value = getattr(module, name)
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(module, name, type(value)(value * factor))
                    lines = [[*moved(*pair)] for pair in zip(before, audits(), strict=True)]
                told = "; ".join(
                    f"{which}: {', '.join(x)}" for which, x in zip(("card", "wide"), lines, strict=True) if x
                )
                print(f"{name} {value:g} × {factor:g}: {told or 'nothing'}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
