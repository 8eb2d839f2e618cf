"""What a component adds to the stream is certified at binding: against weights edited in a copy, or refused by name."""

import copy

import pytest
import torch
from tiny_models import bridge_of, tiny, tokens_task
from torch import nn

import spex_mech as sm
from spex_mech.ablation.contract import certificate_line, describe_certificates
from spex_mech.errors import ModelError, SpexMechWarning

TOKENS = tokens_task().prompts.tokens


def logits(model, tokens=TOKENS):
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits


def without(model, path, part=None):
    """Logits of a copy with a projection's weight at zero, and its bias; or what it reads of one part alone."""
    edited = copy.deepcopy(model)
    projection = edited.get_submodule(path)
    with torch.no_grad():
        if part is not None:
            projection.weight[:, part] = 0
        else:
            for parameter in projection.parameters():
                parameter.zero_()
    return logits(edited)


def by_ablation(model, name):
    with sm.ablated(model, ablate=name, replacement="zero"):
        return logits(model)


@pytest.mark.parametrize(
    ("family", "name", "path"),
    [
        ("bloom", "m0", "transformer.h.0.mlp.dense_4h_to_h"),
        ("bloom", "m1", "transformer.h.1.mlp.dense_4h_to_h"),
        ("mpt", "m0", "transformer.blocks.0.ffn.down_proj"),
        ("gpt1", "m0", "transformer.h.0.mlp.c_proj"),
        ("glm4", "m1", "model.layers.1.mlp.down_proj"),
        ("gemma2", "m0", "model.layers.0.mlp.down_proj"),
        ("llama", "m1", "model.layers.1.mlp.down_proj"),
    ],
)
def test_an_mlp_at_zero_is_its_projection_at_zero(family, name, path):
    """Bloom's and MPT's MLPs return the stream too; GLM-4 and Gemma norm what the MLP gives, GPT-1 norms the sum."""
    model = tiny(family)
    expected = without(model, path)
    assert (by_ablation(model, name) - expected).abs().max() <= 1e-5
    assert (logits(model) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("wrap", ["torch", "bridge", "nnsight"])
def test_backends_agree_on_what_blooms_mlp_adds(wrap):
    from nnsight import NNsight

    model, task = tiny("bloom"), tokens_task()
    subject = sm.bind({"torch": lambda m: m, "bridge": bridge_of, "nnsight": NNsight}[wrap](copy.deepcopy(model)))
    found = sm.discover(subject, task, "m0, m1", budget=4, replacement="zero").responses
    row = (found.keep == torch.tensor([False, True])).all(1).nonzero()[0, 0]
    at = without(model, "transformer.h.0.mlp.dense_4h_to_h")[torch.arange(3), task.positions]
    wrong = task.distractors >= 0
    mean = (at.gather(1, task.distractors.clamp(min=0)) * wrong).sum(1) / wrong.sum(1)
    assert (found.values[row] - (at[torch.arange(3), task.answers] - mean)).abs().max() <= 1e-4


@pytest.mark.parametrize("family", ["glm4", "gemma2"])
def test_a_mean_is_taken_of_what_is_added_after_the_norm(family):
    model, task = tiny(family), tokens_task()
    norm = {"glm4": "post_mlp_layernorm", "gemma2": "post_feedforward_layernorm"}[family]
    added = model.get_submodule(f"model.layers.0.{norm}")
    seen = []
    with added.register_forward_hook(lambda _m, _a, out: seen.append(out)):
        logits(model, task.reference.tokens)
    mean = seen[0].mean(0, keepdim=True)
    with added.register_forward_hook(lambda _m, _a, out: mean.expand_as(out)):
        expected = logits(model)
    with sm.ablated(model, ablate="m0", task=task):
        found = logits(model)
    assert (found - expected).abs().max() <= 1e-5
    assert (logits(model) - expected).abs().max() > 1e-2


def test_heads_are_counted_in_each_layers_own_module():
    model = tiny("laguna")
    subject = sm.bind(model)
    assert subject.shape.heads == (4, 8)
    assert subject.shape.kv_heads == (2, 2)
    for name, path, part in (("a0.h3", "0", slice(24, 32)), ("a1.h5", "1", slice(40, 48))):
        expected = without(model, f"model.layers.{path}.self_attn.o_proj", part)
        assert (by_ablation(subject.model, name) - expected).abs().max() <= 1e-5
        assert (logits(model) - expected).abs().max() > 1e-3


class Adapted(nn.Module):
    """A linear map with a low-rank adapter, made as PEFT makes them."""

    def __init__(self, base, rank=8):
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False)})

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))

    def merge(self):
        with torch.no_grad():
            self.base_layer.weight += self.lora_B["default"].weight @ self.lora_A["default"].weight
        return self.base_layer


