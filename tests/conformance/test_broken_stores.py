"""The suite can fail: stores with one fault each, of kinds that real stores had, and all of them are caught.

Each fault is a subclass of the memory store. The suite is run over it as pytest would run it, and must refuse it, by an
assertion of its own or by what the broken store raises.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from msgspec.structs import replace

from perdure.errors import LeaseHeld, PerdureError
from perdure.model import Lease, RunKey, RunMeta
from perdure.stores.base import EVERY, Append, Rewrite, Store, Which
from perdure.stores.file import FileStore
from perdure.stores.handle import sound_blob
from perdure.stores.memory import MemoryBackend, MemoryStore
from perdure.testing.conformance import SharedStoreConformance, StoreConformance
from perdure.testing.random_store import check_random_histories
from perdure.testing.samples import summarise


class ForgetsTheEpoch(MemoryStore):
    """Whoever once had a lease may append for ever."""

    def append(self, batch: Sequence[Append]) -> list[PerdureError | None]:
        for item in batch:
            run = self._backend.runs.get(item.lease.key)
            if run is not None and item.lease.owner == self._owner:
                run.lease = item.lease
        return super().append(batch)


class IgnoresTheSequence(MemoryStore):
    """Two appends that both continue the run after record n are both taken."""

    def append(self, batch: Sequence[Append]) -> list[PerdureError | None]:
        results: list[PerdureError | None] = []
        for item in batch:
            run = self._backend.runs.get(item.lease.key)
            seq = item.seq if run is None else len(run.records)
            results += super().append([msgspec.structs.replace(item, seq=seq)])
        return results


class GrantsTwice(MemoryStore):
    """A claim looks at nobody."""

    def claim(self, key: RunKey) -> Lease:
        run = self._backend.runs.get(key)
        if run is not None:
            run.lease = None
        return super().claim(key)


class HoldsForTheDead(MemoryStore):
    """A run stays held when its holder dies."""

    def abandon(self) -> None:
        self._closed = True


class CountsEpochsFromOneAgain(MemoryStore):
    """A run that was deleted begins with the first epoch again."""

    def delete(self, lease: Lease) -> None:
        super().delete(lease)
        self._backend.epoch = 0


class LosesTheLastRecord(MemoryStore):
    """Acknowledged before it is stored: the death of the process takes the last record along."""

    def abandon(self) -> None:
        for run in self._backend.runs.values():
            if run.lease is not None and run.lease.owner == self._owner:
                del run.records[-1:]
        super().abandon()


class Reorders(MemoryStore):
    """The records of one append come back in any order."""

    def append(self, batch: Sequence[Append]) -> list[PerdureError | None]:
        return super().append([msgspec.structs.replace(item, records=item.records[::-1]) for item in batch])


class FailsTheWholeBatch(MemoryStore):
    """One stale lease in a batch refuses the appends of all others."""

    def append(self, batch: Sequence[Append]) -> list[PerdureError | None]:
        for item in batch:
            run = self._current(item.lease)
            if run is None:
                return [*super().append([item])] * len(batch)
        return super().append(batch)


class KeepsBlobsOfTheFenced(MemoryStore):
    """Writes the blobs before it looks at the lease."""

    def append(self, batch: Sequence[Append]) -> list[PerdureError | None]:
        for item in batch:
            self._backend.blobs.update(item.blobs)
        return super().append(batch)


class NeverCollects(MemoryStore):
    """Blobs stay for ever."""

    def _collect(self, digests: set[str]) -> None:
        pass


class CollectsWhatOthersNeed(MemoryStore):
    """A run takes all its blobs along."""

    def _collect(self, digests: set[str]) -> None:
        for digest in digests:
            self._backend.blobs.pop(digest, None)


class ForgetsThePage(MemoryStore):
    """Every page is the first one."""

    def runs(self, which: Which = EVERY) -> list[RunMeta]:
        return super().runs(replace(which, after=None))


class CountsRecordsOnly(MemoryStore):
    """Blobs weigh nothing."""

    def _row(self, run: Any, meta: RunMeta) -> RunMeta:
        return replace(super()._row(run, meta), size=sum(map(len, run.records)))


class RewritesWhateverIsThere(MemoryStore):
    """A rewrite that came too late loses the records that were appended meanwhile."""

    def _rewrite(self, new: Rewrite) -> bool:
        run = self._backend.runs[new.lease.key]
        del run.records[len(new.records) :]
        del run.posts[len(new.posts) :]
        return super()._rewrite(new)


class KeepsTheSnapshotOfTheDeleted(MemoryStore):
    """A run made again finds the snapshot of the old one."""

    def delete(self, lease: Lease) -> None:
        run = self._backend.runs.get(lease.key)
        super().delete(lease)
        if run is not None and run.snapshot is not None:
            self._backend.runs[lease.key] = type(run)(snapshot=run.snapshot)


class SavesSnapshotsForAnybody(MemoryStore):
    """A snapshot is thrown away anyway, so nobody is asked for a lease."""

    def _save_snapshot(self, lease: Lease, seq: int, content: bytes) -> None:
        self._backend.runs[lease.key].snapshot = (seq, content)


class KeepsTheSnapshotOfTheOldForm(MemoryStore):
    """What was written anew under another key can still be read under the old one."""

    def _rewrite(self, new: Rewrite) -> bool:
        run = self._backend.runs[new.lease.key]
        old = run.snapshot
        done = super()._rewrite(new)
        run.snapshot = old
        return done


class MixesUpNames(MemoryStore):
    """Two goals that differ in case are one run, as on some file systems."""

    def claim(self, key: RunKey) -> Lease:
        twin = next((other for other in self._backend.runs if str(other).lower() == str(key).lower()), key)
        return super().claim(twin)


class ReadsOneTooFar(MemoryStore):
    """``after`` is taken for the first sequence that is wanted."""

    def read(self, key: RunKey, after: int = 0) -> list[bytes]:
        return super().read(key, max(after - 1, 0))


class ShowsAnOldRow(MemoryStore):
    """A listing remembers the first row of each run."""

    def runs(self, which: Which = EVERY) -> list[RunMeta]:
        self.seen: dict[RunKey, RunMeta] = getattr(self, "seen", {})
        return [self.seen.setdefault(row.key, row) for row in super().runs(which)]


class PostsUnderAnyNumber(MemoryStore):
    """Two who post at once are both taken."""

    def post(self, key: RunKey, number: int, record: bytes) -> bool:
        run = self._backend.runs.get(key)
        return super().post(key, number if run is None else len(run.posts) + 1, record)


class PostsToNobody(MemoryStore):
    """A post to a run that is not there is taken, and lost."""

    def post(self, key: RunKey, number: int, record: bytes) -> bool:
        run = self._backend.runs.get(key)
        return True if run is None or not run.records else super().post(key, number, record)


class LosesTheLastPost(MemoryStore):
    """Told that it is kept before it is."""

    def abandon(self) -> None:
        for run in self._backend.runs.values():
            del run.posts[-1:]
        super().abandon()


class KeepsTheInboxOfTheDeleted(MemoryStore):
    """A run made again finds what was posted to the old one."""

    def delete(self, lease: Lease) -> None:
        run = self._backend.runs.get(lease.key)
        super().delete(lease)
        if run is not None:
            self._backend.runs[lease.key] = type(run)(posts=run.posts)


class OverlooksPosts(MemoryStore):
    """What is due goes by dates alone."""

    def runs(self, which: Which = EVERY) -> list[RunMeta]:
        return [row for row in super().runs(which) if which.due is None or row.wake]


class IsDueAlways(MemoryStore):
    """A run that waits for no date counts as due since ever."""

    def runs(self, which: Which = EVERY) -> list[RunMeta]:
        every = super().runs(replace(which, due=None))
        return [row for row in every if which.due is None or row.wake <= which.due]


class OffersWhatIsHeld(MemoryStore):
    """A worker that looks for runs is shown those that others execute."""

    def runs(self, which: Which = EVERY) -> list[RunMeta]:
        every = super().runs(replace(which, due=None))
        if which.due is None:
            return every
        free = [replace(row, holder=None) for row in every]
        return [row for row, seen in zip(every, free, strict=True) if which.includes(seen)]


class CountsOnlyWhatIsHeld(MemoryStore):
    """What has begun and ended since does not count as active."""

    def runs(self, which: Which = EVERY) -> list[RunMeta]:
        return [row for row in super().runs(which) if which.active is None or row.holder is not None]


class TakesTheOldestFirst(MemoryStore):
    """Priorities are for others."""

    def runs(self, which: Which = EVERY) -> list[RunMeta]:
        if which.due is None:
            return super().runs(which)
        found = sorted(super().runs(replace(which, limit=0)), key=lambda row: row.wake)
        return found[: which.limit or None]


class HasNoQueues(MemoryStore):
    """One queue is as good as another."""

    def runs(self, which: Which = EVERY) -> list[RunMeta]:
        return super().runs(replace(which, queues=()))


class HasNoFlows(MemoryStore):
    """Whoever lacks a flow is shown its runs."""

    def runs(self, which: Which = EVERY) -> list[RunMeta]:
        return super().runs(replace(which, flows=()))


class ShowsEverything(MemoryStore):
    """A limit is ignored."""

    def runs(self, which: Which = EVERY) -> list[RunMeta]:
        return super().runs(replace(which, limit=0))


class ClockStandsStill(MemoryStore):
    """Its time is that of the first who asked."""

    def heartbeat(self) -> float:
        return 1_700_000_000.0


class ReleasesForAnybody(MemoryStore):
    """A release by a stale lease frees the run of its new holder."""

    def release(self, lease: Lease) -> None:
        self._check()
        run = self._backend.runs.get(lease.key)
        if run is not None:
            run.lease = None


class DeletesWithoutALease(MemoryStore):
    """Deleting asks nobody."""

    def delete(self, lease: Lease) -> None:
        self._backend.runs.pop(lease.key, None)


class MakesUpMissingBlobs(MemoryStore):
    """A blob that is not there is an empty one."""

    def blob(self, digest: str) -> bytes:
        content = self._backend.blobs.get(digest)
        return b"" if content is None else sound_blob(digest, content, self.url)


class KnowsOneFormOfBlobs(MemoryStore):
    """Hands out what it was given."""

    def blob(self, digest: str) -> bytes:
        content = self._backend.blobs.get(digest)
        return sound_blob(digest, content, self.url) if content is None else content


class WorksWhenClosed(MemoryStore):
    """A closed handle goes on."""

    def _check(self) -> None:
        pass


BROKEN: Sequence[type[MemoryStore]] = (
    ForgetsTheEpoch,
    IgnoresTheSequence,
    GrantsTwice,
    HoldsForTheDead,
    CountsEpochsFromOneAgain,
    LosesTheLastRecord,
    Reorders,
    FailsTheWholeBatch,
    KeepsBlobsOfTheFenced,
    KeepsTheSnapshotOfTheDeleted,
    SavesSnapshotsForAnybody,
    KeepsTheSnapshotOfTheOldForm,
    MixesUpNames,
    ReadsOneTooFar,
    ShowsAnOldRow,
    PostsUnderAnyNumber,
    PostsToNobody,
    LosesTheLastPost,
    KeepsTheInboxOfTheDeleted,
    OverlooksPosts,
    IsDueAlways,
    OffersWhatIsHeld,
    CountsOnlyWhatIsHeld,
    TakesTheOldestFirst,
    HasNoQueues,
    HasNoFlows,
    ShowsEverything,
    ClockStandsStill,
    ReleasesForAnybody,
    DeletesWithoutALease,
    MakesUpMissingBlobs,
    KnowsOneFormOfBlobs,
    WorksWhenClosed,
)
RANDOM = "test_any_history_agrees_with_the_model"
ONLY_BY_EXAMPLE = (
    *(MakesUpMissingBlobs, WorksWhenClosed, MixesUpNames, KeepsBlobsOfTheFenced),
    *(KeepsTheSnapshotOfTheDeleted, SavesSnapshotsForAnybody, KeepsTheSnapshotOfTheOldForm),
    *(OverlooksPosts, IsDueAlways, OffersWhatIsHeld, CountsOnlyWhatIsHeld),
    *(TakesTheOldestFirst, HasNoQueues, HasNoFlows, ShowsEverything, ClockStandsStill),
)
"""faults that random histories do not look for"""


class AcknowledgesEarly(FileStore):
    """Says that a batch is durable, and writes it with the next one."""

    def append(self, batch: Sequence[Append]) -> list[PerdureError | None]:
        waiting: list[Append] = getattr(self, "waiting", [])
        self.waiting = list(batch)
        return super().append(waiting)[:0] + [None] * len(batch)


class FollowsTheFork(FileStore):
    """Goes on in a forked child, with descriptors and leases that are the parent's."""

    def _check(self) -> None:
        self._pid = os.getpid()
        super()._check()


