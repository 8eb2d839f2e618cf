"""`render`: a `Dossier` as one self-contained page, for a person who did not run the experiment.

Order: the answer, what was asked, the circuit, its interactions, the evidence, what it does not show, where it is from.
Without its script the page still says everything; the script filters the drawing, sorts, and answers to keys.
"""

from collections.abc import Sequence
from typing import Any

from spex_mech.circuit.drawing import draw
from spex_mech.circuit.graph import Circuit
from spex_mech.circuit.layout import NARROW, WIDE, shown_first, strongest_joint
from spex_mech.circuit.nodes import Interaction
from spex_mech.files.text import escaped, fit_words, number, percent
from spex_mech.show.charts import bars, curves, legend, scatter, share_rows
from spex_mech.show.dossier import Check, Dossier, Fact
from spex_mech.show.html import Page, foreign, page, table
from spex_mech.show.prompt_text import passage_section
from spex_mech.show.tables import evidence_sheet, interactions

_STABLE = 0.8  # share of resamples from which a finding is called stable
_STABILITY_BARS, _POINT_ROWS = 12, 200
_KINDS = {
    "synergy": "needed together: the set does more than its parts",
    "redundancy": "each is enough: its members back each other up",
}


def render(dossier: Dossier) -> Page:
    """The page of a dossier. Every text in it is escaped; nothing is fetched."""
    sections = [
        ("answer", "The answer", _answer(dossier)),
        ("question", "What was asked", _question(dossier)),
        ("text", "In the text", _passage(dossier)),
        ("circuit", "The circuit", _circuit(dossier)),
        ("interactions", "Interactions", interactions(dossier)),
        ("evidence", "The evidence", _evidence(dossier)),
        ("limits", "What this does not show", _list(dossier.limits, "limits")),
        ("provenance", "Where it is from", _provenance(dossier)),
    ]
    there = [section for section in sections if section[2]]
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title, _ in there)
    body = "".join(
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>{content}</section>'
        for name, title, content in there
    )
    summary = f"<p>{foreign(dossier.summary)}</p>" if dossier.summary else ""
    return page(
        dossier.title,
        f'<a class="skip" href="#answer">Skip to the answer</a><header><div class="top"><p class="kind">Circuit report'
        f'</p><button type="button" id="theme" hidden>Theme</button></div><h1>{foreign(dossier.title)}</h1>{summary}'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header><main>{body}</main>'
        "<footer><p>Written by spex_mech. This file is complete: it loads nothing.</p></footer>",
        _data(dossier),
    )


def _answer(dossier: Dossier) -> str:
    warnings = "".join(f'<p class="warning"><strong>Caution.</strong> {escaped(w)}</p>' for w in dossier.warnings)
    figures = "".join(
        f'<div class="figure"><dt>{escaped(f.label)}</dt><dd><strong>{escaped(f.value)}</strong>'
        f"{f'<span>{escaped(f.note)}</span>' if f.note else ''}</dd></div>"
        for f in dossier.headline
    )
    first, rest = escaped(" ".join(dossier.answer[:1])), escaped(" ".join(dossier.answer[1:]))
    told = f'<p class="lead">{first}</p>' + (f"<p>{rest}</p>" if rest else "")
    return told + warnings + (f'<dl class="figures">{figures}</dl>' if figures else "")


def _question(dossier: Dossier) -> str:
    if not dossier.prompts:
        return _facts(dossier.question)
    rows = "".join(f"<li><code>{foreign(prompt)}</code></li>" for prompt in dossier.prompts)
    more = dossier.prompt_count - len(dossier.prompts)
    title = f"Example prompts ({len(dossier.prompts)} of {dossier.prompt_count:,})" if more > 0 else "Prompts"
    return f'{_facts(dossier.question)}<h3>{title}</h3><ol class="prompts">{rows}</ol>'


def _facts(facts: Sequence[Fact]) -> str:
    rows = "".join(f"<div><dt>{escaped(f.label)}</dt><dd>{foreign(f.value)}{_note(f.note)}</dd></div>" for f in facts)
    return f'<dl class="facts">{rows}</dl>' if rows else ""


def _note(words: str) -> str:
    return f' <span class="note">{escaped(words)}</span>' if words else ""


def _passage(dossier: Dossier) -> str:
    return "" if dossier.passage is None else passage_section(dossier.passage, dossier.circuit)


def _circuit(dossier: Dossier) -> str:
    circuit = dossier.circuit
    if not circuit.nodes:
        return "<p>No component was found to matter, so there is nothing to draw.</p>"
    drawn = strongest_joint(circuit)
    return (
        f"<p>{_reading(circuit)}</p>{_controls(circuit) if drawn else ''}"
        f'<div class="stage"><div class="wide">{draw(circuit, WIDE)}</div>'
        f'<div class="narrow">{draw(circuit, NARROW)}</div>{_key(circuit, drawn)}</div>'
        '<div id="detail" class="detail" role="status" aria-live="polite" hidden></div>'
    )


def _reading(circuit: Circuit) -> str:
    some = "a joint effect, not a path through the model" if strongest_joint(circuit) else "none was found"
    words = (
        f"A box is a component; the number in it is its own effect in {circuit.unit}, positive where keeping it raises "
        f"the metric. A line is a set that acts together: {some}."
    )
    few = len(circuit.nodes) > WIDE.labelled
    return escaped(words + (" The strongest components bear names, the others are dots." if few else ""))


