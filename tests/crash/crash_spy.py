"""Every change that a store makes to its files, seen one by one, and refused, torn, forgotten or fatal on demand.

``perdure.stores.disk`` is given an ``os`` whose writing calls report here first, and SQLite a virtual file system that
does the same. Both feed one numbered sequence of operations. A *plan* is asked about each and answers:

- ``None``: do it;
- ``"before"``, ``"torn"``, ``"after"``: SIGKILL this process without it, in the middle of a write, or just after it;
- an errno: fail with that error, without doing it (a write: after half of it);
- ``"drop"``: say that it was done, and do nothing (the known-bad twin that forgets to sync).

What was done is also kept in order, for the power cuts of crash_image.py.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import apsw
import msgspec

from perdure.stores import disk

_JOURNALS = apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_WAL


class Op(msgspec.Struct, array_like=True):
    """One change: kind, the path below the watched folder, and what the kind needs."""

    kind: str
    path: str
    offset: int = 0
    data: bytes = b""
    target: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.path}{f' -> {self.target}' if self.target else ''} ({len(self.data)} bytes)"


Verdict = str | int | None
Plan = Callable[[int, Op], Verdict]


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("survived SIGKILL")


class Spy:
    """Numbers the operations below ``root`` from 1, and asks the plan about each."""

    def __init__(self, root: Path, plan: Plan) -> None:
        self.root = os.path.join(os.path.realpath(root), "")
        self.plan = plan
        self.lock = threading.RLock()
        self.count = 0
        self.ops: list[Op] = []
        self.failed: Op | None = None

    def watches(self, path: str) -> bool:
        return os.path.join(path, "").startswith(self.root)

    def mark(self, text: str) -> None:
        """Put a note into the sequence: what the flow was told by now."""
        with self.lock:
            self.ops.append(Op("mark", text))

    def perform(
        self, op: Op, do: Callable[[], Any], tear: Callable[[], Any], fail: Callable[[Op, int], BaseException]
    ) -> Any:
        with self.lock:
            self.count += 1
            verdict = self.plan(self.count, op)
            if verdict == "before":
                die()
            if verdict == "torn":
                tear()
                die()
            if verdict == "drop":
                return None
            if isinstance(verdict, int):
                self.failed = self.failed or op
                tear()
                raise fail(op, verdict)
            result = do()
            if verdict == "after":
                die()
            op.path = os.path.relpath(op.path, self.root)
            op.target = os.path.relpath(op.target, self.root) if op.target else ""
            self.ops.append(op)
            return result


def install(root: Path, plan: Plan) -> Spy:
    """Watch this process from now on. For processes that end soon: nothing is put back."""
    spy = Spy(root, plan)
    spying = SpyOs(spy)
    vars(disk)["os"] = spying
    vars(disk)["shutil"] = SpyShutil(spying)
    spy.vfs = SpyVfs(spy)  # type: ignore[attr-defined]  # it must live as long as the process
    return spy


class SpyOs:
    """The module os, for perdure.stores.disk."""

    def __init__(self, spy: Spy) -> None:
        self._spy = spy
        self._paths: dict[int, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _perform(self, op: Op, do: Callable[[], Any], tear: Callable[[], Any] = lambda: None) -> Any:
        if not self._spy.watches(op.path):
            return do()
        return self._spy.perform(op, do, tear, lambda op, code: OSError(code, os.strerror(code)))

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        path = os.fspath(path)

        def do() -> int:
            return os.open(path, flags, mode)

        if flags & os.O_CREAT and not os.path.lexists(path):
            fd = self._perform(Op("create", path), do)
        elif flags & os.O_TRUNC and os.path.getsize(path):
            fd = self._perform(Op("truncate", path, 0), do)
        else:
            fd = do()
        self._paths[fd] = path
        return int(fd)

    def write(self, fd: int, data: Any) -> int:
        appends = os.O_APPEND & _flags(fd)
        offset = os.fstat(fd).st_size if appends else os.lseek(fd, 0, os.SEEK_CUR)
        op = Op("write", self._paths[fd], offset, bytes(data))
        done = self._perform(op, lambda: os.write(fd, data), lambda: os.write(fd, op.data[: len(op.data) // 2]))
        return len(op.data) if done is None else int(done)

    def fdatasync(self, fd: int) -> None:
        self._perform(Op("sync", self._paths[fd]), lambda: os.fdatasync(fd))

    def fsync(self, fd: int) -> None:
        kind = "sync folder" if os.path.isdir(self._paths[fd]) else "sync"
        self._perform(Op(kind, self._paths[fd]), lambda: os.fsync(fd))

    def ftruncate(self, fd: int, size: int) -> None:
        self._perform(Op("truncate", self._paths[fd], size), lambda: os.ftruncate(fd, size))

    def rename(self, source: Any, target: Any) -> None:
        op = Op("rename", os.fspath(source), target=os.fspath(target))
        self._perform(op, lambda: os.rename(source, target))

    def mkdir(self, path: Any, mode: int = 0o777) -> None:
        self._perform(Op("create folder", os.fspath(path)), lambda: os.mkdir(path, mode))

    def unlink(self, path: Any) -> None:
        self._perform(Op("remove", os.fspath(path)), lambda: os.unlink(path))

    def rmdir(self, path: Any) -> None:
        self._perform(Op("remove", os.fspath(path)), lambda: os.rmdir(path))


class SpyShutil:
    """The module shutil, for perdure.stores.disk: removes a tree name by name."""

    def __init__(self, os_: SpyOs) -> None:
        self._os = os_

    def __getattr__(self, name: str) -> Any:
        return getattr(shutil, name)

    def rmtree(self, path: Any) -> None:
        for folder, folders, files in os.walk(path, topdown=False):
            for name in files:
                self._os.unlink(os.path.join(folder, name))
            for name in folders:
                self._os.rmdir(os.path.join(folder, name))
        self._os.rmdir(path)


def _flags(fd: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_GETFL)


def _sqlite_error(op: Op, code: int) -> BaseException:
    result = apsw.SQLITE_FULL if code == errno.ENOSPC else _IOERR.get(op.kind, apsw.SQLITE_IOERR)
    return apsw.exception_for(result)


_IOERR = {
    "write": apsw.SQLITE_IOERR_WRITE,
    "sync": apsw.SQLITE_IOERR_FSYNC,
    "truncate": apsw.SQLITE_IOERR_TRUNCATE,
    "remove": apsw.SQLITE_IOERR_DELETE,
    "create": apsw.SQLITE_CANTOPEN,
}


class SpyVfs(apsw.VFS):
    """SQLite's own file system with every change reported; the default one of this process."""

    def __init__(self, spy: Spy) -> None:
        self.spy = spy
        super().__init__("spy", "unix", makedefault=True)

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name

        def do() -> SpyFile:
            return SpyFile(self.spy, path or "", name, flags, bool(flags[0] & _JOURNALS))

        if path and self.spy.watches(path) and flags[0] & apsw.SQLITE_OPEN_CREATE and not os.path.lexists(path):
            return self.spy.perform(Op("create", path), do, lambda: None, _sqlite_error)  # type: ignore[no-any-return]
        return do()

    def xDelete(self, name: str, syncdir: bool) -> None:
        spy = self.spy
        spy.perform(Op("remove", name), lambda: super(SpyVfs, self).xDelete(name, False), lambda: None, _sqlite_error)
        if syncdir:
            folder = os.path.dirname(name)
            spy.perform(Op("sync folder", folder), lambda: _sync_folder(folder), lambda: None, _sqlite_error)


class SpyFile(apsw.VFSFile):
    def __init__(self, spy: Spy, path: str, name: Any, flags: list[int], names_to_sync: bool) -> None:
        self.spy, self.path, self.names_to_sync = spy, path, names_to_sync
        super().__init__("unix", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        write = super().xWrite
        op = Op("write", self.path, offset, bytes(data))
        half = op.data[: len(op.data) // 2]
        self.spy.perform(op, lambda: write(data, offset), lambda: half and write(half, offset), _sqlite_error)

    def xTruncate(self, newsize: int) -> None:
        truncate = super().xTruncate
        self.spy.perform(Op("truncate", self.path, newsize), lambda: truncate(newsize), lambda: None, _sqlite_error)

    def xSync(self, flags: int) -> None:
        sync = super().xSync
        self.spy.perform(Op("sync", self.path), lambda: sync(flags), lambda: None, _sqlite_error)
        if self.names_to_sync:  # SQLite's unix file system syncs a new journal's folder together with the journal
            self.names_to_sync = False
            folder = os.path.dirname(self.path)
            self.spy.perform(Op("sync folder", folder), lambda: _sync_folder(folder), lambda: None, _sqlite_error)


def _sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
