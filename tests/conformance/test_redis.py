"""The Redis store keeps the protocol: each place is a prefix of one server."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import redis

from perdure.stores.base import Store
from perdure.stores.redis import RedisStore
from perdure.testing.conformance import ExpiringStoreConformance


def prefix(place: Path) -> str:
    return hashlib.sha256(bytes(place)).hexdigest()[:24]


class TestRedisStore(ExpiringStoreConformance):
    histories = 25

    @pytest.fixture(autouse=True)
    def _server(self, valkey: Callable[[], str]) -> None:
        self.url = valkey()

    def open(self, place: Path) -> Store:
        return RedisStore(f"{self.url}{'&' if '?' in self.url else '?'}prefix={prefix(place)}&lease=60")

    def abandon(self, store: Store) -> None:
        assert isinstance(store, RedisStore)
        store.abandon()

    def bury(self, place: Path) -> None:
        with redis.Redis.from_url(self.url) as asked:
            for name in asked.scan_iter(f"{prefix(place)}:owner:*"):
                value = asked.get(name)
                if value is not None and not _lives(msgspec.json.decode(value)["pid"]):
                    asked.delete(name)

    def outlive(self, store: Store) -> None:
        assert isinstance(store, RedisStore)
        with redis.Redis.from_url(self.url) as asked:
            assert asked.delete(store._keys.owner(str(store._owner))) == 1


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
