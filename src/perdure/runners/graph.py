"""Graphs: nodes that are steps, and edges that say what runs after what; with conditions, cycles, joins and maps.

    graph = Graph(
        nodes={"draft": draft, "critic": critic, "publish": publish},
        edges=[
            ("draft", "critic"),
            Edge("critic", "draft", when=too_weak, limit=3),
            Edge("critic", "publish", otherwise=True),
        ],
        inputs=["topic"],
    )

How a node gets its arguments is the rule of pipelines: a parameter with the name of an input or of a node gets that
value (a node's latest output); ``given`` fixes others; one other parameter without a default gets the output of the
node before.

**When a node runs.** Edges with a ``limit`` go back; all others go forward and make no cycle (that is checked). A
forward edge is *settled* when its source has ended: taken or not, as its condition says; the edges of a node that does
not run are settled as not taken. So every edge settles, and no join can wait for ever:

- ``join="all"``: the node runs when every forward edge to it is settled and one at least is taken;
- ``join="any"``: it runs as soon as one is taken, and once only;
- a node to which no edge was taken does not run.

A taken edge that goes back waits until nothing runs any more in its *region* (its target and all that can come after
it); then the region's edges are open again, and the target runs. When the limit is used up, LimitReached is raised and
the run is paused; unless its source has an edge ``otherwise``, which is then taken.

The result is the output of the node that has nothing after it; of several such nodes a dict of the outputs of those
that ran, by name; if none of them ran, that of the node after which no edge was taken; or that of the node named
``output``.

A node that is a flow, an agent or a graph has a scope of its own, and resumes inside. A node that is a class is made
anew in every run, and its state is kept (see state.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec

from perdure.errors import ConfigError, LimitReached
from perdure.runners.graph_check import Drawn, problems
from perdure.runners.mapped import mapped
from perdure.runners.shape import Next, Plan, Shape, Start, Work, place
from perdure.runners.state import Held, Keeper
from perdure.runners.task import Task, inputs_of, work_of
from perdure.runtime.branches import Failure


class Node:
    """A node with more to say than its function.

    - ``join``: "all" (default) or "any" of the edges to it.
    - ``over``: name of an input or node whose value is a list: the function runs once for every item, at most ``limit``
      at a time, the item in its one open parameter; the output is the list of results. Finished items stay finished.
    - ``given``: arguments that are fixed. Further options are those of ``@perdure.step``.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        join: Literal["all", "any"] = "all",
        over: str | None = None,
        limit: int | None = None,
        given: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        if join not in ("all", "any"):
            raise ConfigError(f"join must be 'all' or 'any', not {join!r}.")
        if limit is not None and (over is None or not isinstance(limit, int) or limit < 1):
            raise ConfigError(f"limit={limit!r}: a whole number from 1, with over=.")
        self.fn, self.join, self.over, self.limit, self.given, self.options = fn, join, over, limit, given, options


class Edge(msgspec.Struct, frozen=True, eq=False):  # every edge is itself, whatever it is compared with
    """After ``source``, ``target``.

    - ``when``: a function of the source's output, or a value that the output is compared with. It must decide from the
      output alone: it is asked again in every life.
    - ``otherwise``: taken when no other edge of the source is.
    - ``limit``: this edge goes back, and is taken so often at most.
    """

    source: str
    target: str
    when: Any = None
    otherwise: bool = False
    limit: int | None = None

    def __str__(self) -> str:
        return f"{self.source} -> {self.target}"

    @property
    def label(self) -> str:
        """Its condition, for people."""
        if self.otherwise:
            return "otherwise"
        named = str(getattr(self.when, "__name__", "condition")).replace("<lambda>", "condition")
        return "" if self.when is None else named if callable(self.when) else str(self.when)


Arrow: TypeAlias = Edge | tuple[str, str]


