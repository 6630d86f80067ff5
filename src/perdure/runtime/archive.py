"""Archives: runs as one file that any store can take in, and that is read without Perdure.

The theory
----------
An archive is a gzip-compressed tar file (``tar tzf`` lists it), written and read as a stream::

    perdure.json                  format and its version, who wrote it, when
    blobs/<sha256>                what the next run needs and no run before it did; each once
    runs/1/run.json               goal and episode
    runs/1/journal.jsonl          its records, byte for byte as the store has them
    runs/1/inbox.jsonl            its posts, likewise
    ...
    end.json                      counts, and the sha256 of every byte of the tar file before

Leases, owners and the rows that workers and queues keep in a store are no runs and are never in it; nor are the files
of outputs.

An archive may come from a stranger, so nothing in it is believed. Members are of one kind only (plain files), with the
names above in the order above; a header has to be, byte for byte, the one that we would have written, so there are no
links, devices, paths or extensions to be careful with, and no code that understands them. What unpacking may take is
bounded before it is taken, in memory and on the disk. Everything is looked at (unpack.py) before anything is written
(restore.py), and what is written is what was looked at: it is unpacked into a file that has no name. Checksums tell
damage, not malice: whoever can write an archive can make them fit. So what a run says of itself is checked like
everything else that is read, and nothing is executed before a person says so.

Rejected: Python's ``tarfile`` for reading (it follows extended headers of any size into memory, and knows links); zip
(its directory stands at the end: no streams); one JSON document (a blob would be a third larger, and no stream either).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Final, NamedTuple

import msgspec

from perdure import inbox
from perdure import journal as j
from perdure.errors import CorruptStore
from perdure.fold import State
from perdure.model import RunKey
from perdure.runtime.settle import posts_missing
from perdure.stores.base import Store
from perdure.stores.handle import not_found

VERSION: Final = 1
HEAD: Final = "perdure.json"
END: Final = "end.json"
BLOCK: Final = 512
"""a tar file is made of blocks"""
MOST: Final = 8**11 - 1
"""bytes of one member: what eleven octal digits can say"""
MOST_OF_RECORD: Final = 10**8 - 1
"""bytes of one record: what eight digits can say"""
_LEVEL = 6
_PIECE = 1 << 16


class Bounds(NamedTuple):
    """What an archive may make of itself. Whoever has more, and knows whom it is from, says how much it may be."""

    total: int = 4 << 30
    """bytes that it may unpack to: they stand in a temporary file while they are looked at"""
    ratio: int = 100
    """how many times its own size that may be, beyond ``slack``. JSON is compressed to a fifth, seldom to a thirtieth;
    what was made to burst comes to a thousandth"""
    slack: int = 64 << 20
    journal: int = 64 << 20
    """bytes of one run's journal, or inbox: the state that is made of it in memory may take some times as much, and so
    much is written to a store at once"""
    record: int = 16 << 20
    """bytes of one record; values above some kilobytes are blobs"""
    members: int = 500_000
    """members: some hundred bytes are remembered of each"""

    @classmethod
    def of(cls, most: int | None) -> Bounds:
        """The usual ones, or those of an archive that may unpack to ``most`` bytes."""
        return cls() if most is None else cls(most, most, most, most, MOST_OF_RECORD, most // BLOCK)


class Head(msgspec.Struct, frozen=True):
    """``perdure.json``."""

    archive: str
    """always ``perdure``"""
    version: int
    by: str = ""
    """what wrote it, and on which machine"""
    made: float = 0.0
    """when, seconds since 1970"""


class End(msgspec.Struct, frozen=True):
    """``end.json``."""

    runs: int
    blobs: int
    records: int
    posts: int
    sha256: str


def header(name: str, size: int) -> bytes:
    """The one block that stands before a member's content, and the only form of it that there is."""
    nobody, long_ago = b"0000000\0" * 2, b"00000000000\0"
    before = name.encode().ljust(100, b"\0") + b"0000600\0" + nobody + b"%011o\0" % size + long_ago
    after = b"0" + bytes(100) + b"ustar\x0000" + bytes(247)
    return before + b"%06o\0 " % (sum(before) + 8 * ord(" ") + sum(after)) + after


def padding(size: int) -> int:
    """Zeros after a content, up to a whole block."""
    return -size % BLOCK


