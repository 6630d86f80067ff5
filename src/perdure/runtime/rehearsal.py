"""Rehearsing a run: today's code of its flow is held against what was recorded, and no body is executed.

The records are put into a store in memory, without the entry with which the run ended, and the flow is called there as
in any other life. Where such a life would execute a step, or begin to wait, a rehearsal *answers* instead:

- with the recorded result, or by raising the recorded error of a step whose failure the flow was told;
- a child's own code is gone through, also where its result is recorded, and what it returns compared with that;
- what has no result is noted, and its strand parks for ever. What runs beside it goes on, and when nothing can move the
  run is suspended, as one is that waits for people.

Nothing of this reaches the real store: it is asked for blobs only. There are no leases of it, no clean-ups, hooks,
files of outputs or posts. What a flow does itself, outside of its steps, it does here as in every life.

What then is told of it is decided in verdict.py.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from perdure import codec, states
from perdure import journal as j
from perdure.clock import SYSTEM
from perdure.commands import Call, Machine, Outcome, Wait
from perdure.errors import CodecError, ConfigError, Halted, PerdureError, StoreError
from perdure.fold import State, fold
from perdure.life import Cursor, Life, Place, Request, idempotency_key
from perdure.model import Lease, RunKey
from perdure.record import Identity, Step, code_changed
from perdure.replay import NO_FAULT, load, reuse
from perdure.runtime.config import CheckpointConfig
from perdure.runtime.drive import fetch
from perdure.runtime.execute import carry_out, carry_out_async
from perdure.runtime.live import LiveRun
from perdure.runtime.lives import Lives
from perdure.runtime.recorded import recall
from perdure.runtime.revived import RecordedError, is_whole, revive
from perdure.runtime.steps import Function
from perdure.runtime.threads import in_thread
from perdure.runtime.writer import Writer
from perdure.stores.base import Append, Store
from perdure.stores.memory import MemoryStore

MANUAL: Final = "(manual)"
_PATIENCE: Final = 60.0
"""seconds for a flow whose steps take none: longer it may wait only for what a body did, and did not return"""


class Asked(NamedTuple):
    """Something that is asked for and has no result."""

    order: int
    """among all that was found"""
    identity: Identity
    request: Request
    step: Step | None
    """what is recorded of it: it was begun, and did not end; None: nothing is"""


class Found(NamedTuple):
    """Something that is not as it was recorded."""

    order: int
    what: str
    step: int


class Rehearsal:
    """Answers the requests of one run; see life.Rehearsal."""

    def __init__(self) -> None:
        self._order = itertools.count()
        self.asked: list[Asked] = []
        self.found: list[Found] = []
        self.changed: dict[int, str] = {}
        """paths of steps whose code has changed"""
        self.raised: list[tuple[int, Step, Exception]] = []
        """recorded errors that were raised again, and when"""
        self.open: set[Place] = set()
        """branches that were made and have not ended"""
        self.through: set[int] = set()
        """steps inside which the code was gone through"""
        self.life: Life

    def begun(self, place: Place) -> None:
        self.open.add(place)

    def ended(self, place: Place) -> None:
        self.open.discard(place)

    def answer(self, step: Step | None, identity: Identity, request: Request) -> Machine:
        if step is None:
            request.number = next(self.life.numbers)
            return (yield from self._park(step, identity, request))
        request.number = step.number
        self.life.asked.add(step.number)
        if code_changed(step.digest, request.digest):
            self.changed[step.number] = step.path
        inside = bool(request.options.child) and identity in self.life.state.scopes
        if step.recorded:
            if inside:
                yield from self._compared(step, identity, request)
            return (yield from reuse(self.life, step, request))
        if step.status == states.FAILED and step.error is not None:
            error = revive(step.error)
            if not isinstance(error, PerdureError):
                error.add_note(f"run {self.life.state.key}, step {step.number} ({step.path})")
            self.raised.append((next(self._order), step, error))
            raise error
        if not inside:
            return (yield from self._park(step, identity, request))
        outcome: Outcome = yield from self._went_through(step, identity)
        if outcome.error is None:
            return outcome.value
        if self.is_recorded(outcome.error):  # what has failed inside would be executed again
            return (yield from self._park(step, identity, request))
        if request.options.failed is None or isinstance(outcome.error, NO_FAULT):
            raise outcome.error
        return request.options.failed(outcome.error)

    def is_recorded(self, error: BaseException | None) -> bool:
        """Whether an error is, or comes from, one that was recorded and raised again."""
        seen: set[int] = set()
        while error is not None and id(error) not in seen:
            if any(error is raised for _, _, raised in self.raised):
                return True
            seen.add(id(error))
            error = error.__cause__ or error.__context__
        return False

    def unknown(self, strict: bool) -> tuple[int, Step] | None:
        """When an error was raised again that stands for one of an unknown type, first, and whose it was. ``strict``:
        or that may not be all that it was."""
        for order, step, error in self.raised:
            if isinstance(error, RecordedError) or (strict and step.error is not None and not is_whole(step.error)):
                return order, step
        return None

    def _park(self, step: Step | None, identity: Identity, request: Request) -> Machine:
        self.asked.append(Asked(next(self._order), identity, request, step))
        yield Wait(0.0, lambda: False)
        raise Halted  # a wait for nothing does not end otherwise

    def _went_through(self, step: Step, identity: Identity) -> Machine:
        """The code of a child: an Outcome."""

        self.through.add(step.number)

        def key() -> str:
            return idempotency_key(self.life, identity, step.generation)

        progress = (yield from load(self.life, step.progress)) if step.progress is not None else None
        inner = Cursor(self.life, identity)
        return (yield Call("body", step.number, len(step.attempts), key, progress, step.partial_text, inner))

    def _compared(self, step: Step, identity: Identity, request: Request) -> Machine:
        """Go through the code of a child that has ended, and compare what it returns with what it returned."""
        assert step.output is not None
        outcome: Outcome = yield from self._went_through(step, identity)
        if step.flagged and request.options.failed is not None:
            return  # its failure stands for its result, and is told below it
        if outcome.error is not None:
            self._find(f"{_named(step)} raises {_error(outcome.error)}, and had returned a result", step)
            return
        recorded = yield from load(self.life, step.output)
        told = differs(recorded, outcome.value, self.life)
        if told:
            self._find(f"{_named(step)} returns another result: {told}", step)

    def _find(self, what: str, step: Step) -> None:
        self.found.append(Found(next(self._order), what, step.number))


def _otherwise(run: LiveRun, recorded: codec.Payload, value: object) -> str:
    try:
        return differs(codec.loads(recorded, fetch(run, recorded.refs), run.life.guard), value, run.life)
    except CodecError as error:
        return f"cannot be read any more: {error}"


def differs(recorded: object, value: object, life: Life) -> str:
    """What a result was and is, in a few words; "" if it is the same."""
    (old, was), (new, is_) = (codec.digest(told, "result", life.guard) for told in (recorded, value))
    return "" if old == new else f"was {was}, now {is_}"


def _named(step: Step) -> str:
    return f"step {step.number} ({step.path})"


def _error(error: BaseException) -> str:
    return str(codec.describe_error(error))


class Ending(NamedTuple):
    """How a rehearsed flow ended."""

    differs: str = ""
    """how its result is not the recorded one"""
    error: BaseException | None = None
    parked: bool = False
    """it did not: what it waits for has no result"""
    late: bool = False
    """it did not, and nobody knows why"""


class Rehearsed(NamedTuple):
    """All that is known after a rehearsal."""

    entries: Sequence[j.Entry]
    """of the run as it is recorded"""
    whole: State
    """the same"""
    state: State
    """as far as the code was to go, and what it did"""
    rehearsal: Rehearsal
    ending: Ending
    same_code: bool
    """the flow's code is what it was in the latest life"""

    @property
    def asked(self) -> set[int]:
        """Numbers of the steps that were asked for."""
        return self.rehearsal.life.asked


