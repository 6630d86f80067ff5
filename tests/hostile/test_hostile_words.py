"""What a person, a file or an endpoint may say: TOML, store URLs, command lines, replies (rel:B1 B4 B6 S4)."""

from __future__ import annotations

import io
import os
import random
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hostile_journals import Judge
from hypothesis import given, settings
from hypothesis import strategies as st

import perdure
from perdure.cli import main
from perdure.cli.target import parse_inputs
from perdure.clock import SYSTEM
from perdure.errors import ConfigError, PerdureError
from perdure.model import RunKey, key_named
from perdure.runners import endpoint
from perdure.runners.endpoint import ChatModel, ModelError
from perdure.runners.toml import MAX_TOML, load_pipeline
from perdure.runtime.execute import as_function
from perdure.stores import MAX_URL, open_store
from perdure.stores.postgres_link import parse
from perdure.stores.redis_keys import Keys
from perdure.stores.redis_link import Link
from perdure.stores.redis_url import target

LONG = pytest.mark.long
CHUNKS = [0, *(pytest.param(chunk, marks=LONG) for chunk in range(1, 21))]

# -- TOML --------------------------------------------------------------------------------------------------------------

PIPELINE = """
name = "review"
inputs = ["tone"]
[[stage]]
run = "steps:load"
name = "paper"
retries = 2
[[stage]]
parallel = [{ run = "steps:three", name = "three" }, { run = "steps:four", name = "four", timeout = 60 }]
[[stage]]
crew = "experts"
experts = [{ run = "steps:one", given = { strict = true } }, { run = "steps:two" }]
gather = { run = "steps:all" }
require = 1
"""
VALUES = [
    *("1", "-1", "1e999", "inf", "nan", "9223372036854775808", "9" * 5000, "true", "1979-05-27", "07:32:00"),
    *('"x"', '""', '"\\u0000"', '"a/b"', '"steps:load"', '"any"', '"ask"', f'"{"x" * 2000}"'),
    *("[]", "{}", "[1]", '["a","a"]', "{a=1}", "[[[]]]", "[" * 2000, '["steps:load","steps:load"]'),
    *('{run="a:b",name=1}', "{run=1}"),
]
NAMES = ["name", "inputs", "stage", "run", "retries", "backoff", "timeout", "on_refused", "on_crash", "given", "a.b"]
NAMES += ["parallel", "crew", "experts", "require", "x"]


class Steps:
    """What the pipeline's functions are."""

    def load(text: str = "") -> str:
        return text

    def one(paper: str = "", strict: bool = False) -> str:
        return paper

    def two(paper: str = "") -> str:
        return paper

    three = four = two

    def all(missing: object = None, **given: object) -> object:
        return given


def load(name: str, _folder: Path) -> Any:
    found = getattr(Steps, name.rpartition(":")[2], None)
    if found is None:
        raise ConfigError(f"There is no {name[:20]!r}.")
    return found


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_hostile_toml_file_gives_a_pipeline_or_our_error(chunk: int, tmp_path: Path) -> None:
    judge, path = Judge(), tmp_path / "p.toml"
    path.write_text(PIPELINE)
    assert load_pipeline(path, load) is not None
    for seed in range(chunk * 400, chunk * 400 + 400):
        rand, lines = random.Random(seed), PIPELINE.splitlines()
        for _ in range(rand.randint(1, 4)):
            place, way = rand.randrange(len(lines)), rand.random()
            if way < 0.5 and "=" in lines[place]:
                lines[place] = f"{lines[place].partition('=')[0]}= {rand.choice(VALUES)}"
            elif way < 0.7:
                lines.insert(place, f"{rand.choice(NAMES)} = {rand.choice(VALUES)}")
            elif way < 0.8:
                del lines[place]
            else:
                at = rand.randrange(len(lines[place]) + 1)
                lines[place] = lines[place][:at] + rand.choice("\0\"'.=[]{}\u202e\n#") + lines[place][at + 1 :]
        path.write_text("\n".join(lines))
        judge("toml", seed, lambda: load_pipeline(path, load))
    judge.verdict()
    assert 0 < judge.values < judge.calls


