"""`Replacement`: what an ablated component gives instead. The arithmetic of ablation stands here, once."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spex_mech.ablation.batching import default_rows, unless_full
from spex_mech.ablation.edits import RowEdit, part_edit
from spex_mech.ablation.recipe import Recipe, compile_recipe
from spex_mech.ablation.subject import Edit, Prompted, Site, Subject
from spex_mech.components import ComponentSet
from spex_mech.errors import TaskError
from spex_mech.names import MEAN_KINDS
from spex_mech.tasks.prompts import Prompts
from spex_mech.tasks.task import Task

ASSUMPTIONS = {
    "mean": "the mean over reference prompts is an uninformative value",
    "zero": "zero is an uninformative value; under value biases it is not, and weight processing changes it",
    "resample": "what the component gives on another prompt is a fair contrast",
}
INSTEAD = {"mean": "its mean", "zero": "zero", "resample": "what it gives on another prompt"}  # for people
REFERENCE_ROWS = 64  # reference prompts a forward pass


@dataclass(frozen=True)
class Replacement:
    """References for every touched site: ``[prompt | 1, pos | 1, feature]``; none for zero ablation."""

    kind: str
    per: str | None
    recipe: Recipe
    references: Mapping[Site, Float[Tensor, "prompt pos feature"]]
    source: Mapping[str, Any]

    def describe(self) -> dict[str, Any]:
        """For a record: kind, over what, and a hash of the values."""
        digest = hashlib.sha256()
        for _, values in sorted(self.references.items()):
            digest.update(values.float().cpu().contiguous().numpy().tobytes())
        switched = any(site.kind == "adapters" for site in self.recipe.sites)
        return {
            "kind": self.kind,
            "per": self.per,
            "assumes": ASSUMPTIONS[self.kind],
            **({"adapters": "switched off"} if switched else {}),
            **self.source,
            "sha256": digest.hexdigest() if self.references else None,
        }

    def edits(
        self,
        keep: Bool[Tensor, "mask component"],
        prompt: Int[Tensor, " row"],
        length: int,
        only: Mapping[Site, int] | None = None,
        masks: Mapping[int, Int[Tensor, " row"]] | None = None,
    ) -> dict[Site, Edit]:
        """One edit a touched site for a batch: row b is prompt ``prompt[b]`` under mask ``keep[b]`` (on the CPU).

        `only` names sites that see a single position, and which. `masks` says, layer by layer, which mask each row
        has, where masks share rows (`Prefixes.masks`); then `prompt` has one element, the prompt of all rows.
        """
        found = dict[Site, Edit]()
        for site in self.recipe.sites:
            rows = keep if masks is None else keep[masks[site.layer]]
            kept = _at(self.recipe.keep_parts(site, rows, length), (only or {}).get(site))
            reference = self._reference(site, prompt, length, (only or {}).get(site))
            if site.parts == 1 and kept.shape[1] == 1:
                found[site] = RowEdit(kept[:, 0, 0], reference)
            else:
                found[site] = part_edit(kept, reference, site.parts)
        return found

    def lasting(self, keep: Bool[Tensor, " component"], prompts: Int[Tensor, " row"] | None = None) -> dict[Site, Edit]:
        """One edit a site that loses something, for batches of any size, all of whose rows are under one mask.

        `prompts` says, for resampling, which prompt of the task each row of a batch is; None: all, in order. While the
        model runs, an edit raises `TaskError` on a batch to which the reference values do not belong.
        """
        bits = {site: torch.cat([t.flatten() for t in self.recipe.rulers[site].values()]) for site in self.recipe.sites}
        padded = torch.nn.functional.pad(keep.cpu(), (0, 1), value=True)
        return {site: self._lasting(site, keep, prompts) for site in bits if not padded[bits[site]].all()}

    def _lasting(self, site: Site, keep: Bool[Tensor, " component"], prompts: Int[Tensor, " row"] | None) -> Edit:
        reference = self.references.get(site, torch.zeros(1, 1, 1))
        chosen = torch.arange(len(reference)) if prompts is None else prompts

        def edit(x: Tensor) -> Tensor:
            if site in self.references:
                self._check_batch(x, reference, chosen)
            kept = self.recipe.keep_parts(site, keep[None], x.shape[1])
            return part_edit(kept, self._reference(site, chosen, x.shape[1], None), site.parts)(x)

        return edit

    def _check_batch(self, x: Tensor, reference: Tensor, prompts: Int[Tensor, " row"]) -> None:
        rows, length = x.shape[:2]
        if self.kind == "mean" and reference.shape[1] not in (1, length):
            raise TaskError(
                f"means per position were taken over prompts of {reference.shape[1]} tokens, and this call has "
                f'{length}. Give prompts of that length, without a cache, or use means that are pooled: per="pooled".'
            )
        if (self.kind == "resample" or len(reference) > 1) and (
            rows != len(prompts) or length > reference.shape[1] > 1
        ):
            raise TaskError(
                f"resampling replaces by what each of {len(prompts)} prompts' own contrast gives, of at most "
                f"{reference.shape[1]} tokens, and this call has {rows} rows of {length}. Call the model on those "
                "prompts in that order, or say by rows=[…] which of the task's prompts they are."
            )

    def at(self, site: Site, prompts: Int[Tensor, " row"], length: int) -> Float[Tensor, "row pos feature"]:
        """What some prompts of one length get at a site; an axis along which nothing differs may be of length 1."""
        return self._reference(site, prompts, length, None)

    def _reference(self, site: Site, prompt: Tensor, length: int, only: int | None) -> Float[Tensor, "row pos feature"]:
        reference = self.references.get(site)
        if reference is None:
            return torch.zeros(1, 1, 1)
        reference = reference if len(reference) == 1 else reference[prompt.to(reference.device)]
        return _at(reference if reference.shape[1] == 1 else reference[:, :length], only)


def _at(x: Tensor, position: int | None) -> Tensor:
    """One position of ``[row, pos, …]``; all of them, or what is the same at all, as it is."""
    return x if position is None or x.shape[1] == 1 else x[:, position : position + 1]


def fit_replacement(
    subject: Subject,
    task: Task,
    components: ComponentSet,
    kind: str = "mean",
    per: str | None = None,
    seed: int = 0,
) -> Replacement:
    """Take the replacement values of the touched sites.

    Args:
        kind: "mean": the mean over ``task.reference`` (or the task's own prompts), accumulated in float64.
            "zero": 0. "resample": prompt i gets what the site gives on corrupt prompt i; where the task has no corrupt
            prompts, on another prompt of its length, drawn by `seed`.
        per: of "mean": "position", or "pooled" over all tokens (padding never occurs); None: per position where all
            prompts and references have one length.

    Raises:
        TaskError: an unknown kind or per; per-position means of prompts of different lengths; a prompt with no other
            prompt of its length to resample from.
    """
    if kind not in ASSUMPTIONS:
        raise TaskError(f"there is no replacement {kind!r}; the replacements are {', '.join(ASSUMPTIONS)}.")
    recipe = compile_recipe(components, subject.sites, subject.shape)
    _check_positions(components, task)
    inputs = input_references(subject, task, recipe)
    inside = tuple(site for site in recipe.sites if site not in inputs and site.kind != "adapters")
    if kind == "zero":
        return Replacement(kind, None, recipe, inputs, {})
    if kind == "resample":
        references, source = _resample(subject, task, inside, seed)
        return Replacement(kind, None, recipe, references | inputs, source)
    prompts = task.reference or task.prompts
    how = _resolve_per(per, task, prompts)
    source = {"over": "reference" if task.reference else "prompts", "prompts": len(prompts)}
    return Replacement(kind, how, recipe, _means(subject, prompts, inside, how) | inputs, source)


def input_references(subject: Subject, task: Task | None, recipe: Recipe) -> dict[Site, Tensor]:
    """Tokens for ablated parts of the prompt, where the recipe touches such: the same for every kind of replacement."""
    return {s: subject.fillers(task) for s in recipe.sites if s.kind == "inputs" and isinstance(subject, Prompted)}


def _check_positions(components: ComponentSet, task: Task) -> None:
    shortest = int(task.prompts.lengths.min())
    atoms = [(c, a.position) for c in components for a in c.atoms if a.position is not None]
    wrong = [c.name for c, p in atoms if not -shortest <= p < shortest]
    if wrong:
        raise TaskError(f"{', '.join(wrong[:8])}: position outside the shortest prompt, which has {shortest} tokens.")


def _resolve_per(per: str | None, task: Task, prompts: Prompts) -> str:
    lengths = set(prompts.lengths.tolist()) | set(task.prompts.lengths.tolist())
    if per is None:
        return "position" if len(lengths) == 1 else "pooled"
    if per not in MEAN_KINDS:
        raise TaskError(f"means are taken per 'position' or 'pooled', not {per!r}.")
    if per == "position" and len(lengths) > 1:
        raise TaskError(f"means per position need prompts of one length; these have {sorted(lengths)[:8]}. Use pooled.")
    return per


def _means(subject: Subject, prompts: Prompts, sites: tuple[Site, ...], per: str) -> dict[Site, Tensor]:
    sums: dict[Site, Tensor] = {}
    count = 0
    for rows, found in site_values(subject, prompts, sites):
        for site, values in found.items():
            total = values.double().sum((0,) if per == "position" else (0, 1))
            sums[site] = sums.get(site, torch.zeros_like(total)) + total
        count += len(rows) * (1 if per == "position" else int(prompts.lengths[rows[0]]))
    return {site: (total / count).reshape(1, -1, site.parts * site.width).float() for site, total in sums.items()}


def _resample(
    subject: Subject, task: Task, sites: tuple[Site, ...], seed: int
) -> tuple[dict[Site, Tensor], dict[str, Any]]:
    prompts = task.corrupt or task.prompts
    partners = torch.arange(len(task)) if task.corrupt is not None else _partners(task.prompts, seed)
    unlike = (prompts.lengths[partners] != task.prompts.lengths).nonzero()[:, 0].tolist()
    if unlike:
        raise TaskError(
            f"prompts {[i + 1 for i in unlike[:10]]} and their corrupt prompts differ in length; make them equal."
        )
    longest = int(task.prompts.lengths.max())
    store = {s: torch.zeros(len(prompts), longest, s.parts * s.width, device=subject.device) for s in sites}
    for rows, found in site_values(subject, prompts, sites):
        for site, values in found.items():
            store[site][rows.to(subject.device), : values.shape[1]] = values.float()
    references = {site: values[partners.to(subject.device)] for site, values in store.items()}
    source = {"over": "corrupt" if task.corrupt else "prompts", "seed": seed}
    return references, source


def _partners(prompts: Prompts, seed: int) -> Int[Tensor, " prompt"]:
    """Another prompt of the same length for each prompt: a cycle through a seeded order, so nobody meets itself."""
    partners = torch.empty(len(prompts), dtype=torch.long)
    generator = torch.Generator().manual_seed(seed)
    for length, rows in prompts.by_length().items():
        if len(rows) == 1:
            raise TaskError(
                f"prompt {int(rows[0]) + 1} is the only one of {length} tokens, so there is nothing to resample from. "
                "Give corrupt prompts, or use mean replacement."
            )
        order = rows[torch.randperm(len(rows), generator=generator)]
        partners[order] = order.roll(1)
    return partners


def collect(subject: Subject, prompts: Prompts, rows: Tensor, sites: tuple[Site, ...]) -> dict[Site, Tensor]:
    """What each site gives on some prompts of one length: ``[row, pos, feature]``."""
    seen: dict[Site, Tensor] = {}

    def watch(site: Site) -> Edit:
        def edit(x: Tensor) -> Tensor:
            seen[site] = x.clone()
            return x

        return edit

    length = int(prompts.lengths[rows[0]])
    tokens = prompts.tokens[rows, :length].to(subject.device)
    subject.forward(tokens, {site: watch(site) for site in sites}, None)  # None: no site may be narrowed
    return seen


def site_values(
    subject: Subject, prompts: Prompts, sites: tuple[Site, ...]
) -> Iterator[tuple[Int[Tensor, " row"], dict[Site, Tensor]]]:
    """What each site gives on all prompts, some of one length at a time; as many as fit into memory.

    Raises `ResponseError` where a single prompt does not fit.
    """
    groups = prompts.by_length().items()
    left = [part for length, rows in groups for part in rows.split(min(REFERENCE_ROWS, default_rows(subject, length)))]
    while left:
        rows = left.pop(0)
        found = unless_full(lambda rows=rows: collect(subject, prompts, rows, sites), len(rows))
        if found is None:
            left[:0] = rows.chunk(2)
        else:
            yield rows, found
