"""How a process takes a run up and gives it up: begin or resume, check the inputs, finalise on every exit.

What a run's end becomes (B3): a returned value is COMPLETED; an exception is FAILED, which recovery leaves alone and a
person may run again; a step in doubt that may not be repeated is PAUSED; a run of which nothing can move before
something comes from outside is PENDING_INPUT or WAITING; one that a person gave up is CANCELLED; cancellation of our
task, Ctrl-C, SIGTERM and a closing event loop are INTERRUPTED; a store that fails or a lost lease is never recorded as
an outcome (rel:R7): the journal ends where it ends, and the next process goes on from there.
"""

from __future__ import annotations

import logging
import signal
from asyncio import CancelledError
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from perdure import codec, inbox, states
from perdure import journal as j
from perdure.clock import Clock, process_identity
from perdure.errors import (
    ConfigError,
    Halted,
    InputMismatch,
    PerdureError,
    RunCancelled,
    RunPaused,
    RunStopped,
    RunSuspended,
    StoreError,
)
from perdure.fold import State, fold
from perdure.hooks import Observer
from perdure.model import ArgInfo, Attribution, Budget, Lease, RunKey
from perdure.runtime.config import CheckpointConfig
from perdure.runtime.live import LiveRun
from perdure.runtime.outputs import Outputs, outputs_folder
from perdure.runtime.settle import move, send
from perdure.runtime.writer import Writer
from perdure.stores.base import Store
from perdure.stores.disk import run_folder_name

log = logging.getLogger("perdure")


class Start(NamedTuple):
    """What somebody asks for: which run, of what, with which inputs."""

    goal: str
    episode: int | None = None
    new: bool = False
    rerun: tuple[str, ...] = ()
    adopt_input: bool = False
    resume_stopped: bool = False
    attribution: Attribution = Attribution()
    target: str = ""
    budget: Budget | None = None
    flow: str = ""
    digest: str = ""
    args: tuple[ArgInfo, ...] = ()
    inputs: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
    wait: float = 0.0
    """seconds to stay in this process while nothing of the run can move"""


class Finished(NamedTuple):
    """A run that has ended already: there is nothing to execute."""

    value: Any


