"""Bringing the runs of an archive into a store. See archive.py for the theory.

First it is decided what is to become of every run, and nothing is written if one of them cannot be taken. Then they are
written, one after the other: a run that nobody has ever heard of appears whole, in one append, at rest. Its inbox
follows; until then others can only look at it, because posting needs all posts before. So a process that is killed
leaves whole runs, and the same command again does the rest:

- a run that is here already, or was here and has gone on since, is left as it is;
- of a journal that is too long for one append, as much may be here as some of its appends have brought: the others
  follow. Of any other journal, less than all of it is another run's;
- posts that are missing are posted.

What stands in a journal is the machine's that wrote it. One thing of that would be followed here: the folder in which a
life keeps its outputs. So unless the archive is trusted, that is left out of the records.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from typing import Literal, NamedTuple

import msgspec

from perdure import inbox, states
from perdure import journal as j
from perdure.clock import Clock
from perdure.errors import ConfigError, PerdureError, StoreBusy
from perdure.fold import State
from perdure.framing import frame, unframe
from perdure.model import Lease, RunKey, check_name, head
from perdure.runtime.export import Progress
from perdure.runtime.look import row_of
from perdure.runtime.sender import Filled, Sender
from perdure.runtime.unpack import Archive, Packed
from perdure.stores.base import Store, Which

_SHOWN = 5
Fate = Literal["imported", "completed", "there", "skipped"]


class Terms(NamedTuple):
    """On what terms runs come in."""

    by: str
    """who brings them in, and lets them go on"""
    trust: bool = False
    """they are the importer's own: they may go on at once, and keep their folders"""
    skip: bool = False
    """leave a run that is here with other content as it is"""
    new: bool = False
    """bring such a run in as the next episode of its goal"""
    goal: str | None = None
    """the goal that they come in under"""


class Came(msgspec.Struct, frozen=True):
    """What became of one run."""

    run: str
    """its name in the archive"""
    here: str
    """its name in the store"""
    fate: Fate
    """imported; completed: some of it was here; there: all of it was; skipped: another run of that name is here"""
    paused: bool = False
    """it came in paused: a person has to let it go on"""


class Imported(msgspec.Struct, frozen=True):
    """What was done with an archive."""

    made: float
    by: str
    """what wrote it"""
    runs: tuple[Came, ...]

    def count(self, fate: Fate) -> int:
        return sum(run.fate == fate for run in self.runs)

    @property
    def paused(self) -> list[str]:
        """Runs that wait to be let go on."""
        return [run.here for run in self.runs if run.paused]


class _Plan(NamedTuple):
    """What is going to become of a run."""

    packed: Packed
    key: RunKey
    fate: Fate
    done: int
    """records of it that are here"""
    attached: bool = False
    """a run that comes in with it executes it, and nobody else does"""


def restore(
    store: Store, clock: Clock, archive: Archive, terms: Terms, progress: Progress, *, dry_run: bool = False
) -> Imported:
    """Bring in what is not here yet. Raises ConfigError, and nothing was written, if a run of that name and with other
    content is here and ``terms`` do not say what to do with it; LeaseHeld, StoreError."""
    check_name("by", terms.by)
    plans = _Planner(store, archive, terms).plans()
    came = []
    for number, plan in enumerate(plans, 1):
        paused = False
        if plan.fate in ("imported", "completed") and not dry_run:
            paused = _Restoring(store, clock, archive, plan, terms).write()
        came.append(Came(str(plan.packed.key), str(plan.key), plan.fate, paused))
        progress(number)
    return Imported(archive.head.made, archive.head.by, tuple(came))


