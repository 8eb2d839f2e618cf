"""Tasks, metrics and responses: round trips, every problem at once, hostile files."""

import contextlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spex_mech.components import ComponentSet, ModelShape
from spex_mech.errors import FormatError, ResponseError, TaskError
from spex_mech.store.responses import Responses, pack_bits, unpack_bits
from spex_mech.tasks.metrics import METRICS, Scored, resolve
from spex_mech.tasks.prompts import Prompts
from spex_mech.tasks.prompts_file import read_prompts
from spex_mech.tasks.task import Task

SHAPE = ModelShape("toy", (1,), (1,), (True,), (4,), 10, 3)


class Words:
    """A tokenizer of whole words, numbered in order of appearance."""

    def __init__(self):
        self.ids = {}

    def encode(self, text, add_special_tokens):
        return [self.ids.setdefault(w, len(self.ids)) for w in text.split()]


def write(path, *rows):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n")
    return path


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=6), min_size=1, max_size=6))
def test_prompts_keep_their_rows(rows):
    prompts = Prompts.from_rows(rows)
    assert [prompts.row(i).tolist() for i in range(len(rows))] == rows
    assert sorted(i for which in prompts.by_length().values() for i in which.tolist()) == list(range(len(rows)))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_is_taken_off(side):
    real = [[1, 2, 3], [4]]
    padded = [r + [0] * (3 - len(r)) if side == "right" else [0] * (3 - len(r)) + r for r in real]
    mask = [[int(t > 0) for t in row] for row in padded]
    task = Task(torch.tensor(padded), [1, 1], [[2], [2]], attention_mask=torch.tensor(mask))
    assert [task.prompts.row(i).tolist() for i in range(2)] == real
    assert task.positions.tolist() == [2, 0]


def test_jsonl_round_trip(tmp_path):
    task = Task([[1, 2], [3]], [4, 5], [[6, 7], [8]], [-1, 0], corrupt=[[2, 1], [9]], texts=["a b", "c"])
    task.to_jsonl(tmp_path / "p.jsonl")
    again = Task.from_jsonl(tmp_path / "p.jsonl")
    assert again.describe() == task.describe()
    assert again.texts == task.texts


def test_text_needs_a_tokenizer_and_answers_one_token(tmp_path):
    row = {"text": "the cat sat", "answer": "down", "distractors": ["up"], "corrupt": "the dog sat"}
    path = write(tmp_path / "p.jsonl", row)
    task = Task.from_jsonl(path, tokenizer=Words())
    assert task.prompts.row(0).tolist() == [0, 1, 2]
    with pytest.raises(TaskError, match="no tokenizer"):
        Task.from_jsonl(path)
    with pytest.raises(TaskError, match=r"'sit down' is 2 tokens"):
        Task.from_jsonl(write(path, {**row, "answer": "sit down"}), tokenizer=Words())


def test_all_problems_of_a_file_at_once(tmp_path):
    path = write(
        tmp_path / "p.jsonl",
        {"tokens": [1], "answer": 1.5},
        {"tokens": ["x"], "answer": 1},
        {"tokens": [1], "answer": 1, "distractors": 3},
        {"tokens": [10**30], "answer": True},
        {"tokens": [1], "answer": 1, "position": "last"},
    )
    with pytest.raises(TaskError) as error:
        Task.from_jsonl(path)
    assert all(f"line {n}" in str(error.value) for n in range(1, 6))


@pytest.mark.parametrize(
    "text", ["", "\n\n", "{", "[1]", '{"answer": 1}', '{"tokens": []}', '{"tokens": [1], "answr": 2}', "[" * 5000]
)
def test_hostile_prompt_files(tmp_path, text):
    with pytest.raises(TaskError):
        Task.from_jsonl(write(tmp_path / "p.jsonl", text))
    with pytest.raises(TaskError):
        Task.from_jsonl(tmp_path / "nothing.jsonl")


