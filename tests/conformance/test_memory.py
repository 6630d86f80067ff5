"""The memory store keeps the protocol. Handles on one place share a backend, as processes share a disk."""

from pathlib import Path

from perdure.stores.base import Store
from perdure.stores.memory import MemoryBackend, MemoryStore
from perdure.testing.conformance import StoreConformance


class TestMemoryStore(StoreConformance):
    def setup_method(self) -> None:
        self.backends: dict[Path, MemoryBackend] = {}

    def open(self, place: Path) -> Store:
        return MemoryStore(self.backends.setdefault(place, MemoryBackend()))

    def abandon(self, store: Store) -> None:
        assert isinstance(store, MemoryStore)
        store.abandon()
