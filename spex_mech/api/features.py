"""`discover_features`: which parts of a prompt matter together. `measuring.spine` says how it is done."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from spex_mech.ablation.backends.nnsight import is_nnsight
from spex_mech.ablation.backends.transformer_lens import is_transformer_lens
from spex_mech.ablation.binding import bind
from spex_mech.ablation.subject import Subject
from spex_mech.ablation.weights import describe_weights, hash_weights
from spex_mech.ablation.wrappers import single_precision
from spex_mech.errors import TaskError
from spex_mech.lenses.prompt_parts import BATCH_ROWS, Ablation, Features, owners_of
from spex_mech.lenses.readers import FunctionReader, MetricLike, Reader, TokenRow, model_reader
from spex_mech.lenses.segments import Segments, Split, split_prompt
from spex_mech.measuring.ask import Ask, KeepProb
from spex_mech.measuring.spine import run
from spex_mech.measuring.workers import Workers
from spex_mech.store.discovery import Discovery
from spex_mech.store.fingerprints import hash_function

Answer = str | int | Sequence[int] | None


@single_precision()
def discover_features(
    value: Any,
    prompt: str | Sequence[str] | Sequence[int] | Segments,
    *,
    into: Split = "words",
    before: str = "",
    after: str = "",
    ablation: Ablation = "remove",
    filler: str | Sequence[str] = "[MASK]",
    tokenizer: Any = None,
    metric: MetricLike = "logit",
    answer: Answer = None,
    distractors: Sequence[str | int] = (),
    unit: str = "metric",
    outputs: int = 1,
    identity: str | None = None,
    budget: int = 1024,
    keep_prob: KeepProb = 0.5,
    decoder: str = "auto",
    link: str = "auto",
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = False,
    folds: int = 0,
    resamples: int = 0,
    workers: Workers | None = None,
    batch_rows: int = BATCH_ROWS,
) -> Discovery:
    """Find which parts of a prompt matter together for a value, from `budget` prompts with parts ablated.

    ```python
    found = sm.discover_features(score, "The plot is not good at all.", budget=256)      # score(texts) → numbers
    found = sm.discover_features(model, text, tokenizer=tokenizer, answer=" Paris", metric="log_prob")
    ```

    Parts are the components ``s0``, ``s1`` … (``t0`` … where they are tokens), and everything that `discover` gives
    holds for them: ``F({s3, s4}) > 0`` says that the two words raise the value together beyond what each does. In the
    circuit a node's ``role`` is its text.

    Args:
        value: a function from a list of texts to one number each (or ``[text, output]``); or a Hugging Face causal
            language model or sequence classifier, or a model that `bind` takes.
        prompt: a text; your own parts (joined they are the prompt); token ids; or `Segments`.
        into: "words", "sentences" or "tokens", for a text.
        before, after: text around the prompt that always stays, such as a question about it.
        ablation: "remove" (with the gap before it; where nothing is left, a model reads its BOS or EOS token alone);
            "replace" by `filler`; "mask": the tokenizer's mask token (for a function of text, `filler`) in the place of
            each token, attended to; "pad": tokens keep their places and are not attended to.
        filler: what replaces a part: one text, or one a part.
        tokenizer: of the model; needed for texts. For "mask" and "pad" a fast one.
        metric: a name of `spex_mech.tasks.metrics` that reads one position, at the last token of what is left, or
            ``f(logits [row, vocab], scored) -> [row]``. For classifiers the logits are those of the classes.
        answer: the token, text or class whose logit counts; default: what the model says of the whole prompt. A text
            of several tokens is a continuation: metric "log_prob" is the sum over it.
        distractors: tokens, texts of one token, or classes, for "logit_diff"; a classifier's default is all others.
        unit, outputs: of a function's numbers; how many a text.
        identity: what a run folder knows a function by, such as the model and date of an API. Default: a hash of its
            code and of what it closes over, so that a folder is refused once any of it has changed.
        budget, keep_prob, decoder, link, seed, out, progress, folds, resamples: as in `discover`.
        workers: the same; what reads the texts is sent to them, so functions close over plain values.
        batch_rows: texts or rows a call at most.

    Raises:
        TaskError: a prompt, answer, metric or way of ablation that does not fit the model or tokenizer.
        ResponseError: values that are no finite numbers, or a run folder of another experiment.

    Source: SPEX, Kang et al. 2025 (arXiv 2502.13870), for features; ProxySPEX, Butler et al. 2025 (arXiv 2505.17495).
    """
    ask = Ask(
        budget=budget, keep_prob=keep_prob, decoder=decoder, link=link, seed=seed, out=out, progress=progress,
        folds=folds, resamples=resamples, workers=workers,
    )  # fmt: skip
    segments = split_prompt(prompt, into, tokenizer).between(before, after)
    text = filler if isinstance(filler, str) else tuple(filler)
    content: dict[str, dict[str, Any]] = {"task": _metric_content(metric)}
    if _is_function(value):
        function = hash_function(value) if identity is None else identity
        content["subject"] = {"model": identity or "a function of text", "function": function}
        features = Features(segments, FunctionReader(value, unit, outputs), _for_text(ablation), text)
    else:
        model = _bound(value)
        content["subject"] = about = _about(model)
        features = _of_model(model, segments, ablation, text, tokenizer, metric, answer, distractors, about)
    lens = replace(features, batch_rows=batch_rows, content=content)
    return run(lambda _: lens, lens.components, ask)


def _metric_content(metric: MetricLike) -> dict[str, Any]:
    return {} if isinstance(metric, str) else {"metric_sha256": hash_function(metric)}


def _is_function(value: Any) -> bool:
    model = isinstance(value, torch.nn.Module | Subject) or is_transformer_lens(value) or is_nnsight(value)
    return callable(value) and not model


def _bound(value: Any) -> Any:
    return bind(value) if is_transformer_lens(value) or is_nnsight(value) else value


def _about(model: Any) -> dict[str, Any]:
    if isinstance(model, Subject):
        return dict(model.provenance)
    if not isinstance(model, torch.nn.Module):
        return {"model": type(model).__name__}
    return {"backend": "text", **describe_weights(model), "weights_sha256": hash_weights(model)}


def _for_text(ablation: Ablation) -> Ablation:
    if ablation not in ("remove", "mask", "replace"):
        raise TaskError(
            f"ablation {ablation!r} was asked of a function of text; it has 'remove', 'mask' and 'replace'."
        )
    return ablation


def _of_model(
    model: Any,
    segments: Segments,
    ablation: Ablation,
    filler: str | tuple[str, ...],
    tokenizer: Any,
    metric: MetricLike,
    answer: Answer,
    distractors: Sequence[str | int],
    about: Mapping[str, Any],
) -> Features:
    if ablation not in ("remove", "mask", "pad", "replace"):
        raise TaskError(f"there is no ablation {ablation!r} of text; there are 'remove', 'mask', 'pad' and 'replace'.")
    as_text = ablation == "replace" or not segments.ids
    if tokenizer is None and (as_text or any(isinstance(word, str) for word in (answer, *distractors))):
        raise TaskError("texts were given to a model without a tokenizer; give tokenizer=…, or token ids throughout.")
    ids, owners = _tokens(segments, tokenizer, ablation)
    # a classifier that reads the last token finds it by its own padding token
    pad = _first(getattr(model, "config", None), "pad_token_id")
    pad = (_first(tokenizer, "pad_token_id", "eos_token_id") or 0) if pad is None else pad
    reader: Reader = model_reader(
        model,
        TokenRow(segments.prompt, ids),
        metric=metric,
        answer=_answer(answer, tokenizer, model),
        distractors=[_answer(one, tokenizer, model, single=True)[0] for one in distractors],  # type: ignore[index]
        pad=pad,
        about={} if not isinstance(model, torch.nn.Module) else {"class": about.get("model")},
    )
    mask = _mask_token(tokenizer, ablation, pad)
    encode = None if tokenizer is None else lambda text: list(tokenizer(text)["input_ids"])
    nothing = _first(tokenizer, "bos_token_id", "eos_token_id")
    return Features(segments, reader, ablation, filler, mask, encode, ids, owners, nothing)


def _tokens(segments: Segments, tokenizer: Any, ablation: Ablation) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The whole prompt's tokens, and the part of each."""
    if segments.ids:
        owners = [-1] * len(segments.ids)
        for part, place in enumerate(segments.places):
            owners[place] = part
        return segments.ids, tuple(owners)
    if ablation in ("remove", "replace"):
        return tuple(tokenizer(segments.prompt)["input_ids"]), ()
    if not getattr(tokenizer, "is_fast", False):
        raise TaskError(f"ablation {ablation!r} of words needs a fast tokenizer, which says where its tokens are.")
    made = tokenizer(segments.prompt, return_offsets_mapping=True, return_special_tokens_mask=True)
    special = [bool(flag) for flag in made["special_tokens_mask"]]
    return tuple(made["input_ids"]), owners_of(segments, made["offset_mapping"], special)


