"""Audits on the command line: of a run folder, or of a circuit that is a file."""

from collections.abc import Collection
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spex_mech.api.audit import audit, refuse_other_lens
from spex_mech.api.audit_circuit import audit_circuit
from spex_mech.api.report import write_report
from spex_mech.auditing.circuit_audit import CircuitAudit
from spex_mech.auditing.run_audit import Audit
from spex_mech.cli.audit_printing import print_audit
from spex_mech.errors import FormatError
from spex_mech.files.text import like
from spex_mech.formats.interchange import read_circuit
from spex_mech.gallery.studies import Study, open_study, reopen
from spex_mech.store.discovery import load_run


def audit_run(
    folder: Path,
    model: str | None,
    *,
    size: int | None,
    progress: bool,
    prompts: Path | None,
    device: str | None,
    known: Collection[str] | None,
    budget: int,
    seed: int,
) -> Audit:
    """`audit` of a run on what it was made from, or on another model; its report is written anew."""
    found = load_run(folder)
    refuse_other_lens(found)
    study = reopen(folder, device=device) if model is None else open_study(model, prompts=prompts, device=device)
    told = audit(
        found, study.subject, study.task, seed=seed, budget=budget, size=size, known=_known(study, known),
        out=folder, progress=progress,
    )  # fmt: skip
    write_report(folder)
    return told


def audit_file(
    path: str | Path,
    model: str | None,
    *,
    prompts: str | Path | None,
    device: str | None,
    known: Collection[str] | None,
    budget: int,
    seed: int,
) -> CircuitAudit:
    """`audit_circuit` of a file on the model, prompts and replacement of a card, or on a model with prompts.

    The result is beside the file, as ``NAME.audit.json``. Raises `FormatError` where no model is named.
    """
    circuit, path = read_circuit(path), Path(path)
    if model is None:
        raise FormatError(f"{path} is a circuit, not a run; name the card or model it is to be tried on: --model ….")
    study = open_study(model, prompts=prompts, device=device)
    return audit_circuit(
        circuit, study.subject, study.task, replacement=study.replacement, per=study.per, budget=budget, seed=seed,
        known=_known(study, known), path=path.with_name(f"{path.stem}.audit.json"),
    )  # fmt: skip


def print_trial(result: Audit | CircuitAudit, where: Path, console: Console) -> None:
    """What an audit said, in at most 80 columns."""
    if isinstance(result, Audit):
        print_audit(result, where, console)
    else:
        _print_circuit_audit(result, console)


def _known(study: Study, names: Collection[str] | None) -> Collection[str]:
    """The circuit to compare with: as asked for, else what is published of the card."""
    return list(study.card.published.nodes if study.card else ()) if names is None else names


def _print_circuit_audit(result: CircuitAudit, console: Console) -> None:
    """What forward passes said of a circuit."""
    console.print(f"{escape(str(result))}.")
    if result.value is not None and result.without is not None:
        write = like([result.intact, result.empty])
        console.print(
            f"With only the circuit kept the metric is {write(result.value)} {result.unit}, without it "
            f"{write(result.without)}; intact {write(result.intact)}, nothing kept {write(result.empty)}."
        )
    if result.sizes:
        table = Table("size", "kept", "preserve", "help", "random", title="Faithfulness of the best-scored components")
        for row in result.sizes:
            null = "" if row.random is None else f"{row.random:.3f}"
            table.add_row(f"{row.size:g}", f"{row.count:,}", f"{row.preserve:.3f}", f"{row.help:.3f}", null)
        console.print(table)
    for what in result.skipped:
        console.print(f"[yellow]left out:[/] {escape(what)}")
