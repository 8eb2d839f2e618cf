"""Models as people hold them: the same responses as the plain model within the precision, or one message."""

import copy

import pytest
import torch
from held_models import Packed4, Packed8, dense, swap
from tiny_models import tiny, tokens_task
from torch import nn

import spex_mech as sm
from spex_mech.errors import ModelError, SpexMechWarning

TASK = tokens_task()
TOKENS = TASK.prompts.tokens
NAMES = "a*.h*, m0, m1.n3"


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


def values(model, replacement="mean"):
    return sm.discover(model, TASK, NAMES, budget=12, decoder="linear", replacement=replacement).responses.values


def by_ablation(model, name):
    with sm.ablated(model, ablate=name, replacement="zero") as held:
        return logits(held)


def without(model, path, part):
    """Logits of a copy whose projection does not read some features."""
    edited = copy.deepcopy(model)
    with torch.no_grad():
        edited.get_submodule(path).weight[:, part] = 0
    return logits(edited)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_default_dtype_that_was_left_on_changes_no_value(dtype):
    model = tiny("llama")
    plain = {kind: values(model, kind) for kind in ("mean", "resample")}
    torch.set_default_dtype(dtype)
    try:
        found = {kind: values(model, kind) for kind in plain}
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(found[kind].equal(plain[kind]) for kind in plain)


@pytest.mark.parametrize(("dtype", "off"), [(torch.float64, 1e-5), (torch.float16, 0.02), (torch.bfloat16, 0.1)])
def test_other_precisions_agree_within_theirs(dtype, off):
    assert (values(tiny("llama").to(dtype)) - values(tiny("llama"))).abs().max() <= off


def in_place(model):
    model.compile(backend="eager")
    return model


def the_body(model):
    model.model = torch.compile(model.model, backend="eager")
    return model


def every_block(model):
    for i, block in enumerate(model.model.layers):
        model.model.layers[i] = torch.compile(block, backend="eager")
    return model


@pytest.mark.parametrize("hold", [lambda m: torch.compile(m, backend="eager"), in_place, the_body, every_block])
def test_of_a_compiled_model_the_original_is_bound(hold):
    model = tiny("llama")
    plain, expected = values(copy.deepcopy(model)), by_ablation(copy.deepcopy(model), "a0.h1")
    held = hold(model)
    assert values(held).equal(plain)
    assert by_ablation(held, "a0.h1").equal(expected)


def test_gradient_checkpointing_changes_no_value():
    model = tiny("llama")
    plain = values(model)
    model.gradient_checkpointing_enable()
    assert values(model).equal(plain)


def test_a_model_made_under_inference_mode_is_bound():
    with torch.inference_mode():
        model = tiny("llama")
    plain = values(tiny("llama"))
    assert (values(model) - plain).abs().max() <= 1e-5
    with torch.inference_mode():
        assert (values(tiny("llama")) - plain).abs().max() <= 1e-5


def on_meta():
    from transformers import AutoModelForCausalLM

    config = tiny("llama").config
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def offloaded():
    from accelerate import cpu_offload

    return cpu_offload(tiny("llama"), execution_device=torch.device("cpu"))


def with_nan():
    model = tiny("llama")
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    return model


def of_two_dtypes():
    model = tiny("llama").to(torch.bfloat16)
    model.lm_head.float()
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (on_meta, "made on the meta device and never loaded"),
        (offloaded, "accelerate offloads them.*without offloading"),
        (with_nan, r"weights hold NaN or infinity \(model\.layers\.0\.mlp\.up_proj\.weight\)"),
        (of_two_dtypes, "does not run on two short rows of token ids"),
        (lambda: tiny("llama").model, "LlamaModel returns .* without logits.*with its head"),
    ],
)
def test_what_cannot_be_bound_gets_one_message(make, message):
    with pytest.raises(ModelError, match=message):
        sm.bind(make())


def test_a_dispatched_and_a_waiting_nnsight_model_are_the_same(tmp_path):
    import nnsight
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 49, **{f"w{i}": i for i in range(49)}}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "<unk>")), pad_token="w0")
    tiny("llama").save_pretrained(tmp_path)
    waiting = nnsight.TransformersModel(str(tmp_path), task="text-generation", tokenizer=tokenizer)
    assert not waiting.dispatched
    assert (values(waiting) - values(tiny("llama"))).abs().max() <= 1e-5


@pytest.mark.parametrize("packed", [Packed8, Packed4])
def test_packed_weights_are_bound_by_their_declared_widths(packed):
    """Against the model of the dequantised weights, with columns at zero there."""
    held = swap(tiny("llama"), packed)
    plain = swap_back(copy.deepcopy(held))
    assert (logits(held) - logits(plain)).abs().max() <= 1e-5
    assert sm.bind(held).shape == sm.bind(plain).shape
    for name, path, part in (("a0.h1", "self_attn.o_proj", slice(8, 16)), ("m0.n7", "mlp.down_proj", slice(7, 8))):
        expected = without(plain, f"model.layers.0.{path}", part)
        assert (by_ablation(held, name) - expected).abs().max() <= 1e-5
        assert (logits(plain) - expected).abs().max() > 1e-3
    assert (values(held) - values(plain)).abs().max() <= 1e-4


