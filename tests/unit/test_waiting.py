"""Questions, signals and timers: asked once, answered once, in no process meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import enum
import functools
import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel

import perdure
from perdure import journal as j
from perdure import states
from perdure.clock import Clock
from perdure.errors import (
    AnswerRefused,
    ConfigError,
    DeadlinePassed,
    RunNotFound,
    RunStopped,
    RunSuspended,
    StepTimeout,
    StoreError,
)
from perdure.model import Question
from perdure.runtime.manager import CheckpointManager
from perdure.stores import open_store
from perdure.stores.base import Store
from perdure.stores.memory import MemoryBackend, MemoryStore
from perdure.testing.faulty import Fault, faulty

RAN: list[str] = []
SLOW = Fault("append", lasting=True, before=lambda: time.sleep(0.05))  # longer than tasks get to show themselves


@pytest.fixture(autouse=True)
def forget() -> None:
    RAN.clear()


@pytest.fixture(params=["sqlite", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'runs.db'}" if request.param == "sqlite" else f"file:{tmp_path / 'runs'}"


class Later(Clock):
    """The system's clock, moved by hand; waits return at once."""

    def __init__(self) -> None:
        self.offset = 0.0

    def now(self) -> float:
        return super().now() + self.offset

    def wait(self, bell: threading.Event, seconds: float) -> None:
        if seconds != float("inf"):
            self.offset += max(seconds, 0)


@perdure.step
def work(what: str) -> str:
    RAN.append(what)
    return f"did {what}"


@perdure.step(name="work")
async def work_async(what: str) -> str:
    RAN.append(what)
    return f"did {what}"


@perdure.flow(name="approval")
def approval(paper: str) -> str:
    text = work(f"draft {paper}")
    ok: bool = perdure.ask("Publish?", answer=bool, context=text)
    return work("publish") if ok else "dropped"


@perdure.flow(name="approval")
async def approval_async(paper: str) -> str:
    text = await work_async(f"draft {paper}")
    ok: bool = await perdure.ask("Publish?", answer=bool, context=text)
    return await work_async("publish") if ok else "dropped"


def suspended(url: str | Store, flow: Callable[..., Any], *args: Any, goal: str = "g", **options: Any) -> RunSuspended:
    with pytest.raises(RunSuspended) as found:
        perdure.run(flow, *args, goal=goal, store=url, **options)
    return found.value


def answer(url: str, value: object, question: str | int | None = None, goal: str = "g", by: str = "ann") -> None:
    with perdure.Client(url) as client:
        client.answer(goal, question, value, by=by)


def status(url: str, goal: str = "g") -> str:
    with perdure.Client(url) as client:
        return client.find(goal).status


# -- a question ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flow", [approval, approval_async])
def test_a_run_asks_ends_its_process_and_goes_on_with_the_answer(url: str, flow: Any) -> None:  # W1
    waits = suspended(url, flow, "p")
    assert (waits.run, len(waits.questions), waits.until) == ("g#0", 1, 0.0) and "perdure answer g" in str(waits)
    with perdure.Client(url) as client:
        row = client.find("g")
        assert (row.status, row.holder, row.wake) == (states.PENDING_INPUT, None, 0.0)
        (asked,) = client.questions()
        assert (asked.run, asked.step, asked.path, asked.prompt) == ("g#0", 2, "ask", "Publish?")
        whole = client.question("g")
        assert (whole.id, whole.schema, whole.context) == (asked.id, {"type": "boolean"}, "did draft p")
        assert client.answer("g", None, True, by="ann").status == states.READY
        assert client.questions() == [] and [str(row.key) for row in client.due()] == ["g#0"]
    assert perdure.run(flow, "p", goal="g", store=url) == "did publish"
    assert RAN == ["draft p", "publish"]
    with perdure.Client(url) as client:
        told = [entry for entry in client.entries("g") if isinstance(entry, j.QuestionAnswered)]
        assert [(entry.by, bytes(entry.value), entry.question) for entry in told] == [("ann", b"true", asked.id)]  # H5


def test_the_store_may_be_copied_elsewhere_between_asking_and_answering(url: str, tmp_path: Path) -> None:  # W1
    suspended(url, approval, "p")
    shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}-copy")
    moved = url.replace(str(tmp_path), f"{tmp_path}-copy")
    answer(moved, True)
    assert perdure.run(approval, "p", goal="g", store=moved) == "did publish"
    assert RAN == ["draft p", "publish"] and status(url) == states.PENDING_INPUT


def test_running_it_again_without_an_answer_asks_nothing_again(url: str) -> None:  # W1
    told: list[Question] = []
    config = perdure.CheckpointConfig(on_question=(told.append,))
    first = suspended(url, approval, "p", config=config)
    assert suspended(url, approval, "p", config=config).questions == first.questions
    assert [question.id for question in told] == list(first.questions) and RAN == ["draft p"]
    with perdure.Client(url) as client:
        assert sum(isinstance(entry, j.StepPending) for entry in client.entries("g")) == 1


def test_a_no_is_an_answer(url: str) -> None:
    suspended(url, approval, "p")
    answer(url, False)
    assert perdure.run(approval, "p", goal="g", store=url) == "dropped"


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Decision:
    accept: bool
    score: int
    colour: Colour = Colour.RED


class Review(BaseModel):
    marks: list[int]
    by: Decision | None = None


@pytest.mark.parametrize(
    ("kind", "given", "received", "wrong"),
    [
        (bool, True, True, "yes"),
        (str, "text", "text", 3),
        (int, 3, 3, True),
        (Literal["a", "b"], "b", "b", "c"),
        (Colour, "blue", Colour.BLUE, "green"),
        (Colour, Colour.BLUE, Colour.BLUE, None),
        (Decision, {"accept": True, "score": 3}, Decision(True, 3), {"accept": True}),
        (Decision, Decision(False, 1, Colour.BLUE), Decision(False, 1, Colour.BLUE), {"accept": 1, "score": 1}),
        (list[Decision], [{"accept": True, "score": 3}], [Decision(True, 3)], [{"accept": True, "score": "3"}]),
        (Review, {"marks": [1, 2]}, Review(marks=[1, 2]), {"marks": ["x"]}),
        (Review, Review(marks=[], by=Decision(True, 1)), Review(marks=[], by=Decision(True, 1)), {}),
        (datetime, "2026-11-21T10:00:00+01:00", datetime.fromisoformat("2026-11-21T10:00:00+01:00"), 3),
        (int | None, None, None, "x"),
        (tuple[int, str], [1, "a"], (1, "a"), [1]),
        (Path, "a/b", Path("a/b"), 3),
        (Any, {"any": [1]}, {"any": [1]}, {1, 2j}),
    ],
)
def test_an_answer_has_the_type_that_was_asked_for(kind: Any, given: Any, received: Any, wrong: Any) -> None:  # W1 W8
    store = functools.partial(MemoryStore, MemoryBackend())

    @perdure.flow
    def asks() -> Any:
        return perdure.ask("What?", answer=kind)

    with pytest.raises(RunSuspended):
        perdure.run(asks, goal="g", store=store())
    with perdure.Client(store()) as client:
        with pytest.raises(AnswerRefused):
            client.answer("g", None, wrong, by="ann")
        assert len(client.questions()) == 1, "nothing was changed"
        client.answer("g", None, given, by="ann")
    found = perdure.run(asks, goal="g", store=store())
    assert found == received and type(found) is type(received)


