"""Graphs whose plan is made while they run: a planner plans, actions do the steps, a judge accepts, retries or replans.

    executor = FlexibleGraphExecutor(plan, {"search": search, "write": write}, review, checkpoint_manager=manager)
    result = await executor.execute("report-7", {"topic": "tides"})

The planner returns a list of ``PlanStep``: what is still to be done. Steps run side by side as soon as the steps they
come ``after`` are accepted. The judge says of every output: accept it; retry the step with feedback; or replan, and the
planner is asked again, with what is done and why it was not enough. Steps that were accepted stay so.

Planner, actions and judge get their arguments by name, as in pipelines: inputs, outputs of accepted steps under the
steps' names, and besides: the planner ``done`` (outputs by name) and ``feedback`` (text, "" at first); an action what
its step's ``arguments`` say, and ``feedback``; the judge ``step`` (the PlanStep) and ``output``. Each call is a step of
the run: plan, outputs and verdicts are recorded, and a crash repeats none of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from perdure import codec
from perdure.errors import ConfigError, LimitReached
from perdure.runners.executor import GraphExecutor, GraphResult
from perdure.runners.shape import Next, Plan, Shape, Side, Start, Work, place
from perdure.runners.task import Task, inputs_of, work_of
from perdure.runtime.branches import Failure, result
from perdure.runtime.manager import CheckpointManager


@codec.register(name="perdure:PlanStep")
class PlanStep(msgspec.Struct, frozen=True):
    """One step of a plan: ``action`` is done with ``arguments``, once the steps named in ``after`` are accepted."""

    name: str
    action: str
    arguments: dict[str, Any] = {}
    after: tuple[str, ...] = ()


@codec.register(name="perdure:Verdict")
class Verdict(msgspec.Struct, frozen=True):
    """What a judge says of a step's output. A judge may return True (accept) or a text (retry, with this feedback)."""

    decision: Literal["accept", "retry", "replan"]
    feedback: str = ""


class FlexibleGraph(Shape):
    """A graph that is planned while it runs; its result is the output of the last step of the last plan.

    ``max_plans``: how often the planner is asked at most, then LimitReached pauses the run. ``max_attempts``: how often
    one step is tried before its feedback goes to the planner. Functions may be steps with options of their own.
    """

    def __init__(
        self,
        planner: Callable[..., Any],
        actions: Mapping[str, Callable[..., Any]],
        judge: Callable[..., Any],
        *,
        inputs: Sequence[str] = (),
        max_plans: int = 5,
        max_attempts: int = 3,
        name: str = "flexible",
    ) -> None:
        if not actions:
            raise ConfigError(f"graph {name}: it has no actions.")
        if max_plans < 1 or max_attempts < 1:
            raise ConfigError(f"graph {name}: max_plans and max_attempts must be whole numbers from 1.")
        self.planner = Task(planner, name="plan")
        self.judge = Task(judge, name="judge")
        self.actions = {action: Task(fn, name=action) for action, fn in actions.items()}
        self.max_plans, self.max_attempts = max_plans, max_attempts
        tasks = [self.planner, self.judge, *self.actions.values()]
        super().__init__(name, [task.step for task in tasks], inputs_of(inputs, tasks))

    def plan(self, inputs: dict[str, Any]) -> Plan:
        done: dict[str, Any] = {}
        feedback = ""
        for _ in range(self.max_plans):
            values = inputs | done | {"done": dict(done), "feedback": feedback}
            listed = result((yield Side([_work(self.planner, values)]))[0])
            steps = self._checked(listed, done)
            feedback = yield from _Following(self, inputs, done, steps).plan()
            if not feedback:
                return done[steps[-1].name] if steps else None
        raise LimitReached(
            f"{place()}{self.name}: {self.max_plans} plans were made, and the last was not enough: {feedback}. "
            "What was accepted is kept.",
            hint="Raise max_plans, or mend the planner or the judge, and run it again.",
        )

    def _checked(self, listed: Any, done: Mapping[str, Any]) -> list[PlanStep]:
        """The planner's steps. Raises ConfigError naming everything that is wrong with them."""
        steps = list(listed) if isinstance(listed, list | tuple) else [listed]
        wrong = [f"{step!r} is no PlanStep" for step in steps if not isinstance(step, PlanStep)]
        good = [step for step in steps if isinstance(step, PlanStep)]
        known = {step.name for step in good} | done.keys()
        for place_, step in enumerate(good):
            if step.name in {other.name for other in good[:place_]}:
                wrong.append(f"two steps are called {step.name}")
            if step.action not in self.actions:
                wrong.append(f"step {step.name}: there is no action {step.action!r}, only {', '.join(self.actions)}")
            absent = [name for name in step.after if name not in known]
            wrong += [f"step {step.name} comes after {name!r}, which is not there" for name in absent]
        todo = [step for step in good if step.name not in done]
        while not wrong and todo:
            blocked = {step.name for step in todo}
            ready = [step for step in todo if not blocked & set(step.after)]
            if not ready:
                wrong.append(f"steps {', '.join(sorted(blocked))} wait for each other")
            todo = [step for step in todo if step not in ready]
        if wrong:
            raise ConfigError(
                f"{place()}{self.name}: the plan cannot be followed: {'; '.join(wrong)}.",
                hint="Mend the planner and run it again with --rerun plan; what was accepted is kept.",
            )
        return good


