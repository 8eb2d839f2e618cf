"""What keeps the figures of an audit from being read as usual, in words; spends nothing."""

from collections.abc import Iterator

from spex_mech.auditing.case import RunCase
from spex_mech.auditing.findings import Fresh
from spex_mech.walsh.decoding import RECOVERED_FROM

# Words only, no figure depends on it. Of the components kept on average: beyond, a set of at most half of them is two
# standard deviations and more smaller than what the run drew, from n = 12 on (n/4 > 2 √(3n/16)).
FAR_KEEP = 0.75


def cautions(case: RunCase, fresh: Fresh) -> tuple[str, ...]:
    """A sentence each, without its full stop.

    Of: ends so near each other that faithfulness is unstable, a polynomial that fresh masks refute, a link, and masks
    of the run that are unlike the audited circuits.
    """
    return tuple(_cautions(case, fresh))


def _cautions(case: RunCase, fresh: Fresh) -> Iterator[str]:
    run = case.found.responses
    values = run.mean if run.met is None else case.predict(run.keep)  # of some prompts a mask, more than masks differ
    effect, spread = abs(case.intact - case.empty), float(values.std(correction=0))
    if effect < spread:
        yield (
            f"intact and empty differ by {effect:.3g}, less than the run's masks do ({spread:.3g}): what faithfulness, "
            "CPR and CMD divide by is small, so they are large and unstable"
        )
    if fresh.r2 is not None and fresh.r2 < RECOVERED_FROM:
        yield f"the polynomial explains {fresh.r2:.2f} of fresh masks' variance"
    if not case.found.link.is_identity:
        yield (
            f"between the polynomial and the metric lies a link ({case.found.link.describe()}); the interactions and "
            "backups put to the test are those of the metric itself, some of which are the link's doing"
        )
    mean_keep = float(case.found.responses.keep.double().mean())
    if mean_keep > FAR_KEEP:
        yield (
            f"the run kept {mean_keep:.2f} of the components, and small circuits keep few: the polynomial extrapolates "
            "there; what it predicts of them is worth little, what was measured counts"
        )
