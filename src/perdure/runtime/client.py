"""The client: looks at runs and steers them from outside. It executes nothing; the command line uses only it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from math import inf
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from msgspec.structs import replace

from perdure import codec, states
from perdure import journal as j
from perdure.clock import SYSTEM, Clock
from perdure.errors import AnswerRefused, ConfigError, RunNotFound
from perdure.fold import State, fold
from perdure.inbox import open_question
from perdure.journal import decode
from perdure.model import OWN, Question, RunKey, RunMeta, check_name, key_named, printable
from perdure.record import Step
from perdure.runtime.config import default_store
from perdure.runtime.forms import as_json, fitting
from perdure.runtime.lease import clock_of
from perdure.runtime.look import each, row_of
from perdure.runtime.moments import At, state_at
from perdure.runtime.outputs import Outputs, outputs_folder, readable
from perdure.runtime.retention import Retention, prune, remove
from perdure.runtime.settle import seen, send
from perdure.runtime.why import announced, why_waiting
from perdure.stores import Encryption, open_store
from perdure.stores.base import Capabilities, Store, Which
from perdure.stores.handle import blobs_of

if TYPE_CHECKING:
    from perdure.runtime.compare import Comparison
    from perdure.runtime.explain import Explanation
    from perdure.runtime.export import Exported, Progress
    from perdure.runtime.restore import Imported
    from perdure.runtime.unpack import Archive

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Client:
    """Lists, shows and stops runs of a store. Raises a FixError when there is no such store."""

    def __init__(
        self, store: str | Store | None = None, *, encryption: Encryption | None = None, clock: Clock = SYSTEM
    ) -> None:
        self._store = open_store(store if store is not None else default_store(), create=False, encryption=encryption)
        self._clock = clock_of(self._store, clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._store.close()

    @property
    def url(self) -> str:
        return self._store.url

    @property
    def capabilities(self) -> Capabilities:
        """What the store promises."""
        return self._store.capabilities

    def warnings(self) -> list[str]:
        """What stands against that, and what was found damaged since the last call: one sentence each."""
        return self._store.warnings()

    def runs(self, goal: str | None = None) -> list[RunMeta]:
        """A row for every run; one that nobody runs any more, and that did not end, has status "crashed" (B2)."""
        return list(self.each(goal))

    def each(self, goal: str | None = None) -> Iterator[RunMeta]:
        """The same, one after the other, without having all of them in memory. A run that begins or goes meanwhile may
        be among them, or not."""
        if goal is not None and not printable(goal):
            return  # no run is called so, and not every store can be asked
        yield from (self._seen(row) for row in each(self._store, goal) if not row.goal.startswith(OWN))

    def waiting(self, rows: Iterable[RunMeta] | None = None) -> dict[RunKey, str]:
        """Why runs (of these rows, or all) that can go on are not executed, as far as living workers tell: they lack
        the flow, or a version of it, their queue is at its limits, or there is no worker."""
        workers, now = announced(self._store.runs(Which(active=inf))), self._clock.now()
        active = lru_cache(lambda queue, since: self._store.runs(Which(active=since, queues=(queue,))))
        told = ((row.key, why_waiting(row, active, workers, now)) for row in (self.each() if rows is None else rows))
        return {key: why for key, why in told if why}

    def interrupted(self) -> list[RunMeta]:
        """Runs that were in flight and did not finish cleanly, and that nobody is running now."""
        return [row for row in self.each() if row.holder is None and row.status in states.RUN_UNFINISHED]

    def find(self, name: str) -> RunMeta:
        """The run called ``name``: ``goal#episode``, or ``goal`` (its latest episode) if none is called so. Raises
        RunNotFound."""
        key = key_named(name)  # first: so nobody's goal stands before the name that listings show of another run
        row = None if key is None or key.goal.startswith(OWN) else row_of(self._store, key)
        if row is not None:
            return self._seen(row)
        rows = self.runs(name)
        if rows:
            return rows[-1]
        raise RunNotFound(f"There is no run {name!r} in {self.url}.", hint="List what there is: perdure ls")

    def state(self, name: str, at: At | None = None) -> State:
        """Everything the journal tells of a run. Steps of a dead process have status "crashed".

        ``at``: as it was then. The number of an entry; ``"#6"`` or a step's name or path, for when that had ended; a
        date; or an age like ``"10m"``. Raises ConfigError, which says what there is, for what is no moment of the run.
        """
        row = self.find(name)
        lines = self._store.read(row.key)
        if at is not None:
            return state_at(row.key, lines, at, self._clock.now())
        state = fold(row.key, lines)
        if row.status == states.CRASHED:
            state.status = states.CRASHED
            for step in state.steps.values():
                if step.status == states.RUNNING:
                    step.status = step.attempts[-1].outcome = states.CRASHED
        return state

    def entries(self, name: str, after: int = 0) -> list[j.Entry]:
        """Journal entries with sequence above ``after``, in order."""
        key = self.find(name).key
        return [decode(key, line, after + 1 + i) for i, line in enumerate(self._store.read(key, after))]

    def step(self, name: str, step: str, at: At | None = None) -> Step:
        """The step of a run with that number, name or path; the latest of several; ``at`` as for ``state``. Raises
        RunNotFound."""
        state = self.state(name, at)
        found = [s for s in state.steps.values() if s.is_called(step)]
        if not found:
            names = ", ".join(dict.fromkeys(s.path for s in state.steps.values())) or "none yet"
            raise RunNotFound(f"run {state.key} has no step {step!r}.", hint=f"Its steps: {names}.")
        return max(found, key=lambda s: (not s.unused, s.number))

    def explain(self, name: str) -> Explanation:
        """Why each step of a run was executed or reused in its latest life."""
        from perdure.runtime.explain import explain  # here: whoever only executes runs needs none of it

        return explain(self.find(name).key, self.entries(name), self.value)

    def diff(self, a: str, b: str) -> Comparison:
        """What differs between two runs, steps by steps: inputs, outputs (as text), states, attempts, usage. Needs no
        type of their programs. Raises RunNotFound."""
        from perdure.runtime.compare import compare  # here: whoever only executes runs needs none of it

        return compare(self.state(a), self.state(b), self.blobs)

    def value(self, payload: codec.Payload) -> Any:
        """The decoded value of an output, input or progress."""
        return codec.loads(payload, self.blobs(payload))

    def blobs(self, payload: codec.Payload) -> dict[str, bytes]:
        """The blobs that a payload refers to."""
        return blobs_of(self._store, payload.refs)

    def readable(self, payload: codec.Payload) -> tuple[str, bytes]:
        """A value as people read it, and the suffix of its file: text (".md"), bytes (".bin"), else JSON (".json").

        Needs no type of the program that made the value.
        """
        return readable(payload, self.blobs(payload))

    def output_file(self, state: State, step: Step) -> Path | None:
        """The file in which the step's output stands, if there is one."""
        folder = outputs_folder(self._store, state)
        return Outputs(folder).find(step) if folder else None

    # -- what others than its holder may say to a run ----------------------------------------------------------------

    def questions(self, name: str | None = None) -> list[Question]:
        """What runs (or the run ``name``) ask people and nobody has answered, oldest first.

        Prompts are cut to 200 characters; ``question`` has all of one.
        """
        rows = self.each() if name is None else [self.find(name)]
        open_ = [
            question
            for row in rows
            if row.asking and row.status not in states.RUN_OVER
            for question in (row.questions if self._shows_all(row) else self._state(row.key).waits.questions())
        ]
        return sorted(open_, key=lambda question: question.asked)

    def _shows_all(self, row: RunMeta) -> bool:
        return not row.unread and row.asking == len(row.questions)

    def question(self, name: str, question: str | int | None = None) -> Question:
        """All of one question of a run: the one of that step (number, name or path) or id, or the only one.

        Raises RunNotFound if it asks no such thing, ConfigError if it asks several and none is named.
        """
        state = self._state(self.find(name).key)
        return self._full(state, open_question(state, question))

    def answer(self, name: str, question: str | int | None, value: object, *, by: str) -> State:
        """Answer a question (named as for ``question``) of a run, whether somebody executes it or not. Durable on
        return; the state is the run's after it.

        ``value`` is what the asking code wants, or the same as JSON has it. The first answer counts. Raises
        AnswerRefused, and changes nothing, for a value that does not fit, or a question that is closed.
        """
        key = self.find(name).key
        _check_by(by)

        def make(state: State) -> j.Posted:
            asked = open_question(state, question)
            return j.QuestionAnswered(step=asked.step, question=asked.id, value=fitting(asked, value), by=by)

        return send(self._store, self._clock, key, make)

    def signal(self, name: str, signal: str, value: object = None, *, by: str = "") -> State:
        """Send a run a signal. It is received once, in order, whether the run waits for it now, later or never.

        Raises AnswerRefused for a run that is over, and a value that is no JSON.
        """
        check_name("signal", signal)
        data = as_json(value)
        return send(
            self._store, self._clock, self.find(name).key, lambda _: j.SignalReceived(name=signal, value=data, by=by)
        )

    def pause(self, name: str, *, by: str, reason: str = "") -> State:
        """Stop a run until a person lets it go on (B9): what is executed at this moment is finished and kept, nothing
        new begins. Raises AnswerRefused for a run that is over."""
        return self._stop(name, by, reason, cancel=False)

    def unpause(self, name: str, *, by: str) -> State:
        """Let a paused run go on; whoever executes runs may take it up. Raises AnswerRefused if it is not paused."""
        return self._release(name, by, self._refuse_unpause)

    def retry(self, name: str, *, by: str) -> State:
        """Give another life to a run that failed, or that was paused because it could not go on: its program has been
        mended, say. Steps that failed are executed again, crashes so far are forgiven, what finished is kept.

        Raises AnswerRefused for a run that can go on by itself, that a person stopped, or that is over.
        """
        return self._release(name, by, self._refuse_retry)

    def _release(self, name: str, by: str, refuse: Callable[[State], None]) -> State:
        _check_by(by)

        def make(state: State) -> j.Posted:
            refuse(state)
            return j.RunReleased(by=by)

        return send(self._store, self._clock, self.find(name).key, make)

    def _refuse_unpause(self, state: State) -> None:
        if state.status == states.FAILED:
            raise AnswerRefused(
                f"run {state.key} is not paused: it failed. Nothing was changed.",
                hint=f"Try it again with: perdure retry {state.key}",
            )

    def _refuse_retry(self, state: State) -> None:
        if state.status == states.PAUSED and state.stopped_by:
            raise AnswerRefused(
                f"run {state.key} was stopped by {state.stopped_by}: {state.reason}. Nothing was changed.",
                hint=f"Let it go on with: perdure unpause {state.key}",
            )
        if state.status not in (states.PAUSED, states.FAILED, *states.RUN_OVER):
            raise AnswerRefused(
                f"run {state.key} has not failed: it is {self.find(str(state.key)).status}. Nothing was changed.",
                hint="A run that crashed or was interrupted goes on when it is run, or a worker takes it up.",
            )

    def cancel(self, name: str, *, by: str, reason: str = "") -> State:
        """Give a run up, and the runs that it began. Steps that run are cancelled, clean-ups executed; a run that has
        any and that nobody executes is cancelled when it is run again.

        Raises AnswerRefused for a run that is over.
        """
        key = self.find(name).key
        state = self._stop(name, by, reason, cancel=True)
        for row in self.each():
            if row.parent == str(key) and row.status not in states.RUN_OVER:
                with suppress(AnswerRefused):  # it ended in this moment, or is being cancelled already
                    self.cancel(str(row.key), by=by, reason=f"run {key} was cancelled")
        return state

    def _stop(self, name: str, by: str, reason: str, cancel: bool) -> State:
        _check_by(by)
        post = partial(j.StopRequested, by=by, reason=reason or "no reason given", cancel=cancel)
        return send(self._store, self._clock, self.find(name).key, lambda _: post())

    def fork(
        self,
        name: str,
        *,
        by: str,
        after: str | int | None = None,
        at: int | None = None,
        inputs: Mapping[str, Any] = _NOTHING,
        answers: Mapping[str, Any] = _NOTHING,
        outputs: Mapping[str, Any] = _NOTHING,
        goal: str | None = None,
    ) -> State:
        """Make another run, the next episode of the goal (or of ``goal``), which shares the records of this one up to
        some point and goes on from there: when it is run, or a worker takes it up. This one is only read.

        - ``after``: the step (number, name or path) that it shares last; or ``at``: the entry. Without either it is all
          there is; or, with ``answers``, what there was before somebody decided.
        - ``inputs``: what is to be changed of the run's inputs, by their names. Steps whose own inputs are the same are
          reused.
        - ``answers``: by number, name or id of a question that is open there.
        - ``outputs``: by step, other results than were recorded (X12).

        All of it is there on return, or nothing. Raises RunNotFound, ConfigError, AnswerRefused, CodecError for what
        cannot be, StoreError.
        """
        from perdure.runtime.fork import Terms, fork  # here: whoever only executes runs needs none of it

        answers, outputs = ({str(what): value for what, value in some.items()} for some in (answers, outputs))
        terms = Terms(by, None if after is None else str(after), at, inputs, answers, outputs, goal)
        return fork(self._store, self._clock, self.find(name).key, terms)

    def pin(self, name: str, *, by: str) -> State:
        """Keep a run, whatever retention says, until ``unpin``."""
        return self._pin(name, by, True)

    def unpin(self, name: str, *, by: str) -> State:
        """Let retention decide again."""
        return self._pin(name, by, False)

    def _pin(self, name: str, by: str, pinned: bool) -> State:
        _check_by(by)
        return send(self._store, self._clock, self.find(name).key, lambda _: j.RunPinned(by=by, pinned=pinned))

    def prune(self, retention: Retention, *, dry: bool = False) -> Iterator[RunMeta | None]:
        """Remove what retention does not keep, run by run: each is yielded when it is gone; None now and then, while
        others are looked at. ``dry``: nothing is removed.

        Raises StoreError; StoreBusy, and what was yielded is gone.
        """
        return prune(self._store, retention, self._clock, dry=dry)

    def remove(self, name: str, *, dry: bool = False) -> RunMeta:
        """Remove a finished run, whatever retention says. Raises ConfigError for one that is pinned, executed, waits
        for something or is needed by the run that began it. ``dry``: it is only looked at."""
        row = self.find(name)
        why = remove(self._store, row, dry=dry)
        if why:
            raise ConfigError(f"run {row.key} is not removed: {why}. Nothing was changed.")
        return row

    def compact(self) -> None:
        """Give the space of what was removed back to the disk, and wipe it. Raises ConfigError where the store does
        not."""
        compact = self.capabilities.compact
        if compact is None:
            raise ConfigError(
                f"{self.url} is of a kind that does this by itself, or not at all.", hint="See docs/stores.md."
            )
        compact()

    # -- archives ----------------------------------------------------------------------------------------------------

    def export(
        self,
        target: str | Path | IO[bytes],
        *names: str,
        replace: bool = False,
        progress: Progress = lambda runs: None,
    ) -> Exported:
        """Write runs, and those that they began, or the whole store if none is named, as an archive (``import_archive``
        takes it in elsewhere). Others may execute them meanwhile.

        A file is there whole and durable on return, or not at all; one that is there already is not touched unless
        ``replace``. Raises RunNotFound, ConfigError, StoreError; CorruptStore for a damaged run that was named.
        """
        from perdure.runtime.export import export_runs, written  # here: whoever only executes runs needs none of it

        keys = [self.find(name).key for name in names]
        with written(target, replace) as write:
            return export_runs(self._store, self._clock, keys, write, progress)

    def import_archive(
        self,
        source: str | Path | IO[bytes] | Archive,
        *,
        by: str,
        trust: bool = False,
        skip: bool = False,
        new: bool = False,
        goal: str | None = None,
        max_size: int | None = None,
        dry_run: bool = False,
        progress: Progress = lambda runs: None,
    ) -> Imported:
        """Bring in the runs of an archive that are not here yet; it may come from a stranger. Nothing is written before
        all of it was found sound. Killed in the middle, it is done again, and does the rest.

        - Runs that have not ended come in paused, in the name of ``by``, unless you ``trust`` whom the archive is from.
        - A run of the same name and with other content is left as it is (``skip``), or the archive's becomes the next
          episode of its goal (``new``); without either nothing is imported. ``goal``: the goal that they come in under.
        - ``max_size``: bytes that it may unpack to, instead of the usual limits.

        Raises ConfigError, NewerFormat, LeaseHeld, StoreError.
        """
        from perdure.runtime.restore import Terms, restore
        from perdure.runtime.unpack import Archive, unpack

        terms = Terms(by, trust, skip, new, goal)
        if isinstance(source, Archive):
            return restore(self._store, self._clock, source, terms, progress, dry_run=dry_run)
        with unpack(source, max_size=max_size, now=self._clock.now()) as archive:
            return restore(self._store, self._clock, archive, terms, progress, dry_run=dry_run)

    def due(self) -> list[RunMeta]:
        """Suspended runs that can go on now: what they waited for is there, or the date has come."""
        rows = self._store.runs(Which(due=self._clock.now()))
        return [row for row in map(self._seen, rows) if row.holder is None and row.status == states.READY]

    def _state(self, key: RunKey) -> State:
        """As ``state``, with what was posted and is not moved yet."""
        return seen(self._store, key)

    def _full(self, state: State, question: Question) -> Question:
        """With its context, also if that stands outside of the journal."""
        context = state.waits.steps[question.step].asked.context if question.step in state.waits.steps else None  # type: ignore[union-attr]
        if context is None or question.context:
            return question
        return replace(question, context=self.readable(context)[1].decode("utf-8", "replace").strip())

    def _seen(self, row: RunMeta) -> RunMeta:
        if row.holder is not None:
            return row
        if row.status == states.RUNNING:
            return replace(row, status=states.CRASHED)
        if row.status in states.RUN_SUSPENDED and (row.unread or 0 < row.wake <= self._clock.now()):
            return replace(row, status=states.READY)
        return row


def _check_by(by: str) -> None:
    """Raises ConfigError unless it is told who decides (rel:H5)."""
    check_name("by", by)
