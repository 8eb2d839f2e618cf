"""The circuit by layer, as an inline SVG: a row or more a layer, the first layer at the bottom, joint effects between.

A pair is a curve, a larger set a hub with spokes that bears its order. Kinds differ in colour and dash, main effects in
colour and sign. Weak components beyond `Frame.labelled` are folded into dots. Colours are presentation attributes, so
that the drawing stands alone; a style sheet may override them by class.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spex_mech.circuit.graph import Circuit, Interaction, Node
from spex_mech.circuit.page import number, text

COLOURS = {"synergy": "#009E73", "redundancy": "#CC79A7", "helps": "#0072B2", "hurts": "#D55E00"}
DASHES = {"synergy": "", "redundancy": ' stroke-dasharray="7 5"'}
MAX_DRAWN = 200  # joint effects in one drawing
_TALL, _DOT, _PITCH = 44.0, 6.0, 20.0  # height of a box, radius and distance of dots
_LEAST, _MOST = 74.0, 124.0  # width of a box
_HIGH = 110.0  # what an arc over a row may rise, doubled
_CLUTTER = 0.03  # of the strongest joint effect: weaker ones are not shown at first

Place = tuple[float, float]


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

    places: Mapping[str, Place]
    labelled: frozenset[str]
    box: float
    bands: tuple[Band, ...]
    width: float
    height: float


def joint(circuit: Circuit) -> list[Interaction]:
    """The sets of two and more that are drawn, strongest first."""
    return [i for i in circuit.interactions if i.order > 1][:MAX_DRAWN]


def shown_first(drawn: Sequence[Interaction], frame: Frame = WIDE) -> int:
    """How many of the strongest are shown at first: those of some size, a few at least, never too many."""
    strong = sum(abs(i.coefficient) >= _CLUTTER * abs(drawn[0].coefficient) for i in drawn)
    return min(len(drawn), max(strong, 6), frame.shown)


def strengths(circuit: Circuit) -> dict[str, float]:
    """√Σ coefficient² over a node's interactions: how far the metric moves with it."""
    energy = dict.fromkeys(circuit.names, 0.0)
    for interaction in circuit.interactions:
        for name in interaction.components:
            energy[name] += interaction.coefficient**2
    return {name: value**0.5 for name, value in energy.items()}


def draw(circuit: Circuit, frame: Frame = WIDE) -> str:
    """The drawing as one ``<svg>`` element; components that are in no interaction of the circuit are not in it."""
    layout = arrange(circuit, frame)
    title = f"Circuit of {len(circuit.nodes)} components by layer"
    return (
        f'<svg class="circuit" viewBox="0 0 {frame.width} {layout.height:.0f}" role="group" aria-label="{title}" '
        f'font-family="ui-sans-serif,system-ui,sans-serif" width="{frame.width}" height="{layout.height:.0f}">'
        f"{''.join(_ground(band, frame, i) for i, band in enumerate(layout.bands))}"
        f'<g class="edges" fill="none">{_edges(circuit, layout, frame)}</g>'
        f'<g class="grounds">{"".join(_name(band, frame) for band in layout.bands)}</g>'
        f'<g class="nodes">{_nodes(circuit, layout)}</g></svg>'
    )


