"""Forks with other inputs and other results: what is taken, what is executed again, and what is kept hidden."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_forks import LARGE, RAN, World, draft, letter, load, publish

import perdure
from perdure import Secret
from perdure import journal as j
from perdure.cli import main
from perdure.codec import dumps
from perdure.errors import ConfigError, CorruptStore, InputMismatch, RunSuspended
from perdure.fold import fold
from perdure.redaction import Redaction
from perdure.runners import Agent, Reply, ToolCall, tool
from perdure.runners.transcript import transcript

CANARY = "canary-7QzX-hunter2"


@pytest.fixture(autouse=True)
def _forget() -> None:
    RAN.clear()


@pytest.fixture
def world() -> Iterator[World]:
    made = World(secrets={"api": CANARY}.get)
    yield made
    made.manager.close()


@dataclass
class Order:
    n: int


# -- inputs -----------------------------------------------------------------------------------------------------------


def test_with_another_input_only_the_steps_that_take_it_are_executed_again(world: World) -> None:  # X2 X1
    world.run(letter, "tides")
    fork = world.fork(inputs={"tone": "kind"})
    assert world.go_on(fork, letter, "tides", "kind") == "<kind 18006>" and RAN == ["draft", "publish"]
    assert [arg.head for arg in world.client.state("g#1").args] == ['"tides"', '"kind"']
    assert [arg.head for arg in world.client.state("g#0").args] == ['"tides"', '"plain"']


@pytest.mark.parametrize("args", [("tides", "dry"), ("tides",), ()])
def test_however_inputs_were_given_the_fork_goes_on_with_those_it_was_made_with(
    world: World, args: tuple[str, ...]
) -> None:
    named = {} if args else {"topic": "tides", "tone": "dry"}
    world.run(letter, *args, **named)
    fork = world.fork(inputs={"tone": "kind", "topic": "moon"})
    assert world.manager.recover(letter) == {fork.key: "completed"}, "from its record"
    assert world.go_on(fork, letter, "moon", "kind") == world.go_on(fork, letter, topic="moon", tone="kind")
    with pytest.raises(InputMismatch):
        world.go_on(world.fork(inputs={"tone": "kind"}), letter, *args, **named)


def test_large_inputs_stay_blobs_and_are_shared(world: World) -> None:
    @perdure.flow
    def flow(one: str, two: str, *, three: list[int]) -> int:
        return len(one) + len(two) + len(three)

    world.run(flow, LARGE, "b", three=[1])
    fork = world.fork(inputs={"two": LARGE + "b", "three": list(range(20_000))})
    assert world.manager.recover(flow) == {fork.key: "completed"}
    assert world.go_on(fork, flow, LARGE, LARGE + "b", three=list(range(20_000))) == 2 * len(LARGE) + 20_001
    again = world.fork(str(fork.key), inputs={"two": "b", "three": [1]})
    assert again.inputs is not None and len(again.inputs.refs) == 1, "what the inputs do not need any more is not kept"
    assert world.go_on(again, flow, LARGE, "b", three=[1]) == len(LARGE) + 2
    world.client.remove("g#1")
    world.client.remove("g#2")
    assert len(world.backend.blobs) == 1 and world.is_sound()


def test_values_of_any_type_are_inputs_of_forks(world: World) -> None:  # W8
    @perdure.flow
    def flow(order: Order, price: Decimal, tags: tuple[str, ...] = ()) -> str:
        return f"{order} {price} {tags}"

    world.run(flow, Order(1), price=Decimal("1.5"), tags=("a",))
    fork = world.fork(inputs={"order": Order(2), "tags": ("b", "c")})
    assert world.manager.recover(flow) == {fork.key: "completed"}
    assert world.run(flow, Order(2), Decimal("1.5"), ("b", "c"), episode=1) == f"{Order(2)} 1.5 ('b', 'c')"


def test_inputs_that_stand_for_any_number_are_refused(world: World) -> None:
    @perdure.flow
    def flow(first: int, *rest: int, **named: int) -> int:
        return first + sum(rest) + sum(named.values())

    world.run(flow, 1, 2, 3, a=4)
    world.run(flow, 1, goal="bare")
    world.run(flow, 1, 2, goal="one")
    for name, change, said in (
        ("g#0", "rest", "is not what stands in its place"),
        ("g#0", "named", "is not what stands in its place"),
        ("bare#0", "rest", "stands for any number of inputs"),
        ("bare#0", "named", "stands for any number of inputs"),
        ("one#0", "rest", "is not what stands in its place"),
    ):
        with pytest.raises(ConfigError, match=said):
            world.fork(name, inputs={change: 9})
    with pytest.raises(ConfigError, match=r"has no input 'a'.*It has: first, rest, named"):
        world.fork(inputs={"a": 9})
    fork = world.fork(inputs={"first": 10})
    assert world.go_on(fork, flow, 10, 2, 3, a=4) == 19
    assert len(world.client.runs()) == 4


def test_a_run_without_inputs_has_none_to_change(world: World) -> None:
    world.run(perdure.flow(name="f")(lambda: publish("x")))
    with pytest.raises(ConfigError, match="It has no inputs"):
        world.fork(inputs={"x": 1})


def test_inputs_of_unknown_types_stay_as_they_are(tmp_path: Path) -> None:
    """The program is not there: what was given by name needs none, what was given by position cannot be told."""
    (tmp_path / "app.py").write_text(
        "import dataclasses, perdure\n"
        "@dataclasses.dataclass\nclass Thing:\n    n: int\n"
        "@perdure.flow\ndef flow(thing: Thing, tone: str = 'a') -> str:\n    return f'{thing.n} {tone}'\n"
    )
    made = f"import app, perdure; S = 'file:{tmp_path / 'st'}'\n"
    made += "perdure.run(app.flow, goal='named', store=S, thing=app.Thing(3), tone='b')\n"
    made += "perdure.run(app.flow, app.Thing(3), 'b', goal='placed', store=S)\n"
    goes_on = (
        made.split("\n")[0] + "\nprint(perdure.run(app.flow, app.Thing(3), 'c', goal='named', episode=1, store=S))"
    )

    subprocess.run([sys.executable, "-c", made], cwd=tmp_path, check=True)
    with perdure.Client(f"file:{tmp_path / 'st'}") as client:
        client.fork("named", inputs={"tone": "c"}, by="ann")
        assert str(client.fork("placed", inputs={"tone": "c"}, by="ann").key) == "placed#1"
        with pytest.raises(ConfigError, match=r"'thing' was not given by name, and cannot be read here.*--app"):
            client.fork("placed", inputs={"thing": 1}, by="ann")
    done = subprocess.run([sys.executable, "-c", goes_on], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout == "3 c\n"


# -- what is hidden ---------------------------------------------------------------------------------------------------


@perdure.step
def call(key: Secret, text: str) -> str:
    RAN.append("call")
    assert key.reveal() == CANARY
    return f"called {text}"


@perdure.flow
def secretive(key: Secret, text: str) -> str:
    first = call(key, "first")
    perdure.ask("Go on?", answer=bool)
    return first + call(key, text)


def test_secrets_of_the_shared_records_are_those_of_the_fork(world: World) -> None:  # rel:S8 X2
    key = Secret(CANARY, "api")
    with pytest.raises(RunSuspended):
        world.run(secretive, key, "more")
    for terms in ({}, {"inputs": {"text": "less"}}, {"inputs": {"key": key}}):
        fork = world.fork(answers={"ask": True}, **terms)
        RAN.clear()
        assert world.manager.recover(secretive) == {fork.key: "completed"} and RAN == ["call"]
        text = terms.get("inputs", {}).get("text", "more")
        assert world.go_on(fork, secretive, key, text) == f"called firstcalled {text}"
        assert not any(CANARY.encode() in line for line in world.store.read(fork.key))
    other = world.fork("g#1", after="call")
    assert other.keyed_by == world.client.state("g#0").run_id
    assert world.go_on(other, secretive, key, "more") == "called firstcalled more"


def test_what_redaction_hid_is_kept_and_is_not_replaced_by_what_it_would_hide() -> None:  # rel:S8
    world = World(redact=Redaction(names=("ssn",)))

    @perdure.flow
    def flow(ssn: str, text: str) -> str:
        perdure.ask("Go on?", answer=bool)
        return publish(text)

    with pytest.raises(RunSuspended):
        world.run(flow, ssn=CANARY, text="a")
    fork = world.fork(inputs={"text": "b"}, answers={"ask": True})
    assert world.go_on(fork, flow, ssn=CANARY, text="b") == "<b>"
    with pytest.raises(ConfigError, match="'ssn' was hidden by rules of redaction"):
        world.fork(inputs={"ssn": "another"})
    assert not any(CANARY.encode() in line for line in world.store.read(fork.key))
    world.manager.close()


# -- results ----------------------------------------------------------------------------------------------------------


def test_another_result_is_used_and_what_takes_it_is_executed_again(world: World) -> None:  # X12
    world.run(letter, "tides")
    fork = world.fork(outputs={"load": "short"})
    step = fork.steps[1]
    assert (step.edited, step.status, fork.steps[2].edited) == ("ann", "completed", "")
    assert world.go_on(fork, letter, "tides") == "<plain 5>" and RAN == ["draft", "publish"]
    assert world.client.value(world.client.step("g#0", "load").output) == f"tides {LARGE}"  # type: ignore[arg-type]
    again = world.fork("g#1")
    assert again.steps[1].edited == "ann", "a fork of it shares the edit"
    assert world.go_on(again, letter, "tides", rerun="load") == "<plain 18006>"
    assert world.client.step("g#2", "load").edited == "", "it has a result of its own again"
    third = world.fork("g#1", after="load")
    assert str(third.forked) == "g#1 after step 1 (load)" and world.go_on(third, letter, "tides") == "<plain 5>"


def test_a_step_that_failed_can_be_given_a_result(world: World) -> None:  # X12
    @perdure.step
    def broken(text: str) -> str:
        raise ValueError("broken")

    @perdure.step(on_refused="flag")
    def empty(text: str) -> str:
        return ""

    flow = perdure.flow(name="f")(lambda: publish(empty("a") + broken("b")))
    with pytest.raises(ValueError, match="broken"):
        world.run(flow)
    fork = world.fork(outputs={"broken": "mended", "empty": "full "})
    assert {step.status for step in fork.steps.values()} == {"completed"}
    assert world.go_on(fork, flow) == "<full mended>"
    assert world.client.find("g#1").flagged == 0 and world.is_sound()


def test_what_was_executed_around_an_edited_step_is_executed_again(world: World) -> None:  # X12 K3
    @perdure.flow
    def inner(n: int) -> str:
        return draft(load(f"{n}"), "dry")

    flow = perdure.flow(name="f")(lambda: perdure.map(perdure.child(inner), [1, 2]))
    assert world.run(flow) == ["dry 18002", "dry 18002"]
    fork = world.fork(outputs={"inner-1/load": "xx"})
    assert [step.status for step in fork.steps.values() if step.name == "inner"].count("invalidated") == 1
    assert world.go_on(fork, flow) == ["dry 18002", "dry 2"] and RAN == ["draft"]


def test_an_edited_result_of_a_tool_is_what_the_model_is_told(world: World) -> None:  # X12 W4
    @tool(cache=True)
    def search(query: str) -> str:
        RAN.append("search")
        return f"found {query}"

    def model(messages: list[Any], tools: Any) -> Any:
        RAN.append("model")
        said = sum(message["role"] == "assistant" for message in messages)
        if said < 2:
            return Reply("", (ToolCall("search", {"query": f"{said}"}),))
        return " and ".join(message["content"] for message in messages if message["role"] == "tool")

    agent = Agent(model, [search])
    assert world.run(agent, "go") == "found 0 and found 1"
    fork = world.fork(outputs={"2": "nothing"})
    assert world.go_on(fork, agent, "go") == "nothing and found 1" and RAN == ["model", "model"]
    lines = [str(line.content) for line in transcript(world.client, "g#1") if line.role == "tool"]
    assert lines == ["nothing", "found 1"] and world.is_sound()


def test_a_result_given_to_a_tool_that_failed_is_in_its_cache(world: World) -> None:  # X12 W5
    @tool(cache=True)
    def search(query: str) -> str:
        RAN.append("search")
        raise ValueError("no network")

    def model(messages: list[Any], tools: Any) -> Any:
        said = sum(message["role"] == "assistant" for message in messages)
        return Reply("", (ToolCall("search", {"query": "a"}),)) if said < 2 else messages[-1]["content"]

    agent = Agent(model, [search], retries=0)
    with pytest.raises(ValueError, match="no network"):
        world.run(agent, "go")
    assert world.go_on(world.fork(outputs={"search": "found"}), agent, "go") == "found" and RAN == []


def test_edits_and_inputs_and_answers_go_together(world: World) -> None:
    @perdure.flow
    def flow(topic: str, tone: str) -> str:
        texts = perdure.gather(*(functools.partial(draft, load(topic), t) for t in (tone, "dry")))
        return publish(texts[0]) if perdure.ask("Publish?", answer=bool) else "dropped"

    with pytest.raises(RunSuspended):
        world.run(flow, "tides", "kind")
    fork = world.fork(inputs={"tone": "rude"}, outputs={"1": "abc"}, answers={"ask": True}, goal="h")
    assert world.go_on(fork, flow, "tides", "rude") == "<rude 3>" and RAN == ["draft", "publish"]


def test_an_edit_or_an_answer_without_a_post_is_taken_at_the_beginning_of_a_fork_only(world: World) -> None:  # G8
    with pytest.raises(RunSuspended):
        world.run(perdure.flow(name="f")(lambda: publish(str(load("a")) if perdure.ask("a", answer=bool) else "b")))
    for name in ("g#0", str(world.fork().key)):
        key = world.client.find(name).key
        state = fold(key, world.store.read(key))
        entries: list[j.Entry] = [
            j.QuestionAnswered(step=1, question=state.waits.question_id(1), value=msgspec.Raw(b"true")),
            j.RunPaused(reason="so"),
            j.StepEdited(step=1, output=dumps(1)[0]),
        ]
        for entry in entries:
            entry.seq = state.seq + 1
            if name == "g#0" or isinstance(entry, j.StepEdited):
                with pytest.raises(CorruptStore):
                    state.apply(entry)
                break
            state.apply(entry)


@perdure.flow
def plain(text: str, n: int, rate: float, on: bool, tags: list[Any], who: dict[str, Any], nobody: None) -> str:
    return publish(text)


@pytest.mark.parametrize(
    ("word", "head"),
    [
        ("text=3", '"3"'),
        ("text=@{}", '"from a file"'),
        ("n=-4", "-4"),
        ("n=4.0", ""),
        ("n=true", ""),
        ("rate=2", "2.0"),
        ("rate=2.5", "2.5"),
        ("on=false", "false"),
        ("on=0", ""),
        ('tags=[1,{"~":"a"}]', '[1,{"v":[["~","a"]],"~":"dict"}]'),
        ("tags={}", ""),
        ("who={}", "{}"),
        ("nobody=null", "null"),
        ("nobody=ann", ""),
    ],
)
def test_what_is_typed_is_of_the_kind_that_is_recorded(
    word: str, head: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``head`` is how the input begins then; "" if it is refused."""
    store = f"sqlite:{tmp_path / 'runs.db'}"
    named = {"n": 3, "rate": 1.5, "on": True, "tags": ["a"], "who": {"a": 1}, "nobody": None}
    perdure.run(plain, "a", goal="g", store=store, **named)
    (tmp_path / "file").write_text("from a file")
    word = word.replace("@{}", f"@{tmp_path / 'file'}")
    assert main(["fork", "g", "--set", word, "--store", store]) == (0 if head else 2)
    with perdure.Client(store) as client:
        assert len(client.runs()) == (2 if head else 1)
        heads = {arg.name: arg.head for arg in client.state("g").args}
        if head:
            assert heads[word.partition("=")[0]] == head
            with perdure.CheckpointManager(store) as manager:
                assert manager.recover(plain) == {client.find("g#1").key: "completed"}


