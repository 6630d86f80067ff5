"""Why a run that could go on is not executed: told from what living workers say that they can execute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import inf
from typing import NamedTuple, TypeAlias

import msgspec

from perdure import states
from perdure.inbox import when
from perdure.limits import decoded
from perdure.model import RunMeta
from perdure.runtime.queues import room
from perdure.runtime.worker import WORKER, Announcement

_ANNOUNCEMENT = msgspec.json.Decoder(Announcement)
Active: TypeAlias = Callable[[str, float], Sequence[RunMeta]]
"""of a queue, the runs that somebody holds, or that began after a time"""


class Announced(NamedTuple):
    """A living worker, as others see it."""

    can: Announcement
    executes: int
    """how many runs"""

    def goes_on_with(self, row: RunMeta) -> bool:
        return row.version in self.can.flows.get(row.flow, ())

    def serves(self, row: RunMeta) -> bool:
        return not self.can.queues or row.queue in self.can.queues


def announced(rows: Sequence[RunMeta]) -> list[Announced]:
    """The workers that live, among the rows of whatever somebody holds."""
    executing = Counter(row.holder.owner for row in rows if row.holder is not None and row.flow != WORKER)
    found = []
    for row in rows:
        if row.flow == WORKER and row.holder is not None:
            with suppress(ValueError):  # it says nothing that can be read, and explains nothing
                said = decoded(row.tags.get("worker", ""), _ANNOUNCEMENT.decode)
                found.append(Announced(said, executing[row.holder.owner]))
    return found


def why_waiting(row: RunMeta, active: Active, workers: Sequence[Announced], now: float) -> str:
    """Why nobody executes a run that may go on; "" if somebody does, it may not, or one is about to take it up."""
    if row.holder is not None or row.status not in states.RUN_WAITS_FOR_WORKER or (row.parent and not row.queue):
        return ""
    if row.status == states.QUEUED and row.wake > now:
        return f"not before {when(row.wake)}"
    if not workers:
        return "no worker runs" if row.queue else ""
    able = [worker for worker in workers if row.flow in worker.can.flows]
    if not able:
        return f"no worker has the flow {row.flow!r}"
    fitting = [worker for worker in able if worker.goes_on_with(row)]
    if not fitting:
        known = sorted({version or "(none)" for worker in able for version in worker.can.flows[row.flow]})
        return f"it is of version {row.version or '(none)'} of its flow, and workers go on with {', '.join(known)}"
    serving = [worker for worker in fitting if worker.serves(row)]
    if not serving:
        return f"no worker serves the queue {row.queue!r}" if row.queue else "every worker serves certain queues only"
    if all(worker.executes >= worker.can.concurrency for worker in serving):
        return "every worker that could execute it is busy"
    limits = row.limits
    if limits:
        until = room(active(row.queue, now - limits.per), limits, now)
        if until == inf:
            return f"its queue executes {limits.concurrency} at a time"
        if until:
            return f"{limits.rate} of its queue have begun within {limits.per:g} s; the next may at {when(until)}"
    return ""
