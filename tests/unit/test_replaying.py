"""Today's code against recorded runs: what is followed, what is found, and that no body is executed for it."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import perdure
from perdure import journal as j
from perdure.errors import ConfigError, LimitReached, RunNotFound, RunSuspended
from perdure.fold import fold
from perdure.model import ErrorInfo, RunKey
from perdure.redaction import Redaction
from perdure.runners import (
    Agent,
    Crew,
    Edge,
    FlexibleGraph,
    Graph,
    Phase,
    Pipeline,
    PlanStep,
    Reply,
    ToolCall,
    Verdict,
    quorum,
    tool,
)
from perdure.runtime import rehearsal
from perdure.runtime.context import current
from perdure.runtime.manager import CheckpointManager
from perdure.runtime.revived import RecordedError, revive
from perdure.runtime.verdict import Told
from perdure.stores.base import Append
from perdure.stores.memory import MemoryBackend, MemoryStore
from perdure.testing import replay

KEY = RunKey("g")
BODIES: list[str] = []
"""bodies of steps that were executed"""


def _witness(event: str, args: tuple[Any, ...]) -> None:
    if event == "perdure.call" and not args[3].is_flow:
        BODIES.append(args[3].name)


sys.addaudithook(_witness)


def recorded(
    flow: Callable[..., Any], *args: Any, ends: type[BaseException] | None = None, **kwargs: Any
) -> MemoryStore:
    """A store with one run of a flow in it, which completed, or ended with that error."""
    backend = MemoryBackend()
    with CheckpointManager(MemoryStore(backend)) as manager, pytest.raises(ends) if ends else nullcontext():
        manager.run_sync(flow, *args, goal="g", **kwargs)
    forget()
    return MemoryStore(backend)


def forget() -> None:
    """What was executed until now, in threads that nobody waits for too."""
    settle()
    BODIES.clear()


def settle() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("perdure-branch"):
            thread.join(60)


def lines(store: MemoryStore) -> list[bytes]:
    return store.read(KEY)


def entries(store: MemoryStore) -> list[j.Entry]:
    return [j.decode(KEY, line, seq) for seq, line in enumerate(lines(store), 1)]


def until(store: MemoryStore, seq: int) -> MemoryStore:
    """The same store as it had been left by a process that died after that entry."""
    made = MemoryStore()
    made._backend.blobs.update(store._backend.blobs)
    records = tuple(lines(store)[:seq])
    [refused] = made.append([Append(made.claim(KEY), 0, records, fold(KEY, records).meta())])
    assert refused is None
    made.release(made._backend.runs[KEY].lease)  # type: ignore[arg-type]
    return made


def told(flow: Callable[..., Any], store: MemoryStore, config: perdure.CheckpointConfig | None = None) -> Told:
    """What is told of the run; no body was executed for it, and nothing was written."""
    before = lines(store), store.runs()
    [found] = replay(flow, store=store, runs=["g"], config=config)
    settle()
    assert BODIES == [] and (lines(store), store.runs()) == before
    return found


# -- shapes of flows: each follows its own record, from every point of it; a change is found -------------------------


@perdure.step
def load(path: str) -> str:
    return f"text of {path}"


@perdure.step(name="load")
async def load_async(path: str) -> str:
    return f"text of {path}"


@perdure.step
def count(texts: object) -> int:
    return len(str(texts))


@perdure.step(name="count")
async def count_async(texts: object) -> int:
    return len(str(texts))


class Case(NamedTuple):
    """A flow, and flows of the same name: changes of it, and what is found of each."""

    flow: Callable[..., Any]
    changes: Sequence[tuple[Callable[..., Any], str]]
    inputs: tuple[str, ...] = ("path",)


def named(fn: Callable[..., Any]) -> Callable[..., Any]:
    return perdure.flow(name="f")(fn)


def sequence() -> Case:
    def flow(path: str) -> int:
        return count(load(path)) + count(load(path))

    def other_input(path: str) -> int:
        return count(load(f"{path}!"))

    def once_more(path: str) -> int:
        return flow(path) + count("more")

    def less(path: str) -> int:
        return 2 * count(load(path))

    def other_result(path: str) -> int:
        return flow(path) + 1

    def raises(path: str) -> int:
        load(path)
        raise ValueError("spoilt")

    def asks(path: str) -> int:
        load(path)
        return len(perdure.ask("Really?"))

    return Case(
        named(flow),
        [
            (
                named(other_input),
                'load is asked for with inputs that no record has: path was "a", now "a!". Recorded step 1',
            ),
            (named(once_more), 'it asks for count("more"), which no record has'),
            (named(less), "recorded step 3 (load) is not asked for, and 1 more"),
            (named(other_result), "its result was 18, now 19"),
            (named(raises), "it raises ValueError: spoilt, and had completed"),
            (named(asks), "it asks for ask("),
            (named(lambda: 1), "it raises TypeError"),
        ],
    )


def sync_gather() -> Case:
    def flow(path: str) -> int:
        return count(perdure.gather(*(partial(load, f"{path}{n}") for n in range(3))))

    def one_more(path: str) -> int:
        return count(perdure.gather(*(partial(load, f"{path}{n}") for n in range(4))))

    def another(path: str) -> int:
        return count(perdure.gather(*(partial(load, f"{path}{n}") for n in (0, 1, 7))))

    return Case(
        named(flow),
        [
            (named(one_more), 'it asks for load("a3"), which no record has'),
            (named(another), 'path was "a2", now "a7"'),
        ],
    )


def async_gather() -> Case:
    async def both(path: str) -> int:
        return await count_async(await load_async(path))

    async def flow(path: str) -> list[int]:
        return await perdure.gather(both(path), both(path + "b"), both(path))

    async def fewer(path: str) -> list[int]:
        return await perdure.gather(both(path), both(path + "b"))

    async def other(path: str) -> list[int]:
        return await perdure.gather(both(path), both(path + "c"), both(path))

    return Case(
        named(flow), [(named(fewer), "(both-2/load) is not asked for"), (named(other), 'path was "ab", now "ac"')]
    )


def mapped() -> Case:
    async def flow(path: str) -> list[str]:
        return await perdure.map(load_async, [path, "b", "c"], limit=1)

    async def other(path: str) -> list[str]:
        return await perdure.map(load_async, [path, "b", "d"], limit=2)

    return Case(named(flow), [(named(other), 'path was "c", now "d"')])


def task_group() -> Case:
    async def flow(path: str) -> list[str]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(load_async(f"{path}{n}")) for n in range(3)]
        return [task.result() for task in tasks]

    async def other(path: str) -> list[str]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(load_async(f"{path}{n}")) for n in (0, 5, 2)]
        return [task.result() for task in tasks]

    return Case(named(flow), [(named(other), 'path was "a1", now "a5"')])


def children() -> Case:
    @perdure.flow
    def worker(path: str) -> int:
        return count(load(path))

    @perdure.flow(name="worker")
    def changed_inside(path: str) -> int:
        return count(load(path + "!"))

    @perdure.flow(name="worker")
    def another_result(path: str) -> int:
        return count(load(path)) + 1

    @perdure.flow(name="worker")
    def raising(path: str) -> int:
        raise KeyError(count(load(path)))

    def over(made: Any) -> Callable[..., Any]:
        @perdure.flow
        def middle(path: str) -> int:
            return int(sum(perdure.map(perdure.child(made), [path, "b"])))

        return named(lambda path: perdure.child(middle)(path) + perdure.child(made)("c"))

    return Case(
        over(worker),
        [
            (over(changed_inside), "/load is asked for with inputs that no record has: path was"),
            (over(another_result), "(middle-0/worker) returns another result: was 9, now 10"),
            (over(raising), "raises KeyError: 9, and had returned a result"),
        ],
    )


def nested() -> Case:
    @perdure.flow
    def inner(path: str) -> int:
        return count(load(path))

    @perdure.flow(name="inner")
    def other(path: str) -> int:
        return count(path)

    return Case(
        named(lambda path: inner(path) + inner(path)),
        [(named(lambda path: other(path) + other(path)), "inner-0/count is asked for with inputs that no record has")],
    )


@tool
def look(n: int) -> str:
    """Look."""
    return f"seen {n}"


def _model(messages: list[dict[str, str]], tools: object) -> Reply | str:
    said = sum(message["role"] == "assistant" for message in messages)
    return Reply("", (ToolCall("look", {"n": said}), ToolCall("look", {"n": 9}))) if said < 2 else "done"


async def _model_async(messages: list[dict[str, str]], tools: object) -> Reply | str:
    return _model(messages, tools)


@tool(name="look")
def look_longer(n: int, times: int = 2) -> str:
    """Look."""
    return f"seen {n}"


def agent() -> Case:
    def made(**options: Any) -> Agent:
        return Agent(_model, options.pop("tools", [look]), name="f", **options)

    return Case(
        made(instructions="Be kind."),
        [
            (
                made(instructions="Be harsh."),
                'message 1 (system) of its conversation was "Be kind.", now "Be harsh."',
            ),
            (made(instructions="Be kind.", tools=[look_longer]), "times was absent, now 2"),
            (made(instructions="Be kind.", tools=[]), "a recorded reply asks for what its tools do not take"),
            (made(instructions="Be kind.", max_iterations=2), "it raises perdure.errors.LimitReached"),
        ],
        ("task",),
    )


def agent_with_phases() -> Case:
    def made(prompt: str) -> Agent:
        return Agent(_model_async, [look], phases=[Phase("plan", "Plan."), Phase("write", prompt)], name="f")

    return Case(
        made("Write."),
        [(made("Write well."), 'message 10 (user) of its conversation was "Write.", now "Write well."')],
        ("task",),
    )


def graph() -> Case:
    def draft(topic: str) -> str:
        return f"draft on {topic}"

    def judge(draft: str) -> str:
        return "weak"

    def publish(draft: str) -> str:
        return f"published {draft}"

    def made(limit: int = 3, publish: Callable[..., str] = publish) -> Graph:
        return Graph(
            {"draft": draft, "look": load, "judge": judge, "publish": publish},
            [
                ("draft", "judge"),
                Edge("judge", "draft", when="weak", limit=limit),
                Edge("judge", "publish", otherwise=True),
            ],
            inputs=["topic", "path"],
            start=["draft", "look"],
            output="publish",
            name="f",
        )

    def publish_more(draft: str, look: str = "") -> str:
        return f"published {draft}"

    return Case(
        made(),
        [
            (made(limit=1), "recorded step 6 (draft) is not asked for, and 3 more"),
            (made(publish=publish_more), "publish is asked for with inputs that no record has: look was absent"),
        ],
        ("topic", "path"),
    )


def agents_in_a_graph() -> Case:
    def summary(helper: str, path: str) -> str:
        return f"{path}: {helper}"

    def made(instructions: str) -> Graph:
        helper = Agent(_model_async, [look], name="helper", instructions=instructions)
        boss = Agent(_model_of("helper", {"task": "help"}), [helper], name="boss")
        return Graph({"helper": boss, "summary": summary}, [("helper", "summary")], inputs=["task", "path"], name="f")

    return Case(
        made("Be kind."),
        [(made("Be harsh."), 'message 1 (system) of its conversation was "Be kind.", now "Be harsh."')],
        ("task", "path"),
    )


def _model_of(tool: str, arguments: dict[str, Any]) -> Callable[..., Any]:
    """A model that asks for one tool, once."""

    async def model(messages: list[dict[str, str]], tools: object) -> Reply | str:
        asked = any(message["role"] == "assistant" for message in messages)
        return "done" if asked else Reply("", (ToolCall(tool, arguments),))

    return model


def flexible() -> Case:
    def planner(topic: str, done: dict[str, str], feedback: str) -> list[PlanStep]:
        first = PlanStep("first", "write", {"about": topic})
        return [first, PlanStep("second", "write", {"about": f"more {topic} {len(feedback)}"}, after=("first",))]

    def write(about: str, feedback: str) -> str:
        return f"{about} {feedback}"

    def accept(output: str) -> bool:
        return True

    def judge(step: PlanStep, output: str, topic: str) -> Verdict:
        return Verdict("accept")

    def made(judge: Callable[..., Any]) -> FlexibleGraph:
        return FlexibleGraph(planner, {"write": write}, judge, inputs=["topic"], max_plans=2, name="f")

    changes = [(made(judge), "judge is asked for with inputs that no record has: step was absent")]
    return Case(made(accept), changes, ("topic",))


def crew() -> Case:
    def kind(text: str) -> str:
        return f"kind {text}"

    def broken(text: str) -> str:
        raise LookupError("nothing there")

    def gathered(reviews: dict[str, str], missing: dict[str, str]) -> str:
        return f"{sorted(reviews)} {missing}"

    def made(*experts: Callable[..., str]) -> Pipeline:
        return Pipeline([load, Crew(list(experts), gathered, require=quorum(1))], name="f")

    return Case(
        made(kind, broken),
        [(made(kind), "gathered is asked for with inputs that no record has: missing was")],
    )


def attempts() -> Case:
    @perdure.flow
    def think(topic: str) -> str:
        return load(topic)

    def judge(output: str) -> int:
        return len(output)

    def made(n: int, **options: Any) -> Any:
        return perdure.best_of(n, think, judge=judge, name="f", **options)

    return Case(made(2), [(made(3), "it asks for attempt("), (made(2, enough=1), "is not asked for")], ("topic",))


def waits() -> Case:
    def flow(path: str) -> str:
        perdure.sleep(0.001)
        return load(str(perdure.signal("go", deadline=0.001, default="gone")))

    def other(path: str) -> str:
        perdure.sleep(3600.0)
        return load("gone")

    return Case(named(flow), [(named(other), "sleep is asked for with inputs that no record has: seconds was 0.001")])


def caught() -> Case:
    @perdure.step
    def fails(what: str) -> str:
        raise KeyError(what)

    def flow(path: str) -> str:
        try:
            return fails(path)
        except KeyError as error:
            return load(str(error))

    def does_not_catch(path: str) -> str:
        try:
            return fails(path)
        except IndexError:
            return load(path)

    return Case(named(flow), [(named(does_not_catch), "it raises KeyError: 'a', and had completed")])


CASES = {
    made.__name__: made
    for made in (
        *(sequence, sync_gather, async_gather, mapped, task_group, children, nested),
        *(agent, agent_with_phases, agents_in_a_graph, graph, flexible, crew, attempts, waits, caught),
    )
}


def record(case: Case) -> MemoryStore:
    return recorded(case.flow, wait=True, **dict.fromkeys(case.inputs, "a"))


@pytest.mark.parametrize("name", CASES)
def test_todays_code_follows_its_own_record_and_executes_nothing(name: str) -> None:  # X11 C3
    case = CASES[name]()
    store = record(case)
    found = told(case.flow, store)
    assert (found.verdict, found.why, found.status, found.changed) == ("follows", "", "completed", ())
    assert found.goes_on == () and found.steps > 0 and "follows its records" in str(found) and found.ok


@pytest.mark.parametrize("name", CASES)
def test_a_change_that_leaves_the_record_is_found_where_it_does(name: str) -> None:  # X11 rel:R5
    case = CASES[name]()
    store = record(case)
    for changed, said in case.changes:
        found = told(changed, store)
        assert found.verdict == "diverges" and not found.ok and said in found.why, found


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_died_anywhere_can_be_followed_to_where_it_would_go_on(name: str) -> None:  # X11 R1
    case = CASES[name]()
    store = record(case)
    state = fold(KEY, lines(store))
    leaves = {step.number for step in state.steps.values() if step.identity not in state.scopes}
    last = max(entry.seq for entry in entries(store) if isinstance(entry, j.StepCompleted) and entry.step in leaves)
    for seq in range(1, len(lines(store))):
        found = told(case.flow, until(store, seq))
        assert found.verdict == "follows", (seq, found)
        assert found.goes_on or seq >= last, (seq, found)


# -- runs that failed, stopped or wait -------------------------------------------------------------------------------


@perdure.step
def fails(what: str) -> str:
    raise KeyError(what)


class Gone(Exception):
    """A type that no record can bring back."""


@perdure.step
def goes(what: str) -> str:
    raise Gone(what)


def flow_of(fn: Callable[..., Any]) -> Any:
    return perdure.flow(name="f")(fn)


def test_a_run_that_failed_fails_alike_or_goes_on(tmp_path: Path) -> None:
    store = recorded(flow_of(lambda: fails(load("a"))), ends=KeyError)
    assert told(flow_of(lambda: fails(load("a"))), store).verdict == "follows"

    def mended() -> str:
        try:
            return fails(load("a"))
        except KeyError:
            return load("another")

    found = told(flow_of(mended), store)
    assert found.verdict == "follows" and found.goes_on == ('load("another")',)
    worse = told(flow_of(lambda: fails(load("a")) + str(1 / 0) if load("a") == "x" else 1 / 0), store)
    assert worse.verdict == "diverges"
    assert "it raises ZeroDivisionError: division by zero, and had failed with KeyError: 'text of a'" in worse.why


def test_an_error_of_the_flows_own_is_the_recorded_one_if_it_says_the_same() -> None:
    def spoilt(text: str) -> Any:
        def f() -> None:
            load("a")
            raise Gone(text)

        return flow_of(f)

    store = recorded(spoilt("no"), ends=Gone)
    assert told(spoilt("no"), store).verdict == "follows"
    assert told(spoilt("yes"), store).verdict == "diverges"


def test_a_failed_step_of_a_run_that_has_not_ended_is_executed_again() -> None:
    store = recorded(flow_of(lambda: fails(load("a"))), ends=KeyError)
    [end] = [entry.seq for entry in entries(store) if isinstance(entry, j.RunFailed)]
    found = told(flow_of(lambda: fails(load("a"))), until(store, end - 1))
    assert (found.verdict, found.goes_on) == ("follows", ("fails again",))


def test_a_run_that_died_before_it_could_fail_fails_unless_that_is_new() -> None:
    def made(text: str) -> Any:
        @perdure.flow
        def worker() -> str:
            raise ValueError(load("a"))

        def f() -> str:
            return load(str(perdure.child(worker, on_error="return")()) + text)

        def spoilt() -> str:
            raise ValueError(f())

        return flow_of(spoilt)

    def failing() -> str:
        return load(str(perdure.child(perdure.flow(name="worker")(lambda: fails("x")), on_error="return")()))

    store = recorded(flow_of(failing))
    [failed] = [entry.seq for entry in entries(store) if isinstance(entry, j.StepFailed)]
    assert told(flow_of(failing), until(store, failed)).goes_on == ("worker again",)

    first = made("")
    store = recorded(first, ends=ValueError)
    for seq in range(1, len(lines(store))):
        assert told(first, until(store, seq)).verdict == "follows", seq
    last = until(store, len(lines(store)) - 1)
    assert told(first, last).goes_on == ()
    assert told(made("!"), last).verdict == "diverges"
    new = flow_of(lambda: str(perdure.child(perdure.flow(name="worker")(lambda: str(1 / 0)))()))
    assert "raises ZeroDivisionError" in told(new, until(store, 4)).why


def test_behind_an_error_that_cannot_be_raised_again_nobody_can_tell() -> None:
    def catching() -> str:
        try:
            return goes(load("a"))
        except Gone as error:
            return load(f"b {error}")

    store = recorded(flow_of(catching))
    found = told(flow_of(catching), store)
    assert found.verdict == "undecided" and found.ok
    assert "step 2 (goes) failed with" in found.why and "test_replaying.Gone, which cannot be raised again" in found.why
    before = flow_of(lambda: goes(load("other")))
    assert told(before, store).verdict == "diverges", "what is wrong before is known"


def test_what_was_found_before_an_error_that_cannot_be_raised_again_is_told() -> None:
    def made(result: str, text: str) -> Any:
        worker = perdure.flow(name="worker")(lambda: result)

        def catching() -> str:
            load(text)
            perdure.child(perdure.flow(name="worker")(lambda: load("in") and worker()))()
            try:
                return goes("a")
            except Gone:
                return load("b")

        return flow_of(catching)

    store = recorded(made("one", "x"))
    found = told(made("two", "x"), store)
    assert found.verdict == "diverges" and 'returns another result: was "one", now "two"' in found.why
    assert told(made("one", "y"), store).verdict == "diverges"


@pytest.mark.parametrize("kind", ["", "a\0b", "x.\ud800", "os.system", "a b.c d", "builtins.ValueError", "ValueError"])
def test_a_recorded_type_may_have_any_name_and_chooses_no_code(kind: str) -> None:  # rel:S1
    error = revive(ErrorInfo(kind, "said"))
    assert str(error) == "said" and isinstance(error, RecordedError) == (kind != "ValueError")
    with pytest.raises(type(error), match="said"):
        raise error


def test_an_error_that_cannot_be_raised_again_still_says_the_same() -> None:
    def catching() -> str:
        try:
            return goes(load("a"))
        except Exception as error:
            return load(f"{type(error).__name__}: {error}")

    store = recorded(flow_of(catching))
    assert told(flow_of(catching), store).verdict == "follows"


@pytest.mark.parametrize("on_crash", ["rerun", "verify", "ask", "fail"])
def test_a_step_in_doubt_is_where_the_run_goes_on(on_crash: Any) -> None:  # X9
    finds_out: Any = (lambda path: None) if on_crash == "verify" else None

    @perdure.step(on_crash=on_crash, verify=finds_out)
    def doubtful(path: str) -> str:
        raise KeyboardInterrupt

    flow = flow_of(lambda: doubtful(load("a")))
    store = recorded(flow, ends=KeyboardInterrupt)
    assert told(flow, store).goes_on == ("doubtful again",)
    found = told(flow_of(lambda: doubtful(load("b"))), store)
    assert found.verdict == "diverges" and 'path was "a", now "b"' in found.why


def test_open_questions_signals_and_timers_are_where_a_run_goes_on() -> None:  # W1
    async def waiting(path: str) -> list[Any]:
        return list(
            await perdure.gather(perdure.ask("Really?"), perdure.signal("go"), perdure.sleep(9999.0), load_async(path))
        )

    flow = flow_of(waiting)
    store = recorded(flow, "a", ends=RunSuspended)
    found = told(flow, store)
    assert (found.verdict, found.status) == ("follows", "pending_input")
    assert found.goes_on == ("ask", "signal:go", "sleep") and "would go on with ask, signal:go, sleep" in str(found)

    async def other(path: str) -> list[Any]:
        return list(await perdure.gather(perdure.ask("Really?"), perdure.signal("go"), load_async(path + "b")))

    assert 'path was "a", now "ab"' in told(flow_of(other), store).why


def test_a_run_that_is_paused_at_a_limit_is_paused_there_again() -> None:
    def made(limit: int, instructions: str = "") -> Agent:
        return Agent(_model, [look], name="f", max_iterations=limit, instructions=instructions)

    store = recorded(made(1), "go", ends=LimitReached)
    assert told(made(1), store).verdict == "follows"
    raised = told(made(5), store)
    assert (raised.verdict, raised.goes_on) == ("follows", ("model()",))
    assert told(made(1, "Be kind."), store).verdict == "diverges"


def test_a_run_that_was_cancelled_is_followed_to_where_it_was_given_up() -> None:
    @perdure.step
    def release() -> str:
        return "released"

    def waiting() -> str:
        return load(str(perdure.ask(load("a"))))

    flow = perdure.flow(name="f", on_cancel=lambda: release())(waiting)
    store = recorded(flow, ends=RunSuspended)
    with perdure.Client(MemoryStore(store._backend)) as client:
        client.cancel("g", by="ann")
    with CheckpointManager(MemoryStore(store._backend)) as manager, pytest.raises(perdure.PerdureError):
        manager.run_sync(flow, goal="g")
    forget()
    found = told(flow, store)
    assert (found.status, found.verdict, found.goes_on) == ("cancelled", "follows", ("ask",))


def test_a_step_that_was_cut_off_and_done_without_leaves_the_rest_undecided() -> None:
    @perdure.step
    async def slow() -> str:
        await asyncio.sleep(60)
        return "slow"

    async def impatient() -> str:
        try:
            async with asyncio.timeout(0.01):
                return await slow()
        except TimeoutError:
            return await load_async("a")

    store = recorded(flow_of(impatient))
    for seq in (len(lines(store)), len(lines(store)) - 1):
        found = told(flow_of(impatient), until(store, seq))
        assert found.verdict == "undecided" and "step 1 (slow) was cut off, and the run did without it" in found.why


# -- branches that nobody needs --------------------------------------------------------------------------------------


def test_losers_of_a_first_may_have_ended_and_are_not_missed() -> None:  # X10
    won = threading.Event()

    @perdure.step
    def winner() -> str:
        return "won"

    ended: list[threading.Event] = [threading.Event(), threading.Event()]

    @perdure.step
    def loser(place: int) -> str:
        won.wait(60)
        return "late"

    def both() -> str:
        loser(0)
        ended[0].set()
        return load("behind")

    def other_loser() -> str:
        load("before")
        try:
            return loser(1)
        finally:
            ended[1].set()

    @perdure.step
    def alone() -> str:
        assert ended[1].wait(60)
        return "alone"

    def race() -> str:
        taken = str(perdure.first(winner, both, other_loser, partial(alone)))
        won.set()
        assert all(event.wait(60) for event in ended)
        while not any(step.name == "alone" and step.recorded for step in current().run.state.steps.values()):  # type: ignore[union-attr]
            threading.Event().wait(0.001)
        return load(taken)

    store = recorded(flow_of(race))
    late = {step.path for step in fold(KEY, lines(store)).steps.values() if step.recorded}
    assert late >= {"winner-0/winner", "both-0/loser", "other_loser-0/loser", "alone"}

    def again() -> str:
        return load(str(perdure.first(winner, both, other_loser, partial(alone))))

    assert told(flow_of(again), store).verdict == "follows"

    def other() -> str:
        return load(str(perdure.first(both, partial(load, "x"))))

    assert told(flow_of(other), store).verdict == "diverges"


def test_a_branch_that_has_come_to_its_end_should_have_asked_for_what_it_did() -> None:
    def more(path: str) -> int:
        count(load(path))
        return 1

    def less(path: str) -> int:
        load(path)
        return 1

    def over(branch: Callable[[str], int]) -> Any:
        return flow_of(lambda: perdure.gather(*(partial(branch, path) for path in "ab")))

    store = recorded(over(more))
    assert told(over(more), store).verdict == "follows"
    found = told(over(less), store)  # whose scopes have another name
    assert found.verdict == "diverges"
    less.__name__ = "more"
    found = told(over(less), store)
    assert found.verdict == "diverges" and "(more-" in found.why and "/count) is not asked for, and 1 more" in found.why


def test_what_nobody_waits_for_may_ask_for_anything() -> None:
    def one(*paths: str) -> Any:
        def f() -> str:
            for text in perdure.as_completed(*(partial(load, path) for path in paths)):
                return str(text)
            return ""

        return flow_of(f)

    store = recorded(one("a"))
    assert told(one("a", "new"), store).verdict == "follows"
    assert told(one("new"), store).verdict == "diverges"


def test_an_order_that_was_broken_off_is_broken_off_again() -> None:
    async def first_two(paths: list[str]) -> list[str]:
        found = []
        async for text in perdure.as_completed(*(load_async(path) for path in paths)):
            found.append(text)
            if len(found) == 2:
                break
        return found

    def sync_first(paths: list[str]) -> str:
        for text in perdure.as_completed(*(partial(load, path) for path in paths)):
            return str(text)
        return ""

    for flow in (flow_of(first_two), flow_of(sync_first)):
        store = recorded(flow, ["a", "b", "c"])
        for _ in range(5):
            assert told(flow, store).verdict == "follows"


# -- edits in the middle of a run ------------------------------------------------------------------------------------


def run_on(store: MemoryStore, flow: Any, *args: Any, **options: Any) -> None:
    with CheckpointManager(MemoryStore(store._backend)) as manager:
        manager.run_sync(flow, *args, goal="g", **options)
    forget()


@pytest.mark.parametrize("again", ["load", "failed"])
def test_what_a_run_did_without_in_the_end_is_not_missed(again: str) -> None:
    first, second = flow_of(lambda: load("a") + load("b")), flow_of(lambda: load("a") + load("c"))
    store = recorded(first)
    run_on(store, second, rerun=again)  # "failed" has nothing executed again, and opens the run
    assert told(second, store).verdict == "follows"
    assert told(first, store).verdict == "diverges"


def test_what_came_of_a_result_that_was_made_again_otherwise_is_not_missed() -> None:
    says = ["one"]

    @perdure.step
    def say() -> str:
        return says[0]

    flow = flow_of(lambda: load(say()))
    store = recorded(flow)
    says[0] = "two"
    run_on(store, flow, rerun="say")
    assert [step.recorded for step in fold(KEY, lines(store)).steps.values()] == [True] * 3
    assert told(flow, store).verdict == "follows"


def test_results_older_than_a_change_in_the_middle_are_not_missed() -> None:
    stop = [True]

    @perdure.step
    def stopping(what: str) -> str:
        if stop[0]:
            raise KeyboardInterrupt
        return what

    def first(path: str) -> str:
        load("old")
        return stopping(load(path))

    def second(path: str) -> str:
        return stopping(load(path) + "!")

    store = recorded(flow_of(first), "a", ends=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        run_on(store, flow_of(second), "a")
    forget()
    found = told(flow_of(second), store)
    assert (found.verdict, found.goes_on) == ("follows", ("stopping again",))


def test_what_comes_behind_a_result_that_is_made_again_is_not_missed() -> None:
    stop = [False]

    @perdure.step
    def stopping(what: str) -> str:
        if stop[0]:
            raise KeyboardInterrupt
        return what

    flow = flow_of(lambda: load(stopping(load("a"))))
    store = recorded(flow)
    stop[0] = True
    with pytest.raises(KeyboardInterrupt):
        run_on(store, flow, rerun="stopping")
    forget()
    found = told(flow, store)
    assert (found.verdict, found.goes_on) == ("follows", ("stopping again",))


def test_code_that_has_changed_is_told_and_is_no_divergence() -> None:  # rel:R5
    def made(more: str) -> Any:
        @perdure.step(name="say")
        def say(path: str) -> str:
            return f"{path}{more}"

        @perdure.step(name="say")
        def say_loudly(path: str) -> str:
            return f"{path}{more}".upper()

        return flow_of(lambda: (say if not more else say_loudly)("a"))

    store = recorded(made(""))
    found = told(made("!"), store)
    assert (found.verdict, found.changed) == ("follows", ("say",))
    assert "code has changed since it was executed: say" in str(found)


# -- values ----------------------------------------------------------------------------------------------------------


def test_large_values_and_unknown_types_are_read_from_behind() -> None:
    @perdure.step
    def large(size: int) -> bytes:
        return b"x" * size

    flow = flow_of(lambda: len(large(200_000)))
    assert told(flow, recorded(flow)).verdict == "follows"


def test_secrets_and_hidden_values_need_what_they_were_recorded_with() -> None:  # rel:S8
    @perdure.step
    def call(key: perdure.Secret, mail: str) -> str:
        return f"mail of {mail}"

    @perdure.step
    def read(mail: str) -> str:
        return mail

    @perdure.flow(name="f")
    def flow(key: perdure.Secret) -> str:
        return call(key, read("canary-1"))

    config = perdure.CheckpointConfig(redact=Redaction(patterns=(r"canary-\d+",)))
    backend = MemoryBackend()
    with CheckpointManager(MemoryStore(backend), config) as manager:
        manager.run_sync(flow, perdure.Secret("much-secret", name="k"), goal="g")
    forget()
    store = MemoryStore(backend)
    assert told(flow, store, config).verdict == "follows"
    assert told(flow, store).verdict == "diverges", "without the rules inputs are others"

    @perdure.flow(name="f")
    def hiding(mail: str) -> str:
        return read(mail)

    with CheckpointManager(MemoryStore(backend), config) as manager:
        manager.run_sync(hiding, "canary-2", goal="h")
    [found] = replay(hiding, store=store, runs=["h"], config=config)
    assert found.verdict == "refused" and "rules of redaction hid some" in found.why and not found.ok


def test_a_transactional_step_is_not_executed(tmp_path: Path) -> None:  # X7
    @perdure.step(transaction=True)
    def insert(n: int) -> int:
        perdure.context().transaction.execute("insert into mine values (?)", (n,))
        return n

    @perdure.flow(name="f")
    def flow() -> int:
        return insert(1) + insert(2)

    url = f"sqlite:{tmp_path / 'runs.db'}"
    with CheckpointManager(url) as manager:
        manager._stored("make a table").call(
            lambda: manager._stored("x").store._db.execute("create table mine (n)")  # type: ignore[attr-defined]
        ).result()
        manager.run_sync(flow, goal="g")
    forget()
    [found] = replay(flow, store=url, runs=["g"])
    assert found.verdict == "follows" and BODIES == []


# -- which runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'runs.db'}" if request.param == "sqlite" else f"file:{tmp_path / 'runs'}"


def four(url: str) -> tuple[Any, Any]:
    """A store with a run that completed, one that waits, one that failed, and one of another flow."""
    flow = flow_of(lambda what: load(what) if what != "ask" else load(str(perdure.ask("Really?"))))
    other = perdure.flow(name="other")(lambda: load("x") + str(perdure.ask("Other?")))
    perdure.run(flow, "a", goal="done", store=url)
    for which, goal, args in ((flow, "waits", ("ask",)), (other, "other", ())):
        with pytest.raises(RunSuspended):
            perdure.run(which, *args, goal=goal, store=url)
    failing = flow_of(lambda what: fails(what))
    with pytest.raises(KeyError):
        perdure.run(failing, "b", goal="failed", store=url)
    return flow, other


def test_of_a_store_those_that_have_not_ended_are_replayed_unless_some_are_named(url: str) -> None:  # X11
    flow, other = four(url)
    assert [found.run for found in replay(flow, store=url)] == ["waits#0"]
    assert [found.run for found in replay(flow, other, store=url)] == ["other#0", "waits#0"]
    assert [found.run for found in replay(flow, store=url, runs=["done", "waits#0"])] == ["done#0", "waits#0"]
    with pytest.raises(RunNotFound):
        replay(flow, store=url, runs=["nobody"])
    with pytest.raises(ConfigError, match="is of the flow 'other', which is not among: f"):
        replay(flow, store=url, runs=["other"])
    with pytest.raises(ConfigError, match=r"There is no run of nothing to replay in .*There are runs of: f, other"):
        replay(perdure.flow(name="nothing")(lambda: 1), store=url)


def test_of_an_archive_all_are_replayed_and_no_store_is_needed(url: str, tmp_path: Path) -> None:
    flow, _ = four(url)
    archive = tmp_path / "recorded.perdure"
    with perdure.Client(url) as client:
        client.export(archive)
    found = {one.run: one.verdict for one in replay(flow, archive=archive)}
    assert found == {"done#0": "follows", "waits#0": "follows", "failed#0": "follows"}
    assert [one.run for one in replay(flow, archive=str(archive), unfinished=True)] == ["waits#0"]
    assert [one.run for one in replay(flow, archive=archive, runs=["done"])] == ["done#0"]
    with pytest.raises(ConfigError, match="from an archive or from a store, not both"):
        replay(flow, archive=archive, store=url)
    with pytest.raises(ConfigError, match="cannot be read"):
        replay(flow, archive=tmp_path / "nothing")


def test_a_run_that_was_marked_by_hand_cannot_be_replayed(url: str) -> None:
    with CheckpointManager(url) as manager, manager.begin(goal="g") as run, run.step("one") as step:
        step.complete("x")
    with pytest.raises(ConfigError, match=r"a run that was marked by hand \(manager.begin\) has none"):
        replay(flow_of(lambda: 1), store=url, runs=["g"])


def test_a_run_that_somebody_executes_is_replayed_beside_it(url: str) -> None:
    going, seen = threading.Event(), threading.Event()

    @perdure.step
    def long() -> str:
        going.set()
        assert seen.wait(60)
        return "long"

    flow = flow_of(lambda: long() + load("a"))
    thread = threading.Thread(target=lambda: perdure.run(flow, goal="g", store=url))
    thread.start()
    assert going.wait(60)
    [found] = replay(flow, store=url)
    seen.set()
    thread.join()
    assert (found.status, found.goes_on) == ("running", ("long again",))
    with perdure.Client(url) as client:
        assert client.find("g").status == "completed" and client.state("g").lives == 1


def test_a_test_in_an_event_loop_can_replay_too(url: str) -> None:
    async def both() -> str:
        return await load_async("a")

    flow = flow_of(both)
    perdure.run(flow, goal="g", store=url)

    async def test() -> list[Told]:
        return replay(flow, store=url, runs=["g"])

    assert [found.verdict for found in asyncio.run(test())] == ["follows"]


def test_what_waits_for_the_work_of_a_body_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    did = threading.Event()

    @perdure.step
    def body() -> str:
        did.set()
        return "x"

    def f() -> str:
        text = body()
        assert did.wait(60)  # which is not durable: no later life would come behind it
        return load(text)

    store = recorded(flow_of(f))
    did.clear()
    monkeypatch.setattr(rehearsal, "_PATIENCE", 0.05)
    found = told(flow_of(f), store)
    did.set()
    assert found.verdict == "undecided" and "it does not come to an end" in found.why


def test_steps_inside_of_what_is_not_executed_are_not_missed() -> None:
    @perdure.step
    def outer(path: str) -> str:
        return load(load(path))

    told_of: list[Any] = []

    def asks(path: str) -> str:
        return outer(path) + str(perdure.ask("Really?"))

    backend = MemoryBackend()
    config = perdure.CheckpointConfig(on_question=(told_of.append,))
    with CheckpointManager(MemoryStore(backend), config) as manager:
        with pytest.raises(RunSuspended):
            manager.run_sync(flow_of(asks), "a", goal="g")
        store = MemoryStore(backend)
        forget()
        assert told(flow_of(asks), store, config).verdict == "follows"
        with perdure.Client(MemoryStore(backend)) as client:
            client.answer("g", None, "yes", by="ann")
        manager.run_sync(flow_of(asks), "a", goal="g")
    forget()
    assert {step.path for step in fold(KEY, lines(store)).steps.values()} >= {"outer-0/load", "ask-0/notify-0"}
    assert told(flow_of(asks), store, config).verdict == "follows" and len(told_of) == 1


def test_an_approved_call_of_a_tool_is_followed() -> None:
    @tool(needs_approval=True)
    def look(n: int) -> str:
        """Look."""
        return f"seen {n}"

    def made(instructions: str) -> Agent:
        return Agent(_model_of("look", {"n": 1}), [look], name="f", instructions=instructions)

    store = recorded(made("Be kind."), "go", ends=RunSuspended)
    assert told(made("Be kind."), store).goes_on == ("approve-0/approve:look",)
    with perdure.Client(MemoryStore(store._backend)) as client:
        client.answer("g", None, True, by="ann")
    run_on(store, made("Be kind."), "go")
    assert told(made("Be kind."), store).verdict == "follows"
    assert told(made("Be harsh."), store).verdict == "diverges"


def test_forks_are_replayed_by_what_they_were_made_with(tmp_path: Path) -> None:  # X2
    url = f"sqlite:{tmp_path}/runs.db"

    @perdure.step
    def draft(topic: str) -> str:
        return f"on {topic}"

    @perdure.step
    def send(text: str, key: perdure.Secret) -> str:
        return f"{text}, sent"

    @perdure.flow(name="article")
    def article(topic: str, key: perdure.Secret) -> str:
        return send(draft(topic), key)

    @perdure.flow(name="article")
    def other(topic: str, key: perdure.Secret) -> str:
        return send(topic, key)

    key = perdure.Secret("a long value", name="models")
    config = perdure.CheckpointConfig(secrets={"models": "a long value"}.get)
    perdure.run(article, "tides", key, goal="g", store=url, config=config)
    with perdure.Client(url) as client:
        client.fork("g#0", by="ann")
        client.fork("g#0", by="ann", inputs={"topic": "winds"})
        client.fork("g#0", by="ann", outputs={"draft": "another draft"})
    told = replay(article, store=url, config=config)
    assert [(one.run, one.verdict) for one in told] == [(f"g#{n}", "follows") for n in (1, 2, 3)]
    assert [one.goes_on for one in told[:2]] == [(), ('draft("winds")',)]
    assert told[2].goes_on[0].startswith('send("another draft"')
    assert [one.verdict for one in replay(other, store=url, config=config)] == ["diverges", "follows", "diverges"]


def test_unchanged_code_that_looks_closely_at_an_error_does_not_diverge() -> None:
    @perdure.step
    def opens() -> str:
        raise FileNotFoundError(2, "not there", "a.txt")

    @perdure.step
    def refused() -> str:
        return ""

    @perdure.step
    def value() -> str:
        raise ValueError(
            "no",
        )

    @perdure.step
    def note(text: str) -> str:
        return text

    def f() -> str:
        told = ""
        for step in (value, opens, refused):
            try:
                step()
            except (ValueError, OSError, perdure.PerdureError) as error:
                told += f"{error.args} {getattr(error, 'errno', 0)} {getattr(error, '__notes__', [])} {error};"
        return note(told)

    assert told(flow_of(f), recorded(flow_of(f))).verdict in ("follows", "undecided")