def test_only_choices_are_taken(url: str) -> None:
    @perdure.flow
    def asks() -> list[Any]:
        return [perdure.ask("Which?", choices=["a", "b"]), perdure.ask("How many?", choices=[1, 2])]

    suspended(url, asks)
    with pytest.raises(AnswerRefused, match=r"'c' is not one of \['a', 'b'\].*It takes: \"a\" or \"b\""):
        answer(url, "c")
    answer(url, "b")
    suspended(url, asks)
    answer(url, 2)
    assert perdure.run(asks, goal="g", store=url) == ["b", 2]


def test_a_refusal_says_where_and_changes_nothing(url: str) -> None:  # W1 rel:H3
    suspended(url, approval, "p")
    for name, question, value, error, said in [
        ("g", None, "maybe", AnswerRefused, "'maybe' is not of type 'boolean'"),
        ("g", None, object(), AnswerRefused, "no form in JSON"),
        ("g", None, float("nan"), AnswerRefused, "not of type 'boolean'"),
        ("g", None, "\ud800", AnswerRefused, "no form in JSON"),
        ("g", None, "x" * (1 << 20), AnswerRefused, "not of type"),
        ("g", 7, True, RunNotFound, "asks no question '7'"),
        ("g", "0123456789abcdef", True, RunNotFound, "asks no question"),
        ("h", None, True, RunNotFound, "no run 'h'"),
        ("../g", None, True, RunNotFound, "no run"),
    ]:
        with pytest.raises(error, match=said):
            answer(url, value, question, goal=name)
    with pytest.raises(ConfigError, match="by"):
        answer(url, True, by="")
    with perdure.Client(url) as client:
        assert [entry.post for entry in client.entries("g") if isinstance(entry, j.Posted)] == []
        assert len(client.questions()) == 1


def test_an_answer_that_is_too_large_is_refused_before_anything_is_written(url: str) -> None:  # rel:B1
    @perdure.flow
    def asks() -> str:
        return str(perdure.ask("Say?"))

    suspended(url, asks)
    with pytest.raises(AnswerRefused, match="the limit is 1,048,576"):
        answer(url, "x" * (1 << 20))
    answer(url, "x" * 1_000_000)
    assert len(perdure.run(asks, goal="g", store=url)) == 1_000_000


def test_the_first_answer_counts_and_the_second_is_told_whose_it_was(url: str) -> None:  # rel:H3
    suspended(url, approval, "p")
    answer(url, True, by="ann")
    for question in (None, 2, "ask"):
        with pytest.raises(AnswerRefused, match=r"question 2 was answered already, by ann at 20.* UTC"):
            answer(url, False, question, by="bob")
    assert perdure.run(approval, "p", goal="g", store=url) == "did publish"
    with pytest.raises(AnswerRefused, match="by ann"):
        answer(url, False, by="bob")


def test_of_answers_at_the_same_time_one_is_taken(url: str) -> None:  # rel:H3
    @perdure.flow
    def asks() -> str:
        return str(perdure.ask("Who?"))

    suspended(url, asks)
    start = threading.Barrier(6)
    taken: list[str] = []
    refused: list[str] = []

    def person(name: str) -> None:
        with perdure.Client(url) as client:
            start.wait()
            try:
                client.answer("g", None, name, by=name)
            except AnswerRefused as error:
                refused.append(str(error))
            else:
                taken.append(name)

    people = [threading.Thread(target=person, args=(f"p{k}",)) for k in range(6)]
    for one in people:
        one.start()
    for one in people:
        one.join()
    assert len(taken) == 1 and len(refused) == 5 and all(f"by {taken[0]} " in text for text in refused)
    assert perdure.run(asks, goal="g", store=url) == taken[0]


def test_asking_again_after_a_rerun_is_another_question(url: str) -> None:  # rel:H2
    suspended(url, approval, "p")
    with perdure.Client(url) as client:
        old = client.question("g").id
    answer(url, True)
    assert perdure.run(approval, "p", goal="g", store=url) == "did publish"
    suspended(url, approval, "p", rerun="ask")
    with perdure.Client(url) as client:
        assert client.question("g").id != old
        with pytest.raises(AnswerRefused, match="answered already"):
            client.answer("g", old, True, by="ann")
        client.answer("g", None, False, by="bob")
    assert perdure.run(approval, "p", goal="g", store=url) == "dropped"


def test_a_run_that_wants_what_only_its_program_can_check_refuses_and_asks_on(url: str) -> None:  # W1
    class Even(BaseModel):
        n: int

        def model_post_init(self, context: object) -> None:
            if self.n % 2:
                raise ValueError(f"{self.n} is odd")

    @perdure.flow
    def asks() -> int:
        return int(perdure.ask("Even?", answer=Even).n)

    suspended(url, asks)
    answer(url, {"n": 3})
    suspended(url, asks)
    with perdure.Client(url) as client:
        assert "3 is odd" in client.question("g").refused
        client.answer("g", None, {"n": 4}, by="bob")
    assert perdure.run(asks, goal="g", store=url) == 4


def test_wrong_declarations_are_refused_before_anything_is_asked() -> None:
    class Odd:
        pass

    for make, said in [
        (lambda: perdure.ask(""), "prompt"),
        (lambda: perdure.ask("x", choices="ab"), "choices"),
        (lambda: perdure.ask("x", choices=[]), "choices"),
        (lambda: perdure.ask("x", answer=Odd), "type .*Odd"),
        (lambda: perdure.ask("x", answer=complex), "complex"),
        (lambda: perdure.ask("x", to="y" * 600), "to must"),
        (lambda: perdure.ask("x", deadline=datetime(2030, 1, 1)), "no time zone"),
        (lambda: perdure.ask("x", deadline=timedelta(days=-1)), "deadline"),
        (lambda: perdure.ask("x", deadline=0), "over before it begins"),
        (lambda: perdure.ask("x", deadline=datetime(2020, 1, 1, tzinfo=UTC)), "in the past"),
        (lambda: perdure.ask("x", context=Odd()), "context"),
        (lambda: perdure.ask("x", default=Odd()), "Odd: this value has no form in JSON"),
        (lambda: perdure.ask("x", answer=bool, deadline=1, default="no"), "default='no' is not what is asked for"),
        (lambda: perdure.ask("x", choices=["a", "b"], deadline=1, default="c"), "not one of the choices"),
        (lambda: perdure.signal("x", type=int, deadline=1, default="c"), "default='c'"),
        (lambda: perdure.signal("x", type=complex), "signal: type=complex"),
        (lambda: perdure.sleep(), "duration, or until"),
        (lambda: perdure.sleep(-1), "sleep must"),
        (lambda: perdure.sleep(until=datetime(2030, 1, 1)), "no time zone"),
        (lambda: perdure.signal(""), "signal is empty"),
    ]:
        with pytest.raises(perdure.PerdureError, match=said):
            perdure.run(perdure.flow(name="asks")(make), goal="g", store="memory:")


