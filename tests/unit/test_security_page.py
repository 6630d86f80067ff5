"""SECURITY.md: each line of the threat model names a test that is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "SECURITY.md").read_text()
NAMED = re.compile(r"`([\w/.]+\.py)::(\w+)`")


def test_every_test_that_the_page_names_is_there() -> None:
    named = NAMED.findall(PAGE)
    assert len(named) > 50
    for path, name in named:
        text = (ROOT / path).read_text() if (ROOT / path).exists() else ""
        assert re.search(rf"^\s*(async )?def {name}\(", text, re.MULTILINE), f"{path}::{name}"


def test_every_line_of_a_table_names_a_test() -> None:
    rows = [line for line in PAGE.splitlines() if re.match(r"\| (?!it |he |they |---)", line)]
    assert len(rows) > 30
    for row in rows:
        assert NAMED.search(row.split("|")[2]), row


def test_the_page_says_what_does_not_hold_and_leaves_out_nobody() -> None:
    headings = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    wanted = ["A hostile checkpoint", "Somebody who may read the store", "Somebody who may write to the store"]
    wanted += ["A hostile answerer", "Another tenant on the same server", "A hostile model, tool, file or URL"]
    assert {*wanted, "A hostile archive", "Reporting", "What does not hold"} <= set(headings)
    assert PAGE.count(" **can** ") >= 5, "a page that says only what is impossible is not honest"


def test_pages_that_it_refers_to_are_there() -> None:
    for path in re.findall(r"\]\(([\w/.]+)(?:#[\w-]+)?\)", PAGE):
        assert (ROOT / path).exists(), path
