"""Snapshots: the state of a run as of one of its entries, so that whoever goes on need not fold all that came before.

A snapshot only shortens the fold. It says nothing that the journal does not, may be lost at any time, and is believed
only if the record at its sequence is the one that it was made after, and if it is of this form. Results and arguments
of finished steps are not in it: where they stand in the journal is, and they are read when somebody asks for them.

One is worth making when the run has grown by an eighth since the last: then making them costs, over all of a run's
time, a fixed amount a step, and what is left to be folded is at most a ninth.
"""

from __future__ import annotations

import zlib
from functools import cache
from hashlib import sha256
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from perdure.book import Columns, Kind, Steps, from_columns
from perdure.facts import Facts
from perdure.fold import State
from perdure.limits import MAX_BLOB, MAX_SCOPE
from perdure.model import RunKey
from perdure.pending import Pending
from perdure.record import Attempt, Identity, Step, Unread
from perdure.states import RUN, RUNNING, STEP

_FORM: Final = 2
"""to be raised when the fold comes to mean something else by the same fields"""
_FEW: Final = 1000
"""entries that are folded as quickly as a snapshot is read"""


class _Body(msgspec.Struct):
    """All but the packed steps."""

    facts: Facts
    others: list[Step]
    latest: list[int]
    scopes: list[tuple[Identity, str]]
    taken: list[tuple[str, str, list[str]]]


_ENCODER = msgspec.json.Encoder()


@cache
def _decoder() -> msgspec.json.Decoder[_Body]:
    return msgspec.json.Decoder(_Body)


@cache
def _form() -> bytes:
    """Names what is in a snapshot: with other fields it is another form."""
    parts: tuple[Any, ...] = (_Body, Facts, Columns, Kind, Pending, Step, Attempt)
    fields = [(part.__name__, part.__struct_fields__) for part in parts]
    return sha256(repr((_FORM, fields)).encode()).digest()[:8]


def is_long(entries: int) -> bool:
    """Whether a run of so many entries may have a snapshot."""
    return entries > _FEW


def next_after(last: int) -> int:
    """The sequence behind which a snapshot of a run is worth making, ``last`` being that of the one before, or 0."""
    return last + max(last // 8, _FEW)


def take(state: State) -> bytes:
    """The state in a form of its own; to be finished by ``sealed``, which takes longer and needs no state. What it has
    of finished steps is from now on in the journal only."""
    packed, others, latest = state.steps.pack()
    body = _Body(
        facts=Facts(**{name: getattr(state, name) for name in Facts.__struct_fields__}),
        others=[_without_values(step) for step in others],
        latest=latest,
        scopes=[(identity, path) for identity, path in state.scopes.items()],
        taken=[(scope, fan, branches) for (scope, fan), branches in state.taken.items()],
    )
    return _ENCODER.encode(body) + b"\n" + packed.written()


def sealed(body: bytes, record: bytes) -> bytes:
    """What is to be kept of that: compressed, and bound to the record at its sequence. b"" if it is too large."""
    content = _form() + sha256(record).digest() + zlib.compress(body, 1)
    return content if len(content) <= MAX_BLOB and len(body) <= _MOST else b""


def restore(key: RunKey, content: bytes, record: bytes) -> State | None:
    """The state that a snapshot has, if it is one of this form, made after that record; else None."""
    if content[:8] != _form() or content[8:40] != sha256(record).digest():
        return None
    unpacking = zlib.decompressobj()
    try:
        written = unpacking.decompress(memoryview(content)[40:], _MOST)
        if not unpacking.eof:  # else its checksum is right, and no more would come
            return None
        end = written.index(b"\n")
        body, steps = _decoder().decode(written[:end]), from_columns(written, end + 1)
    except (zlib.error, msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if not _is_sound(body):
        return None
    state = State(key, **{name: getattr(body.facts, name) for name in Facts.__struct_fields__})
    for step in body.others:
        step.output = Unread(entry=step.at) if step.at else None
    state.steps = Steps(steps, body.others, body.latest)
    state.scopes = {Identity(*identity): path for identity, path in body.scopes}
    state.taken = {(scope, fan): branches for scope, fan, branches in body.taken}
    state.running = {step.number: step for step in body.others if step.status == RUNNING}
    return state


def _without_values(step: Step) -> Step:
    """A step without what its journal has, and only few ask for."""
    attempts = [replace(a, text=[]) if step.recorded and a.text else a for a in step.attempts]
    return replace(step, output=None, args=() if step.recorded else step.args, attempts=attempts)


def _is_sound(body: _Body) -> bool:
    """Whether its parts fit together, so that only Perdure's errors can come of what they say."""
    counted = body.facts.counts.keys() == set(STEP.values()) and body.facts.status in {*RUN.values()}
    known = all(step.attempts and step.status in STEP.values() for step in body.others)
    return counted and known and all(len(path) <= MAX_SCOPE for _, path in body.scopes)


_MOST: Final = 2**28
"""bytes of one when it is not compressed"""
