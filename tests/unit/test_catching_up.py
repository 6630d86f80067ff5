"""Resuming by way of snapshots, and agents that go on where they were without going through what they did (W4 X8)."""

from __future__ import annotations

import copy
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import perdure
from perdure import journal as j
from perdure import snapshot
from perdure.book import Kind, Packed, Steps
from perdure.errors import PerdureError
from perdure.fold import State
from perdure.life import Life
from perdure.model import RunKey
from perdure.record import Attempt, Identity
from perdure.record import Step as Step_
from perdure.runners import Agent, Reply, ToolCall, tool
from perdure.runners.transcript import transcript
from perdure.runtime import past
from perdure.runtime.steps import Step

RAN: Counter[str] = Counter()
STOP: list[int] = []
"""after so many bodies the process is as good as dead"""


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    RAN.clear()
    STOP.clear()
    monkeypatch.setattr(snapshot, "_FEW", 6)  # short runs are to have snapshots too
    monkeypatch.setattr(past, "_AHEAD", 3)


@pytest.fixture(params=["sqlite:{}/runs.db", "file:{}"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    name = request.param.format(tmp_path)
    return str(name)


def ran(what: str) -> None:
    RAN[what] += 1
    if STOP and sum(RAN.values()) >= STOP[0] and not what.startswith("fails"):  # whose errors are told to the model
        RAN[what] -= 1
        if not RAN[what]:
            del RAN[what]
        STOP.clear()
        raise Stopped


class Stopped(Exception):
    """What ends a life in the middle of a body."""


@tool
def double(n: int) -> int:
    ran(f"double {n}")
    return 2 * n


@tool
async def slowly(n: int) -> int:
    ran(f"slowly {n}")
    return n


class Answers:
    """A model that answers by how long the conversation is, as the run has it."""

    def __init__(self, name: str, replies: Sequence[Any]) -> None:
        self.name, self.replies = name, replies

    def __call__(self, messages: list[Any], tools: Sequence[Any]) -> Any:
        heard = sum(message["role"] == "assistant" for message in messages)
        said = len([key for key in RAN if key.startswith(f"{self.name} says")])
        ran(f"{self.name} says {said}")
        return self.replies[min(said if SUMMARISED in str(messages) else heard, len(self.replies) - 1)]


SUMMARISED = "Summary of the conversation so far"


def calls(*numbers: int, name: str = "double") -> Reply:
    return Reply(f"{numbers}", tuple(ToolCall(name, {"n": n}) for n in numbers))


def plain() -> Agent:
    """The same call again and again, alone and beside itself."""
    replies = [calls(1), calls(2), calls(1), calls(1, 1), calls(2), calls(1), "done"]
    return Agent(Answers("model", replies), [double], instructions="Count.", retries=0)


def compacting() -> Agent:
    def compact(messages: Sequence[Any]) -> str:
        ran(f"compact {len([key for key in RAN if key.startswith('compact')])}")
        return f"{len(messages)} messages"

    replies = [calls(n) for n in range(9)]
    return Agent(
        Answers("model", [*replies, "done"]),
        [double],
        retries=0,
        transcript_limit=100,
        on_overflow="compact",
        compact=compact,
    )


def nested() -> Agent:
    inner = Agent(Answers("inner", [calls(5), calls(6), calls(5), "inner done"]), [double], name="inner", retries=0)
    replies = [calls(1), Reply("", (ToolCall("inner", {"task": "a"}),)), calls(2)]
    return Agent(
        Answers("model", [*replies, Reply("", (ToolCall("inner", {"task": "b"}),)), "done"]), [inner, double], retries=0
    )


def asynchronous() -> Agent:
    replies = [calls(1, name="slowly"), calls(1, 2, name="slowly"), calls(1), calls(3, name="slowly"), "done"]
    return Agent(Answers("model", replies), [slowly, double], retries=0)


def telling() -> Agent:
    """Errors that the model is told, and results from the cache."""

    @tool(on_error="tell")
    def fails(n: int) -> int:
        ran(f"fails {n}")
        raise ValueError("no")

    @tool(cache=True)
    def cached(n: int) -> int:
        ran(f"cached {n}")
        return n

    asked = [(1, "fails"), (1, "cached"), (1, "cached"), (1, "fails"), (2, "cached"), (1, "double"), (1, "cached")]
    replies = [calls(n, name=name) for n, name in asked]
    return Agent(Answers("model", [*replies, "done"]), [fails, cached, double], retries=0)


SHAPES: dict[str, Callable[[], Agent]] = {
    "plain": plain,
    "compacting": compacting,
    "nested": nested,
    "asynchronous": asynchronous,
    "telling": telling,
}


def run(agent: Agent, url: str) -> object:
    return perdure.run(agent, "go", goal="g", store=url)


def said(url: str) -> list[tuple[str, str, str, int]]:
    with perdure.Client(url) as client:
        return [(line.scope, line.role, line.content, line.covers) for line in transcript(client, "g")]


@pytest.mark.parametrize("shape", SHAPES)
def test_an_agent_that_is_stopped_anywhere_ends_as_one_that_never_was(shape: str, tmp_path: Path) -> None:  # B7 W4
    whole = f"sqlite:{tmp_path}/whole.db"
    result = run(SHAPES[shape](), whole)
    bodies, expected = dict(RAN), said(whole)
    assert sum(bodies.values()) >= 10
    for place in range(1, sum(bodies.values()) + 1):
        url = f"sqlite:{tmp_path}/{place}.db"
        RAN.clear()
        STOP[:] = [place]
        with pytest.raises(Exception):  # noqa: B017 - a tool's error is told in many ways
            run(SHAPES[shape](), url)
        assert run(SHAPES[shape](), url) == result
        assert (+RAN, said(url)) == (bodies, expected), f"stopped in body {place}"
        with perdure.Client(url) as client:
            end = list(client.entries("g"))[-1]
            recorded = sum(step.recorded for step in client.state("g").steps.values())
        assert isinstance(end, j.RunCompleted) and end.unused == () and 0 <= end.reused < recorded


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_not_gone_through_counts_as_if_it_were(
    shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # B6
    run(SHAPES[shape](), f"sqlite:{tmp_path}/whole.db")
    STOP[:] = [2 * sum(RAN.values()) // 3]
    RAN.clear()
    with pytest.raises(Exception):  # noqa: B017
        run(SHAPES[shape](), f"sqlite:{tmp_path}/a.db")
    there, here = apsw.Connection(f"{tmp_path}/b.db"), apsw.Connection(f"{tmp_path}/a.db")
    with there.backup("main", here, "main") as backup:
        backup.step()
    there.close()
    here.close()
    ended, ran_before = [], +RAN
    for name, may_skip in (("a", Life.may_skip), ("b", property(lambda life: False))):
        RAN.clear()
        RAN.update(ran_before)
        monkeypatch.setattr(Life, "may_skip", may_skip)
        run(SHAPES[shape](), f"sqlite:{tmp_path}/{name}.db")
        with perdure.Client(f"sqlite:{tmp_path}/{name}.db") as client:
            end = list(client.entries("g"))[-1]
            reasons = [(reason.number, reason.decision) for reason in client.explain("g").steps]
        assert isinstance(end, j.RunCompleted)
        ended.append((end.reused, end.saved, end.unused, end.saved_usage, reasons))
    assert ended[0] == ended[1]


def test_an_agent_that_goes_on_asks_for_nothing_that_it_had_done(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # W4: its state is known
    replies = [calls(n % 3) for n in range(40)]
    STOP[:] = [75]
    with pytest.raises(Stopped):
        run(Agent(Answers("model", [*replies, "done"]), [double], retries=0), url)
    asked: list[str] = []
    request = Step.request

    def counting(self: Step[..., Any], *args: Any) -> Any:
        asked.append(self.name)
        return request(self, *args)

    monkeypatch.setattr(Step, "request", counting)
    assert run(Agent(Answers("model", [*replies, "done"]), [double], retries=0), url) == "done"
    assert len(asked) == 2 * 4 + 1, "the last reply that it had, what came of that, and all after it"
    with perdure.Client(url) as client:
        entries = list(client.entries("g"))
        explained = client.explain("g")
    assert explained.count("reused") == 75 - 1
    assert sum(len(entry.steps) for entry in entries if isinstance(entry, j.StepsReused)) < 10, "many are told as spans"


@pytest.mark.parametrize("change", ["renew", "edit", "rerun"])
def test_what_has_changed_is_gone_through(change: str, url: str) -> None:  # W3
    def agent(factor: int) -> Agent:
        def times(n: int) -> int:
            ran(f"times {n}")
            return factor * n

        return Agent(Answers("model", [*(calls(n, name="times") for n in range(6)), "done"]), [times], retries=0)

    STOP[:] = [12]
    with pytest.raises(Stopped):
        run(agent(2), url)
    if change == "rerun":
        assert perdure.run(agent(2), "go", goal="g", store=url, rerun="times") == "done"
        assert RAN["times 0"] == 2
    elif change == "edit":
        assert run(agent(3), url) == "done"
        assert RAN["times 0"] == 1
    else:
        assert perdure.run(agent(3), "go", goal="g", store=url, rerun="changed") == "done"
        assert RAN["times 0"] == 2


def test_a_flow_is_resumed_from_its_snapshot_as_from_its_journal(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @perdure.step
    def work(n: int, text: str) -> str:
        ran(f"work {n}")
        return f"{text} {n};" * (n + 1)

    @perdure.flow
    def flow(text: str) -> str:
        return "".join(work(n, text) for n in range(20))

    STOP[:] = [19]
    caplog.set_level("INFO", "perdure")
    with pytest.raises(Stopped):
        perdure.run(flow, "one", goal="g", store=url)
    folded: list[int] = []
    take = State.take
    monkeypatch.setattr(State, "take", lambda state, line: (folded.append(1), take(state, line))[1])
    assert perdure.run(flow, "one", goal="g", store=url) == "".join(f"one {n};" * (n + 1) for n in range(20))
    assert max(RAN.values()) == 1 and 0 < len(folded) < 20, "most of it was not folded"
    assert "18 steps are recorded" in caplog.text


def test_a_snapshot_that_is_damaged_or_of_another_journal_is_not_believed(url: str) -> None:  # rel:R6
    @perdure.step
    def work(n: int) -> int:
        ran(f"work {n}")
        return n

    @perdure.flow
    def flow() -> int:
        return sum(work(n) for n in range(12))

    STOP[:] = [12]
    with perdure.CheckpointManager(url) as manager:
        with pytest.raises(Stopped):
            manager.run_sync(flow, goal="g")
        writer = manager._lives.writer
        assert writer is not None
        store = writer.store
        kept = store.capabilities.snapshots
        assert kept is not None
        (row,) = store.runs()
        found = writer.call(lambda: kept.load(row.key)).result()
        assert found is not None
        seq, content = found
        records = store.read(row.key)
        sound = snapshot.restore(row.key, content, records[seq - 1])
        assert sound is not None
        body = snapshot.take(sound)
        assert snapshot.restore(row.key, content, records[seq - 2]) is None, "of another record"
        assert snapshot.restore(row.key, b"another form" + content[12:], records[seq - 1]) is None
        for place in range(40, len(content), 7):
            broken = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
            found_so = snapshot.restore(row.key, broken, records[seq - 1])
            assert found_so is None or snapshot.take(found_so) == body, "bits that fill a byte up say nothing"
            assert snapshot.restore(row.key, content[:place], records[seq - 1]) is None
        lease = writer.call(lambda: store.claim(row.key)).result()
        writer.call(lambda: (kept.save(lease, seq, content[:-7]), store.release(lease))).result()
        assert manager.run_sync(flow, goal="g") == 66
    assert max(RAN.values()) == 1


def test_to_take_in_that_few_steps_were_reused_takes_no_look_at_all_others() -> None:  # X8
    steps = Steps(packed(1000))
    assert steps.unknown((7, 1000), ()) is None
    assert "by_number" not in steps._index.__dict__
    assert steps.unknown((7, 0), ()) == 0
    assert steps.unknown((), ((1, 1000),)) is None
    assert steps.unknown((3,), ((1, 10**12),)) == 1001


def packed(count: int) -> Packed:
    """So many steps in columns, numbered from 1."""
    made = Packed()
    for number in range(1, count + 1):
        step = Step_(number, Identity("", "work", f"{number:032x}", 0), (), "", begun=number, at=number + 1)
        step.attempts = [Attempt(1, 0.0, 1.0, "completed")]
        made.add(step, {Kind("", "work", "", False, False): 0} if made.kinds else {})
    return made


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30)), max_size=8))
def test_numbers_said_as_spans_are_the_same_numbers_each_once(parts: list[tuple[int, int]]) -> None:
    numbers = [n for first, count in parts for n in range(first, first + count)]
    single, spans = j.spans_of(numbers)
    said = [*single, *(n for first, last in spans for n in range(first, last + 1))]
    assert sorted(said) == sorted(set(numbers))
    assert all(last - first >= 8 for first, last in spans), "two numbers are worth it for nine"
    alone = {n for n in set(numbers) if not {n - 1, n + 1} & set(numbers)}
    assert alone <= set(single)


@pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.long)])
def test_a_snapshot_that_somebody_made_up_harms_nobody(tmp_path: Path, every: int) -> None:  # rel:S1 rel:R6
    url = f"sqlite:{tmp_path}/runs.db"

    @perdure.step
    def work(n: int) -> int:
        ran(f"work {n}")
        return n + 1

    @perdure.flow
    def flow() -> int:
        return sum(work(n) for n in range(9))

    STOP[:] = [9]
    with pytest.raises(Stopped):
        perdure.run(flow, goal="g", store=url)
    sound = apsw.Connection(f"{tmp_path}/runs.db")
    ((seq, content),) = sound.execute("SELECT seq, content FROM perdure_snapshots").fetchall()
    body, told, columns = zlib.decompress(content[40:]).split(b"\n", 2)
    head = msgspec.json.decode(told)
    parts = [msgspec.json.decode(body), head, by_name(columns, head["count"])]
    believed = gone_on = 0
    for number, (path, value) in [*enumerate(lies(*parts))][::every]:
        lie = copy.deepcopy(parts)
        part = lie
        for name in path[:-1]:
            part = part[name]
        part[path[-1]] = value
        said = b"\n".join((msgspec.json.encode(lie[0]), msgspec.json.encode(lie[1]), b"".join(lie[2].values())))
        made_up = content[:40] + zlib.compress(said, 1)
        believed += snapshot.restore(RunKey("g"), made_up, record(sound, seq)) is not None
        sound.execute("UPDATE perdure_snapshots SET content = ?", (made_up,))
        place = tmp_path / f"copy-{number}.db"
        with apsw.Connection(str(place)) as there, there.backup("main", sound, "main") as backup:
            backup.step()
        there.close()
        try:
            perdure.run(flow, goal="g", store=f"sqlite:{place}")
            gone_on += 1
        except PerdureError:
            pass
        except Exception as error:
            pytest.fail(f"{path} = {value!r}: {error!r}")
    assert believed > 9 and gone_on > 9, "many lies are not seen at once, and many do no harm"
    sound.close()


