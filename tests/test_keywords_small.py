"""Keywords of public functions that make no run change what comes out; runs and audits have tables of their own."""

import inspect

import pytest
import torch
from tiny_models import bridge_of, tiny, tokens_task

import spex_mech as sm
from spex_mech.ablation.backends import planted

RUNS = {"audit", "audit_circuit", "discover", "discover_data", "discover_features", "plan_run"}  # test_keywords*.py
VALUES = {"bind", "cards", "group", "load_audit", "load_circuit", "load_run", "mlps", "open_card", "read_circuit"}
"""Functions of what they are given alone, whose every test would fail if they did not look at it."""
NOT_SEEN = {"seconds", "device", "tokenizer", "kind", "model", "prompts", "reference", "task"}
"""A time limit, and where or how a model, prompts or roles are read: tested where they are read."""
SUBJECT = planted.polynomial(
    {("a0.h0", "a1.h1"): 2.0, ("a0.h1",): 1.0, ("m0.n1",): -0.5, ("a0.h0", "a0.h1"): -0.7},
    layout=planted.PlantedLayout(n_layers=2, n_heads=2, d_mlp=2), spread=0.3,
)  # fmt: skip
HEADS = sm.heads(SUBJECT)
MODEL = tiny("gpt2")
BOUND = sm.bind(MODEL)
TASK = tokens_task()
ALONE = tokens_task(corrupt=None)  # whose partners are drawn
DRAWN = {"replacement": "resample"}


def logits(keep=("a0.h0",), task=TASK, **options):
    """What the model says on the prompts inside `ablated`."""
    given = options if "ablate" in options else {"components": "a*.h*"} | options
    with sm.ablated(BOUND, None if "ablate" in options else keep, task, **given) as model, torch.no_grad():
        return model(TASK.prompts.tokens).logits.sum().item()


def hooked(keep=("a0.h0",), task=TASK, **options):
    """The same by TransformerLens' hooks: their names, and what they make of ones."""
    given = options if "ablate" in options else {"components": "a*.h*"} | options
    made = sm.hooks(BRIDGE, None if "ablate" in options else keep, task, **given)
    tokens = TASK.prompts.tokens
    with torch.no_grad():
        return [name for name, _ in made], BRIDGE.model.run_with_hooks(tokens, fwd_hooks=made).sum().item()


BRIDGE = sm.bind(bridge_of(tiny("gpt2")))


def backups(**options):
    terms = {(0,): 1.0, (1,): 1.0, (0, 1): -0.99, (2,): 1.0, (3,): 1.0, (2, 3): -0.5}
    three = {(0, 2): -0.9, (1, 2): -0.9, (0, 1, 2): 0.88}
    errors = {(): 0.0} | dict.fromkeys(terms | three, 0.02)
    spectrum = sm.Spectrum.from_terms(4, {(): 0.0} | terms | three, sm.Basis("walsh"), errors)
    return [str(group) for group in sm.find_backups(spectrum, HEADS, **options)]


def polynomial():
    return sm.Spectrum.from_terms(4, {(): 0.0, (0,): 1.0, (1,): -0.8, (0, 1): 0.6, (2, 3): 0.5, (3,): 0.1})


def chosen(size=2, **options):
    return str(sm.choose(polynomial(), HEADS, size, **options))


def path(sizes=(1, 2, 3), **options):
    return [str(selection) for selection in sm.choose_path(polynomial(), HEADS, sizes, **options)]


def crossed(**options):
    """Sets of size 1 and 2 of which the best are not nested."""
    spectrum = sm.Spectrum.from_terms(4, {(): 0.0, (0,): 1.0, (1,): 0.9, (2,): 0.9, (1, 2): 1.5, (0, 1): -1.0})
    return [str(one) for one in sm.choose_path(spectrum, HEADS, (1, 2), aim="raise", **options)]


def opened(attribute, **options):
    study = sm.open_study("planted-and", **options)
    return study.components.names if attribute == "components" else study.task.metric


def prompted(**options):
    subject = sm.with_prompt(MODEL, TASK, **options)
    tokens = TASK.prompts.tokens
    everything = sm.select(subject, "t*") if "parts" not in options else sm.select(subject, "s*")
    with sm.ablated(subject, keep=[], components=everything, task=TASK) as model, torch.no_grad():
        out = model(tokens)
        return everything.names, getattr(out, "logits", out).sum().item()


