"""What is wrong with a graph, all of it, before anything runs; and the facts about its edges that running it needs.

The only fact that takes thought is which values a node can rely on. Node ``m`` has ended, with a value, whenever ``n``
runs, if every way to ``n`` leads through it; or if ``n`` waits for it (only joins of "all" on the way) and it runs for
sure once some node ran that every way to ``n`` leads through: that is, edges without a condition lead from there to it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from perdure.runners.task import Task, task_types

if TYPE_CHECKING:
    from perdure.runners.graph import Edge


class Drawn:
    """A graph as drawn: which forward edges lead where. ``problems`` says whether it makes sense."""

    def __init__(
        self,
        name: str,
        tasks: Mapping[str, Task],
        edges: Sequence[Edge],
        joins: Mapping[str, str],
        inputs: Mapping[str, Any],
        begin: Sequence[str],
        output: str | None,
    ) -> None:
        self.name, self.tasks, self.edges, self.joins = name, tasks, edges, joins
        self.inputs, self.begin, self.output = inputs, begin, output
        self.forward = [e for e in edges if e.limit is None and e.source in tasks and e.target in tasks]
        self.after = {name: [e for e in self.forward if e.source == name] for name in tasks}
        self.before = {name: [e for e in self.forward if e.target == name] for name in tasks}
        self.roots = [name for name in tasks if not self.before[name]]
        self.first = [name for name in tasks if name in begin] or self.roots
        self.region = {name: self.reach([name]) for name in tasks}
        """each node and all that can come after it"""

    def reach(self, names: Iterable[str], without: str | None = None, sure: bool = False) -> set[str]:
        """``names`` and what forward edges lead to from there: ``without`` a node, or by edges that are ``sure``."""
        found: set[str] = set()
        todo = [name for name in names if name != without]
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo += [e.target for e in self.after[name] if e.target != without and not (sure and not _always(e))]
        return found

    def reliable(self, node: str) -> set[str]:
        """The nodes that have ended, with a value, whenever ``node`` runs."""
        always = {name for name in self.tasks if node not in self.reach(self.first, without=name)} - {node}
        waited: set[str] = set()
        todo = [node]
        while todo:
            name = todo.pop()
            if self.joins[name] == "all":
                sources = {e.source for e in self.before[name]} - waited
                waited |= sources
                todo += sources
        sure = self.reach([*self.first, *always], sure=True)
        return always | (waited & sure)


def problems(drawn: Drawn) -> list[str]:
    """Everything that is wrong with a graph; [] if it can be run."""
    if not drawn.tasks:
        return ["it has no nodes"]
    found = [*_names(drawn), *_edges(drawn)]
    cycle = _cycle(drawn)
    if cycle:
        found.append(f"cycle without a bound: {' -> '.join(cycle)}; give the edge that goes back a limit=")
    else:
        found += [*_ways(drawn), *_arguments(drawn)]
    return found


def _names(drawn: Drawn) -> Iterable[str]:
    for name in drawn.inputs.keys() & drawn.tasks.keys():
        yield f"{name!r} is an input and a node; give one of them another name"
    for what, names in (("start", drawn.begin), ("output", [drawn.output] if drawn.output is not None else [])):
        for name in names:
            if name not in drawn.tasks:
                yield f"{what} is {_unknown(name, drawn)}"


def _unknown(name: str, drawn: Drawn) -> str:
    near = difflib.get_close_matches(name, drawn.tasks, 1)
    return f"{name!r}, and there is no such node; " + (
        f"did you mean {near[0]!r}?" if near else f"there are {', '.join(drawn.tasks)}"
    )


def _edges(drawn: Drawn) -> Iterable[str]:
    for place, edge in enumerate(drawn.edges):
        for name in (edge.source, edge.target):
            if name not in drawn.tasks:
                yield f"edge {edge}: it names {_unknown(name, drawn)}"
        if any(str(other) == str(edge) and _always(other) and _always(edge) for other in drawn.edges[:place]):
            yield f"edge {edge} is there twice"
        if edge.otherwise and edge.when is not None:
            yield f"edge {edge}: when= and otherwise= exclude each other"
        if edge.limit is not None and edge.source in drawn.tasks and edge.target in drawn.tasks:
            if isinstance(edge.limit, bool) or not isinstance(edge.limit, int) or edge.limit < 1:
                yield f"edge {edge}: limit must be a whole number from 1, not {edge.limit!r}"
            if edge.source not in drawn.region[edge.target]:
                yield f"edge {edge} has a limit, so it goes back; but none leads from {edge.target} to {edge.source}"


def _always(edge: Edge) -> bool:
    """Whether it is taken whenever its source has ended."""
    return edge.when is None and not edge.otherwise and edge.limit is None


def _cycle(drawn: Drawn) -> list[str]:
    """A cycle of forward edges, first node twice; [] if there is none."""
    for name in drawn.tasks:
        for edge in drawn.after[name]:
            if name in drawn.region[edge.target]:
                way = _way(drawn, edge.target, name)
                return [name, *way]
    return []


def _way(drawn: Drawn, source: str, target: str) -> list[str]:
    """The nodes of a shortest way by forward edges."""
    ways = [[source]]
    for way in ways:
        if way[-1] == target:
            return way
        ways += [[*way, e.target] for e in drawn.after[way[-1]] if e.target not in way]
    return []


def _ways(drawn: Drawn) -> Iterable[str]:
    if not drawn.begin and len(drawn.roots) > 1:
        listed = ", ".join(drawn.roots)
        yield f"nodes {listed} have no edge to them: say start= to begin with some or all of them, or connect them"
        return
    for name in drawn.begin:
        if drawn.before.get(name):
            yield f"start is {name!r}, but {drawn.before[name][0]} leads to it"
    reached = drawn.reach(name for name in drawn.first)
    for name in drawn.tasks:
        if name in reached:
            continue
        waits = [e.source for e in drawn.before[name]]
        back = [str(e) for e in drawn.edges if e.target == name and e.limit is not None]
        if waits:
            yield f"node {name} can never run: it joins {', '.join(waits)}, and none of them is ever reached"
        elif back:
            yield f"node {name} can never run: only {', '.join(back)} leads to it, and goes back"
        else:
            yield f"node {name} is never reached: no edge leads to it"


def _arguments(drawn: Drawn) -> Iterable[str]:
    returns = {name: task_types(task).get("return") for name, task in drawn.tasks.items()}
    for name, task in drawn.tasks.items():
        if name not in drawn.reach(drawn.first):
            continue
        hints = task_types(task)
        reliable = drawn.reliable(name)
        for parameter in task.parameters:
            source = parameter.name
            if source in task.given or source not in drawn.tasks:
                continue
            if parameter.default is parameter.empty and source not in reliable:
                yield (
                    f"node {name}: its parameter {source} is the output of a node that may not have run by then; "
                    "give it a default"
                )
            if _clash(returns[source], hints.get(source)):
                given, wanted = _named(returns[source]), _named(hints[source])
                yield f"node {name}: its parameter {source} is {wanted}, and node {source} returns {given}"
        yield from _open(drawn, name, task, returns)


def _open(drawn: Drawn, name: str, task: Task, returns: Mapping[str, Any]) -> Iterable[str]:
    """The one parameter that gets the output of the node before."""
    free = task.open({*drawn.inputs, *drawn.tasks})
    before = drawn.before[name]
    if not free:
        return
    if len(free) > 1:
        yield f"node {name} needs {', '.join(free)}: name inputs or nodes like its parameters, or fix them with given="
    elif name in drawn.first:
        yield f"node {name} needs {free[0]}, and no node comes before it; declare inputs=[{free[0]!r}]"
    elif sum(_always(e) for e in before) > 1:
        sources = ", ".join(e.source for e in before)
        yield f"node {name}: several nodes come before it ({sources}); name its parameter {free[0]} like one of them"
    else:
        wanted = task_types(task).get(free[0])
        for edge in before:
            if _clash(returns[edge.source], wanted):
                given = _named(returns[edge.source])
                yield f"edge {edge}: {edge.source} returns {given}, and {name} takes {_named(wanted)}"


def _clash(given: Any, wanted: Any) -> bool:
    """Whether two annotations exclude each other; only plain classes are judged."""
    plain = isinstance(given, type) and isinstance(wanted, type) and not {object, Any} & {given, wanted}
    return plain and not issubclass(given, wanted) and not (given is int and wanted is float)


def _named(hint: Any) -> str:
    return str(getattr(hint, "__name__", hint))
