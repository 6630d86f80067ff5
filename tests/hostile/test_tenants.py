"""Two tenants on one server, each with a user of its own: neither reads, lists, claims, posts to, deletes or disturbs
what is the other's (rel:S9). A matrix over every verb of a store and of a client, with real users and rights."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
import redis

import perdure
from perdure.errors import ConfigError, PerdureError, StoreError
from perdure.model import RunKey
from perdure.runtime.retention import Keep, Retention
from perdure.stores import open_store
from perdure.stores.base import Store, Which
from perdure.stores.postgres import PostgresStore
from perdure.stores.postgres_setup import statements
from perdure.testing.samples import item, posts, snapshots
from perdure.testing.servers import Valkey

SECRET = "canary-of-b"
SHARED, ONLY_B = RunKey("shared"), RunKey(f"{SECRET}-run")


class Tenants(NamedTuple):
    """Two tenants of one place: A, who looks, and B, whose runs are none of A's business."""

    a: str
    b: str
    a_in_b: str
    """A, with A's own rights, in B's place"""
    admin: str = ""


@perdure.step
def load(text: str) -> str:
    return text


@perdure.flow
def flow(text: str) -> Any:
    return [load(text), perdure.ask(f"Go, {text}?", answer=bool)]


def fill(url: str, text: str, *keys: RunKey) -> None:
    """Runs that wait for an answer, and one that is queued."""
    with perdure.CheckpointManager(url) as manager:
        for key in keys:
            with suppress(perdure.errors.RunSuspended):
                manager.run_sync(flow, text, goal=key.goal)
        manager.submit(flow, text, goal=f"{text}-queued", queue="work")
    store = open_store(url)
    for key in keys:
        lease = store.claim(key)
        snapshots(store).save(lease, 1, text.encode())
        store.release(lease)
    store.close()


def picture(url: str) -> object:
    """Everything that a store has."""
    store = open_store(url)
    rows = store.runs()
    found = [
        (
            row.key,
            row.status,
            row.holder,
            store.read(row.key),
            store.posts({row.key: 0}),
            snapshots(store).load(row.key),
        )
        for row in rows
    ]
    store.close()
    return found


@pytest.fixture(params=["file", "sqlite", "postgresql", "redis"])
def tenants(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tenants]:
    made: Tenants
    if request.param == "postgresql":
        made = request.getfixturevalue("two_roles")
    elif request.param == "redis":
        made = request.getfixturevalue("two_users")
    else:
        suffix = ".db" if request.param == "sqlite" else ""
        a, b = (f"{request.param}:{tmp_path}/{name}/store{suffix}" for name in "ab")
        made = Tenants(a, b, "")  # whoever may open a file may read it: the file system keeps tenants apart
    fill(made.a, "a", SHARED)
    fill(made.b, SECRET, SHARED, ONLY_B)
    before = picture(made.b)
    yield made
    assert picture(made.b) == before, "nothing that A does changes anything of B's"


@pytest.fixture
def two_roles(postgres: Callable[[int], str], tmp_path: Path) -> Iterator[Tenants]:
    """Schemas made by an administrator with the SQL that ``perdure schema --role`` prints, one for each role."""
    url, name = postgres(16), sha256(str(tmp_path).encode()).hexdigest()[:12]
    plain = url.replace("postgres@", "{}@")
    with psycopg.connect(url, autocommit=True) as db:
        for who in "ab":
            db.execute(f'CREATE ROLE "{who}_{name}" LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE')
            db.execute(statements(f"s{who}_{name}", f"{who}_{name}"))
    a, b = (f"{plain.format(f'{who}_{name}')}?schema=s{who}_{name}" for who in "ab")
    yield Tenants(a, b, f"{plain.format(f'a_{name}')}?schema=sb_{name}", url)
    with psycopg.connect(url, autocommit=True) as db:
        for who in "ab":
            db.execute(f'DROP SCHEMA "s{who}_{name}" CASCADE; DROP OWNED BY "{who}_{name}"; DROP ROLE "{who}_{name}"')


