"""What an edit does to the tensor at a site: replace some parts of it, or whole rows."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spex_mech.ablation.subject import Edit


def part_edit(kept: Bool[Tensor, "row pos part"], reference: Float[Tensor, "row pos feature"], parts: int) -> Edit:
    """Of each row's parts at each position, keep the kept and take the others from `reference`."""

    def edit(x: Tensor) -> Tensor:
        here = kept.to(x.device, non_blocking=True)[..., None]
        other = reference.to(x.device, x.dtype).expand(-1, -1, x.shape[2])
        # where, not a product: what is replaced may be infinite or NaN
        return torch.where(here, x.unflatten(2, (parts, -1)), other.unflatten(2, (parts, -1))).flatten(2)

    return edit


@dataclass(frozen=True, eq=False)
class RowEdit:
    """Replace the rows where `kept` (on the CPU) is False by `reference`, so that a backend need not compute them.

    Called on all rows, on one row that stands for all, or on the rows of `inputs` alone.

    >>> edit = RowEdit(torch.tensor([True, False, True]), torch.zeros(1, 1, 2))
    >>> edit(torch.ones(2, 1, 2)).equal(edit(torch.ones(3, 1, 2)))
    True
    """

    kept: Bool[Tensor, " row"]
    reference: Float[Tensor, "row pos feature"]

    @cached_property
    def inputs(self) -> Int[Tensor, " kept"]:
        """The rows that must be computed; row 0 where none must, since not every module takes an empty batch."""
        rows = self.kept.nonzero()[:, 0]
        return rows if len(rows) else torch.zeros(1, dtype=torch.long)

    def __call__(self, x: Float[Tensor, "some pos feature"]) -> Float[Tensor, "row pos feature"]:
        rows = len(self.kept)
        reference = self.reference.to(x.device, x.dtype)
        if len(x) == rows:  # where, not a product: what is replaced may be infinite or NaN
            return torch.where(self.kept.to(x.device)[:, None, None], x, reference)
        whole = reference.expand(rows, *x.shape[1:]).clone()
        whole[self.kept.nonzero()[:, 0].to(x.device)] = x if self.kept.any() else x[:0]
        return whole