class Lives:
    """Begins and ends lives of runs on one store. ``writer`` is None when the store could not be opened and runs may
    execute without it (B4)."""

    def __init__(
        self, writer: Writer | None, config: CheckpointConfig, observers: tuple[Observer, ...], clock: Clock
    ) -> None:
        self.writer = writer
        self.config = config
        self.observers = observers
        self.clock = clock
        self.live: set[LiveRun] = set()
        """runs that are executed on this store by this process"""

    def begin(self, start: Start) -> Future[LiveRun | Finished | None]:
        """Find or create the run and become its appender. None when there is no store and the run may degrade.

        All of it is one visit to the writer's thread. The future raises LeaseHeld, InputMismatch, RunStopped,
        CorruptStore, NewerFormat.
        """
        if self.writer is None:
            nothing: Future[LiveRun | Finished | None] = Future()
            nothing.set_result(None)
            return nothing
        return self.writer.call(partial(self._begin, self.writer.store, start))

    def _begin(self, store: Store, start: Start) -> LiveRun | Finished:
        key, status = _which(store, start)
        if status == states.COMPLETED and not start.rerun:
            state = fold(key, store.read(key))
            if not self._differs(state, start):
                return self._finished(store, state)
        lease = store.claim(key)
        try:
            for warning in store.warnings():
                log.warning("%s", warning)
            state = fold(key, store.read(key))
            move(store, lease, state, self.clock)
            if state.status == states.COMPLETED and not start.rerun and not self._differs(state, start):
                store.release(lease)  # somebody completed it a moment ago
                return self._finished(store, state)
            return self._enter(lease, state, start)
        except BaseException:
            store.release(lease)
            raise

    def _enter(self, lease: Lease, state: State, start: Start) -> LiveRun:
        """Append the entry with which a life begins: the first of the run, or another."""
        pid, host = process_identity()
        if state.status == states.CANCELLED:
            raise cancelled(state)
        if state.status == states.PAUSED and state.stopped_by and not start.resume_stopped:
            raise stopped(state, "Nothing was executed.")
        fresh = state.status is None
        differs = [] if fresh else self._differs(state, start)
        if differs and not start.adopt_input:
            raise InputMismatch(
                f"run {state.key} was begun with other inputs: {'; '.join(differs)}. Nothing was executed or changed.",
                hint="Pass the same inputs, or new=True for another episode, or adopt_input=True (--adopt-input) to go "
                "on with these and reuse every step whose own inputs are the same.",
            )
        invalid = select(state, start.rerun)
        same_code = not differs and not invalid and state.digest == start.digest
        run = self._live(lease, state, same_code, start.wait)
        inputs, blobs = codec.dumps(start.inputs, "inputs") if fresh or differs else (None, {})
        if fresh:
            run.emit(
                (
                    j.RunBegan(
                        run_id=self.clock.new_id(),
                        flow=start.flow,
                        digest=start.digest,
                        inputs=inputs,
                        args=start.args,
                        attribution=start.attribution,
                        durability=self.config.durability,
                        target=start.target,
                        budget=start.budget,
                        outputs=self._outputs(state.key),
                        epoch=lease.epoch,
                        pid=pid,
                        host=host,
                    ),
                ),
                blobs,
            )
            log.info("run %s begins", state.key)
            return run
        budget = start.budget.over(state.budget) if start.budget is not None else None
        resumed = j.RunResumed(
            epoch=lease.epoch,
            pid=pid,
            host=host,
            digest=start.digest,
            inputs=inputs,
            args=start.args if differs else (),
            budget=budget if budget != state.budget else None,
            outputs=self._outputs(state.key),
        )
        _log_resume(state, invalid)
        entries: tuple[j.Entry, ...] = (resumed,)
        if invalid:
            entries += (j.StepsInvalidated(steps=invalid, why="rerun " + " ".join(start.rerun)),)
        run.emit(entries, blobs)
        if state.stop is not None:  # it is being cancelled: its code is gone through for its clean-ups only
            run.halt = "cancelled"
        return run

    def deliver(self, store: Store) -> None:
        """Give the runs of this process what has been posted to them. On the writer's thread."""
        live = {run.key: run for run in list(self.live) if run.broken is None and run.durability.durable}
        for key, posts in store.posts({key: run.state.posts for key, run in live.items()}).items():
            try:
                live[key].take(posts)
            except PerdureError as error:
                log.error("run %s: its inbox cannot be read: %s", key, error)

    def _live(self, lease: Lease, state: State, same_code: bool, stay: float) -> LiveRun:
        assert self.writer is not None
        told = self._outputs(state.key)
        folder = Path(told) if told else outputs_folder(self.writer.store, state)
        run = LiveRun(
            self.writer,
            lease,
            state,
            clock=self.clock,
            durability=self.config.durability,
            strict=self.config.nondeterminism == "raise",
            same_code=same_code,
            degrade=self.config.store_failure == "degrade",
            outputs=Outputs(folder) if folder else None,
            observers=self.observers,
            lives=self,
            stay=stay,
        )
        self.live.add(run)
        return run

    def _outputs(self, key: RunKey) -> str:
        """The folder for outputs that the configuration asks for."""
        root = self.config.outputs
        return str(Path(root).resolve() / run_folder_name(key)) if root else ""

    def look(self, goal: str, episode: int | None = None) -> Future[State | None]:
        """What the journal tells of a run (its latest episode), read anew; None if there is none, or no store."""
        if self.writer is None:
            nothing: Future[State | None] = Future()
            nothing.set_result(None)
            return nothing
        store = self.writer.store

        def read() -> State | None:
            rows = [row for row in store.runs(goal) if episode in (None, row.episode)]
            return fold(rows[-1].key, store.read(rows[-1].key)) if rows else None

        return self.writer.call(read)

    def cancel(self, key: RunKey, by: str, reason: str) -> Future[None]:
        """Cancel a run, unless it has ended. The future raises AnswerRefused, StoreError."""
        assert self.writer is not None
        store = self.writer.store

        def cancel() -> None:
            if any(row.episode == key.episode and row.status not in states.RUN_OVER for row in store.runs(key.goal)):
                send(store, self.clock, key, lambda state: j.StopRequested(by=by, reason=reason, cancel=True))

        return self.writer.call(cancel)

    def end(self, run: LiveRun, wait: bool = True) -> None:
        """Give the run up: others may continue it, and late branches of ours are refused."""
        store_failed = isinstance(run.broken, StoreError)
        sound = run.broken is None and run.durability.durable and run.state.status != states.RUNNING
        self.live.discard(run)
        run.close("this process has given the run up")
        if not store_failed:  # else nothing can be told to it any more; the lease is free when the handle is closed
            released = self._release(run, sound)
            if wait:
                released.exception()

    def _release(self, run: LiveRun, sound: bool) -> Future[None]:
        """Queue the release of a run's lease; a failure is logged. Posts that came since it ended are moved first, if
        its journal is ``sound``: all that its state says."""
        assert self.writer is not None
        store, lease = self.writer.store, run.lease

        def release() -> None:
            try:
                if sound:
                    move(store, lease, run.state, self.clock)
            finally:
                store.release(lease)

        def told(future: Future[None]) -> None:
            if future.exception() is not None:
                text = "run %s: its lease could not be released (%s); it is free when this process ends"
                log.warning(text, lease.key, future.exception())

        released = self.writer.call(release)
        released.add_done_callback(told)
        return released

    def _finished(self, store: Store, state: State) -> Finished:
        assert state.output is not None
        log.info("run %s had completed; its recorded result is returned and nothing is executed", state.key)
        return Finished(codec.loads(state.output, {digest: store.blob(digest) for digest in state.output.refs}))

    def _differs(self, state: State, start: Start) -> list[str]:
        """Which inputs are not those the run was begun with."""
        old = {a.name: a for a in state.args}
        new = {a.name: a for a in start.args}

        def told(args: dict[str, ArgInfo], name: str) -> str:
            return args[name].head if name in args else "absent"

        return [
            f"{name} was {told(old, name)}, now {told(new, name)}"
            for name in sorted(old.keys() | new.keys())
            if name not in old or name not in new or old[name].digest != new[name].digest
        ]


