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
    Append(entries, wait)  -> None, when durable (wait=True) or queued
    Call(...)              -> Outcome of the body (or of ``verify``)
    Sleep(until)           -> None, when the wall clock says so
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

import itertools
from collections.abc import Callable, Generator, Hashable
from contextlib import AbstractContextManager
from hashlib import sha256
from typing import Any, TypeAlias

import msgspec

from perdure import codec, states
from perdure import journal as j
from perdure.checks import refusal
from perdure.errors import (
    AmbiguousStep,
    CodecError,
    ConfigError,
    CorruptStore,
    InDoubt,
    LimitReached,
    MutatedInput,
    Nondeterminism,
    OutputRefused,
    PerdureError,
    StepTimeout,
)
from perdure.fold import Identity, State, Step, enclosing
from perdure.model import ArgInfo, Usage
from perdure.retry import RetryPolicy, retry_after


class StepOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What was declared of a step; see ``perdure.step`` for the meaning of each."""

    retry: RetryPolicy = RetryPolicy()
    timeout: float | None = None
    check: Callable[[Any], object] | None = None
    on_refused: str = "fail"
    on_crash: str = "rerun"
    metered: bool = False
    """each attempt counts as a call in the run's usage"""
    spoken: bool = False
    """its output is a message of an agent's conversation"""
    cache: float = 0.0
    """for how many seconds the result may be used for equal requests anywhere in the run; 0: never"""
    child: str = ""
    """"role": its scope is numbered when it is called; "name": and it is the only one of its name there"""


class Request(msgspec.Struct):
    """One call of a step by a flow."""

    name: str
    options: StepOptions
    fingerprint: str = ""
    args: tuple[ArgInfo, ...] = ()
    digest: str = ""
    number: int = 0
    """of the step in its run, once it is known"""
    n: int | None = None
    """claimed beforehand by gather; None: claim when execution begins"""
    look_again: Callable[[], tuple[ArgInfo, ...]] | None = None
    """digests of the arguments as they are now, where a body could have changed them"""


class Load(msgspec.Struct, frozen=True):
    digests: tuple[str, ...]


class Append(msgspec.Struct, frozen=True):
    entries: tuple[j.Entry, ...]
    wait: bool
    blobs: dict[str, bytes] = {}


class Call(msgspec.Struct, frozen=True):
    """Run the body (or, for ``what="verify"``, the callable that finds out whether it had its effect)."""

    what: str
    step: int
    attempt: int
    idempotency_key: Callable[[], str]
    progress: object
    partial_text: str
    inner: Cursor | None


class Outcome(msgspec.Struct, frozen=True):
    value: object
    error: Exception | None
    seconds: float
    progress: object = None
    text: str = ""
    """what the attempt saved and streamed, for the next one where there is no journal"""


class Sleep(msgspec.Struct, frozen=True):
    until: float


class Now(msgspec.Struct, frozen=True):
    pass


Command: TypeAlias = Load | Append | Call | Sleep | Now
Machine: TypeAlias = Generator[Command, Any, Any]


