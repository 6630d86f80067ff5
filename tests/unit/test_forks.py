"""Forks: what another run shares with its original, what begins anew in it, and what is refused."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure import journal as j
from perdure import states
from perdure.errors import (
    AnswerRefused,
    ConfigError,
    CorruptStore,
    LeaseHeld,
    RunCancelled,
    RunNotFound,
    RunStopped,
    RunSuspended,
)
from perdure.fold import State
from perdure.framing import unframe
from perdure.model import RunKey, Usage
from perdure.runtime.audit import Auditor
from perdure.runtime.manager import CheckpointManager
from perdure.stores.base import Store
from perdure.stores.memory import MemoryBackend, MemoryStore

RAN: list[str] = []
KEYS: list[str] = []
LARGE = "large " * 3000


@pytest.fixture(autouse=True)
def _forget() -> None:
    RAN.clear()
    KEYS.clear()


class World:
    """A store in memory, who executes on it, and who looks at it."""

    def __init__(self, **config: Any) -> None:
        self.backend = MemoryBackend()
        self.manager = CheckpointManager(MemoryStore(self.backend), perdure.CheckpointConfig(**config))
        self.client = perdure.Client(MemoryStore(self.backend))
        self.store: Store = MemoryStore(self.backend)

    def run(self, flow: Any, *args: Any, goal: str = "g", **options: Any) -> Any:
        RAN.clear()
        return self.manager.run_sync(flow, *args, goal=goal, **options)

    def fork(self, name: str = "g#0", **terms: Any) -> State:
        return self.client.fork(name, by="ann", **terms)

    def go_on(self, state: State, flow: Any, *args: Any, **options: Any) -> Any:
        return self.run(flow, *args, goal=state.key.goal, episode=state.key.episode, **options)

    def is_sound(self) -> bool:
        return list(Auditor(self.store).everything()) == []


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.manager.close()


@perdure.step
def load(topic: str) -> str:
    RAN.append("load")
    KEYS.append(perdure.context().idempotency_key)
    return f"{topic} {LARGE}"


@perdure.step
def draft(text: str, tone: str) -> str:
    RAN.append("draft")
    KEYS.append(perdure.context().idempotency_key)
    perdure.context().spent(cost=1.0)
    return f"{tone} {len(text)}"


@perdure.step
def publish(text: str) -> str:
    RAN.append("publish")
    return f"<{text}>"


@perdure.flow
def letter(topic: str, tone: str = "plain") -> str:
    return publish(draft(load(topic), tone))


@perdure.flow
def asked(topic: str) -> str:
    text = draft(load(topic), "plain")
    ok: bool = perdure.ask("Publish?", answer=bool)
    return publish(text) if ok else "dropped"


# -- what is shared, and what begins anew -----------------------------------------------------------------------------


def test_a_fork_shares_the_records_up_to_a_step_and_goes_on_by_itself(world: World) -> None:  # X2
    assert world.run(letter, "tides") == "<plain 18006>"
    before, blobs = world.store.read(RunKey("g")), set(world.backend.blobs)
    assert blobs
    fork = world.fork(after="draft")
    assert (str(fork.key), fork.status, fork.reason) == ("g#1", "interrupted", "forked from g#0 after step 2 (draft)")
    shared = fork.forked.seq if fork.forked is not None else 0
    records = world.store.read(fork.key)
    assert [unframe(fork.key, line) for line in records[:shared]] == [
        unframe(RunKey("g"), line) for line in before[:shared]
    ]
    assert len(records) == shared + 1 and world.store.read(RunKey("g")) == before
    assert world.go_on(fork, letter, "tides") == "<plain 18006>" and RAN == ["publish"]
    assert world.backend.blobs.keys() == blobs, "they are shared"
    assert world.is_sound()


@pytest.mark.parametrize("name", ["2", "draft"])
def test_a_step_is_named_as_everywhere(world: World, name: str) -> None:
    world.run(letter, "tides")
    assert str(world.fork(after=name).forked) == "g#0 after step 2 (draft)"


def test_of_steps_of_one_name_the_latest_is_meant_that_the_run_still_needs(world: World) -> None:
    for topic in ("tides", "the moon", "tides"):
        world.run(letter, topic, adopt_input=True)
    assert (
        world.client.state("g").steps[5].unused and str(world.fork(after="draft").forked) == "g#0 after step 2 (draft)"
    )


def test_an_attempt_that_is_going_to_be_made_again_is_no_end_of_a_step(world: World) -> None:
    @perdure.step(retries=1)
    def fragile() -> str:
        RAN.append("fragile")
        if len(RAN) == 1:
            raise ValueError("broken")
        return "mended"

    flow = perdure.flow(name="f")(lambda: fragile())
    assert world.run(flow) == "mended"
    entries = world.client.entries("g")
    failed = next(entry.seq for entry in entries if isinstance(entry, j.StepFailed))
    fork = world.fork(at=failed)
    assert str(fork.forked) == f"g#0 after entry {failed}" and fork.steps[1].failures == 1
    with pytest.raises(ConfigError, match="has not ended: it is retrying"):
        world.fork(str(fork.key), after="fragile")
    done = world.fork(after="fragile")
    assert done.forked is not None and isinstance(entries[done.forked.seq - 1], j.StepCompleted)


def test_what_is_told_of_a_run_as_a_whole_begins_anew(world: World) -> None:  # X2 X6 X7
    budget = perdure.Budget(cost=1.5)
    world.run(letter, "tides", budget=budget, attribution=perdure.Attribution(caller="bob", tags={"a": "b"}))
    world.client.pin("g", by="bob")
    original, keys = world.client.state("g#0"), list(KEYS)
    fork = world.fork(after="load")
    assert fork.run_id != original.run_id and fork.keyed_by == original.run_id
    assert (fork.lives, fork.usage, fork.posts, fork.pinned, fork.output) == (0, Usage(), 0, False, None)
    assert fork.budget == budget and fork.attribution == original.attribution and original.pinned
    assert fork.created > original.updated
    assert world.go_on(fork, letter, "tides") == "<plain 18006>", "the budget is not used up: it is another run's"
    assert world.client.state("g#1").usage == Usage(cost=1.0)
    assert len(KEYS) == 3 and KEYS[:2] == keys and KEYS[2] not in keys, "what it does outside is another effect"


def test_a_step_that_was_executed_at_the_cut_is_the_originals_and_in_no_doubt(world: World) -> None:  # X9 X2
    seen: list[tuple[int, str]] = []

    @perdure.step(on_crash="fail")
    def pay(amount: int) -> str:
        context = perdure.context()
        seen.append((context.attempt, context.idempotency_key))
        context.stream("half")
        return f"paid {amount}"

    shop = perdure.flow(name="shop")(lambda: pay(3))
    world.run(shop)
    started = next(entry.seq for entry in world.client.entries("g") if isinstance(entry, j.StepStarted))
    fork = world.fork(at=started)
    step = fork.steps[1]
    assert (step.status, step.generation, [a.outcome for a in step.attempts]) == ("invalidated", 1, ["interrupted"])
    assert world.go_on(fork, shop) == "paid 3"
    assert [attempt for attempt, _ in seen] == [1, 2] and seen[0][1] != seen[1][1]


def test_a_step_that_was_in_doubt_before_the_cut_stays_so(world: World) -> None:  # X9
    @perdure.step(on_crash="fail")
    def pay() -> str:
        raise KeyboardInterrupt

    shop = perdure.flow(name="shop")(lambda: pay())
    with pytest.raises(KeyboardInterrupt):
        world.run(shop)
    with pytest.raises(perdure.errors.InDoubt):
        world.go_on(world.fork(), shop)


def test_progress_and_text_of_what_was_executed_at_the_cut_are_handed_on(world: World) -> None:  # C5
    got: list[tuple[object, str]] = []

    @perdure.step
    def long() -> str:
        context = perdure.context()
        got.append((context.progress, context.partial_text))
        context.stream("half a text")
        context.save({"done": 3})
        return "all"

    flow = perdure.flow(name="f")(lambda: long())
    world.run(flow)
    saved = next(entry.seq for entry in world.client.entries("g") if isinstance(entry, j.StepProgress))
    world.go_on(world.fork(at=saved), flow)
    assert got == [(None, ""), ({"done": 3}, "half a text")]


@pytest.mark.parametrize("how", ["paused", "cancelled", "failed", "asking", "queued", "interrupted"])
def test_whatever_became_of_the_original_a_fork_can_go_on(world: World, how: str) -> None:  # X2
    broken = [True] if how == "failed" else []

    @perdure.step
    def fragile(text: str) -> str:
        if broken:
            raise ValueError("broken")
        return text

    @perdure.flow
    def flow(topic: str) -> str:
        text = fragile(load(topic)[:5])
        if how == "interrupted" and not world.client.runs("g")[1:]:
            raise KeyboardInterrupt
        return text if how == "failed" or perdure.ask("Go on?", answer=bool) else "no"

    if how == "queued":
        world.manager.submit(flow, "tides", goal="g", delay=1000)
    else:
        with suppress(RunSuspended, ValueError, KeyboardInterrupt):
            world.run(flow, "tides")
    if how == "paused":
        world.client.pause("g", by="bob")
    if how == "cancelled":
        world.client.cancel("g", by="bob")
    broken.clear()
    fork = world.fork()
    row = world.client.find("g#1")
    assert (row.status, fork.stop, fork.stopped_by) == ("interrupted", None, "") and 0 < row.wake <= row.updated
    told = world.manager.recover(flow)
    if how != "failed":
        assert told[fork.key] == "pending_input"
        world.client.answer("g#1", None, True, by="ann")
    assert world.go_on(fork, flow, "tides") == "tides" and world.is_sound()
    assert "load" not in RAN


def test_a_fork_of_a_run_that_is_executed_at_this_moment(world: World) -> None:  # X2 X3
    inside, go_on = threading.Event(), threading.Event()

    @perdure.step
    def slow(text: str) -> str:
        if not inside.is_set():
            inside.set()
            assert go_on.wait(30)
        RAN.append("slow")
        return text[:5]

    flow = perdure.flow(name="f")(lambda topic: slow(load(topic)))
    thread = threading.Thread(target=lambda: world.manager.run_sync(flow, "tides", goal="g"))
    thread.start()
    assert inside.wait(30)
    held = world.store.read(RunKey("g"))
    fork = world.fork()
    assert fork.steps[2].status == states.INVALIDATED
    assert world.go_on(fork, flow, "tides") == "tides" and RAN == ["slow"]
    assert world.store.read(RunKey("g")) == held, "the original has noticed nothing"
    go_on.set()
    thread.join()
    assert world.client.find("g#0").status == states.COMPLETED and world.is_sound()


def test_forks_made_at_once_are_runs_of_their_own(world: World) -> None:  # X2
    world.run(letter, "tides")
    made: list[str] = []

    def fork() -> None:
        with perdure.Client(MemoryStore(world.backend)) as client:
            made.append(str(client.fork("g#0", after="load", by="ann").key))

    threads = [threading.Thread(target=fork) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 8 and world.is_sound()


def test_an_episode_that_somebody_is_about_to_begin_is_left_to_him(world: World) -> None:
    world.run(letter, "tides")
    lease = world.store.claim(RunKey("g", 1))
    assert str(world.fork().key) == "g#2"
    world.store.release(lease)


def test_an_episode_that_somebody_has_begun_a_moment_ago_is_his(world: World) -> None:
    class Overtaken(MemoryStore):
        def claim(self, key: RunKey) -> Any:
            if key.episode == 1:
                world.run(letter, "the moon", episode=1)
            return super().claim(key)

    world.run(letter, "tides")
    with perdure.Client(Overtaken(world.backend)) as client:
        assert str(client.fork("g#0", by="ann").key) == "g#2"
    assert world.is_sound()


def test_a_fork_under_another_goal_is_its_first_episode_or_the_next(world: World) -> None:
    world.run(letter, "tides")
    assert [str(world.fork(goal="h").key) for _ in range(2)] == ["h#0", "h#1"]


def test_a_fork_can_be_forked_before_and_after_where_it_began(world: World) -> None:  # X2
    world.run(letter, "tides")
    one = world.fork(after="draft", inputs={"tone": "kind"})
    assert world.go_on(one, letter, "tides", "kind") == "<kind 18006>"
    two = world.fork("g#1")
    assert world.go_on(two, letter, "tides", "kind") == "<kind 18006>" and RAN == []
    three = world.fork("g#2", at=2)
    assert str(three.forked) == "g#2 after entry 2" and three.run_id not in (one.run_id, two.run_id)
    assert three.args[1].head == '"kind"', "the inputs are those that the run has now"
    assert world.go_on(three, letter, "tides", "kind") == "<kind 18006>" and RAN == ["load", "draft", "publish"]
    assert world.is_sound()


def test_that_a_fork_asks_for_other_things_is_no_nondeterminism() -> None:
    """Its questions have ids of their own, and its inputs may be others."""
    strict = World(nondeterminism="raise", on_question=(lambda question: RAN.append(question.id),))
    with pytest.raises(RunSuspended):
        strict.run(asked, "tides")
    assert len(RAN) == 3
    fork = strict.fork()
    with pytest.raises(RunSuspended):
        strict.go_on(fork, asked, "tides")
    assert [strict.client.question("g#1").id] == RAN, "people are told of the fork's own question, once"
    strict.manager.close()


def test_a_fork_completes_with_what_it_saved(world: World) -> None:  # X6
    world.run(letter, "tides")
    world.go_on(world.fork(after="draft"), letter, "tides")
    row = world.client.find("g#1")
    assert (row.used, row.saved) == (Usage(), Usage(cost=1.0))


def test_a_fork_has_the_inputs_that_its_original_went_on_with(world: World) -> None:
    world.run(letter, "tides")
    world.run(letter, "moon", adopt_input=True)
    assert [arg.head for arg in world.fork(at=1).args] == ['"moon"', '"plain"']
    fork = world.fork(at=1, inputs={"tone": "kind"})
    assert world.go_on(fork, letter, "moon", "kind") == "<kind 18005>"
    world.backend.runs[RunKey("g")].records[-1] = b"damaged\n"
    assert world.fork(at=1).args[0].head == '"moon"'


# -- questions --------------------------------------------------------------------------------------------------------


def test_an_open_question_is_asked_by_each_of_both(world: World) -> None:  # W1 rel:H2
    with pytest.raises(RunSuspended):
        world.run(asked, "tides")
    world.fork()
    one, two = world.client.question("g#0"), world.client.question("g#1")
    assert one.id != two.id and (two.run, two.prompt) == ("g#1", "Publish?")
    with pytest.raises(RunNotFound, match="asks no question"):
        world.client.answer("g#1", one.id, True, by="bob")
    world.client.answer("g#1", two.id, False, by="bob")
    assert [q.id for q in world.client.questions()] == [one.id]
    assert world.run(asked, "tides", episode=1) == "dropped"
    assert world.client.state("g#1").posts == 1 and world.is_sound()


def test_a_question_that_was_answered_can_be_answered_otherwise(world: World) -> None:  # X2 W1
    with pytest.raises(RunSuspended):
        world.run(asked, "tides")
    world.client.answer("g", None, True, by="bob")
    assert world.run(asked, "tides") == "<plain 18006>"
    fork = world.fork(answers={"ask": False})
    assert world.go_on(fork, asked, "tides") == "dropped" and RAN == []
    assert world.client.state("g#1").posts == 0 and world.is_sound()
    with pytest.raises(AnswerRefused, match="answered already, by ann"):
        world.client.answer("g#1", "ask", True, by="eve")
    assert world.go_on(world.fork(answers={"3": True}), asked, "tides") == "<plain 18006>"


def test_of_questions_of_one_name_the_latest_is_meant(world: World) -> None:
    flow = perdure.flow(name="f")(lambda: [perdure.ask(f"Number {n}?", answer=int) for n in range(3)])
    for n in range(3):
        with pytest.raises(RunSuspended):
            world.run(flow)
        world.client.answer("g", None, n, by="bob")
    assert world.run(flow) == [0, 1, 2]
    assert world.go_on(world.fork(answers={"ask": 9}), flow) == [0, 1, 9]
    with pytest.raises(RunSuspended):
        world.go_on(world.fork(answers={"2": 9}), flow)


def test_an_open_question_can_be_answered_with_the_fork(world: World) -> None:
    with pytest.raises(RunSuspended):
        world.run(asked, "tides")
    fork = world.fork(answers={"ask": True})
    assert world.go_on(fork, asked, "tides") == "<plain 18006>"
    assert world.client.questions("g#0"), "the original still asks"


def test_an_answer_is_good_although_the_deadline_has_passed_meanwhile(world: World) -> None:  # X2
    @perdure.flow
    def late(topic: str) -> str:
        return "yes" if perdure.ask("Now?", answer=bool, deadline=timedelta(seconds=0.01), default=False) else "no"

    assert world.run(late, "tides", wait=True) == "no"
    assert world.go_on(world.fork(answers={"ask": True}), late, "tides") == "yes"


@pytest.mark.parametrize(
    ("terms", "kind", "said"),
    [
        ({"answers": {"ask": "maybe"}}, AnswerRefused, "no answer to question 3"),
        ({"answers": {"other": True}}, RunNotFound, "has never asked a question 'other'"),
        ({"answers": {"ask": True}, "after": "publish"}, ConfigError, "answered already, by bob .* Leave out --after"),
        ({"answers": {"ask": True}, "after": "load"}, ConfigError, "does not ask 'ask' after entry 3"),
        ({"answers": {"ask": True, "3": False}}, ConfigError, "question 3 is answered twice"),
        ({"after": "nothing"}, RunNotFound, "has no step 'nothing'.*Its steps: load, draft, ask, publish"),
        ({"after": "load", "at": 3}, ConfigError, "after and at both"),
        ({"at": 0}, ConfigError, "cannot be forked after entry 0: it has entries 1 to 1"),
        ({"at": 99}, ConfigError, "cannot be forked after entry 99"),
        ({"at": True}, ConfigError, "cannot be forked after entry True"),
        ({"goal": " "}, ConfigError, "goal is empty"),
        ({"inputs": {"tone": 1}}, ConfigError, "has no input 'tone'.*It has: topic"),
        ({"inputs": {"topic": object()}}, perdure.errors.CodecError, "topic"),
        ({"outputs": {"ask": object()}}, perdure.errors.CodecError, "result of step 3"),
        ({"outputs": {"draft": "a", "2": "b"}}, ConfigError, "is given two results"),
        ({"outputs": {"publish": "x"}, "after": "load"}, RunNotFound, "has no step 'publish'"),
        ({"outputs": {"load": "x"}, "at": 2}, ConfigError, "has no result that could be another: it is running"),
    ],
)
def test_what_cannot_be_forked_is_refused_and_nothing_is_written(
    world: World, terms: dict[str, Any], kind: type[Exception], said: str
) -> None:
    with pytest.raises(RunSuspended):
        world.run(asked, "tides")
    world.client.answer("g", None, True, by="bob")
    world.run(asked, "tides")
    with pytest.raises(kind, match=said):
        world.fork(**terms)
    assert [str(row.key) for row in world.client.runs()] == ["g#0"] and len(world.backend.runs) == 1


def test_more_than_can_be_written_at_once_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.run(letter, "tides")
    monkeypatch.setattr("perdure.runtime.fork.MAX_SHARED", world.client.state("g").size - 1)
    with pytest.raises(ConfigError, match="bytes of records up to there"):
        world.fork()
    assert world.fork(after="draft").status == states.INTERRUPTED


def test_a_step_that_has_not_ended_is_no_place_to_fork(world: World) -> None:
    with pytest.raises(RunSuspended):
        world.run(asked, "tides")
    with pytest.raises(ConfigError, match=r"step 3 \(ask\) has not ended: it is pending"):
        world.fork(after="ask")
    with pytest.raises(RunNotFound):
        world.fork("nobody")
    with pytest.raises(ConfigError, match="by is empty"):
        world.client.fork("g", by="")


# -- the store --------------------------------------------------------------------------------------------------------


def test_an_original_that_is_removed_in_this_moment_is_not_forked_and_leaves_nothing(world: World) -> None:
    class Removes(MemoryStore):
        """Somebody removes the run as soon as the fork's place is claimed."""

        def claim(self, key: RunKey) -> Any:
            if key.episode == 1:
                other = MemoryStore(self._backend)
                other.delete(other.claim(RunKey("g")))
            return super().claim(key)

    world.run(letter, "tides")
    with perdure.Client(Removes(world.backend)) as client, pytest.raises(RunNotFound, match="There is no run g#0"):
        client.fork("g", by="ann")
    assert world.backend.runs.keys() == set() and world.is_sound()


