"""Components of a transformer, their names, and ordered sets of them.

A component is what is kept or ablated as one. Its name is the one MIB and EAP-IG files use, extended:

    a9.h6        attention head 6 of layer 9          a9.kv1       key/value group 1 of layer 9 (all its query heads)
    a9           the attention of layer 9             m3           the MLP of layer 3 (its output, bias included)
    m3.n417      MLP neuron 417 of layer 3            a9.h6@p-1    the head at one position (here the last) only
    [m3.n0:64]   a group that is ablated as one
    s2, t5       segment 2 and token 5 of a prompt: parts of an input, which no model has by itself
    d7           training example (or group of examples) 7, of a model that is trained anew

Names are parsed and printed here and nowhere else. Bit i is component i is column i, everywhere.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, overload

from spex_mech.errors import ComponentError, all_problems

Kind = Literal["head", "kv", "attn", "mlp", "neuron", "group", "segment", "token", "example"]
GRAMMAR = (
    "Names are a{layer}.h{head}, a{layer}.kv{group}, a{layer}, m{layer}, m{layer}.n{neuron}, "
    "each also with @p{position}; [..] is a group; s{segment} and t{token} are parts of a prompt, d{number} "
    "training examples."
)

MAX_ATOMS = 1 << 20  # components that one name may spell out; more than any layer has, few enough for memory

_NUMBERS = r"\*|[0-9]{1,9}(?::[0-9]{1,9})?"
_ATOM = re.compile(
    rf"(?P<block>[am])(?P<layer>{_NUMBERS})(?:\.(?P<part>h|kv|n)(?P<index>{_NUMBERS}))?(?:@p(?P<pos>-?[0-9]{{1,9}}))?"
    rf"|(?P<input>[std])(?P<number>{_NUMBERS})"
)
_KINDS: dict[tuple[str, str | None], Kind] = {
    ("a", "h"): "head",
    ("a", "kv"): "kv",
    ("a", None): "attn",
    ("m", None): "mlp",
    ("m", "n"): "neuron",
}
_STEMS: dict[str, tuple[str, str]] = {
    "head": ("a", ".h"),
    "kv": ("a", ".kv"),
    "attn": ("a", ""),
    "mlp": ("m", ""),
    "neuron": ("m", ".n"),
}
_INPUTS: dict[str, Kind] = {"s": "segment", "t": "token", "d": "example"}
_LETTERS = {kind: letter for letter, kind in _INPUTS.items()}


@dataclass(frozen=True)
class ModelShape:
    """What a model has to ablate, layer by layer: the counts that component names are checked against.

    `heads`, `kv_heads` and `neurons` hold one count a layer (0: this layer shows none); `mlps` says which layers
    have an MLP. A model that is bound together with a prompt (`lenses.prompted`) has `segments` or `tokens` of it too.
    """

    name: str
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    mlps: tuple[bool, ...]
    neurons: tuple[int, ...]
    d_vocab: int
    d_vocab_out: int = 0  # 0: the same as d_vocab
    segments: int = 0
    tokens: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "d_vocab_out", self.d_vocab_out or self.d_vocab)

    @property
    def n_layers(self) -> int:
        return len(self.heads)

    def count(self, kind: Kind, layer: int) -> int:
        """How many components of one kind a layer has.

        >>> ModelShape("toy", (2, 2), (2, 2), (True, False), (8, 0), 10).count("neuron", 0)
        8
        """
        if not 0 <= layer < self.n_layers:
            return 0
        if kind in _INPUTS.values():
            return {"segment": self.segments, "token": self.tokens}.get(kind, 0) if layer == 0 else 0
        counts = {"head": self.heads, "kv": self.kv_heads, "neuron": self.neurons}
        if kind in counts:
            return counts[kind][layer]
        return int(self.mlps[layer]) if kind == "mlp" else int(self.heads[layer] > 0)

    def describe(self) -> str:
        """One line for error messages: ``gpt2 (12 layers, 12 heads, 12 MLPs of 3,072 neurons)``."""
        heads, neurons = sorted(set(self.heads)), sorted({n for n in self.neurons if n})
        parts = [f"{self.n_layers} layer{'s' * (self.n_layers != 1)}", f"{'/'.join(map(str, heads))} heads"]
        mlps = sum(self.mlps)
        if mlps:
            width = f" of {'/'.join(f'{n:,}' for n in neurons)} neurons" if neurons else ""
            parts.append(f"{mlps} MLP{'s' * (mlps != 1)}{width}")
        if self.segments or self.tokens:
            parts.append(f"{self.segments} segments" if self.segments else f"{self.tokens} tokens of the prompt")
        return f"{self.name} ({', '.join(parts)})"


class HasShape(Protocol):
    """Anything that knows its `ModelShape`; every subject does."""

    @property
    def shape(self) -> ModelShape: ...


@dataclass(frozen=True)
class Component:
    """One part of a model that is kept or ablated as a whole. `position` counts from the end where negative.

    Components sort in the order of the network: by layer, attention before the MLP, then by kind and number. Parts of a
    prompt are in layer 0, before all else.
    """

    kind: Kind
    layer: int
    index: int = 0
    position: int | None = None
    members: tuple["Component", ...] = ()

    def __post_init__(self) -> None:
        misplaced = self.kind in _INPUTS.values() and (self.layer, self.position) != (0, None)
        if misplaced or self.layer < 0 or self.index < 0 or (self.kind == "group") != bool(self.members):
            raise ComponentError(
                f"a component of kind {self.kind!r} with layer {self.layer}, number {self.index} and "
                f"{len(self.members)} members does not exist: layers and numbers count from 0, groups alone have "
                f"members, and parts of an input have neither layer nor position. {GRAMMAR}"
            )

    @classmethod
    def parse(cls, name: str) -> "Component":
        """Read one name; raises `ComponentError` if it is none.

        >>> Component.parse("a9.h6@p-1")
        Component(kind='head', layer=9, index=6, position=-1, members=())
        """
        if not isinstance(name, str):
            raise ComponentError(f"{name!r} is not a component name but a {type(name).__name__}. {GRAMMAR}")
        text = name.strip()
        if text.startswith("[") and text.endswith("]"):
            return group(_expand_literals(_split(text[1:-1], name), name))
        found = _expand_literals([text], name)
        if len(found) != 1:
            raise ComponentError(
                f"{name!r} names {len(found):,} components where one is needed. Write [{text}] to ablate them as one."
            )
        return found[0]

    @cached_property
    def name(self) -> str:
        """The canonical name; ``Component.parse(c.name) == c``."""
        if self.kind == "group":
            return f"[{','.join(_runs(self.members))}]"
        if self.kind in _INPUTS.values():
            return f"{_LETTERS[self.kind]}{self.index}"
        block, part = _STEMS[self.kind]
        return f"{block}{self.layer}{part}{self.index if part else ''}{_at(self.position)}"

    @property
    def atoms(self) -> tuple["Component", ...]:
        """The components ablated together: the members of a group, else the component itself."""
        return self.members if self.kind == "group" else (self,)

    @property
    def is_input(self) -> bool:
        """Whether it is a part of an input, or a training example, and none of the model."""
        return self.kind in _LETTERS

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


@dataclass(frozen=True)
class ComponentSet:
    """An ordered set of components: component i is bit i of every mask and column i of every `keep` matrix."""

    components: tuple[Component, ...]

    def __post_init__(self) -> None:
        if len(self._index) < len(self.components):
            times = Counter(self.names)
            repeated = sorted({c for c in self.components if times[c.name] > 1})
            raise ComponentError(
                f"{_shown(repeated)} named more than once; every component is one bit, so each may be named once."
            )

    @classmethod
    def of(cls, names: Iterable[str | Component]) -> "ComponentSet":
        """A set from names (or components), in the order given; names that cannot be read are reported together.

        >>> ComponentSet.of("m3, [a0.h0:2]").names
        ('m3', '[a0.h0:2]')
        """
        names = _split(names, names) if isinstance(names, str) else names
        found, problems, spelled = [], [], 0
        for name in names:
            try:
                found.append(name if isinstance(name, Component) else Component.parse(name))
                spelled += len(found[-1].members)
            except ComponentError as error:
                problems.append(str(error))
            if spelled > MAX_ATOMS:  # a few short names would fill the memory
                raise ComponentError(f"these groups spell out more than {MAX_ATOMS:,} components in all; take fewer.")
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
        missing = [c for c in self.components if not all(_exists(atom, shape) for atom in c.atoms)]
        if missing:
            verb = "does" if len(missing) == 1 else "do"
            raise ComponentError(f"{_shown(missing)} {verb} not exist in {shape.describe()}. {GRAMMAR}")
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


def heads(subject: HasShape, layers: Iterable[int] | None = None) -> ComponentSet:
    """All attention heads of the subject (query heads under GQA), or those of some layers."""
    return _all_of("head", subject.shape, layers)


def kv_groups(subject: HasShape, layers: Iterable[int] | None = None) -> ComponentSet:
    """All key/value groups: each ablates all the query heads that share one key/value head."""
    return _all_of("kv", subject.shape, layers)


def mlps(subject: HasShape, layers: Iterable[int] | None = None) -> ComponentSet:
    """All MLP layers, each ablated as its whole output into the residual stream."""
    return _all_of("mlp", subject.shape, layers)


def neurons(subject: HasShape, layers: Iterable[int] | None = None) -> ComponentSet:
    """All MLP neurons (coordinates of the down projection's input), or those of some layers."""
    return _all_of("neuron", subject.shape, layers)


def select(subject: HasShape, expression: str) -> ComponentSet:
    """The components an expression names: names and patterns, separated by commas, in that order.

    ``*`` stands for all, ``0:4`` for 0, 1, 2, 3; ``!`` before a pattern takes its components out again.
    ``select(subject, "a*.h*, m3.n*, !a0.h3")``. Raises `ComponentError` listing every part that names nothing.
    """
    shape, chosen, problems = subject.shape, dict[Component, None](), list[str]()
    for part in _split(expression, expression):
        drop, pattern = part.startswith("!"), part.removeprefix("!").strip()
        try:
            found = _expand(pattern, shape)
        except ComponentError as error:
            problems.append(str(error))
            continue
        for component in found:
            chosen.pop(component, None) if drop else chosen.setdefault(component)
    if problems:
        raise ComponentError(
            problems[0]
            if len(problems) == 1
            else all_problems(f"{len(problems)} parts of {expression!r} name nothing:", problems)
        )
    if not chosen:
        raise ComponentError(f"{expression!r} names no component of {shape.describe()}. {GRAMMAR}")
    return ComponentSet(tuple(chosen)).check(shape)


def _all_of(kind: Kind, shape: ModelShape, layers: Iterable[int] | None) -> ComponentSet:
    wanted = range(shape.n_layers) if layers is None else list(layers)
    unknown = [layer for layer in wanted if not 0 <= layer < shape.n_layers]
    if unknown:
        raise ComponentError(f"layers {unknown} do not exist in {shape.describe()}; layers count from 0.")
    return ComponentSet(tuple(Component(kind, layer, i) for layer in wanted for i in range(shape.count(kind, layer))))


def _expand(pattern: str, shape: ModelShape) -> list[Component]:
    """All components of the model that one pattern names."""
    if pattern.startswith("["):
        inside = pattern.removeprefix("[").removesuffix("]")
        return [group(c for part in _split(inside, pattern) for c in _expand(part, shape))]
    match = _match(pattern, pattern)
    kind, position = _kind(match), _position(match)
    found, beyond = list[Component](), False
    layers, real = _range(match["layer"], shape.n_layers, pattern), range(shape.n_layers)
    for layer in _overlap(layers, real):
        wanted = _range(_index(match), shape.count(kind, layer), pattern)
        there = _overlap(wanted, range(shape.count(kind, layer)))
        beyond |= len(there) < len(wanted)
        found += [Component(kind, layer, i, position) for i in there]
    # 'every layer' means those that have it; a layer or number that is written out must be there
    beyond = match["layer"] != "*" and (beyond or len(_overlap(layers, real)) < len(layers))
    if not found or beyond:
        raise ComponentError(f"{pattern!r} does not exist in {shape.describe()}. {GRAMMAR}")
    return found


def _expand_literals(patterns: Sequence[str], asked: str) -> list[Component]:
    """The components of names with ranges but without ``*``; needs no model. Counted before they are made."""
    matches = [_match(pattern, asked) for pattern in patterns]
    if any("*" in match.group() for match in matches):
        raise ComponentError(
            f"{asked!r} has a '*', which only select(subject, …) can read, since it depends on the model."
        )
    ranges = [(m, _range(m["layer"], 0, asked), _range(_index(m), 0, asked)) for m in matches]
    count = sum(len(layers) * len(indices) for _, layers, indices in ranges)
    if count > MAX_ATOMS:
        raise ComponentError(
            f"{asked!r} names {count:,} components; one name may spell out {MAX_ATOMS:,}. Ranges end before their "
            f"second number: m3.n0:64 are 64 neurons."
        )
    return [
        Component(_kind(match), layer, i, _position(match))
        for match, layers, indices in ranges
        for layer in layers
        for i in indices
    ]


def _match(pattern: str, asked: str) -> re.Match[str]:
    match = _ATOM.fullmatch(pattern.strip())
    if match is None or not (match["input"] or (match["block"], match["part"]) in _KINDS):
        raise ComponentError(f"{asked!r} is not a component name. {GRAMMAR}")
    return match


def _kind(match: re.Match[str]) -> Kind:
    return _INPUTS[match["input"]] if match["input"] else _KINDS[match["block"], match["part"]]


def _index(match: re.Match[str]) -> str | None:
    return match["number"] if match["input"] else match["index"]


def _position(match: re.Match[str]) -> int | None:
    return None if match["pos"] is None else int(match["pos"])


def _range(text: str | None, count: int, asked: str) -> range:
    if text is None:
        return range(1)
    if text == "*":
        return range(count)
    start, _, stop = text.partition(":")
    numbers = range(int(start), int(stop) if stop else int(start) + 1)
    if not numbers:
        raise ComponentError(f"the range {text} in {asked!r} is empty: it ends before its second number, as in 0:4.")
    return numbers


def _overlap(wanted: range, there: range) -> range:
    return range(max(wanted.start, there.start), max(wanted.start, min(wanted.stop, there.stop)))


def _shown(components: Sequence[Component]) -> str:
    more = f" and {len(components) - 8:,} more" if len(components) > 8 else ""
    return ", ".join(repr(c.name) for c in components[:8]) + more


def _split(expression: str, asked: str) -> list[str]:
    """Split at the commas outside brackets; one level of brackets is read.

    >>> _split("a0.h1, [m0.n0:4,m1], m2", "")
    ['a0.h1', '[m0.n0:4,m1]', 'm2']
    """
    parts = [part.strip() for part in re.findall(r"(?:\[[^\[\]]*\]|[^,\[\]])+", expression)]
    if (
        not any(parts)
        or "".join(parts).count("[") != expression.count("[")
        or expression.count("[") != expression.count("]")
    ):
        raise ComponentError(f"{asked!r} is not a list of component names. {GRAMMAR}")
    return [part for part in parts if part]


def _exists(atom: Component, shape: ModelShape) -> bool:
    return atom.index < shape.count(atom.kind, atom.layer)


def _network_order(c: Component) -> tuple[int, bool, str, int, int, tuple]:
    first = c.atoms[0]
    members = tuple(_network_order(member) for member in c.members)
    at = -(10**9) if c.position is None else c.position  # a whole component before its single positions
    if first.kind in _INPUTS.values():
        return (-1, False, c.kind, c.index, at, members)
    return (c.layer, _STEMS[first.kind][0] == "m", c.kind, c.index, at, members)


def _at(position: int | None) -> str:
    return "" if position is None else f"@p{position}"


def _runs(members: Sequence[Component]) -> list[str]:
    """Names with runs of neighbours folded: m3.n0, m3.n1, m3.n2 → m3.n0:3."""
    names, start = list[str](), 0
    for stop in range(1, len(members) + 1):
        first, last = members[start], members[stop - 1]
        if (
            stop < len(members)
            and members[stop] == Component(last.kind, last.layer, last.index + 1, last.position)
            and _STEMS.get(last.kind, ("", last.kind))[1]
        ):
            continue
        block, part = _STEMS.get(first.kind, ("", ""))
        stem = f"{block}{first.layer}{part}" if block else _LETTERS[first.kind]
        names.append(first.name if stop - start == 1 else f"{stem}{first.index}:{last.index + 1}{_at(first.position)}")
        start = stop
    return names
