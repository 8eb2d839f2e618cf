"""`audit_circuit`: a circuit from anywhere (EAP-IG, a paper, a colleague), put to forward passes of this model.

`audit` tests the claims of a run. A circuit by itself claims less: that its nodes are enough, that none is idle, and
that its scores put the components in a good order. That is what is measured here, with no polynomial in between.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from spex_mech.ablation.binding import bind
from spex_mech.ablation.replacement import fit_replacement
from spex_mech.ablation.respond import Engine
from spex_mech.auditing.faithfulness import (
    SIZES,
    auroc,
    counts,
    faithfulness,
    model_distance,
    performance_ratio,
    precision_recall,
    ranked,
)
from spex_mech.auditing.knockouts import kept
from spex_mech.auditing.passes import Ledger, Passes, seed_of
from spex_mech.circuit.graph import Circuit
from spex_mech.circuit.node_scores import node_scores
from spex_mech.errors import ComponentError, DesignError, all_problems
from spex_mech.files.json import write_whole
from spex_mech.tasks.metrics import resolve
from spex_mech.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd

CIRCUIT_AUDIT_SCHEMA = "spex_mech.circuit_audit/1"
RANDOM_SETS = 8
LEAST_CIRCUIT_BUDGET = 32  # masks: both ends, the circuit, and the sets at all sizes by both rankings


@dataclass(frozen=True)
class SizeScore:
    """The best-scored components of one of MIB's sizes, all others ablated: faithfulness.

    `preserve` keeps those with the largest scores by size, `help` those that help most; `random` is the mean over
    random sets of as many components, None where the budget did not reach or there is only one such set.
    """

    size: float
    count: int
    preserve: float
    help: float
    random: float | None = None


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
        return write_whole(
            path, json.dumps({"schema": CIRCUIT_AUDIT_SCHEMA, **asdict(self)}, indent=1, allow_nan=False) + "\n"
        )

    def __str__(self) -> str:
        share = "no nodes" if self.faithfulness is None else f"{self.faithfulness:.2f} of the behaviour"
        areas = "" if self.cpr is None or self.cmd is None else f"; CPR {self.cpr:.3f}, CMD {self.cmd:.3f}"
        null = "" if self.random_as_good is None else f", {self.random_as_good:.0%} of random sets do as well"
        return (
            f"Circuit of {len(self.names)} of {len(self.components)} components: {share}{null}{areas}; "
            f"{self.record['masks']:,} masks"
        )

    __repr__ = __str__


def audit_circuit(
    circuit: Circuit,
    subject: Any,
    task: Task,
    *,
    scores: Mapping[str, float] | None = None,
    budget: int = 512,
    seed: int = 1,
    replacement: str = "mean",
    per: str | None = None,
    known: Collection[str] = (),
    path: str | Path | None = None,
) -> CircuitAudit:
    """Put a circuit to forward passes: faithfulness, CPR and CMD of its scores, idle nodes, random circuits.

    ```python
    circuit = sm.read_circuit("eap_ig.json")
    print(sm.audit_circuit(circuit, model, task))
    ```

    What is ablated is all of ``circuit.components`` but the set in question; what the circuit did not study (or EAP-IG
    did not score) stays.

    Args:
        circuit: its nodes are the circuit; its components what may be ablated. See `read_circuit`.
        subject: a bound subject, or any model that `bind` takes.
        scores: one number a component, positive where it helps; default: the circuit's own (`node_scores`).
        budget: masks; the forward rows are masks × prompts. What it does not reach is said in ``.skipped``.
        seed: of random sets, and of resampling.
        replacement, per: as in `discover`. EAP-IG's own evaluation patches in activations of corrupt prompts, which is
            "resample" with a task that has them; other replacements give other figures.
        known: names of a known circuit, to compare with.
        path: a file for the result, as JSON.

    Raises:
        ComponentError: components the model does not have, or scores for others than the circuit's.
        DesignError: a budget below 32. ResponseError: a metric that ablating everything does not change.

    Source: MIB (Mueller et al. 2025) for faithfulness, CPR and CMD. MIB counts the input node among those scored and
    makes its circuits connected; here neither is done, so that figures may differ where circuits are small.
    """
    bound = bind(subject)
    task = task.check(bound.shape)
    components = circuit.components.check(bound.shape)
    chosen = _scores(circuit, scores)
    if budget < LEAST_CIRCUIT_BUDGET:
        raise DesignError(
            f"an audit of {budget} masks was asked for; it needs at least {LEAST_CIRCUIT_BUDGET}. Raise the budget."
        )
    reference = fit_replacement(bound, task, components, replacement, per, seed)
    ledger = Ledger(budget)
    trial = _Trial(components.names, Passes(Engine(bound, task, components, reference), ledger), seed)
    measured = _measure(trial, circuit, chosen, known)
    used = {
        "subject": dict(bound.provenance), "task": task.describe(), "replacement": reference.describe(),
        "seed": seed, "budget": budget, "masks": ledger.spent, "rows": ledger.spent * len(task),
        "scores_from": "given" if scores is not None else circuit.evidence.get("scores_from", "interactions"),
        "spex_mech": version("spex-mech"),
    }  # fmt: skip
    result = CircuitAudit(circuit.names, components.names, resolve(task).unit, **measured, record=used)
    if path is not None:
        result.save(path)
    return result


class _Trial:
    """Sets of names in, faithfulness out; the two ends of the metric are measured once."""

    def __init__(self, names: tuple[str, ...], passes: Passes, seed: int) -> None:
        self.names, self.passes, self.seed = names, passes, seed
        self.empty, self.intact = self.values([(), names])
        faithfulness(self.intact, self.empty, self.intact)  # raises where both ends are the same

    def masks(self, sets: Sequence[Collection[str]]) -> Bool[Tensor, "mask component"]:
        place = {name: i for i, name in enumerate(self.names)}
        return kept(len(self.names), [[place[name] for name in names] for names in sets])

    def values(self, sets: Sequence[Collection[str]]) -> list[float]:
        return [float(value) for value in self.passes.means(self.masks(sets))]

    def shares(self, sets: Sequence[Collection[str]]) -> list[float]:
        return [faithfulness(value, self.empty, self.intact) for value in self.values(sets)]

    def fits(self, sets: Sequence[Collection[str]]) -> bool:
        return self.passes.cost(self.masks(sets)) <= self.passes.left

    def orders(self, number: int) -> list[list[str]]:
        """Random orders of all components."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, "random"))
        return [[self.names[i] for i in torch.randperm(len(self.names), generator=generator)] for _ in range(number)]


