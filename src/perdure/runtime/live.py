"""A run in the hands of this process: its state, its lease, and the way of its entries to the store."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from perdure import journal as j
from perdure.clock import Clock
from perdure.errors import LeaseLost, PerdureError, StoreError
from perdure.fold import State
from perdure.hooks import Observer
from perdure.life import Life
from perdure.model import Lease, RunKey
from perdure.runtime.outputs import Outputs
from perdure.runtime.writer import Item, Ticket, Writer

if TYPE_CHECKING:
    from perdure.runtime.lives import Lives

log = logging.getLogger("perdure")

running: set[LiveRun] = set()
"""runs in the hands of this process"""


class Durability(msgspec.Struct, frozen=True):
    """Whether what a run reports is on stable storage (B10)."""

    durable: bool
    since: str = ""
    """the step during which the store was lost"""
    reason: str = ""


class LiveRun:
    """Appends to one run under its lease. Thread-safe; never blocks except in ``wait``."""

    def __init__(
        self,
        writer: Writer,
        lease: Lease,
        state: State,
        *,
        clock: Clock,
        durability: str,
        strict: bool,
        same_code: bool,
        degrade: bool,
        outputs: Outputs | None,
        observers: Sequence[Observer],
        lives: Lives,
    ) -> None:
        self.writer = writer
        self.lives = lives
        """what began it, and can begin others on the same store"""
        self.lease = lease
        self.state = state
        self.clock = clock
        self.outputs = outputs
        self.durability = Durability(True)
        self.lock = threading.RLock()
        self.broken: BaseException | None = None
        """why nothing can be appended any more"""
        began = clock.monotonic()
        self.life = Life(
            state,
            durability=durability,
            strict=strict,
            same_code=same_code,
            emit=lambda entry: self._emit_quietly(entry),
            tell=lambda message: log.warning("%s", message),
            lock=self.lock,
            elapsed=lambda: clock.monotonic() - began,
        )
        self._degrade = degrade
        self._observers = tuple(observers)
        running.add(self)
        self._held: list[tuple[int, bytes, dict[str, bytes], tuple[Callable[[], None], ...]]] = []

    @property
    def key(self) -> RunKey:
        return self.state.key

    def emit(
        self, entries: Sequence[j.Entry], blobs: dict[str, bytes] | None = None, last: bool = False, lazy: bool = False
    ) -> Ticket:
        """Apply entries to the state and queue them. ``last`` flushes what durability="exit" has held back; ``lazy``:
        nobody is going to wait for them.

        Raises what broke the run, if something has.
        """
        with self.lock:
            if self.broken is not None:
                raise self.broken
            before: list[Callable[[], None]] = []
            seq = self.state.seq
            records = []
            try:
                for entry in entries:
                    entry.seq, entry.at = self.state.seq + 1, self.clock.now()
                    self.state.apply(entry)
                    records.append(j.encode(self.key, entry))
                    if self.outputs is not None:
                        before += self.outputs.work(self.state, entry, blobs or {})
            except BaseException as error:  # the state may be ahead of the journal: nothing may follow
                self.broken = error
                raise
            return self._queue(seq, records, blobs or {}, tuple(before), tuple(entries), last, lazy)

    def _queue(
        self,
        seq: int,
        records: list[bytes],
        blobs: dict[str, bytes],
        before: tuple[Callable[[], None], ...],
        entries: tuple[j.Entry, ...],
        last: bool,
        lazy: bool,
    ) -> Ticket:
        if not self.durability.durable:
            return _done()
        if self.life.durability == "exit" and not last:
            self._held += [(seq + i, r, blobs, before if i == 0 else ()) for i, r in enumerate(records)]
            return _done()
        if self._held:
            held, self._held = self._held, []
            seq = held[0][0]
            blobs = {k: v for h in held for k, v in h[2].items()} | blobs
            before = tuple(w for h in held for w in h[3]) + before
            records = [h[1] for h in held] + records
        ticket = self.writer.submit(Item(self.lease, seq, tuple(records), self.state.meta(), blobs, before, lazy))
        if self._observers:
            ticket.then(lambda: self._notify(ticket, entries))
        return ticket

    def _emit_quietly(self, entry: j.Entry) -> None:
        self.emit((entry,), lazy=True)

    def _notify(self, ticket: Ticket, entries: tuple[j.Entry, ...]) -> None:
        if ticket.error is None:
            for entry in entries:
                for observer in self._observers:
                    observer.notify(self.key, entry)

    def wait(self, ticket: Ticket) -> None:
        """Block until durable. Raises StoreError or LeaseLost, unless the run may degrade."""
        try:
            ticket.wait()
        except PerdureError as error:
            self.lost(error)

    async def wait_async(self, ticket: Ticket) -> None:
        """As ``wait``, for a task."""
        try:
            await ticket
        except PerdureError as error:
            self.lost(error)

    def lost(self, error: PerdureError) -> None:
        """The store or the lease is gone: stop, or go on without durability where that was asked for."""
        if self._degrade and isinstance(error, StoreError):
            with self.lock:
                if self.durability.durable:
                    self.durability = Durability(False, self.state.current, str(error))
                    log.warning(
                        "run %s goes on WITHOUT durability since step %s: %s",
                        self.key,
                        self.state.current or "(none)",
                        error,
                    )
            return
        with self.lock:
            self.broken = self.broken or error
        log.error("run %s stops: %s What was durable before is kept; run it again to go on.", self.key, error)
        raise error

    def close(self, reason: str) -> None:
        """Refuse further entries: branches that are still running find out at their next step."""
        running.discard(self)
        with self.lock:
            self.broken = self.broken or LeaseLost(f"run {self.key}: {reason}; this branch came too late.")


def _done() -> Ticket:
    ticket = Ticket()
    ticket.done = True
    return ticket
