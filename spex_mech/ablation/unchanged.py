"""`unchanged`: the components whose replacement is what they give anyway, so that ablating them ablates nothing."""

from collections.abc import Iterable

import torch

from spex_mech.ablation.replacement import Replacement, site_values
from spex_mech.ablation.subject import Subject
from spex_mech.components import ComponentSet
from spex_mech.errors import TaskError, warn_user
from spex_mech.tasks.task import Task

SAME = 1e-6  # of a site's largest value: below it, a difference is rounding
RECORDED = 256  # names of such components in a record
_SHOWN = 8


def unchanged(subject: Subject, task: Task, components: ComponentSet, replacement: Replacement) -> tuple[str, ...]:
    """The components that no prompt of the task has other values at than those that replace them.

    One pass over the prompts at most; it ends as soon as every component was seen to change.
    """
    recipe = replacement.recipe
    acts = torch.zeros(recipe.n + 1, dtype=torch.bool)
    for rows, found in site_values(subject, task.prompts, recipe.sites):
        for site, values in found.items():
            gap = (values.float() - replacement.at(site, rows, values.shape[1]).to(values.device)).abs()
            parts = gap.reshape(*gap.shape[:2], site.parts, -1).amax((0, 3)).cpu()
            moved = parts > SAME * float(values.abs().max())
            for position, table in recipe.rulers[site].items():
                there = moved.any(0) if position is None else moved[position]
                acts[table[:, there].flatten()] = True
        if bool(acts[:-1].all()):
            return ()
    return tuple(name for name, act in zip(components.names, acts[:-1].tolist(), strict=True) if not act)


def refuse_silence(names: Iterable[str], components: ComponentSet, replacement: Replacement) -> None:
    """Warn of components that nothing is done to; raise `TaskError` where these are all of them."""
    names = tuple(names)
    why = f"{_WHY[replacement.kind]} ({_over(replacement)})" if replacement.kind == "mean" else _WHY[replacement.kind]
    if names and len(names) == len(components):
        raise TaskError(
            f"nothing would be ablated: for all {len(components):,} components the replacement is what they give "
            f"anyway: {why}. {_WAY_OUT[replacement.kind]}"
        )
    if names:
        more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
        warn_user(
            f"ablating {', '.join(names[:_SHOWN])}{more} changes nothing on these prompts: the replacement is what "
            f"they give anyway ({why}), so no effect of theirs can be found."
        )


_WHY = {
    "mean": "the mean over these prompts is their own value on each of them",
    "zero": "their values are zero",
    "resample": "they give the same on the other prompt",
}
_WAY_OUT = {
    "mean": (
        'Give reference prompts (Task(…, reference=…), --reference), or replacement="zero" or "resample", or means '
        'pooled over tokens: per="pooled" (--per pooled).'
    ),
    "zero": 'Use replacement="mean" with reference prompts, or check which components were chosen.',
    "resample": "Give corrupt prompts that differ from the prompts where these components read.",
}


def _over(replacement: Replacement) -> str:
    count = int(replacement.source.get("prompts", 0))
    return f"taken {'per position' if replacement.per == 'position' else 'pooled'} over {count:,} " + (
        "prompt" if count == 1 else "prompts"
    )
