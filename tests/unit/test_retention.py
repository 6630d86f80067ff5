"""Which finished runs stay, and that nothing else goes."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import perdure
from perdure import journal as j
from perdure import states
from perdure.cli import main
from perdure.cli.amounts import size
from perdure.clock import Clock
from perdure.codec import dumps
from perdure.errors import ConfigError, CorruptStore, RunNotFound, RunSuspended
from perdure.fold import State
from perdure.model import Attribution, RunKey
from perdure.runtime import sweep as sweeping
from perdure.runtime.audit import Auditor
from perdure.runtime.moments import date, duration
from perdure.runtime.retention import Keep, Retention, prune
from perdure.runtime.settle import send, write
from perdure.stores import open_store
from perdure.stores.base import Store
from perdure.stores.compression import compressed
from perdure.testing.samples import snapshots

NOW = 1_800_000_000.0
DAY = 86400.0
DAYS = timedelta(days=1)


class Fixed(Clock):
    """A clock that stands."""

    def __init__(self, at: float = NOW) -> None:
        self.at = at

    def now(self) -> float:
        return self.at


def make(
    store: Store,
    goal: str,
    episode: int = 0,
    age: float = 0.0,
    status: str = "completed",
    parent: str = "",
    pad: int = 0,
) -> RunKey:
    """A run that ended so many days ago."""
    key, clock = RunKey(goal, episode), Fixed(NOW - age * DAY)
    lease = store.claim(key)
    blobs: dict[str, bytes] = {}
    output, blobs = dumps("x" * pad)
    ends: dict[str, list[j.Entry]] = {
        "completed": [j.RunCompleted(output=output)],
        "failed": [j.RunFailed(error=perdure.codec.describe_error(ValueError("no")))],
        "cancelled": [j.RunCancelled(reason="enough")],
        "paused": [j.RunPaused(reason="so")],
        "interrupted": [j.RunInterrupted(reason="so")],
        "waiting": [j.RunSuspended(reason="so", wake=NOW + DAY)],
        "running": [],
    }
    began = j.RunBegan(run_id="r", flow="f", epoch=lease.epoch, pid=1, host="h", attribution=Attribution(parent=parent))
    write(store, lease, State(key), [began, *ends[status]], clock, blobs)
    store.release(lease)
    return key


def gone(store: Store, retention: Retention, *, dry: bool = False) -> list[str]:
    return sorted(str(row.key) for row in prune(store, retention, Fixed(), dry=dry) if row is not None)


def left(store: Store) -> list[str]:
    return [str(row.key) for row in store.runs()]


@pytest.fixture(params=["memory:", "sqlite:{}", "file:{}"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    opened = open_store(request.param.format(tmp_path / "store"))
    yield opened
    opened.close()


# -- what stays --------------------------------------------------------------------------------------------------------


def test_old_runs_go_and_a_dry_run_says_which(store: Store) -> None:  # W3
    for age in (1, 29, 31, 400):
        make(store, f"age {age}", age=age)
    policy = Retention(Keep(age=30 * DAYS))
    assert gone(store, policy, dry=True) == ["age 31#0", "age 400#0"] and len(left(store)) == 4
    assert gone(store, policy) == ["age 31#0", "age 400#0"]
    assert left(store) == ["age 1#0", "age 29#0"] and gone(store, policy) == []


def test_the_newest_of_each_goal_stay(store: Store) -> None:  # K5 W3
    for goal, episodes in (("a", (0, 1, 2, 9, 10)), ("b", (0,)), ("c", (3, 4))):
        for episode in episodes:
            make(store, goal, episode, age=episode)
    assert gone(store, Retention(Keep(count=2))) == ["a#0", "a#1", "a#2"]
    assert left(store) == ["a#9", "a#10", "b#0", "c#3", "c#4"]
    assert gone(store, Retention(Keep(count=1, age=5 * DAYS))) == ["a#9"], "the newest stays however old it is"
    assert left(store) == ["a#10", "b#0", "c#3", "c#4"]


def test_what_is_too_much_goes_the_oldest_first(store: Store) -> None:  # W3
    for age in (5, 1, 9, 3, 7):
        make(store, f"age {age}", age=age, pad=50_000)
    total = sum(row.size for row in store.runs())
    each = total // 5
    assert gone(store, Retention(Keep(size=total))) == []
    assert gone(store, Retention(Keep(size=total - 1)), dry=True) == ["age 9#0"]
    assert gone(store, Retention(Keep(size=3 * each))) == ["age 7#0", "age 9#0"]
    assert gone(store, Retention(Keep(size=0, count=1))) == []
    assert gone(store, Retention(Keep(size=each, age=2 * DAYS))) == ["age 3#0", "age 5#0"]
    assert left(store) == ["age 1#0"]


def test_more_than_one_look_is_taken_for_what_is_much_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.runtime.retention._OLDEST", 3)
    monkeypatch.setattr("perdure.runtime.retention._PAGE", 2)
    store = open_store("memory:")
    for age in range(20):
        make(store, f"age {age:02}", age=age)
    make(store, "pinned", age=99)
    send(store, Fixed(), RunKey("pinned"), lambda _: j.RunPinned(by="ann"))
    for _ in range(2):
        assert len(gone(store, Retention(Keep(size=0)), dry=True)) == 20
    two = sum(row.size for row in store.runs() if row.goal in ("age 00", "pinned"))
    assert len(gone(store, Retention(Keep(size=two)))) == 19 and left(store) == ["age 00#0", "pinned#0"]


def test_each_status_has_its_own_rule(store: Store) -> None:  # W3
    for status in ("completed", "failed", "cancelled"):
        make(store, status, age=10, status=status)
    assert gone(store, Retention(failed=Keep(age=5 * DAYS))) == ["failed#0"]
    assert gone(store, Retention(Keep(age=50 * DAYS), cancelled=Keep(age=5 * DAYS))) == ["cancelled#0"]
    assert left(store) == ["completed#0"]


def test_rows_are_counted_alike_with_pages_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    for page in (1, 2, 3, 7, 200):
        monkeypatch.setattr("perdure.runtime.retention._PAGE", page)
        store = open_store("memory:")
        for goal in "abc":
            for episode in range(5):
                make(store, goal, episode, status="failed" if episode == 3 else "completed")
        assert gone(store, Retention(completed=Keep(count=2))) == [f"{goal}#{n}" for goal in "abc" for n in (0, 1)]


@example(
    runs=[("a", 0, 1, "failed", ""), ("a", 1, 0, "completed", "a#0"), ("a", 2, 0, "completed", "")],
    age=0,
    count=0,
    size=278,
)  # a parent that goes lets its child go: so it does if it only would
@given(
    runs=st.lists(
        st.tuples(
            st.sampled_from("ab"),
            st.integers(0, 9),
            st.integers(0, 9),
            st.sampled_from(["completed", "failed", "paused", "running"]),
            st.sampled_from(["", "a#0", "b#1"]),
        ),
        max_size=12,
        unique_by=lambda run: run[:2],
    ),
    age=st.none() | st.integers(0, 9),
    count=st.integers(0, 3),
    size=st.none() | st.integers(0, 3000),
)
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_of_any_runs_only_those_go_that_may_and_the_limits_hold_then(
    runs: Sequence[tuple[str, int, int, str, str]], age: int | None, count: int, size: int | None
) -> None:  # K5 W3
    if age is None and not count and size is None:
        return
    store = open_store("memory:")
    for goal, episode, old, status, parent in runs:
        make(store, goal, episode, old, status, "" if parent == f"{goal}#{episode}" else parent)
    before = {row.key: row for row in store.runs()}
    rule = Keep(age=None if age is None else age * DAYS, count=count, size=size)
    dry = gone(store, Retention(Keep(age=rule.age, count=count, size=size)), dry=True)
    removed = gone(store, Retention(rule))
    after = {row.key: row for row in store.runs()}
    assert dry == removed
    assert {str(key) for key in before.keys() - after.keys()} == set(removed)
    for key, row in before.items():
        of_goal = sorted(k.episode for k, r in before.items() if k.goal == key.goal and r.status == row.status)
        newest = count > 0 and key.episode in of_goal[-count:]
        over = row.status in states.RUN_REMOVABLE
        if str(key) in removed:
            assert over and not newest
            assert age is None or size is not None or row.updated < NOW - age * DAY
        elif over and not newest and not row.parent and age is not None and row.updated < NOW - age * DAY:
            raise AssertionError(f"{key} is too old")
    for status in states.RUN_REMOVABLE if size is not None else ():
        stay = [row for row in after.values() if row.status == status]
        if sum(row.size for row in stay) > (size or 0):
            of = {g: sorted(r.episode for r in stay if r.goal == g) for g in "ab"}
            assert all(row.parent or (count and row.episode in of[row.goal][-count:]) for row in stay)


# -- what never goes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["paused", "interrupted", "waiting", "running"])
def test_what_is_not_over_never_goes(store: Store, status: str) -> None:  # K5
    make(store, "old", age=999, status=status)
    assert gone(store, Retention(Keep(age=DAYS))) == [] == gone(store, Retention(Keep(size=0)))
    assert left(store) == ["old#0"]


def test_what_somebody_holds_never_goes(store: Store) -> None:  # K5
    key = make(store, "old", age=999)
    lease = store.claim(key)
    assert gone(store, Retention(Keep(age=DAYS))) == []
    store.release(lease)
    assert gone(store, Retention(Keep(age=DAYS))) == ["old#0"]


def test_what_is_pinned_stays_until_it_is_unpinned(store: Store) -> None:  # K5
    key = make(store, "old", age=999)
    assert send(store, Fixed(NOW - 500 * DAY), key, lambda _: j.RunPinned(by="ann")).pinned
    assert gone(store, Retention(Keep(age=DAYS))) == [] == gone(store, Retention(Keep(size=0)))
    assert not send(store, Fixed(NOW - 400 * DAY), key, lambda _: j.RunPinned(by="ann", pinned=False)).pinned
    assert gone(store, Retention(Keep(age=DAYS))) == ["old#0"]


def test_what_a_run_that_may_go_on_began_stays_until_that_is_over(store: Store) -> None:  # K5 K3
    make(store, "parent", age=99, status="failed")
    make(store, "child", age=99, parent="parent#0")
    make(store, "orphan", age=99, parent="nobody#0")
    assert gone(store, Retention(completed=Keep(age=DAYS))) == ["orphan#0"]
    assert gone(store, Retention(failed=Keep(age=DAYS))) == ["parent#0"]
    assert gone(store, Retention(Keep(age=DAYS))) == ["child#0"]


def test_a_run_to_which_something_was_posted_stays(store: Store) -> None:
    key = make(store, "old", age=999, status="failed")
    assert store.post(key, 1, j.encode(key, j.RunReleased(by="ann", posted=NOW)))
    assert gone(store, Retention(Keep(age=DAYS))) == []


def test_something_that_happens_at_the_last_moment_is_noticed(tmp_path: Path) -> None:  # K5
    store = open_store(f"sqlite:{tmp_path / 'runs.db'}")
    make(store, "old", age=999)
    real = store.claim

    def claim(key: RunKey) -> Any:
        if key.goal == "old" and not store.runs()[0].pinned:
            with perdure.Client(store.url) as other:
                other.pin("old", by="ann")
        return real(key)

    store.claim = claim  # type: ignore[method-assign]
    assert gone(store, Retention(Keep(age=DAYS))) == [] and left(store) == ["old#0"]
    store.close()


@pytest.mark.parametrize("order", ["retry", "pin"])
def test_an_order_that_is_removed_with_its_run_is_not_acknowledged(order: str, tmp_path: Path) -> None:  # K5
    """It was posted after the last look at the inbox."""
    store = open_store(f"sqlite:{tmp_path / 'runs.db'}")
    make(store, "old", age=999, status="failed")
    real, said, threads = store.delete, [], []
    posted = threading.Event()

    def give() -> None:
        with perdure.Client(store.url) as other, pytest.raises(RunNotFound) as caught:
            inner = other._store
            post = inner.post
            inner.post = lambda *told: (post(*told), posted.set())[0]  # type: ignore[func-returns-value, method-assign]
            getattr(other, order)("old", by="ann")
        said.append(str(caught.value))

    def delete(lease: Any) -> None:
        threads.append(threading.Thread(target=give))
        threads[0].start()
        assert posted.wait(30)
        real(lease)

    store.delete = delete  # type: ignore[method-assign]
    assert gone(store, Retention(Keep(age=DAYS))) == ["old#0"]
    threads[0].join(30)
    assert said and "old#0" in said[0]
    assert [found.kind for found in Auditor(store).everything()] == [], "and it left no empty run"
    store.close()


def test_of_two_who_prune_neither_leaves_an_empty_run(tmp_path: Path) -> None:  # K5
    first, second = (open_store(f"sqlite:{tmp_path / 'runs.db'}") for _ in range(2))
    make(first, "old", age=999)
    real = first.claim

    def claim(key: RunKey) -> Any:
        assert gone(second, Retention(Keep(age=DAYS))) == ["old#0"]
        return real(key)

    first.claim = claim  # type: ignore[method-assign]
    assert gone(first, Retention(Keep(age=DAYS))) == []
    assert [found.kind for found in Auditor(second).everything()] == []
    first.close()
    second.close()


def test_a_run_that_is_damaged_stays_and_keeps_no_other(tmp_path: Path) -> None:  # K5
    store = open_store(f"file:{tmp_path}")
    for goal in ("a", "b", "c"):
        make(store, goal, age=9)
    with next(tmp_path.glob("runs/b.0/journal.jsonl")).open("r+b") as journal:
        journal.seek(60)
        journal.write(b"?")
    assert gone(store, Retention(Keep(age=DAYS))) == ["a#0", "c#0"]
    store.close()


def test_blobs_go_with_the_last_run_that_has_them(store: Store) -> None:  # K5
    one, two = make(store, "one", age=9, pad=20_000), make(store, "two", age=1, pad=20_000)
    (digest,) = dumps("x" * 20_000)[1]
    assert gone(store, Retention(Keep(age=5 * DAYS))) == [str(one)] and len(store.blob(digest)) > 19_000
    assert gone(store, Retention(Keep(age=timedelta(0)))) == [str(two)]
    with pytest.raises(CorruptStore, match="missing"):
        store.blob(digest)


# -- dates -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"])
def test_an_age_is_what_it_is_on_every_day_of_a_leap_year(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:  # W3
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        store = open_store("memory:")
        key = make(store, "run", age=0)
        (row,) = store.runs()
        day = datetime(2028, 1, 1, 1, 59, 59, tzinfo=UTC)
        while day.year == 2028:
            for hours in (0, 6, 12, 18):
                now = (day + timedelta(hours=hours)).timestamp()
                for days in (1, 28, 30, 31, 365, 366):
                    rule = Retention(Keep(age=timedelta(days=days)))
                    for ago, goes in ((days * DAY - 1, False), (days * DAY + 1, True)):
                        moved = _moved(store, key, now - ago)
                        assert _goes(moved, rule, now) == goes, (day, hours, days, ago)
            day += timedelta(days=1)
        assert row.key == key
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()


def _moved(store: Store, key: RunKey, updated: float) -> Store:
    run = store._backend.runs[key]  # type: ignore[attr-defined]
    run.meta = perdure.model.msgspec.structs.replace(run.meta, updated=updated)  # type: ignore[attr-defined]
    return store


def _goes(store: Store, rule: Retention, now: float) -> bool:
    return any(row is not None for row in prune(store, rule, Fixed(now), dry=True))


@pytest.mark.parametrize(
    ("zone", "text", "utc"),
    [
        ("Europe/Berlin", "2028-03-26", "2028-03-25T23:00:00+00:00"),  # the night in which clocks go forward
        ("Europe/Berlin", "2028-03-27", "2028-03-26T22:00:00+00:00"),
        ("Europe/Berlin", "2028-10-30", "2028-10-29T23:00:00+00:00"),
        ("America/New_York", "2028-03-12T02:30", "2028-03-12T07:30:00+00:00"),  # a time that there is not
        ("America/New_York", "2028-02-29", "2028-02-29T05:00:00+00:00"),
        ("UTC", "2028-12-31T23:59:59", "2028-12-31T23:59:59+00:00"),
        ("Asia/Kathmandu", "2028-01-01T00:00:00+01:00", "2027-12-31T23:00:00+00:00"),
    ],
)
def test_a_date_is_that_of_the_clocks_here(zone: str, text: str, utc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert datetime.fromtimestamp(date(text), UTC).isoformat() == utc
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()


@pytest.mark.parametrize("text", ["", "d", "30", "30 d", "-1d", "1y", "1e9d", "9" * 20 + "d", "1d2h", "\u0663d"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no duration"):
        duration(text)


def test_durations_and_sizes() -> None:
    assert [duration(text).total_seconds() for text in ("90s", "1.5h", "30d", "2w")] == [90, 5400, 30 * DAY, 14 * DAY]
    assert [size(text) for text in ("0", "500M", "2GB", "1.5k", "7b")] == [0, 500_000_000, 2_000_000_000, 1500, 7]
    for text in ("", "M", "-1", "1PB", "1 GB"):
        with pytest.raises(ConfigError, match="no size"):
            size(text)
    for text in ("", "yesterday", "2028-02-30", "9999999-01-01"):
        with pytest.raises(ConfigError, match="no date"):
            date(text)


@pytest.mark.parametrize(
    "make_",
    [
        lambda: Keep(),
        lambda: Keep(age=timedelta(days=-1)),
        lambda: Keep(age=30),
        lambda: Keep(count=-1),
        lambda: Keep(count=True),
        lambda: Keep(size=1.5),
        lambda: Retention(),
        lambda: Retention(completed="30d"),
    ],
)
def test_a_rule_that_says_nothing_or_nonsense_is_refused(make_: Callable[[], Any]) -> None:  # G2
    with pytest.raises(ConfigError, match="retention"):
        make_()


# -- while runs go on --------------------------------------------------------------------------------------------------


@perdure.step
def work(n: int) -> str:
    return f"{n} " * 3000


@perdure.flow
def flow(n: int) -> str:
    return work(n)[:9]


@perdure.flow
def asks() -> bool:
    return perdure.ask("Go?", answer=bool)


def test_a_manager_keeps_what_it_is_told_to_while_runs_go_on(tmp_path: Path) -> None:  # K5
    url = f"sqlite:{tmp_path / 'runs.db'}"
    store = open_store(url)
    for n in range(40):
        make(store, f"old {n}", age=9, pad=20_000)
    store.close()
    rung = threading.Event()

    class Watching(Clock):
        def wait(self, bell: threading.Event, seconds: float) -> None:
            if seconds == sweeping.EVERY:
                rung.set()
            super().wait(bell, seconds)

        def now(self) -> float:
            return NOW

    with perdure.CheckpointManager(url, retention=Retention(Keep(age=DAYS)), clock=Watching()) as manager:
        with pytest.raises(RunSuspended):
            manager.run_sync(asks, goal="asking")
        for n in range(30):
            assert manager.run_sync(flow, n, goal=f"new {n}") == (f"{n} " * 9)[:9]
        assert rung.wait(60)
        assert manager.run_sync(flow, 1, goal="new 1") == "1 1 1 1 1"
        with perdure.Client(url) as client:
            names = {row.goal for row in client.runs()}
        assert names == {"asking", *(f"new {n}" for n in range(30))}
    store = open_store(url)
    make(store, "old again", age=9)
    store.close()
    rung.clear()
    with perdure.CheckpointManager(url, retention=Retention(Keep(age=DAYS)), clock=Watching()):
        assert rung.wait(60)
    with perdure.Client(url) as client:
        assert client.find("old again"), "it was done a short time ago, if by somebody else"
        assert all(not row.goal.startswith("\x1f") for row in client.runs())


def test_two_managers_do_not_both_prune(tmp_path: Path) -> None:
    store, other = (open_store(f"sqlite:{tmp_path / 'runs.db'}") for _ in range(2))
    for n in range(4):
        make(store, f"old {n}", age=9)
    first = sweeping.sweep(store, Retention(Keep(age=DAYS)), Fixed())
    assert next(first) is not None
    assert list(sweeping.sweep(other, Retention(Keep(age=DAYS)), Fixed())) == []
    assert len([row for row in first if row is not None]) == 3
    assert list(sweeping.sweep(other, Retention(Keep(age=DAYS)), Fixed(NOW + 1))) == []
    assert list(sweeping.sweep(other, Retention(Keep(age=DAYS)), Fixed(NOW + sweeping.EVERY + 1))) != []
    store.close()
    other.close()


# -- the command -------------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(words)
    told = capsys.readouterr()
    return code, told.out + told.err


def test_the_command_prunes_as_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:{tmp_path / 'runs.db'}"
    where = ("--store", url)
    store = open_store(url)
    real_now = (Clock().now() - NOW) / DAY
    for n in range(4):
        make(store, "goal", n, age=10 * n - real_now)
    store.close()
    for wrong in ((), ("--older-than", "1d", "goal"), ("--older-than", "1d", "--before", "2020-01-01")):
        assert run(capsys, "prune", *wrong, *where)[0] == 2
    assert "no duration" in run(capsys, "prune", "--older-than", "soon", *where)[1]
    code, told = run(capsys, "prune", "--older-than", "15d", "--dry-run", *where)
    assert code == 0 and "to be removed: goal#2" in told and "2 runs to be removed" in told
    code, told = run(capsys, "prune", "--older-than", "25d", "--json", *where)
    found = json.loads(told)
    assert (found["dry_run"], found["count"], [row["run"] for row in found["runs"]]) == (False, 1, ["goal#3"])
    assert found["bytes"] == found["runs"][0]["size"] > 100
    assert run(capsys, "pin", "goal#2", "--by", "ann", *where)[0] == 0
    assert "completed, pinned" in run(capsys, "ls", *where)[1]
    assert run(capsys, "prune", "goal#2", *where)[0] == 2
    code, told = run(capsys, "prune", "--keep", "1", *where)
    assert code == 0 and "goal#0" in told and "goal#1" in told and "2 runs removed" in told
    assert run(capsys, "unpin", "goal#2", "--by", "ann", *where)[0] == 0
    for more in ((), ("--json",)):
        code, told = run(capsys, "prune", "goal#2", "nobody", *where, *more)
        assert code == 2 and "removed" not in told and "dry_run" not in told, "nothing was begun"
    code, told = run(capsys, "prune", "goal#2", "goal#2", "--dry-run", *where)
    assert code == 0 and "goal#2" in told
    code, told = run(capsys, "prune", "goal#2", *where)
    assert code == 0 and "1 run removed" in told
    assert run(capsys, "prune", "goal#2", *where)[0] == 2
    with perdure.Client(url) as client, pytest.raises(RunNotFound):
        client.find("goal")


def snap(url: str, goal: str, content: bytes) -> None:
    """Somebody has kept a snapshot of a run."""
    store = open_store(url)
    lease = store.claim(RunKey(goal))
    snapshots(store).save(lease, 1, content)
    store.release(lease)
    store.close()


def test_what_was_removed_is_wiped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # rel:S14
    url = f"sqlite:{tmp_path / 'runs.db'}"
    with perdure.CheckpointManager(url) as manager:
        manager.run_sync(flow, 77, goal="c4n4ry", attribution=Attribution(tags={"t": "c4n4ry"}))
        manager.run_sync(flow, 1, goal="stays")
    snap(url, "c4n4ry", b"c4n4ry 77 77 77" * 9000)
    output = compressed(b"77 " * 3000)
    assert output in (tmp_path / "runs.db").read_bytes(), "this is how it stands there"
    assert main(["prune", "c4n4ry", "--compact", "--store", url]) == 0
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"c4n4ry" not in stored and b"77 77 77" not in stored and b"stays" in stored and output not in stored
    url = f"file:{tmp_path / 'files'}"
    with perdure.CheckpointManager(url) as manager:
        manager.run_sync(flow, 77, goal="c4n4ry")
    snap(url, "c4n4ry", b"77 77 77")
    assert main(["prune", "c4n4ry", "--store", url]) == 0
    names = [str(path) for path in (tmp_path / "files").rglob("*")]
    contents = b"".join(Path(name).read_bytes() for name in names if os.path.isfile(name))
    assert "c4n4ry" not in "".join(names) and b"77 77" not in contents
    assert main(["prune", "--compact", "--store", url]) == 2
