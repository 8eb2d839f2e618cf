"""`Journal`: finished chunks of values on disk, so that a run that is killed goes on where it was.

One SQLite file in the run folder, in write-ahead mode: a chunk is one transaction, on disk when `write` returns, with a
checksum over its masks and values. One process at a time holds it, by a lock that the system releases when the
process ends, however it ends. When all is measured the file stays: it is the second copy of what was paid for.
"""

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from spex_mech.errors import FormatError, ResponseError, SpexMechError, warn_user
from spex_mech.files.plain_files import refuse_links
from spex_mech.files.records import plain, refuse_other

JOURNAL = "journal.sqlite"
JOURNAL_SCHEMA = (
    "spex_mech.journal/2"  # in it, NaN stands where a mask has occurred before; version 1 had the values there too
)
_READ = ("spex_mech.journal/1", JOURNAL_SCHEMA)
_PATIENCE = 8.0  # seconds for a query, and more for a large file; a hostile one would never end
_DISK = 100e6  # bytes a second, slowly
_STEPS = 10_000  # of SQLite's machine between two looks at the clock
_MOST_DECISIONS = 64
_DAMAGE = (sqlite3.Error, ValueError)  # ValueError: text that is no UTF-8, numbers that are none
_COLUMNS = "first, prompts, keep, numbers, sha256"
_TABLES = """
CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS chunks (
    first INTEGER PRIMARY KEY, prompts INTEGER NOT NULL,
    keep BLOB NOT NULL, numbers BLOB NOT NULL, sha256 TEXT NOT NULL
);
"""


class _Bounded(sqlite3.Connection):
    """A connection on a file nobody has checked: every query ends in time, and the schema cannot call functions."""

    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__(path, **options)
        size = path.stat().st_size if path.exists() else 0
        self._patience, self._end = _PATIENCE + size / _DISK, 0.0
        self.set_progress_handler(lambda: time.monotonic() > self._end, _STEPS)
        for limit in (sqlite3.SQLITE_LIMIT_ATTACHED, sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH):
            self.setlimit(limit, 0)
        self.execute("PRAGMA trusted_schema = OFF")
        self.execute("PRAGMA cell_size_check = ON")

    def execute(self, *query: Any) -> sqlite3.Cursor:
        self._end = time.monotonic() + self._patience
        return super().execute(*query)


