"""Tasks of one sentence: indirect objects, years, pronouns."""

import random
from collections.abc import Iterator
from typing import Any

from spex_mech.errors import TaskError
from spex_mech.tasks.drafts import TRIES, Draft, Order, choose_lists, recorded, write_task
from spex_mech.tasks.grids import Arrangement, Grid
from spex_mech.tasks.speller import Speller
from spex_mech.tasks.task import Task
from spex_mech.tasks.words import EVENTS, JOBS, MEN, PLACES, PRAISE, THINGS, WOMEN

_GIVING = (
    "When {a} and {b} met at the {place}, {s} gave a {thing} to",
    "After {a} and {b} left the {place}, {s} handed a {thing} to",
    "While {a} and {b} were at the {place}, {s} passed a {thing} to",
    "Once {a} and {b} reached the {place}, {s} offered a {thing} to",
    "Then {a} and {b} went to the {place}, and {s} gave a {thing} to",
    "Today {a} and {b} walked to the {place}, and {s} brought a {thing} to",
)
_AGREEING = (
    "Everyone says {name} is a {praise} {kind}, isn't",
    "They all say {name} is a {praise} {kind}, isn't",
    "I think that {name} was a {praise} {kind}, wasn't",
    "We agree that {name} is a {praise} {kind}, isn't",
)
_LASTING = ("The {event} went on from the year {start} until the year {century}",)
_CENTURIES = tuple(str(c) for c in range(11, 19))
_YEARS = tuple(f"{y:02d}" for y in range(100))


@recorded
def ioi(
    tokenizer: Any,
    n: int = 64,
    seed: int = 0,
    *,
    patterns: tuple[str, ...] = ("ABBA", "BABA"),
    bos: int | None = None,
    equal_lengths: bool = True,
    metric: str = "logit_diff",
) -> Task:
    """Indirect object identification: "When Mary and John met at the park, John gave a book to" → " Mary".

    The answer is the name that stands once, the distractor the one that stands twice. Counterfactuals (ABC) have three
    other names, all different, in the same sentence, so that nothing tells who is given to.

    Args:
        tokenizer: of Hugging Face's form, of the ``tokenizers`` library, or a function from a text to its ids.
        n: number of prompts, all different.
        seed: same seed, same prompts.
        patterns: "ABBA" (the answer is named first), "BABA" (second), or both, in equal numbers but for chance.
        bos: id to put before every prompt; default: what the tokenizer puts there.
        equal_lengths: keep prompts of the commonest length only, so that means can be taken per position.
        metric: in logits: the answer's minus the distractor's.

    Raises:
        TaskError: unknown patterns, too few names that are single tokens, or fewer than n different prompts.

    Source of the task: Wang et al. 2022, Interpretability in the wild (arXiv 2211.00593).
    """
    if not patterns or set(patterns) - {"ABBA", "BABA"}:
        raise TaskError(f"patterns={patterns!r}; they are 'ABBA', 'BABA', or both.")
    speller, order = Speller(tokenizer, bos), Order("ioi", n, equal_lengths, metric)
    names, dropped = speller.single(_mixed(WOMEN, MEN), "names")
    places, without = speller.single(PLACES, "places")
    things, lost = speller.single(THINGS, "things")
    choose_lists(order, names=(names, 5), places=(places, 1), things=(things, 1))
    grid = Grid(patterns, _GIVING, places, things, Arrangement(names, 2))
    drafts = (_giving(rng, names, *chosen) for rng, chosen in grid.draw(seed, TRIES * max(n, 1)))
    return write_task(order, speller, drafts, len(grid), [*dropped, *without, *lost])


def _giving(
    rng: random.Random, names: list[str], pattern: str, frame: str, place: str, thing: str, pair: tuple[str, str]
) -> Draft:
    answer, twice = pair
    a, b = pair if pattern == "ABBA" else (twice, answer)
    others = rng.sample([name for name in names if name not in pair], 3)
    text = frame.format(a=a, b=b, s=twice, place=place, thing=thing)
    corrupt = frame.format(a=others[0], b=others[1], s=others[2], place=place, thing=thing)
    return Draft(text, f" {answer}", (f" {twice}",), corrupt)


