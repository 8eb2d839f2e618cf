"""Records of how a thing was measured: made plain for JSON, compared by name, refused where they differ."""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from spex_mech.errors import ResponseError

PROBE, PROBE_LOGITS = "probe", "logits"  # of a model: compared up to rounding, and only where both records have one
PROBE_TOLERANCE = 1e-3  # of the largest logit; TF32 and other orders of summation on other devices stay below
COARSE_PROBE = 0.05  # in half precision
_FINE = (None, "float32", "float64")


def refuse_other(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise `ResponseError` naming what differs between the experiment in a folder and the one asked for."""
    found = differences(there, here)
    if found:
        raise ResponseError(
            f"{path} belongs to another experiment. It differs in {'; '.join(found[:4])}. "
            "Choose another folder, or remove this one."
        )


def differences(
    one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "", sides: tuple[str, str] = ("there", "here")
) -> list[str]:
    """Dotted paths at which two records differ, with both values, each on its side; lists from where they part.

    >>> differences({"task": {"metric": "kl"}}, {"task": {"metric": "prob"}})
    ["task.metric ('kl' there, 'prob' here)"]
    >>> differences({"components": ["a0.h0", "m0"]}, {"components": ["a0.h0", "m1"]})
    ["components[1:] (['m0'] there, ['m1'] here)"]
    """
    found = list[str]()
    for key in sorted(one.keys() | other.keys()):
        a, b = one.get(key), other.get(key)
        if key == PROBE and (a is None or b is None):
            continue  # a record from before there were probes
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.", sides)
        elif key == PROBE_LOGITS and prefix.endswith(f"{PROBE}."):
            found += _moved(a, b, f"{prefix}{key}", coarse=one.get("dtype") not in _FINE)
        elif isinstance(a, list) and isinstance(b, list) and a != b:
            same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            where = f"{prefix}{key}[{same}:]" if same else f"{prefix}{key}"
            found.append(f"{where} ({_short(a[same:])} {sides[0]}, {_short(b[same:])} {sides[1]})")
        elif a != b:
            found.append(f"{prefix}{key} ({_short(a)} {sides[0]}, {_short(b)} {sides[1]})")
    return found


def _moved(a: Any, b: Any, name: str, coarse: bool = False) -> list[str]:
    """Whether the logits of two probes are those of two models, up to rounding.

    >>> _moved([1.0, -3.0], [1.0, -2.0], "subject.probe.logits")
    ['subject.probe.logits (moved by 1 of 3)']
    >>> _moved([1.0, -3.0], [1.0, -3.0001], "subject.probe.logits")
    []
    """
    numbers = all(isinstance(x, float) for side in (a, b) for x in (side or [None]))
    if not numbers or len(a) != len(b):
        return [] if a == b else [f"{name} (not numbers of one model)"]
    scale = max((abs(x) for x in a), default=0.0)
    gap = max((abs(x - y) for x, y in zip(a, b, strict=True)), default=0.0)
    return (
        []
        if gap <= (COARSE_PROBE if coarse else PROBE_TOLERANCE) * scale
        else [f"{name} (moved by {gap:.2g} of {scale:.2g})"]
    )


def plain(value: Any) -> Any:
    """Anything as JSON data: numpy and torch numbers unwrapped, dataclasses as objects, enums by name, tuples as lists.

    NaN and ±∞ become null, for which JSON has no word; what is none of these becomes its text.

    >>> plain({"r2": 0.5, "sizes": (1, 2), "gap": float("nan")})
    {'r2': 0.5, 'sizes': [1, 2], 'gap': None}
    """
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
