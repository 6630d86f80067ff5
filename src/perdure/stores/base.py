"""What a store is: eleven synchronous verbs, used by one thread at a time.

A store keeps opaque records and knows nothing of steps. It promises:

- ``append`` returns only after everything in the batch is on stable storage (as far as ``capabilities.durable`` says);
- an append whose lease is no longer current, or whose ``seq`` is not the run's last sequence, changes nothing;
- records come back from ``read`` byte for byte, in order, without gaps;
- after an I/O error the handle is poisoned: every later call raises until the store is opened again.

``perdure.testing.conformance`` holds every store to this page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from perdure.errors import PerdureError
from perdure.model import Lease, RunKey, RunMeta


class Capabilities(msgspec.Struct, frozen=True):
    """How stores differ, as facts to ask for instead of types to check."""

    durable: bool
    """acknowledged records survive the process and the machine"""
    shared: bool
    """other processes can open the same store"""
    outputs: Path | None = None
    """folder under which outputs of steps are kept as files by default"""


class Append(msgspec.Struct, frozen=True):
    """Records for one run, written together or (after a crash, unacknowledged) as a prefix, never with a gap."""

    lease: Lease
    seq: int
    """sequence of the last record already in the run; 0 for an empty run"""
    records: tuple[bytes, ...]
    """framed records seq+1, seq+2, ... (one line each, newline included)"""
    meta: RunMeta
    """the run's new row for listings"""
    blobs: dict[str, bytes] = {}
    """sha256 (hex) -> content; stored before the records that refer to them, once per store"""


class Store(Protocol):
    """A place for journals. Not thread-safe: one thread uses a handle at a time."""

    url: str
    capabilities: Capabilities

    def claim(self, key: RunKey) -> Lease:
        """Become the one appender of ``key``, creating an empty run if there is none.

        Atomic among all processes. The epoch of the returned lease is larger than any granted before for this run.
        A holder whose process has died is replaced at once. Raises LeaseHeld while a live holder (this handle
        included) has the run; StoreBusy when the store stays locked.
        """

    def release(self, lease: Lease) -> None:
        """Give the run up. Does nothing if the lease is no longer current."""

    def append(self, batch: Sequence[Append]) -> list[PerdureError | None]:
        """Write a batch for any number of runs with one wait for the device where the store can.

        Returns one entry per item: None when it is durable, LeaseLost when its lease is not current (nothing of the
        item was kept; the other items are unaffected). Raises StoreError when the store itself fails: the outcome of
        the whole batch is then unknown and the handle is poisoned.
        """

    def read(self, key: RunKey, after: int = 0) -> list[bytes]:
        """Records with sequence > ``after``, in order, framed as appended. Empty for an unknown run. Never changes
        anything: a torn tail is left out, not cut (``claim`` cuts it)."""

    def runs(self, goal: str | None = None, due: float | None = None) -> list[RunMeta]:
        """One row per run that has records (of ``goal`` only, when given), ordered by (goal, episode), with ``holder``
        filled in when a live process holds the run, and ``unread`` with the number of its posts above ``posts``.

        With ``due`` only those whose ``wake`` is set and not later than that, or that have unread posts: one query,
        whatever the number of other runs."""

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
        """Remove a run that this handle holds, with its records and its inbox. Blobs stay until nothing refers to them.
        Raises LeaseLost if the lease is not current."""

    def blob(self, digest: str) -> bytes:
        """Content of a blob. Raises CorruptStore when it is missing or does not have that sha256."""

    def warnings(self) -> list[str]:
        """What was found and repaired since the last call (a torn tail that was cut), one sentence each."""

    def close(self) -> None:
        """Release everything held by this handle. Safe to call twice."""
