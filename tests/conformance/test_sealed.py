"""Encrypted, every store keeps the protocol."""

from pathlib import Path

import pytest

from perdure.model import RunKey, RunMeta
from perdure.stores import Encryption
from perdure.stores.base import Store
from perdure.stores.file import FileStore
from perdure.stores.sealed import SealedStore, sealed
from perdure.stores.sqlite import SqliteStore
from perdure.testing.conformance import SharedStoreConformance
from perdure.testing.samples import summarise

KEYS = Encryption({"2026": b"k" * 32})


def encrypted(store: Store) -> Store:
    opened = sealed(store, KEYS, create=True, rows=summarise)
    assert isinstance(opened, SealedStore)
    return opened


class TestSealedSqliteStore(SharedStoreConformance):
    histories = 15

    def open(self, place: Path) -> Store:
        return encrypted(SqliteStore(place / "runs.db"))

    def abandon(self, store: Store) -> None:
        assert isinstance(store, SealedStore) and isinstance(store.inner, SqliteStore)
        store.inner.abandon()


@pytest.mark.long
class TestSealedFileStore(SharedStoreConformance):
    def open(self, place: Path) -> Store:
        late: list[SealedStore] = []

        def rows(key: RunKey, lines: list[bytes]) -> RunMeta:
            return late[0].summarise(key, lines)

        store = encrypted(FileStore(place / "store", summarise=rows))
        assert isinstance(store, SealedStore)
        late.append(store)
        return store

    def abandon(self, store: Store) -> None:
        assert isinstance(store, SealedStore) and isinstance(store.inner, FileStore)
        store.inner.abandon()
