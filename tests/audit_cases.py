"""Cases for the trials of an audit: small planted models, whose every mask can be computed by hand."""

import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.ablation.replacement import fit_replacement
from spex_mech.ablation.respond import Engine
from spex_mech.api.audit import _replacement_of
from spex_mech.auditing.case import open_case, open_run_case
from spex_mech.auditing.passes import Ledger, Passes

EIGHT = planted.PlantedLayout(n_layers=2, n_heads=4, d_mlp=0)


def case_of(subject, budget=10_000, seed=1, n_prompts=2):
    """A case without a run: the heads and neurons of a planted subject."""
    bound, components = sm.bind(subject), sm.heads(subject) + sm.neurons(subject)
    task = planted.task(n_prompts).check(bound.shape)
    engine = Engine(bound, task, components, fit_replacement(bound, task, components, "mean", None, 0))
    ledger = Ledger(budget)
    return open_case(components, Passes(engine, ledger), ledger, seed)


def run_case_of(subject, n_prompts=2, allowance=10_000, **options):
    """A case of a run, by default with a line for a polynomial."""
    task = planted.task(n_prompts)
    options = {"budget": 100, "keep_prob": 0.7, "decoder": "linear", "link": "identity"} | options
    found = sm.discover(subject, task, sm.heads(subject) + sm.neurons(subject), **options)
    bound = sm.bind(subject)
    task, ledger = task.check(bound.shape), Ledger(allowance)
    passes = Passes(Engine(bound, task, found.components, _replacement_of(found, bound, task)), ledger)
    return open_run_case(found, passes, ledger, 1)
