"""A full or failing disk at every change of a file: an error for people, nothing lost, and the run can go on later."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from crash_cases import STORES, Case, sampled
from crash_crew import CREWS
from crash_judge import told_well
from crash_zygote import Zygote

Record = Callable[[str, object], None]
FAULTS = {"full": (errno.ENOSPC, True), "failing": (errno.EIO, False)}
"""a full disk stays full until somebody makes space; a failing one fails once and then says that all is well"""
LEAST = {("file", job): 70 for job in CREWS} | {("sqlite", job): 110 for job in CREWS}
LEAST |= {("file", "graph"): 120, ("file", "agent"): 90, ("sqlite", "graph"): 210, ("sqlite", "agent"): 250}


def _faults(case: Case, fault: str, record: Record, step: int = 1) -> None:
    code, lasting = FAULTS[fault]
    at, tried, errors, clean = 1, 0, 0, 0
    while clean < 3:
        with case.folder(at, f"{fault} disk at point {at}") as root:
            told = case.run("faulted", root, 1, at=at, code=code, lasting=lasting).value
            if told["failed"] is None:
                clean += 1
            else:
                before = case.judge(root, 1)
                errors += told_well(told, *before["statuses"], result=case.result())
        at, tried = at + step, tried + 1
    record("points", tried - 3)
    record("errors", errors)
    least = LEAST[case.store, case.job] // step
    assert tried >= least and errors >= 0.8 * least


@pytest.mark.parametrize(
    ("store", "fault", "step"),
    sampled(("file", "full", 4), ("file", "failing", 16), ("sqlite", "full", 16), ("sqlite", "failing", 4)),
)
def test_a_disk_that_fails_at_any_change_is_told_and_nothing_is_lost(
    zygote: Zygote, place: Path, store: str, fault: str, step: int, record_property: Record
) -> None:
    # rel:D4 rel:D10 rel:D11 rel:D12 rel:R7
    _faults(Case(zygote, place, store, "async"), fault, record_property, step)


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("job", sorted(CREWS.keys() - {"async"} | {"graph", "agent"}))
@pytest.mark.parametrize("store", STORES)
def test_a_disk_that_fails_at_any_change_of_any_job_is_told_and_nothing_is_lost(
    zygote: Zygote, place: Path, store: str, job: str, fault: str, record_property: Record
) -> None:
    # rel:D4 rel:D10 rel:D11 rel:D12 rel:R7
    _faults(Case(zygote, place, store, job), fault, record_property)
