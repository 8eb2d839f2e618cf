"""The command line for machines and for learners: JSON, help, completion, what a run will cost, what an installation
lacks."""

import io
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.main import get_command

import spex_mech as sm
from spex_mech.ablation import load
from spex_mech.cli import commands, costs, environment, options, printing
from spex_mech.cli import main as cli
from spex_mech.errors import ModelError, warn_user
from spex_mech.gallery.studies import open_study
from spex_mech.measuring import decode as recovery
from spex_mech.measuring.threads import threads


@pytest.fixture
def cli_run(capsys, monkeypatch):
    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["spex-mech", *map(str, args)])
        monkeypatch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return call


def test_json_says_what_the_run_folder_says(cli_run, tmp_path):
    run = tmp_path / "run"
    code, out, _ = cli_run(
        "discover", "planted-additive", "--budget", 200, "--decoder", "proxyspex", "--out", run, "--json"
    )
    told, found = json.loads(out), sm.load_run(run)
    assert code == 0
    assert told["heldout_r2"] == pytest.approx(found.heldout_r2)
    assert [tuple(row["components"]) for row in told["interactions"]] == list(found.interactions()["components"])
    assert told["interactions"][0]["coefficient"] == pytest.approx(found.interactions().iloc[0]["coefficient"])
    _, out, _ = cli_run(
        "decode", run / "responses.safetensors", "--decoder", "linear", "--out", tmp_path / "b", "--json"
    )
    assert {len(row["components"]) for row in json.loads(out)["interactions"]} == {1}
    _, out, _ = cli_run("audit", run, "--budget", 200, "--json")
    assert json.loads(out)["circuit"]["faithfulness"] == sm.load_audit(run / "audit.json").circuit.faithfulness
    _, out, _ = cli_run("doctor", "planted-or", "--json")
    told = json.loads(out)
    assert told["problems"] == []
    assert told["packages"]["torch"]["found"]
    assert {site["site"] for site in told["model"]["sites"]} == {"heads", "neurons", "mlp"}


def test_numbers_that_are_none_become_null():
    assert json.loads(commands.as_json({"a": [float("nan"), 1.5], "b": float("inf")})) == {"a": [None, 1.5], "b": None}


