"""Records on disk: one JSON line with the length and checksum of the entry in front, and the torn-tail rule.

A record is one line, valid JSON, readable without Perdure::

    {"crc":"9a8b7c6d","len":     431,"entry":{"kind":"step_completed","seq":7, ...}}

The checksum (CRC-32, as zlib computes it) is seeded with the run's key, so that a record of another run does not pass.
What may be wrong with a file of records, and what it means (rel:D9):

- the last line is incomplete or fails its check: a *torn tail*, the write that a crash interrupted. It is cut and
  reported. Nothing that was acknowledged is lost, because acknowledgement follows the sync.
- a line fails its check and a good record follows: *damage*. Nothing is cut; reading raises CorruptStore.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

from perdure.errors import CorruptStore
from perdure.model import RunKey

_HEAD = 41  # len('{"crc":"01234567","len":01234567,"entry":')


def frame(key: RunKey, entry: bytes) -> bytes:
    """``entry`` (a JSON object) as one record of the run ``key``, newline included."""
    return b'{"crc":"%08x","len":%8d,"entry":%b}\n' % (_crc(key, entry), len(entry), entry)


def unframe(key: RunKey, line: bytes) -> bytes:
    """The entry inside one record. Raises ValueError with the reason if the record is not whole and sound."""
    if not line.endswith(b"}\n"):
        raise ValueError("the record is cut short")
    if line[:8] != b'{"crc":"' or line[16:24] != b'","len":' or line[32:_HEAD] != b',"entry":':
        raise ValueError("this is not a record of a Perdure journal")
    entry = line[_HEAD:-2]
    try:
        length, crc = int(line[24:32]), int(line[8:16], 16)
    except ValueError:
        raise ValueError("the record's head is damaged") from None
    if length != len(entry):
        raise ValueError(f"the record says {length} bytes and has {len(entry)}")
    if crc != _crc(key, entry):
        raise ValueError("the checksum does not match: bytes were changed, or the record belongs to another run")
    return entry


class Scan(NamedTuple):
    """What ``scan`` found: whole records, how many bytes they take, and why the rest (if any) is a torn tail."""

    lines: list[bytes]
    good: int
    torn: str


def scan(key: RunKey, data: bytes) -> Scan:
    """Split a file of records. Raises CorruptStore for damage in the middle, naming record and offset."""
    lines: list[bytes] = []
    offset = 0
    while offset < len(data):
        end = data.find(b"\n", offset)
        line = data[offset : end + 1] if end >= 0 else data[offset:]
        try:
            unframe(key, line)
        except ValueError as problem:
            if end >= 0 and _any_record(key, data[end + 1 :]):
                raise CorruptStore(
                    f"run {key}: record {len(lines) + 1} at byte {offset} is damaged ({problem}) and good records "
                    f"follow it. Nothing was changed.",
                    hint="Restore the journal from a copy; do not edit it. Records before it are intact.",
                ) from None
            return Scan(lines, offset, str(problem))
        lines.append(line)
        offset += len(line)
    return Scan(lines, offset, "")


def _any_record(key: RunKey, rest: bytes) -> bool:
    for line in rest.splitlines(keepends=True):
        try:
            unframe(key, line)
        except ValueError:
            continue
        return True
    return False


def _crc(key: RunKey, entry: bytes) -> int:
    return zlib.crc32(entry, zlib.crc32(str(key).encode("utf-8", "surrogatepass")))
