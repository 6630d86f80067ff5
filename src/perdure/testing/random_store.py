"""Random histories of a store against a model of ten lines: claims, appends, releases, deaths, reads, deletions.

The model is a dictionary of runs: records, row, largest epoch, and which handle holds the run under which lease. Every
result of the store, errors included, must be what the model says, and after every step the store must show what the
model has. Most steps do something that should work, because a history of refusals finds nothing; the rest use leases
that are old, somebody else's, or of a handle that was closed.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path

import msgspec
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from perdure.errors import Bug, CorruptStore, LeaseHeld, LeaseLost, RunNotFound
from perdure.model import Lease, RunKey, RunMeta
from perdure.stores.base import Append, Store, Which
from perdure.stores.compression import compressed
from perdure.testing.samples import meta, posts, records

_KEYS = [RunKey("paper"), RunKey("paper", 1), RunKey("Paper"), RunKey("../x y")]
_HANDLES = 3
_handles = st.integers(0, _HANDLES - 1)
_statuses = st.sampled_from(["running", "paused", "completed"])


class _Model:
    """What the store should know of one run."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.posts: list[bytes] = []
        self.blobs: dict[str, bytes] = {}
        self.size = 0
        self.row: RunMeta | None = None
        self.epoch = 0
        self.holder: int | None = None
        self.lease: Lease | None = None


