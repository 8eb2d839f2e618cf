"""The circuit in the user's own calls: the same values as the engine's, on every backend, and nothing left behind."""

import re

import pytest
import torch
from legacy_hooked import from_gpt2, legacy_hooked
from tiny_models import bridge_of, tiny, tokens_task

import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.ablation.replacement import fit_replacement
from spex_mech.ablation.respond import respond
from spex_mech.errors import ComponentError, ModelError, TaskError
from spex_mech.tasks.metrics import Scored, logit_diff

EXPRESSION = "a*.h*, m0.n*, m1, a1@p-1"


def wrapped(backend, family="gpt2"):
    """A model and the subject it is bound to."""
    from nnsight import NNsight

    model = tiny(family)
    if backend == "legacy":
        model = legacy_hooked()
        model.load_state_dict(from_gpt2(tiny(family)))
    else:
        model = {"torch": lambda m: m, "bridge": bridge_of, "nnsight": NNsight}[backend](model)
    return model, sm.bind(model)


def logits_of(model, backend, tokens):
    """A user's own call."""
    with torch.no_grad():
        if backend == "nnsight":
            with model.trace(tokens):
                saved = model.output.logits.save()
            return saved.clone()
        out = model(tokens)
    return getattr(out, "logits", out)


def measured(model, backend, task):
    """The metric of every prompt by the user's own calls, one length at a time."""
    values = torch.empty(len(task))
    for length, rows in task.prompts.by_length().items():
        logits = logits_of(model, backend, task.prompts.tokens[rows, :length])
        at = logits[torch.arange(len(rows)), task.positions[rows]]
        values[rows] = logit_diff(Scored(at, rows, task.answers[rows], task.distractors[rows]))
    return values


def clean(module):
    return not any(m._forward_pre_hooks or m._forward_hooks for m in module.modules())


def some_names(components, seed=0):
    keep = torch.rand(len(components), generator=torch.Generator().manual_seed(seed)) < 0.6
    return keep, [name for name, kept in zip(components.names, keep.tolist(), strict=True) if kept]


@pytest.mark.parametrize("kind", ["mean", "zero", "resample"])
@pytest.mark.parametrize("backend", ["torch", "bridge", "legacy", "nnsight"])
def test_own_calls_give_the_engines_values(backend, kind):
    model, subject = wrapped(backend)
    task, components = tokens_task(ragged=kind == "zero"), sm.select(subject, EXPRESSION)
    reference = fit_replacement(subject, task, components, kind=kind)
    before = measured(model, backend, task)
    keep, names = some_names(components)
    expected = respond(subject, task, components, [keep[None]], reference)[0]
    assert (expected - before).abs().min() > 1e-3
    options = {"components": components, "task": task, "replacement": kind}
    for form in (names, keep):
        with sm.ablated(subject, keep=form, **options) as same:
            assert same is model
            assert (measured(model, backend, task) - expected).abs().max() <= 1e-5
    with sm.ablated(subject, ablate=[n for n in components.names if n not in names], task=task, replacement=kind):
        assert (measured(model, backend, task) - expected).abs().max() <= 1e-5
    assert torch.equal(measured(model, backend, task), before)


@pytest.mark.parametrize("family", ["llama", "opt", "mixtral", "pythia"])
def test_own_calls_of_other_families(family):
    model, subject = wrapped("torch", family)
    task, components = tokens_task(), sm.select(subject, "a*.h*, m1, a0.h1@p2")
    keep, names = some_names(components)
    reference = fit_replacement(subject, task, components)
    expected = respond(subject, task, components, [keep[None]], reference)[0]
    with sm.ablated(subject, keep=names, components=components, task=task):
        assert (measured(model, "torch", task) - expected).abs().max() <= 1e-5
    assert clean(model)


@pytest.mark.parametrize("backend", ["torch", "bridge", "legacy", "nnsight"])
def test_no_hook_stays_when_the_block_raises(backend):
    model, subject = wrapped(backend)
    task = tokens_task()
    before = measured(model, backend, task)

    def leave():
        with sm.ablated(subject, ablate="a0.h1, m1", replacement="zero"):
            assert not torch.equal(measured(model, backend, task), before)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        leave()
    assert torch.equal(measured(model, backend, task), before)


def test_keeping_everything_changes_no_bit():
    model, subject = wrapped("torch")
    tokens = tokens_task().prompts.tokens
    before = logits_of(model, "torch", tokens)
    with sm.ablated(subject, keep="a*.h*, m*", replacement="zero"):
        assert clean(model) or torch.equal(logits_of(model, "torch", tokens), before)
        assert torch.equal(logits_of(model, "torch", tokens), before)


