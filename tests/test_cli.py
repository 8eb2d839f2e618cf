"""The command line as a user meets it: what it prints, what it writes, and how it refuses."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import spex_mech as sm
from spex_mech.cli import main as cli
from spex_mech.gallery.studies import true_spectrum
from spex_mech.store.responses import Responses

CARDS = Path(__file__).resolve().parents[1] / "circuits"


@pytest.fixture
def cli_run(capsys, monkeypatch):
    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["spex-mech", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return call


def test_demo_prints_what_exhaustive_enumeration_says(cli_run, tmp_path):
    code, out, _ = cli_run("demo", "--out", tmp_path)
    assert code == 0
    found, truth = sm.load_run(tmp_path), true_spectrum(sm.open_card("induction-2l"))
    noise = found.spectrum.stderr
    compared = 0
    for (members, value), error in zip(found.spectrum.terms(), noise.tolist(), strict=True):
        if members and abs(value) > 4 * error:
            assert abs(value - truth.get(members)) < max(5 * error, 0.02), found.components.names
            compared += 1
    assert compared >= 10
    assert found.heldout_r2 > 0.9
    assert "Held-out R²" in out
    assert "Against all" in out
    assert max(len(line) for line in out.splitlines() if "│" in line or "┃" in line) <= 80


def test_demo_finds_the_published_synergy(cli_run, tmp_path):
    cli_run("demo", "--out", tmp_path, "--quiet")
    assert "Induction in two layers" in (tmp_path / "report.html").read_text()
    pairs = sm.load_run(tmp_path).interactions().query("order == 2").head(6)
    strongest = {frozenset(names): kind for names, kind in zip(pairs["components"], pairs["kind"], strict=True)}
    published = {frozenset(names): kind for names, kind in sm.open_card("induction-2l").published.interactions}
    shared = strongest.keys() & published.keys()
    assert shared
    assert all(strongest[pair] == published[pair] == "synergy" for pair in shared)


def test_discover_decode_export_chain(cli_run, tmp_path):
    run, line = tmp_path / "run", tmp_path / "line"
    assert cli_run("discover", "planted-or", "--budget", 300, "--out", run, "-q")[0] == 0
    assert cli_run("decode", run / "responses.safetensors", "--decoder", "linear", "--out", line)[0] == 0
    assert sm.load_run(line).spectrum.orders.max() == 1
    assert "No joint effect was found" in (line / "report.html").read_text()
    for to in ("json", "graphml", "gexf", "dot", "hif", "neuronpedia", "node-link", "clique"):
        code, out, _ = cli_run("export", run / "circuit.json", "--to", to, "--out", tmp_path / f"c.{to}")
        assert (code, (tmp_path / f"c.{to}").stat().st_size > 0) == (0, True)
        assert "wrote" in out


def test_what_spex_did_not_explain_is_told(cli_run, tmp_path):
    args = ("discover", "induction-2l", "--keep", "coded", "--budget", 400, "--out", tmp_path / "run", "-q")
    assert cli_run(*args)[0] == 0
    responses = Responses.load(tmp_path / "run" / "responses.safetensors")
    noise = torch.randn(responses.values.shape, generator=torch.Generator().manual_seed(0))
    replace(responses, values=responses.values + 8 * noise).save(tmp_path / "noisy.safetensors")
    code, out, _ = cli_run("decode", tmp_path / "noisy.safetensors", "--out", tmp_path / "other")
    assert code == 0
    told = r"\(\d+\.\d% of the variance is left, [\d,]+ of [\d,]+ bins still hold more than noise\)"
    assert re.search(told, " ".join(out.split()))


def test_a_run_is_audited_from_its_folder_alone(cli_run, tmp_path):
    assert cli_run("discover", "planted-or", "--budget", 300, "--decoder", "linear", "--out", tmp_path, "-q")[0] == 0
    code, out, _ = cli_run("audit", tmp_path, "--budget", 200)
    assert code == 0
    audit = sm.load_audit(tmp_path / "audit.json")
    assert audit.record["masks"] <= 200
    assert set(audit.known.names) == set(sm.open_card("planted-or").published.nodes)
    assert "single ablation" in out
    assert "caution:" in out  # a line does not explain an OR
    assert max(len(line) for line in out.splitlines() if "│" in line or "┃" in line) <= 80


def test_an_audit_that_cannot_be_is_refused(cli_run, tmp_path):
    assert cli_run("discover", "planted-or", "--budget", 300, "--decoder", "linear", "--out", tmp_path, "-q")[0] == 0
    code, _, err = cli_run("audit", tmp_path, "--budget", 20)
    assert (code, "at least 96" in err) == (2, True)
    code, _, err = cli_run("audit", tmp_path, "--model", "planted-and")
    assert (code, "not the experiment" in err) == (2, True)
    (tmp_path / "study.json").unlink()
    code, _, err = cli_run("audit", tmp_path)
    assert (code, "--model" in err) == (2, True)
    assert cli_run("audit", tmp_path, "--model", "planted-or", "--budget", 100, "-q")[0] == 0
    code, _, err = cli_run("audit", tmp_path / "none")
    assert (code, "not a finished run folder" in err) == (2, True)


def test_doctor_binds_and_lists_sites(cli_run):
    code, out, _ = cli_run("doctor", "induction-2l")
    assert code == 0
    assert "self-test passed" in out
    assert "layers 0-1: heads 6 width" in out
    assert "torch" in out


def test_bench_ablation_times_every_path(cli_run, tmp_path):
    code, out, _ = cli_run("bench", "ablation", "--quick", "--json", tmp_path / "b.json")
    assert code == 0
    result = json.loads((tmp_path / "b.json").read_text())
    assert result.keys() == {"machine", "rows", "summary"}
    assert all(value > 0 for value in result["summary"].values())
    told = {"cost_vs_unhooked", "cost_vs_unhooked_last", "speedup_vs_tl_loop", "nnsight_vs_torch"}
    assert told | {"uncrossed_vs_crossed", "uncrossed_vs_crossed_keep_half"} <= result["summary"].keys()
    assert "cost_vs_unhooked" in out


def test_bench_accuracy_compares_the_decoders(cli_run, tmp_path):
    code, out, _ = cli_run("bench", "accuracy", "--quick", "--json", tmp_path / "b.json")
    assert code == 0
    result = json.loads((tmp_path / "b.json").read_text())
    assert {row["decoder"] for row in result["rows"]} >= {"joint", "proxyspex", "linear"}
    assert all(row["masks"] == 64 and row["r2"] <= 1 and 0 <= row.get("f1", 0) <= 1 for row in result["rows"])
    assert "worst_r2_gap" in out
    assert cli_run("bench", "accuracy", "--budgets", "64,few")[0] == 2


def test_a_bench_refuses_options_that_it_does_not_take(cli_run):
    code, _, err = cli_run("bench", "ablation", "--budgets", "64")
    assert code == 2
    assert "takes no --budgets; it takes --device, --quick" in err


def test_without_a_clone_the_bench_says_how_to_get_it(cli_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "spex_mech.bench", None)  # as in the wheel
    code, _, err = cli_run("bench", "decode")
    assert code == 2
    assert "clone" in err
    assert "python -m spex_mech.cli bench decode" in err


def test_python_m_is_the_command_line():
    command = [sys.executable, "-m", "spex_mech.cli", "version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == sm.__version__


def test_bench_players_compares_designs_of_one_budget(cli_run, tmp_path):
    code, out, _ = cli_run("bench", "players", "--quick", "--json", tmp_path / "b.json")
    assert code == 0
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert {row["card"] for row in rows} == {"induction-2l"}
    assert all(row["masks"] + row["paid"] == 512 for row in rows)
    assert "code over all" in out
    assert "fresh_r2_0.9" in out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("discover", "planted-and", "--components", "a99.h0"), ("a99.h0", "does not exist", "layers")),
        (("discover", "planted-and", "--components", "q7"), ("q7", "not a component name")),
        (("discover", "planted-and", "--budget", "3"), ("masks",)),
        (("discover", "planted-and", "--keep", "1.5", "--budget", "100"), ("between 0 and 1",)),
        (("discover", "planted-and", "--keep", "often", "--budget", "100"), ("often", "coded")),
        (("discover", "planted-and", "--decoder", "magic"), ("magic", "proxyspex")),
        (("discover", "planted-and", "--replacement", "magic"), ("magic", "resample")),
        (("discover", "no-such-card"), ("no-such-card", "induction-2l", "--prompts")),
        (("decode", "nothing.safetensors"), ("nothing.safetensors",)),
        (("bench", "everything"), ("everything", "keep, rows, workers and constants")),
        (("discover",), ("Missing",)),
    ],
)
def test_mistakes_exit_2_with_one_message(cli_run, tmp_path, args, words):
    code, out, err = cli_run(*args, *(() if args[0] == "bench" else ("--out", tmp_path / "run")))
    assert code == 2
    assert "Traceback" not in out + err
    assert all(word in err.replace("\n", " ") for word in words), err


def test_card_with_a_missing_file_and_empty_prompts(cli_run, tmp_path):
    card = tmp_path / "card"
    card.mkdir()
    (card / "card.toml").write_bytes((CARDS / "planted-and" / "card.toml").read_bytes())
    code, _, err = cli_run("discover", card, "--out", tmp_path / "run")
    assert code == 2
    assert "planted.json" in err
    assert "prompts.jsonl" in err
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    code, _, err = cli_run("discover", "planted-and", "--prompts", empty, "--out", tmp_path / "run")
    assert code == 2
    assert "empty.jsonl" in err


def test_answers_outside_the_vocabulary(cli_run, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"tokens": [1, 0], "answer": 99_999, "distractors": [0]}) + "\n")
    code, _, err = cli_run("discover", "planted-and", "--prompts", prompts, "--out", tmp_path / "run")
    assert code == 2
    assert "99999" in err.replace(",", "")


def test_version_and_help_import_no_torch():
    code = "\n".join(
        (
            "import sys; sys.argv = ['spex-mech', '--help']",
            "from spex_mech.cli.main import main",
            "try: main()",
            "except SystemExit: pass",
            "assert 'torch' not in sys.modules",
        )
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "discover" in done.stdout
