"""The spine: subject, task, components → masks → responses → polynomial → circuit. Each line calls one pass."""

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from spex_mech.ablation.binding import bind
from spex_mech.ablation.fitted import remember
from spex_mech.ablation.replacement import Replacement, fit_replacement
from spex_mech.ablation.respond import Engine
from spex_mech.ablation.subject import Subject
from spex_mech.ablation.workers import Workers
from spex_mech.circuit.build import build_circuit
from spex_mech.circuit.graph import Circuit
from spex_mech.components import ComponentSet, select
from spex_mech.errors import DecodeError
from spex_mech.fingerprints import hash_function
from spex_mech.locks import hold
from spex_mech.measuring import measure_once
from spex_mech.narrowing import narrow
from spex_mech.pilot import settle_keep
from spex_mech.plans import Keep, choose_design, share_early
from spex_mech.progress import mask_progress
from spex_mech.records import plain
from spex_mech.responses import Responses
from spex_mech.runs import RUN_SCHEMA, Discovery, recall, store
from spex_mech.scaling import choose_run
from spex_mech.task import Task
from spex_mech.walsh.certainty import Certainty, check_certainty, heldout_points, weigh
from spex_mech.walsh.decoding import Decoded, Decoder, Samples
from spex_mech.walsh.design import MaskDesign
from spex_mech.walsh.exact import Exact
from spex_mech.walsh.joint import Joint
from spex_mech.walsh.linear import Linear
from spex_mech.walsh.linked import Linked
from spex_mech.walsh.proxy import ProxySpex
from spex_mech.walsh.spex import Spex

DECODERS: dict[str, type[Decoder]] = {
    "exact": Exact, "joint": Joint, "linear": Linear, "proxyspex": ProxySpex, "spex": Spex
}  # fmt: skip


def discover(
    subject: Any,
    task: Task,
    components: ComponentSet | str | None = None,
    budget: int = 1024,
    keep: Keep = 0.5,
    replacement: str = "mean",
    decoder: str = "auto",
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = False,
    per: str | None = None,
    share: int = 1,
    folds: int = 0,
    resamples: int = 0,
    link: str = "auto",
    workers: Workers | None = None,
    refine: bool = False,
) -> Discovery:
    """Find which components of `subject` matter together for `task`, from `budget` ablation masks.

    Fits ``metric(keep) ≈ Σ_S F(S) Π_{i∈S} φ(keep_i)`` to the mean of the metric over prompts under random sets of
    ablated components, and reads the sets S as the nodes and hyperedges of a circuit.

    Args:
        subject: a bound subject, or any model that `bind` takes.
        task: prompts, answers and metric; per-prompt values are always kept.
        components: a `ComponentSet`, or an expression for `select`; default: all heads and MLP layers.
        budget: number of masks; the forward rows are ``budget × prompts``. Where all 2^n masks fit into it, they are
            all measured (with `decoder` "auto" or "exact").
        keep: the keep-probability of the masks, several of them (strata in equal shares), "coded" (SPEX's masks), or
            "auto": half at 0.5 and half at 0.9, unless a pilot (at most a tenth of the budget) says clearly that other
            masks differ more in the metric; the record's ``"pilot"`` has its figures.
        replacement: what an ablated component is replaced by: "mean", "zero" or "resample".
        decoder: "auto" (exact where all masks fit the budget, spex for coded masks, else joint), "joint" (several
            proxies, stacked and read out), "proxyspex" (its trees alone, a few times faster), "spex", "linear" or
            "exact".
        seed: of the masks, the held-out split, and resampling.
        out: run folder. Every finished chunk of masks is on disk before the next begins; the same call on the same
            folder goes on where a killed run was, to the same bits, and costs nothing once complete. A folder of
            another experiment is refused, saying what differs; so is one that another process works in.
        progress: show a bar of masks.
        share: masks in runs of that many agree on the components of the earlier half of the touched layers, which such
            a run passes once: about a quarter off the cost at 2, and three eighths at 4, for slightly less knowledge a
            mask. Worth it where the forward passes are what costs; raise the budget by as much.
        folds: what errors and q-values are made from: 0, the decoder's held-out masks, at no cost; K ≥ 2, cross-fitting
            over K folds, which uses every mask and costs K decodings (3 is a good number).
        resamples: what stability is made from: 0, a hundred refits of the sets that pass, each to half of the masks; an
            even number, so many decodings of half of the masks each.
        link: what lies between polynomial and metric: "identity" (nothing), a saturating function by name ("logistic",
            "softplus", "spline"), or "auto": the identity, unless masks that had no part in the fit say clearly that it
            loses. With a link, interactions are on the latent scale; ``interactions("raw")`` are the metric's own.
        workers: pass the masks through that many processes on this machine or a cluster (`Workers`, needs ray): the
            same bits, sooner. None: here.
        per: "position" or "pooled" means; default: per position where all prompts have one length.
        refine: ablate blocks of components first and split only those that carry weight, down to single components
            (`narrowing.narrow`); `budget` is that of all rounds. For thousands of components: far fewer masks, at the
            price that what no block shows is not looked at again. The result is over the components that were left.

    Returns:
        a `Discovery` with ``.responses``, ``.decoded``, ``.spectrum``, ``.circuit``, ``.interactions()``,
        ``.predict(keep)``.

    Raises:
        SpexMechError: anything about the input that cannot work, before the first forward pass where it can be known.

    Source: ProxySPEX, Butler et al. 2025 (arXiv 2505.17495); SPEX, Kang et al. 2025 (arXiv 2502.13870).
    """
    subject = bind(subject)
    chosen = choose_components(subject, components)
    task = task.check(subject.shape)
    if refine:
        asked = partial(
            discover, subject, task, keep=keep, replacement=replacement, decoder=decoder, seed=seed, progress=progress,
            per=per, share=share, folds=folds, resamples=resamples, link=link, workers=workers,
        )  # fmt: skip
        return narrow(chosen, budget, lambda left, masks, folder: asked(left, masks, out=folder), out)
    design = share_early(choose_design(len(chosen), budget, keep, decoder, seed), chosen, share)
    choose_decoder(decoder, design, design.n_masks, link)  # a budget it cannot use is refused before it is spent
    check_certainty(design, folds, resamples)
    run = choose_run(workers, subject)
    with hold(out):
        reference = fit_replacement(subject, task, chosen, kind=replacement, per=per, seed=seed)
        remember(subject, reference)
        engine, started = Engine(subject, task, chosen, reference), time.perf_counter()
        settled = settle_keep(design, keep, engine, describe_experiment(subject, task, reference, design), out)
        record = describe_experiment(subject, task, reference, settled.design)
        responses, resumed = recall(out, record, chosen), {"resumed_masks": settled.design.n_masks}
        if responses is None:
            with mask_progress(settled.design.n_masks, "ablating", shown=progress) as tick:
                responses, resumed = measure_once(engine, settled.design, record, out, tick, settled.known, run)
        spent = {"seconds": {"respond": time.perf_counter() - started}, **resumed, **settled.told}
        return decode_held(responses, decoder, seed, out, spent, folds, resamples, link)


