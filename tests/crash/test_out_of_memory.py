"""Memory that is used up while a run is resumed is an error, and no outcome: more memory is all that the run needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from crash_cases import STORES, Case
from crash_zygote import Zygote

TOLD = {"MemoryError", "StoreError"}
ROOMS = range(1_000, 41_000, 1_300)
"""KiB: from little more than a thread needs to more than the run does"""


@pytest.mark.parametrize(
    ("store", "step"), [("file", 6), *(pytest.param(s, 1, marks=pytest.mark.long) for s in STORES)]
)
def test_memory_that_is_used_up_while_resuming_is_no_outcome_and_the_run_goes_on_with_more(
    zygote: Zygote, place: Path, store: str, step: int, record_property: Callable[[str, object], None]
) -> None:
    # rel:R7 rel:D12 B3
    case = Case(zygote, place, store, "heavy")
    errors = ends = 0
    for room in ROOMS[::step]:
        with case.folder(room, f"resumed with {room} KiB more") as root:
            assert case.run("killed_at_append", root, 1, at=11, when="after").killed
            told = case.run("squeezed", root, 2, room=room).value
            before = case.judge(root, 2, ended=("interrupted",))
            errors += bool(told["error"])
            ends += told["result"] == case.result()
            if told["error"]:
                assert told["error"] in TOLD, told
                assert told["error"] == "MemoryError" or "acknowledged is" in told["message"], told
            else:
                assert before["statuses"] == ["completed"]
    record_property("times out of memory", errors)
    assert errors and ends, "the limits are not where the run is"
