"""The peers: how each is configured, what it does, and what its durability is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.cast import Peer

PEERS: Sequence[Peer] = ()

PACKAGES: Sequence[str] = (
    "langgraph",
    "langgraph-checkpoint",
    "langgraph-checkpoint-sqlite",
    "langgraph-checkpoint-postgres",
    "dbos",
    "absurd-sdk",
    "absurdctl",
    "burr",
    "psycopg",
    "SQLAlchemy",
)
"""whose versions are told"""

ABSENT: Mapping[str, str] = {}
"""who is not measured, and why"""
