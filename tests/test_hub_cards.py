"""Cards without weights: prompts by the model's own tokenizer, a model from the hub or from a folder beside them."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

import spex_mech as sm
from spex_mech.cli import main as cli
from spex_mech.errors import FormatError
from spex_mech.gallery import studies

CARDS = Path(__file__).resolve().parents[1] / "circuits"
HUB = [name for name in sm.cards() if sm.open_card(name).on_hub]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny GPT-2 of 12 × 12 heads with a tokenizer that splits years, as a folder of Hugging Face's form."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    from spex_mech.tasks import words

    pieces = Regex(r" ?[A-Za-z]+| ?\d\d|[^\sA-Za-z\d]|\s")
    split = pre_tokenizers.Split(pieces, "isolated")
    lists = [value for name, value in vars(words).items() if name.isupper()]
    known = {f" {word}" for listed in lists for word in listed} | {f"{y:02d}" for y in range(100)}
    known |= {f" {y:02d}" for y in range(100)} | {f" {c}" for c in "ABCDE"} | set("ABCDE\n.:,?' ") | {" she", " he"}
    for make in ("ioi", "greater_than", "multiple_choice"):
        for text in sm.tasks.GENERATORS[make](_numbered(split), n=200, equal_lengths=False).texts:
            known |= {piece for piece, _ in split.pre_tokenize_str(text)}
    vocabulary = {piece: i + 1 for i, piece in enumerate(sorted(known))} | {"<?>": 0}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<?>"))
    made.pre_tokenizer = split
    where = tmp_path_factory.mktemp("model")
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<?>").save_pretrained(where)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(vocabulary), n_embd=48, n_layer=12, n_head=12, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(where)
    return where


def _numbered(split):
    ids: dict[str, int] = {}
    return lambda text: [ids.setdefault(piece, len(ids)) for piece, _ in split.pre_tokenize_str(text)]


@pytest.mark.parametrize("name", ["ioi-gpt2-small", "greater-than-gpt2-small"])
def test_a_model_brought_by_hand_is_studied(name, folder):
    study = sm.open_study(name, model=folder)
    card = sm.open_card(name)
    assert len(study.task) == card.recipe.prompts
    assert study.task.metric == card.metric
    assert study.task.texts
    study.components.indices(list(card.published.nodes))
    again = sm.open_study(name, model=folder)
    assert study.task.describe() == again.task.describe()


def test_the_whole_study_runs_and_is_audited_from_its_folder(folder, tmp_path, monkeypatch, capsys):
    card, run = tmp_path / "small", tmp_path / "run"
    shutil.copytree(CARDS / "ioi-gpt2-small", card)
    text = (card / "card.toml").read_text()
    (card / "card.toml").write_text(text.replace("prompts = 32", "prompts = 2").replace('"a*.h*"', '"a0.h*"'))
    for args in (
        ("discover", card, "--model", folder, "--budget", 64, "--decoder", "linear", "--out", run),
        ("audit", run, "--budget", 100, "--quiet"),
    ):
        monkeypatch.setattr(sys, "argv", ["spex-mech", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code, capsys.readouterr()
    assert json.loads((run / "study.json").read_text())["model"] == str(folder)
    assert (run / "audit.json").exists()


@pytest.mark.parametrize("name", HUB)
def test_without_the_hub_one_message_says_what_to_do(name, monkeypatch, tmp_path, capsys):
    import transformers

    def unreachable(*_, **__):
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", unreachable)
    monkeypatch.setattr(sys, "argv", ["spex-mech", "discover", name, "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    error = " ".join(capsys.readouterr().err.split())
    hub = sm.open_card(name).model_path
    assert stop.value.code == 2
    assert f"hf download {hub} --local-dir {hub.split('/')[1]}" in error
    assert f"--model {hub.split('/')[1]}" in error
    assert "Traceback" not in error


def test_published_circuits_are_those_of_the_papers():
    ioi = sm.open_card("ioi-gpt2-small").published
    assert len(ioi.nodes) == 26
    assert len(set(ioi.nodes.values())) == 7
    assert {names for names, kind in ioi.interactions if kind == "redundancy"}
    years = sm.open_card("greater-than-gpt2-small").published
    assert sum(name.startswith("m") for name in years.nodes) == 8


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('generator = "ioi"', 'generator = "riddles"', "one of docstring"),
        ("prompts = 32", "prompts = 0", "a whole number from 1"),
        ('generator = "ioi"\n', "", "goes with a generator"),
        ("seed = 0", "seed = true", "a whole number from 0"),
    ],
)
def test_wrong_recipes_are_refused(tmp_path, old, new, words):
    card = tmp_path / "card"
    shutil.copytree(CARDS / "ioi-gpt2-small", card)
    (card / "card.toml").write_text((card / "card.toml").read_text().replace(old, new))
    with pytest.raises(FormatError, match=words):
        sm.open_card(card)
    shutil.copytree(CARDS / "ioi-gpt2-small", tmp_path / "both")
    (tmp_path / "both" / "prompts.jsonl").write_text('{"tokens": [1]}\n')
    with pytest.raises(FormatError, match="as well"):
        sm.open_card(tmp_path / "both")


def test_a_model_of_ones_own_needs_no_card(folder):
    with pytest.raises(FormatError, match="--prompts"):
        studies.open_study(folder)
