"""What audits say in the terminal: the circuit, how it ranks, what was confirmed, how sure that is. 80 columns."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spex_mech.auditing.circuit_audit import CircuitAudit
from spex_mech.auditing.findings import Search
from spex_mech.auditing.run_audit import Audit
from spex_mech.auditing.verdicts import RATE
from spex_mech.files.text import like

SHOWN = 15


def print_trial(result: Audit | CircuitAudit, where: Path, console: Console) -> None:
    """What an audit said, in at most 80 columns."""
    if isinstance(result, Audit):
        print_audit(result, where, console)
    else:
        print_circuit_audit(result, console)


def print_audit(result: Audit, out: Path, console: Console) -> None:
    """What fresh masks said of a run: the circuit, how it ranks, what was confirmed, and what was left out."""
    circuit, fresh, unit = result.circuit, result.fresh, escape(result.unit)
    r2 = "" if fresh.r2 is None else f"R² [bold]{fresh.r2:.3f}[/] on {fresh.masks:,} masks drawn anew. "
    write = like([result.intact, result.empty])
    console.print(
        f"{r2}With {len(circuit.names)} of {len(result.components):,} components and all others ablated "
        f"({escape(_listed(circuit.names))}) {circuit.faithfulness:.2f} of the behaviour is left: "
        f"{write(circuit.value)} {unit}, predicted {write(circuit.predicted)}; intact {write(result.intact)}, "
        f"nothing kept {write(result.empty)}."
    )
    console.print(_ranking_table(result))
    if result.search is not None:
        console.print(_about_search(result.search))
    if result.interactions:
        console.print(_confirmation_table(result))
    for group in result.backups:
        if group.confirmed():
            write = like([group.joint, group.excess])
            console.print(
                f"Backups: [bold]{escape(' × '.join(group.components))}[/] (redundancy): losing all costs "
                f"{write(group.joint)} {unit}, {write(group.excess)} ± {write(group.stderr)[1:]} beyond what its parts "
                f"explain; q = {group.q_value:.1g}."
            )
    if result.replacements:
        console.print(_replacement_table(result))
    for line in (*_about_contexts(result), *_about_stability(result)):
        console.print(line)
    for what in result.skipped:
        console.print(f"[yellow]left out:[/] {escape(what)}")
    for what in result.cautions:
        console.print(f"[yellow]caution:[/] {escape(what)}")
    masks, budget, rows = (result.record[key] for key in ("masks", "budget", "rows"))
    console.print(f"[dim]{masks:,} of {budget:,} masks, {rows:,} rows; {escape(str(out))}: audit.json, report.html[/]")


def print_circuit_audit(result: CircuitAudit, console: Console) -> None:
    """What forward passes said of a circuit."""
    console.print(f"{escape(str(result))}.")
    if result.value is not None and result.without is not None:
        write = like([result.intact, result.empty])
        console.print(
            f"With only the circuit kept the metric is {write(result.value)} {escape(result.unit)}, without it "
            f"{write(result.without)}; intact {write(result.intact)}, nothing kept {write(result.empty)}."
        )
    if result.sizes:
        table = Table("size", "kept", "preserve", "help", "random", title="Faithfulness of the best-scored components")
        for row in result.sizes:
            null = "" if row.random is None else f"{row.random:.3f}"
            table.add_row(f"{row.size:g}", f"{row.count:,}", f"{row.preserve:.3f}", f"{row.help:.3f}", null)
        console.print(table)
    for what in result.skipped:
        console.print(f"[yellow]left out:[/] {escape(what)}")


def _ranking_table(result: Audit) -> Table:
    table = Table(title="Circuits at MIB's ten sizes, measured", title_justify="left")
    known = any(row.auroc is not None and row.name != "random sets" for row in result.rankings)
    for name in ("ranking", "masks", "CPR", "CMD", *(("AUROC",) if known else ())):
        table.add_column(name, justify="left" if name == "ranking" else "right")
    for row in result.rankings:
        columns = (row.cpr, row.cmd, row.auroc) if known else (row.cpr, row.cmd)
        table.add_row(escape(row.name), f"{row.masks:,}", *("" if x is None else f"{x:.3f}" for x in columns))
    return table


def _about_search(search: Search) -> str:
    text = f"Ours: chosen on the polynomial and by a search of {search.masks:,} masks."
    if search.cpr is None or search.cmd is None:
        return text
    return (
        f"{text} Where half of the prompts choose and the others report: CPR {search.cpr:.3f}, CMD {search.cmd:.3f} "
        f"(median of {search.splits} splits)."
    )


def _replacement_table(result: Audit) -> Table:
    masks = max(row.masks for row in result.replacements)
    table = Table(title=f"Other replacements on {masks:,} masks of the run, beside its own", title_justify="left")
    for name in ("replacement", "whole effect", "R²", "nodes", "interactions", "signs kept"):
        table.add_column(name, justify="left" if name == "replacement" else "right")
    write = like(row.effect for row in result.replacements)
    for row in result.replacements:
        agreements = (row.r2, row.nodes, row.interactions, row.signs)
        figures = ("" if value is None else f"{value:.2f}" for value in agreements)
        table.add_row(escape(row.kind), write(row.effect), *figures)
    table.caption = "rank correlations of node strengths and interactions; signs of the ten strongest"
    return table


def _about_contexts(result: Audit) -> list[str]:
    """How many of the strongest interactions hold where others are kept more, or less, often; and which do not."""
    found = []
    for keep_prob in dict.fromkeys(row.keep_prob for row in result.contexts):
        rows = [row for row in result.contexts if row.keep_prob == keep_prob]
        lost = [" × ".join(row.components) for row in rows if not row.holds]
        found.append(
            f"Where others are kept with {keep_prob:g}, {len(rows) - len(lost)} of the {len(rows)} strongest "
            f"interactions hold their sign (q ≤ {RATE:g}){escape('; not ' + ', '.join(lost)) if lost else ''}."
        )
    return found


def _about_stability(result: Audit) -> list[str]:
    return [
        f"Found again on random halves of the {escape(row.over)}: nodes {_share(row.nodes)} "
        f"({'[green]stable[/]' if row.stable else '[yellow]unstable[/]'}, the bar is {row.bar:g}), "
        f"interactions {_share(row.interactions)} (Jaccard, {row.resamples} resamples)."
        for row in result.stability
    ]


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _confirmation_table(result: Audit) -> Table:
    title = f"{len(result.confirmed)} of {len(result.interactions)} interactions confirmed ({escape(result.unit)})"
    table = Table(title=title, title_justify="left")
    for name in ("components", "claimed", "measured", "q"):
        table.add_column(name, justify="left" if name == "components" else "right", overflow="fold")
    write = like(check.estimate for check in result.interactions)
    for check in result.interactions[:SHOWN]:
        measured = f"{write(check.estimate)} ± {write(check.stderr)[1:]}"
        colour = "default" if check.confirmed() else "yellow"
        table.add_row(
            escape(" × ".join(check.components)), write(check.claimed), f"[{colour}]{measured}[/]",
            f"{check.q_value:.1g}",
        )  # fmt: skip
    return table


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:8])
    return shown + (f", … {len(names) - 8} more" if len(names) > 8 else "") if names else "none"
