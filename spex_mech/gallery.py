"""The gallery: where the cards are, and what a card says, checked before anything is run.

A card is a folder of data (`circuits/README.md`): a model, prompts, components, a replacement, and what is published or
known about its circuit. This file reads and checks it; it loads no model. A card cannot name files outside its folder.
"""

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from spex_mech.circuit.files import is_path
from spex_mech.components import Component
from spex_mech.errors import ComponentError, FormatError, TaskError, all_problems
from spex_mech.task import Task
from spex_mech.tasks import GENERATORS

MODEL_KINDS = ("transformer_lens", "huggingface", "planted")
METRICS = ("logit_diff", "log_prob", "prob", "prob_diff", "kl", "loss", "logit")
REPLACEMENTS = ("mean", "zero", "resample")
PER = ("position", "pooled")
RELATIONS = ("synergy", "redundancy", "main")
_MAX_BYTES = 64 << 20  # of one text file of a card
_MAX_INDEX = 1_000_000  # of a layer, head or neuron in a name
_MODEL_FILES = {
    "transformer_lens": ("config.json", "model.safetensors"),
    "huggingface": ("config.json",),
    "planted": ("planted.json",),
}


@dataclass(frozen=True)
class Published:
    """What the literature says: component → role, and sets of components that act together.

    `interactions` holds (names, "synergy" | "redundancy" | "main") in the order of the file.
    """

    nodes: Mapping[str, str] = field(default_factory=dict)
    interactions: tuple[tuple[tuple[str, ...], str], ...] = ()
    citation: str = ""


@dataclass(frozen=True)
class Truth:
    """Everything there is to know about a card: all masks' responses, or the polynomial itself.

    Attributes:
        path: ``truth.safetensors`` (tensor ``values [mask, prompt]``; bit i of the row number is set where component i
            is ablated) or ``truth.json`` (Walsh terms over the components).
        components: names, in the order of the bits.
        terms: ``{names: coefficient}`` of ``truth.json``; None where the truth is a table.
    """

    path: Path
    components: tuple[str, ...]
    terms: Mapping[tuple[str, ...], float] | None = None

    @cached_property
    def values(self) -> Any:
        """The table as a float32 tensor ``[mask, prompt]``, read when first asked for.

        Raises `FormatError` where the truth is a polynomial, or the table is damaged or has not 2^n rows.
        """
        if self.terms is not None:
            raise FormatError(f"{self.path} holds a polynomial, not a table; its coefficients are in `terms`.")
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(self.path)
        except (OSError, SafetensorError) as error:
            raise FormatError(f"{self.path} cannot be read as safetensors: {error}.") from error
        found, rows = tensors.get("values"), 1 << len(self.components)
        if found is None or found.ndim != 2 or len(found) != rows:
            shape = "no tensor 'values'" if found is None else f"values of shape {tuple(found.shape)}"
            raise FormatError(
                f"{self.path} has {shape}; {len(self.components)} components need [{rows:,} masks, prompts]."
            )
        return found


@dataclass(frozen=True)
class Recipe:
    """How a card's prompts are made where it brings none: a generator of `spex_mech.tasks`, how many, which seed."""

    generator: str
    prompts: int = 32
    seed: int = 0


@dataclass(frozen=True)
class PromptParts:
    """Which parts of its prompts a card studies beside the model's components; see `lenses.prompted.with_prompt`."""

    parts: Literal["tokens"] | tuple[tuple[int, int], ...] = "tokens"
    filler: int | Literal["corrupt"] = "corrupt"


@dataclass(frozen=True)
class Card:
    """A card, read and checked. `model_path` is a folder inside the card, or a Hugging Face hub id (`on_hub`)."""

    folder: Path
    title: str
    summary: str
    licence: str
    source: str
    model_kind: str
    model_path: str
    metric: str
    unit: str
    components: str
    replacement: str
    per: str | None
    published: Published
    truth: Truth | None
    recipe: Recipe | None = None
    on_hub: bool = False
    lens: PromptParts | None = None

    @property
    def name(self) -> str:
        """The folder's name; what `open_card` takes for cards of the gallery."""
        return self.folder.name

    def task(self, tokenizer: Any = None, prompts: str | Path | None = None) -> Task:
        """The card's prompts and reference as a `Task`; `prompts` takes the place of the card's own.

        Args:
            tokenizer: needed where prompts are text, or made from a generator.

        Raises:
            TaskError: rows that are wrong, text without a tokenizer, or one that the generator cannot use.
        """
        if self.recipe is not None and prompts is None:
            made = GENERATORS[self.recipe.generator](tokenizer, n=self.recipe.prompts, seed=self.recipe.seed)
            return made.with_metric(self.metric)
        reference = self.folder / "reference.jsonl"
        return Task.from_jsonl(
            prompts or self.folder / "prompts.jsonl",
            tokenizer=tokenizer,
            metric=self.metric,
            reference=reference if reference.exists() else None,
        )


