"""The fold: what may follow what, and journals of released versions."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from perdure import codec, states
from perdure import journal as j
from perdure.errors import CorruptStore, NewerFormat
from perdure.fold import State, fold
from perdure.framing import frame
from perdure.model import Budget, ErrorInfo, Limits, RunKey, Usage

KEY = RunKey("paper", 1)
ONE = codec.dumps(1, "value")[0]
ERROR = ErrorInfo("ValueError", "no")
RELEASED = Path(__file__).parents[1] / "journals"

RUN_ENTRIES: dict[str, j.Entry] = {
    "run_began": j.RunBegan(run_id="r", flow="f", epoch=1, pid=1, host="h"),
    "run_resumed": j.RunResumed(epoch=2, pid=1, host="h"),
    "run_completed": j.RunCompleted(output=ONE),
    "run_failed": j.RunFailed(error=ERROR),
    "run_paused": j.RunPaused(reason="lunch", by="ada"),
    "run_interrupted": j.RunInterrupted(reason="SIGTERM"),
    "run_pending_input": j.RunSuspended(reason="waits", input=True),
    "run_waiting": j.RunSuspended(reason="waits", wake=9.0),
    "run_cancelled": j.RunCancelled(reason="enough", by="ada"),
    "run_queued": j.RunQueued(run_id="r", flow="f", queue="q", wake=9.0),
    "run_forked": j.RunForked(run="paper#0", origin="r", run_id="r-2", at_seq=0),
}
STEP_ENTRIES: dict[str, j.Entry] = {
    "step_completed": j.StepCompleted(step=1, attempt=1, output=ONE),
    "step_flagged": j.StepCompleted(step=1, attempt=1, output=ONE, flagged="empty"),
    "step_failed": j.StepFailed(step=1, attempt=1, outcome="failed", error=ERROR, final=True),
    "step_retrying": j.StepFailed(step=1, attempt=1, outcome="failed", error=ERROR, until=5.0),
    "step_waiting": j.StepWaiting(step=1, attempt=1, until=5.0, error=ERROR),
    "step_interrupted": j.StepInterrupted(step=1, attempt=1),
    "step_invalidated": j.StepsInvalidated(steps=(1,), why="--rerun"),
    "step_pending": j.StepPending(step=1, attempt=2, until=5.0),
}
STARTED = j.StepStarted(step=1, attempt=1, name="load", fingerprint="x")
REACH_RUN: dict[str | None, list[str]] = {
    None: [],
    states.RUNNING: ["run_began"],
    states.QUEUED: ["run_queued"],
    **{
        states.RUN[states.RUNNING, f"run_{end}"]: ["run_began", f"run_{end}"]
        for end in ("completed", "failed", "paused", "interrupted", "pending_input", "waiting", "cancelled")
    },
}


def journal(*entries: j.Entry) -> State:
    """The state after entries, numbered as they come."""
    state = State(KEY)
    for entry in entries:
        add(state, entry)
    return state


def add(state: State, entry: j.Entry) -> None:
    kind = type(entry)
    fields = {name: getattr(entry, name) for name in entry.__struct_fields__}
    if isinstance(entry, j.RunForked) and not entry.at_seq:
        fields["at_seq"] = state.seq
    state.apply(kind(**{**fields, "seq": state.seq + 1}))


@pytest.mark.parametrize("event", RUN_ENTRIES)
@pytest.mark.parametrize("status", REACH_RUN, ids=str)
def test_only_what_the_table_of_runs_allows_is_folded(status: str | None, event: str) -> None:  # G8
    state = journal(*(RUN_ENTRIES[name] for name in REACH_RUN[status]))
    assert state.status == status
    if (status, event) in states.RUN:
        add(state, RUN_ENTRIES[event])
        assert state.status == states.RUN[status, event]
    else:
        kind = "run_suspended" if event in ("run_pending_input", "run_waiting") else event
        with pytest.raises(CorruptStore, match=rf"paper#1: entry \d is '({event}|{kind})', which cannot follow"):
            add(state, RUN_ENTRIES[event])


@pytest.mark.parametrize("event", STEP_ENTRIES)
@pytest.mark.parametrize("reached", ["running", *STEP_ENTRIES])
def test_only_what_the_table_of_steps_allows_is_folded(reached: str, event: str) -> None:  # C2 G8
    before = [RUN_ENTRIES["run_began"], STARTED]
    if reached == "step_invalidated":
        before.append(STEP_ENTRIES["step_completed"])
    if reached == "step_pending":
        before[1] = replace(STEP_ENTRIES[reached], attempt=1, name="load", fingerprint="x")
    elif reached != "running":
        before.append(STEP_ENTRIES[reached])
    state = journal(*before)
    status = state.steps[1].status
    if (status, event) in states.STEP:
        add(state, STEP_ENTRIES[event])
        assert state.steps[1].status == states.STEP[status, event]
        assert state.steps[1].attempts[-1].outcome != states.RUNNING
    else:
        with pytest.raises(CorruptStore, match="cannot follow the state"):
            add(state, STEP_ENTRIES[event])


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (j.StepStarted(step=1, attempt=3), "starts attempt 3 out of order"),
        (j.StepCompleted(step=2, attempt=1, output=ONE), "speaks of step 2, which never started"),
        (j.StepCompleted(step=1, attempt=2, output=ONE), "speaks of attempt 2 of step 1, which has had 1"),
        (j.StepProgress(step=1, attempt=0, value=ONE), "speaks of attempt 0"),
        (j.StepChunk(step=7, attempt=1, text="a"), "speaks of step 7"),
        (j.StepsInvalidated(steps=(1, 9), why="x"), "cannot follow the state 'running' of step 1"),
        (j.StepEdited(step=1, output=ONE), "edits step 1 of a run that goes on"),
        (j.RunForked(run="a#0", origin="r", run_id="q", at_seq=1), "says that the run was forked at 1"),
        (j.RunForked(run="a#0", origin="r", run_id="q", at_seq=2, step=4), "speaks of step 4"),
    ],
)
def test_an_entry_about_what_never_happened_is_damage(entry: j.Entry, said: str) -> None:  # G8
    state = journal(RUN_ENTRIES["run_began"], STARTED)
    with pytest.raises(CorruptStore, match=said):
        add(state, entry)


WAITS = j.StepPending(step=1, name="ask", fingerprint="x", asked=j.Asked("Go?"))
ANSWER = msgspec.Raw(b"true")


def asks(*more: j.Entry) -> State:
    """A run with one question, and its id."""
    return journal(RUN_ENTRIES["run_began"], WAITS, *more)


def test_what_arrives_wakes_a_suspended_run_and_nothing_else() -> None:  # W1
    answered = j.QuestionAnswered(post=1, step=1, question=asks().waits.questions()[0].id, value=ANSWER, by="ann")
    for before, after in [("run_pending_input", states.READY), ("run_waiting", states.READY)]:
        assert asks(RUN_ENTRIES[before], answered).status == after
    for before in ("run_paused", "run_interrupted", "run_failed"):
        state = asks(RUN_ENTRIES[before], answered)
        assert state.status == states.RUN[states.RUNNING, before] and state.waits.arrived == {1: state.waits.arrived[1]}
    paused = asks(RUN_ENTRIES["run_paused"], j.RunReleased(post=1, by="ann"))
    assert (paused.status, paused.stopped_by) == (states.READY, "")


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([j.QuestionAnswered(post=2, step=1, question="q", value=ANSWER)], "is post 2 after post 0"),
        ([j.PostDropped(post=3, why="late")], "is post 3 after post 0"),
        ([j.QuestionAnswered(post=1, step=2, question="q", value=ANSWER)], "step 2, which does not wait"),
        (
            [j.QuestionAnswered(post=n, step=1, question="q", value=ANSWER) for n in (1, 2)],
            "step 1, which does not wait",
        ),
    ],
)
def test_a_history_of_posts_that_cannot_be_is_damage(entries: list[j.Entry], said: str) -> None:  # G8
    with pytest.raises(CorruptStore, match=said):
        asks(*entries)


def test_a_signal_goes_to_who_waits_longest_and_a_withdrawn_one_to_the_next() -> None:  # X10
    waits = [j.StepPending(step=n, name="s", fingerprint="x", n=n, signal="go") for n in (1, 2, 3)]
    sent = [j.SignalReceived(post=n, name="go", value=msgspec.Raw(str(n).encode())) for n in (1, 2)]
    state = journal(RUN_ENTRIES["run_began"], waits[0], waits[1], *sent)
    assert {n: bytes(entry.value) for n, entry in state.waits.arrived.items()} == {1: b"1", 2: b"2"}  # type: ignore[attr-defined]
    add(state, j.QuestionClosed(post=3, step=1, question=""))
    add(state, waits[2])
    assert {n: entry.post for n, entry in state.waits.arrived.items()} == {2: 2, 3: 1}
    add(state, j.AnswerRejected(step=3, why="no"))
    assert list(state.waits.arrived) == [2]


def test_questions_of_a_run_that_is_over_are_closed() -> None:  # rel:H4
    for end in ("run_completed", "run_cancelled"):
        state = asks(RUN_ENTRIES[end])
        assert state.waits.questions() == [] and state.steps[1].status == states.INTERRUPTED
    for end in ("run_failed", "run_interrupted", "run_paused", "run_pending_input"):
        assert len(asks(RUN_ENTRIES[end]).waits.questions()) == 1


def test_a_gap_is_damage() -> None:  # G8
    state = journal(RUN_ENTRIES["run_began"])
    with pytest.raises(CorruptStore, match="entry 3 follows entry 1"):
        state.apply(j.RunInterrupted(seq=3, reason="x"))


def test_a_resumed_run_knows_its_running_steps_as_crashed_and_an_ended_one_as_interrupted() -> None:  # C2 B3
    began, resumed = RUN_ENTRIES["run_began"], RUN_ENTRIES["run_resumed"]
    assert journal(began, STARTED, resumed).steps[1].status == states.CRASHED
    assert journal(began, STARTED, RUN_ENTRIES["run_failed"]).steps[1].status == states.INTERRUPTED


def test_a_kind_from_a_newer_version_is_refused_and_a_damaged_record_is_not_taken_for_one() -> None:  # X13 K4
    newer = frame(KEY, b'{"kind":"run_began/9","seq":1}')
    with pytest.raises(NewerFormat, match="'run_began/9'"):
        fold(KEY, [newer])
    with pytest.raises(CorruptStore, match="record 1 is damaged"):
        fold(KEY, [newer.replace(b"run_began/9", b"run_begun/9")])
    with pytest.raises(CorruptStore):
        fold(RunKey("other", 1), [j.encode(KEY, RUN_ENTRIES["run_began"])])


def _kept(pattern: str) -> list[Path]:
    return sorted(RELEASED.glob(pattern))


@pytest.mark.parametrize("path", _kept("*-agent.jsonl"), ids=lambda p: p.stem)
def test_journals_of_agents_of_every_released_version_still_fold(path: Path) -> None:  # X6 X13 B7
    state = fold(KEY, path.read_bytes().splitlines(keepends=True))
    assert state.status == states.COMPLETED and state.budget == Budget(calls=9)
    assert [(m.role, m.step) for m in state.conversations[""]] == [
        ("system", 0),
        ("user", 0),
        ("assistant", 1),
        ("tool", 2),
        ("assistant", 4),
    ]
    assert state.usage == Usage(calls=2, input_tokens=10, output_tokens=5, cost=0.25)
    assert state.paid == Usage(calls=1) and state.saved_usage.calls == 1
    assert state.steps[3].status == states.COMPLETED and state.steps[3].output == state.steps[2].output
    assert state.steps[1].spoken and not state.steps[3].spoken


@pytest.mark.parametrize("path", _kept("*[0-9].jsonl"), ids=lambda p: p.stem)
def test_journals_of_every_released_version_still_fold(path: Path) -> None:  # X13
    state = fold(KEY, path.read_bytes().splitlines(keepends=True))
    assert state.status == states.COMPLETED
    assert {step.name: step.status for step in state.steps.values()} == {
        "load": states.COMPLETED,
        "expert": states.FLAGGED,
        "meta": states.COMPLETED,
    }
    meta = next(step for step in state.steps.values() if step.name == "meta")
    assert [a.outcome for a in meta.attempts] == ["failed", "waiting", "crashed", "interrupted", "completed"]
    assert meta.partial_text == "half a sentence"
    assert meta.progress is not None and codec.loads(meta.progress, {}) == {"part": (1, 2)}
    assert state.output is not None and codec.loads(state.output, {}) == "the end"


@pytest.mark.parametrize("path", _kept("*-waiting.jsonl"), ids=lambda p: p.stem)
def test_journals_that_waited_of_every_released_version_still_fold(path: Path) -> None:  # W1 X13
    state = fold(KEY, path.read_bytes().splitlines(keepends=True))
    assert (state.status, state.stopped_by, state.reason) == (states.CANCELLED, "ann", "enough")
    assert (state.posts, state.waits.steps, state.waits.arrived, state.woken) == (11, {}, {}, ["other#0"])
    decided = {entry.step: entry for entry in state.waits.decided.values()}
    assert isinstance(decided[2], j.QuestionAnswered) and (decided[2].by, bytes(decided[2].value)) == (
        "ann",
        b'{"n":4}',
    )
    assert isinstance(decided[4], j.QuestionClosed) and not decided[4].expired
    assert {name: len(queue) for name, queue in state.waits.signals.items()} == {"other": 1}


@pytest.mark.parametrize("path", _kept("*-queued.jsonl"), ids=lambda p: p.stem)
def test_journals_of_submitted_runs_of_every_released_version_still_fold(path: Path) -> None:  # X4 X13
    lines = path.read_bytes().splitlines(keepends=True)
    row = fold(KEY, lines[:1]).meta()
    assert (row.status, row.queue, row.priority, row.wake, row.begun) == ("queued", "night", 5, 1795249400.0, 0.0)
    assert row.limits == Limits(concurrency=2, rate=10, per=60.0) and row.idempotency_key == "k-1"
    crashed = fold(KEY, lines[:5])
    assert (crashed.version, crashed.crashes, crashed.meta().wake) == ("2", 1, crashed.meta().begun)
    paused = fold(KEY, lines[:6])
    assert (paused.status, paused.crashes, paused.steps[1].status) == ("paused", 2, "crashed")
    state = fold(KEY, lines)
    assert (state.status, state.lives, state.crashes, state.forgiven) == ("ready", 3, 0, state.updated)
    assert [attempt.outcome for attempt in state.steps[1].attempts] == ["crashed", "crashed", "completed"]


@pytest.mark.parametrize("path", _kept("*-pinned.jsonl"), ids=lambda p: p.stem)
def test_journals_of_pinned_runs_of_every_released_version_still_fold(path: Path) -> None:  # K5 X13
    lines = path.read_bytes().splitlines(keepends=True)
    assert [fold(KEY, lines[:n]).meta().pinned for n in range(1, 6)] == [False, True, True, False, True]
    assert fold(KEY, lines).status == states.COMPLETED


@pytest.mark.parametrize("path", _kept("*-renewed.jsonl"), ids=lambda p: p.stem)
def test_journals_of_runs_that_executed_what_had_changed_still_fold(path: Path) -> None:  # X1 X13
    lines = path.read_bytes().splitlines(keepends=True)
    assert [fold(KEY, lines[:n]).renewing for n in (6, 7, 11, 12)] == [None, "2.f2", "2.f2", None]
    state = fold(KEY, lines)
    assert state.output is not None and codec.loads(state.output) == "a good draft"
    assert (state.steps[2].digest, state.steps[2].generation) == ("2.b2", 1)
    assert {name: codec.loads(code).get("PROMPT") for name, code in state.code.items()} == {
        "2.a1": None,
        "2.b1": 'PROMPT = "Draft."',
        "2.b2": 'PROMPT = "Draft well."',
    }


def test_with_a_fork_all_that_is_told_of_a_run_as_a_whole_begins_anew() -> None:  # X2 X6
    state, fresh = journal(RUN_ENTRIES["run_queued"]), State(KEY)
    whole = """
        reason created lives crashes idempotency_key reused saved stopped_by usage paid saved_usage seconds output error
        outputs posts woken woken_at stop pinned wake life_began not_before left_at
    """.split()
    for name in whole:
        setattr(state, name, "of the original")
    add(state, RUN_ENTRIES["run_forked"])
    assert state.reason == "forked from paper#0 after entry 1"
    left = {name for name in whole if getattr(state, name) != getattr(fresh, name)}
    assert left == {"reason"}, "created is 0, as in the entry"
    forked = replace(RUN_ENTRIES["run_forked"], at=9.0)
    add(state, forked)
    assert (state.created, state.forgiven, state.meta().wake) == (9.0, 9.0, 9.0)


def test_a_question_that_has_refused_an_answer_is_open_in_a_fork_with_the_reason() -> None:  # W1
    answered = j.QuestionAnswered(post=1, step=1, question=asks().waits.questions()[0].id, value=ANSWER, by="ann")
    state = asks(answered, j.AnswerRejected(step=1, why="not that"))
    (before,) = state.waits.questions()
    add(state, RUN_ENTRIES["run_forked"])
    (after,) = state.waits.questions()
    assert after == replace(before, id=after.id) and after.id != before.id and after.refused == "not that"
    assert state.meta().questions[0].id == after.id


@pytest.mark.parametrize("path", _kept("*-forked.jsonl"), ids=lambda p: p.stem)
def test_journals_of_forks_of_every_released_version_still_fold(path: Path) -> None:  # X2 X12 X13
    lines = path.read_bytes().splitlines(keepends=True)
    before = next(n for n in range(1, len(lines)) if fold(KEY, lines[:n]).forked is not None) - 1
    shared, fork = fold(KEY, lines[:before]), fold(KEY, lines[: before + 3])
    assert fork.forked is not None and str(fork.forked) == f"paper#0 after entry {before}" and fork.forked.by == "bob"
    assert (shared.posts, fork.posts) == (1, 0) and fork.status == states.INTERRUPTED
    assert fork.keyed_by == shared.run_id != fork.run_id
    assert fork.steps[1].edited == "bob" and isinstance(fork.waits.arrived[2], j.QuestionAnswered)
    assert [arg.head for arg in shared.args] == ['"tides"', '"plain"'] and fork.args[1].head == '"kind"'
    state = fold(KEY, lines)
    assert (state.status, state.lives, state.posts, len(state.waits.signals["hint"])) == ("completed", 2, 1, 1)
    assert state.output is not None and codec.loads(state.output, {}) == "kind better draft 7"


def test_the_journals_kept_have_every_kind() -> None:  # X13
    told = b"".join(path.read_bytes() for path in RELEASED.glob("*.jsonl")).decode()
    assert RELEASED.is_dir()
    for kind in j.KINDS:
        assert f'"{kind.__struct_config__.tag}"' in told, f"no kept journal has a {kind.__name__}"


@pytest.mark.parametrize("kind", [kind for kind in j.KINDS if not issubclass(kind, j.First)], ids=lambda k: k.__name__)
def test_a_journal_begins_with_the_entry_of_a_run_that_begins(kind: type[j.Entry]) -> None:  # G8
    line = frame(KEY, msgspec.json.encode({"kind": kind.__struct_config__.tag, "seq": 1}))
    with pytest.raises(CorruptStore, match=r"entry 1 is .* cannot follow the state None|record 1 is damaged"):
        fold(KEY, [line])