class _Planner:
    """Decides what becomes of each run. Changes nothing."""

    def __init__(self, store: Store, archive: Archive, terms: Terms) -> None:
        self._store, self._archive, self._terms = store, archive, terms
        self._runs = {str(packed.key): packed for packed in archive.runs}
        self._parents = {packed.parent for packed in archive.runs}
        self._latest: dict[str, int] = {}
        """goal -> its last episode, here or in the archive"""

    def plans(self) -> list[_Plan]:
        goals = {packed.key.goal for packed in self._archive.runs}
        if self._terms.goal is not None and len(goals) > 1:
            raise ConfigError(
                f"{self._archive.name} has runs of {len(goals)} goals, and they cannot all come in as "
                f"{self._terms.goal!r}. Nothing was imported.",
                hint="Export the one that you want by itself.",
            )
        plans, others = [], []
        for packed in self._archive.runs:
            plan = self._plan(packed)
            if plan is None:
                others.append(packed.key)
            else:
                plans.append(plan)
        if others:
            shown = ", ".join(map(str, others[:_SHOWN])) + (", ..." if len(others) > _SHOWN else "")
            raise ConfigError(
                f"{len(others)} of {len(self._archive.runs)} runs of {self._archive.name} are here already, with other "
                f"content: {shown}. Nothing was imported.",
                hint="Leave those with --skip, bring them in as the next episode with --new, or under --as GOAL.",
            )
        goes_on = {plan.packed.key for plan in plans if self._may_go_on(plan)}
        return [plan._replace(attached=self._is_attached(plan.packed, goes_on)) for plan in plans]

    def _may_go_on(self, plan: _Plan) -> bool:
        """Whether the archive's run is here then, and not over: else its children are nobody's."""
        if plan.fate == "skipped" or plan.packed.over:
            return False
        row = row_of(self._store, plan.key) if plan.fate == "there" else None
        return row is None or row.status not in states.RUN_OVER

    def _plan(self, packed: Packed) -> _Plan | None:
        """What becomes of a run; None if another of that name is in its place."""
        wanted = self._terms.goal if self._terms.goal is not None else packed.key.goal
        key = RunKey.of(wanted, packed.key.episode)
        fate, done = self._compare(packed, key)
        if fate is None and self._terms.skip:
            fate = "skipped"
        elif fate is None and self._terms.new:
            key, fate, done = self._next(packed, key)
        if fate is None:
            return None
        if key != packed.key and (packed.parent or str(packed.key) in self._parents):
            raise ConfigError(
                f"run {packed.key} began others, or was begun by one, which would not know it as {key}. Nothing was "
                "imported.",
                hint="Import it into a store that has no run of that name.",
            )
        return _Plan(packed, key, fate, done)

    def _next(self, packed: Packed, key: RunKey) -> tuple[RunKey, Fate, int]:
        """The episode under which it came in before, or the next one that nobody has."""
        rows = self._store.runs(Which(goal=key.goal))
        for row in rows:
            fate, done = self._compare(packed, row.key) if row.episode > key.episode else (None, 0)
            if fate is not None:
                return row.key, fate, done
        taken = [row.episode for row in rows] + [run.key.episode for run in self._archive.runs]
        self._latest[key.goal] = max(self._latest.get(key.goal, 0), *taken) + 1
        return RunKey.of(key.goal, self._latest[key.goal]), "imported", 0

    def _compare(self, packed: Packed, key: RunKey) -> tuple[Fate | None, int]:
        """What has to be done to have the run here as ``key``, and how many of its records are here; None if another
        run is."""
        there = self._store.read(key)
        if not there:
            return "imported", 0
        for seq, (line, other) in enumerate(zip(self._archive.lines(packed.journal), there, strict=False), 1):
            if (line != other or key != packed.key) and _told(packed.key, line, seq) != _told(key, other, seq):
                return None, 0
        if len(there) < packed.records:
            begun = len(there) in _ends(self._archive, packed)
            return ("completed" if begun else None), len(there)
        posts = self._store.posts({key: 0}).get(key, [])
        for post, other in zip(self._archive.lines(packed.inbox), posts, strict=False):
            if _told(packed.key, post, 0) != _told(key, other, 0):
                return None, 0
        return ("there" if len(posts) >= packed.posts else "completed"), packed.records

    def _is_attached(self, packed: Packed, goes_on: set[RunKey]) -> bool:
        """Whether it is for the life of another run of the archive to execute it, and that one comes to rest."""
        seen: set[RunKey] = set()
        run = packed
        while not run.queued and (parent := self._runs.get(run.parent)) is not None and parent.key in goes_on:
            if run.key in seen:  # runs that say that they began each other
                return False
            seen.add(run.key)
            run = parent
        return run is not packed


