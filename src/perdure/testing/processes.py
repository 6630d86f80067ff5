"""A real child process to be talked to and killed."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import NoReturn


class Child:
    """A forked process that runs ``work(say, hear)``: ``say`` sends text to the parent, ``hear`` reads one line from
    it.

    It never returns into the parent's code: it ends when ``work`` ends (its traceback goes to stderr), or by ``kill``.
    """

    def __init__(self, work: Callable[[Callable[[str], None], Callable[[], str]], None]) -> None:
        to_child, from_parent = os.pipe()
        to_parent, from_child = os.pipe()
        with warnings.catch_warnings():  # the child touches none of the parent's threads and ends without cleaning up
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            os.close(from_parent)
            os.close(to_parent)
            _run(work, from_child, to_child)
        os.close(to_child)
        os.close(from_child)
        self._out, self._in = from_parent, os.fdopen(to_parent, encoding="utf-8")

    def say(self, text: str) -> None:
        os.write(self._out, text.encode())

    def hear(self) -> str:
        """The next line the child says. Raises EOFError when it has ended."""
        line = self._in.readline()
        if not line:
            raise EOFError("the child process has ended")
        return line.rstrip("\n")

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._out)
        self._in.close()


def _run(work: Callable[[Callable[[str], None], Callable[[], str]], None], out: int, source: int) -> NoReturn:
    lines = os.fdopen(source, encoding="utf-8", closefd=False)
    try:
        work(lambda text: _write(out, text), lambda: lines.readline().rstrip("\n"))
    except BaseException:  # noqa: BLE001 - whatever it is, it must not run on into the parent's code
        traceback.print_exc(file=sys.__stderr__)
        os._exit(1)
    os._exit(0)


def _write(fd: int, text: str) -> None:
    os.write(fd, text.encode())
