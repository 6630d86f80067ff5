"""What a PostgreSQL store tells of itself besides its journals: rows that are nobody's, and epochs that may come again.

Each question is one statement, which sees the tables as of one moment; long tables are gone through in pages. A blob is
removed as a deletion does it: locked first, so that whoever is just giving it to a run is waited for. Whether the pages
of the tables are sound is for the server to say: data checksums, ``pg_amcheck``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from perdure.model import RunKey
from perdure.stores.findings import Audit, Copies, Finding
from perdure.stores.listing import empty_row, odd_row
from perdure.stores.postgres_link import Connection

_PAGE: Final = 500


class PostgresAudit(NamedTuple):
    url: str
    sql: Mapping[str, str]
    call: Callable[[Callable[[Connection, bool], Any]], Any]
    """does something with a connection, again if need be"""

    def audit(self) -> Audit:
        return Audit(self.look, self.mend, self.row, Path("perdure"))

    def look(self, key: RunKey | None) -> Iterator[Finding | None]:
        rows = self.sql["audit_rows"]
        if key is not None:
            one = rows.replace("{which}", "goal = %(goal)s AND episode = %(episode)s")
            for row in self._ask(one, goal=key.goal, episode=key.episode, page=1):
                yield from self._row(*row)
            return
        yield from self._epochs()
        for table, things in (("journal", "records"), ("inbox", "posts")):
            for run, count in self._pages(self.sql["audit_nobodys"].replace("{table}", table), -1):
                what = f"{self.url}: {count} {things} are of a run {run} that has no row."
                yield Finding(kind="damaged", what=what, place=f"{table} {run}")
        for (run,) in self._pages(self.sql["audit_snapshots"], -1):
            what = f"{self.url}: a snapshot is of a run {run} that is not there."
            yield Finding(kind="leftover", what=what, place=str(run))
        for (digest,) in self._pages(self.sql["audit_orphans"], ""):
            what = f"blob {digest} was given to no run that is there, and no record needs it."
            yield Finding(kind="orphan_blob", what=what, place=digest)
        for row in self._pages(rows.replace("{which}", "run > %(after)s"), -1):
            yield from self._row(*row)
            yield None

    def mend(self, finding: Finding, keep: Copies) -> None:
        """Orphan blobs, and snapshots of runs that are not there, are this store's to mend."""
        if finding.kind == "leftover":
            self.call(lambda db, _: self._drop_snapshot(db, int(finding.place), keep))
            return
        digest = finding.place
        values = {"digests": [digest]}

        def collect(db: Connection, again: bool) -> None:
            with db.transaction():
                db.execute(self.sql["lock_blobs"], values)
                db.execute(self.sql["audit_forget"], values)
                for (content,) in db.execute(self.sql["audit_content"], values).fetchall():
                    keep.save_blob(digest, bytes(content))
                db.execute(self.sql["collect"], values)

        self.call(collect)

    def _drop_snapshot(self, db: Connection, run: int, keep: Copies) -> None:
        with db.transaction():  # gone when the copy is there
            for (content,) in db.execute(self.sql["audit_snapshot"], {"run": run}).fetchall():
                keep.save(f"snapshots/{run}", bytes(content))

    def row(self, key: RunKey) -> bytes:
        found = self._ask(self.sql["audit_row"], goal=key.goal, episode=key.episode)
        return "".join(text for (text,) in found).encode()

    def _epochs(self) -> Iterator[Finding]:
        ((last, largest),) = self._ask(self.sql["audit_epochs"])
        if (last or 0) < largest and self._ask(self.sql["audit_may_ask"])[0][0]:
            what = (
                f"{self.url}: the sequence of epochs stands at {last or 0}, and {largest} was granted already: it was "
                f"restored without its value. In that schema, SELECT setval('epochs', {largest}) mends it."
            )
            yield Finding(kind="lease", what=what, place="epochs")

    def _ask(self, text: str, **values: object) -> list[Any]:
        found: list[Any] = self.call(lambda db, _: db.execute(text, values).fetchall())
        return found

    def _pages(self, text: str, start: int | str) -> Iterator[Any]:
        """The rows of a query whose first column says where it goes on."""
        page = self._ask(text, after=start, page=_PAGE)
        while page:
            yield from page
            page = self._ask(text, after=page[-1][0], page=_PAGE)

    def _row(
        self, run: int, goal: str, episode: int, alive: bool, posts: int, there: int, *row: Any
    ) -> Iterator[Finding]:
        key = RunKey(goal, episode)
        if row[0]:
            yield from odd_row(key, posts, there, *row)
        elif not alive:
            yield from empty_row(key, row[1])
