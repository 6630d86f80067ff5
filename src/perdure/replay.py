"""The machine that runs one step: given what is recorded and a request, it yields what to do next.

How durable execution works here, in one page:

A flow is ordinary code. When it calls a step, the call becomes a ``Request``: scope, name, fingerprint of the
arguments, and ``n``, its ordinal among equal requests of this scope in this life. If a step of that identity has a
recorded result, the result is handed back and the body does not run. If not, ``started`` is made durable, the body
runs, ``completed`` is made durable, and only then does the caller get the value. After a crash the flow is simply
called again: it asks for the same steps, gets the recorded results, and goes on where nothing is recorded. Because
identity is made of scope, name and inputs and not of a position in a sequence, steps may be inserted, removed,
reordered or fanned out between two lives.

``execute`` is a generator. It does no I/O and knows neither threads nor event loops; it yields commands and is sent
their replies:

    Load(digests)          -> dict of blobs
    Read(seq)              -> an entry that the run has recorded
    Append(entries, wait)  -> None, when durable (wait=True) or queued
    Call(...)              -> Outcome of the body (or of ``verify``)
    Wait(until, is_up)     -> whether the date has come; else something else has
    Post(entry)            -> None, when it is in the run's inbox, or something else came first
    Now()                  -> wall clock, seconds

runtime/drive.py holds the two drivers, one for each colour of user code. Without a store (``life=None``) the same
generator applies retries, checks and timeouts and yields no Append, so that results are the same with and without.

Concurrency: the branches of ``gather`` and its kin claim their ordinals or get scopes of their own when they are
created, in the order written, so no schedule can swap results. Tasks made behind our back claim in the order in which
they happen to run; a ``Cursor`` therefore refuses two overlapping equal requests from different tasks (AmbiguousStep).

Rejected: matching by position in a sequence (an edit strands the run); matching by "any unclaimed record of that name"
(two chains exchange results). Doubtful still: a foreign task that asks again after another foreign task of equal
requests has *finished* is not noticed, since nothing overlaps.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final

from perdure import codec, states
from perdure import journal as j
from perdure.book import Recorded
from perdure.checks import refusal
from perdure.commands import Append, Call, Found, Load, Machine, Now, Outcome, Read, Wait
from perdure.difference import tell_difference
from perdure.errors import (
    CodecError,
    CorruptStore,
    FencedError,
    Halted,
    InDoubt,
    MutatedInput,
    OutputRefused,
    PerdureError,
    RunPaused,
    RunStopped,
    RunSuspended,
    StepTimeout,
    StoreError,
)
from perdure.life import Cursor, Life, Request, idempotency_key
from perdure.model import ArgInfo
from perdure.record import Identity, Step, Unread, code_changed
from perdure.redaction import discreet
from perdure.retry import retry_after


def execute(life: Life | None, cursor: Cursor, request: Request, by: Hashable) -> Machine:
    """Run one step, or reuse its record. Returns the value; raises what the body raised when no attempt is left."""
    if life is None:
        return (yield from _Work(None, _NOWHERE, request, 0).run())
    claimed = request.n is not None
    n = request.n if request.n is not None else cursor.claim(request, by)
    try:
        identity = Identity(cursor.scope, request.name, request.fingerprint, n)
        step = life.state.steps.find(identity)
        if life.rehearsal is not None:
            return (yield from life.rehearsal.answer(step, identity, request))
        if step is None:
            yield from tell_difference(life, identity, request)
            number = request.number = next(life.numbers)
            life.asked.add(number)
            source = (yield from _cached(life, request)) if request.options.cache else None
            if source is not None:
                return (yield from copy(life, identity, request, number, source))
            return (yield from _Work(life, identity, request, number).run())
        request.number = step.number
        life.asked.add(step.number)
        renewed = step.recorded and life.renew and _is_outdated(step, request)
        if step.recorded and not renewed:
            return (yield from reuse(life, step, request))
        life.diverged = True
        source = (yield from _cached(life, request)) if renewed and request.options.cache else None
        if source is not None and source is not step:
            yield Append((j.StepsInvalidated(steps=(step.number,), why="code"),), False)
            return (yield from copy(life, identity, request, step.number, source))
        if step.status in states.STEP_IN_DOUBT and request.options.on_crash != "rerun":
            found = yield from _settle(life, step, request)
            if found is not None:
                return found.value
        if step.until:
            yield Wait(step.until)
        return (yield from _Work(life, identity, request, step.number, renewed).run())
    finally:
        if not claimed:
            cursor.done(request.name, request.fingerprint, by)


NOT_AT_HAND: Final = object()


def at_hand(life: Life, cursor: Cursor, request: Request, by: Hashable) -> Any:
    """What ``execute`` would return without a command: a recorded result that lies in memory. That is the way through
    everything that was done in earlier lives, so it is a short one. Else NOT_AT_HAND, and nothing has been claimed.
    """
    if request.n is not None or life.rehearsal is not None:
        return NOT_AT_HAND
    scope = cursor.scope
    with life.lock:
        n = cursor.glance(request, by)
        if n is None:
            return NOT_AT_HAND
        step = life.state.steps.recorded(scope, request.name, request.fingerprint, n)
        if step is None or (life.renew and _is_outdated(step, request)):
            return NOT_AT_HAND
        output = life.read_ahead.get(step.at, step.output)
        if output is None or output.refs or isinstance(output, Unread):
            return NOT_AT_HAND
        cursor.passed(request, n)
        request.number = step.number
        life.asked.add(step.number)
        _tell_reused(life, step, request)
    try:
        return codec.loads(output, {}, life.guard)
    except (CodecError, CorruptStore) as error:
        raise _whose(life, step.number, error) from error


def _is_outdated(step: Step | Recorded, request: Request) -> bool:
    """Whether a result is of other code. What a person gave stays until he says so."""
    return not step.edited and code_changed(step.digest, request.digest)


def reuse(life: Life, step: Step, request: Request) -> Machine:
    """The recorded result of a step."""
    _tell_reused(life, step, request)
    assert step.output is not None
    try:
        return (yield from load(life, step.output))
    except (CodecError, CorruptStore) as error:
        raise _whose(life, step.number, error) from error


def _whose(life: Life, number: int, error: PerdureError) -> PerdureError:
    """The error of a codec or store, which know the value or the blob, and not whose it is."""
    whose = f"Run {life.state.key}, result of step {number} ({life.state.steps[number].path})"
    return type(error)(f"{whose}: {error.args[0]}", hint=error.hint)


def _tell_reused(life: Life, step: Step | Recorded, request: Request) -> None:
    same = step.digest == request.digest  # as it mostly is
    changed = request.name if not same and code_changed(step.digest, request.digest) else ""
    if life.reuses(step, changed):
        number = step.number
        life.tell(
            f"run {life.state.key}, step {number} ({life.state.steps[number].path}): its code has changed since it was "
            "executed; its result is reused, and so are others of this name. To execute what has changed, run it with "
            "rerun='changed' (--rerun changed)."
        )


def _cached(life: Life, request: Request) -> Machine:
    """The step whose result an equal request may use, because its code is the same and it is young enough (W5)."""
    source = life.state.steps.latest(request.name, request.fingerprint)
    if source is None or source.output is None or source.flagged or source.digest != request.digest:
        return None
    age = (yield Now()) - source.attempts[-1].ended
    return source if age <= request.options.cache else None


def copy(life: Life, identity: Identity, request: Request, number: int, source: Step) -> Machine:
    """Take over another step's result. It is journaled, so that later lives do not depend on the cache's clock."""
    assert source.output is not None
    scope, name, fingerprint, n = identity
    entry = j.StepCopied(
        step=number,
        source=source.number,
        scope=scope,
        name=name,
        fingerprint=fingerprint,
        n=n,
        args=request.args,
        digest=request.digest,
    )
    yield Append((entry,), False)
    return (yield from load(life, source.output))


def load(life: Life, payload: codec.Payload) -> Machine:
    """The value of a payload, fetched first where it is not in memory."""
    if isinstance(payload, Unread):
        payload = life.read_ahead.get(payload.entry) or _output(life, payload.entry, (yield Read(payload.entry)))
    blobs = (yield Load(payload.refs)) if payload.refs else {}
    return codec.loads(payload, blobs, life.guard)


def _output(life: Life, seq: int, entry: j.Entry) -> codec.Payload:
    if not isinstance(entry, j.StepCompleted | j.StepEdited):
        raise CorruptStore(
            f"run {life.state.key}: entry {seq} should have a result, and is {j.kind_of(entry)}. Nothing was changed.",
            hint="perdure check tells what is damaged. Restore the store from a copy.",
        )
    return entry.output


def recall(life: Life, numbers: Sequence[int]) -> Machine:
    """The results of steps."""
    values = []
    for number in numbers:
        output = life.state.steps.output(number)
        assert output is not None
        values.append((yield from load(life, output)))
    return values


def _settle(life: Life, step: Step, request: Request) -> Machine:
    """A step that may have had its effect (X9): find out, or refuse to go on. Returns what was Found, or None."""
    if request.options.on_crash == "fail":
        raise InDoubt(
            f"run {life.state.key}: step {step.number} ({step.path}) was started and did not end, so it may have had "
            "its effect, and it is declared on_crash='fail'. Nothing recorded was lost.",
            hint=f"Find out by hand, then execute it again with --rerun {step.name}, or declare verify=.",
        )
    work = _Work(life, step.identity, request, step.number)
    work.attempt = len(step.attempts)
    outcome: Outcome = yield Call("verify", step.number, work.attempt, work.key, None, "", work.inner())
    if outcome.error is not None:
        raise outcome.error
    if outcome.value is None:
        return None
    found = outcome.value if isinstance(outcome.value, Found) else Found(outcome.value)
    payload, blobs = codec.dumps(found.value, f"verify of {request.name}()", life.guard)
    yield from work.complete(payload, blobs, outcome.seconds, verified=True)
    return found


class _Work:
    """The attempts of one step. Its methods yield what to journal; without a life they journal nothing."""

    def __init__(
        self, life: Life | None, identity: Identity, request: Request, number: int, renewed: bool = False
    ) -> None:
        step = life.state.steps.get(number) if life else None
        self.life, self.identity, self.request, self.number = life, identity, request, number
        self.renewed = renewed
        """it is recorded, and becomes invalid when its first attempt begins"""
        self.attempt = len(step.attempts) if step else 0
        self.failures = step.failures if step else 0
        self.generation = step.generation + renewed if step else 0
        self.final_wait = life is not None and life.durability == "strict"
        self.progress: object = None
        self.text = ""
        self.woken = 0
        """how often a run that this one began had woken it when the attempt began"""

    def key(self) -> str:
        """The step's idempotency key; "" without a run."""
        return idempotency_key(self.life, self.identity, self.generation) if self.life else ""

    def inner(self) -> Cursor | None:
        """The step's own scope, entered afresh: each attempt asks for what is inside from the beginning."""
        return Cursor(self.life, self.identity) if self.life else None

    def run(self) -> Machine:
        """Attempt after attempt until one completes or the policy gives up."""
        while True:
            self.woken = len(self.life.state.woken) if self.life else 0
            outcome: Outcome = yield from self.call()
            if outcome.committed:
                return outcome.value
            self.progress, self.text = outcome.progress, outcome.text or self.text
            if isinstance(outcome.error, RunSuspended) and self.life:
                yield from self.wait_for_run(outcome.error)
                continue
            error, payload, blobs = self.judge(outcome)
            if error is None:
                if self.life is not None:
                    yield from self.complete(payload, blobs, outcome.seconds)
                return outcome.value
            pause = retry_after(error)
            if pause is not None:
                yield from self.wait_out(error, pause, outcome.seconds)
                continue
            self.failures += 1
            delay = self.request.options.retry.next_delay(self.failures, error, self.key())
            if delay is None and payload is not None and self.request.options.on_refused == "flag":
                yield from self.complete(payload, blobs, outcome.seconds, flagged=discreet(str(error)))
                return outcome.value
            if delay is None and self.request.options.failed and not isinstance(error, NO_FAULT):
                value = self.request.options.failed(error)
                payload, blobs = self.dumps(value) if self.life else (None, {})
                yield from self.complete(payload, blobs, outcome.seconds, flagged=discreet(str(error)))
                return value
            yield from self.fail(error, delay, outcome.seconds)
            if delay is None:
                raise self.located(error)

    def located(self, error: Exception) -> Exception:
        """The error, told where it arose; the innermost step stays the one."""
        if self.life is None:
            return error
        run = f"run {self.life.state.key}, "
        path = f"{self.identity.scope}/{self.identity.name}" if self.identity.scope else self.identity.name
        where = f"{run}step {self.number} ({path})"
        if isinstance(error, PerdureError):
            error.where = error.where or where
        elif not any(note.startswith(run) for note in getattr(error, "__notes__", ())):
            error.add_note(where)
        return error

    def call(self) -> Machine:
        """Make the start durable, then run the body."""
        self.attempt += 1
        progress, partial = self.progress, self.text
        if self.life:
            self.life.check_budget(self.request.options.metered)
            step = self.life.state.steps.get(self.number)
            invalid = (j.StepsInvalidated(steps=(self.number,), why="code"),) if self.renewed else ()
            if step is not None and not self.renewed:
                partial = step.partial_text
                progress = (yield from load(self.life, step.progress)) if step.progress is not None else None
            started, blobs = self.started(self.life, first=step is None)
            yield Append((*invalid, started), self.life.durability in ("strict", "pipelined"), blobs)
            self.renewed = False
        commit = self.commit if self.request.options.transaction else None
        try:
            return (yield Call("body", self.number, self.attempt, self.key, progress, partial, self.inner(), commit))
        except BaseException as stopped:  # cancelled, or told to exit: in doubt, not failed
            if self.life:
                reason = type(stopped).__name__
                halted = _is_halt(stopped)
                ended = j.StepInterrupted(step=self.number, attempt=self.attempt, reason=reason, suspended=halted)
                yield Append((ended,), False)
            raise

    def started(self, life: Life, first: bool) -> tuple[j.StepStarted, dict[str, bytes]]:
        options, request = self.request.options, self.request
        code: codec.Payload | None = None
        blobs: dict[str, bytes] = {}
        if request.parts and request.digest not in life.state.code:
            parts = {name: discreet(text) for name, text in request.parts.items()}
            code, blobs = codec.dumps(parts, f"the code of {request.name}", life.guard)
        if not first:
            return j.StepStarted(
                step=self.number,
                attempt=self.attempt,
                digest=request.digest,
                metered=options.metered,
                code=code,
            ), blobs
        scope, name, fingerprint, n = self.identity
        return j.StepStarted(
            step=self.number,
            attempt=self.attempt,
            scope=scope,
            name=name,
            fingerprint=fingerprint,
            n=n,
            args=request.args,
            digest=request.digest,
            metered=options.metered,
            spoken=options.spoken,
            code=code,
        ), blobs

    def judge(self, outcome: Outcome) -> tuple[Exception | None, codec.Payload | None, dict[str, bytes]]:
        """What is wrong with an outcome, and its value as it would be stored (None when there is none)."""
        if outcome.error is not None:
            return outcome.error, None, {}
        try:
            if self.request.look_again is not None:
                _refuse_changed_arguments(self.request, self.request.look_again)
            error = refusal(self.request.name, self.request.options.check, outcome.value)
            payload, blobs = self.dumps(outcome.value) if self.life else (_NOTHING, {})
        except NO_OUTCOME:
            raise
        except Exception as unusable:
            return unusable, None, {}
        return error, payload, blobs

    def dumps(self, value: object) -> tuple[codec.Payload, dict[str, bytes]]:
        assert self.life is not None
        return codec.dumps(value, f"{self.request.name}()", self.life.guard)

    def commit(self, outcome: Outcome) -> tuple[j.Entry, dict[str, bytes]] | None:
        """What to record of an outcome in the transaction that it was made in; None: nothing, it is rolled back."""
        error, payload, blobs = self.judge(outcome)
        return None if error is not None or payload is None else (self.completed(payload, outcome.seconds), blobs)

    def completed(
        self, payload: codec.Payload, seconds: float, flagged: str = "", verified: bool = False
    ) -> j.StepCompleted:
        return j.StepCompleted(
            step=self.number,
            attempt=self.attempt,
            output=payload,
            flagged=flagged,
            seconds=seconds,
            verified=verified,
        )

    def complete(
        self,
        payload: codec.Payload | None,
        blobs: dict[str, bytes],
        seconds: float,
        flagged: str = "",
        verified: bool = False,
    ) -> Machine:
        if self.life and payload is not None:
            yield Append((self.completed(payload, seconds, flagged, verified),), self.final_wait, blobs)

    def wait_out(self, error: Exception, pause: float, seconds: float) -> Machine:
        """A rate limit (C10): remember when to go on, and wait until then, in this process or the next."""
        until = (yield Now()) + pause
        if self.life:
            info = codec.describe_error(error)
            entry = j.StepWaiting(step=self.number, attempt=self.attempt, until=until, error=info, seconds=seconds)
            yield Append((entry,), self.final_wait)
        yield Wait(until)

    def wait_for_run(self, waits: RunSuspended) -> Machine:
        """The body executes another run, which is suspended: so is this step, until that one can go on."""
        assert self.life is not None
        state = self.life.state
        ended = j.StepInterrupted(
            step=self.number, attempt=self.attempt, reason=waits.args[0], suspended=True, until=waits.until
        )
        yield Append((ended,), False)
        yield Wait(waits.until, lambda: waits.run in state.woken[self.woken :])

    def fail(self, error: Exception, delay: float | None, seconds: float) -> Machine:
        until = (yield Now()) + delay if delay is not None else 0.0
        if self.life:
            entry = j.StepFailed(
                step=self.number,
                attempt=self.attempt,
                outcome=_outcome_word(error),
                error=codec.describe_error(error),
                final=delay is None,
                until=until,
                seconds=seconds,
            )
            yield Append((entry,), self.final_wait)
        if delay is not None:
            yield Wait(until)


