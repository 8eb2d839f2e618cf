"""Readers: what turns the text that is left into a number. A function, a language model, or a classifier."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spex_mech.ablation.batching import ELEMENTS, in_halves
from spex_mech.errors import ModelError, ResponseError, TaskError
from spex_mech.tasks.metrics import METRICS, Metric, Scored

TextFunction = Callable[[list[str]], Any]
MetricLike = str | Callable[..., Tensor]
Logits = Callable[[Int[Tensor, "row pos"], Int[Tensor, "row pos"], Int[Tensor, " row"] | None], Tensor]


@dataclass(frozen=True)
class TokenRow:
    """What one mask leaves of a prompt: its text, or its tokens and which of them are attended to."""

    text: str
    ids: tuple[int, ...] = ()
    seen: tuple[bool, ...] = ()

    @property
    def last(self) -> int:
        """The place of the last token that is attended to."""
        return max((i for i, seen in enumerate(self.seen) if seen), default=len(self.ids) - 1)


class Reader(Protocol):
    """Rows in, numbers out. `wants` says whether rows need tokens."""

    @property
    def wants(self) -> Literal["text", "tokens"]: ...
    @property
    def unit(self) -> str: ...
    @property
    def outputs(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    def read(self, rows: Sequence[TokenRow], batch_rows: int) -> Float[Tensor, "mask output"]: ...
    def describe(self) -> dict[str, Any]:
        """What decides the values besides the rows."""
        ...


@dataclass(frozen=True)
class FunctionReader:
    """A function of the user's: a list of texts → one number each, or several (``[text, output]``)."""

    function: TextFunction
    unit: str = "metric"
    outputs: int = 1
    wants: Literal["text", "tokens"] = "text"
    device: torch.device = torch.device("cpu")

    def read(self, rows: Sequence[TokenRow], batch_rows: int) -> Float[Tensor, "mask output"]:
        """At most `batch_rows` texts a call; raises `ResponseError` where it gives back anything but numbers."""
        parts = [rows[start : start + batch_rows] for start in range(0, len(rows), batch_rows)]
        return torch.cat([self._call([row.text for row in part]) for part in parts])

    def _call(self, texts: list[str]) -> Float[Tensor, "text output"]:
        given = self.function(texts)
        try:
            values = torch.as_tensor(given, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            kind = type(given).__name__
            raise ResponseError(f"the function gave {kind}, which is no list of numbers: {error}.") from error
        values = values.detach().cpu()[:, None] if values.ndim == 1 else values.detach().cpu()
        if values.shape != (len(texts), self.outputs):
            raise ResponseError(
                f"the function gave {tuple(values.shape)} for {len(texts)} texts; it must give one number a text"
                + (f", {self.outputs} outputs each." if self.outputs > 1 else ".")
            )
        return values

    def describe(self) -> dict[str, Any]:
        name = getattr(self.function, "__qualname__", type(self.function).__name__)
        return {"reader": "function", "function": name, "outputs": self.outputs, "unit": self.unit}


@dataclass(frozen=True)
class ModelReader:
    """A model with a tokenizer: the metric of its logits at the last token (of classifiers: of its class logits).

    Attributes:
        logits: ``(ids [row, pos], attended [row, pos], last [row] or None) → [row, vocab]`` at the last token, or
            ``[row, pos, vocab]`` where None is given, or of all positions in any case.
        answer: the tokens whose logit counts, or one class; several tokens are a continuation, of which the metric is
            ``Σ_j log p(answer_j | text left, answer_<j)``.
        distractors: for "logit_diff".
        padding: whether rows of different lengths share a batch; else rows of one length do.
        clean: log-probabilities of the whole prompt, for "kl".
        size: logits at a position; long rows of many share a batch with fewer others.
        about: model, weights, backend: goes into the record.
    """

    logits: Logits
    metric: Metric
    answer: tuple[int, ...]
    distractors: tuple[int, ...]
    pad: int
    padding: bool
    about: Mapping[str, Any]
    device: torch.device
    clean: Float[Tensor, " vocab"] | None = None
    size: int = 1
    outputs: int = 1
    wants: Literal["text", "tokens"] = "tokens"

    @property
    def unit(self) -> str:
        return self.metric.unit

    def read(self, rows: Sequence[TokenRow], batch_rows: int) -> Float[Tensor, "mask output"]:
        """Rows are sorted by length and passed `batch_rows` at a time; order restored."""
        lengths = torch.tensor([len(row.ids) for row in rows])
        if not lengths.all():
            raise TaskError(
                "with all parts ablated no token is left, and a model reads at least one. Give text that stays "
                "(before=…), use ablation='mask' or 'replace', or give a tokenizer with a BOS or EOS token."
            )
        values = torch.empty(len(rows))
        groups = [lengths.argsort(stable=True)] if self.padding else [
            (lengths == length).nonzero()[:, 0] for length in lengths.unique()
        ]  # fmt: skip
        for group in groups:

            def run(start: int, stop: int, group: Tensor = group) -> Tensor:
                return self._values([rows[i] for i in group[start:stop].tolist()])

            widest = int(lengths[group].max()) + len(self.answer)
            values[group] = in_halves(run, len(group), max(1, min(batch_rows, ELEMENTS // (widest * self.size))))
        return values[:, None]

    def describe(self) -> dict[str, Any]:
        return {
            "reader": "model", **self.about, "metric": self.metric.name, "answer": list(self.answer),
            "distractors": list(self.distractors),
        }  # fmt: skip

    @torch.inference_mode()
    def _values(self, rows: Sequence[TokenRow]) -> Float[Tensor, " row"]:
        tail = self.answer[:-1] if len(self.answer) > 1 else ()
        width = max(len(row.ids) for row in rows) + len(tail)
        ids = torch.full((len(rows), width), self.pad)
        seen = torch.zeros(len(rows), width, dtype=torch.long)
        for i, row in enumerate(rows):
            length = len(row.ids) + len(tail)
            ids[i, :length] = torch.tensor((*row.ids, *tail))
            seen[i, :length] = torch.tensor((*(row.seen or (True,) * len(row.ids)), *(True,) * len(tail))).long()
        last = torch.tensor([row.last for row in rows], device=self.device)
        several = len(self.answer) > 1
        logits = self.logits(ids.to(self.device), seen.to(self.device), None if several else last).float()
        if several:
            return self._continuation(logits, last).cpu()
        at_last = logits[torch.arange(len(rows), device=self.device), last] if logits.ndim == 3 else logits
        return self.metric.compute(self._scored(at_last)).float().cpu()

    def _continuation(self, logits: Float[Tensor, "row pos vocab"], last: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        steps = torch.arange(len(self.answer), device=self.device)
        row = torch.arange(len(last), device=self.device)[:, None]
        answer = torch.tensor(self.answer, device=self.device).expand(len(last), -1)
        chosen = logits[row, last[:, None] + steps].log_softmax(-1).gather(2, answer[..., None])[..., 0]
        return chosen.sum(1)

    def _scored(self, logits: Float[Tensor, "row vocab"]) -> Scored:
        rows = len(logits)

        def table(values: Sequence[int]) -> Int[Tensor, "row value"]:
            return torch.tensor(values, dtype=torch.long, device=self.device).expand(rows, -1)

        clean = None if self.clean is None else self.clean.to(self.device).expand(rows, -1)
        prompt = torch.zeros(rows, dtype=torch.long, device=self.device)
        return Scored(logits, prompt, table(self.answer)[:, 0], table(self.distractors), None, clean, table(()))


def model_reader(
    model: Any,
    first: TokenRow,
    *,
    metric: MetricLike,
    answer: Sequence[int] | None,
    distractors: Sequence[int],
    pad: int,
    about: Mapping[str, Any],
) -> ModelReader:
    """A reader of a Hugging Face causal or classification model, or of a bound subject.

    Where `answer` is None it is what the model says of the whole prompt, `first`: the token or class with the largest
    logit. A classifier's distractors are all other classes unless given.

    Raises `TaskError` where the metric needs what is not there, `ModelError` where the model is none of these.
    """
    chosen = _metric(metric)
    logits, padding, device, classes = _logits_of(model)
    ids = torch.tensor([first.ids], device=device)
    with torch.inference_mode():
        whole = logits(ids, torch.ones_like(ids), torch.tensor([len(first.ids) - 1], device=device)).float()
    whole = whole[0, -1] if whole.ndim == 3 else whole[0]
    found = (int(whole.argmax()),) if answer is None else tuple(answer)
    others = tuple(distractors) or (tuple(i for i in range(len(whole)) if i not in found) if classes else ())
    _check(chosen, found, others, len(whole), classes)
    clean = whole.log_softmax(0).cpu() if chosen.needs_clean else None
    return ModelReader(logits, chosen, found, others, pad, padding, about, device, clean, len(whole))


def _metric(metric: MetricLike) -> Metric:
    if callable(metric):
        function = metric

        def compute(scored: Scored) -> Tensor:
            return function(scored.logits, scored)

        return Metric(getattr(metric, "__name__", "metric"), "metric", True, compute, needs_answer=False)
    usable = [name for name, one in METRICS.items() if not one.all_positions]
    if metric not in usable:
        raise TaskError(f"a prompt has no metric {metric!r}; it has {', '.join(usable)}, or a function of your own.")
    return METRICS[metric]


def _check(metric: Metric, answer: tuple[int, ...], distractors: tuple[int, ...], size: int, classes: bool) -> None:
    outside = [i for i in (*answer, *distractors) if not 0 <= i < size]
    if outside or not answer:
        raise TaskError(
            f"{'classes' if classes else 'tokens'} {outside} do not exist; there are {size:,}, from 0 on."
            if outside
            else "the answer has no token; give at least one."
        )
    if metric.needs_distractors and not distractors:
        raise TaskError(f"metric {metric.name!r} needs distractors: give distractors=….")
    if len(answer) > 1 and (classes or metric.name != "log_prob"):
        raise TaskError(
            f"an answer of {len(answer)} tokens was given with metric {metric.name!r}; the metric of a whole "
            "continuation is 'log_prob'. Classes are one each."
        )


def _logits_of(model: Any) -> tuple[Logits, bool, torch.device, bool]:
    """What gives the logits; whether rows may be padded; the device; whether the logits are of classes."""
    if isinstance(model, torch.nn.Module) and hasattr(model, "config"):
        kind = type(model).__name__
        classes = kind.endswith("ForSequenceClassification")
        if not classes and not hasattr(model, "generate"):
            raise ModelError(f"{kind} is neither a causal language model nor a sequence classifier of Hugging Face.")
        model.eval()

        def call(ids: Tensor, seen: Tensor, last: Tensor | None) -> Tensor:
            try:
                found: Tensor = model(input_ids=ids, attention_mask=seen).logits
            except ValueError as error:
                raise ModelError(
                    f"{kind} does not take {len(ids)} rows of {ids.shape[1]} tokens: {error} A classifier that reads "
                    "the last token needs model.config.pad_token_id; long prompts need a model with room for them."
                ) from error
            return found

        return call, True, next(model.parameters()).device, classes
    if hasattr(model, "forward") and hasattr(model, "shape"):  # a bound subject

        def run(ids: Tensor, seen: Tensor, last: Tensor | None) -> Tensor:
            if not seen.all():
                raise TaskError(
                    "a bound subject attends to every token; ablation='pad' needs a Hugging Face model as it is."
                )
            found: Tensor = model.forward(ids, {}, last)
            return found

        return run, False, model.device, False
    raise ModelError(f"{type(model).__name__} is no model this lens knows; give a Hugging Face model or bind it first.")