def test_without_a_store_nobody_can_be_asked_and_a_timer_just_waits() -> None:  # G1
    for waits in (lambda: perdure.ask("x"), lambda: perdure.signal("x")):
        with pytest.raises(ConfigError, match="without a store"):
            waits()
    assert perdure.sleep(0.001) is None

    async def flow() -> None:
        await perdure.sleep(timedelta(milliseconds=1))
        with pytest.raises(ConfigError, match="without a store"):
            await perdure.ask("x")

    asyncio.run(flow())


# -- several at once ---------------------------------------------------------------------------------------------------


@perdure.flow(name="many")
async def many_async() -> list[str]:
    async def branch(name: str, steps: int) -> str:
        for step in range(steps):
            await work_async(f"{name}{step}")
        return f"{name}: {await perdure.ask('Go on?', context=name)}" if name != "c" else name

    return await perdure.gather(*(branch(name, steps) for name, steps in (("a", 0), ("b", 2), ("c", 4))))


@perdure.flow(name="many")
def many() -> list[str]:
    def branch(name: str, steps: int) -> str:
        for step in range(steps):
            work(f"{name}{step}")
        return f"{name}: {perdure.ask('Go on?', context=name)}" if name != "c" else name

    return perdure.gather(*(functools.partial(branch, name, steps) for name, steps in (("a", 0), ("b", 2), ("c", 4))))


@pytest.mark.parametrize("flow", [many, many_async])
def test_branches_that_need_no_answer_go_on_and_several_questions_are_open(url: str, flow: Any) -> None:  # W1
    waits = suspended(url, flow)
    assert sorted(RAN) == ["b0", "b1", "c0", "c1", "c2", "c3"] and len(waits.questions) == 2
    with perdure.Client(url) as client:
        asked = {client.question("g", q.id).context: q for q in client.questions("g")}
        assert len({q.path for q in asked.values()}) == 2, "each in a scope of its own"
        with pytest.raises(ConfigError, match="asks 2 questions"):
            client.answer("g", None, "yes", by="ann")
        client.answer("g", asked["b"].id, "yes b", by="ann")
    suspended(url, flow)
    with perdure.Client(url) as client:
        client.answer("g", None, "yes a", by="ann")
    assert perdure.run(flow, goal="g", store=url) == ["a: yes a", "b: yes b", "c"]
    assert len(RAN) == 6


def test_equal_questions_side_by_side_keep_their_own_answers(url: str) -> None:  # X10
    @perdure.flow
    async def asks() -> list[str]:
        return await perdure.gather(*(perdure.ask("Same?") for _ in range(3)))

    suspended(url, asks)
    with perdure.Client(url) as client:
        for place, question in enumerate(client.questions()):
            client.answer("g", question.step, f"answer {place}", by="ann")
    assert perdure.run(asks, goal="g", store=url) == ["answer 0", "answer 1", "answer 2"]


@perdure.flow
async def own_group() -> list[str]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_beside(name)) for name in ("a", "b")]
        await work_async("beside")
    return [task.result() for task in tasks]


async def _beside(name: str) -> str:
    await work_async(name)
    return str(await perdure.ask(f"{name}?"))


def test_a_task_group_of_ones_own_is_suspended_too(url: str) -> None:  # W1
    waits = suspended(url, own_group)
    assert len(waits.questions) == 2 and sorted(RAN) == ["a", "b", "beside"]
    with perdure.Client(url) as client:
        for question in client.questions():
            client.answer("g", question.id, question.prompt, by="ann")
    assert perdure.run(own_group, goal="g", store=url) == ["a?", "b?"]
    assert len(RAN) == 3


def test_a_step_beside_a_task_of_ones_own_that_asks_is_finished_first(url: str) -> None:  # W1
    asked = threading.Event()

    @perdure.step
    async def long() -> str:
        await asyncio.to_thread(asked.wait, 30)
        for _ in range(20):  # longer than tasks get to show themselves
            await asyncio.sleep(0.01)
        RAN.append("long")
        return "long"

    @perdure.flow
    async def asks() -> str:
        task = asyncio.create_task(perdure.ask("x?"))
        return f"{await long()} {await task}"

    suspended(url, asks, config=perdure.CheckpointConfig(on_question=(lambda question: asked.set(),)))
    assert RAN == ["long"]
    answer(url, "y")
    assert perdure.run(asks, goal="g", store=url) == "long y" and RAN == ["long"]


def test_tasks_of_ones_own_inside_a_step_are_suspended_with_it(url: str) -> None:  # W1
    @perdure.step
    async def both() -> list[str]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(perdure.ask(f"{name}?")) for name in "ab"]
        return [task.result() for task in tasks]

    flow = perdure.flow(name="f")(_awaits(both))
    assert len(suspended(url, flow).questions) == 2
    with perdure.Client(url) as client:
        for question in client.questions():
            client.answer("g", question.id, question.prompt, by="ann")
    assert perdure.run(flow, goal="g", store=url) == ["a?", "b?"]


def _awaits(step: Any) -> Any:
    async def awaits() -> Any:
        return await step()

    return awaits


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_question_inside_a_step_that_is_too_late_holds_up_nothing(url: str, colour: str) -> None:  # C8
    @perdure.step(name="slow", timeout=0.05)
    def slow() -> str:
        return str(perdure.ask("x?"))

    @perdure.step(name="slow", timeout=0.05)
    async def slow_async() -> str:
        return str(await perdure.ask("x?"))

    @perdure.flow(name="f")
    def flow() -> str:
        try:
            return slow()
        except perdure.errors.StepTimeout:  # type: ignore[attr-defined]
            return work("instead")

    @perdure.flow(name="f")
    async def flow_async() -> str:
        try:
            return await slow_async()
        except perdure.errors.StepTimeout:  # type: ignore[attr-defined]
            return await work_async("instead")

    chosen: Any = flow if colour == "sync" else flow_async
    assert perdure.run(chosen, goal="g", store=url, wait=True) == "did instead"


def end_of_late_bodies(name: str) -> None:
    for thread in threading.enumerate():
        if thread.name == f"perdure-step-{name}":
            thread.join(30)


def test_a_question_of_a_body_that_is_too_late_is_closed_and_the_flow_goes_on(url: str) -> None:  # C8 W1
    @perdure.step(timeout=0.05)
    def slow() -> str:
        return str(perdure.ask("x?"))

    @perdure.flow
    def impatient() -> str:
        with contextlib.suppress(StepTimeout):
            slow()
        end_of_late_bodies("slow")
        return str(perdure.ask("y?"))

    waits = suspended(url, impatient, wait=0.5)
    with perdure.Client(url) as client:
        assert [question.prompt for question in client.questions()] == ["y?"] and len(waits.questions) == 1


