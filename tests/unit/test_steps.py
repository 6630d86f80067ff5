"""Steps and flows as a user writes them, on the memory store (same codec, same machine as every other)."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

import perdure
from perdure import errors
from perdure.clock import Clock
from perdure.model import File, Lease
from perdure.runtime.manager import CheckpointManager
from perdure.stores.memory import MemoryStore


class FastClock(Clock):
    """Sleeps take no time and move the wall clock."""

    def __init__(self) -> None:
        self.offset = 0.0

    def now(self) -> float:
        return super().now() + self.offset

    def wait(self, bell: threading.Event, seconds: float) -> None:
        self.offset += max(seconds, 0)

    async def wait_async(self, bell: asyncio.Event, seconds: float) -> None:
        self.offset += max(seconds, 0)
        await asyncio.sleep(0)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'runs.db'}"


@dataclass
class Ledger:
    """What ran, in order."""

    seen: list[str]

    def __call__(self, word: str) -> None:
        self.seen.append(word)

    def take(self) -> list[str]:
        taken, self.seen = self.seen, []
        return taken


@pytest.fixture
def ledger() -> Ledger:
    return Ledger([])


def test_the_step_that_failed_is_executed_again_and_the_ones_before_are_not(url: str, ledger: Ledger) -> None:
    # C3 G7
    broken = True

    @perdure.step
    def work(n: int) -> str:
        ledger(f"work {n}")
        if n == 6 and broken:
            raise RuntimeError("bad prompt")
        return f"done {n}"

    @perdure.flow
    def eight() -> list[str]:
        return [work(n) for n in range(1, 9)]

    with pytest.raises(RuntimeError, match="bad prompt"):
        perdure.run(eight, goal="g", store=url)
    assert ledger.take() == [f"work {n}" for n in range(1, 7)]
    with perdure.Client(url) as client:
        assert client.find("g").status == "failed"
        assert client.step("g", "6").status == "failed"
    broken = False
    assert perdure.run(eight, goal="g", store=url)[-1] == "done 8"
    assert ledger.take() == ["work 6", "work 7", "work 8"]
    assert perdure.run(eight, goal="g", store=url)[-1] == "done 8"
    assert ledger.take() == []


def test_an_async_flow_gives_the_same_with_and_without_a_store_and_writes_nothing_without(
    url: str, tmp_path: Path
) -> None:
    # G1
    @perdure.step(retries=1, backoff=0)
    async def half(n: int) -> float:
        if perdure.context().attempt == 1:
            raise ValueError("first time")
        return n / 2

    @perdure.flow
    async def flow() -> list[float]:
        return await perdure.gather(*(half(n) for n in range(3)))

    before = threading.active_count()
    assert asyncio.run(flow()) == [0.0, 0.5, 1.0]
    assert list(tmp_path.iterdir()) == [] and threading.active_count() == before
    assert perdure.run(flow, goal="g", store=url) == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("empty", [None, "", " \n", [], {}, ()])
def test_an_empty_output_is_retried_and_then_fails(url: str, empty: object, ledger: Ledger) -> None:
    # C6
    @perdure.step(retries=2, backoff=0)
    def expert() -> object:
        ledger("ran")
        return empty

    with pytest.raises(errors.OutputRefused):
        perdure.run(perdure.flow(lambda: expert()), goal="g", store=url)
    assert len(ledger.take()) == 3
    with perdure.Client(url) as client:
        step = client.step("g", "expert")
        assert step.status == "failed" and [a.outcome for a in step.attempts] == ["refused"] * 3


def test_a_flagged_step_is_reused_until_it_is_asked_for_again_with_what_depends_on_it(url: str, ledger: Ledger) -> None:
    # C6 C11 X1
    answers = {"a": "good", "b": ""}

    @perdure.step(on_refused="flag")
    def expert(name: str) -> str:
        ledger(name)
        return answers[name]

    @perdure.step
    def meta(reviews: list[str]) -> str:
        ledger("meta")
        return "+".join(reviews)

    @perdure.flow
    def crew() -> str:
        return meta(perdure.map(expert, ["a", "b"]))

    assert perdure.run(crew, goal="g", store=url) == "good+"
    assert sorted(ledger.take()) == ["a", "b", "meta"]
    assert perdure.run(crew, goal="g", store=url) == "good+"
    assert ledger.take() == []
    answers["b"] = "better"
    assert perdure.run(crew, goal="g", store=url, rerun="flagged") == "good+better"
    assert ledger.take() == ["b", "meta"]


def test_a_late_attempt_is_recorded_as_timed_out_in_both_colours(url: str) -> None:
    # C8
    never = threading.Event()

    @perdure.step(timeout=0.05)
    async def slow() -> str:
        await asyncio.Event().wait()
        return "never"

    @perdure.step(timeout=0.05)
    def slow_sync() -> str:
        never.wait(30)
        return "never"

    @perdure.flow
    async def flow() -> str:
        return await slow()

    for goal, work in (("async", flow), ("sync", perdure.flow(lambda: slow_sync()))):
        with pytest.raises(errors.StepTimeout):
            perdure.run(work, goal=goal, store=url)
        with perdure.Client(url) as client:
            (step,) = client.state(goal).steps.values()
            assert step.status == "failed" and step.attempts[0].outcome == "timed_out"
    never.set()


def test_a_rate_limit_is_waited_out_and_uses_up_no_retry(ledger: Ledger) -> None:
    # C10
    clock = FastClock()

    @perdure.step
    def ask() -> str:
        ledger("ask")
        if perdure.context().attempt < 4:
            raise errors.RateLimited(retry_after=3600)
        return "answer"

    before = clock.now()
    with CheckpointManager(MemoryStore(), clock=clock) as manager:
        assert manager.run_sync(perdure.flow(lambda: ask()), goal="g") == "answer"
    assert len(ledger.take()) == 4
    assert clock.now() - before >= 3 * 3600


def test_other_inputs_are_an_error_that_names_the_argument_or_a_told_decision(url: str, ledger: Ledger) -> None:
    # G8 rel:R8
    @perdure.step
    def fixed() -> str:
        ledger("fixed")
        return "fixed"

    @perdure.flow
    def flow(paper: str) -> str:
        return fixed() + paper

    assert perdure.run(flow, "one", goal="g", store=url) == "fixedone"
    with pytest.raises(errors.InputMismatch, match='paper was "one", now "two"'):
        perdure.run(flow, "two", goal="g", store=url)
    assert ledger.take() == ["fixed"]
    assert perdure.run(flow, "two", goal="g", store=url, adopt_input=True) == "fixedtwo"
    assert ledger.take() == []
    assert perdure.run(flow, "three", goal="g", store=url, new=True) == "fixedthree"
    assert ledger.take() == ["fixed"]
    with perdure.Client(url) as client:
        assert [row.episode for row in client.runs("g")] == [0, 1]


def test_episodes_of_one_goal_never_share_records(url: str, ledger: Ledger) -> None:
    # K2 G6
    @perdure.step
    def attempt() -> str:
        ledger("ran")
        return "same"

    flow = perdure.flow(lambda: attempt())
    perdure.run(flow, goal="g", episode=0, store=url)
    perdure.run(flow, goal="g", episode=1, store=url)
    assert ledger.take() == ["ran", "ran"]


def test_two_runs_of_one_flow_object_side_by_side_never_mix(url: str) -> None:
    # G6
    @perdure.step
    async def name(goal: str) -> str:
        await asyncio.sleep(0)
        return goal

    @perdure.flow
    async def flow(goal: str) -> list[str]:
        return [await name(goal) for _ in range(5)]

    async def both() -> list[list[str]]:
        with CheckpointManager(url) as manager:
            return list(await asyncio.gather(*(manager.run(flow, f"p{n}", goal=f"g{n}") for n in range(8))))

    assert asyncio.run(both()) == [[f"p{n}"] * 5 for n in range(8)]


def test_equal_requests_of_tasks_made_behind_our_back_are_an_error_on_the_first_run(url: str) -> None:
    # X10
    @perdure.step
    async def draw(n: int) -> int:
        await asyncio.sleep(0)
        return n

    @perdure.flow
    async def flow() -> list[int]:
        return list(await asyncio.gather(draw(1), draw(1)))

    with pytest.raises(errors.AmbiguousStep, match=r"perdure\.gather.*key="):
        perdure.run(flow, goal="g", store=url)


def test_a_step_inserted_reordered_or_fanned_out_between_two_lives_breaks_nothing(url: str, ledger: Ledger) -> None:
    # X1
    @perdure.step
    def work(n: int) -> int:
        ledger(f"work {n}")
        return n

    def one() -> int:
        total = work(1) + work(2)
        raise RuntimeError(total)

    def two() -> int:
        return work(3) + sum(perdure.gather(functools.partial(work, 2), functools.partial(work, 1)))

    with pytest.raises(RuntimeError):
        perdure.run(perdure.flow(name="f")(one), goal="g", store=url)
    ledger.take()
    assert perdure.run(perdure.flow(name="f")(two), goal="g", store=url) == 6
    assert ledger.take() == ["work 3"]


def test_an_argument_that_differs_under_unchanged_code_is_told_or_refused(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    # rel:R5, by the nondeterminism rule of the design: steps are found by what they are, in whatever order
    value = 1
    fail = True

    @perdure.step
    def work(stamp: int) -> int:
        return stamp

    @perdure.flow
    def flow() -> int:
        result = work(value)
        if fail:
            raise RuntimeError
        return result

    for config in (perdure.CheckpointConfig(), perdure.CheckpointConfig(nondeterminism="raise")):
        value, fail = 1, True
        goal = config.nondeterminism
        with pytest.raises(RuntimeError):
            perdure.run(flow, goal=goal, store=url)
        value, fail = 2, False
        if goal == "raise":
            with pytest.raises(errors.Nondeterminism, match="stamp was 1, now 2"):
                perdure.run(flow, goal=goal, store=url, config=config)
        else:
            with caplog.at_level(logging.WARNING, "perdure"):
                assert perdure.run(flow, goal=goal, store=url, config=config) == 2
            assert "stamp was 1, now 2" in caplog.text


def test_progress_and_text_of_an_attempt_are_handed_to_the_next(url: str) -> None:
    # C5
    seen: list[object] = []

    @perdure.step(retries=1, backoff=0)
    def long() -> str:
        context = perdure.context()
        seen.append((context.attempt, context.progress, context.partial_text))
        context.save({"page": context.attempt})
        context.stream("half ")
        if context.attempt == 1:
            raise RuntimeError("killed")
        return context.partial_text + "whole"

    assert perdure.run(perdure.flow(lambda: long()), goal="g", store=url) == "half whole"
    assert seen == [(1, None, ""), (2, {"page": 1}, "half ")]


def test_the_idempotency_key_stays_over_attempts_and_differs_between_steps(url: str) -> None:
    # X7
    keys: list[str] = []

    @perdure.step(retries=1, backoff=0)
    def pay(n: int) -> int:
        keys.append(perdure.context().idempotency_key)
        if perdure.context().attempt == 1:
            raise OSError("timeout")
        return n

    @perdure.flow
    def flow() -> list[int]:
        return [pay(1), pay(1), pay(2)]

    perdure.run(flow, goal="g", store=url)
    assert keys[0] == keys[1] and keys[2] == keys[3] and len(set(keys)) == 3


def test_a_value_that_cannot_be_stored_fails_the_step_with_path_and_type(url: str) -> None:
    # W5 W8
    @perdure.step(retries=5)
    def open_file() -> dict[str, object]:
        return {"reviews": [1, threading.Lock()]}

    with pytest.raises(errors.CodecError, match=r"reviews.*\[1\].*lock"):
        perdure.run(perdure.flow(lambda: open_file()), goal="g", store=url)


def test_a_wrong_configuration_is_refused_with_the_fields_name() -> None:
    # G2
    with pytest.raises(errors.ConfigError, match="durability"):
        perdure.CheckpointConfig(durability="fast")  # type: ignore[arg-type]
    with pytest.raises(errors.ConfigError, match="retries"):
        perdure.step(retries=-1)


@pytest.mark.parametrize("durability", ["strict", "pipelined", "async", "exit"])
def test_every_durability_level_ends_with_everything_recorded(url: str, durability: str) -> None:
    # rel:D8
    @perdure.step
    def work(n: int) -> int:
        return n

    config = perdure.CheckpointConfig(durability=durability)  # type: ignore[arg-type]
    assert perdure.run(perdure.flow(lambda: sum(work(n) for n in range(5))), goal="g", store=url, config=config) == 10
    with perdure.Client(url) as client:
        assert client.find("g").completed == 5


def test_a_nested_flow_and_a_step_inside_a_step_have_scopes_of_their_own(url: str, ledger: Ledger) -> None:
    # K3 B5
    fail = True

    @perdure.step
    def inner(n: int) -> int:
        ledger(f"inner {n}")
        return n

    @perdure.step
    def outer() -> int:
        total = inner(1) + inner(1)
        if fail:
            raise RuntimeError
        return total

    @perdure.flow
    def child(n: int) -> int:
        return inner(1) + n

    @perdure.flow
    def parent() -> int:
        return child(1) + child(2) + outer()

    with pytest.raises(RuntimeError):
        perdure.run(parent, goal="g", store=url)
    assert ledger.take() == ["inner 1"] * 4
    fail = False
    assert perdure.run(parent, goal="g", store=url) == 7
    assert ledger.take() == []
    with perdure.Client(url) as client:
        scopes = {s.identity.scope for s in client.state("g").steps.values()}
    assert scopes == {"", "child-0", "child-1", "outer-0"}


def test_a_loop_of_ones_own_skips_recorded_phases_and_hands_over_progress(url: str, ledger: Ledger) -> None:
    # B5 B3
    def loop(fail_at: str) -> list[object]:
        out = []
        with CheckpointManager(url) as manager, manager.begin(goal="g") as run:
            for phase in ("load", "think", "think"):
                with run.step(phase) as step:
                    if not step.recorded:
                        ledger(phase)
                        step.save({"half": phase})
                        if phase == fail_at:
                            raise RuntimeError(phase)
                        step.complete(f"{phase} done")
                out.append(step.value)
            run.complete(out)
        return out

    with pytest.raises(RuntimeError):
        loop("think")
    assert ledger.take() == ["load", "think"]
    assert loop("") == ["load done", "think done", "think done"]
    assert ledger.take() == ["think", "think"]
    with perdure.Client(url) as client:
        assert client.find("g").status == "completed"


def test_the_order_of_as_completed_is_replayed(url: str) -> None:
    # X10
    order = [2, 0, 1]
    crash = True

    @perdure.flow
    async def flow() -> list[int]:
        gates = [asyncio.Event() for _ in range(3)]
        gates[order[0]].set()

        @perdure.step
        async def work(n: int) -> int:
            await gates[n].wait()
            return n

        got = []
        async for n in perdure.as_completed(*(work(n) for n in range(3))):
            got.append(n)
            if len(got) < 3:
                gates[order[len(got)]].set()
        if crash:
            raise RuntimeError
        return got

    with pytest.raises(RuntimeError):
        perdure.run(flow, goal="g", store=url)
    crash, order = False, [0, 1, 2]
    assert perdure.run(flow, goal="g", store=url) == [2, 0, 1]


def test_first_keeps_its_choice_and_does_not_start_the_losers_again(url: str, ledger: Ledger) -> None:
    # X10
    crash = True

    @perdure.step
    async def quick() -> str:
        ledger("quick")
        return "quick"

    @perdure.step
    async def stuck() -> str:
        ledger("stuck")
        await asyncio.Event().wait()
        return "stuck"

    @perdure.flow
    async def flow() -> str:
        winner = await perdure.first(stuck(), quick())
        if crash:
            raise RuntimeError
        return winner

    with pytest.raises(RuntimeError):
        perdure.run(flow, goal="g", store=url)
    ledger.take()
    crash = False
    assert perdure.run(flow, goal="g", store=url) == "quick"
    assert ledger.take() == []


def test_a_run_stopped_by_a_person_stays_stopped_until_a_person_lets_it_go_on(url: str) -> None:
    # B9
    @perdure.step
    def work() -> int:
        raise RuntimeError

    flow = perdure.flow(lambda: work())
    with pytest.raises(RuntimeError):
        perdure.run(flow, goal="g", store=url)
    with perdure.Client(url) as client:
        client.pause("g", by="ada", reason="too dear")
    with pytest.raises(errors.RunStopped, match="ada: too dear"):
        perdure.run(flow, goal="g", store=url)
    with pytest.raises(RuntimeError):
        perdure.run(flow, goal="g", store=url, resume_stopped=True)


def test_a_store_that_cannot_be_opened_refuses_or_degrades_with_a_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # B4 B10
    (tmp_path / "file").write_text("x")
    bad = f"sqlite:{tmp_path / 'file' / 'runs.db'}"
    seen: list[object] = []

    @perdure.step
    def work() -> int:
        seen.append(perdure.context().durability.durable)
        return 1

    flow = perdure.flow(lambda: work())
    with pytest.raises(errors.PerdureError):
        perdure.run(flow, goal="g", store=bad)
    assert seen == []
    assert perdure.run(flow, goal="g", store=bad, config=perdure.CheckpointConfig(store_failure="degrade")) == 1
    assert seen == [False] and "WITHOUT durability" in caplog.text


def test_outputs_stand_in_files_of_their_own_with_any_store(url: str, tmp_path: Path) -> None:
    # C4
    @perdure.step
    def text() -> str:
        return "# Review\n"

    @perdure.step
    def data() -> dict[str, int]:
        return {"score": 3}

    @perdure.step
    def raw() -> bytes:
        return b"\x00\x01"

    @perdure.flow
    def flow() -> int:
        return len(text()) + len(data()) + len(raw())

    perdure.run(flow, goal="g", store=url, config=perdure.CheckpointConfig(outputs=tmp_path / "out"))
    files = {p.name: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert files["01-text.md"] == b"# Review\n" and files["03-raw.bin"] == b"\x00\x01"
    assert b'"score": 3' in files["02-data.json"]


def test_what_is_in_doubt_is_verified_or_refused_as_declared(url: str, ledger: Ledger) -> None:  # X9 rel:R4
    effects: list[str] = []

    @perdure.step(on_crash="verify", verify=lambda: effects[0] if effects else None)
    def charge() -> str:
        ledger("charge")
        effects.append("paid")
        raise KeyboardInterrupt

    @perdure.step(on_crash="fail")
    def fire() -> str:
        ledger("fire")
        raise KeyboardInterrupt

    flows = {"verify": perdure.flow(name="f")(lambda: charge()), "fail": perdure.flow(name="f")(lambda: fire())}
    for goal, flow in flows.items():
        with pytest.raises(KeyboardInterrupt):
            perdure.run(flow, goal=goal, store=url)
    assert ledger.take() == ["charge", "fire"]
    assert perdure.run(flows["verify"], goal="verify", store=url) == "paid"
    with pytest.raises(errors.InDoubt):
        perdure.run(flows["fail"], goal="fail", store=url)
    assert ledger.take() == []
    with perdure.Client(url) as client:
        assert client.find("fail").status == "paused"


def test_an_async_flow_is_not_begun_where_a_loop_runs_already(url: str) -> None:
    @perdure.flow
    async def nothing() -> int:
        return 1

    async def main() -> None:
        with pytest.raises(errors.ConfigError, match="an event loop runs in this thread already") as error:
            perdure.run(nothing, goal="g", store=url)
        assert "await manager.run" in str(error.value)

    asyncio.run(main())


class SlowToClaim(MemoryStore):
    """Says when a claim is under way, and waits until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.claiming, self.may_go_on = threading.Event(), threading.Event()

    def claim(self, key: perdure.RunKey) -> Lease:
        self.claiming.set()
        assert self.may_go_on.wait(30)
        return super().claim(key)

    def release(self, lease: Lease) -> None:
        super().release(lease)
        self.released.set()

    released = threading.Event()


