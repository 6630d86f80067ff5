"""When is a run suspended? When nothing of it can move: every strand waits for something from outside.

A *strand* is a piece of a run's code that goes on by itself: the flow, and each branch of a fan-out. It runs, or it is
*parked* (a question, a signal, a timer, a rate limit), or it *joins* the strands that it began. ``movable`` computes
from that tree whether anything may still happen; it is asked whenever a strand parks, and the parked ones are rung to
ask it again when another ends.

Tasks made behind our back (a task group, asyncio.gather) become strands when they first ask for something. What a
strand with such tasks awaits cannot be seen: it counts as joining them, unless it executes a step that was begun since.

A date that is near is waited for in the process (``NEAR``): to end a life and begin another costs more. So are rate
limits and retries, however long: whoever let a crew run overnight wants it to go on by itself. They are durable all the
same, and the process may end at any time.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf
from typing import TYPE_CHECKING, Final, TypeVar

from perdure.clock import Clock
from perdure.errors import Halted
from perdure.waits import Dropped

if TYPE_CHECKING:
    from perdure.runtime.live import LiveRun

T = TypeVar("T")
NEAR: Final = 60.0
"""seconds; a run whose next date is not further away stays in its process"""
_SLICE: Final = 60.0
"""longest sleep at a stretch, seconds: a wall clock that jumps is noticed within it"""
_SETTLE: Final = 0.02
"""seconds that tasks of others get to show themselves, before a run with such tasks is suspended"""


_STRAND: ContextVar[Strand | None] = ContextVar("perdure_strand", default=None)
_DEPTH: ContextVar[int] = ContextVar("perdure_depth", default=0)
"""how many steps the running code is in; a task keeps that of where it was made"""


class Strand:
    """One strand; it belongs to the group in which it was begun. All changes happen under the lock of its run."""

    def __init__(self, run: LiveRun, group: Group | None) -> None:
        self.run, self.group = run, group
        self.task: asyncio.Task[object] | None = None
        self.thread = 0
        """in which it runs: a task's too, or one that was made for a part of it"""
        self.passing = False
        """a thread that somebody else made: it counts only as long as it waits"""
        self.begun = False
        self.groups: set[Group] = set()
        """those in which it began others that have not ended"""
        self.joins: Group | None = None
        """it waits for these: ``group.wants_all``, or any"""
        self.parked: Parked | None = None
        self.dropped = False
        self.depth = _DEPTH.get()
        """how many steps its code is in, one inside the other"""

    def begin(self) -> None:
        """It runs from now on, in this task or thread."""
        with self.run.lock:
            self.begun = True
            self.task, self.thread = _task(), threading.get_ident()
        _STRAND.set(self)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """The block, in a thread that was made for it, executes a part of it."""
        before, self.thread = self.thread, threading.get_ident()
        try:
            yield
        finally:
            if self.thread == threading.get_ident():  # else it was taken back
                self.thread = before

    def join(self) -> None:
        """It belongs to its group from now on."""
        if self.group is not None and self.group.owner is not None:
            self.group.members.add(self)
            self.group.owner.groups.add(self.group)

    def end(self) -> None:
        """It has come to its end, or is not going to run."""
        group = self.group
        assert group is not None
        with self.run.lock:
            if self in group.members:
                group.members.discard(self)
                group.news += 1
                if not group.members and group.owner is not None:
                    group.owner.groups.discard(group)
                self.run.strands.changed()

    def movable(self) -> bool:
        """Whether it, or one of those that it began, may still do something by itself."""
        others = any(member.movable() for group in self.groups for member in group.members if member.begun)
        if self.parked is not None:
            return self.parked.is_up or others
        awaited = [g for g in self.groups if g.foreign and g.depth >= self.depth]
        if self.joins is not None:
            awaited = [self.joins]
        if not awaited or any(group.is_over for group in awaited):
            return True
        return others

    def drop(self) -> None:
        """Nobody needs it any more, nor what it began: what is parked there is woken, to give up."""
        self.dropped = True
        if self.parked is not None:
            self.parked.ring()
        for group in self.groups:
            for member in group.members:
                member.drop()


