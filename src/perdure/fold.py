"""The fold: the state of a run, computed from its entries and from nothing else.

``State.apply`` is the only place where a run's state changes, for a live process and for a reader alike. It checks
every entry against the tables of states.py. Outputs stay encoded; they are decoded when somebody asks for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import NamedTuple

import msgspec

from perdure import journal as j
from perdure import states
from perdure.codec import Payload
from perdure.errors import CorruptStore
from perdure.model import ArgInfo, Attribution, Budget, ErrorInfo, Question, RunKey, RunMeta, Usage

_SHOWN = 8
"""questions in a run's listing row: it is written again with every append"""


class Attempt(msgspec.Struct):
    """One execution of a step's body."""

    number: int
    started: float
    ended: float = 0.0
    outcome: str = states.RUNNING
    """running, completed, flagged, failed, timed_out, refused, waiting, crashed, interrupted or copied"""
    error: ErrorInfo | None = None
    seconds: float = 0.0
    progress: Payload | None = None
    text: list[str] = []
    """what it streamed, in order"""
    usage: Usage = Usage()
    metered: bool = False
    """it counts as a call, unless a rate limit turned it away"""


class Identity(NamedTuple):
    """What makes a step the same step in another life of the run."""

    scope: str
    name: str
    fingerprint: str
    n: int
    """ordinal among requests equal in all the rest"""


def enclosing(scope: str) -> list[str]:
    """A scope's path and those of all scopes around it, but for the top."""
    parts = scope.split("/")
    return ["/".join(parts[:k]) for k in range(len(parts), 0, -1)] if scope else []


class Step(msgspec.Struct):
    """Everything known of one step."""

    number: int
    identity: Identity
    args: tuple[ArgInfo, ...]
    digest: str
    status: str = states.RUNNING
    attempts: list[Attempt] = []
    output: Payload | None = None
    flagged: str = ""
    failures: int = 0
    """failed attempts since the flow was last told of a failure; what the retry policy counts"""
    until: float = 0.0
    """when the next attempt is due"""
    wake: float = 0.0
    """when what its last attempt was waiting for can go on by itself; 0: not by a date"""
    generation: int = 0
    """how often a person asked for it to be executed again"""
    spoken: bool = False
    """its output is a message of a conversation"""
    unused: bool = False
    """the last completed life of the run did not ask for it"""

    @property
    def name(self) -> str:
        return self.identity.name

    @property
    def path(self) -> str:
        """Scope and name, as shown to people."""
        return f"{self.identity.scope}/{self.name}" if self.identity.scope else self.name

    @property
    def recorded(self) -> bool:
        return self.status in states.STEP_RECORDED

    @property
    def error(self) -> ErrorInfo | None:
        return self.attempts[-1].error if self.attempts else None

    @property
    def seconds(self) -> float:
        """How long the attempt that gave the result took."""
        return self.attempts[-1].seconds if self.attempts else 0.0

    @property
    def usage(self) -> Usage:
        """What all its attempts used, those that crashed or failed included."""
        return sum((attempt.usage for attempt in self.attempts), Usage())

    @property
    def partial_text(self) -> str:
        """What the latest attempt that streamed anything has streamed."""
        return next(("".join(a.text) for a in reversed(self.attempts) if a.text), "")

    @property
    def progress(self) -> Payload | None:
        """What was saved last."""
        return next((a.progress for a in reversed(self.attempts) if a.progress is not None), None)


