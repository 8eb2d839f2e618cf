"""Which model a run is of: what it computes, not its parameters alone; at the start, on resuming, at chunk borders."""

import json

import pytest
import torch
from tiny_models import tiny, tokens_task
from torch import nn

import spex_mech as sm
from spex_mech.ablation.identity import Watch
from spex_mech.errors import ModelError, ResponseError
from spex_mech.files.records import differences
from spex_mech.measuring.journal import JOURNAL

TASK = tokens_task()


class Adapter(nn.Module):
    """A linear map with a low-rank adapter that can be switched off, with the attributes that PEFT gives it."""

    def __init__(self, base, rank=8):
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False)})
        self.disable_adapters, self.active_adapters, self.merged_adapters = False, ["default"], []

    def forward(self, x):
        out = self.base_layer(x)
        return out if self.disable_adapters else out + self.lora_B["default"](self.lora_A["default"](x))


def adapted():
    model = tiny("llama")
    torch.manual_seed(0)
    for block in model.model.layers:
        block.self_attn.q_proj = Adapter(block.self_attn.q_proj)
        nn.init.normal_(block.self_attn.q_proj.lora_B["default"].weight, std=0.3)
    return model


def switch_off(model):
    for block in model.model.layers:
        block.self_attn.q_proj.disable_adapters = True


def route_to_one(model):
    for module in model.modules():
        if hasattr(module, "top_k"):
            module.top_k = 1


def swap_activation(model):
    for block in model.model.layers:
        block.mlp.act_fn = nn.ReLU()


@pytest.mark.parametrize(
    ("make", "change", "named"),
    [
        (adapted, switch_off, r"subject\.probe\.adapters\.active.*subject\.probe\.logits \(moved by"),
        (
            lambda: tiny("mixtral"),
            route_to_one,
            r"subject\.probe\.logits \(moved by .*subject\.probe\.top_k \(2 there, ",
        ),
        (lambda: tiny("llama"), swap_activation, r"subject\.probe\.logits \(moved by"),
    ],
)
def test_a_model_that_computes_something_else_is_another_one(tmp_path, make, change, named):
    """All three leave every parameter as it was."""
    model = make()
    options = {"budget": 8, "replacement": "zero", "out": tmp_path, "decoder": "linear"}
    first = sm.discover(model, TASK, "a*.h*", **options)
    weights = first.record["subject"]["weights_sha256"]
    assert sm.discover(model, TASK, "a*.h*", **options).record["resumed_masks"] == 8
    change(model)
    assert sm.bind(model).provenance["weights_sha256"] == weights
    for name in ("responses.safetensors", JOURNAL):  # finished, then as a run that was killed
        with pytest.raises(ResponseError, match=named):
            sm.discover(model, TASK, "a*.h*", **options)
        (tmp_path / name).unlink()


def test_an_audit_of_a_model_that_computes_something_else_is_refused():
    model = adapted()
    found = sm.discover(model, TASK, "a*.h*", budget=32, decoder="linear", replacement="zero")
    switch_off(model)
    with pytest.raises(ResponseError, match=r"model\.probe\.adapters\.active"):
        sm.audit(found, model, TASK, budget=400)


def test_records_without_a_probe_are_not_of_another_model():
    probe = {"logits": [1.0, 2.0], "dtype": "float32"}
    old, new = {"subject": {"model": "x"}}, {"subject": {"model": "x", "probe": probe}}
    assert differences(old, new) == differences(new, old) == []
    assert differences(new, {"subject": {"model": "y", "probe": probe}}) == ["subject.model ('x' there, 'y' here)"]


@pytest.mark.parametrize(("dtype", "gap", "same"), [("float32", 1e-4, True), ("float32", 1e-2, False),
                                                    ("bfloat16", 1e-2, True), ("bfloat16", 0.2, False)])  # fmt: skip
def test_probes_differ_by_rounding(dtype, gap, same):
    one, other = ({"probe": {"logits": [2.0, x], "dtype": dtype}} for x in (1.0, 1.0 + gap))
    assert (differences(one, other) == []) == same


