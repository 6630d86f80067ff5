"""Pipelines and crews: sequential stages, parallel groups, and experts whose work one step gathers.

Shapes only: every stage is a step, so each is recorded, reused and resumed like any other, and nothing is stored here.

How a stage's function gets its arguments, decided before anything runs:

- a parameter with the name of an input of the pipeline, or of an earlier stage, gets that value;
- one that ``given`` fixes gets that;
- one other parameter without a default gets the output of the stage before (a crew's gather step: its experts' outputs,
  by name). In the first stage such parameters are the pipeline's inputs.

A gather step that may run on less than all (``require``) takes a parameter ``missing``: name -> why it is missing (C7).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec

from perdure.checks import refusal
from perdure.errors import ConfigError, FencedError, IncompleteCrew, RunPaused, StoreError
from perdure.model import ErrorInfo
from perdure.runners.shape import Plan, Shape, Side
from perdure.runners.task import Task, inputs_of, work_of
from perdure.runtime.branches import Failure, result


class quorum(msgspec.Struct, frozen=True):  # reads as a value: require=quorum(5)
    """``require=quorum(n)``: at least ``n`` experts must deliver."""

    n: int


Require: TypeAlias = Literal["all", "any"] | quorum
Fn: TypeAlias = Callable[..., Any] | Task


class Crew:
    """Experts side by side, then one step that gathers their outputs.

    ``require``: "all" (default), ``quorum(n)`` or "any" experts must deliver, else IncompleteCrew is raised after every
    expert has ended; those that delivered stay recorded. A flagged output counts as missing.
    """

    def __init__(
        self, experts: Sequence[Fn] | Mapping[str, Fn], gather: Fn, *, require: Require = "all", name: str = "crew"
    ) -> None:
        pairs = experts.items() if isinstance(experts, Mapping) else [(None, fn) for fn in experts]
        self.experts = [fn if isinstance(fn, Task) else Task(fn, name=name) for name, fn in pairs]
        self.gather = gather if isinstance(gather, Task) else Task(gather)
        self.name = name
        self.need = len(self.experts) if require == "all" else 1 if require == "any" else getattr(require, "n", 0)
        if not self.experts:
            raise ConfigError(f"crew {name} has no experts.")
        if not isinstance(self.need, int) or not 1 <= self.need <= len(self.experts):
            many = f"quorum(1..{len(self.experts)})"
            raise ConfigError(f"crew {name}: require must be 'all', 'any' or {many}, not {require!r}.")
        if require != "all" and "missing" not in {p.name for p in self.gather.parameters}:
            raise ConfigError(
                f"crew {name}: {self.gather.name} may run on incomplete data and must be told what is missing.",
                hint="Give it a parameter 'missing' (a dict: name -> reason), or use require='all'.",
            )

    def assess(self, outcomes: Sequence[Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """(outputs by name, reasons by name). Raises IncompleteCrew when too few delivered."""
        good: dict[str, Any] = {}
        missing: dict[str, str] = {}
        for expert, outcome in zip(self.experts, outcomes, strict=True):
            if isinstance(outcome, Failure):
                error = outcome.error
                if isinstance(error, StoreError | FencedError | RunPaused) or not isinstance(error, Exception):
                    raise error
                missing[expert.name] = str(ErrorInfo(type(error).__name__, str(error)))
                continue
            refused = refusal(expert.name, expert.step.declared.check, outcome)
            if refused is not None:
                missing[expert.name] = f"flagged: {refused}"
            else:
                good[expert.name] = outcome
        if len(good) < self.need:
            told = "; ".join(f"{name} ({why})" for name, why in missing.items())
            raise IncompleteCrew(
                f"crew {self.name}: {len(good)} of {len(self.experts)} experts delivered, {self.need} are required. "
                f"Missing: {told}. The others' outputs are kept.",
                missing=missing,
                hint="Run it again to execute the failed ones; for flagged ones add --rerun flagged.",
            )
        return good, missing


Stage: TypeAlias = Task | list[Task] | Crew


class Pipeline(Shape):
    """Stages one after the other; a list among them is a group that runs side by side. Run it like a flow:
    ``perdure.run(Pipeline([load, [spell, facts], report]), goal="paper-17", path="paper.md")``; its result is the last
    stage's output. ``inputs`` names inputs that later stages need and the first does not.

    It is async if any of its functions is; sync functions in it then run in threads. Raises ConfigError listing
    everything that is wrong with the declaration.
    """

    def __init__(
        self, stages: Sequence[Fn | Crew | Sequence[Fn]], *, name: str = "pipeline", inputs: Sequence[str] = ()
    ) -> None:
        self.stages = [_stage(stage) for stage in stages]
        tasks = [task for stage in self.stages for task in _tasks(stage)]
        self.name = name
        self.inputs = self._check(list(inputs))
        super().__init__(name, [task.step for task in tasks], inputs_of(self.inputs, tasks))

    def _check(self, inputs: list[str]) -> list[str]:
        """Names of the pipeline's inputs. Raises one ConfigError for all that is wrong."""
        problems: list[str] = [] if self.stages else ["it has no stages"]
        known = set(inputs)
        for place, stage in enumerate(self.stages):
            names = [task.name for task in _tasks(stage)] + ([stage.name] if isinstance(stage, Crew) else [])
            for task in _tasks(stage):
                extra = {"missing"} if isinstance(stage, Crew) and task is stage.gather else set()
                missing = task.open(known | extra)
                if place == 0 and not (isinstance(stage, Crew) and task is stage.gather):
                    inputs += [name for name in missing if name not in inputs]
                elif len(missing) > 1:
                    open_ones = ", ".join(missing)
                    problems.append(f"stage {task.name}: nothing fills its parameters {open_ones}; name the inputs")
            known |= set(inputs)
            for taken in names:
                if taken in known:
                    problems.append(f"the name {taken!r} is used twice")
                known.add(taken)
        if problems:
            raise ConfigError(
                f"pipeline {self.name}: {'; '.join(problems)}.", hint="Declare inputs=[...], or name= of a Task."
            )
        return inputs

    def plan(self, inputs: dict[str, Any]) -> Plan:
        values, previous = dict(inputs), None
        for stage in self.stages:
            if isinstance(stage, Crew):
                ended = yield Side([work_of(expert, values, previous) for expert in stage.experts])
                good, missing = stage.assess(ended)
                extra = {"missing": missing} if "missing" in {p.name for p in stage.gather.parameters} else {}
                previous = result((yield Side([work_of(stage.gather, values | extra, good)]))[0])
                values |= good | {stage.name: good, stage.gather.name: previous}
            elif isinstance(stage, list):
                ended = yield Side([work_of(task, values, previous) for task in stage])
                previous = {task.name: result(outcome) for task, outcome in zip(stage, ended, strict=True)}
                values |= previous
            else:
                previous = result((yield Side([work_of(stage, values, previous)]))[0])
                values[stage.name] = previous
        return previous


def _stage(stage: Fn | Crew | Sequence[Fn]) -> Stage:
    if isinstance(stage, Task | Crew):
        return stage
    if isinstance(stage, Sequence):
        return [member if isinstance(member, Task) else Task(member) for member in stage]
    return Task(stage)


def _tasks(stage: Stage) -> list[Task]:
    if isinstance(stage, Crew):
        return [*stage.experts, stage.gather]
    return stage if isinstance(stage, list) else [stage]
