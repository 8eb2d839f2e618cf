"""`CircuitAudit`: what fresh forward passes said of a circuit from anywhere (EAP-IG, a paper, a colleague)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spex_mech.auditing.findings import SizeScore
from spex_mech.files.json import json_text, write_whole
from spex_mech.files.records import plain

if TYPE_CHECKING:
    import pandas as pd

CIRCUIT_AUDIT_SCHEMA = "spex_mech.circuit_audit/1"


@dataclass(frozen=True)
class CircuitAudit:
    """What forward passes say of a circuit. Values are in the metric's unit, means over prompts.

    Attributes:
        names: the circuit's nodes; components: all that may be ablated.
        intact, empty: the metric with nothing and with all components ablated.
        value, faithfulness: with all but the circuit ablated. `without`: with the circuit alone ablated. None where the
            circuit has no nodes.
        idle: for every node, ``m(C) - m(C without it)``, as far as the budget reached: near 0, the node is idle here.
        random_faithfulness: of random sets as large as the circuit; `random_as_good`: the share of them at least as
            near to 1.
        sizes, cpr, cmd: the scores' sets at MIB's ten sizes, and the areas; none where the circuit has no scores.
        random_cpr, random_cmd: the same areas of random orders, their mean.
        auroc, precision, recall: against a known circuit: of the scores, and of the nodes.
        skipped: what the budget did not reach, in words.
        record: how it came to be.
    """

    names: tuple[str, ...]
    components: tuple[str, ...]
    unit: str
    intact: float
    empty: float
    value: float | None
    faithfulness: float | None
    without: float | None
    idle: Mapping[str, float]
    random_faithfulness: tuple[float, ...]
    random_as_good: float | None
    sizes: tuple[SizeScore, ...]
    cpr: float | None
    cmd: float | None
    random_cpr: float | None
    random_cmd: float | None
    auroc: float | None
    precision: float | None
    recall: float | None
    skipped: tuple[str, ...]
    record: Mapping[str, Any]

    def sizes_frame(self) -> "pd.DataFrame":
        """One row a size: count, and faithfulness of the preserving, the helping and random sets."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.sizes])

    def save(self, path: str | Path) -> Path:
        """Write it as JSON, whole or not at all."""
        return write_whole(path, json_text({"schema": CIRCUIT_AUDIT_SCHEMA, **plain(self)}))

    def __str__(self) -> str:
        share = "no nodes" if self.faithfulness is None else f"{self.faithfulness:.2f} of the behaviour"
        areas = "" if self.cpr is None or self.cmd is None else f"; CPR {self.cpr:.3f}, CMD {self.cmd:.3f}"
        null = "" if self.random_as_good is None else f", {self.random_as_good:.0%} of random sets do as well"
        return (
            f"Circuit of {len(self.names)} of {len(self.components)} components: {share}{null}{areas}; "
            f"{self.record['masks']:,} masks"
        )

    __repr__ = __str__