def test_a_step_inside_a_body_that_is_too_late_is_interrupted_and_executed_by_the_next_attempt(url: str) -> None:
    second, gone = threading.Event(), threading.Event()  # C8

    @perdure.step
    def inner() -> str:
        RAN.append("inner")
        if len(RAN) == 1:
            second.wait(30)
            return "late"
        second.set()
        gone.wait(30)
        return "in time"

    @perdure.step(retries=1, backoff=0)
    def outer() -> str:
        return limited.options(timeout=30 if RAN else 0.05)()

    @perdure.step
    def limited() -> str:
        first = not RAN
        try:
            return inner()
        finally:
            if first:
                gone.set()

    assert perdure.run(perdure.flow(name="f")(lambda: outer()), goal="g", store=url) == "in time"
    with perdure.Client(url) as client:
        steps = {step.name: step for step in client.state("g").steps.values()}
    assert RAN == ["inner", "inner"] and [a.outcome for a in steps["inner"].attempts] == ["interrupted", "completed"]


def test_a_body_that_is_too_late_does_not_keep_a_run_from_being_suspended(url: str) -> None:  # C8 W1
    timed_out = threading.Event()

    @perdure.step
    def inner() -> None:
        timed_out.wait(30)

    @perdure.step(timeout=0.05)
    def slow() -> None:
        inner()

    @perdure.flow
    async def asks() -> list[str]:
        with contextlib.suppress(StepTimeout):
            slow()
        timed_out.set()
        end_of_late_bodies("slow")
        async with asyncio.timeout(10):
            return await asyncio.gather(asyncio.create_task(perdure.ask("y?")))

    assert len(suspended(url, asks).questions) == 1


def test_a_branch_that_lost_asks_nothing_more(url: str) -> None:
    won, told = threading.Event(), []

    def slow() -> str:
        won.wait(30)
        return str(perdure.ask("Too late?"))

    def quick() -> str:
        return work("quick")

    @perdure.flow
    def race() -> str:
        found = str(perdure.first(slow, quick))
        won.set()
        return found + str(perdure.ask("Next?"))

    config = perdure.CheckpointConfig(on_question=(lambda question: told.append(question.prompt),))
    assert len(suspended(url, race, config=config).questions) == 1 and told == ["Next?"]


def test_sync_code_asks_also_where_an_event_loop_runs(url: str) -> None:  # H4
    async def notebook() -> str:
        with pytest.raises(RunSuspended):
            perdure.run(approval, "p", goal="g", store=url)
        answer(url, True)
        return perdure.run(approval, "p", goal="g", store=url)

    assert asyncio.run(notebook()) == "did publish"

    @perdure.step
    def inline() -> str:
        return "yes" if perdure.ask("Sure?", answer=bool) else "no"

    nested = perdure.flow(name="nested")(lambda: "yes" if perdure.ask("Sure?", answer=bool) else "no")
    for called in (inline, nested):
        flow = perdure.flow(name="outer")(_calling(called))
        with pytest.raises(ConfigError, match="sync code that an async flow executes on its event loop"):
            perdure.run(flow, goal=f"in {called.name}", store=url)

    @perdure.flow
    async def threads() -> list[str]:
        return await perdure.gather(work_async("x"), functools.partial(inline))

    assert len(suspended(url, threads, goal="threads").questions) == 1


def _calling(called: Any) -> Any:
    async def calling() -> str:
        return str(called())

    return calling


def test_a_run_is_not_suspended_while_a_task_of_ones_own_executes_a_step(url: str) -> None:  # X9
    ended = []

    @perdure.step(on_crash="fail")
    async def slow() -> str:
        for _ in range(20):
            await asyncio.sleep(0.01)
        ended.append("slow")
        return "slow"

    @perdure.flow
    async def grouped() -> list[str]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(perdure.ask("q?")), group.create_task(slow())]
        return [task.result() for task in tasks]

    @perdure.flow
    async def gathered() -> list[str]:
        return list(await asyncio.gather(perdure.ask("q?"), slow()))

    for goal, flow in (("a", grouped), ("b", gathered)):
        suspended(url, flow, goal=goal)
        answer(url, "y", goal=goal)
        assert perdure.run(flow, goal=goal, store=url) == ["y", "slow"]
    assert ended == ["slow", "slow"]


def test_threads_of_ones_own_wait_each_for_itself(url: str) -> None:
    @perdure.flow
    async def both() -> list[Any]:
        asks, sleeps = asyncio.to_thread(perdure.ask, "q?"), asyncio.to_thread(perdure.sleep, 0.05)
        return list(await asyncio.gather(asks, sleeps))

    assert len(suspended(url, both).questions) == 1
    answer(url, "y")
    assert perdure.run(both, goal="g", store=url) == ["y", None]

    asked = threading.Event()

    @perdure.step(on_crash="fail")
    def long() -> str:
        assert asked.wait(30)
        OTHER.wait(0.2)
        RAN.append("long")
        return "long"

    def helps() -> None:
        with contextlib.suppress(BaseException):
            perdure.ask("q?")

    @perdure.flow(name="helped")
    def helped() -> str:
        thread = threading.Thread(target=contextvars.copy_context().run, args=(helps,), daemon=True)
        thread.start()
        return long() + str(perdure.ask("then?"))

    config = perdure.CheckpointConfig(on_question=(lambda question: asked.set(),))
    suspended(url, helped, goal="h", config=config)
    assert RAN == ["long"]


OTHER = threading.Event()


def test_what_comes_while_the_run_is_being_suspended_makes_it_ready(url: str) -> None:
    left, answered = threading.Event(), threading.Event()

    @perdure.flow
    def slowly() -> str:
        try:
            return str(perdure.ask("q?"))
        finally:
            left.set()
            assert answered.wait(30)

    def person() -> None:
        left.wait(30)
        answer(url, "y")  # it is in the journal then: whoever holds the run has moved it
        answered.set()

    thread = threading.Thread(target=person)
    thread.start()
    suspended(url, slowly)
    thread.join()
    with perdure.Client(url) as client:
        assert client.find("g").status == states.READY and [str(row.key) for row in client.due()] == ["g#0"]
    assert perdure.run(slowly, goal="g", store=url) == "y"


def test_a_step_that_is_tried_again_does_not_ask_again(url: str) -> None:
    @perdure.step(retries=1, backoff=0)
    def fails() -> str:
        said = str(perdure.ask("q?"))
        RAN.append(said)
        if len(RAN) == 1:
            raise ValueError("no")
        return said

    flow = perdure.flow(name="f")(lambda: fails())
    suspended(url, flow)
    answer(url, "y")
    assert perdure.run(flow, goal="g", store=url) == "y" and RAN == ["y", "y"]