class Life:
    """One process's work on a run: its state, its policies, and what it has used so far. Shared by all its scopes."""

    def __init__(
        self,
        state: State,
        *,
        durability: str,
        strict: bool,
        same_code: bool,
        emit: Callable[[j.Entry], None],
        tell: Callable[[str], None],
        lock: AbstractContextManager[Any],
        elapsed: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.state = state
        self.elapsed = elapsed
        """seconds since this life began"""
        self.durability = durability
        self.strict = strict
        self.same_code = same_code
        self.emit = emit
        self.tell = tell
        self.lock = lock
        self.numbers = itertools.count(max(state.steps, default=0) + 1)
        self.asked: set[int] = set()
        self.used_up: set[tuple[str, str]] = set()
        """(scope, name) of which every record has been asked for"""
        self.reused: dict[int, float] = {}
        self.diverged = False
        """some step was executed again although it had a record: later inputs may differ, and rightly"""
        self._labels: dict[tuple[str, str], int] = {}
        for parent, name, _, _ in state.scopes:
            self._labels[parent, name] = self._labels.get((parent, name), 0) + 1

    def scope_path(self, identity: Identity) -> str:
        """The path of a child scope: the recorded one, or ``parent/name-k`` with the next free k."""
        with self.lock:
            path = self.state.scopes.get(identity)
            if path is None:
                k = self._labels.get((identity.scope, identity.name), 0)
                self._labels[identity.scope, identity.name] = k + 1
                path = f"{identity.scope}/{identity.name}-{k}" if identity.scope else f"{identity.name}-{k}"
                self.emit(
                    j.ScopeOpened(
                        path=path,
                        parent=identity.scope,
                        name=identity.name,
                        fingerprint=identity.fingerprint,
                        n=identity.n,
                    )
                )
            return path

    def unused(self) -> tuple[int, ...]:
        """Recorded steps that this life did not ask for, and that no step contains whose result it reused."""
        inside = self._inside_reused()
        return tuple(
            n for n, step in self.state.steps.items() if n not in self.asked and step.recorded and n not in inside
        )

    def saved_usage(self) -> Usage:
        """What had been used for the results that this life reused."""
        numbers = self.reused.keys() | self._inside_reused()
        return sum((self.state.steps[n].attempts[-1].usage for n in numbers), Usage())

    def _inside_reused(self) -> set[int]:
        """Steps that were executed inside a step whose result this life reused."""
        steps = self.state.steps
        scopes = {self.state.scopes.get(steps[n].identity) for n in self.reused}
        return {n for n, step in steps.items() if any(path in scopes for path in enclosing(step.identity.scope))}

    def check_budget(self, metered: bool) -> None:
        """Raises LimitReached when the run's budget leaves nothing for another attempt (X6)."""
        budget = self.state.budget
        reached = budget.used_up(self.state.usage, self.state.seconds + self.elapsed(), calls=metered) if budget else ""
        if reached:
            raise LimitReached(
                f"run {self.state.key}: its budget is used up ({reached}). What finished is kept.",
                hint="Run it again with a larger budget to go on (--budget on the command line).",
            )


class Cursor:
    """One entering of a scope: which ordinals are claimed, and by whom. Entering again (a retry) starts afresh."""

    def __init__(self, life: Life | None, scope: str | Identity) -> None:
        self.life = life
        self._scope = scope
        self._used: dict[tuple[str, str], int] = {}
        self._claims: dict[tuple[str, str], list[Hashable]] = {}
        self._names: set[str] = set()
        """of children that have a name of their own"""

    @property
    def scope(self) -> str:
        """The scope's path. A step's inner scope gets one when something is first asked for inside it."""
        if isinstance(self._scope, Identity):
            self._scope = self.life.scope_path(self._scope) if self.life else ""
        return self._scope

    def claim(self, request: Request, by: Hashable) -> int:
        """The next ordinal among equal requests. Raises AmbiguousStep if another task's equal request is under way,
        ConfigError for a second child of one name.
        """
        name, fingerprint = key = (request.name, request.fingerprint)
        if self.life is None:
            return 0
        with self.life.lock:
            if request.options.child == "name":
                if name in self._names:
                    raise ConfigError(
                        f"run {self.life.state.key}, scope {self.scope or 'top'!r}: a second child is started under "
                        f"the name {name!r}. Nothing was lost.",
                        hint="Give each child a name of its own, or leave name= out: then they are numbered.",
                    )
                self._names.add(name)
            others = self._claims.setdefault(key, [])
            if any(other != by for other in others):
                raise AmbiguousStep(
                    f"run {self.life.state.key}, scope {self.scope or 'top'!r}: two tasks ask for step {name!r} with "
                    "equal inputs at the same time, so after a crash they could receive each other's result. "
                    "Nothing was lost.",
                    hint=f"Start them with perdure.gather (or map), or tell them apart: {name}.options(key=...).",
                )
            others.append(by)
            n = self._used.get(key, 0)
            self._used[key] = n + 1
            if request.options.child:
                self.life.scope_path(Identity(self.scope, name, fingerprint, n))
            return n

    def branch(self, name: str, fingerprint: str) -> Identity:
        """Identity of the next child scope of that name and inputs: a branch or a nested flow."""
        key = ("/" + name, fingerprint)  # no step has a slash in its name, so these ordinals are scopes' own
        n = self._used.get(key, 0)
        self._used[key] = n + 1
        return Identity(self.scope, name, fingerprint, n)

    def fan(self, kind: str) -> str:
        """Name of the next as_completed or first in this scope."""
        return f"{kind}-{self.branch('/' + kind, '').n}"

    def done(self, name: str, fingerprint: str, by: Hashable) -> None:
        """The request made with ``claim`` has ended."""
        if self.life is not None:
            with self.life.lock:
                self._claims[name, fingerprint].remove(by)


def execute(life: Life | None, cursor: Cursor, request: Request, by: Hashable) -> Machine:
    """Run one step, or reuse its record. Returns the value; raises what the body raised when no attempt is left."""
    if life is None:
        return (yield from _Work(None, Identity(cursor.scope, request.name, "", 0), request, 0, None).run())
    claimed = request.n is not None
    n = request.n if request.n is not None else cursor.claim(request, by)
    try:
        identity = Identity(cursor.scope, request.name, request.fingerprint, n)
        step = life.state.index.get(identity)
        if step is None:
            _tell_difference(life, identity, request)
            number = request.number = next(life.numbers)
            life.asked.add(number)
            source = (yield from _cached(life, request)) if request.options.cache else None
            if source is not None:
                return (yield from _copy(life, identity, request, number, source))
            return (yield from _Work(life, identity, request, number, Cursor(life, identity)).run())
        request.number = step.number
        life.asked.add(step.number)
        if step.recorded:
            return (yield from _reuse(life, step, request))
        life.diverged = True
        if step.status in states.STEP_IN_DOUBT and request.options.on_crash != "rerun":
            found = yield from _settle(life, step, request)
            if found is not None:
                return found
        if step.until:
            yield Sleep(step.until)
        return (yield from _Work(life, identity, request, step.number, Cursor(life, identity)).run())
    finally:
        if not claimed:
            cursor.done(request.name, request.fingerprint, by)


def _reuse(life: Life, step: Step, request: Request) -> Machine:
    life.reused[step.number] = step.seconds
    if step.digest and request.digest and step.digest != request.digest:
        life.tell(f"step {step.number} ({step.path}): its code has changed since it was executed; its result is reused")
    assert step.output is not None
    try:
        return (yield from load(step.output))
    except (CodecError, CorruptStore) as error:  # they know the value or the blob, and not whose it is
        whose = f"Run {life.state.key}, result of step {step.number} ({step.path})"
        raise type(error)(f"{whose}: {error.args[0]}", hint=error.hint) from error


def _cached(life: Life, request: Request) -> Machine:
    """The step whose result an equal request may use, because its code is the same and it is young enough (W5)."""
    source = life.state.latest.get((request.name, request.fingerprint))
    if source is None or source.output is None or source.flagged or source.digest != request.digest:
        return None
    age = (yield Now()) - source.attempts[-1].ended
    return source if age <= request.options.cache else None


def _copy(life: Life, identity: Identity, request: Request, number: int, source: Step) -> Machine:
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
    return (yield from load(source.output))


def load(payload: codec.Payload) -> Machine:
    """The value of a payload, its blobs fetched first."""
    blobs = (yield Load(payload.refs)) if payload.refs else {}
    return codec.loads(payload, blobs)


def _settle(life: Life, step: Step, request: Request) -> Machine:
    """A step that may have had its effect (X9): find out, or refuse to go on. Returns the value found, or None."""
    if request.options.on_crash == "fail":
        raise InDoubt(
            f"run {life.state.key}: step {step.number} ({step.path}) was started and did not end, so it may have had "
            "its effect, and it is declared on_crash='fail'. Nothing recorded was lost.",
            hint=f"Find out by hand, then execute it again with --rerun {step.name}, or declare verify=.",
        )
    work = _Work(life, step.identity, request, step.number, Cursor(life, step.identity))
    work.attempt = len(step.attempts)
    outcome: Outcome = yield Call("verify", step.number, work.attempt, work.key, None, "", None)
    if outcome.error is not None:
        raise outcome.error
    if outcome.value is None:
        return None
    payload, blobs = codec.dumps(outcome.value, f"verify of {request.name}()")
    yield from work.complete(payload, blobs, outcome.seconds, verified=True)
    return outcome.value


class _Work:
    """The attempts of one step. Its methods yield what to journal; without a life they journal nothing."""

    def __init__(
        self, life: Life | None, identity: Identity, request: Request, number: int, inner: Cursor | None
    ) -> None:
        step = life.state.steps.get(number) if life else None
        self.life, self.identity, self.request, self.number, self.inner = life, identity, request, number, inner
        self.attempt = len(step.attempts) if step else 0
        self.failures = step.failures if step else 0
        self.generation = step.generation if step else 0
        self.final_wait = life is not None and life.durability == "strict"
        self.progress: object = None
        self.text = ""

    def key(self) -> str:
        """The step's idempotency key; "" without a run."""
        return idempotency_key(self.life, self.identity, self.generation) if self.life else ""

    def run(self) -> Machine:
        """Attempt after attempt until one completes or the policy gives up."""
        while True:
            outcome: Outcome = yield from self.call()
            self.progress, self.text = outcome.progress, outcome.text or self.text
            error, payload, blobs = self.judge(outcome)
            if error is None:
                yield from self.complete(payload, blobs, outcome.seconds)
                return outcome.value
            pause = retry_after(error)
            if pause is not None:
                yield from self.wait_out(error, pause, outcome.seconds)
                continue
            self.failures += 1
            delay = self.request.options.retry.next_delay(self.failures, error, self.key())
            if delay is None and payload is not None and self.request.options.on_refused == "flag":
                yield from self.complete(payload, blobs, outcome.seconds, flagged=str(error))
                return outcome.value
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
            if step is not None:
                partial = step.partial_text
                progress = (yield from load(step.progress)) if step.progress is not None else None
            yield Append((self.started(first=step is None),), self.life.durability in ("strict", "pipelined"))
        try:
            return (yield Call("body", self.number, self.attempt, self.key, progress, partial, self.inner))
        except BaseException as stopped:  # cancelled, or told to exit: in doubt, not failed
            if self.life:
                ended = j.StepInterrupted(step=self.number, attempt=self.attempt, reason=type(stopped).__name__)
                yield Append((ended,), False)
            raise

    def started(self, first: bool) -> j.StepStarted:
        options = self.request.options
        if not first:
            return j.StepStarted(
                step=self.number,
                attempt=self.attempt,
                digest=self.request.digest,
                metered=options.metered,
            )
        scope, name, fingerprint, n = self.identity
        return j.StepStarted(
            step=self.number,
            attempt=self.attempt,
            scope=scope,
            name=name,
            fingerprint=fingerprint,
            n=n,
            args=self.request.args,
            digest=self.request.digest,
            metered=options.metered,
            spoken=options.spoken,
        )

    def judge(self, outcome: Outcome) -> tuple[Exception | None, codec.Payload | None, dict[str, bytes]]:
        """What is wrong with an outcome, and its value as it would be stored (None when there is none)."""
        if outcome.error is not None:
            return outcome.error, None, {}
        try:
            _refuse_changed_arguments(self.request)
            error = refusal(self.request.name, self.request.options.check, outcome.value)
            payload, blobs = codec.dumps(outcome.value, f"{self.request.name}()") if self.life else (_NOTHING, {})
        except Exception as unusable:
            return unusable, None, {}
        return error, payload, blobs

    def complete(
        self,
        payload: codec.Payload | None,
        blobs: dict[str, bytes],
        seconds: float,
        flagged: str = "",
        verified: bool = False,
    ) -> Machine:
        if self.life and payload is not None:
            entry = j.StepCompleted(
                step=self.number,
                attempt=self.attempt,
                output=payload,
                flagged=flagged,
                seconds=seconds,
                verified=verified,
            )
            yield Append((entry,), self.final_wait, blobs)

    def wait_out(self, error: Exception, pause: float, seconds: float) -> Machine:
        """A rate limit (C10): remember when to go on, and wait until then, in this process or the next."""
        until = (yield Now()) + pause
        if self.life:
            info = codec.describe_error(error)
            entry = j.StepWaiting(step=self.number, attempt=self.attempt, until=until, error=info, seconds=seconds)
            yield Append((entry,), self.final_wait)
        yield Sleep(until)

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
            yield Sleep(until)


def _refuse_changed_arguments(request: Request) -> None:
    """Raises MutatedInput if the body changed an argument: on resume the body does not run, and the change is gone."""
    if request.look_again is None:
        return
    try:
        now = {info.name: info.digest for info in request.look_again()}
    except CodecError:  # something that cannot be stored was put into it
        now = {}
    changed = [info.name for info in request.args if info.digest and now.get(info.name) != info.digest]
    if changed:
        raise MutatedInput(
            f"step {request.name} changed its argument {', '.join(changed)}. When the run resumes, the step is not "
            "executed again and the change would be missing.",
            hint="Return a new value instead; or keep the argument out of the identity with ignore=.",
        )


_NOTHING = codec.Payload(codec=codec.CODEC_VERSION)


def _outcome_word(error: Exception) -> str:
    if isinstance(error, StepTimeout):
        return "timed_out"
    return "refused" if isinstance(error, OutputRefused) else "failed"


def idempotency_key(life: Life, identity: Identity, generation: int) -> str:
    """Stable over attempts and lives, different for every step, run and deliberate re-execution (X7)."""
    parts = (life.state.run_id, *map(str, identity), str(generation))
    return sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _tell_difference(life: Life, identity: Identity, request: Request) -> None:
    """A request without a record, though records of that name are left over under unchanged code, is not what happened
    last time: say which argument differs, or refuse in strict mode."""
    named = (identity.scope, identity.name)
    if life.diverged or not life.same_code or named in life.used_up:
        return
    with life.lock:
        left = [
            step
            for step in life.state.by_name.get(named, ())
            if step.number not in life.asked and step.recorded and not step.unused
        ]
    if not left:
        life.used_up.add(named)
        return
    old = {a.name: a for a in left[0].args}
    changes = [
        f"{a.name} was {old[a.name].head if a.name in old else 'absent'}, now {a.head}"
        for a in request.args
        if a.name not in old or old[a.name].digest != a.digest
    ]
    what = "; ".join(changes) or "it is asked for more often than before"
    message = (
        f"run {life.state.key}: step {identity.name!r} is asked for with inputs that no record has, although the code "
        f"is unchanged: {what}. Recorded step {left[0].number} was not asked for."
    )
    if life.strict:
        raise Nondeterminism(message, hint="Make the argument deterministic, for example by computing it in a step.")
    life.diverged = True
    life.tell(message + " It is executed.")