def test_the_command_says_what_it_takes_only(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    store = f"sqlite:{tmp_path / 'runs.db'}"
    perdure.run(letter, "tides", goal="g", store=store)
    assert main(["fork", "g", "--set", "tone", "--store", store]) == 2
    assert main(["fork", "g", "--set", "tone=kind", "--store", store]) == 2
    assert "left at its default" in capsys.readouterr().err
    assert main(["fork", "g", "--output", "draft=short", "--store", store, "--by", "ann"]) == 0
    assert "Run g#1 is forked from g#0 after entry" in capsys.readouterr().out


def test_what_had_crashed_in_the_original_is_in_doubt_in_the_fork_too(tmp_path: Path) -> None:  # X9 X2
    program = tmp_path / "paying.py"
    program.write_text(
        "import os, signal, perdure\n"
        "@perdure.step(on_crash='fail')\ndef pay() -> str:\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "@perdure.flow\ndef paying() -> str:\n    return pay()\n"
    )
    environment = {**os.environ, "PERDURE_STORE": f"sqlite:{tmp_path}/runs.db"}

    def shell(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "perdure", *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)

    assert shell("run", "paying.py:paying", "--goal", "g").returncode == -signal.SIGKILL
    wrong = shell("fork", "g", "--app", "paying.py:pay")
    assert wrong.returncode == 2 and "g#1" not in shell("ls").stdout
    forked = shell("fork", "g", "--app", "paying.py:paying")
    assert forked.returncode == 5 and "was started and did not end" in forked.stderr
    with perdure.Client(environment["PERDURE_STORE"]) as client:
        assert client.step("g#1", "pay").status == "crashed"
