"""The audit of a store: everything in it is read and compared, run after run, and nothing is changed unless asked for.

Memory does not grow with the number of runs: rows come in pages, a run is forgotten when it has been looked at, and
what is found is handed on at once. It may go on while runs do. Nothing is told that was seen only once: whatever is odd
about a run is looked at twice more, and told if it is so each time, since a run that is deleted, or written anew, at
this moment looks odd for this moment.

What may be repaired is what a crash leaves behind and nobody needs. A copy is kept first; a run is claimed first, so
that nothing of a run is touched that a living process has. A blob is an orphan if the store says that no run was given
it, *and* no record of any run needs it; and the store looks again, under its own lock, when it removes it. As long as
anything is damaged no blob is removed at all: a record that cannot be read may need it.

Rejected: asking the journals alone (a run that was given a blob a moment ago may not have written the record yet);
cutting damage out of the middle of a journal, or making up what is missing. That is what copies are for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import chain
from math import inf
from typing import Final

import msgspec
from msgspec.structs import replace

from perdure import states
from perdure.clock import SYSTEM, Clock
from perdure.errors import CorruptStore, FixError, PerdureError, StoreError
from perdure.fold import summarise
from perdure.model import OWN, RunKey, RunMeta, key_named
from perdure.runtime.look import Look, each, row_of
from perdure.stores.base import Append, Store
from perdure.stores.disk import run_folder_name
from perdure.stores.findings import Copies, Finding, blob_of

_LOOKS: Final = 3
"""times that something odd must be seen"""
_PAUSE: Final = 0.1
"""seconds between them if somebody has the run: he may be in the middle of something"""
_ORPHANS: Final = 10_000
"""blobs that are looked for in all journals at a time; more are for the next audit"""
_APART: Final = 60.0
"""seconds between two clocks that are worth telling"""


class Counts(msgspec.Struct):
    """How far an audit is, and what it found."""

    places: int = 0
    """of the store, that it has looked at itself"""
    runs: int = 0
    records: int = 0
    blobs: int = 0
    executed: int = 0
    """runs that somebody holds"""
    crashed: int = 0
    """runs that nobody holds, and that did not end"""
    unread: int = 0
    """posts that are not in their journals yet"""
    parentless: int = 0
    """runs whose parents are not there any more"""
    damaged: int = 0
    """runs of which something is damaged"""
    found: dict[str, int] = {}
    """findings of each kind"""
    repaired: int = 0
    left: int = 0
    """what was to be repaired, and was not"""
    more: bool = False
    """there may be more orphan blobs"""


class Auditor:
    """Audits one store. ``keep``: repair what can be, and keep copies there. ``counts`` is up to date whenever a
    finding is given, and whenever ``progress`` is called."""

    def __init__(
        self,
        store: Store,
        *,
        keep: Copies | None = None,
        clock: Clock = SYSTEM,
        progress: Callable[[Counts], None] = lambda counts: None,
    ) -> None:
        self._store, self._keep, self._clock, self._progress = store, keep, clock, progress
        self._own = store.capabilities.audit
        self.counts = Counts()
        self._last_damaged: RunKey | None = None
        self._alone: RunKey | None = None
        """the first run whose parent is not there"""
        self._orphans: dict[str, list[Finding]] = {}
        self._there = lru_cache(64)(self._is_there)

    def everything(self) -> Iterator[Finding]:
        """What is wrong with the store and all runs. Ends with a finding if the store fails in the middle."""
        try:
            for finding in self._all():
                yield self._told(finding)
        except StoreError as problem:
            what = f"{problem} The audit ended there."
            yield self._told(Finding(kind="damaged", what=what, place=self._store.url))

    def run(self, key: RunKey) -> Iterator[Finding]:
        """What is wrong with one run. Raises StoreError."""
        for finding in self._look(key):
            yield self._told(finding)
        row = row_of(self._store, key)
        for finding in chain(self._run(row), self._parentless()) if row else ():
            yield self._told(finding)

    def _all(self) -> Iterator[Finding]:
        for said in self._store.warnings():
            yield Finding(kind="settings", what=said)
        yield from self._clocks()
        for finding in self._look(None):
            if finding.kind != "orphan_blob":
                yield finding
            elif len(self._orphans) < _ORPHANS or blob_of(finding) in self._orphans:
                self._orphans.setdefault(blob_of(finding), []).append(finding)
            else:
                self.counts.more = True
        for row in each(self._store):
            yield from self._run(row)
            self._progress(self.counts)
            self._store.warnings()  # of rows that cannot be read: they are being told
        yield from self._parentless()
        for findings in self._orphans.values():
            yield from findings

    def _look(self, key: RunKey | None) -> Iterator[Finding]:
        """What the store tells of itself."""
        for finding in self._own.look(key) if self._own else ():
            if finding is not None:
                yield finding
            self.counts.places += 1
            self._progress(self.counts)

    def _clocks(self) -> Iterator[Finding]:
        apart = self._store.heartbeat() - self._clock.now() if self._store.capabilities.lease < inf else 0.0
        if abs(apart) > _APART:
            what = f"the clock of {self._store.url} is {abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'}"
            yield Finding(kind="clock", what=f"{what} this machine's. Dates and deadlines of runs are by the store's.")

    # -- runs ------------------------------------------------------------------------------------------------------

    def _run(self, row: RunMeta) -> Iterator[Finding]:
        self._count(row)
        look = Look(self._store, row, self._need)
        found = list(look.findings())
        self.counts.records += look.records
        self.counts.blobs += look.blobs
        for _ in range(_LOOKS - 1):
            if not found:
                return
            if row.holder is not None:
                self._clock.sleep(_PAUSE)
            again = row_of(self._store, row.key)
            seen = set(Look(self._store, again).findings()) if again is not None else set()
            found = [finding for finding in found if finding in seen]
        if any(finding.level in ("damage", "newer") for finding in found):  # a journal that is not sound makes no row
            found = [finding for finding in found if finding.kind != "row_differs"]
        yield from found

    def _count(self, row: RunMeta) -> None:
        if not row.goal.startswith(OWN):
            self.counts.runs += 1
            self.counts.executed += row.holder is not None
            self.counts.crashed += row.holder is None and row.status == states.RUNNING
            self.counts.unread += row.unread
        parent = key_named(row.parent)
        if parent is not None and not self._there(parent):
            self.counts.parentless += 1
            self._alone = self._alone or row.key

    def _parentless(self) -> Iterator[Finding]:
        """One for all of them: retention may have removed many parents."""
        if self._alone is not None:
            others = f", and so were {self.counts.parentless - 1:,} others" if self.counts.parentless > 1 else ""
            what = f"run {self._alone} was begun by a run that is not there any more{others}."
            yield Finding(kind="parent", what=what, run=self._alone)

    def _is_there(self, key: RunKey) -> bool:
        try:
            return bool(self._store.read(key))
        except (CorruptStore, FixError):
            return True

    def _need(self, digest: str) -> None:
        """Some record needs a blob, which may be one of those that no run was given."""
        for name in self._own.names(digest) if self._orphans and self._own else ():
            for finding in self._orphans.pop(name, ()):
                if finding.place == name:
                    what = f"blob {name} is needed by records, and the store does not know which run was given it."
                    self._orphans[name] = [replace(finding, kind="unmarked_blob", what=what)]

    # -- telling and mending -----------------------------------------------------------------------------------------

    def _told(self, finding: Finding) -> Finding:
        if self._keep is not None and finding.level == "repair":
            finding = self._repaired(finding, self._keep)
        counts = self.counts
        counts.found[finding.kind] = counts.found.get(finding.kind, 0) + 1
        counts.repaired += finding.repaired
        counts.left += bool(finding.left)
        if finding.level == "damage" and finding.run is not None and finding.run != self._last_damaged:
            self._last_damaged = finding.run
            counts.damaged += 1
        return finding

    def _repaired(self, finding: Finding, keep: Copies) -> Finding:
        if finding.kind == "orphan_blob" and any(kind in self.counts.found for kind in _HIDES):
            return replace(finding, left="no blob is removed as long as something else cannot be read")
        try:
            if finding.kind in ("row_differs", "empty_run"):
                assert finding.run is not None
                self._mend_run(finding.run, keep)
            else:
                assert self._own is not None
                self._own.mend(finding, keep)
        except (
            PerdureError
        ) as problem:  # in use, or copies cannot be kept; if the store has failed the next look says so
            return replace(finding, left=problem.args[0])
        return replace(finding, repaired=True)

    def _mend_run(self, key: RunKey, keep: Copies) -> None:
        """Give a run the row that its journal makes; a run without records is none, and goes."""
        lease, gone = self._store.claim(key), False
        try:
            if self._own is not None:
                keep.save(f"{run_folder_name(key)}/row", self._own.row(key))
            lines = self._store.read(key)
            if lines:
                for error in self._store.append([Append(lease, len(lines), (), summarise(key, lines))]):
                    if error is not None:
                        raise error
            else:
                self._store.delete(lease)
                gone = True
        finally:
            if not gone:
                self._store.release(lease)


_HIDES: Final = ("damaged", "value", "newer")
"""kinds of findings behind which a record may need what no other does"""