def _mask_token(tokenizer: Any, ablation: Ablation, pad: int) -> int | None:
    if ablation != "mask":
        return pad
    token = _first(tokenizer, "mask_token_id")
    if token is None:
        raise TaskError(
            "ablation 'mask' needs a tokenizer with a mask token. Use 'pad', 'remove', or 'replace' with a filler."
        )
    return token


def _first(tokenizer: Any, *names: str) -> int | None:
    return next((int(found) for name in names if (found := getattr(tokenizer, name, None)) is not None), None)


def _answer(answer: Answer, tokenizer: Any, model: Any, single: bool = False) -> list[int] | None:
    """Token ids (or a class) from what a user may give."""
    if answer is None or isinstance(answer, int):
        return None if answer is None else [answer]
    if not isinstance(answer, str):
        return [int(token) for token in answer]
    classes = getattr(getattr(model, "config", None), "label2id", None) or {}
    if type(model).__name__.endswith("ForSequenceClassification"):
        if answer not in classes:
            raise TaskError(f"there is no class {answer!r}; the classes are {', '.join(map(str, classes))}.")
        return [int(classes[answer])]
    ids = [int(token) for token in tokenizer(answer, add_special_tokens=False)["input_ids"]]
    if single and len(ids) != 1:
        raise TaskError(f"the distractor {answer!r} is {len(ids)} tokens; distractors are one token each.")
    return ids
