"""`losses_of`: what losing parts of a set costs, measured where a run has the masks, else by its polynomial."""

from itertools import combinations

import torch

from spex_mech.circuit.losses import Losses
from spex_mech.circuit.node_scores import direction
from spex_mech.errors import ComponentError
from spex_mech.store.discovery import Discovery

MOST_IN_A_SET = 8  # components: 2^8 losses
_MASKS = 512  # over which the polynomial is averaged


def losses_of(found: Discovery, names: tuple[str, ...]) -> Losses:
    """The losses of every part of a set of at most 8 components.

    Where the run has measured every part with all others kept, under all prompts, these values; else the surrogate's,
    averaged over masks of the run. A loss is what the metric gets worse by.
    """
    if not 0 < len(names) <= MOST_IN_A_SET:
        raise ComponentError(f"losses are told of 1 to {MOST_IN_A_SET} components, not of {len(names)}.")
    bits = found.components.indices(names)
    parts = [t for k in range(len(bits) + 1) for t in combinations(range(len(bits)), k)]
    keep = found.responses.keep.cpu()
    others = torch.ones(keep.shape[1], dtype=torch.bool)
    others[list(bits)] = False
    whole = found.responses.met is None  # else a value is of the prompts that its mask met
    intact = keep[:, others].all(1).nonzero()[:, 0].tolist() if whole else []
    mean = found.responses.mean.cpu().double()
    known = {tuple((~keep[row, list(bits)]).nonzero()[:, 0].tolist()): float(mean[row]) for row in intact}
    measured = all(part in known for part in parts)
    value = known if measured else {part: _average(found, [bits[j] for j in part], list(bits)) for part in parts}
    sign = direction(found.circuit.evidence)
    cost = {frozenset(names[j] for j in part): sign * (value[()] - value[part]) for part in parts}
    return Losses(tuple(names), cost, found.responses.unit, measured)


def _average(found: Discovery, gone: list[int], inside: list[int]) -> float:
    keep = found.responses.keep[:_MASKS].clone()
    keep[:, inside] = True
    keep[:, gone] = False
    return float(found.predict(keep).double().mean())
