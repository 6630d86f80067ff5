"""The way to a PostgreSQL server: where it is, for how long to wait for it, and what its errors mean.

Every call has a time limit: a server, or a network, that says nothing for ``SILENCE`` seconds is given up, and the
connection with it (rel:C7). A call whose connection broke is done again on a new one, for as long as the caller has
patience; so callers see to it that doing a thing twice is doing it once.

There is no pool of connections. A handle has one thread that reads and writes, and that has one connection; the
heartbeat has one of its own, so that neither waits for the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import psycopg
from psycopg import errors as pg
from psycopg.abc import PQGen
from psycopg.pq import Conninfo
from psycopg.rows import TupleRow

from perdure.clock import SYSTEM, Clock
from perdure.errors import ConfigError, StoreError
from perdure.model import printable
from perdure.stores.expiring import LEASE, lease_of, masked

T = TypeVar("T")
RV = TypeVar("RV")
SILENCE: Final = 10.0
"""seconds without a word from the server after which a connection is given up"""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]{0,62}")
_TRANSIENT: Final = (
    pg.SerializationFailure,
    pg.DeadlockDetected,
    pg.TooManyConnections,
    pg.CannotConnectNow,
    pg.AdminShutdown,
    pg.CrashShutdown,
    pg.ReadOnlySqlTransaction,
    pg.QueryCanceled,
    pg.LockNotAvailable,
    pg.IdleInTransactionSessionTimeout,
)
"""errors of a server that is going to be well again: it restarts, or another takes its place"""
_HARMLESS: Final = (pg.SerializationFailure, pg.DeadlockDetected, pg.LockNotAvailable, pg.QueryCanceled)
"""those after which the connection is as good as before"""
_SETTINGS: Final[Mapping[str, Any]] = {
    "connect_timeout": 3,
    "fallback_application_name": "perdure",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
"""of a connection, unless the URL says otherwise"""


class Place(NamedTuple):
    """What a URL says."""

    conninfo: str
    """the URL without what is ours"""
    shown: str
    """the URL without its password"""
    schema: str
    lease: float


def parse(url: str) -> Place:
    """The place that ``url`` names. Raises ConfigError naming what is wrong, and never shows a password."""
    try:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        odd = "@" in parts.path + parts.query or parts.fragment or not printable(url)
        odd = odd or not all(map(printable, query.values()))
    except ValueError:
        odd = True
    if odd:  # a part of the password may have been taken for something else
        raise ConfigError(
            "The URL of the PostgreSQL store cannot be read.",
            hint="Write postgresql://user:password@host/database, special characters of the password percent-encoded.",
        )
    schema = checked_schema(query.pop("schema", "perdure"))
    lease = lease_of(query.pop("lease", LEASE))
    bare = urlunsplit(("postgresql", parts.netloc, parts.path, urlencode(query), ""))
    unknown = sorted(query.keys() - {option.keyword.decode() for option in Conninfo.get_defaults()})
    if unknown:
        raise ConfigError(
            f"The URL of the PostgreSQL store has parameters that are none: {', '.join(unknown)}.",
            hint="Those of libpq are taken, and schema= and lease=.",
        )
    try:
        psycopg.conninfo.conninfo_to_dict(bare)
    except (psycopg.ProgrammingError, ValueError):  # it may quote the password; the second: %ff and the like
        raise ConfigError(
            "libpq cannot read the URL of the PostgreSQL store.", hint="Are special characters percent-encoded?"
        ) from None
    user, at, host = parts.netloc.rpartition("@")
    shown = urlunsplit(("postgresql", f"{masked(user)}{at}{host}", parts.path, "", ""))
    return Place(bare, shown if schema == "perdure" else f"{shown}?schema={schema}", schema, lease)


def checked_schema(name: str) -> str:
    """The same name. Raises ConfigError for what we would not want to quote."""
    if not _NAME.fullmatch(name) or name.startswith("pg_"):
        raise ConfigError(
            f"schema={name[:80]!r} cannot name a schema.", hint="Use letters, digits and underscores, 63 at most."
        )
    return name


class Connection(psycopg.Connection[TupleRow]):
    """A connection that gives up waiting for a server that says nothing, unless that is what is waited for."""

    patient = False
    """silence says nothing: somebody else's statements, or news"""

    def wait(self, gen: PQGen[RV], *args: Any, **kwargs: Any) -> RV:
        return super().wait(gen if self.patient else _limited(gen), *args, **kwargs)


def connected(place: Place) -> Connection:
    """A new connection. Raises psycopg's errors."""
    known = psycopg.conninfo.conninfo_to_dict(place.conninfo)
    settings = {name: value for name, value in _SETTINGS.items() if name not in known}
    return Connection.connect(place.conninfo, autocommit=True, client_encoding="utf8", **settings)


