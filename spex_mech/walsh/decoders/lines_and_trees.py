"""`LinesAndTrees`: the lines and trees that decoders read and stack, each fitted once, with or without one fold."""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spex_mech.walsh.decoders.lasso import lasso_cv
from spex_mech.walsh.decoders.trees import Boosting, Ensemble
from spex_mech.walsh.set_rows import merge_sets, pad_sets
from spex_mech.walsh.spectrum import Basis, Spectrum

ProxyKind = Literal["line", "trees", "line+trees"]
PROXY_KINDS: tuple[ProxyKind, ...] = ("line", "trees", "line+trees")
_INNER_FOLDS, _PENALTIES = 4, 30


@dataclass(frozen=True, eq=False)
class LinesAndTrees:
    """Proxies of some masks, on the CPU: a Lasso line, boosted trees, and trees on what the line leaves over.

    Every method's `fold` is the fold that the proxy has not seen, or None for the one that has seen all masks.
    """

    keep: Bool[Tensor, "mask component"]
    values: Float[Tensor, " mask"]
    fold: Int[Tensor, " mask"]
    basis: Basis
    boosting: Boosting
    seed: int
    _lines: dict[int | None, Spectrum] = field(default_factory=dict)
    _trees: dict[tuple[int | None, bool], Ensemble] = field(default_factory=dict)
    _polynomials: dict[tuple[int | None, ProxyKind], Spectrum] = field(default_factory=dict)

    @property
    def folds(self) -> list[int]:
        return self.fold.unique().tolist()

    def rows(self, fold: int | None) -> Bool[Tensor, " mask"]:
        """The masks that are seen."""
        return torch.ones(len(self.keep), dtype=torch.bool) if fold is None else self.fold != fold

    def line(self, fold: int | None) -> Spectrum:
        if fold not in self._lines:
            rows = self.rows(fold)
            self._lines[fold] = fit_line(self.keep[rows], self.values[rows], self.basis)
        return self._lines[fold]

    def trees(self, fold: int | None, on_line: bool) -> Ensemble:
        if (fold, on_line) not in self._trees:
            rows = self.rows(fold)
            keep, values = self.keep[rows], self.values[rows]
            values = values - self.line(fold).evaluate(keep) if on_line else values
            self._trees[fold, on_line] = self.boosting.train(keep, values, self.seed)
        return self._trees[fold, on_line]

    def predict(self, fold: int | None, kind: ProxyKind, keep: Bool[Tensor, "row component"]) -> Float[Tensor, " row"]:
        """What a proxy says of any masks, float64 on the CPU."""
        keep = keep.cpu()
        total = torch.zeros(len(keep), dtype=torch.float64)
        if kind != "trees":
            total += self.line(fold).evaluate(keep)
        if kind != "line":
            total += self.trees(fold, kind != "trees").predict(keep)
        return total

    def out_of_fold(self, kind: ProxyKind) -> Float[Tensor, " mask"]:
        """What is said of every mask by the proxy that has not seen it."""
        out = torch.zeros(len(self.keep), dtype=torch.float64)
        for fold in self.folds:
            out[~self.rows(fold)] = self.predict(fold, kind, self.keep[~self.rows(fold)])
        return out

    def polynomial(self, fold: int | None, kind: ProxyKind) -> Spectrum:
        """A proxy as a polynomial, exactly."""
        if (fold, kind) not in self._polynomials:
            line = self.line(fold)
            if kind != "line":
                trees = self.trees(fold, kind != "trees").spectrum(self.basis)
                line = trees if kind == "trees" else add_spectra(line, trees)
            self._polynomials[fold, kind] = line
        return self._polynomials[fold, kind]


def fit_line(keep: Bool[Tensor, "mask component"], values: Float[Tensor, " mask"], basis: Basis) -> Spectrum:
    """Order one, by a Lasso whose penalty is cross-validated; its folds are in the order of the masks."""
    offset, slope = basis.affine
    folds = torch.arange(len(values)) % _INNER_FOLDS
    found = lasso_cv(offset + slope * keep.double(), values.double(), folds, _PENALTIES)
    chosen = found.coefficients.nonzero()[:, 0]
    coefficients = torch.cat([torch.tensor([found.intercept]).double(), found.coefficients[chosen]])
    return Spectrum(keep.shape[1], pad_sets([(), *((i,) for i in chosen.tolist())]), coefficients, basis)


def add_spectra(one: Spectrum, other: Spectrum) -> Spectrum:
    """The sum of two polynomials in one basis; standard errors are the other's, where it has them for every set."""
    members, coefficients = merge_sets([one.members, other.members], [one.coefficients, other.coefficients])
    total = Spectrum(one.n, members, coefficients, one.basis)
    if other.stderr is None or len(total) != len(other):
        return total
    row = dict(zip(other.sets, other.stderr.tolist(), strict=True))
    return replace(total, stderr=torch.tensor([row[s] for s in total.sets], dtype=torch.float64))