BOMBS = {
    "long keys": "a." * (MAX_TOML // 2 - 9) + "a = 1",
    "long quoted keys": '"".' * (MAX_TOML // 3 - 9) + '"" = 1',
    "deep tables": ("[" + "a." * 2000 + "a]\n") * (MAX_TOML // 4004),
    "deep arrays": "a = " + "[" * (MAX_TOML - 9),
    "deep inline": "a = " + "{a=" * (MAX_TOML // 3 - 9),
    "digits": "a = " + "9" * (MAX_TOML - 9),
    "unknown keys": "".join(f"k{n} = 1\n" for n in range(MAX_TOML // 14)),
    "one long key": "a" * (MAX_TOML - 9) + " = 1",
    "too long": "#" * (MAX_TOML + 1),
    "no text": "\ufffd\0",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_toml_bomb_is_refused_in_a_second_and_in_little_memory(name: str, tmp_path: Path) -> None:
    # rel:B4; tomllib by itself takes 68 GB for the first of them
    path = tmp_path / "bomb.toml"
    path.write_text(BOMBS[name])
    began = SYSTEM.monotonic()
    with pytest.raises(ConfigError) as told:
        load_pipeline(path, load)
    assert SYSTEM.monotonic() - began < 5 and len(str(told.value)) < 10_000  # a busy machine: it takes half a second


# -- URLs --------------------------------------------------------------------------------------------------------------

WORDS = [
    *(
        "memory:",
        "file:",
        "sqlite:",
        "postgresql://",
        "redis://",
        "valkeys://",
        "/",
        "//",
        "///",
        "~",
        "~nobodyx",
        "..",
    ),
    *(
        "a",
        "b.db",
        "loop",
        "dir",
        "file",
        "?",
        "&",
        "=",
        "schema",
        "lease",
        "prefix",
        "waitaof",
        "127.0.0.1",
        ":1",
        ":",
    ),
    *(
        "@",
        "u:p@",
        "%",
        "%2e%2e",
        "%00",
        "%ff",
        "#",
        "[",
        "]",
        "[::1]",
        " ",
        "'",
        '"',
        ";",
        "inf",
        "nan",
        "1e999",
        "-1",
        "/0",
    ),
    *("options=-c%20x", "service=x", "sslmode=require", "connect_timeout=1", "/99999999999", "ssl_cert_reqs=none"),
    *("db=x", "username=a", "health_check_interval=x", "hostaddr=1", "9" * 30, "x" * 300),
    *("\0", "\ud800", "\udcff", "\u202e", "\r\n", "\u00e9"),
]


@pytest.mark.parametrize("chunk", CHUNKS)
def test_any_text_is_the_url_of_a_store_or_our_error_and_makes_nothing(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    judge = Judge()
    for seed in range(chunk * 1000, chunk * 1000 + 1000):
        rand = random.Random(seed)
        url = "".join(rand.choices(WORDS, k=rand.randint(1, 8)))
        url = rand.choice(("", "file:", "sqlite:", "postgresql://h:1/x?", "redis://h:1/0?", "sqlite:///")) + url
        scheme = url.partition(":")[0].lower()
        if scheme in ("postgresql", "postgres"):
            judge(url, seed, lambda url=url: parse(url))
        elif scheme in ("redis", "rediss", "valkey", "valkeys"):
            judge(url, seed, lambda url=url: Link(target(url), Keys("x"), SYSTEM).close())
        else:
            judge(url, seed, lambda url=url: open_store(url, create=False).close())
    judge.verdict()
    assert judge.values > 4
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "file").read_text() == "mine"


@settings(max_examples=150)
@given(st.text(max_size=60), st.sampled_from(["", "file:", "sqlite:", "redis://", "postgresql://h/d?"]))
def test_hypothesis_finds_no_url_either(text: str, scheme: str) -> None:
    url = scheme + text
    if scheme.startswith(("redis", "postgresql")) or url.lower().startswith(("redis", "valkey", "postgres")):
        call = parse if scheme.startswith("p") else target
    else:
        call = lambda url: open_store(url, create=False).close()  # noqa: E731
    try:
        call(url)
    except PerdureError as error:
        assert "\n" not in str(error)


def test_a_url_longer_than_any_is_refused() -> None:
    with pytest.raises(ConfigError) as told:
        open_store("sqlite:" + "x" * MAX_URL)
    assert len(str(told.value)) < 300


# -- names and the command line ----------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(st.text(max_size=40) | st.text("#0\u0663 ab/.\\", max_size=12))
def test_any_text_is_a_name_or_our_error_and_what_names_a_run_names_one(text: str) -> None:  # rel:B6
    try:
        key = RunKey.of(text)
    except ConfigError as error:
        assert len(str(error)) < 400
    else:
        assert key_named(str(key)) == key and text == text.strip()
    named = key_named(text)
    assert named is None or named.episode >= 0


TARGET = as_function(lambda text, count=1, tags=None: text)
ARGUMENTS = ["", "-", "--", "--json", "-i", "text=@/dev/null", "a=b", "R", "R#1", "--goal", "--episode", "-1", "\u202e"]
ARGUMENTS += ["9" * 400, "x" * 3000]
COMMANDS = ["run", "resume", "ls", "show", "output", "tail", "transcript", "files", "graph", "questions", "answer"]
COMMANDS += ["signal", "pause", "retry", "cancel", "submit", "check", "schema"]


@pytest.mark.parametrize("chunk", CHUNKS[:6])
def test_any_command_line_ends_with_a_known_exit_code(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERDURE_STORE", f"file:{tmp_path}/store")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n"))
    perdure.run(lambda: 1, goal="R")
    judge = Judge(patience=5.0)
    for seed in range(chunk * 60, chunk * 60 + 60):
        rand = random.Random(seed)
        words = [rand.choice(COMMANDS), *rand.choices(ARGUMENTS, k=rand.randint(0, 4))]

        def call(words: list[str] = words) -> None:
            assert main(words) in (0, 1, 2, 3, 4, 5, 6), words

        judge(str(words)[:200], seed, call)
    judge.verdict()


def test_an_input_from_a_file_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:  # rel:B1
    monkeypatch.setattr("perdure.cli.target.MAX_VALUE", 100_000)
    for place in ("/dev/zero", "/dev/urandom"):
        with pytest.raises(ConfigError, match="cannot be read"):
            parse_inputs(TARGET, [f"text=@{place}"])


def test_an_input_may_come_from_a_pipe() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"text\r\nmore")
    os.close(writer)
    assert parse_inputs(TARGET, [f"text=@/dev/fd/{reader}"]) == {"text": "text\nmore"}
    os.close(reader)


# -- replies of an endpoint --------------------------------------------------------------------------------------------


class Says(BaseHTTPRequestHandler):
    body = b""
    kind = "application/json"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", self.kind)
        self.end_headers()
        try:
            for start in range(0, len(self.body), 2**16):
                self.wfile.write(self.body[start : start + 2**16])
        except OSError:  # it has heard enough
            pass

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def model() -> Iterator[ChatModel]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Says)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield ChatModel(f"http://127.0.0.1:{server.server_port}/v1", key="k")
    server.shutdown()
    server.server_close()


USER: Any = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"[" * 100_000, "no JSON"),
        (b'{"choices":' + b"[" * 5000 + b"]" * 5000 + b"}", "no JSON"),
        (b'{"a":1e999}', "no JSON"),
        (b"\xff", "no JSON"),
        (b'"' + b"x" * 300_000 + b'"', "more than 200,000 bytes"),
    ],
)
def test_a_reply_without_end_or_sense_is_an_error_of_the_model(
    model: ChatModel, body: bytes, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # rel:B1 B4
    monkeypatch.setattr(endpoint, "MAX_REPLY", 200_000)
    monkeypatch.setattr(Says, "body", body)
    with pytest.raises(ModelError, match=said):
        model(USER)
    monkeypatch.setattr(Says, "kind", "text/event-stream")
    monkeypatch.setattr(Says, "body", b"data: " + body + b"\n")
    with pytest.raises(ModelError, match=re.escape(said)):
        list(model.stream(USER))
    monkeypatch.setattr(Says, "body", b": keep alive\n" * 50_000)
    with pytest.raises(ModelError, match="more than 200,000 bytes"):
        list(model.stream(USER))
