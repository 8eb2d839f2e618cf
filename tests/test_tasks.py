"""Generated tasks: what they claim of their prompts holds, with several tokenizers built here; no download."""

import re
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import spex_mech as sm
from spex_mech.tasks.grids import Arrangement, Grid
from spex_mech.tasks.metrics import METRICS, Scored
from spex_mech.tasks.speller import Speller


class Splitter:
    """Words with their leading space, years in two halves, everything else by character: GPT-2's manner, no library."""

    def __init__(self, apart: tuple[str, ...] = (), bos: bool = False) -> None:
        self.apart, self.bos, self.ids = apart, bos, dict[str, int]()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        pieces = re.findall(r" ?[A-Za-z]+| ?\d\d| ?\d|\s|.", text, re.DOTALL)
        split = [p for piece in pieces for p in ([piece[:2], piece[2:]] if piece.strip() in self.apart else [piece])]
        ids = [self.ids.setdefault(piece, len(self.ids) + 1) for piece in split]
        return [0, *ids] if self.bos and add_special_tokens else ids

    def read(self, ids) -> str:
        return "".join({number: piece for piece, number in self.ids.items()}[int(i)] for i in ids if i)


TEXTUAL = ("ioi", "gendered_pronouns", "greater_than", "docstring", "multiple_choice")


def rows(task):
    return [tuple(task.prompts.row(i).tolist()) for i in range(len(task))]


@pytest.mark.parametrize("name", TEXTUAL)
@pytest.mark.parametrize("bos", [False, True])
def test_prompts_are_unique_of_one_length_and_answered_by_one_token(name, bos):
    tokenizer = Splitter(bos=bos)
    task = sm.tasks.GENERATORS[name](tokenizer, n=70, seed=3)
    assert len(set(rows(task))) == len(set(task.texts)) == len(task) == 70
    assert len(set(task.prompts.lengths.tolist())) == 1
    assert (task.positions == task.prompts.lengths - 1).all()
    assert [row[0] == 0 for row in rows(task)] == [bos] * 70
    for i, text in enumerate(task.texts):
        assert tokenizer.read(task.prompts.row(i)) == text
        answer = tokenizer.read([task.answers[i]])
        assert tokenizer.encode(text + answer)[-1] == task.answers[i]
        wrong = [d for d in task.distractors[i].tolist() if d >= 0]
        assert wrong
        assert int(task.answers[i]) not in wrong
    assert task.corrupt is not None
    assert task.corrupt.tokens.shape == task.prompts.tokens.shape
    assert torch.equal(task.reference.tokens, task.corrupt.tokens)
    assert (task.corrupt.tokens != task.prompts.tokens).any(1).all()


@pytest.mark.parametrize("name", TEXTUAL)
def test_a_seed_decides_everything(name):
    first, again, other = (sm.tasks.GENERATORS[name](Splitter(), n=20, seed=s) for s in (1, 1, 2))
    assert first.describe() == again.describe()
    assert first.describe() != other.describe()


def test_ioi_says_one_name_twice_and_answers_with_the_other():
    tokenizer = Splitter()
    task = sm.tasks.ioi(tokenizer, n=100, seed=0)
    names = set(sm.tasks.sentences.WOMEN + sm.tasks.sentences.MEN)
    first = Counter()
    for i, text in enumerate(task.texts):
        said = [word for word in re.findall(r"[A-Za-z]+", text) if word in names]
        answer, twice = (tokenizer.read(ids).strip() for ids in ([task.answers[i]], task.distractors[i]))
        assert sorted(Counter(said).items()) == sorted({answer: 1, twice: 2}.items())
        first["ABBA" if said[0] == answer else "BABA"] += 1
        contrast = [w for w in re.findall(r"[A-Za-z]+", tokenizer.read(task.corrupt.row(i))) if w in names]
        assert len({*contrast, answer, twice}) == 5
    assert min(first.values()) > 30
    one = sm.tasks.ioi(tokenizer, n=30, patterns=("BABA",))
    assert all(tokenizer.read(one.distractors[i]).strip() in text.split()[1:3] for i, text in enumerate(one.texts))


