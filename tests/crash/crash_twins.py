"""Known-bad twins: a store and a writer that look right, pass every test without a crash, and must each be caught.

A suite that cannot tell them from the real ones proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from perdure.errors import PerdureError
from perdure.fold import summarise
from perdure.limits import MAX_VALUE
from perdure.model import Lease, RunKey
from perdure.runtime import manager
from perdure.runtime.writer import Item, Writer
from perdure.stores import disk
from perdure.stores.base import Append
from perdure.stores.memory import MemoryBackend, MemoryStore


class Kept(msgspec.Struct):
    """All of a small store."""

    epoch: int = 0
    runs: dict[str, list[bytes]] = {}
    blobs: dict[str, bytes] = {}


class RewrittenStore(MemoryStore):
    """Keeps all runs in one JSON file, which it rewrites in place and syncs: between the two it has none."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "runs.json"
        kept = msgspec.json.decode(disk.read_file(self._path, MAX_VALUE) or b"{}", type=Kept)
        backend = MemoryBackend()
        super().__init__(backend)
        backend.epoch, backend.blobs = kept.epoch, kept.blobs
        for name, records in kept.runs.items():
            key = RunKey(*msgspec.json.decode(name, type=tuple[str, int]))
            lease = super().claim(key)
            super().append([Append(lease, 0, tuple(records), summarise(key, records))])
            super().release(lease)

    def claim(self, key: RunKey) -> Lease:
        lease = super().claim(key)
        self._save()
        return lease

    def append(self, batch: Sequence[Append]) -> list[PerdureError | None]:
        results = super().append(batch)
        self._save()
        return results

    def _save(self) -> None:
        runs = {
            msgspec.json.encode((key.goal, key.episode)).decode(): run.records
            for key, run in self._backend.runs.items()
            if run.records
        }
        data = msgspec.json.encode(Kept(self._backend.epoch, runs, self._backend.blobs))
        disk.write_file(self._path, data)


STORES: dict[str, Callable[[Path], Any]] = {"rewritten": RewrittenStore}


class HastyWriter(Writer):
    """Says that records are durable, and commits them when the next ones come."""

    _late: Sequence[Item] = ()

    def _commit(self, batch: list[Item], in_hurry: bool) -> None:
        if self._late:
            super()._commit(list(self._late), False)
        self._late = batch
        self.resolve(batch, None)
        if self._closed:
            super()._commit(batch, False)
            self._late = ()


def become(twin: str) -> None:
    """Make this process, which ends soon, a known-bad one."""
    if twin == "hasty":
        vars(manager)["Writer"] = HastyWriter
