"""What is particular to the SQLite store: its settings, its neighbours in the file, schemas, and failing databases."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.errors import ConfigError, CorruptStore, LeaseLost, NewerFormat, PerdureError, StoreBusy, StoreError
from perdure.framing import frame
from perdure.model import RunKey
from perdure.stores import sqlite_setup
from perdure.stores.base import Append, Which
from perdure.stores.sqlite import SqliteStore
from perdure.testing.processes import Child
from perdure.testing.samples import HOSTILE_GOALS, item, meta, posts, records, snapshots

KEY = RunKey("paper")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with three records of one run, closed."""
    store = SqliteStore(tmp_path / "runs.db")
    assert store.append([item(store.claim(KEY), 0, 3, blob=b"large")]) == [None]
    store.close()
    return tmp_path / "runs.db"


def sql(path: Path, statement: str, *values: object) -> list[tuple[object, ...]]:
    """Run a statement through a connection of another program."""
    db = apsw.Connection(str(path))
    try:
        return db.execute(statement, values).fetchall()
    finally:
        db.close()


def test_a_batch_is_one_statement_whatever_it_has_of_runs_and_records(tmp_path: Path) -> None:  # X8
    store = SqliteStore(tmp_path / "runs.db")
    leases = [store.claim(RunKey(f"run {n}")) for n in range(20)]
    told: list[dict[str, Any]] = []
    store._db.trace_v2(1, told.append)  # SQLITE_TRACE_STMT
    assert store.append([item(lease, 0, 1 + n % 3) for n, lease in enumerate(leases)]) == [None] * 20
    assert len([statement for statement in told if not statement["trigger"]]) == 1
    assert [len(store.read(lease.key)) for lease in leases] == [1 + n % 3 for n in range(20)]
    store.close()


@pytest.mark.parametrize("fenced", [None, 0, 299])
def test_a_batch_that_needs_several_statements_is_kept_whole_but_for_what_is_fenced(
    tmp_path: Path, fenced: int | None
) -> None:  # X8, rel:C1
    store = SqliteStore(tmp_path / "runs.db")
    leases = [store.claim(RunKey(f"run {n}")) for n in range(300)]
    if fenced is not None:
        store.release(leases[fenced])
        store.claim(leases[fenced].key)
    results = store.append([item(lease, 0, 2) for lease in leases])
    assert [n for n, result in enumerate(results) if result is not None] == ([] if fenced is None else [fenced])
    rows = {row.key: row.status for row in store.runs()}
    for n, lease in enumerate(leases):
        assert len(store.read(lease.key)) == (0 if n == fenced else 2)
        assert (lease.key in rows) == (n != fenced)
    store.close()


def test_what_is_looked_for_is_written_again_if_the_batch_it_came_with_was_not(tmp_path: Path) -> None:  # X13
    store = SqliteStore(tmp_path / "runs.db")
    first, second = (item(store.claim(RunKey(goal)), 0) for goal in ("first", "second"))
    first = msgspec.structs.replace(first, meta=msgspec.structs.replace(first.meta, flow="wanted"))
    unwritable = msgspec.structs.replace(second, meta=msgspec.structs.replace(second.meta, reason="\udc80"))
    with pytest.raises(UnicodeEncodeError):
        store.append([first, unwritable])
    assert store.append([first]) == [None]
    assert store._select("SELECT flow FROM perdure_runs WHERE goal = 'first'") == [("wanted",)]
    store.close()


