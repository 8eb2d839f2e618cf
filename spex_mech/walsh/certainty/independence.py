"""Which masks may judge: those drawn independently of each other, and of whatever they judge.

Folds and errors need the unit that was drawn: a mask, or a run of masks that share bits by design. Equal masks may lie
in different folds; they were drawn independently all the same.
"""

from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from spex_mech.walsh.decoding import Samples
from spex_mech.walsh.incomplete import headline
from spex_mech.walsh.masks.design import MaskDesign

FEWEST = 8  # masks that a test is made on


def runs(samples: Samples) -> Int[Tensor, " mask"]:
    """The number of the independently drawn unit that each mask belongs to: itself, or its run of shared bits.

    Where masks are asked again (`MaskDesign.again`), equal ones are one unit.
    """
    design = samples.design
    if design is not None and design.again:
        return torch.unique(samples.keep.cpu(), dim=0, return_inverse=True)[1]
    repeats = 1 if design is None or len(samples.keep) != design.n_masks else design.repeats
    return torch.arange(len(samples.keep)) // repeats


def as_drawn(samples: Samples, rows: Int[Tensor, " row"]) -> Samples:
    """Some of the masks, whole runs of them, with a design that says how they were drawn and no more.

    Of coded masks, which are fair coins each, that is all that is left of their design; of values of some outputs a
    mask, their mean.
    """
    samples = headline(samples)
    design = samples.design
    if design is None or design.code is not None or not design.keep_probs:
        drawn = MaskDesign.bernoulli(samples.n, len(rows), samples.keep_prob)
    else:
        often = design.again or len(samples.keep) > design.n_masks  # rows: a mask as often as it met outputs
        equal = len(rows) - len(samples.keep[rows].unique(dim=0)) if often else 0
        drawn = replace(design, n_masks=len(rows), again=min(equal, len(rows) // 2))
    return Samples(samples.keep[rows], samples.values[rows], drawn)


def cut_folds(run: Int[Tensor, " mask"], folds: int, seed: int) -> Int[Tensor, " mask"]:
    """The fold of every mask; folds are of equal size to one run."""
    order = torch.randperm(int(run.max()) + 1, generator=torch.Generator().manual_seed(seed))
    return (order % folds)[run]


def with_design(samples: Samples) -> Samples:
    """On the CPU, and with a design, so that every fold has the same keep-probability."""
    design = samples.design
    if design is None:
        design = MaskDesign.bernoulli(samples.n, len(samples.keep), samples.keep_prob)
    met = None if samples.met is None else samples.met.cpu()
    return replace(samples, keep=samples.keep.cpu(), values=samples.values.cpu(), design=design, met=met)


def dependence(samples: Samples) -> list[str]:
    """Why masks cannot judge, in words; nothing where they can."""
    design, problems = samples.design, list[str]()
    if design is not None and design.kind == "coded":
        problems.append(
            "coded masks are not independent: sets that share a bin look alike on all of them. Confirm on the fair "
            "coins behind the code (heldout_samples), or draw masks of one keep-probability"
        )
    if design is not None and design.kind == "complete" and len(samples.keep) == design.n_masks:
        problems.append("all 2^n masks were measured, so nothing is estimated from a sample; decode with 'exact'")
    if design is not None and design.repeats > 1 and len(samples.keep) != design.n_masks:
        problems.append("masks share bits in runs, and some are missing; give all masks in the order of the design")
    if not 0 < samples.keep_prob < 1:
        problems.append("every mask keeps the same components, so no effect can be told from the mean")
    if len(samples.keep) < FEWEST:
        problems.append(f"{len(samples.keep):,} masks; a test needs {FEWEST}")
    return problems
