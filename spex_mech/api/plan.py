"""What a run will take, before it is begun: passes, seconds, memory, disk, money; and which way of asking fits it.

A rate is measured on the very masks of the run: one chunk of them, over a few prompts of every length, since masks
share layers and so a chunk passes faster than its masks one by one. For a GPU that is not here only operations are
counted, which gives a floor. What a decoder will find is simulated: a polynomial is planted among as many
components, asked under as many masks, and decoded.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from spex_mech.ablation.identity import live_module
from spex_mech.ablation.memory import peak_bytes
from spex_mech.ablation.model_parts import ModelParts
from spex_mech.ablation.respond import Engine
from spex_mech.ablation.subject import Subject
from spex_mech.ablation.wrappers import single_precision
from spex_mech.components import ComponentSet
from spex_mech.errors import SpexMechError
from spex_mech.measuring.ask import Ask, KeepProb
from spex_mech.measuring.crossing import Crossing, settle_rows
from spex_mech.measuring.decode import choose_decoder, refuse_undecodable
from spex_mech.measuring.masks import choose_design
from spex_mech.store.responses import pack_bits
from spex_mech.tasks.task import Task
from spex_mech.walsh.decoding import Samples
from spex_mech.walsh.masks.coded import smallest_budget
from spex_mech.walsh.masks.design import MAX_COMPLETE, MaskDesign
from spex_mech.walsh.masks.prompt_design import PromptDesign
from spex_mech.walsh.set_rows import pad_sets
from spex_mech.walsh.spectrum import Spectrum

PROMPTS = 2  # of each length, over which the rate is taken
GPUS = {"t4": 8.1, "l4": 30.3, "a10g": 31.2, "a100": 19.5, "l40s": 91.6, "rtx4090": 82.6, "h100": 66.9, "h200": 66.9}
"""TFLOP/s in float32 without tensor cores, by the vendor's data sheets (SXM versions)."""
TYPICAL = 0.25  # of a GPU's peak; what small models reach is less, since they wait for memory and for launches
PLANTED = 12  # sets in a simulation
FRESH_MASKS = 256  # on which it is judged
DEGREE = 4
FEW = 40  # components over which a code sees every set of up to four at budgets people have


