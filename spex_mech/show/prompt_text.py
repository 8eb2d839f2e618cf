"""A prompt with its parts highlighted by their effects, and arcs between parts that act together, as an inline SVG.

Text is set in columns of one width, like a typewriter's, so that it can be laid out without asking a browser; each
piece is stretched to the width it was given, whatever the font.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from spex_mech.circuit.drawing import DASHES, KIND_COLOURS
from spex_mech.circuit.graph import Circuit
from spex_mech.circuit.layout import NARROW, WIDE, Frame, shown_first, strongest_joint
from spex_mech.circuit.nodes import Interaction
from spex_mech.files.text import escaped, number
from spex_mech.show.dossier import PromptText

MAX_LINES = 400
_COLUMN, _LINE, _TALL = 8.6, 27.0, 21.0  # pixels a column, a line, a highlighted piece
_RISE = 46.0  # what an arc rises over its line at most
_ATOM = re.compile(r"\n|[^\S\n]+|\S+")


@dataclass(frozen=True)
class Piece:
    """A stretch of text on one line; `part` is the number of its part, or None for what lies between parts."""

    part: int | None
    line: int
    column: int
    width: int
    words: str


def draw_passage(passage: PromptText, circuit: Circuit, frame: Frame = WIDE) -> str:
    """The drawing as one ``<svg>``; a text longer than `MAX_LINES` is cut, and says so."""
    pieces = list(flow(passage, int((frame.width - 24) / _COLUMN)))
    cut = max((p.line for p in pieces), default=0) >= MAX_LINES
    pieces = [p for p in pieces if p.line < MAX_LINES]
    first = {p.part: p for p in reversed(pieces) if p.part is not None}
    places = {passage.names[i]: piece for i, piece in first.items() if i is not None}
    drawn = [i for i in strongest_joint(circuit) if all(name in places for name in i.components)]
    drawn = drawn[: shown_first(drawn, frame)] if drawn else []
    tops = _tops(pieces, _hops(drawn, places))
    height = (tops[-1] if tops else 0.0) + _LINE + (24 if cut else 6)
    arcs = "".join(_arc(i, places, tops, abs(i.coefficient) / abs(drawn[0].coefficient)) for i in reversed(drawn))
    words = "".join(_piece(p, passage, circuit, tops) for p in pieces)
    more = f'<text x="12" y="{height - 6:.0f}" font-size="12" fill="currentColor">… and more</text>' if cut else ""
    return (
        f'<svg class="passage" viewBox="0 0 {frame.width} {height:.0f}" width="{frame.width}" height="{height:.0f}" '
        f'role="img" aria-label="The prompt, its parts coloured by their effects" '
        f'font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,monospace" font-size="14">'
        f'<g fill="none">{arcs}</g>{words}{more}</svg>'
    )


def passage_section(passage: PromptText, circuit: Circuit) -> str:
    """The drawing, wide and narrow, with how to read it."""
    told = (
        f"Blue parts raise the metric where they are kept, orange ones lower it, the more the stronger the colour; the "
        f"largest effect of one part is {number(_largest(circuit))} {circuit.unit}. Arcs join the parts that act "
        "together; dashed ones are redundancies."
    )
    return (
        f'<p>{escaped(told)}</p><div class="stage"><div class="wide">{draw_passage(passage, circuit, WIDE)}</div>'
        f'<div class="narrow">{draw_passage(passage, circuit, NARROW)}</div></div>'
    )


def flow(passage: PromptText, columns: int) -> Iterator[Piece]:
    """Pieces line by line: words are kept whole where they fit, and what lies in one part on one line is one piece."""
    at, open_ = [0, 0], Piece(None, 0, 0, 0, "")
    for part, words in _in_order(passage):
        for atom in _ATOM.findall(words):
            for bit in _fitting(atom, columns):
                wide = width_of(bit)
                if bit == "\n" or at[1] + wide > columns:
                    at = [at[0] + 1, 0]
                if bit == "\n" or (bit.isspace() and at[1] == 0):
                    continue
                joined = (open_.part, open_.line, open_.column + open_.width) == (part, *at)
                if joined:
                    open_ = Piece(part, open_.line, open_.column, open_.width + wide, open_.words + bit)
                else:
                    yield from (open_,) if open_.words else ()
                    open_ = Piece(part, at[0], at[1], wide, bit)
                at[1] += wide
    yield from (open_,) if open_.words else ()


def width_of(words: str) -> int:
    """Columns: two for wide characters, none for marks that sit on others.

    >>> width_of("ab"), width_of("漢"), width_of("e\u0301")
    (2, 2, 1)
    """
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in words)


def _in_order(passage: PromptText) -> Iterator[tuple[int | None, str]]:
    for i, (gap, part) in enumerate(zip(passage.gaps, passage.parts, strict=False)):
        yield None, gap
        yield i, part
    yield None, passage.gaps[-1]


def _fitting(atom: str, columns: int) -> list[str]:
    """An atom as it is, or in bits where it is longer than a line."""
    if width_of(atom) <= columns:
        return [atom]
    return [atom[start : start + columns // 2] for start in range(0, len(atom), columns // 2)]


def _hops(drawn: Sequence[Interaction], places: dict[str, Piece]) -> list[tuple[Piece, Piece]]:
    return [hop for i in drawn for hop in _steps(i, places)]


def _steps(interaction: Interaction, places: dict[str, Piece]) -> list[tuple[Piece, Piece]]:
    """From part to part in the order of the text."""
    ends = sorted((places[name] for name in interaction.components), key=lambda p: (p.line, p.column))
    return list(pairwise(ends))


def _tops(pieces: Sequence[Piece], hops: Sequence[tuple[Piece, Piece]]) -> list[float]:
    """Where the text of each line begins; lines with arcs over them have room for those."""
    rise: dict[int, float] = {}
    for one, other in hops:
        if one.line == other.line:
            rise[one.line] = max(rise.get(one.line, 0.0), _high(one, other))
    tops, y = list[float](), 6.0
    for line in range(max((p.line for p in pieces), default=-1) + 1):
        y += rise.get(line, 0.0)
        tops.append(y)
        y += _LINE
    return tops


def _high(one: Piece, other: Piece) -> float:
    return min(_RISE, 14 + 0.12 * abs(_middle(other) - _middle(one)))


def _middle(piece: Piece) -> float:
    return 12 + (piece.column + piece.width / 2) * _COLUMN


def _arc(i: Interaction, places: dict[str, Piece], tops: Sequence[float], share: float) -> str:
    path = " ".join(_path(one, other, tops) for one, other in _steps(i, places))
    label = f"{i.label}: {number(i.coefficient, sign=True)}, {i.kind}"
    return (
        f'<g class="arc {i.kind}"><title>{escaped(label)}</title><path d="{path}" stroke="{KIND_COLOURS[i.kind]}" '
        f'stroke-width="{1.2 + 3.3 * share:.1f}" stroke-opacity="0.85" stroke-linecap="round"{DASHES[i.kind]}/></g>'
    )


def _path(one: Piece, other: Piece, tops: Sequence[float]) -> str:
    """Over the line where both are on one; else from under the upper to over the lower."""
    x0, x1 = _middle(one), _middle(other)
    if one.line == other.line:
        y = tops[one.line]
        return (
            f"M{x0:.0f} {y:.0f}C{x0:.0f} {y - 1.3 * _high(one, other):.0f} {x1:.0f} "
            f"{y - 1.3 * _high(one, other):.0f} {x1:.0f} {y:.0f}"
        )
    y0, y1 = tops[one.line] + _TALL, tops[other.line]
    middle = (y0 + y1) / 2
    return f"M{x0:.0f} {y0:.0f}C{x0:.0f} {middle:.0f} {x1:.0f} {middle:.0f} {x1:.0f} {y1:.0f}"


def _piece(piece: Piece, passage: PromptText, circuit: Circuit, tops: Sequence[float]) -> str:
    x, y, wide = 12 + piece.column * _COLUMN, tops[piece.line], piece.width * _COLUMN
    words = (
        f'<text x="{x:.1f}" y="{y + 15.5:.1f}" textLength="{wide:.1f}" lengthAdjust="spacingAndGlyphs" '
        f'fill="currentColor" xml:space="preserve">{escaped(piece.words)}</text>'
    )
    if piece.part is None:
        return f'<g fill-opacity="0.65">{words}</g>' if piece.words.strip() else ""
    name = passage.names[piece.part]
    main = next((n.main or 0.0 for n in circuit.nodes if n.name == name), None)
    if main is None:
        return words
    colour = KIND_COLOURS["helps" if main > 0 else "hurts"] if main else "#777777"
    strength = 0.10 + 0.5 * abs(main) / _largest(circuit)
    told = f"{name}, main effect {number(main, sign=True)}" if main else f"{name}, joint effects only"
    return (
        f'<g class="part"><title>{escaped(told)}</title><rect x="{x - 1:.1f}" y="{y:.1f}" width="{wide + 2:.1f}" '
        f'height="{_TALL}" rx="4" fill="{colour}" fill-opacity="{strength:.2f}" stroke="{colour}"/>{words}</g>'
    )


def _largest(circuit: Circuit) -> float:
    return max((abs(node.main or 0.0) for node in circuit.nodes), default=0.0) or 1.0
