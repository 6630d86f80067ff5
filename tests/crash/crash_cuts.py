"""Real power cuts: a file system on a loop device, shut down under a frozen writer, unmounted and mounted again.

ext4 can be told to go down at once (EXT4_IOC_SHUTDOWN), with or without what is in its own log: what was not synced is
gone then, as after a power cut, and its log is replayed at the next mount.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

_SHUTDOWN: Final = 0x8004587D  # _IOR('X', 125, __u32)
LOG_FLUSHED: Final = 1
LOG_LOST: Final = 2
_SIZE: Final = 24 << 20  # bytes; an ext4 with a log, and room for a run


class Device:
    """A small ext4 in a file, mounted at ``folder/disk``. Raises CannotMount where that is not allowed."""

    def __init__(self, folder: Path) -> None:
        self.image, self.path = folder / "image", folder / "disk"
        self.path.mkdir()
        self.mounted = False

    def format(self) -> None:
        """Make it an empty file system, mounted."""
        self.unmount()
        self.image.unlink(missing_ok=True)
        with self.image.open("wb") as file:
            file.truncate(_SIZE)
        _do("mkfs.ext4", "-q", "-F", str(self.image))
        self.mount()

    def mount(self) -> None:
        _do("mount", "-o", "loop", str(self.image), str(self.path))
        self.mounted = True

    def unmount(self) -> None:
        if self.mounted:
            _do("umount", str(self.path))
            self.mounted = False

    def cut(self, how: int) -> None:
        """Cut the power. Until it is mounted again nothing can be read or written."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, how.to_bytes(4, "little"))
        finally:
            os.close(fd)

    def close(self) -> None:
        """Leave nothing mounted, whatever state it is in."""
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.path)], capture_output=True)
            self.mounted = False


class CannotMount(Exception):
    """This machine does not let us mount a file system of our own, or cut its power."""


def _do(*words: str) -> None:
    try:
        asked = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PATH": _path()})
    except OSError as error:
        raise CannotMount(f"{words[0]}: {error.strerror}") from error
    if asked.returncode:
        raise CannotMount(f"{words[0]}: {asked.stderr.strip().splitlines()[-1:]}")


def _path() -> str:
    return os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


def why_not(folder: Path) -> str:
    """Why real power cuts cannot be made here; "" if they can. Found out by making one, which must lose something."""
    device = Device(folder)
    try:
        device.format()
        (device.path / "synced").write_text("kept")
        fd = os.open(device.path / "synced", os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        (device.path / "unsynced").write_text("lost")
        device.cut(LOG_LOST)
        device.unmount()
        device.mount()
        names = {path.name for path in device.path.iterdir()}
        if "synced" not in names or "unsynced" in names:
            return f"a power cut left {sorted(names)}"
        return ""
    except (CannotMount, OSError) as error:
        return str(error)
    finally:
        device.close()
        shutil.rmtree(device.path, ignore_errors=True)
