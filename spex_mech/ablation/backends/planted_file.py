"""`planted.json`: a planted subject on disk, and all that can be wrong with one."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from spex_mech.ablation.backends.planted_subject import (
    PLANTED_LINKS,
    PLANTED_SCHEMA,
    PlantedLayout,
    PlantedSubject,
    planted_json,
)
from spex_mech.errors import FormatError, all_problems
from spex_mech.files.json import is_number, read_json, write_whole
from spex_mech.walsh.spectrum import Basis, Spectrum

_BASES = ("walsh", "mobius", "knockout")
_MAX_ATOMS = 1 << 18  # a few digits in a file of a stranger must not fill the memory


def save_planted(subject: PlantedSubject, path: str | Path) -> Path:
    """Write `planted.json` at `path` (a file, or a folder to hold it); returns the file's path."""
    file = _file(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    return write_whole(file, planted_json(subject))


def load_planted(path: str | Path, device: torch.device | str | None = None) -> PlantedSubject:
    """Read `planted.json` (the file, or the folder that holds it). Data only: nothing in it is run.

    Raises:
        FormatError: the file is missing, too large, not JSON, of another schema, or any field is wrong; all problems.
    """
    file = _file(path)
    subject = checked_planted(read_json(file, PLANTED_SCHEMA), f"{file} is not a planted subject:")
    return subject if device is None else replace(subject, device=torch.device(device))


def checked_planted(record: dict[str, Any], headline: str) -> PlantedSubject:
    """A subject from a record that nobody has checked yet; raises `FormatError` with all its problems."""
    problems = _problems(record)
    if problems:
        raise FormatError(all_problems(headline, problems))
    layout = PlantedLayout(record["n_layers"], record["n_heads"], record["d_mlp"])
    terms: dict[Iterable[int], float] = {
        tuple(sorted(layout.atoms.indices(term["set"]))): float(term["coefficient"]) for term in record["terms"]
    }
    planted = Spectrum.from_terms(len(layout.atoms), terms, Basis(record["basis"]))
    return PlantedSubject(record["name"], layout, planted, record["link"], float(record["spread"]))


def _file(path: str | Path) -> Path:
    return Path(path) if Path(path).suffix == ".json" else Path(path) / "planted.json"


def _is_count(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "schema": (f"{PLANTED_SCHEMA!r}", lambda v: v == PLANTED_SCHEMA),
    "name": ("a text", lambda v: isinstance(v, str)),
    "n_layers": ("a whole number from 1 to 1,000", lambda v: _is_count(v, 1, 1000)),
    "n_heads": ("a whole number from 1 to 1,000", lambda v: _is_count(v, 1, 1000)),
    "d_mlp": ("a whole number from 0 to 100,000", lambda v: _is_count(v, 0, 100_000)),
    "basis": (f"one of {', '.join(_BASES)}", lambda v: v in _BASES),
    "link": (f"one of {', '.join(PLANTED_LINKS)}", lambda v: isinstance(v, str) and v in PLANTED_LINKS),
    "spread": ("a number from 0 to 1", lambda v: is_number(v) and 0 <= v <= 1),
    "terms": ("a list", lambda v: isinstance(v, list)),
}


def _problems(record: dict[str, Any]) -> list[str]:
    """Everything that is wrong with a planted record; nothing where it is sound."""
    found = [f"unknown field {key!r}." for key in sorted(set(record) - set(_FIELDS), key=str)]
    for key, (wanted, fits) in _FIELDS.items():
        if key not in record:
            found.append(f"no field {key!r}; it must be {wanted}.")
        elif not fits(record[key]):
            found.append(f"{key} is {record[key]!r:.60}; it must be {wanted}.")
    if not found and (atoms := record["n_layers"] * (record["n_heads"] + record["d_mlp"])) > _MAX_ATOMS:
        found.append(f"it has {atoms:,} heads and neurons; a planted subject has at most {_MAX_ATOMS:,}.")
    return found or _term_problems(record)


def _term_problems(record: dict[str, Any]) -> list[str]:
    atoms, found, seen = PlantedLayout(record["n_layers"], record["n_heads"], record["d_mlp"]).atoms, [], set()
    for number, term in enumerate(record["terms"]):
        if not isinstance(term, dict) or set(term) != {"set", "coefficient"} or not isinstance(term["set"], list):
            found.append(f"term {number} must be an object with a list 'set' and a number 'coefficient'.")
            continue
        unknown = [name for name in term["set"] if not isinstance(name, str) or name not in atoms]
        if unknown:
            found.append(f"term {number}: {unknown!r:.80} are not heads or neurons of this layout ({atoms!r}).")
        elif len(set(term["set"])) < len(term["set"]):
            found.append(f"term {number} names a component twice.")
        elif frozenset(term["set"]) in seen:
            found.append(f"term {number} repeats the set {term['set']}.")
        else:
            seen.add(frozenset(term["set"]))
        if not is_number(term["coefficient"]):
            found.append(f"term {number}: the coefficient {term['coefficient']!r:.40} is not a finite number.")
    return found
