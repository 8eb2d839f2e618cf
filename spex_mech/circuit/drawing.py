"""The circuit by layer, as an inline SVG: a row or more a layer, the first layer at the bottom, joint effects between.

A pair is a curve, a larger set a hub with spokes that bears its order. Kinds differ in colour and dash, main effects in
colour and sign. Weak components beyond `Frame.labelled` are folded into dots. Colours are presentation attributes, so
that the drawing stands alone; a style sheet may override them by class.
"""

from collections.abc import Sequence

from spex_mech.circuit.layout import (
    DOT,
    NOTEBOOK,
    TALL,
    WIDE,
    Band,
    Frame,
    Layout,
    Point,
    arrange,
    shown_first,
    strongest_joint,
)  # fmt: skip
from spex_mech.circuit.nodes import CircuitView, Interaction, Node
from spex_mech.files.text import escaped, number

KIND_COLOURS = {"synergy": "#009E73", "redundancy": "#CC79A7", "helps": "#0072B2", "hurts": "#D55E00"}
DASHES = {"synergy": "", "redundancy": ' stroke-dasharray="7 5"'}
_HIGH = 110.0  # what an arc over a row may rise, doubled
_NOTEBOOK_ROWS = 12  # interactions in the table under the drawing
_OFF = ' display="none"'


def draw(circuit: CircuitView, frame: Frame = WIDE) -> str:
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


def notebook_html(circuit: CircuitView, columns: Sequence[str]) -> str:
    """The drawing, then the strongest interactions as a table: attributes of theirs by name."""
    rows = "".join(_table_row(interaction, columns) for interaction in circuit.interactions[:_NOTEBOOK_ROWS])
    rest = len(circuit.interactions) - _NOTEBOOK_ROWS
    more = f"<p>… and {rest:,} more in <code>.frame()</code></p>" if rest > 0 else ""
    head = "".join(f"<th>{name}</th>" for name in columns)
    return f"{draw(circuit, NOTEBOOK) if circuit.nodes else ''}<table><tr>{head}</tr>{rows}</table>{more}"


def _table_row(interaction: Interaction, columns: Sequence[str]) -> str:
    cells = [interaction.label if name == "components" else getattr(interaction, name) for name in columns]
    shown = ["" if cell is None else number(cell, 4) if isinstance(cell, float) else str(cell) for cell in cells]
    return "<tr>" + "".join(f"<td>{escaped(cell)}</td>" for cell in shown) + "</tr>"


def _ground(band: Band, frame: Frame, place: int) -> str:
    shade = 0.07 if place % 2 == 0 else 0.04
    return (
        f'<rect class="band" x="1" y="{band.top:.0f}" width="{frame.width - 2}" height="{band.bottom - band.top:.0f}" '
        f'rx="10" fill="#888888" fill-opacity="{shade}"/>'
    )


def _name(band: Band, frame: Frame) -> str:
    """A band's name, over the lines: beside its rows, or above them where there is no room."""
    ink, title, remark = 'fill="currentColor"', escaped(band.title), escaped(band.remark)
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


def _edges(circuit: CircuitView, layout: Layout, frame: Frame) -> str:
    drawn, taken = strongest_joint(circuit), list[Point]()
    shown, largest = shown_first(drawn, frame), max((abs(i.coefficient) for i in drawn), default=1.0) or 1.0
    drawn = drawn if frame.spare else drawn[:shown]
    parts = [_edge(i, n, abs(i.coefficient) / largest, layout, taken, n < shown) for n, i in enumerate(drawn)]
    above = [[p for p, i in zip(parts, drawn, strict=True) if (i.order > 2) == hubs] for hubs in (False, True)]
    return "".join(part for some in above for part in reversed(some))  # hubs over curves, the strongest on top


def _edge(i: Interaction, rank: int, share: float, layout: Layout, taken: list[Point], shown: bool) -> str:
    points = [layout.places[name] for name in i.components]
    width = 1.2 + 5.3 * share
    hub = None if i.order == 2 else _hub(points, layout, taken)
    path = _curve(points[0], points[1], layout) if hub is None else " ".join(_spoke(hub, point) for point in points)
    mark = "" if hub is None else _mark(hub, i)
    label = f"{i.label}: {number(i.coefficient, sign=True)}, {i.kind}"
    return (
        f'<g class="edge {i.kind}{"" if shown else " off"}" data-e="{rank}"{"" if shown else _OFF}>'
        f'<title>{escaped(label)}</title><path class="hit" d="{path}" stroke="transparent" stroke-width="14"/>'
        f'<path class="line" d="{path}" stroke="{KIND_COLOURS[i.kind]}" stroke-width="{width:.1f}" '
        f'stroke-opacity="0.8" '
        f'stroke-linecap="round"{DASHES[i.kind]}/>{mark}</g>'
    )


def _mark(hub: Point, i: Interaction) -> str:
    filled = i.kind == "synergy"
    fill, ink = (KIND_COLOURS[i.kind], "#ffffff") if filled else ("#ffffff", KIND_COLOURS[i.kind])
    return (
        f'<circle class="hub" cx="{hub[0]:.0f}" cy="{hub[1]:.0f}" r="8.5" fill="{fill}" '
        f'stroke="{KIND_COLOURS[i.kind]}" '
        f'stroke-width="2"/><text class="order" x="{hub[0]:.0f}" y="{hub[1] + 3.8:.1f}" font-size="11" '
        f'font-weight="700" text-anchor="middle" fill="{ink}">{i.order}</text>'
    )


