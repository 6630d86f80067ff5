"""The tables in PostgreSQL: made by whoever comes first, or by a database administrator from the SQL that is printed.

Ten processes may start at once: whoever has the advisory lock makes the tables, the others wait for it and find them
made. The lock ends with the transaction, so that it works behind a pooler, and a process that dies in the middle leaves
nothing. Who may only use the tables and not make any needs nothing else, once they are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

from psycopg import errors as pg
from psycopg import sql

from perdure.errors import ConfigError, NewerFormat
from perdure.stores.handle import nothing_there
from perdure.stores.postgres_link import Connection, Greeting, Place, checked_schema

_MIGRATIONS: Final = Path(__file__).parent / "migrations" / "postgres"


def prepare(db: Connection, place: Place, create: bool) -> None:
    """See to it that the tables are there and are those of this program.

    Raises ConfigError (there are none and none are to be made, or we may not), NewerFormat; psycopg's errors.
    """
    found = _version(db, place)
    newest = len(_steps())
    if found > newest:
        raise NewerFormat(
            f"{place.shown} has schema version {found}; this Perdure knows versions up to {newest}. "
            "Nothing was changed.",
            hint="Use the newer Perdure, or another schema= in the URL.",
        )
    if found == newest:
        return
    if found == 0 and not create:
        raise nothing_there(place.shown)
    try:
        _migrate(db, place)
    except pg.InsufficientPrivilege as error:
        said = str(error.diag.message_primary or error)
        raise ConfigError(
            f"The tables in {place.shown} must be made first, and this user may not ({said}). Nothing was changed.",
            hint=f"perdure schema --schema {place.schema} --role USER prints the SQL for a database administrator.",
        ) from None


def channel(db: Connection, place: Place) -> str:
    """The channel on which handles of this schema tell each other of news.

    Channels belong to the whole database, and nobody can be kept from one whose name he knows. So it is named after
    what only users of the schema can read: the microsecond in which its tables were made.
    """
    query = sql.SQL("SELECT extract(epoch FROM min(applied))::text FROM {}.versions").format(
        sql.Identifier(place.schema)
    )
    row = db.execute(query, prepare=False).fetchone()
    return "perdure_" + sha256(f"{place.schema} {row}".encode()).hexdigest()[:32]


def statements(schema: str, role: str = "", after: int = 0) -> str:
    """The SQL that brings the tables to this program's version, for whoever may execute it. Raises ConfigError for a
    name that cannot be that of a schema."""
    named = _quoted(checked_schema(schema))
    parts = ["BEGIN;", f"CREATE SCHEMA IF NOT EXISTS {named};", f"SET LOCAL search_path TO {named};", _VERSIONS]
    for version, step in enumerate(_steps(), 1):
        if version > after:
            parts += [step.read_text("utf-8").strip(), _applied(version, step)]
    if role:
        user = _quoted(role)
        parts += [
            f"GRANT USAGE ON SCHEMA {named} TO {user};",
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {named} TO {user};",
            f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {named} TO {user};",
        ]
    return "\n\n".join([*parts, "COMMIT;"])


def doubts(place: Place, greeting: Greeting) -> list[str]:
    """What is told of a server on which acknowledged records may be lost (rel:D5)."""
    found = []
    if not greeting.fsync:
        found.append(f"{place.shown}: the server has fsync=off: a power cut may lose everything, acknowledged or not.")
    if greeting.synchronous_commit == "off":
        found.append(
            f"{place.shown}: the server has synchronous_commit=off: records acknowledged in the last second may be "
            "lost when it crashes, and their steps run again."
        )
    return found


def check_encoding(place: Place, greeting: Greeting) -> None:
    """Raises ConfigError for a database that cannot hold every name."""
    if greeting.encoding != "UTF8":
        raise ConfigError(
            f"{place.shown}: the database has the encoding {greeting.encoding}, and names of runs may have any "
            "character.",
            hint="Use a database with the encoding UTF8.",
        )


_VERSIONS: Final = (
    "CREATE TABLE IF NOT EXISTS versions (version integer PRIMARY KEY, name text NOT NULL, "
    "applied timestamptz NOT NULL DEFAULT now());"
)


def _migrate(db: Connection, place: Place) -> None:
    lock = int.from_bytes(sha256(f"perdure {place.schema}".encode()).digest()[:8], "big", signed=True)
    schema = sql.Identifier(place.schema)
    with db.transaction():
        db.execute("SELECT pg_advisory_xact_lock(%s)", (lock,), prepare=False)
        if db.execute("SELECT to_regnamespace(%s)", (_quoted(place.schema),), prepare=False).fetchone() == (None,):
            db.execute(sql.SQL("CREATE SCHEMA {}").format(schema))
        db.execute(sql.SQL("SET LOCAL search_path TO {}").format(schema))
        db.execute(_VERSIONS)
        found = _version(db, place)
        for version, step in enumerate(_steps(), 1):
            if version > found:
                db.execute(step.read_text("utf-8"))
                db.execute(_applied(version, step))


def _applied(version: int, step: Path) -> str:
    return f"INSERT INTO versions (version, name) VALUES ({version:d}, '{step.stem}');"


def _version(db: Connection, place: Place) -> int:
    """The version of the tables; 0 for none."""
    table = f"{_quoted(place.schema)}.versions"
    try:
        if db.execute("SELECT to_regclass(%s)", (table,), prepare=False).fetchone() == (None,):
            return 0
        query = sql.SQL("SELECT coalesce(max(version), 0) FROM {}.versions").format(sql.Identifier(place.schema))
        row = db.execute(query, prepare=False).fetchone()
    except pg.InsufficientPrivilege as error:
        said = str(error.diag.message_primary or error)
        raise ConfigError(
            f"This user may not use the tables in {place.shown}: {said}.",
            hint=f"perdure schema --schema {place.schema} --role USER prints the SQL that grants it.",
        ) from None
    assert row is not None
    return int(row[0])


def _steps() -> Sequence[Path]:
    return sorted(_MIGRATIONS.glob("*.sql"))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
