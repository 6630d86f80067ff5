"""In the parent: the servers that lives are forked from, and the end of everything that was started.

Each server has another hash seed, and each life of a run is lived by another server than the one before: the order of
a set of texts, and addresses of objects, are others in the next process, as they are in real life.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

import msgspec

from perdure.clock import SYSTEM
from perdure.errors import ConfigError
from perdure.testing.crashes.said import Gone, Order, Ready, encoded

_LOADING: Final = 120.0
"""seconds that loading the program may take"""
_LATE: Final = 15.0
"""seconds after its time limit at which a life that has not ended itself is ended"""
_END: Final = 5.0
"""seconds in which a server ends what it has started"""
_GLANCE: Final = 0.005
"""seconds between two looks at whether one has ended"""


class Stopped(BaseException):
    """The crash test is being ended: nothing more is started."""


class Server:
    """One child process, begun anew when it has ended. One thread uses it at a time."""

    def __init__(self, program: Sequence[str], seed: int, log: Path) -> None:
        self._program, self._log = [sys.executable, *program], log
        own = f"sqlite:{log.with_suffix('.db')}"  # for what the program opens when it is imported: not the user's
        self._environment = {**os.environ, "PERDURE_STORE": own}
        self._environment.setdefault("PYTHONHASHSEED", str(seed))  # a program that needs a fixed order has it fixed
        self._process: subprocess.Popen[bytes] | None = None
        self._heard = b""
        self._ending = threading.Lock()
        self.lock = threading.Lock()
        """for whoever uses it"""
        self.closed = False
        self.ready = Ready()

    def start(self) -> Ready:
        """Begin, and wait until the program is loaded. Raises ConfigError if it cannot be."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._program,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is for the parent, which ends the others
            )
        self._heard = b""
        line = self._hear(_LOADING)
        if line is None:
            self.stop()
            raise ConfigError(f"The program cannot be loaded: {self._last_words()}")
        self.ready = msgspec.json.decode(line, type=Ready)
        if self.ready.error:
            self.stop()
            raise ConfigError(self.ready.error, hint=self.ready.hint)
        return self.ready

    def live(self, order: Order) -> int:
        """Have a life lived. Returns its exit code, or the negative number of the signal that it died of."""
        if self._process is None:
            self.start()
        assert self._process is not None and self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, and says nothing more
            self._process.stdin.write(encoded(order))
            self._process.stdin.flush()
        line = self._hear(order.timeout + _LATE)
        if line is not None:
            return msgspec.json.decode(line, type=Gone).status
        if self.ready.forks:
            self.stop()
            return -signal.SIGABRT
        status = self._status(_END)
        self.stop()
        return -signal.SIGABRT if status is None else status

    def _status(self, seconds: float) -> int | None:
        """How the process ended, waiting so long for that; None if it has not. Its number is still its own then."""
        assert self._process is not None
        end = SYSTEM.monotonic() + seconds
        while (status := _status_of(self._process)) is None and SYSTEM.monotonic() < end:
            SYSTEM.sleep(_GLANCE)
        return status

    def _hear(self, seconds: float) -> bytes | None:
        """The next line it says; None if it has ended, or says nothing for so long."""
        if self.closed:
            raise Stopped
        assert self._process is not None and self._process.stdout is not None
        source, end = self._process.stdout.fileno(), SYSTEM.monotonic() + seconds
        while b"\n" not in self._heard:
            left = end - SYSTEM.monotonic()
            if left <= 0 or not select.select([source], [], [], left)[0]:
                return None
            more = os.read(source, 65536)
            if self.closed:
                raise Stopped
            if not more:
                return None
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        return line

    def halt(self) -> None:
        """Nothing more is lived, and what is lived ends soon. Any thread may call this."""
        self.closed = True
        self._terminate()

    def _terminate(self) -> None:
        with self._ending:  # Popen's own looks whether it has ended, and then its number may be another's
            if self._process is not None:
                os.kill(self._process.pid, signal.SIGTERM)

    def stop(self) -> None:
        """End it, the life that it has forked, and what that has started."""
        if self._process is None:
            return
        self._terminate()
        self._status(_END)
        with self._ending:
            process, self._process = self._process, None
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for stream in (process.stdin, process.stdout):
            with suppress(OSError):  # what was not sent to it is not sent any more
                assert stream is not None
                stream.close()

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing."


def _status_of(process: subprocess.Popen[bytes]) -> int | None:
    """As ``poll``, but its number is not given to another process yet, where the system can do that."""
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        return process.poll()
    found = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


class Nursery:
    """So many servers for one program; whoever wants a life lived says in which of them. Use as a context manager."""

    def __init__(self, program: Sequence[str], number: int, seed: int, folder: Path) -> None:
        self._servers = [
            Server(program, (seed * 1_000_003 + place * 7919 + 1) % 2**32, folder / f"server-{place}.log")
            for place in range(number)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.halt()
        for server in self._servers:
            server.stop()

    def halt(self) -> None:
        """End what is lived at this moment: whoever waits for it gets Stopped. Any thread may call this."""
        for server in self._servers:
            server.halt()

    def load(self) -> Ready:
        """Begin the first. Raises ConfigError if the program cannot be loaded."""
        return self._servers[0].start()

    def live(self, place: int, order: Order) -> int:
        server = self._servers[place % len(self._servers)]
        with server.lock:
            if server.closed:
                raise Stopped
            return server.live(order)