class _Restoring:
    """Writes one run."""

    def __init__(self, store: Store, clock: Clock, archive: Archive, plan: _Plan, terms: Terms) -> None:
        self._store, self._clock, self._archive, self._terms = store, clock, archive, terms
        self._packed, self._key, self._plan = plan.packed, plan.key, plan
        self._paused = False

    def write(self) -> bool:
        """Returns whether it was left paused."""
        if self._plan.done < self._packed.records:
            lease = self._store.claim(self._key)
            try:
                self._journal(lease)
                self._inbox()
            except BaseException:
                with suppress(PerdureError):
                    self._store.release(lease)
                raise
            self._store.release(lease)
        else:
            self._inbox()
        return self._paused

    def _journal(self, lease: Lease) -> None:
        state, packed = State(self._key), self._packed
        sender = Sender(self._store, lease, self._archive.blob, state.meta(), self._plan.done)
        if len(self._store.read(self._key)) != self._plan.done:
            raise _changed(self._key)
        for seq, line in enumerate(self._archive.lines(packed.journal), 1):
            entry = j.decode(packed.key, line, seq)
            body = unframe(packed.key, line) if self._terms.trust else _told(packed.key, line, seq)
            sender.make_room(len(line), state)
            state.apply(j.decode(self._key, frame(self._key, body), seq))
            sender.add(seq, frame(self._key, body), j.refs(entry))
        unread = (post for number, post in enumerate(self._posts(), 1) if number > state.posts)
        for more in chain(inbox.moved(state, unread), inbox.consequences(state), self._pause(state)):
            more.seq, more.at = state.seq + 1, self._clock.now()
            state.apply(more)
            sender.add(more.seq, j.encode(self._key, more), ())
        sender.end(state.meta())

    def _posts(self) -> Iterator[bytes]:
        for line in self._archive.lines(self._packed.inbox):
            yield frame(self._key, unframe(self._packed.key, line))

    def _pause(self, state: State) -> Iterator[j.Entry]:
        """Nothing that came from elsewhere is executed before a person says so (rel:S15)."""
        stopped = state.status == states.PAUSED and state.stopped_by and state.stop is None
        if self._terms.trust or self._plan.attached or state.status in states.RUN_OVER or stopped:
            return
        was = "being cancelled" if state.stop is not None and state.stop.cancel else str(state.status)
        if state.status == states.FAILED:
            was += f" ({head(state.reason, 200)})"
        self._paused = True
        yield j.RunPaused(
            reason=f"imported from {self._archive.name}, where it was {was}: let it go on with perdure unpause",
            by=self._terms.by,
            crashed=state.status == states.RUNNING,
        )

    def _inbox(self) -> None:
        there = len(self._store.posts({self._key: 0}).get(self._key, []))
        for number, post in enumerate(self._posts(), 1):
            if number > there and not self._store.post(self._key, number, post):
                raise _changed(self._key)


def _ends(archive: Archive, packed: Packed) -> set[int]:
    """How many records of a run may be here if its import was killed."""
    filled = Filled()
    return {seq for seq, line in enumerate(archive.lines(packed.journal)) if filled.full(len(line))}


def _told(key: RunKey, record: bytes, seq: int) -> bytes:
    """What a record tells, without the folder for outputs of the machine that wrote it."""
    body = unframe(key, record)
    if not getattr(j.decode(key, record, seq), "outputs", ""):
        return body
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    del fields["outputs"]
    return msgspec.json.encode(fields)


def _changed(key: RunKey) -> StoreBusy:
    return StoreBusy(
        f"run {key} was changed by somebody else while it was being imported.", hint="Import the archive again."
    )
