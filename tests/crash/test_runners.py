"""SIGKILL at every append to a journal, in every shape that runners make: it ends as if nothing had happened."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from crash_cases import STORES, by_turns
from crash_judge import Witness
from crash_runners import SHAPES
from crash_zygote import Zygote

LEAST = dict.fromkeys(SHAPES, 24) | {
    "race": 8,
    "swarm": 10,
    "swarm-sync": 8,
    "agent-sync": 12,
    "best-side-by-side": 14,
}
"""kills at least; a suite that sees fewer has gone blind"""


@pytest.mark.parametrize(("shape", "store", "when"), by_turns(SHAPES, STORES, ("before", "after")))
def test_killed_at_any_append_a_shape_ends_as_if_nothing_had_happened(
    zygote: Zygote, place: Path, store: str, shape: str, when: str, record_property: Callable[[str, object], None]
) -> None:
    # G3 G4 B5 B7 K1 K2 K3 W4 W5 W6 W7 X10 X15 rel:R1 rel:R2
    crew = {"store": store, "shape": shape}
    whole = zygote.run("crash_runner_lives:live", root=str(place / "whole"), life=1, at=0, when=when, **crew).value
    assert whole["warnings"] == []
    at = survived = kills = 0
    while survived < 2:
        at += 1
        root = place / str(at)
        try:
            if not zygote.run("crash_runner_lives:live", root=str(root), life=1, at=at, when=when, **crew).killed:
                survived += 1
                continue
            again = at // 2 + 1 if at % 3 == 0 else 0  # every third is killed twice
            second = zygote.run("crash_runner_lives:live", root=str(root), life=2, at=again, when=when, **crew)
            last = second
            if second.killed:
                last = zygote.run("crash_runner_lives:live", root=str(root), life=3, at=0, when=when, **crew)
            kills += 1 + second.killed
            _check(root, 3 if second.killed else 2)
            for what in ("result", "steps", "said", "warnings"):
                assert last.value[what] == whole[what], what
        except AssertionError as error:
            raise AssertionError(f"{store}, {shape}: killed {when} append {at}: {error}") from error
        finally:
            shutil.rmtree(root, ignore_errors=True)
    record_property("kills", kills)
    assert kills >= LEAST[shape]


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if not shape.startswith("best")])
def test_with_no_store_at_all_a_shape_gives_the_same(zygote: Zygote, place: Path, shape: str) -> None:  # G1
    kept = zygote.run("crash_runner_lives:live", root=str(place), store="file", shape=shape, life=1, at=0, when="after")
    assert zygote.run("crash_runner_lives:without", shape=shape).value == kept.value["result"]


def _check(root: Path, lives: int) -> None:
    witness = Witness(root)
    for life in range(1, lives + 1):
        began = [name for event, name in witness.said.get(life, ()) if event == "began"]
        durable = set(Path(f"{root}.before{life}").read_text().split("\n"))
        repeated = durable & set(began)
        assert not repeated, f"life {life} executed what was completed: {sorted(repeated)}"
        twice = [name for name, times in Counter(began).items() if times > 1]
        assert not twice, f"life {life} executed more than once: {twice}"
