"""Standard-library and numpy values as tagged JSON: one line of a table per type.

``write`` returns the keys that stand beside ``"~"``, ``read`` is its inverse. ``keys`` is the whole form: the exact
JSON type of each key ("?" marks one that may be absent, ``object`` stands for any value). The walker checks it before
``read`` runs, so that a form with a missing, extra or mistyped key is refused in one place. ``read`` may raise
anything; the walker turns it into a CodecError.
"""

from __future__ import annotations

import base64
import binascii
import re
import sys
from collections import deque
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any, NamedTuple, Protocol
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from perdure.codec_kinds import Refused
from perdure.errors import ConfigError
from perdure.guard import Guard
from perdure.secret import Secret, recalled

BLOB_THRESHOLD = 8192
"""Bytes above which a text or byte string is stored once, beside the journal, under its sha256."""


class Writer(Protocol):
    """What a ``write`` may ask of the walker."""

    canonical: bool
    guard: Guard

    def value(self, value: object, /) -> object: ...
    def items(self, values: Any, /) -> list[object]: ...
    def unordered(self, values: Any, /) -> list[msgspec.Raw]: ...
    def blob(self, kind: str, data: bytes, /) -> dict[str, object]: ...


class Reader(Protocol):
    """What a ``read`` may ask of the walker."""

    guard: Guard
    secrets: list[Secret]
    redacted: bool

    def value(self, stored: Any, /) -> Any: ...
    def items(self, stored: list[Any], /) -> list[Any]: ...
    def blob(self, sha256: str, size: int, /) -> bytes: ...


class Tag(NamedTuple):
    name: str
    cls: type | None
    """values of exactly this type are written so; None: only read by this line"""
    keys: Mapping[str, Any]
    write: Callable[[Writer, Any], dict[str, object]]
    read: Callable[[Reader, dict[str, Any]], object]


def _unused(writer: Writer, value: object) -> dict[str, object]:
    raise NotImplementedError  # a line without a type is written by the walker or by another line


# ---- text and bytes


def to_base64(data: bytes | bytearray) -> str:
    return base64.b64encode(data).decode("ascii")


def _from_base64(text: str) -> bytes:
    return binascii.a2b_base64(text.encode("ascii"), strict_mode=True)


def _write_bytes(writer: Writer, value: bytes | bytearray) -> dict[str, object]:
    kind = type(value).__name__
    if len(value) > BLOB_THRESHOLD:
        return writer.blob(kind, bytes(value))
    return {"b64": to_base64(value)}


def _read_blob(reader: Reader, stored: dict[str, Any]) -> object:
    data = reader.blob(stored["sha256"], stored["size"])
    return _BLOBS[stored["as"]](data)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


_BLOBS: dict[str, Callable[[bytes], object]] = {"str": _text, "bytes": bytes, "bytearray": bytearray}


# ---- numbers


def _read_float(reader: Reader, stored: dict[str, Any]) -> float:
    return {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}[stored["v"]]


def _read_int(reader: Reader, stored: dict[str, Any]) -> int:
    made = int(stored["hex"], 16)
    if hex(made) != stored["hex"]:
        raise Refused(" is a stored number in another form than this Perdure writes.")
    return made


def _whole(value: object) -> int:
    if type(value) is not int:
        raise Refused(" has a stored part that is not a whole number.")
    return value


def _write_fraction(writer: Writer, value: Fraction) -> dict[str, object]:
    return {"v": writer.items((value.numerator, value.denominator))}


def _read_fraction(reader: Reader, stored: dict[str, Any]) -> Fraction:
    numerator, denominator = reader.items(stored["v"])
    return Fraction(_whole(numerator), _whole(denominator))


def _read_complex(reader: Reader, stored: dict[str, Any]) -> complex:
    real, imag = reader.items(stored["v"])
    if type(real) is not float or type(imag) is not float:
        raise Refused(" has a stored part that is not a float.")
    return complex(real, imag)


def _read_range(reader: Reader, stored: dict[str, Any]) -> range:
    start, stop, step = reader.items(stored["v"])
    return range(_whole(start), _whole(stop), _whole(step))


# ---- containers


