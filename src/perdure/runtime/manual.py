"""Runs and steps for loops of one's own: the same machine, driven by ``with`` blocks instead of decorators.

    with manager.begin(goal="paper-17") as run:
        for phase in phases:
            with run.step(phase.name) as step:
                if not step.recorded:
                    step.complete(work(phase, step.progress))

Retries are the loop's own affair; everything else (identity, crash policy, empty outputs, progress) is as for
``@step``.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

from perdure import codec
from perdure.checks import not_empty
from perdure.clock import SYSTEM
from perdure.commands import Call, Outcome
from perdure.errors import ConfigError
from perdure.guard import Guard
from perdure.life import Cursor, Request, Seen, StepOptions
from perdure.model import RunKey, check_name
from perdure.replay import execute
from perdure.runtime.context import Frame, StepContext, entered
from perdure.runtime.drive import perform, post
from perdure.runtime.endings import completed, finalised, unanswered
from perdure.runtime.execute import begin
from perdure.runtime.live import Durability, LiveRun
from perdure.runtime.lives import Finished, Lives, Start
from perdure.runtime.strands import requester


class ManualRun:
    """A run whose steps are marked by hand. Use as a context manager."""

    def __init__(self, lives: Lives, start: Start) -> None:
        self._lives = lives
        self._start = start
        self._live: LiveRun | None = None
        self._result: object = None
        self._final: AbstractContextManager[None] | None = None
        self._frame: entered | None = None
        self._cursor = Cursor(None, "")

    def __enter__(self) -> Self:
        began = begin(self._lives, self._start)
        if isinstance(began, Finished):
            raise ConfigError(
                f"run {self._start.goal} has completed already.",
                hint="Pass new=True for another episode, or rerun=(...).",
            )
        self._live = began
        if began is not None:
            self._cursor = Cursor(began.life, "")
            self._final = finalised(began)
            self._final.__enter__()
            self._frame = entered(Frame(began, self._cursor))
            self._frame.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is None or self._final is None or self._frame is None:
            return
        self._frame.__exit__()
        try:
            try:
                if error is None:
                    for question in unanswered(self._live):
                        post(self._live, question).result()
                    entry, blobs = completed(self._live, self._result)
                    self._live.wait(self._live.emit((entry,), blobs, last=True))
            except BaseException as late:
                self._final.__exit__(type(late), late, late.__traceback__)
                raise
            self._final.__exit__(kind, error, trace)
        finally:
            self._lives.end(self._live)

    @property
    def key(self) -> RunKey | None:
        return self._live.key if self._live else None

    @property
    def durability(self) -> Durability:
        """Whether this run is durable, or since when not (B10)."""
        return self._live.durability if self._live else Durability(False, "", "the store could not be opened")

    def complete(self, result: object) -> None:
        """What the run's result is to be when the block ends."""
        self._result = result

    def step(self, name: str, *inputs: object, key: str | None = None) -> ManualStep:
        """The next step of that name and inputs (or ``key``)."""
        check_name("step name", name)
        guard = self._live.life.guard if self._live is not None else Guard(SYSTEM.new_id())
        seen = Seen([(f"input{i}", codec.digested(value, f"input{i}", guard)) for i, value in enumerate(inputs)])
        told = key if key is not None else [info.digest for info in seen.infos]
        fingerprint = codec.digest(told, "key", guard)[0]
        return ManualStep(self._live, self._cursor, Request(name, StepOptions(check=not_empty), fingerprint, seen))


class ManualStep:
    """One step of a manual run. ``recorded`` tells whether ``value`` is there already."""

    def __init__(self, live: LiveRun | None, cursor: Cursor, request: Request) -> None:
        self._live = live
        self._request = request
        self._machine = execute(live.life if live else None, cursor, request, requester())
        self._context: StepContext | None = None
        self._entered: AbstractContextManager[None] | None = None
        self._began = 0.0
        self.recorded = False
        self.value: Any = None
        """the recorded or completed result"""

    def __enter__(self) -> Self:
        self._drive(None)
        return self

    def _drive(self, reply: object) -> None:
        """Run the machine until it wants the body, or ends."""
        error: BaseException | None = None
        while True:
            try:
                command = self._machine.throw(error) if error is not None else self._machine.send(reply)
            except StopIteration as end:
                self.recorded, self.value = True, end.value
                self._leave()
                return
            except BaseException:
                self._leave()
                raise
            if isinstance(command, Call):
                self._context = StepContext(self._live, command, self._request.name, is_async=False)
                inner = command.inner or Cursor(None, "")
                self._entered = entered(Frame(self._live, inner, self._context))
                self._entered.__enter__()
                self._began = self._live.clock.monotonic() if self._live else 0.0
                return
            try:
                reply, error = perform(command, self._live), None
            except BaseException as raised:
                reply, error = None, raised

    def _leave(self) -> None:
        if self._context is not None:
            self._context.end(keep_text=not self.recorded)
        if self._entered is not None:
            self._entered.__exit__(None, None, None)
            self._entered = None

    @property
    def progress(self) -> Any:
        """What an earlier attempt saved."""
        return self._context.progress if self._context else None

    @property
    def context(self) -> StepContext:
        """Attempt, idempotency key, save and stream. Raises ConfigError for a recorded step."""
        if self._context is None:
            raise ConfigError(f"step {self._request.name} is recorded: nothing is running.")
        return self._context

    def save(self, progress: object) -> None:
        """Keep ``progress`` for the next attempt; durable on return."""
        self.context.save(progress)

    def complete(self, value: object) -> None:
        """The step's result; durable on return. Raises OutputRefused for an empty one, CodecError for one that cannot
        be stored."""
        if self.recorded:
            raise ConfigError(f"step {self._request.name} has its result already.", hint="Ask step.recorded first.")
        seconds = self._live.clock.monotonic() - self._began if self._live else 0.0
        self._drive(Outcome(value, None, round(seconds, 6)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.recorded or self._entered is None:
            return
        if error is None:
            error = ConfigError(f"step {self._request.name}: its block ended without step.complete(value).")
        if isinstance(error, Exception):
            self._fail(error)
            if kind is None:
                raise error
            return
        try:
            perform(self._machine.throw(error), self._live)  # the note that the attempt was interrupted
            self._machine.close()
        finally:
            self._leave()

    def _fail(self, error: Exception) -> None:
        try:
            self._drive(Outcome(None, error, 0.0))
        except Exception as raised:
            if raised is not error:
                raise
