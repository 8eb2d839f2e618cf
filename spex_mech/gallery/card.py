"""`Card`: what a card says, as values. It loads no model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from spex_mech.errors import FormatError
from spex_mech.tasks import GENERATORS
from spex_mech.tasks.prompts_file import read_common
from spex_mech.tasks.task import Task


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
class TaskRecipe:
    """How a card's prompts are made where it brings none: a generator of `spex_mech.tasks`, how many, which seed."""

    generator: str
    prompts: int = 32
    seed: int = 0


@dataclass(frozen=True)
class PromptParts:
    """Which parts of its prompts a card studies beside the model's components; see `with_prompt`."""

    parts: Literal["tokens"] | tuple[tuple[int, int], ...]
    filler: int | Literal["corrupt"] = "corrupt"

    def __post_init__(self) -> None:
        wrong = self.parts != "tokens" and not (self.parts and all(0 <= start < stop for start, stop in self.parts))
        if wrong or (isinstance(self.filler, int) and self.filler < 0):
            raise FormatError("parts is 'tokens' or [[first position, after the last], …]; filler 'corrupt' or a token")


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
    recipe: TaskRecipe | None = None
    on_hub: bool = False
    lens: PromptParts | None = None

    @property
    def name(self) -> str:
        """The folder's name; what `open_card` takes for cards of the gallery."""
        return self.folder.name

    def task(
        self,
        tokenizer: Any = None,
        prompts: str | Path | None = None,
        *,
        metric: str | None = None,
        reference: str | Path | None = None,
    ) -> Task:
        """The card's prompts and reference as a `Task`; what is given takes the place of the card's own.

        Args:
            tokenizer: needed where prompts are text, or made from a generator.
            prompts: a file of prompts; what it does not say itself is the card's.
            metric, reference: a name; a file of prompts.

        Raises:
            TaskError: rows that are wrong, text without a tokenizer, or one that the generator cannot use.
        """
        if self.recipe is not None and prompts is None:
            made = GENERATORS[self.recipe.generator](tokenizer, n=self.recipe.prompts, seed=self.recipe.seed)
            return (made if reference is None else made.with_reference(reference, tokenizer)).with_metric(
                metric or self.metric
            )
        path, own = Path(prompts or self.folder / "prompts.jsonl"), self.folder / "reference.jsonl"
        said = {} if prompts is None else read_common(path)
        if reference is None and "reference" not in said and own.exists():
            reference = own
        return Task.from_jsonl(
            path, tokenizer=tokenizer, metric=metric or (None if "metric" in said else self.metric), reference=reference
        )
