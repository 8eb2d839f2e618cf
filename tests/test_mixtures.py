"""Experts of mixtures as components: against a copy whose down projection is zero, without hooks, or refused."""

import copy

import pytest
import torch
from tiny_models import tiny, tokens_task
from torch import nn

import spex_mech as sm
from spex_mech.ablation.contract import certificate_line, describe_certificates
from spex_mech.ablation.mixtures import contributions
from spex_mech.errors import ComponentError, ModelError, SpexMechWarning

TASK = tokens_task()
TOKENS = TASK.prompts.tokens
EXPERTS = {  # where each family keeps its experts' down projections, decided here and not by the package
    "mixtral": "mlp.experts.down_proj",
    "olmoe": "mlp.experts.down_proj",
    "qwen2moe": "mlp.experts.down_proj",
    "qwen3moe": "mlp.experts.down_proj",
    "deepseekv3": "mlp.experts.down_proj",
    "gptoss": "mlp.experts.down_proj",
    "llama4": "feed_forward.experts.down_proj",
    "granitemoe": "block_sparse_moe.experts.down_proj",
    "granitemoeshared": "block_sparse_moe.experts.down_proj",
}
SHARED = {  # and what they compute beside them
    "qwen2moe": "mlp.shared_expert.down_proj",
    "deepseekv3": "mlp.shared_experts.down_proj",
    "llama4": "feed_forward.shared_expert.down_proj",
    "granitemoeshared": "shared_mlp.output_linear",
}


def logits(model, tokens=TOKENS):
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits


def blocks(model):
    return model.model.layers


def at_zero(model, layer, path, expert=None):
    """Logits of a copy with one expert's down projection, or a whole one, at zero; biases too."""
    edited = copy.deepcopy(model)
    block, name = blocks(edited)[layer], path.rsplit(".", 1)
    with torch.no_grad():
        if expert is None:
            block.get_submodule(path).weight.zero_()
        else:
            holder = block.get_submodule(name[0])
            for parameter in (getattr(holder, name[1]), getattr(holder, f"{name[1]}_bias", None)):
                if parameter is not None:
                    parameter[expert] = 0
    return logits(edited)


def by_ablation(model, names, **options):
    with sm.ablated(model, ablate=names, **{"replacement": "zero", **options}) as held:
        return logits(held)


def test_bridges_ablate_experts_as_plain_torch_does():
    from tiny_models import bridge_of

    model = tiny("mixtral")
    plain, bridge = sm.bind(model), sm.bind(bridge_of(model))
    assert plain.shape.experts == bridge.shape.experts == (4, 4)
    for name in ("m0.e1", "m1.e3"):
        effects = [responses_of(subject, name) for subject in (plain, bridge)]
        assert (effects[0] - effects[1]).abs().max() <= 1e-5
        assert (effects[0][0] - effects[0][1]).abs().max() > 1e-4
    with pytest.raises(ModelError, match="no hook points"):
        sm.hooks(bridge, ablate="m0.e1", replacement="zero")


def responses_of(subject, name):
    options = {"budget": 2, "replacement": "zero", "decoder": "exact"}
    return sm.discover(subject, tokens_task(), name, **options).responses.values


@pytest.mark.parametrize("family", EXPERTS)
def test_an_expert_at_zero_is_its_down_projection_at_zero(family):
    model = tiny(family)
    subject, effects = sm.bind(model), []
    assert subject.shape.experts == (4, 4)
    for layer in range(2):
        for expert in range(4):
            expected = at_zero(model, layer, EXPERTS[family], expert)
            found = by_ablation(subject, f"m{layer}.e{expert}")
            assert (found - expected).abs().max() <= 1e-5
            effects.append(float((logits(model) - expected).abs().max()))
    assert sum(effect > 1e-2 for effect in effects) >= 4


