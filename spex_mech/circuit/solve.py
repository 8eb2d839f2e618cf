"""Exact selection: all sets enumerated where few components matter, else an integer programme through scipy's `milp`.

The programme linearises the monomials of the polynomial over kept sets (Möbius) or over ablated sets (knockout),
whichever has fewer: a product z of bits u_i has ``z ≤ u_i`` and ``z ≥ Σ u_i - |S| + 1``, of which only the side that
the objective pushes against is needed. Fortet 1960; Glover and Woolsey 1974.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, csr_array, vstack

from spex_mech.circuit.search import Game, KeepRows, Values, settle
from spex_mech.errors import DecodeError
from spex_mech.walsh.spectrum import Basis, Spectrum

MAX_ENUMERATED = 20  # components: a million sets, well under a second
MAX_MONOMIALS = 1500  # products in a programme that "auto" tries; beyond, bounds stay far away in any useful time
MAX_EXPANDED = 1 << 18  # monomials the polynomial may have while it is rewritten
_GAP = 2e-6  # of the programme's scale: the tolerance to which the solver itself works


@dataclass(frozen=True, eq=False)
class Found:
    """A set of the components in use, how it was found, and how much better the best may be (None: not known)."""

    kept: KeepRows
    method: str
    gap: float | None


def enumerate_best(game: Game, sizes: Sequence[int]) -> list[Found]:
    """The best set of every size, from the values of all 2^n sets; ties to fewer components, then to earlier ones."""
    n = len(game.used)
    scores, count = game.scores(_table(game)), _popcounts(n)
    found = []
    for size in sizes:
        open_scores = np.where(count <= size, scores, -np.inf)
        best = np.flatnonzero(open_scores >= open_scores.max() - game.tolerance)
        fewest = best[count[best] == count[best].min()]
        bits = (fewest[:, None] >> np.arange(n)) & 1 == 1
        first = np.lexsort((~bits).T[::-1])[0] if n else 0
        found.append(Found(bits[first], "enumeration", 0.0))
    return found


def _table(game: Game) -> Values:
    """f of every set, by its number (bit j: component j is kept): one butterfly a component."""
    n = len(game.used)
    table = np.zeros(1 << n)
    numbers = (game.member @ (2.0 ** np.arange(n))).astype(np.int64) if len(game.coefficient) else np.zeros(0, int)
    np.add.at(table, numbers, game.coefficient)
    table[0] += game.constant
    low, high = game.phi
    for bit in range(n):
        pairs = table.reshape(-1, 2, 1 << bit)
        without, inside = pairs[:, 0].copy(), pairs[:, 1].copy()
        pairs[:, 0], pairs[:, 1] = without + low * inside, without + high * inside
    return table


def _popcounts(n: int) -> NDArray[np.int64]:
    counts = np.zeros(1, dtype=np.int64)
    for _ in range(n):
        counts = np.concatenate([counts, counts + 1])
    return counts


@dataclass(frozen=True, eq=False)
class Programme:
    """``constant + linear · u + weights · z`` with z the products of the bits u in `products`, all over `scale`.

    u is kept (`ablated` False) or ablated (True).
    """

    ablated: bool
    constant: float
    linear: Values
    products: csr_array
    weights: Values
    scale: float


def programme(game: Game, spectrum: Spectrum, *, force: bool) -> Programme | None:
    """The lighter of the two programmes of a polynomial; None where it is too large for "auto".

    Raises `DecodeError` with `force` where it cannot even be written down.
    """
    orders = spectrum.orders.tolist()
    size = sum(1 << order for order in orders) if max(orders, default=0) <= 24 else MAX_EXPANDED + 1
    if size > MAX_EXPANDED:
        if force:
            raise DecodeError(
                f"this polynomial has {len(orders):,} terms up to order {max(orders)}; written out as products of bits "
                f"it would have more than {MAX_EXPANDED:,}. Use method 'greedy'."
            )
        return None
    both = [_linearise(game, spectrum, ablated=ablated) for ablated in (False, True)]
    lighter = min(both, key=lambda p: p.products.nnz)
    return lighter if force or len(lighter.weights) <= MAX_MONOMIALS else None


def _linearise(game: Game, spectrum: Spectrum, *, ablated: bool) -> Programme:
    terms = dict(spectrum.mean_output().rewrite(Basis("knockout" if ablated else "mobius")).terms())
    scale = max((abs(c) for s, c in terms.items() if s), default=1.0) or 1.0
    column = {i: j for j, i in enumerate(game.used)}
    linear = np.zeros(len(game.used))
    sets = list[tuple[int, ...]]()
    for s, c in terms.items():
        if len(s) == 1 and s[0] in column:
            linear[column[s[0]]] = c / scale
        elif len(s) > 1 and abs(c) > 1e-12 * scale and all(i in column for i in s):
            sets.append(s)
    weights = np.array([terms[s] / scale for s in sets])
    indices = np.array([column[i] for s in sets for i in s], dtype=np.int64)
    starts = np.cumsum([0, *map(len, sets)])
    products = csr_array((np.ones(len(indices)), indices, starts), shape=(len(sets), len(game.used)))
    return Programme(ablated, terms.get((), 0.0) / scale, linear, products, weights, scale)


def solve(game: Game, linear: Programme, size: int, seconds: float, start: Found) -> Found:
    """The best set of at most `size` components by the programme, or `start` where that is as good; with the gap."""
    n, m = len(game.used), len(linear.weights)
    sign = {"raise": -1.0, "lower": 1.0, "preserve": 0.0}[game.aim]
    cost = np.concatenate([sign * linear.linear, sign * linear.weights, [1.0] if not sign else []])
    result = milp(
        cost,
        integrality=np.concatenate([np.ones(n), np.zeros(len(cost) - n)]),
        bounds=Bounds(0, np.concatenate([np.ones(n + m), np.full(len(cost) - n - m, np.inf)])),
        constraints=[_cardinality(linear, size, len(cost)), *_products(linear, sign, len(cost))]
        + ([] if sign else _distance(game, linear)),
        options={"time_limit": seconds, "mip_rel_gap": 0.0},
    )
    bound = _bound(game, linear, getattr(result, "mip_dual_bound", None))
    chosen = start
    if result.x is not None:
        bits = np.asarray(result.x[:n]) > 0.5
        kept = settle(game, ~bits if linear.ablated else bits)
        if kept.sum() <= size and not game.better(start.kept, kept):
            chosen = Found(kept, "milp", None)
    if bound is None:
        return chosen
    gap = max(0.0, bound - game.score(game.value(chosen.kept)))
    proven = gap <= _GAP * linear.scale * max(1.0, float(np.abs(linear.weights).sum() + np.abs(linear.linear).sum()))
    return Found(chosen.kept, "milp" if proven else chosen.method, 0.0 if proven else gap)


def _bound(game: Game, linear: Programme, dual: float | None) -> float | None:
    """The score that no set of this size exceeds, by the solver's dual bound."""
    if dual is None or not np.isfinite(dual):
        return None
    if game.aim == "preserve":
        return -max(0.0, float(dual)) * linear.scale
    return (-float(dual) + (linear.constant if game.aim == "raise" else -linear.constant)) * linear.scale


