"""From rows of single outputs to the headline: the rows' values less what is their output's own.

``y - d(z, p)``, with d what fits that have not seen the mask say output p has beside the headline, has the headline as
its mean over outputs whatever d is, since d is nothing over outputs: a control variate (Glynn & Szechtman 2002). The
better d, the less noise is left for all other learners, for the stack and for R².
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from scipy.optimize import nnls
from torch import Tensor

from spex_mech.walsh.decoding import Samples
from spex_mech.walsh.incomplete import of_rows
from spex_mech.walsh.joint.base_learners import FittedLearner


@dataclass(frozen=True, eq=False)
class RowSplit:
    """Rows that are fitted to, each with its fold, and rows that are held out; masks stay whole."""

    fitting: Int[Tensor, " fit"]
    held: Int[Tensor, " heldout"]
    fold: Int[Tensor, " fit"]

    def of_rows(self, mask: Int[Tensor, " row"]) -> "RowSplit":
        """The split of masks as one of their rows."""
        fold = torch.zeros(int(mask.max()) + 1, dtype=torch.long)
        fold[self.fitting] = self.fold
        fitting = of_rows(self.fitting, mask)
        return RowSplit(fitting, of_rows(self.held, mask), fold[mask[fitting]])


def headline_samples(rows: Samples, split: RowSplit, processes: Sequence[FittedLearner]) -> Samples:
    """The rows' values less what is their output's own: by out-of-fold predictions of the rows fitted to, and of the
    held ones by fits to those."""
    known, unknown = rows.take(split.fitting), rows.take(split.held)
    columns = torch.stack([learner.own_out_of_fold for learner in processes], 1)
    left = known.values[:, 0].cpu().double() - torch.stack([p.out_of_fold.cpu() for p in processes], 1).mean(1)
    weights = torch.from_numpy(nnls(columns.numpy(), left.numpy())[0])
    own = torch.zeros(len(rows.keep), dtype=torch.float64)
    own[split.fitting] = columns @ weights
    met = unknown.met[:, 0]  # type: ignore[index]
    own[split.held] = sum(w * p.own(unknown.keep, met) for w, p in zip(weights, processes, strict=True))
    values = rows.values.double() - own.to(rows.values.device)[:, None]
    return Samples(rows.keep, values, rows.design)