def arrange(circuit: Circuit, frame: Frame) -> Layout:
    """Places by layer. Rows are as wide as the frame allows; the strongest components bear names, others are dots."""
    strength = strengths(circuit)
    strong = sorted(circuit.names, key=lambda name: -strength[name])
    labelled = frozenset(strong[: frame.labelled])
    bands = [(title, nodes, *_parted(nodes, labelled)) for title, nodes in reversed(_layers(circuit.nodes))]
    room = frame.width - frame.gutter - 12.0
    least = min(room, max(_LEAST, 7.7 * max((min(len(name), 16) for name in labelled), default=4) + 16))
    most = max(1, int(room // (least + 10)))
    widest = max((math.ceil(len(named) / math.ceil(len(named) / most)) for _, _, named, _ in bands if named), default=1)
    box = min(max(least, room / widest - 26), max(_MOST, least))
    places, drawn, y = dict[str, Place](), list[Band](), 26.0
    for title, nodes, named, dots in bands:
        top, y = y, y + (16 if frame.gutter else 36)
        y = _place_rows(named, places, frame, y, most, box + 64, _TALL + 26)
        y = _place_rows(dots, places, frame, y, int(room // _PITCH), _PITCH, _PITCH) + 16
        drawn.append(Band(title, f"{len(nodes):,} of {_studied(circuit, nodes[0]):,} studied", top, y))
        y += 46 if frame.gutter else 34
    return Layout(places, labelled, box, tuple(drawn), frame.width, max(y - 30, 60.0))


def _parted(nodes: Sequence[Node], labelled: frozenset[str]) -> tuple[list[str], list[str]]:
    names = [node.name for node in nodes]
    return [name for name in names if name in labelled], [name for name in names if name not in labelled]


def _studied(circuit: Circuit, node: Node) -> int:
    """How many of the components that were studied are in a node's band."""
    here = _band_of(node.component.kind, node.component.layer)
    return sum(_band_of(c.kind, c.layer) == here for c in circuit.components)


def _place_rows(
    names: Sequence[str], places: dict[str, Place], frame: Frame, y: float, most: int, pitch: float, step: float
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
        bands.setdefault(_band_of(node.component.kind, node.component.layer), []).append(node)
    return [(_title(members), members) for _, members in sorted(bands.items())]


def _band_of(kind: str, layer: int) -> tuple[int, int]:
    """Attention before the MLP of its layer; what is neither after both."""
    return layer, 0 if kind in ("head", "kv", "attn") else 1 if kind in ("mlp", "neuron") else 2


def _title(nodes: Sequence[Node]) -> str:
    words = {"head": "heads", "kv": "heads", "attn": "attention", "mlp": "MLP", "neuron": "MLP", "group": "groups"}
    kinds = sorted({words.get(n.component.kind, f"{n.component.kind}s") for n in nodes})
    own = all(n.component.kind in words for n in nodes)
    return f"Layer {nodes[0].component.layer} {' and '.join(kinds)}" if own else " and ".join(kinds).capitalize()


def _ground(band: Band, frame: Frame, place: int) -> str:
    shade = 0.07 if place % 2 == 0 else 0.04
    return (
        f'<rect class="band" x="1" y="{band.top:.0f}" width="{frame.width - 2}" height="{band.bottom - band.top:.0f}" '
        f'rx="10" fill="#888888" fill-opacity="{shade}"/>'
    )


def _name(band: Band, frame: Frame) -> str:
    """A band's name, over the lines: beside its rows, or above them where there is no room."""
    ink, title, remark = 'fill="currentColor"', text(band.title), text(band.remark)
    if not frame.gutter:
        return (
            f'<text class="layer" x="12" y="{band.top + 21:.0f}" font-size="13" font-weight="600" {ink}>{title}'
            f'<tspan class="remark" font-weight="400" fill-opacity="0.75" dx="8">{remark}</tspan></text>'
        )
    middle = (band.top + band.bottom) / 2
    return (
        f'<text class="layer" x="14" y="{middle - 2:.0f}" font-size="13" font-weight="600" {ink}>{title}</text>'
        f'<text class="remark" x="14" y="{middle + 16:.0f}" font-size="12" fill-opacity="0.75" {ink}>{remark}</text>'
    )


def _edges(circuit: Circuit, layout: Layout, frame: Frame) -> str:
    drawn, taken = joint(circuit), list[Place]()
    shown, largest = shown_first(drawn, frame), max((abs(i.coefficient) for i in drawn), default=1.0) or 1.0
    drawn = drawn if frame.spare else drawn[:shown]
    parts = [_edge(i, n, abs(i.coefficient) / largest, layout, taken, n < shown) for n, i in enumerate(drawn)]
    above = [[p for p, i in zip(parts, drawn, strict=True) if (i.order > 2) == hubs] for hubs in (False, True)]
    return "".join(part for some in above for part in reversed(some))  # hubs over curves, the strongest on top


def _edge(i: Interaction, rank: int, share: float, layout: Layout, taken: list[Place], shown: bool) -> str:
    points = [layout.places[name] for name in i.components]
    width = 1.2 + 5.3 * share
    hub = None if i.order == 2 else _hub(points, layout, taken)
    path = _curve(points[0], points[1], layout) if hub is None else " ".join(_spoke(hub, point) for point in points)
    mark = "" if hub is None else _mark(hub, i)
    label = f"{i.label}: {number(i.coefficient, sign=True)}, {i.kind}"
    return (
        f'<g class="edge {i.kind}{"" if shown else " off"}" data-e="{rank}"{"" if shown else _OFF}>'
        f'<title>{text(label)}</title><path class="hit" d="{path}" stroke="transparent" stroke-width="14"/>'
        f'<path class="line" d="{path}" stroke="{COLOURS[i.kind]}" stroke-width="{width:.1f}" stroke-opacity="0.8" '
        f'stroke-linecap="round"{DASHES[i.kind]}/>{mark}</g>'
    )


_OFF = ' display="none"'


def _mark(hub: Place, i: Interaction) -> str:
    filled = i.kind == "synergy"
    fill, ink = (COLOURS[i.kind], "#ffffff") if filled else ("#ffffff", COLOURS[i.kind])
    return (
        f'<circle class="hub" cx="{hub[0]:.0f}" cy="{hub[1]:.0f}" r="8.5" fill="{fill}" stroke="{COLOURS[i.kind]}" '
        f'stroke-width="2"/><text class="order" x="{hub[0]:.0f}" y="{hub[1] + 3.8:.1f}" font-size="11" '
        f'font-weight="700" text-anchor="middle" fill="{ink}">{i.order}</text>'
    )


def _curve(one: Place, other: Place, layout: Layout) -> str:
    """A quadratic from centre to centre: over the row where both are in one, else past the boxes between them."""
    (x0, y0), (x1, y1) = one, other
    if y0 == y1:
        middle = ((x0 + x1) / 2, y0 - min(_HIGH, _TALL + 14 + 0.1 * abs(x1 - x0)))
    else:
        beside = [0.12 * abs(y1 - y0), layout.box + 44, 1.6 * layout.box + 60, 2.4 * layout.box + 90]
        tries = [((x0 + x1) / 2 + sign * by, (y0 + y1) / 2) for by in beside for sign in _side(one, other, layout)]
        middle = next((m for m in tries if _clear(one, m, other, layout)), tries[0])
    return f"M{x0:.0f} {y0:.0f}Q{middle[0]:.0f} {middle[1]:.0f} {x1:.0f} {y1:.0f}"


def _side(one: Place, other: Place, layout: Layout) -> tuple[int, int]:
    """Which way to bend first: away from the middle."""
    return (1, -1) if one[0] + other[0] >= layout.width else (-1, 1)


def _clear(one: Place, middle: Place, other: Place, layout: Layout) -> bool:
    """Whether a quadratic meets no labelled box but those of its ends, and stays inside."""
    wide, tall = layout.box / 2 + 3, _TALL / 2 + 3
    boxes = [layout.places[name] for name in layout.labelled]
    boxes = [box for box in boxes if box not in (one, other)]
    for step in range(1, 12):
        t = step / 12
        x, y = ((1 - t) ** 2 * a + 2 * t * (1 - t) * m + t * t * b for a, m, b in zip(one, middle, other, strict=True))
        if not 6 < x < layout.width - 6 or any(abs(x - u) < wide and abs(y - v) < tall for u, v in boxes):
            return False
    return True


def _spoke(hub: Place, point: Place) -> str:
    return f"M{hub[0]:.0f} {hub[1]:.0f}Q{point[0]:.0f} {hub[1]:.0f} {point[0]:.0f} {point[1]:.0f}"


def _hub(points: Sequence[Place], layout: Layout, taken: list[Place]) -> Place:
    """A free place for a hub near the middle of its components, never on a component or on another hub."""
    x, y = (sum(p[axis] for p in points) / len(points) for axis in (0, 1))
    offsets = sorted(
        ((dx * 22.0, dy * 11.0) for dx in range(-14, 15) for dy in range(-9, 10)), key=lambda d: d[0] ** 2 + d[1] ** 2
    )
    for dx, dy in offsets:
        spot = (min(max(x + dx, 14.0), layout.width - 14), min(max(y + dy, 14.0), layout.height - 14))
        if _free(spot, layout, taken):
            break
    taken.append(spot)
    return spot


def _free(spot: Place, layout: Layout, taken: Sequence[Place]) -> bool:
    if any(abs(spot[0] - x) < 20 and abs(spot[1] - y) < 20 for x, y in taken):
        return False
    half = {True: (layout.box / 2 + 10, _TALL / 2 + 10), False: (_DOT + 10, _DOT + 10)}
    boxes = ((place, half[name in layout.labelled]) for name, place in layout.places.items())
    return not any(abs(spot[0] - x) < w and abs(spot[1] - y) < h for (x, y), (w, h) in boxes)


def _nodes(circuit: Circuit, layout: Layout) -> str:
    largest = max((abs(node.main or 0.0) for node in circuit.nodes), default=0.0) or 1.0
    ordered = sorted(circuit.nodes, key=lambda n: (layout.places[n.name][1], layout.places[n.name][0]))
    index = {name: i for i, name in enumerate(circuit.names)}
    return "".join(_node(n, index[n.name], layout, largest, first=i == 0) for i, n in enumerate(ordered))


def _node(node: Node, index: int, layout: Layout, largest: float, *, first: bool) -> str:
    x, y = layout.places[node.name]
    main = node.main or 0.0
    sort = "plain" if not main else "helps" if main > 0 else "hurts"
    colour = COLOURS.get(sort, "#777777")
    words = [node.name, *([node.role] if node.role else []), f"main effect {number(node.main, sign=True)}"]
    shape = _shape(node, layout, colour, abs(main) / largest)
    return (
        f'<g class="node {sort}" data-n="{index}" tabindex="{0 if first else -1}" role="button" aria-pressed="false" '
        f'aria-label="{text(", ".join(words))}" transform="translate({x:.1f} {y:.1f})">'
        f"<title>{text(', '.join(words))}</title>{shape}</g>"
    )


def _shape(node: Node, layout: Layout, colour: str, share: float) -> str:
    paint = f'stroke="{colour}" stroke-width="1.5"'
    if node.name not in layout.labelled:
        return f'<circle class="box" r="{_DOT}" fill="{colour}" fill-opacity="0.45" {paint}/>'
    half, round_ = layout.box / 2, 22 if node.component.kind in ("head", "kv", "attn") else 5
    box = f'x="{-half:.1f}" y="{-_TALL / 2}" width="{2 * half:.1f}" height="{_TALL}" rx="{round_}"'
    return (
        f'<rect class="back" {box} fill="#ffffff"/>'
        f'<rect class="box" {box} fill="{colour}" fill-opacity="{0.08 + 0.3 * share:.2f}" {paint}/>'
        f'<text class="name" y="-4" font-size="12.5" font-weight="600" text-anchor="middle" fill="#1c2126">'
        f"{text(_label(node.name))}</text>"
        f'<text class="main" y="13" font-size="11.5" text-anchor="middle" fill="#1c2126">'
        f"{number(node.main, 2, sign=True) if node.main is not None else 'joint only'}</text>"
    )


def _label(name: str) -> str:
    """A name as it fits into a box.

    >>> _label("[m3.n0:64,m4.n12:90]")
    '[m3.n0:…n12:90]'
    """
    return name if len(name) <= 16 else f"{name[:7]}…{name[-7:]}"