class _Shadow(MemoryStore):
    """A store in memory that has the blobs of another."""

    def __init__(self, behind: Store) -> None:
        super().__init__()
        self._behind = behind

    def blob(self, digest: str) -> bytes:
        return super().blob(digest) if digest in self._backend.blobs else self._behind.blob(digest)


def rehearse(function: Function[..., Any], store: Store, key: RunKey, config: CheckpointConfig) -> Rehearsed:
    """Hold ``function`` against the records of a run. Blocks; nothing else may use the store meanwhile.

    Raises ConfigError for a run that cannot be rehearsed; CorruptStore, NewerFormat, StoreError.
    """
    lines = store.read(key)
    entries = [j.decode(key, line, seq) for seq, line in enumerate(lines, 1)]
    whole = fold(key, lines)
    if whole.flow == MANUAL:
        raise ConfigError(
            f"run {key} was marked by hand (manager.begin), and has no flow that could be called.",
            hint="Put the loop into a flow to have it replayed.",
        )
    before = lines[: _cut(whole, entries)]
    state = fold(key, before)
    rehearsal = Rehearsal()
    shadow = _Shadow(store)
    lease = shadow.claim(key)
    shadow.append([Append(lease, 0, tuple(before), state.meta())])
    writer = Writer(shadow)
    try:
        lives = Lives(writer, replace(config, outputs=None), (), SYSTEM)
        ending = _carried_out(lives, function, _live(lives, writer, lease, state, rehearsal), whole.output)
    finally:
        writer.close()
    return Rehearsed(entries, whole, state, rehearsal, ending, bool(whole.digest) and whole.digest == function.digest)


