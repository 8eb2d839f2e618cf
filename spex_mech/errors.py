"""Errors a user can mend. Everything the package raises on bad input derives from `SpexMechError`.

A message has four parts: what was asked, what was found, the rule, the way out. It names components, not
indices, and lists all problems at once (`all_problems`).
"""

import contextlib
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

_INSIDE = (str(Path(__file__).parent), contextlib.__file__)


class SpexMechWarning(UserWarning):
    """Something that works, and that a reader of the result should know."""


def warn(message: str) -> None:
    """A `SpexMechWarning` at the line outside this package that led here."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, SpexMechWarning, stacklevel=level)


class SpexMechError(ValueError):
    """A mistake in the input, told in the user's own words; the command line exits with code 2 on it."""


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
