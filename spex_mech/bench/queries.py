"""What rows of accuracy come to: how often a decoder is best, and how many masks it needs for what a peer reaches."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, median, stdev
from typing import Any

Row = Mapping[str, Any]
Cell = tuple[str, float, int]  # case, keep-probability, masks
LEAST_MASKS = 64  # masks: what ours does with fewer counts for query ratios only
SMALL = 0.005  # R²: a decoder that is so near the best is among the best
_SEEN = 0.1  # R² from which on a peer has seen anything
_PEER = "shapiq proxyspex"


def means(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One row a cell and decoder: r2 and seconds are the means over repeats, and ``values`` has the R² of each.

    Decoders are compared on the same repeats: those in which all that answer in any of the cell's repeats do.
    """
    cells: dict[Cell, dict[str, dict[int, Row]]] = {}
    for row in rows:
        found = cells.setdefault((row["case"], row["keep_prob"], row["masks"]), {})
        found.setdefault(row["decoder"], {})[row.get("repeat", 0)] = row
    out = list[dict[str, Any]]()
    for (case, keep, masks), by_name in cells.items():
        shared = set.intersection(*(set(repeats) for repeats in by_name.values()))
        for name, repeats in by_name.items():
            used = [repeats[repeat] for repeat in sorted(shared or repeats)]
            values = [row["r2"] for row in used]
            seconds = mean(row["seconds"] for row in used)
            cell = {"case": case, "keep_prob": keep, "masks": masks, "decoder": name}
            out.append({**cell, "r2": mean(values), "values": values, "seconds": seconds})
    return out


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """The summary of rows with case, keep_prob, masks, repeat, decoder, r2 and seconds; of their means over repeats.

    - ``cells`` of at least `LEAST` masks that another decoder answered too, and in how many ``joint_is_best`` within
      `SMALL` of all others; ``worst_r2_gap``, its largest loss; ``lost``: the cells where it loses more, the decoder
      that wins, and by how much, with the standard error of the difference over repeats.
    - ``median_query_ratio``: the masks that joint needs for the R² that shapiq's ProxySPEX reaches (the better of its
      forms), over the masks it had; the median over cells in which it reaches any. ``query_ratio_of``: quartiles.
      ``…_within_…``: the median where an R² so little below the peer's counts as reached.
    - ``seconds_over_...``: the median ratio of CPU seconds.
    """
    rows = means(rows)
    cells: dict[Cell, dict[str, Row]] = {}
    for row in rows:
        if row["masks"] >= LEAST_MASKS:
            cells.setdefault((row["case"], row["keep_prob"], row["masks"]), {})[row["decoder"]] = row
    cells = {cell: found for cell, found in cells.items() if found.keys() > {"joint"}}
    lost = {cell: _loss(found) for cell, found in cells.items()}
    ratios, near = query_ratios(rows), query_ratios(rows, SMALL)
    others = sorted({row["decoder"] for row in rows} - {"joint"})
    return {
        "cells": len(cells),
        "joint_is_best": sum(gap <= SMALL for _, gap, _ in lost.values()),
        "worst_r2_gap": max((gap for _, gap, _ in lost.values()), default=None),
        "lost": {
            f"{case}, keep {keep}, {masks} masks": f"to {winner} by {gap:.3f} ± {error:.3f}"
            for (case, keep, masks), (winner, gap, error) in lost.items()
            if gap > SMALL
        },
        "median_query_ratio": median(ratios.values()) if ratios else None,
        "query_ratio_of": _quartiles(sorted(ratios.values())),
        f"median_query_ratio_within_{SMALL}": median(near.values()) if near else None,
        **{f"seconds_over_{name}": _pace(cells, name) for name in others},
    }


def query_ratios(rows: Sequence[Row], slack: float = 0.0) -> dict[Cell, float]:
    """By cell of the peer: masks that joint needs for its R² less `slack`, over its masks.

    Between two budgets R² is taken as linear in the logarithm of the masks. Where joint is as good with its smallest
    budget, the ratio is that budget's; where it is never as good, infinite.
    """
    curves: dict[tuple[str, float], dict[int, float]] = {}
    peer: dict[Cell, float] = {}
    for row in rows:
        case, masks = (row["case"], row["keep_prob"]), row["masks"]
        if row["decoder"] == "joint":
            curves.setdefault(case, {})[masks] = row["r2"]
        elif row["decoder"].startswith(_PEER):
            peer[(*case, masks)] = max(row["r2"], peer.get((*case, masks), -math.inf))
    return {
        (case, keep, masks): masks_for(curves[case, keep], r2 - slack) / masks
        for (case, keep, masks), r2 in peer.items()
        if r2 >= _SEEN and masks >= LEAST_MASKS
    }


def masks_for(curve: Mapping[int, float], r2: float) -> float:
    """The first number of masks at which a curve of R² reaches a value.

    >>> masks_for({64: 0.5, 256: 0.9}, 0.7)
    128.0
    """
    before: tuple[int, float] | None = None
    for masks, reached in sorted(curve.items()):
        if reached >= r2:
            if before is None:
                return float(masks)
            share = (r2 - before[1]) / (reached - before[1])
            return float(round(before[0] * (masks / before[0]) ** share, 6))
        before = (masks, reached)
    return math.inf


def _loss(found: Mapping[str, Row]) -> tuple[str, float, float]:
    """The decoder that beats joint in a cell, by how much (at least 0), and the standard error of that."""
    best = max(found, key=lambda name: found[name]["r2"])
    gaps = [theirs - ours for theirs, ours in zip(found[best]["values"], found["joint"]["values"], strict=True)]
    return best, mean(gaps), stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else math.nan


def _pace(cells: Mapping[Any, Mapping[str, Row]], name: str) -> float | None:
    """Median of joint's seconds over another's."""
    both = [found for found in cells.values() if name in found]
    return median(f["joint"]["seconds"] / max(f[name]["seconds"], 1e-9) for f in both) if both else None


def _quartiles(ratios: Sequence[float]) -> dict[str, float] | None:
    if not ratios:
        return None
    last = len(ratios) - 1
    return {name: ratios[round(share * last)] for name, share in (("lower", 0.25), ("upper", 0.75), ("largest", 1.0))}
