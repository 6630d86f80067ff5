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
from math import inf
from typing import Any, TypeVar

import msgspec

from perdure import journal as j
from perdure.clock import Clock, process_identity
from perdure.errors import (
    ConfigError,
    CorruptStore,
    FencedError,
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
from perdure.runtime.lives import Inputs, Lives
from perdure.runtime.queues import Offer, take
from perdure.runtime.settle import write
from perdure.runtime.steps import Function
from perdure.runtime.threads import in_thread
from perdure.stores.base import Store, Which

T = TypeVar("T")
log = logging.getLogger("perdure")
WORKER = f"{OWN}worker"
"""flow of the run that a worker is itself"""
_ASK = 0.5
"""seconds between two looks into a store that cannot tell when there is something"""
_EXPECTED = (RunSuspended, RunStopped, RunCancelled, RunPaused)
"""ways for a run to leave a worker that are no failure of it"""


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
        self._lives, self._writer = lives, lives.writer
        self._offer = Offer(flows, tuple(queues))
        self._concurrency, self._grace, self._until_idle = concurrency, grace, until_idle
        self._works: dict[asyncio.Task[None], _Work] = {}
        self._passed_over: dict[RunKey, int] = {}
        """runs that could not be taken up, and their sequence then"""
        self._news = asyncio.Event()
        self._alone = False
        """what it executes is to be executed alone"""
        self._announced: Lease | None = None
        self._losses = 0
        self._stopping = False
        self._failure: StoreError | None = None
        self.ended: dict[RunKey, str] = {}
        """the runs that it executed, and their status then"""

    async def work(self) -> None:
        """Until it is told to stop, or (``until_idle``) until there is nothing left to do. Raises StoreError."""
        loop = asyncio.get_running_loop()
        listen = self._writer.store.capabilities.listen
        deaf = listen(partial(_ring, loop, self._news)) if listen is not None else None
        try:
            while not self._stopping:
                await self._announce()
                self._news.clear()
                idle = not self._works
                pause = await self._take()
                if self._until_idle and idle and not self._works and pause > _ASK:
                    break
                await self._sleep(pause if deaf is not None else min(pause, _ASK))
        finally:
            await self._drain()
            if deaf is not None:
                deaf()
            await self._retire()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Take up nothing more, let steps that run come to their end, and give everything up. Called a second time: do
        not wait for them. On the loop's thread."""
        if self._stopping:
            self._grace = 0.0
        self._stopping = True
        self._news.set()

    async def _announce(self) -> None:
        """Write down what this worker can execute; once more if the lease of that was lost."""
        if self._announced is None or self._losses != self._lives.losses:
            self._losses = self._lives.losses
            self._announced = await self._call(partial(_announce, clock=self._lives.clock, offer=self._offer))

    async def _retire(self) -> None:
        announced = self._announced
        if announced is not None and self._failure is None:
            with suppress(FencedError):
                await self._call(lambda store: store.delete(announced))

    async def _take(self) -> float:
        """Take up what there is, as far as there is room; returns for how long there is nothing more to take."""
        free = self._concurrency - len(self._works)
        if free <= 0 or (self._alone and self._works):
            return inf
        clock, offer, passed_over = self._lives.clock, self._offer, dict(self._passed_over)
        try:
            busy = bool(self._works)
            taken = await self._call(lambda store: take(store, clock, offer, free, passed_over, busy))
        except RetryError as busy:
            log.warning("looking for runs is tried again: %s", busy)
            return _ASK
        self._alone = taken.alone
        for lease, row in taken.runs:
            work = _Work(self._lives, lease, offer.flows[row.flow])
            task = asyncio.create_task(self._execute(work, row))
            self._works[task] = work
            task.add_done_callback(self._done)
        return taken.pause

    def _done(self, task: asyncio.Task[None]) -> None:
        self._works.pop(task, None)
        self._news.set()

    async def _execute(self, work: _Work, row: RunMeta) -> None:
        try:
            self.ended[row.key] = await work.execute()
        except _EXPECTED as left:
            self.ended[row.key] = work.status
            log.info("%s", left)
        except FencedError as lost:
            log.warning("%s", lost)
        except CorruptStore as damage:
            self._pass_over(work, row, damage)
        except StoreError as failure:
            self._failure = self._failure or failure
            self.stop()
        except Exception as error:
            self.ended[row.key] = work.status
            if work.run is None:
                self._pass_over(work, row, error)
            else:
                log.error("run %s failed: %s: %s", row.key, type(error).__name__, error)

    def _pass_over(self, work: _Work, row: RunMeta, why: Exception) -> None:
        """Leave a run alone that cannot be executed here, until something about it has changed."""
        self._passed_over[row.key] = row.seq if work.run is None else work.run.state.seq
        log.error("run %s is left alone: %s", row.key, why)

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
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _call(self, verb: Callable[[Store], T]) -> T:
        store = self._writer.store
        return await asyncio.wrap_future(self._writer.call(lambda: verb(store)))


class _Work:
    """A run that this worker has claimed, until it is given up."""

    def __init__(self, lives: Lives, lease: Lease, function: Function[..., Any]) -> None:
        self._lives, self._lease, self._function = lives, lease, function
        self.run: LiveRun | None = None
        self._stopped = False

    @property
    def status(self) -> str:
        return (self.run.state.status if self.run is not None else "") or ""

    async def execute(self) -> str:
        """Take the run up and carry it out. Returns its status; raises how it left."""
        taking = self._lives.take_up(self._lease, self._function)
        try:
            taken = await asyncio.shield(asyncio.wrap_future(taking))
        except asyncio.CancelledError:
            in_thread(lambda: self._give_up(taking), "give-up")
            raise
        if taken is None:  # its posts were moved, and there is nothing to execute
            return ""
        self.run, inputs = taken
        if self._stopped:
            self.run.interrupt()
        if self._function.is_async:
            await carry_out_async(self._lives, self._function, self.run, inputs)
        else:
            await self._in_thread(self.run, inputs)
        return self.status

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


def _announce(store: Store, *, clock: Clock, offer: Offer) -> Lease:
    """Write down what a worker can execute, under a lease that lives as long as it does. Workers that died are
    forgotten."""
    for row in store.runs(Which(due=clock.now(), flows=(WORKER,))):
        with suppress(FencedError):
            store.delete(store.claim(row.key))
    pid, host = process_identity()
    versions = {name: sorted({flow.version, *flow.accepts}) for name, flow in offer.flows.items()}
    tags = {"flows": msgspec.json.encode(versions).decode(), "queues": msgspec.json.encode(offer.queues).decode()}
    key = RunKey(f"{WORKER}/{clock.new_id()}")
    lease = store.claim(key)
    began = j.RunBegan(
        run_id=clock.new_id(), flow=WORKER, epoch=lease.epoch, pid=pid, host=host, attribution=Attribution(tags=tags)
    )
    write(store, lease, State(key), [began], clock)
    return lease


def by_name(flows: Sequence[Callable[..., Any]]) -> dict[str, Function[..., Any]]:
    """Flows by their names. Raises ConfigError for steps, and for two flows of one name."""
    found: dict[str, Function[..., Any]] = {}
    for flow in flows:
        function = as_function(flow)
        if found.setdefault(function.name, function) is not function:
            raise ConfigError(
                f"Two flows are called {function.name!r}.", hint="Give one of them another name=: runs know it by that."
            )
    if not found:
        raise ConfigError("There is no flow to execute.", hint="Name at least one.")
    return found


@contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """In the main thread, SIGTERM and SIGINT call ``stop`` on the running loop while the block runs."""
    loop, told = asyncio.get_running_loop(), []
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
            told.append(number)
    try:
        yield
    finally:
        for number in told:
            loop.remove_signal_handler(number)
