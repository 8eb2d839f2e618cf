"""The joint decoder: several proxies, each judged where it was not fitted, stacked, and read out as one polynomial.

1. **Parts.** A Lasso line, boosted trees (on the values, and on what the line leaves), matching pursuit, and neural
   ensembles over all outputs are fitted without each fold of the masks in turn, so every mask has a prediction of every
   part that has not seen it.
2. **Stack.** Non-negative weights by least squares on those predictions (Wolpert 1992; Breiman 1996). A part that is a
   sparse polynomial already wins alone where it is as good as the stack within a standard error.
3. **Reading out.** The stack is a function that costs nothing to ask. Matching pursuit on its values under fresh masks
   gives a polynomial, with as many sets as it takes to lose less than a twentieth of what the stack does not know.
4. **Correction.** ``ĉ_S = c_S + mean_m (f(m) - g₋(m)) φ_S(m)``, where g₋ is the stack that has not seen mask m, is
   unbiased whatever the stack is, since the basis is orthonormal under the masks; its spread over the masks is the
   standard error. The polynomial is moved by the part of a correction that is beyond what chance alone would give.

The held-out masks take part in none of this: R² is reported on them.
"""

import math
import time
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from spex_mech.errors import DecodeError
from spex_mech.walsh.decoding import Decoded, Samples, fold_masks, judge, r_squared, split_masks
from spex_mech.walsh.design import MaskDesign
from spex_mech.walsh.neural import Network
from spex_mech.walsh.parts import COARSE, FINE, LinePart, NeuralPart, Part, ProxyPart, PursuitPart, TreePart, fit_parts
from spex_mech.walsh.proxy import ProxySpex
from spex_mech.walsh.pursuit import Pursuit
from spex_mech.walsh.refit import fit
from spex_mech.walsh.spectrum import Basis, Spectrum, monomials, pad_sets
from spex_mech.walsh.stack import Stack
from spex_mech.walsh.trees import Boosting

_LOST = 0.05  # of what the stack does not know: what reading it out may lose
_FREE_BITS = 1 << 21  # keep bits of the masks that the stack is asked under to read it out
_MOST_FREE, _LEAST_FREE = 1 << 13, 1 << 12