def test_what_was_given_up_takes_no_signal_and_no_answer(url: str) -> None:  # rel:H4
    goes_on = threading.Event()

    @perdure.flow
    async def impatient() -> str:
        for wait in (perdure.signal, perdure.ask):
            try:
                async with asyncio.timeout(0.05):
                    await wait("x")
            except TimeoutError:
                RAN.append("gave up")
        await work_async("goes on")
        goes_on.set()
        return str(await perdure.signal("x"))

    def person() -> None:
        goes_on.wait(30)
        with perdure.Client(url) as client:
            client.signal("g", "x", "came")

    thread = threading.Thread(target=person)
    thread.start()
    assert perdure.run(impatient, goal="g", store=url, wait=True) == "came"
    thread.join()
    assert RAN == ["gave up", "gave up", "goes on"]
    with perdure.Client(url) as client, pytest.raises(AnswerRefused, match="nobody needs"):
        client.answer("g", "ask", "late", by="ann")


def test_a_question_that_changed_code_does_not_ask_any_more_is_closed(url: str) -> None:  # X1
    suspended(url, perdure.flow(name="f")(lambda: perdure.ask("Pubish?")))
    edited = perdure.flow(name="f")(lambda: perdure.ask("Publish?"))
    suspended(url, edited)
    with perdure.Client(url) as client:
        (question,) = client.questions()
        assert question.prompt == "Publish?"
    answer(url, "y")
    assert perdure.run(edited, goal="g", store=url) == "y"


def test_an_async_hook_tells_of_a_question_in_sync_code_too(url: str) -> None:
    told = []

    async def hook(question: Question) -> None:
        await asyncio.sleep(0)
        told.append(question.prompt)

    suspended(url, approval, "p", config=perdure.CheckpointConfig(on_question=(hook,)))
    assert told == ["Publish?"]


def test_a_timer_ends_in_time_though_the_clock_is_set_back(url: str) -> None:  # C9
    class SetBack(Clock):
        back = 0.0

        def now(self) -> float:
            return super().now() - self.back

        def wait(self, bell: threading.Event, seconds: float) -> None:
            self.back = 86400.0
            super().wait(bell, seconds)

    with CheckpointManager(url, clock=SetBack()) as manager:
        assert manager.run_sync(perdure.flow(name="f")(lambda: perdure.sleep(0.05)), goal="g") is None


def test_answerer_and_holder_judge_a_deadline_by_the_same_clock(url: str) -> None:  # rel:C5
    clock = Later()
    flow = perdure.flow(name="f")(lambda: perdure.ask("q?", deadline=3600.0, default="late"))
    with CheckpointManager(url, clock=clock) as manager, pytest.raises(RunSuspended):
        manager.run_sync(flow, goal="g")
    with perdure.Client(url, clock=clock) as client:
        clock.offset += 7200
        client.signal("g", "anything")
        clock.offset -= 86400
        with pytest.raises(AnswerRefused, match="deadline"):
            client.answer("g", None, "x", by="ann")
    with CheckpointManager(url, clock=clock) as manager:
        assert manager.run_sync(flow, goal="g") == "late"


def test_a_cancelled_wait_in_a_server_leaves_no_thread_and_no_lease(url: str) -> None:  # B3
    asked = threading.Event()

    async def server() -> None:
        config = perdure.CheckpointConfig(on_question=(lambda question: asked.set(),))
        with CheckpointManager(url, config) as manager:
            task = asyncio.create_task(manager.run(approval, "p", goal="g", wait=True))
            await asyncio.to_thread(asked.wait, 30)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            for thread in threading.enumerate():
                if thread.name == "perdure-flow":
                    await asyncio.to_thread(thread.join, 30)
                    assert not thread.is_alive()
            with pytest.raises(RunSuspended):
                await manager.run(approval, "p", goal="g")

    asyncio.run(server())
    assert status(url) == states.PENDING_INPUT


def test_code_that_tidies_up_when_it_is_cancelled_leaves_the_question_open(url: str) -> None:  # B3
    asked = threading.Event()

    @perdure.flow
    async def tidy() -> str:
        try:
            return str(await perdure.ask("q?"))
        finally:
            await work_async("tidy")

    async def server() -> None:
        config = perdure.CheckpointConfig(on_question=(lambda question: asked.set(),))
        with CheckpointManager(url, config) as manager:
            task = asyncio.create_task(manager.run(tidy, goal="g", wait=True))
            await asyncio.to_thread(asked.wait, 30)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(server())
    with perdure.Client(url) as client:
        assert len(client.questions()) == 1 and client.find("g").status == states.INTERRUPTED
        assert [e for e in client.entries("g") if isinstance(e, j.QuestionClosed)] == []
    answer(url, "y")
    assert perdure.run(tidy, goal="g", store=url) == "y" and RAN == ["tidy"]


def test_a_run_that_lost_its_store_asks_nobody() -> None:  # B4 B10
    store = MemoryStore()

    def lost(batch: object) -> Any:
        raise StoreError("gone")

    @perdure.step
    def breaks() -> str:
        store.append = lost  # type: ignore[method-assign]
        return "x"

    flow = perdure.flow(name="f")(lambda: (breaks(), perdure.sleep(0.001), perdure.ask("q?")))
    config = perdure.CheckpointConfig(store_failure="degrade")
    with pytest.raises(ConfigError, match="nobody can answer"):
        perdure.run(flow, goal="g", store=store, config=config)


def test_a_damaged_inbox_is_told_of_once_and_keeps_nobody_else_from_hearing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:  # rel:B3
    url, told, heard = f"file:{tmp_path}", threading.Event(), threading.Event()

    @perdure.step
    async def damage() -> str:
        sound = j.encode(perdure.RunKey("deaf"), j.SignalReceived(name="x", by="ann"))
        (tmp_path / "runs" / "deaf.0" / "inbox.jsonl").write_bytes(b"nonsense\n" + sound)
        return "damaged"

    @perdure.flow
    async def deaf() -> str:
        await damage()
        await asyncio.to_thread(heard.wait, 30)
        return "done"

    def person() -> None:
        told.wait(30)
        answer(url, True)

    async def main() -> list[str]:
        config = perdure.CheckpointConfig(on_question=(lambda question: told.set(),))
        with CheckpointManager(url, config) as manager:
            first = asyncio.create_task(manager.run(deaf, goal="deaf"))
            second = await manager.run(approval_async, "p", goal="g", wait=True)
            heard.set()
            return [await first, second]

    thread = threading.Thread(target=person)
    thread.start()
    with caplog.at_level(logging.ERROR, "perdure"):
        assert asyncio.run(main()) == ["done", "did publish"]
    thread.join()
    assert caplog.text.count("run deaf#0 goes on without what others post to it") == 1


def test_who_posts_does_not_keep_others_from_running_the_run(url: str) -> None:
    suspended(url, listens, 1)
    done = threading.Event()

    def sender() -> None:
        with perdure.Client(url) as client:
            while not done.is_set():
                client.signal("g", "other")

    thread = threading.Thread(target=sender)
    thread.start()
    for _ in range(20):
        suspended(url, listens, 1)
    done.set()
    thread.join()


