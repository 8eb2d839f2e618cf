"""The journal: processes really killed, disks really full, files really damaged; and the same bits every time."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import spex_mech as sm
from spex_mech import planted
from spex_mech.ablation.journal import NAME, open_journal
from spex_mech.ablation.measure import measure
from spex_mech.ablation.replacement import fit_replacement
from spex_mech.ablation.respond import Engine
from spex_mech.errors import ResponseError
from spex_mech.responses import pack_bits

BUDGET, CHUNK = 2000, 256

# A process that imports once and forks a child for every run it is told: "run" to its end, "kill DELAY" in the midst
# of it, "limit BYTES" with no file allowed to grow beyond that. Each pass of the model is a line in the file CALLS.
CHILD = """
import os, resource, signal, sys, time
import torch
torch.set_num_threads(1)
import spex_mech as sm
from spex_mech import planted
from spex_mech.ablation import respond
from spex_mech.errors import SpexMechError
import spex_mech.discovery

folder, calls = sys.argv[1:3]
plain = respond.Engine.values

def slow(self, keep):
    with open(calls, "a") as file:
        file.write(f"{len(keep)}\\n")
    time.sleep(0.02)
    return plain(self, keep)

respond.Engine.values = slow
subject = planted.parity(("a0.h1", "m0.n1"), layout=planted.Layout(n_layers=2, n_heads=4, d_mlp=2))
task = planted.task(subject, n_prompts=4, seed=0)

def run():
    components = sm.heads(subject) + sm.neurons(subject)
    sm.discover(subject, task, components=components, budget=BUDGET, seed=0, out=folder, decoder="linear")

for line in sys.stdin:
    order, _, number = line.strip().partition(" ")
    child = os.fork()
    if not child:
        status = 0
        try:
            if order == "limit":
                resource.setrlimit(resource.RLIMIT_FSIZE, (int(number), int(number)))
            run()
        except SpexMechError as error:
            print(type(error).__name__, str(error).replace(chr(10), " "), flush=True)
            status = 2
        os._exit(status)
    if order == "kill":
        time.sleep(float(number))
        os.kill(child, signal.SIGKILL)
    print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
""".replace("BUDGET", str(BUDGET))


class Runs:
    """Runs of one experiment in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder / "run", folder / "calls"
        script = folder / "child.py"
        script.write_text(CHILD)
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(self.folder), str(self.calls)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def __call__(self, order: str) -> tuple[int, str]:
        """The exit status of a run, and what it said."""
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()
        said = ""
        for line in self.process.stdout:
            if line.startswith("ended"):
                return int(line.split()[1]), said
            said += line
        raise AssertionError(f"the process that starts the runs ended: {said}")

    def masks_run(self) -> int:
        return sum(map(int, self.calls.read_text().split())) if self.calls.exists() else 0

    def responses(self) -> sm.Responses:
        return sm.Responses.load(self.folder / "responses.safetensors")


@pytest.fixture
def runs(tmp_path):
    made = Runs(tmp_path)
    yield made
    made.process.stdin.close()
    made.process.stdout.close()
    made.process.wait(10)


@pytest.fixture(scope="module")
def experiment():
    subject = planted.parity(("a0.h1", "m0.n1"), layout=planted.Layout(n_layers=2, n_heads=4, d_mlp=2))
    components = sm.heads(subject) + sm.neurons(subject)
    task = planted.task(subject, n_prompts=4, seed=0)
    engine = Engine(subject, task, components, fit_replacement(subject, task, components))
    return engine, sm.MaskDesign.bernoulli(len(components), BUDGET, 0.5, 0)


@pytest.fixture(scope="module")
def uninterrupted(experiment):
    engine, design = experiment
    return measure(engine, design.chunks(CHUNK))


def kill_until_done(runs, uninterrupted, delays):
    killed = [runs(f"kill {delay:.3f}")[0] for delay in delays]
    assert -signal.SIGKILL in killed
    assert runs("run") == (0, "")
    assert torch.equal(runs.responses().values, uninterrupted)
    # at most the chunk that was under way is measured twice for each kill
    assert runs.masks_run() <= BUDGET + CHUNK * len(delays)
    assert not (runs.folder / NAME).exists()
    assert sm.load_run(runs.folder).heldout_r2 is not None


