"""A program that takes part, as a process of its own: it is given jobs and tells results."""

from __future__ import annotations

import json
import os
import platform
import re
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from bench.talk import Job, Sample

ROOT = Path(__file__).parents[1]
PATIENCE = 600.0
"""seconds for one job: far more than any takes that is worth waiting for"""


_FOR_ALL = {"LANGSMITH_TRACING": "false"}
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | _FOR_ALL
"""of the programs: compiled modules are kept, as everywhere where nobody forbids it; nobody reports to a service"""


class Failed(Exception):
    """A program did not do a job; the message says why, without paths and the name of the machine."""

    def __init__(self, why: str) -> None:
        super().__init__(re.sub(r"(?<![\w/])/[\w.-]+/\S+", "(a path)", why).replace(platform.node() or " ", "(host)"))


class Player:
    """One process that does jobs until it is closed. ``words`` start it; ``before`` stands in front of them."""

    def __init__(self, words: Sequence[str], before: Sequence[str] = ()) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            [*before, *words],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )
        self._rest = b""

    def ask(self, job: Job) -> Sample:
        """The result of a job. Raises Failed; the process is then gone, or has said why."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
        result: Sample = json.loads(self._line())
        if "error" in result:
            raise Failed(result["error"])
        return result

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        fd, end = self._process.stdout.fileno(), time.monotonic() + PATIENCE
        with selectors.DefaultSelector() as selector:
            selector.register(fd, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(end - time.monotonic(), 0)):
                    self.kill()
                    raise Failed(f"it took longer than {PATIENCE:.0f} seconds")
                data = os.read(fd, 65536)
                if not data:
                    self.kill()
                    raise Failed(f"its process ended: {self._last_words()}")
                self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return " | ".join(lines[-3:])[-600:] or "it said nothing"

    def close(self) -> None:
        """Let it come to its end."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            pass
        self.kill()

    def kill(self) -> None:
        """End it, and what it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


def once(words: Sequence[str], job: Job) -> tuple[Sample, float]:
    """A job in a process that does nothing else: its result, and the wall time from its start to its end."""
    began = time.perf_counter()
    try:
        done = subprocess.run(
            [*words, json.dumps(job)], cwd=ROOT, env=ENVIRONMENT, capture_output=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"it took longer than {PATIENCE:.0f} seconds") from None
    seconds = time.perf_counter() - began
    if not done.stdout:
        said = " | ".join(done.stderr.decode("utf-8", "replace").strip().splitlines()[-3:])
        raise Failed(f"exit status {done.returncode}: {said[-600:]}")
    result: Sample = json.loads(done.stdout.splitlines()[0])
    if "error" in result:
        raise Failed(result["error"])
    return result, seconds
