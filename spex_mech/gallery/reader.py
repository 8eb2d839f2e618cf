"""From a folder to a `Card`: everything that is wrong with it is found before anything is said."""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from spex_mech.errors import FormatError, TaskError, all_problems
from spex_mech.files.schema import between, one_of
from spex_mech.gallery.card import Card, PromptParts, TaskRecipe
from spex_mech.gallery.card_files import CardFiles
from spex_mech.gallery.knowledge import read_published, read_truth
from spex_mech.names import MEAN_KINDS, METRIC_NAMES, MODEL_KINDS, REPLACEMENT_KINDS
from spex_mech.tasks import GENERATORS
from spex_mech.tasks.task import Task

_MODEL_FILES = {
    "transformer_lens": ("config.json", "model.safetensors"),
    "huggingface": ("config.json",),
    "planted": ("planted.json",),
}


@dataclass(frozen=True)
class _About:
    title: str
    schema: Literal[1] = 1
    summary: str = ""
    licence: str = ""
    source: str = ""


@dataclass(frozen=True)
class _Model:
    kind: Annotated[str, one_of(MODEL_KINDS)]
    path: str | None = None
    hub: str | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.hub is None):
            raise FormatError("it needs either path (a folder inside the card) or hub (an id)")
        if self.hub is not None and self.kind != "huggingface":
            raise FormatError("hub goes with kind 'huggingface' only")


@dataclass(frozen=True)
class _TaskTable:
    metric: Annotated[str, one_of(METRIC_NAMES)]
    unit: str = ""
    generator: Annotated[str, one_of(name for name in GENERATORS if name != "modular_arithmetic")] | None = None
    prompts: Annotated[int, between(1, 1_000_000)] | None = None
    seed: Annotated[int, between(0, 2**63 - 1)] | None = None

    def __post_init__(self) -> None:
        if self.generator is None and (self.prompts is not None or self.seed is not None):
            raise FormatError(f"{'seed' if self.prompts is None else 'prompts'} goes with a generator")


@dataclass(frozen=True)
class _Components:
    default: str


@dataclass(frozen=True)
class _Replacement:
    default: Annotated[str, one_of(REPLACEMENT_KINDS)] = "mean"
    per: Annotated[str, one_of(MEAN_KINDS)] | None = None


@dataclass(frozen=True)
class _CardToml:
    """The tables of a card.toml."""

    card: _About
    model: _Model
    task: _TaskTable
    components: _Components
    replacement: _Replacement = _Replacement()
    lens: PromptParts | None = None


def read_card(folder: Path) -> Card:
    """Raises `FormatError` that lists everything that is wrong."""
    files = CardFiles(folder)
    card = _card(files)
    if card is None or files.problems:
        count = len(files.problems)
        headline = f"card {folder.name!r} has {count} problem{'s' * (count != 1)}:"
        raise FormatError(all_problems(headline, files.problems))
    return card


def _card(files: CardFiles) -> Card | None:
    text = files.text("card.toml") or ""
    toml = _read_toml(files, text)
    model_path = "" if toml is None else _model_path(files, toml.model)
    recipe = None if toml is None else _recipe(files, toml.task)
    _check_prompts(files, "prompts.jsonl", needed="generator" not in text)
    _check_prompts(files, "reference.jsonl", needed=False)
    published, truth = read_published(files), read_truth(files)
    if toml is None or files.problems:
        return None
    about = toml.card
    return Card(
        folder=files.folder,
        title=about.title,
        summary=about.summary,
        licence=about.licence,
        source=about.source,
        model_kind=toml.model.kind,
        model_path=model_path,
        metric=toml.task.metric,
        unit=toml.task.unit,
        components=toml.components.default,
        replacement=toml.replacement.default,
        per=toml.replacement.per,
        published=published,
        truth=truth,
        recipe=recipe,
        on_hub=toml.model.hub is not None,
        lens=toml.lens,
    )


def _read_toml(files: CardFiles, text: str) -> _CardToml | None:
    try:
        return files.value(_CardToml, tomllib.loads(text), "card.toml: ") if text else None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        files.problems.append(f"card.toml is not TOML: {error}")
        return None


def _model_path(files: CardFiles, model: _Model) -> str:
    """The model's folder inside the card, every file of it a plain one; or the hub id."""
    where = None if model.path is None else files.inside(model.path)
    if where is None:
        return model.hub or ""
    for name in _MODEL_FILES[model.kind]:
        files.file(f"{model.path}/{name}", needed=True)
    files.no_links(where)
    return str(where)


def _recipe(files: CardFiles, task: _TaskTable) -> TaskRecipe | None:
    if task.generator is None:
        return None
    if (files.folder / "prompts.jsonl").exists():
        files.problems.append("card.toml: task.generator makes the prompts, and there is a prompts.jsonl as well")
    return TaskRecipe(task.generator, task.prompts or 32, task.seed or 0)


def _check_prompts(files: CardFiles, relative: str, *, needed: bool) -> None:
    """Rows are read by `Task`; here only that there are some, and that those with tokens are well-formed."""
    text = files.text(relative, needed=needed)
    if text is None:
        return
    if not text.strip():
        files.problems.append(f"{relative} holds no prompts")
    elif all(_has_tokens(line) for line in text.splitlines() if line.strip()):
        try:
            Task.from_jsonl(files.folder / relative)
        except TaskError as error:
            files.problems.append(str(error))


def _has_tokens(line: str) -> bool:
    """Whether a row is token ids only, and so can be checked without a tokenizer."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return True  # let the reader of prompts say what is wrong
    if not isinstance(row, dict):
        return True
    distractors = row.get("distractors")
    fields = [row.get("answer"), row.get("corrupt"), *(distractors if isinstance(distractors, list) else [])]
    return "tokens" in row and not any(isinstance(field, str) for field in fields)
