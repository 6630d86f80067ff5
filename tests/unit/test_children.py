"""Children, attempts at one goal, and budgets: what a parent sees, what is chosen, and when a run stops to ask."""

from __future__ import annotations

import asyncio
import functools
import threading
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.errors import ConfigError, IncompleteCrew, LimitReached
from perdure.model import Usage
from perdure.runners import Best, Score, best_of
from perdure.runtime.children import Failed

RAN: list[str] = []


@pytest.fixture(autouse=True)
def _forget() -> None:
    RAN.clear()


@perdure.step
def dig(topic: str) -> str:
    RAN.append(topic)
    if topic == "sand":
        raise ValueError("nothing in sand")
    return f"{topic}!"


@perdure.flow
def worker(topic: str) -> str:
    return dig(topic)


def paths(url: str, goal: str = "g") -> list[str]:
    with perdure.Client(url) as client:
        return [step.path for step in client.state(goal).steps.values()]


def test_children_have_scopes_by_role_and_number_in_the_order_in_which_they_are_started(
    tmp_path: Path,
) -> None:  # K1 K3
    @perdure.flow
    def planner(topics: list[str]) -> list[str]:
        return perdure.map(perdure.child(worker), topics)

    @perdure.flow
    def top() -> list[list[str]]:
        return perdure.gather(*(functools.partial(perdure.child(planner), [t, "iron"]) for t in ("gold", "tin")))

    url = f"file:{tmp_path}"
    assert perdure.run(top, goal="g", store=url) == [["gold!", "iron!"], ["tin!", "iron!"]] == top()
    expected = {f"planner-{p}/worker-{w}/dig" for p in (0, 1) for w in (0, 1)}
    assert set(paths(url)) == expected | {"planner", "planner-0/worker", "planner-1/worker"}


def test_a_childs_number_is_that_of_its_start_also_if_it_is_slow_to_ask_for_anything(tmp_path: Path) -> None:  # K1
    asked = threading.Event()

    @perdure.flow
    def slow_worker(topic: str) -> str:
        if topic == "gold":
            asked.wait(60)
        found = dig(topic)
        asked.set()
        return found

    @perdure.flow
    def top() -> list[str]:
        return perdure.map(perdure.child(slow_worker), ["gold", "tin"])

    url = f"file:{tmp_path}"
    perdure.run(top, goal="g", store=url)
    with perdure.Client(url) as client:
        steps = [step for step in client.state("g").steps.values() if step.name == "dig"]
    assert {step.path: step.args[0].head for step in steps} == {
        "slow_worker-0/dig": '"gold"',
        "slow_worker-1/dig": '"tin"',
    }


def test_a_finished_child_is_reused_whole_and_what_was_in_it_is_not_superseded(tmp_path: Path) -> None:  # K3
    url, broken = f"file:{tmp_path}", [True]

    @perdure.flow
    def top() -> str:
        found = perdure.child(worker)("gold")
        if broken:
            raise RuntimeError("stop")
        return found

    with pytest.raises(RuntimeError):
        perdure.run(top, goal="g", store=url)
    broken.clear()
    assert perdure.run(top, goal="g", store=url) == "gold!" and RAN == ["gold"]
    with perdure.Client(url) as client:
        assert not any(step.unused for step in client.state("g").steps.values())


def test_a_failing_child_does_not_fail_its_siblings_and_the_parent_sees_what_was_declared(tmp_path: Path) -> None:  # K3
    url = f"file:{tmp_path}"
    stop = [True]

    @perdure.flow
    def top() -> list[str]:
        found = perdure.map(perdure.child(worker, on_error="return"), ["gold", "sand", "tin"])
        told = [item if item else f"({item.error})" for item in found]  # type: ignore[union-attr]
        if stop:
            raise RuntimeError("stop")
        return told

    with pytest.raises(RuntimeError):
        perdure.run(top, goal="g", store=url)
    stop.clear()
    assert perdure.run(top, goal="g", store=url) == ["gold!", "(ValueError: nothing in sand)", "tin!"]
    assert sorted(RAN) == ["gold", "sand", "tin"], "what the parent was told stays true in later lives"
    assert perdure.run(top, goal="g", store=url, rerun="flagged")[1] == "(ValueError: nothing in sand)"
    assert sorted(RAN) == ["gold", "sand", "sand", "tin"]


