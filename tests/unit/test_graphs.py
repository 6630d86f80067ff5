"""Graphs: what runs when, what is refused before anything runs, and what a failure leaves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.errors import ConfigError, InputMismatch, LeaseHeld, LimitReached, MutatedInput, NewerFormat
from perdure.runners import Edge, FlexibleGraphExecutor, Graph, GraphExecutor, Node, Pipeline, PlanStep, Runner, Verdict
from perdure.runners.mermaid import mermaid

RAN: list[str] = []


@pytest.fixture(autouse=True)
def _forget() -> None:
    RAN.clear()


def say(name: str, *needs: str, value: object = None, **defaults: object) -> Callable[..., Any]:
    """A function that notes that it ran, takes ``needs``, and returns ``value`` or what it was given."""
    listed = ", ".join([*needs, *(f"{key}={default!r}" for key, default in defaults.items())])
    scope: dict[str, Any] = {"RAN": RAN, "value": value, "name": name}
    body = f"def {name}({listed}):\n    RAN.append(name)\n    given = dict(locals())\n"
    body += "    return value if value is not None else name + ''.join(f'<{v}>' for v in given.values() if v != '')\n"
    exec(body, scope)
    made: Callable[..., Any] = scope[name]
    return made


def both(graph: Graph, **inputs: Any) -> Any:
    """The result, which is the same without a store, with one, and when it is asked for again."""
    plain = GraphExecutor().execute_sync(graph, "g", inputs)
    with Runner("memory:") as runner:
        kept = runner.execute_sync(graph, "g", inputs)
        again = runner.execute_sync(graph, "g", inputs)
    assert plain.value() == kept.value() == again.value()
    assert sorted(plain.path) == sorted(kept.path) == sorted(again.path)
    return plain.value()


def test_a_chain_hands_on_outputs_by_name_or_to_the_one_open_parameter() -> None:  # G1 G4
    graph = Graph(
        {"a": say("a", "topic"), "b": say("b", "x"), "c": say("c", "a", "b")},
        [("a", "b"), ("b", "c")],
        inputs=["topic"],
    )
    assert both(graph, topic="t") == "c<a<t>><b<a<t>>>"


def test_a_join_of_all_waits_for_every_edge_that_can_still_come() -> None:  # G4
    nodes = {"a": say("a", value=1), "b": say("b"), "c": say("c"), "d": say("d", b="-", c="-")}
    edges = [Edge("a", "b", when=lambda n: n > 1), ("a", "c"), ("b", "d"), ("c", "d")]
    assert both(Graph(nodes, edges)) == "d<-><c>"


def test_a_node_no_edge_was_taken_to_does_not_run_and_neither_does_what_only_follows_it() -> None:  # G7
    nodes = {"a": say("a", value="left"), "b": say("b"), "c": say("c"), "after_c": say("after_c", "c")}
    graph = Graph(nodes, [Edge("a", "b", when="left"), Edge("a", "c", when="right"), ("c", "after_c")])
    assert both(graph) == "b" and "after_c" not in RAN


def test_a_graph_may_end_at_a_node_after_which_no_edge_was_taken() -> None:
    nodes = {"a": say("a", value=[1]), "b": say("b", "x"), "c": say("c", "x")}
    assert both(Graph(nodes, [Edge("a", "b", when=lambda x: False), ("b", "c")])) == [1]
    assert both(Graph(nodes, [Edge("a", "b", when=[1]), ("b", "c")])) == "c<b<[1]>>"


def test_the_loser_of_a_race_is_waited_for_where_the_race_is_run_again() -> None:
    rounds: list[str] = []
    released = asyncio.Event()

    async def start(judge: str = "") -> str:
        rounds.append("start")
        return f"round {rounds.count('start')}"

    async def quick(start: str) -> str:
        return f"quick {start}"

    async def slow(start: str) -> str:
        await released.wait()
        rounds.append(f"slow {start}")
        return "slow"

    async def judge(racer: str) -> str:
        released.set()
        return "again" if "round 1" in racer else "good"

    graph = Graph(
        {"start": start, "quick": quick, "slow": slow, "judge": Node(judge, join="any")},
        [
            ("start", "quick"),
            ("start", "slow"),
            Edge("quick", "judge", when=bool),
            Edge("slow", "judge", when=lambda _: False),
            Edge("judge", "start", when="again", limit=3),
        ],
    )
    assert GraphExecutor().execute_sync(graph, "g").value() == "good"
    assert rounds[:3] == ["start", "slow round 1", "start"]


def test_a_join_of_any_runs_once_as_soon_as_one_came_and_the_loser_is_not_waited_for() -> None:  # G4
    lost: list[str] = []

    async def slow() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            lost.append("cancelled")
            raise
        return "slow"

    async def quick() -> str:
        return "quick"

    graph = Graph(
        {"a": say("a"), "slow": slow, "quick": quick, "end": Node(say("end", "x"), join="any")},
        [("a", "slow"), ("a", "quick"), Edge("slow", "end", when=bool), Edge("quick", "end", when=bool)],
    )
    for executor in (GraphExecutor(), Runner("memory:")):
        assert executor.execute_sync(graph, "g").value() == "end<quick>"
    assert lost == ["cancelled"] * 2


def test_a_cycle_is_taken_until_its_condition_ends_it() -> None:  # G4
    draft = say("draft", "topic", critic="")
    graph = Graph(
        {"draft": draft, "critic": lambda draft: f"c{draft.count('draft')}", "end": say("end", "draft")},
        [
            ("draft", "critic"),
            Edge("critic", "draft", when=lambda c: c != "c1" or RAN.count("draft") < 3, limit=5),
            Edge("critic", "end", otherwise=True),
        ],
        inputs=["topic"],
    )
    assert GraphExecutor().execute_sync(graph, "g", {"topic": "t"}).path == (
        *("draft", "critic") * 3,
        "end",
    )


def test_a_cycle_that_exceeds_its_bound_pauses_the_run_and_goes_on_with_a_larger_one(tmp_path: Path) -> None:  # X6
    def make(limit: int) -> Graph:
        nodes = {"work": say("work", again=0), "again": lambda work, again=0: again + 1}
        return Graph(nodes, [("work", "again"), Edge("again", "work", when=lambda n: n < 5, limit=limit)], name="loop")

    with Runner(f"file:{tmp_path}") as runner:
        paused = runner.execute_sync(make(2), "g")
        assert paused.status == "paused" and isinstance(paused.error, LimitReached)
        assert "run g#0, scope 'top': graph loop: the edge again -> work would be taken more often" in str(paused.error)
        before = RAN.count("work")
        done = runner.execute_sync(make(9), "g")
        assert (done.status, done.output) == ("completed", 5) and RAN.count("work") == 5 and before == 3
        assert done.reused


def test_when_a_limit_is_used_up_the_edge_otherwise_is_taken() -> None:
    nodes = {"a": say("a", b=""), "b": say("b", value="bad"), "end": say("end", "a")}
    edges = [("a", "b"), Edge("b", "a", when="bad", limit=2), Edge("b", "end", otherwise=True)]
    assert both(Graph(nodes, edges)).startswith("end") and RAN.count("b") == 6  # twice without and with a store


def test_a_cycle_waits_for_what_still_runs_in_its_region_and_runs_it_again() -> None:
    """The parallel branch of a round has ended before the next round begins."""
    rounds: list[str] = []

    def start(critic: str = "") -> str:
        rounds.append("start")
        return f"s{rounds.count('start')}"

    def side(start: str) -> str:
        rounds.append(f"side {start}")
        return f"side of {start}"

    graph = Graph(
        {"start": start, "critic": lambda start: start, "side": side, "end": lambda critic, side: f"{critic}, {side}"},
        [
            ("start", "critic"),
            ("start", "side"),
            Edge("critic", "start", when="s1", limit=3),
            Edge("critic", "end", otherwise=True),
            ("side", "end"),
        ],
    )
    assert GraphExecutor().execute_sync(graph, "g").value() == "s2, side of s2"
    assert rounds == ["start", "side s1", "start", "side s2"]


def test_a_map_runs_its_node_for_every_item_and_keeps_what_finished(tmp_path: Path) -> None:  # W7 X15
    broken = tmp_path / "broken"
    broken.touch()

    def upper(word: str, topic: str) -> str:
        RAN.append(word)
        if word == "b" and broken.exists():
            raise ValueError("no b")
        return word.upper() + topic

    graph = Graph(
        {"words": lambda topic: ["a", "b", "c"], "each": Node(upper, over="words", limit=2), "end": lambda each: each},
        [("words", "each"), ("each", "end")],
        inputs=["topic"],
    )
    with Runner(f"sqlite:{tmp_path / 'runs.db'}") as runner:
        failed = runner.execute_sync(graph, "g", {"topic": "!"})
        assert failed.status == "failed" and "run g#0, step" in failed.error.__notes__[0]  # type: ignore[union-attr]
        with pytest.raises(ValueError, match="no b"):
            failed.value()
        broken.unlink()
        assert runner.execute_sync(graph, "g", {"topic": "!"}).value() == ["A!", "B!", "C!"]
    assert sorted(RAN) == ["a", "b", "b", "c"]


def test_builtin_functions_are_nodes_like_others() -> None:
    graph = Graph(
        {"words": lambda: ["a", "bb"], "each": Node(len, over="words"), "all": sum},
        [("words", "each"), ("each", "all")],
    )
    assert both(graph) == 3


def test_a_map_over_something_that_is_no_list_says_so() -> None:
    graph = Graph({"a": lambda: "abc", "each": Node(lambda x: x, over="a")}, [("a", "each")])
    with Runner("memory:") as runner:
        result = runner.execute_sync(graph, "g")
    assert "each runs over a, which is no list but str" in str(result.error)


def test_graphs_and_pipelines_nest_and_resume_inside(tmp_path: Path) -> None:  # W7
    broken = tmp_path / "broken"
    broken.touch()

    def last(b: str) -> str:
        RAN.append("last")
        if broken.exists():
            raise ValueError("broken")
        return b + "!"

    inner = Graph(
        {"a": say("a", "topic"), "b": say("b", "a"), "last": last}, [("a", "b"), ("b", "last")], inputs=["topic"]
    )
    line = Pipeline([say("one", "inner"), say("two", "x")], name="line")
    outer = Graph({"inner": inner, "line": line}, [("inner", "line")], inputs=["topic"], name="outer")
    with Runner(f"file:{tmp_path / 'store'}") as runner:
        assert runner.execute_sync(outer, "g", {"topic": "t"}).status == "failed"
        broken.unlink()
        done = runner.execute_sync(outer, "g", {"topic": "t"})
    assert done.value() == "two<one<b<a<t>>!>>" and done.path == ("inner", "line")
    assert RAN == ["a", "b", "last", "last", "one", "two"]
    assert set(done.reused) == {"inner-0/a", "inner-0/b"}


def test_what_others_are_paid_to_do_is_finished_when_a_node_fails(tmp_path: Path) -> None:  # G7 X15
    failed = asyncio.Event()

    async def bad() -> str:
        failed.set()
        raise ValueError("bad")

    async def good() -> str:
        await failed.wait()
        RAN.append("good")
        return "good"

    graph = Graph({"a": say("a"), "bad": bad, "good": good}, [("a", "bad"), ("a", "good")])
    with Runner("memory:") as runner:
        assert runner.execute_sync(graph, "g").status == "failed"
    assert RAN == ["a", "good"]


def test_runs_of_one_graph_side_by_side_do_not_mix() -> None:  # G6
    async def slow(topic: str) -> str:
        await asyncio.sleep(0)
        return topic

    graph = Graph({"a": slow, "b": say("b", "a")}, [("a", "b")], inputs=["topic"])

    async def main() -> list[Any]:
        with perdure.CheckpointManager("memory:") as manager:
            executor = GraphExecutor(manager)
            results = [executor.execute(graph, f"g{k}", {"topic": f"t{k}"}) for k in range(20)]
            return [result.value() for result in await asyncio.gather(*results)]

    assert asyncio.run(main()) == [f"b<t{k}>" for k in range(20)]


def test_a_node_that_changes_its_input_is_an_error_that_names_run_scope_step_and_argument() -> None:
    def spoil(a: list[int]) -> int:
        a.append(3)
        return len(a)

    graph = Graph({"a": lambda: [1, 2], "b": spoil}, [("a", "b")])
    with Runner("memory:") as runner:
        result = runner.execute_sync(graph, "g")
    assert isinstance(result.error, MutatedInput) and result.status == "failed"
    assert "step b changed its argument a" in str(result.error) and "run g#0, step 2 (b)" in str(result.error)


# -- state -------------------------------------------------------------------------------------------------------------


class Counter:
    state_version = 2

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, n: int, check: int = 0) -> int:
        self.count += n
        RAN.append(f"count {self.count}")
        return self.count

    def save_state(self) -> dict[str, int]:
        return {"count": self.count}

    def restore_state(self, state: Any, version: int) -> None:
        self.count = state["count"] if version == 2 else state


def _counting(counter: type, broken: Path) -> Graph:
    def check(count: int) -> int:
        if count == 6 and broken.exists():
            raise ValueError("broken")
        return count

    return Graph(
        {"count": counter, "check": check},
        [("count", "check"), Edge("check", "count", when=lambda n: n < 9, limit=9)],
        inputs=["n"],
    )


def test_a_node_with_state_has_it_again_after_a_resume_and_each_run_has_its_own(tmp_path: Path) -> None:  # W7 G6
    broken = tmp_path / "broken"
    broken.touch()
    graph = _counting(Counter, broken)
    with Runner(f"file:{tmp_path / 'store'}") as runner:
        assert runner.execute_sync(graph, "g", {"n": 3}).status == "failed"
        broken.unlink()
        assert runner.execute_sync(graph, "g", {"n": 3}).value() == 9
        assert runner.execute_sync(graph, "other", {"n": 9}).value() == 9
    assert RAN == ["count 3", "count 6", "count 9", "count 9"]
    assert GraphExecutor().execute_sync(graph, "g", {"n": 3}).value() == 9


def test_a_state_of_an_unknown_version_is_refused_and_a_known_older_one_is_read(tmp_path: Path) -> None:  # W7
    class Older(Counter):
        state_version = 1

        def save_state(self) -> Any:
            return self.count

    class Reads(Counter):
        reads_versions = (1,)

    broken = tmp_path / "broken"
    broken.touch()
    with Runner(f"file:{tmp_path / 'store'}") as runner:
        assert runner.execute_sync(_counting(Older, broken), "g", {"n": 3}).status == "failed"
        broken.unlink()
        refused = runner.execute_sync(_counting(Counter, broken), "g", {"n": 3})
        assert isinstance(refused.error, NewerFormat)
        assert "node count has left a state of version 1, and this program reads 2" in str(refused.error)
        assert runner.execute_sync(_counting(Reads, broken), "g", {"n": 3}).value() == 9


def test_a_class_that_keeps_no_state_is_refused_as_a_node() -> None:
    with pytest.raises(ConfigError, match="node a is a class, so it keeps state, but Path has no"):
        Graph({"a": Path})


# -- refusals ----------------------------------------------------------------------------------------------------------


def typed(n: int) -> int:
    return n


def words() -> str:
    return "w"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"nodes": {}}, "it has no nodes"),
        ({"nodes": {"a": say("a")}, "edges": [("a", "bb")]}, "edge a -> bb: it names 'bb', and there is no such node"),
        ({"nodes": {"draft": say("draft")}, "edges": [("drafts", "draft")]}, "did you mean 'draft'?"),
        ({"nodes": {"a": say("a"), "b": say("b")}}, "nodes a, b have no edge to them: say start="),
        ({"nodes": {"a": say("a"), "b": say("b")}, "start": "a"}, "node b is never reached: no edge leads to it"),
        (
            {"nodes": {n: say(n) for n in "abc"}, "edges": [("b", "c")], "start": "a"},
            "node c can never run: it joins b, and none of them is ever reached",
        ),
        (
            {"nodes": {n: say(n) for n in "abc"}, "edges": [("b", "c"), Edge("c", "b", limit=2)], "start": "a"},
            "node b can never run: only c -> b leads to it, and goes back",
        ),
        (
            {"nodes": {n: say(n) for n in "abc"}, "edges": [("a", "b"), ("b", "c"), ("c", "b")]},
            "cycle without a bound: b -> c -> b; give the edge that goes back a limit=",
        ),
        (
            {"nodes": {n: say(n) for n in "ab"}, "edges": [("a", "b"), Edge("a", "b", when=1, limit=2)]},
            "edge a -> b has a limit, so it goes back; but none leads from b to a",
        ),
        ({"nodes": {"a": say("a")}, "output": "z"}, "output is 'z', and there is no such node"),
        ({"nodes": {"a": say("a")}, "inputs": ["a"]}, "'a' is an input and a node"),
        ({"nodes": {"a": say("a", "x")}}, "node a needs x, and no node comes before it; declare inputs=['x']"),
        ({"nodes": {"a": say("a"), "b": say("b", "x", "y")}, "edges": [("a", "b")]}, "node b needs x, y: name inputs"),
        (
            {"nodes": {"a": say("a"), "b": say("b"), "c": say("c"), "d": say("d", "x")}}
            | {"edges": [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")]},
            "node d: several nodes come before it (b, c); name its parameter x like one of them",
        ),
        (
            {"nodes": {"a": say("a"), "b": say("b"), "c": say("c"), "d": say("d", "b")}}
            | {"edges": [Edge("a", "b", when=1), Edge("a", "c", when=2), ("b", "d"), ("c", "d")]},
            "node d: its parameter b is the output of a node that may not have run by then",
        ),
        ({"nodes": {"a": words, "b": typed}, "edges": [("a", "b")]}, "edge a -> b: a returns str, and b takes int"),
        ({"nodes": {"a": say("a")}, "edges": [Edge("a", "a", when=1, otherwise=True)]}, "exclude each other"),
    ],
)
def test_what_is_wrong_with_a_graph_is_told_before_anything_runs(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        Graph(**arguments)
    assert told in str(error.value) and RAN == []


def test_everything_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        Graph({"a": say("a"), "b": say("b", "x", "y")}, [("a", "b"), ("b", "nowhere")], output="z", name="report")
    lines = str(error.value).splitlines()
    assert lines[0] == "graph report cannot be run:" and sum(line.startswith("  - ") for line in lines) == 3


def test_a_router_that_returns_what_no_edge_is_for_is_an_error() -> None:
    graph = Graph(
        {"a": lambda: "x", "b": say("b"), "c": say("c")}, [Edge("a", "b", when="y"), Edge("a", "c", when="z")]
    )
    with Runner("memory:") as runner:
        result = runner.execute_sync(graph, "g")
    assert "run g#0, scope 'top': graph graph: node a returned 'x', and no edge is for that" in str(result.error)


def test_a_condition_that_raises_fails_the_run_with_its_own_error() -> None:
    graph = Graph({"a": lambda: 1, "b": say("b")}, [Edge("a", "b", when=lambda n: n / 0)])
    with Runner("memory:") as runner:
        assert isinstance(runner.execute_sync(graph, "g").error, ZeroDivisionError)


def test_a_graph_is_drawn_with_its_conditions_and_the_states_of_a_run() -> None:
    graph = Graph(
        {"a": say("a"), 'b "q"': Node(say("b"), join="any")},
        [Edge("a", 'b "q"', when="<x>"), Edge('b "q"', "a", otherwise=True, limit=3)],
    )
    drawn = mermaid(graph, {"a": "completed x2"})
    assert 'n0(["a<br/>completed x2"])' in drawn and 'n1["b #quot;q#quot;<br/>(any)"]' in drawn
    assert 'n0 -->|"&lt;x&gt;"| n1' in drawn and 'n1 -.->|"otherwise, at most 3x"| n0' in drawn
    assert "class n0 completed" in drawn


# -- executors ---------------------------------------------------------------------------------------------------------


def test_an_executor_raises_what_was_refused_before_anything_ran(tmp_path: Path) -> None:  # G8
    graph = Graph({"a": say("a", "n")}, inputs=["n"])
    with Runner(f"file:{tmp_path}") as runner:
        runner.execute_sync(graph, "g", {"n": 1})
        with pytest.raises(InputMismatch):
            runner.execute_sync(graph, "g", {"n": 2})
        for executor in (runner, GraphExecutor()):
            with pytest.raises(ConfigError, match=r"missing a required (keyword-only )?argument"):
                executor.execute_sync(graph, "other")
            with pytest.raises(ConfigError, match="unexpected keyword argument 'm'"):
                executor.execute_sync(graph, "other", {"n": 1, "m": 2})
        with pytest.raises(ConfigError, match="The inputs budget have names of options"):
            runner.execute_sync(Graph({"a": say("a", "budget")}, inputs=["budget"]), "other", {"budget": 1})
        assert runner.execute_sync(graph, "g", {"n": 2}, new=True).run == perdure.RunKey("g", 1)
        with runner.manager.begin(goal="held"), pytest.raises(LeaseHeld):  # type: ignore[union-attr]
            runner.execute_sync(graph, "held", {"n": 1})


def test_an_executor_counts_what_was_used_and_what_resuming_saved(tmp_path: Path) -> None:  # X6
    broken = tmp_path / "broken"
    broken.touch()

    @perdure.step(metered=True)
    def paid() -> str:
        perdure.context().spent(input_tokens=10, cost=0.5)
        return "paid"

    @perdure.step(metered=True)
    def fails(paid: str) -> str:
        perdure.context().spent(output_tokens=3, cost=0.25)
        if broken.exists():
            raise ValueError("broken")
        return paid

    graph = Graph({"paid": paid, "fails": fails}, [("paid", "fails")])
    with Runner(f"file:{tmp_path / 'store'}") as runner:
        first = runner.execute_sync(graph, "g")
        broken.unlink()
        second = runner.execute_sync(graph, "g")
    assert (first.paid.calls, first.paid.tokens, first.paid.cost) == (2, 13, 0.75)
    assert second.usage == first.usage + second.paid
    assert (second.paid.calls, second.paid.tokens, second.paid.cost) == (1, 3, 0.25)
    assert (second.saved.calls, second.saved.tokens, second.saved.cost) == (1, 10, 0.5)


def test_a_sync_graph_without_a_store_does_not_block_the_event_loop() -> None:
    async def main() -> None:
        free = threading.Event()

        def waits() -> str:
            assert free.wait(30), "the loop was blocked"
            return "done"

        executing = asyncio.ensure_future(GraphExecutor().execute(Graph({"a": waits}), "g"))
        await asyncio.sleep(0)
        free.set()
        assert (await executing).value() == "done"

    asyncio.run(main())


def _plan(topic: str, done: dict[str, Any], feedback: str) -> list[PlanStep]:
    RAN.append(f"plan {sorted(done)} {feedback}".strip())
    return [
        PlanStep("a", "find", {"q": "x"}),
        PlanStep("b", "find", {"q": "bad" if not feedback else "y"}, after=("a",)),
    ]


def _judge(step: PlanStep, output: str) -> Any:
    return Verdict("replan", "b is bad") if "bad" in output else True


def test_a_flexible_graph_replans_keeps_what_was_accepted_and_stops_at_its_limit() -> None:  # G4
    find = lambda q: RAN.append(f"find {q}") or q * 2  # type: ignore[func-returns-value]  # noqa: E731
    executor = FlexibleGraphExecutor(_plan, {"find": find}, _judge)
    result = executor.execute_sync("g", {"topic": "t"})
    assert result.value() == "yy" and result.path.count("plan") == 2
    assert RAN == ["plan []", "find x", "find bad", "plan ['a'] b: b is bad", "find y"]
    limited = FlexibleGraphExecutor(_plan, {"find": find}, _judge, max_plans=1).execute_sync("g", {"topic": "t"})
    assert limited.status == "paused" and "1 plans were made" in str(limited.error)


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        ([PlanStep("a", "fly")], "step a: there is no action 'fly', only find"),
        ([PlanStep("a", "find", {"q": 1}), PlanStep("a", "find", {"q": 2})], "two steps are called a"),
        ([PlanStep("a", "find", {"q": 1}, after=("z",))], "step a comes after 'z', which is not there"),
        ([PlanStep("a", "find", after=("b",)), PlanStep("b", "find", after=("a",))], "steps a, b wait for each other"),
        (["a"], "'a' is no PlanStep"),
        ([PlanStep("a", "find")], "a needs q, which nothing gives it"),
        ([PlanStep("a", "find", {"z": 1})], "given names ['z']"),
    ],
)
def test_a_plan_that_cannot_be_followed_is_an_error_that_says_why(plan: list[Any], told: str) -> None:
    with Runner("memory:") as runner:
        executor = FlexibleGraphExecutor(
            lambda: plan, {"find": lambda q: q}, lambda output: True, checkpoint_manager=runner.manager
        )
        result = executor.execute_sync("g")
    assert result.status == "failed" and told in str(result.error)


# -- what only another life shows --------------------------------------------------------------------------------------


def test_which_of_two_came_first_stays_so_in_later_lives(tmp_path: Path) -> None:  # X10
    broken = [True]
    free = asyncio.Event()

    async def a() -> str:
        await free.wait()
        return "a"

    async def b() -> str:
        return "b"

    async def end(x: str) -> str:
        free.set()
        state = perdure.context()._run.state  # type: ignore[union-attr]
        while not all(step.recorded for step in map(state.steps.__getitem__, state.steps.named("", "a"))):  # noqa: ASYNC110
            await asyncio.sleep(0)
        if broken:
            raise ValueError("broken")
        return f"{x} came first"

    graph = Graph(
        {"start": say("start"), "a": a, "b": b, "end": Node(end, join="any")},
        [("start", "a"), ("start", "b"), Edge("a", "end", when=bool), Edge("b", "end", when=bool)],
    )
    with Runner(f"file:{tmp_path}") as runner:
        assert runner.execute_sync(graph, "g").status == "failed"
        broken.clear()
        assert runner.execute_sync(graph, "g").value() == "b came first"


def test_what_ran_in_an_earlier_round_only_is_no_part_of_the_result() -> None:
    count = [0]

    def draft(critic: str = "") -> str:
        count[0] += 1
        return f"d{count[0]}"

    nodes = {"draft": draft, "critic": lambda draft: f"on {draft}", "side": say("side", "draft")}
    edges = [
        Edge("draft", "side", when="d1"),
        Edge("draft", "critic", when=lambda text: True),
        Edge("critic", "draft", when="on d1", limit=2),
    ]
    assert GraphExecutor().execute_sync(Graph(nodes, edges), "g").value() == "on d2" and RAN == ["side"]


def test_nothing_new_begins_in_the_region_of_an_edge_that_is_about_to_go_back() -> None:
    rounds, criticised, quick_done = [0], asyncio.Event(), asyncio.Event()

    async def start(critic: str = "") -> int:
        rounds[0] += 1
        return rounds[0]

    async def critic(start: int) -> str:
        criticised.set()
        return "again" if start == 1 else "good"

    async def quick(start: int) -> str:
        await criticised.wait()
        quick_done.set()
        return f"quick {start}"

    async def slow(start: int) -> str:
        await quick_done.wait()
        for _ in range(20):  # long enough for what follows quick to begin, if it does
            await asyncio.sleep(0)
        return f"slow {start}"

    graph = Graph(
        {"start": start, "critic": critic, "quick": quick, "slow": slow, "after": say("after", "quick")},
        [
            ("start", "critic"),
            ("start", "quick"),
            ("start", "slow"),
            ("quick", "after"),
            Edge("critic", "start", when="again", limit=2),
        ],
    )
    result = GraphExecutor().execute_sync(graph, "g").value()
    assert result["after"] == "after<quick 2>" and RAN == ["after"]
