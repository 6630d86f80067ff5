"""The worker: a process that takes up whatever runs wait for one, and executes them.

It needs no other process, no leader and no registration: each worker looks for runs that nobody holds, and a claim
decides who has one (queues.py). What a dead worker held is free by itself (lease.py), and found like everything else.
When there is nothing to do it sleeps until somebody posts, submits or frees something, or a date comes; a store that
cannot tell it is asked twice a second.

A worker keeps a run of its own that is in no listing: its row says what it can execute, and its lease whether it lives.
``perdure ls`` tells from these why a run is waiting.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from math import inf
from typing import Any

import msgspec

from perdure import journal as j
from perdure.clock import Clock, process_identity
from perdure.errors import (
    ConfigError,
    CorruptStore,
    FencedError,
    Halted,
    LeaseHeld,
    PerdureError,
    RetryError,
    RunCancelled,
    RunPaused,
    RunStopped,
    RunSuspended,
    StoreError,
)
from perdure.fold import State
from perdure.model import OWN, Attribution, Lease, RunKey, RunMeta
from perdure.runtime.execute import as_function, carry_out, carry_out_async
from perdure.runtime.live import LiveRun
from perdure.runtime.lives import Lives
from perdure.runtime.queues import Offer, Search, Taken
from perdure.runtime.settle import write
from perdure.runtime.steps import Function, Inputs
from perdure.runtime.threads import in_thread
from perdure.stores.base import Store

log = logging.getLogger("perdure")
WORKER = f"{OWN}worker"
"""flow of the run that a worker is itself"""
_ASK = 0.5
"""seconds between two looks into a store that cannot tell when there is something"""
_EXPECTED = (RunSuspended, RunStopped, RunCancelled, RunPaused)
"""ways for a run to leave a worker that are no failure of it"""


class Announcement(msgspec.Struct, frozen=True):
    """What a living worker can execute."""

    flows: dict[str, list[str]]
    """name -> versions of runs that it goes on with"""
    queues: list[str]
    """[]: all"""
    concurrency: int


class Worker:
    """Executes runs of ``flows`` on the store of a manager, ``concurrency`` at a time, in one event loop (async flows)
    and in threads (sync flows)."""

    def __init__(
        self,
        lives: Lives,
        flows: Mapping[str, Function[..., Any]],
        *,
        concurrency: int,
        queues: Sequence[str] = (),
        grace: float,
        until_idle: bool = False,
    ) -> None:
        assert lives.writer is not None
        if not isinstance(concurrency, int) or isinstance(concurrency, bool) or concurrency < 1:
            raise ConfigError(f"concurrency must be a whole number from 1, not {concurrency!r}.")
        if isinstance(queues, str):
            raise ConfigError(f"queues must be a list of names, not {queues!r}.", hint=f"Write [{queues!r}].")
        self._lives, self._writer = lives, lives.writer
        self._offer = Offer(flows, tuple(queues))
        self._search = Search(lives.clock, self._offer)
        self._concurrency, self._grace, self._until_idle = concurrency, grace, until_idle
        self._works: dict[asyncio.Task[None], _Work] = {}
        self._news = asyncio.Event()
        self._alone = False
        """what it executes is to be executed alone"""
        self._announced: Lease | None = None
        self._losses = 0
        self._stopping = self._told = False
        """it takes up nothing more; because somebody told it to"""
        self._failure: StoreError | None = None
        self.ended: dict[RunKey, str] = {}
        """``until_idle``: the runs that it executed, and their status then"""

    async def work(self) -> None:
        """Until it is told to stop, or (``until_idle``) until there is nothing left to do. Raises StoreError, if it was
        not told to stop."""
        loop = asyncio.get_running_loop()
        can = self._writer.store.capabilities
        deaf = can.listen(partial(_ring, loop, self._news)) if can.listen is not None else None
        clock, began = self._lives.clock, self._lives.clock.monotonic()
        try:
            while not self._stopping:
                self._news.clear()
                idle, passed = not self._works, clock.monotonic() - began
                taken = await self._take()
                dying = taken.held and passed < can.lease  # what a dead one held is free after that
                if self._until_idle and idle and not self._works and taken.pause > _ASK and not dying:
                    break
                await self._sleep(taken.pause if deaf is not None else min(taken.pause, _ASK))
        finally:
            await self._drain()
            if deaf is not None:
                deaf()
        if self._failure is not None and not self._told:
            raise self._failure

    def stop(self) -> None:
        """Take up nothing more, let steps that run come to their end, and give everything up. Called a second time: do
        not wait for them. On the loop's thread."""
        if self._told:
            self._grace = 0.0
        self._stopping = self._told = True
        self._news.set()

    async def _take(self) -> Taken:
        """Take up what there is, as far as there is room."""
        free = self._concurrency - len(self._works)
        if free <= 0 or (self._alone and self._works):
            return Taken([], inf)
        try:
            await self._announce()
            taken = await self._claim(free)
        except (RetryError, CorruptStore) as problem:
            log.warning("looking for runs is tried again: %s", problem)
            return Taken([], _ASK)
        except FencedError:  # its leases have just been lost
            return Taken([], _ASK)
        except StoreError as failure:
            self._fail(failure)
            return Taken([], inf)
        self._alone = taken.alone
        for lease, row in taken.runs:
            work = _Work(self._lives, lease, self._offer.flows[row.flow])
            task = asyncio.create_task(self._execute(work, row))
            self._works[task] = work
            task.add_done_callback(self._done)
        return taken

    async def _claim(self, free: int) -> Taken:
        """Look on the writer's thread; what is claimed while nobody waits for it any more is given back."""
        store, busy = self._writer.store, bool(self._works)
        taking = self._writer.call(lambda: self._search.take(store, free, busy))
        try:
            return await asyncio.shield(asyncio.wrap_future(taking))
        except asyncio.CancelledError:
            taking.add_done_callback(partial(_give_back, store))
            raise

    async def _announce(self) -> None:
        """Write down what this worker can execute; once more if the lease of that was lost."""
        if self._announced is None or self._losses != self._lives.losses:
            self._losses = self._lives.losses
            store, clock, offer, most = self._writer.store, self._lives.clock, self._offer, self._concurrency
            old = self._announced
            announcing = self._writer.call(lambda: announce(store, clock, offer, most, old))
            self._announced = await asyncio.shield(asyncio.wrap_future(announcing))

    def _fail(self, failure: StoreError) -> None:
        self._failure = self._failure or failure
        self._stopping = True
        self._news.set()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._works.pop(task, None)
        self._news.set()

    async def _execute(self, work: _Work, row: RunMeta) -> None:
        try:
            await work.execute()
        except Halted:  # it was given up at its next step
            pass
        except _EXPECTED as left:
            log.info("%s", left)
        except FencedError as lost:
            log.warning("%s", lost)
        except CorruptStore as damage:
            self._leave(work, row, damage)
        except StoreError as failure:
            self._fail(failure)
        except asyncio.CancelledError:
            if work.cut:  # by us; else the flow has cancelled itself
                raise
            log.error("run %s failed: it was cancelled from within", row.key)
        except BaseException as error:  # SystemExit too: a flow does not end the worker
            if work.run is None and isinstance(error, Exception):
                self._leave(work, row, error)
            else:
                log.error("run %s failed: %s: %s", row.key, type(error).__name__, error)
        if self._until_idle and work.run is not None:
            self.ended[row.key] = work.run.state.status or ""

    def _leave(self, work: _Work, row: RunMeta, why: Exception) -> None:
        """Leave a run alone that cannot be executed here, until something about it has changed."""
        self._search.leave(row.key, row.seq if work.run is None else work.run.state.seq, why)

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(None if seconds == inf else max(seconds, 0.0)):
                await self._news.wait()

    async def _drain(self) -> None:
        """Give up what is executed: at its next step, or when the grace is over."""
        for work in self._works.values():
            work.interrupt()
        clock = self._lives.clock
        began = clock.monotonic()
        while self._works and (left := began + self._grace - clock.monotonic()) > 0:
            self._news.clear()
            await self._sleep(left)
        tasks = list(self._works)
        for task in tasks:
            self._works[task].cut = True
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Work:
    """A run that this worker has claimed, until it is given up."""

    def __init__(self, lives: Lives, lease: Lease, function: Function[..., Any]) -> None:
        self._lives, self._lease, self._function = lives, lease, function
        self.run: LiveRun | None = None
        self.cut = False
        """its steps are not waited for"""
        self._stopped = False

    async def execute(self) -> None:
        """Take the run up and carry it out. Raises how it left, if it did not complete."""
        taking = self._lives.take_up(self._lease, self._function)
        try:
            taken = await asyncio.shield(asyncio.wrap_future(taking))
        except asyncio.CancelledError:
            in_thread(lambda: self._give_up(taking), "give-up")
            raise
        if taken is None:  # its posts were moved, and there is nothing to execute
            return
        self.run, inputs = taken
        self.run.supervised = lambda: not self.cut
        if self._stopped:
            self.run.interrupt()
        if self._function.is_async:
            await carry_out_async(self._lives, self._function, self.run, inputs)
        else:
            await self._in_thread(self.run, inputs)

    def interrupt(self) -> None:
        """Have the run unwound where it waits or begins something new."""
        self._stopped = True
        if self.run is not None:
            self.run.interrupt()

    async def _in_thread(self, run: LiveRun, inputs: Inputs) -> None:
        executing = in_thread(lambda: carry_out(self._lives, self._function, run, inputs), "flow")
        try:
            await asyncio.wrap_future(executing)
        except asyncio.CancelledError:  # the thread cannot be stopped; what it still does is not kept
            if not executing.done():
                _interrupted(self._lives, run)
            raise

    def _give_up(self, taking: Future[tuple[LiveRun, Inputs] | None]) -> None:
        taken = taking.result()
        if taken is not None:
            _interrupted(self._lives, taken[0])


