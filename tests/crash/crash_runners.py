"""Every shape that runners make, small, in both colours where there are two; killed in many ways.

Each body says which run and step it belongs to. Nothing in a shape is random, so a run that was killed must end like
one that was not: with the same result, the same steps and the same conversations.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import crash_crew as crew

import perdure
from perdure.runners import (
    Agent,
    Edge,
    File,
    FlexibleGraph,
    Graph,
    Node,
    Phase,
    PlanStep,
    Reply,
    Score,
    ToolCall,
    Verdict,
    best_of,
    tool,
)


def _began() -> None:
    context = perdure.context()
    crew.say("began", f"{context.run}:{context._step}")


# -- graphs ------------------------------------------------------------------------------------------------------------


def outline(topic: str) -> list[str]:
    _began()
    return [f"{topic}-{part}" for part in "abc"]


async def chapter(part: str, topic: str) -> str:
    _began()
    return f"{part}/{topic}"


def chapter_sync(part: str, topic: str) -> str:
    _began()
    return f"{part}/{topic}"


class Memory:
    """A node that counts how often it was called."""

    state_version = 1

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, chapters: list[str], critic: str = "") -> str:
        _began()
        self.calls += 1
        return f"draft {self.calls} of {len(chapters)} {critic}".strip()

    def save_state(self) -> int:
        return self.calls

    def restore_state(self, state: int, version: int) -> None:
        self.calls = state


def critic(draft: str) -> str:
    _began()
    return "good" if "draft 3" in draft else f"more after {draft[:7]}"


def facts(topic: str) -> str:
    _began()
    return f"facts on {topic}"


def publish(draft: str, facts: str) -> str:
    _began()
    return f"{draft}; {facts}"


def _weak(verdict: str) -> bool:
    return verdict != "good"


def _graph(item: Callable[..., Any], name: str) -> Graph:
    check = Graph({"facts": facts}, inputs=["topic"], name="check")
    return Graph(
        nodes={
            "outline": outline,
            "chapters": Node(item, over="outline", limit=2),
            "facts": check,
            "draft": Memory,
            "critic": critic,
            "publish": publish,
        },
        edges=[
            ("outline", "chapters"),
            ("outline", "facts"),
            ("chapters", "draft"),
            ("draft", "critic"),
            Edge("critic", "draft", when=_weak, limit=4),
            Edge("critic", "publish", otherwise=True),
            ("facts", "publish"),
        ],
        inputs=["topic"],
        name=name,
    )


def plan(topic: str, done: dict[str, Any], feedback: str) -> list[PlanStep]:
    _began()
    if not feedback:
        return [
            PlanStep("a", "find", {"q": "x"}),
            PlanStep("b", "find", {"q": "y"}),
            PlanStep("w", "join", after=("a", "b")),
        ]
    return [PlanStep("better", "join", {"style": "good"}, after=("a", "b"))]


def find(q: str, feedback: str) -> str:
    _began()
    return q + feedback


async def join(a: str, b: str, style: str = "bad") -> str:
    _began()
    return f"{a}{b} {style}"


def verdict(step: PlanStep, output: str) -> Verdict | bool | str:
    _began()
    if step.name == "b" and "!" not in output:
        return "!"
    return Verdict("replan", "too bad") if "bad" in output else True


# -- agents ------------------------------------------------------------------------------------------------------------


@tool(cache=True)
async def look(what: str) -> str:
    _began()
    return f"seen {what}"


@tool(side_effect=True)
def send(to: str, idempotency_key: str) -> File:
    _began()
    assert len(idempotency_key) == (32 if perdure.context().run else 0)
    return File(f"{to}.txt", b"letter " * 2000, "text/plain")


@tool(cache=True)
def look_sync(what: str) -> str:
    _began()
    return f"seen {what}"


def _reply(messages: Sequence[Any], looking: str) -> Reply | str:
    """Three rounds of calls after each prompt, the second with one side by side that is in the cache."""
    _began()
    asked = sum(message["role"] == "assistant" for message in messages)
    if asked % 3 == 0:
        return Reply("", (ToolCall(looking, {"what": f"cat {asked}"}), ToolCall(looking, {"what": "dog"})))
    if asked % 3 == 1:
        return Reply("now", (ToolCall(looking, {"what": "dog"}), ToolCall("send", {"to": f"bob{asked}"})))
    return f"done after {asked}: {messages[-1]['content']}"


def model(messages: Sequence[Any], tools: Any) -> Reply | str:
    return _reply(messages, tools[0]["function"]["name"])


async def model_async(messages: Sequence[Any], tools: Any) -> Reply | str:
    return _reply(messages, tools[0]["function"]["name"])


def _summary(messages: Sequence[Any]) -> str:
    _began()
    return f"{len(messages)} messages"


def _chief(messages: Sequence[Any], tools: Any) -> Reply | str:
    _began()
    if messages[-1]["role"] == "user":
        return Reply("", (ToolCall("helper", {"task": "left"}), ToolCall("helper", {"task": "right"})))
    return " and ".join(message["content"] for message in messages if message["role"] == "tool")


PHASES = [Phase("work", "First part."), Phase("work", "Second part."), Phase("check", "Check it.")]

# -- swarms ------------------------------------------------------------------------------------------------------------


@perdure.step
async def dig(topic: str) -> str:
    _began()
    if topic == "sand":
        raise ValueError("nothing in sand")
    return f"{topic}!"


@perdure.flow
async def worker(topic: str) -> str:
    return await dig(await dig(topic))


@perdure.flow
async def planner(topics: list[str]) -> list[str]:
    found = await perdure.gather(*(perdure.child(worker, on_error="return")(topic) for topic in topics))
    return [str(item) for item in found]


@perdure.flow
async def swarm(topics: list[str]) -> list[list[str]]:
    return await perdure.gather(
        perdure.child(planner)([*topics, "sand"]), perdure.child(planner, name="other")(topics), planner(["coal"])
    )


@perdure.step
def dig_sync(topic: str) -> str:
    _began()
    return f"{topic}!"


@perdure.flow
def worker_sync(topic: str) -> str:
    return dig_sync(dig_sync(topic))


@perdure.flow
def swarm_sync(topics: list[str]) -> list[str]:
    return perdure.map(perdure.child(worker_sync), topics)


# -- attempts ----------------------------------------------------------------------------------------------------------


@perdure.step(name="write")
async def write(topic: str, draft: str) -> str:
    _began()
    run = perdure.context().run
    return f"{draft}{topic}{run.episode if run else '?'}"


@perdure.flow
async def essay(topic: str) -> str:
    return await write(topic, await write(topic, ""))


def score(output: str) -> Score:
    _began()
    return Score(float(output[-1]), f"it ends in {output[-1]}")


async def slow(outline: list[str]) -> str:
    _began()
    await asyncio.Event().wait()
    return "never"


async def quick(outline: list[str]) -> str:
    _began()
    return "quick"


def winner(racer: str) -> str:
    _began()
    return f"{racer} won"


RACE = Graph(
    nodes={"outline": outline, "slow": slow, "quick": quick, "winner": Node(winner, join="any")},
    edges=[
        ("outline", "slow"),
        ("outline", "quick"),
        Edge("slow", "winner", when=bool),
        Edge("quick", "winner", when=bool),
    ],
    inputs=["topic"],
)

SHAPES: dict[str, tuple[Any, dict[str, Any]]] = {
    "graph": (_graph(chapter, "graph"), {"topic": "sea"}),
    "graph-sync": (_graph(chapter_sync, "graph"), {"topic": "sea"}),
    "race": (RACE, {"topic": "sea"}),
    "flexible": (FlexibleGraph(plan, {"find": find, "join": join}, verdict, inputs=["topic"]), {"topic": "sea"}),
    "agent": (Agent(model_async, [look, send], instructions="Be good.", phases=PHASES), {"task": "go"}),
    "agent-sync": (Agent(model, [look_sync, send]), {"task": "go"}),
    "agent-compact": (
        Agent(model, [look_sync, send], phases=PHASES, transcript_limit=200, on_overflow="compact", compact=_summary),
        {"task": "go"},
    ),
    "agents": (
        Agent(_chief, [Agent(model_async, [tool(name="look")(look.step.fn), send], name="helper")]),
        {"task": "go"},
    ),
    "swarm": (swarm, {"topics": ["gold", "iron"]}),
    "swarm-sync": (swarm_sync, {"topics": ["gold", "iron", "tin"]}),
    "best": (best_of(3, essay, judge=score, enough=1), {"topic": "sea"}),
    "best-side-by-side": (best_of(3, essay, judge=score, limit=3), {"topic": "sea"}),
}


@perdure.step
async def fill(letter: str) -> str:
    _began()
    return letter * 1_000_000


@perdure.flow
async def heavy() -> str:
    """Steps whose results take much memory, one after the other and side by side."""
    found = [await fill(letter) for letter in "abc"]
    found += await perdure.gather(*(fill(letter) for letter in "defg"))
    found += [await fill("h")]
    return "".join(text[:1] for text in found)


MORE: dict[str, tuple[Any, dict[str, Any]]] = {"heavy": (heavy, {})}
"""for suites of their own"""
