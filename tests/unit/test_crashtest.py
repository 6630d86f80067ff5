"""The crash tester of people's own flows finds what is wrong with known-bad ones, and nothing else."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.errors import ConfigError, RunFailed
from perdure.testing import crashtest
from perdure.testing.crashes import judge
from perdure.testing.crashes.course import TOP, Course, Journals, Kill, Runner, Terms
from perdure.testing.crashes.nursery import Nursery
from perdure.testing.crashes.report import Report
from perdure.testing.crashes.said import Called

TWINS = '''
import asyncio, concurrent.futures, datetime, os, pathlib, signal, subprocess, time, uuid
import perdure

DONE = []
PLACE = pathlib.Path(os.environ.get("TWINS", "."))


@perdure.step
def one(x: str) -> str:
    DONE.append(x)
    return x + "1"


@perdure.step
def two(x: str, stamp: str = "") -> str:
    (PLACE / "in-a-step.txt").write_text(x)
    return x + "2"


@perdure.flow
def careless(x: str) -> str:
    """A new argument in each life; an effect outside of steps, also in a child; a step in a thread of its own."""
    perdure.child(inner)(x)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        pool.submit(one, "aside").result()
    os.makedirs(PLACE / "meant", exist_ok=True)
    return two(one(x), uuid.uuid4().hex)


@perdure.step
def signed(x: str, key: perdure.Secret) -> str:
    if x == "leaks" and not DONE:
        raise PermissionError("401 for " + key.reveal())
    return one(x)


@perdure.flow
def keyed(x: str) -> perdure.Secret:
    """A secret goes into it, into its child and out of it; it stands in what its effect outside of steps is told of."""
    key = perdure.Secret("hidden-in-all-reports")
    one(x)
    subprocess.run(["true", key.reveal()])
    perdure.child(passing)(x, key)
    return key


@perdure.flow
def passing(x: str, key: perdure.Secret) -> str:
    return signed(x, key)


@perdure.flow
def inner(x: str) -> str:
    subprocess.run(["true"])
    return one(x)


@perdure.flow
def forgetful(x: str) -> str:
    """Knows what it has done as long as it lives."""
    one(x)
    return two(x) if DONE else one("instead of two")


@perdure.flow
def fails_later(x: str) -> str:
    one(x)
    return two(DONE[0])


@perdure.flow
def hangs_later(x: str) -> str:
    one(x)
    while not DONE:
        time.sleep(0.05)
    return two(x)


@perdure.flow
def dated(x: str) -> str:
    return one(x) + str(time.time_ns())


@perdure.flow
def ordered(x: str) -> str:
    one(" ".join({x + letter for letter in "abcdefgh"}))
    return x


@perdure.flow
def invented(x: str) -> str:
    """As models are: each execution of its step returns something else, and what follows has other arguments."""
    return two(new(two(new(x))))


@perdure.step
def new(x: str) -> str:
    return uuid.uuid4().hex


@perdure.step
async def slow(x: str) -> str:
    await asyncio.sleep(int(uuid.uuid4().hex, 16) % 20 / 1000)
    return x


@perdure.flow
async def sound(x: str) -> list[str]:
    """Everything that may rightly differ: winners of races, orders, dates, answers."""
    first = await fastest("ab")
    async for item in perdure.as_completed(slow("e"), slow("f")):
        break
    await flaky(await slow("g"))
    order = []
    async for item in perdure.as_completed(slow("c"), slow("d")):
        order.append(item)
        await slow("".join(order))
    await perdure.sleep(datetime.timedelta(days=40))
    await perdure.sleep(50)
    late = await perdure.ask("Anybody?", deadline=20, default="nobody")
    if await perdure.ask("In time?", deadline=20, default="no", name="soon") == "no":
        await perdure.signal("what never comes")
    said = await perdure.ask("Publish?", answer=bool, name="publish")
    note = await perdure.signal("note", type=str)
    return [first, *order, late, str(said), note]


@perdure.flow
async def fastest(letters: str) -> str:
    return await perdure.first(*(perdure.child(racer)(letter) for letter in letters))


@perdure.step(retries=1, backoff=50)
async def flaky(x: str) -> str:
    if perdure.context().attempt == 1:
        raise OSError("try again")
    return x


@perdure.flow
async def racer(x: str) -> str:
    return await slow(await slow(x))


@perdure.step(on_crash="fail")
def pay(x: str) -> str:
    return x


@perdure.flow
def pays(x: str) -> str:
    return pay(one(x))


@perdure.flow
def kills_itself(x: str) -> str:
    one(x)
    os.kill(os.getpid(), signal.SIGKILL)
    return x


@perdure.flow
def elusive(x: str) -> str:
    """Long twice, and then never again."""
    with open(PLACE / "lives", "a+") as file:
        file.write("x")
        file.seek(0)
        lives = len(file.read())
    return [one(f"{x}{n}") for n in range(6 if lives <= 2 else 1)][0]
'''


@pytest.fixture
def twins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module with them, which only the children import."""
    (tmp_path / "flows_that_break.py").write_text(TWINS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TWINS", str(tmp_path))
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    yield "flows_that_break"
    assert not list((tmp_path / "temporary").iterdir()), "something was left"


def _told(report: Report) -> dict[str, list[str]]:
    told: dict[str, list[str]] = {}
    for finding in report.findings:
        told.setdefault(finding.kind, []).append(finding.what)
    return told


def test_new_arguments_effects_and_threads_are_found_in_one_flow(twins: str) -> None:  # X5
    report = crashtest(f"{twins}:careless", {"x": "q"}, points=1, again=0, seed=1, allow=["os.mkdir */meant"])
    told = _told(report)
    assert told.keys() == {"repeated", "effect", "undurable"}
    (repeated,), (effect,) = told["repeated"], told["effect"]
    assert repeated.startswith("two: stamp was ") and " before the crash and " in repeated
    assert re.fullmatch(r"subprocess.Popen true \(flows_that_break.py:\d+, in inner\)", effect)
    assert "one is called outside" in told["undurable"][0]
    with pytest.raises(AssertionError, match="A completed step is executed again"):
        report.assert_ok()


def test_what_a_step_leaves_in_a_global_is_missed_in_the_result_and_in_the_way(twins: str) -> None:  # X5
    module: Any = importlib.import_module(twins)
    report = crashtest(module.forgetful, {"x": "q"}, points=1, again=0)
    told = _told(report)
    assert told == {
        "way": ["two is executed before the crash, and one instead after it"],
        "result": ['"instead of two1" after a crash, "q2" without one'],
    }
    assert report.findings[0].kills == ("before the run's result was durable",)


@pytest.mark.parametrize(
    ("flow", "kind", "what"),
    [
        ("fails_later", "failed", r"IndexError: list index out of range \(flows_that_break.py:\d+, in fails_later\)"),
        ("hangs_later", "stuck", r"it took over 1 s \(flows_that_break.py:\d+, in hangs_later\)"),
        ("dated", "nondeterminism", "though every step returned the same"),
        pytest.param(
            "ordered",
            "repeated",
            'one: x was "q. q. .*" before the crash and "q. q. .*" after it',
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_bug_is_found_and_told_once(twins: str, flow: str, kind: str, what: str) -> None:  # X5
    timeout = 1.0 if flow == "hangs_later" else 60.0
    told = _told(crashtest(f"{twins}:{flow}", {"x": "q"}, points=1, again=0, seed=3, timeout=timeout))
    assert list(told) == [kind] and len(told[kind]) == 1 and re.search(what, told[kind][0])


@pytest.mark.parametrize("store", ["sqlite", pytest.param("file", marks=pytest.mark.long)])
def test_what_may_rightly_differ_is_no_finding(twins: str, store: Any) -> None:  # X5 W1
    given = {"answers": {"publish": True, "soon": "yes"}, "signals": {"note": "well done"}}
    report = crashtest(f"{twins}:sound", {"x": "q"}, points=8, again=1, seed=5, timeout=30.0, store=store, **given)
    report.assert_ok()
    assert report.kills >= 5 and report.steps >= 15


@pytest.mark.parametrize(
    "durability", ["strict", *(pytest.param(weak, marks=pytest.mark.long) for weak in ("exit", "async"))]
)
def test_a_step_that_returns_something_else_each_time_is_no_finding_but_a_note(twins: str, durability: Any) -> None:
    # X5
    report = crashtest(f"{twins}:invented", {"x": "q"}, points=1, again=0, seed=2, durability=durability)
    report.assert_ok()
    assert any(note.startswith("new returned something else in each execution") for note in report.notes)


def test_a_step_in_doubt_that_stops_its_run_as_declared_is_a_note(twins: str) -> None:  # X5 X9
    report = crashtest(f"{twins}:pays", {"x": "q"}, again=0)
    report.assert_ok()
    assert "a step in doubt had the run stop for a person, as it is declared (2 times)." in report.notes


@pytest.mark.parametrize(
    ("flow", "error", "said"),
    [
        pytest.param("kills_itself", RunFailed, "ended its own process again and again", marks=pytest.mark.long),
        ("sound", ConfigError, "Give --signal what never comes=JSON"),
        ("absent", ConfigError, "cannot import name 'absent'"),
        ("elusive", ConfigError, "none of 1 kills happened"),
    ],
)
def test_what_cannot_be_tested_is_an_error_that_says_why(
    twins: str, flow: str, error: type[Exception], said: str
) -> None:  # X5
    with pytest.raises(error, match=said):
        crashtest(f"{twins}:{flow}", {"x": "q"}, points=1, again=0)


def test_a_secret_is_the_same_input_in_every_run_and_stands_in_no_report(twins: str) -> None:  # X5 rel:S8
    report = crashtest(f"{twins}:keyed", {"x": "q"}, again=2, allow=["subprocess.Popen true *"])
    report.assert_ok()
    report = crashtest(f"{twins}:keyed", {"x": "leaks"}, again=0)
    told = _told(report)
    assert told.keys() == {"effect", "failed"} and "hidden-in" not in str(report)
    assert "subprocess.Popen true ***" in str(report) and "401 for ***" in str(report)


def test_a_secret_is_not_written_down_for_the_children(twins: str) -> None:  # X5 rel:S8
    with pytest.raises(ConfigError, match="hold a Secret"):
        crashtest(f"{twins}:sound", {"x": perdure.Secret("hidden-in-all-reports", name="key")})


def test_inputs_options_and_flows_that_mean_nothing_are_refused_before_anything_runs(twins: str) -> None:  # X5
    with pytest.raises(ConfigError, match="missing a required argument: 'x'"):
        crashtest(f"{twins}:sound")
    with pytest.raises(ConfigError, match=r"its inputs .*goal.* have names of options"):
        crashtest(f"{twins}:sound", {"goal": "q"})
    with pytest.raises(ConfigError, match="stands in no module"):
        crashtest(lambda: None)
    for wrong in ({"points": 0}, {"again": -1}, {"jobs": 0}, {"timeout": 0}, {"store": "redis"}, {"durability": "no"}):
        (name,) = wrong
        with pytest.raises(ConfigError, match=name):
            crashtest(f"{twins}:sound", {"x": "q"}, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="does not name a flow"):
        crashtest("review.py:review")


def test_a_program_with_threads_is_not_forked_and_opens_no_store_of_the_users(
    twins: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # X5
    monkeypatch.setenv("PERDURE_STORE", f"sqlite:{tmp_path / 'own.db'}")
    with (tmp_path / "flows_that_break.py").open("a") as file:
        file.write("\nMANAGER = perdure.CheckpointManager()\n")  # it has a thread from the import on
    report = crashtest(f"{twins}:forgetful", {"x": "q"}, points=1, again=0)
    assert _told(report).keys() == {"way", "result"} and report.kills == 1
    assert not (tmp_path / "own.db").exists()


def test_lost_records_and_bodies_that_ran_again_are_told_from_journals_and_witness(twins: str, tmp_path: Path) -> None:
    # X5 rel:D1: no store of ours loses anything, so what a real run left is tampered with
    course, baseline = _courses(tmp_path, twins)
    (death,) = course.deaths
    assert not list(judge.judge(baseline, course))
    assert death.point.entry == "step_completed" and death.when == "after"

    lost = _without(course.journals, lambda records: records[:2] + records[3:])
    (clue,) = judge._records(death, course._replace(journals=lost), "")
    assert clue.kind == "lost" and "1 of 3 records" in clue.what

    fewer = _without(death.journals, lambda records: records[:1])
    (clue,) = judge._records(death._replace(journals=fewer), course, "")
    assert clue.kind == "lost" and "record 2 of crashtest#0, acknowledged" in clue.what

    again = Called(life=2, run=str(TOP), step=1, attempt=2, name="one")
    (clue,) = judge._bodies(death, course._replace(lines=(*course.lines, again)), "")
    assert clue.kind == "repeated" and clue.what == "one: attempt 2 ran after attempt 1 had completed"

    early = Called(life=1, run=str(TOP), step=9, attempt=1, name="ghost")
    (clue,) = judge._bodies(death, course._replace(lines=(*course.lines, early)), "")
    assert clue.kind == "lost" and "step 9 (ghost) ran, and its start is not recorded" in clue.what


def _courses(folder: Path, twins: str) -> tuple[Course, judge.Baseline]:
    program = (
        f"import sys; sys.path.insert(0, {str(folder)!r}); from flows_that_break import fails_later, pays;"
        "from perdure.testing.crashes.server import serve; serve(lambda: (pays, {'x': 'q'}))"
    )
    with Nursery(["-c", program], 2, 0, folder) as nursery:
        assert nursery.load().flow == "pays"
        runner = Runner(nursery, folder, Terms("sqlite", "strict", 60.0, {}, {}))
        whole = runner.run(0, 0), runner.run(1, 1)
        killed = runner.run(2, 0, [Kill(3, "after")])
    assert killed.outcome == "completed" and os.listdir(folder).count("2") == 0
    return killed, judge.Baseline(*whole)


def _without(journals: Journals, change: Any) -> Journals:
    made = Journals.__new__(Journals)
    made.records, made._states = {key: change(records) for key, records in journals.records.items()}, {}
    return made