class Journal:
    """The chunks of one experiment; `resumed` and `resumed_chunks` count the masks and chunks that were read back."""

    def __init__(self, path: Path, connection: sqlite3.Connection, key: str) -> None:
        """Use `open_journal`."""
        self.path, self.resumed, self.resumed_chunks = path, 0, 0
        self._connection, self._key = connection, key

    def settle(self, name: str, decide: Callable[[], Any]) -> Any:
        """A decision that holds for the whole experiment: as it was taken first, else ``decide()``, plain for JSON."""
        found = self.settled(name)
        if found is not None:
            return found
        text = json.dumps(decide())
        with self._saving(f"its {name}"):
            row = (name, f"{self._sum(name, text)} {text}")
            self._connection.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", row)
        return json.loads(text)

    def settled(self, name: str) -> Any:
        """A decision that was taken before; None where there is none, or it is damaged."""
        with suppress(*_DAMAGE):
            row = self._connection.execute("SELECT value FROM about WHERE key = ?", (name,)).fetchone()
            sha256, _, text = ("" if row is None else str(row[0])).partition(" ")
            if sha256 == self._sum(name, text):
                return json.loads(text)
        return None

    def read(self, first: int, keep: UInt8[Tensor, "mask byte"]) -> Float[Tensor, "mask prompt"] | None:
        """The values of the chunk that begins at mask `first`, or None where it is not there, or damaged."""
        try:
            row = self._connection.execute(f"SELECT {_COLUMNS} FROM chunks WHERE first = ?", (first,)).fetchone()
        except _DAMAGE as error:
            self._damaged(first, str(error))
            return None
        if row is None:
            return None
        _, prompts, packed, values, sha256 = row
        whole = isinstance(packed, bytes) and isinstance(values, bytes) and isinstance(prompts, int)
        fits = whole and packed == keep.numpy().tobytes() and len(values) == 4 * len(keep) * prompts
        if not fits or self._sum(first, prompts, packed, values) != sha256:
            self._damaged(first, "its checksum does not match")
            return None
        self.resumed += len(keep)
        self.resumed_chunks += 1
        return torch.from_numpy(np.frombuffer(values, np.float32).reshape(len(keep), prompts).copy())

    def count(self) -> int:
        """How many chunks there are, damaged or not."""
        with suppress(*_DAMAGE):
            return int(self._connection.execute("SELECT COUNT(*) FROM chunks").fetchone()[0])
        return 0

    def write(self, first: int, keep: UInt8[Tensor, "mask byte"], values: Float[Tensor, "mask prompt"]) -> None:
        """Put a chunk on disk; raises `ResponseError` where that cannot be done, and keeps what is there."""
        prompts, packed, numbers = (
            values.shape[1],
            keep.numpy().tobytes(),
            values.float().contiguous().numpy().tobytes(),
        )
        row = (first, prompts, packed, numbers, self._sum(first, prompts, packed, numbers))
        with self._saving(f"the values of masks {first:,} to {first + len(keep) - 1:,}"):
            self._connection.execute(f"INSERT OR REPLACE INTO chunks ({_COLUMNS}) VALUES (?, ?, ?, ?, ?)", row)

    @contextmanager
    def _saving(self, what: str) -> Iterator[None]:
        """One transaction: on disk when the block is left, or not there at all."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise ResponseError(
                f"{self.path} cannot take {what}: {error}. All chunks before are safe. Make room, then run the same "
                "command again; it goes on from there."
            ) from error

    def _sum(self, *parts: object) -> str:
        digest = hashlib.sha256(self._key.encode())
        for part in parts:
            data = part if isinstance(part, bytes) else str(part).encode()
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()

    def _damaged(self, first: int, why: str) -> None:
        warn_user(f"{self.path}: the chunk at mask {first:,} must be measured again: {why}.")


@contextmanager
def open_journal(folder: Path, record: Mapping[str, Any]) -> Iterator[Journal]:
    """The journal of a run folder, made where there is none, held by this process for the length of a with-block.

    Raises:
        ResponseError: another process holds it; it belongs to another experiment (what differs is named); or it
            cannot be written.
    """
    path, record = folder / JOURNAL, plain(record)
    refuse_links(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResponseError(f"{folder} cannot be a run folder: {error}. Choose another.") from error
    connection, there = _connect(path)
    try:
        if there is None:
            there = record
            _introduce(connection, path, json.dumps(there, sort_keys=True))
        else:
            refuse_other(path, there, record)
        text = json.dumps(there, sort_keys=True)  # a probe may differ in what two machines round
        yield Journal(path, connection, _sha256(text))
    finally:
        connection.close()


@contextmanager
def reopen_journal(folder: Path) -> Iterator[tuple[Journal, dict[str, Any]]]:
    """The journal that a folder holds, whoever's it is, and the record of its experiment.

    Raises:
        FormatError: there is none, or it does not say whose it is.
        ResponseError: another process holds it.
    """
    path = folder / JOURNAL
    refuse_links(folder)
    if not path.is_file():
        raise FormatError(f"{folder} holds no {JOURNAL}; nothing was measured into it.")
    connection, there = _connect(path)
    try:
        if there is None:
            raise FormatError(f"{path} does not say what was measured into it; measure that share again.")
        yield Journal(path, connection, _sha256(json.dumps(there, sort_keys=True))), dict(there)
    finally:
        connection.close()


def _connect(path: Path) -> tuple[sqlite3.Connection, Mapping[str, Any] | None]:
    """An open connection that holds the file, and whose file it is; one that is damaged is begun anew."""
    aside: Path | None = None
    while True:
        connection = None
        try:
            connection = sqlite3.connect(path, timeout=0, isolation_level=None, factory=_Bounded)
            _refuse_foreign(connection, path)
            _hold(connection)
            there = _whose(connection, path)
            if aside is not None:
                _salvage(aside, connection)
            return connection, there
        except SpexMechError:  # which is a ValueError, but no damage
            if connection is not None:
                connection.close()
            raise
        except _DAMAGE as error:
            if connection is not None:
                connection.close()
            _refuse_unless_damaged(error, path, again=aside is not None)
            aside = _put_aside(path, error)


def _refuse_foreign(connection: sqlite3.Connection, path: Path) -> None:
    """Whether a file's tables are a journal's and no more, before any of them is asked anything.

    Views, triggers and generated columns are programs, and the tables of others are not ours to write into. Raises
    `ResponseError` for such, `ValueError` where the tables are only damaged.
    """
    ours, there = _schema(), _schema_of(connection)
    if not there or there == ours:
        return
    kinds = {kind for kind, *_ in there}
    if not kinds <= {"table", "index"} or there > ours or not {name for _, name, *_ in there} & {"about", "chunks"}:
        more = ", ".join(f"{kind} {str(name)[:40]!r}" for kind, name, *_ in sorted(there - ours, key=str)[:5])
        raise ResponseError(
            f"{path} is a database, but no journal of a run: it has {more}. A journal has two tables and nothing that "
            "acts. Remove it, or choose another folder."
        )
    raise ValueError("its tables are not those of a journal")


def _schema_of(connection: sqlite3.Connection) -> set[tuple[str, str, str, str]]:
    rows = connection.execute("SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_master LIMIT 100")
    return {(str(kind), str(name), str(of), " ".join(str(sql).split())) for kind, name, of, sql in rows}


@cache
def _schema() -> set[tuple[str, str, str, str]]:
    """What SQLite says of a journal's tables."""
    with closing(sqlite3.connect(":memory:")) as made:
        made.executescript(_TABLES)
        return _schema_of(made)


