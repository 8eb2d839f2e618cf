"""Coarse to fine: groups of components are ablated first, and only groups that carry weight are split.

A budget of masks tells a few hundred components apart, and a model has thousands. So the components are dealt into
blocks of neighbours, each ablated as one; blocks that carry weight are split, what carries none is left untouched from
then on, and so on down to single components, under one total budget. The last round is an ordinary run on what is left.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Any

from spex_mech.components import Component, ComponentSet, group
from spex_mech.errors import DesignError
from spex_mech.measuring.ask import Ask
from spex_mech.store.discovery import Discovery

Look = Callable[[ComponentSet, Ask], Discovery]
"""One run: components and what is asked of them → what was found."""
Block = tuple[Component, ...]

LEAST_BUDGET = 96
FAN = 4  # into how many parts a block is split, at least
FAINT = 0.05  # of the heaviest block's weight; what weighs less is left
SURE = 0.05  # q-value of the evidence on which a block whose parts weigh nothing stays a block
_MASKS_A_COMPONENT = 4  # in the last round, at least


@dataclass(frozen=True)
class Weights:
    """What a round found: by block, ``√(Σ F(S)²)`` over the sets that hold it; and the blocks there is evidence for."""

    weight: dict[Block, float]
    sure: frozenset[Block]

    def heavy(self, most: int) -> list[Block]:
        """The heaviest blocks in their order, at most so many."""
        least = FAINT * max(self.weight.values(), default=0.0)
        ranked = sorted(self.weight, key=lambda block: -self.weight[block])
        kept = {block for block in ranked[:most] if self.weight[block] > 0 and self.weight[block] >= least}
        return [block for block in self.weight if block in kept]


def narrow(components: ComponentSet, ask: Ask, look: Look) -> Discovery:
    """Run `look` from blocks down to single components, ``ask.budget`` masks in all.

    A block's weight is ``√(Σ_{S∋block} F(S)²)``. Those within a twentieth of the heaviest are split further, at most a
    quarter of the blocks of a round. A block for which there is evidence (q ≤ 0.05), and of whose parts none weighs
    anything, stays a block. Components of blocks without weight are never ablated again, so neighbours whose effects
    cancel exactly are lost, and so is what acts only together with parts that were left.

    Args:
        components: what could be ablated; groups among them are never split.
        ask: the budget is of all rounds together: at most half for blocks, the rest for the last round. The run folder
            is that of the last round; those before it are in ``round-1``, ``round-2`` … inside it.
        look: makes one run.

    Returns:
        The last round's `Discovery`, over the components that were left. Its record has ``"refined"``: the rounds, and
        the masks of all. Where no block carries weight, that of the round that said so.

    Raises:
        DesignError: a budget below 96 masks.
    """
    budget = ask.budget or 0  # told in rows, it has been turned into masks
    if budget < LEAST_BUDGET:
        raise DesignError(
            f"refine=True was given {budget:,} masks; several rounds need at least {LEAST_BUDGET}. Raise the budget."
        )
    width, rounds, frozen = min(max(budget // 6, 16), 256), list[dict[str, Any]](), list[Block]()
    each = budget // 4
    pending, spent = deal(components, width), 0
    parents: dict[Block, Block] = {}
    while is_more(pending, left=budget - spent) and spent + 2 * each <= budget:
        found = look(joined(pending + frozen), _round(ask, each, len(rounds) + 1))
        weights, spent = weigh_blocks(found, pending), spent + each
        heavy = weights.heavy(max(1, width // FAN))
        rounds.append(_told(found, pending + frozen, heavy, each))
        frozen += lost_parents(parents, heavy)
        if not heavy and not frozen:
            return _with_rounds(found, ask, rounds, len(components))
        pending, parents = split_blocks(heavy, width - len(frozen))
        parents = {part: block for part, block in parents.items() if block in weights.sure}
    pending = singles(pending, left=budget - spent)
    last = look(joined(pending + frozen), replace(ask, budget=budget - spent, refine=False))
    return _with_rounds(last, ask, rounds, len(components), budget - spent)


def is_more(pending: Sequence[Block], left: int) -> bool:
    """Whether there are blocks to split, and more components in them than the masks that are left tell apart."""
    return any(len(block) > 1 for block in pending) and sum(map(len, pending)) > left // _MASKS_A_COMPONENT


def deal(components: ComponentSet, width: int) -> list[Block]:
    """Blocks of neighbours of one layer and kind, as even as can be, at most `width` (more only where there are more
    layers and kinds); where few components are asked for, each by itself.

    >>> [len(block) for block in deal(ComponentSet.of("a0.h0, a0.h1, m0.n0, m0.n1, m0.n2, m0.n3"), 3)]
    [2, 2, 2]
    """
    cells = [tuple(cell) for _, cell in groupby(sorted(components), key=lambda c: (c.layer, c.kind, c.position))]
    size = math.ceil(len(components) / width)
    while sum(math.ceil(len(cell) / size) for cell in cells) > max(width, len(cells)):
        size += 1
    return [part for cell in cells for part in chunks(cell, math.ceil(len(cell) / size))]


def chunks(block: Block, parts: int) -> list[Block]:
    """A block in so many runs of neighbours whose lengths differ by one at most.

    >>> chunks((1, 2, 3, 4, 5), 2)
    [(1, 2), (3, 4, 5)]
    """
    ends = [len(block) * i // parts for i in range(parts + 1)]
    return [block[a:b] for a, b in pairwise(ends)]


def split_blocks(heavy: Sequence[Block], width: int) -> tuple[list[Block], dict[Block, Block]]:
    """Heavy blocks in as many parts as make `width` in all, two each at least; and which block each is a part of."""
    each = max(2, width // max(1, len(heavy)))
    parts, parents = list[Block](), dict[Block, Block]()
    for block in heavy:
        made = chunks(block, min(len(block), each))
        parts += made
        parents |= dict.fromkeys(made, block) if len(block) > 1 else {}
    return parts, parents


def singles(blocks: Sequence[Block], left: int) -> list[Block]:
    """Each component by itself, where the masks that are left tell so many apart; else the blocks."""
    few = sum(map(len, blocks)) <= left // _MASKS_A_COMPONENT
    return [(part,) for block in blocks for part in block] if few else list(blocks)


def lost_parents(parents: dict[Block, Block], heavy: Sequence[Block]) -> list[Block]:
    """Blocks that weighed something, of whose parts none does."""
    found = {parents[part] for part in heavy if part in parents}
    return [block for block in dict.fromkeys(parents.values()) if block not in found]


def weigh_blocks(found: Discovery, blocks: Sequence[Block]) -> Weights:
    """The weight of every block by the whole polynomial, and which blocks are in a set with q ≤ `SURE` (or without a
    q-value, all masks being known)."""
    strength, names = found.spectrum.strengths().tolist(), [as_one(block).name for block in blocks]
    sure = {
        name
        for interaction in found.circuit.interactions
        if interaction.q_value is None or interaction.q_value <= SURE
        for name in interaction.components
    }
    places = found.components.indices(names)
    weight = {block: strength[i] for block, i in zip(blocks, places, strict=True)}
    return Weights(weight, frozenset(b for b, name in zip(blocks, names, strict=True) if name in sure))


def as_one(block: Block) -> Component:
    """What ablates a block."""
    return block[0] if len(block) == 1 else group(block)


def joined(blocks: Sequence[Block]) -> ComponentSet:
    return ComponentSet(tuple(map(as_one, blocks)))


def _round(ask: Ask, masks: int, number: int) -> Ask:
    """What is asked of a round on blocks."""
    out = None if ask.folder is None else ask.folder / f"round-{number}"
    return replace(ask, budget=masks, refine=False, out=out)


def _told(found: Discovery, blocks: Sequence[Block], heavy: Sequence[Block], masks: int) -> dict[str, Any]:
    names = [as_one(block).name for block in heavy]
    return {"blocks": len(blocks), "masks": masks, "heldout_r2": found.heldout_r2, "heavy": names}


def _with_rounds(
    found: Discovery, ask: Ask, rounds: Sequence[dict[str, Any]], components: int, last: int = 0
) -> Discovery:
    """The result with the record of all rounds, saved once more with it."""
    masks = sum(told["masks"] for told in rounds) + last
    refined = {"components": components, "left": len(found.components), "masks": masks, "rounds": list(rounds)}
    found = replace(found, record={**found.record, "asked": ask.to_dict(), "refined": refined})
    if ask.folder is not None:
        found.save(ask.folder)
    return found
