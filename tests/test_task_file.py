"""A task is a file that loses nothing: round trips of every generator, and what goes wrong between text and ids."""

import contextlib
import json
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import spex_mech as sm
from spex_mech.errors import SpexMechWarning, TaskError
from spex_mech.tasks.task import Task
from tests.test_tasks import Splitter, words

MAKERS: dict[str, Callable[..., Task]] = {
    **{
        name: lambda n, seed, name=name: sm.tasks.GENERATORS[name](Splitter(), n=n, seed=seed)
        for name in ("ioi", "gendered_pronouns", "greater_than", "docstring", "multiple_choice")
    },
    "induction": lambda n, seed: sm.tasks.induction(60, n=n, seed=seed, length=6, bos=59),
    "modular_arithmetic": lambda n, seed: sm.tasks.modular_arithmetic(7, n=n, seed=seed, operation="-"),
}


def everything(task: Task) -> dict:
    """All that a task holds, as plain values."""
    rows = [None if p is None else [p.row(i).tolist() for i in range(len(p))] for p in (task.corrupt, task.reference)]
    return {
        **task.describe(), "corrupt": rows[0], "reference": rows[1], "texts": task.texts, "notes": task.notes,
        "options": task.options, "tokenizer": task.tokenizer, "positions": task.positions.tolist(),
        "distractors": [[d for d in row if d >= 0] for row in task.distractors.tolist()],
    }  # fmt: skip


def test_every_generator_is_tried():
    assert set(MAKERS) == set(sm.tasks.GENERATORS)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(MAKERS)), st.integers(1, 6), st.integers(0, 5),
    st.sampled_from([None, "log_prob", "prob_diff", "kl"]), st.booleans(),
)  # fmt: skip
def test_a_task_survives_its_file(tmp_path, name, n, seed, metric, cut):
    task = MAKERS[name](n, seed)
    task = task if metric is None else task.with_metric(metric)
    task = task.take([n - 1, 0]) if cut else task  # the reference stays whole and is no longer the corrupt prompts
    task.to_jsonl(tmp_path / "x.jsonl")
    assert everything(Task.from_jsonl(tmp_path / "x.jsonl")) == everything(task)
    assert task.options["generator"] == name


def test_metric_reference_and_tokenizer_come_back(tmp_path):
    task = sm.tasks.ioi(words("bytes"), n=5, metric="prob_diff")
    task.to_jsonl(tmp_path / "x.jsonl")
    back = Task.from_jsonl(tmp_path / "x.jsonl")
    assert (back.metric, back.reference.tokens.equal(task.reference.tokens)) == ("prob_diff", True)
    assert back.tokenizer is not None
    assert Task.from_jsonl(tmp_path / "x.jsonl", words("bytes"), metric="log_prob").metric == "log_prob"
    assert len(Task.from_jsonl(tmp_path / "x.jsonl", limit=2)) == 2
    with pytest.raises(TaskError, match="the same ids are other words"):
        Task.from_jsonl(tmp_path / "x.jsonl", words("words"))


def test_a_function_of_ones_own_is_asked_for_again(tmp_path):
    def mine(logits, scored):
        return logits[:, 0]

    Task([[1, 2]], [3], metric=mine).to_jsonl(tmp_path / "x.jsonl")
    with pytest.raises(TaskError, match=r"a function of its author's, .*mine"):
        Task.from_jsonl(tmp_path / "x.jsonl")
    assert Task.from_jsonl(tmp_path / "x.jsonl", metric=mine).metric is mine


@pytest.mark.parametrize(
    "common",
    [
        {"metric": "best"}, {"metric": 3}, {"reference": [[]]}, {"reference": "x"}, {"notes": "x"}, {"options": []},
        {"tokenizer": 3}, {"answer": 3},
    ],
)  # fmt: skip
def test_a_wrong_first_line_is_named(tmp_path, common):
    (tmp_path / "x.jsonl").write_text(json.dumps({"task": common}) + '\n{"tokens": [1]}\n')
    with pytest.raises(TaskError, match=rf"line 1: .*{next(iter(common))}"):
        Task.from_jsonl(tmp_path / "x.jsonl")


class Special:
    """Words w0, w1 …; `first` before and `last` behind, 2 for all others."""

    unk_token_id = 2

    def __init__(self, first=(), last=()):
        self.first, self.last = list(first), list(last)

    def encode(self, text, add_special_tokens=True):
        known = {"<s>": 1, **{f"w{i}": 3 + i for i in range(20)}}
        ids = [known.get(word, 2) for word in text.split()]
        return [*self.first, *ids, *self.last] if add_special_tokens else ids


