"""What the scripts that train the gallery's models share: a transformer in plain torch, its training, and its card.

Nothing of `spex_mech` takes part, so that a card's exhaustive truth is an independent check on the ablation engine.
Parameters bear TransformerLens' names; writing them down is all there is to saving. Same seed, same weights.
"""

import argparse
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

Weights = dict[str, Tensor]
Edit = Callable[[str, int, Tensor], Tensor]
"""(kind, layer, what the parts gave) → what is to be taken in its place. Kinds: "heads" [row, head, pos, d_head],
"neurons" [row, pos, neuron], "mlp" [row, pos, d_model]."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """The sizes of a transformer; `d_mlp` 0 is attention only."""

    n_layers: int
    n_heads: int
    d_model: int
    d_head: int
    n_ctx: int
    d_vocab: int
    d_mlp: int = 0

    @property
    def heads(self) -> list[str]:
        return [f"a{layer}.h{head}" for layer in range(self.n_layers) for head in range(self.n_heads)]

    def config(self) -> dict[str, object]:
        """What TransformerLens calls these sizes."""
        sizes: dict[str, object] = {**asdict(self), "d_vocab_out": self.d_vocab, "act_fn": "relu"}
        if not self.d_mlp:
            del sizes["d_mlp"]
        return sizes | {
            "attn_only": not self.d_mlp,
            "normalization_type": "LN",
            "eps": 1e-5,
            "attention_dir": "causal",
            "positional_embedding_type": "standard",
        }


@dataclass(frozen=True)
class Plan:
    """How to train: batches, the learning rate, and penalties on whole heads and whole neurons (group lasso) that make
    the model use few of them and end at `sparse_steps`, so that the others stay alive and small."""

    seed: int
    steps: int
    rate: float = 3e-3
    heads: float = 0.0
    neurons: float = 0.0
    sparse_steps: int = 0


@dataclass(frozen=True)
class Trace:
    """One pass: logits [row, pos, vocab]; by layer, attention [row, head, query, key], head values
    [row, head, pos, d_head] and neurons [row, pos, neuron]; the residual stream before the last norm."""

    logits: Tensor
    patterns: list[Tensor]
    values: list[Tensor]
    neurons: list[Tensor]
    outputs: list[Tensor]
    residual: Tensor


def initial_weights(shape: Shape, generator: torch.Generator) -> Weights:
    """Small random weights; the sizes of the normal distributions are the usual ones, 1/√fan-in."""

    def normal(std: float, *size: int) -> Tensor:
        return torch.randn(*size, generator=generator) * std

    d, inner = shape.d_model, 1 / math.sqrt(shape.d_model)
    weights = {"embed.W_E": normal(0.1, shape.d_vocab, d), "pos_embed.W_pos": normal(0.1, shape.n_ctx, d)}
    for block in (f"blocks.{layer}" for layer in range(shape.n_layers)):
        for name in "QKV":
            weights[f"{block}.attn.W_{name}"] = normal(inner, shape.n_heads, d, shape.d_head)
            weights[f"{block}.attn.b_{name}"] = torch.zeros(shape.n_heads, shape.d_head)
        weights[f"{block}.attn.W_O"] = normal(inner / 2, shape.n_heads, shape.d_head, d)
        weights[f"{block}.attn.b_O"] = torch.zeros(d)
        weights |= {f"{block}.ln1.w": torch.ones(d), f"{block}.ln1.b": torch.zeros(d)}
        if shape.d_mlp:
            weights |= {f"{block}.ln2.w": torch.ones(d), f"{block}.ln2.b": torch.zeros(d)}
            weights[f"{block}.mlp.W_in"] = normal(inner, d, shape.d_mlp)
            weights[f"{block}.mlp.b_in"] = torch.zeros(shape.d_mlp)
            weights[f"{block}.mlp.W_out"] = normal(1 / math.sqrt(shape.d_mlp), shape.d_mlp, d)
            weights[f"{block}.mlp.b_out"] = torch.zeros(d)
    weights |= {"ln_final.w": torch.ones(d), "ln_final.b": torch.zeros(d)}
    return weights | {"unembed.W_U": normal(inner, d, shape.d_vocab)}


def normed(x: Tensor, weights: Weights, name: str) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], weights[f"{name}.w"], weights[f"{name}.b"], 1e-5)


def attend(x: Tensor, weights: Weights, block: str) -> tuple[Tensor, Tensor]:
    """Where each head looks [row, head, query, key], and what it brings from there [row, head, pos, d_head]."""
    x = normed(x, weights, f"{block}.ln1")
    q, k, v = (
        torch.einsum("rpm,hmd->rhpd", x, weights[f"{block}.attn.W_{n}"]) + weights[f"{block}.attn.b_{n}"][:, None]
        for n in "QKV"
    )
    later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    pattern = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(later, -math.inf).softmax(-1)
    return pattern, pattern @ v


def written(value: Tensor, weights: Weights, layer: int) -> Tensor:
    """What the heads write into the residual stream, each by itself [row, head, pos, d_model]."""
    return torch.einsum("rhpd,hdm->rhpm", value, weights[f"blocks.{layer}.attn.W_O"])


def untouched(kind: str, layer: int, value: Tensor) -> Tensor:
    return value


def forward(weights: Weights, tokens: Tensor, edit: Edit = untouched) -> Trace:
    """The logits and everything on the way; what is kept in the trace is what was there before the edit."""
    x, patterns, values = weights["embed.W_E"][tokens] + weights["pos_embed.W_pos"][: tokens.shape[1]], [], []
    neurons, outputs, layer = list[Tensor](), list[Tensor](), 0
    while (block := f"blocks.{layer}") + ".attn.W_O" in weights:
        pattern, value = attend(x, weights, block)
        patterns.append(pattern)
        values.append(value)
        kept = edit("heads", layer, value)
        x = x + torch.einsum("rhpd,hdm->rpm", kept, weights[f"{block}.attn.W_O"]) + weights[f"{block}.attn.b_O"]
        if f"{block}.mlp.W_in" in weights:
            hidden = normed(x, weights, f"{block}.ln2") @ weights[f"{block}.mlp.W_in"] + weights[f"{block}.mlp.b_in"]
            neurons.append(hidden.relu())
            kept = edit("neurons", layer, neurons[-1])
            outputs.append(kept @ weights[f"{block}.mlp.W_out"] + weights[f"{block}.mlp.b_out"])
            x = x + edit("mlp", layer, outputs[-1])
        layer += 1
    return Trace(normed(x, weights, "ln_final") @ weights["unembed.W_U"], patterns, values, neurons, outputs, x)


def dropped_heads(share: float, generator: torch.Generator) -> Edit:
    """Head dropout: in each row a random `share` of the heads gives its average, not what it saw.

    A model trained so cannot count on any one head, and grows others that do the same.
    """

    def edit(kind: str, layer: int, value: Tensor) -> Tensor:
        if kind != "heads":
            return value
        keep = torch.rand(*value.shape[:2], 1, 1, generator=generator) >= share
        return torch.where(keep, value, value.detach().mean(0))

    return edit


def head_penalty(weights: Weights) -> Tensor:
    """Σ over heads of √(|W_V|² + |W_O|²)."""
    parts = [
        weights[name].square().sum((1, 2)) + weights[name.replace("W_O", "W_V")].square().sum((1, 2))
        for name in weights
        if name.endswith("attn.W_O")
    ]
    return (torch.cat(parts) + 1e-8).sqrt().sum()


def neuron_penalty(weights: Weights) -> Tensor:
    """Σ over neurons of √(|W_in|² + |W_out|²)."""
    parts = [
        weights[name].square().sum(0) + weights[name.replace("W_in", "W_out")].square().sum(1)
        for name in weights
        if name.endswith("mlp.W_in")
    ]
    return (torch.cat(parts) + 1e-8).sqrt().sum()


def penalty(weights: Weights, plan: Plan) -> Tensor:
    total = torch.zeros(())
    if plan.heads:
        total = total + plan.heads * head_penalty(weights)
    return total + plan.neurons * neuron_penalty(weights) if plan.neurons else total


def pace(step: int, plan: Plan) -> float:
    """The learning rate: up over 100 steps, flat, then down to nothing over the last 30 %."""
    return plan.rate * min(1.0, (step + 1) / 100, (plan.steps - step) / (0.3 * plan.steps))


def train(shape: Shape, plan: Plan, loss: Callable[[Weights, torch.Generator], Tensor]) -> Weights:
    """Weights after `plan.steps` steps of `loss`, which draws a fresh batch each time; same seed, same weights."""
    generator = torch.Generator().manual_seed(plan.seed)
    weights = {name: w.requires_grad_() for name, w in initial_weights(shape, generator).items()}
    optimiser = torch.optim.AdamW(weights.values(), lr=plan.rate, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(plan.steps):
        optimiser.param_groups[0]["lr"] = pace(step, plan)
        now = loss(weights, generator)
        optimiser.zero_grad()
        (now + penalty(weights, plan) if step < plan.sparse_steps else now).backward()
        optimiser.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1:,} of {plan.steps:,}: loss {now.item():.4f} nat", flush=True)
    return {name: w.detach() for name, w in weights.items()}


def write_lines(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def read_rows(path: Path) -> Iterator[Row]:
    return (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())


def write_model(out: Path, shape: Shape, weights: Weights) -> None:
    (out / "model").mkdir(parents=True, exist_ok=True)
    write_json(out / "model" / "config.json", shape.config())
    no_bias = {"unembed.b_U": torch.zeros(shape.d_vocab)}  # TransformerLens wants one
    save_file({name: w.contiguous() for name, w in (weights | no_bias).items()}, out / "model" / "model.safetensors")


def read_model(out: Path) -> Weights:
    return load_file(out / "model" / "model.safetensors")


CARD = """[card]
schema = 1
title = "{title}"
summary = "{summary}"
licence = "MIT"
source = "{source}"

