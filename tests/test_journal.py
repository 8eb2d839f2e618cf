"""The journal: processes really killed, disks really full, files really damaged; and the same bits every time."""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.ablation.replacement import fit_replacement
from spex_mech.ablation.respond import Engine
from spex_mech.api.discover import decode
from spex_mech.errors import FormatError, ResponseError
from spex_mech.files.locks import LOCK as LOCK
from spex_mech.files.locks import hold
from spex_mech.measuring.journal import JOURNAL, open_journal
from spex_mech.measuring.measure import measure
from spex_mech.measuring.threads import threads
from spex_mech.store.responses import pack_bits

BUDGET, CHUNK = 2000, 256
WEIGHTS = {"a0.h1": 0.7310585, "a1.h2": -1.1102230, "m0.n1": 3.3219281, "m1.n0": 0.0123457}

# A process that imports once and forks a child for every order "WHAT FOLDER NUMBER": "run" goes to its end, "kill" is
# killed after that many seconds; "end" and "stop" are the same with a search for a link, "finish" and "cut" with a
# decoder that takes a while; "limit" lets no file grow beyond that many bytes, "die" kills itself while the last file
# is written, at that point of it; "cli" is the command line, killed at that pass of the model (0: never), "ctrl-c" the
# same, stopped as by its user. Each pass of the model is a line in the file "calls" beside the folder.
CHILD = """
import builtins, os, resource, signal, sys, time
import lightgbm, torch  # with all that runs load later: a run that may write little could not even keep its bytecode
torch.set_num_threads(1)
import spex_mech as sm
from spex_mech.cli import main as cli
from spex_mech.ablation.backends import planted
from spex_mech.ablation import respond
from spex_mech.errors import SpexMechError
import spex_mech.cli.commands, spex_mech.api.discover, spex_mech.cli.printing, spex_mech.gallery.studies

plain, passes = respond.Engine.values, []
spex_mech.cli.commands.SLOW = 10**9  # no passes to tell how long it will take

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def slow(self, keep):
    passes.append(keep)
    if order in ("cli", "ctrl-c") and len(passes) == int(number):
        os.kill(os.getpid(), signal.SIGKILL if order == "cli" else signal.SIGINT)
    with open(folder + ".calls", "a") as file:
        file.write(f"{len(keep)}\\n")
    time.sleep(0.02)
    return plain(self, keep)

respond.Engine.values = slow
subject = planted.additive(WEIGHTS, layout=planted.PlantedLayout(n_layers=2, n_heads=4, d_mlp=2), spread=0.3)
task = planted.task(n_prompts=4, seed=0)

def run():
    components = sm.heads(subject) + sm.neurons(subject)
    slow = order in ("finish", "cut")
    sm.discover(subject, task, components=components, budget=700 if slow else BUDGET, seed=0, out=folder,
        decoder="proxyspex" if slow else "linear", link="auto" if order in ("end", "stop") else "identity")

def die_at(point):
    last, opened, replaced = "responses.safetensors", open, os.replace
    def half(path, *args, **options):
        file = opened(path, *args, **options)
        if os.path.basename(str(path)).startswith("." + last):
            file.write(b"half of it")
            file.flush()
            die()
        return file
    def after(source, target):
        replaced(source, target)
        if os.path.basename(target) == last:
            die()
    if point == "half":
        builtins.open = half
    else:
        os.replace = after if point == "after" else os.replace
        setattr(os, point, die) if point in ("fsync", "replace") else None

def child():
    if order == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(number), int(number)))
    if order == "die":
        die_at(number)
    if order not in ("cli", "ctrl-c"):
        return run()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have it ignored
    sys.stderr = sys.stdout
    sys.argv = ["spex-mech", "discover", "planted-and", "--budget", "1000", "--decoder", "linear", "--out", folder]
    cli.main()

for line in sys.stdin:
    order, folder, number = line.split()
    pid = os.fork()
    if not pid:
        status = 0
        try:
            child()
        except SpexMechError as error:
            print(type(error).__name__, str(error).replace(chr(10), " "), flush=True)
            status = 2
        except SystemExit as stop:
            status = stop.code or 0
        sys.stdout.flush()
        os._exit(status)
    if order in ("kill", "stop", "cut"):
        time.sleep(float(number))
        os.kill(pid, signal.SIGKILL)
    print("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
""".replace("BUDGET", str(BUDGET)).replace("WEIGHTS", str(WEIGHTS))


