"""From responses to a circuit: the decoder asked for, its polynomial, how sure it is, and the record of the run."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

import torch

from spex_mech.circuit.build import build_circuit
from spex_mech.circuit.graph import Circuit
from spex_mech.errors import DecodeError
from spex_mech.files.records import plain
from spex_mech.measuring.ask import Ask
from spex_mech.measuring.threads import threads
from spex_mech.store.discovery import RUN_SCHEMA, Discovery, store
from spex_mech.store.responses import Responses
from spex_mech.tasks.metrics import METRICS, Metric
from spex_mech.walsh.certainty.weigh import Certainty, check_certainty, heldout_points, weigh
from spex_mech.walsh.decoders.exact import Exact
from spex_mech.walsh.decoders.linear import Linear
from spex_mech.walsh.decoders.proxyspex import ProxySpex
from spex_mech.walsh.decoding import Decoded, Decoder
from spex_mech.walsh.joint.joint import Joint
from spex_mech.walsh.link.linked import Linked
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.spex.spex import Spex

FEW_BITS = 1 << 14  # masks × components: 512 masks of 32 components
DECODERS: dict[str, type[Decoder]] = {  # by DecoderName
    "exact": Exact, "joint": Joint, "linear": Linear, "proxyspex": ProxySpex, "spex": Spex
}  # fmt: skip


def choose_decoder(ask: Ask, design: MaskDesign | None, masks: int) -> Decoder:
    """The decoder asked for; "auto" takes exact for all masks, spex for coded ones, joint for the rest.

    With another link than "identity" it is `Linked`. Raises `DecodeError`: fewer masks than it can use.
    """
    name = ask.decoder
    if name == "auto":
        name = {"complete": "exact", "coded": "spex"}.get("" if design is None else design.kind, "joint")
    solver = DECODERS[name]()
    least = getattr(solver, "least_masks", 1)
    if masks < least:
        raise DecodeError(
            f"decoder {name!r} was given {masks:,} masks; it needs at least {least:,} to hold some out and "
            "cross-validate on the rest. Raise the budget."
        )
    return solver if ask.link == "identity" else Linked(solver, ask.link)


def refuse_undecodable(ask: Ask, design: MaskDesign) -> None:
    """Refuse a budget that the decoder cannot use, or certainty that cannot be had, before it is spent."""
    choose_decoder(ask, design, design.n_masks)
    check_certainty(design, ask.folds, ask.resamples)


def decode_held(
    responses: Responses,
    ask: Ask,
    spent: Mapping[str, Any] | None = None,
    roles: Mapping[str, str] | None = None,
) -> Discovery:
    """`decode` into a run folder that this process holds.

    Args:
        spent: goes into the record.
        roles: what each component says, by name, where the responses do not tell.
    """
    if ask.folder is not None:
        store(responses, ask.folder)
    with calm(responses.keep.numel()):
        found = _recover(responses, ask, spent or {}, roles or part_texts(responses))
    if ask.folder is not None:
        found.save(ask.folder)
    return found


@contextmanager
def calm(bits: int) -> Iterator[None]:
    """One thread for masks of so few bits: threads that wait for each other on a busy machine cost more than they do.

    With two threads on two busy cores, 512 masks of 12 components took ten times the CPU seconds. The rule looks at
    nothing but the size, so that the bits of a result do not depend on the machine's cores.
    """
    with threads(1 if bits <= FEW_BITS else torch.get_num_threads()):
        yield


def _recover(responses: Responses, ask: Ask, spent: Mapping[str, Any], roles: Mapping[str, str]) -> Discovery:
    design = design_of(responses)
    solver = choose_decoder(ask, design, len(responses))
    check_certainty(design, ask.folds, ask.resamples)
    samples = replace(responses.samples, design=design)
    decoded = solver.decode(samples, seed=ask.seed)

    def sure_of(one: Decoder, found: Decoded) -> Certainty:
        return weigh(samples, one, found, seed=ask.seed, folds=ask.folds, resamples=ask.resamples)

    started = time.perf_counter()
    sure = sure_of(solver, decoded)
    weighed = time.perf_counter() - started
    decoded = replace(decoded, spectrum=sure.spectrum)
    describe = partial(describe_circuit, responses, solver, roles=roles)
    circuit, raw_circuit = describe(decoded, sure), None
    if isinstance(solver, Linked) and decoded.raw is not None:
        raw = sure_of(solver.base, decoded.raw)
        raw_circuit = describe(decoded.raw, raw)
        decoded = replace(decoded, raw=replace(decoded.raw, spectrum=raw.spectrum))
    record = describe_run(responses, solver, decoded.stats, ask.seed) | plain({"certainty": sure.record})
    record |= {**spent, "heldout": heldout_points(samples, solver, decoded, ask.seed)}
    taken = {"decode": float(decoded.stats["seconds"]), "certainty": weighed}
    record["seconds"] = {**record.get("seconds", {}), **taken}
    record["outcome"] = decoded.outcome.name
    return Discovery(responses, decoded, circuit, record, raw_circuit)


def describe_circuit(
    responses: Responses, solver: Decoder, decoded: Decoded, sure: Certainty, *, roles: Mapping[str, str]
) -> Circuit:
    """The circuit of a decoding, on the scale it is on: behind a link in latent units."""
    evidence = {
        **decoded.stats, "larger_is_better": larger_is_better(responses.provenance),
        "decoder": solver.name, "outcome": decoded.outcome.name, "certainty": sure.record,
        **responses.provenance,
    }  # fmt: skip
    return build_circuit(
        sure.spectrum, responses.components, evidence=evidence, q_value=sure.q_value, stability=sure.stability,
        unit=responses.unit if decoded.link.is_identity else f"{responses.unit} (latent)", link=decoded.link.name,
        roles=roles, exact=bool((sure.record.get("inference") or {}).get("exact")),
    )  # fmt: skip


def describe_run(responses: Responses, solver: Decoder, stats: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The run record: enough to repeat the run, and its headline numbers."""
    return {
        "schema": RUN_SCHEMA,
        "spex_mech": version("spex-mech"),
        "components": list(responses.components.names),
        "unit": responses.unit,
        "larger_is_better": larger_is_better(responses.provenance),
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


def metric_of(record: Mapping[str, Any]) -> Metric | None:
    """The metric that a record of an experiment names; None for a function of the user's."""
    task = record.get("task")
    known = isinstance(task, Mapping) and "metric_sha256" not in task
    return METRICS.get(str(task.get("metric"))) if known else None  # type: ignore[union-attr]


def larger_is_better(record: Mapping[str, Any]) -> bool | None:
    """Of the metric that a record of an experiment names; None for a function of the user's."""
    metric = metric_of(record)
    return None if metric is None else metric.larger_is_better


def part_texts(responses: Responses) -> Mapping[str, str]:
    """What the parts of a prompt say, by component name, where the components are such and a record tells."""
    record = responses.provenance
    subject, task = (part if isinstance(part, Mapping) else {} for part in (record.get("subject"), record.get("task")))
    parts, features = subject.get("prompt_parts"), task.get("features")
    if isinstance(parts, Mapping):
        return parts.get("texts", {})
    texts = features.get("parts") if isinstance(features, Mapping) else None
    return dict(zip(responses.components.names, texts, strict=False)) if isinstance(texts, list) else {}
