"""The machine of everything that waits for something from outside: questions, signals, timers.

A wait is a step without a body. ``pending`` is durable before anybody is told of it; then the machine looks at what has
arrived for the step, and yields ``Wait`` until there is something to look at. What arrives is a fact of the journal (an
answer, a signal, the passing of a deadline), so a later life finds it there, or goes on waiting: nothing is asked
twice, and no answer is used twice.

The deadline ends a wait by way of the inbox, as an answer does (inbox.py): one of both comes first, and the other is
refused.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import msgspec

from perdure import codec, inbox
from perdure import journal as j
from perdure.commands import Append, Call, Machine, Now, Post, Wait
from perdure.errors import AnswerRefused, ConfigError, DeadlinePassed, Halted
from perdure.life import Cursor, Life, Request
from perdure.record import Identity, Step
from perdure.redaction import discreet
from perdure.replay import copy, load, reuse


class Dropped(Halted):
    """The branch that waits is not needed any more."""


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What is waited for."""

    seconds: float | None = None
    """the timer's time, or until the deadline, from the moment the wait begins"""
    until: float = 0.0
    """the same as a date, seconds since 1970; 0: there is none"""
    asked: j.Asked | None = None
    blobs: dict[str, bytes] = {}
    """what the question needs"""
    signal: str = ""
    take: Callable[[bytes], object] = msgspec.json.decode
    """from the JSON that came to the value. Raises AnswerRefused"""
    default: tuple[object] | None = None
    """what holds when the deadline passes; None: DeadlinePassed is raised"""
    reusable: Callable[[object], bool] | None = None
    """whether an answer that was recorded for an equal question anywhere in the run holds for this one"""
    notify: bool = False
    """somebody is to be told of the question"""


def execute(life: Life, cursor: Cursor, request: Request, spec: Spec, by: Hashable) -> Machine:
    """Wait, or reuse what came the first time. Returns the value; raises DeadlinePassed."""
    claimed = request.n is not None
    n = request.n if request.n is not None else cursor.claim(request, by)
    identity = Identity(cursor.scope, request.name, request.fingerprint, n)
    try:
        step = life.state.steps.find(identity)
        if life.rehearsal is not None:
            return (yield from life.rehearsal.answer(step, identity, request))
        if step is not None and step.recorded:
            request.number = step.number
            life.asked.add(step.number)
            return (yield from reuse(life, step, request))
        if step is None and spec.reusable is not None:
            source = life.state.steps.latest(request.name, request.fingerprint)
            known = (yield from load(life, source.output)) if source is not None and source.output is not None else None
            if source is not None and known is not None and spec.reusable(known):
                number = request.number = next(life.numbers)
                life.asked.add(number)
                return (yield from copy(life, identity, request, number, source))
        return (yield from _Waiting(life, identity, request, spec, step).run())
    finally:
        if not claimed:
            cursor.done(request.name, request.fingerprint, by)


class _Waiting:
    """One wait, from its beginning to its end, in whatever life that is."""

    def __init__(self, life: Life, identity: Identity, request: Request, spec: Spec, step: Step | None) -> None:
        self.life, self.identity, self.request, self.spec = life, identity, request, spec
        self.number = request.number = step.number if step is not None else next(life.numbers)
        self.attempt = len(step.attempts) if step is not None else 0
        life.asked.add(self.number)

    def run(self) -> Machine:
        state = self.life.state
        late = False
        try:
            if self.number not in state.waits.steps:
                yield from self.begin()
            until = state.waits.steps[self.number].until
            if self.spec.notify and self.number not in state.waits.arrived:
                inner = Cursor(self.life, self.identity)
                yield Call("notify", self.number, self.attempt, lambda: "", None, "", inner)
            while True:
                arrived = state.waits.arrived.get(self.number)
                if arrived is not None:
                    done, value = yield from self.take(arrived)
                    if done:
                        return value
                elif late or inbox.passed(state, until, (yield Now())):
                    if self.is_timer:
                        return (yield from self.complete(None))
                    yield self.close(expired=True)
                else:
                    late = bool((yield Wait(until, lambda: self.number in state.waits.arrived)))
        except Dropped:
            if self.number in state.waits.steps:
                yield self.close(expired=False)
            raise
        except Halted:
            raise
        except BaseException:
            if self.number in state.waits.steps:
                self.life.orphans.append(self.number)
            raise

    @property
    def is_timer(self) -> bool:
        return self.spec.asked is None and not self.spec.signal

    def begin(self) -> Machine:
        """Make it known that the run waits. A date in the past is refused, once: later lives find it recorded."""
        now = yield Now()
        until = self.spec.until if self.spec.seconds is None else now + self.spec.seconds
        if until and until <= now and not self.is_timer:
            raise ConfigError(
                f"run {self.life.state.key}, {self.request.name}: its deadline is in the past. Nothing was asked.",
                hint="Give a timedelta, or a date to come.",
            )
        self.attempt += 1
        first = self.attempt == 1
        scope, name, fingerprint, n = self.identity if first else Identity("", "", "", 0)
        entry = j.StepPending(
            step=self.number,
            attempt=self.attempt,
            scope=scope,
            name=name,
            fingerprint=fingerprint,
            n=n,
            args=self.request.args if first else (),
            digest=self.request.digest,
            until=until,
            asked=self.spec.asked,
            signal=self.spec.signal,
        )
        yield Append((entry,), True, self.spec.blobs, True)

    def take(self, arrived: j.Posted) -> Machine:
        """(whether the wait is over, its value)."""
        if isinstance(arrived, j.QuestionClosed):
            if self.spec.default is not None:
                return True, (yield from self.complete(self.spec.default[0]))
            what = f"the signal {self.spec.signal!r}" if self.spec.signal else "an answer"
            step = self.life.state.steps[self.number]
            error = DeadlinePassed(
                f"run {self.life.state.key}: step {self.number} ({step.path}) waited for {what}, and its deadline "
                "passed. Nothing was lost.",
                hint="Run it again to wait anew, or declare a default=.",
            )
            info = codec.describe_error(error)
            failed = j.StepFailed(step=self.number, attempt=self.attempt, outcome="timed_out", error=info, final=True)
            yield Append((failed,), True)
            raise error
        assert isinstance(arrived, j.QuestionAnswered | j.SignalReceived)
        try:
            value = self.spec.take(bytes(arrived.value))
        except AnswerRefused as wrong:
            self.life.tell(f"run {self.life.state.key}: step {self.number} cannot take what came: {wrong}")
            yield Append((j.AnswerRejected(step=self.number, why=discreet(str(wrong))),), True)
            return False, None
        return True, (yield from self.complete(value))

    def complete(self, value: object) -> Machine:
        payload, blobs = codec.dumps(value, f"{self.request.name}()", self.life.guard)
        yield Append((j.StepCompleted(step=self.number, attempt=self.attempt, output=payload),), True, blobs)
        return value

    def close(self, expired: bool) -> Post:
        question = self.life.state.waits.question_id(self.number)
        return Post(j.QuestionClosed(step=self.number, question=question, expired=expired))
