"""The default store: one SQLite file, beside whatever tables the user has in it.

Every change is one transaction that begins with the write lock, so that a check and the write that depends on it are
one thing. A batch of appends is one transaction, hence one wait for the device for any number of runs.

Do not open the file with the ``sqlite3`` module in the same process: closing it there drops our locks (POSIX).
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import apsw
import msgspec

from perdure.clock import SYSTEM, Clock
from perdure.errors import CorruptStore, PerdureError, StoreError
from perdure.limits import MAX_BLOB, MAX_EPOCH, MAX_ROW
from perdure.model import Lease, RunKey, RunMeta
from perdure.stores import disk, sqlite_setup
from perdure.stores.base import EVERY, Append, Capabilities, Rewrite, Snapshots, Transaction, Which
from perdure.stores.handle import (
    Handle,
    checked_digest,
    ended_by_others,
    held,
    looked_for,
    lost,
    missing_records,
    not_found,
    shown_row,
    sound_blob,
    stored_digest,
    too_large,
    unusable,
    wrong_seq,
)
from perdure.stores.listing import selection
from perdure.stores.mounts import remote_warnings
from perdure.stores.owners import Owner
from perdure.stores.snapshots import refuse_too_large
from perdure.stores.sqlite_audit import SqliteAudit
from perdure.stores.sqlite_sql import BATCHES, COLUMNS, FENCED, MOST, NOTED, bounded, statements

_T = TypeVar("_T")
_to_json = msgspec.json.Encoder().encode
_AS_BEFORE = (None,) * NOTED
_NO_MOVE = (None,) * (len(COLUMNS) - 3)
_BROKEN = (apsw.NotADBError, apsw.CorruptError, apsw.FormatError)
_REFUSED = (apsw.CantOpenError, apsw.ReadOnlyError, apsw.PermissionsError, apsw.AuthError)

_stores: weakref.WeakSet[SqliteStore] = weakref.WeakSet()
_leaked: list[apsw.Connection] = []
"""Connections that this process has from the one that forked it: closing them here would touch the parent's files."""


class _Row(msgspec.Struct, frozen=True, array_like=True):
    """A row of perdure_runs."""

    columns: ClassVar[str] = (
        f"run, goal, episode, CASE WHEN octet_length(meta) <= {MAX_ROW} THEN meta ELSE '' END, "
        "epoch, owner, pid, host, since, posts - taken, size FROM perdure_runs"
    )
    run: int
    goal: str
    episode: int
    meta: str
    epoch: int
    owner: str
    pid: int
    host: str
    since: float
    unread: int
    size: int

    def lease(self) -> Lease:
        return Lease(RunKey(self.goal, self.episode), self.epoch, self.owner, self.pid, self.host, self.since)


