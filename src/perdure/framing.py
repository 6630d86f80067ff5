"""Records on disk: one JSON line with the length and checksum of the entry in front, and the torn-tail rule.

A record is one line, valid JSON, readable without Perdure::

    {"crc":"9a8b7c6d","len":     431,"entry":{"kind":"step_completed","seq":7, ...}}

The checksum (CRC-32, as zlib computes it) is seeded with the run's key, so that a record of another run does not pass.
What may be wrong with a file of records, and what it means (rel:D9):

- the last line is incomplete or fails its check: a *torn tail*, the write that a crash interrupted. It is cut and
  reported. Nothing that was acknowledged is lost, because acknowledgement follows the sync.
- a line fails its check and a good record follows: *damage*. Nothing is cut; reading raises CorruptStore. So it is if
  a record follows that is whole but for its checksum: no crash leaves that, but another run's file does.

A power cut may also lose the first sectors of a write and keep the last ones. What is lost then reads as zeros, which
no record contains. So that such a hole is told from damage, a record that was written together with the one before it
begins with a blank (``joined``): a hole is a torn tail as well when all good records after it have the blank.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from perdure.errors import CodecError, CorruptStore
from perdure.limits import MAX_RECORD
from perdure.model import RunKey

FRAME = 43
"""bytes of a record besides its entry"""
ENTRY_AT = 41  # len('{"crc":"01234567","len":01234567,"entry":')
"""where in a record its entry begins"""


def frame(key: RunKey, entry: bytes) -> bytes:
    """``entry`` (a JSON object) as one record of the run ``key``, newline included. Raises CodecError for one that is
    too large."""
    if len(entry) > MAX_RECORD:
        raise CodecError(
            f"run {key}: {len(entry):,} bytes are too much for one entry of its journal; the limit is {MAX_RECORD:,}. "
            "Nothing was written.",
            hint="Stream less text at a time, or return it as the result of a step.",
        )
    return b'{"crc":"%08x","len":%8d,"entry":%b}\n' % (zlib.crc32(entry, _seed(key)), len(entry), entry)


def unframe(key: RunKey, line: bytes) -> bytes:
    """The entry inside one record. Raises ValueError with the reason if the record is not whole and sound."""
    entry = line[ENTRY_AT:-2]
    if len(entry) > MAX_RECORD or frame(key, entry) != line:
        _parts(line)
        raise ValueError("the checksum does not match: bytes were changed, or the record belongs to another run")
    return entry


def _parts(line: bytes) -> tuple[bytes, bytes]:
    """The entry inside one record, and its checksum as written. Raises ValueError if the record is not whole."""
    if not line.endswith(b"}\n"):
        raise ValueError("the record is cut short")
    if line[:8] != b'{"crc":"' or line[16:24] != b'","len":' or line[32:ENTRY_AT] != b',"entry":':
        raise ValueError("this is not a record of a Perdure journal")
    if len(line) > MAX_RECORD + FRAME:
        raise ValueError(f"the record has {len(line):,} bytes, and the limit is {MAX_RECORD:,}")
    entry = line[ENTRY_AT:-2]
    if line[24:32] != b"%8d" % len(entry):
        raise ValueError(f"the record says {line[24:32].decode('ascii', 'replace').strip()} bytes and has {len(entry)}")
    return entry, line[8:16]


def joined(records: Sequence[bytes], more: bool = False) -> bytes:
    """Records as one write; ``more`` if they are written together with what was written before."""
    return (b" " if more else b"") + b" ".join(records)


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
        record = line.removeprefix(b" ")
        try:
            unframe(key, record)
        except ValueError as problem:
            if end >= 0 and _followed(key, data[end + 1 :], hole=b"\0" in line):
                raise CorruptStore(
                    f"run {key}: record {len(lines) + 1} at byte {offset} is damaged ({problem}) and whole records "
                    f"follow it. Nothing was changed.",
                    hint="Restore the journal from a copy; do not edit it. Records before it are intact.",
                ) from None
            return Scan(lines, offset, str(problem))
        lines.append(record)
        offset += len(line)
    return Scan(lines, offset, "")


def _followed(key: RunKey, rest: bytes, hole: bool) -> bool:
    """Whether there is a record that shows that what is before it was acknowledged: a good one, or one that is whole
    but for its checksum and began a write of its own."""
    for line in rest.splitlines(keepends=True):
        together = line.startswith(b" ")
        try:
            entry, crc = _parts(line.removeprefix(b" "))
        except ValueError:
            continue
        if not (hole and together) if crc == _crc(key, entry) else not together:
            return True
    return False


def _crc(key: RunKey, entry: bytes) -> bytes:
    return b"%08x" % zlib.crc32(entry, _seed(key))


@lru_cache(maxsize=1024)
def _seed(key: RunKey) -> int:
    return zlib.crc32(str(key).encode("utf-8", "surrogatepass"))
