"""What a step costs, to the statement, the wait and the byte: these figures do not depend on the machine, so that what
makes steps dearer is seen where it is done."""

from __future__ import annotations

from pathlib import Path

import pytest
from crash_zygote import Zygote

SQLITE, FILE = "sqlite:{}/runs.db", "file:{}/runs"


def per_step(zygote: Zygote, place: Path, **what: str) -> dict[str, float]:
    found: dict[str, float] = zygote.run("crash_costs:costs", root=str(place / "costs"), **what).value
    return found


RECORDS = {"sync": 1455, "async": 1461}
"""bytes that the two records of a step have whose result has 1,024; its name is longer in one colour"""


@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize(("durability", "commits"), [("strict", 2), ("pipelined", 1)])
def test_what_a_step_costs_in_sqlite(zygote: Zygote, place: Path, durability: str, commits: int, colour: str) -> None:
    # X8
    cost = per_step(zygote, place, store=SQLITE, durability=durability, colour=colour)
    assert cost["records"] == RECORDS[colour]
    assert (cost["statements"], cost["sync"]) == (commits, commits), "one statement and one wait a commit"
    assert 3 * 8192 * commits < cost["bytes"] < 4 * 8240 * commits, "pages: the row, the record, its place in the index"


@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize(("durability", "commits"), [("strict", 2), ("pipelined", 1)])
def test_what_a_step_costs_in_files(zygote: Zygote, place: Path, durability: str, commits: int, colour: str) -> None:
    # X8
    cost = per_step(zygote, place, store=FILE, durability=durability, colour=colour)
    assert cost["records"] == RECORDS[colour]
    assert (cost["write"], cost["sync"]) == (commits, commits)
    assert cost["bytes"] == RECORDS[colour] + (2 - commits), (
        "and nothing but its records; a blank joins those written together"
    )
