"""Perdure in the workloads that begin and end in one process: ``python -m bench.programs.ours``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import perdure
from bench.programs import crowd, resumed, shared
from bench.programs.places import url
from bench.talk import Job, Sample, Watch, per_second, serve, text, texts
from perdure.errors import RunSuspended
from perdure.runners import Agent, Reply, ToolCall


@perdure.step
def work(number: int) -> str:
    """A step that takes no time and returns 1 KiB."""
    return text(number, 1024)


@perdure.step
async def work_async(number: int) -> str:
    """The same, async."""
    return text(number, 1024)


@perdure.flow
def sequence(size: int) -> int:
    """Steps one after the other."""
    return sum(len(work(number)) for number in range(size))


@perdure.flow
async def sequence_async(size: int) -> int:
    """The same, async."""
    return sum([len(await work_async(number)) for number in range(size)])


def one_run(job: Job) -> Sample:
    """W1: steps a second of one run."""
    texts(job["size"], 1024)
    flow: Callable[..., object] = sequence if job["colour"] == "sync" else sequence_async
    config = perdure.CheckpointConfig(durability=job["durability"])
    with perdure.CheckpointManager(url(job), config) as manager:
        manager.run_sync(flow, 1, goal="warm")
        with Watch() as watch:
            manager.run_sync(flow, job["size"], goal="measured")
    return per_second(job["size"], watch.seconds)


def agent(job: Job) -> Sample:
    """W2: an agent whose model and tool say 2 KiB in turn, each a step and a message of the conversation."""
    last = job["size"] // 2
    texts(job["size"], 2048)

    def look(number: int) -> str:
        return text(2 * number + 1, 2048)

    def model(messages: list[Any], tools: object) -> Reply | str:
        number = len(messages) // 2
        return Reply(text(2 * number, 2048), (ToolCall("look", {"number": number}),)) if number < last else "done"

    with perdure.CheckpointManager(url(job)) as manager, Watch() as watch:
        manager.run_sync(Agent(model, [look], max_iterations=last + 1), "go", goal="measured")
    return {"seconds": watch.seconds, "payload": job["size"] * 2048}


def many_runs(job: Job) -> Sample:
    """W3: steps a second of many runs at a time in one event loop, strict."""
    texts(job["size"], 1024)

    async def main(manager: perdure.CheckpointManager) -> float:
        with Watch() as watch:
            runs = (manager.run(sequence_async, job["size"], goal=f"run {n}") for n in range(job["runs"]))
            await asyncio.gather(*runs)
        return watch.seconds

    with perdure.CheckpointManager(url(job)) as manager:
        manager.run_sync(sequence_async, 1, goal="warm")
        return per_second(job["runs"] * job["size"], asyncio.run(main(manager)))


@perdure.step
def small(number: int) -> int:
    """A step for the floor."""
    return number


@perdure.step
async def small_async(number: int) -> int:
    """The same, async."""
    return number


def no_store(job: Job) -> Sample:
    """W5: microseconds a call of a step outside of any run, over calling the plain function."""
    size = job["size"]

    async def loop(fn: Callable[[int], Any]) -> float:
        with Watch() as watch:
            for number in range(size):
                await fn(number)
        return watch.seconds

    def loop_sync(fn: Callable[[int], Any]) -> float:
        with Watch() as watch:
            for number in range(size):
                fn(number)
        return watch.seconds

    if job["colour"] == "sync":
        plain, step = loop_sync(small.fn), loop_sync(small)
    else:
        plain, step = asyncio.run(loop(small_async.fn)), asyncio.run(loop(small_async))
    return {"microseconds": (step - plain) / size * 1e6, "plain": plain / size * 1e6}


@perdure.step
def speak(size: int) -> int:
    """Streams as fast as it can: the text is kept while it goes on."""
    context = perdure.context()
    for number in range(size):
        context.stream(text(number, 6))
    return size


@perdure.step
async def speak_async(size: int) -> int:
    """The same, giving others a turn after each token, as a model's client does."""
    context = perdure.context()
    for number in range(size):
        context.stream(text(number, 6))
        await asyncio.sleep(0)
    return size


@perdure.flow
def speech(size: int) -> int:
    """One step that streams."""
    return speak(size)


@perdure.flow
async def speech_async(size: int) -> int:
    """The same, async."""
    return await speak_async(size)


def streaming(job: Job) -> Sample:
    """W7: tokens a second of one step."""
    texts(job["size"], 6)
    flow: Callable[..., object] = speech if job["colour"] == "sync" else speech_async
    with perdure.CheckpointManager(url(job)) as manager:
        manager.run_sync(flow, 1, goal="warm")
        with Watch() as watch:
            manager.run_sync(flow, job["size"], goal="measured")
    return {**per_second(job["size"], watch.seconds), "payload": 6 * job["size"]}


@perdure.flow
async def asks(number: int) -> str:
    """A question with a deadline."""
    answer: str = await perdure.ask("Go on?", deadline=86400.0 + number, default="no")
    return answer


def suspended(job: Job) -> Sample:
    """W8: runs a second that ask a question and are suspended, 100 at a time."""

    async def main() -> float:
        with perdure.CheckpointManager(url(job)) as manager, Watch() as watch:
            for first in range(0, job["size"], 100):
                runs = (manager.run(asks, n, goal=f"goal-{n}") for n in range(first, min(first + 100, job["size"])))
                ends = await asyncio.gather(*runs, return_exceptions=True)
                assert all(isinstance(end, RunSuspended) for end in ends), ends
        return watch.seconds

    return per_second(job["size"], asyncio.run(main()))


WORKLOADS = {
    "W1": one_run,
    "W2": agent,
    "W3": many_runs,
    "W5": no_store,
    "W7": streaming,
    "W8 suspended": suspended,
    **resumed.WORKLOADS,
    **crowd.WORKLOADS,
    **shared.WORKLOADS,
}

if __name__ == "__main__":
    serve(WORKLOADS)
