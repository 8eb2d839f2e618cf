"""Cards: every one that ships is sound, and a wrong one says all that is wrong with it."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from spex_mech import gallery
from spex_mech.ablation.backends import planted
from spex_mech.ablation.replacement import fit_replacement
from spex_mech.ablation.respond import respond
from spex_mech.components import ComponentSet, select
from spex_mech.errors import FormatError, TaskError
from spex_mech.gallery import cards, open_card
from spex_mech.walsh.spectrum import Spectrum

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "cards"
PLANTED = ("planted-additive", "planted-and", "planted-or", "planted-xor")


@pytest.fixture
def copy(tmp_path):
    """A copy of a small card, to be damaged."""
    shutil.copytree(ROOT / "circuits" / "planted-and", tmp_path / "card")
    return tmp_path / "card"


def edit(copy, old, new):
    text = (copy / "card.toml").read_text()
    assert old in text
    (copy / "card.toml").write_text(text.replace(old, new))


def refused(copy):
    with pytest.raises(FormatError) as caught:
        open_card(copy)
    return str(caught.value)


def test_the_gallery_holds_what_its_readme_lists():
    assert {"induction-2l", *PLANTED} <= set(cards())
    listed = (ROOT / "circuits" / "README.md").read_text()
    assert all(f"`{name}`" in listed for name in cards())


@pytest.mark.parametrize("name", cards())
def test_every_card_of_the_gallery_is_sound(name):
    card = open_card(name)
    assert card.name == name
    assert card.licence == "MIT"
    assert card.title
    assert card.summary
    if card.on_hub:
        assert card.recipe is not None
        assert not list(card.folder.glob("model*"))
        return
    task = card.task()
    assert len(task) >= 8
    assert task.reference is not None
    if card.truth is not None and card.truth.terms is None:
        assert card.truth.values.shape == (1 << len(card.truth.components), len(task))


@pytest.mark.parametrize("name", PLANTED)
def test_planted_cards_measure_as_their_truth_says(name):
    """Truth file against the engine: 512 random masks of the 14 components."""
    card = open_card(name)
    subject, task = planted.load_planted(card.model_path), card.task()
    components = select(subject, card.components)
    assert components.names == card.truth.components
    terms = {tuple(components.indices(names)): value for names, value in card.truth.terms.items()}
    keep = torch.rand(512, len(components), generator=torch.Generator().manual_seed(4)) < 0.5
    replacement = fit_replacement(subject, task, components, card.replacement, card.per)
    values = respond(subject, task, components, [keep], replacement).double().mean(1)
    expected = Spectrum.from_terms(len(components), terms).evaluate(keep)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-6)


def test_planted_cards_are_what_their_script_writes(tmp_path):
    spec = importlib.util.spec_from_file_location("make_planted_cards", ROOT / "examples" / "make_planted_cards.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert set(script.CARDS) == set(PLANTED)
    for name in PLANTED:
        (tmp_path / name).mkdir()
        script.write_card(tmp_path / name, name)
        for path in (p for p in (tmp_path / name).rglob("*") if p.is_file()):
            kept = ROOT / "circuits" / path.relative_to(tmp_path)
            assert path.read_text() == kept.read_text(), f"{kept} is not what the script writes"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared cards of trained models are not here")
def test_cards_of_the_same_form_elsewhere_are_read():
    folders = sorted(path.parent for path in SHARED.glob("*/card.toml"))
    assert folders
    for folder in folders:
        card = open_card(folder)
        assert Path(card.model_path) == (folder / "model").resolve()
        assert len(card.task()) > 0
        assert card.truth is None or len(card.truth.values) == 1 << len(card.truth.components)


def test_a_card_is_opened_by_folder_too(copy):
    card = open_card(copy)
    assert card.published.interactions == ((("a0.h1", "a1.h2", "m1.n0"), "synergy"),)
    assert card.published.nodes["m1.n0"] == "needed"
    assert planted.load_planted(card.model_path).name == "planted AND"
    assert card.task(prompts=copy / "prompts.jsonl").metric == "logit_diff"


def test_unknown_names_list_the_gallery():
    with pytest.raises(FormatError, match="planted-xor"):
        open_card("planted-nand")


def test_an_empty_gallery_says_so(monkeypatch):
    monkeypatch.setattr(gallery.finding, "_home", lambda: None)
    assert cards() == ()
    with pytest.raises(FormatError, match="empty here"):
        open_card("planted-and")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[card]", "[card", "not TOML"),
        (
            'kind = "planted"',
            'kind = "onnx"',
            "model.kind must be one of transformer_lens, huggingface, planted, not 'onnx'",
        ),
        ('kind = "planted"', "kind = 3", "model.kind must be one of transformer_lens, huggingface, planted, not 3"),
        ('metric = "logit_diff"', 'metric = "accuracy"', "task.metric must be one of logit_diff"),
        ('metric = "logit_diff"\n', "", "task.metric is missing"),
        (
            'default = "mean"',
            'default = "median"',
            "replacement.default must be one of mean, zero, resample, not 'median'",
        ),
        ('per = "position"', 'per = "prompt"', "replacement.per must be one of position, pooled or null, not 'prompt'"),
        ("schema = 1", "schema = 2", "card.schema must be 1, not 2"),
        ("[task]", "[tasks]", "tasks is not a field"),
        ('unit = "logit"', 'units = "logit"', "task.units is not a field"),
        ('path = "model"', 'path = "../card/model"', "leaves the card's folder"),
        ('path = "model"', 'path = "/etc"', "leaves the card's folder"),
        ('path = "model"', 'path = ""', "leaves the card's folder"),
        ('path = "model"', 'path = "weights"', "weights/planted.json is missing"),
        ('path = "model"', 'hub = "gpt2"', "hub goes with kind 'huggingface' only"),
        ('path = "model"\n', "", "either path"),
    ],
)
def test_wrong_fields(copy, old, new, message):
    edit(copy, old, new)
    assert message in refused(copy)


def test_a_hub_id_is_taken_for_hugging_face(copy):
    edit(copy, 'kind = "planted"\npath = "model"', 'kind = "huggingface"\nhub = "openai-community/gpt2"')
    assert open_card(copy).model_path == "openai-community/gpt2"


def test_links_are_refused(copy, tmp_path):
    shutil.move(copy / "model", tmp_path / "outside")
    (copy / "model").symlink_to(tmp_path / "outside")
    assert "is a link" in refused(copy)


def test_linked_files_are_refused(copy, tmp_path):
    shutil.move(copy / "model" / "planted.json", tmp_path / "planted.json")
    (copy / "model" / "planted.json").symlink_to(tmp_path / "planted.json")
    assert "is a link" in refused(copy)
    (copy / "prompts.jsonl").unlink()
    (copy / "prompts.jsonl").symlink_to(tmp_path / "planted.json")
    assert "'prompts.jsonl' is a link" in refused(copy)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("prompts.jsonl", "", "holds no prompts"),
        ("prompts.jsonl", '{"tokens": "x"}\n', "prompts.jsonl"),
        ("prompts.jsonl", '{"tokens": [1], "answer": 1, "distractors": 5}\n', "distractors must be a list"),
        ("reference.jsonl", "{\n", "not JSON"),
        ("published.json", "[]", "holds a list"),
        ("published.json", "{", "cannot be read as JSON"),
        ("published.json", '{"nodes": {"head 3": "?"}}', "head 3"),
        ("published.json", '{"nodes": ["a0.h0"]}', "nodes must be"),
        (
            "published.json",
            '{"interactions": [{"components": ["a0.h0"], "kind": "love"}]}',
            "interactions[0].kind must be one of main",
        ),
        (
            "published.json",
            '{"interactions": [{"components": ["[m0.n0:999999999]"], "kind": "main"}]}',
            "the names hold more than",
        ),
        ("truth.json", '{"basis": "mobius", "terms": []}', "basis must be walsh, not 'mobius'"),
        ("truth.json", '{"basis": "walsh", "terms": [{"set": ["a0.h0"], "coefficient": "1"}]}', "coefficient"),
        ("truth.json", '{"basis": "walsh", "terms": [{"set": ["q"], "coefficient": 1}]}', "'q'"),
        (
            "truth.json",
            '{"basis": "walsh", "terms": [{"set": ["m0", "m1"], "coefficient": 1}, '
            '{"set": ["m1", "m0"], "coefficient": 1}]}',
            "twice",
        ),
        ("truth.safetensors", "no tensors", "cannot be read"),
    ],
)
def test_wrong_files(copy, file, content, message):
    (copy / file).write_text(content)
    assert message in refused(copy)


@pytest.mark.parametrize("file", ["prompts.jsonl", "model/planted.json"])
def test_missing_files(copy, file):
    (copy / file).unlink()
    assert f"{file} is missing" in refused(copy)


def test_everything_wrong_is_told_at_once(copy):
    edit(copy, 'metric = "logit_diff"', 'metric = "accuracy"')
    edit(copy, 'per = "position"', 'per = "prompt"')
    (copy / "prompts.jsonl").unlink()
    (copy / "published.json").write_text("[]")
    message = refused(copy)
    assert "card 'card' has 4 problems" in message
    assert all(word in message for word in ("accuracy", "'prompt'", "prompts.jsonl", "published.json"))


def test_tables_of_truth_are_checked_when_asked_for(copy):
    assert set(open_card(copy).truth.terms) == {
        tuple(row["set"]) for row in json.loads((copy / "truth.json").read_text())["terms"]
    }
    with pytest.raises(FormatError, match="polynomial"):
        _ = open_card(copy).truth.values
    save_file({"values": torch.zeros(3, 8)}, copy / "truth.safetensors", {"components": "a0.h0,a0.h1"})
    truth = open_card(copy).truth
    assert truth.components == ("a0.h0", "a0.h1")
    with pytest.raises(FormatError, match=r"\(3, 8\)"):
        _ = truth.values
    save_file({"values": torch.zeros(3, 8)}, copy / "truth.safetensors")
    assert "names no components" in refused(copy)


def test_text_prompts_wait_for_a_tokenizer(copy):
    (copy / "prompts.jsonl").write_text('{"text": "a b", "answer": " c", "distractors": [" d"]}\n')
    card = open_card(copy)
    with pytest.raises(TaskError, match="tokenizer"):
        card.task()


def test_published_names_exist_in_the_models():
    for name in PLANTED:
        card = open_card(name)
        ComponentSet.of(card.published.nodes).check(planted.load_planted(card.model_path).shape)
