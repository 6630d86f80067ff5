"""How runners are written once for both colours of code: a shape is a generator that says what to start.

A shape's ``plan`` is given the inputs and yields commands; the two drivers below perform them, in threads or as tasks:

    Side(works, limit)   run them side by side     -> their outcomes, in the order written
    Start(work)          begin one more            -> its place: 0 for the first that was started, 1, 2 ...
    Next()               wait for one that ends    -> (place, outcome); the order is journaled
    Recall(steps)        the results of steps that are recorded -> the list of them
    Drop()               nothing more is needed of what was started: tasks are cancelled, threads waited for

A work is one call of a step or flow; an outcome its value, or a Failure. A plan keeps everything it knows in its
own local variables, so that runs of one shape side by side never mix (G6). What is started and not taken when a plan
ends is not needed any more: tasks are cancelled; threads run on and are ignored.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from perdure.replay import recall
from perdure.runtime.branches import Failure, Fan, outcomes, outcomes_async, running_here
from perdure.runtime.context import current
from perdure.runtime.drive import NOBODY, drive, drive_async
from perdure.runtime.steps import Flow, Invocation, Step

Work: TypeAlias = Invocation


class Side(NamedTuple):
    """Run works side by side, at most ``limit`` at a time; the reply is the list of their outcomes."""

    works: Sequence[Work]
    limit: int | None = None


class Start(NamedTuple):
    """Begin one more work; the reply is its place."""

    work: Work


class Next(NamedTuple):
    """Wait until one of the works that were started has ended; the reply is (place, outcome)."""


class Recall(NamedTuple):
    """Read the results of recorded steps; the reply is the list of them."""

    steps: Sequence[int]


class Drop(NamedTuple):
    """Nothing more is needed of what was started: cancel tasks, wait for threads."""


Plan: TypeAlias = Generator[Side | Start | Next | Recall | Drop, Any, Any]


class Shape(Flow[..., Any]):
    """A flow made of steps by a plan. Subclasses say what the plan is; it is async if any of its steps is. ``more``:
    what else makes it another program when it changes.
    """

    def __init__(
        self,
        name: str,
        steps: Sequence[Step[..., Any]],
        inputs: Sequence[inspect.Parameter],
        more: Sequence[object] = (),
    ) -> None:
        asynchronous = any(step.is_async for step in steps)
        super().__init__(self._run_async if asynchronous else self._run, name, None, ())
        self.__dict__["signature"] = inspect.Signature(inputs)
        plan = "\n".join([*(step.name for step in steps), *map(str, more)])
        self.made_of = (*steps, ("plan", plan))

    def plan(self, inputs: dict[str, Any]) -> Plan:
        """What to do with these inputs: yields commands, returns the result."""
        raise NotImplementedError

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs by name, with defaults. Raises TypeError for others than declared."""
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        return carry_out(self.plan(self.bind(args, kwargs)))

    async def _run_async(self, *args: Any, **kwargs: Any) -> Any:
        return await carry_out_async(self.plan(self.bind(args, kwargs)))


def carry_out(plan: Plan) -> Any:
    """Run a plan to its end in this thread; returns its result."""
    fan = Fan("plan")
    reply: Any = None
    try:
        while True:
            try:
                command = plan.send(reply)
            except StopIteration as end:
                fan.unneeded()
                return end.value
            if isinstance(command, Start):
                reply = fan.call(command.work)
            elif isinstance(command, Next):
                reply = fan.next()
            elif isinstance(command, Drop):
                reply = None
                fan.drop()
            elif isinstance(command, Recall):
                run = running_here()
                assert run is not None
                reply = drive(recall(run.life, command.steps), run, NOBODY)
            else:
                reply = _alone(command.works[0]) if len(command.works) == 1 else outcomes(command.works, command.limit)
    finally:
        fan.abandon()


def _alone(work: Work) -> list[Any]:
    """One work needs no thread."""
    try:
        return [work.start()]
    except Exception as error:
        return [Failure(error)]


async def carry_out_async(plan: Plan) -> Any:
    """Run a plan to its end in this task; sync steps in it run in threads. Returns its result."""
    fan = Fan("plan")
    reply: Any = None
    try:
        while True:
            try:
                command = plan.send(reply)
            except StopIteration as end:
                fan.unneeded()
                return end.value
            if isinstance(command, Start):
                reply = fan.call_async(_item(command.work))
            elif isinstance(command, Next):
                reply = await fan.next_async()
            elif isinstance(command, Drop):
                reply = None
                fan.unneeded()
                await fan.cancel()
            elif isinstance(command, Recall):
                run = running_here()
                assert run is not None
                reply = await drive_async(recall(run.life, command.steps), run, NOBODY)
            else:
                reply = await outcomes_async([_item(work) for work in command.works], command.limit)
    finally:
        await fan.cancel()


def traced(plan: Plan, path: list[str]) -> Plan:
    """The same plan, adding the names of what it starts to ``path``."""
    reply: Any = None
    while True:
        try:
            command = plan.send(reply)
        except StopIteration as end:
            return end.value
        works = command.works if isinstance(command, Side) else [command.work] if isinstance(command, Start) else []
        path += [work.function.name for work in works]
        reply = yield command


def _item(work: Work) -> Any:
    return work.start() if work.function.is_async else work


def place() -> str:
    """The run and scope that this code runs in, for messages; "" without a run."""
    frame = current()
    if frame is None or frame.run is None:
        return ""
    return f"run {frame.run.key}, scope {frame.cursor.scope or 'top'!r}: "
