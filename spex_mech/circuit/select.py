"""`choose`, `choose_path`: which k components to keep, all others ablated, judged by the polynomial alone.

Exact by enumeration (up to 20 components that matter) or by integer programming, greedy with swaps beyond; a
`Selection` says which of them it was, and how far from the best it can be at most.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from spex_mech.circuit.search import Chain, Game, backward, forward, play, polish, settle
from spex_mech.circuit.solve import MAX_ENUMERATED, Found, enumerate_best, programme, solve
from spex_mech.components import ComponentSet
from spex_mech.errors import ComponentError, DecodeError
from spex_mech.walsh.spectrum import Spectrum

Aim = Literal["raise", "lower", "preserve"]
Method = Literal["auto", "enumeration", "milp", "greedy"]
SECONDS = 10.0  # an integer programme may take, a size


@dataclass(frozen=True)
class Selection:
    """At most `size` components, and what the polynomial says of the model with all others ablated.

    Attributes:
        names: the kept components, in the order of the run.
        size: the most that were allowed; fewer are kept where more do not help.
        aim: "raise" or "lower" the metric as far as it goes, or "preserve" its intact value.
        predicted: the polynomial with these kept; intact: with all kept; empty: with none. In the metric's unit (on
            the latent scale, where the run has a link).
        method: how it was found: "enumeration", "milp" or "greedy".
        gap: how much better, in the same unit, the best set of this size can be at most; 0 where this is the best,
            None where nothing is known about it.
    """

    names: tuple[str, ...]
    size: int
    aim: Aim
    predicted: float
    intact: float
    empty: float
    method: str
    gap: float | None

    @property
    def distance(self) -> float:
        """|predicted - intact|."""
        return abs(self.predicted - self.intact)


def choose(
    spectrum: Spectrum,
    components: ComponentSet,
    size: int,
    *,
    aim: Aim = "preserve",
    method: Method = "auto",
    seconds: float = SECONDS,
) -> Selection:
    """The at most `size` components that serve the aim best with everything else ablated.

    ``max f(K)``, ``min f(K)`` or ``min |f(K) - f(all)|`` over sets K of at most `size` components, f being the mean
    over outputs. Keep only helpful parts ("raise") for the circuit performance ratio; keep what holds the metric where
    it is, harmful parts too ("preserve"), for the circuit-model distance.

    Args:
        spectrum: in any basis; component i of `components` is bit i.
        method: "auto" enumerates where at most 20 components occur in the polynomial, else solves an integer programme
            where it is of moderate size, else searches greedily from both ends and swaps.
        seconds: limit of the integer programme. What it has by then is compared with the greedy set; the better one
            comes back with the gap the programme's bound leaves.

    Ties go to fewer components, then to those that come first. Raises `DecodeError` on settings that make no sense or a
    polynomial too large for the method asked for; `ComponentError` where bits and components do not fit.
    """
    return choose_path(spectrum, components, [size], aim=aim, method=method, seconds=seconds)[0]


def choose_path(
    spectrum: Spectrum,
    components: ComponentSet,
    sizes: Iterable[int] | None = None,
    *,
    aim: Aim = "preserve",
    nested: bool = False,
    method: Method = "auto",
    seconds: float = SECONDS,
) -> tuple[Selection, ...]:
    """`choose` for several sizes (default: 0 to n), ascending; never worse at a larger size.

    With `nested` every set contains the ones before it. Such a path is greedy: of the chains that add one component at
    a time to the empty model or take one at a time from the intact one, the one with the better sum of scores, each
    size having the best set of the chain that is not larger. Its gaps are known where the best sets are (up to 20
    components that matter).
    """
    wanted = sorted(set(range(len(components) + 1) if sizes is None else sizes))
    _check(spectrum, components, wanted, aim, method, seconds)
    game = play(spectrum, aim)
    if nested:
        found = _along(game, _better_chain(game), wanted)
    else:
        found = _each(game, spectrum, wanted, method, seconds)
    names = components.names
    return tuple(
        Selection(
            tuple(names[i] for i in sorted(game.used[j] for j in np.flatnonzero(one.kept))),
            size, aim, game.value(one.kept), game.intact, game.empty, one.method, one.gap,
        )
        for size, one in zip(wanted, found, strict=True)
    )  # fmt: skip


def _check(
    spectrum: Spectrum, components: ComponentSet, sizes: Sequence[int], aim: str, method: str, seconds: float
) -> None:
    if spectrum.n != len(components):
        raise ComponentError(
            f"a polynomial of {spectrum.n:,} bits was given with {len(components):,} components; component i is bit i, "
            "so there must be as many. Give the components of the same run."
        )
    problems = []
    if not sizes or sizes[0] < 0:
        problems.append(f"sizes {sizes[:5]} are not numbers of components; give at least one, 0 or more")
    if aim not in get_args(Aim):
        problems.append(f"there is no aim {aim!r}; the aims are {', '.join(get_args(Aim))}")
    if method not in get_args(Method):
        problems.append(f"there is no method {method!r}; the methods are {', '.join(get_args(Method))}")
    if not 0 < seconds < math.inf:
        problems.append(f"{seconds} seconds are no limit of time; give a positive number")
    if problems:
        raise DecodeError("; ".join(problems) + ".")


def _each(game: Game, spectrum: Spectrum, sizes: Sequence[int], method: str, seconds: float) -> list[Found]:
    """The best set of every size by itself; then, where a smaller one does as well, that one."""
    n = len(game.used)
    if method == "enumeration" and n > MAX_ENUMERATED:
        raise DecodeError(
            f"{n:,} components occur in this polynomial; all their sets are enumerated up to {MAX_ENUMERATED}. Use "
            "method 'milp' or 'greedy'."
        )
    if not n or (method in ("auto", "enumeration") and n <= MAX_ENUMERATED):
        return enumerate_best(game, sizes)
    linear = None if method == "greedy" else programme(game, spectrum, force=method == "milp")
    chains = (forward(game, sizes[-1]), backward(game))
    found = list[Found]()
    for size in sizes:
        one = Found(settle(game, polish(game, _best_start(game, chains, size), size)), "greedy", None)
        if linear is not None:
            one = solve(game, linear, size, seconds, one)
        if found and not game.better(one.kept, found[-1].kept):
            one = Found(found[-1].kept, found[-1].method, _gap_beside(game, one, found[-1]))
        found.append(one)
    return found


def _gap_beside(game: Game, bounded: Found, chosen: Found) -> float | None:
    """The gap of `chosen` by the bound that is known for `bounded`."""
    if bounded.gap is None:
        return None
    return max(0.0, bounded.gap + game.score(game.value(bounded.kept)) - game.score(game.value(chosen.kept)))


def _best_start(game: Game, chains: Sequence[Chain], size: int) -> NDArray[np.bool_]:
    candidates = [chain.best(game, size) for chain in chains]
    best = candidates[0]
    for other in candidates[1:]:
        best = other if game.better(other, best) else best
    return best


def _better_chain(game: Game) -> Chain:
    """Of the chains from below and from above, the one with the better sum of scores, sizes at most as large."""
    chains = (forward(game, len(game.used)), backward(game))
    sums = [float(np.maximum.accumulate(chain.scores).sum()) for chain in chains]
    return chains[1] if sums[1] > sums[0] + game.tolerance else chains[0]


def _along(game: Game, chain: Chain, sizes: Sequence[int]) -> list[Found]:
    found = [Found(chain.best(game, size), "greedy", None) for size in sizes]
    if len(game.used) > MAX_ENUMERATED:
        return found
    best = enumerate_best(game, sizes)
    return [replace(one, gap=_gap_beside(game, exact, one)) for one, exact in zip(found, best, strict=True)]
