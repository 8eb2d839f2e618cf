"""What an experiment is: the components asked for, and by content whatever decides its values."""

from typing import Any

from spex_mech.ablation.replacement import Replacement
from spex_mech.ablation.subject import Subject
from spex_mech.components import ComponentSet, select
from spex_mech.files.records import plain
from spex_mech.names import HEADS, HEADS_AND_MLPS
from spex_mech.store.fingerprints import hash_function
from spex_mech.tasks.task import Task
from spex_mech.walsh.masks.design import MaskDesign


def choose_components(subject: Subject, components: ComponentSet | str | None) -> ComponentSet:
    """The components asked for, checked against the model; by default all heads and MLP layers."""
    if components is None:
        components = HEADS_AND_MLPS if any(subject.shape.mlps) else HEADS
    return select(subject, components) if isinstance(components, str) else components.check(subject.shape)


def describe_experiment(subject: Subject, task: Task, reference: Replacement, design: MaskDesign) -> dict[str, Any]:
    """Whatever decides the values, by content; together with the components it says whether two runs are the same."""
    metric = {} if isinstance(task.metric, str) else {"metric_sha256": hash_function(task.metric)}
    return plain(
        {
            "subject": dict(subject.provenance),
            "task": {**task.describe(), **metric},
            "replacement": reference.describe(),
            "design": design.to_dict(),
        }
    )