def swap_back(model):
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if hasattr(child, "dense"):
                setattr(module, name, dense(child))
    return model


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_torchs_own_int8_is_bound():
    """It quantises what it reads by its range, so a head at zero is its weights at zero to a hundredth."""
    model = tiny("llama")
    held = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    subject = sm.bind(held)
    assert subject.shape == sm.bind(model).shape
    edited = copy.deepcopy(held)
    o_proj = edited.model.layers[0].self_attn.o_proj
    weight = o_proj.weight().dequantize()
    weight[:, 8:16] = 0
    o_proj.set_weight_bias(torch.quantize_per_tensor(weight, o_proj.weight().q_scale(), 0, torch.qint8), None)
    expected = logits(edited)
    off, effect = ((by_ablation(held, "a0.h1") - expected).abs().max(), (logits(held) - expected).abs().max())
    assert off <= 0.02 * expected.abs().max() < effect
    before = subject.provenance["weights_sha256"]
    q_proj = held.model.layers[0].self_attn.q_proj
    q_proj.set_weight_bias(torch.quantize_per_tensor(q_proj.weight().dequantize() * 2, 0.05, 0, torch.qint8), None)
    assert subject.provenance["weights_sha256"] != before


def test_a_projection_that_declares_nothing_is_refused_by_name():
    class Opaque(nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.inner = [linear]

        def forward(self, x):
            return self.inner[0](x)

    with pytest.raises(ModelError, match=r"nothing in its LlamaAttention .* o_proj is a Opaque.*declare in_features"):
        sm.bind(swap(tiny("llama"), Opaque))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_sequence_classifier_is_read_at_its_last_token(family):
    from tiny_models import _config
    from transformers import AutoModelForSequenceClassification

    config = _config(family)
    config.num_labels, config.pad_token_id = 3, 0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config).eval()
    task = sm.Task(TOKENS.tolist(), [0, 1, 2], [[1], [2], [0]])
    found = sm.discover(model, task, "a0.h0, m1", budget=4, replacement="zero").responses
    row = (found.keep == torch.tensor([False, True])).all(1).nonzero()[0, 0]
    edited = copy.deepcopy(model)
    projection = {"llama": "model.layers.0.self_attn.o_proj", "gpt2": "transformer.h.0.attn.c_proj"}[family]
    with torch.no_grad():
        weight = edited.get_submodule(projection).weight
        (weight.T if family == "llama" else weight)[:8] = 0
        scores = edited(input_ids=TOKENS).logits
    wanted = scores.gather(1, task.answers[:, None]) - scores.gather(1, task.distractors)
    assert (found.values[row] - wanted[:, 0]).abs().max() <= 1e-5
    early = sm.Task(TOKENS.tolist(), [0, 1, 2], [[1], [2], [0]], positions=[2, 2, 2])
    with pytest.raises(ModelError, match="reads them at their last token"):
        sm.discover(model, early, "a0.h0, m1", budget=4, replacement="zero")


def test_of_a_vision_language_model_the_text_tower_is_bound():
    """With as many vision layers as text layers, and other head counts there."""
    import transformers as hf

    text = tiny("llama").config
    vision = hf.CLIPVisionConfig(
        hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=8, image_size=16, patch_size=8
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = hf.LlavaConfig(text_config=text, vision_config=vision, image_token_index=49)
        model = hf.LlavaForConditionalGeneration(config).eval()
    assert sm.bind(model).shape.heads == (4, 4)
    expected = without(model, "model.language_model.layers.1.self_attn.o_proj", slice(8, 16))
    assert (by_ablation(model, "a1.h1") - expected).abs().max() <= 1e-5


def test_mixers_of_hybrids_are_named_as_not_covered():
    with pytest.warns(SpexMechWarning, match=r"mamba adds to the stream in 1 of its 2 layers is no component"):
        sm.bind(tiny("jamba"))


def test_lora_on_off_and_merged():
    peft = pytest.importorskip("peft")
    base = tiny("llama")
    config = peft.LoraConfig(r=8, target_modules=["q_proj", "o_proj", "down_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = peft.get_peft_model(copy.deepcopy(base), config).eval()
    subject = sm.bind(model)
    assert subject.shape.neurons == (48, 48)
    assert subject.provenance["probe"]["adapters"] == {"active": ["default"], "merged": []}
    merged = copy.deepcopy(model).merge_and_unload()
    for name, path, part in (("a0.h1", "self_attn.o_proj", slice(8, 16)), ("m0.n7", "mlp.down_proj", slice(7, 8))):
        expected = without(merged, f"model.layers.0.{path}", part)
        assert (by_ablation(model, name) - expected).abs().max() <= 1e-5
    on = values(subject)
    assert (on - values(merged)).abs().max() <= 1e-4
    model.disable_adapter_layers()
    off = values(subject)
    assert (off - values(base)).abs().max() <= 1e-4 < (off - on).abs().max()
    assert subject.provenance["probe"]["adapters"] == {"active": [], "merged": []}