@pytest.mark.parametrize("backend", ["bridge", "legacy"])
@pytest.mark.parametrize("kind", ["mean", "zero", "resample"])
def test_plain_hooks_for_run_with_hooks(backend, kind):
    model, subject = wrapped(backend)
    task, components = tokens_task(), sm.select(subject, EXPRESSION)
    _, names = some_names(components)
    options = {"keep": names, "components": components, "task": task, "replacement": kind}
    with sm.ablated(subject, **options), torch.no_grad():
        expected = model(task.prompts.tokens)
    found = sm.hooks(subject, **options)
    assert {name for name, _ in found} <= set(model.hook_dict)
    with torch.no_grad():
        assert torch.equal(model.run_with_hooks(task.prompts.tokens, fwd_hooks=found), expected)
        assert not torch.equal(model(task.prompts.tokens), expected)


def test_hooks_of_the_users_own_stay_in_force():
    model, subject = wrapped("bridge")
    seen = []
    model.add_hook("blocks.0.attn.hook_z", lambda tensor, hook: seen.append(tuple(tensor.shape)))
    seen.clear()
    tokens = tokens_task().prompts.tokens
    with sm.ablated(subject, ablate="a1.h0", replacement="zero"), torch.no_grad():
        model(tokens)
    with torch.no_grad():
        model(tokens)
    assert len(seen) == 2


def test_a_traces_own_edits_still_work():
    model, subject = wrapped("nnsight")
    tokens = tokens_task().prompts.tokens
    with sm.ablated(subject, ablate="a0.h0", replacement="zero"):
        plain = logits_of(model, "nnsight", tokens)
        with torch.no_grad(), model.trace(tokens):
            model.transformer.h[1].mlp.output = model.transformer.h[1].mlp.output * 0
            edited = model.output.logits.save()
    assert not torch.allclose(plain, edited)
    with sm.ablated(subject, ablate="a0.h0, m1", replacement="zero"):
        both = logits_of(model, "nnsight", tokens)
    assert torch.allclose(both, edited, atol=1e-5)


@pytest.fixture(scope="module")
def discovered():
    model, subject = wrapped("bridge")
    task = tokens_task()
    found = sm.discover(subject, task, components="a*.h*, m*", budget=1024)
    return model, subject, task, found


def test_a_circuit_brings_the_values_of_its_run(discovered):
    model, subject, task, found = discovered
    circuit = found.circuit.top(6)
    kept = [name in circuit.names for name in found.components.names]
    row = (found.responses.keep == torch.tensor(kept)).all(1).nonzero()[0, 0]
    with sm.ablated(subject, keep=circuit):
        assert (measured(model, "bridge", task) - found.responses.values[row]).abs().max() <= 1e-5
    with sm.ablated(model, keep=circuit):  # bound anew
        assert (measured(model, "bridge", task) - found.responses.values[row]).abs().max() <= 1e-5
    with torch.no_grad():
        logits = model.run_with_hooks(task.prompts.tokens, fwd_hooks=sm.hooks(subject, circuit))
    at = logits[torch.arange(len(task)), task.positions]
    values = logit_diff(Scored(at, torch.arange(len(task)), task.answers, task.distractors))
    assert (values - found.responses.values[row]).abs().max() <= 1e-5


def test_a_circuit_from_a_file_needs_the_task_and_says_so(discovered, tmp_path):
    model, _, task, found = discovered
    circuit = sm.load_circuit(found.circuit.top(6).save(tmp_path / "c.json"))
    other = sm.bind(bridge_of(tiny("gpt2")))
    with pytest.raises(TaskError, match=r"mean replacement needs the prompts.*task="), sm.ablated(other, keep=circuit):
        pass
    with sm.ablated(other, keep=circuit, task=task):
        kept = measured(other.model, "bridge", task)
    with sm.ablated(model, keep=circuit):
        assert torch.allclose(kept, measured(model, "bridge", task), atol=1e-5)


def test_other_values_and_other_weights_are_told(discovered):
    _, subject, task, found = discovered
    with pytest.warns(UserWarning, match="not those of the circuit's run"):
        sm.hooks(subject, found.circuit, tokens_task(seed=5))
    with pytest.warns(UserWarning, match="weights are not those"):
        sm.hooks(bridge_of(tiny("gpt2", seed=3)), found.circuit, task)


def test_a_warning_names_the_users_own_line(discovered):
    found = discovered[-1]
    other, task = bridge_of(tiny("gpt2", seed=3)), tokens_task()
    model = tiny("gpt2")
    model.transformer.h[0].mlp.register_forward_hook(lambda *_: None)

    def ablated():
        with sm.ablated(other, found.circuit, task):
            pass

    calls = {
        "ablated": ablated,
        "hooks": lambda: sm.hooks(other, found.circuit, task),
        "bind": lambda: sm.bind(model),
        "with_prompt": lambda: sm.with_prompt(model, task),
        "discover": lambda: sm.discover(model, task, "a0.h*", budget=16),
    }
    for call in calls.values():
        with pytest.warns(UserWarning, match="weights are not|hooks of yours") as caught:
            call()
        (told,) = (warning for warning in caught if re.search("weights are not|hooks of yours", str(warning.message)))
        first = call.__code__.co_firstlineno
        assert told.filename == __file__
        assert told.lineno == first + (call is ablated)


