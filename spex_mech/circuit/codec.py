"""The circuit's own file: versioned JSON, lossless, the same bytes for the same circuit; `load_circuit` reads it."""

from spex_mech.circuit.nodes import CircuitView
from spex_mech.errors import FormatError, all_problems
from spex_mech.files.json import json_text, plain_problems, sorted_keys
from spex_mech.files.records import plain

CIRCUIT_SCHEMA = "spex_mech.circuit/1"
HEADER = ("unit", "basis", "keep_prob", "link", "baseline")


def circuit_json(circuit: CircuitView) -> str:
    """The file's text: keys and terms in a fixed order, every float by its shortest exact digits, unknown as null.

    Raises `FormatError` where the evidence is not plain JSON data (`records.plain` makes it so).
    """
    problems = plain_problems(circuit.evidence, "evidence")
    if problems:
        raise FormatError(all_problems("the evidence of this circuit cannot be kept in a file:", problems))
    return json_text({
        "schema": CIRCUIT_SCHEMA,
        **{key: getattr(circuit, key) for key in HEADER},
        "components": list(circuit.components.names),
        "nodes": [{"component": n.name, "main": n.main, "stderr": n.stderr, "role": n.role} for n in circuit.nodes],
        "interactions": [plain(interaction) for interaction in circuit.interactions],
        "energy": {str(order): circuit.energy[order] for order in sorted(circuit.energy)},
        "evidence": sorted_keys(circuit.evidence),
    })  # fmt: skip
