"""The cards whose models were trained here: they do what they say, and their parts are what their script measured."""

import importlib
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spex_mech.ablation.binding import bind
from spex_mech.ablation.load import load_model
from spex_mech.ablation.replacement import fit_replacement
from spex_mech.ablation.respond import respond
from spex_mech.circuit.backups import find_backups
from spex_mech.components import ComponentSet, select
from spex_mech.gallery import open_card
from spex_mech.gallery.studies import true_spectrum

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SCRIPTS = {"brackets-2l": "train_brackets", "names-3l": "train_names", "years-2l": "train_years"}


@pytest.fixture(autouse=True)
def _examples_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


def script(name):
    return importlib.import_module(SCRIPTS[name])


def shared():
    return importlib.import_module("training")


def live(name):
    card = open_card(name)
    return card, load_model(card.model_path, kind=card.model_kind, device="cpu")[0]


def fresh(name, rows, seed):
    """Fresh rows of a task: tokens, and what the script calls them."""
    module = script(name)
    make = module.strings if name == "brackets-2l" else module.sentences
    return make(rows, torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("name", SCRIPTS)
def test_models_are_small_and_reach_their_stated_accuracy(name):
    """Through TransformerLens, on rows that no script has drawn."""
    card, model = live(name)
    assert (Path(card.model_path) / "model.safetensors").stat().st_size < 1_000_000
    stated = float(re.search(r"(0\.\d{4}|1\.0000)", card.source)[1])
    tokens, wanted, *_ = fresh(name, 500, 77)
    logits, module = model(tokens)[:, -1], script(name)
    if name == "years-2l":
        got = (logits.softmax(-1)[:, module.YEARS :] * module.later(wanted)).sum(1).mean()
    else:
        answer = module.answers(wanted) if name == "brackets-2l" else wanted
        got = (logits.argmax(-1) == answer).double().mean()
    assert min(stated, float(got)) >= 0.99
    assert abs(float(got) - stated) < 0.01


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_measure_again_what_the_cards_say(name):
    card, module = open_card(name), script(name)
    weights = shared().read_model(card.folder)
    assert module.accuracy(weights) >= 0.99
    assert f"{module.accuracy(weights):.4f}" in card.source
    if name == "names-3l":
        assert module.published(card.folder, weights)["nodes"] == card.published.nodes
    elif name == "years-2l":
        assert module.roles(weights, module.scores(weights, card.folder)) == card.published.nodes
    else:
        assert module.roles(module.scores(weights, card.folder)) == card.published.nodes
    assert shared().gap_to_transformer_lens(card.folder, fresh(name, 16, 5)[0]) < 1e-9


@pytest.mark.parametrize("name", ["brackets-2l", "names-3l"])
def test_the_engine_reproduces_the_truth(name):
    """The table was made by the training script's own forward pass; the engine runs TransformerLens."""
    card, model = live(name)
    subject, task = bind(model), card.task()
    components, n = select(subject, card.components), len(card.truth.components)
    assert components.names == card.truth.components
    rows = torch.randperm(1 << n, generator=torch.Generator().manual_seed(7))[:32]
    rows[:2] = torch.tensor([0, (1 << n) - 1])
    keep = rows[:, None] >> torch.arange(n) & 1 == 0
    replacement = fit_replacement(subject, task, components, card.replacement, card.per)
    values = respond(subject, task, components, [keep], replacement)
    torch.testing.assert_close(values, card.truth.values[rows], rtol=0, atol=1e-3)


def test_heads_of_the_name_model_back_each_other_up():
    """No head of the first layer is worth much alone; without all four next to nothing is left."""
    card = open_card("names-3l")
    names, values = ComponentSet.of(card.truth.components), card.truth.values.double().mean(1)
    ((group, kind),) = card.published.interactions
    assert (set(group), kind) == ({"a0.h0", "a0.h1", "a0.h2", "a0.h3"}, "redundancy")
    bits = names.indices(group)
    single = [float(values[0] - values[1 << i]) for i in range(12)]
    assert values[0] > 12
    assert max(single) < 0.15 * values[0]
    assert values[sum(1 << i for i in bits)] < 0.1 * values[0]
    found = find_backups(true_spectrum(card), names)
    assert set(found[0].components) == set(group)


def test_pairs_of_the_bracket_card_are_the_strongest():
    card = open_card("brackets-2l")
    spectrum, names = true_spectrum(card), ComponentSet.of(card.truth.components)
    pairs = {s: c for s, c in spectrum.terms() if len(s) == 2}
    strongest = sorted(pairs, key=lambda s: -abs(pairs[s]))[:3]
    kinds = ["synergy" if pairs[s] > 0 else "redundancy" for s in strongest]
    assert [names.indices(c) for c, _ in card.published.interactions] == [list(s) for s in strongest]
    assert [kind for _, kind in card.published.interactions] == kinds
    mains = {names.names[s[0]]: c for s, c in spectrum.terms() if len(s) == 1}
    assert all(mains[name] > 0 for pair, _ in card.published.interactions for name in pair)


def test_neurons_of_the_year_model_matter():
    """Few of 128 neurons are in use, and ablating those takes away what ablating both MLPs' neurons does."""
    card, model = live("years-2l")
    subject, task = bind(model), card.task()
    components = select(subject, card.components)
    used = [name for name in card.published.nodes if ".n" in name]
    assert 10 <= len(used) <= 40
    keep = torch.ones(4, len(components), dtype=torch.bool)
    keep[1, components.indices(used)] = False
    neurons = [i for i, c in enumerate(components) if c.kind == "neuron"]
    keep[2, neurons] = False
    keep[3, [i for i in neurons if components.names[i] not in used]] = False
    replacement = fit_replacement(subject, task, components, card.replacement, card.per)
    intact, without_used, without_all, without_rest = (
        respond(subject, task, components, [keep], replacement).double().mean(1).tolist()
    )
    assert intact - without_used > 1.5
    assert abs(without_used - without_all) < 0.3 < intact - without_all
    assert abs(without_rest - intact) < 0.3


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_short_training_is_repeatable_and_acts(name):
    module, training = script(name), shared()
    plan = replace(module.PLAN, steps=6, sparse_steps=3)
    one, same = (training.train(module.SHAPE, plan, module.loss) for _ in range(2))
    other = training.train(module.SHAPE, replace(plan, seed=plan.seed + 1), module.loss)
    tokens = fresh(name, 20, 1)[0]
    logits = [training.forward(w, tokens).logits for w in (one, same, other)]
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-3)
    assert (logits[0] - logits[2]).abs().max() > 0.1
    start = training.initial_weights(module.SHAPE, torch.Generator().manual_seed(plan.seed))
    assert not torch.equal(one["embed.W_E"], start["embed.W_E"])


@pytest.mark.slow
def test_training_the_name_model_again_gives_backups():
    module, training = script("names-3l"), shared()
    assert module.accuracy(training.train(module.SHAPE, module.PLAN, module.loss)) >= 0.99
