"""Runs with secrets in them: nothing of these is in the store, the log or output files, and they go on (rel:S8)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
import pytest

import perdure
from perdure import CheckpointConfig, CheckpointManager, Secret
from perdure.errors import ConfigError, InputMismatch, LimitReached, RunSuspended
from perdure.redaction import Redaction
from perdure.runners import Agent, Graph, Reply, ToolCall, tool
from perdure.runners.state import Held, Keeper, Kept

CANARY = "canary-7QzX-hunter2"
PLAIN = "cust-4711-plain"
"""what no Secret holds, and a pattern of the application hides"""
RULES = Redaction(names=("ssn", "api_key"), patterns=(r"cust-[0-9]+-[a-z]+",))
RAN: list[str] = []


@pytest.fixture(autouse=True)
def _forget() -> None:
    RAN.clear()


@pytest.fixture(params=["sqlite", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{request.param}:{tmp_path / 'store'}"


@pytest.fixture
def nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Callable[[], None]:
    """Asserts that neither file nor log has a canary."""
    caplog.set_level(logging.DEBUG)

    def check() -> None:
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert files
        for path in files:
            for canary in (CANARY, PLAIN, CANARY[7:]):
                assert canary.encode() not in path.read_bytes(), path
        assert CANARY not in caplog.text and PLAIN not in caplog.text

    return check


class Order(pydantic.BaseModel):
    n: int


@dataclass
class Call:
    headers: dict[str, Any]
    note: str


@perdure.step
def use(key: Secret, call: Call, api_key: str = "") -> str:
    RAN.append("use")
    context = perdure.context()
    context.stream(f"calling {PLAIN[:9]}")
    context.stream(f"{PLAIN[9:]} now")
    context.save({"at": [key], "for": f"customer {PLAIN}"})
    return f"used {len(key.reveal())} characters for {PLAIN}"


@perdure.step(retries=1, backoff=0.01)
def fail(key: Secret) -> str:
    RAN.append("fail")
    value = key.reveal()
    if RAN.count("fail") == 1:
        raise ValueError(f"cannot log in with {value}", value, {"Authorization": f"Bearer {value}"})
    return "done"


@perdure.step
def login(key: Secret) -> dict[str, Any]:
    RAN.append("login")
    return {"session": Secret(key.reveal() + "-session", "session"), "api_key": PLAIN, "name": PLAIN}


@perdure.step
def after(session: dict[str, Any], said: str) -> str:
    RAN.append("after")
    return "after"


@perdure.flow
def shop(key: Secret, ssn: str, call: Call) -> str:
    said = use(key, call, api_key=PLAIN)
    session = login(key)
    fail(key)
    after(session, said)
    ok: bool = perdure.ask(f"Really {PLAIN} with {key}?", answer=bool, context={"for": PLAIN, "with": key})
    if not ok:
        raise RuntimeError(f"no: {key.reveal()}")
    return f"{PLAIN} is done"


def start(url: str, key: str = CANARY, **options: Any) -> Any:
    config = CheckpointConfig(redact=RULES, outputs=str(Path(url.partition(":")[2]).parent / "outputs"))
    attribution = perdure.Attribution(prompt=f"buy for {PLAIN}", tags={"ssn": PLAIN, "shop": "a"})
    call = Call({"Authorization": Secret(key, "shop")}, f"about {PLAIN}")
    given = (Secret(key, "shop"), PLAIN, call)
    return perdure.run(shop, *given, goal="buy", store=url, config=config, attribution=attribution, **options)


def test_a_run_goes_on_and_no_record_or_log_has_what_is_secret(url: str, nowhere: Callable[[], None]) -> None:
    with pytest.raises(RunSuspended):
        start(url)
    assert RAN == ["use", "login", "fail", "fail", "after"]
    nowhere()
    with pytest.raises(RunSuspended):  # results that were redacted are the same inputs to the steps behind them
        start(url)
    assert RAN == ["use", "login", "fail", "fail", "after"], "nothing that finished runs twice"
    with perdure.Client(url) as client:
        (question,) = client.questions()
        assert "***" in question.prompt and PLAIN not in client.question("buy").context
        state = client.state("buy")
        assert {a.name: a.head for a in state.args} == {"key": "***", "ssn": "***", "call": state.args[2].head}
        assert state.attribution.tags == {"ssn": "***", "shop": "a"}
        assert state.steps[1].partial_text.endswith("] now")
        client.answer("buy", None, True, by="ann")
    assert start(url) == f"{PLAIN} is done", "who executes it has the value itself"
    nowhere()
    assert start(url).startswith("[redacted:"), "and whoever asks again what is recorded"
    nowhere()


def test_another_value_is_another_input_and_neither_is_shown(url: str, nowhere: Callable[[], None]) -> None:  # rel:R8
    with pytest.raises(RunSuspended):
        start(url)
    with pytest.raises(InputMismatch, match=r"call was .* now .*; key was \*\*\*, now \*\*\*.*rotates=True") as problem:
        start(url, "another-value")
    assert CANARY not in str(problem.value) and "another-value" not in str(problem.value)
    with pytest.raises(RunSuspended):
        start(url, "another-value", adopt_input=True)
    assert RAN.count("use") == 2, "what was computed with another secret is computed again"
    nowhere()


@perdure.flow
def rotating(key: Secret) -> int:
    return paid(key, 1) + paid(key, 2)


@perdure.step
def paid(key: Secret, n: int) -> int:
    RAN.append(key.reveal())
    if key.reveal() == "revoked" and n == 2:
        raise PermissionError("401")
    return n


def test_a_key_that_rotates_repeats_nothing(url: str) -> None:
    with pytest.raises(PermissionError):
        perdure.run(rotating, Secret("revoked", "openai", rotates=True), goal="r", store=url)
    assert perdure.run(rotating, Secret("fresh-key", "openai", rotates=True), goal="r", store=url) == 3
    assert RAN == ["revoked", "revoked", "fresh-key"]


def test_failures_keep_the_secret_to_themselves(url: str, nowhere: Callable[[], None]) -> None:
    @perdure.flow
    def failing(key: Secret) -> None:
        failing_step(key)

    @perdure.step
    def failing_step(key: Secret) -> None:
        raise ValueError(f"{key.reveal()} is wrong", key.reveal())

    with pytest.raises(ValueError, match=CANARY):  # what the program itself is told is its own
        perdure.run(failing, Secret(CANARY), goal="f", store=url)
    with perdure.Client(url) as client:
        error = client.state("f").steps[1].error
        assert error is not None and "*** is wrong" in error.message and "ValueError" in error.traceback
        assert client.find("f").reason.count("***") == 2
    nowhere()


def test_reasons_and_flags_keep_it_too(url: str, nowhere: Callable[[], None]) -> None:
    @perdure.step(check=lambda said: f"no {said[0].reveal()}", on_refused="flag")
    def flagged(key: Secret) -> list[Secret]:
        return [key]

    @perdure.flow
    def inner(key: Secret) -> None:
        raise ValueError(key.reveal())

    @perdure.flow
    def pausing(key: Secret) -> None:
        flagged(key)
        perdure.child(inner, on_error="return")(key)
        raise LimitReached(f"too much for {key.reveal()}")

    with pytest.raises(LimitReached):
        perdure.run(pausing, Secret(CANARY), goal="p", store=url)
    with perdure.Client(url) as client:
        state = client.state("p")
        assert (state.status, state.reason) == ("paused", "too much for ***")
        assert [step.flagged for step in state.steps.values()] == ["step flagged: no ***", "***"]
    nowhere()


def test_a_validators_words_do_not_quote_what_came(url: str, caplog: pytest.LogCaptureFixture) -> None:
    @perdure.flow
    def waiting() -> int:
        came: Order = perdure.signal("order", type=Order)
        return came.n

    with pytest.raises(RunSuspended):
        perdure.run(waiting, goal="w", store=url)
    with perdure.Client(url) as client:
        client.signal("w", "order", {"n": "quoted-value"})
    with pytest.raises(RunSuspended):
        perdure.run(waiting, goal="w", store=url)
    assert "does not fit: n: Input should be a valid integer" in caplog.text and "quoted-value" not in caplog.text


# ---- by others


@perdure.flow
def reads(key: Secret) -> int:
    return sum(paid(key, n) for n in (1, 2))


def worker(url: str, **config: Any) -> dict[Any, str]:
    with CheckpointManager(url, CheckpointConfig(**config)) as manager:
        return manager.recover(reads)


def submit(url: str, *given: Any, **config: Any) -> Any:
    with CheckpointManager(url, CheckpointConfig(**config)) as manager:
        return manager.submit(reads, *given, goal="s")


def test_a_worker_has_the_value_from_its_own_resolver(url: str, nowhere: Callable[[], None]) -> None:
    key = submit(url, Secret(CANARY, "shop"))
    assert submit(url, Secret(CANARY, "shop")) == key, "joined: the same input"
    with pytest.raises(InputMismatch):
        submit(url, Secret("another", "shop"))
    assert worker(url) == {}, "it has no resolver, and leaves the run to others"
    assert worker(url, secrets={}.get) == {} == worker(url, secrets={"shop": "another"}.get)
    assert RAN == []

    def unreachable(name: str) -> str:
        raise ConnectionError("the key service is down")

    assert worker(url, secrets=unreachable) == {}
    asked: list[tuple[str, str]] = []

    def resolve(name: str) -> str:
        asked.append((name, threading.current_thread().name))
        return CANARY

    assert worker(url, secrets=resolve) == {key: "completed"}
    assert RAN == [CANARY, CANARY]
    assert asked == [("shop", "perdure-secrets")], "not on the thread that commits"
    nowhere()


def test_what_no_worker_could_have_is_not_submitted(url: str) -> None:
    with pytest.raises(ConfigError, match=r"a Secret without a name.*Nothing was written"):
        submit(url, Secret(CANARY))
    with pytest.raises(ConfigError, match="a Secret without a name"):
        submit(url, [Secret(CANARY)])
    with pytest.raises(ConfigError, match="rules of redaction hide a part of its inputs"):
        submit(url, f"of {PLAIN}", redact=RULES)
    with perdure.Client(url) as client:
        assert client.runs() == []


def test_a_run_whose_input_was_hidden_goes_on_with_whoever_gives_it_again(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    @perdure.flow
    def lookup(ssn: str) -> str:
        RAN.append(ssn)
        if len(RAN) == 1:
            raise KeyboardInterrupt
        return "found"

    config = CheckpointConfig(redact=RULES)
    with pytest.raises(KeyboardInterrupt):
        perdure.run(lookup, "12-34", goal="l", store=url, config=config)
    assert "the rules of redaction hide a part of inputs in its records" in caplog.text
    with CheckpointManager(url, config) as manager:
        assert manager.recover(lookup) == {}
    assert "rules of redaction hid some of them" in caplog.text and RAN == ["12-34"]
    assert perdure.run(lookup, "12-34", goal="l", store=url, config=config) == "found"
    with pytest.raises(InputMismatch, match=r"ssn was \*\*\*, now \*\*\*"):
        perdure.run(lookup, "56-78", goal="l", store=url, config=config)


# ---- shapes


def test_an_agent_whose_words_are_redacted_is_asked_nothing_twice(url: str, nowhere: Callable[[], None]) -> None:
    @tool
    def find(query: str) -> str:
        RAN.append("find")
        return f"{query}: {PLAIN}"

    def model(messages: list[Any], tools: Any) -> Reply:
        RAN.append("model")
        asked = sum(message["role"] == "assistant" for message in messages)
        if RAN == ["model", "find", "model", "find", "model"]:
            raise KeyboardInterrupt
        return Reply("", (ToolCall("find", {"query": f"{asked} {PLAIN}"}),)) if asked < 2 else Reply(f"it is {PLAIN}")

    config = CheckpointConfig(redact=RULES)
    agent = Agent(model, [find])
    with pytest.raises(KeyboardInterrupt):
        perdure.run(agent, f"find {PLAIN}", goal="a", store=url, config=config)
    nowhere()
    assert perdure.run(agent, f"find {PLAIN}", goal="a", store=url, config=config) == f"it is {PLAIN}"
    assert RAN == ["model", "find", "model", "find", "model", "model"]
    nowhere()


def test_graphs_children_and_attempts_keep_them_too(url: str, nowhere: Callable[[], None]) -> None:
    @perdure.flow
    def several(key: Secret) -> int:
        best = perdure.best_of(2, reads, judge=judge)(key)
        if len(RAN) == 4:
            RAN.append("stop")
            raise KeyboardInterrupt
        return int(best.output) + perdure.child(reads)(key)

    with pytest.raises(KeyboardInterrupt):
        perdure.run(several, Secret(CANARY, "shop"), goal="t", store=url)
    assert perdure.run(several, Secret(CANARY, "shop"), goal="t", store=url) == 6
    assert RAN == [CANARY] * 4 + ["stop"] + [CANARY] * 2
    graph = Graph({"use": use_in_graph, "keep": Keeps}, edges=[("use", "keep")], inputs=("key",))
    for _ in range(2):
        assert perdure.run(graph, key=Secret(CANARY, "shop"), goal="g", store=url) == len(CANARY)
    nowhere()


def judge(key: Secret, output: int) -> float:
    return 1.0 if output else 0.0


class Keeps:
    """A node that remembers a secret."""

    state_version = 1

    def __init__(self) -> None:
        self.kept: list[Secret] = [Secret(CANARY)]

    def __call__(self, use: int) -> int:
        return use

    def save_state(self) -> object:
        return self.kept

    def restore_state(self, state: Any, version: int) -> None:
        self.kept = state


def use_in_graph(key: Secret) -> int:
    return len(key.reveal())


def test_a_state_with_a_secret_in_it_has_an_identity() -> None:
    node = Keeper("keeps", Keeps, None, {})
    assert len(node.before({"keeps": Held(Kept(1, [Secret(CANARY)], 1), None)})) == 32


def test_marked_by_hand(url: str, nowhere: Callable[[], None]) -> None:
    for life in (1, 2):
        try:
            with CheckpointManager(url) as manager, manager.begin(goal="m") as run:
                with run.step("use", Secret(CANARY), {"k": [Secret(CANARY)]}) as step:
                    assert step.recorded == (life == 2)
                    if not step.recorded:
                        step.complete({"token": Secret(CANARY)})
                if life == 1:
                    raise RuntimeError(CANARY[:3])
        except RuntimeError:
            pass
    nowhere()


def test_without_a_store_a_secret_is_an_ordinary_value() -> None:
    assert reads(Secret("value")) == 3 and use_in_graph(Secret("value")) == 5
    assert login(Secret("value"))["session"].reveal() == "value-session"


def test_a_secret_in_a_result_has_no_value_in_a_later_life(url: str) -> None:
    @perdure.flow
    def session(key: Secret) -> int:
        made = login(key)["session"]
        if stop:
            raise KeyboardInterrupt
        return len(made.reveal())

    stop = True
    config = CheckpointConfig()
    with pytest.raises(KeyboardInterrupt):
        perdure.run(session, Secret(CANARY), goal="x", store=url, config=config)
    stop = False
    with pytest.raises(ConfigError, match="'session' is not here"):
        perdure.run(session, Secret(CANARY), goal="x", store=url, config=config)
    config = CheckpointConfig(secrets={"session": CANARY + "-session"}.get)
    assert perdure.run(session, Secret(CANARY), goal="x", store=url, config=config) == len(CANARY) + 8
    assert RAN == ["login"]


@pytest.mark.parametrize("wrong", [{"secrets": {"a": "b"}}, {"redact": ("password",)}])
def test_wrong_settings_are_refused_without_being_shown(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"not dict|not tuple"):
        CheckpointConfig(**wrong)
