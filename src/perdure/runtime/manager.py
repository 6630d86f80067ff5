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
from perdure.model import Attribution, Budget, RunKey
from perdure.runtime.config import CheckpointConfig, default_store
from perdure.runtime.execute import Watched, execute, execute_async, prepare
from perdure.runtime.lives import Lives, Start
from perdure.runtime.manual import ManualRun
from perdure.runtime.steps import Function
from perdure.runtime.threads import in_thread
from perdure.runtime.writer import Writer
from perdure.stores import open_store
from perdure.stores.base import Store

log = logging.getLogger("perdure")
_LOOK = 0.2
"""seconds between two looks into the inboxes of the runs that are executed"""


class CheckpointManager:
    """Executes runs and keeps their checkpoints in ``store`` (a URL or an open Store). Use as a context manager, or
    ``close()`` it. One manager serves any number of runs at a time, in threads and in event loops.

    Raises StoreError or ConfigError if the store cannot be opened, unless ``config.store_failure`` is "degrade": then
    runs execute without durability, after a warning that names the reason (B4).
    """

    def __init__(
        self,
        store: str | Store | None = None,
        config: CheckpointConfig | None = None,
        *,
        observers: Sequence[Observer] = (),
        clock: Clock = SYSTEM,
    ) -> None:
        self.config = config or CheckpointConfig()
        self._writer = self._open(store if store is not None else default_store())
        self._lives = Lives(self._writer, self.config, tuple(observers), clock)

    def _open(self, store: str | Store) -> Writer | None:
        try:
            return Writer(open_store(store), look=lambda opened: self._lives.deliver(opened), every=_LOOK)
        except (StoreError, ConfigError, OSError) as error:
            if self.config.store_failure != "degrade":
                raise
            log.warning("runs execute WITHOUT durability: the store cannot be opened: %s", error)
            return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Commit what is queued and close the store. Runs that are executed still end as if the process had died."""
        for run in list(self._lives.live):
            run.close("its manager was closed")
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
            attribution=attribution or Attribution(),
            budget=budget,
            flow="(manual)",
        )
        return ManualRun(self._lives, start)

    def look(self, goal: str, episode: int | None = None) -> Future[State | None]:
        """What the journal tells of a run (its latest episode), read anew; None if there is none, or no store."""
        return self._lives.look(goal, episode)

    async def run(self, flow: Callable[..., Any], *args: Any, goal: str, **options: Any) -> Any:
        """Run ``flow`` inside an event loop; sync flows run in a thread. Options as for ``perdure.run``."""
        function, start = prepare(flow, args, goal, options)
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
        function, start = prepare(flow, args, goal, options)
        if function.is_async:
            _refuse_loop(function)
            return asyncio.run(execute_async(self._lives, function, start))
        return execute(self._lives, function, start)


def _refuse_loop(function: Function[..., Any]) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise ConfigError(
        f"flow {function.name} is async, and an event loop runs in this thread already.",
        hint="In async code write: with CheckpointManager(store) as manager: await manager.run(flow, goal=...).",
    )
