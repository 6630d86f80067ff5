"""Runs that ask, listen and sleep, and the people who answer, each in a process of its own that may be killed.

Everybody's answer is a value of its own, so that it shows whose answer was used. People say what they were told that
was kept; the flow says what it received; the hook says what it was told of.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crash_crew as crew
import crash_spy as spy
import msgspec
from crash_lives import KillingStore, url

import perdure
from perdure import journal as j
from perdure.errors import AnswerRefused, RunCancelled, RunNotFound, RunSuspended
from perdure.model import Question
from perdure.runners import Agent, Reply, ToolCall, tool
from perdure.stores import open_store


@perdure.step
async def work(what: str) -> str:
    return crew.token(what)


@perdure.step(name="work")
def work_sync(what: str) -> str:
    return crew.token(what)


async def asks() -> list[Any]:
    """Questions side by side, one with a deadline that passes, a signal, a timer."""
    found = [crew.got("draft", await work("draft"))]

    async def branch(name: str) -> Any:
        crew.got(f"before-{name}", await work(f"before-{name}"))
        return crew.got(name, await perdure.ask("Which?", context=name))

    found += await perdure.gather(branch("a"), branch("b"), work("beside"))
    late = await perdure.ask("In time?", deadline=0.001, default="too late")
    found += [crew.got("late", late), crew.got("news", await perdure.signal("news"))]
    await perdure.sleep(0.001)
    found.append(crew.got("last", await perdure.ask("Last?")))
    return [*found, crew.got("end", await work("end"))]


def asks_sync() -> list[Any]:
    """As ``asks``, in threads."""
    found = [crew.got("draft", work_sync("draft"))]

    def branch(name: str) -> Any:
        crew.got(f"before-{name}", work_sync(f"before-{name}"))
        return crew.got(name, perdure.ask("Which?", context=name))

    found += perdure.gather(*(functools.partial(branch, n) for n in "ab"), functools.partial(work_sync, "beside"))
    late = perdure.ask("In time?", deadline=0.001, default="too late")
    found += [crew.got("late", late), crew.got("news", perdure.signal("news"))]
    perdure.sleep(0.001)
    found.append(crew.got("last", perdure.ask("Last?")))
    return [*found, crew.got("end", work_sync("end"))]


async def race() -> list[Any]:
    """The first of a question and a signal; the question is withdrawn, and another asked."""
    won = await perdure.first(perdure.ask("Never answered?", context="skip"), perdure.signal("news"))
    return [crew.got("won", won), crew.got("then", await perdure.ask("Then?")), crew.got("end", await work("end"))]


@tool(needs_approval=True)
def act(what: str) -> str:
    return crew.token(f"act-{what}")


def _model(messages: list[Any], tools: Any) -> Reply:
    replies = [m for m in messages if m["role"] == "assistant"]
    crew.token(f"model{len(replies)}")
    if len(replies) < 2:
        return Reply("", (ToolCall("act", {"what": f"x{len(replies)}"}), ToolCall("act", {"what": "y"})))
    return Reply("done: " + " ".join(m["content"] for m in messages if m["role"] == "tool"))


agent = Agent(_model, [act], name="agent")


async def undo_half() -> None:
    crew.got("half undone", await work("undo-half"))


async def undo_all() -> None:
    crew.got("all undone", await work("undo-all"))


async def half() -> str:
    crew.got("one", await work("one"))
    return str(await perdure.ask("Go on?", context="skip"))


async def cancelled() -> str:
    """Cancelled while it waits: cleaned up after, the child first, and then over."""
    crew.got("zero", await work("zero"))
    return str(await perdure.child(perdure.flow(on_cancel=undo_half)(half))())


FLOWS: dict[str, Callable[[], Any]] = {
    "asks": lambda: perdure.flow(name="asks")(asks),
    "asks-sync": lambda: perdure.flow(name="asks")(asks_sync),
    "race": lambda: perdure.flow(name="race")(race),
    "agent": lambda: agent,
    "cancelled": lambda: perdure.flow(name="cancelled", on_cancel=undo_all)(cancelled),
}


def _notified(question: Question) -> None:
    crew.say("notified", f"{question.step}={question.id}")


def _open(root: str, store: str, life: int, at: int, when: str) -> KillingStore:
    Path(root).mkdir(exist_ok=True)
    crew.listen(f"{root}.witness", life)
    return KillingStore(open_store(url(root, store)), at, when, posts=True)


def live(root: str, store: str, shape: str, life: int, at: int, when: str) -> Any:
    """One life of the run; dies at operation ``at``. Returns how it ended."""
    opened = _open(root, store, life, at, when)
    config = perdure.CheckpointConfig(on_question=(_notified,))
    args = ("go",) if shape == "agent" else ()
    ended: dict[str, Any] = {"result": None, "status": "completed"}
    try:
        ended["result"] = perdure.run(FLOWS[shape](), *args, goal="waits", store=opened, config=config)
    except RunSuspended:
        ended["status"] = "suspended"
    except RunCancelled:
        ended["status"] = "cancelled"
    return {**ended, "operations": opened.count}


def people(root: str, store: str, shape: str, life: int, at: int, when: str) -> Any:
    """Somebody answers whatever is asked, sends the signals that are awaited, or cancels; dies at operation ``at``."""
    opened = _open(root, store, life, at, when)
    client = perdure.Client(opened)
    try:
        state = client.state("waits")
    except RunNotFound:
        return {"operations": opened.count}
    for question in client.questions("waits"):
        whole = client.question("waits", question.id)
        if whole.context == "skip":
            continue
        value: Any = True if shape == "agent" else f"{whole.path}.{life}"
        try:
            client.answer("waits", question.id, value, by=f"person-{life}")
        except AnswerRefused:  # somebody who died had answered
            continue
        crew.say("acknowledged", f"{question.id}={value}")
    if any(entry.signal == "news" and n not in state.waits.arrived for n, entry in state.waits.steps.items()):
        client.signal("waits", "news", f"news.{life}")
        crew.say("acknowledged", f"news=news.{life}")
    if shape == "cancelled" and any(question.path.endswith("ask") for question in client.questions("waits")):
        try:
            client.cancel("waits", by=f"person-{life}")
        except AnswerRefused:
            pass
        crew.say("acknowledged", "cancel=asked")
    client.close()
    return {"operations": opened.count}


def look(root: str, store: str) -> Any:
    """What the journal says in the end."""
    with perdure.Client(url(root, store)) as client:
        entries = client.entries("waits")
        state = client.state("waits")
        return {
            "status": state.status,
            "asked": [e.asked.prompt for e in entries if isinstance(e, j.StepPending) and e.asked],
            "answered": {
                e.question: str(client.value(state.steps[e.step].output))  # type: ignore[arg-type]
                for e in entries
                if isinstance(e, j.QuestionAnswered)
            },
            "answers": sum(isinstance(e, j.QuestionAnswered) for e in entries),
            "open": len(client.questions()),
            "undos": [s.path for s in state.steps.values() if "on_cancel" in s.path and s.recorded],
        }


# -- one answer, file by file ------------------------------------------------------------------------------------------


@perdure.flow(name="simple")
def simple() -> list[Any]:
    return [work_sync("draft"), perdure.ask("Well?"), perdure.signal("news")]


def prepare(root: str, store: str) -> str:
    """A run that is suspended with a question."""
    Path(root).mkdir(exist_ok=True)
    try:
        perdure.run(simple, goal="waits", store=url(root, store))
    except RunSuspended as waits:
        return waits.questions[0]
    raise AssertionError("it did not wait")


def answered(root: str, store: str, at: int, when: str, record: bool = False) -> int:
    """Somebody answers, and dies at change ``at`` of a file; or all are recorded. Returns how many there are."""
    crew.listen(f"{root}.witness", 1)

    def plan(number: int, op: spy.Op) -> spy.Verdict:
        if number != at or (when == "torn" and op.kind != "write"):
            return None
        return when

    spying = spy.install(Path(root), plan)
    crew.timeline.note = spying.mark
    with perdure.Client(url(root, store)) as client:
        client.answer("waits", None, "first", by="first")
        crew.say("acknowledged", "first")
        client.signal("waits", "news", "tides")
        crew.say("acknowledged", "signal")
    if record:
        Path(f"{root}.ops").write_bytes(msgspec.msgpack.encode(spying.ops))
    return spying.count


def finish(root: str, store: str) -> Any:
    """Somebody else answers and sends what is missing, and the run goes on to its end."""
    crew.listen(f"{root}.witness", 2)
    for _ in range(3):
        with perdure.Client(url(root, store)) as client:
            if client.questions("waits"):
                client.answer("waits", None, "second", by="second")
            if client.find("waits").status == "pending_input" and not client.questions("waits"):
                client.signal("waits", "news", "ebb")
        try:
            result = perdure.run(simple, goal="waits", store=url(root, store))
        except RunSuspended:
            continue
        with perdure.Client(url(root, store)) as client:
            kinds = [j.kind_of(entry) for entry in client.entries("waits")]
        return {
            "result": result,
            "answers": kinds.count("question_answered"),
            "signals": kinds.count("signal_received"),
        }
    raise AssertionError("it waits for ever")
