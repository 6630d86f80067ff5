"""Forking a run: another run that goes on from some point of the journal of the first (X2), with some things changed.

The theory
----------
A fork is a run like any other, under a key of its own. Its journal begins with the records of the original up to the
*cut*, with the same numbers and byte for byte but for their frames, which are made for the key. An entry ``RunForked``
follows: what stands before it is what another run has done. Then come the answers and results that the fork was made
with. The fold makes of it a run that was interrupted at the cut: whoever executes runs may take it up.

So a fork needs nothing of its original. Its steps' results are its own records; blobs are given to it again by their
names, and a store has each once, as long as any run is there that was given it. Either may be pruned before the other.
Nor does the original notice: it is only read, whoever executes it at this moment.

Everything that is told of a run as a whole begins anew with the fork: its id, hence idempotency keys and the ids of
its questions; what it has used; its inbox, which is empty and counts from 1. What was executed at the cut is the
original's affair: the fork is in no doubt about it, and executes it again. Only the digests of what is hidden (secrets)
are still made under the id that the journal began with: else the records before the cut would not match what the flow
asks for.

A fork appears in one append, so that a crash leaves all of it or nothing.

Rejected: referring to the original's records (retention would have to know who refers to whom, every store would read
two journals as one, and a damaged run would damage its forks); answers by way of the inbox (a crash in between would
leave a fork without them).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec

from perdure import codec, inbox, states
from perdure import journal as j
from perdure.clock import Clock
from perdure.codec import Payload
from perdure.errors import AnswerRefused, ConfigError, CorruptStore, LeaseHeld, PerdureError, RunNotFound
from perdure.fold import State, fold
from perdure.framing import frame, unframe
from perdure.guard import Guard
from perdure.inbox import is_called, open_question
from perdure.model import Lease, Question, RunKey, check_name
from perdure.record import Step
from perdure.runtime.edits import Inputs, given, with_inputs
from perdure.runtime.forms import fitting
from perdure.runtime.look import row_of
from perdure.runtime.sender import Sender
from perdure.stores.base import Store, Which
from perdure.stores.handle import blobs_of, not_found

log = logging.getLogger("perdure")
_NOTHING: Mapping[str, Any] = MappingProxyType({})
MAX_SHARED: Final = 256 << 20
"""bytes of shared records: they are written at once, and a server takes some hundred million of them in one message"""
_ENDS = (j.StepCompleted, j.StepCopied, j.StepEdited, j.StepFailed)


class Terms(NamedTuple):
    """Where a run is to be forked, and what is to be changed; see ``Client.fork``. Values may be ``Typed``."""

    by: str
    after: str | None = None
    at: int | None = None
    inputs: Mapping[str, Any] = _NOTHING
    answers: Mapping[str, Any] = _NOTHING
    outputs: Mapping[str, Any] = _NOTHING
    goal: str | None = None


def fork(store: Store, clock: Clock, key: RunKey, terms: Terms) -> State:
    """Fork the run ``key``; returns the state of the fork. Raises RunNotFound, ConfigError, AnswerRefused, CodecError
    for what cannot be, and nothing was written; CorruptStore, StoreError."""
    check_name("by", terms.by)
    if terms.goal is not None:
        RunKey.of(terms.goal)
    row = row_of(store, key)  # first: whoever takes it up from now on finds what he finds
    lines = store.read(key)
    if not lines:
        raise not_found(key, store.url)
    cut = _cut(key, lines, terms)
    later, lines = lines[cut:], lines[:cut]
    size = sum(map(len, lines))
    if size > MAX_SHARED:
        raise ConfigError(
            f"run {key} has {size:,} bytes of records up to there, and a fork shares at most {MAX_SHARED:,}. Nothing "
            "was written.",
            hint="Fork it after an earlier step.",
        )
    plan = _planned(store, fold(key, lines), lines, later, terms)
    plan = plan._replace(crashed=not later and row is not None and row.holder is None)
    made = _appeared(store, clock, plan, terms.goal if terms.goal is not None else key.goal)
    log.info("run %s is forked from %s", made.key, made.forked)
    return made


# -- where -------------------------------------------------------------------------------------------------------------


def _cut(key: RunKey, lines: Sequence[bytes], terms: Terms) -> int:
    """The sequence of the last entry that is shared."""
    if terms.after is not None and terms.at is not None:
        raise ConfigError("after and at both say where to fork the run.", hint="Give one of them.")
    if terms.at is not None:
        if isinstance(terms.at, bool) or not isinstance(terms.at, int) or not 0 < terms.at <= len(lines):
            raise ConfigError(
                f"run {key} cannot be forked after entry {terms.at!r}: it has entries 1 to {len(lines)}.",
                hint="perdure tail --json shows them.",
            )
        return terms.at
    if terms.after is not None:
        return _end_of(key, lines, terms.after)
    return _last_open(key, lines, terms.answers) if terms.answers else len(lines)


def _entries(state: State, lines: Sequence[bytes]) -> Iterator[j.Entry]:
    """The entries of a journal; each has been applied to the state."""
    for line in lines:
        entry = j.decode(state.key, line, state.seq + 1)
        state.apply(entry)
        yield entry


def _end_of(key: RunKey, lines: Sequence[bytes], name: str) -> int:
    """The entry with which a step got its latest result, or failed for the last time; of several of a name, the one
    that ended last."""
    state, ends = State(key), dict[int, int]()
    for entry in _entries(state, lines):
        ended = _ended(entry)
        if ended:
            ends[ended] = entry.seq
    step = _named(state, name)
    called = [other for other in state.steps.values() if other.is_called(name) and other.unused == step.unused]
    found = [ends[other.number] for other in called if other.number in ends]
    if not found:
        raise ConfigError(
            f"run {key}: step {step.number} ({step.path}) has not ended: it is {step.status}. Nothing was written.",
            hint="Fork the run after another step, or --at an entry.",
        )
    return max(found)


def _ended(entry: j.Entry) -> int:
    """The step that ends with an entry; 0: none does."""
    if not isinstance(entry, _ENDS) or (isinstance(entry, j.StepFailed) and not entry.final):
        return 0
    return entry.step


def _named(state: State, name: str) -> Step:
    """The step with that number, name or path; the latest of several."""
    found = [step for step in state.steps.values() if step.is_called(name)]
    if not found:
        names = ", ".join(dict.fromkeys(step.path for step in state.steps.values())) or "none"
        raise RunNotFound(f"run {state.key} has no step {name!r}. Nothing was written.", hint=f"Its steps: {names}.")
    return max(found, key=lambda step: (not step.unused, step.number))


def _last_open(key: RunKey, lines: Sequence[bytes], names: Mapping[str, Any]) -> int:
    """The last entry after which nobody had decided any of these questions."""
    state, seen = State(key), dict[str, tuple[int, Question]]()
    for entry in _entries(state, lines):
        for question in state.waits.questions():
            seen[question.id] = (entry.seq, question)
    cut = len(lines)
    for name in names:
        found = [seq for seq, question in seen.values() if is_called(question, name)]
        if not found:
            raise RunNotFound(f"run {key} has never asked a question {name!r}. Nothing was written.")
        cut = min(cut, max(found))
    return cut


# -- what --------------------------------------------------------------------------------------------------------------


class _Plan(NamedTuple):
    """All that a fork is going to be, but for its key."""

    origin: State
    """of the original, at the cut"""
    lines: Sequence[bytes]
    """its records up to there"""
    step: int
    by: str
    inputs: Inputs | None
    answers: dict[int, msgspec.Raw]
    """by the steps that ask"""
    edits: dict[int, Payload]
    blobs: dict[str, bytes]
    """what the changes need"""
    crashed: bool = False
    """all of it is shared, and nobody executes the original"""


def _planned(store: Store, state: State, lines: Sequence[bytes], later: Sequence[bytes], terms: Terms) -> _Plan:
    guard = Guard(state.keyed_by)
    blobs, edits = dict[str, bytes](), dict[int, Payload]()
    inputs = _changed_later(state, later)
    if inputs is not None:
        state.inputs, state.args = inputs.value, inputs.args
    if terms.inputs:
        recorded = blobs_of(store, state.inputs.refs) if state.inputs is not None else {}
        inputs = with_inputs(state, recorded, terms.inputs, guard)
        blobs |= inputs.blobs
    for name, change in terms.outputs.items():
        step = _editable(state, name)
        if step.number in edits:
            raise ConfigError(f"run {state.key}: step {step.number} ({step.path}) is given two results.")
        old = codec.stored_json(step.output, blobs_of(store, step.output.refs)) if step.output is not None else None
        edits[step.number], made = codec.dumps(given(change, old), f"result of step {step.number}", guard)
        blobs |= made
    ended = _ended(j.decode(state.key, lines[-1], state.seq))
    return _Plan(state, lines, ended, terms.by, inputs, _answers(state, terms), edits, blobs)


def _changed_later(state: State, later: Sequence[bytes]) -> Inputs | None:
    """The inputs that the run has now, if it was not begun with them and they were changed after the cut: whoever forks
    it means the run that he sees. What stands behind damage is not known, and a fork before it may be all that is left.
    """
    found = None
    with suppress(CorruptStore):
        for seq, line in enumerate(later, state.seq + 1):
            entry = j.decode(state.key, line, seq)
            if isinstance(entry, j.RunResumed | j.RunForked) and entry.inputs is not None:
                found = Inputs(entry.inputs, {}, entry.args)
    return found


def _editable(state: State, name: str) -> Step:
    step = _named(state, name)
    if step.status not in (states.COMPLETED, states.FLAGGED, states.FAILED):
        raise ConfigError(
            f"run {state.key}: step {step.number} ({step.path}) has no result that could be another: it is "
            f"{step.status} after entry {state.seq}. Nothing was written.",
            hint="Fork the run after a step that comes later.",
        )
    return step


def _answers(state: State, terms: Terms) -> dict[int, msgspec.Raw]:
    """What the fork's questions are answered with."""
    found: dict[int, msgspec.Raw] = {}
    for name, answer in terms.answers.items():
        try:
            question = open_question(state, name)
        except (AnswerRefused, RunNotFound) as problem:
            place = "--after and --at" if terms.after is not None or terms.at is not None else "the other answers"
            why = str(problem.args[0]).removesuffix(" Nothing was changed.").removesuffix(".")
            raise ConfigError(
                f"run {state.key} does not ask {name!r} after entry {state.seq}, where it is to be forked ({why}). "
                "Nothing was written.",
                hint=f"Leave out {place}: then it is forked just before somebody decided.",
            ) from None
        if question.step in found:
            raise ConfigError(f"run {state.key}: question {question.step} is answered twice.")
        value = fitting(question, given(answer, question))
        inbox.encode(state, j.QuestionAnswered(step=question.step, question=question.id, value=value))  # not too large
        found[question.step] = value
    return found


