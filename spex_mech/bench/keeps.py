"""Which keep-probability: what masks of each say of a model, at equal cost, of themselves and of one another.

Few kept components leave a model that does nothing, many leave one that does not notice; a polynomial that predicts its
own masks well may say nothing of others. So every design's polynomial is asked about masks of all keep-probabilities,
about the sets that other masks of its kind give, and about circuits: few components kept, all others ablated.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spex_mech.auditing.faithfulness import SIZES, counts
from spex_mech.bench.cases import studied
from spex_mech.bench.timing import machine
from spex_mech.circuit.select import choose_path
from spex_mech.components import ComponentSet
from spex_mech.gallery import open_card
from spex_mech.measuring.pilot import deviation
from spex_mech.walsh.decoding import Decoder, Samples, r_squared
from spex_mech.walsh.joint.joint import Joint
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.spectrum import Spectrum

Row = dict[str, Any]
KEEPS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
DESIGNS = (*((q,) for q in KEEPS), (0.5, 0.9), (0.7, 0.9), (0.3, 0.5, 0.7, 0.9))
BUDGETS = (256,)
SHIPPED = "induction-2l"  # the card that is measured where no folder of cards is named
FRESH, STRONGEST = 1024, 20


@dataclass(frozen=True, eq=False)
class _Measured:
    """A card under masks of every keep-probability; `keep` and `values` by it."""

    name: str
    components: ComponentSet
    ask: Callable[[Tensor], Tensor]
    keep: dict[float, Bool[Tensor, "mask component"]]
    values: dict[float, Float[Tensor, "mask prompt"]]
    fresh: dict[float, Bool[Tensor, "fresh component"]]
    truth: dict[float, Float[Tensor, "fresh prompt"]]
    ends: Float[Tensor, "end prompt"]

    def samples(self, keep_probs: Sequence[float], first: int, masks: int) -> Samples:
        """`masks` masks in equal shares, from the first-th of every keep-probability on."""
        n, strata = len(self.components), len(keep_probs)
        rows = [(keep_probs[m % strata], first + m // strata) for m in range(masks)]
        design = MaskDesign.stratified(n, masks, keep_probs, seed=3)
        keep, values = (torch.stack([table[q][row] for q, row in rows]) for table in (self.keep, self.values))
        return Samples(keep, values, design)


def run(quick: bool = False, cards: Path | None = None, budgets: Sequence[int] = ()) -> Row:
    """Compare keep-probabilities on every card of a folder and the shipped one.

    Rows of ``kind`` "metric", one a card and keep-probability: ``effect_kept``, the share of the difference between the
    intact and the all-ablated model; ``distance``, the mean of |f - intact| over masks and prompts, over the same with
    all ablated; ``spread`` between masks, in the metric's unit. Rows of ``kind`` "decoding", one a card, budget and
    design: ``r2``, on fresh masks of every keep-probability; ``own_r2``, on those of the design; ``agreement``, the
    Jaccard index of the 20 strongest sets with those of as many other masks; ``cpr``, the area under the faithfulness
    of circuits of MIB's sizes that the polynomial says raise the metric most. The summary has, for each design, the
    medians over cards and budgets of the least R² over all keep-probabilities from 0.5, and of the agreement.
    """
    budgets, designs = (64,) if quick else tuple(budgets) or BUDGETS, DESIGNS[3:4] if quick else DESIGNS
    folders: list[Path | str] = [SHIPPED]
    folders += sorted(f for f in cards.iterdir() if (f / "card.toml").is_file()) if cards is not None else []
    rows: list[Row] = []
    for folder in folders:
        card = _measure(open_card(folder).folder, max(budgets), 128 if quick else FRESH)
        rows += [_metric(card, q) for q in KEEPS]
        rows += [_decoding(card, design, masks, Joint()) for masks in budgets for design in designs]
    return {"machine": machine("cpu"), "rows": rows, "summary": _summary(rows)}


def _measure(folder: Path, masks: int, unseen: int) -> _Measured:
    components, ask = studied(folder)
    n = len(components)
    keep = {q: MaskDesign.bernoulli(n, 3 * masks, q, seed=3).keep() for q in KEEPS}
    fresh = {q: MaskDesign.bernoulli(n, unseen, q, seed=2).keep() for q in KEEPS}
    values, truth = ({q: ask(table[q]) for q in KEEPS} for table in (keep, fresh))
    ends = ask(torch.tensor([[True], [False]]).expand(2, n))
    return _Measured(folder.name, components, ask, keep, values, fresh, truth, ends)


def _metric(card: _Measured, keep_prob: float) -> Row:
    intact, empty = card.ends.double()
    values = card.truth[keep_prob].double()
    effect = float((values.mean() - empty.mean()) / (intact.mean() - empty.mean()))
    distance = float((values - intact).abs().mean() / (empty - intact).abs().mean())
    found = {"effect_kept": effect, "distance": distance, "spread": float(deviation(values.mean(1)))}
    return {"card": card.name, "kind": "metric", "keep_prob": keep_prob, **found}


def _decoding(card: _Measured, keep_probs: tuple[float, ...], masks: int, decoder: Decoder) -> Row:
    found, other = (
        decoder.decode(card.samples(keep_probs, first, masks), seed=0).spectrum.mean_output()
        for first in (0, 2 * masks)
    )
    r2 = {q: r_squared(card.truth[q].double().mean(1), found.evaluate(card.fresh[q])) for q in KEEPS}
    return {
        "card": card.name,
        "kind": "decoding",
        "masks": masks,
        "keep_probs": list(keep_probs),
        "own_r2": sum(r2[q] for q in keep_probs) / len(keep_probs),
        "r2": r2,
        "agreement": _jaccard(_strongest(found), _strongest(other)),
        "cpr": _performance_ratio(card, found),
    }


def _strongest(spectrum: Spectrum) -> set[tuple[int, ...]]:
    return set([members for members, _ in spectrum.sorted().terms() if members][:STRONGEST])


def _jaccard(one: set[tuple[int, ...]], other: set[tuple[int, ...]]) -> float | None:
    return len(one & other) / len(one | other) if one | other else None


def _performance_ratio(card: _Measured, spectrum: Spectrum) -> float:
    """Of the circuits that a polynomial chooses, by forward passes."""
    n = len(card.components)
    path = choose_path(spectrum, card.components, counts(n), aim="raise", nested=True)
    keep = torch.zeros(len(path), n, dtype=torch.bool)
    for row, chosen in zip(keep, path, strict=True):
        row[card.components.indices(chosen.names)] = True
    value = dict(zip((chosen.size for chosen in path), card.ask(keep).double().mean(1).tolist(), strict=True))
    intact, empty = card.ends.double().mean(1).tolist()
    return float(np.trapezoid([(value[size] - empty) / (intact - empty) for size in counts(n)], SIZES))


def _summary(rows: Sequence[Row]) -> Row:
    decodings = [row for row in rows if row["kind"] == "decoding"]
    summary = Row()
    for keep_probs in dict.fromkeys(tuple(row["keep_probs"]) for row in decodings):
        mine = [row for row in decodings if tuple(row["keep_probs"]) == keep_probs]
        name = " ".join(f"{q:g}" for q in keep_probs)
        summary[f"least_r2_from_0.5, keep {name}"] = median(min(row["r2"][q] for q in KEEPS[1:]) for row in mine)
        summary[f"agreement, keep {name}"] = median(row["agreement"] or 0.0 for row in mine)
    return summary