def _limited(gen: PQGen[RV]) -> PQGen[RV]:
    """The same exchange with the server; psycopg says several times a second when nothing has come."""
    try:
        state = next(gen)
        heard = SYSTEM.monotonic()
        while True:
            ready = yield state
            if ready:
                heard = SYSTEM.monotonic()
                state = gen.send(ready)
            elif SYSTEM.monotonic() - heard > SILENCE:
                raise psycopg.OperationalError(f"the server has said nothing for {SILENCE:g} s")
    except StopIteration as end:
        result: RV = end.value
        return result


class Greeting(NamedTuple):
    """What a server says of itself."""

    pooled: bool
    """something stands between us and the server: another process answers than the one we were promised"""
    fsync: bool
    synchronous_commit: str
    encoding: str


def greet(db: psycopg.Connection[Any]) -> Greeting:
    """Ask who is there. Raises what is transient for a standby: soon it may be the primary, or another one."""
    row = db.execute(
        "SELECT pg_backend_pid(), current_setting('fsync'), current_setting('synchronous_commit'), "
        "current_setting('server_encoding'), pg_is_in_recovery()",
        prepare=False,
    ).fetchone()
    assert row is not None
    if row[4]:
        raise pg.ReadOnlySqlTransaction("this server is a standby, and only reads")
    return Greeting(row[0] != db.info.backend_pid, row[1] == "on", str(row[2]), str(row[3]))


class Link:
    """One connection, made when it is needed and made anew when it broke."""

    def __init__(self, place: Place, clock: Clock) -> None:
        self.place = place
        self._clock = clock
        self._db: Connection | None = None
        self.greeting: Greeting | None = None
        """of the last connection"""

    def connect(self) -> Connection:
        """The connection. Raises psycopg's errors."""
        if self._db is not None and not self._db.closed:
            return self._db
        db = connected(self.place)
        try:
            self.greeting = greet(db)
        except BaseException:
            db.close()
            raise
        if self.greeting.pooled:  # what is prepared on one of the pooler's connections is not there on another
            db.prepare_threshold = None
        self._db = db
        return db

    def call(self, work: Callable[[Connection, bool], T], patience: float) -> T:
        """Do ``work(connection, again)``, once more on a new connection as long as connections break. Raises
        psycopg's error when the patience is at its end, and any other at once."""
        end = self._clock.monotonic() + patience
        pause, again = 0.02, False
        while True:
            try:
                return work(self.connect(), again)
            except psycopg.Error as error:
                if not isinstance(error, _HARMLESS):
                    self.drop()
                if not is_transient(error) or self._clock.monotonic() + pause > end:
                    raise
            self._clock.sleep(pause)
            pause, again = min(pause * 2, 1.0), True

    def drop(self) -> None:
        """Close the connection. Never raises."""
        db, self._db = self._db, None
        if db is not None:
            with suppress(psycopg.Error):
                db.close()


def is_transient(error: psycopg.Error) -> bool:
    """Whether it may go away by itself: the connection broke, or the server restarts."""
    if isinstance(error, _TRANSIENT):
        return True
    if isinstance(error, psycopg.InterfaceError):
        return True
    lost = isinstance(error, psycopg.OperationalError) and error.sqlstate is None
    return lost and not is_refusal(error)


_REFUSALS = re.compile(
    r"authentication failed|no password supplied|does not exist|no pg_hba\.conf entry|permission denied|not permitted"
)


def is_refusal(error: psycopg.Error) -> bool:
    """Whether the server, or libpq, does not want us: to be changed by the user."""
    refused = (pg.InsufficientPrivilege, pg.InvalidAuthorizationSpecification, pg.InvalidCatalogName)
    return isinstance(error, refused) or (error.sqlstate is None and _REFUSALS.search(str(error)) is not None)


def described(error: psycopg.Error) -> str:
    """What the server said, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def failure(doing: str, place: Place, error: psycopg.Error) -> StoreError:
    """Our error for one of psycopg's."""
    reason = described(error).rstrip(".")
    hint = "Nothing that was acknowledged is lost. Remove the cause, then run again."
    if isinstance(error, (pg.DiskFull, pg.OutOfMemory)):
        hint = "Nothing that was acknowledged is lost. Free some space on the server, then run again."
    elif is_transient(error):
        hint = "Nothing that was acknowledged is lost. See that the server can be reached, then run again."
    return StoreError(f"Cannot {doing} {place.shown}: {reason}.", hint=hint)
