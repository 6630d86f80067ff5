"""SIGKILL at every change of a file and at every append to the journal of an 8-step crew, one life each.

The points are not guessed: life after life dies at point 1, 2, 3 ... until lives survive because there are no more.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crash_crew import CREWS
from crash_judge import judge
from crash_zygote import Zygote

STORES = ("file", "sqlite")
LEAST = {"file": 70, "sqlite": 110}
"""changes of files in a run that is not killed; a suite that sees fewer has gone blind"""

Record = Callable[[str, object], None]


class Killer:
    """Kills lives of one crew on one store, each in a folder of its own."""

    def __init__(self, zygote: Zygote, place: Path, store: str, colour: str, how: str = "killed") -> None:
        self.zygote, self.place, self.how = zygote, place, f"crash_lives:{how}"
        self.crew = {"store": store, "colour": colour}
        self.kills = 0

    def life(self, root: Path, life: int, at: int, when: str) -> bool:
        """Whether it was killed."""
        ended = self.zygote.run(self.how, root=str(root), life=life, at=at, when=when, **self.crew)
        self.kills += ended.killed
        return ended.killed

    def resume(self, root: Path, life: int) -> Any:
        ended = self.zygote.run("crash_lives:resume", root=str(root), life=life, **self.crew)
        assert not ended.killed
        return ended.value

    def everywhere(self, when: str) -> int:
        """Die at every point, resume, judge. Returns the number of points."""
        at = survived = 0
        while survived < 3:  # how many changes there are differs a little between lives: threads batch differently
            at += 1
            root = self.place / str(at)
            try:
                if not self.life(root, 1, at, when):
                    survived += when != "torn" or at > LEAST[self.crew["store"]]  # not every point can be torn
                    continue
                judge(root, self.resume(root, 2), 1)
            except AssertionError as error:
                raise AssertionError(f"{self.crew}, killed {when} point {at}: {error}") from error
            finally:
                shutil.rmtree(root, ignore_errors=True)
        return at - 3


def _points(killer: Killer, when: str, record: Record) -> None:
    points = killer.everywhere(when)
    record("points", points)
    record("kills", killer.kills)
    least = LEAST[killer.crew["store"]]
    assert points >= least and killer.kills >= (least if when != "torn" else least // 8)


_SAMPLE = {("file", "before"), ("file", "torn"), ("sqlite", "torn"), ("sqlite", "after")}
"""of stores and moments; the rest is for the long run"""


@pytest.mark.parametrize(
    ("store", "when"),
    [
        pytest.param(store, when, marks=[] if (store, when) in _SAMPLE else pytest.mark.long)
        for store in STORES
        for when in ("before", "torn", "after")
    ],
)
def test_killed_at_every_change_of_a_file_an_async_crew_ends_as_if_nothing_had_happened(
    zygote: Zygote, place: Path, store: str, when: str, record_property: Record
) -> None:
    # C1 C2 C3 C4 C5 X15 rel:D1 rel:R1 rel:R3
    _points(Killer(zygote, place, store, "async"), when, record_property)


@pytest.mark.long
@pytest.mark.parametrize("when", ["before", "torn", "after"])
@pytest.mark.parametrize("colour", sorted(CREWS.keys() - {"async"}))
@pytest.mark.parametrize("store", STORES)
def test_killed_at_every_change_of_a_file_every_crew_ends_as_if_nothing_had_happened(
    zygote: Zygote, place: Path, store: str, colour: str, when: str, record_property: Record
) -> None:
    # C1 C2 C3 C4 C5 X15 rel:D1 rel:R1 rel:R3
    _points(Killer(zygote, place, store, colour), when, record_property)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("colour", sorted(CREWS))
@pytest.mark.parametrize("store", STORES)
def test_killed_at_every_append_to_the_journal_a_crew_ends_as_if_nothing_had_happened(
    zygote: Zygote, place: Path, store: str, colour: str, when: str, record_property: Record
) -> None:
    # C1 C2 X15 rel:D1 rel:R1
    killer = Killer(zygote, place, store, colour, how="killed_at_append")
    record_property("points", killer.everywhere(when))
    record_property("kills", killer.kills)
    assert killer.kills >= 10


@pytest.mark.parametrize("colour", sorted(CREWS))
@pytest.mark.parametrize("store", STORES)
def test_killed_anywhere_and_killed_again_anywhere_in_the_recovery_a_crew_ends_the_same(
    zygote: Zygote, place: Path, store: str, colour: str, record_property: Record
) -> None:
    # rel:R2
    dice = random.Random(f"{store} {colour}")
    killer = Killer(zygote, place, store, colour)
    last = 1.3 * LEAST[store]
    twice = 0
    for _ in range(30):
        first, second = dice.randint(1, int(last)), dice.randint(1, int(last))
        when = dice.choice(["before", "torn", "after"])
        twice += _twice(killer, first, second, when)
    record_property("killed twice", twice)
    assert twice >= 5


def _twice(killer: Killer, first: int, second: int, when: str) -> bool:
    root = killer.place / f"{first}-{second}"
    try:
        if not killer.life(root, 1, first, when):
            return False
        second_died = killer.life(root, 2, second, when)
        judge(root, killer.resume(root, 3), 2) if second_died else None
        return second_died
    except AssertionError as error:
        raise AssertionError(f"{killer.crew}, killed {when} point {first}, then {second}: {error}") from error
    finally:
        shutil.rmtree(root, ignore_errors=True)


@pytest.mark.long
@pytest.mark.parametrize("chunk", range(8))
@pytest.mark.parametrize("store", STORES)
def test_a_recovery_from_every_kill_killed_all_over_again_ends_the_same(
    zygote: Zygote, place: Path, store: str, chunk: int, record_property: Record
) -> None:
    # rel:R2: all first points, an eighth in each chunk; with each a fourth of the second ones, with the next others
    killer = Killer(zygote, place, store, "async")
    twice = 0
    for first in range(1 + chunk, LEAST[store], 8):
        second, survived = first // 8 % 4 - 3, 0
        while survived < 2:
            second += 4
            died = _twice(killer, first, second, "before")
            survived += not died
            twice += died
    record_property("killed twice", twice)
    assert twice >= LEAST[store] // 8 * 5
