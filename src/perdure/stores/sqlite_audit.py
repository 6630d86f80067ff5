"""What a SQLite store tells of itself besides its journals: whether the file is sound, and rows that are nobody's.

Each question is one statement, which sees the file as of one moment; long tables are gone through in pages, so that
nobody who writes waits for long. Blobs are removed in a transaction, that is, while nobody else writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from perdure.model import RunKey
from perdure.stores.findings import Audit, Copies, Finding
from perdure.stores.listing import COLUMNS, empty_row, odd_row

Read: TypeAlias = Callable[[str, tuple[Any, ...]], list[tuple[Any, ...]]]
_PAGE: Final = 500
_PROBLEMS: Final = 100
"""of the file, that are told"""
_NOBODYS: Final = """
SELECT run, count(*) FROM {table} t WHERE run > ? AND NOT EXISTS (SELECT 1 FROM perdure_runs r WHERE r.run = t.run)
GROUP BY run ORDER BY run LIMIT ?
"""
_GONE: Final = """
NOT EXISTS (SELECT 1 FROM perdure_runs r WHERE r.run = s.run)
AND NOT EXISTS (SELECT 1 FROM perdure_journal j WHERE j.run = s.run)
"""
"""condition: neither the row nor any record of a snapshot's run is there. If there are records, it is damaged"""
_ORPHANS: Final = """
SELECT digest FROM perdure_blobs b WHERE digest > ? AND NOT EXISTS
(SELECT 1 FROM perdure_refs f JOIN perdure_runs USING (run) WHERE f.digest = b.digest) ORDER BY digest LIMIT ?
"""
_ROWS: Final = f"""
SELECT run, goal, episode, owner, posts, (SELECT count(*) FROM perdure_inbox i WHERE i.run = r.run),
meta, {COLUMNS} FROM perdure_runs r WHERE {{which}} ORDER BY run LIMIT ?
"""


class SqliteAudit(NamedTuple):
    path: Path
    read: Read
    transaction: Callable[[], AbstractContextManager[None]]
    alive: Callable[[str], bool]
    """whether an owner lives"""

    def audit(self) -> Audit:
        return Audit(self.look, self.mend, self.row, self.path)

    def look(self, key: RunKey | None) -> Iterator[Finding | None]:
        if key is not None:
            which = _ROWS.format(which="goal = ? AND episode = ?")
            for row in self.read(which, (key.goal, key.episode, 1)):
                yield from self._row(*row)
            return
        problems = [said for (said,) in self.read(f"PRAGMA integrity_check({_PROBLEMS})", ()) if said != "ok"]
        for said in problems:
            yield Finding(kind="damaged", what=f"{self.path} is damaged: {said}. Restore it from a copy.", place="file")
        yield from self._modes()
        yield from self._tables()
        for row in self._pages(_ROWS.format(which="run > ?"), 0):
            yield from self._row(*row)
            yield None

    def mend(self, finding: Finding, keep: Copies) -> None:
        """Orphan blobs, and snapshots of runs that are not there, are this store's to mend."""
        if finding.kind == "leftover":
            self._drop_snapshot(int(finding.place), keep)
            return
        digest = finding.place
        with self.transaction():
            forget = "DELETE FROM perdure_refs WHERE digest = ? AND run NOT IN (SELECT run FROM perdure_runs)"
            self.read(forget, (digest,))
            gone = "FROM perdure_blobs WHERE digest = ?1 AND NOT EXISTS (SELECT 1 FROM perdure_refs WHERE digest = ?1)"
            for (content,) in self.read(f"SELECT content {gone}", (digest,)):
                keep.save_blob(digest, content)
            self.read(f"DELETE {gone}", (digest,))

    def _drop_snapshot(self, run: int, keep: Copies) -> None:
        gone = f"FROM perdure_snapshots AS s WHERE run = ?1 AND {_GONE}"
        with self.transaction():
            for (content,) in self.read(f"SELECT content {gone}", (run,)):
                keep.save(f"snapshots/{run}", content)
            self.read(f"DELETE {gone}", (run,))

    def row(self, key: RunKey) -> bytes:
        found = self.read("SELECT * FROM perdure_runs WHERE goal = ? AND episode = ?", (key.goal, key.episode))
        return msgspec.json.encode(found)

    def _pages(self, text: str, start: int | str) -> Iterator[tuple[Any, ...]]:
        """The rows of a query whose first column says where it goes on."""
        page = self.read(text, (start, _PAGE))
        while page:
            yield from page
            page = self.read(text, (page[-1][0], _PAGE))

    def _modes(self) -> Iterator[Finding]:
        """Files that others than their owner may read or write (rel:S13)."""
        for end in ("", "-wal", "-shm", "-owners"):
            path = Path(f"{self.path}{end}")
            try:
                mode = os.stat(path).st_mode
            except FileNotFoundError:
                continue
            if mode & 0o077:
                what = f"{path} can be read or written by other users. chmod go= {path}"
                yield Finding(kind="mode", what=what, place=str(path))

    def _tables(self) -> Iterator[Finding]:
        if len(self.read("SELECT epoch FROM perdure_floor", ())) != 1:
            what = f"{self.path}: the largest epoch of deleted runs is not there. Restore the file from a copy."
            yield Finding(kind="lease", what=what, place="perdure_floor")
        for table, things in (("perdure_journal", "records"), ("perdure_inbox", "posts")):
            for run, count in self._pages(_NOBODYS.format(table=table), -1):
                what = f"{self.path}: {count} {things} in {table} are of a run {run} that has no row."
                yield Finding(kind="damaged", what=what, place=f"{table} {run}")
        text = f"SELECT run FROM perdure_snapshots s WHERE run > ? AND {_GONE} ORDER BY run LIMIT ?"
        for (run,) in self._pages(text, -1):
            what = f"{self.path}: a snapshot is of a run {run} that is not there."
            yield Finding(kind="leftover", what=what, place=str(run))
        for (digest,) in self._pages(_ORPHANS, ""):
            what = f"blob {digest} was given to no run that is there, and no record needs it."
            yield Finding(kind="orphan_blob", what=what, place=digest)

    def _row(
        self, run: int, goal: str, episode: int, owner: str, posts: int, there: int, *row: Any
    ) -> Iterator[Finding]:
        key = RunKey(goal, episode)
        if row[0]:
            yield from odd_row(key, posts, there, *row)
        elif not (owner and self.alive(owner)):
            yield from empty_row(key, row[1])
