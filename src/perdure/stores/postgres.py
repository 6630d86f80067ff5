"""The store for many processes on many machines: tables in PostgreSQL.

A verb is one statement, hence one round trip and one commit; a check and the write that depends on it are in the same
statement (sql/postgres.sql). Only what is rare takes more: a claim from a dead owner, to say why something was refused,
and a transaction that is lent to a step. A batch of appends for any number of runs is one statement too.

Leases hang on *owners*. An open handle is an owner, a row with a date until which it lives by the server's clock, and
its heartbeat moves that date. A run whose owner is gone, or is late, is anybody's; an owner that was late once never
comes back under its name, so that "dead" stays true once it has been seen. Every grant has a larger epoch, and an
append states epoch and owner: whoever was taken for dead writes nothing any more.

When a connection breaks while a statement is under way, nobody knows whether it was executed. It is sent again: an
append that was executed is recognised by the place at which the run is now, because nobody else could have moved it
under our epoch; a post by its bytes; a claim by our own name on a run that we do not know to be ours.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import inf
from typing import Any, Final, TypeVar

import msgspec
import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from perdure.clock import SYSTEM, Clock, process_identity
from perdure.errors import ConfigError, CorruptStore, PerdureError, StoreBusy, StoreError
from perdure.framing import FRAME
from perdure.limits import MAX_BLOB, MAX_RECORD, MAX_ROW
from perdure.model import Lease, RunKey, RunMeta
from perdure.stores import sql
from perdure.stores.base import EVERY, Append, Capabilities, Rewrite, Snapshots, Transaction, Which
from perdure.stores.expiring import term, trust
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
    too_late,
    wrong_seq,
)
from perdure.stores.listing import selection
from perdure.stores.postgres_audit import PostgresAudit
from perdure.stores.postgres_link import Connection, Link, failure, is_refusal, is_transient, parse
from perdure.stores.postgres_listen import listener
from perdure.stores.postgres_setup import channel, check_encoding, doubts, prepare
from perdure.stores.snapshots import refuse_too_large

T = TypeVar("T")
_STATEMENTS: Final = sql.load("postgres")


class PostgresStore(Handle):
    """A Store in a schema of a PostgreSQL database. See base.Store for what the verbs promise.

    ``url``: as libpq takes it, and ``schema=`` (default "perdure") and ``lease=`` (seconds within which the runs of a
    dead process go on elsewhere; default 15). ``patience``: seconds for which a lost connection is made anew before
    StoreError. ``create=False`` raises ConfigError when the tables are not there, and makes nothing.
    """

    def __init__(self, url: str, *, create: bool = True, patience: float = 30.0, clock: Clock = SYSTEM) -> None:
        self.place = place = parse(url)
        super().__init__(place.shown, clock)
        self._patience = patience
        names = {"{s}": f'"{place.schema}"', "{record}": str(MAX_RECORD + FRAME), "{row}": str(MAX_ROW)}
        names["{value}"] = str(MAX_BLOB)
        self._sql = dict(_STATEMENTS)
        for mark, stands_for in names.items():
            self._sql = {name: text.replace(mark, stands_for) for name, text in self._sql.items()}
        self._appends = {(few, blobs): self._append_sql(few, blobs) for few in (True, False) for blobs in (True, False)}
        """statements by whether they are for one run, and whether they have blobs"""
        self._rows: dict[RunKey, tuple[int, Lease]] = {}
        """runs that this handle holds, and their rows"""
        self._noted: dict[RunKey, tuple[float | str, ...]] = {}
        """of those of them of which others have been told that somebody holds them: what they are looked for by"""
        self._owner, self._beaten = "", -inf
        self._late = False
        """its time had passed when it claimed something, and the next heartbeat is to say so"""
        self._main, self._pulse = Link(place, clock), Link(place, clock)
        self._lent = False
        """somebody writes in a transaction of ours"""
        self._lock = threading.Lock()
        """of the connection of the heartbeat, and of the owner's name"""
        try:
            self._call("open", lambda db, again: prepare(db, place, create), patience=min(patience, 8.0))
            self._channel = self._call("open", lambda db, again: channel(db, place))
            greeting = self._main.greeting
            assert greeting is not None
            check_encoding(place, greeting)
        except BaseException as error:
            self._disconnect()
            cause = error.__cause__
            if isinstance(error, StoreError) and isinstance(cause, psycopg.Error) and is_refusal(cause):
                raise ConfigError(error.args[0], hint="Check the URL, and what the user may do.") from None
            raise
        problems = doubts(place, greeting)
        self._warnings += problems
        self._durable = not problems
        self._listen = None if greeting.pooled else listener(place, self._channel, clock)

    @property
    def capabilities(self) -> Capabilities:
        lease = self.place.lease
        return Capabilities(
            durable=self._durable,
            shared=True,
            compress=True,
            lease=lease,
            trust=trust(lease),
            listen=self._listen,
            transaction=self._lend,
            rewrite=self._rewrite,
            compact=self._compact,
            snapshots=Snapshots(self._save_snapshot, self._load_snapshot),
            audit=PostgresAudit(self.url, self._sql, self._asked).audit(),
        )

    # -- the verbs -------------------------------------------------------------------------------------------------

    def claim(self, key: RunKey) -> Lease:
        self._check()
        self._live()
        pid, host = process_identity()
        values: dict[str, object] = {"goal": key.goal, "episode": key.episode, "pid": pid, "host": host}
        values |= {"owner": self._owner, "ours": "" if key in self._rows else self._owner}
        while True:
            granted = self._rows_of("claim a run in", "claim_free", values)
            if not granted:
                granted = self._claim_dead(key, values)
            if granted:
                row, epoch, since = granted[0]
                lease = Lease(key, epoch, self._owner, pid, host, round(since, 6))
                self._rows[key] = (row, lease)
                self._noted.pop(key, None)
                return lease

    def heartbeat(self) -> float:
        self._check()
        with self._lock:
            owner = self._owner
            link = self._pulse if owner else self._main
            values = {"owner": owner, "term": term(self.place.lease)}
            sent = self._clock.uptime()
            try:  # whoever is to beat does not wait for long: the next time comes soon
                found = link.call(lambda db, _: self._do(db, "heartbeat" if owner else "time", values), patience=1.0)
            except psycopg.Error as error:
                problem = failure("tell", self.place, error)
                raise StoreBusy(problem.args[0], hint="It is tried again until the leases end.") from error
            finally:
                if self._closed or self._broken is not None:  # meanwhile, and what was connected since is still open
                    link.drop()
            if not found or self._late:
                self._owner, self._late = "", False
                self._rows.clear()
                raise too_late(self.url)
            self._beaten = sent
        return round(float(found[0][0]), 6)

    def release(self, lease: Lease) -> None:
        self._check()
        row = self._held(lease)
        if row is not None:
            values = {"run": row, "epoch": lease.epoch, "owner": lease.owner, "channel": self._channel}
            self._rows_of("release a run in", "release", values)
            self._rows.pop(lease.key, None)
            self._noted.pop(lease.key, None)

    def append(self, batch: Sequence[Append]) -> list[PerdureError | None]:
        self._check()
        if len(batch) == 1 and self._may_go_alone(batch[0]):
            return self._call("append to", partial(self._append_one, batch[0]))
        results: list[PerdureError | None] = []
        for items in _rounds(batch):
            results += self._call("append to", partial(self._append, items))
        if self._lent and any(results):
            raise next(filter(None, results))
        return results

    def read(self, key: RunKey, after: int = 0, most: int | None = None) -> list[bytes]:
        self._check()
        till = after + most if most is not None else sys.maxsize
        found = self._rows_of("read", "read", {"after": after, "till": till, "goal": key.goal, "episode": key.episode})
        lines: list[bytes] = []
        for _, seq, record in found:
            if seq is None:
                break
            if seq != after + len(lines) + 1:
                raise missing_records(self.url, key, seq, after + len(lines) + 1)
            if record is None:
                raise too_large(self.url, key, f"record {seq}")
            lines.append(bytes(record))
        if found and found[0][0] > after + len(lines) and len(lines) != most:
            raise missing_records(self.url, key, after + len(lines), found[0][0])
        return lines

    def runs(self, which: Which = EVERY) -> list[RunMeta]:
        self._check()
        where, values = selection(which, f'"{self.place.schema}".runs', self._sql["free"], "%s")
        text = self._sql["runs"].replace("{where}", where)
        found = self._call("read", lambda db, _: db.execute(text, values).fetchall())
        return [self._row(*row) for row in found]

    def post(self, key: RunKey, number: int, record: bytes) -> bool:
        self._check()
        values = {"goal": key.goal, "episode": key.episode, "number": number, "record": record}
        values["channel"] = self._channel

        def post(db: Connection, again: bool) -> bool:
            if self._do(db, "post", values):
                return True
            found = self._do(db, "posted", values)
            if not found:
                raise not_found(key, self.url)
            return again and found[0][0] == record  # the reply of the time before was lost

        return self._call("post to", post)

    def posts(self, after: Mapping[RunKey, int]) -> dict[RunKey, list[bytes]]:
        self._check()
        found: dict[RunKey, list[bytes]] = {}
        if not after:
            return found
        values = {
            "goal": [key.goal for key in after],
            "episode": [key.episode for key in after],
            "after": list(after.values()),
        }
        for goal, episode, number, record in self._rows_of("read", "posts", values):
            key = RunKey(goal, episode)
            lines = found.setdefault(key, [])
            if number != after[key] + len(lines) + 1:
                raise CorruptStore(f"{self.url}: posts of run {key} are missing. Nothing was changed.")
            if record is None:
                raise too_large(self.url, key, f"post {number}")
            lines.append(bytes(record))
        return found

    def delete(self, lease: Lease) -> None:
        self._check()
        row = self._held(lease)
        if row is None:
            raise lost(lease)
        values = {"run": row, "epoch": lease.epoch, "owner": lease.owner}

        def delete(db: Connection, again: bool) -> bool:
            with db.transaction():
                gone = self._do(db, "delete", values)
                self._collect(db, gone[0][1] if gone else [])
            return bool(gone) or (again and not self._do(db, "place", values))

        if not self._call("delete a run from", delete):
            raise lost(lease)
        self._rows.pop(lease.key, None)  # a heartbeat of another thread may have found that all of them are lost

    def blob(self, digest: str) -> bytes:
        self._check()
        found = self._rows_of("read", "blob", {"digest": stored_digest(digest, self.url)})
        return sound_blob(digest, bytes(found[0][0]) if found else None, self.url)

    def close(self) -> None:
        if self._closed or self._foreign:
            return
        self._closed = True
        if self._owner and self._broken is None:
            values = {"owner": self._owner, "channel": self._channel}
            try:
                self._main.call(lambda db, _: self._do(db, "unregister", values), patience=1.0)
            except psycopg.Error:  # its leases end by themselves
                pass
        self._disconnect()

    def abandon(self) -> None:
        """For tests: leave everything as the death of the process would, after its lease's time."""
        self._closed = True
        self._disconnect()
        with psycopg.connect(self.place.conninfo, autocommit=True) as db:
            db.execute(f'DELETE FROM "{self.place.schema}".owners WHERE id = %s', (self._owner,))

    # -- owners and leases -----------------------------------------------------------------------------------------

    def _live(self) -> None:
        """Be an owner that lives, under a new name if the old one is dead."""
        pid, host = process_identity()
        with self._lock:
            sent = self._clock.uptime()
            if self._owner and sent - self._beaten < trust(self.place.lease):
                return
            values = {"owner": self._owner, "pid": pid, "host": host, "term": term(self.place.lease)}
            if not self._owner or not self._rows_of("claim a run in", "heartbeat", values):
                self._late = bool(self._owner)
                self._rows.clear()
                values["owner"] = self._owner = self._clock.new_id()
                self._rows_of("claim a run in", "register", values)
            self._beaten = sent

    def _claim_dead(self, key: RunKey, values: dict[str, object]) -> list[Any]:
        """Take the run over from an owner that is dead; nothing if it changed hands in this moment. Raises
        LeaseHeld."""
        found = self._rows_of("claim a run in", "holder", values)
        if not found:
            return []
        row, epoch, owner, pid, host, since, alive = found[0]
        if alive and not (owner == self._owner and key not in self._rows):
            raise held(Lease(key, epoch, owner, pid, host, round(since, 6)))
        if not owner:
            return []
        dead = {**values, "run": row, "epoch": epoch, "dead": owner}
        self._rows_of("claim a run in", "bury", dead)
        return self._rows_of("claim a run in", "claim_dead", dead)

    def _held(self, lease: Lease) -> int | None:
        """The row of a run if the lease is one of this handle that it knows to be good."""
        row, known = self._rows.get(lease.key, (None, None))
        return row if known == lease and lease.owner == self._owner else None

    # -- statements ------------------------------------------------------------------------------------------------

    def _may_go_alone(self, item: Append) -> bool:
        """Whether nothing else than one record is to be written, and what changes with each."""
        return len(item.records) == 1 and not item.blobs and self._noted.get(item.lease.key) == looked_for(item.meta)

    def _append_one(self, item: Append, db: Connection, again: bool) -> list[PerdureError | None]:
        lease, meta, record = item.lease, item.meta, item.records[0]
        seq, told = item.seq, msgspec.json.encode(meta).decode()
        values = (self._held(lease), lease.epoch, lease.owner, seq, seq + 1, meta.status, told, len(record), record)
        cursor = psycopg.RawCursor(db).execute(self._sql["append_one"], values)
        return [None] if cursor.rowcount == 1 else self._append((item,), db, again)

    def _append(self, items: Sequence[Append], db: Connection, again: bool) -> list[PerdureError | None]:
        rows = [self._held(item.lease) for item in items]
        sent = [(item, row) for item, row in zip(items, rows, strict=True) if row is not None]
        moved: set[int] = set()
        if sent:
            text = self._appends[len(sent) == 1, any(item.blobs for item, _ in sent)]
            moved = {row for row, _ in db.execute(text, self._columns(sent)).fetchall()}
            self._noted |= {item.lease.key: looked_for(item.meta) for item, row in sent if row in moved}
        return [
            None if row in moved else self._refused(db, item, row, again) for item, row in zip(items, rows, strict=True)
        ]

    def _append_sql(self, one: bool, blobs: bool) -> str:
        text, which = self._sql["append"], "one" if one else "many"
        for part in ("rows", "records"):
            text = text.replace(f"{{{part}}}", self._sql[f"{part}_of_{which}"])
        return text.replace("{blobs}", self._sql["blobs"] if blobs else "")

    def _columns(self, sent: Sequence[tuple[Append, int]]) -> dict[str, object]:
        """What the statement "append" takes."""
        records = [(row, item.seq + n, record) for item, row in sent for n, record in enumerate(item.records, 1)]
        blobs = [(row, checked_digest(digest), content) for item, row in sent for digest, content in item.blobs.items()]
        rows = [_moved(item, row) for item, row in sent]
        moves: dict[str, object] = rows[0] if len(rows) == 1 else {"rows": msgspec.json.encode(rows).decode()}
        return {
            **moves,
            "owner": self._owner,
            "of": _numbers([row for row, _, _ in records]),
            "number": _numbers([seq for _, seq, _ in records]),
            "record": [record for _, _, record in records],
            "with": _numbers([row for row, _, _ in blobs]),
            "digest": [digest for _, digest, _ in blobs],
            "content": [content for _, _, content in blobs],
            "news": any(item.lease.key not in self._noted for item, _ in sent),
            "channel": self._channel,
        }

    def _collect(self, db: Connection, digests: Sequence[str]) -> None:
        """In a transaction that has taken blobs from a run: remove those of them that no other was given."""
        if digests:
            self._do(db, "lock_blobs", {"digests": digests})
            self._do(db, "collect", {"digests": digests})

    def _rewrite(self, new: Rewrite) -> bool:
        """See Capabilities.rewrite."""
        self._check()
        row = self._held(new.lease)
        if row is None:
            raise lost(new.lease)
        values = {"run": row, "epoch": new.lease.epoch, "owner": new.lease.owner}
        values |= {"record": list(new.records), "post": list(new.posts), "size": new.size}
        values |= {"digest": list(new.blobs), "content": list(new.blobs.values())}
        values["meta"] = msgspec.json.encode(new.meta).decode()

        def rewrite(db: Connection, again: bool) -> bool:
            with db.transaction():
                found = self._do(db, "hold", values)
                if not found:
                    raise lost(new.lease)
                if found[0] != (len(new.records), len(new.posts)):
                    return False
                self._collect(db, self._do(db, "rewrite", values)[0][0])
            return True

        return self._call("rewrite a run in", rewrite)

    def _compact(self) -> None:
        """See Capabilities.compact. The server leaves out what this user does not own, and sees to it in time."""
        self._check()
        names = ("runs", "journal", "inbox", "blobs", "refs", "snapshots")
        tables = ", ".join(f'"{self.place.schema}".{name}' for name in names)
        self._call("compact", lambda db, _: db.execute(f"VACUUM {tables}"))

    def _save_snapshot(self, lease: Lease, seq: int, content: bytes) -> None:
        """See Snapshots.save."""
        self._check()
        refuse_too_large(content)
        values = {"run": self._held(lease), "epoch": lease.epoch, "owner": lease.owner, "seq": seq, "content": content}
        if values["run"] is None or not self._rows_of("save a snapshot in", "save_snapshot", values):
            raise lost(lease)

    def _load_snapshot(self, key: RunKey) -> tuple[int, bytes] | None:
        """See Snapshots.load."""
        self._check()
        found = self._rows_of("read", "load_snapshot", {"goal": key.goal, "episode": key.episode})
        return (found[0][0], bytes(found[0][1])) if found and found[0][1] is not None else None

    def _refused(self, db: Connection, item: Append, row: int | None, again: bool) -> PerdureError | None:
        """Why an item was not taken; None if it was, and the reply of the time before was lost."""
        if row is None:
            return lost(item.lease)
        values = {"run": row, "epoch": item.lease.epoch, "owner": item.lease.owner}
        found = self._do(db, "place", values)
        if not found:
            return lost(item.lease)
        if again and found[0][0] == item.seq + len(item.records):
            return None
        return wrong_seq(item, found[0][0])

    def _row(
        self,
        row: int,
        goal: str,
        episode: int,
        meta: str,
        epoch: int,
        owner: str,
        pid: int,
        host: str,
        since: float,
        unread: int,
        size: int,
        alive: bool,
    ) -> RunMeta:
        holder = Lease(RunKey(goal, episode), epoch, owner, pid, host, round(since, 6)) if alive else None
        found = shown_row(RunKey(goal, episode), meta, self.url, self._warnings)
        return msgspec.structs.replace(found, holder=holder, unread=unread, size=size)

    def _do(self, db: Connection, name: str, values: Mapping[str, object]) -> list[Any]:
        cursor = db.execute(self._sql[name], values, binary=True)  # a record as text has twice its bytes
        return cursor.fetchall() if cursor.description else []

    def _rows_of(self, doing: str, name: str, values: Mapping[str, object]) -> list[Any]:
        return self._call(doing, lambda db, _: self._do(db, name, values))

    def _asked(self, work: Callable[[Connection, bool], T]) -> T:
        """For an audit."""
        self._check()
        return self._call("audit", work)

    def _call(self, doing: str, work: Callable[[Connection, bool], T], patience: float | None = None) -> T:
        """Do it, again if need be. A failure that stays makes this handle useless: nobody knows what it did."""
        try:
            if self._lent:
                return work(self._main.connect(), False)
            return self._main.call(work, self._patience if patience is None else patience)
        except psycopg.Error as error:
            if self._lent:  # it is rolled back, and nothing is doubtful
                raise
            self._broken = failure(doing, self.place, error)
            self._disconnect()
            raise self._broken from error

    @contextmanager
    def _lend(self, lease: Lease) -> Iterator[Transaction]:
        """See Capabilities.transaction. If the connection breaks while it is committed nobody knows what became of it,
        and the handle is of no use: the journal tells whoever reads it next."""
        self._check()
        row = self._held(lease)
        values = {"run": row, "epoch": lease.epoch, "owner": lease.owner}
        committing = False
        db = self._call("write to", lambda db, _: (db.execute("SELECT 1", prepare=False), db)[1])
        try:
            with db.transaction():
                if row is None or not self._do(db, "hold", values):
                    raise lost(lease)
                self._lent = db.patient = True
                try:
                    yield Transaction(db, partial(_check_lent, db))
                finally:
                    self._lent = db.patient = False
                committing = True
        except BaseException as error:
            self._noted.clear()  # it may have been written in what is rolled back
            if not isinstance(error, psycopg.Error):
                raise
            problem = failure("write to", self.place, error)
            if not committing or not db.closed:
                raise StoreBusy(problem.args[0], hint="All of it was rolled back; it is tried again.") from error
            self._broken = problem
            self._disconnect()
            raise problem from error

    def _disconnect(self) -> None:
        self._main.drop()
        self._pulse.drop()


