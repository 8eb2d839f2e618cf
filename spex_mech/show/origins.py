"""Where a run is from: its title, prompts and published roles, as far as its folder says; and what makes it again."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from spex_mech.auditing.run_audit import Audit
from spex_mech.components import Component, ComponentSet, group
from spex_mech.errors import SpexMechError
from spex_mech.gallery import Card, cards, open_card
from spex_mech.gallery.studies import STUDY, read_source
from spex_mech.store.discovery import Discovery, lens_of
from spex_mech.tasks.task import Task

EXAMPLES = 5  # prompts that are shown
_LINE = 1 << 16  # characters of a prompt file's line that are read
_SHOWN = 400  # characters of a prompt
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


def origin_of(found: Discovery, folder: Path | None, task: Task | None) -> Origin:
    """From the run folder's ``study.json`` where there is one, and from a task where one is given.

    What a folder names may have moved since: then it is left out.
    """
    record = found.record
    plain = f"{record.get('task', {}).get('metric', 'metric')} of {record.get('subject', {}).get('model', 'a model')}"
    shown = () if task is None else prompts_of(task)
    where = None if folder is None else folder.name
    if folder is None or not (folder / STUDY).is_file():
        return Origin(plain, prompts=shown, folder=where)
    study = read_source(folder / STUDY)
    known = Origin(
        plain, "", shown or prompt_lines(study.prompts), {}, "", study.what, study.prompts, study.model, where
    )
    card = _card(study.what)
    if card is None:
        return known
    shown = known.prompts or prompt_lines(str(card.folder / "prompts.jsonl"))
    published = card.published
    return replace(
        known, title=card.title, summary=card.summary, prompts=shown, roles=published.nodes, citation=published.citation
    )


def _card(what: str) -> Card | None:
    """The card of this name or folder, if it is there and whole."""
    if what not in cards() and not (Path(what) / "card.toml").is_file():
        return None
    try:
        return open_card(what)
    except SpexMechError:  # changed since
        return None


def prompts_of(task: Task) -> tuple[str, ...]:
    """The first prompts of a task, with what is asked of them."""
    rows = []
    for i in range(min(EXAMPLES, len(task))):
        wrong = [int(d) for d in task.distractors[i] if d >= 0]
        known = {"tokens": task.prompts.row(i).tolist(), "text": task.texts[i] if task.texts else None}
        rows.append(_line({**known, "answer": int(task.answers[i]), "distractors": wrong}))
    return tuple(rows)


def prompt_lines(path: str | None) -> tuple[str, ...]:
    """The first prompts of a jsonl file, for people; none where the file is not there or cannot be read."""
    try:
        with open(path or "", encoding="utf-8") as file:
            rows = [json.loads(file.readline(_LINE)) for _ in range(EXAMPLES)]
    except (OSError, ValueError, RecursionError):
        return ()
    return tuple(_line(row) for row in rows if isinstance(row, dict))


def _line(row: Mapping[str, Any]) -> str:
    text, tokens, answer, wrong = (row.get(key) for key in ("text", "tokens", "answer", "distractors"))
    shown = text if isinstance(text, str) else " ".join(map(str, tokens if isinstance(tokens, list) else ()))
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
    asked = "" if answer is None or answer == -1 else f" → {str(answer)[:_SHOWN]}"
    others = ", ".join(str(d)[:40] for d in islice(wrong, 8)) if isinstance(wrong, list) else ""
    return shown + asked + (f" (not {others})" if others else "")


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
    words = ", ".join(f"{name}={value!r}" for name, value in asked.items())
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
