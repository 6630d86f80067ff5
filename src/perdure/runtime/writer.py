"""Group commit: one thread owns the store, takes whatever all runs have queued, and commits it as one batch.

A caller queues records and gets a ``Ticket``; it waits on the ticket, blocking or awaiting, when it needs the records
to be durable. While the device is busy with one batch the next one gathers, so the cost of a record falls as load grows
(X8), and a lone caller never waits for company. Records that nobody waits for stay queued for a moment, so that they
share the wait of the next that somebody does wait for. After the store fails once nothing is tried again: every ticket,
now and later, carries the error (rel:D4).
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from math import inf, isinf
from typing import Any, Final, TypeAlias, TypeVar

from perdure.clock import SYSTEM
from perdure.errors import Bug, ConfigError, PerdureError, RetryError, StoreError
from perdure.model import Lease, RunMeta
from perdure.stores.base import Append, Store

_T = TypeVar("_T")
_LINGER: Final = 0.002
"""seconds that records nobody waits for may stay queued"""
log = logging.getLogger("perdure")


class Ticket:
    """The promise that queued records become durable. ``wait()`` in threads, ``await`` in event loops."""

    __slots__ = ("_waiters", "done", "error")

    def __init__(self) -> None:
        self.done = False
        self.error: PerdureError | None = None
        self._waiters: list[threading.Lock | asyncio.Future[None] | Callable[[], None]] = []

    def wait(self) -> None:
        """Block until durable. Raises the store's error if it is not going to be."""
        if not self.done:
            gate = threading.Lock()
            gate.acquire()
            self._waiters.append(gate)
            if not self.done:  # the writer sets done before it looks for waiters, so none is missed
                gate.acquire()
        if self.error is not None:
            raise self.error

    def __await__(self) -> Generator[Any, None, None]:
        if not self.done:
            future = asyncio.get_running_loop().create_future()
            self._waiters.append(future)
            if not self.done:
                yield from future
        if self.error is not None:
            raise self.error

    def then(self, callback: Callable[[], None]) -> None:
        """Call back on the writer's thread when durable or failed; at once if it is already."""
        self._waiters.append(callback)
        if self.done and self._waiters.count(callback):
            self._waiters.remove(callback)
            callback()


class Item:
    """Records of one run on their way to the store."""

    __slots__ = ("before", "blobs", "lazy", "lease", "meta", "records", "seq", "ticket")

    def __init__(
        self,
        lease: Lease,
        seq: int,
        records: tuple[bytes, ...],
        meta: RunMeta,
        blobs: dict[str, bytes],
        before: tuple[Callable[[], None], ...],
        lazy: bool = False,
    ) -> None:
        self.lease, self.seq, self.records, self.meta, self.blobs = lease, seq, records, meta, blobs
        self.before = before
        """work that must be done before these records are durable: the files of C4"""
        self.lazy = lazy
        """nobody waits for it: it may share the commit of what comes next"""
        self.ticket = Ticket()


_Work: TypeAlias = Item | tuple[Callable[[], Any], Future[Any]] | None
"""records, a verb of the store, or the order to end"""


