"""The store made of plain files: one folder a run, readable with nothing but a pager.

    DIR/format.json            version of this layout
    DIR/runs/<name>/           one run: see folder.py
    DIR/blobs/                 large values, each stored once: see blobs.py
    DIR/owners/<name>.lock     open handles: see owners.py
    DIR/floor                  largest epoch of any deleted run
    DIR/tmp/<owner>-<n>        files and folders that have no name yet, or none any more; a dead owner's are removed

Records are in the order in which they were acknowledged, and an append is one write and one sync. Nothing is ever
changed in place but ``floor`` and the copy of a lease, which nobody reads without the lock or without another copy.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from perdure import states
from perdure.clock import SYSTEM, Clock
from perdure.errors import CorruptStore, NewerFormat, PerdureError, StoreBusy, StoreError
from perdure.fold import summarise as fold_summary
from perdure.framing import joined
from perdure.limits import MAX_JOURNAL, MAX_NOTE, decoded
from perdure.model import Lease, RunKey, RunMeta
from perdure.stores import disk
from perdure.stores.base import EVERY, Append, Capabilities, Rewrite, Snapshots, Summarise, Which
from perdure.stores.blobs import Blobs
from perdure.stores.file_audit import FileAudit
from perdure.stores.file_names import Names
from perdure.stores.folder import WHOSE, Gone, Grant, RunFolder, epoch_floor
from perdure.stores.handle import (
    Handle,
    held,
    lost,
    not_found,
    nothing_there,
    stored_digest,
    unusable,
    wrong_seq,
)
from perdure.stores.mounts import remote_warnings
from perdure.stores.owners import Owner
from perdure.stores.snapshots import refuse_too_large

VERSION: Final = 2
_AT_ONCE = 64
"""journals of a batch that are open at a time: few enough for the usual limit of 1,024 descriptors"""

_DIGEST: Final = re.compile(rb"[0-9a-f]{64}")


class _Format(msgspec.Struct):
    store: str
    version: int


class _Held(msgspec.Struct):
    """A run that this handle claimed."""

    lease: Lease
    folder: RunFolder
    seq: int
    size: int
    meta: RunMeta | None = None
    cached: bool = False
    """meta.json says what ``meta`` says"""
    given: set[str] = set()
    """blobs that were kept under this lease"""
    lines: list[bytes] = []
    """its records, as of some moment: those that are there do not change"""


class FileStore(Handle):
    """A Store in a folder. See base.Store for what the verbs promise.

    ``wait``: seconds to wait for the lock of a run before StoreBusy. ``summarise`` computes the listing row of a run
    that was interrupted or is being written. ``create=False`` raises ConfigError when there is no store, and makes
    nothing.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        create: bool = True,
        wait: float = 10.0,
        clock: Clock = SYSTEM,
        summarise: Summarise = fold_summary,
    ) -> None:
        self.root = Path(root).expanduser().resolve()
        super().__init__(f"file:{self.root}", clock)
        self._runs, self._tmp = self.root / "runs", self.root / "tmp"
        self._blobs = Blobs(self.root / "blobs", wait, clock)
        self._names = Names(self._runs, clock)
        self._patience = self._wait = wait
        self._summarise = summarise
        self._held: dict[RunKey, _Held] = {}
        self._inboxes: dict[RunKey, tuple[int, int]] = {}
        """bytes and posts of inboxes as they were read last: who executes runs looks often"""
        self._temps = 0
        try:
            self._prepare(create)
            self._warnings += remote_warnings(self.root)
        except BaseException as error:
            if hasattr(self, "_owner"):
                self._owner.abandon()
            raise unusable(error) from error.__cause__

    @property
    def capabilities(self) -> Capabilities:
        audit = FileAudit(
            self.root,
            self._blobs,
            self._owner.alive,
            self.claim,
            self.release,
            self._taken,
            self._wait,
            self._clock,
        ).audit()
        return Capabilities(
            durable=True,
            shared=True,
            outputs=self.root / "runs",
            hurry=self._hurry,
            rewrite=self._rewrite,
            snapshots=Snapshots(self._save_snapshot, self._load_snapshot),
            audit=audit,
        )

    # -- the verbs -------------------------------------------------------------------------------------------------

    def claim(self, key: RunKey) -> Lease:
        self._check()
        with self._guard():
            while True:
                folder = self._folder(key)
                try:
                    with folder.locked(self._wait, self._clock):
                        return self._claim_locked(folder)
                except Gone:  # deleted by its holder in this very moment: make it again
                    continue

    def release(self, lease: Lease) -> None:
        self._check()
        run = self._held.get(lease.key)
        if run is None or run.lease != lease:
            return
        with self._guard(), self._current(run) as current:
            if current:
                self._save_meta(run)
                run.folder.write_grant(Grant(lease.epoch))
        self._held.pop(lease.key, None)

    def append(self, batch: Sequence[Append]) -> list[PerdureError | None]:
        self._check()
        results: list[PerdureError | None] = []
        with self._guard():
            for first in range(0, len(batch), _AT_ONCE):
                results += self._append_some(batch[first : first + _AT_ONCE])
        return results

    def read(self, key: RunKey, after: int = 0, most: int | None = None) -> list[bytes]:
        self._check()
        run = self._held.get(key)
        if most is not None and run is not None:  # piece by piece, as whoever goes on from a snapshot reads
            if len(run.lines) < min(after + most, run.seq):
                run.lines = self._lines(key)
            return run.lines[after : after + most]
        return self._lines(key)[after:][:most]

    def _lines(self, key: RunKey) -> list[bytes]:
        folder = RunFolder.at(self._path(key))
        return folder.scan()[0].lines if folder else []

    def runs(self, which: Which = EVERY) -> list[RunMeta]:
        self._check()
        alive: dict[str, bool] = {"": False}
        by_name = which.due is None and which.later is None
        found: list[RunMeta] = []
        for name in self._names.of(which):
            row = self._row(self._runs / name, alive)
            if row is not None and which.includes(row):
                found.append(row)
                if by_name and len(found) == which.limit:
                    break
        return which.cut(found)

    def post(self, key: RunKey, number: int, record: bytes) -> bool:
        self._check()
        folder = RunFolder.at(self._path(key))
        if folder is None or not folder.size:
            raise not_found(key, self.url)
        with self._guard():
            try:
                with folder.locked(self._wait, self._clock):
                    return folder.post(number, record)
            except Gone:
                raise not_found(key, self.url) from None

    def posts(self, after: Mapping[RunKey, int]) -> dict[RunKey, list[bytes]]:
        self._check()
        found: dict[RunKey, list[bytes]] = {}
        for key, number in after.items():
            folder = RunFolder(self._path(key), key)
            size = folder.inbox_size()
            if self._inboxes.get(key, (0, 0)) == (size, number):  # as it was when it had been read so far
                continue
            lines = folder.posts()[0].lines if size else []
            self._inboxes[key] = (size, len(lines))
            if lines[number:]:
                found[key] = lines[number:]
        return found

    def delete(self, lease: Lease) -> None:
        self._check()
        run = self._held.get(lease.key)
        if run is None or run.lease != lease:
            raise lost(lease)
        trash = self._temp()
        with self._guard():
            with self._current(run) as current:
                if not current:
                    raise lost(lease)
                self._floor(lease.epoch)
                disk.move(run.folder.path, trash)
            del self._held[lease.key]
            self._discard(trash)

    def blob(self, digest: str) -> bytes:
        self._check()
        return self._blobs.read(stored_digest(digest, self.url))

    def close(self) -> None:
        if self._closed or self._foreign:
            return
        self._closed = True
        try:
            if self._broken is None:
                for run in [run for run in self._held.values() if not run.cached]:
                    with self._current(run) as current:
                        if current:
                            self._save_meta(run)
        finally:
            self._owner.close()

    def abandon(self) -> None:
        """For tests: leave everything as the death of the process would."""
        self._closed = True
        self._owner.abandon()

    # -- claims ----------------------------------------------------------------------------------------------------

    def _folder(self, key: RunKey) -> RunFolder:
        """The run's folder, made if there is none."""
        path = self._path(key)
        if not disk.exists(path / "run.json"):
            RunFolder.make(path, key, self._temp())
        folder = RunFolder.at(path)
        if folder is None:
            return self._folder(key)
        if folder.key != key:
            raise CorruptStore(f"{path} belongs to run {folder.key}, not to {key}. Nothing was changed.")
        return folder

    def _claim_locked(self, folder: RunFolder) -> Lease:
        key = folder.key
        last = folder.grant() or Grant(self._floor())
        if self._owner.alive(last.owner):
            raise held(last.lease(key))
        seq, size, warning = folder.mend()
        if warning:
            self._warnings.append(warning)
        owner = self._owner
        lease = Lease(key, last.epoch + 1, owner.id, owner.pid, owner.host, self._clock.now())
        folder.write_grant(Grant.of(lease))
        meta, cached = folder.cached_meta()
        self._held[key] = _Held(lease, folder, seq, size, meta if cached else None, cached)
        return lease

    @contextmanager
    def _current(self, run: _Held) -> Iterator[bool]:
        """Hold the run's lock; True if the lease is current as long as we do. Forgets the run if it is not."""
        try:
            with run.folder.locked(self._wait, self._clock):
                grant = run.folder.grant()
                current = grant is not None and (grant.epoch, grant.owner) == (run.lease.epoch, self._owner.id)
                if not current:
                    self._held.pop(run.lease.key, None)
                yield current
                return
        except Gone:
            self._held.pop(run.lease.key, None)
        yield False

    # -- appending -------------------------------------------------------------------------------------------------

    def _append_some(self, batch: Sequence[Append]) -> list[PerdureError | None]:
        """Write all, then wait for the device: the first sync often takes the others' bytes along."""
        results: list[PerdureError | None] = []
        written: list[tuple[int, Path]] = []
        try:
            for item in batch:
                results.append(self._append_one(item, written))
            for fd, path in written:
                disk.sync(fd, path)
        finally:
            for fd, _ in written:
                os.close(fd)
        return results

    def _append_one(self, item: Append, written: list[tuple[int, Path]]) -> PerdureError | None:
        run = self._held.get(item.lease.key)
        if run is None or run.lease != item.lease:
            return lost(item.lease)
        try:
            with self._current(run) as current:
                if not current:
                    return lost(item.lease)
                if item.seq != run.seq:
                    return wrong_seq(item, run.seq)
                self._keep(run, item.blobs)
                if item.records:
                    self._write(run, item, written)
                self._note_meta(run, item.meta)
        except (StoreBusy, CorruptStore) as error:  # this run's trouble; nothing of it was written, the others go on
            return error
        return None

    def _write(self, run: _Held, item: Append, written: list[tuple[int, Path]]) -> None:
        data = joined(item.records, more=any(path == run.folder.journal for _, path in written))
        if not run.seq and len(item.records) > 1 and not run.folder.size:  # all of them or none: see Append
            disk.replace_file(run.folder.journal, data, temp=self._temp())
        else:
            written.append((run.folder.write(data, run.size), run.folder.journal))
        run.size += len(data)
        run.seq += len(item.records)

    def _note_meta(self, run: _Held, meta: RunMeta) -> None:
        """Take the new row; write it when the status changes. In between, and after a crash, listings fold the journal:
        a file more for each append would cost more than it saves."""
        changed = run.meta is None or run.meta.status != meta.status
        run.meta, run.cached = meta, False
        if changed:
            self._save_meta(run)

    def _save_meta(self, run: _Held) -> None:
        if run.meta is not None and run.seq and not run.cached:
            run.folder.cache_meta(run.meta, run.size)
            run.cached = True

    def _keep(self, run: _Held, blobs: Mapping[str, bytes]) -> None:
        new = {name: blobs[name] for name in blobs.keys() - run.given}
        if new:
            self._blobs.keep(run.folder.mark, new, self._temp())
            run.given |= new.keys()
        if blobs:
            run.folder.note_blobs(blobs)

    def _rewrite(self, new: Rewrite) -> bool:
        """See Capabilities.rewrite."""
        self._check()
        run = self._held.get(new.lease.key)
        if run is None or run.lease != new.lease:
            raise lost(new.lease)
        with self._guard(), self._current(run) as current:
            if not current:
                raise lost(new.lease)
            if (run.seq, len(run.folder.posts()[0].lines)) != (len(new.records), len(new.posts)):
                return False
            old = {digest for digest, _ in run.folder.blobs()}
            self._keep(run, new.blobs)
            self._blobs.drop(run.folder.mark, old - new.blobs.keys())  # before the records: they tell that all is done
            run.size = run.folder.rewrite(new.records, new.posts, self._temp())
            run.folder.note_blobs(new.blobs, anew=True)
            run.meta, run.cached, run.lines = new.meta, False, []
            self._save_meta(run)
        return True

    def _hurry(self, hurried: bool) -> None:
        """See Capabilities.hurry."""
        self._wait = 0.0 if hurried else self._patience

    def _save_snapshot(self, lease: Lease, seq: int, content: bytes) -> None:
        """See Snapshots.save."""
        self._check()
        refuse_too_large(content)
        run = self._held.get(lease.key)
        if run is None or run.lease != lease:
            raise lost(lease)
        with self._guard(), self._current(run) as current:
            if not current:
                raise lost(lease)
            run.folder.save_snapshot(seq, content, self._temp())

    def _load_snapshot(self, key: RunKey) -> tuple[int, bytes] | None:
        """See Snapshots.load."""
        self._check()
        return RunFolder(self._path(key), key).snapshot()

    # -- listing ---------------------------------------------------------------------------------------------------

    def _row(self, path: Path, alive: dict[str, bool]) -> RunMeta | None:
        """A run's row; None for a run without records. What is damaged is told as a warning, so that the rest shows."""
        try:
            folder = RunFolder.at(path)
            if folder is None:
                return None
            meta, fits = folder.cached_meta()
            if not fits:
                meta = self._fold(folder, meta)
            if meta is None:
                return None
            unread = self._unread(folder, meta.posts)
            size = folder.size + sum(size for _, size in folder.blobs())
            return msgspec.structs.replace(meta, holder=self._holder(folder, alive), unread=unread, size=size)
        except CorruptStore as error:
            self._warnings.append(str(error))
            return None

    def _taken(self, folder: RunFolder) -> int:
        lines = folder.scan()[0].lines
        return self._summarise(folder.key, lines).posts if lines else 0

    def _unread(self, folder: RunFolder, taken: int) -> int:
        try:
            return max(len(folder.posts()[0].lines) - taken, 0)
        except CorruptStore as error:
            self._warnings.append(str(error))
            return 0

    def _fold(self, folder: RunFolder, old: RunMeta | None) -> RunMeta | None:
        try:
            lines = folder.scan()[0].lines
            return self._summarise(folder.key, lines) if lines else None
        except (CorruptStore, NewerFormat) as error:
            self._warnings.append(str(error))
            row = old or RunMeta(goal=folder.key.goal, episode=folder.key.episode, status=states.FAILED)
            return msgspec.structs.replace(row, reason=error.args[0])

    def _holder(self, folder: RunFolder, alive: dict[str, bool]) -> Lease | None:
        grant = folder.grant()
        if grant is None:
            return None
        if grant.owner not in alive:
            alive[grant.owner] = self._owner.alive(grant.owner)
        return grant.lease(folder.key) if alive[grant.owner] else None

    # -- places ----------------------------------------------------------------------------------------------------

    def _path(self, key: RunKey) -> Path:
        return self._runs / disk.run_folder_name(key)

    def _temp(self) -> Path:
        self._temps += 1
        return self._tmp / f"{self._owner.id}-{self._temps}"

    def _floor(self, least: int = 0) -> int:
        return epoch_floor(self.root / "floor", least, self._wait, self._clock)

    # -- opening and failing ---------------------------------------------------------------------------------------

    def _prepare(self, create: bool) -> None:
        """Make the folders, in an order that tells a crash in between from a folder of somebody else."""
        path = self.root / "format.json"
        for folder in (self._runs, self._blobs.root, self._tmp, self.root / "owners"):
            disk.refuse_link(folder)
        settled = disk.exists(self._runs)  # looked at first: it appears after format.json
        text = disk.read_file(path, MAX_NOTE)
        if text is None and settled:
            raise CorruptStore(
                f"{self.root} has a folder 'runs' and no format.json: it is not a Perdure store, or a damaged one. "
                "Nothing was changed.",
                hint="Choose another folder, or restore format.json from a copy.",
            )
        if text is None and not create:
            raise nothing_there(self.url)
        version = VERSION if text is None else _check_format(path, text)
        disk.make_dir(self._tmp)
        self._owner = Owner(self.root / "owners", self._clock)
        disk.make_dir(self._blobs.root)
        if version < 2:
            self._mark_blobs()
        if text is None or version < VERSION:
            content = msgspec.json.encode(_Format("perdure", VERSION)) + b"\n"
            disk.replace_file(path, content, temp=self._temp())
        disk.make_dir(self._runs)
        self._sweep()

    def _mark_blobs(self) -> None:
        """A store of format 1 does not know which runs were given a blob: whatever journal has its name."""
        for name in disk.list_dir(self._runs):
            folder = RunFolder(self._runs / name, RunKey(name), name)
            found = {digest.decode() for digest in _DIGEST.findall(disk.read_file(folder.journal, MAX_JOURNAL) or b"")}
            blobs = {digest: self._blobs.read(digest) for digest in sorted(found) if self._blobs.there(digest)}
            if blobs:
                self._blobs.keep(folder.mark, blobs, self._temp())
                folder.note_blobs(blobs, anew=True)

    def _sweep(self) -> None:
        self._owner.sweep()
        alive: dict[str, bool] = {}
        for name in disk.list_dir(self._tmp):
            owner = name.partition("-")[0]
            if not alive.setdefault(owner, self._owner.alive(owner)):
                self._discard(self._tmp / name)

    def _discard(self, path: Path) -> None:
        """Remove what has no name any more, or none yet; a run with the blobs that only it was given."""
        with suppress(ValueError):  # it was not written whole yet
            whose = decoded(disk.read_file(path / "run.json", MAX_NOTE) or b"", WHOSE)
            self._blobs.drop(whose.mark, {digest for digest, _ in RunFolder(path, whose.key).blobs()})
        disk.remove(path)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """After a failed write or sync the handle is of no use: nobody knows what the device has (rel:D4)."""
        try:
            yield
        except CorruptStore:  # one run is damaged, or a blob; nothing was written
            raise
        except StoreError as error:
            self._broken = error
            raise


def _check_format(path: Path, text: bytes) -> int:
    try:
        found = decoded(text, msgspec.json.Decoder(_Format).decode)
    except ValueError as error:
        found, problem = None, str(error)
    if found is None or found.store != "perdure" or found.version < 1:
        problem = problem if found is None else "it is another program's"
        raise CorruptStore(
            f"{path} is damaged or does not belong to Perdure ({problem}). Nothing was changed.",
            hint="Restore it from a copy, or choose another folder.",
        )
    if found.version > VERSION:
        raise NewerFormat(
            f"{path} has format {found.version}; this Perdure knows formats up to {VERSION}. Nothing was changed.",
            hint="Use the newer Perdure, or another folder.",
        )
    return found.version