def _which(store: Store, start: Start) -> tuple[RunKey, str]:
    """The run that is meant, and its status ("" when there is none)."""
    rows = {row.episode: row for row in store.runs(start.goal)}
    latest = max(rows, default=-1)
    episode = start.episode if start.episode is not None else latest + 1 if start.new else max(latest, 0)
    key = RunKey.of(start.goal, episode)
    if start.new and episode <= latest and start.episode is not None:
        raise ConfigError(f"run {key} is there already, and new=True asks for a fresh one.", hint="Leave episode out.")
    return key, rows[episode].status if episode in rows else ""


def select(state: State, wanted: Sequence[str]) -> tuple[int, ...]:
    """Recorded steps that ``wanted`` names: "failed", "flagged", a step's number, name or path.

    With a step goes every step inside which it was executed. Failed steps have no result to drop; asking for them only
    opens the run again. Raises ConfigError for a name that no step has.
    """
    chosen: set[int] = set()
    for word in wanted:
        if word in (states.FAILED, states.FLAGGED):
            chosen.update(n for n, step in state.steps.items() if step.status == word)
            continue
        found = [s for s in state.steps.values() if word in (str(s.number), s.name, s.path)]
        if not found:
            names = ", ".join(dict.fromkeys(s.path for s in state.steps.values())) or "none"
            raise ConfigError(f"run {state.key} has no step {word!r}.", hint=f"Its steps: {names}; or failed, flagged.")
        chosen.update(s.number for s in found)
    around = {n for number in chosen for n in state.around(state.steps[number])}
    return tuple(sorted(n for n in chosen | around if state.steps[n].recorded))


def completed(run: LiveRun, value: object) -> tuple[j.RunCompleted, dict[str, bytes]]:
    """The entry that ends a run well. Raises CodecError if its result cannot be stored."""
    output, blobs = codec.dumps(value, f"result of {run.state.flow or 'the run'}")
    life = run.life
    saved = round(sum(life.reused.values()), 6)
    if life.reused:
        log.info("run %s completed: %d steps reused, %.1f s saved", run.key, len(life.reused), saved)
    entry = j.RunCompleted(
        output=output, reused=len(life.reused), saved=saved, unused=life.unused(), saved_usage=life.saved_usage()
    )
    return entry, blobs


