"""Submitting runs, taking them up, and what workers leave alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import perdure
from perdure import journal as j
from perdure.clock import Clock
from perdure.errors import (
    AnswerRefused,
    ConfigError,
    CorruptStore,
    InputMismatch,
    LeaseHeld,
    LimitReached,
    RunSuspended,
    StoreBusy,
)
from perdure.fold import State
from perdure.model import OWN, Lease, Limits, RunKey, RunMeta
from perdure.runtime.manager import CheckpointManager
from perdure.runtime.queues import Offer, Search, room
from perdure.runtime.settle import write
from perdure.stores.base import EVERY, Capabilities, Which
from perdure.stores.memory import MemoryBackend, MemoryStore

Open = Callable[[], CheckpointManager]


@pytest.fixture(params=["memory", "sqlite", "file"])
def open_(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens managers on one store."""
    backend = MemoryBackend()
    made: list[CheckpointManager] = []

    def open_manager() -> CheckpointManager:
        store: Any = MemoryStore(backend) if request.param == "memory" else f"{request.param}:{tmp_path / 'store'}"
        made.append(CheckpointManager(store))
        return made[-1]

    yield open_manager
    for manager in made:
        manager.close()


@pytest.fixture
def manager(open_: Open) -> CheckpointManager:
    return open_()


def client_of(manager: CheckpointManager) -> perdure.Client:
    assert manager._writer is not None
    return perdure.Client(manager._writer.store)


@perdure.step
def add(number: int) -> int:
    return number + 1


@perdure.flow
def adder(n: int) -> int:
    return sum(add(number) for number in range(n))


@perdure.flow
async def waiter(n: int) -> int:
    answer: int = await perdure.ask("How many?", answer=int)
    return answer + n


def rows(manager: CheckpointManager) -> dict[str, str]:
    """Goals and statuses, read on the thread that may."""
    assert manager._writer is not None
    store = manager._writer.store
    found = manager._writer.call(lambda: perdure.Client(store).runs()).result()
    return {row.goal: row.status for row in found}


# -- submitting -------------------------------------------------------------------------------------------------------


def test_a_submitted_run_is_there_until_somebody_executes_it(open_: Open) -> None:
    first = open_()
    key = first.submit(adder, 3, goal="sum", priority=2, queue="q")
    assert key == RunKey("sum") and rows(first) == {"sum": "queued"}
    first.close()
    second = open_()
    assert second.recover(adder) == {key: "completed"}
    assert second.run_sync(adder, 3, goal="sum") == 6, "the recorded result"
    assert second.recover(adder) == {}


def test_the_same_goal_is_joined_and_other_inputs_are_refused(manager: CheckpointManager) -> None:  # rel:R8
    key = manager.submit(adder, 3, goal="sum")
    assert manager.submit(adder, 3, goal="sum") == key
    with pytest.raises(InputMismatch, match=r"n was 3, now 4"):
        manager.submit(adder, 4, goal="sum")
    assert manager.submit(adder, 4, goal="sum", new=True) == RunKey("sum", 1)
    manager.recover(adder)
    assert manager.submit(adder, 4, goal="sum") == RunKey("sum", 1), "although it has completed"
    assert rows(manager) == {"sum": "completed"}


