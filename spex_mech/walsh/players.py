"""Players for a coded design: which components each bit of the code keeps or ablates.

Coded masks are fair coins, so a code over all components leaves half of a model standing, which is far from where it
works. `random_blocks` stays near: most components are never touched, the others are dealt into blocks, and the blocks
are the players. What the masks then look like, for blocks that cover a share 2ρ of n components:

- Every coded mask keeps or ablates each block with probability ½ (exactly half of the 2^b masks of each group and delay
  ablate it), so a mask ablates the share ρ of the components on average, with standard deviation ``ρ / √blocks``.
- Over the draw of the blocks a component is ablated in a mask with probability ρ, and two components of different
  blocks with about ρ², as under independent masks that keep with probability 1 - ρ; two of one block go together.
- The polynomial is over blocks. The coefficient of one block is the mean effect of its components at once, with what
  they do among themselves inside it; sets of blocks are interactions between components of different blocks.
- A component that lies in no block has no coefficient; blocks of another seed leave out others. Each draw is a design
  of its own, with its own responses.
"""

import torch

from spex_mech.errors import DesignError
from spex_mech.walsh.hashing import uniform_bits


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