def test_by_default_a_childs_error_is_the_parents_once_its_siblings_have_ended() -> None:  # K3
    @perdure.flow
    def top() -> list[str]:
        return perdure.map(perdure.child(worker), ["sand", "gold"])

    with pytest.raises(ValueError, match="nothing in sand") as error:
        perdure.run(top, goal="g", store="memory:")
    assert sorted(RAN) == ["gold", "sand"]
    assert error.value.__notes__[0].startswith("run g#0, step ") and "(worker-0/dig)" in error.value.__notes__[0]


def test_a_second_child_of_one_name_is_refused_and_named(tmp_path: Path) -> None:
    url, names = f"file:{tmp_path}", ["scout", "scout"]

    @perdure.flow
    def inner() -> list[str]:
        return [perdure.child(worker, name=name)(topic) for name, topic in zip(names, ("gold", "tin"), strict=True)]

    @perdure.flow
    def top() -> list[str]:
        return perdure.child(inner)()

    with pytest.raises(ConfigError, match="run g#0, scope 'inner-0': a second child is started under the name 'scout'"):
        perdure.run(top, goal="g", store=url)
    names[1] = "other"
    assert perdure.run(top, goal="g", store=url) == ["gold!", "tin!"] and RAN == ["gold", "tin"]


def test_a_child_is_a_flow_and_no_step() -> None:
    with pytest.raises(ConfigError, match="dig is a step already"):
        perdure.child(dig)
    with pytest.raises(ConfigError, match="on_error must be"):
        perdure.child(worker, on_error="ignore")  # type: ignore[call-overload]
    assert not Failed("a", "b")


def test_rerunning_a_step_inside_a_child_executes_the_child_too(tmp_path: Path) -> None:  # C11
    url = f"file:{tmp_path}"

    @perdure.flow
    def top() -> list[str]:
        return [perdure.child(worker)("gold"), perdure.child(worker)("tin")]

    perdure.run(top, goal="g", store=url)
    RAN.clear()
    perdure.run(top, goal="g", store=url, rerun="worker-1/dig")
    assert RAN == ["tin"]


# -- attempts ----------------------------------------------------------------------------------------------------------


@perdure.step
def write(topic: str) -> str:
    run = perdure.context().run
    RAN.append(str(run))
    if run is not None and run.episode == 1 and topic == "bad":
        raise ValueError("lost the thread")
    return f"{topic} {run.episode if run else '?'}"


@perdure.flow
def essay(topic: str) -> str:
    return write(topic)


def judged(output: str) -> tuple[int, str]:
    return (int(output[-1]), f"ends in {output[-1]}")


def test_the_best_attempt_is_chosen_and_the_choice_is_recorded_with_its_reason(tmp_path: Path) -> None:  # K2
    url = f"file:{tmp_path}"
    best: Best[str] = perdure.run(best_of(3, essay, judge=judged), "sea", goal="e", store=url)
    assert (best.output, best.episode) == ("sea 2", 2)
    assert best.reason == "attempt 2 has the highest score, 2 (attempt 0: 0, attempt 1: 1): ends in 2"
    assert RAN == ["e/best#0", "e/best#1", "e/best#2"]
    with perdure.Client(url) as client:
        assert [str(row.key) for row in client.runs()] == ["e#0", "e/best#0", "e/best#1", "e/best#2"]
        assert client.state("e/best#1").attribution.parent == "e#0"
        choice = client.step("e", "choose").output
        assert choice is not None and client.value(choice).reason == best.reason


def test_a_judge_that_is_satisfied_ends_the_attempts() -> None:  # K2
    for judge in (lambda output: output.endswith("1"), lambda output: Score(1, "fine", enough=output.endswith("1"))):
        best = perdure.run(best_of(5, essay, judge=judge), "sea", goal="e", store="memory:")
        assert best.episode == (1 if best.attempts[0].score == 0 else 0) and len(best.attempts) == 2


def test_the_earliest_of_equals_wins_and_failed_attempts_take_no_part() -> None:  # K2
    best = perdure.run(best_of(3, essay, judge=lambda output: 7), "bad", goal="e", store="memory:")
    assert best.episode == 0 and best.attempts[1].score is None
    assert "attempt 1: failed" in best.reason and best.attempts[1].reason == "ValueError: lost the thread"


