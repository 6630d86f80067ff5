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
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar, overload

from perdure.errors import ConfigError, Halted
from perdure.runtime.branches import (
    Branch,
    Failure,
    Fan,
    Thunk,
    branches_of,
    cancel,
    fan_name,
    finish,
    group_of,
    halting,
    in_order,
    recorded_order,
    result,
    run_threads,
    take,
)
from perdure.runtime.context import current
from perdure.runtime.steps import Flow, Step

T = TypeVar("T")
A = TypeVar("A")


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
    made, is_async = branches_of(branches)
    if is_async or (not made and _in_loop()):
        return _gather_async(made, return_exceptions)
    return _settle(halting(in_order(run_threads(made, None))), return_exceptions)


async def _gather_async(made: Sequence[Branch], return_exceptions: bool, limit: int | None = None) -> list[Any]:
    return _settle(await finish(made, limit), return_exceptions)


def _settle(ended: list[Any], return_exceptions: bool) -> list[Any]:
    if not return_exceptions:
        return [result(outcome) for outcome in ended]
    return [o.error if isinstance(o, Failure) else o for o in ended]


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
    made, _ = branches_of(fn(item) if asynchronous else functools.partial(fn, item) for item in items)
    if asynchronous:
        return _gather_async(made, False, limit)
    return _settle(halting(in_order(run_threads(made, limit))), False)


@overload
def as_completed(*branches: Awaitable[T]) -> AsyncIterator[T]: ...
@overload
def as_completed(*branches: Thunk[T]) -> Iterator[T]: ...
def as_completed(*branches: Any) -> Any:
    """Results in the order in which the branches end; ``async for`` over awaitables, ``for`` over callables.

    The order is journaled, and the same in every later life of the run. A branch's error is raised at its turn.
    """
    fan = Fan("as_completed")
    made, is_async = branches_of(branches, fan)
    return _as_completed_async(fan, made) if is_async else _as_completed(fan, made)


async def _as_completed_async(fan: Fan, made: Sequence[Branch]) -> AsyncIterator[Any]:
    try:
        for branch in made:
            fan.start_task(branch)
        while fan.flying:
            _, outcome = await fan.next_async()
            yield result(outcome)
    except GeneratorExit:
        fan.unneeded()
        raise
    finally:
        await fan.cancel()


def _as_completed(fan: Fan, made: Sequence[Branch]) -> Iterator[Any]:
    try:
        for branch in made:
            fan.start_thread(branch)
        while fan.flying:
            _, outcome = fan.next()
            yield result(outcome)
    except GeneratorExit:
        fan.unneeded()
        raise
    finally:
        fan.abandon()


@overload
def first(*branches: Awaitable[T]) -> Awaitable[T]: ...
@overload
def first(*branches: Thunk[T]) -> T: ...
def first(*branches: Any) -> Any:
    """The result of the branch that succeeds first; the choice is journaled. Async losers are cancelled, sync ones run
    on and are ignored. Raises the last error if all fail."""
    if not branches:
        raise ConfigError("first() needs at least one branch.")
    fan = fan_name("first")
    made, is_async = branches_of(branches)
    chosen = [branch for branch in made if branch.label and branch.label in recorded_order(fan)]
    if chosen:
        for branch in made:
            if branch is not chosen[0]:
                branch.drop()
        made = chosen[:1]
    return _first_async(made, fan, bool(chosen)) if is_async else _first(made, fan, bool(chosen))


async def _first_async(made: Sequence[Branch], fan: str, known: bool) -> Any:
    group = group_of(made)
    tasks = {branch.task(): branch for branch in made}
    left = set(tasks)
    failure: BaseException | None = None
    try:
        while left:
            with group.awaited():
                ended, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
            group.looked(len(ended))
            for task in ended:
                failure = task.exception()
                if isinstance(failure, Halted):
                    raise failure
                if failure is None:
                    if not known:
                        take(fan, tasks[task].label, current())
                    group.drop()
                    return task.result()
    finally:
        await cancel(left)
    assert failure is not None
    raise failure


def _first(made: Sequence[Branch], fan: str, known: bool) -> Any:
    outcome: Any = None
    for index, outcome in run_threads(made, None):
        halting([outcome])
        if not isinstance(outcome, Failure):
            if not known:
                take(fan, made[index].label, current())
            for branch in made:
                branch.unneeded()
            return outcome
    raise outcome.error


def _in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
