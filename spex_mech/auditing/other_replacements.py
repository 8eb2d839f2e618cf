"""Would another replacement say the same? The other ones on masks of the run; spends a tenth of the budget."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import spearmanr
from torch import Tensor

from spex_mech.ablation.replacement import fit_replacement
from spex_mech.auditing.audit_engines import Engines
from spex_mech.auditing.case import RunCase
from spex_mech.auditing.findings import ReplacementRow
from spex_mech.auditing.passes import Passes, seed_of
from spex_mech.auditing.rankings import spectrum_strengths
from spex_mech.errors import SpexMechError
from spex_mech.walsh.certainty.stability import jaccard
from spex_mech.walsh.decoders.refit import refit
from spex_mech.walsh.spectrum import Spectrum

REPLACEMENT_PART = 0.1  # of the budget
FEWEST_ROWS = 16  # masks below which nothing is compared: a correlation of fewer says nothing (at 16, |r| > .5 is 5 %)
MASKS_A_SET = 3  # of a refit
TOP = 10  # interactions that are compared one by one


def try_replacements(case: RunCase, engines: Engines) -> tuple[ReplacementRow, ...]:
    """The other replacements on masks of the run, as far as a tenth of the budget goes; one that the task does not
    allow is left out."""
    kinds = [kind for kind in ("zero", "mean", "resample") if kind != engines.reference.kind]
    asked = len(kinds) + (case.found.responses.met is not None)  # the run's own too, where they met some prompts each
    number = min(len(case.found.responses), case.ledger.part(REPLACEMENT_PART) // asked - 2)
    if number < FEWEST_ROWS:
        case.skipped.append("other replacements")
        return ()
    rows, found = _rows(case, number), list[ReplacementRow]()
    for kind in kinds:
        try:
            other = fit_replacement(engines.subject, engines.task, case.components, kind, seed=case.seed)
        except SpexMechError as error:
            case.skipped.append(f"replacement {kind!r}: {str(error).split('. ')[0]}")
            continue
        found.append(compare_replacement(case, kind, engines.passes(f"replacement {kind}", reference=other), rows))
    return tuple(found)


def _rows(case: RunCase, number: int) -> Int[Tensor, " row"]:
    """Masks of the run on which replacements are compared."""
    generator = torch.Generator().manual_seed(seed_of(case.seed, "replacement"))
    return torch.randperm(len(case.found.responses), generator=generator)[:number].sort().values


def compare_replacement(case: RunCase, kind: str, passes: Passes, rows: Int[Tensor, " row"]) -> ReplacementRow:
    """Another replacement on the same masks, beside the run's own values of them; measured, where each mask met some
    prompts only."""
    keep = case.found.responses.keep[rows.to(case.found.responses.keep.device)].cpu()
    ends = passes.means(torch.tensor([[True], [False]]).expand(2, keep.shape[1])).tolist()
    whole = case.found.responses.met is None
    ours = case.found.responses.mean[rows].double().cpu() if whole else case.passes.means(keep)
    theirs = passes.means(keep)
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
        _overlap(tops[0], tops[1], len(sets)) if sets else None,
    )  # fmt: skip


def _overlap(one: set[int], other: set[int], of: int) -> float:
    """Jaccard index of two sets of so many items."""
    rows = torch.tensor([[i in some for i in range(of)] for some in (one, other)])
    return float(jaccard(rows[:1], rows[1:]))


def _refit(case: RunCase, keep: Bool[Tensor, "mask component"], values: Float[Tensor, " mask"]) -> Spectrum:
    """The run's strongest sets, a third as many as there are masks, fitted to these values."""
    spectrum = case.polynomial.sorted()
    strongest = (spectrum.orders > 0).nonzero()[: max(1, len(keep) // MASKS_A_SET), 0]
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
