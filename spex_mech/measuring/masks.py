"""From a budget and a keep-probability to the masks that will be asked."""

from collections.abc import Sequence

from spex_mech.components import ComponentSet
from spex_mech.errors import DesignError
from spex_mech.walsh.masks.design import MAX_COMPLETE, MaskDesign

KeepProb = float | Sequence[float] | str
AUTO = "auto"
AROUND = {0.5: (0.5, 0.7), 0.7: (0.5, 0.8), 0.8: (0.5, 0.9), 0.9: (0.7, 0.95), 0.95: (0.9, 0.95)}
"""What "auto" draws masks with, by the keep-probability at which the metric is spread most: strata to either side."""
DEFAULT_KEEP = 0.8  # unless a pilot says clearly otherwise; docs/performance.md has the measurements


def choose_design(n: int, budget: int, keep: KeepProb, decoder: str, seed: int) -> MaskDesign:
    """The masks that a budget and a keep-probability ask for; all 2^n where they fit and nothing forbids it.

    For "auto" they are drawn around `DEFAULT_KEEP`, which a pilot may change.
    """
    if n <= MAX_COMPLETE and (decoder == "exact" or (decoder == "auto" and keep != "coded" and 1 << n <= budget)):
        if 1 << n > budget:
            raise DesignError(
                f"decoder 'exact' needs all 2^{n} = {1 << n:,} masks of {n} components; the budget is {budget:,}. "
                "Raise it, take fewer components or groups, or use decoder 'joint', which needs no full set."
            )
        return MaskDesign.complete(n)
    if keep == "coded" or decoder == "spex":
        if keep not in ("coded", 0.5):
            raise DesignError(f"decoder 'spex' reads coded masks, which are fair coins; keep={keep!r} is not.")
        return MaskDesign.coded(n, budget=budget, seed=seed)
    if keep == AUTO:
        return MaskDesign.stratified(n, budget, AROUND[DEFAULT_KEEP], seed)
    if isinstance(keep, str):
        raise DesignError(
            f"keep={keep!r} is not a keep-probability; give a number such as 0.9, several, 'auto' or 'coded'."
        )
    if isinstance(keep, float | int):
        return MaskDesign.bernoulli(n, budget, keep, seed)
    return MaskDesign.stratified(n, budget, keep, seed)


def share_early(design: MaskDesign, components: ComponentSet, share: int) -> MaskDesign:
    """The design with the bits of the earlier half of the touched layers drawn once for `share` masks in a row.

    Raises `DesignError` where masks are not drawn (complete, coded), or all components are in one layer.
    """
    if share == 1:
        return design
    layers = sorted({atom.layer for component in components for atom in component.atoms})
    early = set(layers[: (len(layers) + 1) // 2])
    inside = [i for i, component in enumerate(components) if all(atom.layer in early for atom in component.atoms)]
    if len(layers) < 2 or not inside:
        raise DesignError(f"share={share} needs components in several layers; these are in {len(layers)}.")
    return design.sharing(inside, share)
