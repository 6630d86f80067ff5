"""Group commit: what shares a commit, what ends by itself, and that nobody waits for ever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence

import pytest

from perdure.clock import SYSTEM
from perdure.errors import PerdureError, StoreError
from perdure.model import Lease, RunKey, RunMeta
from perdure.runtime.writer import Item, Ticket, Writer
from perdure.stores.base import Append
from perdure.stores.memory import MemoryStore

DEADLINE = 20.0
"""seconds for what takes none"""


class Counting(MemoryStore):
    """A memory store that notes how many records of how many runs each batch had, and can be made to pause."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def append(self, batch: Sequence[Append]) -> list[PerdureError | None]:
        assert self.gate.wait(DEADLINE)
        self.batches.append(sum(len(item.records) for item in batch))
        return super().append(batch)


class Run:
    """Queues records of one run, numbered as they come."""

    def __init__(self, writer: Writer, lease: Lease) -> None:
        self.writer, self.lease, self.seq = writer, lease, 0

    def put(self) -> Ticket:
        meta = RunMeta(goal=self.lease.key.goal, episode=0, status="running")
        item = Item(lease=self.lease, seq=self.seq, records=(b"%d\n" % self.seq,), meta=meta)
        self.seq += 1
        return self.writer.submit(item)


@pytest.fixture
def store() -> Counting:
    return Counting()


@pytest.fixture
def writer(store: Counting) -> Iterator[Writer]:
    made = Writer(store)
    yield made
    store.gate.set()
    made.close()


def begin(writer: Writer, goal: str = "paper") -> Run:
    return Run(writer, writer.store.claim(RunKey(goal, 0)))


def durable(ticket: Ticket) -> bool:
    """Whether it becomes durable although nobody waits: ``then`` tells without asking for it."""
    told = threading.Event()
    ticket.then(told.set)
    return told.wait(DEADLINE)


def until_asleep(writer: Writer) -> None:
    """Return when the writer's thread has nothing to do and will not look at the queue by itself."""
    end = SYSTEM.monotonic() + DEADLINE
    while not writer._asleep:
        assert SYSTEM.monotonic() < end
        SYSTEM.sleep(0.0005)


@pytest.mark.parametrize("asleep", [True, False])
def test_records_nobody_waits_for_become_durable_by_themselves(writer: Writer, store: Counting, asleep: bool) -> None:
    # rel:D1
    run = begin(writer)
    for _ in range(50):
        if asleep:
            until_asleep(writer)
        assert durable(run.put())
    assert sum(store.batches) == 50


def test_records_nobody_waits_for_share_the_commit_of_the_next(writer: Writer, store: Counting) -> None:
    # X8: `completed` of a step and `started` of the next are one wait with durability="pipelined"
    run = begin(writer)
    run.put().wait()
    store.gate.clear()
    busy = run.put()  # while the device is busy with this or about to be ...
    lazy = [run.put() for _ in range(3)]
    waited = run.put()
    store.gate.set()
    waited.wait()
    assert busy.done
    assert all(ticket.done for ticket in lazy), "records are durable in the order in which they were queued"
    assert sum(store.batches) == 6
    assert len(store.batches) <= 3


def test_a_failed_store_tells_those_who_wait_and_is_not_tried_again(writer: Writer, store: Counting) -> None:
    # rel:D4
    run = begin(writer)
    run.put().wait()
    store.close()
    with pytest.raises(PerdureError):
        run.put().wait()
    with pytest.raises(PerdureError):
        run.put().wait()
    assert durable(run.put()), "nobody is left waiting"


def test_threads_and_tasks_that_queue_at_once_all_get_their_answer(writer: Writer, store: Counting) -> None:
    # X8: no wake-up is lost, whatever the schedule
    def work(run: Run) -> None:
        for n in range(200):
            ticket = run.put()
            if n % 3 != 1:
                ticket.wait()

    async def tasks() -> None:
        async def one(run: Run) -> None:
            for n in range(200):
                ticket = run.put()
                if n % 3 != 1:
                    await ticket

        await asyncio.wait_for(asyncio.gather(*(one(begin(writer, f"task {n}")) for n in range(5))), DEADLINE)

    threads = [threading.Thread(target=work, args=(begin(writer, f"thread {n}"),), daemon=True) for n in range(5)]
    for thread in threads:
        thread.start()
    asyncio.run(tasks())
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    writer.call(lambda: None).result(DEADLINE)
    assert sum(store.batches) == 10 * 200


def test_closing_commits_what_is_queued(store: Counting) -> None:
    # B3
    writer = Writer(store)
    run = begin(writer)
    tickets = [run.put() for _ in range(5)]
    writer.close()
    assert all(ticket.done and ticket.error is None for ticket in tickets)


def test_whatever_ends_the_work_of_the_thread_nobody_waits_for_ever(writer: Writer) -> None:
    # as when memory is used up between two commits
    run = begin(writer)

    def ends() -> None:
        raise SystemExit

    run.put().then(ends)
    done = threading.Event()
    run.put().then(done.set)
    assert done.wait(DEADLINE)
    done.clear()
    late = run.put()
    late.then(done.set)
    assert done.wait(DEADLINE) and late.error is not None


def test_a_store_without_memory_is_a_store_that_fails(writer: Writer, store: Counting) -> None:  # rel:R7
    def append(batch: Sequence[Append]) -> list[PerdureError | None]:
        raise MemoryError

    run = begin(writer)
    store.append = append  # type: ignore[method-assign]
    with pytest.raises(StoreError, match=r"no memory left.*Nothing that was acknowledged is lost"):
        run.put().wait()
    with pytest.raises(StoreError, match="no memory left"):
        run.put().wait()