def _changes(plan: _Plan, state: State, run_id: str) -> Iterator[j.Entry]:
    """What follows the shared records. Each entry is applied to ``state`` before the next is asked for."""
    inputs = plan.inputs
    yield j.RunForked(
        run=str(plan.origin.key),
        origin=plan.origin.run_id,
        run_id=run_id,
        at_seq=plan.origin.seq,
        step=plan.step,
        crashed=plan.crashed and plan.origin.status == states.RUNNING,
        by=plan.by,
        inputs=inputs.value if inputs is not None else None,
        args=inputs.args if inputs is not None else (),
    )
    for number, value in plan.answers.items():
        question = state.waits.question_id(number)
        yield j.QuestionAnswered(step=number, question=question, value=value, by=plan.by, posted=state.updated)
    for number, output in plan.edits.items():
        yield j.StepEdited(step=number, output=output, by=plan.by)
    around = {outer for number in plan.edits for outer in state.around(state.steps[number])} - plan.edits.keys()
    stale = tuple(sorted(outer for outer in around if state.steps[outer].recorded))
    if stale:  # their results would hide that of the step inside
        yield j.StepsInvalidated(steps=stale, why="around")


# -- making it ---------------------------------------------------------------------------------------------------------


def _appeared(store: Store, clock: Clock, plan: _Plan, goal: str) -> State:
    """Write the fork as the next episode of ``goal`` that nobody has."""
    while True:
        rows = store.runs(Which(goal=goal))
        if any(row.parent for row in rows):
            raise ConfigError(
                f"Runs of {goal!r} are begun by another run, which would take the fork for one of them. Nothing was "
                "written.",
                hint="Give the fork a goal of its own: goal= (--goal).",
            )
        lease = _claimed(store, goal, max((row.episode for row in rows), default=-1) + 1)
        try:
            if not store.read(lease.key):
                return _written(store, clock, plan, lease)
        except BaseException:
            with suppress(PerdureError):
                if not store.read(lease.key):
                    store.delete(lease)
            raise
        finally:
            with suppress(PerdureError):
                store.release(lease)


