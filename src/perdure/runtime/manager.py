"""CheckpointManager: executes runs on a store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Self

from perdure.clock import SYSTEM, Clock
from perdure.errors import ConfigError, PerdureError, StoreError
from perdure.fold import State, fold
from perdure.hooks import Observer
from perdure.model import Attribution, Budget, RunKey
from perdure.replay import Cursor
from perdure.runtime.config import CheckpointConfig, default_store
from perdure.runtime.context import Frame, entered
from perdure.runtime.live import LiveRun
from perdure.runtime.lives import Finished, Lives, Start, completed, finalised
from perdure.runtime.manual import ManualRun
from perdure.runtime.steps import Function, Step
from perdure.runtime.threads import in_thread
from perdure.runtime.writer import Writer
from perdure.stores import open_store
from perdure.stores.base import Store

log = logging.getLogger("perdure")


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
            return Writer(open_store(store))
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
        """Commit what is queued and close the store."""
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

    def state(self, goal: str, episode: int | None = None) -> State | None:
        """What the journal tells of a run (its latest episode), read anew; None if there is none, or no store."""
        if self._writer is None:
            return None
        store = self._writer.store

        def read() -> State | None:
            rows = [row for row in store.runs(goal) if episode in (None, row.episode)]
            return fold(rows[-1].key, store.read(rows[-1].key)) if rows else None

        return self._writer.call(read).result()

    async def run(self, flow: Callable[..., Any], *args: Any, goal: str, **options: Any) -> Any:
        """Run ``flow`` inside an event loop; sync flows run in a thread. Options as for ``perdure.run``."""
        function, start = _start(flow, args, goal, options)
        if not function.is_async:
            return await asyncio.wrap_future(in_thread(lambda: self._run_sync(function, start), "flow"))
        began = await self._begin(start)
        if isinstance(began, Finished):
            return began.value
        args, kwargs = start.inputs
        if began is None:
            return await function.fn(*args, **kwargs)
        try:
            with finalised(began):
                with entered(Frame(began, Cursor(began.life, ""))):
                    value = await function.fn(*args, **kwargs)
                entry, blobs = completed(began, value)
                await began.wait_async(began.emit((entry,), blobs, last=True))
                return value
        finally:
            self._lives.end(began, wait=False)

    async def _begin(self, start: Start) -> LiveRun | Finished | None:
        """Begin a life without blocking the loop; one that begins after we were cancelled is ended in order (B3)."""
        beginning = self._lives.begin(start)
        try:
            return await asyncio.wrap_future(beginning)
        except asyncio.CancelledError:
            if not beginning.cancel():  # it is under way, and ends what it begins
                in_thread(lambda: self._abandon(beginning), "abandon")
            raise

    def _abandon(self, beginning: Future[LiveRun | Finished | None]) -> None:
        run = beginning.result()
        if isinstance(run, LiveRun):
            try:
                with suppress(asyncio.CancelledError), finalised(run):
                    raise asyncio.CancelledError
            finally:
                self._lives.end(run)

    def run_sync(self, flow: Callable[..., Any], *args: Any, goal: str, **options: Any) -> Any:
        """Run ``flow`` and block until it has ended; async flows get an event loop of their own."""
        function, start = _start(flow, args, goal, options)
        if function.is_async:
            _refuse_loop(function)
            return asyncio.run(self.run(flow, *args, goal=goal, **options))
        return self._run_sync(function, start)

    def _run_sync(self, function: Function[..., Any], start: Start) -> Any:
        began = self._lives.begin(start).result()
        if isinstance(began, Finished):
            return began.value
        args, kwargs = start.inputs
        if began is None:
            return function.fn(*args, **kwargs)
        try:
            with finalised(began):
                with entered(Frame(began, Cursor(began.life, ""))):
                    value = function.fn(*args, **kwargs)
                entry, blobs = completed(began, value)
                began.wait(began.emit((entry,), blobs, last=True))
                return value
        finally:
            self._lives.end(began)


def _start(
    flow: Callable[..., Any], args: tuple[Any, ...], goal: str, options: dict[str, Any]
) -> tuple[Function[..., Any], Start]:
    """Split options of the run from keyword arguments of the flow, and check both before anything is opened."""
    RunKey.of(goal)
    if isinstance(flow, Step):
        raise ConfigError(f"{flow.name} is a step, not a flow.", hint="Run a flow that calls it.")
    function = flow if isinstance(flow, Function) else _plain(flow)
    chosen = {name: options[name] for name in Start._fields[1:9] if name in options}
    kwargs = {name: value for name, value in options.items() if name not in chosen}
    try:
        _, infos = function.identify(args, kwargs)
    except TypeError as error:
        if isinstance(error, PerdureError):
            raise
        raise ConfigError(f"flow {function.name}: {error}.", hint=f"It takes {function.signature}.") from None
    rerun = chosen.pop("rerun", ())
    rerun = (rerun,) if isinstance(rerun, str) else tuple(rerun)
    inputs = (args, kwargs)
    start = Start(goal, rerun=rerun, flow=function.name, digest=function.digest, args=infos, inputs=inputs, **chosen)
    return function, start


def _refuse_loop(function: Function[..., Any]) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise ConfigError(
        f"flow {function.name} is async, and an event loop runs in this thread already.",
        hint="In async code write: with CheckpointManager(store) as manager: await manager.run(flow, goal=...).",
    )


def _plain(flow: Callable[..., Any]) -> Function[..., Any]:
    """An undecorated function as a flow."""
    if not callable(flow):
        raise ConfigError(f"A flow must be a function, not {flow!r}.")
    return Function(flow, str(getattr(flow, "__name__", "flow")).replace("<lambda>", "flow"), None, ())
