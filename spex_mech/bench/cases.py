"""Functions that the accuracy of decoders is measured on: planted ones, and the components of cards; in repeats."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spex_mech.ablation.replacement import fit_replacement
from spex_mech.ablation.respond import respond
from spex_mech.bench.functions import Kind, Planted, planted_function
from spex_mech.components import ComponentSet, select
from spex_mech.gallery.studies import Study, open_study
from spex_mech.names import HEADS
from spex_mech.walsh.masks.design import MaskDesign

Family = tuple[Kind, int, int, float]  # kind, components, sets, noise
FAMILIES: tuple[Family, ...] = (
    ("hierarchical", 64, 5, 0.2), ("random", 64, 40, 0.2), ("tanh", 64, 25, 0.05), ("hierarchical", 64, 5, 1.0),
    ("hierarchical", 256, 5, 0.2),
)  # fmt: skip
KEEPS = (0.5, 0.9)
PROMPTS, FRESH, POOL = 16, 1024, 4096
MANY_NEURONS = 600  # from here on a card's components are heads and MLP layers


@dataclass(frozen=True, eq=False)
class Case:
    """A function measured under some masks, and its values under fresh ones.

    Attributes:
        repeat: cells of one name, keep-probability and number of masks differ in it: other masks of the same card, or
            another planted function.
    """

    name: str
    keep_prob: float
    repeat: int
    keep: Bool[Tensor, "mask component"]
    values: Float[Tensor, "mask output"]
    fresh: Bool[Tensor, "fresh component"]
    truth: Float[Tensor, " fresh"]
    planted: Planted | None = None

    @property
    def cell(self) -> dict[str, str | float | int]:
        """What a row of figures says of where they are from."""
        return {"case": self.name, "keep_prob": self.keep_prob, "masks": len(self.keep), "repeat": self.repeat}


def planted_case(family: Family, masks: int, repeat: int = 0) -> Case:
    """A planted function of n components under fair coins."""
    kind, n, sets, noise = family
    function = planted_function(kind, n, sets=sets, seed=1 + repeat)
    keep, fresh = MaskDesign.bernoulli(n, masks, seed=3 + repeat).keep(), MaskDesign.bernoulli(n, FRESH, seed=2).keep()
    values = function.noisy(keep, noise, 4 + repeat)[:, None].float()
    name = f"{kind}, n = {n}, noise {noise}"
    return Case(name, 0.5, repeat, keep, values, fresh, function(fresh), function)


@dataclass(frozen=True, eq=False)
class CasePool:
    """A card's responses to `POOL` masks, of which repeats take different ones, and to fresh ones."""

    name: str
    keep_prob: float
    values: Float[Tensor, "mask output"]
    truth: Float[Tensor, " fresh"]
    n: int

    def case(self, masks: int, repeat: int) -> Case | None:
        """Some of the masks; None where no more are left for a repeat."""
        rows = slice(repeat * masks, (repeat + 1) * masks)
        if rows.stop > len(self.values):
            return None
        keep, fresh = card_masks(self.n, self.keep_prob)
        return Case(self.name, self.keep_prob, repeat, keep[rows], self.values[rows], fresh, self.truth)


def card_masks(n: int, keep_prob: float) -> tuple[Bool[Tensor, "mask component"], Bool[Tensor, "fresh component"]]:
    """The masks that cards are measured under."""
    keep = MaskDesign.bernoulli(n, POOL, keep_prob, seed=3).keep()
    return keep, MaskDesign.bernoulli(n, FRESH, keep_prob, seed=2).keep()


def card_pools(folder: Path, kept: Path | None) -> Iterator[CasePool]:
    """A card's heads and neurons (or MLP layers) at every keep-probability; none where they are 12 or fewer.

    Responses are written to, and found again in, the folder `kept`.
    """
    components, ask = studied(folder)
    n = len(components)
    for keep_prob in KEEPS if n > 12 else ():
        file = None if kept is None else kept / f"{folder.name}, keep {keep_prob}.npz"
        if file is not None and file.exists():
            with np.load(file) as found:
                values, truth = torch.from_numpy(found["values"]), torch.from_numpy(found["truth"])
        else:
            keep, fresh = card_masks(n, keep_prob)
            values, truth = ask(keep), ask(fresh).double().mean(1)
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                np.savez(file, values=values.numpy(), truth=truth.numpy())
        yield CasePool(f"{folder.name}, n = {n}", keep_prob, values, truth, n)


def card_components(study: Study) -> ComponentSet:
    """Heads, and neurons where they are few, else MLP layers."""
    shape = study.subject.shape
    few = 0 < sum(shape.neurons) < MANY_NEURONS
    return select(study.subject, HEADS + (", m*.n*" if few else ", m*" if any(shape.mlps) else ""))


def studied(folder: Path) -> tuple[ComponentSet, Callable[[Tensor], Tensor]]:
    """A card's components, and its responses to masks."""
    study = open_study(folder)
    task = study.task.take(torch.arange(min(PROMPTS, len(study.task))))
    components = card_components(study)
    reference = fit_replacement(study.subject, task, components, study.replacement, study.per)
    return components, lambda keep: respond(study.subject, task, components, keep.split(256), reference)
