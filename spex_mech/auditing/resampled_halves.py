"""Would other masks or prompts say the same? Refits to halves of the run's own; spends no forward pass."""

import math
from dataclasses import replace

import torch

from spex_mech.auditing.case import RunCase
from spex_mech.auditing.findings import StabilityRow
from spex_mech.auditing.passes import seed_of
from spex_mech.errors import DecodeError
from spex_mech.walsh.certainty.stability import stability
from spex_mech.walsh.masks.design import MaskDesign

RESAMPLES = 100  # the fewest that Meloux et al. 2025 accept
POOL = 128  # of the strongest sets are refitted to halves


def try_stability(case: RunCase) -> tuple[StabilityRow, ...]:
    """Refits of the strongest sets to halves of the run's masks, and of its prompts; no forward pass is spent."""
    spectrum, found = case.polynomial.sorted(), list[StabilityRow]()
    strongest = (spectrum.orders > 0).nonzero()[:POOL, 0]
    if not len(strongest):
        return ()
    chosen = torch.zeros(len(spectrum), dtype=torch.bool)
    chosen[strongest] = True
    responses = case.found.responses
    rest = spectrum.select(~chosen & (spectrum.orders > 0)).evaluate(responses.keep)
    values = responses.values.double() - rest[:, None].to(responses.values.device)
    if responses.met is not None:
        case.skipped.append("stability over prompts (a mask met some of them, so other prompts are other masks too)")
    for over in ("masks", "prompts") if responses.met is None else ("masks",):
        design = MaskDesign.from_dict(responses.provenance["design"]) if "design" in responses.provenance else None
        left = values.to(responses.values.dtype)
        samples = replace(responses.samples, values=left, design=_if_drawn(design))
        try:
            again = stability(
                samples, spectrum.members[strongest], resamples=RESAMPLES, seed=seed_of(case.seed, "halves"),
                over="masks" if over == "masks" else "outputs",
            )  # fmt: skip
        except DecodeError:  # one prompt, or too few masks to halve
            continue
        jaccard, nodes = (None if math.isnan(x) else x for x in (again.jaccard, again.node_jaccard))
        found.append(StabilityRow(over, RESAMPLES, jaccard, nodes, again.method))
    return tuple(found)


def _if_drawn(design: MaskDesign | None) -> MaskDesign | None:
    return design if design is not None and design.kind in ("bernoulli", "stratified") else None
