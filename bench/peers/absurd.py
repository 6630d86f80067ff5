"""Absurd: tasks and their checkpoints in PostgreSQL, with the schema that its own command line brings along."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import absurdctl
import psycopg
from absurd_sdk import Absurd, AsyncAbsurd

from bench.talk import Job, Sample, Watch, imports, per_second, serve, stop_here, text, texts

_LAST = {"step": 0, "resumed": False, "kill": 0}
_WORKERS = 8
"""connections among which many runs at a time are shared"""
_AGAIN: Any = {"max_attempts": 1000, "retry_strategy": {"kind": "none"}}


class Stop(Exception):
    """The run is as long as it is to be."""


def work(number: int, size: int) -> str:
    """A step's body."""
    if _LAST["resumed"]:
        stop_here(first=number)
    if number == _LAST["step"]:
        raise Stop
    return text(number, size)


def sequence(params: Any, ctx: Any) -> int:
    """Steps one after the other."""
    total = 0
    for number in range(params["count"]):
        total += len(ctx.step("work", lambda number=number: work(number, params["size"])))
        if number + 1 == _LAST["kill"]:
            stop_here()
    return total


def _installed(job: Job) -> None:
    with psycopg.connect(job["server"], autocommit=True) as control:
        control.execute(absurdctl.BUNDLED_SCHEMA_SQL.encode())
    with _app(job) as app:
        app.create_queue()


class _app(Absurd):
    """A client that closes its connection, and knows the task."""

    def __init__(self, job: Job) -> None:
        super().__init__(job["server"])
        self.register_task("sequence")(sequence)

    def __enter__(self) -> _app:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def one_run(job: Job, size: int = 1024) -> Sample:
    """W1, and W2 with another size: spawned, claimed and executed by the same process."""
    _LAST.update(step=-1, resumed=False, kill=0)
    texts(job["size"], size)
    _installed(job)
    with _app(job) as app:
        app.spawn("sequence", {"count": 2, "size": size})
        app.work_batch()
        with Watch() as watch:
            spawned = app.spawn("sequence", {"count": job["size"], "size": size})
            app.work_batch()
        _finished(app, spawned["task_id"])
    return per_second(job["size"], watch.seconds)


def _finished(app: Absurd, task: str) -> None:
    told = app.fetch_task_result(task)
    assert told is not None and told.state == "completed", told


def growing(job: Job) -> Sample:
    """W2: a step returns no more than what is new."""
    return {**one_run(job, 2048), "payload": job["size"] * 2048}


def many_runs(job: Job) -> Sample:
    """W3: some workers in one event loop, each with as many tasks at a time as it takes."""
    _installed(job)
    texts(job["size"], 1024)
    return per_second(job["runs"] * job["size"], asyncio.run(_crowd(job)))


async def _crowd(job: Job) -> float:
    ended: list[int] = []
    apps = [AsyncAbsurd(job["server"]) for _ in range(_WORKERS)]

    async def steps(params: Any, ctx: Any) -> None:
        for number in range(job["size"]):

            async def body(number: int = number) -> str:
                return text(number, 1024)

            await ctx.step("work", body)
        ended.append(1)
        if len(ended) == job["runs"]:
            for app in apps:
                app.stop_worker()

    for app in apps:
        app.register_task("steps")(steps)
    with Watch() as watch:
        for _ in range(job["runs"]):
            await apps[0].spawn("steps", {})
        each = -(-job["runs"] // _WORKERS)
        await asyncio.gather(*(app.start_worker(concurrency=each, poll_interval=0.01) for app in apps))
    for app in apps:
        await app.close()
    return watch.seconds


def make(job: Job) -> Sample:
    """W4: the first steps; the attempt fails, and the next may begin at once."""
    _LAST.update(step=job["size"])
    _installed(job)
    with _app(job) as app:
        app.spawn("sequence", {"count": 10**9, "size": 100}, **_AGAIN)
        app.work_batch()
    return {}


def kill(job: Job) -> Sample:
    """Die right after the ``size``-th step was reported done; the claim ends soon after."""
    _LAST.update(step=-1, kill=job["size"])
    _installed(job)
    with _app(job) as app:
        app.spawn("sequence", {"count": 10**9, "size": 100}, **_AGAIN)
        app.work_batch(claim_timeout=1)
    raise AssertionError("the process lives")


def resume(job: Job) -> Sample:
    """W4: go on, as a worker does."""
    _LAST.update(resumed=True)
    with _app(job) as app:
        for _ in range(600):
            app.work_batch()
            time.sleep(0.1)
    raise AssertionError("no step was executed")


WORKLOADS = {
    "W1": one_run,
    "W2": growing,
    "W3": many_runs,
    "W4 make": make,
    "W4 kill": kill,
    "W4 resume": resume,
    "W4 imports": imports,
}

if __name__ == "__main__":
    serve(WORKLOADS)