class Runs:
    """Runs of one experiment, each in a process of its own."""

    def __init__(self, process: subprocess.Popen, folder: Path) -> None:
        self.process, self.folder = process, folder

    def __call__(self, order: str, number: object = 0) -> tuple[int, str]:
        """The exit status of a run, and what it said."""
        self.process.stdin.write(f"{order} {self.folder} {number}\n")
        self.process.stdin.flush()
        said = ""
        for line in self.process.stdout:
            if line.startswith("ended"):
                return int(line.split()[1]), said
            said += line
        raise AssertionError(f"the process that starts the runs ended: {said}")

    def masks_run(self) -> int:
        calls = Path(f"{self.folder}.calls")
        return sum(map(int, calls.read_text().split())) if calls.exists() else 0

    def responses(self) -> sm.Responses:
        return sm.Responses.load(self.folder / "responses.safetensors")


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    script = tmp_path_factory.mktemp("child") / "child.py"
    script.write_text(CHILD)
    made = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )  # fmt: skip
    yield made
    made.stdin.close()
    made.stdout.close()
    made.wait(10)


@pytest.fixture
def runs(process, tmp_path):
    return Runs(process, tmp_path / "run")


@pytest.fixture(scope="module")
def experiment():
    subject = planted.additive(WEIGHTS, layout=planted.PlantedLayout(n_layers=2, n_heads=4, d_mlp=2), spread=0.3)
    components = sm.heads(subject) + sm.neurons(subject)
    task = planted.task(n_prompts=4, seed=0)
    engine = Engine(subject, task, components, fit_replacement(subject, task, components))
    return engine, sm.MaskDesign.bernoulli(len(components), BUDGET, 0.5, 0)


@pytest.fixture(scope="module")
def uninterrupted(experiment):
    engine, design = experiment
    return measure(engine, design.chunks(CHUNK))


@pytest.fixture(scope="module")
def distinct(experiment):
    """How many masks the design has, each counted once."""
    return len(experiment[1].keep().unique(dim=0))


def kill_until_done(runs, uninterrupted, distinct, delays):
    killed = [runs("kill", f"{delay:.3f}")[0] for delay in delays]
    assert -signal.SIGKILL in killed
    assert runs("run") == (0, "")
    assert torch.equal(runs.responses().values, uninterrupted)
    # for each kill, the chunk that was under way is measured again, and no other
    assert distinct <= runs.masks_run() <= distinct + CHUNK * killed.count(-signal.SIGKILL)
    assert not (runs.folder / LOCK).exists()
    assert sm.load_run(runs.folder).heldout_r2 is not None


def test_killed_at_any_moment_it_goes_on_and_gives_the_same_bits(runs, uninterrupted, distinct):
    delays = 0.02 + 0.14 * torch.rand(10, generator=torch.Generator().manual_seed(0))
    kill_until_done(runs, uninterrupted, distinct, delays.tolist())


@pytest.mark.parametrize("point", ["half", "fsync", "replace", "after"])
def test_killed_while_the_last_file_is_written_nothing_is_measured_again(runs, uninterrupted, distinct, point):
    assert runs("die", point)[0] == -signal.SIGKILL
    assert (runs.folder / "responses.safetensors").exists() == (point == "after")
    assert runs("run") == (0, "")
    assert torch.equal(runs.responses().values, uninterrupted)
    assert runs.masks_run() == distinct
    log = {f"{JOURNAL}-wal"} if point == "after" else set()  # nobody opened the journal again
    assert {path.name for path in runs.folder.iterdir()} - log == {
        "run.json", "responses.safetensors", JOURNAL, "spectrum.json", "circuit.json", "interactions.csv"
    }  # fmt: skip