@dataclass(frozen=True)
class Simulation:
    """What a decoder found of a planted polynomial: R² on fresh masks, the share of its sets found, seconds."""

    decoder: str
    r2: float
    found: float
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    Attributes:
        masks, distinct: asked, and passed: a mask that occurs again is a copy.
        prompts_per_mask: how many of the prompts a mask meets; `why_so_many` says why.
        rows: masks × prompts a mask, as `discover` counts them; a mask that occurs again with the same prompts takes no
            pass.
        seconds: of the passes, here, at the rate measured; without decoding.
        flops: operations of the passes, multiply and add counted as two; 0 where the model has no matrix products.
        peak_bytes: what a batch of activations holds at once; model and references come on top.
        model_bytes, disk_bytes: of the weights; of responses and journal.
        floor_seconds, likely_seconds: on the GPU asked about, at its peak and at a quarter of it; None: none was.
        price: of the seconds (the likely ones of the GPU, where one was asked about), at a price an hour.
        advice: which way of asking fits, most fitting first.
        simulated: what decoders would find.
        checks: passes of two short made-up prompts: certificates at binding, then a probe at the start and after every
            chunk of masks, whether it is the same model.
    """

    components: int
    prompts: int
    masks: int
    distinct: int
    rows: int
    device: str
    seconds: float
    flops: float
    peak_bytes: int
    model_bytes: int
    disk_bytes: int
    gpu: str | None = None
    floor_seconds: float | None = None
    likely_seconds: float | None = None
    price: float | None = None
    advice: tuple[str, ...] = ()
    simulated: tuple[Simulation, ...] = ()
    checks: int = 0
    prompts_per_mask: int = 0
    why_so_many: str = ""


@single_precision()
def plan_run(
    subject: Any,
    task: Task,
    components: ComponentSet | str | None = None,
    *,
    budget: int | None = None,
    rows: int | None = None,
    prompts_per_mask: int | str = "auto",
    keep_prob: KeepProb = 0.5,
    replacement: str = "mean",
    decoder: str = "auto",
    seed: int = 0,
    per: str | None = None,
    shared_layers: int = 1,
    gpu: str | None = None,
    price_per_hour: float | None = None,
    simulate: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Plan:
    """What `discover` with the same arguments will take, from a chunk of its own masks over a few prompts.

    Args:
        gpu: one of `GPUS`, to be told a floor of its seconds too.
        price_per_hour: of the machine; told as the price of the passes.
        simulate: plant a polynomial and decode it under as many masks; takes as long as decoding will.
        clock: by which the passes are timed; ``time.process_time`` on a machine that does other things too.

    Raises what `discover` would raise of the same arguments, and `SpexMechError` for an unknown GPU.
    """
    if gpu is not None and gpu.lower() not in GPUS:
        raise SpexMechError(f"there are no figures for GPU {gpu!r}; there are for {', '.join(GPUS)}.")
    ask = Ask(
        budget=budget, rows=rows, prompts_per_mask=prompts_per_mask, keep_prob=keep_prob, replacement=replacement,
        decoder=decoder, seed=seed, per=per, shared_layers=shared_layers,
    )  # fmt: skip
    parts = ModelParts.of(subject, task, components)
    chosen, task = parts.components, parts.task
    crossing = settle_rows(len(chosen), len(task), ask)
    design = choose_design(chosen, ask, crossing)
    refuse_undecodable(ask, design)
    few, scale = _few_prompts(task)
    masks = design.keep(0, min(Engine.chunk, -(-crossing.rows // len(task))))  # as many as one prompt meets at a time
    masks = masks[_new(masks, set())]
    dealt = crossing.deal(design)
    distinct = _count_distinct(design, dealt)
    rate = _measure(replace(parts, task=few).engine(ask.replacement, per=ask.per, seed=ask.seed), masks, clock)
    factor = distinct * crossing.per_mask / len(task) / len(masks) * scale
    seconds, flops = rate.seconds * factor, rate.flops * factor
    floor = None if gpu is None else flops / (GPUS[gpu.lower()] * 1e12)
    likely = None if floor is None else floor / TYPICAL
    paid = seconds if likely is None else likely
    return Plan(
        components=len(chosen), prompts=len(task), masks=design.n_masks, distinct=distinct,
        prompts_per_mask=crossing.per_mask, why_so_many=crossing.reason,
        rows=design.n_masks * crossing.per_mask, device=str(parts.subject.device), seconds=seconds, flops=flops,
        peak_bytes=rate.peak_bytes, model_bytes=_model_bytes(parts.subject), disk_bytes=_disk_bytes(design, crossing),
        gpu=gpu, floor_seconds=floor, likely_seconds=likely,
        price=None if price_per_hour is None else price_per_hour * paid / 3600,
        checks=_checks(parts.subject, crossing),
        advice=advise(len(chosen), crossing.masks), simulated=_simulate(design, ask) if simulate else (),
    )  # fmt: skip


def advise(n: int, budget: int) -> tuple[str, ...]:
    """Which way of asking fits so many components and masks, most fitting first; figures in docs/performance.md.

    >>> advise(10, 2048)[0]
    'exact: all 1,024 masks fit the budget, and nothing is left to chance'
    """
    if n <= MAX_COMPLETE and 1 << n <= budget:
        return (f"exact: all {1 << n:,} masks fit the budget, and nothing is left to chance",)
    told = list[str]()
    if n > 2 * budget:
        told.append(
            f"refinement (refine=True, --refine): {n:,} components are more than {budget:,} masks can tell apart; "
            "blocks are ablated first, and those that carry weight split"
        )
    told.append(
        "joint (auto): the best predictions at any budget and keep-probability, and sets of any order that masks show"
    )
    least = smallest_budget(n, DEGREE) if n >= 3 else budget + 1
    if budget >= least and n <= FEW:
        told.append(
            f"coded SPEX (keep_prob='coded'): {n:,} components are few enough for every set of up to {DEGREE} to be "
            "seen, also sets without strong subsets; the others kept as they are"
        )
    elif budget >= least:
        told.append(
            f"coded SPEX would fit ({least:,} masks at least), but over {n:,} components joint predicts better; code a "
            "handful of them instead"
        )
    told.append("proxyspex: its trees alone, a few times faster to decode than joint, a little worse")
    return tuple(told)


def _few_prompts(task: Task) -> tuple[Task, float]:
    """Some prompts of every length, and how many times as many tokens all of them are."""
    groups = task.prompts.by_length()
    rows = sorted(int(row) for prompts in groups.values() for row in prompts[:PROMPTS])
    few = task.take(rows)
    lengths = task.prompts.lengths
    return few, float(lengths.sum()) / float(lengths[torch.tensor(rows)].sum())


def _new(keep: Bool[Tensor, "mask component"], seen: set[bytes]) -> list[int]:
    """Rows with masks that are not in `seen`, which then has them."""
    rows = []
    for row, word in enumerate(pack_bits(keep).numpy()):
        if word.tobytes() not in seen:
            seen.add(word.tobytes())
            rows.append(row)
    return rows


def _count_distinct(design: MaskDesign, dealt: PromptDesign | None) -> int:
    """Masks that differ, or met other prompts."""
    seen = set[bytes]()
    if dealt is None:
        return sum(len(_new(keep, seen)) for _, keep in design.chunks(1 << 12))
    for first, keep in design.chunks(1 << 12):
        met = dealt.met(first, first + len(keep)).numpy()
        seen |= {word.tobytes() + row.tobytes() for word, row in zip(pack_bits(keep).numpy(), met, strict=True)}
    return len(seen)


@dataclass(frozen=True)
class _Rate:
    """Of one chunk."""

    seconds: float
    flops: float
    peak_bytes: int


def _measure(engine: Engine, keep: Bool[Tensor, "mask component"], clock: Callable[[], float]) -> _Rate:
    """A chunk three times: for its memory, its operations, and its time."""
    _ = engine.rows  # settles the sizes of batches
    peak = peak_bytes(lambda: engine.values(keep))
    with FlopCounterMode(display=False) as counter:
        engine.values(keep)
    started = clock()
    engine.values(keep)
    return _Rate(clock() - started, float(counter.get_total_flops()), peak)


def _model_bytes(subject: Subject) -> int:
    model = getattr(subject, "model", None)
    return sum(p.numel() * p.element_size() for p in model.parameters()) if isinstance(model, torch.nn.Module) else 0


def _checks(subject: Subject, crossing: Crossing) -> int:
    """Two passes certify what is added to the stream, a few more where sites had to move, are experts, adapters or of
    the user's own; two probes begin a run."""
    chunks = -(-crossing.rows // (Engine.chunk * crossing.prompts))
    further = 9 * any(subject.shape.experts) + 4 * bool(subject.shape.adapters) + 8 * len(subject.shape.own)
    return 4 + further + chunks if live_module(subject) is not None else 0


def _disk_bytes(design: MaskDesign, crossing: Crossing) -> int:
    """Values and packed masks, in the journal and in the responses; there also which prompts masks met."""
    met = 0 if crossing.crossed else 2 * crossing.per_mask
    return design.n_masks * (2 * (4 * crossing.per_mask + -(-design.n // 8)) + met)


def _simulate(design: MaskDesign, ask: Ask) -> tuple[Simulation, ...]:
    """What the decoder would make of a few planted sets and their subsets, without any noise."""
    truth = _plant(design.n, ask.seed)
    keep, fresh = design.keep(), MaskDesign.bernoulli(design.n, FRESH_MASKS, design.mean_keep_prob, ask.seed + 1).keep()
    solver = choose_decoder(replace(ask, link="identity"), design, design.n_masks)
    started = time.perf_counter()
    decoded = solver.decode(Samples(keep, truth.evaluate(keep)[:, None].float(), design), seed=ask.seed)
    seconds = time.perf_counter() - started
    gap, there = truth.evaluate(fresh) - decoded.predict(fresh), truth.evaluate(fresh)
    r2 = 1 - float(gap.double().square().sum() / (there - there.mean()).double().square().sum())
    wanted = {s for s in truth.sets if s}
    found = len(wanted & set(decoded.spectrum.sets)) / len(wanted)
    return (Simulation(solver.name, r2, found, seconds),)


def _plant(n: int, seed: int) -> Spectrum:
    """Random sets of up to three components with all their subsets; coefficients halve with every order."""
    generator = torch.Generator().manual_seed(seed)
    sets = dict[tuple[int, ...], None]()
    for _ in range(PLANTED):
        size = min(n, int(torch.randint(1, 4, (1,), generator=generator)))
        top = sorted(torch.randperm(n, generator=generator)[:size].tolist())
        sets |= dict.fromkeys(tuple(x for i, x in enumerate(top) if code >> i & 1) for code in range(1 << size))
    values = torch.randn(len(sets), generator=generator, dtype=torch.float64)
    return Spectrum(n, pad_sets(list(sets)), values * torch.tensor([0.5 ** len(s) for s in sets]))
