"""From responses to a circuit: a decoder by name, its polynomial, how sure it is, and the record of the run."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from spex_mech.circuit.build import build_circuit
from spex_mech.circuit.graph import Circuit
from spex_mech.errors import DecodeError
from spex_mech.files.records import plain
from spex_mech.measuring.threads import threads
from spex_mech.names import DecoderName
from spex_mech.store.discovery import RUN_SCHEMA, Discovery, store
from spex_mech.store.responses import Responses
from spex_mech.walsh.certainty.weigh import Certainty, check_certainty, heldout_points, weigh
from spex_mech.walsh.decoders.exact import Exact
from spex_mech.walsh.decoders.linear import Linear
from spex_mech.walsh.decoders.proxyspex import ProxySpex
from spex_mech.walsh.decoding import Decoded, Decoder, Samples
from spex_mech.walsh.joint.joint import Joint
from spex_mech.walsh.link.linked import Linked
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.spex.spex import Spex

FEW_BITS = 1 << 14  # masks × components: 512 masks of 32 components
DECODERS: dict[DecoderName, type[Decoder]] = {
    "exact": Exact, "joint": Joint, "linear": Linear, "proxyspex": ProxySpex, "spex": Spex
}  # fmt: skip


def choose_decoder(name: str, design: MaskDesign | None, masks: int, link: str = "identity") -> Decoder:
    """A decoder by name; "auto" takes exact for all masks, spex for coded ones, joint for the rest.

    With another link than "identity" it is `Linked`. Raises `DecodeError`: no such decoder or link, or fewer masks than
    it can use.
    """
    if name == "auto":
        name = {"complete": "exact", "coded": "spex"}.get("" if design is None else design.kind, "joint")
    if name not in DECODERS:
        raise DecodeError(f"there is no decoder {name!r}; the decoders are auto, {', '.join(sorted(DECODERS))}.")
    solver = DECODERS[name]()
    least = getattr(solver, "least_masks", 1)
    if masks < least:
        raise DecodeError(
            f"decoder {name!r} was given {masks:,} masks; it needs at least {least:,} to hold some out and "
            "cross-validate on the rest. Raise the budget."
        )
    return solver if link == "identity" else Linked(solver, link)


def decode_held(
    responses: Responses,
    decoder: str,
    seed: int,
    out: str | Path | None,
    spent: Mapping[str, Any],
    folds: int = 0,
    resamples: int = 0,
    link: str = "auto",
) -> Discovery:
    """`decode` into a run folder that this process holds; `spent` goes into the record."""
    if out is not None:
        store(responses, Path(out))
    with calm(responses.keep.numel()):
        found = _recover(responses, decoder, seed, spent, folds, resamples, link)
    if out is not None:
        found.save(out)
    return found


@contextmanager
def calm(bits: int) -> Iterator[None]:
    """One thread for masks of so few bits: threads that wait for each other on a busy machine cost more than they do.

    With two threads on two busy cores, 512 masks of 12 components took ten times the CPU seconds. The rule looks at
    nothing but the size, so that the bits of a result do not depend on the machine's cores.
    """
    with threads(1 if bits <= FEW_BITS else torch.get_num_threads()):
        yield


def _recover(
    responses: Responses,
    decoder: str,
    seed: int,
    spent: Mapping[str, Any],
    folds: int,
    resamples: int,
    link: str,
) -> Discovery:
    design = design_of(responses)
    solver = choose_decoder(decoder, design, len(responses), link)
    check_certainty(design, folds, resamples)
    samples = Samples(responses.keep, responses.values, design)
    decoded = solver.decode(samples, seed=seed)
    started = time.perf_counter()
    sure = weigh(samples, solver, decoded, seed=seed, folds=folds, resamples=resamples)
    weighed = time.perf_counter() - started
    decoded, circuit = replace(decoded, spectrum=sure.spectrum), describe_circuit(responses, solver, decoded, sure)
    raw_circuit = None
    if isinstance(solver, Linked) and decoded.raw is not None:
        raw = weigh(samples, solver.base, decoded.raw, seed=seed, folds=folds, resamples=resamples)
        raw_circuit = describe_circuit(responses, solver, decoded.raw, raw)
        decoded = replace(decoded, raw=replace(decoded.raw, spectrum=raw.spectrum))
    record = describe_run(responses, solver, decoded.stats, seed) | plain({"certainty": sure.record})
    record |= {**spent, "heldout": heldout_points(samples, solver, decoded, seed)}
    taken = {"decode": float(decoded.stats["seconds"]), "certainty": weighed}
    record["seconds"] = {**record.get("seconds", {}), **taken}
    record["outcome"] = decoded.outcome.name
    return Discovery(responses, decoded, circuit, record, raw_circuit)


def describe_circuit(responses: Responses, solver: Decoder, decoded: Decoded, sure: Certainty) -> Circuit:
    """The circuit of a decoding, on the scale it is on: behind a link in latent units."""
    evidence = {
        **decoded.stats, "decoder": solver.name, "outcome": decoded.outcome.name, "certainty": sure.record,
        **responses.provenance,
    }  # fmt: skip
    return build_circuit(
        sure.spectrum, responses.components, evidence=evidence, q_value=sure.q_value, stability=sure.stability,
        unit=responses.unit if decoded.link.is_identity else f"{responses.unit} (latent)", link=decoded.link.name,
        roles=part_texts(responses.provenance),
    )  # fmt: skip


def describe_run(responses: Responses, solver: Decoder, stats: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The run record: enough to repeat the run, and its headline numbers."""
    return {
        "schema": RUN_SCHEMA,
        "spex_mech": version("spex-mech"),
        "components": list(responses.components.names),
        "unit": responses.unit,
        "masks": len(responses.keep),
        "rows": responses.values.numel(),
        "seed": seed,
        "heldout_r2": stats["heldout_r2"],
        "decoder": {"name": solver.name, "stats": dict(stats)},
        **responses.provenance,
    }


def design_of(responses: Responses) -> MaskDesign | None:
    """The design that drew the masks, where the responses say."""
    record = responses.provenance.get("design")
    return None if record is None else MaskDesign.from_dict(record)


def part_texts(provenance: Mapping[str, Any]) -> Mapping[str, str]:
    """What the parts of an input say, by name, where the components are such and a record tells."""
    subject = provenance.get("subject")
    parts = subject.get("prompt_parts", {}) if isinstance(subject, Mapping) else {}
    return parts.get("texts", {}) if isinstance(parts, Mapping) else {}