def _read_set(reader: Reader, stored: dict[str, Any]) -> set[Any]:
    items = reader.items(stored["v"])
    made = set(items)
    if len(made) != len(items):
        raise Refused(" is a stored set with an element that stands twice.")
    return made


def _read_frozenset(reader: Reader, stored: dict[str, Any]) -> frozenset[Any]:
    return frozenset(_read_set(reader, stored))


def _write_deque(writer: Writer, value: deque[Any]) -> dict[str, object]:
    limit = {} if value.maxlen is None else {"maxlen": value.maxlen}
    return {"v": writer.items(value), **limit}


def _read_deque(reader: Reader, stored: dict[str, Any]) -> deque[Any]:
    made = deque(reader.items(stored["v"]), stored.get("maxlen"))
    if len(made) != len(stored["v"]):
        raise Refused(" is a stored deque longer than its maxlen.")
    return made


# ---- dates and times: a zone stands by its key; an offset in the text, or whole if it has a name or splits a second

_ZONE_KEY = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*")


def _zone(key: str) -> ZoneInfo:
    if len(key) > 100 or not _ZONE_KEY.fullmatch(key):
        raise Refused(" names a time zone that cannot be one.")
    return ZoneInfo(key)


def _zone_key(zone: ZoneInfo) -> str:
    if zone.key is None:
        raise Refused(": a ZoneInfo read from a file has no name to store.", 'Use ZoneInfo("Region/City").')
    return zone.key


def _offset_name(zone: timezone) -> dict[str, object]:
    name = zone.tzname(None)
    return {} if name == timezone(zone.utcoffset(None)).tzname(None) else {"name": name}


def _write_moment(writer: Writer, value: datetime | time) -> dict[str, object]:
    zone = value.tzinfo
    fold: dict[str, object] = {"fold": 1} if value.fold else {}
    if zone is None:
        return {"v": value.isoformat(), **fold}
    if type(zone) is ZoneInfo:
        return {"v": value.replace(tzinfo=None).isoformat(), "zone": _zone_key(zone), **fold}
    if type(zone) is not timezone:
        raise Refused(
            f".tzinfo: {type(zone).__module__}.{type(zone).__qualname__} cannot be stored.",
            "Use zoneinfo.ZoneInfo or datetime.timezone.",
        )
    if zone.utcoffset(None).microseconds or _offset_name(zone):  # fromisoformat reads a negative microsecond as zero
        return {"v": value.replace(tzinfo=None).isoformat(), "zone": writer.value(zone), **fold}
    return {"v": value.isoformat(), **fold}


def _read_moment(reader: Reader, parsed: Any, stored: dict[str, Any]) -> Any:
    zone: tzinfo | None = parsed.tzinfo
    if "zone" in stored:
        beside = stored["zone"]
        zone = _zone(beside) if type(beside) is str else reader.value(beside)
        if parsed.tzinfo is not None or type(zone) not in (ZoneInfo, timezone):
            raise Refused(" is stored with a time zone that contradicts its text, or with something else in its place.")
    return parsed.replace(tzinfo=zone, fold=stored.get("fold", 0))


_MOMENT = {"v": str, "zone?": object, "fold?": int}


def _write_delta(writer: Writer, value: timedelta) -> dict[str, object]:
    return {"v": [value.days, value.seconds, value.microseconds]}


def _read_delta(reader: Reader, stored: dict[str, Any]) -> timedelta:
    days, seconds, microseconds = map(_whole, stored["v"])
    return timedelta(days, seconds, microseconds)


def _write_timezone(writer: Writer, value: timezone) -> dict[str, object]:
    return {"offset": _write_delta(writer, value.utcoffset(None))["v"], **_offset_name(value)}


def _read_timezone(reader: Reader, stored: dict[str, Any]) -> timezone:
    offset = _read_delta(reader, {"v": stored["offset"]})
    return timezone(offset, stored["name"]) if "name" in stored else timezone(offset)


# ---- paths


