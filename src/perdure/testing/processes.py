"""A real child process to be talked to and killed."""

from __future__ import annotations

import os
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import NoReturn

SILENCE = 60
"""Seconds after which a child that says nothing is taken for stuck: far more than any test takes, on any machine."""


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
        self._out, self._in, self._heard = from_parent, to_parent, b""

    def say(self, text: str) -> None:
        os.write(self._out, text.encode())

    def hear(self) -> str:
        """The next line the child says. Raises EOFError when it has ended, TimeoutError when it says nothing."""
        while b"\n" not in self._heard:
            if not self._listen():
                raise EOFError("the child process has ended")
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode()

    def kill(self) -> list[str]:
        """SIGKILL, and wait until the process is gone. Returns the lines it had said that nobody heard."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        while self._listen():
            pass
        os.close(self._out)
        os.close(self._in)
        return self._heard.decode().split("\n")[:-1]

    def _listen(self) -> bool:
        """Take in what the child says next; False when it has ended."""
        if not select.select([self._in], [], [], SILENCE)[0]:
            raise TimeoutError(f"the child process {self.pid} has said nothing for {SILENCE} s")
        more = os.read(self._in, 65536)
        self._heard += more
        return more != b""


def _run(work: Callable[[Callable[[str], None], Callable[[], str]], None], out: int, source: int) -> NoReturn:
    lines = os.fdopen(source, encoding="utf-8", closefd=False)
    try:
        work(lambda text: _write(out, text), lambda: lines.readline().rstrip("\n"))
    except BaseException:  # whatever it is, it must not run on into the parent's code
        traceback.print_exc(file=sys.__stderr__)
        os._exit(1)
    os._exit(0)


def _write(fd: int, text: str) -> None:
    os.write(fd, text.encode())
