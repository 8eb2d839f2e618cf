"""Which players a code is best put on: designs of one budget over a real model's components, side by side.

A code over all components ablates half of them in every mask, which is far from where the model works. The others stay
nearer: over candidates chosen with a quarter of the budget, over runs of neighbours, over blocks of a tenth.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from spex_mech.ablation.measure import measure
from spex_mech.ablation.replacement import fit_replacement
from spex_mech.ablation.respond import Engine
from spex_mech.components import ComponentSet
from spex_mech.studies import open_study
from spex_mech.walsh.coded import smallest_budget
from spex_mech.walsh.decoding import Decoded, Decoder, Samples, r_squared
from spex_mech.walsh.design import MaskDesign
from spex_mech.walsh.linear import Linear
from spex_mech.walsh.players import random_blocks
from spex_mech.walsh.proxy import ProxySpex
from spex_mech.walsh.spex import Spex

KEEP = 0.9  # of the masks that all polynomials over components are compared on
PLAYERS = 24  # candidates, runs of neighbours, or blocks
DRAWS = 2  # of blocks, for the polynomial over components
DEGREE = 3
_FRESH = 512

Respond = Callable[[MaskDesign], Tensor]
Plan = tuple[str, MaskDesign, Decoder, Samples]
Players = tuple[tuple[int, ...], ...]


def run(card: str, components: str | None = None, masks: int = 1024, prompts: int = 8) -> list[dict[str, Any]]:
    """One row a design, each of `masks` masks; designs that do not fit so few components or masks are left out.

    ``ablated``: mean share of components; ``working``: mean response, 1 the intact model's and 0 with everything
    ablated; ``heldout_r2``: on masks of the same design; ``fresh_r2``: of polynomials over components, on masks that
    keep each component with probability 0.9; ``sets``, ``outcome`` and ``seconds`` of the decoding.
    """
    study = open_study(card, components=components)
    task = study.task.take(range(min(prompts, len(study.task))))
    reference = fit_replacement(
        study.subject, study.task, study.components, kind=study.replacement, per=study.per, seed=0
    )
    engine = Engine(study.subject, task, study.components, reference)
    n = len(study.components)

    def respond(design: MaskDesign) -> Tensor:
        return measure(engine, design.chunks(256))

    fresh = MaskDesign.bernoulli(n, _FRESH, KEEP, seed=99)
    scale, truth = _scale(engine, n), respond(fresh).double().mean(1)
    rows = []
    for name, design, decoder, samples in _designs(study.components, masks, respond):
        decoded = decoder.decode(samples, seed=0)
        rows.append(_row(name, n, samples, decoded, scale) | {"fresh_r2": _fresh(decoded, design, fresh, truth)})
    return [{"card": card, "components": n, **row} for row in rows]


def _designs(components: ComponentSet, masks: int, respond: Respond) -> list[Plan]:
    """(name, design, decoder, responses) of all that fit."""
    n = len(components)
    biased = MaskDesign.bernoulli(n, masks, KEEP, seed=1)
    screened = _samples(MaskDesign.bernoulli(n, masks // 4, KEEP, seed=2), respond)
    chosen = tuple((i,) for i in sorted(_strongest(Linear().decode(screened, seed=0), min(PLAYERS, n // 2))))
    few = min(PLAYERS, round(2 * (1 - KEEP) * n))
    plans: list[Plan] = [("independent masks, keep 0.9", biased, ProxySpex(), _samples(biased, respond))]
    coded: list[tuple[str, Players, bool]] = [
        ("code over all", tuple((i,) for i in range(n)), True),
        ("code over candidates, rest kept", chosen, True),
        ("code over candidates, rest ablated", chosen, False),
        ("code over neighbours", _neighbours(components), True),
    ]
    if few >= 3:
        coded.append(("code over blocks of a tenth", random_blocks(n, few, 1 - KEEP, seed=3), True))
    for name, players, kept in coded:
        budget = masks - len(screened.keep) * (players is chosen)  # what found the candidates is paid for
        if len(players) >= 3 and smallest_budget(len(players), min(DEGREE, len(players))) <= budget:
            design = _coded(n, budget, players, kept)
            plans.append((name, design, Spex(), _samples(design, respond)))
    if few >= 3 and smallest_budget(few, DEGREE) <= masks // DRAWS:
        plans.append(("the same, two draws, over components", biased, ProxySpex(), _drawn(n, masks, few, respond)))
    return plans


def _coded(n: int, budget: int, players: Players, kept: bool) -> MaskDesign:
    degree = min(DEGREE, len(players))
    if max(len(group) for group in players) > 1:
        return MaskDesign.coded(n, degree, budget, 4, rest_kept=kept, players=players)
    return MaskDesign.coded(n, degree, budget, 4, sorted(group[0] for group in players), kept)


def _drawn(n: int, masks: int, few: int, respond: Respond) -> Samples:
    """Masks of codes over blocks of several draws, with no design, as independent masks that keep 0.9 would be."""
    parts = []
    for seed in range(DRAWS):
        players = random_blocks(n, few, 1 - KEEP, seed=10 + seed)
        parts.append(_samples(MaskDesign.coded(n, DEGREE, masks // DRAWS, seed, players=players), respond))
    return Samples(torch.cat([part.keep for part in parts]), torch.cat([part.values for part in parts]))


def _samples(design: MaskDesign, respond: Respond) -> Samples:
    return Samples(design.keep(), respond(design), design)


def _strongest(decoded: Decoded, count: int) -> list[int]:
    """The components with the largest main effects."""
    single = decoded.spectrum.select(decoded.spectrum.orders == 1).sorted()
    return [members[0] for members in single.sets[:count]]


def _neighbours(components: ComponentSet) -> Players:
    """Runs of components of one layer and kind, about `PLAYERS` of them."""
    size = -(-len(components) // PLAYERS)
    places: dict[tuple[int, str], list[int]] = {}
    for number, component in enumerate(components):
        places.setdefault((component.layer, component.kind), []).append(number)
    return tuple(tuple(run[i : i + size]) for run in places.values() for i in range(0, len(run), size))


def _scale(engine: Engine, n: int) -> tuple[float, float]:
    """The mean response with everything ablated, and of the intact model."""
    ends = torch.tensor([[False], [True]]).expand(2, n)
    nothing, intact = engine.values(ends).double().mean(1).tolist()
    return nothing, intact


def _row(name: str, n: int, samples: Samples, decoded: Decoded, scale: tuple[float, float]) -> dict[str, Any]:
    nothing, intact = scale
    return {
        "players": name, "masks": len(samples.keep), "ablated": float((~samples.keep).double().mean()),
        "working": (float(samples.mean_values.mean()) - nothing) / (intact - nothing),
        "sets": int((decoded.spectrum.orders > 0).sum()), "outcome": decoded.outcome.name,
        "heldout_r2": decoded.stats["heldout_r2"], "seconds": decoded.stats["seconds"],
    }  # fmt: skip


def _fresh(decoded: Decoded, design: MaskDesign, fresh: MaskDesign, truth: Float[Tensor, " mask"]) -> float | None:
    """R² over all components' masks; None of a polynomial over groups, which cannot say what half a group does."""
    if design.players is not None:
        return None
    return r_squared(truth, decoded.spectrum.evaluate(fresh.keep()))
