"""Where a run is from: its title, prompts and published roles, as far as its folder says; and what makes it again."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spex_mech.auditing.run_audit import Audit
from spex_mech.components import Component, ComponentSet, group
from spex_mech.errors import warn_user
from spex_mech.files.plain_files import is_plain
from spex_mech.gallery import Card, cards, open_card
from spex_mech.gallery.studies import STUDY, StudySource, read_source
from spex_mech.store.discovery import Discovery, lens_of
from spex_mech.tasks.prompts_file import EXAMPLES, prompt_line, prompt_lines
from spex_mech.tasks.task import Task

_KEYWORDS = {"keep": "keep_prob", "share": "shared_layers"}  # command line → Python, where they differ
_AUDIT_OPTIONS = {"budget": "budget", "seed": "seed", "size": "size"}  # command line → record


@dataclass(frozen=True)
class Origin:
    """What a reader is told of the study. `what` is the card or model that a command line names, or None."""

    title: str
    summary: str = ""
    prompts: tuple[str, ...] = ()
    roles: Mapping[str, str] = field(default_factory=dict)
    citation: str = ""
    what: str | None = None
    prompt_file: str | None = None
    model: str | None = None
    folder: str | None = None


def origin_of(found: Discovery, folder: Path | None, task: Task | None, prompts: str | Path | None = None) -> Origin:
    """From the run folder's ``study.json`` where there is one, from a task or a file of prompts where one is given.

    A report is made to be handed on, and a run folder may come from a stranger: of what its ``study.json`` names, only
    cards of the gallery and what lies in the folder itself are read. What is left out for that is said.
    """
    record = found.record
    plain = f"{record.get('task', {}).get('metric', 'metric')} of {record.get('subject', {}).get('model', 'a model')}"
    shown = prompt_lines(prompts) if task is None else prompts_of(task)
    where = None if folder is None else folder.name
    if folder is None or not is_plain(folder / STUDY):
        return Origin(plain, prompts=shown, folder=where)
    study = read_source(folder / STUDY)
    card = open_card(study.what) if study.what in cards() else None
    known = Origin(
        study.title or plain, study.summary, shown or study.examples or _lying_in(folder, study, card), study.roles,
        study.citation, study.what, study.prompts, study.model, where,
    )  # fmt: skip
    if card is None:
        return known
    published = card.published
    return replace(known, title=card.title, summary=card.summary, roles=published.nodes, citation=published.citation)


def _lying_in(folder: Path, study: StudySource, card: Card | None) -> tuple[str, ...]:
    """The first prompts of a file in the run folder, or of the card; a caution where it lies elsewhere."""
    if study.prompts is None:
        return () if card is None else prompt_lines(card.folder / "prompts.jsonl")
    parts = Path(study.prompts).parts
    if Path(study.prompts).is_absolute() or ".." in parts or "\\" in study.prompts:
        warn_user(
            f"{folder / STUDY} names prompts outside of the run folder ({study.prompts}), which a report does not "
            "read: the folder may come from a stranger, and the page is made to be handed on. To show them, name the "
            f"file: spex-mech report {folder} --prompts FILE (in Python: sm.report(run, prompts=FILE))."
        )
        return ()
    steps = [folder.joinpath(*parts[: i + 1]) for i in range(len(parts))]
    return () if any(step.is_symlink() for step in steps) else prompt_lines(folder / study.prompts)


def prompts_of(task: Task) -> tuple[str, ...]:
    """The first prompts of a task, with what is asked of them."""
    rows = []
    for i in range(min(EXAMPLES, len(task))):
        wrong = [int(d) for d in task.distractors[i] if d >= 0]
        known = {"tokens": task.prompts.row(i).tolist(), "text": task.texts[i] if task.texts else None}
        rows.append(prompt_line({**known, "answer": int(task.answers[i]), "distractors": wrong}))
    return tuple(rows)


def commands_of(found: Discovery, origin: Origin, audit: Audit | None) -> tuple[str, ...]:
    """What makes the run, its audit and its report again, from their own records."""
    folder = origin.folder or "RUN"
    if origin.what is None:
        return (_python(found), *(() if audit is None else (_audit_in_python(audit),)))
    words = ["spex-mech", "discover", origin.what, *_options(found, origin), "--out", folder]
    lines = [words, *([] if audit is None else [_audit_words(folder, audit)]), ["spex-mech", "report", folder]]
    return tuple(shlex.join(line) for line in lines)


def _options(found: Discovery, origin: Origin) -> list[str]:
    asked = _asked(found)
    names = {"model": origin.model, "prompts": origin.prompt_file, "components": expression(found.components), **asked}
    return [word for name, value in names.items() if value is not None for word in (f"--{name}", str(value))]


def _asked(found: Discovery) -> dict[str, Any]:
    """The arguments of `discover`, in the words of the command line; what was left at its default is None."""
    record, sure = found.record, found.record.get("certainty") or {}
    design = record.get("design", {})
    keep = "coded" if design.get("kind") == "coded" else ",".join(f"{q:g}" for q in design.get("keep_probs", ()))
    folds, again = (sure.get("inference") or {}).get("folds", 0), sure.get("stability") or {}
    link = (record.get("decoder", {}).get("stats", {}).get("link") or {}).get("asked", "auto")
    return {
        "budget": design.get("n_masks", record.get("masks")),
        "keep": keep or None,
        "decoder": record.get("decoder", {}).get("name"),
        "link": None if link == "auto" else link,
        "replacement": record.get("replacement", {}).get("kind"),
        "share": design.get("repeats"),
        "folds": folds if folds > 1 else None,
        "resamples": None if "refitted" in str(again.get("method", "refitted")) else again.get("resamples"),
        "seed": record.get("seed", 0),
    }


def expression(components: ComponentSet) -> str:
    """A component expression that selects these, runs of numbers folded where the order allows it.

    >>> expression(ComponentSet.of("a0.h0, a0.h1, m0"))
    'a0.h0:2,m0'
    """
    return ",".join(_folded(part) for part in _ascending(components))


def _folded(part: list[Component]) -> str:
    return part[0].name if part[0].kind == "group" else group(part).name[1:-1]


def _ascending(components: ComponentSet) -> list[list[Component]]:
    """Stretches in the order of the network, in which runs of numbers can be folded; a group stands alone."""
    parts = list[list[Component]]()
    for component in components:
        before = parts[-1][-1] if parts else None
        if before is None or "group" in (component.kind, before.kind) or component < before:
            parts.append([])
        parts[-1].append(component)
    return parts


def _python(found: Discovery) -> str:
    asked = {name: value for name, value in _asked(found).items() if value is not None}
    if "keep" in asked:
        parts = [] if asked["keep"] == "coded" else [float(q) for q in asked["keep"].split(",")]
        asked["keep"] = "coded" if not parts else parts[0] if len(parts) == 1 else parts
    words = ", ".join(f"{_KEYWORDS.get(name, name)}={value!r}" for name, value in asked.items())
    lens = lens_of(found.record)
    if lens == "features":
        way = found.record.get("replacement", {}).get("kind")
        return f"sm.discover_features(value, prompt, ablation={way!r}, {words})"
    if lens == "data":
        return f"sm.discover_data(learner, x, y, test_x=test_x, test_y=test_y, {words})"
    return f"sm.discover(subject, task, components={expression(found.components)!r}, {words})"


def _audit_in_python(audit: Audit) -> str:
    asked = {name: audit.record.get(name) for name in _AUDIT_OPTIONS.values()}
    words = ", ".join(f"{name}={value!r}" for name, value in asked.items() if value is not None)
    return f"sm.audit(found, subject, task, {words})"


def _audit_words(folder: str, audit: Audit) -> list[str]:
    asked = [(word, audit.record.get(name)) for word, name in _AUDIT_OPTIONS.items()]
    return ["spex-mech", "audit", folder, *(w for k, v in asked if v is not None for w in (f"--{k}", str(v)))]
