"""`audit_circuit`: a circuit from anywhere (EAP-IG, a paper, a colleague), put to forward passes of this model.

`audit` tests the claims of a run. A circuit by itself claims less: that its nodes are enough, that none is idle, and
that its scores put the components in a good order. The same trials as of a run measure that, with no polynomial.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from spex_mech.ablation.binding import bind
from spex_mech.ablation.replacement import fit_replacement
from spex_mech.ablation.respond import Engine
from spex_mech.ablation.unchanged import refuse_silence, unchanged
from spex_mech.ablation.wrappers import single_precision
from spex_mech.auditing.case import Case, check_audit_budget, open_case
from spex_mech.auditing.circuit_audit import CircuitAudit
from spex_mech.auditing.faithfulness import SIZES, auroc, precision_recall
from spex_mech.auditing.findings import SizeScore
from spex_mech.auditing.knockout_trials import try_idle
from spex_mech.auditing.mib_sizes import ScoredSets, try_scores
from spex_mech.auditing.passes import Ledger, Passes
from spex_mech.auditing.random_sets import RandomSets, try_random
from spex_mech.auditing.verdicts import share_as_good
from spex_mech.circuit.graph import Circuit
from spex_mech.circuit.node_scores import node_scores
from spex_mech.errors import ComponentError, all_problems
from spex_mech.tasks.metrics import resolve
from spex_mech.tasks.task import Task

LEAST_CIRCUIT_BUDGET = 32  # masks: both ends, the circuit, and the sets at all sizes by both rankings


@single_precision()
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
        scores: one number a component, positive where it helps (lowers a KL or a loss); default: the circuit's own
            (`node_scores`).
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
    check_audit_budget(budget, LEAST_CIRCUIT_BUDGET)
    reference = fit_replacement(bound, task, components, replacement, per, seed)
    refuse_silence(unchanged(bound, task, components, reference), components, reference)
    ledger = Ledger(budget)
    case = open_case(components, Passes(Engine(bound, task, components, reference), ledger), ledger, seed)
    metric = resolve(task)
    turn = 1 if metric.larger_is_better else -1  # scores say what helps; trials, what the metric does
    measured = _try_all(case, circuit.names, {name: turn * score for name, score in chosen.items()}, known)
    used = {
        "subject": dict(bound.provenance), "task": task.describe(), "replacement": reference.describe(),
        "seed": seed, "budget": budget, "masks": ledger.spent, "rows": ledger.spent * len(task),
        "scores_from": "given" if scores is not None else circuit.evidence.get("scores_from", "interactions"),
        "spex_mech": version("spex-mech"),
    }  # fmt: skip
    result = CircuitAudit(circuit.names, components.names, metric.unit, **measured, record=used)
    if path is not None:
        result.save(path)
    return result


def _try_all(case: Case, names: tuple[str, ...], scores: Mapping[str, float], known: Collection[str]) -> dict[str, Any]:
    """Every trial in turn; the order decides who has the budget."""
    value, without = _with_and_without(case, names) if names else (None, None)
    faithful = None if value is None else case.faithfulness(value)
    sets = try_scores(case, scores) if scores else None
    sizes = () if sets is None else sets.counts
    null = try_random(case, {*sizes, len(names)}, case.passes.left // 2)
    random = () if null is None or not names else null.faithfulness[len(names)]
    random_cpr, random_cmd = null.areas(sizes) if null is not None and sizes else (None, None)
    return {
        "intact": case.intact, "empty": case.empty, "value": value, "faithfulness": faithful, "without": without,
        "idle": try_idle(case, names), "random_faithfulness": random,
        "random_as_good": share_as_good(random, faithful) if random and faithful is not None else None,
        "sizes": () if sets is None else _rows(case, sets, null),
        "cpr": None if sets is None else sets.cpr, "cmd": None if sets is None else sets.cmd,
        "random_cpr": random_cpr, "random_cmd": random_cmd, **_against(case, names, scores, known),
        "skipped": tuple(case.skipped),
    }  # fmt: skip


def _with_and_without(case: Case, names: tuple[str, ...]) -> tuple[float, float]:
    value, without = case.measured([names, [name for name in case.names if name not in names]])
    return value, without


def _rows(case: Case, sets: ScoredSets, null: RandomSets | None) -> tuple[SizeScore, ...]:
    rows = (SizeScore(*row) for row in zip(SIZES, sets.counts, sets.preserve, sets.help, strict=True))
    if null is None:
        return tuple(rows)
    return tuple(replace(r, random=null.mean(r.count)) if 0 < r.count < len(case.names) else r for r in rows)


def _against(
    case: Case, names: tuple[str, ...], scores: Mapping[str, float], known: Collection[str]
) -> dict[str, float | None]:
    """The scores and the nodes beside those of a known circuit that may be ablated here."""
    inside = [name for name in known if name in case.names]
    if not inside:
        return {"auroc": None, "precision": None, "recall": None}
    precision, recall = precision_recall(names, inside)
    size = {name: abs(score) for name, score in scores.items()}
    return {"auroc": auroc(size, inside), "precision": precision, "recall": recall}


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
