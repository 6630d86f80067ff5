"""Places for journals, chosen by URL."""

from __future__ import annotations

from pathlib import Path

from perdure.errors import ConfigError
from perdure.model import RunKey, RunMeta, printable
from perdure.stores.base import Store, Summarise
from perdure.stores.encryption import MARK, Encryption
from perdure.stores.memory import MemoryStore

__all__ = ["Encryption", "Store", "missing", "open_store"]
MAX_URL = 2**14
"""characters of a store's URL"""
_KINDS = "memory:, file:DIR, sqlite:PATH, postgresql://..., redis://..."


def open_store(
    url: str | Store, *, create: bool = True, encryption: Encryption | None = None, migrate: bool = False
) -> Store:
    """Open the store that ``url`` names; a store that is open already is returned as it is.

    - ``memory:`` keeps everything in this process; each call gives a store of its own;
    - ``file:DIR`` (or ``file:///DIR``, absolute) keeps plain files;
    - ``sqlite:PATH`` keeps one database file. ``sqlite:///PATH`` is the same, and as elsewhere relative with three
      slashes, absolute with four;
    - ``postgresql://...`` keeps tables in a database, as libpq names it; ``schema=`` and ``lease=`` are ours;
    - ``redis://...`` keeps keys in Redis or Valkey; ``prefix=``, ``lease=`` and ``waitaof=`` are ours.

    Folders that are missing are made; with ``create=False`` nothing is, and ConfigError says that there is no store.
    ``encryption``: the keys of a store that is encrypted, or is to be (an empty one); else what ``PERDURE_KEY`` or
    ``PERDURE_KEY_FILE`` say. ``migrate``: of one that is not empty too, whose runs stand in clear until ``perdure
    rekey`` has encrypted them. Raises ConfigError for a URL that names no store, a place that cannot be used, a key
    that is missing or another; CorruptStore; NewerFormat; StoreBusy.
    """
    if not isinstance(url, str):
        if encryption is not None:
            raise ConfigError("An open store takes no encryption=.", hint="Give it to open_store, or give its URL.")
        return url
    encryption = encryption or Encryption.from_environment()
    rows = _Rows()
    store = _open(url, create, rows)
    try:
        return _with_keys(store, encryption, create, migrate, rows)
    except BaseException:
        store.close()
        raise


class _Rows:
    """Makes rows from journals, for a store in which they are a cache. How, is known once the store has been opened."""

    summarise: Summarise | None = None

    def __call__(self, key: RunKey, lines: list[bytes]) -> RunMeta:
        from perdure.fold import summarise

        return (self.summarise or summarise)(key, lines)


def _with_keys(store: Store, encryption: Encryption | None, create: bool, migrate: bool, rows: _Rows) -> Store:
    """The store as those see it who have the keys."""
    if encryption is None:
        if store.read(MARK):
            raise ConfigError(
                f"{store.url} is encrypted, and no key was given. Nothing was changed.",
                hint="Set PERDURE_KEY or PERDURE_KEY_FILE, or pass encryption=.",
            )
        return store
    try:
        from perdure.stores.sealed import SealedStore, sealed
    except ModuleNotFoundError as error:
        raise missing("encryption", error) from None
    opened = sealed(store, encryption, create=create, migrate=migrate)
    if isinstance(opened, SealedStore):
        rows.summarise = opened.summarise
    return opened


def _open(url: str, create: bool, rows: Summarise) -> Store:
    scheme, colon, rest = url.partition(":")
    scheme = scheme.lower()
    if not colon or len(url) > MAX_URL or not printable(url):
        raise ConfigError(f"{url[:80]!r} is not the URL of a store.", hint=f"Use one of {_KINDS}.")
    if scheme == "memory":
        if rest.strip("/"):
            raise ConfigError(f"The store memory: takes no name, and has {rest[:80]!r}.", hint="Write 'memory:'.")
        return MemoryStore()
    if scheme == "file":
        return _open_file(_path(url, rest[2:] if rest.startswith("///") else rest), create, rows)
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


def _open_file(path: Path, create: bool, rows: Summarise) -> Store:
    from perdure.stores.file import FileStore

    return FileStore(path, create=create, summarise=rows)


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
