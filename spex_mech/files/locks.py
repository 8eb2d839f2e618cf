"""`hold`: one process at a time in a run folder. The system lets go when the process ends, however it ends."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from spex_mech.errors import ResponseError
from spex_mech.files.plain_files import refuse_links, remove_left_over

LOCK = "run.lock"


@contextmanager
def hold(folder: str | Path | None) -> Iterator[None]:
    """Hold a run folder, made where there is none, for the length of a with-block; None holds nothing.

    A file that a killed process left is no obstacle: what counts is the lock on it, which died with the process.

    Raises:
        FormatError: links among the files in it, of which none is followed.
        ResponseError: another process holds the folder (it is named), or the folder cannot be written.
    """
    if folder is None:
        yield
        return
    refuse_links(folder)
    path = Path(folder) / LOCK
    lock = FileLock(path, timeout=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise ResponseError(
            f"{folder} is in use: {_holder(path)} works in this run folder. Wait until it ends, or choose another "
            "folder."
        ) from error
    except OSError as error:
        raise ResponseError(f"{folder} cannot be a run folder: {error}. Make room or choose another.") from error
    try:
        _sign(path)
        remove_left_over(folder)
        yield
    finally:
        if sys.platform != "win32":  # there an open file cannot be removed
            path.unlink(missing_ok=True)  # before the lock goes, so that nobody's file is removed but our own
        lock.release()


def _sign(path: Path) -> None:
    with suppress(OSError):  # a courtesy to whoever is refused; on a full disk it is left out
        handle = os.open(path, os.O_WRONLY | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(f"process {os.getpid()} on {socket.gethostname()}")


def _holder(path: Path) -> str:
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(handle, "rb") as file:
            return file.read(200).decode(errors="replace") or "another process"
    return "another process"
