"""Workers as real processes, killed, frozen and restarted at random, and what the ledger proves of them."""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import crash_workers

import perdure
from perdure.errors import PerdureError
from perdure.fold import State
from perdure.model import RunKey
from perdure.testing.servers import Server

HERE = Path(__file__).parent
DEADLINE = 300.0
"""seconds after which a fleet that does not come to an end has failed"""


class Line(NamedTuple):
    """A line of the ledger."""

    at: float
    pid: int
    what: str
    run: str
    key: str
    attempt: int


class Fleet:
    """Worker processes on one store."""

    def __init__(
        self, url: str, folder: Path, *, concurrency: int = 8, pace: float = 0.01, more: Sequence[str] = ()
    ) -> None:
        self.url, self.folder = url, folder
        self.ledger = folder / "ledger"
        self.ledger.touch()
        self._words = ["worker", "--app", str(HERE / "crash_workers.py"), "--concurrency", str(concurrency), *more]
        self._words += ["--crash-limit", "1000"]  # it is us who kill, and not a step
        self._env = {**os.environ, "CRASH_LEDGER": str(self.ledger), "CRASH_PACE": str(pace), "PERDURE_STORE": url}
        self.workers: list[subprocess.Popen[bytes]] = []
        self.died: dict[int, float] = {}
        """when workers were killed, by the ledger's clock"""

    def start(self, n: int = 1) -> None:
        for _ in range(n):
            with open(self.folder / "log", "ab") as log:
                command = [sys.executable, "-m", "perdure", *self._words]
                self.workers.append(subprocess.Popen(command, env=self._env, stdout=log, stderr=log))

    def kill(self, worker: subprocess.Popen[bytes]) -> None:
        """SIGKILL one."""
        self.died[worker.pid] = time.monotonic()  # before: nobody else can have begun anything of its by then
        worker.kill()
        worker.wait()
        self.workers.remove(worker)

    def stop(self) -> list[int]:
        """SIGTERM to all; their exit codes."""
        for worker in self.workers:
            worker.send_signal(signal.SIGTERM)
        return [worker.wait(timeout=60) for worker in self.workers]

    def end(self) -> None:
        for worker in list(self.workers):
            if worker.poll() is None:
                worker.kill()
                worker.wait()

    def lines(self) -> list[Line]:
        """The ledger so far."""
        found = []
        for line in self.ledger.read_text().splitlines():
            at, pid, what, run, key, attempt = line.split("\t")
            found.append(Line(float(at), int(pid), what, run, key, int(attempt)))
        return sorted(found)

    def busy(self) -> list[subprocess.Popen[bytes]]:
        """Workers in the middle of some body."""
        bodies: Counter[int] = Counter()
        for line in self.lines():
            bodies[line.pid] += 1 if line.what == "begin" else -1
        return [worker for worker in self.workers if bodies[worker.pid] > 0]

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()


def submit(url: str, runs: int) -> dict[RunKey, object]:
    """Submit runs of every shape; what each must result in, found by calling it without a store."""
    os.environ["CRASH_LEDGER"] = os.devnull
    expected: dict[RunKey, object] = {}
    known: dict[tuple[str, int], object] = {}
    with perdure.CheckpointManager(url) as manager:
        for number in range(runs):
            flow: Any = crash_workers.SHAPES[number % len(crash_workers.SHAPES)]
            size = 2 + number % 4
            name = next(iter(flow.signature.parameters))
            given: Any = {name: f"task {size}" if flow is crash_workers.agent else size}
            key = manager.submit(flow, **given, goal=f"{flow.name} {number}", priority=number % 3)
            if (flow.name, size) not in known:
                value = flow(**given)
                known[flow.name, size] = asyncio.run(value) if inspect.isawaitable(value) else value
            expected[key] = known[flow.name, size]
    return expected


def unfinished(url: str, expected: dict[RunKey, object]) -> int:
    """How many runs have not completed."""
    with perdure.Client(url) as client:
        rows = {row.key: row for row in client.runs()}
    assert rows.keys() >= expected.keys(), "no run is lost"
    lost = [row for row in rows.values() if row.status in ("failed", "paused", "cancelled")]
    assert not lost, lost
    return sum(rows[key].status != "completed" for key in expected)