@recorded
def gendered_pronouns(
    tokenizer: Any,
    n: int = 64,
    seed: int = 0,
    *,
    bos: int | None = None,
    equal_lengths: bool = True,
    metric: str = "logit_diff",
) -> Task:
    """Which pronoun goes with a name: "Everyone says Mary is a good friend, isn't" → " she", not " he".

    Counterfactuals have a name of the other gender. Names, and so answers, are half of each gender but for chance; the
    task takes names as English uses them, which is what models learn from. Arguments and errors as in `ioi`.

    Source of the task: Mathwin et al. 2023, Identifying a preliminary circuit for predicting gendered pronouns in GPT-2
    small (Apart Research).
    """
    speller, order = Speller(tokenizer, bos), Order("gendered_pronouns", n, equal_lengths, metric)
    names, dropped = speller.single(_mixed(WOMEN, MEN), "names")
    praise, without = speller.single(PRAISE, "adjectives")
    kinds, lost = speller.single(JOBS, "nouns")
    women, men = ([name for name in names if name in group] for group in (WOMEN, MEN))
    choose_lists(order, women=(women, 1), men=(men, 1), adjectives=(praise, 1), nouns=(kinds, 1))
    grid = Grid(_AGREEING, praise, kinds, names)
    drafts = (_agreeing(rng, women, men, *chosen) for rng, chosen in grid.draw(seed, TRIES * max(n, 1)))
    return write_task(order, speller, drafts, len(grid), [*dropped, *without, *lost])


def _agreeing(
    rng: random.Random, women: list[str], men: list[str], frame: str, praise: str, kind: str, name: str
) -> Draft:
    hers = name in women
    other = rng.choice(men if hers else women)
    text, corrupt = (frame.format(name=who, praise=praise, kind=kind) for who in (name, other))
    return Draft(text, " she" if hers else " he", (" he" if hers else " she",), corrupt)


@recorded
def greater_than(
    tokenizer: Any,
    n: int = 64,
    seed: int = 0,
    *,
    bos: int | None = None,
    equal_lengths: bool = True,
    metric: str = "prob_diff",
) -> Task:
    """Years that come later: "The war went on from the year 1732 until the year 17" → any of "33" … "99".

    Right are all two-digit tokens above the start's (`answers` has the next one, `also` the rest), wrong all others.
    The metric is the probability of the right ones minus that of the wrong ones. Counterfactuals start in year 01 of
    the same century, which forbids nothing.

    Raises:
        TaskError: as `ioi`; and where the tokenizer does not split a year after the century.

    Source of the task: Hanna, Liu, Variengien 2023, How does GPT-2 compute greater-than? (arXiv 2305.00586).
    """
    speller, order = Speller(tokenizer, bos), Order("greater_than", n, equal_lengths, metric)
    ids = _years(speller)
    if len(set(ids.values())) < len(_YEARS):
        raise TaskError(
            f"greater_than: this tokenizer splits only {len(ids)} of 100 years after the century; the task needs a "
            "token for each of 00 to 99, as GPT-2's and Pythia's have."
        )
    events, dropped = speller.single(EVENTS, "events")
    choose_lists(order, events=(events, 1))
    grid = Grid(_LASTING, events, _CENTURIES, _YEARS[2:99])
    drafts = _lasting(speller, ids, grid, seed, TRIES * max(n, 1))
    return write_task(order, speller, drafts, len(grid), dropped)


def _years(speller: Speller) -> dict[str, int]:
    """Each two-digit year's token after a century; years that no century leaves whole are missing."""
    found = {}
    for year in _YEARS:
        options = (speller.next(f"the year {century}", year) for century in _CENTURIES)
        whole = next((i for i in options if i is not None), None)
        if whole is not None:
            found[year] = whole
    return found


def _lasting(speller: Speller, ids: dict[str, int], grid: Grid, seed: int, most: int) -> Iterator[Draft]:
    for _, (frame, event, century, year) in grid.draw(seed, most):
        later = [ids[y] for y in _YEARS if y > year]
        split = all(speller.next(f"the year {century}", y) == ids[y] for y in (year, "01"))
        text, corrupt = (frame.format(event=event, start=century + y, century=century) for y in (year, "01"))
        wrong = tuple(ids[y] for y in _YEARS if y <= year)
        yield Draft(text, later[0] if split else None, wrong, corrupt, tuple(later[1:]))


def _mixed(first: list[str], second: list[str]) -> list[str]:
    return [name for pair in zip(first, second, strict=True) for name in pair]