def prompts(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_text_is_scored_at_its_own_last_token(tmp_path):
    path = prompts(tmp_path / "p.jsonl", {"text": "w1 w2", "answer": "w3", "corrupt": "w2 w2"})
    task = Task.from_jsonl(path, Special(first=[1], last=[0]))
    assert (task.prompts.row(0).tolist(), task.corrupt.row(0).tolist()) == ([1, 4, 5], [1, 5, 5])
    assert task.positions.tolist() == [2]


def test_a_doubled_first_token_is_said_and_put_once(tmp_path):
    path = prompts(tmp_path / "p.jsonl", {"text": "<s> w5", "answer": "w3"}, {"text": "w5", "answer": "w3"})
    with pytest.warns(SpexMechWarning, match=r"1 prompts? begins? with the special token .*lines? 1"):
        task = Task.from_jsonl(path, Special(first=[1]))
    assert task.prompts.row(0).tolist() == task.prompts.row(1).tolist() == [1, 8]
    assert Task.from_jsonl(path, Special()).prompts.row(0).tolist() == [1, 8]


def test_words_the_tokenizer_does_not_know(tmp_path):
    path = prompts(tmp_path / "p.jsonl", {"text": "w5", "answer": "Mary"}, {"text": "w5", "answer": "John"})
    with pytest.raises(TaskError, match=r"(?s)'Mary' is unknown to the tokenizer.*'John' is unknown"):
        Task.from_jsonl(path, Special())
    path = prompts(tmp_path / "p.jsonl", {"text": "w5 there", "answer": "w1"})
    with pytest.warns(SpexMechWarning, match="words that the tokenizer does not know"):
        Task.from_jsonl(path, Special())


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", [0, 9])
def test_padding_without_its_mask_is_refused(side, pad):
    real = [[3, 4, 5, 6, 7], [4, 5]]
    rows = [row + [pad] * (5 - len(row)) if side == "right" else [pad] * (5 - len(row)) + row for row in real]
    for taken in (rows, torch.tensor(rows)):
        with pytest.raises(TaskError, match="look padded"):
            Task(taken, [1, 1])
    assert Task(rows, [1, 1], attention_mask=[[1] * 5] * 2).prompts.tokens.tolist() == rows  # the way out
    assert Task(real, [1, 1]).prompts.lengths.tolist() == [5, 2]


def test_what_a_tokenizer_returns_is_taken_whole():
    from transformers import BatchEncoding

    rows = {"input_ids": [[3, 4, 5], [4, 0, 0]], "attention_mask": [[1, 1, 1], [1, 0, 0]]}
    for taken in (rows, BatchEncoding(rows), BatchEncoding(rows, tensor_type="pt")):
        task = Task(taken, [1, 1])
        assert [task.prompts.row(i).tolist() for i in range(2)] == [[3, 4, 5], [4]]
        assert task.positions.tolist() == [2, 0]
    assert Task(BatchEncoding({"input_ids": [[3, 4, 5], [4]]}), [1, 1]).prompts.lengths.tolist() == [3, 1]
    assert Task(BatchEncoding({"input_ids": [3, 4], "attention_mask": [1, 1]}), [1]).prompts.tokens.tolist() == [[3, 4]]
    with pytest.raises(TaskError, match="needs input_ids"):
        Task({"ids": [[1]]}, [1])
    with pytest.raises(TaskError, match="Text needs a tokenizer"):
        Task("the cat", [1])


def test_an_unknown_metric_is_refused_where_it_is_given():
    with pytest.raises(TaskError, match="no metric 'logitdiff'"):
        Task([[1]], [1], metric="logitdiff")
    with pytest.raises(TaskError, match="no metric"):
        Task([[1]], [1]).with_metric(3)


def test_the_command_line_takes_metric_reference_and_per(tmp_path):
    from typer.testing import CliRunner

    from spex_mech.cli.main import app
    from spex_mech.gallery.studies import reopen

    (tmp_path / "ref.jsonl").write_text('{"tokens": [1, 2, 3, 4]}\n{"tokens": [4, 3, 2, 1]}\n')
    out = tmp_path / "run"
    asked = ["--metric", "log_prob", "--reference", str(tmp_path / "ref.jsonl"), "--per", "pooled", "--budget", "64"]
    done = CliRunner().invoke(app, ["discover", "induction-2l", "--out", str(out), *asked])
    assert done.exit_code == 0, done.output
    record = sm.load_run(out).record
    assert (record["task"]["metric"], record["task"]["reference_prompts"]) == ("log_prob", 2)
    assert (record["replacement"]["per"], record["replacement"]["kind"]) == ("pooled", "mean")
    again = reopen(out).task
    assert (again.metric, len(again.reference)) == ("log_prob", 2)
    assert CliRunner().invoke(app, ["plan", "induction-2l", *asked]).exit_code == 0
    shard = tmp_path / "s"
    assert CliRunner().invoke(app, ["respond", "induction-2l", "--out", str(shard), *asked]).exit_code == 0


def test_what_replaces_is_printed_as_asked(tmp_path):
    from typer.testing import CliRunner

    from spex_mech.cli.main import app

    asked = ["discover", "planted-and", "--out", str(tmp_path / "z"), "--replacement", "zero"]
    done = CliRunner().invoke(app, asked)
    assert "its mean" not in done.output
    assert "an ablated component is replaced by zero" in " ".join(done.output.split())


WILD = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 70), st.just(2**70), st.floats(allow_nan=True), st.text(max_size=3),
    st.binary(max_size=2), st.just(object()), st.lists(st.integers(-3, 9), max_size=3), st.just({"a": 1}),
    st.lists(
        st.lists(st.one_of(st.integers(-3, 9), st.text(max_size=2), st.none(), st.floats()), max_size=3), max_size=3
    ),
    st.builds(lambda s: torch.zeros(s), st.lists(st.integers(0, 2), max_size=3).map(tuple)),
)  # fmt: skip
GIVEN = {
    "tokens": [[1, 2, 3], [4, 5]], "answers": [1, 2], "distractors": [[3], [4]], "positions": -1,
    "metric": "logit_diff", "attention_mask": None, "corrupt": None, "reference": None, "texts": (), "also": None,
    "notes": (),
}  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(sorted(GIVEN)), WILD)
def test_a_task_of_anything_is_one_or_a_message_of_ours(name, value):
    with contextlib.suppress(sm.SpexMechError):
        task = Task(**GIVEN | {name: value})
        assert isinstance(task.describe(), dict)
        assert str(task)
