"""`Engines`: the model under the metric and the replacement that a trial asks for; one budget, a journal each."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spex_mech.ablation.replacement import Replacement
from spex_mech.ablation.respond import Engine
from spex_mech.ablation.subject import Subject
from spex_mech.auditing.passes import Ledger, Passes
from spex_mech.measuring.journal import open_journal
from spex_mech.store.discovery import Discovery, whole_key
from spex_mech.tasks.task import Task


@dataclass(frozen=True, eq=False)
class Engines:
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
