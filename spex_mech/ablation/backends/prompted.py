"""`PromptedSubject`: a bound model together with the parts of its prompts, all of them components of one subject.

One keep matrix then rules both kinds: ``a3.h2`` is a head, ``t5`` the sixth token of every prompt, ``s2`` a stretch of
tokens. So `discover` finds sets such as {a3.h2, t5}: a head that matters only where a word is there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spex_mech.ablation.binding import bind
from spex_mech.ablation.subject import Edit, Shortcuts, Site, Subject, shortcuts_of
from spex_mech.components import ModelShape
from spex_mech.errors import TaskError
from spex_mech.tasks.task import Task

Span = tuple[int, int]
Filler = int | Literal["corrupt"]
_LISTED = 3  # texts of a part that are shown where prompts differ


@dataclass(frozen=True, eq=False)
class PromptedSubject:
    """A `Subject` whose tokens are components too; use `with_prompt`.

    Attributes:
        inner: the bound model.
        kind: "token" (parts ``t0``, ``t1`` …) or "segment" (``s0``, ``s1`` …).
        spans: first position and the one after the last of each part, the same in every prompt, apart from each other.
        filler: the token in the place of each ablated one, or "corrupt": that of the task's corrupt prompt.
        texts: what the parts say, for people; or empty.
    """

    inner: Subject
    kind: Literal["token", "segment"]
    spans: tuple[Span, ...]
    filler: Filler
    texts: tuple[str, ...] = ()

    @cached_property
    def site(self) -> Site:
        """Where tokens are let go: ``[row, pos, part]``, every token once for each part."""
        return Site(0, "inputs", len(self.spans), 1)

    @cached_property
    def shape(self) -> ModelShape:
        count = len(self.spans)
        if self.kind == "token":
            return replace(self.inner.shape, tokens=count)
        return replace(self.inner.shape, segments=count)

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        return (self.site, *self.inner.sites)

    @property
    def device(self) -> torch.device:
        return self.inner.device

    @cached_property
    def provenance(self) -> Mapping[str, Any]:
        names = [f"{self.kind[0]}{i}" for i in range(len(self.spans))]
        told = {"spans": [list(span) for span in self.spans], "filler": self.filler}
        texts = dict(zip(names, self.texts, strict=True)) if self.texts else {}
        return {**self.inner.provenance, "prompt_parts": {**told, "texts": texts}}

    @cached_property
    def shortcuts(self) -> Shortcuts:
        """Those of the model, but none that lets rows share their tokens: masks differ in them."""
        return replace(shortcuts_of(self.inner), one_row=False, grow=False)

    def forward(
        self, tokens: Int[Tensor, "row pos"], edits: Mapping[Site, Edit], positions: Int[Tensor, " row"] | None
    ) -> Float[Tensor, "row vocab"] | Float[Tensor, "row pos vocab"]:
        """See `Subject.forward`: the tokens are replaced first, then the model runs on what is left with the rest."""
        inside = {site: edit for site, edit in edits.items() if site != self.site}
        if self.site in edits:
            tokens = self._shown(tokens, edits[self.site])
        return self.inner.forward(tokens, inside, positions)

    def fillers(self, task: Task | None) -> Float[Tensor, "prompt pos part"]:
        """The tokens in the place of ablated ones; raises `TaskError` where they are the corrupt prompts' and there
        are none of the same lengths."""
        if self.filler != "corrupt":
            return torch.full((1, 1, len(self.spans)), float(self.filler), device=self.device)
        corrupt = None if task is None else task.corrupt
        if task is None or corrupt is None or not corrupt.lengths.equal(task.prompts.lengths):
            raise TaskError(
                "parts of the prompts are replaced by those of the corrupt prompts, and this task has none of the same "
                "lengths. Give a task with corrupt prompts, or one token for all: with_prompt(…, filler=token)."
            )
        return corrupt.tokens[..., None].expand(-1, -1, len(self.spans)).float().to(self.device)

    def _shown(self, tokens: Int[Tensor, "row pos"], edit: Edit) -> Int[Tensor, "row pos"]:
        """The tokens of which each part is kept or replaced; numbers of tokens are exact in float32 up to 2^24."""
        edited = edit(tokens.float()[..., None].expand(-1, -1, len(self.spans)))
        shown = tokens.clone()
        for part, (start, stop) in enumerate(self.spans):
            shown[:, start:stop] = edited[:, start:stop, part].long()
        return shown


def with_prompt(
    model: Any,
    task: Task,
    parts: Literal["tokens"] | Sequence[Span] = "tokens",
    *,
    filler: Filler = "corrupt",
    tokenizer: Any = None,
) -> PromptedSubject:
    """A model and the parts of its prompts as one subject, for `discover`, `audit` and `ablated`.

    ```python
    subject = sm.with_prompt(model, task, [(0, 3), (5, 6)], filler=tokenizer.eos_token_id)
    found = sm.discover(subject, task, components="a*.h*, s*")
    ```

    A coefficient of {a3.h2, s1} says how much more the head does where the words are there. Ablated tokens are
    replaced in their place, so that positions stay what they are; what replaces heads and MLPs is `discover`'s
    `replacement`, its values taken on whole prompts. Each mask has tokens of its own, so no layers are shared between
    masks: a row costs a whole pass.

    Args:
        model: a bound subject, or any model that `bind` takes.
        task: its prompts say how many tokens there are.
        parts: "tokens": each position up to the end of the shortest prompt is a part, ``t0``, ``t1`` …; or spans
            ``(first, after the last)`` of positions, ``s0``, ``s1`` …, the same in every prompt. What is in no part
            always stays, as do the answers and the places where they are read.
        filler: a token for all places (a mask, padding or end-of-text token), or "corrupt": the token that the task's
            corrupt prompt has there.
        tokenizer: names the parts by what they say (anything with ``decode(ids)``).

    Raises `TaskError`: spans that overlap or leave the shortest prompt, a filler that is no token of the model, or
    "corrupt" without corrupt prompts of the same lengths.
    """
    inner = bind(model)
    if isinstance(inner, PromptedSubject):
        raise TaskError("this subject has the parts of a prompt already; give the model itself.")
    task = task.check(inner.shape)
    shortest = int(task.prompts.lengths.min())
    kind: Literal["token", "segment"] = "token" if isinstance(parts, str) else "segment"
    spans = tuple((i, i + 1) for i in range(shortest)) if isinstance(parts, str) else _spans(parts, shortest)
    if isinstance(filler, int) and not 0 <= filler < inner.shape.d_vocab:
        raise TaskError(f"the filler {filler} is no token of {inner.shape.name}, which has {inner.shape.d_vocab:,}.")
    subject = PromptedSubject(inner, kind, spans, filler, _texts(task, spans, tokenizer))
    subject.fillers(task)  # raises where there are none
    return subject


def _spans(parts: Sequence[Span], shortest: int) -> tuple[Span, ...]:
    spans = tuple((int(start), int(stop)) for start, stop in parts)
    ordered = sorted(spans)
    outside = [span for span in ordered if not 0 <= span[0] < span[1] <= shortest]
    both = [(a, b) for a, b in pairwise(ordered) if b[0] < a[1]]
    if outside or both or not spans:
        raise TaskError(
            f"spans {outside or both or 'none'} were given: each is (first position, after the last) inside the "
            f"shortest prompt, which has {shortest} tokens, and no two share a token."
        )
    return spans


def _texts(task: Task, spans: Sequence[Span], tokenizer: Any) -> tuple[str, ...]:
    """What each part says; where prompts differ, the first few."""
    if tokenizer is None:
        return ()
    found = []
    for start, stop in spans:
        said = dict.fromkeys(str(tokenizer.decode(ids)).strip() for ids in task.prompts.tokens[:, start:stop].tolist())
        found.append(" / ".join([*list(said)[:_LISTED], *(["…"] if len(said) > _LISTED else [])]))
    return tuple(found)
