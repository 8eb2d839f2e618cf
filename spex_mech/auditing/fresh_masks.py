"""Does the polynomial predict masks that had no part in finding it? Spends as many masks as it is given."""

from jaxtyping import Bool
from torch import Tensor

from spex_mech.auditing.case import RunCase
from spex_mech.auditing.findings import Fresh
from spex_mech.auditing.passes import seed_of
from spex_mech.walsh.decoding import r_squared
from spex_mech.walsh.masks.design import MaskDesign

MOST_FRESH_VALUES = 512  # whose values are kept for a picture; no figure depends on it


def fresh_masks(case: RunCase, number: int) -> Bool[Tensor, "mask component"]:
    """Masks of the kind the run drew, from another seed."""
    return MaskDesign.stratified(len(case.names), number, case.keep_probs, seed_of(case.seed, "fresh")).keep()


def try_fresh(case: RunCase, number: int) -> Fresh:
    """R² and root-mean-square error of the polynomial on masks drawn anew."""
    keep = fresh_masks(case, number)
    truth, predicted = case.passes.means(keep), case.predict(keep)
    r2 = r_squared(truth, predicted)
    rmse = float(((truth - predicted) ** 2).mean().sqrt())
    shown = (tuple(values[:MOST_FRESH_VALUES].tolist()) for values in (truth, predicted))
    return Fresh(number, case.keep_probs, r2 if r2 == r2 else None, rmse, *shown)