def test_all_of_a_fork_is_in_one_append_after_its_blobs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows the shared records as well: so nobody sees a run that is half the original's."""
    appended: list[int] = []

    class Counts(MemoryStore):
        def append(self, batch: Any) -> Any:
            appended.extend(len(item.records) for item in batch)
            return super().append(batch)

    monkeypatch.setattr("perdure.runtime.sender._BLOBS_AT_ONCE", 20_000)
    for goal in ("tides", "moon", "sea"):
        world.run(letter, goal, goal="g", adopt_input=True)
    with perdure.Client(Counts(world.backend)) as client:
        fork = client.fork("g", outputs={"publish": LARGE + "x"}, inputs={"topic": LARGE + "y"}, by="ann")
    assert appended.pop() == fork.seq and set(appended) == {0} and len(appended) > 3 and world.is_sound()


def test_a_blob_that_is_missing_is_told_and_nothing_is_left(world: World) -> None:  # rel:B3
    world.run(letter, "tides")
    world.backend.blobs.clear()
    with pytest.raises(CorruptStore, match="is missing"):
        world.fork()
    assert len(world.backend.runs) == 1
    assert str(world.fork(at=1).key) == "g#1", "before it was needed"


def test_a_worker_takes_a_fork_up_by_itself(world: World) -> None:  # B2
    with pytest.raises(RunSuspended):
        world.run(asked, "tides")
    world.fork(answers={"ask": True})
    RAN.clear()
    assert world.manager.recover(asked) == {RunKey("g", 1): "completed"} and RAN == ["publish"]


