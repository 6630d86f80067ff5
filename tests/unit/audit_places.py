"""Stores to audit, and what another program, a failing device or a careless person does to them."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import apsw
import msgspec
import psycopg
import redis

import perdure
from perdure import journal as j
from perdure.errors import RunSuspended
from perdure.fold import fold
from perdure.framing import frame
from perdure.model import RunKey
from perdure.runtime.audit import Auditor, Counts
from perdure.stores import open_store
from perdure.stores.base import Append, Store
from perdure.stores.findings import Copies, Finding
from perdure.stores.memory import MemoryBackend, MemoryStore
from perdure.stores.redis_keys import Keys, member

KINDS = ("memory", "file", "sqlite", "postgres", "redis")
RUN = RunKey("paper 17")
"""completed; its output, and that of its first step, are blobs"""
ASKING = RunKey("asking")
"""it waits for an answer, and has taken a signal"""
LARGE = "large " * 3000
ORPHAN = b"nobody's"
ORPHANS_NAME = hashlib.sha256(ORPHAN).hexdigest()


@perdure.step
def write(topic: str) -> str:
    return LARGE + topic


@perdure.step
def count(text: str) -> int:
    return len(text)


@perdure.flow
def essay(topic: str) -> list[Any]:
    return [perdure.map(write, [topic, "side"])[0], {"count": count(topic), "nested": (LARGE,)}]


@perdure.flow
def asks() -> bool:
    perdure.signal("go")
    return perdure.ask("Go on?", answer=bool, deadline=timedelta(days=9))


@perdure.step
def stumble() -> str:
    raise ValueError("no")


@perdure.flow
def fails() -> str:
    return stumble()


class Place:
    """A store of one kind, and how to get at what it keeps behind its back."""

    def __init__(self, kind: str, folder: Path, server: str) -> None:
        self.kind, self.folder = kind, folder
        name = "t" + hashlib.sha256(bytes(folder)).hexdigest()[:20]
        self.schema = name
        self.url = {
            "memory": "memory:",
            "file": f"file:{folder}/store",
            "sqlite": f"sqlite:{folder}/runs.db",
            "postgres": f"{server}?schema={name}",
            "redis": f"{server}?prefix={name}",
        }[kind]
        self.server, self.keys, self.backend = server, Keys(name), MemoryBackend()

    def open(self) -> Store:
        return MemoryStore(self.backend) if self.kind == "memory" else open_store(self.url)

    def audit(self, *, repair: bool = False, run: RunKey | None = None) -> tuple[list[Finding], Counts]:
        store = self.open()
        try:
            auditor = Auditor(store, keep=Copies(self.copies) if repair else None)
            return list(auditor.run(run) if run else auditor.everything()), auditor.counts
        finally:
            store.close()

    def kinds(self) -> set[str]:
        return {finding.kind for finding in self.audit()[0]}

    @property
    def copies(self) -> Path:
        return self.folder / "copies"

    def kept(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted(self.copies.rglob("*")) if path.is_file()]

    # -- behind its back -------------------------------------------------------------------------------------------

    @property
    def root(self) -> Path:
        return self.folder / "store"

    def run_file(self, name: str, key: RunKey = RUN) -> Path:
        (found,) = (path for path in (self.root / "runs").iterdir() if self._is(path, key))
        return found / name

    def _is(self, path: Path, key: RunKey) -> bool:
        whose = msgspec.json.decode((path / "run.json").read_bytes(), type=dict[str, Any])
        return (whose["goal"], whose["episode"]) == (key.goal, key.episode)

    def sql(self, text: str, *values: object) -> list[Any]:
        """Tables are called {t}runs and so on; values stand for ?."""
        if self.kind == "sqlite":
            db = apsw.Connection(f"{self.folder}/runs.db")
            db.set_busy_timeout(10_000)
            try:
                return db.execute(text.replace("{t}", "perdure_"), values).fetchall()
            finally:
                db.close()
        with psycopg.connect(self.server, autocommit=True) as pg:
            cursor = pg.execute(text.replace("{t}", f"{self.schema}.").replace("?", "%s").encode(), values)
            return cursor.fetchall() if cursor.description else []

    def row_number(self, key: RunKey = RUN) -> int:
        found = self.sql("SELECT run FROM {t}runs WHERE goal = ? AND episode = ?", key.goal, key.episode)
        return int(found[0][0])

    def raw(self) -> redis.Redis:
        return redis.Redis.from_url(self.server)

    # -- damage ----------------------------------------------------------------------------------------------------

    def flip(self, number: int, key: RunKey = RUN) -> None:
        """One byte in the middle of a record."""
        if self.kind == "file":
            path = self.run_file("journal.jsonl", key)
            lines = path.read_bytes().splitlines(keepends=True)
            lines[number - 1] = _flipped(lines[number - 1])
            path.write_bytes(b"".join(lines))
        elif self.kind == "memory":
            records = self.backend.runs[key].records
            records[number - 1] = _flipped(records[number - 1])
        elif self.kind == "redis":
            with self.raw() as raw:
                name = self.keys.journal(key)
                raw.lset(name, number - 1, _flipped(raw.lindex(name, number - 1)))  # type: ignore[arg-type]
        else:
            at = (self.row_number(key), number)
            ((record,),) = self.sql("SELECT record FROM {t}journal WHERE run = ? AND seq = ?", *at)
            self.sql("UPDATE {t}journal SET record = ? WHERE run = ? AND seq = ?", _flipped(bytes(record)), *at)

    def lose_record(self, number: int) -> None:
        if self.kind == "file":
            path = self.run_file("journal.jsonl")
            lines = path.read_bytes().splitlines(keepends=True)
            path.write_bytes(b"".join(lines[: number - 1] + lines[number:]))
        elif self.kind == "memory":
            del self.backend.runs[RUN].records[number - 1]
        elif self.kind == "redis":
            with self.raw() as raw:
                raw.lset(self.keys.journal(RUN), number - 1, "gone")
                raw.lrem(self.keys.journal(RUN), 1, "gone")
        else:
            self.sql("DELETE FROM {t}journal WHERE run = ? AND seq = ?", self.row_number(), number)

    def change_blob(self, digest: str, content: bytes | None) -> None:
        if self.kind == "file":
            path = self.root / "blobs" / digest[:2] / digest
            path.unlink() if content is None else path.write_bytes(content)
        elif self.kind == "memory":
            self.backend.blobs.pop(digest) if content is None else self.backend.blobs.update({digest: content})
        elif self.kind == "redis":
            with self.raw() as raw:
                name = self.keys.blob(digest)
                raw.delete(name) if content is None else raw.set(name, content)
        elif content is None:
            self.sql("DELETE FROM {t}blobs WHERE digest = ?", digest)
        else:
            self.sql("UPDATE {t}blobs SET content = ? WHERE digest = ?", content, digest)

    def add_orphan(self) -> None:
        """A blob that no run was given."""
        if self.kind == "file":
            folder = self.root / "blobs" / ORPHANS_NAME[:2]
            folder.mkdir(mode=0o700, exist_ok=True)
            made = self.folder / "made"
            made.write_bytes(ORPHAN)
            made.chmod(0o600)
            made.rename(folder / ORPHANS_NAME)
        elif self.kind == "sqlite" or self.kind == "postgres":
            self.sql("INSERT INTO {t}blobs VALUES (?, ?) ON CONFLICT DO NOTHING", ORPHANS_NAME, ORPHAN)
        else:
            self.change_blob(ORPHANS_NAME, ORPHAN)

    def forget_given(self, digest: str) -> None:
        """Nothing says any more which run was given a blob, as in a store that an early Perdure wrote."""
        if self.kind == "file":
            for path in (self.root / "blobs" / digest[:2]).glob(f"{digest}.*"):
                path.unlink()
        elif self.kind == "memory":
            for run in self.backend.runs.values():
                run.blobs.discard(digest)
        elif self.kind == "redis":
            with self.raw() as raw:
                raw.delete(self.keys.marks(digest))
        else:
            self.sql("DELETE FROM {t}refs WHERE digest = ?", digest)

    def has_blob(self, digest: str) -> bool:
        store = self.open()
        try:
            store.blob(digest)
        except perdure.PerdureError:
            return False
        finally:
            store.close()
        return True

    def spoil_row(self, **fields: object) -> None:
        """The row of RUN says something else than its journal."""
        if self.kind == "memory":
            run = self.backend.runs[RUN]
            assert run.meta is not None
            run.meta = msgspec.structs.replace(run.meta, **fields)
        elif self.kind == "file":
            cache = msgspec.json.decode(self.run_file("meta.json").read_bytes(), type=dict[str, Any])
            cache["meta"] |= fields
            self.run_file("meta.json").write_bytes(msgspec.json.encode(cache))
        elif self.kind == "redis":
            with self.raw() as raw:
                name = self.keys.run(RUN)
                row = msgspec.json.decode(raw.hget(name, "meta") or b"", type=dict[str, Any])  # type: ignore[arg-type]
                raw.hset(name, "meta", msgspec.json.encode(row | fields))
        else:
            ((meta,),) = self.sql("SELECT meta FROM {t}runs WHERE goal = ?", RUN.goal)
            row = msgspec.json.decode(meta, type=dict[str, Any]) | fields
            self.sql("UPDATE {t}runs SET meta = ? WHERE goal = ?", msgspec.json.encode(row).decode(), RUN.goal)

    def lose_posts(self, key: RunKey = ASKING) -> None:
        if self.kind == "file":
            self.run_file("inbox.jsonl", key).write_bytes(b"")
        elif self.kind == "memory":
            self.backend.runs[key].posts.clear()
        elif self.kind == "redis":
            with self.raw() as raw:
                raw.delete(self.keys.inbox(key))
        else:
            self.sql("DELETE FROM {t}inbox WHERE run = ?", self.row_number(key))

    def swap_post(self, record: bytes, key: RunKey = ASKING) -> None:
        """The first post is another one."""
        if self.kind == "file":
            path = self.run_file("inbox.jsonl", key)
            path.write_bytes(b"".join([record, *path.read_bytes().splitlines(keepends=True)[1:]]))
        elif self.kind == "memory":
            self.backend.runs[key].posts[0] = record
        elif self.kind == "redis":
            with self.raw() as raw:
                raw.lset(self.keys.inbox(key), 0, record)  # type: ignore[arg-type]
        else:
            self.sql("UPDATE {t}inbox SET record = ? WHERE run = ? AND number = 1", record, self.row_number(key))

    def lose_row(self) -> None:
        """The run's row is gone, its records are not."""
        if self.kind == "redis":
            with self.raw() as raw:
                raw.delete(self.keys.run(RUN))
        else:
            self.sql("DELETE FROM {t}runs WHERE goal = ?", RUN.goal)

    def lose_from_index(self, name: str) -> None:
        with self.raw() as raw:
            run = member(ASKING)
            if name == "places":
                raw.hset(self.keys.places, run.decode(), "q" + "0" * 40)
            elif name == "dates":
                raw.delete(self.keys.dates)
            else:
                raw.zrem({"runs": self.keys.runs, "posted": self.keys.posted, "begun": self.keys.begun}[name], run)


