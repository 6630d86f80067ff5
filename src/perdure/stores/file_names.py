"""Which folders of a file store a listing has to look at, in the order of their runs if it is a page of a longer one.

A folder's name tells whose it is only if the goal is a plain name; else its run.json does. To read all of them for
every page would be far too slow, and to remember all would take memory for each run. So a window of those that come
next is remembered, as long as no folder came or went.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from perdure.clock import Clock
from perdure.errors import CorruptStore
from perdure.model import RunKey
from perdure.stores import disk
from perdure.stores.base import Which
from perdure.stores.folder import RunFolder

_WINDOW: Final = 10_000
_TICK: Final = 0.1
"""seconds, far more than what a file system's clock counts in: a folder that was changed less than this ago may be
changed again and have the same time"""


class _Window(NamedTuple):
    changed: int
    """when the last folder came or went"""
    after: RunKey | None
    next: list[tuple[RunKey, str]]


class Names:
    """The folders below ``runs``."""

    def __init__(self, runs: Path, clock: Clock) -> None:
        self._runs, self._clock = runs, clock
        self._window: _Window | None = None

    def of(self, which: Which) -> Iterator[str]:
        """Names of folders; among them may be some that are no run's."""
        if which.after is None and not which.limit:
            yield from self._all(which.goal)
            return
        after = which.after
        while some := self._after(which.goal, after):
            yield from (name for _, name in some)
            after = some[-1][0]

    def _after(self, goal: str | None, after: RunKey | None) -> list[tuple[RunKey, str]]:
        """The next ones after a run, as many as are remembered at a time or fewer; [] if there are none."""
        changed = disk.changed(self._runs)
        known = self._window if goal is None else None
        if known is not None and known.changed == changed and _covers(known, after):
            left = [pair for pair in known.next if after is None or pair[0] > after]
            if left:
                return left
        self._window = known = None
        keyed = ((self._key(name), name) for name in self._all(goal))
        found = heapq.nsmallest(_WINDOW, (pair for pair in keyed if after is None or pair[0] > after))
        if goal is None:
            settled = self._clock.now() - changed / 1e9 > _TICK
            self._window = _Window(changed, after, found) if settled else None
        return found

    def _all(self, goal: str | None) -> Iterator[str]:
        prefix = None if goal is None else disk.run_folder_name(RunKey(goal)).rpartition(".")[0]
        for name in disk.scan_dir(self._runs):
            if name[0] != "." and prefix in (None, name.rpartition(".")[0]):  # .DS_Store is nobody's run
                yield name

    def _key(self, name: str) -> RunKey:
        """Whose folder it is. What is none, or damaged, comes before all others: with the first page."""
        stem, _, episode = name.rpartition(".")
        if episode.isdecimal() and disk.run_folder_name(RunKey(stem, int(episode))) == name:
            return RunKey(stem, int(episode))
        try:
            folder = RunFolder.at(self._runs / name)
        except CorruptStore:
            folder = None
        return RunKey("") if folder is None else folder.key


def _covers(window: _Window, after: RunKey | None) -> bool:
    return window.after is None or (after is not None and after >= window.after)