def cards() -> tuple[str, ...]:
    """Names of the cards that come with the package, in alphabetical order."""
    home = _home()
    return tuple(sorted(path.parent.name for path in home.glob("*/card.toml"))) if home else ()


def open_card(name_or_path: str | Path) -> Card:
    """Read a card: a name of the gallery, or any folder that holds a ``card.toml``.

    Raises:
        FormatError: there is no such card, or it is wrong; everything that is wrong with it is listed.
    """
    folder = _find(name_or_path)
    reader = _Reader(folder)
    card = reader.card()
    if card is None or reader.problems:
        count = len(reader.problems)
        headline = f"card {folder.name!r} has {count} problem{'s' * (count != 1)}:"
        raise FormatError(all_problems(headline, reader.problems))
    return card


def _home() -> Path | None:
    """``circuits/`` of a clone, or the copy inside an installed wheel."""
    here = Path(__file__).resolve().parent
    return next((p for p in (here / "_circuits", here.parent / "circuits") if p.is_dir()), None)


def _find(name_or_path: str | Path) -> Path:
    home, given = _home(), Path(name_or_path)
    if str(name_or_path) in cards() and home is not None:
        return home / str(name_or_path)
    if (given / "card.toml").is_file():
        return given.resolve()
    raise FormatError(
        f"{str(name_or_path)!r} is no card: it is neither a folder with a card.toml nor one of the gallery "
        f"({', '.join(cards()) or 'which is empty here'})."
    )


Rule = tuple[str, Callable[[Any], bool]]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _one_of(*choices: str) -> Rule:
    return f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices


def _whole(least: int) -> Rule:
    return f"a whole number from {least}", lambda value: type(value) is int and value >= least


def _spans(value: Any) -> bool:
    return value == "tokens" or (isinstance(value, list) and bool(value) and all(map(_span, value)))


def _span(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and all(type(i) is int for i in value) and 0 <= value[0] < value[1]
    )


_TEXT: Rule = ("a text", _text)
_FIELDS: dict[str, dict[str, Rule]] = {
    "card": {
        "schema": ("1", lambda value: value == 1 and not isinstance(value, bool)),
        "title": _TEXT,
        "summary": _TEXT,
        "licence": _TEXT,
        "source": _TEXT,
    },
    "model": {"kind": _one_of(*MODEL_KINDS), "path": _TEXT, "hub": _TEXT},
    "task": {
        "metric": _one_of(*METRICS),
        "unit": _TEXT,
        "generator": _one_of(*(name for name in GENERATORS if name != "modular_arithmetic")),
        "prompts": _whole(1),
        "seed": _whole(0),
    },
    "components": {"default": _TEXT},
    "replacement": {"default": _one_of(*REPLACEMENTS), "per": _one_of(*PER)},
    "lens": {
        "parts": ("'tokens', or a list of [first position, after the last]", _spans),
        "filler": ("'corrupt', or a token", lambda value: value == "corrupt" or (type(value) is int and value >= 0)),
    },
}
_NEEDED = (("card", "title"), ("model", "kind"), ("task", "metric"), ("components", "default"))


def _lens(table: Mapping[str, Any]) -> PromptParts | None:
    """The parts of the prompts that a card studies, if its table [lens] says any."""
    if "parts" not in table:
        return None
    parts = table["parts"]
    spans = parts if isinstance(parts, str) else tuple((start, stop) for start, stop in parts)
    return PromptParts(spans, table.get("filler", "corrupt"))  # type: ignore[arg-type]


