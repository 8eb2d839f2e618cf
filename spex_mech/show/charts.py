"""Small charts as inline SVG: bars, points, curves. Each is told apart without colour and has a table beside it."""

import math
from collections.abc import Sequence

from spex_mech.files.text import escaped, fit_words, percent
from spex_mech.show.dossier import Points, SizePoint

_WIDTH, _HEIGHT = 360.0, 290.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 54.0, 14.0, 14.0, 44.0
_NAME = 22  # characters of a bar's name
_FEW, _MANY = -0.5, 1.5  # faithfulness beyond these is drawn at the edge


def bars(rows: Sequence[tuple[str, float, str]], label: str, *, line: float | None = None) -> str:
    """Horizontal bars from 0 to 1: (name, share, what stands at the end); `line` marks a bar that is asked for."""
    left = 16.0 + 6.6 * max(min(len(name), _NAME) for name, _, _ in rows)
    step, room = 28.0, _WIDTH - left - 62.0
    height = step * len(rows) + 12
    parts = []
    for i, (name, share, words) in enumerate(rows):
        y, length = 8 + i * step, room * min(max(share, 0.0), 1.0)
        parts.append(
            f'<text class="tick" x="{left - 8}" y="{y + 14}" text-anchor="end">{escaped(_short(name, _NAME))}</text>'
            f'<rect class="track" x="{left}" y="{y + 2}" width="{room}" height="16" rx="3"/>'
            f'<rect class="bar" x="{left}" y="{y + 2}" width="{length:.1f}" height="16" rx="3"/>'
            f'<text class="value" x="{left + room + 8}" y="{y + 14}">{escaped(words)}</text>'
        )
    if line is not None:
        x = left + room * line
        parts.append(f'<line class="asked" x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="{height - 6}"/>')
    return _svg("".join(parts), label, height)


def scatter(points: Points, unit: str) -> str:
    """Predicted against measured, with the line on which they agree."""
    both = (*points.measured, *points.predicted)
    low, high = _span(both)
    ticks = _ticks(low, high)
    across, up = _Scale(low, high, _LEFT, _WIDTH - _RIGHT), _Scale(low, high, _HEIGHT - _BOTTOM, _TOP)
    dots = "".join(
        f'<circle cx="{across(m):.1f}" cy="{up(p):.1f}" r="2.6"/>'
        for m, p in zip(points.measured, points.predicted, strict=True)
    )
    body = (
        f'<line class="agree" x1="{across(low)}" y1="{up(low)}" x2="{across(high)}" y2="{up(high)}"/>'
        f'<g class="dots">{dots}</g>'
        + _axis_x([(across(t), w) for t, w in ticks], f"measured ({unit})")
        + _axis_y([(up(t), w) for t, w in ticks], f"predicted ({unit})")
    )
    r2 = "" if points.r2 is None else f", R² {fit_words(points.r2)}"
    return _svg(body, f"Predicted against measured values of {len(points.measured)} {points.source}{r2}", _HEIGHT)


def curves(sizes: Sequence[SizePoint]) -> str:
    """Faithfulness over the number of components kept; circuits that preserve, that help, and random ones."""
    sizes = sorted({size.count: size for size in sizes}.values(), key=lambda size: size.count)
    high = max(1.15, *(min(_MANY, max(s.preserve, s.help)) for s in sizes)) + 0.05
    low = min(-0.05, *(max(_FEW, min(s.preserve, s.help)) for s in sizes)) - 0.05
    known = [s for s in sizes if s.random_mean is not None]
    low = min([low, *(max(_FEW, (s.random_mean or 0.0) - (s.random_std or 0.0)) - 0.05 for s in known)])
    most = math.log1p(sizes[-1].count) or 1.0
    across = _Scale(0.0, most, _LEFT + 6, _WIDTH - _RIGHT - 6)
    up = _Scale(low, high, _HEIGHT - _BOTTOM, _TOP)
    x = {s.count: across(math.log1p(s.count)) for s in sizes}
    body = "".join(
        f'<line class="agree" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{up(v):.1f}" y2="{up(v):.1f}"/>'
        for v in (0.0, 1.0)
    )
    random = [(x[s.count], up(min(max(s.random_mean or 0.0, low), high))) for s in known]
    body += _whiskers(known, x, up, low, high) + _series("random", random)
    body += _series("help", [(x[s.count], up(min(max(s.help, low), high))) for s in sizes])
    body += _series("preserve", [(x[s.count], up(min(max(s.preserve, low), high))) for s in sizes])
    marks, last = [], -99.0
    for size in sizes:
        if x[size.count] - last > 24:
            marks.append((x[size.count], f"{size.count:,}"))
            last = x[size.count]
    body += _axis_x(marks, "components kept")
    body += _axis_y([(up(t), w) for t, w in _ticks(low, high)], "faithfulness")
    return _svg(body, "Faithfulness, measured, over the number of components kept", _HEIGHT)