RIGHTS = """
resetchannels &{prefix}:* ~{prefix}:* nocommands +get +set +del +exists +getrange +hget +hmget +hset +hdel +hincrby
+llen +lrange +lindex +rpush +zadd +zrem +zscore +zrange +zrangebylex +zrangebyscore +sadd +srem +sismember +smembers
+evalsha +script|load +multi +exec +time +publish +subscribe +unsubscribe +ping +info +waitaof +select
"""
"""what a user of a store needs, and no more; docs/stores.md has it"""


@pytest.fixture(scope="module")
def own_valkey() -> Iterator[Valkey]:
    """A server of our own, because users are set on it."""
    server = Valkey()
    yield server
    server.throw_away()


@pytest.fixture
def two_users(own_valkey: Valkey, tmp_path: Path) -> Iterator[Tenants]:
    name = sha256(str(tmp_path).encode()).hexdigest()[:12]
    admin = redis.Redis.from_url(own_valkey.url)
    for who in "ab":
        rights = RIGHTS.format(prefix=f"{who}{name}").split()
        admin.execute_command("ACL", "SETUSER", f"{who}{name}", "on", ">secret", *rights)
    urls = [own_valkey.url.replace("redis://", f"redis://{who}{name}:secret@") for who in "aba"]
    prefixes = [f"?prefix={who}{name}" for who in "abb"]
    yield Tenants(*(url + prefix for url, prefix in zip(urls, prefixes, strict=True)), own_valkey.url)
    admin.close()


# -- the matrix --------------------------------------------------------------------------------------------------------

VERBS: dict[str, Callable[[Store, RunKey], Any]] = {
    "claim": lambda store, key: store.release(store.claim(key)),
    "heartbeat": lambda store, key: store.heartbeat(),
    "release": lambda store, key: store.release(store.claim(key)),
    "append": lambda store, key: store.append([item(store.claim(RunKey("new", 7)), 0)]),
    "read": lambda store, key: store.read(key),
    "runs": lambda store, key: [*store.runs(), *store.runs(Which(goal=key.goal)), *store.runs(Which(due=9e9))],
    "post": lambda store, key: store.post(key, 1, posts(key, 1)[0]),
    "posts": lambda store, key: store.posts({key: 0}),
    "delete": lambda store, key: store.delete(store.claim(key)),
    "blob": lambda store, key: store.blob(sha256(SECRET.encode()).hexdigest()),
    "warnings": lambda store, key: store.warnings(),
    "capabilities": lambda store, key: store.capabilities.durable,
    "load": lambda store, key: snapshots(store).load(key),
    "save": lambda store, key: snapshots(store).save(store.claim(key), 1, b"of a"),
    "close": lambda store, key: store.close(),
}
CALLS: dict[str, Callable[[perdure.Client, str], Any]] = {
    "warnings": lambda client, run: client.warnings(),
    "waiting": lambda client, run: client.waiting(),
    "interrupted": lambda client, run: client.interrupted(),
    "due": lambda client, run: client.due(),
    "runs": lambda client, run: [*client.runs(), *client.runs(run)],
    "find": lambda client, run: client.find(run),
    "state": lambda client, run: client.state(run).meta(),
    "entries": lambda client, run: client.entries(run),
    "step": lambda client, run: client.step(run, "load"),
    "fork": lambda client, run: client.fork(run, goal="forked", by="a").meta(),
    "explain": lambda client, run: client.explain(run),
    "diff": lambda client, run: client.diff(run, run),
    "value": lambda client, run: client.value(client.step(run, "load").output),  # type: ignore[arg-type]
    "blobs": lambda client, run: client.blobs(client.step(run, "load").output),  # type: ignore[arg-type]
    "readable": lambda client, run: client.readable(client.step(run, "load").output),  # type: ignore[arg-type]
    "output_file": lambda client, run: client.output_file(client.state(run), client.step(run, "load")),
    "questions": lambda client, run: [*client.questions(), *client.questions(run)],
    "question": lambda client, run: client.question(run),
    "answer": lambda client, run: client.answer(run, None, True, by="a").meta(),
    "signal": lambda client, run: client.signal(run, "x", by="a").meta(),
    "pause": lambda client, run: client.pause(run, by="a").meta(),
    "unpause": lambda client, run: client.unpause(run, by="a").meta(),
    "retry": lambda client, run: client.retry(run, by="a").meta(),
    "cancel": lambda client, run: client.cancel(run, by="a").meta(),
    "each": lambda client, run: [*client.each(), *client.each(run)],
    "pin": lambda client, run: client.pin(run, by="a").meta(),
    "unpin": lambda client, run: client.unpin(run, by="a").meta(),
    "export": lambda client, run: client.export(BytesIO(), run),
    "import_archive": lambda client, run: client.import_archive(BytesIO(b"none"), by="a"),
    "prune": lambda client, run: list(client.prune(Retention(Keep(age=timedelta(0))))),
    "remove": lambda client, run: client.remove(run),
    "compact": lambda client, run: client.compact(),
    "url": lambda client, run: None,  # its own, which it knows
    "capabilities": lambda client, run: client.capabilities.durable,
    "close": lambda client, run: client.close(),
}  # fmt: skip


