"""What a command does between parsing and printing: `discover` of the command line, and answers as JSON."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spex_mech.api.discover import discover
from spex_mech.api.plan import Plan, plan_run
from spex_mech.api.report import write_report
from spex_mech.cli.costs import Cost, crowding, estimate_cost
from spex_mech.cli.options import HERE
from spex_mech.files.json import json_text, write_whole
from spex_mech.files.records import plain
from spex_mech.gallery.studies import STUDY, Study, open_study, save_source
from spex_mech.measuring.ask import Ask
from spex_mech.measuring.crossing import settle_rows
from spex_mech.measuring.workers import Workers, source_of
from spex_mech.store.discovery import RESPONSES, Discovery

SLOW = 4_000  # forward rows from which on it is told how long they will take


def run_discover(
    what: str,
    out: Path,
    *,
    show: Any = None,
    prompts: Path | None = None,
    model: str | None = None,
    components: str | None = None,
    device: str | None = None,
    replacement: str | None = None,
    per: str | None = None,
    metric: str | None = None,
    reference: Path | None = None,
    keep: str = "0.5",
    budget: int | None = None,
    rows: int | None = None,
    prompts_per_mask: int | str = "auto",
    workers: int | None = None,
    ray: str | None = None,
    gpus_each: float = 0.0,
    **options: Any,
) -> Discovery:
    """Open a study, tell what it will cost, run it into a folder, and write its report.

    Args:
        show: called with the study and its `Cost` before anything is spent; None: nobody asks.
    """
    study = _open(what, prompts, components, device, model, metric, reference, replacement, per)
    crew = hire(study, what, model, workers, ray, gpus_each)
    if show is not None:
        decoder, shared = str(options.get("decoder", "auto")), int(options.get("shared_layers", 1))
        ask = Ask(budget, rows, prompts_per_mask, probabilities(keep), decoder, shared_layers=shared)
        cost = _cost(study, out, ask)
        show(study, replace(cost, note=crowding(crew, study.subject.device)))
    found = discover(
        study.subject, study.task, study.components, budget=budget, rows=rows, prompts_per_mask=prompts_per_mask,
        keep_prob=probabilities(keep), replacement=study.replacement, per=study.per, out=out,
        progress=show is not None, workers=crew, **options,
    )  # fmt: skip
    save_source(out, what, prompts, model, metric, reference)
    write_report(out)
    return found


def _open(
    what: str,
    prompts: Path | None,
    components: str | None,
    device: str | None,
    model: str | None,
    metric: str | None,
    reference: Path | None,
    replacement: str | None,
    per: str | None,
) -> Study:
    """The study that a command line asks for, with its replacement in the place of the card's."""
    study = open_study(
        what, prompts=prompts, model=model, components=components, device=device, metric=metric, reference=reference
    )
    kind = replacement or study.replacement
    return replace(study, replacement=kind, per=per or (study.per if kind == study.replacement else None))


def run_plan(
    what: str,
    *,
    prompts: Path | None,
    model: str | None,
    components: str | None,
    replacement: str | None,
    per: str | None,
    metric: str | None,
    reference: Path | None,
    device: str | None,
    keep: str,
    **options: Any,
) -> Plan:
    """Open a study and plan a run of it."""
    study = _open(what, prompts, components, device, model, metric, reference, replacement, per)
    return plan_run(
        study.subject, study.task, study.components, keep_prob=probabilities(keep),
        replacement=study.replacement, per=study.per, **options,
    )  # fmt: skip


def run_respond(
    what: str,
    out: Path,
    *,
    shard: str,
    quiet: bool,
    prompts: Path | None,
    model: str | None,
    components: str | None,
    replacement: str | None,
    per: str | None,
    metric: str | None,
    reference: Path | None,
    device: str | None,
    keep: str,
    workers: int | None,
    ray: str | None,
    gpus_each: float,
    **options: Any,
) -> dict[str, Any]:
    """Open a study and measure one shard of it; what was measured, and where."""
    from spex_mech.api.shards import Shard, respond_shard

    part = Shard.parse(shard)
    study = _open(what, prompts, components, device, model, metric, reference, replacement, per)
    told = respond_shard(
        study.subject, study.task, study.components, keep_prob=probabilities(keep),
        replacement=study.replacement, per=study.per, out=out, shard=part, progress=not quiet,
        workers=hire(study, what, model, workers, ray, gpus_each), **options,
    )  # fmt: skip
    save_source(out, what, prompts, model, metric, reference)
    return {"folder": str(out), "shard": str(part), **told}


def run_merge(folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """Merge shards; the merged folder knows what they were opened from."""
    from spex_mech.api.shards import merge_shards, shard_folders

    responses = merge_shards(folders, out)
    source = next((path / STUDY for path in shard_folders(folders) if (path / STUDY).is_file()), None)
    if source is not None and source.resolve() != (out / STUDY).resolve():
        write_whole(out / STUDY, source.read_text(encoding="utf-8"))
    return {"folder": str(out), "masks": len(responses), "prompts": responses.prompts, "unit": responses.unit}


def hire(
    study: Study, what: str, model: str | None, workers: int | None, ray: str | None, gpus_each: float
) -> Workers | None:
    """The workers that a command line asks for; none: this process measures."""
    if workers is None and ray is None:
        return None
    source = source_of(what, model=model, device=study.subject.device.type)
    address = None if ray == HERE else ray
    return Workers(source, 2 if workers is None else workers, gpus_each=gpus_each, address=address)


def _cost(study: Study, out: Path, ask: Ask) -> Cost:
    """What the run will cost; its speed is measured only where it will take a while, and nothing is there yet."""
    n = len(study.components)
    crossing, keep = settle_rows(n, len(study.task), ask), ask.keep_prob
    masks = min(crossing.masks, 1 << n) if n < 40 and crossing.crossed else crossing.masks
    cost = Cost(masks, len(study.task), per_mask=crossing.per_mask)
    if cost.rows < SLOW or (out / RESPONSES).exists():
        return cost
    known = [keep] if isinstance(keep, float) else [] if isinstance(keep, str) else list(keep)
    share = sum(known) / len(known) if known else 0.5
    timed = estimate_cost(
        study.subject, study.task, study.components, cost.masks, keep_prob=share,
        replacement=study.replacement, per=study.per,
    )  # fmt: skip
    return replace(timed, per_mask=cost.per_mask)


def probabilities(text: str) -> float | list[float] | str:
    """A keep-probability, several, or the word that was given.

    >>> probabilities("0.9"), probabilities("0.5,0.9"), probabilities("coded")
    (0.9, [0.5, 0.9], 'coded')
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        return text
    return numbers[0] if len(numbers) == 1 else numbers


def answer_json(found: Discovery, out: Path) -> str:
    """A run as one JSON object: where it is, how well it predicts, its interactions, strongest first."""
    rows = found.interactions().astype(object)
    table = rows.where(rows.notna(), None).to_dict("records")
    record = found.record
    return as_json(
        {
            "folder": str(out),
            "masks": record["masks"],
            "rows": record["rows"],
            "heldout_r2": found.heldout_r2,
            "outcome": found.decoded.outcome.name,
            "link": found.link.name,
            "unit": found.circuit.unit,
            "seconds": record["seconds"],
            "interactions": [{**row, "components": list(row["components"])} for row in table],
        }
    )


def as_json(value: Any) -> str:
    """Plain JSON; what JSON has no word for becomes text, and numbers that are none become null."""
    return json_text(plain(value)).rstrip().replace("\x7f", "\\u007f")  # the one control that JSON in ASCII leaves
