"""Archives: runs go from one store to another and are the same there; what is here already is never touched."""

from __future__ import annotations

import io
import json
import os
import stat
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from archive_shapes import (
    BROKEN,
    RAN,
    contents,
    exported,
    fill,
    imported,
    journal,
    kept,
    memory,
    program,
    put,
    run,
    states,
    work,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import perdure
from perdure import journal as j
from perdure.codec import Payload, dumps
from perdure.errors import (
    AnswerRefused,
    ConfigError,
    CorruptStore,
    LeaseHeld,
    NewerFormat,
    RunNotFound,
    RunStopped,
    RunSuspended,
    StoreBusy,
    StoreError,
)
from perdure.fold import fold
from perdure.framing import frame
from perdure.model import OWN, RunKey
from perdure.runtime import sender
from perdure.runtime.archive import Head
from perdure.runtime.manager import CheckpointManager
from perdure.runtime.queues import may_go_on
from perdure.stores import disk
from perdure.stores.base import Append, Store
from perdure.stores.file import FileStore
from perdure.stores.memory import MemoryBackend, MemoryStore

KEY = RunKey("paper")
ONE = dumps(1, "value")[0]


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    RAN.clear()
    BROKEN.clear()
    yield
    BROKEN.clear()


def began(**more: Any) -> j.RunBegan:
    return j.RunBegan(**{"run_id": "r", "flow": "program", "epoch": 1, "pid": 1, "host": "h", **more})


# -- round trips -------------------------------------------------------------------------------------------------------


def test_every_shape_of_run_is_the_same_elsewhere_to_the_byte() -> None:  # issue 6.5
    here, there = MemoryStore(memory()), MemoryStore(memory())
    fill(here)
    archive = exported(here)
    done = imported(there, archive, trust=True)
    assert contents(there) == contents(here) and states(there) == states(here)
    assert {row.status for row in there.runs()} > {"completed", "failed", "paused", "cancelled", "queued", "ready"}
    assert done.count("imported") == len(here.runs()) and done.paused == []
    assert exported(there) == archive or _without_date(exported(there)) == _without_date(archive)


def _without_date(archive: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return [(m.name, tar.extractfile(m).read()) for m in tar.getmembers()[1:-1]]  # type: ignore[union-attr]


_acts = st.one_of(
    st.tuples(st.just("work"), st.sampled_from([0, 1, 3, 9_000, 9_000, 40_000])),
    st.tuples(st.just("many"), st.integers(1, 3)),
    st.tuples(st.sampled_from(["ask", "signal", "break"]), st.none()),
)


@given(acts=st.lists(_acts, max_size=5), broken=st.sampled_from([None, "0", "1"]), signals=st.integers(0, 2))
@settings(max_examples=40, derandomize=True, suppress_health_check=list(HealthCheck))
def test_any_run_goes_on_elsewhere_as_it_would_have_here(
    acts: list[tuple[str, Any]], broken: str | None, signals: int
) -> None:
    one, two = memory(), memory()
    BROKEN.clear()
    BROKEN.update([broken] if broken else [])
    run(MemoryStore(one), "g", *acts)
    with perdure.Client(MemoryStore(one)) as client:
        for number in range(signals if client.find("g").status != "completed" else 0):
            client.signal("g", "paid", number)
    imported(MemoryStore(two), exported(MemoryStore(one)), trust=True)
    assert contents(MemoryStore(two)) == contents(MemoryStore(one))
    BROKEN.clear()
    results = []
    for backend in (one, two):
        RAN.clear()
        run(MemoryStore(backend), "g", *acts)
        with perdure.Client(MemoryStore(backend)) as client:
            state = client.state("g")
            told = client.value(state.output) if state.output else state.reason
            results.append((state.status, told, sorted(RAN)))
    assert results[0] == results[1]


def test_a_run_and_those_that_it_began_are_exported_together() -> None:
    store = MemoryStore(memory())
    fill(store)
    other = MemoryStore(memory())
    imported(other, exported(store, "best", "done#0"))
    assert [str(row.key) for row in other.runs()] == ["best#0", "best/best#0", "best/best#1", "done#0"]
    with pytest.raises(RunNotFound):
        exported(store, "done", "nobody")


def test_an_archive_is_read_without_perdure_and_tells_each_blob_once(tmp_path: Path) -> None:
    store = MemoryStore(memory())
    for goal in ("a", "b"):
        RAN.clear()
        run(MemoryStore(store._backend), goal, ("work", 9_000), ("work", 3))
    done = perdure.Client(store).export(tmp_path / "all.tgz")
    with tarfile.open(tmp_path / "all.tgz") as tar:
        names = tar.getnames()
        assert names[0] == "perdure.json" and names[-1] == "end.json" and len(set(names)) == len(names)
        head = json.load(tar.extractfile("perdure.json"))  # type: ignore[arg-type]
        end = json.load(tar.extractfile("end.json"))  # type: ignore[arg-type]
        text = tar.extractfile("runs/2/journal.jsonl").read()  # type: ignore[union-attr]
        assert all(m.isreg() and m.mode == 0o600 and m.mtime == 0 for m in tar.getmembers())
    assert (head["archive"], head["version"], head["made"] > 1.7e9) == ("perdure", 1, True)
    assert text == b"".join(store.read(RunKey("b")))
    blobs = [name for name in names if name.startswith("blobs/")]
    assert len(blobs) == end["blobs"] == done.blobs == len(store._backend.blobs) and end["runs"] == done.runs == 2
    assert done.size == (tmp_path / "all.tgz").stat().st_size
    assert stat.S_IMODE((tmp_path / "all.tgz").stat().st_mode) == 0o600  # rel:S13
    assert os.listdir(tmp_path) == ["all.tgz"]


def test_what_workers_and_queues_keep_in_a_store_is_never_exported() -> None:
    store = MemoryStore(memory())
    put(store, RunKey(f"{OWN}worker"), journal(RunKey(f"{OWN}worker"), began(flow=f"{OWN}worker")))
    run(MemoryStore(store._backend), "mine", ("work", 1))
    assert perdure.Client(store).export(io.BytesIO()).runs == 1


def test_a_run_that_is_damaged_keeps_no_other_from_being_exported() -> None:
    backend = memory()
    for goal in ("a", "b", "c"):
        run(MemoryStore(backend), goal, ("work", 9_000 + ord(goal)))
    backend.runs[RunKey("a")].records[1] = b"{}\n"
    blob = next(iter(fold(RunKey("b"), backend.runs[RunKey("b")].records).output.refs))  # type: ignore[union-attr]
    backend.blobs[blob] = b"something else"
    client, file = perdure.Client(MemoryStore(backend)), io.BytesIO()
    done = client.export(file)
    assert done.runs == 1 and set(done.damaged) == {"a#0", "b#0"} and "blob" in done.damaged["b#0"]
    assert [came.run for came in imported(MemoryStore(memory()), file.getvalue()).runs] == ["c#0"]
    for name in ("a", "b"):
        with pytest.raises(CorruptStore):
            client.export(io.BytesIO(), name)


def test_every_value_of_every_kind_of_entry_is_among_its_references() -> None:
    made = Payload(value=ONE.value, refs=("a" * 64,))
    other = Payload(value=ONE.value, refs=("b" * 64, "a" * 64))
    step = j.StepPending(step=1, asked=j.Asked("?", context=made, default=other))
    said = j.MessagesAdded(scope="", place=0, messages=(j.SpokenMessage("user", content=made), j.SpokenMessage("tool")))
    assert j.refs(step) == ("a" * 64, "b" * 64) and j.refs(said) == ("a" * 64,)
    assert j.refs(began(inputs=other)) == ("b" * 64, "a" * 64) and j.refs(j.RunResumed(epoch=1, pid=1, host="")) == ()
    for kind in j.KINDS:
        for name in kind.__struct_fields__:
            if "Payload" in str(kind.__annotations__.get(name, "")):
                assert j.refs(kind(**_least(kind) | {name: made})) == ("a" * 64,), f"{kind.__name__}.{name}"


def _least(kind: type[j.Entry]) -> dict[str, Any]:
    needed = {"step": 1, "output": ONE, "value": ONE, "run_id": "", "flow": "", "epoch": 1, "pid": 1, "host": ""}
    needed |= {"run": "", "origin": "", "at_seq": 1}
    return {name: needed[name] for name in needed if name in kind.__struct_fields__} | (
        {"queue": "q", "wake": 0.0} if kind is j.RunQueued else {}
    )


# -- while it is executed ----------------------------------------------------------------------------------------------


def test_a_run_is_exported_while_it_is_executed() -> None:
    backend = memory()
    inside, go_on = threading.Event(), threading.Event()

    @perdure.step
    def long() -> str:
        inside.set()
        assert go_on.wait(30)
        return "long"

    flow = perdure.flow(name="f")(lambda: (work("one", 9_000), long(), work("two")))
    thread = threading.Thread(target=lambda: perdure.run(flow, goal="g", store=MemoryStore(backend)))
    thread.start()
    assert inside.wait(30)
    store = MemoryStore(backend)
    held = store.read(RunKey("g"))
    archive = exported(store)
    go_on.set()
    thread.join()
    other = MemoryStore(memory())
    done = imported(other, archive)
    state = fold(RunKey("g"), other.read(RunKey("g")))
    assert other.read(RunKey("g"))[:-1] == held and done.paused == ["g#0"]
    assert {step.name: step.status for step in state.steps.values()} == {"work": "completed", "long": "crashed"}
    perdure.Client(other).unpause("g", by="ann")
    RAN.clear()
    assert perdure.run(flow, goal="g", store=other)[1:] == ("long", "two"[:3])
    assert RAN == ["two"], "what was done is not done again"


# -- nothing is executed before a person says so -----------------------------------------------------------------------


def _statuses(backend: MemoryBackend) -> dict[str, str]:
    with perdure.Client(MemoryStore(backend)) as client:
        return {str(row.key): row.status for row in client.runs()}


def test_runs_that_have_not_ended_come_in_paused_and_wait_for_a_person() -> None:  # rel:S15
    here, there = memory(), memory()
    fill(MemoryStore(here))
    before = _statuses(here)
    done = imported(MemoryStore(there), exported(MemoryStore(here)))
    after = _statuses(there)
    over = {"completed", "cancelled"}
    assert all(after[name] == (status if status in over else "paused") for name, status in before.items())
    with_us = {name for name, status in before.items() if status not in over} - {"stopped#0"}
    assert set(done.paused) == with_us
    RAN.clear()
    with CheckpointManager(MemoryStore(there)) as manager:
        assert manager.recover(program) == {} and RAN == []
        with pytest.raises(RunStopped, match=r"stopped by eve: imported from an archive, where it was ready: let"):
            manager.run_sync(program, [("work", 20_000), ("ask", None), ("work", 4)], goal="asks")
        assert RAN == []
    perdure.Client(MemoryStore(there)).unpause("asks", by="ann")
    with CheckpointManager(MemoryStore(there)) as manager:
        assert manager.recover(program) == {RunKey("asks"): "completed"} and RAN == ["2"]


def test_a_run_that_failed_says_so_although_it_is_paused() -> None:
    here, there = memory(), memory()
    run(MemoryStore(here), "g", ("break", None))
    imported(MemoryStore(there), exported(MemoryStore(here)))
    with perdure.Client(MemoryStore(there)) as client:
        assert "where it was failed (ValueError: break)" in client.find("g").reason
        assert client.state("g").error is not None


def _with_post(backend: MemoryBackend, post: j.Posted) -> None:
    """A post that nobody has moved yet."""
    store = MemoryStore(backend)
    post.posted = 1.7e9
    assert store.post(
        RunKey("g"), len(store.posts({RunKey("g"): 0}).get(RunKey("g"), [])) + 1, j.encode(RunKey("g"), post)
    )


@pytest.mark.parametrize(
    ("post", "status"),
    [
        (j.RunReleased(by="mallory"), "paused"),
        (j.StopRequested(by="", reason="x"), "paused"),
        (j.StopRequested(by="ann", reason="enough", cancel=True), "cancelled"),
        (j.SignalReceived(name="paid", value=perdure.runtime.forms.as_json(7)), "paused"),
    ],
    ids=["released", "stopped by nobody", "cancelled", "signal"],
)
def test_what_was_posted_and_not_read_takes_effect_before_the_pause(post: j.Posted, status: str) -> None:  # rel:S15
    here, there = memory(), memory()
    run(MemoryStore(here), "g", ("signal", None), ("work", 2))
    perdure.Client(MemoryStore(here)).pause("g", by="ann")
    _with_post(here, post)
    imported(MemoryStore(there), exported(MemoryStore(here)))
    store = MemoryStore(there)
    state = fold(RunKey("g"), store.read(RunKey("g")))
    assert (state.status, state.posts) == (status, len(store.posts({RunKey("g"): 0})[RunKey("g")]))
    assert not may_go_on(state, 2e9) and store.runs()[0].unread == 0
    if status == "paused":
        assert state.stopped_by in ("eve", "ann")
    with CheckpointManager(MemoryStore(there)) as manager:
        assert manager.recover(program) == {}


def test_a_cancelled_run_whose_clean_ups_are_to_be_executed_waits_too() -> None:
    there = memory()
    lines = journal(KEY, began(), j.CleanupDeclared(), j.StopRequested(post=1, by="ann", cancel=True, posted=1.7e9))
    here = memory()
    put(MemoryStore(here), KEY, lines, [j.encode(KEY, j.StopRequested(by="ann", cancel=True, posted=1.7e9))])
    imported(MemoryStore(there), exported(MemoryStore(here)))
    state = fold(KEY, MemoryStore(there).read(KEY))
    assert state.status == "paused" and "being cancelled" in state.reason and not may_go_on(state, 2e9)


def test_attempts_come_in_as_they_are_because_only_their_judge_executes_them() -> None:
    here, there = memory(), memory()
    with perdure.CheckpointManager(MemoryStore(here)) as manager, pytest.raises(RunSuspended):
        manager.run_sync(perdure.best_of(1, program, judge=len), [("ask", None)], goal="best")
    done = imported(MemoryStore(there), exported(MemoryStore(here)))
    assert done.paused == ["best#0"] and _statuses(there)["best/best#0"] == "pending_input"
    assert imported(MemoryStore(memory()), exported(MemoryStore(here), "best/best")).paused == ["best/best#0"]


@pytest.mark.parametrize("begun", [False, True], ids=["another run", "the run itself"])
def test_a_child_whose_parent_here_does_not_wait_for_it_is_let_go_on_by_a_person(begun: bool) -> None:  # rel:S15
    here, there = memory(), memory()
    with perdure.CheckpointManager(MemoryStore(here)) as manager, pytest.raises(RunSuspended):
        manager.run_sync(perdure.best_of(1, program, judge=len), [("ask", None)], goal="best")
    archive = exported(MemoryStore(here))
    if begun:
        imported(MemoryStore(there), archive)
        perdure.Client(MemoryStore(there)).cancel("best#0", by="ann")
        store = MemoryStore(there)
        store.delete(store.claim(RunKey("best/best")))
    else:
        with perdure.CheckpointManager(MemoryStore(there)) as manager:
            manager.run_sync(program, [("work", 1)], goal="best")
    done = imported(MemoryStore(there), archive, skip=True)
    assert done.paused == ["best/best#0"] and _statuses(there)["best/best#0"] == "paused"


def test_the_folder_for_outputs_of_the_other_machine_is_not_followed(tmp_path: Path) -> None:  # rel:S5
    theirs = tmp_path / "theirs"
    entries = (began(outputs=str(theirs)), j.RunResumed(epoch=2, pid=1, host="h", outputs=str(theirs / "2")))
    here, there, trusted = MemoryStore(memory()), MemoryStore(memory()), MemoryStore(memory())
    put(here, KEY, journal(KEY, *entries))
    archive = exported(here)
    imported(there, archive)
    imported(trusted, archive, trust=True)
    assert contents(trusted) == contents(here)
    assert fold(KEY, there.read(KEY)).outputs == "" and str(theirs).encode() not in b"".join(there.read(KEY))
    assert imported(there, archive).count("there") == imported(trusted, archive).count("there") == 1


# -- what is here already ----------------------------------------------------------------------------------------------


def test_a_run_that_is_here_is_left_as_it_is() -> None:
    backend, other = memory(), memory()
    fill(MemoryStore(backend))
    archive = exported(MemoryStore(backend))
    before = contents(MemoryStore(backend))
    done = imported(MemoryStore(backend), archive)
    assert done.count("there") == len(before) and contents(MemoryStore(backend)) == before
    imported(MemoryStore(other), archive)
    perdure.Client(MemoryStore(other)).unpause("asks", by="ann")
    run(MemoryStore(other), "asks", ("work", 20_000), ("ask", None), ("work", 4))
    went_on = contents(MemoryStore(other))
    assert imported(MemoryStore(other), archive).count("there") == len(before)
    assert contents(MemoryStore(other)) == went_on, "it has gone on since, and keeps what it has"


def test_a_run_of_the_same_name_with_other_content_is_never_touched() -> None:
    here, there = memory(), memory()
    run(MemoryStore(here), "g", ("work", 3), ("work", 9_000))
    run(MemoryStore(here), "h", ("work", 3))
    run(MemoryStore(there), "g", ("work", 4))
    archive, before = exported(MemoryStore(here)), contents(MemoryStore(there))
    with pytest.raises(ConfigError, match=r"1 of 2 runs of an archive are here already, with other content: g#0\."):
        imported(MemoryStore(there), archive)
    assert contents(MemoryStore(there)) == before
    done = imported(MemoryStore(there), archive, skip=True, dry_run=True)
    assert contents(MemoryStore(there)) == before and [came.fate for came in done.runs] == ["skipped", "imported"]
    done = imported(MemoryStore(there), archive, skip=True)
    assert [came.fate for came in done.runs] == ["skipped", "imported"]
    assert contents(MemoryStore(there))[RunKey("g")] == before[RunKey("g")]
    assert len(there.blobs) == 0, "what only a skipped run needs is not kept"


def test_another_runs_content_comes_in_as_the_next_episode_once() -> None:
    here, there = memory(), memory()
    result = run(MemoryStore(here), "g", ("work", 3), ("work", 9_000))
    run(MemoryStore(there), "g", ("work", 4))
    run(MemoryStore(there), "g", ("work", 5), new=True)
    archive = exported(MemoryStore(here))
    for fate in ("imported", "there"):
        (came,) = imported(MemoryStore(there), archive, new=True).runs
        assert (came.run, came.here, came.fate) == ("g#0", "g#2", fate)
    RAN.clear()
    assert run(MemoryStore(there), "g", ("work", 3), ("work", 9_000), episode=2) == result and RAN == []


def test_an_archive_comes_in_under_another_goal() -> None:
    here, there = memory(), memory()
    for new in (False, True):
        run(MemoryStore(here), "g", ("work", 3), ("ask", None), new=new)
    archive = exported(MemoryStore(here))
    done = imported(MemoryStore(there), archive, goal="copy")
    assert [came.here for came in done.runs] == ["copy#0", "copy#1"] == done.paused
    assert imported(MemoryStore(there), archive, goal="copy").count("there") == 2
    fill(MemoryStore(here))
    with pytest.raises(ConfigError, match=r"has runs of \d+ goals"):
        imported(MemoryStore(there), exported(MemoryStore(here)), goal="copy")
    with pytest.raises(ConfigError, match="path component"):
        imported(MemoryStore(there), archive, goal="../copy")
    with pytest.raises(ConfigError, match="began others, or was begun by one"):
        imported(MemoryStore(memory()), exported(MemoryStore(here), "best/best"), goal="copy")


def test_a_shorter_journal_is_another_runs_unless_an_import_was_killed_there(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = memory(), memory()
    run(MemoryStore(here), "g", *[("work", 9_000 + n) for n in range(6)])
    records = MemoryStore(here).read(RunKey("g"))
    archive = exported(MemoryStore(here))
    put(MemoryStore(there), RunKey("g"), records[:3])
    with pytest.raises(ConfigError, match="with other content: g#0"):
        imported(MemoryStore(there), archive)
    # a journal that takes several appends, killed after one of them
    monkeypatch.setattr(sender, "_AT_ONCE", len(records[0]) + len(records[1]) + len(records[2]) + 10)
    (came,) = imported(MemoryStore(there), archive).runs
    assert came.fate == "completed" and contents(MemoryStore(there)) == contents(MemoryStore(here))
    assert states(MemoryStore(there)) == states(MemoryStore(here))


class _Dies(MemoryStore):
    """A store whose process dies at the n-th change."""

    def __init__(self, backend: MemoryBackend, left: int) -> None:
        super().__init__(backend)
        self.left = left

    def _tick(self) -> None:
        self.left -= 1
        if self.left < 0:
            self.abandon()
            raise StoreError("killed")

    def claim(self, key: RunKey) -> Any:
        self._tick()
        return super().claim(key)

    def append(self, batch: Any) -> Any:
        self._tick()
        return super().append(batch)

    def post(self, key: RunKey, number: int, record: bytes) -> bool:
        self._tick()
        return super().post(key, number, record)

    def release(self, lease: Any) -> None:
        self._tick()
        super().release(lease)


@pytest.mark.parametrize("at_once", [None, 400], ids=["whole", "in parts"])
def test_an_import_that_was_killed_anywhere_is_completed_by_the_next(
    at_once: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "_BLOBS_AT_ONCE", 25_000)
    here = memory()
    run(MemoryStore(here), "a", *[("work", 20_000 + n) for n in range(4)])
    run(MemoryStore(here), "asks", ("signal", None), ("ask", None))
    client = perdure.Client(MemoryStore(here))
    for number in range(3):
        client.signal("asks", "paid", number)
    archive = exported(MemoryStore(here))
    whole = memory()
    imported(MemoryStore(whole), archive, trust=True)
    if at_once:
        monkeypatch.setattr(sender, "_AT_ONCE", at_once)
    for left in range(200):
        there = memory()
        try:
            imported(_Dies(there, left), archive, trust=True)
        except StoreError:
            for key, (lines, _) in contents(MemoryStore(there)).items():
                assert lines == contents(MemoryStore(whole))[key][0][: len(lines)]
                assert at_once or lines == contents(MemoryStore(whole))[key][0], "a run is there whole or not at all"
            imported(MemoryStore(there), archive, trust=True)
            assert contents(MemoryStore(there)) == contents(MemoryStore(whole))
            assert states(MemoryStore(there)) == states(MemoryStore(whole))
            continue
        break
    assert left > 10, "nothing was killed"


def test_a_run_whose_inbox_is_not_here_yet_tells_whoever_posts_instead_of_waiting_for_ever() -> None:
    here, there = memory(), memory()
    run(MemoryStore(here), "g", ("signal", None), ("ask", None))
    perdure.Client(MemoryStore(here)).signal("g", "paid", 1)
    archive = exported(MemoryStore(here))
    imported(MemoryStore(there), archive, trust=True)
    there.runs[RunKey("g")].posts.clear()
    with pytest.raises(CorruptStore, match="its inbox has 0 posts, and its journal tells of 1"):
        perdure.Client(MemoryStore(there)).signal("g", "paid", 2)
    with pytest.raises(CorruptStore, match="its inbox has 0 posts"):
        exported(MemoryStore(there), "g")
    assert imported(MemoryStore(there), archive, trust=True).count("completed") == 1
    assert perdure.Client(MemoryStore(there)).signal("g", "paid", 2).posts == 2


def test_blobs_that_somebody_cleaned_up_in_between_are_brought_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blobs that are too many for one append go ahead of the records, and nothing refers to them for a moment."""

    class Cleans(MemoryStore):
        def append(self, batch: Any) -> Any:
            told = super().append(batch)
            if any(item.records for item in batch):
                for digest in [d for d in self._backend.blobs if d not in batch[0].blobs]:
                    del self._backend.blobs[digest]
            return told

    monkeypatch.setattr(sender, "_BLOBS_AT_ONCE", 25_000)
    here, there = memory(), memory()
    run(MemoryStore(here), "a", *[("work", 20_000 + n) for n in range(4)])
    imported(Cleans(there), exported(MemoryStore(here)))
    assert states(MemoryStore(there)) == states(MemoryStore(here))


def test_a_run_that_changes_during_its_import_is_told() -> None:
    here, there = memory(), memory()
    run(MemoryStore(here), "g", ("work", 3))

    class Overtaken(MemoryStore):
        def claim(self, key: RunKey) -> Any:
            put(MemoryStore(self._backend), key, journal(key, began()))
            return super().claim(key)

    with pytest.raises(StoreBusy, match="was changed by somebody else"):
        imported(Overtaken(there), exported(MemoryStore(here)))
    holder = MemoryStore(there)
    holder.delete(holder.claim(RunKey("g")))
    holder.claim(RunKey("g"))
    with pytest.raises(LeaseHeld):
        imported(MemoryStore(there), exported(MemoryStore(here)))


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("doing", ["create", "write", "sync", "rename", "sync folder"])
def test_a_full_disk_leaves_no_half_archive(tmp_path: Path, doing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore(memory())  # rel:D10
    run(MemoryStore(store._backend), "g", ("work", 9_000))
    target = tmp_path / "out.tgz"
    target.write_text("before")

    def full(what: str, path: Path) -> None:
        if what == doing:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "hook", full)
    with pytest.raises(StoreError, match=r"ENOSPC.*Free some space"):
        perdure.Client(store).export(target, replace=True)
    monkeypatch.setattr(disk, "hook", None)
    assert os.listdir(tmp_path) == ["out.tgz"]
    assert doing == "sync folder" or target.read_text() == "before"


def test_an_archive_replaces_no_file_unless_told_to(tmp_path: Path) -> None:
    client = perdure.Client(MemoryStore(memory()))
    target = tmp_path / "out.tgz"
    target.write_text("mine")
    for place, said in ((target, "is there already"), (tmp_path, "no regular file"), (Path("/dev/null"), "no regular")):
        with pytest.raises(ConfigError, match=said):
            client.export(place, replace=place != target)
    with pytest.raises(ConfigError, match="Choose another place"):
        client.export(tmp_path / "gone" / "out.tgz")
    assert target.read_text() == "mine"
    client.export(target, replace=True)
    assert imported(MemoryStore(memory()), target.read_bytes()).runs == ()


def test_no_room_to_unpack_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore(memory())
    run(MemoryStore(store._backend), "g", ("work", 9_000))
    archive = exported(store)

    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.SpooledTemporaryFile", lambda size: Full())
    other = memory()
    with pytest.raises(StoreError, match=r"ENOSPC.*TMPDIR"):
        imported(MemoryStore(other), archive)
    assert not other.runs


def test_a_newer_archive_is_refused() -> None:  # rel:R6
    with pytest.raises(NewerFormat, match="has format 2; this Perdure knows formats up to 1"):
        imported(MemoryStore(memory()), _headed(Head("perdure", 2, "x", 0.0)))
    with pytest.raises(ConfigError, match="another program's"):
        imported(MemoryStore(memory()), _headed(Head("zip", 1, "x", 0.0)))
    store = MemoryStore(memory())
    newer = frame(KEY, b'{"kind":"run_dreamt/1","seq":2,"at":1.0}')
    lease = store.claim(KEY)
    store.append([Append(lease, 0, (*journal(KEY, began()), newer), fold(KEY, journal(KEY, began())).meta())])
    with pytest.raises(NewerFormat, match="run_dreamt"):
        exported(store, "paper")


def _headed(head: Head) -> bytes:
    from perdure.runtime.archive import ArchiveWriter

    file = io.BytesIO()
    ArchiveWriter(file.write, head).end()
    return file.getvalue()


def test_a_file_store_has_the_beginning_of_a_run_whole_or_not_at_all(tmp_path: Path) -> None:
    """As base.Append promises: a process that is killed while it writes a run leaves none, or all of it."""
    lines = journal(KEY, began(), j.StepStarted(step=1, name="a"), j.StepCompleted(step=1, output=ONE))
    counted: list[str] = []
    disk.hook = lambda what, path: counted.append(what)
    try:
        put(FileStore(tmp_path / "whole"), KEY, lines)
    finally:
        disk.hook = None
    seen: set[int] = set()
    for left in range(len(counted)):
        root = tmp_path / f"{left}"
        _killed(root, lines, left)
        seen.add(len(FileStore(root).read(KEY)))
    assert seen == {0, 3}


def _killed(root: Path, lines: list[bytes], left: int) -> None:
    """A store that was written to until a write was torn in its middle."""
    write = os.write

    class Dead(BaseException):
        pass

    def hook(what: str, path: Path) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            if what == "write":
                os.write = lambda fd, data: (write(fd, bytes(data)[: len(data) // 2]), _die())[0]  # type: ignore[assignment]
            else:
                _die()

    def _die() -> None:
        raise Dead

    disk.hook = hook
    store: Store | None = None
    try:
        store = FileStore(root)
        put(store, KEY, lines)
    except Dead:
        pass
    finally:
        disk.hook, os.write = None, write
        if isinstance(store, FileStore):
            store.abandon()


def test_kept_journals_come_with_their_inboxes() -> None:
    lines, posts = kept("0.1.0-waiting.jsonl")
    assert len(posts) == 11 and len(lines) > 20


def test_orders_to_an_imported_run_are_taken_as_everywhere() -> None:
    there = memory()
    here = memory()
    run(MemoryStore(here), "g", ("ask", None), ("work", 2))
    imported(MemoryStore(there), exported(MemoryStore(here)))
    with perdure.Client(MemoryStore(there)) as client:
        assert client.questions()[0].prompt == "Go on after 0?"
        with pytest.raises(AnswerRefused, match="was stopped by eve"):
            client.retry("g", by="ann")
        client.answer("g", None, True, by="ann")
        client.unpause("g", by="ann")
    assert run(MemoryStore(there), "g", ("ask", None), ("work", 2)) == [True, "11"]
