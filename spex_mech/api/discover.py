"""`discover`: which components of a model matter together. `measuring.spine` says how it is done."""

from pathlib import Path
from typing import Any

from spex_mech.ablation.model_parts import ModelParts
from spex_mech.ablation.wrappers import single_precision
from spex_mech.components import ComponentSet
from spex_mech.files.locks import hold
from spex_mech.measuring.ask import Ask, KeepProb
from spex_mech.measuring.decode import decode_held
from spex_mech.measuring.spine import run
from spex_mech.measuring.workers import Workers
from spex_mech.store.discovery import Discovery
from spex_mech.store.responses import Responses
from spex_mech.tasks.task import Task


@single_precision()
def discover(
    subject: Any,
    task: Task,
    components: ComponentSet | str | None = None,
    *,
    budget: int | None = None,
    rows: int | None = None,
    prompts_per_mask: int | str = "auto",
    keep_prob: KeepProb = 0.5,
    replacement: str = "mean",
    decoder: str = "auto",
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = False,
    per: str | None = None,
    shared_layers: int = 1,
    folds: int = 0,
    resamples: int = 0,
    link: str = "auto",
    workers: Workers | None = None,
    refine: bool = False,
) -> Discovery:
    """Find which components of `subject` matter together for `task`, from `rows` forward rows, or `budget` masks.

    Fits ``metric(keep) ≈ Σ_S F(S) Π_{i∈S} φ(keep_i)`` to the mean of the metric over prompts under random sets of
    ablated components, and reads the sets S as the nodes and hyperedges of a circuit.

    Args:
        subject: a bound subject, or any model that `bind` takes.
        task: prompts, answers and metric; per-prompt values are always kept.
        components: a `ComponentSet`, or an expression for `select`; default: all heads and MLP layers.
        rows: what is paid for: forward rows, each one prompt under one mask. Where all 2^n masks under all prompts fit
            into it, they are all measured (with `decoder` "auto" or "exact").
        budget: the same told in masks, ``rows / prompts_per_mask``; give one of the two. Default: 1,024 masks.
        prompts_per_mask: how many of the prompts a mask meets: "all", a number, or "auto" (one where `rows` are given,
            up to 8,192, and joint decodes, else all; ``record["crossing"]`` has the reason). Prompts are dealt evenly,
            by the seed; with one a mask, one mask in 32, from 48 to 128, is asked again with another prompt.
        keep_prob: the keep-probability of the masks, several of them (strata in equal shares), "coded" (SPEX's masks),
            or "auto": half at 0.5 and half at 0.9, unless a pilot (at most a tenth of the budget; none below 220
            masks) says clearly that other masks differ more in the metric; the record's ``"pilot"`` has its figures.
        replacement: what an ablated component is replaced by: "mean", "zero" or "resample".
        decoder: "auto" (exact where all masks fit the budget, spex for coded masks, else joint), "joint" (several
            proxies, stacked and read out), "proxyspex" (its trees alone, a few times faster), "spex", "linear" or
            "exact".
        seed: of the masks, the held-out split, and resampling.
        out: run folder. Every finished chunk of masks is on disk before the next begins; the same call on the same
            folder goes on where a killed run was, to the same bits, and costs nothing once complete. A folder of
            another experiment is refused, saying what differs; so is one that another process works in.
        progress: show a bar of masks.
        shared_layers: masks in runs of that many agree on the components of the earlier half of the touched
            layers, which such a run passes once: about a quarter off the cost at 2, and three eighths at 4, for
            slightly less knowledge a mask. Worth it where the forward passes are what costs; raise the budget by as
            much.
        folds: what errors and q-values are made from: 0, all masks by joint's de-biased fit (of other decoders, those
            held out), at no cost; K ≥ 2, cross-fitting over K folds, which costs K decodings (3 is a good number).
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
    ask = Ask(
        budget=budget, rows=rows, prompts_per_mask=prompts_per_mask, keep_prob=keep_prob, replacement=replacement,
        decoder=decoder, seed=seed, out=out, progress=progress, per=per, shared_layers=shared_layers, folds=folds,
        resamples=resamples, link=link, workers=workers, refine=refine,
    )  # fmt: skip
    parts = ModelParts.of(subject, task, components)
    return run(
        lambda some: parts.only(some).engine(ask.replacement, per=ask.per, seed=ask.seed, remember=True),
        parts.components,
        ask,
        prompts=len(parts.task),
    )


@single_precision()
def decode(
    responses: Responses,
    *,
    decoder: str = "auto",
    link: str = "auto",
    seed: int = 0,
    out: str | Path | None = None,
    folds: int = 0,
    resamples: int = 0,
) -> Discovery:
    """Decode responses that were paid for before; the second half of `discover`, which needs no model.

    Raises `DecodeError` where the decoder cannot use these masks, `ResponseError` where values are not finite, or `out`
    is in use or holds other responses.
    """
    ask = Ask(decoder=decoder, link=link, seed=seed, out=out, folds=folds, resamples=resamples)
    with hold(ask.folder):
        return decode_held(responses, ask)
