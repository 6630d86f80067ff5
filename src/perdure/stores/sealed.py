"""A store whose records, posts, blobs and rows are encrypted: a wrapper over any other.

Encrypted stand all entries of journals and inboxes, all blobs, and all of a run's row but what the store looks for. In
clear stay: goal and episode, the flow's name, status, dates, queue and priority, numbers of records and posts, sizes,
the name of the step that a run is at (``hide_names`` makes it a hash), and who holds it. An entry is one record::

    {"kind": "sealed/1", "seq": 7, "key": "2026", "data": "<base64 of nonce and ciphertext>"}

so that sequence, checksum and torn tails are what they were. How a store is encrypted stands in a run of our own
(``MARK``): its random id, ids and check values of its keys. Whoever opens the store looks there first, and is refused
before anything is written if a key is missing, or another one. A new key becomes one of the store's when a run is
claimed or posted to, not before: whoever only looks may have a key that nobody keeps, and nobody would get in again.

Once a store is encrypted, what stands in it in clear is an error, never data; but while it is being encrypted for the
first time (``migrating``) both may stand side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import msgspec
from msgspec.structs import replace

from perdure.errors import ConfigError, CorruptStore, PerdureError
from perdure.fold import summarise as fold_summary
from perdure.framing import frame, unframe
from perdure.model import OWN, Lease, RunKey, RunMeta
from perdure.stores.base import EVERY, Append, Capabilities, Rewrite, Snapshots, Store, Summarise, Which
from perdure.stores.encryption import MARK, Encryption
from perdure.stores.handle import damaged_row, sound_blob
from perdure.stores.seal import Seal, from_text, refuse_wrong_key, to_text
from perdure.stores.sealed_header import Header, add_key, begin_header, migrate_again, planned_header, read_header
from perdure.stores.snapshots import refuse_too_large

_IN_CLEAR: Final = (
    *("goal", "episode", "status", "flow", "created", "updated", "seq"),
    *("wake", "begun", "queue", "priority", "posts"),
)
"""fields of a row that stores look for, and dates"""


class _Entry(msgspec.Struct, frozen=True, tag_field="kind", tag="sealed/1"):
    seq: int
    key: str
    data: str


class _Row(msgspec.Struct, frozen=True):
    """The part of a row that only those with the key can read."""

    key: str
    data: str


class SealedStore:
    """``inner``, encrypted. See base.Store for what the verbs promise."""

    def __init__(self, inner: Store, encryption: Encryption, header: Header, rows: Summarise = fold_summary) -> None:
        self.inner, self.header = inner, header
        self.url = inner.url
        self._encryption, self._rows = encryption, rows
        self._seal = Seal(header.store, encryption)
        self._warnings: list[str] = []
        header.check(self._seal, self.url)

    @property
    def capabilities(self) -> Capabilities:
        can = self.inner.capabilities
        audit = can.audit and can.audit._replace(names=self._names)
        snapshots = can.snapshots and Snapshots(self._save_snapshot, self._load_snapshot)
        rewrite = can.rewrite and self._rewrite
        return replace(
            can, encrypted=True, compress=True, outputs=None, rewrite=rewrite, snapshots=snapshots, audit=audit
        )

    # -- the verbs -------------------------------------------------------------------------------------------------

    def claim(self, key: RunKey) -> Lease:
        self.begin_key()
        return self.inner.claim(key)

    def heartbeat(self) -> float:
        return self.inner.heartbeat()

    def release(self, lease: Lease) -> None:
        self.inner.release(lease)

    def append(self, batch: Sequence[Append]) -> list[PerdureError | None]:
        return self.inner.append(
            [
                Append(
                    item.lease,
                    item.seq,
                    self._sealed("record", item.lease.key, item.seq, item.records),
                    self._hidden(item.meta),
                    self._sealed_blobs(item.blobs),
                )
                for item in batch
            ]
        )

    def read(self, key: RunKey, after: int = 0, most: int | None = None) -> list[bytes]:
        return self._opened("record", key, after, self.inner.read(key, after, most))

    def runs(self, which: Which = EVERY) -> list[RunMeta]:
        more = replace(which, limit=which.limit + 1) if which.limit else which  # the mark may be among them
        rows = [self._shown(row) for row in self.inner.runs(more) if row.key != MARK]
        return rows[: which.limit] if which.limit else rows

    def post(self, key: RunKey, number: int, record: bytes) -> bool:
        self.begin_key()
        return self.inner.post(key, number, self._sealed("post", key, number - 1, (record,))[0])

    def posts(self, after: Mapping[RunKey, int]) -> dict[RunKey, list[bytes]]:
        found = self.inner.posts(after)
        return {key: self._opened("post", key, after[key], lines) for key, lines in found.items()}

    def delete(self, lease: Lease) -> None:
        self.inner.delete(lease)

    def _names(self, digest: str) -> set[str]:
        """See Audit.names: no name under a key that we do not have is of a blob that our records need."""
        names = {digest} if self.header.migrating else set()
        for key in self.header.keys:
            with suppress(ConfigError):
                names.add(self._seal.name(key, digest))
        return names

    def blob(self, digest: str) -> bytes:
        write, retired = self._seal.write, self.header.retired
        problem: PerdureError | None = None
        for key in sorted(self.header.keys, key=lambda key: (key != write, key in retired)):
            try:
                content = self._seal.decrypt_blob(digest, self.inner.blob(self._seal.name(key, digest)))
                return sound_blob(digest, content, self.url)
            except CorruptStore as error:
                problem = problem or error
            except ConfigError:  # a key that was retired, and is not needed
                continue
        if self.header.migrating:
            return self.inner.blob(digest)
        assert problem is not None
        raise problem

    def warnings(self) -> list[str]:
        mine, self._warnings = self._warnings, []
        return mine + self.inner.warnings()

    def close(self) -> None:
        self.inner.close()

    # -- for rotation ----------------------------------------------------------------------------------------------

    def begin_key(self) -> None:
        """The key for writing is one of the store's from now on. Raises ConfigError for a wrong one."""
        if not self.header.has(self._seal.write):
            begin = add_key if self.header.keys else partial(begin_header, migrate=True)
            self.header = begin(self.inner, self._encryption)
            self._seal = Seal(self.header.store, self._encryption)

    def migrate_again(self) -> None:
        """What stands in clear is data once more, until all is encrypted."""
        if not self.header.migrating:
            self.header = migrate_again(self.inner, self._encryption)

    def keys_of(self, row: RunMeta) -> set[str]:
        """Ids of the keys under which a run's records and posts stand; "" for what stands in clear. ``row``: as
        ``inner`` shows it."""
        lines = self.inner.read(row.key) + self.inner.posts({row.key: 0}).get(row.key, [])
        found = {_sealed_entry(unframe(row.key, line)) for line in lines}
        return {entry.key if entry else "" for entry in found} | {_sealed_row(row).key if row.sealed else ""}

    def summarise(self, key: RunKey, lines: list[bytes]) -> RunMeta:
        """The row of a run from its records as they stand in ``inner``, where rows are a cache."""
        if key == MARK:
            return fold_summary(key, lines)
        return self._hidden(self._rows(key, self._opened("record", key, 0, lines)))

    # -- records and rows --------------------------------------------------------------------------------------------

    def _sealed(self, kind: str, key: RunKey, after: int, lines: Sequence[bytes]) -> tuple[bytes, ...]:
        return tuple(self._sealed_line(kind, key, number, line) for number, line in enumerate(lines, after + 1))

    def _sealed_line(self, kind: str, key: RunKey, number: int, line: bytes) -> bytes:
        data = self._seal.encrypt(kind, key, number, unframe(key, line))
        return frame(key, msgspec.json.encode(_Entry(number, self._seal.write, to_text(data))))

    def _opened(self, kind: str, key: RunKey, after: int, lines: Sequence[bytes]) -> list[bytes]:
        return [self._opened_line(kind, key, number, line) for number, line in enumerate(lines, after + 1)]

    def _opened_line(self, kind: str, key: RunKey, number: int, line: bytes) -> bytes:
        try:
            entry = _sealed_entry(unframe(key, line))
            if entry is not None:
                self._know(entry.key)
            data = from_text(entry.data) if entry is not None else b""
        except PerdureError:
            raise
        except (ValueError, msgspec.MsgspecError) as problem:
            raise CorruptStore(
                f"run {key}: {kind} {number} is damaged ({problem}). Nothing was changed.",
                hint="Restore the store from a copy.",
            ) from problem
        if entry is not None:
            return frame(key, self._seal.decrypt(entry.key, kind, key, number, data))
        if self.header.migrating:
            return line
        raise CorruptStore(
            f"run {key}: {kind} {number} stands in clear in {self.url}, which is encrypted. It is not used, and "
            "nothing was changed.",
            hint="If a process wrote it that has been running since before the store was encrypted: end that, and "
            "perdure rekey --encrypt takes it in. Else somebody without the key has written to this store: restore it "
            "from a copy.",
        )

    def _know(self, key: str) -> None:
        """Raises ValueError unless the key is one of the store's. Others may have added it since we looked."""
        if key not in self.header.keys:
            self.header = read_header(self.inner) or self.header
            self.header.check(self._seal, self.url)
        if key not in self.header.keys and key != self._seal.write:
            raise ValueError(f"it names a key {key[:40]!r} that this store does not know")
        if key in self.header.retired:
            refuse_wrong_key(self._seal, key, self.header.keys[key], self.url)

    def _hidden(self, meta: RunMeta) -> RunMeta:
        """A row as the store has it."""
        data = self._seal.encrypt("row", meta.key, meta.seq, msgspec.json.encode(meta))
        shown = {field: getattr(meta, field) for field in _IN_CLEAR}
        current = self._seal.hide(meta.current) if self.header.hide_names else meta.current
        return RunMeta(**shown, current=current, sealed=f"{self._seal.write}:{to_text(data)}")

    def _shown(self, row: RunMeta) -> RunMeta:
        """A row as it was. What cannot be opened shows as damaged, so that the others show."""
        if not row.sealed and self.header.migrating:
            return row
        try:
            sealed = _sealed_row(row)
            self._know(sealed.key)
            plain = self._seal.decrypt(sealed.key, "row", row.key, row.seq, from_text(sealed.data))
            found = msgspec.json.decode(plain, type=RunMeta)
            if any(getattr(found, field) != getattr(row, field) for field in _IN_CLEAR):
                raise ValueError("it was changed")
        except (ValueError, msgspec.MsgspecError, CorruptStore, ConfigError) as problem:
            found = damaged_row(row.key, self.url, str(problem))
            self._warnings.append(found.reason)
        return replace(found, holder=row.holder, unread=row.unread, size=row.size)

    def _sealed_blobs(self, blobs: Mapping[str, bytes]) -> dict[str, bytes]:
        write = self._seal.write
        return {self._seal.name(write, digest): self._seal.encrypt_blob(digest, c) for digest, c in blobs.items()}

    def _save_snapshot(self, lease: Lease, seq: int, content: bytes) -> None:
        """See Snapshots.save."""
        inner = self.inner.capabilities.snapshots
        assert inner is not None
        refuse_too_large(content)
        inner.save(lease, seq, self._seal.encrypt_snapshot(lease.key, seq, content))

    def _load_snapshot(self, key: RunKey) -> tuple[int, bytes] | None:
        """See Snapshots.load. What does not belong there is none: it is not worth an error."""
        inner = self.inner.capabilities.snapshots
        assert inner is not None
        found = inner.load(key)
        if found is None:
            return None
        seq, data = found
        name, _, body = data.partition(b"\n")
        try:
            self._know(name.decode())
            return seq, self._seal.decrypt(name.decode(), "snapshot", key, seq, body)
        except (CorruptStore, ValueError):  # in clear, another run's, changed, or under a key that is not to be had
            return None

    def _rewrite(self, new: Rewrite) -> bool:
        rewrite = self.inner.capabilities.rewrite
        assert rewrite is not None
        key = new.lease.key
        return rewrite(
            Rewrite(
                new.lease,
                self._sealed("record", key, 0, new.records),
                self._sealed("post", key, 0, new.posts),
                self._hidden(new.meta),
                self._sealed_blobs(new.blobs),
            )
        )


