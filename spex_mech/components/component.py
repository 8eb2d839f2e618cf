"""`Component`: one part of a model, an input or a training set; parsed from its name and printed as one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from spex_mech.components.grammar import GRAMMAR, LETTERS, STEMS, Kind, inside, literals, split_expression
from spex_mech.errors import ComponentError


@dataclass(frozen=True)
class Component:
    """One part of a model that is kept or ablated as a whole. `position` counts from the end where negative.

    `label` is the name of an adapter (empty: all that act) or of a site of the user's own, none of which has a layer.
    Components sort in the order of the network: by layer, attention before the MLP, then by kind and number. Parts of a
    prompt are in layer 0, before all else.
    """

    kind: Kind
    layer: int
    index: int = 0
    position: int | None = None
    members: tuple["Component", ...] = ()
    label: str = ""

    def __post_init__(self) -> None:
        misplaced = self.is_input and (self.layer, self.position) != (0, None)
        misplaced |= (self.kind == "part") != bool(self.label) and self.kind not in ("adapter", "adapted")
        if misplaced or self.layer < 0 or self.index < 0 or (self.kind == "group") != bool(self.members):
            raise ComponentError(
                f"a component of kind {self.kind!r} with layer {self.layer}, number {self.index} and "
                f"{len(self.members)} members does not exist: layers and numbers count from 0, groups alone have "
                f"members, parts of a site have its name, and parts of an input neither layer nor position. {GRAMMAR}"
            )

    @classmethod
    def parse(cls, name: str) -> "Component":
        """Read one name; raises `ComponentError` if it is none.

        >>> Component.parse("a9.h6@p-1")
        Component(kind='head', layer=9, index=6, position=-1, members=(), label='')
        """
        if not isinstance(name, str):
            raise ComponentError(f"{name!r} is not a component name but a {type(name).__name__}. {GRAMMAR}")
        held = inside(name)
        if held is not None:
            return group(_spell_out(split_expression(held, name), name))
        found = _spell_out([name], name)
        if len(found) != 1:
            raise ComponentError(
                f"{name!r} names {len(found):,} components where one is needed. Write [{name.strip()}] to ablate them "
                "as one."
            )
        return found[0]

    @cached_property
    def name(self) -> str:
        """The canonical name; ``Component.parse(c.name) == c``."""
        if self.kind == "group":
            return f"[{','.join(_runs(self.members))}]"
        return f"{_stem(self)}{self.index if _is_numbered(self) else ''}{_at(self.position)}"

    @property
    def atoms(self) -> tuple["Component", ...]:
        """The components ablated together: the members of a group, else the component itself."""
        return self.members if self.kind == "group" else (self,)

    @property
    def is_input(self) -> bool:
        """Whether it is a part of an input, or a training example, and none of the model."""
        return self.kind in LETTERS

    @property
    def is_mlp(self) -> bool:
        """Whether it is (a part of) an MLP; its experts count."""
        return self.kind in STEMS and STEMS[self.kind][0] == "m"

    @property
    def is_labelled(self) -> bool:
        """Whether it is an adapter or a part of a site of the user's own, which stand beside the layers."""
        return self.kind in ("adapter", "adapted", "part")

    def __str__(self) -> str:
        return self.name

    def __lt__(self, other: "Component") -> bool:
        return _network_order(self) < _network_order(other)


def group(members: Iterable[Component]) -> Component:
    """One component that ablates all `members` together.

    >>> group([Component("neuron", 3, 1), Component("neuron", 3, 0), Component("head", 0, 2)]).name
    '[a0.h2,m3.n0:2]'
    """
    atoms = sorted({atom for member in members for atom in member.atoms}, key=_network_order)
    if not atoms:
        raise ComponentError("a group needs at least one component, for example [m3.n0:64].")
    return Component("group", min(atom.layer for atom in atoms), members=tuple(atoms))


def _spell_out(texts: Sequence[str], asked: str) -> list[Component]:
    """The components of names with ranges but without ``*``; needs no model."""
    return [
        Component(pattern.kind, layer, i, pattern.position, label=pattern.label)
        for pattern in literals(texts, asked)
        for layer in pattern.layer_range()
        for i in pattern.index_range()
    ]


def _network_order(c: Component) -> tuple[int, bool, str, int, int, tuple]:
    first = c.atoms[0]
    members = tuple(_network_order(member) for member in c.members)
    at = -(10**9) if c.position is None else c.position  # a whole component before its single positions
    if first.is_input:
        return (-1, False, c.kind, c.index, at, members)
    if first.is_labelled:  # adapters, then sites of the user's own, after the model's parts
        return (10**9, first.kind == "part", f"{first.kind} {first.label}", first.layer + c.index, at, members)
    return (c.layer, first.is_mlp, c.kind, c.index, at, members)


def _stem(atom: Component) -> str:
    """A name without its number and position: ``a9.h``, ``m3``, ``t``."""
    if atom.is_input:
        return LETTERS[atom.kind]
    if atom.kind == "part":
        return f"{atom.label}."
    if atom.kind not in STEMS:
        name = f"adapter:{atom.label}" if atom.label else "adapter"
        return name if atom.kind == "adapter" else f"{name}.{atom.layer}"
    block, part = STEMS[atom.kind]
    return f"{block}{atom.layer}{part}"


def _is_numbered(atom: Component) -> bool:
    return atom.is_input or atom.kind in ("head", "kv", "neuron", "expert", "part")


def _at(position: int | None) -> str:
    return "" if position is None else f"@p{position}"


def _runs(members: Sequence[Component]) -> list[str]:
    """Names with runs of neighbours folded: m3.n0, m3.n1, m3.n2 → m3.n0:3."""
    names, start = list[str](), 0
    for stop in range(1, len(members) + 1):
        if stop < len(members) and _follows(members[stop], members[stop - 1]):
            continue
        first, last = members[start], members[stop - 1]
        folded = f"{_stem(first)}{first.index}:{last.index + 1}{_at(first.position)}"
        names.append(first.name if stop - start == 1 else folded)
        start = stop
    return names


def _follows(next_one: Component, last: Component) -> bool:
    kind, other = ((c.kind, c.layer, c.position, c.label) for c in (next_one, last))
    return kind == other and _is_numbered(last) and next_one.index == last.index + 1