def test_a_fork_that_is_paused_before_it_was_begun_can_go_on(world: World) -> None:  # B9
    world.run(letter, "tides")
    fork = world.fork(after="load")
    world.client.pause("g#1", by="bob")
    with pytest.raises(RunStopped):
        world.go_on(fork, letter, "tides")
    assert world.client.unpause("g#1", by="bob").status == states.READY
    assert world.manager.recover(letter) == {fork.key: "completed"}
    other = world.fork(after="load")
    world.client.cancel(str(other.key), by="bob")
    with pytest.raises(RunCancelled):
        world.go_on(other, letter, "tides")
    assert world.is_sound()


def test_outputs_of_shared_steps_are_files_of_the_fork_too(tmp_path: Path) -> None:  # C4
    url = f"file:{tmp_path / 'store'}"
    perdure.run(letter, "tides", goal="g", store=url)
    with perdure.Client(url) as client:
        fork = client.fork("g", after="draft", outputs={"draft": "edited"}, by="ann")
    assert perdure.run(letter, "tides", goal="g", episode=1, store=url) == "<edited>"
    with perdure.Client(url) as client:
        state = client.state(str(fork.key))
        files = [client.output_file(state, step) for step in state.steps.values()]
    assert [path.name if path else "" for path in files] == ["01-load.md", "02-draft.md", "03-publish.md"]
    assert files[1] is not None and files[1].read_text() == "edited"
    folder = tmp_path / "elsewhere"
    with perdure.Client(url) as client:
        client.fork("g#0", after="draft", by="ann")
    with CheckpointManager(url, perdure.CheckpointConfig(outputs=folder)) as manager:
        manager.run_sync(letter, "tides", goal="g", episode=2)
    assert sorted(path.name for path in folder.rglob("*.md")) == ["01-load.md", "02-draft.md", "03-publish.md"]


