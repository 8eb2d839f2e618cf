# %% [markdown]
# # Train the year model of the gallery: neurons that compare
#
# "The war lasted from 17 31 to 17" … a year after 31. Hanna et al. 2023 found that GPT-2 small does this with MLP
# neurons, of which each pushes up the years from some year on. Here a small transformer with two MLPs of 64 neurons
# learns the same from scratch; a penalty on whole neurons and heads leaves only some of them in use.
#
#     python examples/train_years.py --out circuits/years-2l          (minutes)

# %%
from pathlib import Path

import torch
from torch import Tensor
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
    untouched,
    write_card_file,
    write_json,
    write_lines,
    write_model,
)

WORDS = ("<bos>", "lasted", "from", "to")
BOS, LASTED, FROM, TO = range(len(WORDS))
N_CENTURIES, N_YEARS, N_NOUNS = 6, 40, 8
CENTURIES = len(WORDS)
NOUNS = CENTURIES + N_CENTURIES
YEARS = NOUNS + N_NOUNS
LENGTH = 8
SHAPE = Shape(n_layers=2, n_heads=2, d_model=48, d_head=2, n_ctx=LENGTH, d_vocab=YEARS + N_YEARS, d_mlp=64)
PLAN = Plan(seed=1, steps=1500, heads=2e-3, neurons=6e-3, sparse_steps=1050)
BATCH, YEAR, BACK = 128, 5, 3  # the year's position; years up to and including the first that are distractors
NEURONS = [f"m{layer}.n{i}" for layer in range(SHAPE.n_layers) for i in range(SHAPE.d_mlp)]


# %% [markdown]
# ## The sentences
# `<bos> NOUN lasted from CENTURY YEAR to CENTURY`, and any later year to follow, all of them equally likely.


# %%
def sentences(rows: int, generator: torch.Generator, first: int = 0, last: int = N_YEARS - 2) -> tuple[Tensor, Tensor]:
    """Tokens [row, pos], and the year from 0 to N_YEARS - 2 in which it began [row]."""
    nouns = torch.randint(NOUNS, NOUNS + N_NOUNS, (rows,), generator=generator)
    century = torch.randint(CENTURIES, CENTURIES + N_CENTURIES, (rows,), generator=generator)
    year = torch.randint(first, last + 1, (rows,), generator=generator)
    words = [torch.full((rows,), word) for word in (BOS, LASTED, FROM, TO)]
    parts = [words[0], nouns, words[1], words[2], century, YEARS + year, words[3], century]
    return torch.stack(parts, 1), year


def later(year: Tensor) -> Tensor:
    """Bool [row, year]: the years after."""
    return torch.arange(N_YEARS) > year[:, None]


# %% [markdown]
# ## Training
# The target is the even distribution over all later years: nothing is drawn, so the loss is exact.


# %%
def loss(weights: Weights, generator: torch.Generator) -> Tensor:
    tokens, year = sentences(BATCH, generator)
    log_prob, right = forward(weights, tokens).logits[:, -1].log_softmax(-1)[:, YEARS:], later(year)
    return -((log_prob * right).sum(1) / right.sum(1) + right.sum(1).log()).mean()


@torch.no_grad()
def accuracy(weights: Weights, rows: int = 1000, seed: int = 10) -> float:
    """The probability that falls on later years, a mean over fresh sentences."""
    tokens, year = sentences(rows, torch.Generator().manual_seed(seed))
    prob = forward(weights, tokens).logits[:, -1].softmax(-1)[:, YEARS:]
    return float((prob * later(year)).sum(1).double().mean())


# %% [markdown]
# ## What is used
# The difference between the next year's logit and those of the year itself and the two before: how much of it is lost
# where one head or neuron gives its mean over all years. A neuron's role is the years for which it is active, at the
# place where it tells years apart.


# %%
def differences(weights: Weights, tokens: Tensor, year: Tensor, edit: Edit = untouched) -> Tensor:
    """The next year's logit less the mean of the year's own and the two before [row]."""
    logits, row = forward(weights, tokens, edit).logits[:, -1, YEARS:], torch.arange(len(tokens))
    return logits[row, year + 1] - torch.stack([logits[row, year - back] for back in range(BACK)]).mean(0)


def every_year(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One sentence a year, for all years that have two before them and one after."""
    year = torch.arange(BACK - 1, N_YEARS - 1)
    tokens, _ = sentences(len(year), generator)
    tokens[:, YEAR] = YEARS + year
    return tokens, year


@torch.no_grad()
def scores(weights: Weights, out: Path) -> dict[str, float]:
    """Logits lost, by head and neuron, strongest first; those that lose less than two hundredths are left out."""
    tokens, year = every_year(torch.Generator().manual_seed(11))

    def behaviour(edit: Edit) -> Tensor:
        return differences(weights, tokens, year, edit).mean()

    lost = single_costs([*SHAPE.heads, *NEURONS], behaviour, reference_means(weights, out))
    found = {name: round(float(cost), 3) for name, cost in lost.items() if cost >= 0.02}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


@torch.no_grad()
def roles(weights: Weights, found: dict[str, float]) -> dict[str, str]:
    """What each of the parts found does."""
    tokens, year = every_year(torch.Generator().manual_seed(11))
    neurons = forward(weights, tokens).neurons
    told = {}
    for name in found:
        layer, index = int(name[1]), name.partition(".n")[2]
        if not index:
            told[name] = "brings the year to the end"
            continue
        active = neurons[layer][:, :, int(index)]
        at = int(active.var(0).argmax())
        on = year[active[:, at] > active[:, at].max() / 2]
        told[name] = f"active {'at the year' if at == YEAR else 'at the end'} for {int(on[0])} to {int(on[-1])}"
    return told


# %% [markdown]
# ## The card


# %%
def prompt_rows(prompts: int, generator: torch.Generator) -> list[Row]:
    tokens, year = sentences(prompts, generator, BACK - 1, N_YEARS - 2)
    return [
        {
            "tokens": row,
            "answer": YEARS + began + 1,
            "distractors": [YEARS + began - back for back in range(BACK)],
            "position": LENGTH - 1,
        }
        for row, began in zip(tokens.tolist(), year.tolist(), strict=True)
    ]


def write_card(out: Path, weights: Weights, seed: int) -> None:
    generator = torch.Generator().manual_seed(12)
    write_model(out, SHAPE, weights)
    write_lines(out / "prompts.jsonl", prompt_rows(16, generator))
    write_lines(out / "reference.jsonl", [{"tokens": row} for row in sentences(256, generator)[0].tolist()])
    write_card_file(
        out,
        title="Later years in two layers",
        summary="A transformer that says which years may end what began in a given one; its MLP neurons compare.",
        source=f"trained by examples/train_years.py, seed {seed}; {accuracy(weights):.4f} of the probability on later "
        "years of fresh sentences",
        components="a*.h*, m*.n*",
    )
    found = scores(weights, out)
    write_json(
        out / "published.json",
        {
            "nodes": roles(weights, found),
            "citation": "measured by the script, not published elsewhere; the task is that of Hanna et al. 2023, How "
            "does GPT-2 compute greater-than?, arXiv 2305.00586",
            "scores": found,
        },
    )


def main() -> None:
    given = asked("Train the year model and write its card.", PLAN)
    weights = train(SHAPE, given.plan, loss)
    write_card(given.out, weights, given.plan.seed)
    print(f"probability of later years {accuracy(weights):.4f}; {scores(weights, given.out)}")
    check_saved(given.out, sentences(64, torch.Generator().manual_seed(13))[0])


if __name__ == "__main__":
    main()