[model]
kind = "transformer_lens"
path = "model"

[task]
metric = "logit_diff"
unit = "logit"

[components]
default = "{components}"

[replacement]
default = "mean"
per = "position"
"""


def write_card_file(out: Path, **said: str) -> None:
    """`card.toml`: title, summary, source, components."""
    (out / "card.toml").write_text(CARD.format(**said), encoding="utf-8")


def digest(out: Path) -> str:
    return hashlib.sha256((out / "model" / "model.safetensors").read_bytes()).hexdigest()


@torch.no_grad()
def reference_means(weights: Weights, out: Path) -> dict[tuple[str, int], Tensor]:
    """What every part gives on average over the card's reference rows, position by position."""
    trace = forward(weights, torch.tensor([row["tokens"] for row in read_rows(out / "reference.jsonl")]))
    found = {"heads": trace.values, "neurons": trace.neurons, "mlp": trace.outputs}
    return {(k, i): v.double().mean(0).float() for k, layers in found.items() for i, v in enumerate(layers)}


def ablating(keep: Tensor, names: Sequence[str], means: Mapping[tuple[str, int], Tensor]) -> Edit:
    """The edit that gives row r the mean of every component that keep[r] has not; heads, whole MLPs and neurons."""
    places = {"heads": "a{}.h", "neurons": "m{}.n", "mlp": "m{}"}

    def edit(kind: str, layer: int, value: Tensor) -> Tensor:
        stem = places[kind].format(layer)
        named = {int(n[len(stem) :] or 0): i for i, n in enumerate(names) if _is_part(n, stem)}
        if not named:
            return value
        parts = {"heads": value.shape[1], "neurons": value.shape[-1], "mlp": 1}[kind]
        act = torch.ones(len(keep), parts, dtype=torch.bool)
        act[:, list(named)] = keep[:, list(named.values())]
        act = act[:, :, None, None] if kind == "heads" else act[:, None, :]
        return torch.where(act, value, means[kind, layer])

    return edit


