"""What a store is: twelve synchronous verbs, used by one thread at a time (``heartbeat`` by any).

A store keeps opaque records and knows nothing of steps. It promises:

- ``append`` returns only after everything in the batch is on stable storage (as far as ``capabilities.durable`` says);
- an append whose lease is no longer current, or whose ``seq`` is not the run's last sequence, changes nothing;
- records come back from ``read`` byte for byte, in order, without gaps;
- after an I/O error the handle is poisoned: every later call raises until the store is opened again.

``perdure.testing.conformance`` holds every store to this page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from math import inf
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import msgspec

from perdure.errors import PerdureError
from perdure.model import Lease, RunKey, RunMeta
from perdure.stores.findings import Audit

Ring: TypeAlias = Callable[[bool], None]
"""told that there is something to look at, and whether something may have been posted"""


Summarise: TypeAlias = Callable[[RunKey, list[bytes]], RunMeta]
"""the row of a run from its records"""


class Transaction(NamedTuple):
    """An open transaction of a store, in which a run is held fast."""

    connection: Any
    """the driver's connection: apsw.Connection, psycopg.Connection"""
    check: Callable[[Exception | None], None]
    """to be called with what somebody's code on the connection raised, or None. Takes back what that code has set of
    the connection. Raises the store's error if it was the store that failed; and if nothing was raised, the driver's
    error for a constraint that would only be checked at the end, or ConfigError if the transaction has been ended"""


class Snapshots(NamedTuple):
    """A place for one snapshot a run. It may be lost or thrown away at any time, and may be damaged: whoever reads it
    knows. It goes with ``delete``, and with ``rewrite``, since it may hold what is not to be there any more."""

    save: Callable[[Lease, int, bytes], None]
    """keep this as the run's snapshot as of that sequence, instead of what was there before; on stable storage not
    necessarily at once, but never in parts: whoever loads gets the old one, the new one, or none. Raises ValueError for
    one that is larger than a blob may be, LeaseLost if the lease is not current (nothing is changed), StoreError,
    StoreBusy"""
    load: Callable[[RunKey], tuple[int, bytes] | None]
    """(sequence, content) of a run's snapshot; None if there is none, or none that can be loaded. Never changes
    anything. Raises StoreError"""


class Rewrite(msgspec.Struct, frozen=True):
    """Another form of all that a run holds: for keys that change."""

    lease: Lease
    records: tuple[bytes, ...]
    posts: tuple[bytes, ...]
    meta: RunMeta
    blobs: dict[str, bytes]
    """all that the run refers to from now on"""

    @property
    def size(self) -> int:
        """Bytes that the run has then."""
        return sum(map(len, self.records)) + sum(map(len, self.blobs.values()))


class Capabilities(msgspec.Struct, frozen=True):
    """How stores differ, as facts to ask for instead of types to check."""

    durable: bool
    """acknowledged records survive the process and the machine"""
    shared: bool
    """other processes can open the same store"""
    encrypted: bool = False
    """what others see of it is unreadable without a key"""
    outputs: Path | None = None
    """folder under which outputs of steps are kept as files by default"""
    lease: float = inf
    """seconds within which the runs of a dead handle are free; it is alive as long as ``heartbeat`` is called in time.
    inf: the operating system tells who lives, and nothing needs to be called"""
    trust: float = inf
    """seconds for which a handle keeps its leases after a heartbeat was *sent*, less than ``lease``"""
    listen: Callable[[Ring], Callable[[], None]] | None = None
    """calls the function that it is given, on a thread of its own, after each ``post`` (with True), after the first
    append under a lease and after the release of a run that has records (with False), of whatever handle; and with
    True when it begins to listen, also anew. Several calls may become one. Returns what ends it. None: whoever wants to
    know has to look"""
    compress: bool = False
    """blobs are to be given in their compressed form where that is much smaller. False: plain, so that people can read
    them, or because nothing is gained"""
    hurry: Callable[[bool], None] | None = None
    """told True, a verb raises StoreBusy at once (``append`` may return it, for an item of which it has kept nothing)
    instead of waiting for another process, until told False. None: it may wait for another machine, and nothing can be
    done about that"""
    transaction: Callable[[Lease], AbstractContextManager[Transaction]] | None = None
    """a transaction of the store, for what is written together with the next ``append`` to the run of a lease: inside
    of the block that is part of it, and raises what is wrong instead of returning it. Committed at the end of the
    block, rolled back if it raises. Raises LeaseLost; RetryError if all of it was rolled back and may be done again;
    StoreError. On the thread that uses the store. None: there is no such thing"""
    rewrite: Callable[[Rewrite], bool] | None = None
    """replaces every record, post and blob of a run, and its row. False, and no record or post is changed, if the run
    has another number of them than these. Raises LeaseLost, StoreError. A crash leaves some in the one form and some in
    the other: blobs are replaced and the snapshot is removed first, so that nothing is left in the old form when no
    record is"""
    snapshots: Snapshots | None = None
    """where what shortens the reading of long journals is kept. None: they are read from the beginning"""
    compact: Callable[[], None] | None = None
    """gives the space of what was removed back, and wipes it. Others may have to wait for as long as that takes. Raises
    StoreBusy, StoreError"""
    audit: Audit | None = None
    """what the store can tell of itself, besides what its verbs show, and how it is mended. None: nothing"""


