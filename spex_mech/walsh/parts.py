"""The parts of the joint decoder: ways to fit a measured function, each fitted without every fold in turn.

A fitted part predicts any mask, and has for the masks it was fitted to the predictions of versions of it that did not
see them. Sparse parts also have a polynomial.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spex_mech.walsh.decoding import Samples, r_squared
from spex_mech.walsh.lasso import lasso_cv
from spex_mech.walsh.neural import Network
from spex_mech.walsh.proxy import ProxySpex
from spex_mech.walsh.pursuit import Pursuit
from spex_mech.walsh.refit import prune
from spex_mech.walsh.spectrum import Basis, Spectrum, pad_sets
from spex_mech.walsh.trees import Boosting

Predict = Callable[[Bool[Tensor, "mask component"]], Float[Tensor, " mask"]]
COARSE, FINE = 4, 12  # folds: of parts that take seconds to fit, and of those that take none
_INNER_FOLDS = 4


@dataclass(frozen=True, eq=False)
class Fitted:
    """A part after fitting; `r2` is that of `unseen`."""

    name: str
    predict: Predict
    unseen: Float[Tensor, " mask"]
    r2: float = float("nan")
    seconds: float = 0.0
    polynomial: Spectrum | None = None


class Part(Protocol):
    """A way to fit."""

    @property
    def name(self) -> str: ...

    def cross_fit(self, samples: Samples, fold: Int[Tensor, " mask"], basis: Basis, seed: int) -> Fitted: ...


def fit_parts(parts: list[Part], samples: Samples, fold: Int[Tensor, " mask"], basis: Basis, seed: int) -> list[Fitted]:
    """Every part fitted to the samples, with its cross-fitted R² and its seconds; `fold` numbers fine folds."""
    done = []
    for part in parts:
        started = time.perf_counter()
        found = part.cross_fit(samples, fold, basis, seed)
        r2 = r_squared(samples.mean_values.cpu(), found.unseen.cpu())
        done.append(replace(found, r2=r2, seconds=time.perf_counter() - started))
    return done


def _folded(
    train: Callable[[Tensor, Tensor], Predict], keep: Tensor, values: Tensor, fold: Int[Tensor, " mask"]
) -> Float[Tensor, " mask"]:
    """Each mask's value by a version trained without its fold."""
    unseen = torch.zeros(len(values), dtype=torch.float64)
    for number in range(int(fold.max()) + 1):
        out = fold == number
        if out.any():
            unseen[out] = train(keep[~out], values[~out])(keep[out]).cpu().double()
    return unseen


@dataclass(frozen=True)
class PursuitPart:
    """Matching pursuit, less the sets that are not significant, by least squares. As quick as it is, it is fitted
    without each of the fine folds: a quarter fewer masks may be too few to find what all of them find."""

    name: str
    pursuit: Pursuit

    def cross_fit(self, samples: Samples, fold: Int[Tensor, " mask"], basis: Basis, seed: int) -> Fitted:
        def train(keep: Tensor, values: Tensor) -> Predict:
            return self._spectrum(keep, values, basis).evaluate

        keep, values = samples.keep, samples.mean_values
        whole = self._spectrum(keep, values, basis)
        return Fitted(self.name, whole.evaluate, _folded(train, keep, values, fold), polynomial=whole)

    def _spectrum(self, keep: Tensor, values: Tensor, basis: Basis) -> Spectrum:
        n = keep.shape[1]
        members = self.pursuit.find(keep, values, basis)
        return prune(keep, values, members, basis, tested=max(1, n * (n + 1) // 2), ridge=1e-9)


@dataclass(frozen=True)
class ProxyPart:
    """ProxySPEX: the refit of a tree proxy's strongest sets. How it refits is chosen once, on all masks."""

    name: str
    proxy: ProxySpex

    def cross_fit(self, samples: Samples, fold: Int[Tensor, " mask"], basis: Basis, seed: int) -> Fitted:
        keep, values = samples.keep.cpu(), samples.mean_values.cpu()
        fold = fold % COARSE
        choice, _ = self.proxy.choose(keep, values, fold, basis, seed)

        def train(keep: Tensor, values: Tensor) -> Predict:
            return self.proxy.polynomial(choice, keep, values, basis, seed).evaluate

        whole = self.proxy.polynomial(choice, keep, values, basis, seed)
        return Fitted(self.name, whole.evaluate, _folded(train, keep, values, fold), polynomial=whole)


@dataclass(frozen=True)
class LinePart:
    """Order one, by a Lasso whose penalty is cross-validated."""

    name: str

    def cross_fit(self, samples: Samples, fold: Int[Tensor, " mask"], basis: Basis, seed: int) -> Fitted:
        def train(keep: Tensor, values: Tensor) -> Predict:
            return line(keep, values, basis).evaluate

        keep, values = samples.keep, samples.mean_values
        whole = line(keep, values, basis)
        return Fitted(self.name, whole.evaluate, _folded(train, keep, values, fold % COARSE), polynomial=whole)


def line(keep: Tensor, values: Tensor, basis: Basis) -> Spectrum:
    """The Lasso line of some masks; its folds are in the order of the masks, which are independent."""
    offset, slope = basis.affine
    found = lasso_cv(offset + slope * keep.double(), values, torch.arange(len(values)) % _INNER_FOLDS, 30)
    chosen = found.coefficients.nonzero()[:, 0].cpu()
    coefficients = torch.cat([torch.tensor([found.intercept]).double(), found.coefficients.cpu().double()[chosen]])
    return Spectrum(keep.shape[1], pad_sets([(), *((i,) for i in chosen.tolist())]), coefficients, basis)


@dataclass(frozen=True)
class TreePart:
    """Boosted trees, on the values or on what a Lasso line leaves of them."""

    name: str
    boosting: Boosting
    line: bool

    def cross_fit(self, samples: Samples, fold: Int[Tensor, " mask"], basis: Basis, seed: int) -> Fitted:
        def train(keep: Tensor, values: Tensor) -> Predict:
            if not self.line:
                return self.boosting.train(keep, values, seed).predict
            straight = line(keep, values, basis)
            trees = self.boosting.train(keep, values - straight.evaluate(keep), seed)
            return lambda new: straight.evaluate(new).cpu() + trees.predict(new)

        keep, values = samples.keep, samples.mean_values
        return Fitted(self.name, train(keep, values), _folded(train, keep, values, fold % COARSE))


@dataclass(frozen=True)
class NeuralPart:
    """A neural ensemble over all outputs; its members are its cross-fits."""

    name: str
    network: Network
    lasso: float

    def cross_fit(self, samples: Samples, fold: Int[Tensor, " mask"], basis: Basis, seed: int) -> Fitted:
        fold = fold % COARSE
        settings = replace(self.network, lasso=self.lasso)
        ensemble = settings.train(samples.keep, samples.values, fold, basis, seed)
        return Fitted(self.name, ensemble.predict, ensemble.out_of_sample(samples.keep, fold).cpu())
