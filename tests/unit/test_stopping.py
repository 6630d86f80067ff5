"""Cancelling and pausing: by somebody else, while the run is executed, while it waits, and while nobody looks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure import journal as j
from perdure import states
from perdure.clock import Clock
from perdure.errors import AnswerRefused, ConfigError, RunCancelled, RunNotFound, RunStopped, RunSuspended
from perdure.runtime.manager import CheckpointManager
from perdure.stores.memory import MemoryBackend, MemoryStore
from perdure.testing.processes import Child

RAN: list[str] = []
ON = threading.Event()
"""a step is in the middle of its work"""
OFF = threading.Event()
"""it may end"""


@pytest.fixture(autouse=True)
def forget() -> None:
    RAN.clear()
    ON.clear()
    OFF.clear()


@pytest.fixture(params=["sqlite", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'runs.db'}" if request.param == "sqlite" else f"file:{tmp_path / 'runs'}"


@perdure.step
def work(what: str) -> str:
    RAN.append(what)
    return f"did {what}"


@perdure.step(name="work")
async def work_async(what: str) -> str:
    RAN.append(what)
    return f"did {what}"


@perdure.step
def long() -> str:
    RAN.append("long")
    ON.set()
    assert OFF.wait(30)
    return "long"


@perdure.step(name="long")
async def long_async() -> str:
    RAN.append("long")
    ON.set()
    await asyncio.sleep(60)
    return "long"


@perdure.flow(name="f")
def flow() -> str:
    work("one")
    long()
    return work("two")


@perdure.flow(name="f")
async def flow_async() -> str:
    await work_async("one")
    await long_async()
    return await work_async("two")


def meanwhile(url: str, what: Callable[[perdure.Client], object]) -> threading.Thread:
    """Somebody else does something to the run when a step is in the middle of its work; then the step may end."""

    def person() -> None:
        ON.wait(30)
        with perdure.Client(url) as client:
            what(client)
        OFF.set()

    thread = threading.Thread(target=person)
    thread.start()
    return thread


def statuses(url: str, goal: str = "g") -> list[tuple[str, str]]:
    with perdure.Client(url) as client:
        return [(step.name, step.status) for step in client.state(goal).steps.values()]


def status(url: str, goal: str = "g") -> str:
    with perdure.Client(url) as client:
        return client.find(goal).status


# -- cancel ------------------------------------------------------------------------------------------------------------


def test_cancelling_reaches_an_async_step_in_the_middle_of_its_work(url: str) -> None:  # W1 B9
    person = meanwhile(url, lambda client: client.cancel("g", by="ann", reason="enough"))
    with pytest.raises(RunCancelled, match="cancelled by ann: enough"):
        perdure.run(flow_async, goal="g", store=url)
    person.join()
    assert RAN == ["one", "long"] and statuses(url) == [("work", "completed"), ("long", "interrupted")]
    with perdure.Client(url) as client:
        row = client.find("g")
        assert (row.status, row.reason, row.holder) == (states.CANCELLED, "enough", None)


def test_a_sync_step_is_told_and_what_it_returns_is_kept(url: str) -> None:
    @perdure.step
    def looks() -> str:
        ON.set()
        context = perdure.context()
        while not context.cancelled:
            OFF.wait(0.01)
        RAN.append("told")
        return "half"

    person = meanwhile(url, lambda client: client.cancel("g", by="ann"))
    with pytest.raises(RunCancelled, match="no reason given"):
        perdure.run(perdure.flow(name="f")(lambda: (looks(), work("never"))), goal="g", store=url)
    person.join()
    assert RAN == ["told"] and statuses(url) == [("looks", "completed")]


@pytest.mark.parametrize("resumed", [False, True])
def test_a_cancelled_run_stays_cancelled_and_another_episode_begins(url: str, resumed: bool) -> None:  # B9
    person = meanwhile(url, lambda client: client.cancel("g", by="ann"))
    with pytest.raises(RunCancelled):
        perdure.run(flow_async, goal="g", store=url)
    person.join()
    with pytest.raises(RunCancelled, match="new=True"):
        perdure.run(flow_async, goal="g", store=url, resume_stopped=resumed)
    assert RAN == ["one", "long"]
    for what in ("cancel", "pause", "unpause"):
        with perdure.Client(url) as client, pytest.raises(AnswerRefused, match="is cancelled"):
            getattr(client, what)("g", by="bob")
    assert perdure.run(work.fn, "x", goal="g", store=url, new=True) == "did x"


def test_a_run_that_nobody_executes_is_cancelled_at_once(url: str) -> None:
    @perdure.flow(name="f")
    def asks() -> str:
        return str(perdure.ask("x?"))

    with pytest.raises(RunSuspended):
        perdure.run(asks, goal="g", store=url)
    with perdure.Client(url) as client:
        assert client.cancel("g", by="ann").status == states.CANCELLED
        assert client.questions() == []
        with pytest.raises(AnswerRefused, match="nobody needs"):
            client.answer("g", 1, "late", by="bob")
        with pytest.raises(RunNotFound):
            client.cancel("nothing", by="ann")
        with pytest.raises(ConfigError, match="by"):
            client.cancel("g", by=" ")


async def undo(name: str) -> None:
    await work_async(f"undo {name}")


def undo_sync(name: str) -> None:
    work(f"undo {name}")


@perdure.flow(name="inner", on_cancel=undo)
async def inner(name: str) -> str:
    await work_async(name)
    return await long_async() if name == "b" else str(await perdure.ask("x?"))


@perdure.flow(name="outer", on_cancel=undo)
async def outer(name: str) -> list[str]:
    await work_async(name)
    done = perdure.flow(name="done", on_cancel=undo)(work_async.fn)
    await done("done")
    return await perdure.gather(inner("a"), perdure.child(inner)("b"))


def test_clean_ups_run_the_innermost_first_and_only_of_flows_that_were_in_their_middle(url: str) -> None:
    person = meanwhile(url, lambda client: client.cancel("g", by="ann"))
    with pytest.raises(RunCancelled):
        perdure.run(outer, "o", goal="g", store=url)
    person.join()
    assert sorted(RAN[5:7]) == ["undo a", "undo b"] and RAN[7:] == ["undo o"]
    with perdure.Client(url) as client:
        assert any(isinstance(entry, j.CleanupDeclared) for entry in client.entries("g"))


def test_a_suspended_run_with_clean_ups_is_cancelled_when_its_program_has_run_them(url: str) -> None:
    @perdure.flow(name="f", on_cancel=undo_sync)
    def asks(name: str) -> str:
        work(name)
        return str(perdure.ask("x?"))

    with pytest.raises(RunSuspended):
        perdure.run(asks, "a", goal="g", store=url)
    with perdure.Client(url) as client:
        state = client.cancel("g", by="ann")
        assert state.status == states.PENDING_INPUT and state.stop is not None
        with pytest.raises(AnswerRefused, match="being cancelled already, by ann"):
            client.cancel("g", by="bob")
    with pytest.raises(RunCancelled, match="by ann"):
        perdure.run(asks, "a", goal="g", store=url)
    assert RAN == ["a", "undo a"] and status(url) == states.CANCELLED


def test_a_clean_up_that_fails_is_told_and_tried_again(url: str) -> None:
    def broken(name: str) -> None:
        work("try")
        if RAN.count("again") == 0:
            raise ValueError("no")

    @perdure.flow(name="f", on_cancel=broken)
    def asks(name: str) -> str:
        return str(perdure.ask("x?"))

    with pytest.raises(RunSuspended):
        perdure.run(asks, "a", goal="g", store=url)
    with perdure.Client(url) as client:
        client.cancel("g", by="ann")
    with pytest.raises(ValueError, match="no"):
        perdure.run(asks, "a", goal="g", store=url)
    with perdure.Client(url) as client:
        row = client.find("g")
        assert row.status == states.FAILED and "ValueError: no" in row.reason
    RAN.append("again")
    with pytest.raises(RunCancelled):
        perdure.run(asks, "a", goal="g", store=url)
    assert RAN == ["try", "again"] and status(url) == states.CANCELLED


def test_an_async_clean_up_of_a_sync_flow_is_refused() -> None:
    with pytest.raises(ConfigError, match="on_cancel"):
        perdure.flow(on_cancel=undo)(lambda name: name)
    with pytest.raises(ConfigError, match="on_cancel"):
        perdure.flow(on_cancel="x")(lambda name: name)  # type: ignore[call-overload]


def test_the_callers_own_task_goes_on_after_its_run_was_cancelled(url: str) -> None:
    async def main() -> str:
        with CheckpointManager(url) as manager:
            with pytest.raises(RunCancelled):
                await manager.run(flow_async, goal="g")
            await asyncio.sleep(0)
            task = asyncio.current_task()
            assert task is not None and task.cancelling() == 0
            return await manager.run(work_async.fn, "after", goal="h")

    person = meanwhile(url, lambda client: client.cancel("g", by="ann"))
    assert asyncio.run(main()) == "did after"
    person.join()


def test_a_cancelled_task_of_the_callers_is_an_interruption_and_no_cancelled_run(url: str) -> None:
    async def main() -> None:
        with CheckpointManager(url) as manager:
            task = asyncio.create_task(manager.run(flow_async, goal="g"))
            await asyncio.to_thread(ON.wait, 30)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert status(url) == states.INTERRUPTED


def test_attempts_and_their_attempts_are_cancelled_with_the_run_that_began_them(url: str) -> None:  # K2 K3
    @perdure.flow
    async def attempt(name: str) -> str:
        return await long_async()

    best = perdure.best_of(2, attempt, judge=lambda output: 1.0, limit=2)
    person = meanwhile(url, lambda client: client.cancel("g", by="ann", reason="enough"))
    with pytest.raises(RunCancelled):
        perdure.run(best, "x", goal="g", store=url)
    person.join()
    with perdure.Client(url) as client:
        assert {str(row.key): row.status for row in client.runs()} == {
            "g#0": states.CANCELLED,
            "g/best#0": states.CANCELLED,
            "g/best#1": states.CANCELLED,
        }


def test_suspended_runs_that_a_run_began_are_cancelled_with_it(url: str) -> None:
    @perdure.flow
    def attempt(name: str) -> str:
        return str(perdure.ask("x?"))

    with pytest.raises(RunSuspended):
        perdure.run(perdure.best_of(1, attempt, judge=lambda output: 1.0), "x", goal="g", store=url)
    with perdure.Client(url) as client:
        client.cancel("g", by="ann")
        assert {row.status for row in client.runs()} == {states.CANCELLED} and len(client.runs()) == 2


def _one_step(body: Callable[[float], Any]) -> Callable[[float], Any]:
    async def one(pause: float) -> str:
        return await perdure.step(name="short", ignore=("begun",))(body)(pause)  # type: ignore[no-any-return]

    return one


def test_a_cancel_that_races_with_the_end_ends_in_one_of_both(url: str) -> None:
    for attempt in range(30):
        goal, begun = f"g{attempt}", threading.Event()

        async def short(pause: float, begun: threading.Event = begun) -> str:
            begun.set()
            await asyncio.sleep(pause)
            return "x"

        def person(goal: str = goal, begun: threading.Event = begun) -> None:
            begun.wait(30)
            with perdure.Client(url) as client:
                try:
                    client.cancel(goal, by="ann")
                except AnswerRefused as error:
                    assert "is completed" in str(error)

        thread = threading.Thread(target=person)
        thread.start()
        try:
            result = perdure.run(perdure.flow(name="f")(_one_step(short)), attempt % 6 / 1000, goal=goal, store=url)
            assert result == "x"
        except RunCancelled:
            result = None
        thread.join()
        found = status(url, goal)
        assert found == (states.COMPLETED if result == "x" else states.CANCELLED)
        with perdure.Client(url) as client:
            kinds = [type(entry) for entry in client.entries(goal)]
            assert kinds.count(j.RunCompleted) + kinds.count(j.RunCancelled) == 1


def test_a_late_cancel_does_not_stop_a_rerun(url: str) -> None:
    """It was posted when the run was about to end, and nobody read it."""
    perdure.run(perdure.flow(name="f")(lambda: work("x")), goal="g", store=url)
    store = perdure.open_store(url)
    with perdure.Client(store) as client:
        key = client.find("g").key
        late = j.StopRequested(by="ann", cancel=True, reason="late")
        assert store.post(key, 1, j.encode(key, late))
    assert perdure.run(perdure.flow(name="f")(lambda: work("x")), goal="g", store=url, rerun="work") == "did x"
    with perdure.Client(url) as client:
        assert [e.post for e in client.entries("g") if isinstance(e, j.PostDropped)] == [1]


def test_a_flow_that_ends_early_because_it_is_cancelled_is_cleaned_up_after(url: str) -> None:
    @perdure.step
    def obeys(name: str) -> str:
        ON.set()
        while not perdure.context().cancelled:
            OFF.wait(0.01)
        return "early"

    flow = perdure.flow(name="f", on_cancel=undo_sync)(lambda name: obeys(name))
    person = meanwhile(url, lambda client: client.cancel("g", by="ann"))
    with pytest.raises(RunCancelled):
        perdure.run(flow, "a", goal="g", store=url)
    person.join()
    assert RAN == ["undo a"]


def test_a_cancel_while_the_run_is_being_suspended_cleans_up_everything(url: str) -> None:
    @perdure.flow(name="inner", on_cancel=undo_sync)
    def half(name: str) -> str:
        return str(perdure.ask("q?"))

    @perdure.flow(name="outer", on_cancel=undo_sync)
    def whole(name: str) -> str:
        try:
            return half("inner")
        finally:
            ON.set()
            OFF.wait(5)

    person = meanwhile(url, lambda client: client.cancel("g", by="ann"))
    with pytest.raises((RunSuspended, RunCancelled)):
        perdure.run(whole, "outer", goal="g", store=url)
    person.join()
    if status(url) != states.CANCELLED:
        with pytest.raises(RunCancelled):
            perdure.run(whole, "outer", goal="g", store=url)
    assert RAN == ["undo inner", "undo outer"] and status(url) == states.CANCELLED


def test_attempts_with_clean_ups_are_cancelled_with_their_run(url: str) -> None:
    @perdure.flow(on_cancel=undo_sync)
    def attempt(name: str) -> str:
        ON.set()
        return str(perdure.ask("q?"))

    person = meanwhile(url, lambda client: client.cancel("g", by="ann", reason="enough"))
    with pytest.raises(RunCancelled):
        perdure.run(perdure.best_of(1, attempt, judge=lambda output: 1.0), "a", goal="g", store=url, wait=True)
    person.join()
    with perdure.Client(url) as client:
        assert {row.status for row in client.runs()} == {states.CANCELLED} and RAN == ["undo a"]


def test_a_parent_may_be_cancelled_after_its_child_was(url: str) -> None:
    @perdure.flow(on_cancel=undo_sync)
    def attempt(name: str) -> str:
        return str(perdure.ask("q?"))

    with pytest.raises(RunSuspended):
        perdure.run(perdure.best_of(1, attempt, judge=lambda output: 1.0), "a", goal="g", store=url)
    with perdure.Client(url) as client:
        client.cancel("g/best#0", by="ann")
        client.cancel("g", by="ann")
        assert client.find("g").status == states.CANCELLED


def test_nobody_is_told_of_errors_that_nobody_asked_for(url: str, caplog: pytest.LogCaptureFixture) -> None:
    import gc

    @perdure.flow
    async def asks() -> list[Any]:
        return await perdure.gather(perdure.ask("a?"), perdure.ask("b?"), long_async())

    person = meanwhile(url, lambda client: client.cancel("g", by="ann"))
    with pytest.raises(RunCancelled):
        perdure.run(asks, goal="g", store=url)
    person.join()
    gc.collect()
    assert "never retrieved" not in caplog.text


# -- pause -------------------------------------------------------------------------------------------------------------


def test_a_pause_that_is_taken_back_in_time_stops_nothing(url: str) -> None:
    def think_again(client: perdure.Client) -> None:
        client.pause("g", by="ann")
        client.unpause("g", by="ann")

    person = meanwhile(url, think_again)
    assert perdure.run(flow, goal="g", store=url) == "did two"
    person.join()


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_pausing_lets_what_runs_end_and_begins_nothing_new(url: str, colour: str) -> None:  # B9
    @perdure.step(name="long")
    async def patient() -> str:
        RAN.append("long")
        ON.set()
        await asyncio.to_thread(OFF.wait, 30)
        return "long"

    @perdure.flow(name="f")
    async def asynchronous() -> str:
        await work_async("one")
        await patient()
        return await work_async("two")

    chosen: Any = flow if colour == "sync" else asynchronous
    person = meanwhile(url, lambda client: client.pause("g", by="ann", reason="lunch"))
    with pytest.raises(RunStopped, match="stopped by ann: lunch"):
        perdure.run(chosen, goal="g", store=url)
    person.join()
    assert statuses(url) == [("work", "completed"), ("long", "completed")] and status(url) == states.PAUSED
    with pytest.raises(RunStopped, match="perdure unpause g#0"):
        perdure.run(chosen, goal="g", store=url)
    with perdure.Client(url) as client:
        assert client.due() == [] and client.interrupted() == []
        client.unpause("g", by="bob")
        assert [str(row.key) for row in client.due()] == ["g#0"]
        with pytest.raises(AnswerRefused, match="is not paused: it is ready"):
            client.unpause("g", by="bob")
    assert perdure.run(chosen, goal="g", store=url) == "did two"
    assert RAN == ["one", "long", "two"]


def test_a_pause_of_a_crashed_run_leaves_its_steps_in_doubt(url: str) -> None:  # X9
    @perdure.step(on_crash="fail")
    def doubtful() -> str:
        raise SystemExit(7)

    f = perdure.flow(name="f")(lambda: doubtful())
    with pytest.raises(SystemExit):
        perdure.run(f, goal="g", store=url)
    with perdure.Client(url) as client:
        client.pause("g", by="ann")
        client.unpause("g", by="ann")
    with pytest.raises(perdure.PerdureError, match="did not end, so it may have had its effect"):
        perdure.run(f, goal="g", store=url)


def test_the_attempts_of_a_paused_run_are_not_lost_and_go_on_with_it(url: str) -> None:
    @perdure.flow
    def attempt(name: str) -> str:
        long()
        return work("attempt")

    best = perdure.best_of(1, attempt, judge=lambda output: 1.0)
    person = meanwhile(url, lambda client: client.pause("g", by="ann"))
    with pytest.raises(RunStopped):
        perdure.run(best, "x", goal="g", store=url)
    person.join()
    with perdure.Client(url) as client:
        assert {str(r.key): r.status for r in client.runs()} == {"g#0": "paused", "g/best#0": "interrupted"}
        client.unpause("g", by="ann")
    assert perdure.run(best, "x", goal="g", store=url).output == "did attempt"
    assert RAN == ["long", "attempt"]


# -- signals -----------------------------------------------------------------------------------------------------------


def test_a_signal_while_an_entry_is_taken_into_the_state_comes_after_it() -> None:  # B3 B8
    armed: list[bool] = []

    class Signalling(Clock):
        def now(self) -> float:
            if armed and armed.pop():
                signal.raise_signal(signal.SIGINT)
            return super().now()

    @perdure.step
    def load(n: int) -> int:
        armed.append(n == 2)  # its own completion asks for the time next
        return n

    @perdure.flow
    def three() -> list[int]:
        return [load(n) for n in range(1, 4)]

    backend = MemoryBackend()
    with CheckpointManager(MemoryStore(backend), clock=Signalling()) as manager, pytest.raises(KeyboardInterrupt):
        manager.run_sync(three, goal="g")
    with perdure.Client(MemoryStore(backend)) as client:
        assert client.find("g").status == states.INTERRUPTED
        assert [step.status for step in client.state("g").steps.values()] == ["completed", "completed"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("store", ["sqlite:{}/runs.db", "file:{}"])
def test_a_signal_while_step_follows_step_interrupts_the_run_in_order(
    tmp_path: Path, store: str, number: signal.Signals
) -> None:  # B3 B8
    @perdure.step
    def quick(n: int) -> int:
        return n

    def work(say: Callable[[str], None], hear: Callable[[], str]) -> None:
        @perdure.flow
        def busy() -> None:  # all of its time it makes entries and commits them
            for n in range(10**9):
                quick(n)
                if n % 10 == 5:
                    say("\n")

        perdure.run(busy, goal="g", store=store.format(tmp_path))

    for _ in range(5):
        child = Child(work)
        child.hear()
        os.kill(child.pid, number)
        with contextlib.suppress(EOFError):
            while True:
                child.hear()
        os.waitpid(child.pid, 0)
        with perdure.Client(store.format(tmp_path)) as client:
            (row,) = client.runs()
        assert row.status == states.INTERRUPTED
