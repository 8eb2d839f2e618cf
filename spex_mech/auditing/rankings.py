"""`Ranking`: components by score; of a spectrum, and by what does without one (a line, single ablation, pairs)."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Bool
from torch import Tensor

from spex_mech.auditing.faithfulness import ranked
from spex_mech.auditing.passes import Passes
from spex_mech.store.responses import Responses
from spex_mech.walsh.decoders.linear import Linear
from spex_mech.walsh.spectrum import Spectrum


@dataclass(frozen=True)
class Ranking:
    """Components by score: how much the metric loses without each, in its unit; positive ones help.

    `masks` is what it costs by itself; `note` says what it leaves out.
    """

    name: str
    scores: Mapping[str, float]
    masks: int
    note: str = ""

    def first(self, count: int, *, absolute: bool) -> tuple[str, ...]:
        """The `count` highest by score, or by its size."""
        return tuple(ranked(self.scores, absolute=absolute)[:count])


def spectrum_strengths(spectrum: Spectrum, names: tuple[str, ...]) -> dict[str, float]:
    """`Spectrum.strengths` by name."""
    return dict(zip(names, spectrum.strengths().tolist(), strict=True))


def marginal_effects(responses: Responses) -> dict[str, float]:
    """Mean of the metric with a component kept less that with it ablated, over the run's masks; 0 where it never is.

    Noisy, and blind to interactions; it says something of components that the polynomial has no term for.
    """
    keep, mean = responses.keep.double(), responses.mean.double()
    kept, gone = keep.sum(0), (1 - keep).sum(0)
    effect = (keep.T @ mean) / kept.clamp(min=1) - ((1 - keep).T @ mean) / gone.clamp(min=1)
    effect = torch.where((kept > 0) & (gone > 0), effect, 0.0)
    return dict(zip(responses.components.names, effect.tolist(), strict=True))


def single_ablation(passes: Passes, names: tuple[str, ...], name: str = "single ablation") -> Ranking:
    """``m(N) - m(N∖i)``: one component ablated at a time. With an engine that replaces by corrupt prompts' activations
    this is activation patching (Vig et al. 2020; Meng et al. 2022) in its noising direction."""
    keep = torch.cat([torch.ones(1, len(names), dtype=torch.bool), ~torch.eye(len(names), dtype=torch.bool)])
    values = passes.means(keep)
    return Ranking(name, dict(zip(names, (values[0] - values[1:]).tolist(), strict=True)), len(keep))


def pair_ablation(passes: Passes, single: Ranking, allowance: int) -> Ranking | None:
    """Joint ablation of pairs: a component's score is the largest ``m(N∖j) - m(N∖ij)`` over partners j, or its own.

    Where there are more pairs than the allowance has masks, pairs among the components with the largest single effects
    are taken; None where there is room for none.
    """
    names = tuple(single.scores)
    m = _how_many(len(names), allowance)
    if m < 2:
        return None
    chosen = sorted(names.index(name) for name in single.first(m, absolute=True))
    pairs = list(combinations(chosen, 2))
    keep = _pairs_gone(len(names), pairs)
    alone = list(single.scores.values())
    intact = float(passes.means(torch.ones(1, len(names), dtype=torch.bool))[0])
    scores = list(alone)
    for (i, j), value in zip(pairs, passes.means(keep).tolist(), strict=True):
        both = intact - value
        scores[i] = max(scores[i], both - alone[j], key=abs)
        scores[j] = max(scores[j], both - alone[i], key=abs)
    note = "" if m == len(names) else f"pairs among the {m} components with the largest single effects"
    return Ranking("pair ablation", dict(zip(names, scores, strict=True)), single.masks + len(keep), note)


def order_one(responses: Responses, seed: int) -> Ranking:
    """The coefficients of an order-1 regression on the run's own masks, as differences of kept and ablated."""
    spectrum = Linear().decode(responses.samples, seed=seed).spectrum
    slope = spectrum.basis.affine[1]
    scores = {name: slope * (spectrum.get(i) or 0.0) for i, name in enumerate(responses.components.names)}
    return Ranking("order-1 regression", scores, len(responses.keep))


def _how_many(n: int, allowance: int) -> int:
    """The largest m ≤ n with m(m-1)/2 ≤ allowance."""
    m = int((1 + (1 + 8 * max(0, allowance)) ** 0.5) / 2)
    return min(n, m)


def _pairs_gone(n: int, pairs: list[tuple[int, int]]) -> Bool[Tensor, "mask component"]:
    keep = torch.ones(len(pairs), n, dtype=torch.bool)
    for row, pair in enumerate(pairs):
        keep[row, list(pair)] = False
    return keep
