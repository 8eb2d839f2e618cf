"""Files opened and replaced with suspicion: no link is followed inside a run folder, and nothing but a file is read.

A folder that somebody sent may hold a link under any name that the program is going to read or write. So a run folder
is looked over at the door (`refuse_links`), what is read is opened without following (`read_plain`), and what is
written is made under a name that nobody can guess and put in place (`replace_file`), which no link survives.
"""

import os
import re
import stat
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from spex_mech.errors import FormatError

_OURS = re.compile(
    r".*\.(json|jsonl|csv|html|lock|partial|safetensors|sqlite|sqlite-\w+|damaged|damaged-\w+)|pilot|audit|round-\d+"
)
_IN_PLACE = re.compile(r".*\.(lock|sqlite|sqlite-\w+)")  # written where they are, so they may have no second name
_DEEPEST = 4  # folders in folders; ours are two deep
_LEFT = re.compile(r"\..+\.[0-9a-f]{32}\.partial")
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def refuse_links(folder: str | Path) -> None:
    """Whether everything that a run folder holds under a name of ours is a plain file or folder; nothing is opened.

    Raises `FormatError` naming all that are links, pipes or devices, or second names of one file where we would write
    into it.
    """
    problems = sorted(_strange(Path(folder), ""))
    if problems:
        raise FormatError(
            f"{folder} holds {', '.join(problems[:8])}{' …' if len(problems) > 8 else ''}: run folders hold plain "
            "files and folders only, since what a link leads to would be read or overwritten. Remove what is named, or "
            "choose another folder."
        )


def _strange(folder: Path, inside: str) -> Iterator[str]:
    """What is no plain file or folder: of our names at the top, of all names in the folders that we make."""
    try:
        entries = [entry for entry in os.scandir(folder) if inside or _OURS.fullmatch(entry.name.lower())]
    except OSError:  # there is none, or whoever reads in it says why not
        return
    for entry in entries:
        try:
            found, name = entry.stat(follow_symlinks=False), f"{inside}{entry.name}"
        except FileNotFoundError:  # another process's, gone since
            continue
        if stat.S_ISDIR(found.st_mode):
            if name.count("/") < _DEEPEST:
                yield from _strange(Path(entry.path), f"{name}/")
        elif not stat.S_ISREG(found.st_mode):
            yield f"{name} ({'a link' if stat.S_ISLNK(found.st_mode) else 'no plain file'})"
        elif found.st_nlink > 1 and _IN_PLACE.fullmatch(entry.name.lower()):
            yield f"{name} (a second name of another file)"


def remove_left_over(folder: str | Path) -> None:
    """Remove what a killed `replace_file` left in a folder that this process holds."""
    with suppress(OSError):
        for entry in os.scandir(folder):
            if _LEFT.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                os.unlink(entry.path)


def read_plain(path: str | Path, max_bytes: int) -> bytes:
    """What stands in a file, not more than one byte beyond `max_bytes`; never waits, as a pipe would make it.

    Raises `OSError`: no such file, or a link, pipe, device or folder.
    """
    if os.path.islink(path):
        raise OSError("it is a link, and links are not followed; name the file that it leads to")
    handle = os.open(path, os.O_RDONLY | _NO_FOLLOW)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("it is no plain file")
        return file.read(max_bytes + 1)


def is_plain(path: str | Path) -> bool:
    """Whether a plain file is there: no link to one, no pipe, no folder."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never half; on disk when this returns.

    A link at its place is replaced, not followed. Raises `OSError`; then nothing is left over.
    """
    partial = path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex}.partial")
    try:
        with open(partial, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):  # a folder that cannot be written: nothing to remove, and the first error says more
            partial.unlink(missing_ok=True)
        raise
