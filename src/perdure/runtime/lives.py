"""How a process takes a run up and gives it up: begin or resume, check the inputs, finalise on every exit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from perdure import codec, states
from perdure import journal as j
from perdure.clock import Clock, process_identity
from perdure.errors import (
    ConfigError,
    CorruptStore,
    LeaseLost,
    LimitReached,
    PerdureError,
    StoreError,
)
from perdure.fold import State, fold
from perdure.guard import Guard
from perdure.hooks import Observer
from perdure.model import ArgInfo, Attribution, Budget, Lease, RunKey, RunMeta
from perdure.record import code_changed
from perdure.runtime.config import CheckpointConfig
from perdure.runtime.endings import cancelled, stopped
from perdure.runtime.live import LiveRun
from perdure.runtime.outputs import Outputs, own_outputs
from perdure.runtime.past import present
from perdure.runtime.poison import poison
from perdure.runtime.queues import may_go_on
from perdure.runtime.recorded import Recalled, attributed, differences, recall, refuse_other_inputs
from perdure.runtime.settle import move, send, write
from perdure.runtime.steps import Function, Inputs
from perdure.runtime.threads import in_thread
from perdure.runtime.writer import Writer
from perdure.stores.base import Store, Which
from perdure.stores.disk import run_folder_name
from perdure.stores.handle import blobs_of

log = logging.getLogger("perdure")
CHANGED = "changed"
"""among what is to be executed again: steps whose code has changed"""


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
    version: str = ""
    args: tuple[ArgInfo, ...] = ()
    keyed: Callable[[Guard], tuple[ArgInfo, ...]] | None = None
    """the same for the guard of a run, where something takes part by its keyed digest"""
    inputs: Inputs = ((), {})
    recorded: Inputs | None = None
    """the inputs as they are to be recorded, if not as they are"""
    wait: float = 0.0
    """seconds to stay in this process while nothing of the run can move"""

    def seen(self, guard: Guard) -> tuple[ArgInfo, ...]:
        """The inputs as the run of that guard sees them."""
        return self.keyed(guard) if self.keyed is not None else self.args


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
        self.losses = 0
        """how often its leases were lost"""

    def begin(self, start: Start) -> Future[LiveRun | Finished | None]:
        """Find or create the run and become its appender. None when there is no store and the run may degrade.

        All of it is one visit to the writer's thread. The future raises LeaseHeld, InputMismatch, RunStopped,
        CorruptStore, NewerFormat.
        """
        if self.writer is None:
            nothing: Future[LiveRun | Finished | None] = Future()
            nothing.set_result(None)
            return nothing
        return self.writer.call(partial(self._begin, self.writer.store, start), together=True)

    def _begin(self, store: Store, start: Start) -> LiveRun | Finished:
        key, row = _which(store, start)
        if row is not None and row.status == states.COMPLETED and not start.rerun:
            state = present(store, key, row.seq)
            if not self._differences(state, start):
                return self._finished(store, state, start)
        lease = store.claim(key)
        try:
            tell_warnings(store)
            state = self._present(store, key, row.seq if row is not None else 0)
            if state.status is not None:  # nobody can have posted to a run without records
                move(store, lease, state, self.clock)
            if state.status == states.COMPLETED and not start.rerun and not self._differences(state, start):
                store.release(lease)  # somebody completed it a moment ago
                return self._finished(store, state, start)
            return self._enter(lease, state, start)
        except BaseException:
            store.release(lease)
            raise

    def _present(self, store: Store, key: RunKey, length: int | None) -> State:
        """What is recorded of a run that is going to be executed: all of it where that may go on without the store."""
        return present(store, key, 0 if self.config.store_failure == "degrade" else length)

    def take_up(self, lease: Lease, function: Function[..., Any]) -> Future[tuple[LiveRun, Inputs] | None]:
        """Begin a life of a run that was claimed because it may go on, with its recorded inputs. None, and the run is
        released, if there is nothing to execute. The future raises what prevents it; the run is released then too."""
        assert self.writer is not None
        writer, store = self.writer, self.writer.store
        if self.config.secrets is None:
            return writer.call(partial(self._take_up, store, lease, function))

        def resolving() -> tuple[LiveRun, Inputs] | None:  # which may take its time, and is not for the writer's thread
            recalled = writer.call(partial(self._recall, store, lease, function)).result()
            if recalled is None:
                return None
            try:
                recalled.resolve()
            except BaseException:
                writer.call(partial(store.release, lease)).result()
                raise
            return writer.call(partial(self._take_up, store, lease, function, recalled)).result()

        return in_thread(resolving, "secrets")

    def _recall(self, store: Store, lease: Lease, function: Function[..., Any]) -> Recalled | None:
        """A run that was claimed, and its recorded inputs. Releases it if there is nothing to execute, and when it
        raises."""
        key = lease.key
        try:
            tell_warnings(store)
            state = self._present(store, key, None)
            move(store, lease, state, self.clock)
            if not may_go_on(state, self.clock.now()):
                store.release(lease)
                return None
            _ = function.signature  # makes the types of its inputs known
            blobs = blobs_of(store, state.inputs.refs) if state.inputs is not None else {}
            return recall(state, blobs, self.guard(state))
        except BaseException:
            store.release(lease)
            raise

    def _take_up(
        self, store: Store, lease: Lease, function: Function[..., Any], recalled: Recalled | None = None
    ) -> tuple[LiveRun, Inputs] | None:
        recalled = recalled or self._recall(store, lease, function)
        if recalled is None:
            return None
        key, state, inputs = lease.key, recalled.state, recalled.inputs
        try:
            recalled.resolve()
            start = Start(
                key.goal,
                key.episode,
                flow=function.name,
                digest=function.digest,
                version=function.version,
                args=state.args,
                inputs=inputs,
            )
            return self._enter(lease, state, start), inputs
        except BaseException:
            store.release(lease)
            raise

    def _enter(self, lease: Lease, state: State, start: Start) -> LiveRun:
        """Append the entry with which a life begins: the first of the run, or another."""
        assert self.writer is not None
        self._admit(lease, state, start)
        pid, host = process_identity()
        fresh = state.status is None
        run_id = self.clock.new_id() if fresh else state.run_id
        guard = self.guard(state, run_id if fresh else "")
        args = start.seen(guard)
        differs = [] if fresh else differences(state, args)
        if not fresh and not start.adopt_input:
            refuse_other_inputs(state, args)
        again = select(state, start.rerun)
        renew = CHANGED in start.rerun or (state.renewing is not None and state.renewing == start.digest)
        same_code = not differs and not again and state.digest == start.digest and not state.diverged
        folder = self._folder(state)
        if state.forked is not None and not state.lives and folder is not None:
            Outputs(folder).bring(state.steps.values(), partial(blobs_of, self.writer.store))
        run = self._live(lease, state, same_code, guard, start.wait, renew)
        given = start.recorded or start.inputs
        inputs, blobs = codec.dumps(given, "inputs", guard) if fresh or differs else (None, {})
        if fresh:
            run.emit(
                (
                    j.RunBegan(
                        run_id=run_id,
                        flow=start.flow,
                        digest=start.digest,
                        version=start.version,
                        inputs=inputs,
                        args=args,
                        attribution=attributed(start.attribution, guard),
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
            args=args if differs else (),
            budget=budget if budget != state.budget else None,
            outputs=self._outputs(state.key),
            version=start.version if start.version != state.version else "",
            renew=renew,
        )
        if state.renewing is not None and not renew:
            text = "run %s: what had changed was to be executed again, with other code than this; here it is reused"
            log.warning(text, state.key)
        _log_resume(state, {number for entry in again for number in entry.steps})
        run.emit((resumed, *again), blobs)
        if state.stop is not None:  # it is being cancelled: its code is gone through for its clean-ups only
            run.halt = "cancelled"
        return run

    def _admit(self, lease: Lease, state: State, start: Start) -> None:
        """Raises LimitReached, RunCancelled or RunStopped for a run that is not to have another life."""
        assert self.writer is not None
        why = poison(state, self.config.crash_limit)
        if why:
            write(self.writer.store, lease, state, [j.RunPaused(reason=why, crashed=True)], self.clock)
            raise LimitReached(
                f"run {state.key} is paused: {why}. What finished is kept, and nothing was executed.",
                hint=f"Find out why, then give it another life with: perdure retry {state.key}",
            )
        if state.status == states.CANCELLED:
            raise cancelled(state)
        cancelling = state.stop is not None and state.stop.cancel
        if state.status == states.PAUSED and state.stopped_by and not (start.resume_stopped or cancelling):
            raise stopped(state, "Nothing was executed.")

    def lose(self, why: LeaseLost) -> None:
        """The leases of this process are gone, or cannot be trusted: everything that it executes is stopped."""
        self.losses += 1
        for run in list(self.live):
            run.lose(why)

    def deliver(self, store: Store) -> None:
        """Give the runs of this process what has been posted to them. On the writer's thread."""
        live = {run.key: run for run in list(self.live) if run.listens}
        try:
            found = store.posts({key: run.state.posts for key, run in live.items()})
        except CorruptStore:  # of one of them: the others shall hear
            found = {}
            for key, run in live.items():
                with _deafening(run):
                    found |= store.posts({key: run.state.posts})
        for key, posts in found.items():
            with _deafening(live[key]):
                live[key].take(posts)

    def guard(self, state: State, run_id: str = "") -> Guard:
        """What is kept out of the records of a run; ``run_id``: that it is to have, if it has none."""
        return Guard(run_id or state.keyed_by, self.config.redact, self.config.secrets, str(state.key))

    def _differences(self, state: State, start: Start) -> list[str]:
        return differences(state, start.seen(self.guard(state)))

    def _live(self, lease: Lease, state: State, same_code: bool, guard: Guard, stay: float, renew: bool) -> LiveRun:
        assert self.writer is not None
        folder = self._folder(state)
        told = self._outputs(state.key)
        if state.outputs and not told:  # a folder that stored data names is read, and never written to (rel:S5)
            text = "run %s: its outputs were kept in %s; name that folder again (outputs=) to have the rest there too"
            log.warning(text, state.key, state.outputs)
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
            guard=guard,
            renew=renew,
            stay=stay,
        )
        self.live.add(run)
        return run

    def _folder(self, state: State) -> Path | None:
        """Where this process keeps the outputs of a run as files, if it does."""
        assert self.writer is not None
        told = self._outputs(state.key)
        return Path(told) if told else own_outputs(self.writer.store, state)

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
            rows = [row for row in store.runs(Which(goal=goal)) if episode in (None, row.episode)]
            return fold(rows[-1].key, store.read(rows[-1].key)) if rows else None

        return self.writer.call(read)

    def cancel(self, key: RunKey, by: str, reason: str) -> Future[None]:
        """Cancel a run, unless it has ended. The future raises AnswerRefused, StoreError."""
        assert self.writer is not None
        store = self.writer.store

        def cancel() -> None:
            if any(
                row.episode == key.episode and row.status not in states.RUN_OVER
                for row in store.runs(Which(goal=key.goal))
            ):
                stop = partial(j.StopRequested, by=by, reason=reason, cancel=True)
                send(store, self.clock, key, lambda _: stop(), patience=0.0)

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

    def _finished(self, store: Store, state: State, start: Start) -> Finished:
        assert state.output is not None
        if code_changed(state.digest, start.digest):
            how = "rerun='changed' (--rerun changed)"
            log.warning("run %s had completed with other code. To execute what has changed: %s", state.key, how)
        log.info("run %s had completed; its recorded result is returned and nothing is executed", state.key)
        return Finished(codec.loads(state.output, blobs_of(store, state.output.refs), self.guard(state)))