def test_a_run_cancelled_while_it_begins_is_left_in_order(ledger: Ledger) -> None:  # B3
    store = SlowToClaim()

    @perdure.flow
    async def nothing() -> int:
        ledger("ran")
        return 1

    async def main(manager: CheckpointManager) -> None:
        task = asyncio.create_task(manager.run(nothing, goal="g"))
        await asyncio.to_thread(store.claiming.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        store.may_go_on.set()
        assert await asyncio.to_thread(store.released.wait, 30)
        assert [(row.status, row.holder) for row in store.runs()] == [("interrupted", None)]

    with CheckpointManager(store) as manager:
        asyncio.run(main(manager))
    assert ledger.take() == []


def test_a_step_in_a_thread_that_does_not_know_the_run_says_that_it_is_not_durable(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:  # B4 B10: never silently
    @perdure.step(name="called in a pool")
    def work(n: int) -> int:
        return n + 1

    @perdure.flow
    def pooled() -> list[int]:
        with ThreadPoolExecutor() as pool:
            return list(pool.map(work, range(3)))

    @perdure.flow
    def carried() -> int:
        with ThreadPoolExecutor() as pool:
            return pool.submit(contextvars.copy_context().run, work, 1).result()

    assert perdure.run(carried, goal="carried", store=url) == 2
    assert "WITHOUT durability" not in caplog.text
    assert perdure.run(pooled, goal="pooled", store=url) == [1, 2, 3]
    [record] = [r for r in caplog.records if "WITHOUT durability" in r.message]
    assert "called in a pool" in record.message and "pooled#0" in record.message and "perdure.map" in record.message
    with perdure.Client(url) as client:
        assert [len(client.state(goal).steps) for goal in ("carried", "pooled")] == [1, 0]
    caplog.clear()
    assert work(1) == 2 and caplog.text == "", "outside of runs a step is a plain function"


def test_a_file_whose_suffix_is_no_suffix_is_kept_all_the_same(tmp_path: Path) -> None:  # W6 C4
    names = iter(["a.png", "b." + "x" * 300, "c.\u202egnp", "d", "e.tar.gz"])

    @perdure.step
    def make() -> File:
        return File(next(names), b"content")

    @perdure.flow
    def flow() -> list[str]:
        return [make().name[:1] for _ in range(5)]

    assert perdure.run(flow, goal="g", store=f"file:{tmp_path}") == list("abcde")
    kept = sorted(path.suffix for path in (tmp_path / "runs" / "g.0" / "outputs").iterdir() if path.suffix != ".json")
    assert kept == [".bin", ".bin", ".bin", ".gz", ".png"]
