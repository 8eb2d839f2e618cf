# %% [markdown]
# # Train the bracket model of the gallery: a classifier of two conditions
#
# Twelve brackets are balanced if as many close as open, and if no prefix closes more than it opened. A small
# transformer learns to say after each whether it can still come right, and at the end whether it did. Neither condition
# is enough, so what checks the one and what checks the other are needed together.
#
#     python examples/train_brackets.py --out circuits/brackets-2l          (minutes)

# %%
import itertools
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from training import (
    Edit,
    Plan,
    Row,
    Shape,
    Weights,
    asked,
    check_saved,
    forward,
    reference_means,
    single_costs,
    train,
    walsh,
    write_card_file,
    write_json,
    write_lines,
    write_model,
    write_truth,
)

OPEN, CLOSE, BOS, END, YES, NO = range(6)
BRACKETS = 12
LENGTH = BRACKETS + 2
SHAPE = Shape(n_layers=2, n_heads=4, d_model=32, d_head=8, n_ctx=LENGTH, d_vocab=6, d_mlp=32)
PLAN = Plan(seed=1, steps=1500, heads=1e-3, sparse_steps=1050)
BATCH = 64
COMPONENTS = [*SHAPE.heads, *(f"m{layer}" for layer in range(SHAPE.n_layers))]


# %% [markdown]
# ## The brackets
# Half of them balanced: any shuffle of equal numbers becomes so when it is turned to begin after its lowest point.
# Of the others, half have one bracket turned round (the count is off), half are balanced ones turned at another place
# (the count is right, but something closes before it opened).


# %%
def heights(brackets: Tensor) -> Tensor:
    """How many are open after each bracket [row, bracket]."""
    return (1 - 2 * brackets).cumsum(1)


def balanced(brackets: Tensor) -> Tensor:
    """Bool [row]."""
    height = heights(brackets)
    return (height[:, -1] == 0) & (height >= 0).all(1)