def test_greater_than_has_all_later_years_as_answers():
    tokenizer = Splitter()
    task = sm.tasks.greater_than(tokenizer, n=40)
    assert task.metric == "prob_diff"
    for i, text in enumerate(task.texts):
        start = int(re.findall(r"\d\d(\d\d)", text)[0])
        right = {tokenizer.read([t]) for t in [task.answers[i], *task.also[i]] if t >= 0}
        wrong = {tokenizer.read([t]) for t in task.distractors[i] if t >= 0}
        assert right == {f"{y:02d}" for y in range(start + 1, 100)}
        assert wrong == {f"{y:02d}" for y in range(start + 1)}
        assert re.search(r"\d\d01", tokenizer.read(task.corrupt.row(i)))


def test_pronouns_go_with_names_and_turn_in_the_counterfactual():
    tokenizer = Splitter()
    task = sm.tasks.gendered_pronouns(tokenizer, n=60)
    women = re.compile("|".join(rf"\b{name}\b" for name in sm.tasks.sentences.WOMEN))
    for i, text in enumerate(task.texts):
        assert (tokenizer.read([task.answers[i]]) == " she") == bool(women.search(text))
        assert bool(women.search(text)) != bool(women.search(tokenizer.read(task.corrupt.row(i))))
    assert len(set(task.answers.tolist())) == 2


def test_docstring_answers_with_the_next_argument_which_only_the_signature_tells():
    tokenizer = Splitter()
    task = sm.tasks.docstring(tokenizer, n=30)
    for i, text in enumerate(task.texts):
        arguments = re.findall(r"self, (\w+), (\w+), (\w+), (\w+)\)", text)[0]
        assert re.findall(r":param (\w+):", text) == list(arguments[:2])
        assert tokenizer.read([task.answers[i]]) == f" {arguments[2]}"
        contrast = tokenizer.read(task.corrupt.row(i))
        assert f":param {arguments[0]}:" in contrast
        assert arguments[2] not in re.findall(r"self, (.*)\)", contrast)[0].split(", ")


@pytest.mark.parametrize("options", [2, 4])
def test_multiple_choice_answers_with_the_letter_of_the_colour(options):
    tokenizer = Splitter()
    task = sm.tasks.multiple_choice(tokenizer, n=40, options=options)
    for i, text in enumerate(task.texts):
        colour = re.findall(r"is (\w+)\.", text)[0]
        listed = dict(re.findall(r"\n(\w)\. (\w+)", text))
        assert len(listed) == options
        assert listed[tokenizer.read([task.answers[i]]).strip()] == colour
        moved = dict(re.findall(r"\n(\w)\. (\w+)", tokenizer.read(task.corrupt.row(i))))
        assert moved[tokenizer.read([task.answers[i]]).strip()] != colour
        assert sorted(moved.values()) == sorted(listed.values())


def test_what_a_tokenizer_splits_is_dropped_and_told():
    task = sm.tasks.ioi(Splitter(apart=("Mary", "John", "park")), n=50)
    assert not re.search("Mary|John|park", " ".join(task.texts))
    assert any("Mary, John" in note and "names" in note for note in task.notes)
    assert any("park" in note for note in task.notes)
    assert any("other lengths than" in note for note in task.notes)
    shown = str(task)
    assert "50 prompts of" in shown
    assert all(note in shown for note in task.notes)
    assert task.take([0, 1]).notes == task.notes


def test_lengths_may_differ_where_that_is_wanted():
    lengths = sm.tasks.ioi(Splitter(), n=80, equal_lengths=False).prompts.lengths
    assert len(set(lengths.tolist())) > 1


