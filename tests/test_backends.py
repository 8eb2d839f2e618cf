"""Binding: sites found by walking, self-tested; backends agree with each other and with the weights."""

import pytest
import torch
from tiny_models import bridge_of, tiny, tokens_task
from torch import nn

import spex_mech as sm
from spex_mech.ablation import self_test
from spex_mech.ablation.binding import bind
from spex_mech.ablation.replacement import fit_replacement
from spex_mech.ablation.respond import respond
from spex_mech.ablation.subject import Shortcuts
from spex_mech.errors import ModelError

FAMILIES = ["gpt2", "llama", "pythia"]
MORE = ["mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "opt", "mixtral"]


def values(subject, task, expression, kind, keep=None, **options):
    components = sm.select(subject, expression)
    if keep is None:
        keep = sm.MaskDesign.bernoulli(len(components), 12, 0.6, seed=1).keep()
    reference = fit_replacement(subject, task, components, kind=kind, seed=0)
    return respond(subject, task, components, [keep], reference, **options)


@pytest.mark.parametrize("family", FAMILIES + MORE)
def test_every_family_binds_and_shows_its_shape(family):
    subject = bind(tiny(family))
    assert subject.shape.heads == (4, 4)
    assert subject.shape.neurons == ((0, 0) if family == "mixtral" else (48, 48))
    assert subject.shape.mlps == (True, True)
    assert subject.shape.kv_heads == ((4, 4) if family in ("gpt2", "pythia", "opt") else (2, 2))


def bound(backend, family):
    from nnsight import NNsight

    model = tiny(family)
    try:
        return bind({"torch": lambda m: m, "bridge": bridge_of, "nnsight": NNsight}[backend](model))
    except ModelError as error:
        if backend != "bridge":
            raise
        pytest.skip(f"TransformerLens does not give {family} usable hooks: {str(error)[:200]}")


@pytest.mark.parametrize("backend", ["torch", "bridge", "nnsight"])
@pytest.mark.parametrize("family", FAMILIES + MORE)
def test_shortcuts_change_no_value(family, backend):
    subject, task = bound(backend, family), tokens_task(n_prompts=2)
    shortcuts = subject.shortcuts
    assert family == "opt" or (shortcuts.one_row and shortcuts.grow and shortcuts.skip and shortcuts.narrow)
    inner = "" if family == "mixtral" else ", m*.n*"
    for expression in ("a*.h*, m1, a1@p-1, a1.h1@p0" + inner, "a*.h*, m*", "a1.h*, m1", "m0, m1"):
        subject.shortcuts = shortcuts
        fast = values(subject, task, expression, "resample")
        subject.shortcuts = Shortcuts()
        assert (fast - values(subject, task, expression, "resample")).abs().max() <= 1e-5


@pytest.mark.parametrize("metric", ["loss", "kl"])
def test_shortcuts_change_no_value_of_other_metrics(metric):
    subject, task = bind(tiny("gpt2")), tokens_task(n_prompts=2, metric=metric)
    fast = values(subject, task, "a*.h*, m*", "mean")
    subject.shortcuts = Shortcuts()
    assert (fast - values(subject, task, "a*.h*, m*", "mean")).abs().max() <= 1e-5


@pytest.mark.parametrize("family", FAMILIES + MORE)
def test_nnsight_gives_the_same_responses(family):
    from nnsight import NNsight

    model, task = tiny(family), tokens_task()
    expression = "a*.h*, m1, a1@p-1" + ("" if family == "mixtral" else ", m0.n*")
    subject = bind(NNsight(model))
    assert subject.provenance["backend"] == "nnsight"
    plain = values(bind(model), task, expression, "mean")
    assert (plain - values(subject, task, expression, "mean")).abs().max() <= 1e-5


def test_a_model_that_nnsight_wraps_too_stays_wrapped():
    from nnsight import NNsight

    model, task = tiny("gpt2"), tokens_task()
    wrapped = bind(NNsight(model))
    plain = values(bind(model), task, "a*.h*, m1", "mean")
    assert "forward" in vars(model.transformer.h[0].mlp.act)
    assert (plain - values(wrapped, task, "a*.h*, m1", "mean")).abs().max() <= 1e-5


@pytest.mark.parametrize("family", MORE)
def test_bridges_of_more_families_agree_or_are_refused(family):
    model, task = tiny(family), tokens_task()
    try:
        subject = bind(bridge_of(model))
    except ModelError as error:
        pytest.skip(f"TransformerLens does not give {family} usable hooks: {str(error)[:200]}")
    plain = values(bind(model), task, "a*.h*, m1", "mean")
    assert (plain - values(subject, task, "a*.h*, m1", "mean")).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", ["mean", "zero", "resample"])
@pytest.mark.parametrize("family", FAMILIES)
def test_bridge_and_plain_torch_give_the_same_responses(family, kind):
    model, task = tiny(family), tokens_task(ragged=kind == "mean")
    expression = "a*.h*, m0.n*, m1, a1@p-1"
    plain, bridge = (values(bind(m), task, expression, kind) for m in (model, bridge_of(model)))
    assert (plain - bridge).abs().max() <= 1e-5
    assert plain.std(0).min() > 1e-3  # the masks matter, so agreement says something


@pytest.mark.parametrize("family", FAMILIES)
def test_zero_ablation_equals_zeroed_weights(family):
    model, task = tiny(family), tokens_task()
    subject = bind(model)
    components = sm.select(subject, "a0.h2, a1.h0, m0.n5, m1.n40")
    ablated = values(subject, task, "a0.h2, a1.h0, m0.n5, m1.n40", "zero", torch.zeros(1, 4, dtype=torch.bool))
    sites = {(s.kind, s.layer): s for s in subject.sites}
    with torch.no_grad():
        for c in components:
            site = sites["heads" if c.kind == "head" else "neurons", c.layer]
            subject.reading_weights(site)[0][c.index * site.width : (c.index + 1) * site.width] = 0
    by_weights = values(subject, task, "a0.h0", "zero", torch.ones(1, 1, dtype=torch.bool))
    assert torch.allclose(ablated, by_weights, atol=1e-5)


def test_kv_groups_and_attention_layers_are_all_their_heads():
    subject, task = bind(tiny("llama")), tokens_task()
    off = torch.zeros(1, 1, dtype=torch.bool)
    pairs = [("a0.kv1", "[a0.h2,a0.h3]"), ("a1", "[a1.h0:4]")]
    for one, other in pairs:
        assert torch.equal(values(subject, task, one, "mean", off), values(subject, task, other, "mean", off))


def test_binding_leaves_the_model_as_it_was():
    model = tiny("gpt2")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    bind(model)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_hooks_are_removed_when_an_edit_raises():
    subject = bind(tiny("gpt2"))

    def broken(_x):
        raise KeyError("edit")

    with pytest.raises(KeyError):
        subject.forward(torch.ones(1, 4, dtype=torch.long), {subject.sites[0]: broken}, None)
    assert not any(m._forward_pre_hooks for m in subject.model.modules())


def test_scored_positions_are_those_of_each_row():
    subject = bind(tiny("llama"))
    tokens, positions = (
        torch.randint(0, 50, (3, 6), generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 5, 3]),
    )
    full, scored = subject.forward(tokens, {}, None), subject.forward(tokens, {}, positions)
    assert torch.allclose(scored, full[torch.arange(3), positions], atol=1e-6)


