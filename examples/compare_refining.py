"""How many masks coarse to fine saves: the same planted neurons, looked for coarse to fine and all at once.

    python examples/compare_refining.py [SEED ...]      # ten minutes a seed, nearly all of it random masks

4,096 neurons, of which eight do anything: two by themselves and six in two triples of which no neuron and no pair shows
anything. Every seed places them anew. Each way of looking is given the budgets of its ladder, smallest first, until the
four strongest sets are the planted ones; that budget is what it needs. All at once is tried with random masks (the
decoder of `discover`) and with coded ones (SPEX, of which 1,272 masks are the fewest for 4,096 components).
"""

import sys
import time
from collections.abc import Callable

import torch

import spex_mech as sm
from spex_mech.ablation.backends import planted

LAYOUT = planted.PlantedLayout(n_layers=4, n_heads=4, d_mlp=1024)
NEURONS = [component.name for component in LAYOUT.atoms if component.kind == "neuron"]
LADDERS = {
    "refined": (300, 400, 500, 600, 800),
    "flat, random masks": (3000,),
    "flat, coded masks": (1272, 3000),
}
Truth = tuple[frozenset[str], ...]


def plant(seed: int) -> tuple[planted.PlantedSubject, Truth]:
    """A model and its sets: two triples and two single neurons, anywhere."""
    order = torch.randperm(len(NEURONS), generator=torch.Generator().manual_seed(seed)).tolist()
    a, b, c, d, e, f, g, h = (NEURONS[i] for i in order[:8])
    terms = {(a, b, c): 1.0, (d, e, f): 1.0, (g,): 0.7, (h,): 0.7}
    return planted.polynomial(terms, basis="walsh", layout=LAYOUT), tuple(map(frozenset, terms))


def is_found(found: sm.Discovery, truth: Truth) -> bool:
    """Whether the strongest sets are the planted ones."""
    sets = [frozenset(names) for names in found.interactions()["components"].head(len(truth))]
    return set(sets) == set(truth)


def need(way: str, seed: int) -> tuple[int | None, int, float]:
    """The smallest budget of the ladder with which a way finds everything, the largest tried, and the seconds."""
    model, truth = plant(seed)
    task, started, tried = planted.task(2), time.perf_counter(), 0
    options: dict[str, dict[str, object]] = {
        "refined": {"refine": True}, "flat, random masks": {}, "flat, coded masks": {"keep_prob": "coded"}
    }  # fmt: skip
    for budget in LADDERS[way]:
        found = sm.discover(model, task, "m*.n*", budget=budget, seed=seed, **options[way])  # type: ignore[arg-type]
        tried = budget
        if is_found(found, truth):
            return budget, tried, time.perf_counter() - started
    return None, tried, time.perf_counter() - started


def main(seeds: list[int], tell: Callable[[str], None] = print) -> None:
    for seed in seeds:
        for way in LADDERS:
            least, tried, seconds = need(way, seed)
            told = f"{least:,} masks" if least else f"not with {tried:,}"
            tell(f"seed {seed}: {way}: {told} ({seconds:.0f} s)")


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]] or list(range(5)))
