"""`ComponentSet`: an ordered set of components. Bit i is component i is column i, everywhere."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import overload

from spex_mech.components.component import Component
from spex_mech.components.grammar import GRAMMAR, MAX_ATOMS, quoted_names, spelled_out, split_expression
from spex_mech.components.shape import ModelShape
from spex_mech.errors import ComponentError, all_problems


@dataclass(frozen=True)
class ComponentSet:
    """An ordered set of components: component i is bit i of every mask and column i of every `keep` matrix."""

    components: tuple[Component, ...]

    def __post_init__(self) -> None:
        if len(self._index) < len(self.components):
            times = Counter(self.names)
            repeated = sorted({c for c in self.components if times[c.name] > 1})
            raise ComponentError(
                f"{quoted_names([c.name for c in repeated])} named more than once; every component is one bit, so "
                "each may be named once."
            )

    @classmethod
    def of(cls, names: Iterable[str | Component]) -> "ComponentSet":
        """A set from names (or components), in the order given; names that cannot be read are reported together.

        >>> ComponentSet.of("m3, [a0.h0:2]").names
        ('m3', '[a0.h0:2]')
        """
        names = split_expression(names, names) if isinstance(names, str) else list(names)
        if spelled_out(names) > MAX_ATOMS:  # a few short names would fill the memory
            raise ComponentError(f"these groups spell out more than {MAX_ATOMS:,} components in all; take fewer.")
        found, problems = list[Component](), list[str]()
        for name in names:
            try:
                found.append(name if isinstance(name, Component) else Component.parse(name))
            except ComponentError as error:
                problems.append(str(error))
        if problems:
            raise ComponentError(
                all_problems(f"{len(problems)} names cannot be read:", problems) if len(problems) > 1 else problems[0]
            )
        return cls(tuple(found))

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(component.name for component in self.components)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    def index(self, name: str) -> int:
        """The bit of a component; raises `ComponentError` if the set does not hold it."""
        canonical = name if name in self._index else Component.parse(name).name
        if canonical not in self._index:
            shown = ", ".join(self.names[:6]) + (", …" if len(self) > 6 else "")
            raise ComponentError(f"{name!r} is not among the {len(self):,} components of this run ({shown}).")
        return self._index[canonical]

    def indices(self, names: Iterable[str]) -> list[int]:
        """The bits of several components, in the order given."""
        return [self.index(name) for name in names]

    def check(self, shape: ModelShape) -> "ComponentSet":
        """Itself, if the model has every component; else a `ComponentError` that lists all it has not."""
        missing = [c.name for c in self.components if not all(_exists(atom, shape) for atom in c.atoms)]
        if missing:
            verb = "does" if len(missing) == 1 else "do"
            raise ComponentError(missing_message(f"{quoted_names(missing)} {verb}", shape))
        return self

    def __len__(self) -> int:
        return len(self.components)

    def __iter__(self) -> Iterator[Component]:
        return iter(self.components)

    def __contains__(self, item: object) -> bool:
        return (item.name if isinstance(item, Component) else item) in self._index

    @overload
    def __getitem__(self, i: int) -> Component: ...
    @overload
    def __getitem__(self, i: slice) -> "ComponentSet": ...
    def __getitem__(self, i: int | slice) -> "Component | ComponentSet":
        return ComponentSet(self.components[i]) if isinstance(i, slice) else self.components[i]

    def __add__(self, other: "ComponentSet") -> "ComponentSet":
        """The union, in order; what both hold is there once."""
        return ComponentSet(self.components + tuple(c for c in other.components if c not in self))

    def __repr__(self) -> str:
        shown = ", ".join(self.names[:6]) + (", …" if len(self) > 6 else "")
        return f"ComponentSet({len(self):,}: {shown})"


def _exists(atom: Component, shape: ModelShape) -> bool:
    return atom.index < shape.count(atom.kind, atom.layer, atom.label)


def missing_message(what: str, shape: ModelShape) -> str:
    """That a model has no such component, and why where that is known; `what` ends in its verb."""
    return f"{what} not exist in {shape.describe()}. {f'{shape.absent} ' if shape.absent else ''}{GRAMMAR}"