def fill(place: Place) -> None:
    """Runs of several kinds: completed with blobs, failed, suspended with a signal that it has taken, queued."""
    with perdure.CheckpointManager(place.open()) as manager:
        manager.run_sync(essay, "sea", goal=RUN.goal)
        with suppress(ValueError):
            manager.run_sync(fails, goal="failed")
        assert manager._writer is not None
        client = perdure.Client(manager._writer.store)
        with suppress(RunSuspended):
            manager.run_sync(asks, goal=ASKING.goal)
        manager._writer.call(lambda: client.signal(ASKING.goal, "go", by="me")).result()
        with suppress(RunSuspended):
            manager.run_sync(asks, goal=ASKING.goal)
        manager.submit(essay, "later", goal="queued", queue="q")


def journal(place: Place, key: RunKey = RUN) -> tuple[bytes, ...]:
    store = place.open()
    try:
        return tuple(store.read(key))
    finally:
        store.close()


def refs_of(place: Place, key: RunKey = RUN) -> list[str]:
    entries = [j.decode(key, line, seq) for seq, line in enumerate(journal(place, key), 1)]
    return list(dict.fromkeys(ref for entry in entries for ref in j.refs(entry)))


def append_raw(place: Place, *entries: bytes, key: RunKey = RUN) -> None:
    """Records that no Perdure would write, with a checksum that is right."""
    store = place.open()
    lease = store.claim(key)
    lines = store.read(key)
    meta = msgspec.structs.replace(fold(key, lines).meta(), seq=len(lines) + len(entries))
    records = tuple(frame(key, entry) for entry in entries)
    assert store.append([Append(lease, len(lines), records, meta)]) == [None]
    store.release(lease)
    store.close()


def _flipped(record: bytes) -> bytes:
    middle = len(record) // 2
    return record[:middle] + bytes([record[middle] ^ 1]) + record[middle + 1 :]
