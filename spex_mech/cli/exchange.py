"""Files of circuits on the command line: one format into another."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spex_mech.circuit.graph import Circuit
from spex_mech.formats.interchange import export, read_circuit
from spex_mech.formats.transformer_lens_hooks import mib_config
from spex_mech.gallery.studies import open_subject, reopen


def convert(path: str | Path, out: str | Path, to: str, model: str | None = None, device: str | None = None) -> str:
    """Read a circuit of any format that `read_circuit` knows and write it in another; returns what that loses.

    For "mib" the sizes of the model are those in the file, else of `model` (a card or model), else of the model that
    the run folder around the file was made from. Raises `FormatError`.
    """
    circuit = read_circuit(path)
    options = {"config": _sizes(circuit, Path(path), model, device)} if to == "mib" else {}
    return export(circuit, out, to, **options)


def _sizes(circuit: Circuit, path: Path, model: str | None, device: str | None) -> Mapping[str, Any] | None:
    if "cfg" in circuit.evidence and model is None:
        return None
    subject = open_subject(model, device=device) if model is not None else reopen(path.parent, device=device).subject
    return mib_config(subject)
