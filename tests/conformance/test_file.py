"""The file store keeps the protocol."""

from pathlib import Path

from perdure.stores.base import Store
from perdure.stores.file import FileStore
from perdure.testing.conformance import SharedStoreConformance
from perdure.testing.samples import summarise


class TestFileStore(SharedStoreConformance):
    def open(self, place: Path) -> Store:
        return FileStore(place / "store", summarise=summarise)

    def abandon(self, store: Store) -> None:
        assert isinstance(store, FileStore)
        store.abandon()