def test_an_adapter_is_the_projection_around_which_it_is():
    model = tiny("llama")
    merged = copy.deepcopy(model)
    torch.manual_seed(0)
    for layer, block in enumerate(model.model.layers):
        for holder, name in ((block.self_attn, "q_proj"), (block.self_attn, "o_proj"), (block.mlp, "down_proj")):
            adapted = Adapted(getattr(holder, name))
            nn.init.normal_(adapted.lora_B["default"].weight, std=0.1)
            setattr(holder, name, adapted)
            same = merged.model.layers[layer].self_attn if name != "down_proj" else merged.model.layers[layer].mlp
            setattr(same, name, copy.deepcopy(adapted).merge())
    assert torch.allclose(logits(model), logits(merged), atol=1e-5)
    subject = sm.bind(model)
    assert subject.shape.neurons == (48, 48)
    assert subject.sites[0].width == 8
    expected = without(merged, "model.layers.0.self_attn.o_proj", slice(8, 16))
    assert (by_ablation(model, "a0.h1") - expected).abs().max() <= 1e-5
    expected = without(merged, "model.layers.1.mlp.down_proj", slice(7, 8))
    assert (by_ablation(model, "m1.n7") - expected).abs().max() <= 1e-5


def test_the_certificate_says_what_was_verified():
    for family, scale in (("gpt2", 1.0), ("bloom", 1.0), ("glm4", 1.0)):
        assert [c.scale for c in sm.bind(tiny(family)).certificates] == pytest.approx([scale, scale])
    with pytest.warns(SpexMechWarning, match="what mamba adds to the stream"):
        hybrid = sm.bind(tiny("jamba"))
    assert [c.uncovered for c in hybrid.certificates] == [("mamba",), ()]
    assert hybrid.shape.heads == (0, 4)


@pytest.mark.parametrize(("family", "mixer", "width"), [("qwen3next", "linear_attn", 8), ("bamba", "mamba", 16)])
def test_heads_of_linear_attention_and_mamba_are_columns_of_their_output_projection(family, mixer, width):
    model = tiny(family)
    subject = sm.bind(model)
    assert [(c.mixer, c.uncovered) for c in subject.certificates] == [(mixer, ()), ("", ())]
    assert (subject.shape.heads, subject.shape.kv_heads) == ((4, 4), (4, 2))
    expected = without(model, f"model.layers.0.{mixer}.out_proj", slice(2 * width, 3 * width))
    assert (by_ablation(subject.model, "a0.h2") - expected).abs().max() <= 1e-5
    assert (logits(model) - expected).abs().max() > 1e-3
    whole = without(model, f"model.layers.0.{mixer}.out_proj")
    assert (by_ablation(subject.model, "a0") - whole).abs().max() <= 1e-5


def test_certificates_are_told_by_kind_of_layer(tmp_path):
    bound = sm.bind(tiny("qwen3next"))
    linear, full = map(certificate_line, describe_certificates(bound))
    assert linear == "layer 0: heads 4 of linear_attn width 8 certified; " \
        "mlp certified at output of Qwen3NextSparseMoeBlock, no neurons; " \
        "4 experts and what is shared certified, router top 2 by Qwen3NextTopKRouter never ablated"  # fmt: skip
    assert (
        full == "layer 1: heads 4 (kv 2) width 8 certified; mlp certified at output of Qwen3NextSparseMoeBlock, "
        "no neurons; 4 experts and what is shared certified, router top 2 by Qwen3NextTopKRouter never ablated"
    )
    found = sm.discover(bound, tokens_task(), "a*.h*", budget=8, replacement="zero", decoder="linear", out=tmp_path)
    assert [told["layers"] for told in found.record["certificates"]] == [[0], [1]]
    assert "certificates" not in found.responses.provenance
    assert len(describe_certificates(sm.bind(tiny("llama")))) == 1


def test_a_block_that_scales_what_it_returns_is_refused():
    model = tiny("llama")

    class Doubled(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.mlp, self.self_attn = inner.mlp, inner.self_attn
            self.inner = inner

        def forward(self, hidden_states, **kwargs):
            return self.inner(hidden_states, **kwargs) * (1 + hidden_states[..., :1])

    model.model.layers[1] = Doubled(model.model.layers[1])
    with pytest.raises(ModelError, match=r"cannot be certified(.|\n)*layer 1: "):
        sm.bind(model)


def test_training_mode_after_binding_is_refused():
    model = tiny("gpt2")
    subject = sm.bind(model)
    model.train()
    with pytest.raises(ModelError, match="training mode"):
        subject.forward(TOKENS, {}, None)
    model.eval()
    assert subject.forward(TOKENS, {}, None).isfinite().all()
