"""CheckpointManager: executes runs on a store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Self

from perdure.clock import SYSTEM, Clock
from perdure.errors import ConfigError, StoreError
from perdure.fold import State
from perdure.hooks import Observer
from perdure.model import Attribution, Budget, RunKey, check_attribution
from perdure.runtime.config import CheckpointConfig, default_store
from perdure.runtime.execute import Watched, execute, execute_async, prepare
from perdure.runtime.lease import Keeper, StoreClock, clock_of
from perdure.runtime.lives import Lives, Start, tell_warnings
from perdure.runtime.manual import ManualRun
from perdure.runtime.retention import Retention
from perdure.runtime.submit import DEFAULT_QUEUE, Terms, check_terms, limits_of, submit
from perdure.runtime.sweep import Sweep
from perdure.runtime.threads import in_thread
from perdure.runtime.worker import Worker, by_name, stopped_by_signals
from perdure.runtime.writer import Writer
from perdure.stores import Encryption, open_store
from perdure.stores.base import Store

log = logging.getLogger("perdure")
_LOOK = 0.2
"""seconds between two looks into the inboxes of the runs that are executed"""
_LOOK_ANYWAY = 5.0
"""the same where the store tells when there is something"""


class CheckpointManager:
    """Executes runs and keeps their checkpoints in ``store`` (a URL or an open Store), encrypted with the keys of
    ``encryption``, or of the environment, if there are any. Use as a context manager, or ``close()`` it. One manager
    serves any number of runs at a time, in threads and in event loops. ``retention``: which finished runs stay; the
    others are removed now and then while it is open.

    Raises StoreError or ConfigError if the store cannot be opened, unless ``config.store_failure`` is "degrade": then
    runs execute without durability, after a warning that names the reason (B4).
    """

    def __init__(
        self,
        store: str | Store | None = None,
        config: CheckpointConfig | None = None,
        *,
        encryption: Encryption | None = None,
        retention: Retention | None = None,
        observers: Sequence[Observer] = (),
        clock: Clock = SYSTEM,
    ) -> None:
        self.config = config or CheckpointConfig()
        self._ends: list[Callable[[], None]] = []
        """what ends the threads that belong to the store"""
        self._writer = self._open(store if store is not None else default_store(), encryption)
        if self._writer is not None:
            clock = clock_of(self._writer.store, clock)
        self._lives = Lives(self._writer, self.config, tuple(observers), clock)
        if self._writer is not None:
            self._attend(self._writer, clock)
            if retention is not None:
                self._ends.append(Sweep(self._writer, retention, clock).close)

    def _open(self, store: str | Store, encryption: Encryption | None) -> Writer | None:
        try:
            opened = open_store(store, encryption=encryption)
        except (StoreError, ConfigError, OSError) as error:
            if self.config.store_failure != "degrade":
                raise
            log.warning("runs execute WITHOUT durability: the store cannot be opened: %s", error)
            return None
        return Writer(opened)

    def _attend(self, writer: Writer, clock: Clock) -> None:
        """Keep the leases of a store of many machines, and hear what others post to it."""
        tell_warnings(writer.store)
        can = writer.store.capabilities
        writer.look_every(_LOOK if can.listen is None else _LOOK_ANYWAY, self._lives.deliver)
        if isinstance(clock, StoreClock):
            self._ends.append(Keeper(clock, can.trust, self._lives.lose).close)
        if can.listen is not None:
            self._ends.append(can.listen(lambda posted: writer.look_soon() if posted else None))

    @property
    def shared(self) -> bool:
        """Whether other processes see the runs of its store."""
        return self._writer is not None and self._writer.store.capabilities.shared

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Commit what is queued and close the store. Runs that are executed still end as if the process had died."""
        for run in list(self._lives.live):
            run.close("its manager was closed")
        for end in self._ends:
            end()
        if self._writer is not None:
            self._writer.close()

    def begin(
        self,
        *,
        goal: str,
        episode: int | None = None,
        new: bool = False,
        rerun: str | Sequence[str] = (),
        resume_stopped: bool = False,
        attribution: Attribution | None = None,
        budget: Budget | None = None,
    ) -> ManualRun:
        """A run for a loop of your own: ``with manager.begin(goal=...) as run``. Options as for ``perdure.run``."""
        wanted = (rerun,) if isinstance(rerun, str) else tuple(rerun)
        RunKey.of(goal)
        start = Start(
            goal,
            episode,
            new,
            wanted,
            resume_stopped=resume_stopped,
            attribution=check_attribution(attribution or Attribution()),
            budget=budget,
            flow="(manual)",
        )
        return ManualRun(self._lives, start)

    def submit(
        self,
        flow: Callable[..., Any],
        *args: Any,
        goal: str = "",
        queue: str = DEFAULT_QUEUE,
        priority: int = 0,
        delay: float = 0.0,
        concurrency: int = 0,
        rate: tuple[int, float] = (0, 0.0),
        idempotency_key: str = "",
        **options: Any,
    ) -> RunKey:
        """Write a run of ``flow(*args)`` down for a worker to execute, and return its name when that is durable.

        - ``goal``: the task; without one it is named after the flow and the ``idempotency_key``, or at random.
        - ``priority``: larger ones first. ``delay``: seconds during which it is not taken up.
        - ``queue``: which workers execute it; ``concurrency``: how many runs of the queue, over all workers, are
          executed at a time; ``rate``: ``(runs, seconds)``, how many of them begin within so many seconds. The limits
          that count are those of the run that is to begin.
        - ``idempotency_key``: what is submitted again under it, for this goal, is the run that is there.
        - ``episode``, ``new``, ``attribution``, ``budget``, ``target``: as for ``perdure.run``.

        A goal that is there already, with the same inputs, is joined and nothing is written. Blocks for one commit.
        Raises InputMismatch for other inputs, ConfigError, CodecError, StoreError.
        """
        writer = self._stored("submit runs")
        terms = check_terms(Terms(queue, priority, delay, limits_of(concurrency, rate), idempotency_key))
        named = getattr(flow, "name", None) or getattr(flow, "__name__", "flow")
        chosen = goal or f"{named} {idempotency_key or self._lives.clock.new_id()[:12]}"
        _, start = prepare(flow, args, chosen, options, self.config.redact)
        lives = self._lives
        return writer.call(lambda: submit(writer.store, lives.clock, start, terms, lives.guard)).result()

    def recover(
        self, *flows: Callable[..., Any], concurrency: int = 10, queues: Sequence[str] = ()
    ) -> dict[RunKey, str]:
        """Go on with every run of these flows that nobody executes and that can: crashed, interrupted, let go on, with
        an answer that came, or submitted (B2). Returns when there is none left that can go on now: which runs were
        executed, and their status.

        What fails is logged, and recorded as a run's failure like any other. Raises StoreError; ConfigError inside of
        an event loop (use ``asyncio.to_thread``).
        """
        self._stored("recover runs")
        functions = by_name(flows)
        _refuse_loop(
            "recover() executes runs in an event loop of its own",
            "In async code write: await manager.work(flow, until_idle=True).",
        )
        worker = Worker(self._lives, functions, concurrency=concurrency, queues=queues, grace=0.0, until_idle=True)
        asyncio.run(worker.work())
        return {key: status for key, status in worker.ended.items() if status}

    async def work(
        self,
        *flows: Callable[..., Any],
        concurrency: int = 10,
        queues: Sequence[str] = (),
        grace: float = 30.0,
        until_idle: bool = False,
    ) -> None:
        """Be a worker for these flows, in this event loop, until SIGTERM or SIGINT (in the main thread) or until the
        task is cancelled: then take up nothing more, let steps that run come to their end for ``grace`` seconds, and
        give every run up, for others to go on with.

        ``queues``: only runs that were submitted to these. Raises StoreError when the store fails.
        """
        self._stored("work")
        worker = Worker(
            self._lives,
            by_name(flows),
            concurrency=concurrency,
            queues=queues,
            grace=grace,
            until_idle=until_idle,
        )
        with stopped_by_signals(worker.stop):
            await worker.work()

    def _stored(self, what: str) -> Writer:
        if self._writer is None:
            raise ConfigError(f"Without a store there is no way to {what}.", hint="Open the manager on a store.")
        return self._writer

    def look(self, goal: str, episode: int | None = None) -> Future[State | None]:
        """What the journal tells of a run (its latest episode), read anew; None if there is none, or no store."""
        return self._lives.look(goal, episode)

    async def run(self, flow: Callable[..., Any], *args: Any, goal: str, **options: Any) -> Any:
        """Run ``flow`` inside an event loop; sync flows run in a thread. Options as for ``perdure.run``."""
        function, start = prepare(flow, args, goal, options, self.config.redact)
        if not function.is_async:
            watched = Watched()
            work = in_thread(lambda: execute(self._lives, function, start, watched), "flow")
            try:
                return await asyncio.wrap_future(work)
            except asyncio.CancelledError:
                watched.cancel()
                raise
        return await execute_async(self._lives, function, start)

    def run_sync(self, flow: Callable[..., Any], *args: Any, goal: str, **options: Any) -> Any:
        """Run ``flow`` and block until it has ended; async flows get an event loop of their own."""
        function, start = prepare(flow, args, goal, options, self.config.redact)
        if function.is_async:
            _refuse_loop(
                f"flow {function.name} is async",
                "In async code write: with CheckpointManager(store) as manager: await manager.run(flow, goal=...).",
            )
            return asyncio.run(execute_async(self._lives, function, start))
        return execute(self._lives, function, start)


def _refuse_loop(what: str, hint: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise ConfigError(f"{what}, and an event loop runs in this thread already.", hint=hint)
