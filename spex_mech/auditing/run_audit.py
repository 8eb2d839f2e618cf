"""`Audit`: what fresh forward passes said of a run; as one object, a table, and ``audit.json``."""

import html
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from spex_mech.auditing.findings import (
    BackupCheck,
    Confirmation,
    ContextRow,
    Fresh,
    Knockout,
    Known,
    RankingRow,
    ReplacementRow,
    Search,
    SizeRow,
    StabilityRow,
    Verified,
)
from spex_mech.files.json import json_text, write_whole
from spex_mech.files.records import plain
from spex_mech.files.schema import Open, between, checked, read_as

if TYPE_CHECKING:
    import pandas as pd

AUDIT_SCHEMA = "spex_mech.audit/1"


@dataclass(frozen=True)
class _AuditRecord(Open):
    """What of an audit's record is read again, with its types."""

    masks: Annotated[int, between(0, 2**53)]
    rows: Annotated[int, between(0, 2**53)]
    budget: Annotated[int, between(0, 2**53)]


@dataclass(frozen=True)
class Audit:
    """The evidence for a run, from masks that had no part in finding it.

    Circuits are the exception: they are searched for here, on masks and prompts that also report (see `Search`).

    Attributes:
        components, unit: as the run's; intact, empty: the metric with nothing and with everything ablated.
        fresh: held-out R² on masks drawn anew.
        circuit: the smallest set found whose faithfulness is within a tenth of 1 (or of the size asked for).
        found: all nodes of the run's circuit.
        sizes, cpr, cmd: the selected sets at MIB's sizes; rankings: ours first, then the baselines and random sets.
        completeness: knockouts with the largest predicted gaps, worst first; minimality: one for every component.
        interactions: each of order 2 and more, confirmed by a factorial; backups: groups, likewise.
        known: against a known circuit, where one was given.
        skipped: what the budget did not reach, or the task does not allow;
        cautions: what keeps figures from being read as usual; in words.
        record: how it came to be.
        search: for the circuits; stability: over masks and prompts; replacements: other ones than the run's; contexts:
            the strongest interactions where others are kept more, or less, often.
    """

    components: tuple[str, ...]
    unit: str
    intact: float
    empty: float
    fresh: Fresh
    circuit: Verified
    found: Verified
    sizes: tuple[SizeRow, ...]
    cpr: float
    cmd: float
    rankings: tuple[RankingRow, ...]
    completeness: tuple[Knockout, ...]
    minimality: tuple[Knockout, ...]
    interactions: tuple[Confirmation, ...]
    backups: tuple[BackupCheck, ...]
    known: Known | None
    skipped: tuple[str, ...]
    cautions: tuple[str, ...]
    record: Mapping[str, Any]
    search: Search | None = None
    stability: tuple[StabilityRow, ...] = ()
    replacements: tuple[ReplacementRow, ...] = ()
    contexts: tuple[ContextRow, ...] = ()

    @property
    def confirmed(self) -> tuple[Confirmation, ...]:
        """The interactions that are there at a false discovery rate of 5 %, with the sign that was claimed."""
        return tuple(check for check in self.interactions if check.confirmed())

    def interactions_frame(self) -> "pd.DataFrame":
        """One row an interaction: claimed, predicted, estimate ± stderr, contexts, p, q, knockout, confirmed."""
        import pandas as pd

        names = [field.name for field in fields(Confirmation)]
        rows = [[*(getattr(check, name) for name in names), check.confirmed()] for check in self.interactions]
        return pd.DataFrame(rows, columns=[*names, "confirmed"])

    def sizes_frame(self) -> "pd.DataFrame":
        """One row a size: faithfulness of the sets that preserve and that help, measured, and of random sets."""
        import pandas as pd

        rows = [
            (r.size, r.count, r.preserve.faithfulness, r.help.faithfulness, r.random_mean, r.random_std)
            for r in self.sizes
        ]
        return pd.DataFrame(rows, columns=["size", "count", "preserve", "help", "random_mean", "random_std"])

    def rankings_frame(self) -> "pd.DataFrame":
        """One row a ranking."""
        import pandas as pd

        names = [field.name for field in fields(RankingRow)]
        return pd.DataFrame([[getattr(row, name) for name in names] for row in self.rankings], columns=names)

    def save(self, path: str | Path) -> Path:
        """Write ``audit.json``, whole or not at all; `load_audit` reads it back."""
        return write_whole(path, json_text({"schema": AUDIT_SCHEMA, **plain(self)}))

    def _repr_html_(self) -> str:
        """The summary, then rankings and confirmed interactions as tables; every text is escaped."""
        columns = ["components", "claimed", "estimate", "stderr", "q_value", "confirmed"]
        frames = [("Circuits at MIB's ten sizes", self.rankings_frame().drop(columns="auroc_over_sizes"))]
        if self.interactions:
            joined = self.interactions_frame()[columns]
            joined["components"] = [" × ".join(names) for names in joined["components"]]
            frames.append(("Interactions, measured again", joined))
        tables = (
            f"<p><b>{html.escape(title)}</b></p>{frame.to_html(index=False, na_rep='', float_format='{:.4g}'.format)}"
            for title, frame in frames
        )
        told = [str(self), *(f"caution: {words}" for words in self.cautions)]
        return "".join(f"<p>{html.escape(words)}</p>" for words in told) + "".join(tables)

    def __str__(self) -> str:
        r2 = "" if self.fresh.r2 is None else f"R² {self.fresh.r2:.3f} on {self.fresh.masks} fresh masks; "
        return (
            f"Audit: {r2}{len(self.circuit.names)} of {len(self.components)} components give "
            f"{self.circuit.faithfulness:.2f} of the behaviour; {len(self.confirmed)} of {len(self.interactions)} "
            f"interactions confirmed; CPR {self.cpr:.3f}, CMD {self.cmd:.3f}; {self.record['masks']:,} masks"
        )

    __repr__ = __str__


def load_audit(path: str | Path) -> Audit:
    """Read ``audit.json``; raises one `FormatError`, all problems in it, on anything that is not a whole audit."""
    found = read_as(Audit, path, AUDIT_SCHEMA, "a sound audit")
    checked(_AuditRecord, dict(found.record), f"{path} is not a sound audit:")
    return found
