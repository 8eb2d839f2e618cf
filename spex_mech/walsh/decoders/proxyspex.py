"""`ProxySpex`: fit boosted trees to the responses, read their exact spectrum, refit its strongest sets.

Source: ProxySPEX, Butler et al. 2025 (arXiv 2505.17495). What is different here: trees are also fitted to what a line
leaves over, so that nearly additive functions lose nothing; how many sets are kept, and how far the refit may move from
the trees, is chosen by the cross-validated error of the **refit**, with trees, sets and coefficients fitted inside each
fold; a pruned polynomial wins where it is as good within a standard error; and R² is reported on masks set aside first.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spex_mech.errors import DecodeError
from spex_mech.walsh.decoders.lines_and_trees import PROXY_KINDS, LinesAndTrees, ProxyKind, add_spectra
from spex_mech.walsh.decoders.refit import nested_pair, noise_floor, prune, refit
from spex_mech.walsh.decoders.trees import Boosting
from spex_mech.walsh.decoding import Decoded, Samples, folds_of, judge, r_squared, split_masks
from spex_mech.walsh.spectrum import Basis, Spectrum

Mode = Literal["pruned", "refit", "near proxy"]
_SIZES = (25, 50, 100, 200, 400, 800, 1600)
_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class TreeChoice:
    """One way from trees to polynomial: which proxy, how the strongest sets are refitted, how many, how stiffly."""

    base: ProxyKind
    mode: Mode
    size: int
    ridge: float

    @property
    def complexity(self) -> tuple[bool, int]:
        """Sparser first: pruned before not, then by the number of sets."""
        return (self.mode != "pruned", self.size)


Tried = Mapping[TreeChoice, Float[Tensor, " mask"]]


@dataclass(frozen=True)
class ProxySpex:
    """The ProxySPEX decoder; any masks, of any keep-probability, will do.

    Attributes:
        heldout: share of the masks that nothing is fitted to or chosen by; R² is reported on them.
        folds: of the cross-validation that chooses among the refits.
        boosting: settings of the trees.
        most_sets: no polynomial has more.
    """

    heldout: float = 0.2
    folds: int = 4
    boosting: Boosting = Boosting()
    most_sets: int = 1600

    @property
    def name(self) -> str:
        return "proxyspex"

    @property
    def least_masks(self) -> int:
        """Fewer masks than this cannot be split into held-out masks and folds."""
        return 16

    def decode(self, samples: Samples, *, seed: int) -> Decoded:
        """See `Decoder`. Raises `DecodeError` below `least_masks` masks, or where fewer than five differ."""
        started = time.perf_counter()
        if len(samples.keep) < self.least_masks:
            raise DecodeError(
                f"proxyspex was given {len(samples.keep)} masks; it needs at least {self.least_masks} to hold some out "
                "and cross-validate on the rest. Raise the budget, or use 'exact' on few components."
            )
        basis = Basis.orthonormal(samples.keep_prob)
        fitting, held = split_masks(samples.groups, self.heldout, seed)
        unseen, truth = samples.keep[held].cpu(), samples.mean_values[held].cpu()
        fold = folds_of(samples, fitting, self.folds, seed, self.name)
        grown = self.grow(samples.take(fitting), fold, basis, seed)
        trials = self.try_all(grown)
        choice = trials.best()
        spectrum = self.polynomial(choice, grown, None)
        r2 = r_squared(truth, spectrum.evaluate(unseen))
        stats: dict[str, Any] = {
            "heldout_r2": r2,
            "proxy_heldout_r2": r_squared(truth, grown.predict(None, choice.base, unseen)),
            "linear_heldout_r2": r_squared(truth, grown.predict(None, "line", unseen)),
            "masks_fitted": len(fitting),
            "masks_heldout": len(held),
            "terms": len(spectrum),
            "choice": asdict(choice),
            "cross_validated": trials.r2_by_base(),
            "seconds": time.perf_counter() - started,
        }
        return Decoded(spectrum, judge(spectrum, r2), stats)

    def grow(self, samples: Samples, fold: Int[Tensor, " mask"], basis: Basis, seed: int) -> LinesAndTrees:
        """The proxies of some samples, to be fitted as they are asked for."""
        return LinesAndTrees(samples.keep.cpu(), samples.mean_values.cpu(), fold.cpu(), basis, self.boosting, seed)

    def try_all(self, grown: LinesAndTrees) -> "Trials":
        """Every choice, fitted without each fold in turn."""
        return Trials({number: self.try_fold(grown, number) for number in grown.folds}, grown)

    def try_fold(self, grown: LinesAndTrees, fold: int) -> Tried:
        """Every choice, fitted without one fold: its errors there."""
        return dict(self._trials(grown, fold))

    def polynomial(self, choice: TreeChoice, grown: LinesAndTrees, fold: int | None) -> Spectrum:
        """The polynomial of a choice: proxy, sets and coefficients from the masks outside a fold, or all."""
        rows = grown.rows(fold)
        return _build(choice, grown.polynomial(fold, choice.base), grown.keep[rows], grown.values[rows], grown.basis)

    def _trials(self, grown: LinesAndTrees, fold: int) -> Iterator[tuple[TreeChoice, Float[Tensor, " mask"]]]:
        """The errors on a fold of every choice fitted without it."""
        rows = grown.rows(fold)
        seen, unseen = (grown.keep[rows], grown.values[rows]), (grown.keep[~rows], grown.values[~rows])
        for base in PROXY_KINDS:
            proxy = grown.polynomial(fold, base)
            pruned = _build(TreeChoice(base, "pruned", 0, 0.0), proxy, *seen, grown.basis)
            yield TreeChoice(base, "pruned", 0, 0.0), pruned.evaluate(unseen[0]) - unseen[1]
            sizes = _sizes(len(proxy), min(self.most_sets, len(seen[0])))
            if not sizes:
                continue
            top = _strongest(proxy, sizes[-1])
            errors = nested_pair(
                seen, unseen, top.members, grown.basis, _RIDGES, _scale(top), sizes=sizes, prior=top.coefficients
            )
            modes: tuple[Mode, Mode] = ("refit", "near proxy")
            for mode, found in zip(modes, errors, strict=True):
                for number, ridge in enumerate(_RIDGES):
                    yield from (
                        (TreeChoice(base, mode, k, ridge), e) for k, e in zip(sizes, found[number], strict=True)
                    )


@dataclass(frozen=True, eq=False)
class Trials:
    """The errors of every choice on the masks of each fold, fitted without it."""

    errors: Mapping[int, Tried]
    grown: LinesAndTrees

    def best(self, without: int | None = None) -> TreeChoice:
        """The sparsest choice within a standard error of the least squared error over the folds, or all but one."""
        squared = self._squared(without)
        best = min(squared, key=lambda choice: float(squared[choice].mean()))
        floor = noise_floor(self.grown.values) ** 2

        def close(choice: TreeChoice) -> bool:
            gap = squared[choice] - squared[best]
            allowed = gap.std() / len(gap) ** 0.5 if choice.mode == "pruned" else 0.0
            return float(gap.mean()) <= max(float(allowed), 4 * floor)

        near = (c for c in squared if c == best or close(c))
        return min(near, key=lambda c: (c.complexity, float(squared[c].mean())))

    def unseen(self) -> Float[Tensor, " mask"]:
        """Predictions of every mask by a version that has not seen it, of a choice that it had no part in, or where one
        fold is all that was tried, of the choice that does best there."""
        out = torch.zeros(len(self.grown.values), dtype=torch.float64)
        for number in self.errors:
            rows = ~self.grown.rows(number)
            choice = self.best(without=number) if len(self.errors) > 1 else self.best()
            out[rows] = self.grown.values[rows] + self.errors[number][choice]
        return out

    def r2_by_base(self) -> dict[str, float]:
        """The cross-validated R² of each kind of proxy at its best choice."""
        squared = self._squared(None)
        spread = float(self.grown.values.var(correction=0)) or 1.0
        loss = {c: float(e.mean()) for c, e in squared.items()}
        return {
            base: 1 - min(loss[c] for c in loss if c.base == base) / spread for base in sorted({c.base for c in loss})
        }

    def _squared(self, without: int | None) -> dict[TreeChoice, Float[Tensor, " mask"]]:
        """Squared errors of the choices that every fold could try."""
        folds = [number for number in self.errors if number != without]
        common = set.intersection(*(set(self.errors[number]) for number in self.errors))
        ordered = [choice for choice in self.errors[folds[0]] if choice in common]
        return {c: torch.cat([self.errors[number][c] ** 2 for number in folds]) for c in ordered}


def _build(choice: TreeChoice, proxy: Spectrum, keep: Tensor, values: Tensor, basis: Basis) -> Spectrum:
    """The polynomial of a choice, fitted to all masks given."""
    if choice.mode == "pruned":
        return _pruned(proxy, keep, values, basis)
    top = _strongest(proxy, choice.size)
    scale = _scale(top)
    if choice.mode == "refit":
        return refit(keep, values, top.members, basis, ridge=choice.ridge, scale=scale)
    correction = refit(keep, values - top.evaluate(keep), top.members, basis, ridge=choice.ridge, scale=scale)
    return add_spectra(top, correction)


def _pruned(proxy: Spectrum, keep: Bool[Tensor, "mask component"], values: Tensor, basis: Basis) -> Spectrum:
    """Only sets that are significant among all that the proxy named."""
    size = max(10, min(200, len(keep) // 3))
    return prune(keep, values, _strongest(proxy, size).members, basis, tested=max(1, len(proxy)), ridge=1e-9)


def _strongest(proxy: Spectrum, size: int) -> Spectrum:
    """The empty set and the `size` strongest others, strongest first."""
    strength = proxy.coefficients.abs().masked_fill(proxy.orders == 0, torch.inf)
    order = strength.argsort(descending=True, stable=True)
    top = proxy.select(order[: size + 1])
    return top if 0 in top.orders.tolist() else add_spectra(Spectrum.from_terms(proxy.n, {(): 0.0}, proxy.basis), top)


def _scale(top: Spectrum) -> Float[Tensor, " set"]:
    """How large each coefficient is expected to be, from the proxy: its own size there, damped."""
    strength = top.coefficients.abs()
    largest = strength[top.orders > 0].max() if (top.orders > 0).any() else torch.ones(())
    return (strength / largest.clamp(min=1e-300)).clamp(min=1e-6).sqrt()


def _sizes(terms: int, most: int) -> list[int]:
    """How many sets to try: a few sizes up to what the proxy has."""
    return sorted({min(size, terms - 1) for size in _SIZES if size <= most}) if terms > 1 else []
