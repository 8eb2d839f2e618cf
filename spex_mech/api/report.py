"""`report`: a run and its audit as one page, for a person who did not run the experiment."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from spex_mech.api.audit import AUDIT
from spex_mech.auditing.run_audit import Audit, load_audit
from spex_mech.circuit.graph import Circuit
from spex_mech.errors import SpexMechError
from spex_mech.files.plain_files import is_plain
from spex_mech.files.text import counted, number, percent
from spex_mech.show.dossier import Dossier, Fact, PromptText
from spex_mech.show.exhibits import checks_of, points_of, sheets_of, sizes_of
from spex_mech.show.html import Page
from spex_mech.show.origins import Origin, commands_of, expression, origin_of
from spex_mech.show.report_page import render
from spex_mech.show.wording import answer_sentences, confidence, limits, warnings
from spex_mech.store.discovery import Discovery, lens_of, load_run
from spex_mech.tasks.metrics import METRICS
from spex_mech.tasks.task import Task

REPORT = "report.html"
_LISTED = 12  # components that are named


def report(
    run: Discovery | str | Path,
    audit: Audit | None = None,
    *,
    task: Task | None = None,
    prompts: str | Path | None = None,
) -> Page:
    """One self-contained HTML page: what was asked, the answer, the circuit, the evidence, and what it does not show.

    It loads nothing and lets no text in it run. ``.save("report.html")`` writes it; in a notebook it shows itself.

    Args:
        run: a run, or its folder; a folder also gives its ``audit.json``, prompts and title, where they are there.
        audit: of this run; figures that only an audit has are left out without one.
        task: shows the prompts of a run that was made from Python.
        prompts: a jsonl file whose first prompts are shown, where the folder does not hold them. No file outside of the
            folder is read but this one and cards of the gallery.

    Raises:
        FormatError: a folder that is no finished run, or files in it that are damaged.
        SpexMechError: an audit of other components than the run's.
    """
    folder = None if isinstance(run, Discovery) else Path(run)
    found = run if isinstance(run, Discovery) else load_run(run)
    if audit is None and folder is not None and is_plain(folder / AUDIT):
        audit = load_audit(folder / AUDIT)
    if audit is not None and audit.components != found.components.names:
        raise SpexMechError(
            f"the audit is of {len(audit.components):,} components, the run of {len(found.components):,}, and they are "
            "not the same ones. Give the audit of this run: sm.audit(found, subject, task)."
        )
    return render(dossier_of(found, audit, origin_of(found, folder, task, prompts)))


def write_report(folder: str | Path, out: str | Path | None = None, prompts: str | Path | None = None) -> Path:
    """The report of a run folder as a file, by default ``report.html`` in it; returns its path."""
    return report(folder, prompts=prompts).save(Path(folder) / REPORT if out is None else out)


def dossier_of(found: Discovery, audit: Audit | None, origin: Origin) -> Dossier:
    """Everything a report says, as plain values."""
    return Dossier(
        title=origin.title,
        summary=origin.summary,
        circuit=with_roles(found.circuit, origin.roles),
        answer=answer_sentences(found, audit),
        warnings=warnings(found, audit),
        headline=_headline(found, audit),
        question=_question(found, audit, origin),
        prompts=origin.prompts,
        prompt_count=found.responses.prompts,
        checks=checks_of(found, audit),
        points=points_of(found, audit),
        sizes=sizes_of(audit),
        confidence=confidence(found, audit),
        sheets=sheets_of(found, audit),
        limits=limits(found, audit),
        provenance=_provenance(found, audit, origin),
        commands=commands_of(found, origin, audit),
        passage=passage_of(found),
    )


def passage_of(found: Discovery) -> PromptText | None:
    """The prompt of a run over its parts, if the record has it whole; anything else is left out."""
    told = _part(found.record, "task").get("features")
    parts, gaps = (told.get(key) if isinstance(told, Mapping) else None for key in ("parts", "gaps"))
    names = found.components.names
    if not isinstance(parts, list) or not isinstance(gaps, list) or not len(parts) == len(names) == len(gaps) - 1:
        return None
    return PromptText(tuple(map(str, parts)), tuple(map(str, gaps)), names)


def with_roles(circuit: Circuit, roles: Mapping[str, str]) -> Circuit:
    """The circuit with the roles that the literature gives its components, where it has none of its own."""
    nodes = tuple(node if node.role else replace(node, role=roles.get(node.name)) for node in circuit.nodes)
    return replace(circuit, nodes=nodes)


def _headline(found: Discovery, audit: Audit | None) -> tuple[Fact, ...]:
    masks, rows = len(found.responses), found.responses.values.numel()
    if audit is None:
        joint = sum(i.order > 1 for i in found.circuit.interactions)
        orders = f"up to {found.circuit.max_order} components" if joint else ""
        sets = Fact("Joint effects found", f"{joint:,}", orders)
        kept = Fact("Components that matter", f"{len(found.circuit.nodes):,}", f"of {len(found.components):,} studied")
    else:
        tested = len(audit.interactions)
        good = f"{len(audit.confirmed):,} of {tested:,}" if tested else "none tested"
        sets = Fact("Interactions confirmed", good, "at a false discovery rate of 5 %" if tested else "")
        few = f"by {len(audit.circuit.names):,} of {len(audit.components):,} components"
        kept = Fact("Behaviour kept", percent(audit.circuit.faithfulness), few)
        masks, rows = masks + audit.record.get("masks", 0), rows + audit.record.get("rows", 0)
    extent = f"{counted(masks, 'mask')} × {counted(found.responses.prompts, 'prompt')}"
    if found.responses.met is not None:
        audited = 0 if audit is None else audit.record.get("masks", 0)
        beside = f", and {counted(audited, 'mask')} × {counted(found.responses.prompts, 'prompt')}"
        extent = found.responses.extent + beside * bool(audited)
    cost = Fact("Ablated passes", f"{rows:,}", extent)
    return kept, _fit(found, audit), sets, cost


def _fit(found: Discovery, audit: Audit | None) -> Fact:
    if audit is not None and audit.fresh.r2 is not None:
        return Fact("Variance explained", percent(audit.fresh.r2), f"of {audit.fresh.masks:,} masks drawn anew")
    if found.heldout_r2 is None:
        return Fact("Variance explained", "all", "every mask was measured")
    return Fact("Variance explained", percent(found.heldout_r2), f"of {found.judged_on}")


def _question(found: Discovery, audit: Audit | None, origin: Origin) -> tuple[Fact, ...]:
    record = found.record
    subject, task, replacement = (_part(record, name) for name in ("subject", "task", "replacement"))
    names, metric = found.components.names, str(task.get("metric", "of the user's own"))
    budget = found.responses.extent
    audited = "" if audit is None else f"and {audit.record.get('masks', 0):,} masks for the audit"
    assumes = f"assumes: {replacement.get('assumes', 'not recorded')}"
    ablated = _instead(found, f"its {replacement.get('kind', 'value, not recorded')}")
    shown = ", ".join(names) if len(names) <= _LISTED else expression(found.components)
    per = {"position": ", per position", "pooled": ", pooled over tokens"}.get(str(replacement.get("per")), "")
    return (
        Fact("Model", origin.what or str(subject.get("model", "not recorded")), _size(subject)),
        Fact("Metric", f"{metric}, in {found.responses.unit}", _meaning(metric)),
        Fact("Components", shown, f"({len(names):,})"),
        Fact("An ablated one gives", f"{ablated}{per}", f"({assumes})" if "assumes" in replacement else ""),
        Fact("Masks", budget, audited),
        Fact("How masks were drawn", _design(found)),
    )


def _instead(found: Discovery, value: str) -> str:
    """What comes in the place of what is ablated."""
    if lens_of(found.record) == "data":
        return "nothing: the model is trained without it"
    if lens_of(found.record) != "features":
        return value
    replacement = _part(found.record, "replacement")
    kind, filler = str(replacement.get("kind")), replacement.get("filler")
    if kind == "mask" and replacement.get("mask") is not None:
        return "the mask token"
    ways = {"remove": "nothing: it is left out of the text", "pad": "a token that nothing attends to"}
    return ways.get(kind, f"the text {filler!r}" if isinstance(filler, str) else "a text of its own")


def _size(subject: Mapping[str, Any]) -> str:
    count = subject.get("parameters")
    parts = [subject.get("model"), f"{count:,} parameters" if isinstance(count, int) else None, subject.get("backend")]
    told = ", ".join(str(part) for part in parts if part)
    return f"({told})" if told else ""


def _meaning(metric: str) -> str:
    """The first line of what the metric's own description says."""
    doc = METRICS[metric].compute.__doc__ if metric in METRICS else None
    return "" if not doc else doc.strip().splitlines()[0]