class _Flight(NamedTuple):
    step: PlanStep
    attempt: int
    output: Any = None
    judging: bool = False


class _Following:
    """One plan being followed. Adds what is accepted to ``done``."""

    def __init__(
        self, graph: FlexibleGraph, inputs: Mapping[str, Any], done: dict[str, Any], steps: Sequence[PlanStep]
    ) -> None:
        self.graph, self.inputs, self.done = graph, inputs, done
        self.waiting = [step for step in steps if step.name not in done]
        self.flying: dict[int, _Flight] = {}
        self.feedback: list[str] = []

    def plan(self) -> Plan:
        """Follow it to the end; returns "" or, once nothing runs any more, why another plan is needed."""
        failure: Failure | None = None
        ready: list[tuple[_Flight, str]] = []
        while True:
            if failure is None and not self.feedback:
                for step in [step for step in self.waiting if not set(step.after) - self.done.keys()]:
                    self.waiting.remove(step)
                    ready.append((_Flight(step, 1), ""))
            for flight, feedback in ready if failure is None else ():
                self.flying[(yield Start(self.work(flight, feedback)))] = flight
            if not self.flying:
                break
            number, outcome = yield Next()
            flight, ready = self.flying.pop(number), []
            if isinstance(outcome, Failure):
                failure = failure or outcome
            elif not flight.judging:
                ready = [(flight._replace(output=outcome, judging=True), "")]
            else:
                ready = self.judged(flight, _verdict(outcome))
        if failure is not None:
            raise failure.error
        return "; ".join(self.feedback)

    def work(self, flight: _Flight, feedback: str) -> Work:
        values = {**self.inputs, **self.done}
        if flight.judging:
            return _work(self.graph.judge, values | {"step": flight.step, "output": flight.output})
        task = self.graph.actions[flight.step.action]
        chosen = Task(task.step, name=flight.step.name, given=flight.step.arguments)
        return _work(chosen, values | {"feedback": feedback})

    def judged(self, flight: _Flight, verdict: Verdict) -> list[tuple[_Flight, str]]:
        """What to start after a verdict."""
        step, attempt = flight.step, flight.attempt
        if verdict.decision == "accept":
            self.done[step.name] = flight.output
        elif verdict.decision == "retry" and attempt < self.graph.max_attempts and not self.feedback:
            return [(_Flight(step, attempt + 1), verdict.feedback)]
        else:
            tried = f" (after {attempt} attempts)" if attempt > 1 else ""
            self.feedback.append(f"{step.name}{tried}: {verdict.feedback or 'not accepted'}")
        return []


def _verdict(said: object) -> Verdict:
    if isinstance(said, Verdict):
        return said
    if said is True:
        return Verdict("accept")
    if isinstance(said, str):
        return Verdict("retry", said)
    raise ConfigError(
        f"{place()}the judge returned {said!r}.", hint="Return a Verdict, True to accept, or a text to retry with."
    )


def _work(task: Task, values: Mapping[str, Any]) -> Work:
    missing = task.open(set(values))
    if missing:
        raise ConfigError(f"{place()}{task.name} needs {', '.join(missing)}, which nothing gives it.")
    return work_of(task, values, None)


class FlexibleGraphExecutor:
    """Executes a flexible graph made of these parts; options as for ``FlexibleGraph``."""

    def __init__(
        self,
        planner: Callable[..., Any],
        actions: Mapping[str, Callable[..., Any]],
        judge: Callable[..., Any],
        *,
        checkpoint_manager: CheckpointManager | None = None,
        **options: Any,
    ) -> None:
        self._graph = functools.partial(FlexibleGraph, planner, actions, judge, **options)
        self._executor = GraphExecutor(checkpoint_manager)

    async def execute(self, goal: str, inputs: Mapping[str, Any] | None = None, **options: Any) -> GraphResult:
        """Plan and do the task ``goal``, or go on with it. Options are those of ``perdure.run``."""
        return await self._executor.execute(self._graph(inputs=list(inputs or ())), goal, inputs, **options)

    def execute_sync(self, goal: str, inputs: Mapping[str, Any] | None = None, **options: Any) -> GraphResult:
        """As ``execute``, blocking; not inside an event loop."""
        return self._executor.execute_sync(self._graph(inputs=list(inputs or ())), goal, inputs, **options)
