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
from contextlib import contextmanager, suppress
from math import inf
from typing import Any, NamedTuple

from msgspec.structs import replace

from perdure import states
from perdure.clock import Clock
from perdure.errors import CorruptStore, LeaseHeld, PerdureError
from perdure.fold import State
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
"""seconds after which it is executed beside others all the same, because this worker has not been idle"""
_SOON = 0.5
"""seconds until a worker looks again that has left a suspect alone"""
_LONGEST = 60.0
"""seconds after which it looks although it was told of nothing: news can get lost"""


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
    held: bool = False
    """somebody holds runs that this worker could execute, and may be dead"""


class Search:
    """One worker looking for runs, time and again."""

    def __init__(self, clock: Clock, offer: Offer) -> None:
        self._clock, self._offer = clock, offer
        self._wanted = Which(queues=offer.queues, flows=tuple(offer.flows))
        self._left: dict[RunKey, int] = {}
        """runs that could not be taken up, and their sequence then: left alone until something about them changes"""
        self._spared: dict[RunKey, float] = {}
        """since when suspects have been left alone"""

    def leave(self, key: RunKey, seq: int, why: Exception) -> None:
        """Do not take up a run again as it is."""
        self._left[key] = seq
        log.error("run %s is left alone: %s", key, why)

    def take(self, store: Store, limit: int, busy: bool) -> Taken:
        """Claim up to ``limit`` runs. ``busy``: the worker executes others. What was claimed is given back if anything
        fails. Raises StoreError, RetryError."""
        runs: list[tuple[Lease, RunMeta]] = []
        try:
            return self._take(store, limit, busy, runs)
        except BaseException:
            for lease, _ in runs:
                with suppress(PerdureError):
                    store.release(lease)
            raise

    def _take(self, store: Store, limit: int, busy: bool, runs: list[tuple[Lease, RunMeta]]) -> Taken:
        held = self._are_held(store)  # looked at first: whatever ends after this is among those that are free now
        now = self._clock.now()
        rows = self._fitting(store, limit, now)
        suspects = {row.key for row in rows if self._is_suspect(row, now)}
        pause = _SOON if suspects else inf
        full: set[str] = set()
        for row in sorted(rows, key=lambda row: row.key not in suspects) if not busy else rows:
            if len(runs) == limit or (row.key in suspects and (busy or runs)):
                continue
            if row.limits and row.queue in full:
                continue
            until = self._claim(store, row, runs)
            if until:
                if row.limits:
                    full.add(row.queue)
                pause = min(pause, until - now)
            elif runs and row.key in suspects:
                return Taken(runs, 0.0, alone=True)
        if len(runs) == limit:
            return Taken(runs, 0.0)
        return self._rest(store, runs, pause, now, held)

    def _claim(self, store: Store, row: RunMeta, runs: list[tuple[Lease, RunMeta]]) -> float:
        """Claim a run; if that cannot be now, when to look again."""
        with _allowed(store, self._clock, row) as until:
            if until == inf and store.capabilities.lease < inf:
                return self._clock.now() + store.capabilities.lease / 4  # who dies in that queue tells nobody
            if until:
                return until
            try:
                runs.append((store.claim(row.key), row))
            except LeaseHeld:
                return self._clock.now() + _LOCKED
            except CorruptStore as damage:
                self.leave(row.key, row.seq, damage)
        return 0.0

    def _rest(self, store: Store, runs: list[tuple[Lease, RunMeta]], pause: float, now: float, held: bool) -> Taken:
        """There is room for more: how long until a run may be due by a date, or its holder found dead."""
        soon = store.runs(replace(self._wanted, later=now, limit=1))
        pause = min(pause, *(row.wake - now for row in soon), _LONGEST)
        return Taken(runs, max(0.0, min(pause, store.capabilities.lease / 4 if held else inf)), held=held)

    def _are_held(self, store: Store) -> bool:
        """Whether somebody holds runs that this worker could execute, and would tell nobody of his death."""
        return store.capabilities.lease < inf and bool(store.runs(replace(self._wanted, active=inf, limit=1)))

    def _fitting(self, store: Store, limit: int, now: float) -> list[RunMeta]:
        """Runs that the worker may execute, the most urgent first: more than ``limit``, or all there are."""
        most = limit + _MORE
        while True:
            rows = store.runs(replace(self._wanted, due=now, limit=most))
            found = [row for row in rows if self._offer.fits(row) and self._left.get(row.key) != row.seq]
            if len(found) > limit or len(rows) < most:
                return found
            most *= 4

    def _is_suspect(self, row: RunMeta, now: float) -> bool:
        """Whether a run has crashed so often that it is to be executed alone, and has not waited for that too long."""
        if row.status != states.RUNNING or row.crashes + 1 < _SUSPECT:
            self._spared.pop(row.key, None)
            return False
        return now - self._spared.setdefault(row.key, now) < _SPARED


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


def may_go_on(state: State, now: float) -> bool:
    """Whether a run that nobody executes is to be executed by whoever comes: it can go on, or is to be cleaned up after
    because somebody cancelled it."""
    if state.stop is not None and state.stop.cancel and state.status not in states.RUN_OVER:
        return True
    if state.status in states.RUN_SUSPENDED or state.status == states.QUEUED:
        return 0 < state.wake <= now
    return state.status in states.RUN_WAITS_FOR_WORKER or state.status == states.RUNNING
