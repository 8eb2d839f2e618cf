"""``spectrum.json``: a polynomial with names in the place of indices, and the link behind which it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any, Literal

import torch

from spex_mech.components import ComponentSet
from spex_mech.errors import FormatError, SpexMechError
from spex_mech.files.json import json_text, write_whole
from spex_mech.files.schema import read_as
from spex_mech.walsh.link_function import Link
from spex_mech.walsh.set_rows import pad_sets
from spex_mech.walsh.spectrum import Basis, Spectrum

SPECTRUM_SCHEMA = "spex_mech.spectrum/1"


@dataclass(frozen=True)
class _Term:
    set: tuple[str, ...]
    coefficient: float
    stderr: float | None


@dataclass(frozen=True)
class _SpectrumFile:
    components: ComponentSet
    basis: Literal["walsh", "biased", "mobius", "knockout"]
    keep_prob: float | None
    link: str | Mapping[str, Any]
    unit: str
    terms: tuple[_Term, ...]


def save_spectrum(
    spectrum: Spectrum, components: ComponentSet, unit: str, path: str | Path, link: Link = Link()
) -> None:
    """Write a polynomial of the headline mean as JSON, component names instead of indices, strongest term first.

    ``"link"`` is "identity", or an object: `Link.to_dict`.
    """
    mean = spectrum.mean_output().sorted()
    errors = [None] * len(mean) if mean.stderr is None else [e if e == e else None for e in mean.stderr.tolist()]
    terms = [
        {"set": [components.names[i] for i in s], "coefficient": c, "stderr": e}
        for (s, c), e in zip(mean.terms(), errors, strict=True)
    ]
    record = {
        "schema": SPECTRUM_SCHEMA,
        "components": list(components.names),
        "basis": mean.basis.kind,
        "keep_prob": mean.basis.keep_prob,
        "link": "identity" if link.is_identity else link.to_dict(),
        "unit": unit,
        "terms": terms,
    }
    write_whole(path, json_text(record))


def load_spectrum(path: str | Path, components: ComponentSet) -> tuple[Spectrum, Link]:
    """Read a polynomial and its link back, onto the bits of `components`; raises `FormatError` on anything else."""
    file = read_as(_SpectrumFile, path, SPECTRUM_SCHEMA, "a sound spectrum")
    try:
        link = Link() if file.link == "identity" else Link.from_dict(file.link)
        basis = Basis(file.basis, file.keep_prob)
        coefficients = {tuple(sorted(components.indices(term.set))): term.coefficient for term in file.terms}
        if len(coefficients) < len(file.terms):
            raise FormatError("a set stands there twice.")
        errors = [nan if term.stderr is None else term.stderr for term in file.terms]  # none at all, or not of some
        known = any(term.stderr is not None for term in file.terms)
        stderr = torch.tensor(errors, dtype=torch.float64) if known else None
        values = torch.tensor(list(coefficients.values()), dtype=torch.float64)
        return Spectrum(len(components), pad_sets(coefficients), values, basis, stderr), link
    except SpexMechError as error:
        raise FormatError(f"{path} is not a sound spectrum: {error}") from error
