"""The file store when writing fails, at every change to the file system (rel:D4, D10, D11, R1, R2)."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure.clock import SYSTEM
from perdure.errors import ConfigError, StoreBusy, StoreError
from perdure.model import RunKey
from perdure.stores import disk
from perdure.stores.file import FileStore
from perdure.testing.processes import Child
from perdure.testing.samples import item, records, snapshots, summarise

KEY = RunKey("paper")


def open_file(root: Path) -> FileStore:
    return FileStore(root, summarise=summarise)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with three records of one run, and nobody who holds it."""
    store = open_file(tmp_path / "store")
    lease = store.claim(KEY)
    assert store.append([item(lease, 0, 3, blob=b"large")]) == [None]
    store.release(lease)
    store.close()
    return tmp_path / "store"


def journal(root: Path) -> Path:
    return root / "runs" / "paper.0" / "journal.jsonl"


class Died(BaseException):
    """Stands for the death of the process: nothing catches it."""


def story(root: Path, acknowledged: list[int], at: Callable[[FileStore], None] = lambda store: None) -> None:
    """A life of a store: continue the run by two batches and a snapshot each, make and delete another one, release."""
    store = open_file(root)
    at(store)
    lease = store.claim(KEY)
    seq = len(store.read(KEY))
    for _ in range(2):
        result = store.append([item(lease, seq, 2, blob=b"blob %d" % seq)])
        assert result == [None]
        seq += 2
        acknowledged.append(seq)
        snapshots(store).save(lease, seq, b"as of %d" % seq)
    other = store.claim(RunKey("another run"))
    assert store.append([item(other, len(store.read(other.key)))]) == [None]
    store.delete(other)
    store.release(lease)
    store.close()


def points(tmp_path: Path) -> int:
    """How many changes to the file system the story makes."""
    seen: list[str] = []
    disk.hook = lambda doing, path: seen.append(doing) if doing != "read" else None
    try:
        story(tmp_path / "count", [])
    finally:
        disk.hook = None
    assert {"write", "sync", "rename", "sync folder", "create folder", "create", "remove"} == set(seen)
    return len(seen)


def run_until(number: int, error: BaseException, root: Path) -> tuple[int, FileStore | None]:
    """Tell the story and fail at the n-th change. Returns what was acknowledged, and the handle that it happened to."""
    handles: list[FileStore] = []
    acknowledged: list[int] = [0]
    left = number

    def hook(doing: str, path: Path) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise error

    disk.hook = hook
    try:
        story(root, acknowledged, handles.append)
    except (StoreError, Died) as raised:
        assert isinstance(raised, Died) or raised.__cause__ is error
    finally:
        disk.hook = None
    assert left <= 0, "the point was never reached"
    return acknowledged[-1], handles[0] if handles else None


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_every_change_that_fails_poisons_the_handle_and_the_run_goes_on_in_the_next(tmp_path: Path, code: int) -> None:
    for number in range(1, points(tmp_path) + 1):
        root = tmp_path / str(number)
        acknowledged, store = run_until(number, OSError(code, os.strerror(code)), root)
        if store is not None and not store._closed:
            with pytest.raises(StoreError, match=errno.errorcode[code]):
                store.read(KEY)
            store.close()
        check_goes_on(root, acknowledged)


def test_a_process_that_dies_at_any_change_loses_nothing_acknowledged(tmp_path: Path) -> None:  # rel:R1, R2
    for number in range(1, points(tmp_path) + 1):
        root = tmp_path / str(number)
        acknowledged, store = run_until(number, Died(), root)
        if store is not None:
            store.abandon()
        again, store = run_until(max(1, number // 2), Died(), root)  # and recovery dies as well
        if store is not None:
            store.abandon()
        check_goes_on(root, max(acknowledged, again))


def check_goes_on(root: Path, acknowledged: int) -> None:
    store = open_file(root)
    before = len(store.read(KEY))
    assert before >= acknowledged
    assert snapshots(store).load(KEY) in (None, *((seq, b"as of %d" % seq) for seq in range(2, before + 1, 2)))
    store.close()
    story(root, [])
    store = open_file(root)
    assert store.read(KEY) == list(records(KEY, 0, before + 4))
    assert all(row.key != RunKey("another run") for row in store.runs())
    assert [path.name for path in (root / "tmp").iterdir()] == []
    assert len(list((root / "owners").iterdir())) == 1
    store.close()


def test_a_process_killed_in_the_middle_of_a_snapshot_leaves_the_old_one_or_the_new_one(root: Path) -> None:  # rel:R1
    old, new = (1, b"old" * 9), (3, b"new" * 99_999)

    def work(say: Callable[[str], None], hear: Callable[[], str]) -> None:
        store, left = open_file(root), int(hear())
        lease = store.claim(KEY)
        snapshots(store).save(lease, *old)

        def hook(doing: str, path: Path) -> None:
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

        disk.hook = hook
        snapshots(store).save(lease, *new)
        say("survived\n")

    for number in range(1, 9):
        child = Child(work)
        child.say(f"{number}\n")
        try:
            survived = child.hear() == "survived"
        except EOFError:
            survived = False
        child.kill()
        store = open_file(root)
        assert snapshots(store).load(KEY) == (new if survived else old)
        assert list((root / "tmp").iterdir()) == [] and store.read(KEY) == list(records(KEY, 0, 3))
        store.close()
        if survived:
            break
    assert survived and number > 3, "it was killed at every change, and nowhere else"


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # rel:D11
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data[:7])))
    story(tmp_path / "store", [])
    monkeypatch.undo()
    store = open_file(tmp_path / "store")
    assert store.read(KEY) == list(records(KEY, 0, 4))
    store.close()


def test_a_disk_that_fills_up_in_the_middle_of_a_record(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # rel:D10
    write, room = os.write, [100]

    def limited(fd: int, data: bytes) -> int:
        if room[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = write(fd, bytes(data[: room[0]]))
        room[0] -= done
        return done

    store = open_file(root)
    lease = store.claim(KEY)
    monkeypatch.setattr(os, "write", limited)
    with pytest.raises(StoreError, match=r"ENOSPC.*Free some space"):
        store.append([item(lease, 3, 2)])
    with pytest.raises(StoreError, match="closed after it failed"):
        store.append([item(lease, 3, 2)])
    store.close()
    monkeypatch.undo()
    store = open_file(root)
    lease = store.claim(KEY)
    assert "moved to journal.torn-1" in store.warnings()[0]
    seq = len(store.read(KEY))
    assert store.append([item(lease, seq, 2)]) == [None]
    assert store.read(KEY) == list(records(KEY, 0, seq + 2))
    store.close()


def test_a_run_whose_lock_stays_taken_is_reported_and_the_others_go_on(root: Path) -> None:
    store = FileStore(root, wait=0.02, summarise=summarise)
    lease, other = store.claim(KEY), store.claim(RunKey("other"))
    path = journal(root).parent / "lock"
    fd = os.open(path, os.O_RDWR)
    with disk.locked(fd, path, 1, SYSTEM):
        problem, fine = store.append([item(lease, 3), item(other, 0)])
        assert isinstance(problem, StoreBusy) and str(path) in str(problem) and fine is None
    os.close(fd)
    assert store.append([item(lease, 3)]) == [None]
    store.close()


def test_a_store_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs.db").touch()
    with pytest.raises(ConfigError):
        open_file(tmp_path / "runs.db")
