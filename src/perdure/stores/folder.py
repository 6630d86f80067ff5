"""The folder of one run in a file store.

- ``run.json``: whose folder it is, and its id among the marks of blobs. Written once, before the folder gets its name.
- ``blobs``: names and sizes of the blobs that the run was given, a line each. Never synced: what a power cut loses of
  it leaves a blob behind that nobody needs, which ``perdure check`` finds.
- ``journal.jsonl``: the records. Only ever appended to; a torn tail is moved to ``journal.torn-<n>`` by a claim.
- ``inbox.jsonl``: what others than the holder say to the run. Only ever appended to, with the lock held; a torn tail
  was never acknowledged, and is written over by the next post.
- ``lease.json``: the last grant, replaced as a whole. ``lock`` holds a copy, so that one damaged file does not make the
  epoch start again, and its ``flock`` is held while a grant is checked together with the write that depends on it.
- ``snapshot``: what shortens the reading of the journal, see snapshots.py. Replaced as a whole, never synced: whoever
  reads it finds out whether it is whole.
- ``meta.json``: the run's row in listings, and size and time of change of the journal it belongs to. A cache, never
  synced: it spares listings the journals of finished runs, and a journal that anybody touched since is read again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec

from perdure.clock import Clock
from perdure.errors import CorruptStore, StoreError
from perdure.framing import Scan, joined, scan
from perdure.limits import MAX_BLOB, MAX_EPOCH, MAX_JOURNAL, MAX_NOTE, MAX_ROW, decoded
from perdure.model import Lease, RunKey, RunMeta
from perdure.stores import disk
from perdure.stores.snapshots import HEAD, packed, unpacked

_NOTE = re.compile(rb"^([0-9a-f]{64}) ([0-9]{1,15})$", re.M)


class Grant(msgspec.Struct, frozen=True):
    """A lease as stored: the run is known from the folder. ``owner`` is empty when nobody holds the run."""

    epoch: int = 0
    owner: str = ""
    pid: int = 0
    host: str = ""
    since: float = 0.0

    def lease(self, key: RunKey) -> Lease:
        return Lease(key, self.epoch, self.owner, self.pid, self.host, self.since)

    @classmethod
    def of(cls, lease: Lease) -> Grant:
        return cls(lease.epoch, lease.owner, lease.pid, lease.host, lease.since)


class Whose(msgspec.Struct, frozen=True):
    """What run.json says. Raises msgspec.DecodeError for an id that could not be part of a file's name."""

    goal: str
    episode: int
    id: Annotated[str, msgspec.Meta(pattern="^[0-9a-z-]{0,80}$")] = ""

    @property
    def key(self) -> RunKey:
        return RunKey(self.goal, self.episode)

    @property
    def mark(self) -> str:
        """The run's id among the marks of blobs; older folders have none but their name."""
        return self.id or disk.run_folder_name(self.key)


class _Stamp(msgspec.Struct, frozen=True):
    """The state of a journal, by what the file system says of it."""

    size: int = 0
    changed: int = 0
    """nanoseconds since 1970"""


class _Cache(msgspec.Struct, frozen=True):
    journal: _Stamp
    meta: RunMeta


WHOSE = msgspec.json.Decoder(Whose).decode
_GRANT = msgspec.json.Decoder(Grant)
_CACHE = msgspec.json.Decoder(_Cache)


class Gone(Exception):
    """The folder was deleted between finding it and locking it."""