def test_if_all_attempts_fail_the_reasons_are_told_and_a_later_run_makes_them_again(tmp_path: Path) -> None:
    url, broken = f"file:{tmp_path}", [True]

    @perdure.flow
    def fails(topic: str) -> str:
        if broken:
            raise ValueError("no idea")
        return f"{topic} 9"

    judge = best_of(2, fails, judge=judged)
    with pytest.raises(IncompleteCrew, match="None of 2 attempts delivered: attempt 0: ValueError: no idea"):
        perdure.run(judge, "sea", goal="e", store=url)
    broken.clear()
    assert perdure.run(judge, "sea", goal="e", store=url, rerun="flagged").output == "sea 9"


def test_side_by_side_the_losers_of_an_early_choice_stay_stopped(tmp_path: Path) -> None:  # K2 B9
    async def main() -> None:
        started: list[int] = []

        @perdure.step
        async def think() -> str:
            episode = perdure.context().run.episode  # type: ignore[union-attr]
            started.append(episode)
            if episode != 1:
                await asyncio.Event().wait()
            return f"from {episode}"

        @perdure.flow
        async def attempt() -> str:
            return await think()

        with perdure.CheckpointManager(f"file:{tmp_path}") as manager:
            best = await manager.run(best_of(3, attempt, judge=lambda output: True, limit=3), goal="e")
        assert best.episode == 1 and sorted(started) == [0, 1, 2]

    asyncio.run(main())
    with perdure.Client(f"file:{tmp_path}") as client:
        told = {str(row.key): (row.status, row.reason) for row in client.runs()}
        assert client.interrupted() == []
    assert told["e/best#0"] == told["e/best#2"] == ("cancelled", "attempt 1 was chosen")


def test_attempts_inside_a_flow_and_in_another_episode_have_goals_of_their_own(tmp_path: Path) -> None:  # K2
    url = f"file:{tmp_path}"

    @perdure.flow
    def top(topic: str) -> list[str]:
        made = best_of(1, essay, judge=judged)
        return [made(topic).output, made(topic).output]

    perdure.run(top, "sea", goal="e", store=url)
    perdure.run(top, "sea", goal="e", store=url, new=True)
    assert RAN == ["e/best-0#0", "e/best-1#0", "e#1/best-0#0", "e#1/best-1#0"]


def test_attempts_need_no_store() -> None:  # G1
    best = best_of(2, essay, judge=lambda output: 3)("sea")
    assert (best.output, best.episode, len(best.attempts)) == ("sea ?", 0, 2)


@pytest.mark.parametrize("said", ["good", None, (1, 2, 3)])
def test_a_judge_that_says_nothing_of_use_is_an_error(said: Any) -> None:
    with pytest.raises((ConfigError, perdure.PerdureError), match=r"the judge returned|the output is None"):
        perdure.run(best_of(1, essay, judge=lambda output: said), "sea", goal="e", store="memory:")


@pytest.mark.parametrize("wrong", [{"n": 0}, {"limit": 0}, {"flow": write}])
def test_a_wrong_declaration_of_attempts_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="best_of"):
        best_of(**{"n": 2, "flow": essay, "judge": judged, **wrong})


# -- budgets -----------------------------------------------------------------------------------------------------------


@perdure.step(metered=True)
def ask(question: int) -> str:
    RAN.append(f"ask {question}")
    perdure.context().spent(input_tokens=100, cost=0.5)
    return "answer"


@perdure.flow
def interview(questions: int) -> int:
    return len([ask(question) for question in range(questions)])


@pytest.mark.parametrize(
    ("budget", "more", "asked"),
    [
        (perdure.Budget(cost=1.0), perdure.Budget(cost=9.0), 2),
        (perdure.Budget(tokens=250), perdure.Budget(tokens=900), 3),
        (perdure.Budget(calls=4), perdure.Budget(calls=9), 4),
    ],
)
def test_a_budget_pauses_the_run_when_it_is_used_up_and_a_larger_one_lets_it_go_on(
    tmp_path: Path, budget: perdure.Budget, more: perdure.Budget, asked: int
) -> None:  # X6
    url = f"file:{tmp_path}"
    with pytest.raises(LimitReached, match="run g#0: its budget is used up"):
        perdure.run(interview, 6, goal="g", store=url, budget=budget)
    assert len(RAN) == asked
    with pytest.raises(LimitReached):
        perdure.run(interview, 6, goal="g", store=url)
    assert len(RAN) == asked, "the recorded budget holds in later lives"
    assert perdure.run(interview, 6, goal="g", store=url, budget=more) == 6 and len(RAN) == 6
    with perdure.Client(url) as client:
        state = client.state("g")
    assert state.budget == more and state.usage == Usage(calls=6, input_tokens=600, cost=3.0)
    assert state.paid.calls == 6 - asked and state.saved_usage.calls == asked


