"""Workers that are frozen, told to stop, or die: their runs go on elsewhere, once, and as soon as is promised."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import crash_workers
import pytest
from crash_fleet import Fleet, Line, verify

import perdure
from perdure.model import RunKey
from perdure.testing.servers import Postgres

LONG = 60
"""seconds of a lease that a test does not wait for"""


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a store, with room for more parameters."""
    kind = request.param
    name = "z" + sha256(str(tmp_path).encode()).hexdigest()[:16]
    if kind == "sqlite":
        return f"sqlite:{tmp_path / 'runs.db'}"
    if kind == "postgresql":
        return f"{request.getfixturevalue('postgres')(18)}?schema={name}"
    return f"{request.getfixturevalue('valkey')()}?prefix={name}"


@pytest.fixture
def fleets() -> Iterator[list[Fleet]]:
    made: list[Fleet] = []
    yield made
    for fleet in made:
        for worker in fleet.workers:
            if worker.poll() is None:
                os.kill(worker.pid, signal.SIGCONT)
        fleet.end()


def until(what: Callable[[], object], fleet: Fleet) -> None:
    """Wait for something that happens in other processes."""
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end, fleet.log
        time.sleep(0.01)


def submit(url: str, goal: str, n: int) -> dict[RunKey, object]:
    with perdure.CheckpointManager(url) as manager:
        key = manager.submit(crash_workers.sequence, n, goal=goal)
    return {key: sum(range(1, n + 1))}


def lines_of(fleet: Fleet, worker: subprocess.Popen[bytes], what: str = "begin") -> list[Line]:
    return [line for line in fleet.lines() if line.pid == worker.pid and line.what == what]


def completed(url: str, expected: dict[RunKey, object]) -> bool:
    with perdure.Client(url) as client:
        return all(client.find(str(key)).status == "completed" for key in expected)


@pytest.mark.parametrize("place", ["postgresql", "valkey"], indirect=True)
def test_a_frozen_worker_that_wakes_up_is_fenced_and_nothing_of_it_is_kept(
    place: str, tmp_path: Path, fleets: list[Fleet]
) -> None:  # X3 rel:C2 rel:C6
    url = f"{place}&lease=1.5"
    expected = submit(url, "frozen", 4)
    fleet = Fleet(url, tmp_path, concurrency=2, pace=0.2)
    fleets.append(fleet)
    fleet.start()
    zombie = fleet.workers[0]
    until(lambda: len(lines_of(fleet, zombie)) == 2, fleet)
    os.kill(zombie.pid, signal.SIGSTOP)
    fleet.died[zombie.pid] = time.monotonic()  # as far as others can tell
    fleet.start()
    until(lambda: completed(url, expected), fleet)
    with perdure.Client(url) as client:
        before = client.state("frozen")
    os.kill(zombie.pid, signal.SIGCONT)
    until(lambda: "run frozen#0 is stopped here" in fleet.log or "run frozen#0 stops" in fleet.log, fleet)
    later = submit(url, "later", 2)
    until(lambda: completed(url, later), fleet)
    assert fleet.stop() == [0, 0], f"the zombie is an ordinary worker again: {fleet.log}"
    with perdure.Client(url) as client:
        after = client.state("frozen")
    assert (after.seq, after.epoch) == (before.seq, before.epoch), "nothing of it was kept"
    assert before.lives == 2
    verify(fleet, expected)


@pytest.mark.parametrize("place", ["sqlite", "postgresql", "valkey"], indirect=True)
def test_a_worker_that_is_told_to_stop_frees_its_runs_at_once(
    place: str, tmp_path: Path, fleets: list[Fleet]
) -> None:  # B3
    url = place if place.startswith("sqlite") else f"{place}&lease={LONG}"
    expected = submit(url, "moved", 4)
    fleet = Fleet(url, tmp_path, concurrency=2, pace=0.8)  # long enough for the second worker to start meanwhile
    fleets.append(fleet)
    fleet.start()
    first = fleet.workers[0]
    until(lambda: lines_of(fleet, first), fleet)
    fleet.start()
    until(lambda: fleet.log.count("worker for") == 2, fleet)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=30) == 0
    gone = time.monotonic()
    until(lambda: completed(url, expected), fleet)
    assert [line.what for line in fleet.lines()].count("cut") == 0, "the step that ran came to its end"
    (second,) = fleet.workers[1:]
    waited = lines_of(fleet, second)[0].at - gone
    assert waited < 5.0, "within a second, on a machine that is not busy; not by the end of a lease"
    assert "Traceback" not in fleet.log
    assert len(lines_of(fleet, first)) + len(lines_of(fleet, second)) == 4
    verify(fleet, expected)


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
def test_on_one_machine_the_runs_of_a_killed_worker_go_on_at_once(
    place: str, tmp_path: Path, fleets: list[Fleet]
) -> None:  # X14
    expected = submit(place, "killed", 4)
    fleet = Fleet(place, tmp_path, concurrency=2, pace=0.2)
    fleets.append(fleet)
    fleet.start(2)
    until(lambda: fleet.lines(), fleet)
    owner = fleet.lines()[0].pid
    fleet.kill(next(worker for worker in fleet.workers if worker.pid == owner))
    killed = fleet.died[owner]
    until(lambda: completed(place, expected), fleet)
    fleet.stop()
    assert next(line.at for line in fleet.lines() if line.pid != owner) - killed < 10.0
    verify(fleet, expected)


@pytest.mark.parametrize("place", ["postgresql", "valkey"], indirect=True)
def test_a_step_that_outlasts_the_grace_is_cut_and_its_run_goes_on_elsewhere(
    place: str, tmp_path: Path, fleets: list[Fleet]
) -> None:  # B3
    url = f"{place}&lease={LONG}"
    expected = submit(url, "cut", 2)
    fleet = Fleet(url, tmp_path, concurrency=2, pace=2.0, more=("--grace", "0.1"))
    fleets.append(fleet)
    fleet.start()
    until(fleet.lines, fleet)
    assert fleet.stop() == [0] and "Traceback" not in fleet.log
    assert [line.what for line in fleet.lines()] == ["begin", "cut"]
    with perdure.Client(url) as client:
        row = client.find("cut")
        assert (row.status, row.holder, row.reason) == ("interrupted", None, "cancelled")
    fleet.workers.clear()
    fleet.start()
    until(lambda: completed(url, expected), fleet)
    verify(fleet, expected)


def test_a_worker_that_is_told_to_stop_while_the_server_is_away_ends(tmp_path: Path, fleets: list[Fleet]) -> None:  # B3
    server = Postgres(18)
    try:
        expected = submit(server.url, "away", 1)
        fleet = Fleet(server.url, tmp_path, concurrency=2, pace=0.01)
        fleets.append(fleet)
        fleet.start()
        until(lambda: completed(server.url, expected), fleet)
        server.kill()
        assert fleet.stop() == [0]
        assert "Traceback" not in fleet.log
    finally:
        server.throw_away()