def test_the_matrix_has_every_verb() -> None:
    def public(of: type) -> set[str]:
        return {name for name, _ in inspect.getmembers(of) if not name.startswith("_")}

    assert public(Store) <= VERBS.keys() | {"url"}
    assert public(perdure.Client) == CALLS.keys()


def test_whatever_a_does_in_its_own_place_shows_and_changes_nothing_of_b(tenants: Tenants) -> None:  # rel:S9
    for key in (SHARED, ONLY_B, RunKey(f"{SECRET}-queued")):
        for name, verb in VERBS.items():
            store = open_store(tenants.a)
            with suppress(PerdureError):
                assert SECRET not in repr(verb(store, key)).replace(repr(key.goal), ""), name
            store.close()
        for name, call in CALLS.items():
            with perdure.Client(tenants.a) as client:
                try:
                    said = repr(call(client, str(key)))
                except PerdureError as error:
                    said = str(error)
                assert SECRET not in said.replace(key.goal, ""), name


def test_a_is_refused_in_the_place_of_b(tenants: Tenants) -> None:  # rel:S9
    if not tenants.a_in_b:
        return
    for create in (True, False):
        with pytest.raises((ConfigError, StoreError)) as told:
            open_store(tenants.a_in_b, create=create)
        assert SECRET not in str(told.value)
    with pytest.raises((ConfigError, StoreError)):
        perdure.run(flow, "a", goal="shared", store=tenants.a_in_b)


def test_a_run_of_a_ends_and_the_one_of_b_with_its_name_does_not(tenants: Tenants) -> None:  # rel:S9
    with perdure.Client(tenants.a) as client:
        client.answer("shared", None, True, by="a")
    assert perdure.run(flow, "a", goal="shared", store=tenants.a) == ["a", True]
    with perdure.Client(tenants.b) as client:
        assert client.find("shared").status == "pending_input"


# -- PostgreSQL --------------------------------------------------------------------------------------------------------


def direct(url: str, sql: str) -> list[Any]:
    with psycopg.connect(url.partition("?")[0], autocommit=True) as db:
        cursor = db.execute(sql)
        return cursor.fetchall() if cursor.description else []


TABLES = ("runs", "journal", "inbox", "blobs", "refs", "snapshots", "owners", "versions")


