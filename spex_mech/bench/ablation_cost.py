"""Cost of a mask: the engine against the un-hooked forward pass, against counted operations, and against loops."""

import copy
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from spex_mech.ablation.binding import bind
from spex_mech.ablation.memory import peak_bytes
from spex_mech.ablation.replacement import fit_replacement
from spex_mech.ablation.respond import Engine, respond
from spex_mech.ablation.subject import Subject
from spex_mech.bench.timing import interleaved, machine, median_ratio
from spex_mech.bench.tl_loop import bridge_of, mean_hooks
from spex_mech.components import heads, mlps, neurons
from spex_mech.tasks.task import Task
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.masks.prompt_design import PromptDesign

PROMPTS, LENGTH = 16, 16
ENGINE_PROMPTS = 4  # the engine goes prompt by prompt, so four tell its cost a row


def run(device: str = "cpu", quick: bool = False, repeats: int = 3, masks: int = 128) -> dict[str, Any]:
    """Time the engine on a random model of GPT-2 small's shape: all 144 heads and 12 MLPs, one scored position.

    Every figure is seconds a row (one prompt under one mask), all measured in one run, interleaved, at keep 0.9 and
    0.5. `quick` takes a model of two narrow layers, for tests. Returns ``{"machine", "rows", "summary"}``; the summary
    holds medians of ratios, those of keep 0.9 unless the name ends in `_keep_half`:

    - cost_vs_unhooked: engine / un-hooked batched forward with all logits; cost_vs_unhooked_last: / with logits at the
      last position only. Below 1 is cheaper than a forward pass.
    - speedup_vs_tl_loop: one mask and one prompt at a time through TransformerLens' hooks / engine; _16: one mask and
      16 prompts at a time.
    - nnsight_vs_torch, bridge_vs_torch: the other backends / the engine on plain torch hooks.
    - uncrossed_vs_crossed: as many rows, but each mask with one prompt only / all masks with every prompt.
    - share_of_floor: counted operations that every row needs where masks share nothing, at the un-hooked forward's
      rate, / engine; above 1 where sharing and skipping save more than the rest costs.
    - memory_vs_unhooked: peak bytes with all MLP neurons as components / those of the un-hooked forward with logits at
      the last position, for the same rows.
    """
    model = random_gpt2(quick).to(device)
    config: Any = model.config
    task = random_task(config.vocab_size)
    memory = memory_share(model, task, device)
    rows: list[dict[str, Any]] = []
    for keep_prob in (0.9, 0.5):
        jobs, counts = _jobs(model, task, keep_prob, masks, device)
        times = interleaved(jobs, repeats, device)
        per_row = {name: [t / counts[name] for t in times[name]] for name in times}
        rows.append(
            {"keep_prob": keep_prob, "seconds_per_row": {k: median(v) for k, v in per_row.items()}, "repeats": per_row}
        )
    summary = _summary(rows[0]["repeats"], floor_share(config)) | {"memory_vs_unhooked": memory}
    half = _summary(rows[1]["repeats"], floor_share(config))
    summary |= {f"{name}_keep_half": half[name] for name in half if name.startswith(("cost", "speedup", "uncrossed"))}
    return {"machine": machine(device), "rows": rows, "summary": summary}


def memory_share(model: nn.Module, task: Task, device: str, rows: int = 8) -> float:
    """Peak bytes of ablating among all MLP neurons, over those of the un-hooked forward with logits at one position."""
    subject, one = bind(model), task.take(torch.arange(1))
    components = neurons(subject)
    reference = fit_replacement(subject, one, components)
    keep = MaskDesign.bernoulli(len(components), rows, 0.9, seed=0).keep()
    tokens = one.prompts.tokens.to(device).repeat(rows, 1)

    def unhooked() -> None:
        with torch.inference_mode():
            model(input_ids=tokens, use_cache=False, logits_to_keep=1)

    return peak_bytes(lambda: respond(subject, one, components, [keep], reference, batch_rows=rows)) / peak_bytes(
        unhooked
    )


def random_gpt2(quick: bool = False) -> nn.Module:
    """A random GPT-2 of the small model's shape (124 million parameters), seeded."""
    from transformers import GPT2Config, GPT2LMHeadModel

    size: dict[str, Any] = {"n_layer": 2, "n_embd": 48, "n_head": 4, "vocab_size": 100} if quick else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0)).eval()


