"""`Node` and `Interaction`: what a circuit is made of; and what a drawing or a file needs to know of a circuit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from spex_mech.components import Component, ComponentSet
from spex_mech.names import InteractionKind


@dataclass(frozen=True)
class Node:
    """A component that takes part in the circuit.

    Attributes:
        component: what is kept or ablated.
        main: its order-1 coefficient in the circuit's basis and unit; None where none was found (which is not zero).
        stderr: standard error of `main`, same unit; None where unknown.
        role: a name from the literature or from the user, such as "name mover".
    """

    component: Component
    main: float | None = None
    stderr: float | None = None
    role: str | None = None

    @property
    def name(self) -> str:
        return self.component.name


@dataclass(frozen=True)
class Interaction:
    """A set of components that act together: one term of the polynomial. An order-1 set is a main effect.

    Attributes:
        components: canonical names, in the order of the circuit's `ComponentSet`.
        coefficient: the coefficient of the set in the circuit's basis, in the circuit's unit.
        kind: "main", "synergy" or "redundancy", by signs; see `kinds.kind_of`.
        stderr: standard error of `coefficient`; q_value: false discovery rate at which the term is found;
            stability: share of resamples that found the set, in [0, 1]; each None where unknown.
        knockout: the same set's coefficient in the knockout basis: what ablating all of it does to the intact model
            beyond what its subsets do, summed over all recovered supersets; None where unknown.
    """

    components: tuple[str, ...]
    coefficient: float
    kind: InteractionKind
    stderr: float | None = None
    q_value: float | None = None
    stability: float | None = None
    knockout: float | None = None

    @property
    def order(self) -> int:
        """Number of components in the set."""
        return len(self.components)

    @property
    def label(self) -> str:
        """For people: ``a0.h1 × a1.h0``."""
        return " × ".join(self.components)


class CircuitView(Protocol):
    """A circuit as its drawing and its file see it; `Circuit` says what each attribute is."""

    @property
    def components(self) -> ComponentSet: ...
    @property
    def nodes(self) -> tuple[Node, ...]: ...
    @property
    def interactions(self) -> tuple[Interaction, ...]: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def unit(self) -> str: ...
    @property
    def energy(self) -> Mapping[int, float]: ...
    @property
    def evidence(self) -> Mapping[str, Any]: ...
