"""From "that many workers" to something that passes chunks: here, or through Ray."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from spex_mech.ablation.subject import Subject
from spex_mech.gallery.studies import open_subject
from spex_mech.measuring.measure import Run, in_turn
from spex_mech.measuring.workers import Workers


def choose_run(workers: Workers | None, subject: Subject) -> Run:
    """How the chunks of a run are passed: in turn, or by workers, which import Ray only now."""
    if workers is None:
        return in_turn
    from spex_mech.measuring.ray_pool import spread

    source = workers.source
    if isinstance(source, str):
        source = source_of(source, device=subject.device.type)
    return spread(replace(workers, source=source))


def source_of(what: str | Path, *, model: str | Path | None = None, device: str | None = None) -> Callable[[], Any]:
    """A function that opens a card's or user's model, wherever it is called; paths are made absolute."""
    return partial(open_subject, _whole(what), device=device, model=None if model is None else _whole(model))


def _whole(what: str | Path) -> str:
    """A path that means the same in any folder; names of the gallery and hub ids as they are."""
    from spex_mech.gallery import cards

    return str(what) if str(what) in cards() or not Path(what).exists() else str(Path(what).resolve())
