"""Which of many coefficients are not zero: p-values, and false discovery rates over a family of tests."""

import math

import numpy as np
from jaxtyping import Float, Int
from scipy.special import comb, erfc
from scipy.stats import false_discovery_control


def q_values(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Benjamini–Hochberg q-values of p-values: the expected share of false ones among all tests with a q no larger.

    ``q_(i) = min_{j≥i} m p_(j) / j`` over the m known p-values, ascending (Benjamini & Hochberg 1995); NaN where p is.

    >>> q_values(np.array([0.01, np.nan, 0.04, 0.03])).round(3).tolist()
    [0.03, nan, 0.04, 0.04]
    """
    q, known = np.full_like(p, np.nan, dtype=np.float64), ~np.isnan(p)
    if known.any():
        q[known] = false_discovery_control(p[known])
    return q


def q_values_by_order(
    p: Float[np.ndarray, " set"], orders: Int[np.ndarray, " set"], n: int
) -> Float[np.ndarray, " set"]:
    """q-values of some sets of n components, each as one of all sets that there are; those not given have p = 1.

    Main effects are a family of n tests. Interactions are one family with weights: a set of order k counts as
    ``C(n, k) 2^(k-1)`` tests, half of the error for pairs, a quarter for triples and so on, so that
    ``q_(i) = min_{j≥i} C(n, k_j) 2^(k_j - 1) p_(j) / j`` (Benjamini & Hochberg 1995; weights: Genovese, Roeder &
    Wasserman 2006). NaN where p is.

    >>> q_values_by_order(np.array([0.001, 0.001, 0.04]), np.array([1, 2, 1]), 10).round(3).tolist()
    [0.01, 0.09, 0.2]
    """
    q, known = np.full_like(p, np.nan, dtype=np.float64), ~np.isnan(p)
    weight = np.array([comb(n, k) * 2.0 ** max(0, k - 1) for k in orders.tolist()])
    for family in (known & (orders == 1), known & (orders > 1)):
        rows = np.flatnonzero(family)
        rows = rows[np.argsort(p[rows] * weight[rows], kind="stable")]
        adjusted = p[rows] * weight[rows] / np.arange(1, len(rows) + 1)
        q[rows] = np.minimum.accumulate(adjusted[::-1])[::-1].clip(max=1.0)
    return q


def p_values_of_z(
    size: Float[np.ndarray, " test"], stderr: Float[np.ndarray, " test"], floor: float
) -> Float[np.ndarray, " test"]:
    """Two-sided p-values of z-tests of coefficients of a size; NaN where there is no standard error.

    Where the error is 0 the coefficient is certain: p is 0 above `floor`, 1 below.

    >>> p_values_of_z(np.array([1.96, 0.1, 1.0]), np.array([1.0, np.nan, 0.0]), 0.0).round(3).tolist()
    [0.05, nan, 0.0]
    """
    exact = stderr <= 0
    z = size / np.where(exact, 1.0, stderr)
    return np.where(exact, np.where(size > floor, 0.0, 1.0), erfc(z / math.sqrt(2)))
