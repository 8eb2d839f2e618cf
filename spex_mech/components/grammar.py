"""The grammar of component names: what may stand where. It knows no model and makes no components."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from spex_mech.errors import ComponentError

Kind = Literal[
    "head", "kv", "attn", "mlp", "neuron", "expert", "shared", "adapter", "adapted", "part", "group",
    "segment", "token", "example",
]  # fmt: skip
GRAMMAR = (
    "Names are a{layer}.h{head}, a{layer}.kv{group}, a{layer}, m{layer}, m{layer}.n{neuron}, m{layer}.e{expert}, "
    "m{layer}.shared, adapter, adapter.{layer}, adapter:{name}, {site}.{number} of a site of your own, "
    "each also with @p{position}; [..] is a group; s{segment} and t{token} are parts of a prompt, d{number} "
    "training examples."
)
MAX_ATOMS = 1 << 20  # components that names may spell out; more than any layer has, few enough for memory
STEMS: dict[str, tuple[str, str]] = {
    "head": ("a", ".h"),
    "kv": ("a", ".kv"),
    "attn": ("a", ""),
    "mlp": ("m", ""),
    "neuron": ("m", ".n"),
    "expert": ("m", ".e"),
    "shared": ("m", ".shared"),
}
LETTERS: dict[str, str] = {"segment": "s", "token": "t", "example": "d"}

RESERVED = ("adapter", "input", "logits")  # no names for sites of one's own
LABEL = r"[A-Za-z_]{2}[A-Za-z0-9_-]{0,62}"  # of a site of one's own; two letters first, as no other name has
_WORD = r"[A-Za-z0-9_-]{1,64}"
_NUMBERS = r"\*|[0-9]{1,9}(?::[0-9]{1,9})?"
_POSITION = r"(?:@p(?P<pos>-?[0-9]{1,9}))?"
_ATOM = re.compile(
    rf"(?P<block>[am])(?P<layer>{_NUMBERS})(?:\.(?:(?P<part>h|kv|n|e)(?P<index>{_NUMBERS})|(?P<shared>shared)))?{_POSITION}"
    rf"|(?P<input>[std])(?P<number>{_NUMBERS})"
)
_LABELLED = re.compile(
    rf"(?:adapter(?::(?P<adapter>{_WORD}))?(?:\.(?P<adapted>{_NUMBERS}))?|(?P<label>{LABEL})\.(?P<index>{_NUMBERS}))"
    rf"{_POSITION}"
)
_KINDS: dict[tuple[str, str | None], Kind] = {
    ("a", "h"): "head",
    ("a", "kv"): "kv",
    ("a", None): "attn",
    ("m", None): "mlp",
    ("m", "n"): "neuron",
    ("m", "e"): "expert",
    ("m", "shared"): "shared",
}
_INPUTS: dict[str, Kind] = {"s": "segment", "t": "token", "d": "example"}


@dataclass(frozen=True)
class Pattern:
    """A name taken apart. `layers` and `indices` are as written: a number, a range, ``*``, or None where there is none.

    Attributes:
        asked: what error messages quote.
        label: of an adapter or a site of the user's own.
    """

    kind: Kind
    layers: str | None
    indices: str | None
    position: int | None
    asked: str
    label: str = ""

    @classmethod
    def parse(cls, text: str, asked: str) -> "Pattern":
        """Raises `ComponentError` where it is none; groups are not read here."""
        match = _ATOM.fullmatch(text.strip())
        if match is None:
            return cls._labelled(text, asked)
        if match["input"]:
            return cls(_INPUTS[match["input"]], None, match["number"], None, asked)
        kind = _KINDS.get((match["block"], match["part"] or match["shared"]))
        if kind is None:
            raise ComponentError(f"{asked!r} is not a component name. {GRAMMAR}")
        position = None if match["pos"] is None else int(match["pos"])
        return cls(kind, match["layer"], match["index"], position, asked)

    @classmethod
    def _labelled(cls, text: str, asked: str) -> "Pattern":
        """Adapters, and parts of a site of the user's own."""
        match = _LABELLED.fullmatch(text.strip())
        if match is None or match["label"] in RESERVED:
            raise ComponentError(f"{asked!r} is not a component name. {GRAMMAR}")
        position = None if match["pos"] is None else int(match["pos"])
        if match["label"]:
            return cls("part", None, match["index"], position, asked, match["label"])
        kind: Kind = "adapter" if match["adapted"] is None else "adapted"
        return cls(kind, match["adapted"], None, position, asked, match["adapter"] or "")

    @property
    def is_literal(self) -> bool:
        """Whether it needs no model to be read: no ``*``."""
        return "*" not in (self.layers, self.indices)

    def layer_range(self, count: int = 0) -> range:
        """The layers it names; `count`, of the model, is what ``*`` stands for."""
        return _numbers(self.layers, count, self.asked)

    def index_range(self, count: int = 0) -> range:
        """The heads, groups, neurons or parts of an input it names."""
        return _numbers(self.indices, count, self.asked)

    @property
    def count(self) -> int:
        """How many components it spells out, where it is literal."""
        return len(self.layer_range()) * len(self.index_range())


def is_label(text: object) -> bool:
    """Whether a site of the user's own may be called so, other than by the reserved names."""
    return isinstance(text, str) and re.fullmatch(LABEL, text) is not None


def literals(texts: Iterable[str], asked: str) -> list[Pattern]:
    """Names with ranges but without ``*``, counted before anything is made of them; raises `ComponentError`."""
    patterns = [Pattern.parse(text, asked) for text in texts]
    if not all(pattern.is_literal for pattern in patterns):
        raise ComponentError(
            f"{asked!r} has a '*', which only select(subject, …) can read, since it depends on the model."
        )
    count = sum(pattern.count for pattern in patterns)
    if count > MAX_ATOMS:
        raise ComponentError(
            f"{asked!r} names {count:,} components; one name may spell out {MAX_ATOMS:,}. Ranges end before their "
            f"second number: m3.n0:64 are 64 neurons."
        )
    return patterns


def inside(name: str) -> str | None:
    """What stands between the brackets of a group; None where the name is of no group."""
    text = name.strip()
    return text[1:-1] if text.startswith("[") and text.endswith("]") else None


def spelled_out(names: Iterable[object]) -> int:
    """How many components the groups among some names have, without making any; names that are wrong count as none."""
    total = 0
    for name in names:
        held = inside(name) if isinstance(name, str) else None
        if held is not None:
            try:
                total += sum(pattern.count for pattern in literals(split_expression(held, held), held))
            except ComponentError:
                continue  # whoever reads them says what is wrong
    return total


def split_expression(expression: str, asked: str) -> list[str]:
    """Split at the commas outside brackets; one level of brackets is read.

    >>> split_expression("a0.h1, [m0.n0:4,m1], m2", "")
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


def quoted_names(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are, for error messages."""
    more = f" and {len(names) - 8:,} more" if len(names) > 8 else ""
    return ", ".join(map(repr, names[:8])) + more


def _numbers(text: str | None, count: int, asked: str) -> range:
    if text is None:
        return range(1)
    if text == "*":
        return range(count)
    start, _, stop = text.partition(":")
    numbers = range(int(start), int(stop) if stop else int(start) + 1)
    if not numbers:
        raise ComponentError(f"the range {text} in {asked!r} is empty: it ends before its second number, as in 0:4.")
    return numbers