class _Reader:
    """Reads a card piece by piece and collects what is wrong."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.problems = folder, list[str]()

    def card(self) -> Card | None:
        tables = self.tables()
        if tables is None:
            return None
        model_path = self.model_path(tables["model"])
        recipe = self.recipe(tables["task"])
        self.jsonl("prompts.jsonl", needed=recipe is None)
        self.jsonl("reference.jsonl", needed=False)
        published, truth = self.published(), self.truth()
        if self.problems:
            return None
        about, task, replacement = tables["card"], tables["task"], tables["replacement"]
        return Card(
            folder=self.folder,
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
            lens=_lens(tables["lens"]),
        )

    def tables(self) -> dict[str, dict[str, Any]] | None:
        """The tables of card.toml with only sound fields in them; None where it is no TOML at all."""
        text = self.read("card.toml")
        try:
            found = tomllib.loads(text) if text is not None else None
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            found = None
            self.problems.append(f"card.toml is not TOML: {error}")
        if found is None:
            return None
        self.problems += [f"card.toml: [{name}] is not a table of a card" for name in found if name not in _FIELDS]
        tables = {name: self.table(name, found.get(name, {})) for name in _FIELDS}
        for name, key in _NEEDED:
            if isinstance(found.get(name, {}), dict) and key not in found.get(name, {}):
                self.problems.append(f"card.toml: [{name}] has no {key}; it must be {_FIELDS[name][key][0]}")
        return tables

    def table(self, name: str, found: Any) -> dict[str, Any]:
        if not isinstance(found, dict):
            self.problems.append(f"card.toml: {name} must be a table [{name}], not {found!r:.40}")
            return {}
        sound = {}
        for key, value in found.items():
            if key not in _FIELDS[name]:
                known = ", ".join(_FIELDS[name])
                self.problems.append(f"card.toml: [{name}] {key} is unknown; known are {known}")
            elif not _FIELDS[name][key][1](value):
                self.problems.append(f"card.toml: [{name}] {key} is {value!r:.60}; it must be {_FIELDS[name][key][0]}")
            else:
                sound[key] = value
        return sound

    def recipe(self, task: dict[str, Any]) -> Recipe | None:
        if "generator" not in task:
            spare = [key for key in ("prompts", "seed") if key in task]
            self.problems += [f"card.toml: [task] {key} goes with a generator" for key in spare]
            return None
        if (self.folder / "prompts.jsonl").exists():
            self.problems.append("card.toml: [task] generator makes the prompts, and there is a prompts.jsonl as well")
        return Recipe(task["generator"], task.get("prompts", 32), task.get("seed", 0))

    def model_path(self, model: dict[str, Any]) -> str:
        """The model's folder inside the card, every file of it a plain one; or the hub id."""
        if ("path" in model) == ("hub" in model):
            self.problems.append("card.toml: [model] needs either path (a folder inside the card) or hub (an id)")
            return ""
        if "hub" in model:
            if model.get("kind") != "huggingface":
                self.problems.append("card.toml: [model] hub goes with kind 'huggingface' only")
            return str(model["hub"])
        where = self.inside(model["path"])
        if where is None:
            return ""
        for name in _MODEL_FILES.get(model.get("kind", ""), ()):
            self.file(f"{model['path']}/{name}", needed=True)
        for path in sorted(where.rglob("*")):
            if path.is_symlink():
                self.problems.append(f"{path.relative_to(self.folder)} is a link; a card holds plain files only")
        return str(where)

    def inside(self, relative: str) -> Path | None:
        """A path of the card, if it stays inside the card."""
        if not is_path(relative):
            self.problems.append(f"{relative!r:.60} is no path")
            return None
        where = self.folder / relative
        if Path(relative).is_absolute() or ".." in Path(relative).parts or not relative or "\\" in relative:
            self.problems.append(f"{relative!r} leaves the card's folder; a card names files inside it only")
            return None
        parts = [where, *where.parents][: len(Path(relative).parts)]
        if any(part.is_symlink() for part in parts):
            self.problems.append(f"{relative!r} is a link; a card holds plain files only")
            return None
        return where

    def file(self, relative: str, *, needed: bool) -> Path | None:
        where = self.inside(relative)
        if where is None:
            return None
        if where.is_file():
            return where
        if needed:
            self.problems.append(f"{relative} is missing")
        return None

    def read(self, relative: str, *, needed: bool = True) -> str | None:
        where = self.file(relative, needed=needed)
        if where is None:
            return None
        try:
            if where.stat().st_size > _MAX_BYTES:
                self.problems.append(f"{relative} is larger than {_MAX_BYTES >> 20} MiB")
                return None
            return where.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            self.problems.append(f"{relative} cannot be read: {error}")
            return None

    def json(self, relative: str) -> dict[str, Any] | None:
        """An object from an optional file; None where there is none, or a wrong one."""
        text = self.read(relative, needed=False)
        if text is None:
            return None
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            self.problems.append(f"{relative} is not JSON: {error}")
            return None
        if not isinstance(found, dict):
            self.problems.append(f"{relative} must hold an object, not {type(found).__name__}")
            return None
        return found

    def jsonl(self, relative: str, *, needed: bool) -> None:
        """Rows are read by `Task`; here only that there are some, and that those with tokens are well-formed."""
        text = self.read(relative, needed=needed)
        if text is None:
            return
        if not text.strip():
            self.problems.append(f"{relative} holds no prompts")
        elif all(_has_tokens(line) for line in text.splitlines() if line.strip()):
            try:
                Task.from_jsonl(self.folder / relative)
            except TaskError as error:
                self.problems.append(str(error))

    def published(self) -> Published:
        found = self.json("published.json") or {}
        nodes, rows = found.get("nodes", {}), found.get("interactions", [])
        if not isinstance(nodes, dict) or not all(map(_text, nodes.values())):
            self.problems.append("published.json: nodes must be an object {component: role}")
            nodes = {}
        if not isinstance(rows, list) or not all(_is_relation(row) for row in rows):
            kinds = ", ".join(RELATIONS)
            self.problems.append(
                f'published.json: interactions must be a list of {{"components": [names], "kind": one of {kinds}}}'
            )
            rows = []
        self.names("published.json", [*nodes, *(name for row in rows for name in row["components"])])
        interactions = tuple((tuple(row["components"]), row["kind"]) for row in rows)
        return Published(nodes, interactions, str(found.get("citation", "")))

    def truth(self) -> Truth | None:
        table = self.file("truth.safetensors", needed=False)
        return self.table_truth(table) if table is not None else self.polynomial_truth()

    def table_truth(self, path: Path) -> Truth | None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "numpy") as tensors:
                names = (tensors.metadata() or {}).get("components", "")
        except (OSError, SafetensorError) as error:
            self.problems.append(f"truth.safetensors cannot be read: {error}")
            return None
        components = tuple(name.strip() for name in names.split(",") if name.strip())
        if not components:
            self.problems.append("truth.safetensors: its metadata names no components")
        self.names("truth.safetensors", components)
        return Truth(path, components)

    def polynomial_truth(self) -> Truth | None:
        found = self.json("truth.json")
        if found is None:
            return None
        rows, components = found.get("terms"), found.get("components")
        if found.get("basis") != "walsh" or not isinstance(rows, list) or not all(_is_term(row) for row in rows):
            self.problems.append(
                'truth.json: needs "basis": "walsh" and "terms": [{"set": [names], "coefficient": number}]'
            )
            return None
        if components is None:
            components = list(dict.fromkeys(name for row in rows for name in row["set"]))
        if not isinstance(components, list) or not all(map(_text, components)):
            self.problems.append("truth.json: components must be a list of names")
            return None
        self.names("truth.json", [*components, *(name for row in rows for name in row["set"])])
        terms = {tuple(row["set"]): float(row["coefficient"]) for row in rows}
        if len({frozenset(names) for names in terms}) < len(rows):
            self.problems.append("truth.json: a set stands there twice")
        return Truth(self.folder / "truth.json", tuple(components), terms)

    def names(self, where: str, names: Any) -> None:
        """Whether every name can be read. Ranges too wide for any model are not even tried: they would fill memory."""
        for name in dict.fromkeys(names):
            if len(name) > 10_000 or any(int(stop[:12]) > _MAX_INDEX for stop in re.findall(r"\d+", name)):
                self.problems.append(f"{where}: {name!r:.60} is longer than any name, or counts beyond {_MAX_INDEX:,}")
                continue
            try:
                Component.parse(name)
            except ComponentError as error:
                self.problems.append(f"{where}: {error}")


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
    return "tokens" in row and not any(map(_text, fields))


def _is_relation(row: Any) -> bool:
    if not isinstance(row, dict) or row.get("kind") not in RELATIONS:
        return False
    return isinstance(row.get("components"), list) and bool(row["components"]) and all(map(_text, row["components"]))


def _is_term(row: Any) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("set"), list) or not all(map(_text, row["set"])):
        return False
    value = row.get("coefficient")
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
