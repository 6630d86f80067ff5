"""The PostgreSQL store keeps the protocol, on the oldest and the newest server that is tested."""

import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import ClassVar

import psycopg
import pytest

from perdure.stores.base import Store
from perdure.stores.postgres import PostgresStore
from perdure.testing.conformance import ExpiringStoreConformance


class Suite(ExpiringStoreConformance):
    version: ClassVar[int]

    @pytest.fixture(autouse=True)
    def server(self, postgres: Callable[[int], str]) -> None:
        self.url = postgres(self.version)

    def schema(self, place: Path) -> str:
        return "t_" + sha256(str(place).encode()).hexdigest()[:24]

    def open(self, place: Path) -> Store:
        return PostgresStore(f"{self.url}?schema={self.schema(place)}&lease=60")

    def abandon(self, store: Store) -> None:
        assert isinstance(store, PostgresStore)
        store.abandon()

    def bury(self, place: Path) -> None:
        with psycopg.connect(self.url, autocommit=True) as db:
            table = f"{self.schema(place)}.owners"
            for name, pid in db.execute(f"SELECT id, pid FROM {table}").fetchall():
                if not os.path.exists(f"/proc/{pid}"):
                    db.execute(f"UPDATE {table} SET until = clock_timestamp() WHERE id = %s", (name,))

    def outlive(self, store: Store) -> None:
        assert isinstance(store, PostgresStore)
        with psycopg.connect(self.url, autocommit=True) as db:
            schema = store.place.schema
            db.execute(f"UPDATE {schema}.owners SET until = clock_timestamp() WHERE id = %s", (store._owner,))


class TestPostgres16Store(Suite):
    version = 16
    histories = 10


class TestPostgres18Store(Suite):
    version = 18
    histories = 15


del Suite
