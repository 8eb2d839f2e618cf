"""Synergy or redundancy: what the sign of an interaction says about the components in it."""

from collections.abc import Mapping
from itertools import combinations

from spex_mech.names import InteractionKind

Effects = Mapping[frozenset[str], float]


def kind_of(components: tuple[str, ...], effects: Effects) -> InteractionKind:
    """The kind of one interaction, from the signs of the coefficients in `effects` (set of names → coefficient).

    Written for an orthonormal basis (Walsh, biased), where F > 0 goes with "kept". One component is ``"main"``. Else
    the kind is synergy where the score below is positive (jointly needed, AND) and redundancy where it is negative
    (each is enough, OR: they back each other up):

    ```text
    even order   score = d · F(S) · Π_{i∈S} s_i
    odd order    score = d · Σ_{i<j∈S} F({i,j}) s_i s_j,  or the line above where no pair inside S is known
    ```

    ``d = -1`` where every member with a known main effect hurts (the set is then judged by the harm it does, so that
    a metric and its negative give the same kinds), else +1. ``s_i = -1`` for a member that hurts among members that
    help (its absence is what helps), else +1; a member without a main effect counts as helping.

    ==========  =======  =======  =========  ==========
    f(k1, k2)   F({1})   F({2})   F({1,2})   kind
    ==========  =======  =======  =========  ==========
    AND         +1/4     +1/4     +1/4       synergy
    OR          +1/4     +1/4     -1/4       redundancy
    -AND        -1/4     -1/4     -1/4       synergy
    -OR         -1/4     -1/4     +1/4       redundancy
    k1(1-k2)    +1/4     -1/4     -1/4       synergy
    XOR         0        0        -1/2       redundancy (by its bare sign: one is as good as the other)
    ==========  =======  =======  =========  ==========

    Why odd orders look at pairs: swapping AND for OR (``f(x) → -f(-x)``) leaves every odd-order coefficient as it is,
    so no odd-order sign, in any of the bases, can tell the two apart; AND of k has F(S) > 0 for every S, OR of k has
    the sign ``(-1)^(|S|+1)``, so the pairs can. Source: the sign algebra of the two functions, enumerated in the tests.

    >>> kind_of(("a0.h0", "a1.h0"), {frozenset({"a0.h0", "a1.h0"}): -0.25})
    'redundancy'
    """
    if len(components) == 1:
        return "main"
    score, sign = _own_score, _signs(components, effects)
    if len(components) % 2 and any(frozenset(pair) in effects for pair in combinations(components, 2)):
        score = _pair_score
    return "synergy" if score(components, effects, sign) > 0 else "redundancy"


def _own_score(components: tuple[str, ...], effects: Effects, sign: Mapping[str, int]) -> float:
    score = effects[frozenset(components)] * sign[""]
    for name in components:
        score *= sign[name]
    return score


def _pair_score(components: tuple[str, ...], effects: Effects, sign: Mapping[str, int]) -> float:
    pairs = combinations(components, 2)
    return sign[""] * sum(effects.get(frozenset((i, j)), 0.0) * sign[i] * sign[j] for i, j in pairs)


def _signs(components: tuple[str, ...], effects: Effects) -> dict[str, int]:
    """s_i by name, and d under the empty name."""
    mains = {name: effects[frozenset({name})] for name in components if frozenset({name}) in effects}
    direction = -1 if mains and all(main < 0 for main in mains.values()) else 1
    return {"": direction} | {name: -1 if mains.get(name, 0.0) * direction < 0 else 1 for name in components}