class Group:
    """Strands that were begun together. Without a run it keeps no account."""

    def __init__(self, run: LiveRun | None, limit: int | None = None, foreign: bool = False) -> None:
        self.run, self.limit, self.foreign = run, limit or inf, foreign
        """``limit``: how many of them may run at a time; ``foreign``: tasks that somebody else made"""
        self.owner = strand_of(run) if run is not None else None
        self.members: set[Strand] = set()
        self.news = 0
        """how many ended and were not looked at"""
        self.wants_all = False
        self.depth = _DEPTH.get()
        """where they were begun: see Strand"""

    def strand(self) -> Strand | None:
        """One more."""
        if self.run is None or self.owner is None:
            return None
        made = Strand(self.run, self)
        with self.run.lock:
            made.join()
        return made

    @property
    def is_over(self) -> bool:
        """Whether its owner has something to go on with, or another member is about to begin."""
        running = sum(member.begun for member in self.members)
        return (
            not self.members
            or (self.news > 0 and not self.wants_all and not self.foreign)
            or running < min(self.limit, len(self.members))
        )

    @contextmanager
    def awaited(self, wants_all: bool = False) -> Iterator[None]:
        """While the block runs, the owner waits for all of them, or for any."""
        if self.run is None or self.owner is None:
            yield
            return
        with self.run.lock:
            outer, self.owner.joins, self.wants_all = self.owner.joins, self, wants_all
            self.run.strands.changed()
        try:
            yield
        finally:
            with self.run.lock:
                self.owner.joins = outer

    def looked(self, ended: int = 1) -> None:
        """So many that ended were taken note of."""
        if self.run is not None:
            with self.run.lock:
                self.news -= ended
                self.run.strands.changed()

    def drop(self) -> None:
        """None of them is needed any more."""
        if self.run is not None:
            with self.run.lock:
                for member in self.members:
                    member.drop()


def lending(strand: Strand | None, work: Callable[[], T]) -> Callable[[], T]:
    """The same work, to be done in a thread that is made for it, as a part of the strand."""
    if strand is None:
        return work

    def lent() -> T:
        with strand.lent():
            return work()

    return lent


_LOAN: ContextVar[Loan | None] = ContextVar("perdure_loan", default=None)


class Loan:
    """A part of the running strand's work, for a thread that is made for it, until it ends or is taken back."""

    def __init__(self, run: LiveRun) -> None:
        self.strand, self._outer = strand_of(run), _LOAN.get()
        self._is_late = False

    def lent(self, work: Callable[[], T]) -> Callable[[], T]:
        """The work, to be done in that thread."""

        def within() -> T:
            _LOAN.set(self)
            return work()

        return lending(self.strand, within)

    def take_back(self) -> None:
        """The body in that thread is too late: it records nothing more, what it has parked ends, and the strand goes on
        in this thread."""
        run = self.strand.run
        with run.lock:
            self._is_late = True
            self.strand.thread = threading.get_ident()
            parked = self.strand.parked
            if parked is not None:
                parked.too_late = True
                parked.ring()
                run.strands.unpark(parked)

    @property
    def is_late(self) -> bool:
        return self._is_late or (self._outer is not None and self._outer.is_late)


def is_late(run: LiveRun) -> bool:
    """Whether the running code belongs to the body of a step that was taken back: nobody needs what it does."""
    loan = _LOAN.get()
    return loan is not None and loan.strand.run is run and loan.is_late


class Deeper:
    """From when it is made until ``end``, this task executes a step of ``run``, and records it."""

    __slots__ = ("_before", "_run", "_strand", "_token")

    def __init__(self, run: LiveRun) -> None:
        self._run, self._strand, before = run, strand_of(run), _DEPTH.get()
        self._token = _DEPTH.set(before + 1)
        self._before, self._strand.depth = min(self._strand.depth, before), before + 1

    def end(self) -> None:
        # a body that is too late ends after those around it
        self._strand.depth = min(self._strand.depth, self._before)
        if self._run.strands.parked:
            with self._run.lock:
                self._run.strands.changed()
        _DEPTH.reset(self._token)


def _task() -> asyncio.Task[object] | None:
    loop = asyncio._get_running_loop()
    return asyncio.current_task(loop) if loop is not None else None


def requester() -> Hashable:
    """Who asks: the running task, or the thread where there is no event loop."""
    return _task() or threading.get_ident()


def strand_of(run: LiveRun) -> Strand:
    """The strand of the running code. A task, or thread, that somebody else made becomes one."""
    strand = _STRAND.get()
    if strand is None or strand.run is not run:
        strand = run.strands.root
    task, thread = _task(), threading.get_ident()
    if strand.thread == thread if task is None else strand.task is task or strand.task is None:
        return strand
    with run.lock:
        group = next((group for group in strand.groups if group.foreign and group.depth == _DEPTH.get()), None)
        if group is None:
            group = Group(None, foreign=True)
            group.owner = strand
        made = Strand(run, group)
        made.begun, made.task, made.thread = True, task, thread
        if task is None:  # nobody tells when a thread ends
            made.passing = True
            return made
        made.join()
    _STRAND.set(made)  # in the context of that task only
    task.add_done_callback(lambda _: made.end())
    return made