@pytest.mark.parametrize("flavour", ["child", "nested", "step"])
def test_a_question_inside_a_child_a_flow_or_a_step(url: str, flavour: str) -> None:  # W1 K3
    @perdure.flow
    async def inner(name: str) -> str:
        await work_async(name)
        return str(await perdure.ask("Inner?"))

    called: Any = {"child": perdure.child(inner), "nested": inner, "step": perdure.step(inner.fn)}[flavour]

    @perdure.flow
    async def outer() -> list[str]:
        return await perdure.gather(called("a"), work_async("b"), called("c"))

    suspended(url, outer)
    with perdure.Client(url) as client:
        for question in client.questions():
            client.answer("g", question.id, f"to {question.path}", by="ann")
        stopped = {s.status for s in client.state("g").steps.values()}
        assert stopped <= {"completed", "pending", "waiting"}, "nothing is in doubt"
    found = perdure.run(outer, goal="g", store=url)
    assert all(text.endswith("/ask") for text in (found[0], found[2])) and found[0] != found[2]
    assert sorted(RAN) == ["a", "b", "c"]


def test_a_step_in_doubt_is_none_because_it_asked(url: str) -> None:  # X9
    @perdure.step(on_crash="fail")
    def asks() -> str:
        return str(perdure.ask("x?"))

    flow = perdure.flow(name="f")(lambda: asks())
    suspended(url, flow)
    answer(url, "y")
    assert perdure.run(flow, goal="g", store=url) == "y"


@perdure.step(name="charge", on_crash="ask", timeout=60)
def charge(amount: int) -> Decision:
    """It dies in the first two attempts."""
    RAN.append(f"charge {amount}")
    if len(RAN) <= 2:
        raise SystemExit(7)
    return Decision(True, amount)


@perdure.step(name="charge", on_crash="ask", timeout=60)
async def charge_async(amount: int) -> Decision:
    return charge.fn(amount)


@pytest.mark.parametrize("step", [charge, charge_async])
def test_a_person_decides_about_a_step_in_doubt(url: str, step: Any) -> None:  # X9
    flow = perdure.flow(name="f")(_calls(step))
    with pytest.raises(SystemExit):
        perdure.run(flow, 5, goal="g", store=url)
    suspended(url, flow, 5)
    with perdure.Client(url) as client:
        asked = client.question("g")
        assert "may have had its effect" in asked.prompt and asked.context == "charge(5)"
        assert asked.path == "charge-0/in doubt"
        for wrong in ("yes", {"result": 3}, {"result": {"accept": 1}}, {}):
            with pytest.raises(AnswerRefused):
                client.answer("g", None, wrong, by="ann")
        client.answer("g", None, "again", by="ann")
    with pytest.raises(SystemExit):
        perdure.run(flow, 5, goal="g", store=url)
    suspended(url, flow, 5)
    answer(url, {"result": {"accept": False, "score": 1}})
    assert perdure.run(flow, 5, goal="g", store=url) == Decision(False, 1)
    assert RAN == ["charge 5", "charge 5"]
    with perdure.Client(url) as client:
        outcomes = [attempt.outcome for attempt in client.step("g", "charge").attempts]
    assert outcomes == ["interrupted", "completed"]


def _calls(step: Any) -> Any:
    async def call_async(amount: int) -> Decision:
        return await step(amount)  # type: ignore[no-any-return]

    def call(amount: int) -> Decision:
        return step(amount)  # type: ignore[no-any-return]

    return call_async if step.is_async else call


def test_a_step_without_a_result_may_be_said_to_have_ended(url: str) -> None:  # X9
    @perdure.step(on_crash="ask")
    def mail() -> None:
        RAN.append("mail")
        raise SystemExit(7)

    flow = perdure.flow(name="f")(lambda: (mail(), work("after"))[1])
    with pytest.raises(SystemExit):
        perdure.run(flow, goal="g", store=url)
    suspended(url, flow)
    answer(url, {"result": None})
    assert perdure.run(flow, goal="g", store=url) == "did after"
    assert RAN == ["mail", "after"]


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_the_first_of_two_waits_closes_the_other(url: str, colour: str) -> None:
    @perdure.flow
    async def race_async() -> str:
        async def slow() -> str:
            return str(await perdure.signal("go"))

        return str(await perdure.first(perdure.ask("Stop?"), slow()))

    @perdure.flow
    def race() -> str:
        return str(perdure.first(lambda: perdure.ask("Stop?"), lambda: perdure.signal("go")))

    flow: Any = race if colour == "sync" else race_async
    suspended(url, flow)
    with perdure.Client(url) as client:
        client.signal("g", "go", "went")
    assert perdure.run(flow, goal="g", store=url) == "went"
    with perdure.Client(url) as client:
        assert client.questions() == []
        closed = [e for e in client.entries("g") if isinstance(e, j.QuestionClosed)]
        assert [(e.expired, bool(e.question)) for e in closed] == [(False, True)]
        with pytest.raises(AnswerRefused, match="nobody needs the answer"):
            client.answer("g", None, "late", by="ann")


def test_a_question_nobody_waits_for_any_more_is_closed_when_the_run_completes(url: str) -> None:
    @perdure.flow
    async def asks() -> str:
        left = asyncio.create_task(perdure.ask("Anybody?"))
        await work_async("x")
        await asyncio.sleep(0)
        left.cancel()
        return "done"

    assert perdure.run(asks, goal="g", store=url) == "done"
    with perdure.Client(url) as client, pytest.raises(AnswerRefused, match="nobody needs"):
        client.answer("g", None, "late", by="ann")


def test_a_step_that_a_slow_store_is_still_recording_is_something_that_moves(url: str) -> None:  # W1
    @perdure.flow
    async def asks() -> str:
        left = asyncio.create_task(perdure.ask("Anybody?"))
        await work_async("x")
        await asyncio.sleep(0)
        left.cancel()
        return "done"

    with contextlib.closing(open_store(url)) as store:
        assert perdure.run(asks, goal="g", store=faulty(store, SLOW)) == "done"


def test_no_question_is_closed_because_its_task_group_was_unwound_before_it(url: str) -> None:  # W1
    with contextlib.closing(open_store(url)) as store:
        waits = suspended(faulty(store, SLOW), own_group)
        assert len(waits.questions) == 2


def test_what_was_given_up_while_it_was_asked_takes_no_signal(url: str) -> None:  # rel:H4
    @perdure.flow
    async def impatient() -> str:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await perdure.signal("x")
        await work_async("goes on")
        return str(await perdure.signal("x"))

    with contextlib.closing(open_store(url)) as store:
        waits = suspended(faulty(store, SLOW), impatient)
    assert "the signal 'x'." in str(waits)
    with perdure.Client(url) as client:
        client.signal("g", "x", "came")
        state = client.state("g")
    assert [step.status for step in state.steps.values()] == ["interrupted", "completed", "pending"]
    assert list(state.waits.arrived) == [3]


# -- staying in the process --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flow", [approval, approval_async])
def test_with_wait_the_process_stays_until_the_answer_is_there(url: str, flow: Any) -> None:  # W1
    asked = threading.Event()
    config = perdure.CheckpointConfig(on_question=(lambda question: asked.set(),))

    def person() -> None:
        asked.wait()
        answer(url, True)

    thread = threading.Thread(target=person)
    thread.start()
    assert perdure.run(flow, "p", goal="g", store=url, wait=True, config=config) == "did publish"
    thread.join()
    with perdure.Client(url) as client:
        assert client.state("g").lives == 1


