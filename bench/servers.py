"""PostgreSQL and Valkey: what runs cost over what the driver alone needs for the same records, one a commit.

The unit is a record: a step that starts and completes writes two. So 1.00 is what one writer can do that sends a
record, waits until it is durable, and sends the next.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path

import perdure
from bench.scenarios import BODY, Scenario, many_runs, sequence, sequence_async, steps
from perdure.clock import SYSTEM
from perdure.runtime.lease import clock_of
from perdure.runtime.queues import Offer, Search
from perdure.stores import open_store
from perdure.testing.servers import Postgres, Valkey

_RECORDS = 2
"""of a step"""


@cache
def _postgres() -> Postgres:
    return Postgres(18)


@cache
def _valkey() -> Valkey:
    return Valkey()


def _name(folder: Path) -> str:
    return "b" + sha256(str(folder).encode()).hexdigest()[:16]


def postgres_url(folder: Path) -> str:
    return f"{_postgres().url}?schema={_name(folder)}"


def valkey_url(folder: Path) -> str:
    return f"{_valkey().url}?prefix={_name(folder)}"


def raw_postgres(folder: Path, size: int) -> float:
    """Commits per second of psycopg: one row of 1 KiB each, the statement prepared."""
    import psycopg

    body = BODY.encode()
    with psycopg.connect(_postgres().url, autocommit=True) as db:
        db.execute(f"CREATE TABLE {_name(folder)} (id bigserial PRIMARY KEY, body bytea NOT NULL)")
        began = time.perf_counter()
        for _ in range(size):
            db.execute(f"INSERT INTO {_name(folder)} (body) VALUES (%b)", (body,))
        return size / (time.perf_counter() - began)


def raw_valkey(folder: Path, size: int) -> float:
    """RPUSHes per second of redis-py: 1 KiB each, synced by the server before it answers."""
    import redis

    body = BODY.encode()
    with redis.Redis.from_url(_valkey().url) as db:
        began = time.perf_counter()
        for _ in range(size):
            db.rpush(f"raw:{_name(folder)}", body)
        return size / (time.perf_counter() - began)


def _records(place: Callable[[Path], str], work: Callable[[str], Callable[[Path, int], float]]) -> Callable[..., float]:
    """Records per second instead of steps, in the store that belongs to the folder."""

    def measure(folder: Path, size: int) -> float:
        return _RECORDS * work(place(folder))(folder, size)

    return measure


def claims(place: Callable[[Path], str]) -> Callable[[Path, int], float]:
    """Runs per second that 4 processes claim, as a worker does that has room for ten: look what there is, and claim."""

    def measure(folder: Path, size: int) -> float:
        url = place(folder)
        _submit(url, size)
        said = [json.loads(worker.communicate()[0]) for worker in _four(f"s.claim({url!r})")]
        assert sum(count for count, _, _ in said) == size
        return size / (max(last for _, _, last in said) - min(first for _, first, _ in said))

    return measure


def whole_runs(place: Callable[[Path], str]) -> Callable[[Path, int], float]:
    """Runs per second that 4 workers claim, begin and complete, from the first to the last; they have no steps."""

    def measure(folder: Path, size: int) -> float:
        url = place(folder)
        _submit(url, size)
        for worker in _four(f"s.work({url!r})"):
            worker.communicate()
        with perdure.Client(url) as client:
            rows = client.runs()
        assert [row.status for row in rows] == ["completed"] * size
        return size / (max(row.updated for row in rows) - min(row.begun for row in rows))

    return measure


def _submit(url: str, size: int) -> None:
    with perdure.CheckpointManager(url) as manager:
        for n in range(size):
            manager.submit(nothing, n, goal=f"run {n}")


def _four(code: str) -> list[subprocess.Popen[str]]:
    words = [sys.executable, "-c", f"import bench.servers as s; {code}"]
    return [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(4)]


@perdure.flow
async def nothing(number: int) -> int:
    """A run without steps."""
    return number


def work(url: str) -> None:
    """Be a worker until nothing is left."""
    with perdure.CheckpointManager(url) as manager:
        asyncio.run(manager.work(nothing, until_idle=True))


def claim(url: str) -> None:
    """Claim until nothing is left; say how many there were, and when the first and the last."""
    store, at = open_store(url), []
    clock = clock_of(store, SYSTEM)
    search = Search(clock, Offer({nothing.name: nothing}))
    while taken := search.take(store, 10, busy=False).runs:
        at += [time.monotonic()] * len(taken)
    print(json.dumps([len(at), *((at[0], at[-1]) if at else (time.monotonic(),) * 2)]))


def _of(kind: str, place: Callable[[Path], str], base: Callable[[Path, int], float]) -> tuple[Scenario, ...]:
    def one(flow: Callable[..., object], durability: str) -> Callable[..., float]:
        return _records(place, lambda url: steps(url, flow, durability))

    return (
        Scenario(f"{kind}, one run, sync, strict", one(sequence, "strict"), 400, 0.4, base),
        Scenario(f"{kind}, one run, async, strict", one(sequence_async, "strict"), 400, None, base),
        Scenario(f"{kind}, one run, sync, pipelined", one(sequence, "pipelined"), 800, 0.7, base),
        Scenario(
            f"{kind}, 100 runs at a time, async, strict", _records(place, lambda u: many_runs(u, 100)), 200, 3.0, base
        ),
        Scenario(f"{kind}, 4 workers, claims", claims(place), 1000, None, base),
        Scenario(f"{kind}, 4 workers, runs without steps", whole_runs(place), 1000, None, base),
    )


SERVER_SCENARIOS = (
    *_of("postgresql", postgres_url, raw_postgres),
    *_of("valkey", valkey_url, raw_valkey),
)
