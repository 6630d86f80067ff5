"""Who takes part in what: Perdure, the raw limit of the device, and peers, each as it is configured.

A contender's ``options`` go to its program with every job. ``durable`` says whether a step that was reported done is
never executed again after a crash of the process or a power cut, as the contender is configured here: only those that
are count when the best peer is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

OURS, RAW, PEER = "ours", "raw", "peer"


class Contender(NamedTuple):
    name: str
    store: str
    program: str
    role: str
    options: Mapping[str, Any] = {}
    durable: bool = True
    about: str = ""
    """what its durability is, for a peer: read from its source, and held against what is seen"""


class Part(NamedTuple):
    """How far a peer goes in a workload."""

    largest: int = 10**9
    """the largest size; what is larger would take hours, or all of the disk"""
    rounds: int = 10**6
    """at most so many, for the same reason"""


class Peer(NamedTuple):
    contender: Contender
    does: Mapping[str, Part]


_PROMISES = {
    "strict": "`started` is durable before the body runs, `completed` before the caller has the result",
    "pipelined": "`completed` is durable before the next body runs; a crash in between repeats one step",
}


def ours(store: str, durability: str = "strict", colour: str = "sync") -> Contender:
    """Perdure on a store."""
    name = f"Perdure, {store}, {durability}, {colour}"
    options = {"store": store, "durability": durability, "colour": colour}
    return Contender(name, store, "programs.ours", OURS, options, durability == "strict", _PROMISES[durability])


def perdure(store: str, **options: Any) -> Contender:
    """Perdure on a store, where durability and colour are no question."""
    words = [str(value) for value in options.values()]
    return Contender(", ".join(("Perdure", store, *words)), store, "programs.ours", OURS, {"store": store, **options})


def raw(store: str, name: str = "") -> Contender:
    """The raw limit on a kind of store."""
    what = {
        "sqlite": "commits (apsw)",
        "file": "append + fdatasync",
        "postgresql": "commits (psycopg)",
        "valkey": "RPUSH (redis-py)",
    }[store]
    return Contender(f"raw {store} {name or what}", store, "programs.raw", RAW, {"store": store})


STORES = ("sqlite", "file", "postgresql", "valkey")
VARIANTS = (("strict", "sync"), ("strict", "async"), ("pipelined", "sync"), ("pipelined", "async"))
GROUPS = "in groups, one writer thread"
"""the raw limit for many runs at a time"""
ROWS = "rows read, nothing done with them"
"""the raw limit of resuming"""
