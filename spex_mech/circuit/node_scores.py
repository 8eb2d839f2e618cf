"""How much of a circuit is in each component: strengths of nodes, with and without a sign."""

import math
from collections.abc import Mapping

from spex_mech.circuit.nodes import CircuitView
from spex_mech.files.json import is_number


def node_scores(circuit: CircuitView) -> dict[str, float]:
    """A score for every studied component: how far the metric moves with it, negative where keeping it lowers it.

    ``± √Σ_{S∋i} F(S)²`` over the circuit's interactions, the sign that of the main effect (plus where none was found);
    0 for components in no interaction. A circuit that was read from EAP-IG or MIB keeps the scores it came with.

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
    return {name: math.copysign(value, mains.get(name, 1.0)) for name, value in strengths.items()}


def component_strengths(circuit: CircuitView) -> dict[str, float]:
    """√Σ F(S)² over the interactions S of each node: how far the metric moves with it."""
    energy = dict.fromkeys(circuit.names, 0.0)
    for interaction in circuit.interactions:
        for name in interaction.components:
            energy[name] += interaction.coefficient**2
    return {name: math.sqrt(value) for name, value in energy.items()}
