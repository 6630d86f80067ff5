"""The steps of a run: found by number, by identity, by name; and how most of them are kept in a snapshot.

Nearly all steps of a long run were executed once and completed. In a snapshot these are *packed*: a column for each of
their facts, without what their journal has and only few ask for, arguments and results. Reading columns takes a
twentieth of what it takes to make steps; a packed step is made when somebody asks for it.
"""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, Final

import msgspec

from perdure import states
from perdure.codec import Payload
from perdure.model import Usage
from perdure.record import Attempt, Identity, Step, Unread


class Kind(msgspec.Struct, frozen=True, array_like=True):
    """What many steps have in common."""

    scope: str
    name: str
    digest: str
    spoken: bool
    metered: bool


class Columns(msgspec.Struct):
    """What packed steps are written down with, before their columns: these as they lie in memory, one after the other,
    eight bytes a number, the lowest first, and sixteen a fingerprint."""

    count: int
    kinds: list[Kind]
    used: dict[int, Usage]


_WHOLE: Final = ("kind", "number", "n", "begun", "at")
_REAL: Final = ("started", "ended", "seconds")


class Packed:
    """Steps in columns, in the order in which they first started."""

    def __init__(self) -> None:
        self.kinds: list[Kind] = []
        self.fingerprint = bytearray()
        """of each step sixteen bytes"""
        self.kind, self.number, self.n, self.begun, self.at = (array("q") for _ in _WHOLE)
        """``kind``: the place of each step's among them; ``begun``: sequence of the entry with which it started;
        ``at``: of the one that has its result"""
        self.started, self.ended, self.seconds = (array("d") for _ in _REAL)
        self.used: dict[int, Usage] = {}
        """number -> what its attempt used, if that is more than a call"""

    def add(self, step: Step, kinds: dict[Kind, int]) -> None:
        """One more; ``kinds``: where those are that are there."""
        (attempt,), identity = step.attempts, step.identity
        kind = Kind(identity.scope, identity.name, step.digest, step.spoken, attempt.metered)
        place = kinds.setdefault(kind, len(kinds))
        if place == len(self.kinds):
            self.kinds.append(kind)
        self.fingerprint += bytes.fromhex(identity.fingerprint)
        self.kind.append(place)
        self.number.append(step.number)
        self.n.append(identity.n)
        self.begun.append(step.begun)
        self.at.append(step.at)
        self.started.append(attempt.started)
        self.ended.append(attempt.ended)
        self.seconds.append(attempt.seconds)
        if attempt.usage != _usual(kind):
            self.used[step.number] = attempt.usage

    def remove(self, numbers: Collection[int]) -> None:
        """Take some out."""
        places = [place for place, number in enumerate(self.number) if number not in numbers]
        self.fingerprint = bytearray().join(self.fingerprint[_DIGEST * p : _DIGEST * (p + 1)] for p in places)
        for name in (*_WHOLE, *_REAL):
            column = getattr(self, name)
            setattr(self, name, array(column.typecode, [column[place] for place in places]))
        self.used = {number: usage for number, usage in self.used.items() if number not in numbers}

    def identity(self, place: int) -> Identity:
        kind = self.kinds[self.kind[place]]
        fingerprint = self.fingerprint[_DIGEST * place : _DIGEST * (place + 1)].hex()
        return Identity(kind.scope, kind.name, fingerprint, self.n[place])

    def usage(self, place: int) -> Usage:
        return self.used.get(self.number[place], _usual(self.kinds[self.kind[place]]))

    def step(self, place: int) -> Step:
        """The step at a place in the columns; where its result is stands in it, and not the result."""
        number, kind, at = self.number[place], self.kinds[self.kind[place]], self.at[place]
        attempt = Attempt(
            1,
            self.started[place],
            self.ended[place],
            states.COMPLETED,
            seconds=self.seconds[place],
            usage=self.usage(place),
            metered=kind.metered,
        )
        return Step(
            number,
            self.identity(place),
            (),
            kind.digest,
            states.COMPLETED,
            [attempt],
            Unread(entry=at),
            spoken=kind.spoken,
            begun=self.begun[place],
            at=at,
        )

    def written(self) -> bytes:
        columns = [_swapped(getattr(self, name)) for name in (*_WHOLE, *_REAL)]
        told = Columns(len(self.number), self.kinds, self.used)
        return b"".join((msgspec.json.encode(told), b"\n", self.fingerprint, *columns))


