"""SIGKILL, EIO and ENOSPC at every real system call that changes a file, of a crew, a graph and an agent.

The calls are met by a shim of ours that is preloaded, which counts over all threads and can tear a write, and for a
sample by strace, which knows nothing of us. What the machine has not is stood for by the other, and that is said.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crash_calls import CALLS
from crash_cases import JOBS, STORES, Case
from crash_judge import told_well
from crash_tools import Tools

Record = Callable[[str, object], None]
LEAST = {("file", "async"): 95, ("file", "graph"): 115, ("file", "agent"): 85}
LEAST |= {("sqlite", "async"): 220, ("sqlite", "graph"): 220, ("sqlite", "agent"): 270}
"""calls of a life to which nothing happens; a suite that sees fewer has gone blind"""
SEEN = {"file": {"write", "fsync", "fdatasync", "rename", "unlink", "mkdir"}}
SEEN["sqlite"] = SEEN["file"] | {"pwrite64", "ftruncate"}
"""the kinds of them. Nothing makes links"""
FATES: dict[str, dict[str, Any]] = {
    "killed": {"what": "kill"},
    "torn": {"what": "torn"},
    "failing": {"what": "error", "code": errno.EIO},
    "full": {"what": "error", "code": errno.ENOSPC, "lasting": True},
}
"""a failing disk fails once and then says that all is well; a full one stays full until somebody makes space"""

pytestmark = pytest.mark.long


class Sufferer(Case):
    """Lives of a job in which system calls are met."""

    def __init__(self, tools: Tools, place: Path, store: str, job: str, tool: str) -> None:
        super().__init__(tools.zygote(tool), place, store, job)
        self.tool, self.kills, self.errors = tool, 0, 0

    def life(self, root: Path, life: int, at: int, call: str = "", **fate: Any) -> Any:
        told = self.run("suffered", root, life, of="crash_calls", tool=self.tool, call=call, at=at, **fate)
        self.kills += told.killed
        return told

    def baseline(self, name: str = "baseline") -> dict[str, int]:
        """How many calls of each kind a life makes to which nothing happens."""
        with self.folder(name, "left in peace") as root:
            told = self.life(root, 1, 0, call="write", what="").value
            self.judge(root, 1)
        seen: dict[str, int] = told["seen"]
        assert sum(seen.values()) >= LEAST[self.store, self.job], seen
        assert {call for call in CALLS if seen[call]} == SEEN[self.store], seen
        return seen

    def meet(self, at: int, call: str, fate: str, before: int = 0) -> bool:
        """One point: the fate, what was told, and what is left. ``before``: an earlier life is killed there first."""
        with self.folder(f"{call}{at}", f"{fate} at {call or 'any call'} {at}, by {self.tool}") as root:
            life = 1 + bool(before)
            if before and not self.life(root, 1, before, what="kill").killed:
                return False
            ended = self.life(root, life, at, call, **FATES[fate])
            if not ended.killed and ended.value["failed"] is None:
                return False
            left = self.judge(root, life)
            if not ended.killed:
                self.errors += told_well(ended.value, *left["statuses"], result=self.result())
            return True

    def everywhere(self, fate: str, calls: int, call: str = "", step: int = 1, before: Callable[[], int] = int) -> int:
        """Meet each ``step``-th of about so many calls; returns how many were met."""
        met, at, missed = 0, 1, 0
        while at <= calls or missed < 3:  # how many there are differs between lives: threads batch differently
            hit = self.meet(at, call, fate, before())
            met += hit
            missed += not hit and at > calls
            at += step
        return met

    def told(self, met: int, fate: str, record: Record) -> None:
        record("points", met)
        record("kills", self.kills)
        if fate not in ("killed", "torn"):
            record("errors", self.errors)
            assert self.errors >= 0.6 * met, "too few of the faults were told to anybody"


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("store", STORES)
def test_at_every_system_call_a_job_may_be_killed_or_its_disk_fail_and_nothing_is_lost(
    tools: Tools, place: Path, store: str, job: str, fate: str, record_property: Record
) -> None:
    # C1 C2 C3 G3 B7 W4 rel:D1 rel:D4 rel:D10 rel:D12 rel:R1 rel:R3 rel:R7
    tool = tools.choose("shim", record_property, only=fate == "torn")
    if not tool:
        return
    sufferer = Sufferer(tools, place, store, job, tool)
    seen = sufferer.baseline()
    met = sum(
        sufferer.everywhere(fate, sum(seen.values()) if call == "" else seen[call], call)
        for call in tools.kinds(sufferer.tool)
    )
    sufferer.told(met, fate, record_property)
    least = LEAST[store, job] if fate != "torn" else seen["write"] + seen["pwrite64"]
    assert met >= least * 0.8, f"{met} of {seen}"


@pytest.mark.parametrize("fate", ["killed", "failing", "full"])
@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("store", STORES)
def test_what_strace_injects_finds_nothing_lost_either(
    tools: Tools, place: Path, store: str, job: str, fate: str, record_property: Record
) -> None:
    # rel:D1 rel:D4 rel:R1 rel:R7: the same by another hand, for one call in eight, and the first of each kind
    sufferer = Sufferer(tools, place, store, job, tools.choose("strace", record_property))
    seen = sufferer.baseline()
    met = sum(sufferer.everywhere(fate, seen[call], call, step=8) for call in CALLS if seen[call])
    sufferer.told(met, fate, record_property)
    assert met >= LEAST[store, job] // 12


@pytest.mark.parametrize("fate", ["killed", "torn", "failing"])
@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("store", STORES)
def test_a_recovery_may_be_killed_or_its_disk_fail_as_well(
    tools: Tools, place: Path, store: str, job: str, fate: str, record_property: Record
) -> None:
    # rel:R2
    tool = tools.choose("shim", record_property, only=True)
    if not tool:
        return
    sufferer = Sufferer(tools, place, store, job, tool)
    dice = random.Random(str(sufferer))
    most = LEAST[store, job]
    met = sum(sufferer.meet(at, "", fate, dice.randint(most // 3, most)) for at in range(1, most, 5))
    sufferer.told(met, "killed", record_property)
    assert met >= most // (40 if fate == "torn" else 20)


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("store", STORES)
def test_writes_that_are_always_short_are_completed(
    tools: Tools, place: Path, store: str, job: str, record_property: Record
) -> None:
    # rel:D11
    tool = tools.choose("shim", record_property, only=True)
    if not tool:
        return
    sufferer = Sufferer(tools, place, store, job, tool)
    whole = sufferer.baseline()
    for at in (1, 2, 5, 11, 23, 47):
        with sufferer.folder(at, f"short writes from {at} on") as root:
            told = sufferer.life(root, 1, at, what="short").value
            assert (told["error"], told["result"]) == ("", sufferer.result())
            assert sum(told["seen"].values()) > sum(whole.values()), "no write was short"
            assert sufferer.judge(root, 1)["statuses"] == ["completed"]
    record_property("points", 6)


def test_the_shim_and_strace_see_the_same_calls(tools: Tools, place: Path, record_property: Record) -> None:
    # neither has gone blind
    if tools.choose("strace", record_property) == tools.choose("shim", record_property):
        return  # there is only one of them here, which was said
    for store in STORES:
        for job in JOBS:
            here = place / f"{store}-{job}"
            here.mkdir()
            by = [Sufferer(tools, here, store, job, tool).baseline(tool) for tool in ("shim", "strace")]
            for call in CALLS:
                assert by[0][call] * 0.7 - 2 <= by[1][call] <= by[0][call] * 1.4 + 2, (store, job, by)
