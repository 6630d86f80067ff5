"""Tools that need a person's approval: asked with name and arguments; approved, refused, changed, remembered."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.errors import AnswerRefused, ConfigError, RunSuspended
from perdure.runners import Agent, Approval, Reply, ToolCall, tool, transcript

RAN: list[str] = []


@pytest.fixture(autouse=True)
def forget() -> None:
    RAN.clear()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'runs.db'}"


@tool(needs_approval=lambda order, amount: amount > 100)
def refund(order: str, amount: float) -> str:
    """Give money back."""
    RAN.append(f"refund {order} {amount:g}")
    return f"refunded {amount:g}"


@tool
def look(order: str) -> str:
    """Look at an order."""
    RAN.append(f"look {order}")
    return "an order"


def call(name: str, /, **arguments: Any) -> ToolCall:
    return ToolCall(name, arguments)


def script(*replies: Reply) -> Any:
    def model(messages: list[Any], tools: Any) -> Reply:
        n = sum(message["role"] == "assistant" for message in messages)
        RAN.append(f"model {n}: " + " | ".join(m["content"] for m in messages if m["role"] == "tool"))
        return replies[n]

    return model


def asynchronous(model: Any) -> Any:
    async def ask(messages: list[Any], tools: Any) -> Reply:
        await asyncio.sleep(0)
        return model(messages, tools)

    return ask


SCRIPT = script(Reply("", (call("refund", order="a", amount=500), call("look", order="a"))), Reply("done"))


def start(agent: Agent, url: str) -> RunSuspended:
    with pytest.raises(RunSuspended) as waits:
        perdure.run(agent, "help", goal="g", store=url)
    return waits.value


def decide(url: str, value: object, question: str | None = None) -> None:
    with perdure.Client(url) as client:
        client.answer("g", question, value, by="ann")


@pytest.mark.parametrize("model", [SCRIPT, asynchronous(SCRIPT)], ids=["sync", "async"])
def test_a_call_waits_for_approval_and_what_needs_none_is_done_meanwhile(url: str, model: Any) -> None:
    agent = Agent(model, [refund, look], name="helper")
    start(agent, url)
    assert RAN == ["model 0: ", "look a"]
    with perdure.Client(url) as client:
        question = client.question("g")
        assert question.prompt == 'helper wants to call refund({"order":"a","amount":500}). Approve?'
        assert question.context == '{"tool":"refund","arguments":{"order":"a","amount":500}}'
    start(agent, url)
    decide(url, True)
    assert perdure.run(agent, "help", goal="g", store=url) == "done"
    assert RAN == ["model 0: ", "look a", "refund a 500", "model 1: refunded 500 | an order"]


def test_a_refusal_and_its_reason_are_told_to_the_model(url: str) -> None:
    agent = Agent(SCRIPT, [refund, look])
    start(agent, url)
    decide(url, {"approved": False, "reason": "too much"})
    assert perdure.run(agent, "help", goal="g", store=url) == "done"
    assert RAN[-1] == "model 1: Not done: a person refused it: too much. | an order" and "refund a 500" not in RAN
    with perdure.Client(url) as client:
        told = [line.content for line in transcript(client, "g") if line.role == "tool"]
    assert told == ["Not done: a person refused it: too much.", "an order"]


def test_a_plain_no_is_a_refusal(url: str) -> None:
    agent = Agent(SCRIPT, [refund, look])
    start(agent, url)
    decide(url, False)
    perdure.run(agent, "help", goal="g", store=url)
    assert RAN[-1] == "model 1: Not done: a person refused it. | an order"


def test_a_person_may_change_the_arguments_and_the_model_is_told(url: str) -> None:
    agent = Agent(SCRIPT, [refund, look])
    start(agent, url)
    for wrong in (
        {"approved": True, "arguments": {"order": "a"}},
        {"approved": True, "arguments": {"order": "a", "amount": "lots"}},
        {"approved": True, "arguments": {"order": "a", "amount": 1, "more": 2}},
        {"approve": True},
        "yes",
    ):
        with pytest.raises(AnswerRefused, match="no answer to question"):
            decide(url, wrong)
    decide(url, Approval(True, arguments={"order": "a", "amount": 50}))
    perdure.run(agent, "help", goal="g", store=url)
    changed = '(A person changed the arguments to {"order":"a","amount":50}.)\nrefunded 50'
    assert RAN[-1] == f"model 1: {changed} | an order" and "refund a 50" in RAN
    with perdure.Client(url) as client:
        assert changed in [line.content for line in transcript(client, "g")]


TWICE = script(
    Reply("", (call("refund", order="a", amount=500),)),
    Reply("", (call("refund", order="a", amount=500), call("refund", order="b", amount=500))),
    Reply("done"),
)


@pytest.mark.parametrize(("remember", "asked"), [(True, 1), (False, 2)])
@pytest.mark.parametrize("approved", [True, False])
def test_a_decision_is_remembered_for_equal_calls_if_it_says_so(
    url: str, remember: bool, asked: int, approved: bool
) -> None:
    agent = Agent(TWICE, [refund])
    start(agent, url)
    decide(url, Approval(approved, remember=remember))
    waits = start(agent, url)
    assert len(waits.questions) == asked
    with perdure.Client(url) as client:
        asked_now = sorted(q.prompt.count('"b"') for q in client.questions())  # at one moment, in any order
        assert asked_now == ([1] if remember else [0, 1])
        for question in client.questions():
            client.answer("g", question.id, True, by="ann")
    perdure.run(agent, "help", goal="g", store=url)
    second = approved if remember else True  # asked again, it was approved
    assert RAN.count("refund a 500") == approved + second


def test_two_calls_side_by_side_are_two_questions(url: str) -> None:
    both = script(Reply("", tuple(call("refund", order=name, amount=500) for name in "aab")), Reply("done"))
    agent = Agent(both, [refund])
    assert len(start(agent, url).questions) == 3
    with perdure.Client(url) as client:
        questions = sorted(client.questions(), key=lambda question: question.path)  # asked at one moment, in any order
        for question, value in zip(questions, (True, False, True), strict=True):
            client.answer("g", question.id, value, by="ann")
    perdure.run(agent, "help", goal="g", store=url)
    assert RAN[-1] == "model 1: refunded 500 | Not done: a person refused it. | refunded 500"


def test_a_tool_that_tells_its_failure_tells_it_after_approval_too(url: str) -> None:
    @tool(needs_approval=True, on_error="tell")
    def breaks() -> str:
        raise ValueError("broken")

    agent = Agent(script(Reply("", (call("breaks"),)), Reply("done")), [breaks])
    start(agent, url)
    decide(url, True)
    assert perdure.run(agent, "help", goal="g", store=url) == "done"
    assert RAN[-1] == "model 1: Error: ValueError: broken"


def test_without_a_store_a_tool_that_needs_approval_is_an_error() -> None:
    with pytest.raises(ConfigError, match="nobody can answer"):
        Agent(SCRIPT, [refund, look])("help")


def test_an_agent_that_is_a_tool_asks_in_its_own_scope(url: str) -> None:  # K3
    inner = Agent(SCRIPT, [refund, look], name="inner", description="Refunds.")
    outer = Agent(script(Reply("", (call("inner", task="x"),)), Reply("all done")), [inner], name="outer")
    start(outer, url)
    with perdure.Client(url) as client:
        assert client.question("g").path == "inner-0/approve-0/approve:refund"
        client.answer("g", None, True, by="ann")
    assert perdure.run(outer, "help", goal="g", store=url) == "all done"
