"""From what is asked to the masks that will be asked."""

from spex_mech.components import ComponentSet
from spex_mech.errors import DesignError
from spex_mech.measuring.ask import AUTO, CODED, Ask
from spex_mech.measuring.crossing import Crossing
from spex_mech.walsh.masks.design import MAX_COMPLETE, MaskDesign

AROUND = {0.5: (0.5, 0.7), 0.7: (0.5, 0.8), 0.8: (0.5, 0.9), 0.9: (0.7, 0.95), 0.95: (0.9, 0.95)}
"""What "auto" draws masks with, by the keep-probability at which the metric is spread most: strata to either side."""
DEFAULT_KEEP = 0.8  # unless a pilot says clearly otherwise; docs/performance.md has the measurements


def choose_design(components: ComponentSet, ask: Ask, crossing: Crossing) -> MaskDesign:
    """The masks that keep-probability, decoder and shared layers ask for, as many as there are rows for; all 2^n where
    they fit. Where a mask meets one prompt of several, some of the masks are asked again (`Crossing.again`).

    For "auto" they are drawn around `DEFAULT_KEEP`, which a pilot may change. Raises `DesignError`.
    """
    drawn = _drawn(len(components), ask, crossing.masks, crossed=crossing.crossed)
    return _share_early(drawn.asking_again(crossing.again), components, ask.shared_layers)


def _drawn(n: int, ask: Ask, budget: int, *, crossed: bool) -> MaskDesign:
    keep_prob, decoder, seed = ask.keep_prob, ask.decoder, ask.seed
    if not crossed:
        decoder = "joint" if decoder == "auto" else decoder  # which all 2^n masks are no reason to change
    if n <= MAX_COMPLETE and (decoder == "exact" or (decoder == "auto" and keep_prob != CODED and 1 << n <= budget)):
        if 1 << n > budget:
            raise DesignError(
                f"decoder 'exact' needs all 2^{n} = {1 << n:,} masks of {n} components; the budget is {budget:,}. "
                "Raise it, take fewer components or groups, or use decoder 'joint', which needs no full set."
            )
        return MaskDesign.complete(n)
    if keep_prob == CODED or decoder == "spex":
        if keep_prob not in (CODED, 0.5):
            raise DesignError(f"decoder 'spex' reads coded masks, which are fair coins; keep_prob={keep_prob!r} not.")
        return MaskDesign.coded(n, budget=budget, seed=seed)
    if keep_prob == AUTO:
        return MaskDesign.stratified(n, budget, AROUND[DEFAULT_KEEP], seed)
    if isinstance(keep_prob, tuple):
        return MaskDesign.stratified(n, budget, keep_prob, seed)
    return MaskDesign.bernoulli(n, budget, float(keep_prob), seed)  # type: ignore[arg-type]


def _share_early(design: MaskDesign, components: ComponentSet, run: int) -> MaskDesign:
    """The design with the bits of the earlier half of the touched layers drawn once for `run` masks in a row.

    Raises `DesignError` where masks are not drawn (complete, coded), or all components are in one layer.
    """
    if run == 1:
        return design
    layers = sorted({atom.layer for component in components for atom in component.atoms})
    early = set(layers[: (len(layers) + 1) // 2])
    inside = [i for i, component in enumerate(components) if all(atom.layer in early for atom in component.atoms)]
    if len(layers) < 2 or not inside:
        raise DesignError(
            f"shared_layers={run} needs components in several layers; these are in {len(layers)}. Leave it at 1."
        )
    return design.sharing(inside, run)
