"""The suites prove themselves: stores and writers that look right, and are not, are each caught.

(A store that renames without fsync, and others that forget a sync, are caught in test_power_cut.py and
test_real_power_cuts.py.)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from crash_cases import Case
from crash_zygote import Zygote

Record = Callable[[str, object], None]


@pytest.mark.parametrize(
    ("store", "twin", "when", "seen"),
    [
        pytest.param("rewritten", "", "torn", "truncated", id="rewritten-in-place-torn"),
        pytest.param("rewritten", "", "before", "received but not durable", id="rewritten-in-place-lost"),
        pytest.param("file", "hasty", "before", "received but not durable", id="acknowledged-too-early-file"),
        pytest.param("sqlite", "hasty", "before", "received but not durable", id="acknowledged-too-early-sqlite"),
    ],
)
def test_a_known_bad_twin_is_caught(
    zygote: Zygote, place: Path, store: str, twin: str, when: str, seen: str, record_property: Record
) -> None:
    case = Case(zygote, place, store, "async")
    with case.folder("whole", "left in peace") as root:  # it is a twin: it looks right
        points = case.run("killed", root, 1, at=0, when=when, twin=twin).value["points"]
        case.judge(root, 1)
    violations: list[str] = []
    for at in range(points // 4, points):
        try:
            with case.folder(at, f"killed {when} point {at}") as root:
                if case.run("killed", root, 1, at=at, when=when, twin=twin).killed:
                    case.judge(root, 1)
        except AssertionError as error:
            violations.append(str(error))
        if any(seen in violation for violation in violations):
            record_property("known-bad twins caught", 1)
            return
    raise AssertionError(f"not caught by {points} kills: {violations[-2:]}")