def test_the_command_line_says_how_many_chunks_came_from_the_journal(runs):
    assert runs("cli", 3)[0] == -signal.SIGKILL
    before = runs.masks_run()
    status, said = runs("cli")
    assert status == 0
    assert "2 chunks of 4 (512 masks) came from the journal" in " ".join(said.split())
    assert before < runs.masks_run() <= before + 488
    before = runs.masks_run()
    status, said = runs("cli")
    assert status == 0
    assert "all 1,000 masks were on disk from before" in " ".join(said.split())
    assert runs.masks_run() == before


def test_ctrl_c_says_so_and_the_same_command_goes_on(runs):
    status, said = runs("ctrl-c", 3)
    assert status == 130
    assert "stopped; the same command goes on from what its run folder holds." in " ".join(said.split())
    assert "Traceback" not in said
    status, said = runs("cli")
    assert status == 0
    assert "2 chunks of 4 (512 masks) came from the journal" in " ".join(said.split())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_killed_again_and_again(runs, uninterrupted, distinct, seed):
    delays = 0.3 * torch.rand(12, generator=torch.Generator().manual_seed(seed))
    kill_until_done(runs, uninterrupted, distinct, delays.tolist())


def test_a_full_disk_is_one_clear_error_and_loses_nothing(runs, uninterrupted, distinct):
    for limit in (8_000, 66_000):  # bytes a file may have: not even a journal; the first chunks of it
        status, said = runs("limit", limit)
        assert status == 2
        assert said.startswith("ResponseError")
        assert JOURNAL in said
    assert "Make room" in said
    assert CHUNK < runs.masks_run() < distinct
    assert runs("run") == (0, "")
    assert torch.equal(runs.responses().values, uninterrupted)
    # each of the two found that its last chunk does not go on disk; what was finished is not measured again
    assert runs.masks_run() <= distinct + 2 * CHUNK


def test_a_disk_that_fills_up_while_writing(experiment, tmp_path):
    engine, design = experiment

    class Full:
        def __init__(self, inner):
            self.inner, self.left = inner, 5  # the size of a batch, the threads, and three chunks

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
        "from spex_mech.measuring.journal import open_journal\n"
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


def stop_at(monkeypatch, number):
    """Engines stop, as if by the user, at that pass; returns what brings them back."""
    plain, calls = Engine.values, []

    def stop(self, keep):
        calls.append(len(keep))
        if len(calls) == number:
            raise KeyboardInterrupt
        return plain(self, keep)

    monkeypatch.setattr(Engine, "values", stop)
    return lambda: monkeypatch.setattr(Engine, "values", plain)