class _History(RuleBasedStateMachine):
    open: Callable[[Path], Store]
    abandon: Callable[[Store], None]
    places: itertools.count[int]
    root: Path

    @initialize()
    def begin(self) -> None:
        self.place = self.root / str(next(self.places))
        self.handles = [type(self).open(self.place) for _ in range(_HANDLES)]
        self.runs = {key: _Model() for key in _KEYS}
        self.leases: list[tuple[int, Lease]] = []
        self.steps = 0
        self.blobs: set[str] = set()
        """names of all that any run was ever to be given"""

    @rule(data=st.data(), handle=_handles)
    def claim(self, data: st.DataObject, handle: int) -> None:
        """Mostly a run that is free."""
        free = [key for key, run in self.runs.items() if run.holder is None]
        key = data.draw(st.sampled_from([*free * 4, *_KEYS]), "key")
        run = self.runs[key]
        try:
            lease = self.handles[handle].claim(key)
        except LeaseHeld:
            assert run.holder is not None, f"{key} is free"
            return
        assert run.holder is None, f"{key} is held by handle {run.holder}"
        assert lease.key == key and lease.epoch > run.epoch
        run.holder, run.lease, run.epoch = handle, lease, lease.epoch
        self.leases.append((handle, lease))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), status=_statuses)
    def append(self, data: st.DataObject, status: str) -> None:
        """A batch through one handle: of its runs, and now and then of others; some at a wrong sequence."""
        handle, first = data.draw(self._lease(), "lease")
        others = data.draw(st.lists(self._lease(), max_size=3), "others")
        batch: list[Append] = []
        expected: list[type[Bug | LeaseLost | None]] = []
        for lease in (first, *(lease for _, lease in others)):
            run = self.runs[lease.key]
            seq = len(run.lines) + data.draw(st.sampled_from([0, 0, 0, 0, 1, -1]), "off by")
            lines = records(lease.key, seq, data.draw(st.integers(1, 3), "count"), status)
            content = data.draw(st.binary(max_size=3), "blob") * 99
            blobs = {hashlib.sha256(content).hexdigest(): content}
            given = {digest: compressed(content) if self.steps % 2 else content for digest in blobs}
            batch.append(Append(lease, seq, lines, meta(lease.key, seq + len(lines), status), given))
            if run.lease != lease or run.holder != handle:
                expected.append(LeaseLost)
            elif seq != len(run.lines):
                expected.append(Bug)
            else:
                expected.append(type(None))
                run.lines += lines
                run.row = batch[-1].meta
                run.blobs |= blobs
                run.size += batch[-1].size
            self.blobs |= blobs.keys()
        assert [type(result) for result in self.handles[handle].append(batch)] == expected

    @rule(data=st.data(), handle=_handles, off=st.sampled_from([0, 0, 0, 1, -1]), count=st.integers(1, 2))
    def post(self, data: st.DataObject, handle: int, off: int, count: int) -> None:
        """Somebody posts: mostly to a run that is there, and under the number that is next."""
        there = [key for key, run in self.runs.items() if run.lines]
        key = data.draw(st.sampled_from([*there * 3, *_KEYS]), "key")
        run = self.runs[key]
        for _ in range(count):
            number = len(run.posts) + 1 + off
            (record,) = posts(key, 1, str(self.steps))
            try:
                taken = self.handles[handle].post(key, number, record)
            except RunNotFound:
                assert not run.lines
                return
            assert run.lines and taken == (off == 0)
            if taken:
                run.posts.append(record)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), way=st.sampled_from(["release", "death", "delete", "release", "close"]))
    def end(self, data: st.DataObject, way: str) -> None:
        """A lease ends: by itself, or with its handle."""
        handle, lease = data.draw(self._lease(), "lease")
        run = self.runs[lease.key]
        good = run.lease == lease and run.holder == handle
        if way == "release":
            self.handles[handle].release(lease)
            self._free(lambda run: good and run.lease == lease)
        elif way == "delete":
            try:
                self.handles[handle].delete(lease)
            except LeaseLost:
                assert not good
                return
            assert good
            self._free(lambda run: run.lease == lease)
            run.lines, run.row, run.posts, run.blobs, run.size = [], None, [], {}, 0
        else:
            type(self).abandon(self.handles[handle]) if way == "death" else self.handles[handle].close()
            self._free(lambda run: run.holder == handle)
            self.handles[handle] = type(self).open(self.place)

    @invariant()
    def the_store_shows_what_the_model_has(self) -> None:
        """Through one handle after the other: from the first record, or from a later one."""
        self.steps += 1
        handle, after = self.handles[self.steps % _HANDLES], self.steps % 4
        for key, run in self.runs.items():
            assert handle.read(key, after) == run.lines[after:]
            assert handle.posts({key: after}) == ({key: run.posts[after:]} if run.posts[after:] else {})
        if after == 0:
            goals = [None, *(key.goal for key in _KEYS)]
            self._check_rows(handle, goals[self.steps // 4 % len(goals)])
            self._check_blobs(handle)
        assert handle.warnings() == [], "nothing was to be repaired"

    def _check_blobs(self, handle: Store) -> None:
        """What a run was given is there, and nothing else."""
        there = {digest: content for run in self.runs.values() for digest, content in run.blobs.items()}
        assert all(handle.blob(digest) == content for digest, content in there.items())
        for digest in self.blobs - there.keys():
            try:
                handle.blob(digest)
            except CorruptStore:
                continue
            raise AssertionError("a blob is there that no run was given")

    def _check_rows(self, handle: Store, goal: str | None) -> None:
        expected = [
            msgspec.structs.replace(
                run.row,
                holder=run.lease if run.holder is not None else None,
                unread=len(run.posts),
            )
            for key, run in sorted(self.runs.items())
            if run.row is not None and goal in (None, key.goal)
        ]
        found = handle.runs(Which(goal=goal))
        assert [msgspec.structs.replace(row, size=0) for row in found] == expected
        for row in found:  # a store may add to each record
            run = self.runs[row.key]
            assert run.size <= row.size <= 2 * run.size + 200 * len(run.lines)
        after = _KEYS[self.steps % len(_KEYS)]
        later = [row for row in found if row.key > after]
        assert handle.runs(Which(goal=goal, after=after, limit=2)) == later[:2]

    def _lease(self) -> st.SearchStrategy[tuple[int, Lease]]:
        """A handle and a lease: mostly one that is good, or any granted so far, or a good one in another's hand."""
        good = [(handle, lease) for handle, lease in self.leases if self.runs[lease.key].lease == lease]
        wrong = [((handle + 1) % _HANDLES, lease) for handle, lease in good]
        return st.sampled_from([*good * 2, *self.leases[-4:], *wrong])

    def teardown(self) -> None:
        for handle in getattr(self, "handles", []):
            handle.close()

    def _free(self, which: Callable[[_Model], bool]) -> None:
        for run in self.runs.values():
            if which(run):
                run.holder = run.lease = None


def check_random_histories(
    open_: Callable[[Path], Store],
    abandon: Callable[[Store], None],
    root: Path,
    *,
    examples: int = 50,
    steps: int = 40,
    vary: bool = False,
    shrink: bool = True,
) -> None:
    """Run ``examples`` histories of up to ``steps`` steps, each in a store of its own below ``root``.

    The histories are the same ones each time, unless ``vary``. Without ``shrink`` the first failure is raised as it is.
    """
    members = {"open": staticmethod(open_), "abandon": staticmethod(abandon), "places": itertools.count(), "root": root}
    run_state_machine_as_test(
        type("History", (_History,), members),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            derandomize=not vary,
            phases=[phase for phase in Phase if phase != Phase.explain and (shrink or phase != Phase.shrink)],
            suppress_health_check=list(HealthCheck),
        ),
    )
