"""The blobs of a file store: each stored once, with an empty file beside it for every run that was given it.

    DIR/blobs/ab/<digest>          the content
    DIR/blobs/ab/<digest>.<run>    a *mark*: the run with this id was given it
    DIR/blobs/lock                 held while marks are made or counted

A mark is durable before the blob's name is acknowledged, and costs no wait of its own: both are names in one folder. A
blob goes with its last mark. The lock sees to it that nobody counts marks while somebody makes one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from perdure.clock import Clock
from perdure.limits import MAX_BLOB
from perdure.stores import disk
from perdure.stores.handle import checked_digest, sound_blob


class Blobs:
    """What is below ``root``. ``wait``: seconds to wait for the lock before StoreBusy."""

    def __init__(self, root: Path, wait: float, clock: Clock) -> None:
        self.root = root
        self._wait, self._clock = wait, clock

    def read(self, digest: str) -> bytes:
        """The content. Raises CorruptStore if it is missing or another than was stored."""
        path = self._path(digest)
        return sound_blob(digest, disk.read_file(path, MAX_BLOB), str(path))

    def keep(self, run: str, blobs: Mapping[str, bytes], temp: Path) -> None:
        """Store blobs durably, and that ``run`` was given them."""
        with self._locked():
            for digest, content in blobs.items():
                path = self._path(digest)
                disk.make_dir(path.parent)
                disk.refuse_link(path.parent)
                os.close(disk.create(self._mark(digest, run), os.O_WRONLY))
                if disk.exists(path):
                    disk.sync_dir(path.parent)
                else:
                    disk.replace_file(path, content, temp=temp)

    def drop(self, run: str, digests: Iterable[str]) -> None:
        """Take blobs from a run, and remove those that no other was given."""
        gone = [digest for digest in digests if disk.exists(self._mark(digest, run))]
        if gone:
            with self._locked():
                for digest in gone:
                    mark = self._mark(digest, run)
                    if self._marks(digest) == [mark.name]:
                        disk.remove(self._path(digest))
                    disk.remove(mark)  # last: whoever dies in between is made up for by the next time

    def names(self) -> Iterator[str]:
        """The names of all blobs and marks, those of one blob one after the other: the blob's own first."""
        for folder in disk.list_dir(self.root):
            if len(folder) == 2:
                yield from disk.list_dir(self.root / folder)

    def collect(self, digest: str, run: str, save: Callable[[bytes], None]) -> None:
        """Take a blob from ``run`` ("": from none), and remove it, after ``save``, if no other was given it."""
        with self._locked():
            path, mark = self._path(digest), self._mark(digest, run)
            others = {name for name in self._marks(digest) if name != mark.name}
            content = disk.read_file(path, MAX_BLOB)
            if not others and content is not None:
                save(content)
                disk.remove(path)
            if run:
                disk.remove(mark)

    def is_bare(self, digest: str) -> bool:
        """Whether there is a blob that no run was given."""
        with self._locked():
            return self.there(digest) and not self._marks(digest)

    def there(self, digest: str) -> bool:
        return disk.exists(self._path(digest))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        path = self.root / "lock"
        fd = disk.create(path, os.O_RDWR)
        try:
            with disk.locked(fd, path, self._wait, self._clock):
                yield
        finally:
            os.close(fd)

    def _marks(self, digest: str) -> list[str]:
        return [name for name in disk.list_dir(self._path(digest).parent) if name.startswith(f"{digest}.")]

    def _path(self, digest: str) -> Path:
        return self.root / checked_digest(digest)[:2] / digest

    def _mark(self, digest: str, run: str) -> Path:
        return self._path(digest).with_name(f"{digest}.{run}")
