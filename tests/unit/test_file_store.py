"""What is particular to the file store: torn tails, damage, and whatever else is found in its folder."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.errors import CorruptStore, NewerFormat, PerdureError, StoreError
from perdure.framing import frame
from perdure.model import RunKey, RunMeta
from perdure.stores import disk
from perdure.stores.file import FileStore
from perdure.testing.samples import item, meta, records, snapshots, stored, summarise

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
    whose = json.loads((root / "runs" / "paper.0" / "run.json").read_text())
    assert (whose["goal"], whose["episode"]) == ("paper", 0)
    assert list((root / "tmp").iterdir()) == []


def test_outputs_go_beside_the_journal(root: Path) -> None:
    store = open_file(root)
    assert store.capabilities.outputs is not None
    assert store.capabilities.outputs / disk.run_folder_name(KEY) == journal(root).parent
    store.close()


# -- snapshots -----------------------------------------------------------------------------------------------------


def test_a_snapshot_is_one_file_that_only_its_owner_reads(root: Path) -> None:  # rel:S13
    store = open_file(root)
    lease = store.claim(KEY)
    for content in (b"first" * 999, b"second"):
        snapshots(store).save(lease, 3, content)
        path = journal(root).parent / "snapshot"
        assert path.read_bytes() == b"3\n" + content and path.stat().st_mode & 0o777 == 0o600
    assert list((root / "tmp").iterdir()) == []
    store.close()


@pytest.mark.parametrize(
    "text", [b"", b"\0" * 99, b"12", b"\n", b"x\nabc", b"-1\nabc", b" 1\nabc", b"1" * 17 + b"\nabc"]
)
def test_what_is_no_snapshot_is_none_and_the_next_one_takes_its_place(root: Path, text: bytes) -> None:  # rel:B3
    (journal(root).parent / "snapshot").write_bytes(text)
    store = open_file(root)
    assert snapshots(store).load(KEY) is None and store.read(KEY) == list(records(KEY, 0, 3))
    snapshots(store).save(store.claim(KEY), 3, b"sound")
    assert snapshots(store).load(KEY) == (3, b"sound") and store.warnings() == []
    store.close()


def test_a_snapshot_that_is_no_file_is_none_and_nothing_behind_a_link_is_touched(root: Path) -> None:  # rel:S5
    path, outside = journal(root).parent / "snapshot", root.parent / "outside"
    outside.write_bytes(b"3\nsomebody's")
    store = open_file(root)
    lease = store.claim(KEY)
    for make in (lambda: path.symlink_to(outside), lambda: os.mkfifo(path), lambda: path.symlink_to("/dev/zero")):
        make()
        assert snapshots(store).load(KEY) is None
        snapshots(store).save(lease, 3, b"mine")
        assert not path.is_symlink() and snapshots(store).load(KEY) == (3, b"mine")
        path.unlink()
    path.mkdir()
    assert snapshots(store).load(KEY) is None
    with pytest.raises(StoreError, match="snapshot"):
        snapshots(store).save(lease, 3, b"mine")
    assert outside.read_bytes() == b"3\nsomebody's"
    store.close()


def test_a_snapshot_larger_than_any_is_not_read(root: Path) -> None:  # rel:B4
    path = journal(root).parent / "snapshot"
    path.write_bytes(b"3\n")
    os.truncate(path, 2**40)
    store = open_file(root)
    assert snapshots(store).load(KEY) is None
    store.close()


# -- torn tails and damage (rel:D9) --------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_torn_tail_is_cut_kept_and_reported(root: Path, cut: int) -> None:
    data = journal(root).read_bytes()
    journal(root).write_bytes(data[:-cut])
    whole = list(records(KEY, 0, 2))
    store = open_file(root)
    assert store.read(KEY) == whole
    assert [stored(row) for row in store.runs()] == [meta(KEY, 2)]
    assert journal(root).read_bytes() == data[:-cut], "reading changes nothing"
    assert store.warnings() == []
    lease = store.claim(KEY)
    (warning,) = store.warnings()
    assert "paper#0" in warning and "journal.torn-1" in warning and store.warnings() == []
    good = data[:-1].rindex(b"\n") + 1
    assert journal(root).read_bytes() == data[:good]
    assert (journal(root).parent / "journal.torn-1").read_bytes() == data[good:-cut]
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
    assert [stored(row) for row in store.runs()] == [meta(KEY, 3)]
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
    (path,) = (path for path in (root / "blobs").rglob("*") if len(path.name) == 64)
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


def test_a_store_of_the_first_format_learns_which_runs_were_given_a_blob(root: Path) -> None:  # X13 K5
    digest = hashlib.sha256(b"large").hexdigest()
    for path in (root / "blobs").rglob(f"{digest}.*"):
        path.unlink()
    run = root / "runs" / "paper.0"
    (run / "blobs").unlink()
    (run / "run.json").write_text('{"goal":"paper","episode":0}')
    entry = msgspec.json.encode({"seq": 4, "status": "running", "pad": digest})
    with journal(root).open("ab") as file:
        file.write(frame(KEY, entry))
    (root / "format.json").write_text('{"store":"perdure","version":1}')
    open_file(root).close()
    store = open_file(root)
    other = store.claim(RunKey("other"))
    store.append([item(other, 0, shared=b"large")])
    store.delete(other)
    assert store.blob(digest) == b"large" and store.runs()[0].size > len(b"large") + journal(root).stat().st_size - 1
    store.delete(store.claim(KEY))
    with pytest.raises(CorruptStore, match="missing"):
        store.blob(digest)
    store.close()


def test_a_run_that_was_deleted_halfway_takes_its_blobs_along_when_it_is_swept_away(root: Path) -> None:  # K5
    digest = hashlib.sha256(b"large").hexdigest()
    (root / "runs" / "paper.0").rename(root / "tmp" / "0123456789abcdef-1")
    store = open_file(root)
    again = store.claim(KEY)
    store.append([item(again, 0, large=b"large")])
    store.close()
    store = open_file(root)
    assert store.blob(digest) == b"large"
    (root / "runs" / "paper.0").rename(root / "tmp" / "0123456789abcdef-1")
    open_file(root).close()
    assert [path for path in (root / "blobs").rglob("*") if path.is_file()] == [root / "blobs" / "lock"]
    store.close()


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


def test_a_run_folder_that_is_a_link_is_not_written_to(root: Path, tmp_path: Path) -> None:  # rel:S5
    outside = tmp_path / "outside"
    journal(root).parent.rename(outside)
    journal(root).parent.symlink_to(outside)
    before = sorted(path.name for path in outside.iterdir())
    store = open_file(root)
    for verb in (store.read, store.claim):
        with pytest.raises(CorruptStore, match="is a link"):
            verb(KEY)
    assert sorted(path.name for path in outside.iterdir()) == before
    store.close()


def test_a_run_that_lost_its_lock_is_told_and_mended_as_the_error_says(root: Path) -> None:
    lock = journal(root).parent / "lock"
    lock.unlink()
    store = open_file(root)
    assert [stored(row) for row in store.runs()] == [meta(KEY, 3)] and len(store.read(KEY)) == 3
    with pytest.raises(CorruptStore, match="make an empty file of that name"):
        store.claim(KEY)
    lock.touch(mode=0o600)
    assert store.append([item(store.claim(KEY), 3)]) == [None]
    store.close()


def test_leftovers_of_the_desktop_and_of_the_dead_are_nobodys_runs(root: Path) -> None:
    (root / "runs" / ".DS_Store").touch()
    (root / "tmp" / f"{'0' * 32}-1").mkdir()
    (journal(root).parent / ".lease.json.1.tmp").touch()
    store = open_file(root)
    assert [stored(row) for row in store.runs()] == [meta(KEY, 3)] and store.warnings() == []
    assert list((root / "tmp").iterdir()) == []
    store.close()


@settings(max_examples=150, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
