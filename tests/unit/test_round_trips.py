"""How often a server is asked for a step: as often as there is something to wait for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import redis

import perdure
from perdure.runtime import writer


@perdure.step
def work(n: int) -> int:
    return n


ASKED: list[object] = []
MARKS: list[int] = []


@perdure.flow
def sequence() -> int:
    return sum(work(marked(n)) for n in range(30))


def marked(n: int) -> int:
    """The same number; twenty steps lie between those at which is looked how much was asked."""
    if n in (6, 26):
        MARKS.append(len(ASKED))
    return n


@pytest.mark.parametrize(("durability", "trips"), [("strict", 2), ("pipelined", 1)])
@pytest.mark.parametrize("kind", ["postgresql", "redis"])
def test_a_step_is_as_many_round_trips_as_commits(
    kind: str,
    durability: Any,
    trips: int,
    postgres: Callable[[int], str],
    valkey: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # X8
    name = f"trips_{durability}"
    url = f"{postgres(18)}?schema={name}&lease=60" if kind == "postgresql" else f"{valkey()}?prefix={name}&lease=60"
    del ASKED[:], MARKS[:]
    execute, send = psycopg.Cursor.execute, redis.Connection.send_packed_command

    def executing(self: Any, *args: Any, **options: Any) -> Any:
        if "step_" in str(args):  # besides, it is looked now and then whether somebody has posted something
            ASKED.append(args)
        return execute(self, *args, **options)

    def sending(self: Any, *args: Any, **options: Any) -> Any:
        if "step_" in str(args):
            ASKED.append(args)
        return send(self, *args, **options)

    monkeypatch.setattr(psycopg.Cursor, "execute", executing)
    monkeypatch.setattr(redis.Connection, "send_packed_command", sending)
    monkeypatch.setattr(writer, "_LINGER", 60.0)
    with perdure.CheckpointManager(url, perdure.CheckpointConfig(durability=durability)) as manager:
        manager.run_sync(sequence, goal="g")
    assert MARKS[1] - MARKS[0] == 20 * trips