@pytest.mark.parametrize("name", sorted(get_command(cli.app).commands))
def test_help_fits_80_columns_and_its_examples_parse(cli_run, name):
    code, out, _ = cli_run(name, "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    known = get_command(cli.app).commands
    for line in re.findall(r"spex-mech (\S.*)", known[name].epilog or ""):
        command, *words = shlex.split(line)
        context = known[command].make_context(command, words)  # raises where an option is unknown or a value missing
        assert context.params


def test_help_teaches(cli_run):
    _, out, _ = cli_run("discover", "--help")
    for what in ("Examples", "--components", "What is asked", "What is spent", "a9.h6 a head", "goes on"):
        assert what in re.sub(r"[│\s]+", " ", out) or what in out
    _, out, _ = cli_run("--help")
    assert "spex-mech demo" in out
    assert "--install-completion" in out


def test_shells_complete_cards_decoders_and_formats():
    assert options.complete_card("planted-") == [name for name in sm.cards() if name.startswith("planted-")]
    (parameter,) = [p for p in get_command(cli.app).commands["decode"].params if "--decoder" in p.opts]
    assert [item.value for item in parameter.shell_complete(None, "pro")] == ["proxyspex"]


def test_the_cost_is_told_before_it_is_spent(cli_run, tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "SLOW", 100)
    args = ("discover", "induction-2l", "--budget", 300, "--decoder", "linear", "--out", tmp_path)
    _, out, _ = cli_run(*args)
    first = re.search(r"300 masks × 16 prompts = 4,800 forward rows ≈ [\d.]+ \w+ at [\d,]+ rows/s", out)
    assert first
    assert first.start() < out.index("Strongest of")
    monkeypatch.setattr(commands, "estimate_cost", None)  # nothing is measured where all is there
    _, out, _ = cli_run(*args)
    assert "4,800 forward rows\n" in out


def test_an_estimate_is_of_the_engine_that_will_run():
    study = open_study("induction-2l")
    told = costs.estimate_cost(study.subject, study.task, study.components, 256)
    assert told.rows == 4096
    assert 0.01 < told.seconds < 300
    with pytest.raises(sm.SpexMechError, match="magic"):
        costs.estimate_cost(study.subject, study.task, study.components, 256, replacement="magic")


def test_workers_that_crowd_each_other_are_told_what_to_do(monkeypatch):
    monkeypatch.setattr(costs.os, "cpu_count", lambda: 4)
    cpu, gpu, two = torch.device("cpu"), torch.device("cuda"), sm.Workers("induction-2l", 2)
    with threads(4):
        told = costs.crowding(two, cpu)
        assert "2 workers of 4 threads wait for each other on 4 cores" in told
        assert "OMP_NUM_THREADS=2" in told
        assert costs.crowding(None, cpu) == costs.crowding(two, gpu) == ""
        assert costs.crowding(sm.Workers("induction-2l", 2, address="auto"), cpu) == ""
        assert told in captured(printing.print_question, costs.Cost(64, 4, note=told))
    with threads(2):
        assert costs.crowding(two, cpu) == ""


def captured(show, cost):
    """What is printed of a question at this cost, on one line."""
    console = Console(file=io.StringIO(), width=400)
    show(open_study("planted-and"), cost, Path("runs/here"), console)
    return console.file.getvalue()


def test_what_an_installation_lacks_is_named(cli_run, monkeypatch):
    real = environment._version_of
    monkeypatch.setattr(
        environment, "_version_of", lambda name: {"nnsight": "0.4.1", "lightgbm": None}.get(name, real(name))
    )
    code, out, err = cli_run("doctor")
    assert code == 2
    told = " ".join(err.split())
    assert "nnsight 0.4.1 is too old; it needs >=0.8" in told
    assert "lightgbm is not installed" in told
    assert max(map(len, out.splitlines())) <= 80 or "pip install" in out
    assert environment.Package("torch", "2.13.0+cu130", ">=2.6").problem is None
    assert environment.Package("ray", None, "", "several machines").problem is None


def test_what_a_pilot_chose_is_said_with_its_reason(cli_run, tmp_path):
    code, out, _ = cli_run(
        "discover", "planted-additive", "--budget", 240, "--keep", "auto", "--decoder", "linear", "--out", tmp_path
    )
    told = " ".join(out.split())
    pilot = sm.load_run(tmp_path).record["pilot"]
    assert code == 0
    assert (
        f"Masks drawn with keep {pilot['keep_probs'][0]:g} and {pilot['keep_probs'][1]:g} (auto): {pilot['reason']}."
        in told
    )


def test_few_bits_are_decoded_by_one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with recovery.calm(recovery.FEW_BITS):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with recovery.calm(recovery.FEW_BITS + 1):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_sets_within_chance_are_counted_and_an_empty_table_is_not_drawn(cli_run, tmp_path):
    _, out, _ = cli_run("discover", "planted-and", "--budget", 40, "--decoder", "linear", "--out", tmp_path / "run")
    found, told = sm.load_run(tmp_path / "run"), " ".join(out.split())
    assert not len(found.interactions())
    assert "Strongest of" not in told
    sets = int((found.spectrum.orders > 0).sum())
    assert f"No interaction is beyond chance: {sets} sets of the polynomial with q > 0.05" in told
    assert (
        printing._about_unsure(1, 5, exact=False)
        == "1 more set of the polynomial within chance (q > 0.05), in spectrum.json only."
    )


def test_where_the_hub_does_not_answer_it_is_told_at_once(monkeypatch):
    class Silent:
        def model_info(self, name, timeout):
            raise RuntimeError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi", Silent)
    monkeypatch.setattr(load, "_fetch", lambda *_, **__: pytest.fail("nothing may be fetched"))
    with pytest.raises(ModelError, match=r"'no-one/nothing' is no folder here.*ConnectionError"):
        load.load_model("no-one/nothing")


def test_cautions_are_lines_of_the_terminal(capsys, monkeypatch):
    monkeypatch.setattr(cli, "app", lambda args: [warn_user("probability saturates [a lot]") for _ in range(2)])
    monkeypatch.setattr("sys.argv", ["spex-mech"])
    cli.main()
    assert capsys.readouterr().err == "caution: probability saturates [a lot]\n"
