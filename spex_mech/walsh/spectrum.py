"""`Spectrum`: one sparse multilinear polynomial of keep bits, and the basis it is written in."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spex_mech.errors import DecodeError
from spex_mech.walsh.set_rows import left_align, merge_sets, pad_sets, set_tuples, subset_bits, trimmed

BasisKind = Literal["walsh", "biased", "mobius", "knockout"]
_TOLD = 3  # sets in one line about a polynomial
_CHUNK = 1 << 25  # elements of one evaluation block: 256 MB of float64


@dataclass(frozen=True)
class Basis:
    """A product basis, φ(k) = offset + slope·k for a keep bit k. `keep_prob` belongs to ``"biased"`` only."""

    kind: BasisKind = "walsh"
    keep_prob: float | None = None

    def __post_init__(self) -> None:
        if (self.kind == "biased") != (self.keep_prob is not None):
            raise DecodeError(
                f"basis {self.kind!r} with keep_prob {self.keep_prob}: a keep-probability is needed for 'biased', "
                f"and only there."
            )
        if self.keep_prob is not None and not 0 < self.keep_prob < 1:
            raise DecodeError(
                f"a biased basis needs a keep-probability strictly between 0 and 1, not {self.keep_prob}."
            )

    @classmethod
    def orthonormal(cls, keep_prob: float) -> "Basis":
        """The basis that is orthonormal under masks of this keep-probability: Walsh at 1/2, else biased."""
        return cls() if keep_prob == 0.5 else cls("biased", keep_prob)

    @property
    def affine(self) -> tuple[float, float]:
        """(offset, slope) of φ(k) = offset + slope·k."""
        if self.kind == "biased":
            assert self.keep_prob is not None
            scale = math.sqrt(self.keep_prob * (1 - self.keep_prob))
            return -self.keep_prob / scale, 1 / scale
        return {"walsh": (-1.0, 2.0), "mobius": (0.0, 1.0), "knockout": (1.0, -1.0)}[self.kind]

    @property
    def kurtosis(self) -> float:
        """``E φ⁴ = (q³ + (1-q)³) / (q(1-q))`` of an orthonormal basis: 1 for fair coins, 8.1 at q = 0.9."""
        q = self.keep_prob or 0.5
        return (q**3 + (1 - q) ** 3) / (q * (1 - q))

    @property
    def is_orthonormal(self) -> bool:
        return self.kind in ("walsh", "biased")


@dataclass(frozen=True, eq=False)
class Spectrum:
    """f(keep) = Σ_S coefficient(S) Π_{i∈S} φ(keep_i), over the recovered sets S only. Its tensors live on the CPU.

    Attributes:
        n: number of components.
        members: the sets, one a row, ascending and padded with -1 on the right; no row twice.
        coefficients: one a set, or one a set and output; in the unit of the responses.
        basis: what φ is.
        stderr: standard errors in the same shape and unit, or None where nobody estimated them.
    """

    n: int
    members: Int[Tensor, "set slot"]
    coefficients: Float[Tensor, " set"] | Float[Tensor, "set output"]
    basis: Basis = Basis()
    stderr: Float[Tensor, " set"] | Float[Tensor, "set output"] | None = None

    def __post_init__(self) -> None:
        shapes = [tuple(t.shape) for t in (self.coefficients, self.stderr) if t is not None]
        sizes_fit = all(shape[:1] == self.members.shape[:1] and 1 <= len(shape) <= 2 for shape in shapes)
        if self.members.ndim != 2 or not sizes_fit or len(set(shapes)) != 1:
            raise DecodeError(
                f"members {tuple(self.members.shape)} and coefficients, stderr {shapes} must be [set, slot] and [set] "
                f"or [set, output], with as many sets."
            )
        left, right = self.members[:, :-1], self.members[:, 1:]
        in_range = ((self.members >= -1) & (self.members < self.n)).all()
        if not in_range or not ((left < right) & (left >= 0) | (right == -1)).all():
            raise DecodeError(
                f"every set must hold ascending component indices from 0 to {self.n - 1}, padded with -1 on the right."
            )

    @classmethod
    def from_terms(
        cls,
        n: int,
        terms: Mapping[Iterable[int], float],
        basis: Basis = Basis(),
        stderr: Mapping[Iterable[int], float] | None = None,
    ) -> "Spectrum":
        """A spectrum from ``{set of component indices: coefficient}``.

        >>> Spectrum.from_terms(3, {(): 1.0, (2, 0): -0.5})[0, 2]
        -0.5
        """
        sets = [tuple(sorted(s)) for s in terms]
        if any(len(set(s)) != len(s) or (s and not 0 <= s[0] <= s[-1] < n) for s in sets):
            raise DecodeError(f"every set must hold different component indices from 0 to {n - 1}.")
        twice = sorted(s for s, count in Counter(sets).items() if count > 1)
        if twice:
            raise DecodeError(f"the sets {twice[:5]} are given more than once, in different orders; add them up first.")
        errors = None if stderr is None else torch.tensor([float(stderr[s]) for s in terms], dtype=torch.float64)
        return cls(
            n, pad_sets(sets), torch.tensor([float(c) for c in terms.values()], dtype=torch.float64), basis, errors
        )

    def __len__(self) -> int:
        return self.members.shape[0]

    def __str__(self) -> str:
        """One line: how many sets of which orders, the basis, and the strongest.

        >>> print(Spectrum.from_terms(9, {(): 1.0, (2, 0): -0.5}))
        Spectrum of 2 sets of 9 components up to order 2, walsh basis; strongest: (0, 2) -0.5
        """
        outputs = f" × {self.coefficients.shape[1]:,} outputs" if self.coefficients.ndim == 2 else ""
        at = f" at {self.basis.keep_prob:g}" if self.basis.keep_prob is not None else ""
        strongest = sorted((term for term in self.terms() if term[0]), key=lambda term: -abs(term[1]))[:_TOLD]
        listed = ", ".join(f"{members} {coefficient:+.3g}" for members, coefficient in strongest)
        return (
            f"Spectrum of {len(self):,} set{'s' * (len(self) != 1)}{outputs} of {self.n:,} components up to order "
            f"{int(self.orders.max()) if len(self) else 0}, {self.basis.kind} basis{at}"
            + (f"; strongest: {listed}" if listed else "")
        )

    __repr__ = __str__

    @cached_property
    def orders(self) -> Int[Tensor, " set"]:
        """|S| of every set."""
        return (self.members >= 0).sum(1)

    @cached_property
    def sets(self) -> tuple[tuple[int, ...], ...]:
        """The sets as tuples of ascending indices, in row order."""
        return set_tuples(self.members)

    @cached_property
    def _rows(self) -> dict[tuple[int, ...], int]:
        return {s: row for row, s in enumerate(self.sets)}

    def __contains__(self, item: object) -> bool:
        return isinstance(item, int | Iterable) and self._row(item) is not None

    def __getitem__(self, key: int | Iterable[int]) -> float:
        """The coefficient of a set (mean over outputs); raises `DecodeError` where the set was not recovered."""
        found = self.get(key)
        if found is None:
            raise DecodeError(
                f"the set {key} is not among the {len(self)} recovered sets; absent is not zero. Ask with "
                f".get(set) if None will do, or decode with more masks."
            )
        return found

    def get(self, key: int | Iterable[int]) -> float | None:
        """The coefficient of a set (mean over outputs), or None where the set was not recovered."""
        row = self._row(key)
        return None if row is None else float(self.coefficients[row].mean())

    def _row(self, key: int | Iterable[int]) -> int | None:
        return self._rows.get((key,) if isinstance(key, int) else tuple(sorted(key)))

    def terms(self) -> Iterator[tuple[tuple[int, ...], float]]:
        """(set, coefficient) for every recovered set, mean over outputs."""
        means = self.coefficients if self.coefficients.ndim == 1 else self.coefficients.mean(1)
        return zip(self.sets, means.tolist(), strict=True)

    def mean_output(self) -> "Spectrum":
        """The polynomial of the mean over outputs: one coefficient a set.

        Standard errors of single outputs do not say how the outputs' errors go together, so they are dropped.
        """
        return (
            self if self.coefficients.ndim == 1 else replace(self, coefficients=self.coefficients.mean(1), stderr=None)
        )

    def evaluate(self, keep: Bool[Tensor, "mask component"]) -> Float[Tensor, " mask"] | Float[Tensor, "mask output"]:
        """The polynomial at each mask, on the device of `keep`, in float64. Cost: masks × Σ|S|."""
        if keep.ndim != 2 or keep.shape[1] != self.n:
            raise DecodeError(f"keep has shape {tuple(keep.shape)}; this polynomial needs [mask, {self.n} components].")
        coefficients = self.coefficients.to(keep.device, torch.float64)
        out = torch.zeros((keep.shape[0], *coefficients.shape[1:]), dtype=torch.float64, device=keep.device)
        for rows in self.by_order().values():
            members, width = self.members[rows].to(keep.device), int(self.orders[rows[0]])
            step = max(1, _CHUNK // max(1, len(rows) * max(1, width)))
            for start in range(0, keep.shape[0], step):
                block = keep[start : start + step]
                out[start : start + step] += (
                    monomials(block, members[:, :width], self.basis) @ coefficients[rows.to(keep.device)]
                )
        return out

    def by_order(self) -> dict[int, Int[Tensor, " row"]]:
        """Row numbers grouped by order, ascending."""
        return {int(order): (self.orders == order).nonzero()[:, 0] for order in self.orders.unique()}

    def select(self, rows: Int[Tensor, " row"] | Bool[Tensor, " set"]) -> "Spectrum":
        """Some of the terms, by row number or by a Boolean a row."""
        return replace(
            self,
            members=trimmed(self.members[rows]),
            coefficients=self.coefficients[rows],
            stderr=None if self.stderr is None else self.stderr[rows],
        )

    def prune(self, below: float) -> "Spectrum":
        """The terms whose coefficient is at least `below` in size for some output; the empty set always stays."""
        strength = self.coefficients.abs() if self.coefficients.ndim == 1 else self.coefficients.abs().amax(1)
        return self.select((strength >= below) | (self.orders == 0))

    def sorted(self) -> "Spectrum":
        """The same terms, strongest first; ties in order of the sets, so that the order is determined."""
        strength = self.mean_output().coefficients.abs()
        order = sorted(range(len(self)), key=lambda row: (-float(strength[row]), self.sets[row]))
        return self.select(torch.tensor(order, dtype=torch.long))

    def rewrite(self, basis: Basis) -> "Spectrum":
        """The same polynomial in another basis, exactly.

        With φ = offset + slope·k in the old basis and φ' in the new one, φ = c + r φ' where ``r = slope/slope'`` and
        ``c = offset - r offset'``, so ``Π_{i∈S} φ_i = Σ_{T⊆S} c^{|S|-|T|} r^{|T|} Π_{i∈T} φ'_i``. Cost 2^|S| a set;
        sets beyond
        order 24 are refused. Standard errors do not survive (they would need the covariances) unless nothing changes.
        """
        if basis == self.basis:
            return self
        (offset, slope), (new_offset, new_slope) = self.basis.affine, basis.affine
        ratio = slope / new_slope
        return self._expand(offset - ratio * new_offset, ratio, basis)

    def _expand(self, constant: float, ratio: float, basis: Basis) -> "Spectrum":
        members, coefficients = [], []
        for order, rows in self.by_order().items():
            if order > 24:
                raise DecodeError(
                    f"a set of {order} components would expand into 2^{order} terms; rewriting is limited to order 24."
                )
            subset = subset_bits(order)
            weight = constant ** (order - subset.sum(1)).double() * ratio ** subset.sum(1).double()
            kept = weight != 0
            sets, subset, weight = self.members[rows, :order], subset[kept], weight[kept]
            expanded = torch.where(subset[None], sets[:, None], -1).flatten(0, 1)
            members.append(left_align(expanded))
            shape = (-1, *([1] * (self.coefficients.ndim - 1)))
            coefficients.append((self.coefficients[rows].double()[:, None] * weight.reshape(1, *shape)).flatten(0, 1))
        merged, summed = merge_sets(members, coefficients)
        return Spectrum(self.n, merged, summed, basis)

    def strengths(self) -> Float[Tensor, " component"]:
        """√Σ_{S∋i} F(S)² of the mean over outputs: how far the function moves with a component, in all its sets.

        In an orthonormal basis it is the total Sobol index before that is divided by the variance.
        """
        filled = self.members >= 0
        energy = self.mean_output().coefficients.double()[:, None].square().expand(self.members.shape)
        total = torch.zeros(self.n, dtype=torch.float64)
        return total.index_add_(0, self.members[filled], energy[filled]).sqrt()

    def energy_by_order(self) -> dict[int, float]:
        """Σ F(S)² by |S|, in an orthonormal basis: the variance each order explains under that basis' own masks
        (Parseval)."""
        if not self.basis.is_orthonormal:
            raise DecodeError(
                f"energy needs an orthonormal basis (walsh or biased); this spectrum is in {self.basis.kind!r}. "
                f"Rewrite it first."
            )
        strength = self.mean_output().coefficients.double()
        return {order: float((strength[rows] ** 2).sum()) for order, rows in self.by_order().items()}


def monomials(
    keep: Bool[Tensor, "mask component"], members: Int[Tensor, "set slot"], basis: Basis = Basis()
) -> Float[Tensor, "mask set"]:
    """Π_{i∈S} φ(keep_i) for every mask and set, float64; a slot of -1 counts as a factor 1.

    Built set by set, since a component's factors lie side by side in memory once the keep bits are transposed.
    """
    used, slot_of = members.unique(return_inverse=True)
    bits, offset, slope = keep[:, used.clamp(min=0)].T, *basis.affine
    if (offset, slope) == (-1.0, 2.0):  # the product of signs is the parity of the ablated: an eighth of the memory
        odd = ~bits
        odd[used < 0] = False
        parity = torch.zeros(len(members), len(keep), dtype=torch.bool, device=keep.device)
        for slot in range(members.shape[1]):
            parity ^= odd[slot_of[:, slot]]
        return parity.double().mul_(-2).add_(1).T
    factors = offset + slope * bits.double()
    factors[used < 0] = 1.0
    out = torch.ones(len(members), len(keep), dtype=torch.float64, device=keep.device)
    for slot in range(members.shape[1]):
        rows = (members[:, slot] >= 0).nonzero()[:, 0]
        if slot == 0 and len(rows) == len(out):
            out = factors[slot_of[:, 0]]
        elif len(rows) == len(out):
            out *= factors[slot_of[:, slot]]
        else:
            out[rows] *= factors[slot_of[rows, slot]]
    return out.T
