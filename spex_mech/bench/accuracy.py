"""Accuracy of the decoders on the same masks: R² on fresh ones, sets found, seconds; planted functions and cards."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spex_mech.bench.functions import Kind, Planted, planted_function, support_f1
from spex_mech.bench.peer_proxies import has_shapiq, shapiq_proxies
from spex_mech.bench.queries import summarise
from spex_mech.bench.timing import machine
from spex_mech.components import ComponentSet, select
from spex_mech.walsh.decoding import Decoder, Samples, r_squared
from spex_mech.walsh.design import MaskDesign
from spex_mech.walsh.joint import Joint
from spex_mech.walsh.linear import Linear
from spex_mech.walsh.proxy import ProxySpex

Row = dict[str, Any]
BUDGETS = (64, 128, 256, 512, 1024, 2048, 4096)
KEEPS = (0.5, 0.9)
PLANTED: tuple[tuple[Kind, int, int, float], ...] = (
    ("hierarchical", 64, 5, 0.2), ("random", 64, 40, 0.2), ("tanh", 64, 25, 0.05), ("hierarchical", 64, 5, 1.0),
    ("hierarchical", 256, 5, 0.2),
)  # fmt: skip
PROMPTS, FRESH = 16, 1024
MANY_NEURONS = 600  # from here on a card's components are heads and MLP layers
SEARCHED = "proxyspex"  # the peer's default search of settings, which takes minutes a cell


@dataclass(frozen=True, eq=False)
class Case:
    """A function measured under masks, and its values under fresh ones."""

    name: str
    keep_prob: float
    keep: Bool[Tensor, "mask component"]
    values: Float[Tensor, "mask output"]
    fresh: Bool[Tensor, "fresh component"]
    truth: Float[Tensor, " fresh"]
    planted: Planted | None = None


def run(
    quick: bool = False,
    cards: Path | None = None,
    peer_python: str | None = None,
    search: bool = False,
    budgets: Sequence[int] = (),
) -> Row:
    """Decode planted functions, and responses of every card in a folder of cards, with every decoder for any masks, and
    with shapiq's proxies on the same masks and values where `peer_python` (default: this interpreter) has them.

    Args:
        budgets: numbers of masks; default: 64 to 4,096, doubling.
        search: run shapiq's ProxySPEX with its default search of settings too (40 fits a cell), not one fit alone.

    Rows: case, keep_prob, masks, decoder, r2 (fresh masks, the mean over prompts), f1 (where the truth is known), sets,
    seconds (CPU). The summary is `queries.summarise`'s.
    """
    decoders: list[Decoder] = [Joint(), ProxySpex(), Linear()]
    budgets = BUDGETS[:1] if quick else tuple(budgets) or BUDGETS
    peers = [m for m in ("proxyspex, one fit", "proxyshap", SEARCHED) if search or m != SEARCHED]
    peers = peers if has_shapiq(peer_python) else []
    rows = list[Row]()
    for case in _cases(max(budgets), cards, PLANTED[:1] if quick else PLANTED):
        for masks in budgets:
            rows += [_decoded(case, masks, decoder) for decoder in decoders]
        rows += _peers(case, budgets, peers, peer_python)
    return {"machine": machine("cpu"), "rows": rows, "summary": summarise(rows)}


def _cases(masks: int, cards: Path | None, families: Sequence[Any]) -> Iterator[Case]:
    for kind, n, sets, noise in families:
        yield planted_case(kind, n, sets, noise, masks)
    for folder in sorted(cards.iterdir()) if cards is not None else ():
        if (folder / "card.toml").is_file():
            yield from card_cases(folder, masks)


def planted_case(kind: Kind, n: int, sets: int, noise: float, masks: int, seed: int = 1) -> Case:
    """A planted function of n components under fair coins."""
    function = planted_function(kind, n, sets=sets, seed=seed)
    keep, fresh = MaskDesign.bernoulli(n, masks, seed=3).keep(), MaskDesign.bernoulli(n, FRESH, seed=2).keep()
    values = function.noisy(keep, noise, 4)[:, None].float()
    return Case(f"{kind}, n = {n}, noise {noise}", 0.5, keep, values, fresh, function(fresh), function)


def card_cases(folder: Path, masks: int) -> Iterator[Case]:
    """A card's heads and neurons (or MLP layers) at every keep-probability; none where they are 12 or fewer."""
    components, ask = _study(folder)
    n = len(components)
    for keep_prob in KEEPS if n > 12 else ():
        fresh = MaskDesign.bernoulli(n, FRESH, keep_prob, seed=2).keep()
        keep = MaskDesign.bernoulli(n, masks, keep_prob, seed=3).keep()
        yield Case(f"{folder.name}, n = {n}", keep_prob, keep, ask(keep), fresh, ask(fresh).double().mean(1))


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


def _decoded(case: Case, masks: int, decoder: Decoder) -> Row:
    design = MaskDesign.bernoulli(case.keep.shape[1], masks, case.keep_prob, seed=3)
    started = time.process_time()
    decoded = decoder.decode(Samples(case.keep[:masks], case.values[:masks], design), seed=0)
    spectrum, seconds = decoded.spectrum.mean_output(), time.process_time() - started
    known = {} if case.planted is None else {"f1": support_f1(case.planted.sets, set(spectrum.sets))}
    r2 = r_squared(case.truth, spectrum.evaluate(case.fresh))
    found = {"r2": r2, "sets": len(spectrum), "seconds": seconds, "winner": decoded.stats.get("winner")}
    return {**_cell(case, masks), "decoder": decoder.name, **found, **known}


def _peers(case: Case, budgets: Sequence[int], methods: Sequence[str], python: str | None) -> list[Row]:
    values = case.values.double().mean(1).numpy()
    keep, fresh = case.keep.numpy(), case.fresh.numpy()
    answers = shapiq_proxies(keep, values, fresh, budgets, python, methods) if methods else {}
    return [
        {
            **_cell(case, masks),
            "decoder": f"shapiq {method}",
            "r2": r_squared(case.truth, torch.from_numpy(answer.predicted)),
            "seconds": answer.seconds,
        }
        for (method, masks), answer in answers.items()
    ]


def _cell(case: Case, masks: int) -> Row:
    return {"case": case.name, "keep_prob": case.keep_prob, "masks": masks}
