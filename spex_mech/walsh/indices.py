"""Game-theoretic indices of a `Spectrum`, exact from its sparse polynomial.

The game: players are the components, ``v(K)`` is the polynomial where the components of K are kept and all others
ablated. So an index is the value of *keeping*, in the unit of the responses. With the Möbius coefficients over kept
sets, ``v(K) = Σ_{T⊆K} a(T)``, every index here is a weighted sum ``Σ_{T⊇S} w(|T|, |S|) a(T)``; one pass over the terms
computes it, and nothing is enumerated over 2^n coalitions.

A spectrum in any basis will do; one coefficient a set and output is averaged over outputs first. The dictionaries hold
the sets (ascending component indices) that lie inside some recovered set and no others: the index of any other set is
zero for this polynomial, and unknown for the model.
"""

from collections.abc import Callable, Mapping
from itertools import combinations
from math import comb
from types import MappingProxyType

import torch
from torch import Tensor

from spex_mech.errors import DecodeError
from spex_mech.walsh.set_rows import merge_sets, set_tuples
from spex_mech.walsh.spectrum import Basis, Spectrum

Index = dict[tuple[int, ...], float]


def banzhaf_values(spectrum: Spectrum) -> Index:
    """``φ(i) = 2^{1-n} Σ_{K∌i} [v(K∪i) - v(K)] = Σ_{T∋i} a(T) / 2^{|T|-1}`` (Banzhaf 1965); twice the Walsh F({i}).

    >>> banzhaf_values(Spectrum.from_terms(2, {(0, 1): 1.0}, Basis("mobius")))
    {(0,): 0.5, (1,): 0.5}
    """
    return banzhaf_interactions(spectrum, 1)


def shapley_values(spectrum: Spectrum) -> Index:
    """``φ(i) = Σ_{T∋i} a(T) / |T|`` (Shapley 1953); they add up to f(all kept) - f(all ablated).

    >>> shapley_values(Spectrum.from_terms(3, {(0,): 1.0, (0, 1, 2): 3.0}, Basis("mobius")))
    {(0,): 2.0, (1,): 1.0, (2,): 1.0}
    """
    return shapley_interactions(spectrum, 1)


def banzhaf_interactions(spectrum: Spectrum, order: int = 3) -> Index:
    """BII: ``I(S) = 2^{|S|-n} Σ_{K⊆N∖S} Δ_S v(K) = Σ_{T⊇S} a(T) / 2^{|T|-|S|}`` for 1 ≤ |S| ≤ order.

    Grabisch & Roubens 1999. It is ``2^|S|`` times the Walsh coefficient F(S).
    """
    return _weighted(spectrum, order, lambda t, s: 0.5 ** (t - s), empty=False)


def shapley_interactions(spectrum: Spectrum, order: int = 3) -> Index:
    """SII: ``I(S) = Σ_{T⊇S} a(T) / (|T| - |S| + 1)`` for 1 ≤ |S| ≤ order (Grabisch & Roubens 1999)."""
    return _weighted(spectrum, order, lambda t, s: 1 / (t - s + 1), empty=False)


def shapley_taylor(spectrum: Spectrum, order: int = 3) -> Index:
    """STII (Sundararajan, Dhamdhere & Agarwal 2020): ``a(S)`` below `order`, ``Σ_{T⊇S} a(T) / C(|T|, order)`` at it.

    All of them add up to f(all kept); the empty set holds f(all ablated), where it was recovered.
    """
    return _weighted(spectrum, order, lambda t, s: 1 / comb(t, s) if s == order else float(s == t))


def faithful_banzhaf(spectrum: Spectrum, order: int = 3) -> Index:
    """FBII (Tsai, Yeh & Ravikumar 2023): the polynomial of degree ≤ `order` nearest to v over all coalitions.

    ``E(S) = a(S) + (-1)^{k-|S|} Σ_{T⊃S, |T|>k} C(|T|-|S|-1, k-|S|) 2^{-(|T|-|S|)} a(T)`` with k = order, the empty set
    included: ``Σ_{S⊆K} E(S)`` is the least-squares fit of v(K) under fair coins, that is, the Walsh expansion cut at k.
    """

    def weight(t: int, s: int) -> float:
        return float(s == t) if t <= order else (-1) ** (order - s) * comb(t - s - 1, order - s) * 0.5 ** (t - s)

    return _weighted(spectrum, order, weight)


def faithful_shapley(spectrum: Spectrum, order: int = 3) -> Index:
    """FSII (Tsai, Yeh & Ravikumar 2023): as `faithful_banzhaf`, but weighted so that it is efficient.

    ``E(S) = a(S) + (-1)^{k-|S|} |S|/(k+|S|) C(k,|S|) Σ_{T⊃S, |T|>k} C(|T|-1, k) / C(|T|+k-1, k+|S|) a(T)`` with
    k = order. All of them add up to f(all kept); the empty set holds f(all ablated), where it was recovered.
    """

    def weight(t: int, s: int) -> float:
        if t <= order:
            return float(s == t)
        sign = (-1) ** (order - s)
        return sign * s / (order + s) * comb(order, s) * comb(t - 1, order) / comb(t + order - 1, order + s)

    return _weighted(spectrum, order, weight)


INDICES: Mapping[str, Callable[[Spectrum, int], Index]] = MappingProxyType(
    {
        "bii": banzhaf_interactions,
        "sii": shapley_interactions,
        "stii": shapley_taylor,
        "fbii": faithful_banzhaf,
        "fsii": faithful_shapley,
    }
)


def _weighted(spectrum: Spectrum, order: int, weight: Callable[[int, int], float], *, empty: bool = True) -> Index:
    """``Σ_{T⊇S} weight(|T|, |S|) a(T)`` for every S of at most `order` inside some T, vectorised by (|T|, |S|)."""
    if order < 1:
        raise DecodeError(f"interactions have at least one component; order {order} has none.")
    mobius = spectrum.mean_output().rewrite(Basis("mobius"))
    members, values = list[Tensor](), list[Tensor]()
    for size, rows in mobius.by_order().items():
        for part in range(0 if empty else 1, min(order, size) + 1):
            factor = weight(size, part)
            if factor:
                chosen = torch.tensor(list(combinations(range(size), part)), dtype=torch.long).reshape(
                    comb(size, part), part
                )
                members.append(mobius.members[rows][:, chosen].flatten(0, 1))
                values.append((mobius.coefficients[rows].double() * factor).repeat_interleave(len(chosen)))
    merged, summed = merge_sets(members, values)
    return dict(sorted(zip(set_tuples(merged), summed.tolist(), strict=True), key=lambda item: (len(item[0]), item[0])))
