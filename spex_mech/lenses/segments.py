"""`Segments`: a prompt in parts, each of which is kept or ablated as one; and the text that is left."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Bool
from torch import Tensor

from spex_mech.components import Component, ComponentSet
from spex_mech.errors import TaskError

Split = Literal["words", "sentences", "tokens"]
MAX_PARTS = 100_000

_WORD = re.compile(r"\S+")
_SENTENCE = re.compile(r"\S.*?(?:[.!?…]+[\"')\]]*(?=\s|$)|\n\s*\n|$)", re.DOTALL)


@dataclass(frozen=True)
class Segments:
    """A prompt cut into parts. Part i is the component ``s{i}`` (of tokens: ``t{i}``), bit i of every mask.

    Attributes:
        texts: the parts, in order.
        gaps: what lies between them and around them, one more than there are parts; it belongs to no part.
        kind: "segment" or "token".
        ids: for tokens, what the tokenizer made of the prompt, special tokens included; else empty.
        places: for tokens, the place in `ids` of each part.
    """

    texts: tuple[str, ...]
    gaps: tuple[str, ...]
    kind: Literal["segment", "token"] = "segment"
    ids: tuple[int, ...] = ()
    places: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.texts)
        if not 1 <= n <= MAX_PARTS or len(self.gaps) != n + 1 or len(self.places) not in (0, n):
            raise TaskError(
                f"a prompt of {n:,} parts, {len(self.gaps):,} gaps and {len(self.places):,} places was given; it needs "
                f"between one and {MAX_PARTS:,} parts, one gap more, and a place for each or for none."
            )

    @property
    def components(self) -> ComponentSet:
        """The parts as components: ``s0``, ``s1`` … or ``t0``, ``t1`` …"""
        return ComponentSet(tuple(Component(self.kind, 0, i) for i in range(len(self.texts))))

    @property
    def prompt(self) -> str:
        """The whole text.

        >>> split_prompt("Not good.").prompt
        'Not good.'
        """
        return "".join(gap + text for gap, text in zip(self.gaps, (*self.texts, ""), strict=True))

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Where in the prompt every part begins and ends, by character."""
        found, at = [], 0
        for gap, text in zip(self.gaps, self.texts, strict=False):
            at += len(gap)
            found.append((at, at + len(text)))
            at += len(text)
        return tuple(found)

    def between(self, before: str, after: str) -> "Segments":
        """The same parts with text around them that always stays; not for tokens, which are what they are."""
        if not before and not after:
            return self
        if self.ids:
            raise TaskError("text around a prompt of tokens would change its tokens; split into words, or leave it.")
        gaps = [*self.gaps]
        gaps[0], gaps[-1] = before + gaps[0], gaps[-1] + after
        return Segments(self.texts, tuple(gaps), self.kind)

    def without(self, keep: Bool[Tensor, " component"]) -> str:
        """The text with ablated parts removed; each goes with the gap before it, so that no double space is left.

        >>> import torch
        >>> split_prompt("This is not good.").without(torch.tensor([True, True, False, True]))
        'This is good.'
        """
        kept = keep.tolist()
        parts = [gap + text for gap, text, k in zip(self.gaps, self.texts, kept, strict=False) if k]
        first = kept.index(True) if any(kept) else 0
        lead = parts[0][len(self.gaps[first]) :] if parts else ""
        return self.gaps[0] + lead + "".join(parts[1:]) + self.gaps[-1]

    def replaced(self, keep: Bool[Tensor, " component"], by: str | Sequence[str]) -> str:
        """The text with every ablated part replaced: all by one text, or each by its own."""
        other = [by] * len(self.texts) if isinstance(by, str) else by
        parts = [text if k else new for text, new, k in zip(self.texts, other, keep.tolist(), strict=True)]
        return "".join(gap + text for gap, text in zip(self.gaps, (*parts, ""), strict=True))


def split_prompt(
    prompt: str | Sequence[str] | Sequence[int] | Segments, into: Split = "words", tokenizer: Any = None
) -> Segments:
    """Cut a prompt into parts.

    Args:
        prompt: a text; or your own parts, which joined are the prompt; or token ids; or `Segments`, which come back as
            they are.
        into: "words" (what lies between white space), "sentences" (up to ``. ! ?`` or an empty line), or "tokens".
        tokenizer: for "tokens", a fast Hugging Face tokenizer; special tokens it adds are no parts and always stay.

    Raises `TaskError`: nothing to split, or "tokens" without a tokenizer that tells where its tokens are.

    >>> split_prompt("Not good. Not bad!", "sentences").texts
    ('Not good.', 'Not bad!')
    >>> split_prompt(["Not", " very", " good"]).components.names
    ('s0', 's1', 's2')
    """
    if isinstance(prompt, Segments):
        return prompt
    if not isinstance(prompt, str):
        own: tuple[Any, ...] = tuple(prompt)
        if own and all(isinstance(part, int) for part in own):
            gaps = ("", *(" ",) * (len(own) - 1), "")
            return Segments(tuple(map(str, own)), gaps, "token", tuple(map(int, own)), tuple(range(len(own))))
        if not own or not all(isinstance(part, str) and part for part in own):
            raise TaskError(f"{len(own)} parts of a prompt were given; each must be a text that is not empty.")
        return Segments(own, ("",) * (len(own) + 1))
    if into == "tokens":
        return _tokens(prompt, tokenizer)
    if into not in ("words", "sentences"):
        raise TaskError(f"a prompt is split into words, sentences or tokens, not {into!r}; or give your own parts.")
    spans = [match.span() for match in (_WORD if into == "words" else _SENTENCE).finditer(prompt)]
    return _from_spans(prompt, [(start, start + len(prompt[start:stop].rstrip())) for start, stop in spans])


def _from_spans(prompt: str, spans: Sequence[tuple[int, int]]) -> Segments:
    if not spans:
        raise TaskError(f"the prompt {prompt[:40]!r} has no parts; it must hold more than white space.")
    edges = [0, *(edge for span in spans for edge in span), len(prompt)]
    gaps = tuple(prompt[start:stop] for start, stop in zip(edges[::2], edges[1::2], strict=True))
    return Segments(tuple(prompt[start:stop] for start, stop in spans), gaps)


def _tokens(prompt: str, tokenizer: Any) -> Segments:
    if not getattr(tokenizer, "is_fast", False):
        raise TaskError(
            "splitting into tokens needs a fast tokenizer, which says where its tokens are: give tokenizer=…, or split "
            "into words."
        )
    made = tokenizer(prompt, return_offsets_mapping=True, return_special_tokens_mask=True)
    rows = zip(made["special_tokens_mask"], made["offset_mapping"], strict=True)
    places = [i for i, (special, _) in enumerate(rows) if not special]
    if not places:
        raise TaskError(f"the tokenizer makes no tokens of the prompt {prompt[:40]!r}.")
    texts, gaps, at = [], [], 0
    for place in places:
        start, stop = (max(at, edge) for edge in made["offset_mapping"][place])
        gaps.append(prompt[at:start])
        texts.append(prompt[start:stop])
        at = stop
    gaps.append(prompt[at:])
    return Segments(tuple(texts), tuple(gaps), "token", tuple(made["input_ids"]), tuple(places))
