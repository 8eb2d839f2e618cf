"""Do interactions hold where others are kept more, or less, often? Factorials under other keep-probabilities."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from spex_mech.auditing.case import RunCase
from spex_mech.auditing.factorials import contexts_for, factorial_masks, fits
from spex_mech.auditing.findings import Confirmation, ContextRow
from spex_mech.auditing.passes import seed_of
from spex_mech.walsh.certainty.significance import q_values
from spex_mech.walsh.spectrum import Spectrum

OTHERS = (0.5, 0.9)  # keep-probabilities of other contexts
APART = 0.15  # a keep-probability nearer than this to the run's is no other
FREE = 1 << 13  # masks under which the polynomial is asked how much an effect varies
MAX_CONTEXT_SETS = 8  # interactions that are put into other contexts

_Numbers = NDArray[np.float64]


def other_probs(case: RunCase) -> tuple[float, ...]:
    """Keep-probabilities that the run's masks did not have."""
    return tuple(q for q in OTHERS if all(abs(q - own) > APART for own in case.keep_probs))


def try_contexts(case: RunCase, checks: Sequence[Confirmation], allowance: int) -> tuple[ContextRow, ...]:
    """The strongest interactions, confirmed ones first, among others that are kept more or less often."""
    probs = other_probs(case)
    order = sorted(checks, key=lambda check: (not check.confirmed(), -abs(check.estimate)))[:MAX_CONTEXT_SETS]
    rows = [row for q in probs for row in _at(case, order, q, min(allowance // len(probs), case.passes.left))]
    if not rows:
        return ()
    adjusted = q_values(np.array([row.q_value for row in rows]))
    return tuple(replace(row, q_value=float(q)) for row, q in zip(rows, adjusted, strict=True))


def _at(case: RunCase, checks: Sequence[Confirmation], keep_prob: float, allowance: int) -> list[ContextRow]:
    checks = [check for check in checks if fits(check.order, allowance)]
    number, contexts = contexts_for([check.order for check in checks], allowance)
    slope, predict = case.polynomial.basis.affine[1], case.polynomial.evaluate
    found = []
    for check in checks[:number]:
        group, seed = case.components.indices(check.components), seed_of(case.seed, "context", keep_prob)
        keep = factorial_masks(group, len(case.names), keep_prob, contexts, seed)[: contexts << check.order]
        signs = np.array([(-1.0) ** number.bit_count() for number in range(1 << check.order)])
        values, guess = (x.reshape(contexts, -1).numpy() @ signs for x in (case.passes.means(keep), predict(keep)))
        free = factorial_masks(group, len(case.names), keep_prob, max(64, FREE >> check.order), seed_of(seed, "free"))
        believed = float((predict(free).reshape(-1, 1 << check.order).numpy() @ signs)[:-1].std(ddof=1))
        controlled = values - guess + _effect_at(case.polynomial, group, keep_prob)
        mean, spread = _steadier(values, controlled, believed)
        error = spread / math.sqrt(contexts)
        p = _p_value(mean, error, contexts, case.floor)
        here = check.estimate * slope**check.order
        found.append(ContextRow(check.components, keep_prob, here, mean, error, contexts, p))
    return found


def _effect_at(spectrum: Spectrum, group: Sequence[int], keep_prob: float) -> float:
    """The polynomial's own mean effect: ``Σ_{T⊇S} F(T) slope^|S| (E φ)^|T∖S|``, φ being affine in the keep bit."""
    offset, slope = spectrum.basis.affine
    mean, inside = offset + slope * keep_prob, set(group)
    return sum(c * slope ** len(inside) * mean ** (len(s) - len(inside)) for s, c in spectrum.terms() if inside <= {*s})


def _steadier(plain: _Numbers, controlled: _Numbers, believed: float) -> tuple[float, float]:
    """Mean and spread over contexts, with or without the polynomial as a control variate; both means are unbiased.

    A few contexts may miss what is rare, and then vary too little: plain effects are taken to spread at least as much
    as the polynomial believes they do in many contexts that cost nothing.
    """
    spread, other = max(float(plain.std(ddof=1)), believed), float(controlled.std(ddof=1))
    return (float(controlled.mean()), other) if other <= spread else (float(plain.mean()), spread)


def _p_value(mean: float, error: float, draws: int, floor: float) -> float:
    if not error > 0:
        return 0.0 if abs(mean) > floor else 1.0
    return 2 * float(student.sf(abs(mean) / error, draws - 1))
