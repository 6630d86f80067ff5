"""Which run a worker takes up next: the rules, once, for every store.

A store shows runs that nobody holds and that may go on (queued and due, let go on, interrupted, crashed, waiting for
a date that has come), the most urgent first. A worker claims them one after the other. A claim is atomic: who comes
second goes on to the next one.

A run that has crashed its process twice in a row is *suspect*: perhaps it did that, perhaps another that was executed
beside it. A worker executes it alone, so that only the one that does it is given up (poison.py), and others lose no
more time with it than they must.

Limits of a queue hold for all workers together. Whoever wants a run of a limited queue holds the queue's lock while it
counts and claims. The lock is a lease like that of a run, so it ends with its holder, and it works in every store. What
is counted are the rows of the queue's runs: those that somebody holds, and those that began in the time of the rate.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf
from typing import Any, NamedTuple

from msgspec.structs import replace

from perdure import states
from perdure.clock import Clock
from perdure.errors import LeaseHeld
from perdure.model import OWN, Lease, Limits, RunKey, RunMeta
from perdure.runtime.steps import Function
from perdure.stores.base import Store, Which

log = logging.getLogger("perdure")
_MORE = 20
"""candidates that are looked at beyond those that are wanted: others take some, and limits forbid some"""
_LOCKED = 0.05
"""seconds until a queue is looked at again that somebody else was looking at"""


_SUSPECT = 2
"""crashes in a row after which a run is executed alone"""
_SPARED = 60.0
"""seconds after which it is executed beside others all the same, because no worker has been idle"""
_SOON = 0.5
"""seconds until a worker looks again that has left a suspect alone"""


class Offer(NamedTuple):
    """What a worker can execute."""

    flows: Mapping[str, Function[..., Any]]
    queues: tuple[str, ...] = ()
    """() for all, and for runs that were never submitted to any"""

    def fits(self, row: RunMeta) -> bool:
        """Whether this worker may execute a run: it has the flow in a version that goes on with the run's, and the run
        is not for the life of another run to go on with."""
        flow = self.flows.get(row.flow)
        if flow is None or (row.parent and not row.queue):
            return False
        return row.version == flow.version or row.version in flow.accepts


class Taken(NamedTuple):
    """Runs that were claimed, as they were listed."""

    runs: list[tuple[Lease, RunMeta]]
    pause: float
    """seconds for which there is nothing to look for, unless something happens"""
    alone: bool = False
    """the one that was claimed is to be executed alone"""


def take(
    store: Store, clock: Clock, offer: Offer, limit: int, passed_over: Mapping[RunKey, int], busy: bool = False
) -> Taken:
    """Claim up to ``limit`` runs. ``passed_over``: sequences of runs that could not be taken up as they are; ``busy``:
    the worker executes others."""
    now = clock.now()
    rows = _fitting(store, offer, limit, passed_over, now)
    suspects = [row for row in rows if _is_suspect(row, now)]
    alone = bool(suspects) and not busy
    wanted = suspects[:1] if alone else [row for row in rows if row not in suspects]
    runs: list[tuple[Lease, RunMeta]] = []
    pause = _SOON if suspects else inf
    full: set[str] = set()
    for row in wanted:
        if len(runs) == limit:
            return Taken(runs, 0.0)
        if row.limits and row.queue in full:
            continue
        with _allowed(store, clock, row) as until:
            if until:
                full.add(row.queue)
                pause = min(pause, until - now)
                continue
            try:
                runs.append((store.claim(row.key), row))
            except LeaseHeld:
                pause = min(pause, _LOCKED)
    pause = min(pause, _next(store, offer, now))
    return Taken(runs, max(0.0, pause), alone and bool(runs))


def _fitting(store: Store, offer: Offer, limit: int, passed_over: Mapping[RunKey, int], now: float) -> list[RunMeta]:
    """Runs that the worker may execute, the most urgent first: more than ``limit``, or all there are."""
    most = limit + _MORE
    while True:
        rows = store.runs(Which(due=now, queues=offer.queues, flows=tuple(offer.flows), limit=most))
        found = [row for row in rows if offer.fits(row) and passed_over.get(row.key) != row.seq]
        if len(found) > limit or len(rows) < most:
            return found
        most *= 4


def _is_suspect(row: RunMeta, now: float) -> bool:
    return row.status == states.RUNNING and row.crashes + 1 >= _SUSPECT and now - row.updated < _SPARED


def _next(store: Store, offer: Offer, now: float) -> float:
    """Seconds until a run may be due by a date, or its holder found dead."""
    can = store.capabilities
    mine = Which(queues=offer.queues, flows=tuple(offer.flows), limit=1)
    pause = min((row.wake - now for row in store.runs(replace(mine, later=now))), default=inf)
    if can.lease < inf and store.runs(replace(mine, active=inf)):
        pause = min(pause, can.lease / 4)  # who dies tells nobody
    return pause


@contextmanager
def _allowed(store: Store, clock: Clock, row: RunMeta) -> Iterator[float]:
    """While the block claims a run, nobody else claims one of its queue. Gives when to look again (inf: when another
    run ends), or 0 if the run may begin now."""
    if not row.limits:
        yield 0.0
        return
    try:
        lock = store.claim(RunKey(f"{OWN}queue/{row.queue}"))
    except LeaseHeld:
        yield clock.now() + _LOCKED
        return
    try:
        now = clock.now()
        yield room(store.runs(Which(active=now - row.limits.per, queues=(row.queue,))), row.limits, now)
    finally:
        store.release(lock)


def room(active: Sequence[RunMeta], limits: Limits, now: float) -> float:
    """When another run of a queue may begin, given those that are executed or have begun within ``limits.per``
    seconds: 0 for now, inf for when one of them ends."""
    executed = [row for row in active if row.holder is not None]
    if limits.concurrency and len(executed) >= limits.concurrency:
        return inf
    begun = sorted(max(row.begun, row.holder.since if row.holder is not None else 0.0) for row in active)
    within = [at for at in begun if at > now - limits.per]
    if limits.rate and len(within) >= limits.rate:
        return within[-limits.rate] + limits.per
    return 0.0


def may_go_on(status: str | None, wake: float, now: float) -> bool:
    """Whether a run in that state, which nobody executes, is to be executed by whoever comes."""
    if status in states.RUN_SUSPENDED:
        return 0 < wake <= now
    return status in states.RUN_WAITS_FOR_WORKER or status == states.RUNNING
