"""What a person sees in the terminal: the question, the answer, the evidence. Tables fit 80 columns."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spex_mech.ablation.contract import certificate_line, describe_certificates
from spex_mech.ablation.replacement import INSTEAD
from spex_mech.api.plan import Plan
from spex_mech.circuit.build import EXACT_SHARE
from spex_mech.cli.costs import Cost, in_words
from spex_mech.files.text import counted, like, sentence, some_of
from spex_mech.gallery.studies import Study
from spex_mech.store.discovery import Discovery
from spex_mech.store.set_losses import MOST_IN_A_SET, losses_of

if TYPE_CHECKING:
    from spex_mech.ablation.subject import Subject

PRINTED_ROWS = 15
_COLOURS = {"synergy": "green", "redundancy": "magenta", "main": "default"}


def print_question(study: Study, cost: Cost, out: Path, console: Console) -> None:
    """What is asked, and what it will cost, before anything is spent."""
    console.print(f"[bold]{escape(study.title)}[/]")
    console.print(
        f"{escape(study.subject.shape.describe())}\n"
        f"{len(study.components):,} components; {cost}\n"
        f"an ablated component is replaced by {INSTEAD[study.replacement]}; run folder {escape(str(out))}"
    )
    if cost.note:
        console.print(f"[yellow]{escape(cost.note)}[/]")
    for note in study.task.notes:
        console.print(f"[dim]prompts: {escape(note)}[/]")


def print_plan(plan: Plan, console: Console) -> None:
    """Passes, time, memory, disk and price; then what fits."""
    console.print(
        f"{counted(plan.masks, 'mask')} of {counted(plan.components, 'component')} ({plan.distinct:,} different, which "
        f"are passed) × {some_of(plan.prompts_per_mask, plan.prompts, 'prompt')} = {counted(plan.rows, 'forward row')}"
    )
    if plan.prompts > 1:
        console.print(f"prompts a mask: {plan.prompts_per_mask:,} of {plan.prompts:,}; {plan.why_so_many}")
    console.print(f"here ({plan.device}): {in_words(plan.seconds)} of passes; decoding comes on top")
    if plan.checks:
        console.print(
            f"to be sure of the model: {plan.checks:,} tiny passes, at binding and after every chunk of masks"
        )
    if plan.floor_seconds is not None and plan.likely_seconds is not None:
        console.print(
            f"{escape(str(plan.gpu))}, on paper ({plan.flops:.2g} operations): not below "
            f"{in_words(plan.floor_seconds)}, {in_words(plan.likely_seconds)} at a quarter of its peak"
        )
    if plan.price is not None:
        console.print(f"price of the passes: {plan.price:,.2f}")
    model, peak, disk = (_size(size) for size in (plan.model_bytes, plan.peak_bytes, plan.disk_bytes))
    console.print(f"memory: model {model}, a batch {peak}; disk {disk}")
    for line in plan.advice:
        console.print(f"  - {escape(line)}")
    for found in plan.simulated:
        console.print(
            f"simulated, {found.decoder}: R² {found.r2:.3f} on fresh masks, {found.found:.0%} of the planted sets, "
            f"{in_words(found.seconds)} to decode"
        )


def _size(count: float) -> str:
    """Bytes for people.

    >>> _size(270_000), _size(3_200_000), _size(5e10)
    ('0.3 MB', '3.2 MB', '50,000 MB')
    """
    return f"{count / 1e6:,.1f} MB" if count < 1e7 else f"{count / 1e6:,.0f} MB"


def print_discovery(found: Discovery, out: Path, console: Console) -> None:
    """The strongest interactions, how far to trust them, and where the files are."""
    frame = found.interactions()
    if len(frame):
        console.print(_interaction_table(frame, found.circuit.unit, _population(found)))
    if len(frame) > PRINTED_ROWS:
        console.print(f"… and {len(frame) - PRINTED_ROWS:,} more in {escape(str(out / 'interactions.csv'))}")
    if unsure := int((found.spectrum.orders > 0).sum()) - len(frame):
        console.print(_about_unsure(unsure, len(frame), exact=found.heldout_r2 is None))
    console.print(_verdict(found))
    if pilot := found.record.get("pilot"):
        strata = " and ".join(f"{q:g}" for q in pilot["keep_probs"])
        console.print(f"Masks drawn with keep {strata} (auto): {escape(pilot['reason'])}.")
    if sure := _certainty(found):
        console.print(sure)
    if not found.link.is_identity:
        console.print(_about_link(found))
    _print_strongest(found, console)
    console.print(
        f"[dim]{escape(str(out))}: responses.safetensors, spectrum.json, circuit.json, interactions.csv, report.html[/]"
    )


def _about_unsure(unsure: int, shown: int, *, exact: bool) -> str:
    """Sets of the polynomial that are no interactions of the circuit."""
    sets = f"set{'s' * (unsure != 1)} of the polynomial"
    if exact:
        return f"{unsure:,} more {sets}, below {EXACT_SHARE:.1%} of the largest, in spectrum.json only."
    if not shown:
        return f"No interaction is beyond chance: {unsure:,} {sets} with q > 0.05, in spectrum.json."
    return f"{unsure:,} more {sets} within chance (q > 0.05), in spectrum.json only."


def _interaction_table(frame: pd.DataFrame, unit: str, of: str) -> Table:
    table = Table(title=f"Strongest of {len(frame):,} interactions ({escape(unit)}){of}", title_justify="left")
    for name, justify in (
        ("components", "left"),
        ("coefficient", "right"),
        ("knockout", "right"),
        ("kind", "left"),
        ("q", "right"),
    ):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    write = like(frame["coefficient"])
    for row in frame.head(PRINTED_ROWS).to_dict("records"):
        colour = _COLOURS[str(row["kind"])]
        error = f" ± {write(row['stderr'])[1:]}" if pd.notna(row["stderr"]) and row["stderr"] else ""
        table.add_row(
            escape(" × ".join(row["components"])),
            f"{write(row['coefficient'])}{error}",
            "" if pd.isna(row["knockout"]) else write(row["knockout"]),
            f"[{colour}]{row['kind']}[/]",
            "" if pd.isna(row["q_value"]) else f"{row['q_value']:.1g}",
        )
    return table


def _population(found: Discovery) -> str:
    """Of which prompts the figures of the table speak."""
    if found.heldout_r2 is None:
        return ": exact for these prompts; ± and q for more like them"
    return ": of these prompts; ± and q over masks"


def _verdict(found: Discovery) -> str:
    outcome, r2 = found.decoded.outcome, found.heldout_r2
    masks, seconds = found.record["masks"], found.record["seconds"]
    timing = ", ".join(f"{stage} {took:.1f} s" for stage, took in seconds.items())
    timing += _resumed(found.record)
    if r2 is None:
        return f"All {masks:,} masks measured; the polynomial is exact. ({timing})"
    error = found.decoded.stats.get("heldout_r2_stderr")
    sure = f" ± {error:.3f}" if error else ""
    colour = "green" if r2 >= 0.9 else "yellow"
    left = f" ({escape(str(found.decoded.stats['left']))})" if "left" in found.decoded.stats else ""
    advice = "" if r2 >= 0.9 else f" {outcome.meaning.capitalize()}{left}; {outcome.remedy}."
    told = f"Held-out R² [bold {colour}]{r2:.3f}[/]{sure} on {found.masks_judged:,} masks, by fits without them."
    return f"{told}{advice} ({timing})"


def _about_link(found: Discovery) -> str:
    """That the interactions are latent, what that buys, and where the others are."""
    without = found.decoded.stats["link"]["heldout_r2_without"]
    compared = "" if without is None else f" Without it the held-out R² is {without:.3f}."
    return (
        f"The metric saturates: between the polynomial and it lies a link, [bold]{escape(found.link.describe())}[/], "
        f"and the interactions above are those before it.{compared} The metric's own: interactions_raw.csv."
    )


def _certainty(found: Discovery) -> str:
    """What errors and q-values rest on, and how far halves of the masks agree; empty where the run does not say."""
    record = found.record.get("certainty") or {}
    inference, again = record.get("inference"), record.get("stability")
    text = f"Errors and q: {escape(str(inference['method']))}" if inference else ""
    text += f" ({inference['masks']:,} masks)." if inference and "masks" in inference else "." if inference else ""
    if again and again["jaccard"] is not None and again["node_jaccard"] is not None:
        text += f" Halves of the masks agree on sets to {again['jaccard']:.2f}, on components to "
        text += f"{again['node_jaccard']:.2f} (Jaccard)."
    return text


def _resumed(record: Mapping[str, Any]) -> str:
    """What an earlier run had paid for: chunks of the journal, or all of it."""
    masks, chunks = record.get("resumed_masks", 0), record.get("resumed_chunks", 0)
    if chunks:
        return f"; {chunks:,} chunks of {record['chunks']:,} ({masks:,} masks) came from the journal"
    return f"; all {masks:,} masks were on disk from before" if masks else ""


def _print_strongest(found: Discovery, console: Console) -> None:
    strongest = next((i for i in found.circuit.interactions if i.order > 1), None)
    if strongest is None:
        return
    said = f"{like([strongest.coefficient])(strongest.coefficient)} {found.circuit.unit} ({strongest.kind})"
    console.print(f"Strongest joint effect: [bold]{escape(strongest.label)}[/], {said}.")
    if strongest.order <= MOST_IN_A_SET:
        console.print(escape(sentence(losses_of(found, strongest.components).sentence())))


def print_truth(found: Discovery, card: str, console: Console) -> None:
    """How the recovered coefficients compare with the card's exhaustive enumeration."""
    from spex_mech.gallery import open_card
    from spex_mech.gallery.studies import true_spectrum

    truth = true_spectrum(open_card(card))
    if truth is None:
        return
    gaps = [abs(value - (truth.get(s) or 0.0)) for s, value in found.spectrum.terms() if s]
    console.print(
        f"Against all {1 << found.spectrum.n:,} masks (measured once, shipped with the card): "
        f"largest gap {max(gaps, default=0):.3f} {escape(found.responses.unit)} over {len(gaps)} coefficients."
    )


def describe_subject(subject: "Subject") -> dict[str, Any]:
    """A bound model as plain values: its shape in words, its sites, where it came from."""
    sites = [{"layer": s.layer, "site": s.kind, "parts": s.parts, "width": s.width} for s in subject.sites]
    return {
        "shape": subject.shape.describe(),
        "certificates": describe_certificates(subject),
        "sites": sites,
        "provenance": dict(subject.provenance),
    }


def print_subject(subject: "Subject", console: Console) -> None:
    """The sites of a bound model; binding it ran the self-test."""
    console.print(f"{escape(subject.shape.describe())}: bound; the self-test passed at every site.")
    for told in describe_certificates(subject):
        console.print(f"  {escape(certificate_line(told))}", soft_wrap=True)
    table = Table(title=f"{len(subject.sites)} sites", title_justify="left")
    for name in ("layer", "site", "parts", "width"):
        table.add_column(name, justify="left" if name == "site" else "right")
    for site in subject.sites:
        table.add_row(str(site.layer), site.kind, f"{site.parts:,}", f"{site.width:,}")
    console.print(table)
    for key, value in sorted(subject.provenance.items()):
        said = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
        console.print(f"  {escape(str(key))}: {escape(said)}", soft_wrap=True)
