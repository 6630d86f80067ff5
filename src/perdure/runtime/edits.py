"""Recorded inputs with some of them changed, also where the program that they are for is not there.

Values stand in records as tagged JSON (codec.py). An input that stays is taken over as it stands, unread: so it may be
of a type that is not known here, a Secret, or a mark that redaction has left. One that is changed gets the digest that
the flow would give it (steps.py), so that the run goes on with it as if it had been begun with it.

Which input is which is known by name, if it was given by name. Inputs that were given by position are in the order of
the digests that the run was begun with. That a digest is the one of the value in its place is looked at, because a flow
may take any number of inputs by position under one name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from perdure import codec
from perdure.codec import Payload
from perdure.errors import CodecError, ConfigError, CorruptStore
from perdure.fold import State
from perdure.guard import Guard
from perdure.limits import decoded
from perdure.model import ArgInfo
from perdure.runtime.look import blobs_in
from perdure.runtime.steps import arg_info

_REDACTED = b'"~":"redacted"'
"""in JSON this stands in no text: there the marks are escaped"""
_raws = msgspec.json.Decoder(list[msgspec.Raw]).decode
_named = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Inputs(NamedTuple):
    """The inputs of a run, as they are recorded."""

    value: Payload
    blobs: dict[str, bytes]
    args: tuple[ArgInfo, ...]


class Typed(NamedTuple):
    """What a person typed, in the place of a value: it depends on what is recorded what that is."""

    read: Callable[[Any], object]
    """makes it of the tagged JSON that is recorded (None for nothing), or of the Question"""


def given(value: object, recorded: object) -> object:
    """The value that somebody gives for what is ``recorded``."""
    return value.read(recorded) if isinstance(value, Typed) else value


def with_inputs(state: State, blobs: Mapping[str, bytes], changes: Mapping[str, object], guard: Guard) -> Inputs:
    """The inputs of a run with those of ``changes``; ``blobs``: what the recorded ones need.

    Raises ConfigError for a name that the run has no input of, and for what cannot be changed without its program;
    CodecError for a value that cannot be stored.
    """
    places = {arg.name: place for place, arg in enumerate(state.args)}
    for name in changes:
        if name not in places or state.inputs is None:
            has = f"It has: {', '.join(places)}." if places else "It has no inputs."
            raise ConfigError(f"run {state.key} has no input {name!r}. Nothing was written.", hint=has)
    recorded, content, infos = _Recorded.of(state, blobs), dict(blobs), list(state.args)
    for name, change in changes.items():
        place = places[name]
        value = given(change, recorded.find(name, place))
        infos[place] = arg_info(name, value, guard)
        payload, made = codec.dumps(value, f"input {name}", guard)
        recorded.put(name, place, codec.stored_json(payload, made))
        content |= made
    raw = recorded.json()
    needed = dict.fromkeys(map(str, blobs_in(msgspec.json.decode(raw))))
    payload, kept = codec.packed(raw, {digest: content[digest] for digest in needed})
    codec.stored_json(payload, kept)  # together they may be too large
    return Inputs(payload, kept, tuple(infos))


class _Recorded:
    """The parts of recorded inputs: those given by position, and those given by name."""

    def __init__(
        self, state: State, blobs: Mapping[str, bytes], args: list[msgspec.Raw], named: dict[str, msgspec.Raw]
    ):
        self._state, self._blobs = state, blobs
        self._args, self._named = args, named

    @classmethod
    def of(cls, state: State, blobs: Mapping[str, bytes]) -> _Recorded:
        """Raises CorruptStore for inputs that no run was begun with."""
        assert state.inputs is not None
        try:
            both = decoded(codec.stored_json(state.inputs, blobs), _named)
            args, named = _raws(both["v"])
            return cls(state, blobs, _raws(_named(args)["v"]), _named(named))
        except (ValueError, KeyError, RecursionError) as problem:
            raise CorruptStore(
                f"run {state.key}: its recorded inputs are of another form than inputs have ({problem}). Nothing was "
                "changed."
            ) from None

    def find(self, name: str, place: int) -> bytes | None:
        """An input as it is recorded; None if it was left at its default."""
        if name in self._named:
            found = bytes(self._named[name])
        elif place < len(self._args):
            found = bytes(self._args[place])
            self._see(name, place)
        elif self._is_rest(name, place):
            raise self._unknown(name, "stands for any number of inputs")
        else:
            return None
        if _REDACTED in found:
            raise self._unknown(name, "was hidden by rules of redaction, which would not hide another")
        return found

    def put(self, name: str, place: int, raw: bytes) -> None:
        if name not in self._named and place < len(self._args):
            self._args[place] = msgspec.Raw(raw)
        else:
            self._named[name] = msgspec.Raw(raw)

    def json(self) -> bytes:
        args = {"~": "tuple", "v": self._args}
        return msgspec.json.encode({"~": "tuple", "v": [args, self._named]})

    def _see(self, name: str, place: int) -> None:
        """Raises ConfigError unless the value that was given in this place is the input of that name."""
        guard = Guard(self._state.keyed_by)
        payload = Payload(codec.CODEC_VERSION, self._args[place], tuple(self._blobs))
        try:
            digest = arg_info(name, codec.loads(payload, self._blobs, guard), guard).digest
        except CodecError as problem:
            raise self._unknown(name, f"was not given by name, and cannot be read here ({problem.args[0]})") from None
        if digest != self._state.args[place].digest:
            raise self._unknown(name, "was not given by name, and is not what stands in its place")

    def _is_rest(self, name: str, place: int) -> bool:
        """Whether an input that was not given could be one of any number (``*rest``, ``**rest``): it is recorded as an
        empty tuple or dict, or has taken names that the flow does not declare."""
        empty = (codec.digest((), name)[0], codec.digest({}, name)[0])
        declared = {arg.name for arg in self._state.args}
        return self._state.args[place].digest in empty or not self._named.keys() <= declared

    def _unknown(self, name: str, why: str) -> ConfigError:
        return ConfigError(
            f"run {self._state.key}: its input {name!r} {why}. Nothing was written.",
            hint="Name its program (--app on the command line; from Python, import it first); if that is no help, "
            "begin another run.",
        )
