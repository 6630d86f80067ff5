"""Runs that end in other ways than by SIGKILL, and two processes that want one run."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import crash_crew as crew
from crash_lives import url

import perdure
from perdure import errors
from perdure.testing.processes import Child

_ending = ""
_NAMED = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}


def _end() -> None:
    """What happens to the process in the middle of the second step of its first life."""
    if _ending in _NAMED:
        os.kill(os.getpid(), _NAMED[_ending])
    elif _ending == "exit":
        sys.exit(7)
    elif _ending == "error":
        raise RuntimeError("a bug in the step")
    elif _ending == "cancel":
        raise asyncio.CancelledError


@perdure.step
def first_sync() -> str:
    crew.say("began", "first")
    return "one"


@perdure.step
def second_sync(one: str) -> str:
    crew.say("began", "second")
    _end()
    if _ending and _ending != "flow-exit":
        threading.Event().wait(30)
    return one + " two"


@perdure.step
async def first_async() -> str:
    return first_sync.fn()


@perdure.step
async def second_async(one: str) -> str:
    crew.say("began", "second")
    _end()
    if _ending and _ending != "flow-exit":
        await asyncio.Event().wait()
    return one + " two"


@perdure.flow(name="ends")
def ends_sync() -> str:
    text = second_sync(first_sync())
    if _ending == "flow-exit":
        sys.exit(7)
    return text


@perdure.flow(name="ends")
async def ends_async() -> str:
    text = await second_async(await first_async())
    if _ending == "flow-exit":
        sys.exit(7)
    return text


def life(root: str, store: str, colour: str, life: int, ending: str) -> dict[str, Any]:
    """One life that ends in the given way; what was raised, and what a client sees then."""
    global _ending
    _ending = ending
    Path(root).mkdir(exist_ok=True)
    crew.listen(f"{root}.witness", life)
    found: dict[str, Any] = {"result": None, "raised": "", "code": None}
    try:
        flow = ends_async if colour == "async" else ends_sync
        found["result"] = perdure.run(flow, goal="ends", store=url(root, store))
    except BaseException as error:
        found.update(raised=type(error).__name__, code=getattr(error, "code", None))
    with perdure.Client(url(root, store)) as client:
        state = client.state("ends")
        found.update(status=state.status, reason=state.reason, holder=client.find("ends").holder is not None)
        found["steps"] = [step.status for step in state.steps.values()]
        found["listed"] = [row.goal for row in client.interrupted()]
    return found


def contend(root: str, store: str) -> dict[str, Any]:
    """A process holds the run; we are refused, kill it, and go on at once."""
    place = url(root, store)
    Path(root).mkdir(exist_ok=True)

    @perdure.step
    def first() -> str:
        return "one"

    def work(say: Any, hear: Any) -> None:
        @perdure.step
        def second(one: str) -> str:
            say("inside\n")
            hear()
            return one

        perdure.run(perdure.flow(name="held")(lambda: second(first())), goal="held", store=place)

    @perdure.step
    def second(one: str) -> str:
        return one + " two"

    flow = perdure.flow(name="held")(lambda: second(first()))
    holder = Child(work)
    assert holder.hear() == "inside"
    found: dict[str, Any] = {"pid": holder.pid}
    try:
        perdure.run(flow, goal="held", store=place)
    except errors.LeaseHeld as error:
        found["refused"] = str(error)
    with perdure.Client(place) as client:
        row = client.find("held")
        found["shown"] = (row.status, row.holder.pid if row.holder else None)
    holder.kill()
    found["result"] = perdure.run(flow, goal="held", store=place)
    with perdure.Client(place) as client:
        found["attempts"] = [[a.outcome for a in step.attempts] for step in client.state("held").steps.values()]
    return found
