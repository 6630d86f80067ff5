"""Random graphs: with a store and without, and after a failure at any call, they end alike and repeat nothing."""

from __future__ import annotations

import threading
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.runners import Edge, Graph, GraphExecutor, Runner

LETTERS = "abcdefg"


class Bodies:
    """Node functions whose value depends on their arguments alone; one call may fail, once."""

    def __init__(self, fail_at: int = 0) -> None:
        self.fail_at = fail_at
        self.calls: Counter[str] = Counter()
        self.count = 0
        self.lock = threading.Lock()

    def make(self, name: str, needs: list[str]) -> Callable[..., Any]:
        scope: dict[str, Any] = {"work": self.work, "name": name}
        listed = ", ".join(f"{need}=0" for need in needs)
        exec(f"def {name}({listed}):\n    return work(name, dict(locals()))\n", scope)
        made: Callable[..., Any] = scope[name]
        return made

    def work(self, name: str, given: dict[str, int]) -> int:
        said = f"{name} {sorted(given.items())}"
        with self.lock:
            self.count += 1
            if self.count == self.fail_at:
                raise ValueError("broken")
            self.calls[said] += 1
        return zlib.crc32(said.encode()) % 1000


@st.composite
def drawings(draw: st.DrawFn) -> dict[str, Any]:
    """Which node follows which, under which condition; at most one edge goes back."""
    size = draw(st.integers(2, len(LETTERS)))
    names = LETTERS[:size]
    forward = []
    for place in range(1, size):
        sources = draw(st.lists(st.sampled_from(names[:place]), min_size=1, max_size=2, unique=True))
        for source in sources:
            forward.append((source, names[place], draw(st.sampled_from([None, None, 0, 1]))))
    back = draw(st.none() | st.tuples(st.sampled_from(names), st.sampled_from(names), st.integers(1, 3)))
    return {"names": names, "forward": forward, "back": back}


def build(drawn: dict[str, Any], bodies: Bodies) -> Graph:
    names, forward, back = drawn["names"], drawn["forward"], drawn["back"]
    before: dict[str, list[str]] = {name: [s for s, t, _ in forward if t == name] for name in names}
    edges = [
        Edge(source, target, when=None if parity is None else lambda value, parity=parity: value % 2 == parity)
        for source, target, parity in forward
    ]
    needs = {name: [*before[name]] for name in names}
    if back is not None and back[0] in _after(back[1], forward):
        # it reads what made it go back, so that each round is another; the limit ends it where the values do not
        edges.append(Edge(back[0], back[1], when=lambda value: value % 3 > 0, limit=back[2]))
        edges.append(Edge(back[0], "end", otherwise=True))
        needs[back[1]] = [*{*needs[back[1]], back[0]}]
    else:
        edges.append(Edge(names[-1], "end"))
    nodes = {name: bodies.make(name, needs[name]) for name in names} | {"end": bodies.make("end", [])}
    return Graph(nodes, edges)


def _steady(drawn: dict[str, Any]) -> set[str]:
    """Nodes that run equally often however fast others are: not those of a region that nothing goes back from. Whether
    they begin before the region is opened again depends on who ends first."""
    names, forward, back = {*drawn["names"], "end"}, drawn["forward"], drawn["back"]
    if back is None:
        return names
    return names - {name for name in _after(back[1], forward) if back[0] not in _after(name, forward)}


def _after(name: str, forward: list[tuple[str, str, Any]]) -> set[str]:
    found, todo = set(), [name]
    while todo:
        found.add(todo[-1])
        source = todo.pop()
        todo += [t for s, t, _ in forward if s == source and t not in found]
    return found


@settings(max_examples=120)
@given(drawings(), st.integers(1, 12))
def test_random_graphs_end_alike_without_a_store_with_one_and_after_a_failure(drawn: dict[str, Any], at: int) -> None:
    # G1 G4 G7 rel:R1
    plain = Bodies()
    expected = GraphExecutor().execute_sync(build(drawn, plain), "g")
    assert expected.status == "completed", expected.error
    broken = Bodies(fail_at=at)
    graph = build(drawn, broken)
    with Runner("memory:") as runner:
        first = runner.execute_sync(graph, "g")
        found = runner.execute_sync(graph, "g")
    assert first.status == ("failed" if broken.count >= at and at <= plain.count else "completed")
    assert (found.status, found.output) == ("completed", expected.output)
    steady = _steady(drawn)
    assert {n: k for n, k in Counter(found.path).items() if n in steady} == {
        n: k for n, k in Counter(expected.path).items() if n in steady
    }
    once = {said for said in plain.calls if said.partition(" ")[0] in steady}
    assert {said: broken.calls[said] for said in once} == {said: plain.calls[said] for said in once}, "it ran once"