@pytest.mark.parametrize("flow", [approval, approval_async])
def test_wait_has_a_limit(url: str, flow: Any) -> None:
    suspended(url, flow, "p", wait=0.05)
    for wrong in (-1, "x", float("nan")):
        with pytest.raises(ConfigError, match="wait"):
            perdure.run(flow, "p", goal="g", store=url, wait=wrong)  # type: ignore[arg-type]


def test_an_answer_while_another_branch_works_is_used_at_once(url: str) -> None:
    answered = threading.Event()

    @perdure.step
    def long() -> str:
        asked.wait(30)
        answer(url, "yes")
        assert answered.wait(30), "the other branch goes on while this one is at work"
        return "long"

    def asks() -> str:
        said = str(perdure.ask("x?"))
        answered.set()
        return said

    asked = threading.Event()
    config = perdure.CheckpointConfig(on_question=(lambda question: asked.set(),))
    flow = perdure.flow(name="f")(lambda: perdure.gather(asks, long))
    assert perdure.run(flow, goal="g", store=url, config=config) == ["yes", "long"]


# -- deadlines ---------------------------------------------------------------------------------------------------------


@perdure.flow
def dated(default: Any = "none") -> Any:
    more = {} if default == "none" else {"default": default}
    return perdure.ask("Soon?", answer=bool, deadline=timedelta(hours=2), **more)


def test_a_deadline_passes_with_its_default_though_nothing_ran(url: str) -> None:  # rel:H4
    clock = Later()
    with CheckpointManager(url, clock=clock) as manager, pytest.raises(RunSuspended) as waits:
        manager.run_sync(dated, False, goal="g")
    assert waits.value.until == pytest.approx(clock.now() + 7200, abs=5)
    with perdure.Client(url, clock=clock) as client:
        assert client.questions()[0].otherwise == "false" and client.due() == []
        clock.offset += 7201
        assert [row.status for row in client.due()] == [states.READY] and client.find("g").status == states.READY
        with pytest.raises(AnswerRefused, match="the deadline of question 1 passed at"):
            client.answer("g", None, True, by="late")
    with CheckpointManager(url, clock=clock) as manager:
        assert manager.run_sync(dated, False, goal="g") is False
    with perdure.Client(url, clock=clock) as client, pytest.raises(AnswerRefused, match="deadline of question 1 has"):
        client.answer("g", 1, True, by="late")


def test_a_deadline_without_a_default_is_an_error_and_another_run_asks_anew(url: str) -> None:  # rel:H4
    clock = Later()
    with CheckpointManager(url, clock=clock) as manager:
        with pytest.raises(RunSuspended):
            manager.run_sync(dated, goal="g")
        clock.offset += 7201
        with pytest.raises(DeadlinePassed, match="step 1 \\(ask\\) waited for an answer"):
            manager.run_sync(dated, goal="g")
        with pytest.raises(RunSuspended):
            manager.run_sync(dated, goal="g")
        with perdure.Client(manager._lives.writer.store, clock=clock) as client:  # type: ignore[union-attr]
            client.answer("g", None, True, by="ann")
            assert manager.run_sync(dated, goal="g") is True


def test_a_clock_set_back_neither_expires_nor_reopens_a_question(url: str) -> None:  # rel:C5
    clock = Later()
    with CheckpointManager(url, clock=clock) as manager, pytest.raises(RunSuspended):
        manager.run_sync(dated, False, goal="g")
    clock.offset -= 86400
    with CheckpointManager(url, clock=clock) as manager, pytest.raises(RunSuspended):
        manager.run_sync(dated, False, goal="g")
    clock.offset += 86400 + 7201
    with CheckpointManager(url, clock=clock) as manager:
        assert manager.run_sync(dated, False, goal="g") is False
    clock.offset -= 86400
    with perdure.Client(url, clock=clock) as client, pytest.raises(AnswerRefused, match="deadline"):
        client.answer("g", None, True, by="ann")


# -- signals -----------------------------------------------------------------------------------------------------------


@perdure.flow
def listens(count: int) -> list[Any]:
    return [perdure.signal("news") for _ in range(count)]


def test_signals_are_received_once_and_in_order_whenever_they_came(url: str) -> None:
    told = suspended(url, listens, 4)
    with perdure.Client(url) as client:
        assert client.find("g").status == states.PENDING_INPUT and "signal 'news'" in client.find("g").reason
        assert "Send it with: perdure signal g news; then run it again." in str(told)
        client.signal("g", "news", {"n": 1}, by="feed")
        client.signal("g", "other", "for nobody")
        client.signal("g", "news", [2])
        assert client.find("g").status == states.READY
    suspended(url, listens, 4)
    with perdure.Client(url) as client:
        client.signal("g", "news")
        client.signal("g", "news", 4)
        client.signal("g", "news", 5)
    assert perdure.run(listens, 4, goal="g", store=url) == [{"n": 1}, [2], None, 4]
    with perdure.Client(url) as client, pytest.raises(AnswerRefused, match="is completed"):
        client.signal("g", "news")


