"""How the bench and the programs that it measures talk: a line of JSON a job, a line of JSON a result.

Also what every program needs to take part on equal terms: the payloads, the clock, the size of its own memory. Only the
standard library is used, because this is imported in the peers' environment too.
"""

from __future__ import annotations

import base64
import gc
import hashlib
import json
import os
import re
import resource
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

Job = dict[str, Any]
Sample = dict[str, Any]
Work = Callable[[Job], Sample]

_SAYS: list[int] = []
"""the file descriptor on which results are told; what a program prints goes elsewhere"""


@cache
def text(number: int, size: int) -> str:
    """The payload of a step: ``size`` characters that no two steps share, and that compression makes little shorter."""
    raw = hashlib.shake_128(f"payload {number}".encode()).digest(size * 3 // 4 + 3)
    return base64.b64encode(raw).decode()[:size]


def texts(count: int, size: int) -> list[str]:
    """The payloads of ``count`` steps, made before the clock starts."""
    return [text(number, size) for number in range(count)]


class Watch:
    """``with Watch() as watch: ...`` and then ``watch.seconds``."""

    seconds = 0.0

    def __enter__(self) -> Watch:
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._began


def per_second(count: int, seconds: float) -> Sample:
    """So many units in so many seconds."""
    return {"per_second": count / seconds, "seconds": seconds}


def memory() -> int:
    """Kilobytes that this process has had at most. (getrusage remembers the process that it was forked from.)"""
    try:
        found = re.search(r"VmHWM:\s+([0-9]+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    return int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def say(result: Sample) -> None:
    """Tell the bench a result."""
    os.write(_SAYS[0], json.dumps(result).encode() + b"\n")


def stop_here(**result: Any) -> NoReturn:
    """Tell a result and end as a killed process does: at once, with nothing tidied up."""
    say({**result, "memory": memory()})
    os._exit(0)


def imports(job: Job) -> Sample:
    """Only what is imported so far."""
    stop_here()


def serve(workloads: Mapping[str, Work]) -> None:
    """Do jobs until there are no more: the one on the command line, or those on the standard input, one a line."""
    _SAYS.append(os.dup(1))
    os.dup2(2, 1)
    sys.stdout = sys.stderr  # what libraries print is no result
    lines = sys.argv[1:] or sys.stdin
    for line in lines:
        say(_done(workloads, json.loads(line)))


def _done(workloads: Mapping[str, Work], job: Job) -> Sample:
    gc.collect()
    try:
        return workloads[job["workload"]](job)
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"[:300]}