def _is_part(name: str, stem: str) -> bool:
    """Whether a name is this stem with a number (or, for a whole MLP, the stem itself)."""
    return name.startswith(stem) and (name[len(stem) :].isdigit() if stem[-1].isalpha() else name == stem)


def logit_difference(logits: Tensor, row: Row) -> Tensor:
    """The answer's logit less the mean of the distractors', at the scored position [row of the batch]."""
    scored = logits[:, row["position"]]
    return scored[:, row["answer"]] - scored[:, row["distractors"]].mean(1)


@torch.no_grad()
def exhaustive(out: Path, names: Sequence[str]) -> Tensor:
    """Logit differences [mask, prompt] of all 2^n masks; bit i of the row number says that component i is ablated."""
    weights = read_model(out)
    means = reference_means(weights, out)
    keep = torch.arange(1 << len(names))[:, None] >> torch.arange(len(names)) & 1 == 0
    columns = []
    for row in read_rows(out / "prompts.jsonl"):
        tokens = torch.tensor(row["tokens"])
        parts = [
            logit_difference(forward(weights, tokens.expand(len(k), -1), ablating(k, names, means)).logits, row)
            for k in keep.split(512)
        ]
        columns.append(torch.cat(parts))
    return torch.stack(columns, 1)


def single_costs(
    names: Sequence[str], behaviour: Callable[[Edit], Tensor], means: Mapping[tuple[str, int], Tensor]
) -> dict[str, Tensor]:
    """What `behaviour` loses where one component at a time gives its mean, by name; the shape is the behaviour's."""
    intact, off = behaviour(untouched), torch.zeros(1, 1, dtype=torch.bool)
    return {name: intact - behaviour(ablating(off, [name], means)) for name in names}


