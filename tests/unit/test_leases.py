"""Leases between machines: stopped in time, measured by nobody's wall clock, and told to whoever waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import perdure
from perdure.clock import SYSTEM, Clock
from perdure.errors import LeaseHeld, LeaseLost, StoreBusy
from perdure.model import RunKey
from perdure.runtime.lease import Keeper, StoreClock
from perdure.stores import open_store
from perdure.stores.base import Store
from perdure.stores.memory import MemoryStore
from perdure.testing.processes import Child
from perdure.testing.samples import item

DAY = 86400.0


class Skewed(Clock):
    """A machine whose wall clock is wrong, or jumps."""

    def __init__(self, by: float) -> None:
        self.by = by

    def now(self) -> float:
        return super().now() + self.by


class Steady(Clock):
    """A clock that a test moves. Whoever waits on it waits for that."""

    def __init__(self) -> None:
        self.at = 100.0
        self._moved = threading.Condition()

    def uptime(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at

    def wait(self, bell: threading.Event, seconds: float) -> None:
        end = self.at + seconds
        with self._moved:
            while not bell.is_set() and self.at < end:
                self._moved.wait(0.01)

    def advance(self, seconds: float) -> None:
        with self._moved:
            self.at += seconds
            self._moved.notify_all()


class Pulse(MemoryStore):
    """A store whose heartbeat does what the test says."""

    def __init__(self, clock: Steady) -> None:
        super().__init__()
        self.steady = clock
        self.beats = 0
        self.answer: Callable[[], float] = lambda: 1_000_000.0 + self.steady.at

    def heartbeat(self) -> float:
        self.beats += 1
        return self.answer()


@pytest.fixture
def lost() -> Iterator[list[LeaseLost]]:
    yield []


@pytest.fixture
def keeping(lost: list[LeaseLost]) -> Iterator[tuple[Steady, Pulse, StoreClock]]:
    clock = Steady()
    store = Pulse(clock)
    kept = StoreClock(store, clock)
    keeper = Keeper(kept, 9.0, lost.append)
    yield clock, store, kept
    keeper.close()
    clock.advance(100)


def until(what: Callable[[], object]) -> None:
    end = SYSTEM.monotonic() + 30
    while not what():
        assert SYSTEM.monotonic() < end
        SYSTEM.sleep(0.001)


def test_leases_are_kept_by_heartbeats_however_long(
    keeping: tuple[Steady, Pulse, StoreClock], lost: list[LeaseLost]
) -> None:
    clock, store, kept = keeping
    for beats in range(2, 30):
        clock.advance(3.0)
        until(lambda beats=beats: store.beats >= beats)
    assert lost == [] and kept.now() == pytest.approx(1_000_000.0 + clock.at)


def test_a_heartbeat_that_fails_is_sent_again_and_trust_ends_with_the_last_that_was_taken(
    keeping: tuple[Steady, Pulse, StoreClock], lost: list[LeaseLost]
) -> None:  # rel:C6
    clock, store, _ = keeping

    def fails() -> float:
        raise StoreBusy("no")

    store.answer, worked = fails, store.answer
    for _ in range(34):
        before = store.beats
        clock.advance(0.25)
        until(lambda before=before: store.beats > before or clock.at < 103.25)
    assert clock.at == 108.5 and lost == [], "9 s after it was sent, not before"
    clock.advance(0.6)
    until(lambda: lost)
    assert "could not be reached in time" in str(lost[0])
    store.answer = worked
    before = store.beats
    clock.advance(0.5)
    until(lambda: store.beats > before)
    clock.advance(1.0)
    told = len(lost)
    clock.advance(1.0)
    SYSTEM.sleep(0.05)
    assert len(lost) == told, "it is well again"


def test_a_heartbeat_that_hangs_does_not_keep_trust_from_ending(
    keeping: tuple[Steady, Pulse, StoreClock], lost: list[LeaseLost]
) -> None:  # rel:C7
    clock, store, _ = keeping
    hang = threading.Event()

    def hangs() -> float:
        hang.wait(30)
        raise StoreBusy("at last")

    store.answer = hangs
    clock.advance(3.1)
    until(lambda: store.beats == 2)
    clock.advance(6.0)
    until(lambda: lost)
    hang.set()


def test_a_reply_that_comes_late_counts_from_when_it_was_asked_for(
    keeping: tuple[Steady, Pulse, StoreClock], lost: list[LeaseLost]
) -> None:  # rel:C4
    clock, store, _ = keeping
    answered = threading.Event()

    def late() -> float:
        answered.wait(30)
        return 1.0

    store.answer = late
    clock.advance(3.0)
    until(lambda: store.beats == 2)
    clock.advance(5.0)
    answered.set()
    until(lambda: store.beats == 2)
    SYSTEM.sleep(0.05)
    answered.clear()
    clock.advance(3.5)
    SYSTEM.sleep(0.05)
    assert lost == [], "asked for at 103, good until 112"
    clock.advance(1.0)
    until(lambda: lost)
    answered.set()


def test_whoever_was_taken_for_dead_is_told_at_once(
    keeping: tuple[Steady, Pulse, StoreClock], lost: list[LeaseLost]
) -> None:
    clock, store, _ = keeping
    answers: list[Any] = [LeaseLost("too late")]
    real = store.answer

    def dead() -> float:
        if answers:
            raise answers.pop()
        return real()

    store.answer = dead
    clock.advance(3.0)
    until(lambda: lost)
    assert [str(why) for why in lost] == ["too late"]
    until(lambda: store.beats >= 3)


# -- on real servers ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["postgresql", "valkey"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    name = "l" + sha256(str(tmp_path).encode()).hexdigest()[:16]
    if request.param == "postgresql":
        return f"{request.getfixturevalue('postgres')(18)}?schema={name}&lease=1.5"
    return f"{request.getfixturevalue('valkey')()}?prefix={name}&lease=1.5"


@perdure.step
async def slow(n: int) -> int:
    STARTED.set()
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        CUT.append(SYSTEM.uptime())
        raise
    return n


CUT: list[float] = []
STARTED = threading.Event()


@perdure.flow
async def flow(n: int) -> int:
    return await slow(n)


def test_a_process_that_cannot_reach_its_store_stops_before_others_may_begin(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # X3 rel:C6
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "crash"))
    from crash_proxy import Proxy

    port = urlsplit(url).port
    assert port is not None
    proxy = Proxy(port)
    CUT.clear()
    STARTED.clear()
    taken: list[float] = []

    def claim(other: Store) -> None:
        while not taken:
            with suppress(LeaseHeld):
                other.claim(RunKey("g"))
                taken.append(SYSTEM.uptime())

    async def main() -> None:
        with perdure.CheckpointManager(url.replace(f":{port}/", f":{proxy.port}/")) as manager:
            running = asyncio.create_task(manager.run(flow, 1, goal="g"))
            await asyncio.to_thread(STARTED.wait, 30)
            proxy.refuse(True)
            other = await asyncio.to_thread(open_store, url)
            await asyncio.to_thread(claim, other)
            with pytest.raises(LeaseLost, match="could not be reached in time"):
                await running
            other.close()
            proxy.refuse(False)

    asyncio.run(main())
    proxy.close()
    assert CUT and CUT[0] < taken[0], "the step had been stopped when the run could be claimed"


@pytest.mark.parametrize("by", [DAY, -DAY])
def test_a_wall_clock_that_is_a_day_off_steals_no_lease_and_keeps_none(url: str, by: float) -> None:  # C9 rel:C4
    clock = Skewed(0.0)
    made = open_store(url)
    kind: Any = type(made)
    made.close()
    live, dead, other = kind(url, clock=clock), kind(url, clock=clock), kind(url, clock=Skewed(-by))
    mine, theirs = live.claim(RunKey("live")), dead.claim(RunKey("dead"))
    live.append([item(mine, 0)])
    dead.append([item(theirs, 0)])
    clock.by = by
    died = SYSTEM.monotonic()
    while True:
        live.heartbeat()
        with pytest.raises(LeaseHeld):
            other.claim(RunKey("live"))
        try:
            lease = other.claim(RunKey("dead"))
            break
        except LeaseHeld:
            assert SYSTEM.monotonic() - died < 15
    assert abs(lease.since - SYSTEM.now()) < 60, "by the server's clock"
    assert live.append([item(mine, 1)]) == [None]
    for store in (live, dead, other):
        store.close()


@pytest.mark.parametrize("by", [DAY, -DAY])
def test_dates_of_a_run_are_by_the_servers_clock(url: str, by: float) -> None:  # rel:C5
    from perdure.errors import RunSuspended

    @perdure.flow
    def asks(n: int) -> str:
        answer: str = perdure.ask("Well?", deadline=3600.0, default="late")
        return answer

    with perdure.CheckpointManager(url, clock=Skewed(by)) as manager:
        with pytest.raises(RunSuspended) as waits:
            manager.run_sync(asks, 1, goal="g")
        state = manager.look("g").result()
    assert state is not None and abs(state.created - SYSTEM.now()) < 60
    assert abs(waits.value.until - SYSTEM.now() - 3600) < 60
    with perdure.Client(url, clock=Skewed(-by)) as client:
        assert client.due() == [] and client.find("g").status == "pending_input"
        assert client.answer("g", None, "now", by="ann").status == "ready"


def test_posts_reach_a_run_that_waits_in_its_process(url: str) -> None:  # W1
    @perdure.flow
    async def asks(n: int) -> int:
        answer: int = await perdure.ask("How many?", answer=int)
        return answer + n

    async def main() -> None:
        with perdure.CheckpointManager(url) as manager:
            running = asyncio.create_task(manager.run(asks, 1, goal="g", wait=60))

            def answer() -> None:
                with perdure.Client(url) as client:
                    while not client.runs() or not client.questions():
                        pass
                    client.answer("g", None, 4, by="ann")

            await asyncio.to_thread(answer)
            assert await running == 5

    asyncio.run(main())


def test_recovering_after_a_crash_waits_for_the_lease_of_the_dead(url: str) -> None:  # B2
    def work(say: Callable[[str], None], hear: Callable[[], str]) -> None:
        @perdure.step
        def hangs(n: int) -> int:
            say("hanging\n")
            hear()
            return n

        perdure.run(perdure.flow(name="boots")(lambda n: hangs(n)), 3, goal="g", store=url)

    child = Child(work)
    assert child.hear() == "hanging"
    child.kill()

    @perdure.step
    def hangs(n: int) -> int:
        return n

    with perdure.CheckpointManager(url) as manager:
        assert manager.recover(perdure.flow(name="boots")(lambda n: hangs(n))) == {RunKey("g"): "completed"}


def test_a_queue_that_is_full_because_of_the_dead_is_free_when_their_lease_ends(url: str) -> None:
    @perdure.flow(name="mine")
    async def mine(n: int) -> int:
        return n

    with perdure.CheckpointManager(url) as dead, perdure.CheckpointManager(url) as manager:
        assert dead._writer is not None
        store: Any = dead._writer.store
        key = dead.submit(perdure.flow(name="theirs")(lambda: 1), goal="theirs", queue="q", concurrency=1)
        manager.submit(mine, 1, goal="mine", queue="q", concurrency=1)

        def status() -> str:
            state = manager.look("mine").result()
            assert state is not None and state.status is not None
            return state.status

        def wait_until_completed() -> None:
            until(lambda: status() == "completed")

        async def main() -> None:
            working = asyncio.create_task(manager.work(mine))
            await asyncio.sleep(0.3)
            assert await asyncio.to_thread(status) == "queued"
            await asyncio.wrap_future(dead._writer.call(store.abandon))  # type: ignore[union-attr]
            await asyncio.to_thread(wait_until_completed)
            working.cancel()
            with suppress(asyncio.CancelledError):
                await working

        assert dead._writer.call(lambda: store.claim(key)).result().key == key
        asyncio.run(main())


def test_a_claim_that_comes_before_a_late_heartbeat_does_not_hide_that_it_was_late(url: str) -> None:
    store: Any = open_store(url)
    first = store.claim(RunKey("a"))
    store.append([item(first, 0)])
    other = open_store(url)
    while True:
        try:
            other.release(other.claim(RunKey("a")))
            break
        except LeaseHeld:
            SYSTEM.sleep(0.05)
    store.claim(RunKey("b"))
    with pytest.raises(LeaseLost):
        store.heartbeat()
    store.heartbeat()
    assert store.claim(RunKey("c")).epoch > 0
    store.close()
    other.close()
