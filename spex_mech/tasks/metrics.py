"""Metrics: logits of one prompt under one mask → one number, with its unit and direction."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spex_mech.errors import TaskError
from spex_mech.tasks.task import Task


@dataclass(frozen=True)
class Scored:
    """What a metric sees. A row is one prompt under one mask; `logits` are those at its scored position.

    Metrics with `all_positions` get logits ``[row, pos, vocab]`` and `tokens`; metrics with `needs_clean` get `clean`,
    the intact model's log-probabilities at the scored position.
    """

    logits: Float[Tensor, "row vocab"] | Float[Tensor, "row pos vocab"]
    prompt: Int[Tensor, " row"]
    answers: Int[Tensor, " row"]
    distractors: Int[Tensor, "row distractor"]
    tokens: Int[Tensor, "row pos"] | None = None
    clean: Float[Tensor, "row vocab"] | None = None
    also: Int[Tensor, "row answer"] | None = None


@dataclass(frozen=True)
class Metric:
    """One number a row. `compute` takes float32 logits."""

    name: str
    unit: str
    larger_is_better: bool
    compute: Callable[[Scored], Float[Tensor, " row"]]
    all_positions: bool = False
    needs_clean: bool = False
    needs_answer: bool = True
    needs_distractors: bool = False
    warning: str | None = None


def logit(scored: Scored) -> Float[Tensor, " row"]:
    """The answer's logit."""
    return scored.logits.gather(1, scored.answers[:, None])[:, 0]


def logit_diff(scored: Scored) -> Float[Tensor, " row"]:
    """The answer's logit minus the mean of the distractors' logits."""
    there = scored.distractors >= 0
    wrong = scored.logits.gather(1, scored.distractors.clamp(min=0))
    return logit(scored) - (wrong * there).sum(1) / there.sum(1)


def log_prob(scored: Scored) -> Float[Tensor, " row"]:
    """log p(answer), in nats."""
    return logit(scored) - scored.logits.logsumexp(1)


def prob(scored: Scored) -> Float[Tensor, " row"]:
    """p(answer). It saturates at 0 and 1, and saturation looks like interaction of every order."""
    return log_prob(scored).exp()


def prob_diff(scored: Scored) -> Float[Tensor, " row"]:
    """Probability of all right answers (`Task.also` included) minus that of all distractors.

    Source: Greater-Than, Hanna et al. 2023 (arXiv 2305.00586), where the answers are all later years.
    """
    assert scored.also is not None
    right = torch.cat([scored.answers[:, None], scored.also], 1)
    return _mass(scored.logits, right) - _mass(scored.logits, scored.distractors)


def _mass(logits: Float[Tensor, "row vocab"], tokens: Int[Tensor, "row token"]) -> Float[Tensor, " row"]:
    found = logits.gather(1, tokens.clamp(min=0)) - logits.logsumexp(1, keepdim=True)
    return (found.exp() * (tokens >= 0)).sum(1)


def kl(scored: Scored) -> Float[Tensor, " row"]:
    """KL(intact ‖ ablated) of the next-token distributions at the scored position, in nats."""
    assert scored.clean is not None
    return (scored.clean.exp() * (scored.clean - scored.logits.log_softmax(1))).sum(1)


def loss(scored: Scored) -> Float[Tensor, " row"]:
    """Mean next-token cross-entropy over the prompt, in nats."""
    assert scored.tokens is not None
    return torch.nn.functional.cross_entropy(
        scored.logits[:, :-1].transpose(1, 2), scored.tokens[:, 1:], reduction="none"
    ).mean(1)


_SATURATES = "probability saturates, which looks like interaction of every order; prefer logit_diff or log_prob"
METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("logit_diff", "logit", True, logit_diff, needs_distractors=True),
        Metric("logit", "logit", True, logit),
        Metric("log_prob", "nat", True, log_prob),
        Metric("prob", "probability", True, prob, warning=_SATURATES),
        Metric("prob_diff", "probability", True, prob_diff, needs_distractors=True, warning=_SATURATES),
        Metric("kl", "nat", False, kl, needs_clean=True, needs_answer=False),
        Metric("loss", "nat", False, loss, all_positions=True, needs_answer=False),
    )
}


def resolve(task: Task) -> Metric:
    """The task's metric, checked against what the task has.

    A function ``f(logits [row, vocab], scored) -> [row]`` becomes a metric with unit "metric".

    Raises:
        TaskError: an unknown name (the known ones are listed), or prompts that lack what the metric needs (rows named).
    """
    if callable(task.metric):
        return _own(task.metric)
    if task.metric not in METRICS:
        raise TaskError(
            f"there is no metric {task.metric!r}; the metrics are {', '.join(METRICS)}, or a function of your own."
        )
    metric = METRICS[task.metric]
    missing = {
        "an answer": (task.answers < 0) if metric.needs_answer else torch.zeros(len(task), dtype=torch.bool),
        "distractors": ~(task.distractors >= 0).any(1)
        if metric.needs_distractors
        else torch.zeros(1, dtype=torch.bool),
        "a second token": (task.prompts.lengths < 2) if metric.all_positions else torch.zeros(1, dtype=torch.bool),
    }
    for what, rows in missing.items():
        if rows.any():
            named = ", ".join(str(i + 1) for i in rows.nonzero()[:10, 0].tolist())
            raise TaskError(f"metric {metric.name!r} needs {what} in every prompt; prompts without: {named}.")
    return metric


def _own(function: Callable[..., Tensor]) -> Metric:
    def compute(scored: Scored) -> Tensor:
        values = function(scored.logits, scored)
        if not isinstance(values, Tensor) or values.shape != scored.prompt.shape:
            found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise TaskError(
                f"the metric function returned {found}; it must return one number a row, {tuple(scored.prompt.shape)}."
            )
        return values

    return Metric(getattr(function, "__name__", "metric"), "metric", True, compute, needs_answer=False)