def _path(name: str, cls: type) -> Tag:
    def write(writer: Writer, value: Any) -> dict[str, object]:
        return {"v": writer.value(str(value))}  # the text may hold undecodable bytes, as lone surrogates

    def read(reader: Reader, stored: dict[str, Any]) -> object:
        text = reader.value(stored["v"])
        if type(text) is not str:
            raise Refused(" is a stored path that is not text.")
        if issubclass(cls, Path) and not isinstance(Path(), cls):
            raise Refused(
                f" is a {cls.__name__}, which this operating system cannot make.",
                "Store PurePath objects or text in runs that move between systems.",
            )
        return cls(text)

    return Tag(name, cls, {"v": object}, write, read)


# ---- secrets, and what the rules of redaction hide


_MAC = re.compile(r"[0-9a-f]{32}")


def _write_secret(writer: Writer, value: Secret) -> dict[str, object]:
    guard = writer.guard
    if value.rotates:
        guard.used = True
        return {"name": value.name, "rotates": True}
    mac: dict[str, object] = {}
    if guard.key:
        guard.used = True
        try:
            mac = {"mac": value.digest(guard.key)}
        except ConfigError as missing:
            raise Refused(f": {missing.args[0]}", missing.hint) from None
    elif writer.canonical:
        raise Refused(" is a Secret, which has no identity outside of a run.")
    if writer.canonical:
        return mac
    guard.nameless = guard.nameless or not value.name
    return {"name": value.name, **mac}


def _read_secret(reader: Reader, stored: dict[str, Any]) -> Secret:
    mac, rotates = stored.get("mac", ""), stored.get("rotates", False)
    if (rotates and (mac or not stored["name"])) or (mac and not _MAC.fullmatch(mac)):
        raise Refused(" is a stored secret in another form than this Perdure writes.")
    made = recalled(stored["name"], mac, rotates, reader.guard.key, reader.guard.resolve)
    reader.secrets.append(made)
    return made


def _read_redacted(reader: Reader, stored: dict[str, Any]) -> str:
    text = stored["v"] if type(stored["v"]) is str else reader.value(stored["v"])
    if type(text) is not str:
        raise Refused(" was redacted, and what stands in its place is not text.")
    reader.redacted = True
    return text


# ---- numpy, imported on save only if the program did


