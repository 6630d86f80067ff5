"""The two drivers of the machine in replay.py: one blocks, one awaits. Everything else is written once.

A driver performs the command that the machine yields and sends back the reply, or throws what went wrong into it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from types import CoroutineType
from typing import Any, Final, cast

import msgspec

from perdure import commands, replay
from perdure.clock import SYSTEM
from perdure.commands import Append, Call, Command, Machine, Outcome
from perdure.errors import ConfigError, Halted, RunCancelled, RunStopped, StepTimeout
from perdure.journal import Entry, Posted
from perdure.life import Cursor
from perdure.runtime import past
from perdure.runtime.context import FRAME, Frame, StepContext
from perdure.runtime.live import LiveRun
from perdure.runtime.strands import Deeper, Loan
from perdure.runtime.threads import in_thread
from perdure.runtime.tickets import Ticket
from perdure.runtime.transact import transact
from perdure.stores.handle import blobs_of
from perdure.waits import Dropped


class Body(msgspec.Struct, frozen=True):
    """What a Call runs."""

    name: str
    is_async: bool
    timeout: float | None
    run: Callable[[], object]
    verify: Callable[[], object] | None
    is_flow: bool = False
    """it is the code of a child: what it does itself, outside of its steps, is nobody's step"""


NOBODY: Final = Body("", False, None, lambda: None, None)
"""for a machine that calls nothing"""


def drive(machine: Machine, run: LiveRun | None, body: Body) -> Any:
    """Run the machine to its end in this thread."""
    reply, error = None, None
    deeper = Deeper(run) if run is not None else None
    try:
        while True:
            try:
                command = machine.throw(error) if error is not None else machine.send(reply)
            except StopIteration as end:
                return end.value
            try:
                reply = _call(command, run, body) if type(command) is Call else perform(command, run)
                error = None
            except BaseException as raised:
                reply, error = None, raised
    finally:
        if deeper is not None:
            deeper.end()


async def drive_async(machine: Machine, run: LiveRun | None, body: Body) -> Any:
    """Run the machine to its end in this task."""
    reply: object = None
    error: BaseException | None = None
    deeper = Deeper(run) if run is not None else None
    try:
        while True:
            try:
                command = machine.throw(error) if error is not None else machine.send(reply)
            except StopIteration as end:
                return end.value
            try:
                if type(command) is Call:
                    reply = await _call_async(command, run, body)
                elif type(command) is Append:
                    reply, ticket = None, _emit(command, run)
                    if command.wait:
                        await cast(LiveRun, run).wait_async(ticket)
                else:
                    reply = await _perform_async(command, run)
                error = None
            except BaseException as raised:
                reply, error = None, raised
    finally:
        if deeper is not None:
            deeper.end()


def _emit(command: Append, run: LiveRun | None) -> Ticket:
    assert run is not None
    return run.emit(command.entries, command.blobs, last=command.flush)


def perform(command: Command, run: LiveRun | None) -> object:
    """Do what a command other than Call asks for, blocking."""
    clock = run.clock if run else SYSTEM
    match command:
        case Append():
            ticket = _emit(command, run)
            if command.wait:
                cast(LiveRun, run).wait(ticket)
        case commands.Load(digests):
            assert run is not None
            return fetch(run, digests)
        case commands.Read(seq):
            assert run is not None
            return run.writer.look_up(_entry(run, seq))
        case commands.Now():
            return clock.now()
        case commands.Wait(until, is_up):
            if run is None:
                clock.sleep(until - clock.now())
                return None
            parked = run.strands.park(until, is_up)
            try:
                while (pause := parked.pause()) is not None:
                    clock.wait(parked.bell, pause)
                return parked.left() <= 0
            finally:
                run.strands.unpark(parked)
        case commands.Post(entry):
            assert run is not None
            post(run, entry).result()
    return None


async def _perform_async(command: Command, run: LiveRun | None) -> object:
    """As ``perform``, in a task; Append and Call are done by the driver itself."""
    clock = run.clock if run else SYSTEM
    match command:
        case commands.Load(digests):
            assert run is not None
            return await asyncio.wrap_future(run.writer.call(_blobs(run, digests)))
        case commands.Read(seq):
            assert run is not None
            return await asyncio.wrap_future(run.writer.call(_entry(run, seq)))
        case commands.Now():
            return clock.now()
        case commands.Wait(until, is_up):
            if run is None:
                await clock.sleep_async(until - clock.now())
                return None
            parked = run.strands.park(until, is_up)
            try:
                while (pause := parked.pause()) is not None:
                    assert parked.waker is not None
                    await clock.wait_async(parked.waker, pause)
                return parked.left() <= 0
            except asyncio.CancelledError:
                if parked.strand.dropped and not run.halt:
                    raise Dropped from None
                if run.halt not in ("", "cancelled") and asyncio.current_task() is not run.task:
                    raise Halted from None  # by a group of tasks of which another was unwound: it was not given up
                raise
            finally:
                run.strands.unpark(parked)
        case commands.Post(entry):
            assert run is not None
            await asyncio.wrap_future(post(run, entry))
    return None


