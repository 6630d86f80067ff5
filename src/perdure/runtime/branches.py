"""Branches: pieces of work side by side, each in its place in the journal; and the fan, in which they are started one
by one and end in an order that is journaled. What fanout.py and the runners are made of.

A branch takes its place when it is made, in the order written: the call of a step claims its ordinal, anything else
gets a scope of its own. An outcome is the value of a branch, or a ``Failure``.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import queue
import sys
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, TypeAlias, TypeVar, cast

from perdure import journal as j
from perdure.errors import ConfigError, Halted
from perdure.life import Cursor, Place, Rehearsal
from perdure.runtime.context import Frame, current, enter
from perdure.runtime.live import LiveRun
from perdure.runtime.steps import Flow, Invocation, Step, invocation_of
from perdure.runtime.strands import Group, Strand, lending
from perdure.runtime.threads import in_thread

T = TypeVar("T")
Thunk = Callable[[], T]
Item: TypeAlias = Awaitable[Any] | Callable[[], Any] | Invocation


class Branch:
    """One branch: a label that is stable over lives, and how to run it in its place."""

    def __init__(self, item: Item, fan: object) -> None:
        self.item = item
        self.fan = fan
        self.label = ""
        self.context = contextvars.copy_context()
        self.strand: Strand | None = None
        self.invocation = _invocation(item)
        self._rehearsal: Rehearsal | None = None
        frame = current()
        if frame is None or frame.run is None:
            return
        if self.invocation is not None:
            self.label = self.invocation.claim(frame, fan)
        else:
            named = item.func if isinstance(item, functools.partial) else item
            name = str(getattr(named, "__name__", "branch")).replace("<lambda>", "branch").replace("/", "-")
            cursor = Cursor(frame.cursor.life, frame.cursor.branch(name, ""))
            self.label = cursor.scope
            inner = Frame(frame.run, cursor, frame.step, is_async=isinstance(item, Awaitable))
            self.context.run(enter, inner)
        self._rehearsal = frame.run.life.rehearsal
        if self._rehearsal is not None:
            self._rehearsal.begun(self.place)

    @property
    def place(self) -> Place:
        """Its place in the journal."""
        claimed = self.invocation.claimed if self.invocation is not None else None
        return claimed if claimed is not None else self.label

    def call(self) -> Any:
        """Run a sync branch in this thread."""
        try:
            if self.strand is not None:
                self.context.run(self.strand.begin)
            if self.invocation is not None:
                return self.context.run(self.invocation.start)
            return self.context.run(cast(Thunk[Any], self.item))
        finally:
            self._end()

    def task(self) -> asyncio.Task[Any]:
        """Start an async branch; a callable among async branches runs in a thread."""
        return asyncio.get_running_loop().create_task(self._work(), context=self.context)

    async def _work(self) -> Any:
        try:
            if self.strand is not None:
                self.strand.begin()
            if isinstance(self.item, Awaitable):
                return await self.item
            work = self.invocation.start if self.invocation else cast(Thunk[Any], self.item)
            lent = lending(self.strand, work)
            return await asyncio.wrap_future(in_thread(lent, f"branch-{self.label}"))
        finally:
            self._end()

    @property
    def unrecorded(self) -> bool:
        """Whether it is the call of a step that has no result yet."""
        return self.invocation is not None and self.invocation.unrecorded()

    def _end(self) -> None:
        if self._rehearsal is not None and isinstance(sys.exception(), Exception | None):
            self._rehearsal.ended(self.place)
        self._release()

    def _release(self) -> None:
        if self.strand is not None:
            self.strand.end()
        if self.invocation is not None:
            self.invocation.release(self.fan)

    def unneeded(self) -> None:
        """Nobody needs its result: if it waits for something, it gives up."""
        if self.strand is not None:
            with self.strand.run.lock:
                self.strand.drop()

    def drop(self) -> None:
        """The branch is not going to run."""
        self._release()
        if isinstance(self.item, Coroutine):
            self.item.close()


def _invocation(item: Item) -> Invocation | None:
    if isinstance(item, Invocation):
        return item
    if isinstance(item, Coroutine):
        return invocation_of(item)
    if isinstance(item, functools.partial) and isinstance(item.func, Step | Flow):
        return Invocation(item.func, item.args, item.keywords)
    return None


def branches_of(items: Iterable[Item], fan: object = None) -> tuple[list[Branch], bool]:
    """Branches in order, and whether they are async. Those of one ``fan`` may ask for equal things at once."""
    listed = list(items)
    for item in listed:
        if not isinstance(item, Awaitable | Invocation) and not callable(item):
            raise ConfigError(
                f"A branch must be an awaitable or a callable without arguments, not {type(item).__name__}.",
                hint="In sync code write functools.partial(step, argument), or use perdure.map(step, items).",
            )
    fan = fan or object()
    return [Branch(item, fan) for item in listed], any(isinstance(item, Awaitable) for item in listed)


def outcomes(items: Iterable[Item], limit: int | None = None) -> list[Any]:
    """What callables return, in order, at most ``limit`` at a time; a Failure for each that raised."""
    made, _ = branches_of(items)
    return halting(in_order(run_threads(made, limit)))


async def outcomes_async(items: Iterable[Item], limit: int | None = None) -> list[Any]:
    """As ``outcomes``, for awaitables; callables among them run in threads."""
    made, _ = branches_of(items)
    return await finish(made, limit)


async def finish(made: Sequence[Branch], limit: int | None) -> list[Any]:
    gate = asyncio.Semaphore(limit) if limit else None
    group = group_of(made, limit)
    tasks = [asyncio.ensure_future(_gated(b, gate)) if gate else b.task() for b in made]
    try:
        with group.awaited(wants_all=True):
            if tasks:
                await asyncio.wait(tasks)
    except BaseException:
        await cancel(tasks)
        raise
    return halting([_outcome(task) for task in tasks])


def group_of(made: Sequence[Branch], limit: int | None = None) -> Group:
    """The strands of branches that are about to run."""
    group = Group(running_here(), limit)
    for branch in made:
        branch.strand = group.strand()
    return group


def running_here() -> LiveRun | None:
    """The run that the running code belongs to."""
    frame = current()
    return frame.run if frame is not None else None


async def _gated(branch: Branch, gate: asyncio.Semaphore) -> Any:
    try:
        await gate.acquire()
    except BaseException:
        branch.drop()
        raise
    try:
        return await branch.task()
    finally:
        gate.release()


async def cancel(tasks: Iterable[asyncio.Future[Any]]) -> None:
    left = []
    for task in tasks:
        if task.done():
            _hear(task)
        else:
            task.add_done_callback(_hear)  # also if this here is cancelled
            task.cancel()
            left.append(task)
    if left:
        await asyncio.wait(left)


def _hear(task: asyncio.Future[Any]) -> None:
    """Ask for its error, so that the event loop does not complain that nobody did."""
    if not task.cancelled():
        task.exception()


class Failure:
    """The outcome of a branch that raised ``error``; never a value that a branch returned."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def halting(outcomes: list[Any]) -> list[Any]:
    """The same outcomes. Raises Halted if one of the branches was unwound because the run is being stopped: what the
    others have come to is recorded, and nobody is to draw conclusions from one that is missing."""
    for outcome in outcomes:
        _refuse_halted(outcome)
    return outcomes