def test_what_a_transaction_set_of_the_connection_does_not_take_the_fence_down(tmp_path: Path) -> None:  # rel:C1 X7
    store, other = SqliteStore(tmp_path / "runs.db"), SqliteStore(tmp_path / "runs.db")
    stale = store.claim(KEY)
    assert store.append([item(stale, 0)]) == [None]
    lend = store.capabilities.transaction
    assert lend is not None
    with lend(stale) as lent:
        lent.connection.authorizer = lambda what, *_: (
            apsw.SQLITE_IGNORE if what == apsw.SQLITE_FUNCTION else apsw.SQLITE_OK
        )
        lent.check(None)
    row = store._rows[KEY]
    store.release(stale)
    assert other.append([item(other.claim(KEY), 1)]) == [None]
    store._rows[KEY] = row  # as if it had not noticed
    assert isinstance(store.append([item(stale, 2)])[0], LeaseLost)
    assert len(other.read(KEY)) == 2
    store.close()
    other.close()


# -- settings (rel:D3) ---------------------------------------------------------------------------------------------


def test_commits_are_durable_by_settings_that_were_read_back(path: Path) -> None:
    store = SqliteStore(path)
    assert store._select("PRAGMA journal_mode") == [("wal",)]
    assert store._select("PRAGMA synchronous") == [(2,)]
    assert store.warnings() == []
    store.close()


@pytest.fixture
def no_wal() -> Iterator[None]:
    """A file system without shared memory, where SQLite refuses its write-ahead log."""
    before = apsw.vfs_names()[0]
    apsw.set_default_vfs("unix-dotfile")
    yield
    apsw.set_default_vfs(before)


@pytest.mark.usefixtures("no_wal")
def test_where_the_log_is_refused_the_rollback_journal_is_as_safe(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "runs.db")
    assert store._select("PRAGMA journal_mode") == [("delete",)]
    assert store._select("PRAGMA synchronous") == [(3,)]
    assert "write-ahead log" in store.warnings()[0]
    assert store.append([item(store.claim(KEY), 0, 3)]) == [None]
    assert store.read(KEY) == list(records(KEY, 0, 3))
    store.close()