def _design(found: Discovery) -> str:
    design = _part(found.record, "design")
    if design.get("kind") == "complete":
        return "all there are"
    if design.get("kind") == "coded":
        return "the words of a code, each component kept in half of them"
    kept = " or ".join(number(q, 2) for q in design.get("keep_probs", ())) or "not recorded"
    return f"drawn at random, each component kept with probability {kept}"


def _provenance(found: Discovery, audit: Audit | None, origin: Origin) -> tuple[Fact, ...]:
    record, facts = found.record, list[Fact]()
    for title, part in (("Model", "subject"), ("Task", "task"), ("Replacement", "replacement")):
        facts += [
            Fact(f"{title}: {key.replace('_', ' ')}", _plain(v))
            for key, v in _part(record, part).items()
            if v is not None
        ]
    decoder = _part(record, "decoder")
    facts += [
        Fact("Masks: seed", str(record.get("seed", "not recorded"))),
        Fact("Decoder", str(decoder.get("name", "not recorded")), f"outcome {found.decoded.outcome.name.lower()}"),
        Fact("Seconds", _plain(record.get("seconds", {}))),
        Fact("spex_mech", str(record.get("spex_mech", "not recorded"))),
    ]
    if audit is not None:
        asked = {key: audit.record.get(key) for key in ("seed", "budget", "masks", "rows", "spex_mech")}
        facts.append(Fact("Audit", _plain(asked)))
    return (*facts, Fact("Roles from", origin.citation)) if origin.citation else tuple(facts)


def _part(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = record.get(name)
    return value if isinstance(value, Mapping) else {}


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)
