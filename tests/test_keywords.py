"""No keyword without effect: for each one of the public calls, a value that is not the default, and what it changes."""

import inspect
import re

import numpy as np
import pytest
import torch
from torch import nn

import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.api.data import discover_data
from spex_mech.api.discover import decode, discover
from spex_mech.api.features import discover_features
from spex_mech.api.plan import plan_run
from spex_mech.api.shards import Shard, merge_shards, respond_shard
from spex_mech.lenses.segments import Segments

LAYOUT = planted.PlantedLayout(n_layers=2, n_heads=6, d_mlp=0)
AND = ("a0.h1", "a1.h0")
REVIEW = "The plot is not good but the music is very nice"
X = np.random.default_rng(0).normal(size=(12, 2))
Y, TEST = X @ [1.0, -2.0], X[:2] + 0.1


def task_of(subject, n_prompts=3):
    return planted.task(n_prompts=n_prompts, seed=0)


SUBJECT = planted.conjunction(AND, layout=LAYOUT, spread=0.3)
OTHER = planted.backup(AND, layout=LAYOUT, spread=0.3)
MODEL = {
    "subject": SUBJECT, "task": task_of(SUBJECT), "components": "a*.h*", "budget": 300, "decoder": "linear",
    "link": "identity",
}  # fmt: skip


def sentiment(texts):
    return [1.0 * ("good" in t) - 2.0 * ("not" in t and "good" in t) + 0.01 * len(t) for t in texts]


def two(texts):
    return [[len(t), t.count(" ")] for t in texts]


class Tokens:
    """Characters as tokens."""

    is_fast, bos_token_id, mask_token_id = True, 0, 1

    def __call__(self, text, return_offsets_mapping=False, return_special_tokens_mask=False, **_):
        found = {"input_ids": [2 + len(text) % 3 for _ in text]}
        found["offset_mapping"] = [(i, i + 1) for i in range(len(text))]
        found["special_tokens_mask"] = [0] * len(text)
        return found


TEXT = {"value": sentiment, "prompt": REVIEW, "budget": 300, "decoder": "linear", "link": "identity"}
DATA = {
    "learner": "linear", "x": X, "y": Y, "test_x": TEST, "budget": 300, "decoder": "linear", "link": "identity",
}  # fmt: skip


def count(kept):
    return float(len(kept))


def counts(kept):
    return [float(len(kept)), 1.0]


def tiny():
    from tiny_models import tiny as make

    return make("gpt2")


def net():
    torch.manual_seed(0)
    return nn.Linear(2, 1)


NET = {"learner": net(), "y": Y, "budget": 40, "steps": 2}
LEFT = Segments(("3", "4", "5"), ("", " ", " ", ""), "token", (2, 3, 4, 5), (1, 2, 3))  # the first token always stays
TINY = {"value": tiny(), "prompt": LEFT, "answer": 2, "budget": 8, "decoder": "exact"}
FUNCTION = {"learner": count, "x": None, "y": None, "test_x": None, "examples": 12, "budget": 60}

