"""Processes killed around transactional steps: the user's tables and the journal always agree (X7)."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import apsw
import psycopg
import pytest

import perdure
from perdure.errors import FencedError
from perdure.testing.processes import Child

STEPS = 40


@perdure.step(transaction=True)
def book(number: int) -> int:
    perdure.context().transaction.execute(f"INSERT INTO bookings VALUES ({number})")
    SAY(f"{number}\n")
    return number


@perdure.flow
def flow(n: int) -> int:
    return sum(book(number) for number in range(n))


def SAY(text: str) -> None:
    """In a child: tell the parent, which kills it there or a moment later."""


def place(kind: str, folder: Path, postgres: Callable[[int], str]) -> tuple[str, Callable[[str], list[tuple[int]]]]:
    if kind == "sqlite":
        path = folder / "runs.db"

        def ask(sql: str) -> list[tuple[int]]:
            db = apsw.Connection(str(path))
            try:
                return list(db.execute(sql))
            finally:
                db.close()

        return f"sqlite:{path}", ask
    name = "k" + sha256(str(folder).encode()).hexdigest()[:16]
    url = postgres(18)

    def query(sql: str) -> list[tuple[int]]:
        with psycopg.connect(url, autocommit=True, options=f"-csearch_path={name}") as db:
            found = db.execute(sql)
            return found.fetchall() if found.description else []

    query(f"CREATE SCHEMA {name}")
    return f"{url}?schema={name}_p&lease=0.5&options=-csearch_path%3D{name}", query


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_wherever_it_is_killed_each_effect_is_there_once(
    kind: str, tmp_path: Path, postgres: Callable[[int], str], record_property: Callable[[str, object], None]
) -> None:  # X7
    url, query = place(kind, tmp_path, postgres)
    query("CREATE TABLE bookings (number INTEGER)")  # without a key: a second effect would show

    def work(say: Callable[[str], None], hear: Callable[[], str]) -> None:
        globals()["SAY"] = say
        while True:
            try:
                perdure.run(flow, STEPS, goal="g", store=url, config=perdure.CheckpointConfig(crash_limit=1000))
                say("done\n")
                hear()
            except FencedError:  # who was killed holds it a moment longer; or we were too slow for so short a lease
                perdure.clock.SYSTEM.sleep(0.02)

    kills = 0
    while True:
        child = Child(work)
        said = child.hear()
        for _ in range(kills % 4):
            said = child.hear() if said != "done" else said
        child.kill()
        if said == "done":
            break
        kills += 1
        assert kills < 3 * STEPS
        told = [number for (number,) in query("SELECT number FROM bookings ORDER BY number")]
        assert told == list(range(len(told))), "every effect once"
        with perdure.Client(url) as client:
            recorded = [step for step in client.state("g").steps.values() if step.status == "completed"]
        assert len(recorded) == len(told), "and its record with it"
    assert kills > 5
    with perdure.Client(url) as client:
        state = client.state("g")
        assert state.output is not None and client.value(state.output) == sum(range(STEPS))
    assert query("SELECT count(*) FROM bookings") == [(STEPS,)]
    record_property("transactions killed", kills)