def _measure(trial: _Trial, circuit: Circuit, scores: Mapping[str, float], known: Collection[str]) -> dict[str, Any]:
    """Every trial in turn; the order decides who has the budget."""
    skipped, inside = list[str](), [name for name in known if name in trial.names]
    found: dict[str, Any] = {"intact": trial.intact, "empty": trial.empty, **_against(circuit, scores, inside)}
    found |= _circuit_itself(trial, circuit.names) | _at_sizes(trial, scores)
    found |= _random_sets(trial, circuit.names, found, skipped)
    found["idle"] = _idle(trial, circuit.names, found["value"], skipped)
    return {**found, "skipped": tuple(skipped)}


def _circuit_itself(trial: _Trial, names: tuple[str, ...]) -> dict[str, Any]:
    if not names:
        return {"value": None, "faithfulness": None, "without": None}
    value, without = trial.values([names, [name for name in trial.names if name not in names]])
    return {"value": value, "faithfulness": faithfulness(value, trial.empty, trial.intact), "without": without}


def _at_sizes(trial: _Trial, scores: Mapping[str, float]) -> dict[str, Any]:
    """CMD takes components by the size of their score, CPR by how much they help, as the benchmark does."""
    if not scores:
        return {"sizes": (), "cpr": None, "cmd": None}
    sign = 1 if trial.intact >= trial.empty else -1
    helping = ranked({name: sign * score for name, score in scores.items()}, absolute=False)
    largest, sizes = ranked(scores, absolute=True), counts(len(scores))
    f = trial.shares([order[:count] for order in (largest, helping) for count in sizes])
    preserve, help_ = f[: len(sizes)], f[len(sizes) :]
    rows = tuple(SizeScore(*row) for row in zip(SIZES, sizes, preserve, help_, strict=True))
    return {"sizes": rows, "cpr": performance_ratio(help_), "cmd": model_distance(preserve)}


