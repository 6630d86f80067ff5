"""One step for every item of a list that is known only when the run is there."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

from perdure.errors import ConfigError
from perdure.runners.shape import Plan, Shape, Side, place
from perdure.runners.task import Task, call_of
from perdure.runtime.branches import result


def mapped(task: Task, over: str, limit: int | None, known: Collection[str]) -> Task:
    """``task`` for every item of the value called ``over``. Its items are found again by their values, as in ``map``.

    Raises ConfigError if the task has not just one parameter that no ``known`` name fills.
    """
    free = task.open({*known} - {over})
    if len(free) != 1:
        raise ConfigError(
            f"node {task.name} runs over {over}, and takes the item in its one open parameter; it has "
            f"{len(free)}: {', '.join(free) or 'none'}."
        )
    return Task(_Map(task, free[0], over, limit), name=task.name)


class _Map(Shape):
    def __init__(self, task: Task, item: str, over: str, limit: int | None) -> None:
        self.task, self.item, self.over, self.limit = task, item, over, limit
        rest = [p.replace(kind=p.KEYWORD_ONLY) for p in task.parameters if p.name not in (item, over, *task.given)]
        listed = inspect.Parameter(over, inspect.Parameter.KEYWORD_ONLY)
        super().__init__(task.name, [task.step], [listed, *rest])

    def plan(self, inputs: dict[str, Any]) -> Plan:
        items = inputs.pop(self.over)
        if not isinstance(items, list | tuple):
            raise ConfigError(
                f"{place()}{self.name} runs over {self.over}, which is no list but {type(items).__name__}."
            )
        works = [call_of(self.task, {self.item: item, **inputs, **self.task.given}) for item in items]
        return [result(outcome) for outcome in (yield Side(works, self.limit))]