def names_of_run(number: int) -> tuple[str, str, str]:
    """The members of the run that stands at this place of the archive, in their order."""
    return f"runs/{number}/run.json", f"runs/{number}/journal.jsonl", f"runs/{number}/inbox.jsonl"


class Recorded(NamedTuple):
    """What a store has of one run, at one moment."""

    key: RunKey
    records: list[bytes]
    posts: list[bytes]
    refs: tuple[str, ...]
    """blobs that it needs"""


def recorded(store: Store, key: RunKey) -> Recorded:
    """A run as it is now, whoever executes it at this moment: so many records, and every post that they tell of.

    Raises RunNotFound; CorruptStore or NewerFormat if an archive could not bring it back.
    """
    records = store.read(key)
    if not records:
        raise not_found(key, store.url)
    posts = store.posts({key: 0}).get(key, [])  # after the journal, which tells of none that is not there
    state, refs = State(key), dict[str, None]()
    for line in records:
        entry = j.decode(key, line, state.seq + 1)
        state.apply(entry)
        refs |= dict.fromkeys(j.refs(entry))
    for number, post in enumerate(posts, 1):
        inbox.decode(state, post, number)
    if len(posts) < state.posts:
        raise posts_missing(key, len(posts), state.posts)
    return Recorded(key, records, posts, tuple(refs))


class ArchiveWriter:
    """Writes an archive, run by run, to whatever takes bytes. Its memory grows by the name of each blob only."""

    def __init__(self, write: Callable[[bytes], object], head: Head) -> None:
        self._write = write
        self._gzip = zlib.compressobj(_LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
        self._hash = sha256()
        self._blobs: set[bytes] = set()
        self.runs = self.records = self.posts = 0
        self.packed = self.unpacked = 0
        """bytes of the archive so far, and of the tar file in it"""
        self.longest = 0
        """bytes of the longest record, and of the longest journal or inbox"""
        self.largest = 0
        self._add(HEAD, [msgspec.json.encode(head) + b"\n"])

    @property
    def blobs(self) -> int:
        return len(self._blobs)

    def add(self, run: Recorded, blob: Callable[[str], bytes]) -> None:
        """Add a run; ``blob`` gives the content of those that it needs. What that raises leaves a sound archive,
        without the run."""
        for lines in (run.records, run.posts):
            size = sum(map(len, lines))
            if size > MOST:
                raise CorruptStore(f"run {run.key} has {size:,} bytes; a member of an archive has {MOST:,} at most.")
            self.largest = max(self.largest, size)
            self.longest = max(self.longest, *map(len, lines), 0)
        for digest in run.refs:
            name = bytes.fromhex(digest)
            if name not in self._blobs:
                self._add(f"blobs/{digest}", [blob(digest)])
                self._blobs.add(name)
        self.runs += 1
        self.records += len(run.records)
        self.posts += len(run.posts)
        contents = [msgspec.json.encode(run.key) + b"\n"], run.records, run.posts
        for member, content in zip(names_of_run(self.runs), contents, strict=True):
            self._add(member, content)

    def exceeds(self, bounds: Bounds) -> bool:
        """Whether the archive is larger than these allow."""
        return (
            self.unpacked > min(bounds.total, max(bounds.slack, bounds.ratio * self.packed))
            or (self.largest > bounds.journal or self.longest > bounds.record)
            or 3 * self.runs + self.blobs + 2 > bounds.members
        )

    def end(self) -> None:
        """Write the last member. Without it the archive is none."""
        end = End(self.runs, self.blobs, self.records, self.posts, self._hash.hexdigest())
        self._add(END, [msgspec.json.encode(end) + b"\n"])
        self._put(bytes(2 * BLOCK))
        self._out(self._gzip.flush())

    def _add(self, name: str, parts: Sequence[bytes]) -> None:
        size = sum(map(len, parts))
        self._put(header(name, size))
        for part in parts:
            self._put(part)
        self._put(bytes(padding(size)))

    def _put(self, data: bytes) -> None:
        self._hash.update(data)
        self.unpacked += len(data)
        for at in range(0, len(data), _PIECE):
            self._out(self._gzip.compress(data[at : at + _PIECE]))

    def _out(self, data: bytes) -> None:
        if data:
            self.packed += len(data)
            self._write(data)
