"""LangGraph: the functional API and graphs, with its own savers for SQLite and PostgreSQL, durability "sync"."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any, TypedDict

from langgraph.channels.delta import DeltaChannel
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph

from bench.talk import Job, Sample, Watch, imports, per_second, serve, stop_here, text, texts

_LAST = {"step": 0, "resumed": False, "kill": 0}
_ACROSS = 16
"""threads, and connections to PostgreSQL, for many runs at a time where an event loop is slower"""


class Stop(Exception):
    """The run is as long as it is to be."""


def _over(number: int) -> None:
    if _LAST["resumed"]:
        stop_here(first=number)
    raise Stop


# -- savers --------------------------------------------------------------------------------------------------------


@contextmanager
def _saver(job: Job) -> Iterator[Any]:
    if job["store"] == "sqlite":
        from langgraph.checkpoint.sqlite import SqliteSaver

        with SqliteSaver.from_conn_string(f"{job['folder']}/peer.db") as saver:
            yield saver
    else:
        from langgraph.checkpoint.postgres import PostgresSaver

        with PostgresSaver.from_conn_string(job["server"]) as saver:
            saver.setup()
            yield saver


@asynccontextmanager
async def _async_saver(job: Job) -> AsyncIterator[Any]:
    if job["store"] == "sqlite":
        from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

        async with AsyncSqliteSaver.from_conn_string(f"{job['folder']}/peer.db") as saver:
            yield saver
    else:
        from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

        async with AsyncPostgresSaver.from_conn_string(job["server"]) as saver:
            await saver.setup()
            yield saver


@contextmanager
def _pooled_saver(job: Job) -> Iterator[Any]:
    """PostgreSQL over as many connections as there are threads."""
    from langgraph.checkpoint.postgres import PostgresSaver
    from psycopg.rows import dict_row
    from psycopg_pool import ConnectionPool

    options = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    with ConnectionPool(job["server"], min_size=_ACROSS, max_size=_ACROSS, kwargs=options) as pool:
        saver = PostgresSaver(pool)
        saver.setup()
        yield saver


def _config(thread: str, size: int) -> dict[str, Any]:
    return {"configurable": {"thread_id": thread}, "recursion_limit": size + 1000}


# -- the functional API --------------------------------------------------------------------------------------------


@task
def work(number: int, size: int) -> str:
    """A step."""
    if _LAST["resumed"] or number == _LAST["step"]:
        _over(number)
    return text(number, size)


@task
async def work_async(number: int, size: int) -> str:
    """The same, async."""
    return text(number, size)


def _functional(saver: Any) -> Any:
    @entrypoint(checkpointer=saver)
    def sequence(inputs: dict[str, int]) -> int:
        total = 0
        for number in range(inputs["count"]):
            total += len(work(number, inputs["size"]).result())
            if number + 1 == _LAST["kill"]:
                stop_here()
        return total

    return sequence


def _functional_async(saver: Any) -> Any:
    @entrypoint(checkpointer=saver)
    async def sequence(inputs: dict[str, int]) -> int:
        return sum([len(await work_async(number, inputs["size"])) for number in range(inputs["count"])])

    return sequence


# -- graphs --------------------------------------------------------------------------------------------------------


class Steps(TypedDict):
    number: int
    body: str
    count: int
    size: int


def _step(state: Steps) -> dict[str, Any]:
    number = state["number"]
    if _LAST["kill"] and number == _LAST["kill"]:
        stop_here()
    if _LAST["resumed"] or number == _LAST["step"]:
        _over(number)
    return {"number": number + 1, "body": text(number, state["size"])}


def _again(state: Steps) -> str:
    return "step" if state["number"] < state["count"] else END


def _graph(saver: Any) -> Any:
    """One node that follows itself."""
    graph = StateGraph(Steps)
    graph.add_node("step", _step)
    graph.add_edge(START, "step")
    graph.add_conditional_edges("step", _again, ["step", END])
    return graph.compile(checkpointer=saver)


def _joined(messages: list[Any], more: Sequence[list[Any]]) -> list[Any]:
    return [*messages, *(message for some in more for message in some)]


def _talk(saver: Any, delta: bool) -> Any:
    """Two nodes that say something in turn; the state is the list of all messages."""
    reducer: Any = DeltaChannel(_joined) if delta else operator.add

    fields: dict[str, Any] = {"messages": Annotated[list, reducer], "count": int, "size": int}

    def say(role: str) -> Callable[[Any], dict[str, Any]]:
        def node(state: Any) -> dict[str, Any]:
            number = len(state["messages"]) - 1
            if _LAST["resumed"] or number == _LAST["step"]:
                _over(number)
            return {"messages": [{"role": role, "content": text(number, state["size"]), "tool_call_id": "1"}]}

        return node

    def more(state: Any) -> str:
        return "tool" if len(state["messages"]) <= state["count"] else END

    graph: Any = StateGraph(TypedDict("Talk", fields))  # type: ignore[operator]
    graph.add_node("model", say("assistant"))
    graph.add_node("tool", say("tool"))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", more, ["tool", END])
    graph.add_conditional_edges("tool", lambda state: "model" if more(state) != END else END, ["model", END])
    return graph.compile(checkpointer=saver)


# -- workloads -----------------------------------------------------------------------------------------------------


def _built(job: Job, saver: Any) -> tuple[Any, dict[str, Any]]:
    """The flow of a job, and what it begins with."""
    if job.get("shape") == "agent" or job["workload"] == "W2":
        if job["api"] == "functional":
            return _functional(saver), {}
        return _talk(saver, job.get("delta", False)), {"messages": [{"role": "user", "content": "go"}]}
    return (_functional(saver), {}) if job["api"] == "functional" else (_graph(saver), {"number": 0, "body": ""})


def one_run(job: Job, size: int = 1024) -> Sample:
    """W1, and W2 with another size."""
    _LAST.update(step=-1, resumed=False, kill=0)
    texts(job["size"], size)
    with _saver(job) as saver:
        flow, begin = _built(job, saver)
        flow.invoke({**begin, "count": 2, "size": size}, _config("warm", 2), durability="sync")
        with Watch() as watch:
            inputs = {**begin, "count": job["size"], "size": size}
            flow.invoke(inputs, _config("measured", job["size"]), durability="sync")
    return per_second(job["size"], watch.seconds)


def growing(job: Job) -> Sample:
    """W2."""
    return {**one_run(job, 2048), "payload": job["size"] * 2048}


def many_runs(job: Job) -> Sample:
    """W3: in an event loop, or in threads, whichever is faster."""
    _LAST.update(step=-1, resumed=False, kill=0)
    texts(job["size"], 1024)
    seconds = _in_threads(job) if job.get("threads") else asyncio.run(_in_a_loop(job))
    return per_second(job["runs"] * job["size"], seconds)


async def _in_a_loop(job: Job) -> float:
    async with _async_saver(job) as saver:
        functional = job["api"] == "functional"
        flow = _functional_async(saver) if functional else _graph(saver)
        begin = {} if functional else {"number": 0, "body": ""}
        inputs = {**begin, "count": job["size"], "size": 1024}
        await flow.ainvoke({**inputs, "count": 1}, _config("warm", 1), durability="sync")
        with Watch() as watch:
            runs = (flow.ainvoke(inputs, _config(f"run {n}", 100), durability="sync") for n in range(job["runs"]))
            await asyncio.gather(*runs)
        return watch.seconds


def _in_threads(job: Job) -> float:
    with _pooled_saver(job) as saver, ThreadPoolExecutor(_ACROSS) as threads:
        flow, begin = _built(job, saver)
        inputs = {**begin, "count": job["size"], "size": 1024}
        flow.invoke({**inputs, "count": 1}, _config("warm", 1), durability="sync")

        def run(number: int) -> None:
            flow.invoke(inputs, _config(f"run {number}", 100), durability="sync")

        with Watch() as watch:
            list(threads.map(run, range(job["runs"])))
        return watch.seconds


def _begin(job: Job) -> None:
    with _saver(job) as saver:
        flow, begin = _built(job, saver)
        flow.invoke({**begin, "count": 10**9, "size": 100}, _config("resumed", job["size"]), durability="sync")


def make(job: Job) -> Sample:
    """W4: the first steps."""
    _LAST.update(step=job["size"], resumed=False)
    try:
        _begin(job)
    except Stop:
        return {}
    raise AssertionError("the run came to an end")


def kill(job: Job) -> Sample:
    """Die right after the ``size``-th step was reported: to the function, or to the node that comes next."""
    _LAST.update(step=-1, kill=job["size"])
    return _begin(job) or {}


def resume(job: Job) -> Sample:
    """W4: go on."""
    _LAST.update(resumed=True)
    with _saver(job) as saver:
        flow, _ = _built(job, saver)
        flow.invoke(None, _config("resumed", 10**6), durability="sync")
    raise AssertionError("no step was executed")


def imported(job: Job) -> Sample:
    """Only what ``resume`` imports."""
    if job["store"] == "sqlite":
        import langgraph.checkpoint.sqlite
    else:
        import langgraph.checkpoint.postgres  # noqa: F401
    return imports(job)


WORKLOADS = {
    "W1": one_run,
    "W2": growing,
    "W3": many_runs,
    "W4 make": make,
    "W4 kill": kill,
    "W4 resume": resume,
    "W4 imports": imported,
}

if __name__ == "__main__":
    serve(WORKLOADS)
