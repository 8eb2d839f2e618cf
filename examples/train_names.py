# %% [markdown]
# # Train the name model of the gallery: heads that back each other up
#
# "Then Ann and Bob went to the shop. Bob gave a book to" … Ann. Which name comes next is the one that stood there only
# once; Wang et al. 2022 found in GPT-2 small how a model does this, and that it has backup heads that take over when
# others are ablated. Here a small attention-only transformer learns the task while a quarter of its heads, drawn
# anew for each row, give nothing but their average. So it cannot count on any one head, and redundancy grows.
#
#     python examples/train_names.py --out circuits/names-3l          (minutes)
#
# Plain torch (`training.py` beside it), so that the exhaustive truth is an independent check on the ablation engine.

# %%
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from training import (
    Plan,
    Row,
    Shape,
    Weights,
    asked,
    backed_up,
    check_saved,
    dropped_heads,
    forward,
    train,
    write_card_file,
    write_json,
    write_lines,
    write_model,
    write_truth,
    written,
)

N_NAMES, N_PLACES, N_THINGS, N_FILLERS = 16, 4, 4, 4
WORDS = ("<bos>", "and", "went", ".", "gave", "to")
BOS, AND, WENT, STOP, GAVE, TO = range(len(WORDS))
NAMES = len(WORDS)
PLACES = NAMES + N_NAMES
THINGS = PLACES + N_PLACES
FILLERS = THINGS + N_THINGS
GAPS, LENGTH = 4, 15
SHAPE = Shape(n_layers=3, n_heads=4, d_model=64, d_head=16, n_ctx=LENGTH, d_vocab=FILLERS + N_FILLERS)
PLAN = Plan(seed=2, steps=800, heads=3e-3, sparse_steps=536)
BATCH, DROP = 64, 0.25
ORDERS = ("ABB", "BAB")  # A is the answer


# %% [markdown]
# ## The sentences
# `<bos> A and B went PLACE . S gave THING to`, with four fillers at random places, so that no position gives anything
# away. S is A or B, and the answer is the other one. In the reference S is a third name, and no answer is right.