def test_sql_of_a_does_nothing_in_the_schema_of_b(two_roles: Tenants) -> None:  # rel:S9
    fill(two_roles.b, SECRET, ONLY_B)
    before, schema = picture(two_roles.b), two_roles.b.rpartition("=")[2]
    tries = [
        *(f"SELECT * FROM {schema}.{table}" for table in TABLES),
        *(f"SELECT count(*) FROM {schema}.{table}" for table in TABLES),
        *(f"DELETE FROM {schema}.{table}" for table in TABLES),
        *(f"TRUNCATE {schema}.{table}" for table in TABLES),
        *(f"BEGIN; LOCK TABLE {schema}.{table} IN ACCESS SHARE MODE" for table in TABLES),
        *(f"COPY {schema}.{table} TO '/dev/null'" for table in TABLES),
        *(f"DROP TABLE {schema}.{table}" for table in TABLES),
        *(f"CREATE TRIGGER x AFTER INSERT ON {schema}.{table} EXECUTE FUNCTION suppress_redundant_updates_trigger()"
          for table in TABLES),
        f"UPDATE {schema}.runs SET owner = ''",
        f"INSERT INTO {schema}.inbox VALUES (1, 1, 'x')",
        f"SELECT nextval('{schema}.epochs')",
        f"SELECT setval('{schema}.epochs', 1)",
        f"CREATE TABLE {schema}.x (a int)",
        f"CREATE VIEW x AS SELECT * FROM {schema}.runs",
        f"ALTER SCHEMA {schema} RENAME TO mine",
        f"DROP SCHEMA {schema} CASCADE",
        f"GRANT USAGE ON SCHEMA {schema} TO CURRENT_USER",
        "CREATE FUNCTION public.pg_notify(varchar, varchar) RETURNS void LANGUAGE sql AS 'SELECT 1'",
        "SET ROLE postgres",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "SELECT pg_read_file('postgresql.conf')",
    ]  # fmt: skip
    for sql in tries:
        with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedObject)):
            direct(two_roles.a, sql)
    assert picture(two_roles.b) == before


