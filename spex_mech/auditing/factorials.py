"""Confirmation by small fresh experiments: all keep patterns of a few components in random contexts.

For a set S and a context (a random keep bit for every other component, kept with probability q) the metric is measured
under all 2^|S| patterns. ``Σ_A P(A) φ_S(A) v(A)`` over these patterns A is an unbiased estimate of the coefficient F(S)
in the basis of q, whatever else the function holds; contexts are independent, so their mean has an honest error.

The polynomial, which has not seen these masks, serves as a control variate: its own value in a context is subtracted,
and its exact mean over contexts added. That leaves the estimate unbiased, and its error is that of what the polynomial
does not explain.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from scipy.stats import t as student
from torch import Tensor

from spex_mech.auditing.findings import BackupCheck, Confirmation
from spex_mech.auditing.passes import seed_of
from spex_mech.circuit.backups import contrasts, products
from spex_mech.walsh.certainty.significance import q_values
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.spectrum import Basis, Spectrum

MAX_FACTORIAL_ORDER = 8
FEWEST, MOST = 12, 64  # contexts a set is measured in

_Numbers = NDArray[np.float64]
_T = TypeVar("_T", Confirmation, BackupCheck)


def contexts_for(orders: Sequence[int], allowance: int) -> tuple[int, int]:
    """How many of the sets, strongest first, and how many contexts each, so that the masks do not exceed `allowance`.

    Each set also takes one context in which all others are kept. At least 12 random contexts.

    >>> contexts_for([2, 2, 3], 400)
    (3, 24)
    """
    costs = np.cumsum([1 << order for order in orders])
    number = int((costs * (FEWEST + 1) <= allowance).sum())
    return (number, min(MOST, allowance // int(costs[number - 1]) - 1)) if number else (0, 0)


def fits(order: int, allowance: int) -> bool:
    """Whether the smallest factorial of a set has room.

    >>> fits(3, 104), fits(3, 103)
    (True, False)
    """
    return (FEWEST + 1) << order <= allowance


def factorial_masks(
    group: Sequence[int], n: int, keep_prob: float, contexts: int, seed: int
) -> Bool[Tensor, "mask component"]:
    """All patterns of a group in `contexts` random contexts, then in the one in which all others are kept.

    Rows run over contexts, then over patterns by number (bit j: member j is ablated).
    """
    drawn = MaskDesign.bernoulli(n, contexts, keep_prob, seed_of(seed, "contexts", *group)).keep()
    keep = torch.cat([drawn, torch.ones(1, n, dtype=torch.bool)]).repeat_interleave(1 << len(group), 0)
    number = torch.arange(1 << len(group)).repeat(contexts + 1)
    for bit, member in enumerate(group):
        keep[:, member] = (number >> bit & 1) == 0
    return keep


@dataclass(frozen=True, eq=False)
class Table:
    """A factorial: values ``[context, pattern]``, means over prompts, the control variate applied; the polynomial's
    values of the same; and values ``[prompt, pattern]`` at the intact model."""

    random: _Numbers
    predicted: _Numbers
    intact: _Numbers

    @classmethod
    def of(cls, values: Tensor, predicted: Tensor, order: int, expected: _Numbers | None) -> "Table":
        """From values ``[mask, prompt]`` and the polynomial's, in the order of `factorial_masks`.

        `expected` is the polynomial's exact mean over contexts of every pattern; None: no control variate.
        """
        shaped = values.double().reshape(-1, 1 << order, values.shape[1]).numpy()
        measured, guess = shaped[:-1].mean(2), predicted.double().reshape(-1, 1 << order).numpy()[:-1]
        return cls(measured if expected is None else measured - guess + expected, guess, shaped[-1].T)


def expected_values(spectrum: Spectrum, group: Sequence[int]) -> _Numbers:
    """The polynomial's mean over contexts under every pattern of a group: ``Σ_{U⊆S} F(U) φ_U(A)``.

    Needs an orthonormal basis: every other term averages out.
    """
    offset, slope = spectrum.basis.affine
    sets = [tuple(i for j, i in enumerate(group) if number >> j & 1) for number in range(1 << len(group))]
    coefficients = np.array([spectrum.get(s) or 0.0 for s in sets])
    return products(len(group), (offset, offset + slope)) @ coefficients


def coefficient_weights(order: int, basis: Basis) -> _Numbers:
    """``P(A) φ_S(A)`` of every pattern A, by its number: what turns a factorial into an estimate of F(S)."""
    keep_prob = 0.5 if basis.keep_prob is None else basis.keep_prob
    offset, slope = basis.affine
    gone = np.array([number.bit_count() for number in range(1 << order)])
    weights = keep_prob ** (order - gone) * (1 - keep_prob) ** gone
    return weights * products(order, (offset, offset + slope))[:, -1]


def confirm_table(
    table: Table, components: tuple[str, ...], claimed: float, basis: Basis, floor: float
) -> Confirmation:
    """One interaction from its factorial.

    `floor` is what counts as rounding, in the metric's unit. The q-value is the p-value until `adjust` is called.
    """
    order = len(components)
    weights = coefficient_weights(order, basis)
    estimates = table.random @ weights
    signs = np.array([-1.0 if (order - number.bit_count()) % 2 else 1.0 for number in range(1 << order)])
    knockouts = table.intact @ signs
    p = min(1.0, 2 * float(_above_zero(np.abs(estimates.mean()), estimates, floor)))
    error = _stderr(knockouts)
    predicted = float((table.predicted @ weights).mean())
    return Confirmation(
        components, claimed, predicted, float(estimates.mean()), _stderr(estimates), len(estimates),
        p, p, float(knockouts.mean()), None if math.isnan(error) else error,
    )  # fmt: skip


def check_backup(table: Table, components: tuple[str, ...], floor: float) -> BackupCheck:
    """One group of backups from its factorial; the q-value is the p-value until `adjust` is called."""
    rows = contrasts(len(components))
    margins = table.random @ rows.T
    margins = margins if margins[:, 0].mean() >= 0 else -margins
    p = max(float(_above_zero(column.mean(), column, floor)) for column in margins.T)
    smallest = int(margins.mean(0).argmin())
    intact = rows @ table.intact.mean(0)
    joint = float((table.random @ rows[0]).mean())
    p = min(1.0, 2 * p)
    return BackupCheck(
        components, joint, float(margins[:, smallest].mean()), _stderr(margins[:, smallest]), len(margins),
        p, p, float(intact[0]), float(min(intact) if intact[0] >= 0 else min(-intact)),
    )  # fmt: skip


def adjust(checks: Sequence[_T]) -> tuple[_T, ...]:
    """The same with q-values over all of them (Benjamini and Hochberg 1995)."""
    if not checks:
        return ()
    q = q_values(np.array([check.p_value for check in checks]))
    return tuple(replace(check, q_value=float(rate)) for check, rate in zip(checks, q, strict=True))


def _above_zero(mean: float, draws: _Numbers, floor: float) -> float:
    """One-sided p-value of the mean of draws against 0; draws that do not differ decide for themselves."""
    error = _stderr(draws)
    if not error > 0:
        return 0.0 if mean > floor else 1.0
    return float(student.sf(mean / error, len(draws) - 1)) if mean > floor else 1.0


def _stderr(draws: _Numbers) -> float:
    return float(draws.std(ddof=1) / math.sqrt(len(draws))) if len(draws) > 1 else math.nan