def _controls(circuit: Circuit) -> str:
    drawn = strongest_joint(circuit)
    orders = "".join(_box("order", str(o), f"order {o}") for o in sorted({i.order for i in drawn}))
    kinds = "".join(_box("kind", k, k) for k in _KINDS if any(i.kind == k for i in drawn))
    signs = "".join(
        f'<label><input type="radio" name="sign" value="{value}"{" checked" if value == "any" else ""}>{words}</label>'
        for value, words in (("any", "any"), ("pos", "+"), ("neg", "−"))
    )
    return (
        '<form id="filters" class="filters" aria-label="Filter the drawing" hidden>'
        f"<fieldset><legend>Order</legend>{orders}</fieldset><fieldset><legend>Kind</legend>{kinds}</fieldset>"
        f"<fieldset><legend>Sign</legend>{signs}</fieldset>"
        f'<fieldset class="slide"><legend><label for="strongest">Strongest</label></legend><input type="range" '
        f'id="strongest" min="1" max="{len(drawn)}" value="{shown_first(drawn, WIDE)}" '
        f'data-narrow="{shown_first(drawn, NARROW)}"></fieldset>'
        f'<p id="count" role="status"></p></form>'
    )


def _box(name: str, value: str, words: str) -> str:
    return f'<label><input type="checkbox" name="{name}" value="{escaped(value)}" checked>{escaped(words)}</label>'


def _key(circuit: Circuit, drawn: Sequence[Interaction]) -> str:
    rows = [
        f'<li><svg class="key" viewBox="0 0 34 14" aria-hidden="true"><g class="edge {kind}"><path class="line" '
        f'd="M1 7H33" stroke-width="3"/></g></svg><span><b>{kind}</b>: {words}</span></li>'
        for kind, words in _KINDS.items()
        if any(i.kind == kind for i in drawn)
    ]
    if any(i.order > 2 for i in drawn):
        rows.append('<li><span class="disc">3</span><span>a set of three or more, with their number</span></li>')
    for sort, words in (("helps", "keeping it raises the metric (+)"), ("hurts", "keeping it lowers the metric (−)")):
        if any((n.main or 0.0) * (1 if sort == "helps" else -1) > 0 for n in circuit.nodes):
            rows.append(f'<li><span class="swatch {sort}"></span><span>{words}</span></li>')
    return f'<ul class="legend">{"".join(rows)}</ul>'


def _evidence(dossier: Dossier) -> str:
    cards = [_points(dossier), _sizes(dossier), _energy(dossier.circuit), _stability(dossier)]
    sheets = "".join(evidence_sheet(sheet) for sheet in dossier.sheets if sheet.rows)
    told = "".join(f"<p>{escaped(sentence)}</p>" for sentence in dossier.confidence)
    shown = "".join(cards)
    return told + (f'<div class="grid">{shown}</div>' if shown else "") + sheets


def _card(title: str, note: str, chart: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    data = table(columns, rows, caption=title)
    return (
        f'<figure class="card"><figcaption><h3>{escaped(title)}</h3><p>{escaped(note)}</p></figcaption>{chart}'
        f'<details><summary>The numbers<span class="quiet"> of: {escaped(title)}</span></summary>{data}'
        "</details></figure>"
    )


def _points(dossier: Dossier) -> str:
    points = dossier.points
    if points is None or not points.measured:
        return ""
    note = f"Each point is one of {len(points.measured):,} {points.source}. On the line the prediction is right."
    note += "" if points.r2 is None else f" R² {fit_words(points.r2)} over {points.masks:,}."
    pairs = list(zip(points.measured, points.predicted, strict=True))
    rows = [[number(m, 4), number(p, 4), number(m - p, 3, sign=True)] for m, p in pairs[:_POINT_ROWS]]
    columns = ("measured", "predicted", "missed by")
    return _card("Predicted and measured", note, scatter(points, dossier.circuit.unit), columns, rows)


def _sizes(dossier: Dossier) -> str:
    if not dossier.sizes:
        return ""
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


def _energy(circuit: Circuit) -> str:
    energy = {order: e for order, e in circuit.energy.items() if order}
    if not any(energy.values()):
        return ""
    shares = share_rows(energy)
    note = "Sum of squared coefficients by the number of components in a set. What is beyond order 1 is interaction."
    rows = [
        [name, percent(share), number(energy[o])] for (name, share, _), o in zip(shares, sorted(energy), strict=True)
    ]
    chart = bars(shares, "Share of the polynomial's variance by order")
    return _card("What each order explains", note, chart, ("order", "share", f"{circuit.unit}²"), rows)


def _stability(dossier: Dossier) -> str:
    known = [i for i in dossier.circuit.interactions if i.stability is not None]
    if not known:
        return ""
    shown = ([i for i in known if i.order > 1] or known)[:_STABILITY_BARS]
    note = (
        f"Share of resamples of the masks that found a set again, the strongest sets first; the line is at {_STABLE}."
    )
    rows = [(i.label, i.stability or 0.0, number(i.stability, 2)) for i in shown]
    cells = [[f"<code>{escaped(i.label)}</code>", number(i.stability, 2)] for i in known[:_POINT_ROWS]]
    return _card("Found again", note, bars(rows, "Stability", line=_STABLE), ("components", "share"), cells)


def _list(sentences: Sequence[str], name: str) -> str:
    return f'<ul class="{name}">{"".join(f"<li>{escaped(s)}</li>" for s in sentences)}</ul>' if sentences else ""


def _provenance(dossier: Dossier) -> str:
    commands = "\n".join(dossier.commands)
    again = f'<h3>To do it again</h3><pre tabindex="0"><code>{escaped(commands)}</code></pre>' if commands else ""
    return f'{again}<div class="small">{_facts(dossier.provenance)}</div>'


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
