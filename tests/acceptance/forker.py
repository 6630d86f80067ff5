"""The command in processes of its own that begin in milliseconds: forked from one that has imported it already.

What differs from a fresh process is only what importing does. Commands that are killed, or need a terminal, are fresh
processes all the same: see stranger.py.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_ENDED = 60


class Forker:
    """Runs ``python -m perdure`` with other words, folder and environment, one at a time."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        self._ours.settimeout(_ENDED)
        self._answers = self._ours.makefile()

    def run(self, words: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Run to the end, which must come within a minute."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            order = json.dumps({"words": words, "folder": str(folder), "environment": environment}) + "\n"
            socket.send_fds(self._ours, [b"\n"], [out.fileno(), err.fileno()])
            self._ours.sendall(order.encode())
            code = json.loads(self._answers.readline())
            said = []
            for file in (out, err):
                file.seek(0)
                said.append(file.read().decode())
        return subprocess.CompletedProcess(["perdure", *words], code, *said)

    def close(self) -> None:
        self._answers.close()
        self._ours.close()
        self._process.wait()


def _serve(orders: socket.socket) -> list[str]:
    """Fork for each order. Returns in the children only, with the words for the command."""
    lines = orders.makefile()
    while True:
        _, (out, err), _, _ = socket.recv_fds(orders, 1, 2)
        line = lines.readline()
        if not line:
            os._exit(0)
        pid = os.fork()
        if pid == 0:
            order = json.loads(line)
            orders.close()
            lines.close()
            for place, fd in ((1, out), (2, err)):
                os.dup2(fd, place)
            os.chdir(order["folder"])
            os.environ.clear()
            os.environ.update(order["environment"])
            time.tzset()
            sys.path[0] = order["folder"]
            words: list[str] = order["words"]
            return words
        os.close(out)
        os.close(err)
        _, status = os.waitpid(pid, 0)
        orders.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    import perdure.cli
    import perdure.stores.file
    import perdure.stores.sqlite

    with socket.socket(fileno=int(sys.argv[1])) as connection:
        sys.argv[1:] = _serve(connection)
    sys.argv[0] = str(Path(perdure.cli.__file__).parents[1] / "__main__.py")
    sys.exit(perdure.cli.main())