def record(db: apsw.Connection, seq: int) -> bytes:
    ((found,),) = db.execute("SELECT record FROM perdure_journal WHERE seq = ?", (seq,)).fetchall()
    assert isinstance(found, bytes)
    return found


def by_name(columns: bytes, count: int) -> dict[str, bytes]:
    """The columns of so many steps."""
    numbers = ("kind", "number", "n", "begun", "at", "started", "ended", "seconds")
    widths = {"fingerprint": 16} | dict.fromkeys(numbers, 8)
    found, at = dict[str, bytes](), 0
    for name, width in widths.items():
        found[name], at = columns[at : at + width * count], at + width * count
    assert at == len(columns)
    return found


def lies(
    body: dict[str, Any], told: dict[str, Any], columns: dict[str, bytes]
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Places in a snapshot, and what else could stand there."""
    for part in body:
        yield (0, part), [] if isinstance(body[part], dict) else {}
    for name, told in body["facts"].items():
        for other in (None, 0, -1, 10**9, "", "x", [], {}, {"completed": 1}):
            if type(other) is not type(told) or other != told:
                yield (0, "facts", name), other
    for name in told:
        for value in (None, 0, -1, 10**18, "x", [], {}, {"3": {"calls": 7}}):
            yield (1, name), value
    for name, numbers in columns.items():
        for other in (b"", numbers[:-1], numbers[:-8], numbers[8:] + b"\xff" * 8, bytes(len(numbers)), numbers * 2):
            yield (2, name), other


def test_a_difference_is_told_with_arguments_that_the_snapshot_does_not_have(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:  # W2
    day = ["monday"]

    @perdure.step
    def work(n: int, day: str) -> int:
        ran(f"work {n} {day}")
        return n

    @perdure.flow
    def flow() -> int:
        return sum(work(n, day[0]) for n in range(9))

    STOP[:] = [9]
    with pytest.raises(Stopped):
        perdure.run(flow, goal="g", store=url)
    day[0] = "tuesday"
    perdure.run(flow, goal="g", store=url)
    assert 'day was "monday", now "tuesday"' in caplog.text
