"""Runs over Ray workers: the same bits as without, whatever happens to the workers."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.ablation.replacement import fit_replacement
from spex_mech.ablation.respond import Engine
from spex_mech.errors import ModelError, ResponseError
from spex_mech.measuring.journal import open_journal
from spex_mech.measuring.measure import measure
from spex_mech.measuring.ray_pool import spread
from spex_mech.measuring.workers import Workers, source_of

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'spex-mech[ray]'")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not see this folder
WEIGHTS = {"a0.h1": 0.7310585, "a1.h2": -1.1102230, "m0.n1": 3.3219281, "m1.n0": 0.0123457}
LAYOUT = planted.PlantedLayout(n_layers=2, n_heads=4, d_mlp=2)
MASKS, CHUNK = 900, 100


@pytest.fixture(scope="module", autouse=True)
def session():
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error", object_store_memory=100 << 20
    )
    yield
    ray.shutdown()


class Troubled(planted.PlantedSubject):
    """Does what is planned for its nth pass over all workers, once: a file a trouble is left to it."""

    def forward(self, tokens, edits, positions):
        with contextlib.suppress(StopIteration):
            plan = next(p for p in sorted(Path(self.name).glob("*.todo")))
            with contextlib.suppress(FileNotFoundError):  # the other worker has taken it
                plan.rename(plan.with_suffix(".done"))
                trouble(plan.stem.split("-")[1])
        return super().forward(tokens, edits, positions)

    @property
    def provenance(self):
        return {"model": "troubled"}


def trouble(kind):
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "memory":
        raise MemoryError("not enough memory for this")
    if kind == "stall":
        time.sleep(600)
    if kind == "slip":
        raise IndexError("a slip of the user's")


def troubled(folder):
    plain = subject()
    return Troubled(str(folder), plain.layout, plain.polynomial, plain.link, plain.spread)


def subject():
    return planted.additive(WEIGHTS, layout=LAYOUT, spread=0.3)


def another():
    return planted.additive({**WEIGHTS, "a0.h1": 0.7}, layout=LAYOUT, spread=0.3)


def never():
    os._exit(1)


def first_only(folder):
    """The first worker to come has a model; whoever comes later waits for one for longer than any test."""
    try:
        (folder / "taken").mkdir()
    except FileExistsError:
        time.sleep(3600)
    return subject()


def engine_of(bound):
    components = sm.heads(bound) + sm.neurons(bound)
    task = planted.task(n_prompts=4, seed=0)
    return Engine(bound, task, components, fit_replacement(bound, task, components))


@pytest.fixture(scope="module")
def design():
    return sm.MaskDesign.bernoulli(12, MASKS, 0.7, 0)  # of 4,096; many masks occur again, in other chunks


@pytest.fixture(scope="module")
def serial(design):
    return measure(engine_of(subject()), design.chunks(CHUNK))


def on_ray(engine, design, workers, folder=None, tick=None):
    with contextlib.nullcontext() if folder is None else open_journal(folder, {"a": 1}) as journal:
        return measure(engine, design.chunks(CHUNK), journal, tick, spread(workers))


def test_two_workers_give_the_same_bits_and_count_every_mask_once(design, serial, tmp_path):
    ticks = []
    values = on_ray(engine_of(subject()), design, Workers(subject, 2), tmp_path, ticks.append)
    assert torch.equal(values, serial)
    assert sum(ticks) == MASKS
    assert len(design.keep().unique(dim=0)) < MASKS
    # nothing is asked of workers that the journal knows, and whoever goes on, here or there, gets the same
    assert torch.equal(on_ray(engine_of(subject()), design, Workers(never, 2), tmp_path), serial)
    with open_journal(tmp_path, {"a": 1}) as journal:
        assert torch.equal(measure(engine_of(subject()), design.chunks(CHUNK), journal), serial)
        assert journal.resumed == MASKS


def test_workers_that_die_or_run_out_of_memory_are_replaced(design, serial, tmp_path):
    for number, kind in enumerate(("die", "memory")):
        (tmp_path / f"{number}-{kind}.todo").touch()
    (tmp_path / "hold").mkdir()
    ticks, here = [], troubled(tmp_path / "hold")
    values = on_ray(engine_of(here), design, Workers(partial(troubled, tmp_path), 2), None, ticks.append)
    assert torch.equal(values, serial)
    assert sum(ticks) == MASKS
    assert not list(tmp_path.glob("*.todo"))


def test_workers_that_are_not_needed_any_more_are_not_waited_for(design, serial, tmp_path):
    started = time.monotonic()
    values = on_ray(engine_of(subject()), design, Workers(partial(first_only, tmp_path), 2))
    assert torch.equal(values, serial)
    assert time.monotonic() - started < 200


def test_a_stop_by_the_user_keeps_what_was_finished(design, serial, tmp_path):
    ticks = []

    def stop(masks):
        ticks.append(masks)
        if len(ticks) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        on_ray(engine_of(subject()), design, Workers(subject, 1), tmp_path, stop)
    with open_journal(tmp_path, {"a": 1}) as journal:
        assert torch.equal(measure(engine_of(subject()), design.chunks(CHUNK), journal), serial)
        assert journal.resumed_chunks == 3


def test_what_cannot_work_is_one_clear_error(design, tmp_path, monkeypatch):
    engine = engine_of(subject())
    with pytest.raises(ModelError, match=r"another model.*weights_sha256 \('.* here, '.* in the worker\)"):
        on_ray(engine, design, Workers(another, 1))
    with pytest.raises(ResponseError, match=r"again and again: .* died .* over loading the model"):
        on_ray(engine, design, Workers(never, 1, patience=0))
    (tmp_path / "0-slip.todo").touch()
    (tmp_path / "hold").mkdir()
    with pytest.raises(IndexError, match="a slip of the user's"):
        on_ray(engine_of(troubled(tmp_path / "hold")), design, Workers(partial(troubled, tmp_path), 1))
    with pytest.raises(ModelError, match=r"could not load its model: FileNotFoundError: .*there/model"):
        on_ray(engine, design, Workers(partial(open, "there/model"), 1))
    with pytest.raises(ModelError, match="0 workers"):
        Workers(subject, 0)
    with pytest.raises(ModelError, match="on the CPU"):
        on_ray(engine, design, Workers(subject, 1, gpus_each=1))
    on_gpu = SimpleNamespace(device=torch.device("cuda"))
    with pytest.raises(ModelError, match=r"on a GPU, of which workers see nothing .*gpus_each=0\.5"):
        next(spread(Workers(subject, 1))(on_gpu, iter(design.chunks(CHUNK))))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModelError, match=r"pip install 'spex-mech\[ray\]'"):
        on_ray(engine, design, Workers(subject, 1))


def test_what_reads_a_prompt_or_trains_is_sent_to_workers(tmp_path):
    import threading

    def review(texts):
        return [float("good" in text) + 0.01 * len(text) for text in texts]

    def train(kept):
        return float(sum(kept.tolist()) ** 0.5)

    options = {"budget": 600, "decoder": "linear", "link": "identity", "workers": Workers(count=2)}
    alone = {**options, "workers": None}
    text = "a long and good text of eleven words or so I think"
    found = sm.discover_features(review, text, out=tmp_path / "text", **options)
    assert torch.equal(found.responses.values, sm.discover_features(review, text, **alone).responses.values)
    assert sm.discover_features(review, text, out=tmp_path / "text", **alone).record["resumed_masks"] == 600
    found = sm.discover_data(train, examples=11, **options)
    assert torch.equal(found.responses.values, sm.discover_data(train, examples=11, **alone).responses.values)
    lock = threading.Lock()
    with pytest.raises(ModelError, match="cannot be sent what they are to measure"):
        sm.discover_data(lambda kept: float(lock.locked()), examples=11, identity="locked", **options)
    with pytest.raises(ModelError, match=r"load one of their own: Workers\(source=…\)"):
        sm.discover(subject(), planted.task(2, 0), "a*.h*, m*.n*", **options)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_worker_killed_every_few_seconds(design, serial, tmp_path, seed):
    """From outside, at random moments, whatever they are at; a chunk takes about as long as a killer waits."""
    import threading

    stop, killed, generator = threading.Event(), [], torch.Generator().manual_seed(seed)

    def kill():
        while not stop.wait(2.0 + 4.0 * float(torch.rand(1, generator=generator))):
            for pid in pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                    break

    def pids():
        return [int(path.name.split(".")[0]) for path in sorted(tmp_path.glob("*.pid")) if path.name not in dead()]

    def dead():
        return {f"{pid}.pid" for pid in killed}

    killer = threading.Thread(target=kill)
    killer.start()
    ticks = []
    try:
        workers = Workers(partial(slow, tmp_path), 2, patience=20)
        values = on_ray(engine_of(subject()), design, workers, tmp_path / "run", ticks.append)
    finally:
        stop.set()
        killer.join()
    print(f"{len(killed)} workers killed")
    assert killed
    assert torch.equal(values, serial)
    assert sum(ticks) == MASKS


def slow(folder):
    (folder / f"{os.getpid()}.pid").touch()
    return Slow(*(getattr(subject(), name) for name in ("name", "layout", "polynomial", "link", "spread")))


class Slow(planted.PlantedSubject):
    def forward(self, tokens, edits, positions):
        time.sleep(1.5)
        return super().forward(tokens, edits, positions)


@pytest.mark.slow
def test_a_worker_that_says_nothing_is_replaced(design, serial, tmp_path):
    (tmp_path / "0-stall.todo").touch()
    (tmp_path / "hold").mkdir()
    workers = Workers(partial(troubled, tmp_path), 1, timeout=45)
    started = time.monotonic()
    assert torch.equal(on_ray(engine_of(troubled(tmp_path / "hold")), design, workers), serial)
    assert time.monotonic() - started > 45


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_shipped_card_gives_the_same_bits_with_any_number_of_workers(count, tmp_path):
    study = sm.open_study("induction-2l")
    options = {"components": study.components, "budget": 1500, "replacement": study.replacement, "per": study.per}
    here = sm.discover(study.subject, study.task, decoder="linear", **options)
    there = sm.discover(
        study.subject, study.task, decoder="linear", out=tmp_path, workers=Workers("induction-2l", count), **options
    )
    assert torch.equal(here.responses.values, there.responses.values)
    assert source_of("induction-2l")().provenance == study.subject.provenance


DRIVER = """
import sys
import ray
sys.path.insert(0, sys.argv[1])
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error", object_store_memory=100 << 20)
import test_ray as t
from spex_mech.measuring.workers import Workers
from pathlib import Path
tick = lambda masks: print(masks, flush=True)
design = t.sm.MaskDesign.bernoulli(12, t.MASKS, 0.7, 0)
t.on_ray(t.engine_of(t.subject()), design, Workers(t.subject, 1), Path(sys.argv[2]), tick)
"""


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [1, 4])
def test_a_killed_driver_goes_on_without_ray(design, serial, tmp_path, chunks):
    command = [sys.executable, "-c", DRIVER, str(Path(__file__).parent), str(tmp_path)]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for _ in range(chunks):
        assert driver.stdout.readline().strip() == str(CHUNK)
    driver.kill()
    driver.wait()
    driver.stdout.close()
    with open_journal(tmp_path, {"a": 1}) as journal:
        assert torch.equal(measure(engine_of(subject()), design.chunks(CHUNK), journal), serial)
        assert chunks <= journal.resumed_chunks < 9


@pytest.mark.slow
def test_the_bench_of_workers_measures_what_it_says():
    from spex_mech.bench.ray_throughput import run

    result = run(quick=True)
    assert [row["workers"] for row in result["rows"]] == [0, 2]
    assert result["summary"]["identical"] == 1.0
    assert 0.2 < result["summary"]["throughput_2"] < 5
    assert 0 < result["summary"]["whole_run_2"] < 2
