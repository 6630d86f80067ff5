"""Group commit: what shares a commit, what ends by itself, and that nobody waits for ever."""

from __future__ import annotations

import asyncio
import fcntl
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path

import apsw
import pytest

from perdure.clock import SYSTEM
from perdure.errors import PerdureError, StoreError
from perdure.model import Lease, RunKey, RunMeta
from perdure.runtime import writer as writer_module
from perdure.runtime.tickets import Item, Ticket
from perdure.runtime.undisturbed import undisturbed
from perdure.runtime.writer import Writer
from perdure.stores.base import Append
from perdure.stores.disk import run_folder_name
from perdure.stores.file import FileStore
from perdure.stores.memory import MemoryStore
from perdure.stores.sqlite import SqliteStore

DEADLINE = 20.0
"""seconds for what takes none"""


class Counting(MemoryStore):
    """A memory store that notes how many records of how many runs each batch had, and can be made to pause."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.threads: list[int] = []
        self.during: Callable[[], object] = lambda: None
        """what happens in the middle of a commit"""

    def append(self, batch: Sequence[Append]) -> list[PerdureError | None]:
        assert self.gate.wait(DEADLINE)
        self.threads.append(threading.get_ident())
        self.during()
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


# -- who is at the store -----------------------------------------------------------------------------------------------


def test_a_thread_that_waits_commits_by_itself_unless_somebody_is_at_the_store(
    writer: Writer, store: Counting
) -> None:  # X8
    run, other = begin(writer), begin(writer, "other")
    run.put().wait()
    assert store.threads == [threading.get_ident()]
    store.gate.clear()
    waits = threading.Thread(target=lambda: other.put().wait(), daemon=True)
    waits.start()
    while not writer._at_store.locked():
        SYSTEM.sleep(0.0005)
    ticket = run.put()
    store.during = store.gate.clear  # only the commit that is under way may end now
    done = threading.Thread(target=ticket.wait, daemon=True)
    done.start()
    store.gate.set()
    waits.join(DEADLINE)
    store.gate.set()
    done.join(DEADLINE)
    assert ticket.done and not waits.is_alive()


def test_an_event_loop_commits_by_itself_as_long_as_that_is_quick(writer: Writer, store: Counting) -> None:  # X8
    async def main() -> None:
        run = begin(writer)
        for _ in range(100):
            await run.put()
        assert store.threads[-1] == threading.get_ident(), "the store has been quick for long enough"
        store.during = lambda: SYSTEM.sleep(0.02)
        await run.put()
        store.during = lambda: None
        await run.put()
        assert store.threads[-1] == writer._thread.ident, "and now it has not"

    asyncio.run(main())


def test_an_event_loop_goes_on_while_a_slow_store_commits(writer: Writer, store: Counting) -> None:
    async def main() -> None:
        run = begin(writer)
        store.gate.clear()

        async def goes_on() -> None:
            store.gate.set()

        ticket = run.put()
        await asyncio.gather(_awaited(ticket), goes_on())
        assert ticket.done

    asyncio.run(asyncio.wait_for(main(), DEADLINE))


async def _awaited(ticket: Ticket) -> None:
    await ticket


def test_tasks_that_wait_in_one_round_of_their_loop_share_a_commit(writer: Writer, store: Counting) -> None:  # X8
    async def main() -> None:
        runs = [begin(writer, f"run {n}") for n in range(10)]
        for _ in range(100):
            await asyncio.gather(*(_awaited(run.put()) for run in runs))

    asyncio.run(main())
    assert sum(store.batches) == 1000 and len(store.batches) < 200


@contextmanager
def locked_by_others(kind: str, place: Path, goal: str) -> Iterator[None]:
    if kind == "sqlite":
        other = apsw.Connection(str(place / "runs.db"))
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("COMMIT")
        other.close()
        return
    with open(place / "runs" / run_folder_name(RunKey(goal, 0)) / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.mark.parametrize("kind", ["sqlite", "file"])
def test_a_locked_store_is_not_waited_for_in_an_event_loop(tmp_path: Path, kind: str) -> None:
    store = SqliteStore(tmp_path / "runs.db") if kind == "sqlite" else FileStore(tmp_path)
    writer = Writer(store)

    async def main() -> None:
        run = begin(writer)
        for _ in range(200):
            await run.put()
        writer._pace = 0.0  # however slow this machine is
        with locked_by_others(kind, tmp_path, run.lease.key.goal):
            ticket = run.put()
            waits = asyncio.ensure_future(_awaited(ticket))
            for _ in range(3):
                await asyncio.sleep(0)  # by now the loop has tried
            assert not ticket.done
        await waits
        assert ticket.done and ticket.error is None

    asyncio.run(asyncio.wait_for(main(), DEADLINE))
    writer.close()


def test_whoever_waits_for_what_is_only_read_reads_it_unless_somebody_is_at_the_store(
    writer: Writer, store: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:  # X8
    assert writer.look_up(threading.get_ident) == threading.get_ident()
    there, leaves = threading.Event(), threading.Event()
    writer.call(lambda: (there.set(), leaves.wait(DEADLINE)))
    assert there.wait(DEADLINE)
    with monkeypatch.context() as patched:
        ring = writer.ring
        patched.setattr(writer, "ring", lambda: (leaves.set(), ring()))  # what is asked for is queued by now
        assert writer.look_up(threading.get_ident) == writer._thread.ident
    run = begin(writer)
    ticket = run.put()
    assert len(writer.look_up(lambda: store.read(run.lease.key))) == 1, "what is queued comes first"
    assert ticket.done


def test_what_somebody_keeps_locked_is_read_by_the_thread_which_waits(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "runs.db")
    store._db.execute("PRAGMA journal_mode = DELETE").fetchall()  # with the log nobody who reads waits
    writer = Writer(store)
    tried: list[int] = []
    other = apsw.Connection(str(tmp_path / "runs.db"))
    other.execute("BEGIN EXCLUSIVE")

    def read() -> int:
        tried.append(threading.get_ident())
        if len(tried) > 1:
            other.execute("ROLLBACK")
        return len(store.runs())

    assert writer.look_up(read) == 0
    assert tried == [threading.get_ident(), writer._thread.ident]
    other.close()
    writer.close()


def test_verbs_that_may_be_done_together_are_done_before_anybody_goes_on(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:  # X8
    monkeypatch.setattr(writer_module, "_TOGETHER", 60.0)
    done: list[int] = []
    seen: list[int] = []

    def raises(_: object) -> None:
        seen.append(len(done))
        raise SystemExit  # whatever somebody makes of it, the others are told

    with writer._at_store:
        futures = [writer.call(partial(done.append, n), together=True) for n in range(4)]
        futures[0].add_done_callback(raises)
        failing = writer.call(lambda: 1 // 0, together=True)
        assert futures[1].cancel(), "what has not begun can be taken back"
    assert [future.result(DEADLINE) for future in (futures[0], futures[2], futures[3])] == [None] * 3
    assert isinstance(failing.exception(DEADLINE), ZeroDivisionError)
    assert seen == [3] and done == [0, 2, 3]
    assert writer.call(lambda: 1).result(DEADLINE) == 1


def test_nobody_waits_for_a_verb_that_follows_his_own(writer: Writer) -> None:
    told = threading.Event()
    with writer._at_store:
        first = writer.call(lambda: None, together=True)
        first.add_done_callback(lambda _: told.set())
        other = writer.call(lambda: told.wait(DEADLINE))
    assert other.result(DEADLINE)


def test_who_is_called_back_does_not_care_in_which_context_is_committed(writer: Writer, store: Counting) -> None:
    here: ContextVar[str] = ContextVar("here", default="")
    run, seen = begin(writer), []
    run.put().wait()
    here.set("of the flow")
    ticket = run.put()
    ticket.then(lambda: seen.append(here.get()))
    ticket.wait()
    assert store.threads[-1] == threading.get_ident() and seen == [""]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGALRM])
@pytest.mark.parametrize("colour", ["thread", "loop"])
def test_a_signal_in_the_middle_of_a_commit_comes_after_it(
    writer: Writer, store: Counting, colour: str, number: signal.Signals
) -> None:  # B8
    def raises(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    run = begin(writer)
    run.put().wait()
    handler = signal.signal(number, raises)
    told: list[bool] = []
    store.during = lambda: (signal.raise_signal(number), told.append(True))

    async def main() -> None:
        writer._pace = 0.0
        await run.put()

    try:
        with pytest.raises(KeyboardInterrupt):
            if colour == "thread":
                run.put().wait()
            else:
                loop = asyncio.new_event_loop()  # not asyncio.run, which has a handler of its own
                try:
                    loop.run_until_complete(main())
                finally:
                    loop.close()
        assert told == [True] and signal.getsignal(number) is raises
    finally:
        signal.signal(number, handler)
    store.during = lambda: None
    run.put().wait()
    assert sum(store.batches) == 3


def test_the_thread_may_be_at_work_before_the_writer_is_made(monkeypatch: pytest.MonkeyPatch) -> None:  # B8
    """Whatever it uses is there when it begins: on a busy machine it may be long until its maker goes on."""
    attributes: list[set[str]] = []
    start = threading.Thread.start

    def noted(thread: threading.Thread) -> None:
        if thread.name == "perdure-writer":
            attributes.append(set(vars(thread._target.__self__)))  # type: ignore[attr-defined]
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", noted)
    made = Writer(MemoryStore())
    assert attributes == [set(vars(made))]
    made.close()


def test_the_thread_looks_as_soon_as_it_is_told_what_for(store: Counting) -> None:
    looked = threading.Event()
    made = Writer(store)
    made.call(lambda: None).result(10)  # it sleeps without a limit from here on
    made.look_every(0.001, lambda store: looked.set())
    assert looked.wait(10)
    made.close()


def test_a_handler_that_stands_in_for_another_after_the_commit_acts_as_that_one() -> None:  # B8
    came: list[str] = []

    def theirs(number: int, frame: object) -> None:
        came.append(signal.Signals(number).name)
        if len(came) == 1:  # while the first is put back: the second never is
            raise KeyboardInterrupt

    before = {number: signal.signal(number, theirs) for number in (signal.SIGINT, signal.SIGALRM)}
    held = undisturbed()
    try:
        held.__enter__()
        stands_in = signal.getsignal(signal.SIGALRM)
        signal.raise_signal(signal.SIGALRM)
        assert came == [], "the commit is not over"
        with pytest.raises(KeyboardInterrupt):
            held.__exit__(None, None, None)
        assert came == ["SIGALRM"]
        signal.signal(signal.SIGALRM, stands_in)  # as when a handler has raised before this one was put back
        signal.raise_signal(signal.SIGALRM)
        assert came == ["SIGALRM", "SIGALRM"]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_what_else_breaks_a_commit_off_is_raised_and_the_store_is_not_believed_any_more(
    writer: Writer, store: Counting
) -> None:  # rel:D4
    def exits() -> None:
        raise SystemExit(3)

    run = begin(writer)
    run.put().wait()
    store.during = exits
    ticket = run.put()
    with pytest.raises(SystemExit):
        ticket.wait()
    assert ticket.done and ticket.error is not None
    store.during = lambda: None
    with pytest.raises(PerdureError):
        run.put().wait()


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