def tell_warnings(store: Store) -> None:
    """Log what the store has found, or would lose."""
    for warning in store.warnings():
        log.warning("%s", warning)


@contextmanager
def _deafening(run: LiveRun) -> Iterator[None]:
    """If the inbox of a run cannot be read, it goes on without; that is told once."""
    try:
        yield
    except PerdureError as error:
        run.deaf = True
        log.error("run %s goes on without what others post to it: %s", run.key, error)


def _which(store: Store, start: Start) -> tuple[RunKey, RunMeta | None]:
    """The run that is meant, and its row if there is one."""
    rows = {row.episode: row for row in store.runs(Which(goal=start.goal))}
    latest = max(rows, default=-1)
    episode = start.episode if start.episode is not None else latest + 1 if start.new else max(latest, 0)
    key = RunKey.of(start.goal, episode)
    if start.new and episode <= latest and start.episode is not None:
        raise ConfigError(f"run {key} is there already, and new=True asks for a fresh one.", hint="Leave episode out.")
    return key, rows.get(episode)


def select(state: State, wanted: Sequence[str]) -> list[j.StepsInvalidated]:
    """Recorded steps that ``wanted`` names: "failed", "flagged", a step's number, name or path. ("changed" is decided
    when a step is asked for.)

    With a step goes every step inside which it was executed. Failed steps have no result to drop; asking for them only
    opens the run again. Raises ConfigError for a name that no step has.
    """
    chosen: dict[int, str] = {}
    for word in wanted:
        if word == CHANGED:
            continue
        if word in (states.FAILED, states.FLAGGED):
            chosen |= {n: word for n, step in state.steps.items() if step.status == word}
            continue
        found = [s for s in state.steps.values() if s.is_called(word)]
        if not found:
            names = ", ".join(dict.fromkeys(s.path for s in state.steps.values())) or "none"
            hint = f"Its steps: {names}; or {CHANGED}, failed, flagged."
            raise ConfigError(f"run {state.key} has no step {word!r}.", hint=hint)
        chosen |= dict.fromkeys((s.number for s in found), "forced")
    chosen = {n: "around" for number in chosen for n in state.around(state.steps[number])} | chosen
    causes: dict[str, list[int]] = {}
    for number in sorted(chosen):
        if state.steps[number].recorded:
            causes.setdefault(chosen[number], []).append(number)
    return [j.StepsInvalidated(steps=tuple(numbers), why=why) for why, numbers in causes.items()]


def _log_resume(state: State, invalid: set[int]) -> None:
    if not state.lives and state.forked is None:
        log.info("run %s begins (it was queued)", state.key)
        return
    count, seconds = state.steps.work()
    log.info(
        "run %s goes on (it was %s): %d steps are recorded, %.1f s of work",
        state.key,
        "crashed" if state.status == states.RUNNING else state.status,
        count - len(invalid),
        seconds - sum(state.steps[number].seconds for number in invalid),
    )
