"""Retention while runs go on: a manager with ``retention=`` removes what does not stay, now and then.

One process does it at a time, and none does it again before the time is up: that is a lease and a row under a name of
our own, as every store has them. The work is done on the writer's thread, a run or a page of the listing at a time,
with everything that runs have queued in between.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator
from contextlib import suppress
from itertools import islice
from typing import Final

from perdure import codec
from perdure import journal as j
from perdure.clock import Clock, process_identity
from perdure.errors import LeaseHeld, PerdureError
from perdure.fold import State
from perdure.model import OWN, RunKey, RunMeta
from perdure.runtime.retention import Retention, prune
from perdure.runtime.settle import write
from perdure.runtime.writer import Writer
from perdure.stores.base import Store, Which

log = logging.getLogger("perdure")
EVERY: Final = 600.0
"""seconds from one time to the next"""
_SWEEP: Final = RunKey(f"{OWN}retention")


class Sweep:
    """Prunes the store of ``writer``, until ``close``."""

    def __init__(self, writer: Writer, retention: Retention, clock: Clock) -> None:
        self._writer, self._retention, self._clock = writer, retention, clock
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="perdure-retention", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._closed.is_set():
            try:
                self._once()
            except PerdureError as problem:
                log.warning("retention could not be seen to, and will be in %g s: %s", EVERY, problem)
            self._clock.wait(self._closed, EVERY)

    def _once(self) -> None:
        removed = size = 0
        rounds = sweep(self._writer.store, self._retention, self._clock)
        try:
            while not self._closed.is_set():
                found = self._writer.call(lambda: list(islice(rounds, 1))).result()
                if not found:
                    break
                if found[0] is not None:
                    removed, size = removed + 1, size + found[0].size
        finally:
            self._writer.call(rounds.close).result()
        if removed:
            log.info("retention removed %d runs (%d bytes)", removed, size)


def sweep(store: Store, retention: Retention, clock: Clock) -> Generator[RunMeta | None]:
    """As ``prune``, unless somebody does it, or did it a short time ago."""
    with suppress(LeaseHeld):
        lease = store.claim(_SWEEP)
        try:
            rows = store.runs(Which(goal=_SWEEP.goal))
            if rows and clock.now() < rows[0].updated + EVERY:
                return
            yield from prune(store, retention, clock)
            store.delete(lease)
            lease = store.claim(_SWEEP)
            pid, host = process_identity()
            began = j.RunBegan(run_id=clock.new_id(), flow=_SWEEP.goal, epoch=lease.epoch, pid=pid, host=host)
            write(store, lease, State(_SWEEP), [began, j.RunCompleted(output=codec.dumps(None)[0])], clock)
        finally:
            store.release(lease)
