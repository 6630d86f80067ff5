"""Side by side: ``gather``, ``map``, ``as_completed``, ``first``, for sync and async code.

Branches take their places when they are created, in the order written: a step call claims its ordinal, anything else
gets a scope of its own. So equal calls in different branches keep their own results over any crash (X10), and a branch
that finished stays finished when a sibling or the parent dies (X15). One failing branch does not stop the others: what
they are paid to do is finished first, then the first failure (in the order written) is raised.

Async branches are awaitables and run as tasks. Sync branches are callables without arguments (``partial(step, x)``) and
run in threads of their own; they are daemons, so that Ctrl-C never waits for a ten-minute call.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import queue
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar, cast, overload

from perdure import journal as j
from perdure.errors import ConfigError
from perdure.replay import Cursor
from perdure.runtime.context import Frame, current, enter
from perdure.runtime.steps import Flow, Invocation, Step, pending
from perdure.runtime.threads import in_thread

T = TypeVar("T")
A = TypeVar("A")
Thunk = Callable[[], T]


class Branch:
    """One branch: a label that is stable over lives, and how to run it in its place."""

    def __init__(self, item: Awaitable[Any] | Thunk[Any], fan: object) -> None:
        self.item = item
        self.fan = fan
        self.label = ""
        self.context = contextvars.copy_context()
        self.invocation = _invocation(item)
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
            inner = Frame(frame.run, cursor, frame.step)
            self.context.run(enter, inner)

    def call(self) -> Any:
        """Run a sync branch in this thread."""
        try:
            if self.invocation is not None:
                return self.context.run(self.invocation.start)
            return self.context.run(cast(Thunk[Any], self.item))
        finally:
            self._release()

    def task(self) -> asyncio.Task[Any]:
        """Start an async branch; a callable among async branches runs in a thread."""
        return asyncio.get_running_loop().create_task(self._work(), context=self.context)

    async def _work(self) -> Any:
        try:
            if isinstance(self.item, Awaitable):
                return await self.item
            work = self.invocation.start if self.invocation else self.item
            return await asyncio.wrap_future(in_thread(work, f"branch-{self.label}"))
        finally:
            self._release()

    def _release(self) -> None:
        if self.invocation is not None:
            self.invocation.release(self.fan)

    def drop(self) -> None:
        """The branch is not going to run."""
        self._release()
        if isinstance(self.item, Coroutine):
            self.item.close()


def _invocation(item: Awaitable[Any] | Thunk[Any]) -> Invocation | None:
    if isinstance(item, Coroutine):
        return pending.get(item)
    if isinstance(item, functools.partial) and isinstance(item.func, Step | Flow):
        return Invocation(item.func, item.args, item.keywords)
    return None


def _branches(items: Iterable[Awaitable[Any] | Thunk[Any]]) -> tuple[list[Branch], bool]:
    """Branches in order, and whether they are async."""
    listed = list(items)
    for item in listed:
        if not isinstance(item, Awaitable) and not callable(item):
            raise ConfigError(
                f"A branch must be an awaitable or a callable without arguments, not {type(item).__name__}.",
                hint="In sync code write functools.partial(step, argument), or use perdure.map(step, items).",
            )
    fan = object()
    return [Branch(item, fan) for item in listed], any(isinstance(item, Awaitable) for item in listed)


@overload
def gather(*branches: Awaitable[T], return_exceptions: Literal[False] = False) -> Awaitable[list[T]]: ...
@overload
def gather(*branches: Awaitable[T], return_exceptions: bool) -> Awaitable[list[T | BaseException]]: ...
@overload
def gather(*branches: Thunk[T], return_exceptions: Literal[False] = False) -> list[T]: ...
@overload
def gather(*branches: Thunk[T], return_exceptions: bool) -> list[T | BaseException]: ...
def gather(*branches: Any, return_exceptions: bool = False) -> Any:
    """Run branches side by side; their results in the order written.

    Awaitables: returns an awaitable. Callables without arguments: blocks, and returns the list. All branches run to
    their end; then the first error is raised, or errors stand in the list with ``return_exceptions=True``.
    """
    made, is_async = _branches(branches)
    if is_async or (not made and _in_loop()):
        return _gather_async(made, return_exceptions)
    return _settle(
        [outcome for _, outcome in sorted(_run_threads(made, None), key=lambda pair: pair[0])], return_exceptions
    )


async def gather_async(items: Iterable[Awaitable[Any] | Thunk[Any]]) -> list[Any]:
    """Outcomes in order, errors as values; callables run in threads. For runners, which mix both colours."""
    made, _ = _branches(items)
    return await _gather_async(made, True)


async def _gather_async(made: Sequence[Branch], return_exceptions: bool, limit: int | None = None) -> list[Any]:
    gate = asyncio.Semaphore(limit) if limit else None
    tasks = [asyncio.ensure_future(_gated(b, gate)) if gate else b.task() for b in made]
    try:
        if tasks:
            await asyncio.wait(tasks)
    except BaseException:
        await _cancel(tasks)
        raise
    return _settle([_outcome(task) for task in tasks], return_exceptions)


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


async def _cancel(tasks: Iterable[asyncio.Future[Any]]) -> None:
    left = [task for task in tasks if not task.done()]
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left)


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def _outcome(task: asyncio.Future[Any]) -> Any:
    if task.cancelled():
        return _Failure(asyncio.CancelledError())
    error = task.exception()
    return _Failure(error) if error is not None else task.result()


def _settle(outcomes: list[Any], return_exceptions: bool) -> list[Any]:
    if not return_exceptions:
        for outcome in outcomes:
            if isinstance(outcome, _Failure):
                raise outcome.error
    return [o.error if isinstance(o, _Failure) else o for o in outcomes]


def _run_threads(made: Sequence[Branch], limit: int | None) -> Iterator[tuple[int, Any]]:
    """(index, outcome) of sync branches, in the order in which they end."""
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
                ended.put((index, _Failure(error)))

    threads = [
        threading.Thread(target=work, name=f"perdure-branch-{k}", daemon=True)
        for k in range(min(len(made), limit or len(made)))
    ]
    for thread in threads:
        thread.start()
    for _ in made:
        yield ended.get()
    for thread in threads:
        thread.join()


@overload
def map(  # type: ignore[overload-overlap]
    fn: Callable[[A], Coroutine[Any, Any, T]], items: Iterable[A], *, limit: int | None = None
) -> Awaitable[list[T]]: ...
@overload
def map(fn: Callable[[A], T], items: Iterable[A], *, limit: int | None = None) -> list[T]: ...
def map(fn: Callable[[A], Any], items: Iterable[A], *, limit: int | None = None) -> Any:
    """``fn`` of every item, side by side, at most ``limit`` at a time; results in the order of the items.

    With an async function returns an awaitable, with a sync one blocks. Items may be added, removed or reordered before
    a resume: for a step or flow each finished item is found again by its value.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be a whole number from 1, not {limit!r}.")
    asynchronous = fn.is_async if isinstance(fn, Step | Flow) else asyncio.iscoroutinefunction(fn)
    made, _ = _branches(fn(item) if asynchronous else functools.partial(fn, item) for item in items)
    if asynchronous:
        return _gather_async(made, False, limit)
    return _settle([outcome for _, outcome in sorted(_run_threads(made, limit), key=lambda pair: pair[0])], False)