def _refuse_changed_arguments(request: Request, look_again: Callable[[], tuple[ArgInfo, ...]]) -> None:
    """Raises MutatedInput if the body changed an argument: on resume the body does not run, and the change is gone."""
    try:
        now = {info.name: info.digest for info in look_again()}
    except CodecError:  # something that cannot be stored was put into it
        now = {}
    changed = [info.name for info in request.args if info.digest and now.get(info.name) != info.digest]
    if changed:
        raise MutatedInput(
            f"step {request.name} changed its argument {', '.join(changed)}. When the run resumes, the step is not "
            "executed again and the change would be missing.",
            hint="Return a new value instead; or keep the argument out of the identity with ignore=.",
        )


def _is_halt(stopped: BaseException) -> bool:
    """Whether code was unwound because it waits for something, alone or in a task group."""
    if isinstance(stopped, BaseExceptionGroup):
        return all(_is_halt(part) for part in stopped.exceptions)
    return isinstance(stopped, Halted)


NO_OUTCOME = (StoreError, MemoryError)
"""errors that are never recorded as the outcome of a step or a run (rel:R7): it goes on when the store can be used
again, or where there is more memory"""
NO_FAULT = (StoreError, FencedError, RunPaused, RunStopped)
"""errors that say nothing about the step's own work"""
_NOTHING = codec.Payload(codec=codec.CODEC_VERSION)
_NOWHERE: Final = Identity("", "", "", 0)
"""of a step without a run"""


def _outcome_word(error: Exception) -> str:
    if isinstance(error, StepTimeout):
        return "timed_out"
    return "refused" if isinstance(error, OutputRefused) else "failed"
