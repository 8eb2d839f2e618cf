"""The engine against exhaustive truth, against itself at other batch sizes, and under failures."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny_models import tiny, tokens_task

import spex_mech as sm
from spex_mech.ablation.batching import in_halves
from spex_mech.ablation.binding import bind
from spex_mech.ablation.load import load_model
from spex_mech.ablation.replacement import ASSUMPTIONS, fit_replacement
from spex_mech.ablation.respond import respond
from spex_mech.errors import ComponentError, ResponseError, TaskError
from spex_mech.tasks.metrics import METRICS
from spex_mech.tasks.task import Task

CARDS = Path(__file__).resolve().parents[2] / "shared" / "cards"


@pytest.fixture(scope="module")
def subject():
    return bind(tiny("gpt2"))


def measured(subject, task, expression="a*.h*, m*", kind="mean", masks=10, **options):
    components = sm.select(subject, expression)
    keep = sm.MaskDesign.bernoulli(len(components), masks, 0.6, seed=2).keep()
    reference = fit_replacement(subject, task, components, kind=kind, seed=0)
    return respond(subject, task, components, [keep[:4], keep[4:]], reference, **options)


@pytest.mark.parametrize("card", ["addition4", "brackets", "modadd_pizza", "tracr_any3"])
def test_responses_equal_the_exhaustive_truth_of_the_cards(card):
    folder = CARDS / card
    if not folder.is_dir():
        pytest.skip(f"the card {card} lies outside this checkout, in ../shared/cards")
    subject = bind(load_model(folder / "model")[0])
    task = Task.from_jsonl(folder / "prompts.jsonl", reference=folder / "reference.jsonl").check(subject.shape)
    with safe_open(folder / "truth.safetensors", "pt") as file:
        components = sm.ComponentSet.of(file.metadata()["components"].split(","))
        truth = file.get_tensor("values")
    rows = torch.randperm(len(truth), generator=torch.Generator().manual_seed(0))[:48]
    keep = sm.MaskDesign.complete(len(components)).keep()[rows]
    reference = fit_replacement(subject, task, components, per="position")
    values = respond(subject, task, components, [keep], reference)
    assert (values - truth[rows]).abs().max() < 1e-3


@pytest.mark.parametrize("kind", ASSUMPTIONS)
def test_values_do_not_depend_on_the_batch_size(subject, kind):
    task = tokens_task(n_prompts=4, ragged=kind == "mean")
    whole = measured(subject, task, kind=kind)
    for rows in (1, 3, 7):
        assert (measured(subject, task, kind=kind, batch_rows=rows) - whole).abs().max() <= 1e-5
    assert torch.equal(measured(subject, task, kind=kind), whole)


@pytest.mark.parametrize("metric", METRICS)
def test_intact_masks_give_the_metric_of_the_plain_model(subject, metric):
    task = tokens_task(n_prompts=3, metric=metric)
    components = sm.heads(subject)
    reference = fit_replacement(subject, task, components)
    value = respond(subject, task, components, [torch.ones(1, len(components), dtype=torch.bool)], reference)[0]
    for i in range(3):
        logits = subject.model(task.prompts.row(i)[None]).logits[0]
        log_probs, last = logits.log_softmax(1), logits[-1]
        wrong = task.distractors[i][task.distractors[i] >= 0]
        answer = task.answers[i]
        expected = {
            "logit_diff": last[answer] - last[wrong].mean(),
            "logit": last[answer],
            "log_prob": log_probs[-1, answer],
            "prob": log_probs[-1, answer].exp(),
            "prob_diff": log_probs[-1, answer].exp() - log_probs[-1, wrong].exp().sum(),
            "kl": torch.tensor(0.0),
            "loss": -log_probs[:-1].gather(1, task.prompts.row(i)[1:, None]).mean(),
        }[metric]
        assert abs(float(value[i] - expected)) < 1e-5


def test_kl_of_ablated_masks_is_positive(subject):
    assert measured(subject, tokens_task(metric="kl"), masks=5).min() >= -1e-6
    assert measured(subject, tokens_task(metric="kl"), masks=5).max() > 1e-3


def test_a_mean_ablated_component_gives_the_mean_of_the_reference(subject):
    task = tokens_task(n_prompts=3)
    components = sm.select(subject, "a1.h2")
    reference = fit_replacement(subject, task, components, per="position")
    site = reference.recipe.sites[0]
    seen = []
    prompts = task.reference.tokens
    subject.forward(prompts, {site: lambda x: seen.append(x.clone()) or x}, None)
    expected = seen[0].double().mean(0)
    assert torch.allclose(reference.references[site][0].double(), expected, atol=1e-6)
    pooled = fit_replacement(subject, task, components, per="pooled").references[site]
    assert torch.allclose(pooled[0, 0].double(), expected.mean(0), atol=1e-6)


def test_resampling_takes_the_corrupt_prompt_or_a_seeded_other(subject):
    task = tokens_task(n_prompts=4)
    off = torch.zeros(1, 1, dtype=torch.bool)
    group = sm.ComponentSet.of(["[a0.h0:4,a1.h0:4,m0,m1]"])
    swapped = respond(subject, task, group, [off], fit_replacement(subject, task, group, kind="resample"))
    alone = Task(task.prompts.tokens, task.answers, task.distractors)
    one, again, other = (
        respond(subject, alone, group, [off], fit_replacement(subject, alone, group, kind="resample", seed=seed))
        for seed in (0, 0, 3)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one, swapped)


def test_one_position_components_touch_one_position(subject):
    task = tokens_task(n_prompts=2)
    off = torch.zeros(1, 1, dtype=torch.bool)

    def ablated(name):
        components = sm.select(subject, name)
        return respond(subject, task, components, [off], fit_replacement(subject, task, components))

    everywhere = sm.select(subject, "[" + ",".join(f"a1.h1@p{p}" for p in range(7)) + "]")
    all_positions = respond(subject, task, everywhere, [off], fit_replacement(subject, task, everywhere))
    assert torch.allclose(all_positions, ablated("a1.h1"), atol=1e-6)
    assert torch.allclose(
        ablated("a1.h1@p-1"), ablated("a1.h1"), atol=1e-5
    )  # last layer: only the scored position counts
    assert not torch.allclose(ablated("a0.h1@p0"), ablated("a0.h1"), atol=1e-4)
    with pytest.raises(TaskError, match=r"a0\.h1@p9"):
        ablated("a0.h1@p9")


def test_a_part_is_kept_only_if_all_its_components_are(subject):
    task = tokens_task(n_prompts=2)
    both = sm.select(subject, "a0, a0.h1")
    reference = fit_replacement(subject, task, both)
    keep = torch.tensor([[False, True], [False, False], [True, False], [True, True]])
    values = respond(subject, task, both, [keep], reference)
    assert torch.equal(values[0], values[1])
    assert not torch.allclose(values[2], values[3], atol=1e-5)


def test_batches_that_do_not_fit_are_halved_and_order_is_kept(subject, monkeypatch):
    task = tokens_task(n_prompts=3)
    expected = measured(subject, task)
    calls, forward = [], type(subject).forward

    def small(self, tokens, edits, positions, growth=None):
        logits = forward(self, tokens, edits, positions, growth)
        rows = 0 if positions is None else len(logits)
        calls.append(rows)
        if rows > 5:
            raise torch.OutOfMemoryError("CUDA out of memory (injected)")
        return logits

    monkeypatch.setattr(type(subject), "forward", small)
    assert (measured(subject, task) - expected).abs().max() <= 1e-5
    assert max(calls) > 5
    assert 0 < min(c for c in calls if c) <= 5


def test_out_of_memory_at_one_row_and_other_errors_are_told():
    def never(_start, _stop):
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate")

    with pytest.raises(ResponseError, match="one prompt under one mask"):
        in_halves(never, 8, 4)

    def broken(_start, _stop):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        in_halves(broken, 8, 4)


def test_non_finite_values_name_the_mask_and_what_it_ablates(subject):
    def metric(logits, scored):
        return torch.where(logits[:, 0] == logits[:, 0], torch.nan, 0.0)

    with pytest.raises(ResponseError, match=r"first mask 0 \(\d+ components ablated, among them"):
        measured(subject, tokens_task(metric=metric))


def test_infinite_activations_do_not_leak_through_where(subject):
    keep, x = torch.zeros(1, 1, 4, dtype=torch.bool), torch.full((1, 2, 32), torch.inf)
    components = sm.select(subject, "a0.h0:4")
    edits = fit_replacement(subject, tokens_task(), components, kind="zero").edits(
        keep[0], torch.zeros(1, dtype=torch.long), 2
    )
    assert next(iter(edits.values()))(x).eq(0).all()


def test_mistakes(subject):
    task = tokens_task()
    with pytest.raises(TaskError, match="no replacement 'noise'"):
        fit_replacement(subject, task, sm.heads(subject), kind="noise")
    with pytest.raises(TaskError, match="per position need prompts of one length"):
        fit_replacement(subject, tokens_task(ragged=True), sm.heads(subject), per="position")
    with pytest.raises(TaskError, match="nothing to resample from"):
        fit_replacement(subject, Task([[1, 2], [3]], [0, 1]), sm.heads(subject), kind="resample")
    with pytest.raises(ComponentError, match=r"a5\.h0"):
        fit_replacement(subject, task, sm.ComponentSet.of(["a5.h0"]))
