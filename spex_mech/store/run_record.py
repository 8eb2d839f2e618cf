"""What ``run.json`` must hold for a run to be read: the fields that are read again, with their types."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from spex_mech.errors import FormatError
from spex_mech.files.schema import Open, between
from spex_mech.walsh.decoding import Outcome

Count = Annotated[int, between(0, 2**53)]


@dataclass(frozen=True)
class SubjectRecord(Open):
    model: str | None = None
    parameters: Count | None = None
    backend: str | None = None


@dataclass(frozen=True)
class TaskRecord(Open):
    metric: str | None = None
    features: Mapping[str, Any] | None = None
    data: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ReplacementRecord(Open):
    kind: str | None = None
    per: str | None = None
    seed: int | None = None
    assumes: str | None = None


@dataclass(frozen=True)
class DesignRecord(Open):
    kind: str | None = None
    n_masks: Count | None = None
    keep_probs: tuple[float, ...] = ()
    repeats: Count | None = None
    again: Count = 0


@dataclass(frozen=True)
class LinkRecord(Open):
    asked: str = "auto"
    heldout_r2_without: float | None = None


@dataclass(frozen=True)
class RawRecord(Open):
    """How the same masks were decoded without the link."""

    outcome: str
    heldout_r2: float | None

    def __post_init__(self) -> None:
        _known_outcome(self.outcome)


@dataclass(frozen=True)
class StatsRecord(Open):
    heldout_r2: float | None
    masks_heldout: Count | None = None
    masks_judged: Count | None = None
    heldout_r2_stderr: float | None = None
    link: LinkRecord | None = None
    without_link: RawRecord | None = None


@dataclass(frozen=True)
class DecoderRecord(Open):
    stats: StatsRecord
    name: str | None = None


@dataclass(frozen=True)
class InferenceRecord(Open):
    method: str = "unknown"
    masks: Count | None = None
    folds: Count = 0


@dataclass(frozen=True)
class StabilityRecord(Open):
    jaccard: float | None = None
    node_jaccard: float | None = None
    resamples: Count | None = None
    method: str = "refitted"


@dataclass(frozen=True)
class CertaintyRecord(Open):
    inference: InferenceRecord | None = None
    stability: StabilityRecord | None = None


@dataclass(frozen=True)
class HeldoutRecord(Open):
    predicted: tuple[float, ...]
    measured: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.predicted) != len(self.measured):
            raise FormatError(f"{len(self.predicted):,} predicted and {len(self.measured):,} measured values")


@dataclass(frozen=True)
class PilotRecord(Open):
    keep_probs: tuple[float, ...]
    reason: str


@dataclass(frozen=True)
class CrossingRecord(Open):
    """How many of the prompts each mask met, and why."""

    masks: Count
    prompts: Count
    per_mask: Count
    reason: str


@dataclass(frozen=True)
class RunRecord(Open):
    """The record of a run, as far as it is read again."""

    decoder: DecoderRecord
    outcome: str
    subject: SubjectRecord = SubjectRecord()
    task: TaskRecord = TaskRecord()
    replacement: ReplacementRecord = ReplacementRecord()
    design: DesignRecord = DesignRecord()
    certainty: CertaintyRecord | None = None
    heldout: HeldoutRecord | None = None
    heldout_r2: float | None = None
    pilot: PilotRecord | None = None
    crossing: CrossingRecord | None = None
    masks: Count = 0
    rows: Count = 0
    chunks: Count | None = None
    resumed_chunks: Count = 0
    resumed_masks: Count = 0
    seed: int = 0
    unit: str | None = None
    seconds: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        _known_outcome(self.outcome)


def _known_outcome(name: str) -> None:
    if name not in Outcome.__members__:
        raise FormatError(f"outcome {name[:40]!r} is none of {', '.join(Outcome.__members__)}")
