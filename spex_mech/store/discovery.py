"""`Discovery`: what a run measured, decoded and found; and the run folder it is kept in.

A run folder holds ``run.json`` (how it came to be), ``responses.safetensors`` (what the forward passes cost),
``journal.sqlite`` (the same, chunk by chunk, as it was measured), ``spectrum.json``, ``circuit.json`` and
``interactions.csv``; where there is a link, the last three also with ``_raw`` in their names, on the metric's own
scale. It is read back without a model.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from jaxtyping import Bool, Float
from torch import Tensor

from spex_mech.circuit.graph import Circuit, load_circuit
from spex_mech.components import ComponentSet
from spex_mech.errors import DecodeError, FormatError
from spex_mech.files.json import json_text, read_json, sorted_keys, write_whole
from spex_mech.files.plain_files import is_plain, refuse_links
from spex_mech.files.records import plain, refuse_other
from spex_mech.files.schema import checked
from spex_mech.files.text import escaped
from spex_mech.store.responses import Responses, pack_bits
from spex_mech.store.run_record import RunRecord
from spex_mech.store.spectrum_file import load_spectrum, save_spectrum
from spex_mech.walsh.decoding import Decoded, Outcome
from spex_mech.walsh.link_function import Link
from spex_mech.walsh.spectrum import Spectrum

LensName = Literal["components", "features", "data"]
RUN_SCHEMA = "spex_mech.run/1"
RESPONSES = "responses.safetensors"
_TOLD = 5  # interactions in a plain shell
_RAW = "_raw"  # ends the names of the files on the metric's own scale, where there is a link


def lens_of(record: Mapping[str, Any]) -> LensName:
    """What a run ablated: components of a model, parts of a prompt, or training examples.

    >>> lens_of({"task": {"metric": "logit", "data": {}}})
    'data'
    """
    task = record.get("task")
    known: tuple[LensName, ...] = ("features", "data")
    return next((lens for lens in known if isinstance(task, Mapping) and lens in task), "components")


@dataclass(frozen=True)
class Discovery:
    """The result of `discover`: responses, polynomial and circuit, with the record of how they came to be."""

    responses: Responses
    decoded: Decoded
    circuit: Circuit
    record: Mapping[str, Any]
    raw_circuit: Circuit | None = None

    @property
    def components(self) -> ComponentSet:
        return self.responses.components

    @property
    def spectrum(self) -> Spectrum:
        return self.decoded.spectrum

    @property
    def link(self) -> Link:
        """What leads from the polynomial to the metric: the identity, or an increasing function."""
        return self.decoded.link

    @property
    def heldout_r2(self) -> float | None:
        """R² of predictions of masks by fits that had not seen them; None where every mask was measured."""
        return self.decoded.stats["heldout_r2"]

    @property
    def judged_on(self) -> str:
        """Which masks `heldout_r2` is of, in words."""
        count = "" if self.masks_judged is None else f"{self.masks_judged:,} "
        return f"{count}masks, each left out of a fit" if self.decoded.cross_fitted else f"{count}held-out masks"

    @property
    def masks_judged(self) -> int | None:
        """How many masks `heldout_r2` is of; None where no mask was held out of a fit."""
        return self.decoded.stats.get("masks_judged") or self.decoded.stats.get("masks_heldout")

    def predict(self, keep: Bool[Tensor, "mask component"]) -> Float[Tensor, " mask"]:
        """The surrogate's value of the metric (mean over prompts) under each mask, link applied, in its unit."""
        return self.decoded.predict(keep)

    def interactions(self, scale: Literal["latent", "raw"] = "latent") -> pd.DataFrame:
        """One row an interaction, strongest first: components, order, coefficient, stderr, q_value, …

        Where there is a link, "latent" are the interactions before it, in latent units, and "raw" those of the metric
        itself, of which some are the link's doing. Without a link the two are the same.
        """
        if scale not in ("latent", "raw"):
            raise DecodeError(f"there is no scale {scale!r}; interactions are on the 'latent' or the 'raw' scale.")
        return (self.circuit if scale == "latent" or self.raw_circuit is None else self.raw_circuit).frame()

    def __str__(self) -> str:
        """The circuit in a line, what it rests on in another, then its strongest interactions."""
        outcome = self.decoded.outcome
        link = "" if self.link.is_identity else f"; behind a link: {self.link.describe()}"
        told = [
            str(self.circuit),
            f"  {self.responses.extent}; {outcome.meaning}{link}",
        ]
        shown = self.circuit.interactions[:_TOLD]
        width = max((len(interaction.label) for interaction in shown), default=0)
        told += [f"  {i.label:<{width}}  {i.coefficient:+.3g}  {i.kind}" for i in shown]
        left = len(self.circuit.interactions) - len(shown)
        return "\n".join([*told, *([f"  … and {left:,} more in .interactions()"] if left > 0 else [])])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """How it ended, then the circuit: drawn, and its strongest interactions as a table."""
        outcome = self.decoded.outcome
        told = f"{self.responses.extent}; {outcome.name.lower()}: {outcome.meaning}."
        link = "" if self.link.is_identity else f" Behind a link: {self.link.describe()}."
        return f"<p>{escaped(told + link)}</p>{self.circuit._repr_html_()}"

    def save(self, folder: str | Path) -> Path:
        """Write the run folder; every file is written whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        refuse_links(folder)
        store(self.responses, folder)
        _save_scale(folder, "", self.decoded, self.circuit)
        for name in () if self.raw_circuit else _scale_files(_RAW):
            (folder / name).unlink(missing_ok=True)  # of a decoding before this one
        if self.decoded.raw is not None and self.raw_circuit is not None:
            _save_scale(folder, _RAW, self.decoded.raw, self.raw_circuit)
        write_whole(folder / "run.json", json_text(sorted_keys(plain(self.record))))
        return folder


def load_run(folder: str | Path) -> Discovery:
    """The `Discovery` that was saved in a run folder; needs no model. Raises `FormatError` naming what is missing."""
    folder = Path(folder)
    refuse_links(folder)
    names = ("run.json", RESPONSES, "spectrum.json", "circuit.json")
    missing = [name for name in names if not is_plain(folder / name)]
    if missing:
        raise FormatError(f"{folder} is not a finished run folder: {', '.join(missing)} missing. Run discover again.")
    record = read_json(folder / "run.json", RUN_SCHEMA)
    about = checked(RunRecord, record, f"{folder / 'run.json'} is not a sound run record:")
    responses = Responses.load(folder / RESPONSES)
    spectrum, link = load_spectrum(folder / "spectrum.json", responses.components)
    circuit, raw, raw_circuit = _load_circuit(folder / "circuit.json", responses), None, None
    stats = record["decoder"]["stats"]
    if stats["heldout_r2"] is None and stats.get("masks_heldout"):  # they do not differ, so R² is no number
        stats["heldout_r2"] = record["heldout_r2"] = float("nan")
    without = about.decoder.stats.without_link
    if not link.is_identity and without is not None:
        raw_circuit = _load_circuit(folder / f"circuit{_RAW}.json", responses)
        raw_spectrum, _ = load_spectrum(folder / f"spectrum{_RAW}.json", responses.components)
        raw = Decoded(raw_spectrum, Outcome[without.outcome], stats["without_link"])
    decoded = Decoded(spectrum, Outcome[about.outcome], stats, link, raw)
    return Discovery(responses, decoded, circuit, record, raw_circuit)


def _load_circuit(path: Path, responses: Responses) -> Circuit:
    circuit = load_circuit(path)
    if circuit.components.names != responses.components.names:
        raise FormatError(
            f"{path} is about {len(circuit.components):,} components, {RESPONSES} beside it about "
            f"{len(responses.components):,}, and they are not the same ones. Run discover again."
        )
    return circuit


def _scale_files(suffix: str) -> tuple[str, str, str]:
    return f"spectrum{suffix}.json", f"circuit{suffix}.json", f"interactions{suffix}.csv"


def _save_scale(folder: Path, suffix: str, decoded: Decoded, circuit: Circuit) -> None:
    """The polynomial, circuit and table of one scale."""
    spectrum, graph, table = (folder / name for name in _scale_files(suffix))
    save_spectrum(decoded.spectrum, circuit.components, circuit.unit, spectrum, decoded.link)
    circuit.save(graph)
    frame = circuit.frame()
    frame = frame.assign(components=[" ".join(names) for names in frame["components"]])
    write_whole(table, frame.to_csv(index=False))


def recall_responses(out: str | Path | None, record: Mapping[str, Any], components: ComponentSet) -> Responses | None:
    """The responses of the same experiment in the run folder, or None; a folder of another one is refused."""
    path = None if out is None else Path(out) / RESPONSES
    if path is None or not path.exists():
        return None
    try:
        known = Responses.load(path)
    except FormatError as error:
        raise FormatError(
            f"{error} Remove it and run again: what the journal beside it has is not measured again."
        ) from error
    refuse_other(path, whole_key(known.provenance, known.components), whole_key(record, components))
    return known


def whole_key(record: Mapping[str, Any], components: ComponentSet) -> dict[str, Any]:
    """What the values of a run are known by: the record of the experiment, and which component each bit is."""
    return plain({**record, "components": components.names})


def store(responses: Responses, out: Path) -> None:
    """Put the responses into the run folder, unless they are there already; other ones there are refused by name."""
    path = out / RESPONSES
    if path.exists():
        refuse_other(path, _content(Responses.load(path)), _content(responses))
        return
    out.mkdir(parents=True, exist_ok=True)
    responses.save(path)


def _content(responses: Responses) -> dict[str, Any]:
    """Everything that a responses file says, large parts as hashes."""
    keep, values = pack_bits(responses.keep.cpu()), responses.values.cpu().float().contiguous()
    parts = {"keep": keep, "values": values} | ({} if responses.met is None else {"met": responses.met.cpu()})
    sums = {name: hashlib.sha256(x.numpy().tobytes()).hexdigest() for name, x in parts.items()}
    return whole_key(responses.provenance, responses.components) | {"unit": responses.unit, "sha256": sums}