def unanswered(run: LiveRun) -> list[j.QuestionClosed]:
    """What to post before a run completes: nobody needs an answer to what it still asks."""
    pending = run.state.pending.values()
    return [
        j.QuestionClosed(step=entry.step, question=run.state.question_id(entry) if entry.asked else "")
        for entry in list(pending)
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
        outside = outside or (isinstance(error, CancelledError) and run.halt != "cancelled")
        if run.broken is None and not isinstance(error, StoreError):
            told = _record_end(run, error, outside)
            if told is not error:
                raise told from None
        raise
    finally:
        run.leave_task()


def _record_end(run: LiveRun, error: BaseException, outside: bool) -> BaseException:
    """Journal how a run ended; returns what its caller is to be told. ``outside``: somebody else stopped this process,
    or the task that executes the run."""
    entry, told = _ending(run, error, outside)
    try:
        run.wait(run.emit((entry,), last=True))
        log.info("run %s: %s recorded (%s)", run.key, j.kind_of(entry), told or type(told).__name__)
    except PerdureError as problem:
        log.error("run %s: how it ended could not be recorded: %s", run.key, problem)
    return told


def _ending(run: LiveRun, error: BaseException, outside: bool) -> tuple[j.Entry, BaseException]:
    """The entry that says how a run ended, and what its caller is told."""
    state, stop = run.state, run.state.stop
    if run.halt and not outside and not (run.halt == "paused" and isinstance(error, Exception)):
        if run.halt == "suspended":
            told = suspended(run)
            asks = bool(told.questions) or any(pending.signal for pending in state.pending.values())
            return j.RunSuspended(reason=waits_for(state), wake=told.until, input=asks), told
        if stop is None:
            return j.RunInterrupted(reason="the run that began it was stopped"), stopped(state, "")
        if run.halt == "paused":
            return j.RunPaused(reason=stop.reason, by=stop.by), stopped(state, "What finished is kept.", stop)
        if run.cleanup_error is None:
            return j.RunCancelled(reason=stop.reason, by=stop.by), cancelled(state, stop)
        if isinstance(run.cleanup_error, Halted):
            return j.RunInterrupted(reason="its clean-up waits"), suspended(run)
        error = run.cleanup_error
    if isinstance(error, RunPaused):
        return j.RunPaused(reason=str(error)), error
    if isinstance(error, Exception):
        return j.RunFailed(error=codec.describe_error(error)), error
    return j.RunInterrupted(reason=_signal(error)), error


def suspended(run: LiveRun) -> RunSuspended:
    """What a suspended run waits for, as its caller is told."""
    state = run.state
    questions = state.questions()
    name = state.key if state.key.episode else state.key.goal
    hint = f"Answer it with: perdure answer {name}; then run it again." if questions else "Run it again then."
    return RunSuspended(
        f"run {state.key} {waits_for(state)}. It needs no process meanwhile, and nothing is lost.",
        run=str(state.key),
        questions=tuple(q.id for q in questions),
        until=_next_date(state),
        hint=hint,
    )


def waits_for(state: State) -> str:
    """In words: what has to come from outside before anything of the run can move."""
    waits = [f"an answer to question {q.step} ({head(q.prompt)})" for q in state.questions()]
    waits += [f"the signal {pending.signal!r}" for pending in state.pending.values() if pending.signal]
    until = _next_date(state)
    date = f"until {inbox.when(until)}" if until else ""
    if any(step.status == states.WAITING and not step.until for step in state.steps.values()):
        waits.append("a run that it began")
    if not waits:
        return f"waits {date}"
    shown = ", ".join(waits[:3]) + (f" and {len(waits) - 3} more" if len(waits) > 3 else "")
    return f"waits for {shown}{f', at most {date}' if date else ''}"


def _next_date(state: State) -> float:
    """When something of a waiting run is due; 0: never."""
    dates = [pending.until for pending in state.pending.values()]
    dates += [date for step in state.steps.values() if step.status in _TIMED for date in (step.until, step.wake)]
    return min((date for date in dates if date), default=0.0)


_TIMED = (states.RETRYING, states.WAITING)


def head(text: str, width: int = 80) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 3] + "..."


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
    return "cancelled" if isinstance(error, CancelledError) else type(error).__name__


def _log_resume(state: State, invalid: tuple[int, ...]) -> None:
    recorded = [s for s in state.steps.values() if s.recorded and s.number not in invalid]
    log.info(
        "run %s goes on (it was %s): %d steps are recorded, %.1f s of work",
        state.key,
        "crashed" if state.status == states.RUNNING else state.status,
        len(recorded),
        sum(s.seconds for s in recorded),
    )
