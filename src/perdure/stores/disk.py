"""Every change to a file system goes through one of these functions.

So a crash test sees each write, sync, rename and removal: it sets ``hook`` and dies, or raises OSError, at the n-th.
Each function calls the hook first, then acts. Whatever the system refuses becomes a StoreError with path and errno;
the caller treats its handle as poisoned, because after a failed write or sync nobody knows what the device has
(rel:D4).

Files are created 0600 and folders 0700 whatever the umask is (rel:S13). Links are not followed to a file (rel:S5).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from perdure.clock import SYSTEM, Clock
from perdure.errors import CorruptStore, StoreBusy, StoreError
from perdure.model import RunKey

hook: Callable[[str, Path], None] | None = None
"""Called with what is about to happen ("write", "sync", "rename" ...) and to which path. For tests only."""

_PLAIN = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_SAFE: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""the last, because opening a pipe that somebody put there would wait for ever"""
_POLL = 0.002  # seconds between two tries for a lock: shorter than a sync, long enough not to burn a core


def run_folder_name(key: RunKey) -> str:
    """The folder of a run, below ``runs``: the goal itself where it is a plain name, else a slug and a hash, and the
    episode.

    Any goal gives a safe name, and two goals never give one name, on file systems that ignore case or normalise Unicode
    too: plain names are lower case, and the rest is told apart by the hash, whose ``~`` no plain name has.
    """
    if _PLAIN.fullmatch(key.goal):
        return f"{key.goal}.{key.episode}"
    slug = re.sub(r"[^a-z0-9]+", "-", key.goal.lower()).strip("-")[:40].strip("-") or "run"
    digest = hashlib.sha256(key.goal.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{slug}~{digest}.{key.episode}"


def failure(doing: str, path: Path, error: OSError) -> StoreError:
    """What the system refused, as an error for people."""
    code = errno.errorcode.get(error.errno or 0, "")
    reason = f"{error.strerror or error}{f' ({code})' if code else ''}"
    hint = "Nothing that was acknowledged is lost. Remove the cause, then run again."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "Nothing that was acknowledged is lost. Free some space, then run again."
    return StoreError(f"Cannot {doing} {path}: {reason}.", hint=hint)


@contextmanager
def _act(doing: str, path: Path) -> Iterator[None]:
    try:
        if hook is not None:
            hook(doing, path)
        yield
    except OSError as error:
        raise failure(doing, path, error) from error


def cause(error: BaseException) -> int:
    """The errno behind a StoreError, or 0."""
    return (error.__cause__.errno or 0) if isinstance(error.__cause__, OSError) else 0


def create(path: Path, flags: int) -> int:
    """Open a file for writing and create it if need be; ``flags`` as for os.open. Returns the descriptor."""
    with _act("create", path):
        fd = os.open(path, flags | os.O_CREAT | _SAFE, 0o600)
        try:
            os.fchmod(fd, 0o600)
        except OSError:
            os.close(fd)
            raise
        return fd


def open_existing(path: Path, flags: int) -> int:
    """Open a file that must be there. Raises FileNotFoundError if it is not, StoreError for anything else."""
    try:
        return os.open(path, flags | _SAFE)
    except FileNotFoundError:
        raise
    except NotADirectoryError as error:
        raise FileNotFoundError(str(error)) from error
    except OSError as error:
        raise failure("open", path, error) from error


def exists(path: Path) -> bool:
    """Whether something has that name. Raises StoreError if the system does not let us know."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise failure("open", path, error) from error
    return True


def list_dir(path: Path) -> list[str]:
    """The names in a folder, sorted; none if there is no such folder."""
    try:
        return sorted(os.listdir(path))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise failure("list", path, error) from error


def scan_dir(path: Path) -> Iterator[str]:
    """The names in a folder in any order, one after the other: for one that may have very many."""
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                yield entry.name
    except FileNotFoundError:
        return
    except OSError as error:
        raise failure("list", path, error) from error


def changed(path: Path) -> int:
    """When a folder's names, or a file, changed last: nanoseconds since 1970."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError as error:
        raise failure("look at", path, error) from error


def read_file(path: Path, most: int) -> bytes | None:
    """The whole file, or None if there is none. Raises CorruptStore for one of more than ``most`` bytes, and for what
    is no file; StoreError, also when the process has too little memory for it."""
    try:
        fd = open_existing(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise CorruptStore(f"{path} is no file. Nothing was changed.", hint="Restore it from a copy.")
        if found.st_size > most:
            raise CorruptStore(
                f"{path} has {found.st_size:,} bytes, and the limit is {most:,}. Nothing was changed.",
                hint="Restore it from a copy.",
            )
        with open(fd, "rb", closefd=False) as file:
            return file.read(found.st_size)
    except OSError as error:
        raise failure("read", path, error) from error
    except MemoryError as error:
        raise StoreError(
            f"Cannot read {path}: its {found.st_size:,} bytes are too much for the memory of this process.",
            hint="Nothing that was acknowledged is lost. Give it more memory, then run again.",
        ) from error
    finally:
        os.close(fd)


def refuse_link(path: Path) -> None:
    """Raises CorruptStore if that is a link: what is written through it would leave the store (rel:S5)."""
    if os.path.islink(path):
        raise CorruptStore(
            f"{path} is a link, and what is written there would leave the store. Nothing was changed.",
            hint="Put what it points to in its place.",
        )


def write_all(fd: int, data: bytes, path: Path) -> None:
    """Write all of ``data``, however often the system writes less than it was given (rel:D11)."""
    with _act("write", path):
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]


def read_start(fd: int, size: int, path: Path) -> bytes:
    """The first bytes of an open file."""
    try:
        return os.pread(fd, size, 0)
    except OSError as error:
        raise failure("read", path, error) from error


def sync(fd: int, path: Path) -> None:
    """Return when the file's content is on stable storage."""
    with _act("sync", path):
        if sys.platform == "darwin":
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # fsync leaves the data in the drive's cache there (rel:D7)
        else:
            os.fdatasync(fd)


def truncate(fd: int, size: int, path: Path) -> None:
    with _act("truncate", path):
        os.ftruncate(fd, size)


def sync_dir(path: Path) -> None:
    """Return when the names in a folder are on stable storage."""
    with _act("sync folder", path):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno != errno.EINVAL:  # this file system cannot sync folders, and has no need to
                raise
        finally:
            os.close(fd)


def make_dir(path: Path) -> None:
    """Create a folder and those above it, durably. Does nothing if it is there."""
    if path.is_dir():
        return
    if path.parent != path:
        make_dir(path.parent)
    with _act("create folder", path):
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if not path.is_dir():
                raise
            return
        os.chmod(path, 0o700)
    sync_dir(path.parent)


def write_file(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file in place: only for files that nobody looks at yet, or that can be thrown away."""
    fd = create(path, os.O_WRONLY | os.O_TRUNC)
    try:
        write_all(fd, data, path)
        if durable:
            sync(fd, path)
    finally:
        os.close(fd)


def replace_file(path: Path, data: bytes, *, temp: Path | None = None) -> None:
    """Make ``data`` the content of ``path``, durably: at any moment the file is the old one or the new one, whole.

    ``temp`` is on the same file system and used by nobody else; by default a hidden name beside the file.
    """
    temp = temp or path.with_name(f".{path.name}.{os.getpid()}.tmp")
    write_file(temp, data)
    rename(temp, path)
    sync_dir(path.parent)


def rename(source: Path, target: Path) -> None:
    """Rename. A file at ``target`` is replaced; a folder there that is not empty is an error."""
    with _act("rename", target):
        os.rename(source, target)


def move(source: Path, target: Path) -> None:
    """Rename, durably."""
    rename(source, target)
    sync_dir(target.parent)
    if source.parent != target.parent:
        sync_dir(source.parent)


def move_new(source: Path, target: Path) -> bool:
    """Give a folder its name, durably, if the name is free; else remove the folder and return False."""
    try:
        move(source, target)
    except StoreError as error:
        if cause(error) not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        remove(source)
        return False
    return True


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it. Does nothing if it is gone."""
    with _act("remove", path):
        try:
            if stat.S_ISDIR(os.lstat(path).st_mode):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        except FileNotFoundError:
            pass


@contextmanager
def locked(fd: int, path: Path, wait: float, clock: Clock = SYSTEM) -> Iterator[None]:
    """Hold the exclusive lock of an open file. Raises StoreBusy when others hold it for ``wait`` seconds.

    It is given back explicitly: a child forked in the meantime has a copy of the descriptor, which would keep the lock.
    """
    deadline = clock.monotonic() + wait
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if clock.monotonic() >= deadline:
                raise busy(path, wait) from None
        except OSError as error:
            raise failure("lock", path, error) from error
        clock.sleep(_POLL)
    try:
        yield
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)


def busy(path: Path, wait: float) -> StoreBusy:
    return StoreBusy(
        f"{path} was locked by another process for {wait:g} s. Nothing was written.",
        hint="Try again; if it stays locked, look for a stopped process that uses this store.",
    )


def full(error: BaseException) -> bool:
    """Whether a StoreError says that the device is full or failing, not that somebody has to choose another place."""
    return cause(error) in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE)