def _cut(whole: State, entries: Sequence[j.Entry]) -> int:
    """How many entries the code is held against: those before the end of the run, or before it was given up."""
    ends: type[j.Entry]
    if whole.status == states.CANCELLED or (whole.stop is not None and whole.stop.cancel):
        ends = j.StopRequested
    elif whole.status in (states.COMPLETED, states.FAILED):
        ends = j.RunCompleted if whole.status == states.COMPLETED else j.RunFailed
    else:
        return len(entries)
    return max(entry.seq for entry in entries if isinstance(entry, ends)) - 1


def _live(lives: Lives, writer: Writer, lease: Lease, state: State, rehearsal: Rehearsal) -> LiveRun:
    """The run in the store in memory, in another life."""
    run = LiveRun(
        writer,
        lease,
        state,
        clock=SYSTEM,
        durability="async",
        strict=False,
        same_code=False,
        degrade=False,
        outputs=None,
        observers=(),
        lives=lives,
        guard=lives.guard(state),
    )
    lives.live.add(run)
    run.life.tell = lambda message: None  # it is told with all the rest
    run.life.rehearsal, rehearsal.life = rehearsal, run.life
    run.emit((j.RunResumed(epoch=lease.epoch, pid=0, host="rehearsal"),))
    return run


def _carried_out(lives: Lives, function: Function[..., Any], run: LiveRun, recorded: codec.Payload | None) -> Ending:
    """Call the flow with the inputs that the run was begun with. Raises ConfigError if some of them are not there,
    StoreError."""
    _ = function.signature  # makes the types of its inputs known
    stored = run.state.inputs
    try:
        inputs = recall(run.state, fetch(run, stored.refs) if stored is not None else {}, run.life.guard).inputs
    except CodecError as error:
        lives.end(run)
        return Ending(error=error)

    def life() -> Any:
        if function.is_async:
            return asyncio.run(carry_out_async(lives, function, run, inputs))
        return carry_out(lives, function, run, inputs)

    try:
        value = in_thread(life, "rehearsal").result(_PATIENCE)
        return Ending(_otherwise(run, recorded, value) if recorded is not None else "")
    except (StoreError, MemoryError):
        raise
    except (Halted, asyncio.CancelledError):
        return Ending(parked=True)
    except (Exception, SystemExit) as error:
        if isinstance(error, TimeoutError) and run.state.status == states.RUNNING:
            run.interrupt()
            return Ending(late=True)
        return Ending(error=error, parked=run.halt == "suspended")
