"""The SQLite store keeps the protocol."""

from pathlib import Path

from perdure.stores.base import Store
from perdure.stores.sqlite import SqliteStore
from perdure.testing.conformance import SharedStoreConformance


class TestSqliteStore(SharedStoreConformance):
    def open(self, place: Path) -> Store:
        return SqliteStore(place / "runs.db")

    def abandon(self, store: Store) -> None:
        assert isinstance(store, SqliteStore)
        store.abandon()
