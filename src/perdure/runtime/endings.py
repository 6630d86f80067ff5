"""How the life of a run ends, and what its caller is told.

What a run's end becomes (B3): a returned value is COMPLETED; an exception is FAILED, which recovery leaves alone and a
person may run again; a step in doubt that may not be repeated is PAUSED; a run of which nothing can move before
something comes from outside is PENDING_INPUT or WAITING; one that a person gave up is CANCELLED; cancellation of our
task, Ctrl-C, SIGTERM, a closing event loop and memory that is used up are INTERRUPTED; a store that fails or a lost
lease is never recorded as an outcome (rel:R7): the journal ends where it ends, and the next process goes on from there.
"""

from __future__ import annotations

import logging
import signal
from asyncio import CancelledError
from collections.abc import Iterator
from contextlib import contextmanager

from perdure import codec, inbox, states
from perdure import journal as j
from perdure.errors import (
    Halted,
    PerdureError,
    RunCancelled,
    RunPaused,
    RunStopped,
    RunSuspended,
    StoreError,
)
from perdure.fold import State
from perdure.model import head
from perdure.redaction import discreet
from perdure.runtime.live import LiveRun

log = logging.getLogger("perdure")


def completed(run: LiveRun, value: object) -> tuple[j.RunCompleted, dict[str, bytes]]:
    """The entry that ends a run well. Raises CodecError if its result cannot be stored."""
    life = run.life
    output, blobs = codec.dumps(value, f"result of {run.state.flow or 'the run'}", life.guard)
    saved = round(sum(life.reused.values()), 6)
    if life.reused:
        log.info("run %s completed: %d steps reused, %.1f s saved", run.key, len(life.reused), saved)
    entry = j.RunCompleted(
        output=output, reused=len(life.reused), saved=saved, unused=life.unused(), saved_usage=life.saved_usage()
    )
    return entry, blobs


def unanswered(run: LiveRun) -> list[j.QuestionClosed]:
    """What to post before a run completes: nobody needs an answer to what it still asks."""
    waits = run.state.waits
    return [
        j.QuestionClosed(step=entry.step, question=waits.question_id(entry.step))
        for entry in list(waits.steps.values())
        if entry.asked or entry.signal
    ]


@contextmanager
def finalised(run: LiveRun) -> Iterator[None]:
    """Record how the block ends, whatever happens (B3, B8). A run that was halted raises what that means."""
    try:
        with run.strands.entered():
            yield
    except BaseException as error:
        run.leave_task()
        outside = isinstance(error, KeyboardInterrupt | SystemExit)
        outside = outside or (isinstance(error, CancelledError) and not run.cancelled_task)
        outside = outside and not run.supervised()
        if run.broken is None and not isinstance(error, StoreError):
            told = _record_end(run, error, outside)
            if told is not error:
                raise told from None
        elif run.broken is not None and not outside and isinstance(error, CancelledError | Halted):
            raise run.broken from None  # why we unwound it
        raise
    finally:
        run.leave_task()


def _record_end(run: LiveRun, error: BaseException, outside: bool) -> BaseException:
    """Journal how a run ended; returns what its caller is to be told. ``outside``: somebody else stopped this process,
    or the task that executes the run."""
    if run.halt == "suspended" and not outside:
        run.close_stale()
    entry, told = _ending(run, error, outside)
    try:
        run.wait(run.emit((entry,), last=True))
        said = told if isinstance(told, PerdureError) else type(told).__name__  # another's message is his own affair
        log.info("run %s: %s recorded (%s)", run.key, j.kind_of(entry), said)
    except PerdureError as problem:
        log.error("run %s: how it ended could not be recorded: %s", run.key, problem)
    return told


def _ending(run: LiveRun, error: BaseException, outside: bool) -> tuple[j.Entry, BaseException]:
    """The entry that says how a run ended, and what its caller is told."""
    if run.halt == "suspended" and not outside:
        told = suspended(run)
        asks = bool(told.questions) or any(pending.signal for pending in run.state.waits.steps.values())
        return j.RunSuspended(reason=waits_for(run.state), wake=told.until, input=asks), told
    if run.halt == "paused" and not outside and not isinstance(error, Exception):
        return _paused(run)
    if run.halt == "cancelled" and not outside:
        stop = run.state.stop or run.stopped_with
        if run.cleanup_error is None and stop is not None:
            return j.RunCancelled(reason=stop.reason, by=stop.by), cancelled(run.state, stop)
        if isinstance(run.cleanup_error, Halted):
            return j.RunInterrupted(reason="its clean-up waits"), suspended(run)
        error = run.cleanup_error or error
    if isinstance(error, RunPaused):
        return j.RunPaused(reason=discreet(str(error))), error
    if isinstance(error, MemoryError) and not run.supervised():  # a worker that went on with it would meet it again
        return j.RunInterrupted(reason="out of memory"), error
    if isinstance(error, Exception) or (run.supervised() and not run.halt):
        return j.RunFailed(error=codec.describe_error(error)), error
    return j.RunInterrupted(reason=_signal(error)), error