class Graph(Shape):
    """Nodes by name, and edges between them. Run it like a flow, or with a ``GraphExecutor``.

    ``inputs``: names of what it is given, or names and types. ``start``: the nodes to begin with, when there are
    several without an edge to them. Raises ConfigError with everything that is wrong.
    """

    def __init__(
        self,
        nodes: Mapping[str, Callable[..., Any] | Node],
        edges: Sequence[Arrow] = (),
        *,
        inputs: Sequence[str] | Mapping[str, type] = (),
        start: str | Sequence[str] = (),
        output: str | None = None,
        name: str = "graph",
    ) -> None:
        told = {known: node if isinstance(node, Node) else Node(node) for known, node in nodes.items()}
        self.edges = tuple(edge if isinstance(edge, Edge) else Edge(*edge) for edge in edges)
        self.joins = {known: node.join for known, node in told.items()}
        self.output = output
        given = set(inputs)
        self.tasks = {known: _task(known, node, given | set(nodes)) for known, node in told.items()}
        begin = (start,) if isinstance(start, str) else tuple(start)
        types = dict(inputs) if isinstance(inputs, Mapping) else dict.fromkeys(inputs, Any)
        self.drawn = Drawn(name, self.tasks, self.edges, self.joins, types, begin, output)
        wrong = problems(self.drawn)
        if wrong:
            listed = "\n".join(f"  - {problem}" for problem in wrong)
            raise ConfigError(f"graph {name} cannot be run:\n{listed}\nNothing was executed.")
        tasks = self.tasks.values()
        drawn = [f"{edge} {edge.label} {edge.limit}" for edge in self.edges]
        super().__init__(name, [task.step for task in tasks], inputs_of(types, tasks), drawn)
        self.made_of += tuple(edge.when for edge in self.edges if callable(edge.when))

    def plan(self, inputs: dict[str, Any]) -> Plan:
        return _Execution(self, inputs).plan()


def _task(name: str, node: Node, known: set[str]) -> Task:
    """The node as a step."""
    fn, options = node.fn, node.options
    if inspect.isclass(fn):
        return Keeper(name, fn, node.given, options)
    made = Task(fn, name=name, given=node.given, **options)
    return mapped(made, node.over, node.limit, known) if node.over else made


