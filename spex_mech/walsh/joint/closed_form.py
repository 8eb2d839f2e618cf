"""Walsh spectra in closed form, of what a stack is made of: polynomials, boosted trees, and Gaussian processes.

A product kernel over bits x, z ∈ ±1 is diagonal in the Walsh basis (``e^{-2ca} = (1 - t) / (1 + t)``, t = tanh(ca)):

    exp(-½ c Σ_i a_i (x_i - z_i)²) = h Π_i (1 + t_i x_i z_i) = Σ_S λ_S χ_S(x) χ_S(z),   λ_S = h Π_{i∈S} t_i,

with ``h = Π_i (1 + e^{-2 c a_i}) / 2``. So the posterior mean ``Σ_m solved_m k(x, z_m)`` has the coefficient
``λ_S Σ_m solved_m χ_S(z_m)``: one matrix product for all pairs, and one for all extensions of the sets in hand. Nothing
has to be sampled, and what is left out is known exactly, by Parseval.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spex_mech.walsh.joint.gaussian import Posterior
from spex_mech.walsh.set_rows import merge_sets, set_tuples, stack_rows
from spex_mech.walsh.spectrum import Spectrum, monomials

Sets = Int[Tensor, "set slot"]
_DEGREE = 6  # of the largest sets of a process that are looked for
_PAIRS = 1 << 25  # looked at, at most: those of the components of the largest t_i
_HEIRS = 0.25  # of the weakest of the strongest: a set below that has no supersets among them
_SPARE = 2  # times the sets wanted: what is kept of polynomials, and of processes, before all are added up


@dataclass(frozen=True, eq=False)
class ClosedForm:
    """A weighted sum of polynomials and processes over ±1 bits."""

    n: int
    polynomials: Sequence[tuple[float, Spectrum]]
    processes: Sequence[tuple[float, Posterior]]
    offset: float

    def strongest(self, most: int) -> Spectrum:
        """The empty set and the sets of largest coefficients, at most so many, strongest first.

        Sets of processes are looked for from the small to the large: all pairs, then all extensions of the strongest of
        an order by one component, while any is among the strongest.
        """
        parts = [self._sets_of_polynomials(most), self._sets_of_processes(most)]
        members, _ = merge_sets(parts, [torch.zeros(len(part)).double() for part in parts])
        coefficients = self.coefficients(members)
        strength = coefficients.abs().masked_fill((members < 0).all(1), torch.inf)
        order = strength.argsort(descending=True, stable=True)[: most + 1]
        return Spectrum(self.n, members, coefficients).select(order)

    def coefficients(self, members: Sets) -> Float[Tensor, " set"]:
        """Of any sets."""
        total = torch.zeros(len(members), dtype=torch.float64)
        total[(members < 0).all(1)] = self.offset
        for weight, process_spectrum in self._process_spectra:
            total += weight * process_spectrum.coefficients(members).cpu()
        known = [self._terms.get(s, 0.0) for s in set_tuples(members)]
        return total + torch.tensor(known, dtype=torch.float64)

    @cached_property
    def _process_spectra(self) -> list[tuple[float, "ProcessSpectrum"]]:
        return [(weight, ProcessSpectrum(posterior)) for weight, posterior in self.processes]

    @cached_property
    def _polynomial(self) -> Spectrum:
        """All polynomials."""
        weighted = [(s.members, weight * s.coefficients.double()) for weight, s in self.polynomials]
        members, coefficients = merge_sets([m for m, _ in weighted], [c for _, c in weighted])
        return Spectrum(self.n, members, coefficients)

    @cached_property
    def _terms(self) -> dict[tuple[int, ...], float]:
        return dict(self._polynomial.terms())

    def _sets_of_polynomials(self, most: int) -> Sets:
        """The strongest sets of the polynomials."""
        order = self._polynomial.coefficients.abs().argsort(descending=True, stable=True)
        return self._polynomial.members[order[: _SPARE * most]]

    def _sets_of_processes(self, most: int) -> Sets:
        """The strongest sets of the processes, the empty one among them."""
        empty = torch.full((1, 1), -1, dtype=torch.long)
        if not self._process_spectra:
            return empty
        levels, strengths, parents = [empty], [torch.full((1,), torch.inf).double()], torch.zeros(1, 0).long()
        for order in range(1, 1 + min(_DEGREE, self.n)):
            if order == 2:
                parents = self._strongest_components()
            sets, strength = self._extensions(parents, _SPARE * most)
            levels.append(sets)
            strengths.append(strength)
            floor = _nth_strongest(torch.cat(strengths), most)
            if order > 2 and not (strength >= floor).any():
                break
            parents = sets[:most][strength[:most] >= _HEIRS * floor]
        return stack_rows(levels)[torch.cat(strengths).argsort(descending=True, stable=True)[: _SPARE * most]]

    def _strongest_components(self) -> Sets:
        """The components, or where the pairs would be too many those that may have the strongest."""
        reach = (
            torch.stack([process_spectrum.turn.amax(0) for _, process_spectrum in self._process_spectra]).amax(0).cpu()
        )
        return reach.argsort(descending=True, stable=True)[: max(1, _PAIRS // self.n)].sort().values[:, None]

    def _extensions(self, parents: Sets, most: int) -> tuple[Sets, Float[Tensor, " set"]]:
        """The strongest sets of a parent and one component more, strongest first, and how strong they are."""
        total = sum(weight * process_spectrum.extended(parents) for weight, process_spectrum in self._process_spectra)
        assert isinstance(total, Tensor)
        strength = total.abs().flatten()
        top = strength.topk(min(len(strength), most * (parents.shape[1] + 1)))  # a set may have every subset as parent
        rows, column = top.indices.cpu() // self.n, top.indices.cpu() % self.n
        sets = torch.cat([parents[rows], column[:, None]], 1).sort(1).values
        real = (sets.diff(dim=1) > 0).all(1)
        both = torch.stack([top.values.cpu()[real], torch.ones(int(real.sum())).double()], 1)
        members, summed = merge_sets([sets[real]], [both])
        found = summed[:, 0] / summed[:, 1]
        order = found.argsort(descending=True, stable=True)[:most]
        return members[order], found[order]


def _nth_strongest(strength: Float[Tensor, " set"], most: int) -> Tensor:
    """That of the last of the strongest."""
    return strength.topk(min(most, len(strength))).values[-1]


class ProcessSpectrum:
    """The Walsh coefficients of a process' posterior mean."""

    def __init__(self, posterior: Posterior) -> None:
        relevance, weight = (torch.nn.functional.softplus(posterior.weights[k]) for k in ("relevance", "weight"))
        scales = torch.tensor(posterior.settings.scales, dtype=torch.float64, device=relevance.device)
        reach = scales[:, None] * relevance
        self.posterior = posterior
        self.turn = reach.tanh()  # [scale, component]
        self.head = weight * torch.exp(torch.log1p(torch.expm1(-2 * reach) / 2).sum(1))  # [scale]

    @torch.inference_mode()
    def coefficients(self, members: Sets) -> Float[Tensor, " set"]:
        members = members.to(self.turn.device)
        found = self._eigenvalues(members).sum(0) * (self._characters(members).T @ self.posterior.solved)
        lone = (members >= 0).sum(1) == 1
        found[lone] += self.posterior.slope[members[lone].amax(1)]
        return found + self.posterior.centre * (members < 0).all(1).double()

    @torch.inference_mode()
    def extended(self, parents: Sets) -> Float[Tensor, "set component"]:
        """Of every parent with every component that it lacks; 0 for those that it has."""
        parents = parents.to(self.turn.device)
        moments = (self._characters(parents) * self.posterior.solved[:, None]).T @ self.posterior.z
        found = (self._eigenvalues(parents).T @ self.turn) * moments
        if not parents.shape[1]:
            found += self.posterior.slope
        return found.scatter(1, parents, 0.0) if parents.shape[1] else found

    def _characters(self, members: Sets) -> Float[Tensor, "mask set"]:
        return monomials(self.posterior.z > 0, members)

    def _eigenvalues(self, members: Sets) -> Float[Tensor, "scale set"]:
        """``λ_S``, by scale."""
        padded = torch.nn.functional.pad(self.turn, (0, 1), value=1.0)
        return self.head[:, None] * padded[:, members].prod(2)
