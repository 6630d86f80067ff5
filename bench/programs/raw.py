"""The least that the same durability costs: a driver, a statement, a wait for the device.

No step, no journal, no codec: 1 KiB is sent and is durable before the next is. What Perdure needs beyond this is its
own.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

from bench.talk import Job, Sample, Watch, memory, per_second, serve, stop_here, text, texts

Commit = Callable[[Sequence[bytes]], None]
"""makes records durable, together"""


def one_by_one(job: Job) -> Sample:
    """W1: commits a second of one writer, one record each."""
    records = [body.encode() for body in texts(job["size"], 1024)]
    commit, close = _OPEN[job["store"]](job)
    commit([b"warm"])
    with Watch() as watch:
        for record in records:
            commit([record])
    close()
    return per_second(job["size"], watch.seconds)


def in_groups(job: Job) -> Sample:
    """W3: a bare asyncio program with one writer thread that commits whatever is queued: records a second."""
    texts(job["size"], 1024)
    commit, close = _OPEN[job["store"]](job)
    commit([b"warm"])
    waiting: queue.SimpleQueue[tuple[bytes, asyncio.Future[None]] | None] = queue.SimpleQueue()

    def write(loop: asyncio.AbstractEventLoop) -> None:
        while (first := waiting.get()) is not None:
            batch = [first]
            while not waiting.empty():
                batch.append(waiting.get())  # type: ignore[arg-type]
            commit([record for record, _ in batch])
            loop.call_soon_threadsafe(_tell, [future for _, future in batch])

    async def run() -> None:
        for number in range(job["size"]):
            durable = asyncio.get_running_loop().create_future()
            waiting.put((text(number, 1024).encode(), durable))
            await durable

    async def main() -> None:
        writer = threading.Thread(target=write, args=(asyncio.get_running_loop(),))
        writer.start()
        await asyncio.gather(*(run() for _ in range(job["runs"])))
        waiting.put(None)
        writer.join()

    with Watch() as watch:
        asyncio.run(main())
    close()
    return per_second(job["runs"] * job["size"], watch.seconds)


def _tell(futures: Sequence[asyncio.Future[None]]) -> None:
    for future in futures:
        future.set_result(None)


def _sqlite(job: Job) -> tuple[Commit, Callable[[], None]]:
    """WAL, synchronous=FULL."""
    import apsw

    db = apsw.Connection(f"{job['folder']}/raw.db")
    db.execute("PRAGMA journal_mode=WAL").fetchall()
    db.execute("PRAGMA synchronous=FULL")
    db.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT")

    def commit(records: Sequence[bytes]) -> None:
        db.execute("BEGIN IMMEDIATE")
        db.executemany("INSERT INTO rows (body) VALUES (?)", ((record,) for record in records))
        db.execute("COMMIT")

    return commit, db.close


def _file(job: Job) -> tuple[Commit, Callable[[], None]]:
    """Append, fdatasync."""
    fd = os.open(f"{job['folder']}/raw", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def commit(records: Sequence[bytes]) -> None:
        os.write(fd, b"\n".join(records) + b"\n")
        getattr(os, "fdatasync", os.fsync)(fd)

    return commit, lambda: os.close(fd)


def _postgresql(job: Job) -> tuple[Commit, Callable[[], None]]:
    """One statement a commit, prepared by the driver."""
    import psycopg

    db = psycopg.connect(job["server"], autocommit=True)
    db.execute("CREATE TABLE raw (id bigserial PRIMARY KEY, body bytea NOT NULL)")

    def commit(records: Sequence[bytes]) -> None:
        if len(records) == 1:
            db.execute("INSERT INTO raw (body) VALUES (%b)", (records[0],))
        else:
            db.execute("INSERT INTO raw (body) SELECT unnest(%b::bytea[])", (list(records),))

    return commit, db.close


def _valkey(job: Job) -> tuple[Commit, Callable[[], None]]:
    """RPUSH; the server syncs before it answers."""
    import redis

    db = redis.Redis.from_url(job["server"].partition("?")[0])

    def commit(records: Sequence[bytes]) -> None:
        db.rpush("raw", *records)

    return commit, db.close


_OPEN: dict[str, Callable[[Job], tuple[Commit, Callable[[], None]]]] = {
    "sqlite": _sqlite,
    "file": _file,
    "postgresql": _postgresql,
    "valkey": _valkey,
}


def read_rows(job: Job) -> Sample:
    """W4: read every record of the run that Perdure has made, and do nothing with it."""
    rows: list[Any]
    if job["store"] == "sqlite":
        import apsw

        db = apsw.Connection(f"{job['folder']}/runs.db")
        rows = db.execute("SELECT record FROM perdure_journal ORDER BY run, seq").fetchall()
    else:
        import psycopg

        with psycopg.connect(job["server"]) as server:
            rows = server.execute("SELECT record FROM perdure.journal ORDER BY run, seq").fetchall()
    stop_here(first=len(rows))


def imports(job: Job) -> Sample:
    """Only the driver."""
    if job["store"] == "sqlite":
        import apsw  # noqa: F401
    else:
        import psycopg  # noqa: F401
    stop_here(memory=memory())


WORKLOADS = {"W1": one_by_one, "W3": in_groups, "W4 resume": read_rows, "W4 imports": imports}

if __name__ == "__main__":
    serve(WORKLOADS)