def test_nodes_by_transformer_lens_names(discovered):
    _, subject, _, found = discovered
    frame = sm.tl.hook_frame(subject, found.circuit)
    assert frame.loc[("blocks.1.attn.hook_z", 2), "component"] == "a1.h2"
    assert frame.loc[("blocks.0.hook_mlp_out", -1), "component"] == "m0"
    assert len(frame) == len(found.circuit.nodes)
    rows = sm.tl.hook_interactions(subject, found.circuit)
    assert len(rows) == sum(i.order for i in found.circuit.interactions)
    mine = rows.loc[[("blocks.1.attn.hook_z", 2)]]
    expected = [i for i in found.circuit.interactions if "a1.h2" in i.components]
    assert list(mine["components"]) == [i.components for i in expected]
    assert list(mine["coefficient"]) == [i.coefficient for i in expected]
    assert set(mine["member"]) == {"a1.h2"}
    assert [found.circuit.interactions[i] for i in mine["interaction"]] == expected
    assert sm.tl.hook_interactions(subject, found.circuit.top(0)).empty
    with pytest.raises(ModelError, match=r"sm\.ablated"):
        sm.tl.hook_frame(tiny("gpt2"), found.circuit)
    with pytest.raises(ModelError, match=r"sm\.ablated"):
        sm.hooks(tiny("gpt2"), found.circuit)


def test_pooled_means_serve_generation_and_means_per_position_refuse_it():
    model, subject = wrapped("torch")
    task = tokens_task()
    prompt = {"input_ids": task.prompts.tokens, "max_new_tokens": 3, "do_sample": False}
    prompt["attention_mask"] = torch.ones_like(task.prompts.tokens)
    plain = model.generate(**prompt)
    with sm.ablated(subject, ablate="a*.h*", task=task, per="pooled"):
        assert not torch.equal(model.generate(**prompt), plain)
    with sm.ablated(subject, ablate="a0.h0", task=task), pytest.raises(TaskError, match=r"7 tokens, and this call has"):
        model.generate(**prompt)
    assert clean(model)


def test_resampling_refuses_other_rows_and_takes_named_ones():
    model, subject = wrapped("torch")
    task = tokens_task()
    with (
        sm.ablated(subject, ablate="a0.h0", task=task, replacement="resample"),
        pytest.raises(TaskError, match=r"3 prompts.*1 rows"),
    ):
        model(task.prompts.tokens[:1])
    with sm.ablated(subject, ablate="a0.h0", task=task, replacement="resample"):
        whole = logits_of(model, "torch", task.prompts.tokens)
    with sm.ablated(subject, ablate="a0.h0", task=task, replacement="resample", rows=[2]):
        assert torch.allclose(logits_of(model, "torch", task.prompts.tokens[2:]), whole[2:], atol=1e-5)


def test_a_fitted_replacement_can_be_given():
    model, subject = wrapped("torch")
    task, components = tokens_task(), sm.select(subject, "a*.h*")
    fitted = fit_replacement(subject, task, components)
    with sm.ablated(subject, ablate="a1.h1", task=task):
        expected = measured(model, "torch", task)
    with sm.ablated(subject, ablate="a1.h1", replacement=fitted):
        assert torch.equal(measured(model, "torch", task), expected)
    with (
        pytest.raises(TaskError, match="no values for layer 1 mlp"),
        sm.ablated(subject, ablate="m1", replacement=fitted),
    ):
        pass


def test_planted_subjects_yield_a_function_of_tokens():
    subject = planted.backup(["a0.h1", "a1.h0"], strength=2.0)
    task = planted.task(4)
    for ablate, value in (("a0.h1", 2.0), ("a0.h1, a1.h0", 0.0)):
        with sm.ablated(subject, ablate=ablate, task=task) as model:
            logits = model(task.prompts.tokens)
        assert torch.allclose(logits[:, -1, 1] - logits[:, -1, 0], torch.tensor(value))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "either what is kept"),
        ({"keep": "a0.h0", "ablate": "a0.h1"}, "either what is kept"),
        ({"keep": "a7.h0"}, "a7.h0"),
        ({"keep": ["m0.n3"]}, "not among"),
        ({"keep": torch.ones(3)}, "one Boolean"),
        ({"ablate": "a0.h0", "components": "a*.h*"}, "goes with keep"),
    ],
)
def test_mistakes_are_told_before_a_hook_is_set(options, words):
    model, subject = wrapped("torch")
    with pytest.raises(ComponentError, match=words), sm.ablated(subject, replacement="zero", **options):
        pass
    assert clean(model)
