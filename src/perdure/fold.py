"""The fold: the state of a run, computed from its entries and from nothing else.

``State.apply`` is the only place where a run's state changes, for a live process and for a reader alike. It checks
every entry against the tables of states.py. Outputs stay encoded; they are decoded when somebody asks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec
from msgspec.structs import replace

from perdure import journal as j
from perdure import states
from perdure.book import Steps
from perdure.errors import CorruptStore
from perdure.facts import Facts
from perdure.limits import MAX_SCOPE
from perdure.model import ErrorInfo, Origin, RunKey, RunMeta, Usage
from perdure.pending import Arrival
from perdure.record import Attempt, Identity, Step, enclosing


class State(Facts, kw_only=False):
    """A run as its journal tells it."""

    key: RunKey
    steps: Steps = msgspec.field(default_factory=Steps)
    scopes: dict[Identity, str] = msgspec.field(default_factory=dict)
    taken: dict[tuple[str, str], list[str]] = msgspec.field(default_factory=dict)
    """(scope, fan) -> branches in the order in which their results were handed on"""
    running: dict[int, Step] = msgspec.field(default_factory=dict)
    """steps that are executed"""
    snapshot: int = 0
    """sequence of the last snapshot that was made of it"""
    row: RunMeta | None = None
    """``_steady`` as it is now; None: something else has happened"""

    def apply(self, entry: j.Entry) -> None:
        """Take the next entry. Raises CorruptStore if it cannot follow what came before."""
        if entry.seq != self.seq + 1:
            raise CorruptStore(f"run {self.key}: entry {entry.seq} follows entry {self.seq}. Nothing was changed.")
        if self.status is None and not isinstance(entry, j.First):
            raise self._impossible(entry.seq, j.kind_of(entry))
        kind = type(entry)
        if kind not in _OF_STEPS:
            self.row = None
        _APPLY[kind](self, entry)
        self.seq = entry.seq
        if entry.at > self.updated:  # a clock may be set back
            self.updated = entry.at

    def take(self, line: bytes) -> None:
        """Take the next record. Raises CorruptStore, NewerFormat."""
        self.apply(j.decode(self.key, line, self.seq + 1))
        self.size += len(line)

    def around(self, step: Step) -> list[int]:
        """The steps inside which a step was executed."""
        identities = {path: identity for identity, path in self.scopes.items()}
        found = (self.steps.find(identities[path]) for path in enclosing(step.identity.scope) if path in identities)
        return [outer.number for outer in found if outer is not None]

    def waits_inside(self, number: int) -> bool:
        """Whether something inside a step waits for what comes from outside."""
        path = self.scopes.get(self.steps[number].identity) if number in self.steps else None
        return path is not None and any(path in enclosing(self.steps[n].identity.scope) for n in self.waits.steps)

    def running_inside(self, number: int) -> list[Step]:
        """Steps inside a step that are executed."""
        path = self.scopes.get(self.steps[number].identity) if number in self.steps else None
        running = self.running.values() if path is not None else ()
        return [step for step in running if path in tuple(enclosing(step.identity.scope))]

    def from_earlier_lives(self) -> list[Step]:
        """Steps whose results were there when the latest life began, and that it did not do without."""
        began = self.life_began
        return [s for s in self.steps.values() if s.recorded and not s.unused and s.attempts[-1].started < began]

    def meta(self) -> RunMeta:
        """The row that listings show."""
        if self.row is None or self.status != states.RUNNING:
            self.row = self._steady()
        count, (asking, questions) = self.counts, self.waits.heads()
        return replace(
            self.row,
            updated=self.updated,
            seq=self.seq,
            completed=count[states.COMPLETED],
            failed=count[states.FAILED],
            flagged=count[states.FLAGGED],
            running=count[states.RUNNING],
            current=self.current,
            used=self.usage,
            paid=self.paid,
            crashes=self.crashes,
            asking=asking,
            questions=questions,
        )

    def _steady(self) -> RunMeta:
        """What of that stays as it is while steps begin and end."""
        return RunMeta(
            goal=self.key.goal,
            episode=self.key.episode,
            status=self.status or states.RUNNING,
            flow=self.flow,
            reason=self.reason,
            created=self.created,
            tags=self.attribution.tags,
            saved=self.saved_usage,
            parent=self.attribution.parent,
            forked=self.forked,
            wake=self._free_from(),
            begun=self.life_began,
            queue=self.queue,
            priority=self.priority,
            limits=self.limits,
            idempotency_key=self.idempotency_key,
            version=self.version,
            posts=self.posts,
            pinned=self.pinned,
        )

    def _free_from(self) -> float:
        """From when on the run may be taken up if nobody holds it; 0: not by a date."""
        if self.status == states.RUNNING:
            return self.life_began
        if self.stop is not None and self.stop.cancel and self.status not in states.RUN_OVER:
            return self.stop.posted or self.updated  # its clean-ups are to be executed
        return self.updated if self.status == states.INTERRUPTED else self.wake

    # -- runs ----------------------------------------------------------------------------------------------------

    def _move_run(self, entry: j.Entry, event: str = "") -> None:
        kind = event or j.kind_of(entry)
        try:
            self.status = states.RUN[self.status, kind]
        except KeyError:
            raise self._impossible(entry.seq, kind) from None

    def _impossible(self, seq: int, kind: str) -> CorruptStore:
        return CorruptStore(
            f"run {self.key}: entry {seq} is {kind!r}, which cannot follow the state {self.status!r}. "
            "Nothing was changed."
        )

    def _first(self, entry: j.First) -> None:
        self._move_run(entry)
        self.run_id = self.keyed_by = entry.run_id
        self.flow, self.digest, self.target = entry.flow, entry.digest, entry.target
        self.inputs, self.args, self.attribution = entry.inputs, entry.args, entry.attribution
        self.version, self.budget, self.created = entry.version, entry.budget, entry.at

    def _run_began(self, entry: j.RunBegan) -> None:
        self._first(entry)
        self.durability, self.epoch, self.lives = entry.durability, entry.epoch, 1
        self.outputs, self.life_began = entry.outputs, entry.at

    def _run_queued(self, entry: j.RunQueued) -> None:
        self._first(entry)
        self.queue, self.priority, self.limits = entry.queue, entry.priority, entry.limits
        self.idempotency_key = entry.idempotency_key
        self.wake = self.not_before = entry.wake

    def _run_forked(self, entry: j.RunForked) -> None:
        """All that is said of the run as a whole begins anew; what its steps have done so far stays."""
        if entry.at_seq != self.seq:
            raise CorruptStore(f"run {self.key}: entry {entry.seq} says that the run was forked at {entry.at_seq}.")
        path = self._step(entry.step).path if entry.step else ""
        if entry.crashed:
            self._end_running("step_crashed", states.CRASHED, self.updated)
        for step in self.running.values():
            step.generation += 1
        self._end_running("step_forked", states.INTERRUPTED, self.updated)
        self._move_run(entry)
        self.forked = Origin(entry.run, entry.at_seq, entry.step, path, entry.by)
        self.forked_to = entry.seq
        self.run_id, self.created, self.reason = entry.run_id, entry.at, f"forked from {self.forked}"
        self.waits.rename(self.steps, self.key, entry.run_id)
        if entry.inputs is not None:
            self.inputs, self.args = entry.inputs, entry.args
        self.attribution = replace(self.attribution, parent="")
        self.lives = self.crashes = self.reused = self.posts = self.woken_at = self.left_at = 0
        self.saved = self.seconds = self.wake = self.life_began = self.not_before = 0.0
        self.forgiven = entry.at
        self.usage = self.paid = self.saved_usage = Usage()
        self.output = self.error = self.stop = None
        self.idempotency_key = self.stopped_by = self.outputs = ""
        self.pinned, self.diverged = False, True
        self.woken, self.renewing = [], None

    def _of_the_fork(self, entry: j.Entry) -> bool:
        """Whether an entry is one of those that say how the run was forked."""
        if self.forked_to != self.seq:
            return False
        self.forked_to = entry.seq
        return True

    def _run_resumed(self, entry: j.RunResumed) -> None:
        self.crashes = self.crashes + 1 if self.status == states.RUNNING else 0
        self._end_running("step_crashed", states.CRASHED, entry.at)
        self._move_run(entry)
        self.wake = 0.0
        if self.stop is not None and not self.stop.cancel:
            self.stop = None
        self.seconds += max(self.updated - self.life_began, 0.0) if self.lives else 0.0
        self.life_began, self.paid = entry.at, Usage()
        self.lives += 1
        self.epoch = entry.epoch
        self.budget = entry.budget or self.budget
        self.diverged = self.diverged or entry.renew or entry.inputs is not None or self.digest != entry.digest
        self.digest = entry.digest or self.digest
        self.renewing = entry.digest if entry.renew else self.renewing
        self.version = entry.version or self.version
        self.outputs = entry.outputs or self.outputs
        self.reason, self.error, self.stopped_by = "", None, ""
        if entry.inputs is not None:
            self.inputs, self.args = entry.inputs, entry.args

    def _run_completed(self, entry: j.RunCompleted) -> None:
        self._end_run(entry)
        self.renewing, self.diverged = None, False
        self.output, self.reused, self.saved = entry.output, entry.reused, entry.saved
        self.saved_usage = entry.saved_usage
        for number in self.unused:
            self.steps[number].unused = False
        self.unused = tuple([number for number in entry.unused if number in self.steps])
        for number in self.unused:
            self.steps[number].unused = True

    def _run_failed(self, entry: j.RunFailed) -> None:
        self._end_run(entry)
        self.error, self.reason = entry.error, str(entry.error)

    def _run_paused(self, entry: j.RunPaused) -> None:
        if entry.crashed:
            self.crashes += 1
            self._end_running("step_crashed", states.CRASHED, entry.at)
        self._end_run(entry)
        self.reason, self.stopped_by, self.stop = entry.reason, entry.by, None

    def _run_interrupted(self, entry: j.RunInterrupted) -> None:
        self._end_run(entry)
        self.reason = entry.reason

    def _run_suspended(self, entry: j.RunSuspended) -> None:
        for step in [step for step in self.running.values() if self.waits_inside(step.number)]:
            self._move_step(step, "step_waiting")
            _end(step.attempts[-1], states.WAITING, entry.at)
        self._end_run(entry, "run_pending_input" if entry.input else "run_waiting")
        self.reason, self.wake = entry.reason, entry.wake
        if self.waits.arrived or self.woken_at > self.left_at:  # it came while the run was being suspended
            self._wake(entry)

    def _run_cancelled(self, entry: j.RunCancelled) -> None:
        self._end_run(entry)
        self.reason, self.stopped_by, self.stop = entry.reason, entry.by, None

    def _end_run(self, entry: j.Entry, event: str = "") -> None:
        self._end_running("step_interrupted", states.INTERRUPTED, entry.at)
        self._move_run(entry, event)
        self.wake = 0.0
        if self.status in states.RUN_OVER:
            for number in list(self.waits.steps):
                question = self.waits.question_id(number)
                if question:
                    self.waits.decided[question] = j.QuestionClosed(step=number, question=question)
                self._withdraw(number, entry.at)

    def _end_running(self, event: str, outcome: str, at: float) -> None:
        for step in list(self.running.values()):
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
            self.counts[step.status] -= 1
        self.counts[status] += 1
        step.status = status
        if status == states.RUNNING:
            self.running[step.number] = step
        else:
            self.running.pop(step.number, None)

    def _step(self, number: int) -> Step:
        step = self.steps.get(number)
        if step is None:
            raise CorruptStore(f"run {self.key}: entry {self.seq + 1} speaks of step {number}, which never started.")
        return step

    def _attempt(self, number: int, attempt: int) -> Attempt:
        return self._attempt_of(self._step(number), attempt)

    def _attempt_of(self, step: Step, attempt: int) -> Attempt:
        if not 1 <= attempt <= len(step.attempts):
            raise CorruptStore(
                f"run {self.key}: entry {self.seq + 1} speaks of attempt {attempt} of step {step.number}, which has "
                f"had {len(step.attempts)}."
            )
        return step.attempts[attempt - 1]

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
        attempt = self._attempt_of(step, entry.attempt)
        if attempt is not step.attempts[-1]:
            raise CorruptStore(f"run {self.key}: entry {entry.seq} ends attempt {entry.attempt}, which had ended.")
        self._move_step(step, event)
        _end(attempt, outcome or step.status, entry.at, seconds, error)
        return step

    def _scope_opened(self, entry: j.ScopeOpened) -> None:
        self.scopes[Identity(entry.parent, entry.name, entry.fingerprint, entry.n)] = self._scope(entry.path)

    def _scope(self, path: str) -> str:
        if len(path) > MAX_SCOPE:
            raise CorruptStore(f"run {self.key}: entry {self.seq + 1} has a scope of {len(path):,} characters.")
        return path

    def _branch_taken(self, entry: j.BranchTaken) -> None:
        self.taken.setdefault((entry.scope, entry.fan), []).append(entry.branch)

    def _new_step(self, entry: j.StepStarted | j.StepCopied | j.StepPending) -> Step:
        identity = Identity(self._scope(entry.scope), entry.name, entry.fingerprint, entry.n)
        step = Step(entry.step, identity, entry.args, entry.digest)
        step.begun = entry.seq
        if entry.step > self.last_number:
            self.last_number = entry.step
        self.steps.add(step)
        return step

    def _begin_attempt(self, entry: j.StepStarted | j.StepPending) -> Step:
        step = self.steps.get(entry.step) or self._new_step(entry)
        if entry.attempt != len(step.attempts) + 1:
            raise CorruptStore(f"run {self.key}: entry {entry.seq} starts attempt {entry.attempt} out of order.")
        self._move_step(step, j.kind_of(entry))
        step.digest = entry.digest or step.digest
        step.attempts.append(Attempt(entry.attempt, entry.at, outcome=step.status))
        step.until, step.wake, step.unused, step.edited = 0.0, 0.0, False, ""
        self.current = step.path
        return step

    def _step_started(self, entry: j.StepStarted) -> None:
        step = self._begin_attempt(entry)
        step.spoken = step.spoken or entry.spoken
        if entry.code is not None:
            self.code.setdefault(step.digest, entry.code)
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
        if entry.step == entry.source or source.output is None:
            raise CorruptStore(f"run {self.key}: entry {entry.seq} copies step {entry.source} into {entry.step}.")
        step = self.steps.get(entry.step) or self._new_step(entry)
        self._move_step(step, "step_copied")
        step.attempts.append(Attempt(len(step.attempts) + 1, entry.at, entry.at, "copied"))
        step.digest = entry.digest or step.digest
        step.output, step.flagged, step.unused, step.edited = source.output, source.flagged, False, ""
        step.at = source.at

    def _messages_added(self, entry: j.MessagesAdded) -> None:
        messages = self.conversations.setdefault(entry.scope, [])
        for message in entry.messages:
            if message.step:
                self._step(message.step)
        if not 0 <= entry.place <= len(messages):
            raise CorruptStore(f"run {self.key}: entry {entry.seq} is message {entry.place} after {len(messages)}.")
        messages[entry.place :] = entry.messages

    def _step_completed(self, entry: j.StepCompleted) -> None:
        event = "step_flagged" if entry.flagged else "step_completed"
        waited = self.waits.end(entry.step)
        step = self._end_attempt(entry, event, seconds=entry.seconds)
        if waited:
            step.attempts[-1].seconds = 0.0  # time that passed is no work
        step.output, step.at, step.flagged, step.failures = entry.output, entry.seq, entry.flagged, 0
        self.crashes = 0
        self.steps.completed(step)

    def _step_failed(self, entry: j.StepFailed) -> None:
        event = "step_failed" if entry.final else "step_retrying"
        self.waits.end(entry.step)
        step = self._end_attempt(entry, event, entry.outcome, entry.error, entry.seconds)
        step.failures = 0 if entry.final else step.failures + 1
        step.until = entry.until

    def _step_waiting(self, entry: j.StepWaiting) -> None:
        step = self._end_attempt(entry, "step_waiting", error=entry.error, seconds=entry.seconds)
        if step.attempts[-1].metered:
            self._use(step.attempts[-1], Usage(calls=-1))
        step.until = entry.until

    def _step_interrupted(self, entry: j.StepInterrupted) -> None:
        self.waits.end(entry.step)
        step = self._end_attempt(entry, "step_waiting" if entry.suspended else "step_interrupted")
        step.wake = entry.until
        self.left_at = entry.seq if entry.suspended else self.left_at

    def _steps_invalidated(self, entry: j.StepsInvalidated) -> None:
        self.diverged = True
        for number in entry.steps:
            step = self._step(number)
            self._move_step(step, "step_invalidated")
            step.generation += 1
            step.superseded = len(step.attempts)
            step.output, step.at, step.flagged, step.edited = None, 0, "", ""

    def _step_edited(self, entry: j.StepEdited) -> None:
        step = self._step(entry.step)
        if not self._of_the_fork(entry):
            raise CorruptStore(f"run {self.key}: entry {entry.seq} edits step {entry.step} of a run that goes on.")
        self._move_step(step, "step_edited")
        step.output, step.at, step.flagged, step.edited = entry.output, entry.seq, "", entry.by
        self.steps.completed(step)

    def _steps_reused(self, entry: j.StepsReused) -> None:
        unknown = self.steps.unknown(entry.steps, entry.spans)
        if unknown is not None:
            self._step(unknown)

    # -- waiting for something from outside ------------------------------------------------------------------------

    def _step_pending(self, entry: j.StepPending) -> None:
        step = self._begin_attempt(entry)
        step.until = entry.until
        self.waits.begin(entry, step, self.key, self.run_id)

    def _take_post(self, entry: j.Posted | j.PostDropped) -> None:
        if entry.post != self.posts + 1:
            raise CorruptStore(f"run {self.key}: entry {entry.seq} is post {entry.post} after post {self.posts}.")
        self.posts = entry.post

    def _post_dropped(self, entry: j.PostDropped) -> None:
        self._take_post(entry)

    def _question_answered(self, entry: j.QuestionAnswered) -> None:
        if entry.post or not self._of_the_fork(entry):
            self._take_post(entry)
        self._arrive(entry.step, entry)
        self.waits.decided[entry.question] = entry

    def _question_closed(self, entry: j.QuestionClosed) -> None:
        self._take_post(entry)
        self._step(entry.step)
        if entry.question:
            self.waits.decided[entry.question] = entry
        if entry.expired:
            self._arrive(entry.step, entry)
        else:
            self._withdraw(entry.step, entry.at)

    def _signal_received(self, entry: j.SignalReceived) -> None:
        self._take_post(entry)
        step = self.waits.receive(entry)
        if step is not None:
            self._arrive(step, entry)

    def _answer_rejected(self, entry: j.AnswerRejected) -> None:
        self._step(entry.step)
        self.waits.reject(entry)

    def _stop_requested(self, entry: j.StopRequested) -> None:
        self._take_post(entry)
        self.stop = entry

    def _run_released(self, entry: j.RunReleased) -> None:
        self._take_post(entry)
        if self.stop is not None and not self.stop.cancel:
            self.stop = None
        if self.status in (states.PAUSED, states.FAILED):
            begun = self.lives > 0 or self.forked is not None
            self._move_run(entry, "" if begun else "run_requeued")
            self.reason, self.stopped_by = f"let go on by {entry.by}", ""
            self.wake = entry.at if begun else self.not_before
            self.crashes, self.forgiven = 0, entry.at

    def _run_woken(self, entry: j.RunWoken) -> None:
        self._take_post(entry)
        self.woken.append(entry.by)
        self.woken_at = entry.seq
        self._wake(entry)

    def _run_pinned(self, entry: j.RunPinned) -> None:
        self._take_post(entry)
        self.pinned = entry.pinned

    def _cleanup_declared(self, entry: j.CleanupDeclared) -> None:
        self.cleanups = True

    def _arrive(self, number: int, entry: Arrival) -> None:
        self.waits.arrive(number, entry, self.key)
        self._wake(entry)

    def _wake(self, entry: j.Entry) -> None:
        """A suspended run can go on."""
        if self.status in states.RUN_SUSPENDED:
            self._move_run(entry, "run_woken")
            self.reason, self.wake = "what it waited for is there", entry.at

    def _withdraw(self, number: int, at: float) -> None:
        """Nobody needs what a step waits for."""
        signal = self.waits.arrived.get(number)
        if self.waits.end(number):
            step = self._step(number)
            self._move_step(step, "step_interrupted")
            _end(step.attempts[-1], states.INTERRUPTED, at)
        if isinstance(signal, j.SignalReceived):  # it is for the next who waits for it
            other = self.waits.receive(signal, again=True)
            if other is not None:
                self._arrive(other, signal)


def _end(attempt: Attempt, outcome: str, at: float, seconds: float = 0.0, error: ErrorInfo | None = None) -> None:
    attempt.outcome, attempt.ended, attempt.error = outcome, at, error
    attempt.seconds = seconds or max(at - attempt.started, 0.0)


_APPLY: dict[type[j.Entry], Callable[[State, j.Entry], None]] = {
    kind: getattr(State, "_" + j.name_of(kind)) for kind in j.KINDS
}


_OF_STEPS = frozenset({j.StepStarted, j.StepCompleted, j.StepChunk, j.StepUsage, j.ScopeOpened, j.MessagesAdded})
"""kinds that leave what is ``_steady`` of a row that runs"""


def fold(key: RunKey, lines: Iterable[bytes]) -> State:
    """The state after all records of a journal. Raises CorruptStore or NewerFormat; never guesses."""
    state = State(key)
    for line in lines:
        state.take(line)
    return state


def summarise(key: RunKey, lines: list[bytes]) -> RunMeta:
    """The listing row of a journal."""
    return fold(key, lines).meta()
