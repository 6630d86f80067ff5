"""Writing runs of a store into an archive, also while others execute them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TypeAlias

import msgspec

from perdure.clock import Clock, process_identity
from perdure.errors import ConfigError, CorruptStore, NewerFormat, RunNotFound, StoreError
from perdure.model import OWN, RunKey, RunMeta
from perdure.runtime.archive import VERSION, ArchiveWriter, Bounds, Head, recorded
from perdure.runtime.look import each
from perdure.stores import disk
from perdure.stores.base import Store
from perdure.stores.handle import unusable

Progress: TypeAlias = Callable[[int], None]
"""told how many runs have been dealt with"""


class Exported(msgspec.Struct, frozen=True):
    """What stands in an archive that was written."""

    runs: int
    records: int
    posts: int
    blobs: int
    size: int
    """bytes of the archive"""
    unpacked: int
    """bytes that it unpacks to"""
    allow: int
    """bytes that whoever imports it has to allow; 0: it is within what is allowed anyway"""
    damaged: dict[str, str]
    """runs that could not be exported, and why"""


def every_run(store: Store) -> Iterator[RunMeta]:
    """The rows of all runs, without what workers and queues keep beside them."""
    return (row for row in each(store) if not row.goal.startswith(OWN))


def families(store: Store, keys: Sequence[RunKey]) -> Iterator[RunKey]:
    """These runs, each followed by the runs that it began. Those are looked for after it has been read: a run never
    tells of one that is not in the archive."""
    seen: set[RunKey] = set()
    waiting = list(reversed(keys))
    while waiting:
        key = waiting.pop()
        if key not in seen:
            seen.add(key)
            yield key
            waiting += [row.key for row in every_run(store) if row.parent == str(key)]


def export_runs(
    store: Store, clock: Clock, keys: Sequence[RunKey], write: Callable[[bytes], object], progress: Progress
) -> Exported:
    """Write these runs, and those that they began, or all of the store if none is named, as an archive.

    A run that is damaged is an error if it was named; of a whole store it is left out, and told. Raises StoreError.
    """
    writer = ArchiveWriter(write, Head("perdure", VERSION, f"perdure on {process_identity()[1]}", clock.now()))
    damaged: dict[str, str] = {}
    for key in families(store, keys) if keys else (row.key for row in every_run(store)):
        try:
            writer.add(recorded(store, key), store.blob)
        except (CorruptStore, NewerFormat, RunNotFound) as problem:
            if key in keys:
                raise
            if _deleted(store, key):
                continue
            if keys:
                raise
            damaged[str(key)] = str(problem)
        progress(writer.runs + len(damaged))
    writer.end()
    return Exported(
        runs=writer.runs,
        records=writer.records,
        posts=writer.posts,
        blobs=writer.blobs,
        size=writer.packed,
        unpacked=writer.unpacked,
        allow=writer.unpacked if writer.exceeds(Bounds()) else 0,
        damaged=damaged,
    )


@contextmanager
def written(target: str | Path | IO[bytes], replace: bool) -> Iterator[Callable[[bytes], object]]:
    """Takes the bytes of a file that is there whole, and durable, when the block has ended, or not at all.

    Raises ConfigError for a place that cannot be written to, or that has a file already unless ``replace``; StoreError.
    """
    if not isinstance(target, str | Path):
        try:
            yield target.write
            target.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise disk.failure("write to", Path(str(getattr(target, "name", "the archive"))), error) from error
        return
    path = Path(target)
    _refuse_existing(path, replace)
    temp = path.with_name(f".{path.name[:200]}.{os.getpid()}.tmp")
    try:
        fd = disk.create(temp, os.O_WRONLY | os.O_TRUNC)
    except StoreError as error:
        raise unusable(error) from error.__cause__
    try:
        try:
            yield lambda data: disk.write_all(fd, data, temp)
            disk.sync(fd, temp)
        finally:
            os.close(fd)
        _refuse_existing(path, replace)
        disk.move(temp, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temp)
        raise


def _refuse_existing(path: Path, replace: bool) -> None:
    if not disk.exists(path):
        return
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise ConfigError(f"{path} is there, and is no regular file. Nothing was written.", hint="Name another.")
    if not replace:
        raise ConfigError(f"{path} is there already. Nothing was written.", hint="Name another file, or use --force.")


def _deleted(store: Store, key: RunKey) -> bool:
    """Whether a run that was listed a moment ago is gone."""
    try:
        return not store.read(key)
    except CorruptStore:
        return False
