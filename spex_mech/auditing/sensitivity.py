"""What findings owe to choices: to the masks and prompts drawn, to the replacement, and to how much else is kept."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy.stats import spearmanr
from scipy.stats import t as student
from torch import Tensor

from spex_mech.auditing.baselines import spectrum_strengths
from spex_mech.auditing.factorials import Confirmation, contexts_for, factorial_masks, fits
from spex_mech.auditing.findings import ContextRow, ReplacementRow, StabilityRow
from spex_mech.auditing.passes import Passes, seed_of
from spex_mech.auditing.verification import Case, fresh_probs
from spex_mech.errors import DecodeError
from spex_mech.walsh.certainty.significance import q_values
from spex_mech.walsh.certainty.stability import stability
from spex_mech.walsh.decoders.refit import refit
from spex_mech.walsh.decoding import Samples
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.spectrum import Spectrum

RESAMPLES = 100
POOL = 128  # of the strongest sets are refitted to halves
TOP = 10  # interactions that are compared one by one
OTHERS = (0.5, 0.9)  # keep-probabilities of other contexts
APART = 0.15  # a keep-probability nearer than this to the run's is no other
FREE = 1 << 13  # masks under which the polynomial is asked how much an effect varies
MAX_CONTEXT_SETS = 8  # interactions that are put into other contexts

_Numbers = NDArray[np.float64]


def try_stability(case: Case) -> tuple[StabilityRow, ...]:
    """Refits of the strongest sets to halves of the run's masks, and of its prompts; no forward pass is spent."""
    spectrum, found = case.polynomial.sorted(), list[StabilityRow]()
    strongest = (spectrum.orders > 0).nonzero()[:POOL, 0]
    if not len(strongest):
        return ()
    chosen = torch.zeros(len(spectrum), dtype=torch.bool)
    chosen[strongest] = True
    responses = case.found.responses
    rest = spectrum.select(~chosen & (spectrum.orders > 0)).evaluate(responses.keep)
    values = responses.values.double() - rest[:, None].to(responses.values.device)
    for over in ("masks", "prompts"):
        design = MaskDesign.from_dict(responses.provenance["design"]) if "design" in responses.provenance else None
        samples = Samples(responses.keep, values.to(responses.values.dtype), _if_drawn(design))
        try:
            again = stability(
                samples, spectrum.members[strongest], resamples=RESAMPLES, seed=seed_of(case.seed, "halves"),
                over="masks" if over == "masks" else "outputs",
            )  # fmt: skip
        except DecodeError:  # one prompt, or too few masks to halve
            continue
        jaccard, nodes = (None if math.isnan(x) else x for x in (again.jaccard, again.node_jaccard))
        found.append(StabilityRow(over, RESAMPLES, jaccard, nodes, again.method))
    return tuple(found)


def _if_drawn(design: MaskDesign | None) -> MaskDesign | None:
    return design if design is not None and design.kind in ("bernoulli", "stratified") else None


def rows_for(case: Case, number: int) -> Int[Tensor, " row"]:
    """Masks of the run on which replacements are compared."""
    generator = torch.Generator().manual_seed(seed_of(case.seed, "replacement"))
    return torch.randperm(len(case.found.responses), generator=generator)[:number].sort().values


def try_replacement(case: Case, kind: str, passes: Passes, rows: Int[Tensor, " row"]) -> ReplacementRow:
    """Another replacement on the same masks, beside the run's own values of them."""
    keep = case.found.responses.keep[rows.to(case.found.responses.keep.device)].cpu()
    ends = passes.means(torch.tensor([[True], [False]]).expand(2, keep.shape[1])).tolist()
    ours, theirs = case.found.responses.mean[rows].double().cpu(), passes.means(keep)
    one, other = (_refit(case, keep, values) for values in (ours, theirs))
    used = sorted({i for s in one.sets for i in s})  # the others have no strength in either, and would agree for free
    strong = [[list(spectrum_strengths(x, case.names).values())[i] for i in used] for x in (one, other)]
    sets = [s for s in one.sets if len(s) > 1]
    pairs = [[x.get(s) or 0.0 for s in sets] for x in (one, other)]
    tops = [set(np.argsort(-np.abs(np.array(x)), kind="stable")[:TOP].tolist()) for x in pairs]
    signs = [pairs[0][i] * pairs[1][i] > 0 for i in tops[0]]
    return ReplacementRow(
        kind, len(rows), ends[0] - ends[1], _agreement(ours, theirs), _rank_agreement(*strong),
        _rank_agreement(*pairs), sum(signs) / len(signs) if signs else None,
        len(tops[0] & tops[1]) / len(tops[0] | tops[1]) if sets else None,
    )  # fmt: skip


def _refit(case: Case, keep: Bool[Tensor, "mask component"], values: Float[Tensor, " mask"]) -> Spectrum:
    """The run's strongest sets, a third as many as there are masks."""
    spectrum = case.polynomial.sorted()
    strongest = (spectrum.orders > 0).nonzero()[: max(1, len(keep) // 3), 0]
    return refit(keep, values, spectrum.members[strongest], spectrum.basis)


def _agreement(one: Float[Tensor, " mask"], other: Float[Tensor, " mask"]) -> float | None:
    """Squared correlation; None where one does not vary."""
    if len(one) < 3 or not float(one.std()) > 0 or not float(other.std()) > 0:
        return None
    return float(torch.corrcoef(torch.stack([one, other]))[0, 1] ** 2)


def _rank_agreement(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's correlation; None below three, or where one has no order."""
    if len(one) < 3 or len(set(np.asarray(one).tolist())) < 2 or len(set(np.asarray(other).tolist())) < 2:
        return None
    return float(spearmanr(one, other).statistic)


def other_probs(case: Case) -> tuple[float, ...]:
    """Keep-probabilities that the run's masks did not have."""
    return tuple(q for q in OTHERS if all(abs(q - own) > APART for own in fresh_probs(case.found)))


def try_contexts(case: Case, checks: Sequence[Confirmation], allowance: int) -> tuple[ContextRow, ...]:
    """The strongest interactions, confirmed ones first, among others that are kept more or less often."""
    probs = other_probs(case)
    order = sorted(checks, key=lambda check: (not check.confirmed(), -abs(check.estimate)))[:MAX_CONTEXT_SETS]
    rows = [row for q in probs for row in _at(case, order, q, min(allowance // len(probs), case.passes.left))]
    if not rows:
        return ()
    adjusted = q_values(np.array([row.q_value for row in rows]))
    return tuple(replace(row, q_value=float(q)) for row, q in zip(rows, adjusted, strict=True))


def _at(case: Case, checks: Sequence[Confirmation], keep_prob: float, allowance: int) -> list[ContextRow]:
    checks = [check for check in checks if fits(check.order, allowance)]
    number, contexts = contexts_for([check.order for check in checks], allowance)
    slope, predict = case.polynomial.basis.affine[1], case.polynomial.evaluate
    found = []
    for check in checks[:number]:
        group, seed = case.found.components.indices(check.components), seed_of(case.seed, "context", keep_prob)
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
