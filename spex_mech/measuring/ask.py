"""`Ask`: what is asked of a run, as one value, checked once. `discover` says what each part means."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from spex_mech.errors import (
    DecodeError,
    DesignError,
    FormatError,
    ModelError,
    SpexMechError,
    TaskError,
    all_problems,
)
from spex_mech.measuring.workers import Workers
from spex_mech.names import DECODER_CHOICES, LINK_CHOICES, MEAN_KINDS, REPLACEMENT_KINDS
from spex_mech.walsh.certainty.weigh import check_certainty

KeepProb = float | Sequence[float] | str
AUTO, CODED, ALL = "auto", "coded", "all"
BUDGET = 1024  # masks, where neither masks nor rows are given
MAX_SEED = 1 << 63
_HOW = ("workers", "out", "progress")  # do not change what comes out
_WHOLE = {
    "budget": (1, DesignError), "rows": (1, DesignError), "seed": (0, DesignError), "shared_layers": (1, DesignError),
    "folds": (0, DecodeError), "resamples": (0, DecodeError),
}  # fmt: skip
_NAMED: tuple[tuple[str, tuple[str, ...], type[SpexMechError]], ...] = (
    ("decoder", DECODER_CHOICES, DecodeError), ("link", LINK_CHOICES, DecodeError),
    ("replacement", REPLACEMENT_KINDS, TaskError),
)  # fmt: skip


@dataclass(frozen=True)
class Ask:
    """Which masks are asked, how they are decoded, and where and by whom.

    Raises what fits the part that cannot be; where several cannot, all of them at once.
    """

    budget: int | None = None  # masks; told in rows where `rows` is given
    rows: int | None = None
    prompts_per_mask: int | str = AUTO
    keep_prob: KeepProb = 0.5
    decoder: str = "auto"
    link: str = "auto"
    seed: int = 0
    replacement: str = "mean"
    per: str | None = None
    shared_layers: int = 1
    folds: int = 0
    resamples: int = 0
    refine: bool = False
    workers: Workers | None = None
    out: str | Path | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        self._put("keep_prob", _listed(self.keep_prob))
        problems = list(_problems(self))
        if len(problems) > 1:
            kinds = {type(problem) for problem in problems}
            kind = kinds.pop() if len(kinds) == 1 else SpexMechError
            raise kind(all_problems(f"{len(problems)} things were asked for that cannot be:", list(map(str, problems))))
        if problems:
            raise problems[0]
        if self.budget is None and self.rows is None:
            self._put("budget", BUDGET)
        for name in (*_WHOLE, "prompts_per_mask"):
            value = getattr(self, name)
            self._put(name, int(value) if isinstance(value, Integral) else value)

    def _put(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def folder(self) -> Path | None:
        """The run folder."""
        return None if self.out is None else Path(self.out)

    def to_dict(self) -> dict[str, Any]:
        """What decides the result, for the record of a run; not where and by whom."""
        told = {part.name: getattr(self, part.name) for part in fields(self) if part.name not in _HOW}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in told.items()}


def _problems(ask: Ask) -> Iterator[SpexMechError]:
    """Everything that cannot be, whatever it is asked of."""
    for name, (least, kind) in _WHOLE.items():
        value = getattr(ask, name)
        if value is None and name in ("budget", "rows"):
            continue
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            yield kind(f"{name}={value!r:.80} was asked for; it is a whole number of at least {least}.")
    if isinstance(ask.seed, Integral) and ask.seed >= MAX_SEED:
        yield DesignError(f"seed={ask.seed} was given; seeds end before 2^63.")
    if ask.budget is not None and ask.rows is not None:
        yield DesignError(
            f"budget={ask.budget!r:.80} masks and rows={ask.rows!r:.80} were both given; rows are masks × prompts a "
            "mask, so give one of them, and prompts_per_mask."
        )
    each = ask.prompts_per_mask
    if each not in (AUTO, ALL) and (not isinstance(each, Integral) or isinstance(each, bool) or each < 1):
        yield DesignError(f"prompts_per_mask={each!r:.80} was asked for; give 'auto', 'all' or a number of at least 1.")
    yield from _keep_problems(ask.keep_prob)
    for name, choices, kind in _NAMED:
        if not isinstance(getattr(ask, name), str) or getattr(ask, name) not in choices:
            yield kind(f"there is no {name} {getattr(ask, name)!r:.80}; the {name}s are {', '.join(choices)}.")
    if ask.per is not None and ask.per not in MEAN_KINDS:
        yield TaskError(f"means are taken per {' or '.join(map(repr, MEAN_KINDS))}, not {ask.per!r}.")
    if isinstance(ask.folds, Integral) and isinstance(ask.resamples, Integral):
        yield from _caught(lambda: check_certainty(None, ask.folds, ask.resamples))
    if not isinstance(ask.workers, Workers | None):
        yield ModelError(f"workers={ask.workers!r:.80} were given; give Workers(source, count=…), or None.")
    if not isinstance(ask.out, str | os.PathLike | None):
        yield FormatError(f"out={ask.out!r:.80} was given; it is the path of a run folder, or None.")


def _keep_problems(keep_prob: Any) -> Iterator[SpexMechError]:
    if isinstance(keep_prob, str):
        if keep_prob not in (AUTO, CODED):
            yield DesignError(_no_keep_prob(keep_prob))
        return
    parts = keep_prob if isinstance(keep_prob, tuple) else (keep_prob,)
    if not parts or not all(isinstance(q, float) for q in parts):
        yield DesignError(_no_keep_prob(keep_prob))
    elif bad := [q for q in parts if not 0 < q < 1]:
        yield DesignError(
            f"keep-probabilities must lie strictly between 0 and 1, not {bad}; 0.9 ablates a tenth of the components "
            "per mask."
        )


def _no_keep_prob(value: Any) -> str:
    return f"keep_prob={value!r:.80} is not a keep-probability; give a number such as 0.9, several, 'auto' or 'coded'."


def _listed(keep_prob: Any) -> Any:
    """Numbers as floats, several as a tuple; anything else as it is."""
    if isinstance(keep_prob, Real) and not isinstance(keep_prob, bool):
        return float(keep_prob)
    if isinstance(keep_prob, Iterable) and not isinstance(keep_prob, str):
        return tuple(map(_listed, keep_prob))
    return keep_prob


def _caught(check: Callable[[], None]) -> Iterator[SpexMechError]:
    try:
        check()
    except SpexMechError as error:
        yield error