class _Execution:
    """One execution of a graph: which nodes and edges are in which state. Lives as long as its plan."""

    def __init__(self, graph: Graph, inputs: dict[str, Any]) -> None:
        self.graph = graph
        self.drawn = graph.drawn
        self.values: dict[str, Any] = dict(inputs)
        self.settled: dict[Edge, bool] = {}
        """forward edges: whether they were taken"""
        self.entered: set[str] = set()
        """nodes that run, have run or will not run in this round"""
        self.ran: set[str] = set()
        """nodes that ended in this round, with a value"""
        self.flying: dict[int, str] = {}
        self.back: list[Edge] = []
        """taken edges that go back and wait for their region"""
        self.times: dict[Edge, int] = {}
        self.previous: dict[str, Any] = {}
        self.held: dict[str, Held] = {}
        """states of nodes that have some"""

    def plan(self) -> Plan:
        failure: Failure | None = None
        ready = [(name, None) for name in self.drawn.first]
        while True:
            for name, previous in ready if failure is None else ():
                self.entered.add(name)
                self.flying[(yield Start(self.work(name, previous)))] = name
            if not self.needed():
                break
            number, outcome = yield Next()
            name = self.flying.pop(number)
            if isinstance(outcome, Failure):  # what others are paid to do is finished first
                failure = failure or outcome
                ready = []
                continue
            try:
                self.end(name, outcome)
                ready = list(self.next())
            except Exception as error:  # of a condition, or a limit
                failure, ready = Failure(error), []
        if failure is not None:
            raise failure.error
        return self.result()

    def work(self, name: str, previous: Any) -> Work:
        task = self.graph.tasks[name]
        if isinstance(task, Keeper):
            arguments = task.arguments(self.values, previous)
            return Work(task.keeping(self.held), (), arguments | {"state_before": task.before(self.held)})
        return work_of(task, self.values, previous)

    def needed(self) -> bool:
        """Whether something runs that somebody waits for: not the losers of a join of any, unless a region does."""
        waited = self.region(self.back)
        return any(
            name in waited
            or not (forward := self.drawn.after[name])
            or any(edge.target not in self.entered for edge in forward)
            for name in self.flying.values()
        )

    def end(self, name: str, outcome: Any) -> None:
        task = self.graph.tasks[name]
        self.values[name] = task.output(outcome, self.held) if isinstance(task, Keeper) else outcome
        self.ran.add(name)
        taken = self.choose(name, self.values[name])
        for edge in self.drawn.after[name]:
            self.settled[edge] = edge in taken
        for edge in taken:
            if edge.limit is None:
                self.previous[edge.target] = self.values[name]
            else:
                self.times[edge] = self.times.get(edge, 0) + 1
                self.back.append(edge)

    def choose(self, name: str, value: Any) -> list[Edge]:
        """The edges of a node that are taken, now that it has ended with ``value``."""
        edges = [edge for edge in self.graph.edges if edge.source == name]
        wanted = [edge for edge in edges if not edge.otherwise and _holds(edge, value)]
        taken = [edge for edge in wanted if edge.limit is None or self.times.get(edge, 0) < edge.limit]
        if taken or not edges:
            return taken
        other = [edge for edge in edges if edge.otherwise]
        if other:
            return other
        if wanted:
            raise LimitReached(
                f"{place()}graph {self.graph.name}: the edge {wanted[0]} would be taken more often than its limit "
                f"of {wanted[0].limit} allows. What finished is kept.",
                hint="Raise the limit and run it again to go on, or give the node an edge otherwise=True.",
            )
        if self.drawn.after[name] and all(edge.when is not None and not callable(edge.when) for edge in edges):
            raise ConfigError(
                f"{place()}graph {self.graph.name}: node {name} returned {value!r}, and no edge is for that. "
                "What finished is kept.",
                hint=f"Its edges are for {', '.join(repr(edge.when) for edge in edges)}; add one otherwise=True.",
            )
        return []

    def next(self) -> Iterator[tuple[str, Any]]:
        """Nodes that are to run now, in the order declared, with the output of the node before."""
        yield from self.go_back()
        blocked = self.region(self.back)
        moved = True
        while moved:  # a node that does not run settles its edges, which may decide others
            moved = False
            for name in self.graph.tasks:
                edges = self.drawn.before[name]
                if name in self.entered or name in blocked or not edges:
                    continue
                taken = any(self.settled.get(edge) for edge in edges)
                if taken and (self.graph.joins[name] == "any" or all(edge in self.settled for edge in edges)):
                    self.entered.add(name)
                    yield name, self.previous.get(name)
                elif all(self.settled.get(edge) is False for edge in edges):
                    self.entered.add(name)
                    self.settled |= dict.fromkeys(self.drawn.after[name], False)
                    moved = True

    def go_back(self) -> Iterator[tuple[str, Any]]:
        """Edges that go back, once nothing runs in their regions: open these, and begin at the targets."""
        region = self.region(self.back)
        if not self.back or region & set(self.flying.values()):
            return
        targets = {edge.target: self.values[edge.source] for edge in self.back}
        self.back = []
        self.entered -= region
        self.ran -= region
        for name in region:
            for edge in self.drawn.after[name]:
                self.settled.pop(edge, None)
        inside = {name for target in targets for name in self.drawn.region[target] - {target}}
        for name in targets.keys() - inside:
            self.entered.add(name)
            yield name, targets[name]

    def region(self, edges: Sequence[Edge]) -> set[str]:
        return {name for edge in edges for name in self.drawn.region[edge.target]}

    def result(self) -> Any:
        if self.graph.output is not None:
            return self.values.get(self.graph.output)
        ran = [name for name in self.graph.tasks if name in self.ran]
        last = [name for name in ran if not self.drawn.after[name]]
        last = last or [name for name in ran if not any(self.settled[edge] for edge in self.drawn.after[name])]
        return self.values[last[0]] if len(last) == 1 else {name: self.values[name] for name in last}


def _holds(edge: Edge, value: Any) -> bool:
    if edge.when is None:
        return True
    return bool(edge.when(value)) if callable(edge.when) else bool(edge.when == value)