def _cardinality(linear: Programme, size: int, width: int) -> LinearConstraint:
    n = len(linear.linear)
    row = csr_array(np.concatenate([np.ones(n), np.zeros(width - n)])[None])
    return LinearConstraint(row, n - size, np.inf) if linear.ablated else LinearConstraint(row, -np.inf, size)


def _products(linear: Programme, sign: float, width: int) -> list[LinearConstraint]:
    """The side of every product that the objective pushes against; both for a distance."""
    pushed = sign * linear.weights
    up = np.flatnonzero(pushed < 0) if sign else np.arange(len(pushed))
    down = np.flatnonzero(pushed > 0) if sign else np.arange(len(pushed))
    return [*([_upper(linear, up, width)] if len(up) else []), *([_lower(linear, down, width)] if len(down) else [])]


def _upper(linear: Programme, rows: NDArray[np.intp], width: int) -> LinearConstraint:
    """z_S - u_i ≤ 0 for every i in S."""
    row, bit = linear.products[rows].tocoo().coords
    entries, products = np.arange(len(row)), len(linear.linear) + rows[row]
    values = np.repeat([1.0, -1.0], len(row))
    places = (np.tile(entries, 2), np.concatenate([products, bit]))
    return LinearConstraint(coo_array((values, places), shape=(len(row), width)).tocsr(), -np.inf, 0)


def _lower(linear: Programme, rows: NDArray[np.intp], width: int) -> LinearConstraint:
    """z_S - Σ_{i∈S} u_i ≥ 1 - |S|."""
    chosen = linear.products[rows]
    row, bit = chosen.tocoo().coords
    values = np.concatenate([np.full(len(row), -1.0), np.ones(len(rows))])
    places = (np.concatenate([row, np.arange(len(rows))]), np.concatenate([bit, len(linear.linear) + rows]))
    a = coo_array((values, places), shape=(len(rows), width)).tocsr()
    return LinearConstraint(a, 1 - np.diff(chosen.indptr), np.inf)


def _distance(game: Game, linear: Programme) -> list[LinearConstraint]:
    """t ≥ f - intact and t ≥ intact - f, t being the last variable."""
    f = np.concatenate([linear.linear, linear.weights])
    target = game.intact / linear.scale - linear.constant
    over, under = (csr_array(np.concatenate([s * f, [-1.0]])[None]) for s in (1.0, -1.0))
    return [LinearConstraint(vstack([over, under]).tocsr(), -np.inf, np.array([target, -target]))]