def test_killed_at_any_moment_it_goes_on_and_gives_the_same_bits(runs, uninterrupted):
    delays = 0.02 + 0.14 * torch.rand(10, generator=torch.Generator().manual_seed(0))
    kill_until_done(runs, uninterrupted, delays.tolist())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_killed_again_and_again(runs, uninterrupted, seed):
    delays = 0.3 * torch.rand(12, generator=torch.Generator().manual_seed(seed))
    kill_until_done(runs, uninterrupted, delays.tolist())


def test_a_full_disk_is_one_clear_error_and_loses_nothing(runs, uninterrupted):
    for limit in (8_000, 60_000):  # bytes a file may have: not even a journal; the first chunks of it
        status, said = runs(f"limit {limit}")
        assert status == 2
        assert said.startswith("ResponseError")
        assert NAME in said
    assert "Make room" in said
    assert CHUNK < runs.masks_run() < BUDGET
    before = runs.masks_run()
    assert runs("run") == (0, "")
    assert torch.equal(runs.responses().values, uninterrupted)
    assert runs.masks_run() - before < BUDGET - CHUNK  # what was finished is not measured again


def test_a_disk_that_fills_up_while_writing(experiment, tmp_path):
    engine, design = experiment

    class Full:
        def __init__(self, inner):
            self.inner, self.left = inner, 3

        def execute(self, statement, *values):
            if statement == "COMMIT":
                self.left -= 1
                if self.left < 0:
                    raise sqlite3.OperationalError("database or disk is full")
            return self.inner.execute(statement, *values)

        def close(self):
            self.inner.close()

    with open_journal(tmp_path, {"a": 1}) as journal:
        journal._connection = Full(journal._connection)
        with pytest.raises(ResponseError, match=r"masks 768 to 1,023: database or disk is full.*Make room"):
            measure(engine, design.chunks(CHUNK), journal)
    with open_journal(tmp_path, {"a": 1}) as journal:
        measure(engine, design.chunks(CHUNK), journal)
        assert journal.resumed == 768


