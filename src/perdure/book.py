"""The steps of a run: found by number, by identity, by name; and how most of them are kept in a snapshot.

Nearly all steps of a long run were executed once and completed. In a snapshot these are *packed*: a column for each of
their facts, without what their journal has and only few ask for, arguments and results. Reading columns takes a
twentieth of what it takes to make steps; a packed step is made when somebody asks for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Final

import msgspec

from perdure import states
from perdure.model import Usage
from perdure.record import Attempt, Identity, Step, Unread


class Kind(msgspec.Struct, frozen=True, array_like=True):
    """What many steps have in common."""

    scope: str
    name: str
    digest: str
    spoken: bool
    metered: bool


class Packed(msgspec.Struct):
    """Steps in columns, in the order in which they first started."""

    kinds: list[Kind] = []
    kind: list[int] = []
    """the place of each step's among them"""
    number: list[int] = []
    fingerprint: list[str] = []
    n: list[int] = []
    begun: list[int] = []
    """sequence of the entry with which it started"""
    at: list[int] = []
    """sequence of the entry that has its result"""
    started: list[float] = []
    ended: list[float] = []
    seconds: list[float] = []
    used: dict[int, Usage] = {}
    """number -> what its attempt used, if it did"""

    def add(self, step: Step, kinds: dict[Kind, int]) -> None:
        """One more; ``kinds``: where those are that are there."""
        (attempt,), identity = step.attempts, step.identity
        kind = Kind(identity.scope, identity.name, step.digest, step.spoken, attempt.metered)
        place = kinds.setdefault(kind, len(kinds))
        if place == len(self.kinds):
            self.kinds.append(kind)
        self.kind.append(place)
        self.number.append(step.number)
        self.fingerprint.append(identity.fingerprint)
        self.n.append(identity.n)
        self.begun.append(step.begun)
        self.at.append(step.at)
        self.started.append(attempt.started)
        self.ended.append(attempt.ended)
        self.seconds.append(attempt.seconds)
        if attempt.usage:
            self.used[step.number] = attempt.usage

    def is_sound(self) -> bool:
        """Whether these are columns of one another."""
        alike = {len(getattr(self, name)) for name in _COLUMNS} == {len(set(self.number))}
        return alike and (not self.kind or (min(self.kind) >= 0 and max(self.kind) < len(self.kinds)))

    def remove(self, numbers: Collection[int]) -> None:
        """Take some out."""
        places = [place for place, number in enumerate(self.number) if number not in numbers]
        for name in _COLUMNS:
            column = getattr(self, name)
            setattr(self, name, [column[place] for place in places])
        self.used = {number: usage for number, usage in self.used.items() if number not in numbers}

    def step(self, place: int) -> Step:
        """The step at a place in the columns; where its result is stands in it, and not the result."""
        number, kind, at = self.number[place], self.kinds[self.kind[place]], self.at[place]
        attempt = Attempt(
            1,
            self.started[place],
            self.ended[place],
            states.COMPLETED,
            seconds=self.seconds[place],
            usage=self.used.get(number, _NOTHING),
            metered=kind.metered,
        )
        return Step(
            number,
            Identity(kind.scope, kind.name, self.fingerprint[place], self.n[place]),
            (),
            kind.digest,
            states.COMPLETED,
            [attempt],
            Unread(entry=at),
            spoken=kind.spoken,
            begun=self.begun[place],
            at=at,
        )


_NOTHING: Final = Usage()
_COLUMNS: Final = [name for name in Packed.__struct_fields__ if name not in ("kinds", "used")]


def is_plain(step: Step) -> bool:
    """Whether a step can be packed: it was executed once, and completed, and nothing was done to it since. (What it
    streamed is not needed any more.)"""
    if step.status != states.COMPLETED or len(step.attempts) != 1 or not step.at:
        return False
    attempt = step.attempts[0]
    odd = step.generation or step.superseded or step.failures or step.until or step.wake or step.edited or step.unused
    return not odd and attempt.outcome == states.COMPLETED and attempt.error is None and attempt.progress is None


