"""What would a user do without us, at the same budget? Rankings by a line, single ablation, patching and pairs."""

from collections.abc import Collection
from dataclasses import replace

import torch

from spex_mech.ablation.replacement import fit_replacement
from spex_mech.auditing.audit_engines import Engines
from spex_mech.auditing.case import RunCase
from spex_mech.auditing.findings import RankingRow
from spex_mech.auditing.fresh_masks import fresh_masks
from spex_mech.auditing.mib_sizes import try_ranking
from spex_mech.auditing.rankings import Ranking, order_one, pair_ablation, single_ablation
from spex_mech.store.responses import Responses

SINGLES, PAIRS = 0.2, 0.1  # of the budget, at most: single ablation (and patching), and pairs


def try_baselines(case: RunCase, engines: Engines, known: Collection[str], searched: int) -> list[RankingRow]:
    """Rankings that do without interactions, or with pairs only, each as far as the budget goes.

    The regression has the run's masks and as many of the fresh ones as our search had.
    """
    n, part = len(case.names), case.ledger.part
    rankings = [order_one(_with_fresh(case, searched), case.seed)]
    rows = [try_ranking(case, rankings[0], known)]
    if n + 1 > part(SINGLES):
        case.skipped.append(f"single ablation and what builds on it ({n:,} masks)")
        return rows
    rankings.append(single_ablation(case.passes, case.names))
    rows.append(try_ranking(case, rankings[-1], known))
    if engines.task.corrupt is not None and engines.reference.kind != "resample":
        rows += _patching(case, engines, known)
    pairs = pair_ablation(case.passes, rankings[1], part(PAIRS))
    if pairs is None:
        case.skipped.append("pair ablation")
        return rows
    return [*rows, try_ranking(case, pairs, known)]


def _with_fresh(case: RunCase, number: int) -> Responses:
    """The run's responses with some of the masks drawn anew; as means, where the run's masks met some prompts each."""
    run = case.found.responses
    if case.has_every_mask:
        return run
    keep = fresh_masks(case, number)
    whole, fresh = run.met is None, case.passes.values(keep)
    ours = run.values.cpu() if whole else run.mean[:, None].to(run.values.dtype).cpu()
    values = torch.cat([ours, (fresh if whole else fresh.double().mean(1, keepdim=True)).to(ours.dtype).cpu()])
    return replace(run, keep=torch.cat([run.keep.cpu(), keep]), values=values, met=None)


def _patching(case: RunCase, engines: Engines, known: Collection[str]) -> list[RankingRow]:
    if len(case.names) + 1 > case.ledger.part(SINGLES):
        case.skipped.append("activation patching")
        return []
    corrupt = fit_replacement(engines.subject, engines.task, case.components, "resample", seed=case.seed)
    ranking: Ranking = single_ablation(engines.passes("patching", reference=corrupt), case.names, "activation patching")
    return [try_ranking(case, ranking, known)]
