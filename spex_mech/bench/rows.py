"""Rows: what a card's responses give for so many forward rows, all prompts under a mask against some of them.

A row is one prompt under one mask. Crossed, R rows are R / P masks under all P prompts; else a mask meets b prompts,
dealt as `discover(rows=R, prompts_per_mask=b)` deals them, and a share of the masks comes again where b = 1.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spex_mech.bench.cases import POOL, card_masks, card_pools
from spex_mech.bench.timing import machine
from spex_mech.measuring.crossing import Crossing
from spex_mech.walsh.decoding import Decoded, Samples, r_squared
from spex_mech.walsh.joint.joint import Joint
from spex_mech.walsh.masks.design import MaskDesign

BUDGETS = (1024, 2048, 4096)  # rows
SHIPPED = Path(__file__).parents[2] / "circuits" / "induction-2l"
Row = dict[str, Any]


def run(quick: bool = False, cards: Path | None = None, budgets: Sequence[int] = (), out: Path | None = None) -> Row:
    """Decode every card of a folder (default: one that is shipped) from the same rows, by joint.

    Args:
        budgets: numbers of rows; default: 1,024, 2,048 and 4,096.
        out: a folder of responses; a run that finds them there measures nothing again.

    Rows: card, keep_prob, rows, per_mask, masks, r2 (of the mean over prompts, on fresh masks), told and told_stderr
    (what the decoding says of it), seconds. The summary has r2 by card, keep-probability and rows.
    """
    budgets = (256,) if quick else tuple(budgets) or BUDGETS
    folders = [SHIPPED] if cards is None else sorted(f.parent for f in cards.glob("*/card.toml"))
    rows: list[Row] = []
    for folder in folders:
        for pool in card_pools(folder, out):
            keep, fresh = card_masks(pool.n, pool.keep_prob)
            for budget in budgets:
                for per_mask in (pool.values.shape[1], 1):
                    samples = _samples(keep, pool.values, pool.keep_prob, budget, per_mask)
                    found = Joint().decode(samples, seed=0)
                    r2 = r_squared(pool.truth, found.predict(fresh))
                    rows.append(_row(folder.name, pool.keep_prob, budget, per_mask, samples, found) | {"r2": r2})
    return {"machine": machine("cpu"), "rows": rows, "summary": _summary(rows)}


def _samples(keep: torch.Tensor, values: torch.Tensor, keep_prob: float, budget: int, per_mask: int) -> Samples:
    """So many rows of a pool that was measured under all prompts."""
    prompts, n = values.shape[1], keep.shape[1]
    crossing = Crossing(min(POOL, budget // per_mask), per_mask, prompts, "as asked")
    design = MaskDesign.bernoulli(n, crossing.masks, keep_prob, seed=3).asking_again(crossing.again)
    deal, first = crossing.deal(design), crossing.masks - crossing.again
    mask = torch.arange(crossing.masks)
    mask = torch.where(mask < first, mask, mask - first)
    if deal is None:
        return Samples(keep[mask], values[mask], design)
    met = deal.met()
    return Samples(keep[mask], values[mask[:, None], met], design, met, prompts)


def _row(card: str, keep_prob: float, budget: int, per_mask: int, samples: Samples, found: Decoded) -> Row:
    stats = found.stats
    return {
        "card": card, "keep_prob": keep_prob, "rows": budget, "per_mask": per_mask, "masks": len(samples.keep),
        "told": stats["heldout_r2"], "told_stderr": stats["heldout_r2_stderr"], "seconds": stats["seconds"],
    }  # fmt: skip


def _summary(rows: Sequence[Row]) -> dict[str, str]:
    cells: dict[tuple[str, float, int], list[str]] = {}
    for row in rows:
        cells.setdefault((row["card"], row["keep_prob"], row["rows"]), []).append(f"{row['r2']:.3f}")
    told = np.median([abs(row["told"] - row["r2"]) for row in rows])
    summary: dict[str, Any] = {
        f"{card}, keep {keep:g}, {count:,} rows": {"R² crossed, one prompt a mask": " / ".join(cell)}
        for (card, keep, count), cell in cells.items()
    }
    return summary | {"median of |R² told - true|": float(told)}
