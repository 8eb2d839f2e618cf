"""The circuit back in the user's own code: `ablated` for any backend, `hooks` for TransformerLens' run_with_hooks."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Bool
from torch import Tensor

from spex_mech.ablation.binding import bind
from spex_mech.ablation.fitted import recall_replacement
from spex_mech.ablation.recipe import compile_recipe
from spex_mech.ablation.replacement import Replacement, fit_replacement, input_references
from spex_mech.ablation.subject import Edit, Site, Subject
from spex_mech.ablation.unchanged import refuse_silence, unchanged
from spex_mech.ablation.wrappers import single_precision
from spex_mech.circuit.graph import Circuit
from spex_mech.components import ComponentSet, select
from spex_mech.errors import ComponentError, TaskError, warn_user
from spex_mech.formats.transformer_lens_hooks import transformer_lens_of
from spex_mech.names import HEADS, HEADS_AND_MLPS
from spex_mech.tasks.task import Task

Names = str | Iterable[str] | ComponentSet
KeepWhat = Circuit | Names | Bool[Tensor, " component"]


@contextmanager
def ablated(
    subject: Any,
    keep: KeepWhat | None = None,
    task: Task | None = None,
    *,
    ablate: Names | None = None,
    components: Names | None = None,
    replacement: str | Replacement | None = None,
    per: str | None = None,
    seed: int = 0,
    rows: Sequence[int] | None = None,
) -> Iterator[Any]:
    """A model with components ablated in every call, for the length of a with-block; no hook stays behind.

    ```python
    with sm.ablated(subject, keep=audit.circuit.names, components=found.components, task=task) as model:
        logits = model(tokens)
    with sm.ablated(model, ablate="a9.h9, a10.h0", replacement="zero"):
        logits = model(tokens)
    ```

    Args:
        subject: a bound subject, or any model that `bind` takes (binding it costs a dozen tiny passes each time).
        keep: what stays, all other `components` being ablated: names, one Boolean a component, or a circuit (its
            nodes, of the components that were studied: all that are in any interaction, which may be all there are;
            the smallest set that keeps the behaviour is an audit's, ``audit.circuit.names``).
        task: where replacement values are taken: means over its reference (or prompts), resampling from its corrupt
            prompts. Not needed for zero ablation, nor for a circuit found in this process, whose run's values are used.
        ablate: instead of `keep`: what is ablated, all else staying as it is.
        components: for `keep` as names or Booleans: what may be ablated. Default: all heads and MLP layers.
        replacement: "mean", "zero", "resample", or a fitted `Replacement`. Default: as the circuit's run, else "mean".
        per: of means, "position" or "pooled"; default: as the circuit's run. Means per position hold for calls of the
            reference's length without a cache; pooled ones for any call, generation included.
        seed: of resampling among the task's own prompts.
        rows: for resampling, which of the task's prompts each row of a call is; default: all of them in order.

    Yields:
        the model that `subject` is bound to, for calls of any form; for a subject of no library (planted ones, your
        own), a function of the tokens that returns its logits.

    Raises:
        ComponentError: names the model does not have, or not exactly one of `keep` and `ablate`.
        TaskError: replacement values that are not known; while the model runs, a call they do not belong to.
    """
    bound = bind(subject)
    plan = _plan(bound, keep, ablate, components)
    if plan.circuit is not None and bool(plan.keep.all()):
        warn_user(
            f"all {len(plan.components):,} components that were studied are nodes of this circuit, so keeping it "
            "ablates nothing. The smallest set that keeps the behaviour is an audit's: keep=audit.circuit.names, "
            "components=found.components."
        )
    fitted = _values(bound, plan, task, replacement, per, seed)
    edits = fitted.lasting(plan.keep, None if rows is None else torch.as_tensor(rows))
    in_force: Callable[[Mapping[Site, Edit]], Any] | None = getattr(bound, "in_force", None)
    if in_force is None:
        yield lambda tokens: bound.forward(tokens, edits, None)
        return
    with in_force(edits) as model:
        yield model


def hooks(
    subject: Any,
    keep: KeepWhat | None = None,
    task: Task | None = None,
    *,
    ablate: Names | None = None,
    components: Names | None = None,
    replacement: str | Replacement | None = None,
    per: str | None = None,
    seed: int = 0,
    rows: Sequence[int] | None = None,
) -> list[tuple[str, Callable[..., Tensor]]]:
    """The same as `ablated`, as plain ``fwd_hooks`` for a TransformerLens model's ``run_with_hooks``.

    ``model.run_with_hooks(tokens, fwd_hooks=sm.hooks(model, found.circuit, task))``. Arguments and errors are those of
    `ablated`; raises `ModelError` for a model without TransformerLens' hook points.
    """
    bound = transformer_lens_of(bind(subject))
    plan = _plan(bound, keep, ablate, components)
    fitted = _values(bound, plan, task, replacement, per, seed)
    return bound.fwd_hooks(fitted.lasting(plan.keep, None if rows is None else torch.as_tensor(rows)))


@dataclass(frozen=True)
class _Plan:
    """What may be ablated, what stays of it, and the circuit that said so, if one did."""

    components: ComponentSet
    keep: Bool[Tensor, " component"]
    circuit: Circuit | None = None


def _plan(subject: Subject, keep: KeepWhat | None, ablate: Names | None, components: Names | None) -> _Plan:
    if (keep is None) == (ablate is None):
        raise ComponentError(
            "say either what is kept (keep=…, all else that was studied is ablated) or what is ablated (ablate=…)."
        )
    if isinstance(keep, Circuit):
        if components is not None:
            raise ComponentError("a circuit brings its own components; leave components=… out, or give its names.")
        return _Plan(keep.components.check(subject.shape), _keep(keep.components, keep.names), keep)
    if ablate is not None:
        if components is not None:
            raise ComponentError("components=… goes with keep=…; with ablate=… all else stays as it is.")
        gone = _select(subject, ablate)
        return _Plan(gone, torch.zeros(len(gone), dtype=torch.bool))
    default = HEADS_AND_MLPS if any(subject.shape.mlps) else HEADS
    universe = _select(subject, default if components is None else components)
    if isinstance(keep, Tensor):
        return _Plan(universe, _bits(universe, keep))
    return _Plan(universe, _keep(universe, _select(subject, cast(Names, keep)).names))


def _select(subject: Subject, names: Names) -> ComponentSet:
    if isinstance(names, str):
        return select(subject, names)
    chosen = names if isinstance(names, ComponentSet) else ComponentSet.of(names)
    return chosen.check(subject.shape)


def _keep(components: ComponentSet, names: Iterable[str]) -> Bool[Tensor, " component"]:
    keep = torch.zeros(len(components), dtype=torch.bool)
    keep[components.indices(names)] = True
    return keep


def _bits(components: ComponentSet, keep: Tensor) -> Bool[Tensor, " component"]:
    if keep.dtype != torch.bool or keep.shape != (len(components),):
        raise ComponentError(
            f"keep is {keep.dtype} {tuple(keep.shape)}; it needs one Boolean (True: untouched) for each of the "
            f"{len(components):,} components. Say which they are by components=…."
        )
    return keep.cpu()


@single_precision()
def _values(
    subject: Subject,
    plan: _Plan,
    task: Task | None,
    replacement: str | Replacement | None,
    per: str | None,
    seed: int,
) -> Replacement:
    """The replacement values: given, those of the circuit's run, or taken anew from the task."""
    recipe = compile_recipe(plan.components, subject.sites, subject.shape)
    if isinstance(replacement, Replacement):
        return _covering(replace(replacement, recipe=recipe))
    used = _used(plan.circuit, replacement)
    known = recall_replacement(subject, used.get("sha256"))
    if known is not None and task is None and per in (None, known.per):
        return _covering(replace(known, recipe=recipe))
    kind = replacement or used.get("kind") or "mean"
    if kind == "zero":
        return Replacement("zero", None, recipe, input_references(subject, task, recipe), {})
    if task is None:
        raise TaskError(
            f"{kind} replacement needs the prompts over which its values are taken: a circuit holds none, and no run "
            'of this process has used them. Give task=…, or ablate to zero with replacement="zero".'
        )
    seed = used.get("seed", seed) if replacement is None else seed
    fitted = fit_replacement(subject, task, plan.components, kind, per or used.get("per"), seed)
    refuse_silence(unchanged(subject, task, plan.components, fitted), plan.components, fitted)
    if per is None:
        _warn_if_other(subject, plan.circuit, used, fitted)
    return fitted


def _used(circuit: Circuit | None, replacement: str | None) -> Mapping[str, Any]:
    """How the circuit's run replaced, unless another replacement is asked for."""
    record = {} if circuit is None else circuit.evidence.get("replacement", {})
    same = isinstance(record, Mapping) and replacement in (None, record.get("kind"))
    return record if same else {}


def _covering(replacement: Replacement) -> Replacement:
    """Itself, if it has values for every site that its recipe touches."""
    touched = [site for site in replacement.recipe.sites if site.kind != "adapters"]  # which are switched off
    missing = [site.name for site in touched if site not in replacement.references]
    if missing and replacement.kind != "zero":
        raise TaskError(
            f"this replacement has no values for {', '.join(missing[:8])}; fit one for these components: give task=…."
        )
    return replacement


def _warn_if_other(subject: Subject, circuit: Circuit | None, used: Mapping[str, Any], fitted: Replacement) -> None:
    """Tell where the circuit was measured on other weights or with other replacement values."""
    if circuit is None or not used:
        return
    weights = circuit.evidence.get("subject", {}).get("weights_sha256")
    if weights is not None and weights != subject.provenance.get("weights_sha256"):
        warn_user("this model's weights are not those on which the circuit was found; it may behave otherwise.")
    elif used.get("sha256") not in (None, fitted.describe()["sha256"]):
        warn_user(
            "the replacement values taken from this task are not those of the circuit's run, to the bit: other "
            "prompts, or rounding on another device or library version."
        )
