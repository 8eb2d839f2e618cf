"""A study: everything `discover` needs, live, opened from a card or from a model and a file of prompts.

A run folder made from the command line says in ``study.json`` what it was opened from, so that it can be audited.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from spex_mech.ablation.backends.planted import load_planted
from spex_mech.ablation.backends.prompted import with_prompt
from spex_mech.ablation.binding import bind
from spex_mech.ablation.load import load_model
from spex_mech.ablation.replacement import INSTEAD
from spex_mech.ablation.subject import Subject
from spex_mech.components import ComponentSet, select
from spex_mech.errors import FormatError, ModelError, printable
from spex_mech.files.json import is_path, json_text, write_whole
from spex_mech.files.schema import read_as
from spex_mech.gallery import Card, cards, open_card
from spex_mech.names import HEADS, HEADS_AND_MLPS
from spex_mech.tasks.prompts_file import prompt_lines
from spex_mech.tasks.task import Task
from spex_mech.walsh.decoders.exact import Exact
from spex_mech.walsh.decoding import Samples
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.set_rows import pad_sets
from spex_mech.walsh.spectrum import Spectrum

STUDY, STUDY_SCHEMA = "study.json", "spex_mech.study/1"


@dataclass(frozen=True)
class Study:
    """A bound subject, its task, the components in question, and how they are replaced when ablated.

    `card` is where it all came from, or None for a model of the user's own.
    """

    title: str
    subject: Subject
    task: Task
    components: ComponentSet
    replacement: str = "mean"
    per: str | None = None
    card: Card | None = None

    def __str__(self) -> str:
        """The title, then model, components and task, a line each."""
        task = str(self.task).partition("\n")[0]
        instead = f"{len(self.components):,} components, each replaced by {INSTEAD[self.replacement]} when ablated"
        told = "\n".join([self.title, *(f"  {line}" for line in (self.subject.shape.describe(), instead, task))])
        return printable(told)

    __repr__ = __str__


@dataclass(frozen=True)
class StudySource:
    """What a study was opened from: a card or model, and files and a metric that took the place of its own.

    What a report tells of it is written down beside, so that a report reads no file outside the run folder: title,
    summary, roles and where they are from, and the first prompts.
    """

    what: str
    prompts: str | None = None
    model: str | None = None
    title: str | None = None
    summary: str = ""
    citation: str = ""
    roles: Mapping[str, str] = field(default_factory=dict)
    examples: tuple[str, ...] = ()
    metric: str | None = None
    reference: str | None = None

    def __post_init__(self) -> None:
        if not all(is_path(t) for t in (self.what, self.prompts, self.model, self.reference) if t is not None):
            raise FormatError("it names files that no system could have")


def open_study(
    what: str | Path,
    *,
    prompts: str | Path | None = None,
    components: str | None = None,
    device: str | None = None,
    model: str | Path | None = None,
    metric: str | None = None,
    reference: str | Path | None = None,
) -> Study:
    """Open a card (a name of the gallery or a folder with a card.toml), or a model (folder or hub id) with `prompts`.

    Args:
        prompts: a jsonl file that takes the place of the card's own prompts; needed where `what` is a model.
        components: an expression for `select`; default: the card's, or all heads and MLP layers.
        device: where the model is to live; default: CUDA where there is one, else the CPU.
        model: a folder or hub id that takes the place of the card's model, such as a copy brought by hand.
        metric: in the place of the card's or the file's.
        reference: a jsonl file of prompts over which means are taken, in the place of the card's or the file's.

    Raises:
        FormatError: `what` is neither a card nor a model, or a model came without prompts.
        ModelError: the card's model is on the hub, which cannot be reached; the message says what to do.
    """
    if _is_card(what):
        return _open_card_study(open_card(what), prompts, components, device, model, metric, reference)
    if prompts is None:
        raise FormatError(
            f"{str(what)!r} is neither a card of the gallery ({', '.join(cards())}) nor a folder with a card.toml. "
            "To study a model of your own, give its prompts too: --prompts prompts.jsonl."
        )
    live, tokenizer = load_model(what if model is None else model, device=device)
    task = Task.from_jsonl(prompts, tokenizer=tokenizer, metric=metric, reference=reference)
    return _study(Path(what).name, bind(live), task, components)


def save_source(
    folder: str | Path,
    what: str | Path,
    prompts: str | Path | None = None,
    model: str | Path | None = None,
    metric: str | None = None,
    reference: str | Path | None = None,
) -> Path:
    """Write down in a run folder what its study was opened from: as `open_study` takes it; and what a
    report tells of it, as whoever calls this has named it."""
    known = str(what) in cards() or not Path(what).exists()  # a name of the gallery, or a hub id
    source = str(what) if known else str(Path(what).resolve())
    rows = None if prompts is None else str(Path(prompts).resolve())
    record = {"schema": STUDY_SCHEMA, "what": source, "prompts": rows, **_told(what, prompts)}
    if model is not None:
        record["model"] = str(Path(model).resolve()) if Path(model).exists() else str(model)
    if metric is not None:
        record["metric"] = metric
    if reference is not None:
        record["reference"] = str(Path(reference).resolve())
    return write_whole(Path(folder) / STUDY, json_text(record))


def _told(what: str | Path, prompts: str | Path | None) -> dict[str, Any]:
    """What a report may say of a study; of a card of the gallery, which is always at hand, the prompts alone."""
    card = open_card(what) if _is_card(what) else None
    file = prompts if prompts is not None else None if card is None else card.folder / "prompts.jsonl"
    told: dict[str, Any] = {"examples": list(prompt_lines(file))}
    if card is not None and str(what) not in cards():
        published = card.published
        told |= {"title": card.title, "summary": card.summary}
        told |= {"citation": published.citation, "roles": dict(published.nodes)}
    return told


def reopen(folder: str | Path, *, device: str | None = None) -> Study:
    """The study that a run folder was made from; raises `FormatError` where it does not say, or it is not there."""
    path = Path(folder) / STUDY
    if not path.exists():
        raise FormatError(
            f"{folder} does not say what it was made from (there is no {STUDY}, as runs from Python have none). "
            "Name the card, or the model with its prompts: --model … --prompts …."
        )
    source = read_source(path)
    return open_study(
        source.what, prompts=source.prompts, device=device, model=source.model, metric=source.metric,
        reference=source.reference,
    )  # fmt: skip


def read_source(path: str | Path) -> StudySource:
    """A ``study.json``; raises `FormatError` where it is not a sound one."""
    return read_as(StudySource, path, STUDY_SCHEMA, "a sound record of a study")


def open_subject(what: str | Path, *, device: str | None = None, model: str | Path | None = None) -> Subject:
    """A bound subject from a card, a model folder or a hub id; prompts are read only where a card studies them too.

    `model` takes the place of the card's own, as in `open_study`.
    """
    if _is_card(what):
        card = open_card(what)
        if card.lens is not None:  # its prompts say which tokens there are
            return _open_card_study(card, None, None, device, model).subject
        return _card_subject(card, device, model)[0]
    return bind(load_model(what if model is None else model, device=device)[0])


def true_spectrum(card: Card) -> Spectrum | None:
    """The card's exact Walsh polynomial over the components of its truth: from all 2^n masks, or as planted.

    None where the card has no truth. The coefficients are those of the mean over prompts.
    """
    if card.truth is None:
        return None
    components = ComponentSet.of(card.truth.components)
    if card.truth.terms is not None:
        sets = [components.indices(names) for names in card.truth.terms]
        values = torch.tensor(list(card.truth.terms.values()), dtype=torch.float64)
        return Spectrum(len(components), pad_sets(sets), values)
    samples = Samples(MaskDesign.complete(len(components)).keep(), card.truth.values)
    return Exact().decode(samples, seed=0).spectrum


def _is_card(what: str | Path) -> bool:
    if not is_path(str(what)):
        raise FormatError(f"{str(what)!r:.60} is neither a card, nor a folder, nor a hub id.")
    return str(what) in cards() or (Path(what) / "card.toml").exists()


def _open_card_study(
    card: Card,
    prompts: str | Path | None,
    components: str | None,
    device: str | None,
    model: str | Path | None,
    metric: str | None = None,
    reference: str | Path | None = None,
) -> Study:
    subject, tokenizer = _card_subject(card, device, model)
    task = card.task(tokenizer=tokenizer, prompts=prompts, metric=metric, reference=reference)
    if card.lens is not None:
        subject = with_prompt(subject, task, card.lens.parts, filler=card.lens.filler, tokenizer=tokenizer)
    study = _study(card.title, subject, task, components or card.components)
    return Study(study.title, study.subject, study.task, study.components, card.replacement, card.per, card)


def _card_subject(card: Card, device: str | None, model: str | Path | None = None) -> tuple[Subject, Any]:
    if card.model_kind == "planted":
        return load_planted(card.model_path), None
    if card.on_hub and model is None:
        live, tokenizer = _from_hub(card, device)
    else:
        live, tokenizer = load_model(model or card.model_path, kind=card.model_kind, device=device)
    return bind(live), tokenizer


def _from_hub(card: Card, device: str | None) -> tuple[Any, Any]:
    try:
        return load_model(card.model_path, device=device)
    except ModelError as error:
        folder = card.model_path.rsplit("/", 1)[-1]
        raise ModelError(
            f"card {card.name!r} studies {card.model_path} from the Hugging Face hub, which did not give it here "
            f"({type(error.__cause__ or error).__name__}: no connection, or a licence to accept and `hf auth login`). "
            f"Where there is a connection run `hf download {card.model_path} --local-dir {folder}`, bring that folder "
            f"here, and add --model {folder} (in Python: sm.open_study({card.name!r}, model={folder!r}))."
        ) from error


def _study(title: str, subject: Subject, task: Task, components: str | None) -> Study:
    chosen = select(subject, components or (HEADS_AND_MLPS if any(subject.shape.mlps) else HEADS))
    return Study(title, subject, task.check(subject.shape), chosen)
