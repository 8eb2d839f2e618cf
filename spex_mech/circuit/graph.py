"""`Circuit`: components as nodes, and the signed, weighted sets of them that act together as hyperedges."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spex_mech.circuit.codec import CIRCUIT_SCHEMA, circuit_json
from spex_mech.circuit.drawing import notebook_html
from spex_mech.circuit.nodes import Interaction, Node
from spex_mech.components import ComponentSet
from spex_mech.errors import SpexMechError, all_problems, printable
from spex_mech.files.json import is_number, write_whole
from spex_mech.files.schema import read_as
from spex_mech.files.text import escaped
from spex_mech.names import KINDS, LINK_NAMES

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("components", "order", "coefficient", "stderr", "q_value", "stability", "kind", "knockout")
_LARGEST = 1e100  # of a number in a circuit: sums of squares stay far from where float64 ends


@dataclass(frozen=True, repr=False)
class Circuit:
    """What was found: f(keep) ≈ baseline + Σ_S coefficient(S) Π_{i∈S} φ(keep_i) over the interactions S.

    Attributes:
        components: everything that was studied, found or not.
        nodes: the components that take part; kept in the order of `components`, however they are given.
        interactions: the terms that passed, order 1 included; kept strongest first, however they are given.
        unit: of every coefficient (logit, nat, probability).
        basis: "walsh" or "biased"; keep_prob: the keep-probability of the basis, for "biased" only.
        link: "identity": the polynomial is the metric itself. Else it is latent, and an increasing function of this
            family leads from it to the metric; its parameters are in ``evidence["link"]``, and `unit` says "(latent)".
        baseline: the constant term; None where it was not recovered.
        energy: Σ F(S)² by order over the whole polynomial, also the terms that did not pass, in unit².
        evidence: how the circuit came to be, as plain JSON data: heldout_r2, masks_fitted, decoder, outcome, subject,
            task, replacement, design …

    Raises:
        SpexMechError: nodes, interactions and components that do not fit together, all problems at once.
    """

    components: ComponentSet
    nodes: tuple[Node, ...]
    interactions: tuple[Interaction, ...]
    unit: str
    basis: str = "walsh"
    keep_prob: float | None = None
    link: str = "identity"
    baseline: float | None = None
    energy: Mapping[int, float] = field(default_factory=dict)
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = [*_header_problems(self), *_node_problems(self), *_interaction_problems(self)]
        if problems:
            raise SpexMechError(all_problems(f"{len(problems)} things in this circuit do not fit together:", problems))
        place = {name: i for i, name in enumerate(self.components.names)}
        object.__setattr__(self, "nodes", tuple(sorted(self.nodes, key=lambda node: place[node.name])))
        object.__setattr__(self, "interactions", tuple(sorted(self.interactions, key=lambda i: _rank(i, place))))

    @property
    def heldout_r2(self) -> float | None:
        """R² of predictions of masks by fits that had not seen them; None where the evidence has none."""
        r2 = self.evidence.get("heldout_r2")
        return r2 if is_number(r2) else None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the nodes."""
        return tuple(node.name for node in self.nodes)

    @property
    def texts(self) -> dict[str, str]:
        """What the parts of an input among the nodes say, by name."""
        return {node.name: node.role for node in self.nodes if node.role and node.component.is_input}

    @property
    def max_order(self) -> int:
        return max((interaction.order for interaction in self.interactions), default=0)

    def frame(self) -> "pd.DataFrame":
        """One row an interaction, strongest first; columns `COLUMNS`; what is unknown is NaN."""
        import pandas as pd

        rows = [[getattr(interaction, name) for name in COLUMNS] for interaction in self.interactions]
        types = {"order": int, **dict.fromkeys(("coefficient", "stderr", "q_value", "stability", "knockout"), float)}
        return pd.DataFrame(rows, columns=list(COLUMNS)).astype(types)

    def nodes_frame(self) -> "pd.DataFrame":
        """One row a node: component, kind, layer, main, stderr, role, and its number of interactions of order ≥ 2."""
        import pandas as pd

        joint = Counter(name for i in self.interactions if i.order > 1 for name in i.components)
        rows = [
            (n.name, n.component.kind, n.component.layer, n.main, n.stderr, n.role, joint[n.name]) for n in self.nodes
        ]
        columns = ["component", "kind", "layer", "main", "stderr", "role", "interactions"]
        return pd.DataFrame(rows, columns=columns).astype({"main": float, "stderr": float})

    def top(self, k: int) -> "Circuit":
        """The `k` strongest interactions (order 1 included) and the nodes in them."""
        if k < 0:
            raise SpexMechError(f"top({k}) was asked for; the number of interactions is 0 or more.")
        return self._with(self.interactions[:k])

    def filter(
        self, *, order: int | Collection[int] | None = None, kind: str | None = None, min_abs: float | None = None
    ) -> "Circuit":
        """The interactions of some orders, of one kind, of at least a size |coefficient|; and the nodes in them.

        Raises `SpexMechError` on an unknown kind.
        """
        if kind is not None and kind not in KINDS:
            raise SpexMechError(f"there is no kind {kind!r} of interaction; the kinds are {', '.join(KINDS)}.")
        orders = {order} if isinstance(order, int) else order
        return self._with(
            interaction
            for interaction in self.interactions
            if (orders is None or interaction.order in orders)
            and (kind is None or interaction.kind == kind)
            and (min_abs is None or abs(interaction.coefficient) >= min_abs)
        )

    def save(self, path: str | Path) -> Path:
        """Write the circuit as JSON, whole or not at all; `load_circuit` reads it back unchanged."""
        return write_whole(path, circuit_json(self))

    def _with(self, interactions: Iterable[Interaction]) -> "Circuit":
        chosen = tuple(interactions)
        used = {name for interaction in chosen for name in interaction.components}
        return replace(self, interactions=chosen, nodes=tuple(node for node in self.nodes if node.name in used))

    def __str__(self) -> str:
        joint = sum(interaction.order > 1 for interaction in self.interactions)
        r2 = self.heldout_r2
        return (
            f"Circuit of {len(self.nodes):,} of {len(self.components):,} components: "
            f"{len(self.interactions) - joint:,} main effects, {joint:,} joint ones up to order {self.max_order}, "
            f"in {printable(self.unit)}" + ("" if r2 is None else f"; held-out R² {r2:.3f}")
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """A summary, a drawing, and the strongest interactions as an HTML table; every text is escaped."""
        return f"<p>{escaped(self)}</p>{notebook_html(self, COLUMNS)}"


def load_circuit(path: str | Path) -> Circuit:
    """Read a circuit's file; the circuit is equal to the saved one, to the last bit.

    Raises:
        FormatError: the file is missing, larger than 64 MiB, nested deeper than 32, not JSON, of another schema, or
            has fields that are missing, unknown, of a wrong type, or do not fit together; all problems at once.
    """
    return read_as(Circuit, path, CIRCUIT_SCHEMA, "a sound circuit file", complete=True)


def _rank(interaction: Interaction, place: Mapping[str, int]) -> tuple[float, int, list[int]]:
    """Strongest first; ties by order, then by the components' places, so that the order is determined."""
    return -abs(interaction.coefficient), interaction.order, [place[name] for name in interaction.components]


def _header_problems(circuit: Circuit) -> list[str]:
    problems = []
    if circuit.basis not in ("walsh", "biased") or (circuit.basis == "biased") != (circuit.keep_prob is not None):
        problems.append(
            f"basis {circuit.basis!r} with keep_prob {circuit.keep_prob}: it is 'walsh' without or 'biased' with one"
        )
    if circuit.keep_prob is not None and not 0 < circuit.keep_prob < 1:
        problems.append(f"keep_prob is {circuit.keep_prob}; it lies strictly between 0 and 1")
    if circuit.link not in LINK_NAMES:
        problems.append(f"link is {circuit.link!r}; this version knows {', '.join(LINK_NAMES)}")
    problems += _number_problems("the circuit", baseline=circuit.baseline)
    for order, energy in circuit.energy.items():
        problems += _number_problems(f"energy of order {order}", low=0.0, energy=energy)
    return problems


def _node_problems(circuit: Circuit) -> list[str]:
    problems = [
        f"node {name} is not among the {len(circuit.components):,} components that were studied"
        for name in circuit.names
        if name not in circuit.components
    ]
    problems += [f"node {name} is there twice" for name in _repeated(circuit.names)]
    for node in circuit.nodes:
        problems += _number_problems(f"node {node.name}", main=node.main)
        problems += _number_problems(f"node {node.name}", low=0.0, stderr=node.stderr)
    return problems


def _interaction_problems(circuit: Circuit) -> list[str]:
    nodes, problems = set(circuit.names), list[str]()
    for interaction in circuit.interactions:
        who = f"interaction {interaction.label or '(empty)'}"
        unknown = sorted(set(interaction.components) - nodes)
        if unknown:
            problems.append(f"{who} has {', '.join(unknown)}, which {'is' if len(unknown) == 1 else 'are'} no node")
        if not interaction.components or _repeated(interaction.components):
            problems.append(f"{who} must name one or more different components")
        if interaction.kind not in KINDS or (interaction.kind == "main") != (interaction.order == 1):
            problems.append(
                f"{who} of order {interaction.order} is called {interaction.kind!r}; 'main' is order 1 only"
            )
        problems += _number_problems(who, coefficient=interaction.coefficient, knockout=interaction.knockout)
        problems += _number_problems(who, low=0.0, stderr=interaction.stderr)
        problems += _number_problems(who, low=0.0, high=1.0, q=interaction.q_value, stability=interaction.stability)
    sets = [frozenset(interaction.components) for interaction in circuit.interactions]
    return problems + [f"interaction {' × '.join(sorted(s))} is there twice" for s in _repeated(sets)]


def _number_problems(who: str, *, low: float = -math.inf, high: float = math.inf, **values: float | None) -> list[str]:
    bounds = (
        "a finite number"
        if low == -math.inf
        else f"at least {low:g}"
        if high == math.inf
        else f"in [{low:g}, {high:g}]"
    )
    return [
        f"{who}: {name} is {value}; it must be {bounds}, or None where it is not known"
        for name, value in values.items()
        if value is not None and not (abs(value) < _LARGEST and low <= value <= high)
    ]


def _repeated(items: Collection[Any]) -> list[Any]:
    seen, twice = set(), dict[Any, None]()
    for item in items:
        twice.setdefault(item) if item in seen else seen.add(item)
    return list(twice)
