"""Players for a coded design: which components each bit of the code keeps or ablates.

Coded masks are fair coins, so a code over all components leaves half of a model standing, which is far from where it
works. `random_blocks` stays near: most components are never touched, the others are dealt into blocks, and the blocks
are the players. What the masks then look like, for blocks that cover a share 2ρ of n components:

- Every coded mask keeps or ablates each block with probability ½ (exactly half of the 2^b masks of each group and delay
  ablate it), so a mask ablates the share ρ of the components on average, with standard deviation ``ρ / √blocks``.
- Over the draw of the blocks a component is ablated in a mask with probability ρ, and two components of different
  blocks with about ρ², as under independent masks that keep with probability 1 - ρ; two of one block go together.
- The polynomial is over blocks. In the components' own Walsh coefficients F, the coefficient of a set 𝓑 of blocks is
  ``Σ_T F(T)`` over all sets T that have an odd number of components in every block of 𝓑 and an even one in every other
  block, whatever T has outside the blocks, since those are kept. So one block's coefficient is the sum of its
  components' main effects and of all they do among themselves in odd numbers, and two blocks' is the sum of all pairs
  across them, and so on (`of_blocks`).
- Its variance over the masks' noise is ``σ² / N`` for N coded masks and a noise of variance σ² (the coded masks are
  orthogonal to each other's sets), as for any coded player; the spectrum's standard errors say it.
- Over the draw of the blocks it is a poor estimate of one component: with s components a block and an additive function
  with main effects w, the coefficient of the block that holds i is ``w_i`` plus s - 1 others, drawn without
  replacement: on average ``w_i + (s - 1) w̄``, with variance ``(s - 1) (1 - (s - 1)/(n - 1)) S²``, S² their variance.
  More masks do not lower it, only more draws do.
- A component that lies in no block has no coefficient; blocks of another seed leave out others. Each draw is a design
  of its own, with its own responses.

Such a polynomial answers the question of its own masks very well, since they leave most of a model at work; it says
little of masks that are drawn otherwise (measured on real models, docs/performance.md).
"""

from collections.abc import Sequence

import torch

from spex_mech.errors import DesignError
from spex_mech.walsh.masks.hashing import uniform_bits
from spex_mech.walsh.spectrum import Basis, Spectrum


def random_blocks(n: int, blocks: int, ablated: float = 0.1, seed: int = 0) -> tuple[tuple[int, ...], ...]:
    """Disjoint random blocks that hold ``2 · ablated · n`` of n components, in sizes that differ by at most one.

    Under fair coins for the blocks, a mask ablates the share `ablated` of all components on average.

    Args:
        n: number of components.
        blocks: how many players; at least three, which is what the smallest code has.
        ablated: mean share of ablated components, above 0 and at most ½ (then the blocks hold all components).
        seed: of the draw; the same numbers on every machine.

    Raises `DesignError` where the share is out of range, or too small for one component a block.

    >>> random_blocks(20, 4, 0.1, seed=1)
    ((19,), (9,), (16,), (17,))
    """
    if not 0 < ablated <= 0.5:
        raise DesignError(f"a share of ablated components lies above 0 and is at most 0.5 here, not {ablated}.")
    touched = round(2 * ablated * n)
    if not 3 <= blocks <= touched:
        raise DesignError(
            f"{blocks:,} blocks cannot be made of {touched:,} components, the {2 * ablated:.0%} of {n:,} that masks "
            f"must reach to ablate {ablated:.0%} on average. Take 3 to {touched:,} blocks, or a larger share."
        )
    drawn = uniform_bits(seed, torch.zeros(1, dtype=torch.long), n)[0].argsort(stable=True)[:touched]
    return tuple(tuple(sorted(drawn[block::blocks].tolist())) for block in range(blocks))


def of_blocks(spectrum: Spectrum, blocks: Sequence[Sequence[int]]) -> Spectrum:
    """What a polynomial over components is over blocks of them, all other components being kept; exact.

    ``F(𝓑) = Σ_T F(T)`` over the sets T with an odd number of components in the blocks of 𝓑 and an even number in every
    other block: what a code over these blocks estimates. Rewritten in the Walsh basis, in the unit of `spectrum`.

    Raises `DesignError` where a component is in two blocks.

    >>> pairs = Spectrum.from_terms(4, {(0,): 1.0, (1,): 2.0, (0, 1): 3.0, (0, 2): 4.0})
    >>> dict(of_blocks(pairs, [(0, 1), (2,)]).terms())
    {(): 3.0, (0,): 3.0, (0, 1): 4.0}
    """
    owner = {i: number for number, block in enumerate(blocks) for i in block}
    if len(owner) < sum(len(block) for block in blocks):
        raise DesignError("blocks share a component, so a mask cannot keep the one and ablate the other.")
    summed: dict[tuple[int, ...], float] = {}
    for members, coefficient in spectrum.rewrite(Basis()).terms():
        odd: set[int] = set()
        for i in members:
            odd ^= {owner[i]} if i in owner else set()
        key = tuple(sorted(odd))
        summed[key] = summed.get(key, 0.0) + coefficient
    return Spectrum.from_terms(len(blocks), dict(sorted(summed.items())))