def random_task(d_vocab: int) -> Task:
    """Random prompts, scored at their last position."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, d_vocab, (PROMPTS, LENGTH), generator=generator)
    return Task(tokens, [1] * PROMPTS, [[2]] * PROMPTS)


def floor_share(config: Any) -> float:
    """Multiply-adds that every row needs, over those of a plain forward with all logits.

    A row needs layer 0's output projection and MLP, the middle layers whole, keys and values of the last layer at all
    positions, the rest of the last layer and the unembedding at one position. Attention scores are left out of both
    sides.
    """
    d, layers, vocab = config.n_embd, config.n_layer, config.vocab_size
    layer = 12 * d * d * LENGTH
    first = 9 * d * d * LENGTH
    last = (2 * LENGTH + 10) * d * d
    return (first + (layers - 2) * layer + last + d * vocab) / (layers * layer + LENGTH * d * vocab)


def _jobs(
    model: nn.Module, task: Task, keep_prob: float, masks: int, device: str
) -> tuple[dict[str, Callable[[], Any]], dict[str, int]]:
    from nnsight import NNsight

    subject = bind(model)
    components = heads(subject) + mlps(subject)
    keep = MaskDesign.bernoulli(len(components), masks, keep_prob, seed=0).keep()
    tokens = task.prompts.tokens.to(device)
    batch = tokens.repeat(4, 1)
    loop = _loop(model, task, keep[0], device)

    few = task.take(torch.arange(ENGINE_PROMPTS))

    def engine(bound: Subject) -> Callable[[], Tensor]:
        reference = fit_replacement(bound, task, components)
        return lambda: respond(bound, few, components, [keep], reference)

    def uncrossed() -> Tensor:
        return lens.values(many, met)

    def unhooked(**options: Any) -> Callable[[], Any]:
        def forward() -> Any:
            with torch.inference_mode():
                return model(input_ids=batch, use_cache=False, **options).logits[:, -1, :1].cpu()

        return forward

    many_masks = MaskDesign.bernoulli(len(components), masks * ENGINE_PROMPTS, keep_prob, seed=0)
    many, met = many_masks.keep(), PromptDesign.beside(many_masks, ENGINE_PROMPTS, 1).met()
    lens = Engine(subject, few, components, fit_replacement(subject, task, components))
    jobs: dict[str, Callable[[], Any]] = {
        "engine": engine(subject),
        "uncrossed": uncrossed,
        "unhooked": unhooked(),
        "unhooked_last": unhooked(logits_to_keep=1),
        "tl_loop": lambda: [loop(tokens[:1]) for _ in range(8)],
        "tl_loop_16": lambda: [loop(tokens) for _ in range(2)],
        "nnsight": engine(bind(NNsight(copy.deepcopy(model)))),
        "bridge": engine(bind(bridge_of(copy.deepcopy(model)))),
    }
    counts = {
        **dict.fromkeys(("engine", "uncrossed", "nnsight", "bridge"), masks * ENGINE_PROMPTS),
        "unhooked": len(batch),
        "unhooked_last": len(batch),
        "tl_loop": 8,
        "tl_loop_16": 2 * PROMPTS,
    }
    return jobs, counts


def _loop(model: nn.Module, task: Task, keep: Tensor, device: str) -> Callable[[Tensor], Tensor]:
    """What users write today: one mask a forward pass through TransformerLens' run_with_hooks."""
    bridge = bridge_of(copy.deepcopy(model))
    hooks = mean_hooks(bridge, task, keep, device)

    def one(tokens: Tensor) -> Tensor:
        with torch.inference_mode():
            return bridge.run_with_hooks(tokens, fwd_hooks=hooks)[:, -1, :2].cpu()

    return one


def _summary(times: dict[str, list[float]], floor: float) -> dict[str, float]:
    engine = times["engine"]
    return {
        "cost_vs_unhooked": median_ratio(engine, times["unhooked"]),
        "cost_vs_unhooked_last": median_ratio(engine, times["unhooked_last"]),
        "speedup_vs_tl_loop": median_ratio(times["tl_loop"], engine),
        "speedup_vs_tl_loop_16": median_ratio(times["tl_loop_16"], engine),
        "uncrossed_vs_crossed": median_ratio(times["uncrossed"], engine),
        "nnsight_vs_torch": median_ratio(times["nnsight"], engine),
        "bridge_vs_torch": median_ratio(times["bridge"], engine),
        "share_of_floor": floor * median_ratio(times["unhooked"], engine),
    }
