"""Records on their way to the store, and who waits for them."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Generator, Sequence
from contextvars import Context
from typing import Any, Protocol, TypeAlias

import msgspec

from perdure.errors import PerdureError
from perdure.model import Lease, RunMeta

log = logging.getLogger("perdure")


class Committer(Protocol):
    """Where records are queued: see writer.py."""

    def commit_here(self) -> None: ...

    def commit_soon(self, loop: asyncio.AbstractEventLoop) -> None: ...

    def ring(self) -> None: ...


Waiter: TypeAlias = "threading.Lock | asyncio.Future[None] | Callable[[], None]"


class Ticket(msgspec.Struct, eq=False, kw_only=True):
    """The promise that queued records become durable. ``wait()`` in threads, ``await`` in event loops."""

    done: bool = False
    error: PerdureError | None = None
    writer: Committer | None = None
    """where it is queued"""
    waiters: list[Waiter] = []
    """who is to be told"""

    def wait(self) -> None:
        """Block until durable. Raises the store's error if it is not going to be."""
        if not self.done and self.writer is not None:
            self.writer.commit_here()
        if not self.done:
            gate = threading.Lock()
            gate.acquire()
            self.waiters.append(gate)
            if not self.done:  # the writer sets done before it looks for waiters, so none is missed
                if self.writer is not None:
                    self.writer.ring()
                gate.acquire()
        if self.error is not None:
            raise self.error

    def __await__(self) -> Generator[Any, None, None]:
        if not self.done:
            loop = asyncio.get_running_loop()
            future = loop.create_future()
            self.waiters.append(future)
            if not self.done:
                if self.writer is not None:
                    self.writer.commit_soon(loop)
                yield from future
        if self.error is not None:
            raise self.error

    def then(self, callback: Callable[[], None]) -> None:
        """Call back, from whoever commits it, when durable or failed; at once if it is already."""
        self.waiters.append(callback)
        if self.done and self.waiters.count(callback):
            self.waiters.remove(callback)
            callback()


class Item(Ticket, eq=False):
    """Records of one run on their way to the store."""

    lease: Lease
    seq: int
    records: tuple[bytes, ...]
    meta: RunMeta
    blobs: dict[str, bytes] = {}
    before: tuple[Callable[[], None], ...] = ()
    """work that must be done before these records are durable: the files of C4"""


def resolve(results: Sequence[tuple[Ticket, PerdureError | None]]) -> None:
    """Wake everybody who waits; one call into each event loop, however many of its tasks wait. Then call back."""
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    callbacks: list[Callable[[], None]] = []
    for ticket, error in results:
        ticket.error = error
        ticket.done = True
        waiters = ticket.waiters
        while waiters:
            waiter = waiters.pop(0)
            if isinstance(waiter, asyncio.Future):
                loops.setdefault(waiter.get_loop(), []).append(waiter)
            elif callable(waiter):
                callbacks.append(waiter)
            else:
                waiter.release()
    here = asyncio._get_running_loop()
    for loop, futures in loops.items():
        if loop is here:
            _wake(futures)
            continue
        try:
            loop.call_soon_threadsafe(_wake, futures)
        except RuntimeError:  # the loop was closed while its task waited: nobody is left to tell
            continue
    ended: BaseException | None = None
    for callback in callbacks:
        try:
            Context().run(callback)  # and not in that of whoever happens to commit
        except Exception:
            log.exception("an observer of durable records failed; the run is not affected")
        except BaseException as error:
            ended = error
    if ended is not None:
        raise ended


def _wake(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
