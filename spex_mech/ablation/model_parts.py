"""`ModelParts`: a bound model, a task and the components asked about → the `Engine` that is the lens on them."""

from dataclasses import dataclass, replace
from typing import Any

from spex_mech.ablation.binding import bind
from spex_mech.ablation.fitted import remember_replacement
from spex_mech.ablation.replacement import fit_replacement
from spex_mech.ablation.respond import Engine
from spex_mech.ablation.subject import Subject
from spex_mech.ablation.unchanged import RECORDED, refuse_silence, unchanged
from spex_mech.components import ComponentSet, select
from spex_mech.names import HEADS, HEADS_AND_MLPS
from spex_mech.tasks.task import Task


@dataclass(frozen=True)
class ModelParts:
    """What is ablated of which model, on which prompts; checked against each other."""

    subject: Subject
    task: Task
    components: ComponentSet

    @classmethod
    def of(cls, model: Any, task: Task, components: ComponentSet | str | None) -> "ModelParts":
        """Bind a model and choose its components; by default all heads and MLP layers."""
        subject = bind(model)
        if components is None:
            components = HEADS_AND_MLPS if any(subject.shape.mlps) else HEADS
        chosen = select(subject, components) if isinstance(components, str) else components.check(subject.shape)
        return cls(subject, task.check(subject.shape), chosen)

    def only(self, components: ComponentSet) -> "ModelParts":
        """The same with some of the components."""
        return replace(self, components=components)

    def engine(self, replacement: str, *, per: str | None, seed: int, remember: bool = False) -> Engine:
        """The lens, with its replacement values taken; `remember` lets `ablated` find them again after a run."""
        reference = fit_replacement(self.subject, self.task, self.components, kind=replacement, per=per, seed=seed)
        silent = unchanged(self.subject, self.task, self.components, reference)
        refuse_silence(silent, self.components, reference)
        if silent:
            told = {"unchanged": list(silent[:RECORDED]), "unchanged_count": len(silent)}
            reference = replace(reference, source={**reference.source, **told})
        if remember:
            remember_replacement(self.subject, reference)
        return Engine(self.subject, self.task, self.components, reference)