def test_what_is_submitted_twice_under_a_key_is_one_run(open_: Open) -> None:  # rel:R8
    managers = [open_() for _ in range(3)]
    found: list[RunKey] = []

    def submit(manager: CheckpointManager) -> None:
        for n in range(4):
            found.append(manager.submit(adder, n, goal="nightly", new=True, idempotency_key=f"night {n}"))

    threads = [threading.Thread(target=submit, args=(manager,)) for manager in managers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [RunKey("nightly", n) for n in range(4) for _ in managers]
    with pytest.raises(InputMismatch):
        managers[0].submit(adder, 9, goal="nightly", new=True, idempotency_key="night 1")
    assert managers[0].submit(adder, 1, idempotency_key="x") == managers[1].submit(adder, 1, idempotency_key="x")
    assert managers[0].submit(adder, 1) != managers[0].submit(adder, 1), "without a name each is one of its own"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"priority": 1.5}, "priority"),
        ({"delay": -1}, "delay"),
        ({"delay": inf}, "delay"),
        ({"queue": ""}, "queue"),
        ({"queue": "a\nb"}, "queue"),
        ({"concurrency": -1}, "concurrency"),
        ({"concurrency": True}, "concurrency"),
        ({"rate": 5}, "rate"),
        ({"rate": (5, 0)}, "rate"),
        ({"rate": (0, 5)}, "rate"),
        ({"idempotency_key": " "}, "idempotency_key"),
        ({"goal": "../x"}, "goal"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_wrong_terms_are_named_and_nothing_is_written(wrong: dict[str, Any], said: str) -> None:
    with CheckpointManager("memory:") as manager:
        with pytest.raises(ConfigError, match=said):
            manager.submit(adder, 1, **({"goal": "g"} | wrong))
        assert rows(manager) == {}


def test_without_a_store_nothing_can_be_submitted_or_recovered(tmp_path: Path) -> None:  # B4
    (tmp_path / "taken").write_text("mine")
    config = perdure.CheckpointConfig(store_failure="degrade")
    with CheckpointManager(f"file:{tmp_path / 'taken'}", config) as manager:
        for call in (lambda: manager.submit(adder, 1), lambda: manager.recover(adder)):
            with pytest.raises(ConfigError, match="Without a store"):
                call()


# -- what is taken up, and in which order -----------------------------------------------------------------------------


def test_the_most_urgent_come_first_and_what_is_delayed_waits(manager: CheckpointManager) -> None:
    order: list[int] = []

    @perdure.flow
    def noted(n: int) -> int:
        order.append(n)
        return n

    for n, priority in enumerate((0, 5, -1, 5, 0)):
        manager.submit(noted, n, goal=f"run {n}", priority=priority)
    manager.submit(noted, 9, goal="later", delay=3600, priority=99)
    manager.recover(noted, concurrency=1)
    assert order == [1, 3, 0, 4, 2]
    assert rows(manager)["later"] == "queued"


def test_a_worker_of_a_queue_leaves_others_alone(manager: CheckpointManager) -> None:
    for queue in ("night", "day"):
        manager.submit(adder, 1, goal=queue, queue=queue)
    assert manager.recover(adder, queues=["night"]) == {RunKey("night"): "completed"}
    assert manager.recover(adder, queues=["nobody's"]) == {}
    assert manager.recover(adder) == {RunKey("day"): "completed"}


def test_a_queue_executes_no_more_at_a_time_than_it_may(open_: Open) -> None:
    running, most = [0], [0]
    lock = threading.Lock()
    release = threading.Semaphore(0)

    @perdure.flow
    def counted(n: int) -> int:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
            if running[0] == 2:
                release.release(100)
        release.acquire(timeout=30)
        with lock:
            running[0] -= 1
        return n

    first, second = open_(), open_()
    for n in range(6):
        first.submit(counted, n, goal=f"run {n}", concurrency=2)
    results: list[dict[RunKey, str]] = []
    workers = [
        threading.Thread(target=lambda manager=manager: results.append(manager.recover(counted)))
        for manager in (first, second)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert most[0] == 2
    assert sorted(key.goal for result in results for key in result) == [f"run {n}" for n in range(6)]


def _row(begun: float = 0.0, held_since: float = 0.0) -> RunMeta:
    holder = Lease(RunKey("g"), 1, "o", 1, "h", held_since) if held_since else None
    return RunMeta(goal="g", episode=0, status="running", begun=begun, holder=holder)


@pytest.mark.parametrize(
    ("limits", "active", "until"),
    [
        (Limits(), [_row(99.0, 99.0)] * 9, 0.0),
        (Limits(concurrency=2), [_row(50.0, 50.0)], 0.0),
        (Limits(concurrency=2), [_row(50.0, 50.0)] * 2, inf),
        (Limits(concurrency=2), [_row(99.0)] * 9, 0.0),
        (Limits(rate=2, per=10.0), [_row(99.0)], 0.0),
        (Limits(rate=2, per=10.0), [_row(95.0), _row(99.0)], 105.0),
        (Limits(rate=2, per=10.0), [_row(95.0), _row(99.0), _row(97.0)], 107.0),
        (Limits(rate=2, per=10.0), [_row(89.0), _row(99.0)], 0.0),
        (Limits(rate=2, per=10.0), [_row(0.0, 96.0), _row(20.0, 98.0)], 106.0),
        (Limits(rate=1, per=10.0, concurrency=1), [_row(95.0, 95.0)], inf),
    ],
)
def test_the_limits_of_a_queue(limits: Limits, active: list[RunMeta], until: float) -> None:
    assert room(active, limits, 100.0) == until


def test_runs_of_a_limited_queue_begin_at_its_rate(manager: CheckpointManager) -> None:
    for n in range(3):
        manager.submit(adder, n + 1, goal=f"run {n}", rate=(1, 0.4))
    began = Clock().monotonic()
    assert len(manager.recover(adder)) == 3
    assert Clock().monotonic() - began >= 0.8, "two had to wait for 0.4 s each"


def test_runs_that_crashed_were_interrupted_or_answered_go_on(open_: Open) -> None:  # B2
    first = open_()
    stop = [True]

    @perdure.flow
    def interrupted(n: int) -> int:
        if stop.pop():
            raise KeyboardInterrupt
        return add(n)

    with pytest.raises(KeyboardInterrupt):
        first.run_sync(interrupted, 1, goal="interrupted")
    with pytest.raises(RunSuspended):
        first.run_sync(waiter, 1, goal="answered")
    with pytest.raises(RunSuspended):
        first.run_sync(waiter, 1, goal="asking")
    assert first._writer is not None
    store = first._writer.store

    def begin() -> None:
        key = RunKey("crashed")
        began = j.RunBegan(run_id="r", flow="nobody's", epoch=1, pid=1, host="h")
        write(store, store.claim(key), State(key), [began], Clock())

    first._writer.call(begin).result()
    first._writer.call(lambda: perdure.Client(store).answer("answered", None, 4, by="ann")).result()
    first._writer.call(store.abandon).result()  # type: ignore[attr-defined]
    stop.append(False)
    second = open_()
    assert second.recover(interrupted, waiter) == {RunKey("interrupted"): "completed", RunKey("answered"): "completed"}
    assert rows(second) == {
        "interrupted": "completed",
        "answered": "completed",
        "asking": "pending_input",
        "crashed": "crashed",
    }


def test_what_failed_or_was_paused_is_left_alone_until_somebody_lets_it_go_on(manager: CheckpointManager) -> None:  # B9
    works = [False]

    @perdure.flow
    def fragile(n: int) -> int:
        if not works[0]:
            raise ValueError("no")
        return add(n)

    with pytest.raises(ValueError, match="no"):
        manager.run_sync(fragile, 1, goal="failed")
    manager.submit(fragile, 1, goal="paused")
    assert manager._writer is not None
    store, call = manager._writer.store, manager._writer.call
    client = call(lambda: perdure.Client(store)).result()
    call(lambda: client.pause("paused", by="ann")).result()
    works[0] = True
    assert manager.recover(fragile) == {}
    with pytest.raises(AnswerRefused, match="stopped by ann"):
        call(lambda: client.retry("paused", by="bob")).result()
    with pytest.raises(AnswerRefused, match="it failed"):
        call(lambda: client.unpause("failed", by="bob")).result()
    call(lambda: client.unpause("paused", by="ann")).result()
    call(lambda: client.retry("failed", by="bob")).result()
    assert manager.recover(fragile) == {RunKey("failed"): "completed", RunKey("paused"): "completed"}
    with pytest.raises(AnswerRefused, match="is completed"):
        call(lambda: client.retry("failed", by="bob")).result()
    manager.submit(fragile, 1, goal="queued")
    with pytest.raises(AnswerRefused, match="has not failed: it is queued"):
        call(lambda: client.retry("queued", by="bob")).result()


def test_attempts_of_a_best_of_are_their_parents_to_go_on_with(open_: Open) -> None:
    stop = [True, True]

    @perdure.flow(name="attempted")
    def attempted(n: int) -> int:
        if stop and stop.pop():
            raise KeyboardInterrupt
        return add(n)

    best = perdure.best_of(2, attempted, judge=lambda result: float(result))
    first = open_()
    with pytest.raises(KeyboardInterrupt):
        first.run_sync(best, 3, goal="best")
    stop.clear()
    assert set(first.recover(attempted)) == set(), "an attempt is not taken up by itself"
    assert "interrupted" in rows(first).values()
    assert list(first.recover(attempted, best).values()) == ["completed"]
    assert set(rows(first).values()) == {"completed"}


def test_one_run_that_cannot_be_taken_up_does_not_stop_the_others(
    manager: CheckpointManager, caplog: pytest.LogCaptureFixture
) -> None:
    made = manager.submit(adder, 2, goal="fine")
    key = manager.submit(adder, 2, goal="strange")
    assert manager._writer is not None
    store = manager._writer.store

    def forge() -> None:
        lease = store.claim(key)
        entry = j.RunResumed(epoch=lease.epoch, pid=1, host="h", seq=2)
        entry.inputs = perdure.codec.Payload(codec=99)
        entry.at = 1.0
        from perdure.fold import fold
        from perdure.stores.base import Append

        state = fold(key, store.read(key))
        state.apply(entry)
        assert store.append([Append(lease, 1, (j.encode(key, entry),), state.meta())]) == [None]
        store.release(lease)

    manager._writer.call(forge).result()
    assert manager.recover(adder) == {made: "completed"}
    assert caplog.text.count("run strange#0 is left alone") == 1
    assert rows(manager)["strange"] == "crashed"


class Leaving(BaseException):
    """An end that is no Exception."""


@pytest.mark.parametrize("end", [SystemExit(3), asyncio.CancelledError(), Leaving()], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_flow_that_ends_in_any_way_does_not_end_its_worker(end: BaseException, colour: str) -> None:  # B3
    @perdure.flow(name="leaves")
    def leaves() -> None:
        raise end

    @perdure.flow(name="leaves")
    async def leaves_async() -> None:
        raise end

    with CheckpointManager("memory:") as manager:
        flow = leaves if colour == "sync" else leaves_async
        manager.submit(flow, goal="leaves", priority=1)
        manager.submit(adder, 1, goal="other")
        assert manager.recover(flow, adder, concurrency=1) == {
            RunKey("leaves"): "failed",
            RunKey("other"): "completed",
        }
        assert manager.recover(flow) == {}, "and it is not tried for ever"


class Faulty(MemoryStore):
    """A store of which one verb fails, once."""

    def __init__(self, verb: str, after: int, error: Exception) -> None:
        super().__init__()
        self.verb, self.after, self.error = verb, after, error

    def _fails(self, verb: str) -> None:
        if verb == self.verb:
            self.after -= 1
            if self.after == 0:
                raise self.error

    def claim(self, key: RunKey) -> Lease:
        if not key.goal.startswith(OWN):
            self._fails("claim")
        return super().claim(key)

    def runs(self, which: Which = EVERY) -> list[RunMeta]:
        if which.later is not None:
            self._fails("runs")
        return super().runs(which)


@pytest.mark.parametrize("verb", ["claim", "runs"])
def test_what_was_claimed_is_not_lost_when_the_next_claim_fails(verb: str) -> None:
    store = Faulty(verb, 1000, StoreBusy("no"))
    with CheckpointManager(store) as manager:
        for n in range(3):
            manager.submit(adder, n + 1, goal=f"run {n}")
        store.after = 2 if verb == "claim" else 1
        assert len(manager.recover(adder)) == 3


def test_a_run_whose_claim_finds_damage_is_left_alone_and_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    store = Faulty("claim", 1000, CorruptStore("run bad#0: record 2 is damaged"))
    with CheckpointManager(store) as manager:
        for n in range(3):
            manager.submit(adder, n + 1, goal=f"run {n}")
        store.after = 1
        assert len(manager.recover(adder)) == 2
    assert caplog.text.count("is left alone") == 1


def test_a_worker_that_is_cancelled_while_it_looks_gives_back_what_it_gets(manager: CheckpointManager) -> None:
    manager.submit(adder, 1, goal="wanted")
    assert manager._writer is not None
    writer = manager._writer
    gate, reached = threading.Event(), threading.Event()

    async def main() -> None:
        working = asyncio.create_task(manager.work(adder))
        await asyncio.sleep(0)
        writer.call(lambda: (reached.set(), gate.wait(30)))
        await asyncio.to_thread(reached.wait, 30)
        for _ in range(20):  # it has asked for runs by now, and waits for the writer
            await asyncio.sleep(0)
        working.cancel()
        await asyncio.sleep(0)
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await working

    asyncio.run(main())
    manager.recover(adder)  # unless the worker had it already
    assert rows(manager) == {"wanted": "completed"}


def test_recover_in_an_event_loop_says_what_to_write_instead(manager: CheckpointManager) -> None:
    manager.submit(adder, 1, goal="wanted")

    async def main() -> None:
        with pytest.raises(ConfigError) as refused:
            manager.recover(adder)
        assert "recover()" in str(refused.value)
        assert refused.value.hint is not None and "manager.work(flow, until_idle=True)" in refused.value.hint
        await manager.work(adder, until_idle=True)

    asyncio.run(main())
    assert rows(manager) == {"wanted": "completed"}


@pytest.mark.parametrize("wrong", [{"concurrency": 0}, {"concurrency": -1}, {"queues": "night"}])
def test_a_worker_with_wrong_settings_is_refused(manager: CheckpointManager, wrong: dict[str, Any]) -> None:  # G2
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        manager.recover(adder, **wrong)


def test_what_was_delayed_and_paused_is_delayed_still(manager: CheckpointManager) -> None:
    manager.submit(adder, 1, goal="later", delay=3600)
    assert manager._writer is not None
    store, call = manager._writer.store, manager._writer.call
    client = call(lambda: perdure.Client(store)).result()
    call(lambda: client.pause("later", by="ann")).result()
    state = call(lambda: client.unpause("later", by="ann")).result()
    assert (state.status, state.wake > state.updated + 3000) == ("queued", True)
    assert manager.recover(adder) == {}


def test_a_cancelled_run_with_a_clean_up_is_cleaned_up_by_a_worker(open_: Open) -> None:
    cleaned: list[int] = []

    @perdure.step
    def clean(n: int) -> int:
        cleaned.append(n)
        return n

    @perdure.flow(on_cancel=lambda n: clean(n))
    def asks(n: int) -> int:
        answer: int = perdure.ask("How many?", answer=int)
        return answer

    manager = open_()
    with pytest.raises(RunSuspended):
        manager.run_sync(asks, 7, goal="asks")
    assert manager._writer is not None
    store, call = manager._writer.store, manager._writer.call
    call(lambda: perdure.Client(store).cancel("asks", by="ann")).result()
    assert rows(manager) == {"asks": "ready"} and cleaned == []
    manager.recover(asks)
    assert rows(manager) == {"asks": "cancelled"} and cleaned == [7]


def test_a_run_of_another_flow_is_not_joined(manager: CheckpointManager) -> None:  # rel:R8
    manager.submit(adder, 1, goal="g")
    with pytest.raises(InputMismatch, match="is one of the flow 'adder', not of 'waiter'"):
        manager.submit(waiter, 1, goal="g")


def _suspect(key: str, queue: str = "", updated: float = 0.0, **more: Any) -> RunMeta:
    return RunMeta(
        goal=key, episode=0, status="running", flow="adder", queue=queue, crashes=1, updated=updated, wake=1.0, **more
    )


class Listed(MemoryStore):
    """A store that shows these rows."""

    def __init__(self, rows: list[RunMeta]) -> None:
        super().__init__()
        self.rows = rows
        self.taken: list[str] = []

    def runs(self, which: Which = EVERY) -> list[RunMeta]:
        return which.cut(row for row in self.rows if row.goal not in self.taken)

    def claim(self, key: RunKey) -> Lease:
        lease = super().claim(key)
        if not key.goal.startswith(OWN):
            self.taken.append(key.goal)
        return lease


def _row_of(goal: str, **more: Any) -> RunMeta:
    return RunMeta(goal=goal, episode=0, status="queued", flow="adder", wake=2.0, **more)


def test_a_suspect_is_executed_alone_however_long_ago_it_wrote_anything(monkeypatch: pytest.MonkeyPatch) -> None:  # X4
    at = [10_000.0]

    class Told(Clock):
        def now(self) -> float:
            return at[0]

    store = Listed([_suspect("suspect"), _suspect("another"), _row_of("innocent")])
    search = Search(Told(), Offer({"adder": adder}))
    taken = search.take(store, 9, busy=True)
    assert ([row.goal for _, row in taken.runs], taken.alone) == (["innocent"], False)
    taken = search.take(store, 9, busy=False)
    assert ([row.goal for _, row in taken.runs], taken.alone) == (["another"], True)
    at[0] += 30
    assert search.take(store, 9, busy=True).runs == []
    at[0] += 31
    taken = search.take(store, 9, busy=True)
    assert [row.goal for _, row in taken.runs] == ["suspect"], "no worker has been idle for a minute"


def test_a_run_without_limits_does_not_wait_for_its_queue() -> None:
    full = Lease(RunKey("other"), 1, "o", 1, "h", 1.0)
    limited = {"queue": "one", "limits": Limits(concurrency=1)}
    store = Listed([_row_of("a", **limited), _row_of("b", queue="one"), _row_of("c", queue="one", holder=full)])
    taken = Search(Clock(), Offer({"adder": adder})).take(store, 9, busy=False)
    assert [row.goal for _, row in taken.runs] == ["b"], "the limits that count are its own"


def test_a_run_that_somebody_else_took_up_first_keeps_its_queue_open() -> None:
    class Raced(Listed):
        def claim(self, key: RunKey) -> Lease:
            if key.goal == "raced":
                raise LeaseHeld("run raced is executed by another process")
            return super().claim(key)

    store = Raced([_row_of("raced", queue="one"), _row_of("b", queue="one", limits=Limits(concurrency=1))])
    taken = Search(Clock(), Offer({"adder": adder})).take(store, 9, busy=False)
    assert [row.goal for _, row in taken.runs] == ["b"]


def test_a_lease_that_ends_while_a_worker_looks_is_not_overlooked() -> None:  # B2
    class Ending(Listed):
        """Its run is held by a dead process until it has been asked once."""

        @property
        def capabilities(self) -> Capabilities:
            return replace(super().capabilities, lease=1.5)

        def runs(self, which: Which = EVERY) -> list[RunMeta]:
            found = super().runs(which)
            self.rows = [replace(row, holder=None) for row in self.rows]
            return found

    dead = Lease(RunKey("a"), 1, "o", 1, "h", 1.0)
    taken = Search(Clock(), Offer({"adder": adder})).take(Ending([_row_of("a", holder=dead)]), 9, busy=False)
    assert taken.held or taken.runs, "it was neither held by anybody nor free"


def test_a_damaged_suspect_is_left_alone_and_others_are_executed() -> None:  # X4
    class Damaged(Listed):
        def claim(self, key: RunKey) -> Lease:
            if key.goal == "suspect":
                raise CorruptStore("run suspect is damaged")
            return super().claim(key)

    store = Damaged([_suspect("suspect"), _row_of("innocent")])
    taken = Search(Clock(), Offer({"adder": adder})).take(store, 9, busy=False)
    assert ([row.goal for _, row in taken.runs], taken.alone) == (["innocent"], False)


def test_a_suspect_that_may_not_begin_keeps_no_others_waiting() -> None:  # X4
    full = Lease(RunKey("other"), 1, "o", 1, "h", 1.0)
    store = Listed(
        [
            _suspect("suspect", "one", limits=Limits(concurrency=1)),
            _row_of("holds", queue="one", holder=full),
            _row_of("innocent"),
        ]
    )
    taken = Search(Clock(), Offer({"adder": adder})).take(store, 9, busy=False)
    assert ([row.goal for _, row in taken.runs], taken.alone) == (["innocent"], False)


# -- versions, and why runs wait --------------------------------------------------------------------------------------


def version(told: str, accepts: tuple[str, ...] = ()) -> Any:
    return perdure.flow(name="versioned", version=told, accepts=accepts)(lambda n: add(n))


@pytest.mark.parametrize(
    ("made", "has", "takes"),
    [
        ("", version(""), True),
        ("1", version("1"), True),
        ("1", version("2"), False),
        ("1", version("2", ("1",)), True),
        ("1", version(""), False),
        ("", version("1"), False),
        ("", version("1", ("",)), True),
    ],
)
def test_a_worker_goes_on_with_the_versions_that_it_declares(made: str, has: Any, takes: bool) -> None:
    with CheckpointManager("memory:") as manager:
        key = manager.submit(version(made), 1, goal="g")
        assert manager.recover(has) == ({key: "completed"} if takes else {})
        if takes:
            state = manager.look("g").result()
            assert state is not None and state.version == (has.version or made)


@pytest.mark.parametrize("wrong", [{"version": 1}, {"accepts": "1"}, {"accepts": (1,)}])
def test_a_wrong_version_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="version must be text"):
        perdure.flow(**wrong)


def test_two_flows_of_one_name_and_steps_are_no_app() -> None:
    with CheckpointManager("memory:") as manager:
        with pytest.raises(ConfigError, match="Two flows are called 'versioned'"):
            manager.recover(version("1"), version("2"))
        with pytest.raises(ConfigError, match="add is a step"):
            manager.recover(add)
        with pytest.raises(ConfigError, match="no flow"):
            manager.recover()


def test_it_is_told_why_runs_wait(open_: Open) -> None:
    manager = open_()
    terms: dict[str, dict[str, Any]] = {
        "late": {"delay": 3600},
        "night": {"queue": "night"},
        "plain": {},
        "first": {"queue": "one", "concurrency": 1, "priority": 1},
        "second": {"queue": "one", "concurrency": 1},
        "slow": {"queue": "slow", "rate": (1, 3600), "priority": 1},
        "slower": {"queue": "slow", "rate": (1, 3600)},
    }
    gate, reached = threading.Event(), threading.Semaphore(0)

    @perdure.flow
    def held(n: int) -> int:
        reached.release()
        gate.wait(30)
        return n

    for goal, more in terms.items():
        manager.submit(held, 1, goal=goal, **more)
    manager.submit(version("7"), 1, goal="version", queue="one")
    manager.submit(adder, 1, goal="flow", queue="one")

    def why() -> dict[str, str]:
        other = open_()
        assert other._writer is not None
        store = other._writer.store
        found = other._writer.call(lambda: perdure.Client(store).waiting()).result()
        other.close()
        return {key.goal: reason for key, reason in found.items()}

    assert why().pop("late").startswith("not before") and set(why().values()) - {why()["late"]} == {"no worker runs"}
    worker = threading.Thread(target=lambda: manager.recover(held, version("8"), queues=["one", "slow"]), daemon=True)
    worker.start()
    for _ in ("first", "slow"):
        assert reached.acquire(timeout=30)
    told = why()
    gate.set()
    worker.join()
    assert told["second"] == "its queue executes 1 at a time"
    assert told["slower"].startswith("1 of its queue have begun within 3600 s; the next may at ")
    assert told["night"] == "no worker serves the queue 'night'"
    assert told["plain"] == "no worker serves the queue 'default'"
    assert told["version"] == "it is of version 7 of its flow, and workers go on with 8"
    assert told["flow"] == "no worker has the flow 'adder'"
    assert told["late"].startswith("not before") and "first" not in told and "slow" not in told


def test_workers_are_in_no_listing(open_: Open) -> None:
    manager = open_()
    seen: list[dict[str, str]] = []

    @perdure.flow
    def looks(n: int) -> int:
        seen.append(rows(other))
        return n

    other = open_()
    manager.submit(looks, 1, goal="looks")
    manager.recover(looks)
    assert [list(listed) for listed in seen] == [["looks"]] and rows(manager) == {"looks": "completed"}


# -- workers in an event loop -----------------------------------------------------------------------------------------


def test_a_worker_waits_for_more_and_its_steps_end_when_it_is_cancelled(open_: Open) -> None:  # B3
    manager, other = open_(), open_()
    ended: list[int] = []

    @perdure.step
    async def slow(n: int) -> int:
        began.set()
        await asyncio.sleep(0.05)
        ended.append(n)
        return n + 1

    @perdure.flow
    async def flow(n: int) -> int:
        return await slow(await slow(await slow(n)))

    began = asyncio.Event()

    async def main() -> None:
        working = asyncio.create_task(manager.work(flow, grace=30))
        await asyncio.sleep(0)
        await asyncio.to_thread(other.submit, flow, 1, goal="late")
        await began.wait()
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working

    asyncio.run(main())
    assert ended == [1], "the step that ran came to its end, and nothing new began"
    assert rows(other) == {"late": "interrupted"}
    assert other.recover(flow) == {RunKey("late"): "completed"} and ended == [1, 2, 3]


def test_recovering_inside_of_an_event_loop_is_refused(manager: CheckpointManager) -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match="event loop runs in this thread"):
            manager.recover(adder)
        assert await asyncio.to_thread(manager.recover, adder) == {}

    asyncio.run(main())


# -- poison -----------------------------------------------------------------------------------------------------------


def _die(open_: Open, flow: Any, goal: str, n: int = 1) -> None:
    """Take a run up, and let the process die where the flow says."""
    manager = open_()
    assert manager._writer is not None
    store = manager._writer.store
    with pytest.raises(Death):
        manager.run_sync(flow, n, goal=goal)
    manager._writer.call(store.abandon).result()  # type: ignore[attr-defined]


class Death(BaseException):
    """Stands for the death of the process: what is raised after it is not recorded."""


@pytest.fixture
def deadly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow that raises Death leaves the journal as a killed process would."""
    from perdure import replay
    from perdure.runtime import endings, live

    real = live.LiveRun.emit

    def emit(self: Any, entries: Any, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(entry, j.StepInterrupted | j.RunInterrupted) for entry in entries):
            raise Death
        return real(self, entries, *args, **kwargs)

    monkeypatch.setattr(live.LiveRun, "emit", emit)
    assert replay and endings


@pytest.mark.usefixtures("deadly")
def test_a_step_that_kills_its_process_is_given_up_and_forgiven(open_: Open) -> None:  # X4 rel:R9
    mended = [False]

    @perdure.step
    def deadly_step(n: int) -> int:
        if not mended[0]:
            raise Death
        return n

    @perdure.flow
    def flow(n: int) -> int:
        return deadly_step(add(n))

    for _ in range(5):
        _die(open_, flow, "poison")
    manager = open_()
    with pytest.raises(LimitReached, match=r"step 2 \(deadly_step\) has crashed its process 5 times in a row"):
        manager.run_sync(flow, 1, goal="poison")
    state = manager.look("poison").result()
    assert state is not None and (state.status, state.stopped_by) == ("paused", "")
    assert [attempt.outcome for attempt in state.steps[2].attempts] == ["crashed"] * 5
    assert state.steps[1].status == "completed", "everything is kept"
    assert manager.recover(flow) == {}
    mended[0] = True
    assert manager._writer is not None
    store = manager._writer.store
    manager._writer.call(lambda: perdure.Client(store).retry("poison", by="ann")).result()
    assert manager.recover(flow) == {RunKey("poison"): "completed"}


@pytest.mark.usefixtures("deadly")
def test_a_run_that_dies_before_any_step_is_given_up_too(open_: Open) -> None:  # X4
    @perdure.flow
    def flow(n: int) -> int:
        raise Death

    for _ in range(5):
        _die(open_, flow, "poison")
    with pytest.raises(LimitReached, match="crashed its process 5 times in a row, and completed no step"):
        open_().run_sync(flow, 1, goal="poison")


@pytest.mark.usefixtures("deadly")
def test_a_run_that_gets_on_between_two_crashes_is_no_poison(open_: Open) -> None:  # X4
    deaths = [0]

    @perdure.step
    def inner(n: int) -> int:
        return n + 1

    @perdure.step
    def outer(n: int) -> int:
        for k in range(9):
            n = inner(n)
            if k == deaths[0]:
                deaths[0] += 1
                raise Death
        return n

    @perdure.flow
    def flow(n: int) -> int:
        return outer(n)

    for _ in range(9):
        _die(open_, flow, "slow")
    assert open_().run_sync(flow, 1, goal="slow") == 10


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "3"])
def test_a_wrong_crash_limit_is_refused(wrong: Any) -> None:  # G2
    with pytest.raises(ConfigError, match="crash_limit"):
        perdure.CheckpointConfig(crash_limit=wrong)


def test_limits_add_up_to_a_row_that_can_be_listed() -> None:
    row = replace(_row(), limits=Limits(concurrency=2, rate=3, per=1.0))
    assert bool(row.limits) and not Limits()
