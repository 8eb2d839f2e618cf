"""Files of circuits on the command line: one format into another, and the audit of a circuit that is a file."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spex_mech.circuit.graph import Circuit
from spex_mech.circuit.interchange import export, read_circuit
from spex_mech.errors import FormatError
from spex_mech.evidence.scoring import CircuitAudit, audit_circuit
from spex_mech.hook_tables import mib_config
from spex_mech.studies import open_study, open_subject, reopen


def convert(path: str | Path, out: str | Path, to: str, model: str | None = None, device: str | None = None) -> str:
    """Read a circuit of any format that `read_circuit` knows and write it in another; returns what that loses.

    For "mib" the sizes of the model are those in the file, else of `model` (a card or model), else of the model that
    the run folder around the file was made from. Raises `FormatError`.
    """
    circuit = read_circuit(path)
    options = {"config": _sizes(circuit, Path(path), model, device)} if to == "mib" else {}
    return export(circuit, out, to, **options)


def audit_file(
    path: str | Path,
    model: str | None,
    *,
    prompts: str | Path | None = None,
    device: str | None = None,
    known: Collection[str] | None = None,
    budget: int = 512,
    seed: int = 1,
) -> CircuitAudit:
    """`audit_circuit` of a file on the model, prompts and replacement of a card, or on a model with prompts.

    The result is beside the file, as ``NAME.audit.json``. Raises `FormatError` where no model is named.
    """
    circuit, path = read_circuit(path), Path(path)
    if model is None:
        raise FormatError(f"{path} is a circuit, not a run; name the card or model it is to be tried on: --model ….")
    study = open_study(model, prompts=prompts, device=device)
    names = list(study.card.published.nodes if study.card else ()) if known is None else known
    return audit_circuit(
        circuit, study.subject, study.task, replacement=study.replacement, per=study.per, known=names, budget=budget,
        seed=seed, out=path.with_name(f"{path.stem}.audit.json"),
    )  # fmt: skip


def print_circuit_audit(result: CircuitAudit, console: Console) -> None:
    """What forward passes said of a circuit."""
    console.print(f"{escape(str(result))}.")
    if result.value is not None:
        console.print(
            f"With only the circuit kept the metric is {result.value:+.3f} {result.unit}, without it "
            f"{result.without:+.3f}; intact {result.intact:+.3f}, nothing kept {result.empty:+.3f}."
        )
    if result.sizes:
        table = Table("size", "kept", "preserve", "help", "random", title="Faithfulness of the best-scored components")
        for row in result.sizes:
            null = "" if row.random is None else f"{row.random:.3f}"
            table.add_row(f"{row.size:g}", f"{row.count:,}", f"{row.preserve:.3f}", f"{row.help:.3f}", null)
        console.print(table)
    for what in result.skipped:
        console.print(f"[yellow]left out:[/] {escape(what)}")


def _sizes(circuit: Circuit, path: Path, model: str | None, device: str | None) -> Mapping[str, Any] | None:
    if "cfg" in circuit.evidence and model is None:
        return None
    subject = open_subject(model, device=device) if model is not None else reopen(path.parent, device=device).subject
    return mib_config(subject)