def test_a_sqlite_that_can_damage_what_two_processes_write_is_warned_of(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # rel:C8
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.2")
    store = SqliteStore(path)
    assert "two processes" in store.warnings()[0]
    store.close()


def test_a_store_that_lost_its_settings_gets_them_again(path: Path) -> None:
    assert sql(path, "PRAGMA journal_mode = delete") == [("delete",)]
    store = SqliteStore(path)
    assert store._select("PRAGMA journal_mode") == [("wal",)]
    store.close()


# -- neighbours and schemas ----------------------------------------------------------------------------------------


def test_the_users_own_tables_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    sql(path, "CREATE TABLE runs (x); INSERT INTO runs VALUES (42); PRAGMA user_version = 7")
    with pytest.raises(ConfigError, match="no store"):
        SqliteStore(path, create=False)
    assert sql(path, "SELECT count(*) FROM sqlite_schema") == [(1,)], "looking changes nothing"
    store = SqliteStore(path)
    for goal in HOSTILE_GOALS:
        assert store.append([item(store.claim(RunKey(goal)), 0)]) == [None]
    store.close()
    assert sql(path, "SELECT * FROM runs") == [(42,)]
    assert sql(path, "PRAGMA user_version") == [(7,)]
    names = {name for (name,) in sql(path, "SELECT name FROM sqlite_schema WHERE type = 'table'")}
    assert all(str(name).startswith("perdure_") for name in names - {"runs"}) and len(names) == 9
    strict = sql(path, "SELECT name FROM pragma_table_list WHERE name LIKE 'perdure%' AND NOT strict")
    assert strict == []


def test_a_newer_schema_is_refused_and_not_touched(path: Path) -> None:  # rel:R6
    sql(path, "INSERT INTO perdure_schema VALUES (99, 'from the future', 0)")
    before = path.read_bytes()
    for create in (True, False):
        with pytest.raises(NewerFormat, match="schema 99"):
            SqliteStore(path, create=create)
    assert path.read_bytes() == before


def test_a_schema_that_cannot_be_completed_is_not_begun(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    sql(path, "CREATE TABLE perdure_blobs (mine)")
    with pytest.raises(StoreError, match="perdure_blobs already exists"):
        SqliteStore(path)
    assert sql(path, "SELECT name FROM sqlite_schema") == [("perdure_blobs",)]


_STEPS = sorted((Path(sqlite_setup.__file__).parent / "migrations" / "sqlite").glob("*.sql"))


def test_opening_twice_migrates_once(path: Path) -> None:
    SqliteStore(path).close()
    assert sql(path, "SELECT version, name FROM perdure_schema") == list(enumerate((p.stem for p in _STEPS), 1))


@pytest.mark.parametrize("version", range(1, len(_STEPS)))
def test_a_store_of_an_older_schema_is_migrated_and_its_runs_go_on(tmp_path: Path, version: int) -> None:  # K4 X13
    path = tmp_path / "runs.db"
    sql(path, "CREATE TABLE perdure_schema (version INTEGER PRIMARY KEY, name TEXT, applied REAL) STRICT")
    for number, step in enumerate(_STEPS[:version], 1):
        sql(path, step.read_text())
        sql(path, "INSERT INTO perdure_schema VALUES (?, ?, 0)", number, step.stem)
    row = msgspec.json.encode(msgspec.structs.replace(meta(KEY, 3), flow="crew")).decode()
    columns, last = "run, goal, episode, seq, status, meta, epoch, owner, since", ("a" * 32, 9.0)
    sql(
        path,
        f"INSERT INTO perdure_runs ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        *(1, KEY.goal, KEY.episode, 3, "running", row, 7, *last),
    )
    if version >= 3:
        sql(path, "UPDATE perdure_runs SET wake = 9.0, flow = 'crew'")
    shared, unused = (hashlib.sha256(content).hexdigest() for content in (b"shared", b"unused"))
    large = frame(KEY, msgspec.json.encode({"seq": 2, "status": "running", "output": {"refs": [shared, "0" * 64]}}))
    lines = [records(KEY, 0, 1)[0], large, records(KEY, 2, 1)[0]]
    for seq, record in enumerate(lines, 1):
        sql(path, "INSERT INTO perdure_journal VALUES (1, ?, ?)", seq, record)
    sql(path, "INSERT INTO perdure_blobs VALUES (?, ?), (?, ?)", shared, b"shared", unused, b"unused")
    if version >= 4:
        sql(path, "INSERT INTO perdure_refs VALUES (1, ?)", shared)
        sql(path, "UPDATE perdure_runs SET size = ?", sum(map(len, lines)) + len(b"shared"))
    store = SqliteStore(path, create=False)
    assert [row.key for row in store.runs(Which(due=9.0, flows=("crew",)))] == [KEY], "its holder has died"
    assert store.runs(Which(due=8.9)) == []
    assert store.read(KEY) == lines and store.post(KEY, 1, posts(KEY, 1)[0])
    assert store.runs()[0].size == sum(map(len, lines)) + len(b"shared")
    lease = store.claim(KEY)
    assert lease.epoch == 8 and store.append([item(lease, 3)]) == [None]
    assert snapshots(store).load(KEY) is None
    snapshots(store).save(lease, 4, b"the first")
    assert snapshots(store).load(KEY) == (4, b"the first")
    store.release(lease)
    assert [row.unread for row in store.runs(Which(due=1.0))] == [1]
    other = store.claim(RunKey("other"))
    assert store.append([item(other, 0, shared=b"shared")]) == [None]
    store.delete(other)
    assert store.blob(shared) == b"shared", "a run has needed it since before such things were noted"
    store.delete(store.claim(KEY))
    assert sql(path, "SELECT digest FROM perdure_blobs") == [(unused,)]
    assert sql(path, "SELECT run FROM perdure_snapshots") == []
    store.close()


def test_what_is_due_is_found_without_looking_at_every_run(path: Path) -> None:
    store = SqliteStore(path)
    asked: list[str] = []
    store._select = lambda sql, values=(): (asked.append(sql), [])[1]  # type: ignore[method-assign]
    for which, values in ((Which(due=5.0), (5.0,)), (Which(active=5.0, queues=("q",)), (5.0, "q"))):
        store.runs(which)
        plan = [
            str(row[3])
            for statement in asked
            for row in sql(path, f"EXPLAIN QUERY PLAN {statement}", *values[: statement.count("?")])
        ]
        looked = [line for line in plan if "perdure_runs" in line]
        indexed = ("perdure_due", "perdure_unread", "perdure_held", "perdure_begun", "rowid=?")
        assert looked and all(any(name in line for name in indexed) for line in looked), looked
        asked.clear()
    store.close()


# -- busy, full and damaged ----------------------------------------------------------------------------------------


def test_a_busy_database_is_waited_for_then_reported_and_the_handle_lives_on(path: Path) -> None:
    store = SqliteStore(path, busy_timeout=0.02)
    lease = store.claim(KEY)
    other = apsw.Connection(str(path))
    other.execute("BEGIN IMMEDIATE")
    for verb in (lambda: store.claim(RunKey("other")), lambda: store.append([item(lease, 3)])):
        with pytest.raises(StoreBusy, match=r"runs\.db was locked by another process for 0\.02 s"):
            verb()
    assert store.read(KEY) == list(records(KEY, 0, 3)), "reading waits for nobody"
    other.execute("ROLLBACK")
    assert store.append([item(lease, 3)]) == [None]
    other.close()
    store.close()


def test_a_full_disk_poisons_the_handle_and_the_run_goes_on_when_there_is_room(path: Path) -> None:  # rel:D4, D10
    store = SqliteStore(path)
    lease, other = store.claim(KEY), store.claim(RunKey("other"))
    store._select("PRAGMA max_page_count = 20")
    seq = 3
    with pytest.raises(StoreError, match=r"ENOSPC.*Free some space"):
        while True:
            assert store.append([item(lease, seq, 10), item(other, seq - 3, 10)]) == [None, None]
            seq += 10
    with pytest.raises(StoreError, match="closed after it failed"):
        store.read(KEY)
    store.close()
    store = SqliteStore(path)
    assert store.read(KEY) == list(records(KEY, 0, seq)), "all of the batch or nothing"
    assert store.append([item(store.claim(KEY), seq, 10)]) == [None]
    store.close()


def test_missing_records_are_damage_not_a_shorter_run(path: Path) -> None:  # rel:D9
    store = SqliteStore(path)
    for gone, told in ((2, "record 2 and has 3"), (3, "record 3"), (1, "record 3")):
        sql(path, "DELETE FROM perdure_journal WHERE seq = ?", gone)
        with pytest.raises(CorruptStore, match=r"paper#0") as error:
            store.read(KEY)
        assert told in str(error.value)
    store.close()


def test_a_blob_with_other_content_is_damage(path: Path) -> None:
    store = SqliteStore(path)
    ((digest,),) = store._select("SELECT digest FROM perdure_blobs")
    assert store.blob(digest) == b"large"
    sql(path, "UPDATE perdure_blobs SET content = x'00'")
    with pytest.raises(CorruptStore, match="content"):
        store.blob(digest)
    store.close()


def test_a_snapshot_needs_no_wait_for_the_device_and_leaves_the_setting_as_it_was(path: Path) -> None:  # rel:D3
    store = SqliteStore(path)
    lease, done = store.claim(KEY), list[str]()

    def note(cursor: apsw.Cursor, statement: str, values: object) -> bool:
        done.append(statement.partition(" SELECT")[0])
        return True

    store._db.exec_trace = note
    snapshots(store).save(lease, 3, b"content")
    store._db.exec_trace = None
    assert done == [
        "PRAGMA synchronous = NORMAL",
        "BEGIN IMMEDIATE",
        "INSERT OR REPLACE INTO perdure_snapshots",
        "COMMIT",
        "PRAGMA synchronous = FULL",
    ]
    assert store._select("PRAGMA synchronous") == [(2,)]
    store.close()


def test_a_snapshot_in_a_table_that_is_not_ours_is_none(path: Path) -> None:  # rel:B3
    sql(path, "DROP TABLE perdure_snapshots; CREATE TABLE perdure_snapshots (run, seq, content)")
    store = SqliteStore(path)
    for seq, content in (("x", b"c"), (3, "text"), (None, b"c"), (3, None), (3.5, b"c")):
        sql(path, "DELETE FROM perdure_snapshots")
        sql(path, "INSERT INTO perdure_snapshots VALUES (1, ?, ?)", seq, content)
        assert snapshots(store).load(KEY) is None
    assert store.read(KEY) == list(records(KEY, 0, 3))
    store.close()


@pytest.mark.parametrize("content", [b"not a database" * 100, b"SQLite format 3\0" + b"\xff" * 4080])
def test_a_file_that_is_no_database_is_told_and_left_alone(tmp_path: Path, content: bytes) -> None:  # rel:B3
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    for create in (True, False):
        with pytest.raises(CorruptStore, match=r"notes\.txt"):
            SqliteStore(path, create=create)
    assert path.read_bytes() == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_in_its_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.raises(ConfigError, match=r"runs: it is a folder\. Choose another place"):
        SqliteStore(tmp_path / "runs")


def test_half_a_database_is_told_and_left_alone(path: Path) -> None:  # rel:B3
    whole = path.read_bytes()
    for size in (100, 4096, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptStore, match=r"runs\.db is damaged"):
            store = SqliteStore(path)
            store.read(KEY)
        assert path.read_bytes() == whole[:size]


def test_a_file_that_may_only_be_read_is_told_at_the_first_claim() -> None:
    def work(say: Callable[[str], None], hear: Callable[[], str]) -> None:
        if os.geteuid() == 0:  # root may write everywhere
            os.setgroups([])
            os.setuid(65534)
        path = place / "runs.db"
        store = SqliteStore(path)
        assert store.append([item(store.claim(KEY), 0, 3)]) == [None]
        store.close()
        path.chmod(0o400)
        store = SqliteStore(path)
        say(f"{len(store.read(KEY))}\n")
        try:
            store.claim(KEY)
        except StoreError as error:
            say(f"{error}\n")

    with tempfile.TemporaryDirectory() as folder:  # tmp_path lies in a folder that is closed to others
        place = Path(folder)
        place.chmod(0o777)
        child = Child(work)
        assert child.hear() == "3"
        assert child.hear().startswith(f"Cannot claim a run in {place}/runs.db: attempt to write a readonly database.")
        child.kill()


def test_the_log_does_not_grow_with_the_number_of_commits(path: Path) -> None:
    store, other = SqliteStore(path), SqliteStore(path)
    lease, log = store.claim(KEY), Path(f"{path}-wal")
    line = records(KEY, 3, 1, pad="x" * 30_000)
    for seq in range(3, 303):  # 9 MB
        assert store.append([Append(lease, seq, line, meta(KEY, seq + 1))]) == [None]
        other.runs()
    assert log.stat().st_size < 5_000_000  # SQLite begins anew after 1,000 pages
    store.close()
    other.close()
    assert not log.exists()


@settings(max_examples=60, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=40)), min_size=1, max_size=4))
def test_random_damage_gives_an_error_of_ours_or_none(path: Path, changes: list[tuple[int, bytes]]) -> None:  # rel:B3
    sound = path.read_bytes()
    data = bytearray(sound)
    for at, new in changes:
        at %= len(sound)
        data[at : at + len(new)] = new
    path.write_bytes(data[: len(sound)])
    try:
        store = SqliteStore(path)
        for verb in (lambda: store.read(KEY), store.runs, lambda: store.append([item(store.claim(KEY), 3)])):
            try:
                verb()
            except PerdureError:
                continue
        store.close()
    except PerdureError:
        pass
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    path.write_bytes(sound)
