"""Adapters as components: off is PEFT's own off, row by row, beside heads; merged ones are refused by name."""

import copy

import pytest
import torch
from tiny_models import tiny, tokens_task

import spex_mech as sm
from spex_mech.errors import ComponentError

peft = pytest.importorskip("peft")
TASK = tokens_task()
TOKENS = TASK.prompts.tokens


def adapted(base=None, names=("default",), **options):
    """A model with adapters that do something, all of them active."""
    options = {"target_modules": ["q_proj", "o_proj", "down_proj"], **options}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make = lambda: peft.LoraConfig(r=4, init_lora_weights=False, **options)  # noqa: E731
        model = peft.get_peft_model(base or tiny("llama"), make(), adapter_name=names[0])
        for name in names[1:]:
            model.add_adapter(name, make())
        if len(names) > 1:
            model.base_model.set_adapter(list(names))
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


def by_ablation(model, names, **options):
    with sm.ablated(model, ablate=names, **{"replacement": "zero", **options}):
        return logits(getattr(model, "model", model))


@pytest.mark.parametrize("replacement", ["zero", "mean", "resample"])
def test_an_adapter_ablated_is_the_base_model_whatever_else_is_replaced_by(replacement):
    model, base = adapted(), tiny("llama")
    assert sm.bind(model).shape.adapters == ("default",)
    for name in ("adapter", "adapter:default", "adapter.*"):
        found = by_ablation(model, name, replacement=replacement, task=TASK)
        assert (found - logits(base)).abs().max() <= 1e-5
    assert (logits(model) - logits(base)).abs().max() > 1e-2
    with model.disable_adapter():
        expected = logits(model)
    assert (expected - logits(base)).abs().max() <= 1e-5


def test_an_adapter_of_one_layer_is_that_layers_weights_of_the_base():
    model = adapted()
    merged = copy.deepcopy(model).merge_and_unload()
    merged.model.layers[1] = tiny("llama").model.layers[1]
    found = by_ablation(model, "adapter.1")
    assert (found - logits(merged)).abs().max() <= 1e-5
    assert (found - logits(model)).abs().max() > 1e-3


@pytest.mark.parametrize("options", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"use_rslora": True}])
def test_other_kinds_of_adapters_and_modules_saved_with_them(options):
    model = adapted(**options)
    if "modules_to_save" in options:
        with torch.no_grad():
            model.base_model.model.lm_head.modules_to_save["default"].weight.mul_(-1)
    assert (by_ablation(model, "adapter") - logits(tiny("llama"))).abs().max() <= 1e-5
    assert (logits(model) - logits(tiny("llama"))).abs().max() > 1e-2
    if "modules_to_save" in options:
        with pytest.raises(ComponentError, match="acts outside of the layers too"):
            by_ablation(model, "adapter@p-1")


def test_an_adapter_that_turns_what_layers_read_is_switched_off():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = peft.OFTConfig(r=4, oft_block_size=0, target_modules=["q_proj", "o_proj"], init_weights=False)
        model = peft.get_peft_model(tiny("llama"), config).eval()
    assert (logits(model) - logits(tiny("llama"))).abs().max() > 1e-2
    assert (by_ablation(model, "adapter") - logits(tiny("llama"))).abs().max() <= 1e-5


def test_of_two_adapters_each_is_one():
    model = adapted(names=("style", "fact"))
    assert sm.bind(model).shape.adapters == ("fact", "style")
    for off, on in (("style", "fact"), ("fact", "style")):
        other = copy.deepcopy(model)
        other.base_model.set_adapter([on])
        assert (by_ablation(model, f"adapter:{off}") - logits(other)).abs().max() <= 1e-5
    assert (by_ablation(model, "adapter") - logits(tiny("llama"))).abs().max() <= 1e-5
    assert (by_ablation(model, "adapter:style, adapter:fact") - logits(tiny("llama"))).abs().max() <= 1e-5


def test_rows_of_one_batch_have_adapters_on_and_off_beside_heads(tmp_path):
    """Every mask against a model of its own: the base or the merged one, with columns of its weights at zero."""
    model, names = adapted(), "adapter, a0.h1, a1.h2"
    found = sm.discover(model, TASK, names, budget=8, replacement="zero", decoder="exact", out=tmp_path)
    base, merged = tiny("llama"), copy.deepcopy(model).merge_and_unload()
    for keep, values in zip(found.responses.keep, found.responses.values, strict=True):
        edited = copy.deepcopy(merged if keep[0] else base)
        with torch.no_grad():
            for bit, (layer, head) in ((1, (0, 1)), (2, (1, 2))):
                if not keep[bit]:
                    edited.model.layers[layer].self_attn.o_proj.weight[:, head * 8 : head * 8 + 8] = 0
        at = logits(edited)[torch.arange(3), TASK.positions]
        wrong = TASK.distractors >= 0
        mean = (at.gather(1, TASK.distractors.clamp(min=0)) * wrong).sum(1) / wrong.sum(1)
        assert (values - (at[torch.arange(3), TASK.answers] - mean)).abs().max() <= 1e-4
    joint = found.interactions().set_index("components")["coefficient"]
    assert abs(joint[("adapter", "a0.h1")]) > 1e-4  # through which heads the adapter works
    assert found.record["replacement"]["adapters"] == "switched off"
    again = sm.discover(model, TASK, names, budget=8, replacement="zero", decoder="exact", out=tmp_path)
    assert again.responses.values.equal(found.responses.values)


def test_at_one_position():
    model = adapted()
    last, whole = by_ablation(model, "adapter@p-1"), by_ablation(model, "adapter")
    assert torch.allclose(last[:, :-1], logits(model)[:, :-1], atol=1e-6)
    assert (last[:, -1] - logits(model)[:, -1]).abs().max() > 1e-3
    assert (last[:, -1] - whole[:, -1]).abs().max() > 1e-4  # earlier positions are read as they are


def test_heads_alone_keep_their_shortcuts_and_the_model_its_state():
    model = adapted()
    state, grads = copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
    subject = sm.bind(model)
    plain = sm.bind(tiny("llama")).shortcuts
    assert (subject.shortcuts.one_row, subject.shortcuts.grow) == (plain.one_row, plain.grow) == (True, True)
    by_ablation(subject, "adapter")
    assert all(value.equal(model.state_dict()[name]) for name, value in state.items())
    assert [p.requires_grad for p in model.parameters()] == grads
    assert model.active_adapters == ["default"]


def test_merged_and_switched_off_adapters_are_no_components():
    model = adapted()
    model.merge_adapter()
    with pytest.raises(ComponentError, match=r"adapters are merged into the weights of .*unmerge"):
        sm.select(sm.bind(model), "adapter")
    model.unmerge_adapter()
    model.disable_adapter_layers()
    with pytest.raises(ComponentError, match="'adapter' does not exist"):
        sm.select(sm.bind(model), "adapter")


def test_backends_agree():
    from nnsight import NNsight

    model = adapted()
    options = {"budget": 8, "replacement": "zero", "decoder": "linear"}
    plain = sm.discover(copy.deepcopy(model), TASK, "adapter, a0.h1, adapter.1", **options).responses
    found = sm.discover(NNsight(model), TASK, "adapter, a0.h1, adapter.1", **options).responses
    assert (found.values - plain.values).abs().max() <= 1e-5