def _refuse_halted(outcome: Any) -> None:
    if isinstance(outcome, Failure) and isinstance(outcome.error, Halted):
        raise outcome.error


def _outcome(task: asyncio.Future[Any]) -> Any:
    if task.cancelled():
        return Failure(asyncio.CancelledError())
    error = task.exception()
    return Failure(error) if error is not None else task.result()


def result(outcome: Any) -> Any:
    """The value of an outcome; raises the error of a Failure."""
    if isinstance(outcome, Failure):
        raise outcome.error
    return outcome


def in_order(ended: Iterable[tuple[int, Any]]) -> list[Any]:
    return [outcome for _, outcome in sorted(ended, key=lambda pair: pair[0])]


def run_threads(made: Sequence[Branch], limit: int | None) -> Iterator[tuple[int, Any]]:
    """(index, outcome) of sync branches, in the order in which they end."""
    group = group_of(made, limit)
    todo: queue.SimpleQueue[tuple[int, Branch]] = queue.SimpleQueue()
    ended: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    for pair in enumerate(made):
        todo.put(pair)

    def work() -> None:
        while True:
            try:
                index, branch = todo.get_nowait()
            except queue.Empty:
                return
            try:
                ended.put((index, branch.call()))
            except BaseException as error:
                ended.put((index, Failure(error)))

    threads = [
        threading.Thread(target=work, name=f"perdure-branch-{k}", daemon=True)
        for k in range(min(len(made), limit or len(made)))
    ]
    for thread in threads:
        thread.start()
    for _ in made:
        with group.awaited():
            one = ended.get()
        group.looked()
        yield one
    for thread in threads:
        thread.join()