class Writer:
    """The one thread that uses a store."""

    def __init__(self, store: Store, *, look: Callable[[Store], None] = lambda store: None, every: float = inf) -> None:
        self.store = store
        self._look, self._every = look, every
        """what is called on the writer's thread every so many seconds, when it has nothing else to do or between two
        batches: to look for what others have posted"""
        self._next = SYSTEM.monotonic() + every
        self._queue: deque[_Work] = deque()
        self._urgent = False
        """somebody waits for something in the queue"""
        self._asleep = False
        """the thread sleeps until it is rung for; otherwise it looks at the queue within a moment by itself"""
        self._bell = threading.Lock()
        self._bell.acquire()
        self._error: PerdureError | None = None
        self._taken: list[Item] = []
        """what was taken out of the queue and not answered yet"""
        self._pid = os.getpid()
        self._occupied = False
        """the thread executes a transactional step"""
        self._thread = threading.Thread(target=self._work, name="perdure-writer", daemon=True)
        self._thread.start()
        self._closed = False

    def submit(self, item: Item) -> Ticket:
        """Queue records. Never blocks."""
        self._check()
        self._put(item, urgent=not item.lazy)
        return item.ticket

    def call(self, verb: Callable[[], _T]) -> Future[_T]:
        """Run any other verb of the store on the writer's thread, in order with the appends."""
        self._check()
        future: Future[_T] = Future()
        self._put((verb, future))
        return future

    def look_soon(self) -> None:
        """Somebody may have posted something: look now, and not only when it is time. Any thread may call this."""
        self._next = 0.0
        if self._bell.locked():
            with suppress(RuntimeError):  # another thread has just rung
                self._bell.release()

    def close(self) -> None:
        """Commit what is queued, close the store, end the thread."""
        if not self._closed and os.getpid() == self._pid:
            self._closed = True
            self._put(None)
            self._thread.join()

    def _put(self, work: _Work, urgent: bool = True) -> None:
        self._queue.append(work)
        if urgent:
            self._urgent = True
        if (urgent or self._asleep) and self._bell.locked():
            with suppress(RuntimeError):  # another thread has just rung
                self._bell.release()

    def refuse_occupied(self) -> None:
        """Raises ConfigError in the code of a transactional step: what it asks for would wait for itself."""
        if self._occupied and threading.current_thread() is self._thread:
            raise ConfigError(
                "A transactional step may do nothing durable but through its transaction: no steps, no questions, no "
                "progress. It is rolled back.",
                hint="Do that before or after it, in the flow.",
            )

    def _check(self) -> None:
        self.refuse_occupied()
        if self._closed:
            raise ConfigError("This CheckpointManager is closed.", hint="Make a new one.")
        if os.getpid() != self._pid:
            raise ConfigError(
                "This process was forked from one that has a store open, and must not use that store.",
                hint="Open a CheckpointManager of its own in the child, or start children with 'spawn'.",
            )

    def _work(self) -> None:
        while True:
            try:
                return self._serve()
            except BaseException as error:  # memory that is used up can end anything; nobody may wait for ever
                if self._closed and not self._queue:  # it is the end, and the store could not be closed in order
                    raise
                self._error = self._error or _broken(error)
                self.resolve(self._taken, self._error)

    def _serve(self) -> None:
        """Commit what is queued, and execute verbs, until told to end."""
        more = False
        while True:
            if not more:
                self._wait()
            more = False
            if SYSTEM.monotonic() >= self._next:
                self._next = SYSTEM.monotonic() + self._every
                self._look_around()
            self._urgent = False
            batch = self._taken = []
            for _ in range(len(self._queue)):
                item = self._queue.popleft()
                if isinstance(item, Item):
                    batch.append(item)
                    continue
                self._commit(batch)
                batch = self._taken = []
                if item is None:
                    self.store.close()
                    return
                self._answer(*item)
                more = bool(self._queue)
                break  # it may have taken others out of the queue
            self._commit(batch)

    def _wait(self) -> None:
        """Until something is queued (if nobody waits for any of it, for another moment too), or it is time to look.

        Records that nobody waits for do not wake this thread in the moment after a commit, since changing threads costs
        as much as a step: mostly somebody waits for the next.
        """
        self._bell.acquire(timeout=_LINGER)
        while not self._queue:
            self._asleep = True
            if not self._queue:  # whoever put something before we slept has not rung
                rung = self._bell.acquire(timeout=-1 if isinf(self._every) else self._every)
                if not rung or SYSTEM.monotonic() >= self._next:
                    self._asleep = False
                    return
            self._asleep = False
            if not self._urgent:
                self._bell.acquire(timeout=_LINGER)

    def _look_around(self) -> None:
        if self._error is None and not self._closed:
            try:
                self._look(self.store)
            except RetryError:  # somebody keeps the store locked: look again later
                pass
            except Exception:
                log.exception("what others post to runs cannot be read any more; they go on without it")
                self._next = inf

    @contextmanager
    def occupied(self) -> Iterator[None]:
        """On the writer's thread: the block is somebody's code, which must not wait for this thread."""
        self._occupied = True
        try:
            yield
        finally:
            self._occupied = False

    def queued(self, lease: Lease) -> list[Item]:
        """On the writer's thread: take what is queued of a run out of the queue, to append it in another way."""
        all_ = [self._queue.popleft() for _ in range(len(self._queue))]
        mine = [item for item in all_ if isinstance(item, Item) and item.lease is lease]
        self._queue.extendleft(reversed([item for item in all_ if item not in mine]))
        return mine

    def append(self, items: list[Item]) -> None:
        """On the writer's thread, in an open transaction of the store: append items of one run. Raises what prevents
        it. Whoever waits for them is told by ``resolve``, when it is committed."""
        for item in items:
            for work in item.before:
                work()
        self.store.append([_merge(items)])

    def resolve(self, items: list[Item], error: PerdureError | None) -> None:
        """Tell whoever waits for items that they are durable, or are not going to be."""
        if isinstance(error, StoreError):
            self._error = self._error or error
        _resolve([(item.ticket, error) for item in items])

    def _answer(self, verb: Callable[[], Any], future: Future[Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(verb())
        except BaseException as error:
            future.set_exception(error)

    def _commit(self, batch: list[Item]) -> None:
        if not batch:
            return
        runs: dict[int, list[Item]] = {}
        for item in batch:
            runs.setdefault(id(item.lease), []).append(item)
        groups = list(runs.values())
        errors: list[PerdureError | None]
        try:
            if self._error is not None:
                raise self._error
            for item in batch:
                for work in item.before:
                    work()
            errors = self.store.append([_merge(group) for group in groups])
        except PerdureError as error:
            self._error = error if isinstance(error, StoreError) else self._error
            errors = [error] * len(groups)
        except BaseException as error:
            self._error = _broken(error)
            errors = [self._error] * len(groups)
        _resolve([(item.ticket, error) for group, error in zip(groups, errors, strict=True) for item in group])


def _broken(error: BaseException) -> PerdureError:
    """What to tell whoever waits for a store that raised something else than its own errors."""
    problem: PerdureError = Bug(f"the store raised {type(error).__name__}: {error}")
    if isinstance(error, MemoryError):
        problem = StoreError(
            "The store could not be written to: there is no memory left.",
            hint="Nothing that was acknowledged is lost. Run again with more memory.",
        )
    problem.__cause__ = error
    return problem


def _merge(group: list[Item]) -> Append:
    if len(group) == 1:
        item = group[0]
        return Append(item.lease, item.seq, item.records, item.meta, item.blobs)
    blobs: dict[str, bytes] = {}
    for item in group:
        blobs.update(item.blobs)
    records = tuple(record for item in group for record in item.records)
    return Append(group[0].lease, group[0].seq, records, group[-1].meta, blobs)


def _resolve(results: list[tuple[Ticket, PerdureError | None]]) -> None:
    """Wake everybody who waits; one call into each event loop, however many of its tasks wait."""
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for ticket, error in results:
        ticket.error = error
        ticket.done = True
        while ticket._waiters:
            waiter = ticket._waiters.pop(0)
            if isinstance(waiter, asyncio.Future):
                loops.setdefault(waiter.get_loop(), []).append(waiter)
            elif callable(waiter):
                try:
                    waiter()
                except Exception:
                    log.exception("an observer of durable records failed; the run is not affected")
            else:
                waiter.release()
    for loop, futures in loops.items():
        try:
            loop.call_soon_threadsafe(_wake, futures)
        except RuntimeError:  # the loop was closed while its task waited: nobody is left to tell
            continue


def _wake(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