class State:
    """A run as its journal tells it."""

    def __init__(self, key: RunKey) -> None:
        self.key = key
        self.seq = 0
        self.status: str | None = None
        self.reason = ""
        self.run_id = ""
        self.flow = ""
        self.digest = ""
        self.target = ""
        self.durability = "strict"
        self.outputs = ""
        self.inputs: Payload | None = None
        self.args: tuple[ArgInfo, ...] = ()
        self.attribution = Attribution()
        self.created = 0.0
        self.updated = 0.0
        self.lives = 0
        self.epoch = 0
        self.reused = 0
        self.saved = 0.0
        self.stopped_by = ""
        """the person who paused the run, if one did"""
        self.budget: Budget | None = None
        self.usage = Usage()
        """what all lives used, whatever became of it"""
        self.paid = Usage()
        """what the latest life used"""
        self.saved_usage = Usage()
        """what the steps reused by the life that completed had used"""
        self.seconds = 0.0
        """time during which lives before the latest one executed the run"""
        self._life_began = 0.0
        self.output: Payload | None = None
        self.error: ErrorInfo | None = None
        self.steps: dict[int, Step] = {}
        self.index: dict[Identity, Step] = {}
        self.by_name: dict[tuple[str, str], list[Step]] = {}
        """(scope, name) -> steps, in the order in which they first started"""
        self.scopes: dict[Identity, str] = {}
        self.taken: dict[tuple[str, str], list[str]] = {}
        """(scope, fan) -> branches in the order in which their results were handed on"""
        self.latest: dict[tuple[str, str], Step] = {}
        """(name, fingerprint) -> the step that was executed and completed last, in whatever scope"""
        self.conversations: dict[str, list[j.SpokenMessage]] = {}
        self.posts = 0
        """number of the last post of the inbox that was taken"""
        self.pending: dict[int, j.StepPending] = {}
        """questions, signals and timers that have not ended, by step"""
        self.arrived: dict[int, j.Posted] = {}
        """what came for those of them that may go on: an answer, a signal, or the end of the wait"""
        self.decided: dict[str, j.QuestionAnswered | j.QuestionClosed] = {}
        """what became of each question, by its id"""
        self.signals: dict[str, deque[j.SignalReceived]] = {}
        """signals that nobody has received yet, in order"""
        self.rejected: dict[int, str] = {}
        """why the last answer to a pending question was not taken"""
        self.woken: list[str] = []
        """runs that this one began, was waiting for, and that could go on: in the order in which they said so"""
        self.stop: j.StopRequested | None = None
        """somebody wants the run to be paused or cancelled, and it is not yet"""
        self.cleanups = False
        """some flow of it has a clean-up: cancelling it takes its program"""
        self.wake = 0.0
        """while the run is suspended: when it can go on by itself; 0: not by a date"""
        self._shown: tuple[int, tuple[Question, ...]] | None = (0, ())
        """what listings show of the open questions; None: it has changed"""
        """scope of an agent -> its messages, in order"""
        self.current = ""
        self._running: dict[int, Step] = {}
        self._counts = dict.fromkeys(states.STEP.values(), 0)
        """steps in each state"""

    def apply(self, entry: j.Entry) -> None:
        """Take the next entry. Raises CorruptStore if it cannot follow what came before."""
        if entry.seq != self.seq + 1:
            raise CorruptStore(f"run {self.key}: entry {entry.seq} follows entry {self.seq}. Nothing was changed.")
        _APPLY[type(entry)](self, entry)
        self.seq = entry.seq
        self.updated = entry.at

    def around(self, step: Step) -> list[int]:
        """The steps inside which a step was executed."""
        identities = {path: identity for identity, path in self.scopes.items()}
        found = (self.index.get(identities[path]) for path in enclosing(step.identity.scope) if path in identities)
        return [outer.number for outer in found if outer is not None]

    def from_earlier_lives(self) -> list[Step]:
        """Steps whose results were there when the latest life began, and that it did not do without."""
        began = self._life_began
        return [s for s in self.steps.values() if s.recorded and not s.unused and s.attempts[-1].started < began]

    def meta(self) -> RunMeta:
        """The row that listings show."""
        count = self._counts
        return RunMeta(
            goal=self.key.goal,
            episode=self.key.episode,
            status=self.status or states.RUNNING,
            flow=self.flow,
            reason=self.reason,
            created=self.created,
            updated=self.updated,
            seq=self.seq,
            completed=count[states.COMPLETED],
            failed=count[states.FAILED],
            flagged=count[states.FLAGGED],
            running=count[states.RUNNING],
            current=self.current,
            tags=self.attribution.tags,
            used=self.usage,
            paid=self.paid,
            saved=self.saved_usage,
            parent=self.attribution.parent,
            wake=self.wake,
            asking=self._heads()[0],
            questions=self._heads()[1],
            posts=self.posts,
        )

    def question(self, step: int) -> Question:
        """What a pending step asks. Raises KeyError if it asks nothing."""
        entry = self.pending[step]
        if entry.asked is None:
            raise KeyError(step)
        asked = entry.asked
        return Question(
            run=str(self.key),
            step=step,
            path=self.steps[step].path,
            id=self.question_id(entry),
            prompt=asked.prompt,
            to=asked.to,
            asked=entry.at,
            until=entry.until,
            otherwise=_text(asked.default),
            schema=asked.schema,
            context=_text(asked.context),
            refused=self.rejected.get(step, ""),
        )

    def questions(self) -> list[Question]:
        """What the run asks and nobody has answered, in the order in which it was asked."""
        return [self.question(n) for n, entry in self.pending.items() if entry.asked and n not in self.arrived]

    def question_id(self, entry: j.StepPending) -> str:
        """Names what was asked: the run, the step, which time, and everything that is shown (rel:H2)."""
        step = self.steps[entry.step]
        shown = msgspec.json.encode(entry.asked)
        parts = (self.run_id, str(entry.step), str(entry.attempt), step.identity.fingerprint)
        return sha256("\0".join(parts).encode("utf-8", "surrogatepass") + shown).hexdigest()[:16]

    def _heads(self) -> tuple[int, tuple[Question, ...]]:
        """How many questions are open, and the oldest as listings show them."""
        if self._shown is None:
            asked = [n for n, entry in self.pending.items() if entry.asked and n not in self.arrived]
            oldest = [self.question(n) for n in asked[:_SHOWN]]
            cut = [
                msgspec.structs.replace(q, prompt=q.prompt[:200], schema={}, context="", otherwise=q.otherwise[:80])
                for q in oldest
            ]
            self._shown = len(asked), tuple(cut)
        return self._shown

    # -- runs ----------------------------------------------------------------------------------------------------

    def _move_run(self, entry: j.Entry, event: str = "") -> None:
        kind = event or j.kind_of(entry)
        try:
            self.status = states.RUN[self.status, kind]
        except KeyError:
            raise CorruptStore(
                f"run {self.key}: entry {entry.seq} is {kind!r}, which cannot follow the state {self.status!r}. "
                "Nothing was changed."
            ) from None

    def _run_began(self, entry: j.RunBegan) -> None:
        self._move_run(entry)
        self.run_id, self.flow, self.digest, self.target = entry.run_id, entry.flow, entry.digest, entry.target
        self.inputs, self.args, self.attribution = entry.inputs, entry.args, entry.attribution
        self.durability, self.created, self.epoch, self.lives = entry.durability, entry.at, entry.epoch, 1
        self.outputs, self.budget, self._life_began = entry.outputs, entry.budget, entry.at

    def _run_resumed(self, entry: j.RunResumed) -> None:
        self._end_running("step_crashed", states.CRASHED, entry.at)
        self._move_run(entry)
        self.wake = 0.0
        if self.stop is not None and not self.stop.cancel:
            self.stop = None
        self.seconds += max(self.updated - self._life_began, 0.0)
        self._life_began, self.paid = entry.at, Usage()
        self.lives += 1
        self.epoch = entry.epoch
        self.budget = entry.budget or self.budget
        self.digest = entry.digest or self.digest
        self.outputs = entry.outputs or self.outputs
        self.reason, self.error, self.stopped_by = "", None, ""
        if entry.inputs is not None:
            self.inputs, self.args = entry.inputs, entry.args

    def _run_completed(self, entry: j.RunCompleted) -> None:
        self._end_run(entry)
        self.output, self.reused, self.saved = entry.output, entry.reused, entry.saved
        self.saved_usage = entry.saved_usage
        unused = set(entry.unused)
        for step in self.steps.values():
            step.unused = step.number in unused

    def _run_failed(self, entry: j.RunFailed) -> None:
        self._end_run(entry)
        self.error, self.reason = entry.error, str(entry.error)

    def _run_paused(self, entry: j.RunPaused) -> None:
        self._end_run(entry)
        self.reason, self.stopped_by, self.stop = entry.reason, entry.by, None

    def _run_interrupted(self, entry: j.RunInterrupted) -> None:
        self._end_run(entry)
        self.reason = entry.reason

    def _run_suspended(self, entry: j.RunSuspended) -> None:
        self._end_running("step_waiting", states.WAITING, entry.at)  # all that was left waits inside
        self._end_run(entry, "run_pending_input" if entry.input else "run_waiting")
        self.reason, self.wake = entry.reason, entry.wake

    def _run_cancelled(self, entry: j.RunCancelled) -> None:
        self._end_run(entry)
        self.reason, self.stopped_by, self.stop = entry.reason, entry.by, None

    def _end_run(self, entry: j.Entry, event: str = "") -> None:
        self._end_running("step_interrupted", states.INTERRUPTED, entry.at)
        self._move_run(entry, event)
        self.wake = 0.0
        if self.status in states.RUN_OVER:
            for number, pending in list(self.pending.items()):
                if pending.asked is not None:
                    question = self.question_id(pending)
                    self.decided[question] = j.QuestionClosed(step=number, question=question)
                self._withdraw(number, entry.at)

    def _end_running(self, event: str, outcome: str, at: float) -> None:
        for step in list(self._running.values()):
            self._move_step(step, event)
            _end(step.attempts[-1], outcome, at)

    # -- steps ---------------------------------------------------------------------------------------------------

    def _move_step(self, step: Step, event: str) -> None:
        try:
            status = states.STEP[step.status if step.attempts else None, event]
        except KeyError:
            raise CorruptStore(
                f"run {self.key}: {event!r} cannot follow the state {step.status!r} of step {step.number} "
                f"({step.path}). Nothing was changed."
            ) from None
        if step.attempts:
            self._counts[step.status] -= 1
        self._counts[status] += 1
        step.status = status
        if status == states.RUNNING:
            self._running[step.number] = step
        else:
            self._running.pop(step.number, None)

    def _step(self, number: int) -> Step:
        try:
            return self.steps[number]
        except KeyError:
            raise CorruptStore(
                f"run {self.key}: entry {self.seq + 1} speaks of step {number}, which never started."
            ) from None

    def _attempt(self, step: int, attempt: int) -> Attempt:
        attempts = self._step(step).attempts
        if not 1 <= attempt <= len(attempts):
            raise CorruptStore(
                f"run {self.key}: entry {self.seq + 1} speaks of attempt {attempt} of step {step}, which has had "
                f"{len(attempts)}."
            )
        return attempts[attempt - 1]

    def _end_attempt(
        self,
        entry: j.StepCompleted | j.StepFailed | j.StepWaiting | j.StepInterrupted,
        event: str,
        outcome: str = "",
        error: ErrorInfo | None = None,
        seconds: float = 0.0,
    ) -> Step:
        """Take the end of a step's latest attempt; ``outcome`` is the step's new state unless given."""
        step = self._step(entry.step)
        attempt = self._attempt(entry.step, entry.attempt)
        if attempt is not step.attempts[-1]:
            raise CorruptStore(f"run {self.key}: entry {entry.seq} ends attempt {entry.attempt}, which had ended.")
        self._move_step(step, event)
        _end(attempt, outcome or step.status, entry.at, seconds, error)
        return step

    def _scope_opened(self, entry: j.ScopeOpened) -> None:
        self.scopes[Identity(entry.parent, entry.name, entry.fingerprint, entry.n)] = entry.path

    def _branch_taken(self, entry: j.BranchTaken) -> None:
        self.taken.setdefault((entry.scope, entry.fan), []).append(entry.branch)

    def _new_step(self, entry: j.StepStarted | j.StepCopied | j.StepPending) -> Step:
        identity = Identity(entry.scope, entry.name, entry.fingerprint, entry.n)
        step = Step(entry.step, identity, entry.args, entry.digest)
        self.steps[entry.step] = self.index[identity] = step
        self.by_name.setdefault((entry.scope, entry.name), []).append(step)
        return step

    def _begin_attempt(self, entry: j.StepStarted | j.StepPending) -> Step:
        step = self.steps.get(entry.step) or self._new_step(entry)
        if entry.attempt != len(step.attempts) + 1:
            raise CorruptStore(f"run {self.key}: entry {entry.seq} starts attempt {entry.attempt} out of order.")
        self._move_step(step, j.kind_of(entry))
        step.digest = entry.digest or step.digest
        step.attempts.append(Attempt(entry.attempt, entry.at, outcome=step.status))
        step.until, step.wake, step.unused = 0.0, 0.0, False
        self.current = step.path
        return step

    def _step_started(self, entry: j.StepStarted) -> None:
        step = self._begin_attempt(entry)
        step.spoken = step.spoken or entry.spoken
        if entry.metered:
            step.attempts[-1].metered = True
            self._use(step.attempts[-1], Usage(calls=1))

    def _step_progress(self, entry: j.StepProgress) -> None:
        self._attempt(entry.step, entry.attempt).progress = entry.value

    def _step_chunk(self, entry: j.StepChunk) -> None:
        self._attempt(entry.step, entry.attempt).text.append(entry.text)

    def _step_usage(self, entry: j.StepUsage) -> None:
        self._use(self._attempt(entry.step, entry.attempt), entry.usage)

    def _use(self, attempt: Attempt, usage: Usage) -> None:
        attempt.usage += usage
        self.usage += usage
        self.paid += usage

    def _step_copied(self, entry: j.StepCopied) -> None:
        source = self._step(entry.source)
        if entry.step in self.steps or source.output is None:
            raise CorruptStore(f"run {self.key}: entry {entry.seq} copies step {entry.source} into {entry.step}.")
        step = self._new_step(entry)
        self._move_step(step, "step_copied")
        step.attempts.append(Attempt(1, entry.at, entry.at, "copied"))
        step.output, step.flagged = source.output, source.flagged

    def _messages_added(self, entry: j.MessagesAdded) -> None:
        messages = self.conversations.setdefault(entry.scope, [])
        if entry.place > len(messages):
            raise CorruptStore(f"run {self.key}: entry {entry.seq} is message {entry.place} after {len(messages)}.")
        messages[entry.place :] = entry.messages

    def _step_completed(self, entry: j.StepCompleted) -> None:
        event = "step_flagged" if entry.flagged else "step_completed"
        waited = self._end_wait(entry.step)
        step = self._end_attempt(entry, event, seconds=entry.seconds)
        if waited:
            step.attempts[-1].seconds = 0.0  # time that passed is no work
        step.output, step.flagged, step.failures = entry.output, entry.flagged, 0
        self.latest[step.name, step.identity.fingerprint] = step

    def _step_failed(self, entry: j.StepFailed) -> None:
        event = "step_failed" if entry.final else "step_retrying"
        self._end_wait(entry.step)
        step = self._end_attempt(entry, event, entry.outcome, entry.error, entry.seconds)
        step.failures = 0 if entry.final else step.failures + 1
        step.until = entry.until

    def _step_waiting(self, entry: j.StepWaiting) -> None:
        step = self._end_attempt(entry, "step_waiting", error=entry.error, seconds=entry.seconds)
        if step.attempts[-1].metered:
            self._use(step.attempts[-1], Usage(calls=-1))
        step.until = entry.until

    def _step_interrupted(self, entry: j.StepInterrupted) -> None:
        self._end_wait(entry.step)
        step = self._end_attempt(entry, "step_waiting" if entry.suspended else "step_interrupted")
        step.wake = entry.until

    # -- waiting for something from outside ------------------------------------------------------------------------

    def _step_pending(self, entry: j.StepPending) -> None:
        step = self._begin_attempt(entry)
        step.until = entry.until
        self.pending[entry.step], self._shown = entry, None
        if self.signals.get(entry.signal):
            self.arrived[entry.step] = self.signals[entry.signal].popleft()

    def _take_post(self, entry: j.Posted | j.PostDropped) -> None:
        if entry.post != self.posts + 1:
            raise CorruptStore(f"run {self.key}: entry {entry.seq} is post {entry.post} after post {self.posts}.")
        self.posts = entry.post

    def _post_dropped(self, entry: j.PostDropped) -> None:
        self._take_post(entry)

    def _question_answered(self, entry: j.QuestionAnswered) -> None:
        self._take_post(entry)
        self._arrive(entry.step, entry)
        self.decided[entry.question] = entry

    def _question_closed(self, entry: j.QuestionClosed) -> None:
        self._take_post(entry)
        if entry.question:
            self.decided[entry.question] = entry
        if entry.expired:
            self._arrive(entry.step, entry)
        else:
            self._withdraw(entry.step, entry.at)

    def _signal_received(self, entry: j.SignalReceived) -> None:
        """It is for whoever waits longest for one of that name, or for the next who does."""
        self._take_post(entry)
        waiting = (n for n, p in self.pending.items() if p.signal == entry.name and n not in self.arrived)
        step = next(waiting, None)
        if step is not None:
            self._arrive(step, entry)
        else:
            self.signals.setdefault(entry.name, deque()).append(entry)

    def _answer_rejected(self, entry: j.AnswerRejected) -> None:
        """An answer leaves the question open; a signal is gone, and the next of its name takes its place."""
        arrived = self.arrived.pop(entry.step, None)
        if isinstance(arrived, j.QuestionAnswered):
            self.decided.pop(arrived.question, None)
        self.rejected[entry.step], self._shown = entry.why, None
        waits = self.pending[entry.step].signal if entry.step in self.pending else ""
        if self.signals.get(waits):
            self.arrived[entry.step] = self.signals[waits].popleft()

    def _stop_requested(self, entry: j.StopRequested) -> None:
        self._take_post(entry)
        self.stop = entry

    def _run_released(self, entry: j.RunReleased) -> None:
        self._take_post(entry)
        if self.stop is not None and not self.stop.cancel:
            self.stop = None
        if self.status == states.PAUSED:
            self._move_run(entry)
            self.reason, self.wake, self.stopped_by = f"let go on by {entry.by}", entry.at, ""

    def _run_woken(self, entry: j.RunWoken) -> None:
        self._take_post(entry)
        self.woken.append(entry.by)
        self._wake(entry)

    def _cleanup_declared(self, entry: j.CleanupDeclared) -> None:
        self.cleanups = True

    def _arrive(self, number: int, entry: j.Posted) -> None:
        if number not in self.pending or number in self.arrived:
            raise CorruptStore(f"run {self.key}: entry {entry.seq} is for step {number}, which does not wait for it.")
        self.arrived[number], self._shown = entry, None
        self._wake(entry)

    def _wake(self, entry: j.Posted) -> None:
        """A suspended run can go on."""
        if self.status in states.RUN_SUSPENDED:
            self._move_run(entry, "run_woken")
            self.reason, self.wake = "what it waited for is there", entry.at

    def _end_wait(self, number: int) -> bool:
        """Whether the step was waiting for something from outside; it is not any more."""
        waited = self.pending.pop(number, None) is not None
        if waited:
            self.arrived.pop(number, None)
            self.rejected.pop(number, None)
            self._shown = None
        return waited

    def _withdraw(self, number: int, at: float) -> None:
        """Nobody needs what a step waits for. A signal that was meant for it is there for the next who waits."""
        if number not in self.pending:
            return
        arrived = self.arrived.get(number)
        if isinstance(arrived, j.SignalReceived):
            self.signals.setdefault(arrived.name, deque()).appendleft(arrived)
        self._end_wait(number)
        step = self._step(number)
        self._move_step(step, "step_interrupted")
        _end(step.attempts[-1], states.INTERRUPTED, at)

    def _steps_invalidated(self, entry: j.StepsInvalidated) -> None:
        for number in entry.steps:
            step = self._step(number)
            self._move_step(step, "step_invalidated")
            step.generation += 1
            step.output, step.flagged = None, ""


def _text(payload: Payload | None) -> str:
    """A value as people read it, if it stands in the journal itself."""
    if payload is None or payload.refs:
        return ""
    value = msgspec.json.decode(payload.value)
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _end(attempt: Attempt, outcome: str, at: float, seconds: float = 0.0, error: ErrorInfo | None = None) -> None:
    attempt.outcome, attempt.ended, attempt.error = outcome, at, error
    attempt.seconds = seconds or max(at - attempt.started, 0.0)


_APPLY: dict[type[j.Entry], Callable[[State, j.Entry], None]] = {
    kind: getattr(State, "_" + str(kind.__struct_config__.tag).partition("/")[0]) for kind in j.KINDS
}


def fold(key: RunKey, lines: Iterable[bytes]) -> State:
    """The state after all records of a journal. Raises CorruptStore or NewerFormat; never guesses."""
    state = State(key)
    for line in lines:
        state.apply(j.decode(key, line, state.seq + 1))
    return state


def summarise(key: RunKey, lines: list[bytes]) -> RunMeta:
    """The listing row of a journal."""
    return fold(key, lines).meta()