# keyword → (what else is asked beside the defaults above, the value)
ASKED = {
    "budget": ({}, 200),
    "keep_prob": ({}, 0.8),
    "decoder": ({}, "proxyspex"),
    "link": ({}, "logistic"),
    "seed": ({}, 1),
    "folds": ({}, 3),
    "resamples": ({}, 2),
}
HOW = {"out", "progress", "workers"}  # change where and how, not what comes out: below
DISCOVER = ASKED | {
    "subject": ({}, OTHER), "task": ({}, task_of(SUBJECT, 2)), "components": ({}, "a0.h*"),
    "replacement": ({}, "zero"), "per": ({}, "pooled"), "shared_layers": ({}, 2), "refine": ({}, True),
    "rows": ({"budget": None}, 900), "prompts_per_mask": ({}, 1),
}  # fmt: skip
FEATURES = ASKED | {
    "value": ({}, lambda texts: [2.0 * v for v in sentiment(texts)]), "prompt": ({}, REVIEW + " indeed"),
    "into": ({}, "sentences"), "before": ({}, "Review: "), "after": ({}, " end"), "ablation": ({}, "mask"),
    "filler": ({"ablation": "mask"}, "…"), "tokenizer": ({**TINY, "answer": "x"}, Tokens()), "metric": (TINY, "prob"),
    "answer": (TINY, 1), "distractors": ({**TINY, "metric": "logit_diff", "distractors": [3]}, [4]),
    "unit": ({}, "star"), "outputs": ({"value": two}, 2), "identity": ({}, "mine"),
}  # fmt: skip
EXAMPLES = ASKED | {
    "learner": ({"y": Y}, net()), "x": ({}, 2 * X), "y": ({}, 2 * Y), "test_x": ({}, 2 * TEST),
    "test_y": ({"learner": "linear", "y": Y > 0, "test_y": [True, False]}, [True, True]), "examples": (FUNCTION, 11),
    "groups": ({}, [[0, 1], [2], [3, 4, 5]]), "names": ({}, [f"row {i}" for i in range(12)]),
    "score": ({**NET, "test_y": [0.0, 1.0]}, "squared_error"), "l2": ({}, 9.0), "steps": (NET, 3), "lr": (NET, 0.5),
    "fit": (NET, lambda module, x, y: None), "unit": (FUNCTION, "star"), "identity": (FUNCTION, "mine"),
    "outputs": ({**FUNCTION, "learner": counts}, 2),
}  # fmt: skip
WIDER = planted.conjunction(AND, layout=planted.PlantedLayout(n_layers=2, n_heads=7, d_mlp=0))
PLANNED = "task", "components", "budget", "rows", "prompts_per_mask", "shared_layers"
PLAN = {name: DISCOVER[name] for name in PLANNED} | {
    "subject": ({}, WIDER),
    "keep_prob": ({}, "coded"), "gpu": ({}, "h100"), "price_per_hour": ({}, 3.0), "simulate": ({}, True),
    "clock": ({}, lambda: 0.0), "replacement": ({}, "none"), "decoder": ({}, "exact"),
    "seed": ({"simulate": True}, 1), "per": ({}, "nothing"),
}  # fmt: skip
SHARED = (
    "subject",
    "task",
    "components",
    "budget",
    "rows",
    "prompts_per_mask",
    "keep_prob",
    "seed",
    "replacement",
    "per",
    "shared_layers",
)
SHARD = {name: DISCOVER[name] for name in SHARED} | {
    "decoder": ({"budget": 4096}, "spex"), "shard": ({}, Shard(1, 2)), "out": ({}, None),
}  # fmt: skip


def everything(found):
    """All that a run says, without what changes from call to call."""
    record = {k: v for k, v in found.record.items() if k not in ("seconds", "asked")}
    record["decoder"] = {
        **record["decoder"],
        "stats": {k: v for k, v in found.decoded.stats.items() if "second" not in k},
    }
    roles = {node.name: node.role for node in found.circuit.nodes}
    text = str((record, roles, found.interactions().to_csv(), found.responses.values.tolist(), found.responses.unit))
    return re.sub(r"'\w*seconds': [0-9.e-]+", "", text)


def outcome(call, arguments):
    """What came out, or the error that says why nothing did."""
    try:
        found = call(**arguments)
    except sm.SpexMechError as error:
        return f"{type(error).__name__}: {error}"
    return everything(found) if isinstance(found, sm.Discovery) else re.sub(r"seconds=[0-9.e-]+\)", "", str(found))


CALLS = {discover: (MODEL, DISCOVER), discover_features: (TEXT, FEATURES), discover_data: (DATA, EXAMPLES)}


@pytest.mark.parametrize(
    ("call", "keyword"), [(call, keyword) for call, (_, table) in CALLS.items() for keyword in table],
    ids=lambda value: getattr(value, "__name__", value),
)  # fmt: skip
def test_every_keyword_of_a_run_changes_what_comes_out(call, keyword):
    base, table = CALLS[call]
    beside, value = table[keyword]
    arguments = base | beside
    one, other = outcome(call, arguments), outcome(call, arguments | {keyword: value})
    assert one != other
    assert "Error: " not in (other if keyword in ("tokenizer", "outputs") else one)  # else two errors are compared


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_the_same_question_has_the_same_answer(call):
    arguments = CALLS[call][0] | {"resamples": 2}
    assert outcome(call, arguments) == outcome(call, arguments)


@pytest.mark.parametrize("keyword", PLAN)
def test_every_keyword_of_a_plan_changes_it(keyword):
    beside, value = PLAN[keyword]
    base = {k: v for k, v in MODEL.items() if k != "link"} | {"clock": iter(range(1000)).__next__} | beside
    assert outcome(plan_run, base) != outcome(plan_run, base | {keyword: value})


