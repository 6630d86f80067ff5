"""Executors: run a graph durably, or without a store, and say how it went.

executor = GraphExecutor(CheckpointManager("sqlite:runs.db"))
result = await executor.execute(graph, "paper-17", {"paper": text})     # again after a crash: it goes on

with Runner("sqlite:runs.db") as runner:                                # store, manager and executor in one
    result = runner.execute_sync(graph, "paper-17", {"paper": text})
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Self

import msgspec

from perdure import states
from perdure.errors import ConfigError, FencedError, RunCancelled, RunPaused, RunSuspended, StoreError
from perdure.fold import State
from perdure.model import RunKey, Usage
from perdure.runners.shape import Shape, carry_out, carry_out_async, traced
from perdure.runtime.config import CheckpointConfig
from perdure.runtime.lives import Start
from perdure.runtime.manager import CheckpointManager
from perdure.runtime.threads import in_thread
from perdure.stores.base import Store


class GraphResult(msgspec.Struct, frozen=True, kw_only=True):
    """How the execution of a graph went."""

    status: str
    """"completed", "failed", "paused" (a limit is reached, or a step is in doubt), "pending_input" or "waiting" (for a
    date; run it again then), "cancelled"
    """
    output: Any = None
    error: Exception | None = None
    run: RunKey | None = None
    """None without a store"""
    path: tuple[str, ...] = ()
    """nodes in the order in which they started, as often as they did"""
    reused: tuple[str, ...] = ()
    """paths of steps whose results were there when the last life of the run began"""
    usage: Usage = Usage()
    """what all lives of the run have used; nothing is counted without a store"""
    paid: Usage = Usage()
    """what the last life of the run has used"""
    saved: Usage = Usage()
    """what the reused results had used when they were made"""

    def value(self) -> Any:
        """The output. Raises the error of a graph that did not complete."""
        if self.error is not None:
            raise self.error
        return self.output


class GraphExecutor:
    """Executes graphs, and any other shape; with ``checkpoint_manager`` durably, else as plain function calls.

    A failing node is a result (``status``, ``error``); executing the goal again goes on from the last good checkpoint.
    A store that fails, a lost lease and inputs that differ from the recorded ones are raised.
    """

    def __init__(self, checkpoint_manager: CheckpointManager | None = None) -> None:
        self.manager = checkpoint_manager

    async def execute(
        self, graph: Shape, goal: str, inputs: Mapping[str, Any] | None = None, **options: Any
    ) -> GraphResult:
        """Execute ``graph`` as the task ``goal``, or go on with it. Options are those of ``perdure.run``: episode, new,
        rerun, budget, attribution ...
        """
        path: list[str] = []
        given = _given(graph, inputs)
        try:
            if self.manager is not None:
                output = await self.manager.run(graph, goal=goal, **options, **given)
            elif graph.is_async:
                output = await carry_out_async(traced(graph.plan(given), path))
            else:
                work = in_thread(lambda: carry_out(traced(graph.plan(given), path)), "graph")
                output = await asyncio.wrap_future(work)
        except Exception as error:
            return self._ended(await self._look(goal, options), path, error=error)
        return self._ended(await self._look(goal, options), path, output=output)

    async def _look(self, goal: str, options: Mapping[str, Any]) -> State | None:
        if self.manager is None:
            return None
        return await asyncio.wrap_future(self.manager.look(goal, options.get("episode")))

    def execute_sync(
        self, graph: Shape, goal: str, inputs: Mapping[str, Any] | None = None, **options: Any
    ) -> GraphResult:
        """As ``execute``, blocking; not inside an event loop."""
        if self.manager is None and graph.is_async:
            return asyncio.run(self.execute(graph, goal, inputs, **options))
        path: list[str] = []
        given = _given(graph, inputs)
        try:
            if self.manager is not None:
                output = self.manager.run_sync(graph, goal=goal, **options, **given)
            else:
                output = carry_out(traced(graph.plan(given), path))
        except Exception as error:
            return self._ended(self._looked(goal, options), path, error=error)
        return self._ended(self._looked(goal, options), path, output=output)

    def _looked(self, goal: str, options: Mapping[str, Any]) -> State | None:
        return self.manager.look(goal, options.get("episode")).result() if self.manager is not None else None

    def _ended(
        self, state: State | None, path: list[str], output: Any = None, error: Exception | None = None
    ) -> GraphResult:
        if isinstance(error, StoreError | FencedError):
            raise error
        if state is None and (self.manager is None or error is None):  # no store, or it could not be opened
            status = states.PAUSED if isinstance(error, RunPaused) else states.FAILED if error else states.COMPLETED
            return GraphResult(status=status, output=output, error=error, path=tuple(path))
        if error is not None and not _is_end(state, error):
            raise error
        assert state is not None and state.status is not None
        return GraphResult(
            status=state.status,
            output=output,
            error=error,
            run=state.key,
            path=tuple(s.name for s in state.steps.values() if not s.identity.scope and not s.unused),
            reused=tuple(step.path for step in state.from_earlier_lives()),
            usage=state.usage,
            paid=state.paid,
            saved=state.saved_usage,
        )


def _given(graph: Shape, inputs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Inputs of a graph. Raises ConfigError for others than declared, and for names that are options of a run."""
    try:
        given = graph.bind((), inputs or {})
    except TypeError as error:
        raise ConfigError(f"graph {graph.name}: {error}.", hint=f"It takes {graph.signature}.") from None
    clash = sorted(given.keys() & set(Start._fields))
    if clash:
        raise ConfigError(f"The inputs {', '.join(clash)} have names of options of a run.", hint="Rename them.")
    return given


def _is_end(state: State | None, error: Exception) -> bool:
    """Whether the run has recorded this error as its end; else it was raised before anything was executed."""
    if state is not None and isinstance(error, RunSuspended | RunCancelled):
        return state.status != states.RUNNING
    if state is None or state.status not in (states.FAILED, states.PAUSED):
        return False
    return (state.error.message if state.error is not None else state.reason) == str(error)


class Runner(GraphExecutor):
    """An executor with a store and a manager of its own (G5). Use as a context manager, or ``close()`` it."""

    def __init__(self, store: str | Store | None = None, config: CheckpointConfig | None = None) -> None:
        super().__init__(CheckpointManager(store, config))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        assert self.manager is not None
        self.manager.close()