def words(tokenizer: str):
    """A tokenizer of the tokenizers library trained on the tasks' own prompts, as it is or behind transformers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = [t for name in TEXTUAL for t in sm.tasks.GENERATORS[name](Splitter(), n=300, equal_lengths=False).texts]
    texts += [" she he", *sm.tasks.sentences.WOMEN, *sm.tasks.sentences.MEN] * 20
    if tokenizer == "words":
        made = Tokenizer(models.WordLevel(unk_token="?"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        made.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=["?"], show_progress=False))
        return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="?")
    made = Tokenizer(models.BPE())
    made.decoder = decoders.ByteLevel()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=2500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return made


@pytest.mark.parametrize("kind", ["words", "bytes"])
def test_other_tokenizers_give_the_same_promises(kind):
    tokenizer = words(kind)
    for make in (sm.tasks.ioi, sm.tasks.gendered_pronouns, sm.tasks.docstring)[: 2 if kind == "words" else 3]:
        task = make(tokenizer, n=32)
        assert len(set(rows(task))) == 32
        for i, text in enumerate(task.texts):
            said = tokenizer.decode(task.prompts.row(i).tolist())
            assert re.findall(r"\w+", said) == re.findall(r"\w+", text)
            full = tokenizer.encode(f"{text} {tokenizer.decode([int(task.answers[i])]).strip()}")
            ids = getattr(full, "ids", full)
            assert list(ids) == [*rows(task)[i], int(task.answers[i])]


def test_refusals_say_how_many_there_are_and_why():
    few = Splitter(apart=tuple(sm.tasks.documents.OBJECTS[1:]))
    with pytest.raises(
        sm.SpexMechError, match=r"(?s)400 unique prompts were asked for.* there are 312 .*objects are no"
    ):
        sm.tasks.multiple_choice(few, n=400, options=2)
    with pytest.raises(sm.SpexMechError, match="20,000,000 unique prompts"):
        sm.tasks.ioi(Splitter(), n=20_000_000)
    with pytest.raises(sm.SpexMechError, match="splits only 0 of 100 years"):
        sm.tasks.greater_than(lambda text: [sum(map(ord, word)) for word in text.split()], n=4)
    with pytest.raises(sm.SpexMechError, match=r"0 women \(at least 1\)"):
        sm.tasks.gendered_pronouns(lambda text: list(text.encode()), n=4)
    with pytest.raises(sm.SpexMechError, match="BAAB"):
        sm.tasks.ioi(Splitter(), patterns=("BAAB",))
    with pytest.raises(sm.SpexMechError, match="is no tokenizer"):
        sm.tasks.ioi(3)
    with pytest.raises(sm.SpexMechError, match="n=0"):
        sm.tasks.ioi(Splitter(), n=0)
    with pytest.raises(sm.SpexMechError, match="2 to 5"):
        sm.tasks.multiple_choice(Splitter(), options=9)
    with pytest.raises(sm.SpexMechError, match=r"26 unique prompts .* there are 25"):
        sm.tasks.modular_arithmetic(5, n=26)
    with pytest.raises(sm.SpexMechError, match="twice as many tokens"):
        sm.tasks.induction(20, length=16)
    with pytest.raises(sm.SpexMechError, match="operation='/'"):
        sm.tasks.modular_arithmetic(7, operation="/")
    with pytest.raises(sm.SpexMechError, match="vocab_size"):
        sm.tasks.induction("abc")


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 20), st.integers(0, 9), st.sampled_from([None, 99]))
def test_induction_scores_a_token_whose_first_copy_tells_the_next(length, seed, bos):
    task = sm.tasks.induction(range(100, 150), n=12, seed=seed, length=length, bos=bos, distractors=2)
    assert len(set(rows(task))) == 12
    for i, row in enumerate(rows(task)):
        once = list(row[int(bos is not None) :][:length])
        assert list(row)[-2 * length :] == once * 2
        scored = row[int(task.positions[i])]
        assert int(task.answers[i]) == once[once.index(scored) + 1]
        assert int(task.positions[i]) >= length
        assert {int(task.answers[i]), scored} & set(task.distractors[i].tolist()) == set()
        fresh = task.corrupt.row(i).tolist()
        assert fresh[-length:] == once
        assert not set(fresh[-2 * length : -length]) & set(once)


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 23), st.sampled_from("+-*"), st.integers(0, 5))
def test_modular_arithmetic_is_arithmetic(modulus, operation, seed):
    task = sm.tasks.modular_arithmetic(modulus, n=modulus**2, seed=seed, operation=operation)
    assert len(set(rows(task))) == modulus**2
    for i, (a, b, sign) in enumerate(rows(task)):
        right = eval(f"({a} {operation} {b}) % {modulus}")
        assert (int(task.answers[i]), sign) == (right, modulus)
        assert set(task.distractors[i].tolist()) == set(range(modulus)) - {right}
        _, other, _ = task.corrupt.row(i).tolist()
        assert eval(f"({a} {operation} {other}) % {modulus}") != right or (operation == "*" and a == 0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 5))
def test_grids_number_all_combinations_once(items, size, other):
    grid = Grid(range(other), Arrangement(range(items), min(size, items)))
    every = {grid[i] for i in range(len(grid))}
    assert len(every) == len(grid)
    assert all(len(set(picked)) == len(picked) for _, picked in every)
    assert {chosen for _, chosen in grid.draw(0, 10_000)} == every


def test_special_tokens_come_in_front_only():
    class Closing(Splitter):
        def encode(self, text, add_special_tokens=True):
            ids = super().encode(text, add_special_tokens=False)
            return [901, *ids, 902] if add_special_tokens else ids

    assert Speller(Closing()).prompt("The cat") == [901, *Closing().encode("The cat", add_special_tokens=False)]
    assert Speller(Splitter(), bos=7).prompt("The cat")[0] == 7


def test_prob_diff_adds_up_what_is_right_and_takes_away_what_is_wrong(tmp_path):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 20, generator=generator)
    task = sm.Task([[1]] * 3, [4, 5, 6], [[0, 1], [2], [3]], metric="prob_diff", also=[[7, 8], [], [9]])
    p = logits.softmax(1)
    scored = Scored(logits, torch.arange(3), task.answers, task.distractors, also=task.also)
    wanted = [p[0, [4, 7, 8]].sum() - p[0, :2].sum(), p[1, 5] - p[1, 2], p[2, [6, 9]].sum() - p[2, 3]]
    torch.testing.assert_close(METRICS["prob_diff"].compute(scored), torch.stack(wanted))
    task.to_jsonl(tmp_path / "p.jsonl")
    back = sm.Task.from_jsonl(tmp_path / "p.jsonl", metric="prob_diff")
    assert back.describe() == task.describe()
    assert sm.Task([[1]] * 3, [4, 5, 6], [[0], [2], [3]]).describe() != task.describe()
    with pytest.raises(sm.SpexMechError, match="further answer 9"):
        task.check(type("Small", (), {"d_vocab": 9, "d_vocab_out": 9})())


def test_a_generated_task_is_studied_by_a_model():
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = Splitter()
    task = sm.tasks.greater_than(tokenizer, n=3, seed=0)
    task = task.check(type("Wide", (), {"d_vocab": 400, "d_vocab_out": 400})())
    config = GPT2Config(vocab_size=400, n_embd=16, n_layer=2, n_head=2, n_positions=64)
    torch.manual_seed(0)
    found = sm.discover(GPT2LMHeadModel(config).eval(), task, components="a*.h*", budget=256, seed=0)
    assert found.responses.unit == "probability"
    intact = found.responses.values[found.responses.keep.all(1)]
    assert intact.abs().max() <= 1