def walsh(values: Tensor, bits: Sequence[int]) -> float:
    """F(S) from all masks by its definition: the mean of f times the parity of the ablated bits in S; values [mask]."""
    ablated = torch.arange(len(values))[:, None] >> torch.tensor(bits) & 1
    return float((values.double() * (1 - 2 * (ablated.sum(1) % 2))).mean())


def backed_up(values: Tensor, names: Sequence[str], most: int = 4) -> tuple[tuple[str, ...], dict[str, float]]:
    """The group of up to `most` components whose joint loss exceeds what any split of it explains by most.

    With D(T) what ablating T alone costs the intact model: D(S) - max over splits of D(T) + D(S - T). Returns its
    names, and the costs. `values` [mask] of all 2^n masks.
    """
    cost = (values[0] - values).tolist()
    sizes = [m for m in range(1, len(values)) if 2 <= m.bit_count() <= most]
    excess = {m: cost[m] - max(cost[t] + cost[m ^ t] for t in range(1, m) if t & m == t) for m in sizes}
    best = max(excess, key=excess.__getitem__)
    members = [i for i in range(len(names)) if best >> i & 1]
    alone = {names[i]: round(cost[1 << i], 3) for i in members}
    told = {"intact": float(values[0]), "without_all": float(values[best]), "excess": excess[best]}
    return tuple(alone), {**alone, **{key: round(value, 3) for key, value in told.items()}}


def write_truth(out: Path, names: Sequence[str]) -> None:
    metadata = {
        "components": ",".join(names),
        "metric": "logit_diff",
        "replacement": "mean",
        "rows": "bit i of the row index = component i ablated",
    }
    save_file({"values": exhaustive(out, names)}, out / "truth.safetensors", metadata)


@torch.no_grad()
def gap_to_transformer_lens(out: Path, tokens: Tensor) -> float:
    """Largest difference between these logits and those of TransformerLens' native model with the same weights, in
    double precision, so that rounding cannot hide a difference."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge.sources.native import boot
    from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint

    fields = json.loads((out / "model" / "config.json").read_text(encoding="utf-8"))
    config = TransformerBridgeConfig(**fields, architecture="TransformerLensNative", init_weights=False)
    weights, bridge = read_model(out), boot(config)
    bridge.load_state_dict(convert_tl_checkpoint(weights, config), strict=True)
    own = forward({name: w.double() for name, w in weights.items()}, tokens).logits
    return float((bridge.double()(tokens) - own).abs().max())


def check_saved(out: Path, tokens: Tensor) -> None:
    """Say what was saved; refuses a model that TransformerLens reads as another one."""
    gap = gap_to_transformer_lens(out, tokens)
    print(f"TransformerLens' logits differ by {gap:.1e}; weights sha256 {digest(out)}")
    if gap > 1e-9:
        raise SystemExit("The saved model is not the trained one: the logits differ by more than 1e-9.")


@dataclass(frozen=True)
class Asked:
    """What a training script was told: where the card goes, and how to train."""

    out: Path
    plan: Plan


def asked(what: str, plan: Plan) -> Asked:
    """Read the command line. One thread: the order of sums, and with it the last bit, depends on their number."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--out", type=Path, required=True, help="the card's folder")
    parser.add_argument("--seed", type=int, default=plan.seed)
    parser.add_argument("--steps", type=int, default=plan.steps)
    given = parser.parse_args()
    torch.set_num_threads(1)
    sparse = given.steps * plan.sparse_steps // plan.steps
    return Asked(given.out, replace(plan, seed=given.seed, steps=given.steps, sparse_steps=sparse))
