"""Nothing that a stranger wrote acts on the terminal: hostile text at every place of every file, through commands."""

import json
import random
import shutil
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.cli import main as cli
from spex_mech.errors import _UNPRINTABLE, SpexMechError, SpexMechWarning, printable, warn_user
from spex_mech.gallery.studies import save_source
from spex_mech.store.responses import Responses

CARD = Path(__file__).resolve().parents[1] / "circuits" / "planted-and"
HOSTILE = (
    "\x1b]0;owned\x07", "\x1b[2J\x1b[H", "\x1b[31mred", "\x9b31m", "\x1b]8;;http://evil\x1b\\here", "a\rb", "\x08\x08",
    "\u202egnp.exe", "\u2066\u2069", "a\u200bb\ufeff", "\x00", "\x7f", "\x85", "\u2028next", "\U000e0041", "[/]",
    "[red]x", "[link=http://evil]y[/link]", "[/no such tag]", "\ud800", ":skull:", "\xad",
)  # fmt: skip


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_what_is_printable_acts_on_nothing_and_keeps_all_else(text):
    clean = printable(text)
    assert not _UNPRINTABLE.search(clean)
    assert printable(clean) == clean
    if not _UNPRINTABLE.search(text):
        assert clean == text
    assert not _UNPRINTABLE.search(str(SpexMechError(text)))
    clean.encode()


@pytest.mark.parametrize("category", ["Cc", "Cf", "Cs", "Zl", "Zp"])
def test_every_character_that_controls_or_hides_is_spelled_out(category):
    """By Unicode's own classes; tab and newline stay, and so do the format characters that are seen."""
    import unicodedata

    seen = {"\n", "\t", *map(chr, [*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD])}
    notation = {*range(0x13430, 0x13440), *range(0x1BCA0, 0x1BCA4), *range(0x1D173, 0x1D17B)}  # of scripts, music
    them = [chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) == category]
    assert [c for c in them if printable(c) == c and c not in seen and ord(c) not in notation] == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("terminal")
    subject = planted.conjunction(("a0.h1", "a1.h0"), layout=planted.PlantedLayout(n_layers=2, n_heads=4))
    task, run = planted.task(n_prompts=2, seed=0), folder / "run"
    found = sm.discover(subject, task, budget=120, decoder="proxyspex", link="identity", out=run)
    sm.audit(found, subject, task, budget=96).save(run / "audit.json")
    save_source(run, "planted-and")
    shutil.copytree(CARD, folder / "card")
    return folder


def poisoned(text, dice):
    """JSON with hostile text at a few places: in texts, in the place of keys, as new keys, at the top too."""

    def spoil(value):
        if isinstance(value, dict):
            return {key: spoil(item) for key, item in value.items()}
        if isinstance(value, list):
            return [spoil(item) for item in value]
        return f"{value} {dice.choice(HOSTILE)}" if isinstance(value, str) and dice.random() < share else value

    share, value = dice.choice((0.02, 0.1, 0.5)), json.loads(text)
    value = {key: item if key == "schema" else spoil(item) for key, item in value.items()}
    if dice.random() < 0.3:
        value[dice.choice(HOSTILE)] = 1
    return json.dumps(value).encode("utf-8", "surrogatepass")


def printed(arguments, capfd, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["spex-mech", *map(str, arguments)])
    with warnings.catch_warnings():
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
    assert code in (0, 2), arguments
    out, err = capfd.readouterr()
    return out + err


@pytest.mark.parametrize("count", [8, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_no_command_prints_what_acts(whole, tmp_path, capfd, monkeypatch, count):
    """Also where it is read and shown: units, titles, roles and methods that are texts like others."""
    shown = 0
    for seed in range(count):
        dice, run, card = random.Random(seed), tmp_path / f"run{seed}", tmp_path / f"card{seed}"
        shutil.copytree(whole / "run", run)
        shutil.copytree(whole / "card", card)
        for name in dice.sample(("run.json", "circuit.json", "spectrum.json", "audit.json", "study.json"), 2):
            (run / name).write_bytes(poisoned((run / name).read_text(), dice))
        responses = Responses.load(run / "responses.safetensors")
        unit = f"logits {dice.choice(HOSTILE[:14])}"
        Responses(responses.components, responses.keep, responses.values, unit, {dice.choice(HOSTILE[:5]): 1}).save(
            run / "responses.safetensors"
        )
        text = (card / "card.toml").read_text()
        title = next(line for line in text.splitlines() if line.startswith("title"))
        (card / "card.toml").write_text(text.replace(title, f"title = {json.dumps('t' + dice.choice(HOSTILE[:14]))}"))
        (card / "published.json").write_bytes(poisoned((card / "published.json").read_text(), dice))
        commands = (
            ("report", run),
            ("audit", run, "--budget", "96"),
            ("export", run / "circuit.json", "--to", "hif", "--out", tmp_path / "out"),
            ("decode", run / "responses.safetensors", "--out", tmp_path / f"d{seed}", "--decoder", "linear"),
            ("discover", card, "--out", tmp_path / f"e{seed}", "--budget", "64", "--decoder", "linear"),
            ("merge", run, "--out", tmp_path / f"m{seed}"),
            ("doctor", card),
            ("plan", card, "--budget", "64"),
        )
        for command in commands[seed % 4 :: 4]:
            said = printed([*command, *(["--json"] if seed % 5 == 4 and command[0] in ("decode", "audit") else [])],
                           capfd, monkeypatch)  # fmt: skip
            assert not _UNPRINTABLE.search(said), (seed, command, _UNPRINTABLE.search(said))
            assert "Traceback" not in said, (seed, command, said)
            shown += "\\x" in said or "\\u" in said
    assert shown > count // 2


def test_what_values_say_of_themselves_and_warnings_are_clean(whole, tmp_path):
    responses = Responses.load(whole / "run" / "responses.safetensors")
    bad = Responses(responses.components, responses.keep, responses.values, "\x1b[2J", {})
    assert "\\x1b[2J" in str(bad)
    found = sm.load_run(whole / "run")
    for value in (bad, found, sm.open_study(whole / "card"), sm.report(whole / "run")):
        assert not _UNPRINTABLE.search(str(value))
    with pytest.warns(SpexMechWarning) as told:
        warn_user("\x1b]0;x\x07")
    assert str(told[0].message) == "\\x1b]0;x\\x07"


def test_every_console_of_the_package_is_the_clean_one():
    """But for the bar and the sign of progress, which say words of our own."""
    root = Path(sm.__file__).parent
    plain = {str(path.relative_to(root)) for path in root.rglob("*.py") if "Console(" in path.read_text()}
    assert {name for name in plain if not name.startswith("bench/")} == {"progress.py"}
