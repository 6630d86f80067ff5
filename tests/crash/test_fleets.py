"""Many workers on one store, killed at random, and the server with them: every run ends once, and rightly."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from crash_fleet import Fleet, harass, submit, verify

from perdure.testing.servers import Postgres, Server, Valkey


def _postgres(folder: Path) -> tuple[Server, str]:
    server = Postgres(18)
    return server, f"{server.url}?lease=3"


def _valkey(folder: Path) -> tuple[Server, str]:
    server = Valkey()
    return server, f"{server.url}?lease=3"


KINDS: dict[str, Callable[[Path], tuple[Server, str]]] = {"postgresql": _postgres, "valkey": _valkey}


@pytest.fixture
def fleets() -> Iterator[list[Fleet]]:
    made: list[Fleet] = []
    yield made
    for fleet in made:
        fleet.end()


def _seed(*words: object) -> int:
    return int.from_bytes(sha256(repr(words).encode()).digest()[:4], "big")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("workers", "runs", "outages"),
    [(3, 20, 1), pytest.param(4, 200, 3, marks=pytest.mark.long)],
)
def test_whatever_is_killed_every_run_ends_once_and_rightly(
    kind: str,
    workers: int,
    runs: int,
    outages: int,
    tmp_path: Path,
    fleets: list[Fleet],
    record_property: Callable[[str, object], None],
) -> None:  # X3 X4 rel:C1 rel:C3 rel:R1
    server, url = KINDS[kind](tmp_path)
    try:
        expected = submit(url, runs)
        fleet = Fleet(url, tmp_path, concurrency=3, pace=0.15)
        fleets.append(fleet)
        fleet.start(workers)
        kills, killed = harass(fleet, expected, server, seed=_seed(kind, workers, runs), outages=outages)
        assert set(fleet.stop()) <= {0, -signal.SIGTERM}, "told to stop, some before they could hear it"
        counted = verify(fleet, expected)
    finally:
        server.throw_away()
    assert kills and counted["lives"] > runs, "somebody was hit"
    for name, value in {"workers killed": kills, "servers killed": killed, **counted}.items():
        record_property(name, value)
