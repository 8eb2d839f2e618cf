"""What is known of a card: published.json, truth.json and truth.safetensors, read and checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from spex_mech.components import Component
from spex_mech.files.schema import Open
from spex_mech.gallery.card import Published, Truth
from spex_mech.gallery.card_files import CardFiles
from spex_mech.names import InteractionKind


@dataclass(frozen=True)
class _Relation(Open):
    components: tuple[Component, ...]
    kind: InteractionKind


@dataclass(frozen=True)
class _PublishedFile(Open):
    nodes: Mapping[str, str] = field(default_factory=dict)
    interactions: tuple[_Relation, ...] = ()
    citation: str = ""


@dataclass(frozen=True)
class _Term(Open):
    set: tuple[Component, ...]
    coefficient: float


@dataclass(frozen=True)
class _TruthFile(Open):
    basis: Literal["walsh"]
    terms: tuple[_Term, ...]
    components: tuple[Component, ...] | None = None


def read_published(files: CardFiles) -> Published:
    """What the literature says; empty where there is no published.json."""
    found = files.object("published.json", _PublishedFile) or _PublishedFile()
    for name in found.nodes:
        files.component(name, "published.json: nodes")
    rows = ((tuple(component.name for component in row.components), row.kind) for row in found.interactions)
    return Published(found.nodes, tuple(rows), found.citation)


def read_truth(files: CardFiles) -> Truth | None:
    """All masks' responses, or the polynomial itself, where the card has either."""
    table = files.file("truth.safetensors", needed=False)
    return _table(files, table) if table is not None else _polynomial(files)


def _table(files: CardFiles, path: Path) -> Truth | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as tensors:
            names = (tensors.metadata() or {}).get("components", "")
    except (OSError, SafetensorError) as error:
        files.problems.append(f"truth.safetensors cannot be read: {error}")
        return None
    components = tuple(name.strip() for name in names.split(",") if name.strip())
    if not components:
        files.problems.append("truth.safetensors: its metadata names no components")
    for name in components:
        files.component(name, "truth.safetensors")
    return Truth(path, components)


def _polynomial(files: CardFiles) -> Truth | None:
    found = files.object("truth.json", _TruthFile)
    if found is None:
        return None
    terms = {tuple(component.name for component in term.set): term.coefficient for term in found.terms}
    if len({frozenset(names) for names in terms}) < len(found.terms):
        files.problems.append("truth.json: a set stands there twice")
    if found.components is not None:
        components = tuple(component.name for component in found.components)
    else:
        components = tuple(dict.fromkeys(name for names in terms for name in names))
    return Truth(files.folder / "truth.json", components, terms)
