"""`Dossier`: everything the report says, as plain values. Who assembles it knows runs and audits; who shows it, not."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from spex_mech.circuit.graph import Circuit
from spex_mech.errors import SpexMechError

Cell = str | float | int | bool | None


@dataclass(frozen=True)
class Fact:
    """One line of a list: what, its value, and a remark."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Check:
    """An interaction measured again, in the metric's unit."""

    estimate: float
    stderr: float
    q_value: float
    confirmed: bool


@dataclass(frozen=True)
class Points:
    """Predicted beside measured values, a point a mask. `r2` is over `masks` masks, of which these are the first."""

    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    r2: float | None
    masks: int
    source: str

    def __post_init__(self) -> None:
        if len(self.predicted) != len(self.measured):
            raise SpexMechError(
                f"{len(self.predicted):,} predicted and {len(self.measured):,} measured values were given; there is "
                "one of each for every mask. The record of this run or audit is damaged."
            )


@dataclass(frozen=True)
class SizePoint:
    """Faithfulness, measured, of circuits that keep `count` components; random ones as the null."""

    count: int
    preserve: float
    help: float
    random_mean: float | None = None
    random_std: float | None = None


@dataclass(frozen=True)
class Sheet:
    """A table of evidence with its reading. Cells are text, numbers, yes or no, or None where nothing is known."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class PromptText:
    """A prompt in parts: their texts and names, and what lies around them, one gap more than there are parts."""

    parts: tuple[str, ...]
    gaps: tuple[str, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Dossier:
    """What a report shows; what is empty or None is left out.

    Attributes:
        title, summary: what was studied, in the words of whoever set it up.
        answer: sentences, plain words; headline: the few figures that stand beside them.
        warnings: what a reader must know before believing any of it.
        question: what was asked; prompts: examples; prompt_count: how many there were.
        circuit: what was found; checks: its interactions measured again, by components.
        passage: the prompt, where the components are parts of one.
        points, sizes, sheets: the evidence; confidence: sentences on errors and resampling.
        limits: what this does not show.
        provenance: what it was made from; commands: what makes it again.
    """

    title: str
    circuit: Circuit
    answer: tuple[str, ...]
    summary: str = ""
    headline: tuple[Fact, ...] = ()
    warnings: tuple[str, ...] = ()
    question: tuple[Fact, ...] = ()
    prompts: tuple[str, ...] = ()
    prompt_count: int = 0
    checks: Mapping[tuple[str, ...], Check] = field(default_factory=dict)
    points: Points | None = None
    sizes: tuple[SizePoint, ...] = ()
    confidence: tuple[str, ...] = ()
    sheets: tuple[Sheet, ...] = ()
    limits: tuple[str, ...] = ()
    provenance: tuple[Fact, ...] = ()
    commands: tuple[str, ...] = ()
    passage: PromptText | None = None
