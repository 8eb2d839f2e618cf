# %% [markdown]
# # Train the induction model that ships with the project
#
# A two-layer, attention-only transformer learns to continue repeated random sequences. What it grows is the best known
# circuit whose parts are nothing without each other: a previous-token head in layer 0 and induction heads in layer 1
# (Olsson et al. 2022). This script trains the model from a seed, says which heads those are by where they look and
# what they copy, ablates all 2^12 sets of its twelve heads, and writes the whole as a card:
#
#     python examples/train_induction.py --out circuits/induction-2l        (a few minutes)
#
# It uses plain torch and nothing of `spex_mech`, so that the card's exhaustive truth is an independent check on the
# ablation engine. Same seed, same weights, same numbers.

# %%
import argparse
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

CONFIG = {
    "n_layers": 2,
    "n_heads": 6,
    "d_model": 64,
    "d_head": 16,
    "n_ctx": 32,
    "d_vocab": 48,
    "d_vocab_out": 48,
    "act_fn": "relu",
    "attn_only": True,
    "normalization_type": "LN",
    "eps": 1e-5,
    "attention_dir": "causal",
    "positional_embedding_type": "standard",
}
N_LAYERS, N_HEADS, D_MODEL, D_HEAD, N_CTX, D_VOCAB = 2, 6, 64, 16, 32, 48
HEADS = [f"a{layer}.h{head}" for layer in range(N_LAYERS) for head in range(N_HEADS)]
SEED, STEPS, BATCH, RATE = 1, 1500, 64, 3e-3
SPARSITY, SPARSE_STEPS = 4e-3, 1200  # weight of the penalty on whole heads, and the step at which it ends
HALF = N_CTX // 2

Weights = dict[str, Tensor]


# %% [markdown]
# ## The sequences
# Some filler, then a block of random length that is repeated to the end. No other token occurs twice; where the block
# begins and how long it is differ from row to row. So neither position nor frequency gives the next token away: only
# finding the last place where the present token stood, and looking at what came after it, does.


# %%
def distinct_rows(rows: int, generator: torch.Generator) -> Tensor:
    """Rows of N_CTX different random tokens [row, pos]: nothing in them repeats."""
    return torch.rand(rows, D_VOCAB, generator=generator).argsort(1)[:, :N_CTX]