@pytest.mark.parametrize("family", SHARED)
def test_what_is_shared_is_a_component_and_part_of_the_mlp(family):
    model = tiny(family)
    subject = sm.bind(model)
    assert subject.shape.shared == (True, True)
    expected = at_zero(model, 0, SHARED[family])
    assert (by_ablation(subject, "m0.shared") - expected).abs().max() <= 1e-5
    assert (logits(model) - expected).abs().max() > 1e-2
    whole, parts = by_ablation(subject, "m0"), by_ablation(subject, "m0.e*, m0.shared")
    assert (whole - parts).abs().max() <= 2e-5
    edited = copy.deepcopy(model)  # the whole MLP: its experts and what is shared
    with torch.no_grad():
        blocks(edited)[0].get_submodule(SHARED[family]).weight.zero_()
        blocks(edited)[0].get_parameter(EXPERTS[family]).zero_()
    assert (whole - logits(edited)).abs().max() <= 2e-5


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_every_way_to_compute_experts_gives_the_same(implementation):
    model = tiny("qwen2moe")
    expected = by_ablation(model, "m0.e1, m1.e0")
    model.set_experts_implementation(implementation)
    assert (by_ablation(model, "m0.e1, m1.e0") - expected).abs().max() <= 1e-5
    assert (logits(model) - expected).abs().max() > 1e-2