@dataclass(frozen=True)
class Joint:
    """The joint decoder; any masks, of any keep-probability, will do.

    Attributes:
        heldout: share of the masks that nothing is fitted to or chosen by.
        boosting, network: settings of the trees and of the neural ensembles.
        lassos: sparsity penalties, one neural ensemble each; none: no neural proxy.
        most_sets: no polynomial has more.
    """

    heldout: float = 0.1
    boosting: Boosting = Boosting()
    network: Network = Network()
    lassos: tuple[float, ...] = (3e-3,)
    most_sets: int = 1600

    @property
    def name(self) -> str:
        return "joint"

    @property
    def least_masks(self) -> int:
        """Fewer masks than this cannot be split into held-out masks and folds."""
        return 16

    def decode(self, samples: Samples, *, seed: int) -> Decoded:
        """See `Decoder`. `stats["parts"]` has each part's cross-fitted R², its weight in the stack, and its seconds.

        Raises `DecodeError` below `least_masks` masks, or where every mask is the same.
        """
        started = time.perf_counter()
        if len(samples.keep) < self.least_masks:
            raise DecodeError(
                f"joint was given {len(samples.keep)} masks; it needs at least {self.least_masks} to hold some out and "
                "cross-fit on the rest. Raise the budget, or use 'exact' on few components."
            )
        if not 0 < samples.keep_prob < 1:
            raise DecodeError("every mask keeps the same components, so no effect can be told from the mean.")
        basis = Basis.orthonormal(samples.keep_prob)
        groups = samples.groups
        fitting, held = split_masks(groups, self.heldout, seed)
        fold = fold_masks(groups[fitting.to(groups.device)], FINE, seed)
        known = samples.take(fitting)
        parts = fit_parts(self._kinds(), known, fold, basis, seed)
        stack = Stack.of(parts, known.mean_values)
        polynomial = self._polynomial(stack, known, basis, seed)
        r2 = r_squared(samples.mean_values[held], polynomial.evaluate(samples.keep[held]))
        stats: dict[str, Any] = {
            "heldout_r2": r2,
            "masks_fitted": len(fitting),
            "masks_heldout": len(held),
            "terms": len(polynomial),
            "winner": stack.winner,
            "stack_r2": stack.r2,
            "stack_heldout_r2": r_squared(samples.mean_values[held], stack.predict(samples.keep[held])),
            "parts": stack.table(),
            "seconds": time.perf_counter() - started,
        }
        return Decoded(polynomial, judge(polynomial, r2), stats)

    def _kinds(self) -> list[Part]:
        nets = [NeuralPart(f"neural {lasso:g}", self.network, lasso) for lasso in self.lassos]
        trees = [TreePart("trees", self.boosting, line=False), TreePart("line+trees", self.boosting, line=True)]
        proxy = ProxyPart("proxyspex", ProxySpex(boosting=self.boosting, folds=COARSE))
        return [PursuitPart("pursuit", Pursuit()), proxy, LinePart("line"), *trees, *nets]

    def _polynomial(self, stack: Stack, known: Samples, basis: Basis, seed: int) -> Spectrum:
        if stack.r2 <= 0:  # no better than the mean
            return Spectrum.from_terms(known.n, {(): float(known.mean_values.mean())}, basis)
        if stack.polynomial is not None:
            return stack.polynomial
        read = self._read(stack, known, basis, seed)
        return _corrected(read, known.keep, known.mean_values - stack.unseen)

    def _read(self, stack: Stack, known: Samples, basis: Basis, seed: int) -> Spectrum:
        """The stack as a polynomial, as long as it takes."""
        n = known.n
        count = max(_LEAST_FREE, min(_MOST_FREE, _FREE_BITS // n))
        keep = _fresh(known, count + count // 4, seed).to(known.keep.device)
        values = stack.predict(keep).to(keep.device)
        asked, check = slice(0, count), slice(count, None)
        allowed = _LOST * (1 - max(0.0, stack.r2))
        read = Spectrum.from_terms(n, {(): float(values.mean())}, basis)
        search = Pursuit(self.most_sets, false_sets=math.inf, share=0.5)
        for sets in search.grow(keep[asked], values[asked], basis):
            read = fit(keep[asked], values[asked], pad_sets(sets), basis, ridge=1e-6)
            if 1 - r_squared(values[check], read.evaluate(keep[check])) <= allowed:
                break
        return read


def _fresh(known: Samples, count: int, seed: int) -> Bool[Tensor, "mask component"]:
    """Masks of the same keep-probabilities that nobody has to run a model on."""
    design = known.design
    probabilities = design.keep_probs if design is not None and design.keep_probs else (known.keep_prob,)
    return MaskDesign.stratified(known.n, count, probabilities, seed + 1_000_003).keep()


def _corrected(read: Spectrum, keep: Tensor, missed: Float[Tensor, " mask"]) -> Spectrum:
    """Coefficients moved towards what the masks say beside the stack, with standard errors; see the module's text."""
    phi = monomials(keep, read.members.to(keep.device), read.basis)
    missed = missed.to(keep.device) - missed.mean()
    products = phi * missed[:, None]
    gap = products.mean(0)
    error = products.std(0) / len(keep) ** 0.5
    chance = 2 * math.log(max(2, len(read)))  # squared z-score that the largest of so many reaches by chance
    beyond = (1 - chance * (error / gap).square()).clamp(min=0).nan_to_num(0.0)
    moved = (gap * beyond).cpu()
    moved[read.orders == 0] = 0.0
    return Spectrum(read.n, read.members, read.coefficients + moved, read.basis, error.cpu())
