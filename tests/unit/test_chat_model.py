"""ChatModel against a server that speaks chat completions, well and badly."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.clock import SYSTEM
from perdure.demo.model import configured, the_model
from perdure.errors import ConfigError
from perdure.runners import Agent, ChatModel, ModelError, ToolCall
from perdure.testing.chat_server import ChatServer, Reply

MESSAGES = [{"role": "user", "content": "Judge this."}]
KEY = "sk-very-secret"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Start a server that gives one reply, or what a function of the request says."""
    servers: list[ChatServer] = []

    def start(answer: Reply | Callable[[dict[str, Any]], Reply]) -> ChatServer:
        server = ChatServer(answer if callable(answer) else lambda request: answer)
        servers.append(server)
        server.__enter__()
        monkeypatch.setenv("PERDURE_MODEL_URL", server.url + "/")
        monkeypatch.setenv("PERDURE_MODEL", "small")
        monkeypatch.setenv("PERDURE_MODEL_KEY", KEY)
        return server

    yield start
    for server in servers:
        server.__exit__()


def test_an_answer_comes_whole(serve: Any) -> None:
    server = serve(Reply(("all ", "good")))
    assert configured() and the_model()(MESSAGES).content == "all good"
    [(request, headers)] = server.requests
    assert (request["model"], request["messages"], request["stream"]) == ("small", MESSAGES, False)
    assert headers["Authorization"] == f"Bearer {KEY}"


def test_an_answer_comes_in_pieces(serve: Any) -> None:
    serve(Reply(("all ", "", "göod", "\n")))
    assert list(the_model().stream(MESSAGES)) == ["all ", "göod", "\n"]


def test_a_server_that_does_not_stream_is_understood(serve: Any) -> None:
    serve(Reply(body=b'{"choices":[{"message":{"content":"whole"}}]}', headers={"Content-Type": "application/json"}))
    assert list(the_model().stream(MESSAGES)) == ["whole"]


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("", "/v1/chat/completions"),
        ("/", "/v1/chat/completions"),
        ("/chat/completions", "/v1/chat/completions"),
        ("?api-version=2", "/v1/chat/completions?api-version=2"),
    ],
)
def test_the_base_url_is_taken_in_all_its_forms(serve: Any, monkeypatch: Any, given: str, path: str) -> None:
    server = serve(Reply(("fine",)))
    monkeypatch.setenv("PERDURE_MODEL_URL", server.url + given)
    assert the_model()._target == path
    if "?" not in given:
        assert the_model()(MESSAGES).content == "fine"


@pytest.mark.parametrize("body", [b'{"choices":[{"message":{"content":null}}]}', b'{"choices":[]}', b"{}"])
def test_no_answer_is_an_empty_one(serve: Any, body: bytes) -> None:  # C6 does the rest
    serve(Reply(body=body))
    assert the_model()(MESSAGES).content == ""


def test_a_stream_that_breaks_off_is_an_error_after_the_pieces_that_came(serve: Any) -> None:
    serve(Reply(("half ", "a "), cut=True))
    pieces = []
    with pytest.raises(ModelError, match="broke off"):
        for piece in the_model().stream(MESSAGES):
            pieces.append(piece)
    assert pieces == ["half ", "a "]


@pytest.mark.parametrize(
    ("status", "wait", "seconds"),
    [
        (429, "7", 7.0),
        (429, None, 5.0),
        (503, "2.5", 2.5),
        (429, "soon", 5.0),
        (429, "nan", 5.0),
        (429, "inf", 86400.0),
        (429, "-3", 0.0),
        (429, "Mon, 99 Foo 2020 00:00:00 GMT", 5.0),
    ],
)
def test_a_rate_limit_says_how_long(serve: Any, status: int, wait: str | None, seconds: float) -> None:  # C10
    serve(Reply(status=status, headers={"Retry-After": wait} if wait else {}))
    with pytest.raises(perdure.RateLimited) as limited:
        the_model()(MESSAGES)
    assert limited.value.retry_after == seconds


