"""Places for journals, chosen by URL."""

from __future__ import annotations

from pathlib import Path

from perdure.errors import ConfigError
from perdure.model import printable
from perdure.stores.base import Store
from perdure.stores.memory import MemoryStore

MAX_URL = 2**14
"""characters of a store's URL"""
_KINDS = "memory:, file:DIR, sqlite:PATH, postgresql://..., redis://..."


def open_store(url: str | Store, *, create: bool = True) -> Store:
    """Open the store that ``url`` names; a store that is open already is returned as it is.

    - ``memory:`` keeps everything in this process; each call gives a store of its own;
    - ``file:DIR`` (or ``file:///DIR``, absolute) keeps plain files;
    - ``sqlite:PATH`` keeps one database file. ``sqlite:///PATH`` is the same, and as elsewhere relative with three
      slashes, absolute with four;
    - ``postgresql://...`` keeps tables in a database, as libpq names it; ``schema=`` and ``lease=`` are ours;
    - ``redis://...`` keeps keys in Redis or Valkey; ``prefix=``, ``lease=`` and ``waitaof=`` are ours.

    Folders that are missing are made; with ``create=False`` nothing is, and ConfigError says that there is no store.
    Raises ConfigError for a URL that names no store, or a place that cannot be used; CorruptStore; NewerFormat;
    StoreBusy.
    """
    if not isinstance(url, str):
        return url
    scheme, colon, rest = url.partition(":")
    scheme = scheme.lower()
    if not colon or len(url) > MAX_URL or not printable(url):
        raise ConfigError(f"{url[:80]!r} is not the URL of a store.", hint=f"Use one of {_KINDS}.")
    if scheme == "memory":
        if rest.strip("/"):
            raise ConfigError(f"The store memory: takes no name, and has {rest[:80]!r}.", hint="Write 'memory:'.")
        return MemoryStore()
    if scheme == "file":
        return _open_file(_path(url, rest[2:] if rest.startswith("///") else rest), create)
    if scheme == "sqlite":
        return _open_sqlite(_path(url, rest.removeprefix("///")), create)
    if scheme in ("postgresql", "postgres"):
        return _open_postgres(url, create)
    if scheme in ("redis", "rediss", "valkey", "valkeys"):
        return _open_redis(url, create)
    # the rest of the URL may hold a password and is not shown
    raise ConfigError(f"There is no store of the kind {scheme[:40]!r}.", hint=f"Use one of {_KINDS}.")


def _path(url: str, rest: str) -> Path:
    if not rest or rest == ":memory:" or rest.startswith("//"):
        hint = "Use 'memory:' for a store in memory." if "memory" in rest else f"Use one of {_KINDS}."
        raise ConfigError(f"The store URL {url[:80]!r} names no path on this machine.", hint=hint)
    try:
        return Path(rest).expanduser().resolve()
    except (OSError, RuntimeError) as error:  # the second: a loop of links, and nobody's home
        raise ConfigError(f"The store URL {url[:80]!r} names no path on this machine: {error}.") from None


# Imported here and not above: the drivers and the fold are loaded only by who uses them.


def _open_file(path: Path, create: bool) -> Store:
    from perdure.stores.file import FileStore

    return FileStore(path, create=create)


def _open_sqlite(path: Path, create: bool) -> Store:
    from perdure.stores.sqlite import SqliteStore

    return SqliteStore(path, create=create)


def _open_postgres(url: str, create: bool) -> Store:
    try:
        from perdure.stores.postgres import PostgresStore
    except ModuleNotFoundError as error:
        raise missing("postgres", error) from None
    return PostgresStore(url, create=create)


def _open_redis(url: str, create: bool) -> Store:
    try:
        from perdure.stores.redis import RedisStore
    except ModuleNotFoundError as error:
        raise missing("redis", error) from None
    return RedisStore(url, create=create)


def missing(extra: str, error: ModuleNotFoundError) -> ConfigError:
    if (error.name or "").startswith("perdure"):
        raise error
    return ConfigError(
        f"This store needs the package {error.name!r}, which is not installed.",
        hint=f"Install it with: pip install 'perdure[{extra}]'",
    )
