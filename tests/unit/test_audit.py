"""``perdure check``: what is wrong with a store is found, in every store, and what a crash leaves behind is mended."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import audit_places as places
import psycopg
import pytest
from audit_places import ASKING, ORPHAN, ORPHANS_NAME, RUN, Place, append_raw, fill, refs_of

import perdure
from perdure import journal as j
from perdure.clock import Clock
from perdure.errors import LeaseHeld
from perdure.model import Lease, RunKey
from perdure.runners import Score, best_of
from perdure.runtime.audit import Auditor
from perdure.stores import Encryption, disk, open_store
from perdure.stores.findings import KINDS, Copies
from perdure.stores.sealed import SealedStore
from perdure.testing.processes import Child
from perdure.testing.samples import item, snapshots

LONG = pytest.mark.long


@pytest.fixture
def make(tmp_path: Path, postgres: Callable[[int], str], valkey: Callable[[], str]) -> Iterator[Callable[[str], Place]]:
    def place(kind: str) -> Place:
        server = postgres(18) if kind == "postgres" else valkey() if kind == "redis" else ""
        made = Place(kind, tmp_path, server)
        fill(made)
        return made

    yield place


@pytest.fixture(params=places.KINDS)
def place(request: pytest.FixtureRequest, make: Callable[[str], Place]) -> Place:
    return make(request.param)


# -- sound stores --------------------------------------------------------------------------------------------------


def test_a_sound_store_has_nothing_wrong(place: Place) -> None:
    before = [places.journal(place, key) for key in (RUN, ASKING)]
    found, counts = place.audit(repair=True)
    assert found == [] and not place.copies.exists()
    assert (counts.runs, counts.executed, counts.crashed, counts.unread) == (4, 0, 0, 0)
    assert counts.blobs == len(refs_of(place)) > 2 and counts.records > 20
    assert [places.journal(place, key) for key in (RUN, ASKING)] == before


def test_what_lives_is_left_alone(place: Place) -> None:
    holder = place.open()
    lease = holder.claim(RUN)
    assert holder.append([item(lease, len(holder.read(RUN)), 0)]) == [None]
    empty = holder.claim(RunKey("just claimed"))
    place.spoil_row(status="failed")
    found, counts = place.audit(repair=True)
    assert [finding.kind for finding in found] == ["row_differs"] * len(found) and found
    assert all("is being executed" in finding.left and not finding.repaired for finding in found)
    assert counts.left == len(found) and counts.executed == 1
    holder.release(lease)
    holder.release(empty)
    holder.close()


@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_an_encrypted_store_is_audited_with_its_key(tmp_path: Path, kind: str) -> None:
    keys = Encryption({"new": b"n" * 32})
    url = f"{kind}:{tmp_path / 'store'}"
    with perdure.CheckpointManager(url, encryption=keys) as manager:
        manager.run_sync(places.essay, "sea", goal=RUN.goal)
    store = open_store(url, encryption=keys)
    assert isinstance(store, SealedStore)
    assert list(Auditor(store).everything()) == [], "the names under which blobs stand are not those in the records"
    digest = refs_of_store(store)[0]
    name = store._seal.name("new", digest)
    place = Place(kind, tmp_path, "")
    if kind == "file":
        place.change_blob(name, b"other")
    else:
        with suppress(FileNotFoundError):
            (tmp_path / "runs.db").symlink_to(tmp_path / "store")
        place.change_blob(name, b"other")
    (found,) = Auditor(store).everything()
    assert found.kind == "blob" and found.place == digest
    place.forget_given(store._seal.name("new", refs_of_store(store)[1]))
    kinds = {finding.kind for finding in Auditor(store, keep=Copies(tmp_path / "copies")).everything()}
    assert kinds == {"blob", "unmarked_blob"}
    store.close()


def refs_of_store(store: SealedStore) -> list[str]:
    return [ref for n, line in enumerate(store.read(RUN), 1) for ref in j.refs(j.decode(RUN, line, n))]


# -- damage: found, named, and never touched -----------------------------------------------------------------------


def _bad_value(place: Place) -> None:
    append_raw(
        place,
        b'{"kind":"run_resumed/1","seq":%d,"epoch":99,"pid":1,"host":"h"}' % (len(places.journal(place)) + 1),
        b'{"kind":"step_started/1","seq":%d,"step":90,"name":"x","fingerprint":"y"}' % (len(places.journal(place)) + 2),
        b'{"kind":"step_completed/1","seq":%d,"step":90,"output":{"value":{"~":"blob","as":"str","sha256":"%b","size":1}}}'
        % (len(places.journal(place)) + 3, b"a" * 64),
    )


def _impossible(place: Place) -> None:
    append_raw(place, b'{"kind":"step_flagged/1","seq":%d}' % (len(places.journal(place)) + 1))


def _out_of_order(place: Place) -> None:
    append_raw(place, b'{"kind":"run_interrupted/1","seq":%d,"reason":""}' % (len(places.journal(place)) + 1))


def _other_post(place: Place) -> None:
    place.swap_post(j.encode(ASKING, j.SignalReceived(name="go", by="somebody else")))


DAMAGE: dict[str, tuple[str, Callable[[Place], None]]] = {
    "a flipped byte": ("damaged", lambda place: place.flip(4)),
    "a lost record": ("damaged", lambda place: place.lose_record(4)),
    "what cannot follow": ("damaged", _out_of_order),
    "a kind that a newer version has": ("newer", _impossible),
    "a value that needs a blob it does not name": ("value", _bad_value),
    "a lost blob": ("blob", lambda place: place.change_blob(refs_of(place)[1], None)),
    "another content of a blob": ("blob", lambda place: place.change_blob(refs_of(place)[0], b"other")),
    "lost posts": ("inbox", lambda place: place.lose_posts()),
    "another post": ("inbox", _other_post),
    "a damaged post": ("inbox", lambda place: place.swap_post(b'{"crc":"00000000"}\n')),
}


def _matrix() -> list[Any]:
    """Every kind of damage in every store; in the default run each in one store, and the first in all of them."""
    return [
        pytest.param(kind, what, marks=[] if not row or (row + column) % len(places.KINDS) == 0 else [LONG])
        for row, what in enumerate(DAMAGE)
        for column, kind in enumerate(places.KINDS)
    ]


@pytest.mark.parametrize(("where", "what"), _matrix())
def test_damage_is_told_with_run_and_record_and_repairs_touch_nothing_of_it(
    make: Callable[[str], Place], where: str, what: str
) -> None:  # rel:D9
    place = make(where)
    kind, damage = DAMAGE[what]
    damage(place)
    seen, _ = place.audit()
    found, counts = place.audit(repair=True)
    assert {finding.kind for finding in found} == {kind}, found
    key = ASKING if kind == "inbox" else RUN
    assert all((finding.run == key and str(key) in finding.what) or finding.kind == "blob" for finding in found)
    assert counts.damaged == (kind != "newer") and counts.repaired == counts.left == 0
    assert found == seen == place.audit()[0], "nothing was changed"
    assert {finding.kind for finding in place.audit(run=key)[0]} == {kind}
    assert place.audit(run=RunKey("failed"))[0] == []


def test_records_that_are_fewer_than_there_were_are_no_matter_of_the_row(make: Callable[[str], Place]) -> None:
    place = make("memory")
    del place.backend.runs[RUN].records[-1]
    found, _ = place.audit(repair=True)
    assert [finding.kind for finding in found] == ["damaged"]


def test_without_room_for_a_copy_nothing_is_changed(place: Place) -> None:  # rel:D10
    place.add_orphan()
    place.spoil_row(status="failed")
    place.copies.write_bytes(b"a file where the folder should be")
    seen, _ = place.audit()
    found, counts = place.audit(repair=True)
    assert (
        counts.repaired == 0 and all(str(place.copies) in finding.left for finding in found) and len(found) == len(seen)
    )
    assert place.has_blob(ORPHANS_NAME)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_no_copy_leaves_its_folder_whatever_a_blob_is_called(make: Callable[[str], Place], kind: str) -> None:  # rel:S5
    place = make(kind)
    names = ("../../../escaped", "/escaped", "..", "a/../../b", "x" * 64)
    for name in names:
        place.sql("INSERT INTO {t}blobs VALUES (?, ?)", name, name.encode())
    found, _ = place.audit(repair=True)
    assert all(finding.repaired for finding in found) and len(found) == len(names)
    assert sorted(place.kept()) == sorted(name.encode() for name in names)
    out = (*place.folder.rglob("*escaped*"), *place.folder.parent.glob("*escaped*"), Path("/escaped"))
    assert not [path for path in out if path.exists() and not path.is_relative_to(place.copies)]


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "redis"])
def test_records_without_a_row_are_told(make: Callable[[str], Place], kind: str) -> None:
    place = make(kind)
    store = place.open()
    lease = store.claim(RUN)
    snapshots(store).save(lease, 3, b"of what is damaged now")
    store.release(lease)
    store.close()
    place.lose_row()
    found, _ = place.audit(repair=True)
    assert "damaged" in {finding.kind for finding in found}
    assert not any(finding.repaired for finding in found), "no blob goes that these records may need"


def test_a_damaged_page_of_a_sqlite_file_is_told_whatever_it_holds(make: Callable[[str], Place]) -> None:  # rel:B3
    place = make("sqlite")
    place.sql("PRAGMA wal_checkpoint(TRUNCATE)")
    path = place.folder / "runs.db"
    data = bytearray(path.read_bytes())
    ((page,),) = place.sql("SELECT rootpage FROM sqlite_schema WHERE name = 'perdure_begun'")
    data[(page - 1) * 8192 : page * 8192] = b"\xff" * 8192
    path.write_bytes(data)
    assert "damaged" in place.kinds()


def test_files_of_the_store_that_are_damaged_are_told(make: Callable[[str], Place]) -> None:
    place = make("file")
    (place.root / "floor").write_bytes(b"much")
    assert place.kinds() == {"lease"}
    (place.root / "floor").unlink()
    for name in ("run.json", "lock"):
        kept = place.run_file(name).read_bytes()
        path = place.run_file(name)
        place.add_orphan()
        path.write_bytes(b"{") if name == "run.json" else path.unlink()
        found, _ = place.audit(repair=True)
        assert "damaged" in {f.kind for f in found} and not any(f.repaired for f in found), "whose blobs are whose?"
        path.write_bytes(kept)
        path.chmod(0o600)
    assert place.kinds() == {"orphan_blob"}


def test_epochs_that_could_come_again_are_told(make: Callable[[str], Place]) -> None:  # rel:C1
    place = make("sqlite")
    place.sql("DELETE FROM perdure_floor")
    assert place.kinds() == {"lease"}


def test_a_restored_schema_whose_sequence_was_left_behind_is_told(make: Callable[[str], Place]) -> None:  # rel:C1
    place = make("postgres")
    place.sql("SELECT setval('{t}epochs', 1)")
    assert place.kinds() == {"lease"}


# -- what a crash leaves behind: mended, and a copy kept -----------------------------------------------------------


def mended(place: Place, kind: str) -> None:
    """It is found, repaired with a copy, and then there is nothing more; everything else is as it was."""
    before = {key: places.journal(place, key) for key in (RUN, ASKING)}
    seen, _ = place.audit()
    found, counts = place.audit(repair=True)
    assert [finding.kind for finding in found] == [kind] * len(found) and found
    assert len(seen) == len(found) == counts.repaired and all(finding.repaired for finding in found)
    assert place.audit(repair=True)[0] == []
    assert {key: places.journal(place, key) for key in (RUN, ASKING)} == before
    assert all(map(place.has_blob, refs_of(place)))


def test_a_blob_that_nobody_was_given_is_removed_and_kept(place: Place) -> None:
    place.add_orphan()
    mended(place, "orphan_blob")
    assert place.kept() == [ORPHAN] and not place.has_blob(ORPHANS_NAME)


def test_a_blob_that_a_record_needs_stays_whatever_the_store_says(place: Place) -> None:
    digest = refs_of(place)[0]
    place.forget_given(digest)
    found, _ = place.audit(repair=True)
    assert [(finding.kind, finding.repaired) for finding in found] == [("unmarked_blob", False)]
    assert place.has_blob(digest)


@pytest.mark.parametrize("kind", ["file", "sqlite", "postgres", "redis"])
def test_what_a_deletion_that_was_killed_left_is_removed(make: Callable[[str], Place], kind: str) -> None:  # rel:S14
    place = make(kind)
    if kind == "file":
        folder = place.root / "blobs" / ORPHANS_NAME[:2]
        place.add_orphan()
        (folder / f"{ORPHANS_NAME}.0123-1").touch(0o600)
    elif kind == "redis":
        store = place.open()
        lease = store.claim(RunKey("gone"))
        assert store.append([item(lease, 0, blob=ORPHAN)]) == [None]
        with place.raw() as raw:  # as lua/delete.lua leaves it
            raw.delete(place.keys.run(lease.key), place.keys.journal(lease.key))
            raw.hset(place.keys.run(lease.key), mapping={"epoch": lease.epoch, "deleted": lease.epoch})
            raw.zrem(place.keys.runs, b"gone\x000000000000")
        store.close()
    else:
        place.add_orphan()
        place.sql("INSERT INTO {t}refs VALUES (?, ?)", 12345, ORPHANS_NAME)
    mended(place, "orphan_blob")
    assert place.kept() == [ORPHAN] and not place.has_blob(ORPHANS_NAME)


@pytest.mark.parametrize(
    "fields",
    [
        {"status": "failed"},
        pytest.param({"wake": 12.5, "completed": 7}, marks=LONG),
        pytest.param({"goal": 3}, marks=LONG),
    ],
)
def test_a_row_that_is_not_its_journals_is_made_anew(place: Place, fields: dict[str, object]) -> None:
    if (
        place.kind in ("memory", "file") and "goal" in fields
    ):  # a file's row is a cache that is left out if it is damaged
        fields = {"updated": 1.0}
    place.spoil_row(**fields)
    assert place.kinds() - {"index"} == {"row_differs"}
    found, _ = place.audit(repair=True)
    assert all(finding.repaired for finding in found) and place.kept()
    assert place.audit()[0] == []


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
@pytest.mark.parametrize(
    "column", ["wake", "meta", *(pytest.param(c, marks=LONG) for c in ("taken", "queue", "status"))]
)
def test_a_column_that_workers_look_at_is_mended(make: Callable[[str], Place], kind: str, column: str) -> None:
    place = make(kind)
    value = {"wake": 5.0, "taken": 9, "meta": ""}.get(column, "other")
    place.sql(f"UPDATE {{t}}runs SET {column} = ? WHERE goal = ?", value, RUN.goal)
    found, _ = place.audit(repair=True)
    assert {finding.kind for finding in found} <= {"row_differs", "inbox"} and found
    assert place.audit()[0] == []


@pytest.mark.parametrize("name", ["runs", "places", "dates", "begun", "posted"])
def test_a_run_that_the_index_overlooks_is_entered_anew(make: Callable[[str], Place], name: str) -> None:
    place = make("redis")
    if name == "posted":
        store = place.open()
        assert store.post(ASKING, 2, j.encode(ASKING, j.SignalReceived(name="more", by="me")))
        store.close()
    place.lose_from_index(name)
    found, _ = place.audit(repair=True)
    assert {finding.kind for finding in found} == {"index"} and all(finding.repaired for finding in found)
    assert place.audit()[0] == [] and len(place.kept()) == len(found)


def test_a_run_that_was_claimed_and_never_written_to_goes(place: Place) -> None:
    if place.kind == "memory":
        return  # what it holds ends with its process
    dead = place.open()
    dead.claim(RunKey("empty"))
    dead.abandon()  # type: ignore[attr-defined]
    mended(place, "empty_run")
    assert place.kept()


@pytest.mark.parametrize("tail", [b'{"crc":"12345678","len":      10,"entry":{"kind":"st', b"\0" * 300])
@pytest.mark.parametrize("name", ["journal.jsonl", "inbox.jsonl"])
def test_a_torn_tail_is_cut_and_kept(make: Callable[[str], Place], name: str, tail: bytes) -> None:  # rel:D9
    place = make("file")
    path = place.run_file(name, ASKING)
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    mended(place, "torn_tail")
    assert path.read_bytes() == whole and place.kept() == [tail]


def test_files_that_were_being_written_are_removed_and_those_of_others_told(make: Callable[[str], Place]) -> None:
    place = make("file")
    for path in (place.run_file(".lease.json.4711.tmp"), place.run_file("outputs") / ".01-write.md.12.tmp"):
        path.write_bytes(b"half of")
        path.chmod(0o600)
    mended(place, "leftover")
    assert place.kept() == [b"half of"] * 2
    place.run_file("notes.txt").touch(0o600)
    (place.root / "blobs" / "ab").mkdir(0o700, exist_ok=True)
    for name in ("mine.txt", "blobs/ab/notes.txt"):
        (place.root / name).touch(0o600)
    found, _ = place.audit(repair=True)
    assert [finding.kind for finding in found] == ["stray_file"] * 3


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "redis"])
def test_a_snapshot_whose_run_is_gone_is_removed_and_kept(make: Callable[[str], Place], kind: str) -> None:  # rel:S14
    place, deleted = make(kind), RunKey("deleted")
    store = place.open()
    lease = store.claim(deleted)
    assert store.append([item(lease, 0)]) == [None]
    store.delete(lease)
    store.close()
    if kind == "redis":
        with place.raw() as raw:
            for key in (RunKey("never there"), deleted):
                raw.set(place.keys.snapshot(key), b"3\nof nobody")
        copies = [b"3\nof nobody"] * 2
    else:
        place.sql("INSERT INTO {t}snapshots VALUES (?, ?, ?)", 12345, 3, b"of nobody")
        copies = [b"of nobody"]
    mended(place, "leftover")
    assert place.kept() == copies


def test_nothing_is_odd_about_a_run_with_a_snapshot_whatever_it_is(place: Place) -> None:
    store = place.open()
    for key, seq in ((RUN, 3), (ASKING, 10**6)):
        lease = store.claim(key)
        snapshots(store).save(lease, seq, b"no snapshot at all")
        store.release(lease)
    size = {row.key: row.size for row in store.runs()}
    store.close()
    assert place.audit(repair=True)[0] == [] and place.audit(run=RUN)[0] == []
    store = place.open()
    assert [snapshots(store).load(key) for key in (RUN, ASKING)] == [(n, b"no snapshot at all") for n in (3, 10**6)]
    assert {row.key: row.size for row in store.runs()} == size and size[ASKING] < 10**6
    store.close()


# -- what is only told -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_files_that_others_can_read_are_told(make: Callable[[str], Place], kind: str) -> None:  # rel:S13
    place = make(kind)
    path = place.run_file("journal.jsonl") if kind == "file" else place.folder / "runs.db"
    path.chmod(0o640)
    found, _ = place.audit(repair=True)
    assert {finding.kind for finding in found} == {"mode"} and str(path) in found[0].what
    assert path.stat().st_mode & 0o777 == 0o640, "somebody may have meant it"


def test_a_child_without_its_parent_is_told(place: Place) -> None:
    with perdure.CheckpointManager(place.open()) as manager:
        manager.run_sync(best_of(1, places.essay, judge=lambda value: Score(1.0)), "x", goal="top")
    store = place.open()
    parents = {row.parent for row in store.runs()} - {""}
    assert parents == {"top#0"}
    assert place.kinds() == set() if place.kind != "memory" else True
    store.delete(store.claim(RunKey("top")))
    store.close()
    assert place.kinds() == {"parent"}


class Fast(Clock):
    def now(self) -> float:
        return super().now() + 3600


@pytest.mark.parametrize("kind", ["postgres", "redis"])
def test_a_clock_that_is_far_from_the_stores_is_told(make: Callable[[str], Place], kind: str) -> None:  # rel:C4
    store = make(kind).open()
    assert [finding.kind for finding in Auditor(store, clock=Fast()).everything()] == ["clock"]
    store.close()


# -- while others write, and while it is killed ----------------------------------------------------------------------


def test_a_repair_that_is_killed_at_any_point_is_done_by_the_next(make: Callable[[str], Place]) -> None:  # rel:R2
    place, point, done = make("file"), 0, False
    while not done:
        point += 1
        tail = place.run_file("journal.jsonl")
        whole = tail.read_bytes()
        tail.write_bytes(whole + b"{torn")
        place.add_orphan()
        place.spoil_row(status="failed")
        child = Child(lambda say, _, place=place, point=point: _die_at(place, point, say))  # type: ignore[misc]
        try:
            done = child.hear() == "done"
        except EOFError:
            done = False
        child.kill()
        found, _ = place.audit(repair=True)
        assert {finding.level for finding in found} <= {"repair"} and all(finding.repaired for finding in found)
        assert place.audit()[0] == [] and tail.read_bytes() == whole and all(map(place.has_blob, refs_of(place)))
        assert {b"{torn", ORPHAN} <= set(place.kept())
    assert point > 20, "it died often enough"


def _die_at(place: Place, point: int, say: Callable[[str], None]) -> None:
    left = [point]

    def count(doing: str, path: Path) -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), 9)

    store = place.open()
    disk.hook = count
    list(Auditor(store, keep=Copies(place.copies)).everything())
    say("done\n")


SERVED = ["file", "sqlite", "postgres", "redis"]


@pytest.mark.parametrize("kind", SERVED)
def test_a_blob_that_a_run_was_given_meanwhile_stays(make: Callable[[str], Place], kind: str) -> None:
    place = make(kind)
    place.add_orphan()
    store = place.open()
    audit = store.capabilities.audit
    assert audit is not None
    found = [finding for finding in audit.look(None) if finding is not None]
    assert store.append([item(store.claim(RunKey("late")), 0, blob=ORPHAN)]) == [None]
    for finding in found:
        audit.mend(finding, Copies(place.copies))
    assert len(found) == 1 and store.blob(ORPHANS_NAME) == ORPHAN and place.kept() == []
    store.close()


class Midway(Copies):
    """While a blob is being removed, and its copy has just been kept, another process gives it to a run."""

    other: Child

    def save(self, name: str, content: bytes) -> None:
        super().save(name, content)
        self.other.say("now\n")
        select.select([self.other._in], [], [], 0.5)  # it has to wait for us; if it does not, it has said so by then


@pytest.mark.parametrize("kind", SERVED)
def test_who_is_just_giving_it_waits_or_is_waited_for(make: Callable[[str], Place], kind: str) -> None:
    place = make(kind)
    place.add_orphan()

    def work(say: Callable[[str], None], hear: Callable[[], str]) -> None:
        store = place.open()
        lease = store.claim(RunKey("late"))
        say("claimed\n")
        hear()
        assert store.append([item(lease, 0, blob=ORPHAN)]) == [None]
        say("given\n")
        hear()

    keep = Midway(place.copies)
    keep.other = Child(work)
    assert keep.other.hear() == "claimed"
    store = place.open()
    audit = store.capabilities.audit
    assert audit is not None
    (found,) = [finding for finding in audit.look(None) if finding is not None]
    audit.mend(found, keep)
    assert keep.other.hear() == "given" and store.blob(ORPHANS_NAME) == ORPHAN
    keep.other.kill()
    store.close()


def test_postgresql_sees_what_was_not_committed_yet_when_the_repair_began(make: Callable[[str], Place]) -> None:
    place = make("postgres")
    place.add_orphan()
    number = place.row_number()
    store = place.open()
    audit = store.capabilities.audit
    assert audit is not None
    (found,) = [finding for finding in audit.look(None) if finding is not None]
    with psycopg.connect(place.server) as giving:  # as the statement "append" does
        giving.execute(f"UPDATE {place.schema}.blobs SET digest = digest WHERE digest = %s".encode(), [ORPHANS_NAME])
        giving.execute(f"INSERT INTO {place.schema}.refs VALUES (%s, %s)".encode(), [number, ORPHANS_NAME])
        mending = threading.Thread(target=audit.mend, args=(found, Copies(place.copies)))
        mending.start()
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE ?"
        while not place.sql(waits, f"%{place.schema}%")[0][0]:
            assert mending.is_alive()
    mending.join()
    assert store.blob(ORPHANS_NAME) == ORPHAN
    store.close()


SHARED = [b"shared %d" % n * 10 for n in range(2)] + [ORPHAN]


@pytest.mark.parametrize("kind", SERVED)
def test_no_run_loses_a_blob_while_others_repair_in_a_loop(make: Callable[[str], Place], kind: str) -> None:
    place = make(kind)
    rounds = 12 if kind == "file" else 40  # a file store waits for the device for each

    def work(say: Callable[[str], None], hear: Callable[[], str]) -> None:
        store = place.open()
        runs: list[tuple[Lease, str]] = []
        for number in range(rounds):
            lease = store.claim(RunKey(f"run {os.getpid()} {number}"))
            given = item(lease, 0, blob=SHARED[number % len(SHARED)])
            assert store.append([given]) == [None]
            runs.append((lease, next(iter(given.blobs))))
            for _, digest in runs:
                store.blob(digest)
            if len(runs) == 3:
                store.delete(runs.pop(0)[0])
        for lease, _ in runs:
            store.delete(lease)
        say("done\n")
        hear()

    workers = [Child(work) for _ in range(2)]
    store = place.open()
    audit = store.capabilities.audit
    assert audit is not None
    ended = removed = 0
    while ended < len(workers) or not removed:
        place.add_orphan()
        found = [finding for finding in audit.look(None) if finding is not None and finding.kind == "orphan_blob"]
        for finding in found:  # the store's own rules alone, without a look at the journals
            audit.mend(finding, Copies(place.copies))
        removed += len(found)
        if ended < len(workers) and _has_said(workers[ended]):
            assert workers[ended].hear() == "done"
            ended += 1
    for worker in workers:
        worker.kill()
    assert all(map(place.has_blob, refs_of(place)))
    store.close()
    place.audit(repair=True)
    assert place.audit()[0] == []


def _has_said(child: Child) -> bool:
    return bool(select.select([child._in], [], [], 0)[0])


@pytest.mark.parametrize("kind", SERVED)
def test_nothing_is_told_of_what_is_just_being_written(make: Callable[[str], Place], kind: str) -> None:
    place = make(kind)

    def work(say: Callable[[str], None], hear: Callable[[], str]) -> None:
        with perdure.CheckpointManager(place.url) as manager:
            for number in range(6):
                manager.run_sync(places.essay, f"topic {number}", goal=f"live {number % 2}", new=True)
        store = place.open()
        for row in store.runs():
            if row.goal.startswith("live"):
                store.delete(store.claim(row.key))
        store.close()
        say("done\n")
        hear()

    worker = Child(work)
    looks = 0
    while not _has_said(worker):
        found, _ = place.audit(repair=True)
        assert [finding for finding in found if not finding.left] == []
        looks += 1
    assert worker.hear() == "done" and looks
    worker.kill()


@pytest.mark.parametrize("kind", SERVED)
def test_a_killed_process_leaves_only_what_can_be_repaired(make: Callable[[str], Place], kind: str) -> None:  # rel:R1
    place = make(kind)

    def work(after: int, say: Callable[[str], None], hear: Callable[[], str]) -> None:
        with perdure.CheckpointManager(place.url) as manager:
            for number in range(1000):
                say(f"{number}\n")  # a goal of its own: what was claimed and not begun is held until its lease ends
                manager.run_sync(places.essay, f"topic {number}", goal=f"killed {after}", new=True)

    for after in (1, 2):
        child = Child(partial(work, after))
        for _ in range(after):
            child.hear()
        child.kill()
        found, counts = place.audit()
        assert {finding.level for finding in found} <= {"repair"} and counts.damaged == 0
        found, _ = place.audit(repair=True)
        assert all(finding.repaired for finding in found) and place.audit()[0] == []


# -- the kinds -----------------------------------------------------------------------------------------------------


def test_every_kind_is_explained_and_made_by_some_test() -> None:
    text = Path(__file__).read_text() + "settings"  # tests/acceptance/test_cli_workers.py
    assert all(f'"{kind}"' in text or kind == "settings" for kind in KINDS)
    assert all(meaning and meaning[0].islower() and not meaning.endswith(".") for _, meaning in KINDS.values())


def test_a_held_run_is_never_claimed_from_its_holder(place: Place) -> None:
    holder = place.open()
    holder.claim(ASKING)
    place.audit(repair=True)
    other = place.open()
    with pytest.raises(LeaseHeld):
        other.claim(ASKING)
    other.close()
    holder.close()
