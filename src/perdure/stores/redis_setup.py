"""Opening a store in Redis: whether it is there and of which format, and what its server does not promise.

How durable a write is is the server's own setting. ``appendfsync always`` loses nothing in a power cut; with
``everysec`` (2,526 of 54,702 acknowledged appends were lost in one) or without the append-only file the store says so,
unless it was told to wait (``waitaof=yes``). A replica that takes over from a primary may lack its last writes whatever
is set: replication is asynchronous, and that is not warned of each time.
"""

from __future__ import annotations

from typing import Final

import redis

from perdure.errors import ConfigError, NewerFormat
from perdure.stores.handle import nothing_there
from perdure.stores.redis_keys import Keys, damaged
from perdure.stores.redis_link import Link

_FORMAT: Final = 1
_EVICTS: Final = {
    "allkeys": "may drop runs when the server's memory is full",
    "volatile": "may end leases before their time when the server's memory is full",
}


def prepare(link: Link, keys: Keys, create: bool) -> None:
    """Make the store if there is none. Raises ConfigError if it may not be made, NewerFormat, CorruptStore."""
    if _value(link, "replication", "role") == "slave":
        raise redis.ReadOnlyError("it is a replica and takes no writes")
    found = link.ask([("GET", keys.format)])[0]
    if found is None and not create:
        raise nothing_there(link.url)
    if found is None:
        found = link.ask([("SET", keys.format, _FORMAT, "NX"), ("GET", keys.format)])[1]
    if not found.isdigit():
        raise damaged(link.url, f"the key {keys.format} is not the number of a format")
    if int(found) > _FORMAT:
        raise NewerFormat(
            f"{link.url} has format {int(found)}; this version of Perdure knows format {_FORMAT}. It was not touched.",
            hint="Use the version of Perdure that wrote it, or a newer one.",
        )
    link.load()


def durability(link: Link, waitaof: bool) -> tuple[bool, list[str]]:
    """Whether what is acknowledged survives the server's machine, and what is to be said about it.

    Raises ConfigError when the server cannot wait and is to.
    """
    if waitaof:
        _try_waiting(link)
    aof, policy = (
        _setting(link, "appendonly") or _value(link, "persistence", "aof_enabled"),
        _setting(link, "appendfsync"),
    )
    enabled = {"yes": True, "1": True, "no": False, "0": False}.get(aof or "")
    problems = []
    if enabled is False:
        problems.append(f"{link.url} keeps no append-only file: all runs are lost when the server ends without saving.")
    elif enabled is None or (policy is None and not waitaof):
        problems.append(
            f"{link.url} does not tell how it writes to its disk: acknowledged records may be lost in a power cut."
        )
    elif policy != "always" and not waitaof:
        problems.append(
            f"{link.url} has appendfsync {policy}: records acknowledged in the last second or so may be lost in a "
            "power cut. Set it to always, or open the store with waitaof=yes."
        )
    eviction = (_setting(link, "maxmemory-policy") or "").partition("-")[0]
    if eviction in _EVICTS:
        problems.append(f"{link.url} has an eviction policy that {_EVICTS[eviction]}. Set it to noeviction.")
    return waitaof or (enabled is True and policy == "always"), problems


def _try_waiting(link: Link) -> None:
    try:
        link.ask([("WAITAOF", 1, 0, 1000)])
    except redis.ResponseError as error:
        raise ConfigError(
            f"waitaof=yes asks for what {link.url} cannot do: {error}.",
            hint="It takes Valkey, or Redis 7.2, with appendonly yes. Or leave the parameter out.",
        ) from error


def _setting(link: Link, name: str) -> str | None:
    """A setting, or None if the server does not tell: services in a cloud often forbid to ask."""
    try:
        found = link.ask([("CONFIG GET", name)])[0]
    except redis.ResponseError:
        return None
    return {_text(key): _text(value) for key, value in found.items()}.get(name)


def _value(link: Link, section: str, name: str) -> str | None:
    try:
        found = link.ask([("INFO", section)])[0].get(name)
    except redis.ResponseError:
        return None
    return None if found is None else str(found)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