def _claimed(store: Store, goal: str, episode: int) -> Lease:
    """The first episode from this one on that nobody else is about to begin."""
    while True:
        try:
            return store.claim(RunKey.of(goal, episode))
        except LeaseHeld:
            episode += 1


def _written(store: Store, clock: Clock, plan: _Plan, lease: Lease) -> State:
    key, origin, state = lease.key, plan.origin.key, State(lease.key)
    sender = Sender(store, lease, partial(_content, store, plan), state.meta(), 0)

    def add(record: bytes, entry: j.Entry) -> None:
        sender.add(entry.seq, record, j.refs(entry))
        state.size += len(record)

    for seq, line in enumerate(plan.lines, 1):
        record = frame(key, unframe(origin, line))
        entry = j.decode(key, record, seq)
        state.apply(entry)
        add(record, entry)
    for entry in _changes(plan, state, clock.new_id()):
        entry.seq, entry.at = state.seq + 1, clock.now()
        state.apply(entry)
        add(j.encode(key, entry), entry)
    sender.end(state.meta())
    return state


def _content(store: Store, plan: _Plan, digest: str) -> bytes:
    """A blob that the fork needs."""
    if digest in plan.blobs:
        return plan.blobs[digest]
    try:
        return store.blob(digest)
    except CorruptStore:
        if not store.read(plan.origin.key):  # somebody has removed it meanwhile
            raise not_found(plan.origin.key, store.url) from None
        raise