def from_columns(written: bytes, start: int) -> Packed:
    """The steps of what was ``written`` there. Raises ValueError if these are no columns of one another."""
    made = Packed()
    end = written.index(b"\n", start)
    told = msgspec.json.decode(memoryview(written)[start:end], type=Columns)
    width, columns = 8 * told.count, memoryview(written)[end + 1 :]
    if told.count < 0 or len(columns) != 2 * width + width * len(_WHOLE + _REAL):
        raise ValueError("columns of different lengths")
    made.kinds, made.used, made.fingerprint = told.kinds, told.used, bytearray(columns[: 2 * width])
    for place, name in enumerate(_WHOLE + _REAL, 2):
        numbers = array("q" if name in _WHOLE else "d", columns[place * width : (place + 1) * width].tobytes())
        setattr(made, name, _swapped(numbers))
    if len(set(made.number)) != told.count:
        raise ValueError("two steps of one number")
    if made.kind and not 0 <= min(made.kind) <= max(made.kind) < len(made.kinds):
        raise ValueError("a kind of step that is not there")
    return made


def _swapped(numbers: array[Any]) -> array[Any]:
    """The same on machines whose numbers begin with the lowest byte; on others, turned round, a copy."""
    if sys.byteorder == "little":
        return numbers
    turned = numbers[:]
    turned.byteswap()
    return turned


def _usual(kind: Kind) -> Usage:
    return _CALL if kind.metered else _NOTHING


_NOTHING: Final = Usage()
_CALL: Final = Usage(calls=1)
_DIGEST: Final = 16
_HEX: Final = re.compile(r"[0-9a-f]{32}")


def is_plain(step: Step) -> bool:
    """Whether a step can be packed: it was executed once, and completed, and nothing was done to it since. (What it
    streamed is not needed any more.)"""
    if step.status != states.COMPLETED or len(step.attempts) != 1 or not step.at:
        return False
    attempt = step.attempts[0]
    odd = step.generation or step.superseded or step.failures or step.until or step.wake or step.edited or step.unused
    odd = odd or attempt.error is not None or attempt.progress is not None or attempt.outcome != states.COMPLETED
    return not odd and _HEX.fullmatch(step.identity.fingerprint) is not None


