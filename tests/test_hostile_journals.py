"""A journal is two plain tables: what acts, belongs to others or has no end is refused in time and left as it is."""

import shutil
import sqlite3
import time
from contextlib import closing

import pytest

import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.api.shards import merge_shards
from spex_mech.errors import SpexMechError
from spex_mech.measuring.journal import JOURNAL, _Bounded

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i"
HUGE = f"{ENDLESS}, 1, randomblob(100000), randomblob(100000), 'x' FROM n"
SUBJECT = planted.conjunction(("a0.h1", "a1.h0"), layout=planted.PlantedLayout(n_layers=2, n_heads=4))
TASK = planted.task(n_prompts=2, seed=0)

TRICKS = {
    "a view of chunks": f"DROP TABLE chunks; CREATE VIEW chunks(first, prompts, keep, numbers, sha256) AS {HUGE}",
    "a view of about": f"DROP TABLE about; CREATE VIEW about(key, value) AS {ENDLESS}, 'x' FROM n",
    "a view beside": "CREATE VIEW more AS SELECT load_extension('evil')",
    "a trigger on insert": f"CREATE TRIGGER t BEFORE INSERT ON chunks BEGIN INSERT INTO about {ENDLESS}, 1 FROM n; END",
    "a trigger on update": "CREATE TRIGGER t AFTER UPDATE ON about BEGIN DELETE FROM chunks; END",
    "a table beside": "CREATE TABLE cookies(host TEXT)",
    "an index that computes": "CREATE INDEX i ON chunks(hex(randomblob(1)))",
    "an index beside": "CREATE INDEX i ON chunks(sha256)",
    "a virtual table": "CREATE VIRTUAL TABLE f USING fts5(x)",
    "generated columns": (
        "DROP TABLE chunks; CREATE TABLE chunks(first INTEGER PRIMARY KEY, prompts, keep, numbers, sha256, more AS "
        "(hex(zeroblob(100000000))))"
    ),
    "a check": "DROP TABLE about; CREATE TABLE about(key TEXT PRIMARY KEY, value TEXT CHECK(length(value) < 9))",
    "another program's": "DROP TABLE about; DROP TABLE chunks; CREATE TABLE moz_cookies(id INTEGER, value TEXT)",
}
BEGUN_ANEW = {
    "generated columns",
    "a check",
}  # the tables are there, but not as we make them: put aside, with a warning


def discover(out):
    return sm.discover(SUBJECT, TASK, components="a*.h*", budget=100, decoder="linear", link="identity", out=out)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    discover(run)
    return run


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("way", ["discover", "merge"])
def test_what_is_no_journal_of_ours_is_refused_in_time(whole, tmp_path, trick, way):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "responses.safetensors").unlink()
    with closing(sqlite3.connect(run / JOURNAL)) as made:
        try:
            made.executescript(TRICKS[trick])
        except sqlite3.OperationalError as error:
            pytest.skip(str(error))
    before, started = (run / JOURNAL).read_bytes(), time.monotonic()
    act = (lambda: discover(run)) if way == "discover" else (lambda: merge_shards([run], tmp_path / "merged"))
    if trick in BEGUN_ANEW:
        try:
            act()
        except SpexMechError as error:
            assert way == "merge", error  # noqa: PT017
        assert (run / f"{JOURNAL}.damaged").read_bytes() == before
    else:
        with pytest.raises(SpexMechError, match="is a database, but no journal"):
            act()
        assert (run / JOURNAL).read_bytes() == before
    assert time.monotonic() - started < 10


def test_a_query_without_end_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("spex_mech.measuring.journal._PATIENCE", 0.2)
    with closing(sqlite3.connect(tmp_path / "j", factory=_Bounded)) as connection:
        started = time.monotonic()
        with pytest.raises(sqlite3.OperationalError, match="interrupted"):
            connection.execute(f"SELECT count(*) FROM ({ENDLESS} FROM n)").fetchone()
        assert time.monotonic() - started < 5
        assert connection.execute("PRAGMA trusted_schema").fetchone()[0] == 0
        with pytest.raises(sqlite3.OperationalError, match="too many attached"):
            connection.execute("ATTACH ? AS other", (str(tmp_path / "other"),))


def test_a_table_of_millions_of_decisions_is_not_read(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "responses.safetensors").unlink()
    with closing(sqlite3.connect(run / JOURNAL)) as made, made:
        made.executemany("INSERT INTO about VALUES (?, 'x')", ((f"a{i}",) for i in range(300_000)))
    started = time.monotonic()
    try:
        discover(run)
    except SpexMechError as error:
        assert "journal" in str(error)  # noqa: PT017
    assert time.monotonic() - started < 10
