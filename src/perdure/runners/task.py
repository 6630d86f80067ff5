"""A task: a function as a step under a name, that gets its arguments by name. What pipelines and graphs are made of."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_type_hints

from perdure.errors import ConfigError
from perdure.runners.shape import Work
from perdure.runtime.children import as_step
from perdure.runtime.steps import Step


class Task:
    """One stage: a step under the stage's name. ``fn`` is a function, or a step whose options are kept."""

    def __init__(
        self, fn: Callable[..., Any], *, name: str | None = None, given: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        if not callable(fn):
            raise ConfigError(f"A stage must be a function or step, a list of them, or a Crew, not {fn!r}.")
        self.step: Step[..., Any] = as_step(fn, name, **options)
        self.name = self.step.name
        self.given = dict(given or {})
        declared = self.step.signature.parameters.values()
        self.parameters = [p for p in declared if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        unknown = self.given.keys() - {p.name for p in self.parameters}
        if unknown and not any(p.kind is p.VAR_KEYWORD for p in declared):
            raise ConfigError(f"stage {self.name}: given names {sorted(unknown)}, which {self.step!r} does not take.")

    def open(self, known: set[str]) -> list[str]:
        """Parameters without a default that no known name and no fixed value fills."""
        return [
            p.name
            for p in self.parameters
            if p.name not in known and p.name not in self.given and p.default is inspect.Parameter.empty
        ]

    def arguments(self, values: Mapping[str, Any], previous: Any) -> dict[str, Any]:
        """Arguments for one call; ``previous`` goes to the one open parameter."""
        chosen = {p.name: values[p.name] for p in self.parameters if p.name in values}
        for name in self.open(set(values)):
            chosen[name] = previous
        return chosen | self.given


def work_of(task: Task, values: Mapping[str, Any], previous: Any) -> Work:
    """One call of a task."""
    return call_of(task, task.arguments(values, previous))


def call_of(task: Task, arguments: Mapping[str, Any]) -> Work:
    """One call of a task with these arguments; those that may only stand by position do so (``len`` has such)."""
    named = dict(arguments)
    placed = [p.name for p in task.parameters if p.kind is p.POSITIONAL_ONLY and p.name in named]
    return Work(task.step, tuple(named.pop(name) for name in placed), named)


def task_types(task: Task) -> dict[str, Any]:
    """Annotations of a task's function, resolved; {} where they cannot be."""
    try:
        return get_type_hints(task.step.fn)
    except Exception:  # an annotation that is known to type checkers only
        return {}


def inputs_of(names: Iterable[str], tasks: Iterable[Task]) -> list[inspect.Parameter]:
    """Parameters of a shape with these inputs, with the types that its tasks' functions give them."""
    types = {name: hint for task in reversed([*tasks]) for name, hint in task_types(task).items()}
    kind = inspect.Parameter.KEYWORD_ONLY
    return [inspect.Parameter(name, kind, annotation=types.get(name, Any)) for name in names]
