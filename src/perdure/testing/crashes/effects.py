"""What a flow does to the world outside of its steps, as far as Python's audit events tell.

A crash makes the flow's own code run again, from its beginning, while the bodies of finished steps do not: what the
flow itself writes, sends or removes happens once more in every life. Reading the clock or drawing a random number is
no audit event; that is seen by its consequences, in judge.py.

Not told: what Perdure does itself, imports (compiled files), logging (a message twice does no harm) and temporary
files. Code in threads that the flow started by itself is not seen, as no context says whose it is.
"""

from __future__ import annotations

import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final, NamedTuple
from weakref import WeakSet

import perdure
from perdure.redaction import discreet, discreet_part
from perdure.runtime.context import StepContext, current
from perdure.testing.crashes.said import Called, Effect, Witness

_EFFECTS: Final = frozenset(
    {
        *("open", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"),
        *("shutil.copyfile", "shutil.move", "shutil.rmtree", "shutil.make_archive", "shutil.unpack_archive"),
        *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.kill"),
        *("socket.connect", "socket.sendto", "socket.sendmsg", "sqlite3.connect", "smtplib.send", "webbrowser.open"),
    }
)
_WRITES: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_QUIET: Final = ("logging", "tempfile", "importlib", "_frozen_importlib", "zipimport", "warnings")
"""modules of which nothing is told that happens on their behalf"""
_OURS: Final = str(Path(perdure.__file__).parent) + os.sep
_PATHS: Final = sysconfig.get_paths()
_LIBRARIES: Final = tuple({_PATHS[name] + os.sep for name in ("purelib", "platlib")})
_STANDARD: Final = tuple({_PATHS[name] + os.sep for name in ("stdlib", "platstdlib")})


class Place(NamedTuple):
    """A line of somebody's code."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{Path(self.file).name}:{self.line}, in {self.function}"


def watch(witness: Witness) -> None:
    """From now on, for as long as this process lives, tell every body that begins and every effect of a flow."""
    flows: WeakSet[StepContext] = WeakSet()
    told: set[tuple[str, Place]] = set()

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "perdure.call":
            context, run, call, body = args
            if body.is_flow:
                flows.add(context)
            elif call.what == "body":
                name = str(run.key) if run is not None else ""
                witness.say(Called(run=name, step=call.step, attempt=call.attempt, name=body.name))
        elif event in _EFFECTS:
            frame = current()
            if frame is None or frame.run is None or (frame.step is not None and frame.step not in flows):
                return
            target = _target(event, args)
            place = _place(sys._getframe(2)) if target is not None else None
            if target is not None and place is not None and (event, place) not in told:
                told.add((event, place))
                witness.say(Effect(event=event, target=target, **place._asdict()))

    sys.addaudithook(_never_raising(hook))


def _never_raising(hook: Callable[[str, tuple[Any, ...]], None]) -> Callable[[str, tuple[Any, ...]], None]:
    """What a hook raises would be raised in the code that it watches."""

    def guarded(event: str, args: tuple[Any, ...]) -> None:
        try:
            hook(event, args)
        except Exception:
            return

    return guarded


def _target(event: str, args: tuple[Any, ...]) -> str | None:
    """What is acted on, as text; None for what changes nothing."""
    if event == "open":
        path, mode, flags = args
        writes = any(sign in mode for sign in "wax+") if isinstance(mode, str) else bool(flags & _WRITES)
        if not writes or isinstance(path, int) or os.fspath(path) in (os.devnull, bytes(os.devnull, "ascii")):
            return None
        return discreet(os.fsdecode(path))
    if event == "subprocess.Popen":
        return _text(args[1])
    if event.startswith("socket."):
        return _text(args[1])
    if event in ("os.rename", "os.link", "os.symlink", "shutil.move", "shutil.copyfile"):
        return f"{_text(args[0])} -> {_text(args[1])}"
    return _text(args[0]) if args else ""


def _text(value: object) -> str:
    if isinstance(value, bytes | os.PathLike):
        return discreet(os.fsdecode(value))
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return discreet_part(" ".join(value), 200)
    return discreet_part(str(value), 200)


def _place(frame: FrameType | None) -> Place | None:
    """The line of the user's code that did it; None if nobody's did."""
    library: Place | None = None
    while frame is not None:
        file = frame.f_code.co_filename
        place = Place(file, frame.f_lineno, frame.f_code.co_name)
        if file.startswith(_OURS):
            return library
        if file.startswith(_LIBRARIES):
            library = library or place
        elif str(frame.f_globals.get("__name__")).partition(".")[0] in _QUIET:
            return None
        elif _is_users(file):
            return place
        frame = frame.f_back
    return library


def raised(error: BaseException) -> Place | None:
    """The innermost line of the user's code that an error came through."""
    places = [Place(f.filename, f.lineno or 0, f.name) for f in traceback.extract_tb(error.__traceback__)]
    return next((place for place in reversed(places) if _is_users(place.file)), None)


def hanging(log: str) -> str:
    """The line of the user's code where a process was when it was ended for being late, from what it told then."""
    told = re.findall(r'^  File "(.+)", line (\d+) in (.+)$', log.rpartition("Timeout (")[2], re.MULTILINE)
    places = [Place(file, int(line), name) for file, line, name in told]
    return next((str(place) for place in places if _is_users(place.file)), "")


def _is_users(file: str) -> bool:
    return not file.startswith((_OURS, "<", *_LIBRARIES, *_STANDARD))
