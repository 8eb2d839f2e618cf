"""The files of a card: plain ones inside its folder, of bounded size. What is wrong is collected, nothing is raised."""

from pathlib import Path
from typing import TypeVar

from spex_mech.files.json import MAX_BYTES, is_path, read_object
from spex_mech.files.schema import Reading

_T = TypeVar("_T")


class CardFiles(Reading):
    """What a card's folder holds, and everything that was found to be wrong with it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def inside(self, relative: str) -> Path | None:
        """A path of the card, if it stays inside the card."""
        if not is_path(relative):
            self.problems.append(f"{relative!r:.60} is no path")
            return None
        where = self.folder / relative
        if Path(relative).is_absolute() or ".." in Path(relative).parts or not relative or "\\" in relative:
            self.problems.append(f"{relative!r} leaves the card's folder; a card names files inside it only")
            return None
        parts = [where, *where.parents][: len(Path(relative).parts)]
        if any(part.is_symlink() for part in parts):
            self.problems.append(f"{relative!r} is a link; a card holds plain files only")
            return None
        return where

    def file(self, relative: str, *, needed: bool) -> Path | None:
        """A file, where it is there; one that is needed and is not is a problem."""
        where = self.inside(relative)
        if where is None:
            return None
        if where.is_file():
            return where
        if needed:
            self.problems.append(f"{relative} is missing")
        return None

    def text(self, relative: str, *, needed: bool = True) -> str | None:
        """What stands in a file."""
        where = self.file(relative, needed=needed)
        if where is None:
            return None
        try:
            if where.stat().st_size > MAX_BYTES:
                self.problems.append(f"{relative} is larger than {MAX_BYTES >> 20} MiB")
                return None
            return where.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            self.problems.append(f"{relative} cannot be read: {error}")
            return None

    def object(self, relative: str, kind: type[_T]) -> _T | None:
        """An object from an optional file, as a dataclass; None where there is none, or a wrong one."""
        where = self.file(relative, needed=False)
        record = None if where is None else self.attempt(lambda: read_object(where))
        return None if record is None else self.value(kind, record, f"{relative}: ")

    def no_links(self, where: Path) -> None:
        """Links anywhere below a folder are a problem each."""
        for path in sorted(where.rglob("*")):
            if path.is_symlink():
                self.problems.append(f"{path.relative_to(self.folder)} is a link; a card holds plain files only")