def describe_experiment(subject: Subject, task: Task, reference: Replacement, design: MaskDesign) -> dict[str, Any]:
    """Whatever decides the values, by content; together with the components it says whether two runs are the same."""
    metric = {} if isinstance(task.metric, str) else {"metric_sha256": hash_function(task.metric)}
    return plain(
        {
            "subject": dict(subject.provenance),
            "task": {**task.describe(), **metric},
            "replacement": reference.describe(),
            "design": design.to_dict(),
        }
    )


def decode(
    responses: Responses,
    decoder: str = "auto",
    seed: int = 0,
    out: str | Path | None = None,
    folds: int = 0,
    resamples: int = 0,
    link: str = "auto",
) -> Discovery:
    """Decode responses that were paid for before; the second half of `discover`, which needs no model.

    Raises `DecodeError` where the decoder cannot use these masks, `ResponseError` where values are not finite, or `out`
    is in use or holds other responses.
    """
    with hold(out):
        return decode_held(responses, decoder, seed, out, {}, folds, resamples, link)


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
    found = Discovery(responses, decoded, circuit, record, raw_circuit)
    if out is not None:
        found.save(out)
    return found


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


def part_texts(provenance: Mapping[str, Any]) -> Mapping[str, str]:
    """What the parts of an input say, by name, where the components are such and a record tells."""
    subject = provenance.get("subject")
    parts = subject.get("prompt_parts", {}) if isinstance(subject, Mapping) else {}
    return parts.get("texts", {}) if isinstance(parts, Mapping) else {}


def choose_components(subject: Subject, components: ComponentSet | str | None) -> ComponentSet:
    """The components asked for, checked against the model; by default all heads and MLP layers."""
    if components is None:
        components = "a*.h*, m*" if any(subject.shape.mlps) else "a*.h*"
    return select(subject, components) if isinstance(components, str) else components.check(subject.shape)


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


def design_of(responses: Responses) -> MaskDesign | None:
    """The design that drew the masks, where the responses say."""
    record = responses.provenance.get("design")
    return None if record is None else MaskDesign.from_dict(record)


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
