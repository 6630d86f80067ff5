"""Who holds a run, on one machine: a lease is good as long as its owner's lock file is locked.

Every store handle is an owner with a random name and keeps an exclusive ``flock`` on ``<folder>/<name>.lock`` while
it is open. The kernel drops the lock when the process dies, however it dies, so a dead process's runs are free at
once, and a pid that was given to another process means nothing (rel:C10). Whoever asks after an owner tries a
*shared* lock: it is refused exactly while the owner lives, and two who ask at once do not take each other for the
owner.

A file gets its name only when it is locked, so that a file that can be locked is always a dead owner's. Whoever finds
one removes it. Locks belong to open files, not to processes: a forked child would keep its parent's, so it closes its
copies.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import weakref
from pathlib import Path

import msgspec

from perdure.clock import SYSTEM, Clock, process_identity
from perdure.stores import disk

_NAME = re.compile(r"[0-9a-f]{32}")
_SUFFIX = ".lock"


class Owner:
    """A living store handle. It lives until ``close``, until it is garbage, or until the process dies."""

    def __init__(self, folder: Path, clock: Clock = SYSTEM) -> None:
        self.folder = folder
        disk.make_dir(folder)
        self.pid, self.host = process_identity()
        fd = -1
        while fd < 0:
            self.id = clock.new_id()
            fd = self._create()
        self._drop = weakref.finalize(self, os.close, fd)
        _owners.add(self)

    def alive(self, owner: str) -> bool:
        """Whether the handle of that name is open in a living process; removes the file of a dead one."""
        if not _NAME.fullmatch(owner):
            return False
        if owner == self.id:
            return self._drop.alive
        return not _dead(self.folder / (owner + _SUFFIX))

    def sweep(self) -> None:
        """Remove what dead owners left in the folder."""
        for name in os.listdir(self.folder):
            if name.endswith(_SUFFIX) and name != self.id + _SUFFIX:
                _dead(self.folder / name)

    def close(self) -> None:
        """Stop being an owner: all leases of this name are free."""
        try:
            if self._drop.alive:
                disk.remove(self._path)
        finally:
            self._drop()

    def abandon(self) -> None:
        """For tests: what the death of the process does to the lock."""
        self._drop()

    @property
    def _path(self) -> Path:
        return self.folder / (self.id + _SUFFIX)

    def _create(self) -> int:
        """The descriptor of the locked file, or -1 if somebody took the new file for a dead owner's."""
        temp = self.folder / f".{self.id}{_SUFFIX}"
        fd = disk.create(temp, os.O_RDWR | os.O_EXCL)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            disk.write_all(fd, msgspec.json.encode({"pid": self.pid, "host": self.host}), temp)
            disk.rename(temp, self._path)
        except BaseException as error:
            os.close(fd)
            if isinstance(error, BlockingIOError) or disk.cause(error) == errno.ENOENT:
                return -1
            raise
        return fd


def _dead(path: Path) -> bool:
    """Whether nobody holds the lock of that file; it is removed then."""
    try:
        fd = disk.open_existing(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        disk.remove(path)
        fcntl.flock(fd, fcntl.LOCK_UN)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        raise disk.failure("lock", path, error) from error
    finally:
        os.close(fd)


_owners: weakref.WeakSet[Owner] = weakref.WeakSet()


def _forget_in_child() -> None:
    for owner in list(_owners):
        owner._drop()


os.register_at_fork(after_in_child=_forget_in_child)
