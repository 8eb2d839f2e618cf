"""No link inside a run folder is followed: every name that the program opens or makes there is tried as a link."""

import os
import shutil
import sys
from pathlib import Path

import pytest

import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.api.discover import decode
from spex_mech.api.shards import Shard, merge_shards, respond_shard
from spex_mech.cli.export_command import convert
from spex_mech.errors import SpexMechError
from spex_mech.files.plain_files import refuse_links, replace_file
from spex_mech.gallery.studies import reopen, save_source
from spex_mech.store.responses import Responses

SEEN, WATCHING = set[str](), list[Path]()
OPENED = {"open", "os.rename", "os.mkdir", "os.remove", "sqlite3.connect", "os.scandir"}


def watch(event, args):
    """Every path that Python opens, makes, moves or removes; hooks of this kind cannot be taken off again."""
    if WATCHING and event in OPENED:
        SEEN.update(os.fsdecode(arg) for arg in args[:2] if isinstance(arg, str | bytes | os.PathLike))


sys.addaudithook(watch)


@pytest.fixture
def watched():
    SEEN.clear()
    WATCHING.append(Path())
    yield SEEN
    WATCHING.clear()


SUBJECT = planted.conjunction(("a0.h1", "a1.h0"), layout=planted.PlantedLayout(n_layers=2, n_heads=4))
TASK = planted.task(n_prompts=2, seed=0)
ASKED = {"components": "a*.h*", "budget": 120, "link": "identity"}


def discover(run):
    sm.discover(SUBJECT, TASK, decoder="linear", out=run, **ASKED)
    save_source(run, "planted-and")


def everything(run):
    """A folder in which all has been done that is done in one: a pilot, rounds, an audit, a report, a share."""
    sm.discover(SUBJECT, TASK, decoder="linear", out=run, keep_prob="auto", **(ASKED | {"budget": 254}))
    save_source(run, "planted-and")
    sm.audit(sm.load_run(run), SUBJECT, TASK, budget=96, out=run)
    sm.report(run).save(run / "report.html")
    wide = planted.conjunction(("a0.h1", "a1.h0"), layout=planted.PlantedLayout(n_layers=2, n_heads=20))
    sm.discover(wide, TASK, decoder="linear", out=run / "refined", refine=True, **(ASKED | {"budget": 96}))


VERBS = {
    "discover": discover,
    "audit": lambda run: sm.audit(sm.load_run(run), SUBJECT, TASK, budget=96, out=run),
    "report": lambda run: sm.report(run).save(run / "report.html"),
    "decode": lambda run: decode(Responses.load(run / "responses.safetensors"), decoder="linear", out=run),
    "export": lambda run: convert(run / "circuit.json", run.parent / "out.json", "hif"),
    "respond": lambda run: respond_shard(SUBJECT, TASK, "a*.h*", out=run, budget=120, shard=Shard(1, 2)),
    "merge": lambda run: merge_shards([run], run.parent / "merged"),
    "merge into": lambda run: merge_shards([run.parent / "share"], run),
    "reopen": reopen,
}


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """All names inside a run folder that anything asked of the system, as seen from inside Python, and those seen by
    libraries that open files past it."""
    run = tmp_path_factory.mktemp("names").resolve() / "run"
    WATCHING.append(run)
    everything(run)
    WATCHING.clear()
    found = {os.path.relpath(path, run) for path in SEEN if path.startswith(f"{run}/")}
    found = {name.removeprefix("refined/") for name in found if not name.endswith(".partial")} - {"refined", "."}
    found |= {"journal.sqlite-wal", "journal.sqlite-shm", "journal.sqlite-journal", "journal.sqlite.damaged"}
    found |= {f"{part}/journal.sqlite-wal" for part in ("pilot", "round-1")} | {"responses.safetensors.partial"}
    found |= {"spectrum_raw.json", "circuit_raw.json", "interactions_raw.csv", "audit", "pilot", "round-1"}
    return sorted(found)


