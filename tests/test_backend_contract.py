"""What every subject must do, for each implementation; values against weights edited in a copy, without hooks."""

import copy

import pytest
import torch
from legacy_hooked import from_gpt2, legacy_hooked
from tiny_models import bridge_of, tiny, tokens_task

import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.ablation.replacement import fit_replacement
from spex_mech.ablation.respond import respond
from spex_mech.ablation.subject import Shortcuts, Subject, shortcuts_of

TERMS = {("a0.h1", "a1.h2"): 1.5, ("a0.h1", "m1.n1"): -0.7, ("m0.n0",): 0.4, ("m0.n1", "a1.h0"): 0.9, (): 0.3}
LAYOUT = planted.PlantedLayout(n_layers=2, n_heads=4, d_mlp=2)
BACKENDS = ["torch", "bridge", "legacy", "nnsight", "prompted", "planted"]


def legacy_of(model):
    model_of_old = legacy_hooked()
    model_of_old.load_state_dict(from_gpt2(model))
    return model_of_old


@pytest.fixture(scope="module")
def gpt2():
    return tiny("gpt2")


@pytest.fixture(scope="module", params=BACKENDS)
def case(request, gpt2):
    """A subject, a task for it, and a function from what is ablated to zero to the logits of an edited copy."""
    from nnsight import NNsight

    if request.param == "planted":
        return planted.polynomial(TERMS, layout=LAYOUT), planted.task(3), planted_without
    task = tokens_task()
    wrap = {"bridge": bridge_of, "legacy": legacy_of, "nnsight": NNsight}.get(request.param, lambda model: model)
    subject = sm.bind(wrap(copy.deepcopy(gpt2)))
    if request.param == "prompted":
        subject = sm.with_prompt(subject, task, filler=0)
    return subject, task, lambda names, tokens: gpt2_without(gpt2, names, tokens)


def gpt2_without(model, names, tokens):
    """Zero what reads a head or neuron, and what an MLP adds with its bias."""
    edited = copy.deepcopy(model)
    with torch.no_grad():
        for name in names:
            block, part = name.split(".")[0], name.partition(".")[2]
            layer = edited.transformer.h[int(block[1:])]
            if part.startswith("h"):
                layer.attn.c_proj.weight[8 * int(part[1:]) : 8 * int(part[1:]) + 8] = 0
            elif part.startswith("n"):
                layer.mlp.c_proj.weight[int(part[1:])] = 0
            elif block[0] == "a":
                layer.attn.c_proj.weight.zero_()
            else:
                layer.mlp.c_proj.weight.zero_()
                layer.mlp.c_proj.bias.zero_()
        return edited(input_ids=tokens, use_cache=False).logits


def planted_without(names, tokens):
    """The polynomial that is left."""

    def lost(atom):
        return any(atom == name or atom.startswith(f"{name}.") for name in names)

    left = {members: weight for members, weight in TERMS.items() if not any(map(lost, members))}
    logits = torch.zeros(*tokens.shape, planted.D_VOCAB)
    logits[..., 1] = sum(left.values())
    return logits


def logits_without(subject, task, names):
    components = sm.ComponentSet.of(names)
    edits = fit_replacement(subject, task, components, kind="zero").edits(
        torch.zeros(len(task), len(names), dtype=torch.bool), torch.arange(len(task)), task.prompts.tokens.shape[1]
    )
    return subject.forward(task.prompts.tokens, edits, None)


@pytest.mark.parametrize(
    "names", [["a0.h1"], ["m1.n1"], ["m0"], ["a1"], ["a0.h0", "a1.h2", "m0.n0"], ["a0.h3", "m1", "m0.n1"]], ids=str
)
def test_zero_is_what_an_edited_copy_computes(case, names):
    subject, task, without = case
    found, expected = logits_without(subject, task, names), without(names, task.prompts.tokens)
    assert (found - expected).abs().max() <= 2e-5
    assert (found - without([], task.prompts.tokens)).abs().max() > 1e-2


def test_values_of_the_engine_are_those_of_edited_copies(case):
    """With every shortcut that binding saw hold, many masks at once."""
    subject, task, without = case
    components = sm.ComponentSet.of(["a0.h1", "a1.h2", "m0", "m1.n1", "a1.h0"])
    keep = sm.MaskDesign.complete(5).keep()
    values = respond(subject, task, components, [keep], fit_replacement(subject, task, components, kind="zero"))
    rows = torch.arange(len(task))
    for mask in (0, 3, 11, 21, 30, 31):
        gone = [name for name, kept in zip(components.names, keep[mask].tolist(), strict=True) if not kept]
        logits = without(gone, task.prompts.tokens)[rows, task.positions]
        wrong = task.distractors >= 0
        mean = (logits.gather(1, task.distractors.clamp(min=0)) * wrong).sum(1) / wrong.sum(1)
        expected = logits[rows, task.answers] - mean
        assert (values[mask] - expected).abs().max() <= 2e-5


def test_it_is_a_subject_that_says_what_it_is(case):
    subject, _, _ = case
    assert isinstance(subject, Subject)
    assert isinstance(shortcuts_of(subject), Shortcuts)
    assert {"backend", "model", "weights_sha256", "weight_processing", "dtype"} <= set(subject.provenance)
    sites = {(site.kind, site.layer): site.parts for site in subject.sites}
    assert [sites["heads", layer] for layer in (0, 1)] == list(subject.shape.heads)
    assert [sites["neurons", layer] for layer in (0, 1)] == list(subject.shape.neurons)
    layers = [site.layer for site in subject.sites]
    assert layers == sorted(layers)


def test_the_identity_moves_no_bit_and_every_site_fires_once(case):
    subject, task, _ = case
    fired = []

    def watch(site):
        def edit(x):
            fired.append((site, x.shape))
            return x

        return edit

    inner = [site for site in subject.sites if site.kind != "inputs"]
    tokens = task.prompts.tokens
    logits = subject.forward(tokens, {site: watch(site) for site in reversed(inner)}, None)
    assert torch.equal(logits, subject.forward(tokens, {}, None))
    assert sorted(site for site, _ in fired) == sorted(inner)
    assert all(shape == (*tokens.shape, site.parts * site.width) for site, shape in fired)


def test_rows_are_independent_and_positions_are_each_rows_own(case):
    subject, task, _ = case
    tokens = task.prompts.tokens
    everywhere = subject.forward(tokens, {}, None)
    alone = torch.cat([subject.forward(tokens[i : i + 1], {}, None) for i in range(len(tokens))])
    assert torch.allclose(everywhere, alone, atol=1e-5)
    for at in ([0, 2, 1], [2, 2, 2], [0, 0, 0]):
        positions = torch.tensor(at)
        scored = subject.forward(tokens, {}, positions)
        assert torch.allclose(scored, everywhere[torch.arange(3), positions], atol=1e-5)


def test_no_hook_is_left_when_an_edit_raises(case):
    subject, task, _ = case
    before = subject.forward(task.prompts.tokens, {}, None)

    def broken(_x):
        raise KeyError("edit")

    with pytest.raises(KeyError, match="edit"):
        subject.forward(task.prompts.tokens, {subject.sites[-1]: broken}, None)
    assert torch.equal(subject.forward(task.prompts.tokens, {}, None), before)
    assert "hooks" not in subject.provenance
