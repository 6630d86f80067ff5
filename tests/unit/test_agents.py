"""Agents: what is asked once, what is told to the model, what is refused, and what stays readable."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pydantic
import pytest

import perdure
from perdure import journal as j
from perdure.errors import CodecError, ConfigError, LimitReached, OutputRefused, RunNotFound
from perdure.model import Usage
from perdure.runners import Agent, File, Phase, Reply, ToolCall, tool
from perdure.runners.transcript import transcript

RAN: list[str] = []


@pytest.fixture(autouse=True)
def _forget() -> None:
    RAN.clear()


class Script:
    """A model that says one thing after the other, by how often the conversation has heard it; counts its calls."""

    def __init__(self, *replies: Any) -> None:
        self.replies = replies
        self.shown: list[list[Any]] = []

    def __call__(self, messages: list[Any], tools: Sequence[Any]) -> Any:
        self.shown.append(list(messages))
        said = self.replies[sum(message["role"] == "assistant" for message in messages)]
        if isinstance(said, Exception):
            raise said
        return said(messages) if callable(said) else said


def call(name: str, **arguments: Any) -> ToolCall:
    return ToolCall(name, arguments)


def run(agent: Agent, store: Any, task: str = "go", **options: Any) -> Any:
    return perdure.run(agent, task, goal="g", store=store, **options)


@tool
def double(n: int) -> int:
    """Twice a number."""
    RAN.append(f"double {n}")
    return 2 * n


def test_an_agent_asks_does_what_it_is_told_and_answers_with_and_without_a_store() -> None:  # G1
    model = Script(Reply("", (call("double", n=2),)), lambda messages: f"it is {messages[-1]['content']}")
    agent = Agent(model, [double], instructions="Count.")
    assert agent("go") == run(agent, "memory:") == "it is 4"
    assert [message["role"] for message in model.shown[-1]] == ["system", "user", "assistant", "tool"]
    assert double.schema["function"] == {
        "name": "double",
        "description": "Twice a number.",
        "parameters": {
            "type": "object",
            "properties": {"n": {"type": "integer"}},
            "required": ["n"],
            "additionalProperties": False,
        },
    }


def test_after_a_failure_no_model_call_is_repeated_and_no_message_doubled(tmp_path: Path) -> None:  # W4
    url = f"file:{tmp_path}"
    broken = [True]

    def fragile(n: int) -> str:
        if n == 2 and broken:
            raise ValueError("broken")
        return f"result {n}"

    model = Script(*(Reply("", (call("fragile", n=n),)) for n in range(4)), "done")
    agent = Agent(model, [fragile], retries=0)
    with pytest.raises(ValueError, match="broken") as error:
        run(agent, url)
    assert error.value.__notes__ == ["run g#0, step 6 (fragile)"]
    assert len(model.shown) == 3
    broken.clear()
    assert run(agent, url) == "done" and len(model.shown) == 5
    with perdure.Client(url) as client:
        lines = transcript(client, "g")
        state = client.state("g")
    assert [line.role for line in lines] == ["user", *("assistant", "tool") * 4, "assistant"]
    assert [line.content for line in lines if line.role == "tool"] == [f"result {n}" for n in range(4)]
    assert state.usage == Usage(calls=5) and state.paid == Usage(calls=2) and state.saved_usage == Usage(calls=3)


def test_calls_of_one_reply_run_side_by_side_and_stand_in_their_order() -> None:
    async def main() -> None:
        met = asyncio.Barrier(2)

        async def meet(who: str) -> str:
            await met.wait()
            return who

        model = Script(
            Reply("", (call("meet", who="b"), call("meet", who="a"))), lambda m: f"{[x['content'] for x in m]}"
        )
        with perdure.CheckpointManager("memory:") as manager:
            answer = await manager.run(Agent(model, [meet]), "go", goal="g")
        assert answer == "['go', '', 'b', 'a']"

    asyncio.run(main())


# -- tools -------------------------------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.5


class Order(pydantic.BaseModel):
    item: str
    count: int = 1


@tool
def typed(colour: Colour, at: Point, order: Order, tags: list[str] | None = None, far: float = 1.5) -> str:
    assert isinstance(colour, Colour) and isinstance(at, Point) and isinstance(order, Order)
    return f"{colour.name} {at.x} {at.y} {order.count} {tags} {far}"


def test_arguments_come_as_the_declared_types_and_are_described_to_the_model() -> None:
    given = {"colour": "red", "at": {"x": 3}, "order": {"item": "pen", "count": 2}}
    model = Script(Reply("", (ToolCall("typed", given),)), lambda messages: messages[-1]["content"])
    assert run(Agent(model, [typed]), "memory:") == "RED 3 0.5 2 None 1.5"
    parameters = typed.schema["function"]["parameters"]
    assert parameters["required"] == ["colour", "at", "order"]
    assert parameters["properties"]["far"] == {"type": "number", "default": 1.5}
    json.dumps(parameters)


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (Reply("", (call("fly"),)), "there is no tool 'fly'; there are double"),
        (Reply("", (call("double", n="two"),)), "the arguments of double do not fit: Expected `int`"),
        (Reply("", (call("double"),)), "missing required field `n`"),
        (Reply("", (call("double", n=1, m=2),)), "unknown field `m`"),
        ({"tool_calls": "double"}, "is no assistant message"),
        ({"content": "", "tool_calls": [{"name": "double"}]}, "has a tool call that is none"),
        ({"tool_calls": [{"function": {"name": "double", "arguments": "{n: 2"}}]}, "arguments that are no JSON"),
        ({"tool_calls": [{"function": {"name": "double", "arguments": "[2]"}}]}, "arguments without names"),
        (Reply("", ({"name": "double"},)), "has a tool call that is none"),  # type: ignore[arg-type]
        ("", "the model's reply is empty"),
        ({"content": None}, "the model's reply is empty"),
        (7, "which is no Reply, no text and no message"),
        (Reply(None), "is not made of text and tool calls"),  # type: ignore[arg-type]
    ],
)
def test_a_reply_that_cannot_be_followed_is_refused_told_to_the_model_and_no_part_of_the_conversation(
    tmp_path: Path, reply: Any, told: str
) -> None:  # C6
    url = f"file:{tmp_path}"
    with pytest.raises(OutputRefused) as error:
        run(Agent(Script(reply), [double], retries=1, backoff=0), url)
    assert told in str(error.value) and "run g#0, step 1 (model)" in str(error.value)
    better = Script("fine")
    assert run(Agent(better, [double]), url) == "fine"
    assert told in better.shown[0][-1]["content"]
    with perdure.Client(url) as client:
        assert [line.content for line in transcript(client, "g")] == ["go", "fine"]
        assert [a.outcome for a in client.state("g").steps[1].attempts] == ["refused", "refused", "completed"]


def test_a_model_that_raises_fails_the_run_with_its_own_error_named_and_goes_on_when_it_is_mended(
    tmp_path: Path,
) -> None:
    url = f"file:{tmp_path}"
    agent = Agent(Script(Reply("", (call("double", n=1),)), RuntimeError("no power")), [double], retries=1, backoff=0)
    with pytest.raises(RuntimeError, match="no power") as error:
        run(agent, url)
    assert error.value.__notes__ == ["run g#0, step 3 (model)"]
    assert run(Agent(Script("unused", "better"), [double]), url) == "better" and RAN == ["double 1"]


def test_a_tool_that_returns_an_open_file_is_an_error_that_names_run_step_path_and_type(tmp_path: Path) -> None:  # W5
    url, bad = f"file:{tmp_path / 'store'}", [True]

    def read() -> Any:
        with open(__file__) as file:
            return {"file": file} if bad else "text"

    agent = Agent(Script(Reply("", (call("read"),)), "done"), [read])
    with pytest.raises(CodecError) as error:
        run(agent, url)
    assert "read()['file']: _io.TextIOWrapper cannot be stored" in str(error.value)
    assert "run g#0, step 2 (read)" in str(error.value)
    bad.clear()
    assert run(agent, url) == "done"


def test_a_cached_tool_is_executed_once_for_equal_arguments_also_over_a_crash(tmp_path: Path) -> None:  # W5
    @tool(cache=True)
    def slow(what: str) -> str:
        RAN.append(what)
        return what.upper()

    calls = [Reply("", (call("slow", what=what),)) for what in ("a", "b", "a", "a")]
    url = f"file:{tmp_path}"
    with pytest.raises(RuntimeError):
        run(Agent(Script(*calls[:3], RuntimeError("stop")), [slow], retries=0), url)
    assert run(Agent(Script(*calls, lambda m: m[-1]["content"]), [slow]), url) == "A"
    assert RAN == ["a", "b"]
    with perdure.Client(url) as client:
        outcomes = [s.attempts[-1].outcome for s in client.state("g").steps.values() if s.name == "slow"]
    assert outcomes == ["completed", "completed", "copied", "copied"]


def test_a_cached_result_that_is_too_old_is_not_used() -> None:  # W5
    class Clock(perdure.clock.Clock):  # type: ignore[name-defined]
        late = 0.0

        def now(self) -> float:
            return super().now() + self.late

    clock = Clock()

    @tool(cache=True, ttl=60)
    def slow() -> str:
        RAN.append("slow")
        return "x"

    def later(messages: list[Any]) -> Reply:
        clock.late += 25
        return Reply("", (call("slow"),))

    with perdure.CheckpointManager("memory:", clock=clock) as manager:
        manager.run_sync(Agent(Script(*[later] * 5, "done"), [slow]), "go", goal="g")
    assert len(RAN) == 2  # of those asked for at 0, 25, 50, 75 and 100 seconds the first and the fourth


def test_a_tool_with_a_side_effect_gets_its_idempotency_key_in_every_attempt(tmp_path: Path) -> None:  # X7
    @tool(side_effect=True, retries=1, backoff=0)
    def pay(amount: int, idempotency_key: str) -> str:
        RAN.append(idempotency_key)
        assert perdure.context().idempotency_key == idempotency_key
        if len(RAN) == 1:
            raise OSError("cut off")
        return "paid"

    assert "idempotency_key" not in pay.schema["function"]["parameters"]["properties"]
    replies = [Reply("", (call("pay", amount=1), call("pay", amount=1))), "done"]
    assert run(Agent(Script(*replies), [pay]), f"file:{tmp_path}") == "done"
    assert len(RAN) == 3 and len(set(RAN)) == 2


def test_a_tool_in_doubt_is_verified_before_it_is_executed_again(tmp_path: Path) -> None:  # X9
    url = f"file:{tmp_path}"

    def paid_already(amount: int) -> str:
        RAN.append(f"verify {amount}")
        return "paid before"

    @tool(side_effect=True, on_crash="verify", verify=paid_already)
    def pay(amount: int, idempotency_key: str) -> str:
        RAN.append("pay")
        raise KeyboardInterrupt

    agent = Agent(Script(Reply("", (call("pay", amount=3),)), lambda messages: messages[-1]["content"]), [pay])
    with pytest.raises(KeyboardInterrupt):
        run(agent, url)
    assert run(agent, url) == "paid before" and RAN == ["pay", "verify 3"]


def test_a_failure_that_is_told_is_recorded_like_a_result(tmp_path: Path) -> None:
    url = f"file:{tmp_path}"

    @tool(on_error="tell", retries=1, backoff=0)
    def find(what: str) -> str:
        RAN.append(what)
        raise LookupError(f"no {what}")

    def answer(messages: list[Any]) -> str:
        if len(RAN) == 2:
            raise RuntimeError("stop")
        return str(messages[-1]["content"])

    agent = Agent(Script(Reply("", (call("find", what="cat"),)), answer), [find], retries=0)
    with pytest.raises(RuntimeError):
        run(agent, url)
    RAN.append("another life")
    assert run(agent, url) == "Error: LookupError: no cat" and RAN == ["cat", "cat", "another life"]


def test_a_tool_that_takes_too_long_is_told_too_if_that_is_declared() -> None:
    @tool(on_error="tell", timeout=0.05)
    async def slow() -> str:
        await asyncio.Event().wait()
        return "never"

    model = Script(Reply("", (call("slow"),)), lambda messages: messages[-1]["content"])
    for store in ("memory:", None):
        agent = Agent(model, [slow])
        answer = run(agent, store) if store else asyncio.run(agent("go"))
        assert answer.startswith("Error: StepTimeout: step slow: the attempt took longer than its timeout of 0.05 s")


def test_files_that_tools_make_are_kept_whole_and_the_model_hears_of_them(tmp_path: Path) -> None:  # W6
    content = bytes(range(256)) * 100
    made = [File("a.bin", content), File("b.csv", b"1,2\n", "text/csv")]
    model = Script(Reply("", (call("make"),)), lambda messages: messages[-1]["content"])
    agent = Agent(model, [tool(name="make")(lambda: {"files": made})])
    told = run(agent, f"sqlite:{tmp_path / 'runs.db'}")
    assert "a.bin" in told and "25,600 bytes" in told and "text/csv" in told and len(told) < 200
    with perdure.Client(f"sqlite:{tmp_path / 'runs.db'}") as client:
        output = client.step("g", "make").output
        assert output is not None and client.value(output) == {"files": made}


def test_a_file_that_a_step_returns_has_a_file_of_its_own_kind_among_the_outputs(tmp_path: Path) -> None:  # C4 W6
    @perdure.step
    def table() -> File:
        return File("sums.csv", b"1,2\n", "text/csv")

    perdure.run(perdure.flow(name="f")(lambda: table()), goal="g", store=f"file:{tmp_path}")
    with perdure.Client(f"file:{tmp_path}") as client:
        found = client.output_file(client.state("g"), client.step("g", "table"))
    assert found is not None and found.name == "01-table.csv" and found.read_bytes() == b"1,2\n"


def test_long_instructions_and_tasks_stand_in_the_transcript(tmp_path: Path) -> None:  # B7
    """Texts that are too long for the journal stand beside it, those of messages that no step made too."""
    url, long = f"sqlite:{tmp_path}/runs.db", "x" * 9000
    agent = Agent(Script("Done."), instructions=f"You are {long}.")
    assert perdure.run(agent, f"Read {long}.", goal="g", store=url) == "Done."
    with perdure.Client(url) as client:
        said = {line.content for line in transcript(client, "g")}
    assert {f"You are {long}.", f"Read {long}.", "Done."} <= said


@pytest.mark.parametrize("name", ["../a", "a/b", ".hidden", "", "a\x00"])
def test_a_files_name_is_no_path(name: str) -> None:
    with pytest.raises(ConfigError):
        File(name, b"")


@pytest.mark.parametrize(
    ("declare", "told"),
    [
        (lambda: tool(cache=True, side_effect=True)(double.step.fn), "exclude each other"),
        (lambda: tool(ttl=3)(double.step.fn), "ttl=3 must be"),
        (lambda: tool(on_error="ignore")(double.step.fn), "on_error must be"),  # type: ignore[call-overload]
        (lambda: tool(lambda *what: ""), "a model gives arguments by name"),
        (lambda: Agent(Script(), [double, double.step.fn]), "two tools are called 'double'"),
        (lambda: Agent(Script(), ["double"]), "A tool must be a function"),
        (lambda: Agent(Script(), on_overflow="cut"), "on_overflow must be"),  # type: ignore[arg-type]
        (lambda: Agent(Script(), compact=str), "compact= is for on_overflow='compact'"),
        (lambda: Agent(Script(), max_iterations=0), "max_iterations must be"),
        (lambda: run(Agent(Script("a")), "memory:", task=7), "agent agent takes a text, not int"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_declaration_is_refused(declare: Callable[[], Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        declare()


# -- phases, limits, nesting -------------------------------------------------------------------------------------------


def test_phases_of_one_name_both_run_and_each_finds_its_own_records(tmp_path: Path) -> None:  # B5
    url = f"file:{tmp_path}"
    agent = lambda *replies: Agent(  # noqa: E731
        Script(*replies), [double], phases=[Phase("work", "One."), Phase("work", "Two.")], retries=0
    )
    first = Reply("", (call("double", n=1),))
    with pytest.raises(RuntimeError):
        run(agent(first, "first", first, RuntimeError("stop")), url)
    assert run(agent("x", "x", "x", "second"), url) == "second" and RAN == ["double 1", "double 1"]
    with perdure.Client(url) as client:
        assert [line.content for line in transcript(client, "g")] == [
            *("go", "One.", "", "2", "first", "Two.", "", "2", "second")
        ]
        steps = client.state("g").steps.values()
    assert [s.path for s in steps if s.name == "double"] == ["work-0/double", "work-1/double"]


def test_a_persistent_error_while_the_agent_is_built_marks_the_run_failed(tmp_path: Path) -> None:  # B3
    url, built = f"file:{tmp_path}", [False]

    @perdure.flow
    def support(task: str) -> str:
        tools = [double] if built[0] else [double, double.step.fn]
        return str(Agent(Script("fine"), tools)(task))

    for _ in range(2):
        with pytest.raises(ConfigError, match="two tools"):
            perdure.run(support, "t", goal="g", store=url)
        with perdure.Client(url) as client:
            assert client.find("g").status == "failed" and client.interrupted() == []
    built[0] = True
    assert perdure.run(support, "t", goal="g", store=url) == "fine"


def test_an_agent_that_never_ends_is_paused_and_goes_on_with_more_iterations(tmp_path: Path) -> None:  # X6
    url = f"file:{tmp_path}"
    model = Script(*[Reply("", (call("double", n=1),))] * 5, "done")
    with pytest.raises(
        LimitReached, match=r"run g#0, scope 'top': agent agent: it has replied 3 times and is not done"
    ):
        run(Agent(model, [double], max_iterations=3), url)
    with perdure.Client(url) as client:
        assert client.find("g").status == "paused"
    assert run(Agent(model, [double], max_iterations=9), url) == "done" and len(model.shown) == 6


def test_a_conversation_over_its_limit_pauses_the_run_and_nothing_is_cut(tmp_path: Path) -> None:  # B7
    url = f"file:{tmp_path}"
    model = Script(Reply("x" * 90, (call("double", n=1),)), "done")
    with pytest.raises(LimitReached, match=r"has 100 characters, and the limit is 80\. Nothing was cut"):
        run(Agent(model, [double], transcript_limit=80), url)
    assert run(Agent(model, [double], transcript_limit=800), url) == "done" and RAN == ["double 1"]


def test_compaction_is_a_step_of_its_own_and_the_whole_transcript_stays_readable(tmp_path: Path) -> None:  # B7
    url = f"file:{tmp_path}"

    def compact(messages: Sequence[Any]) -> str:
        RAN.append("compact")
        return f"{len(messages)} messages"

    shown: list[list[str]] = []

    def model(messages: list[Any], tools: Any) -> Any:
        shown.append([message["content"] for message in messages])
        if len(shown) == 1:
            return Reply("x" * 90, (call("double", n=1),))
        if len(shown) == 2:
            raise RuntimeError("stop")
        return "done"

    agent = Agent(
        model, [double], instructions="Be good.", transcript_limit=80, on_overflow="compact", compact=compact, retries=0
    )
    with pytest.raises(RuntimeError):
        run(agent, url)
    assert run(agent, url) == "done" and RAN == ["double 1", "compact"]
    assert shown[-1] == ["Be good.", "go", "Summary of the conversation so far:\n\n4 messages"]
    with perdure.Client(url) as client:
        lines = transcript(client, "g")
    assert [(line.role, line.covers) for line in lines] == [
        *(("system", 0), ("user", 0), ("assistant", 0), ("tool", 0), ("user", 2), ("assistant", 0))
    ]
    assert lines[4].content == "4 messages"


@pytest.mark.parametrize(("first", "then"), [(80, 8000), (8000, 80), (80, None)])
def test_another_limit_changes_nothing_that_was_said_already(
    tmp_path: Path, first: int, then: int | None
) -> None:  # W4
    url, asked = f"file:{tmp_path}", []

    def agent(limit: int | None, broken: bool) -> Agent:
        def model(messages: list[Any], tools: Any) -> Any:
            asked.append(len(messages))
            if len(asked) == 1:
                return Reply("x" * 90, (call("double", n=1),))
            if broken and len(asked) == 4:
                raise RuntimeError("stop")
            return Reply("y", (call("double", n=len(asked)),)) if len(asked) < 4 else "done"

        overflow: Any = "compact" if limit else "error"
        return Agent(model, [double], transcript_limit=limit, on_overflow=overflow, retries=0, backoff=0)

    with pytest.raises(RuntimeError):
        run(agent(first, broken=True), url)
    before = len(asked)
    assert run(agent(then, broken=False), url) == "done" and len(asked) == before + 1 + (then == 80), (
        "and perhaps a summary"
    )


def test_the_model_itself_makes_the_summary_if_nothing_else_is_given() -> None:
    model = Script(
        Reply("x" * 90, (call("double", n=1),)), lambda m: "short" if "Summarise" in m[-1]["content"] else "done"
    )

    def answer(messages: list[Any], tools: Any) -> Any:
        return "done" if "short" in messages[-1]["content"] else model(messages, tools)

    assert run(Agent(answer, [double], transcript_limit=80, on_overflow="compact"), "memory:") == "done"


def test_an_agent_is_a_tool_of_another_and_keeps_its_own_transcript(tmp_path: Path) -> None:  # K1 K3
    url = f"file:{tmp_path}"
    helper = Agent(Script(Reply("", (call("double", n=4),)), "eight"), [double], name="helper", description="Counts.")
    chief = Agent(Script(Reply("", (call("helper", task="count"),)), lambda m: f"so {m[-1]['content']}"), [helper])
    assert run(chief, url) == "so eight"
    assert tool(helper).schema["function"]["parameters"]["properties"] == {"task": {"type": "string"}}
    assert tool(helper).schema["function"]["description"] == "Counts."
    with perdure.Client(url) as client:
        assert [line.role for line in transcript(client, "g", "helper-0")] == ["user", "assistant", "tool", "assistant"]
        assert len(transcript(client, "g")) == 8
        with pytest.raises(RunNotFound, match="There are agents in: '', 'helper-0'"):
            transcript(client, "g", "nobody")


def test_a_model_and_tools_of_both_colours_go_together() -> None:
    async def model(messages: list[Any], tools: Any) -> Any:
        return "done" if len(messages) > 1 else Reply("", (call("double", n=1), call("triple", n=1)))

    async def triple(n: int) -> int:
        return 3 * n

    assert run(Agent(model, [double, triple]), "memory:") == "done"
    assert run(Agent(Script(Reply("", (call("triple", n=1),)), "done"), [double, triple]), "memory:") == "done"


def test_a_recorded_reply_that_asks_for_a_tool_that_is_gone_says_so(tmp_path: Path) -> None:
    url = f"file:{tmp_path}"

    def fails(n: int) -> str:
        raise ValueError("broken")

    reply = Reply("", (call("fails", n=1),))
    with pytest.raises(ValueError, match="broken"):
        run(Agent(Script(reply), [fails]), url)
    with pytest.raises(ConfigError, match="a recorded reply asks for what its tools do not take: 'fails'"):
        run(Agent(Script(reply), [double]), url)
    assert run(Agent(Script("better"), [double]), url, rerun="model") == "better"


def test_with_other_instructions_the_model_is_asked_again_and_with_the_same_it_is_not(tmp_path: Path) -> None:  # X1
    url = f"file:{tmp_path}"
    first = Script(Reply("", (call("double", n=1),)), RuntimeError("stop"))
    with pytest.raises(RuntimeError):
        run(Agent(first, [double], instructions="Be good.", retries=0), url)
    second = Script(Reply("", (call("double", n=1),)), "better")
    assert run(Agent(second, [double], instructions="Be better."), url) == "better"
    assert [len(shown) for shown in second.shown] == [2, 4] and RAN == ["double 1"], "the tool's inputs are the same"


def test_the_code_of_a_model_step_is_the_models(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:  # X1
    url = f"file:{tmp_path}"

    def one(messages: list[Any], tools: Any) -> Any:
        if len(messages) > 1:
            raise RuntimeError("stop")
        return Reply("", (call("double", n=1),))

    def other(messages: list[Any], tools: Any) -> Any:
        return "done" if len(messages) > 1 else Reply("", (call("double", n=1),))

    with pytest.raises(RuntimeError):
        run(Agent(one, [double], retries=0), url)
    with pytest.raises(RuntimeError):
        run(Agent(one, [double], retries=0), url)
    assert "code has changed" not in caplog.text
    assert run(Agent(other, [double]), url) == "done"
    assert "step 1 (model): its code has changed since it was executed; its result is reused" in caplog.text


def test_a_conversation_is_journaled_once_however_often_it_is_resumed(tmp_path: Path) -> None:  # B7
    url = f"file:{tmp_path}"
    replies = [Reply("", (call("double", n=n),)) for n in range(4)]
    for _ in range(5):
        with pytest.raises(RuntimeError):
            run(Agent(Script(*replies, RuntimeError("stop")), [double], instructions="Be good.", retries=0), url)
    with perdure.Client(url) as client:
        told = [entry for entry in client.entries("g") if isinstance(entry, j.MessagesAdded)]
        assert sum(len(entry.messages) for entry in told) == len(transcript(client, "g")) == 9


@pytest.mark.parametrize("url", ["sqlite:{}/runs.db", "file:{}/store"])
def test_a_long_conversation_costs_what_was_said_and_twice_as_much_when_it_is_twice_as_long(
    tmp_path: Path, url: str
) -> None:  # B7
    def look(n: int) -> str:
        return f"{n:05d}".ljust(2048, "t")

    def size_of(iterations: int) -> tuple[int, int]:
        def model(messages: list[Any], tools: Any) -> Any:
            n = len(messages) // 2
            return Reply(f"{n:05d}".ljust(2048, "r"), (call("look", n=n),)) if n < iterations else "done"

        folder = tmp_path / str(iterations)
        folder.mkdir()
        where = url.format(folder)
        run(Agent(model, [look], max_iterations=iterations + 1), where)
        with perdure.Client(where) as client:
            lines = transcript(client, "g")
        assert [line.content[:5] for line in lines[1:-1:2]] == [f"{n:05d}" for n in range(iterations)]
        return sum(path.stat().st_size for path in folder.rglob("*")), sum(len(line.content) for line in lines)

    (once, _), (twice, said) = size_of(250), size_of(500)
    assert twice <= 1.5 * said, f"{twice} bytes for {said}"
    assert 1.8 < twice / once < 2.2
