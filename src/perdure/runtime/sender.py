"""Bringing a run that others have executed into a store: it appears whole, in one append if it is not too long."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Final

from perdure.errors import CorruptStore
from perdure.fold import State
from perdure.model import Lease, RunMeta
from perdure.runtime.archive import Bounds
from perdure.stores.base import Append, Store
from perdure.stores.compression import ready

_AT_ONCE: Final = Bounds().journal
"""bytes of records in one append: every journal that is taken without asking"""
_BLOBS_AT_ONCE: Final = 16 << 20
"""bytes of blobs in one append; a larger blob goes alone"""


class Sender:
    """Appends the records of a run in as few appends as may be, a blob with or before the record that needs it."""

    def __init__(self, store: Store, lease: Lease, blob: Callable[[str], bytes], row: RunMeta, done: int) -> None:
        self._store, self._lease, self._blob, self._row = store, lease, blob, row
        self._seq = done
        self._records: list[bytes] = []
        self._blobs: dict[str, bytes] = {}
        self._sent: set[str] = set()
        self._early: set[str] = set()
        """blobs that went ahead of the records that need them"""
        self._filled = Filled()

    def make_room(self, size: int, state: State) -> None:
        """Called with the size of the next record of the journal, and the state before it."""
        if self._filled.full(size) and self._records:
            self._flush(state.meta())

    def add(self, seq: int, record: bytes, refs: tuple[str, ...]) -> None:
        if seq <= self._seq:  # it is there
            return
        self._records.append(record)
        for digest in refs:
            if digest not in self._sent:
                content = self._blob(digest)
                if self._blobs and sum(map(len, self._blobs.values())) + len(content) > _BLOBS_AT_ONCE:
                    self._append((), self._row)
                    self._early |= self._blobs.keys()
                    self._blobs = {}
                self._blobs[digest] = content
                self._sent.add(digest)

    def end(self, row: RunMeta) -> None:
        """Append the rest, and see that everything is there."""
        self._flush(row)
        for digest in self._early:
            try:
                self._store.blob(digest)
            except CorruptStore:  # nothing referred to it for a moment, and somebody has cleaned up
                self._blobs = {digest: self._blob(digest)}
                self._append((), self._row)

    def _flush(self, row: RunMeta) -> None:
        self._append(tuple(self._records), row)
        self._seq += len(self._records)
        self._row, self._records, self._blobs = row, [], {}

    def _append(self, records: tuple[bytes, ...], row: RunMeta) -> None:
        if self._store.capabilities.lease < inf:
            self._store.heartbeat()
        item = Append(self._lease, self._seq, records, row, self._blobs)
        for error in self._store.append(ready([item], self._store)):
            if error is not None:
                raise error


class Filled:
    """How full an append is, given the sizes of the records of a journal one after the other."""

    def __init__(self) -> None:
        self._size = 0

    def full(self, size: int) -> bool:
        """Whether the next record begins another append."""
        over = self._size + size > _AT_ONCE
        self._size = size if over else self._size + size
        return over
