"""Which players a code is best put on: designs of one budget over a real model's components, side by side.

Coded masks are fair coins for their players. Over all components they ablate half of the model, which is far from where
it works; over chosen candidates, groups or random blocks they stay nearer, and say less about the others. Every
design's polynomial is asked for what users ask for: masks that keep each component with probability ½, or 0.9.

`random_blocks` stays near: most components are never touched, the others are dealt into blocks, and the blocks
are the players. What the masks then look like, for blocks that cover a share 2ρ of n components:

- Every coded mask keeps or ablates each block with probability ½ (exactly half of the 2^b masks of each group and delay
  ablate it), so a mask ablates the share ρ of the components on average, with standard deviation ``ρ / √blocks``.
- Over the draw of the blocks a component is ablated in a mask with probability ρ, and two components of different
  blocks with about ρ², as under independent masks that keep with probability 1 - ρ; two of one block go together.
- The polynomial is over blocks. In the components' own Walsh coefficients F, the coefficient of a set 𝓑 of blocks is
  ``Σ_T F(T)`` over all sets T that have an odd number of components in every block of 𝓑 and an even one in every other
  block, whatever T has outside the blocks, since those are kept. So one block's coefficient is the sum of its
  components' main effects and of all they do among themselves in odd numbers, and two blocks' is the sum of all pairs
  across them, and so on.
- Its variance over the masks' noise is ``σ² / N`` for N coded masks and a noise of variance σ² (the coded masks are
  orthogonal to each other's sets), as for any coded player; the spectrum's standard errors say it.
- Over the draw of the blocks it is a poor estimate of one component: with s components a block and an additive function
  with main effects w, the coefficient of the block that holds i is ``w_i`` plus s - 1 others, drawn without
  replacement: on average ``w_i + (s - 1) w̄``, with variance ``(s - 1) (1 - (s - 1)/(n - 1)) S²``, S² their variance.
  More masks do not lower it, only more draws do.
- A component that lies in no block has no coefficient; blocks of another seed leave out others. Each draw is a design
  of its own, with its own responses.

Such a polynomial answers the question of its own masks very well, since they leave most of a model at work; it says
little of masks that are drawn otherwise (measured on real models, docs/performance.md).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spex_mech.ablation.replacement import fit_replacement
from spex_mech.ablation.respond import Engine
from spex_mech.bench.cases import card_components
from spex_mech.bench.timing import machine
from spex_mech.components import ComponentSet
from spex_mech.errors import DesignError
from spex_mech.gallery.studies import open_study
from spex_mech.measuring.measure import measure
from spex_mech.walsh.decoders.linear import Linear
from spex_mech.walsh.decoders.proxyspex import ProxySpex
from spex_mech.walsh.decoding import Decoded, Decoder, Samples, r_squared
from spex_mech.walsh.masks.coded import smallest_budget
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.masks.hashing import uniform_bits
from spex_mech.walsh.spectrum import Spectrum
from spex_mech.walsh.spex.spex import Spex

Row = dict[str, Any]
Respond = Callable[[MaskDesign], Tensor]
Players = tuple[tuple[int, ...], ...]
KEEPS = (0.5, 0.9)  # of the masks that all polynomials are compared on
BUDGETS = (512, 2048)
SHIPPED = "induction-2l"  # the card that is measured where no folder of cards is named
PLAYERS = 24  # candidates, runs of neighbours, or blocks
DEGREE = 3
PROMPTS, FRESH = 8, 512
_FEWEST = 12  # components: with fewer all masks can be had


@dataclass(frozen=True)
class _Plan:
    """What is measured, and what decodes it; `paid` masks went into the choice of its players."""

    name: str
    samples: Samples
    decoder: Decoder
    paid: int = 0


def run(quick: bool = False, cards: Path | None = None, budgets: Sequence[int] = BUDGETS) -> Row:
    """Compare players on every card of a folder (or the shipped one) at the same budgets.

    Rows, one a card, budget and design: ``ablated``, the mean share of components; ``heldout_r2``, on masks of the same
    design; ``fresh_r2_0.5`` and ``fresh_r2_0.9``, on masks that keep each component with that probability, a polynomial
    over groups being read at the share of each that is kept; ``sets``, ``outcome``, ``seconds`` of the decoding.
    Designs that do not fit so few components or masks are left out. The summary has the medians of the three R² over
    cards and budgets, without those where nothing varies.
    """
    folders: list[Path | str] = [SHIPPED]
    if cards is not None:
        folders = [folder for folder in sorted(cards.iterdir()) if (folder / "card.toml").is_file()]
    rows: list[Row] = []
    for card in folders:
        rows += _card(card, budgets[:1] if quick else budgets, 2 if quick else PROMPTS)
    return {"machine": machine("cpu"), "rows": rows, "summary": _summary(rows)}


def _card(card: Path | str, budgets: Sequence[int], prompts: int) -> Iterator[Row]:
    study = open_study(card)
    components = card_components(study)
    n = len(components)
    if n < _FEWEST:
        return
    task = study.task.take(range(min(prompts, len(study.task))))
    engine = Engine(
        study.subject, task, components, fit_replacement(study.subject, task, components, study.replacement, study.per)
    )

    def respond(design: MaskDesign) -> Tensor:
        return measure(engine, design.chunks(256))

    fresh = {q: MaskDesign.bernoulli(n, FRESH, q, seed=99) for q in KEEPS}
    truth = {q: respond(design).double().mean(1) for q, design in fresh.items()}
    for masks in budgets:
        for plan in _plans(components, masks, respond):
            decoded, design = plan.decoder.decode(plan.samples, seed=0), plan.samples.design
            asked = {f"fresh_r2_{q}": r_squared(truth[q], predicted(decoded, design, fresh[q].keep())) for q in KEEPS}
            yield {"card": Path(card).name, "components": n, "budget": masks} | _row(plan, decoded) | asked


def _plans(components: ComponentSet, masks: int, respond: Respond) -> Iterator[_Plan]:
    """All designs that fit, measured."""
    n = len(components)
    for q in KEEPS[::-1]:
        yield _Plan(f"independent, keep {q}", _samples(MaskDesign.bernoulli(n, masks, q, seed=1), respond), ProxySpex())
    screened = _samples(MaskDesign.bernoulli(n, masks // 4, KEEPS[-1], seed=2), respond)
    chosen = tuple((i,) for i in sorted(_strongest(Linear().decode(screened, seed=0), min(PLAYERS, n // 2))))
    heads = tuple((i,) for i, component in enumerate(components) if component.kind == "head")
    few = min(PLAYERS, round(2 * (1 - KEEPS[-1]) * n))
    coded: list[tuple[str, Players, bool, int]] = [("code over all", tuple((i,) for i in range(n)), True, 0)]
    if len(heads) < n:
        coded += [("code over heads, rest kept", heads, True, 0), ("code over heads, rest ablated", heads, False, 0)]
    coded += [
        ("code over candidates, rest kept", chosen, True, masks // 4),
        ("code over candidates, rest ablated", chosen, False, masks // 4),
        ("code over neighbours", _neighbours(components), True, 0),
    ]
    if few >= 3:
        coded.append(("code over blocks of a tenth", random_blocks(n, few, 1 - KEEPS[-1], seed=3), True, 0))
    for name, players, kept, paid in coded:
        if len(players) >= 3 and smallest_budget(len(players), min(DEGREE, len(players))) <= masks - paid:
            yield _Plan(name, _samples(_coded(n, masks - paid, players, kept), respond), Spex(), paid)
    draws = masks // smallest_budget(few, DEGREE) if few >= 3 else 0
    if draws > 1:
        yield _Plan(f"blocks, {draws} draws, over components", _drawn(n, masks, draws, few, respond), ProxySpex())


def _coded(n: int, budget: int, players: Players, kept: bool, seed: int = 4) -> MaskDesign:
    degree = min(DEGREE, len(players))
    if max(len(group) for group in players) > 1:
        return MaskDesign.coded(n, degree, budget, seed, rest_kept=kept, players=players)
    return MaskDesign.coded(n, degree, budget, seed, sorted(group[0] for group in players), kept)


def _drawn(n: int, masks: int, draws: int, few: int, respond: Respond) -> Samples:
    """Masks of codes over blocks of several draws, with no design, as independent masks that keep 0.9 would be."""
    designs = [
        _coded(n, masks // draws, random_blocks(n, few, 1 - KEEPS[-1], seed=10 + draw), True, draw)
        for draw in range(draws)
    ]
    parts = [_samples(design, respond) for design in designs]
    return Samples(torch.cat([part.keep for part in parts]), torch.cat([part.values for part in parts]))


def _samples(design: MaskDesign, respond: Respond) -> Samples:
    return Samples(design.keep(), respond(design), design)


def _strongest(decoded: Decoded, count: int) -> list[int]:
    """The components with the largest main effects."""
    single = decoded.spectrum.mean_output().select(decoded.spectrum.orders == 1).sorted()
    return [members[0] for members in single.sets[:count]]


def _neighbours(components: ComponentSet) -> Players:
    """Runs of components of one layer and kind, about `PLAYERS` of them."""
    size = -(-len(components) // PLAYERS)
    places: dict[tuple[int, str], list[int]] = {}
    for number, component in enumerate(components):
        places.setdefault((component.layer, component.kind), []).append(number)
    return tuple(tuple(run[i : i + size]) for run in places.values() for i in range(0, len(run), size))


def _row(plan: _Plan, decoded: Decoded) -> Row:
    design = plan.samples.design
    groups = None if design is None else design.players
    return {
        "players": plan.name, "coded": decoded.spectrum.n if groups is None else len(groups),
        "masks": len(plan.samples.keep), "paid": plan.paid,
        "ablated": float((~plan.samples.keep).double().mean()),
        "sets": int((decoded.spectrum.orders > 0).sum()), "outcome": decoded.outcome.name,
        "heldout_r2": decoded.stats["heldout_r2"], "seconds": decoded.stats["seconds"],
    }  # fmt: skip


def predicted(
    decoded: Decoded, design: MaskDesign | None, keep: Bool[Tensor, "mask component"]
) -> Float[Tensor, " mask"]:
    """The polynomial at masks over all components; one over groups at ``x = 2 · share kept - 1`` of each group."""
    spectrum = decoded.spectrum.mean_output()
    if design is None or design.players is None:
        return spectrum.evaluate(keep)
    shares = torch.stack([keep[:, list(group)].double().mean(1) for group in design.players], 1)
    return _multilinear(spectrum, 2 * shares - 1)


def _multilinear(spectrum: Spectrum, x: Float[Tensor, "mask player"]) -> Float[Tensor, " mask"]:
    out = torch.zeros(len(x), dtype=torch.float64)
    for members, coefficient in spectrum.terms():
        out += coefficient * x[:, list(members)].prod(1)
    return out


def _summary(rows: list[Row]) -> Row:
    """Median R² of each kind of players: on its own masks, at keep 0.5, at keep 0.9."""
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        kinds.setdefault("blocks, draws" if "draws" in row["players"] else row["players"], []).append(row)
    figures = ("heldout_r2", *(f"fresh_r2_{q}" for q in KEEPS))
    return {
        kind: {"cells": len(found)} | {name: _middle([row[name] for row in found]) for name in figures}
        for kind, found in kinds.items()
    }


def _middle(figures: Sequence[float]) -> float | None:
    varying = [figure for figure in figures if not math.isnan(figure)]
    return round(median(varying), 3) if varying else None


def random_blocks(n: int, blocks: int, ablated: float = 0.1, seed: int = 0) -> tuple[tuple[int, ...], ...]:
    """Disjoint random blocks that hold ``2 · ablated · n`` of n components, in sizes that differ by at most one.

    Under fair coins for the blocks, a mask ablates the share `ablated` of all components on average.

    Args:
        n: number of components.
        blocks: how many players; at least three, which is what the smallest code has.
        ablated: mean share of ablated components, above 0 and at most ½ (then the blocks hold all components).
        seed: of the draw; the same numbers on every machine.

    Raises `DesignError` where the share is out of range, or too small for one component a block.

    >>> random_blocks(20, 4, 0.1, seed=1)
    ((19,), (9,), (16,), (17,))
    """
    if not 0 < ablated <= 0.5:
        raise DesignError(f"a share of ablated components lies above 0 and is at most 0.5 here, not {ablated}.")
    touched = round(2 * ablated * n)
    if not 3 <= blocks <= touched:
        raise DesignError(
            f"{blocks:,} blocks cannot be made of {touched:,} components, the {2 * ablated:.0%} of {n:,} that masks "
            f"must reach to ablate {ablated:.0%} on average. Take 3 to {touched:,} blocks, or a larger share."
        )
    drawn = uniform_bits(seed, torch.zeros(1, dtype=torch.long), n)[0].argsort(stable=True)[:touched]
    return tuple(tuple(sorted(drawn[block::blocks].tolist())) for block in range(blocks))
