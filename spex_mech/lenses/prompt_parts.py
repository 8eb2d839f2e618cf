"""`Features`: which parts of a prompt are kept → the text or tokens that are left → the value of each mask."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spex_mech.components import ComponentSet
from spex_mech.errors import TaskError
from spex_mech.lenses.readers import Reader, TokenRow
from spex_mech.lenses.segments import Segments
from spex_mech.measuring.lens import Settle

Ablation = Literal["remove", "mask", "pad", "replace"]
BATCH_ROWS = 32


@dataclass(frozen=True)
class Features:
    """A prompt, how its parts are ablated, and what reads the rest.

    Attributes:
        ablation: "remove"; "replace" (by `filler`, one text for all parts or one each); "mask" (a mask token in the
            place of every token, attended to); "pad" (a token that nothing attends to). A function of text gets the
            text `filler` for "mask".
        mask: for "mask" and "pad", the token.
        encode: text → token ids; needed where the reader wants tokens.
        ids, owners: the whole prompt's tokens, and for each the part it belongs to (-1: none, it always stays).
        nothing: the token that is read where no other is left.
        batch_rows: texts or rows a call at most.
        content: by what a run folder knows the model or function ("subject"), and a metric of the user's ("task").
    """

    segments: Segments
    reader: Reader
    ablation: Ablation = "remove"
    filler: str | tuple[str, ...] = "[MASK]"
    mask: int | None = None
    encode: Callable[[str], Sequence[int]] | None = None
    ids: tuple[int, ...] = ()
    owners: tuple[int, ...] = ()
    nothing: int | None = None
    batch_rows: int = BATCH_ROWS
    content: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    verb: ClassVar[str] = "reading"
    chunk: ClassVar[int] = 256

    def __post_init__(self) -> None:
        n = len(self.segments.texts)
        if not isinstance(self.filler, str) and len(self.filler) != n:
            raise TaskError(f"{len(self.filler)} replacement texts were given for {n} parts; give one, or one a part.")

    @property
    def components(self) -> ComponentSet:
        return self.segments.components

    @property
    def roles(self) -> Mapping[str, str]:
        return dict(zip(self.components.names, self.segments.texts, strict=True))

    @property
    def device(self) -> torch.device:
        return self.reader.device

    @property
    def unit(self) -> str:
        return self.reader.unit

    @property
    def outputs(self) -> int:
        return self.reader.outputs

    def row(self, keep: Bool[Tensor, " component"]) -> TokenRow:
        """What one mask leaves."""
        segments = self.segments
        if self.reader.wants == "text":
            return TokenRow(
                segments.without(keep) if self.ablation == "remove" else segments.replaced(keep, self.filler)
            )
        if self.ablation in ("mask", "pad") or (self.ablation == "remove" and segments.ids):
            return self._tokens(keep)
        text = segments.without(keep) if self.ablation == "remove" else segments.replaced(keep, self.filler)
        assert self.encode is not None
        return TokenRow(text, tuple(self.encode(text)) or self._nothing)

    def _tokens(self, keep: Bool[Tensor, " component"]) -> TokenRow:
        """Tokens in their places, those of ablated parts masked, hidden or left out."""
        ids, kept = self.ids, keep.tolist()
        stays = [owner < 0 or kept[owner] for owner in self.owners]
        if self.ablation == "remove":
            return TokenRow("", tuple(token for token, stay in zip(ids, stays, strict=True) if stay) or self._nothing)
        if self.ablation == "pad" and not any(stays):
            return TokenRow("", self._nothing)
        assert self.mask is not None
        shown = tuple(token if stay else self.mask for token, stay in zip(ids, stays, strict=True))
        return TokenRow("", shown, tuple(stays) if self.ablation == "pad" else ())

    @property
    def _nothing(self) -> tuple[int, ...]:
        return () if self.nothing is None else (self.nothing,)

    def values(self, keep: Bool[Tensor, "mask component"]) -> Float[Tensor, "mask output"]:
        """The value of every mask; masks that leave the same are read once."""
        rows = [self.row(one) for one in keep]
        first = {row: i for i, row in reversed(list(enumerate(rows)))}
        different = sorted(set(first.values()))
        values = self.reader.read([rows[i] for i in different], self.batch_rows)
        place = {i: j for j, i in enumerate(different)}
        return values[[place[first[row]] for row in rows]]

    def settled(self, settle: Settle) -> "Features":
        return replace(self, batch_rows=int(settle("batch_rows", lambda: self.batch_rows)))

    @property
    def notes(self) -> dict[str, Any]:
        return {}

    def refuse_change(self) -> None:
        """Nobody can tell of a reader."""

    def describe(self) -> dict[str, Any]:
        """What decides the values, by content."""
        filler = self.filler if isinstance(self.filler, str) else list(self.filler)
        told = {
            "lens": "features", "parts": list(self.segments.texts), "gaps": list(self.segments.gaps),
            "ablation": self.ablation, "mask": self.mask, "filler": filler, **self.reader.describe(),
        }  # fmt: skip
        metric = told.get("metric", told.get("function"))
        return {
            "subject": {**self.content.get("subject", {}), "reader": told["reader"]},
            "task": {"prompts": 1, "metric": metric, **self.content.get("task", {}), "features": told},
            "replacement": {"kind": self.ablation, "filler": filler, "mask": self.mask},
        }


def owners_of(segments: Segments, spans: Sequence[tuple[int, int]], special: Sequence[bool]) -> tuple[int, ...]:
    """For every token the part it belongs to, by its first character that is in one; -1 for special tokens and gaps.

    >>> owners_of(Segments(("Not", "good"), ("", " ", "")), [(0, 3), (3, 8)], [False, False])
    (0, 1)
    """
    where = {at: i for i, (start, stop) in enumerate(segments.spans) for at in range(start, stop)}
    return tuple(
        -1 if hidden else next((where[at] for at in range(start, stop) if at in where), -1)
        for (start, stop), hidden in zip(spans, special, strict=True)
    )
