"""Networks that stall, drop and cut: at every request of a run, nothing is written twice and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from crash_proxy import Fault, Proxy

import perdure
from perdure import journal as j
from perdure.errors import StoreError
from perdure.fold import fold
from perdure.model import RunKey
from perdure.stores import open_store, postgres_link


@perdure.step
def add(number: int) -> int:
    return number + 1


@perdure.flow
def flow(n: int) -> int:
    return sum(add(number) for number in range(n))


class Witness:
    """What was reported to be durable."""

    def __init__(self) -> None:
        self.told: list[tuple[int, str]] = []

    def notify(self, key: RunKey, entry: j.Entry) -> None:
        self.told.append((entry.seq, j.kind_of(entry)))


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Proxy, str, str]]:
    """A proxy, the store's URL by way of it, and the direct one."""
    kind = request.param
    url = request.getfixturevalue("postgres")(18) if kind == "postgresql" else request.getfixturevalue("valkey")()
    name = "n" + sha256(str(tmp_path).encode()).hexdigest()[:16]
    ours = f"schema={name}&connect_timeout=2" if kind == "postgresql" else f"prefix={name}&socket_timeout=0.4"
    direct = f"{url}?{ours}"
    port = urlsplit(url).port
    assert port is not None
    proxy = Proxy(port)
    yield proxy, direct.replace(f":{port}/", f":{proxy.port}/"), direct
    proxy.close()


def execute(url: str, goal: str) -> Witness:
    witness = Witness()
    with perdure.CheckpointManager(url, observers=[witness]) as manager:
        assert manager.run_sync(flow, 3, goal=goal) == 6
    return witness


@pytest.mark.parametrize("place", ["postgresql", "valkey"], indirect=True)
@pytest.mark.parametrize("fault", ["cut", "drop", "stall"])
def test_a_fault_at_any_request_of_a_run_writes_nothing_twice_and_loses_nothing(
    place: tuple[Proxy, str, str],
    fault: Fault,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:  # C9 rel:D12 rel:C6 rel:C7
    proxy, url, direct = place
    monkeypatch.setattr(postgres_link, "SILENCE", 0.3)
    execute(url, "clean")
    proxy.plan(0, "")
    execute(url, "counted")
    requests = proxy.sent
    assert requests > 15
    hits = 0
    for at in range(1, requests + 1, 1 if fault == "cut" else 2 if fault == "drop" else 5):
        goal = f"{fault} {at}"
        proxy.plan(at, fault)
        witness = execute(url, goal)
        hits += proxy.hit
        store = open_store(direct)
        lines = store.read(RunKey(goal))
        store.close()
        state = fold(RunKey(goal), lines)
        assert state.status == "completed" and state.lives == 1, at
        assert [len(step.attempts) for step in state.steps.values()] == [1, 1, 1], "nothing ran again"
        assert [seq for seq, _ in witness.told] == list(range(1, len(lines) + 1)), "all of it was acknowledged, once"
    assert hits > requests / 8
    record_property(f"requests {fault}", hits)


@pytest.mark.parametrize("place", ["postgresql", "valkey"], indirect=True)
def test_a_server_that_stays_away_is_told_and_the_run_goes_on_when_it_is_back(
    place: tuple[Proxy, str, str], caplog: pytest.LogCaptureFixture
) -> None:  # C9 rel:R7
    proxy, url, direct = place
    away = [True]

    @perdure.flow
    def interrupted(n: int) -> int:
        first = add(n)
        if away.pop():
            proxy.refuse(True)
        return first + add(first)

    store = open_store(f"{url}&lease=3")
    store._patience = 0.5  # type: ignore[attr-defined]
    with perdure.CheckpointManager(store) as manager, pytest.raises(StoreError) as told:
        manager.run_sync(interrupted, 1, goal="g")
    said = str(told.value)  # of what was to be written, or that a look for posts had failed before
    assert "127.0.0.1" in said and ("Nothing that was acknowledged is lost" in said or "acknowledged is kept" in said)
    assert "run g#0 stops" in caplog.text
    proxy.refuse(False)
    away.append(False)
    with perdure.Client(direct) as client:
        assert client.find("g").seq >= 3, "what was acknowledged"
        assert client.state("g").steps[1].status == "completed"
    with perdure.CheckpointManager(direct) as manager:
        manager_result = _until_free(lambda: manager.run_sync(interrupted, 1, goal="g"))
    assert manager_result == 5


def _until_free(run: Callable[[], object]) -> object:
    """The handle that lost its connection could not release the run; its lease ends by itself."""
    while True:
        try:
            return run()
        except perdure.errors.LeaseHeld:
            perdure.clock.SYSTEM.sleep(0.1)
