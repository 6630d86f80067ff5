"""``replay``: today's code against recorded runs, in your own test suite.

from perdure.testing import replay

def test_recorded_runs_can_still_be_followed():
    for told in replay(review, archive="tests/recorded.perdure"):
        assert told.ok, str(told)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perdure import states
from perdure.clock import SYSTEM
from perdure.errors import ConfigError, CorruptStore
from perdure.model import RunMeta
from perdure.runtime.client import Client
from perdure.runtime.config import CheckpointConfig, default_store
from perdure.runtime.rehearsal import rehearse
from perdure.runtime.restore import Terms, restore
from perdure.runtime.unpack import unpack
from perdure.runtime.verdict import Told, verdict
from perdure.runtime.worker import by_name
from perdure.stores import open_store
from perdure.stores.base import Store
from perdure.stores.memory import MemoryStore

_ENDED = (states.COMPLETED, states.FAILED, states.CANCELLED)


def replay(
    *flows: Callable[..., Any],
    archive: str | Path | None = None,
    store: str | Store | None = None,
    runs: Sequence[str] = (),
    unfinished: bool = False,
    config: CheckpointConfig | None = None,
) -> list[Told]:
    """Run today's code of ``flows`` against recorded results, without executing any step, and say of each run whether
    the code follows its records, or where it first does not. Nothing is written anywhere; blocks.

    - ``archive``: a file that ``perdure export`` wrote; all runs of it that are of these flows, or those named in
      ``runs``. Else the runs of ``store`` that have not ended, or those named.
    - ``unfinished``: of an archive too only those that have not ended.
    - ``config``: its ``redact`` and ``secrets``, where the runs were recorded with such.

    Raises ConfigError if there is no such run at all, as a test that looks at nothing is none; RunNotFound, StoreError.
    """
    with Recorded(flows, archive=archive, store=store, config=config) as recorded:
        found = list(recorded.replayed(runs, unfinished=unfinished))
        if not found:
            others = f" There are runs of: {', '.join(recorded.others)}." if recorded.others else ""
            names = ", ".join(recorded.flows)
            raise ConfigError(f"There is no run of {names} to replay in {recorded.place}.{others}")
    return found


class Recorded:
    """Runs of a store or an archive, to be replayed. Use as a context manager."""

    def __init__(
        self,
        flows: Sequence[Callable[..., Any]],
        *,
        archive: str | Path | None = None,
        store: str | Store | None = None,
        config: CheckpointConfig | None = None,
    ) -> None:
        if archive is not None and store is not None:
            raise ConfigError("Runs are replayed from an archive or from a store, not both.", hint="Name one of them.")
        self.flows = by_name(flows)
        self.others: Counter[str] = Counter()
        """flows that runs are of and that are not among these, and how many runs"""
        self._config = config or CheckpointConfig()
        self._is_archive = archive is not None
        self.place = str(archive) if archive is not None else ""
        self._opened = _unpacked(archive) if archive is not None else _stored(store)

    def __enter__(self) -> Recorded:
        self._store = self._opened.__enter__()
        self._client = Client(self._store)
        self.place = self.place or self._client.url
        return self

    def __exit__(self, *error: Any) -> None:
        self._opened.__exit__(*error)

    def replayed(self, names: Sequence[str] = (), *, unfinished: bool = False) -> Iterator[Told]:
        """What came of each of the runs with these ``names``; of all of an archive if there are none, or of those that
        have not ended. Raises RunNotFound, ConfigError for a named run of another flow."""
        for row in [self._named(name) for name in names] if names else self._client.each():
            if row.flow not in self.flows:
                self.others[row.flow] += 1
            elif names or row.status not in _ENDED or (self._is_archive and not unfinished):
                yield self._told(row)

    def _named(self, name: str) -> RunMeta:
        row = self._client.find(name)
        if row.flow not in self.flows:
            raise ConfigError(
                f"run {row.key} is of the flow {row.flow!r}, which is not among: {', '.join(self.flows)}.",
                hint="A run knows its flow by name; a run that was marked by hand (manager.begin) has none.",
            )
        return row

    def _told(self, row: RunMeta) -> Told:
        try:
            return verdict(rehearse(self.flows[row.flow], self._store, row.key, self._config))
        except (ConfigError, CorruptStore) as problem:
            return Told(run=str(row.key), flow=row.flow, verdict="refused", why=problem.args[0], status=row.status)


@contextmanager
def _unpacked(archive: str | Path) -> Iterator[Store]:
    """A store in memory with the runs of an archive. They come in as they are, since nothing of them is executed."""
    with unpack(archive, now=SYSTEM.now()) as packed:
        store = MemoryStore()
        restore(store, SYSTEM, packed, Terms("replay", trust=True), lambda runs: None)
    yield store


@contextmanager
def _stored(store: str | Store | None) -> Iterator[Store]:
    opened = open_store(store if store is not None else default_store(), create=False)
    try:
        yield opened
    finally:
        if opened is not store:
            opened.close()
