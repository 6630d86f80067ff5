"""How much is taken of what comes from outside, and how it becomes JSON.

What stands in a store, a file or a reply may be damaged, of another program, or made to do harm. So each has a limit,
which is looked at before memory is spent on it, and beyond which the error says so. The limits are far above what is
useful; docs/limits.md has all of them. Those of one value are in codec_walk.py, that of a post in inbox.py.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Final, Protocol, TypeVar

T = TypeVar("T")
_PART: Final = 2**20


class Readable(Protocol):
    """Anything that is read in parts."""

    def read(self, size: int, /) -> bytes: ...


MAX_VALUE: Final = 256 * 2**20
"""bytes of one value, its JSON and its blobs together; hence of one blob, and of a file that is given as an input"""
MAX_BLOB: Final = MAX_VALUE + 1024
"""bytes of a blob as it stands in a store: with what encryption adds"""
MAX_RECORD: Final = 64 * 2**20
"""bytes of one journal entry. Large values stand beside the journal, and a record's head has eight digits for this"""
MAX_JOURNAL: Final = 4 * 2**30
"""bytes of one run's journal, and of its inbox: each is read as a whole. A run is paused before it gets there"""
MAX_ROW: Final = 4 * 2**20
"""bytes of a run's row in listings"""
MAX_NOTE: Final = 2**16
"""bytes of the small files in which a file store says what is what: run.json, lease.json, format.json ..."""
MAX_SCOPE: Final = 2**15
"""characters of a scope's path: some hundred levels of long names"""
MAX_EPOCH: Final = 2**53
"""of a lease: far above what is ever granted, and exact wherever it is kept"""


def read_all(file: Readable, most: int) -> bytes:
    """All that can be read, if it is at most so many bytes. Raises ValueError; whatever reading raises."""
    parts, left = [], most
    while part := file.read(_PART):  # asked for all at once, it would make room for all at once
        parts.append(part)
        left -= len(part)
        if left < 0:
            raise ValueError(f"it has more than {most:,} bytes")
    return b"".join(parts)


def decoded(data: bytes | str, decode: Callable[[bytes | str], T], most: float = inf) -> T:
    """What ``decode``, of msgspec, makes of JSON. Raises ValueError, saying what is wrong, and nothing else."""
    if len(data) > most:
        raise ValueError(f"it has {len(data):,} bytes, and the limit is {most:,}")
    try:
        return decode(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
