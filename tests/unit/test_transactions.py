"""Transactional steps (X7): the effect in the user's tables and the record are there together, or neither is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import apsw
import psycopg
import psycopg.rows
import pytest

import perdure
from perdure.errors import ConfigError, LeaseLost, OutputRefused
from perdure.runtime.manager import CheckpointManager
from perdure.testing.servers import Postgres

Query = Callable[[str], list[Any]]


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Query]]:
    """A store, and another connection to its database, where the user has tables."""
    tables = (
        "CREATE TABLE {0}accounts (id INTEGER PRIMARY KEY, amount INTEGER NOT NULL)",
        "CREATE TABLE {0}bookings (account INTEGER NOT NULL REFERENCES {0}accounts (id) DEFERRABLE INITIALLY DEFERRED)",
    )
    if request.param == "sqlite":
        db: Any = apsw.Connection(str(tmp_path / "runs.db"))
        for table in tables:
            db.execute(table.format(""))
        yield f"sqlite:{tmp_path / 'runs.db'}", lambda sql: list(db.execute(sql))
    else:
        url = request.getfixturevalue("postgres")(18)
        name = "x" + sha256(str(tmp_path).encode()).hexdigest()[:16]
        db = psycopg.connect(url, autocommit=True)
        db.execute(f"CREATE SCHEMA {name}_user")
        for table in tables:
            db.execute(table.format(f"{name}_user."))
        db.execute(f"SET search_path TO {name}_user")
        yield f"{url}?schema={name}&options=-csearch_path%3D{name}_user", lambda sql: db.execute(sql).fetchall()
    db.close()


def sql(text: str) -> None:
    perdure.context().transaction.execute(text)


@perdure.step(transaction=True)
def deposit(account: int, amount: int) -> int:
    sql(f"INSERT INTO accounts VALUES ({account}, {amount})")
    return amount


@perdure.step
async def pause(n: int) -> int:
    await asyncio.sleep(0)
    return n


def test_the_effect_and_the_record_are_there_together(place: tuple[str, Query]) -> None:
    url, query = place

    @perdure.flow
    async def flow(n: int) -> int:
        parts = await perdure.gather(*(pause(k) for k in range(n)))
        return sum([deposit(k, 10) for k in parts]) + sum(await perdure.gather(*(pause(k) for k in range(n))))

    with CheckpointManager(url) as manager:
        assert manager.run_sync(flow, 4, goal="g") == 46
        assert query("SELECT count(*), sum(amount) FROM accounts") == [(4, 40)]
        assert manager.run_sync(flow, 4, goal="g") == 46
        state = manager.look("g").result()
    assert state is not None and all(step.status == "completed" for step in state.steps.values())
    assert query("SELECT count(*) FROM accounts") == [(4,)]


@pytest.mark.parametrize("why", ["raises", "refused", "constraint", "deferred"])
def test_what_fails_leaves_nothing_behind_and_is_tried_again(place: tuple[str, Query], why: str) -> None:
    url, query = place
    attempts: list[int] = []

    @perdure.step(transaction=True, retries=1, backoff=0.001)
    def fragile(account: int) -> int | None:
        sql(f"INSERT INTO accounts VALUES ({account}, 1)")
        attempts.append(perdure.context().attempt)
        if len(attempts) < 2:
            if why == "raises":
                raise ValueError("no")
            if why == "refused":
                return None
            sql("INSERT INTO bookings VALUES (99)" if why == "deferred" else "INSERT INTO accounts VALUES (1, 1)")
        return account

    with CheckpointManager(url) as manager:
        if url.startswith("sqlite"):
            assert manager._writer is not None
            store: Any = manager._writer.store
            manager._writer.call(lambda: store._db.execute("PRAGMA foreign_keys = ON")).result()
        assert manager.run_sync(perdure.flow(lambda: fragile(1)), goal="g") == 1
        state = manager.look("g").result()
        assert manager.run_sync(perdure.flow(lambda: deposit(2, 5)), goal="after") == 5, (
            "the store is as good as before"
        )
    assert state is not None
    outcome = {"refused": "refused"}.get(why, "failed")
    assert [attempt.outcome for attempt in state.steps[1].attempts] == [outcome, "completed"]
    assert attempts == [1, 2] and query("SELECT id FROM accounts ORDER BY id") == [(1,), (2,)]
    assert query("SELECT count(*) FROM bookings") == [(0,)]


def test_a_step_without_an_attempt_left_fails_and_leaves_nothing(place: tuple[str, Query]) -> None:
    url, query = place

    @perdure.step(transaction=True)
    def empty() -> str:
        sql("INSERT INTO accounts VALUES (1, 1)")
        return ""

    with CheckpointManager(url) as manager, pytest.raises(OutputRefused):
        manager.run_sync(perdure.flow(lambda: empty()), goal="g")
    assert query("SELECT count(*) FROM accounts") == [(0,)]


def test_a_fenced_process_executes_nothing_and_a_holder_is_not_overtaken_meanwhile(place: tuple[str, Query]) -> None:
    url, query = place  # X3
    executed: list[int] = []

    @perdure.step(transaction=True)
    def overtaken() -> int:
        executed.append(1)
        sql("INSERT INTO accounts VALUES (1, 1)")
        return 1

    with CheckpointManager(url) as manager:
        assert manager._writer is not None
        store: Any = manager._writer.store

        @perdure.flow
        def flow() -> int:
            pause_sync(1)
            steal()
            return overtaken()

        @perdure.step
        def pause_sync(n: int) -> int:
            return n

        def steal() -> None:
            """Somebody else has got the run."""
            if url.startswith("sqlite"):
                manager._writer.call(lambda: store._db.execute("UPDATE perdure_runs SET epoch = epoch + 1")).result()  # type: ignore[union-attr]
            else:
                with psycopg.connect(store.place.conninfo, autocommit=True) as db:
                    db.execute(f'UPDATE "{store.place.schema}".runs SET epoch = epoch + 1')

        with pytest.raises(LeaseLost):
            manager.run_sync(flow, goal="g")
    assert executed == [] and query("SELECT count(*) FROM accounts") == [(0,)]


def test_what_the_body_sets_of_the_connection_is_taken_back(place: tuple[str, Query]) -> None:
    url, query = place

    @perdure.step(transaction=True)
    def meddles(n: int) -> int:
        connection = perdure.context().transaction
        if url.startswith("sqlite"):
            connection.row_trace = lambda cursor, row: {"row": row}
        else:
            connection.row_factory = psycopg.rows.dict_row
        sql(f"INSERT INTO accounts VALUES ({n}, 1)")
        return n

    with CheckpointManager(url) as manager:
        for n in range(3):
            assert manager.run_sync(perdure.flow(lambda n: meddles(n)), n, goal=f"g{n}") == n
    assert query("SELECT count(*) FROM accounts") == [(3,)]


def test_an_error_that_the_body_caught_is_told_for_what_it_is(place: tuple[str, Query]) -> None:
    url, query = place

    @perdure.step(transaction=True)
    def catches() -> int:
        sql("INSERT INTO accounts VALUES (1, 1)")
        try:
            sql("INSERT INTO accounts VALUES (1, 1)")
        except (apsw.Error, psycopg.Error):
            pass
        return 1

    with CheckpointManager(url) as manager:
        if url.startswith("sqlite"):  # a statement that fails leaves the transaction as it was
            assert manager.run_sync(perdure.flow(lambda: catches()), goal="g") == 1
        else:
            with pytest.raises(ConfigError, match="caught the error of a statement"):
                manager.run_sync(perdure.flow(lambda: catches()), goal="g")
    assert query("SELECT count(*) FROM accounts") == [(1 if url.startswith("sqlite") else 0,)]


def test_a_server_that_restarts_in_the_middle_is_no_failure_of_the_step() -> None:  # rel:R7
    server = Postgres(18)
    starting = threading.Thread(target=server.start)
    bodies: list[int] = []

    @perdure.step(transaction=True)
    def interrupted() -> int:
        bodies.append(1)
        if len(bodies) == 1:
            server.kill()
            starting.start()
        sql("INSERT INTO accounts VALUES (1, 1)")
        return 1

    try:
        with psycopg.connect(server.url, autocommit=True) as db:
            db.execute("CREATE TABLE accounts (id integer PRIMARY KEY, amount integer)")
        with CheckpointManager(f"{server.url}?lease=60") as manager:
            assert manager.run_sync(perdure.flow(lambda: interrupted()), goal="g") == 1
            state = manager.look("g").result()
        assert state is not None and [attempt.outcome for attempt in state.steps[1].attempts] == ["completed"]
        assert len(bodies) == 2
        with psycopg.connect(server.url) as db:
            assert db.execute("SELECT count(*) FROM accounts").fetchone() == (1,)
        starting.join()  # it may not know yet that the server is up
    finally:
        server.throw_away()


@pytest.mark.parametrize("ends", ["COMMIT", "ROLLBACK"])
def test_a_body_that_ends_the_transaction_fails(place: tuple[str, Query], ends: str) -> None:
    url, query = place

    @perdure.step(transaction=True)
    def meddles() -> int:
        sql("INSERT INTO accounts VALUES (1, 1)")
        sql(ends)
        return 1

    with CheckpointManager(url) as manager:
        with pytest.raises(ConfigError, match="ended its transaction itself"):
            manager.run_sync(perdure.flow(lambda: meddles()), goal="g")
        assert manager.run_sync(perdure.flow(lambda: deposit(2, 5)), goal="after") == 5
    assert query("SELECT id FROM accounts ORDER BY id") == ([(1,), (2,)] if ends == "COMMIT" else [(2,)])


def test_a_body_may_do_nothing_durable_but_through_its_transaction(place: tuple[str, Query]) -> None:
    url, query = place

    def inside(what: Callable[[], object]) -> Any:
        @perdure.step(transaction=True)
        def outer() -> int:
            sql("INSERT INTO accounts VALUES (1, 1)")
            what()
            return 1

        return perdure.flow(lambda: outer())

    calls: dict[str, Callable[[], object]] = {
        "step": lambda: deposit(2, 5),
        "progress": lambda: perdure.context().save(1),
        "question": lambda: perdure.ask("Well?"),
    }
    with CheckpointManager(url) as manager:
        for name, what in calls.items():
            with pytest.raises(ConfigError, match="nothing durable but through its transaction"):
                manager.run_sync(inside(what), goal=name)
    assert query("SELECT count(*) FROM accounts") == [(0,)]


@pytest.mark.parametrize("url", ["memory:", "file:{}/runs"])
def test_stores_without_transactions_say_so(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has none to give"):
        perdure.run(perdure.flow(lambda: deposit(1, 1)), goal="g", store=url.format(tmp_path))


def test_without_a_store_there_is_no_transaction() -> None:  # G1
    with pytest.raises(ConfigError, match="no run with a store that has one"):
        deposit(1, 1)

    @perdure.step
    def plain() -> object:
        return perdure.context().transaction

    with pytest.raises(ConfigError, match="is not declared transaction=True"):
        plain()


@pytest.mark.parametrize("wrong", [{"timeout": 3.0}, {"on_crash": "fail"}, {"on_refused": "flag"}, {"on_crash": "ask"}])
def test_declarations_that_cannot_go_together_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="transaction=True excludes"):
        perdure.step(transaction=True, **wrong)


def test_an_async_step_cannot_take_a_transaction() -> None:
    with pytest.raises(ConfigError, match="is async"):

        @perdure.step(transaction=True)
        async def wrong() -> int:
            return 1
