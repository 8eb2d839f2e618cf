"""`hold`: one process at a time in a run folder. The system lets go when the process ends, however it ends."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from spex_mech.errors import ResponseError

LOCK = "run.lock"


@contextmanager
def hold(folder: str | Path | None) -> Iterator[None]:
    """Hold a run folder, made where there is none, for the length of a with-block; None holds nothing.

    A file that a killed process left is no obstacle: what counts is the lock on it, which died with the process.

    Raises:
        ResponseError: another process holds the folder (it is named), or the folder cannot be written.
    """
    if folder is None or sys.platform == "win32":  # there the journal's own lock guards the values
        yield
        return
    path = Path(folder) / LOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _take(path)
    except OSError as error:
        raise ResponseError(f"{folder} cannot be a run folder: {error}. Make room or choose another.") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock goes, so that nobody's file is removed but our own
        os.close(handle)


def _take(path: Path) -> int:
    """An open file that is locked and still the one that stands at `path`."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _lock(handle):
                raise ResponseError(_in_use(path, handle))
            if _stands_at(path, handle):
                _sign(handle)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its owner removed it between our opening and our locking; the next one is another file


def _lock(handle: int) -> bool:
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _stands_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _sign(handle: int) -> None:
    with suppress(OSError):  # a courtesy to whoever is refused; on a full disk it is left out
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)


def _in_use(path: Path, handle: int) -> str:
    who = os.pread(handle, 200, 0).decode(errors="replace") or "another process"
    return f"{path.parent} is in use: {who} works in this run folder. Wait until it ends, or choose another folder."
