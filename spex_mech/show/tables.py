"""The tables of a report: interactions, sheets of evidence, and the numbers behind the charts.

Numbers are kept beside their words, for sorting.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from spex_mech.circuit.graph import Circuit
from spex_mech.circuit.nodes import Interaction
from spex_mech.files.text import escaped, number, quoted_roles
from spex_mech.show.dossier import Cell, Check, Dossier, Sheet

MAX_TABLE_ROWS = 500  # interactions in the table
_TINY = 1e-16  # false discovery rates below it are not told apart


@dataclass(frozen=True)
class TableView:
    """A table as the template shows it, with its reading and its chart; columns not in `words` are right-aligned."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    words: Collection[int] = (0,)
    note: str = ""
    name: str = ""
    more: int = 0
    chart: Markup = Markup()


def interaction_table(dossier: Dossier) -> TableView | None:
    """The strongest interactions, each with how it was measured again where it was; None where there is none."""
    circuit = dossier.circuit
    if not circuit.interactions:
        return None
    again = bool(dossier.checks)
    names = ["components", "order", "kind", f"coefficient ({circuit.unit})", "knockout", "q", "stability"]
    largest, said = max(abs(i.coefficient) for i in circuit.interactions) or 1.0, circuit.texts
    rows = [
        _row(i, largest, dossier.checks.get(i.components) if again else None, again, quoted_roles(i.components, said))
        for i in circuit.interactions[:MAX_TABLE_ROWS]
    ]
    return TableView(
        caption=f"{len(circuit.interactions):,} interactions, strongest first",
        columns=[*names, "measured again", "confirmed"] if again else names,
        rows=rows,
        words=(0, 2, 8),
        note=_explained(circuit, again),
        name="sets",
        more=max(0, len(circuit.interactions) - MAX_TABLE_ROWS),
    )


def evidence_table(sheet: Sheet) -> TableView:
    """A sheet with its reading."""
    words = [i for i in range(len(sheet.columns)) if any(isinstance(row[i], str | bool) for row in sheet.rows)]
    return TableView(
        sheet.title, sheet.columns, [[_cell(cell) for cell in row] for row in sheet.rows], words, sheet.note
    )


def foreign(words: str) -> Markup:
    """Text of people's own: escaped, and its writing direction kept to itself."""
    return Markup(f"<bdi>{escaped(words)}</bdi>")


def _explained(circuit: Circuit, again: bool) -> str:
    q = "" if circuit.keep_prob is None else f", the others kept with probability {circuit.keep_prob:g}"
    words = (
        f"The coefficient is the mean joint effect over masks{q}; knockout, what ablating the whole set does to the "
        "intact model beyond what its parts do; q, the false discovery rate at which it is found; stability, the share "
        "of resamples that found it."
    )
    return words + (" Measured again: by fresh passes, in contexts that had no part in finding it." if again else "")


def _row(i: Interaction, largest: float, check: Check | None, again: bool, said: str) -> list[Any]:
    width = 36 * abs(i.coefficient) / largest
    mark = Markup(
        f'<svg class="mini" viewBox="0 0 36 8" aria-hidden="true"><rect class="{i.kind}" x="{36 - width:.1f}" '
        f'width="{width:.1f}" height="8" rx="2"/></svg>'
    )
    words = Markup("<code>{}</code>{}").format(Markup(escaped(i.label)), Markup(" ") + foreign(said) if said else "")
    cells = [
        words, i.order, i.kind, mark + _sorted_by(_with_error(i.coefficient, i.stderr), i.coefficient),
        _number(i.knockout, sign=True), _rate(i.q_value), _number(i.stability, digits=2),
    ]  # fmt: skip
    if not again:
        return cells
    if check is None:
        return [*cells, "–", "–"]
    return [
        *cells,
        _sorted_by(_with_error(check.estimate, check.stderr), check.estimate),
        "yes" if check.confirmed else "no",
    ]


def _with_error(value: float, stderr: float | None) -> str:
    return number(value, sign=True) + ("" if stderr is None else f" ± {number(stderr, 2)}")


def _rate(q: float | None) -> Markup:
    return _number(q, digits=2) if q is None or q >= _TINY else _sorted_by(f"< {_TINY:g}", q)


def _number(value: float | None, *, digits: int = 3, sign: bool = False) -> Markup:
    return _sorted_by(number(value, digits, sign=sign), value)


def _sorted_by(words: str, value: float | None) -> Markup:
    shown = Markup(escaped(words))
    return shown if value is None else Markup(f'<data value="{value!r}">{shown}</data>')


def _cell(cell: Cell) -> str:
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return _sorted_by(f"{cell:,}", cell)
    return _number(cell) if cell is None or isinstance(cell, float) else foreign(cell)
