"""Group commit: one at a time uses the store, takes whatever all runs have queued, and commits it as one batch.

A caller queues records and gets a ``Ticket``; it waits on the ticket, blocking or awaiting, when it needs the records
to be durable. While the device is busy with one batch the next one gathers, so the cost of a record falls as load grows
(X8), and a lone caller never waits for company. Records that nobody waits for stay queued for a moment, so that they
share the wait of the next that somebody does wait for. After the store fails once nothing is tried again: every ticket,
now and later, carries the error (rel:D4).

Who is at the store? Handing work to another thread, and being woken by it, costs more than a commit does where the
device is quick. So whoever waits, and finds nobody at the store, commits by itself what is queued: a thread at once; an
event loop when all its tasks that can run have run, if commits have been so quick lately that the loop is not held up,
and only where a commit waits for nobody else. So does a thread that waits for a few records to be read. All the rest
is done by the writer's own thread: the other verbs, what queues up while somebody is at the store, and records that
nobody waits for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from math import inf, isinf
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar, cast

from perdure.clock import SYSTEM
from perdure.errors import Bug, ConfigError, PerdureError, RetryError, StoreBusy, StoreError
from perdure.model import Lease
from perdure.runtime.tickets import Item, Ticket, resolve
from perdure.runtime.undisturbed import undisturbed
from perdure.stores.base import Append, Store
from perdure.stores.compression import ready

_T = TypeVar("_T")
_LINGER: Final = 0.002
"""seconds that records nobody waits for may stay queued"""
_TOGETHER: Final = 0.005
"""seconds after which no more verbs are done before those who wait for the first are told"""
_QUICK: Final = 0.001
"""seconds for which a commit may hold up an event loop: about what two changes of threads take"""
_FORGETS: Final = 0.9
"""part of the slowest commit that is remembered at the next one: after 10 ms it takes 22 quick ones"""
log = logging.getLogger("perdure")


class _Verb(NamedTuple):
    do: Callable[[], Any]
    future: Future[Any]
    together: bool


_Work: TypeAlias = Item | _Verb | None
"""records, a verb of the store, or the order to end"""


class Writer:
    """Whoever uses a store in this process does so by way of this: one at a time."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._look: Callable[[Store], None] = lambda store: None
        self._every = self._next = inf
        self._queue: deque[_Work] = deque()
        self._at_store = threading.Lock()
        """held by whoever uses the store, and takes what is queued"""
        self.can = store.capabilities
        self._pace = 10 * _QUICK
        """seconds that the slowest commit took of late"""
        self._expecting: set[asyncio.AbstractEventLoop] = set()
        """event loops that are about to commit what is queued"""
        self._urgent = False
        """somebody waits for the thread"""
        self._stirred = False
        """something was queued lately"""
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
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="perdure-writer", daemon=True)
        self._thread.start()  # last of all: it may look at anything before this goes on

    def look_every(self, seconds: float, look: Callable[[Store], None]) -> None:
        """From now on call ``look`` on the writer's thread every so many seconds, when it has nothing else to do or
        between two batches: for what others have posted."""
        self._look, self._every = look, seconds
        self._next = SYSTEM.monotonic() + seconds
        self._ring()

    def submit(self, item: Item) -> Ticket:
        """Queue records, after ``check``. Never blocks."""
        item.writer = self
        self._queue.append(item)
        self._stirred = True
        if self._asleep:  # perhaps nobody is going to wait for it
            self._ring()
        return item

    def call(self, verb: Callable[[], _T], together: bool = False) -> Future[_T]:
        """Run any other verb of the store on the writer's thread, in order with the appends. ``together``: it is brief,
        and may be answered when others that follow it are done too."""
        self.check()
        future: Future[_T] = Future()
        self._queue.append(_Verb(verb, future, together))
        self.ring()
        return future

    def look_up(self, verb: Callable[[], _T]) -> _T:
        """Do a verb that only reads, and not much, and wait for it: in this thread where nobody is at the store, and
        nobody else can keep it waiting, as it is with commits. It may be begun twice."""
        self.check()
        with undisturbed():
            if self.can.hurry is not None and not self._queue and self._at_store.acquire(blocking=False):
                try:
                    self.can.hurry(True)
                    return verb()
                except StoreBusy:  # the thread waits for whoever keeps it locked
                    pass
                finally:
                    self.can.hurry(False)
                    self._leave()
        return self.call(verb).result()

    def commit_here(self) -> None:
        """Commit what is queued in this thread, which waits for some of it: unless somebody else is at the store, who
        looks at the queue again when he leaves."""
        if not self._at_store.locked():
            with undisturbed():
                self._use_here(None)

    def commit_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        """A task of this running loop waits for something in the queue: others of its tasks may be about to."""
        if loop not in self._expecting:
            self._expecting.add(loop)
            loop.call_soon(self._commit_in, loop)

    def _commit_in(self, loop: asyncio.AbstractEventLoop) -> None:
        self._expecting.discard(loop)
        if self.can.hurry is None or self._pace > _QUICK or self._at_store.locked():
            self.ring()
            return
        with undisturbed():
            self._use_here(self.can.hurry)

    def _use_here(self, hurry: Callable[[bool], None] | None) -> None:
        """Commit what is queued in this thread, if nobody is at the store; with ``hurry`` only if that keeps nobody
        waiting."""
        if os.getpid() != self._pid or not self._at_store.acquire(blocking=False):
            return
        try:
            if hurry is not None:
                hurry(True)
            self._commit_queued(in_hurry=hurry is not None)
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            if hurry is not None:
                hurry(False)
            self._leave()

    def _leave(self) -> None:
        self._at_store.release()
        if self._queue:  # a verb, or what came in the meantime
            self.ring()

    def ring(self) -> None:
        """Somebody waits for the thread. Any thread may call this."""
        self._urgent = True
        self._ring()

    def _ring(self) -> None:
        if self._bell.locked():
            with suppress(RuntimeError):  # another thread has just rung
                self._bell.release()

    def look_soon(self) -> None:
        """Somebody may have posted something: look now, and not only when it is time. Any thread may call this."""
        self._next = 0.0
        self._ring()

    def close(self) -> None:
        """Commit what is queued, close the store, end the thread."""
        if not self._closed and os.getpid() == self._pid:
            self._closed = True
            self._queue.append(None)
            self.ring()
            self._thread.join()

    def check(self) -> None:
        """Raises ConfigError where nothing can be queued; in the code of a transactional step too: what it asks for
        would wait for itself."""
        if self._occupied and threading.current_thread() is self._thread:
            raise ConfigError(
                "A transactional step may do nothing durable but through its transaction: no steps, no questions, no "
                "progress. It is rolled back.",
                hint="Do that before or after it, in the flow.",
            )

        if self._closed:
            raise ConfigError("This CheckpointManager is closed.", hint="Make a new one.")
        if os.getpid() != self._pid:
            raise ConfigError(
                "This process was forked from one that has a store open, and must not use that store.",
                hint="Open a CheckpointManager of its own in the child, or start children with 'spawn'.",
            )

    def _work(self) -> None:
        """What the thread does, until told to end."""
        while True:
            try:
                return self._serve()
            except BaseException as error:  # memory that is used up can end anything; nobody may wait for ever
                if self._closed and not self._queue:  # it is the end, and the store could not be closed in order
                    raise
                self._fail(error)

    def _serve(self) -> None:
        while True:
            self._wait()
            with self._at_store:
                if SYSTEM.monotonic() >= self._next:
                    self._next = SYSTEM.monotonic() + self._every
                    self._look_around()
                self._urgent = False
                self._commit_queued()
                self._obey()
                if self._queue and self._queue[0] is None:
                    self._queue.popleft()
                    self.store.close()
                    return
                if self._queue:
                    self._urgent = True

    def _wait(self) -> None:
        """Until somebody waits for the thread, or something is queued that nobody has come for in a moment, or it is
        time to look."""
        while not self._urgent and SYSTEM.monotonic() < self._next:
            if self._stirred:
                self._stirred = False
                self._bell.acquire(timeout=_LINGER)
                continue
            if self._queue and not self._at_store.locked():
                return
            self._asleep = True
            if not self._stirred and not self._urgent:  # whoever put something before we slept has not rung
                self._bell.acquire(timeout=-1 if isinf(self._every) else self._every)
            self._asleep = False

    def _commit_queued(self, in_hurry: bool = False) -> None:
        """At the store: commit what is queued, up to the next verb."""
        batch = self._taken = []
        for _ in range(len(self._queue)):
            item = self._queue[0]
            if type(item) is not Item or (in_hurry and (item.blobs or item.before)):
                break  # to compress large values, or to write files, would hold an event loop up
            batch.append(item)
            self._queue.popleft()
        if batch:
            began = SYSTEM.monotonic()
            self._commit(batch, in_hurry)
            self._pace = max(SYSTEM.monotonic() - began, self._pace * _FORGETS)

    def _fail(self, error: BaseException) -> None:
        """Something ended the work in the middle."""
        self._error = self._error or _broken(error)
        self.resolve(self._taken, self._error)

    def _look_around(self) -> None:
        if self._error is None and not self._closed:
            try:
                self._look(self.store)
            except RetryError:  # somebody keeps the store locked: look again later
                pass
            except Exception as error:
                known = isinstance(error, PerdureError)  # the store is away, say: where we noticed it helps nobody
                text = "what others post to runs cannot be read any more; they go on without it: %s"
                log.error(text, error, exc_info=None if known else error)
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
        self.store.append(ready([_merge(items)], self.store))

    def resolve(self, items: list[Item], error: PerdureError | None) -> None:
        """Tell whoever waits for items that they are durable, or are not going to be."""
        if isinstance(error, StoreError):
            self._error = self._error or error
        resolve([(item, error) for item in items])

    def _obey(self) -> None:
        """At the store: do the verb that comes next, or those that may be done together. Who waits for one of these is
        told afterwards: while he goes on, he keeps the interpreter's lock from the verbs that follow."""
        done: list[tuple[Future[Any], Any]] = []
        end = SYSTEM.monotonic() + _TOGETHER
        try:
            while self._queue and isinstance(self._queue[0], _Verb):
                if done and (not self._queue[0].together or SYSTEM.monotonic() > end):
                    break
                verb = cast(_Verb, self._queue.popleft())
                if not verb.future.set_running_or_notify_cancel():
                    continue
                try:
                    value = verb.do()
                except BaseException as error:
                    verb.future.set_exception(error)
                    break
                done.append((verb.future, value))
                if not verb.together:
                    break
        finally:
            _tell(done)

    def _commit(self, batch: list[Item], in_hurry: bool) -> None:
        groups = _by_run(batch)
        errors: list[PerdureError | None]
        ended: BaseException | None = None
        try:
            if self._error is not None:
                raise self._error
            for item in batch:
                for work in item.before:
                    work()
            errors = self.store.append(ready([_merge(group) for group in groups], self.store))
        except PerdureError as error:
            self._error = error if isinstance(error, StoreError) else self._error
            errors = [error] * len(groups)
        except BaseException as error:
            self._error, ended = _broken(error), error
            errors = [self._error] * len(groups)
        told = [(item, error) for group, error in zip(groups, errors, strict=True) for item in group]
        if in_hurry and any(errors):  # the thread will wait for whoever keeps the store locked
            locked = [item for item, error in told if isinstance(error, StoreBusy)]
            told = [(item, error) for item, error in told if not isinstance(error, StoreBusy)]
            self._queue.extendleft(reversed(locked))
        self._taken = []
        resolve(told)
        if ended is not None and not isinstance(ended, Exception):
            raise ended


def _tell(done: list[tuple[Future[Any], Any]]) -> None:
    """Tell all of them, whatever somebody makes of it."""
    ended: BaseException | None = None
    for future, value in done:
        try:
            future.set_result(value)
        except BaseException as error:
            ended = error
    if ended is not None:
        raise ended


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


def _by_run(batch: list[Item]) -> list[list[Item]]:
    if len(batch) == 1:
        return [batch]
    runs: dict[int, list[Item]] = {}
    for item in batch:
        run = id(item.lease)
        if run in runs:
            runs[run].append(item)
        else:
            runs[run] = [item]
    return list(runs.values())


def _merge(group: list[Item]) -> Append:
    if len(group) == 1:
        item = group[0]
        return Append(item.lease, item.seq, item.records, item.meta, item.blobs)
    blobs: dict[str, bytes] = {}
    for item in group:
        blobs.update(item.blobs)
    records = tuple(record for item in group for record in item.records)
    return Append(group[0].lease, group[0].seq, records, group[-1].meta, blobs)
