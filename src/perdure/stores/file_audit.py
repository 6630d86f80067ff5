"""What a file store tells of itself besides its journals: torn tails, what is nobody's, and who may read it.

Nothing is read under a lock unless it looks odd; then it is looked at again while its lock is held, so that what is
just being written is not taken for torn.

Which blobs are orphans is told by their marks. The ids of all runs would take memory for each run, so they are kept as
bits of a table of a fixed size: an id that is not in it is of no run, and one that seems to be in it may not be, so
some orphans (one in seven thousand, with a hundred thousand runs) are overlooked. What is found is compared with all
ids again, which are read *after* the mark: a run has its folder before it is given anything, and ids never come again.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from perdure.clock import Clock
from perdure.errors import CorruptStore, FixError, StoreBusy
from perdure.limits import MAX_JOURNAL, MAX_NOTE, MAX_ROW, decoded
from perdure.model import OWN, Lease, RunKey
from perdure.stores import disk
from perdure.stores.blobs import Blobs
from perdure.stores.findings import Audit, Copies, Finding, empty_run
from perdure.stores.folder import WHOSE, Gone, RunFolder

_TOP: Final = frozenset({"format.json", "runs", "blobs", "owners", "floor", "tmp"})
_EMPTY: Final = frozenset({"run.json", "journal.jsonl", "lock", "lease.json", "meta.json", "snapshot"})
"""files that a run may have without having anything"""
_FILES: Final = _EMPTY | {"blobs", "inbox.jsonl"}
_TORN: Final = re.compile(r"journal\.torn-\d+")
_TEMP: Final = re.compile(r"\..+\.\d+\.tmp")
"""made by disk.replace_file, and renamed when it is whole"""
_BLOB: Final = re.compile(r"[0-9a-f]{64}(\..+)?")
_SUSPECTS: Final = 1000
"""marks that are compared with all ids at a time"""
_BITS: Final = 1 << 24


class FileAudit(NamedTuple):
    """Looks at what is below ``root``."""

    root: Path
    blobs: Blobs
    alive: Callable[[str], bool]
    """whether an owner lives"""
    claim: Callable[[RunKey], Lease]
    release: Callable[[Lease], None]
    taken: Callable[[RunFolder], int]
    """how many posts of its inbox the journal of a run has"""
    wait: float
    clock: Clock

    def audit(self) -> Audit:
        return Audit(self.look, self.mend, self.row, self.root / "repaired")

    def look(self, key: RunKey | None) -> Iterator[Finding | None]:
        if key is not None:
            yield from self._folder(self.root / "runs" / disk.run_folder_name(key))
            return
        open_ = _Open(self.root)
        for name in _TOP:
            open_.see(self.root / name)
        for name in disk.list_dir(self.root):
            if name not in _TOP and not name.startswith((".", "repaired")):
                yield self._stray(self.root / name)
        yield from self._floor()
        named = True
        for name in disk.scan_dir(self.root / "runs"):
            if name[0] == ".":
                continue
            for finding in self._folder(self.root / "runs" / name, open_):
                named = named and finding.kind != "damaged"
                yield finding
            yield None
        yield from open_.finding()
        if named:  # else the ids of some run are not known
            yield from self._orphans()

    def mend(self, finding: Finding, keep: Copies) -> None:
        if finding.kind == "orphan_blob":
            digest, _, run = finding.place.partition(".")
            self.blobs.collect(digest, run, lambda content: keep.save_blob(digest, content))
            return
        assert finding.run is not None
        folder = RunFolder.at(self.root / "runs" / disk.run_folder_name(finding.run))
        if folder is None:
            return
        path = self.root / finding.place
        if finding.kind == "torn_tail" and path == folder.journal:  # a claim cuts it
            self._keep_tail(folder, path, keep)
        lease = self.claim(finding.run)
        try:
            if finding.kind == "leftover":
                keep.save(finding.place, disk.read_file(path, MAX_JOURNAL) or b"")
                disk.remove(path)
            elif path == folder.inbox:
                with folder.locked(self.wait, self.clock):
                    folder.mend_inbox(self._keep_tail(folder, path, keep))
        finally:
            self.release(lease)

    def row(self, key: RunKey) -> bytes:
        return disk.read_file(self.root / "runs" / disk.run_folder_name(key) / "meta.json", MAX_ROW) or b""

    # -- runs ------------------------------------------------------------------------------------------------------

    def _folder(self, path: Path, open_: _Open | None = None) -> Iterator[Finding]:
        """What the journal and its row do not tell."""
        place = str(path.relative_to(self.root))
        try:
            folder = RunFolder.at(path)
            if folder is None:  # deleted in this moment
                return
            key = folder.key
            grant = folder.grant()
            if not disk.exists(path / "lock") and disk.exists(path):
                raise CorruptStore(f"Run {key}: {path / 'lock'} is missing.", hint="Make an empty file of that name.")
        except CorruptStore as problem:  # such a run is in no listing
            yield Finding(kind="damaged", what=str(problem), place=place)
            return
        if open_ is not None:
            for name in (".", *disk.list_dir(path)):
                open_.see(path / name)
        if grant is not None and self.alive(grant.owner):
            return
        yield from self._left(folder)

    def _left(self, folder: RunFolder) -> Iterator[Finding]:
        """What a dead holder left: so it is if it is still there when nobody else can change anything."""
        found = [*self._tails(folder), *self._files(folder)]
        if not found and folder.size:
            return
        try:
            with folder.locked(self.wait, self.clock):
                grant = folder.grant()
                if grant is not None and self.alive(grant.owner):
                    return
                again = {*self._tails(folder), *self._files(folder)}
                empty = not folder.size and not set(disk.list_dir(folder.path)) - _EMPTY
        except (StoreBusy, Gone):
            return
        yield from (finding for finding in found if finding in again)
        if empty and grant is not None and not folder.key.goal.startswith(OWN):  # without one it is just being made
            yield empty_run(folder.key)

    def _tails(self, folder: RunFolder) -> Iterator[Finding]:
        for path, what in ((folder.journal, "record"), (folder.inbox, "post")):
            try:
                torn, why = folder.tail(path)
                # a post that the journal has was acknowledged: without it the inbox is damaged, not torn
                lost = path == folder.inbox and torn and len(folder.posts()[0].lines) < self.taken(folder)
            except (CorruptStore, FixError):  # damage in the middle is told of by whoever reads it
                continue
            if torn and not lost:
                said = f"the last {len(torn)} bytes of {path} are a {what} that a crash cut short ({why})."
                place = str(path.relative_to(self.root))
                yield Finding(kind="torn_tail", what=f"run {folder.key}: {said}", run=folder.key, place=place)

    def _files(self, folder: RunFolder) -> Iterator[Finding]:
        for below in (folder.path, folder.path / "outputs"):
            for name in disk.list_dir(below):
                if _TEMP.fullmatch(name):
                    what = f"run {folder.key}: {below / name} was being written when its process died."
                    place = str((below / name).relative_to(self.root))
                    yield Finding(kind="leftover", what=what, run=folder.key, place=place)
                elif below == folder.path and not (name in _FILES or name == "outputs" or _TORN.fullmatch(name)):
                    yield self._stray(below / name)

    def _keep_tail(self, folder: RunFolder, path: Path, keep: Copies) -> int:
        """Returns how long the torn tail is that was copied."""
        torn, _ = folder.tail(path)
        if torn:
            keep.save(f"{path.relative_to(self.root)}.torn", torn)
        return len(torn)

    # -- what is no run's --------------------------------------------------------------------------------------------

    def _stray(self, path: Path) -> Finding:
        return Finding(kind="stray_file", what=f"{path} is not of the store.", place=str(path.relative_to(self.root)))

    def _floor(self) -> Iterator[Finding]:
        text = disk.read_file(self.root / "floor", MAX_NOTE) or b""
        if text.strip(b"0123456789"):
            what = f"{self.root / 'floor'}, the largest epoch of deleted runs, is damaged. Restore it from a copy."
            yield Finding(kind="lease", what=what, place="floor")

    def _orphans(self) -> Iterator[Finding]:
        known = _Ids()
        for run in self._ids():
            known.add(run)
        suspects: list[str] = []
        names = self.blobs.names()
        name = next(names, "")
        while name:
            after = next(names, "")
            digest, _, run = name.partition(".")
            if not _BLOB.fullmatch(name):
                yield self._stray(self.blobs.root / name[:2] / name)
            elif run not in known if run else not after.startswith(f"{digest}."):
                suspects.append(name)
            if len(suspects) == _SUSPECTS or not after:
                yield from self._confirmed(suspects)
                suspects = []
            name = after

    def _confirmed(self, suspects: Sequence[str]) -> Iterator[Finding]:
        runs = {name.partition(".")[2] for name in suspects} - {""}
        if runs:
            for run in self._ids():
                runs.discard(run)
        for name in suspects:
            digest, _, run = name.partition(".")
            if run in runs if run else self.blobs.is_bare(digest):
                given = "was given to a run that is gone" if run else "was given to no run"
                what = f"blob {digest} {given}, and no record needs it."
                yield Finding(kind="orphan_blob", what=what, place=name)

    def _ids(self) -> Iterator[str]:
        """Of all runs, and of those that are being deleted: these are in the second folder if they are not in the first
        any more."""
        for below in ("runs", "tmp"):
            for name in disk.scan_dir(self.root / below):
                try:
                    text = disk.read_file(self.root / below / name / "run.json", MAX_NOTE)
                    if text is not None:
                        yield decoded(text, WHOSE).mark
                except ValueError:  # not written whole yet; or damaged since, and then nothing is removed
                    continue


class _Ids:
    """A set of ids that takes the same memory for any number of them; it may seem to have one that it has not."""

    def __init__(self) -> None:
        self._bits = bytearray(_BITS // 8)

    def add(self, name: str) -> None:
        for bit in _bits(name):
            self._bits[bit >> 3] |= 1 << (bit & 7)

    def __contains__(self, name: str) -> bool:
        return all(self._bits[bit >> 3] & 1 << (bit & 7) for bit in _bits(name))


def _bits(name: str) -> tuple[int, int]:
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "big") % _BITS, int.from_bytes(digest[4:], "big") % _BITS


class _Open:
    """Counts files that others than their owner may read or write (rel:S13)."""

    def __init__(self, root: Path) -> None:
        self._root, self._count, self._first = root, 0, ""

    def see(self, path: Path) -> None:
        try:
            mode = os.lstat(path).st_mode
        except OSError:  # it is not there, or has just gone
            return
        if mode & 0o077 and not stat.S_ISLNK(mode):
            self._count += 1
            self._first = self._first or str(path)

    def finding(self) -> Iterator[Finding]:
        if self._count:
            others = f" and {self._count - 1} more" if self._count > 1 else ""
            what = f"{self._first}{others} can be read or written by other users. chmod -R go= {self._root}"
            yield Finding(kind="mode", what=what, place=self._first)
