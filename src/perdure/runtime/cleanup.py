"""Clean-ups: what a flow declares to be done when its run is cancelled while it is in the middle of its work.

``@flow(on_cancel=release)``: ``release`` is called with the flow's own arguments, inside a scope of its own, as the
code of a cancelled run is unwound, the innermost flow first. Its steps are durable: after a crash the next life goes
through the recorded part of the flow again, and on with the clean-up where it was cut off.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar, cast

from perdure import journal as j
from perdure.errors import ConfigError
from perdure.life import Cursor
from perdure.runtime.context import Frame, current, entered
from perdure.runtime.live import LiveRun, cleaning

P = ParamSpec("P")
R = TypeVar("R")


def with_cleanup(fn: Callable[P, R], clean: Callable[P, object] | None) -> Callable[P, R]:
    """``fn``, cleaned up after by ``clean`` when its run is cancelled in the middle of it. Raises ConfigError."""
    if clean is None:
        return fn
    if not callable(clean):
        raise ConfigError(f"on_cancel must be a function, not {clean!r}.")
    if inspect.iscoroutinefunction(fn):

        @functools.wraps(fn)
        async def guarded_async(*args: P.args, **kwargs: P.kwargs) -> Any:
            frame = _declared()
            try:
                return _unless_over(frame, await fn(*args, **kwargs))
            except BaseException as stopped:
                if frame is not None and frame.run is not None and frame.run.halt == "cancelled":
                    with _cleaning(frame, frame.run, inspect.iscoroutinefunction(clean)):
                        done = clean(*args, **kwargs)
                        if isinstance(done, Coroutine):
                            await _kept_on(done, spared=not isinstance(stopped, asyncio.CancelledError))
                raise

        return cast(Callable[P, R], guarded_async)
    if inspect.iscoroutinefunction(clean):
        raise ConfigError(f"on_cancel={clean!r} is async, and the flow is not.")

    @functools.wraps(fn)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        frame = _declared()
        try:
            return _unless_over(frame, fn(*args, **kwargs))
        except BaseException:
            if frame is not None and frame.run is not None and frame.run.halt == "cancelled":
                with _cleaning(frame, frame.run, False):
                    clean(*args, **kwargs)
            raise

    return guarded


def _unless_over(frame: Frame | None, value: R) -> R:
    """The result of a flow. Raises Halted for that of the run's own flow if the run is cancelled: it is not taken."""
    if frame is not None and frame.run is not None and not frame.cursor.scope:
        frame.run.check_halt()
    return value


async def _kept_on(work: Coroutine[Any, Any, object], spared: bool) -> None:
    """Await ``work``. With ``spared`` the next cancellation does not reach it: a branch that noticed by itself that its
    run is being cancelled is also cancelled by those who began it."""
    task = asyncio.ensure_future(work)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if spared:
                spared = False
                continue
            task.cancel()
            await asyncio.wait([task])
            raise


def _declared() -> Frame | None:
    """Make it known that cancelling the run takes its program."""
    frame = current()
    if frame is not None and frame.run is not None and not frame.run.state.cleanups:
        frame.run.emit((j.CleanupDeclared(scope=frame.cursor.scope),))
    return frame


@contextmanager
def _cleaning(frame: Frame, run: LiveRun, is_async: bool) -> Iterator[None]:
    """The block is a clean-up. What it raises is kept for the end of the run; the unwinding goes on."""
    token = cleaning.set(True)
    try:
        cursor = Cursor(run.life, frame.cursor.branch("on_cancel", ""))
        with entered(Frame(run, cursor, frame.step, is_async=is_async)):
            yield
    except BaseException as error:
        run.cleanup_error = run.cleanup_error or error
    finally:
        cleaning.reset(token)