def test_the_names_are_those_of_the_house(names):
    assert {"run.lock", "run.json", "study.json", "audit.json", "report.html", "interactions.csv"} <= set(names)
    assert {"round-1/run.json", "round-1/run.lock", "pilot/responses.safetensors"} <= set(names)
    assert any(name.startswith("audit/") and name.endswith("/journal.sqlite") for name in names)
    assert len(names) > 30


@pytest.mark.parametrize("kind", ["to a file", "to a folder", "dangling"])
def test_no_name_is_followed_when_it_is_a_link(tmp_path, names, kind, watched):
    whole, victims, share = tmp_path / "whole", tmp_path / "victims", tmp_path / "share"
    discover(whole)
    respond_shard(SUBJECT, TASK, "a*.h*", out=share, budget=120)
    (victims / "folder").mkdir(parents=True)
    (victims / "folder" / "dear").write_text("dear")
    (victims / "file").write_text("dear")
    target = {"to a file": "file", "to a folder": "folder", "dangling": "nothing"}[kind]
    before = listing(victims)
    tried, refused, unsaid = 0, 0, set()
    for name in names:
        for verb, act in VERBS.items():
            run = tmp_path / "run"
            shutil.copytree(whole, run, ignore=lambda folder, inside, name=name: [n for n in inside if n == name])
            link = run / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(victims / target)
            SEEN.clear()
            tried += 1
            try:
                act(run)
                assert verb in ("export", "reopen"), (name, verb)  # others look over the whole folder
            except SpexMechError as error:
                refused += 1
                unsaid |= set() if "link" in str(error) or verb == "reopen" else {(name, verb, str(error))}
            followed = [path for path in SEEN if os.path.realpath(path).startswith(f"{victims.resolve()}")]
            assert not followed, (name, verb)
            assert listing(victims) == before, (name, verb)
            shutil.rmtree(run)
            shutil.rmtree(tmp_path / "merged", ignore_errors=True)
    assert tried == len(names) * len(VERBS) > 300
    assert not unsaid
    assert refused > 0.7 * tried


def listing(folder):
    """What a folder holds, with the bytes and the times."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("name", ["study.json", "run.json", "run.lock", "journal.sqlite", "responses.safetensors"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    discover(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    for verb in ("discover", "report"):
        with pytest.raises(SpexMechError, match="no plain file"):
            VERBS[verb](tmp_path)


def test_a_second_name_of_another_file_is_not_written_into(tmp_path):
    (tmp_path / "victim").write_text("dear")
    for name in ("run.lock", "journal.sqlite"):
        run = tmp_path / name.partition(".")[0]
        run.mkdir()
        os.link(tmp_path / "victim", run / name)
        with pytest.raises(SpexMechError, match=f"{name} .a second name"):
            discover(run)
    assert (tmp_path / "victim").read_text() == "dear"


def test_the_folder_itself_may_be_reached_by_links_and_hold_files_of_others(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "mine").symlink_to(tmp_path)
    (tmp_path / "run").symlink_to(tmp_path / "real")
    discover(tmp_path / "run")
    assert sm.load_run(tmp_path / "run").circuit.nodes
    refuse_links(tmp_path / "there is none")


def test_a_file_is_whole_or_not_there_and_nothing_is_left_over(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(30, "Read-only file system")

    replace_file(tmp_path / "a", b"one")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        patch.setattr(Path, "unlink", fail)  # of a folder on a disk that may only be read, not even that
        with pytest.raises(OSError, match="Read-only"):
            replace_file(tmp_path / "a", b"two")
        with pytest.raises(SpexMechError, match=r"cannot be written: .*Read-only"):
            sm.report(made(tmp_path / "run")).save(tmp_path / "report.html")
    assert (tmp_path / "a").read_bytes() == b"one"
    left = list(tmp_path.glob(".*.partial"))
    assert left
    discover(tmp_path)
    assert not list(tmp_path.glob(".*.partial"))


def made(run):
    return sm.discover(SUBJECT, TASK, decoder="linear", **ASKED)
