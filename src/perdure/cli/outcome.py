"""How the command ends: exit codes, and errors as one paragraph."""

from __future__ import annotations

import shlex
import shutil
import sys
import traceback
from pathlib import Path
from typing import Final

import msgspec

from perdure.cli.words import say
from perdure.errors import (
    FencedError,
    FixError,
    IncompleteCrew,
    OutputRefused,
    PerdureError,
    RetryError,
    RunCancelled,
    RunFailed,
    RunPaused,
    RunStopped,
    RunSuspended,
    StepTimeout,
    StoreError,
)
from perdure.redaction import discreet

OK: Final = 0
FLOW_FAILED: Final = 1
FIX: Final = 2
HELD: Final = 3
STORE: Final = 4
STOPPED: Final = 5
CANCELLED: Final = 6
FOUND: Final = 7
CTRL_C: Final = 130
SIGTERM: Final = 143

MEANING: Final = {
    OK: "it is done",
    FLOW_FAILED: "the flow failed; what finished is kept",
    FIX: "something in the command, the program or its inputs must be changed first",
    HELD: "another process is executing this run",
    STORE: "the store failed or is damaged",
    STOPPED: "the run waits: for an answer, a signal or a date; or it is stopped, in doubt or at a limit",
    CANCELLED: "the run was cancelled",
    FOUND: "something was found: by crashtest, by replay, or by diff --exit-code",
    CTRL_C: "Ctrl-C; the run can be resumed",
    SIGTERM: "SIGTERM; the run can be resumed",
}

_CODES: Final[tuple[tuple[tuple[type[BaseException], ...], int], ...]] = (
    ((RunPaused, RunStopped, RunSuspended), STOPPED),
    ((RunCancelled,), CANCELLED),
    ((OutputRefused, StepTimeout, IncompleteCrew, RunFailed), FLOW_FAILED),
    ((FencedError,), HELD),
    ((StoreError, RetryError), STORE),
    ((FixError,), FIX),
)


def exit_code(error: BaseException) -> int:
    """The exit code that stands for ``error``; anything that is not of Perdure's tree came from a flow."""
    return next((code for kinds, code in _CODES if isinstance(error, kinds)), FLOW_FAILED)


def report(error: Exception, *, as_json: bool, run: str = "", resume: str = "", show_traceback: bool = False) -> int:
    """Tell about ``error``: a paragraph on stderr, with ``as_json`` an object on stdout too. Returns the exit code."""
    code = exit_code(error)
    message = str(error) if isinstance(error, PerdureError) else f"{type(error).__name__}: {error}{_place(error)}."
    message += "".join(f" In {note}." for note in getattr(error, "__notes__", ()) if note.startswith("run "))
    message = discreet(message)
    if show_traceback:
        say(discreet("".join(traceback.format_exception(error))), err=True, nl=False)
    say(f"Error: {message}", err=True)
    if resume:
        say(f"What finished is kept. Go on with:\n  {resume}", err=True)
    if as_json:
        told = {"type": type(error).__name__, "message": message, "exit_code": code, "run": run, "resume": resume}
        write(msgspec.json.encode({"error": told}))
    return code


def _place(error: Exception) -> str:
    """Where the user's own code raised, as far as it is known."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""


def write(content: bytes) -> None:
    """Bytes to standard output, with a line's end."""
    write_part(content if content.endswith(b"\n") else content + b"\n")


def write_part(content: bytes) -> None:
    """Bytes to standard output, as they are."""
    sys.stdout.flush()
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def command(*words: str, store: str | None = None) -> str:
    """A command line that a shell reads back as these words, and that finds this program; for ``store``, if it is not
    the default, and without its password."""
    program = [sys.executable, "-m", "perdure"]
    if shutil.which("perdure"):
        program = ["perdure"]
    elif Path(sys.argv[0]).name == "perdure":
        program = [sys.argv[0]]
    return shlex.join([*program, *words, *(("--store", discreet(store)) if store else ())])
