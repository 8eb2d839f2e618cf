"""The induction card: the model and its heads are what it says, and its truth is what the engine finds."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spex_mech.ablation.binding import bind
from spex_mech.ablation.load import load_model
from spex_mech.ablation.replacement import fit_replacement
from spex_mech.ablation.respond import respond
from spex_mech.components import ComponentSet, heads
from spex_mech.gallery import open_card

HALF, VOCAB = 16, 48


@pytest.fixture(scope="module")
def card():
    return open_card("induction-2l")


@pytest.fixture(scope="module")
def model(card):
    return load_model(card.model_path, kind=card.model_kind, device="cpu")[0]


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "examples"))
        return importlib.import_module("train_induction")


@pytest.fixture(scope="module")
def training(script):
    """What the training scripts share; on the path since `script` was imported."""
    return sys.modules["training"]


def briefly(script, training, seed, steps=10):
    return training.train(script.SHAPE, replace(script.PLAN, seed=seed, steps=steps, sparse_steps=5), script.loss)


def blocks_twice(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(VOCAB, generator=generator)[:HALF] for _ in range(rows)]).repeat(1, 2)


def exact_walsh(values):
    """F(S) from all masks by the definition: mean of f over masks times the parity of the ablated bits in S."""
    n = len(values).bit_length() - 1
    ablated = torch.arange(1 << n)[:, None] >> torch.arange(n) & 1
    return lambda *bits: float((values * (1 - 2 * (ablated[:, list(bits)].sum(1) % 2))).mean())


def test_weights_are_small(card):
    assert (Path(card.model_path) / "model.safetensors").stat().st_size < 500_000


@torch.no_grad()
def test_it_continues_fresh_sequences(model):
    tokens = blocks_twice(200, 100)
    right = model(tokens).argmax(-1)[:, HALF:-1] == tokens[:, HALF + 1 :]
    assert right.double().mean() >= 0.99


@torch.no_grad()
def test_it_does_so_at_any_distance_and_start(model, script):
    tokens, known = script.repeated_rows(200, torch.Generator().manual_seed(101))
    right = (model(tokens).argmax(-1)[:, :-1] == tokens[:, 1:])[known]
    assert right.double().mean() >= 0.99
    assert 0.2 < known.double().mean() < 0.8


@torch.no_grad()
def test_published_heads_look_where_their_role_says(card, model):
    """Roles from TransformerLens' own attention patterns on other sequences than the script's. Looking is necessary
    for an induction head, not enough: a1.h3 looks there and copies nothing, and is not published."""
    tokens = blocks_twice(100, 102)
    seen = {}
    hooks = [(f"blocks.{l}.attn.hook_pattern", lambda x, hook, l=l: seen.__setitem__(l, x)) for l in range(2)]
    model.run_with_hooks(tokens, fwd_hooks=hooks)
    queries = torch.arange(HALF, 2 * HALF - 1)
    previous = seen[0][:, :, torch.arange(1, HALF), torch.arange(HALF - 1)].mean((0, 2))
    induction = seen[1][:, :, queries, queries - HALF + 1].mean((0, 2))
    roles = card.published.nodes
    assert [f"a0.h{h}" for h in range(6) if previous[h] > 0.9] == [n for n, r in roles.items() if r == "previous token"]
    looking = {f"a1.h{h}" for h in range(6) if induction[h] > 0.9}
    named = {n for n, r in roles.items() if r == "induction"}
    assert named <= looking
    assert len(named) >= 2


def test_the_script_gives_the_same_roles(card, script, training):
    weights = training.read_model(card.folder)
    assert script.roles(script.head_scores(weights)) == card.published.nodes
    assert script.accuracy(weights) >= 0.99
    tokens = script.halves(64, torch.Generator().manual_seed(13))
    assert training.gap_to_transformer_lens(card.folder, tokens) < 1e-9


def test_the_engine_reproduces_the_truth(card, model):
    """The table was made by the training script's own forward pass; the engine runs TransformerLens."""
    subject, task = bind(model), card.task()
    components = heads(subject)
    assert components.names == card.truth.components
    rows = torch.randperm(1 << 12, generator=torch.Generator().manual_seed(7))[:64]
    rows[:2] = torch.tensor([0, (1 << 12) - 1])
    keep = rows[:, None] >> torch.arange(12) & 1 == 0
    replacement = fit_replacement(subject, task, components, card.replacement, card.per)
    values = respond(subject, task, components, [keep], replacement)
    torch.testing.assert_close(values, card.truth.values[rows], rtol=0, atol=1e-3)


def test_the_circuit_is_there_in_the_exact_spectrum(card):
    """Previous token × induction heads are the strongest pairs, all synergies; induction heads back each other up."""
    names = ComponentSet.of(card.truth.components)
    values = card.truth.values.double().mean(1)
    walsh = exact_walsh(values)
    pairs = {(i, j): walsh(i, j) for i in range(12) for j in range(i)}
    strongest = sorted(pairs, key=lambda p: -abs(pairs[p]))[:3]
    published = {tuple(sorted(names.indices(c), reverse=True)) for c, _ in card.published.interactions}
    assert set(strongest) == published
    assert all(pairs[p] > 0.5 for p in strongest)
    induction = [names.index(n) for n, role in card.published.nodes.items() if role == "induction"]
    assert all(pairs[max(i, j), min(i, j)] < -0.1 for i in induction for j in induction if i != j)
    mains = [abs(walsh(i)) for i in range(12)]
    assert {i for i in range(12) if mains[i] > 0.5} == set(names.indices(card.published.nodes))
    assert values[0] > 10 > 2 > abs(float(values[-1]))


@pytest.mark.slow
def test_training_again_gives_such_a_model(script, training):
    weights = training.train(script.SHAPE, script.PLAN, script.loss)
    assert script.accuracy(weights) >= 0.99
    assert set(script.roles(script.head_scores(weights)).values()) == {"previous token", "induction"}


def test_a_short_training_is_repeatable_and_acts(script, training):
    one, same, other = (briefly(script, training, seed) for seed in (0, 0, 3))
    tokens = script.halves(50, torch.Generator().manual_seed(1))
    logits = {name: training.forward(w, tokens).logits for name, w in (("one", one), ("same", same), ("other", other))}
    # Not the weights: libraries may sum in another order, and Adam makes whole steps of the rounding errors that are
    # all the gradient a key bias has (the softmax does not see it).
    torch.testing.assert_close(logits["one"], logits["same"], rtol=0, atol=1e-3)
    assert (logits["one"] - logits["other"]).abs().max() > 0.1
    start = training.initial_weights(script.SHAPE, torch.Generator().manual_seed(0))
    assert not torch.equal(one["embed.W_E"], start["embed.W_E"])