def test_a_fork_is_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:  # B8
    caplog.set_level(logging.INFO, "perdure")
    world.run(letter, "tides")
    fork = world.fork(after="draft")
    world.go_on(fork, letter, "tides")
    assert "run g#1 is forked from g#0 after step 2 (draft)" in caplog.text
    assert "run g#1 goes on (it was interrupted): 2 steps are recorded" in caplog.text


def test_async_code_goes_on_with_a_fork(world: World) -> None:
    @perdure.step
    async def fetch(topic: str) -> str:
        RAN.append("fetch")
        return topic.upper()

    @perdure.flow
    async def flow(topic: str) -> str:
        return await fetch(topic) + publish("x")

    assert asyncio.run(world.manager.run(flow, "tides", goal="g")) == "TIDES<x>"
    fork = world.fork(after="fetch")
    RAN.clear()
    assert asyncio.run(world.manager.run(flow, "tides", goal="g", episode=1)) == "TIDES<x>"
    assert fork.forked is not None and RAN == ["publish"]


def test_nobody_can_take_the_original_from_whoever_forks_it(world: World) -> None:  # X3
    world.run(letter, "tides")
    lease = world.store.claim(RunKey("g"))
    with pytest.raises(LeaseHeld):
        MemoryStore(world.backend).claim(RunKey("g"))
    assert str(world.fork().key) == "g#1", "a fork needs no lease of its original"
    world.store.release(lease)
