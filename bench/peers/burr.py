"""Burr: actions over a state that its SQLite persister writes whole after each of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from burr.core import ApplicationBuilder, State, action, expr
from burr.core.persistence import SQLitePersister

from bench.talk import Job, Sample, Watch, imports, per_second, serve, stop_here, text, texts

_LAST = {"step": 0, "resumed": False, "kill": 0}


class Stop(Exception):
    """The run is as long as it is to be."""


def _over(number: int) -> None:
    if number == _LAST["kill"] != 0:
        stop_here()
    if _LAST["resumed"]:
        stop_here(first=number)
    if number == _LAST["step"]:
        raise Stop


@action(reads=["number", "size"], writes=["number", "body"])
def work(state: State) -> State:
    """A step."""
    number = state["number"]
    _over(number)
    return state.update(number=number + 1, body=text(number, state["size"]))


@action(reads=["number", "size", "messages"], writes=["number", "messages"])
def say(state: State) -> State:
    """A message."""
    number = state["number"]
    _over(number)
    return state.update(number=number + 1).append(
        messages={"role": "assistant", "content": text(number, state["size"])}
    )


@contextmanager
def _persister(job: Job) -> Iterator[SQLitePersister]:
    with SQLitePersister(f"{job['folder']}/peer.db", connect_kwargs={"check_same_thread": False}) as persister:
        if job.get("safe"):
            persister.connection.execute("PRAGMA journal_mode=WAL")
            persister.connection.execute("PRAGMA synchronous=FULL")
        persister.initialize()
        yield persister


def _application(job: Job, persister: SQLitePersister, name: str, count: int, size: int) -> Any:
    """The same application, wherever the persister says that it was."""
    state = {"number": 0, "count": count, "size": size, "body": "", "messages": []}
    one = say if job["workload"] == "W2" or job.get("shape") == "agent" else work
    return (
        ApplicationBuilder()
        .with_actions(work=one, done=action(reads=[], writes=[])(lambda state: state))
        .with_transitions(("work", "work", expr("number < count")), ("work", "done"))
        .initialize_from(persister, resume_at_next_action=True, default_state=state, default_entrypoint="work")
        .with_state_persister(persister)
        .with_identifiers(app_id=name)
        .build()
    )


def one_run(job: Job, size: int = 1024) -> Sample:
    """W1, and W2 with another size."""
    _LAST.update(step=-1, resumed=False, kill=0)
    texts(job["size"], size)
    with _persister(job) as persister:
        _application(job, persister, "warm", 2, size).run(halt_after=["done"])
        with Watch() as watch:
            _application(job, persister, "measured", job["size"], size).run(halt_after=["done"])
    return per_second(job["size"], watch.seconds)


def growing(job: Job) -> Sample:
    """W2."""
    return {**one_run(job, 2048), "payload": job["size"] * 2048}


def _go_on(job: Job) -> None:
    with _persister(job) as persister:
        _application(job, persister, "resumed", 10**9, 100).run(halt_after=["done"])
    raise AssertionError("the run came to an end")


def make(job: Job) -> Sample:
    """W4: the first steps."""
    _LAST.update(step=job["size"])
    try:
        _go_on(job)
    except Stop:
        pass
    return {}


def kill(job: Job) -> Sample:
    """Die when the action after the ``size``-th begins: then that was reported."""
    _LAST.update(step=-1, kill=job["size"])
    _go_on(job)
    return {}


def resume(job: Job) -> Sample:
    """W4: go on."""
    _LAST.update(resumed=True)
    _go_on(job)
    return {}


WORKLOADS = {
    "W1": one_run,
    "W2": growing,
    "W4 make": make,
    "W4 kill": kill,
    "W4 resume": resume,
    "W4 imports": imports,
}

if __name__ == "__main__":
    serve(WORKLOADS)
