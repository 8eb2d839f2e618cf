"""Where everything in the drawing of a circuit goes: rows by layer as wide as the frame allows, weak ones as dots."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spex_mech.circuit.node_scores import component_strengths
from spex_mech.circuit.nodes import CircuitView, Interaction, Node
from spex_mech.components import Component

MAX_DRAWN = 200  # joint effects in one drawing
TALL, DOT = 44.0, 6.0  # height of a box, radius of a dot
_PITCH = 20.0  # distance of dots
_LEAST, _MOST = 74.0, 124.0  # width of a box
_CLUTTER = 0.03  # of the strongest joint effect: weaker ones are not shown at first

Point = tuple[float, float]


@dataclass(frozen=True)
class Frame:
    """How much room there is: width in pixels, of which `gutter` is for layer names (0: they stand above their rows);
    how many components bear their names, and how many joint effects are shown at first."""

    width: int = 1000
    gutter: int = 130
    labelled: int = 60
    shown: int = 24
    spare: bool = True  # weaker joint effects are in it too, unseen, for a script to show


WIDE = Frame()
NARROW = Frame(width=344, gutter=0, labelled=40, shown=16)
NOTEBOOK = Frame(width=820, labelled=40, spare=False)


@dataclass(frozen=True)
class Band:
    """A layer's ground: its name, a remark, and where it begins and ends."""

    title: str
    remark: str
    top: float
    bottom: float


@dataclass(frozen=True)
class Layout:
    """Where everything is: centres of nodes, the width of a labelled one, the bands of layers, the whole size."""

    places: Mapping[str, Point]
    labelled: frozenset[str]
    box: float
    bands: tuple[Band, ...]
    width: float
    height: float


def strongest_joint(circuit: CircuitView) -> list[Interaction]:
    """The sets of two and more that are drawn, strongest first."""
    return [i for i in circuit.interactions if i.order > 1][:MAX_DRAWN]


def shown_first(drawn: Sequence[Interaction], frame: Frame = WIDE) -> int:
    """How many of the strongest are shown at first: those of some size, a few at least, never too many."""
    strong = sum(abs(i.coefficient) >= _CLUTTER * abs(drawn[0].coefficient) for i in drawn)
    return min(len(drawn), max(strong, 6), frame.shown)


def arrange(circuit: CircuitView, frame: Frame) -> Layout:
    """Places by layer. Rows are as wide as the frame allows; the strongest components bear names, others are dots."""
    strength = component_strengths(circuit)
    strong = sorted(circuit.names, key=lambda name: -strength[name])
    labelled = frozenset(strong[: frame.labelled])
    bands = [(title, nodes, *_parted(nodes, labelled)) for title, nodes in reversed(_layers(circuit.nodes))]
    room = frame.width - frame.gutter - 12.0
    least = min(room, max(_LEAST, 7.7 * max((min(len(name), 16) for name in labelled), default=4) + 16))
    most = max(1, int(room // (least + 10)))
    widest = max((math.ceil(len(named) / math.ceil(len(named) / most)) for _, _, named, _ in bands if named), default=1)
    box = min(max(least, room / widest - 26), max(_MOST, least))
    places, drawn, y = dict[str, Point](), list[Band](), 26.0
    for title, nodes, named, dots in bands:
        top, y = y, y + (16 if frame.gutter else 36)
        y = _place_rows(named, places, frame, y, most, box + 64, TALL + 26)
        y = _place_rows(dots, places, frame, y, int(room // _PITCH), _PITCH, _PITCH) + 16
        drawn.append(Band(title, f"{len(nodes):,} of {_studied(circuit, nodes[0]):,} studied", top, y))
        y += 46 if frame.gutter else 34
    return Layout(places, labelled, box, tuple(drawn), frame.width, max(y - 30, 60.0))


def _parted(nodes: Sequence[Node], labelled: frozenset[str]) -> tuple[list[str], list[str]]:
    names = [node.name for node in nodes]
    return [name for name in names if name in labelled], [name for name in names if name not in labelled]


def _studied(circuit: CircuitView, node: Node) -> int:
    """How many of the components that were studied are in a node's band."""
    here = _band_of(node.component)
    return sum(_band_of(c) == here for c in circuit.components)


def _place_rows(
    names: Sequence[str], places: dict[str, Point], frame: Frame, y: float, most: int, pitch: float, step: float
) -> float:
    """Even rows of at most `most`, centred; returns where the next ones may begin."""
    rows, room = math.ceil(len(names) / most), frame.width - frame.gutter - 12
    middle = frame.gutter + room / 2
    for row in range(rows):
        inside = names[row * len(names) // rows : (row + 1) * len(names) // rows]
        apart = min(pitch, room / len(inside))
        for i, name in enumerate(inside):
            places[name] = (middle + (i - (len(inside) - 1) / 2) * apart, y + step / 2)
        y += step
    return y


def _layers(nodes: Sequence[Node]) -> list[tuple[str, list[Node]]]:
    """Nodes by band, the first layer first, each with its title."""
    bands: dict[tuple[int, int], list[Node]] = {}
    for node in nodes:
        bands.setdefault(_band_of(node.component), []).append(node)
    return [(_title(members), members) for _, members in sorted(bands.items())]


def _band_of(component: Component) -> tuple[int, int]:
    """Attention before the MLP of its layer; groups after both; parts of an input before everything, adapters and sites
    of the user's own after."""
    if component.is_input:
        return -1, 0
    if component.is_labelled:
        return 10**9, component.kind == "part"
    return component.layer, 1 if component.is_mlp else 2 if component.kind == "group" else 0


def _title(nodes: Sequence[Node]) -> str:
    words = {"head": "heads", "kv": "heads", "attn": "attention", "mlp": "MLP", "neuron": "MLP", "group": "groups",
             "expert": "experts", "shared": "shared expert"}  # fmt: skip
    beside = {"part": "sites of your own", "adapted": "adapters"}
    kinds = sorted({words.get(n.component.kind, beside.get(n.component.kind, f"{n.component.kind}s")) for n in nodes})
    own = all(n.component.kind in words for n in nodes)
    return f"Layer {nodes[0].component.layer} {' and '.join(kinds)}" if own else " and ".join(kinds).capitalize()
