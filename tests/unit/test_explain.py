"""Why steps were executed or reused: what ``Client.explain`` and the journal say (X1)."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure import CheckpointConfig, Client
from perdure import journal as j
from perdure.runners import Agent, Graph, Reply, ToolCall, tool
from perdure.runtime.explain import Reason
from perdure.runtime.manager import CheckpointManager


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'runs.db'}"


def program(**edits: str) -> Callable[..., Any]:
    """A flow of three steps; each has the version that is given, and what it returns."""
    ran: list[str] = []

    @perdure.step(version=edits.get("draft_version", "1"))
    def draft(topic: str) -> str:
        ran.append("draft")
        return edits.get("draft", "a draft on") + " " + topic

    @perdure.step(version=edits.get("check_version", "1"), on_refused="flag", check=lambda out: out != "bad")
    def check(topic: str) -> str:
        ran.append("check")
        return edits.get("check", "fine")

    @perdure.step(version=edits.get("print_version", "1"))
    def publish(text: str, note: str) -> str:
        ran.append("publish")
        if edits.get("publish") == "fails":
            raise RuntimeError("no paper")
        return f"{text} ({note})"

    @perdure.flow(name="article")
    def article(topic: str) -> str:
        return publish(draft(topic), check(topic))

    article.ran = ran
    return article


def why(url: str, name: str = "g") -> dict[str, tuple[str, str]]:
    with Client(url) as client:
        return {reason.path: (reason.decision, reason.why) for reason in client.explain(name).steps}


def reason(url: str, number: int) -> Reason:
    with Client(url) as client:
        return next(reason for reason in client.explain("g").steps if reason.number == number)


def test_in_the_first_life_every_step_is_new(url: str) -> None:
    perdure.run(program(), "tides", goal="g", store=url)
    assert why(url) == dict.fromkeys(("draft", "check", "publish"), ("executed", "it is new"))


def test_a_changed_step_and_the_arguments_that_follow_from_it_are_told(url: str) -> None:
    perdure.run(program(), "tides", goal="g", store=url)
    edited = program(draft_version="2", draft="an essay on")
    assert perdure.run(edited, "tides", goal="g", store=url, rerun="changed") == "an essay on tides (fine)"
    assert edited.ran == ["draft", "publish"]
    with Client(url) as client:
        told = client.explain("g")
    assert (told.life, told.renewed, told.count("executed"), told.count("reused")) == (2, True, 2, 1)
    by_number = {step.number: step for step in told.steps}
    assert [by_number[n].decision for n in (1, 2, 3, 4)] == ["executed", "reused", "not asked for", "executed"]
    assert by_number[1].why == "its code has changed"
    assert by_number[1].code.splitlines()[-2:] == ["-1", "+2"]
    assert (by_number[4].why, by_number[4].before) == ("its inputs have changed", 3)
    assert by_number[4].changes[0].told(60) == 'text was "a draft on tides", now "an essay on tides"'
    assert by_number[3].why == "step 4 is in its place"


def test_recovery_reuses_a_step_whose_code_has_changed_and_names_it(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RuntimeError):
        perdure.run(program(publish="fails"), "tides", goal="g", store=url)
    edited = program(draft_version="2", draft="an essay on")
    with caplog.at_level(logging.WARNING, "perdure"):
        assert perdure.run(edited, "tides", goal="g", store=url) == "a draft on tides (fine)"
    assert edited.ran == ["publish"]
    assert "step 1 (draft): its code has changed since it was executed; its result is reused" in caplog.text
    told = why(url)
    assert told["draft"] == ("reused", "it is recorded; its code has changed since, and --rerun changed was not given")
    assert told["check"] == ("reused", "it is recorded, with the same inputs")
    assert told["publish"] == ("executed", "it had failed")


def test_a_finished_run_of_other_code_is_told_apart(url: str, caplog: pytest.LogCaptureFixture) -> None:
    perdure.run(program(), "tides", goal="g", store=url)
    with caplog.at_level(logging.WARNING, "perdure"):
        perdure.run(program(), "tides", goal="g", store=url)
        assert not caplog.records
        perdure.run(program(draft_version="2"), "tides", goal="g", store=url)
    assert "had completed with other code" in caplog.text and "rerun='changed'" in caplog.text


def test_flagged_and_forced_steps_say_so(url: str) -> None:  # C11
    perdure.run(program(check="bad"), "tides", goal="g", store=url)
    perdure.run(program(), "tides", goal="g", store=url, rerun="flagged")
    assert why(url)["check"] == ("executed", "it was flagged") and reason(url, 1).decision == "reused"
    perdure.run(program(), "tides", goal="g", store=url, rerun="draft")
    assert reason(url, 1).why == "it was asked for by name"


def test_a_step_that_was_cut_off_says_so_also_if_it_was_to_be_executed_again(url: str) -> None:  # C2
    class Stop(BaseException):
        pass

    perdure.run(program(), "tides", goal="g", store=url)
    edited = program(draft_version="2")

    @perdure.step(name="draft", version="2")
    def draft(topic: str) -> str:
        raise Stop

    stopping = perdure.flow(name="article")(lambda topic: draft(topic))
    with pytest.raises(Stop):
        perdure.run(stopping, "tides", goal="g", store=url, rerun="changed")
    assert reason(url, 1).why == "its code has changed" and reason(url, 2).why == "nothing has asked for it yet"
    perdure.run(edited, "tides", goal="g", store=url, rerun="changed")
    assert reason(url, 1).why == "it was interrupted"


def test_a_plain_resume_goes_on_with_what_had_changed_unless_its_code_is_other(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:  # X1
    broken = program(draft_version="2", check_version="2", publish="fails", draft="an essay on")
    perdure.run(program(), "tides", goal="g", store=url)
    with pytest.raises(RuntimeError):
        perdure.run(broken, "tides", goal="g", store=url, rerun="changed")
    old = program(publish="fails")  # a worker with the old code takes it up
    with caplog.at_level(logging.WARNING, "perdure"), pytest.raises(RuntimeError):
        perdure.run(old, "tides", goal="g", store=url)
    assert old.ran == ["publish"] and "with other code than this" in caplog.text
    with Client(url) as client:
        assert client.state("g").renewing == broken.digest
    with pytest.raises(RuntimeError):
        perdure.run(broken, "tides", goal="g", store=url)
    assert broken.ran == ["draft", "check", "publish", "publish"]


def test_steps_inside_of_steps_are_executed_where_code_changed_and_only_there(url: str) -> None:  # K3 X1
    def made(version: str, ran: list[str]) -> Any:
        @perdure.step(version="1")
        def read(n: int) -> str:
            ran.append(f"read {n}")
            return f"text {n}"

        @perdure.step(version=version)
        def judge(text: str) -> str:
            ran.append(f"judge {text}")
            return f"{version} {text}"

        @perdure.flow
        def worker(n: int) -> str:
            return judge(read(n))

        @perdure.flow
        def other(n: int) -> str:
            return read(n + 10)

        @perdure.flow(name="chief")
        def chief() -> list[str]:
            works = [functools.partial(perdure.child(worker), n) for n in range(2)]
            return [*perdure.gather(*works), perdure.child(other)(1)]

        return chief

    first: list[str] = []
    second: list[str] = []
    perdure.run(made("1", first), goal="g", store=url)
    assert perdure.run(made("2", second), goal="g", store=url, rerun="changed") == ["2 text 0", "2 text 1", "text 11"]
    assert len(first) == 5 and sorted(second) == ["judge text 0", "judge text 1"]
    told = why(url)
    assert told["worker-0/read"][0] == "reused" and told["worker-0/judge"] == ("executed", "its code has changed")
    assert told["worker"] == ("executed", "its code has changed") and told["other"][0] == "reused"
    assert "whose result was reused" in told["other-0/read"][1]


def test_an_agent_is_asked_again_when_its_tools_say_something_else(url: str) -> None:  # W4 X1
    def made(description: str, asked: list[int]) -> Agent:
        @tool(description=description)
        def search(query: str) -> str:
            return f"{query}: found"

        def model(messages: list[dict[str, Any]], tools: Any) -> Reply:
            asked.append(len(messages))
            said = sum(message["role"] == "assistant" for message in messages)
            return Reply("", (ToolCall("search", {"query": "tides"}),)) if not said else Reply("done")

        return Agent(model, [search])

    first: list[int] = []
    second: list[int] = []
    third: list[int] = []
    perdure.run(made("Search.", first), "tides?", goal="g", store=url)
    perdure.run(made("Search.", second), "tides?", goal="g", store=url, rerun="changed")
    perdure.run(made("Search the archive.", third), "tides?", goal="g", store=url, rerun="changed")
    assert (len(first), second, len(third)) == (2, [], 2)
    assert "Search the archive." in reason(url, 1).code


def test_a_graph_executes_the_node_that_changed_and_what_follows(url: str) -> None:  # G3 X1
    def made(factor: int, ran: list[str]) -> Graph:
        def load(start: int) -> int:
            ran.append("load")
            return start

        def grow(load: int) -> int:
            ran.append("grow")
            return load * factor

        def tell(grow: int) -> str:
            ran.append("tell")
            return str(grow)

        return Graph({"load": load, "grow": grow, "tell": tell}, [("load", "grow"), ("grow", "tell")], inputs=["start"])

    runs: list[list[str]] = [[], [], []]
    for factor, ran in zip((2, 2, 3), runs, strict=True):
        result = perdure.run(made(factor, ran), start=5, goal="g", store=url, rerun="changed")
    assert result == "15" and runs == [["load", "grow", "tell"], [], ["grow", "tell"]]
    assert "-factor = 2\n+factor = 3" in reason(url, 2).code


def test_async_steps_are_executed_again_side_by_side(url: str) -> None:  # X1 X10
    def made(version: str, ran: list[int]) -> Any:
        @perdure.step(version=version)
        async def work(n: int) -> int:
            ran.append(n)
            return n

        @perdure.flow(name="side")
        async def side() -> list[int]:
            return await perdure.gather(*(work(1) for _ in range(3)))

        return side

    first: list[int] = []
    second: list[int] = []
    perdure.run(made("1", first), goal="g", store=url)
    perdure.run(made("2", second), goal="g", store=url, rerun="changed")
    assert first == second == [1, 1, 1]
    with Client(url) as client:
        assert client.explain("g").count("executed") == 3


def test_code_is_kept_once_a_run_and_not_at_all_if_that_is_wished(url: str) -> None:
    @perdure.step
    def work(n: int) -> int:
        return n  # what this is

    flow = perdure.flow(name="many")(lambda: [work(n) for n in range(1, 20)])
    perdure.run(flow, goal="g", store=url)
    perdure.run(flow, goal="h", store=url, config=CheckpointConfig(keep_code=False))
    with Client(url) as client:
        kept = [entry for entry in client.entries("g") if isinstance(entry, j.StepStarted) and entry.code is not None]
        assert len(kept) == 1 and "# what this is" in str(client.value(kept[0].code))  # type: ignore[arg-type]
        assert not client.state("h").code and client.step("h", "1").digest == client.step("g", "1").digest


def test_keys_in_code_are_not_kept(url: str, tmp_path: Path) -> None:  # rel:S8
    @perdure.step
    def work() -> str:
        return str(len("sk-aaaabbbbccccddddeeeeffff"))

    perdure.run(perdure.flow(name="keys")(lambda: work()), goal="g", store=url)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"ccccdddd" in path.read_bytes()]
    with Client(url) as client:
        assert "***" in str([client.value(code) for code in client.state("g").code.values()])


def test_what_a_life_reused_is_known_also_if_it_did_not_end_well(url: str) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError):
            perdure.run(program(publish="fails"), "tides", goal="g", store=url)
    assert {path: told[0] for path, told in why(url).items()} == {
        "draft": "reused",
        "check": "reused",
        "publish": "executed",
    }


def test_a_run_that_was_only_submitted_has_nothing_to_explain(url: str) -> None:
    flow = perdure.flow(name="later")(lambda: 1)
    with CheckpointManager(url) as manager:
        manager.submit(flow, goal="g")
    with Client(url) as client:
        told = client.explain("g")
    assert (told.life, told.status, told.steps) == (0, "queued", ())


def test_a_run_with_inputs_that_were_adopted_says_which_arguments_differ(url: str) -> None:  # X1
    perdure.run(program(), "tides", goal="g", store=url)
    perdure.run(program(), "winds", goal="g", store=url, adopt_input=True)
    told = [reason(url, number) for number in (4, 5, 6)]
    assert [step.before for step in told] == [1, 2, 3]
    assert [change.argument for change in told[2].changes] == ["text"]


def test_always_replay_says_the_same(url: str) -> None:
    """A life for each step: what was executed in the one before is reused."""
    ran: list[int] = []

    @perdure.step
    async def work(n: int) -> int:
        ran.append(n)
        if len(ran) < 4:
            raise asyncio.CancelledError
        return n

    @perdure.flow
    async def flow() -> list[int]:
        return [await work(n) for n in (1, 2)]

    for _ in range(3):
        with pytest.raises(asyncio.CancelledError):
            perdure.run(flow, goal="g", store=url)
    assert perdure.run(flow, goal="g", store=url) == [1, 2]
    assert [step.why for step in (reason(url, 1), reason(url, 2))] == ["it was interrupted", "it is new"]


def test_an_attempt_of_other_code_is_not_given_what_those_before_had_streamed_or_saved(url: str) -> None:  # C5 X1
    seen: list[tuple[str, object]] = []

    def made(version: str) -> Any:
        @perdure.step(version=version)
        def write() -> str:
            context = perdure.context()
            seen.append((context.partial_text, context.progress))
            context.stream(f"text {version}")
            context.save(version)
            if version == "2" and context.attempt == 2:
                raise RuntimeError("once")
            return f"text {version}"

        return perdure.flow(name="writing")(lambda: write())

    perdure.run(made("1"), goal="g", store=url)
    with pytest.raises(RuntimeError):
        perdure.run(made("2"), goal="g", store=url, rerun="changed")
    assert perdure.run(made("2"), goal="g", store=url) == "text 2"
    assert seen == [("", None), ("", None), ("text 2", "2")]
    perdure.run(made("2"), goal="g", store=url, rerun="write")
    assert seen[-1] == ("", None)


def test_a_result_is_kept_until_the_attempt_that_is_to_replace_it_begins(url: str) -> None:  # X6
    perdure.run(program(), "tides", goal="g", store=url, budget=perdure.Budget(seconds=1000))
    with pytest.raises(perdure.errors.LimitReached):
        perdure.run(
            program(draft_version="2"),
            "tides",
            goal="g",
            store=url,
            rerun="changed",
            budget=perdure.Budget(seconds=1e-9),
        )
    with Client(url) as client:
        assert client.step("g", "draft").status == "completed"
    back = program()
    perdure.run(back, "tides", goal="g", store=url, budget=perdure.Budget(seconds=1000))
    assert back.ran == []


def test_each_execution_of_changed_code_has_an_idempotency_key_of_its_own(url: str) -> None:  # X7
    keys: list[str] = []

    def made(version: str) -> Any:
        @perdure.step(version=version, retries=1, backoff=0)
        def pay() -> str:
            keys.append(perdure.context().idempotency_key)
            if len(keys) % 2:
                raise RuntimeError("again")
            return "paid"

        return perdure.flow(name="paying")(lambda: pay())

    for version in "12":
        perdure.run(made(version), goal="g", store=url, rerun="changed")
    assert keys[0] == keys[1] != keys[2] == keys[3]


def test_attempts_that_are_judged_are_gone_through_for_what_has_changed(url: str) -> None:  # K2 X1
    def made(version: str, ran: list[str]) -> Any:
        @perdure.step(version="1")
        def research(topic: str) -> str:
            ran.append("research")
            return "found"

        @perdure.step(version=version)
        def write(found: str) -> str:
            ran.append("write")
            return found + version

        @perdure.flow
        def essay(topic: str) -> str:
            return write(research(topic))

        return perdure.best_of(2, essay, judge=len)

    first: list[str] = []
    second: list[str] = []
    perdure.run(made("1", first), "tides", goal="g", store=url)
    assert perdure.run(made("22", second), "tides", goal="g", store=url, rerun="changed").output == "found22"
    assert first == ["research", "write"] * 2 and second == ["write"] * 2


def test_a_fork_says_what_it_shares_and_what_was_changed_in_it(url: str) -> None:  # X2 X12
    perdure.run(program(), "tides", goal="g", store=url)
    with Client(url) as client:
        client.fork("g", after="check", outputs={"draft": "an edited draft"}, by="ann")
        fresh = client.explain("g#1")
        assert fresh.life == 0 and {step.decision for step in fresh.steps} == {"not asked for"}
    assert perdure.run(program(), "tides", goal="g", store=url) == "an edited draft (fine)"
    with Client(url) as client:
        told = {step.path: (step.decision, step.why) for step in client.explain("g#1").steps}
    assert told == {
        "draft": ("reused", "ann gave it this result"),
        "check": ("reused", "it is recorded, with the same inputs"),
        "publish": ("executed", "it is new"),
    }


def test_a_question_that_is_answered_says_so(url: str) -> None:  # W1
    @perdure.flow
    def asking() -> bool:
        return perdure.ask("Publish?", answer=bool)

    with pytest.raises(perdure.errors.RunSuspended):
        perdure.run(asking, goal="g", store=url)
    with Client(url) as client:
        client.answer("g", None, True, by="ann")
    perdure.run(asking, goal="g", store=url)
    assert [step.why for step in (reason(url, 1),)] == ["it was waiting, and what it waited for came"]


def test_what_a_person_gave_stays_also_where_the_code_has_changed(url: str) -> None:  # X1 X12
    perdure.run(program(), "tides", goal="g", store=url)
    with Client(url) as client:
        client.fork("g", outputs={"draft": "my own draft"}, by="ann")
    edited = program(draft_version="2", draft="an essay on")
    assert perdure.run(edited, "tides", goal="g", store=url, rerun="changed") == "my own draft (fine)"
    assert edited.ran == ["publish"]
    assert perdure.run(edited, "tides", goal="g", store=url, rerun="draft") == "an essay on tides (fine)"


def test_a_fork_does_not_go_on_executing_what_had_changed_unasked(url: str) -> None:  # X2
    broken = program(draft_version="2", check_version="2", publish="fails", draft="an essay on")
    perdure.run(program(), "tides", goal="g", store=url)
    with pytest.raises(RuntimeError):
        perdure.run(broken, "tides", goal="g", store=url, rerun="changed")
    with Client(url) as client:
        assert client.state("g").renewing and client.fork("g", by="ann").renewing is None


def test_a_rerun_that_was_cut_off_is_no_nondeterminism(url: str, caplog: pytest.LogCaptureFixture) -> None:  # rel:R5
    strict = CheckpointConfig(nondeterminism="raise")

    class Stop(BaseException):
        pass

    stop = False

    def made(version: str) -> Any:
        @perdure.step(version=version)
        def first() -> str:
            return version

        @perdure.step(version="1")
        def second(x: str) -> str:
            return x

        @perdure.flow(name="f")
        def flow() -> str:
            x = first()
            if stop:
                raise Stop
            return second(x)

        flow.made_of = (("code", version),)
        return flow

    perdure.run(made("1"), goal="g", store=url, config=strict)
    stop = True
    with pytest.raises(Stop):
        perdure.run(made("2"), goal="g", store=url, config=strict, rerun="changed")
    stop = False
    assert perdure.run(made("2"), goal="g", store=url, config=strict) == "2"


def test_a_cached_tool_that_changed_is_executed_once_for_all_equal_calls(url: str) -> None:  # W5 X1
    def made(word: str, ran: list[str]) -> Agent:
        @tool(cache=True)
        def search(query: str) -> str:
            ran.append(query)
            return f"{query}: {word}"

        def model(messages: list[dict[str, Any]], tools: Any) -> Reply:
            said = sum(message["role"] == "assistant" for message in messages)
            return Reply("", (ToolCall("search", {"query": "tides"}),)) if said < 3 else Reply("done")

        return Agent(model, [search])

    runs: list[list[str]] = [[], [], []]
    for word, ran in zip(("found", "seen", "seen"), runs, strict=True):
        perdure.run(made(word, ran), "tides?", goal="g", store=url, rerun="changed")
    assert runs == [["tides"], ["tides"], []]
    with Client(url) as client:
        assert {client.value(step.output) for step in client.state("g").steps.values() if step.name == "search"} == {
            "tides: seen"
        }