def repeated_rows(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens [row, pos] with a repeated block, and Bool [row, pos - 1]: where the next token stood before."""
    period = torch.randint(4, HALF + 1, (rows, 1), generator=generator)
    start = (torch.rand(rows, 1, generator=generator) * (N_CTX - 2 * period + 1)).long()
    pos = torch.arange(N_CTX).expand(rows, -1)
    source = torch.where(pos >= start, start + (pos - start) % period, pos)
    return distinct_rows(rows, generator).gather(1, source), pos[:, :-1] >= start + period


def halves(rows: int, generator: torch.Generator) -> Tensor:
    """Tokens [row, pos]: N_CTX/2 different tokens, twice."""
    return distinct_rows(rows, generator)[:, :HALF].repeat(1, 2)


# %% [markdown]
# ## The model
# Its parameters bear TransformerLens' names, so that writing them down is all there is to saving.


# %%
def initial_weights(generator: torch.Generator) -> Weights:
    """Small random weights; the sizes of the normal distributions are the usual ones, 1/√fan-in."""

    def normal(std: float, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * std

    inner = 1 / math.sqrt(D_MODEL)
    weights = {"embed.W_E": normal(0.1, D_VOCAB, D_MODEL), "pos_embed.W_pos": normal(0.1, N_CTX, D_MODEL)}
    for block in (f"blocks.{layer}" for layer in range(N_LAYERS)):
        for name in "QKV":
            weights[f"{block}.attn.W_{name}"] = normal(inner, N_HEADS, D_MODEL, D_HEAD)
            weights[f"{block}.attn.b_{name}"] = torch.zeros(N_HEADS, D_HEAD)
        weights[f"{block}.attn.W_O"] = normal(inner / 2, N_HEADS, D_HEAD, D_MODEL)
        weights[f"{block}.attn.b_O"] = torch.zeros(D_MODEL)
        weights |= {f"{block}.ln1.w": torch.ones(D_MODEL), f"{block}.ln1.b": torch.zeros(D_MODEL)}
    weights |= {"ln_final.w": torch.ones(D_MODEL), "ln_final.b": torch.zeros(D_MODEL)}
    return weights | {"unembed.W_U": normal(inner, D_MODEL, D_VOCAB)}


@dataclass(frozen=True)
class Ablation:
    """Which heads act, Bool [row, layer, head], and what stands in for the others, [layer, head, pos, d_head]."""

    keep: Tensor
    means: Tensor


@dataclass(frozen=True)
class Trace:
    """One pass: logits [row, pos, vocab]; by layer, attention [row, head, query, key] and head values
    [row, head, pos, d_head]; the residual stream before the last norm [row, pos, d_model]."""

    logits: Tensor
    patterns: list[Tensor]
    values: list[Tensor]
    residual: Tensor


def normed(x: Tensor, weights: Weights, name: str) -> Tensor:
    return functional.layer_norm(x, (D_MODEL,), weights[f"{name}.w"], weights[f"{name}.b"], 1e-5)


def attend(x: Tensor, weights: Weights, block: str) -> tuple[Tensor, Tensor]:
    """Where each head looks [row, head, query, key], and what it brings from there [row, head, pos, d_head]."""
    x = normed(x, weights, f"{block}.ln1")
    q, k, v = (
        torch.einsum("rpm,hmd->rhpd", x, weights[f"{block}.attn.W_{n}"]) + weights[f"{block}.attn.b_{n}"][:, None]
        for n in "QKV"
    )
    later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    pattern = (q @ k.transpose(-1, -2) / math.sqrt(D_HEAD)).masked_fill(later, -math.inf).softmax(-1)
    return pattern, pattern @ v


def forward(weights: Weights, tokens: Tensor, ablation: Ablation | None = None) -> Trace:
    x, patterns, values = weights["embed.W_E"][tokens] + weights["pos_embed.W_pos"][: tokens.shape[1]], [], []
    for layer in range(N_LAYERS):
        pattern, value = attend(x, weights, f"blocks.{layer}")
        if ablation is not None:
            value = torch.where(ablation.keep[:, layer, :, None, None], value, ablation.means[layer])
        written = torch.einsum("rhpd,hdm->rpm", value, weights[f"blocks.{layer}.attn.W_O"])
        x = x + written + weights[f"blocks.{layer}.attn.b_O"]
        patterns.append(pattern)
        values.append(value)
    return Trace(normed(x, weights, "ln_final") @ weights["unembed.W_U"], patterns, values, x)


# %% [markdown]
# ## Training
# Twelve heads are more than the task needs. A penalty on the size of whole heads (a group lasso over W_V and W_O) makes
# the model use few of them; it ends before the training does, so that the others stay alive and small.


# %%
def sparsity(weights: Weights) -> Tensor:
    """Σ over heads of √(|W_V|² + |W_O|²)."""
    parts = [
        weights[f"blocks.{layer}.attn.W_V"].square().sum((1, 2))
        + weights[f"blocks.{layer}.attn.W_O"].square().sum((1, 2))
        for layer in range(N_LAYERS)
    ]
    return (torch.cat(parts) + 1e-8).sqrt().sum()


def rate(step: int, steps: int) -> float:
    """Up over 100 steps, flat, then down to nothing over the last 30 %."""
    return RATE * min(1.0, (step + 1) / 100, (steps - step) / (0.3 * steps))


def train(seed: int = SEED, steps: int = STEPS, sparse_steps: int = SPARSE_STEPS) -> Weights:
    """Weights after `steps` batches of fresh sequences; same seed, same weights."""
    generator = torch.Generator().manual_seed(seed)
    weights = {name: w.requires_grad_() for name, w in initial_weights(generator).items()}
    optimiser = torch.optim.AdamW(weights.values(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate(step, steps)
        tokens, known = repeated_rows(BATCH, generator)
        loss = functional.cross_entropy(forward(weights, tokens).logits[:, :-1][known], tokens[:, 1:][known])
        optimiser.zero_grad()
        (loss + (SPARSITY * sparsity(weights) if step < sparse_steps else 0.0)).backward()
        optimiser.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1:,} of {steps:,}: loss {loss.item():.4f} nat", flush=True)
    return {name: w.detach() for name, w in weights.items()}


@torch.no_grad()
def accuracy(weights: Weights, rows: int = 1000, seed: int = 10) -> float:
    """Share of the predictable tokens of fresh sequences that the model gets right."""
    tokens, known = repeated_rows(rows, torch.Generator().manual_seed(seed))
    return float((forward(weights, tokens).logits[:, :-1].argmax(-1) == tokens[:, 1:])[known].double().mean())


# %% [markdown]
# ## Which heads are which
# By attention and by copying, as Olsson et al. define them; no ablation takes part. On a block given twice, a
# previous-token head looks one back, an induction head one past the last occurrence of the present token, and it
# raises the logit of the token it finds there.


# %%
def copying(trace: Trace, weights: Weights, tokens: Tensor) -> Tensor:
    """What each head of the last layer adds by itself to the right next token's logit, over the mean token's [head]."""
    spread = trace.residual.var(-1, unbiased=False, keepdim=True).add(1e-5).sqrt()
    unembed = weights["ln_final.w"][:, None] * weights["unembed.W_U"]
    unembed = (unembed - unembed.mean(0)) - (unembed - unembed.mean(0)).mean(1, keepdim=True)
    written = torch.einsum("rhpd,hdm->hrpm", trace.values[-1], weights[f"blocks.{N_LAYERS - 1}.attn.W_O"]) / spread
    direct = torch.einsum("hrpm,rpm->hrp", written[:, :, HALF:-1], unembed.T[tokens[:, HALF + 1 :]])
    return direct.mean((1, 2))


@torch.no_grad()
def head_scores(weights: Weights, rows: int = 256, seed: int = 11) -> dict[str, dict[str, float]]:
    """Previous-token, induction and copying score of every head, each a mean over fresh sequences."""
    tokens = halves(rows, torch.Generator().manual_seed(seed))
    trace = forward(weights, tokens)
    scores = {}
    for layer, pattern in enumerate(trace.patterns):
        previous = pattern.diagonal(-1, 2, 3)[..., : HALF - 1].mean((0, 2))  # the first copy, where keys are made
        induction = pattern.diagonal(1 - HALF, 2, 3)[..., 1:].mean((0, 2))
        for head in range(N_HEADS):
            scores[f"a{layer}.h{head}"] = {"previous_token": float(previous[head]), "induction": float(induction[head])}
    for head, logits in enumerate(copying(trace, weights, tokens).tolist()):
        scores[f"a{N_LAYERS - 1}.h{head}"]["copying_logits"] = logits
    return {name: {key: round(value, 3) for key, value in score.items()} for name, score in scores.items()}


def roles(scores: dict[str, dict[str, float]]) -> dict[str, str]:
    """Heads that bear a name: previous token (score ≥ 0.9), induction (score ≥ 0.9 and at least one logit copied)."""
    found = {name: "previous token" for name, score in scores.items() if score["previous_token"] >= 0.9}
    return found | {
        name: "induction"
        for name, score in scores.items()
        if score["induction"] >= 0.9 and score.get("copying_logits", 0.0) >= 1.0
    }


# %% [markdown]
# ## The card
# Sixteen prompts: a block twice, one token of the second copy to continue, three other tokens of the block as
# distractors. The reference for mean ablation is 256 sequences in which nothing repeats.


# %%
def prompt_rows(prompts: int, generator: torch.Generator) -> list[dict[str, object]]:
    rows = []
    for tokens in halves(prompts, generator).tolist():
        position = int(torch.randint(HALF, N_CTX - 1, (1,), generator=generator))
        others = [t for t in tokens[:HALF] if t not in (tokens[position], tokens[position + 1])]
        chosen = torch.randperm(len(others), generator=generator)[:3].tolist()
        distractors = [others[i] for i in chosen]
        rows.append(
            {"tokens": tokens, "answer": tokens[position + 1], "distractors": distractors, "position": position}
        )
    return rows


def published(scores: dict[str, dict[str, float]]) -> dict[str, object]:
    named = roles(scores)
    of = {role: [name for name, held in named.items() if held == role] for role in ("previous token", "induction")}
    return {
        "nodes": named,
        "interactions": [
            {"components": [first, second], "kind": "synergy"}
            for first in of["previous token"]
            for second in of["induction"]
        ],
        "citation": "Olsson et al. 2022, In-context Learning and Induction Heads, arXiv 2209.11895; "
        "heads named by the scores below, without ablation",
        "scores": scores,
    }


CARD = """[card]
schema = 1
title = "Induction in two layers"
summary = "An attention-only transformer that continues repeated random sequences by a previous-token head \
and induction heads."
licence = "MIT"
source = "trained by examples/train_induction.py, seed {seed}; accuracy {accuracy:.4f} on fresh sequences"

[model]
kind = "transformer_lens"
path = "model"

[task]
metric = "logit_diff"
unit = "logit"

[components]
default = "a*.h*"

[replacement]
default = "mean"
per = "position"
"""


def write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_card(out: Path, weights: Weights, seed: int) -> None:
    generator = torch.Generator().manual_seed(12)
    (out / "model").mkdir(parents=True, exist_ok=True)
    (out / "model" / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n", encoding="utf-8")
    no_bias = {"unembed.b_U": torch.zeros(D_VOCAB)}  # TransformerLens wants one
    save_file({name: w.contiguous() for name, w in (weights | no_bias).items()}, out / "model" / "model.safetensors")
    write_lines(out / "prompts.jsonl", prompt_rows(16, generator))
    write_lines(out / "reference.jsonl", [{"tokens": row} for row in distinct_rows(256, generator).tolist()])
    text = json.dumps(published(head_scores(weights)), indent=1)
    (out / "published.json").write_text(text + "\n", encoding="utf-8")
    (out / "card.toml").write_text(CARD.format(seed=seed, accuracy=accuracy(weights)), encoding="utf-8")


# %% [markdown]
# ## The truth
# All 4,096 sets of heads, ablated to their mean over the reference sequences at each position.


# %%
def read_rows(path: Path) -> Iterator[dict[str, object]]:
    return (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())


@torch.no_grad()
def exhaustive(out: Path) -> Tensor:
    """Logit differences [mask, prompt]; bit i of the row number is set where head i is ablated."""
    weights, rows = load_file(out / "model" / "model.safetensors"), list(read_rows(out / "prompts.jsonl"))
    reference = torch.tensor([row["tokens"] for row in read_rows(out / "reference.jsonl")])
    means = torch.stack([value.double().mean(0).float() for value in forward(weights, reference).values])
    ablated = torch.arange(1 << len(HEADS))[:, None] >> torch.arange(len(HEADS)) & 1 == 1
    keep = ~ablated.view(-1, N_LAYERS, N_HEADS)
    columns = [
        torch.cat([logit_diffs(weights, row, Ablation(part, means)) for part in keep.split(512)]) for row in rows
    ]
    return torch.stack(columns, 1)


def logit_diffs(weights: Weights, row: dict[str, object], ablation: Ablation) -> Tensor:
    """The answer's logit less the mean of the distractors', under each mask."""
    tokens = torch.tensor(row["tokens"]).expand(len(ablation.keep), -1)
    logits = forward(weights, tokens, ablation).logits[:, row["position"]]
    return logits[:, row["answer"]] - logits[:, row["distractors"]].mean(1)


def write_truth(out: Path) -> None:
    metadata = {
        "components": ",".join(HEADS),
        "metric": "logit_diff",
        "replacement": "mean",
        "rows": "bit i of the row index = component i ablated",
    }
    save_file({"values": exhaustive(out)}, out / "truth.safetensors", metadata)


# %% [markdown]
# ## The check
# TransformerLens reads the same weights and computes the same function: in double precision, so that rounding cannot
# hide a difference (the logits go up to about 25).


# %%
@torch.no_grad()
def gap_to_transformer_lens(out: Path) -> float:
    """Largest difference between this script's logits and TransformerLens' native model's, in float64."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge.sources.native import boot
    from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint

    fields = json.loads((out / "model" / "config.json").read_text(encoding="utf-8"))
    config = TransformerBridgeConfig(**fields, architecture="TransformerLensNative", init_weights=False)
    weights, bridge = load_file(out / "model" / "model.safetensors"), boot(config)
    bridge.load_state_dict(convert_tl_checkpoint(weights, config), strict=True)
    tokens = halves(64, torch.Generator().manual_seed(13))
    own = forward({name: w.double() for name, w in weights.items()}, tokens).logits
    return float((bridge.double()(tokens) - own).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the induction model and write its card.")
    parser.add_argument("--out", type=Path, required=True, help="the card's folder")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--steps", type=int, default=STEPS)
    asked = parser.parse_args()
    torch.set_num_threads(1)  # the order of sums, and with it the last bit, depends on the number of threads
    weights = train(asked.seed, asked.steps, asked.steps * SPARSE_STEPS // STEPS)
    write_card(asked.out, weights, asked.seed)
    write_truth(asked.out)
    gap, digest = gap_to_transformer_lens(asked.out), hashlib.sha256()
    digest.update((asked.out / "model" / "model.safetensors").read_bytes())
    print(f"accuracy {accuracy(weights):.4f}; TransformerLens' logits differ by {gap:.1e}")
    print(f"weights sha256 {digest.hexdigest()}")
    for name, role in roles(head_scores(weights)).items():
        print(f"{name}: {role} {head_scores(weights)[name]}")
    if gap > 1e-9:
        raise SystemExit("The saved model is not the trained one: the logits differ by more than 1e-9.")


if __name__ == "__main__":
    main()
