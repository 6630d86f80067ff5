"""W8: four processes that share a store, and execute the runs in it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time

import perdure
from bench.programs.places import url
from bench.talk import Job, Sample
from perdure.clock import SYSTEM
from perdure.runtime.lease import clock_of
from perdure.runtime.queues import Offer, Search
from perdure.stores import open_store


@perdure.flow
async def nothing(number: int) -> int:
    """A run without steps."""
    return number


def claims(job: Job) -> Sample:
    """Runs a second that 4 processes claim, as a worker does that has room for ten: look what there is, and claim."""
    place, size = url(job), job["size"]
    _submit(place, size)
    workers = _four(f"s.claim({place!r})")
    said = [json.loads(worker.stdout.readline()) for worker in workers if worker.stdout is not None]
    for worker in workers:
        worker.communicate("")
    assert sum(map(len, said)) == size, said
    at = [moment for moments in said for moment in moments]
    return {"per_second": size / (max(at) - min(at))}


def whole_runs(job: Job) -> Sample:
    """Runs a second that 4 workers claim, begin and complete, from the first to the last; they have no steps."""
    place, size = url(job), job["size"]
    _submit(place, size)
    for worker in _four(f"s.work({place!r})"):
        worker.communicate()
    with perdure.Client(place) as client:
        rows = client.runs()
    assert [row.status for row in rows] == ["completed"] * size
    return {"per_second": size / (max(row.updated for row in rows) - min(row.begun for row in rows))}


def _submit(place: str, size: int) -> None:
    with perdure.CheckpointManager(place) as manager:
        for n in range(size):
            manager.submit(nothing, n, goal=f"run {n}")


def _four(code: str) -> list[subprocess.Popen[str]]:
    words = [sys.executable, "-c", f"import bench.programs.shared as s; {code}"]
    return [subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]


def work(place: str) -> None:
    """Be a worker until nothing is left."""
    with perdure.CheckpointManager(place) as manager:
        asyncio.run(manager.work(nothing, until_idle=True))


def claim(place: str) -> None:
    """Claim until nothing is left, say when each was claimed, and live until all have said so: what a process holds is
    free when it ends."""
    store, at = open_store(place), []
    began = time.monotonic()
    search = Search(clock_of(store, SYSTEM), Offer({nothing.name: nothing}))
    while taken := search.take(store, 10, busy=False).runs:
        at += [began] + [time.monotonic()] * (len(taken) - 1)
        began = time.monotonic()
    print(json.dumps(at), flush=True)
    sys.stdin.read()


WORKLOADS = {"W8 claims": claims, "W8 runs": whole_runs}
