"""What is known of a card: published.json, truth.json and truth.safetensors, read and checked."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from spex_mech.components import Component
from spex_mech.errors import ComponentError
from spex_mech.gallery.card import Published, Truth
from spex_mech.gallery.card_files import CardFiles
from spex_mech.names import KINDS

_MAX_INDEX = 1_000_000  # of a layer, head or neuron in a name


def read_published(files: CardFiles) -> Published:
    """What the literature says; empty where there is no published.json."""
    found = files.json("published.json") or {}
    nodes, rows = found.get("nodes", {}), found.get("interactions", [])
    if not isinstance(nodes, dict) or not _texts(nodes.values()):
        files.problems.append("published.json: nodes must be an object {component: role}")
        nodes = {}
    if not isinstance(rows, list) or not all(map(_is_relation, rows)):
        kinds = ", ".join(KINDS)
        files.problems.append(
            f'published.json: interactions must be a list of {{"components": [names], "kind": one of {kinds}}}'
        )
        rows = []
    files.problems += _wrong_names("published.json", [*nodes, *(name for row in rows for name in row["components"])])
    interactions = tuple((tuple(row["components"]), row["kind"]) for row in rows)
    return Published(nodes, interactions, str(found.get("citation", "")))


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
    files.problems += _wrong_names("truth.safetensors", components)
    return Truth(path, components)


def _polynomial(files: CardFiles) -> Truth | None:
    found = files.json("truth.json")
    if found is None:
        return None
    rows, components = found.get("terms"), found.get("components")
    if found.get("basis") != "walsh" or not isinstance(rows, list) or not all(map(_is_term, rows)):
        files.problems.append(
            'truth.json: needs "basis": "walsh" and "terms": [{"set": [names], "coefficient": number}]'
        )
        return None
    if components is None:
        components = list(dict.fromkeys(name for row in rows for name in row["set"]))
    if not isinstance(components, list) or not _texts(components):
        files.problems.append("truth.json: components must be a list of names")
        return None
    files.problems += _wrong_names("truth.json", [*components, *(name for row in rows for name in row["set"])])
    terms = {tuple(row["set"]): float(row["coefficient"]) for row in rows}
    if len({frozenset(names) for names in terms}) < len(rows):
        files.problems.append("truth.json: a set stands there twice")
    return Truth(files.folder / "truth.json", tuple(components), terms)


def _wrong_names(where: str, names: Iterable[str]) -> list[str]:
    """Names that cannot be read. Ranges too wide for any model are not even tried: they would fill memory."""
    problems = []
    for name in dict.fromkeys(names):
        if len(name) > 10_000 or any(int(stop[:12]) > _MAX_INDEX for stop in re.findall(r"\d+", name)):
            problems.append(f"{where}: {name!r:.60} is longer than any name, or counts beyond {_MAX_INDEX:,}")
            continue
        try:
            Component.parse(name)
        except ComponentError as error:
            problems.append(f"{where}: {error}")
    return problems


def _texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _is_relation(row: Any) -> bool:
    if not isinstance(row, dict) or row.get("kind") not in KINDS:
        return False
    return isinstance(row.get("components"), list) and bool(row["components"]) and _texts(row["components"])


def _is_term(row: Any) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("set"), list) or not _texts(row["set"]):
        return False
    value = row.get("coefficient")
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