class Recorded(msgspec.Struct, frozen=True, gc=False):
    """What is needed of a step that has a result, to use that once more."""

    number: int
    digest: str
    seconds: float
    edited: str
    at: int
    output: Payload | None
    """None: it has to be read"""


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
        step = self.get(number)
        if step is None:
            raise KeyError(number)
        return step

    def get(self, number: int, default: None = None) -> Step | None:  # type: ignore[override]
        """As of any mapping; that of the base class asks by way of an error."""
        step = self._made.get(number)
        if step is None and self._packed.number:
            place = self._index.place(number)
            if place is not None:
                step = self._made.setdefault(number, self._packed.step(place))
        return step

    def __contains__(self, number: object) -> bool:
        return number in self._made or (isinstance(number, int) and self._index.place(number) is not None)

    def unknown(self, numbers: Iterable[int], spans: Iterable[tuple[int, int]]) -> int | None:
        """The first of the numbers that no step has; None if there is none. ``spans``: first and last of many more."""
        made, place = self._made, self._index.place
        found = next((number for number in numbers if number not in made and place(number) is None), None)
        if found is not None or not spans:
            return found
        packed = self._index.by_number
        told = (number for first, last in spans for number in range(first, last + 1))
        return next((number for number in told if number not in made and number not in packed), None)

    def __iter__(self) -> Iterator[int]:
        return iter(dict.fromkeys((*self._packed.number, *self._made)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def output(self, number: int) -> Payload | None:
        """The result of a step; one that is packed is not made for that."""
        step, place = self._made.get(number), self._index.place(number)
        if step is not None or place is None:
            return self[number].output
        return Unread(entry=self._packed.at[place])

    def find(self, identity: Identity) -> Step | None:
        """The step of an identity."""
        number = self._by_identity.get(identity)
        if number is not None:
            return self._made[number]
        place = self._index.find(*identity) if self._packed.number else None
        return self[self._packed.number[place]] if place is not None else None

    def recorded(self, scope: str, name: str, fingerprint: str, n: int) -> Recorded | None:
        """Of the step of an identity, if it has a result. One that is packed is not made for that."""
        packed, place = self._packed, None
        number = self._by_identity.get((scope, name, fingerprint, n))  # type: ignore[call-overload]  # it is equal
        if number is None and packed.number:
            place = self._index.find(scope, name, fingerprint, n)
            number = packed.number[place] if place is not None else None
        step = self._made.get(number) if number is not None else None
        if step is not None:
            known = Recorded(step.number, step.digest, step.seconds, step.edited, step.at, step.output)
            return known if step.recorded else None
        if number is None or place is None:
            return None
        digest = packed.kinds[packed.kind[place]].digest
        return Recorded(number, digest, packed.seconds[place], "", packed.at[place], None)

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

    def before(self, scope: str, seq: int) -> dict[int, float]:
        """Number -> seconds of the steps in a scope that had begun before an entry."""
        packed = self._packed
        kinds = {k for k, kind in enumerate(packed.kinds) if kind.scope == scope}
        if len(kinds) == len(packed.kinds) and max(packed.begun, default=0) < seq:  # all of them
            found = dict(zip(packed.number, packed.seconds, strict=True))
        else:
            columns = zip(packed.kind, packed.number, packed.begun, packed.seconds, strict=True)
            found = {number: seconds for kind, number, begun, seconds in columns if kind in kinds and begun < seq}
        made = [step for step in self._made.values() if step.identity.scope == scope]
        return found | {step.number: step.seconds for step in made if step.begun < seq}

    def usage(self, numbers: Container[int]) -> Usage:
        """What the attempts used that gave steps their results."""
        packed, made = self._packed, self._made
        usual = [_usual(kind).calls for kind in packed.kinds]
        places = zip(packed.number, packed.kind, strict=True)
        asked = [(number, kind) for number, kind in places if number in numbers and number not in made]
        calls = sum(usual[kind] for number, kind in asked if number not in packed.used)
        used = [packed.used[number] for number, _ in asked if number in packed.used]
        used += [step.attempts[-1].usage for step in made.values() if step.number in numbers]
        return sum(used, Usage(calls=calls))

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
        changed = {step.number for step in others if self._index.place(step.number) is not None}
        new = [step for step in self._made.values() if is_plain(step) and self._index.place(step.number) is None]
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

    def place(self, number: int) -> int | None:
        numbers = self._packed.number
        place = number - numbers[0] if numbers else -1  # as it is where all steps are packed
        if 0 <= place < len(numbers) and numbers[place] == number:
            return place
        return self.by_number.get(number) if numbers else None

    def find(self, scope: str, name: str, fingerprint: str, n: int) -> int | None:
        try:
            digest = bytes.fromhex(fingerprint)
        except ValueError:
            return None
        place = self._by_fingerprint.get(digest)
        if place is None or digest.hex() != fingerprint:
            return None
        kind = self._packed.kinds[self._packed.kind[place]]
        if self._packed.n[place] == n and kind.name == name and kind.scope == scope:
            return place
        return self._by_identity.get(Identity(scope, name, fingerprint, n))

    def latest(self, name: str, fingerprint: str) -> int | None:
        return self._latest.get((name, fingerprint))

    @cached_property
    def by_number(self) -> dict[int, int]:
        return {number: place for place, number in enumerate(self._packed.number)}

    @cached_property
    def _by_fingerprint(self) -> dict[bytes, int]:
        """One of the steps with each: mostly there is no other."""
        digests = bytes(self._packed.fingerprint)
        return {digests[_DIGEST * p : _DIGEST * (p + 1)]: p for p in range(len(self._packed.number))}

    @cached_property
    def _by_identity(self) -> dict[Identity, int]:
        return {self._packed.identity(place): place for place in range(len(self._packed.number))}

    @cached_property
    def _latest(self) -> dict[tuple[str, str], int]:
        places = sorted(range(len(self._packed.number)), key=self._packed.at.__getitem__)
        identities = ((self._packed.identity(place), place) for place in places)
        return {(identity.name, identity.fingerprint): place for identity, place in identities}
