"""Flows of every shape for workers that are killed, and what proves afterwards that nothing ran twice or at two places.

Every body writes into a *ledger*, a file beside the store: when it begins and when it ends, by the clock that all
processes of the machine share. A line is one write, so that a killed process leaves whole lines.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import perdure
from perdure.runners import Agent, Graph, Node, Reply, ToolCall

PACE = float(os.environ.get("CRASH_PACE", "0.01"))
"""seconds that a body takes"""


def note(*words: object) -> None:
    """One line of the ledger."""
    line = "\t".join(map(str, (time.monotonic(), os.getpid(), *words)))
    fd = os.open(os.environ["CRASH_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{line}\n".encode())
    os.close(fd)


@contextmanager
def noted() -> Iterator[None]:
    """Note when the block, a step's body, begins and how it ends."""
    context = perdure.context()
    words = (context.run, context.idempotency_key, context.attempt)
    note("begin", *words)
    try:
        yield
    except BaseException:
        note("cut", *words)
        raise
    note("end", *words)


@perdure.step
async def slow(number: int) -> int:
    with noted():
        await asyncio.sleep(PACE)
        return number + 1


@perdure.step
def blocking(number: int) -> int:
    with noted():
        time.sleep(PACE)
        return number + 1


@perdure.flow
async def sequence(n: int) -> int:
    total = 0
    for number in range(n):
        total += await slow(number)
    return total


@perdure.flow
async def fan(n: int) -> int:
    first = await perdure.map(slow, range(n))
    return sum(await perdure.gather(*(slow(number * 10) for number in first)))


@perdure.flow
def threads(n: int) -> int:
    first = blocking(n)
    return sum(perdure.map(blocking, range(first)))


def model(messages: list[dict[str, object]], tools: object) -> Reply | str:
    with noted():
        asked = sum(message["role"] == "assistant" for message in messages)
        return Reply("", (ToolCall("look", {"number": asked}),)) if asked < 3 else f"looked {asked} times"


def look(number: int) -> int:
    """Look something up."""
    with noted():
        time.sleep(PACE)
        return number * 7


agent = Agent(model, [look], name="agent")


async def split(n: int) -> list[int]:
    with noted():
        return list(range(n + 1))


async def double(item: int) -> int:
    with noted():
        await asyncio.sleep(PACE)
        return item * 2


async def join(each: list[int]) -> int:
    with noted():
        return sum(each)


graph = Graph(
    {"parts": split, "each": Node(double, over="parts"), "total": join},
    [("parts", "each"), ("each", "total")],
    inputs=["n"],
)

SHAPES = (sequence, fan, threads, agent, graph)
