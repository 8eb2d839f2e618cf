"""`Journal`: finished chunks of values on disk, so that a run that is killed goes on where it was.

One SQLite file in the run folder, in write-ahead mode: a chunk is one transaction, on disk when `write` returns, with a
checksum over its masks and values. One process at a time holds it, by a lock that the system releases when the
process ends, however it ends.
"""

import hashlib
import json
import sqlite3
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from spex_mech.errors import ResponseError
from spex_mech.records import plain, refuse_other

NAME = "journal.sqlite"
SCHEMA = "spex_mech.journal/1"
_TABLES = """
CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS chunks (
    first INTEGER PRIMARY KEY, prompts INTEGER NOT NULL,
    keep BLOB NOT NULL, "values" BLOB NOT NULL, sha256 TEXT NOT NULL
);
"""


class Journal:
    """The chunks of one experiment. `resumed` counts the masks whose values were read back instead of measured."""

    def __init__(self, path: Path, connection: sqlite3.Connection, key: str) -> None:
        """Use `open_journal`."""
        self.path, self.resumed = path, 0
        self._connection, self._key = connection, key

    def read(self, first: int, keep: UInt8[Tensor, "mask byte"]) -> Float[Tensor, "mask prompt"] | None:
        """The values of the chunk that begins at mask `first`, or None where it is not there, or damaged."""
        try:
            row = self._connection.execute(
                'SELECT prompts, keep, "values", sha256 FROM chunks WHERE first = ?', (first,)
            ).fetchone()
        except sqlite3.DatabaseError as error:
            self._damaged(first, str(error))
            return None
        if row is None:
            return None
        prompts, packed, values, sha256 = row
        whole = isinstance(packed, bytes) and isinstance(values, bytes) and isinstance(prompts, int)
        if not whole or self._sum(packed, values) != sha256 or packed != keep.numpy().tobytes():
            self._damaged(first, "its checksum does not match")
            return None
        self.resumed += len(keep)
        return torch.from_numpy(np.frombuffer(values, np.float32).reshape(-1, prompts).copy())

    def write(self, first: int, keep: UInt8[Tensor, "mask byte"], values: Float[Tensor, "mask prompt"]) -> None:
        """Put a chunk on disk; raises `ResponseError` where that cannot be done, and keeps what is there."""
        packed, numbers = keep.numpy().tobytes(), values.float().contiguous().numpy().tobytes()
        row = (first, values.shape[1], packed, numbers, self._sum(packed, numbers))
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute("INSERT OR REPLACE INTO chunks VALUES (?, ?, ?, ?, ?)", row)
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise ResponseError(
                f"{self.path} cannot take the values of masks {first:,} to {first + len(keep) - 1:,}: {error}. All "
                "chunks before are safe. Make room, then run the same command again; it goes on from there."
            ) from error

    def discard(self) -> None:
        """Close and delete the file: the responses it led to are on disk."""
        self._connection.close()
        for end in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + end).unlink(missing_ok=True)

    def _sum(self, packed: bytes, values: bytes) -> str:
        return hashlib.sha256(self._key.encode() + packed + values).hexdigest()

    def _damaged(self, first: int, why: str) -> None:
        warnings.warn(f"{self.path}: the chunk at mask {first:,} is measured again: {why}.", stacklevel=4)


@contextmanager
def open_journal(folder: Path, record: Mapping[str, Any]) -> Iterator[Journal]:
    """The journal of a run folder, made where there is none, held by this process for the length of a with-block.

    Raises:
        ResponseError: another process holds it; it belongs to another experiment (what differs is named); or it
            cannot be written.
    """
    path, record = folder / NAME, plain(record)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResponseError(f"{folder} cannot be a run folder: {error}. Choose another.") from error
    connection = _connect(path)
    try:
        _introduce(connection, path, record)
        key = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
        yield Journal(path, connection, key)
    finally:
        connection.close()


def _connect(path: Path) -> sqlite3.Connection:
    """An open connection that holds the file; a file that is no database is put aside."""
    for again in (True, False):
        connection = sqlite3.connect(path, timeout=0, isolation_level=None)
        try:
            _hold(connection)
            return connection
        except sqlite3.Error as error:
            connection.close()
            code = getattr(error, "sqlite_errorcode", None)
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise ResponseError(
                    f"{path} is in use: another process measures into the same run folder. Wait until it ends, or "
                    "choose another folder."
                ) from error
            if code not in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT) or not again:
                raise ResponseError(
                    f"{path} cannot be opened: {error}. Choose a folder that can be written."
                ) from error
            _put_aside(path, error)
    raise AssertionError("unreachable")


def _hold(connection: sqlite3.Connection) -> None:
    """Exclusive locking and write-ahead logging; the lock is taken by the first transaction and kept."""
    for setting in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL"):
        connection.execute(f"PRAGMA {setting}")
    connection.execute("BEGIN IMMEDIATE")
    for statement in filter(str.strip, _TABLES.split(";")):
        connection.execute(statement)
    connection.execute("INSERT OR IGNORE INTO about VALUES ('schema', ?)", (SCHEMA,))
    connection.execute("COMMIT")
    if connection.execute("PRAGMA quick_check").fetchone()[0] != "ok":
        error = sqlite3.DatabaseError("its pages are damaged")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error


def _put_aside(path: Path, error: Exception) -> None:
    aside = path.with_name(path.name + ".damaged")
    warnings.warn(f"{path} is damaged ({error}); it is kept as {aside.name} and begun anew.", stacklevel=5)
    path.replace(aside)
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)


def _introduce(connection: sqlite3.Connection, path: Path, record: Mapping[str, Any]) -> None:
    """Write down whose journal this is, or refuse it."""
    about = dict(connection.execute("SELECT key, value FROM about").fetchall())
    if about.get("schema") != SCHEMA:
        raise ResponseError(f"{path} has schema {about.get('schema')!r}; this version reads {SCHEMA!r}. Remove it.")
    if "record" in about:
        try:
            there = json.loads(about["record"])
        except ValueError:
            there = {}
        refuse_other(path, there if isinstance(there, dict) else {}, record)
        return
    try:
        connection.execute("INSERT INTO about VALUES ('record', ?)", (json.dumps(record, sort_keys=True),))
    except sqlite3.Error as error:
        raise ResponseError(f"{path} cannot be written: {error}. Make room or choose another folder.") from error