def test_a_rate_limit_may_name_a_date(serve: Any) -> None:  # C10
    serve(Reply(status=429, headers={"Retry-After": formatdate(SYSTEM.now() + 100, usegmt=True)}))
    with pytest.raises(perdure.RateLimited) as limited:
        next(the_model().stream(MESSAGES))
    assert 90 < limited.value.retry_after <= 101


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(status=500, body=b"out of\nmemory " + b"x" * 5000), "answered 500 Internal Server Error: out of memory"),
        (Reply(status=401, body=b"bad key"), "answered 401"),
        (Reply(status=401, body=b"no such key: " + KEY.encode()), "no such key: [key]"),
        (Reply(status=429, body=b'{"error":{"code":"insufficient_quota"}}'), "answered 429"),
        (Reply(body=b"<html>"), "answered no JSON"),
        (Reply(body=b'"\xff"'), "answered no JSON"),
        (Reply(body=b'{"error":{"message":"overloaded"}}'), "answered an error"),
    ],
)
def test_other_refusals_say_what_came_and_never_the_key(serve: Any, reply: Reply, said: str) -> None:
    serve(reply)
    kind = ConfigError if reply.status == 401 else ModelError  # a wrong key is not tried again
    with pytest.raises(kind) as error:
        the_model()(MESSAGES)
    assert said in str(error.value) and KEY not in str(error.value) and len(str(error.value)) < 400


