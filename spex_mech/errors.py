"""Errors a user can mend, and warnings at the user's own line. All that is raised on bad input is a `SpexMechError`.

A message has four parts: what was asked, what was found, the rule, the way out. It names components, not
indices, and lists all problems at once (`all_problems`).
"""

import re
import sys
import warnings
from collections.abc import Sequence
from types import FrameType

# what moves the cursor, colours, hides, reverses or forges a line: C0 and C1 but tab and newline, soft hyphen, bidi
# controls, marks of no width, line separators, tags, halves of surrogate pairs
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)
_NOT_THE_USER = {"spex_mech", "contextlib", "functools", "torch"}  # ours, and what stands between our own frames


def printable(text: str) -> str:
    """Text as a terminal or a log may have it: what would act on either is spelled out, in Python's words for it.

    >>> printable("a\\x1b[2Jb"), printable("left\\u202eright"), printable("naïve, 漢字\\n")
    ('a\\\\x1b[2Jb', 'left\\\\u202eright', 'naïve, 漢字\\n')
    """
    return text if text.isascii() and text.isprintable() else _UNPRINTABLE.sub(_spelled, text)


def _spelled(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class SpexMechError(ValueError):
    """A mistake in the input, told in the user's own words; the command line exits with code 2 on it.

    A message may quote what a stranger wrote: it is made `printable`.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(printable(arg) if isinstance(arg, str) else arg for arg in args))


class SpexMechWarning(UserWarning):
    """Something that works, and that a reader of the result should know."""


class ComponentError(SpexMechError):
    """A component name that cannot be read, or a component that the model does not have."""


class TaskError(SpexMechError):
    """Prompts, answers, positions or a metric that do not fit together, or do not fit the model."""


class ModelError(SpexMechError):
    """A model on which no known site was found, or whose sites failed the self-test at binding."""


class DesignError(SpexMechError):
    """A mask design that cannot be drawn, or that cannot answer what is asked of it."""


class ResponseError(SpexMechError):
    """Responses that are not finite, do not belong together, or do not fit the components."""


class DecodeError(SpexMechError):
    """A decoder that was asked for something its masks cannot give."""


class FormatError(SpexMechError):
    """A file that is missing, damaged, of an unknown schema, or not what its name says."""


def all_problems(headline: str, problems: Sequence[str], *, shown: int = 10) -> str:
    """One message for many problems, the first `shown` in full.

    >>> print(all_problems("2 problems in prompts.jsonl:", ["row 1: no answer", "row 4: no tokens"]))
    2 problems in prompts.jsonl:
      - row 1: no answer
      - row 4: no tokens
    """
    lines = [headline, *(f"  - {problem}" for problem in problems[:shown])]
    if len(problems) > shown:
        lines.append(f"  - and {len(problems) - shown:,} more")
    return "\n".join(lines)


def warn_user(message: str) -> None:
    """A `SpexMechWarning` at the line that called the package, however deep in it the reason is found."""
    frame: FrameType | None = sys._getframe(1)
    level = 2
    while frame is not None and str(frame.f_globals.get("__name__", "")).split(".")[0] in _NOT_THE_USER:
        frame, level = frame.f_back, level + 1
    warnings.warn(printable(message), SpexMechWarning, stacklevel=level)
