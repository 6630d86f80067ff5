"""Opening a store in Redis: whether it is there and of which format, and what its server does not promise.

How durable a write is is the server's own setting. ``appendfsync always`` loses nothing in a power cut; with
``everysec`` (2,526 of 54,702 acknowledged appends were lost in one) or without the append-only file the store says so,
unless it was told to wait (``waitaof=yes``). A replica that takes over from a primary may lack its last writes whatever
is set: replication is asynchronous, and that is not warned of each time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import redis

from perdure.errors import ConfigError, NewerFormat
from perdure.model import RunKey
from perdure.stores.handle import nothing_there
from perdure.stores.redis_keys import Keys, damaged, key_of, mark_of
from perdure.stores.redis_link import Command, Link

_FORMAT: Final = 2
_DIGEST: Final = re.compile(rb"[0-9a-f]{64}")
_PAGE: Final = 500
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
    if int(found) < 2:
        for key in _runs(link, keys):
            _mark_blobs(link, keys, key)
        link.ask([("SET", keys.format, _FORMAT)])


def _runs(link: Link, keys: Keys) -> Iterator[RunKey]:
    begin = b"-"
    while names := link.ask([("ZRANGEBYLEX", keys.runs, begin, "+", "LIMIT", 0, _PAGE)])[0]:
        begin = b"(" + names[-1]
        yield from (key for name in names if (key := key_of(name)) is not None)


def _mark_blobs(link: Link, keys: Keys, key: RunKey) -> None:
    """A store of format 1 does not know which runs were given a blob: whatever journal has its name. Nor how large they
    are. Whoever opens it finds that out anew, as often as it takes: nothing is done twice by doing it again."""
    run = keys.run(key)
    epoch, lines = link.ask([("HGET", run, "epoch"), ("LRANGE", keys.journal(key), 0, -1)])
    if not lines:
        return
    if not (epoch or b"").isdigit():
        raise damaged(link.url, f"the row of run {key}")
    digests = sorted({found.decode() for line in lines for found in _DIGEST.findall(line)})
    sizes = link.ask([("STRLEN", keys.blob(digest)) for digest in digests]) if digests else []
    given: list[Command] = []
    for digest, size in zip(digests, sizes, strict=True):
        if size:
            given.append(("SADD", keys.given(key), f"{digest}:{int(epoch)}"))
            given.append(("SADD", keys.marks(digest), mark_of(key, int(epoch))))
    link.ask([*given, ("HSETNX", run, "size", sum(sizes) + sum(map(len, lines)))])


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
