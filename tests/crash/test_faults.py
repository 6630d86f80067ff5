"""A full or failing disk at every change of a file: an error for people, nothing lost, and the run can go on later."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crash_crew import CREWS, expected
from crash_judge import judge
from crash_zygote import Zygote

Record = Callable[[str, object], None]
FAULTS = {"full": (errno.ENOSPC, True), "failing": (errno.EIO, False)}
"""a full disk stays full until somebody makes space; a failing one fails once and then says that all is well"""
LEAST = {"file": 70, "sqlite": 110}


def _faults(zygote: Zygote, place: Path, store: str, colour: str, fault: str, record: Record) -> None:
    code, lasting = FAULTS[fault]
    crew = {"store": store, "colour": colour}
    at = errors = clean = 0
    while clean < 3:
        at += 1
        root = place / str(at)
        try:
            told = zygote.run("crash_lives:faulted", root=str(root), life=1, at=at, code=code, lasting=lasting, **crew)
            if told.value["failed"] is None:
                clean += 1
                continue
            found = zygote.run("crash_lives:resume", root=str(root), life=2, **crew).value
            judge(root, found, 1)
            errors += _told_well(told.value, found["before"]["status"])
        except AssertionError as error:
            raise AssertionError(f"{crew}, {fault} disk at point {at}: {error}") from error
        finally:
            shutil.rmtree(root, ignore_errors=True)
    record("points", at - 3)
    record("errors", errors)
    assert at >= LEAST[store] and errors >= 0.8 * LEAST[store]


def _told_well(told: dict[str, Any], status: str) -> bool:
    """Whether there was an error, which must be a good one; without one the run must have ended durably."""
    assert not told["later"], f"after {told['failed']} had failed: {told['later']}"
    if not told["error"]:
        assert told["result"] == expected() and status == "completed", (told, status)
        return False
    if told["error"] == "ConfigError":  # the place does not even let us make the files: somebody has to choose another
        assert told["failed"][0] == "create" and "Choose another place" in str(told["message"]), told
        return True
    assert told["error"] == "StoreError", told
    kind, path = told["failed"]
    if path.endswith(("journal.jsonl", "-wal")) and kind in ("write", "sync"):
        assert told["broken"], f"the handle is still of use after {told['failed']}"
    assert "Nothing that was acknowledged is lost" in str(told["message"]) and "run again" in str(told["message"]), told
    return True


_SAMPLE = [("file", "full"), ("sqlite", "failing")]
"""of stores and faults; the rest is for the long run"""


@pytest.mark.parametrize(
    ("store", "fault"),
    [
        pytest.param(store, fault, marks=[] if (store, fault) in _SAMPLE else pytest.mark.long)
        for store in ("file", "sqlite")
        for fault in FAULTS
    ],
)
def test_a_disk_that_fails_at_any_change_is_told_and_nothing_is_lost(
    zygote: Zygote, place: Path, store: str, fault: str, record_property: Record
) -> None:
    # rel:D4 rel:D10 rel:D11 rel:D12 rel:R7
    _faults(zygote, place, store, "async", fault, record_property)


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("colour", sorted(CREWS.keys() - {"async"}))
@pytest.mark.parametrize("store", ["file", "sqlite"])
def test_a_disk_that_fails_at_any_change_of_any_crew_is_told_and_nothing_is_lost(
    zygote: Zygote, place: Path, store: str, colour: str, fault: str, record_property: Record
) -> None:
    # rel:D4 rel:D10 rel:D11 rel:D12 rel:R7
    _faults(zygote, place, store, colour, fault, record_property)