@pytest.mark.parametrize("keyword", [k for k in SHARD if k != "out"])
def test_every_keyword_of_a_share_changes_its_journal(keyword, tmp_path):
    beside, value = SHARD[keyword]
    base = {k: v for k, v in MODEL.items() if k != "link"} | beside

    def key(name, **more):
        respond_shard(**(base | more), out=tmp_path / name)
        responses = merge_shards([tmp_path / name], tmp_path / f"{name}-whole")
        return str((responses.provenance, responses.components.names))

    first = key("one")
    try:
        second = key("other", **{keyword: value})
    except sm.SpexMechError as error:
        second = str(error)
    assert first != second


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_where_and_how(call, tmp_path, capsys):
    arguments = CALLS[call][0] | {"budget": 40}
    call(**arguments, out=tmp_path / "run")
    assert sm.load_run(tmp_path / "run").record["masks"] == 40
    assert not capsys.readouterr().err
    call(**arguments, progress=True)
    assert "40 masks" in capsys.readouterr().err
    with pytest.raises(sm.SpexMechError, match="workers"):
        call(**arguments, workers=2)


def test_functions_are_asked_in_batches_and_trainings_in_processes():
    sizes = []

    def spy(texts):
        sizes.append(len(texts))
        return sentiment(texts)

    for rows in (5, 32):
        sizes.clear()
        discover_features(**TEXT | {"value": spy, "budget": 40, "batch_rows": rows})
        assert max(sizes) == rows
    with pytest.raises(sm.SpexMechError, match="0 processes"):
        discover_data(**DATA, processes=0)


def test_no_keyword_is_missing_here():
    others = {discover: HOW, discover_features: HOW | {"batch_rows"}, discover_data: HOW | {"processes"}}
    for call, (_, table) in CALLS.items():
        assert set(inspect.signature(call).parameters) == set(table) | others[call]
    assert set(inspect.signature(plan_run).parameters) == set(PLAN)
    assert set(inspect.signature(respond_shard).parameters) == set(SHARD) | {"progress", "workers"}
    assert set(inspect.signature(merge_shards).parameters) == {"folders", "out"}
    assert set(inspect.signature(decode).parameters) == {
        "responses",
        "decoder",
        "link",
        "seed",
        "out",
        "folds",
        "resamples",
    }


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("budget", "a hundred"), ("budget", 1e2), ("budget", 0), ("budget", True), ("seed", None), ("seed", -1),
     ("seed", 1 << 63), ("keep_prob", None), ("keep_prob", [None]), ("keep_prob", []), ("keep_prob", 1.0),
     ("keep_prob", "most"), ("keep_prob", True), ("decoder", "oracle"), ("decoder", None), ("link", "cubic"),
     ("folds", 1), ("folds", 1.5), ("resamples", 3), ("out", 7), ("workers", 2)],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_everywhere_before_anything_is_measured(keyword, value, monkeypatch):
    monkeypatch.setattr("spex_mech.ablation.respond.Engine.values", lambda *_: pytest.fail("masks were measured"))
    for call, arguments in ((discover, MODEL), (discover_features, TEXT), (discover_data, DATA)):
        with pytest.raises(sm.SpexMechError, match=keyword.split("_")[0]):
            call(**arguments | {keyword: value})


def test_all_that_cannot_be_is_told_at_once():
    with pytest.raises(sm.SpexMechError) as told:
        discover(**MODEL | {"budget": 0, "decoder": "oracle", "shared_layers": 0, "per": "row", "replacement": "one"})
    for part in ("5 things", "budget=0", "no decoder 'oracle'", "shared_layers=0", "'row'", "no replacement 'one'"):
        assert part in str(told.value)


def test_numbers_of_numpy_are_numbers(tmp_path):
    arguments = {"budget": np.int64(60), "seed": np.int32(3), "keep_prob": np.array([0.5, 0.9])}
    found = discover(**MODEL | arguments, out=tmp_path)
    plain = discover(**MODEL | {"budget": 60, "seed": 3, "keep_prob": [0.5, 0.9]}, out=tmp_path)
    assert plain.record["resumed_masks"] == 60
    assert sm.load_run(tmp_path).record["asked"] == found.record["asked"]


@pytest.mark.parametrize("call", [discover, plan_run, respond_shard, decode, merge_shards])
def test_options_are_keywords(call):
    kinds = [p.kind for p in inspect.signature(call).parameters.values()]
    assert sum(kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for kind in kinds) <= 3
