"""Audits on the command line: of a run folder, or of a circuit that is a file."""

from collections.abc import Collection
from pathlib import Path

from spex_mech.api.audit import audit, refuse_other_lens
from spex_mech.api.audit_circuit import audit_circuit
from spex_mech.api.report import write_report
from spex_mech.auditing.circuit_audit import CircuitAudit
from spex_mech.auditing.run_audit import Audit
from spex_mech.errors import FormatError
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
    result = audit(
        found, study.subject, study.task, seed=seed, budget=budget, size=size, known=_known(study, known),
        out=folder, progress=progress,
    )  # fmt: skip
    write_report(folder)
    return result


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


def _known(study: Study, names: Collection[str] | None) -> Collection[str]:
    """The circuit to compare with: as asked for, else what is published of the card."""
    return list(study.card.published.nodes if study.card else ()) if names is None else names
