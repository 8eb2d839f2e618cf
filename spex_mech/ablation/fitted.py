"""The replacement values that runs of this process have used, found again by their hash for as long as a model lives.

A circuit is plain data and holds no activations; with this, ``ablated(subject, keep=found.circuit)`` right after a run
replaces by the very values of the run.
"""

from collections import OrderedDict
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

from spex_mech.ablation.replacement import Replacement
from spex_mech.ablation.subject import Subject

KEPT = 4  # replacements a model
_FITTED: WeakKeyDictionary[Any, OrderedDict[str, Replacement]] = WeakKeyDictionary()


def remember_replacement(subject: Subject, replacement: Replacement) -> None:
    """Keep the values of a run, the last few of each model; those of zero ablation need no keeping."""
    sha256 = replacement.describe()["sha256"]
    if sha256 is None:
        return
    with suppress(TypeError):  # a subject of the user's own that cannot be referred to weakly, or hashed
        known = _FITTED.setdefault(_model(subject), OrderedDict())
        known[sha256] = replacement
        known.move_to_end(sha256)
        if len(known) > KEPT:
            known.popitem(last=False)


def recall_replacement(subject: Subject, sha256: str | None) -> Replacement | None:
    """The values with this hash, if a run on this model has used them."""
    with suppress(TypeError):
        return _FITTED.get(_model(subject), OrderedDict[str, Replacement]()).get(sha256 or "")
    return None


def _model(subject: Subject) -> Any:
    """What outlives a second binding: the model, where the subject has one."""
    return getattr(subject, "model", subject)