def _sealed_entry(entry: bytes) -> _Entry | None:
    """None for an entry in clear. Raises msgspec's errors for a damaged one."""
    return msgspec.json.decode(entry, type=_Entry) if entry.startswith(b'{"kind":"sealed/') else None


def _sealed_row(row: RunMeta) -> _Row:
    """Raises ValueError for a row in clear."""
    key, colon, data = row.sealed.partition(":")
    if not colon:
        raise ValueError("it stands in clear in a store that is encrypted")
    return _Row(key, data)


def sealed(
    store: Store, encryption: Encryption, *, create: bool, migrate: bool = False, rows: Summarise = fold_summary
) -> Store:
    """``store`` as those see it who have the keys; encrypted from now on if it is empty, or with ``migrate``.

    Raises ConfigError (another key, a key is missing, runs stand in clear), CorruptStore.
    """
    header = read_header(store)
    if header is None:
        if not migrate and _any_runs(store):
            raise ConfigError(
                f"{store.url} is not encrypted, and an encryption key is set. Nothing was changed.",
                hint="Encrypt what is there with: perdure rekey --encrypt. Or unset PERDURE_KEY.",
            )
        if not (create or migrate):
            return store
        header = begin_header(store, encryption, migrate) if create else planned_header(encryption)
    header.check(Seal(header.store, encryption), store.url)
    return SealedStore(store, encryption, header, rows)


def _any_runs(store: Store) -> bool:
    return bool(store.runs(Which(after=RunKey(f"{OWN}\U0010ffff"), limit=1)))