class SqliteStore(Handle):
    """A Store in one SQLite file. See base.Store for what the verbs promise.

    ``busy_timeout``: seconds to wait while others write before StoreBusy. ``create=False`` raises ConfigError when
    there is no store at ``path``, and makes nothing.
    """

    def __init__(
        self, path: str | Path, *, create: bool = True, busy_timeout: float = 10.0, clock: Clock = SYSTEM
    ) -> None:
        self.path = Path(path).expanduser().resolve()
        super().__init__(f"sqlite:{self.path}", clock)
        self._lent = False
        """somebody writes in a transaction of ours"""
        self._wait = busy_timeout
        self._rows: dict[RunKey, int] = {}
        """rows of the runs that this handle claimed"""
        self._noted: dict[RunKey, tuple[float | str | None, ...]] = {}
        """what of their rows is looked for, as it is written"""
        self._wal = False
        try:
            self._db = sqlite_setup.connect(self.path, self.url, create, busy_timeout)
            with self._guard("open"):
                if not sqlite_setup.is_current(self._db, self.path, self.url, create):
                    with self._transaction("prepare"):
                        sqlite_setup.migrate(self._db, self.path, self.url, clock)
                self._warnings += sqlite_setup.make_durable(self._db, self.path, busy_timeout, clock)
                self._db.execute(BATCHES)
            self._warnings += remote_warnings(self.path)
            self._wal = self._select("PRAGMA journal_mode")[0][0] == "wal"
            self._owner = Owner(Path(f"{self.path}-owners"), clock)
            self._owner.sweep()
            _stores.add(self)
        except BaseException as error:
            self._disconnect()
            if hasattr(self, "_owner"):
                self._owner.abandon()
            raise unusable(error, *_REFUSED) from error.__cause__

    @property
    def capabilities(self) -> Capabilities:
        audit = SqliteAudit(self.path, self._read, partial(self._transaction, "repair"), self._owner.alive).audit()
        return Capabilities(
            durable=True,
            shared=True,
            compress=True,
            hurry=self._hurry,
            transaction=self._lend,
            rewrite=self._rewrite,
            compact=self._compact,
            snapshots=Snapshots(self._save_snapshot, self._load_snapshot),
            audit=audit,
        )

    # -- the verbs -------------------------------------------------------------------------------------------------

    def claim(self, key: RunKey) -> Lease:
        self._check()
        with self._transaction("claim a run in", synced=False):
            found = self._select(f"SELECT {_Row.columns} WHERE goal = ? AND episode = ?", (key.goal, key.episode))
            if found:
                last = self._row(found[0])
                row, epoch = last.run, last.epoch
                if self._owner.alive(last.owner):
                    raise held(last.lease())
            else:
                row, epoch = None, self._select("SELECT coalesce(max(epoch), 0) FROM perdure_floor")[0][0]
            if not 0 <= epoch < MAX_EPOCH:
                raise self._damaged(f"run {key} had a lease with the number {epoch}")
            lease = Lease(key, epoch + 1, self._owner.id, self._owner.pid, self._owner.host, self._clock.now())
            self._rows[key] = self._grant(row, lease)
            self._noted.pop(key, None)
        return lease

    def release(self, lease: Lease) -> None:
        self._check()
        row = self._rows.get(lease.key)
        if row is None:
            return
        with self._transaction("release a run in", synced=False):
            self._db.execute(
                "UPDATE perdure_runs SET owner = '' WHERE run = ? AND epoch = ? AND owner = ?",
                (row, lease.epoch, self._owner.id),
            )
            if self._db.changes():
                del self._rows[lease.key]
                self._noted.pop(lease.key, None)

    def append(self, batch: Sequence[Append]) -> list[PerdureError | None]:
        self._check()
        values = [value for item in batch for value in self._values(item)]
        one = len(values) <= MOST and not self._lent and not any(item.blobs for item in batch)
        if one:  # statement is enough, as it mostly is
            with self._guard("append to"):
                if self._insert(batch, values):
                    return [None] * len(batch)
        with self._transaction("append to"):
            results: list[PerdureError | None] = [None] * len(batch)
            if one or not self._insert(batch, values):
                if self._lent:
                    raise lost(batch[0].lease)
                if not one:
                    self._db.execute("ROLLBACK")
                    self._db.execute("BEGIN IMMEDIATE")
                results = [self._append_one(item) for item in batch]  # some are fenced or wrong: this tells which
            for item, problem in zip(batch, results, strict=True):
                if item.blobs and problem is None:
                    self._keep(self._rows[item.lease.key], item.blobs)
        return results

    def read(self, key: RunKey, after: int = 0, most: int | None = None) -> list[bytes]:
        self._check()
        with self._guard("read"):
            found = self._select(
                f"SELECT r.seq, j.seq, {bounded('j.record')} FROM perdure_runs r LEFT JOIN perdure_journal j "
                "ON j.run = r.run AND j.seq > ? WHERE r.goal = ? AND r.episode = ? ORDER BY j.seq "
                "LIMIT ?",
                (after, key.goal, key.episode, -1 if most is None else most),
            )
        lines: list[bytes] = []
        for _, seq, record in found:
            if seq is None:
                break
            if seq != after + len(lines) + 1:
                raise missing_records(str(self.path), key, seq, after + len(lines) + 1)
            if not isinstance(record, bytes):
                raise too_large(str(self.path), key, f"record {seq}")
            lines.append(record)
        if found and found[0][0] > after + len(lines) and len(lines) != most:
            raise missing_records(str(self.path), key, after + len(lines), found[0][0])
        return lines

    def runs(self, which: Which = EVERY) -> list[RunMeta]:
        self._check()
        with self._guard("read"):
            owners = self._select("SELECT DISTINCT owner FROM perdure_runs WHERE owner <> ''")
            alive = {owner for (owner,) in owners if isinstance(owner, str) and self._owner.alive(owner)}
            free = f"owner NOT IN ({','.join(repr(owner) for owner in alive)})"  # hexadecimal digits all of them
            where, values = selection(which, "perdure_runs", free, "?")
            found = self._select(f"SELECT {_Row.columns} WHERE {where}", tuple(values))
        rows = [self._row(row) for row in found]
        return [self._meta(row, row.lease() if row.owner in alive else None) for row in rows]

    def post(self, key: RunKey, number: int, record: bytes) -> bool:
        self._check()
        with self._transaction("post to"):
            found = self._select(
                "SELECT run, posts FROM perdure_runs WHERE goal = ? AND episode = ? AND meta <> ''",
                (key.goal, key.episode),
            )
            if found and found[0][1] == number - 1:
                self._db.execute("INSERT INTO perdure_inbox VALUES (?, ?, ?)", (found[0][0], number, record))
                self._db.execute("UPDATE perdure_runs SET posts = ? WHERE run = ?", (number, found[0][0]))
        if not found:
            raise not_found(key, self.url)
        return bool(found[0][1] == number - 1)

    def posts(self, after: Mapping[RunKey, int]) -> dict[RunKey, list[bytes]]:
        self._check()
        found: dict[RunKey, list[bytes]] = {}
        with self._guard("read"):
            for key, number in after.items():
                rows = self._select(
                    f"SELECT i.number, {bounded('i.record')} "
                    "FROM perdure_runs r JOIN perdure_inbox i ON i.run = r.run "
                    "WHERE r.goal = ? AND r.episode = ? AND i.number > ? ORDER BY i.number",
                    (key.goal, key.episode, number),
                )
                if [row[0] for row in rows] != list(range(number + 1, number + len(rows) + 1)):
                    raise self._damaged(f"posts of run {key} are missing")
                if not all(isinstance(row[1], bytes) for row in rows):
                    raise too_large(str(self.path), key, "a post")
                if rows:
                    found[key] = [row[1] for row in rows]
        return found

    def delete(self, lease: Lease) -> None:
        self._check()
        row = self._rows.get(lease.key, -1)
        with self._transaction("delete a run from"):
            self._db.execute(
                "DELETE FROM perdure_runs WHERE run = ? AND epoch = ? AND owner = ?", (row, lease.epoch, self._owner.id)
            )
            if not self._db.changes():
                raise lost(lease)
            self._db.execute("DELETE FROM perdure_journal WHERE run = ?", (row,))
            self._db.execute("DELETE FROM perdure_inbox WHERE run = ?", (row,))
            self._db.execute("DELETE FROM perdure_snapshots WHERE run = ?", (row,))
            self._collect(row)
            self._db.execute("UPDATE perdure_floor SET epoch = max(epoch, ?)", (lease.epoch,))
        del self._rows[lease.key]

    def blob(self, digest: str) -> bytes:
        self._check()
        stored_digest(digest, self.url)
        with self._guard("read"):
            found = self._select(
                f"SELECT {bounded('content', MAX_BLOB)} FROM perdure_blobs WHERE digest = ?", (digest,)
            )
        return sound_blob(digest, found[0][0] if found else None, str(self.path))

    def close(self) -> None:
        if self._closed or self._foreign:
            return
        self._closed = True
        self._disconnect()
        self._owner.close()

    def abandon(self) -> None:
        """For tests: leave everything as the death of the process would, the write-ahead log included."""
        self._closed = True
        self._disconnect(checkpoint=False)
        self._owner.abandon()

    # -- statements ------------------------------------------------------------------------------------------------

    def _grant(self, row: int | None, lease: Lease) -> int:
        """Write a lease into a run's row, making the row if there is none. Returns the row."""
        grant = (lease.epoch, lease.owner, lease.pid, lease.host, lease.since)
        if row is not None:
            self._db.execute(
                "UPDATE perdure_runs SET epoch = ?, owner = ?, pid = ?, host = ?, since = ? WHERE run = ?",
                (*grant, row),
            )
            return row
        self._db.execute(
            "INSERT INTO perdure_runs (goal, episode, epoch, owner, pid, host, since) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (lease.key.goal, lease.key.episode, *grant),
        )
        return self._db.last_insert_rowid()

    def _values(self, item: Append) -> list[int | float | str | bytes | None]:
        """Its rows of perdure_batch, one after the other. A lease that is not of this handle matches no row."""
        lease, meta, owner = item.lease, item.meta, self._owner.id
        row = self._rows.get(lease.key, -1) if lease.owner == owner else -1
        records = item.records
        last = item.seq + len(records)
        told = _to_json(meta).decode() if last else ""
        noted: tuple[float | str | None, ...] = looked_for(meta)
        if noted == self._noted.get(lease.key):
            noted = _AS_BEFORE
        first = records[0] if records else None
        values = [row, item.seq + 1, first, lease.epoch, owner, last, meta.status, told, item.size, *noted]
        for seq, record in enumerate(records[1:], item.seq + 2):
            values += (row, seq, record, *_NO_MOVE)
        return values

    def _insert(self, items: Sequence[Append], values: list[int | float | str | bytes | None]) -> bool:
        """Append items, of which ``_values`` are given. False if one is fenced; of the last statement nothing is there
        then."""
        try:
            for sql, some in statements(values):
                self._db.execute(sql, some)
        except apsw.ConstraintError as error:
            if FENCED not in str(error):
                raise
            return False
        for item in items:
            self._noted[item.lease.key] = looked_for(item.meta)
        return True

    def _append_one(self, item: Append) -> PerdureError | None:
        """In a transaction: append an item, or tell why it cannot be."""
        values = self._values(item)
        if self._insert((item,), values):
            return None
        found = self._select(
            "SELECT seq FROM perdure_runs WHERE run = ? AND epoch = ? AND owner = ?",
            (values[0], item.lease.epoch, item.lease.owner),
        )
        return wrong_seq(item, found[0][0]) if found else lost(item.lease)

    def _keep(self, row: int, blobs: Mapping[str, bytes]) -> None:
        """Store what a run is given, once, and that it was given it."""
        for digest, content in blobs.items():
            self._db.execute("INSERT OR IGNORE INTO perdure_blobs VALUES (?, ?)", (checked_digest(digest), content))
            self._db.execute("INSERT OR IGNORE INTO perdure_refs VALUES (?, ?)", (row, digest))

    def _collect(self, row: int) -> None:
        """Take from a run what it was given, and remove that of it which no other run was given."""
        self._db.execute(
            "DELETE FROM perdure_blobs WHERE digest IN (SELECT digest FROM perdure_refs WHERE run = ?1) AND "
            "NOT EXISTS (SELECT 1 FROM perdure_refs r WHERE r.digest = perdure_blobs.digest AND r.run <> ?1)",
            (row,),
        )
        self._db.execute("DELETE FROM perdure_refs WHERE run = ?", (row,))

    def _rewrite(self, new: Rewrite) -> bool:
        """See Capabilities.rewrite."""
        self._check()
        row = self._rows.get(new.lease.key, -1)
        with self._transaction("rewrite a run in"):
            found = self._select(
                "SELECT seq, posts FROM perdure_runs WHERE run = ? AND epoch = ? AND owner = ?",
                (row, new.lease.epoch, self._owner.id),
            )
            if not found:
                raise lost(new.lease)
            if found[0] != (len(new.records), len(new.posts)):
                return False
            for table, number, lines in (("journal", "seq", new.records), ("inbox", "number", new.posts)):
                self._db.executemany(
                    f"UPDATE perdure_{table} SET record = ? WHERE run = ? AND {number} = ?",
                    [(line, row, n) for n, line in enumerate(lines, 1)],
                )
            self._collect(row)
            self._db.execute("DELETE FROM perdure_snapshots WHERE run = ?", (row,))
            self._db.execute(
                "UPDATE perdure_runs SET meta = ?, size = ? WHERE run = ?",
                (msgspec.json.encode(new.meta).decode(), new.size, row),
            )
            self._keep(row, new.blobs)
        return True

    def _compact(self) -> None:
        """See Capabilities.compact."""
        self._check()
        with self._guard("compact"):
            self._db.execute("VACUUM")
            if self._wal:
                self._select("PRAGMA wal_checkpoint(TRUNCATE)")

    def _save_snapshot(self, lease: Lease, seq: int, content: bytes) -> None:
        """See Snapshots.save."""
        self._check()
        refuse_too_large(content)
        with self._transaction("save a snapshot in", synced=False):
            self._db.execute(
                "INSERT OR REPLACE INTO perdure_snapshots SELECT run, ?, ? FROM perdure_runs "
                "WHERE run = ? AND epoch = ? AND owner = ?",
                (seq, content, self._rows.get(lease.key, -1), lease.epoch, self._owner.id),
            )
            if not self._db.changes():
                raise lost(lease)

    def _load_snapshot(self, key: RunKey) -> tuple[int, bytes] | None:
        """See Snapshots.load."""
        self._check()
        with self._guard("read"):
            found = self._select(
                f"SELECT s.seq, {bounded('s.content', MAX_BLOB)} FROM perdure_runs r JOIN perdure_snapshots s "
                "USING (run) WHERE goal = ? AND episode = ?",
                (key.goal, key.episode),
            )
        seq, content = found[0] if found else (None, None)
        return (seq, content) if isinstance(seq, int) and isinstance(content, bytes) else None

    def _row(self, values: tuple[Any, ...]) -> _Row:
        try:
            return msgspec.convert(values, _Row)
        except msgspec.ValidationError as error:
            raise self._damaged(f"a row of perdure_runs: {error}") from None

    def _meta(self, row: _Row, holder: Lease | None) -> RunMeta:
        meta = shown_row(RunKey(row.goal, row.episode), row.meta, self.url, self._warnings)
        return msgspec.structs.replace(meta, holder=holder, unread=row.unread, size=row.size)

    def _read(self, sql: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """What an audit asks, or does in a transaction."""
        self._check()
        with self._guard("read"):
            return self._select(sql, values)

    def _select(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        return self._db.execute(sql, values).fetchall()

    # -- transactions and failures -----------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self, doing: str, synced: bool = True) -> Iterator[None]:
        """One transaction, on the device when it ends. With ``synced=False`` only other processes see it at once:
        enough for leases, since a power cut that loses one has ended its holder too.
        """
        if self._lent:  # it is part of that
            yield
            return
        relaxed = self._wal and not synced  # without the write-ahead log this could damage the file
        with self._guard(doing):
            if relaxed:
                self._db.execute("PRAGMA synchronous = NORMAL")
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            except BaseException:
                self._noted.clear()
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            finally:
                if relaxed:
                    self._db.execute("PRAGMA synchronous = FULL")

    @contextmanager
    def _guard(self, doing: str) -> Iterator[None]:
        """Turn SQLite's errors into ours. After any but a busy database the handle is of no use (rel:D4)."""
        try:
            yield
        except apsw.BusyError as error:
            raise disk.busy(self.path, self._wait) from error
        except UnicodeDecodeError as error:
            raise self._damaged(f"a text is not UTF-8: {error}") from None
        except apsw.Error as error:
            failure = self._describe(doing, error)
            self._broken = failure
            self._disconnect(checkpoint=False)
            raise failure from error

    @contextmanager
    def _lend(self, lease: Lease) -> Iterator[Transaction]:
        """See Capabilities.transaction."""
        self._check()
        with self._transaction("write to"):
            if not self._select(
                "SELECT 1 FROM perdure_runs WHERE run = ? AND epoch = ? AND owner = ?",
                (self._rows.get(lease.key, -1), lease.epoch, self._owner.id),
            ):
                raise lost(lease)
            self._lent = True
            try:
                yield Transaction(self._db, self._check_lent)
            finally:
                self._lent = False

    def _hurry(self, hurried: bool) -> None:
        """See Capabilities.hurry."""
        with suppress(apsw.ConnectionClosedError):  # after a failure
            self._db.set_busy_timeout(0 if hurried else int(self._wait * 1000))

    def _check_lent(self, raised: Exception | None) -> None:
        self._db.row_trace = self._db.exec_trace = self._db.authorizer = None
        if isinstance(raised, apsw.IOError | apsw.FullError | apsw.CorruptError):
            raise raised  # it is the store that fails
        if raised is not None:
            return
        if not self._db.in_transaction:
            raise ended_by_others()
        if self._db.status(apsw.SQLITE_DBSTATUS_DEFERRED_FKS)[0]:
            raise apsw.ConstraintError("a foreign key has nothing that it refers to")

    def _damaged(self, what: str) -> CorruptStore:
        return CorruptStore(
            f"{self.path} is damaged or not an SQLite database: {what}. Nothing was changed.",
            hint="Restore it from a copy, or choose another path.",
        )

    def _describe(self, doing: str, error: apsw.Error) -> StoreError:
        if isinstance(error, _BROKEN):
            return self._damaged(str(error))
        code = self._db.system_errno if isinstance(error, (apsw.IOError, apsw.CantOpenError)) else 0
        reason = f"{error}, {os.strerror(code)}" if code else str(error)
        hint = "Nothing that was acknowledged is lost. Remove the cause, then run again."
        if isinstance(error, apsw.FullError):
            reason, hint = (
                f"{error} (ENOSPC)",
                "Nothing that was acknowledged is lost. Free some space, then run again.",
            )
        return StoreError(f"Cannot {doing} {self.path}: {reason}.", hint=hint)

    # -- closing -----------------------------------------------------------------------------------------

    def _disconnect(self, checkpoint: bool = True) -> None:
        """Close the connection. After a failed sync the log is left alone: the next to open it checks its frames."""
        if not hasattr(self, "_db"):
            return
        try:
            if not checkpoint:
                self._db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            self._db.close(True)
        except apsw.Error:  # it may be broken or closed already; the locks go with it
            pass


def _leak_in_child() -> None:
    _leaked.extend(store._db for store in _stores)


os.register_at_fork(after_in_child=_leak_in_child)
