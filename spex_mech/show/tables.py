"""The tables of a report: interactions, and sheets of evidence. Numbers are kept beside their words, for sorting."""

from spex_mech.circuit.graph import Circuit
from spex_mech.circuit.nodes import Interaction
from spex_mech.files.text import escaped, number, quoted_roles
from spex_mech.show.dossier import Cell, Check, Dossier, Sheet
from spex_mech.show.html import foreign, table

MAX_TABLE_ROWS = 500  # interactions in the table
_TINY = 1e-16  # false discovery rates below it are not told apart


def interactions(dossier: Dossier) -> str:
    """The strongest interactions, each with how it was measured again where it was; empty where there is none."""
    circuit = dossier.circuit
    if not circuit.interactions:
        return ""
    again = bool(dossier.checks)
    names = ["components", "order", "kind", f"coefficient ({circuit.unit})", "knockout", "q", "stability"]
    wide = [*names, "measured again", "confirmed"] if again else names
    largest, said = max(abs(i.coefficient) for i in circuit.interactions) or 1.0, circuit.texts
    rows = [
        _row(i, largest, dossier.checks.get(i.components) if again else None, again, quoted_roles(i.components, said))
        for i in circuit.interactions[:MAX_TABLE_ROWS]
    ]
    rest = len(circuit.interactions) - MAX_TABLE_ROWS
    more = f"<p>{rest:,} weaker ones are in interactions.csv.</p>" if rest > 0 else ""
    return (
        f"<p>{escaped(_explained(circuit, again))}</p>"
        + table(
            wide,
            rows,
            caption=f"{len(circuit.interactions):,} interactions, strongest first",
            name="sets",
            words=(0, 2, 8),
        )
        + more
    )


def _explained(circuit: Circuit, again: bool) -> str:
    q = "" if circuit.keep_prob is None else f", the others kept with probability {circuit.keep_prob:g}"
    words = (
        f"The coefficient is the mean joint effect over masks{q}; knockout, what ablating the whole set does to the "
        "intact model beyond what its parts do; q, the false discovery rate at which it is found; stability, the share "
        "of resamples that found it."
    )
    return words + (" Measured again: by fresh passes, in contexts that had no part in finding it." if again else "")


def _row(i: Interaction, largest: float, check: Check | None, again: bool, said: str) -> list[str]:
    width = 36 * abs(i.coefficient) / largest
    mark = (
        f'<svg class="mini" viewBox="0 0 36 8" aria-hidden="true"><rect class="{i.kind}" x="{36 - width:.1f}" '
        f'width="{width:.1f}" height="8" rx="2"/></svg>'
    )
    cells = [
        f"<code>{escaped(i.label)}</code>{f' {foreign(said)}' if said else ''}", str(i.order), escaped(i.kind),
        f"{mark}{_sorted_by(_with_error(i.coefficient, i.stderr), i.coefficient)}",
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


def _rate(q: float | None) -> str:
    return _number(q, digits=2) if q is None or q >= _TINY else _sorted_by(f"< {_TINY:g}", q)


def _number(value: float | None, *, digits: int = 3, sign: bool = False) -> str:
    return _sorted_by(number(value, digits, sign=sign), value)


def _sorted_by(words: str, value: float | None) -> str:
    return words if value is None else f'<data value="{value!r}">{words}</data>'


def evidence_sheet(sheet: Sheet) -> str:
    """A sheet with its title and its reading."""
    rows = [[_cell(cell) for cell in row] for row in sheet.rows]
    note = f"<p>{escaped(sheet.note)}</p>" if sheet.note else ""
    words = [i for i in range(len(sheet.columns)) if any(isinstance(row[i], str | bool) for row in sheet.rows)]
    return f"<h3>{escaped(sheet.title)}</h3>{note}{table(sheet.columns, rows, caption=sheet.title, words=words)}"


def _cell(cell: Cell) -> str:
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return _sorted_by(f"{cell:,}", cell)
    return _number(cell) if cell is None or isinstance(cell, float) else foreign(cell)