class _Suite(StoreConformance):
    kind: ClassVar[type[MemoryStore]] = MemoryStore

    def __init__(self) -> None:
        self.backends: dict[Path, MemoryBackend] = {}

    def open(self, place: Path) -> Store:
        return self.kind(self.backends.setdefault(place, MemoryBackend()))

    def abandon(self, store: Store) -> None:
        assert isinstance(store, MemoryStore)
        store.abandon()


_Suite.__test__ = False  # type: ignore[attr-defined]  # it is run below, over stores that fail it


def failures(kind: type[MemoryStore], root: Path, *names: str) -> list[str]:
    """The tests of the suite that refuse stores of that kind; of ``names`` only, when given."""
    suite = type("Suite", (_Suite,), {"kind": kind})
    found = []
    for name, _ in inspect.getmembers(suite, inspect.isfunction):
        if name.startswith("test_") and name in (names or (name,)):
            place = root / name
            place.mkdir()
            try:
                getattr(suite(), name)(place)
            except (Exception, pytest.fail.Exception):
                found.append(name)
    return found


def test_the_suite_passes_a_store_without_fault(tmp_path: Path) -> None:
    assert failures(MemoryStore, tmp_path) == []


@pytest.mark.parametrize("kind", BROKEN)
def test_every_fault_is_caught_by_an_example(kind: type[MemoryStore], tmp_path: Path) -> None:
    by_example = [name for name in dir(StoreConformance) if name.startswith("test_") and name != RANDOM]
    assert failures(kind, tmp_path, *by_example)