def test_a_signal_has_a_type_and_one_that_does_not_fit_is_waited_over(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    flow = perdure.flow(name="f")(lambda: perdure.signal("score", type=Decision))
    suspended(url, flow)
    with perdure.Client(url) as client:
        client.signal("g", "score", "nonsense")
        client.signal("g", "score", {"accept": True, "score": 9})
    with caplog.at_level(logging.WARNING, "perdure"):
        assert perdure.run(flow, goal="g", store=url) == Decision(True, 9)
    assert "cannot take what came" in caplog.text


def test_two_who_wait_for_one_name_get_one_each(url: str) -> None:  # X10
    @perdure.flow
    async def both() -> list[Any]:
        return await perdure.gather(perdure.signal("s"), perdure.signal("s"))

    suspended(url, both)
    with perdure.Client(url) as client:
        client.signal("g", "s", 1)
    suspended(url, both)
    with perdure.Client(url) as client:
        client.signal("g", "s", 2)
    assert perdure.run(both, goal="g", store=url) == [1, 2]


def test_a_signal_may_have_a_deadline() -> None:
    flow = perdure.flow(name="f")(lambda: perdure.signal("s", deadline=0.01, default="none"))
    assert perdure.run(flow, goal="g", store="memory:") == "none"


# -- timers ------------------------------------------------------------------------------------------------------------


def test_a_timer_needs_no_process_and_its_date_is_set_once(url: str) -> None:
    @perdure.flow
    def naps() -> str:
        perdure.sleep(timedelta(days=90))
        return work("awake")

    clock = Later()
    for _ in range(3):
        with CheckpointManager(url, clock=clock) as manager, pytest.raises(RunSuspended) as waits:
            manager.run_sync(naps, goal="g")
        clock.offset += 86400 * 29
    assert waits.value.until == pytest.approx(clock.now() + 86400 * 3, abs=10)
    with perdure.Client(url, clock=clock) as client:
        assert client.find("g").status == states.WAITING and client.due() == []
        clock.offset += 86400 * 4
        assert [str(row.key) for row in client.due()] == ["g#0"]
    with CheckpointManager(url, clock=clock) as manager:
        assert manager.run_sync(naps, goal="g") == "did awake"


def test_a_timer_until_a_date(url: str) -> None:
    date = datetime.now(UTC) + timedelta(days=1)
    flow = perdure.flow(name="f")(lambda: perdure.sleep(until=date))
    assert suspended(url, flow).until == pytest.approx(date.timestamp())
    past = perdure.flow(name="p")(lambda: perdure.sleep(until=datetime(2020, 1, 1, tzinfo=UTC)))
    assert perdure.run(past, goal="p", store=url) is None


def test_a_near_date_is_waited_for_in_the_process(url: str) -> None:
    @perdure.flow
    async def naps() -> str:
        await perdure.gather(perdure.sleep(0.01), perdure.sleep(0.02))
        return await work_async("awake")

    assert perdure.run(naps, goal="g", store=url) == "did awake"


def test_a_rate_limit_holds_up_nothing_else_and_survives_the_process(url: str) -> None:  # C10
    limited = threading.Event()

    @perdure.step
    def model() -> str:
        RAN.append("model")
        if len([name for name in RAN if name == "model"]) == 1:
            limited.set()
            raise perdure.RateLimited(retry_after=3600)
        return "reply"

    def beside() -> str:
        limited.wait(30)
        work("beside")
        return str(perdure.ask("Go on?"))

    @perdure.flow
    def crew() -> list[str]:
        return perdure.gather(model, beside)

    clock = Later()
    clock.wait = lambda bell, seconds: stop()  # type: ignore[method-assign]
    with CheckpointManager(url, clock=clock) as manager, pytest.raises(KeyboardInterrupt):
        manager.run_sync(perdure.flow(name="crew")(lambda: model()), goal="alone")
    with perdure.Client(url) as client:
        step = client.step("alone", "model")
        assert step.status == "waiting" and step.until == pytest.approx(clock.now() + 3600, abs=5)
    RAN.clear()
    limited.clear()
    clock = Later()
    with CheckpointManager(url, clock=clock) as manager, pytest.raises(RunSuspended):
        manager.run_sync(crew, goal="g")
    assert sorted(RAN) == ["beside", "model", "model"], "waited out, and then the question alone is left"


def stop() -> None:
    raise KeyboardInterrupt


# -- hooks -------------------------------------------------------------------------------------------------------------


def test_a_hook_that_fails_is_called_again_and_never_stops_the_run(
    url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def flaky(question: Question) -> None:
        told.append(question.id)
        if len(told) < 3:
            raise OSError("no network")

    def broken(question: Question) -> None:
        raise OSError("never")

    async def async_hook(question: Question) -> None:
        told.append(f"async {question.id}")

    clock = Later()
    clock.wait_async = lambda bell, seconds: asyncio.sleep(0)  # type: ignore[method-assign]
    clock.now = lambda: datetime.now(UTC).timestamp() + 1000 * len(told)  # type: ignore[method-assign]
    config = perdure.CheckpointConfig(on_question=(flaky, async_hook))
    with CheckpointManager(url, config, clock=clock) as manager, pytest.raises(RunSuspended) as waits:
        asyncio.run(manager.run(approval_async, "p", goal="g"))
    (question,) = waits.value.questions
    assert told == [question] * 3 + [f"async {question}"]
    clock = Later()
    config = perdure.CheckpointConfig(on_question=(broken,))
    with caplog.at_level(logging.WARNING, "perdure"):
        manager = CheckpointManager(url, config, clock=clock)
        with manager, pytest.raises(RunSuspended):
            manager.run_sync(approval, "p", goal="h")
    assert "can be answered" in caplog.text
    answer(url, True, goal="h")
    assert perdure.run(approval, "p", goal="h", store=url) == "did publish"


def test_a_wrong_hook_is_refused() -> None:
    for wrong in (print, ("x",)):
        with pytest.raises(ConfigError, match="on_question"):
            perdure.CheckpointConfig(on_question=wrong)  # type: ignore[arg-type]


# -- elsewhere ---------------------------------------------------------------------------------------------------------


def test_a_loop_of_ones_own_may_ask(url: str) -> None:
    def loop() -> str:
        with CheckpointManager(url) as manager, manager.begin(goal="g") as run:
            with run.step("draft") as step:
                if not step.recorded:
                    RAN.append("draft")
                    step.complete("text")
            said = str(perdure.ask("Good?"))
            run.complete(said)
            return said

    with pytest.raises(RunSuspended):
        loop()
    answer(url, "fine")
    assert loop() == "fine" and RAN == ["draft"]


def test_an_executor_returns_what_waits_as_a_status(url: str) -> None:  # G3
    from perdure.runners import Runner

    runner = Runner(url)
    with runner:
        result = runner.execute_sync(asks_graph(), "g", {"what": "draft"})
        assert result.status == states.PENDING_INPUT and isinstance(result.error, RunSuspended)
        answer(url, "good")
        assert runner.execute_sync(asks_graph(), "g", {"what": "draft"}).value() == "good"
    assert RAN == ["draft"]


def asks_graph() -> Any:
    from perdure.runners import Graph

    def decide(draft: str) -> str:
        return str(perdure.ask("Good?", context=draft))

    return Graph({"draft": work.fn, "decide": decide}, [("draft", "decide")], inputs=["what"])


def test_an_attempt_that_asks_suspends_the_run_that_judges_and_its_answer_wakes_it(url: str) -> None:  # K2 W1
    @perdure.flow
    def attempt(topic: str) -> str:
        return f"{topic} {perdure.ask('Title?')}"

    best = perdure.best_of(1, attempt, judge=lambda output: len(output))
    waits = suspended(url, best, "sea")
    assert waits.run == "g#0" and status(url) == states.WAITING
    with perdure.Client(url) as client:
        (question,) = client.questions()
        assert question.run == "g/best#0"
        client.answer(question.run, None, "Tides", by="ann")
        assert {str(row.key) for row in client.due()} == {"g#0", "g/best#0"}
    assert perdure.run(best, "sea", goal="g", store=url).output == "sea Tides"


def test_a_stopped_run_can_be_answered_and_stays_stopped(url: str) -> None:  # B9
    suspended(url, approval, "p")
    with perdure.Client(url) as client:
        assert client.pause("g", by="ann").status == states.PAUSED
        client.answer("g", None, True, by="bob")
        assert client.find("g").status == states.PAUSED
    with pytest.raises(RunStopped, match="stopped by ann"):
        perdure.run(approval, "p", goal="g", store=url)
    with perdure.Client(url) as client:
        assert client.unpause("g", by="ann").status == states.READY
    assert perdure.run(approval, "p", goal="g", store=url) == "did publish"