def test_a_sees_neither_the_statements_nor_the_statistics_of_b(two_roles: Tenants) -> None:  # rel:S9
    fill(two_roles.b, SECRET, ONLY_B)
    store = open_store(two_roles.b)
    direct(two_roles.admin, f"ANALYZE {two_roles.b.rpartition('=')[2]}.runs")
    for view in ("pg_stat_activity", "pg_stats", "pg_prepared_statements", "pg_locks"):
        assert SECRET not in str(direct(two_roles.a, f"SELECT * FROM {view}")), view
    b = direct(two_roles.b, "SELECT current_user")[0][0]
    seen = direct(two_roles.a, f"SELECT query FROM pg_stat_activity WHERE usename = '{b}'")
    assert seen and {said for (said,) in seen} <= {"<insufficient privilege>"}
    pids = direct(two_roles.admin, f"SELECT pid FROM pg_stat_activity WHERE usename = '{b}'")
    for function in ("pg_cancel_backend", "pg_terminate_backend"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            direct(two_roles.a, f"SELECT {function}({pids[0][0]})")
    store.close()


def test_a_neither_hears_nor_makes_news_of_b(two_roles: Tenants) -> None:  # rel:S9
    """Channels are the database's, and have no rights: their names are not told, and cannot be guessed."""
    store = open_store(two_roles.b)
    assert isinstance(store, PostgresStore)
    rings: list[bool] = []
    heard = threading.Event()
    assert store.capabilities.listen is not None
    stop = store.capabilities.listen(lambda posted: (rings.append(posted), heard.set()))  # type: ignore[func-returns-value]
    assert heard.wait(20), "it rings when it begins to listen"
    schema = two_roles.b.rpartition("=")[2]
    guesses = [f"perdure_{schema}", schema, "perdure", f"perdure_{schema}_news"]
    with psycopg.connect(two_roles.a.partition("?")[0], autocommit=True) as a:
        for guess in guesses:
            a.execute(f'LISTEN "{guess}"')
        assert store._channel not in str(a.execute("SELECT * FROM pg_listening_channels()").fetchall()) + str(guesses)
        rings.clear()
        for guess in guesses:
            a.execute("SELECT pg_notify(%s, 'post')", (guess,))
        assert len(list(a.notifies(timeout=2, stop_after=len(guesses)))) == len(guesses), "its own it hears"
        heard.clear()
        fill(two_roles.b, SECRET, ONLY_B)
        assert heard.wait(20), "and B hears B's"
        assert list(a.notifies(timeout=0.3)) == []
    stop()
    store.close()
    again = open_store(two_roles.b)
    assert isinstance(again, PostgresStore) and again._channel == store._channel
    again.close()


def test_a_that_holds_every_lock_it_can_keeps_b_from_nothing(two_roles: Tenants) -> None:  # rel:S9
    """The advisory lock of the first opening is anybody's. Who has the tables made beforehand never asks for it."""
    schema = two_roles.b.rpartition("=")[2]
    lock = int.from_bytes(sha256(f"perdure {schema}".encode()).digest()[:8], "big", signed=True)
    with psycopg.connect(two_roles.a.partition("?")[0]) as a:
        a.execute("SELECT pg_advisory_lock(%s)", (lock,))
        began = time.monotonic()
        fill(two_roles.b, SECRET, ONLY_B)
        assert time.monotonic() - began < 9, "no time limit had to pass"


# -- Redis -------------------------------------------------------------------------------------------------------------


def test_commands_of_a_do_nothing_to_the_keys_of_b(two_users: Tenants, own_valkey: Valkey) -> None:  # rel:S9
    fill(two_users.b, SECRET, ONLY_B)
    before = picture(two_users.b)
    admin = redis.Redis.from_url(own_valkey.url)
    prefix = two_users.b.rpartition("=")[2]
    keys = [key.decode() for key in admin.keys(f"{prefix}:*")]
    assert len(keys) > 10
    a = redis.Redis.from_url(two_users.a.partition("?")[0])
    commands: list[tuple[Any, ...]] = [
        *((verb, key) for key in keys for verb in ("GET", "DEL", "HGETALL", "EXISTS", "TYPE", "DUMP", "UNLINK")),
        *(("EXPIRE", key, 1) for key in keys),
        *(("LRANGE", key, 0, -1) for key in keys),
        *(("ZRANGE", key, 0, -1) for key in keys),
        *(("SET", key, "x") for key in keys),
        *(("EVALSHA", "0" * 40, 1, key) for key in keys[:2]),
        *(("COPY", key, "mine") for key in keys[:2]),
        *(("RENAME", key, "mine") for key in keys[:2]),
        ("EVAL", f"return redis.call('GET', '{keys[0]}')", 0),
        ("KEYS", "*"), ("SCAN", 0), ("RANDOMKEY",), ("DBSIZE",), ("FLUSHALL",), ("FLUSHDB",), ("SCRIPT", "FLUSH"),
        ("MONITOR",), ("CLIENT", "LIST"), ("CLIENT", "KILL", "ID", 1), ("CONFIG", "SET", "dir", "/tmp"), ("SAVE",),
        ("SHUTDOWN",), ("DEBUG", "SLEEP", 0), ("ACL", "LIST"), ("ACL", "SETUSER", "x"), ("SLAVEOF", "NO", "ONE"),
        ("PUBLISH", f"{prefix}:news", "post"), ("PUBSUB", "CHANNELS"), ("SWAPDB", 0, 1), ("MIGRATE", "x", 1, "", 0, 1),
    ]  # fmt: skip
    for command in commands:
        with pytest.raises(redis.exceptions.RedisError) as told:
            a.execute_command(*command)
        said = str(told.value).lower()
        assert any(word in said for word in ("permission", "noscript", "not allowed")), command
    listening = a.pubsub()
    with pytest.raises(redis.exceptions.RedisError):
        listening.subscribe(f"{prefix}:news")
        listening.get_message(timeout=5)
    for client in (listening, a, admin):
        client.close()
    assert picture(two_users.b) == before


def test_a_script_of_a_cannot_reach_the_keys_of_b(two_users: Tenants, own_valkey: Valkey) -> None:  # rel:S9
    fill(two_users.b, SECRET, ONLY_B)
    prefix = two_users.b.rpartition("=")[2]
    a = redis.Redis.from_url(two_users.a.partition("?")[0])
    for script in (
        f"return redis.call('GET', '{prefix}:format')",
        f"return redis.call('DEL', '{prefix}:format')",
        f"return redis.call('PUBLISH', '{prefix}:news', 'post')",
        "return redis.call('FLUSHALL')",
    ):
        digest = a.script_load(script)
        with pytest.raises(redis.exceptions.RedisError):
            a.execute_command("EVALSHA", digest, 0)
    a.close()


def test_the_rights_of_a_user_are_those_that_the_documentation_tells() -> None:
    page = (Path(__file__).parents[2] / "docs" / "stores.md").read_text()
    assert set(RIGHTS.format(prefix="perdure").split()) <= set(page.split()), "docs/stores.md: several tenants"
