"""What is special about PostgreSQL: schemas, migrations, poolers, silent servers, and its own errors."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import psycopg
import pytest

import perdure
from perdure.errors import ConfigError, CorruptStore, LeaseHeld, LeaseLost, NewerFormat, StoreError
from perdure.framing import frame
from perdure.model import RunKey
from perdure.stores import open_store, postgres_link
from perdure.stores.base import Which
from perdure.stores.postgres import PostgresStore
from perdure.stores.postgres_setup import statements
from perdure.testing.processes import Child
from perdure.testing.samples import item, meta, records, snapshots
from perdure.testing.servers import Postgres

KEY = RunKey("paper")


@pytest.fixture
def server(postgres: Callable[[int], str]) -> str:
    return postgres(16)


@pytest.fixture
def schema(tmp_path: Path) -> str:
    return "p_" + sha256(str(tmp_path).encode()).hexdigest()[:16]


@pytest.fixture
def url(server: str, schema: str) -> str:
    return f"{server}?schema={schema}"


def admin(url: str, sql: str) -> list[Any]:
    with psycopg.connect(url.partition("?")[0], autocommit=True) as db:
        cursor = db.execute(sql)
        return cursor.fetchall() if cursor.description else []


# -- tables -----------------------------------------------------------------------------------------------------------


def test_its_tables_stand_beside_the_users_own(server: str, url: str, schema: str) -> None:  # K4
    before = admin(server, "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT LIKE 'p\\_%'")
    store = PostgresStore(url)
    store.append([item(store.claim(KEY), 0, 3)])
    store.close()
    tables = {name for (name,) in admin(server, f"SELECT tablename FROM pg_tables WHERE schemaname = '{schema}'")}
    assert tables == {"runs", "journal", "inbox", "blobs", "refs", "snapshots", "owners", "versions"}
    assert before == admin(server, "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT LIKE 'p\\_%'")


@pytest.mark.parametrize(("version", "next_"), [(1, "-- Which runs were given a blob"), (2, "-- What shortens")])
def test_an_older_schema_is_migrated_and_knows_which_runs_were_given_a_blob(
    server: str, url: str, schema: str, version: int, next_: str
) -> None:  # X13 K5
    first = statements(schema).split(next_)[0]
    admin(server, first + "COMMIT;")
    assert admin(server, f"SELECT max(version) FROM {schema}.versions") == [(version,)]
    digest, unused = (sha256(content).hexdigest() for content in (b"shared", b"unused"))
    line = frame(KEY, b'{"seq":1,"status":"running","output":{"refs":["%b"]}}' % digest.encode())
    with psycopg.connect(server, autocommit=True) as db:
        row = msgspec.json.encode(meta(KEY, 1)).decode()
        columns = (KEY.goal, KEY.episode, 1, "running", row, 7)
        db.execute(
            f"INSERT INTO {schema}.runs (goal, episode, seq, status, meta, epoch) VALUES ({'%s,' * 5}%s)", columns
        )
        db.execute(f"INSERT INTO {schema}.journal VALUES (1, 1, %s)", (line,))
        db.execute(f"SELECT setval('{schema}.epochs', 7)")
        for name, content in ((digest, b"shared"), (unused, b"unused")):
            db.execute(f"INSERT INTO {schema}.blobs VALUES (%s, %s)", (name, content))
        if version >= 2:
            db.execute(f"INSERT INTO {schema}.refs VALUES (1, %s)", (digest,))
            db.execute(f"UPDATE {schema}.runs SET size = %s", (len(line) + len(b"shared"),))
    store = PostgresStore(url)
    assert store.read(KEY) == [line] and store.runs()[0].size == len(line) + len(b"shared")
    other = store.claim(RunKey("other"))
    assert store.append([item(other, 0, shared=b"shared")]) == [None]
    store.delete(other)
    assert store.blob(digest) == b"shared" and snapshots(store).load(KEY) is None
    lease = store.claim(KEY)
    snapshots(store).save(lease, 1, b"the first")
    assert snapshots(store).load(KEY) == (1, b"the first")
    store.delete(lease)
    assert admin(server, f"SELECT digest FROM {schema}.blobs") == [(unused,)]
    assert admin(server, f"SELECT run FROM {schema}.snapshots") == []
    store.close()


def test_ten_processes_that_start_at_once_make_the_tables_once(server: str, url: str, schema: str) -> None:  # K4
    def work(say: Callable[[str], None], hear: Callable[[], str]) -> None:
        say("ready\n")
        hear()
        store = PostgresStore(url)
        say(f"{store.claim(RunKey(hear())).epoch}\n")
        store.close()

    children = [Child(work) for _ in range(10)]
    for child in children:
        assert child.hear() == "ready"
    for child in children:
        child.say("go\n")
    for number, child in enumerate(children):
        child.say(f"run {number}\n")
    epochs = [int(child.hear()) for child in children]
    for child in children:
        child.kill()
    assert len(set(epochs)) == 10
    assert admin(server, f"SELECT version FROM {schema}.versions ORDER BY 1") == [(1,), (2,), (3,)]


def test_a_newer_schema_is_refused_and_left_alone(server: str, url: str, schema: str) -> None:  # rel:R6
    PostgresStore(url).close()
    admin(server, f"INSERT INTO {schema}.versions VALUES (99, 'from the future')")
    with pytest.raises(NewerFormat, match="has schema version 99"):
        PostgresStore(url)


def test_the_printed_sql_makes_the_tables_that_the_store_makes(server: str, url: str, schema: str) -> None:
    PostgresStore(url).close()
    admin(server, statements(f"{schema}_2"))
    admin(server, statements(f"{schema}_2", after=3))
    columns = "SELECT table_name, column_name, data_type, column_default, is_nullable FROM information_schema.columns"
    made, printed = (
        admin(server, f"{columns} WHERE table_schema = '{name}' ORDER BY 1, 2") for name in (schema, f"{schema}_2")
    )
    assert [tuple(str(v).replace(f"{schema}_2", schema) for v in row) for row in printed] == [
        tuple(map(str, row)) for row in made
    ]
    PostgresStore(f"{server}?schema={schema}_2", create=False).close()


def test_a_listing_of_what_is_due_uses_indexes(url: str, schema: str) -> None:
    store = PostgresStore(url)
    asked: list[Any] = []
    for which in (Which(due=5.0, flows=("f",)), Which(active=5.0), Which(later=5.0)):
        real = store._main.connect().execute
        store._main.connect().execute = lambda sql, values=(), real=real: (
            asked.append((sql, values)),
            real(sql, values),
        )[1]  # type: ignore[assignment,misc]
        store.runs(which)
        del store._main.connect().execute
    with psycopg.connect(store.place.conninfo, autocommit=True) as db:
        db.execute("SET enable_seqscan = off")
        for sql, values in asked:
            plan = "\n".join(row[0] for row in db.execute(f"EXPLAIN {sql}", values))
            assert "Seq Scan on runs" not in plan, plan
    store.close()


def test_a_store_that_is_closed_while_its_heartbeat_connects_leaves_nothing_open(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # X3
    store = PostgresStore(url)
    store.claim(KEY)
    connecting, closed = threading.Event(), threading.Event()
    made: list[postgres_link.Connection] = []
    real = postgres_link.connected

    def slowly(place: postgres_link.Place) -> postgres_link.Connection:
        connecting.set()
        assert closed.wait(20)
        made.append(real(place))
        return made[0]

    monkeypatch.setattr(postgres_link, "connected", slowly)

    def beat() -> None:
        with suppress(LeaseLost):  # its owner is gone
            store.heartbeat()

    beating = threading.Thread(target=beat, daemon=True)
    beating.start()
    assert connecting.wait(20)
    store.close()
    closed.set()
    beating.join(20)
    assert made and made[0].closed


def test_to_read_a_part_of_a_journal_takes_no_look_at_what_follows(url: str) -> None:  # X8
    store = PostgresStore(url)
    lease = store.claim(KEY)
    for seq in range(0, 3000, 500):
        assert store.append([item(lease, seq, 500)]) == [None]
    assert store.read(KEY, 1000, 10) == [*records(KEY, 1000, 10)]
    assert store.read(KEY, 2995, 10) == [*records(KEY, 2995, 5)] and store.read(KEY, 3000, 10) == []
    with psycopg.connect(store.place.conninfo, autocommit=True) as db:
        values = {"after": 1000, "till": 1010, "goal": KEY.goal, "episode": 0}
        plan = db.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {store._sql['read']}", values).fetchall()
    assert max(int(rows) for rows in re.findall(r"'Actual Rows': (\d+)", str(plan))) == 10
    store.close()


# -- what it says when something is wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ((r"/postgres$", "/nowhere"), 'database "nowhere" does not exist'),
        ((r"//postgres@", "//nobody:s3cret@"), 'role "nobody" does not exist'),
    ],
)
def test_what_the_server_refuses_is_for_the_user_to_change(server: str, change: tuple[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as told:
        open_store(re.sub(*change, server))
    assert "s3cret" not in str(told.value)


def test_a_damaged_journal_names_run_and_record(url: str, schema: str) -> None:  # rel:D9
    store = PostgresStore(url)
    lease = store.claim(KEY)
    store.append([item(lease, 0, 4)])
    admin(url, f"DELETE FROM {schema}.journal WHERE seq = 2")
    with pytest.raises(CorruptStore, match="run paper#0 should have record 2 and has 3"):
        store.read(KEY)
    admin(url, f"DELETE FROM {schema}.journal WHERE seq > 1")
    with pytest.raises(CorruptStore, match="paper#0"):
        store.read(KEY)
    admin(url, f"UPDATE {schema}.runs SET meta = '['")
    (row,) = store.runs()
    assert row.status == "failed" and "the row of run paper#0 is damaged" in row.reason
    assert any("the row of run paper#0 is damaged" in said for said in store.warnings())
    store.close()


def test_a_full_disk_is_told_and_poisons_the_handle(url: str, schema: str) -> None:  # rel:D4 rel:D10
    store = PostgresStore(url)
    lease = store.claim(KEY)
    store.append([item(lease, 0)])
    admin(
        url,
        f"CREATE FUNCTION {schema}.fails() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$",
    )
    trigger = f"CREATE TRIGGER fails BEFORE INSERT ON {schema}.journal EXECUTE FUNCTION {schema}.fails()"
    admin(url, trigger)
    with pytest.raises(StoreError, match=r"No space left on device.*Free some space"):
        store.append([item(lease, 1)])
    with pytest.raises(StoreError, match="was closed after it failed"):
        store.read(KEY)
    admin(url, f"DROP TRIGGER fails ON {schema}.journal")
    store.close()
    again = PostgresStore(url)
    assert again.read(KEY) == list(records(KEY, 0, 1))
    again.close()


def test_a_database_with_another_encoding_is_refused(server: str) -> None:
    with suppress(psycopg.errors.DuplicateDatabase):
        admin(server, "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    with pytest.raises(ConfigError, match="encoding LATIN1"):
        PostgresStore(re.sub("/postgres$", "/latin", server))


def test_a_standby_is_not_written_to(server: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:  # rel:C9
    primary = Postgres(16, {"wal_level": "replica", "hot_standby": "on"})
    try:
        primary.kill()
        (primary.folder / "data" / "standby.signal").touch()
        import os

        if os.geteuid() == 0:
            os.chown(primary.folder / "data" / "standby.signal", 65534, 65534)
        primary.start()
        with pytest.raises(StoreError, match="is a standby"):
            PostgresStore(primary.url, patience=0.3)
    finally:
        primary.throw_away()


def test_a_server_that_says_nothing_is_given_up(
    server: str, url: str, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # rel:C7
    store = PostgresStore(url, patience=0.1)
    lease = store.claim(KEY)
    monkeypatch.setattr(postgres_link, "SILENCE", 0.3)
    with psycopg.connect(server) as blocker:
        blocker.execute(f"LOCK TABLE {schema}.journal IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(StoreError, match=r"has said nothing for 0\.3 s"):
            store.append([item(lease, 0)])
    store.close()


def test_a_server_killed_under_a_handle_loses_nothing_and_the_handle_goes_on() -> None:  # rel:D1
    server = Postgres(18)
    try:
        store = PostgresStore(f"{server.url}?lease=60")
        lease = store.claim(KEY)
        for seq in range(0, 8, 2):
            assert store.append([item(lease, seq, 2)]) == [None]
            server.kill()
            starting = threading.Thread(target=server.start)
            starting.start()
            assert store.read(KEY) == list(records(KEY, 0, seq + 2))
            starting.join()  # it may not know yet that the server is up
        assert store.post(KEY, 1, b"x\n") and store.posts({KEY: 0}) == {KEY: [b"x\n"]}
        store.close()
    finally:
        server.throw_away()


def test_a_snapshot_waits_for_a_claim_that_is_under_way(server: str, url: str, schema: str) -> None:  # rel:C1
    owner, other = PostgresStore(f"{url}&lease=60"), PostgresStore(f"{url}&lease=60")
    lease = owner.claim(KEY)
    assert owner.append([item(lease, 0)]) == [None]
    with psycopg.connect(server) as claiming:
        claiming.execute(f"UPDATE {schema}.runs SET epoch = nextval('{schema}.epochs'), owner = '{other._owner}'")
        refused: list[bool] = []

        def save() -> None:
            with pytest.raises(LeaseLost):
                snapshots(owner).save(lease, 1, b"of a zombie")
            refused.append(True)

        saving = threading.Thread(target=save)
        saving.start()
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%WITH held%'"
        while saving.is_alive() and not admin(url, waiting):
            pass
        assert refused == []
        claiming.commit()
        saving.join()
    assert refused == [True] and snapshots(other).load(KEY) is None
    for store in (owner, other):
        store.close()


def test_a_claim_waits_for_a_heartbeat_that_is_under_way(server: str, url: str, schema: str) -> None:  # rel:C4
    owner, other = PostgresStore(f"{url}&lease=60"), PostgresStore(f"{url}&lease=60")
    owner.append([item(owner.claim(KEY), 0)])
    late = f"UPDATE {schema}.owners SET until = clock_timestamp() - interval '1 s' WHERE id = '{owner._owner}'"
    saved = f"UPDATE {schema}.owners SET until = clock_timestamp() + interval '1 m' WHERE id = '{owner._owner}'"
    admin(url, late)
    refused: list[bool] = []

    def claim() -> None:
        with pytest.raises(LeaseHeld):
            other.claim(KEY)
        refused.append(True)

    with psycopg.connect(server) as beating:
        beating.execute(saved)  # and does not commit yet
        claiming = threading.Thread(target=claim)
        claiming.start()
        while not admin(url, "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'DELETE%'"):
            pass
        assert refused == []
        beating.commit()
        claiming.join()
    assert refused == [True]
    admin(url, late)
    assert other.claim(KEY).epoch > 0
    with pytest.raises(LeaseLost):
        owner.heartbeat()
    for store in (owner, other):
        store.close()


# -- poolers ----------------------------------------------------------------------------------------------------------


class Pooler:
    """Looks like a connection pooler: tells each client another number of the process that serves it."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.prepared = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                threading.Thread(target=self._forward, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._forward, args=(server, client, True), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, replies: bool) -> None:
        with suppress(OSError):
            while piece := source.recv(1 << 20):
                if replies:
                    piece = re.sub(
                        rb"K\x00\x00\x00\x0c....", b"K\x00\x00\x00\x0c\x00\x00\x00\x07", piece, flags=re.DOTALL
                    )
                elif b"_pg3_" in piece:
                    self.prepared += 1
                target.sendall(piece)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)
        source.close()  # the other direction closes the other one

    def close(self) -> None:
        self._listening.close()


@pytest.fixture
def pooler(server: str) -> Iterator[Pooler]:
    port = urlsplit(server).port
    assert port is not None
    made = Pooler(port)
    yield made
    made.close()


def test_behind_a_pooler_nothing_is_prepared_and_inboxes_are_looked_at(server: str, url: str, pooler: Pooler) -> None:
    @perdure.step
    def add(n: int) -> int:
        return n + 1

    @perdure.flow
    def asks(n: int) -> int:
        total = sum(add(k) for k in range(n))
        answer: int = perdure.ask("How many?", answer=int)
        return total + answer

    by_pooler = url.replace(f":{urlsplit(server).port}/", f":{pooler.port}/")
    results: list[int] = []
    with perdure.CheckpointManager(by_pooler) as manager:
        assert manager._writer is not None and manager._writer.store.capabilities.listen is None
        running = threading.Thread(target=lambda: results.append(manager.run_sync(asks, 20, goal="g", wait=60)))
        running.start()
        with perdure.Client(by_pooler) as client:
            while not client.runs() or not client.questions():
                pass
            client.answer("g", None, 5, by="ann")
        running.join()
    assert results == [215] and pooler.prepared == 0
    straight = PostgresStore(url)
    assert straight.capabilities.listen is not None
    straight.close()
