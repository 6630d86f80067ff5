"""Why a run that could go on is not executed: told from what living workers say that they can execute."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf

import msgspec

from perdure import states
from perdure.inbox import when
from perdure.model import RunMeta
from perdure.runtime.queues import room
from perdure.runtime.worker import WORKER


class Announced(msgspec.Struct, frozen=True):
    """What a living worker can execute."""

    flows: dict[str, list[str]]
    """name -> versions of runs that it goes on with"""
    queues: list[str]
    """[]: all"""

    def serves(self, row: RunMeta) -> bool:
        return not self.queues or row.queue in self.queues


def announced(rows: Iterable[RunMeta]) -> list[Announced]:
    """The workers that live, among all rows of a store."""
    return [
        Announced(
            msgspec.json.decode(row.tags["flows"], type=dict[str, list[str]]),
            msgspec.json.decode(row.tags["queues"], type=list[str]),
        )
        for row in rows
        if row.flow == WORKER and row.holder is not None
    ]


def why_waiting(row: RunMeta, rows: Sequence[RunMeta], workers: Sequence[Announced], now: float) -> str:
    """Why nobody executes a run that may go on; "" if somebody does, it may not, or one is about to take it up."""
    if row.holder is not None or row.status not in states.RUN_WAITS_FOR_WORKER or (row.parent and not row.queue):
        return ""
    if row.status == states.QUEUED and row.wake > now:
        return f"not before {when(row.wake)}"
    if not workers:
        return "no worker runs" if row.queue else ""
    able = [worker for worker in workers if row.flow in worker.flows]
    if not able:
        return f"no worker has the flow {row.flow!r}"
    fitting = [worker for worker in able if row.version in worker.flows[row.flow]]
    if not fitting:
        known = sorted({version or "(none)" for worker in able for version in worker.flows[row.flow]})
        return f"it is of version {row.version or '(none)'} of its flow, and workers go on with {', '.join(known)}"
    if not any(worker.serves(row) for worker in fitting):
        return f"no worker serves the queue {row.queue!r}" if row.queue else "every worker serves certain queues only"
    limits = row.limits
    if limits:
        mine = [r for r in rows if r.queue == row.queue and (r.holder is not None or r.begun > now - limits.per)]
        until = room(mine, limits, now)
        if until == inf:
            return f"its queue executes {limits.concurrency} at a time"
        if until:
            return f"{limits.rate} of its queue have begun within {limits.per:g} s; the next may at {when(until)}"
    return ""
