"""The peers: how each is configured, what it does, what its durability is, and who is not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.cast import PEER, Contender, Part, Peer

PACKAGES: Sequence[str] = (
    *("langgraph", "langgraph-checkpoint", "langgraph-checkpoint-sqlite", "langgraph-checkpoint-postgres"),
    *("dbos", "absurd-sdk", "absurdctl", "burr", "psycopg", "SQLAlchemy"),
)
"""whose versions are told"""

ABSENT: Mapping[str, str] = {
    "Restate": "its Python package is a client; no wheel brings its server.",
    "Hatchet": "its Python package is a client; no wheel brings its engine.",
    "Pydantic Graph": "it keeps nothing beyond its process (2.68).",
    "Dynamiq": "it asks for some 200 packages, and for other versions of what the peers here have in common (0.69).",
}
"""who is not measured, and why"""

_WAL = "WAL, synchronous=FULL"
_FULL = Part()


def _langgraph(api: str, store: str, about: str, does: Mapping[str, Part], **options: object) -> Peer:
    what = f"LangGraph {api}, {store}, {'delta channel' if options.get('delta') else 'durability=sync'}"
    more = {"store": store, "api": api, **options}
    return Peer(Contender(what, store, "peers.langgraph", PEER, more, api == "graph", about), does)


def _dbos(store: str, about: str, does: Mapping[str, Part], *, safe: bool = False, durable: bool = True) -> Peer:
    name = f"DBOS, {store}{f', {_WAL}' if safe else ''}"
    return Peer(Contender(name, store, "peers.dbos", PEER, {"store": store, "safe": safe}, durable, about), does)


def _burr(about: str, does: Mapping[str, Part], *, safe: bool = False) -> Peer:
    name = f"Burr, sqlite{f', {_WAL}' if safe else ''}"
    return Peer(Contender(name, "sqlite", "peers.burr", PEER, {"store": "sqlite", "safe": safe}, safe, about), does)


_FUNCTIONAL = "a thread writes a task's result; the caller has it before that, so that what was reported may run again"
_GRAPH = "the whole state is written after each node, before the next begins"
_JOURNAL = (
    "SQLite's default rollback journal: a power cut may take the last commit back, because no directory is synced"
)
_STEP = "one transaction a step, after its body; nothing says that a body has begun"

PEERS: Sequence[Peer] = (
    _langgraph(
        "functional",
        "sqlite",
        f"{_WAL}; {_FUNCTIONAL}",
        {"W1": _FULL, "W2": _FULL, "W3": _FULL, "W4 flow": Part(rounds=1)},
    ),
    _langgraph(
        "graph",
        "sqlite",
        f"{_WAL}; {_GRAPH}",
        {
            "W1": _FULL,
            "W2": Part(rounds=1),  # 4 GB
            "W3": _FULL,
            "W4 flow": Part(rounds=2),
            "W4 agent": Part(largest=1000, rounds=2),
        },
    ),
    _langgraph(
        "graph",
        "sqlite",
        f"{_WAL}; what is new is written after each node, and now and then the whole state",
        {"W2": Part(rounds=3), "W4 agent": Part(largest=1000, rounds=2)},
        delta=True,
    ),
    _langgraph("functional", "postgresql", _FUNCTIONAL, {"W1": _FULL, "W3": _FULL}),
    _langgraph("graph", "postgresql", _GRAPH, {"W1": _FULL, "W3": Part(rounds=3)}, threads=True),
    _dbos("sqlite", f"{_JOURNAL}; {_STEP}", {"W1": _FULL, "W3": Part(rounds=2)}, durable=False),
    _dbos(
        "sqlite",
        _STEP,
        {"W1": _FULL, "W2": Part(rounds=3), "W3": Part(rounds=3), "W4 flow": Part(rounds=2)},
        safe=True,
    ),
    _dbos(
        "postgresql",
        _STEP,
        {"W1": Part(rounds=3), "W3": Part(rounds=3), "W4 flow": Part(largest=1000, rounds=2)},
    ),
    Peer(
        Contender("Absurd, postgresql", "postgresql", "peers.absurd", PEER, {"store": "postgresql"}, True, _STEP),
        {"W1": _FULL, "W2": _FULL, "W3": _FULL, "W4 flow": Part(rounds=2)},
    ),
    _burr(f"{_JOURNAL}; {_GRAPH}", {"W1": _FULL}),
    _burr(_GRAPH, {"W1": _FULL, "W2": Part(largest=1000, rounds=1), "W4 flow": Part(rounds=2)}, safe=True),
)
