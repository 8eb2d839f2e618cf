"""Several threads at one model: runs in turn with the right answers, the user's own calls beside them untouched."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny_models import bridge_of, tiny, tokens_task

import spex_mech as sm
from spex_mech.ablation.turns import only_here, turn
from spex_mech.errors import ModelError

ASKED = {"components": "a*.h*, m*", "budget": 400, "decoder": "linear", "link": "identity"}


def subject_of(kind):
    model = tiny("gpt2")
    if kind == "nnsight":
        return sm.bind(pytest.importorskip("nnsight").NNsight(model)), model
    model = model if kind == "torch" else bridge_of(model)
    return sm.bind(model), model


@pytest.mark.parametrize("kind", ["torch", "bridge"])
def test_two_runs_and_the_users_own_calls_do_not_meet(kind):
    subject, model = subject_of(kind)
    task, tokens = tokens_task(), torch.arange(1, 13).reshape(2, 6)

    def call():
        with torch.no_grad():
            out = model(tokens)
        return getattr(out, "logits", out)

    def run(seed):
        return sm.discover(subject, task, seed=seed, **ASKED).responses.values

    alone, clean, stop, calls = [run(0), run(1)], call(), threading.Event(), []

    def user():
        while not stop.is_set():
            calls.append(torch.equal(call(), clean))

    with ThreadPoolExecutor(3) as pool:
        beside = pool.submit(user if kind == "torch" else stop.wait)  # a bridge's modules keep a call's batch size
        runs = [pool.submit(run, seed) for seed in (0, 1)]
        try:
            together = [found.result(120) for found in runs]
        finally:
            stop.set()
        beside.result(20)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    assert len(calls) > 20 or kind == "bridge"
    assert all(calls)
    assert torch.equal(call(), clean)


def test_a_model_is_bound_beside_a_run():
    subject, model = subject_of("torch")
    alone = sm.discover(subject, tokens_task(), **ASKED).responses.values
    with ThreadPoolExecutor(2) as pool:
        run = pool.submit(lambda: sm.discover(subject, tokens_task(), **ASKED).responses)
        bound = [pool.submit(sm.bind, model).result(60) for _ in range(3)]
        found = run.result(60)
    assert torch.equal(found.values, alone)
    assert "hooks" not in found.provenance["subject"]
    assert len(bound) == 3


@pytest.mark.parametrize("kind", ["torch", "bridge"])
def test_a_run_beside_ablated_in_another_thread_is_refused_in_one_message(kind):
    subject, _ = subject_of(kind)
    task, tokens = tokens_task(), torch.arange(1, 7)[None]
    with ThreadPoolExecutor(1) as pool, sm.ablated(subject, ablate="a0.h1", replacement="zero") as model:
        with pytest.raises(ModelError, match="ablated in another thread"):
            pool.submit(lambda: sm.discover(subject, task, **ASKED)).result(60)
        out = model(tokens)
        here = getattr(out, "logits", out)
        there = pool.submit(lambda: model(tokens)).result(60)
        assert torch.equal(here, getattr(there, "logits", there))  # whoever calls
    assert pool is not None
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: sm.discover(subject, task, **ASKED)).result(60).circuit is not None


def test_a_hook_acts_in_its_own_thread_alone_and_a_turn_is_waited_for():
    hook = only_here(lambda x: x + 1, lambda x: x)
    module, order = torch.nn.Linear(1, 1), []

    def other():
        with turn(module):
            order.append("other")
        return hook(1)

    with ThreadPoolExecutor(1) as pool:
        with turn(module), turn(module):
            waiting = pool.submit(other)
            threading.Event().wait(0.05)
            order.append("mine")
        assert waiting.result(10) == 1
    assert hook(1) == 2
    assert order == ["mine", "other"]
