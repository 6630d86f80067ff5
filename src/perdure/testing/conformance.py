"""The suite that holds every store to ``perdure.stores.base``. A new store's test file is this long::

    from pathlib import Path
    from perdure.stores.base import Store
    from perdure.testing.conformance import SharedStoreConformance

    class TestMyStore(SharedStoreConformance):
        def open(self, place: Path) -> Store:
            return MyStore(place / "store")

        def abandon(self, store: Store) -> None:
            store.abandon()

``StoreConformance`` is for stores of one process; ``SharedStoreConformance`` adds what several processes must see, and
kills some. ``random_store.py`` beside this file is the stateful part: random histories against a model. The records are
those of ``samples.py``; a store that computes listing rows from records is given ``samples.summarise``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from queue import SimpleQueue
from typing import ClassVar

import msgspec
import pytest

from perdure.errors import Bug, ConfigError, CorruptStore, LeaseHeld, LeaseLost, PerdureError, RunNotFound
from perdure.limits import MAX_BLOB
from perdure.model import RunKey
from perdure.stores.base import Append, Rewrite, Store, Which
from perdure.stores.compression import COMPRESSED, compressed
from perdure.testing.processes import Child
from perdure.testing.random_store import check_random_histories
from perdure.testing.samples import HOSTILE_GOALS, item, meta, posts, records, snapshots, stored


def _tell(children: Sequence[Child], text: str) -> None:
    for child in children:
        child.say(f"{text}\n")


class StoreConformance:
    """Tests of one store. Subclasses say how to open it."""

    histories: ClassVar[int] = 50
    """random histories that are tried; more find more, and take longer"""

    def open(self, place: Path) -> Store:
        """A new handle on the store that belongs to the folder ``place``; a second call opens the same store again."""
        raise NotImplementedError

    def abandon(self, store: Store) -> None:
        """Leave a handle as the sudden death of its process would: nothing flushed, nothing released. Where leases
        expire, see to it that these have."""
        raise NotImplementedError

    # -- journals --------------------------------------------------------------------------------------------------

    def test_records_come_back_byte_for_byte_in_order(self, tmp_path: Path) -> None:
        store, key = self.open(tmp_path), RunKey("paper")
        lease = store.claim(key)
        assert store.read(key) == []
        assert store.append([item(lease, 0, 3)]) == [None]
        assert store.append([item(lease, 3, 1), item(lease, 4, 2)]) == [None, None]
        assert store.read(key) == list(records(key, 0, 6))
        assert store.read(key, after=4) == list(records(key, 4, 2))
        assert store.read(key, after=6) == []
        assert store.read(RunKey("another")) == []
        assert store.read(RunKey("paper", 1)) == []
        store.close()

    def test_acknowledged_records_outlive_the_handle(self, tmp_path: Path) -> None:  # rel:D1
        key = RunKey("paper")
        for end in (self.abandon, lambda store: store.close()):
            store = self.open(tmp_path)
            lease = store.claim(key)
            before = len(store.read(key))
            assert store.append([item(lease, before, 2, blob=b"large")]) == [None]
            end(store)
        store = self.open(tmp_path)
        assert store.read(key) == list(records(key, 0, 4))
        assert store.blob(hashlib.sha256(b"large").hexdigest()) == b"large"
        store.close()

    def test_an_append_that_does_not_continue_the_run_is_refused_alone(self, tmp_path: Path) -> None:
        store, one, two = self.open(tmp_path), RunKey("one"), RunKey("two")
        first, second = store.claim(one), store.claim(two)
        assert store.append([item(first, 0, 2)]) == [None]
        for wrong in (0, 1, 3):
            problem, fine = store.append([item(first, wrong), item(second, len(store.read(two)))])
            assert isinstance(problem, Bug) and fine is None
        assert store.read(one) == list(records(one, 0, 2))
        assert store.read(two) == list(records(two, 0, 3))
        store.close()

    def test_a_batch_for_many_runs_is_kept_whole(self, tmp_path: Path) -> None:  # X8
        store = self.open(tmp_path)
        keys = [RunKey(f"run-{n}", n % 3) for n in range(70)]
        leases = [store.claim(key) for key in keys]
        assert store.append([item(lease, 0, 2) for lease in leases]) == [None] * 70
        assert all(store.read(key) == list(records(key, 0, 2)) for key in keys)
        store.close()

    def test_a_large_record_and_an_empty_batch(self, tmp_path: Path) -> None:
        store, key = self.open(tmp_path), RunKey("paper")
        lease = store.claim(key)
        assert store.append([]) == []
        large = records(key, 0, 1, pad="x" * 3_000_000)
        assert store.append([Append(lease, 0, large, meta(key, 1))]) == [None]
        assert store.read(key) == list(large)
        store.close()

    # -- leases ----------------------------------------------------------------------------------------------------

    def test_a_run_has_one_holder(self, tmp_path: Path) -> None:  # rel:C1
        store, other, key = self.open(tmp_path), self.open(tmp_path), RunKey("paper")
        lease = store.claim(key)
        for handle in (other, store):
            with pytest.raises(LeaseHeld, match=rf"process {lease.pid} on .+ since \d{{4}}-"):
                handle.claim(key)
        assert other.claim(RunKey("paper", 1)).epoch > 0
        store.release(lease)
        assert other.claim(key).epoch > lease.epoch
        store.close()
        other.close()

    def test_a_dead_holders_run_is_free_at_once_and_the_dead_is_fenced(self, tmp_path: Path) -> None:  # rel:C10
        dead, store, key = self.open(tmp_path), self.open(tmp_path), RunKey("paper")
        old = dead.claim(key)
        assert dead.append([item(old, 0)]) == [None]
        self.abandon(dead)
        lease = store.claim(key)
        assert lease.epoch > old.epoch
        assert store.append([item(old, 1)])[0].__class__ is LeaseLost
        assert store.append([item(lease, 1)]) == [None]
        store.close()

    def test_closing_releases_everything(self, tmp_path: Path) -> None:
        store, other, key = self.open(tmp_path), self.open(tmp_path), RunKey("paper")
        store.claim(key)
        store.close()
        store.close()
        other.claim(key)
        with pytest.raises(ConfigError, match="closed"):
            store.read(key)
        other.close()

    def test_a_stale_lease_writes_nothing_and_disturbs_nobody(self, tmp_path: Path) -> None:  # rel:C1, rel:C2
        store, other, key, healthy = (self.open(tmp_path), self.open(tmp_path), RunKey("paper"), RunKey("healthy"))
        stale = store.claim(key)
        store.append([item(stale, 0)])
        store.release(stale)
        store.release(stale)
        taken = other.claim(key)
        good = store.claim(healthy)
        problem, fine = store.append([item(stale, 1, 5, secret=b"never kept"), item(good, 0)])
        assert isinstance(problem, LeaseLost) and fine is None
        assert isinstance(store.append([item(taken, 1)])[0], LeaseLost), "a lease is good in its own handle only"
        with pytest.raises(LeaseLost):
            store.delete(stale)
        store.release(stale)
        assert other.append([item(taken, 1)]) == [None]
        assert store.read(key) == list(records(key, 0, 2))
        with pytest.raises(CorruptStore):
            store.blob(hashlib.sha256(b"never kept").hexdigest())
        store.close()
        other.close()

    def test_epochs_grow_for_ever(self, tmp_path: Path) -> None:  # rel:C1
        key, epochs = RunKey("paper"), [0]
        for way in ("release", "close", "abandon", "delete", "release", "delete", "close"):
            store = self.open(tmp_path)
            lease = store.claim(key)
            epochs.append(lease.epoch)
            if way == "release":
                store.release(lease)
            elif way == "delete":
                store.delete(lease)
            if way == "abandon":
                self.abandon(store)
            else:
                store.close()
        assert epochs == sorted(set(epochs))

    # -- listing, deleting, blobs ------------------------------------------------------------------------------------

    def test_listing_shows_each_run_once_in_order_with_its_holder(self, tmp_path: Path) -> None:  # K1
        store, other = self.open(tmp_path), self.open(tmp_path)
        for goal, episode in (("b", 0), ("a", 10), ("a", 2), ("a-b", 0), ("A", 0), ("\u00e9", 0)):
            lease = store.claim(RunKey(goal, episode))
            assert store.append([item(lease, 0, 2, "completed")]) == [None]
            if goal == "b":
                store.release(lease)
        store.claim(RunKey("empty"))
        for handle in (store, other):
            rows = handle.runs()
            assert [row.key for row in rows] == sorted(row.key for row in rows)
            assert len(rows) == 6
            assert [row.holder is None for row in rows] == [row.goal == "b" for row in rows]
            for row in rows:
                assert stored(row) == meta(row.key, 2, "completed")
                assert row.holder is None or row.holder.key == row.key
            assert [row.episode for row in handle.runs(Which(goal="a"))] == [2, 10]
            assert handle.runs(Which(goal="nothing")) == []
        self.abandon(store)
        assert all(row.holder is None for row in other.runs())
        other.close()

    def test_listing_follows_the_journal_whoever_asks(self, tmp_path: Path) -> None:
        store, other, key = self.open(tmp_path), self.open(tmp_path), RunKey("paper")
        lease = store.claim(key)
        for seq, status in enumerate(["running", "running", "paused", "running", "completed", "completed"]):
            assert store.append([item(lease, seq, 1, status)]) == [None]
            for handle in (store, other):
                assert [stored(row) for row in handle.runs()] == [meta(key, seq + 1, status)]
        self.abandon(store)
        assert [stored(row) for row in other.runs()] == [meta(key, 6, "completed")]
        other.close()

    def test_a_deleted_run_is_gone_and_can_be_made_again(self, tmp_path: Path) -> None:
        store, key, other = self.open(tmp_path), RunKey("paper"), RunKey("other")
        lease, kept = store.claim(key), store.claim(other)
        store.append([item(lease, 0, 3), item(kept, 0, 1)])
        store.delete(lease)
        assert store.read(key) == [] and [row.key for row in store.runs()] == [other]
        assert isinstance(store.append([item(lease, 3)])[0], LeaseLost)
        with pytest.raises(LeaseLost):
            store.delete(lease)
        again = store.claim(key)
        assert store.append([item(again, 0), item(kept, 1)]) == [None, None]
        assert store.read(key) == list(records(key, 0, 1))
        store.close()

    def test_blobs_are_stored_once_and_shared(self, tmp_path: Path) -> None:
        store, content = self.open(tmp_path), b"\x00\xff" * 100_000
        digest = hashlib.sha256(content).hexdigest()
        for goal in ("one", "two"):
            lease = store.claim(RunKey(goal))
            assert store.append([item(lease, 0, blob=content, empty=b"")]) == [None]
        assert store.blob(digest) == content
        assert store.blob(hashlib.sha256(b"").hexdigest()) == b""
        with pytest.raises(CorruptStore, match="missing"):
            store.blob("0" * 64)
        for path in ("../format.json", "", "0" * 63, "/etc/passwd"):
            with pytest.raises(PerdureError):
                store.blob(path)
        store.close()

    def test_a_blob_comes_back_plain_in_whichever_form_it_was_given(self, tmp_path: Path) -> None:  # rel:B5
        store, text = self.open(tmp_path), b"all work and no play makes a dull crew\n" * 900
        form, other = compressed(text), compressed(bytes(9000))
        assert len(form) < len(text) // 8
        values = {text: form, form: form, other: compressed(other), COMPRESSED: COMPRESSED, b"as ever": b"as ever"}
        blobs = {hashlib.sha256(plain).hexdigest(): form for plain, form in values.items()}
        lease = store.claim(RunKey("paper"))
        given = Append(lease, 0, records(lease.key, 0, 1), meta(lease.key, 1), blobs)
        assert store.append([given]) == [None]
        again = item(store.claim(RunKey("again")), 0, plain=text)
        assert store.append([again]) == [None], "another run gives it in the other form"
        for plain in values:
            assert store.blob(hashlib.sha256(plain).hexdigest()) == plain
        row = store.runs(Which(goal="paper"))[0]
        assert given.size <= row.size <= 2 * given.size + 500 < len(text), "what counts is what is stored"
        store.delete(lease)
        assert store.blob(hashlib.sha256(text).hexdigest()) == text
        store.close()

    def test_a_compressed_blob_that_is_damaged_or_another_is_told(self, tmp_path: Path) -> None:  # rel:B3 rel:B5
        store, text = self.open(tmp_path), b"all work and no play makes a dull crew\n" * 900
        form, digest = compressed(text), hashlib.sha256(text).hexdigest()
        middle = len(form) // 2
        changed = form[:middle] + bytes([form[middle] ^ 1]) + form[middle + 1 :]
        for number, wrong in enumerate((form[:-1], form + b"x", changed, compressed(text * 2), COMPRESSED, b"")):
            lease = store.claim(RunKey("paper", number))
            damaged = Append(lease, 0, records(lease.key, 0, 1), meta(lease.key, 1), {digest: wrong})
            assert store.append([damaged]) == [None]
            with pytest.raises(CorruptStore, match=digest):
                store.blob(digest)
            store.delete(lease)
        store.close()

    def test_blobs_go_with_the_last_run_that_was_given_them(self, tmp_path: Path) -> None:  # K5 rel:S14
        store, shared, own = self.open(tmp_path), b"of both" * 9, b"of one" * 9
        one, two, three = (store.claim(RunKey(goal)) for goal in ("one", "two", "three"))
        assert store.append([item(one, 0, shared=shared, own=own), item(two, 0, shared=shared)]) == [None, None]
        store.delete(one)
        assert store.blob(hashlib.sha256(shared).hexdigest()) == shared
        with pytest.raises(CorruptStore, match="missing"):
            store.blob(hashlib.sha256(own).hexdigest())
        assert store.append([item(three, 0, own=own)]) == [None], "what was removed can be stored again"
        again = store.claim(RunKey("one"))
        assert store.append([item(again, 0, shared=shared)]) == [None]
        store.delete(two)
        assert store.blob(hashlib.sha256(shared).hexdigest()) == shared
        store.delete(again)
        assert store.blob(hashlib.sha256(own).hexdigest()) == own
        with pytest.raises(CorruptStore, match="missing"):
            store.blob(hashlib.sha256(shared).hexdigest())
        store.close()

    def test_a_row_says_how_large_its_run_is(self, tmp_path: Path) -> None:
        store, other, lease = self.open(tmp_path), self.open(tmp_path), None
        for goal in ("one", "two"):
            lease = store.claim(RunKey(goal))
            assert store.append([item(lease, 0, 2, blob=b"large" * 99)]) == [None]
            assert store.append([item(lease, 2, 1, "completed", blob=b"l")]) == [None]
        for handle in (store, other):
            for row in handle.runs():
                size = sum(map(len, handle.read(row.key))) + 5 * 99 + 1
                assert size <= row.size <= 2 * size + 200 * row.seq, "a store may add to each record"
            handle.close()

    def test_a_long_listing_is_read_page_after_page(self, tmp_path: Path) -> None:
        store = self.open(tmp_path)
        keys = [RunKey(goal, episode) for goal in ("b", "a b", "a", "\u00e9", "A") for episode in (0, 2, 10)]
        for key in keys:
            store.append([item(store.claim(key), 0)])
        store.claim(RunKey("a", 3))
        for size in (1, 4, 15, 99):
            found: list[RunKey] = []
            while page := store.runs(Which(after=found[-1] if found else None, limit=size)):
                assert len(page) <= size
                found += [row.key for row in page]
            assert found == sorted(keys)
        assert [row.key for row in store.runs(Which(after=RunKey("a", 7)))] == sorted(keys)[5:]
        assert [row.episode for row in store.runs(Which(goal="b", after=RunKey("b", 0), limit=9))] == [2, 10]
        store.close()

    def test_what_a_run_holds_can_be_given_another_form(self, tmp_path: Path) -> None:  # rel:S7
        store, other, key = self.open(tmp_path), self.open(tmp_path), RunKey("paper")
        rewrite = store.capabilities.rewrite
        assert rewrite is not None
        lease, kept = store.claim(key), store.claim(RunKey("other"))
        store.append([item(lease, 0, 2, old=b"old", both=b"both"), item(kept, 0, old=b"old of another")])
        assert other.post(key, 1, posts(key, 1)[0])
        form = records(key, 0, 3, pad="another form")
        blobs = {hashlib.sha256(content).hexdigest(): content for content in (b"new", b"both")}
        new = Rewrite(lease, form[:2], posts(key, 1, "another"), meta(key, 2, "rewritten"), blobs)
        for wrong in (msgspec.structs.replace(new, records=form), msgspec.structs.replace(new, posts=())):
            assert rewrite(wrong) is False
        assert store.read(key) == list(records(key, 0, 2))
        assert rewrite(new) is True
        for handle in (store, other):
            assert handle.read(key) == list(form[:2]) and handle.posts({key: 0}) == {key: list(new.posts)}
            row = handle.runs(Which(goal="paper"))[0]
            assert (row.status, row.unread) == ("rewritten", 1) and row.size >= new.size
            assert [handle.blob(digest) for digest in blobs] == [b"new", b"both"]
            with pytest.raises(CorruptStore, match="missing"):
                handle.blob(hashlib.sha256(b"old").hexdigest())
        assert store.append([item(lease, 2), item(kept, 1)]) == [None, None]
        assert other.post(key, 2, posts(key, 2)[1])
        store.release(lease)
        with pytest.raises(LeaseLost):
            rewrite(new)
        store.delete(store.claim(key))
        for content in (b"new", b"both"):
            with pytest.raises(CorruptStore, match="missing"):
                store.blob(hashlib.sha256(content).hexdigest())
        assert store.blob(hashlib.sha256(b"old of another").hexdigest()) == b"old of another"
        store.close()
        other.close()

    def test_hostile_names_are_names_and_nothing_else(self, tmp_path: Path) -> None:  # rel:S4, rel:S5
        place = tmp_path / "deep" / "down"
        store = self.open(place)
        for goal in HOSTILE_GOALS:
            lease = store.claim(RunKey(goal))
            assert store.append([item(lease, 0, 1)]) == [None]
        store.close()
        store = self.open(place)
        assert [row.goal for row in store.runs()] == sorted(HOSTILE_GOALS)
        for goal in HOSTILE_GOALS:
            assert store.read(RunKey(goal)) == list(records(RunKey(goal), 0, 1))
            assert [row.goal for row in store.runs(Which(goal=goal))] == [goal]
        assert store.warnings() == []
        store.close()
        outside = [path for path in tmp_path.rglob("*") if place not in (path, *path.parents) and path.is_file()]
        assert outside == []

    # -- snapshots -------------------------------------------------------------------------------------------------

    def test_a_snapshot_comes_back_byte_for_byte_and_the_last_one_counts(self, tmp_path: Path) -> None:
        store, other, key = self.open(tmp_path), self.open(tmp_path), RunKey("paper")
        lease = store.claim(key)
        assert store.append([item(lease, 0, 3)]) == [None]
        assert snapshots(store).load(key) is None and snapshots(store).load(RunKey("nobody's")) is None
        every = bytes(range(256))
        for seq, content in ((1, every), (3, b"\n7\n" + every * 9000), (2, b""), (2**53 - 1, b"\0" * 9), (0, b"0")):
            snapshots(store).save(lease, seq, content)
            for handle in (store, other):
                assert snapshots(handle).load(key) == (seq, content)
                assert snapshots(handle).load(RunKey("paper", 1)) is None
        with pytest.raises(ValueError, match="limit"):
            snapshots(store).save(lease, 3, bytes(MAX_BLOB + 1))
        assert snapshots(other).load(key) == (0, b"0")
        assert store.read(key) == list(records(key, 0, 3)) and [stored(row) for row in other.runs()] == [meta(key, 3)]
        assert store.append([item(lease, 3)]) == [None]
        store.close()
        assert snapshots(other).load(key) in ((0, b"0"), None), "it may be lost"
        other.close()

    def test_a_snapshot_of_whoever_does_not_hold_the_run_is_refused(self, tmp_path: Path) -> None:  # rel:C1, rel:C2
        store, other, key, healthy = self.open(tmp_path), self.open(tmp_path), RunKey("paper"), RunKey("healthy")
        stale, good = store.claim(key), store.claim(healthy)
        assert store.append([item(stale, 0), item(good, 0)]) == [None, None]
        snapshots(store).save(stale, 1, b"old")
        store.release(stale)
        for held in (False, True):
            lease = other.claim(key) if held else stale
            for handle, wrong in ((store, stale), (store, lease), (other, stale)):
                with pytest.raises(LeaseLost):
                    snapshots(handle).save(wrong, 1, b"of a zombie")
                assert snapshots(handle).load(key) == (1, b"old")
        assert other.append([item(lease, 1)]) == [None], "whoever is refused disturbs nobody"
        snapshots(other).save(lease, 2, b"new")
        snapshots(store).save(good, 1, b"of another run")
        assert (snapshots(store).load(key), snapshots(other).load(healthy)) == ((2, b"new"), (1, b"of another run"))
        other.delete(lease)
        with pytest.raises(LeaseLost):
            snapshots(other).save(lease, 2, b"of the dead")
        store.close()
        other.close()

    def test_a_snapshot_goes_with_its_run_and_with_what_it_was_made_of(self, tmp_path: Path) -> None:  # rel:S7, rel:S14
        store, other, key, kept = self.open(tmp_path), self.open(tmp_path), RunKey("paper"), RunKey("kept")
        lease, beside = store.claim(key), store.claim(kept)
        assert store.append([item(lease, 0), item(beside, 0)]) == [None, None]
        snapshots(store).save(beside, 1, b"beside")
        rewrite = store.capabilities.rewrite
        assert rewrite is not None
        snapshots(store).save(lease, 1, b"old form")
        new = Rewrite(lease, records(key, 0, 1, pad="another form"), (), meta(key, 1), {})
        assert rewrite(new) is True
        assert snapshots(store).load(key) is snapshots(other).load(key) is None
        snapshots(store).save(lease, 1, b"new form")
        assert snapshots(other).load(key) == (1, b"new form")
        store.delete(lease)
        assert snapshots(store).load(key) is snapshots(other).load(key) is None
        again = other.claim(key)
        assert other.append([item(again, 0)]) == [None]
        assert snapshots(store).load(key) is None, "a run made anew has none of the old one"
        assert snapshots(other).load(kept) == (1, b"beside")
        snapshots(other).save(again, 1, b"its own")
        assert snapshots(store).load(key) == (1, b"its own")
        store.close()
        other.close()

    # -- the inbox -------------------------------------------------------------------------------------------------

    def test_anybody_may_post_and_every_number_is_used_once(self, tmp_path: Path) -> None:  # rel:H3
        store, other, key = self.open(tmp_path), self.open(tmp_path), RunKey("paper")
        lease = store.claim(key)
        store.append([item(lease, 0, 2)])
        first, second, third = posts(key, 3)
        assert not other.post(key, 2, second) and not other.post(key, 0, first) and other.posts({key: 0}) == {}
        assert other.post(key, 1, first), "somebody else holds the run, and that does not matter"
        assert not store.post(key, 1, second) and store.post(key, 2, second)
        store.release(lease)
        assert other.post(key, 3, third)
        for handle in (store, other):
            assert handle.posts({key: 0}) == {key: [first, second, third]}
            assert handle.posts({key: 2, RunKey("another"): 0}) == {key: [third]}
            assert handle.posts({key: 3}) == handle.posts({}) == {}
            assert handle.read(key) == list(records(key, 0, 2)), "the journal has nothing of it"
        store.close()
        other.close()

    def test_acknowledged_posts_outlive_the_handle_and_go_with_the_run(self, tmp_path: Path) -> None:  # rel:H1
        key = RunKey("paper")
        ends: tuple[Callable[[Store], None], ...] = (self.abandon, lambda store: store.close())
        store = self.open(tmp_path)
        store.append([item(store.claim(key), 0)])
        store.close()
        for number, end in enumerate(ends, 1):
            store = self.open(tmp_path)
            assert store.post(key, number, posts(key, 2)[number - 1])
            end(store)
        store = self.open(tmp_path)
        assert store.posts({key: 0}) == {key: list(posts(key, 2))}
        store.delete(store.claim(key))
        assert store.posts({key: 0}) == {}
        store.append([item(store.claim(key), 0)])
        assert store.posts({key: 0}) == {} and store.post(key, 1, posts(key, 1)[0])
        store.close()

    def test_nothing_is_posted_to_a_run_that_is_not_there(self, tmp_path: Path) -> None:
        store = self.open(tmp_path)
        for goal in ("paper", "empty", *HOSTILE_GOALS[:12]):
            if goal == "empty":
                store.claim(RunKey(goal))
            with pytest.raises(RunNotFound):
                store.post(RunKey(goal), 1, posts(RunKey(goal), 1)[0])
        assert [row.goal for row in store.runs()] == []
        store.close()

    def test_runs_that_are_due_or_have_unread_posts_are_found(self, tmp_path: Path) -> None:
        store = self.open(tmp_path)
        for goal, wake, read in (("now", 5.0, 0), ("later", 50.0, 0), ("never", 0.0, 0), ("told", 0.0, 1)):
            lease, key = store.claim(RunKey(goal)), RunKey(goal)
            store.append([item(lease, 0)])
            if goal == "told":
                assert store.post(key, 1, posts(key, 2)[0]) and store.post(key, 2, posts(key, 2)[1])
            row = msgspec.structs.replace(meta(key, 2, "waiting"), wake=wake, posts=read)
            suspended = msgspec.structs.replace(item(lease, 1, 1, "waiting"), meta=row)
            assert store.append([suspended]) == [None]
            store.release(lease)
        for handle in (store, self.open(tmp_path)):
            assert [(row.goal, row.wake, row.unread) for row in handle.runs(Which(due=5.0))] == [
                ("told", 0.0, 1),
                ("now", 5.0, 0),
            ]
            assert [row.goal for row in handle.runs(Which(due=4.9))] == ["told"]
            assert [row.goal for row in handle.runs(Which(due=99))] == ["told", "now", "later"]
            assert [row.goal for row in handle.runs(Which(goal="later", due=99))] == ["later"]
            assert [(row.goal, row.unread) for row in handle.runs()][1:] == [("never", 0), ("now", 0), ("told", 1)]
            handle.close()

    # -- what workers ask for ----------------------------------------------------------------------------------------

    def test_a_worker_is_offered_the_most_urgent_runs_that_nobody_holds(self, tmp_path: Path) -> None:
        store, other = self.open(tmp_path), self.open(tmp_path)
        # goal, queue, flow, priority, when it may be taken up, when it began, held
        for goal, queue, flow, priority, wake, begun, kept in (
            ("old", "mail", "send", 0, 1.0, 0.0, False),
            ("new", "mail", "send", 0, 2.0, 0.0, False),
            ("urgent", "mail", "send", 9, 3.0, 0.0, False),
            ("low", "mail", "send", -1, 1.0, 0.0, False),
            ("later", "mail", "send", 99, 70.0, 0.0, False),
            ("held", "mail", "send", 99, 1.0, 50.0, True),
            ("other queue", "", "send", 5, 1.0, 40.0, False),
            ("other flow", "mail", "call", 5, 1.0, 30.0, False),
            ("over", "mail", "send", 5, 0.0, 60.0, False),
        ):
            lease, key = store.claim(RunKey(goal)), RunKey(goal)
            row = msgspec.structs.replace(
                meta(key, 1), flow=flow, queue=queue, priority=priority, wake=wake, begun=begun
            )
            assert store.append([msgspec.structs.replace(item(lease, 0), meta=row)]) == [None]
            if not kept:
                store.release(lease)

        def goals(handle: Store, which: Which) -> list[str]:
            return [row.goal for row in handle.runs(which)]

        mine = Which(due=9.0, queues=("mail", "none"), flows=("send", "fetch"))
        for handle in (store, other):
            assert goals(handle, mine) == ["urgent", "old", "new", "low"]
            assert goals(handle, msgspec.structs.replace(mine, limit=2)) == ["urgent", "old"]
            assert goals(handle, Which(due=9.0)) == ["urgent", "other flow", "other queue", "old", "new", "low"]
            assert goals(handle, Which(due=99.0, limit=1)) == ["later"]
            assert goals(handle, Which(later=2.5)) == ["urgent", "later"]
            assert goals(handle, Which(later=1.0, flows=("send",), limit=1)) == ["new"]
            assert goals(handle, Which(active=35.0)) == ["held", "other queue", "over"]
            assert goals(handle, Which(active=55.0, queues=("mail",))) == ["held", "over"]
            assert goals(handle, Which(active=inf)) == ["held"]
            assert goals(handle, Which(limit=2)) == ["held", "later"]
        self.abandon(store)
        assert goals(other, mine)[0] == "held" and goals(other, Which(active=99.0)) == []
        other.close()

    def test_a_row_is_found_by_what_it_says_now(self, tmp_path: Path) -> None:
        store, key = self.open(tmp_path), RunKey("paper")
        for seq, (queue, wake, begun) in enumerate((("", 5.0, 0.0), ("mail", 7.0, 0.0), ("mail", 0.0, 9.0))):
            lease = store.claim(key)
            row = msgspec.structs.replace(meta(key, seq + 1), queue=queue, wake=wake, begun=begun)
            assert store.append([msgspec.structs.replace(item(lease, seq), meta=row)]) == [None]
            store.release(lease)
            assert [row.wake for row in store.runs(Which(due=9.0))] == ([wake] if wake else [])
            assert len(store.runs(Which(queues=("mail",)))) == bool(queue)
            assert len(store.runs(Which(active=8.0))) == bool(begun)
        store.close()

    def test_a_run_is_found_by_what_its_row_says_also_if_its_blobs_came_first(self, tmp_path: Path) -> None:
        store = self.open(tmp_path)
        lease = store.claim(RunKey("a"))
        ahead = {hashlib.sha256(b"x").hexdigest(): b"x"}
        assert store.append([Append(lease, 0, (), meta(lease.key, 0), ahead)]) == [None]
        assert store.runs() == [], "nobody sees a run without records"
        row = msgspec.structs.replace(meta(lease.key, 1, "queued"), wake=1.0, flow="send", queue="mail", priority=3)
        assert store.append([Append(lease, 0, records(lease.key, 0, 1), row)]) == [None]
        store.release(lease)
        wanted = Which(due=9.0, flows=("send",), queues=("mail",))
        assert [found.priority for found in store.runs(wanted)] == [3]
        store.close()

    def test_a_heartbeat_tells_the_time(self, tmp_path: Path) -> None:
        store, other = self.open(tmp_path), self.open(tmp_path)
        told = [handle.heartbeat() for handle in (store, other, store, other)]
        assert told == sorted(told) and told[0] < told[-1]
        assert store.claim(RunKey("paper")).since >= told[-1]
        store.close()
        other.close()

    def test_any_history_agrees_with_the_model(self, tmp_path: Path) -> None:
        check_random_histories(self.open, self.abandon, tmp_path, examples=self.histories)


class SharedStoreConformance(StoreConformance):
    """What several processes must see in a store that they share. Processes are real, and killed."""

    def bury(self, place: Path) -> None:
        """Processes that used the store were killed: where leases expire, return when theirs have."""

    def test_a_killed_process_loses_nothing_acknowledged_and_frees_its_run(self, tmp_path: Path) -> None:  # rel:D1, R1
        key = RunKey("paper")

        def work(say: Callable[[str], None], hear: Callable[[], str]) -> None:
            store = self.open(tmp_path)
            lease = store.claim(key)
            seq = len(store.read(key))
            pausing = hear() == "pause"
            while True:
                assert store.append([item(lease, seq)]) == [None]
                seq += 1
                say(f"{seq}\n")
                if pausing:
                    hear()

        before = 0
        for pace in ("pause", "run", "run"):  # killed right after an acknowledgement; killed anywhere
            child = Child(work)
            child.say(f"{pace}\n" + "go on\n" * 14)
            acknowledged = [int(child.hear()) for _ in range(15)][-1]
            with pytest.raises(LeaseHeld):
                self._claim_once(tmp_path, key)
            acknowledged = int([str(acknowledged), *child.kill()][-1])
            self.bury(tmp_path)
            store = self.open(tmp_path)
            store.release(store.claim(key))
            found = store.read(key)
            assert len(found) >= acknowledged >= before + 15
            assert found == list(records(key, 0, len(found)))
            before = len(found)
            store.close()

    def test_of_processes_that_race_for_a_run_one_gets_it(self, tmp_path: Path) -> None:  # rel:C3
        def work(say: Callable[[str], None], hear: Callable[[], str]) -> None:
            store = self.open(tmp_path / hear())  # the store itself is made by all of them at once
            while goal := hear():
                try:
                    say(f"{store.claim(RunKey(goal)).epoch}\n")
                except LeaseHeld:
                    say("held\n")

        for place in ("one", "two", "three"):
            children = [Child(work) for _ in range(4)]
            _tell(children, place)
            for goal, winners in (("a", 1), ("b", 1), ("c", 1), ("b", 0)):
                _tell(children, goal)
                assert [child.hear() for child in children].count("held") == 4 - winners, goal
            for child in children:
                child.kill()

    def test_of_processes_that_post_at_once_each_number_goes_to_one_and_none_is_lost(self, tmp_path: Path) -> None:
        key = RunKey("paper")  # rel:H3

        def work(say: Callable[[str], None], hear: Callable[[], str]) -> None:
            store = self.open(tmp_path)
            number = 1
            while name := hear():
                while not store.post(key, number, posts(key, number, name)[-1]):
                    number += 1
                say(f"{number}\n")

        store = self.open(tmp_path)
        store.append([item(store.claim(key), 0)])
        children = [Child(work) for _ in range(3)]
        said: list[list[int]] = [[] for _ in children]
        for _ in range(15):
            for place, child in enumerate(children):
                child.say(f"poster-{place}\n")
            for place, child in enumerate(children):
                said[place].append(int(child.hear()))
        for child in children:
            child.say("once more\n")
        killed = [int(line) for child in children for line in child.kill()]
        found = store.posts({key: 0})[key]
        store.close()
        assert sorted(n for numbers in said for n in numbers) == list(range(1, 46)), (
            "every number once, and none left out"
        )
        for place, numbers in enumerate(said):
            assert [found[n - 1] for n in numbers] == [posts(key, n, f"poster-{place}")[-1] for n in numbers]
        assert set(killed) <= set(range(46, len(found) + 1)) and len(found) <= 48

    def test_a_blob_that_processes_give_and_take_at_once_is_there_for_whoever_has_it(self, tmp_path: Path) -> None:
        # K5: collected only when nothing refers to it, also while runs go on
        contents = [b"shared %d" % n * 50 for n in range(2)]

        def work(say: Callable[[str], None], hear: Callable[[], str]) -> None:
            store, name, last = self.open(tmp_path), hear(), None
            for number in range(20):
                lease = store.claim(RunKey(f"{name}-{number}"))
                content = contents[number % 2]
                assert store.append([item(lease, 0, shared=content)]) == [None]
                if last is not None:
                    store.delete(last)
                assert store.blob(hashlib.sha256(content).hexdigest()) == content
                last = lease
            say("done\n")
            hear()

        store = self.open(tmp_path)
        children = [Child(work) for _ in range(3)]
        for place, child in enumerate(children):
            child.say(f"child-{place}\n")
        assert [child.hear() for child in children] == ["done"] * 3
        assert len(store.runs()) == 3
        assert store.blob(hashlib.sha256(contents[1]).hexdigest()) == contents[1]
        with pytest.raises(CorruptStore, match="missing"):
            store.blob(hashlib.sha256(contents[0]).hexdigest())
        for child in children:
            child.kill()
        store.close()

    def test_a_forked_child_must_not_use_the_handle_nor_keeps_it_alive(self, tmp_path: Path) -> None:  # rel:C8
        store, key = self.open(tmp_path), RunKey("paper")
        lease = store.claim(key)

        def work(say: Callable[[str], None], hear: Callable[[], str]) -> None:
            for verb in (store.runs, lambda: store.append([item(lease, 0)]), lambda: store.release(lease)):
                try:
                    verb()
                except ConfigError as error:
                    say(f"{'forked child' in str(error)}\n")
                else:
                    say("it worked\n")
            store.close()
            say("closed\n")
            hear()

        child = Child(work)
        try:
            assert [child.hear() for _ in range(4)] == ["True", "True", "True", "closed"]
            with pytest.raises(LeaseHeld):
                self._claim_once(tmp_path, key)
            assert store.append([item(lease, 0)]) == [None]
            self.abandon(store)
            self._claim_once(tmp_path, key)
        finally:
            child.kill()

    def _claim_once(self, place: Path, key: RunKey) -> None:
        store = self.open(place)
        try:
            store.claim(key)
        finally:
            store.close()


class ExpiringStoreConformance(SharedStoreConformance):
    """What a store must keep whose leases end when nobody says in time that the holder lives."""

    def outlive(self, store: Store) -> None:
        """Let the time of the handle pass without a heartbeat, as far as the store knows."""
        raise NotImplementedError

    def test_whoever_is_late_has_lost_every_lease_for_good(self, tmp_path: Path) -> None:  # X3, rel:C2
        store, other = self.open(tmp_path), self.open(tmp_path)
        taken, idle = store.claim(RunKey("taken")), store.claim(RunKey("idle"))
        assert store.append([item(taken, 0), item(idle, 0)]) == [None, None]
        self.outlive(store)
        assert [row.holder for row in other.runs()] == [None, None]
        again = other.claim(RunKey("taken"))
        assert again.epoch > taken.epoch
        with pytest.raises(LeaseLost):
            store.heartbeat()
        for lease in (taken, idle):
            assert isinstance(store.append([item(lease, 1, 3, secret=b"of a zombie")])[0], LeaseLost)
            with pytest.raises(LeaseLost):
                store.delete(lease)
            with pytest.raises(LeaseLost):
                snapshots(store).save(lease, 1, b"of a zombie")
            store.release(lease)
            assert snapshots(other).load(lease.key) is None
        with pytest.raises(CorruptStore):
            other.blob(hashlib.sha256(b"of a zombie").hexdigest())
        assert other.append([item(again, 1)]) == [None]
        fresh = store.claim(RunKey("idle"))
        assert fresh.epoch > idle.epoch and fresh.owner != idle.owner
        store.heartbeat()
        assert store.append([item(fresh, 1)]) == [None]
        assert isinstance(store.append([item(idle, 2)])[0], LeaseLost)
        store.close()
        other.close()

    def test_a_zombie_that_never_noticed_is_fenced(self, tmp_path: Path) -> None:  # X3, rel:C1
        store, other, key = self.open(tmp_path), self.open(tmp_path), RunKey("paper")
        stale = store.claim(key)
        assert store.append([item(stale, 0)]) == [None]
        self.outlive(store)
        lease = other.claim(key)
        assert isinstance(store.append([item(stale, 1)])[0], LeaseLost)
        with pytest.raises(LeaseLost):
            snapshots(store).save(stale, 1, b"of a zombie")
        assert snapshots(other).load(key) is None
        assert other.append([item(lease, 1, 2)]) == [None]
        assert isinstance(store.append([item(stale, 3)])[0], LeaseLost)
        assert other.read(key) == list(records(key, 0, 3))
        store.close()
        other.close()

    def test_a_heartbeat_keeps_every_lease(self, tmp_path: Path) -> None:
        store, other = self.open(tmp_path), self.open(tmp_path)
        leases = [store.claim(RunKey(f"run-{n}")) for n in range(3)]
        store.heartbeat()
        for lease in leases:
            with pytest.raises(LeaseHeld):
                other.claim(lease.key)
        assert store.append([item(lease, 0) for lease in leases]) == [None] * 3
        assert store.capabilities.trust < store.capabilities.lease
        store.close()
        other.close()

    def test_others_are_rung_when_there_is_something_to_look_at(self, tmp_path: Path) -> None:
        store, other, key = self.open(tmp_path), self.open(tmp_path), RunKey("paper")
        assert other.capabilities.listen is not None
        heard: SimpleQueue[bool] = SimpleQueue()
        stop = other.capabilities.listen(heard.put)
        assert heard.get(timeout=30), "it says that it listens"
        lease = store.claim(key)
        news: Sequence[tuple[Callable[[], object], bool]] = (
            (lambda: store.append([item(lease, 0)]), False),
            (lambda: store.release(lease), False),
            (lambda: store.post(key, 1, posts(key, 1)[0]), True),
            (lambda: store.append([item(store.claim(key), 1, 1)]), False),
            (lambda: store.close(), False),
        )
        for tell, posted in news:
            tell()
            assert heard.get(timeout=30) is posted
        assert heard.empty()
        stop()
        other.close()
