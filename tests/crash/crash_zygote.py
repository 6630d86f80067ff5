"""A server that forks: one process with everything imported, whose children live and die in milliseconds.

It has one thread, so its children begin with sound locks. Tests talk to it through ``Zygote``.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
import zlib
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from perdure import snapshot

_PATIENCE = 60
_END = "end\n"


class Ended(NamedTuple):
    """How a child ended: what its function returned, and by which signal it died (0 for none)."""

    value: Any
    signal: int
    text: str

    @property
    def killed(self) -> bool:
        return self.signal == signal.SIGKILL


class Zygote:
    """Runs ``module:function(**arguments)`` in fresh child processes; arguments and result are JSON.

    ``preload``: a library to be loaded before all others.
    """

    def __init__(self, preload: Path | None = None) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"  # faults are for the files of runs
        if preload is not None:
            environment["LD_PRELOAD"] = str(preload)
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, function: str, **arguments: Any) -> Ended:
        """Run to the end. A child that raises, or takes over a minute, fails the test."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([function, arguments]) + "\n")
        self._process.stdin.flush()
        ended = Ended(**json.loads(self._process.stdout.readline()))
        assert ended.signal in (0, signal.SIGKILL), f"{function}{arguments} died of signal {ended.signal}: {ended.text}"
        assert ended.killed or not ended.text, f"{function}{arguments}: {ended.text}"
        return ended

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(_END)  # a stray child of another test may hold our end of the pipe open
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def serve() -> None:
    for module in (
        "crash_lives",
        "crash_jobs",
        "crash_calls",
        "crash_shapes",
        "crash_runner_lives",
        "crash_endings",
        "crash_waits",
        "crash_forks",
        "crash_costs",
        "perdure.stores.file",
        "perdure.stores.sqlite",
    ):
        importlib.import_module(module)
    for line in sys.stdin:
        if line == _END:
            return
        function, arguments = json.loads(line)
        source, sink = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(source)
            _child(sink, function, arguments)
        os.close(sink)
        with os.fdopen(source) as pipe:
            said = pipe.read()
        _, status = os.waitpid(pid, 0)
        value, text = json.loads(said) if said else (None, "" if os.WIFSIGNALED(status) else "it said nothing")
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        print(json.dumps({"value": value, "signal": number, "text": text}), flush=True)


def _child(sink: int, function: str, arguments: dict[str, Any]) -> NoReturn:
    signal.alarm(_PATIENCE)
    os.dup2(2, 1)  # what a child prints is no answer
    if zlib.crc32(f"{arguments.get('store')} {arguments.get('job')}".encode()) % 2:
        snapshot._FEW = 3  # half of the cases resume by way of snapshots
    try:
        module, _, name = function.partition(":")
        answer = (getattr(importlib.import_module(module), name)(**arguments), "")
    except BaseException:
        answer = (None, traceback.format_exc())
    data = json.dumps(answer).encode()
    while data:
        data = data[os.write(sink, data) :]
    os._exit(0)


if __name__ == "__main__":
    serve()
