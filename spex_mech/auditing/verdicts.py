"""What an audit calls faithful, as good, there, stable: the rule of every verdict, and the numbers it turns on.

The frozen findings ask here, and the terminal, the report and the files ask the findings, so that none can say another
thing than the others.
"""

from collections.abc import Sequence

RATE = 0.05  # false discovery rate (Benjamini and Hochberg 1995) of what is called confirmed; the field's habit
FAITHFUL_WITHIN = 0.1  # of 1: how near the faithfulness of a circuit must be to be called enough
STABLE_FROM = 0.8  # mean Jaccard index of nodes over resamples (Meloux et al. 2025)


def is_faithful(faithfulness: float) -> bool:
    """Whether a circuit is enough by itself.

    >>> is_faithful(0.95), is_faithful(1.3)
    (True, False)
    """
    return abs(1 - faithfulness) <= FAITHFUL_WITHIN


def share_as_good(random: Sequence[float], ours: float) -> float:
    """The share of random sets whose faithfulness is at least as near to 1 as ours; ties count for them.

    >>> share_as_good([0.0, 0.8, 1.2, 1.5], 0.8)
    0.5
    """
    return sum(abs(1 - f) <= abs(1 - ours) for f in random) / len(random)


def is_there(q_value: float, effect: float, claimed: float, rate: float = RATE) -> bool:
    """Whether an effect is there at a false discovery rate, with the sign that was claimed.

    >>> is_there(0.01, 2.0, 1.0), is_there(0.01, -2.0, 1.0), is_there(0.06, 2.0, 1.0)
    (True, False, False)
    """
    return q_value <= rate and effect * claimed > 0


def is_stable(nodes: float | None, bar: float = STABLE_FROM) -> bool:
    """Whether nodes found again on resamples agree well enough.

    >>> is_stable(0.8), is_stable(None)
    (True, False)
    """
    return nodes is not None and nodes >= bar
