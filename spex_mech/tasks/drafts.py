"""`write_task`: from drafts of prompts to a `Task`; what does not fit together is dropped, counted and told."""

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from spex_mech.errors import TaskError
from spex_mech.files.json import plain_problems
from spex_mech.tasks.prompts import Prompts
from spex_mech.tasks.speller import Speller, identify
from spex_mech.tasks.task import Task

TRIES = 60  # drafts looked at for each prompt asked for
_PILOT = 96  # drafts whose lengths are looked at before one length is settled


@dataclass(frozen=True)
class Draft:
    """A prompt in words: what it should continue with, what it should not, and its counterfactual.

    Continuations are texts with their leading space, or token ids already.
    """

    text: str
    answer: str | int | None
    wrong: tuple[str | int, ...]
    corrupt: str
    also: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Row:
    text: str
    tokens: list[int]
    corrupt: list[int]
    answer: int
    wrong: list[int]
    also: tuple[int, ...]


@dataclass(frozen=True)
class Order:
    """What was asked of a generator, so that a refusal can say it."""

    what: str
    n: int
    equal_lengths: bool = True
    metric: str | Callable[..., Any] = "logit_diff"


def recorded(generator: Callable[..., Task]) -> Callable[..., Task]:
    """A generator whose tasks say how they were made: its name, its arguments, and whose ids they are."""
    named = inspect.signature(generator)

    @functools.wraps(generator)
    def make(*args: Any, **kwargs: Any) -> Task:
        task = generator(*args, **kwargs)
        given = named.bind(*args, **kwargs)
        given.apply_defaults()
        source = next(iter(given.arguments.values()))
        told = {name: list(v) if isinstance(v, tuple) else v for name, v in given.arguments.items() if name != "metric"}
        kept = {name: value for name, value in told.items() if not plain_problems(value, name)}
        object.__setattr__(task, "options", {"generator": generator.__name__, **kept})
        object.__setattr__(task, "tokenizer", identify(source))
        return task

    return make


def write_task(order: Order, speller: Speller, drafts: Iterable[Draft], possible: int, notes: Sequence[str]) -> Task:
    """A task of exactly ``order.n`` prompts from the first drafts that fit.

    Args:
        drafts: unique ones, in the order in which they are to be taken.
        possible: how many there could be at most.
        notes: what was dropped before.

    Raises:
        TaskError: there are not as many; what there is and why is told.
    """
    check_count(order, possible, notes)
    rows, dropped, lengths = list[_Row](), Counter[str](), Counter[int]()
    length = 0  # not settled yet
    for draft in drafts:
        found = _row(speller, draft)
        if isinstance(found, str):
            dropped[found] += 1
            continue
        rows.append(found)
        lengths[len(found.tokens)] += 1
        if order.equal_lengths and not length and len(rows) == _PILOT:
            length = _commonest(lengths)
        if (lengths[length] if order.equal_lengths else len(rows)) >= order.n:
            break
    if order.equal_lengths and rows:
        length = length or _commonest(lengths)
        dropped[f"prompts of other lengths than {length} tokens"] += len(rows) - lengths[length]
        rows = [row for row in rows if len(row.tokens) == length]
    told = [*notes, *(f"{count:,} {reason} were dropped" for reason, count in dropped.items() if count)]
    if len(rows) < order.n:
        raise TaskError(_too_few(order, len(rows), told))
    return _task(rows[: order.n], order.metric, told)


def check_count(order: Order, possible: int, notes: Sequence[str] = ()) -> None:
    """Raise `TaskError` where n is no number of prompts, or more than there can be."""
    if order.n < 1:
        raise TaskError(f"{order.what}: n={order.n} was asked for; it must be at least 1.")
    if possible < order.n:
        raise TaskError(_too_few(order, possible, notes))


def choose_lists(order: Order, **lists: tuple[list[str], int]) -> None:
    """Raise `TaskError` where a list of words is shorter than a prompt needs."""
    short = [f"{len(words)} {name} (at least {least})" for name, (words, least) in lists.items() if len(words) < least]
    if short:
        raise TaskError(
            f"{order.what}: of the words known here this tokenizer has as single tokens only {', '.join(short)}. "
            "Write prompts of your own for it: Task.from_jsonl."
        )


def _too_few(order: Order, found: int, told: Sequence[str]) -> str:
    why = "".join(f"\n  - {note}" for note in told)
    return f"{order.what}: {order.n:,} unique prompts were asked for, and there are {found:,} here. Lower n.{why}"


def _commonest(lengths: Counter[int]) -> int:
    return min(lengths, key=lambda length: (-lengths[length], length))


def _row(speller: Speller, draft: Draft) -> _Row | str:
    """The ids of a draft, or in words why it cannot be used."""
    ids = [_one(speller, draft.text, c) for c in (draft.answer, *draft.wrong)]
    tokens, corrupt = speller.prompt(draft.text), speller.prompt(draft.corrupt)
    if not speller.knows([*tokens, *corrupt]):
        return "prompts with words that this tokenizer does not know"
    known = [i for i in ids if i is not None]
    if len(known) < len(ids):
        return "prompts whose answer or distractor is not one token there"
    if known[0] in known[1:] or set(draft.also) & set(known):
        return "prompts whose answer is a distractor too"
    if len(corrupt) != len(tokens):
        return "prompts whose counterfactual has another length"
    return _Row(draft.text, tokens, corrupt, known[0], known[1:], draft.also)


def _one(speller: Speller, text: str, continuation: str | int | None) -> int | None:
    return speller.next(text, continuation) if isinstance(continuation, str) else continuation


def _task(rows: Sequence[_Row], metric: str | Callable[..., Any], notes: Sequence[str]) -> Task:
    corrupt = Prompts.from_rows([row.corrupt for row in rows])
    return Task(
        [row.tokens for row in rows],
        [row.answer for row in rows],
        [row.wrong for row in rows],
        metric=metric,
        corrupt=corrupt,
        reference=corrupt,
        texts=[row.text for row in rows],
        also=[row.also for row in rows],
        notes=notes,
    )
