"""For `make test-long`: see that there is something that injects faults into system calls, and say what it is.

An strace that works here is taken as it is. Else Debian's is unpacked below .venv, which needs no rights. Else the shim
alone does it, if there is a C compiler. Else this fails.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import crash_calls

_PACKAGES = ("strace", "libunwind8", "liblzma5")
"""Debian's, with what it needs besides the C library"""
_START = """#!/bin/sh
export LD_LIBRARY_PATH=$(echo {root}/usr/lib/*-linux-gnu*):$(echo {root}/lib/*-linux-gnu*)
exec {root}/usr/bin/strace "$@"
"""


def unpack(folder: Path) -> str:
    """Unpack Debian's packages; returns why that did not work, or ""."""
    for needed in ("apt-get", "dpkg-deb"):
        if shutil.which(needed) is None:
            return f"there is no {needed}"
    root = folder / "root"
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        for package in _PACKAGES:
            got = subprocess.run(["apt-get", "download", package], cwd=place, capture_output=True, text=True)
            if got.returncode:
                return f"apt-get download {package}: {' '.join(got.stderr.split())}"
        for archive in sorted(Path(place).glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", str(archive), str(root)], check=True)
    command = folder / "strace"
    command.write_text(_START.format(root=root))
    command.chmod(0o755)
    return ""


def main() -> int:
    found, problem = crash_calls.strace(), ""
    if found is None:
        problem = unpack(crash_calls.FOLDER)
        found = crash_calls.strace()
        problem = problem or "the one of Debian's does not work here either (is tracing allowed?)"
    with tempfile.TemporaryDirectory() as place:
        shim = crash_calls.shim(Path(place)) is not None
    if found:
        print(f"Faults in system calls: {found}{' and a shim of ours' if shim else ' alone: there is no C compiler'}.")
        return 0
    if shim:
        print(f"Faults in system calls: a shim of ours alone. There is no strace that works here: {problem}.")
        return 0
    print(
        "Faults in system calls: impossible. There is no C compiler (cc, gcc, clang or CC), and no strace that works "
        f"here: {problem}. Install one of the two.",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