class Fan:
    """Branches that are started one by one. The order in which their outcomes are taken is journaled where there is a
    choice, and is the same in every later life of the run. As long as that life goes through the recorded order, calls
    of steps that have no result yet are held back: perhaps the order ends in a decision by which nobody needs them.
    """

    def __init__(self, kind: str) -> None:
        self.flying: dict[str, int] = {}
        """label of each branch whose outcome was not taken yet, and its place among all that were started"""
        self._name = fan_name(kind)
        self._order = deque(recorded_order(self._name))
        self._frame = current()
        self._started = 0
        self._held: dict[str, tuple[Branch, Callable[[], object]]] = {}
        """label of each branch that is held back, it, and how to start it"""
        self._tasks: dict[asyncio.Future[Any], str] = {}
        self._ended: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._early: dict[str, Any] = {}
        self._group = Group(running_here())

    def call(self, work: Item) -> int:
        """Start one more branch, in a thread of its own. Returns its place."""
        return self.start_thread(Branch(work, self))

    def call_async(self, item: Item) -> int:
        """Start one more branch, as a task; a callable runs in a thread. Returns its place."""
        return self.start_task(Branch(item, self))

    def start_thread(self, branch: Branch) -> int:
        """Run a branch in a thread of its own. Returns its place."""
        label = self._fly(branch)
        branch.strand = self._group.strand()

        def work() -> None:
            try:
                self._ended.put((label, branch.call()))
            except BaseException as error:
                self._ended.put((label, Failure(error)))

        thread = threading.Thread(target=work, name=f"perdure-branch-{label}", daemon=True)
        self._start(branch, label, thread.start)
        return self.flying[label]

    def start_task(self, branch: Branch) -> int:
        """Run a branch as a task. Returns its place."""
        label = self._fly(branch)
        branch.strand = self._group.strand()

        def begin() -> None:
            self._tasks[branch.task()] = label

        self._start(branch, label, begin)
        return self.flying[label]

    def _start(self, branch: Branch, label: str, begin: Callable[[], object]) -> None:
        if self._order and branch.unrecorded:
            self._held[label] = branch, begin
        else:
            begin()

    def _fly(self, branch: Branch) -> str:
        label = branch.label or str(self._started)
        self.flying[label] = self._started
        self._started += 1
        return label

    def next(self) -> tuple[int, Any]:
        """(place, outcome) of the branch whose turn it is, once it has ended; an error stands in a Failure."""
        due = self._due()
        while due not in self._early if due else not self._early:
            with self._group.awaited():
                label, outcome = self._ended.get()
            self._group.looked()
            self._early[label] = outcome
        return self._taken(due)

    async def next_async(self) -> tuple[int, Any]:
        """As ``next``, for branches that are tasks."""
        due = self._due()
        while due not in self._early if due else not self._early:
            with self._group.awaited():
                ended, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            self._group.looked(len(ended))
            for task in [task for task in self._tasks if task in ended]:
                self._early[self._tasks.pop(task)] = _outcome(task)
        return self._taken(due)

    def _due(self) -> str:
        """The branch whose turn it was in an earlier life; "" when that is not known. One branch leaves no choice."""
        while len(self.flying) > 1 and self._order:
            label = self._order.popleft()
            if label in self.flying:
                self._begin([label])
                return label
        self._begin([*self._held])
        return ""

    def _begin(self, labels: Iterable[str]) -> None:
        """Start those of the branches that are held back."""
        for label in labels:
            if label in self._held:
                self._held.pop(label)[1]()

    def _taken(self, due: str) -> tuple[int, Any]:
        label = due or next(iter(self._early))
        _refuse_halted(self._early[label])
        if not due and len(self.flying) > 1:
            take(self._name, label, self._frame)
        return self.flying.pop(label), self._early.pop(label)

    def unneeded(self) -> None:
        """Nobody needs what was started and not taken: those that wait for something give up, and questions are
        withdrawn. Not so when a run stops in the middle: then they stay as they are."""
        self._group.drop()

    def drop(self) -> None:
        """What was started and not taken is not needed any more: wait for what runs, as threads cannot be stopped."""
        self.unneeded()
        while len(self._early) < len(self.flying) - len(self._held):
            label, outcome = self._ended.get()
            self._early[label] = outcome
        self._forget()

    async def cancel(self) -> None:
        """What was started and not taken is not needed any more: cancel its tasks."""
        await cancel(self._tasks)
        self._forget()

    def _forget(self) -> None:
        self.abandon()
        for left in (self.flying, self._tasks, self._early):
            left.clear()

    def abandon(self) -> None:
        """What is held back is never begun; threads run on and are ignored."""
        for branch, _ in self._held.values():
            branch.drop()
        self._held.clear()


def fan_name(kind: str) -> str:
    frame = current()
    return frame.cursor.fan(kind) if frame is not None and frame.run is not None else ""


def recorded_order(fan: str) -> list[str]:
    frame = current()
    if frame is None or frame.run is None:
        return []
    return list(frame.run.state.taken.get((frame.cursor.scope, fan), ()))


def take(fan: str, label: str, frame: Frame | None) -> None:
    """Journal whose turn it was. Not waited for: any later record is durable only together with this one."""
    if frame is not None and frame.run is not None:
        frame.run.emit((j.BranchTaken(scope=frame.cursor.scope, fan=fan, branch=label),))
