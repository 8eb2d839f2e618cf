"""Completeness and minimality of a circuit (Wang et al. 2022): which knockouts are looked at, and their masks.

Completeness: for K ⊆ C, ``|F(C∖K) - F(M∖K)|``, M being the whole model. Minimality: for every v in C there should be a
K ⊆ C∖v with a large ``|F(C∖(K∪v)) - F(C∖K)|``. Both range over joint knockouts, which a polynomial predicts at no cost.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

ALL_SUBSETS = 10  # components up to which every K is predicted: 1,024 sets
MAX_KNOCKOUTS = 512  # sets predicted beyond that
MOST_GREEDY = 32  # components that the worst case takes out one by one

Predictor = Callable[[Bool[Tensor, "mask component"]], Float[Tensor, " mask"]]
Set = tuple[int, ...]


def relevant(circuit: Sequence[int], supports: Iterable[Set], n: int, predict: Predictor) -> list[Set]:
    """The knockout sets K ⊆ C that are looked at: all of them up to 10 components.

    Beyond: none, all, single ones, what the polynomial's sets have in C (strongest first), and the greedy worst case
    (one component at a time, always the one that leaves the largest gap), at most 512 in all.
    """
    circuit = sorted(circuit)
    if len(circuit) <= ALL_SUBSETS:
        return [tuple(i for j, i in enumerate(circuit) if k >> j & 1) for k in range(1 << len(circuit))]
    inside = set(circuit)
    sets = [(), tuple(circuit), *((i,) for i in circuit), *_greedy(circuit, n, predict)]
    sets += [tuple(i for i in s if i in inside) for s in supports]
    return list(dict.fromkeys(sets))[:MAX_KNOCKOUTS]


def completeness_masks(circuit: Sequence[int], removed: Sequence[Set], n: int) -> Bool[Tensor, "mask component"]:
    """C∖K for every K, then M∖K for every K."""
    inside = set(circuit)
    return torch.cat([kept(n, [inside.difference(k) for k in removed]), ~kept(n, removed)])


def drops(values: Float[Tensor, " mask"]) -> Float[Tensor, " set"]:
    """Second half less first half: what the metric loses from M∖K to C∖K, or with v from C∖K."""
    first, second = values.double().chunk(2)
    return second - first


def gaps(values: Float[Tensor, " mask"]) -> Float[Tensor, " set"]:
    """The size of `drops`: the scores of `completeness_masks` and `minimality_masks`."""
    return drops(values).abs()


def minimality_masks(
    circuit: Sequence[int], pairs: Sequence[tuple[Set, int]], n: int
) -> Bool[Tensor, "mask component"]:
    """C∖(K∪v) for every (K, v), then C∖K."""
    inside = set(circuit)
    without = [inside.difference(k, (v,)) for k, v in pairs]
    return kept(n, [*without, *(inside.difference(k) for k, _ in pairs)])


def worst_completeness(
    circuit: Sequence[int], sets: Sequence[Set], n: int, predict: Predictor, number: int
) -> list[tuple[Set, float]]:
    """The `number` sets K with the largest predicted gap, worst first."""
    scores = gaps(predict(completeness_masks(circuit, sets, n))).tolist()
    order = sorted(range(len(sets)), key=lambda row: (-scores[row], len(sets[row]), sets[row]))
    return [(sets[row], scores[row]) for row in order[:number]]


def best_minimality(
    circuit: Sequence[int], sets: Sequence[Set], n: int, predict: Predictor
) -> list[tuple[int, Set, float]]:
    """For every v in C the K, of those looked at, under which v matters most by prediction."""
    found = []
    for v in sorted(circuit):
        pool = [k for k in sets if v not in k]
        scores = gaps(predict(minimality_masks(circuit, [(k, v) for k in pool], n))).tolist()
        best = min(range(len(pool)), key=lambda row: (-round(scores[row], 9), len(pool[row]), pool[row]))
        found.append((v, pool[best], scores[best]))
    return found


def kept(n: int, sets: Iterable[Iterable[int]]) -> Bool[Tensor, "mask component"]:
    """Masks that keep exactly these sets.

    >>> kept(3, [(0, 2), ()]).int().tolist()
    [[1, 0, 1], [0, 0, 0]]
    """
    rows = [list(s) for s in sets]
    keep = torch.zeros(len(rows), n, dtype=torch.bool)
    for row, members in enumerate(rows):
        keep[row, members] = True
    return keep


def _greedy(circuit: Sequence[int], n: int, predict: Predictor) -> list[Set]:
    """The chain of sets in which the next component always leaves the largest predicted gap."""
    removed, chain = list[int](), list[Set]()
    while len(removed) < min(len(circuit), MOST_GREEDY):
        candidates = [tuple(sorted([*removed, i])) for i in circuit if i not in removed]
        scores = gaps(predict(completeness_masks(circuit, candidates, n)))
        chain.append(candidates[int(scores.argmax())])
        removed = list(chain[-1])
    return chain