def test_one_cap_can_be_raised_and_the_others_stay(tmp_path: Path) -> None:  # X6
    url = f"file:{tmp_path}"
    with pytest.raises(LimitReached, match="calls: 1 of 1"):
        perdure.run(interview, 6, goal="g", store=url, budget=perdure.Budget(calls=1, cost=1.0))
    with pytest.raises(LimitReached, match="cost: 1 of 1"):
        perdure.run(interview, 6, goal="g", store=url, budget=perdure.Budget(calls=100))


def test_seconds_count_over_lives_and_not_in_between(tmp_path: Path) -> None:  # X6
    class Clock(perdure.clock.Clock):  # type: ignore[name-defined]
        passed = 0.0

        def now(self) -> float:
            return super().now() + self.passed

        def monotonic(self) -> float:
            return super().monotonic() + self.passed

    clock = Clock()

    @perdure.step
    def slow(n: int) -> str:
        RAN.append(f"slow {n}")
        clock.passed += 40
        if len(RAN) <= 2:
            raise ValueError("stop")
        return "x"

    @perdure.flow
    def flow() -> list[str]:
        return [slow(n) for n in range(5)]

    with perdure.CheckpointManager(f"file:{tmp_path}", clock=clock) as manager:
        for _ in range(2):
            with pytest.raises(ValueError, match="stop"):
                manager.run_sync(flow, goal="g", budget=perdure.Budget(seconds=100))
            clock.passed += 10_000
        with pytest.raises(LimitReached, match="seconds"):
            manager.run_sync(flow, goal="g")
    assert RAN == ["slow 0"] * 3


def test_what_a_crashed_or_failed_attempt_used_counts_as_spent(tmp_path: Path) -> None:  # X6
    @perdure.step(metered=True, retries=1, backoff=0)
    def flaky() -> str:
        perdure.context().spent(output_tokens=7)
        if perdure.context().attempt == 1:
            raise ValueError("again")
        return "fine"

    perdure.run(perdure.flow(name="f")(lambda: flaky()), goal="g", store=f"file:{tmp_path}")
    with perdure.Client(f"file:{tmp_path}") as client:
        row = client.find("g")
    assert row.used == row.paid == Usage(calls=2, output_tokens=14) and not row.saved


@pytest.mark.parametrize("caps", [{"cost": 0}, {"calls": -1}, {"tokens": True}, {"seconds": "9"}])
def test_a_cap_is_a_number_above_nothing(caps: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be a number above 0"):
        perdure.Budget(**caps)


def test_spent_takes_numbers_from_nothing_on() -> None:
    @perdure.step
    def wrong() -> str:
        perdure.context().spent(cost=-1)
        return "x"

    with pytest.raises(ConfigError, match=r"spent\(\) takes numbers"):
        perdure.run(perdure.flow(name="f")(lambda: wrong()), goal="g", store="memory:")


def test_after_the_choice_no_later_life_begins_an_attempt_that_is_not_needed(tmp_path: Path) -> None:  # K2
    started: list[int] = []
    broken = [True]

    @perdure.step
    async def think() -> str:
        episode = perdure.context().run.episode  # type: ignore[union-attr]
        started.append(episode)
        if episode == 1:
            await asyncio.Event().wait()
        return f"from {episode}"

    @perdure.flow
    async def attempt() -> str:
        return await think()

    choose = best_of(2, attempt, judge=lambda output: True, limit=2)

    @perdure.flow
    async def top() -> str:
        best = await choose()
        if broken:
            raise RuntimeError("stop")
        return str(best.output)

    url = f"file:{tmp_path}"
    with pytest.raises(RuntimeError):
        perdure.run(top, goal="e", store=url)
    broken.clear()
    assert perdure.run(top, goal="e", store=url) == "from 0" and started == [0, 1]
    with perdure.Client(url) as client:
        assert [s.attempts[-1].number for s in client.state("e").steps.values() if s.name == "attempt"] == [1, 1]
