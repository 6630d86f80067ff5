"""What is particular to the file store: torn tails, damage, full disks, and every step of writing that can fail."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.clock import SYSTEM
from perdure.errors import ConfigError, CorruptStore, NewerFormat, PerdureError, StoreBusy, StoreError
from perdure.model import RunKey, RunMeta
from perdure.stores import disk
from perdure.stores.file import FileStore
from perdure.testing.samples import item, meta, records, summarise

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


# -- the layout ----------------------------------------------------------------------------------------------------


def test_the_journal_is_lines_of_json_that_need_no_library(root: Path) -> None:  # W8
    lines = journal(root).read_text().splitlines()
    assert [json.loads(line)["entry"]["seq"] for line in lines] == [1, 2, 3]
    assert json.loads((root / "runs" / "paper.0" / "run.json").read_text()) == {"goal": "paper", "episode": 0}
    assert list((root / "tmp").iterdir()) == []


def test_outputs_go_beside_the_journal(root: Path) -> None:
    store = open_file(root)
    assert store.capabilities.outputs is not None
    assert store.capabilities.outputs / disk.run_folder_name(KEY) == journal(root).parent
    store.close()


# -- torn tails and damage (rel:D9) --------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_torn_tail_is_cut_kept_and_reported(root: Path, cut: int) -> None:
    data = journal(root).read_bytes()
    journal(root).write_bytes(data[:-cut])
    whole = list(records(KEY, 0, 2))
    store = open_file(root)
    assert store.read(KEY) == whole
    assert store.runs() == [meta(KEY, 2)]
    assert journal(root).read_bytes() == data[:-cut], "reading changes nothing"
    assert store.warnings() == []
    lease = store.claim(KEY)
    (warning,) = store.warnings()
    assert "paper#0" in warning and "journal.torn-1" in warning and store.warnings() == []
    assert journal(root).read_bytes() == b"".join(whole)
    assert (journal(root).parent / "journal.torn-1").read_bytes() == data[len(b"".join(whole)) : -cut]
    assert store.append([item(lease, 2, 1)]) == [None]
    assert store.read(KEY) == list(records(KEY, 0, 3))
    store.close()


def test_a_flipped_tail_is_cut_and_each_tail_is_kept(root: Path) -> None:
    for number in (1, 2):
        data = bytearray(journal(root).read_bytes())
        data[-20] ^= 1
        journal(root).write_bytes(data)
        store = open_file(root)
        store.release(store.claim(KEY))
        assert f"journal.torn-{number}" in store.warnings()[0]
        assert store.read(KEY) == list(records(KEY, 0, 3 - number))
        store.close()


def test_damage_in_the_middle_is_an_error_that_says_where_and_changes_nothing(root: Path) -> None:
    data = bytearray(journal(root).read_bytes())
    offset = len(records(KEY, 0, 1)[0])
    data[offset + 60] ^= 1
    journal(root).write_bytes(data)
    os.utime(journal(root), (1, 1))  # the clock of some file systems ticks too slowly for a test
    store = open_file(root)
    lease = store.claim(RunKey("healthy"))
    for verb in (store.read, store.claim):
        with pytest.raises(CorruptStore, match=rf"paper#0: record 2 at byte {offset}") as error:
            verb(KEY)
        assert str(journal(root)) in str(error.value)
    assert journal(root).read_bytes() == data
    assert store.append([item(lease, 0)]) == [None], "other runs are not affected"
    rows = {row.goal: row.reason for row in store.runs()}
    assert "record 2" in rows["paper"] and rows["healthy"] == ""
    assert "record 2" in store.warnings()[0]
    store.close()


def test_a_run_that_lost_its_journal_is_damage_not_a_new_run(root: Path) -> None:  # G8
    journal(root).unlink()
    store = open_file(root)
    for verb in (store.read, store.claim):
        with pytest.raises(CorruptStore, match=r"paper#0.*journal\.jsonl is missing"):
            verb(KEY)
    (row,) = store.runs()
    assert row.key == KEY and "missing" in row.reason
    assert not journal(root).exists()
    store.close()


def test_listing_reads_the_journals_of_untouched_runs_never(root: Path) -> None:  # a run's row costs two small files
    def summarise_never(key: RunKey, lines: list[bytes]) -> RunMeta:
        raise AssertionError(f"the journal of {key} was read")

    store = FileStore(root, summarise=summarise_never)
    assert store.runs() == [meta(KEY, 3)]
    store.close()


def test_records_of_another_run_are_damage_or_a_tail_but_never_a_result(root: Path) -> None:
    store = open_file(root)
    other = RunKey("other")
    lease = store.claim(other)
    store.append([item(lease, 0, 3)])
    store.close()
    journal(root).write_bytes((root / "runs" / "other.0" / "journal.jsonl").read_bytes())
    store = open_file(root)
    assert store.read(KEY) == []
    store.close()


def test_a_damaged_lease_file_does_not_let_the_epoch_start_again(root: Path) -> None:  # rel:C1
    store = open_file(root)
    epoch = store.claim(KEY).epoch
    store.abandon()
    (journal(root).parent / "lease.json").write_bytes(b"\x00" * 50)
    store = open_file(root)
    assert store.claim(KEY).epoch > epoch
    for name in ("lease.json", "lock"):
        (journal(root).parent / name).write_bytes(b"{")
    other = open_file(root)
    with pytest.raises(CorruptStore, match="both damaged"):
        other.claim(KEY)
    store.close()
    other.close()


def test_a_blob_with_other_content_is_damage(root: Path) -> None:
    store = open_file(root)
    (path,) = (path for path in (root / "blobs").rglob("*") if path.is_file())
    assert store.blob(path.name) == b"large"
    path.write_bytes(b"other")
    with pytest.raises(CorruptStore, match="content") as error:
        store.blob(path.name)
    assert str(path) in str(error.value)
    path.unlink()
    with pytest.raises(CorruptStore, match="missing"):
        store.blob(path.name)
    store.close()


def test_a_journal_that_somebody_else_wrote_to_is_not_continued(root: Path) -> None:
    store = open_file(root)
    lease, other = store.claim(KEY), store.claim(RunKey("other"))
    with journal(root).open("ab") as file:
        file.write(b"x")
    problem, fine = store.append([item(lease, 3), item(other, 0)])
    assert isinstance(problem, CorruptStore) and "another program" in str(problem) and fine is None
    store.close()


def test_a_newer_format_is_refused_and_not_touched(root: Path) -> None:  # rel:R6
    text = '{"store":"perdure","version":99,"new":true}'
    (root / "format.json").write_text(text)
    with pytest.raises(NewerFormat, match="99"):
        open_file(root)
    assert (root / "format.json").read_text() == text


@pytest.mark.parametrize("text", ["", "{", "[]", '{"store":"git","version":1}', '{"version":1}', "\x00" * 9, None])
def test_a_folder_of_something_else_is_not_taken_over(root: Path, text: str | None) -> None:  # rel:B3
    path = root / "format.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(CorruptStore, match=r"format\.json"):
        open_file(root)
    assert path.exists() == (text is not None)


def test_a_folder_that_belongs_to_another_run_is_not_used(root: Path) -> None:
    (root / "runs" / "paper.0").rename(root / "runs" / "other.0")
    store = open_file(root)
    for verb in (store.read, store.claim):
        with pytest.raises(CorruptStore, match=r"paper#0"):
            verb(RunKey("other"))
    (root / "runs" / "stray").touch()
    (root / "runs" / "empty").mkdir()
    assert store.runs() == [] and len(store.warnings()) == 3
    store.close()


def test_planted_links_are_not_followed(root: Path, tmp_path: Path) -> None:  # rel:S5
    victim = tmp_path / "victim"
    victim.write_text("precious")
    journal(root).unlink()
    journal(root).symlink_to(victim)
    store = open_file(root)
    with pytest.raises(StoreError):
        store.claim(KEY)
    assert victim.read_text() == "precious"
    store.close()


@settings(max_examples=150, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_bytes_in_any_file_give_an_error_of_ours_or_none(root: Path, data: st.DataObject) -> None:  # rel:B3
    runs = journal(root).parent
    path = data.draw(st.sampled_from([root / "format.json", root / "floor", *sorted(runs.glob("*.json*"))]))
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(data.draw(st.binary(max_size=60) | st.just(b"[" * 100_000) | st.just(b'{"seq":1e999}')))
    try:
        store = open_file(root)
        for verb in (lambda: store.read(KEY), store.runs, lambda: store.release(store.claim(KEY)), store.close):
            try:
                verb()
            except PerdureError:
                continue
    except PerdureError:
        pass
    for torn in runs.glob("journal.torn-*"):
        torn.unlink()
    path.unlink() if before is None else path.write_bytes(before)
    if path == journal(root):
        return
    journal(root).write_bytes(b"".join(records(KEY, 0, 3)))


# -- writing that fails (rel:D4, D10, D11) -------------------------------------------------------------------------


class Died(BaseException):
    """Stands for the death of the process: nothing catches it."""


def story(root: Path, acknowledged: list[int], at: Callable[[FileStore], None] = lambda store: None) -> None:
    """A life of a store: continue the run by two batches, make and delete another one, release."""
    store = open_file(root)
    at(store)
    lease = store.claim(KEY)
    seq = len(store.read(KEY))
    for _ in range(2):
        result = store.append([item(lease, seq, 2, blob=b"blob %d" % seq)])
        assert result == [None]
        seq += 2
        acknowledged.append(seq)
    other = store.claim(RunKey("another run"))
    assert store.append([item(other, len(store.read(other.key)))]) == [None]
    store.delete(other)
    store.release(lease)
    store.close()


def points(tmp_path: Path) -> int:
    """How many changes to the file system the story makes."""
    seen: list[str] = []
    disk.hook = lambda doing, path: seen.append(doing)
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
    store.close()
    story(root, [])
    store = open_file(root)
    assert store.read(KEY) == list(records(KEY, 0, before + 4))
    assert all(row.key != RunKey("another run") for row in store.runs())
    assert [path.name for path in (root / "tmp").iterdir()] == []
    assert len(list((root / "owners").iterdir())) == 1
    store.close()


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
