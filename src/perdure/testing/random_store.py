"""Random histories of a store against a model of ten lines: claims, appends, releases, deaths, reads, deletions.

The model is a dictionary of runs: records, row, largest epoch, and which handle holds the run under which lease. Every
result of the store, errors included, must be what the model says.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from perdure.errors import Bug, LeaseHeld, LeaseLost
from perdure.model import Lease, RunKey, RunMeta
from perdure.stores.base import Append, Store
from perdure.testing.samples import meta, records

_KEYS = [RunKey("paper"), RunKey("paper", 1), RunKey("Paper"), RunKey("../x y")]
_HANDLES = 3
_keys = st.sampled_from(_KEYS)
_handles = st.integers(0, _HANDLES - 1)
_statuses = st.sampled_from(["running", "paused", "completed"])


class _Model:
    """What the store should know of one run."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
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
        self.old: list[tuple[int, Lease]] = []
        self.blobs: dict[str, bytes] = {}

    @rule(key=_keys, handle=_handles)
    def claim(self, key: RunKey, handle: int) -> None:
        run = self.runs[key]
        try:
            lease = self.handles[handle].claim(key)
        except LeaseHeld:
            assert run.holder is not None, f"{key} is free"
            return
        assert run.holder is None, f"{key} is held by handle {run.holder}"
        assert lease.key == key and lease.epoch > run.epoch
        run.holder, run.lease, run.epoch = handle, lease, lease.epoch
        self.old.append((handle, lease))

    @rule(data=st.data(), handle=_handles, status=_statuses)
    def append(self, data: st.DataObject, handle: int, status: str) -> None:
        """A batch for every run that the handle holds, or once held, or never; some at a wrong sequence."""
        leases = [lease for _, lease in self.old]
        chosen = data.draw(st.lists(st.sampled_from(leases), max_size=4), "leases") if leases else []
        batch: list[Append] = []
        expected: list[type[Bug | LeaseLost | None]] = []
        for lease in chosen:
            run = self.runs[lease.key]
            seq = len(run.lines) + data.draw(st.sampled_from([0, 0, 0, 0, 1, -1]), "off by")
            lines = records(lease.key, seq, data.draw(st.integers(1, 3), "count"), status)
            content = data.draw(st.binary(max_size=3), "blob")
            blobs = {hashlib.sha256(content).hexdigest(): content}
            batch.append(Append(lease, seq, lines, meta(lease.key, seq + len(lines), status), blobs))
            if run.lease != lease or run.holder != handle:
                expected.append(LeaseLost)
            elif seq != len(run.lines):
                expected.append(Bug)
            else:
                expected.append(type(None))
                run.lines += lines
                run.row = batch[-1].meta
                self.blobs.update(blobs)
        assert [type(result) for result in self.handles[handle].append(batch)] == expected

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.old:
            handle, lease = data.draw(st.sampled_from(self.old), "lease")
            self.handles[handle].release(lease)
            self._free(lambda run: run.lease == lease and run.holder == handle)

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        if not self.old:
            return
        handle, lease = data.draw(st.sampled_from(self.old), "lease")
        run = self.runs[lease.key]
        try:
            self.handles[handle].delete(lease)
        except LeaseLost:
            assert run.lease != lease or run.holder != handle
            return
        assert run.lease == lease and run.holder == handle
        run.lines, run.row = [], None
        self._free(lambda run: run.lease == lease)

    @rule(handle=_handles, dies=st.booleans())
    def reopen(self, handle: int, dies: bool) -> None:
        if dies:
            type(self).abandon(self.handles[handle])
        else:
            self.handles[handle].close()
        self._free(lambda run: run.holder == handle)
        self.old = [(owner, lease) for owner, lease in self.old if owner != handle]
        self.handles[handle] = type(self).open(self.place)

    @rule(key=_keys, handle=_handles, after=st.integers(0, 5))
    def read(self, key: RunKey, handle: int, after: int) -> None:
        assert self.handles[handle].read(key, after) == self.runs[key].lines[after:]

    @rule(handle=_handles)
    def read_blobs(self, handle: int) -> None:
        assert all(self.handles[handle].blob(digest) == content for digest, content in self.blobs.items())

    @rule(handle=_handles, goal=st.sampled_from([None, *(key.goal for key in _KEYS)]))
    def list_runs(self, handle: int, goal: str | None) -> None:
        found = self.handles[handle].runs(goal)
        expected = [
            msgspec.structs.replace(run.row, holder=run.lease if run.holder is not None else None)
            for key, run in sorted(self.runs.items())
            if run.row is not None and goal in (None, key.goal)
        ]
        assert found == expected

    @invariant()
    def nothing_was_repaired(self) -> None:
        assert all(handle.warnings() == [] for handle in getattr(self, "handles", []))

    def teardown(self) -> None:
        for handle in getattr(self, "handles", []):
            handle.close()

    def _free(self, which: Callable[[_Model], bool]) -> None:
        for run in self.runs.values():
            if which(run):
                run.holder = run.lease = None


def check_random_histories(
    open_: Callable[[Path], Store], abandon: Callable[[Store], None], root: Path, *, examples: int = 25, steps: int = 30
) -> None:
    """Run ``examples`` histories of up to ``steps`` steps, each in a store of its own below ``root``."""
    members = {"open": staticmethod(open_), "abandon": staticmethod(abandon), "places": itertools.count(), "root": root}
    run_state_machine_as_test(
        type("History", (_History,), members),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
