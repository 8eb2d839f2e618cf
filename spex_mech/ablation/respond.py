"""`Engine`, `respond`: the pass from keep bits to values. Takes Booleans, never a design."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property, partial
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spex_mech.ablation.batching import default_rows, in_halves, rows_that_fit
from spex_mech.ablation.contract import describe_certificates
from spex_mech.ablation.identity import Watch
from spex_mech.ablation.memory import peak_bytes
from spex_mech.ablation.prefixes import Prefixes, find_prefixes
from spex_mech.ablation.replacement import Replacement
from spex_mech.ablation.subject import Shortcuts, Site, Subject, common_position, shortcuts_of
from spex_mech.components import ComponentSet
from spex_mech.store.fingerprints import hash_function
from spex_mech.store.responses import refuse_non_finite
from spex_mech.tasks.metrics import Metric, Scored, resolve
from spex_mech.tasks.task import Task

PROBE = 4  # masks whose peak memory says how many fit


def respond(
    subject: Subject,
    task: Task,
    components: ComponentSet,
    keep_chunks: Iterable[Bool[Tensor, "mask component"]],
    replacement: Replacement,
    *,
    batch_rows: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Float[Tensor, "mask prompt"]:
    """The metric of every prompt under every mask, float32 on the CPU, masks in the order given.

    A row of a batch is one prompt under one mask; prompts of one length share it with many masks, so nothing is padded.
    Where the subject allows, layers on which masks agree run once for all of them. The size of a batch follows from
    the measured memory of a few rows; batches that do not fit are halved. Values do not depend on `batch_rows` beyond
    float rounding.

    Raises:
        ResponseError: a value is not finite (the mask and what it ablates are named), or one row does not fit.
    """
    engine = Engine(subject, task, components, replacement, batch_rows)
    done: list[Tensor] = []
    offset = 0
    for keep in keep_chunks:
        done.append(engine.values(keep))
        refuse_non_finite(components, keep, done[-1], offset)
        offset += len(keep)
        if on_progress is not None:
            on_progress(len(keep))
    return torch.cat(done) if done else torch.zeros(0, len(task))


@dataclass(frozen=True)
class Engine:
    """What stays the same over all masks of a run; see `respond` for what it does with each.

    It is the lens (`measuring.lens`) on a model. `batch_rows` may differ by prompt length.
    """

    subject: Subject
    task: Task
    components: ComponentSet
    replacement: Replacement
    batch_rows: int | Mapping[int, int] | None = None
    watch: Watch = field(default_factory=Watch, repr=False, compare=False)

    verb: ClassVar[str] = "ablating"
    chunk: ClassVar[int] = 256  # masks handed over at a time; batches are made within
    roles: ClassVar[Mapping[str, str]] = {}

    @property
    def unit(self) -> str:
        return self._metric.unit

    @property
    def outputs(self) -> int:
        return len(self.task)

    @property
    def device(self) -> torch.device:
        return self.subject.device

    def describe(self) -> dict[str, Any]:
        """Whatever decides the values, by content, beside masks and components."""
        metric = {} if isinstance(self.task.metric, str) else {"metric_sha256": hash_function(self.task.metric)}
        subject = dict(self.subject.provenance)
        self.watch.begin(self.subject, subject)
        return {
            "subject": subject,
            "task": {**self.task.describe(), **metric},
            "replacement": self.replacement.describe(),
        }

    @property
    def notes(self) -> Mapping[str, Any]:
        """See `Lens.notes`: what binding certified, layers of one kind together."""
        own = getattr(getattr(self.subject, "inner", self.subject), "own_certificates", ())
        return {
            "certificates": describe_certificates(self.subject),
            **({"sites": [asdict(told) for told in own]} if own else {}),
        }

    def settled(self, settle: Callable[[str, Callable[[], Any]], Any]) -> "Engine":
        """The same with the batch sizes that a run began with, on which the last bits depend."""
        rows = settle("batch_rows", lambda: dict(self.rows))
        return replace(self, batch_rows={int(length): int(count) for length, count in rows.items()})

    def refuse_change(self) -> None:
        """See `Lens.refuse_change`."""
        self.watch.check(self.subject)

    def values(
        self, keep: Bool[Tensor, "mask component"], met: Int[Tensor, "mask slot"] | None = None
    ) -> Float[Tensor, "mask slot"]:
        """The metric of every prompt under some masks, finite or not; with `met`, column s of row m is of prompt
        ``met[m, s]``."""
        keep = keep.cpu()
        if met is not None:
            return self._of_met(keep, met.cpu())
        values = torch.empty(len(keep), len(self.task))
        for length, prompts in self.task.prompts.by_length().items():
            values[:, prompts] = self._measure(keep, prompts, length, self.rows[length])
        return values

    def _of_met(self, keep: Tensor, met: Tensor) -> Float[Tensor, "mask slot"]:
        """Masks under some prompts each: the masks that met one prompt go together, as in a run of that prompt alone;
        where a backend takes a prompt a row, prompts of one length share batches."""
        values = torch.empty(met.shape)
        for length, prompts in self.task.prompts.by_length().items():
            rows = self.rows[length]
            if shortcuts_of(self.subject).one_row and self.replacement.recipe.sites:
                for prompt in prompts.split(1):
                    mask, slot = (met == prompt).nonzero(as_tuple=True)
                    if len(mask):
                        values[mask, slot] = self._measure(keep[mask], prompt, length, rows)[:, 0]
                continue
            mask, slot = torch.isin(met, prompts).nonzero(as_tuple=True)
            if len(mask):
                values[mask, slot] = self._many_prompts(keep, mask, met[mask, slot], length, rows)
        return values

    @cached_property
    def rows(self) -> Mapping[int, int]:
        """Rows a batch for each prompt length: as given, else as many as fit."""
        if isinstance(self.batch_rows, Mapping):
            return self.batch_rows
        fixed = self.batch_rows
        return dict.fromkeys(self.task.prompts.by_length(), fixed) if fixed else self._rows_that_fit

    @property
    def _shortcuts(self) -> Shortcuts:
        return shortcuts_of(self.subject, self.replacement.recipe.sites)

    @cached_property
    def _metric(self) -> Metric:
        return resolve(self.task)

    @cached_property
    def _clean(self) -> Float[Tensor, "prompt vocab"] | None:
        """The intact model's log-probabilities at the scored positions, for metrics that compare with them."""
        if not self._metric.needs_clean:
            return None
        device, task = self.subject.device, self.task
        out = torch.empty(len(task), self.subject.shape.d_vocab_out, device=device)
        for length, prompts in task.prompts.by_length().items():

            def run(start: int, stop: int, prompts: Tensor = prompts, length: int = length) -> Tensor:
                part = prompts[start:stop]
                tokens = task.prompts.tokens[part, :length].to(device)
                return self.subject.forward(tokens, {}, task.positions[part]).float().log_softmax(1).clone()

            out[prompts.to(device)] = in_halves(run, len(prompts), default_rows(self.subject, length))
        return out

    @cached_property
    def _rows_that_fit(self) -> dict[int, int]:
        """Rows a batch for each prompt length, from the measured peak memory of a few rows."""
        n = self.replacement.recipe.n
        keep = (torch.rand(PROBE, n, generator=torch.Generator().manual_seed(0)) < 0.5).unique(dim=0)
        found = {}
        for length, prompts in self.task.prompts.by_length().items():
            peak = peak_bytes(partial(self._measure, keep, prompts[:1], length, len(keep)))
            found[length] = rows_that_fit(peak // len(keep), self.subject.device)
        return found

    def _measure(self, keep: Tensor, prompts: Tensor, length: int, rows: int) -> Float[Tensor, "mask prompt"]:
        shortcuts, recipe = self._shortcuts, self.replacement.recipe
        if not (shortcuts.one_row and recipe.sites):  # all prompts of one length under some masks
            row = torch.arange(len(keep) * len(prompts))
            found = self._many_prompts(keep, row // len(prompts), prompts[row % len(prompts)], length, rows)
            return found.reshape(len(keep), len(prompts))
        whole = find_prefixes(recipe, keep) if shortcuts.grow else None
        order = torch.arange(len(keep)) if whole is None else whole.order

        @cache  # the same for all prompts
        def batch(start: int, stop: int) -> tuple[Tensor, Prefixes | None]:
            masks = keep[order[start:stop]]
            if whole is not None and len(masks) == len(keep):
                return masks, whole.sorted()
            return masks, find_prefixes(recipe, masks) if shortcuts.grow else None

        values = torch.empty(len(keep), len(prompts))
        for column, prompt in enumerate(prompts.split(1)):  # one prompt under many masks

            def run(start: int, stop: int, prompt: Tensor = prompt) -> Tensor:
                return self._one_prompt(*batch(start, stop), prompt, length)

            values[order, column] = in_halves(run, len(keep), rows)
        return values

    def _many_prompts(
        self, keep: Tensor, masks: Tensor, prompts: Tensor, length: int, rows: int
    ) -> Float[Tensor, " row"]:
        """Row r: prompt ``prompts[r]`` under mask ``masks[r]``."""

        def run(start: int, stop: int) -> Tensor:
            prompt = prompts[start:stop]
            edits = self.replacement.edits(keep[masks[start:stop]], prompt, length, self._only(prompt))
            tokens = self.task.prompts.tokens[prompt, :length].to(self.subject.device)
            return self._values(self.subject.forward(tokens, edits, self._positions(prompt)), prompt, tokens)

        return in_halves(run, len(prompts), rows)

    def _one_prompt(self, keep: Tensor, shared: Prefixes | None, prompt: Tensor, length: int) -> Float[Tensor, " mask"]:
        """One prompt under many masks; layers on which masks agree so far run once for all of them."""
        masks = None if shared is None else shared.masks
        edits = self.replacement.edits(keep, prompt, length, self._only(prompt), masks)
        tokens = self.task.prompts.tokens[prompt, :length].to(self.subject.device)
        growth: dict[str, Any] = {"growth": shared.growth} if shared is not None and shared.growth else {}
        logits = self.subject.forward(tokens, edits, self._positions(prompt), **growth)
        values = self._values(logits, prompt.expand(len(logits)), tokens.expand(len(logits), -1))
        return values if shared is None else values[shared.last]

    def _positions(self, prompt: Tensor) -> Int[Tensor, " row"] | None:
        return None if self._metric.all_positions else self.task.positions[prompt]

    def _only(self, prompt: Tensor) -> dict[Site, int]:
        position = common_position(self._positions(prompt))
        return {} if position is None else dict.fromkeys(self._shortcuts.narrow, position)

    def _values(self, logits: Tensor, prompt: Int[Tensor, " row"], tokens: Tensor) -> Float[Tensor, " row"]:
        device, task = self.subject.device, self.task
        with torch.inference_mode():
            scored = Scored(
                logits.float(),
                prompt.to(device),
                task.answers[prompt].to(device),
                task.distractors[prompt].to(device),
                tokens if self._metric.all_positions else None,
                None if self._clean is None else self._clean[prompt.to(device)],
                task.also[prompt].to(device),
            )
            return self._metric.compute(scored).float().cpu()
