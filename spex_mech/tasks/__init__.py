"""Tasks that people study, for any tokenizer: prompts, answers, distractors and counterfactual prompts from a seed.

Every generator returns a `Task` of `n` unique prompts, the same for the same seed and tokenizer. Answers are single
tokens where they stand, leading space and all; what a tokenizer does not allow (names of several tokens, templates of
another length) is dropped and told in ``task.notes``, which ``print(task)`` shows. The counterfactual prompts are the
task's `corrupt` (for resampling) and its `reference` (over which means are taken). The wording is our own; what is
published of a task is cited where it is generated.
"""

from collections.abc import Callable

from spex_mech.tasks.documents import docstring, multiple_choice
from spex_mech.tasks.sentences import gendered_pronouns, greater_than, ioi
from spex_mech.tasks.sequences import induction, modular_arithmetic
from spex_mech.tasks.task import Task

GENERATORS: dict[str, Callable[..., Task]] = {
    "docstring": docstring,
    "gendered_pronouns": gendered_pronouns,
    "greater_than": greater_than,
    "induction": induction,
    "ioi": ioi,
    "modular_arithmetic": modular_arithmetic,
    "multiple_choice": multiple_choice,
}

__all__ = ["GENERATORS", *GENERATORS]
