"""Tasks of several lines: the arguments of a docstring, questions with lettered answers."""

import random
from typing import Any

from spex_mech.errors import TaskError
from spex_mech.tasks.drafts import TRIES, Draft, Order, choose_lists, recorded, write_task
from spex_mech.tasks.grids import Arrangement, Grid
from spex_mech.tasks.speller import Speller
from spex_mech.tasks.task import Task
from spex_mech.tasks.words import ABOUT, ARGUMENTS, COLOUR_WORDS, OBJECTS, SUBJECT

_LETTERS = "ABCDE"


@recorded
def docstring(
    tokenizer: Any,
    n: int = 64,
    seed: int = 0,
    *,
    bos: int | None = None,
    equal_lengths: bool = True,
    metric: str = "logit_diff",
) -> Task:
    """The next argument of a Python docstring: after ``:param`` of two of four arguments → the third one's name.

    Distractors are the other three. Counterfactuals have other names in the signature, so that nothing tells which
    argument comes next. Arguments and errors as in `ioi`.

    Source of the task: Heimersheim and Janiak 2023, A circuit for Python docstrings in a 4-layer attention-only
    transformer (Alignment Forum).
    """
    speller, order = Speller(tokenizer, bos), Order("docstring", n, equal_lengths, metric)
    names, dropped = speller.single(ARGUMENTS, "argument names")
    about, without = speller.single(ABOUT, "adjectives")
    subject, lost = speller.single(SUBJECT, "nouns")
    choose_lists(order, arguments=(names, 8), adjectives=(about, 1), nouns=(subject, 1))
    grid = Grid(Arrangement(names, 4))
    drafts = (_documented(rng, names, about, subject, *chosen) for rng, chosen in grid.draw(seed, TRIES * max(n, 1)))
    return write_task(order, speller, drafts, len(grid), [*dropped, *without, *lost])


def _documented(
    rng: random.Random, names: list[str], about: list[str], subject: list[str], inside: tuple[str, ...]
) -> Draft:
    others = rng.sample([name for name in names if name not in inside], 4)
    said = [f"{rng.choice(about)} {rng.choice(subject)}" for _ in range(3)]
    body = f'):\n    """ {said[0]}\n\n    :param {inside[0]}: {said[1]}\n    :param {inside[1]}: {said[2]}\n    :param'
    text, corrupt = (f"def run(self, {', '.join(listed)}{body}" for listed in (inside, others))
    return Draft(text, f" {inside[2]}", tuple(f" {inside[i]}" for i in (0, 1, 3)), corrupt)


@recorded
def multiple_choice(
    tokenizer: Any,
    n: int = 64,
    seed: int = 0,
    *,
    options: int = 4,
    bos: int | None = None,
    equal_lengths: bool = True,
    metric: str = "logit_diff",
) -> Task:
    """A question whose answer the prompt has just given, by letter: "The cup is red. … B. red … Answer:" → " B".

    Distractors are the other letters. Counterfactuals list the same options in another order, so that the answer has
    another letter. Arguments and errors as in `ioi`; `options` is 2 to 5.

    Source of the task: copied colours, Wiegreffe et al. 2024, Answer, assemble, ace (arXiv 2407.15018); Lieberum et al.
    2023, Does circuit analysis interpretability scale? (arXiv 2307.09458).
    """
    if not 2 <= options <= len(_LETTERS):
        raise TaskError(f"options={options}; a question has 2 to {len(_LETTERS)} options.")
    speller, order = Speller(tokenizer, bos), Order("multiple_choice", n, equal_lengths, metric)
    objects, dropped = speller.single(OBJECTS, "objects")
    colours, without = speller.single(COLOUR_WORDS, "colours")
    choose_lists(order, objects=(objects, 1), colours=(colours, options))
    grid = Grid(objects, Arrangement(colours, options), range(options))
    drafts = (_asked(rng, *chosen) for rng, chosen in grid.draw(seed, TRIES * max(n, 1)))
    return write_task(order, speller, drafts, len(grid), [*dropped, *without])


def _asked(rng: random.Random, thing: str, listed: tuple[str, ...], right: int) -> Draft:
    turn = rng.randrange(1, len(listed))
    moved = listed[turn:] + listed[:turn]

    def ask(colours: tuple[str, ...]) -> str:
        lines = "".join(f"\n{letter}. {colour}" for letter, colour in zip(_LETTERS, colours, strict=False))
        return f"The {thing} is {listed[right]}. Which color is the {thing}?{lines}\nAnswer:"

    letters = [f" {letter}" for letter in _LETTERS[: len(listed)]]
    return Draft(ask(listed), letters.pop(right), tuple(letters), ask(moved))
