"""Flows whose second life does things in another order, or more of them, than the first; killed in between.

Every execution of a body gives a value of its own (life and count), so that it shows in a value whose it is. The flow
says what it received, and where.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crash_crew as crew
from crash_lives import KillingStore, url

import perdure
from perdure.stores import open_store

_life = 0


@perdure.step
async def tick(what: str) -> str:
    return crew.token(what)


@perdure.step(name="work")
async def work(what: str) -> str:
    return crew.token(what)


@perdure.step(name="work")
async def other_work(what: str) -> str:
    return crew.token(f"other-{what}")


@perdure.step
async def note(place: int, what: str) -> str:
    return f"{what}+{crew.token(f'note{place}')}"


async def loop() -> list[str]:
    """One step in a loop with equal arguments."""
    return [crew.got(place, await tick("tick")) for place in range(6)]


async def completed() -> list[str]:
    """as_completed, in the opposite order in every other life; what is done with each result depends on its place."""
    order = ["a", "b", "c", "d"] if _life % 2 else ["d", "c", "b", "a"]
    ended = {name: asyncio.Event() for name in order}

    async def one(name: str) -> str:
        token = await work(name)
        for earlier in order[: order.index(name)]:
            await ended[earlier].wait()
        ended[name].set()
        return token

    turns = perdure.as_completed(*(one(name) for name in sorted(order)))
    places = itertools.count()
    return [crew.got(place, await note(place, token)) async for token in turns for place in (next(places),)]


@perdure.step(name="work")
def work_sync(what: str) -> str:
    return crew.token(what)


@perdure.step(name="note")
def note_sync(place: int, what: str) -> str:
    return f"{what}+{crew.token(f'note{place}')}"


def completed_sync() -> list[str]:
    """As ``completed``, in threads."""
    order = ["a", "b", "c", "d"] if _life % 2 else ["d", "c", "b", "a"]
    ended = {name: threading.Event() for name in order}

    def one(name: str) -> str:
        token = work_sync(name)
        for earlier in order[: order.index(name)]:
            ended[earlier].wait()
        ended[name].set()
        return token

    turns = perdure.as_completed(*(functools.partial(one, name) for name in sorted(order)))
    return [crew.got(place, note_sync(place, token)) for place, token in enumerate(turns)]


async def inserted() -> list[str]:
    """From the second life on there is a step more before each of the others."""
    found = []
    for name in ("one", "two", "three", "four"):
        if _life > 1:
            crew.got(f"new-{name}", await work(f"new-{name}"))
        found.append(crew.got(name, await work(name)))
    return found


async def names() -> list[str]:
    """Two steps of one name, with equal and with other arguments, one after the other and side by side."""
    found = [crew.got("1", await work("x")), crew.got("2", await other_work("x")), crew.got("3", await work("y"))]
    pair = await perdure.gather(work("x"), other_work("x"))
    found += [crew.got("4", pair[0]), crew.got("5", pair[1])]
    return [*found, crew.got("6", await other_work("x"))]


SHAPES: dict[str, Callable[[], Any]] = {
    "loop": loop,
    "completed": completed,
    "completed-sync": completed_sync,
    "inserted": inserted,
    "names": names,
}


def live(root: str, store: str, shape: str, life: int, at: int, when: str) -> Any:
    """One life; dies at append ``at``. Returns the result and, of a life that survives, its number of appends."""
    global _life
    _life = life
    Path(root).mkdir(exist_ok=True)
    crew.listen(f"{root}.witness", life)
    opened = KillingStore(open_store(url(root, store)), at, when)
    result = perdure.run(perdure.flow(name=shape)(SHAPES[shape]), goal="shape", store=opened)
    return {"result": result, "appends": opened.count}
