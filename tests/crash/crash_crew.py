"""The 8-step crew that the crash tests kill: load, split, five experts side by side, a meta-review that streams.

Each body says to the witness that it began and how it ends, the flow what it has received. The witness is a file that
is appended to with single writes: what was said survives SIGKILL, so that the parent can judge.

Four variants of one crew: async and sync flows, and a Pipeline with a Crew in both colours.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any, Final

import perdure
from perdure.runners.pipeline import Crew, Pipeline, Task

EXPERTS: Final = ("methods", "claims", "style", "numbers", "terms")
STEPS: Final = ("load", "split", *EXPERTS, "meta")
PAPER: Final = "It was a dark and stormy night; the figures fell in torrents. " * 600  # large enough to be a blob
WORDS: Final = 12


class Timeline:
    """Told of everything that is said: for power cuts. An object, since who listens is no part of the code of a step
    that says something."""

    note: Callable[[str], object] = str


timeline = Timeline()
_tokens = itertools.count(1)
_witness = -1
_life = 0


def listen(path: str, life: int) -> None:
    """From now on say things to the file ``path``, as life number ``life``."""
    global _witness, _life
    _witness, _life = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), life


def say(event: str, name: str) -> None:
    if _witness >= 0:
        os.writev(_witness, [f"{_life} {event} {name}\n".encode()])  # a call that no fault is injected into
        timeline.note(f"{event} {name}")


def token(name: str) -> str:
    """A value that no other execution gives, in whatever life; said to have begun."""
    made = f"{name}.{_life}.{next(_tokens)}"
    say("began", made)
    return made


def got(place: object, value: Any) -> Any:
    """The flow has received ``value``, and that is said."""
    say("received", f"{place}={value}")
    return value


def received(*names: str) -> None:
    for name in names:
        say("received", name)


def _load(path: str) -> str:
    return f"{path}: {PAPER}"


def _split(paper: str) -> list[str]:
    return [paper[:60], paper[-60:]]


def _review(expert: str, parts: list[str]) -> dict[str, Any]:
    return {"expert": expert, "claims": sum(map(len, parts)), "notes": (expert, expert.upper())}


def _meta(reviews: list[dict[str, Any]], so_far: str) -> Iterator[str]:
    """The words that are still missing."""
    names = [review["expert"] for review in reviews]
    for word in range(len(so_far.split()), WORDS):
        yield f"{names[word % len(names)]}-{word} "


def _stream(reviews: list[dict[str, Any]]) -> Iterator[str]:
    """Stream the rest; yields after each word, so that both colours can wait in between. Ends with the whole text."""
    context = perdure.context()
    text = context.partial_text
    say("partial", str(len(text.split())))
    if text:
        context.stream(text)
    for word in _meta(reviews, text):
        context.stream(word)
        text += word
        yield text


def expected() -> str:
    """The crew's result, whatever happens on the way."""
    reviews = [_review(expert, _split(_load("paper.md"))) for expert in EXPERTS]
    return "".join(_meta(reviews, ""))


def outputs() -> dict[str, Any]:
    """The output of every step, by name."""
    paper = _load("paper.md")
    parts = _split(paper)
    return {"load": paper, "split": parts, **{e: _review(e, parts) for e in EXPERTS}, "meta": expected()}


# -- async -----------------------------------------------------------------------------------------------------------


@perdure.step(name="load")
async def load(path: str) -> str:
    say("began", "load")
    return _load(path)


@perdure.step(name="split")
async def split(paper: str) -> list[str]:
    say("began", "split")
    await asyncio.sleep(0)
    return _split(paper)


@perdure.step
async def review(expert: str, parts: list[str]) -> dict[str, Any]:
    say("began", expert)
    for _ in range(EXPERTS.index(expert)):
        await asyncio.sleep(0)
    await perdure.context().save({"half": expert})
    return _review(expert, parts)


@perdure.step(name="meta")
async def meta(reviews: list[dict[str, Any]]) -> str:
    say("began", "meta")
    text = perdure.context().partial_text
    for text in _stream(reviews):
        if len(text.split()) % 3 == 0:
            await perdure.context().save({"words": len(text.split())})
    return text


@perdure.flow(name="crew")
async def crew_async(path: str) -> str:
    paper = await load(path)
    received("load")
    parts = await split(paper)
    received("split")

    async def one(expert: str) -> dict[str, Any]:
        found = await review.options(name=expert)(expert, parts)
        received(expert)
        return found

    reviews = await perdure.gather(*(one(expert) for expert in EXPERTS))
    text = await meta(reviews)
    received("meta")
    return text


# -- sync ------------------------------------------------------------------------------------------------------------


@perdure.step(name="load")
def load_sync(path: str) -> str:
    say("began", "load")
    return _load(path)


@perdure.step(name="split")
def split_sync(paper: str) -> list[str]:
    say("began", "split")
    return _split(paper)


@perdure.step
def review_sync(expert: str, parts: list[str]) -> dict[str, Any]:
    say("began", expert)
    perdure.context().save({"half": expert})
    return _review(expert, parts)


@perdure.step(name="meta")
def meta_sync(reviews: list[dict[str, Any]]) -> str:
    say("began", "meta")
    text = perdure.context().partial_text
    for text in _stream(reviews):
        if len(text.split()) % 3 == 0:
            perdure.context().save({"words": len(text.split())})
    return text


@perdure.flow(name="crew")
def crew_sync(path: str) -> str:
    paper = load_sync(path)
    received("load")
    parts = split_sync(paper)
    received("split")

    def one(expert: str) -> dict[str, Any]:
        found = review_sync.options(name=expert)(expert, parts)
        received(expert)
        return found

    reviews = perdure.gather(*(functools.partial(one, expert) for expert in EXPERTS))
    text = meta_sync(reviews)
    received("meta")
    return text


# -- pipelines -------------------------------------------------------------------------------------------------------


def _pipeline(load: Any, split: Any, review: Any, meta: Any) -> Pipeline:
    """The crew as a Pipeline. What a stage is given, the pipeline has received."""

    def expert(name: str) -> Task:
        def examine(split: list[str]) -> Any:
            received("load", "split")
            return review.fn(name, split)

        async def examine_async(split: list[str]) -> Any:
            received("load", "split")
            return await review.fn(name, split)

        return Task(examine_async if review.is_async else examine, name=name)

    def gather(reviews: dict[str, Any]) -> Any:
        received(*reviews)
        return meta.fn(list(reviews.values()))

    async def gather_async(reviews: dict[str, Any]) -> Any:
        received(*reviews)
        return await meta.fn(list(reviews.values()))

    combine = Task(gather_async if inspect.iscoroutinefunction(meta.fn) else gather, name="meta")
    return Pipeline([Task(load), Task(split), Crew([expert(name) for name in EXPERTS], combine)], name="crew")


CREWS: Final[dict[str, Callable[..., Any]]] = {
    "async": crew_async,
    "sync": crew_sync,
    "pipeline-async": _pipeline(load, split, review, meta),
    "pipeline-sync": _pipeline(load_sync, split_sync, review_sync, meta_sync),
}
