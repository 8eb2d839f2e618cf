"""`Workers`: how many processes measure, where, with what, and when one of them is given up."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from spex_mech.errors import ModelError
from spex_mech.gallery.studies import open_subject


@dataclass(frozen=True)
class Workers:
    """Spread the masks of a run over Ray actors, each with a model of its own.

    Attributes:
        source: where a worker gets its model: a card, model folder or hub id, or a function without arguments that
            returns a model or a bound subject. It must be the very model the run was begun with; weights are compared.
            None, for parts of a prompt and training examples: what reads or trains is sent to it.
        count: how many workers.
        gpus_each, cpus_each: what Ray sets aside for each.
        address: of a Ray cluster ("auto": the one on this machine); None: started here, and stopped at the end.
        timeout: seconds a worker may be silent over one chunk, or over loading its model, until it is replaced.
        patience: how often a chunk may bring its worker down, or every worker may fail with nothing finished between,
            until the run gives up.

    On the CPU every worker takes as many threads as torch has here (`torch.set_num_threads`, or OMP_NUM_THREADS), so
    that the bits are those of a run without workers. Workers that share their cores wait for each
    other: give them fewer threads (`spex-mech bench workers`).

    Raises `ModelError`: numbers out of range.
    """

    source: str | Callable[[], Any] | None = None
    count: int = 2
    gpus_each: float = 0.0
    cpus_each: float = 1.0
    address: str | None = None
    timeout: float = 1800.0
    patience: int = 3

    def __post_init__(self) -> None:
        if self.count < 1 or self.gpus_each < 0 or self.cpus_each < 0 or self.timeout <= 0 or self.patience < 0:
            raise ModelError(
                f"{self.count} workers with {self.gpus_each:g} GPUs and {self.cpus_each:g} CPUs each, {self.timeout:g} "
                f"seconds a chunk and {self.patience} failures forgiven were asked for; it takes at least one worker "
                "and a positive time, and none of the others may be negative."
            )


def source_of(what: str | Path, *, model: str | Path | None = None, device: str | None = None) -> Callable[[], Any]:
    """A function that opens a card's or user's model, wherever it is called; paths are made absolute."""
    return partial(open_subject, _whole(what), device=device, model=None if model is None else _whole(model))


def _whole(what: str | Path) -> str:
    """A path that means the same in any folder; names of the gallery and hub ids as they are."""
    from spex_mech.gallery import cards

    return str(what) if str(what) in cards() or not Path(what).exists() else str(Path(what).resolve())
