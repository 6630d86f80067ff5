"""A child process that has loaded the flow: it forks a life for each order, or lives one itself.

Forked from a process that has one thread, lives begin with sound locks, and with the state that the user's modules have
right after they were imported: as a fresh process does, without the time that importing takes. Where that is not so (a
module has started threads, a system on which forking is not sound), each life gets a process of its own.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, Final, NoReturn

import msgspec

from perdure import codec
from perdure.errors import ConfigError, PerdureError
from perdure.redaction import discreet
from perdure.runtime.api import run
from perdure.runtime.execute import as_function, prepare
from perdure.runtime.steps import Function
from perdure.testing.crashes.life import live_once
from perdure.testing.crashes.said import GOAL, Gone, Order, Ready, encoded

Load = Callable[[], tuple[Callable[..., Any], Mapping[str, Any]]]


class Inputs(msgspec.Struct, frozen=True):
    """What a flow is given, on its way from the parent to the servers."""

    payload: codec.Payload
    blobs: dict[str, bytes]


_THREADS: Final = Path("/proc/self/task")
_ORDERS = msgspec.json.Decoder(Order)


def serve(load: Load) -> None:
    """Load the flow and its inputs, say so, and carry out orders until there are none."""
    orders, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # what the flow reads or prints is no part of the conversation
    os.dup2(2, 1)
    try:
        flow, inputs = load()
        function = as_function(flow)
        clash = inputs.keys() & inspect.signature(run).parameters.keys()
        if clash:
            raise ConfigError(
                f"{function.name}: its inputs {sorted(clash)} have names of options.", hint="Rename them."
            )
        prepare(function, (), GOAL, dict(inputs))
        import perdure.stores.file  # what every life needs is loaded once
        import perdure.stores.sqlite  # noqa: F401
    except PerdureError as wrong:
        _say(answers, Ready(error=wrong.args[0], hint=wrong.hint))
        return
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
        _say(answers, Ready(error=discreet(f"The program cannot be loaded: {type(error).__name__}: {error}.")))
        return
    forks = _can_fork()
    _say(answers, Ready(flow=function.name, forks=forks))
    for line in orders:
        order = _ORDERS.decode(line)
        if not forks:
            _live(function, inputs, order)
        _say(answers, Gone(_life(function, inputs, order)))


def read_inputs(flow: Callable[..., Any], path: str) -> Mapping[str, Any]:
    """The inputs in a file that ``Inputs`` were written to."""
    _ = as_function(flow).signature  # makes their types known
    read = msgspec.json.decode(Path(path).read_bytes(), type=Inputs)
    inputs: Mapping[str, Any] = codec.loads(read.payload, read.blobs)
    return inputs


def _can_fork() -> bool:
    return hasattr(os, "fork") and _THREADS.is_dir() and len(list(_THREADS.iterdir())) == 1


def _say(answers: BinaryIO, message: msgspec.Struct) -> None:
    answers.write(encoded(message))
    answers.flush()


def _life(function: Function[..., Any], inputs: Mapping[str, Any], order: Order) -> int:
    """Fork a life and wait for its end. What it has started ends with it."""
    term = {signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, term)
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, term)
        _live(function, inputs, order)

    def stop(number: int, frame: FrameType | None) -> None:
        _end_group(pid)
        os._exit(0)

    usual = signal.signal(signal.SIGTERM, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, term)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # while nobody has looked at it, its number is its own
    signal.signal(signal.SIGTERM, usual)
    _end_group(pid)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _end_group(pid: int) -> None:
    for end in (os.kill, os.killpg):  # it may not have made its group yet
        with suppress(OSError):
            end(pid, signal.SIGKILL)


def _live(function: Function[..., Any], inputs: Mapping[str, Any], order: Order) -> NoReturn:
    status = 1
    try:
        live_once(function, inputs, order)
        status = 0
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(status)