def _series(name: str, places: Sequence[tuple[float, float]]) -> str:
    """A line with marks: circles, squares or triangles by name."""
    if not places:
        return ""
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    marks = "".join(mark(name, x, y) for x, y in places)
    return f'<g class="series {name}"><polyline points="{line}"/>{marks}</g>'


def mark(name: str, x: float, y: float) -> str:
    """The mark of a series: the same in the chart and in its legend."""
    if name == "help":
        return f'<rect x="{x - 3.8:.1f}" y="{y - 3.8:.1f}" width="7.6" height="7.6"/>'
    if name == "random":
        return f'<path d="M{x:.1f} {y - 4.6:.1f}l4.6 8h-9.2z"/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.2"/>'


def legend(rows: Sequence[tuple[str, str]]) -> str:
    """(series, words) as a list."""
    items = "".join(
        f'<li><svg class="key" viewBox="0 0 34 14" aria-hidden="true"><g class="series {name}">'
        f'<polyline points="1,7 33,7"/>{mark(name, 17, 7)}</g></svg>{escaped(words)}</li>'
        for name, words in rows
    )
    return f'<ul class="legend">{items}</ul>'


def share_rows(energy: dict[int, float]) -> list[tuple[str, float, str]]:
    """Bars of Σ coefficient² by order, as shares of their sum."""
    total = sum(energy.values()) or 1.0
    return [(f"order {order}", e / total, percent(e / total)) for order, e in sorted(energy.items())]


def _whiskers(known: Sequence[SizePoint], x: dict[int, float], up: "_Scale", low: float, high: float) -> str:
    parts = []
    for s in known:
        ends = ((s.random_mean or 0.0) + sign * (s.random_std or 0.0) for sign in (-1, 1))
        bottom, top = (up(min(max(end, low), high)) for end in ends)
        parts.append(
            f'<line class="whisker" x1="{x[s.count]:.1f}" x2="{x[s.count]:.1f}" y1="{bottom:.1f}" y2="{top:.1f}"/>'
        )
    return "".join(parts)


class _Scale:
    """A straight map of one interval onto another."""

    def __init__(self, low: float, high: float, start: float, stop: float) -> None:
        self.low, self.start, self.slope = low, start, (stop - start) / ((high - low) or 1.0)

    def __call__(self, value: float) -> float:
        return round(self.start + self.slope * (value - self.low), 2)


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = 0.05 * (high - low) or max(0.5, 0.05 * abs(high))
    return low - pad, high + pad


def _ticks(low: float, high: float, about: int = 5) -> list[tuple[float, str]]:
    """Round numbers between two ends, each with its words, of one precision.

    >>> _ticks(-0.3, 1.2)
    [(0.0, '0.0'), (0.5, '0.5'), (1.0, '1.0')]
    """
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= raw)
    first = math.ceil(low / step - 1e-9)
    values = [round(k * step, 12) + 0.0 for k in range(first, math.floor(high / step + 1e-9) + 1)]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(value, f"{value:,.{decimals}f}".replace("-", "−")) for value in values]


def _axis_x(marks: Sequence[tuple[float, str]], label: str) -> str:
    y = _HEIGHT - _BOTTOM
    ticks = "".join(
        f'<text class="tick" x="{x}" y="{y + 17}" text-anchor="middle">{escaped(w)}</text>' for x, w in marks
    )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    return (
        f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>{ticks}'
        f'<text class="label" x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">'
        f"{escaped(label)}</text>"
    )


def _axis_y(marks: Sequence[tuple[float, str]], label: str) -> str:
    ticks = "".join(
        f'<text class="tick" x="{_LEFT - 7}" y="{y + 4}" text-anchor="end">{escaped(w)}</text>' for y, w in marks
    )
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    return (
        f'<line class="axis" x1="{_LEFT}" x2="{_LEFT}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>{ticks}'
        f'<text class="label" transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escaped(label)}</text>"
    )


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _svg(body: str, label: str, height: float) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH:.0f} {height:.0f}" role="img" aria-label="{escaped(label)}" '
        f'font-family="ui-sans-serif,system-ui,sans-serif" font-size="12">{body}</svg>'
    )
