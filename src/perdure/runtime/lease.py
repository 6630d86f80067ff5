"""Leases between machines: how a process knows that its runs are still its own, and stops in time when they are not.

Where the operating system tells who lives (one machine, a lock that ends with its process) there is nothing to do here.
Across machines nobody can tell a dead process from one that cannot be heard. So a lease ends by itself:

- A store handle that holds runs says every few seconds that it lives (``Store.heartbeat``). The store keeps until when
  that is good, by *its* clock; no clock of a worker takes part. When that time has passed, anybody may take the runs
  over, and the handle is dead for ever, whatever it says later.
- The holder cannot see the store's clock, and a reply may be under way for any time. But it knows when it *sent* its
  last heartbeat that was taken. Counted from there, on a clock that never jumps and goes on while the machine sleeps,
  the store cannot end the lease before ``capabilities.lease`` times 0.75; the holder trusts it for 0.6 of it. The time
  between is what stopping may take, and how much the two clocks may run apart.
- When trust ends, the holder stops what it executes under its leases: code that waits, or begins something new, is
  unwound, tasks of an event loop are cancelled, and nothing of it is appended. (A sync function in a thread cannot be
  stopped from outside. What it returns is not kept.)
- None of this is what keeps a journal sound. A process may be frozen at any point, between looking at its clock and
  writing. So every append carries the epoch of its lease, and the store compares it in the transaction that writes:
  whoever has been replaced, and does not know it, writes nothing. Trust keeps two workers from *working* at one time;
  the epoch keeps two from *writing*, even then.

Two threads: one sends heartbeats, and may be kept waiting by a network that says nothing; one looks at the clock.

Rejected: a lease a run, which costs a write for each run at every heartbeat; a session lock of the server's, which a
connection pooler breaks and which ends with the connection, not with the process; letting the writer's thread send the
heartbeats, which would lose every lease behind one slow commit. Doubtful still: the store's own clock may jump. Then
leases end early or late; the epochs hold.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from math import inf

from perdure.clock import Clock
from perdure.errors import LeaseLost, PerdureError, RetryError
from perdure.stores.base import Store

log = logging.getLogger("perdure")
_BEATS = 3
"""heartbeats in the time that one is trusted: two may be lost"""
_AGAIN = 0.25
"""seconds until a heartbeat that failed is sent again"""
_PATIENCE = 10.0
"""seconds for which the store is asked for the time before that is an error"""
_FRESH = 60.0
"""seconds for which the store's time is known well enough"""


class StoreClock(Clock):
    """The time of a store, carried on by this machine's steady clock: every date and deadline of its runs is in it."""

    def __init__(self, store: Store, base: Clock) -> None:
        self._store, self._base = store, base
        self._ahead, self._asked = 0.0, -inf

    def learn(self, patience: float = 0.0) -> float:
        """Say that this process lives, learn the time, and return the ``uptime`` at which that was sent. Raises
        LeaseLost; StoreBusy, when the store has not answered for ``patience`` seconds."""
        end = self._base.monotonic() + patience
        while True:
            asked = self._base.uptime()
            try:
                told = self._store.heartbeat()
            except RetryError:
                if self._base.monotonic() >= end:
                    raise
                self._base.sleep(_AGAIN)
                continue
            self._ahead, self._asked = told - (asked + self._base.uptime()) / 2, asked
            return asked

    def now(self) -> float:
        if self._base.uptime() - self._asked > _FRESH:
            self.learn(_PATIENCE)
        return round(self._base.uptime() + self._ahead, 6)

    def monotonic(self) -> float:
        return self._base.monotonic()

    def uptime(self) -> float:
        return self._base.uptime()

    def wait(self, bell: threading.Event, seconds: float) -> None:
        self._base.wait(bell, seconds)

    async def wait_async(self, bell: asyncio.Event, seconds: float) -> None:
        await self._base.wait_async(bell, seconds)

    def new_id(self) -> str:
        return self._base.new_id()


def clock_of(store: Store, base: Clock) -> Clock:
    """The clock by which runs of ``store`` go: the machine's, unless the store has many machines."""
    return base if store.capabilities.lease == inf else StoreClock(store, base)


class Keeper:
    """Keeps the leases of a store handle good, and calls ``lost`` when they cannot be trusted any more; from then on it
    is called again and again until they can."""

    def __init__(self, clock: StoreClock, trust: float, lost: Callable[[LeaseLost], None]) -> None:
        self._clock, self._trust, self._lost = clock, trust, lost
        self._until = clock.learn(_PATIENCE) + trust
        """``uptime`` until which the leases are trusted"""
        self._closed = threading.Event()
        for work in (self._beat, self._watch):
            threading.Thread(target=work, name=f"perdure-lease{work.__name__}", daemon=True).start()

    def close(self) -> None:
        """Stop saying that this process lives."""
        self._closed.set()

    def _beat(self) -> None:
        pause = self._trust / _BEATS
        while not self._wait(pause):
            try:
                self._until = self._clock.learn() + self._trust
                pause = self._trust / _BEATS
            except LeaseLost as late:
                self._end(late)
                pause = 0.0
            except PerdureError as problem:
                log.debug("a heartbeat failed and is sent again: %s", problem)
                pause = _AGAIN

    def _watch(self) -> None:
        left = self._trust
        while not self._wait(left):
            left = self._until - self._clock.uptime()
            if left <= 0:
                self._end(
                    LeaseLost(
                        "The store could not be reached in time to say that this process lives. Its runs are stopped "
                        "here, since others may take them up; what was acknowledged is kept.",
                        hint="See that the store can be reached, then run again.",
                    )
                )
                left = self._trust / 10

    def _end(self, why: LeaseLost) -> None:
        if not self._closed.is_set():
            self._lost(why)

    def _wait(self, seconds: float) -> bool:
        """Whether it was closed in that time."""
        self._clock.wait(self._closed, seconds)
        return self._closed.is_set()
