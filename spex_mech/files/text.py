"""How text and numbers are written for people: escaped, and the same in a terminal, a table, a drawing and a report."""

import html
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_MINUS = "\u2212"
_LEAST, _MOST = 3, 9  # decimals in a column of figures


def escaped(value: Any) -> str:
    """Text as HTML shows it, in content and in quoted attributes.

    >>> escaped('<b> & "c"')
    '&lt;b&gt; &amp; &quot;c&quot;'
    """
    whole = str(value).encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair cannot be written
    return html.escape("".join(c for c in whole if c in "\n\t" or ord(c) >= 32), quote=True)


def number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """A number for people: significant digits, a true minus; a dash where it is not known.

    >>> number(-0.012345), number(12345.6, sign=True), number(None)
    ('−0.0123', '+12,346', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if size >= 10**digits:
        shown = f"{size:,.0f}"
    elif 0 < size < 1e-3:
        shown = f"{size:.{digits - 1}g}"
    else:
        shown = f"{size:.{max(0, digits - 1 - (math.floor(math.log10(size)) if size else 0))}f}"
    return (_MINUS if value < 0 else "+" if sign else "") + shown


def counted(many: int, word: str) -> str:
    """A number of things.

    >>> counted(1, "prompt"), counted(2_000, "mask")
    ('1 prompt', '2,000 masks')
    """
    return f"{many:,} {word}{'' if many == 1 else 's'}"


def some_of(some: int, many: int, word: str) -> str:
    """How many of so many things; all of them without saying so.

    >>> some_of(16, 16, "prompt"), some_of(1, 16, "prompt")
    ('16 prompts', '1 of 16 prompts')
    """
    return counted(many, word) if some >= many else f"{some:,} of {counted(many, word)}"


def percent(share: float | None) -> str:
    """A share as a percentage; never 100 where it is less.

    >>> percent(0.98765), percent(0.99999), percent(1), percent(1e-6)
    ('98.8 %', '> 99.9 %', '100 %', '< 0.1 %')
    """
    if share is None or not math.isfinite(share):
        return "–"
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return f"{100 * share:.1f}".replace("-", _MINUS).removesuffix(".0") + " %"


def fit_words(r2: float) -> str:
    """R² for people; never 1 where it is less.

    >>> fit_words(0.98765), fit_words(0.999999)
    ('0.9877', '> 0.9999')
    """
    return "> 0.9999" if 0.99995 <= r2 < 1 else f"{r2:.4f}".replace("-", _MINUS)


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


def quoted_roles(names: Iterable[str], roles: Mapping[str, str], most: int = 40) -> str:
    """What parts of an input say, cut where it is long; nothing where one of them says nothing.

    >>> quoted_roles(["s0", "s2"], {"s0": "not", "s2": "good"}), quoted_roles(["s0", "a0.h1"], {"s0": "not"})
    ('“not” × “good”', '')
    """
    said = [roles.get(name, "") for name in names]
    return " × ".join(f"“{s if len(s) <= most else s[:most] + '…'}”" for s in said) if all(said) else ""


def sentence(words: str) -> str:
    """Words as a sentence.

    >>> sentence("raise the budget")
    'Raise the budget.'
    """
    return words[:1].upper() + words[1:] + ("" if words.endswith(".") else ".")