def test_weights_edited_between_two_runs_are_noticed_and_put_back_give_the_same_bits(tmp_path, monkeypatch):
    from tiny_models import tiny, tokens_task

    model, task = tiny("gpt2"), tokens_task()
    options = {"budget": 600, "decoder": "linear"}
    whole = sm.discover(model, task, **options)
    go_on = stop_at(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        sm.discover(model, task, out=tmp_path, **options)
    go_on()
    weight = model.transformer.h[0].mlp.c_fc.weight.data
    before = weight[0, 0].clone()
    weight[0, 0] = before + 1
    with pytest.raises(ResponseError, match=r"subject\.weights_sha256"):
        sm.discover(model, task, out=tmp_path, **options)
    weight[0, 0] = before
    # as on a machine that has room for other batches: the run keeps to those it began with, for their bits
    monkeypatch.setattr("spex_mech.ablation.respond.rows_that_fit", lambda *_: 3)
    found = sm.discover(model, task, out=tmp_path, **options)
    assert (found.record["resumed_masks"], found.record["resumed_chunks"]) == (256, 1)
    assert torch.equal(found.responses.values, whole.responses.values)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("what", ["components", "metric"])
def test_what_has_the_same_name_or_number_but_is_not_the_same_is_refused(tmp_path, monkeypatch, finished, what):
    subject = planted.conjunction(("a0.h1", "a1.h0"), layout=planted.PlantedLayout(n_layers=2, n_heads=4, d_mlp=2))
    task = planted.task(n_prompts=4, seed=0)

    def experiment(changed):
        factor = 2.0 if changed and what == "metric" else 1.0
        components = "a0.h2, a1.h3" if changed and what == "components" else "a0.h1, a1.h0"
        judged = task.with_metric(lambda logits, _: logits[:, 1] * factor)
        return sm.discover(subject, judged, components=components, budget=600, out=tmp_path, decoder="linear")

    if finished:
        experiment(changed=False)
    else:
        go_on = stop_at(monkeypatch, 1)
        with pytest.raises(KeyboardInterrupt):
            experiment(changed=False)
        go_on()
    named = {"components": r"\['a0.h1', 'a1.h0'\] there, \['a0.h2', 'a1.h3'\] here", "metric": "metric_sha256"}
    with pytest.raises(ResponseError, match=named[what]):
        experiment(changed=True)
    assert experiment(changed=False).record["resumed_masks"] == (600 if finished else 0)


def test_the_journal_gives_back_responses_that_were_lost(tmp_path, monkeypatch):
    subject = planted.conjunction(("a0.h1", "a1.h0"), layout=planted.PlantedLayout(n_layers=2, n_heads=4, d_mlp=2))
    task, options = planted.task(n_prompts=4, seed=0), {"budget": 600, "out": tmp_path, "decoder": "linear"}
    first = sm.discover(subject, task, **options)
    file = tmp_path / "responses.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    stop_at(monkeypatch, 1)
    with pytest.raises(FormatError, match="Remove it and run again"):
        sm.discover(subject, task, **options)
    file.unlink()
    assert torch.equal(sm.discover(subject, task, **options).responses.values, first.responses.values)


def test_a_folder_that_is_in_use_is_refused_before_anything_is_spent(runs):
    script = (
        "import sys, time; from spex_mech.files.locks import hold\n"
        "with hold(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, runs.folder], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    status, said = runs("run")
    assert (status, runs.masks_run()) == (2, 0)
    assert f"process {holder.pid} on" in said
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert (runs.folder / LOCK).exists()  # it died with it, but the lock went
    with hold(runs.folder), pytest.raises(ResponseError, match=f"process {os.getpid()} on"), hold(runs.folder):
        pass
    assert not (runs.folder / LOCK).exists()


def test_of_many_processes_that_begin_at_once_one_measures(tmp_path):
    """The lock file is removed and made again all the time; nobody may hold it beside another."""
    script = (
        "import os, sys; from spex_mech.errors import ResponseError; from spex_mech.files.locks import hold\n"
        "alone, won = sys.argv[1] + '/alone', 0\n"
        "for _ in range(700):\n"
        "    try:\n"
        "        with hold(sys.argv[1]):\n"
        "            os.close(os.open(alone, os.O_CREAT | os.O_EXCL)); os.unlink(alone); won += 1\n"
        "    except ResponseError:\n"
        "        pass\n"
        "print(won)"
    )
    several = [
        subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    said = [process.communicate()[0] for process in several]
    assert [process.returncode for process in several] == [0, 0, 0]
    assert all(int(count) > 0 for count in said)


def test_other_responses_are_never_taken_for_those_in_the_folder(tmp_path):
    components = sm.ComponentSet.of(["a0.h0", "a0.h1", "m0"])
    keep = sm.MaskDesign.complete(3).keep()
    one, two = (sm.Responses(components, keep, torch.full((8, 1), value), "logit") for value in (1.0, 2.0))
    decode(one, decoder="linear", out=tmp_path)
    decode(one, decoder="linear", out=tmp_path)
    with pytest.raises(ResponseError, match=r"sha256\.values"):
        decode(two, decoder="linear", out=tmp_path)


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
    with sqlite3.connect(tmp_path / JOURNAL) as connection:
        connection.execute("UPDATE chunks SET numbers = zeroblob(length(numbers)) WHERE first = 512")
    connection.close()
    with open_journal(tmp_path, {"a": 1}) as journal:
        with pytest.warns(UserWarning, match="chunk at mask 512 must be measured again: its checksum"):
            values = measure(engine, design.chunks(CHUNK), journal)
        assert journal.resumed == BUDGET - CHUNK
    assert torch.equal(values, uninterrupted)


@pytest.mark.filterwarnings("ignore:.*(measured again|begun anew)")
@pytest.mark.parametrize("seed", range(40))
def test_flipped_bits_never_give_other_values(experiment, uninterrupted, written, tmp_path, seed):
    """Nor any error but ours; every second seed flips bits where the pages say what is in them."""
    engine, design = experiment
    data, generator = bytearray(written), torch.Generator().manual_seed(seed)
    count = (1, 4, 40)[seed % 3]
    places = torch.randint(0, len(data), (count,), generator=generator)
    if seed % 2:
        places = places // 4096 * 4096 + places % 100
    for place in places.tolist():
        data[place] ^= 1 << (place % 8)
    (tmp_path / JOURNAL).write_bytes(data[: len(data) // 2] if seed == 39 else data)
    with contextlib.suppress(ResponseError), open_journal(tmp_path, {"a": 1}) as journal:
        assert torch.equal(measure(engine, design.chunks(CHUNK), journal), uninterrupted)


@pytest.fixture(scope="module")
def written(experiment, tmp_path_factory):
    """The bytes of a whole journal."""
    engine, design = experiment
    folder = tmp_path_factory.mktemp("written")
    with open_journal(folder, {"a": 1}) as journal:
        measure(engine, design.chunks(CHUNK), journal)
    return (folder / JOURNAL).read_bytes()


@pytest.fixture(scope="module")
def killed(experiment, tmp_path_factory):
    """The files of a journal as a process that is killed leaves them: nothing was folded into the main file."""
    engine, design = experiment
    folder, left = tmp_path_factory.mktemp("killed"), tmp_path_factory.mktemp("left")
    with open_journal(folder, {"a": 1}) as journal:
        measure(engine, design.chunks(CHUNK), journal)
        for name in (JOURNAL, f"{JOURNAL}-wal"):
            shutil.copy(folder / name, left / name)
    assert (left / f"{JOURNAL}-wal").stat().st_size > (left / JOURNAL).stat().st_size
    return left


@pytest.mark.filterwarnings("ignore:.*(measured again|begun anew)")
@pytest.mark.parametrize("seed", range(16))
def test_flipped_bits_of_a_log_never_give_other_values(experiment, uninterrupted, killed, tmp_path, seed):
    engine, design = experiment
    shutil.copy(killed / JOURNAL, tmp_path / JOURNAL)
    data, generator = bytearray((killed / f"{JOURNAL}-wal").read_bytes()), torch.Generator().manual_seed(seed)
    for place in torch.randint(0, len(data), ((0, 1, 4, 40)[seed % 4],), generator=generator).tolist():
        data[place] ^= 1 << (place % 8)
    (tmp_path / f"{JOURNAL}-wal").write_bytes(data[: len(data) // 3] if seed == 8 else data)
    with open_journal(tmp_path, {"a": 1}) as journal:
        assert torch.equal(measure(engine, design.chunks(CHUNK), journal), uninterrupted)
        if seed % 4 == 0 and seed != 8:
            assert journal.resumed == BUDGET


def test_of_a_damaged_file_the_whole_chunks_are_kept(experiment, uninterrupted, written, tmp_path):
    engine, design = experiment
    data = bytearray(written)
    record = written.index(b'{"a": 1}')  # whose journal this is can no longer be read
    data[record] ^= 1
    (tmp_path / JOURNAL).write_bytes(data)
    damaged = pytest.warns(UserWarning, match="record of the experiment does not match.*begun anew")
    with damaged, open_journal(tmp_path, {"a": 1}) as journal:
        values = measure(engine, design.chunks(CHUNK), journal)
    assert journal.resumed == BUDGET
    assert torch.equal(values, uninterrupted)


@pytest.mark.filterwarnings("ignore:.*measured again")
def test_whole_chunks_of_another_experiment_are_not_kept(experiment, written, tmp_path):
    engine, design = experiment
    data = bytearray(written)
    data[written.index(b'{"a": 1}')] ^= 1
    (tmp_path / JOURNAL).write_bytes(data)
    with pytest.warns(UserWarning, match="begun anew"), open_journal(tmp_path, {"a": 2}) as journal:
        measure(engine, design.chunks(CHUNK), journal)
    assert journal.resumed == 0


def test_a_file_that_is_no_journal_is_put_aside(tmp_path):
    (tmp_path / JOURNAL).write_bytes(b"something else entirely" * 100)
    with pytest.warns(UserWarning, match="begun anew"), open_journal(tmp_path, {"a": 1}) as journal:
        journal.write(0, pack_bits(torch.ones(2, 3, dtype=torch.bool)), torch.ones(2, 4))
    assert (tmp_path / f"{JOURNAL}.damaged").read_bytes().startswith(b"something else")


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResponseError, match="cannot be"), open_journal(tmp_path / "file", {"a": 1}):
        pass


def test_a_run_that_goes_on_takes_the_threads_it_began_with(experiment, uninterrupted, tmp_path):
    engine, design = experiment
    seen = []

    def two_chunks(engine, chunks):
        for first, keep in list(chunks)[:2]:
            seen.append(torch.get_num_threads())
            yield first, engine.values(keep)
        raise KeyboardInterrupt

    def others(engine, chunks):
        for first, keep in chunks:
            seen.append(torch.get_num_threads())
            yield first, engine.values(keep)

    with threads(2), open_journal(tmp_path, {"a": 1}) as journal, pytest.raises(KeyboardInterrupt):
        measure(engine, design.chunks(CHUNK), journal, run=two_chunks)
    with threads(1):
        with open_journal(tmp_path, {"a": 1}) as journal:
            values = measure(engine, design.chunks(CHUNK), journal, run=others)
        assert torch.get_num_threads() == 1
    assert len(seen) > 2
    assert set(seen) == {2}
    assert torch.equal(values, uninterrupted)


@pytest.mark.parametrize("nonsense", ["two", -1, 10**9, [2], True])
def test_nonsense_about_threads_is_not_believed(experiment, uninterrupted, tmp_path, nonsense):
    engine, design = experiment
    with open_journal(tmp_path, {"a": 1}) as journal:
        journal.settle("threads", lambda: nonsense)
        values = measure(engine, list(design.chunks(CHUNK))[:1], journal)
    assert torch.equal(values, uninterrupted[: len(values)])


def test_the_journal_costs_little(experiment, tmp_path):
    """A chunk on disk takes milliseconds; the forward passes of 256 masks of a real model take seconds."""
    keep = pack_bits(torch.rand(CHUNK, 200, generator=torch.Generator().manual_seed(0)) < 0.5)
    values = torch.ones(CHUNK, 64)
    with open_journal(tmp_path, {"a": 1}) as journal:
        started = time.perf_counter()
        for chunk in range(20):
            journal.write(chunk * CHUNK, keep, values)
        assert (time.perf_counter() - started) / 20 < 0.25
