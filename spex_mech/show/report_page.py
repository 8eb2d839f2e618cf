"""`render`: a `Dossier` as one self-contained page, for a person who did not run the experiment.

Order: the answer, what was asked, the circuit, its interactions, the evidence, what it does not show, where it is from.
Without its script the page still says everything; the script filters the drawing, sorts, and answers to keys.
"""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from spex_mech.circuit.drawing import draw
from spex_mech.circuit.graph import Circuit
from spex_mech.circuit.layout import NARROW, WIDE, shown_first, strongest_joint
from spex_mech.files.text import fit_words, number, percent
from spex_mech.show.charts import bars, curves, legend, scatter, share_rows
from spex_mech.show.dossier import Check, Dossier
from spex_mech.show.html import Page, page
from spex_mech.show.prompt_text import draw_passage, passage_reading
from spex_mech.show.tables import TableView, evidence_table, interaction_table

_STABLE = 0.8  # share of resamples from which a finding is called stable
_STABILITY_BARS, _POINT_ROWS = 12, 200
_SECTIONS = {
    "answer": "The answer",
    "question": "What was asked",
    "text": "In the text",
    "circuit": "The circuit",
    "interactions": "Interactions",
    "evidence": "The evidence",
    "limits": "What this does not show",
    "provenance": "Where it is from",
}
_KINDS = {
    "synergy": "each counts for more while the others are kept (one that hurts: while it is ablated)",
    "redundancy": "each counts for more while the others are ablated",
}


_SORTS = {"helps": "keeping it raises the metric (+)", "hurts": "keeping it lowers the metric (−)"}


def render(dossier: Dossier) -> Page:
    """The page of a dossier: ``assets/report.html`` filled in. Every text in it is escaped; nothing is fetched."""
    circuit, drawn = dossier.circuit, strongest_joint(dossier.circuit)
    cards = [card for card in (_points(dossier), _sizes(dossier), _energy(circuit), _stability(dossier)) if card]
    sheets = [evidence_table(sheet) for sheet in dossier.sheets if sheet.rows]
    passage, sets = dossier.passage, interaction_table(dossier)
    there = {"question": dossier.question or dossier.prompts, "text": passage, "interactions": sets,
             "evidence": dossier.confidence or cards or sheets, "limits": dossier.limits}  # fmt: skip
    mains = [node.main or 0.0 for node in circuit.nodes]
    signs = {"helps": any(main > 0 for main in mains), "hurts": any(main < 0 for main in mains)}
    return page(
        dossier.title,
        _data(dossier),
        d=dossier,
        sections={name: title if there.get(name, True) else "" for name, title in _SECTIONS.items()},
        passage=[] if passage is None else [Markup(draw_passage(passage, circuit, frame)) for frame in (WIDE, NARROW)],
        passage_reading=passage_reading(circuit),
        reading=_reading(circuit),
        drawn=len(drawn),
        orders=sorted({i.order for i in drawn}),
        kinds={kind: words for kind, words in _KINDS.items() if any(i.kind == kind for i in drawn)},
        sorts={sort: words for sort, words in _SORTS.items() if signs[sort]},
        shown=shown_first(drawn, WIDE) if drawn else 0,
        shown_narrow=shown_first(drawn, NARROW) if drawn else 0,
        drawings=[Markup(draw(circuit, frame)) for frame in (WIDE, NARROW)] if circuit.nodes else [],
        sets=sets,
        cards=cards,
        sheets=sheets,
    )


def _reading(circuit: Circuit) -> str:
    some = "a joint effect, not a path through the model" if strongest_joint(circuit) else "none was found"
    words = (
        f"A box is a component; the number in it is its own effect in {circuit.unit}, positive where keeping it raises "
        f"the metric. A line is a set that acts together: {some}."
    )
    few = len(circuit.nodes) > WIDE.labelled
    return words + (" The strongest components bear names, the others are dots." if few else "")


