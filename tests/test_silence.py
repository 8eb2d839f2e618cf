"""Nothing is ablated in silence: a replacement that equals what it replaces is told, or refused where all do."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import spex_mech as sm
from spex_mech.errors import SpexMechWarning, TaskError

ROW, ANSWER, WRONG = [3, 1, 4, 1, 5], 9, 2


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=32, n_embd=32, n_layer=3, n_head=4, n_positions=16, initializer_range=0.3)
    return GPT2LMHeadModel(config).eval()


def task(*rows, **more):
    return sm.Task(list(rows), [ANSWER] * len(rows), [[WRONG]] * len(rows), **more)


def test_the_mean_over_one_prompt_is_refused_with_the_ways_out(model):
    with pytest.raises(TaskError, match=r"(?s)nothing would be ablated.*12 components.*reference.*zero.*pooled"):
        sm.discover(model, task(ROW), "a*.h*", budget=256)
    with pytest.raises(TaskError, match="nothing would be ablated"):
        sm.discover(model, task(ROW, ROW), "a*.h*", budget=256)
    with pytest.raises(TaskError, match="nothing would be ablated"), sm.ablated(model, ablate="a0.h1", task=task(ROW)):
        pass
    for more in ({"per": "pooled"}, {"replacement": "zero"}):
        found = sm.discover(model, task(ROW), "a*.h*", budget=256, decoder="linear", **more)
        assert len(found.circuit.nodes) >= 4
    there = task(ROW, reference=[[1, 2, 3, 4, 5], [6, 7, 8, 9, 1]])
    found = sm.discover(model, there, "a*.h*", budget=64, decoder="linear")
    assert float(found.responses.values.std()) > 0


def test_single_components_are_named_and_recorded(model):
    dead = model.transformer.h[1].attn
    kept = dead.c_attn.weight.detach().clone()
    with torch.no_grad():
        dead.c_attn.weight[:, 64:72] = 0  # values of head 0
        dead.c_attn.bias[64:72] = 0
    try:
        with pytest.warns(SpexMechWarning, match=r"ablating a1\.h0 changes nothing .*their values are zero"):
            found = sm.discover(model, task(ROW), "a*.h*", budget=64, decoder="linear", replacement="zero")
        assert found.record["replacement"]["unchanged"] == ["a1.h0"]
    finally:
        with torch.no_grad():
            dead.c_attn.weight.copy_(kept)


def test_what_the_first_tokens_share_is_only_told_where_it_matters(model):
    """At position 0 of prompts that begin alike, a mean is what was there."""
    same = task(ROW, [3, 7, 2, 8, 6])
    with pytest.warns(SpexMechWarning, match=r"a0\.h0@p0, a0\.h1@p0 .* 2 prompts"):
        sm.discover(model, same, "a0.h0@p0, a0.h1@p0, a0.h2, a0.h3@p-1", budget=16)
    with pytest.raises(TaskError, match="nothing would be ablated"):
        sm.discover(model, same, "a0.h0@p0, a0.h1@p0", budget=16)
    with pytest.raises(TaskError, match="nothing would be ablated"):
        sm.discover(model, task(ROW, corrupt=[ROW]), "a*.h*", budget=64, replacement="resample")


def test_a_circuit_of_everything_ablates_nothing_and_says_so():
    study = sm.open_study("planted-and")
    found = sm.discover(study.subject, study.task, "a*.h*", budget=64, replacement="zero", decoder="linear")
    names = found.components.names
    everything = sm.Circuit(found.components, tuple(map(_node, names)), (), "logit", evidence={})
    said = pytest.warns(SpexMechWarning, match="are nodes of this circuit, so keeping it ablates nothing")
    with said, sm.ablated(study.subject, keep=everything, replacement="zero"):
        pass


def _node(name):
    from spex_mech.circuit.nodes import Node

    return Node(sm.Component.parse(name))