class Steps(Mapping[int, Step]):
    """Number -> step, in the order in which they first started (in a run that was resumed from a snapshot: first those
    that were packed there)."""

    def __init__(self, packed: Packed | None = None, others: Iterable[Step] = (), latest: Iterable[int] = ()) -> None:
        """Of what ``pack`` gave."""
        self._packed = packed or Packed()
        self._made: dict[int, Step]
        self._by_identity: dict[Identity, int]
        self._by_name: dict[tuple[str, str], list[int]]
        self._latest: dict[tuple[str, str], int]
        """(name, fingerprint) -> the step that was executed and completed last, in whatever scope"""
        self._index: _Index
        self._fill(others, latest)

    def add(self, step: Step) -> None:
        """A step that first starts."""
        identity = step.identity
        self._made[step.number] = step
        self._by_identity[identity] = step.number
        self._by_name.setdefault((identity.scope, identity.name), []).append(step.number)

    def completed(self, step: Step) -> None:
        """It was executed and completed now, and no other since."""
        self._latest[step.identity.name, step.identity.fingerprint] = step.number

    def __getitem__(self, number: int) -> Step:
        step = self._made.get(number)
        return step if step is not None else self._make(self._index.numbered(number))

    def _make(self, place: int) -> Step:
        step = self._packed.step(place)
        return self._made.setdefault(step.number, step)

    def __contains__(self, number: object) -> bool:
        return number in self._made or (isinstance(number, int) and self._index.has(number))

    def __iter__(self) -> Iterator[int]:
        return iter(dict.fromkeys((*self._packed.number, *self._made)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def find(self, identity: Identity) -> Step | None:
        """The step of an identity."""
        number = self._by_identity.get(identity)
        if number is not None:
            return self._made[number]
        place = self._index.find(identity) if self._packed.number else None
        return self[self._packed.number[place]] if place is not None else None

    def named(self, scope: str, name: str) -> Iterator[int]:
        """Numbers of the steps of a scope and name."""
        kinds = {k for k, kind in enumerate(self._packed.kinds) if (kind.scope, kind.name) == (scope, name)}
        if kinds:
            yield from (n for k, n in zip(self._packed.kind, self._packed.number, strict=True) if k in kinds)
        yield from self._by_name.get((scope, name), ())

    def latest(self, name: str, fingerprint: str) -> Step | None:
        """Of the steps of a name and fingerprint in all scopes, the one that was executed and completed last."""
        number = self._latest.get((name, fingerprint))
        if number is None and self._packed.number:
            place = self._index.latest(name, fingerprint)
            return self[self._packed.number[place]] if place is not None else None
        return self[number] if number is not None else None

    def before(self, scope: str, seq: int) -> Iterator[tuple[int, float]]:
        """(number, seconds) of the steps in a scope, and inside of it, that had begun before an entry."""
        inside = f"{scope}/" if scope else ""
        packed = self._packed
        kinds = {k for k, kind in enumerate(packed.kinds) if kind.scope == scope or kind.scope.startswith(inside)}
        columns = zip(packed.kind, packed.number, packed.begun, packed.seconds, strict=True)
        yield from ((number, seconds) for kind, number, begun, seconds in columns if kind in kinds and begun < seq)
        for step in self._made.values():
            where = step.identity.scope
            if step.begun < seq and (where == scope or where.startswith(inside)):
                yield step.number, step.seconds

    def uncertain(self) -> list[Step]:
        """All that may be something else than completed."""
        return list(self._made.values())

    def work(self) -> tuple[int, float]:
        """How many steps have a result, and how many seconds these took."""
        made = [step.seconds for step in self._made.values() if step.recorded]
        packed = [s for n, s in zip(self._packed.number, self._packed.seconds, strict=True) if n not in self._made]
        return len(made) + len(packed), sum(made) + sum(packed)

    def pack(self) -> tuple[Packed, list[Step], list[int]]:
        """As a snapshot keeps them: most of them packed, all others, and which of the others are the latest of their
        name and fingerprint. From now on they are so here too: what a long run has done is not all kept in memory.
        """
        others = [step for step in self._made.values() if not is_plain(step)]
        latest = [step.number for step in others if self.latest(step.name, step.identity.fingerprint) is step]
        changed = {step.number for step in others if self._index.has(step.number)}
        new = [step for step in self._made.values() if is_plain(step) and not self._index.has(step.number)]
        if changed:
            self._packed.remove(changed)
        kinds = {kind: place for place, kind in enumerate(self._packed.kinds)}
        for step in new:
            self._packed.add(step, kinds)
        self._fill(others, latest)
        return self._packed, others, latest

    def _fill(self, others: Iterable[Step], latest: Iterable[int]) -> None:
        self._made, self._by_identity, self._by_name, self._latest = {}, {}, {}, {}
        self._index = _Index(self._packed)
        for step in others:
            self.add(step)
        for number in latest:
            self.completed(self[number])


class _Index:
    """Where steps stand in columns; made when somebody asks first."""

    def __init__(self, packed: Packed) -> None:
        self._packed = packed

    def has(self, number: int) -> bool:
        numbers = self._packed.number
        place = number - numbers[0] if numbers else -1
        return (0 <= place < len(numbers) and numbers[place] == number) or (bool(numbers) and number in self._by_number)

    def numbered(self, number: int) -> int:
        """Raises KeyError."""
        numbers = self._packed.number
        place = number - numbers[0] if numbers else 0  # as it is where all steps are packed
        if not (0 <= place < len(numbers) and numbers[place] == number):
            place = self._by_number[number]
        return place

    def find(self, identity: Identity) -> int | None:
        place = self._by_fingerprint.get(identity.fingerprint)
        if place is None or self._identity(place) == identity:
            return place
        return self._by_identity.get(identity)

    def latest(self, name: str, fingerprint: str) -> int | None:
        return self._latest.get((name, fingerprint))

    @cached_property
    def _by_number(self) -> dict[int, int]:
        return {number: place for place, number in enumerate(self._packed.number)}

    @cached_property
    def _by_fingerprint(self) -> dict[str, int]:
        """One of the steps with each: mostly there is no other."""
        return dict(zip(self._packed.fingerprint, range(len(self._packed.fingerprint)), strict=True))

    @cached_property
    def _by_identity(self) -> dict[Identity, int]:
        return {self._identity(place): place for place in range(len(self._packed.number))}

    @cached_property
    def _latest(self) -> dict[tuple[str, str], int]:
        places = sorted(range(len(self._packed.number)), key=self._packed.at.__getitem__)
        names = [kind.name for kind in self._packed.kinds]
        return {(names[self._packed.kind[place]], self._packed.fingerprint[place]): place for place in places}

    def _identity(self, place: int) -> Identity:
        kind = self._packed.kinds[self._packed.kind[place]]
        return Identity(kind.scope, kind.name, self._packed.fingerprint[place], self._packed.n[place])