def harass(fleet: Fleet, expected: dict[RunKey, object], server: Server, *, seed: int, outages: int) -> tuple[int, int]:
    """Kill workers at random and the server now and then until every run has completed; how many of each."""
    chance = random.Random(seed)
    began, kills, left = time.monotonic(), 0, outages
    bodies = 8 * len(expected)  # roughly
    while True:
        assert time.monotonic() - began < DEADLINE, f"seed {seed}: not done in time\n{fleet.log[-4000:]}"
        time.sleep(chance.uniform(0.05, 0.4))
        done = sum(line.what == "end" for line in fleet.lines())
        if left and done > bodies * (outages - left + 1) / (outages + 3):
            server.kill()
            left -= 1
            time.sleep(chance.uniform(0.0, 0.5))
            server.start()
        busy = fleet.busy()
        if busy and chance.random() < 0.8:
            fleet.kill(chance.choice(busy))
            fleet.start()
            kills += 1
        assert all(worker.poll() is None for worker in fleet.workers), fleet.log[-4000:]
        try:
            if unfinished(fleet.url, expected) == 0 and not left:
                return kills, outages
        except PerdureError as problem:  # the server has just been killed
            print(problem)


def verify(fleet: Fleet, expected: dict[RunKey, object]) -> dict[str, int]:
    """Results are right, nothing that was completed ran again, nothing ran at two places. What was counted."""
    lines = fleet.lines()
    assert_never_at_two_places(lines, fleet.died)
    begun: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        if line.what == "begin":
            begun[line.key].append(line)
    steps = _steps_of_clean_runs(expected)
    counted = {"runs": 0, "steps": 0, "bodies": 0, "lives": 0}
    with perdure.Client(fleet.url) as client:
        for key, value in expected.items():
            state = client.state(str(key))
            assert state.status == "completed" and state.output is not None
            assert client.value(state.output) == value, key
            assert len(state.steps) == steps[state.flow, str(state.args[0].head)], "as many as without any crash"
            counted["runs"] += 1
            counted["lives"] += state.lives
            counted["steps"] += len(state.steps)
            counted["bodies"] += assert_each_step_ran_as_recorded(state, begun, lines)
    return counted


def _steps_of_clean_runs(expected: dict[RunKey, object]) -> dict[tuple[str, str], int]:
    """How many steps each flow has for each input, when nothing goes wrong."""
    os.environ["CRASH_LEDGER"] = os.devnull
    found: dict[tuple[str, str], int] = {}
    with perdure.CheckpointManager("memory:") as manager:
        for flow in crash_workers.SHAPES:
            name = next(iter(flow.signature.parameters))
            for size in range(1, 6):
                given: Any = {name: f"task {size}" if flow is crash_workers.agent else size}
                manager.run_sync(flow, goal=f"{flow.name} {size}", **given)
                state = manager.look(f"{flow.name} {size}").result()
                assert state is not None
                found[flow.name, str(state.args[0].head)] = len(state.steps)
    return found


def assert_each_step_ran_as_recorded(state: State, begun: dict[str, list[Line]], lines: Sequence[Line]) -> int:
    """Every body that ran has an attempt of its own in the journal, and the last of them is the one that completed."""
    mine = {line.key for line in lines if line.run == str(state.key)}
    ran = 0
    identities = Counter((step.identity.scope, step.name, step.identity.fingerprint) for step in state.steps.values())
    assert all(step.identity.n < identities[step.identity[:3]] for step in state.steps.values())
    assert len(mine) <= len(state.steps), "no body ran under another identity than its step's"
    for step in state.steps.values():
        outcomes = [attempt.outcome for attempt in step.attempts]
        assert outcomes[-1] == "completed" and "completed" not in outcomes[:-1], (state.key, step.path, outcomes)
    for key in mine:
        told = [line.attempt for line in begun[key]]
        assert len(told) == len(set(told)), f"{state.key}: an attempt ran twice: {begun[key]}"
        ran += len(told)
    assert ran <= sum(len(step.attempts) for step in state.steps.values()), state.key
    return ran


def assert_never_at_two_places(lines: Sequence[Line], died: dict[int, float]) -> None:
    """No body of a run began while a living process executed another of the same run."""
    open_: dict[str, dict[int, set[tuple[str, int]]]] = defaultdict(lambda: defaultdict(set))
    for line in lines:
        here = open_[line.run]
        if line.what == "begin":
            for pid, bodies in here.items():
                alive = line.at < died.get(pid, float("inf"))
                assert pid == line.pid or not bodies or not alive, f"{line} while {pid} executed {bodies}"
            here[line.pid].add((line.key, line.attempt))
        else:
            here[line.pid].discard((line.key, line.attempt))