def test_an_error_in_the_middle_of_a_stream_is_told(serve: Any) -> None:
    serve(Reply(body=b'data: {"choices":[{"delta":{"content":"a"}}]}\n\ndata: {"error":{"message":"broken"}}\n\n'))
    pieces = the_model().stream(MESSAGES)
    assert next(pieces) == "a"
    with pytest.raises(ModelError, match="broken"):
        next(pieces)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PERDURE_MODEL_KEY", f"{KEY}\r\nHost: evil"),
        ("PERDURE_MODEL_KEY", f"{KEY}…"),
        ("PERDURE_MODEL_TIMEOUT", "soon"),
        ("PERDURE_MODEL_TIMEOUT", "-1"),
        ("PERDURE_MODEL_TIMEOUT", "nan"),
        ("PERDURE_MODEL_URL", "http://host:99999/v1"),
        ("PERDURE_MODEL_URL", "http://[::1/v1"),
        ("PERDURE_MODEL_URL", "http://"),
        ("PERDURE_MODEL_URL", "http://a b/v1"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_without_showing_the_key(
    serve: Any, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:  # rel:S8
    server = serve(Reply())
    monkeypatch.setenv(name, value)
    for attempt in (the_model, lambda: the_model()(MESSAGES)):
        with pytest.raises(ConfigError) as error:
            attempt()
        assert "secret" not in str(error.value) and len(str(error.value)) < 200
    assert server.requests == []


def test_silence_is_a_time_out(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    serve(Reply(hold=over))
    monkeypatch.setenv("PERDURE_MODEL_TIMEOUT", "0.2")
    with pytest.raises(TimeoutError, match=r"said nothing for 0\.2 s"):
        the_model()(MESSAGES)
    over.set()


def test_a_server_that_is_not_there_and_an_address_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with ChatServer(lambda request: Reply()) as server:
        url = server.url
    monkeypatch.setenv("PERDURE_MODEL_URL", url)
    with pytest.raises(ModelError, match="Nothing listens at"):
        the_model()(MESSAGES)
    monkeypatch.setenv("PERDURE_MODEL_URL", "me:secret@host")
    with pytest.raises(ConfigError, match="PERDURE_MODEL_URL") as error:
        the_model()(MESSAGES)
    assert "secret" not in str(error.value)


def test_the_whole_crew_asks_the_model_through_every_trouble(
    serve: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:  # C5 C6 C10
    from perdure.demo.crew import build

    first: set[str] = set()

    def answer(request: dict[str, Any]) -> Reply:
        said = request["messages"][0]["content"]
        fresh = said not in first
        first.add(said)
        if request["stream"]:
            if fresh:
                return Reply(("The paper ", "is "), cut=True)
            assert request["messages"][-2] == {"role": "assistant", "content": "The paper is "}
            return Reply(("good.",))
        if "structure" in said and fresh:
            return Reply(status=429, headers={"Retry-After": "0.05"})
        if "repetition" in said and fresh:
            return Reply(("",))
        if "numbers" in said and fresh:
            return Reply(status=500)
        return Reply((f"On {said.split(': ')[1].split('.')[0]}: fine.",))

    serve(answer)
    monkeypatch.delenv("PERDURE_DEMO_PACE", raising=False)
    paper = tmp_path / "paper.md"
    paper.write_text("# Title\n\nText.\n")
    url = f"sqlite:{tmp_path / 'runs.db'}"
    assert perdure.run(build(backoff=0.0), goal="g", store=url, path=str(paper)) == "The paper is good."
    with perdure.Client(url) as client:
        outcomes = {s.name: [a.outcome for a in s.attempts] for s in client.state("g").steps.values()}
    assert outcomes["structure"] == ["waiting", "completed"]
    assert outcomes["repetition"] == ["refused", "completed"]
    assert outcomes["numbers"] == ["failed", "completed"]
    assert outcomes["meta-review"] == ["failed", "completed"]
    assert outcomes["claims"] == ["completed"]


def test_tool_calls_usage_and_options_pass_both_ways(serve: Any) -> None:  # X6
    body = (
        b'{"choices":[{"message":{"content":null,"tool_calls":[{"id":"c1","type":"function","function":'
        b'{"name":"look","arguments":"{\\"at\\": 3}"}}]}}],"usage":'
        b'{"prompt_tokens":1000,"completion_tokens":10,"cost":9}}'
    )
    server = serve(Reply(body=body))
    tools: Any = [{"type": "function", "function": {"name": "look", "description": "", "parameters": {}}}]
    reply = ChatModel(server.url, "small", key=KEY, prices=(2.0, 10.0), temperature=0.5)(MESSAGES, tools)  # type: ignore[arg-type]
    assert reply.tool_calls == (ToolCall("look", {"at": 3}, "c1"),) and reply.content == ""
    assert (reply.usage.input_tokens, reply.usage.output_tokens, reply.usage.cost) == (1000, 10, 0.0021)
    assert the_model()(MESSAGES).usage.cost == 9
    first, second = (request for request, _ in server.requests)
    assert first["tools"] == tools and first["temperature"] == 0.5 and "tools" not in second


@pytest.mark.parametrize("usage", ["null", "[]", '{"prompt_tokens":"many","completion_tokens":-1,"cost":null}'])
def test_usage_that_is_none_counts_as_nothing(serve: Any, usage: str) -> None:
    serve(Reply(body=b'{"choices":[{"message":{"content":"a"}}],"usage":' + usage.encode() + b"}"))
    assert not the_model()(MESSAGES).usage


def test_the_key_is_in_no_repr() -> None:  # rel:S8
    assert KEY not in repr(ChatModel("http://me:secret@127.0.0.1:1/v1?token=secret", key=KEY))
    assert "secret" not in repr(ChatModel("http://me:secret@127.0.0.1:1/v1?token=secret", key=KEY))


def test_an_agent_works_with_an_endpoint_from_question_to_answer(serve: Any, tmp_path: Path) -> None:  # C10 W4 X6
    limited: list[int] = []

    def answer(request: dict[str, Any]) -> Reply:
        usage = {"prompt_tokens": 10, "completion_tokens": 2}
        if request["messages"][-1]["role"] == "user":
            call = {"id": "c7", "type": "function", "function": {"name": "look", "arguments": '{"what": "cat"}'}}
            message: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [call]}
        elif not limited:
            limited.append(1)
            return Reply(status=429, headers={"Retry-After": "0.05"})
        else:
            message = {"role": "assistant", "content": f"I saw {request['messages'][-1]['content']}"}
        return Reply(body=json.dumps({"choices": [{"message": message}], "usage": usage}).encode())

    def look(what: str) -> str:
        """Look at something."""
        return f"a {what}"

    server = serve(answer)
    agent = Agent(ChatModel(server.url, "small", key=KEY), [look], instructions="Be brief.")
    url = f"sqlite:{tmp_path / 'runs.db'}"
    assert perdure.run(agent, "Look at the cat.", goal="g", store=url) == "I saw a cat"
    last, _ = server.requests[-1]
    assert [message["role"] for message in last["messages"]] == ["system", "user", "assistant", "tool"]
    assert last["messages"][-1] == {"role": "tool", "content": "a cat", "tool_call_id": "c7"}
    assert last["messages"][2]["tool_calls"][0]["id"] == "c7"
    assert last["tools"][0]["function"]["parameters"]["required"] == ["what"]
    with perdure.Client(url) as client:
        state = client.state("g")
    assert (state.usage.calls, state.usage.tokens) == (2, 24), "what was turned away is no call"
    assert [a.outcome for a in state.steps[3].attempts] == ["waiting", "completed"]
    told = b"".join(path.read_bytes() for path in tmp_path.glob("runs.db*") if path.is_file())
    assert KEY.encode() not in told
