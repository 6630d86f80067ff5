"""Pipelines and crews, in both colours, on a durable store and on none."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure import errors
from perdure.runners import Crew, Pipeline, Task, quorum

EXPERTS = ("methods", "claims", "style", "numbers")


class Bench:
    """Makes experts of one colour that say what was executed, and do as they are told."""

    def __init__(self, colour: str) -> None:
        self.colour = colour
        self.ran: list[str] = []
        self.failing: dict[str, Exception] = {}
        self.empty: set[str] = set()

    def __call__(self, fn: Callable[..., Any], name: str) -> Callable[..., Any]:
        def work(*args: Any, **kwargs: Any) -> Any:
            self.ran.append(name)
            if name in self.failing:
                raise self.failing[name]
            return "" if name in self.empty else fn(*args, **kwargs)

        functools.update_wrapper(work, fn)
        if self.colour == "sync":
            return work

        async def work_async(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(0)
            return work(*args, **kwargs)

        return functools.update_wrapper(work_async, fn)

    def take(self) -> list[str]:
        taken, self.ran = sorted(self.ran), []
        return taken

    def pipeline(self, require: Any = "all", **options: Any) -> Pipeline:
        """load, a crew of four, a report."""

        def load(path: str) -> str:
            return f"paper at {path}"

        def expert(name: str, paper: str) -> str:
            return f"{name} of {paper}"

        def combine(reviews: dict[str, str], missing: dict[str, str]) -> str:
            return f"{sorted(reviews)} without {sorted(missing)}"

        def report(combined: str, path: str) -> str:
            return f"report on {path}: {combined}"

        experts = [Task(self(_expert(expert, name), name), name=name, **options) for name in EXPERTS]
        crew = Crew(experts, Task(self(combine, "combine"), name="combined"), require=require, name="experts")
        return Pipeline(
            [Task(self(load, "load"), name="paper"), crew, Task(self(report, "report"), name="report")], name="review"
        )


def _expert(fn: Callable[[str, str], str], name: str) -> Callable[[str], str]:
    def examine(paper: str) -> str:
        return fn(name, paper)

    return examine


@pytest.fixture(params=["sync", "async"])
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(request.param)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'runs.db'}"


def run(pipeline: Pipeline, url: str, **options: Any) -> Any:
    return perdure.run(pipeline, goal="paper-17", store=url, path="a.md", **options)


def direct(pipeline: Pipeline) -> Any:
    """The pipeline as a plain call: no store."""
    made = pipeline(path="a.md")
    return asyncio.run(made) if inspect.isawaitable(made) else made


def test_a_pipeline_gives_the_same_with_and_without_a_store(bench: Bench, url: str) -> None:  # G1
    expected = "report on a.md: ['claims', 'methods', 'numbers', 'style'] without []"
    assert direct(bench.pipeline()) == expected
    assert run(bench.pipeline(), url) == expected
    bench.take()
    assert run(bench.pipeline(), url) == expected
    assert bench.take() == [], "a finished run is not executed again"


def test_only_the_expert_that_failed_and_what_depends_on_it_is_executed_again(bench: Bench, url: str) -> None:
    # C3 C7 X15
    bench.failing["claims"] = ValueError("no figures")
    with pytest.raises(errors.IncompleteCrew, match=r"3 of 4 experts delivered, 4 are required.*claims \(ValueError"):
        run(bench.pipeline(), url)
    assert bench.take() == ["claims", "load", "methods", "numbers", "style"], "no gathering on incomplete data"
    bench.failing.clear()
    assert "without []" in run(bench.pipeline(), url)
    assert bench.take() == ["claims", "combine", "report"]


def test_a_quorum_gathers_and_is_told_what_is_missing_and_why(bench: Bench, url: str) -> None:  # C7
    bench.failing = {"claims": ValueError("no figures"), "style": KeyError("voice")}
    with pytest.raises(errors.IncompleteCrew) as error:
        run(bench.pipeline(quorum(3)), url)
    assert error.value.missing.keys() == {"claims", "style"} and "no figures" in error.value.missing["claims"]
    del bench.failing["style"]
    assert run(bench.pipeline(quorum(3)), url).endswith("['methods', 'numbers', 'style'] without ['claims']")


def test_any_is_content_with_one_but_not_with_none(bench: Bench, url: str) -> None:  # C7
    bench.failing = {name: ValueError(name) for name in EXPERTS}
    with pytest.raises(errors.IncompleteCrew, match="0 of 4 experts delivered, 1 are required"):
        run(bench.pipeline("any"), url)
    del bench.failing["numbers"]
    assert "['numbers'] without ['claims', 'methods', 'style']" in run(bench.pipeline("any"), url)


def test_flagged_outputs_count_as_missing_and_one_word_executes_them_again(bench: Bench, url: str) -> None:
    # C6 C7 C11
    bench.empty = {"style"}
    first = run(bench.pipeline(quorum(2), on_refused="flag"), url)
    assert first.endswith("['claims', 'methods', 'numbers'] without ['style']")
    bench.take()
    bench.empty.clear()
    second = run(bench.pipeline(quorum(2), on_refused="flag"), url, rerun="flagged")
    assert second.endswith("['claims', 'methods', 'numbers', 'style'] without []")
    assert bench.take() == ["combine", "report", "style"], "good ones are kept"


def test_an_empty_output_is_retried_before_the_crew_is_judged(bench: Bench, url: str) -> None:  # C6
    pipeline = bench.pipeline(retries=1, backoff=0)
    bench.empty = {"claims"}
    with pytest.raises(errors.IncompleteCrew, match="claims"):
        run(pipeline, url)
    assert bench.take().count("claims") == 2


def test_a_group_runs_side_by_side_and_hands_its_outputs_on_by_name(bench: Bench, url: str) -> None:
    def words(text: str) -> int:
        return len(text.split())

    def lines(text: str) -> int:
        return len(text.splitlines())

    def total(words: int, lines: int, factor: int) -> int:
        return factor * (words + lines)

    pipeline = Pipeline([[bench(words, "words"), bench(lines, "lines")], Task(total, given={"factor": 10})])
    assert pipeline.inputs == ["text"]
    assert perdure.run(pipeline, goal="g", store=url, text="a b\nc") == 50
    assert bench.take() == ["lines", "words"]


def test_all_that_is_wrong_with_a_declaration_is_told_at_once() -> None:  # G2
    def first(text: str) -> str:
        return text

    def lost(one: str, two: str) -> str:
        return one + two

    with pytest.raises(errors.ConfigError) as error:
        Pipeline([first, Task(first, name="again"), Task(lost), Task(first, name="again")])
    assert "lost: nothing fills its parameters one, two" in str(error.value)
    assert "the name 'again' is used twice" in str(error.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda f: Pipeline([]), "it has no stages"),
        (lambda f: Crew([], f), "has no experts"),
        (lambda f: Crew([f], f, require=quorum(2)), "quorum(1..1), not quorum(n=2)"),
        (lambda f: Crew([f], f, require="most"), "not 'most'"),
        (lambda f: Crew([f], f, require="any"), "must be told what is missing"),
        (lambda f: Task(f, given={"nothing": 1}), "given names ['nothing']"),
        (lambda f: Pipeline([3]), "must be a function or step"),
        (lambda f: Task(perdure.step(f), retries=2), "is a step already"),
    ],
)
def test_a_wrong_shape_is_refused_when_it_is_declared(make: Callable[[Any], object], said: str) -> None:  # G2
    def fn(text: str) -> str:
        return text

    with pytest.raises(errors.ConfigError) as error:
        make(fn)
    assert said in str(error.value)


def test_inputs_that_no_one_takes_or_that_are_missing_are_named(url: str) -> None:
    def load(path: str) -> str:
        return path

    pipeline = Pipeline([load])
    with pytest.raises(errors.ConfigError, match="path"):
        perdure.run(pipeline, goal="g", store=url)
    with pytest.raises(errors.ConfigError, match="pth"):
        perdure.run(pipeline, goal="g", store=url, path="x", pth="y")


def test_a_crew_of_both_colours_runs_in_one_event_loop(url: str) -> None:  # X15
    def slow(paper: str) -> str:
        return f"slow {paper}"

    async def quick(paper: str) -> str:
        return f"quick {paper}"

    def combine(reviews: dict[str, str]) -> str:
        return ", ".join(reviews.values())

    pipeline = Pipeline([Crew({"one": slow, "two": quick}, combine)])
    assert perdure.run(pipeline, goal="g", store=url, paper="p") == "slow p, quick p"


def test_the_paths_of_steps_are_their_names(bench: Bench, url: str) -> None:  # names of C2's listing
    run(bench.pipeline(), url)
    with perdure.Client(url) as client:
        steps = client.state("paper-17").steps.values()
    paths = [s.path for s in sorted(steps, key=lambda s: s.number)]
    assert (paths[0], set(paths[1:5]), paths[5:]) == ("paper", set(EXPERTS), ["combined", "report"])


def test_sync_experts_of_an_async_crew_all_work_at_once(url: str) -> None:
    together = threading.Barrier(24)

    def expert(paper: str) -> int:
        return together.wait(timeout=30) + 1

    async def combine(reviews: dict[str, int]) -> int:
        return sum(reviews.values())

    pipeline = Pipeline([Crew({f"e{n}": expert for n in range(24)}, combine)])
    assert perdure.run(pipeline, goal="g", store=url, paper="p") == sum(range(1, 25))
