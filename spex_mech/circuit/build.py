"""`build_circuit`: which terms of a polynomial are there, by their errors; and the circuit they make."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from spex_mech.circuit.graph import Circuit
from spex_mech.circuit.kinds import Effects, kind_of
from spex_mech.circuit.nodes import Interaction, Node
from spex_mech.components import Component, ComponentSet
from spex_mech.errors import ComponentError, DecodeError
from spex_mech.files.records import plain
from spex_mech.walsh.certainty.significance import p_values_of_z, q_values
from spex_mech.walsh.spectrum import Spectrum

EXACT_SHARE = 0.001  # of the largest coefficient: what is told of these prompts, whatever others may do
FLOOR = 1e-6  # of the largest coefficient: what float32 responses leave behind of a term that is not there
_BLOCK = 512  # sets whose supersets are sought at once

_Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class _Terms:
    """The terms that passed, strongest first or not, as columns."""

    sets: list[tuple[int, ...]]
    coefficient: _Numbers
    stderr: _Numbers
    q_value: _Numbers
    knockout: _Numbers


def build_circuit(
    spectrum: Spectrum,
    components: ComponentSet,
    *,
    unit: str,
    evidence: Mapping[str, Any],
    q_threshold: float = 0.05,
    min_abs: float = 0.0,
    q_value: Mapping[tuple[int, ...], float] | None = None,
    stability: Mapping[tuple[int, ...], float] | None = None,
    roles: Mapping[str, str] | None = None,
    link: str = "identity",
    exact: bool = False,
) -> Circuit:
    """The circuit of a polynomial: its non-constant terms that are found at a false discovery rate of `q_threshold`.

    The q-values are those given, from masks that had no part in finding the sets (`walsh.certainty.weigh`). Without
    them they are made from the standard errors e: ``z = F(S)/e``, ``p = erfc(|z|/√2)`` (two-sided), and q is p adjusted
    over all non-constant terms by Benjamini and Hochberg (1995); a term known without error (e = 0) has q = 0. That is
    optimistic where a decoder chose the sets on the masks it fitted. A term without a q-value is judged by its size
    alone. Terms below ``FLOOR`` of the largest coefficient are rounding and never pass.

    Args:
        spectrum: in the Walsh or a biased basis, over ``len(components)`` bits; of several outputs the mean is taken.
        components: component i is bit i.
        unit: of the coefficients.
        evidence: how it came to be; kept as plain JSON data.
        q_threshold: in (0, 1]; 1 keeps every term above the floor.
        min_abs: terms smaller than this, in `unit`, are left out as well.
        q_value: by ascending indices; sets not named have none.
        stability: share of resamples that found a set, by ascending indices; sets not named have none.
        roles: names from the literature for components, by component name.
        exact: every mask was measured: terms of a thousandth of the largest are there for these prompts, whatever their
            q-value, which speaks of other prompts; smaller ones only by their q-value.
        link: the family of the link behind which the polynomial is; `unit` is then the latent one.

    Returns:
        a `Circuit`; `knockout` sums over all recovered supersets of a set, also those that did not pass.

    Raises:
        DecodeError: another basis, or thresholds that make no sense. ComponentError: bits and components do not fit.
    """
    _check(spectrum, components, q_threshold, min_abs)
    mean = spectrum.mean_output()
    terms = _passing(mean, q_threshold, min_abs, q_value, exact)
    names = [tuple(components.names[i] for i in s) for s in terms.sets]
    interactions = _interactions(terms, names, stability or {})
    return Circuit(
        components=components,
        nodes=_nodes(interactions, components, roles or {}),
        interactions=interactions,
        unit=unit,
        basis=mean.basis.kind,
        keep_prob=mean.basis.keep_prob,
        link=link,
        baseline=mean.get(()),
        energy={order: energy for order, energy in mean.energy_by_order().items() if order},
        evidence=plain(evidence),
    )


def _check(spectrum: Spectrum, components: ComponentSet, q_threshold: float, min_abs: float) -> None:
    if spectrum.n != len(components):
        raise ComponentError(
            f"a polynomial of {spectrum.n:,} bits was given with {len(components):,} components; "
            "component i is bit i, so there must be as many. Give the components of the same run."
        )
    if not spectrum.basis.is_orthonormal:
        raise DecodeError(
            f"a circuit is built from a walsh or biased polynomial; this one is in the basis {spectrum.basis.kind!r}. "
            'Rewrite it first: spectrum.rewrite(Basis("walsh")).'
        )
    if not 0 < q_threshold <= 1 or not 0 <= min_abs < math.inf:
        raise DecodeError(
            f"q_threshold {q_threshold} and min_abs {min_abs} were asked for; the first lies in (0, 1] (1 keeps all), "
            "the second is a size of 0 or more."
        )


def _passing(
    mean: Spectrum, q_threshold: float, min_abs: float, given: Mapping[tuple[int, ...], float] | None, exact: bool
) -> _Terms:
    coefficient = _numpy(mean.coefficients)
    stderr = np.full_like(coefficient, np.nan) if mean.stderr is None else _numpy(mean.stderr)
    floor = FLOOR * np.abs(coefficient).max(initial=0.0)
    tested = _numpy(mean.orders) > 0
    q_value = np.full_like(coefficient, np.nan)
    if given is None:
        q_value[tested] = q_values(p_values_of_z(np.abs(coefficient[tested]), stderr[tested], floor))
    else:
        q_value[tested] = [given.get(s, np.nan) for s in mean.sets if s]
    strong = (np.abs(coefficient) > floor) & (np.abs(coefficient) >= min_abs)
    there = ~(q_value > q_threshold)  # an unknown q-value passes
    if exact and q_threshold < 1:
        largest = np.abs(coefficient[tested]).max(initial=0.0)
        there = (q_value <= q_threshold) | (np.abs(coefficient) >= EXACT_SHARE * largest)
    rows = np.flatnonzero(tested & strong & there)
    sets = [mean.sets[row] for row in rows]
    return _Terms(sets, coefficient[rows], stderr[rows], q_value[rows], knockouts(mean, sets))


def knockouts(mean: Spectrum, sets: Sequence[tuple[int, ...]]) -> _Numbers:
    """The coefficients of non-empty `sets` in the knockout basis, exactly, without expanding the polynomial.

    With φ(k) = offset + slope·k = (offset + slope) - slope (1 - k), each term T contributes to its subsets S:
    ``knockout(S) = (-slope)^|S| Σ_{T⊇S} F(T) (offset + slope)^(|T|-|S|)``. Cost: one sparse product, no 2^|T|.
    """
    offset, slope = mean.basis.affine
    orders = _numpy(mean.orders)
    weight = _numpy(mean.coefficients) * (offset + slope) ** orders
    all_bits, bits = _incidence(mean.sets, mean.n).T.tocsr(), _incidence(sets, mean.n)
    sizes = np.array([len(s) for s in sets], dtype=np.float64)
    sums = np.zeros(len(sets))
    for start in range(0, len(sets), _BLOCK):
        shared = (bits[start : start + _BLOCK] @ all_bits).tocoo()
        row, column = shared.coords
        above = shared.data == sizes[start + row]
        np.add.at(sums, start + row[above], weight[column[above]])
    return (-slope / (offset + slope)) ** sizes * sums


def _incidence(sets: Sequence[tuple[int, ...]], n: int) -> csr_array:
    columns = np.array([i for s in sets for i in s], dtype=np.int64)
    starts = np.cumsum([0, *(len(s) for s in sets)])
    return csr_array((np.ones(len(columns)), columns, starts), shape=(len(sets), n))


def _interactions(
    terms: _Terms, names: list[tuple[str, ...]], stability: Mapping[tuple[int, ...], float]
) -> tuple[Interaction, ...]:
    effects: Effects = {frozenset(s): float(c) for s, c in zip(names, terms.coefficient, strict=True)}
    return tuple(
        Interaction(
            components=name,
            coefficient=float(terms.coefficient[row]),
            kind=kind_of(name, effects),
            stderr=_known(terms.stderr[row]),
            q_value=_known(terms.q_value[row]),
            stability=_known(stability.get(terms.sets[row], math.nan)),
            knockout=_known(terms.knockout[row]),
        )
        for row, name in enumerate(names)
    )


def _nodes(interactions: Iterable[Interaction], components: ComponentSet, roles: Mapping[str, str]) -> tuple[Node, ...]:
    used, mains = dict[str, None](), dict[str, Interaction]()
    for interaction in interactions:
        used.update(dict.fromkeys(interaction.components))
        if interaction.order == 1:
            mains[interaction.components[0]] = interaction
    return tuple(_node(components[components.index(name)], mains.get(name), roles.get(name)) for name in used)


def _node(component: Component, main: Interaction | None, role: str | None) -> Node:
    return Node(component, role=role) if main is None else Node(component, main.coefficient, main.stderr, role)


def _numpy(tensor: Any) -> _Numbers:
    return tensor.detach().cpu().double().numpy()


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
