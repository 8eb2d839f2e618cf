"""How figures of one unit are written, so that small ones are still read and all of a table line up."""

import math
from collections.abc import Callable, Iterable

_LEAST, _MOST = 3, 9  # decimals


def like(values: Iterable[float]) -> Callable[[float], str]:
    """Writes figures, signed, with so many decimals that the largest of some values has three significant digits.

    >>> write = like([2.5, -0.1])
    >>> write(2.5), write(-0.1)
    ('+2.500', '-0.100')
    >>> like([0.0031])(0.0004)
    '+0.00040'
    """
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    decimals = _LEAST if largest == 0 else min(max(_LEAST, 2 - math.floor(math.log10(largest))), _MOST)
    return lambda value: f"{value:+.{decimals}f}"