def _random_sets(trial: _Trial, names: tuple[str, ...], found: Mapping[str, Any], skipped: list[str]) -> dict[str, Any]:
    """Random sets as large as the circuit, and random orders at all sizes, as far as half of what is left reaches."""
    rows: tuple[SizeScore, ...] = found["sizes"]
    different = len({row.count for row in rows} | {len(names)} - {0, len(trial.names)})
    number = min(RANDOM_SETS, trial.passes.left // 2 // max(1, different))
    nothing = {"random_faithfulness": (), "random_as_good": None, "random_cpr": None, "random_cmd": None}
    if number < 2:
        skipped.append("random sets of the same size")
        return nothing
    orders = trial.orders(number)
    null = trial.shares([order[: len(names)] for order in orders]) if names else []
    ours = found["faithfulness"]
    good = sum(abs(1 - f) <= abs(1 - ours) for f in null) / len(null) if null else None
    result = {**nothing, "random_faithfulness": tuple(null), "random_as_good": good}
    if not rows:
        return result
    paths = [trial.shares([order[: row.count] for row in rows]) for order in orders]
    beside = tuple(
        SizeScore(row.size, row.count, row.preserve, row.help, sum(path[i] for path in paths) / number)
        if 0 < row.count < len(trial.names) else row
        for i, row in enumerate(rows)
    )  # fmt: skip
    areas = {f"random_{name}": sum(map(area, paths)) / number for name, area in
             (("cpr", performance_ratio), ("cmd", model_distance))}  # fmt: skip
    return {**result, **areas, "sizes": beside}


def _idle(trial: _Trial, names: tuple[str, ...], value: float | None, skipped: list[str]) -> dict[str, float]:
    """What every node adds to the others."""
    affordable = names[: trial.passes.left]
    if len(affordable) < len(names):
        skipped.append(f"whether {len(names) - len(affordable):,} nodes are idle")
    if value is None or not affordable:
        return {}
    left_out = trial.values([[other for other in names if other != name] for name in affordable])
    return {name: value - rest for name, rest in zip(affordable, left_out, strict=True)}


def _against(circuit: Circuit, scores: Mapping[str, float], known: Collection[str]) -> dict[str, Any]:
    if not known:
        return {"auroc": None, "precision": None, "recall": None}
    precision, recall = precision_recall(circuit.names, known)
    size = {name: abs(score) for name, score in scores.items()}
    return {"auroc": auroc(size, known), "precision": precision, "recall": recall}


def _scores(circuit: Circuit, scores: Mapping[str, float] | None) -> dict[str, float]:
    """A number for every component; none at all where the circuit says nothing of them."""
    if scores is None:
        return node_scores(circuit) if circuit.interactions or circuit.evidence.get("scores") else {}
    problems = [f"{name} has no score" for name in circuit.components.names if name not in scores]
    problems += [f"{name} has a score, and is no component of it" for name in scores if name not in circuit.components]
    problems += [f"{name} has the score {score}" for name, score in scores.items() if not abs(score) < float("inf")]
    if problems:
        raise ComponentError(all_problems("these scores do not fit the circuit:", problems))
    return dict(scores)
