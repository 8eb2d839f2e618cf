"""`node_scores`: one number a component, from the interactions it is in."""

import math
from collections.abc import Mapping

from spex_mech.circuit.graph import Circuit
from spex_mech.files.json import is_number


def node_scores(circuit: Circuit) -> dict[str, float]:
    """A score for every studied component: how far the metric moves with it, negative where keeping it lowers it.

    ``± √Σ_{S∋i} F(S)²`` over the circuit's interactions, the sign that of the main effect (plus where none was found);
    0 for components in no interaction. A circuit that was read from EAP-IG or MIB keeps the scores it came with.

    >>> from spex_mech.components.sets import ComponentSet
    >>> node_scores(Circuit(ComponentSet.of("a0.h0"), (), (), "logit"))
    {'a0.h0': 0.0}
    """
    given = circuit.evidence.get("scores")
    if isinstance(given, Mapping) and all(map(is_number, given.values())):
        return {name: float(given[name]) for name in circuit.components.names if name in given}
    energy, sign = dict.fromkeys(circuit.components.names, 0.0), dict[str, float]()
    for interaction in circuit.interactions:
        for name in interaction.components:
            energy[name] += interaction.coefficient**2
        if interaction.order == 1:
            sign[interaction.components[0]] = interaction.coefficient
    return {name: math.copysign(math.sqrt(value), sign.get(name, 1.0)) for name, value in energy.items()}
