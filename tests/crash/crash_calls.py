"""System calls that fail or are the last, by number: the preloaded shim of shim.c, or strace.

Both are armed in a child of the zygote, and know one interface. They count differently: the shim all calls on the job's
files, over all threads; strace each kind of call, on whatever file, in each thread for itself.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final, Protocol

import crash_crew as crew
import crash_jobs as jobs
import crash_lives as lives

CALLS: Final = ("write", "pwrite64", "fsync", "fdatasync", "rename", "link", "unlink", "ftruncate", "mkdir")
"""the family of calls that change files; of those that some systems have under another name too, one name"""
_SAME: Final = {
    "rename": ("rename", "renameat", "renameat2"),
    "link": ("link", "linkat"),
    "unlink": ("unlink", "unlinkat", "rmdir"),
    "mkdir": ("mkdir", "mkdirat"),
}
FOLDER: Final = Path(__file__).parents[2] / ".venv" / "faults"
"""where `make test-long` puts the tools that it had to get"""
SHIM: Final = Path(__file__).with_name("shim.c")


def strace() -> str | None:
    """The command, if there is one that works here."""
    for found in (shutil.which("strace"), FOLDER / "strace"):
        if found and os.access(found, os.X_OK):
            asked = subprocess.run(
                [found, "-o", os.devnull, "-e", "inject=fsync:error=EIO", "true"], capture_output=True
            )
            if asked.returncode == 0:
                return str(found)
    return None


def shim(folder: Path) -> Path | None:
    """The shim, compiled into ``folder``; None if there is no compiler."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    if compiler is None:
        return None
    library = folder / "shim.so"
    asked = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SHIM), "-ldl", "-lpthread"]
    told = subprocess.run(asked, capture_output=True, text=True)
    assert told.returncode == 0, f"{SHIM.name} cannot be compiled: {told.stderr}"
    return library


class Tool(Protocol):
    """What makes a call fail, or kills at it."""

    def disarm(self) -> None:
        """From now on nothing happens."""

    def seen(self) -> dict[str, int]:
        """How many calls there were of each kind."""

    def failed(self) -> list[str] | None:
        """The first call that was made to fail, and its file."""

    def later(self) -> int:
        """How often that file was written to or synced with success after that."""


class Shim:
    """The library with which the zygote was started."""

    def __init__(self, root: str, call: str, at: int, what: str, code: int, lasting: bool) -> None:
        self._library = ctypes.CDLL(None)
        for name in ("shim_hit_call", "shim_hit_path"):
            getattr(self._library, name).restype = ctypes.c_char_p
        for name in ("shim_count", "shim_later"):
            getattr(self._library, name).restype = ctypes.c_long
        where = os.path.join(os.path.realpath(root), "").encode()
        words = (call.encode(), ctypes.c_long(at), what.encode(), code, int(lasting))
        assert self._library.shim_arm(where, *words) == 0

    def disarm(self) -> None:
        self._library.shim_disarm()

    def seen(self) -> dict[str, int]:
        return {call: self._library.shim_count(call.encode()) for call in CALLS}

    def failed(self) -> list[str] | None:
        call, path = self._library.shim_hit_call().decode(), self._library.shim_hit_path().decode()
        return [call, path] if call else None

    def later(self) -> int:
        return int(self._library.shim_later())


class Strace:
    """strace, attached to this process. It writes down what it sees, which tells what failed and what came later."""

    def __init__(self, root: str, call: str, at: int, what: str, code: int, lasting: bool) -> None:
        names = {name: _SAME.get(name, (name,)) for name in CALLS}
        family = ",".join(f"?{same}" for all_ in names.values() for same in all_)
        fate = {"kill": "signal=KILL", "error": f"error={errno.errorcode.get(code)}"}.get(what)
        inject = (
            f"inject={','.join(f'?{n}' for n in names[call])}:{fate}:when={at}{'+' if lasting else ''}" if fate else ""
        )
        self._log = Path(f"{root}.strace")
        _let_others_trace()
        words = [str(strace()), "-f", "-y", "-s", "0", "-o", str(self._log), "-e", f"trace={family}"]
        words += ["-e", inject] if inject else []
        self._process = subprocess.Popen([*words, "-p", str(os.getpid())], stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        said = self._process.stderr.readline()
        assert "attached" in said, said

    def disarm(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._lines = self._log.read_text().splitlines()
        self._log.unlink()

    def seen(self) -> dict[str, int]:
        return {
            call: sum(line.split(" ", 1)[1].lstrip().startswith(f"{name}(") for line in self._lines for name in names)
            for call in CALLS
            for names in (_SAME.get(call, (call,)),)
        }

    def failed(self) -> list[str] | None:
        for line in self._lines:
            if line.endswith("(INJECTED)"):
                return [line.split()[1].partition("(")[0], _path(line)]
        return None

    def later(self) -> int:
        failed = self.failed()
        at = next((n for n, line in enumerate(self._lines) if line.endswith("(INJECTED)")), len(self._lines))
        writes = ("write", "pwrite64", "fsync", "fdatasync")
        return sum(
            line.split()[1].startswith(tuple(f"{call}(" for call in writes)) and " = -1 " not in line
            for line in self._lines[at + 1 :]
            if failed and _path(line) == failed[1]
        )


def _path(line: str) -> str:
    """The last path in a line of strace's: in angle brackets, or in quotes."""
    found = re.findall(r'<(/[^>]*)>|"(/[^"]*)"', line)
    return "".join(found[-1]) if found else ""


def _let_others_trace() -> None:
    """Where only ancestors may trace a process, it may name others."""
    set_ptracer, any_process = 0x59616D61, ctypes.c_ulong(-1)
    ctypes.CDLL(None).prctl(set_ptracer, any_process, 0, 0, 0)


TOOLS: Final[dict[str, Any]] = {"shim": Shim, "strace": Strace}


def suffered(
    root: str,
    store: str,
    job: str,
    life: int,
    tool: str,
    call: str,
    at: int,
    what: str,
    code: int = 0,
    lasting: bool = False,
) -> dict[str, Any]:
    """A life whose call number ``at`` (of the kind ``call``; for "" of any kind) meets ``what``: "kill", "torn",
    "error" or "short"; for "" nothing happens. Returns what a survivor was told, and what was counted."""
    Path(root).mkdir(exist_ok=True)
    crew.listen(f"{root}.witness", life)
    armed: Tool = TOOLS[tool](root, call, at, what, code, lasting)
    try:
        found = jobs.told(root, lambda opened: jobs.run(root, store, job, opened), lives.url(root, store))
    finally:
        armed.disarm()
    failed = armed.failed()
    inside = os.path.join(os.path.realpath(root), "")
    if failed and not os.path.join(failed[1], "").startswith(inside):
        failed = None  # strace hits whatever file it is: of the terminal's, say
    logs = failed is not None and failed[1].endswith(("journal.jsonl", "-wal"))
    found.update(failed=failed, later=armed.later() if logs else 0, seen=armed.seen())
    return found
