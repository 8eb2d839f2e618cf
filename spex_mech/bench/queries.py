"""What rows of accuracy come to: how often a decoder is best, and how many masks it needs for what a peer reaches."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

Row = Mapping[str, Any]
SMALL = 0.005  # R²: a decoder that is so near the best is among the best
_SEEN = 0.1  # R² from which on a peer has seen anything
_PEER = "shapiq proxyspex"


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """The summary of rows with case, keep_prob, masks, decoder, r2 and seconds.

    - ``cells``, and in how many ``joint_is_best`` within `SMALL` of all others; ``worst_r2_gap``, its largest loss;
      ``lost``: the cells where it loses more, the decoder that wins, and by how much.
    - ``median_query_ratio``: the masks that joint needs for the R² that shapiq's ProxySPEX reaches (the better of its
      forms), over the masks it had; the median over cells in which it reaches any. ``query_ratio_of``: quartiles.
    - ``seconds_over_...``: the median ratio of CPU seconds.
    """
    cells: dict[tuple[str, float, int], dict[str, Row]] = {}
    for row in rows:
        cells.setdefault((row["case"], row["keep_prob"], row["masks"]), {})[row["decoder"]] = row
    lost = {cell: _loss(found) for cell, found in cells.items()}
    ratios = query_ratios(rows)
    others = sorted({row["decoder"] for row in rows} - {"joint"})
    return {
        "cells": len(cells),
        "joint_is_best": sum(gap <= SMALL for _, gap in lost.values()),
        "worst_r2_gap": max(gap for _, gap in lost.values()),
        "lost": {
            f"{case}, keep {keep}, {masks} masks": f"to {winner} by {gap:.3f}"
            for (case, keep, masks), (winner, gap) in lost.items()
            if gap > SMALL
        },
        "median_query_ratio": median(ratios.values()) if ratios else None,
        "query_ratio_of": _quartiles(sorted(ratios.values())),
        **{f"seconds_over_{name}": _pace(cells, name) for name in others},
    }


def query_ratios(rows: Sequence[Row]) -> dict[tuple[str, float, int], float]:
    """By cell of the peer: masks that joint needs for its R², over its masks.

    Between two budgets R² is taken as linear in the logarithm of the masks. Where joint is as good with its smallest
    budget, the ratio is that budget's; where it is never as good, infinite.
    """
    curves: dict[tuple[str, float], dict[int, float]] = {}
    peer: dict[tuple[str, float, int], float] = {}
    for row in rows:
        case, masks = (row["case"], row["keep_prob"]), row["masks"]
        if row["decoder"] == "joint":
            curves.setdefault(case, {})[masks] = row["r2"]
        elif row["decoder"].startswith(_PEER):
            peer[(*case, masks)] = max(row["r2"], peer.get((*case, masks), -math.inf))
    return {
        (case, keep, masks): masks_for(curves[case, keep], r2) / masks
        for (case, keep, masks), r2 in peer.items()
        if r2 >= _SEEN
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


def _loss(found: Mapping[str, Row]) -> tuple[str, float]:
    """The decoder that beats joint in a cell, and by how much; at least 0."""
    best = max(found, key=lambda name: found[name]["r2"])
    return best, found[best]["r2"] - found["joint"]["r2"]


def _pace(cells: Mapping[Any, Mapping[str, Row]], name: str) -> float | None:
    """Median of joint's seconds over another's."""
    both = [found for found in cells.values() if name in found]
    return median(f["joint"]["seconds"] / max(f[name]["seconds"], 1e-9) for f in both) if both else None


def _quartiles(ratios: Sequence[float]) -> dict[str, float] | None:
    if not ratios:
        return None
    last = len(ratios) - 1
    return {name: ratios[round(share * last)] for name, share in (("lower", 0.25), ("upper", 0.75), ("largest", 1.0))}