# %%
def sentences(rows: int, generator: torch.Generator, orders: Sequence[str] = ORDERS) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [row, pos], the name that stands there once [row], and the one that stands there twice [row]."""

    def draw(first: int, count: int) -> Tensor:
        return torch.randint(first, first + count, (rows,), generator=generator)

    people = NAMES + torch.rand(rows, N_NAMES, generator=generator).argsort(1)[:, :3]
    order = torch.tensor([["ABC".index(letter) for letter in letters] for letters in orders])
    first, second, third = people.gather(1, order[torch.randint(len(orders), (rows,), generator=generator)]).T
    fixed = {k: torch.full((rows,), k) for k in (AND, WENT, STOP, GAVE)}
    parts = [first, fixed[AND], second, fixed[WENT], draw(PLACES, N_PLACES), fixed[STOP], third]
    body = torch.stack([*parts, fixed[GAVE], draw(THINGS, N_THINGS)], 1)
    return padded(body, generator), people[:, 0], people[:, 1]


def padded(body: Tensor, generator: torch.Generator) -> Tensor:
    """`<bos>`, the words of the body in their order with fillers strewn in, and `to`."""
    rows, inside = len(body), body.shape[1] + GAPS
    at = torch.rand(rows, inside, generator=generator).argsort(1)[:, : body.shape[1]].sort(1).values
    tokens = torch.randint(FILLERS, FILLERS + N_FILLERS, (rows, inside), generator=generator)
    ends = torch.full((rows, 1), BOS), torch.full((rows, 1), TO)
    return torch.cat([ends[0], tokens.scatter(1, at, body), ends[1]], 1)


# %% [markdown]
# ## Training, with heads that drop out


# %%
def loss(weights: Weights, generator: torch.Generator) -> Tensor:
    tokens, other, _ = sentences(BATCH, generator)
    trace = forward(weights, tokens, dropped_heads(DROP, generator))
    return functional.cross_entropy(trace.logits[:, -1], other)


@torch.no_grad()
def accuracy(weights: Weights, rows: int = 1000, seed: int = 10) -> float:
    """Share of fresh sentences that the model ends with the right name."""
    tokens, other, _ = sentences(rows, torch.Generator().manual_seed(seed))
    return float((forward(weights, tokens).logits[:, -1].argmax(-1) == other).double().mean())


# %% [markdown]
# ## Which heads are which
# By where they look and what they write, without ablation. From the last word, what a head writes is read through the
# unembedding: does it raise the right name over the other one? And does a name that stands there a second time look
# back at the first?


# %%
@torch.no_grad()
def head_scores(weights: Weights, rows: int = 512, seed: int = 11) -> dict[str, dict[str, float]]:
    """By head: attention of the last word to the right name, to the other name's first and second mention; attention
    of the second mention to the first; and the logits that the head itself adds, right name over other name."""
    tokens, other, subject = sentences(rows, torch.Generator().manual_seed(seed))
    trace, row = forward(weights, tokens), torch.arange(rows)
    right = (tokens == other[:, None]).int().argmax(1)
    first = (tokens == subject[:, None]).int().argmax(1)
    again = LENGTH - 1 - (tokens == subject[:, None]).flip(1).int().argmax(1)
    unembed = weights["ln_final.w"][:, None] * weights["unembed.W_U"]
    direction = unembed.T[other] - unembed.T[subject]
    spread = trace.residual[:, -1].var(-1, unbiased=False).add(1e-5).sqrt()
    scores = {}
    for layer, (pattern, value) in enumerate(zip(trace.patterns, trace.values, strict=True)):
        gives = written(value, weights, layer)[:, :, -1]
        gives = gives - gives.mean(-1, keepdim=True)
        direct = torch.einsum("rhm,rm->rh", gives, direction) / spread[:, None]
        for head in range(SHAPE.n_heads):
            looks = pattern[:, head]
            scores[f"a{layer}.h{head}"] = {
                "to_right_name": float(looks[row, -1, right].mean()),
                "to_first": float(looks[row, -1, first].mean()),
                "to_second": float(looks[row, -1, again].mean()),
                "second_to_first": float(looks[row, again, first].mean()),
                "direct_logits": float(direct[:, head].mean()),
            }
    return {name: {key: round(value, 3) for key, value in score.items()} for name, score in scores.items()}


def roles(scores: dict[str, dict[str, float]]) -> dict[str, str]:
    """Heads that bear a name: they look from the last word at the second mention (≥ 0.7), and write against it."""
    wanted = {"to_second": 0.7, "direct_logits": 0.9}
    found = (name for name, score in scores.items() if all(score[key] >= least for key, least in wanted.items()))
    return dict.fromkeys(found, "suppresses the name that stands there twice")


# %% [markdown]
# ## The card
# Sixteen prompts, and 256 sentences with three different names as the reference of mean ablation. After the exhaustive
# truth, the group of heads that back each other up is read from it by the definition.


# %%
def prompt_rows(prompts: int, generator: torch.Generator) -> list[Row]:
    drawn = zip(*(column.tolist() for column in sentences(prompts, generator)), strict=True)
    return [{"tokens": t, "answer": right, "distractors": [other], "position": LENGTH - 1} for t, right, other in drawn]


def write_card(out: Path, weights: Weights, seed: int) -> None:
    generator = torch.Generator().manual_seed(12)
    write_model(out, SHAPE, weights)
    write_lines(out / "prompts.jsonl", prompt_rows(16, generator))
    reference = sentences(256, generator, ["ABC"])[0].tolist()
    write_lines(out / "reference.jsonl", [{"tokens": row} for row in reference])
    write_card_file(
        out,
        title="Names in three layers",
        summary="An attention-only transformer that ends a sentence with the name that stood there once; trained with "
        "head dropout, so that heads back each other up.",
        source=f"trained by examples/train_names.py, seed {seed}; accuracy {accuracy(weights):.4f} on fresh sentences",
        components="a*.h*",
    )
    write_truth(out, SHAPE.heads)


def published(out: Path, weights: Weights) -> dict[str, object]:
    group, costs = backed_up(load_file(out / "truth.safetensors")["values"].double().mean(1), SHAPE.heads)
    scores = head_scores(weights)
    return {
        "nodes": roles(scores) | dict.fromkeys(sorted(set(group) - set(roles(scores))), "backup"),
        "interactions": [{"components": list(group), "kind": "redundancy"}],
        "citation": "measured by the script, not published elsewhere; the task and the question are those of Wang et "
        "al. 2022, Interpretability in the Wild, arXiv 2211.00593",
        "scores": scores,
        "costs": costs,
    }


def main() -> None:
    given = asked("Train the name model and write its card.", PLAN)
    weights = train(SHAPE, given.plan, loss)
    write_card(given.out, weights, given.plan.seed)
    write_json(given.out / "published.json", published(given.out, weights))
    print(f"accuracy {accuracy(weights):.4f}; {published(given.out, weights)['costs']}")
    check_saved(given.out, sentences(64, torch.Generator().manual_seed(13))[0])


if __name__ == "__main__":
    main()
