"""What is measured. Each works in a fresh store below ``folder`` and returns what it did per second."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import apsw

import perdure
from perdure.errors import RunSuspended
from perdure.runners import Agent, Reply, ToolCall

BODY = "x" * 1024


class Scenario(NamedTuple):
    """``work(folder, size)`` returns how many units a second; ``aim`` is the ratio to raw commits that is promised, and
    ``base`` what these are: SQLite's, unless it is a server's scenario."""

    name: str
    work: Callable[[Path, int], float]
    size: int
    aim: float | None
    base: Callable[[Path, int], float] | None = None


def raw(folder: Path, size: int) -> float:
    """Commits per second of one writer: SQLite, WAL, synchronous=FULL, one row of 1 KiB each."""
    db = apsw.Connection(str(folder / "raw.db"))
    db.execute("PRAGMA journal_mode=WAL").fetchall()
    db.execute("PRAGMA synchronous=FULL")
    db.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT")
    body = BODY.encode()
    began = time.perf_counter()
    for _ in range(size):
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO rows (body) VALUES (?)", (body,))
        db.execute("COMMIT")
    seconds = time.perf_counter() - began
    db.close()
    return size / seconds


@perdure.step
def work(number: int) -> str:
    """A step that takes no time and returns 1 KiB."""
    return BODY


@perdure.step
async def work_async(number: int) -> str:
    """The same, async."""
    return BODY


@perdure.flow
def sequence(size: int) -> int:
    """Steps one after the other."""
    return sum(len(work(number)) for number in range(size))


@perdure.flow
async def sequence_async(size: int) -> int:
    """The same, async."""
    return sum([len(await work_async(number)) for number in range(size)])


def steps(url: str, flow: Callable[..., object], durability: str) -> Callable[[Path, int], float]:
    """Steps per second of one run."""

    def measure(folder: Path, size: int) -> float:
        config = perdure.CheckpointConfig(durability=durability)  # type: ignore[arg-type]
        with perdure.CheckpointManager(url.format(folder), config) as manager:
            manager.run_sync(flow, 1, goal="warm")
            began = time.perf_counter()
            manager.run_sync(flow, size, goal="measured")
            return size / (time.perf_counter() - began)

    return measure


def many_runs(url: str, runs: int) -> Callable[[Path, int], float]:
    """Steps per second of many runs at a time in one event loop, ``size`` steps each, strict."""

    def measure(folder: Path, size: int) -> float:
        async def main() -> float:
            began = time.perf_counter()
            await asyncio.gather(*(manager.run(sequence_async, size, goal=f"run {n}") for n in range(runs)))
            return runs * size / (time.perf_counter() - began)

        with perdure.CheckpointManager(url.format(folder)) as manager:
            manager.run_sync(sequence_async, 1, goal="warm")
            return asyncio.run(main())

    return measure


def resume(url: str) -> Callable[[Path, int], float]:
    """Recorded steps per second that a resumed run hands back."""

    def measure(folder: Path, size: int) -> float:
        stop = [True]

        @perdure.flow
        def flow(size: int) -> int:
            total = sequence.fn(size)
            if stop.pop():
                raise RuntimeError("stopped")
            return total

        with perdure.CheckpointManager(url.format(folder), perdure.CheckpointConfig(durability="async")) as manager:
            stop.append(True)
            try:
                manager.run_sync(flow, size, goal="resumed")
            except RuntimeError:
                stop[:] = [False]
            began = time.perf_counter()
            manager.run_sync(flow, size, goal="resumed")
            return size / (time.perf_counter() - began)

    return measure


def agent(url: str) -> Callable[[Path, int], float]:
    """Iterations per second of an agent whose model and tool say 2 KiB each; ``size`` iterations, strict."""

    def measure(folder: Path, size: int) -> float:
        def look(number: int) -> str:
            return f"{number:05d}".ljust(2048, "t")

        def model(messages: list[Any], tools: object) -> Reply | str:
            number = len(messages) // 2
            said = f"{number:05d}".ljust(2048, "r")
            return Reply(said, (ToolCall("look", {"number": number}),)) if number < size else "done"

        with perdure.CheckpointManager(url.format(folder)) as manager:
            began = time.perf_counter()
            manager.run_sync(Agent(model, [look], max_iterations=size + 1), "go", goal="measured")
            return size / (time.perf_counter() - began)

    return measure


def import_cost(rounds: int) -> dict[str, float]:
    """Milliseconds that ``import perdure`` takes in a process that has imported asyncio: median and extremes."""
    code = "import asyncio, time; t = time.perf_counter(); import perdure; print((time.perf_counter() - t) * 1000)"
    taken = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(rounds + 1)
    ][1:]
    return {"median": statistics.median(taken), "min": min(taken), "max": max(taken), "aim": 60.0}


SQLITE, FILE = "sqlite:{}/runs.db", "file:{}/runs"


# Scenarios of one run make as many commits as `raw` does: the first thousand pages of a new log are the dearest.
@perdure.flow
async def asks(number: int) -> str:
    """A question with a deadline."""
    answer: str = await perdure.ask("Go on?", deadline=86400.0 + number, default="no")
    return answer


async def _suspend(url: str, size: int) -> None:
    with perdure.CheckpointManager(url) as manager:
        runs = (manager.run(asks, n, goal=f"goal-{n}") for n in range(size))
        ends = await asyncio.gather(*runs, return_exceptions=True)
    assert all(isinstance(end, RunSuspended) for end in ends)


def suspend(url: str) -> Callable[[Path, int], float]:
    """Runs a second that ask and are suspended, 100 at a time."""

    def run(folder: Path, size: int) -> float:
        began = time.perf_counter()
        asyncio.run(_suspend(url.format(folder), size))
        return size / (time.perf_counter() - began)

    return run


def find_due(url: str) -> Callable[[Path, int], float]:
    """How often a second what is due is found among suspended runs, of which none is."""

    def run(folder: Path, size: int) -> float:
        asyncio.run(_suspend(url.format(folder), size))
        with perdure.Client(url.format(folder)) as client:
            began = time.perf_counter()
            for _ in range(10):
                assert client.due() == []
            return 10 / (time.perf_counter() - began)

    return run


SCENARIOS = (
    Scenario("sqlite, one run, sync, strict", steps(SQLITE, sequence, "strict"), 400, 0.4),
    Scenario("sqlite, one run, async, strict", steps(SQLITE, sequence_async, "strict"), 400, 0.3),
    Scenario("sqlite, one run, sync, pipelined", steps(SQLITE, sequence, "pipelined"), 800, 0.75),
    Scenario("sqlite, one run, async, pipelined", steps(SQLITE, sequence_async, "pipelined"), 800, 0.6),
    Scenario("sqlite, 100 runs at a time, async, strict", many_runs(SQLITE, 100), 20, 3.0),
    Scenario("sqlite, one run, sync, async durability", steps(SQLITE, sequence, "async"), 1000, None),
    Scenario("sqlite, resume, steps handed back", resume(SQLITE), 1000, None),
    Scenario("sqlite, agent, iterations of 250", agent(SQLITE), 250, None),
    Scenario("sqlite, agent, iterations of 1000", agent(SQLITE), 1000, None),
    Scenario("sqlite, runs that ask and are suspended", suspend(SQLITE), 100, None),
    Scenario("sqlite, what is due among 1000 suspended", find_due(SQLITE), 1000, None),
    Scenario("file, one run, sync, strict", steps(FILE, sequence, "strict"), 200, None),
    Scenario("file, one run, async, strict", steps(FILE, sequence_async, "strict"), 200, None),
    Scenario("file, one run, sync, pipelined", steps(FILE, sequence, "pipelined"), 400, None),
    Scenario("file, one run, async, pipelined", steps(FILE, sequence_async, "pipelined"), 400, None),
    Scenario("file, 100 runs at a time, async, strict", many_runs(FILE, 100), 5, None),
    Scenario("file, resume, steps handed back", resume(FILE), 1000, None),
    Scenario("file, what is due among 1000 suspended", find_due(FILE), 1000, None),
)
