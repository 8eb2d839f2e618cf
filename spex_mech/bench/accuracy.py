"""Accuracy of the decoders on the same masks: R² on fresh ones, sets found, seconds; planted functions and cards."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from spex_mech.bench.functions import Kind, Planted, planted_function, support_f1
from spex_mech.bench.timing import machine
from spex_mech.components import ComponentSet, select
from spex_mech.walsh.decoding import Decoder, Samples, r_squared
from spex_mech.walsh.design import MaskDesign
from spex_mech.walsh.joint import Joint
from spex_mech.walsh.linear import Linear
from spex_mech.walsh.proxy import ProxySpex

Row = dict[str, Any]
BUDGETS = (64, 256, 1024)
PLANTED: tuple[tuple[Kind, int, int, float], ...] = (
    ("hierarchical", 64, 5, 0.2), ("random", 64, 40, 0.2), ("tanh", 64, 25, 0.05), ("hierarchical", 256, 5, 0.2),
)  # fmt: skip
PROMPTS, FRESH = 16, 1024
MANY_NEURONS = 600  # from here on a card's components are heads and MLP layers


def run(quick: bool = False, cards: Path | None = None, budgets: Sequence[int] = BUDGETS) -> Row:
    """Decode planted functions, and responses of every card in a folder of cards, with every decoder for any masks.

    Rows: case, keep_prob, masks, decoder, r2 (fresh masks, the mean over prompts), f1 (where the truth is known), sets,
    seconds. The summary: how often joint is within 0.005 R² of the best, its largest loss and where, and the median of
    its seconds over ProxySPEX's.
    """
    decoders: list[Decoder] = [Joint(), ProxySpex(), Linear()]
    budgets = budgets[:1] if quick else budgets
    rows = list(_planted(decoders, budgets, PLANTED[:1] if quick else PLANTED))
    for folder in sorted(cards.iterdir()) if cards is not None else ():
        if (folder / "card.toml").is_file():
            rows += list(_card(decoders, budgets, folder))
    return {"machine": machine("cpu"), "rows": rows, "summary": _summary(rows)}


def _planted(decoders: list[Decoder], budgets: Sequence[int], families: Sequence[Any]) -> Iterator[Row]:
    for kind, n, sets, noise in families:
        function = planted_function(kind, n, sets=sets, seed=1)
        fresh = MaskDesign.bernoulli(n, FRESH, seed=2).keep()
        for masks in budgets:
            design = MaskDesign.bernoulli(n, masks, seed=3)
            values = function.noisy(design.keep(), noise, 4)[:, None].float()
            samples = Samples(design.keep(), values, design)
            case = {"case": f"{kind}, n = {n}", "keep_prob": 0.5}
            yield from _decoded(decoders, samples, case, fresh, function(fresh), function)


def _card(decoders: list[Decoder], budgets: Sequence[int], folder: Path) -> Iterator[Row]:
    for keep_prob in (0.5, 0.9):
        components, ask = _study(folder)
        if len(components) <= 12:
            return
        fresh = MaskDesign.bernoulli(len(components), FRESH, keep_prob, seed=2).keep()
        whole = MaskDesign.bernoulli(len(components), max(budgets), keep_prob, seed=3)
        truth, values = ask(fresh).double().mean(1), ask(whole.keep())
        for masks in budgets:
            design = MaskDesign.bernoulli(len(components), masks, keep_prob, seed=3)
            samples = Samples(design.keep(), values[:masks], design)
            case = {"case": f"{folder.name}, n = {len(components)}", "keep_prob": keep_prob}
            yield from _decoded(decoders, samples, case, fresh, truth, None)


def _study(folder: Path) -> tuple[ComponentSet, Callable[[Tensor], Tensor]]:
    """A card's components, and its responses to masks."""
    from spex_mech.ablation.replacement import fit_replacement
    from spex_mech.ablation.respond import respond
    from spex_mech.studies import open_study

    study = open_study(folder)
    task = study.task.take(torch.arange(min(PROMPTS, len(study.task))))
    few = 0 < sum(study.subject.shape.neurons) < MANY_NEURONS
    mlps = ", m*.n*" if few else ", m*" if any(study.subject.shape.mlps) else ""
    components = select(study.subject, f"a*.h*{mlps}")
    reference = fit_replacement(study.subject, task, components, study.replacement, study.per)
    return components, lambda keep: respond(study.subject, task, components, keep.split(256), reference)


def _decoded(
    decoders: list[Decoder], samples: Samples, case: Row, fresh: Tensor, truth: Tensor, function: Planted | None
) -> Iterator[Row]:
    for decoder in decoders:
        started = time.perf_counter()
        decoded = decoder.decode(samples, seed=0)
        spectrum, seconds = decoded.spectrum.mean_output(), time.perf_counter() - started
        known = {} if function is None else {"f1": support_f1(function.sets, set(spectrum.sets))}
        r2, winner = r_squared(truth, spectrum.evaluate(fresh)), decoded.stats.get("winner")
        found = {"decoder": decoder.name, "r2": r2, "sets": len(spectrum), "seconds": seconds, "winner": winner}
        yield {**case, "masks": len(samples.keep), **found, **known}


def _summary(rows: list[Row]) -> Row:
    cells: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        cells.setdefault((row["case"], row["keep_prob"], row["masks"]), {})[row["decoder"]] = row
    loss = {cell: max(r["r2"] for r in found.values()) - found["joint"]["r2"] for cell, found in cells.items()}
    worst = max(loss, key=lambda cell: loss[cell])
    return {
        "cells": len(cells),
        "joint_is_best": sum(gap <= 0.005 for gap in loss.values()),
        "largest_loss": loss[worst],
        "largest_loss_at": {"case": worst[0], "keep": worst[1], "masks": worst[2]},
        "seconds_over_proxyspex": median(f["joint"]["seconds"] / f["proxyspex"]["seconds"] for f in cells.values()),
    }
