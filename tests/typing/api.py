"""What type checkers see of the public API. Checked by ``make check`` (mypy --strict); never executed."""

from typing import assert_type

import perdure
from perdure.runners import Agent, Failed, Graph, Reply, Runner, tool
from perdure.testing import crashtest


@perdure.step
def count(text: str) -> int:
    return len(text)


@perdure.step(retries=2, on_refused="flag")
async def fetch(url: str, *, limit: int = 3) -> str:
    return url[:limit]


@perdure.flow
async def both(url: str) -> tuple[str, int]:
    text = await fetch(url, limit=4)
    assert_type(text, str)
    texts = await perdure.gather(fetch("a"), fetch("b"))
    assert_type(texts, list[str])
    return text, count(text)


@perdure.flow
def plain(text: str) -> int:
    return count(text)


assert_type(perdure.run(both, "u", goal="g"), tuple[str, int])
assert_type(perdure.run(plain, "t", goal="g"), int)
count(3)  # type: ignore[arg-type]
_ = fetch("u", size=3)  # type: ignore[call-arg]

found = perdure.child(both)("u")
bad = perdure.child(plain, on_error="return")("t")
assert_type(perdure.child(plain)("t"), int)
assert_type(bad, int | Failed)
perdure.child(plain)(3)  # type: ignore[arg-type]


@tool(cache=True)
def look(what: str) -> list[str]:
    return [what]


assert_type(look("x"), list[str])
look(3)  # type: ignore[arg-type]
agent = Agent(lambda messages, tools: Reply("fine"), [look], instructions="Be good.")
with Runner("memory:") as runner:
    assert_type(runner.execute_sync(Graph({"a": plain}, inputs=["text"]), "g", {"text": "t"}).status, str)

with perdure.Client("memory:") as client:
    assert_type(client.export("all.tgz").damaged, dict[str, str])
    assert_type(client.import_archive("all.tgz", by="ann").paused, list[str])
    client.import_archive("all.tgz")  # type: ignore[call-arg]
    assert_type(client.fork("g", by="ann", after="load", inputs={"topic": 1}).status, str | None)
    client.fork("g")  # type: ignore[call-arg]


def tested() -> None:
    report = crashtest(both, {"url": "a"}, answers={"ask": True}, points=8, store="file")
    report.assert_ok()
    assert_type(report.ok, bool)
    assert_type([finding.what for finding in report.findings], list[str])