def _curve(one: Point, other: Point, layout: Layout) -> str:
    """A quadratic from centre to centre: over the row where both are in one, else past the boxes between them."""
    (x0, y0), (x1, y1) = one, other
    if y0 == y1:
        middle = ((x0 + x1) / 2, y0 - min(_HIGH, TALL + 14 + 0.1 * abs(x1 - x0)))
    else:
        beside = [0.12 * abs(y1 - y0), layout.box + 44, 1.6 * layout.box + 60, 2.4 * layout.box + 90]
        tries = [((x0 + x1) / 2 + sign * by, (y0 + y1) / 2) for by in beside for sign in _side(one, other, layout)]
        middle = next((m for m in tries if _clear(one, m, other, layout)), tries[0])
    return f"M{x0:.0f} {y0:.0f}Q{middle[0]:.0f} {middle[1]:.0f} {x1:.0f} {y1:.0f}"


def _side(one: Point, other: Point, layout: Layout) -> tuple[int, int]:
    """Which way to bend first: away from the middle."""
    return (1, -1) if one[0] + other[0] >= layout.width else (-1, 1)


def _clear(one: Point, middle: Point, other: Point, layout: Layout) -> bool:
    """Whether a quadratic meets no labelled box but those of its ends, and stays inside."""
    wide, tall = layout.box / 2 + 3, TALL / 2 + 3
    boxes = [layout.places[name] for name in layout.labelled]
    boxes = [box for box in boxes if box not in (one, other)]
    for step in range(1, 12):
        t = step / 12
        x, y = ((1 - t) ** 2 * a + 2 * t * (1 - t) * m + t * t * b for a, m, b in zip(one, middle, other, strict=True))
        if not 6 < x < layout.width - 6 or any(abs(x - u) < wide and abs(y - v) < tall for u, v in boxes):
            return False
    return True


def _spoke(hub: Point, point: Point) -> str:
    return f"M{hub[0]:.0f} {hub[1]:.0f}Q{point[0]:.0f} {hub[1]:.0f} {point[0]:.0f} {point[1]:.0f}"


def _hub(points: Sequence[Point], layout: Layout, taken: list[Point]) -> Point:
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


def _free(spot: Point, layout: Layout, taken: Sequence[Point]) -> bool:
    if any(abs(spot[0] - x) < 20 and abs(spot[1] - y) < 20 for x, y in taken):
        return False
    half = {True: (layout.box / 2 + 10, TALL / 2 + 10), False: (DOT + 10, DOT + 10)}
    boxes = ((place, half[name in layout.labelled]) for name, place in layout.places.items())
    return not any(abs(spot[0] - x) < w and abs(spot[1] - y) < h for (x, y), (w, h) in boxes)


def _nodes(circuit: CircuitView, layout: Layout) -> str:
    largest = max((abs(node.main or 0.0) for node in circuit.nodes), default=0.0) or 1.0
    ordered = sorted(circuit.nodes, key=lambda n: (layout.places[n.name][1], layout.places[n.name][0]))
    index = {name: i for i, name in enumerate(circuit.names)}
    return "".join(_node(n, index[n.name], layout, largest, first=i == 0) for i, n in enumerate(ordered))


def _node(node: Node, index: int, layout: Layout, largest: float, *, first: bool) -> str:
    x, y = layout.places[node.name]
    main = node.main or 0.0
    sort = "plain" if not main else "helps" if main > 0 else "hurts"
    colour = KIND_COLOURS.get(sort, "#777777")
    words = [node.name, *([node.role] if node.role else []), f"main effect {number(node.main, sign=True)}"]
    shape = _shape(node, layout, colour, abs(main) / largest)
    return (
        f'<g class="node {sort}" data-n="{index}" tabindex="{0 if first else -1}" role="button" aria-pressed="false" '
        f'aria-label="{escaped(", ".join(words))}" transform="translate({x:.1f} {y:.1f})">'
        f"<title>{escaped(', '.join(words))}</title>{shape}</g>"
    )


def _shape(node: Node, layout: Layout, colour: str, share: float) -> str:
    paint = f'stroke="{colour}" stroke-width="1.5"'
    if node.name not in layout.labelled:
        return f'<circle class="box" r="{DOT}" fill="{colour}" fill-opacity="0.45" {paint}/>'
    half, round_ = layout.box / 2, 22 if node.component.kind in ("head", "kv", "attn") else 5
    box = f'x="{-half:.1f}" y="{-TALL / 2}" width="{2 * half:.1f}" height="{TALL}" rx="{round_}"'
    return (
        f'<rect class="back" {box} fill="#ffffff"/>'
        f'<rect class="box" {box} fill="{colour}" fill-opacity="{0.08 + 0.3 * share:.2f}" {paint}/>'
        f'<text class="name" y="-4" font-size="12.5" font-weight="600" text-anchor="middle" fill="#1c2126">'
        f"{escaped(_label(node.name))}</text>"
        f'<text class="main" y="13" font-size="11.5" text-anchor="middle" fill="#1c2126">'
        f"{number(node.main, 2, sign=True) if node.main is not None else 'joint only'}</text>"
    )


def _label(name: str) -> str:
    """A name as it fits into a box.

    >>> _label("[m3.n0:64,m4.n12:90]")
    '[m3.n0:…n12:90]'
    """
    return name if len(name) <= 16 else f"{name[:7]}…{name[-7:]}"
