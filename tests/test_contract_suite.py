"""Values against weight edits without hooks, over families and the forms in which they are held; and real quantisers.

The weights are edited in a copy that is held in the same way, so that rounding is the form's own: what is left is at
most the tolerance, of the largest logit. Quantised ones are compared with the plain model of what they compute.
"""

import copy

import pytest
import torch
from held_models import Packed4, Packed8, dense, swap
from tiny_models import tiny, tokens_task
from torch import nn

import spex_mech as sm

TOKENS = tokens_task().prompts.tokens
# family → (component, projection that reads or writes it, which of its input features; None: all of it)
WHERE = {
    "llama": (
        ("a0.h1", "model.layers.0.self_attn.o_proj", slice(8, 16)),
        ("m1.n7", "model.layers.1.mlp.down_proj", slice(7, 8)),
        ("m0", "model.layers.0.mlp.down_proj", None),
    ),
    "gemma2": (
        ("a1.h1", "model.layers.1.self_attn.o_proj", slice(16, 32)),
        ("m0", "model.layers.0.mlp.down_proj", None),
    ),
    "pythia": (
        ("a0.h2", "gpt_neox.layers.0.attention.dense", slice(16, 24)),
        ("m1.n7", "gpt_neox.layers.1.mlp.dense_4h_to_h", slice(7, 8)),
    ),
    "bloom": (
        ("a0.h2", "transformer.h.0.self_attention.dense", slice(16, 24)),
        ("m1", "transformer.h.1.mlp.dense_4h_to_h", None),
    ),
    "mixtral": (("a0.h1", "model.layers.0.self_attn.o_proj", slice(8, 16)),),
    "qwen3next": (("a0.h1", "model.layers.0.linear_attn.out_proj", slice(8, 16)),),
}
SAME = lambda model: model  # noqa: E731


def lora(model, act=SAME):
    peft = pytest.importorskip("peft")
    names = {name.rsplit(".", 1)[-1] for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    targets = sorted(names & {"q_proj", "o_proj", "down_proj", "dense", "query_key_value", "in_proj_qkvz"})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
        return act(peft.get_peft_model(model, config).eval())


def off(model):
    model.disable_adapter_layers()
    return model


def merged(model):
    model.merge_adapter()
    return model


def checkpointed(model):
    model.gradient_checkpointing_enable()
    return model


def doubled(model):
    if hasattr(model, "set_experts_implementation"):  # torch groups matrices in single precision only
        model.set_experts_implementation("eager")
    return model.double()


def wrapped(model):
    from nnsight import NNsight

    return NNsight(model)


HELD = {  # how the model is held, and the tolerance as a share of the largest logit
    "float32": (SAME, 1e-5),
    "float64": (doubled, 1e-6),
    "bfloat16": (lambda m: m.bfloat16(), 0.03),
    "float16": (lambda m: m.half(), 0.005),
    "int8": (lambda m: swap(m, Packed8), 1e-5),
    "int4": (lambda m: swap(m, Packed4), 1e-5),
    "lora on": (lora, 1e-5),
    "lora off": (lambda m: lora(m, off), 1e-5),
    "lora merged": (lambda m: lora(m, merged), 1e-5),
    "compiled": (lambda m: torch.compile(m, backend="eager"), 1e-5),
    "checkpointed": (checkpointed, 1e-5),
    "nnsight": (wrapped, 1e-5),
}
NO_BIAS = {"int4": ("pythia", "bloom")}  # whose stand-in for four bits has none


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits.float()


def without(model, path, part):
    """A copy in which a projection does not read some features, or is zero; before it is held in another form."""
    edited = copy.deepcopy(model)
    projection = edited.get_submodule(path)
    with torch.no_grad():
        if part is None:
            for parameter in projection.parameters():
                parameter.zero_()
        else:
            projection.weight[:, part] = 0
    return edited


def zero_adapted(model, path, part):
    """The same after adapters were put around the projection: what they add is read from there too."""
    module = next(m for name, m in model.named_modules() if name.endswith(path))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if part is None:
                parameter.zero_()
            elif parameter.ndim == 2 and "lora_B" not in name:
                parameter[:, part] = 0
    return model


CASES = [(family, form) for family in WHERE for form in HELD if family not in NO_BIAS.get(form, ())]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "form"), CASES, ids=lambda value: value)
def test_what_is_ablated_is_what_is_gone_from_the_weights(family, form):
    hold, tolerance = HELD[form]
    subject = sm.bind(hold(tiny(family)))
    model = subject.module
    scale = float(logits(model).abs().max())
    for name, path, part in WHERE[family]:
        with sm.ablated(subject, ablate=name, replacement="zero"):
            found = logits(model)
        if form.startswith("lora"):
            expected = logits(zero_adapted(hold(tiny(family)), path, part))
        elif form in ("int8", "int4"):
            plain = tiny(family)
            for place, module in list(model.named_modules()):
                if isinstance(module, Packed4 | Packed8):
                    plain.set_submodule(place, dense(module))
            expected = logits(without(plain, path, part))
        elif form in ("compiled", "nnsight"):
            expected = logits(without(tiny(family), path, part))
        else:
            expected = logits(hold(without(tiny(family), path, part)))
        assert (found - expected).abs().max() <= tolerance * scale
        assert (expected - logits(model)).abs().max() > 2 * tolerance * scale