def test_a_second_process_is_refused_and_the_first_goes_on(experiment, tmp_path):
    script = (
        "import sys, time; from pathlib import Path\n"
        "from spex_mech.ablation.journal import open_journal\n"
        "with open_journal(Path(sys.argv[1]), {'a': 1}): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ResponseError, match="in use: another process"), open_journal(tmp_path, {"a": 1}):
        pass
    assert holder.poll() is None
    holder.kill()  # the lock goes with the process
    holder.wait()
    holder.stdout.close()
    with open_journal(tmp_path, {"a": 1}) as journal:
        assert journal.resumed == 0


def test_another_experiment_is_refused_by_name_of_what_differs(tmp_path):
    with open_journal(tmp_path, {"subject": {"weights_sha256": "aa"}, "task": {"metric": "kl"}}):
        pass
    edited = {"subject": {"weights_sha256": "bb"}, "task": {"metric": "kl"}}
    with (
        pytest.raises(ResponseError, match=r"subject\.weights_sha256 \('aa' there, 'bb' here\)"),
        open_journal(tmp_path, edited),
    ):
        pass


def test_weights_edited_between_two_runs_are_noticed(tmp_path, monkeypatch):
    from tiny_models import tiny, tokens_task

    model, task = tiny("gpt2"), tokens_task()
    plain, calls = Engine.values, []

    def stop(self, keep):
        calls.append(len(keep))
        if len(calls) > 1:
            raise KeyboardInterrupt
        return plain(self, keep)

    monkeypatch.setattr(Engine, "values", stop)
    with pytest.raises(KeyboardInterrupt):
        sm.discover(model, task, budget=600, out=tmp_path, decoder="linear")
    monkeypatch.setattr(Engine, "values", plain)
    weight = model.transformer.h[0].mlp.c_fc.weight.data
    before = weight[0, 0].clone()
    weight[0, 0] = before + 1
    with pytest.raises(ResponseError, match=r"subject\.weights_sha256"):
        sm.discover(model, task, budget=600, out=tmp_path, decoder="linear")
    weight[0, 0] = before
    found = sm.discover(model, task, budget=600, out=tmp_path, decoder="linear")
    assert found.record["resumed_masks"] == 256


def test_repeated_masks_are_measured_once(experiment, monkeypatch):
    engine, _ = experiment
    generator = torch.Generator().manual_seed(0)
    few = torch.rand(5, len(engine.components), generator=generator) < 0.5
    keep = few[torch.randint(0, 5, (40,), generator=generator)]
    seen, plain = [], Engine.values

    def count(self, rows):
        seen.append(len(rows))
        return plain(self, rows)

    monkeypatch.setattr(Engine, "values", count)
    values = measure(engine, [(0, keep[:30]), (30, keep[30:])])
    assert sum(seen) == len(keep.unique(dim=0)) == 5
    monkeypatch.setattr(Engine, "values", plain)
    assert torch.allclose(values, engine.values(keep), atol=1e-6)


def test_a_damaged_chunk_is_measured_again(experiment, uninterrupted, tmp_path):
    engine, design = experiment
    with open_journal(tmp_path, {"a": 1}) as journal:
        measure(engine, design.chunks(CHUNK), journal)
    with sqlite3.connect(tmp_path / NAME) as connection:
        connection.execute('UPDATE chunks SET "values" = zeroblob(length("values")) WHERE first = 512')
    connection.close()
    with open_journal(tmp_path, {"a": 1}) as journal:
        with pytest.warns(UserWarning, match="chunk at mask 512 is measured again: its checksum"):
            values = measure(engine, design.chunks(CHUNK), journal)
        assert journal.resumed == BUDGET - CHUNK
    assert torch.equal(values, uninterrupted)


@pytest.mark.filterwarnings("ignore:.*(measured again|begun anew)")
@pytest.mark.parametrize("seed", range(12))
def test_flipped_bits_never_give_other_values(experiment, uninterrupted, tmp_path, seed):
    engine, design = experiment
    with open_journal(tmp_path, {"a": 1}) as journal:
        measure(engine, design.chunks(CHUNK), journal)
    path = tmp_path / NAME
    data = bytearray(path.read_bytes())
    generator = torch.Generator().manual_seed(seed)
    for place in torch.randint(0, len(data), (1 + seed * 3,), generator=generator).tolist():
        data[place] ^= 1 << (place % 8)
    path.write_bytes(data[: len(data) // 2] if seed == 11 else data)
    with contextlib.suppress(ResponseError), open_journal(tmp_path, {"a": 1}) as journal:
        assert torch.equal(measure(engine, design.chunks(CHUNK), journal), uninterrupted)


def test_a_file_that_is_no_journal_is_put_aside(tmp_path):
    (tmp_path / NAME).write_bytes(b"something else entirely" * 100)
    with pytest.warns(UserWarning, match="begun anew"), open_journal(tmp_path, {"a": 1}) as journal:
        journal.write(0, pack_bits(torch.ones(2, 3, dtype=torch.bool)), torch.ones(2, 4))
    assert (tmp_path / f"{NAME}.damaged").read_bytes().startswith(b"something else")


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResponseError, match="cannot be"), open_journal(tmp_path / "file", {"a": 1}):
        pass


def test_the_journal_costs_little(experiment, tmp_path):
    """A chunk on disk takes milliseconds; the forward passes of 256 masks of a real model take seconds."""
    keep = pack_bits(torch.rand(CHUNK, 200, generator=torch.Generator().manual_seed(0)) < 0.5)
    values = torch.ones(CHUNK, 64)
    with open_journal(tmp_path, {"a": 1}) as journal:
        started = time.perf_counter()
        for chunk in range(20):
            journal.write(chunk * CHUNK, keep, values)
        assert (time.perf_counter() - started) / 20 < 0.25
