"""How much of a circuit is in each component: strengths of nodes, with and without a sign."""

import math
from collections.abc import Mapping
from typing import Any

from spex_mech.circuit.nodes import CircuitView
from spex_mech.files.json import is_number
from spex_mech.names import SMALLER_IS_BETTER


def node_scores(circuit: CircuitView) -> dict[str, float]:
    """A score for every studied component: how far the metric moves with it, positive where keeping it helps.

    ``± √Σ_{S∋i} F(S)²`` over the circuit's interactions, the sign that of the main effect (plus where none was found),
    turned where a smaller metric is better (KL, loss); 0 for components in no interaction. A circuit that was read from
    EAP-IG or MIB keeps the scores it came with.

    >>> from spex_mech.circuit.graph import Circuit
    >>> from spex_mech.components import ComponentSet
    >>> node_scores(Circuit(ComponentSet.of("a0.h0"), (), (), "logit"))
    {'a0.h0': 0.0}
    """
    given = circuit.evidence.get("scores")
    if isinstance(given, Mapping) and all(map(is_number, given.values())):
        return {name: float(given[name]) for name in circuit.components.names if name in given}
    mains = {i.components[0]: i.coefficient for i in circuit.interactions if i.order == 1}
    strengths = dict.fromkeys(circuit.components.names, 0.0) | component_strengths(circuit)
    better = direction(circuit.evidence)
    return {name: math.copysign(v, better * mains[name] if name in mains else 1.0) for name, v in strengths.items()}


def direction(evidence: Mapping[str, Any]) -> int:
    """+1 where a larger metric is better, -1 where a smaller one is, as a circuit's evidence or a run's record says.

    >>> direction({"task": {"metric": "kl"}}), direction({"larger_is_better": True}), direction({})
    (-1, 1, 1)
    """
    task = evidence.get("task")
    told = [record.get("larger_is_better") for record in (evidence, task) if isinstance(record, Mapping)]
    known = next((one for one in told if isinstance(one, bool)), None)
    if known is None:  # as earlier versions wrote them
        own = isinstance(task, Mapping) and "metric_sha256" not in task
        known = not (own and isinstance(task, Mapping) and task.get("metric") in SMALLER_IS_BETTER)
    return 1 if known else -1


def component_strengths(circuit: CircuitView) -> dict[str, float]:
    """√Σ F(S)² over the interactions S of each node: how far the metric moves with it."""
    energy = dict.fromkeys(circuit.names, 0.0)
    for interaction in circuit.interactions:
        for name in interaction.components:
            energy[name] += interaction.coefficient**2
    return {name: math.sqrt(value) for name, value in energy.items()}
