"""Runs of every shape, forked after every entry of their journals: nothing that was recorded is executed again, all the
rest is, and the end is the same."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest

import perdure
from perdure import journal as j
from perdure.errors import RunSuspended
from perdure.fold import State
from perdure.framing import unframe
from perdure.model import RunKey
from perdure.runners import Agent, Crew, Edge, Graph, Node, Pipeline, Reply, ToolCall, best_of, tool
from perdure.runners.transcript import transcript
from perdure.runtime.audit import Auditor
from perdure.runtime.manager import CheckpointManager
from perdure.stores.memory import MemoryBackend, MemoryStore

RAN: list[str] = []
"""names of the steps whose bodies were executed"""
ANSWERS: dict[str, Any] = {"Go on?": True, "How many?": 2}
"""to questions; any other is approved of"""


@pytest.fixture(autouse=True)
def _forget() -> None:
    RAN.clear()


def leaf(name: str) -> Any:
    """A step that says which it is, and what it was given."""

    def body(*given: Any) -> str:
        RAN.append(name)
        return f"{name}({', '.join(map(str, given))})"

    return perdure.step(name=name)(body)


def leaf_async(name: str) -> Any:
    async def body(*given: Any) -> str:
        RAN.append(name)
        return f"{name}({', '.join(map(str, given))})"

    return perdure.step(name=name)(body)


draft, review, merge = leaf("draft"), leaf("review"), leaf("merge")
review_async = leaf_async("review")


@perdure.flow
def crew(topic: str) -> str:
    reviews = perdure.gather(*(functools.partial(review, expert, draft(topic)) for expert in "abc"))
    return str(merge(sorted(reviews), *perdure.map(review, ["x", "y"])))


@perdure.flow
async def crew_async(topic: str) -> str:
    reviews = await perdure.gather(*(review_async(expert, topic) for expert in "abc"))
    more = [found async for found in perdure.as_completed(*(review_async(n) for n in range(3)))]
    return str(sorted([*reviews, *more]))


@perdure.flow
def waits(topic: str) -> str:
    text = draft(topic)
    if not perdure.ask("Go on?", answer=bool, context=text):
        return "dropped"
    times: int = perdure.ask("How many?", answer=int)
    paid: int = perdure.signal("paid", type=int)
    return str(merge(text, times, paid))


@perdure.flow
def child(topic: str) -> str:
    return str(merge(draft(topic), review(topic)))


@perdure.flow
def parent(topic: str) -> list[str]:
    return perdure.gather(*(functools.partial(perdure.child(child), f"{topic}{n}") for n in range(2)))


@perdure.flow
def timid(topic: str) -> str:
    text = draft(topic)
    return str(merge(text) if perdure.ask("Go on?", answer=bool, context=text) else "dropped")


@perdure.flow
def family(topic: str) -> list[str]:
    return perdure.map(perdure.child(timid), [f"{topic}{n}" for n in range(3)])


def line() -> Pipeline:
    """A stage, a crew of two with one step that gathers, and a stage that is a flow."""

    @perdure.step
    def read(topic: str) -> str:
        RAN.append("read")
        return f"text on {topic}"

    @perdure.step
    def style(read: str) -> str:
        RAN.append("style")
        return "clumsy"

    @perdure.step
    def claims(read: str) -> str:
        RAN.append("claims")
        return "bold"

    @perdure.step
    def meta(experts: dict[str, str]) -> str:
        RAN.append("meta")
        return str(sorted(experts.items()))

    return Pipeline([read, Crew([style, claims], meta, name="experts"), child], name="line")


@perdure.step
def outer(topic: str) -> str:
    RAN.append("outer")
    return str(merge(draft(topic), topic))


@perdure.flow
def nested(topic: str) -> str:
    return outer(topic) + outer(topic)


def cyclic() -> Graph:
    """It goes back twice, fans out over a list, and joins."""

    def plan(topic: str, judge: int = 0) -> list[str]:
        RAN.append("plan")
        return [f"{topic} {n}" for n in range(judge + 1)]

    def judge(research: list[str], aside: str) -> int:
        RAN.append("judge")
        return len(research) if aside else 0

    def research(plan: str) -> str:
        RAN.append("research")
        return plan.upper()

    def aside(topic: str) -> str:
        RAN.append("aside")
        return topic

    nodes = {"plan": plan, "research": Node(research, over="plan"), "aside": aside, "judge": judge, "end": child}
    edges = [
        ("plan", "research"),
        ("plan", "aside"),
        ("research", "judge"),
        ("aside", "judge"),
        Edge("judge", "plan", when=lambda n: n < 3, limit=3),
        Edge("judge", "end", otherwise=True),
    ]
    return Graph(nodes, edges, inputs=["topic"])


def agent() -> Agent:
    @tool
    def search(query: str) -> str:
        RAN.append("search")
        return f"found {query}"

    @tool(needs_approval=True)
    def mail(to: str) -> str:
        RAN.append("mail")
        return f"sent to {to}"

    replies = [
        Reply("", (ToolCall("search", {"query": "a"}), ToolCall("mail", {"to": "ann"}))),
        Reply("", (ToolCall("search", {"query": "b"}),)),
        lambda messages: " | ".join(str(message["content"]) for message in messages),
    ]

    def model(messages: list[Any], tools: Any) -> Any:
        RAN.append("model")
        said = replies[sum(message["role"] == "assistant" for message in messages)]
        return said(messages) if callable(said) else said

    return Agent(model, [search, mail], instructions="Look for it.")


@perdure.flow
def write(topic: str) -> str:
    RAN.append("attempt")
    return f"{topic} {len(RAN)}"


def judged() -> Any:
    return best_of(3, write, judge=lambda text: float(len(text)), enough=99.0)


SHAPES: dict[str, Callable[[], Any]] = {
    "gather and map": lambda: crew,
    "async, as_completed": lambda: crew_async,
    "questions and a signal": lambda: waits,
    "children": lambda: parent,
    "questions in children": lambda: family,
    "steps in steps": lambda: nested,
    "pipeline": line,
    "graph": cyclic,
    "agent": agent,
}


def finished(manager: CheckpointManager, store: MemoryStore, flow: Any, key: RunKey) -> Any:
    """What comes of a run whose questions are answered as they come."""
    given = dict.fromkeys(flow.signature.parameters, "tides")
    with perdure.Client(MemoryStore(store._backend)) as client:
        while True:
            try:
                if not flow.is_async:
                    return manager.run_sync(flow, goal=key.goal, episode=key.episode, **given)
                return asyncio.run(manager.run(flow, goal=key.goal, episode=key.episode, **given))
            except RunSuspended:
                for question in client.questions(str(key)):
                    client.answer(str(key), question.id, ANSWERS.get(question.prompt, True), by="ann")
                if not client.questions(str(key)) and "paid" not in client.state(str(key)).waits.signals:
                    client.signal(str(key), "paid", 5)


def recorded(state: State) -> Counter[str]:
    """How often bodies of each name, of those that tell of themselves, have a result."""
    tells = [step for step in state.steps.values() if step.name == "outer" or step.identity not in state.scopes]
    return Counter(step.name for step in tells if step.recorded)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_fork_after_any_entry_executes_what_is_not_recorded_and_ends_the_same(shape: str) -> None:  # X2 W4 K3
    backend, flow = MemoryBackend(), SHAPES[shape]()
    store = MemoryStore(backend)
    with CheckpointManager(MemoryStore(backend)) as manager:
        whole = finished(manager, store, flow, RunKey("g"))
        bodies, original = Counter(RAN), store.read(RunKey("g"))
        assert bodies.total() > 1
        told = transcript_of(store, RunKey("g")) if shape == "agent" else None
        for cut in range(1, len(original) + 1):
            with perdure.Client(MemoryStore(backend)) as client:
                fork = client.fork("g#0", at=cut, by="ann")
                assert [unframe(fork.key, line) for line in store.read(fork.key)[:cut]] == [
                    unframe(RunKey("g"), line) for line in original[:cut]
                ]
            kept = recorded(fork)
            RAN.clear()
            assert finished(manager, store, flow, fork.key) == whole, f"forked after entry {cut}"
            assert Counter(RAN) == bodies - kept, f"forked after entry {cut}"
            if told is not None:
                assert transcript_of(store, fork.key) == told
        assert store.read(RunKey("g")) == original
    assert list(Auditor(store).everything()) == []


def transcript_of(store: MemoryStore, key: RunKey) -> list[tuple[str, object]]:
    with perdure.Client(MemoryStore(store._backend)) as client:
        return [(line.role, line.content) for line in transcript(client, str(key))]


@pytest.mark.parametrize("shape", ["questions and a signal", "agent", "children"])
def test_forks_of_forks_anywhere_end_the_same(shape: str) -> None:  # X2
    backend, flow = MemoryBackend(), SHAPES[shape]()
    store = MemoryStore(backend)
    with CheckpointManager(MemoryStore(backend)) as manager, perdure.Client(MemoryStore(backend)) as client:
        whole = finished(manager, store, flow, RunKey("g"))
        bodies, name = Counter(RAN), "g#0"
        for numerator in (3, 1, 4, 2, 5, 3):  # of sixths: back and forth, and before the forks' own beginnings
            fork = client.fork(name, at=max(len(store.read(client.find(name).key)) * numerator // 6, 1), by="ann")
            kept, name = recorded(fork), str(fork.key)
            RAN.clear()
            assert finished(manager, store, flow, fork.key) == whole and Counter(RAN) == bodies - kept
    assert list(Auditor(store).everything()) == []


def test_the_order_in_which_branches_completed_holds_in_a_fork_as_far_as_it_is_shared() -> None:  # X10 X2
    first = Event()

    @perdure.step
    def slow(name: str) -> str:
        assert name != "a" or first.wait(30)
        return name

    @perdure.flow
    def race(topic: str) -> list[str]:
        came = []
        for name in perdure.as_completed(*(functools.partial(slow, name) for name in "ab")):
            came.append(name)
            first.set()
        return came

    backend = MemoryBackend()
    store = MemoryStore(backend)
    with CheckpointManager(MemoryStore(backend)) as manager, perdure.Client(MemoryStore(backend)) as client:
        assert finished(manager, store, race, RunKey("g")) == ["b", "a"]
        for seq, entry in enumerate(client.entries("g"), 1):
            if isinstance(entry, j.BranchTaken):
                fork = client.fork("g#0", at=seq, by="ann")
                assert finished(manager, store, race, fork.key) == ["b", "a"]


def test_attempts_that_were_dismissed_are_not_dismissed_again_by_a_fork() -> None:  # K2
    async def attempt(topic: str) -> str:
        RAN.append("attempt")
        if len(RAN) > 1:
            await asyncio.Event().wait()
        return topic

    backend, flow = MemoryBackend(), best_of(2, attempt, judge=lambda output: True, limit=2)
    store = MemoryStore(backend)
    with CheckpointManager(MemoryStore(backend)) as manager, perdure.Client(MemoryStore(backend)) as client:
        finished(manager, store, flow, RunKey("g"))
        assert client.step("g", "dismiss").recorded
        fork = client.fork("g", by="ann")
        finished(manager, store, flow, fork.key)
        assert {step.number for step in client.state("g#1").steps.values()} == set(fork.steps)


def test_a_loop_of_ones_own_goes_on_in_a_fork(tmp_path: Path) -> None:  # X2 B5
    url = f"file:{tmp_path}"

    def loop(manager: CheckpointManager, episode: int) -> list[str]:
        with manager.begin(goal="g", episode=episode) as run:
            for name in ("one", "two", "three"):
                with run.step(name) as step:
                    if not step.recorded:
                        RAN.append(name)
                        step.complete(name.upper())
            run.complete("done")
        return RAN

    with CheckpointManager(url) as manager, perdure.Client(url) as client:
        assert loop(manager, 0) == ["one", "two", "three"]
        for after, rest in (("one", ["two", "three"]), ("two", ["three"])):
            fork = client.fork("g#0", after=after, by="ann")
            RAN.clear()
            assert loop(manager, fork.key.episode) == rest


def test_a_fork_of_attempts_makes_those_that_are_missing_under_its_own_name() -> None:  # K2 X2
    backend = MemoryBackend()
    store, flow = MemoryStore(backend), judged()
    with CheckpointManager(MemoryStore(backend)) as manager, perdure.Client(MemoryStore(backend)) as client:
        finished(manager, store, flow, RunKey("g"))
        assert RAN == ["attempt"] * 3
        for name, missing in (("attempt", 2), ("judge", 2)):
            step = next(step for step in client.state("g#0").steps.values() if step.name == name)
            fork = client.fork("g#0", after=step.number, by="ann")
            RAN.clear()
            finished(manager, store, flow, fork.key)
            assert len(RAN) == missing, f"after {name}"
            made = [str(row.key) for row in client.runs(f"{fork.key}/best")]
            assert made == [f"{fork.key}/best#{episode}" for episode in (1, 2)]
            assert {row.parent for row in client.runs(f"{fork.key}/best")} == {str(fork.key)}
        whole = client.fork("g#0", by="ann")
        RAN.clear()
        finished(manager, store, flow, whole.key)
        assert RAN == []
        with pytest.raises(perdure.errors.ConfigError, match="'g/best' are begun by another run"):
            client.fork("g/best#0", by="ann")
        alone = client.fork("g/best#0", goal="by itself", by="ann")
        assert (str(alone.key), alone.meta().parent) == ("by itself#0", "")
        assert finished(manager, store, write, alone.key)
    assert list(Auditor(store).everything()) == []