def _card(title: str, note: str, chart: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> TableView:
    return TableView(title, columns, rows, note=note, chart=Markup(chart))


def _points(dossier: Dossier) -> TableView | None:
    points = dossier.points
    if points is None or not points.measured:
        return None
    note = f"Each point is one of {len(points.measured):,} {points.source}. On the line the prediction is right."
    note += "" if points.r2 is None else f" R² {fit_words(points.r2)} over {points.masks:,}."
    pairs = list(zip(points.measured, points.predicted, strict=True))
    rows = [[number(m, 4), number(p, 4), number(m - p, 3, sign=True)] for m, p in pairs[:_POINT_ROWS]]
    columns = ("measured", "predicted", "missed by")
    return _card("Predicted and measured", note, scatter(points, dossier.circuit.unit), columns, rows)


def _sizes(dossier: Dossier) -> TableView | None:
    if not dossier.sizes:
        return None
    known = any(s.random_mean is not None for s in dossier.sizes)
    names = [("preserve", "chosen to preserve the metric"), ("help", "chosen to raise it")]
    names += [("random", "random sets of the same size (± 1 s.d.)")] if known else []
    rows = [
        [f"{s.count:,}", number(s.preserve), number(s.help), number(s.random_mean), number(s.random_std)]
        for s in sorted({s.count: s for s in dossier.sizes}.values(), key=lambda s: s.count)
    ]
    note = "All else ablated, by forward passes: 1 is the intact model, 0 is everything ablated."
    columns = ("components kept", "preserve", "raise", "random, mean", "random, s.d.")
    return _card("How much a circuit keeps", note, curves(dossier.sizes) + legend(names), columns, rows)


def _energy(circuit: Circuit) -> TableView | None:
    energy = {order: e for order, e in circuit.energy.items() if order}
    if not any(energy.values()):
        return None
    shares = share_rows(energy)
    note = "Sum of squared coefficients by the number of components in a set. What is beyond order 1 is interaction."
    rows = [
        [name, percent(share), number(energy[o])] for (name, share, _), o in zip(shares, sorted(energy), strict=True)
    ]
    chart = bars(shares, "Share of the polynomial's variance by order")
    return _card("What each order explains", note, chart, ("order", "share", f"{circuit.unit}²"), rows)


def _stability(dossier: Dossier) -> TableView | None:
    known = [i for i in dossier.circuit.interactions if i.stability is not None]
    if not known:
        return None
    shown = ([i for i in known if i.order > 1] or known)[:_STABILITY_BARS]
    note = (
        f"Share of resamples of the masks that found a set again, the strongest sets first; the line is at {_STABLE}."
    )
    rows = [(i.label, i.stability or 0.0, number(i.stability, 2)) for i in shown]
    cells = [[Markup("<code>{}</code>").format(i.label), number(i.stability, 2)] for i in known[:_POINT_ROWS]]
    return _card("Found again", note, bars(rows, "Stability", line=_STABLE), ("components", "share"), cells)


def _data(dossier: Dossier) -> dict[str, Any]:
    """What the script knows: names and numbers of nodes and drawn sets, in the order in which they are drawn."""
    circuit = dossier.circuit
    place = {name: i for i, name in enumerate(circuit.names)}
    edges = [
        {"c": [place[name] for name in i.components], "k": i.kind, "v": i.coefficient, "e": i.stderr, "q": i.q_value,
         "s": i.stability, "x": i.knockout, "m": _measured(dossier.checks.get(i.components))}
        for i in strongest_joint(circuit)
    ]  # fmt: skip
    nodes = [{"n": n.name, "r": n.role, "m": n.main, "e": n.stderr} for n in circuit.nodes]
    total = sum(i.order > 1 for i in circuit.interactions)
    return {"unit": circuit.unit, "nodes": nodes, "edges": edges, "total": total}


def _measured(check: Check | None) -> list[Any] | None:
    return None if check is None else [check.estimate, check.stderr, check.confirmed]
