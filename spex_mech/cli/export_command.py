"""`spex-mech export`: a circuit from one format into another. What needs torch is imported where a model is needed."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from spex_mech.cli import options as o
from spex_mech.cli.terminal import Terminal

if TYPE_CHECKING:
    from spex_mech.circuit.graph import Circuit


def export(
    circuit: o.CircuitFile, to: o.FormatOption, out: o.File, model: o.SizesFrom = None, device: o.Device = None
) -> None:
    """Write a circuit for other tools; says what the format loses."""
    note = convert(circuit, out, to, model, device)
    Terminal().print(f"wrote {escape(str(out))}. {escape(note)}", soft_wrap=True)


def convert(path: str | Path, out: str | Path, to: str, model: str | None = None, device: str | None = None) -> str:
    """Read a circuit of any format that `read_circuit` knows and write it in another; returns what that loses.

    For "mib" the sizes of the model are those in the file, else of `model` (a card or model), else of the model that
    the run folder around the file was made from. Raises `FormatError`.
    """
    from spex_mech.formats import interchange

    circuit = interchange.read_circuit(path)
    options = {"config": _sizes(circuit, Path(path), model, device)} if to == "mib" else {}
    return interchange.export(circuit, out, to, **options)


def _sizes(circuit: "Circuit", path: Path, model: str | None, device: str | None) -> Mapping[str, Any] | None:
    if "cfg" in circuit.evidence and model is None:
        return None
    from spex_mech.formats.transformer_lens_hooks import mib_config
    from spex_mech.gallery.studies import open_subject, reopen

    subject = open_subject(model, device=device) if model is not None else reopen(path.parent, device=device).subject
    return mib_config(subject)