class RunFolder:
    """The files of the run ``key`` in ``path``."""

    def __init__(self, path: Path, key: RunKey, mark: str = "") -> None:
        self.path = path
        self.key = key
        self.mark = mark
        self.journal = path / "journal.jsonl"
        self.inbox = path / "inbox.jsonl"
        self._lease = path / "lease.json"
        self._lock = path / "lock"
        self._meta = path / "meta.json"
        self._blobs = path / "blobs"
        self._snapshot = path / "snapshot"

    @classmethod
    def at(cls, path: Path) -> RunFolder | None:
        """The run in an existing folder, None if there is no folder. Raises CorruptStore if it does not say whose."""
        text = disk.read_file(path / "run.json", MAX_NOTE)
        if text is None:
            if disk.exists(path):
                raise CorruptStore(
                    f"{path} is no folder of a run: it has no run.json. Nothing was changed.",
                    hint="Move it out of the store, or restore it from a copy.",
                )
            return None
        try:
            whose = decoded(text, WHOSE)
        except ValueError as error:
            raise CorruptStore(
                f"{path / 'run.json'} is damaged ({error}). Nothing was changed.",
                hint='Write {"goal": ..., "episode": ...} into it again, or restore it from a copy.',
            ) from None
        key = whose.key
        if path.name != disk.run_folder_name(key):
            raise CorruptStore(f"{path} says that it is the folder of run {key}, which has another name.")
        if path.is_symlink():  # what is written into it would leave the store
            raise CorruptStore(f"{path} is a link, not the folder of run {key}.", hint="Move the folder itself here.")
        return cls(path, key, whose.mark)

    @classmethod
    def make(cls, path: Path, key: RunKey, temp: Path) -> None:
        """Create the folder of an empty run, whole or not at all. Does nothing if somebody else was faster.

        The name of ``temp``, which nobody else uses, is its id.
        """
        disk.make_dir(temp)
        disk.write_file(temp / "run.json", msgspec.json.encode(Whose(key.goal, key.episode, temp.name)) + b"\n")
        for name in ("journal.jsonl", "lock"):
            os.close(disk.create(temp / name, os.O_WRONLY))
        disk.sync_dir(temp)
        if disk.exists(path):
            disk.remove(temp)
        else:
            disk.move_new(temp, path)

    # -- the lease -------------------------------------------------------------------------------------------------

    @contextmanager
    def locked(self, wait: float, clock: Clock) -> Iterator[None]:
        """Hold the run's lock. Raises Gone when the run was deleted, StoreBusy after ``wait`` seconds."""
        try:
            fd = disk.open_existing(self._lock, os.O_RDWR)
        except FileNotFoundError:
            if not disk.exists(self.path):
                raise Gone from None
            raise CorruptStore(
                f"Run {self.key}: {self._lock} is missing. Nothing was changed.",
                hint="If no process executes the run, make an empty file of that name; the journal is not affected.",
            ) from None
        try:
            with disk.locked(fd, self._lock, wait, clock):
                if not _same_file(fd, self._lock):
                    raise Gone
                yield
        finally:
            os.close(fd)

    def grant(self) -> Grant | None:
        """The last grant; None if the run was never granted. Raises CorruptStore when both copies are damaged."""
        texts = [_note(self._lease), _note(self._lock)]
        grants = [grant for text in texts if text and (grant := _decode(text)) is not None]
        if grants:
            return max(grants, key=lambda grant: grant.epoch)  # of equals the first: lease.json is the synced one
        if texts[0] is None and not texts[1]:
            return None
        raise CorruptStore(
            f"Run {self.key}: {self._lease} and its copy in {self._lock.name} are both damaged. Nothing was changed.",
            hint="If no process executes the run, remove lease.json and empty the file lock; the journal is as it was.",
        )

    def write_grant(self, grant: Grant) -> None:
        """Replace the grant, durably. Only while holding the lock.

        The copy comes second: torn by a crash it may be anything, and then lease.json is there, whole, for every grant.
        """
        text = msgspec.json.encode(grant) + b"\n"
        disk.replace_file(self._lease, text)
        disk.write_file(self._lock, text, durable=False)

    # -- the journal -------------------------------------------------------------------------------------------------

    def scan(self) -> tuple[Scan, bytes]:
        """The records and all bytes of the journal. Raises CorruptStore with the path for damage in the middle, or if
        there is no journal: a folder gets its name with one inside, and a run that lost it is no new run."""
        data = disk.read_file(self.journal, MAX_JOURNAL)
        if data is None:
            if disk.exists(self.path):
                raise CorruptStore(
                    f"Run {self.key}: {self.journal} is missing. Nothing was changed.",
                    hint="Restore it from a copy; to give the run up, remove its folder.",
                )
            data = b""  # deleted in this very moment
        try:
            return scan(self.key, data), data
        except CorruptStore as error:
            raise CorruptStore(f"{self.journal}: {error.args[0]}", hint=error.hint) from None

    def mend(self) -> tuple[int, int, str]:
        """Cut a torn tail and make everything before it durable. Returns the number of records, their size, and a
        warning if something was cut. Only while holding the lock.

        What the reader finds here may never have been synced by the process that wrote it, and is built upon now.
        """
        found, data = self.scan()
        warning = ""
        if found.good < len(data):
            kept = self._keep(data[found.good :])
            warning = (
                f"Run {self.key}: the last {len(data) - found.good} bytes of {self.journal} were a record that a crash "
                f"cut short ({found.torn}); they were moved to {kept.name}. The {len(found.lines)} records before are "
                "intact."
            )
        if data:
            fd = disk.open_existing(self.journal, os.O_WRONLY)
            try:
                if warning:
                    disk.truncate(fd, found.good, self.journal)
                disk.sync(fd, self.journal)
            finally:
                os.close(fd)
        return len(found.lines), found.good, warning

    def write(self, records: bytes, size: int) -> int:
        """Append to a journal of ``size`` bytes without waiting for the device. Returns the descriptor to sync."""
        try:
            fd = disk.open_existing(self.journal, os.O_WRONLY | os.O_APPEND)
        except FileNotFoundError:
            raise CorruptStore(f"{self.journal} is missing while the run is being executed.") from None
        try:
            found = os.fstat(fd).st_size
            if found != size:
                raise CorruptStore(
                    f"{self.journal} has {found} bytes where {size} were written: another program changed it. "
                    "Nothing was written.",
                    hint="Find out what writes to this folder; then run again.",
                )
            disk.write_all(fd, records, self.journal)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def rewrite(self, records: Sequence[bytes], posts: Sequence[bytes], temp: Path) -> int:
        """Replace the journal and the inbox, and forget the row and the snapshot. Returns the journal's size. Only
        while holding the lock."""
        disk.remove(self._snapshot)  # before the records: they tell that all is done
        disk.remove(self._meta)
        for path, lines in ((self.inbox, posts), (self.journal, records)):
            if lines or path is self.journal:
                disk.replace_file(path, joined(lines), temp=temp)
        return self.size

    def _keep(self, torn: bytes) -> Path:
        taken = disk.list_dir(self.path)
        number = next(n for n in range(1, len(taken) + 2) if f"journal.torn-{n}" not in taken)
        path = self.path / f"journal.torn-{number}"
        disk.replace_file(path, torn)
        return path

    # -- blobs -----------------------------------------------------------------------------------------------------

    def note_blobs(self, blobs: Mapping[str, bytes], *, anew: bool = False) -> None:
        """Remember what the run was given; ``anew``: and nothing before."""
        lines = b"".join(b"%b %d\n" % (digest.encode(), len(content)) for digest, content in blobs.items())
        if anew:
            disk.write_file(self._blobs, lines, durable=False)
            return
        fd = disk.create(self._blobs, os.O_WRONLY | os.O_APPEND)
        try:
            disk.write_all(fd, lines, self._blobs)
        finally:
            os.close(fd)

    def blobs(self) -> list[tuple[str, int]]:
        """Names and sizes of what the run was given, as far as that is known; those that it was given twice twice."""
        found = _NOTE.findall(disk.read_file(self._blobs, MAX_JOURNAL) or b"")
        return [(digest.decode(), int(size)) for digest, size in found]

    # -- the snapshot ------------------------------------------------------------------------------------------------

    def save_snapshot(self, seq: int, content: bytes, temp: Path) -> None:
        """Replace the snapshot, without waiting for the device. Only while holding the lock."""
        disk.write_file(temp, packed(seq, content), durable=False)
        disk.rename(temp, self._snapshot)

    def snapshot(self) -> tuple[int, bytes] | None:
        """The snapshot, None if there is none. One that cannot be read is none: the journal says all that it does."""
        try:
            return unpacked(disk.read_file(self._snapshot, MAX_BLOB + HEAD) or b"")
        except StoreError:
            return None

    # -- the inbox -------------------------------------------------------------------------------------------------

    def posts(self) -> tuple[Scan, bytes]:
        """The posts, and all bytes of the inbox. Raises CorruptStore with the path for damage in the middle."""
        data = disk.read_file(self.inbox, MAX_JOURNAL) or b""
        try:
            return scan(self.key, data), data
        except CorruptStore as error:
            raise CorruptStore(f"{self.inbox}: {error.args[0]}", hint=error.hint) from None

    def tail(self, path: Path) -> tuple[bytes, str]:
        """What follows the last record of ``journal`` or ``inbox``, and why it is none: b"" for nothing. Raises
        CorruptStore for damage in the middle."""
        found, data = self.scan() if path == self.journal else self.posts()
        return data[found.good :], found.torn

    def mend_inbox(self, torn: int) -> None:
        """Cut the last bytes, which are no post. Only while holding the lock."""
        if torn:
            fd = disk.open_existing(self.inbox, os.O_WRONLY)
            try:
                disk.truncate(fd, self.inbox_size() - torn, self.inbox)
                disk.sync(fd, self.inbox)
            finally:
                os.close(fd)

    def inbox_size(self) -> int:
        """Bytes of the inbox; 0 if there is none."""
        try:
            return os.stat(self.inbox, follow_symlinks=False).st_size
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise disk.failure("look at", self.inbox, error) from error

    def post(self, number: int, record: bytes) -> bool:
        """Append a post durably, if ``number`` is the next one. Only while holding the lock."""
        found, data = self.posts()
        if number != len(found.lines) + 1:
            return False
        fd = disk.create(self.inbox, os.O_WRONLY | os.O_APPEND)
        try:
            if found.good < len(data):
                disk.truncate(fd, found.good, self.inbox)
            disk.write_all(fd, record, self.inbox)
            disk.sync(fd, self.inbox)
        finally:
            os.close(fd)
        disk.sync_dir(self.path)  # whoever made the file may not have got as far
        return True

    @property
    def size(self) -> int:
        """Bytes of the journal."""
        return self._stamp().size

    # -- the row in listings -----------------------------------------------------------------------------------------

    def cache_meta(self, meta: RunMeta, size: int) -> None:
        """Remember the row that belongs to a journal of ``size`` bytes. Only while holding the lock."""
        stamp = self._stamp()
        if stamp.size == size:  # else somebody else writes to it, which the next append reports
            disk.write_file(self._meta, msgspec.json.encode(_Cache(stamp, meta)) + b"\n", durable=False)

    def cached_meta(self) -> tuple[RunMeta | None, bool]:
        """The remembered row, if there is one, and whether it belongs to the journal as it is now."""
        try:
            cache = decoded(disk.read_file(self._meta, MAX_ROW) or b"", _CACHE.decode)
        except (ValueError, CorruptStore):  # a cache that was never synced may be anything after a power cut
            return None, False
        if cache.meta.key != self.key:
            return None, False
        return cache.meta, cache.journal == self._stamp()

    def _stamp(self) -> _Stamp:
        try:
            found = os.stat(self.journal, follow_symlinks=False)
        except FileNotFoundError:
            return _Stamp()
        except OSError as error:
            raise disk.failure("look at", self.journal, error) from error
        return _Stamp(found.st_size, found.st_mtime_ns)


def epoch_floor(path: Path, least: int, wait: float, clock: Clock) -> int:
    """The largest epoch of any deleted run, after raising it durably to ``least``: a run made again starts above it."""
    fd = disk.create(path, os.O_RDWR)
    try:
        with disk.locked(fd, path, wait, clock):
            text = disk.read_start(fd, 20, path)
            if text.strip(b"0123456789") or int(text or b"0") >= MAX_EPOCH:
                raise CorruptStore(f"{path} is damaged. Nothing was changed.", hint="Restore it from a copy.")
            floor = int(text or b"0")
            if least > floor:
                disk.write_all(fd, b"%020d" % least, path)
                disk.sync(fd, path)
            return max(floor, least)
    finally:
        os.close(fd)


def _same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _note(path: Path) -> bytes | None:
    """A small file; what is no file, or far too large, is as good as damaged."""
    try:
        return disk.read_file(path, MAX_NOTE)
    except CorruptStore:
        return b"damaged"


def _decode(text: bytes) -> Grant | None:
    try:
        grant = decoded(text, _GRANT.decode)
    except ValueError:
        return None
    return grant if 0 <= grant.epoch < MAX_EPOCH else None