def test_a_mean_is_of_what_an_expert_adds_router_and_all():
    """By hand: each expert's output times its weight, zero where the router does not send the token."""
    model, layer = tiny("mixtral"), 1
    mlp, seen = blocks(model)[layer].mlp, []
    with mlp.register_forward_pre_hook(lambda _m, args: seen.append(args[0])):
        logits(model, TASK.reference.tokens)
    x = seen[0].reshape(-1, 32)
    with torch.no_grad():
        weights, chosen = nn.functional.softmax(x @ mlp.gate.weight.T, -1).topk(2, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        gate, up = (x @ mlp.experts.gate_up_proj[2].T).chunk(2, -1)
        out = (nn.functional.silu(gate) * up) @ mlp.experts.down_proj[2].T
        added = (out * (weights * (chosen == 2)).sum(-1, keepdim=True)).reshape(seen[0].shape)
    mean = added.mean(0)

    def by_hand(_module, args, output):
        x = args[0].reshape(-1, 32)
        weights, chosen = nn.functional.softmax(x @ mlp.gate.weight.T, -1).topk(2, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        gate, up = (x @ mlp.experts.gate_up_proj[2].T).chunk(2, -1)
        out = (nn.functional.silu(gate) * up) @ mlp.experts.down_proj[2].T
        own = (out * (weights * (chosen == 2)).sum(-1, keepdim=True)).reshape(args[0].shape)
        return output - own + mean

    with mlp.register_forward_hook(by_hand):
        expected = logits(model)
    found = by_ablation(model, "m1.e2", replacement="mean", task=TASK)
    assert (found - expected).abs().max() <= 1e-5
    assert (found - by_ablation(model, "m1.e2")).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("family", "replacement"), [("mixtral", "resample"), ("qwen2moe", "mean"), ("llama4", "zero"), ("llama4", "mean"),
     ("granitemoeshared", "zero")]
)  # fmt: skip
def test_engine_with_its_shortcuts_measures_what_single_masks_give(family, replacement):
    subject, names = sm.bind(tiny(family)), "a1.h0, m0.e*, m1, m1.e0:3"
    if family == "granitemoeshared":  # rows of an MLP of two modules are left out of both or of none
        names = "a0.h0, a1.h0, m0, m1"
    found = sm.discover(subject, TASK, names, budget=40, replacement=replacement, decoder="linear")
    for row in (3, 8, 11, 13):
        gone = [
            n for n, kept in zip(found.responses.components.names, found.responses.keep[row], strict=True) if not kept
        ]
        at = by_ablation(subject, gone, replacement=replacement, task=TASK)[torch.arange(3), TASK.positions]
        wrong = TASK.distractors >= 0
        mean = (at.gather(1, TASK.distractors.clamp(min=0)) * wrong).sum(1) / wrong.sum(1)
        assert (found.responses.values[row] - (at[torch.arange(3), TASK.answers] - mean)).abs().max() <= 1e-4


def test_backends_agree_on_experts():
    from nnsight import NNsight

    model = tiny("qwen2moe")
    expected = by_ablation(copy.deepcopy(model), "m0.e1, m1.shared, a0.h0")
    names, options = "m0.e1, m1.shared, a0.h0", {"budget": 8, "replacement": "zero", "decoder": "linear"}
    plain = sm.discover(copy.deepcopy(model), TASK, names, **options).responses
    wrapped = sm.bind(NNsight(model))
    assert wrapped.shape.experts == (4, 4)
    found = sm.discover(wrapped, TASK, names, **options).responses
    assert (found.values - plain.values).abs().max() <= 1e-5
    with sm.ablated(wrapped, ablate=names, replacement="zero"):
        assert (logits(model) - expected).abs().max() <= 1e-5


def test_names_select_sort_and_print():
    subject = sm.bind(tiny("qwen2moe"))
    chosen = sm.select(subject, "m*.e*, !m0.e3, m*.shared, [m1.e0:2]")
    assert chosen.names == ("m0.e0", "m0.e1", "m0.e2", "m1.e0", "m1.e1", "m1.e2", "m1.e3", "m0.shared", "m1.shared",
                            "[m1.e0:2]")  # fmt: skip
    assert sm.ComponentSet.of(chosen.names) == chosen
    assert [c.name for c in sorted(sm.ComponentSet.of("m1, m0.shared, m0.e1, a0.h0, m0.e0, m0"))] == [
        "a0.h0", "m0.e0", "m0.e1", "m0", "m0.shared", "m1",
    ]  # fmt: skip
    with pytest.raises(ComponentError, match=r"m0\.e4.*mixtures of 4 experts beside shared ones"):
        sm.select(subject, "m0.e4")


def test_a_circuit_of_experts_is_drawn_exported_and_read_back(tmp_path):
    found = sm.discover(tiny("mixtral"), TASK, "m*.e*, a1.h0", budget=512, replacement="zero", decoder="exact")
    drawn = sm.plot.circuit(found.circuit)
    assert "m0.e1" in {text.get_text() for axes in drawn.axes for text in axes.texts}
    for to in ("json", "hif", "dot", "graphml", "neuronpedia"):
        sm.export(found.circuit, tmp_path / f"c.{to}", to=to)
    assert sm.read_circuit(tmp_path / "c.hif").names == found.circuit.names
    assert "mlp expert" in (tmp_path / "c.neuronpedia").read_text()
    assert "experts" in found.circuit._repr_html_()


def test_the_router_and_the_experts_are_told():
    line = certificate_line(describe_certificates(sm.bind(tiny("qwen2moe")))[0])
    assert line.endswith("4 experts and what is shared certified, router top 2 by Qwen2MoeTopKRouter never ablated")


def test_experts_in_a_form_that_is_not_known_are_refused_by_name_and_the_rest_is_bound():
    model = tiny("mixtral")

    class Keyed(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.num_experts = inner, inner.num_experts

        def forward(self, x, index, weights):
            return self.inner(x, index, weights.softmax(-1))  # what one adds depends on the others' weights

    for block in blocks(model):
        block.mlp.experts = Keyed(block.mlp.experts)
    subject = sm.bind(model)
    assert subject.shape.experts == (0, 0)
    assert subject.shape.mlps == (True, True)
    with pytest.raises(
        ComponentError, match=r"experts cannot be told apart in layer 0: what its experts add one by one"
    ):
        sm.select(subject, "m0.e1")
    line = certificate_line(describe_certificates(subject)[0])
    assert line.endswith("experts not certified, router top 2 by MixtralTopKRouter")


def test_contributions_are_of_the_experts_that_a_token_goes_to():
    """Two experts that multiply by 1 and by 10; the second token goes to the second expert twice."""

    class Experts(nn.Module):
        def forward(self, x, index, weights):
            return (x[:, None] * weights[..., None] * torch.where(index == 0, 1.0, 10.0)[..., None]).sum(1)

    module, x = Experts(), torch.tensor([[1.0], [2.0]])
    index, weights = torch.tensor([[0, 1], [1, 1]]), torch.tensor([[0.5, 0.25], [0.5, 0.5]])
    parts = contributions(module, (x, index, weights), {}, module(x, index, weights), 2)
    assert parts[..., 0].tolist() == [[0.5, 2.5], [0.0, 20.0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_within_its_own(dtype):
    exact, half = tiny("mixtral"), tiny("mixtral").to(dtype)
    names = "m0.e0, m1.e3"
    off = (by_ablation(half, names).float() - by_ablation(exact, names)).abs().max()
    assert off <= 0.1 * logits(exact).abs().max()


def test_hybrids_have_experts_where_they_have_no_heads():
    with pytest.warns(SpexMechWarning, match="mamba"):
        subject = sm.bind(tiny("jamba"))
    assert subject.shape.experts == (0, 4)