def test_a_journal_goes_on_where_the_probe_was_rounded_otherwise(tmp_path, monkeypatch):
    """The journal's checksums are those of the record that it was begun with."""
    from spex_mech.ablation.backends import base

    model, options = tiny("llama"), {"budget": 300, "replacement": "zero", "out": tmp_path, "decoder": "linear"}
    first = sm.discover(model, TASK, "a*.h*, m*", **options)
    (tmp_path / "responses.safetensors").unlink()
    usual = base.describe_probe

    def otherwise(*args):
        told = usual(*args)
        return {**told, "logits": [x * (1 + 1e-5) for x in told["logits"]]}

    monkeypatch.setattr(base, "describe_probe", otherwise)
    again = sm.discover(model, TASK, "a*.h*, m*", **options)
    assert again.record["resumed_masks"] == len(first.responses.keep)
    assert again.responses.values.equal(first.responses.values)


@pytest.mark.parametrize(
    ("spoil", "mend"),
    [
        (lambda m: m.lm_head.weight.data.mul_(3), lambda m: m.lm_head.weight.data.div_(3)),
        (lambda m: m.model.embed_tokens.weight[49].mul_(3), lambda m: m.model.embed_tokens.weight[49].div_(3)),
    ],
)
def test_a_model_that_changes_on_the_way_is_noticed_at_the_next_chunk(tmp_path, monkeypatch, spoil, mend):
    """The second changes a token that no probe has; its parameter has been written to, and the hash tells."""
    from spex_mech.ablation.respond import Engine

    monkeypatch.setattr(Engine, "chunk", 16)
    model, usual, calls = tiny("llama"), Engine.values, []
    before = [p.clone() for p in model.parameters()]

    def values(self, keep):
        calls.append(len(keep))
        if len(calls) == 3:
            with torch.no_grad():
                spoil(model)
        return usual(self, keep)

    options = {"budget": 64, "replacement": "zero", "out": tmp_path, "decoder": "linear"}
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "values", values)
        with pytest.raises(ResponseError, match=r"changed while it was measured: .*those before it are kept"):
            sm.discover(model, TASK, "a*.h*", **options)
    with pytest.raises(ResponseError, match="weights_sha256"):
        sm.discover(model, TASK, "a*.h*", **options)
    with torch.no_grad():
        mend(model)
        for parameter, value in zip(model.parameters(), before, strict=True):
            assert torch.allclose(parameter, value)
            parameter.copy_(value)
    again = sm.discover(model, TASK, "a*.h*", **options)
    assert again.record["resumed_masks"] == 32
    assert again.responses.values.equal(
        sm.discover(tiny("llama"), TASK, "a*.h*", **{**options, "out": None}).responses.values
    )


def test_writing_a_weight_back_is_no_change():
    subject = sm.bind(tiny("llama"))
    watch = Watch()
    watch.begin(subject, dict(subject.provenance))
    with torch.no_grad():
        subject.module.lm_head.weight.copy_(subject.module.lm_head.weight.clone())
    watch.check(subject)
    assert watch.written == tuple(p._version for p in subject.module.parameters())


@pytest.mark.parametrize("part", ["", "model.layers.1.mlp"])
def test_training_mode_after_binding_is_refused_and_nothing_random_is_drawn(part):
    model = tiny("llama")
    subject = sm.bind(model)
    model.get_submodule(part).train()
    state = torch.get_rng_state()
    with pytest.raises(ModelError, match=r"training mode(.|\n)*\.eval\(\)"):
        sm.discover(subject, TASK, "a*.h*", budget=8, decoder="linear")
    assert torch.get_rng_state().equal(state)
    model.eval()
    assert (
        sm.discover(subject, TASK, "a*.h*", budget=8, decoder="linear", replacement="zero")
        .responses.values.isfinite()
        .all()
    )


def test_a_record_keeps_the_probe(tmp_path):
    sm.discover(tiny("mixtral"), TASK, "a*.h*", budget=8, decoder="linear", replacement="zero").save(tmp_path)
    probe = json.loads((tmp_path / "run.json").read_text())["subject"]["probe"]
    assert (len(probe["logits"]), probe["top_k"], probe["dtype"]) == (16, 2, "float32")