def write_numpy(writer: Writer, value: Any) -> dict[str, object] | None:
    """The tagged form of a numpy array or scalar; None for anything else."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or type(value).__module__ != "numpy":
        return None
    array = type(value) is numpy.ndarray
    if not array and not isinstance(value, numpy.generic):
        return None
    form = _dtype_form(numpy, value.dtype)
    if value.size > 1 and not value.dtype.itemsize:
        raise Refused(": a numpy array whose items have no size cannot be stored.", "Give it a dtype with a length.")
    data = writer.value(value.tobytes() if value.dtype.itemsize else b"")  # numpy pads an empty text
    if array:
        return {"~": "ndarray", "dtype": form, "shape": list(value.shape), "data": data}
    return {"~": "numpy", "dtype": form, "data": data}


_DTYPE = re.compile(r"[<>|=]?[A-Za-z?][0-9]*(\[[0-9]*[A-Za-z]+\])?")


def _dtype_form(numpy: Any, dtype: Any) -> object:
    if dtype.hasobject:
        raise Refused(": numpy values of dtype object cannot be stored.", "Convert to a list, or to a numeric dtype.")
    plain = numpy.dtype(dtype.str)
    form = dtype.descr if dtype.names else dtype.str if plain.char == dtype.char else dtype.char
    stored = msgspec.json.decode(msgspec.json.encode(form))
    if _dtype(numpy, stored) != dtype:
        raise Refused(
            f": the numpy dtype {dtype} cannot be stored.", "Use a dtype without alignment, titles or overlap."
        )
    return stored


def _dtype(numpy: Any, form: Any) -> Any:
    """A dtype from "<f8", or from [["name", form], ["name", form, [shape]]]."""
    if type(form) is str:
        if not _DTYPE.fullmatch(form):
            raise Refused(" is stored with a numpy dtype of another form than this Perdure writes.")
        made = numpy.dtype(form)
    else:
        made = numpy.dtype([(name, _dtype(numpy, inner), *map(tuple, shape)) for name, inner, *shape in form])
    if made.hasobject:
        raise Refused(" is stored with a numpy dtype that holds objects.")
    return made


def _read_array(reader: Reader, stored: dict[str, Any]) -> object:
    import numpy  # here, because a program that stored no arrays need not have it

    dtype = _dtype(numpy, stored["dtype"])
    data = reader.value(stored["data"])
    shape = tuple(map(_whole, stored.get("shape", ())))
    count = 1
    for length in shape:
        if length < 0:
            raise Refused(" has a stored shape that is negative.")
        count *= length
    if type(data) is not bytes or count * dtype.itemsize != len(data) or (count > 1 and not dtype.itemsize):
        raise Refused(f" has {count:,} stored numpy items and bytes for another number.")
    array = numpy.ndarray(shape, dtype, data).copy()
    return array[()] if stored["~"] == "numpy" else array


_STANDARD = (
    Tag("blob", None, {"as": str, "sha256": str, "size": int}, _unused, _read_blob),
    Tag("str", None, {"b64": str}, _unused, lambda r, d: _text(_from_base64(d["b64"]))),
    Tag("int", None, {"hex": str}, _unused, _read_int),
    Tag("float", None, {"v": str}, _unused, _read_float),
    Tag("bytes", bytes, {"b64": str}, _write_bytes, lambda r, d: _from_base64(d["b64"])),
    Tag("bytearray", bytearray, {"b64": str}, _write_bytes, lambda r, d: bytearray(_from_base64(d["b64"]))),
    Tag("tuple", tuple, {"v": list}, lambda w, v: {"v": w.items(v)}, lambda r, d: tuple(r.items(d["v"]))),
    Tag("set", set, {"v": list}, lambda w, v: {"v": w.unordered(v)}, _read_set),
    Tag("frozenset", frozenset, {"v": list}, lambda w, v: {"v": w.unordered(v)}, _read_frozenset),
    Tag("deque", deque, {"v": list, "maxlen?": int}, _write_deque, _read_deque),
    Tag("complex", complex, {"v": list}, lambda w, v: {"v": w.items((v.real, v.imag))}, _read_complex),
    Tag("fraction", Fraction, {"v": list}, _write_fraction, _read_fraction),
    Tag("decimal", Decimal, {"v": str}, lambda w, v: {"v": str(v)}, lambda r, d: Decimal(d["v"])),
    Tag("datetime", datetime, _MOMENT, _write_moment, lambda r, d: _read_moment(r, datetime.fromisoformat(d["v"]), d)),
    Tag("time", time, _MOMENT, _write_moment, lambda r, d: _read_moment(r, time.fromisoformat(d["v"]), d)),
    Tag("date", date, {"v": str}, lambda w, v: {"v": v.isoformat()}, lambda r, d: date.fromisoformat(d["v"])),
    Tag("timedelta", timedelta, {"v": list}, _write_delta, _read_delta),
    Tag("timezone", timezone, {"offset": list, "name?": str}, _write_timezone, _read_timezone),
    Tag("zone", ZoneInfo, {"key": str}, lambda w, v: {"key": _zone_key(v)}, lambda r, d: _zone(d["key"])),
    Tag("uuid", UUID, {"v": str}, lambda w, v: {"v": str(v)}, lambda r, d: UUID(d["v"])),
    Tag("range", range, {"v": list}, lambda w, v: {"v": w.items((v.start, v.stop, v.step))}, _read_range),
    _path("posix_path", PosixPath),
    _path("windows_path", WindowsPath),
    _path("pure_posix_path", PurePosixPath),
    _path("pure_windows_path", PureWindowsPath),
    Tag("ndarray", None, {"dtype": object, "shape": list, "data": dict}, _unused, _read_array),
    Tag("numpy", None, {"dtype": object, "data": dict}, _unused, _read_array),
    Tag("secret", Secret, {"name": str, "mac?": str, "rotates?": bool}, _write_secret, _read_secret),
    Tag("redacted", None, {"v": object}, _unused, _read_redacted),
    Tag("unset", msgspec.UnsetType, {}, lambda w, v: {}, lambda r, d: msgspec.UNSET),
)

WRITE = {tag.cls: tag for tag in _STANDARD if tag.cls is not None}
READ = {tag.name: tag for tag in _STANDARD}