def balanced_rows(rows: int, generator: torch.Generator) -> Tensor:
    shuffled = (torch.rand(rows, BRACKETS, generator=generator).argsort(1) >= BRACKETS // 2).long()
    return turned(shuffled, heights(shuffled).argmin(1) + 1)


def turned(brackets: Tensor, by: Tensor) -> Tensor:
    return brackets.gather(1, (torch.arange(BRACKETS) + by[:, None]) % BRACKETS)


def strings(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens [row, pos], and whether the brackets are balanced [row]."""
    good, kind = balanced_rows(rows, generator), torch.randint(4, (rows,), generator=generator)
    one = torch.randint(BRACKETS, (rows, 1), generator=generator)
    flipped = good.scatter(1, one, 1 - good.gather(1, one))
    shifted = turned(good, torch.randint(1, BRACKETS, (rows,), generator=generator))
    brackets = torch.where((kind == 2)[:, None], flipped, torch.where((kind == 3)[:, None], shifted, good))
    ends = torch.full((rows, 1), BOS), torch.full((rows, 1), END)
    return torch.cat([ends[0], brackets, ends[1]], 1), balanced(brackets)


# %%
def answers(right: Tensor) -> Tensor:
    return torch.where(right, YES, NO)


def loss(weights: Weights, generator: torch.Generator) -> Tensor:
    tokens, right = strings(BATCH, generator)
    logits = forward(weights, tokens).logits
    possible = (heights(tokens[:, 1:-1]) >= 0).cummin(1).values
    along = functional.cross_entropy(logits[:, 1:-1].flatten(0, 1), answers(possible).flatten())
    return along + functional.cross_entropy(logits[:, -1], answers(right))


@torch.no_grad()
def accuracy(weights: Weights, rows: int = 2000, seed: int = 10) -> float:
    """Share of fresh strings that the model classifies rightly."""
    tokens, right = strings(rows, torch.Generator().manual_seed(seed))
    return float((forward(weights, tokens).logits[:, -1].argmax(-1) == answers(right)).double().mean())


# %% [markdown]
# ## What is used
# How much of the difference between the right and the wrong answer is lost where one head or MLP gives its mean over
# all strings: by what is the matter with the string.


# %%
@torch.no_grad()
def scores(weights: Weights, out: Path) -> dict[str, dict[str, float]]:
    """Logits lost, by component and kind of string: balanced, with the count off, or closed before it was opened."""
    tokens, right = strings(600, torch.Generator().manual_seed(11))
    row, height = torch.arange(len(tokens)), heights(tokens[:, 1:-1])
    kinds = {"balanced": right, "count": height[:, -1] != 0, "order": (height[:, -1] == 0) & ~right}

    def behaviour(edit: Edit) -> Tensor:
        logits = forward(weights, tokens, edit).logits[:, -1]
        gap = logits[row, answers(right)] - logits[row, answers(~right)]
        return torch.stack([gap[rows].mean() for rows in kinds.values()])

    lost = single_costs(COMPONENTS, behaviour, reference_means(weights, out))
    return {
        name: {kind: round(cost, 2) for kind, cost in zip(kinds, costs.tolist(), strict=True)}
        for name, costs in lost.items()
    }


def roles(found: dict[str, dict[str, float]]) -> dict[str, str]:
    """Components that matter by themselves (a logit or more for some kind), and for which kinds."""
    wanted = {name: [kind for kind, cost in costs.items() if cost >= 1] for name, costs in found.items()}
    return {name: f"needed for: {', '.join(kinds)}" for name, kinds in wanted.items() if kinds}


def strongest_pairs(values: Tensor, count: int = 3) -> list[dict[str, object]]:
    """The pairs with the largest Walsh coefficients [mask]; all of their main effects are positive."""
    pairs = {pair: walsh(values, pair) for pair in itertools.combinations(range(len(COMPONENTS)), 2)}
    best = sorted(pairs, key=lambda pair: -abs(pairs[pair]))[:count]
    kinds = {True: "synergy", False: "redundancy"}
    return [{"components": [COMPONENTS[i] for i in pair], "kind": kinds[pairs[pair] > 0]} for pair in best]


# %% [markdown]
# ## The card


# %%
def prompt_rows(prompts: int, generator: torch.Generator) -> list[Row]:
    tokens, right = strings(prompts, generator)
    told = zip(tokens.tolist(), answers(right).tolist(), answers(~right).tolist(), strict=True)
    return [{"tokens": t, "answer": yes, "distractors": [no], "position": LENGTH - 1} for t, yes, no in told]


def write_card(out: Path, weights: Weights, seed: int) -> None:
    generator = torch.Generator().manual_seed(12)
    write_model(out, SHAPE, weights)
    write_lines(out / "prompts.jsonl", prompt_rows(32, generator))
    write_lines(out / "reference.jsonl", [{"tokens": row} for row in strings(256, generator)[0].tolist()])
    write_card_file(
        out,
        title="Brackets in two layers",
        summary="A transformer that says whether twelve brackets are balanced; heads of the second layer and both MLPs "
        "are needed together.",
        source=f"trained by examples/train_brackets.py, seed {seed}; accuracy {accuracy(weights):.4f} on fresh strings",
        components="a*.h*, m*",
    )
    write_truth(out, COMPONENTS)
    found = scores(weights, out)
    write_json(
        out / "published.json",
        {
            "nodes": roles(found),
            "interactions": strongest_pairs(load_file(out / "truth.safetensors")["values"].double().mean(1)),
            "citation": "measured by the script, not published elsewhere",
            "scores": found,
        },
    )


def main() -> None:
    given = asked("Train the bracket model and write its card.", PLAN)
    weights = train(SHAPE, given.plan, loss)
    write_card(given.out, weights, given.plan.seed)
    print(f"accuracy {accuracy(weights):.4f}; {roles(scores(weights, given.out))}")
    check_saved(given.out, strings(64, torch.Generator().manual_seed(13))[0])


if __name__ == "__main__":
    main()
