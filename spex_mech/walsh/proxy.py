"""`ProxySpex`: fit boosted trees to the responses, read their exact spectrum, refit its strongest sets.

Source: ProxySPEX, Butler et al. 2025 (arXiv 2505.17495). What is different here: trees are also fitted to what a line
leaves over, so that nearly additive functions lose nothing; how many sets are kept, and how far the refit may move from
the trees, is chosen by the cross-validated error of the **refit**, with trees, sets and coefficients fitted inside each
fold; a pruned polynomial wins where it is as good within a standard error; and R² is reported on masks set aside first.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spex_mech.errors import DecodeError
from spex_mech.walsh.decoding import Decoded, Samples, fold_masks, judge, r_squared, split_masks
from spex_mech.walsh.refit import fit, nested_errors, noise_floor, prune
from spex_mech.walsh.spectrum import Basis, Spectrum, merge_sets, pad_sets
from spex_mech.walsh.trees import Boosting

Base = Literal["line", "trees", "line+trees"]
_SIZES = (25, 50, 100, 200, 400, 800, 1600)
_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Choice:
    """One way from trees to polynomial: which proxy, how the strongest sets are refitted, how many, how stiffly."""

    base: Base
    mode: Literal["pruned", "refit", "near proxy"]
    size: int
    ridge: float

    @property
    def complexity(self) -> tuple[bool, int]:
        """Sparser first: pruned before not, then by the number of sets."""
        return (self.mode != "pruned", self.size)


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
        """See `Decoder`. Raises `DecodeError` below `least_masks` masks."""
        started = time.perf_counter()
        if len(samples.keep) < self.least_masks:
            raise DecodeError(
                f"proxyspex was given {len(samples.keep)} masks; it needs at least {self.least_masks} to hold some out "
                "and cross-validate on the rest. Raise the budget, or use 'exact' on few components."
            )
        basis = Basis.orthonormal(samples.keep_prob)
        fitting, held = split_masks(samples.groups, self.heldout, seed)
        keep, values = samples.keep[fitting].cpu(), samples.mean_values[fitting].cpu()
        unseen, truth = samples.keep[held].cpu(), samples.mean_values[held].cpu()
        fold = fold_masks(samples.groups[fitting.to(samples.groups.device)], self.folds, seed)
        choice, errors = self.choose(keep, values, fold, basis, seed)
        proxies = {base: self._proxy(base, keep, values, basis, seed) for base in ("line", choice.base)}
        spectrum = self._build(choice, proxies[choice.base], keep, values, basis)
        r2 = r_squared(truth, spectrum.evaluate(unseen))
        stats: dict[str, Any] = {
            "heldout_r2": r2,
            "proxy_heldout_r2": r_squared(truth, proxies[choice.base].evaluate(unseen)),
            "linear_heldout_r2": r_squared(truth, proxies["line"].evaluate(unseen)),
            "masks_fitted": len(fitting),
            "masks_heldout": len(held),
            "terms": len(spectrum),
            "choice": asdict(choice),
            "cross_validated": errors,
            "seconds": time.perf_counter() - started,
        }
        return Decoded(spectrum, judge(spectrum, r2), stats)

    def choose(
        self, keep: Tensor, values: Tensor, fold: Tensor, basis: Basis, seed: int
    ) -> tuple[Choice, dict[str, float]]:
        """The sparsest choice within a standard error of the least cross-validated squared error, and the R² of each
        kind of proxy at its best."""
        squared: dict[Choice, list[Tensor]] = {}
        for number in range(self.folds):
            train, test = fold != number, fold == number
            for choice, error in self._trials((keep[train], values[train]), (keep[test], values[test]), basis, seed):
                squared.setdefault(choice, []).append(error**2)
        whole = {choice: torch.cat(parts) for choice, parts in squared.items() if len(parts) == self.folds}
        best = min(whole, key=lambda choice: float(whole[choice].mean()))
        floor = noise_floor(values) ** 2

        def close(choice: Choice) -> bool:
            gap = whole[choice] - whole[best]
            allowed = gap.std() / len(gap) ** 0.5 if choice.mode == "pruned" else 0.0
            return float(gap.mean()) <= max(float(allowed), 4 * floor)

        chosen = min((c for c in whole if c == best or close(c)), key=lambda c: (c.complexity, float(whole[c].mean())))
        spread = float(values.var(correction=0)) or 1.0
        bases = {c.base for c in whole}
        return chosen, {
            b: 1 - min(float(e.mean()) for c, e in whole.items() if c.base == b) / spread for b in sorted(bases)
        }

    def polynomial(self, choice: Choice, keep: Tensor, values: Tensor, basis: Basis, seed: int) -> Spectrum:
        """The polynomial of a choice: proxy, sets and coefficients from all masks given."""
        return self._build(choice, self._proxy(choice.base, keep, values, basis, seed), keep, values, basis)

    def _trials(
        self, seen: tuple[Tensor, Tensor], unseen: tuple[Tensor, Tensor], basis: Basis, seed: int
    ) -> Iterator[tuple[Choice, Float[Tensor, " mask"]]]:
        """The errors on unseen masks of every choice fitted to the seen ones."""
        keep, values = seen
        for base in ("line", "trees", "line+trees"):
            proxy = self._proxy(base, keep, values, basis, seed)
            pruned = self._build(Choice(base, "pruned", 0, 0.0), proxy, keep, values, basis)
            yield Choice(base, "pruned", 0, 0.0), pruned.evaluate(unseen[0]) - unseen[1]
            for size in _sizes(len(proxy), min(self.most_sets, len(keep))):
                top = _strongest(proxy, size)
                scale = _scale(top)
                shown, hidden = top.evaluate(keep), top.evaluate(unseen[0])
                plain = nested_errors(seen, unseen, top.members, basis, _RIDGES, scale)[:, -1]
                yield from ((Choice(base, "refit", size, r), e) for r, e in zip(_RIDGES, plain, strict=True))
                rest = (keep, values - shown), (unseen[0], unseen[1] - hidden)
                near = nested_errors(*rest, top.members, basis, _RIDGES, scale)[:, -1]
                yield from ((Choice(base, "near proxy", size, r), e) for r, e in zip(_RIDGES, near, strict=True))

    def _proxy(self, base: Base, keep: Tensor, values: Tensor, basis: Basis, seed: int) -> Spectrum:
        """The proxy as a polynomial: a ridge line, trees, or trees on what the line leaves over."""
        line = None
        if base != "trees":
            line = fit(keep, values, pad_sets([(i,) for i in range(keep.shape[1])]), basis)
            line = replace(line, stderr=None)
        if base == "line":
            assert line is not None
            return line
        rest = values if line is None else values - line.evaluate(keep)
        trees = self.boosting.train(keep, rest, seed).spectrum(basis)
        return trees if line is None else add(line, trees)

    def _build(self, choice: Choice, proxy: Spectrum, keep: Tensor, values: Tensor, basis: Basis) -> Spectrum:
        """The polynomial of a choice, fitted to all masks given."""
        if choice.mode == "pruned":
            return _pruned(proxy, keep, values, basis)
        top = _strongest(proxy, choice.size)
        scale = _scale(top)
        if choice.mode == "refit":
            return fit(keep, values, top.members, basis, ridge=choice.ridge, scale=scale)
        correction = fit(keep, values - top.evaluate(keep), top.members, basis, ridge=choice.ridge, scale=scale)
        return add(top, correction)


def add(one: Spectrum, other: Spectrum) -> Spectrum:
    """The sum of two polynomials in one basis; standard errors are the other's, where it has them for every set."""
    members, coefficients = merge_sets([one.members, other.members], [one.coefficients, other.coefficients])
    total = Spectrum(one.n, members, coefficients, one.basis)
    if other.stderr is None or len(total) != len(other):
        return total
    row = dict(zip(other.sets, other.stderr.tolist(), strict=True))
    return replace(total, stderr=torch.tensor([row[s] for s in total.sets], dtype=torch.float64))


