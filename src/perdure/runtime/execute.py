"""One life of a run, from beginning to end: begin it, call the flow, record how it ended, give it up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from math import inf
from typing import Any

from perdure.clock import SYSTEM
from perdure.errors import ConfigError, LeaseHeld, PerdureError
from perdure.guard import Guard
from perdure.life import Cursor
from perdure.model import RunKey, check_attribution
from perdure.redaction import Redaction
from perdure.runtime.context import Frame, entered
from perdure.runtime.drive import post
from perdure.runtime.endings import completed, finalised, unanswered
from perdure.runtime.live import LiveRun
from perdure.runtime.lives import Finished, Lives, Start
from perdure.runtime.steps import Function, Inputs, Step
from perdure.runtime.threads import in_thread

_OF_THE_RUN = ("episode", "new", "rerun", "adopt_input", "resume_stopped", "attribution", "target", "budget", "wait")
"""options that are not the flow's inputs"""


def prepare(
    flow: Callable[..., Any], args: tuple[Any, ...], goal: str, options: dict[str, Any], rules: Redaction | None = None
) -> tuple[Function[..., Any], Start]:
    """Split options of the run from keyword arguments of the flow, and check both before anything is opened."""
    RunKey.of(goal)
    function = as_function(flow)
    chosen = {name: options[name] for name in _OF_THE_RUN if name in options}
    kwargs = {name: value for name, value in options.items() if name not in chosen}
    chosen["wait"] = patience(chosen.get("wait", False))
    try:
        given = inputs_of(function, args, kwargs, rules)
    except TypeError as error:
        if isinstance(error, PerdureError):
            raise
        raise ConfigError(f"flow {function.name}: {error}.", hint=f"It takes {function.signature}.") from None
    if "attribution" in chosen:
        check_attribution(chosen["attribution"])
    rerun = chosen.pop("rerun", ())
    rerun = (rerun,) if isinstance(rerun, str) else tuple(rerun)
    start = Start(
        goal,
        rerun=rerun,
        flow=function.name,
        digest=function.digest,
        version=function.version,
        **given,
        **chosen,
    )
    return function, start


def inputs_of(
    function: Function[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], rules: Redaction | None
) -> dict[str, Any]:
    """The fields of a Start that tell its inputs. Raises CodecError, TypeError."""
    trial = Guard(SYSTEM.new_id(), rules)  # whose run it will be is not known yet
    _, seen = function.identify(args, kwargs, trial)
    keyed = (lambda guard: function.identify(args, kwargs, guard)[1].infos) if trial.used else None
    recorded = function.as_recorded(args, kwargs, trial) if rules is not None else None
    return {"args": seen.infos, "keyed": keyed, "inputs": (args, kwargs), "recorded": recorded}


def patience(wait: object) -> float:
    """The seconds that ``wait=`` means. Raises ConfigError."""
    if not isinstance(wait, int | float) or not wait >= 0:
        raise ConfigError(f"wait must be True, False or a number of seconds, not {wait!r}.")
    return inf if wait is True else float(wait)


class Watched:
    """A run in a thread of its own, for whoever awaits it and may be cancelled in that: then it is interrupted, where
    it waits or begins something new."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._run: LiveRun | None = None
        self._cancelled = False

    def begins(self, run: LiveRun) -> None:
        with self._lock:
            self._run = run
            if self._cancelled:
                run.interrupt()

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            if self._run is not None:
                self._run.interrupt()


def execute(lives: Lives, function: Function[..., Any], start: Start, watched: Watched | None = None) -> Any:
    """Run a sync flow in this thread; returns its result, recorded or new."""
    began = begin(lives, start)
    if isinstance(began, LiveRun) and watched is not None:
        watched.begins(began)
    if isinstance(began, Finished):
        return began.value
    if began is None:
        args, kwargs = start.inputs
        return function.fn(*args, **kwargs)
    return carry_out(lives, function, began, start.inputs)


def carry_out(lives: Lives, function: Function[..., Any], run: LiveRun, inputs: Inputs) -> Any:
    """Call the sync flow of a run that has begun, record how it ended, and give it up."""
    args, kwargs = inputs
    try:
        with finalised(run):
            with entered(Frame(run, Cursor(run.life, ""))):
                value = function.fn(*args, **kwargs)
            for question in unanswered(run):
                post(run, question).result()
            entry, blobs = completed(run, value)
            run.wait(run.emit((entry,), blobs, last=True))
            return value
    finally:
        lives.end(run)


async def execute_async(lives: Lives, function: Function[..., Any], start: Start) -> Any:
    """Run an async flow in this task; returns its result, recorded or new."""
    began = await _begin(lives, start)
    if isinstance(began, Finished):
        return began.value
    if began is None:
        args, kwargs = start.inputs
        return await function.fn(*args, **kwargs)
    return await carry_out_async(lives, function, began, start.inputs)


async def carry_out_async(lives: Lives, function: Function[..., Any], run: LiveRun, inputs: Inputs) -> Any:
    """As ``carry_out``, for an async flow, in this task."""
    args, kwargs = inputs
    try:
        with finalised(run):
            run.enter_task()
            with entered(Frame(run, Cursor(run.life, ""), is_async=True)):
                value = await function.fn(*args, **kwargs)
            for question in unanswered(run):
                await asyncio.wrap_future(post(run, question))
            entry, blobs = completed(run, value)
            await run.wait_async(run.emit((entry,), blobs, last=True))
            return value
    finally:
        lives.end(run, wait=False)


_BRIEF = 1.0
"""seconds for which somebody may hold a run only to move what he has posted to it"""


def _is_brief(lives: Lives, held: LeaseHeld) -> bool:
    return lives.clock.now() - held.since < _BRIEF


def begin(lives: Lives, start: Start) -> LiveRun | Finished | None:
    """Begin a life, blocking. Waits a moment for somebody who holds the run only to move what he has posted."""
    while True:
        try:
            return lives.begin(start).result()
        except LeaseHeld as held:
            if not _is_brief(lives, held):
                raise
        lives.clock.sleep(_BRIEF / 40)


async def _begin(lives: Lives, start: Start) -> LiveRun | Finished | None:
    """Begin a life without blocking the loop; one that begins after we were cancelled is ended in order (B3)."""
    beginning = lives.begin(start)
    try:
        while True:
            try:
                return await asyncio.wrap_future(beginning)
            except LeaseHeld as held:
                if not _is_brief(lives, held):
                    raise
            await asyncio.sleep(_BRIEF / 40)
            beginning = lives.begin(start)
    except asyncio.CancelledError:
        if not beginning.cancel():  # it is under way, and ends what it begins
            in_thread(lambda: _abandon(lives, beginning), "abandon")
        raise


def _abandon(lives: Lives, beginning: Future[LiveRun | Finished | None]) -> None:
    run = beginning.result()
    if isinstance(run, LiveRun):
        try:
            with suppress(asyncio.CancelledError), finalised(run):
                raise asyncio.CancelledError
        finally:
            lives.end(run)


def as_function(flow: Callable[..., Any]) -> Function[..., Any]:
    """A flow, or an undecorated function as one. Raises ConfigError for a step."""
    if isinstance(flow, Step):
        raise ConfigError(f"{flow.name} is a step, not a flow.", hint="Run a flow that calls it.")
    if isinstance(flow, Function):
        return flow
    if not callable(flow):
        raise ConfigError(f"A flow must be a function, not {flow!r}.")
    return Function(flow, str(getattr(flow, "__name__", "flow")).replace("<lambda>", "flow"), None, ())
