"""The demo's model client against a server that speaks chat completions, well and badly."""

from __future__ import annotations

import threading
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.clock import SYSTEM
from perdure.demo import model
from perdure.errors import ConfigError
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
    assert model.configured() and model.chat(MESSAGES) == "all good"
    [(request, headers)] = server.requests
    assert (request["model"], request["messages"], request["stream"]) == ("small", MESSAGES, False)
    assert headers["Authorization"] == f"Bearer {KEY}"


def test_an_answer_comes_in_pieces(serve: Any) -> None:
    serve(Reply(("all ", "", "göod", "\n")))
    assert list(model.stream(MESSAGES)) == ["all ", "göod", "\n"]


def test_a_server_that_does_not_stream_is_understood(serve: Any) -> None:
    serve(Reply(body=b'{"choices":[{"message":{"content":"whole"}}]}', headers={"Content-Type": "application/json"}))
    assert list(model.stream(MESSAGES)) == ["whole"]


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
    assert model._endpoint().target == path
    if "?" not in given:
        assert model.chat(MESSAGES) == "fine"


@pytest.mark.parametrize("body", [b'{"choices":[{"message":{"content":null}}]}', b'{"choices":[]}', b"{}"])
def test_no_answer_is_an_empty_one(serve: Any, body: bytes) -> None:  # C6 does the rest
    serve(Reply(body=body))
    assert model.chat(MESSAGES) == ""


def test_a_stream_that_breaks_off_is_an_error_after_the_pieces_that_came(serve: Any) -> None:
    serve(Reply(("half ", "a "), cut=True))
    pieces = []
    with pytest.raises(model.ModelError, match="broke off"):
        for piece in model.stream(MESSAGES):
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
        model.chat(MESSAGES)
    assert limited.value.retry_after == seconds


def test_a_rate_limit_may_name_a_date(serve: Any) -> None:  # C10
    serve(Reply(status=429, headers={"Retry-After": formatdate(SYSTEM.now() + 100, usegmt=True)}))
    with pytest.raises(perdure.RateLimited) as limited:
        next(model.stream(MESSAGES))
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
    kind = ConfigError if reply.status == 401 else model.ModelError  # a wrong key is not tried again
    with pytest.raises(kind) as error:
        model.chat(MESSAGES)
    assert said in str(error.value) and KEY not in str(error.value) and len(str(error.value)) < 400


def test_an_error_in_the_middle_of_a_stream_is_told(serve: Any) -> None:
    serve(Reply(body=b'data: {"choices":[{"delta":{"content":"a"}}]}\n\ndata: {"error":{"message":"broken"}}\n\n'))
    pieces = model.stream(MESSAGES)
    assert next(pieces) == "a"
    with pytest.raises(model.ModelError, match="broken"):
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
    for attempt in (model.check, lambda: model.chat(MESSAGES)):
        with pytest.raises(ConfigError) as error:
            attempt()
        assert "secret" not in str(error.value) and len(str(error.value)) < 200
    assert server.requests == []


def test_silence_is_a_time_out(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    serve(Reply(hold=over))
    monkeypatch.setenv("PERDURE_MODEL_TIMEOUT", "0.2")
    with pytest.raises(TimeoutError, match=r"said nothing for 0\.2 s"):
        model.chat(MESSAGES)
    over.set()


def test_a_server_that_is_not_there_and_an_address_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with ChatServer(lambda request: Reply()) as server:
        url = server.url
    monkeypatch.setenv("PERDURE_MODEL_URL", url)
    with pytest.raises(model.ModelError, match="Nothing listens at"):
        model.chat(MESSAGES)
    monkeypatch.setenv("PERDURE_MODEL_URL", "me:secret@host")
    with pytest.raises(ConfigError, match="PERDURE_MODEL_URL") as error:
        model.chat(MESSAGES)
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