def larger():
    """Widths that quantisers take: multiples of 64."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=50, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=192, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                nn.init.normal_(parameter, 0, 0.1)
    return model.requires_grad_(False)


def bitsandbytes_8(model):
    bnb = pytest.importorskip("bitsandbytes")

    def make(linear):
        held = bnb.nn.Linear8bitLt(linear.in_features, linear.out_features, bias=False, has_fp16_weights=False)
        held.weight = bnb.nn.Int8Params(linear.weight.data.clone(), requires_grad=False, has_fp16_weights=False)
        return held.to("cpu")

    return swap(model, make)


def bitsandbytes_4(model):
    bnb = pytest.importorskip("bitsandbytes")

    def make(linear):
        held = bnb.nn.Linear4bit(linear.in_features, linear.out_features, bias=False, compute_dtype=torch.float32)
        held.weight = bnb.nn.Params4bit(linear.weight.data.clone(), requires_grad=False, quant_type="nf4")
        return held.to("cpu")

    return swap(model, make)


def torchao_8(model):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model.model, quantization.Int8WeightOnlyConfig())
    return model


def computed(held):
    """The plain model whose matrices are what each quantised map gives of unit vectors."""
    plain = larger()
    for path, module in plain.named_modules():
        if isinstance(module, nn.Linear) and path != "lm_head":
            with torch.no_grad():
                module.weight.copy_(held.get_submodule(path)(torch.eye(module.in_features)).T)
    return plain


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("quantise", "tolerance"), [(bitsandbytes_8, 0.06), (bitsandbytes_4, 0.03), (torchao_8, 1e-4)], ids=lambda v: str(v)
)
def test_quantisers_as_they_are_installed(quantise, tolerance):
    """Int8 of bitsandbytes rounds what it reads too, four bits compute in bfloat16; torchao's weights are exact."""
    held = quantise(larger())
    plain, subject = computed(held), sm.bind(held)
    assert subject.shape == sm.bind(plain).shape
    scale = float(logits(plain).abs().max())
    for name, path, part in (
        ("a0.h1", "model.layers.0.self_attn.o_proj", slice(32, 64)),
        ("m0", "model.layers.0.mlp.down_proj", None),
    ):
        expected = logits(without(plain, path, part))
        with sm.ablated(subject, ablate=name, replacement="zero"):
            assert (logits(held) - expected).abs().max() <= tolerance * scale
        assert (logits(plain) - expected).abs().max() > 4 * tolerance * scale