class Parked:
    """A strand that waits: until a date (0: none), or until something has ``come`` from outside."""

    def __init__(self, strand: Strand, until: float, come: Callable[[], bool] | None, clock: Clock) -> None:
        self.strand, self.come = strand, come
        self.until = until
        self.clock = clock
        now = max(clock.now(), strand.run.state.updated)
        self.end = clock.monotonic() + until - now if until else inf
        self.bell = threading.Event()
        self.waker: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        if _task() is not None:
            self.waker, self._loop = asyncio.Event(), asyncio.get_running_loop()
        self._seen = -1
        self.too_late = False
        """the body that waits has reached its timeout"""

    def left(self) -> float:
        """Seconds until its date. Reached when the wall clock says so (a laptop that slept, a clock set forward), or
        when as much time has passed as it was meant to take (a clock set back) (C9); inf without one.
        """
        return min(self.until - self.clock.now(), self.end - self.clock.monotonic()) if self.until else inf

    @property
    def is_up(self) -> bool:
        """Whether there is something to look at."""
        return self.strand.dropped or self.left() <= 0 or (self.come is not None and self.come())

    def ring(self) -> None:
        """Look again."""
        self.bell.set()
        if self._loop is not None and self.waker is not None:
            try:
                self._loop.call_soon_threadsafe(self.waker.set)
            except RuntimeError:  # the loop is closed, and nobody waits any more
                pass

    def pause(self) -> float | None:
        """For how many seconds to wait before looking again; None: the wait is over.

        Raises Halted when the run was suspended, stopped or cancelled; Dropped when the branch, or a body that is too
        late, is not needed.
        """
        run = self.strand.run
        with run.lock:
            if run.broken is not None:
                raise run.broken
            run.check_halt()
            if self.too_late or self.strand.dropped:
                raise Dropped
            if self.is_up:
                return None
            self.bell.clear()
            if self.waker is not None:
                self.waker.clear()
            return min(self.left(), _SLICE, run.strands.patience(self))


class Strands:
    """The strands of one run, and how long it stays in this process while none of them can move."""

    def __init__(self, run: LiveRun, stay: float) -> None:
        self.run = run
        self.root = Strand(run, None)
        self.stay = stay
        """seconds for which the run waits in this process for anything but a near date"""
        self.parked: set[Parked] = set()
        self._since: float | None = None
        """since when nothing can move, by the steady clock"""
        self._version = 0

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The block, in this task or thread, executes the flow."""
        token = _STRAND.set(self.root)
        self.root.begun, self.root.task, self.root.thread = True, _task(), threading.get_ident()
        try:
            yield
        finally:
            _STRAND.reset(token)

    def park(self, until: float, come: Callable[[], bool] | None) -> Parked:
        """The running strand waits. Use ``unpark`` at the end, whatever happens."""
        with self.run.lock:
            strand = strand_of(self.run)
            if strand.passing:
                strand.join()
            strand.parked = Parked(strand, until, come, self.run.clock)
            self.parked.add(strand.parked)
            self._version += 1
            return strand.parked

    def unpark(self, parked: Parked) -> None:
        with self.run.lock:
            if parked.strand.parked is parked:
                parked.strand.parked = None
            self.parked.discard(parked)
            self._version += 1
            self._since = None
            if parked.strand.passing:
                parked.strand.end()

    def changed(self) -> None:
        """A strand ended, or what it joins did: somebody who is parked asks again whether anything can move."""
        self._version += 1
        for parked in self.parked:
            parked.ring()
            break  # one is enough, and a thousand would cost

    def arrived(self) -> None:
        """Something came from outside: those whom it concerns look, and one more, whether anything can move."""
        self.changed()
        for parked in self.parked:
            if parked.is_up:
                parked.ring()

    def ring(self) -> None:
        """The run is being stopped: everybody who is parked looks again."""
        self._version += 1
        for parked in self.parked:
            parked.ring()

    def _has_foreign(self) -> bool:
        todo = [self.root]
        for strand in todo:
            if strand.group is not None and strand.group.foreign:
                return True
            todo += [member for group in strand.groups for member in group.members]
        return False

    def patience(self, parked: Parked) -> float:
        """Seconds after which a parked strand looks again at whether the run is to be suspended; suspends it."""
        if self.root.movable():
            self._since = None
            return inf
        if parked._seen != self._version and self._has_foreign():
            parked._seen = self._version
            return _SETTLE
        now = self.run.clock.monotonic()
        self._since = now if self._since is None else self._since
        near = any(other.left() <= (NEAR if other.come else inf) for other in self.parked if other.until)
        left = self._since + self.stay - now
        if near:
            return inf
        if left > 0:
            return left
        self.run.suspend()
        raise Halted
