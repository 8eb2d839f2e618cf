"""The lock of a run folder: one process at a time, and nobody's file but our own is touched."""

import os

import pytest

from spex_mech.errors import ResponseError, SpexMechError
from spex_mech.files.locks import LOCK, hold


def test_a_folder_is_held_once_and_the_holder_is_named(tmp_path):
    with hold(tmp_path):
        assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")
        with pytest.raises(ResponseError, match=f"in use: process {os.getpid()}"), hold(tmp_path):
            pytest.fail("two at once")
    assert not (tmp_path / LOCK).exists()
    with hold(tmp_path):
        pass


@pytest.mark.parametrize("kind", ["link", "dangling link", "other name", "pipe", "folder"])
def test_what_is_no_lock_file_of_ours_is_neither_opened_nor_written(tmp_path, kind):
    victim, run = tmp_path / "victim", tmp_path / "run"
    run.mkdir()
    if kind != "dangling link":
        victim.write_text("dear")
    if "link" in kind:
        (run / LOCK).symlink_to(victim)
    elif kind == "other name":
        os.link(victim, run / LOCK)
    elif kind == "pipe":
        os.mkfifo(run / LOCK)
    else:
        (run / LOCK).mkdir()
    with pytest.raises(SpexMechError, match=r"run\.lock"), hold(run):
        pytest.fail("held")
    assert victim.read_text() == "dear" if victim.exists() else kind == "dangling link"


def test_what_a_killed_process_left_is_no_obstacle(tmp_path):
    (tmp_path / LOCK).write_text("process 1 on nowhere")
    with hold(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()


def test_no_folder_holds_nothing_and_a_file_is_no_folder(tmp_path):
    with hold(None):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(ResponseError, match="cannot be a run folder"), hold(tmp_path / "file"):
        pytest.fail("held")
