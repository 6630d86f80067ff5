"""Runs in Redis or Valkey.

**Leases.** A handle is an owner: a random name, and a key ``owner:<name>`` that expires unless a heartbeat renews it.
The name is never used again once its key is gone, so "the key is absent" means dead for good. A claim may therefore
look whether the holder lives and compare-and-set the run's (epoch, owner) afterwards, without both being one step. All
times are the server's.

**Writes.** A run is four keys in one slot: a hash (holder, last sequence, row for listings), the list of its records,
its inbox, its snapshot. Each change of them is one script, which compares epoch, owner and sequence first: the fence. A
batch is one round trip; one more when the index is to be narrowed, two more for items with blobs, which must be stored
neither for a stale lease nor after the records that refer to them.

**Lost replies.** See ``redis_link``. What is sent again finds its own work: an append compares what stands at its place
with its records, a post likewise; a lease in our name that we do not know of is granted anew.

**Listings.** The index lies in another slot, and what it finds is looked at in the runs' rows: see ``lua/index.lua``
and ``redis_look``. A post is announced there before it is made, and the announcement is removed only when the journal
has that post.

Rejected: one key space per run found by SCAN (each listing reads everything); RedLock (a lease without a fence).
Doubtful: when a replica takes over, what it lacks of acknowledged writes is lost, whatever is set.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

import msgspec

from perdure.clock import SYSTEM, Clock, process_identity
from perdure.errors import CorruptStore, LeaseLost, PerdureError, StoreError
from perdure.limits import MAX_BLOB
from perdure.model import Lease, RunKey, RunMeta
from perdure.stores import redis_setup
from perdure.stores.base import EVERY, Append, Capabilities, Rewrite, Ring, Snapshots, Which
from perdure.stores.expiring import term, trust
from perdure.stores.handle import (
    Handle,
    checked_digest,
    damaged_row,
    held,
    lost,
    missing_records,
    not_found,
    shown_row,
    sound_blob,
    stored_digest,
)
from perdure.stores.redis_audit import RedisAudit
from perdure.stores.redis_batch import Batch, Note, Results, blobs_to_store
from perdure.stores.redis_keys import FIELDS, Keys, Row, damaged, mark_of, member
from perdure.stores.redis_link import FAILURES, Command, Link, unusable
from perdure.stores.redis_look import Look
from perdure.stores.redis_news import Listener
from perdure.stores.redis_url import target
from perdure.stores.snapshots import HEAD, packed, refuse_too_large, unpacked

_T = TypeVar("_T")
_OPENING: Final = 5.0
"""seconds that an opening waits for a server that is away"""
_CHUNK: Final = 500
"""rows that are asked for together"""
_GONE: Final = 2**53 - 1
"""sequence of a deleted run in the index: after all that any epoch could still say"""


class RedisStore(Handle):
    """A Store in Redis or Valkey. See base.Store for what the verbs promise.

    ``patience``: seconds for which a verb tries to reach a server that is away, before the store has failed.
    ``create=False`` raises ConfigError when there is no store under the URL's prefix, and makes nothing.
    """

    def __init__(self, url: str, *, create: bool = True, clock: Clock = SYSTEM, patience: float = 30.0) -> None:
        self._target = target(url)
        super().__init__(self._target.shown, clock)
        self._patience = patience
        self._keys = Keys(self._target.prefix)
        self._lock = threading.Lock()
        """for what a heartbeat changes: owner, leases, late"""
        self._owner: str | None = None
        self._leases: dict[RunKey, Lease] = {}
        self._late = False
        """leases were lost, and no heartbeat has said so yet"""
        self._noted: dict[RunKey, Note] = {}
        """what the index says of runs that this handle appended to"""
        self._listeners: list[Listener] = []
        pid, host = process_identity()
        self._identity = msgspec.json.encode({"pid": pid, "host": host})
        self._link = Link(self._target, self._keys, clock)
        try:
            durable = self._open(create, min(patience, _OPENING))
        except BaseException as error:
            self._link.close()
            if isinstance(error, StoreError):
                raise unusable(error) from error.__cause__
            raise
        lease = self._target.lease
        self.capabilities = Capabilities(
            durable=durable,
            shared=True,
            compress=True,
            lease=lease,
            trust=trust(lease),
            listen=self._listen,
            rewrite=self._rewrite,
            snapshots=Snapshots(self._save_snapshot, self._load_snapshot),
            audit=RedisAudit(self._link, self._keys, self._audit, self.claim, self.release, clock).audit(),
        )

    def _open(self, create: bool, patience: float) -> bool:
        def attempt(_: bool) -> tuple[bool, list[str]]:
            redis_setup.prepare(self._link, self._keys, create)
            return redis_setup.durability(self._link, self._target.waitaof)

        durable, self._warnings = self._link.until_answered("open", patience, attempt)
        return durable

    # -- leases ----------------------------------------------------------------------------------------------------

    def claim(self, key: RunKey) -> Lease:
        self._check()
        while True:
            owner, row = self._tried("claim a run in", lambda _: self._look(key))
            if row.lease.owner and self._lives(row.lease, owner):
                raise held(row.lease)
            lease = self._grant(key, owner, row.lease)
            if lease is not None:
                return lease

    def heartbeat(self) -> float:
        self._check()
        owner = self._owner
        renewal = [self._renew(owner)] if owner is not None else []
        try:
            *renewed, (seconds, micros) = self._link.ask([*renewal, ("TIME",)], quick=True)
        except FAILURES as error:
            raise self._link.busy("say that this process lives to", error) from error
        expired = owner if renewed and not renewed[0] else None
        if self._late or expired is not None:
            self._forget(expired)
            raise LeaseLost(
                f"This process could not say in time that it lives: all its leases in {self.url} have ended, and "
                "nothing more of it is kept.",
                hint="Its runs are free: they go on when somebody takes them up.",
            )
        return float(f"{seconds}.{micros:06}")

    def release(self, lease: Lease) -> None:
        self._check()
        if self._leases.get(lease.key) != lease:
            return
        command = self._link.call("release", [self._keys.run(lease.key)], lease.epoch, lease.owner, self._keys.news)
        found = self._ask("release a run in", [command])[0]
        self._drop(lease)
        if found:
            seq, begun = found
            rest = self._link.index("rest", member(lease.key), lease.epoch, seq, begun)
            self._ask("release a run in", [rest])

    # -- records -----------------------------------------------------------------------------------------------------

    def append(self, batch: Sequence[Append]) -> list[PerdureError | None]:
        self._check()
        results: Results = [
            None if self._leases.get(item.lease.key) == item.lease else lost(item.lease) for item in batch
        ]
        if any(item.blobs for item in batch):
            self._store_blobs(batch, results)
        places = [place for place, problem in enumerate(results) if problem is None]
        if places:
            sent = Batch(self._link, self._keys, [batch[place] for place in places], self._noted)
            for place, result in zip(places, self._tried("append to", sent.send), strict=True):
                results[place] = result
            if sent.narrow:
                self._ask("append to", sent.narrow)
            self._noted |= sent.noted
            for key in sent.refused:
                self._noted.pop(key, None)
        return results

    def read(self, key: RunKey, after: int = 0, most: int | None = None) -> list[bytes]:
        self._check()
        journal = self._keys.journal(key)
        commands: list[Command] = [
            ("HGET", self._keys.run(key), "seq"),
            ("LLEN", journal),
            ("LRANGE", journal, after, -1 if most is None else after + most - 1),
        ]
        seq, found, lines = self._ask("read", commands, atomic=True)
        if found != int(seq or 0):
            raise missing_records(self.url, key, found, int(seq or 0))
        return list(lines)

    def blob(self, digest: str) -> bytes:
        self._check()
        key = self._keys.blob(stored_digest(digest, self.url))
        bounded: Command = ("GETRANGE", key, 0, MAX_BLOB)  # a byte more than it may have
        there, found = self._ask("read", [("EXISTS", key), bounded])
        return sound_blob(digest, found if there else None, self.url)

    def delete(self, lease: Lease) -> None:
        self._check()
        key = lease.key
        if self._leases.get(key) != lease:
            raise lost(lease)
        run = self._keys.all_of_run(key)

        def attempt(again: bool) -> bool:
            command = self._link.call("delete", run, lease.epoch, lease.owner, int(again))
            return bool(self._link.ask([command], synced=True)[0])

        gone = self._tried("delete a run from", attempt)
        self._drop(lease)
        if not gone:
            raise lost(lease)
        forget = self._link.index("forget", member(key), lease.epoch, _GONE)
        self._ask("delete a run from", [forget])
        self._collect("delete a run from", lease)

    # -- listings and inboxes ----------------------------------------------------------------------------------------

    def runs(self, which: Which = EVERY) -> list[RunMeta]:
        self._check()
        alive: dict[str, bool] = {"": False}
        return Look(
            self._link,
            self._keys,
            which,
            lambda commands: self._ask("read", commands),
            lambda keys: self._rows(keys, alive),
        ).found()

    def post(self, key: RunKey, number: int, record: bytes) -> bool:
        self._check()
        run, inbox = self._keys.run(key), self._keys.inbox(key)
        look: list[Command] = [("HGET", run, "seq"), ("LLEN", inbox)]
        seq, count = self._ask("post to", look)
        taken = 0
        if not int(seq or 0):
            raise not_found(key, self.url)
        if count == number - 1:  # else it is not announced: nobody could take that back
            announce = self._link.index("post", member(key), number)

            def attempt(again: bool) -> int:
                post = self._link.call("post", [run, inbox], number, record, int(again), self._keys.news)
                return int(self._link.ask([announce, post], synced=True)[1])

            taken = self._tried("post to", attempt)
        if taken < 0:
            raise not_found(key, self.url)
        return taken == 1

    def posts(self, after: Mapping[RunKey, int]) -> dict[RunKey, list[bytes]]:
        self._check()
        found: dict[RunKey, list[bytes]] = {}
        for some in _parts(list(after)):
            commands = [
                self._link.call("posts", [self._keys.run(key), self._keys.inbox(key)], after[key]) for key in some
            ]
            replies = self._ask("read", commands)
            for key, (count, lines) in zip(some, replies, strict=True):
                if len(lines) != max(int(count) - after[key], 0):
                    raise damaged(self.url, f"posts of run {key} are missing")
                if lines:
                    found[key] = lines
        return found

    # -- the end -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        if self._closed or self._foreign:
            return
        self._closed = True
        self._hush()
        if self._owner is not None:
            parting: list[Command] = [("DEL", self._keys.owner(self._owner))]
            if self._leases:
                parting.append(("PUBLISH", self._keys.news, ""))
            with suppress(*FAILURES):  # it expires by itself
                self._link.ask(parting, quick=True)
        self._link.close()

    def abandon(self) -> None:
        """For tests: what the death of the process leaves, after its lease's time."""
        self._closed = True
        self._hush()
        self._link.close()
        if self._owner is not None:
            with self._link.connect(self._target.answer, self._target.connect) as other:
                other.delete(self._keys.owner(self._owner))
                other.connection_pool.disconnect()

    # -- owners and claims ---------------------------------------------------------------------------------------------

    def _look(self, key: RunKey) -> tuple[str, Row]:
        """This handle's owner, alive for a term from now on, and the run's row."""
        row: Command = ("HMGET", self._keys.run(key), *FIELDS)
        owner = self._owner
        if owner is not None:
            renewed, values = self._link.ask([self._renew(owner), row])
            if renewed:
                return owner, Row.of(key, values, self.url)
            with self._lock:
                if self._owner == owner:
                    self._owner, self._late = None, self._late or bool(self._leases)
                    self._leases = {}
        owner = self._clock.new_id()  # another one each time: a name whose key is gone never comes back
        values = self._link.ask([self._renew(owner, "NX"), row])[1]
        with self._lock:
            self._owner = owner
        return owner, Row.of(key, values, self.url)

    def _renew(self, owner: str, condition: str = "XX") -> Command:
        term_ms = int(term(self._target.lease) * 1000)
        return ("SET", self._keys.owner(owner), self._identity, "PX", term_ms, condition)

    def _lives(self, lease: Lease, owner: str) -> bool:
        """Whether somebody holds the run under this lease. One of ours that we do not know of was granted to us, and
        the reply was lost."""
        if lease.owner == owner:
            known = self._leases.get(lease.key)
            return known is not None and known.epoch == lease.epoch
        return bool(self._ask("claim a run in", [("EXISTS", self._keys.owner(lease.owner))])[0])

    def _grant(self, key: RunKey, owner: str, seen: Lease) -> Lease | None:
        """Take the run as it was seen. None if it has changed since."""
        pid, host = process_identity()
        epoch = seen.epoch + 1
        commands = [
            self._link.index("enter", member(key), epoch, 0),
            self._link.call("claim", [self._keys.run(key)], seen.epoch, seen.owner, owner, pid, host),
        ]
        since = self._ask("claim a run in", commands)[1]
        if since is None:
            return None
        lease = Lease(key, epoch, owner, pid, host, float(since))
        with self._lock:
            if self._owner != owner:  # a heartbeat has found meanwhile that it was too late
                return None
            self._leases[key] = lease
        self._noted.pop(key, None)
        return lease

    def _forget(self, expired: str | None) -> None:
        """All leases are lost, those too that were granted after the loss and before anybody was told of it."""
        with self._lock:
            owner, self._owner, self._late, self._leases = self._owner, None, False, {}
        if owner not in (None, expired):
            with suppress(*FAILURES):  # it expires by itself
                self._link.ask([("DEL", self._keys.owner(str(owner)))], quick=True)

    def _drop(self, lease: Lease) -> None:
        with self._lock:
            if self._leases.get(lease.key) == lease:
                del self._leases[lease.key]

    # -- blobs ---------------------------------------------------------------------------------------------------------

    def _store_blobs(self, batch: Sequence[Append], results: Results) -> None:
        """Store what the records will refer to, before them, and nothing for a lease that is stale by now."""
        runs = {item.lease.key for item, problem in zip(batch, results, strict=True) if item.blobs and problem is None}
        rows = {row.lease.key: row for row in self._fetch("append to", sorted(runs))}
        blobs = blobs_to_store(batch, results, rows)
        if blobs:
            self._ask("append to", [command for blob in blobs for command in self._keep(*blob)])

    def _keep(self, lease: Lease, digest: str, content: bytes) -> list[Command]:
        """Store a blob, and that a run was given it under this lease: its mark is of no run that is made later under
        the same name. What a lost lease or a crash leaves of it goes with the run."""
        keys, mark = self._keys, f"{digest}:{lease.epoch}"
        keep = self._link.call(
            "keep", [keys.blob(digest), keys.marks(digest)], content, mark_of(lease.key, lease.epoch)
        )
        return [("SADD", keys.given(lease.key), mark), keep]

    def _collect(self, doing: str, lease: Lease, kept: Collection[str] = ()) -> None:
        """Take from a run what it was given so far, but for what was ``kept`` under this lease, and remove that of it
        which no other was given."""
        given = self._keys.given(lease.key)
        marks = {mark.decode() for mark in self._ask(doing, [("SMEMBERS", given)])[0]}
        for some in _parts(sorted(marks - {f"{digest}:{lease.epoch}" for digest in kept})):
            commands: list[Command] = []
            gone = []
            for mark in some:
                digest, _, epoch = mark.partition(":")
                if int(epoch) <= lease.epoch:
                    keys = [self._keys.blob(digest), self._keys.marks(digest)]
                    commands.append(self._link.call("drop", keys, mark_of(lease.key, int(epoch))))
                    gone.append(mark)
            if gone:
                self._ask(doing, commands)
                self._ask(doing, [("SREM", given, *gone)])

    def _rewrite(self, new: Rewrite) -> bool:
        """See Capabilities.rewrite."""
        self._check()
        key, lease, doing = new.lease.key, new.lease, "rewrite a run in"
        if self._leases.get(key) != lease:
            raise lost(lease)
        run = self._keys.all_of_run(key)
        row, inbox = self._ask(doing, [("HMGET", run[0], "epoch", "seq"), ("LLEN", run[2])])
        if row[0] is None or int(row[0]) != lease.epoch:
            raise lost(lease)
        if (int(row[1] or 0), inbox) != (len(new.records), len(new.posts)):
            return False
        for digest, content in new.blobs.items():
            self._ask(doing, self._keep(lease, checked_digest(digest), content))
        self._collect(doing, lease, new.blobs)  # before the records: they tell that all is done
        command = self._link.call(
            *("rewrite", run, lease.epoch, lease.owner),
            *(msgspec.json.encode(new.meta), new.size, len(new.records)),
            *(*new.records, *new.posts),
        )
        done = self._tried(doing, lambda _: self._link.ask([command], synced=True)[0])
        if done < 0:
            raise lost(lease)
        return bool(done)

    def _save_snapshot(self, lease: Lease, seq: int, content: bytes) -> None:
        """See Snapshots.save. It waits for no append-only file."""
        self._check()
        refuse_too_large(content)
        if self._leases.get(lease.key) != lease:
            raise lost(lease)
        keys = [self._keys.run(lease.key), self._keys.snapshot(lease.key)]
        command = self._link.call("snapshot", keys, lease.epoch, lease.owner, packed(seq, content))
        if not self._ask("save a snapshot in", [command])[0]:
            raise lost(lease)

    def _load_snapshot(self, key: RunKey) -> tuple[int, bytes] | None:
        """See Snapshots.load."""
        self._check()
        bounded: Command = ("GETRANGE", self._keys.snapshot(key), 0, MAX_BLOB + HEAD)
        return unpacked(self._ask("read", [bounded])[0])

    # -- listing -------------------------------------------------------------------------------------------------------

    def _rows(self, keys: Sequence[RunKey], alive: dict[str, bool]) -> Iterator[RunMeta]:
        """Rows as listings show them; one that is damaged hides no other."""
        damaged, rows = [], []
        for key, values in zip(keys, self._values("read", keys), strict=True):
            try:
                rows.append(Row.of(key, values, self.url))
            except CorruptStore as damage:
                damaged.append(damaged_row(key, self.url, damage.args[0]))
                self._warnings.append(damaged[-1].reason)
        rows = [row for row in rows if row.seq]
        unknown = sorted({row.lease.owner for row in rows} - alive.keys())
        if unknown:
            asked: list[Command] = [("EXISTS", self._keys.owner(owner)) for owner in unknown]
            alive |= zip(unknown, map(bool, self._ask("read", asked)), strict=True)
        yield from damaged
        for row in rows:
            meta = shown_row(row.lease.key, row.meta, self.url, self._warnings)
            holder = row.lease if alive[row.lease.owner] else None
            yield msgspec.structs.replace(meta, holder=holder, unread=max(row.posts - meta.posts, 0), size=row.size)

    def _fetch(self, doing: str, keys: Sequence[RunKey]) -> list[Row]:
        return [Row.of(key, row, self.url) for key, row in zip(keys, self._values(doing, keys), strict=True)]

    def _values(self, doing: str, keys: Sequence[RunKey]) -> list[Sequence[bytes | None]]:
        commands: list[Command] = [("HMGET", self._keys.run(key), *FIELDS) for key in keys]
        return self._ask(doing, commands) if commands else []

    # -- news and failures ---------------------------------------------------------------------------------------------

    def _listen(self, ring: Ring) -> Callable[[], None]:
        self._check()
        listener = Listener(
            lambda: self._link.connect(self._target.answer, self._target.connect), self._keys.news, ring, self._clock
        )
        self._listeners.append(listener)
        return listener.stop

    def _hush(self) -> None:
        for listener in self._listeners:
            listener.stop()

    def _audit(self, commands: Sequence[Command]) -> list[Any]:
        self._check()
        return self._ask("audit", commands)

    def _ask(self, doing: str, commands: Sequence[Command], atomic: bool = False) -> list[Any]:
        """The replies to commands that may be sent again as they are."""
        return self._tried(doing, lambda _: self._link.ask(commands, atomic=atomic))

    def _tried(self, doing: str, attempt: Callable[[bool], _T]) -> _T:
        """What ``attempt`` returns once the server answers. When it does not, the handle is of no use (rel:D4)."""
        try:
            return self._link.until_answered(doing, self._patience, attempt)
        except StoreError as failure:
            self._broken = failure
            self._link.close()
            raise


def _parts(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    return (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))
