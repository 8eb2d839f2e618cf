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
# It uses plain torch (`training.py` beside it) and nothing of `spex_mech`, so that the card's exhaustive truth is an
# independent check on the ablation engine. Same seed, same weights, same numbers.

# %%
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from training import (
    Plan,
    Row,
    Shape,
    Trace,
    Weights,
    asked,
    check_saved,
    forward,
    train,
    write_card_file,
    write_json,
    write_lines,
    write_model,
    write_truth,
    written,
)

SHAPE = Shape(n_layers=2, n_heads=6, d_model=64, d_head=16, n_ctx=32, d_vocab=48)
N_CTX, D_VOCAB = SHAPE.n_ctx, SHAPE.d_vocab
# Twelve heads are more than the task needs; the penalty makes the model use few of them.
PLAN = Plan(seed=1, steps=1500, heads=4e-3, sparse_steps=1200)
BATCH = 64
HALF = N_CTX // 2


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
# ## Training


# %%
def loss(weights: Weights, generator: torch.Generator) -> Tensor:
    tokens, known = repeated_rows(BATCH, generator)
    return functional.cross_entropy(forward(weights, tokens).logits[:, :-1][known], tokens[:, 1:][known])


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
    gives = written(trace.values[-1], weights, SHAPE.n_layers - 1) / spread[:, None]
    direct = torch.einsum("rhpm,rpm->hrp", gives[:, :, HALF:-1], unembed.T[tokens[:, HALF + 1 :]])
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
        for head in range(SHAPE.n_heads):
            scores[f"a{layer}.h{head}"] = {"previous_token": float(previous[head]), "induction": float(induction[head])}
    for head, logits in enumerate(copying(trace, weights, tokens).tolist()):
        scores[f"a{SHAPE.n_layers - 1}.h{head}"]["copying_logits"] = logits
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
def prompt_rows(prompts: int, generator: torch.Generator) -> list[Row]:
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


def write_card(out: Path, weights: Weights, seed: int) -> None:
    generator = torch.Generator().manual_seed(12)
    write_model(out, SHAPE, weights)
    write_lines(out / "prompts.jsonl", prompt_rows(16, generator))
    write_lines(out / "reference.jsonl", [{"tokens": row} for row in distinct_rows(256, generator).tolist()])
    write_json(out / "published.json", published(head_scores(weights)))
    write_card_file(
        out,
        title="Induction in two layers",
        summary="An attention-only transformer that continues repeated random sequences by a previous-token head and "
        "induction heads.",
        source=f"trained by examples/train_induction.py, seed {seed}; accuracy {accuracy(weights):.4f} on fresh "
        "sequences",
        components="a*.h*",
    )
    write_truth(out, SHAPE.heads)


def main() -> None:
    given = asked("Train the induction model and write its card.", PLAN)
    weights = train(SHAPE, given.plan, loss)
    write_card(given.out, weights, given.plan.seed)
    print(f"accuracy {accuracy(weights):.4f}")
    for name, role in roles(head_scores(weights)).items():
        print(f"{name}: {role} {head_scores(weights)[name]}")
    check_saved(given.out, halves(64, torch.Generator().manual_seed(13)))


if __name__ == "__main__":
    main()