def _paused(run: LiveRun) -> tuple[j.Entry, PerdureError]:
    """The end of a run that was to be paused. Perhaps by now it is to be cancelled, or may go on again; or not this run
    was to be paused, but the one that began it."""
    stop = run.state.stop
    if stop is None:
        why = "stopped together with the run that began it" if run.state.attribution.parent else "let go on again"
        return j.RunInterrupted(reason=why), RunStopped(f"run {run.key} was {why}. Run it again to go on.")
    told = stopped(run.state, "What finished is kept.", stop)
    if stop.cancel:
        return j.RunInterrupted(reason="it is to be cancelled"), cancelled(run.state, stop)
    return j.RunPaused(reason=stop.reason, by=stop.by), told


def suspended(run: LiveRun) -> RunSuspended:
    """What a suspended run waits for, as its caller is told."""
    state = run.state
    questions = state.waits.questions()
    name = state.key if state.key.episode else state.key.goal
    signals = [pending.signal for pending in state.waits.steps.values() if pending.signal]
    how = f"Answer it with: perdure answer {name}; then" if questions else ""
    how = how or (f"Send it with: perdure signal {name} {signals[0]}; then" if signals else "")
    hint = f"{how} run it again." if how else "Run it again then."
    return RunSuspended(
        f"run {state.key} {waits_for(state)}. It needs no process meanwhile, and nothing is lost.",
        run=str(state.key),
        questions=tuple(q.id for q in questions),
        until=_next_date(state),
        hint=hint,
    )


def waits_for(state: State) -> str:
    """In words: what has to come from outside before anything of the run can move."""
    waits = [f"an answer to question {q.step} ({head(q.prompt, 80)})" for q in state.waits.questions()]
    waits += [f"the signal {pending.signal!r}" for pending in state.waits.steps.values() if pending.signal]
    until = _next_date(state)
    date = f"until {inbox.when(until)}" if until else ""
    outer = [step for step in state.steps.uncertain() if step.status == states.WAITING and not step.until]
    if any(not state.waits_inside(step.number) for step in outer):
        waits.append("a run that it began")
    if state.waits.arrived:
        return "can go on: what it waited for is there"
    if not waits:
        return f"waits {date}"
    shown = ", ".join(waits[:3]) + (f" and {len(waits) - 3} more" if len(waits) > 3 else "")
    return f"waits for {shown}{f', at most {date}' if date else ''}"


def _next_date(state: State) -> float:
    """When something of a waiting run is due; 0: never."""
    dates = [pending.until for pending in state.waits.steps.values()]
    dates += [date for step in state.steps.uncertain() if step.status in _TIMED for date in (step.until, step.wake)]
    return min((date for date in dates if date), default=0.0)


_TIMED = (states.RETRYING, states.WAITING)


def stopped(state: State, what: str, stop: j.StopRequested | None = None) -> RunStopped:
    by, reason = (stop.by, stop.reason) if stop is not None else (state.stopped_by, state.reason)
    return RunStopped(
        f"run {state.key} was stopped by {by or 'the run that began it'}: {reason}. {what}".rstrip(),
        hint=f"Let it go on with: perdure unpause {state.key}, and run it again.",
    )


def cancelled(state: State, stop: j.StopRequested | None = None) -> RunCancelled:
    by, reason = (stop.by, stop.reason) if stop is not None else (state.stopped_by, state.reason)
    return RunCancelled(
        f"run {state.key} was cancelled by {by}: {reason}. What finished is kept to look at.",
        hint="Begin another episode with new=True (--new).",
    )


def _signal(error: BaseException) -> str:
    """What told the process to stop, as people know it."""
    if isinstance(error, KeyboardInterrupt):
        return "Ctrl-C"
    if isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM:
        return "SIGTERM"
    return "cancelled" if isinstance(error, CancelledError | Halted) else type(error).__name__