@settings(max_examples=50)
@given(st.text(max_size=80))
def test_any_text_is_a_task_or_a_task_error(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("fuzz") / "p.jsonl"
    path.write_text(text, encoding="utf-8", errors="replace")
    with pytest.raises(TaskError):
        read_prompts(path)


def test_ids_outside_the_vocabulary_are_all_named():
    task = Task([[1, 12], [3]], [1, 7], [[2], [0]])
    with pytest.raises(TaskError, match=r"prompt 1: token 12 .*\n.*prompt 2: answer 7"):
        task.check(SHAPE)
    assert Task([[1, 9]], [2], [[0]]).check(SHAPE)


def test_shapes_that_do_not_fit():
    with pytest.raises(TaskError, match="positions lie outside"):
        Task([[1, 2]], [0], positions=[5])
    with pytest.raises(TaskError, match="answers has shape"):
        Task([[1, 2]], [0, 1])
    with pytest.raises(TaskError, match="corrupt"):
        Task([[1, 2]], [0], corrupt=[[1, 2], [3, 4]])
    with pytest.raises(TaskError, match="no prompts"):
        Task([])
    with pytest.raises(TaskError, match="have no tokens"):
        Task([[1], []])


def test_take_and_with_metric():
    task = Task([[1, 2], [3], [4, 5]], [1, 2, 0], [[0], [0], [1]], texts=["x", "y", "z"])
    assert task.take([2, 0]).answers.tolist() == [0, 1]
    assert task.take([2]).texts == ("z",)
    assert task.with_metric("kl").describe()["metric"] == "kl"
    assert (
        task.describe()["sha256"] == task.with_metric("kl").describe()["sha256"] != task.take([0]).describe()["sha256"]
    )


def test_metrics_say_what_is_missing():
    with pytest.raises(TaskError, match="no metric 'accuracy'; the metrics are logit_diff"):
        resolve(Task([[1]], [1], metric="accuracy"))
    with pytest.raises(TaskError, match="needs distractors in every prompt; prompts without: 2"):
        resolve(Task([[1], [2]], [1, 1], [[2], []]))
    with pytest.raises(TaskError, match="needs an answer"):
        resolve(Task([[1]], metric="log_prob"))
    with pytest.raises(TaskError, match="second token"):
        resolve(Task([[1]], metric="loss"))
    assert METRICS["prob"].warning


def test_a_metric_function_must_return_one_number_a_row():
    good, bad = (resolve(Task([[1]], metric=f)) for f in (lambda x, s: x[:, 0], lambda x, s: x))
    scored = Scored(torch.ones(2, 3), torch.zeros(2, dtype=torch.long), torch.zeros(2), torch.zeros(2, 0))
    assert good.compute(scored).tolist() == [1, 1]
    with pytest.raises(TaskError, match="one number a row"):
        bad.compute(scored)


def responses(masks=5, n=11, prompts=3, **provenance):
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(masks, n, generator=generator) < 0.5
    names = ComponentSet.of([f"a0.h{i}" for i in range(n)])
    return Responses(names, keep, torch.randn(masks, prompts, generator=generator), "logit", provenance)


@given(st.integers(1, 40), st.integers(1, 20), st.integers(0, 1000))
def test_packing_bits(n, masks, seed):
    keep = torch.rand(masks, n, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack_bits(keep)
    assert torch.equal(unpack_bits(packed, n), keep)
    assert np.array_equal(packed.numpy(), np.packbits(keep.numpy(), axis=1, bitorder="little"))


def test_responses_round_trip_and_read_without_this_package(tmp_path):
    from safetensors import safe_open

    made = responses(design={"kind": "bernoulli"})
    made.save(tmp_path / "r.safetensors")
    again = Responses.load(tmp_path / "r.safetensors")
    assert torch.equal(again.keep, made.keep)
    assert torch.equal(again.values, made.values)
    assert (again.unit, again.components.names, again.provenance) == (made.unit, made.components.names, made.provenance)
    with safe_open(tmp_path / "r.safetensors", "np") as file:
        names = json.loads(file.metadata()["components"])
        keep = np.unpackbits(file.get_tensor("keep"), axis=1, bitorder="little")[:, : len(names)].astype(bool)
    assert np.array_equal(keep, made.keep.numpy())
    assert not list(tmp_path.glob("*.partial"))


def test_equal_responses_are_equal_files(tmp_path):
    found = responses()
    for number in range(12):  # the order of what a safetensors header says is another in every call
        found.save(tmp_path / str(number))
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


@pytest.mark.parametrize("cut", [0, 4, 40, 300, -1])
def test_truncated_responses(tmp_path, cut):
    path = tmp_path / "r.safetensors"
    responses().save(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(FormatError):
        Responses.load(path)


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_flipped_bytes_give_responses_or_one_error(tmp_path_factory, at, byte):
    path = tmp_path_factory.mktemp("flip") / "r.safetensors"
    responses().save(path)
    data = bytearray(path.read_bytes())
    data[at % len(data)] = byte
    path.write_bytes(bytes(data))
    with contextlib.suppress(FormatError):
        assert len(Responses.load(path).components) == 11


def test_responses_refuse_what_does_not_fit():
    made = responses()
    with pytest.raises(ResponseError, match="do not fit 11 components"):
        Responses(made.components, made.keep[:, :3], made.values, "logit")
    bad = made.values.clone()
    bad[2, 1] = torch.nan
    with pytest.raises(ResponseError, match=r"first mask 2 .*ablated, among them a0\.h"):
        Responses(made.components, made.keep, bad, "logit")


def test_frame_has_a_row_a_mask():
    frame = responses().frame()
    assert list(frame.columns) == ["ablated", "count", "mean", "std"]
    assert (frame["count"] == frame["ablated"].map(len)).all()