@pytest.mark.parametrize("kind", [kind for kind in BROKEN if kind not in ONLY_BY_EXAMPLE])
def test_and_by_random_histories(kind: type[MemoryStore], tmp_path: Path) -> None:
    suite = type("Suite", (_Suite,), {"kind": kind})()
    with pytest.raises((AssertionError, PerdureError)):
        check_random_histories(suite.open, suite.abandon, tmp_path, examples=150, shrink=False)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (AcknowledgesEarly, "test_a_killed_process_loses_nothing_acknowledged_and_frees_its_run"),
        (FollowsTheFork, "test_a_forked_child_must_not_use_the_handle_nor_keeps_it_alive"),
    ],
)
def test_faults_between_processes_are_caught(kind: type[FileStore], name: str, tmp_path: Path) -> None:
    class Suite(SharedStoreConformance):
        def open(self, place: Path) -> Store:
            return kind(place / "store", summarise=summarise)

        def abandon(self, store: Store) -> None:
            assert isinstance(store, FileStore)
            store.abandon()

    with pytest.raises((AssertionError, pytest.fail.Exception)):
        getattr(Suite(), name)(tmp_path)


def test_a_double_claim_says_what_is_wrong(tmp_path: Path) -> None:
    suite = type("Suite", (_Suite,), {"kind": GrantsTwice})()
    with pytest.raises(pytest.fail.Exception, match=LeaseHeld.__name__):
        suite.test_a_run_has_one_holder(tmp_path)
