"""What happens to a SQLite file before it is used as a store: made private, brought to our schema, made durable.

Write-ahead log with synchronous=FULL, both read back: SQLite's stock setting loses the last acknowledged commit in a
power cut. Where the log is refused (some network and container file systems), rollback journal with
synchronous=EXTRA, which is as safe and slower.

The functions raise apsw's errors as they are; the store turns them into ours.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Final

import apsw

from perdure.clock import Clock
from perdure.errors import CorruptStore, NewerFormat, StoreError
from perdure.stores import disk
from perdure.stores.handle import nothing_there

_MIGRATIONS: Final = Path(__file__).parent / "migrations" / "sqlite"
_PAGE: Final = 8192
"""Bytes a page. With SQLite's 4096, records of 2 KiB leave almost half of each page empty; larger ones cost time."""
_LOG_PAGES: Final = 256
"""Pages after which the write-ahead log is begun anew. Writing over it is cheaper than making it longer, so a short log
is faster for a lone run, by a fifth, and no slower for a hundred."""
_FIRST_SAFE = (3, 51, 3)  # earlier versions can corrupt the file when two processes write: the WAL-reset bug


def connect(path: Path, url: str, create: bool, wait: float) -> apsw.Connection:
    """Open the file; make it if ``create``. Raises ConfigError if there is none, StoreError if it cannot be opened."""
    if not disk.exists(path):
        if not create:
            raise nothing_there(url)
        disk.make_dir(path.parent)
        try:  # SQLite gives the log and its index the mode of this file
            os.close(disk.create(path, os.O_RDWR | os.O_EXCL))
        except StoreError as error:
            if not isinstance(error.__cause__, FileExistsError):
                raise
        disk.sync_dir(path.parent)
    try:
        db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    except apsw.Error as error:
        reason = "it is a folder" if path.is_dir() else error
        raise StoreError(f"Cannot open {path}: {reason}.") from error
    db.set_busy_timeout(int(wait * 1000))
    db.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)  # else statements are planned anew for each value that is bound
    db.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)  # what a file's own views and triggers may call
    db.execute(f"PRAGMA page_size = {_PAGE}")  # of a file that is made now; others keep theirs
    return db


def is_current(db: apsw.Connection, path: Path, url: str, create: bool) -> bool:
    """Whether the tables are those of this program. Raises NewerFormat; CorruptStore for views and triggers in their
    place, which would execute somebody else's SQL; without ``create`` ConfigError if there are none."""
    version = _version(db)
    newest = len(_steps())
    if version > newest:
        raise NewerFormat(
            f"{path} has schema {version}; this Perdure knows schemas up to {newest}. Nothing was changed.",
            hint="Use the newer Perdure, or another path.",
        )
    if version == 0 and not create:
        raise nothing_there(url)
    foreign = db.execute(
        "SELECT type, name FROM sqlite_schema WHERE type IN ('view', 'trigger') AND tbl_name GLOB 'perdure_*'"
    ).fetchone()
    if foreign is not None:
        raise CorruptStore(
            f"{path} has a {foreign[0]} {str(foreign[1])[:80]!r} where Perdure has tables of its own. "
            "Nothing was changed.",
            hint="Remove it if it is yours: Perdure's tables are for Perdure only. Else do not trust this file.",
        )
    return version == newest


def migrate(db: apsw.Connection, path: Path, url: str, clock: Clock) -> None:
    """Bring the tables to this program's version. Inside a transaction: all steps or none."""
    db.execute(
        "CREATE TABLE IF NOT EXISTS perdure_schema "
        "(version INTEGER PRIMARY KEY, name TEXT NOT NULL, applied REAL NOT NULL) STRICT"
    )
    if is_current(db, path, url, create=True):  # somebody else was faster
        return
    for version, step in enumerate(_steps(), 1):
        if version > _version(db):
            db.execute(step.read_text("utf-8"))
            db.execute("INSERT INTO perdure_schema VALUES (?, ?, ?)", (version, step.stem, clock.now()))


def make_durable(db: apsw.Connection, path: Path, wait: float, clock: Clock) -> list[str]:
    """Set what makes a commit durable, and read back whether it was taken (rel:D3). Returns what to warn of."""
    warnings = []
    if sys.platform == "darwin":
        _select(db, "PRAGMA fullfsync = ON")
        _select(db, "PRAGMA checkpoint_fullfsync = ON")
    level, mode = 2, "wal"
    if _journal_mode(db, mode, wait, clock) != mode:
        level, mode = 3, "delete"
        _journal_mode(db, mode, wait, clock)
        warnings.append(f"{path}: SQLite refuses its write-ahead log here; commits are slower.")
    db.execute(f"PRAGMA synchronous = {level}")
    _select(db, "PRAGMA secure_delete = ON")  # what is removed is written over (rel:S14)
    db.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
    got = (_select(db, "PRAGMA synchronous"), _select(db, "PRAGMA journal_mode"))
    if got != (level, mode):
        raise StoreError(f"{path}: SQLite does not take the settings that make commits durable: {got}.")
    if tuple(int(part) for part in apsw.sqlite_lib_version().split(".")) < _FIRST_SAFE:
        warnings.append(f"SQLite {apsw.sqlite_lib_version()} can damage a file that two processes write. Upgrade apsw.")
    return warnings


def _steps() -> list[Path]:
    return sorted(_MIGRATIONS.glob("*.sql"))


def _version(db: apsw.Connection) -> int:
    """The schema's version, 0 for none."""
    known = _select(db, "SELECT count(*) FROM sqlite_schema WHERE name = 'perdure_schema' AND type = 'table'")
    return int(_select(db, "SELECT cast(coalesce(max(version), 0) AS INTEGER) FROM perdure_schema")) if known else 0


def _journal_mode(db: apsw.Connection, mode: str, wait: float, clock: Clock) -> str:
    """Ask for a journal mode and return what we got. SQLite does not wait for other processes here; we do."""
    deadline = clock.monotonic() + wait
    while True:
        try:
            return str(_select(db, f"PRAGMA journal_mode = {mode}"))
        except apsw.BusyError:
            if clock.monotonic() >= deadline:
                raise
        clock.sleep(0.01)


def _select(db: apsw.Connection, sql: str) -> Any:
    """The one value that a statement gives."""
    return db.execute(sql).fetchall()[0][0]
