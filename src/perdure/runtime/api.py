"""``perdure.run``: one call that opens the store, runs a flow to its end, and closes the store."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar, overload

from perdure.clock import SYSTEM
from perdure.errors import LeaseHeld
from perdure.hooks import Observer
from perdure.model import Attribution, Budget, RunKey
from perdure.runtime.config import CheckpointConfig
from perdure.runtime.execute import patience
from perdure.runtime.manager import CheckpointManager
from perdure.stores.base import Store

R = TypeVar("R")


@overload
def run(flow: Callable[..., Coroutine[Any, Any, R]], *args: Any, goal: str, **options: Any) -> R: ...
@overload
def run(flow: Callable[..., R], *args: Any, goal: str, **options: Any) -> R: ...
def run(
    flow: Callable[..., Any],
    *args: Any,
    goal: str,
    episode: int | None = None,
    new: bool = False,
    store: str | Store | None = None,
    config: CheckpointConfig | None = None,
    rerun: str | Sequence[str] = (),
    adopt_input: bool = False,
    resume_stopped: bool = False,
    wait: bool | float = False,
    attribution: Attribution | None = None,
    budget: Budget | None = None,
    target: str = "",
    observers: Sequence[Observer] = (),
    **kwargs: Any,
) -> Any:
    """Run ``flow(*args, **kwargs)`` durably as the task ``goal``, and return its result.

    Run it again after a crash and it goes on; an unfinished run resumes, a finished one returns its recorded result.

    - ``episode``: which attempt at the goal; default the latest. ``new=True`` starts the next one.
    - ``store``: URL or Store; default ``PERDURE_STORE``, or an SQLite file below the working directory.
    - ``rerun``: what to execute again, with whatever depends on it by its inputs: "changed" (steps whose code has
      changed), "failed", "flagged" or names of steps.
    - ``adopt_input``: go on with inputs that differ from the recorded ones. ``resume_stopped``: although a person
      stopped it.
    - ``budget``: caps for all lives of the run together; each replaces the one that is recorded.
    - ``wait``: stay, instead of raising RunSuspended, while the run waits for an answer, a signal or a date; and
      instead of raising LeaseHeld, while another process executes it. A number: for so many seconds at most.

    Raises what the flow raises; LeaseHeld, InputMismatch, RunStopped, StoreError and others of ``perdure.errors``.
    """
    RunKey.of(goal)  # before anything is opened or made
    stay = patience(wait)
    with CheckpointManager(store, config, observers=observers) as manager, sigterm_as_exit():
        end = SYSTEM.monotonic() + stay
        while True:
            try:
                return manager.run_sync(
                    flow,
                    *args,
                    goal=goal,
                    episode=episode,
                    new=new,
                    rerun=rerun,
                    adopt_input=adopt_input,
                    resume_stopped=resume_stopped,
                    attribution=attribution or Attribution(),
                    budget=budget,
                    target=target,
                    wait=stay,
                    **kwargs,
                )
            except LeaseHeld:
                if SYSTEM.monotonic() >= end:
                    raise
                SYSTEM.sleep(0.2)


@contextmanager
def sigterm_as_exit() -> Iterator[None]:
    """While the block runs in the main thread, SIGTERM ends it in order (exit status 143) instead of at once (B3)."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