def _check_lent(db: Connection, raised: Exception | None) -> None:
    db.row_factory, db.cursor_factory = tuple_row, psycopg.Cursor
    if isinstance(raised, psycopg.Error) and (db.closed or is_transient(raised)):
        raise raised  # it is the store that fails, or others that were in the way
    if raised is not None:
        return
    if db.info.transaction_status == TransactionStatus.INERROR:
        raise ConfigError(
            "A transactional step caught the error of a statement, after which its transaction can only be rolled "
            "back.",
            hint="Execute what may fail inside of: with connection.transaction().",
        )
    if db.info.transaction_status != TransactionStatus.INTRANS:
        raise ended_by_others()
    db.execute("SET CONSTRAINTS ALL IMMEDIATE", prepare=False)


def _moved(item: Append, row: int) -> dict[str, object]:
    """What the row of a run says after an append."""
    meta = item.meta
    last = item.seq + len(item.records)
    return {
        "run": row,
        "epoch": item.lease.epoch,
        "seq": item.seq,
        "last": last,
        "status": meta.status,
        "meta": msgspec.json.encode(meta).decode() if last else "",
        "taken": meta.posts,
        "wake": meta.wake,
        "begun": meta.begun,
        "flow": meta.flow,
        "queue": meta.queue,
        "priority": meta.priority,
        "grown": item.size,
    }


def _numbers(numbers: Sequence[int]) -> str:
    """As the server reads an array: the driver takes longer over each number than over all of this."""
    return f"{{{','.join(map(str, numbers))}}}"


def _rounds(batch: Sequence[Append]) -> Iterator[list[Append]]:
    """Parts of a batch in which no run comes twice: a statement moves a row once."""
    part: list[Append] = []
    seen: set[RunKey] = set()
    for item in batch:
        if item.lease.key in seen:
            yield part
            part, seen = [], set()
        part.append(item)
        seen.add(item.lease.key)
    if part:
        yield part
