"""Tasks of token ids, which need no text: repeated sequences, modular arithmetic."""

import operator
import random
from collections.abc import Sequence
from typing import Any

from spex_mech.errors import TaskError
from spex_mech.tasks.drafts import Order, check_count, recorded
from spex_mech.tasks.grids import Grid
from spex_mech.tasks.task import Task

_OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


@recorded
def induction(
    vocabulary: Any,
    n: int = 64,
    seed: int = 0,
    *,
    length: int = 16,
    bos: int | None = None,
    distractors: int = 3,
    metric: str = "logit_diff",
) -> Task:
    """Random tokens, twice: after the second ``x`` comes what came after the first.

    Each prompt is a sequence of `length` different random tokens and the same again; a random place of the second copy
    is scored, and distractors are other tokens of the sequence. Counterfactuals have a first copy of other tokens, so
    that nothing can be repeated.

    Args:
        vocabulary: how many tokens there are, the ids to draw from, or a tokenizer (special ids are left out).
        bos: id to put before every prompt.

    Raises:
        TaskError: fewer tokens than two sequences need, or a length or number that cannot be.

    Source of the task: Elhage et al. 2021, A mathematical framework for transformer circuits; Olsson et al. 2022,
    In-context learning and induction heads (arXiv 2209.11895).
    """
    order, ids = Order("induction", n), _ids(vocabulary)
    if length < 3 or not 1 <= distractors <= length - 2 or len(ids) < 2 * length:
        raise TaskError(
            f"induction: length={length}, distractors={distractors} and {len(ids):,} tokens; it needs a length of at "
            "least 3, from 1 to length - 2 distractors, and twice as many tokens as a sequence is long."
        )
    check_count(order, 2**63)
    rng, first = random.Random(seed), [] if bos is None else [bos]
    seen, rows = set[tuple[int, ...]](), list[tuple[list[int], list[int], int, list[int], int]]()
    while len(rows) < n:
        drawn = rng.sample(ids, 2 * length)
        once, fresh, place = drawn[:length], drawn[length:], rng.randrange(1, length - 1)
        if tuple(once) not in seen:  # so short a sequence from so few tokens can come twice
            seen.add(tuple(once))
            wrong = rng.sample([t for t in once if t not in (once[place], once[place + 1])], distractors)
            position = len(first) + length + place
            rows.append((first + once * 2, first + fresh + once, once[place + 1], wrong, position))
    tokens, corrupt, answers, wrongs, positions = (list(column) for column in zip(*rows, strict=True))
    return Task(tokens, answers, wrongs, positions, metric, corrupt=corrupt, reference=corrupt)


@recorded
def modular_arithmetic(
    modulus: int,
    n: int = 64,
    seed: int = 0,
    *,
    operation: str = "+",
    equals: int | None = None,
    metric: str = "log_prob",
) -> Task:
    """``a ∘ b =`` modulo p in token ids: the numbers are tokens 0 … p - 1, the sign "=" is token p.

    Distractors are all other residues. Counterfactuals have another ``b`` that changes the answer, where there is one.

    Args:
        modulus: p, at least 3; there are p² prompts.
        operation: "+", "-" or "*".
        equals: id of the sign, where it is not p.

    Raises:
        TaskError: another operation, or more prompts than p².

    Source of the task: Power et al. 2022, Grokking (arXiv 2201.02177); Nanda et al. 2023, Progress measures for
    grokking via mechanistic interpretability (arXiv 2301.05217).
    """
    if operation not in _OPERATIONS or modulus < 3:
        raise TaskError(
            f"modular_arithmetic: operation={operation!r} and modulus={modulus}; the operations are +, - and *, and "
            "the modulus is at least 3."
        )
    order, grid = Order("modular_arithmetic", n), Grid(range(modulus), range(modulus))
    check_count(order, len(grid))
    apply, sign = _OPERATIONS[operation], modulus if equals is None else equals
    rows = []
    for rng, (a, b) in grid.draw(seed, n):
        right = apply(a, b) % modulus
        others = [c for c in range(modulus) if apply(a, c) % modulus != right]
        other = rng.choice(others) if others else b
        wrong = [r for r in range(modulus) if r != right]
        rows.append(([a, b, sign], [a, other, sign], right, wrong, f"{a} {operation} {b} ="))
    tokens, corrupt, answers, wrongs, texts = (list(column) for column in zip(*rows, strict=True))
    return Task(tokens, answers, wrongs, metric=metric, corrupt=corrupt, reference=corrupt, texts=texts)


def _ids(vocabulary: Any) -> Sequence[int]:
    if isinstance(vocabulary, int):
        return range(vocabulary)
    if isinstance(vocabulary, Sequence) and not isinstance(vocabulary, str):
        return sorted(set(vocabulary))
    special = set(getattr(vocabulary, "all_special_ids", ()))
    size = getattr(vocabulary, "vocab_size", None)
    if not isinstance(size, int):
        raise TaskError("induction: give the number of tokens, a list of ids, or a tokenizer that has a vocab_size.")
    return [i for i in range(size) if i not in special]
