"""What docs/check.md says is so."""

from __future__ import annotations

import re
from pathlib import Path

from perdure.stores.findings import KINDS

PAGE = (Path(__file__).parents[2] / "docs" / "check.md").read_text()


def test_the_page_has_every_kind_with_its_level_and_meaning() -> None:
    told = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*) \|$", PAGE, re.MULTILINE)
    assert {kind: (level, meaning) for kind, level, meaning in told} == KINDS


def test_the_page_says_what_is_done_about_each_kind_that_can_be_repaired() -> None:
    _, _, section = PAGE.partition("## What `--repair` does")
    told = set(re.findall(r"^\| `(\w+)` \| [^|]+ \|$", section, re.MULTILINE))
    assert told == {kind for kind, (level, _) in KINDS.items() if level == "repair"}