def post(run: LiveRun, entry: Posted) -> Future[None]:
    """Put a post of the run's own into its inbox, on the writer's thread."""
    return run.writer.call(lambda: run.post(run.writer.store, entry))


def fetch(run: LiveRun, digests: tuple[str, ...]) -> dict[str, bytes]:
    """Blobs of a run's store. Raises CorruptStore when one is missing or damaged."""
    return run.writer.call(_blobs(run, digests)).result()


def _blobs(run: LiveRun, digests: tuple[str, ...]) -> Callable[[], dict[str, bytes]]:
    return lambda: blobs_of(run.writer.store, digests)


def _entry(run: LiveRun, seq: int) -> Callable[[], Entry]:
    return lambda: past.read(run.writer.store, run.life, seq)


def _frame(call: Call, run: LiveRun | None, body: Body) -> tuple[StepContext, Frame]:
    context = StepContext(run, call, body.name, body.is_async)
    sys.audit("perdure.call", context, run, call, body)  # a witness that is not ours; free where nobody listens
    return context, Frame(run, call.inner or Cursor(None, ""), context, is_async=body.is_async)


def _call(call: Call, run: LiveRun | None, body: Body) -> Outcome:
    if call.commit is None:
        return _execute(call, run, body)
    if run is None or not run.durability.durable:
        raise ConfigError(
            f"step {body.name} takes a transaction, and this is no run with a store that has one.",
            hint="Run it with store='sqlite:...' or 'postgresql://...'.",
        )
    return transact(run, lambda connection: _execute(call, run, body, connection), call.commit)


def _execute(call: Call, run: LiveRun | None, body: Body, connection: Any = None) -> Outcome:
    context, frame = _frame(call, run, body)
    if connection is not None:
        context.lend(connection)
    work = body.verify if call.what == "verify" and body.verify else body.run
    clock = run.clock if run else SYSTEM
    began = clock.monotonic()
    value, error = None, None
    token = FRAME.set(frame)  # as ``entered`` does, without three calls a step
    try:
        value = _within(work, call.step, body, run) if body.timeout is not None and call.what == "body" else work()
    except replay.NO_OUTCOME:
        raise
    except Exception as raised:
        error = _own(raised, run)
    finally:
        try:
            context.end(keep_text=error is not None and connection is None)
        finally:
            FRAME.reset(token)
    return Outcome(value, error, round(clock.monotonic() - began, 6), *context.kept)


async def _call_async(call: Call, run: LiveRun | None, body: Body) -> Outcome:
    context, frame = _frame(call, run, body)
    work = body.verify if call.what == "verify" and body.verify else body.run
    clock = run.clock if run else SYSTEM
    began = clock.monotonic()
    value, error = None, None
    finished = False
    token = FRAME.set(frame)
    try:
        if body.timeout is not None and call.what == "body":
            value = await _within_async(work, body)
        else:
            value = work()
            value = await value if isinstance(value, (CoroutineType, Awaitable)) else value
        finished = True
    except replay.NO_OUTCOME:
        raise
    except Exception as raised:
        error = _own(raised, run)
    finally:
        try:
            context.end(keep_text=not finished)
        finally:
            FRAME.reset(token)  # last: where a coroutine is closed from somewhere else it is refused
    return Outcome(value, error, round(clock.monotonic() - began, 6), *context.kept)


def _own(error: Exception, run: LiveRun | None) -> Exception:
    """The error of a body. Raises Halted for that of a run inside it that was stopped because this one is."""
    if run is not None and run.halt and isinstance(error, (RunStopped, RunCancelled)):
        raise Halted from None
    return error


def _within(work: Callable[[], object], step: int, body: Body, run: LiveRun | None) -> object:
    """Run a sync body for at most its timeout. Python cannot stop a thread: a late body runs on, and is ignored."""
    loan = Loan(run) if run is not None else None
    attempt = in_thread(loan.lent(work) if loan is not None else work, f"step-{body.name}")
    try:
        return attempt.result(body.timeout)
    except TimeoutError:
        if attempt.done():  # the error is the body's own, or it ended just now
            return attempt.result()
        if run is not None and loan is not None:
            with run.lock:
                loan.take_back()
                run.cut_off(step)
        raise _timed_out(body) from None


async def _within_async(work: Callable[[], object], body: Body) -> object:
    """Await an async body for at most its timeout."""
    try:
        async with asyncio.timeout(body.timeout) as limit:
            value = work()
            return await value if isinstance(value, Awaitable) else value
    except TimeoutError:
        if limit.expired():
            raise _timed_out(body) from None
        raise


def _timed_out(body: Body) -> StepTimeout:
    return StepTimeout(
        f"step {body.name}: the attempt took longer than its timeout of {cast(float, body.timeout):g} s."
    )
