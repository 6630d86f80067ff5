"""Random programs, random edits, lives cut off anywhere: what is executed again is what an oracle of ten lines says.

A program is a list of calls; each names a step, the version of its code, whether its result depends on that, and the
earlier calls whose results are its inputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

import perdure
from perdure import CheckpointManager
from perdure.journal import decode
from perdure.model import RunKey
from perdure.runtime.explain import explain
from perdure.runtime.steps import Flow
from perdure.stores.memory import MemoryBackend, MemoryStore


class Call(NamedTuple):
    """One call of a step."""

    step: str
    version: int
    matters: bool
    inputs: tuple[int, ...]


class Stop(BaseException):
    """A life is cut off."""


calls = st.builds(
    Call,
    step=st.sampled_from("abcd"),
    version=st.integers(1, 2),
    matters=st.booleans(),
    inputs=st.lists(st.integers(0, 9), max_size=2).map(tuple),
)
programs = st.lists(calls, min_size=1, max_size=6)
lives = st.tuples(st.integers(0, 2), st.booleans(), st.integers(0, 4))
"""which program, whether to execute again what has changed, and before which execution it is cut off (0: never)"""


def one_version(program: list[Call]) -> list[Call]:
    """Within one program a step has one version, and its result depends on it or not."""
    first = {call.step: call for call in reversed(program)}
    return [call._replace(version=first[call.step].version, matters=first[call.step].matters) for call in program]


def value(call: Call, given: tuple[str, ...]) -> str:
    return f"{call.step}{call.version if call.matters else ''}({','.join(given)})"


class Oracle:
    """What is recorded: identity of each call -> the version that made it, and its result."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, tuple[str, ...], int], tuple[int, str]] = {}

    def life(self, program: list[Call], renew: bool, cut: int) -> tuple[list[str], list[str] | None]:
        """What is executed, and the results; None if it is cut off before the ``cut``-th execution ends."""
        executed: list[str] = []
        results: list[str] = []
        seen: Counter[tuple[str, tuple[str, ...]]] = Counter()
        for call in program:
            given = tuple(results[i] for i in call.inputs if i < len(results))
            identity = (call.step, given, seen[call.step, given])
            seen[call.step, given] += 1
            version, result = self.records.get(identity, (0, ""))
            if not version or (renew and version != call.version):
                executed.append(call.step)
                self.records.pop(identity, None)
                if len(executed) == cut:
                    return executed, None
                result = value(call, given)
                self.records[identity] = (call.version, result)
            results.append(result)
        return executed, results


def written(program: list[Call], executed: list[str], cut: int) -> Flow[[], list[str]]:
    """The program as a flow, which says what it executes."""

    def made(call: Call) -> Callable[[tuple[str, ...]], str]:
        @perdure.step(name=call.step, version=str(call.version))
        def step(given: tuple[str, ...]) -> str:
            executed.append(call.step)
            if len(executed) == cut:
                raise Stop
            return value(call, given)

        return step

    @perdure.flow(name="program")
    def flow() -> list[str]:
        results: list[str] = []
        for call in program:
            results.append(made(call)(tuple(results[i] for i in call.inputs if i < len(results))))
        return results

    flow.made_of = (("program", str(program)),)
    return flow


@given(programs, st.sets(st.sampled_from("abcd"), min_size=1), programs, st.lists(lives, min_size=2, max_size=6))
def test_what_is_executed_is_what_the_rule_says(
    first: list[Call], edited: set[str], other: list[Call], told: list[tuple[int, bool, int]]
) -> None:  # X1 C3
    versions = [call._replace(version=3) if call.step in edited else call for call in first]
    drawn = [first, versions, other]
    backend, oracle = MemoryBackend(), Oracle()
    renewing: list[Call] | None = None
    for number, (which, asked, cut) in enumerate(told):
        program = one_version(drawn[which])
        executed: list[str] = []
        flow = written(program, executed, cut)
        rows = MemoryStore(backend).runs()
        over = bool(rows) and rows[0].status == "completed"
        ended: list[str] | None = None
        with CheckpointManager(MemoryStore(backend)) as manager, suppress(Stop):
            ended = manager.run_sync(flow, goal="g", rerun=("changed",) if asked else ())
        if over and not asked:
            assert executed == []
            continue
        renew = asked or renewing == program
        assert (executed, ended) == oracle.life(program, renew, cut)
        renewing = None if ended is not None else program if renew and number else renewing
        check_explanation(MemoryStore(backend), executed, program if ended is not None else None)


def check_explanation(store: MemoryStore, executed: list[str], ended: list[Call] | None) -> None:
    """Every execution has a reason, and every call of a life that ended is accounted for."""
    key = RunKey("g")
    entries = [decode(key, line, n) for n, line in enumerate(store.read(key), 1)]
    told = explain(key, entries, lambda payload: {})
    assert Counter(reason.path for reason in told.steps if reason.decision == "executed") == Counter(executed)
    if ended is not None:
        assert told.count("executed") + told.count("reused") == len(ended)
