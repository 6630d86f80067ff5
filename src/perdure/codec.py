"""Values as JSON and back, types kept exactly, or an error that says where.

The theory
----------
A step's result lives longer than the process that made it, so what comes back must be what went in: a tuple is no
list, ``1`` is no ``1.0`` and no ``True``, a key may be an int. JSON has six types; everything else is an object with
the reserved key ``"~"``, which names a *tag*::

    [1, "a", null, {"k": 0.5}]                              itself
    {"~": "tuple", "v": [1, 2]}                             (1, 2)
    {"~": "datetime", "v": "2026-03-29T02:30:00", "zone": "Europe/Berlin", "fold": 1}
    {"~": "data", "type": "crew:Review", "fields": {"score": 3}}
    {"~": "dict", "v": [[1, "a"]]}                          a dict with a key that is no text, or with the key "~"
    {"~": "blob", "as": "str", "sha256": "...", "size": 90000}

So no dict of a user can be taken for a tag (rel:S3), and whatever is stored can be read without Perdure. There are two
tables: codec_tags.py has the types of the standard library and numpy, codec_kinds.py the kinds of classes that a
program may register (codec_types.py); codec_walk.py walks. Dispatch is on the exact type: a subclass of str that
nobody registered is refused, because flattening it would lose it. Nothing is imported by a stored name (rel:S1).

Refusal happens on save, before the step is marked done, and names the path in the value (W8, rel:R10, B1). On load
there is no lenient mode (rel:S2): a form that ``dumps`` would not have written raises CodecError, never anything else.
Depth, items and bytes are limited in both directions (rel:B4), by the same counts, so that what was saved loads.
The depth limit is also what ends a cycle.

``digest`` is the identity of a value, for the fingerprint of a step: sha256 over the same JSON in *canonical* form, in
which the order of dict keys, the line numbers of tracebacks and the package in front of a module's name do not count.

A ``Guard`` says what is kept out of records. A Secret is written as a placeholder, ``{"~": "secret", "name": "openai",
"mac": "..."}``, and what the rules of redaction hide as ``{"~": "redacted", "v": "[redacted:3f2a...]"}``, a text. The
identity of a value is that of its redacted form, so that it is the same before and after it was recorded.

Rejected: pydantic, msgspec or orjson on untyped values (each loses tuples, sets, int keys or nan without a word);
remembering shared references (two names for one list come back as two lists; identity is not a value); compression.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, NamedTuple

import msgspec

from perdure.codec_kinds import Refused, error_text, printable, type_name
from perdure.codec_tags import BLOB_THRESHOLD
from perdure.codec_types import declare, learn, register
from perdure.codec_walk import ATOMS, MAX_BYTES, MAX_DEPTH, MAX_ITEMS, Reader, Writer
from perdure.errors import CodecError
from perdure.guard import OPEN, Guard
from perdure.limits import decoded
from perdure.model import ErrorInfo, File
from perdure.redaction import discreet, discreet_part
from perdure.secret import MASK, Secret, longest_known

__all__ = [
    "BLOB_THRESHOLD",
    "CODEC_VERSION",
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_ITEMS",
    "Payload",
    "declare",
    "describe_error",
    "digest",
    "digested",
    "dumps",
    "learn",
    "load",
    "loads",
    "packed",
    "register",
    "stored_json",
]

CODEC_VERSION = 1
MAX_MESSAGE = 20_000
"""Characters kept of the message of an error: its end."""
_HEAD = 120
_SMALL = 1 << 53
_to_json = msgspec.json.Encoder().encode
_from_json = msgspec.json.Decoder().decode
_SKIP = msgspec.json.Decoder(msgspec.Raw).decode


class Payload(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """How a value stands inside a journal entry."""

    codec: int = 1
    """version of the form; what is stored without one has the first"""
    value: msgspec.Raw = msgspec.Raw(b"")
    """tagged JSON; absent when the whole value is the blob refs[0]"""
    refs: tuple[str, ...] = ()
    """sha256 of every blob the value needs"""
    whole: bool = False
    """the JSON itself is the blob refs[0]"""


class Loaded(NamedTuple):
    """A value that was read back, and what of it was not in the record."""

    value: Any
    secrets: tuple[Secret, ...]
    """those in it: each has a name, and no value yet"""
    redacted: bool
    """rules had hidden something of it"""


def dumps(value: object, where: str = "value", guard: Guard = OPEN) -> tuple[Payload, dict[str, bytes]]:
    """``value`` as a payload and the blobs it needs, by sha256, without what ``guard`` keeps out of records.

    Texts and byte strings over BLOB_THRESHOLD become blobs; what is left becomes one too if it is over four times that.
    Raises CodecError, naming the path from ``where`` and the type, for whatever could not be read back exactly.
    """
    plain = _plain(value) if guard.rules is None else None
    if plain is not None:  # as most results are
        return Payload(CODEC_VERSION, msgspec.Raw(plain)), {}
    writer = Writer(canonical=False, guard=guard)
    raw = _written(writer, value, where)
    if writer.hid:
        guard.note(where)
    return packed(raw, writer.blobs)


def _plain(value: object) -> bytes | None:
    """The JSON of a value that is its own, at a glance: not of every one that is."""
    kind = type(value)
    if kind is str:
        short = len(value) <= BLOB_THRESHOLD and value.isascii()  # type: ignore[arg-type, attr-defined]
        return _to_json(value) if short else None
    if value is None or kind is bool or (kind is int and -_SMALL < value < _SMALL):  # type: ignore[operator]
        return _to_json(value)
    return None


def packed(raw: bytes, blobs: Mapping[str, bytes]) -> tuple[Payload, dict[str, bytes]]:
    """Tagged JSON as a payload; ``blobs``: those that it names."""
    if len(raw) <= 4 * BLOB_THRESHOLD:
        return Payload(CODEC_VERSION, msgspec.Raw(raw), tuple(blobs)), dict(blobs)
    name = sha256(raw).hexdigest()
    refs = (name, *(ref for ref in blobs if ref != name))
    return Payload(CODEC_VERSION, refs=refs, whole=True), {name: raw, **blobs}


def loads(payload: Payload, blobs: Mapping[str, bytes] = {}, guard: Guard = OPEN) -> Any:
    """The value in ``payload``; ``blobs`` has the content of ``payload.refs`` (the store has checked each sha256).
    Secrets in it ask the resolver of ``guard`` for their values.

    Raises CodecError, and nothing else, if the payload is not what ``dumps`` writes, if it names a type that is not
    registered, or if a blob is missing.
    """
    raw = bytes(payload.value)
    if _is_itself(raw) and payload.codec == CODEC_VERSION and not payload.whole:  # as most are
        try:
            return _from_json(raw)
        except (ValueError, RecursionError):  # told below
            pass
    return load(payload, blobs, guard).value


def _is_itself(raw: bytes) -> bool:
    """Whether JSON, if it is any, has no tags and is too short to be beyond a limit: at a glance, so not of all."""
    if not 0 < len(raw) <= BLOB_THRESHOLD:
        return False
    if raw[0] in b'"-0123456789tfn':
        return True
    return (
        raw[0] in b"{[" and b"~" not in raw and b"\\u007" not in raw and raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH
    )


def load(payload: Payload, blobs: Mapping[str, bytes] = {}, guard: Guard = OPEN) -> Loaded:
    """As ``loads``, with what of the value was not in the record."""
    if payload.codec != CODEC_VERSION:
        raise CodecError(
            f"a stored value has codec version {payload.codec}; this Perdure reads version {CODEC_VERSION}.",
            hint="Open it with the Perdure that wrote it; nothing was changed.",
        )
    reader = Reader(blobs, guard)
    try:
        raw = _stored_json(payload, blobs)
        reader.spend(len(raw))
        stored = _from_json(raw)
        value = stored if type(stored) in ATOMS else reader.value(stored)
        return Loaded(value, tuple(reader.secrets), reader.redacted)
    except Refused as problem:
        raise CodecError(f"value{problem.path()}{problem}", hint=problem.hint) from problem.__cause__
    except RecursionError as problem:
        raise CodecError(
            "a stored value is nested too deeply for the stack that is left.",
            hint="Load it nearer the top of the program.",
        ) from problem
    except MemoryError:  # which says nothing about the value
        raise
    except Exception as problem:  # damaged JSON, or whatever a constructor says to damaged parts
        raise CodecError(
            f"a stored value is damaged or of another form than this program expects ({type(problem).__name__}).",
            hint="Nothing was changed. Rerun the step that made it, or restore the store from a copy.",
        ) from problem


def _stored_json(payload: Payload, blobs: Mapping[str, bytes]) -> bytes:
    raw = bytes(payload.value)
    if not payload.whole:
        return raw
    if raw or not payload.refs:
        raise Refused(" is said to be a blob, but none or more than one form of it is stored.")
    blob = blobs.get(payload.refs[0])
    if blob is None:
        raise Refused(f" is a blob that is missing: sha256 {payload.refs[0][:64]}.")
    return blob


def stored_json(payload: Payload, blobs: Mapping[str, bytes]) -> bytes:
    """The tagged JSON of a payload, as it stands. Raises CodecError if there is none, or it is too large."""
    try:
        raw = _stored_json(payload, blobs)
        Reader(blobs).spend(len(raw))
        decoded(raw, _SKIP)
    except Refused as problem:
        raise CodecError(f"value{problem.path()}{problem}", hint=problem.hint) from None
    except ValueError as problem:
        raise CodecError(f"a stored value is no JSON ({problem}).", hint="Nothing was changed.") from None
    return raw


def digest(value: object, where: str, guard: Guard = OPEN) -> tuple[str, str]:
    """(32 hexadecimal digits that are equal for equal values of equal type, first 120 characters of readable JSON).

    The order of dict keys and of sets does not matter. What ``guard`` keeps out of records takes part by its keyed
    digest, and what must not be shown to people is masked. Raises CodecError as ``dumps`` does.
    """
    found = digested(value, where, guard)
    return found.hex, found.head()


class Digested(msgspec.Struct, frozen=True, gc=False):
    """A value as its identity sees it, and what makes the readable beginning of that when somebody needs it."""

    hex: str
    json: bytes
    marked: bool
    """something of it is hidden"""

    def head(self) -> str:
        """See ``digest``."""
        if len(self.json) <= _HEAD and not self.marked and b'"~"' not in self.json:  # as most are
            return discreet(self.json.decode("utf-8", "ignore"))[:_HEAD]
        head = self.json[: 16 * _HEAD + 4 * longest_known()].decode("utf-8", "ignore")
        if self.marked or '"~"' in head:
            head = _PLACEHOLDER.sub(MASK, head)
        return discreet_part(head, _HEAD)


def digested(value: object, where: str, guard: Guard = OPEN) -> Digested:
    """As ``digest``, with the beginning made only if it is asked for: that takes longer than all the rest."""
    plain = _plain(value) if guard.rules is None else None
    if plain is not None:
        return Digested(sha256(plain).hexdigest()[:32], plain, False)
    writer = Writer(canonical=True, guard=guard)
    shown = raw = _written(writer, value, where)
    if type(value) is str and len(value) > BLOB_THRESHOLD:
        shown = _to_json(discreet_part(value, _HEAD).encode("utf-8", "replace").decode("utf-8"))
    return Digested(sha256(raw).hexdigest()[:32], shown, writer.hid)


_PLACEHOLDER = re.compile(
    r'\{"mac":"[0-9a-f]{32}","~":"secret"\}|\{"name":"(?:[^"\\]|\\.){0,400}","rotates":true,"~":"secret"\}'
    r"|\[redacted:[0-9a-f]{16}\]"
)


def describe_error(error: BaseException) -> ErrorInfo:
    """``error`` as a record: its type as "module.qualname", its message, the end of its traceback. Never raises."""
    try:
        message = printable(str(error), MAX_MESSAGE)
    except Exception as problem:  # __str__ of a foreign exception is foreign code
        message = f"(its message could not be read: {type(problem).__name__})"
    try:
        return ErrorInfo(printable(type_name(type(error)), 500), message, error_text(error))
    except Exception as problem:
        return ErrorInfo(type(error).__name__, message, f"(no traceback: {type(problem).__name__})")


def _written(writer: Writer, value: object, where: str) -> bytes:
    try:
        raw: bytes = writer.json(writer.value(value))
        writer.spend(len(raw))
        return raw
    except Refused as problem:
        raise CodecError(f"{where}{problem.path()}{problem}", hint=problem.hint) from problem.__cause__
    except RecursionError as problem:
        raise CodecError(
            f"{where} is nested too deeply for the stack that is left.", hint="Store a flatter value."
        ) from problem
    except MemoryError:
        raise
    except Exception as problem:  # changed by another thread meanwhile, a name with broken Unicode ...
        raise CodecError(f"{where} cannot be stored ({type(problem).__name__}).") from problem


register(File, name="perdure:File")
