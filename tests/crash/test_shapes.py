"""Resume after SIGKILL is right where position in a sequence would mislead: loops, orders, insertions, equal names."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from crash_cases import STORES, by_turns
from crash_judge import Witness
from crash_zygote import Zygote

LEAST = {"loop": 12, "completed": 8, "completed-sync": 8, "inserted": 8, "names": 10}
"""appends of a life that is not killed, at least"""
IN_FLIGHT = {"loop": 1, "completed": 5, "completed-sync": 5, "inserted": 1, "names": 2}
"""steps that may be running at a time"""


@pytest.mark.parametrize(("shape", "store", "when"), by_turns(LEAST, STORES, ("before", "after")))
def test_after_a_kill_at_any_append_every_place_receives_what_it_had_received(
    zygote: Zygote, place: Path, store: str, shape: str, when: str, record_property: Callable[[str, object], None]
) -> None:
    # X1 X10 B5 rel:R1
    at = survived = kills = 0
    while survived < 2:
        at += 1
        root = place / str(at)
        crew = {"root": str(root), "store": store, "shape": shape}
        try:
            if not zygote.run("crash_shapes:live", life=1, at=at, when=when, **crew).killed:
                survived += 1
                continue
            kills += 1
            again = zygote.run("crash_shapes:live", life=2, at=at // 2 + 1 if at % 3 == 0 else 0, when=when, **crew)
            last = again if not again.killed else zygote.run("crash_shapes:live", life=3, at=0, when=when, **crew)
            _check(Witness(root), shape, last.value["result"], 3 if again.killed else 2)
        except AssertionError as error:
            raise AssertionError(f"{store}, {shape}: killed {when} append {at}: {error}") from error
        finally:
            shutil.rmtree(root, ignore_errors=True)
    record_property("kills", kills)
    assert kills >= LEAST[shape]


def _check(witness: Witness, shape: str, result: list[str], lives: int) -> None:
    received: dict[str, str] = {}
    for life in range(1, lives + 1):
        for place, token in witness.received(life):
            assert received.setdefault(place, token) == token, f"{place} received another result: {received[place]}"
    whole = next(life for life in range(lives, 0, -1) if witness.received(life))  # a finished run says nothing again
    assert result == [token for place, token in witness.received(whole) if not place.startswith("new-")]
    assert len(set(result)) == len(result), "two places share a result"
    began = [token for life in range(1, lives + 1) for token in witness.names(life, "began")]
    useless = [token for token in began if not any(token in text.split("+") for text in received.values())]
    assert len(useless) <= (lives - 1) * IN_FLIGHT[shape], f"more than what was in flight ran again: {useless}"
