"""`Speller`: one way to ask any tokenizer what a text's ids are, and which single token continues it."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from spex_mech.errors import TaskError


def identify(tokenizer: Any) -> str | None:
    """A tokenizer by content: a hash of its vocabulary, the same for every copy of it; None where it does not tell."""
    vocabulary = getattr(tokenizer, "get_vocab", None)
    if not callable(vocabulary):
        return None
    rows = sorted((int(i), str(word)) for word, i in dict(vocabulary()).items())
    return f"{len(rows)} tokens, sha256 {hashlib.sha256(repr(rows).encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class Speller:
    """A tokenizer of Hugging Face's form, of the ``tokenizers`` library, or a function ``text → ids``.

    `bos` is put before every prompt; None: whatever the tokenizer itself puts there.
    """

    tokenizer: Any
    bos: int | None = None

    def plain(self, text: str) -> list[int]:
        """The ids of a text without special tokens."""
        return self._encode(text, special=False)

    def prompt(self, text: str) -> list[int]:
        """The ids of a prompt: special tokens in front, none behind, so that the last token is the text's."""
        return [*self.first, *self.plain(text)]

    def front(self, text: str) -> tuple[int, ...]:
        """The special tokens that are put before this text; none where the text's own tokens change with them."""
        if self.bos is not None:
            return (self.bos,)
        plain, full = self.plain(text), self._encode(text, special=True)
        starts = [i for i in range(len(full) - len(plain) + 1) if full[i : i + len(plain)] == plain]
        return tuple(full[: starts[0]]) if starts else ()

    def doubles(self, text: str) -> bool:
        """Whether a text begins with the very special tokens that are put before it.

        Found from the ids, where "<s> w5" of a tokenizer that puts ``<s>`` first gives ``<s> <s> w5``.
        """
        first = list(self.first)
        return bool(first) and self.plain(text)[: len(first)] == first

    def next(self, text: str, continuation: str) -> int | None:
        """The one token that continues `text`; None where it is several, or changes the tokens before it."""
        before, after = self.plain(text), self.plain(text + continuation)
        return after[-1] if after[:-1] == before and after[-1] != self.unknown else None

    def knows(self, ids: Sequence[int]) -> bool:
        """Whether none of the ids stands for something the tokenizer has never seen."""
        return self.unknown not in ids

    def single(self, words: Iterable[str], what: str, lead: str = "The") -> tuple[list[str], list[str]]:
        """The words that are one token of their own after a space, and a note on those that are not."""
        ids = {word: self.next(lead, f" {word}") for word in dict.fromkeys(words)}
        counts = Counter(ids.values())
        kept = [word for word, i in ids.items() if i is not None and counts[i] == 1]
        gone = [word for word in ids if word not in kept]
        few = ", ".join(gone[:6]) + (f", … {len(gone) - 6} more" if len(gone) > 6 else "")
        return kept, [f"{len(gone)} of {len(ids)} {what} are no single token and were dropped: {few}"] if gone else []

    @cached_property
    def first(self) -> tuple[int, ...]:
        """What stands before a prompt's own tokens."""
        return self.front("The")

    @cached_property
    def unknown(self) -> int | None:
        """The id of unknown words; None where there is none, or where it has another use as well (GPT-2's)."""
        found = getattr(self.tokenizer, "unk_token_id", None)
        others = (getattr(self.tokenizer, f"{name}_token_id", None) for name in ("eos", "bos"))
        return None if found in others else found

    def _encode(self, text: str, *, special: bool) -> list[int]:
        encode = getattr(self.tokenizer, "encode", self.tokenizer)
        if not callable(encode):
            raise TaskError(
                f"{type(self.tokenizer).__name__} is no tokenizer: it needs encode(text), or to be a function from a "
                "text to its token ids."
            )
        try:
            found = encode(text, add_special_tokens=special)
        except TypeError:  # a plain function, or a tokenizer that never adds any
            found = encode(text)
        return [int(i) for i in getattr(found, "ids", found)]