class Which(msgspec.Struct, frozen=True, kw_only=True):
    """Which runs a listing shows. What is left out restricts nothing."""

    goal: str | None = None
    due: float | None = None
    """only those that nobody holds, and whose ``wake`` is set and not later than this, or that have unread posts; those
    of highest priority first, and then those that may go on for longest"""
    later: float | None = None
    """only those that nobody holds, and whose ``wake`` is later than this; the soonest first"""
    queues: tuple[str, ...] = ()
    flows: tuple[str, ...] = ()
    active: float | None = None
    """only those that somebody holds, or whose latest life began after this"""
    after: RunKey | None = None
    """only those that come after this one in the order of (goal, episode): for page after page of a long listing"""
    limit: int = 0
    """at most so many; 0: all"""

    def includes(self, row: RunMeta) -> bool:
        """Whether it shows this run, as far as it is not about their number."""
        if self.due is not None and (row.holder is not None or not (0 < row.wake <= self.due or row.unread)):
            return False
        if self.later is not None and (row.holder is not None or not row.wake > self.later):
            return False
        if self.active is not None and row.holder is None and not row.begun > self.active:
            return False
        if self.after is not None and not row.key > self.after:
            return False
        wanted = self.goal in (None, row.goal)
        return wanted and (not self.queues or row.queue in self.queues) and (not self.flows or row.flow in self.flows)

    def cut(self, rows: Iterable[RunMeta]) -> list[RunMeta]:
        """Those of the rows that it shows, in their order."""
        found = sorted(filter(self.includes, rows), key=lambda row: row.key)
        if self.later is not None:
            found.sort(key=lambda row: row.wake)
        elif self.due is not None:
            found.sort(key=lambda row: (-row.priority, row.wake))
        return found[: self.limit] if self.limit else found


EVERY = Which()


class Append(msgspec.Struct, frozen=True):
    """Records for one run, written together or (after a crash, unacknowledged) as a prefix, never with a gap. What an
    empty run begins with is written together or not at all: nobody sees a run that is being imported in between."""

    lease: Lease
    seq: int
    """sequence of the last record already in the run; 0 for an empty run"""
    records: tuple[bytes, ...]
    """framed records seq+1, seq+2, ... (one line each, newline included)"""
    meta: RunMeta
    """the run's new row for listings"""
    blobs: dict[str, bytes] = {}
    """name (64 hexadecimal digits) -> content of whatever the records refer to, plain or compressed (compression.py);
    stored before them, once per store, and kept as long as a run is there that was given them"""

    @property
    def size(self) -> int:
        """By how many bytes the run grows."""
        records = sum(map(len, self.records))
        return records + sum(map(len, self.blobs.values())) if self.blobs else records


class Store(Protocol):
    """A place for journals. Not thread-safe: one thread uses a handle at a time."""

    url: str

    @property
    def capabilities(self) -> Capabilities:
        """What this store can do, and what others cannot."""

    def claim(self, key: RunKey) -> Lease:
        """Become the one appender of ``key``, creating an empty run if there is none.

        Atomic among all processes. The epoch of the returned lease is larger than any granted before for this run.
        A holder that is dead (see ``heartbeat``) is replaced at once. Raises LeaseHeld while a live holder (this
        handle included) has the run; StoreBusy when the store stays locked.
        """

    def heartbeat(self) -> float:
        """Say that this handle is alive, and learn the store's time, seconds since 1970. Any thread may call it, also
        while another uses the handle.

        Where ``capabilities.lease`` is finite, its leases are good for that long after the store took this. Raises
        LeaseLost if it came too late: then every lease of the handle is lost for good, and those that it claims from
        now on are good. What dead handles held is free.
        """

    def release(self, lease: Lease) -> None:
        """Give the run up. Does nothing if the lease is no longer current."""

    def append(self, batch: Sequence[Append]) -> list[PerdureError | None]:
        """Write a batch for any number of runs with one wait for the device where the store can.

        Returns one entry per item: None when it is durable, LeaseLost when its lease is not current (nothing of the
        item was kept; the other items are unaffected). Raises StoreError when the store itself fails: the outcome of
        the whole batch is then unknown and the handle is poisoned.
        """

    def read(self, key: RunKey, after: int = 0, most: int | None = None) -> list[bytes]:
        """Records with sequence > ``after``, in order, framed as appended; the first ``most`` of them. Empty for an
        unknown run. Never changes anything: a torn tail is left out, not cut (``claim`` cuts it)."""

    def runs(self, which: Which = EVERY) -> list[RunMeta]:
        """One row for each of these runs that has records, ordered by (goal, episode) unless ``which`` says otherwise,
        with ``holder`` filled in when a live process holds the run, ``unread`` with the number of its posts above
        ``posts``, and ``size``. What is due or active is found without looking at all others, where the store can."""

    def post(self, key: RunKey, number: int, record: bytes) -> bool:
        """Append ``record`` (framed, one line) to the run's inbox as its post ``number``, counted from 1. Anybody may,
        at any time. Returns True when it is on stable storage; False, and nothing is changed, if the inbox has another
        number of posts than ``number - 1``.

        Atomic among all processes. Raises RunNotFound for a run without records, StoreBusy.
        """

    def posts(self, after: Mapping[RunKey, int]) -> dict[RunKey, list[bytes]]:
        """For each of these runs that has posts with a number above the one given: those, in order, framed as posted.
        Never changes anything."""

    def delete(self, lease: Lease) -> None:
        """Remove a run that this handle holds, with its records, its inbox, its snapshot, and the blobs that no other
        run was given. Raises LeaseLost if the lease is not current."""

    def blob(self, digest: str) -> bytes:
        """Plain content of a blob, in whichever form it was given. Raises CorruptStore when it is missing or does not
        have that sha256."""

    def warnings(self) -> list[str]:
        """What was found and repaired since the last call (a torn tail that was cut), one sentence each."""

    def close(self) -> None:
        """Release everything held by this handle. Safe to call twice."""
