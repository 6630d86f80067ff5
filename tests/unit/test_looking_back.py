"""``at=``: a run as it was at some moment of its past, and what names a moment."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

import perdure
from perdure import journal as j
from perdure.clock import Clock
from perdure.errors import ConfigError, RunNotFound, RunSuspended
from perdure.fold import State
from perdure.model import RunKey
from perdure.runners import Agent, Reply, ToolCall, tool
from perdure.runners.transcript import transcript
from perdure.runtime.manager import CheckpointManager

MINUTE = 60.0
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()


class Wall(Clock):
    """A clock that people set."""

    def __init__(self) -> None:
        self.at = NOON

    def now(self) -> float:
        return self.at


CLOCK = Wall()
SAID = ["one"]


@pytest.fixture(autouse=True)
def _noon() -> None:
    CLOCK.at, SAID[0] = NOON, "one"


@pytest.fixture(params=["sqlite", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'runs.db'}" if request.param == "sqlite" else f"file:{tmp_path / 'runs'}"


@perdure.step
def draft(topic: str) -> str:
    CLOCK.at += MINUTE
    return f"{SAID[0]} on {topic}"


@perdure.step(retries=1, backoff=0.001)
def review(text: str) -> str:
    CLOCK.at += MINUTE
    if perdure.context().attempt == 1:
        raise ValueError("not yet")
    return f"good: {text}"


@perdure.flow
def article(topic: str) -> str:
    text = draft(topic)
    return review(text)


@perdure.flow
def broken(topic: str) -> str:
    return draft(draft(topic)) + str(1 / 0)


def execute(url: str, flow: Callable[..., object] = article, **options: object) -> None:
    with CheckpointManager(url, clock=CLOCK) as manager:
        manager.run_sync(flow, "tides", goal="g", **options)


def client(url: str) -> perdure.Client:
    return perdure.Client(url, clock=CLOCK)


def facts(state: State) -> tuple[object, ...]:
    steps = [(s.path, s.status, s.output, len(s.attempts), s.unused, s.partial_text) for s in state.steps.values()]
    return state.seq, state.status, state.reason, state.output, state.meta(), steps


def test_what_is_shown_of_the_past_is_what_was_shown_then(url: str) -> None:
    seen: dict[int, tuple[object, ...]] = {}

    class Watching:
        def notify(self, key: RunKey, entry: j.Entry) -> None:
            with client(url) as now:
                state = now.state(str(key))
            seen[state.seq] = facts(state)

    with CheckpointManager(url, clock=CLOCK, observers=[Watching()]) as manager:
        manager.run_sync(article, "tides", goal="g")
        SAID[0] = "two"
        manager.run_sync(article, "tides", goal="g", rerun="draft")
    with client(url) as now:
        assert len(seen) > 8 and max(seen) == now.state("g").seq
        for seq, shown in seen.items():
            assert facts(now.state("g", seq)) == facts(now.state("g", at=str(seq))) == shown


def test_a_result_that_was_made_again_is_still_there_at_its_time(url: str) -> None:  # X2
    execute(url)
    with client(url) as now:
        end = now.state("g").seq
    SAID[0] = "two"
    execute(url, rerun="draft")
    with client(url) as now:
        then, today = now.step("g", "draft", at=end), now.step("g", "draft")
        assert then.output is not None and today.output is not None
        assert (now.value(then.output), now.value(today.output)) == ("one on tides", "two on tides")
        was = now.state("g", end).output
        assert was is not None and now.value(was) == "good: one on tides"


def test_a_step_names_the_moment_when_it_had_ended(url: str) -> None:
    execute(url)
    with client(url) as now:
        after = now.state("g", "draft")
        assert facts(after) == facts(now.state("g", "#1")) and after.steps[1].recorded
        assert after.steps.keys() == {1} and after.status == "running"
        ended = now.state("g", "#2")
        assert ended.steps[2].recorded and len(ended.steps[2].attempts) == 2, "a failure that is retried is no end"
        assert isinstance(now.entries("g", ended.seq - 1)[0], j.StepCompleted)


def test_of_steps_of_one_name_the_one_that_ended_last_counts_and_a_final_failure_is_an_end(url: str) -> None:
    @perdure.step
    def fails(text: str) -> str:
        raise ValueError(text)

    @perdure.flow
    def twice(topic: str) -> str:
        return fails(draft(draft(topic)))

    with pytest.raises(ValueError, match="one on one on tides"):
        execute(url, twice)
    with client(url) as now:
        assert now.state("g", "draft").steps.keys() == {1, 2}
        assert now.state("g", "fails").steps[3].status == "failed"


def test_a_path_names_the_step_of_that_scope(url: str) -> None:
    @perdure.flow
    def both(topic: str) -> list[str]:
        return [perdure.child(article)(f"{topic} {n}") for n in (1, 2)]

    execute(url, both)
    with client(url) as now:
        assert not any(s.path.startswith("article-1/") for s in now.state("g", "article-0/review").steps.values())


@pytest.mark.parametrize("text", ["#3", "ask"])
def test_a_step_that_has_not_ended_is_no_moment(url: str, text: str) -> None:
    @perdure.flow
    def asks(topic: str) -> str:
        draft(draft(topic))
        return str(perdure.ask("Really?"))

    with pytest.raises(RunSuspended):
        execute(url, asks)
    with client(url) as now, pytest.raises(ConfigError, match=r"step 3 \(ask\) has not ended: it is pending"):
        now.state("g", text)


def test_a_failure_that_is_followed_by_another_attempt_is_no_end(url: str) -> None:
    @perdure.step(retries=1, backoff=0.001)
    def twice(topic: str) -> str:
        raise ValueError(topic) if perdure.context().attempt == 1 else KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(url, perdure.flow(lambda topic: twice(topic)))
    with client(url) as now, pytest.raises(ConfigError, match=r"step 1 \(twice\) has not ended: it is interrupted"):
        now.state("g", "twice")


def test_dates_and_ages_name_what_was_known_then(url: str) -> None:
    execute(url)
    CLOCK.at += 10 * MINUTE
    with client(url) as now:
        drafted = datetime.fromtimestamp(NOON + MINUTE, UTC)
        first = now.state("g", drafted)
        for text in (drafted.isoformat(), "2026-11-20T12:01Z", "2026-11-20T13:01:30+01:00", "12m", "719s"):
            assert facts(now.state("g", text)) == facts(first)
        assert first.steps[1].recorded and first.updated == NOON + MINUTE
        local = drafted.astimezone().replace(tzinfo=None)
        assert facts(now.state("g", local)) == facts(now.state("g", local.isoformat(" "))) == facts(first)
        assert facts(now.state("g", "5m")) == facts(now.state("g")) and now.state("g", "0s").status == "completed"


def test_a_clock_that_was_set_back_takes_nothing_from_the_past(url: str) -> None:  # rel:C5
    execute(url)
    CLOCK.at = NOON - 60 * MINUTE
    execute(url, rerun="review")
    with client(url) as now:
        CLOCK.at = NOON + MINUTE
        assert now.state("g", "0s").steps.keys() == {1, 2} and not now.state("g", "0s").steps[2].recorded
        assert now.state("g", datetime.fromtimestamp(NOON + 3 * MINUTE, UTC)).seq == now.state("g").seq


def test_a_number_is_an_entry_before_it_is_a_name_and_a_name_is_one_before_it_is_a_time(url: str) -> None:
    @perdure.flow
    def named(topic: str) -> str:
        return review.options(name="1")(draft.options(name="1m")(draft.options(name="2026-11-20")(topic)))

    execute(url, named)
    with client(url) as now:
        assert now.state("g", "1").seq == 1
        assert now.state("g", "2026-11-20").steps.keys() == {1}
        assert now.state("g", "1m").steps.keys() == {1, 2} and now.state("g", "1m").steps[2].recorded


@pytest.mark.parametrize(
    ("at", "said"),
    [
        ("0", "it has no entry 0"),
        (0, "it has no entry 0"),
        ("99", "it has no entry 99"),
        ("9" * 5000, "it has no entry 9999"),
        ("#9", "'#9' is no moment of it"),
        ("publish", "'publish' is no moment of it"),
        ("", "'' is no moment of it"),
        (-1, "'-1' is no moment of it"),
        ("2026-11-20T11:59Z", "at 2026-11-20 11:59:00 UTC it had not begun"),
        ("30d", "it had not begun"),
        ("\x1b[2J", r"is no moment of it"),
    ],
)
def test_what_is_no_moment_is_refused_with_what_there_is(url: str, at: int | str, said: str) -> None:
    execute(url)
    with client(url) as now, pytest.raises(ConfigError) as refused:
        now.state("g", at)
    told = str(refused.value)
    assert said in told and "\x1b" not in told
    assert "entries 1 to 8, from 2026-11-20 12:00:00 UTC to 2026-11-20 12:03:00 UTC, and steps draft, review." in told


def test_a_run_that_is_not_there_and_a_run_that_failed_are_told_as_ever(url: str) -> None:
    with pytest.raises(ZeroDivisionError):
        execute(url, broken)
    with client(url) as now:
        with pytest.raises(RunNotFound):
            now.state("nobody", 1)
        with pytest.raises(RunNotFound, match="no step 'review'"):
            now.step("g", "review", at="draft")
        assert now.state("g", "draft").status == "running" and now.state("g", "0s").error is not None


# -- transcripts -------------------------------------------------------------------------------------------------------


@tool
def look(n: int) -> str:
    """Look."""
    return f"seen {n}"


def model(messages: list[dict[str, str]], tools: object) -> Reply | str:
    return Reply("two", (ToolCall("look", {"n": 1}), ToolCall("look", {"n": 2}))) if len(messages) < 3 else "done"


def test_a_transcript_of_the_past_has_what_had_been_said(url: str) -> None:  # B7
    perdure.run(Agent(model, [look]), "go", goal="a", store=url)
    with client(url) as now:
        whole = transcript(now, "a")
        assert [line.role for line in whole] == ["user", "assistant", "tool", "tool", "assistant"]
        for entry in now.entries("a"):
            state = now.state("a", entry.seq)
            said = transcript(now, "a", at=entry.seq)
            spoken = {n for n, step in state.steps.items() if step.recorded}
            assert [line for line in said if line.step] == [line for line in whole if line.step in spoken]
            assert said[:1] == (whole[:1] if state.conversations else [])
        assert [line.content for line in transcript(now, "a", at="#1")] == ["go", "two"]
        with pytest.raises(RunNotFound, match="no agent in scope 'x'"):
            transcript(now, "a", "x", at=4)