@overload
def as_completed(*branches: Awaitable[T]) -> AsyncIterator[T]: ...
@overload
def as_completed(*branches: Thunk[T]) -> Iterator[T]: ...
def as_completed(*branches: Any) -> Any:
    """Results in the order in which the branches end; ``async for`` over awaitables, ``for`` over callables.

    The order is journaled, and the same in every later life of the run. A branch's error is raised at its turn.
    """
    fan = _fan("as_completed")
    made, is_async = _branches(branches)
    return _as_completed_async(made, fan) if is_async else _as_completed(made, fan)


async def _as_completed_async(made: Sequence[Branch], fan: str) -> AsyncIterator[Any]:
    tasks = {branch.label or str(i): branch.task() for i, branch in enumerate(made)}
    labels = {task: label for label, task in tasks.items()}
    try:
        for label in _recorded(fan):
            if label in tasks:
                yield await tasks.pop(label)
        while tasks:
            ended, _ = await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                tasks.pop(labels[task])
                _take(fan, labels[task])
                yield await task
    finally:
        await _cancel(tasks.values())


def _as_completed(made: Sequence[Branch], fan: str) -> Iterator[Any]:
    labels = [branch.label or str(i) for i, branch in enumerate(made)]
    early: dict[str, Any] = {}
    ended = _run_threads(made, None)
    for label in _recorded(fan):
        while label in labels and label not in early:
            index, outcome = next(ended)
            early[labels[index]] = outcome
        if label in early:
            yield from _settle([early.pop(label)], False)
    for label, outcome in early.items():
        _take(fan, label)
        yield from _settle([outcome], False)
    for index, outcome in ended:
        _take(fan, labels[index])
        yield from _settle([outcome], False)


@overload
def first(*branches: Awaitable[T]) -> Awaitable[T]: ...
@overload
def first(*branches: Thunk[T]) -> T: ...
def first(*branches: Any) -> Any:
    """The result of the branch that succeeds first; the choice is journaled. Async losers are cancelled, sync ones run
    on and are ignored. Raises the last error if all fail."""
    if not branches:
        raise ConfigError("first() needs at least one branch.")
    fan = _fan("first")
    made, is_async = _branches(branches)
    chosen = [branch for branch in made if branch.label and branch.label in _recorded(fan)]
    if chosen:
        for branch in made:
            if branch is not chosen[0]:
                branch.drop()
        made = chosen[:1]
    return _first_async(made, fan, bool(chosen)) if is_async else _first(made, fan, bool(chosen))


async def _first_async(made: Sequence[Branch], fan: str, known: bool) -> Any:
    tasks = {branch.task(): branch for branch in made}
    left = set(tasks)
    failure: BaseException | None = None
    try:
        while left:
            ended, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                failure = task.exception()
                if failure is None:
                    if not known:
                        _take(fan, tasks[task].label)
                    return task.result()
    finally:
        await _cancel(left)
    assert failure is not None
    raise failure


def _first(made: Sequence[Branch], fan: str, known: bool) -> Any:
    outcome: Any = None
    for index, outcome in _run_threads(made, None):
        if not isinstance(outcome, _Failure):
            if not known:
                _take(fan, made[index].label)
            return outcome
    raise outcome.error


def _fan(kind: str) -> str:
    frame = current()
    return frame.cursor.fan(kind) if frame is not None and frame.run is not None else ""


def _recorded(fan: str) -> list[str]:
    frame = current()
    if frame is None or frame.run is None:
        return []
    return list(frame.run.state.taken.get((frame.cursor.scope, fan), ()))


def _take(fan: str, label: str) -> None:
    """Journal whose turn it was. Not waited for: any later record is durable only together with this one."""
    frame = current()
    if frame is not None and frame.run is not None:
        frame.run.emit((j.BranchTaken(scope=frame.cursor.scope, fan=fan, branch=label),), lazy=True)


def _in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