FOUND = sm.discover(SUBJECT, planted.task(4), "a*.h*, m*.n*", budget=256)
AUDIT = sm.audit(FOUND, SUBJECT, planted.task(4), budget=200)

# function → keyword → (called without it, called with it)
CALLS = {
    "ablated": {
        "keep": (lambda: logits(), lambda: logits(keep=("a0.h1",))),
        "ablate": (lambda: logits(), lambda: logits(ablate="a0.h0")),
        "components": (lambda: logits(), lambda: logits(components="a0.h*")),
        "replacement": (lambda: logits(), lambda: logits(replacement="zero")),
        "per": (lambda: logits(), lambda: logits(per="pooled")),
        "seed": (lambda: logits(task=ALONE, **DRAWN), lambda: logits(task=ALONE, seed=3, **DRAWN)),
        "rows": (lambda: logits(replacement="resample"), lambda: logits(replacement="resample", rows=[1, 0, 2])),
    },
    "hooks": {
        "keep": (lambda: hooked(), lambda: hooked(keep=("a0.h1",))),
        "ablate": (lambda: hooked(), lambda: hooked(ablate="a0.h0")),
        "components": (lambda: hooked(), lambda: hooked(components="a0.h*")),
        "replacement": (lambda: hooked(), lambda: hooked(replacement="zero")),
        "per": (lambda: hooked(), lambda: hooked(per="pooled")),
        "seed": (lambda: hooked(task=ALONE, **DRAWN), lambda: hooked(task=ALONE, seed=3, **DRAWN)),
        "rows": (lambda: hooked(replacement="resample"), lambda: hooked(replacement="resample", rows=[1, 0, 2])),
    },
    "choose": {
        "aim": (lambda: chosen(), lambda: chosen(aim="lower")),
        "method": (lambda: chosen(), lambda: chosen(method="greedy")),
    },
    "choose_path": {
        "sizes": (lambda: path(), lambda: path(sizes=(2,))),
        "aim": (lambda: path(), lambda: path(aim="lower")),
        "nested": (lambda: crossed(), lambda: crossed(nested=True)),
        "method": (lambda: path(), lambda: path(method="greedy")),
    },
    "find_backups": {
        "q_threshold": (lambda: backups(), lambda: backups(q_threshold=1e-300)),
        "max_order": (lambda: backups(), lambda: backups(max_order=2)),
        "min_excess": (lambda: backups(), lambda: backups(min_excess=50.0)),
    },
    "heads": {"layers": (lambda: sm.heads(SUBJECT), lambda: sm.heads(SUBJECT, layers=[1]))},
    "neurons": {"layers": (lambda: sm.neurons(SUBJECT), lambda: sm.neurons(SUBJECT, layers=[1]))},
    "select": {"expression": (lambda: sm.select(SUBJECT, "a*.h*"), lambda: sm.select(SUBJECT, "a0.h*"))},
    "open_study": {
        "components": (lambda: opened("components"), lambda: opened("components", components="a0.h0")),
        "metric": (lambda: opened("metric"), lambda: opened("metric", metric="logit")),
    },
    "report": {"audit": (lambda: len(sm.report(FOUND).html), lambda: len(sm.report(FOUND, AUDIT).html))},
    "with_prompt": {
        "parts": (lambda: prompted(), lambda: prompted(parts=[(0, 2), (2, 5)])),
        "filler": (lambda: prompted(), lambda: prompted(filler=7)),
    },
}


@pytest.mark.parametrize(("function", "keyword"), [(f, k) for f, rows in CALLS.items() for k in rows])
def test_a_keyword_changes_what_comes_out(function, keyword):
    without, given = CALLS[function][keyword]
    assert without() != given()


@pytest.mark.parametrize("function", ["ablated", "find_backups", "choose_path", "with_prompt"])
def test_the_same_call_says_the_same(function):
    for without, _ in CALLS[function].values():
        assert without() == without()


def test_every_keyword_of_every_public_function_is_in_a_table():
    public = {name for name in sm.__all__ if inspect.isfunction(getattr(sm, name))}
    assert public == RUNS | VALUES | set(CALLS) | {
        "export",
        "latents",
        "load_model",
        "site",
    }  # formats, models and sites of one's own have suites of their own
    for name, rows in CALLS.items():
        keywords = {
            p.name for p in inspect.signature(getattr(sm, name)).parameters.values() if p.default is not p.empty
        }
        assert not keywords - set(rows) - NOT_SEEN, name