def _pruned(proxy: Spectrum, keep: Bool[Tensor, "mask component"], values: Tensor, basis: Basis) -> Spectrum:
    """Only sets that are significant among all that the proxy named."""
    size = max(10, min(200, len(keep) // 3))
    return prune(keep, values, _strongest(proxy, size).members, basis, tested=max(1, len(proxy)), ridge=1e-9)


def _strongest(proxy: Spectrum, size: int) -> Spectrum:
    """The empty set and the `size` strongest others, strongest first."""
    strength = proxy.coefficients.abs().masked_fill(proxy.orders == 0, torch.inf)
    order = strength.argsort(descending=True, stable=True)
    top = proxy.select(order[: size + 1])
    return top if 0 in top.orders.tolist() else add(Spectrum.from_terms(proxy.n, {(): 0.0}, proxy.basis), top)


def _scale(top: Spectrum) -> Float[Tensor, " set"]:
    """How large each coefficient is expected to be, from the proxy: its own size there, damped."""
    strength = top.coefficients.abs()
    largest = strength[top.orders > 0].max() if (top.orders > 0).any() else torch.ones(())
    return (strength / largest.clamp(min=1e-300)).clamp(min=1e-6).sqrt()


def _sizes(terms: int, most: int) -> list[int]:
    """How many sets to try: a few sizes up to what the proxy has."""
    return sorted({min(size, terms - 1) for size in _SIZES if size <= most}) if terms > 1 else []