def _interrupted(lives: Lives, run: LiveRun) -> None:
    """Give up a run in the middle of a step."""
    with suppress(PerdureError):
        run.emit((j.RunInterrupted(reason="its worker was stopped in the middle of a step"),), last=True)
    lives.end(run, wait=False)


def _ring(loop: asyncio.AbstractEventLoop, news: asyncio.Event, posted: bool) -> None:
    with suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(news.set)


def _give_back(store: Store, taking: Future[Taken]) -> None:
    """On the writer's thread: release what was claimed for a worker that is gone."""
    if taking.exception() is None:
        for lease, _ in taking.result().runs:
            store.release(lease)


def announce(store: Store, clock: Clock, offer: Offer, concurrency: int, old: Lease | None = None) -> Lease:
    """Write down what a worker can execute, under a lease that lives as long as it does: in the first place that no
    living worker has. ``old``: the lease under which it had done so, and that may be lost."""
    if old is not None:
        with suppress(FencedError):
            store.delete(old)
    pid, host = process_identity()
    versions = {name: sorted({flow.version, *flow.accepts}) for name, flow in offer.flows.items()}
    told = Announcement(versions, list(offer.queues), concurrency)
    for place in count():
        key = RunKey(WORKER, place)
        try:
            lease = store.claim(key)
        except LeaseHeld:
            continue
        if store.read(key):  # of one that has died
            store.delete(lease)
            lease = store.claim(key)
        tags = {"worker": msgspec.json.encode(told).decode()}
        began = j.RunBegan(
            run_id=clock.new_id(),
            flow=WORKER,
            epoch=lease.epoch,
            pid=pid,
            host=host,
            attribution=Attribution(tags=tags),
        )
        write(store, lease, State(key), [began], clock)
        return lease
    raise AssertionError


def by_name(flows: Sequence[Callable[..., Any]]) -> dict[str, Function[..., Any]]:
    """Flows by their names. Raises ConfigError for steps, and for two flows of one name."""
    found: dict[str, Function[..., Any]] = {}
    for flow in flows:
        function = as_function(flow)
        if found.setdefault(function.name, function) is not function:
            raise ConfigError(
                f"Two flows are called {function.name!r}.", hint="Give one of them another name=: runs know it by that."
            )
        _ = function.digest  # its code is read now, while its files are what was loaded
    if not found:
        raise ConfigError("There is no flow to execute.", hint="Name at least one.")
    return found


@contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """In the main thread, SIGTERM and SIGINT call ``stop`` on the running loop while the block runs."""
    loop, before = asyncio.get_running_loop(), {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.getsignal(number)
            loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
