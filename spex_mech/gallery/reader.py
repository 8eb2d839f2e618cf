"""From a folder to a `Card`: everything that is wrong with it is found before anything is said."""

import json
from pathlib import Path
from typing import Any

from spex_mech.errors import FormatError, TaskError, all_problems
from spex_mech.gallery.card import Card, TaskRecipe
from spex_mech.gallery.card_fields import prompt_parts, read_tables
from spex_mech.gallery.card_files import CardFiles
from spex_mech.gallery.knowledge import read_published, read_truth
from spex_mech.tasks.task import Task

_MODEL_FILES = {
    "transformer_lens": ("config.json", "model.safetensors"),
    "huggingface": ("config.json",),
    "planted": ("planted.json",),
}


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
    text = files.text("card.toml")
    tables = None if text is None else read_tables(text, files.problems)
    if tables is None:
        return None
    model_path = _model_path(files, tables["model"])
    recipe = _recipe(files, tables["task"])
    _check_prompts(files, "prompts.jsonl", needed=recipe is None)
    _check_prompts(files, "reference.jsonl", needed=False)
    published, truth = read_published(files), read_truth(files)
    if files.problems:
        return None
    about, task, replacement = tables["card"], tables["task"], tables["replacement"]
    return Card(
        folder=files.folder,
        title=about["title"],
        summary=about.get("summary", ""),
        licence=about.get("licence", ""),
        source=about.get("source", ""),
        model_kind=tables["model"]["kind"],
        model_path=model_path,
        metric=task["metric"],
        unit=task.get("unit", ""),
        components=tables["components"]["default"],
        replacement=replacement.get("default", "mean"),
        per=replacement.get("per"),
        published=published,
        truth=truth,
        recipe=recipe,
        on_hub="hub" in tables["model"],
        lens=prompt_parts(tables["lens"]),
    )


def _model_path(files: CardFiles, model: dict[str, Any]) -> str:
    """The model's folder inside the card, every file of it a plain one; or the hub id."""
    if ("path" in model) == ("hub" in model):
        files.problems.append("card.toml: [model] needs either path (a folder inside the card) or hub (an id)")
        return ""
    if "hub" in model:
        if model.get("kind") != "huggingface":
            files.problems.append("card.toml: [model] hub goes with kind 'huggingface' only")
        return str(model["hub"])
    where = files.inside(model["path"])
    if where is None:
        return ""
    for name in _MODEL_FILES.get(model.get("kind", ""), ()):
        files.file(f"{model['path']}/{name}", needed=True)
    files.no_links(where)
    return str(where)


def _recipe(files: CardFiles, task: dict[str, Any]) -> TaskRecipe | None:
    if "generator" not in task:
        spare = [key for key in ("prompts", "seed") if key in task]
        files.problems += [f"card.toml: [task] {key} goes with a generator" for key in spare]
        return None
    if (files.folder / "prompts.jsonl").exists():
        files.problems.append("card.toml: [task] generator makes the prompts, and there is a prompts.jsonl as well")
    return TaskRecipe(task["generator"], task.get("prompts", 32), task.get("seed", 0))


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
