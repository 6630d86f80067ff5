"""W4: a run that one process executes up to its n-th step, and that another goes on with from there.

The second process tells when the body of step n+1 is entered, and ends at once; the bench compares its wall time and
memory with those of a process that imports the same and does nothing.
"""

from __future__ import annotations

import json
import time
from typing import Any

import perdure
from bench.programs.places import url
from bench.talk import Job, Sample, memory, stop_here, text
from perdure.errors import LeaseHeld
from perdure.runners import Agent, Reply, ToolCall

_LAST = {"step": 0, "resumed": False, "kill": 0}


class Stop(Exception):
    """The run is as long as it is to be."""


def _over(number: int) -> None:
    """Called by the body of the first step, counted from 0, that is not among those wanted."""
    if _LAST["resumed"]:
        stop_here(first=number)
    raise Stop


@perdure.step(retries=0)
def work(number: int) -> str:
    """100 characters."""
    if number >= _LAST["step"] or _LAST["resumed"]:
        _over(number)
    return text(number, 100)


@perdure.flow
def sequence() -> int:
    """Steps one after the other, until one stops the run."""
    number = 0
    while work(number):
        number += 1
        if number == _LAST["kill"]:
            stop_here()
    return number


def look(number: int) -> str:
    """The agent's tool."""
    return text(2 * number + 1, 100)


def model(messages: list[Any], tools: object) -> Reply:
    """Asks for the tool for ever."""
    number = _asked(messages)
    if 2 * number >= _LAST["step"] or _LAST["resumed"]:
        _over(2 * number)
    return Reply(text(2 * number, 100), (ToolCall("look", {"number": number}),))


def _asked(messages: list[Any]) -> int:
    """How often the tool was asked for."""
    for message in reversed(messages):
        for call in message.get("tool_calls", ()):
            return int(json.loads(call["function"]["arguments"])["number"]) + 1
        if message["content"].startswith("Summary"):
            return int(message["content"].split()[-1])
    return 0


def _agent(shape: str) -> Agent:
    if shape == "agent":
        return Agent(model, [look], max_iterations=10**6, retries=0)
    return Agent(
        model,
        [look],
        max_iterations=10**6,
        retries=0,
        transcript_limit=20_000,
        on_overflow="compact",
        compact=lambda messages: str(_asked(messages)),
    )


def _execute(job: Job, durability: str) -> object:
    flow, inputs = (sequence, ()) if job["shape"] == "flow" else (_agent(job["shape"]), ("go",))
    config = perdure.CheckpointConfig(durability=durability)  # type: ignore[arg-type]
    with perdure.CheckpointManager(url(job) + job.get("more", ""), config) as manager:
        while True:
            try:
                return manager.run_sync(flow, *inputs, goal="resumed")
            except LeaseHeld:  # a server does not know yet that the killed process is dead
                time.sleep(0.1)


def make(job: Job) -> Sample:
    """Execute the first ``size`` steps; a step of the agent is a reply or a tool's result."""
    _LAST.update(step=job["size"], resumed=False)
    try:
        _execute(job, "async")
    except Stop:
        return {}
    raise AssertionError("the run came to an end")


def resume(job: Job) -> Sample:
    """Go on, up to the first body that is entered."""
    _LAST.update(resumed=True)
    _execute(job, "strict")
    raise AssertionError("no step was executed")


def kill(job: Job) -> Sample:
    """Die right after the ``size``-th step was reported done."""
    _LAST.update(step=job["size"] + 1, kill=job["size"])
    _execute(job, job["durability"])
    raise AssertionError("the process lives")


def imports(job: Job) -> Sample:
    """Only what ``resume`` imports."""
    if job["store"] == "sqlite":
        import perdure.stores.sqlite
    elif job["store"] == "file":
        import perdure.stores.file
    elif job["store"] == "postgresql":
        import perdure.stores.postgres
    else:
        import perdure.stores.redis  # noqa: F401
    stop_here(memory=memory())


WORKLOADS = {"W4 make": make, "W4 kill": kill, "W4 resume": resume, "W4 imports": imports}
