"""What an audit compares with: other rankings, other replacements, another metric; each by passes of its own."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from spex_mech.ablation.replacement import Replacement, fit_replacement
from spex_mech.ablation.respond import Engine
from spex_mech.ablation.subject import Subject
from spex_mech.auditing.baselines import Ranking, order_one, pair_ablation, single_ablation
from spex_mech.auditing.findings import RankingRow, ReplacementRow, Verified
from spex_mech.auditing.passes import Ledger, Passes
from spex_mech.auditing.sensitivity import rows_for, try_replacement
from spex_mech.auditing.verification import Case, fresh_masks, try_ranking
from spex_mech.errors import SpexMechError
from spex_mech.measuring.journal import open_journal
from spex_mech.store.discovery import Discovery, whole_key
from spex_mech.store.responses import Responses
from spex_mech.tasks.task import Task


@dataclass(frozen=True, eq=False)
class Desk:
    """Where passes of different engines come from; all count against one ledger, each has its own journal."""

    found: Discovery
    subject: Subject
    task: Task
    reference: Replacement
    ledger: Ledger
    record: Mapping[str, Any]
    out: str | Path | None
    journals: ExitStack

    def passes(self, name: str, *, metric: str | None = None, reference: Replacement | None = None) -> Passes:
        """Passes by the run's metric and replacement, or others."""
        task = self.task if metric is None else self.task.with_metric(metric)
        chosen = reference or self.reference
        engine = Engine(self.subject, task, self.found.components, chosen)
        key = {**self.record, "use": name, "metric": metric, "replacement": chosen.describe()}
        return Passes(engine, self.ledger, self.journals.enter_context(_journal(self.out, key, self.found)))


@contextmanager
def _journal(out: str | Path | None, record: Mapping[str, Any], found: Discovery) -> Iterator[Any]:
    """A journal of its own for every audit that differs in anything, inside the run folder; None without a folder."""
    if out is None:
        yield None
        return
    key = whole_key(record, found.components)
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    with open_journal(Path(out) / "audit" / name, key) as journal:
        yield journal


def try_baselines(
    case: Case, desk: Desk, known: Collection[str], skipped: list[str], searched: int
) -> list[RankingRow]:
    """Rankings that do without interactions, or with pairs only, each as far as the budget goes.

    The regression has the run's masks and as many of the fresh ones as our search had.
    """
    n, left = len(case.names), case.ledger
    rankings = [order_one(_with_fresh(case, searched), case.seed)]
    rows = [try_ranking(case, rankings[0], known)]
    if n + 1 > left.share(0.2):
        skipped.append(f"single ablation and what builds on it ({n:,} masks)")
        return rows
    rankings.append(single_ablation(case.passes, case.names))
    rows.append(try_ranking(case, rankings[-1], known))
    if desk.task.corrupt is not None and desk.reference.kind != "resample":
        rows += _patching(case, desk, known, skipped)
    pairs = pair_ablation(case.passes, rankings[1], left.share(0.1))
    if pairs is None:
        skipped.append("pair ablation")
        return rows
    return [*rows, try_ranking(case, pairs, known)]


def _with_fresh(case: Case, number: int) -> Responses:
    """The run's responses with some of the masks drawn anew."""
    run = case.found.responses
    if run.provenance.get("design", {}).get("kind") == "complete":
        return run
    keep = fresh_masks(case, number)
    return replace(
        run, keep=torch.cat([run.keep.cpu(), keep]),
        values=torch.cat([run.values.cpu(), case.passes.values(keep).to(run.values.dtype).cpu()]),
    )  # fmt: skip


def try_replacements(case: Case, desk: Desk, skipped: list[str]) -> tuple[ReplacementRow, ...]:
    """The other replacements on masks of the run, as far as a tenth of the budget goes; one that the task does not
    allow is left out."""
    kinds = [kind for kind in ("zero", "mean", "resample") if kind != desk.reference.kind]
    number = min(len(case.found.responses), case.ledger.share(0.1) // len(kinds) - 2)
    if number < 16:
        skipped.append("other replacements")
        return ()
    rows, found = rows_for(case, number), list[ReplacementRow]()
    for kind in kinds:
        try:
            other = fit_replacement(desk.subject, desk.task, case.found.components, kind, seed=case.seed)
        except SpexMechError as error:
            skipped.append(f"replacement {kind!r}: {str(error).split('. ')[0]}")
            continue
        found.append(try_replacement(case, kind, desk.passes(f"replacement {kind}", reference=other), rows))
    return tuple(found)


def _patching(case: Case, desk: Desk, known: Collection[str], skipped: list[str]) -> list[RankingRow]:
    if len(case.names) + 1 > case.ledger.share(0.2):
        skipped.append("activation patching")
        return []
    corrupt = fit_replacement(desk.subject, desk.task, case.found.components, "resample", seed=case.seed)
    ranking: Ranking = single_ablation(desk.passes("patching", reference=corrupt), case.names, "activation patching")
    return [try_ranking(case, ranking, known)]


def add_kl(
    case: Case, desk: Desk, circuit: Verified, sizes: list[Any], skipped: list[str]
) -> tuple[Verified, list[Any]]:
    """KL(intact ‖ circuit) of the audited circuit and of the preserving sets."""
    keep = case.masks([circuit.names, *(row.preserve.names for row in sizes)])
    if len(keep.unique(dim=0)) > case.ledger.left:
        skipped.append("KL of the chosen circuits")
        return circuit, sizes
    kl = desk.passes("kl", metric="kl").means(keep).tolist()
    rows = [replace(row, preserve=replace(row.preserve, kl=value)) for row, value in zip(sizes, kl[1:], strict=True)]
    return replace(circuit, kl=kl[0]), rows
