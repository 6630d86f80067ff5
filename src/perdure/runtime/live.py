"""A run in the hands of this process: its state, its lease, and the way of its entries to the store."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from math import inf
from typing import TYPE_CHECKING

import msgspec

from perdure import inbox, snapshot, states
from perdure import journal as j
from perdure.clock import Clock
from perdure.errors import Halted, LeaseLost, PerdureError, StoreError
from perdure.fold import State
from perdure.guard import Guard
from perdure.hooks import Observer
from perdure.life import Life
from perdure.model import Lease, RunKey
from perdure.runtime import past
from perdure.runtime.outputs import Outputs
from perdure.runtime.strands import Strands, is_late, strand_of
from perdure.runtime.tickets import Item, Ticket
from perdure.runtime.undisturbed import undisturbed
from perdure.runtime.writer import Writer
from perdure.stores.base import Store
from perdure.waits import Dropped

if TYPE_CHECKING:
    from perdure.runtime.lives import Lives

log = logging.getLogger("perdure")

running: set[LiveRun] = set()
"""runs in the hands of this process"""

cleaning: ContextVar[bool] = ContextVar("perdure_cleaning", default=False)
"""the running code is a clean-up of a run that is being cancelled"""

_NEW = (j.StepStarted, j.StepPending, j.StepCopied, j.BranchTaken, j.RunCompleted)
"""what is not added any more to a run that is being stopped: anything new"""


_ENDS = (j.RunCompleted, j.RunFailed, j.RunPaused, j.RunSuspended, j.RunCancelled, j.RunInterrupted)
_TELLING = (j.StepStarted, j.StepPending, j.StepCopied, *_ENDS)
"""with these it is said what was reused before"""


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
        guard: Guard,
        renew: bool = False,
        stay: float = 0.0,
    ) -> None:
        self.writer = writer
        self.lives = lives
        """what began it, and can begin others on the same store"""
        self.lease = lease
        self.state = state
        self.clock = clock
        self.outputs = outputs
        self.durability = Durability(True)
        self.deaf = False
        """its inbox cannot be read"""
        self.lock = threading.RLock()
        self.broken: BaseException | None = None
        """why nothing can be appended any more"""
        self.halt = ""
        """why its code is being unwound: "suspended", "paused", "cancelled" or "interrupted"; "" if it is not"""
        self.unwinding = False
        """some of its code has been told"""
        self.stopped_with: j.StopRequested | None = None
        """the order to stop"""
        self.with_parent = False
        """that was to the run that began it"""
        self.supervised: Callable[[], bool] = lambda: False
        """whether a worker executes it, and goes on: nothing outside of its flow can be the reason for its end then"""
        self.cleanup_error: BaseException | None = None
        """how the first clean-up that failed did"""
        self.task: asyncio.Task[object] | None = None
        """in which an async flow is executed"""
        self._cancels = 0
        """how often its task was cancelled by us"""
        self.strands = Strands(self, stay)
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
            guard=guard,
            renew=renew,
        )
        self._degrade = degrade
        snapshots = durability != "exit" and not degrade and writer.can.snapshots is not None
        self._next_snapshot = snapshot.next_after(state.snapshot) if snapshots else inf
        """the sequence behind which one is due; never where what was done may be needed in memory, without the store"""
        self._observers = tuple(observers)
        running.add(self)
        self._held: list[tuple[int, bytes, dict[str, bytes], tuple[Callable[[], None], ...]]] = []

    @property
    def key(self) -> RunKey:
        return self.state.key

    @property
    def listens(self) -> bool:
        """Whether what others post can reach it."""
        return self.broken is None and self.durability.durable and not self.deaf

    def emit(self, entries: Sequence[j.Entry], blobs: dict[str, bytes] | None = None, last: bool = False) -> Ticket:
        """Apply entries to the state and queue them. ``last`` flushes what durability="exit" has held back.

        Raises what broke the run, if something has.
        """
        with self.lock:
            if self.broken is not None:
                raise self.broken
            if is_late(self):
                raise Dropped
            self.writer.check()
            if self.halt and not cleaning.get():
                self._refuse(entries)
            if self.life.orphans and any(isinstance(entry, _NEW) for entry in entries):
                self._close_orphans()
            if entries and type(entries[0]) is j.StepPending and strand_of(self).dropped:
                raise Dropped  # nobody needs an answer: it is not even asked
            with undisturbed():
                return self._add(entries, blobs or {}, last)

    def _add(self, entries: Sequence[j.Entry], blobs: dict[str, bytes], last: bool) -> Ticket:
        """Apply entries and queue them: both, or the run is broken."""
        if self.life.unsaid and any(isinstance(entry, _TELLING) for entry in entries):
            entries = (*self.life.say_reused(), *entries)
        before: list[Callable[[], None]] = []
        state = self.state
        seq, key = state.seq, state.key
        records = []
        try:
            for entry in entries:
                entry.seq, entry.at = state.seq + 1, self.clock.now()
                state.apply(entry)
                record = j.encode(key, entry)
                records.append(record)
                state.size += len(record)
                if self.outputs is not None:
                    before += self.outputs.work(state, entry, blobs)
            body = snapshot.take(state) if state.seq > self._next_snapshot and self._may_be_kept() else b""
        except BaseException as error:  # the state may be ahead of the journal: nothing may follow
            self.broken = error
            raise
        ticket = self._queue(seq, records, blobs, tuple(before), tuple(entries), last)
        if body:
            state.snapshot = state.seq
            self._next_snapshot = snapshot.next_after(state.seq)
            past.keep(self.writer, self.lease, state.seq, body, records[-1])
        return ticket

    def _may_be_kept(self) -> bool:
        return self.durability.durable and self.life.rehearsal is None

    def _queue(
        self,
        seq: int,
        records: list[bytes],
        blobs: dict[str, bytes],
        before: tuple[Callable[[], None], ...],
        entries: tuple[j.Entry, ...],
        last: bool,
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
        ticket = self.writer.submit(
            Item(lease=self.lease, seq=seq, records=tuple(records), meta=self.state.meta(), blobs=blobs, before=before)
        )
        if self._observers:
            ticket.then(lambda: self._notify(ticket, entries))
        return ticket

    def _emit_quietly(self, entry: j.Entry) -> None:
        self.emit((entry,))

    def _notify(self, ticket: Ticket, entries: tuple[j.Entry, ...]) -> None:
        if ticket.error is None:
            for entry in entries:
                for observer in self._observers:
                    observer.notify(self.key, entry)

    def _refuse(self, entries: Sequence[j.Entry]) -> None:
        """Raises Halted for what must not be added to a run that is being stopped: anything new."""
        for entry in entries:
            if isinstance(entry, _NEW) and not (self.halt == "cancelled" and self._goes_inside(entry)):
                self.unwinding = True
                raise Halted
            if isinstance(entry, j.StepCompleted | j.StepFailed) and self.state.waits_inside(entry.step):
                raise Halted  # its code has caught what was to unwind it

    def _goes_inside(self, entry: j.Entry) -> bool:
        """Whether a step of a cancelled run is begun again because work inside it had begun: that may have to be
        cleaned up after."""
        step = self.state.steps.get(entry.step) if isinstance(entry, j.StepStarted) else None
        return step is not None and step.identity in self.state.scopes

    def check_halt(self) -> None:
        """Raises Halted if the run is being stopped, and this is no clean-up."""
        if self.halt and not cleaning.get():
            self.unwinding = True
            raise Halted

    # -- what comes from outside ------------------------------------------------------------------------------------

    def take(self, posts: Iterable[bytes]) -> None:
        """Move posts of the inbox into the journal, and do what they ask for."""
        with self.lock:
            if self.broken is not None or self.state.status != states.RUNNING:
                return
            for entry in inbox.moved(self.state, posts):
                self.emit((entry,))
            self.strands.arrived()
            if self.state.stop is not None:
                self._halt("cancelled" if self.state.stop.cancel else "paused", self.state.stop)
            elif self.halt == "paused" and not self.unwinding and not self.with_parent:
                self.halt = ""  # let go on before anything of it was stopped

    def post(self, store: Store, post: j.Posted) -> None:
        """Put a post of our own into the inbox, unless something else came first; take whatever is there."""
        if self.broken is not None or self.state.status != states.RUNNING:
            return
        post.posted, post.by = self.clock.now(), "deadline" if isinstance(post, j.QuestionClosed) else ""
        if store.post(self.key, self.state.posts + 1, j.encode(self.key, post)):
            self.take((j.encode(self.key, post),))
        else:
            self.take(store.posts({self.key: self.state.posts}).get(self.key, ()))

    def suspend(self) -> None:
        """Nothing of the run can move: unwind its code."""
        self._halt("suspended")

    def interrupt(self) -> None:
        """Nobody waits for the run any more: unwind its code where it waits or begins something new."""
        self._halt("interrupted")

    def _halt(self, why: str, stop: j.StopRequested | None = None, with_parent: bool = False) -> None:
        """What is being unwound for another reason goes on so: its clean-ups could not be made up for."""
        with self.lock:
            cancels = why == "cancelled" and self.halt not in ("cancelled", "suspended")
            if not self.halt or (self.halt == "paused" and cancels and not self.unwinding):
                self.halt, self.stopped_with, self.with_parent = why, stop, with_parent
            self.strands.ring()
            task = self.task
        if task is not None and cancels:
            self._cancel_soon(task)
        if stop is not None:
            for other in [run for run in list(running) if run.state.attribution.parent == str(self.key)]:
                other._halt(why, stop, with_parent=True)

    def _cancel_soon(self, task: asyncio.Task[object]) -> None:
        with suppress(RuntimeError):  # the loop is closed, and nothing is left to cancel
            task.get_loop().call_soon_threadsafe(self._cancel_task)

    def _cancel_task(self) -> None:
        if self.task is not None:  # else the flow has ended in the meantime
            self._cancels += 1
            self.task.cancel()

    def enter_task(self) -> None:
        """The running task executes the flow."""
        self.task = asyncio.current_task()

    def leave_task(self) -> None:
        """It does not any more: it is a task of the user's, and our cancelling it is no concern of his."""
        task, self.task = self.task, None
        for _ in range(self._cancels if task is not None else 0):
            task.uncancel()  # type: ignore[union-attr]

    @property
    def cancelled_task(self) -> bool:
        """Whether a cancellation of the task that executes the flow was ours."""
        return self._cancels > 0

    def close_stale(self) -> None:
        """Close what nobody waits for any more: what the code of this life did not ask for, or has given up."""
        waits, life = self.state.waits, self.life
        for number in [n for n in waits.steps if n not in life.asked or n in life.orphans]:
            closing = j.QuestionClosed(step=number, question=waits.question_id(number))
            self.writer.call(partial(self.post, self.writer.store, closing)).result()

    def _close_orphans(self) -> None:
        """The code goes on although it was waiting: it has given that up (a time limit of its own). Not so if it only
        tidies up because somebody cancels the task that executes the run."""
        while self.life.orphans and not (self.task is not None and self.task.cancelling()):
            number = self.life.orphans.pop()
            if number in self.state.waits.steps:
                closing = j.QuestionClosed(step=number, question=self.state.waits.question_id(number))
                self.writer.call(partial(self.post, self.writer.store, closing))

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

    def cut_off(self, number: int) -> None:
        """The body of a step is too late: the steps inside it that are executed are interrupted."""
        with self.lock:
            running = self.state.running_inside(number)
            ended = [j.StepInterrupted(step=s.number, attempt=len(s.attempts), reason="StepTimeout") for s in running]
            if ended:
                self.emit(ended)

    def break_off(self, error: PerdureError) -> None:
        """Its state is not what the journal tells: nothing can be appended any more."""
        with self.lock:
            self.broken = self.broken or error

    def lose(self, error: LeaseLost) -> None:
        """Its lease is gone, or cannot be trusted any more: stop what can be stopped. Any thread may call this."""
        with self.lock:
            if self.broken is not None:
                return
            self.broken = error
            task = self.task
        log.error("run %s is stopped here: %s", self.key, error)
        self._halt("interrupted")
        if task is not None:
            self._cancel_soon(task)

    def close(self, reason: str) -> None:
        """Refuse further entries: branches that are still running find out at their next step."""
        running.discard(self)
        with self.lock:
            self.broken = self.broken or LeaseLost(f"run {self.key}: {reason}; this branch came too late.")
            self.strands.ring()


def _done() -> Ticket:
    ticket = Ticket()
    ticket.done = True
    return ticket
