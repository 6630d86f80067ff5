"""The store without a disk: for tests, and for flows whose runs need not outlive the process.

Handles that are to see the same runs share a ``MemoryBackend``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from perdure.clock import SYSTEM, Clock, process_identity
from perdure.errors import PerdureError
from perdure.model import Lease, RunKey, RunMeta
from perdure.stores.base import EVERY, Append, Capabilities, Rewrite, Snapshots, Which
from perdure.stores.findings import Audit, Copies, Finding
from perdure.stores.handle import Handle, checked_digest, held, lost, not_found, sound_blob, stored_digest, wrong_seq
from perdure.stores.snapshots import refuse_too_large


class _Run(msgspec.Struct):
    lease: Lease | None = None
    records: list[bytes] = []
    posts: list[bytes] = []
    blobs: set[str] = set()
    snapshot: tuple[int, bytes] | None = None
    size: int = 0
    meta: RunMeta | None = None


class MemoryBackend:
    """What handles share: the runs, the blobs, and which handles are alive."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.runs: dict[RunKey, _Run] = {}
        self.blobs: dict[str, bytes] = {}
        self.owners: set[str] = set()
        self.epoch = 0
        """largest epoch ever granted; one counter for all runs is the simplest that never repeats"""


class MemoryStore(Handle):
    """A Store in dictionaries. See base.Store for what the verbs promise."""

    def __init__(self, backend: MemoryBackend | None = None, *, clock: Clock = SYSTEM) -> None:
        super().__init__("memory:", clock)
        self._backend = backend or MemoryBackend()
        self._owner = clock.new_id()
        self._backend.owners.add(self._owner)

    @property
    def capabilities(self) -> Capabilities:
        audit = Audit(self._look, self._mend, self._stored_row, Path("perdure"))
        return Capabilities(
            durable=False,
            shared=False,
            hurry=lambda _: None,
            rewrite=self._rewrite,
            snapshots=Snapshots(self._save_snapshot, self._load_snapshot),
            audit=audit,
        )

    def claim(self, key: RunKey) -> Lease:
        self._check()
        with self._backend.lock:
            run = self._backend.runs.setdefault(key, _Run())
            if run.lease is not None and run.lease.owner in self._backend.owners:
                raise held(run.lease)
            self._backend.epoch += 1
            pid, host = process_identity()
            run.lease = Lease(key, self._backend.epoch, self._owner, pid, host, self._clock.now())
            return run.lease

    def release(self, lease: Lease) -> None:
        self._check()
        with self._backend.lock:
            run = self._current(lease)
            if run is not None:
                run.lease = None

    def append(self, batch: Sequence[Append]) -> list[PerdureError | None]:
        self._check()
        with self._backend.lock:
            return [self._append_one(item) for item in batch]

    def read(self, key: RunKey, after: int = 0, most: int | None = None) -> list[bytes]:
        self._check()
        with self._backend.lock:
            run = self._backend.runs.get(key)
            return run.records[after:][:most] if run else []

    def runs(self, which: Which = EVERY) -> list[RunMeta]:
        self._check()
        with self._backend.lock:
            found = [self._row(run, run.meta) for run in self._backend.runs.values() if run.meta is not None]
        return which.cut(found)

    def post(self, key: RunKey, number: int, record: bytes) -> bool:
        self._check()
        with self._backend.lock:
            run = self._backend.runs.get(key)
            if run is None or not run.records:
                raise not_found(key, self.url)
            if number != len(run.posts) + 1:
                return False
            run.posts.append(record)
            return True

    def posts(self, after: Mapping[RunKey, int]) -> dict[RunKey, list[bytes]]:
        self._check()
        with self._backend.lock:
            found = {key: self._backend.runs[key].posts[n:] for key, n in after.items() if key in self._backend.runs}
        return {key: posts for key, posts in found.items() if posts}

    def delete(self, lease: Lease) -> None:
        self._check()
        with self._backend.lock:
            if self._current(lease) is None:
                raise lost(lease)
            self._collect(self._backend.runs.pop(lease.key).blobs)

    def blob(self, digest: str) -> bytes:
        self._check()
        return sound_blob(digest, self._backend.blobs.get(stored_digest(digest, self.url)), self.url)

    def close(self) -> None:
        self._closed = True
        self._backend.owners.discard(self._owner)

    def abandon(self) -> None:
        """For tests: leave everything as the death of the process would."""
        self.close()

    def _current(self, lease: Lease) -> _Run | None:
        run = self._backend.runs.get(lease.key)
        return run if run is not None and run.lease == lease and lease.owner == self._owner else None

    def _append_one(self, item: Append) -> PerdureError | None:
        run = self._current(item.lease)
        if run is None:
            return lost(item.lease)
        if item.seq != len(run.records):
            return wrong_seq(item, len(run.records))
        self._keep(run, item.blobs)
        run.records.extend(item.records)
        run.size += item.size
        run.meta = item.meta if run.records else None
        return None

    def _keep(self, run: _Run, blobs: Mapping[str, bytes]) -> None:
        for digest, content in blobs.items():
            self._backend.blobs.setdefault(checked_digest(digest), content)
        run.blobs |= blobs.keys()

    def _collect(self, digests: set[str]) -> None:
        """Remove those of the blobs that no run was given."""
        for digest in digests.difference(*(run.blobs for run in self._backend.runs.values())):
            del self._backend.blobs[digest]

    def _rewrite(self, new: Rewrite) -> bool:
        """See Capabilities.rewrite."""
        self._check()
        with self._backend.lock:
            run = self._current(new.lease)
            if run is None:
                raise lost(new.lease)
            if (len(run.records), len(run.posts)) != (len(new.records), len(new.posts)):
                return False
            run.records, run.posts, run.meta, old = list(new.records), list(new.posts), new.meta, run.blobs
            run.blobs, run.size, run.snapshot = set(), new.size, None
            self._keep(run, new.blobs)
            self._collect(old)
            return True

    def _save_snapshot(self, lease: Lease, seq: int, content: bytes) -> None:
        """See Snapshots.save."""
        self._check()
        refuse_too_large(content)
        with self._backend.lock:
            run = self._current(lease)
            if run is None:
                raise lost(lease)
            run.snapshot = (seq, content)

    def _load_snapshot(self, key: RunKey) -> tuple[int, bytes] | None:
        """See Snapshots.load."""
        self._check()
        with self._backend.lock:
            run = self._backend.runs.get(key)
            return run.snapshot if run else None

    def _look(self, key: RunKey | None) -> Iterator[Finding]:
        """See Audit.look."""
        with self._backend.lock:
            given = set[str]().union(*(run.blobs for run in self._backend.runs.values()))
            orphans = sorted(self._backend.blobs.keys() - given) if key is None else []
        for digest in orphans:
            yield Finding(kind="orphan_blob", what=f"blob {digest} was given to no run.", place=digest)

    def _mend(self, finding: Finding, keep: Copies) -> None:
        """See Audit.mend."""
        with self._backend.lock:
            if not any(finding.place in run.blobs for run in self._backend.runs.values()):
                keep.save_blob(finding.place, self._backend.blobs.get(finding.place, b""))
                self._backend.blobs.pop(finding.place, None)

    def _stored_row(self, key: RunKey) -> bytes:
        with self._backend.lock:
            return msgspec.json.encode(self._backend.runs[key].meta)

    def _row(self, run: _Run, meta: RunMeta) -> RunMeta:
        return msgspec.structs.replace(
            meta,
            holder=self._holder(run),
            unread=max(len(run.posts) - meta.posts, 0),
            size=run.size,
        )

    def _holder(self, run: _Run) -> Lease | None:
        return run.lease if run.lease is not None and run.lease.owner in self._backend.owners else None
