"""Ctrl-C as a terminal sends it, to all processes of a command at once: it stops, says so, and the run goes on.

`test_journal` has the same for one process, quickly.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import spex_mech as sm
from spex_mech.measuring.journal import JOURNAL

ARGS = ["discover", "induction-2l", "--budget", "2500", "--keep", "0.7", "--decoder", "linear", "--link", "identity"]


def begin(folder, *options):
    return subprocess.Popen(
        [sys.executable, "-m", "spex_mech.cli", *ARGS, "--out", str(folder), *options], start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip


def wait_for_chunks(process, folder, seconds):
    """Until some chunks are in the journal."""
    log, until = folder / f"{JOURNAL}-wal", time.monotonic() + seconds
    while not (log.exists() and log.stat().st_size > 60_000):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.02)


def press_ctrl_c(process):
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; the same command goes on" in told
    assert "Traceback" not in told
    return told


def goes_on(folder, *options):
    process = begin(folder, *options, "--json")
    said, told = process.communicate(timeout=250)
    assert process.returncode == 0, told
    assert json.loads(said)["masks"] == 2500
    return sm.load_run(folder)


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--workers", "2"), ("--ray", "--workers", "2")])
def test_ctrl_c_stops_workers_too_and_the_run_goes_on_with_or_without_them(tmp_path, options):
    if options:
        pytest.importorskip("ray", reason="ray is not installed: pip install 'spex-mech[ray]'")
    process = begin(tmp_path / "run", *options)
    wait_for_chunks(process, tmp_path / "run", 200)
    press_ctrl_c(process)
    assert not alive(process.pid)
    found, whole = goes_on(tmp_path / "run"), goes_on(tmp_path / "whole")
    assert 256 <= found.record["resumed_masks"] < 2500
    assert (found.responses.values == whole.responses.values).all()
    other = begin(tmp_path / "other")
    wait_for_chunks(other, tmp_path / "other", 200)
    press_ctrl_c(other)
    assert (goes_on(tmp_path / "other", *options).responses.values == whole.responses.values).all()


def alive(session, seconds=20):
    """Processes of a session that have not ended after so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        said = subprocess.run(["ps", "-o", "pid=,stat=", "-s", str(session)], capture_output=True, text=True).stdout
        left = [line for line in said.splitlines() if not line.split()[1].startswith("Z")]
        if not left:
            break
        time.sleep(0.5)
    return left