def _hold(connection: sqlite3.Connection) -> None:
    """Exclusive locking and write-ahead logging; the lock is taken by the first transaction and kept."""
    for setting in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL"):
        connection.execute(f"PRAGMA {setting}")
    connection.execute("BEGIN IMMEDIATE")
    for statement in filter(str.strip, _TABLES.split(";")):
        connection.execute(statement)
    connection.execute("INSERT OR IGNORE INTO about VALUES ('schema', ?)", (JOURNAL_SCHEMA,))
    connection.execute("COMMIT")
    columns = ", ".join(row[1] for row in connection.execute("PRAGMA table_info(chunks)"))
    if columns != _COLUMNS or connection.execute("PRAGMA quick_check").fetchone()[0] != "ok":
        raise ValueError("its pages are damaged")


def _whose(connection: sqlite3.Connection, path: Path) -> Mapping[str, Any] | None:
    """The record of the experiment a journal belongs to, None where it is new; raises `ValueError` on damage."""
    about = dict(connection.execute("SELECT key, value FROM about LIMIT ?", (_MOST_DECISIONS,)).fetchall())
    if about.get("schema") not in _READ:
        known = " and ".join(map(repr, _READ))
        raise ResponseError(f"{path} has schema {about.get('schema')!r}; this version reads {known}. Remove it.")
    connection.execute("UPDATE about SET value = ?1 WHERE key = 'schema' AND value <> ?1", (JOURNAL_SCHEMA,))
    if "record" not in about:
        return None
    sha256, _, text = str(about["record"]).partition(" ")
    if sha256 != _sha256(text):
        raise ValueError("its record of the experiment does not match its checksum")
    return json.loads(text)


def _introduce(connection: sqlite3.Connection, path: Path, text: str) -> None:
    """Write down whose journal this is."""
    try:
        connection.execute("INSERT INTO about VALUES ('record', ?)", (f"{_sha256(text)} {text}",))
    except sqlite3.Error as error:
        raise ResponseError(f"{path} cannot be written: {error}. Make room or choose another folder.") from error


def _refuse_unless_damaged(error: Exception, path: Path, again: bool) -> None:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF  # without the finer distinctions
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        raise ResponseError(
            f"{path} is in use: another process measures into the same run folder. Wait until it ends, or choose "
            "another folder."
        ) from error
    if again or code not in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        raise ResponseError(
            f"{path} cannot be opened: {error}. Make room, or choose a folder that can be written."
        ) from error


def _put_aside(path: Path, error: Exception) -> Path:
    aside = path.with_name(path.name + ".damaged")
    warn_user(f"{path} is damaged ({error}); it is kept as {aside.name} and begun anew.")
    try:
        path.replace(aside)
        path.with_name(path.name + "-shm").unlink(missing_ok=True)
        log = path.with_name(path.name + "-wal")
        log.replace(aside.with_name(aside.name + "-wal")) if log.exists() else None
    except OSError as problem:
        raise ResponseError(f"{path} is damaged and cannot be put aside: {problem}. Choose another folder.") from error
    return aside


def _salvage(aside: Path, connection: sqlite3.Connection) -> None:
    """Copy what can be read of a damaged journal, from both ends; checksums tell later what of it is whole."""
    with suppress(*_DAMAGE), closing(sqlite3.connect(aside, factory=_Bounded)) as old:
        if _schema_of(old) != _schema():
            return
        for direction in ("ASC", "DESC"):
            with suppress(*_DAMAGE):
                for row in old.execute(f"SELECT {_COLUMNS} FROM chunks ORDER BY first {direction}"):
                    connection.execute(f"INSERT OR IGNORE INTO chunks ({_COLUMNS}) VALUES (?, ?, ?, ?, ?)", row)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
