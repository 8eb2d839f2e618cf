"""`PromptDesign`: which prompts a mask meets, where it does not meet them all; a value made of integers and a seed.

What is paid for is a row, one prompt under one mask, and a function of many components is known better from many masks
under a few prompts each than from few masks under all of them. The prompts are dealt like cards: all P of them are
shuffled, every mask takes the next b, and when the pack is through it is taken again from the top, or shuffled anew
where no mask holds cards of both (every ``P / gcd(P, b)`` masks). So the prompts of a mask differ, after any number of
masks each prompt was met by as many as any other up to one, and which prompts meet under one mask is up to the shuffle.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from spex_mech.errors import DesignError
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.masks.hashing import uniform_bits

_STREAM = 1 << 62  # added to the seed: the shuffles have nothing to do with the keep bits of the same seed


@dataclass(frozen=True)
class PromptDesign:
    """Each of `n_masks` masks meets `per_mask` of `prompts` prompts.

    The last `again` masks are the first ones once more (`MaskDesign.again`); they meet the `per_mask` prompts that come
    after those of the first time, so none of them again while ``2 per_mask <= prompts``. Over the whole design each
    prompt is met by as many masks as any other up to one, or two where `again` is no multiple of `block`.
    """

    prompts: int
    per_mask: int
    n_masks: int
    again: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.per_mask < self.prompts or self.n_masks < 1 or not 0 <= self.again <= self.n_masks // 2:
            raise DesignError(
                f"{self.per_mask:,} of {self.prompts:,} prompts a mask, {self.n_masks:,} masks and {self.again:,} of "
                "them again were asked for; a mask meets at least one prompt and not all of them, and at most half of "
                "the masks are asked again."
            )

    @classmethod
    def beside(cls, design: MaskDesign, prompts: int, per_mask: int) -> "PromptDesign":
        """The prompts for the masks of a design, by its own seed."""
        return cls(prompts, per_mask, design.n_masks, design.again, design.seed)

    @property
    def block(self) -> int:
        """After so many masks the prompts are shuffled anew, each having been met as often as any other."""
        return self.prompts // math.gcd(self.prompts, self.per_mask)

    def met(
        self, start: int = 0, stop: int | None = None, device: torch.device | str = "cpu"
    ) -> Int[Tensor, "mask slot"]:
        """The prompts of masks `start` to `stop` (all by default; `stop` may lie behind the last), ascending in a row.

        >>> PromptDesign(prompts=3, per_mask=2, n_masks=3).met().flatten().bincount().tolist()
        [2, 2, 2]
        """
        stop = self.n_masks if stop is None else min(stop, self.n_masks)
        if not 0 <= start <= stop:
            raise DesignError(f"masks {start:,} to {stop:,} were asked of prompts for masks 0 to {self.n_masks:,}.")
        row, first = torch.arange(start, stop, device=device), self.n_masks - self.again
        mask, turn = torch.where(row < first, row, row - first), (row >= first).long()
        which, here = (mask // self.block).unique(return_inverse=True)
        order = uniform_bits(self.seed + _STREAM, which, self.prompts).argsort(dim=1, stable=True)
        place = (mask % self.block + turn)[:, None] * self.per_mask + torch.arange(self.per_mask, device=device)
        return order[here[:, None], place % self.prompts].sort(1).values

    def to_dict(self) -> dict[str, Any]:
        """The integers and the seed, for a file; `from_dict` reads them back."""
        return {
            "prompts": self.prompts, "per_mask": self.per_mask, "n_masks": self.n_masks, "again": self.again,
            "seed": self.seed,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "PromptDesign":
        """The design that `to_dict` wrote; raises `DesignError` on anything else."""
        try:
            return cls(*(int(record[name]) for name in ("prompts", "per_mask", "n_masks", "again", "seed")))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise (
                error if isinstance(error, DesignError) else DesignError(f"these are no prompts of masks: {error!r}.")
            ) from error
