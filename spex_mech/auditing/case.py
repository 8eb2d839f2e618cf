"""`Case`: what every trial of an audit takes. A trial spends part of its budget and hands back frozen findings."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spex_mech.auditing.faithfulness import faithfulness
from spex_mech.auditing.knockouts import kept
from spex_mech.auditing.passes import Ledger, Passes
from spex_mech.circuit.graph import Circuit
from spex_mech.components.sets import ComponentSet
from spex_mech.errors import DesignError
from spex_mech.store.discovery import Discovery
from spex_mech.walsh.spectrum import Spectrum


@dataclass(frozen=True, eq=False)
class Case:
    """A circuit, or a run, before its trials.

    Attributes:
        components: all that may be ablated; passes: of the metric and the replacement in question.
        ledger: the budget; seed: of everything drawn.
        intact, empty: the metric with nothing, and with all components ablated, means over prompts.
        skipped: what the budget did not reach or the task does not allow, in words; trials add to it.
    """

    components: ComponentSet
    passes: Passes
    ledger: Ledger
    seed: int
    intact: float
    empty: float
    skipped: list[str] = field(default_factory=list, kw_only=True)

    @property
    def names(self) -> tuple[str, ...]:
        return self.components.names

    @property
    def floor(self) -> float:
        """What counts as rounding, in the metric's unit: float32 holds seven digits."""
        return 1e-6 * abs(self.intact - self.empty)

    @property
    def helping(self) -> int:
        """The sign of a change that helps the metric: 1 where intact is the higher end, else -1."""
        return 1 if self.intact >= self.empty else -1

    def masks(self, sets: Iterable[Collection[str]]) -> Bool[Tensor, "mask component"]:
        """Masks that keep exactly these names."""
        return kept(len(self.names), [self.components.indices(names) for names in sets])

    def faithfulness(self, value: float) -> float:
        return faithfulness(value, self.empty, self.intact)

    def measured(self, sets: Iterable[Collection[str]]) -> list[float]:
        """The metric with exactly these names kept, mean over prompts."""
        return self.passes.means(self.masks(sets)).tolist()


@dataclass(frozen=True, eq=False)
class RunCase(Case):
    """A case in which a run makes claims."""

    found: Discovery

    @property
    def spectrum(self) -> Spectrum:
        return self.found.spectrum

    @property
    def claims(self) -> Circuit:
        """What the run says of the metric itself; where it has a link, its circuit is of what lies before."""
        return self.found.raw_circuit or self.found.circuit

    @property
    def polynomial(self) -> Spectrum:
        """The polynomial of the metric itself; where the run has a link, not the latent one."""
        raw = self.found.decoded.raw
        return (self.found.decoded if raw is None else raw).spectrum.mean_output()

    @property
    def keep_probs(self) -> tuple[float, ...]:
        """The keep-probabilities of the run's masks; fair coins where it measured all, or coded ones."""
        return tuple(self._design.get("keep_probs", ())) or (0.5,)

    @property
    def has_every_mask(self) -> bool:
        """Whether the run measured all masks there are."""
        return self._design.get("kind") == "complete"

    @property
    def _design(self) -> Mapping[str, Any]:
        design: Mapping[str, Any] = self.found.responses.provenance.get("design", {})
        return design

    def predict(self, keep: Bool[Tensor, "mask component"]) -> Float[Tensor, " mask"]:
        return self.found.predict(keep).double()


def open_case(components: ComponentSet, passes: Passes, ledger: Ledger, seed: int) -> Case:
    """Measures both ends; raises `ResponseError` where they are the same."""
    ends = passes.means(torch.tensor([[True], [False]]).expand(2, len(components))).tolist()
    case = Case(components, passes, ledger, seed, *ends)
    case.faithfulness(case.intact)
    return case


def open_run_case(found: Discovery, passes: Passes, ledger: Ledger, seed: int) -> RunCase:
    """The same of a run."""
    case = open_case(found.components, passes, ledger, seed)
    return RunCase(case.components, passes, ledger, seed, case.intact, case.empty, found)


def check_audit_budget(budget: int, least: int) -> None:
    """Raises `DesignError` where a budget has no room for the first trials."""
    if budget < least:
        raise DesignError(f"an audit of {budget} masks was asked for; it needs at least {least}. Raise the budget.")
