"""A report reads what lies in the run folder, cards of the gallery, and what its user names; nothing else."""

import json
import os
import shutil
import sys
import warnings
from pathlib import Path

import pytest

import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.cli import main as cli
from spex_mech.errors import SpexMechError
from spex_mech.gallery.studies import save_source

CARD = Path(__file__).resolve().parents[1] / "circuits" / "planted-and"
SECRET = "my-private-prompt"
OPENED, WATCHING = [], []
sys.addaudithook(lambda event, args: OPENED.append(str(args[0])) if WATCHING and event == "open" else None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reads") / "run"
    subject = planted.conjunction(("a0.h1", "a1.h0"), layout=planted.PlantedLayout(n_layers=2, n_heads=4))
    task = planted.task(n_prompts=2, seed=0)
    sm.discover(subject, task, components="a*.h*", budget=100, decoder="linear", link="identity", out=folder)
    return folder


@pytest.fixture
def run(whole, tmp_path):
    rows = [{"text": f"{SECRET} {i}", "answer": 1} for i in range(9)]
    (tmp_path / "secret.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    shutil.copytree(CARD, tmp_path / "card")
    text = (tmp_path / "card" / "card.toml").read_text()
    (tmp_path / "card" / "card.toml").write_text(text.replace('title = "', f'title = "{SECRET} '))
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def says(run, **values):
    (run / "study.json").write_text(json.dumps({"schema": "spex_mech.study/1", "what": "planted-and", **values}))


@pytest.mark.parametrize("way", ["absolute", "up", "up and down", "link", "card", "model"])
def test_what_study_json_names_outside_is_not_read(run, tmp_path, way):
    (run / "audit").mkdir()
    (run / "audit" / "link").symlink_to(tmp_path / "secret.jsonl")
    named = {
        "absolute": {"prompts": str(tmp_path / "secret.jsonl")}, "up": {"prompts": "../secret.jsonl"},
        "up and down": {"prompts": "audit/../../secret.jsonl"}, "link": {"prompts": "audit/link"},
        "card": {"what": str(tmp_path / "card")}, "model": {"what": "../card", "model": str(tmp_path / "card")},
    }[way]  # fmt: skip
    if way != "link":
        (run / "audit" / "link").unlink()
    says(run, **named)
    OPENED.clear()
    WATCHING.append(1)
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                page = sm.report(run).html
            except SpexMechError as error:
                page, way = str(error), "refused"
    finally:
        WATCHING.clear()
    assert SECRET not in page
    assert not [path for path in OPENED if "secret" in path or str(tmp_path / "card") in path]
    if way in ("absolute", "up", "up and down"):
        assert "--prompts FILE" in str(told[0].message)


def test_what_the_user_names_is_shown(run, tmp_path, monkeypatch, capsys):
    says(run, prompts=str(tmp_path / "secret.jsonl"))
    assert f"{SECRET} 4" in sm.report(run, prompts=tmp_path / "secret.jsonl").html
    monkeypatch.setattr(sys, "argv", ["spex-mech", "report", str(run), "--prompts", str(tmp_path / "secret.jsonl")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert f"{SECRET} 4" in (run / "report.html").read_text()
    assert "caution" not in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 3, 5, 9])
def test_few_prompts_are_shown_too(run, tmp_path, count):
    lines = (tmp_path / "secret.jsonl").read_text().splitlines()[:count]
    (run / "prompts.jsonl").write_text("\n".join(lines))
    says(run, prompts="prompts.jsonl")
    assert sm.report(run).html.count(SECRET) >= min(count, 5)


def test_what_a_run_was_made_from_is_written_down_for_its_reports(run, tmp_path):
    """Own prompts, and the words of a card that is no card of the gallery: the folder may move, or they may."""
    save_source(run, tmp_path / "card", tmp_path / "secret.jsonl")
    shutil.rmtree(tmp_path / "card")
    os.remove(tmp_path / "secret.jsonl")
    page = sm.report(run).html
    assert f"{SECRET} 4" in page
    assert page.count(SECRET) > 6  # and the title


@pytest.mark.parametrize("text", ["x" * 5000, "/" * 5000, "a/" * 2500, "\x00"])
def test_paths_that_no_system_could_have(run, text):
    for values in ({"what": text}, {"prompts": text}, {"model": text}):
        says(run, **values)
        with pytest.raises(SpexMechError, match="no system could have"):
            sm.report(run)