class Twice(nn.Module):
    """A projection that is called twice in one forward pass: a hook on it would edit the wrong tensor."""

    def __init__(self, inner):
        super().__init__()
        self.o_proj = inner

    def forward(self, *args, **kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        return self.o_proj(hidden) + self.o_proj(hidden), None


def test_a_site_that_fires_twice_is_refused_by_name():
    model = tiny("llama")
    model.model.layers[1].self_attn = Twice(nn.Linear(32, 32))
    with pytest.raises(ModelError, match="layer 1 heads: fired 2 times"):
        bind(model)


def test_a_disconnected_site_is_refused_by_the_weight_oracle(monkeypatch):
    subject = bind(tiny("gpt2"))
    monkeypatch.setattr(type(subject), "reading_weights", lambda self, site: [torch.zeros(site.parts * site.width, 32)])
    with pytest.raises(ModelError, match="layer 0 heads: zeroing part 2 by hook and by weights differ"):
        self_test.self_test(subject)


def test_models_on_no_known_site_are_refused_with_the_way_out():
    with pytest.raises(ModelError, match="no known site"):
        bind(nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(ModelError, match="not a model spex_mech knows"):
        bind(object())


def test_encoder_decoders_are_refused():
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    with pytest.raises(ModelError, match="encoder-decoder"):
        bind(model)


@pytest.mark.parametrize("backend", ["torch", "bridge", "nnsight"])
def test_weights_edited_after_binding_change_the_record(backend):
    subject = bound(backend, "gpt2")
    before = subject.provenance["weights_sha256"]
    assert subject.provenance["weights_sha256"] == before
    site = next(site for site in subject.sites if site.kind == "heads")
    with torch.no_grad():
        subject.reading_weights(site)[0][0, 0] += 1
    assert subject.provenance["weights_sha256"] != before


def test_weights_hash_tells_models_apart():
    one, same, other = (bind(tiny("gpt2", seed)).provenance["weights_sha256"] for seed in (0, 0, 1))
    assert one == same != other
