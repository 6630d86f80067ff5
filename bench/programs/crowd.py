"""W6: what a worker and a listing ask of a store, when it has many runs.

All sizes have the same number of runs that are due, because who asks for these is to pay for them and for nothing else.
The others are in every state that a run can be in, most of them finished, as in a store that has been used for long.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sized
from itertools import islice

import perdure
from bench.programs.places import url
from bench.talk import Job, Sample, Watch
from perdure import journal as j
from perdure.clock import SYSTEM
from perdure.codec import dumps
from perdure.fold import State
from perdure.model import ErrorInfo, Lease, RunKey
from perdure.runtime.lease import clock_of
from perdure.runtime.queues import Offer, Search
from perdure.stores import open_store
from perdure.stores.base import Append, Which

_DUE = ("ready",) * 40 + ("queued",) * 40 + ("interrupted",) * 20
"""the kinds of the first runs, at every size: those that can go on now"""
_OTHERS = ("completed",) * 13 + ("failed", "failed", "paused", "waiting", "asking", "later", "cancelled")
"""the kinds of the others, in turn"""
_BATCH = 500
_REPEATS = 15
"""of each query: the median is told"""
_WEEK = 7 * 86400.0


@perdure.flow
async def review(number: int) -> int:
    """The flow that all these runs are of; it is never executed."""
    return number


def fill(job: Job) -> Sample:
    """Make the runs, through the store's own verbs, many in a batch."""
    store = open_store(url(job))
    clock, count = clock_of(store, SYSTEM), job["size"]
    now = clock.now()
    for first in range(0, count, _BATCH):
        numbers = range(first, min(first + _BATCH, count))
        batch = [_item(store.claim(RunKey(f"paper {n // 3:06}", n % 3)), n, now) for n in numbers]
        assert store.append(batch) == [None] * len(batch)
        for item in batch:
            store.release(item.lease)
    store.close()
    return {}


def _item(lease: Lease, number: int, now: float) -> Append:
    """A run of which all is written at once."""
    kind = _DUE[number] if number < len(_DUE) else _OTHERS[number % len(_OTHERS)]
    state, records = State(lease.key), []
    for entry in _entries(kind, lease, now, now + _WEEK + number):
        entry.seq, entry.at = state.seq + 1, now - _WEEK + state.seq
        state.apply(entry)
        records.append(j.encode(lease.key, entry))
    return Append(lease, 0, tuple(records), state.meta())


def _entries(kind: str, lease: Lease, now: float, later: float) -> Iterator[j.Entry]:
    """The journal of a run of that kind; ``later``: a date of its own in the future."""
    payload = dumps("done " * 40)[0]
    if kind in ("queued", "later"):
        wake = now - 1 if kind == "queued" else later
        yield j.RunQueued(run_id=str(lease.key), flow=review.name, queue="default", wake=wake)
        return
    yield j.RunBegan(run_id=str(lease.key), flow=review.name, epoch=lease.epoch, pid=1, host="here")
    yield j.StepStarted(step=1, name="review", fingerprint="f" * 32)
    if kind == "failed":
        error = ErrorInfo("ValueError", "no such paper")
        yield j.StepFailed(step=1, outcome="failed", error=error, final=True)
        yield j.RunFailed(error=error)
        return
    yield j.StepCompleted(step=1, output=payload, seconds=1.0)
    if kind == "completed":
        yield j.RunCompleted(output=payload)
    elif kind == "paused":
        yield j.RunPaused("no reason given", by="ann")
    elif kind == "interrupted":
        yield j.RunInterrupted("the process was told to stop")
    elif kind == "cancelled":
        yield j.RunCancelled("no reason given", by="ann")
    else:
        until = now - 1 if kind == "ready" else later
        asked = j.Asked("Publish?") if kind == "asking" else None
        yield j.StepPending(step=2, name="ask" if asked else "sleep", fingerprint="e" * 32, until=until, asked=asked)
        yield j.RunSuspended("waits", wake=until, input=asked is not None)


def ask(job: Job) -> Sample:
    """Milliseconds that each query takes."""
    place = url(job)
    with perdure.Client(place) as client:
        listed = _median(lambda: list(islice(client.each(), 100)), 100)
        due = _median(client.due, _DUE.count("ready"))
    store = open_store(place)
    clock = clock_of(store, SYSTEM)
    search = Search(clock, Offer({review.name: review}))
    taken = []
    for _ in range(_REPEATS):
        with Watch() as watch:
            runs = search.take(store, 10, busy=False).runs
        assert len(runs) == 10
        taken.append(watch.seconds)
        for lease, _ in runs:
            store.release(lease)
    deadline = _median(lambda: store.runs(Which(later=clock.now(), limit=1)), 1)
    store.close()
    return {"page": listed, "due": due, "claim": statistics.median(taken) * 1000, "deadline": deadline}


def _median(query: Callable[[], Sized], expected: int) -> float:
    times = []
    for _ in range(_REPEATS):
        with Watch() as watch:
            found = len(query())
        assert found == expected, (found, expected)
        times.append(watch.seconds)
    return statistics.median(times) * 1000


WORKLOADS = {"W6 fill": fill, "W6 ask": ask}
