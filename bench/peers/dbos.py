"""DBOS: workflows and steps, on SQLite and PostgreSQL. A step returns no more than what is new."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import sqlalchemy
from dbos import DBOS, SetWorkflowID

from bench.talk import Job, Sample, Watch, imports, per_second, serve, stop_here, text, texts

_LAST = {"step": 0, "resumed": False, "kill": 0}
_SAFE = [False]


@sqlalchemy.event.listens_for(sqlalchemy.Engine, "connect")
def _as_safe_as_perdure(connection: Any, record: object) -> None:
    """Its own SQLite has the rollback journal, whose last commit a power cut may take back."""
    if _SAFE[0]:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")


@DBOS.step()
def work(number: int, size: int) -> str:
    """A step."""
    if _LAST["resumed"]:
        stop_here(first=number)
    if number == _LAST["step"]:
        stop_here()
    return text(number, size)


@DBOS.step()
async def work_async(number: int, size: int) -> str:
    """The same, async."""
    return text(number, size)


@DBOS.workflow()
def sequence(count: int, size: int) -> int:
    """Steps one after the other."""
    total = 0
    for number in range(count):
        total += len(work(number, size))
        if number + 1 == _LAST["kill"]:
            stop_here()
    return total


@DBOS.workflow()
async def sequence_async(count: int, size: int) -> int:
    """The same, async."""
    return sum([len(await work_async(number, size)) for number in range(count)])


def _launched(job: Job) -> None:
    _SAFE[0] = job.get("safe", False)
    url = f"sqlite:///{job['folder']}/peer.db" if job["store"] == "sqlite" else job["server"]
    DBOS(
        config={
            "name": "bench",
            "system_database_url": url,
            "application_version": "1",
            "executor_id": "local",
            "log_level": "ERROR",
        }
    )
    DBOS.launch()


def _as(name: str, workflow: Callable[..., Any], *inputs: int) -> Any:
    with SetWorkflowID(name):
        return workflow(*inputs)


async def _as_async(name: str, workflow: Callable[..., Any], *inputs: int) -> Any:
    with SetWorkflowID(name):
        return await workflow(*inputs)


def one_run(job: Job, size: int = 1024) -> Sample:
    """W1, and W2 with another size."""
    _LAST.update(step=-1, resumed=False, kill=0)
    texts(job["size"], size)
    _launched(job)
    try:
        _as("warm", sequence, 2, size)
        with Watch() as watch:
            _as("measured", sequence, job["size"], size)
    finally:
        DBOS.destroy()
    return per_second(job["size"], watch.seconds)


def growing(job: Job) -> Sample:
    """W2."""
    return {**one_run(job, 2048), "payload": job["size"] * 2048}


def many_runs(job: Job) -> Sample:
    """W3."""
    _LAST.update(step=-1, resumed=False, kill=0)
    texts(job["size"], 1024)

    async def main() -> float:
        await _as_async("warm", sequence_async, 1, 1024)
        with Watch() as watch:
            runs = (_as_async(f"run {n}", sequence_async, job["size"], 1024) for n in range(job["runs"]))
            await asyncio.gather(*runs)
        return watch.seconds

    _launched(job)
    try:
        seconds = asyncio.run(main())
    finally:
        DBOS.destroy()
    return per_second(job["runs"] * job["size"], seconds)


def make(job: Job) -> Sample:
    """W4: the first steps; then the process is gone, and the workflow pending."""
    _LAST.update(step=job["size"])
    _launched(job)
    _as("resumed", sequence, 10**9, 100)
    raise AssertionError("the run came to an end")


def kill(job: Job) -> Sample:
    """Die right after the ``size``-th step was reported done."""
    _LAST.update(step=-1, kill=job["size"])
    _launched(job)
    _as("resumed", sequence, 10**9, 100)
    raise AssertionError("the process lives")


def resume(job: Job) -> Sample:
    """W4: go on with what is pending, as every launch does."""
    _LAST.update(resumed=True)
    _launched(job)
    threading.Event().wait(500)
    raise AssertionError("no step was executed")


def imported(job: Job) -> Sample:
    """Only what ``resume`` imports."""
    if job["store"] != "sqlite":
        import psycopg  # noqa: F401
    return imports(job)


WORKLOADS = {
    "W1": one_run,
    "W2": growing,
    "W3": many_runs,
    "W4 make": make,
    "W4 kill": kill,
    "W4 resume": resume,
    "W4 imports": imported,
}

if __name__ == "__main__":
    serve(WORKLOADS)
